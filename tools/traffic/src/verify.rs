//! The verifier: walks the device block by block and accounts for every byte.

use std::collections::HashSet;
use std::io::{Error, ErrorKind, Read, Result, Seek};
use std::path::PathBuf;

use clap::Args;

use crate::payload::{self, HEADER, MAX, Sizes};
use crate::print;
use crate::stripe::{self, Direct, Stripe};

#[derive(Args)]
pub struct Options {
    /// Device or file that was written; several with commas between them, in the order that the recorder has them in
    #[arg(value_name = "DEVICE[,DEVICE...]")]
    device: PathBuf,
    /// Number of payloads that the recorder reports as stored
    #[arg(long)]
    stored: u64,
    /// Number of payloads that were sent; all of them must be stored
    #[arg(long)]
    sent: Option<u64>,
    /// Payload sizes, as given when sending
    #[arg(long, default_value = "1024")]
    size: Sizes,
    /// Bytes in a block of the device; of several devices, one number for all, or one for each with commas between them
    #[arg(
        long,
        default_value = "512",
        value_delimiter = ',',
        value_name = "BYTES[,BYTES...]"
    )]
    block: Vec<usize>,
    /// Bytes of a chunk, of several devices: the recorder's chunk_bytes
    #[arg(long, default_value_t = 1 << 20, value_name = "BYTES")]
    chunk: u64,
    /// First block; of several devices, in blocks of the largest size
    #[arg(long, default_value_t = 0)]
    start: u64,
    /// Number of the first payload
    #[arg(long, default_value_t = 0)]
    first: u64,
    /// Take payloads in any order: those that came to several queues
    #[arg(long)]
    unordered: bool,
    /// Search for payloads at every 512 bytes and ignore other data: for programs that store more than the payload
    #[arg(long)]
    scan: bool,
}

#[derive(Debug, Default, PartialEq, Eq)]
struct Findings {
    intact: u64,
    damaged: u64,
    doubled: u64,
    disordered: u64,
    /// Blocks whose padding is not zero.
    dirty: u64,
    /// Numbers that were never sent.
    foreign: u64,
    /// Those intact, by device.
    by_device: Vec<u64>,
}

impl Findings {
    /// Whether as many payloads are intact as were stored, and nothing is wrong. `unordered`: in whatever order.
    fn are_right(&self, stored: u64, unordered: bool) -> bool {
        let disordered = if unordered { self.disordered } else { 0 };
        let right = Findings {
            intact: stored,
            disordered,
            by_device: self.by_device.clone(),
            ..Findings::default()
        };
        *self == right
    }
}

/// The block size of each of so many devices.
fn blocks(options: &Options, devices: usize) -> Result<Vec<usize>> {
    let invalid = |text| Err(Error::new(ErrorKind::InvalidInput, text));
    let sizes = match options.block[..] {
        [all] => vec![all; devices],
        _ => options.block.clone(),
    };
    if sizes.len() != devices {
        return invalid(format!(
            "--block has {} sizes for {devices} devices: give one for all, or one for each",
            sizes.len()
        ));
    }
    if let Some(size) = sizes
        .iter()
        .find(|size| !size.is_power_of_two() || !(512..=65536).contains(*size))
    {
        return invalid(format!("{size} bytes is no block size"));
    }
    Ok(sizes)
}

pub fn run(options: &Options) -> Result<bool> {
    let names = stripe::names(&options.device);
    let blocks = blocks(options, names.len())?;
    if options.scan && names.len() > 1 {
        return Err(Error::new(
            ErrorKind::InvalidInput,
            "--scan searches one device: programs that it is for write to one",
        ));
    }
    let (mut devices, mut lengths) = (Vec::new(), Vec::new());
    for name in &names {
        let (device, length) = Direct::open(name)?;
        devices.push(device);
        lengths.push(length);
    }
    let block = blocks.iter().copied().max().unwrap_or(512);
    let mut stripe = Stripe::new(devices, &lengths, options.chunk, block as u64)?;
    let findings = if options.scan {
        stripe.seek(options.start * block as u64)?;
        scan(options, &mut |len, out| stripe.append(len, out))?
    } else {
        walk(options, &blocks, &mut stripe)?
    };
    let missing = options.sent.unwrap_or(0).saturating_sub(findings.intact);
    let ok = findings.are_right(options.stored, options.unordered) && missing == 0;
    print(format_args!(
        "Verified: {} of {} stored payloads intact{}; {} damaged, {} doubled, {} out of order, {} foreign, {} with dirty padding",
        findings.intact,
        options.stored,
        options.sent.map_or(String::new(), |sent| format!(
            ", {missing} of {sent} sent missing"
        )),
        findings.damaged,
        findings.doubled,
        findings.disordered,
        findings.foreign,
        findings.dirty,
    ))?;
    if names.len() > 1 {
        for (name, intact) in names.iter().zip(&findings.by_device) {
            print(format_args!("  {intact} on {}", name.display()))?;
        }
    }
    Ok(ok)
}

type Append<'a> = &'a mut dyn FnMut(usize, &mut Vec<u8>) -> Result<bool>;

/// `blocks`: the block size of each device. The largest is a block of the recording.
fn walk<R: Read + Seek>(
    options: &Options,
    blocks: &[usize],
    stripe: &mut Stripe<R>,
) -> Result<Findings> {
    let mut found = Findings {
        by_device: vec![0; blocks.len()],
        ..Findings::default()
    };
    let block = blocks.iter().copied().max().unwrap_or(512);
    let mut seen = HashSet::new();
    let mut next = options.first;
    let mut record = Vec::new();
    let mut expected = vec![0; MAX];
    let longest = options.size.max().next_multiple_of(block) as u64;
    let mut at = options.start * block as u64;
    // No payload goes on in the next chunk: one that does not fit begins there, and what is left here was not written.
    let mut skipped = false;
    loop {
        record.clear();
        if !stripe.seek(at)? {
            return Ok(found);
        }
        let left = stripe.left_in_chunk(at);
        let device = stripe.device_of(at);
        if !stripe.append(block, &mut record)? || record.iter().all(|b| *b == 0) {
            // A zero block ends what was written: payload bytes are never all zero.
            if skipped || left >= longest {
                return Ok(found);
            }
            (at, skipped) = (at + left, true);
            continue;
        }
        skipped = false;
        let from = at;
        at += block as u64;
        let (number, len) = match payload::identify(&record) {
            Some(known) => known,
            // Too short to carry its number: only its place in the order tells.
            None if options.size.of(next) < HEADER => (next, options.size.of(next)),
            None => {
                found.damaged += 1;
                continue;
            }
        };
        if number < options.first
            || options
                .sent
                .is_some_and(|sent| number - options.first >= sent)
        {
            found.foreign += 1;
            continue;
        }
        if options.size.of(number) != len {
            found.damaged += 1;
            continue;
        }
        let whole = len.next_multiple_of(block);
        if whole as u64 > left {
            // It would reach into the next chunk, which no payload does.
            found.damaged += 1;
            continue;
        }
        // On a device of smaller blocks, only those that the payload needs are written.
        record.resize(len.next_multiple_of(blocks[device]), 0);
        let rest = record.len().saturating_sub(block);
        record.truncate(block.min(record.len()));
        if rest > 0 && !stripe.append(rest, &mut record)? {
            found.damaged += 1;
            return Ok(found);
        }
        at = from + whole as u64;
        let expected = &mut expected[..len];
        payload::fill(number, expected);
        if record[..len] != *expected {
            found.damaged += 1;
        } else if !seen.insert(number) {
            found.doubled += 1;
        } else {
            found.intact += 1;
            found.by_device[device] += 1;
            found.disordered += u64::from(number < next);
        }
        found.dirty += u64::from(record[len..].iter().any(|b| *b != 0));
        next = number + 1;
    }
}

/// Bytes without a payload after which a scan gives up.
const SCAN_EMPTY: usize = 64 << 20;
const SCAN_STEP: usize = 512;

fn scan(options: &Options, append: Append) -> Result<Findings> {
    let mut found = Findings::default();
    let mut seen = HashSet::new();
    let mut expected = vec![0; MAX];
    // What is looked at: it always holds a whole payload more than the place that is being looked at.
    let mut window = Vec::new();
    let (mut at, mut empty, mut more) = (0, 0, true);
    loop {
        while more && window.len() < at + MAX + SCAN_STEP {
            let len = window.len();
            more = append(SCAN_STEP, &mut window)?;
            if !more {
                window.truncate(len);
            }
        }
        let Some(rest) = window.get(at..).filter(|rest| !rest.is_empty()) else {
            return Ok(found);
        };
        let known = payload::identify(rest)
            .filter(|(number, len)| *number >= options.first && options.size.of(*number) == *len);
        empty += SCAN_STEP;
        if let Some((number, len)) = known {
            empty = 0;
            let expected = &mut expected[..len];
            payload::fill(number, expected);
            if !rest.starts_with(expected) {
                found.damaged += 1;
            } else if options
                .sent
                .is_some_and(|sent| number - options.first >= sent)
            {
                found.foreign += 1;
            } else if !seen.insert(number) {
                found.doubled += 1;
            } else {
                found.intact += 1;
            }
        }
        at += SCAN_STEP;
        if at >= MAX * 4 {
            window.drain(..at);
            at = 0;
        }
        if empty >= SCAN_EMPTY {
            return Ok(found);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Cursor;

    fn device(sizes: &Sizes, numbers: &[u64]) -> Vec<u8> {
        let mut bytes = Vec::new();
        for number in numbers {
            let start = bytes.len();
            let len = sizes.of(*number);
            bytes.resize(start + len, 0);
            payload::fill(*number, &mut bytes[start..]);
            bytes.resize(start + len.next_multiple_of(512), 0);
        }
        bytes.resize(bytes.len() + 4096, 0);
        bytes
    }

    fn look(bytes: &[u8], sizes: &Sizes, sent: u64, scan: bool) -> Findings {
        let options = Options {
            device: PathBuf::new(),
            stored: 0,
            sent: Some(sent),
            size: sizes.clone(),
            block: vec![512],
            chunk: 1 << 20,
            start: 0,
            first: 0,
            unordered: false,
            scan,
        };
        let mut at = 0;
        let mut append = |len: usize, out: &mut Vec<u8>| {
            let Some(part) = bytes.get(at..at + len) else {
                return Ok(false);
            };
            out.extend_from_slice(part);
            at += len;
            Ok(true)
        };
        if scan {
            super::scan(&options, &mut append).unwrap()
        } else {
            walked(&options, &[512], vec![bytes.to_vec()])
        }
    }

    fn walked(options: &Options, blocks: &[usize], devices: Vec<Vec<u8>>) -> Findings {
        let lengths: Vec<u64> = devices.iter().map(|d| d.len() as u64).collect();
        let block = blocks.iter().max().unwrap();
        let devices = devices.into_iter().map(Cursor::new).collect();
        let mut stripe = Stripe::new(devices, &lengths, options.chunk, *block as u64).unwrap();
        walk(options, blocks, &mut stripe).unwrap()
    }

    #[test]
    fn a_scan_finds_payloads_among_other_things() {
        let sizes: Sizes = "100-1472".parse().unwrap();
        let mut bytes = vec![0xee; 1024];
        for number in 0..300 {
            let start = bytes.len();
            let len = sizes.of(number);
            bytes.resize(start + len, 0);
            payload::fill(number, &mut bytes[start..]);
            // Something of the program's own, and stale bytes up to the block's end.
            bytes.resize((start + len + 30).next_multiple_of(512), 0x77);
        }
        bytes.resize(bytes.len() + (1 << 20), 0);
        let found = look(&bytes, &sizes, 300, true);
        let all = Findings {
            intact: 300,
            ..Findings::default()
        };
        assert_eq!(found, all);
        bytes[1024 + 50] ^= 1;
        let found = look(&bytes, &sizes, 300, true);
        assert_eq!((found.intact, found.damaged), (299, 1));
    }

    #[test]
    fn what_is_whole_is_found_whole() {
        let sizes: Sizes = "1-1472".parse().unwrap();
        let numbers: Vec<u64> = (0..500).collect();
        let found = look(&device(&sizes, &numbers), &sizes, 500, false);
        assert_eq!(
            found,
            Findings {
                intact: 500,
                by_device: vec![500],
                ..Findings::default()
            }
        );
    }

    #[test]
    fn each_fault_is_seen() {
        let sizes: Sizes = "100-600".parse().unwrap();
        let good = device(&sizes, &[0, 1, 2, 3]);
        let mut bad = good.clone();
        bad[50] ^= 1;
        assert_eq!(look(&bad, &sizes, 4, false).damaged, 1);
        let mut bad = good.clone();
        bad[sizes.of(0)] = 9;
        assert_eq!(look(&bad, &sizes, 4, false).dirty, 1);
        let doubled = look(&device(&sizes, &[0, 1, 1, 2]), &sizes, 4, false);
        assert_eq!((doubled.intact, doubled.doubled), (3, 1));
        let swapped = look(&device(&sizes, &[1, 0]), &sizes, 4, false);
        assert_eq!(swapped.disordered, 1);
        assert!(swapped.are_right(2, true) && !swapped.are_right(2, false));
        assert!(!swapped.are_right(3, true) && !doubled.are_right(3, true));
        assert_eq!(look(&good, &sizes, 3, false).foreign, 1);
    }

    /// What a recorder leaves on two devices with blocks of 512 and 4096 bytes, in chunks of 8192 bytes.
    fn striped(sizes: &Sizes, count: u64) -> Vec<Vec<u8>> {
        let (chunk, block) = (8192, 4096);
        let mut devices = vec![Vec::new(), Vec::new()];
        let mut at = 0;
        for number in 0..count {
            let len = sizes.of(number);
            let whole = len.next_multiple_of(block);
            if at % chunk + whole > chunk {
                at += chunk - at % chunk;
            }
            let device = &mut devices[at / chunk % 2];
            let place = at / chunk / 2 * chunk + at % chunk;
            device.resize(device.len().max(place + whole), 0);
            payload::fill(number, &mut device[place..place + len]);
            at += whole;
        }
        for device in &mut devices {
            device.resize(1 << 20, 0);
        }
        devices
    }

    #[test]
    fn payloads_over_two_devices_are_found_in_their_order() {
        let sizes: Sizes = "3000-5000".parse().unwrap();
        let options = Options {
            device: PathBuf::new(),
            stored: 40,
            sent: Some(40),
            size: sizes.clone(),
            block: vec![512, 4096],
            chunk: 8192,
            start: 0,
            first: 0,
            unordered: false,
            scan: false,
        };
        let good = striped(&sizes, 40);
        let blocks = [512, 4096];
        let found = walked(&options, &blocks, good.clone());
        assert!(found.are_right(40, false), "{found:?}");
        assert!(found.by_device.iter().all(|count| *count > 10));
        // A block of 512 that no write touches may hold anything, on the device that has such blocks.
        let mut stale = good.clone();
        let len = sizes.of(0).next_multiple_of(512);
        assert_ne!(len % 4096, 0);
        stale[0][len] = 9;
        assert!(walked(&options, &blocks, stale.clone()).are_right(40, false));
        assert_eq!(walked(&options, &[4096, 4096], stale).dirty, 1);
        // The devices in another order, another chunk, and a byte that is wrong.
        let swapped = vec![good[1].clone(), good[0].clone()];
        assert!(!walked(&options, &[4096, 512], swapped).are_right(40, false));
        let other = Options {
            chunk: 16384,
            size: sizes.clone(),
            device: PathBuf::new(),
            block: vec![512, 4096],
            ..options
        };
        assert!(!walked(&other, &blocks, good.clone()).are_right(40, false));
        let mut bad = good;
        bad[1][40] ^= 1;
        let found = walked(
            &Options {
                chunk: 8192,
                ..other
            },
            &blocks,
            bad,
        );
        assert_eq!((found.intact, found.damaged), (39, 1));
    }
}
