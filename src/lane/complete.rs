//! Completions: out of the CQ ring, and the frames back to their owners.

#![forbid(unsafe_code)]

use std::mem::take;
use std::sync::atomic::Ordering;

use super::Lane;
use crate::error::Result;
use crate::frame::{Freed, Outcomes, PacketOutcome, Settled, words_of};
use crate::ring::Consumer;
use crate::sys::abi::{
    CQE_BOUNCED, CQE_BUFFER, CQE_DEVICE_SHIFT, CQE_DNR, CQE_FRAME, CQE_FRAMES_SHIFT, CQE_SPILLED,
    UnifiedCqe,
};
use crate::sys::event::monotonic_ns;
use crate::sys::probe;

/// One finished command.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Completion {
    pub user_data: u64,
    /// 0, or a negative errno if the system failed rather than the device.
    pub result: i32,
    /// NVMe status: type << 8 | code; 0 is success.
    pub status: u16,
    /// The device says that trying again is useless.
    pub dnr: bool,
    /// The library copied the data.
    pub bounced: bool,
    /// The device failed it, and it is in the spill.
    pub spilled: bool,
    /// Number of the device. Of a flush of all devices, that with the status.
    pub device: u8,
    /// Bytes moved.
    pub len: u32,
    /// The frame, if the caller has it back; the first one of a run.
    pub frame: Option<u32>,
    /// Frames that travelled with the command.
    pub frames: u32,
    /// Packets whose outcome it has decided.
    pub packets: u32,
    /// Packets of a failed write whose frames came back, and which have no outcome yet.
    pub undecided: u32,
    /// It decided nothing: its frames are written to another device too.
    pub held: bool,
}

/// What a batch of completions shares.
#[derive(Default)]
pub(super) struct Batch {
    /// The lane whose packets the sums below are about.
    owner: u32,
    /// The clock, read once if it is needed. ns; 0 before.
    now: u64,
    pub(super) freed: Freed,
    /// A frame was freed.
    pub(super) has_freed: bool,
    stored: u64,
    stored_bytes: u64,
    failed: u64,
    released: u64,
}

impl Batch {
    fn now(&mut self) -> u64 {
        if self.now == 0 {
            self.now = monotonic_ns();
        }
        self.now
    }

    /// Counts what became of the packets of a frame. `bytes`: that were written of them.
    #[inline(always)]
    pub(super) fn count(&mut self, frame: u32, settled: Settled, bytes: u32) {
        let packets = settled.packets.into();
        match settled.outcome {
            PacketOutcome::Empty => {}
            PacketOutcome::Stored => {
                self.stored += packets;
                self.stored_bytes += u64::from(bytes);
            }
            PacketOutcome::Failed => {
                self.failed += packets;
                probe::dropped(c"failed", packets, frame);
            }
            PacketOutcome::Released => {
                self.released += packets;
                probe::dropped(c"released", packets, frame);
            }
        }
    }

    /// Counts what became of the packets of neighbouring frames that the caller released.
    #[inline(always)]
    pub(super) fn count_run(&mut self, first: u32, outcomes: Outcomes) {
        self.has_freed = true;
        self.stored += outcomes.stored;
        for (cause, packets, sum) in [
            (c"failed", outcomes.failed, &mut self.failed),
            (c"released", outcomes.released, &mut self.released),
        ] {
            if packets > 0 {
                *sum += packets;
                probe::dropped(cause, packets, first);
            }
        }
    }
}

impl Lane {
    /// What follows in the batch is about the packet of this frame: it counts on the lane where it was received.
    #[inline(always)]
    pub(super) fn attribute(&self, frame: u32, batch: &mut Batch) {
        if self.frames.pool.is_shared() {
            self.attribute_shared(frame, batch);
        }
    }

    // Apart: a lane alone does without it.
    #[inline(never)]
    fn attribute_shared(&self, frame: u32, batch: &mut Batch) {
        let owner = self.owner(frame);
        if owner != batch.owner {
            self.add_outcomes(batch);
            batch.owner = owner;
        }
    }

    #[inline(always)]
    fn record_latency(&self, owner: u32, latency: u64, packets: u64) {
        let outcomes = &self.peers[owner as usize].outcomes;
        match owner == self.number {
            true => outcomes.latency.record(latency, packets),
            false => outcomes
                .latency_elsewhere
                .record_among_others(latency, packets),
        }
    }

    /// Takes up to `out.len()` completions; 0 if there are none. Drives an inline engine. Taker's thread.
    pub fn completions(&self, out: &mut [Completion]) -> Result<usize> {
        self.check_process()?;
        // The role comes first: without it nothing is touched, least of all what wakes the thread that has it.
        let mut taking = self.lock_taking()?;
        let mut pumped = Ok(());
        if self.is_inline() {
            pumped = self.alive();
            if pumped.is_ok()
                && let Some(mut engine) = self.inline_engine()?
            {
                engine.awake();
                pumped = engine.pump(true).map(drop);
            }
        }
        // Whoever looks does not sleep: a flag that stays set would cost a system call with every publication.
        if taking.wants_wakeup() {
            taking.awake();
        }
        let mut count = self.take(&mut taking, out)?;
        if count == 0 {
            // What completed before a failure was handed out above.
            pumped?;
            self.alive()?;
        }
        // A short count promises a wakeup for the next completion. What came between the last look and the arming gets
        // no wakeup, so it is taken too.
        while self.poll.is_used() && count < out.len() {
            match self.arm_take(&mut taking) {
                Ok(true) => break,
                Ok(false) => count += self.take(&mut taking, &mut out[count..])?,
                Err(error) if count == 0 => return Err(error),
                // The next call reports it again.
                Err(_) => break,
            }
        }
        Ok(count)
    }

    fn take(&self, taking: &mut Consumer<UnifiedCqe>, out: &mut [Completion]) -> Result<usize> {
        let mut count = 0;
        let mut batch = Batch::default();
        while count < out.len() {
            let cqe = match taking.pop() {
                Ok(Some(cqe)) => cqe,
                Ok(None) => break,
                Err(error) if count == 0 => return Err(error),
                // What was settled is handed out; the next call reports the error again.
                Err(_) => break,
            };
            out[count] = self.settle(&cqe, &mut batch);
            count += 1;
        }
        if count > 0 {
            taking.release();
            self.shared.cq_released();
            self.give_back(batch);
        }
        Ok(count)
    }

    /// Counts what a batch of completions has decided, and frees what it has freed.
    pub(super) fn give_back(&self, mut batch: Batch) {
        self.add_outcomes(&mut batch);
        if batch.has_freed {
            self.frames.pool.give_back(&mut batch.freed);
            self.wake_receivers(batch.freed.lanes);
        }
    }

    /// Counts what a batch has decided.
    // Inline: for a single frame, most of it is known to be zero.
    #[inline(always)]
    pub(super) fn add_outcomes(&self, batch: &mut Batch) {
        let outcomes = &self.peers[batch.owner as usize].outcomes;
        outcomes.stored.add(take(&mut batch.stored));
        outcomes.stored_bytes.add(take(&mut batch.stored_bytes));
        outcomes.failed.add(take(&mut batch.failed));
        outcomes.released.add(take(&mut batch.released));
    }

    /// What a completion means for its frames.
    pub(super) fn settle(&self, cqe: &UnifiedCqe, batch: &mut Batch) -> Completion {
        if self.rescuing.load(Ordering::Relaxed)
            && cqe.flags & CQE_FRAME != 0
            && let Some(held) = self.settle_held(cqe, batch)
        {
            return held;
        }
        self.settle_frames(cqe, batch)
    }

    pub(super) fn settle_frames(&self, cqe: &UnifiedCqe, batch: &mut Batch) -> Completion {
        let mut completion = Completion {
            user_data: cqe.user_data,
            result: cqe.result,
            status: cqe.status as u16,
            dnr: cqe.flags & CQE_DNR != 0,
            bounced: cqe.flags & CQE_BOUNCED != 0,
            spilled: cqe.flags & CQE_SPILLED != 0,
            len: cqe.len,
            device: (cqe.flags >> CQE_DEVICE_SHIFT) as u8,
            ..Completion::default()
        };
        if cqe.flags & CQE_FRAME == 0 {
            if cqe.flags & CQE_BUFFER != 0 {
                self.settle_buffer(cqe, &mut completion);
            }
            return completion;
        }
        let frames = (cqe.flags >> CQE_FRAMES_SHIFT) + 1;
        let located = self.map.locate(cqe.dma_addr);
        let Some((first, _)) = located.filter(|(first, _)| self.map.has(*first, frames)) else {
            completion.result = -libc::EBADMSG;
            return completion;
        };
        completion.frames = frames;
        // Of a run, every frame is written whole.
        let bytes = match frames {
            1 => cqe.len,
            _ => self.map.frame_size(),
        };
        let success = cqe.status == 0;
        for (first, count) in words_of(first, frames) {
            self.settle_word(first, count, bytes, success, &mut completion, batch);
        }
        if completion.frame.is_some() {
            completion.frame = Some(first);
        }
        completion
    }

    /// The same for frames that share a word of the table. The table, not the entry, says whether they were in flight: an
    /// entry may lie.
    #[inline(always)]
    fn settle_word(
        &self,
        first: u32,
        count: u32,
        bytes: u32,
        success: bool,
        completion: &mut Completion,
        batch: &mut Batch,
    ) {
        self.attribute(first, batch);
        let owner = batch.owner;
        if success && count > 1 {
            // Read before they are freed: they get new packets then.
            let mut arrivals = [0; 4];
            let found = self.frames.table.arrivals(first, count);
            arrivals.iter_mut().zip(found).for_each(|(to, at)| *to = at);
            if self.frames.finish_stored(first, count, &mut batch.freed) {
                for arrival in &arrivals[..count as usize] {
                    let latency = batch.now().saturating_sub(*arrival);
                    self.record_latency(owner, latency, 1);
                }
                batch.stored += u64::from(count);
                batch.stored_bytes += u64::from(bytes) * u64::from(count);
                batch.has_freed = true;
                completion.packets += count;
                return;
            }
        }
        for frame in first..first + count {
            let written = self.frames.table.first_write(frame);
            match self.frames.finish(frame, success, &mut batch.freed) {
                Ok(settled) => {
                    if let Some(write) = written {
                        if settled.is_none() && write.keep_failed {
                            completion.undecided += write.packets;
                        } else {
                            let latency = batch.now().saturating_sub(write.arrival);
                            self.record_latency(owner, latency, write.packets.into());
                        }
                    }
                    match settled {
                        None => completion.frame = Some(frame),
                        Some(settled) => {
                            batch.count(frame, settled, bytes);
                            if completion.frames > 1 && settled.outcome == PacketOutcome::Empty {
                                // Its packets are counted with the first frame of the run.
                                batch.stored_bytes += u64::from(if success { bytes } else { 0 });
                            }
                            batch.has_freed = true;
                            completion.packets += settled.packets;
                        }
                    }
                }
                Err(_) => completion.result = -libc::EBADMSG,
            }
        }
    }
}
