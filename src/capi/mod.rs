//! Unsafe room 1: the functions that C sees.
//!
//! Every exported function runs inside `guard`: arguments are checked, a panic becomes an error, and an
//! error becomes a negative errno with a message for `unified_last_error`.

mod buffer;
mod context;
mod device;
mod io;
mod log_reader;
mod misc;
mod packet;
mod pipeline;
mod submission;
pub mod types;
mod uapi;

pub use buffer::*;
pub use context::*;
pub use device::*;
pub use io::*;
pub use misc::*;
pub use packet::*;
pub use pipeline::*;
pub use submission::*;

use std::cell::RefCell;
use std::ffi::{CStr, CString, c_char, c_int};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::ptr;
use std::sync::Arc;
use std::sync::atomic::{AtomicPtr, AtomicU8, Ordering};

use parking_lot::{Mutex, RwLock};

use crate::context::Context;
use crate::error::{Error, Result};
use crate::lane::Lane;
use crate::pipeline::Pipeline;
use crate::sys::fork::ProcessId;

/// The cell of a handle. It is never freed, so that use of a closed handle is an error and not a use after free. All
/// cells are in a list, so that leak detectors find them and need no suppression, which would hide other leaks.
#[repr(C)]
struct Kept<T> {
    cell: T,
    earlier: AtomicPtr<()>,
}

static KEPT: AtomicPtr<()> = AtomicPtr::new(ptr::null_mut());

fn keep<T>(cell: T) -> *mut T {
    let kept = Box::leak(Box::new(Kept {
        cell,
        earlier: AtomicPtr::new(KEPT.load(Ordering::Relaxed)),
    }));
    let this = ptr::from_mut(kept);
    // Nothing walks the list: it exists for leak detectors.
    while let Err(earlier) = KEPT.compare_exchange_weak(
        kept.earlier.load(Ordering::Relaxed),
        this.cast(),
        Ordering::Release,
        Ordering::Relaxed,
    ) {
        kept.earlier.store(earlier, Ordering::Relaxed);
    }
    this.cast()
}

thread_local! {
    static LAST_ERROR: RefCell<CString> = RefCell::new(CString::default());
}

fn remember(message: &str) {
    let text = CString::new(message.replace('\0', "?")).unwrap_or_default();
    // At a thread's end the slot may be gone; then nobody can read the message either.
    let _ = LAST_ERROR.try_with(|slot| *slot.borrow_mut() = text);
}

/// Runs the body of an exported function: a count or 0, or a negative errno with a message.
fn guard(body: impl FnOnce() -> Result<c_int>) -> c_int {
    match catch_unwind(AssertUnwindSafe(body)) {
        Ok(Ok(value)) => value,
        Ok(Err(error)) => {
            remember(error.message());
            -error.errno()
        }
        Err(_) => {
            remember(
                "a bug in the library was caught: destroy the context and report what was called",
            );
            -libc::ENOTRECOVERABLE
        }
    }
}

fn null(what: &str) -> Error {
    Error::new(libc::EINVAL, format!("{what} is NULL or not aligned"))
}

/// A handle of a context, or of one of its lanes. Its cell is never freed, so that a handle used after its destruction is an
/// error and not a crash. Its contents are freed.
#[allow(non_camel_case_types)]
pub struct unified_ctx {
    /// Checked before the lock: otherwise a stream of calls would starve a destroyer.
    stage: AtomicU8,
    /// Each handle has one of its own, so that threads of different lanes touch different locks.
    context: RwLock<Option<Arc<Context>>>,
    pipeline: Mutex<Option<Pipeline>>,
    /// `None`: the whole context.
    lane: Option<u32>,
    /// Of a lane: the handle of its context.
    whole: Option<&'static unified_ctx>,
    /// Of a whole context: the handles of its lanes, which end with it.
    lanes: Mutex<Vec<&'static unified_ctx>>,
    /// A child of fork must not touch its parent's rings.
    born: ProcessId,
}

impl unified_ctx {
    fn new(context: Arc<Context>) -> Result<unified_ctx> {
        Ok(unified_ctx {
            stage: AtomicU8::new(OPEN),
            context: RwLock::new(Some(context)),
            pipeline: Mutex::new(None),
            lane: None,
            whole: None,
            lanes: Mutex::new(Vec::new()),
            born: ProcessId::of_this_process()
                .map_err(|e| Error::os(&e, "marking this process"))?,
        })
    }

    fn of_lane(
        context: Arc<Context>,
        lane: u32,
        whole: &'static unified_ctx,
    ) -> Result<unified_ctx> {
        Ok(unified_ctx {
            lane: Some(lane),
            whole: Some(whole),
            ..unified_ctx::new(context)?
        })
    }
}

/// Stages of a handle, in this order.
const OPEN: u8 = 0;
const ENDING: u8 = 1;
const ENDED: u8 = 2;

fn ended() -> Error {
    Error::new(
        libc::EBADF,
        "this context was destroyed: its handle must not be used any more",
    )
}

fn not_open(stage: u8) -> Error {
    match stage {
        ENDING => Error::new(libc::ESHUTDOWN, "the context is being destroyed"),
        _ => ended(),
    }
}

/// The cell of a handle, open or not. `EINVAL` for NULL, `ENOTSUP` in a forked child.
fn cell<'a>(ctx: *const unified_ctx) -> Result<&'a unified_ctx> {
    if ctx.is_null() || !ctx.is_aligned() {
        return Err(null("`ctx`"));
    }
    // SAFETY: by the contract of every function that takes a handle it came from unified_ctx_create,
    // whose cells are never freed, and it is only shared, never mutably borrowed.
    let handle = unsafe { &*ctx };
    if !handle.born.is_current() {
        // Do not even try the lock: another thread of the parent may have held it.
        return Err(Error::new(
            libc::ENOTSUP,
            "this context belongs to the parent process of a fork; create one here",
        ));
    }
    Ok(handle)
}

/// Runs `body` with the context of a handle. `EINVAL` for NULL, `ESHUTDOWN` during destroy, `EBADF` after it,
/// `ENOTSUP` in a forked child.
fn with<T>(
    ctx: *const unified_ctx,
    body: impl FnOnce(&unified_ctx, &Arc<Context>) -> Result<T>,
) -> Result<T> {
    let handle = cell(ctx)?;
    let stage = handle.stage.load(Ordering::Acquire);
    if stage != OPEN {
        return Err(not_open(stage));
    }
    // Recursive: a callback of one call may make another one while a destroyer waits.
    let slot = handle.context.read_recursive();
    match &*slot {
        Some(context) => body(handle, context),
        None => Err(ended()),
    }
}

/// As `with`, for calls of the data path: they are refused while a pipeline makes them, and on the whole context once its
/// lanes are used one by one. Gives the lane of a lane's handle.
fn with_free<T>(
    ctx: *const unified_ctx,
    body: impl FnOnce(&Arc<Context>, Option<&Lane>) -> Result<T>,
) -> Result<T> {
    with(ctx, |handle, context| {
        let lane = handle.lane.map(|lane| context.lane(lane)).transpose()?;
        if lane.map_or_else(|| context.is_pipelined(), Lane::is_pipelined) {
            return Err(Error::new(
                libc::EBUSY,
                "a pipeline runs on this context or lane and makes these calls itself; stop it first",
            ));
        }
        if lane.is_none() && context.is_apart() {
            return Err(lanes_apart());
        }
        body(context, lane)
    })
}

fn lanes_apart() -> Error {
    Error::new(
        libc::EBUSY,
        "unified_ctx_lane has given out a handle of this context's lanes: make this call with a lane's handle",
    )
}

/// Calls a function of the data path: of the lane of a lane's handle, or of the whole context. `$path` is either.
macro_rules! on_path {
    ($ctx:expr, |$context:ident, $path:ident| $call:expr) => {
        $crate::capi::with_free($ctx, |$context, lane| match lane {
            Some($path) => $call,
            None => {
                let $path = &**$context;
                $call
            }
        })
    };
}
use on_path;

/// # Safety
/// `text` must be null or a string that ends in a zero byte and lives during the call.
unsafe fn optional_str(text: *const c_char, what: &str) -> Result<Option<String>> {
    if text.is_null() {
        return Ok(None);
    }
    // SAFETY: the caller's promise.
    let text = unsafe { CStr::from_ptr(text) };
    match text.to_str() {
        Ok(text) => Ok(Some(text.to_string())),
        Err(_) => Err(Error::new(
            libc::EINVAL,
            format!("{what} is not valid UTF-8"),
        )),
    }
}

/// Writes a result through a pointer given by C.
///
/// # Safety
/// `to` must be null or valid for writing a `T`.
unsafe fn put<T>(to: *mut T, value: T, what: &str) -> Result<()> {
    if to.is_null() || !to.is_aligned() {
        return Err(null(what));
    }
    // SAFETY: the caller's promise; not null and aligned, as just checked.
    unsafe { to.write(value) };
    Ok(())
}

/// The size that C wrote into a struct that begins with it.
///
/// # Safety
/// `at` must be null or point to a struct of which at least its size can be read.
unsafe fn size_given<T>(at: *const T, what: &str) -> Result<usize> {
    if at.is_null() || !at.is_aligned() {
        return Err(null(what));
    }
    // SAFETY: every sized struct begins with its u64 size, set by the caller.
    let size = unsafe { at.cast::<u64>().read() };
    if !(8..=1 << 16).contains(&size) {
        return Err(Error::new(
            libc::EINVAL,
            format!("{what}: its size field holds {size}; set it to sizeof before the call"),
        ));
    }
    Ok(size as usize)
}

/// Copies a struct that begins with its size out to C: as many bytes as both sides know, and the size
/// that was filled in.
///
/// # Safety
/// `to` must be null or point to a struct of which `to.size` bytes may be written.
unsafe fn put_sized<T: Copy>(to: *mut T, mut value: T, what: &str) -> Result<()> {
    // SAFETY: the caller's promise.
    let len = unsafe { size_given(to, what)? }.min(size_of::<T>());
    // SAFETY: `value` is a live T that begins with its u64 size; `len` bytes lie in both structs.
    unsafe {
        std::ptr::from_mut(&mut value)
            .cast::<u64>()
            .write(len as u64);
        std::ptr::copy_nonoverlapping(
            std::ptr::from_ref(&value).cast::<u8>(),
            to.cast::<u8>(),
            len,
        );
    }
    Ok(())
}

/// Copies a struct that begins with its size in from C: fields it does not have are zero, and bytes that
/// this library does not know must be.
///
/// # Safety
/// `from` must be null or point to a struct of which `from.size` bytes can be read; `T` must be plain data
/// for which zero is a value.
unsafe fn get_sized<T: Copy>(from: *const T, what: &str) -> Result<T> {
    // SAFETY: the caller's promise.
    let size = unsafe { size_given(from, what)? };
    let known = size.min(size_of::<T>());
    // SAFETY: `size` bytes are readable (the caller's promise); T is plain data, of which zero is a value.
    unsafe {
        let bytes = std::slice::from_raw_parts(from.cast::<u8>(), size);
        if bytes[known..].iter().any(|b| *b != 0) {
            return Err(Error::new(
                libc::E2BIG,
                format!("{what}: it sets fields that this version of the library does not know"),
            ));
        }
        let mut value = std::mem::zeroed::<T>();
        std::ptr::copy_nonoverlapping(
            from.cast::<u8>(),
            std::ptr::from_mut(&mut value).cast::<u8>(),
            known,
        );
        Ok(value)
    }
}

fn count(n: usize) -> c_int {
    c_int::try_from(n).unwrap_or(c_int::MAX)
}
