//! The data path: frames, packets, submissions, completions, waiting.

use std::ffi::{c_int, c_void};
use std::time::Duration;

use super::types::*;
use super::{count, guard, null, unified_ctx, with, with_free};
use crate::context::{Completion, Context};
use crate::error::{Error, Result};
use crate::net::rx::Received;
use crate::submit::Transfer;
use crate::sys::abi::NvmeUringCmd;

/// Packets and completions are passed on in pieces of this many, on the stack.
const PIECE: usize = 64;

/// Takes an empty frame: its number to `*frame`. It is the caller's until submitted or released. 0,
/// -ENOBUFS (none is free now), -EBUSY (another thread receives), -ESHUTDOWN (the context is being destroyed). The receiver's thread.
///
/// # Safety
/// `ctx` must be a handle; `frame` must be valid.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn unified_frame_alloc(ctx: *const unified_ctx, frame: *mut u32) -> c_int {
    guard(|| {
        if frame.is_null() || !frame.is_aligned() {
            return Err(null("the place for the frame"));
        }
        let number = with_free(ctx, |context| context.frame_alloc())?;
        // SAFETY: the caller's promise; not null and aligned.
        unsafe { frame.write(number) };
        Ok(0)
    })
}

/// Gives a frame back that was received, allocated, or came with a completion. 0, -EINVAL (not the
/// caller's), -EBUSY (in flight). Any thread.
///
/// # Safety
/// `ctx` must be a handle.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn unified_frame_release(ctx: *const unified_ctx, frame: u32) -> c_int {
    guard(|| with(ctx, |_, context| context.frame_release(frame)).map(|()| 0))
}

/// The first byte of a frame (of `frame_size` bytes), page or half-page aligned; NULL for a number that
/// is not one. Read and write it only while the frame is the caller's. Any thread.
///
/// # Safety
/// `ctx` must be a handle.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn unified_frame_data(ctx: *const unified_ctx, frame: u32) -> *mut c_void {
    let mut data = std::ptr::null_mut();
    guard(|| {
        with(ctx, |_, context| {
            let info = context.info();
            if frame >= info.frame_count {
                return Err(Error::new(
                    libc::EINVAL,
                    format!(
                        "frame {frame} does not exist: there are {}",
                        info.frame_count
                    ),
                ));
            }
            data = context
                .data()
                .pointer(frame as usize * info.frame_size as usize)
                .cast();
            Ok(0)
        })
    });
    data
}

fn packet_of(context: &Context, packet: &Received, queue: u32) -> unified_packet {
    let data = context.data();
    let at = packet.offset as usize;
    let headers = &packet.headers;
    unified_packet {
        data: data.pointer(at).cast(),
        payload: data
            .pointer(at + usize::from(headers.payload_offset))
            .cast(),
        timestamp: packet.timestamp,
        len: packet.len,
        payload_len: headers.payload_len.into(),
        frame: packet.frame,
        queue,
        l3_offset: headers.l3_offset,
        payload_offset: headers.payload_offset,
        src_port: headers.src_port,
        dst_port: headers.dst_port,
        vlan_tci: headers.vlan_tci.unwrap_or(0),
        ip_version: headers.ip_version,
        flags: if headers.vlan_tci.is_some() {
            UNIFIED_PACKET_VLAN
        } else {
            0
        },
        reserved: 0,
    }
}

/// Takes up to `max` received packets, and gives free frames back to the NIC: the number of packets, 0
/// where there are none. Each packet's frame is the caller's from now on. -EINVAL, -EBUSY (another thread
/// receives, or a pipeline runs), -ENOTCONN (no interface), -ENODEV (it was deleted or moved to another
/// network namespace, and every packet was taken), -ESHUTDOWN. The receiver's thread. An interface that is
/// down, and one whose XDP program somebody took off, is no error: see unified_stats.link_up and xdp_attached.
///
/// # Safety
/// `ctx` must be a handle; `packets` must have room for `max`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn unified_rx_batch(
    ctx: *const unified_ctx,
    packets: *mut unified_packet,
    max: u32,
) -> c_int {
    guard(|| {
        if packets.is_null() || !packets.is_aligned() {
            return Err(null("the place for packets"));
        }
        with_free(ctx, |context| {
            let queue = context.info().network.map_or(0, |n| n.queue);
            let mut piece = [Received::default(); PIECE];
            let mut total = 0;
            while total < max as usize {
                let want = PIECE.min(max as usize - total);
                let got = match context.receive(&mut piece[..want]) {
                    // What was taken before must not be lost by a later error.
                    Err(_) if total > 0 => break,
                    result => result?,
                };
                for (i, packet) in piece[..got].iter().enumerate() {
                    // SAFETY: `total + i` is below `max`, for which there is room.
                    unsafe {
                        packets
                            .add(total + i)
                            .write(packet_of(context, packet, queue))
                    };
                }
                total += got;
                if got < want {
                    break;
                }
            }
            Ok(count(total))
        })
    })
}

fn transfer(
    context: &Context,
    frame: u32,
    data: *const c_void,
    len: u32,
    lba: u64,
    user_data: u64,
    flags: u32,
) -> Result<Transfer> {
    if flags & !(UNIFIED_FUA | UNIFIED_KEEP | UNIFIED_MORE) != 0 {
        return Err(Error::new(
            libc::EINVAL,
            format!("unknown submission flags {flags:#x}"),
        ));
    }
    let base = context.data().address();
    let offset = (data as usize).checked_sub(base).ok_or_else(|| {
        Error::new(
            libc::EINVAL,
            "the data does not lie in the data buffers: use a frame's memory",
        )
    })?;
    Ok(Transfer {
        frame,
        offset: offset as u64,
        len,
        lba,
        user_data,
        fua: flags & UNIFIED_FUA != 0,
        keep: flags & UNIFIED_KEEP != 0,
        more: flags & UNIFIED_MORE != 0,
    })
}

/// Writes `len` bytes at `data`, which lie in `frame`, to the device from block `lba` on. The last block is
/// padded with zeroes: the frame's bytes behind `data + len` may be overwritten. The frame is the library's
/// until its completion was taken; then it goes back to the NIC by itself, or with UNIFIED_KEEP to the
/// caller. After a failure the caller has it as before.
///
/// 0, -EINVAL (length, not inside the frame, frame not the caller's), -EBUSY (frame in flight already,
/// another thread submits, or a pipeline runs), -EAGAIN (SQ ring full: take completions), -ESHUTDOWN. What
/// the device says comes with the completion: LBA Out of Range (80h), Write Fault (280h), Namespace is Write
/// Protected (20h), ... Without UNIFIED_FUA the data is durable only after a flush where the device has a
/// volatile cache. The receiver's thread. NVM Command Set Specification 1.0, section 3.2.6.
///
/// # Safety
/// `ctx` must be a handle.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn unified_submit_write(
    ctx: *const unified_ctx,
    frame: u32,
    data: *const c_void,
    len: u32,
    lba: u64,
    user_data: u64,
    flags: u32,
) -> c_int {
    guard(|| {
        with_free(ctx, |context| {
            let transfer = transfer(context, frame, data, len, lba, user_data, flags)?;
            context.submit_write(&transfer)
        })
        .map(|()| 0)
    })
}

/// Reads `len` bytes, whole blocks, from block `lba` on to `data`, which lies in a frame of the caller's.
/// The completion gives the frame back. Errors and thread as unified_submit_write. Section 3.2.4.
///
/// # Safety
/// `ctx` must be a handle.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn unified_submit_read(
    ctx: *const unified_ctx,
    frame: u32,
    data: *mut c_void,
    len: u32,
    lba: u64,
    user_data: u64,
    flags: u32,
) -> c_int {
    guard(|| {
        with_free(ctx, |context| {
            let transfer = transfer(context, frame, data, len, lba, user_data, flags)?;
            context.submit_read(&transfer)
        })
        .map(|()| 0)
    })
}

/// Compares `len` bytes, whole blocks, with the device: status Compare Failure (285h) where they differ.
/// The completion gives the frame back. Errors and thread as unified_submit_write. Section 3.2.1.
///
/// # Safety
/// `ctx` must be a handle.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn unified_submit_compare(
    ctx: *const unified_ctx,
    frame: u32,
    data: *const c_void,
    len: u32,
    lba: u64,
    user_data: u64,
    flags: u32,
) -> c_int {
    guard(|| {
        with_free(ctx, |context| {
            let transfer = transfer(context, frame, data, len, lba, user_data, flags)?;
            context.submit_compare(&transfer)
        })
        .map(|()| 0)
    })
}

/// Makes durable what completed before it was submitted. Writes still in flight may or may not be covered.
/// 0, -EBUSY, -EAGAIN, -ESHUTDOWN. The receiver's thread. Base Specification 2.0, section 7.1.
///
/// # Safety
/// `ctx` must be a handle.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn unified_submit_flush(ctx: *const unified_ctx, user_data: u64) -> c_int {
    guard(|| with_free(ctx, |context| context.submit_flush(user_data)).map(|()| 0))
}

/// Zeroes `blocks` (1 to 65536) from `lba` on. `flags`: UNIFIED_FUA or 0. Errors and thread as
/// unified_submit_flush, and -EINVAL. NVM Command Set Specification 1.0, section 3.2.8.
///
/// # Safety
/// `ctx` must be a handle.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn unified_submit_write_zeroes(
    ctx: *const unified_ctx,
    lba: u64,
    blocks: u32,
    user_data: u64,
    flags: u32,
) -> c_int {
    guard(|| {
        if flags & !UNIFIED_FUA != 0 {
            return Err(Error::new(
                libc::EINVAL,
                format!("unknown flags {flags:#x}"),
            ));
        }
        with_free(ctx, |context| {
            context.submit_write_zeroes(lba, blocks, flags & UNIFIED_FUA != 0, user_data)
        })
        .map(|()| 0)
    })
}

/// Tells the device that `blocks` (1 to 65536) from `lba` on are not needed any more (Dataset Management,
/// Deallocate). What they hold afterwards is the device's choice. Errors and thread as unified_submit_flush,
/// -EINVAL, and -ENOBUFS (needs a free frame). NVM Command Set Specification 1.0, section 3.2.3.
///
/// # Safety
/// `ctx` must be a handle.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn unified_submit_deallocate(
    ctx: *const unified_ctx,
    lba: u64,
    blocks: u32,
    user_data: u64,
) -> c_int {
    guard(|| {
        with_free(ctx, |context| {
            context.submit_deallocate(lba, blocks, user_data)
        })
        .map(|()| 0)
    })
}

/// Submits any NVMe command; opcode 06h, Identify, goes to the controller. Its data, `command->data_len`
/// bytes at `data` in `frame`, comes back with the completion; NULL and any frame for none. Devices that
/// are no NVMe know the commands of this header and answer the others with Invalid Opcode (1h). Errors and
/// thread as unified_submit_write.
///
/// # Safety
/// `ctx` must be a handle; `command` must be valid.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn unified_submit_raw(
    ctx: *const unified_ctx,
    command: *const unified_nvme_command,
    frame: u32,
    data: *mut c_void,
    user_data: u64,
) -> c_int {
    guard(|| {
        if command.is_null() || !command.is_aligned() {
            return Err(null("the command"));
        }
        // SAFETY: the caller's promise; not null and aligned.
        let c = unsafe { command.read() };
        if c.reserved0 != 0 || c.reserved1 != 0 {
            return Err(Error::new(
                libc::EINVAL,
                "reserved fields of the command are not zero",
            ));
        }
        let cmd = NvmeUringCmd {
            opcode: c.opcode,
            nsid: c.nsid,
            cdw2: c.cdw2,
            cdw3: c.cdw3,
            cdw10: c.cdw10,
            cdw11: c.cdw11,
            cdw12: c.cdw12,
            cdw13: c.cdw13,
            cdw14: c.cdw14,
            cdw15: c.cdw15,
            data_len: c.data_len,
            timeout_ms: c.timeout,
            ..NvmeUringCmd::default()
        };
        with_free(ctx, |context| {
            if data.is_null() {
                return context.submit_raw(&cmd, None, user_data);
            }
            let start =
                context.data().address() + frame as usize * context.info().frame_size as usize;
            let at = (data as usize)
                .checked_sub(start)
                .and_then(|at| u32::try_from(at).ok());
            let at = at.ok_or_else(|| {
                Error::new(
                    libc::EINVAL,
                    format!("the data does not lie in frame {frame}"),
                )
            })?;
            context.submit_raw(&cmd, Some((frame, at)), user_data)
        })
        .map(|()| 0)
    })
}

/// Shows the engine what was submitted with UNIFIED_MORE. 0, -EBUSY, -ESHUTDOWN. The receiver's thread.
///
/// # Safety
/// `ctx` must be a handle.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn unified_submit_pending(ctx: *const unified_ctx) -> c_int {
    guard(|| with_free(ctx, |context| context.submit_pending()).map(|()| 0))
}

/// Takes up to `max` completions: their number, 0 where there are none. With UNIFIED_DRIVE_INLINE this also
/// drives the device. -EINVAL, -EBUSY (another thread takes, or a pipeline runs), -ESHUTDOWN, -EBADMSG (the
/// rings were overwritten), or what stopped the engine. The taker's thread.
///
/// # Safety
/// `ctx` must be a handle; `completions` must have room for `max`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn unified_completions(
    ctx: *const unified_ctx,
    completions: *mut unified_completion,
    max: u32,
) -> c_int {
    guard(|| {
        if completions.is_null() || !completions.is_aligned() {
            return Err(null("the place for completions"));
        }
        with_free(ctx, |context| {
            let mut piece = [Completion::default(); PIECE];
            let mut total = 0;
            while total < max as usize {
                let want = PIECE.min(max as usize - total);
                let got = match context.completions(&mut piece[..want]) {
                    Err(_) if total > 0 => break,
                    result => result?,
                };
                for (i, done) in piece[..got].iter().enumerate() {
                    // SAFETY: `total + i` is below `max`, for which there is room.
                    unsafe { completions.add(total + i).write(completion_of(done)) };
                }
                total += got;
                if got < want {
                    break;
                }
            }
            Ok(count(total))
        })
    })
}

fn completion_of(done: &Completion) -> unified_completion {
    let flag = |on: bool, bit: u32| if on { bit } else { 0 };
    unified_completion {
        user_data: done.user_data,
        result: done.result,
        status: done.status.into(),
        len: done.len,
        frame: done.frame.unwrap_or(0),
        flags: flag(done.dnr, UNIFIED_COMPLETION_DNR)
            | flag(done.frame.is_some(), UNIFIED_COMPLETION_FRAME)
            | flag(done.bounced, UNIFIED_COMPLETION_BOUNCED)
            | flag(done.spilled, UNIFIED_COMPLETION_SPILLED),
        reserved: 0,
    }
}

/// Waits until there is something of `what` (UNIFIED_WAIT_RX, UNIFIED_WAIT_COMPLETIONS), at most
/// `timeout_ms` (-1: for ever): which, 0 when the time ran out or a signal came. -EINVAL, -EBUSY,
/// -ENOTCONN, -ENODEV (the interface is gone and nothing of `what` is there), -ESHUTDOWN (the context is being
/// destroyed), or what stopped the engine. The thread of the role or roles, which it has until it returns: other
/// threads get -EBUSY from calls of the same role meanwhile.
///
/// # Safety
/// `ctx` must be a handle.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn unified_wait(
    ctx: *const unified_ctx,
    what: u32,
    timeout_ms: c_int,
) -> c_int {
    guard(|| {
        let timeout = u64::try_from(timeout_ms).ok().map(Duration::from_millis);
        with_free(ctx, |context| context.wait(what, timeout)).map(|ready| ready as c_int)
    })
}

/// A descriptor for event loops, readable when packets or completions wait; it belongs to the context. When
/// it is, call unified_rx_batch and unified_completions until they give less than was asked for: they
/// leave it armed, and it is not readable again before something new comes. It also becomes readable, for good, when the
/// context is being destroyed or the engine has stopped; those calls then say so. Take it out of the loop before the
/// context is destroyed, which closes it. -EBUSY, -ESHUTDOWN. Call it once, before the loop, from the thread that has both roles.
///
/// # Safety
/// `ctx` must be a handle.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn unified_poll_fd(ctx: *const unified_ctx) -> c_int {
    guard(|| with_free(ctx, |context| context.poll_fd()))
}
