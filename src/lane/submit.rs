//! Submitting: from a caller's request to an SQ entry. Blocks, padding, frames.

#![forbid(unsafe_code)]

use super::{Lane, Progress, RxSide};
use crate::error::{Error, Result};
use crate::frame::Return;
use crate::storage::command::{self, DSM_RANGE, MAX_BLOCKS, entry_flags, opcode};
use crate::sys::abi::{NvmeUringCmd, UnifiedSqe};
use crate::sys::event::monotonic_ns;
use crate::sys::uring::SHARD;

/// A transfer between a held frame and the device.
#[derive(Debug, Default, Clone, Copy)]
pub struct Transfer {
    pub frame: u32,
    /// Where its data begins, in the data buffers; inside the frame.
    pub offset: u64,
    /// Bytes, from 1 up to the frame's end.
    pub len: u32,
    pub lba: u64,
    /// Number of the device.
    pub device: u8,
    pub user_data: u64,
    /// Durable when it completes, also if the device has a volatile cache.
    pub fua: bool,
    /// The frame comes back with the completion. Reads and compares always do that.
    pub keep: bool,
    /// More will follow: the engine does not see it yet.
    pub more: bool,
}

/// Neighbouring frames that the caller holds, written whole to consecutive blocks by one command with one completion.
#[derive(Debug, Default, Clone, Copy)]
pub struct FrameRun {
    pub first: u32,
    pub frames: u32,
    pub lba: u64,
    /// Number of the device.
    pub device: u8,
    pub user_data: u64,
    pub fua: bool,
    /// If the command fails, the caller has the frames back, to submit them one by one. The packets in them have no outcome
    /// yet.
    pub parts: bool,
}

/// Blocks of a device, without data.
#[derive(Debug, Default, Clone, Copy)]
pub struct Blocks {
    pub device: u8,
    pub lba: u64,
    /// 1 to 65536.
    pub count: u32,
    pub user_data: u64,
}

impl Blocks {
    /// Of device 0.
    pub fn new(lba: u64, count: u32, user_data: u64) -> Blocks {
        Blocks {
            device: 0,
            lba,
            count,
            user_data,
        }
    }
}

/// The private flags that send an entry to a device.
#[inline(always)]
pub(super) fn to_device(device: u8) -> u32 {
    u32::from(device) << entry_flags::DEVICE_SHIFT
}

/// What a transfer does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// The last block is padded with zeroes.
    Write,
    /// Reads whole blocks: `len` is a multiple of the block.
    Read,
    /// Compares whole blocks with the device: Compare Failure (285h) if they differ.
    Compare,
}

impl Direction {
    pub(super) fn opcode(self) -> u8 {
        match self {
            Direction::Write => opcode::WRITE,
            Direction::Read => opcode::READ,
            Direction::Compare => opcode::COMPARE,
        }
    }
}

/// Most frames of a run: what the 16 bits of an entry can say.
const LONGEST_RUN: u64 = 1 << 16;

impl RxSide {
    /// Reads the clock once for all entries that are published together.
    #[inline(never)]
    fn look_at_clock(&mut self) {
        self.submitted_at = monotonic_ns();
    }
}

impl Lane {
    /// Moves a frame's bytes to the device or back. The frame belongs to the library until its completion was taken; after
    /// an error the caller has it as before. `EINVAL` (lengths), `EBUSY` (in flight already), `EAGAIN` (SQ full).
    /// Receiver's thread.
    pub fn submit_transfer(&self, direction: Direction, request: &Transfer) -> Result<()> {
        let mut rx_side = self.lock_rx_side()?;
        self.queue_transfer(&mut rx_side, direction, request)
    }

    /// Submits writes in their order, up to the first that is refused, and publishes them together, whatever their `more`
    /// says. Errors as `submit_transfer`. Receiver's thread.
    pub fn submit_writes(
        &self,
        requests: impl IntoIterator<Item = Result<Transfer>>,
    ) -> Result<Progress> {
        let mut rx_side = self.lock_rx_side()?;
        let rx_side = &mut *rx_side;
        let mut done = 0;
        let mut refused = None;
        for request in requests {
            let queued = request.and_then(|request| {
                let request = Transfer {
                    more: true,
                    ..request
                };
                self.queue_transfer(rx_side, Direction::Write, &request)
            });
            if let Err(error) = queued {
                refused = Some(error);
                break;
            }
            done += 1;
        }
        if done > 0 {
            self.kick(rx_side);
        }
        Progress::new(done, refused)
    }

    /// As `submit_transfer`, for whoever has the role already.
    pub fn queue_transfer(
        &self,
        rx_side: &mut RxSide,
        direction: Direction,
        request: &Transfer,
    ) -> Result<()> {
        let limits = self.limits_of(request.device)?;
        let (offset, len) = (request.offset, u64::from(request.len));
        let frame = self.map.range(request.frame);
        if len == 0 || !self.map.contains(request.frame, offset, len) {
            return Err(Error::new(
                libc::EINVAL,
                format!(
                    "{len} bytes at offset {offset} are not inside frame {} (bytes {} to {} of the data buffers)",
                    request.frame, frame.start, frame.end
                ),
            ));
        }
        let blocks = request.len.div_ceil(limits.block_size);
        let padded = blocks * limits.block_size;
        if direction != Direction::Write && padded != request.len {
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
        let mut sqe = command::transfer(
            direction.opcode(),
            request.lba,
            blocks,
            offset,
            padded,
            request.fua,
        );
        sqe.user_data = request.user_data;
        sqe.flags = entry_flags::FRAME | to_device(request.device);
        let writes = direction == Direction::Write;
        let back = match request.keep || !writes {
            true => Return::Keep,
            false => Return::Free,
        };
        self.frames.table.submit(request.frame, 1, writes, back)?;
        // The rest of the last block is zeroed, so that no other packet's bytes go to the device.
        let beyond = offset + u64::from(padded) > frame.end;
        if beyond {
            sqe.flags |= entry_flags::PAD_IN_BOUNCE;
            sqe.pad = request.len;
        } else if u64::from(padded) > len {
            self.data
                .zero((offset + len) as usize, (padded - request.len) as usize);
        }
        self.queue_framed(rx_side, sqe, request)
    }

    // Inline: copying an entry into a call would cost more than the call's work.
    #[inline(always)]
    fn queue_framed(
        &self,
        rx_side: &mut RxSide,
        sqe: UnifiedSqe,
        request: &Transfer,
    ) -> Result<()> {
        self.queue(rx_side, sqe, request.more).inspect_err(|_| {
            // Not submitted: the caller has the frame as before.
            let _ = self.frames.table.unsubmit(request.frame, 1);
        })
    }

    /// Most frames of a run that begins with `first`. 1 if the device cannot take every run of frames in place.
    pub fn longest_run(&self, device: u8, first: u32) -> u32 {
        let size = u64::from(self.map.frame_size());
        let limits = &self.devices[device as usize];
        let unit = u64::from(limits.dma_alignment) + 1;
        let aligned = (self.data.address() as u64).is_multiple_of(unit)
            && size.is_multiple_of(unit)
            && size.is_multiple_of(u64::from(limits.block_size));
        if !aligned {
            return 1;
        }
        let start = self.map.start(first);
        // One registered buffer: an operation cannot cross into the next.
        let shard = (SHARD as u64 - start % SHARD as u64) / size;
        let bytes = u64::from(limits.max_transfer) / size;
        let blocks = u64::from(MAX_BLOCKS) * u64::from(limits.block_size) / size;
        shard.min(bytes).min(blocks).clamp(1, LONGEST_RUN) as u32
    }

    /// Submits a run of at most `longest_run` frames; with `publish` or `kick` the engine sees it. Errors as
    /// `submit_transfer`: after one, the caller has all frames as before.
    pub fn queue_run(&self, rx_side: &mut RxSide, run: &FrameRun) -> Result<()> {
        self.limits_of(run.device)?;
        if run.frames == 0
            || run.frames > self.longest_run(run.device, run.first)
            || !self.map.has(run.first, run.frames)
        {
            return Err(Error::new(
                libc::EINVAL,
                format!(
                    "frames {} to {} are not one run, or too long a one",
                    run.first,
                    u64::from(run.first) + u64::from(run.frames)
                ),
            ));
        }
        let len = run.frames * self.map.frame_size();
        let mut sqe = command::transfer(
            opcode::WRITE,
            run.lba,
            self.blocks_of(run.device, len),
            self.map.start(run.first),
            len,
            run.fua,
        );
        sqe.user_data = run.user_data;
        sqe.flags = entry_flags::FRAME
            | to_device(run.device)
            | (run.frames - 1) << entry_flags::FRAMES_SHIFT;
        let back = if run.parts {
            sqe.flags |= entry_flags::PARTS;
            Return::KeepFailed
        } else {
            Return::Free
        };
        self.frames
            .table
            .submit(run.first, run.frames, true, back)?;
        self.queue(rx_side, sqe, true).inspect_err(|_| {
            // Not submitted: the caller has the frames as before.
            let _ = self.frames.table.unsubmit(run.first, run.frames);
        })
    }

    #[inline(always)]
    pub(super) fn queue(&self, rx_side: &mut RxSide, sqe: UnifiedSqe, more: bool) -> Result<()> {
        let index = rx_side.sq.tail();
        if !rx_side.sq.push(sqe)? {
            self.rx_stats.sq_full.add(1);
            // The engine must see what is queued before there can be room.
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

    /// Publishes what was queued with `more`, and wakes the engine if it sleeps.
    pub fn kick(&self, rx_side: &mut RxSide) {
        rx_side.submitted_at = 0;
        if rx_side.sq.publish() {
            self.shared.engine_bell.ring();
        }
    }

    /// Publishes what was submitted with `more`.
    pub fn submit_pending(&self) -> Result<()> {
        self.kick(&mut *self.lock_rx_side()?);
        Ok(())
    }

    /// Flushes a device, or all of them with one completion, which has the worst status: makes everything durable that
    /// completed before.
    pub fn submit_flush(&self, device: Option<u8>, user_data: u64) -> Result<()> {
        let flags = match device {
            Some(device) => {
                self.limits_of(device)?;
                to_device(device)
            }
            None => entry_flags::ALL_DEVICES,
        };
        let sqe = UnifiedSqe {
            user_data,
            flags,
            ..command::flush()
        };
        self.queue(&mut *self.lock_rx_side()?, sqe, false)
    }

    fn check_blocks(&self, blocks: &Blocks) -> Result<()> {
        self.limits_of(blocks.device)?;
        if blocks.count == 0 || blocks.count > MAX_BLOCKS {
            return Err(Error::new(
                libc::EINVAL,
                format!("{} blocks: a command takes 1 to {MAX_BLOCKS}", blocks.count),
            ));
        }
        Ok(())
    }

    /// Zeroes blocks without data.
    pub fn submit_write_zeroes(&self, blocks: &Blocks, fua: bool) -> Result<()> {
        self.check_blocks(blocks)?;
        let sqe = UnifiedSqe {
            user_data: blocks.user_data,
            flags: to_device(blocks.device),
            ..command::write_zeroes(blocks.lba, blocks.count, fua)
        };
        self.queue(&mut *self.lock_rx_side()?, sqe, false)
    }

    /// Deallocates blocks. Takes a free frame for the range: `ENOBUFS` if there is none.
    pub fn submit_deallocate(&self, blocks: &Blocks) -> Result<()> {
        self.check_blocks(blocks)?;
        let frame = self.frame_alloc()?;
        let offset = self.map.start(frame);
        self.data.write(
            offset as usize,
            &command::dsm_range(blocks.lba, blocks.count),
        );
        debug_assert_eq!(DSM_RANGE, 16);
        let mut sqe = command::deallocate(offset);
        sqe.user_data = blocks.user_data;
        sqe.flags = entry_flags::FRAME | to_device(blocks.device);
        let table = &self.frames.table;
        table.submit(frame, 1, false, Return::Free)?;
        self.lock_rx_side()
            .and_then(|mut rx_side| self.queue(&mut rx_side, sqe, false))
            .inspect_err(|_| {
                let _ = self.frames.table.unsubmit(frame, 1);
                let _ = self.frames.release(frame);
            })
    }

    /// Submits any NVMe command. `frame`: the frame of its data, which comes back with the completion, and where its
    /// `cmd.data_len` bytes begin in it; `None` for a command without data.
    pub fn submit_raw(
        &self,
        device: u8,
        cmd: &NvmeUringCmd,
        frame: Option<(u32, u32)>,
        user_data: u64,
    ) -> Result<()> {
        self.limits_of(device)?;
        let mut sqe = UnifiedSqe {
            nvme_cmd: NvmeUringCmd { addr: 0, ..*cmd },
            user_data,
            flags: to_device(device),
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
        if cmd.data_len == 0 || end > u64::from(self.map.frame_size()) {
            return Err(Error::new(
                libc::EINVAL,
                format!(
                    "{} bytes at {at} are not inside a frame of {}",
                    cmd.data_len,
                    self.map.frame_size()
                ),
            ));
        }
        sqe.buf_offset = self.map.start(frame) + u64::from(at);
        sqe.flags |= entry_flags::FRAME;
        let mut rx_side = self.lock_rx_side()?;
        let writes = cmd.opcode == opcode::WRITE;
        let table = &self.frames.table;
        table.submit(frame, 1, writes, Return::Keep)?;
        let request = Transfer {
            frame,
            ..Transfer::default()
        };
        self.queue_framed(&mut rx_side, sqe, &request)
    }
}
