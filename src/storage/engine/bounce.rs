//! Copies for data that the device cannot take where it is, and pieces that a command needs for itself.

#![forbid(unsafe_code)]

use std::sync::Arc;

use super::Engine;
use super::group::spare_slots;
use super::slab::Slot;
use super::target::Target;
use crate::error::{Error, Result};
use crate::storage::command::{self, entry_flags};
use crate::storage::device::Limits;
use crate::storage::task::{BUFFER_BOUNCE, Memory, Outcome};
use crate::sys::abi::UnifiedSqe;
use crate::sys::mmap::{Mapping, PAGE};
use crate::sys::probe;
use crate::sys::shm::Shared;
use crate::sys::uring::{BufRange, SHARD, ring_bytes};

/// Pieces of one length in registered memory. All devices of an engine share them.
#[derive(Debug)]
pub(super) struct BouncePool {
    pub(super) memory: Shared,
    pub(super) piece: u32,
    pub(super) free: Vec<u16>,
}

impl BouncePool {
    pub(super) fn new(targets: &[Target], depth: u32) -> Result<BouncePool> {
        let limits = || targets.iter().map(|target| &target.limits);
        let (len, piece) = (bounce_bytes(limits(), depth), bounce_piece(limits()));
        let mapping = Mapping::anonymous(len, false)
            .map_err(|e| Error::os(&e, format_args!("mapping a bounce pool of {len} bytes")))?;
        let memory = Shared::new(Arc::new(mapping), 0, len).expect("the pool is its own mapping");
        Ok(BouncePool {
            memory,
            piece: piece as u32,
            free: (0..(len / piece) as u16).rev().collect(),
        })
    }

    pub(super) fn take(&mut self) -> Option<u16> {
        self.free.pop()
    }

    /// Takes back the pieces of a slot.
    pub(super) fn take_back(&mut self, slot: &mut Slot) {
        self.free.extend(slot.bounce.take());
        self.free.extend(slot.scratch.take());
    }

    pub(super) fn range(&self, piece: u16, len: u32) -> BufRange {
        BufRange {
            buffer: BUFFER_BOUNCE,
            offset: piece as usize * self.piece as usize,
            len,
        }
    }

    /// Copies what a bounced command has read to where its entry wants it.
    pub(super) fn copy_back(&self, slot: &Slot, memory: &Memory) {
        let command = &slot.command;
        let reads = matches!(
            command::direction(command.opcode),
            command::Direction::FromDevice | command::Direction::Both
        );
        if let (true, Some(range)) = (reads, slot.data) {
            let to = command.offset as usize;
            let home = memory.at(slot.home);
            memory
                .bounce
                .copy_to(range.offset, home, to, range.len as usize);
        }
    }
}

/// Bytes in a piece: the longest command that can be bounced, by any of the devices.
pub fn bounce_piece<'a>(limits: impl Iterator<Item = &'a Limits>) -> usize {
    let longest = limits.map(|l| l.block_size).max();
    longest.unwrap_or(0).max(8192) as usize
}

/// Bytes of the bounce pool of an engine for these devices.
pub fn bounce_bytes<'a>(limits: impl IntoIterator<Item = &'a Limits>, depth: u32) -> usize {
    bounce_piece(limits.into_iter()) * depth.clamp(2, 256) as usize
}

/// Bytes that an engine locks besides the data buffers: the bounce pool, and its io_uring itself.
pub fn locked_bytes<'a>(
    limits: impl IntoIterator<Item = &'a Limits, IntoIter: ExactSizeIterator>,
    depth: u32,
) -> usize {
    let limits = limits.into_iter();
    let entries = ring_entries(depth, limits.len());
    bounce_bytes(limits, depth).next_multiple_of(PAGE) + ring_bytes(entries)
}

/// One for each slot, and one for the doorbell's poll; io_uring's own CQ is twice as long.
pub(super) fn ring_entries(depth: u32, devices: usize) -> u32 {
    depth + spare_slots(devices) as u32 + 1
}

impl Engine {
    /// Finds where a command's data is, or copies it to where the device can take it. `Ok(false)` if no piece is free.
    pub(super) fn place(
        &mut self,
        sqe: &UnifiedSqe,
        flags: u32,
        slot: &mut Slot,
    ) -> std::result::Result<bool, Outcome> {
        let command = slot.task.command;
        let target = &self.targets[slot.target as usize];
        let home = self.memory.at(slot.home);
        let (at, len) = (command.offset as usize, command.len as usize);
        let short = flags & entry_flags::PAD_IN_BOUNCE != 0;
        let in_place = target.backend.takes_in_place(&command)
            || ((home.address() + at) | len) & target.limits.dma_alignment as usize == 0;
        let one_shard = at / SHARD == (at + len - 1) / SHARD;
        if !short && one_shard && (in_place || !self.config.bounce) {
            slot.task.data = Some(BufRange {
                buffer: slot.home,
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
            home.copy_to(at, &self.memory.bounce, range.offset, valid);
            self.memory.bounce.zero(range.offset + valid, len - valid);
        }
        self.shared.stats.bounced.add(1);
        self.shared.stats.bounced_bytes.add(command.len.into());
        probe::bounced(command.opcode, command.lba, command.len, command.offset);
        Ok(true)
    }
}
