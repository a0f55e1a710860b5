//! Commands whose data is in a buffer, and the memory of buffers on its way to the rings.

#![forbid(unsafe_code)]

use std::io;

use parking_lot::{Mutex, MutexGuard};

use super::submit::to_device;
use super::{Completion, Direction, Lane, Role};
use crate::buffers::BufferId;
use crate::error::{Error, Result};
use crate::storage::command::{self, entry_flags};
use crate::storage::device::Limits;
use crate::storage::engine::{Driver, Engine, bounce_piece};
use crate::sys::abi::{CQE_FRAMES_SHIFT, NvmeUringCmd, UnifiedCqe, UnifiedSqe};
use crate::sys::limits;
use crate::sys::shm::Shared;

/// A transfer between a buffer and a device.
#[derive(Debug, Default, Clone, Copy)]
pub struct BufferTransfer {
    pub buffer: BufferId,
    /// Where its data begins, in the buffer.
    pub offset: u64,
    /// Bytes, from 1 up to the buffer's end.
    pub len: u32,
    pub lba: u64,
    /// Number of the device.
    pub device: u8,
    pub user_data: u64,
    /// Durable when it completes, also if the device has a volatile cache.
    pub fua: bool,
    /// More will follow: the engine does not see it yet.
    pub more: bool,
}

fn invalid(message: String) -> Error {
    Error::new(libc::EINVAL, message)
}

impl Lane {
    /// Moves a buffer's bytes to the device or back. The buffer cannot be freed until the completion was taken. `EINVAL`
    /// (lengths, no such buffer), `EAGAIN` (SQ full). Receiver's thread.
    pub fn submit_buffer(&self, direction: Direction, request: &BufferTransfer) -> Result<()> {
        let limits = self.limits_of(request.device)?;
        let blocks = request.len.div_ceil(limits.block_size);
        let padded = self.check_length(limits, direction, request.len)?;
        let sqe = command::transfer(
            direction.opcode(),
            request.lba,
            blocks,
            request.offset,
            padded,
            request.fua,
        );
        let mut sqe = UnifiedSqe {
            user_data: request.user_data,
            flags: to_device(request.device),
            ..sqe
        };
        if padded > request.len {
            // The rest of the block is the caller's too, and may be in use: it is zero on the device only.
            sqe.flags |= entry_flags::PAD_IN_BOUNCE;
            sqe.pad = request.len;
        }
        self.queue_in_buffer(sqe, request.buffer, request.len, request.more)
    }

    /// The whole blocks of a transfer.
    fn check_length(&self, limits: &Limits, direction: Direction, len: u32) -> Result<u32> {
        let block = limits.block_size;
        let padded = u64::from(len).next_multiple_of(block.into());
        if len == 0 {
            return Err(invalid("0 bytes: a transfer has at least 1".into()));
        }
        if padded > limits.max_transfer.into() {
            return Err(invalid(format!(
                "{len} bytes are more than the device takes at once ({}): use several commands",
                limits.max_transfer
            )));
        }
        if padded == len.into() {
            return Ok(len);
        }
        if direction != Direction::Write {
            return Err(invalid(format!(
                "{len} bytes are not whole blocks of {block}"
            )));
        }
        let most = bounce_piece(self.devices.iter());
        if padded > most as u64 {
            return Err(invalid(format!(
                "{len} bytes are not whole blocks of {block}: up to {most} bytes the library pads a write from a buffer, in a \
                 copy; write the whole blocks first, and then the rest"
            )));
        }
        Ok(padded as u32)
    }

    /// As `submit_raw`, with data at `offset` of a buffer.
    pub fn submit_raw_in_buffer(
        &self,
        device: u8,
        cmd: &NvmeUringCmd,
        (buffer, offset): (BufferId, u64),
        user_data: u64,
    ) -> Result<()> {
        let limits = self.limits_of(device)?;
        if cmd.data_len == 0 || cmd.data_len > limits.max_transfer {
            return Err(invalid(format!(
                "a raw command with {} bytes in a buffer: 1 to {} are possible",
                cmd.data_len, limits.max_transfer
            )));
        }
        let sqe = UnifiedSqe {
            nvme_cmd: NvmeUringCmd { addr: 0, ..*cmd },
            buf_offset: offset,
            user_data,
            flags: to_device(device),
            ..UnifiedSqe::default()
        };
        self.queue_in_buffer(sqe, buffer, cmd.data_len, false)
    }

    /// Queues an entry that uses `len` bytes of a buffer from its `buf_offset` on.
    fn queue_in_buffer(
        &self,
        mut sqe: UnifiedSqe,
        buffer: BufferId,
        len: u32,
        more: bool,
    ) -> Result<()> {
        let mut rx_side = self.lock_rx_side()?;
        let place = self.buffers.begin_use(buffer)?;
        let end = sqe.buf_offset.checked_add(len.into());
        let queued = match end.filter(|end| *end <= place.len.into()) {
            Some(_) => {
                sqe.flags |=
                    entry_flags::BUFFER | u32::from(buffer.index()) << entry_flags::FRAMES_SHIFT;
                self.queue(&mut rx_side, sqe, more)
            }
            None => Err(invalid(format!(
                "{len} bytes at offset {} are not inside the buffer of {} bytes",
                sqe.buf_offset as i64, place.len
            ))),
        };
        queued.inspect_err(|_| {
            self.buffers.end_use(buffer.index());
        })
    }

    /// What a completion means for its buffer. The table, not the entry, says whether it was in use: an entry may lie.
    #[cold]
    pub(super) fn settle_buffer(&self, cqe: &UnifiedCqe, completion: &mut Completion) {
        let index = (cqe.flags >> CQE_FRAMES_SHIFT) as u16;
        if !self.buffers.end_use(index) {
            completion.result = -libc::EBADMSG;
        }
    }

    /// Registers memory with the ring of this lane, under the number of a registration, or unregisters what has it. Any
    /// thread, one at a time; waits for the driver. `ENOMEM`, `EBUSY`, `ETIMEDOUT`, or the errno of a failed engine.
    pub(crate) fn replace_memory(&self, number: u16, memory: Option<&Shared>) -> Result<()> {
        let replace = || match &self.driver {
            Driver::Inline(engine) => {
                let changes = &self.shared.changes;
                Ok(changes.visit(|| engine.lock().replace(number, memory.cloned())))
            }
            Driver::Thread(_) => self.shared.ask_to_replace(number, memory.cloned()),
        };
        let mut refused = None;
        let attempt = || match replace() {
            Ok(result) => result,
            Err(error) => {
                refused = Some(error);
                Err(io::Error::from_raw_os_error(libc::EIO))
            }
        };
        let result = limits::retry_locking(attempt);
        if let Some(error) = refused {
            return Err(error);
        }
        let len = memory.map_or(0, Shared::len);
        result.map_err(|e| {
            let error = Error::os(
                &e,
                format_args!(
                    "registering {len} bytes with the io_uring of lane {}",
                    self.number
                ),
            );
            match e.raw_os_error() {
                Some(libc::ENOMEM) => error.hint(limits::shortage(len)),
                Some(libc::EOPNOTSUPP | libc::EFAULT) if memory.is_some() => {
                    error.hint("the kernel cannot pin this memory: use a memfd, or hugetlbfs")
                }
                _ => error,
            }
        })
    }

    /// The inline engine, if another thread has it only to register memory.
    #[cold]
    pub(super) fn after_visitors<'a>(
        &self,
        engine: &'a Mutex<Box<Engine>>,
    ) -> Result<MutexGuard<'a, Box<Engine>>> {
        // A visitor counts itself before it locks: one that has left since the caller tried may be followed by another.
        for _ in 0..3 {
            if self.shared.changes.has_visitors() {
                return Ok(engine.lock());
            }
            if let Some(engine) = engine.try_lock() {
                return Ok(engine);
            }
        }
        Err(Role::Pump.busy())
    }
}
