//! Completion: results out of io_uring, the next step of each command or its end, and completions into the CQ ring.

#![forbid(unsafe_code)]

use super::slab::Answer;
use super::{DOORBELL_DATA, Engine, Turn};
use crate::error::{Error, Result};
use crate::storage::command::{self, opcode};
use crate::storage::device::MAX_DEVICES;
use crate::storage::task::{Outcome, Step};
use crate::sys::abi::{
    CQE_BOUNCED, CQE_BUFFER, CQE_DEVICE_SHIFT, CQE_DNR, CQE_FRAME, CQE_FRAMES_SHIFT, CQE_SPILLED,
    CQE_STORES_NOTHING, UnifiedCqe,
};
use crate::sys::event::monotonic_ns;
use crate::sys::uring::{Op, Reaped};
use std::sync::atomic::Ordering;

impl Engine {
    /// Takes the results of operations that ended.
    pub(super) fn reap(&mut self, turn: &mut Turn) -> Result<()> {
        let mut before = [0; MAX_DEVICES];
        for (before, target) in before.iter_mut().zip(&self.targets) {
            *before = target.operating;
        }
        let mut reaped = std::mem::take(&mut self.reaped);
        reaped.clear();
        // The slab bounds what can be in flight, so this never grows the vector.
        self.ring.reap(|done| reaped.push(done));
        let mut result = Ok(());
        for done in &reaped {
            if done.user_data == DOORBELL_DATA {
                self.bell_armed = false;
                self.shared.engine_bell.clear();
                continue;
            }
            let slot = done.user_data as u16;
            self.operation_ended(slot);
            if result.is_err() {
                // The rings are broken: these have ended too, but nobody can be told.
                self.forget(slot);
                continue;
            }
            let step = self.next_step(slot, done);
            result = self.proceed(slot, step, turn);
        }
        self.reaped = reaped;
        for (before, target) in before.iter().zip(&mut self.targets) {
            target.freed = target.operating < *before;
        }
        result
    }

    /// The device has one operation less. It has nothing to do with a pause.
    pub(super) fn operation_ended(&mut self, index: u16) {
        let slot = self.slab.at(index);
        let among_others = self.targets.len() > 1;
        if !slot.task.pausing {
            let target = &mut self.targets[slot.target as usize];
            target.operating -= 1;
            // A flush says nothing about writes.
            if among_others && slot.command.len > 0 {
                target.young_answers |= slot.looks == 0;
                target.device.answers.fetch_add(1, Ordering::Relaxed);
            }
            self.publish_operating(slot.target);
        }
    }

    /// For the statistics: how many operations a device has now.
    #[inline(always)]
    pub(super) fn publish_operating(&self, target: u8) {
        let number = usize::from(target);
        let operating = self.targets[number].operating;
        let counts = &self.shared.stats.devices[number];
        counts.in_flight.store(operating.into(), Ordering::Relaxed);
    }

    fn next_step(&mut self, index: u16, done: &Reaped) -> Step {
        let slot = self.slab.at_mut(index);
        let backend = &self.targets[slot.target as usize].backend;
        if let Some(failure) = slot.spilling {
            self.spilled(index, failure, done.result)
        } else if slot.table.is_some() {
            backend.gathered_ended(&slot.task, done.result)
        } else {
            let retry = &self.config.retry;
            backend.advance(&mut slot.task, done.result, &self.memory, retry)
        }
    }

    /// Carries out a step of a command, and begins the entries that come after it if it was part of a failed run.
    pub(super) fn proceed(&mut self, index: u16, step: Step, turn: &mut Turn) -> Result<()> {
        let (mut index, mut step) = (index, step);
        while let Some(next) = self.carry_out(index, step, turn)? {
            index = next;
            step = self.first_step(index);
        }
        Ok(())
    }

    /// Queues a command's next operation, or ends the command. Returns the entry to begin now, if any.
    fn carry_out(&mut self, index: u16, step: Step, turn: &mut Turn) -> Result<Option<u16>> {
        let slot = self.slab.at(index);
        let target = slot.target;
        let mut outcome = match step {
            Step::Submit(op) => match self.queue_for(target, &op, u64::from(index)) {
                Ok(()) => {
                    // The device has nothing to do with a pause.
                    if !matches!(op, Op::Pause { .. }) {
                        self.targets[target as usize].operating += 1;
                        self.shared.stats.devices[target as usize].operations.add(1);
                        self.publish_operating(target);
                    }
                    return Ok(None);
                }
                Err(error) => Outcome::os(&error, self.slab.at(index).task.command.opcode),
            },
            Step::Done(outcome) => outcome,
        };
        let slot = self.slab.at(index);
        let (alone, next) = (slot.alone, slot.next);
        if (alone || next.is_none()) && self.spills(index, &mut outcome) {
            return Ok(None);
        }
        let Some(next) = next else {
            return self.finish(index, outcome, turn).map(|()| None);
        };
        // A run: each of its entries gets its own result.
        if alone {
            self.slab.at_mut(index).next = None;
            return self
                .finish(index, outcome, turn)
                .inspect_err(|_| self.forget(next))
                .map(|()| Some(next));
        }
        if outcome.status == 0 {
            return self.finish_run(index, outcome, turn).map(|()| None);
        }
        self.part_run(index);
        Ok(Some(index))
    }

    pub(super) fn finish(&mut self, index: u16, outcome: Outcome, turn: &mut Turn) -> Result<()> {
        let slot = self.slab.at(index);
        if let Some(group) = slot.group {
            return self.finish_part(group, index, outcome, turn);
        }
        if slot.orphan {
            self.free_slot(index);
            return Ok(());
        }
        if slot.bounced && outcome.status == 0 {
            self.bounce.copy_back(slot, &self.memory);
        }
        let answer = slot.answer();
        let submitted = self.slab.times[index as usize];
        let posted = self.post(&answer, submitted, outcome, turn);
        if posted.is_ok() {
            self.slab.at(index).trace(&outcome, submitted);
        }
        // Also if it could not be posted: whoever waits for the last command counts slots.
        self.free_slot(index);
        posted
    }

    /// Frees a slot, and those of its run, without a completion.
    pub(super) fn forget(&mut self, head: u16) {
        let mut at = Some(head);
        while let Some(index) = at {
            at = self.slab.at_mut(index).next.take();
            self.free_slot(index);
        }
    }

    #[inline(always)]
    pub(super) fn free_slot(&mut self, index: u16) {
        let slot = self.slab.at_mut(index);
        let home = std::mem::take(&mut slot.home);
        let target = &mut self.targets[slot.target as usize];
        target.slots -= 1;
        target.orphans -= usize::from(slot.orphan);
        self.bounce.take_back(slot);
        if let Some(table) = slot.table.take() {
            self.ring.release(table);
        }
        self.slab.give_back(index);
        self.count_user(home, false);
    }

    /// Puts a completion into the CQ ring. `publish` makes it visible.
    #[inline(always)]
    pub(super) fn post(
        &mut self,
        answer: &Answer,
        submitted: u64,
        outcome: Outcome,
        turn: &mut Turn,
    ) -> Result<()> {
        let stats = &self.shared.stats;
        let device = stats.devices.get(answer.target as usize);
        let flag = |on: bool, bit: u32| if on { bit } else { 0 };
        if outcome.status == 0 {
            match (answer.opcode, device) {
                (opcode::WRITE, _) if answer.spilled => {}
                (opcode::WRITE, Some(device)) => device.bytes_written.add(outcome.len.into()),
                (opcode::READ, Some(device)) => device.bytes_read.add(outcome.len.into()),
                _ => {}
            }
        } else if !answer.splits {
            // Of what is split, each part has its own end.
            stats.errors.add(1);
            if let Some(device) = device {
                device.errors.add(1);
            }
        }
        let cqe = UnifiedCqe {
            user_data: answer.user_data,
            result: outcome.result,
            status: outcome.status.into(),
            dma_addr: answer.offset,
            len: outcome.len,
            flags: flag(outcome.dnr, CQE_DNR)
                | flag(answer.frame, CQE_FRAME)
                | flag(answer.bounced, CQE_BOUNCED)
                | flag(answer.spilled, CQE_SPILLED)
                | flag(answer.in_buffer, CQE_BUFFER)
                | flag(
                    answer.in_buffer && !command::stores(answer.opcode),
                    CQE_STORES_NOTHING,
                )
                | u32::from(answer.target) << CQE_DEVICE_SHIFT
                | u32::from(answer.more_frames) << CQE_FRAMES_SHIFT,
        };
        // Room was reserved before the entry was taken. The ring can only be full if its consumer index went
        // backwards.
        if !self.cq.push(cqe)? {
            return Err(Error::new(
                libc::EBADMSG,
                "CQ ring: reserved slots are gone; something outside the library wrote to the region",
            ));
        }
        turn.completed += 1;
        if submitted != turn.submitted {
            self.time(turn);
            turn.submitted = submitted;
        }
        turn.timed += 1;
        Ok(())
    }

    /// Records how long the last completions took that were submitted together.
    #[inline(never)]
    pub(super) fn time(&self, turn: &mut Turn) {
        let count = std::mem::take(&mut turn.timed);
        if turn.submitted == 0 || count == 0 {
            return;
        }
        if turn.now == 0 {
            turn.now = monotonic_ns();
        }
        // Entries that were submitted after the clock was read took no time.
        let latency = turn.now.saturating_sub(turn.submitted);
        self.shared.stats.latency.record(latency, count);
    }
}
