//! Contexts: create, destroy, what they are, what they count, their ports and events.

use std::ffi::{c_char, c_int};
use std::iter;
use std::ptr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use super::types::*;
use super::{
    ENDED, ENDING, OPEN, cell, count, device, get_sized, guard, keep, not_open, null, optional_str,
    put, put_sized, unified_ctx, with,
};
use crate::config::{Config, Drive};
use crate::context::{Context, LONGEST_END};
use crate::cpus::Cpus;
use crate::error::{Error, Result};
use crate::frame::MAX_LANES;
use crate::latency::{self, Latency};
use crate::metrics;
use crate::net::socket::ZeroCopy;
use crate::net::wire::Event;
use crate::net::xdp::XdpMode;
use crate::storage::device::DeviceConfig;

const KNOWN_FLAGS: u32 = UNIFIED_HUGE_PAGES
    | UNIFIED_FORCE
    | UNIFIED_READ_ONLY
    | UNIFIED_NO_PASSTHROUGH
    | UNIFIED_NO_BOUNCE
    | UNIFIED_HEADROOM
    | UNIFIED_NO_EVENTS
    | UNIFIED_XSK_MAP_FD
    | UNIFIED_XSK_FD
    | UNIFIED_DEVICE_FD;

/// Most numbers in unified_config.cpus.
const MOST_CPUS: u32 = 1024;

fn choice<T>(value: u32, what: &str, choices: [T; 3]) -> Result<T> {
    choices
        .into_iter()
        .nth(value as usize)
        .ok_or_else(|| Error::new(libc::EINVAL, format!("{what} {value} is not 0 to 2")))
}

/// # Safety
/// The pointers in `c` must be what the header says.
unsafe fn config_of(c: &unified_config) -> Result<Config> {
    let mut config = Config::default();
    // SAFETY: the caller's promise.
    unsafe {
        config.ifname = optional_str(c.ifname, "the interface's name")?;
        config.device.path = match optional_str(c.device, "the device's path")? {
            Some(path) => path,
            None if c.flags & UNIFIED_DEVICE_FD != 0 || c.device_count > 0 => String::new(),
            None => return Err(null("`device`")),
        };
    }
    if c.flags & !KNOWN_FLAGS != 0 || c.reserved != 0 || c.reserved2 != 0 || c.reserved3 != 0 {
        return Err(Error::new(
            libc::EINVAL,
            format!("unknown configuration flags {:#x}", c.flags & !KNOWN_FLAGS),
        ));
    }
    if c.port_count > 0 {
        if c.ports.is_null() || !c.ports.is_aligned() || c.port_count > 65535 {
            return Err(Error::new(
                libc::EINVAL,
                "ports is NULL, or port_count is above 65535",
            ));
        }
        // SAFETY: `ports` holds `port_count` numbers, by the caller's promise; not null and aligned.
        config.ports =
            unsafe { std::slice::from_raw_parts(c.ports, c.port_count as usize) }.to_vec();
    }
    let set = |field: &mut u32, value: u32| {
        if value != 0 {
            *field = value;
        }
    };
    config.queue = c.queue;
    config.queues = c.queues;
    if c.cpu_count > 0 {
        if c.cpus.is_null() || !c.cpus.is_aligned() || c.cpu_count > MOST_CPUS {
            return Err(Error::new(
                libc::EINVAL,
                format!("cpus is NULL, or cpu_count is above {MOST_CPUS}"),
            ));
        }
        // SAFETY: `cpus` holds `cpu_count` numbers, by the caller's promise; not null and aligned.
        let cpus = unsafe { std::slice::from_raw_parts(c.cpus, c.cpu_count as usize) };
        config.cpus = Cpus(cpus.to_vec());
    }
    set(&mut config.frame_size, c.frame_size);
    set(&mut config.frame_count, c.frame_count);
    set(&mut config.sq_entries, c.sq_entries);
    set(&mut config.cq_entries, c.cq_entries);
    set(&mut config.rx_ring, c.rx_ring);
    set(&mut config.fill_ring, c.fill_ring);
    set(&mut config.run_priority, c.run_priority);
    set(&mut config.event_sample, c.event_sample);
    set(&mut config.events_bytes, c.events_bytes);
    if c.buffers_max != 0 {
        config.buffers_max = c.buffers_max;
    }
    set(&mut config.retry.limit, c.retries);
    if c.retries == UNIFIED_NO_RETRY {
        config.retry.limit = 0;
    }
    config.retry.backoff_us = c.retry_backoff_us;
    config.retry.give_up_ms = c.retry_give_up_ms;
    if c.flags & UNIFIED_HEADROOM != 0 {
        config.headroom = c.headroom;
    } else if c.headroom != 0 {
        return Err(Error::new(
            libc::EINVAL,
            "headroom is set without the flag UNIFIED_HEADROOM: set both or neither",
        ));
    }
    if c.flags & UNIFIED_NO_EVENTS != 0 {
        config.event_sample = 0;
    }
    let handed = |flag, fd, what| device::handed_in(c.flags & flag != 0, fd, what);
    config.xsk_map = handed(UNIFIED_XSK_MAP_FD, c.xsk_map_fd, "xsk_map_fd")?;
    config.xsks = Vec::from_iter(handed(UNIFIED_XSK_FD, c.xsk_fd, "xsk_fd")?);
    if c.xsk_fd_count > 0 {
        if !config.xsks.is_empty() {
            return Err(Error::new(
                libc::EINVAL,
                "xsk_fd and xsk_fds are both set: put all sockets into xsk_fds",
            ));
        }
        if c.xsk_fds.is_null() || !c.xsk_fds.is_aligned() || c.xsk_fd_count > MAX_LANES {
            return Err(Error::new(
                libc::EINVAL,
                format!("xsk_fds is NULL, or xsk_fd_count is above {MAX_LANES}"),
            ));
        }
        // SAFETY: `xsk_fds` holds `xsk_fd_count` numbers, by the caller's promise; not null and aligned.
        let sockets = unsafe { std::slice::from_raw_parts(c.xsk_fds, c.xsk_fd_count as usize) };
        for (i, socket) in sockets.iter().enumerate() {
            config
                .xsks
                .extend(device::handed_in(true, *socket, &format!("xsk_fds[{i}]"))?);
        }
    }
    config.device.fd = handed(UNIFIED_DEVICE_FD, c.device_fd, "device_fd")?;
    // SAFETY: the caller's promise.
    config.device.spill = unsafe { optional_str(c.spill, "the spill's path")? };
    config.huge_pages = c.flags & UNIFIED_HUGE_PAGES != 0;
    config.bounce = c.flags & UNIFIED_NO_BOUNCE == 0;
    config.device.force = c.flags & UNIFIED_FORCE != 0;
    config.device.read_only = c.flags & UNIFIED_READ_ONLY != 0;
    config.device.no_passthrough = c.flags & UNIFIED_NO_PASSTHROUGH != 0;
    config.device.file_size = c.file_size;
    config.device.block_size = c.block_size;
    if c.device_count > 0 {
        if config.device
            != (DeviceConfig {
                force: config.device.force,
                read_only: config.device.read_only,
                no_passthrough: config.device.no_passthrough,
                ..DeviceConfig::default()
            })
        {
            return Err(Error::new(
                libc::EINVAL,
                "`devices` is given, and also one of device, file_size, block_size, device_fd and spill: put those into the \
                 elements of `devices`",
            ));
        }
        // SAFETY: the caller's promise.
        let mut devices = unsafe { device::devices_of(c, &config.device)? };
        config.more_devices = devices.split_off(1);
        config.device = devices.remove(0);
    }
    config.drive = match c.drive {
        UNIFIED_DRIVE_INLINE => Drive::Inline,
        UNIFIED_DRIVE_THREAD => Drive::Thread,
        other => {
            return Err(Error::new(
                libc::EINVAL,
                format!("drive {other} is neither inline nor thread"),
            ));
        }
    };
    config.xdp_mode = choice(
        c.xdp_mode,
        "XDP mode",
        [XdpMode::Auto, XdpMode::Native, XdpMode::Skb],
    )?;
    config.zero_copy = choice(
        c.copy_mode,
        "copy mode",
        [ZeroCopy::Auto, ZeroCopy::Copy, ZeroCopy::Insist],
    )?;
    Ok(config)
}

/// Opens the device and the interface, maps the region, and starts to receive. Stores the handle in `*ctx`. On failure
/// `*ctx` is NULL, and nothing stays attached or open. Any thread.
///
/// Returns 0, or -EINVAL: a field has an invalid value; -E2BIG: this version does not know all fields; -ENODEV: there
/// is no such interface; -EPROTONOSUPPORT: the interface has no Ethernet headers; -ENETDOWN: the interface is down;
/// -ENOENT: there is no such device; -EACCES, -EROFS: the device may not be written to; -EBUSY: the interface, the
/// queue or the device is in use; -EEXIST: the device holds a file system or the like (UNIFIED_FORCE overrides this);
/// -ENOMEM: not enough memory or locked memory (RLIMIT_MEMLOCK); -EPERM: capabilities are missing; -EOPNOTSUPP: the
/// driver does not support the requested mode; -ENOSPC: no room for the file; -EBADF: an invalid descriptor; -ENOTSOCK:
/// `xsk_fd`, or one of `xsk_fds`, is not an AF_XDP socket.
///
/// # Safety
/// `config` and `ctx` must be valid, and the strings end in a zero byte.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn unified_ctx_create(
    config: *const unified_config,
    ctx: *mut *mut unified_ctx,
) -> c_int {
    guard(|| {
        // SAFETY: the caller's promise.
        unsafe {
            put(ctx, std::ptr::null_mut(), "`ctx`")?;
            let config = config_of(&get_sized(config, "the configuration")?)?;
            let context = Arc::new(Context::open(&config)?);
            let handle = keep(unified_ctx::new(context)?);
            put(ctx, handle, "`ctx`")?;
        }
        Ok(0)
    })
}

/// Stops the pipeline, detaches the XDP program, finishes submitted commands, and closes everything. Calls in other threads
/// return -ESHUTDOWN first, including those that wait. Afterwards packet pointers and the handle are invalid, whatever this
/// function returns.
///
/// Submitted commands are carried out with either drive, including those submitted with UNIFIED_MORE that the engine has not
/// seen yet. Completions that nobody took are discarded. The function waits at most 30 s for the device. -EIO: commands
/// failed and nobody took their completions (reads and compares do not count), or the device did not answer in time;
/// unified_last_error() says how many. In that case the memory that the device may still use stays mapped, and the device
/// stays open, until the device answers (UNIFIED_DRIVE_THREAD) or the process ends (UNIFIED_DRIVE_INLINE).
///
/// Returns 0, or -EIO; -EINVAL: `ctx` is NULL; -ESHUTDOWN: another thread is destroying it; -EBADF: it was destroyed before;
/// -ENOTSUP: in a forked child. Any thread, but not from within a callback.
///
/// # Safety
/// `ctx` must be a handle of unified_ctx_create, or NULL.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn unified_ctx_destroy(ctx: *mut unified_ctx) -> c_int {
    guard(|| {
        let handle = cell(ctx)?;
        if let Some(lane) = handle.lane {
            return Err(Error::new(
                libc::EINVAL,
                format!("the handle of lane {lane} ends with its context: destroy that one"),
            ));
        }
        // From here on no call begins, so those that run are all that is waited for.
        handle
            .stage
            .compare_exchange(OPEN, ENDING, Ordering::AcqRel, Ordering::Acquire)
            .map_err(not_open)?;
        let until = Instant::now() + LONGEST_END;
        let context = handle.context.read_recursive().clone();
        if let Some(context) = &context {
            context.leave();
        }
        let lanes = handle.lanes.lock().clone();
        for lane in &lanes {
            lane.stage.store(ENDING, Ordering::Release);
        }
        let pipelines = iter::once(handle).chain(lanes);
        // Not in the loop's head: the lock would be kept to the end of its body.
        let pipelines: Vec<_> = pipelines.filter_map(|h| h.pipeline.lock().take()).collect();
        pipelines.into_iter().for_each(|p| p.end(until));
        if let Some(context) = context {
            context.close();
        }
        // Waits for running calls, which `close` has told to return. Afterwards no more lanes get handles.
        let context = handle.context.write().take();
        let lanes = handle.lanes.lock().clone();
        for lane in &lanes {
            lane.stage.store(ENDING, Ordering::Release);
            drop(lane.context.write().take());
        }
        for handle in iter::once(handle).chain(lanes.iter().copied()) {
            // One that was started meanwhile has ended, for the context is closed, and would keep it.
            let pipeline = handle.pipeline.lock().take();
            drop(pipeline);
        }
        let ended = match context.map(Arc::try_unwrap) {
            Some(Ok(context)) => context.end(until),
            // Nobody keeps one.
            _ => Ok(()),
        };
        for handle in iter::once(handle).chain(lanes) {
            handle.stage.store(ENDED, Ordering::Release);
        }
        ended.map(|()| 0)
    })
}

/// Stores the handle of lane `lane` of a context in `*handle`. The lanes are numbered from 0; unified_info.lanes says how many
/// there are, and unified_info.lane which one a handle is for. Lane i receives from queue unified_config.queue + i.
///
/// All functions that take a context take a lane's handle too. Functions of the data path then act on this lane alone, with
/// the same thread rule: one receiver's and one taker's thread for each lane, and no lock between lanes. A frame may be
/// submitted or released on another lane than the one it was received on. Of the control functions, unified_ctx_info,
/// unified_ctx_stats, unified_ctx_latency, unified_stats_render and unified_device_info tell about this lane, and pipelines belong
/// to it (unified_pipeline_status tells about this lane's part of the context's pipeline too); ports, events and the devices are
/// those of the context.
///
/// Once a lane's handle was given out, the functions of the data path return -EBUSY on the handle of the context, except for
/// unified_frame_release and unified_frames_release. The same lane gives the same handle again. It ends with
/// unified_ctx_destroy of its context and must not be destroyed itself.
///
/// Returns 0, or -EINVAL: there is no such lane, `ctx` is a lane's handle, or a pointer is NULL; -EBADF, -ESHUTDOWN, -ENOTSUP: as
/// every function. Any thread, but not while another one uses the data path of the context's handle.
///
/// # Safety
/// `ctx` must be a handle of unified_ctx_create; `handle` must be valid.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn unified_ctx_lane(
    ctx: *const unified_ctx,
    lane: u32,
    handle: *mut *mut unified_ctx,
) -> c_int {
    guard(|| {
        // SAFETY: the caller's promise.
        unsafe { put(handle, ptr::null_mut(), "`handle`")? };
        let found = with(ctx, |whole, context| {
            if let Some(number) = whole.lane {
                return Err(Error::new(
                    libc::EINVAL,
                    format!("this is the handle of lane {number}: ask the context for lane {lane}"),
                ));
            }
            context.lane(lane)?;
            let mut lanes = whole.lanes.lock();
            if let Some(known) = lanes.iter().find(|known| known.lane == Some(lane)) {
                return Ok(ptr::from_ref(*known).cast_mut());
            }
            let kept = keep(unified_ctx::of_lane(context.clone(), lane, cell(ctx)?)?);
            lanes.push(cell(kept)?);
            context.set_apart();
            Ok(kept)
        })?;
        // SAFETY: as above.
        unsafe { put(handle, found, "`handle`")? };
        Ok(0)
    })
}

/// Stores the properties of the context in `*info`. Set `info->size` first. Returns 0, -EINVAL or -EBADF. Any thread.
///
/// # Safety
/// `ctx` must be a handle; `info` must have `size` bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn unified_ctx_info(
    ctx: *const unified_ctx,
    info: *mut unified_info,
) -> c_int {
    guard(|| {
        let filled = with(ctx, |handle, context| Ok(info_of(context, handle.lane)))?;
        // SAFETY: the caller's promise.
        unsafe { put_sized(info, filled, "the info")? };
        Ok(0)
    })
}

fn info_of(context: &Context, lane: Option<u32>) -> unified_info {
    let info = context.info();
    let lane = lane.unwrap_or(0);
    let rings = info.layout.rings(lane);
    let network = info.network;
    let first = &info.devices[0];
    unified_info {
        size: 0,
        backend: device::backend(first.kind).as_ptr(),
        region: info.region_address as *mut _,
        region_size: info.layout.total as u64,
        sq_ring: rings.sq_ring as u64,
        cq_ring: rings.cq_ring as u64,
        sq_entries_offset: rings.sq_entries as u64,
        cq_entries_offset: rings.cq_entries as u64,
        buffers: info.layout.buffers as u64,
        buffers_size: info.layout.buffers_len as u64,
        blocks: first.limits.blocks,
        block_size: first.limits.block_size,
        max_transfer: first.limits.max_transfer,
        dma_alignment: first.limits.dma_alignment,
        nsid: first.limits.nsid,
        sq_entries: info.layout.sq_count,
        cq_entries: info.layout.cq_count,
        frame_size: info.frame_size,
        frame_count: info.frame_count,
        headroom: info.headroom,
        ifindex: network.map_or(0, |n| n.ifindex),
        queue: network.map_or(0, |n| n.queue + lane),
        rx_queues: network.map_or(0, |n| n.rx_queues),
        xdp_program_id: network.map_or(0, |n| n.program_id),
        huge_pages: info.huge_pages.into(),
        native: network.is_some_and(|n| n.native).into(),
        zero_copy: network.is_some_and(|n| n.zero_copy).into(),
        dispatcher: network.is_some_and(|n| n.dispatcher).into(),
        direct_io: first.limits.direct.into(),
        writable: first.writable.into(),
        volatile_cache: first.limits.volatile_cache.map_or(2, u8::from),
        threaded: (info.drive == Drive::Thread).into(),
        reserved: 0,
        lanes: info.layout.lanes,
        lane,
        devices: info.devices.len() as u32,
        reserved1: 0,
    }
}

/// Stores all counters in `*stats`. Set `stats->size` first. Returns 0, -EINVAL, -EBADF, or an error of the kernel. Any
/// thread; a receiving thread may have to wait for one system call of this function.
///
/// # Safety
/// `ctx` must be a handle; `stats` must have `size` bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn unified_ctx_stats(
    ctx: *const unified_ctx,
    stats: *mut unified_stats,
) -> c_int {
    guard(|| {
        let s = with(ctx, |handle, context| match handle.lane {
            Some(lane) => context.lane_statistics(lane),
            None => context.statistics(),
        })?;
        let filled = unified_stats {
            size: 0,
            xdp_seen: s.xdp.seen,
            xdp_passed: s.xdp.passed,
            xdp_redirected: s.xdp.redirected,
            xdp_matched: s.xdp.matched,
            xdp_no_socket: s.xdp.no_socket,
            xdp_malformed: s.xdp.malformed,
            xdp_fragments: s.xdp.fragments,
            events: s.xdp.events,
            events_lost: s.xdp.events_lost,
            no_metadata: s.xdp.no_metadata,
            rx_dropped: s.xsk.rx_dropped,
            rx_ring_full: s.xsk.rx_ring_full,
            rx_fill_ring_empty: s.xsk.rx_fill_ring_empty,
            redirect_errors: s.redirect_errors,
            rx_pending: s.rx_pending,
            received: s.received,
            received_bytes: s.received_bytes,
            stored: s.stored,
            stored_bytes: s.stored_bytes,
            failed: s.failed,
            released: s.released,
            packets_held: s.frames.packets_held,
            packets_in_flight: s.frames.packets_in_flight,
            submitted: s.submitted,
            completed: s.completed,
            errors: s.errors,
            operations: s.operations,
            commands_in_flight: s.commands_in_flight(),
            sq_full: s.sq_full,
            bounced: s.bounced,
            bounced_bytes: s.bounced_bytes,
            bytes_written: s.bytes_written,
            bytes_read: s.bytes_read,
            frames_free: s.frames.free,
            frames_filled: s.frames.filled,
            frames_held: s.frames.held,
            frames_in_flight: s.frames.in_flight,
            misplaced: s.misplaced,
            bad_descriptors: s.bad_descriptors,
            link_up: s.link.up.into(),
            link_changes: s.link.changes,
            xdp_attached: s.link.xdp_attached.into(),
            xdp_changes: s.link.xdp_changes,
            spilled: s.spilled,
            spilled_bytes: s.spilled_bytes,
            xdp_merged: s.xdp.merged,
            packed: s.packed,
            packed_bytes: s.packed_bytes,
            frames_reserve: s.frames_reserve,
            buffers: s.buffers.buffers,
            buffer_bytes: s.buffers.bytes,
            buffer_registered_bytes: s.buffers.registered_bytes,
        };
        // SAFETY: the caller's promise.
        unsafe { put_sized(stats, filled, "the statistics")? };
        Ok(0)
    })
}

/// Stores a histogram of latency in `*latency`. `which` is UNIFIED_LATENCY_PACKET or UNIFIED_LATENCY_COMMAND. Set
/// `latency->size` first. It makes no system call and takes no lock of the data path, so it is cheap enough to call every
/// second. Returns 0, -EINVAL (`which`, `size`, NULL), -EBADF, or -ENOTSUP in a forked child. Any thread; samples that are
/// recorded during the call may be included or not.
///
/// # Safety
/// `ctx` must be a handle; `latency` a struct whose size is set.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn unified_ctx_latency(
    ctx: *const unified_ctx,
    which: u32,
    latency: *mut unified_latency,
) -> c_int {
    guard(|| {
        let found = with(ctx, |handle, context| match (which, handle.lane) {
            (UNIFIED_LATENCY_PACKET, Some(lane)) => Ok(context.lane(lane)?.packet_latency()),
            (UNIFIED_LATENCY_COMMAND, Some(lane)) => Ok(context.lane(lane)?.command_latency()),
            (UNIFIED_LATENCY_PACKET, None) => Ok(context.packet_latency()),
            (UNIFIED_LATENCY_COMMAND, None) => Ok(context.command_latency()),
            _ => Err(Error::new(
                libc::EINVAL,
                format!(
                    "latency {which} is unknown: use UNIFIED_LATENCY_PACKET or UNIFIED_LATENCY_COMMAND"
                ),
            )),
        })?;
        let filled = unified_latency {
            size: 0,
            count: found.count(),
            sum: found.sum,
            max: found.max,
            buckets: found.buckets,
        };
        // SAFETY: the caller's promise.
        unsafe { put_sized(latency, filled, "the latency")? };
        Ok(0)
    })
}

/// Returns the inclusive upper bound, in ns, of a bucket of unified_latency; UINT64_MAX for the last bucket and for larger
/// numbers. Any thread.
#[unsafe(no_mangle)]
pub extern "C" fn unified_latency_bound(bucket: u32) -> u64 {
    latency::bound(bucket as usize).unwrap_or(u64::MAX)
}

/// Returns the latency in ns that the fraction `quantile` of all samples did not exceed (0 to 1; 0.99 is the 99th
/// percentile). The result is the upper bound of a bucket: at most a quarter too long (below 4 us: 1 us), and never more than
/// `max`. Returns 0 if there are no samples, for NULL, and for a struct that is shorter than this library's. Any thread.
///
/// # Safety
/// `latency` must be NULL or a struct that unified_ctx_latency filled in.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn unified_latency_quantile(
    latency: *const unified_latency,
    quantile: f64,
) -> u64 {
    if latency.is_null() || !latency.is_aligned() {
        return 0;
    }
    // SAFETY: the caller's promise; the size that was filled in stands first.
    if unsafe { latency.cast::<u64>().read() } < size_of::<unified_latency>() as u64 {
        return 0;
    }
    // SAFETY: not null and aligned, and all of it is there, as just checked.
    let filled = unsafe { &*latency };
    Latency {
        buckets: filled.buckets,
        sum: filled.sum,
        max: filled.max,
    }
    .quantile(quantile)
}

/// Writes all counters as OpenMetrics text (openmetrics.io), with labels for interface, queue and device. An HTTP endpoint for
/// Prometheus can return it with the type `application/openmetrics-text; version=1.0.0`. The names are those of
/// unified_stats with the prefix `unified_`; docs/monitoring.md lists them. The function writes at most `size` bytes,
/// including a zero byte at the end. `text` may be NULL if `size` is 0. Returns the length of the whole text without the zero
/// byte, so the text was cut if the result is at least `size`; or -EINVAL, -EBADF, or an error of the kernel. Any thread, as
/// unified_ctx_stats. Allocates memory.
///
/// # Safety
/// `ctx` must be a handle; `text` must have `size` bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn unified_stats_render(
    ctx: *const unified_ctx,
    text: *mut c_char,
    size: u32,
) -> c_int {
    guard(|| {
        if text.is_null() && size > 0 {
            return Err(null("`text`"));
        }
        let rendered = with(ctx, |handle, context| metrics::render(context, handle.lane))?;
        if size > 0 {
            let part = rendered.len().min(size as usize - 1);
            // SAFETY: the caller's promise: `size` bytes, of which part + 1 are written; the text is ours.
            unsafe {
                ptr::copy_nonoverlapping(rendered.as_ptr(), text.cast(), part);
                *text.add(part) = 0;
            }
        }
        Ok(rendered.len() as c_int)
    })
}

/// Starts receiving a UDP port, in addition to the others. Returns 0, -EINVAL (port 0), -ENOTCONN (no interface), or -ENOTSUP
/// (with `xsk_map_fd`: the XDP program belongs to another process). Any thread.
///
/// # Safety
/// `ctx` must be a handle.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn unified_port_add(ctx: *const unified_ctx, port: u16) -> c_int {
    guard(|| with(ctx, |_, context| context.port_add(port)).map(|()| 0))
}

/// Stops receiving a UDP port; its packets go to the network stack. Errors and thread as unified_port_add.
///
/// # Safety
/// `ctx` must be a handle.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn unified_port_remove(ctx: *const unified_ctx, port: u16) -> c_int {
    guard(|| with(ctx, |_, context| context.port_remove(port)).map(|()| 0))
}

/// Logs one metadata event per `sample` packets from now on; 0 turns events off. Returns 0, -ENOTCONN or -ENOTSUP (as
/// unified_port_add). Any thread.
///
/// # Safety
/// `ctx` must be a handle.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn unified_events_sample(ctx: *const unified_ctx, sample: u32) -> c_int {
    guard(|| with(ctx, |_, context| context.set_event_sample(sample)).map(|()| 0))
}

/// Takes up to `max` metadata events out of the BPF ring buffer, oldest first, and returns their number. Until the first call
/// of this function or of unified_events_fd the ring buffer keeps the oldest events: when it is full, no more are logged.
/// Returns -EINVAL, -ENOTCONN or -ENOTSUP (as unified_port_add) on error. Any thread; concurrent calls wait for each other.
///
/// # Safety
/// `ctx` must be a handle; `events` must have room for `max`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn unified_events(
    ctx: *const unified_ctx,
    events: *mut unified_event,
    max: u32,
) -> c_int {
    guard(|| {
        if events.is_null() || !events.is_aligned() {
            return Err(null("`events`"));
        }
        let mut filled = 0usize;
        with(ctx, |_, context| {
            // libbpf would take one out all the same.
            if max == 0 {
                return Ok(0);
            }
            context.drain_events(max as usize, |event| {
                if filled < max as usize {
                    // SAFETY: room for `max`, by the caller's promise; `filled` is below.
                    unsafe { events.add(filled).write(event_of(event)) };
                    filled += 1;
                }
            })
        })?;
        Ok(count(filled))
    })
}

fn event_of(event: &Event) -> unified_event {
    unified_event {
        timestamp: event.timestamp,
        src_addr: event.src_addr,
        dst_addr: event.dst_addr,
        src_port: event.src_port,
        dst_port: event.dst_port,
        payload_len: event.payload_len,
        vlan_tci: event.vlan_tci.unwrap_or(0),
        queue: event.queue,
        ip_version: event.ip_version,
        flags: if event.vlan_tci.is_some() {
            UNIFIED_PACKET_VLAN
        } else {
            0
        },
        reserved: 0,
    }
}

/// Returns a descriptor that becomes readable when a quarter of the event ring buffer is full. The context owns it. It does not
/// report fewer events: call unified_events for those. Returns -ENOTCONN or -ENOTSUP (as unified_port_add) on error. Any
/// thread.
///
/// # Safety
/// `ctx` must be a handle.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn unified_events_fd(ctx: *const unified_ctx) -> c_int {
    guard(|| with(ctx, |_, context| context.events_fd()))
}

/// Copies the path of device 0, as it was opened, to `path`: at most `len` bytes, including the zero byte. Returns the length
/// without the zero byte, -EINVAL or -ENAMETOOLONG. Any thread.
///
/// # Safety
/// `ctx` must be a handle; `path` must have room for `len`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn unified_ctx_device(
    ctx: *const unified_ctx,
    path: *mut c_char,
    len: u32,
) -> c_int {
    guard(|| {
        with(ctx, |_, context| {
            let name = context.info().devices[0].path.as_bytes();
            if path.is_null() {
                return Err(null("`path`"));
            }
            if name.len() >= len as usize {
                return Err(Error::new(
                    libc::ENAMETOOLONG,
                    format!("the path has {} bytes", name.len()),
                ));
            }
            // SAFETY: room for `len`, which is more than the name and its zero byte.
            unsafe {
                std::ptr::copy_nonoverlapping(name.as_ptr(), path.cast(), name.len());
                path.add(name.len()).write(0);
            }
            Ok(count(name.len()))
        })
    })
}
