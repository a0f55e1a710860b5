//! Reads a log of version 1: a slot for each record.

#![forbid(unsafe_code)]

use std::fs::File;
use std::path::Path;
use std::time::Instant;

use super::source::{PATIENCE, SCAN, Source};
use super::{Found, Item, Tally};
use crate::error::Result;
use crate::log_scan::{HOLE, find_end, mend, newest_superblock};
use crate::record::{Flaw, Header, MAX_SEQUENCE, Superblock};

#[derive(Debug)]
pub(super) struct SlotReader {
    source: Source,
    superblock: Superblock,
    /// The slots in the buffer: sequence number of the first, and how many.
    loaded: (u64, u64),
    next: u64,
    /// When a follower first found the next slot empty.
    waiting: Option<Instant>,
    /// When a follower last scanned a whole hole.
    scanned: Option<Instant>,
    tally: Tally,
    /// The spill, which holds the records that the device failed at the same address.
    spill: Option<File>,
}

/// The newest valid superblock of these bytes, the first of the range.
pub(super) fn superblock_in(source: &Source, bytes: &[u8]) -> Option<Superblock> {
    let copies = Source::copies(bytes).filter_map(|(at, copy)| {
        Superblock::read(copy).filter(|s| at == 0 || s.slot_size as usize == at)?;
        Some(copy)
    });
    newest_superblock(copies)
        .filter(|s| s.start_lba.checked_mul(s.block_size.into()) == Some(source.start))
}

impl SlotReader {
    pub fn open(source: Source, superblock: Superblock) -> Result<SlotReader> {
        let mut reader = SlotReader {
            source,
            superblock,
            loaded: (0, 0),
            next: 0,
            waiting: None,
            scanned: None,
            tally: Tally::default(),
            spill: None,
        };
        reader.next = reader.oldest()?;
        Ok(reader)
    }

    pub fn add_spill(&mut self, path: &Path) -> Result<()> {
        self.spill = Some(self.source.open_spill(path)?);
        self.loaded = (0, 0);
        self.next = self.oldest()?;
        Ok(())
    }

    /// Reads the superblock again. `ENOMSG` if another log was begun in the range since: its numbers begin at 0 again.
    fn refresh(&mut self) -> Result<()> {
        self.loaded = (0, 0);
        let got = self.source.read_head()?;
        let found = superblock_in(&self.source, self.source.bytes(0, got));
        self.superblock = found
            .filter(|found| found.log_id == self.superblock.log_id)
            .ok_or_else(|| self.source.begun_anew())?;
        Ok(())
    }

    fn slot_size(&self) -> usize {
        self.superblock.slot_size as usize
    }

    /// Loads slots from a sequence number on, up to the end of the range.
    fn load(&mut self, sequence: u64) -> Result<()> {
        let most = (Source::BATCH / self.slot_size()) as u64;
        let to_edge = self.superblock.slots - sequence % self.superblock.slots;
        let count = most.min(to_edge);
        let offset = self.superblock.offset_of(sequence);
        let len = count as usize * self.slot_size();
        let got = self.source.read(offset, len, self.slot_size())?;
        self.loaded = (sequence, (got / self.slot_size()) as u64);
        let Some(spill) = &self.spill else {
            return Ok(());
        };
        let slots = self
            .source
            .bytes_mut(got)
            .chunks_exact_mut(self.superblock.slot_size as usize);
        mend(spill, &self.superblock, sequence, slots)
    }

    fn slot(&self, sequence: u64) -> &[u8] {
        let (first, count) = self.loaded;
        if sequence < first || sequence - first >= count {
            return &[];
        }
        let at = (sequence - first) as usize * self.slot_size();
        self.source.bytes(at, self.slot_size())
    }

    /// The slot of a sequence number, loaded anew if `fresh` or if it is not in the buffer.
    fn look(&mut self, sequence: u64, fresh: bool) -> Result<std::result::Result<Header, Flaw>> {
        if fresh || self.slot(sequence).is_empty() {
            self.load(sequence)?;
            if self.slot(sequence).is_empty() {
                return Err(self.source.cut_off());
            }
        }
        Ok(Header::read(self.slot(sequence), self.superblock.log_id))
    }

    /// Sequence number after the newest record.
    pub fn end(&mut self) -> Result<u64> {
        // A recorder may have continued: the search begins at the superblock's number.
        self.refresh()?;
        let superblock = self.superblock;
        find_end(&superblock, |sequence, _| {
            self.load(sequence)?;
            let (_, count) = self.loaded;
            if count == 0 {
                return Err(self.source.cut_off());
            }
            Ok((0..count)
                .map(|i| self.slot(sequence + i).to_vec())
                .collect())
        })
    }

    /// Sequence number of the oldest record that may still exist.
    pub fn oldest(&mut self) -> Result<u64> {
        Ok(self.end()?.saturating_sub(self.superblock.slots))
    }

    pub fn superblock(&self) -> &Superblock {
        &self.superblock
    }

    pub fn tally(&self) -> Tally {
        self.tally
    }

    /// Sequence number of the record that comes next.
    pub fn position(&self) -> u64 {
        self.next
    }

    /// Seeks to a record. If it was overwritten, the next item is `Item::Overwritten`.
    pub fn seek(&mut self, sequence: u64) {
        self.next = sequence.min(MAX_SEQUENCE);
        self.waiting = None;
        self.scanned = None;
        self.loaded = (0, 0);
    }

    /// Seeks to the first record that is not older than `timestamp` (ns since 1970-01-01 UTC).
    pub fn seek_time(&mut self, timestamp: u64) -> Result<()> {
        let (mut low, mut high) = (self.oldest()?, self.end()?);
        while low < high {
            let middle = low + (high - low) / 2;
            // If the record in the middle is missing, the next existing one serves as well.
            let mut at = middle;
            let mut found = None;
            while at < high && found.is_none() {
                found = self.look(at, false)?.ok().filter(|h| h.sequence == at);
                at += 1;
            }
            match found {
                Some(header) if header.timestamp < timestamp => low = header.sequence + 1,
                _ => high = middle,
            }
        }
        self.seek(low);
        Ok(())
    }

    pub fn item(&self, found: Found) -> Item<'_> {
        match found {
            Found::Record(header) => {
                let at = usize::from(header.packet_offset);
                let slot = self.slot(header.sequence);
                let packet = &slot[at..at + header.packet_len as usize];
                Item::Record { header, packet }
            }
            missing => missing.without_packet(),
        }
    }

    pub fn step(&mut self, following: bool) -> Result<Option<Found>> {
        let sequence = self.next;
        let mut found = self.look(sequence, false)?;
        if !matches!(found, Ok(header) if header.sequence == sequence) {
            // The buffer may be older than the slot's last write.
            found = self.look(sequence, true)?;
        }
        match found {
            Ok(header) if header.sequence == sequence => {
                self.next += 1;
                self.waiting = None;
                self.tally.records += 1;
                Ok(Some(Found::Record(header)))
            }
            Ok(header) if header.sequence > sequence => self.overtaken(sequence),
            found => {
                let damaged = matches!(found, Err(Flaw::Data | Flaw::Header | Flaw::Version(_)));
                self.hole(sequence, damaged, following)
            }
        }
    }

    /// The next record was overwritten by a newer one.
    fn overtaken(&mut self, first: u64) -> Result<Option<Found>> {
        // Leave some room, so that the recorder does not overtake again at once.
        let room = (self.superblock.slots / 16).min(HOLE);
        let oldest = self.oldest()? + room;
        let next = oldest.max(first + 1);
        self.seek(next);
        self.tally.overwritten += next - first;
        Ok(Some(Found::Overwritten {
            lane: 0,
            first,
            count: next - first,
        }))
    }

    /// There is no record where one should be: a gap if something follows, otherwise the end.
    fn hole(&mut self, first: u64, damaged: bool, following: bool) -> Result<Option<Found>> {
        let hole = HOLE.min(self.superblock.slots);
        // Scan past the current read only every `SCAN`; otherwise followers keep rereading an idle log.
        let whole = !following || self.scanned.is_none_or(|at| at.elapsed() >= SCAN);
        if whole {
            self.scanned = Some(Instant::now());
        }
        let mut limit = first
            + match whole {
                true => hole,
                false => hole.min(self.loaded.1.max(1)),
            };
        let mut at = self.behind_hole(first, limit, damaged)?;
        if at == limit && whole {
            // A hole longer than a crash can leave. Failed writes can leave one; then the superblock has a later
            // number.
            self.refresh()?;
            let (slots, next) = (self.superblock.slots, self.superblock.next_sequence);
            limit = limit.max((next.saturating_add(hole)).min(first + slots));
            at = self.behind_hole(at - 1, limit, damaged)?;
        }
        let mut follows = at < limit;
        if follows && !matches!(self.look(at, false)?, Ok(header) if header.sequence == at) {
            follows = self.end()? > at;
        }
        if !follows {
            if whole {
                self.waiting = None;
            }
            return Ok(None);
        }
        if following && self.waiting.get_or_insert_with(Instant::now).elapsed() < PATIENCE {
            return Ok(None);
        }
        // Records may be missing because a new log overwrites this one.
        self.refresh()?;
        let count = at - first;
        self.next = at;
        self.waiting = None;
        if damaged {
            self.tally.damaged += count;
        } else {
            self.tally.missing += count;
        }
        Ok(Some(Found::Gap {
            lane: 0,
            first,
            count,
            damaged,
        }))
    }

    /// The first slot after a hole, up to `limit`. A gap is of one kind: missing or damaged.
    fn behind_hole(&mut self, hole: u64, limit: u64, damaged: bool) -> Result<u64> {
        let mut at = hole + 1;
        while at < limit {
            let found = self.look(at, false)?;
            let there = matches!(found, Ok(header) if header.sequence == at);
            let flawed = matches!(found, Err(Flaw::Data | Flaw::Header | Flaw::Version(_)));
            if there || flawed != damaged {
                break;
            }
            at += 1;
        }
        Ok(at)
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt;
    use std::time::Duration;

    use super::*;
    use crate::log_reader::{LOOK, LogReader};
    use crate::record::{HEADER_LEN, SUPER_SLOTS};
    use std::io::{Seek, SeekFrom, Write};

    struct Disk {
        path: std::path::PathBuf,
        file: File,
        log: Superblock,
    }

    impl Drop for Disk {
        fn drop(&mut self) {
            let _ = std::fs::remove_file(&self.path);
        }
    }

    fn disk(name: &str, slots: u64) -> Disk {
        let path = std::env::temp_dir().join(format!("unified-{name}-{}", std::process::id()));
        let file = File::create(&path).unwrap();
        let log = Superblock::new(3, 1, 512, 512, 0, slots + SUPER_SLOTS, true).unwrap();
        file.set_len((slots + SUPER_SLOTS) * 512).unwrap();
        let disk = Disk { path, file, log };
        disk.file.write_all_at(&disk.log.to_bytes(), 0).unwrap();
        disk
    }

    impl Disk {
        fn put(&self, sequence: u64) {
            let packet = format!("packet {sequence}");
            let sum = crate::sys::crc::crc32c(packet.as_bytes());
            let header = Header {
                sequence,
                log_id: self.log.log_id,
                timestamp: 1000 + sequence * 10,
                packet_len: packet.len() as u32,
                packet_offset: 64,
                payload_offset: 64,
                ..Header::default()
            };
            let mut slot = vec![0; 512];
            slot[..HEADER_LEN].copy_from_slice(&header.to_bytes(sum));
            slot[64..64 + packet.len()].copy_from_slice(packet.as_bytes());
            self.file
                .write_all_at(&slot, self.log.offset_of(sequence))
                .unwrap();
        }

        fn damage(&self, sequence: u64) {
            let mut file = &self.file;
            file.seek(SeekFrom::Start(self.log.offset_of(sequence) + 66))
                .unwrap();
            file.write_all(b"?").unwrap();
        }
    }

    fn all(reader: &mut LogReader) -> Vec<u64> {
        let mut seen = Vec::new();
        while let Some(item) = reader.next_item().unwrap() {
            if let Item::Record { header, packet } = item {
                assert_eq!(packet, format!("packet {}", header.sequence).as_bytes());
                seen.push(header.sequence);
            }
        }
        seen
    }

    #[test]
    fn all_records_in_order_and_what_is_not_there() {
        let disk = disk("order", 100);
        for sequence in (0..60).filter(|s| !(20..23).contains(s)) {
            disk.put(sequence);
        }
        disk.damage(40);
        let mut reader = LogReader::open(&disk.path, 0).unwrap();
        let expected: Vec<u64> = (0..60)
            .filter(|s| !(20..23).contains(s) && *s != 40)
            .collect();
        assert_eq!(all(&mut reader), expected);
        assert_eq!(
            reader.tally(),
            Tally {
                records: 56,
                missing: 3,
                damaged: 1,
                overwritten: 0
            }
        );
        assert_eq!(reader.position(), 60);
    }

    #[test]
    fn records_behind_more_failed_writes_than_a_crash_leaves() {
        let mut disk = disk("failed", 3 * HOLE);
        let behind = 2 * HOLE + 100;
        for sequence in (0..10).chain(behind..behind + 10) {
            disk.put(sequence);
        }
        disk.log.next_sequence = behind + 5;
        disk.file.write_all_at(&disk.log.to_bytes(), 0).unwrap();
        let mut reader = LogReader::open(&disk.path, 0).unwrap();
        let expected: Vec<u64> = (0..10).chain(behind..behind + 10).collect();
        assert_eq!(all(&mut reader), expected);
        assert_eq!(reader.tally().missing, behind - 10);
    }

    #[test]
    fn after_a_wrap_the_oldest_come_first() {
        let disk = disk("wrap", 100);
        for sequence in 0..250 {
            disk.put(sequence);
        }
        let mut reader = LogReader::open(&disk.path, 0).unwrap();
        assert_eq!(all(&mut reader), (150..250).collect::<Vec<_>>());
        // A slow reader is told what it missed.
        reader.seek(150).unwrap();
        for sequence in 250..300 {
            disk.put(sequence);
        }
        let Some(Item::Overwritten { first, count, .. }) = reader.next_item().unwrap() else {
            panic!("not told");
        };
        assert_eq!(first, 150);
        let rest = all(&mut reader);
        assert_eq!(rest.first(), Some(&(150 + count)));
        assert_eq!(rest.last(), Some(&299));
    }

    #[test]
    fn by_time_and_by_number() {
        let disk = disk("seek", 100);
        for sequence in (0..90).filter(|s| s % 10 != 5) {
            disk.put(sequence);
        }
        let mut reader = LogReader::open(&disk.path, 0).unwrap();
        for (time, first) in [
            (0, 0),
            (1000, 0),
            (1001, 1),
            (1410, 41),
            (1450, 46),
            (1890, 89),
            (5000, 90),
        ] {
            reader.seek_time(time).unwrap();
            let found = all(&mut reader).first().copied().unwrap_or(90);
            assert_eq!(found, first, "time {time}");
        }
        reader.seek(70).unwrap();
        assert_eq!(all(&mut reader).len(), 18);
    }

    #[test]
    fn a_follower_sees_what_comes() {
        let disk = disk("follow", 100);
        let mut reader = LogReader::open(&disk.path, 0).unwrap();
        assert_eq!(reader.follow(Duration::from_millis(10)).unwrap(), None);
        for sequence in 0..10 {
            disk.put(sequence);
            let item = reader.follow(Duration::from_secs(5)).unwrap();
            assert!(
                matches!(item, Some(Item::Record { header, .. }) if header.sequence == sequence)
            );
        }
        // A slot that is skipped is waited for, and then given up.
        disk.put(11);
        let start = Instant::now();
        let gap = reader.follow(Duration::from_secs(10)).unwrap();
        assert_eq!(
            gap,
            Some(Item::Gap {
                lane: 0,
                first: 10,
                count: 1,
                damaged: false
            })
        );
        assert!(start.elapsed() >= PATIENCE);
    }

    #[test]
    fn a_log_that_claims_more_than_there_is_ends() {
        let disk = disk("claims", HOLE + 200);
        let log = Superblock {
            slots: 1 << 40,
            next_sequence: 1 << 40,
            ..disk.log
        };
        disk.file.write_all_at(&log.to_bytes(), 0).unwrap();
        let start = Instant::now();
        let mut reader = LogReader::open(&disk.path, 0).unwrap();
        assert_eq!(reader.next_item().unwrap_err().errno(), libc::EIO);
        assert_eq!(reader.seek_time(5).unwrap_err().errno(), libc::EIO);
        assert!(start.elapsed() < Duration::from_secs(10));
    }

    #[test]
    fn behind_everything_there_is_nothing() {
        let disk = disk("behind", 100);
        (0..10).for_each(|sequence| disk.put(sequence));
        let mut reader = LogReader::open(&disk.path, 0).unwrap();
        for sequence in [10, 11, u64::MAX - HOLE, u64::MAX] {
            reader.seek(sequence).unwrap();
            assert_eq!(reader.next_item().unwrap(), None, "{sequence}");
        }
        reader.seek(9).unwrap();
        assert_eq!(all(&mut reader), [9]);
    }

    #[test]
    fn a_follower_that_waits_reads_little() {
        let disk = disk("little", 3 * HOLE);
        let mut reader = LogReader::open(&disk.path, 0).unwrap();
        let read = || {
            let text = std::fs::read_to_string("/proc/thread-self/io").unwrap();
            let line = text.lines().find_map(|l| l.strip_prefix("rchar: "));
            line.unwrap().parse::<u64>().unwrap()
        };
        let (before, start) = (read(), Instant::now());
        assert_eq!(reader.follow(Duration::from_millis(400)).unwrap(), None);
        let looks = start.elapsed().as_millis() as u64 / LOOK.as_millis() as u64 + 1;
        let each = (read() - before) / looks;
        assert!(each < 1 << 20, "{each} bytes at each of {looks} looks");
    }

    #[test]
    fn what_is_no_log_is_refused() {
        let disk = disk("none", 100);
        let error = |start| LogReader::open(&disk.path, start).unwrap_err().errno();
        assert_eq!(error(512), libc::ENOMSG);
        assert_eq!(error(100), libc::EINVAL);
        let absent = LogReader::open(Path::new("/nonexistent/log"), 0).unwrap_err();
        assert_eq!(absent.errno(), libc::ENOENT);
        assert!(absent.message().contains("/nonexistent/log"));
        // With the first copy gone the second serves.
        let second = Superblock {
            generation: 1,
            ..disk.log
        };
        disk.file.write_all_at(&second.to_bytes(), 512).unwrap();
        disk.file.write_all_at(&[0; 512], 0).unwrap();
        assert!(LogReader::open(&disk.path, 0).is_ok());
    }
}
