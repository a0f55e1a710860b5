//! Submission: entries out of the SQ ring, checked, and on to their device.

#![forbid(unsafe_code)]

use std::io;

use super::slab::Slot;
use super::{Engine, Turn};
use crate::error::Result;
use crate::storage::command::{self, entry_flags, opcode, status};
use crate::storage::task::{Outcome, Step};
use crate::storage::uring;
use crate::sys::abi::UnifiedSqe;
use crate::sys::probe;
use crate::sys::uring::Op;

/// While a device has fewer than `FED` operations, scattered ones are submitted in batches of `FEED`. An idle device
/// then begins with the first ones while the rest of a long batch is prepared. The kernel plugs too: no operation of
/// a batch starts before the whole batch is submitted.
pub(super) const FEED: usize = 4;
pub(super) const FED: usize = 32;

/// An entry that was popped from the SQ ring.
#[derive(Debug, Clone, Copy)]
pub(super) struct Entry {
    pub sqe: UnifiedSqe,
    /// When it was submitted. ns; 0 if nobody says.
    pub submitted: u64,
}

impl Engine {
    /// Takes entries while there are slots and CQ places for them.
    pub(super) fn take(&mut self, turn: &mut Turn) -> Result<()> {
        if self.targets.len() > 1 {
            self.take_waiting(turn)?;
        }
        while !self.slab.is_full() && self.has_room()? {
            let Some(entry) = self.next_entry(turn)? else {
                break;
            };
            let Some(entry) = self.park(entry) else {
                continue;
            };
            if !self.start(&entry, turn)? {
                self.stalled = Some(entry);
                break;
            }
        }
        while self.backlog.len() < self.config.backlog as usize
            && let Some(entry) = self.pop(turn)?
        {
            self.backlog.push_back(entry);
        }
        Ok(())
    }

    /// In the order in which they were submitted.
    #[inline(always)]
    fn next_entry(&mut self, turn: &mut Turn) -> Result<Option<Entry>> {
        if self.stalled.is_some() {
            return Ok(self.stalled.take());
        }
        match self.backlog.pop_front() {
            None => self.pop(turn),
            waiting => Ok(waiting),
        }
    }

    #[inline(always)]
    fn pop(&mut self, turn: &mut Turn) -> Result<Option<Entry>> {
        let index = self.sq.head();
        let Some(sqe) = self.sq.pop()? else {
            return Ok(None);
        };
        turn.taken += 1;
        let (opcode, lba, bytes) = as_given(&sqe);
        probe::submitted(opcode, lba, bytes, sqe.buf_offset, sqe.user_data);
        Ok(Some(Entry {
            sqe,
            // Read before the ring's place is released: after that its producer may write the next stamp.
            submitted: self.shared.stamps.get(index),
        }))
    }

    /// Begins a command. `false` if it must wait for a bounce piece.
    pub(super) fn start(&mut self, entry: &Entry, turn: &mut Turn) -> Result<bool> {
        let Entry { sqe, submitted } = entry;
        let flags = if self.config.raw { 0 } else { sqe.flags };
        if flags & entry_flags::ALL_DEVICES != 0 && self.targets.len() > 1 {
            return self.start_group(entry, turn);
        }
        let number = entry_flags::device_of(flags);
        let mut slot = Slot {
            user_data: sqe.user_data,
            offset: sqe.buf_offset,
            frame: flags & entry_flags::FRAME != 0,
            more_frames: entry_flags::frames_of(flags),
            splits: flags & entry_flags::PARTS != 0,
            in_buffer: flags & entry_flags::BUFFER != 0,
            target: number,
            ..Slot::default()
        };
        let Some(target) = self.targets.get(number as usize) else {
            return self.refuse(&slot, entry, status::INVALID_NAMESPACE, turn);
        };
        if slot.splits && self.shared.is_out(number) {
            // It goes to another device.
            return self.refuse(&slot, entry, status::HOST_PATH_ERROR, turn);
        }
        let parsed = match slot.in_buffer {
            false => command::parse(sqe, &target.rules),
            true => self.parse_in_buffer(sqe, &target.rules, &mut slot),
        };
        let command = match parsed {
            Ok(command) => command,
            Err(status) => return self.refuse(&slot, entry, status, turn),
        };
        slot.command = command;
        slot.task.command = command;
        if command.len > 0 {
            if !slot.in_buffer {
                slot.offset = command.offset;
            }
            match self.place(sqe, flags, &mut slot) {
                Ok(true) => {}
                Ok(false) => return Ok(false),
                Err(outcome) => {
                    self.post(&slot.answer(), *submitted, outcome, turn)?;
                    slot.trace_rare(&outcome, *submitted);
                    return Ok(true);
                }
            }
        }
        let target = &mut self.targets[number as usize];
        if target.backend.needs_scratch(&command) {
            let Some(piece) = self.bounce.take() else {
                self.bounce.take_back(&mut slot);
                return Ok(false);
            };
            slot.scratch = Some(piece);
            slot.task.scratch = Some(self.bounce.range(piece, self.bounce.piece));
        }
        let Some(index) = self.slab.take() else {
            self.bounce.take_back(&mut slot);
            return Ok(false);
        };
        slot.data = slot.task.data;
        self.slab.slots[index as usize] = slot;
        self.slab.times[index as usize] = *submitted;
        target.slots += 1;
        target.pattern.see(&command);
        self.count_user(slot.home, true);
        if self.joins_run(index) {
            return Ok(true);
        }
        // Nothing overtakes a run: what cannot join it follows it.
        self.unplug(number, turn)
            .inspect_err(|_| self.forget(index))?;
        if !self.starts_run(index) {
            self.begin(index, turn)?;
        }
        Ok(true)
    }

    /// Completes an entry that is no valid command.
    #[cold]
    #[inline(never)]
    fn refuse(&mut self, slot: &Slot, entry: &Entry, status: u16, turn: &mut Turn) -> Result<bool> {
        let (sqe, submitted) = (&entry.sqe, entry.submitted);
        self.post(&slot.answer(), submitted, Outcome::status(status), turn)?;
        let (code, lba, bytes) = as_given(sqe);
        let what = (code, lba, bytes, sqe.buf_offset);
        probe::completed(what, status, submitted);
        Ok(true)
    }

    /// Gives a command, or the run that it heads, to its device.
    pub(super) fn begin(&mut self, index: u16, turn: &mut Turn) -> Result<()> {
        let step = self.first_step(index);
        self.proceed(index, step, turn)
    }

    pub(super) fn first_step(&mut self, index: u16) -> Step {
        let slot = self.slab.at_mut(index);
        let Some(table) = slot.table else {
            let backend = &self.targets[slot.target as usize].backend;
            return backend.begin(&mut slot.task, &self.memory);
        };
        match self.gather(index, table) {
            Ok(op) => Step::Submit(op),
            Err(error) => Step::Done(Outcome::os(&error, opcode::WRITE)),
        }
    }

    /// Queues an operation of a target.
    pub(super) fn queue_for(&mut self, target: u8, op: &Op, user_data: u64) -> io::Result<()> {
        let queued = self.ring.queued();
        let target = &self.targets[target as usize];
        if target.pattern.is_scattered()
            && queued >= FEED
            && (target.operating as usize) < FED + queued
        {
            self.ring.submit(0, None)?;
        }
        self.queue(op, user_data)
    }

    pub(super) fn queue(&mut self, op: &Op, user_data: u64) -> io::Result<()> {
        match self.ring.push(op, user_data) {
            Err(error) if error.raw_os_error() == Some(libc::EAGAIN) => {
                // The queue holds what was pushed in this turn. Submit it, then there is room.
                self.ring.submit(0, None)?;
                self.ring.push(op, user_data)
            }
            result => result,
        }
    }

    /// Hands queued operations to the kernel.
    pub fn submit(&mut self) -> Result<()> {
        // Entering the kernel for nothing would cost a system call in each turn.
        if self.ring.queued() == 0 {
            return Ok(());
        }
        self.ring.submit(0, None).map_err(uring::failed)
    }
}

/// The fields of an entry as they are given; they may make no sense.
fn as_given(sqe: &UnifiedSqe) -> (u8, u64, u32) {
    let cmd = &sqe.nvme_cmd;
    let lba = u64::from(cmd.cdw11) << 32 | u64::from(cmd.cdw10);
    (cmd.opcode, lba, cmd.data_len)
}
