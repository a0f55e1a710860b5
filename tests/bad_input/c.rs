//! The C interface, called as a C program would call it.

use std::ffi::{CStr, c_int};
use std::ptr::{from_mut, from_ref, null, null_mut};

use super::{Grown, Refusal};
use unified::capi::types::*;
use unified::capi::*;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Handle(*mut unified_ctx);

pub const NULL: Handle = Handle(null_mut());

pub fn result(rc: c_int) -> Result<c_int, Refusal> {
    if rc >= 0 {
        return Ok(rc);
    }
    Err(Refusal(-rc, last_error()))
}

pub fn create(config: Option<&Grown>) -> Result<Handle, Refusal> {
    if let Some(c) = config {
        let size = c.known.size;
        assert!(size <= size_of::<Grown>() as u64 || size > 1 << 16, "test");
    }
    let mut ctx = Handle(std::ptr::without_provenance_mut(8));
    // SAFETY: the struct has the `size` bytes that it names (or a size that is refused unread), and its
    // pointers are NULL or lead to what its owner holds.
    let rc =
        unsafe { unified_ctx_create(config.map_or(null(), |c| from_ref(&c.known)), &mut ctx.0) };
    assert_eq!(rc != 0, ctx == NULL, "NULL after a failure, and only then");
    result(rc).map(|_| ctx)
}

pub fn create_nowhere(config: &Grown) -> Result<c_int, Refusal> {
    // SAFETY: as in create; a NULL place is refused.
    result(unsafe { unified_ctx_create(&config.known, null_mut()) })
}

pub fn destroy(ctx: Handle) -> Result<c_int, Refusal> {
    // SAFETY: NULL or a handle, which is never freed.
    result(unsafe { unified_ctx_destroy(ctx.0) })
}

pub fn info(ctx: Handle) -> unified_info {
    let mut info = std::mem::MaybeUninit::<unified_info>::zeroed();
    // SAFETY: integers and pointers, for which zero is a value; the size is set before the call.
    unsafe {
        (*info.as_mut_ptr()).size = size_of::<unified_info>() as u64;
        assert_eq!(unified_ctx_info(ctx.0, info.as_mut_ptr()), 0);
        info.assume_init()
    }
}

pub fn stats(ctx: Handle) -> unified_stats {
    let mut stats = std::mem::MaybeUninit::<unified_stats>::zeroed();
    // SAFETY: integers, for which zero is a value; the size is set before the call.
    unsafe {
        (*stats.as_mut_ptr()).size = size_of::<unified_stats>() as u64;
        assert_eq!(unified_ctx_stats(ctx.0, stats.as_mut_ptr()), 0);
        stats.assume_init()
    }
}

pub fn held(ctx: Handle) -> u64 {
    stats(ctx).frames_held
}

pub fn alloc(ctx: Handle) -> u32 {
    let mut frame = u32::MAX;
    // SAFETY: a handle and a live place.
    assert_eq!(unsafe { unified_frame_alloc(ctx.0, &mut frame) }, 0);
    frame
}

pub fn release(ctx: Handle, frame: u32) -> Result<c_int, Refusal> {
    // SAFETY: a handle.
    result(unsafe { unified_frame_release(ctx.0, frame) })
}

pub fn release_all(ctx: Handle, frames: &[u32]) -> Result<c_int, Refusal> {
    // SAFETY: a handle, and as many elements as said.
    result(unsafe { unified_frames_release(ctx.0, frames.as_ptr(), frames.len() as u32) })
}

/// A write of 512 bytes at the beginning of a frame.
pub fn entry(ctx: Handle, frame: u32, lba: u64, flags: u32) -> unified_write {
    let info = info(ctx);
    let at = info.buffers as usize + frame as usize * info.frame_size as usize;
    unified_write {
        data: info.region.wrapping_byte_add(at),
        lba,
        user_data: lba,
        len: 512,
        frame,
        flags,
        reserved: 0,
    }
}

pub fn submit_all(ctx: Handle, writes: &[unified_write]) -> Result<c_int, Refusal> {
    // SAFETY: a handle, and as many elements as said; the library checks where the data lies.
    result(unsafe { unified_submit_writes(ctx.0, writes.as_ptr(), writes.len() as u32) })
}

/// Both batches at addresses that no array can have.
pub fn misplaced(ctx: Handle) -> [Result<c_int, Refusal>; 4] {
    let words = [0u64; 16];
    let at: *const u64 = words.as_ptr();
    // SAFETY: a handle; what is NULL or not aligned is refused unread.
    unsafe {
        [
            unified_frames_release(ctx.0, null(), 0),
            unified_frames_release(ctx.0, at.byte_add(2).cast(), 1),
            unified_submit_writes(ctx.0, null(), 0),
            unified_submit_writes(ctx.0, at.byte_add(4).cast(), 1),
        ]
    }
    .map(result)
}

/// The message of this thread's last call that failed, or did only a part of a batch.
pub fn last_error() -> String {
    // SAFETY: never NULL, ends in a zero byte, and is valid until this thread's next call.
    let text = unsafe { CStr::from_ptr(unified_last_error()) };
    text.to_str().unwrap().into()
}

/// Writes, reads or compares (by `opcode`) `len` bytes at `at` of the data buffers.
pub fn transfer(
    ctx: Handle,
    opcode: u8,
    frame: u32,
    at: i64,
    len: u32,
    lba: u64,
    flags: u32,
) -> Result<c_int, Refusal> {
    let info = info(ctx);
    let data = info.region.wrapping_byte_add(info.buffers as usize);
    let data = data.wrapping_byte_offset(at as isize);
    // SAFETY: a handle; the library checks where the data lies before it uses the address.
    result(unsafe {
        match opcode {
            1 => unified_submit_write(ctx.0, frame, data, len, lba, 7, flags),
            2 => unified_submit_read(ctx.0, frame, data, len, lba, 7, flags),
            _ => unified_submit_compare(ctx.0, frame, data, len, lba, 7, flags),
        }
    })
}

pub fn raw(ctx: Handle, reserved: u8, data_len: u32, frame: Option<u32>) -> Result<c_int, Refusal> {
    let command = unified_nvme_command {
        opcode: 2,
        reserved0: reserved,
        reserved1: 0,
        nsid: 0,
        cdw2: 0,
        cdw3: 0,
        cdw10: 0,
        cdw11: 0,
        cdw12: 0,
        cdw13: 0,
        cdw14: 0,
        cdw15: 0,
        data_len,
        timeout: 0,
    };
    // SAFETY: a handle and a live command; NULL or the frame's own memory.
    result(unsafe {
        let data = frame.map_or(null_mut(), |f| unified_frame_data(ctx.0, f));
        unified_submit_raw(ctx.0, &command, frame.unwrap_or(0), data, 7)
    })
}

pub fn completions(ctx: Handle) -> Vec<unified_completion> {
    let none = unified_completion {
        user_data: 0,
        result: 0,
        status: 0,
        len: 0,
        frame: 0,
        flags: 0,
        device: 0,
    };
    let mut all = vec![none; 16];
    // SAFETY: a handle, and room for as many as said.
    let rc = unsafe {
        unified_wait(ctx.0, UNIFIED_WAIT_COMPLETIONS, 2000);
        unified_completions(ctx.0, all.as_mut_ptr(), all.len() as u32)
    };
    all.truncate(rc.try_into().unwrap());
    all
}

pub fn frame_data(ctx: Handle, frame: u32) -> bool {
    // SAFETY: a handle.
    !unsafe { unified_frame_data(ctx.0, frame) }.is_null()
}

pub fn port(ctx: Handle, add: bool, port: u16) -> Result<c_int, Refusal> {
    // SAFETY: a handle.
    result(unsafe {
        if add {
            unified_port_add(ctx.0, port)
        } else {
            unified_port_remove(ctx.0, port)
        }
    })
}

pub fn wait(ctx: Handle, what: u32) -> Result<c_int, Refusal> {
    // SAFETY: a handle.
    result(unsafe { unified_wait(ctx.0, what, 0) })
}

pub fn blocks(ctx: Handle, zero: bool, count: u32, flags: u32) -> Result<c_int, Refusal> {
    // SAFETY: a handle.
    result(unsafe {
        if zero {
            unified_submit_write_zeroes(ctx.0, 0, count, 7, flags)
        } else {
            unified_submit_deallocate(ctx.0, 0, count, 7)
        }
    })
}

pub fn log_level(level: c_int) -> Result<c_int, Refusal> {
    result(unified_set_log_callback(None, level, null_mut()))
}

/// The struct as it is, and one that a later header may have: `unknown` follows it.
#[repr(C)]
pub struct GrownPipeline {
    pub known: unified_pipeline_config,
    pub unknown: u64,
}

pub fn pipeline_start(ctx: Handle, config: &GrownPipeline) -> Result<c_int, Refusal> {
    let size = config.known.size;
    assert!(
        size <= size_of::<GrownPipeline>() as u64 || size > 1 << 16,
        "test"
    );
    // SAFETY: a handle, and a struct that has the bytes that it names.
    result(unsafe { unified_pipeline_start(ctx.0, &config.known) })
}

/// A log of version 2 over all devices.
pub fn start_log(ctx: Handle) -> Result<c_int, Refusal> {
    // SAFETY: integers, for which zero is a value.
    let mut known = unsafe { std::mem::zeroed::<unified_pipeline_config>() };
    known.size = size_of::<unified_pipeline_config>() as u64;
    known.layout = UNIFIED_LAYOUT_LOG;
    // SAFETY: a handle and a live struct.
    result(unsafe { unified_pipeline_start(ctx.0, &known) })
}

pub fn lane(ctx: Handle, lane: u32) -> Result<Handle, Refusal> {
    let mut handle = NULL;
    // SAFETY: a handle and a live place.
    result(unsafe { unified_ctx_lane(ctx.0, lane, &mut handle.0) }).map(|_| handle)
}

/// Asks for the properties of a device in a struct of `size` bytes: what came back, and the words that were all ones.
pub fn device_info(ctx: Handle, device: u32, size: u64) -> (Result<c_int, Refusal>, Vec<u64>) {
    let mut words = vec![u64::MAX; 64];
    words[0] = size;
    // SAFETY: a handle, and more room than any size that is not refused unread.
    let rc = unsafe { unified_device_info(ctx.0, device, words.as_mut_ptr().cast()) };
    (result(rc), words)
}

pub fn device_info_nowhere(ctx: Handle) -> Result<c_int, Refusal> {
    // SAFETY: a NULL place is refused.
    result(unsafe { unified_device_info(ctx.0, 0, null_mut()) })
}

pub fn pipeline_stop(ctx: Handle) -> Result<c_int, Refusal> {
    // SAFETY: a handle; no status is asked for.
    result(unsafe { unified_pipeline_stop(ctx.0, null_mut()) })
}

/// Calls every function that takes a handle, with arguments that are right otherwise.
pub fn every(ctx: Handle) -> Vec<(&'static str, Result<c_int, Refusal>)> {
    let mut words = [0u64; 128];
    words[0] = 64;
    let place = words.as_mut_ptr();
    let range = unified_pipeline_config {
        size: size_of::<unified_pipeline_config>() as u64,
        start_lba: 0,
        blocks: 0,
        at_end: 0,
        flags: 0,
        layout: 0,
        flush_writes: 0,
        flush_interval_ms: 0,
        moderation_us: 0,
        pack_below: 0,
        chunk_bytes: 0,
    };
    let mut all = Vec::new();
    macro_rules! call {
        ($($function:ident($($argument:expr),*);)*) => {$(
            // SAFETY: NULL or a handle, whose cell is never freed; places have room for all that is
            // written there, and a sized struct names its size.
            let rc = unsafe { $function(ctx.0 $(, $argument)*) };
            all.push((stringify!($function), result(rc)));
        )*};
    }
    call! {
        unified_ctx_info(place.cast());
        unified_ctx_stats(place.cast());
        unified_ctx_device(place.cast(), 64);
        unified_port_add(1);
        unified_port_remove(1);
        unified_events_sample(1);
        unified_events(place.cast(), 1);
        unified_events_fd();
        unified_frame_alloc(place.cast());
        unified_frame_release(0);
        unified_frames_release(place.cast(), 1);
        unified_rx_batch(place.cast(), 1);
        unified_submit_write(0, place.cast(), 1, 0, 0, 0);
        unified_submit_writes(place.cast(), 1);
        unified_submit_read(0, place.cast(), 512, 0, 0, 0);
        unified_submit_compare(0, place.cast(), 512, 0, 0, 0);
        unified_submit_flush(0);
        unified_submit_write_zeroes(0, 1, 0, 0);
        unified_submit_deallocate(0, 1, 0);
        unified_submit_raw(place.add(32).cast(), 0, null_mut(), 0);
        unified_submit_pending();
        unified_completions(place.cast(), 1);
        unified_wait(UNIFIED_WAIT_RX, 0);
        unified_poll_fd();
        unified_pipeline_start(&range);
        unified_pipeline_status(place.cast());
        unified_pipeline_stop(null_mut());
        unified_ctx_destroy();
    }
    all
}

/// Every function that takes a place or a struct, with NULL for it.
pub fn every_null(ctx: Handle) -> Vec<(&'static str, Result<c_int, Refusal>)> {
    // SAFETY: a handle; NULL is refused.
    unsafe {
        vec![
            ("ctx_info", result(unified_ctx_info(ctx.0, null_mut()))),
            ("ctx_stats", result(unified_ctx_stats(ctx.0, null_mut()))),
            (
                "ctx_device",
                result(unified_ctx_device(ctx.0, null_mut(), 9)),
            ),
            ("events", result(unified_events(ctx.0, null_mut(), 1))),
            (
                "frame_alloc",
                result(unified_frame_alloc(ctx.0, null_mut())),
            ),
            ("rx_batch", result(unified_rx_batch(ctx.0, null_mut(), 1))),
            (
                "submit_write",
                result(unified_submit_write(ctx.0, 0, null(), 1, 0, 0, 0)),
            ),
            (
                "frames_release",
                result(unified_frames_release(ctx.0, null(), 1)),
            ),
            (
                "submit_writes",
                result(unified_submit_writes(ctx.0, null(), 1)),
            ),
            (
                "submit_raw",
                result(unified_submit_raw(ctx.0, null(), 0, null_mut(), 0)),
            ),
            (
                "completions",
                result(unified_completions(ctx.0, null_mut(), 1)),
            ),
            (
                "pipeline_start",
                result(unified_pipeline_start(ctx.0, null())),
            ),
            ("packet_flow", {
                let flow =
                    unified_packet_flow(null(), null_mut(), null_mut(), null_mut(), null_mut());
                result(flow)
            }),
        ]
    }
}

/// What the accessors say of a NULL packet.
pub fn null_packet() -> (bool, u32, u64, c_int) {
    // SAFETY: NULL is allowed.
    unsafe {
        (
            unified_packet_payload(null()).is_null(),
            unified_packet_payload_len(null()),
            unified_packet_timestamp(null()),
            unified_packet_vlan(null()),
        )
    }
}

/// Asks for info, statistics and the pipeline's status in structs of `size` bytes: what came back, and
/// the words (of which `size` bytes and no more may have been written).
pub fn sized(ctx: Handle, size: u64) -> Vec<(Result<c_int, Refusal>, Vec<u64>)> {
    let mut all = Vec::new();
    for which in 0..3 {
        let mut words = vec![u64::MAX; 128];
        words[0] = size;
        let place = words.as_mut_ptr();
        // SAFETY: a handle; 1024 bytes are more than each of the structs has.
        let rc = unsafe {
            match which {
                0 => unified_ctx_info(ctx.0, place.cast()),
                1 => unified_ctx_stats(ctx.0, place.cast()),
                _ => unified_pipeline_status(ctx.0, place.cast()),
            }
        };
        all.push((result(rc), words));
    }
    all
}

/// The device's path into `len` bytes.
pub fn device(ctx: Handle, len: u32) -> Result<String, Refusal> {
    let mut text = [0xffu8; 64];
    assert!(len as usize <= text.len());
    // SAFETY: a handle, and room for `len`.
    let rc = unsafe { unified_ctx_device(ctx.0, from_mut(&mut text).cast(), len) };
    let end = result(rc)? as usize;
    assert_eq!(text[end], 0);
    Ok(String::from_utf8(text[..end].to_vec()).unwrap())
}
