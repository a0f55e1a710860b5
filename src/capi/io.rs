//! The data path: frames, packets, submissions, completions, waiting.

use std::ffi::{c_int, c_void};
use std::time::Duration;

use super::types::*;
use super::{count, guard, null, on_path, remember, unified_ctx, with};
use crate::context::Context;
use crate::error::{Error, Result};
use crate::lane::{Blocks, Completion, Direction, Progress, Ready, Transfer};
use crate::net::rx::Received;
use crate::sys::abi::NvmeUringCmd;

/// Packets and completions are passed on in pieces of this many, on the stack.
const PIECE: usize = 64;

/// Allocates a free frame and stores its number in `*frame`. The caller owns it until it is submitted or released. Returns 0,
/// -ENOBUFS (no frame is free now), -EBUSY (another thread receives) or -ESHUTDOWN (the context is being destroyed). The
/// receiver's thread.
///
/// # Safety
/// `ctx` must be a handle; `frame` must be valid.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn unified_frame_alloc(ctx: *const unified_ctx, frame: *mut u32) -> c_int {
    guard(|| {
        if frame.is_null() || !frame.is_aligned() {
            return Err(null("`frame`"));
        }
        let number = on_path!(ctx, |_context, path| path.frame_alloc())?;
        // SAFETY: the caller's promise; not null and aligned.
        unsafe { frame.write(number) };
        Ok(0)
    })
}

/// Releases a frame that was received, allocated, or returned by a completion. Returns 0, -EINVAL (the caller does not own it)
/// or -EBUSY (it is in flight). Any thread.
///
/// # Safety
/// `ctx` must be a handle.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn unified_frame_release(ctx: *const unified_ctx, frame: u32) -> c_int {
    guard(|| with(ctx, |_, context| context.frame_release(frame)).map(|()| 0))
}

/// Releases `count` frames, in the order of the array. It does what unified_frame_release does with each, at a lower cost, which
/// is lowest if the numbers of the frames follow each other. Returns the number of released frames. That is less than `count` if
/// the caller does not own a frame or it is in flight: this frame and all after it stay as they were, and unified_last_error
/// says why. If that happens with the first frame, the error is that of unified_frame_release. -EINVAL also if `frames` is NULL
/// or not aligned. Any thread.
///
/// # Safety
/// `ctx` must be a handle; `frames` must have `count` elements.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn unified_frames_release(
    ctx: *const unified_ctx,
    frames: *const u32,
    count: u32,
) -> c_int {
    guard(|| {
        // SAFETY: the caller's promise.
        let frames = unsafe { elements(frames, count, "`frames`")? };
        with(ctx, |_, context| context.frames_release(frames)).map(so_many)
    })
}

/// The elements of C's array, each read once.
///
/// # Safety
/// `array` must be null or have `count` elements until the iterator is gone.
unsafe fn elements<T: Copy>(
    array: *const T,
    count: u32,
    what: &str,
) -> Result<impl Iterator<Item = T>> {
    if array.is_null() || !array.is_aligned() {
        return Err(null(what));
    }
    // SAFETY: the caller's promise; not null and aligned, as just checked, and `i` is below `count`.
    Ok((0..count as usize).map(move |i| unsafe { array.add(i).read() }))
}

/// What a batch returns. The reason why it ended early is for `unified_last_error`.
pub(super) fn so_many(progress: Progress) -> c_int {
    if let Some(error) = progress.refused {
        remember(error.message());
    }
    count(progress.done as usize)
}

/// Returns the first byte of a frame of `frame_size` bytes, aligned to a page or half a page; NULL if there is no frame of that
/// number. Access the memory only while the caller owns the frame. Any thread.
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
                .pointer(info.frames().start(frame) as usize)
                .cast();
            Ok(0)
        })
    });
    data
}

/// Takes up to `max` elements, in pieces, and writes them to C's array. Returns their number. What was taken before an error
/// is not lost by it: the next call reports the error.
///
/// # Safety
/// `out` must be null or have room for `max`.
unsafe fn in_pieces<T: Copy + Default, C>(
    out: *mut C,
    max: u32,
    what: &str,
    mut take: impl FnMut(&mut [T]) -> Result<usize>,
    convert: impl Fn(&T) -> C,
) -> Result<c_int> {
    if out.is_null() || !out.is_aligned() {
        return Err(null(what));
    }
    let mut piece = [T::default(); PIECE];
    let mut total = 0;
    while total < max as usize {
        let want = PIECE.min(max as usize - total);
        let got = match take(&mut piece[..want]) {
            Err(_) if total > 0 => break,
            result => result?,
        };
        for (i, element) in piece[..got].iter().enumerate() {
            // SAFETY: `total + i` is below `max`, for which there is room.
            unsafe { out.add(total + i).write(convert(element)) };
        }
        total += got;
        if got < want {
            break;
        }
    }
    Ok(count(total))
}

fn packet_of(context: &Context, packet: &Received) -> unified_packet {
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
        queue: packet.queue,
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

/// Takes up to `max` received packets and refills the fill ring with free frames. Returns the number of packets, 0 if there are
/// none. From now on the caller owns the frame of each packet. Errors: -EINVAL, -EBUSY (another thread receives, or a
/// pipeline runs), -ENOTCONN (no interface), -ENODEV (the interface was deleted or moved to another network namespace, and
/// all packets were taken), -ESHUTDOWN. The receiver's thread. It is not an error if the interface is down or if somebody
/// detached the XDP program: see unified_stats.link_up and xdp_attached.
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
        on_path!(ctx, |context, path| {
            // SAFETY: the caller's promise: room for `max`.
            unsafe {
                in_pieces(
                    packets,
                    max,
                    "`packets`",
                    |piece: &mut [Received]| path.receive(piece),
                    |packet| packet_of(context, packet),
                )
            }
        })
    })
}

/// The arguments that transfers have in common.
pub(super) struct Request {
    pub frame: u32,
    pub data: *const c_void,
    pub len: u32,
    pub lba: u64,
    pub user_data: u64,
    pub flags: u32,
}

fn submit(ctx: *const unified_ctx, direction: Direction, request: Request) -> c_int {
    guard(|| {
        on_path!(ctx, |context, path| {
            let transfer = transfer(context, &request)?;
            path.submit_transfer(direction, &transfer)
        })
        .map(|()| 0)
    })
}

pub(super) fn transfer(context: &Context, request: &Request) -> Result<Transfer> {
    let flags = request.flags;
    if flags & !(UNIFIED_FUA | UNIFIED_KEEP | UNIFIED_MORE) != 0 {
        return Err(Error::new(
            libc::EINVAL,
            format!("unknown submission flags {flags:#x}"),
        ));
    }
    let base = context.data().address();
    let offset = (request.data as usize).checked_sub(base).ok_or_else(|| {
        Error::new(
            libc::EINVAL,
            "the data does not lie in the data buffers: use a frame's memory",
        )
    })?;
    Ok(Transfer {
        frame: request.frame,
        offset: offset as u64,
        len: request.len,
        lba: request.lba,
        user_data: request.user_data,
        fua: flags & UNIFIED_FUA != 0,
        keep: flags & UNIFIED_KEEP != 0,
        more: flags & UNIFIED_MORE != 0,
        ..Transfer::default()
    })
}

/// Writes `len` bytes at `data`, inside `frame`, to the device, beginning at block `lba`. The last block is padded with zeroes,
/// so the bytes of the frame after `data + len` may be overwritten. The library owns the frame until its completion was taken.
/// Then the frame goes back to the fill ring, or to the caller with UNIFIED_KEEP. If this function fails, the caller still
/// owns the frame.
///
/// Returns 0, -EINVAL (wrong length, not inside the frame, or the caller does not own the frame), -EBUSY (the frame is in
/// flight, another thread submits, or a pipeline runs), -EAGAIN (the SQ ring is full: take completions) or -ESHUTDOWN. The
/// completion carries the status of the device: LBA Out of Range (80h), Write Fault (280h), Namespace is Write Protected
/// (20h), and so on. If the device has a volatile cache, the data is durable only after a flush, or with UNIFIED_FUA. The
/// receiver's thread. NVM Command Set Specification 1.0, section 3.2.6.
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
    let request = Request {
        frame,
        data,
        len,
        lba,
        user_data,
        flags,
    };
    submit(ctx, Direction::Write, request)
}

/// Submits `count` writes, in the order of the array. It does what unified_submit_write does with each, at a lower cost. The
/// engine sees all of them together, and with them those that were submitted with UNIFIED_MORE before. The flags of an entry are
/// UNIFIED_FUA and UNIFIED_KEEP.
///
/// Returns the number of submitted writes. That is less than `count` if the SQ ring became full or an entry was refused: the
/// caller still owns the frame of this entry and of all after it, and unified_last_error says why. If that happens with the first
/// entry, the error is that of unified_submit_write. -EINVAL also if `writes` is NULL or not aligned. The receiver's thread.
///
/// # Safety
/// `ctx` must be a handle; `writes` must have `count` elements.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn unified_submit_writes(
    ctx: *const unified_ctx,
    writes: *const unified_write,
    count: u32,
) -> c_int {
    guard(|| {
        // SAFETY: the caller's promise.
        let writes = unsafe { elements(writes, count, "`writes`")? };
        on_path!(ctx, |context, path| {
            path.submit_writes(writes.map(|write| write_of(context, &write)))
        })
        .map(so_many)
    })
}

fn write_of(context: &Context, write: &unified_write) -> Result<Transfer> {
    if write.flags & UNIFIED_MORE != 0 || write.reserved != 0 {
        return Err(Error::new(
            libc::EINVAL,
            "an entry of a batch has the flag UNIFIED_MORE, or its reserved field is not zero",
        ));
    }
    let request = Request {
        frame: write.frame,
        data: write.data,
        len: write.len,
        lba: write.lba,
        user_data: write.user_data,
        flags: write.flags,
    };
    transfer(context, &request)
}

/// Reads `len` bytes, whole blocks, beginning at block `lba`, to `data` inside a frame that the caller owns. The completion
/// returns the frame. Errors and thread as unified_submit_write. Section 3.2.4.
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
    let request = Request {
        frame,
        data,
        len,
        lba,
        user_data,
        flags,
    };
    submit(ctx, Direction::Read, request)
}

/// Compares `len` bytes, whole blocks, with the device. The status is Compare Failure (285h) if they differ. The completion
/// returns the frame. Errors and thread as unified_submit_write. Section 3.2.1.
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
    let request = Request {
        frame,
        data,
        len,
        lba,
        user_data,
        flags,
    };
    submit(ctx, Direction::Compare, request)
}

/// Flushes all devices of the context: when the flush completes, all writes that completed before it was submitted are durable.
/// Writes that were in flight may or may not be covered. It has one completion, with the worst status of all devices, and the
/// device of that status; unified_submit flushes a single one. Returns 0, -EBUSY, -EAGAIN or -ESHUTDOWN. The receiver's thread. Base Specification 2.0, section 7.1.
///
/// # Safety
/// `ctx` must be a handle.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn unified_submit_flush(ctx: *const unified_ctx, user_data: u64) -> c_int {
    guard(|| on_path!(ctx, |_context, path| path.submit_flush(None, user_data)).map(|()| 0))
}

/// Zeroes `blocks` (1 to 65536) blocks, beginning at `lba`. `flags`: UNIFIED_FUA or 0. Errors and thread as
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
        on_path!(ctx, |_context, path| {
            let blocks = Blocks::new(lba, blocks, user_data);
            path.submit_write_zeroes(&blocks, flags & UNIFIED_FUA != 0)
        })
        .map(|()| 0)
    })
}

/// Deallocates `blocks` (1 to 65536) blocks, beginning at `lba` (Dataset Management). The device decides what they contain
/// afterwards. Errors and thread as unified_submit_flush, -EINVAL, and -ENOBUFS (it needs a free frame). NVM Command Set Specification 1.0, section 3.2.3.
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
        on_path!(ctx, |_context, path| {
            path.submit_deallocate(&Blocks::new(lba, blocks, user_data))
        })
        .map(|()| 0)
    })
}

/// Submits any NVMe command. Opcode 06h, Identify, goes to the controller. The data of the command is `command->data_len` bytes
/// at `data` inside `frame`; the completion returns the frame. For a command without data, `data` is NULL and `frame` is
/// ignored. Other devices than NVMe drives support the commands of this header and answer all others with Invalid Opcode
/// (1h). Errors and thread as unified_submit_write.
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
            return Err(null("`command`"));
        }
        // SAFETY: the caller's promise; not null and aligned.
        let command = raw_command(&unsafe { command.read() })?;
        on_path!(ctx, |context, path| {
            let data = raw_data(context, frame, data)?;
            path.submit_raw(0, &command, data, user_data)
        })
        .map(|()| 0)
    })
}

pub(super) fn raw_command(c: &unified_nvme_command) -> Result<NvmeUringCmd> {
    if c.reserved0 != 0 || c.reserved1 != 0 {
        return Err(Error::new(
            libc::EINVAL,
            "reserved fields of the command are not zero",
        ));
    }
    Ok(NvmeUringCmd {
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
    })
}

/// The frame of a raw command's data, and where in it they begin; `None` if there are none.
pub(super) fn raw_data(
    context: &Context,
    frame: u32,
    data: *const c_void,
) -> Result<Option<(u32, u32)>> {
    if data.is_null() {
        return Ok(None);
    }
    let start = context.data().address() + context.info().frames().start(frame) as usize;
    let at = (data as usize)
        .checked_sub(start)
        .and_then(|at| u32::try_from(at).ok());
    match at {
        Some(at) => Ok(Some((frame, at))),
        None => Err(Error::new(
            libc::EINVAL,
            format!("the data does not lie in frame {frame}"),
        )),
    }
}

/// Makes commands that were submitted with UNIFIED_MORE visible to the engine. Returns 0, -EBUSY or -ESHUTDOWN. The receiver's
/// thread.
///
/// # Safety
/// `ctx` must be a handle.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn unified_submit_pending(ctx: *const unified_ctx) -> c_int {
    guard(|| on_path!(ctx, |_context, path| path.submit_pending()).map(|()| 0))
}

/// Takes up to `max` completions and returns their number, 0 if there are none. With UNIFIED_DRIVE_INLINE this call also drives
/// the device. Errors: -EINVAL, -EBUSY (another thread takes completions, or a pipeline runs), -ESHUTDOWN, -EBADMSG (the
/// rings were overwritten), or the error that stopped the engine. The taker's thread.
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
        on_path!(ctx, |_context, path| {
            // SAFETY: the caller's promise: room for `max`.
            unsafe {
                in_pieces(
                    completions,
                    max,
                    "`completions`",
                    |piece: &mut [Completion]| path.completions(piece),
                    completion_of,
                )
            }
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
        device: done.device.into(),
    }
}

/// Waits until packets or completions are ready, as `what` says (UNIFIED_WAIT_RX, UNIFIED_WAIT_COMPLETIONS or both), for at most
/// `timeout_ms` (-1: no limit). Returns the bits that are ready; 0 on timeout or signal. Errors: -EINVAL, -EBUSY, -ENOTCONN,
/// -ENODEV (the interface is gone and nothing is ready), -ESHUTDOWN (the context is being destroyed), or the error that
/// stopped the engine. The thread that has the role, or both roles. It keeps them until the function returns: meanwhile calls
/// of the same role in other threads return -EBUSY.
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
        let wanted = Ready {
            rx: what & UNIFIED_WAIT_RX != 0,
            completions: what & UNIFIED_WAIT_COMPLETIONS != 0,
        };
        let timeout = u64::try_from(timeout_ms).ok().map(Duration::from_millis);
        let ready = on_path!(ctx, |_context, path| {
            if what == 0 || what & !(UNIFIED_WAIT_RX | UNIFIED_WAIT_COMPLETIONS) != 0 {
                return Err(Error::new(
                    libc::EINVAL,
                    format!(
                        "waiting for condition {what:#x}: use UNIFIED_WAIT_RX, UNIFIED_WAIT_COMPLETIONS or both"
                    ),
                ));
            }
            path.wait(wanted, timeout)
        })?;
        let bit = |on: bool, bit: u32| if on { bit as c_int } else { 0 };
        Ok(bit(ready.rx, UNIFIED_WAIT_RX) | bit(ready.completions, UNIFIED_WAIT_COMPLETIONS))
    })
}

/// Returns a descriptor for event loops. It is readable while packets or completions are ready. The context owns it and closes
/// it: remove it from the loop before the context is destroyed. When it is readable, call unified_rx_batch and
/// unified_completions until they return fewer than requested. They leave the descriptor armed; it becomes readable again only
/// when something new arrives. It also becomes readable, and stays so, when the context is being destroyed or the engine has
/// stopped; those calls then return the error. Errors: -EBUSY, -ESHUTDOWN. Call it once, before the loop, from the thread that
/// has both roles.
///
/// # Safety
/// `ctx` must be a handle.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn unified_poll_fd(ctx: *const unified_ctx) -> c_int {
    guard(|| on_path!(ctx, |_context, path| path.poll_fd()))
}
