//! The pipeline: one call that stores a port to a range of the device.

use std::ffi::c_int;
use std::time::Duration;

use super::types::*;
use super::{get_sized, guard, lanes_apart, put, put_sized, size_given, unified_ctx, with};
use crate::error::{Error, Result};
use crate::log;
use crate::pipeline::{AtEnd, Pipeline, PipelineConfig, PipelineStatus, StoreLayout, stripe_of};
use crate::recorder::Existing;

/// Starts a packet thread and a storage thread that store the received packets in a range of the devices. If the context has
/// several lanes, each has two such threads, and all of them store to one recording; with the handle of a lane, that lane alone
/// is stored, to a range that no other lane's pipeline has. Until the pipeline is stopped, the functions of the data path return
/// -EBUSY.
///
/// UNIFIED_LAYOUT_PAYLOAD stores the payloads one after the other, each padded to whole blocks, and spreads them over all devices
/// of the context (unified_stripe_locate says where). Of several lanes, each has an equal part of the range. There is no failover:
/// what a device fails is in its spill, or counts as failed.
///
/// UNIFIED_LAYOUT_LOG writes a log on each device, in the same range of each, which unified_log_open_set reads together
/// (unified_log_open: that of one device alone). The lanes share them. If a device fails writes, or does not answer for more than
/// a second, its packets are written to the other devices; it is tried again every second, and used again when it answers. No
/// packet is stored twice on purpose: there is no mirror. UNIFIED_LAYOUT_SLOT writes a log of version 1, of one lane on device 0.
/// An existing log of the same layout is continued, or replaced with UNIFIED_LOG_NEW; the devices of one recording must be given
/// in the order in which it was begun, all of them.
///
/// Returns 0, or -EINVAL: the range is not on the devices, no log fits into it, a log of other sizes or of the other layout is
/// there, the devices hold different recordings or are not all of one, in its order, or a field of `config` is out of range;
/// -EROFS; -EEXIST: the range holds something that is not a log (UNIFIED_LOG_NEW overrides this); -EALREADY: a pipeline runs, or
/// has not ended yet; -EBUSY: completions of earlier commands were not taken yet, another thread is taking some, the lanes are used
/// one by one (unified_ctx_lane), or the pipeline of another lane writes to the range; -ENOTCONN: no interface; -EIO: the log
/// cannot be read; -EPROTONOSUPPORT: this library does not know the version of the log in the range; -ETIMEDOUT: a device did not
/// answer for 30 s. Any thread.
///
/// With UNIFIED_FUA, or on a device without volatile cache, a completed write is durable. Otherwise it is durable as soon as
/// unified_pipeline_status.durable has passed it.
///
/// # Safety
/// `ctx` must be a handle; `config` must be valid.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn unified_pipeline_start(
    ctx: *const unified_ctx,
    config: *const unified_pipeline_config,
) -> c_int {
    guard(|| {
        // SAFETY: the caller's promise.
        let c = unsafe { get_sized(config, "the pipeline's configuration")? };
        if c.flags & !(UNIFIED_FUA | UNIFIED_LOG_NEW | UNIFIED_LOG_UNCHECKED) != 0 {
            return Err(Error::new(
                libc::EINVAL,
                format!("unknown pipeline flags {:#x}", c.flags),
            ));
        }
        let at_end = match c.at_end {
            UNIFIED_AT_END_STOP => AtEnd::Stop,
            UNIFIED_AT_END_WRAP => AtEnd::Wrap,
            other => {
                return Err(Error::new(
                    libc::EINVAL,
                    format!("at_end {other} is neither stop nor wrap"),
                ));
            }
        };
        let layout = match c.layout {
            UNIFIED_LAYOUT_PAYLOAD => StoreLayout::Payload,
            UNIFIED_LAYOUT_SLOT => StoreLayout::Slot,
            UNIFIED_LAYOUT_LOG => StoreLayout::Log,
            other => {
                return Err(Error::new(
                    libc::EINVAL,
                    format!("layout {other} is neither payload nor slot nor log"),
                ));
            }
        };
        let of_log = c.pack_below != 0 || c.flags & UNIFIED_LOG_UNCHECKED != 0;
        if of_log && layout != StoreLayout::Log {
            return Err(Error::new(
                libc::EINVAL,
                "pack_below and UNIFIED_LOG_UNCHECKED are for UNIFIED_LAYOUT_LOG",
            ));
        }
        let config = PipelineConfig {
            start_lba: c.start_lba,
            blocks: c.blocks,
            at_end,
            fua: c.flags & UNIFIED_FUA != 0,
            layout,
            existing: if c.flags & UNIFIED_LOG_NEW != 0 {
                Existing::Replace
            } else {
                Existing::Continue
            },
            flush_writes: (c.flush_writes > 0).then_some(c.flush_writes),
            flush_interval: (c.flush_interval_ms > 0)
                .then(|| Duration::from_millis(c.flush_interval_ms.into())),
            moderation: (c.moderation_us > 0)
                .then(|| Duration::from_micros(c.moderation_us.into())),
            pack_below: (c.pack_below > 0).then_some(c.pack_below),
            unchecked: c.flags & UNIFIED_LOG_UNCHECKED != 0,
            chunk_bytes: (c.chunk_bytes > 0).then_some(c.chunk_bytes),
        };
        with(ctx, |handle, context| {
            // A log callback may ask for the pipeline's status.
            let _held = log::hold();
            let mut slot = handle.pipeline.lock();
            if slot.is_some() {
                return Err(Error::new(
                    libc::EALREADY,
                    "a pipeline runs on this context already",
                ));
            }
            *slot = Some(match handle.lane {
                Some(lane) => Pipeline::start_on_lane(context.clone(), lane, config)?,
                None if context.is_apart() => return Err(lanes_apart()),
                None => Pipeline::start(context.clone(), config)?,
            });
            Ok(0)
        })
    })
}

/// Stores in `*device` and `*device_lba` where a block of UNIFIED_LAYOUT_PAYLOAD is, with that unified_pipeline_config.chunk_bytes. The
/// blocks of the layout are numbered from 0, and each has the largest block size of the devices; `*device_lba` counts blocks of
/// the device. All blocks of a payload follow each other on one device. With one device, the block is the one of that number.
/// Returns 0, -EINVAL (no chunk can have that size, or NULL), -ERANGE (the devices have no such block), -EBADF, or -ENOTSUP in
/// a forked child. Any thread.
///
/// # Safety
/// `ctx` must be a handle; `device` and `device_lba` must be valid.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn unified_stripe_locate(
    ctx: *const unified_ctx,
    lba: u64,
    chunk_bytes: u32,
    device: *mut u32,
    device_lba: *mut u64,
) -> c_int {
    guard(|| {
        let place = with(ctx, |_, context| {
            let stripe = stripe_of(context, chunk_bytes.into())?;
            stripe.locate(lba).ok_or_else(|| {
                Error::new(
                    libc::ERANGE,
                    format!(
                        "block {lba} of the payload layout: the devices have {}, numbered from 0",
                        stripe.blocks()
                    ),
                )
            })
        })?;
        // SAFETY: the caller's promise.
        unsafe {
            put(device, place.device.into(), "`device`")?;
            put(device_lba, place.lba, "`device_lba`")?;
        }
        Ok(0)
    })
}

const STATUS: &str = "the pipeline's status";

/// # Safety
/// `to` must be null or a sized struct.
unsafe fn fill(to: *mut unified_pipeline_status, s: &PipelineStatus) -> Result<()> {
    let filled = unified_pipeline_status {
        size: 0,
        next_lba: s.next_lba,
        wraps: s.wraps,
        submitted: s.submitted,
        stored: s.stored,
        failed: s.failed,
        payload_bytes: s.payload_bytes,
        no_space: s.no_space,
        empty: s.empty,
        running: s.running.into(),
        error: -s.error,
        first_sequence: s.first_sequence,
        completed: s.completed,
        durable: s.durable,
        flushes: s.flushes,
        pack_below: s.pack_below.into(),
        rescued: s.rescued,
        unflushed: s.unflushed,
    };
    // SAFETY: the caller's promise.
    unsafe { put_sized(to, filled, STATUS) }
}

/// Stores the state of the pipeline in `*status`. Set `status->size` first. With a lane's handle, it is the state of this lane, whether
/// the pipeline was started with that handle or with that of the context. Returns 0, -EINVAL or -ENOENT (no pipeline runs). Any
/// thread.
///
/// # Safety
/// `ctx` must be a handle; `status` must have `size` bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn unified_pipeline_status(
    ctx: *const unified_ctx,
    status: *mut unified_pipeline_status,
) -> c_int {
    guard(|| {
        let now = with(ctx, |handle, _| {
            let own = handle.pipeline.lock().as_ref().map(Pipeline::status);
            let of_context = || {
                let (whole, lane) = (handle.whole?, handle.lane?);
                whole.pipeline.lock().as_ref()?.status_of(lane)
            };
            own.or_else(of_context).ok_or_else(|| no_pipeline(handle))
        })?;
        // SAFETY: the caller's promise.
        unsafe { fill(status, &now)? };
        Ok(0)
    })
}

fn no_pipeline(handle: &unified_ctx) -> Error {
    let text = match handle.whole.map(|whole| whole.pipeline.lock().is_some()) {
        None => "no pipeline runs on this context",
        Some(false) => "no pipeline runs on this lane",
        Some(true) => {
            "no pipeline was started with the handle of this lane: the one that runs is the context's, so stop it with the handle of \
             that"
        }
    };
    Error::new(libc::ENOENT, text)
}

/// Stops the pipeline: stores what was received, flushes the device, and ends both threads. Packets that arrive later stay in
/// the RX ring. `status` may be NULL; otherwise set `status->size` first. Returns 0, -ENOENT (no pipeline runs), -EIO (a flush
/// failed; `durable` says what is safe) or -EINVAL (invalid `status->size`; the pipeline continues). Any thread.
///
/// # Safety
/// `ctx` must be a handle; `status` must be NULL or have `size` bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn unified_pipeline_stop(
    ctx: *const unified_ctx,
    status: *mut unified_pipeline_status,
) -> c_int {
    guard(|| {
        if !status.is_null() {
            // SAFETY: the caller's promise. Before the pipeline ends, whose last word could not be handed out.
            unsafe { size_given(status, STATUS)? };
        }
        let (last, result) = with(ctx, |handle, _| {
            let pipeline = handle.pipeline.lock().take();
            pipeline
                .map(Pipeline::stop)
                .ok_or_else(|| no_pipeline(handle))
        })?;
        if !status.is_null() {
            // SAFETY: the caller's promise.
            unsafe { fill(status, &last)? };
        }
        result.map(|()| 0)
    })
}
