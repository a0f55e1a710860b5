//! Submissions that name their device.

use std::ffi::c_int;

use super::device::sized_element;
use super::io::{Request, raw_command, raw_data, so_many, transfer};
use super::types::*;
use super::{guard, null, on_path, unified_ctx};
use crate::buffers::BufferId;
use crate::context::Context;
use crate::error::{Error, Result};
use crate::lane::{Blocks, BufferTransfer, Direction, Progress, Transfer};
use crate::sys::abi::NvmeUringCmd;

/// A submission, checked as far as it can be without its device.
enum Wanted {
    Transfer(Direction, Transfer),
    Buffer(Direction, BufferTransfer),
    RawInBuffer(u8, NvmeUringCmd, (BufferId, u64)),
    Flush(Option<u8>),
    WriteZeroes(Blocks, bool),
    Deallocate(Blocks),
    Raw(u8, NvmeUringCmd, Option<(u32, u32)>),
}

fn device_of(number: u32) -> Result<u8> {
    u8::try_from(number).map_err(|_| {
        let text = match number {
            UNIFIED_ALL_DEVICES => {
                "UNIFIED_ALL_DEVICES is for flushes only: name one device".into()
            }
            _ => format!("device {number} does not exist"),
        };
        Error::new(libc::EINVAL, text)
    })
}

/// A submission whose data is in a buffer.
///
/// # Safety
/// `s.command` must be null or valid.
unsafe fn wanted_in_buffer(
    context: &Context,
    s: &unified_submission,
    device: u8,
    more: bool,
) -> Result<Wanted> {
    let buffer = BufferId(s.buffer);
    let (about, _) = context.buffer(buffer)?;
    let offset = (s.data as u64).checked_sub(about.address).ok_or_else(|| {
        Error::new(
            libc::EINVAL,
            "`data` does not lie in the buffer: see unified_buffer_info.data",
        )
    })?;
    let direction = match s.op {
        UNIFIED_OP_WRITE => Direction::Write,
        UNIFIED_OP_READ => Direction::Read,
        UNIFIED_OP_COMPARE => Direction::Compare,
        UNIFIED_OP_RAW if s.command.is_null() || !s.command.is_aligned() => {
            return Err(null("`command`"));
        }
        UNIFIED_OP_RAW => {
            // SAFETY: the caller's promise; not null and aligned.
            let command = raw_command(&unsafe { s.command.read() })?;
            return Ok(Wanted::RawInBuffer(device, command, (buffer, offset)));
        }
        other => {
            return Err(Error::new(
                libc::EINVAL,
                format!("operation {other} has no data: leave `buffer` zero"),
            ));
        }
    };
    if s.flags & UNIFIED_KEEP != 0 {
        return Err(Error::new(
            libc::EINVAL,
            "UNIFIED_KEEP is about frames: a buffer is the caller's until it is freed",
        ));
    }
    let transfer = BufferTransfer {
        buffer,
        offset,
        len: s.len,
        lba: s.lba,
        device,
        user_data: s.user_data,
        fua: s.flags & UNIFIED_FUA != 0,
        more,
    };
    Ok(Wanted::Buffer(direction, transfer))
}

/// # Safety
/// `s.command` must be null or valid.
unsafe fn wanted(context: &Context, s: &unified_submission, more: bool) -> Result<Wanted> {
    let takes = match s.op {
        UNIFIED_OP_WRITE | UNIFIED_OP_READ | UNIFIED_OP_COMPARE => {
            UNIFIED_FUA | UNIFIED_KEEP | UNIFIED_MORE
        }
        UNIFIED_OP_WRITE_ZEROES => UNIFIED_FUA | UNIFIED_MORE,
        _ => UNIFIED_MORE,
    };
    if s.flags & !takes != 0 {
        return Err(Error::new(
            libc::EINVAL,
            format!(
                "operation {} does not know the flags {:#x}",
                s.op,
                s.flags & !takes
            ),
        ));
    }
    if s.op == UNIFIED_OP_FLUSH && s.buffer != 0 {
        return Err(Error::new(
            libc::EINVAL,
            "a flush has no data: leave `buffer` zero",
        ));
    }
    if (s.op, s.device) == (UNIFIED_OP_FLUSH, UNIFIED_ALL_DEVICES) {
        return Ok(Wanted::Flush(None));
    }
    let device = device_of(s.device)?;
    let blocks = Blocks {
        device,
        lba: s.lba,
        count: s.blocks,
        user_data: s.user_data,
    };
    if s.buffer != 0 {
        // SAFETY: the caller's promise.
        return unsafe { wanted_in_buffer(context, s, device, more) };
    }
    let moves = |direction| {
        let request = Request {
            frame: s.frame,
            data: s.data,
            len: s.len,
            lba: s.lba,
            user_data: s.user_data,
            flags: s.flags,
        };
        let transfer = Transfer {
            device,
            more,
            ..transfer(context, &request)?
        };
        Ok(Wanted::Transfer(direction, transfer))
    };
    match s.op {
        UNIFIED_OP_FLUSH => Ok(Wanted::Flush(Some(device))),
        UNIFIED_OP_WRITE => moves(Direction::Write),
        UNIFIED_OP_READ => moves(Direction::Read),
        UNIFIED_OP_COMPARE => moves(Direction::Compare),
        UNIFIED_OP_WRITE_ZEROES => Ok(Wanted::WriteZeroes(blocks, s.flags & UNIFIED_FUA != 0)),
        UNIFIED_OP_DEALLOCATE => Ok(Wanted::Deallocate(blocks)),
        UNIFIED_OP_RAW => {
            if s.command.is_null() || !s.command.is_aligned() {
                return Err(null("`command`"));
            }
            // SAFETY: the caller's promise; not null and aligned.
            let command = raw_command(&unsafe { s.command.read() })?;
            Ok(Wanted::Raw(
                device,
                command,
                raw_data(context, s.frame, s.data)?,
            ))
        }
        other => Err(Error::new(
            libc::EINVAL,
            format!("operation {other} is unknown: use UNIFIED_OP_WRITE and so on"),
        )),
    }
}

/// Submits `count` commands, in the order of the array, each to the device that it names. It does what unified_submit_write,
/// unified_submit_read, unified_submit_compare, unified_submit_flush, unified_submit_write_zeroes, unified_submit_deallocate and
/// unified_submit_raw do with device 0. The engine sees all of them together, and with them those that were submitted with
/// UNIFIED_MORE before. With UNIFIED_MORE in the last element, they wait for the next submission.
///
/// With `buffer`, the data lies there instead of in a frame, and `len` may be as long as the device takes at once
/// (unified_device_info.max_transfer). The buffer stays the caller's, and cannot be freed until the completion was taken, which
/// returns no frame. A write that does not end with a block is padded with zeroes on the device, not in the buffer; the library
/// copies it for that, so it may have 8192 bytes at most (or one block, if that is longer): write whole blocks first, and then
/// the rest. On the handle of a context with several lanes, it goes to the first lane.
///
/// The order in which devices carry commands out is not that of the array, not even on one device.
///
/// Returns the number of submitted commands. That is less than `count` if the SQ ring became full or an element was refused: the
/// caller still owns the frame of this element and of all after it, and unified_last_error says why. If that happens with the
/// first element, the error is that of the function above, or -EINVAL: there is no such device, operation or buffer, a flag does
/// not belong to the operation, the data does not lie in the buffer or has a wrong length, the elements differ in `size`, or `submissions` is NULL or not aligned. -E2BIG: this version does
/// not know all fields. The receiver's thread.
///
/// # Safety
/// `ctx` must be a handle; `submissions` must have `count` elements.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn unified_submit(
    ctx: *const unified_ctx,
    submissions: *const unified_submission,
    count: u32,
) -> c_int {
    guard(|| {
        on_path!(ctx, |context, path| {
            let mut done = 0;
            let mut refused = None;
            let mut publish = false;
            while done < count {
                // SAFETY: the caller's promise: `count` elements.
                let element = unsafe { sized_element(submissions, done, "`submissions`") };
                let submitted = element.and_then(|s| {
                    let last = done + 1 == count;
                    let more = !last || s.flags & UNIFIED_MORE != 0;
                    // SAFETY: the caller's promise.
                    let submitted = match unsafe { wanted(context, &s, more)? } {
                        Wanted::Transfer(direction, transfer) => {
                            path.submit_transfer(direction, &transfer)
                        }
                        Wanted::Buffer(direction, transfer) => {
                            path.submit_buffer(direction, &transfer)
                        }
                        Wanted::RawInBuffer(device, command, data) => {
                            path.submit_raw_in_buffer(device, &command, data, s.user_data)
                        }
                        Wanted::Flush(device) => path.submit_flush(device, s.user_data),
                        Wanted::WriteZeroes(blocks, fua) => path.submit_write_zeroes(&blocks, fua),
                        Wanted::Deallocate(blocks) => path.submit_deallocate(&blocks),
                        Wanted::Raw(device, command, data) => {
                            path.submit_raw(device, &command, data, s.user_data)
                        }
                    };
                    submitted.map(|()| publish = !last)
                });
                if let Err(error) = submitted {
                    refused = Some(error);
                    break;
                }
                done += 1;
            }
            // Some wait for the one that was refused.
            if publish {
                path.submit_pending()?;
            }
            Progress::new(done, refused)
        })
        .map(so_many)
    })
}
