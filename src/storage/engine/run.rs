//! Merging: neighbouring entries become one operation, and what became of it is told entry by entry.

#![forbid(unsafe_code)]

use super::{Engine, Turn};
use crate::error::Result;
use crate::storage::merge::{self, Follows};
use crate::storage::{Outcome, Task};
use crate::sys::uring::{BufRange, Op, PIECES, Table};

/// Entries that have become one operation, which is not yet given to the device.
#[derive(Debug, Clone, Copy)]
pub(super) struct Run {
    pub(super) head: u16,
    pub(super) tail: u16,
    /// The last piece of its memory, and how many there are.
    pub(super) piece: BufRange,
    pub(super) pieces: usize,
    pub(super) segments: usize,
}

impl Engine {
    /// Adds an entry to the run, where it is the next one.
    pub(super) fn joins_run(&mut self, index: u16) -> bool {
        let Some(run) = &mut self.run else {
            return false;
        };
        // A slot is some cache lines long: looked at where it is.
        let Ok([head, next]) = self
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
        let fits = self.bounds.take_segments(segments);
        match merge::follows(command, run.piece, &next.command, at, self.bounds) {
            Follows::Whole if head.table.is_none() || fits => {
                run.piece.len += at.len;
                if let Some(data) = &mut head.task.data {
                    data.len += at.len;
                }
            }
            Follows::Apart if self.gathers && run.pieces < PIECES && fits => {
                if head.table.is_none() {
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
        self.slots[run.tail as usize].next = Some(index);
        run.tail = index;
        true
    }

    /// Gives the run to the device.
    pub(super) fn unplug(&mut self, turn: &mut Turn) -> Result<()> {
        match self.run.take() {
            Some(run) => self.begin(run.head, turn),
            None => Ok(()),
        }
    }

    /// The one operation of a run whose memory is in pieces.
    pub(super) fn gather(&mut self, head: u16, table: Table) -> Result<Op> {
        let slots = &self.slots;
        let chain = std::iter::successors(Some(head), |index| slots[*index as usize].next);
        let pieces = chain.filter_map(|index| slots[index as usize].data);
        let pieces = self.ring.gather(table, pieces)?;
        Ok(self
            .backend
            .gathered(&self.slots[head as usize].task.command, pieces))
    }

    /// Makes a run that failed single entries again.
    pub(super) fn part_run(&mut self, head: u16) {
        // What failed as one is tried entry by entry, and one after the other: the block layer makes one
        // request of neighbours that come together, which then fails as one again. A block that was written
        // by the first try is written again with the same data.
        let mut at = Some(head);
        while let Some(index) = at {
            let slot = &mut self.slots[index as usize];
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

    pub(super) fn finish_run(
        &mut self,
        head: u16,
        outcome: Outcome,
        turn: &mut Turn,
    ) -> Result<()> {
        let mut at = Some(head);
        while let Some(index) = at {
            let slot = &mut self.slots[index as usize];
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
