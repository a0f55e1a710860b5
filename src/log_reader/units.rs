//! Reads a log of version 2: segments of units.

#![forbid(unsafe_code)]

use std::fs::File;
use std::ops::Range;
use std::path::Path;
use std::time::Instant;

use super::source::{PATIENCE, SCAN, Source};
use super::{Found, Item, Tally};
use crate::error::Result;
use crate::record::{self, FLAG_VLAN, Header, MAX_SEQUENCE};
use crate::unit_log::scan::{End, find_end};
use crate::unit_log::superblock::Superblock;
use crate::unit_log::unit::{MAX_UNIT_SLOTS, RecordHeader, SlotHeader, UnitHeader, record_flags};
use crate::unit_log::units::{Flaw, Unit};

/// Bytes before the payload in which the ports are.
const UDP_LEN: usize = 8;

/// A slot of the log: its segment's generation, and its number in the segment.
type Place = (u64, u32);

#[derive(Debug)]
pub(super) struct UnitReader {
    source: Source,
    log: Superblock,
    /// The same as version 1 has it.
    about: record::Superblock,
    /// The newest segment that is known.
    newest: u64,
    /// Where the next unit is looked for.
    at: Place,
    /// The slots in the buffer: the place of the first, and how many.
    loaded: (Place, u32),
    /// The unit that is being handed out: its records, the next of them, and their bytes.
    unit: UnitHeader,
    records: Vec<(RecordHeader, Range<usize>)>,
    index: usize,
    /// The unit has more records, which cannot be read.
    cut_short: bool,
    stream: Vec<u8>,
    /// Sequence number of the record that comes next.
    next: u64,
    /// `next` was set, and `at` not yet.
    sought: bool,
    /// Something was damaged since the last record.
    damaged: bool,
    /// What comes before the next record was overwritten.
    overtaken: bool,
    /// When a follower first found the next unit missing.
    waiting: Option<Instant>,
    /// When a follower last looked beyond a hole.
    scanned: Option<Instant>,
    tally: Tally,
    /// The spill, which holds the slots that the device failed at the same address.
    spill: Option<File>,
}

/// The newest valid superblock of these bytes, the first of the range.
pub(super) fn superblock_in(source: &Source, bytes: &[u8]) -> Option<Superblock> {
    Source::copies(bytes)
        .filter_map(|(at, copy)| {
            Superblock::read(copy).filter(|s| at == 0 || s.slot_size as usize == at)
        })
        .filter(|s| s.start_lba.checked_mul(s.block_size.into()) == Some(source.start))
        .max_by_key(|s| s.generation)
}

/// When the packet of a record came.
pub(super) fn time_of(unit: &UnitHeader, record: &RecordHeader) -> u64 {
    unit.base_time
        .saturating_add_signed(record.time_delta.into())
}

/// A record of version 2 as version 1 has it.
pub(super) fn header_of(
    log: &Superblock,
    unit: &UnitHeader,
    sequence: u64,
    record: &RecordHeader,
    packet: &[u8],
) -> Header {
    let payload = usize::from(record.payload_offset);
    let port = |at: usize| match payload.checked_sub(UDP_LEN) {
        Some(udp) if record.flags & (record_flags::IPV4 | record_flags::IPV6) != 0 => packet
            .get(udp + at..udp + at + 2)
            .map_or(0, |b| u16::from_be_bytes([b[0], b[1]])),
        _ => 0,
    };
    Header {
        sequence,
        log_id: log.set_id,
        timestamp: time_of(unit, record),
        packet_len: packet.len() as u32,
        packet_offset: 0,
        payload_offset: record.payload_offset,
        payload_len: record.payload_len,
        vlan_tci: record.vlan_tci,
        src_port: port(0),
        dst_port: port(2),
        ip_version: match record.flags & (record_flags::IPV4 | record_flags::IPV6) {
            record_flags::IPV4 => 4,
            record_flags::IPV6 => 6,
            _ => 0,
        },
        flags: if record.flags & record_flags::VLAN != 0 {
            FLAG_VLAN
        } else {
            0
        },
        queue: record.queue,
        lane: unit.lane,
        device: log.device,
    }
}

/// What follows a hole.
enum Beyond {
    Nothing,
    /// A unit, and its first sequence number.
    Unit(Place, u64),
}

impl UnitReader {
    pub fn open(source: Source, log: Superblock) -> Result<UnitReader> {
        let mut reader = UnitReader {
            source,
            log,
            about: record::Superblock::default(),
            newest: 0,
            at: (1, 0),
            loaded: ((0, 0), 0),
            unit: UnitHeader::default(),
            records: Vec::new(),
            index: 0,
            cut_short: false,
            stream: Vec::new(),
            next: 0,
            sought: false,
            damaged: false,
            overtaken: false,
            waiting: None,
            scanned: None,
            tally: Tally::default(),
            spill: None,
        };
        reader.rewind()?;
        Ok(reader)
    }

    pub fn add_spill(&mut self, path: &Path) -> Result<()> {
        self.spill = Some(self.source.open_spill(path)?);
        self.loaded.1 = 0;
        self.rewind()
    }

    /// Goes to the oldest record.
    fn rewind(&mut self) -> Result<()> {
        self.find_end()?;
        self.next = self.oldest()?;
        self.sought = true;
        self.records.clear();
        Ok(())
    }

    /// Reads the superblock again. `ENOMSG` if another log was begun in the range since: its numbers begin at 0 again.
    fn refresh(&mut self) -> Result<()> {
        self.loaded.1 = 0;
        let got = self.source.read_head()?;
        let found = superblock_in(&self.source, self.source.bytes(0, got));
        self.log = found
            .filter(|found| found.set_id == self.log.set_id)
            .ok_or_else(|| self.source.begun_anew())?;
        Ok(())
    }

    fn find_end(&mut self) -> Result<End> {
        self.refresh()?;
        let log = self.log;
        let end = find_end(&log, |slot, count| {
            let size = log.slot_size as usize;
            let got = self.read_slots(slot, count as u32)?;
            let bytes = self.source.bytes(0, got as usize * size);
            Ok(bytes.chunks_exact(size).map(<[u8]>::to_vec).collect())
        })?;
        self.newest = self.newest.max(end.newest_generation);
        self.about = record::Superblock {
            generation: log.generation,
            log_id: log.set_id,
            block_size: log.block_size,
            slot_size: log.slot_size,
            start_lba: log.start_lba,
            slots: log.segments * u64::from(log.segment_slots),
            next_sequence: end.next_sequence,
            created: log.created,
            wraps: log.wraps,
            losses: log.losses,
            interface: log.interface,
        };
        Ok(end)
    }

    pub fn end(&mut self) -> Result<u64> {
        Ok(self.find_end()?.next_sequence)
    }

    pub fn oldest(&mut self) -> Result<u64> {
        let end = self.find_end()?;
        if self.log.oldest(self.newest) == 1 {
            // Nothing was overwritten: what is not there before the first unit is missing.
            return Ok(0);
        }
        for generation in self.log.oldest(self.newest)..=self.newest {
            if let Some(unit) = self.first_unit(generation)? {
                return Ok(unit.first_sequence);
            }
        }
        Ok(end.next_sequence)
    }

    pub fn superblock(&self) -> &record::Superblock {
        &self.about
    }

    pub fn tally(&self) -> Tally {
        self.tally
    }

    pub fn position(&self) -> u64 {
        self.next
    }

    pub fn seek(&mut self, sequence: u64) {
        self.next = sequence.min(MAX_SEQUENCE);
        self.sought = true;
        self.records.clear();
        self.index = 0;
        self.cut_short = false;
        self.damaged = false;
        self.overtaken = false;
        self.waiting = None;
        self.scanned = None;
        self.loaded.1 = 0;
    }

    /// Goes to the segment in which the next record is, or to the oldest one if that is later.
    fn locate(&mut self) -> Result<()> {
        self.find_end()?;
        let next = self.next;
        let generation = self.segment_with(|unit| unit.first_sequence <= next)?;
        let first = self.first_unit(generation)?;
        // Before the oldest one, if that is not the first of all.
        self.overtaken = generation > 1 && first.is_some_and(|unit| unit.first_sequence > next);
        self.go_to((generation, 0));
        self.sought = false;
        Ok(())
    }

    /// The last segment whose first unit is as `before` says, which is so for all before it; or the oldest one.
    fn segment_with(&mut self, before: impl Fn(&UnitHeader) -> bool) -> Result<u64> {
        let oldest = self.log.oldest(self.newest);
        let (mut low, mut high) = (oldest, self.newest.max(oldest));
        while low < high {
            let middle = low + (high - low).div_ceil(2);
            // If a segment cannot be read, the one before it serves as well.
            let mut at = middle;
            let mut found = None;
            while at > low && found.is_none() {
                found = self.first_unit(at)?;
                at -= 1;
            }
            match found {
                Some(unit) if before(&unit) => low = at + 1,
                _ => high = at.max(low),
            }
        }
        Ok(low)
    }

    pub fn seek_time(&mut self, timestamp: u64) -> Result<()> {
        self.find_end()?;
        let generation = self.segment_with(|unit| unit.base_time <= timestamp)?;
        self.seek(0);
        self.sought = false;
        self.go_to((generation, 0));
        while self.next_unit(false)? {
            let late = |record: &RecordHeader| time_of(&self.unit, record) >= timestamp;
            if let Some(index) = self.records.iter().position(|(record, _)| late(record)) {
                self.index = index;
                self.next = self.unit.first_sequence + index as u64;
                self.damaged = false;
                return Ok(());
            }
            self.records.clear();
        }
        let end = self.end()?;
        self.seek(end);
        Ok(())
    }

    fn go_to(&mut self, place: Place) {
        self.at = place;
        self.records.clear();
        self.index = 0;
        self.cut_short = false;
        self.waiting = None;
    }

    /// Reads slots of the range to the buffer. Returns how many there are.
    fn read_slots(&mut self, slot: u64, count: u32) -> Result<u32> {
        self.loaded.1 = 0;
        let size = self.log.slot_size as usize;
        let count = count.min((Source::BATCH / size) as u32);
        let offset = self.source.start + slot * size as u64;
        let got = self.source.read(offset, count as usize * size, size)? / size;
        if got == 0 {
            return Err(self.source.cut_off());
        }
        if let Some(spill) = &self.spill {
            let slots = self.source.bytes_mut(got * size).chunks_exact_mut(size);
            self.log.mend(spill, slot, slots)?;
        }
        Ok(got as u32)
    }

    /// Loads slots of a segment from a place on, at most `count`.
    fn load(&mut self, place: Place, count: u32) -> Result<()> {
        let count = count.min(self.log.segment_slots - place.1);
        let got = self.read_slots(self.log.slot_of(place.0, place.1), count)?;
        self.loaded = (place, got);
        Ok(())
    }

    /// The loaded bytes from a place on, if all slots are there that a unit can have.
    fn bytes_at(&self, (generation, slot): Place) -> Option<&[u8]> {
        let ((of, first), count) = self.loaded;
        let end = first + count;
        let needed = (slot + MAX_UNIT_SLOTS as u32).min(self.log.segment_slots);
        if of != generation || slot < first || slot >= end || needed > end {
            return None;
        }
        let size = self.log.slot_size as usize;
        let at = (slot - first) as usize * size;
        Some(self.source.bytes(at, count as usize * size - at))
    }

    /// The unit that begins at a place. `fresh`: as it is on the device now; few slots are read then.
    fn look(&mut self, place: Place, fresh: bool) -> Result<std::result::Result<Unit, Flaw>> {
        if fresh || self.bytes_at(place).is_none() {
            let count = if fresh {
                MAX_UNIT_SLOTS as u32
            } else {
                u32::MAX
            };
            self.load(place, count)?;
        }
        let bytes = self.bytes_at(place).unwrap_or_default();
        Ok(Unit::read(&self.log, place.0, place.1, bytes))
    }

    /// The first unit of a segment; `None` if there is none near its start.
    fn first_unit(&mut self, generation: u64) -> Result<Option<UnitHeader>> {
        let near = (2 * MAX_UNIT_SLOTS as u32).min(self.log.segment_slots);
        for slot in 0..near {
            if let Ok(unit) = self.look((generation, slot), false)? {
                return Ok(Some(unit.header));
            }
        }
        Ok(None)
    }

    /// Whether a segment was begun, or a later one in its place.
    fn is_begun(&mut self, generation: u64) -> Result<bool> {
        self.load((generation, 0), MAX_UNIT_SLOTS as u32)?;
        let size = self.log.slot_size as usize;
        let slots = self.source.bytes(0, self.loaded.1 as usize * size);
        let begun = |slot: &[u8]| {
            SlotHeader::read(slot)
                .is_some_and(|h| h.tag == self.log.tag() && h.generation >= generation)
        };
        Ok(slots.chunks_exact(size).any(begun))
    }

    pub fn item(&self, found: Found) -> Item<'_> {
        match found {
            Found::Record(header) => {
                // The record before the next one.
                let (_, place) = &self.records[self.index - 1];
                let packet = &self.stream[place.clone()];
                Item::Record { header, packet }
            }
            missing => missing.without_packet(),
        }
    }

    pub fn step(&mut self, following: bool) -> Result<Option<Found>> {
        if self.sought {
            self.locate()?;
        }
        loop {
            while let Some((record, place)) = self.records.get(self.index) {
                let sequence = self.unit.first_sequence + self.index as u64;
                if sequence < self.next {
                    // Before what was sought, or there already.
                    self.index += 1;
                    continue;
                }
                if sequence > self.next {
                    return Ok(Some(self.gap(sequence)));
                }
                let header = header_of(
                    &self.log,
                    &self.unit,
                    sequence,
                    record,
                    &self.stream[place.clone()],
                );
                self.index += 1;
                self.next += 1;
                self.damaged = false;
                self.overtaken = false;
                self.tally.records += 1;
                return Ok(Some(Found::Record(header)));
            }
            self.records.clear();
            if self.cut_short {
                // The unit's header says how many there were.
                if self.unit.first_sequence > self.next {
                    return Ok(Some(self.gap(self.unit.first_sequence)));
                }
                self.cut_short = false;
                self.damaged = true;
                let end = self.unit.first_sequence + u64::from(self.unit.records);
                if end > self.next {
                    return Ok(Some(self.gap(end)));
                }
            }
            if !self.next_unit(following)? {
                return Ok(None);
            }
        }
    }

    /// The records up to one that is there are not.
    fn gap(&mut self, sequence: u64) -> Found {
        let (first, count) = (self.next, sequence - self.next);
        let damaged = std::mem::take(&mut self.damaged);
        self.next = sequence;
        if std::mem::take(&mut self.overtaken) {
            self.tally.overwritten += count;
            return Found::Overwritten {
                lane: 0,
                first,
                count,
            };
        }
        match damaged {
            true => self.tally.damaged += count,
            false => self.tally.missing += count,
        }
        Found::Gap {
            lane: 0,
            first,
            count,
            damaged,
        }
    }

    /// Takes the records out of the next unit that has some. `false`: there is none now.
    fn next_unit(&mut self, following: bool) -> Result<bool> {
        loop {
            if self.at.1 >= self.log.segment_slots {
                let next = self.at.0 + 1;
                if next > self.newest {
                    if self.is_begun(next)? {
                        self.newest = next;
                    } else if following && self.has_scanned() {
                        return Ok(false);
                    } else {
                        // Its first slots may be missing.
                        self.scanned = Some(Instant::now());
                        self.find_end()?;
                        if next > self.newest {
                            return Ok(false);
                        }
                    }
                }
                self.at = (next, 0);
                continue;
            }
            let mut found = self.look(self.at, false)?;
            if found.is_err() {
                // The buffer may be older than the last write.
                found = self.look(self.at, true)?;
            }
            match found {
                Ok(unit) => {
                    if !self.take_whole(&unit, following)? {
                        return Ok(false);
                    }
                    self.waiting = None;
                    self.scanned = None;
                    if !self.records.is_empty() || self.cut_short {
                        return Ok(true);
                    }
                }
                Err(Flaw::Newer(generation)) => {
                    // The recorder has come round. Leave some room, so that it does not overtake again at once.
                    self.newest = self.newest.max(generation);
                    self.find_end()?;
                    self.overtaken = true;
                    let room = (self.log.segments / 16).clamp(1, 16);
                    let oldest = self.log.oldest(self.newest) + room;
                    self.go_to((oldest.min(self.newest), 0));
                }
                Err(flaw) => {
                    let Some(next) = self.beyond(flaw == Flaw::Damaged, following)? else {
                        return Ok(false);
                    };
                    self.damaged |= flaw == Flaw::Damaged;
                    self.at = next;
                }
            }
        }
    }

    /// As `take`, but not before the unit is whole, which a recorder may be writing now. `false`: a follower must wait.
    fn take_whole(&mut self, unit: &Unit, following: bool) -> Result<bool> {
        let place = self.at;
        self.take(unit);
        if !self.cut_short {
            return Ok(true);
        }
        // The buffer may be older than the last write.
        self.go_back(place);
        let Ok(unit) = self.look(place, true)? else {
            // Overwritten since: the caller looks again.
            return Ok(true);
        };
        self.take(&unit);
        let waits = self.cut_short
            && following
            && self.waiting.get_or_insert_with(Instant::now).elapsed() < PATIENCE;
        if waits {
            self.go_back(place);
        }
        Ok(!waits)
    }

    /// Nothing was taken at this place.
    fn go_back(&mut self, place: Place) {
        self.at = place;
        self.records.clear();
        self.cut_short = false;
    }

    /// Takes the records of the unit at `at`, and goes on to what follows it.
    fn take(&mut self, unit: &Unit) {
        let (mut stream, mut records) = (
            std::mem::take(&mut self.stream),
            std::mem::take(&mut self.records),
        );
        records.clear();
        if let Some(bytes) = self.bytes_at(self.at).filter(|_| unit.has_packets()) {
            unit.records(&self.log, bytes, &mut stream, &mut records);
            self.cut_short = records.len() < unit.header.records as usize;
        }
        (self.stream, self.records) = (stream, records);
        self.index = 0;
        self.unit = unit.header;
        self.at.1 += unit.slots;
    }

    /// Look beyond the current read only every `SCAN`; otherwise followers keep rereading an idle log.
    fn has_scanned(&self) -> bool {
        self.scanned.is_some_and(|at| at.elapsed() < SCAN)
    }

    /// There is no unit where one should be: where to go on, if something follows.
    fn beyond(&mut self, damaged: bool, following: bool) -> Result<Option<Place>> {
        if following && self.has_scanned() {
            return Ok(None);
        }
        self.scanned = Some(Instant::now());
        let Beyond::Unit(place, sequence) = self.find_beyond()? else {
            self.waiting = None;
            return Ok(None);
        };
        // A recorder that was started again has left the rest of a segment empty: then nothing is missing.
        let complete = sequence == self.next && !damaged;
        if following
            && !complete
            && self.waiting.get_or_insert_with(Instant::now).elapsed() < PATIENCE
        {
            return Ok(None);
        }
        // Records may be missing because a new log overwrites this one.
        self.refresh()?;
        self.waiting = None;
        Ok(Some(place))
    }

    fn find_beyond(&mut self) -> Result<Beyond> {
        let (generation, slot) = self.at;
        for slot in slot + 1..self.log.segment_slots {
            if let Ok(unit) = self.look((generation, slot), false)? {
                return Ok(Beyond::Unit((generation, slot), unit.header.first_sequence));
            }
        }
        if generation >= self.newest {
            self.find_end()?;
        }
        for generation in generation + 1..=self.newest {
            if let Some(unit) = self.first_unit(generation)? {
                return Ok(Beyond::Unit((generation, 0), unit.first_sequence));
            }
        }
        Ok(Beyond::Nothing)
    }
}
