//! One lane of a set: its segments, on all devices, merged by sequence number.

#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::ops::Range;
use std::time::Instant;

use super::Found;
use super::leg::Leg;
use super::source::{PATIENCE, SCAN, Source};
use super::units::{header_of, time_of};
use crate::error::Result;
use crate::record::Header;
use crate::unit_log::segments::Segment;
use crate::unit_log::unit::{MAX_UNIT_SLOTS, RecordHeader, UnitHeader};
use crate::unit_log::units::{Flaw, Unit};

/// Segments whose slots are in memory at once. A lane has one or two on each device that overlap; more are read in turn.
const MOST_OPEN: usize = 32;
/// Ranges that damaged units may have held, at most; the oldest is forgotten.
const MOST_LOST: usize = 1024;

/// Where the reader is in a segment.
#[derive(Debug, Clone, Copy)]
struct Spot {
    leg: usize,
    generation: u64,
    /// Where the next unit is looked for.
    slot: u32,
    /// What follows in the segment has this sequence number or a higher one.
    key: u64,
    /// The next unit does not begin with a lower one: sequence numbers ascend in a segment.
    floor: u64,
    /// What is in `slot` is damaged.
    damaged: bool,
    /// When nothing followed for the first time, when it was last looked for after a hole, and when the next unit was
    /// found incomplete.
    since: Option<Instant>,
    scanned: Option<Instant>,
    torn: Option<Instant>,
}

/// A segment with slots that are empty or damaged, and a unit after them.
#[derive(Debug)]
struct Hole {
    spot: Spot,
    beyond: Spot,
    time: u64,
}

/// A segment whose slots are in memory.
#[derive(Debug)]
struct Open {
    spot: Spot,
    /// Its slots from one on.
    bytes: Vec<u8>,
    loaded: u32,
    /// The unit that is handed out, the slot where it begins, its records and the next of them.
    unit: UnitHeader,
    unit_slot: u32,
    records: Vec<(RecordHeader, Range<usize>)>,
    stream: Vec<u8>,
    index: usize,
}

/// What a segment has next.
enum Next {
    Unit,
    Hole(Hole),
    /// Nothing now; a recorder may go on.
    Nothing,
    /// All slots were read.
    End,
    /// A recorder has overwritten the segment with one of this generation.
    Newer(u64),
}

/// What the lane has next.
#[derive(Debug, Clone, Copy)]
pub(super) enum Look {
    /// The record with the next sequence number, and when it came.
    Record(u64),
    /// The next record that is there has a later sequence number.
    Gap {
        until: u64,
        time: u64,
    },
    Nothing,
    /// A recorder has overwritten what was read on this device.
    Overtaken(usize, u64),
}

#[derive(Debug)]
pub(super) struct Lane {
    pub number: u16,
    /// Sequence number of the record that comes next.
    pub next: u64,
    /// Segments that are not in memory, by key, device and generation.
    pending: BTreeMap<(u64, usize, u64), Spot>,
    open: Vec<Open>,
    holes: Vec<Hole>,
    /// Segments that may still grow.
    tails: Vec<Spot>,
    /// The open segment with the next record.
    current: usize,
    /// What damaged units may have held.
    lost: Vec<Range<u64>>,
    /// Below this, what is not there may have been overwritten.
    pub horizon: u64,
    /// When a follower first found the next record missing.
    waiting: Option<Instant>,
}

impl Open {
    fn new(spot: Spot) -> Open {
        Open {
            spot,
            bytes: Vec::new(),
            loaded: 0,
            unit: UnitHeader::default(),
            unit_slot: spot.slot,
            records: Vec::new(),
            stream: Vec::new(),
            index: 0,
        }
    }

    /// Sequence number of the record that is next.
    fn key(&self) -> u64 {
        self.unit.first_sequence + self.index as u64
    }

    fn time(&self) -> u64 {
        let record = self.records.get(self.index);
        record.map_or(self.unit.base_time, |(record, _)| {
            time_of(&self.unit, record)
        })
    }

    /// The unit in a slot, from memory if `fresh` is not set.
    fn look(
        &mut self,
        leg: &mut Leg,
        segment: (u64, u16),
        slot: u32,
        fresh: bool,
    ) -> Result<std::result::Result<Unit, Flaw>> {
        let size = leg.log.slot_size as usize;
        let end = self.loaded + (self.bytes.len() / size) as u32;
        let needed = (slot + MAX_UNIT_SLOTS as u32).min(leg.log.segment_slots);
        if fresh || slot < self.loaded || needed > end {
            let count = match fresh {
                true => MAX_UNIT_SLOTS,
                false => (Source::BATCH / size).max(MAX_UNIT_SLOTS),
            };
            let bytes = leg.read(segment.0, slot, count as u32)?;
            self.bytes.clear();
            self.bytes.extend_from_slice(bytes);
            self.loaded = slot;
        }
        Ok(leg.unit_in(segment, slot, self.bytes_at(slot, size)))
    }

    fn bytes_at(&self, slot: u32, size: usize) -> &[u8] {
        let at = (slot - self.loaded) as usize * size;
        self.bytes.get(at..).unwrap_or_default()
    }
}

impl Lane {
    pub fn new(number: u16) -> Lane {
        Lane {
            number,
            next: 0,
            pending: BTreeMap::new(),
            open: Vec::new(),
            holes: Vec::new(),
            tails: Vec::new(),
            current: 0,
            lost: Vec::new(),
            horizon: 0,
            waiting: None,
        }
    }

    /// Adds a segment of the device `leg`.
    pub fn add(&mut self, leg: usize, segment: &Segment, legs: &[Leg]) {
        if segment.slot > 1 {
            // More than the header is lost.
            let most = legs[leg].records_in(segment.slot);
            let first = segment.first_sequence;
            self.lose(first.saturating_sub(most)..first);
        }
        self.suspend(Spot {
            leg,
            generation: segment.generation,
            slot: segment.slot,
            key: segment.first_sequence,
            floor: segment.first_sequence,
            damaged: false,
            since: None,
            scanned: None,
            torn: None,
        });
    }

    /// A segment that was not read yet is gone.
    pub fn remove(&mut self, leg: usize, segment: &Segment) {
        let key = (segment.first_sequence, leg, segment.generation);
        self.pending.remove(&key);
        let other = |spot: &Spot| (spot.leg, spot.generation) != (leg, segment.generation);
        self.open.retain(|open| other(&open.spot));
        self.holes.retain(|hole| other(&hole.spot));
        self.tails.retain(other);
    }

    fn suspend(&mut self, spot: Spot) {
        self.pending
            .insert((spot.key, spot.leg, spot.generation), spot);
    }

    fn lose(&mut self, range: Range<u64>) {
        if range.start < range.end && range.end > self.next {
            if self.lost.len() >= MOST_LOST {
                self.lost.remove(0);
            }
            self.lost.push(range);
        }
    }

    /// Goes to the next unit with packets of an open segment.
    fn fetch(&mut self, index: usize, legs: &mut [Leg], following: bool) -> Result<Next> {
        let (number, next) = (self.number, self.next);
        let mut lost = Vec::new();
        let open = &mut self.open[index];
        let leg = &mut legs[open.spot.leg];
        let found = open.fetch(leg, number, next, following, &mut lost);
        lost.into_iter().for_each(|range| self.lose(range));
        found
    }

    /// The next record or gap. Reads what is needed for that, and nothing again that was read already.
    pub fn look(&mut self, legs: &mut [Leg], following: bool) -> Result<Look> {
        loop {
            let mut index = 0;
            while index < self.open.len() {
                let next = self.next;
                let open = &mut self.open[index];
                let skipped = next.saturating_sub(open.key());
                open.index = open
                    .records
                    .len()
                    .min(open.index.saturating_add(skipped as usize));
                if open.index < open.records.len() {
                    index += 1;
                    continue;
                }
                match self.fetch(index, legs, following)? {
                    Next::Unit => continue,
                    Next::Hole(hole) => {
                        self.open.swap_remove(index);
                        self.holes.push(hole);
                    }
                    Next::Nothing => {
                        let spot = self.open.swap_remove(index).spot;
                        self.rest(spot, legs, following);
                    }
                    Next::End => {
                        let spot = self.open.swap_remove(index).spot;
                        self.end(spot, legs);
                    }
                    Next::Newer(generation) => {
                        let leg = self.open.swap_remove(index).spot.leg;
                        return Ok(Look::Overtaken(leg, generation));
                    }
                }
            }
            // A hole holds nothing that is needed if what follows it is next.
            let mut index = 0;
            while index < self.holes.len() {
                if self.holes[index].beyond.key <= self.next {
                    let hole = self.holes.swap_remove(index);
                    self.suspend(hole.beyond);
                } else {
                    index += 1;
                }
            }
            let first = self.open.iter().enumerate();
            let first = first
                .min_by_key(|(_, open)| open.key())
                .map(|(index, open)| (index, open.key(), open.time()));
            if let Some((index, key, time)) = first
                && key == self.next
            {
                self.current = index;
                self.waiting = None;
                return Ok(Look::Record(time));
            }
            let earlier = self.pending.first_key_value().map(|(key, _)| *key);
            if let Some(key) = earlier
                && first.is_none_or(|(_, first, _)| key.0 < first)
                && self.holes.iter().all(|hole| key.0 <= hole.beyond.key)
                && let Some(spot) = self.pending.remove(&key)
            {
                self.make_room();
                self.open.push(Open::new(spot));
                continue;
            }
            let holes = self
                .holes
                .iter()
                .map(|hole| (hole.beyond.key, hole.time))
                .min();
            let first = first.map(|(_, key, time)| (key, time));
            return Ok(match first.into_iter().chain(holes).min() {
                Some((until, time)) => Look::Gap { until, time },
                None => Look::Nothing,
            });
        }
    }

    /// Takes the segment whose records are needed last out of memory if there are too many.
    fn make_room(&mut self) {
        if self.open.len() < MOST_OPEN {
            return;
        }
        let last = self.open.iter().enumerate().max_by_key(|(_, o)| o.key());
        if let Some((index, _)) = last {
            let open = self.open.swap_remove(index);
            self.suspend(Spot {
                slot: open.unit_slot,
                key: open.key(),
                floor: open.unit.first_sequence,
                ..open.spot
            });
        }
    }

    /// Nothing follows in a segment now.
    fn rest(&mut self, spot: Spot, legs: &[Leg], following: bool) {
        let since = spot.since.unwrap_or_else(Instant::now);
        // The lane has gone on in another segment of the device; a write may still be in flight for a while.
        let over = legs[spot.leg].has_newer(self.number, spot.generation)
            && (!following || since.elapsed() >= PATIENCE);
        if over {
            self.end(spot, legs);
        } else {
            self.tails.push(Spot {
                since: Some(since),
                ..spot
            });
        }
    }

    /// A segment was read.
    fn end(&mut self, spot: Spot, legs: &[Leg]) {
        if spot.damaged {
            let leg = &legs[spot.leg];
            self.lose(
                spot.key
                    ..spot
                        .key
                        .saturating_add(leg.records_in(leg.log.segment_slots)),
            );
        }
    }

    /// Looks whether segments that may grow did so, and whether holes were filled.
    pub fn poll(&mut self, legs: &mut [Leg], following: bool) -> Result<()> {
        for spot in std::mem::take(&mut self.tails) {
            let segment = (spot.generation, self.number);
            let leg = &mut legs[spot.leg];
            let there = leg.look(segment, spot.slot)?.is_ok();
            if there || !following || spot.scanned.is_none_or(|at| at.elapsed() >= SCAN) {
                // Is looked at to its end.
                self.suspend(spot);
            } else {
                self.rest(spot, legs, following);
            }
        }
        let mut index = 0;
        while index < self.holes.len() {
            let spot = self.holes[index].spot;
            let segment = (spot.generation, self.number);
            if legs[spot.leg].look(segment, spot.slot)?.is_ok() {
                self.holes.swap_remove(index);
                self.suspend(spot);
            } else {
                index += 1;
            }
        }
        Ok(())
    }

    /// Whether a follower should wait before it takes records up to `until`, of which the last came at `time`, for missing.
    pub fn waits(&mut self, time: u64, now: u64) -> bool {
        let since = self.waiting.get_or_insert_with(Instant::now);
        // What came long ago was written long ago.
        since.elapsed() < PATIENCE && now < time.saturating_add(PATIENCE.as_nanos() as u64)
    }

    /// Takes the record that `look` has found.
    pub fn take_record(&mut self, legs: &[Leg]) -> Option<Header> {
        let open = self.open.get_mut(self.current)?;
        let (record, place) = open.records.get(open.index)?;
        let log = &legs[open.spot.leg].log;
        let packet = &open.stream[place.clone()];
        let header = header_of(log, &open.unit, self.next, record, packet);
        self.next += 1;
        Some(header)
    }

    /// The bytes of the packet that was taken last.
    pub fn packet(&self) -> &[u8] {
        let open = self.open.get(self.current);
        let taken = open.and_then(|open| {
            let (_, place) = open.records.get(open.index)?;
            open.stream.get(place.clone())
        });
        taken.unwrap_or_default()
    }

    /// Reports the missing records up to `until`, or the first of them that are missing for the same cause.
    pub fn take_gap(&mut self, until: u64) -> Found {
        let (lane, first) = (self.number, self.next);
        self.lost.retain(|range| range.end > first);
        let mut end = until;
        let overwritten = first < self.horizon;
        let mut damaged = false;
        if overwritten {
            end = end.min(self.horizon);
        } else {
            let (here, later): (Vec<_>, Vec<_>) =
                self.lost.iter().partition(|range| range.start <= first);
            damaged = !here.is_empty();
            // Up to where it is another cause.
            let edge = match damaged {
                true => here.iter().map(|range| range.end).max(),
                false => later.iter().map(|range| range.start).min(),
            };
            end = end.min(edge.unwrap_or(end));
        }
        let count = end - first;
        self.next = end;
        if end == until {
            self.waiting = None;
        }
        match overwritten {
            true => Found::Overwritten { lane, first, count },
            false => Found::Gap {
                lane,
                first,
                count,
                damaged,
            },
        }
    }

    /// Goes on at a sequence number, without a word about what is not there before it.
    pub fn skip_to(&mut self, next: u64) {
        self.next = next;
        self.waiting = None;
    }

    /// The lowest sequence number that may be there.
    pub fn lowest(&self) -> Option<u64> {
        self.pending.first_key_value().map(|(key, _)| key.0)
    }
}

impl Open {
    /// As `Lane::fetch`. `lost`: what damaged units may have held.
    fn fetch(
        &mut self,
        leg: &mut Leg,
        lane: u16,
        next: u64,
        following: bool,
        lost: &mut Vec<Range<u64>>,
    ) -> Result<Next> {
        let segment = (self.spot.generation, lane);
        let slots = leg.log.segment_slots;
        loop {
            let at = self.spot.slot;
            if at >= slots {
                return Ok(Next::End);
            }
            let mut found = self.look(leg, segment, at, false)?;
            if found.is_err() {
                // Memory may be older than the last write.
                found = self.look(leg, segment, at, true)?;
            }
            let flaw = match found {
                Ok(unit) => {
                    if self.take(leg, &unit, next, following, lost)? {
                        return Ok(Next::Unit);
                    }
                    if self.spot.slot == at {
                        return Ok(Next::Nothing);
                    }
                    continue;
                }
                Err(Flaw::Newer(generation)) => return Ok(Next::Newer(generation)),
                Err(flaw) => flaw,
            };
            let mut damaged = flaw == Flaw::Damaged;
            for slot in at + 1..slots {
                match self.look(leg, segment, slot, false)? {
                    Ok(unit) => {
                        let key = unit.header.first_sequence.max(self.spot.key);
                        if damaged || self.spot.damaged {
                            lost.push(self.spot.key..key);
                        }
                        let spot = Spot {
                            since: None,
                            scanned: None,
                            ..self.spot
                        };
                        return Ok(Next::Hole(Hole {
                            spot,
                            beyond: Spot {
                                slot,
                                key,
                                damaged: false,
                                ..spot
                            },
                            time: unit.header.base_time,
                        }));
                    }
                    Err(Flaw::Newer(generation)) => return Ok(Next::Newer(generation)),
                    Err(Flaw::Damaged) => damaged = true,
                    Err(Flaw::Absent) => {}
                }
            }
            self.spot.damaged |= flaw == Flaw::Damaged;
            self.spot.scanned = Some(Instant::now());
            return Ok(Next::Nothing);
        }
    }

    /// Something followed.
    fn rested(&mut self) {
        (self.spot.since, self.spot.scanned, self.spot.torn) = (None, None, None);
    }

    /// Takes the records out of a unit and goes on to what follows it. `false`: there are none that are needed; if the slot
    /// is the same as before, the unit may not be complete yet.
    fn take(
        &mut self,
        leg: &mut Leg,
        unit: &Unit,
        next: u64,
        following: bool,
        lost: &mut Vec<Range<u64>>,
    ) -> Result<bool> {
        let header = unit.header;
        let most = leg.records_in(unit.slots);
        let claimed = u64::from(header.records).min(most);
        let end = header.first_sequence + claimed;
        let slot = self.spot.slot;
        self.records.clear();
        self.index = 0;
        self.spot.damaged = false;
        if !unit.has_packets() || header.first_sequence < self.spot.floor || end <= next {
            self.rested();
            self.spot.slot += unit.slots;
            self.spot.floor = self.spot.floor.max(header.first_sequence);
            if unit.has_packets() {
                self.spot.floor = self.spot.floor.max(end);
            }
            self.spot.key = self.spot.key.max(self.spot.floor);
            return Ok(false);
        }
        for fresh in [false, true] {
            let mut unit = *unit;
            if fresh {
                // Memory may be older than the last write.
                match self.look(leg, (self.spot.generation, header.lane), slot, true)? {
                    Ok(found) => unit = found,
                    Err(_) => break,
                }
            }
            let mut stream = std::mem::take(&mut self.stream);
            let mut records = std::mem::take(&mut self.records);
            let bytes = self.bytes_at(slot, leg.log.slot_size as usize);
            unit.records(&leg.log, bytes, &mut stream, &mut records);
            (self.stream, self.records) = (stream, records);
            self.unit = unit.header;
            if self.records.len() as u64 >= claimed {
                break;
            }
        }
        let whole = self.unit == header && self.records.len() as u64 >= claimed;
        if !whole && following {
            let since = *self.spot.torn.get_or_insert_with(Instant::now);
            if since.elapsed() < PATIENCE {
                self.records.clear();
                self.spot.scanned = Some(Instant::now());
                return Ok(false);
            }
        }
        if self.unit != header {
            // Overwritten since: the caller looks again.
            self.records.clear();
        }
        self.rested();
        self.unit_slot = slot;
        self.spot.slot += unit.slots;
        (self.spot.key, self.spot.floor) = (end, end);
        let got = header.first_sequence + self.records.len() as u64;
        if got < end {
            lost.push(got..end);
        }
        Ok(!self.records.is_empty())
    }
}
