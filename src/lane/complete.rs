//! Completions: out of the CQ ring, and the frames back to their owners.

#![forbid(unsafe_code)]

use super::Lane;
use crate::error::Result;
use crate::frame::Freed;
use crate::ring::Consumer;
use crate::sys::abi::{CQE_BOUNCED, CQE_DNR, CQE_FRAME, CQE_SPILLED, UnifiedCqe};
use crate::sys::event::monotonic_ns;

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
    /// Bytes moved.
    pub len: u32,
    /// The frame, if the caller has it back.
    pub frame: Option<u32>,
}

/// What a batch of completions shares.
#[derive(Default)]
pub(super) struct Batch {
    /// The clock, read once if it is needed. ns; 0 before.
    now: u64,
    freed: Freed,
    /// A frame was freed.
    has_freed: bool,
}

impl Lane {
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

    /// Frees what a batch of completions has freed.
    pub(super) fn give_back(&self, mut batch: Batch) {
        if batch.has_freed {
            self.frames.pool.give_back(&mut batch.freed);
            self.wake_receiver();
        }
    }

    /// What a completion means for its frame.
    pub(super) fn settle(&self, cqe: &UnifiedCqe, batch: &mut Batch) -> Completion {
        let mut completion = Completion {
            user_data: cqe.user_data,
            result: cqe.result,
            status: cqe.status as u16,
            dnr: cqe.flags & CQE_DNR != 0,
            bounced: cqe.flags & CQE_BOUNCED != 0,
            spilled: cqe.flags & CQE_SPILLED != 0,
            len: cqe.len,
            frame: None,
        };
        if cqe.flags & CQE_FRAME == 0 {
            return completion;
        }
        let Some((frame, _)) = self.map.locate(cqe.dma_addr) else {
            completion.result = -libc::EBADMSG;
            return completion;
        };
        if let Some(arrival) = self.frames.table.first_write(frame) {
            if batch.now == 0 {
                batch.now = monotonic_ns();
            }
            let latency = batch.now.saturating_sub(arrival);
            self.outcomes.latency.record(latency, 1);
        }
        // The table, not the entry, says whether that frame was in flight: an entry may lie.
        let success = cqe.status == 0;
        match self.frames.finish(frame, success, &mut batch.freed) {
            Ok(None) => completion.frame = Some(frame),
            Ok(Some(outcome)) => {
                self.count_outcome(frame, outcome, cqe.len);
                batch.has_freed = true;
            }
            Err(_) => completion.result = -libc::EBADMSG,
        }
        completion
    }
}
