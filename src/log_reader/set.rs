//! Reads a set: what several lanes wrote to one or several devices. Lanes are merged by time.

#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, Instant, SystemTime};

use super::lane::{Lane, Look};
use super::leg::{End, Leg};
use super::source::Source;
use super::{Found, Item, LOOK, Tally};
use crate::error::{Error, Result};
use crate::record::{self, Losses, MAX_SEQUENCE};
use crate::unit_log::segments::Segment;
use crate::unit_log::superblock::Superblock;

/// A record is held back for so long for lanes that have none.
const HOLD: Duration = Duration::from_millis(100);
/// A unit has records up to about this long after its base time.
const UNIT_TIME: u64 = 1_000_000_000;

/// What comes next: its time, its lane's place, and what it is.
type Best = (u64, usize, Look);

#[derive(Debug)]
pub(super) struct SetReader {
    /// As they were given.
    legs: Vec<Leg>,
    /// By number.
    lanes: Vec<Lane>,
    /// The set as version 1 has a log.
    about: record::Superblock,
    /// The lane of the record that was handed out last.
    current: usize,
    /// When segments and units that may have come were last looked for, and which time it was then, in ns since
    /// 1970-01-01 UTC.
    polled: Option<Instant>,
    polled_at: u64,
    /// Since when the next record is held back.
    held: Option<Instant>,
    /// No lane had anything at the last poll of a reader that does not follow.
    ended: bool,
    tally: Tally,
}

pub(super) fn no_such_device(place: usize, given: usize) -> Error {
    Error::new(
        libc::EINVAL,
        format!("there is no device {place} to add a spill for: {given} are read, from 0 on"),
    )
}

fn now() -> u64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    since.map_or(0, |since| since.as_nanos() as u64)
}

/// `EINVAL` if the two logs are not two devices of one set.
fn refuse_strangers(first: &Leg, second: &Leg) -> Result<()> {
    let (name, other) = (&first.source.name, &second.source.name);
    let (log, next) = (&first.log, &second.log);
    let refuse = |why: String| Err(Error::new(libc::EINVAL, why));
    if log.set_id != next.set_id {
        return refuse(format!(
            "'{name}' belongs to the recording {:016x} and '{other}' to {:016x}: read each by itself",
            log.set_id, next.set_id
        ));
    }
    if log.device == next.device {
        return refuse(format!(
            "'{name}' and '{other}' are both device {} of the recording {:016x}: give each device once",
            log.device, log.set_id
        ));
    }
    if log.slot_size != next.slot_size {
        return refuse(format!(
            "'{name}' has slots of {} bytes and '{other}' of {}: they are not of one recording",
            log.slot_size, next.slot_size
        ));
    }
    Ok(())
}

impl SetReader {
    pub fn open(devices: Vec<(Source, Superblock)>) -> Result<SetReader> {
        if devices.is_empty() {
            return Err(Error::new(libc::EINVAL, "no device to read was given"));
        }
        let mut legs: Vec<Leg> = Vec::new();
        for (source, log) in devices {
            let leg = Leg::new(source, log);
            for other in &legs {
                refuse_strangers(other, &leg)?;
            }
            legs.push(leg);
        }
        for leg in &mut legs {
            leg.index()?;
        }
        let mut reader = SetReader {
            legs,
            lanes: Vec::new(),
            about: record::Superblock::default(),
            current: 0,
            polled: None,
            polled_at: 0,
            held: None,
            ended: false,
            tally: Tally::default(),
        };
        reader.rewind();
        reader.describe();
        Ok(reader)
    }

    pub fn add_spill(&mut self, place: usize, path: &Path) -> Result<()> {
        let given = self.legs.len();
        let leg = self.legs.get_mut(place);
        leg.ok_or_else(|| no_such_device(place, given))?
            .add_spill(path)?;
        self.rewind();
        Ok(())
    }

    pub fn devices(&self) -> (u16, u16) {
        let highest = self.legs.iter().map(|leg| leg.log.device.saturating_add(1));
        let named = self.legs.iter().map(|leg| leg.log.devices);
        let all = highest.chain(named).max().unwrap_or(1);
        (all, self.legs.len() as u16)
    }

    pub fn missing_devices(&self) -> Vec<u16> {
        let given = |number: &u16| self.legs.iter().any(|leg| leg.log.device == *number);
        (0..self.devices().0)
            .filter(|number| !given(number))
            .collect()
    }

    pub fn lanes(&self) -> u16 {
        let found = self.lanes.last().map_or(1, |l| l.number.saturating_add(1));
        let named = self.legs.iter().map(|leg| leg.log.lanes);
        named.max().unwrap_or(1).max(found)
    }

    /// Goes to the oldest records.
    fn rewind(&mut self) {
        self.restart(|_, _, _| Ok(true), |_| false)
            .expect("nothing is read for that");
    }

    /// Starts all lanes anew, with the segments that are `needed`: that gets the device, the segment, and the one after it. Of
    /// each lane and device, the newest are asked about first. Before one in order that is `enough`, only those that are not in
    /// order may be needed.
    fn restart(
        &mut self,
        mut needed: impl FnMut(&mut Leg, &Segment, Option<Segment>) -> Result<bool>,
        enough: impl Fn(&Segment) -> bool,
    ) -> Result<()> {
        self.lanes.clear();
        self.held = None;
        self.ended = false;
        self.polled = None;
        for number in 0..self.legs.len() {
            self.legs[number].take_changes();
            let mut by_lane: BTreeMap<u16, Vec<_>> = BTreeMap::new();
            for segment in self.legs[number].segments.values() {
                by_lane.entry(segment.lane).or_default().push(*segment);
            }
            for (lane, segments) in by_lane {
                let (mut after, mut all) = (None, true);
                let place = self.lane(lane);
                for segment in segments.iter().rev() {
                    if (all || !segment.in_order) && needed(&mut self.legs[number], segment, after)?
                    {
                        self.lanes[place].add(number, segment, &self.legs);
                    }
                    all &= !(segment.in_order && enough(segment));
                    after = Some(*segment);
                }
            }
        }
        self.set_horizons();
        let start: Vec<u64> = self.lanes.iter().map(|lane| self.oldest_of(lane)).collect();
        for (lane, start) in self.lanes.iter_mut().zip(start) {
            lane.skip_to(start);
        }
        Ok(())
    }

    /// The place of a lane, which is made if there is none.
    fn lane(&mut self, number: u16) -> usize {
        match self.lanes.binary_search_by_key(&number, |lane| lane.number) {
            Ok(place) => place,
            Err(place) => {
                self.lanes.insert(place, Lane::new(number));
                if self.current >= place {
                    self.current += 1;
                }
                place
            }
        }
    }

    /// Where records of a lane begin: at 0, or at the oldest one if some may have been overwritten.
    fn oldest_of(&self, lane: &Lane) -> u64 {
        if !self.legs.iter().any(Leg::has_wrapped) {
            return 0;
        }
        let of_lane = self.legs.iter().flat_map(|leg| leg.segments.values());
        of_lane
            .filter(|segment| segment.lane == lane.number)
            .map(|segment| segment.first_sequence)
            .min()
            .unwrap_or(lane.next)
    }

    fn set_horizons(&mut self) {
        for leg in self.legs.iter().filter(|leg| leg.has_wrapped()) {
            let mut lowest: BTreeMap<u16, u64> = BTreeMap::new();
            for segment in leg.newest_lap() {
                let first = lowest.entry(segment.lane).or_insert(u64::MAX);
                *first = segment.first_sequence.min(*first);
            }
            for lane in &mut self.lanes {
                if let Some(first) = lowest.get(&lane.number) {
                    lane.horizon = lane.horizon.max(*first);
                }
            }
        }
    }

    /// Tells the lanes of segments that came and went.
    fn apply_changes(&mut self) {
        let mut gone = false;
        for number in 0..self.legs.len() {
            let changes = self.legs[number].take_changes();
            for segment in &changes.gone {
                let place = self.lane(segment.lane);
                self.lanes[place].remove(number, segment);
                gone = true;
            }
            for segment in &changes.new {
                let place = self.lane(segment.lane);
                self.lanes[place].add(number, segment, &self.legs);
            }
        }
        if gone {
            self.set_horizons();
        }
    }

    /// Looks for new segments, and for new units in those that may grow.
    fn poll(&mut self, following: bool) -> Result<()> {
        // Before the devices are read: what came until then is found.
        self.polled_at = now();
        for leg in &mut self.legs {
            leg.poll(!following)?;
        }
        self.apply_changes();
        for lane in &mut self.lanes {
            lane.poll(&mut self.legs, following)?;
        }
        self.polled = Some(Instant::now());
        Ok(())
    }

    fn describe(&mut self) {
        let logs = || self.legs.iter().map(|leg| &leg.log);
        let Some(first) = logs().next() else {
            return;
        };
        // Every device has the counters of the whole recording, as they were when its superblock was written.
        let losses = logs().map(|log| log.losses).max_by_key(Losses::total);
        let interface = logs().map(|log| log.interface).max();
        self.about = record::Superblock {
            generation: first.generation,
            log_id: first.set_id,
            block_size: first.block_size,
            slot_size: first.slot_size,
            start_lba: first.start_lba,
            slots: logs()
                .map(|log| log.segments.saturating_mul(log.segment_slots.into()))
                .fold(0, u64::saturating_add),
            next_sequence: 0,
            created: logs().map(|log| log.created).min().unwrap_or(0),
            wraps: logs().any(|log| log.wraps),
            losses: losses.unwrap_or_default(),
            interface: interface.unwrap_or_default(),
        };
    }

    fn refresh(&mut self) -> Result<()> {
        self.legs.iter_mut().try_for_each(Leg::refresh)?;
        self.describe();
        Ok(())
    }

    pub fn end(&mut self) -> Result<u64> {
        self.refresh()?;
        self.poll(false)?;
        let mut ends: BTreeMap<u16, u64> = BTreeMap::new();
        for leg in &mut self.legs {
            for (lane, newest) in leg.newest_of_lanes() {
                let end = leg.end_of_lane(lane, newest)?;
                let known = ends.entry(lane).or_default();
                *known = end.max(*known);
            }
        }
        let sum = ends.values().fold(0, |sum, end| end.saturating_add(sum));
        self.about.next_sequence = sum;
        Ok(sum)
    }

    pub fn oldest(&mut self) -> Result<u64> {
        let each = self.lanes.iter().map(|lane| self.oldest_of(lane));
        Ok(each.fold(0, u64::saturating_add))
    }

    pub fn superblock(&self) -> &record::Superblock {
        &self.about
    }

    pub fn tally(&self) -> Tally {
        self.tally
    }

    pub fn position(&self) -> u64 {
        let each = self.lanes.iter().map(|lane| lane.next);
        each.fold(0, u64::saturating_add)
    }

    /// `EINVAL` if there are several lanes.
    pub fn seek(&mut self, sequence: u64) -> Result<()> {
        if self.lanes() > 1 {
            return Err(Error::new(
                libc::EINVAL,
                format!(
                    "the recording has {} lanes, each with its own sequence numbers: seek by time instead",
                    self.lanes()
                ),
            ));
        }
        let sequence = sequence.min(MAX_SEQUENCE);
        self.refresh()?;
        self.poll(false)?;
        self.restart_at(
            |segment| segment.first_sequence > sequence,
            |end| end.sequence > sequence,
            |segment| segment.first_sequence <= sequence,
        )?;
        for lane in &mut self.lanes {
            lane.skip_to(sequence);
        }
        Ok(())
    }

    /// Starts anew with the segments that do not end before what is sought: those before one that begins after it, and then
    /// those that reach it. Only the ends of the latter are read, back to one in order before which all is older.
    fn restart_at(
        &mut self,
        is_after: impl Fn(&Segment) -> bool,
        reaches: impl Fn(End) -> bool,
        enough: impl Fn(&Segment) -> bool,
    ) -> Result<()> {
        self.restart(
            |leg, segment, after| {
                // The newest one may grow.
                Ok(after.is_none_or(|after| is_after(&after))
                    || leg.end_of(segment.generation)?.is_none_or(&reaches))
            },
            enough,
        )
    }

    pub fn seek_time(&mut self, timestamp: u64) -> Result<()> {
        self.refresh()?;
        self.poll(false)?;
        self.restart_at(
            |segment| segment.base_time > timestamp,
            |end| end.time.saturating_add(UNIT_TIME) >= timestamp,
            |segment| segment.base_time.saturating_add(UNIT_TIME) < timestamp,
        )?;
        let mut place = 0;
        while place < self.lanes.len() {
            if let Some(lowest) = self.lanes[place].lowest() {
                self.lanes[place].skip_to(lowest);
            }
            loop {
                let lane = &mut self.lanes[place];
                match lane.look(&mut self.legs, false)? {
                    Look::Record(time) if time < timestamp => lane.skip_to(lane.next + 1),
                    Look::Gap { until, .. } => lane.skip_to(until),
                    Look::Record(_) | Look::Nothing => break,
                    Look::Overtaken(leg, generation) => self.overtaken(leg, generation)?,
                }
            }
            place += 1;
        }
        Ok(())
    }

    fn overtaken(&mut self, leg: usize, generation: u64) -> Result<()> {
        self.legs[leg].refresh()?;
        self.legs[leg].overtaken(generation)?;
        self.apply_changes();
        self.set_horizons();
        Ok(())
    }

    pub fn item(&self, found: Found) -> Item<'_> {
        match found {
            Found::Record(header) => Item::Record {
                header,
                packet: self.lanes[self.current].packet(),
            },
            missing => missing.without_packet(),
        }
    }

    pub fn step(&mut self, following: bool) -> Result<Option<Found>> {
        let mut polled = false;
        loop {
            let (best, all) = self.earliest(following)?;
            let recently = self.polled.is_some_and(|at| at.elapsed() < LOOK);
            let Some((time, place, look)) = best else {
                if polled || (following && recently) {
                    return match self.legs.iter().find(|leg| leg.cut_off) {
                        Some(leg) if !following => Err(leg.source.cut_off()),
                        _ => Ok(None),
                    };
                }
                self.poll(following)?;
                polled = true;
                continue;
            };
            if following && !all && !self.may_pass(time) {
                if polled || recently {
                    return Ok(None);
                }
                self.poll(true)?;
                polled = true;
                continue;
            }
            if let Look::Gap { until, .. } = look {
                // Records may be missing because a new log overwrites this one.
                self.refresh()?;
                self.held = None;
                let found = self.lanes[place].take_gap(until);
                self.count(found);
                return Ok(Some(found));
            }
            self.held = None;
            if let Some(header) = self.lanes[place].take_record(&self.legs) {
                self.current = place;
                self.tally.records += 1;
                return Ok(Some(Found::Record(header)));
            }
        }
    }

    fn count(&mut self, found: Found) {
        match found {
            Found::Record(_) => self.tally.records += 1,
            Found::Gap {
                count,
                damaged: true,
                ..
            } => self.tally.damaged += count,
            Found::Gap { count, .. } => self.tally.missing += count,
            Found::Overwritten { count, .. } => self.tally.overwritten += count,
        }
    }

    /// Whether a record may be handed out although there are lanes that have nothing.
    fn may_pass(&mut self, time: u64) -> bool {
        let hold = HOLD.as_nanos() as u64;
        // What is that old was there when these lanes were last looked at.
        self.polled_at >= time.saturating_add(hold)
            || self.held.get_or_insert_with(Instant::now).elapsed() >= HOLD
    }

    /// What comes next: its time, the lane's place, and what it is; and whether all lanes have something.
    fn earliest(&mut self, following: bool) -> Result<(Option<Best>, bool)> {
        'again: loop {
            let (mut best, mut all): (Option<Best>, bool) = (None, true);
            for place in 0..self.lanes.len() {
                let lane = &mut self.lanes[place];
                let look = lane.look(&mut self.legs, following)?;
                let time = match look {
                    Look::Record(time) => time,
                    Look::Gap { time, .. } if following && lane.waits(time, now()) => {
                        all = false;
                        continue;
                    }
                    Look::Gap { time, .. } => time,
                    Look::Nothing => {
                        all = false;
                        continue;
                    }
                    Look::Overtaken(leg, generation) => {
                        self.overtaken(leg, generation)?;
                        continue 'again;
                    }
                };
                if best.is_none_or(|(earliest, ..)| time < earliest) {
                    best = Some((time, place, look));
                }
            }
            return Ok((best, all));
        }
    }
}

#[cfg(test)]
mod tests;
