//! Copies for data that the device cannot take where it is, and pieces that a command needs for itself.

#![forbid(unsafe_code)]

use super::{Engine, Slot};
use crate::storage::command::{self, entry_flags};
use crate::storage::device::Limits;
use crate::storage::{BUFFER_BOUNCE, BUFFER_DATA, Outcome};
use crate::sys::abi::UnifiedSqe;
use crate::sys::mmap::PAGE;
use crate::sys::probe;
use crate::sys::uring::{BufRange, SHARD, ring_bytes};

/// Fixed pieces of registered memory, for data that the device cannot take where it is.
#[derive(Debug)]
pub(super) struct BouncePool {
    pub(super) piece: u32,
    pub(super) free: Vec<u16>,
}

impl BouncePool {
    pub(super) fn take(&mut self) -> Option<u16> {
        self.free.pop()
    }

    pub(super) fn range(&self, piece: u16, len: u32) -> BufRange {
        BufRange {
            buffer: BUFFER_BOUNCE,
            offset: piece as usize * self.piece as usize,
            len,
        }
    }
}

/// Bytes in a bounce piece: the longest command that can be bounced.
pub fn bounce_piece(limits: &Limits) -> u32 {
    limits.block_size.max(8192)
}

/// Bytes of the bounce pool for a depth.
pub fn bounce_bytes(limits: &Limits, depth: u32) -> usize {
    bounce_piece(limits) as usize * depth.clamp(2, 256) as usize
}

/// Bytes that an engine of a depth locks besides the data buffers: the bounce pool, and its io_uring itself.
pub fn locked_bytes(limits: &Limits, depth: u32) -> usize {
    bounce_bytes(limits, depth).next_multiple_of(PAGE) + ring_bytes(ring_entries(depth))
}

/// One more for the doorbell's poll; io_uring's own CQ is twice as long.
pub(super) fn ring_entries(depth: u32) -> u32 {
    depth + 1
}

impl Engine {
    /// Finds where the data is, or copies it to where the device can take it. `Ok(false)`: no piece.
    pub(super) fn place(
        &mut self,
        sqe: &UnifiedSqe,
        flags: u32,
        slot: &mut Slot,
    ) -> std::result::Result<bool, Outcome> {
        let command = slot.task.command;
        let (at, len) = (command.offset as usize, command.len as usize);
        let short = flags & entry_flags::PAD_IN_BOUNCE != 0;
        let in_place = self.backend.takes_in_place(&command)
            || ((self.memory.data.address() + at) | len) & self.limits.dma_alignment as usize == 0;
        let one_shard = at / SHARD == (at + len - 1) / SHARD;
        if !short && one_shard && (in_place || !self.config.bounce) {
            slot.task.data = Some(BufRange {
                buffer: BUFFER_DATA,
                offset: at,
                len: command.len,
            });
            return Ok(true);
        }
        if command.len > self.bounce.piece {
            // Longer than what the library can copy for it: the caller has to align it.
            return Err(Outcome::errno(libc::EINVAL, command.opcode));
        }
        let Some(piece) = self.bounce.take() else {
            return Ok(false);
        };
        slot.bounce = Some(piece);
        slot.bounced = true;
        let range = self.bounce.range(piece, command.len);
        slot.task.data = Some(range);
        if command::direction(command.opcode) != command::Direction::FromDevice {
            let valid = if short {
                (sqe.pad as usize).min(len)
            } else {
                len
            };
            self.memory
                .data
                .copy_to(at, &self.memory.bounce, range.offset, valid);
            self.memory.bounce.zero(range.offset + valid, len - valid);
        }
        self.shared.stats.bounced.add(1);
        self.shared.stats.bounced_bytes.add(command.len.into());
        probe::bounced(command.opcode, command.lba, command.len, command.offset);
        Ok(true)
    }

    pub(super) fn free_pieces(&mut self, slot: &mut Slot) {
        self.bounce.free.extend(slot.bounce.take());
        self.bounce.free.extend(slot.scratch.take());
    }

    pub(super) fn copy_back(&self, slot: &Slot) {
        let command = &slot.command;
        let reads = matches!(
            command::direction(command.opcode),
            command::Direction::FromDevice | command::Direction::Both
        );
        if let (true, Some(range)) = (reads, slot.data) {
            let to = command.offset as usize;
            self.memory
                .bounce
                .copy_to(range.offset, &self.memory.data, to, range.len as usize);
        }
    }
}
