//! Several devices of a context.

use std::ffi::{CStr, c_int};

use super::types::*;
use super::{get_sized, guard, null, optional_str, put_sized, unified_ctx, with};
use crate::error::{Error, Result};
use crate::storage::device::{DeviceConfig, Kind, MAX_DEVICES};

const KNOWN_FLAGS: u32 =
    UNIFIED_FORCE | UNIFIED_READ_ONLY | UNIFIED_NO_PASSTHROUGH | UNIFIED_DEVICE_FD;

/// A descriptor that counts if its flag is set.
pub(super) fn handed_in(is_set: bool, fd: i32, what: &str) -> Result<Option<i32>> {
    match (is_set, fd) {
        (true, fd) if fd >= 0 => Ok(Some(fd)),
        (false, 0) => Ok(None),
        (true, fd) => Err(Error::new(
            libc::EBADF,
            format!("{what} {fd} is not a descriptor"),
        )),
        (false, fd) => Err(Error::new(
            libc::EINVAL,
            format!("{what} {fd} is set without its flag"),
        )),
    }
}

/// The name of a backend.
pub(super) fn backend(kind: Kind) -> &'static CStr {
    match kind {
        Kind::Nvme => c"nvme passthrough",
        Kind::Block => c"block",
        Kind::File => c"file",
        Kind::Null => c"null",
    }
}

/// Reads element `i` of C's array of sized structs, whose elements are all as long as the first.
///
/// # Safety
/// `array` must have more than `i` elements.
pub(super) unsafe fn sized_element<T: Copy>(array: *const T, i: u32, what: &str) -> Result<T> {
    if array.is_null() || !array.is_aligned() {
        return Err(null(what));
    }
    // SAFETY: the caller's promise; every struct begins with its size.
    let stride = unsafe { array.cast::<u64>().read() };
    let at = (stride as usize).checked_mul(i as usize);
    let place = at
        .map(|at| array.wrapping_byte_add(at))
        .filter(|place| place.is_aligned());
    let Some(place) = place else {
        return Err(Error::new(
            libc::EINVAL,
            format!("{what}: the size {stride} of its first element is not that of the struct"),
        ));
    };
    // SAFETY: as above: elements lie one after the other, each as long as the first says.
    let own = unsafe { place.cast::<u64>().read() };
    if own != stride {
        return Err(Error::new(
            libc::EINVAL,
            format!(
                "{what}: element {i} has the size {own}, and the first one {stride}: set all of them to the same"
            ),
        ));
    }
    // SAFETY: as above.
    unsafe { get_sized(place, what) }
}

/// The devices of a configuration that has some. `all`: what counts for each of them.
///
/// # Safety
/// `c.devices` must have `c.device_count` elements, and their pointers must be what the header says.
pub(super) unsafe fn devices_of(
    c: &unified_config,
    all: &DeviceConfig,
) -> Result<Vec<DeviceConfig>> {
    if c.device_count as usize > MAX_DEVICES {
        return Err(Error::new(
            libc::EINVAL,
            format!(
                "{} devices: a context has 1 to {MAX_DEVICES}; take fewer, or make several contexts",
                c.device_count
            ),
        ));
    }
    let mut devices = Vec::new();
    for number in 0..c.device_count {
        // SAFETY: the caller's promise.
        let device = unsafe { sized_element(c.devices, number, "`devices`")? };
        if device.reserved != 0 {
            return Err(Error::new(
                libc::EINVAL,
                format!(
                    "device {number}: `reserved` is {}, and must be 0",
                    device.reserved
                ),
            ));
        }
        if device.flags & !KNOWN_FLAGS != 0 {
            return Err(Error::new(
                libc::EINVAL,
                format!(
                    "device {number}: unknown flags {:#x}",
                    device.flags & !KNOWN_FLAGS
                ),
            ));
        }
        let has = |flag| device.flags & flag != 0;
        // SAFETY: the caller's promise.
        let (path, spill) = unsafe {
            (
                optional_str(device.path, &format!("the path of device {number}"))?,
                optional_str(device.spill, &format!("the spill of device {number}"))?,
            )
        };
        devices.push(DeviceConfig {
            path: path.unwrap_or_default(),
            fd: handed_in(
                has(UNIFIED_DEVICE_FD),
                device.fd,
                &format!("the descriptor of device {number}"),
            )?,
            read_only: all.read_only || has(UNIFIED_READ_ONLY),
            force: all.force || has(UNIFIED_FORCE),
            no_passthrough: all.no_passthrough || has(UNIFIED_NO_PASSTHROUGH),
            file_size: device.file_size,
            block_size: device.block_size,
            spill,
            ..DeviceConfig::default()
        });
    }
    Ok(devices)
}

/// Stores the properties of a device, and what was counted of it, in `*info`. Set `info->size` first. The devices are numbered
/// from 0; unified_info.devices says how many there are. With the handle of a context it counts what all lanes did, with a lane's
/// handle what that lane did. Returns 0, -EINVAL (there is no such device, NULL, or a wrong size), -EBADF, or -ENOTSUP in a
/// forked child. Any thread.
///
/// # Safety
/// `ctx` must be a handle; `info` must have `size` bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn unified_device_info(
    ctx: *const unified_ctx,
    device: u32,
    info: *mut unified_device_info,
) -> c_int {
    guard(|| {
        let filled = with(ctx, |handle, context| {
            let (about, counts) = context.device(device, handle.lane)?;
            let limits = &about.limits;
            Ok(unified_device_info {
                size: 0,
                backend: backend(about.kind).as_ptr(),
                path: about.name.as_ptr(),
                blocks: limits.blocks,
                block_size: limits.block_size,
                max_transfer: limits.max_transfer,
                dma_alignment: limits.dma_alignment,
                nsid: limits.nsid,
                direct_io: limits.direct.into(),
                writable: about.writable.into(),
                volatile_cache: limits.volatile_cache.map_or(2, u8::from),
                out: counts.out.into(),
                reserved: 0,
                operations: counts.operations,
                errors: counts.errors,
                bytes_written: counts.bytes_written,
                bytes_read: counts.bytes_read,
                spilled: counts.spilled,
                spilled_bytes: counts.spilled_bytes,
                in_flight: counts.in_flight,
            })
        })?;
        // SAFETY: the caller's promise.
        unsafe { put_sized(info, filled, "the device's info")? };
        Ok(0)
    })
}
