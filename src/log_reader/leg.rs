//! One device of a set: which segments it has, and their slots.

#![forbid(unsafe_code)]

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::path::Path;
use std::time::Instant;

use super::source::{SCAN, Source};
use super::units::superblock_in;
use crate::error::Result;
use crate::unit_log::segments::{Found, Segment};
use crate::unit_log::superblock::Superblock;
use crate::unit_log::unit::{MAX_UNIT_SLOTS, RECORD_HEADER_LEN, SlotHeader, UnitHeader};
use crate::unit_log::units::{Flaw, Unit};

/// Slots that a recorder has in flight at most, and so how far it may be ahead of what is on the device.
const IN_FLIGHT: u64 = 65536;
/// Segments that are looked for after the newest one, at most.
const MOST_AHEAD: u64 = 256;
/// The same at every poll, and how far back: segments may be begun out of order.
const NEAR_AHEAD: u64 = 2;
const NEAR_BEHIND: u64 = 8;
/// Slots of a segment that was perhaps begun in which its header or a unit is looked for.
const NEAR_SLOTS: u32 = 64;
/// Bytes of a place that are read first.
const HEAD: usize = 4096;

#[derive(Debug)]
pub(super) struct Leg {
    pub source: Source,
    pub log: Superblock,
    spill: Option<File>,
    /// By generation; one at most for each place of the ring.
    pub segments: BTreeMap<u64, Segment>,
    by_place: HashMap<u64, u64>,
    /// The newest segment of each lane.
    by_lane: HashMap<u16, u64>,
    newest: u64,
    /// Segments that came and went since this was last asked.
    changes: Changes,
    /// When places far from the newest segment were last looked at.
    looked_far: Option<Instant>,
    /// The file ends before the log does.
    pub cut_off: bool,
    /// Of segments, by generation: the slot after the last unit that was found, and what `end_of` found.
    ends: HashMap<u64, (u32, Option<End>)>,
}

#[derive(Debug, Default)]
pub(super) struct Changes {
    pub new: Vec<Segment>,
    /// They were overwritten, or are skipped to stay ahead of a recorder.
    pub gone: Vec<Segment>,
}

/// The end of a segment: the sequence number after its last record, and about when that came.
#[derive(Debug, Clone, Copy)]
pub(super) struct End {
    pub sequence: u64,
    pub time: u64,
}

impl Leg {
    /// Call `index` before anything else is asked.
    pub fn new(source: Source, log: Superblock) -> Leg {
        Leg {
            source,
            log,
            spill: None,
            segments: BTreeMap::new(),
            by_place: HashMap::new(),
            by_lane: HashMap::new(),
            newest: 0,
            changes: Changes::default(),
            looked_far: None,
            cut_off: false,
            ends: HashMap::new(),
        }
    }

    pub fn add_spill(&mut self, path: &Path) -> Result<()> {
        self.spill = Some(self.source.open_spill(path)?);
        self.index()
    }

    /// Whether segments were overwritten.
    pub fn has_wrapped(&self) -> bool {
        self.newest > self.log.segments
    }

    /// Whether the lane has a segment that was begun after this one.
    pub fn has_newer(&self, lane: u16, generation: u64) -> bool {
        self.by_lane
            .get(&lane)
            .is_some_and(|last| *last > generation)
    }

    /// The segments of the newest lap. A place whose generation was skipped keeps one of an earlier lap.
    pub fn newest_lap(&self) -> impl Iterator<Item = &Segment> {
        let oldest = self.log.oldest(self.newest);
        self.segments.range(oldest..).map(|(_, segment)| segment)
    }

    pub fn take_changes(&mut self) -> Changes {
        std::mem::take(&mut self.changes)
    }

    /// Most records that so many slots can hold.
    pub fn records_in(&self, slots: u32) -> u64 {
        u64::from(slots) * u64::from(self.log.slot_size) / RECORD_HEADER_LEN as u64
    }

    /// Reads the superblock again. `ENOMSG` if another log was begun in the range since.
    pub fn refresh(&mut self) -> Result<()> {
        let got = self.source.read_head()?;
        let found = superblock_in(&self.source, self.source.bytes(0, got));
        let same = |found: &Superblock| {
            (found.set_id, found.device, found.slot_size)
                == (self.log.set_id, self.log.device, self.log.slot_size)
                && (found.segments, found.segment_slots)
                    == (self.log.segments, self.log.segment_slots)
        };
        self.log = found.filter(same).ok_or_else(|| self.source.begun_anew())?;
        Ok(())
    }

    fn offset(&self, slot: u64) -> u64 {
        self.source.start + slot * u64::from(self.log.slot_size)
    }

    /// Segments after the newest one that may have been begun.
    fn ahead(&self) -> u64 {
        let most = MOST_AHEAD.min(self.log.segments);
        (IN_FLIGHT / u64::from(self.log.segment_slots) + 1).min(most)
    }

    /// Slots that are read of a place first.
    fn head_slots(&self) -> u32 {
        (HEAD as u32 / self.log.slot_size).clamp(2, self.log.segment_slots)
    }

    /// Looks at every place.
    pub fn index(&mut self) -> Result<()> {
        let log = self.log;
        self.segments.clear();
        self.by_place.clear();
        self.by_lane.clear();
        self.ends.clear();
        self.newest = 0;
        let (first, count) = (log.slot_of(1, 0), log.segment_slots.into());
        let slots = self.head_slots();
        let size = u64::from(log.slot_size);
        let there = self.source.size()?.saturating_sub(self.offset(first)) / size;
        self.cut_off = there / count < log.segments;
        // A place of which only the start is there counts too.
        let places = there.div_ceil(count).min(log.segments);
        let found = self.source.read_many(
            places,
            slots as usize * size as usize,
            |place| self.offset(first + place * count),
            |place, bytes| {
                if let Some(spill) = &self.spill {
                    let slots = bytes.chunks_exact_mut(size as usize);
                    log.mend(spill, first + place * count, slots)?;
                }
                let mut found = Found::default();
                found.look(&log, place, 0, bytes);
                Ok((found != Found::default()).then_some((place, found)))
            },
        )?;
        let mut incomplete = Vec::new();
        for (place, found) in found {
            match found.segment {
                Some(segment) => self.learn(segment),
                None if !found.foreign => incomplete.push((place, found.generation)),
                None => {}
            }
        }
        for (place, _) in incomplete {
            self.look_deep(place, log.segment_slots)?;
        }
        // The start of a segment may be lost.
        let newest = self.newest;
        let near = NEAR_SLOTS.min(log.segment_slots);
        for place in 0..places {
            let known = self.by_place.get(&place).copied().unwrap_or(0);
            let begun = log.newest_in(place, newest.max(log.newest));
            let perhaps = log.newest_in(place, newest + self.ahead());
            if known < begun {
                self.look_deep(place, log.segment_slots)?;
            } else if known < perhaps {
                self.look_deep(place, near)?;
            }
        }
        Ok(())
    }

    /// Looks at the first slots of a place until it is clear what is there.
    fn look_deep(&mut self, place: u64, most: u32) -> Result<()> {
        let mut found = Found::default();
        let (mut slot, mut slots) = (0, self.head_slots());
        let log = self.log;
        while slot < most && !(found.foreign || found.segment.is_some_and(|s| s.slot == 0)) {
            let Some(bytes) = self.read_place(place, slot, slots.min(most - slot))? else {
                break;
            };
            let before = found;
            let got = (bytes.len() / log.slot_size as usize) as u32;
            found.look(&log, place, slot, bytes);
            if found.segment.is_some() && found == before {
                break;
            }
            slot += got;
            slots = NEAR_SLOTS;
        }
        if let Some(segment) = found.segment {
            self.learn(segment);
        }
        Ok(())
    }

    /// Whether the start of a place says that there is a segment that was not known.
    fn look_at(&mut self, place: u64) -> Result<bool> {
        let (log, slots) = (self.log, self.head_slots());
        let Some(bytes) = self.read_place(place, 0, slots)? else {
            return Ok(false);
        };
        let mut found = Found::default();
        found.look(&log, place, 0, bytes);
        let known = self.by_place.get(&place).copied().unwrap_or(0);
        if let Some(segment) = found.segment {
            self.learn(segment);
        }
        Ok(found.generation > known)
    }

    fn learn(&mut self, segment: Segment) {
        let place = self.log.place_of(segment.generation);
        let known = self.by_place.get(&place).copied().unwrap_or(0);
        if known >= segment.generation {
            return;
        }
        self.forget(known);
        self.by_place.insert(place, segment.generation);
        self.segments.insert(segment.generation, segment);
        self.newest = self.newest.max(segment.generation);
        let last = self.by_lane.entry(segment.lane).or_default();
        *last = segment.generation.max(*last);
        self.changes.new.push(segment);
    }

    fn forget(&mut self, generation: u64) {
        self.ends.remove(&generation);
        self.changes.gone.extend(self.segments.remove(&generation));
    }

    /// Looks for new segments; `far`: not only where the next ones are expected.
    pub fn poll(&mut self, far: bool) -> Result<()> {
        let far = far || self.looked_far.is_none_or(|at| at.elapsed() >= SCAN);
        let (mut behind, mut ahead) = (NEAR_BEHIND, NEAR_AHEAD);
        if far {
            self.looked_far = Some(Instant::now());
            self.refresh()?;
            (behind, ahead) = (self.ahead(), self.ahead());
        }
        let newest = self.newest;
        let mut from = newest.saturating_sub(behind).max(1);
        if far {
            // As far as a recorder that skips many says.
            let known = self.log.newest;
            if known > newest + ahead {
                from = known.saturating_sub(behind).max(1);
            }
            ahead = ahead.max((known + ahead).saturating_sub(newest));
        }
        for generation in (from..=newest + ahead).take(2 * MOST_AHEAD as usize + 2) {
            let place = self.log.place_of(generation);
            let known = self.by_place.get(&place).copied().unwrap_or(0);
            if known >= generation {
                continue;
            }
            let begun = self.look_at(place)?;
            let next = (newest..newest + NEAR_AHEAD * 2).contains(&generation);
            // Its start may be lost.
            let known = self.by_place.get(&place).copied().unwrap_or(0);
            if far && known < generation && (begun || next) {
                self.look_deep(place, NEAR_SLOTS.min(self.log.segment_slots))?;
            }
        }
        Ok(())
    }

    /// A recorder has overwritten a segment with one of this generation. Forgets the oldest segments too, so that it does
    /// not overtake again at once.
    pub fn overtaken(&mut self, generation: u64) -> Result<()> {
        let place = self.log.place_of(generation);
        if !self.look_at(place)? || self.by_place.get(&place).is_none_or(|g| *g < generation) {
            self.look_deep(place, self.log.segment_slots)?;
        }
        // Whatever is there now: what was is gone.
        let known = self.by_place.get(&place).copied().unwrap_or(0);
        if known < generation {
            self.forget(known);
        }
        self.poll(true)?;
        let room = (self.log.segments / 16).clamp(1, 16);
        let oldest = self.log.oldest(self.newest) + room;
        while let Some((&old, _)) = self.segments.first_key_value()
            && old < oldest.min(self.newest)
        {
            self.forget(old);
        }
        Ok(())
    }

    /// Reads slots of a place to the buffer; `None`: there are none.
    fn read_place(&mut self, place: u64, slot: u32, count: u32) -> Result<Option<&[u8]>> {
        let size = self.log.slot_size as usize;
        let count = count.min((Source::BATCH / size) as u32);
        let count = count.min(self.log.segment_slots - slot);
        let number = self.log.slot_of(place + 1, slot);
        let offset = self.offset(number);
        let got = self.source.read(offset, count as usize * size, size)? / size * size;
        if got == 0 {
            return Ok(None);
        }
        if let Some(spill) = &self.spill {
            let slots = self.source.bytes_mut(got).chunks_exact_mut(size);
            self.log.mend(spill, number, slots)?;
        }
        Ok(Some(self.source.bytes(0, got)))
    }

    /// The slots of a segment from one on, at most `count`; none at the end of the file.
    pub fn read(&mut self, generation: u64, slot: u32, count: u32) -> Result<&[u8]> {
        let place = self.log.place_of(generation);
        Ok(self.read_place(place, slot, count)?.unwrap_or_default())
    }

    /// The unit in `bytes`, the first of which are those of a slot of a segment.
    pub fn unit_in(
        &self,
        (generation, lane): (u64, u16),
        slot: u32,
        bytes: &[u8],
    ) -> std::result::Result<Unit, Flaw> {
        match Unit::read(&self.log, generation, slot, bytes) {
            Ok(unit) if unit.header.lane != lane => Err(Flaw::Damaged),
            Err(Flaw::Newer(other))
                if self.log.place_of(other) != self.log.place_of(generation) =>
            {
                Err(Flaw::Damaged)
            }
            found => found,
        }
    }

    /// The unit that is in a slot now.
    pub fn look(
        &mut self,
        segment: (u64, u16),
        slot: u32,
    ) -> Result<std::result::Result<Unit, Flaw>> {
        let got = self.read(segment.0, slot, MAX_UNIT_SLOTS as u32)?.len();
        Ok(self.unit_in(segment, slot, self.source.bytes(0, got)))
    }

    /// The lanes that have segments here, and the newest segment of each.
    pub fn newest_of_lanes(&self) -> Vec<(u16, u64)> {
        let each = self.by_lane.iter();
        each.map(|(lane, newest)| (*lane, *newest)).collect()
    }

    /// The sequence number after the last record of a lane, whose newest segment is `newest`; 0: there is none. That segment may
    /// be empty, or begin with records of an earlier one.
    pub fn end_of_lane(&mut self, lane: u16, newest: u64) -> Result<u64> {
        let of_lane = self.segments.range(..=newest).rev();
        let last: Vec<u64> = of_lane
            .filter(|(_, segment)| segment.lane == lane)
            .map(|(generation, _)| *generation)
            .take(2)
            .collect();
        let mut end = 0;
        for generation in last {
            end = end.max(self.end_of(generation)?.map_or(0, |end| end.sequence));
        }
        Ok(end)
    }

    /// Where the records of a segment end; `None` if it has none.
    pub fn end_of(&mut self, generation: u64) -> Result<Option<End>> {
        let (mut slot, mut end) = self.ends.get(&generation).copied().unwrap_or((0, None));
        let mut after = slot;
        let log = self.log;
        while slot < log.segment_slots {
            let bytes = self.read(generation, slot, u32::MAX)?;
            let slots = bytes.chunks_exact(log.slot_size as usize);
            if slots.len() == 0 {
                break;
            }
            let got = slots.len() as u32;
            for (number, bytes) in (slot..).zip(slots) {
                let unit = SlotHeader::read(bytes).filter(|header| {
                    header.tag == log.tag()
                        && (header.generation, header.slot, header.index) == (generation, number, 0)
                });
                if unit.is_some()
                    && let Some(unit) = UnitHeader::read(bytes)
                {
                    let last = unit.first_sequence + u64::from(unit.records);
                    if end.is_none_or(|end: End| end.sequence <= last) {
                        end = Some(End {
                            sequence: last,
                            time: unit.base_time,
                        });
                    }
                    after = number + 1;
                }
            }
            slot += got;
        }
        self.ends.insert(generation, (after, end));
        Ok(end)
    }
}
