//! The packet thread: receives, submits, flushes, and pauses between two polls.

#![forbid(unsafe_code)]

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use super::filling::Filling;
use super::runs::{FailedRun, Runs, not_submitted};
use super::write_target::WriteTarget;
use super::{BATCH, FLUSH, PipelineConfig, Progress, SUPERBLOCK, TICK};
use crate::context::Context;
use crate::error::{Error, Result};
use crate::lane::{Direction, FrameRun, Lane, Ready, RxSideGuard, Transfer};
use crate::log::{self, Level};
use crate::net::rx::Received;
use crate::sys::event::poll_readable;

/// A group flush is late by at most this time.
const FLUSH_TICK: Duration = Duration::from_millis(5);
/// Default time between two polls of the RX ring while packets come. The thread is not woken in between: waking it for
/// a few packets costs more than storing them, and packets that are found together become one operation. The first
/// packet after a pause is taken at once.
const MODERATION: Duration = Duration::from_millis(4);
const LONGEST_MODERATION: Duration = Duration::from_secs(1);
/// It polls more often if the RX ring is short: between two polls, a burst of two million packets a second may fill at
/// most half of it.
const MODERATION_ENTRY: Duration = Duration::from_nanos(250);
/// The kernel's timers are late by this much, so a shorter pause is skipped.
const SHORTEST_PAUSE: Duration = Duration::from_micros(50);
/// While a packet is recorded, this many after it are on their way into the cache.
pub(super) const PREFETCH: usize = 4;
/// It also polls more often if packets would fill more than this part of the RX ring.
const MODERATION_RING: u32 = 8;

/// When to flush.
struct Flusher {
    writes: Option<u64>,
    interval: Option<Duration>,
    /// The number up to which the last flush covers writes.
    covered: u64,
    last: Instant,
}

impl Flusher {
    fn is_used(&self) -> bool {
        self.writes.is_some() || self.interval.is_some()
    }

    fn wants(&self, completed: u64) -> bool {
        let fresh = completed - self.covered;
        fresh > 0
            && (self.writes.is_some_and(|writes| fresh >= writes)
                || self
                    .interval
                    .is_some_and(|interval| self.last.elapsed() >= interval))
    }
}

/// The longest time between two polls while packets come. `EINVAL` if it is too long.
pub(super) fn moderation_of(config: &PipelineConfig) -> Result<Duration> {
    let moderation = config.moderation.unwrap_or(MODERATION);
    if moderation > LONGEST_MODERATION {
        return Err(Error::new(
            libc::EINVAL,
            format!(
                "a moderation of {} us: at most {} (1 second)",
                moderation.as_micros(),
                LONGEST_MODERATION.as_micros()
            ),
        ));
    }
    // A pause must not delay a group flush.
    Ok(config
        .flush_interval
        .map_or(moderation, |interval| interval.min(moderation)))
}

/// How often a recorder reads the loss counters, so that a log that is cut off has them too.
const LOSS_TICK: Duration = Duration::from_secs(1);

/// The packet thread.
pub(super) struct Packets<'a> {
    pub(super) context: &'a Context,
    /// That it receives from and submits to.
    pub(super) lane: &'a Lane,
    pub(super) progress: &'a Progress,
    pub(super) target: WriteTarget,
    pub(super) runs: Runs,
    pub(super) filling: Filling,
    flusher: Flusher,
    /// The longest time between two polls while packets come.
    pub(super) moderation: Duration,
    /// Writes that were completed when `progress` was last read.
    pub(super) completed: u64,
    losses_seen: Instant,
}

impl<'a> Packets<'a> {
    pub fn new(
        context: &'a Context,
        lane: &'a Lane,
        progress: &'a Progress,
        target: WriteTarget,
        config: &PipelineConfig,
        moderation: Duration,
    ) -> Packets<'a> {
        Packets {
            context,
            lane,
            progress,
            target,
            runs: Runs::default(),
            filling: Filling::default(),
            flusher: Flusher {
                writes: config.flush_writes.map(u64::from),
                interval: config.flush_interval,
                covered: 0,
                last: Instant::now(),
            },
            moderation,
            completed: 0,
            losses_seen: Instant::now(),
        }
    }

    pub fn run(&mut self) -> Result<()> {
        if matches!(self.target, WriteTarget::Units(_)) {
            self.prepare_units()?;
        }
        let result = match self.take_packets() {
            // The interface is gone. Store what was received, then report the error.
            Err(error) if error.errno() == libc::ENODEV => self.settle().and(Err(error)),
            result => result.and_then(|()| self.settle()),
        };
        if result.is_err() {
            // What is submitted is carried out, and the rest is given back.
            if matches!(self.target, WriteTarget::Units(_)) {
                self.abandon_units();
            }
            let _ = self.lane.submit_pending();
        }
        self.give_spare_back();
        if let Ok(mut rx_side) = self.lane.lock_rx_side() {
            rx_side.fill_at_most(u32::MAX);
            self.lane.keep_for_runs(&mut rx_side, 0);
        }
        result
    }

    fn take_packets(&mut self) -> Result<()> {
        let mut batch = [Received::default(); BATCH];
        let idle = if self.flusher.is_used() {
            FLUSH_TICK
        } else {
            TICK
        };
        // A stop takes the packets that had arrived by then: at most a full RX ring.
        let mut last_round = self.context.info().frame_count as usize;
        let mut woken = Instant::now();
        let mut fresh = 0;
        loop {
            let stopping = self.progress.stop.load(Ordering::Acquire);
            let count = self.lane.receive(&mut batch)?;
            if count > 0 {
                self.store(&batch[..count])?;
            }
            if count < batch.len() {
                self.publish()?;
                self.weigh_idle()?;
            }
            self.upkeep()?;
            if stopping {
                last_round = last_round.saturating_sub(count);
                if count == 0 || last_round == 0 {
                    return Ok(());
                }
            } else if count == 0 {
                let left = pause_after(fresh, self.lane.backlog())
                    .min(self.moderation)
                    .saturating_sub(woken.elapsed());
                if fresh > 0 && left >= SHORTEST_PAUSE {
                    std::thread::sleep(left);
                } else {
                    self.end_old_unit(fresh == 0)?;
                    let longest = match self.filling.is_open() {
                        true => idle.min(self.moderation),
                        false => idle,
                    };
                    self.lane.wait(Ready::RX, Some(longest))?;
                }
                woken = Instant::now();
                fresh = 0;
            }
            fresh += count as u32;
        }
    }

    /// Failed runs, group flushes, and superblocks of a log.
    fn upkeep(&mut self) -> Result<()> {
        self.resubmit()?;
        self.end_old_unit(false)?;
        let completed = self.progress.completed.load(Ordering::Acquire);
        if let WriteTarget::Units(log) = &mut self.target {
            log.release_segments(completed);
        }
        let p = self.progress;
        let failed = p.failed.get() - p.failures_covered.load(Ordering::Relaxed);
        let look = self.losses_seen.elapsed() >= LOSS_TICK;
        if look {
            self.losses_seen = Instant::now();
        }
        let due = match &mut self.target {
            WriteTarget::Range(_) => false,
            WriteTarget::Slots(log) => {
                log.wants_checkpoint(failed) | (look && log.look_at_losses(self.context, self.lane))
            }
            WriteTarget::Units(log) => {
                log.wants_checkpoint(failed) | (look && log.look_at_losses(self.context, self.lane))
            }
        };
        if due {
            self.superblock(completed)?;
        }
        self.try_devices()?;
        if !self.progress.flushing.load(Ordering::Acquire)
            && (self.flusher.wants(completed) || self.progress.flush_again.load(Ordering::Acquire))
        {
            self.flush(completed)?;
        }
        Ok(())
    }

    /// `false`: no frame was free.
    fn superblock(&mut self, completed: u64) -> Result<bool> {
        if let WriteTarget::Units(_) = &self.target {
            return match self.tell_losses().and_then(|()| self.unit_superblock()) {
                Err(error) if error.errno() == libc::ENOBUFS => Ok(false),
                result => result.map(|()| true),
            };
        }
        // Without a free frame, try again in the next round.
        let Ok(frame) = self.lane.frame_alloc() else {
            return Ok(false);
        };
        let WriteTarget::Slots(log) = &mut self.target else {
            return self.lane.frame_release(frame).map(|()| true);
        };
        let failed = self.progress.failed.get();
        let mut write = log.checkpoint(frame, self.progress.first_sequence + completed);
        write.user_data = SUPERBLOCK | failed;
        self.progress.superblocks.fetch_add(1, Ordering::AcqRel);
        while let Err(error) = self.lane.submit_transfer(Direction::Write, &write) {
            retry(self.progress, error).inspect_err(|_| {
                self.progress.superblocks.fetch_sub(1, Ordering::AcqRel);
            })?;
        }
        Ok(true)
    }

    fn flush(&mut self, covers: u64) -> Result<()> {
        if let Some(set) = &self.progress.set {
            for (device, times) in (0..set.devices()).zip(&self.progress.times_out) {
                times.store(set.times_out(device as u8), Ordering::Relaxed);
            }
        }
        self.count_unflushed();
        for (covered, unflushed) in self.progress.covered.iter().zip(&self.progress.unflushed) {
            covered.store(unflushed.load(Ordering::Relaxed), Ordering::Relaxed);
        }
        self.progress.flush_again.store(false, Ordering::Relaxed);
        self.progress.flushing.store(true, Ordering::Release);
        while let Err(error) = self.lane.submit_flush(None, FLUSH | covers) {
            retry(self.progress, error).inspect_err(|_| {
                self.progress.flushing.store(false, Ordering::Release);
            })?;
        }
        self.flusher.covered = covers;
        self.flusher.last = Instant::now();
        Ok(())
    }

    /// Waits until every write is completed, writes the log's end into its superblock, and flushes.
    fn settle(&mut self) -> Result<()> {
        self.end_old_unit(true)?;
        self.publish()?;
        self.wait_for(|p| {
            p.completed.load(Ordering::Acquire) == p.submitted.load(Ordering::Acquire)
        })?;
        let is_log = match &mut self.target {
            WriteTarget::Slots(log) => {
                log.look_at_losses(self.context, self.lane);
                true
            }
            WriteTarget::Units(log) => {
                log.look_at_losses(self.context, self.lane);
                true
            }
            WriteTarget::Range(_) => false,
        };
        if is_log && !self.superblock(self.progress.completed.load(Ordering::Acquire))? {
            log::log(
                Level::Warn,
                format_args!(
                    "no frame was free at the end: the losses of the last second are not in the log"
                ),
            );
        }
        loop {
            self.wait_for(|p| {
                p.superblocks.load(Ordering::Acquire) == 0 && !p.flushing.load(Ordering::Acquire)
            })?;
            self.flush(self.progress.completed.load(Ordering::Acquire))?;
            // A device that fails it is left out of the next one.
            if !self.has_many_devices() {
                return Ok(());
            }
            self.wait_for(|p| !p.flushing.load(Ordering::Acquire))?;
            if !self.progress.flush_again.load(Ordering::Acquire) {
                return Ok(());
            }
        }
    }

    pub(super) fn wait_for(&mut self, reached: impl Fn(&Progress) -> bool) -> Result<()> {
        while !reached(self.progress) {
            self.resubmit()?;
            self.lane.alive()?;
            pause(self.progress)?;
        }
        Ok(())
    }

    fn store(&mut self, batch: &[Received]) -> Result<()> {
        let mut done = 0;
        let submitted = match &self.target {
            WriteTarget::Units(_) => self.submit_units(batch, &mut done),
            _ => self.submit(batch, &mut done),
        };
        submitted.inspect_err(|_| {
            // Publish what was submitted, and release the rest, which nobody else has.
            let _ = self.lane.submit_pending();
            for packet in &batch[done..] {
                let _ = self.lane.frame_release(packet.frame);
            }
        })
    }

    /// Submits packets. `done` counts those whose frames were handed on.
    fn submit(&mut self, batch: &[Received], done: &mut usize) -> Result<()> {
        let (lane, progress) = (self.lane, self.progress);
        let mut rx_side = lane.lock_rx_side()?;
        let mut number = progress.submitted.load(Ordering::Acquire);
        let mut payload_bytes = 0;
        if let WriteTarget::Slots(log) = &mut self.target {
            log.look_at_clock();
            batch
                .iter()
                .take(PREFETCH)
                .for_each(|packet| log.prefetch(packet));
        }
        let mut transfer = Transfer {
            more: true,
            ..Transfer::default()
        };
        for (place, packet) in batch.iter().enumerate() {
            if let (WriteTarget::Slots(log), Some(ahead)) =
                (&self.target, batch.get(place + PREFETCH))
            {
                log.prefetch(ahead);
            }
            if packet.headers.payload_len == 0 && matches!(self.target, WriteTarget::Range(_)) {
                progress.empty.add(1);
                lane.frame_release(packet.frame)?;
                *done = place + 1;
                continue;
            }
            let most = self.target.outstanding_before(packet);
            if number - self.completed > most {
                self.completed = progress.completed.load(Ordering::Acquire);
                if number - self.completed > most {
                    rx_side = self.end_run(rx_side)?;
                    *done = place;
                    lane.kick(&mut rx_side);
                    drop(rx_side);
                    self.wait_for(|p| number - p.completed.load(Ordering::Acquire) <= most)?;
                    self.completed = progress.completed.load(Ordering::Acquire);
                    rx_side = lane.lock_rx_side()?;
                }
            }
            if !self.target.write(packet, &mut transfer) {
                rx_side = self.end_run(rx_side)?;
                *done = place;
                progress.fail(libc::ENOSPC);
                progress.no_space.add(1);
                self.target.skip(packet);
                lane.frame_release(packet.frame)?;
                *done = place + 1;
                continue;
            }
            transfer.user_data = number;
            payload_bytes += u64::from(packet.headers.payload_len);
            if matches!(self.target, WriteTarget::Range(_)) {
                rx_side = self.queue(rx_side, 1, |rx_side| {
                    lane.queue_transfer(rx_side, Direction::Write, &transfer)
                })?;
                *done = place + 1;
            } else {
                let next = FrameRun {
                    first: transfer.frame,
                    frames: 1,
                    lba: transfer.lba,
                    device: transfer.device,
                    user_data: number,
                    fua: transfer.fua,
                    parts: false,
                };
                if !self.runs.join(&next) {
                    rx_side = self.end_run(rx_side)?;
                    *done = place;
                    self.begin_run(next);
                }
            }
            number += 1;
        }
        rx_side = self.end_run(rx_side)?;
        *done = batch.len();
        progress.payload_bytes.add(payload_bytes);
        progress
            .next_lba
            .store(self.target.next_lba(), Ordering::Relaxed);
        progress.wraps.store(self.target.wraps(), Ordering::Relaxed);
        lane.kick(&mut rx_side);
        Ok(())
    }

    /// Begins a run with the write of a whole frame.
    pub(super) fn begin_run(&mut self, first: FrameRun) {
        let lane = self.lane;
        let step = lane.blocks_of(first.device, self.context.info().frame_size);
        let longest = lane.longest_run(first.device, first.first);
        self.runs.begin(first, longest, step);
    }

    /// Submits the run that grows, if there is one.
    pub(super) fn end_run(&mut self, rx_side: RxSideGuard<'a>) -> Result<RxSideGuard<'a>> {
        let run = &mut self.runs.open;
        if run.frames == 0 {
            return Ok(rx_side);
        }
        run.parts |= run.frames > 1;
        let run = *run;
        let rx_side = self.queue_run(rx_side, run.frames, &run)?;
        let completed = self.progress.completed.load(Ordering::Acquire);
        self.runs.note_submitted(completed);
        Ok(rx_side)
    }

    /// Queues a run with so many packets, when there is room.
    pub(super) fn queue_run(
        &self,
        rx_side: RxSideGuard<'a>,
        packets: u32,
        run: &FrameRun,
    ) -> Result<RxSideGuard<'a>> {
        let (lane, set) = (self.lane, &self.progress.set);
        // As in `queue`: counted first.
        if let Some(set) = set {
            set.submitted(run.device, run.frames);
        }
        self.queue(rx_side, packets, |rx_side| lane.queue_run(rx_side, run))
            .inspect_err(|_| {
                if let Some(set) = set {
                    set.not_submitted(run.device, run.frames);
                }
            })
    }

    /// Queues the write of some packets, when there is room.
    pub(super) fn queue(
        &self,
        mut rx_side: RxSideGuard<'a>,
        packets: u32,
        queue: impl Fn(&mut RxSideGuard<'a>) -> Result<()>,
    ) -> Result<RxSideGuard<'a>> {
        let (lane, submitted) = (self.lane, &self.progress.submitted);
        // Counted first: the completion may be taken before this thread goes on.
        submitted.fetch_add(packets.into(), Ordering::AcqRel);
        while let Err(error) = queue(&mut rx_side) {
            drop(rx_side);
            let again = retry(self.progress, error).and_then(|()| lane.lock_rx_side());
            rx_side = again.inspect_err(|_| {
                submitted.fetch_sub(packets.into(), Ordering::AcqRel);
            })?;
        }
        Ok(rx_side)
    }

    /// Submits the frames of failed runs one by one.
    fn resubmit(&mut self) -> Result<()> {
        let failed = self.progress.failed_runs.take();
        if self.has_many_devices() {
            let stuck = self.progress.stuck_runs.take();
            for (runs, in_flight) in [(failed, false), (stuck, true)] {
                if !runs.is_empty() {
                    self.rescue(&runs, in_flight)?;
                }
            }
            return Ok(());
        }
        for failed in failed {
            let found = self.runs.find(failed.number);
            let run = found.filter(|run| (run.first, run.frames) == (failed.first, failed.frames));
            let mut done = 0;
            run.ok_or_else(not_submitted)
                .and_then(|run| self.submit_parts(&run, &mut done))
                .inspect_err(|_| {
                    // The storage thread gives up what is left.
                    self.progress.failed_runs.push(FailedRun {
                        number: failed.number + u64::from(done),
                        packets: failed.packets - done,
                        first: failed.first + done,
                        frames: failed.frames - done,
                        ..failed
                    });
                })?;
        }
        Ok(())
    }

    fn submit_parts(&self, run: &FrameRun, done: &mut u32) -> Result<()> {
        let step = self
            .lane
            .blocks_of(run.device, self.context.info().frame_size);
        while *done < run.frames {
            let part = FrameRun {
                first: run.first + *done,
                frames: 1,
                lba: run.lba + u64::from(*done * step),
                device: run.device,
                user_data: run.user_data + u64::from(*done),
                fua: run.fua,
                parts: false,
            };
            // Its packets were counted when they were first submitted.
            let rx_side = self.lane.lock_rx_side()?;
            let mut rx_side = self.queue_run(rx_side, 0, &part)?;
            *done += 1;
            if *done == run.frames {
                self.lane.kick(&mut rx_side);
            }
        }
        Ok(())
    }
}

/// How long the next poll of the RX ring can wait without filling the ring, after one that found this many packets.
fn pause_after(found: u32, backlog: u32) -> Duration {
    let part = (backlog / MODERATION_RING).max(1);
    MODERATION_ENTRY * backlog * part / found.max(part)
}

/// Waits for room in the SQ ring; other errors are the caller's.
fn retry(progress: &Progress, error: Error) -> Result<()> {
    if error.errno() != libc::EAGAIN {
        return Err(error);
    }
    pause(progress)
}

/// Waits until the storage thread has taken completions. `EPIPE` if it has ended.
pub(super) fn pause(progress: &Progress) -> Result<()> {
    if progress.storage_done.load(Ordering::Acquire) {
        return Err(Error::new(
            libc::EPIPE,
            "the storage thread has ended: no completion will be taken",
        ));
    }
    // If the bell is rung between the flag and the poll and missed, that costs one timeout.
    progress.waiting.store(true, Ordering::Relaxed);
    poll_readable(&[progress.room.fd()], Some(Duration::from_millis(2)))
        .map_err(|e| Error::os(&e, "waiting for completions"))?;
    progress.waiting.store(false, Ordering::Relaxed);
    progress.room.clear();
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pause_is_shorter_the_faster_packets_come() {
        let full = MODERATION_ENTRY * 2048;
        assert_eq!(pause_after(1, 2048), full);
        assert_eq!(pause_after(256, 2048), full);
        assert_eq!(pause_after(512, 2048), full / 2);
        assert_eq!(pause_after(2048, 2048), full / 8);
        assert!(pause_after(1, 16384) > MODERATION);
        assert_eq!(pause_after(1, 64), Duration::from_micros(16));
    }
}
