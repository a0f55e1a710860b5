//! Commands in flight: a fixed number of slots, used again and again.

#![forbid(unsafe_code)]

use crate::storage::command::Command;
use crate::storage::task::{Outcome, Task};
use crate::sys::probe;
use crate::sys::uring::{BufRange, Table};

#[derive(Debug, Default, Clone, Copy)]
pub(super) struct Slot {
    /// What the device is given: at the head of a run, the command for all of it.
    pub task: Task,
    /// The entry's own command and data, for its own completion.
    pub command: Command,
    pub data: Option<BufRange>,
    /// Number of its device.
    pub target: u8,
    /// The entry after this one in the same run.
    pub next: Option<u16>,
    /// The head of a run whose memory is in pieces: where its vectors are.
    pub table: Option<Table>,
    /// The run failed: its entries are tried one by one.
    pub alone: bool,
    pub user_data: u64,
    pub offset: u64,
    pub frame: bool,
    /// Frames that travel with it, less one.
    pub more_frames: u16,
    /// If it fails, its submitter splits it.
    pub splits: bool,
    pub bounce: Option<u16>,
    /// The data is in the bounce piece (rather than the piece being scratch).
    pub bounced: bool,
    pub scratch: Option<u16>,
    /// On its way to the spill: how the device ended it.
    pub spilling: Option<Outcome>,
    pub spilled: bool,
}

impl Slot {
    pub fn answer(&self) -> Answer {
        Answer {
            opcode: self.command.opcode,
            user_data: self.user_data,
            offset: self.offset,
            frame: self.frame,
            more_frames: self.more_frames,
            splits: self.splits,
            bounced: self.bounced,
            spilled: self.spilled,
        }
    }

    /// Fires the probe of a completed command.
    pub fn trace(&self, outcome: &Outcome, submitted: u64) {
        let command = &self.command;
        let what = (command.opcode, command.lba, command.len, self.offset);
        probe::completed(what, outcome.status, submitted);
    }
}

/// What a completion takes from its entry.
#[derive(Debug, Clone, Copy)]
pub(super) struct Answer {
    pub opcode: u8,
    pub user_data: u64,
    pub offset: u64,
    pub frame: bool,
    pub more_frames: u16,
    pub splits: bool,
    pub bounced: bool,
    pub spilled: bool,
}

pub(super) struct Slab {
    pub slots: Box<[Slot]>,
    /// When the entry in each slot was submitted. Not in the slot, which is long enough to copy.
    pub times: Box<[u64]>,
    free: Vec<u16>,
}

impl Slab {
    pub fn new(depth: u32) -> Slab {
        Slab {
            slots: vec![Slot::default(); depth as usize].into(),
            times: vec![0; depth as usize].into(),
            free: (0..depth as u16).rev().collect(),
        }
    }

    pub fn in_use(&self) -> u32 {
        (self.slots.len() - self.free.len()) as u32
    }

    pub fn is_full(&self) -> bool {
        self.free.is_empty()
    }

    /// The number of a free slot, for `slots` and `times`.
    pub fn take(&mut self) -> Option<u16> {
        self.free.pop()
    }

    pub fn give_back(&mut self, index: u16) {
        self.free.push(index);
    }

    pub fn at(&self, index: u16) -> &Slot {
        &self.slots[index as usize]
    }

    pub fn at_mut(&mut self, index: u16) -> &mut Slot {
        &mut self.slots[index as usize]
    }
}
