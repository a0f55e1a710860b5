//! The logs of one recording: one on each device, whose segments the lanes of the recording share.
//!
//! A lane asks for a segment when its last one is full, and writes to it alone. Where the next one lies is decided here:
//! on the lane's home device, or on another one that has less to do or more space left.

#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::disk::Disk;
use super::losses::wall_offset;
use super::{Existing, check_empty, name_bytes, random_id, unreadable_start};
use crate::context::Context;
use crate::error::{Error, Result};
use crate::lane::Lane;
use crate::log_scan::is_unreadable;
use crate::record::Losses;
use crate::storage::device::MAX_DEVICES;
use crate::sys::event::monotonic_ns;
use crate::unit_log::lanes::{LaneMark, MOST_LANES, find_lanes, header_len};
use crate::unit_log::scan::find_end;
use crate::unit_log::superblock::{Superblock, refuse_compat};

/// Segments between two superblocks.
const CHECKPOINT: u64 = 16;
/// A lane leaves its home device if that has so many segments more behind it than another one, measured by its length.
const UNEVEN: f64 = 2.0;
/// A device that has failed is tried again after this time.
const TRY_AGAIN: Duration = Duration::from_secs(1);
/// Where the device's number begins in a mark.
const MARK_DEVICE: u32 = 48;

/// Where a recording is stored, and what to do with an earlier one there.
#[derive(Debug, Clone, Copy)]
pub struct SetConfig {
    /// Of every device, in its own blocks.
    pub start_lba: u64,
    /// 0: to the end of each device.
    pub blocks: u64,
    pub wraps: bool,
    pub existing: Existing,
    /// How many lanes write.
    pub lanes: u16,
}

#[derive(Debug)]
pub struct LogSet {
    legs: Vec<Leg>,
    /// Of each lane: the sequence number that it begins with.
    first: Vec<u64>,
    /// Of each lane: its next sequence number when it last began a segment.
    next: Vec<AtomicU64>,
    losses: Mutex<SetLosses>,
}

/// The log on one device.
#[derive(Debug)]
struct Leg {
    /// What does not change: sizes, places, numbers.
    log: Superblock,
    state: Mutex<LegState>,
    /// Slots that were submitted and have not come back.
    backlog: AtomicU64,
    /// It has failed: nothing is begun here until it answers again.
    out: AtomicBool,
    /// How often it was taken out.
    outs: AtomicU64,
    /// When it was last tried; `None`: that has not ended yet.
    tried: Mutex<Option<Instant>>,
}

#[derive(Debug)]
struct LegState {
    superblock: Superblock,
    /// Generation of the newest segment; 0: none.
    newest: u64,
    checkpointed: u64,
    /// Places of segments that are open, or have writes in flight.
    used: BTreeMap<u64, Use>,
    /// Of each lane: the generation of its newest segment here.
    of_lanes: Vec<u64>,
}

/// Why a segment is not to be overwritten.
#[derive(Debug, Default, Clone, Copy)]
struct Use {
    /// Its lane has not given it back.
    open: bool,
    /// Writes in flight that are no packets'.
    marked: u32,
}

#[derive(Debug)]
struct SetLosses {
    /// Before this recording began.
    before: Losses,
    of_lanes: Vec<Losses>,
}

/// A segment that a lane has.
#[derive(Debug, Clone)]
pub struct Segment {
    pub device: u8,
    pub generation: u64,
    /// Of this lane's segment before on that device; 0: none.
    pub previous: u64,
    /// What its header says about all lanes; nothing if there is one.
    pub marks: Vec<LaneMark>,
}

/// What became of a request for a segment.
#[derive(Debug, Clone)]
pub enum Granted {
    Segment(Segment),
    /// All are full.
    Full,
    /// All that could be begun have writes in flight.
    Busy,
}

fn add_losses(sum: &mut Losses, more: &Losses) {
    sum.dropped = sum.dropped.saturating_add(more.dropped);
    sum.unrecorded = sum.unrecorded.saturating_add(more.unrecorded);
    sum.last = sum.last.max(more.last);
    if more.first != 0 && (sum.first == 0 || more.first < sum.first) {
        sum.first = more.first;
    }
}

/// What was found on a device where a log shall be.
struct Start {
    fresh: Superblock,
    found: Option<Superblock>,
}

impl LogSet {
    /// Opens the logs on all devices of the context. The caller's thread reads and writes through the lane, whose roles
    /// must be free. Nothing is written before all devices were looked at.
    ///
    /// `EINVAL`: no log fits, or there is one with other sizes or of version 1, or the devices do not belong together.
    /// `EEXIST`: the range holds something else, and neither `existing` nor the context allows overwriting it.
    pub fn open(context: &Context, lane: &Lane, config: &SetConfig) -> Result<LogSet> {
        let info = context.info();
        let now = wall_offset().wrapping_add(monotonic_ns());
        let disks = disks(context, lane);
        let set_id = random_id(now);
        let mut starts = Vec::new();
        for disk in &disks {
            let limits = &disk.about().limits;
            let blocks = match config.blocks {
                0 => limits.blocks.saturating_sub(config.start_lba),
                blocks => blocks,
            };
            let fresh = Superblock {
                device: disk.device.into(),
                devices: disks.len() as u16,
                lanes: config.lanes,
                interface: name_bytes(context.ifname()),
                ..Superblock::new(
                    set_id,
                    now,
                    limits.block_size,
                    info.frame_size,
                    config.start_lba,
                    blocks,
                    config.wraps,
                )
                .map_err(|error| {
                    error.hint(format_args!("the device is '{}'", disk.about().path))
                })?
            };
            let needed = header_len(config.lanes.into());
            if needed > info.frame_size as usize || usize::from(config.lanes) > MOST_LANES {
                return Err(Error::new(
                    libc::EINVAL,
                    format!("{} lanes: a log has at most {MOST_LANES}", config.lanes),
                ));
            }
            let least = u64::from(config.lanes) + 1;
            if config.lanes > 1 && fresh.segments < least {
                return Err(Error::new(
                    libc::EINVAL,
                    format!(
                        "the range on '{}' has room for {} segments, and {} lanes need at least {least}: give a longer one",
                        disk.about().path,
                        fresh.segments,
                        config.lanes
                    ),
                ));
            }
            starts.push(Start {
                found: find(disk, &fresh, config.existing)?,
                fresh,
            });
        }
        let continues = config.existing == Existing::Continue
            && starts.iter().any(|start| start.found.is_some());
        if continues {
            check_set(&disks, &starts)?;
        } else if config.existing == Existing::Continue {
            for (disk, start) in disks.iter().zip(&starts) {
                if !disk.about().forced {
                    let fresh = start.fresh;
                    check_empty(disk, fresh.slots(), |slot| fresh.lba_of_slot(slot))?;
                }
            }
        }
        // Those of earlier recordings too: their sequence numbers go on when there are as many lanes again.
        let known = starts.iter().filter_map(|start| start.found);
        let lanes = known
            .filter(|_| continues)
            .map(|found| found.lanes)
            .fold(config.lanes, u16::max);
        let lanes = usize::from(lanes);
        let mut first = vec![0; lanes];
        let mut before = Losses::default();
        let mut legs = Vec::new();
        for (disk, start) in disks.iter().zip(starts) {
            let mut state = LegState {
                superblock: Superblock {
                    lanes: lanes as u16,
                    ..start.fresh
                },
                newest: 0,
                checkpointed: 0,
                used: BTreeMap::new(),
                of_lanes: vec![0; lanes],
            };
            match start.found.filter(|_| continues) {
                Some(old) => state.go_on(disk, old, config, &mut first)?,
                // Of an earlier log none of the two copies must survive.
                None => {
                    state.superblock.generation = start.found.map_or(0, |old| old.generation + 1)
                }
            }
            let losses = state.superblock.losses;
            if losses.total() > before.total() {
                before = losses;
            }
            legs.push(Leg {
                log: state.superblock,
                state: Mutex::new(state),
                backlog: AtomicU64::new(0),
                out: AtomicBool::new(false),
                outs: AtomicU64::new(0),
                tried: Mutex::new(Some(Instant::now())),
            });
        }
        for (leg, disk) in legs.iter().zip(&disks) {
            let copies = if continues { 1 } else { 2 };
            for _ in 0..copies {
                leg.state.lock().write_superblock(disk)?;
            }
        }
        Ok(LogSet {
            legs,
            next: first.iter().map(|next| AtomicU64::new(*next)).collect(),
            first,
            losses: Mutex::new(SetLosses {
                before,
                of_lanes: vec![Losses::default(); lanes],
            }),
        })
    }

    pub fn devices(&self) -> usize {
        self.legs.len()
    }

    /// The properties of the log on a device, which do not change.
    pub fn log(&self, device: u8) -> &Superblock {
        &self.legs[device as usize].log
    }

    /// Whether one lane writes to one device.
    pub fn is_single(&self) -> bool {
        self.legs.len() == 1 && self.first.len() == 1
    }

    /// The sequence number of a lane's first packet.
    pub fn first_sequence(&self, lane: u16) -> u64 {
        self.first[usize::from(lane)]
    }

    /// Slots were submitted to a device.
    pub fn submitted(&self, device: u8, slots: u32) {
        let backlog = &self.legs[device as usize].backlog;
        backlog.fetch_add(slots.into(), Ordering::Relaxed);
    }

    /// They were not submitted after all.
    pub fn not_submitted(&self, device: u8, slots: u32) {
        let backlog = &self.legs[device as usize].backlog;
        backlog.fetch_sub(slots.into(), Ordering::Relaxed);
    }

    /// Slots came back from the devices.
    pub fn done(&self, slots: &[u64; MAX_DEVICES]) {
        for (leg, slots) in self.legs.iter().zip(slots) {
            if *slots > 0 {
                leg.backlog.fetch_sub(*slots, Ordering::Relaxed);
            }
        }
    }

    /// The home device of a lane, and the generation of the newest segment there.
    pub fn home(&self, lane: u16) -> (u8, u64) {
        let home = usize::from(lane) % self.legs.len();
        (home as u8, self.legs[home].state.lock().newest)
    }

    /// The devices on which a lane may begin a segment, the best one first.
    fn in_order(&self, lane: u16) -> Vec<u8> {
        struct Choice {
            device: u8,
            backlog: u64,
            segment: u64,
            length: f64,
            fill: f64,
        }
        let all_out = (0u8..)
            .zip(&self.legs)
            .all(|(device, _)| self.is_out(device));
        let choices: Vec<Choice> = (0u8..)
            .zip(&self.legs)
            // If none is left, they fail where they are counted.
            .filter(|(device, _)| all_out || !self.is_out(*device))
            .map(|(device, leg)| Choice {
                device,
                backlog: leg.backlog.load(Ordering::Relaxed),
                segment: leg.log.segment_slots.into(),
                length: leg.log.segments as f64,
                fill: leg.state.lock().newest as f64 / leg.log.segments as f64,
            })
            .collect();
        let home = (usize::from(lane) % self.legs.len()) as u8;
        let least = choices.iter().map(|c| c.backlog).min().unwrap_or(0);
        let emptiest = choices.iter().map(|c| c.fill).fold(f64::MAX, f64::min);
        let mut ranked: Vec<_> = choices
            .iter()
            .map(|c| {
                // Whole segments that it has more to do than the one that has least.
                let behind = (c.backlog - least) / c.segment;
                let uneven = ((c.fill - emptiest) * c.length / UNEVEN) as u64;
                let away = c.device.wrapping_sub(home) % self.legs.len() as u8;
                (behind, uneven, away, c.device)
            })
            .collect();
        ranked.sort_unstable();
        ranked.into_iter().map(|(.., device)| device).collect()
    }

    /// The next segment of a lane, whose next packet gets the sequence number `next`.
    pub fn begin_segment(&self, lane: u16, next: u64) -> Granted {
        self.next[usize::from(lane)].store(next, Ordering::Relaxed);
        let mut full = true;
        for device in self.in_order(lane) {
            let leg = &self.legs[device as usize];
            match leg.state.lock().take(lane, &self.next, self.is_single()) {
                Granted::Segment(segment) => {
                    return Granted::Segment(Segment { device, ..segment });
                }
                Granted::Full => {}
                Granted::Busy => full = false,
            }
        }
        match full {
            true => Granted::Full,
            false => Granted::Busy,
        }
    }

    /// Whether a device has failed, and has not answered since.
    pub fn is_out(&self, device: u8) -> bool {
        self.legs[device as usize].out.load(Ordering::Relaxed)
    }

    /// Whether writes that this device fails can go to another one.
    pub fn has_other(&self, device: u8) -> bool {
        let mut others = (0u8..).zip(&self.legs);
        others.any(|(other, leg)| other != device && !leg.out.load(Ordering::Relaxed))
    }

    /// A device has failed: nothing more is begun there. `true` if that is new.
    pub fn take_out(&self, device: u8) -> bool {
        let leg = &self.legs[device as usize];
        let is_new = !leg.out.swap(true, Ordering::AcqRel);
        if is_new {
            leg.outs.fetch_add(1, Ordering::AcqRel);
            // Later failures tell nothing new: least of all that a try has ended which is still under way.
            *leg.tried.lock() = Some(Instant::now());
        }
        is_new
    }

    /// How often a device was taken out.
    pub fn times_out(&self, device: u8) -> u64 {
        self.legs[device as usize].outs.load(Ordering::Acquire)
    }

    /// The device whose log has this tag.
    pub fn device_of(&self, tag: u32) -> Option<u8> {
        let of = |(_, leg): &(u8, &Leg)| leg.log.tag() == tag;
        (0u8..).zip(&self.legs).find(of).map(|(device, _)| device)
    }

    /// A device that is out and is to be tried now. The caller tells `tried` what became of it.
    pub fn wants_try(&self) -> Option<u8> {
        let due = |leg: &Leg| {
            let mut tried = leg.tried.lock();
            let due = tried.is_some_and(|at| at.elapsed() >= TRY_AGAIN);
            if due {
                *tried = None;
            }
            due
        };
        let found = (0u8..)
            .zip(&self.legs)
            .find(|(_, leg)| leg.out.load(Ordering::Relaxed) && due(leg));
        found.map(|(device, _)| device)
    }

    /// Whether a device answered that was tried. `true` if it is in again.
    pub fn tried(&self, device: u8, good: bool) -> bool {
        let Some(leg) = self.legs.get(device as usize) else {
            return false;
        };
        *leg.tried.lock() = Some(Instant::now());
        good && leg.out.swap(false, Ordering::Relaxed)
    }

    /// A lane writes no more to a segment, and its packets there have come back.
    pub fn release(&self, device: u8, generation: u64) {
        self.change_use(device, generation, |used| used.open = false);
    }

    /// A write that is no packet's was submitted to a segment.
    pub fn mark_submitted(&self, mark: u64) {
        self.change_marks(mark, |marked| marked + 1);
    }

    /// It came back, or was not submitted after all.
    pub fn mark_done(&self, mark: u64) {
        self.change_marks(mark, |marked| marked.saturating_sub(1));
    }

    /// Keeps the segment that a block is in from being overwritten, until `mark_done` gets what this returns. `None`: there is
    /// no segment.
    pub fn keep_place(&self, device: u8, lba: u64) -> Option<u64> {
        let log = &self.legs.get(usize::from(device))?.log;
        let blocks = u64::from(log.slot_size / log.block_size);
        let slot = lba.checked_sub(log.lba_of_slot(log.slot_of(1, 0)))? / blocks;
        let place = slot / u64::from(log.segment_slots);
        let mark = LogSet::mark(device, place + 1);
        self.mark_submitted(mark);
        Some(mark)
    }

    fn change_marks(&self, mark: u64, change: impl FnOnce(u32) -> u32) {
        let (device, generation) = ((mark >> MARK_DEVICE) as u8, mark & ((1 << MARK_DEVICE) - 1));
        if usize::from(device) < self.legs.len() {
            self.change_use(device, generation, |used| used.marked = change(used.marked));
        }
    }

    /// A number for the writes of a segment that are no packets'. Less than `1 << 52`.
    pub fn mark(device: u8, generation: u64) -> u64 {
        u64::from(device) << MARK_DEVICE | generation & ((1 << MARK_DEVICE) - 1)
    }

    fn change_use(&self, device: u8, generation: u64, change: impl FnOnce(&mut Use)) {
        let leg = &self.legs[device as usize];
        let place = place_of(&leg.log, generation);
        let mut state = leg.state.lock();
        if let Some(used) = state.used.get_mut(&place) {
            change(used);
            if !used.open && used.marked == 0 {
                state.used.remove(&place);
            }
        }
    }

    /// Whether a superblock is due on a device. `failed`: writes that failed since the last one.
    pub fn wants_checkpoint(&self, device: u8, failed: u64) -> bool {
        let often = if failed == 0 { CHECKPOINT } else { 1 };
        let state = self.legs[device as usize].state.lock();
        state.newest - state.checkpointed >= often
    }

    /// What a lane has lost since it began. Returns whether the superblock of a device does not know all of it.
    pub fn look_at_losses(&self, lane: u16, known: Losses, device: u8) -> bool {
        self.losses.lock().of_lanes[usize::from(lane)] = known;
        let total = self.total_losses();
        self.legs[device as usize].state.lock().superblock.losses != total
    }

    fn total_losses(&self) -> Losses {
        let losses = self.losses.lock();
        let mut total = losses.before;
        for lane in &losses.of_lanes {
            add_losses(&mut total, lane);
        }
        total
    }

    /// The next superblock of a device.
    pub fn checkpoint(&self, device: u8) -> Superblock {
        let losses = self.total_losses();
        let mut state = self.legs[device as usize].state.lock();
        state.checkpointed = state.newest;
        state.superblock.generation += 1;
        state.superblock.losses = losses;
        state.superblock.newest = state.newest;
        state.superblock
    }

    /// How many times the log on a device has begun again at its start.
    pub fn wraps(&self) -> u64 {
        let wraps = |leg: &Leg| leg.state.lock().newest.saturating_sub(1) / leg.log.segments;
        self.legs.iter().map(wraps).sum()
    }
}

fn place_of(log: &Superblock, generation: u64) -> u64 {
    generation.wrapping_sub(1) % log.segments
}

impl LegState {
    /// Gives a segment to a lane. One that others still write to is left out, and keeps what it holds.
    fn take(&mut self, lane: u16, next: &[AtomicU64], single: bool) -> Granted {
        let log = &self.superblock;
        let last = match log.wraps {
            true => u64::MAX,
            false => log.segments,
        };
        let mut generation = self.newest + 1;
        if !single {
            let end = generation + log.segments;
            while generation < end && self.used.contains_key(&place_of(log, generation)) {
                generation += 1;
            }
        }
        if generation > last {
            return Granted::Full;
        }
        let place = place_of(log, generation);
        if self.used.contains_key(&place) {
            return Granted::Busy;
        }
        let used = Use {
            open: true,
            marked: 0,
        };
        self.used.insert(place, used);
        self.newest = generation;
        let own = &mut self.of_lanes[usize::from(lane)];
        let previous = std::mem::replace(own, generation);
        let mark = |(next, segment): (&AtomicU64, &u64)| LaneMark {
            next: next.load(Ordering::Relaxed),
            segment: *segment,
        };
        Granted::Segment(Segment {
            device: 0,
            generation,
            previous,
            // A log of its own needs none.
            marks: match single {
                true => Vec::new(),
                false => next.iter().zip(&self.of_lanes).map(mark).collect(),
            },
        })
    }

    /// Continues an existing log, in new segments.
    fn go_on(
        &mut self,
        disk: &Disk,
        old: Superblock,
        config: &SetConfig,
        first: &mut [u64],
    ) -> Result<()> {
        check_sizes(disk, &old, &self.superblock)?;
        refuse_compat(&old, &disk.about().path)?;
        let lanes = self.superblock.lanes;
        self.superblock = Superblock {
            wraps: config.wraps,
            interface: self.superblock.interface,
            lanes,
            ..old
        };
        let log = Superblock {
            lanes: old.lanes,
            ..self.superblock
        };
        let spill = disk.spill()?;
        let mut read = |slot, count| {
            let mut slots = disk.read(log.lba_of_slot(slot), count)?;
            if let Some(spill) = &spill {
                log.mend(spill, slot, slots.iter_mut().map(Vec::as_mut_slice))?;
            }
            Ok(slots)
        };
        if lanes == 1 && old.devices == 1 {
            let end = find_end(&log, read)?;
            self.newest = end.newest_generation;
            first[0] = end.next_sequence;
        } else {
            let end = find_lanes(&log, &mut read)?;
            self.newest = end.newest;
            for (first, found) in first.iter_mut().zip(&end.lanes) {
                *first = (*first).max(found.next);
            }
            for (own, found) in self.of_lanes.iter_mut().zip(&end.lanes) {
                *own = found.segment;
            }
        }
        self.checkpointed = self.newest;
        self.superblock.newest = self.newest;
        Ok(())
    }

    fn write_superblock(&mut self, disk: &Disk) -> Result<()> {
        self.superblock.generation += 1;
        let lba = self.superblock.super_lba(self.superblock.generation);
        disk.write(lba, &self.superblock.to_bytes())
    }
}

fn disks<'a>(context: &'a Context, lane: &'a Lane) -> Vec<Disk<'a>> {
    let count = context.info().devices.len() as u8;
    let disk = |device| Disk {
        context,
        lane,
        device,
    };
    (0..count).map(disk).collect()
}

/// The newest superblock where a log shall be.
fn find(disk: &Disk, fresh: &Superblock, existing: Existing) -> Result<Option<Superblock>> {
    let path = &disk.about().path;
    let copies = disk.read(fresh.super_lba(0), 2)?;
    let found = copies
        .iter()
        .filter_map(|copy| Superblock::read(copy))
        .max_by_key(|superblock| superblock.generation);
    if existing == Existing::Continue {
        for copy in &copies {
            Superblock::refuse_others(copy, path)?;
        }
        if found.is_none() && copies.iter().any(|copy| is_unreadable(copy)) {
            return Err(unreadable_start(path, fresh.start_lba));
        }
    }
    Ok(found)
}

/// Refuses devices that are not those of one recording, in its order.
fn check_set(disks: &[Disk], starts: &[Start]) -> Result<()> {
    let hint =
        "give the devices of one recording in their order, or begin a new one with UNIFIED_LOG_NEW";
    let refuse = |text: String| Err(Error::new(libc::EINVAL, format!("{text}; {hint}")));
    let name = |number: usize| format!("'{}'", disks[number].about().path);
    let first = starts.iter().find_map(|start| start.found);
    let holder = starts.iter().position(|start| start.found.is_some());
    let (Some(first), Some(holder)) = (first, holder) else {
        return Ok(());
    };
    for (number, start) in starts.iter().enumerate() {
        let Some(found) = start.found else {
            return refuse(format!(
                "{} holds no log, and {} one of a recording on {} devices",
                name(number),
                name(holder),
                first.devices
            ));
        };
        if found.set_id != first.set_id {
            return refuse(format!(
                "{} and {} belong to different recordings ({:016x} and {:016x})",
                name(holder),
                name(number),
                first.set_id,
                found.set_id
            ));
        }
        if usize::from(found.devices) != starts.len() {
            return refuse(format!(
                "{} belongs to a recording on {} devices, and {} are given",
                name(number),
                found.devices,
                starts.len()
            ));
        }
        if usize::from(found.device) != number {
            return refuse(format!(
                "{} is device {} of its recording, and was given as device {number}",
                name(number),
                found.device
            ));
        }
    }
    Ok(())
}

/// Refuses a log with other sizes than the one that would be begun.
fn check_sizes(disk: &Disk, old: &Superblock, new: &Superblock) -> Result<()> {
    let sizes = |s: &Superblock| {
        (
            s.block_size,
            s.slot_size,
            s.start_lba,
            s.segments,
            s.segment_slots,
        )
    };
    if sizes(old) == sizes(new) {
        return Ok(());
    }
    Err(Error::new(
        libc::EINVAL,
        format!(
            "'{}' holds a log of {} segments of {} slots of {} bytes at block {} (blocks of {}), and this one would be {} \
             of {} of {} at {} (blocks of {}): give the same range and frame size, or replace it",
            disk.about().path,
            old.segments,
            old.segment_slots,
            old.slot_size,
            old.start_lba,
            old.block_size,
            new.segments,
            new.segment_slots,
            new.slot_size,
            new.start_lba,
            new.block_size
        ),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A log of four segments on each of two devices.
    fn set(start_lba: u64) -> LogSet {
        let leg = |device: u16| {
            let log = Superblock::new(5, 1, 512, 2048, start_lba, 1 << 20, true).unwrap();
            let superblock = Superblock {
                device,
                devices: 2,
                segments: 4,
                segment_slots: 16,
                ..log
            };
            Leg {
                log: superblock,
                state: Mutex::new(LegState {
                    superblock,
                    newest: 0,
                    checkpointed: 0,
                    used: BTreeMap::new(),
                    of_lanes: vec![0],
                }),
                backlog: AtomicU64::new(0),
                out: AtomicBool::new(false),
                outs: AtomicU64::new(0),
                tried: Mutex::new(None),
            }
        };
        LogSet {
            legs: vec![leg(0), leg(1)],
            first: vec![0],
            next: vec![AtomicU64::new(0)],
            losses: Mutex::new(SetLosses {
                before: Losses::default(),
                of_lanes: vec![Losses::default()],
            }),
        }
    }

    fn begin(set: &LogSet) -> (u8, u64) {
        match set.begin_segment(0, 0) {
            Granted::Segment(segment) => (segment.device, segment.generation),
            other => panic!("{other:?}"),
        }
    }

    /// A write without an answer may still go to its segment, which the lane has given back since: it is not overwritten.
    #[test]
    fn the_place_of_a_write_without_an_answer_is_kept() {
        for start_lba in [0, 1000] {
            let set = set(start_lba);
            set.take_out(1);
            assert_eq!(begin(&set), (0, 1));
            assert_eq!(begin(&set), (0, 2));
            for slot in [0, 15] {
                let mark = set.keep_place(0, set.log(0).lba_of(2, slot)).unwrap();
                assert_eq!(mark, LogSet::mark(0, 2));
            }
            (1..=2).for_each(|generation| set.release(0, generation));
            for generation in [3, 4, 5, 7, 8, 9] {
                assert_eq!(begin(&set), (0, generation), "6 is the place of 2");
                set.release(0, generation);
            }
            set.mark_done(LogSet::mark(0, 2));
            assert_eq!(begin(&set), (0, 11), "one of the two is still there");
            set.mark_done(LogSet::mark(0, 2));
            for generation in [12, 13, 14] {
                assert_eq!(begin(&set), (0, generation));
            }
            assert_eq!(set.keep_place(0, start_lba), None, "a superblock");
        }
    }

    #[test]
    fn a_device_that_is_tried_is_not_tried_again_before_that_has_ended() {
        let set = set(0);
        assert!(set.take_out(1) && !set.take_out(1));
        assert_eq!(set.wants_try(), None);
        let due = || *set.legs[1].tried.lock() = Some(Instant::now() - TRY_AGAIN);
        due();
        assert_eq!(set.wants_try(), Some(1));
        // More of its writes fail meanwhile.
        assert!(!set.take_out(1));
        assert!(set.legs[1].tried.lock().is_none());
        assert!(!set.tried(1, false));
        due();
        assert_eq!(set.wants_try(), Some(1));
        assert!(set.tried(1, true) && !set.is_out(1));
        assert_eq!((set.times_out(0), set.times_out(1)), (0, 1));
        assert_eq!(set.device_of(set.log(1).tag()), Some(1));
    }
}
