//! Buffers: memory that is registered while a context runs.

use std::ffi::{c_int, c_void};

use super::types::*;
use super::{guard, null, put, put_sized, unified_ctx, with};
use crate::buffers::{Buffer, BufferId};
use crate::context::Context;
use crate::error::Result;

/// Makes a buffer and stores its number in `*buffer`, and the address of its first byte in `*data`, unless that is NULL.
///
/// # Safety
/// `ctx` must be a handle; `buffer` and `data` must be null or valid.
unsafe fn make(
    ctx: *const unified_ctx,
    buffer: *mut u64,
    data: *mut *mut c_void,
    make: impl FnOnce(&Context) -> Result<Buffer>,
) -> c_int {
    guard(|| {
        if !data.is_null() && !data.is_aligned() {
            return Err(null("`data`"));
        }
        // SAFETY: the caller's promise.
        unsafe { put(buffer, 0, "`buffer`")? };
        let made = with(ctx, |_, context| make(context))?;
        // SAFETY: as above.
        unsafe {
            put(buffer, made.id.0, "`buffer`")?;
            if !data.is_null() {
                put(data, made.address as *mut c_void, "`data`")?;
            }
        }
        Ok(0)
    })
}

/// Allocates a buffer of `len` bytes, 1 to 1 GiB, for unified_submit: zeroed memory that begins on a page and is registered with
/// the rings of all lanes, so that commands use it in place, as they use frames. Stores its number, which is never 0 and never
/// used again, in `*buffer`, and the address of its first byte in `*data` (which may be NULL). The memory is the caller's until
/// it is freed: nothing but the caller's own commands reads or writes it. Children of fork do not have it.
///
/// Memory comes from pools, which grow on demand up to unified_config.buffers_max: buffers of at most 256 KiB share slabs of
/// 2 MiB, longer ones are registered by themselves. What is registered counts against RLIMIT_MEMLOCK, for each lane.
/// unified_stats.buffer_registered_bytes says how much it is.
///
/// Returns 0, -EINVAL (`len`, or a NULL or misaligned pointer), -ENOBUFS (the limit is reached, or there are 16384 buffers or 1024
/// registrations: free some), -ENOMEM (memory, or RLIMIT_MEMLOCK), -ETIMEDOUT (the thread that drives a lane did not register the
/// memory within 10 s), -EBADF, -ESHUTDOWN, or -ENOTSUP in a forked child. Any thread, also while others use the data path; it
/// waits until the driver of each lane has registered the memory.
///
/// # Safety
/// `ctx` must be a handle; `buffer` must be valid, and `data` NULL or valid.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn unified_buffer_alloc(
    ctx: *const unified_ctx,
    len: u64,
    buffer: *mut u64,
    data: *mut *mut c_void,
) -> c_int {
    // SAFETY: the caller's promise.
    unsafe { make(ctx, buffer, data, |context| context.buffer_alloc(len)) }
}

/// Makes `len` bytes of the program's own memory at `address` a buffer. It must be shared memory, mapped for reading and writing:
/// MAP_SHARED with MAP_ANONYMOUS, a memfd, tmpfs or hugetlbfs, and begin on a page of its kind. The library keeps the pages until
/// the buffer is freed, but submissions give addresses in the program's mapping: keep it as long. (Huge pages: the library may
/// have to use that mapping itself.) Whole pages are registered. Other processes that share the memory see what commands read into
/// it, and commands write what they put there.
///
/// Returns 0, -EINVAL (`len`; misaligned, or private memory, as of malloc), -EFAULT (not all of it is mapped), -EOPNOTSUPP (the
/// kernel cannot pin it, as a file on a disk), or an error of unified_buffer_alloc. Any thread.
///
/// # Safety
/// `ctx` must be a handle; `buffer` must be valid. Nobody may rely on the memory being unchanged while commands read into it.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn unified_buffer_import(
    ctx: *const unified_ctx,
    address: *mut c_void,
    len: u64,
    buffer: *mut u64,
) -> c_int {
    let address = address as u64;
    // SAFETY: the caller's promise.
    unsafe {
        make(ctx, buffer, std::ptr::null_mut(), |context| {
            context.buffer_import(address, len)
        })
    }
}

/// Makes `len` bytes from `offset` on of a memfd, or of a file of tmpfs or hugetlbfs, a buffer. The library maps them until the
/// buffer is freed, and stores the address in `*data` (which may be NULL); the descriptor may be closed at once. `offset` must be
/// a multiple of the file's page, and the file long enough; whole pages are registered. It must not be shortened while it is a
/// buffer: if another process could, seal it before (F_SEAL_SHRINK), since access to memory that is gone ends the program.
///
/// Returns 0, -EINVAL (`len`, `offset`, or another kind of file), -EBADF, -EACCES or -EPERM (not open for reading and writing, or
/// sealed), or an error of unified_buffer_alloc. Any thread.
///
/// # Safety
/// `ctx` must be a handle; `buffer` must be valid, and `data` NULL or valid.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn unified_buffer_import_fd(
    ctx: *const unified_ctx,
    fd: c_int,
    offset: u64,
    len: u64,
    buffer: *mut u64,
    data: *mut *mut c_void,
) -> c_int {
    // SAFETY: the caller's promise.
    unsafe {
        make(ctx, buffer, data, |context| {
            context.buffer_import_fd(fd, offset, len)
        })
    }
}

/// Frees a buffer. Its memory must not be used any more. Longer buffers and imported memory are unregistered and unmapped at once.
/// A slab without buffers is, too, but for one, which is kept for a second, until the next unified_buffer_alloc, unified_buffer_free
/// or unified_ctx_stats of the context. unified_ctx_destroy frees all buffers that are left.
///
/// Returns 0, -EBUSY (commands use it: take their completions first), -EINVAL (this context has no such buffer: it was freed, or is
/// one of another context), -EBADF, -ESHUTDOWN, or -ENOTSUP in a forked child. Any thread; it may wait for the drivers of all
/// lanes.
///
/// # Safety
/// `ctx` must be a handle.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn unified_buffer_free(ctx: *const unified_ctx, buffer: u64) -> c_int {
    guard(|| with(ctx, |_, context| context.buffer_free(BufferId(buffer))).map(|()| 0))
}

/// Stores the properties of a buffer in `*info`. Set `info->size` first. Returns 0, -EINVAL (this context has no such buffer, NULL,
/// or a wrong size), -EBADF, -ESHUTDOWN, or -ENOTSUP in a forked child. Any thread.
///
/// # Safety
/// `ctx` must be a handle; `info` must have `size` bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn unified_buffer_info(
    ctx: *const unified_ctx,
    buffer: u64,
    info: *mut unified_buffer_info,
) -> c_int {
    guard(|| {
        let (found, commands) = with(ctx, |_, context| context.buffer(BufferId(buffer)))?;
        let filled = unified_buffer_info {
            size: 0,
            data: found.address as *mut c_void,
            len: found.len,
            commands,
            reserved: 0,
        };
        // SAFETY: the caller's promise.
        unsafe { put_sized(info, filled, "the buffer's info")? };
        Ok(0)
    })
}
