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
    /// The caller's data is in a buffer.
    pub in_buffer: bool,
    /// The number of the registered memory where the caller's data is.
    pub home: u16,
    /// Frames that travel with it, less one; or the number of its buffer.
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
    /// One of the flushes that have one completion: the number of their group.
    pub group: Option<u8>,
    /// Times that the engine has looked for commands without an answer while this was in flight.
    pub looks: u8,
    /// Its completion was posted, or is nobody's: it only waits for its device.
    pub orphan: bool,
    /// Not counted as a command, since it has no completion of its own.
    pub spare: bool,
}

impl Slot {
    pub fn answer(&self) -> Answer {
        Answer {
            opcode: self.command.opcode,
            user_data: self.user_data,
            offset: self.offset,
            frame: self.frame,
            in_buffer: self.in_buffer,
            more_frames: self.more_frames,
            splits: self.splits,
            bounced: self.bounced,
            spilled: self.spilled,
            target: self.target,
        }
    }

    /// As `trace`, where it is rare: one place for all of them.
    #[cold]
    #[inline(never)]
    pub fn trace_rare(&self, outcome: &Outcome, submitted: u64) {
        self.trace(outcome, submitted);
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
    pub in_buffer: bool,
    pub more_frames: u16,
    pub splits: bool,
    pub bounced: bool,
    pub spilled: bool,
    pub target: u8,
}

pub(super) struct Slab {
    pub slots: Box<[Slot]>,
    /// When the entry in each slot was submitted. Not in the slot, which is long enough to copy.
    pub times: Box<[u64]>,
    free: Vec<u16>,
    /// Slots that are kept for flushes of several devices, and not taken.
    spare: usize,
    spare_in_use: usize,
}

impl Slab {
    /// For `depth` commands, and `spare` more slots for those that have no completion of their own.
    pub fn new(depth: u32, spare: usize) -> Slab {
        let count = depth as usize + spare;
        Slab {
            slots: vec![Slot::default(); count].into(),
            times: vec![0; count].into(),
            free: (0..count as u16).rev().collect(),
            spare,
            spare_in_use: 0,
        }
    }

    pub fn in_use(&self) -> u32 {
        (self.slots.len() - self.free.len()) as u32
    }

    /// The numbers of those in use.
    pub fn indices_in_use(&self) -> Vec<u16> {
        let mut used = vec![true; self.slots.len()];
        self.free
            .iter()
            .for_each(|index| used[*index as usize] = false);
        let numbered = (0u16..).zip(used);
        numbered
            .filter_map(|(index, used)| used.then_some(index))
            .collect()
    }

    /// Those in use that have a completion of their own.
    pub fn commands(&self) -> u32 {
        self.in_use() - self.spare_in_use as u32
    }

    /// No command has a place.
    pub fn is_full(&self) -> bool {
        self.free.len() <= self.spare
    }

    /// How many spare slots there are.
    pub fn spare(&self) -> usize {
        self.spare
    }

    /// As `take`, for a slot without a completion of its own. There is one.
    pub fn take_spare(&mut self) -> Option<u16> {
        self.spare = self.spare.checked_sub(1)?;
        self.spare_in_use += 1;
        self.free.pop()
    }

    /// The number of a free slot, for `slots` and `times`.
    pub fn take(&mut self) -> Option<u16> {
        self.free.pop()
    }

    pub fn give_back(&mut self, index: u16) {
        if self.at(index).spare {
            self.spare += 1;
            self.spare_in_use -= 1;
        }
        self.free.push(index);
    }

    pub fn at(&self, index: u16) -> &Slot {
        &self.slots[index as usize]
    }

    pub fn at_mut(&mut self, index: u16) -> &mut Slot {
        &mut self.slots[index as usize]
    }
}
