//! From a caller's request to an SQ entry: blocks, padding, frames.

#![forbid(unsafe_code)]

use crate::context::{Context, RxSide};
use crate::error::{Error, Result};
use crate::storage::command::{self, DSM_RANGE, MAX_BLOCKS, entry_flags, opcode};
use crate::sys::abi::{NvmeUringCmd, UnifiedSqe};
use crate::sys::event::monotonic_ns;

/// A transfer between a held frame and the device.
#[derive(Debug, Default, Clone, Copy)]
pub struct Transfer {
    pub frame: u32,
    /// Where its data begins, in the data buffers; inside the frame.
    pub offset: u64,
    /// Bytes, 1 up to the frame's end. A write is padded with zeroes to whole blocks.
    pub len: u32,
    pub lba: u64,
    pub user_data: u64,
    /// On the medium when it completes, also where the device caches.
    pub fua: bool,
    /// The frame comes back with the completion. Reads and compares always do that.
    pub keep: bool,
    /// More is coming: do not make it visible to the engine yet.
    pub more: bool,
}

impl RxSide {
    /// Once for all that is published together.
    #[inline(never)]
    fn look_at_clock(&mut self) {
        self.submitted_at = monotonic_ns();
    }
}

impl Context {
    /// Blocks that `len` bytes take on this device.
    pub fn blocks_of(&self, len: u32) -> u32 {
        len.div_ceil(self.info.limits.block_size)
    }

    /// Writes a frame's bytes. The frame belongs to the library until its completion was taken; after an
    /// error the caller has it as before. `EINVAL` (lengths), `EBUSY` (in flight already), `EAGAIN` (SQ full).
    pub fn submit_write(&self, request: &Transfer) -> Result<()> {
        let mut rx_side = self.lock_rx_side()?;
        self.queue_transfer(&mut rx_side, opcode::WRITE, request)
    }

    /// Reads whole blocks into a held frame: `len` is a multiple of the block.
    pub fn submit_read(&self, request: &Transfer) -> Result<()> {
        let mut rx_side = self.lock_rx_side()?;
        self.queue_transfer(
            &mut rx_side,
            opcode::READ,
            &Transfer {
                keep: true,
                ..*request
            },
        )
    }

    /// Compares whole blocks with a held frame: Compare Failure (285h) where they differ.
    pub fn submit_compare(&self, request: &Transfer) -> Result<()> {
        let mut rx_side = self.lock_rx_side()?;
        self.queue_transfer(
            &mut rx_side,
            opcode::COMPARE,
            &Transfer {
                keep: true,
                ..*request
            },
        )
    }

    pub(crate) fn queue_transfer(
        &self,
        rx_side: &mut RxSide,
        code: u8,
        request: &Transfer,
    ) -> Result<()> {
        let limits = &self.info.limits;
        let frame_size = u64::from(self.info.frame_size);
        let start = u64::from(request.frame) * frame_size;
        let (offset, len) = (request.offset, u64::from(request.len));
        let inside = offset >= start
            && offset
                .checked_add(len)
                .is_some_and(|end| end <= start + frame_size);
        if len == 0 || !inside {
            return Err(Error::new(
                libc::EINVAL,
                format!(
                    "{len} bytes at offset {offset} are not inside frame {} (bytes {start} to {} of the data buffers)",
                    request.frame,
                    start + frame_size
                ),
            ));
        }
        let blocks = self.blocks_of(request.len);
        let padded = blocks * limits.block_size;
        if code != opcode::WRITE && padded != request.len {
            return Err(Error::new(
                libc::EINVAL,
                format!("{len} bytes are not whole blocks of {}", limits.block_size),
            ));
        }
        if padded > limits.max_transfer {
            return Err(Error::new(
                libc::EINVAL,
                format!(
                    "{padded} bytes are more than the device takes at once ({})",
                    limits.max_transfer
                ),
            ));
        }
        let mut sqe = command::transfer(code, request.lba, blocks, offset, padded, request.fua);
        sqe.user_data = request.user_data;
        sqe.flags = entry_flags::FRAME;
        self.frames
            .submit(request.frame, code == opcode::WRITE, request.keep)?;
        // The rest of the last block is zeroed, so that no other packet's bytes go to the device.
        let beyond = offset + u64::from(padded) > start + frame_size;
        if beyond {
            sqe.flags |= entry_flags::PAD_IN_BOUNCE;
            sqe.pad = request.len;
        } else {
            self.region
                .data
                .zero((offset + len) as usize, (padded - request.len) as usize);
        }
        self.queue_framed(rx_side, sqe, request)
    }

    // Inline: an entry is long enough that handing it on costs more than what is done with it.
    #[inline(always)]
    fn queue_framed(
        &self,
        rx_side: &mut RxSide,
        sqe: UnifiedSqe,
        request: &Transfer,
    ) -> Result<()> {
        self.queue(rx_side, sqe, request.more).inspect_err(|_| {
            // Not submitted: the caller has the frame as before.
            let _ = self.frames.unsubmit(request.frame);
        })
    }

    #[inline(always)]
    fn queue(&self, rx_side: &mut RxSide, sqe: UnifiedSqe, more: bool) -> Result<()> {
        let index = rx_side.sq.tail();
        if !rx_side.sq.push(sqe)? {
            self.rx_stats.sq_full.add(1);
            // What is queued must be seen before room can come.
            self.kick(rx_side);
            return Err(Error::new(
                libc::EAGAIN,
                "the SQ ring is full: take completions, then submit again",
            ));
        }
        if rx_side.submitted_at == 0 {
            rx_side.look_at_clock();
        }
        self.shared.stamps.set(index, rx_side.submitted_at);
        if !more {
            self.kick(rx_side);
        }
        Ok(())
    }

    pub(crate) fn kick(&self, rx_side: &mut RxSide) {
        rx_side.submitted_at = 0;
        if rx_side.sq.publish() {
            self.shared.engine_bell.ring();
        }
    }

    /// Makes visible what was submitted with `more`.
    pub fn submit_pending(&self) -> Result<()> {
        self.kick(&mut *self.lock_rx_side()?);
        Ok(())
    }

    /// Makes everything durable that completed before.
    pub fn submit_flush(&self, user_data: u64) -> Result<()> {
        let sqe = UnifiedSqe {
            user_data,
            ..command::flush()
        };
        self.queue(&mut *self.lock_rx_side()?, sqe, false)
    }

    fn check_blocks(&self, blocks: u32) -> Result<()> {
        if blocks == 0 || blocks > MAX_BLOCKS {
            return Err(Error::new(
                libc::EINVAL,
                format!("{blocks} blocks: a command takes 1 to {MAX_BLOCKS}"),
            ));
        }
        Ok(())
    }

    /// Zeroes 1 to 65536 blocks without data.
    pub fn submit_write_zeroes(
        &self,
        lba: u64,
        blocks: u32,
        fua: bool,
        user_data: u64,
    ) -> Result<()> {
        self.check_blocks(blocks)?;
        let sqe = UnifiedSqe {
            user_data,
            ..command::write_zeroes(lba, blocks, fua)
        };
        self.queue(&mut *self.lock_rx_side()?, sqe, false)
    }

    /// Tells the device that it may forget blocks. Takes a free frame for the range (`ENOBUFS`).
    pub fn submit_deallocate(&self, lba: u64, blocks: u32, user_data: u64) -> Result<()> {
        self.check_blocks(blocks)?;
        let frame = self.frame_alloc()?;
        let offset = u64::from(frame) * u64::from(self.info.frame_size);
        self.region
            .data
            .write(offset as usize, &command::dsm_range(lba, blocks));
        debug_assert_eq!(DSM_RANGE, 16);
        let mut sqe = command::deallocate(offset);
        sqe.user_data = user_data;
        sqe.flags = entry_flags::FRAME;
        self.frames.submit(frame, false, false)?;
        self.lock_rx_side()
            .and_then(|mut rx_side| self.queue(&mut rx_side, sqe, false))
            .inspect_err(|_| {
                let _ = self.frames.unsubmit(frame);
                let _ = self.frames.release(frame);
            })
    }

    /// Any NVMe command. Its data, `cmd.data_len` bytes, lies at `offset` of `frame`, which comes back
    /// with the completion; no frame, no data.
    pub fn submit_raw(
        &self,
        cmd: &NvmeUringCmd,
        frame: Option<(u32, u32)>,
        user_data: u64,
    ) -> Result<()> {
        let mut sqe = UnifiedSqe {
            nvme_cmd: NvmeUringCmd { addr: 0, ..*cmd },
            user_data,
            ..command::flush()
        };
        let Some((frame, at)) = frame else {
            if cmd.data_len != 0 {
                return Err(Error::new(
                    libc::EINVAL,
                    "a raw command with data needs a frame",
                ));
            }
            return self.queue(&mut *self.lock_rx_side()?, sqe, false);
        };
        let end = u64::from(at) + u64::from(cmd.data_len);
        if cmd.data_len == 0 || end > u64::from(self.info.frame_size) {
            return Err(Error::new(
                libc::EINVAL,
                format!(
                    "{} bytes at {at} are not inside a frame of {}",
                    cmd.data_len, self.info.frame_size
                ),
            ));
        }
        sqe.buf_offset = u64::from(frame) * u64::from(self.info.frame_size) + u64::from(at);
        sqe.flags = entry_flags::FRAME;
        let mut rx_side = self.lock_rx_side()?;
        self.frames
            .submit(frame, cmd.opcode == opcode::WRITE, true)?;
        let request = Transfer {
            frame,
            ..Transfer::default()
        };
        self.queue_framed(&mut rx_side, sqe, &request)
    }
}
