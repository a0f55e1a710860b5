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
use super::{FLUSH, Progress, RESCUE, SEGMENT, SUPERBLOCK, TRY};
use crate::context::Context;
use crate::error::Result;
use crate::lane::{Completion, Lane};
use crate::log::{self, Level};
use crate::recorder::LogSet;
use crate::storage::command::{status, status_text};
use crate::storage::device::MAX_DEVICES;
use crate::unit_log::unit::{SlotHeader, UnitHeader};

/// Time between two looks for writes without an answer.
const LOOK: Duration = Duration::from_secs(1);

/// A unit that was not stored.
struct Lost {
    frame: u32,
    slot: SlotHeader,
    unit: UnitHeader,
    device: u8,
    /// Its run's attempt, whose frames are still in flight; `None`: the packet thread holds them.
    held: Option<Attempt>,
}

/// One of the writes of a run to another device. It may fall silent too.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Attempt {
    /// The number of the run's first packet. Less than `1 << ATTEMPT_SHIFT`.
    run: u64,
    /// Counts the attempts, modulo 64.
    count: u64,
}

const ATTEMPT_SHIFT: u32 = 53;
const ATTEMPTS: u64 = 64;
const _: () = assert!(ATTEMPTS << ATTEMPT_SHIFT == RESCUE);

impl Attempt {
    fn user_data(self) -> u64 {
        RESCUE | self.count << ATTEMPT_SHIFT | self.run
    }

    fn of(user_data: u64) -> Attempt {
        Attempt {
            run: user_data & ((1 << ATTEMPT_SHIFT) - 1),
            count: user_data >> ATTEMPT_SHIFT & (ATTEMPTS - 1),
        }
    }
}

/// A run whose write has no answer, and which is written again.
#[derive(Debug, Clone, Copy)]
struct Rescue {
    run: FailedRun,
    /// The packet thread has submitted all parts of this attempt, and so many have not ended.
    submitted: bool,
    pending: u32,
    attempt: u64,
    /// Parts of the attempts before, which have not ended.
    late: u32,
    bad: bool,
    /// The device that one of its parts was written to last.
    device: Option<u8>,
    /// One of the writes was good: its packets are stored.
    stored: bool,
    /// The new write has ended.
    ended: bool,
    /// Tells the segment of the old write, whose place is not used again before that has ended.
    segment: Option<u64>,
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

    /// A part of an attempt has ended.
    fn part_ended(&self, attempt: Attempt, good: bool, device: Option<u8>) {
        self.change(attempt.run, |rescue| {
            if attempt.count != rescue.attempt {
                rescue.late = rescue.late.saturating_sub(1);
                return;
            }
            rescue.pending = rescue.pending.saturating_sub(1);
            rescue.bad |= !good;
            rescue.device = device.or(rescue.device);
        });
    }

    /// The device that a run was written to instead does not answer either.
    fn try_again(&self, progress: &Progress, attempt: Attempt) {
        self.change(attempt.run, |rescue| {
            let is_waiting = rescue.submitted && rescue.pending > 0 && !rescue.stored;
            if attempt.count != rescue.attempt || !is_waiting {
                return;
            }
            rescue.late += rescue.pending;
            rescue.attempt = (rescue.attempt + 1) % ATTEMPTS;
            (rescue.pending, rescue.submitted) = (0, false);
            (rescue.bad, rescue.device) = (false, None);
            progress.stuck_runs.push(rescue.run);
        });
    }
}

/// What the storage thread knows of writes without an answer.
pub(super) struct Stall {
    looked: Instant,
    /// Writes that are no packets', for which nobody waits any more: their `user_data`.
    abandoned: Vec<u64>,
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
    pub fn was_abandoned(&mut self, user_data: u64) -> bool {
        let place = self.abandoned.iter().position(|known| *known == user_data);
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
        }
        for stuck in shared.take_stuck() {
            take_out(context, set, stuck.device, status::HOST_PATH_ERROR);
            let number = stuck.user_data;
            // The engine reports before it completes: what was answered after all is in this batch.
            let answered =
                |done: &Completion| (done.user_data, done.device) == (number, stuck.device);
            if number & (FLUSH | TRY) != 0
                || !set.has_other(stuck.device)
                || batch.iter().any(answered)
            {
                continue;
            }
            if number & RESCUE != 0 {
                progress.rescues.try_again(progress, Attempt::of(number));
                continue;
            }
            if number & (SUPERBLOCK | SEGMENT) != 0 {
                if !self.abandoned.contains(&number) {
                    progress.superblocks.fetch_sub(1, Ordering::AcqRel);
                    self.abandoned.push(number);
                }
                continue;
            }
            if progress.rescues.runs.lock().contains_key(&number) {
                continue;
            }
            let known = number < progress.submitted.load(Ordering::Acquire);
            let frame = context.info().frames().locate(stuck.offset);
            let (Some((first, _)), true, false) = (frame, known, window.is_complete(number)) else {
                continue;
            };
            let run = FailedRun {
                number,
                packets: lane.hold_for_rescue(first, stuck.frames)?,
                first,
                frames: stuck.frames,
                device: stuck.device,
                status: status::HOST_PATH_ERROR,
            };
            let rescue = Rescue {
                run,
                submitted: false,
                pending: 0,
                attempt: 0,
                late: 0,
                bad: false,
                device: None,
                stored: false,
                ended: false,
                segment: None,
            };
            progress.rescues.runs.lock().insert(number, rescue);
            progress.rescues.some.store(true, Ordering::Relaxed);
            progress.stuck_runs.push(run);
        }
        Ok(())
    }
}

/// The write of a run has ended that had no answer for long.
pub(super) fn answered(
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
    if let Some(set) = &progress.set {
        set.not_submitted(run.device, run.frames);
    }
    if completion.status == status::SUCCESS && !rescue.stored {
        rescue.stored = true;
        decided.stored += u64::from(run.packets);
        decided.unflushed[usize::from(run.device)] += u64::from(run.packets);
        window.complete(run.number, run.packets);
    }
    decided.frames += u64::from(completion.frames);
    if rescue.ended {
        both_ended(progress, rescue);
        runs.remove(&run.number);
    }
}

/// Both writes of a run have ended: its frames were given back.
fn both_ended(progress: &Progress, rescue: &Rescue) {
    if !rescue.stored {
        progress.failed_runs.give_up(rescue.run);
    }
    if let (Some(set), Some(segment)) = (&progress.set, rescue.segment) {
        set.mark_done(segment);
    }
}

/// A part of a run was written to another device.
pub(super) fn part_ended(progress: &Progress, completion: &Completion) {
    let good = completion.status == status::SUCCESS;
    let attempt = Attempt::of(completion.user_data);
    progress
        .rescues
        .part_ended(attempt, good, Some(completion.device));
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
    let mut runs = progress.rescues.runs.lock();
    let mut done = Vec::new();
    for rescue in runs.values_mut() {
        if !rescue.submitted || rescue.pending > 0 || rescue.ended {
            continue;
        }
        let run = rescue.run;
        if rescue.bad {
            // `None`: no device has room for it. Then only its own one can store it.
            if let Some(device) = rescue.device.take() {
                take_out(context, set, device, status::WRITE_FAULT);
                if set.has_other(device) && !rescue.stored {
                    (rescue.submitted, rescue.bad) = (false, false);
                    progress.stuck_runs.push(run);
                    continue;
                }
            }
        } else if !rescue.stored {
            rescue.stored = true;
            decided.stored += u64::from(run.packets);
            let device = usize::from(rescue.device.unwrap_or(run.device));
            decided.unflushed[device] += u64::from(run.packets);
            window.complete(run.number, run.packets);
        }
        if rescue.late > 0 {
            // Those may still read the frames.
            continue;
        }
        rescue.ended = true;
        if let Some(settled) = lane.rescued(run.first, !rescue.bad) {
            decided.frames += u64::from(settled.frames);
            both_ended(progress, rescue);
            done.push(run.number);
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

/// Nothing more is written to a device. Says so once.
pub(super) fn take_out(context: &Context, set: &LogSet, device: u8, status: u16) {
    if !set.has_other(device) || !set.take_out(device) {
        return;
    }
    for lane in context.lanes() {
        lane.engine_shared().set_out(device, true);
    }
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
    let device = (completion.user_data & !TRY) as u8;
    let good = completion.status == status::SUCCESS && !completion.spilled;
    if set.tried(device, good) {
        for lane in context.lanes() {
            lane.engine_shared().set_out(device, false);
        }
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
        match self.queue_run(rx_side, 0, &write) {
            Ok(mut rx_side) => {
                self.filling.submitted += 1;
                lane.kick(&mut rx_side);
                Ok(())
            }
            Err(error) => {
                self.release(frame..frame + 1);
                Err(error)
            }
        }
    }

    /// Stores elsewhere what a device has failed to store, or does not answer.
    pub(super) fn rescue(&mut self, failed: &[FailedRun], in_flight: bool) -> Result<()> {
        let mut lost = Vec::new();
        for run in failed {
            if let Some(set) = self.set() {
                take_out(self.context, set, run.device, run.status);
            }
            let begin = lost.len();
            let mut held = None;
            if in_flight {
                self.progress.rescues.change(run.number, |rescue| {
                    held = Some(Attempt {
                        run: run.number,
                        count: rescue.attempt,
                    });
                });
            }
            let mut frame = run.first;
            while frame < run.first + run.frames {
                let Some((slot, unit)) = self.units().unit_in(frame) else {
                    // Somebody wrote to the frame: what it holds is no packet any more.
                    if in_flight {
                        self.progress
                            .rescues
                            .change(run.number, |rescue| rescue.bad = true);
                    } else {
                        self.progress.failed_runs.give_up(FailedRun {
                            first: frame,
                            frames: run.first + run.frames - frame,
                            ..*run
                        });
                    }
                    break;
                };
                lost.push(Lost {
                    frame,
                    slot,
                    unit,
                    device: run.device,
                    held,
                });
                frame += u32::from(slot.slots);
            }
            let parts = (lost.len() - begin) as u32;
            let generation = lost.get(begin).map(|lost: &Lost| lost.slot.generation);
            self.progress.rescues.change(run.number, |rescue| {
                (rescue.submitted, rescue.pending) = (in_flight, parts);
                // A run lies in one segment.
                if let (None, Some(set), Some(generation)) =
                    (rescue.segment, &self.progress.set, generation)
                {
                    let segment = LogSet::mark(run.device, generation);
                    set.mark_submitted(segment);
                    rescue.segment = Some(segment);
                }
            });
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
                for rest in lost[place..].iter().filter(|rest| rest.held.is_none()) {
                    self.release(rest.frame..rest.frame + u32::from(rest.slot.slots));
                }
                return Err(error);
            }
        }
        Ok(())
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
        let mut write = match (room, held) {
            (true, _) => self.units().move_unit(*frame, slot, unit),
            // No device takes it: the spill does, or it has failed.
            (false, None) => self.units().write_in_place(*device, *frame, slot, unit),
            // Or its own device answers at last.
            (false, Some(attempt)) => {
                self.progress.rescues.part_ended(*attempt, false, None);
                return Ok(());
            }
        };
        match held {
            None => {
                self.filling.submitted += u64::from(slots);
                self.queue_run(rx_side, 0, &write)?;
            }
            Some(attempt) => {
                write.user_data = attempt.user_data();
                let lane = self.lane;
                self.queue(rx_side, 0, |rx_side| lane.queue_rescue(rx_side, &write))?;
            }
        }
        if room {
            self.progress.rescued.add(unit.records.into());
        }
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
