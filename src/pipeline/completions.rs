//! The storage thread: takes completions, and publishes up to which write all are stored and durable.

#![forbid(unsafe_code)]

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use super::failover::{Decided, Stall, answered, end_rescues, part_ended, take_out, tried};
use super::runs::{FailedRun, not_submitted};
use super::window::Window;
use super::{BATCH, FLUSH, Progress, RESCUE, SEGMENT, SERIAL, SUPERBLOCK, TICK, TRY};
use crate::context::Context;
use crate::error::Result;
use crate::lane::{Completion, Lane, Ready};
use crate::log::{self, Level};
use crate::recorder::LogSet;
use crate::storage::command::status;
use crate::storage::device::MAX_DEVICES;

/// At the end, a device that is tried is waited for at most so long.
const LONGEST_TRY: Duration = Duration::from_millis(500);

/// The storage thread.
pub(super) fn completions(context: &Context, lane: &Lane, progress: &Progress) -> Result<()> {
    let mut batch = [Completion::default(); BATCH];
    let mut window = Window::new();
    let mut stall = Stall::new();
    let mut through: Option<Instant> = None;
    loop {
        let count = lane.completions(&mut batch)?;
        let mut decided = Decided::default();
        let mut of_devices = [0; MAX_DEVICES];
        for completion in &batch[..count] {
            let good = completion.status == status::SUCCESS;
            if completion.held {
                answered(context, progress, completion, &mut window, &mut decided);
                continue;
            }
            decided.frames += u64::from(completion.frames);
            if let Some(slots) = of_devices.get_mut(usize::from(completion.device)) {
                *slots += u64::from(completion.frames);
            }
            if completion.user_data & FLUSH != 0 {
                flushed(context, progress, completion);
            } else if completion.user_data & SUPERBLOCK != 0 {
                if good {
                    let covers = completion.user_data & !(SUPERBLOCK | SERIAL);
                    progress
                        .failures_covered
                        .fetch_max(covers, Ordering::Relaxed);
                } else {
                    log::log(
                        Level::Warn,
                        format_args!(
                            "a superblock could not be written (status {:#x}): opening the log will take longer",
                            completion.status
                        ),
                    );
                }
                if !stall.was_abandoned(completion) {
                    progress.superblocks.fetch_sub(1, Ordering::AcqRel);
                }
            } else if completion.user_data & SEGMENT != 0 {
                if !good {
                    log::log(
                        Level::Warn,
                        format_args!(
                            "a segment's header or a record of losses could not be written (status {:#x})",
                            completion.status
                        ),
                    );
                }
                if let Some(set) = &progress.set {
                    set.mark_done(completion.user_data & !(SEGMENT | SERIAL));
                }
                if !stall.was_abandoned(completion) {
                    progress.superblocks.fetch_sub(1, Ordering::AcqRel);
                }
            } else if completion.user_data & TRY != 0 {
                tried(context, progress, completion);
            } else if completion.user_data & RESCUE != 0 {
                part_ended(progress, completion);
            } else if completion.frame.is_some() && completion.packets == 0 && !good {
                // Its frames are submitted again.
                decided.frames -= u64::from(completion.frames);
                progress.failed_runs.push(FailedRun::of(completion));
            } else {
                let packets = completion.packets.max(1);
                let end = completion.user_data.saturating_add(packets.into());
                if completion.result == -libc::EBADMSG
                    || completion.user_data < window.first()
                    || end > progress.submitted.load(Ordering::Acquire)
                {
                    return Err(not_submitted());
                }
                match good {
                    true => {
                        decided.stored += u64::from(packets);
                        if let Some(fresh) =
                            decided.unflushed.get_mut(usize::from(completion.device))
                        {
                            *fresh += u64::from(packets);
                        }
                    }
                    false => decided.failed += u64::from(packets),
                }
                window.complete(completion.user_data, packets);
            }
        }
        stall.look(context, lane, progress, &window, &batch[..count])?;
        end_rescues(context, lane, progress, &mut window, &mut decided);
        let mut given_up = Vec::new();
        if progress.packets_done.load(Ordering::Acquire) {
            // Nobody submits them again.
            given_up = progress.failed_runs.take();
        }
        if progress.set.is_some() {
            given_up.extend(progress.failed_runs.take_given_up());
        }
        for run in given_up {
            decided.failed += u64::from(run.packets);
            decided.frames += u64::from(run.frames);
            run.release(lane);
            window.complete(run.number, run.packets);
        }
        if let Some(set) = &progress.set {
            set.done(&of_devices);
            // Before `completed` is published: a flush that covers them counts them.
            for (total, fresh) in progress.unflushed.iter().zip(decided.unflushed) {
                if fresh > 0 && !progress.fua {
                    total.fetch_add(fresh, Ordering::Relaxed);
                }
            }
        }
        progress
            .frames_done
            .fetch_add(decided.frames, Ordering::Relaxed);
        progress.stored.add(decided.stored);
        progress.failed.add(decided.failed);
        progress.completed.store(window.first(), Ordering::Release);
        if progress.fua {
            progress.durable.store(window.first(), Ordering::Release);
        }
        if count > 0 {
            if progress.waiting.load(Ordering::Relaxed) {
                progress.room.ring();
            }
            continue;
        }
        // The packet thread ends after its last submission.
        if progress.packets_done.load(Ordering::Acquire)
            && window.first() == progress.submitted.load(Ordering::Acquire)
            && !progress.flushing.load(Ordering::Acquire)
            && progress.superblocks.load(Ordering::Acquire) == 0
            && progress.rescues.are_written()
        {
            // A device that is tried may not answer at all.
            let since = through.get_or_insert_with(Instant::now);
            if progress.trying.load(Ordering::Acquire) == 0 || since.elapsed() >= LONGEST_TRY {
                return Ok(());
            }
        }
        lane.wait(Ready::COMPLETIONS, Some(TICK))?;
    }
}

/// A flush covers what was completed when it was submitted. After a failed flush nothing counts as durable any more:
/// the device may have dropped its cache. If there are other devices, it is left out of the next flush instead.
fn flushed(context: &Context, progress: &Progress, completion: &Completion) {
    let covers = completion.user_data & !FLUSH;
    let device = completion.device;
    progress.flushes.add(1);
    if completion.status == status::SUCCESS {
        let mut all_covered = true;
        for (place, (total, covered)) in
            progress.unflushed.iter().zip(&progress.covered).enumerate()
        {
            let covered = covered.load(Ordering::Relaxed);
            let before = progress.times_out[place].load(Ordering::Relaxed);
            // Then the flush may have left it out. What was out before was counted, and `covered` is 0.
            let left =
                |set: &Arc<LogSet>| place < set.devices() && set.times_out(place as u8) != before;
            if progress.set.as_ref().is_some_and(left) {
                all_covered &= covered == 0;
                continue;
            }
            let _ = total.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |total| {
                Some(total.saturating_sub(covered))
            });
        }
        if !all_covered {
            // The next one covers it, or counts what it has as unflushed.
            progress.flush_again.store(true, Ordering::Release);
        } else if progress.flush_failed.load(Ordering::Relaxed) == 0 {
            progress.durable.fetch_max(covers, Ordering::AcqRel);
        }
    } else if let Some(set) = progress.set.as_ref().filter(|set| set.has_other(device)) {
        take_out(context, progress, set, device, completion.status);
        progress.flush_again.store(true, Ordering::Release);
    } else {
        progress.fail(libc::EIO);
        let _ = progress.flush_failed.compare_exchange(
            0,
            completion.status.into(),
            Ordering::Relaxed,
            Ordering::Relaxed,
        );
        log::log(
            Level::Error,
            format_args!(
                "a flush failed (status {:#x}): what was stored since the last one may not be durable",
                completion.status
            ),
        );
    }
    progress.flushing.store(false, Ordering::Release);
}
