//! Packets into the units of a log of version 2: large ones in their frames, small ones packed.

#![forbid(unsafe_code)]

use std::cell::Cell;
use std::ops::Range;
use std::sync::atomic::Ordering;
use std::time::Instant;

use super::packets::{PREFETCH, Packets};
use super::write_target::WriteTarget;
use super::{BATCH, Progress, SEGMENT, SERIAL, SERIAL_SHIFT, SUPERBLOCK, WINDOW};
use crate::error::{Error, Result};
use crate::lane::{FrameRun, RxSideGuard};
use crate::net::rx::Received;
use crate::recorder::{Granted, UnitRecorder};

/// The device is the bound if more than this part of all frames is in flight, or half of those that the rings leave over;
/// until less than half of that is.
const BOUND: u64 = 4;
/// This part of all frames is for units.
const RESERVED: u32 = 16;
/// Packets that are published together, at most.
const PUBLISH: usize = 1024;

impl<'a> Packets<'a> {
    pub(super) fn units(&mut self) -> &mut UnitRecorder {
        match &mut self.target {
            WriteTarget::Units(log) => log,
            _ => unreachable!("only called for a log of units"),
        }
    }

    /// Stores packets. `done` counts those whose frames were handed on.
    pub(super) fn submit_units(&mut self, batch: &[Received], done: &mut usize) -> Result<()> {
        let result = self.fill_units(batch, done);
        if result.is_err() {
            self.abandon_units();
        }
        result
    }

    fn fill_units(&mut self, batch: &[Received], done: &mut usize) -> Result<()> {
        let (lane, progress) = (self.lane, self.progress);
        let mut rx_side = lane.lock_rx_side()?;
        let mut payload_bytes = 0;
        let mut number = progress.submitted.load(Ordering::Acquire) + self.filling.unsubmitted;
        self.completed = progress.completed.load(Ordering::Acquire);
        self.weigh(&mut rx_side);
        self.keep_spare(&mut rx_side)?;
        let log = self.units();
        log.look_at_clock();
        let most = log.most_outstanding().min(WINDOW - 1);
        batch
            .iter()
            .take(PREFETCH)
            .for_each(|packet| log.prefetch(packet));
        for (place, packet) in batch.iter().enumerate() {
            if let Some(ahead) = batch.get(place + PREFETCH) {
                self.units().prefetch(ahead);
            }
            if number - self.completed > most {
                rx_side = self.end_unit(rx_side)?;
                rx_side = self.end_run(rx_side)?;
                rx_side = self.wait_unlocked(rx_side, |p| {
                    number - p.completed.load(Ordering::Acquire) <= most
                })?;
                self.completed = progress.completed.load(Ordering::Acquire);
            }
            if !self.store_fast(packet, number)? {
                let stored;
                (rx_side, stored) = self.store_one(rx_side, packet, number)?;
                if !stored {
                    progress.fail(libc::ENOSPC);
                    progress.no_space.add(1);
                    self.target.skip(packet);
                    lane.frame_release(packet.frame)?;
                    *done = place + 1;
                    continue;
                }
            }
            number += 1;
            payload_bytes += u64::from(packet.headers.payload_len);
            *done = place + 1;
        }
        self.filling.settle(lane)?;
        lane.free(&mut self.filling.freed);
        rx_side = self.end_run(rx_side)?;
        progress.payload_bytes.add(payload_bytes);
        progress
            .next_lba
            .store(self.target.next_lba(), Ordering::Relaxed);
        progress.wraps.store(self.target.wraps(), Ordering::Relaxed);
        // Each publication may wake the storage thread, which can wait while more packets are there. `publish` follows when
        // there are none.
        self.filling.unpublished += batch.len();
        if self.filling.unpublished >= PUBLISH {
            self.filling.unpublished = 0;
            lane.kick(&mut rx_side);
        }
        Ok(())
    }

    /// Publishes what was submitted, once the RX ring was found empty.
    pub(super) fn publish(&mut self) -> Result<()> {
        match std::mem::take(&mut self.filling.unpublished) {
            0 => Ok(()),
            _ => self.lane.submit_pending(),
        }
    }

    /// Waits, without the receiver's role and with everything published.
    fn wait_unlocked(
        &mut self,
        mut rx_side: RxSideGuard<'a>,
        reached: impl Fn(&Progress) -> bool,
    ) -> Result<RxSideGuard<'a>> {
        self.filling.settle(self.lane)?;
        self.lane.free(&mut self.filling.freed);
        self.lane.kick(&mut rx_side);
        drop(rx_side);
        self.wait_for(reached)?;
        self.lane.lock_rx_side()
    }

    /// Looks at how much the device has to do, and keeps some frames out of the fill ring: without a free one, nothing can be
    /// packed, least of all when the device is the bound.
    fn weigh(&mut self, rx_side: &mut RxSideGuard<'_>) {
        let in_flight = self.filling.submitted.saturating_sub(self.frames_done());
        let info = self.context.info();
        let frame_count = self.frames_of_lane();
        let frames = u64::from(frame_count);
        let backlog = info.network.map_or(0, |network| network.backlog);
        let backlog = backlog.min(frame_count);
        self.filling.bound = is_bound(in_flight, frames, backlog.into(), self.filling.bound);
        // Besides those that a batch takes out of the RX ring at once.
        let kept = in_flight + frames / u64::from(RESERVED) + BATCH as u64;
        let most = frames.saturating_sub(kept);
        rx_side.fill_at_most((most as u32).max(frame_count.min(4 * BATCH as u32) / 4));
    }

    /// Frames that are there for this lane, if all lanes need as many.
    fn frames_of_lane(&self) -> u32 {
        self.context.info().frame_count / self.context.lanes().len() as u32
    }

    /// Before the first packet: sets frames aside.
    pub(super) fn prepare_units(&mut self) -> Result<()> {
        let mut rx_side = self.lane.lock_rx_side()?;
        let frames = self.frames_of_lane() / RESERVED;
        self.lane.keep_for_runs(&mut rx_side, frames);
        self.weigh(&mut rx_side);
        self.keep_spare(&mut rx_side)
    }

    /// With several devices: keeps a frame for the case that one fails.
    fn keep_spare(&mut self, rx_side: &mut RxSideGuard<'_>) -> Result<()> {
        if self.filling.spare.is_none() && self.has_many_devices() {
            let frame = self.lane.allocate_run(rx_side, 1)?;
            self.filling.spare = frame.map(|(frame, _)| frame);
        }
        Ok(())
    }

    pub(super) fn give_spare_back(&mut self) {
        let spare = self.filling.spare.take();
        self.release(spare.map_or(0..0, |frame| frame..frame + 1));
    }

    /// As `weigh`, while no packets come.
    pub(super) fn weigh_idle(&mut self) -> Result<()> {
        if matches!(self.target, WriteTarget::Units(_)) {
            let mut rx_side = self.lane.lock_rx_side()?;
            self.weigh(&mut rx_side);
        }
        Ok(())
    }

    /// Stores one packet in the usual cases: into the open unit, or next to the packet before it. `false`: it is another case,
    /// and nothing was done.
    #[inline(always)]
    fn store_fast(&mut self, packet: &Received, number: u64) -> Result<bool> {
        let WriteTarget::Units(log) = &mut self.target else {
            return Ok(false);
        };
        let filling = &mut self.filling;
        if log.packs(packet, filling.bound) {
            let Some(unit) = log.pack(packet) else {
                return Ok(false);
            };
            if filling.copied.end != packet.frame || filling.into != unit {
                filling.settle(self.lane)?;
                filling.copied = packet.frame..packet.frame;
                filling.into = unit;
            }
            filling.copied.end += 1;
            filling.bytes += u64::from(packet.len);
            filling.unsubmitted += 1;
            return Ok(true);
        }
        if filling.is_open() || log.room() == 0 || !self.runs.continues(packet.frame) {
            return Ok(false);
        }
        let next = log.in_place(packet, number);
        filling.submitted += 1;
        let joined = self.runs.join(&next);
        debug_assert!(joined, "it was asked, and the next slot follows");
        Ok(true)
    }

    /// Stores one packet. `false`: the log is full.
    fn store_one(
        &mut self,
        mut rx_side: RxSideGuard<'a>,
        packet: &Received,
        number: u64,
    ) -> Result<(RxSideGuard<'a>, bool)> {
        let bound = self.filling.bound;
        if self.units().packs(packet, bound) {
            rx_side = self.end_unit(rx_side)?;
            let room;
            (rx_side, room) = self.make_room(rx_side)?;
            if !room {
                return Ok((rx_side, false));
            }
            let begun;
            (rx_side, begun) = self.begin_unit(rx_side, packet, number)?;
            if begun && self.store_fast(packet, number)? {
                return Ok((rx_side, true));
            }
        }
        rx_side = self.end_unit(rx_side)?;
        let room;
        (rx_side, room) = self.make_room(rx_side)?;
        if !room {
            return Ok((rx_side, false));
        }
        let next = self.units().in_place(packet, number);
        self.filling.submitted += 1;
        if !self.runs.join(&next) {
            rx_side = self.end_run(rx_side)?;
            self.begin_run(next);
        }
        Ok((rx_side, true))
    }

    /// Opens a unit that begins with a packet. `false`: the packet is to be stored in its own frame, since none is free.
    fn begin_unit(
        &mut self,
        mut rx_side: RxSideGuard<'a>,
        packet: &Received,
        number: u64,
    ) -> Result<(RxSideGuard<'a>, bool)> {
        let lane = self.lane;
        loop {
            // Another segment may have been begun while frames were waited for.
            let room;
            (rx_side, room) = self.make_room(rx_side)?;
            if !room {
                return Ok((rx_side, false));
            }
            let log = self.units();
            let wanted = log.frames_of_unit().min(lane.longest_run(log.device(), 0));
            let done = self.frames_done();
            if let Some((first, count)) = lane.allocate_run(&mut rx_side, wanted)? {
                if self.units().fits(packet, count) {
                    lane.arrive_with(packet.frame, first);
                    self.units().begin_unit(first, count, packet, number);
                    self.filling.since = Some(Instant::now());
                    return Ok((rx_side, true));
                }
                self.release(first..first + count);
            }
            if self.units().takes_in_place(packet) {
                return Ok((rx_side, false));
            }
            rx_side = self.wait_for_frames(rx_side, done)?;
        }
    }

    fn frames_done(&self) -> u64 {
        self.progress.frames_done.load(Ordering::Acquire)
    }

    /// No frame was free, or none that will do: waits until the device has done more than `before`, which was read before that
    /// look. `ENOBUFS` if it had nothing to do.
    fn wait_for_frames(
        &mut self,
        mut rx_side: RxSideGuard<'a>,
        before: u64,
    ) -> Result<RxSideGuard<'a>> {
        rx_side = self.end_run(rx_side)?;
        if before == self.filling.submitted {
            return Err(Error::new(
                libc::ENOBUFS,
                "no frame is free for a log, and none is on its way to the device: release frames, use a shorter fill ring, or \
                 more frames",
            ));
        }
        self.wait_unlocked(rx_side, |p| p.frames_done.load(Ordering::Acquire) != before)
    }

    /// Begins a segment, if the one that is being written has no slot left, or its device has failed. No unit is open. `false`:
    /// the log is full.
    fn make_room(&mut self, rx_side: RxSideGuard<'a>) -> Result<(RxSideGuard<'a>, bool)> {
        let log = self.units();
        if log.room() > 0 && !log.has_to_leave() {
            return Ok((rx_side, true));
        }
        let first = log.first_unwritten();
        self.begin_segment(rx_side, first)
    }

    /// Begins a segment, whose first packet has this sequence number. `false`: the log is full.
    pub(super) fn begin_segment(
        &mut self,
        mut rx_side: RxSideGuard<'a>,
        first: u64,
    ) -> Result<(RxSideGuard<'a>, bool)> {
        // What is in the old segment goes there.
        rx_side = self.end_run(rx_side)?;
        let segment = loop {
            let completed = self.progress.completed.load(Ordering::Acquire);
            let log = self.units();
            log.release_segments(completed);
            match log.next_segment() {
                Granted::Segment(segment) => break segment,
                Granted::Full => return Ok((rx_side, false)),
                Granted::Busy => {
                    // Others give segments back too, and say nothing.
                    let looked = Cell::new(false);
                    rx_side = self.wait_unlocked(rx_side, |_| looked.replace(true))?;
                }
            }
        };
        let frame;
        (rx_side, frame) = self.take_frame(rx_side)?;
        let completed = self.progress.completed.load(Ordering::Acquire);
        let header = self
            .units()
            .begin_segment(frame, &segment, completed, first);
        rx_side = self.submit_of_segment(rx_side, header)?;
        Ok((rx_side, true))
    }

    /// Submits a unit without packets to the segment that is being written.
    fn submit_of_segment(
        &mut self,
        rx_side: RxSideGuard<'a>,
        write: FrameRun,
    ) -> Result<RxSideGuard<'a>> {
        let mark = self.units().mark();
        let set = self.units().set().clone();
        set.mark_submitted(mark);
        self.submit_marked(rx_side, write, SEGMENT | mark)
            .inspect_err(|_| set.mark_done(mark))
    }

    /// A free frame, as soon as there is one.
    fn take_frame(&mut self, mut rx_side: RxSideGuard<'a>) -> Result<(RxSideGuard<'a>, u32)> {
        loop {
            let done = self.frames_done();
            if let Some((frame, _)) = self.lane.allocate_run(&mut rx_side, 1)? {
                return Ok((rx_side, frame));
            }
            if self.units().is_rescuing()
                && let Some(frame) = self.filling.spare.take()
            {
                return Ok((rx_side, frame));
            }
            rx_side = self.wait_for_frames(rx_side, done)?;
        }
    }

    /// Submits a frame without packets, after the packets before it.
    fn submit_marked(
        &mut self,
        mut rx_side: RxSideGuard<'a>,
        mut write: FrameRun,
        mark: u64,
    ) -> Result<RxSideGuard<'a>> {
        rx_side = self.end_run(rx_side)?;
        write.user_data = mark;
        let progress = self.progress;
        progress.superblocks.fetch_add(1, Ordering::AcqRel);
        self.filling.submitted += 1;
        self.filling.serial += 1;
        write.user_data |= self.filling.serial << SERIAL_SHIFT & SERIAL;
        self.queue_run(rx_side, 0, &write).inspect_err(|_| {
            progress.superblocks.fetch_sub(1, Ordering::AcqRel);
            self.release(write.first..write.first + write.frames);
        })
    }

    /// Submits the open unit, if there is one.
    fn end_unit(&mut self, mut rx_side: RxSideGuard<'a>) -> Result<RxSideGuard<'a>> {
        if !self.filling.is_open() {
            return Ok(rx_side);
        }
        self.filling.settle(self.lane)?;
        rx_side = self.end_run(rx_side)?;
        let packets = std::mem::take(&mut self.filling.unsubmitted);
        self.filling.since = None;
        let Some((write, unused)) = self.units().end_unit() else {
            return Ok(rx_side);
        };
        self.release(unused);
        self.filling.submitted += u64::from(write.frames);
        self.queue_run(rx_side, packets as u32, &write)
            .inspect_err(|_| self.release(write.first..write.first + write.frames))
    }

    /// Ends a unit that is open longer than the moderation, or any if `now`.
    pub(super) fn end_old_unit(&mut self, now: bool) -> Result<()> {
        if self.filling.is_open() && (now || self.filling.is_older(self.moderation)) {
            let rx_side = self.lane.lock_rx_side()?;
            let mut rx_side = self.end_unit(rx_side)?;
            self.lane.free(&mut self.filling.freed);
            self.lane.kick(&mut rx_side);
        }
        Ok(())
    }

    /// Writes a superblock.
    pub(super) fn unit_superblock(&mut self) -> Result<()> {
        let rx_side = self.lane.lock_rx_side()?;
        let (rx_side, frame) = self.take_frame(rx_side)?;
        let write = self.units().checkpoint(frame);
        let mark = SUPERBLOCK | self.progress.failed.get() & !SERIAL;
        let mut rx_side = self.submit_marked(rx_side, write, mark)?;
        self.lane.kick(&mut rx_side);
        Ok(())
    }

    /// Writes a record of losses, unless the log is full.
    pub(super) fn tell_losses(&mut self) -> Result<()> {
        if !self.units().has_losses_to_tell() {
            return Ok(());
        }
        let rx_side = self.lane.lock_rx_side()?;
        let rx_side = self.end_unit(rx_side)?;
        let (rx_side, frame) = self.take_frame(rx_side)?;
        let (mut rx_side, room) = self.make_room(rx_side)?;
        if room {
            let write = self.units().tell_losses(frame);
            rx_side = self.submit_of_segment(rx_side, write)?;
        } else {
            self.release(frame..frame + 1);
        }
        self.lane.free(&mut self.filling.freed);
        self.lane.kick(&mut rx_side);
        Ok(())
    }

    /// After an error: gives back all that was not submitted.
    pub(super) fn abandon_units(&mut self) {
        let run = std::mem::take(&mut self.runs.open);
        self.release(run.first..run.first + run.frames);
        if self.filling.settle(self.lane).is_err() {
            self.filling.bytes = 0;
            let copied = std::mem::take(&mut self.filling.copied);
            self.release(copied);
        }
        self.lane.free(&mut self.filling.freed);
        self.filling.unsubmitted = 0;
        self.filling.since = None;
        if let Some(frames) = self.units().drop_unit() {
            self.release(frames);
        }
    }

    pub(super) fn release(&self, frames: Range<u32>) {
        for frame in frames {
            // A frame that is not held was given back already.
            let _ = self.lane.frame_release(frame);
        }
    }
}

/// Whether the device is slower than the packets, if so many of all frames are in flight. `backlog`: frames that may wait in
/// the rings. `was`: the answer before.
fn is_bound(in_flight: u64, frames: u64, backlog: u64, was: bool) -> bool {
    let spare = frames - backlog;
    let limit = (frames / BOUND).min(spare / 2).max(BATCH as u64);
    in_flight > if was { limit / 2 } else { limit }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_device_is_the_bound_when_many_frames_are_in_flight() {
        // A quarter of all frames, and then an eighth.
        assert!(!is_bound(8192, 32768, 16384, false));
        assert!(is_bound(8193, 32768, 16384, false));
        assert!(is_bound(4097, 32768, 16384, true));
        assert!(!is_bound(4096, 32768, 16384, true));
        // Half of the few that the rings leave over.
        assert!(!is_bound(4096, 40960, 32768, false));
        assert!(is_bound(4097, 40960, 32768, false));
        // One batch is in flight also with a fast device.
        assert!(!is_bound(BATCH as u64, 512, 512, false));
    }
}
