//! Writes that a device failed go to its spill, if it has one.

#![forbid(unsafe_code)]

use std::sync::Arc;

use super::Engine;
use crate::log::{self, Level};
use crate::storage::command::opcode;
use crate::storage::spill::{self, Spill};
use crate::storage::task::{Outcome, Step};
use crate::sys::uring::Op;

/// The spill, as the engine uses it.
#[derive(Debug)]
pub(super) struct TargetSpill {
    /// Number in the registered file table.
    pub(super) file: u32,
    /// Shared with the engines of other lanes.
    pub(super) spill: Arc<Spill>,
}

impl Engine {
    /// Sends a write that the device failed to the spill, and a flush on to it. `false`: it has ended.
    pub(super) fn spills(&mut self, index: u16, outcome: &mut Outcome) -> bool {
        let slot = self.slab.at(index);
        if slot.splits {
            return false;
        }
        let number = slot.target;
        let target = &mut self.targets[number as usize];
        let (Some(spill), None) = (&target.spill, slot.spilling) else {
            return false;
        };
        let file = spill.file;
        let op = match slot.data {
            Some(range) if spill::wants(&slot.command, outcome) => Op::Write {
                file,
                range,
                offset: slot.command.lba << target.limits.block_shift(),
                dsync: slot.command.fua,
            },
            _ if slot.command.opcode == opcode::FLUSH
                && outcome.status == 0
                && spill.spill.wants_sync() =>
            {
                Op::Sync { file }
            }
            _ => return false,
        };
        let queued = self.queue_for(number, &op, u64::from(index));
        let target = &mut self.targets[number as usize];
        if let (Op::Sync { .. }, Some(spill), Err(error)) = (&op, &target.spill, &queued) {
            // Not flushed: it must not be taken for durable.
            spill.spill.synced(false);
            *outcome = Outcome::os(error, opcode::FLUSH);
        }
        if queued.is_err() {
            return false;
        }
        target.operating += 1;
        self.publish_operating(number);
        self.slab.at_mut(index).spilling = Some(*outcome);
        true
    }

    /// What became of a command that went to the spill.
    pub(super) fn spilled(&mut self, index: u16, ended: Outcome, result: i32) -> Step {
        let slot = self.slab.at_mut(index);
        let Some(TargetSpill { spill, .. }) = &self.targets[slot.target as usize].spill else {
            return Step::Done(ended);
        };
        if slot.command.opcode == opcode::FLUSH {
            spill.synced(result >= 0);
            return Step::Done(match result {
                0.. => ended,
                _ => Outcome::errno(-result, opcode::FLUSH),
            });
        }
        let len = slot.command.len;
        if u32::try_from(result) != Ok(len) {
            log::log(
                Level::Error,
                format_args!(
                    "block {}: the device failed the write (status {:#x}), and so did the spill '{}' ({result} of \
                     {len} bytes)",
                    slot.command.lba, ended.status, spill.path
                ),
            );
            return Step::Done(ended);
        }
        slot.spilled = true;
        spill.written();
        let stats = &self.shared.stats.devices[slot.target as usize];
        if stats.spilled.get() == 0 {
            log::log(
                Level::Warn,
                format_args!(
                    "block {}: the device failed the write (status {:#x}); it is in '{}'; further ones are counted, not logged",
                    slot.command.lba, ended.status, spill.path
                ),
            );
        }
        stats.spilled.add(1);
        stats.spilled_bytes.add(len.into());
        Step::Done(Outcome::success(len))
    }
}
