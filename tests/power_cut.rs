//! The power goes away while records are written.
//!
//! A guest records onto a drive all of whose writes and flushes QEMU logs in their order (blklogwrites, the format of the
//! kernel's dm-log-writes), notes in the drive's last block what is durable, and is killed. From that log
//! follow all states that the drive may have been left in, at that moment and at any before it: all that a
//! flush had covered is there, of the rest any part. A recording on two drives has two such logs, and its drives may lose their
//! power at different moments. tests/vm/run runs both halves.

mod common;

// What the sender sends.
#[path = "../tools/traffic/src/payload.rs"]
#[allow(dead_code)]
mod sent;

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use common::{Scratch, Veth, is_root, log_to_stderr, payload, skip};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use unified::config::{Config, Drive};
use unified::context::Context;
use unified::error::Result;
use unified::log_reader::{Item, LogReader};
use unified::pipeline::{Pipeline, PipelineConfig, StoreLayout};
use unified::storage::device::DeviceConfig;

const SECTOR: usize = 512;
const SIZE: usize = 1024;
const MARK: &[u8; 8] = b"durable:";

/// What is recorded to: "slot" (a log of version 1), "log", or "set" (a log on two drives).
fn layout() -> String {
    std::env::var("UNIFIED_TEST_CUT_LAYOUT").unwrap_or("slot".into())
}

/// All but the last MiB, where the notes are.
fn recording(blocks: u64) -> PipelineConfig {
    PipelineConfig {
        layout: match layout().as_str() {
            "slot" => StoreLayout::Slot,
            _ => StoreLayout::Log,
        },
        // Packed: what a power cut does to a unit of several packets is the question.
        pack_below: Some(u32::MAX),
        blocks: match layout().as_str() {
            // Short, so that its segments are, and both drives have many.
            "set" => 12288,
            _ => blocks - 2048,
        },
        flush_writes: Some(64),
        flush_interval: Some(Duration::from_millis(50)),
        ..PipelineConfig::default()
    }
}

/// In the guest. Ends with it, or when everything is stored, whichever comes first.
#[test]
fn records_until_the_power_is_cut() {
    let test = "records_until_the_power_is_cut";
    let all = ["NIC", "SENDER", "CUT"].map(|name| std::env::var(format!("UNIFIED_TEST_{name}")));
    let [Ok(nic), Ok(sender), Ok(nodes)] = all else {
        return skip(
            test,
            "UNIFIED_TEST_CUT names no drive that is going to lose its power",
        );
    };
    assert!(is_root(test));
    log_to_stderr();
    let mut config = Config {
        ifname: Some(nic),
        drive: Drive::Thread,
        ..Config::default()
    };
    let nodes: Vec<&str> = match layout().as_str() {
        "set" => nodes.split(',').collect(),
        _ => nodes.split(',').take(1).collect(),
    };
    set_devices(&mut config, &nodes);
    let context = Arc::new(Context::open(&config).unwrap());
    let blocks = context.info().devices[0].limits.blocks;
    let pipeline = Pipeline::start(context, recording(blocks)).unwrap();
    let mut direct = OpenOptions::new();
    direct.write(true).custom_flags(libc::O_DIRECT);
    let notes = nodes
        .iter()
        .map(|node| direct.open(node.replace("/dev/ng", "/dev/nvme")).unwrap());
    let notes: Vec<File> = notes.collect();
    let mut requests = OpenOptions::new().write(true).open(sender).unwrap();
    writeln!(requests, "send 7000 {SIZE} 1500 9999 0").unwrap();

    // For direct I/O it stands on a boundary of its length.
    let mut memory = [0u8; 2 * SECTOR];
    let at = memory.as_ptr().align_offset(SECTOR);
    let note = &mut memory[at..at + SECTOR];
    note[..8].copy_from_slice(MARK);
    let mut durable = 0;
    while durable < 7000 {
        let status = pipeline.status();
        assert_eq!((status.failed, status.error), (0, 0), "{status:?}");
        if status.durable > durable {
            durable = status.durable;
            note[8..16].copy_from_slice(&durable.to_le_bytes());
            for notes in &notes {
                notes.write_all_at(note, (blocks - 1) * 512).unwrap();
            }
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}

fn set_devices(config: &mut Config, paths: &[&str]) {
    let mut all = paths.iter().map(|path| DeviceConfig {
        path: (*path).into(),
        ..DeviceConfig::default()
    });
    config.device = all.next().unwrap();
    config.more_devices = all.collect();
}

/// One entry of the log.
#[derive(Debug)]
enum Entry {
    Write { at: usize, data: Vec<u8>, fua: bool },
    Discard { at: usize, len: usize },
    Flush,
}

/// The log as far as it is whole: the process that wrote it was killed. Linux, dm-log-writes.rst.
fn read_log(path: &str) -> Vec<Entry> {
    let bytes = std::fs::read(path).unwrap();
    let word = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap());
    assert_eq!(word(0), 0x006a_7366_7773_6872, "not a log of writes");
    assert_eq!(
        (word(8), word(24) as u32 as usize),
        (1, SECTOR),
        "version, sector"
    );
    let mut entries = Vec::new();
    let mut at = SECTOR;
    while at + SECTOR <= bytes.len() {
        let [sector, count, flags] = [0, 8, 16].map(|field| word(at + field));
        at += SECTOR;
        let (start, len) = (sector as usize * SECTOR, count as usize * SECTOR);
        if flags & 4 != 0 {
            entries.push(Entry::Discard { at: start, len });
            continue;
        }
        if len > 0 {
            let Some(data) = bytes.get(at..at + len) else {
                break;
            };
            at += len;
            entries.push(Entry::Write {
                at: start,
                data: data.to_vec(),
                fua: flags & 2 != 0,
            });
        } else if flags & 1 == 0 {
            // Room that was taken for an entry which was not written any more.
            break;
        }
        if flags & 1 != 0 {
            entries.push(Entry::Flush);
        }
    }
    entries
}

/// How much of an entry that no flush has covered arrives.
#[derive(Debug, Clone, Copy, PartialEq)]
enum PacketOutcome {
    All,
    None,
    /// Any of its sectors.
    Torn,
}

fn apply(image: &mut [u8], entry: &Entry, outcome: PacketOutcome, random: &mut StdRng) {
    match entry {
        Entry::Write { at, data, .. } => {
            for (i, sector) in data.chunks(SECTOR).enumerate() {
                if outcome == PacketOutcome::All
                    || outcome == PacketOutcome::Torn && random.random()
                {
                    image[at + i * SECTOR..][..SECTOR].copy_from_slice(sector);
                }
            }
        }
        Entry::Discard { at, len } if outcome == PacketOutcome::All => image[*at..at + len].fill(0),
        _ => {}
    }
}

fn note_of(entry: &Entry) -> Option<u64> {
    match entry {
        Entry::Write { data, .. } if data.starts_with(MARK) => {
            Some(u64::from_le_bytes(data[8..16].try_into().unwrap()))
        }
        _ => None,
    }
}

fn open(paths: &[&str]) -> Result<LogReader> {
    let legs: Vec<(PathBuf, u64)> = paths.iter().map(|path| (path.into(), 0)).collect();
    LogReader::open_set(&legs)
}

/// The log holds at least `durable` records without a gap, and no byte that was not sent. How many records it holds.
fn check(paths: &[&str], durable: u64, what: &str) -> u64 {
    let mut reader = match open(paths) {
        Ok(reader) => reader,
        // Before its first flush there need not be one.
        Err(_) if durable == 0 => return 0,
        Err(error) => panic!("{what}: {durable} were durable: {error}"),
    };
    let (mut records, mut next, mut last) = (0, 0, None);
    while let Some(item) = reader.next_item().unwrap() {
        match item {
            Item::Record { header, packet } => {
                assert_eq!(header.sequence, next, "{what}");
                let from = usize::from(header.payload_offset - header.packet_offset);
                let bytes = &packet[from..from + usize::from(header.payload_len)];
                let number = u64::from_le_bytes(bytes[8..16].try_into().unwrap());
                let mut expected = [0; SIZE];
                sent::fill(number, &mut expected);
                assert!(
                    bytes == expected,
                    "{what}: record {next} is not what was sent"
                );
                assert!(last < Some(number), "{what}: {number} behind {last:?}");
                last = Some(number);
                records += 1;
                next += 1;
            }
            Item::Gap { first, count, .. } => {
                assert_eq!(first, next, "{what}");
                assert!(
                    first >= durable,
                    "{what}: {first} is lost, {durable} were durable"
                );
                next += count;
            }
            Item::Overwritten { .. } => panic!("{what}: {item:?}"),
        }
    }
    assert!(
        next >= durable,
        "{what}: it ends at {next}, {durable} were durable"
    );
    records
}

/// A drive as its log has it up to some moment.
struct CutDrive {
    entries: Vec<Entry>,
    /// What flushes have covered.
    image: Vec<u8>,
    /// The first entry that none has.
    covered: usize,
    /// The last entry.
    moment: usize,
    /// The newest note.
    durable: u64,
    torn: usize,
}

impl CutDrive {
    fn new(log: &str, len: usize) -> CutDrive {
        CutDrive {
            entries: read_log(log),
            image: vec![0; len],
            covered: 0,
            moment: 0,
            durable: 0,
            torn: 0,
        }
    }

    fn go_to(&mut self, moment: usize, random: &mut StdRng) {
        self.moment = moment;
        let past = &self.entries[self.covered..=moment];
        self.durable = past.iter().filter_map(note_of).fold(self.durable, u64::max);
        let flushed = past.iter().rposition(|e| matches!(e, Entry::Flush));
        if let Some(flushed) = flushed {
            for entry in &past[..flushed] {
                apply(&mut self.image, entry, PacketOutcome::All, random);
            }
            self.covered += flushed + 1;
        }
    }

    /// The first moment after this one at which so many are noted, or the last one.
    fn moment_of(&self, durable: u64) -> usize {
        let later = self.entries.iter().enumerate().skip(self.moment);
        let noted = later
            .filter_map(|(at, entry)| Some((at, note_of(entry)?)))
            .find(|(_, note)| *note >= durable);
        match noted {
            _ if self.durable >= durable => self.moment,
            Some((at, _)) => at,
            None => self.entries.len() - 1,
        }
    }

    /// What a power cut leaves: of the entries that no flush has covered, any part.
    fn cut(&mut self, random: &mut StdRng) -> Vec<u8> {
        let mut left = self.image.clone();
        for entry in &self.entries[self.covered..=self.moment] {
            let outcome = match entry {
                Entry::Write { fua: true, .. } => PacketOutcome::All,
                _ => [PacketOutcome::All, PacketOutcome::None, PacketOutcome::Torn]
                    [random.random_range(0..3)],
            };
            self.torn += usize::from(outcome == PacketOutcome::Torn);
            apply(&mut left, entry, outcome, random);
        }
        left
    }
}

/// On the host, with the logs of the guest's drives.
#[test]
fn what_was_durable_survives_every_power_cut() {
    let test = "what_was_durable_survives_every_power_cut";
    let Ok(logs) = std::env::var("UNIFIED_TEST_CUT_LOG") else {
        return skip(
            test,
            "UNIFIED_TEST_CUT_LOG names no log of a drive's writes",
        );
    };
    let len: usize = std::env::var("UNIFIED_TEST_CUT_BYTES")
        .unwrap()
        .parse()
        .unwrap();
    let mut drives: Vec<CutDrive> = logs.split(',').map(|log| CutDrive::new(log, len)).collect();
    let mut end = u64::MAX;
    for drive in &drives {
        let entries = &drive.entries;
        let flushes = entries.iter().filter(|e| matches!(e, Entry::Flush)).count();
        let notes = entries.iter().filter_map(note_of).count();
        let noted = entries.iter().filter_map(note_of).max().unwrap_or(0);
        println!(
            "{} entries, {flushes} flushes, {notes} notes, {noted} durable",
            entries.len()
        );
        assert!(
            flushes > 20 && notes > 20 && noted > 500,
            "hardly anything was recorded"
        );
        end = end.min(noted);
    }

    let mut random = StdRng::seed_from_u64(9999);
    let scratch: Vec<Scratch> = drives
        .iter()
        .map(|_| Scratch::new(env!("CARGO_TARGET_TMPDIR"), "power-cut"))
        .collect();
    let paths: Vec<&str> = scratch.iter().map(Scratch::path).collect();
    let files: Vec<File> = paths
        .iter()
        .map(|path| File::create(path).unwrap())
        .collect();
    // At each flush, after each note, and at some moments in between.
    let entries = &drives[0].entries;
    let moments: Vec<usize> = (0..entries.len())
        .filter(|i| {
            matches!(entries[*i], Entry::Flush)
                || note_of(&entries[*i]).is_some()
                || random.random_ratio(1, 2)
                || *i + 1 == entries.len()
        })
        .collect();
    let step = moments
        .len()
        .div_ceil(if common::is_full_tier() { 2000 } else { 150 });
    let (mut cuts, mut durable) = (0, 0);
    for (turn, moment) in moments.iter().enumerate() {
        drives[0].go_to(*moment, &mut random);
        durable = drives[0].durable;
        // The others lose theirs at any moment after they had what was noted, or never.
        for drive in &mut drives[1..] {
            let noted = drive.moment_of(durable);
            let later = noted + random.random_range(0..20);
            drive.go_to(later.min(drive.entries.len() - 1), &mut random);
            durable = durable.min(drive.durable);
        }
        if turn % step != 0 && turn + 1 != moments.len() {
            continue;
        }
        for (drive, file) in drives.iter_mut().zip(&files) {
            file.write_all_at(&drive.cut(&mut random), 0).unwrap();
        }
        check(&paths, durable, &format!("cut at entry {moment}"));
        cuts += 1;
    }
    let torn: usize = drives.iter().map(|drive| drive.torn).sum();
    println!("{cuts} cuts, {torn} entries torn; at the last one {durable} were durable");
    assert!(cuts > 50 && torn > 50);
    assert_eq!(durable, end);
    // A drive whose flushes had not covered what they must is found out.
    let mut lie = vec![0; len];
    let entries = &drives[0].entries;
    for entry in &entries[..entries.len() / 2] {
        apply(&mut lie, entry, PacketOutcome::All, &mut random);
    }
    let lying = Scratch::new(env!("CARGO_TARGET_TMPDIR"), "power-cut-lie");
    std::fs::write(lying.path(), &lie).unwrap();
    let lying = [&[lying.path()], &paths[1..]].concat();
    std::panic::catch_unwind(|| check(&lying, durable, "a drive that lies")).unwrap_err();
    if drives.len() > 1 {
        // Both drives are needed: each has records that the other has not.
        for path in &paths {
            let one = std::panic::catch_unwind(|| check(&[path], durable, "one of two drives"));
            one.unwrap_err();
        }
    }
    it_goes_on(&paths, len, durable);
}

/// What the last cut left is opened again, and recording continues after it.
fn it_goes_on(paths: &[&str], len: usize, durable: u64) {
    let before = check(paths, durable, "before it goes on");
    let veth = Veth::new();
    let mut config = Config {
        ifname: Some(veth.host.clone()),
        ..Config::default()
    };
    set_devices(&mut config, paths);
    let context = Arc::new(Context::open(&config).unwrap());
    let pipeline = Pipeline::start(context, recording((len / SECTOR) as u64)).unwrap();
    let first = pipeline.status().first_sequence;
    assert!(
        first >= durable,
        "it goes on at {first}, {durable} were durable"
    );
    let payloads = (0..100).map(|i| payload(i, 700)).collect();
    veth.send(9999, payloads, 2000).join().unwrap();
    common::recording::until(10, "100 records", || pipeline.status().completed == 100);
    pipeline.stop().1.unwrap();
    let mut reader = open(paths).unwrap();
    let (mut old, mut new) = (0, 0);
    while let Some(item) = reader.next_item().unwrap() {
        if let Item::Record { header, .. } = item {
            if header.sequence < first {
                old += 1;
            } else {
                new += 1;
            }
        }
    }
    assert_eq!((old, new), (before, 100));
}
