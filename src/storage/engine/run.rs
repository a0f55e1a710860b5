//! Runs: neighbouring entries become one operation, whose result is reported entry by entry.

#![forbid(unsafe_code)]

use std::io;

use super::{Engine, Turn};
use crate::error::Result;
use crate::storage::merge::{self, Follows};
use crate::storage::task::{Outcome, Task};
use crate::sys::uring::{BufRange, Op, PIECES, Table};

/// Entries that have become one operation, which the device does not have yet. A target has at most one run.
#[derive(Debug, Clone, Copy)]
pub(super) struct Run {
    pub(super) head: u16,
    pub(super) tail: u16,
    /// The last piece of its memory, and the number of pieces.
    pub(super) piece: BufRange,
    pub(super) pieces: usize,
    pub(super) segments: usize,
}

impl Engine {
    /// Adds an entry to the run of its target, if it is the next one.
    pub(super) fn joins_run(&mut self, index: u16) -> bool {
        let target = &mut self.targets[self.slab.at(index).target as usize];
        let Some(run) = &mut target.run else {
            return false;
        };
        // A slot is some cache lines long: it is not copied.
        let Ok([head, next]) = self
            .slab
            .slots
            .get_disjoint_mut([run.head as usize, index as usize])
        else {
            return false;
        };
        let Some(at) = next.data.filter(|_| next.bounce.is_none()) else {
            return false;
        };
        let command = &mut head.task.command;
        let segments = run.segments + merge::segments(at);
        let fits = target.bounds.take_segments(segments);
        match merge::follows(command, run.piece, &next.command, at, target.bounds) {
            Follows::Whole if head.table.is_none() || fits => {
                run.piece.len += at.len;
                if let Some(data) = &mut head.task.data {
                    data.len += at.len;
                }
            }
            Follows::Apart if target.gathers && run.pieces < PIECES && fits => {
                if head.table.is_none() {
                    // `None` also if the kernel cannot gather.
                    head.table = self.ring.reserve();
                }
                if head.table.is_none() {
                    return false;
                }
                run.piece = at;
                run.pieces += 1;
            }
            _ => return false,
        }
        run.segments = segments;
        merge::join(command, &next.command);
        let tail = std::mem::replace(&mut run.tail, index);
        self.slab.at_mut(tail).next = Some(index);
        true
    }

    /// Makes an entry the first of a run, if others can join it.
    pub(super) fn starts_run(&mut self, index: u16) -> bool {
        let slot = self.slab.at(index);
        let Some(piece) = slot.data.filter(|_| slot.bounce.is_none()) else {
            return false;
        };
        if !merge::mergeable(&slot.command) {
            return false;
        }
        self.targets[slot.target as usize].run = Some(Run {
            head: index,
            tail: index,
            piece,
            pieces: 1,
            segments: merge::segments(piece),
        });
        true
    }

    /// Gives the run of a target to the device.
    pub(super) fn unplug(&mut self, target: u8, turn: &mut Turn) -> Result<()> {
        match self.targets[target as usize].run.take() {
            Some(run) => self.begin(run.head, turn),
            None => Ok(()),
        }
    }

    /// Gives the runs to their devices that have nothing to wait for. A run grows while its device is busy, and is
    /// submitted when the device has room again. If entries that came lately do not follow one another, waiting for
    /// more would only keep the device idle.
    pub(super) fn unplug_ready(&mut self, turn: &mut Turn) -> Result<()> {
        for number in 0..self.targets.len() as u8 {
            let target = &self.targets[number as usize];
            if target.freed || target.operating == 0 || target.pattern.is_scattered() {
                self.unplug(number, turn)?;
            }
        }
        Ok(())
    }

    /// The one operation of a run whose memory is in pieces.
    pub(super) fn gather(&mut self, head: u16, table: Table) -> io::Result<Op> {
        let slots = &self.slab.slots;
        let chain = std::iter::successors(Some(head), |index| slots[*index as usize].next);
        let pieces = chain.filter_map(|index| slots[index as usize].data);
        let pieces = self.ring.gather(table, pieces)?;
        let slot = self.slab.at(head);
        let backend = &self.targets[slot.target as usize].backend;
        Ok(backend.gathered(&slot.task.command, pieces))
    }

    /// Makes a run that failed single entries again.
    pub(super) fn part_run(&mut self, head: u16) {
        // They are tried one after the other: the block layer makes one request of neighbours that come together,
        // which then would fail as one again. A block that the first try has written is written again with the same
        // data.
        let mut at = Some(head);
        while let Some(index) = at {
            let slot = self.slab.at_mut(index);
            slot.alone = true;
            if let Some(table) = slot.table.take() {
                self.ring.release(table);
            }
            slot.task = Task {
                command: slot.command,
                data: slot.data,
                ..Task::default()
            };
            at = slot.next;
        }
    }

    // Apart: it is called from several places, and each copy would have probes of its own.
    #[inline(never)]
    pub(super) fn finish_run(
        &mut self,
        head: u16,
        outcome: Outcome,
        turn: &mut Turn,
    ) -> Result<()> {
        let mut at = Some(head);
        while let Some(index) = at {
            let slot = self.slab.at_mut(index);
            at = slot.next.take();
            let outcome = Outcome {
                len: slot.command.len,
                ..outcome
            };
            self.finish(index, outcome, turn).inspect_err(|_| {
                // The rings are broken: the rest of the run ends here too.
                if let Some(rest) = at {
                    self.forget(rest);
                }
            })?;
        }
        Ok(())
    }
}
