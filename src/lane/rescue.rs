//! Frames whose write its device does not answer, and which are written to another device meanwhile: they are free when both
//! writes have ended.

#![forbid(unsafe_code)]

use std::sync::atomic::Ordering;

use super::complete::Batch;
use super::{Completion, FrameRun, Lane, RxSide};
use crate::error::{Error, Result};
use crate::storage::command::{self, entry_flags, opcode};
use crate::sys::abi::{CQE_FRAME, CQE_FRAMES_SHIFT, UnifiedCqe};

/// A run of frames that is written twice.
#[derive(Debug, Clone, Copy)]
pub(super) struct Rescue {
    first: u32,
    frames: u32,
    /// How the write that had no answer ended.
    old: Option<bool>,
    /// Whether the packets are stored as far as the other one is concerned, which has ended.
    new: Option<bool>,
    /// Their headers named another place before the old write ended: nobody knows what it wrote.
    moved: bool,
}

impl Lane {
    /// A write of these frames has no answer. From now on its completion decides nothing, and its frames stay in flight until
    /// `rescued` was told too. The packets in them. Taker's thread, between two batches of completions.
    pub(crate) fn hold_for_rescue(&self, first: u32, frames: u32) -> Result<u32> {
        if frames == 0 || !self.map.has(first, frames) {
            return Err(Error::new(libc::EINVAL, "no such frames are in flight"));
        }
        let writes =
            (first..first + frames).filter_map(|frame| self.frames.table.first_write(frame));
        let packets = writes.map(|write| write.packets).sum();
        self.rescues.lock().push(Rescue {
            first,
            frames,
            old: None,
            new: None,
            moved: false,
        });
        self.rescuing.store(true, Ordering::Relaxed);
        Ok(packets)
    }

    /// Writes frames that are in flight once more, to another place. The completion has no frame. Receiver's thread.
    pub(crate) fn queue_rescue(&self, rx_side: &mut RxSide, run: &FrameRun) -> Result<()> {
        self.limits_of(run.device)?;
        let len = run.frames * self.map.frame_size();
        let mut sqe = command::transfer(
            opcode::WRITE,
            run.lba,
            self.blocks_of(run.device, len),
            self.map.start(run.first),
            len,
            run.fua,
        );
        sqe.user_data = run.user_data;
        sqe.flags = entry_flags::PARTS | super::submit::to_device(run.device);
        self.queue(rx_side, sqe, true)
    }

    /// The completion of a frame that is held for its rescue, if it is one.
    #[cold]
    pub(super) fn settle_held(&self, cqe: &UnifiedCqe, batch: &mut Batch) -> Option<Completion> {
        let (first, _) = self.map.locate(cqe.dma_addr)?;
        let mut rescues = self.rescues.lock();
        let place = rescues
            .iter()
            .position(|one| one.first == first && one.old.is_none())?;
        let good = cqe.status == 0;
        rescues[place].old = Some(good);
        let rescue = rescues[place];
        if rescue.new.is_some() {
            rescues.swap_remove(place);
        }
        drop(rescues);
        let mut completion = match rescue.new {
            Some(new) => self.settle_both(&rescue, new || good && !rescue.moved, batch),
            None => Completion::default(),
        };
        completion.user_data = cqe.user_data;
        completion.status = cqe.status as u16;
        completion.held = true;
        Some(completion)
    }

    /// The other write of these frames has ended. `stored`: one of both has stored the packets. `moved`: their headers name
    /// another place since then, and what the first one stores is none of them. If it has ended too, the frames are settled: what
    /// became of them. Taker's thread.
    pub(crate) fn rescued(&self, first: u32, stored: bool, moved: bool) -> Option<Completion> {
        let mut rescues = self.rescues.lock();
        let place = rescues
            .iter()
            .position(|one| one.first == first && one.new.is_none())?;
        (rescues[place].new, rescues[place].moved) = (Some(stored), moved);
        let rescue = rescues[place];
        let old = rescue.old? && !moved;
        rescues.swap_remove(place);
        self.rescuing.store(!rescues.is_empty(), Ordering::Relaxed);
        drop(rescues);
        let mut batch = Batch::default();
        let completion = self.settle_both(&rescue, stored || old, &mut batch);
        self.give_back(batch);
        Some(completion)
    }

    fn settle_both(&self, rescue: &Rescue, good: bool, batch: &mut Batch) -> Completion {
        let cqe = UnifiedCqe {
            status: u32::from(!good),
            dma_addr: self.map.start(rescue.first),
            len: rescue.frames * self.map.frame_size(),
            flags: CQE_FRAME | (rescue.frames - 1) << CQE_FRAMES_SHIFT,
            ..UnifiedCqe::default()
        };
        self.settle_frames(&cqe, batch)
    }
}
