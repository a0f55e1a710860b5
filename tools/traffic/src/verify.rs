//! The verifier: walks the device block by block and accounts for every byte.

use std::collections::HashSet;
use std::fs::{File, OpenOptions};
use std::io::{Error, ErrorKind, Read, Result, Seek, SeekFrom};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use clap::Args;
use nix::fcntl::OFlag;

use crate::payload::{self, HEADER, MAX, Sizes};
use crate::print;

#[derive(Args)]
pub struct Options {
    /// Device or file that was written
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
    /// Bytes in a block of the device
    #[arg(long, default_value_t = 512)]
    block: usize,
    /// First block
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
}

impl Findings {
    /// Whether as many payloads are intact as were stored, and nothing is wrong. `unordered`: in whatever order.
    fn are_right(&self, stored: u64, unordered: bool) -> bool {
        let disordered = if unordered { self.disordered } else { 0 };
        let right = Findings {
            intact: stored,
            disordered,
            ..Findings::default()
        };
        *self == right
    }
}

/// Bypasses the page cache, which does not see writes by passthrough.
struct Direct {
    file: File,
    buffer: Vec<u8>,
    /// Start of the aligned part of the buffer, its unread part, and its end.
    base: usize,
    at: usize,
    end: usize,
}

const CHUNK: usize = 1 << 20;

impl Direct {
    fn open(path: &Path, offset: u64) -> Result<Direct> {
        let name = |e: Error| Error::new(e.kind(), format!("reading '{}': {e}", path.display()));
        let mut direct = OpenOptions::new();
        direct.read(true).custom_flags(OFlag::O_DIRECT.bits());
        let mut file = direct
            .open(path)
            .or_else(|_| File::open(path))
            .map_err(name)?;
        file.seek(SeekFrom::Start(offset)).map_err(name)?;
        let buffer = vec![0; CHUNK + 4096];
        let base = buffer.as_ptr().align_offset(4096);
        Ok(Direct {
            file,
            buffer,
            base,
            at: 0,
            end: 0,
        })
    }

    /// The next `len` bytes appended to `out`; `false` at the end of the device.
    fn append(&mut self, len: usize, out: &mut Vec<u8>) -> Result<bool> {
        let mut left = len;
        while left > 0 {
            if self.at == self.end {
                let room = &mut self.buffer[self.base..self.base + CHUNK];
                (self.at, self.end) = (0, self.file.read(room)?);
                if self.end == 0 {
                    return Ok(false);
                }
            }
            let part = left.min(self.end - self.at);
            let from = self.base + self.at;
            out.extend_from_slice(&self.buffer[from..from + part]);
            self.at += part;
            left -= part;
        }
        Ok(true)
    }
}

pub fn run(options: &Options) -> Result<bool> {
    if !options.block.is_power_of_two() || !(512..=65536).contains(&options.block) {
        return Err(Error::new(
            ErrorKind::InvalidInput,
            format!("{} bytes is no block size", options.block),
        ));
    }
    let mut device = Direct::open(&options.device, options.start * options.block as u64)?;
    let append: Append = &mut |len, out| device.append(len, out);
    let findings = if options.scan {
        scan(options, append)?
    } else {
        walk(options, append)?
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
    Ok(ok)
}

type Append<'a> = &'a mut dyn FnMut(usize, &mut Vec<u8>) -> Result<bool>;

fn walk(options: &Options, append: Append) -> Result<Findings> {
    let mut found = Findings::default();
    let mut seen = HashSet::new();
    let mut next = options.first;
    let mut record = Vec::new();
    let mut expected = vec![0; MAX];
    loop {
        record.clear();
        if !append(options.block, &mut record)? || record.iter().all(|b| *b == 0) {
            // A zero block ends what was written: payload bytes are never all zero.
            return Ok(found);
        }
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
        let whole = len.next_multiple_of(options.block);
        if !append(whole - options.block, &mut record)? {
            found.damaged += 1;
            return Ok(found);
        }
        let expected = &mut expected[..len];
        payload::fill(number, expected);
        if record[..len] != *expected {
            found.damaged += 1;
        } else if !seen.insert(number) {
            found.doubled += 1;
        } else {
            found.intact += 1;
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
            block: 512,
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
            walk(&options, &mut append).unwrap()
        }
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
}
