//! A device of a recording fails: what it did not store goes to another one, from the same frames, and it is tried again until
//! it answers.
//!
//! Writes that it failed come back with their frames. Those that it does not answer stay in flight, and are written to another
//! device meanwhile: their frames are free when both writes have ended. The storage thread finds them and keeps the account
//! (`Rescues`); the packet thread writes them.

#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::packets::Packets;
use super::runs::FailedRun;
use super::window::Window;
use super::write_target::WriteTarget;
use super::{FLUSH, Progress, RESCUE, SEGMENT, SERIAL, SERIAL_SHIFT, SUPERBLOCK, TRY};
use crate::context::Context;
use crate::error::Result;
use crate::lane::{Completion, Lane};
use crate::log::{self, Level};
use crate::recorder::LogSet;
use crate::storage::command::{status, status_text};
use crate::storage::device::MAX_DEVICES;
use crate::storage::engine::Stuck;
use crate::unit_log::unit::{SlotHeader, UnitHeader};

/// Time between two looks for writes without an answer.
const LOOK: Duration = Duration::from_secs(1);
/// A run that no other device takes is tried again after this time, then after twice as long, and so on.
const AGAIN: Duration = Duration::from_secs(1);
const LONGEST_AGAIN: Duration = Duration::from_secs(60);

/// A unit that was not stored.
struct Lost {
    frame: u32,
    slot: SlotHeader,
    unit: UnitHeader,
    /// The one that its headers name.
    device: u8,
    /// Of its run, whose frames are still in flight; `None`: the packet thread holds them.
    held: Option<Attempt>,
}

/// One time that a run is written elsewhere: the number of its first packet, and a count of such times.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Attempt {
    number: u64,
    count: u64,
}

impl Attempt {
    /// In the `user_data` of a write.
    fn read(user_data: u64) -> Attempt {
        Attempt {
            number: user_data & !(RESCUE | SERIAL),
            count: (user_data & SERIAL) >> SERIAL_SHIFT,
        }
    }

    fn user_data(self) -> u64 {
        RESCUE | self.count << SERIAL_SHIFT & SERIAL | self.number
    }

    fn is(self, rescue: &Rescue) -> bool {
        self.user_data() == rescue.attempt().user_data()
    }
}

/// A run whose write has no answer, and which is written again.
#[derive(Debug, Clone)]
struct Rescue {
    run: FailedRun,
    /// Keeps its place from being overwritten as long as the write without an answer may go there.
    place: Option<u64>,
    /// Attempts before this one, and parts of them that have not ended: a device did not answer those either.
    attempts: u64,
    left: u32,
    /// The packet thread has begun the attempt, and so many parts of it have not ended.
    submitted: bool,
    pending: u32,
    bad: bool,
    /// The device that one of the parts was written to last, and the one that failed it; and the last one that ever did.
    device: Option<u8>,
    failed_on: Option<u8>,
    blamed: Option<u8>,
    /// Its headers name another place than that of the write without an answer, which may have stored them so.
    moved: bool,
    /// Somebody wrote to its frames: there are no headers.
    broken: bool,
    /// Segments that parts were written to: not overwritten before those have ended.
    places: Vec<u64>,
    /// No other device takes it: when it is tried again, and the time until then.
    waits: Option<Instant>,
    delay: Duration,
    /// One of the writes was good: its packets are stored.
    stored: bool,
    /// The write without an answer has ended after all; and whether it was good.
    answered: Option<bool>,
    /// There are no more attempts; and the lane was told.
    ended: bool,
    told: bool,
}

impl Rescue {
    fn new(run: FailedRun, place: Option<u64>) -> Rescue {
        Rescue {
            run,
            place,
            attempts: 0,
            left: 0,
            submitted: false,
            pending: 0,
            bad: false,
            device: None,
            failed_on: None,
            blamed: None,
            moved: false,
            broken: false,
            places: Vec::new(),
            waits: None,
            delay: AGAIN,
            stored: false,
            answered: None,
            ended: false,
            told: false,
        }
    }

    fn attempt(&self) -> Attempt {
        Attempt {
            number: self.run.number,
            count: self.attempts,
        }
    }

    /// The packet thread is to try it again.
    fn try_again(&mut self, progress: &Progress) {
        self.left += self.pending;
        self.pending = 0;
        self.attempts += 1;
        (self.submitted, self.bad, self.waits) = (false, false, None);
        progress.stuck_runs.push(self.run);
    }

    /// Its packets are stored on a device.
    fn store(&mut self, device: u8, window: &mut Window, decided: &mut Decided) {
        self.stored = true;
        let packets = u64::from(self.run.packets);
        decided.stored += packets;
        decided.unflushed[usize::from(device)] += packets;
        window.complete(self.run.number, self.run.packets);
    }
}

/// Runs that are written twice, by the number of their first packet.
#[derive(Debug, Default)]
pub(super) struct Rescues {
    /// Looked at without the lock.
    some: AtomicBool,
    runs: Mutex<BTreeMap<u64, Rescue>>,
}

impl Rescues {
    fn change(&self, number: u64, change: impl FnOnce(&mut Rescue)) {
        if let Some(rescue) = self.runs.lock().get_mut(&number) {
            change(rescue);
        }
    }

    /// Whether none is being written elsewhere. Their devices may still not have answered.
    pub fn are_written(&self) -> bool {
        !self.some.load(Ordering::Relaxed) || self.runs.lock().values().all(|rescue| rescue.told)
    }

    /// The packet thread begins an attempt of so many parts. `None`: there is nothing to write any more.
    fn begin(&self, number: u64, parts: u32, broken: bool) -> Option<Attempt> {
        let mut runs = self.runs.lock();
        let rescue = runs.get_mut(&number)?;
        (rescue.submitted, rescue.pending) = (true, parts);
        rescue.bad |= broken;
        rescue.broken |= broken;
        Some(rescue.attempt())
    }

    /// Whether a part is to be written, in a segment of this mark: then its headers are about to change.
    fn begins_part(&self, attempt: Attempt, mark: u64) -> bool {
        let mut runs = self.runs.lock();
        let rescue = runs.get_mut(&attempt.number);
        let Some(rescue) = rescue.filter(|rescue| attempt.is(rescue) && !rescue.stored) else {
            return false;
        };
        rescue.moved = true;
        rescue.places.push(mark);
        true
    }

    /// A part has ended, or was not written. `device`: the one that it was written to, if it was.
    fn end_part(&self, attempt: Attempt, good: bool, device: Option<u8>) {
        self.change(attempt.number, |rescue| {
            if !attempt.is(rescue) {
                // What became of it is of no interest: its headers have changed since.
                rescue.left = rescue.left.saturating_sub(1);
                return;
            }
            rescue.pending = rescue.pending.saturating_sub(1);
            rescue.bad |= !good;
            rescue.device = device.or(rescue.device);
            if !good {
                rescue.failed_on = device.or(rescue.failed_on);
            }
        });
    }
}

/// What the storage thread knows of writes without an answer.
pub(super) struct Stall {
    looked: Instant,
    /// Writes that are no packets', for which nobody waits any more: their `user_data` and device.
    abandoned: Vec<(u64, u8)>,
}

/// What a batch of completions has decided.
#[derive(Debug, Default)]
pub(super) struct Decided {
    pub stored: u64,
    pub failed: u64,
    /// Frames that are free again.
    pub frames: u64,
    /// Packets that are stored and not flushed, of each device.
    pub unflushed: [u64; MAX_DEVICES],
}

impl Stall {
    pub fn new() -> Stall {
        Stall {
            looked: Instant::now(),
            abandoned: Vec::new(),
        }
    }

    /// Whether nobody waits any more for this write, which has ended now.
    pub fn was_abandoned(&mut self, completion: &Completion) -> bool {
        let this = (completion.user_data, completion.device);
        let place = self.abandoned.iter().position(|known| *known == this);
        place
            .map(|place| self.abandoned.swap_remove(place))
            .is_some()
    }

    /// Looks for writes that have no answer, after a batch of completions was taken and decided.
    pub fn look(
        &mut self,
        context: &Context,
        lane: &Lane,
        progress: &Progress,
        window: &Window,
        batch: &[Completion],
    ) -> Result<()> {
        let Some(set) = progress.set.as_ref().filter(|set| set.devices() > 1) else {
            return Ok(());
        };
        let shared = lane.engine_shared();
        if self.looked.elapsed() >= LOOK {
            self.looked = Instant::now();
            shared.look_for_stuck();
            wake_those_that_wait(progress, set);
        }
        for stuck in shared.take_stuck() {
            let number = stuck.user_data;
            // The engine reports before it completes: what was answered after all is in this batch.
            let answered =
                |done: &Completion| (done.user_data, done.device) == (number, stuck.device);
            // A device that is tried is out already, and a flush ends without it.
            if number & (FLUSH | TRY) != 0 || batch.iter().any(answered) {
                continue;
            }
            if number & RESCUE != 0 {
                leave(context, progress, set, &stuck);
            } else if number & (SUPERBLOCK | SEGMENT) != 0 {
                let this = (number, stuck.device);
                if self.abandoned.contains(&this) {
                    continue;
                }
                if leaves_to_others(context, progress, set, stuck.device) {
                    progress.superblocks.fetch_sub(1, Ordering::AcqRel);
                    self.abandoned.push(this);
                }
            } else {
                begin_rescue(context, lane, progress, set, window, &stuck)?;
            }
        }
        Ok(())
    }
}

/// Has a run that its device does not answer written to another one, if there is one. It is reported again otherwise.
fn begin_rescue(
    context: &Context,
    lane: &Lane,
    progress: &Progress,
    set: &LogSet,
    window: &Window,
    stuck: &Stuck,
) -> Result<()> {
    let number = stuck.user_data;
    let mut runs = progress.rescues.runs.lock();
    if runs.contains_key(&number) {
        return Ok(());
    }
    let known = number < progress.submitted.load(Ordering::Acquire);
    let frame = context.info().frames().locate(stuck.offset);
    let (Some((first, _)), true, false) = (frame, known, window.is_complete(number)) else {
        return Ok(());
    };
    if !leaves_to_others(context, progress, set, stuck.device) {
        return Ok(());
    }
    let run = FailedRun {
        number,
        packets: lane.hold_for_rescue(first, stuck.frames)?,
        first,
        frames: stuck.frames,
        device: stuck.device,
        status: status::HOST_PATH_ERROR,
    };
    let place = set.keep_place(stuck.device, stuck.lba);
    runs.insert(number, Rescue::new(run, place));
    progress.rescues.some.store(true, Ordering::Relaxed);
    progress.stuck_runs.push(run);
    Ok(())
}

/// The device that took over does not answer either: a third one is tried, if there is one.
fn leave(context: &Context, progress: &Progress, set: &LogSet, stuck: &Stuck) {
    let attempt = Attempt::read(stuck.user_data);
    let mut runs = progress.rescues.runs.lock();
    let rescue = runs.get_mut(&attempt.number);
    let Some(rescue) = rescue.filter(|rescue| attempt.is(rescue) && !rescue.ended) else {
        return;
    };
    if leaves_to_others(context, progress, set, stuck.device) && !rescue.stored {
        rescue.try_again(progress);
    }
}

/// Runs that no device has taken are tried again.
fn wake_those_that_wait(progress: &Progress, set: &LogSet) {
    if !progress.rescues.some.load(Ordering::Relaxed) {
        return;
    }
    let now = Instant::now();
    for rescue in progress.rescues.runs.lock().values_mut() {
        if rescue.waits.is_some_and(|until| now >= until) && set.has_other(rescue.run.device) {
            rescue.delay = (rescue.delay * 2).min(LONGEST_AGAIN);
            rescue.try_again(progress);
        }
    }
}

/// The write of a run has ended that had no answer for long.
pub(super) fn answered(
    context: &Context,
    progress: &Progress,
    completion: &Completion,
    window: &mut Window,
    decided: &mut Decided,
) {
    let mut runs = progress.rescues.runs.lock();
    let Some(rescue) = runs.get_mut(&completion.user_data) else {
        return;
    };
    let run = rescue.run;
    let good = completion.status == status::SUCCESS;
    rescue.answered = Some(good);
    if let Some(set) = &progress.set {
        set.not_submitted(run.device, run.frames);
        if let Some(place) = rescue.place.take() {
            set.mark_done(place);
        }
    }
    // Nobody knows which headers it has written if they have changed.
    if good && !rescue.stored && !rescue.moved {
        rescue.store(run.device, window, decided);
    }
    if rescue.told {
        both_ended(context, progress, rescue, completion, window, decided);
        runs.remove(&run.number);
    }
}

/// Both writes of a run have ended, and its frames were settled.
fn both_ended(
    context: &Context,
    progress: &Progress,
    rescue: &Rescue,
    settled: &Completion,
    window: &mut Window,
    decided: &mut Decided,
) {
    let run = rescue.run;
    if settled.frame.is_none() {
        decided.frames += u64::from(settled.frames);
        if !rescue.stored {
            decided.failed += u64::from(run.packets);
            window.complete(run.number, run.packets);
        }
        return;
    }
    // The frames came back, and are written as those of other writes that failed.
    if rescue.answered == Some(true) {
        take_in(context, progress, run.device);
    }
    progress.failed_runs.push(match rescue.blamed {
        Some(device) => FailedRun {
            device,
            status: status::WRITE_FAULT,
            ..run
        },
        // It is no device's fault.
        None => FailedRun {
            status: status::SUCCESS,
            ..run
        },
    });
}

/// A part of a run was written to another device.
pub(super) fn part_ended(progress: &Progress, completion: &Completion) {
    let attempt = Attempt::read(completion.user_data);
    let good = completion.status == status::SUCCESS;
    let rescues = &progress.rescues;
    rescues.end_part(attempt, good, Some(completion.device));
}

/// Ends what was written again as a whole.
pub(super) fn end_rescues(
    context: &Context,
    lane: &Lane,
    progress: &Progress,
    window: &mut Window,
    decided: &mut Decided,
) {
    if !progress.rescues.some.load(Ordering::Relaxed) {
        return;
    }
    let Some(set) = &progress.set else {
        return;
    };
    let nobody_writes = progress.packets_done.load(Ordering::Acquire);
    let mut runs = progress.rescues.runs.lock();
    let mut done = Vec::new();
    for rescue in runs.values_mut() {
        if rescue.ended {
        } else if rescue.submitted && rescue.pending == 0 && rescue.waits.is_none() {
            end_attempt(context, progress, set, rescue, window, decided);
        } else if !rescue.submitted && nobody_writes {
            rescue.ended = true;
        }
        if rescue.waits.is_some() && (rescue.answered.is_some() || nobody_writes) {
            (rescue.waits, rescue.ended) = (None, true);
        }
        if !rescue.ended || rescue.left > 0 || rescue.told {
            continue;
        }
        rescue.told = true;
        rescue.places.drain(..).for_each(|mark| set.mark_done(mark));
        if let Some(settled) = lane.rescued(rescue.run.first, rescue.stored, rescue.moved) {
            both_ended(context, progress, rescue, &settled, window, decided);
            done.push(rescue.run.number);
        }
    }
    for number in done {
        runs.remove(&number);
    }
    progress
        .rescues
        .some
        .store(!runs.is_empty(), Ordering::Relaxed);
}

/// All parts of an attempt have ended.
fn end_attempt(
    context: &Context,
    progress: &Progress,
    set: &LogSet,
    rescue: &mut Rescue,
    window: &mut Window,
    decided: &mut Decided,
) {
    let run = rescue.run;
    if !rescue.bad && !rescue.stored {
        rescue.store(rescue.device.unwrap_or(run.device), window, decided);
    }
    let failed_on = rescue.failed_on.take();
    if let Some(device) = failed_on {
        take_out(context, progress, set, device, status::WRITE_FAULT);
        rescue.blamed = failed_on;
    }
    if rescue.stored || rescue.broken || rescue.answered.is_some() {
        rescue.ended = true;
    } else if failed_on.is_some_and(|device| set.has_other(device)) {
        rescue.try_again(progress);
    } else {
        rescue.waits = Some(Instant::now() + rescue.delay);
    }
}

/// A device does not answer, and is taken out. Whether another one can take what it was given.
fn leaves_to_others(context: &Context, progress: &Progress, set: &LogSet, device: u8) -> bool {
    take_out(context, progress, set, device, status::HOST_PATH_ERROR);
    set.has_other(device)
}

/// Tells the engines of the recording's lanes whether a device is out.
fn set_out(context: &Context, progress: &Progress, device: u8, out: bool) {
    for lane in &context.lanes()[progress.lanes.clone()] {
        lane.engine_shared().set_out(device, out);
    }
}

/// Nothing more is written to a device. Says so once.
pub(super) fn take_out(
    context: &Context,
    progress: &Progress,
    set: &LogSet,
    device: u8,
    status: u16,
) {
    if !set.has_other(device) || !set.take_out(device) {
        return;
    }
    set_out(context, progress, device, true);
    let about = &context.info().devices[usize::from(device)];
    log::log(
        Level::Error,
        format_args!(
            "device {device} '{}' has failed ({}): what it did not store goes to the other devices, and it is tried again \
             every second",
            about.path,
            status_text(status)
        ),
    );
}

/// What became of a device that was tried.
pub(super) fn tried(context: &Context, progress: &Progress, completion: &Completion) {
    let Some(set) = &progress.set else {
        return;
    };
    progress.trying.fetch_sub(1, Ordering::AcqRel);
    let device = (completion.user_data & !TRY) as u8;
    let good = completion.status == status::SUCCESS && !completion.spilled;
    match good {
        true => take_in(context, progress, device),
        false => {
            set.tried(device, false);
        }
    }
}

/// A device works: it is used again if it was out.
fn take_in(context: &Context, progress: &Progress, device: u8) {
    let Some(set) = &progress.set else {
        return;
    };
    if set.tried(device, true) {
        set_out(context, progress, device, false);
        let about = &context.info().devices[usize::from(device)];
        log::log(
            Level::Warn,
            format_args!(
                "device {device} '{}' answers again, and is used again",
                about.path
            ),
        );
    }
}

impl<'a> Packets<'a> {
    fn set(&self) -> Option<&LogSet> {
        self.progress.set.as_deref()
    }

    /// Whether what a device fails can go elsewhere.
    pub(super) fn has_many_devices(&self) -> bool {
        self.set().is_some_and(|set| set.devices() > 1)
    }

    /// Tries a device that has failed, if it is time for that.
    pub(super) fn try_devices(&mut self) -> Result<()> {
        if !self.has_many_devices() {
            return Ok(());
        }
        let Some(device) = self.set().and_then(LogSet::wants_try) else {
            return Ok(());
        };
        let lane = self.lane;
        let mut rx_side = lane.lock_rx_side()?;
        let frame = lane.allocate_run(&mut rx_side, 1)?;
        let (Some((frame, _)), WriteTarget::Units(log)) = (frame, &mut self.target) else {
            if let Some(set) = self.set() {
                set.tried(device, false);
            }
            return Ok(());
        };
        let mut write = log.try_device(frame, device);
        write.user_data = TRY | u64::from(device);
        self.progress.trying.fetch_add(1, Ordering::AcqRel);
        match self.queue_run(rx_side, 0, &write) {
            Ok(mut rx_side) => {
                self.filling.submitted += 1;
                lane.kick(&mut rx_side);
                Ok(())
            }
            Err(error) => {
                self.progress.trying.fetch_sub(1, Ordering::AcqRel);
                self.release(frame..frame + 1);
                Err(error)
            }
        }
    }

    /// Stores elsewhere what a device has failed to store, or does not answer.
    pub(super) fn rescue(&mut self, failed: &[FailedRun], in_flight: bool) -> Result<()> {
        let mut lost = Vec::new();
        for run in failed {
            // One that does not answer was taken out when that was noticed, and may have answered since.
            if !in_flight
                && run.status != status::SUCCESS
                && let Some(set) = self.set()
            {
                take_out(self.context, self.progress, set, run.device, run.status);
            }
            let begin = lost.len();
            let mut broken = false;
            let mut frame = run.first;
            while frame < run.first + run.frames {
                let Some((slot, unit)) = self.units().unit_in(frame) else {
                    // Somebody wrote to the frame: what it holds is no packet any more.
                    broken = true;
                    break;
                };
                let device = self.set().and_then(|set| set.device_of(slot.tag));
                lost.push(Lost {
                    frame,
                    slot,
                    unit,
                    device: device.unwrap_or(run.device),
                    held: None,
                });
                frame += u32::from(slot.slots);
            }
            if in_flight {
                let parts = (lost.len() - begin) as u32;
                let held = self.progress.rescues.begin(run.number, parts, broken);
                match held {
                    Some(_) => lost[begin..].iter_mut().for_each(|one| one.held = held),
                    None => lost.truncate(begin),
                }
            } else if broken {
                let written: u32 = lost[begin..].iter().map(|one| one.unit.records).sum();
                self.progress.failed_runs.give_up(FailedRun {
                    number: run.number + u64::from(written),
                    packets: run.packets.saturating_sub(written),
                    first: frame,
                    frames: run.first + run.frames - frame,
                    ..*run
                });
            }
        }
        lost.sort_by_key(|lost| lost.unit.first_sequence);
        // Another one may be under way, which waits for something.
        let begins = self.units().begin_rescue();
        let result = self.store_all_elsewhere(&lost);
        if begins {
            self.units().end_rescue();
        }
        result?;
        self.lane.submit_pending()
    }

    fn store_all_elsewhere(&mut self, lost: &[Lost]) -> Result<()> {
        for (place, one) in lost.iter().enumerate() {
            if let Err(error) = self.store_elsewhere(one) {
                // The storage thread waits for all of them.
                lost[place..].iter().for_each(|rest| self.give_up(rest));
                return Err(error);
            }
        }
        Ok(())
    }

    fn give_up(&mut self, lost: &Lost) {
        match lost.held {
            Some(attempt) => self.progress.rescues.end_part(attempt, false, None),
            None => {
                let number = self.units().number_of(lost.unit.first_sequence);
                self.progress.failed_runs.give_up(FailedRun {
                    number,
                    packets: lost.unit.records,
                    first: lost.frame,
                    frames: lost.slot.slots.into(),
                    device: lost.device,
                    status: status::WRITE_FAULT,
                });
            }
        }
    }

    fn store_elsewhere(&mut self, lost: &Lost) -> Result<()> {
        let Lost {
            frame,
            slot,
            unit,
            device,
            held,
        } = lost;
        let slots = u32::from(slot.slots);
        // What is in the segment of new packets goes there.
        let mut rx_side = self.end_run(self.lane.lock_rx_side()?)?;
        let mut room = self.set().is_some_and(|set| set.has_other(*device));
        while room && (self.units().is_out() || !self.units().takes(unit.first_sequence, slots)) {
            (rx_side, room) = self.begin_segment(rx_side, unit.first_sequence)?;
            room &= self.set().is_some_and(|set| set.has_other(*device));
        }
        let Some(attempt) = held else {
            let write = match room {
                true => self.units().move_unit(*frame, slot, unit),
                // No device takes it: the spill does, or it has failed.
                false => self.units().write_in_place(*device, *frame, slot, unit),
            };
            self.queue_run(rx_side, 0, &write)?;
            if room {
                self.progress.rescued.add(unit.records.into());
            }
            return Ok(());
        };
        let rescues = &self.progress.rescues;
        if !room {
            // No device takes it now.
            rescues.end_part(*attempt, false, None);
            return Ok(());
        }
        let (mark, set) = (self.units().mark(), self.units().set().clone());
        if !rescues.begins_part(*attempt, mark) {
            rescues.end_part(*attempt, true, None);
            return Ok(());
        }
        set.mark_submitted(mark);
        let mut write = self.units().move_unit(*frame, slot, unit);
        write.user_data = attempt.user_data();
        let lane = self.lane;
        self.queue(rx_side, 0, |rx_side| lane.queue_rescue(rx_side, &write))?;
        self.progress.rescued.add(unit.records.into());
        Ok(())
    }

    /// Packets that a device completed and no flush had covered when it failed: they are lost if it had them in a cache that is
    /// gone.
    pub(super) fn count_unflushed(&mut self) {
        let Some(set) = self.set() else {
            return;
        };
        for device in 0..set.devices() {
            let about = &self.context.info().devices[device];
            let may_lose = about.limits.volatile_cache != Some(false);
            if set.is_out(device as u8) && may_lose {
                let packets = self.progress.unflushed[device].swap(0, Ordering::Relaxed);
                self.progress.unflushed_lost.add(packets);
            }
        }
    }
}
