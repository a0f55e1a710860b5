//! The documented registration interface as its programs call it: `syscall`, which a program redirects at link time
//! (`-Wl,--wrap=syscall`), and two other functions that such programs call.
//!
//! Operations 33 and 34 of io_uring_register are answered here; every other call goes to the kernel as it was made. A
//! failure sets errno as the C library does, and `unified_last_error` says why.

use std::ffi::{CStr, c_int, c_long, c_uint, c_void};
use std::mem::transmute;
use std::os::fd::RawFd;
use std::ptr;
use std::sync::atomic::{AtomicPtr, AtomicUsize, Ordering};

use super::{guard, remember};
use crate::error::{Error, Result};
use crate::log::{self, Level};
use crate::sys::abi::{RegionDesc, UnifiedReg};
use crate::sys::fork::ProcessId;
use crate::sys::{limits, user};
use crate::uapi::{Registration, Registrations};

/// Operations of io_uring_register, as the interface numbers them. A stock kernel has others there
/// (RESIZE_RINGS and MEM_REGION); the second can be told apart by its argument.
const REGISTER: c_uint = 33;
const UNREGISTER: c_uint = 34;
const SETUP_SINGLE_ISSUER: u32 = 1 << 12;
const SETUP_DEFER_TASKRUN: u32 = 1 << 13;
const SETUP_CLAMP: u32 = 1 << 4;
const SETUP_REGISTERED_FD_ONLY: u32 = 1 << 15;
/// Bytes of struct io_uring_params, and where its flags are.
const PARAMS_LEN: usize = 120;
const PARAMS_FLAGS: usize = 8;

const UMEM_UNALIGNED: u32 = 1 << 0;
/// The headroom that puts the payload of an Ethernet/IPv4/UDP packet on a 512 byte block of its frame:
/// 256 of the kernel + 214 + 42 of headers. Drives and block devices take it there without a copy.
const HEADROOM: u32 = 214;

fn errno() -> c_int {
    // SAFETY: the C library gives each thread its own, live as long as the thread.
    unsafe { *libc::__errno_location() }
}

fn set_errno(value: c_int) {
    // SAFETY: as above.
    unsafe { *libc::__errno_location() = value }
}

/// Runs the body of a wrapped call: its value, or -1 and errno. Success leaves errno as it was.
fn wrapped(body: impl FnOnce() -> Result<c_int>) -> c_int {
    let before = errno();
    let value = guard(body);
    if value < 0 {
        set_errno(-value);
        return -1;
    }
    set_errno(before);
    value
}

/// A function of a library that the process has loaded, at any place in the order of libraries. Never that of a
/// preloaded object that calls this library, nor one linked into it.
fn function_of(library: &CStr, name: &CStr, cache: &AtomicUsize) -> Option<usize> {
    let mut found = cache.load(Ordering::Relaxed);
    if found == 0 {
        // SAFETY: the names end in a zero byte; NOLOAD only asks for what is loaded already, and the
        // handle is kept, so that the symbol stays. RTLD_NEXT is for other C libraries than glibc.
        found = unsafe {
            let handle = libc::dlopen(library.as_ptr(), libc::RTLD_NOLOAD | libc::RTLD_LAZY);
            let place = if handle.is_null() {
                libc::RTLD_NEXT
            } else {
                handle
            };
            libc::dlsym(place, name.as_ptr()) as usize
        };
        cache.store(found, Ordering::Relaxed);
    }
    (found != 0).then_some(found)
}

const LIBC: &CStr = c"libc.so.6";
const LIBXDP: &CStr = c"libxdp.so.1";

type Syscall = unsafe extern "C" fn(c_long, ...) -> c_long;
type Arguments = [c_long; 6];

/// # Safety
/// As for the system call itself.
unsafe fn real_syscall(number: c_long, a: Arguments) -> c_long {
    static FOUND: AtomicUsize = AtomicUsize::new(0);
    let ours = number == libc::SYS_io_uring_setup || number == libc::SYS_io_uring_register;
    let call: Syscall = match ours.then(|| function_of(LIBC, c"syscall", &FOUND)) {
        // SAFETY: the C library's `syscall` has this type.
        Some(Some(found)) => unsafe { transmute::<usize, Syscall>(found) },
        // A preloaded object forwards all other calls itself; a signal handler may make them.
        _ => libc::syscall,
    };
    // SAFETY: the caller's promise. More arguments than the call has are not looked at.
    unsafe { call(number, a[0], a[1], a[2], a[3], a[4], a[5]) }
}

/// The registrations of this process. A forked child starts with none: its parent's threads are not there.
fn registrations() -> &'static Registrations {
    struct Owned {
        process: Option<ProcessId>,
        registrations: Registrations,
    }
    static CURRENT: AtomicPtr<Owned> = AtomicPtr::new(ptr::null_mut());
    loop {
        let current = CURRENT.load(Ordering::Acquire);
        // SAFETY: null, or a box that was leaked below and is never freed. In a child its lock may be
        // held for ever, so only the number is looked at before it is known to be ours.
        if let Some(owned) = unsafe { current.as_ref() }
            && owned.process.is_some_and(ProcessId::is_current)
        {
            return &owned.registrations;
        }
        let fresh = Box::into_raw(Box::new(Owned {
            process: ProcessId::of_this_process().ok(),
            registrations: Registrations::new(),
        }));
        // Release: whoever loads the pointer sees what it points to.
        if CURRENT
            .compare_exchange(current, fresh, Ordering::AcqRel, Ordering::Relaxed)
            .is_err()
        {
            // SAFETY: made above, and nobody else has seen it.
            drop(unsafe { Box::from_raw(fresh) });
        }
    }
}

/// Stands in for `syscall` in a program that is linked with `--wrap=syscall`. A variadic function passes
/// its arguments as a fixed one does, up to the six that a system call can have.
///
/// # Safety
/// As for the system call itself.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn __wrap_syscall(
    number: c_long,
    a: c_long,
    b: c_long,
    c: c_long,
    d: c_long,
    e: c_long,
    f: c_long,
) -> c_long {
    let arguments = [a, b, c, d, e, f];
    if number == libc::SYS_io_uring_register {
        match b as c_uint {
            REGISTER => return register(a as RawFd, c as u64, d as c_uint).into(),
            UNREGISTER if c == 0 && d as c_uint == 0 => return unregister(a as RawFd).into(),
            _ => {}
        }
    }
    let before = errno();
    // SAFETY: the caller's promise; it is the same call.
    let mut result = unsafe { real_syscall(number, arguments) };
    if number == libc::SYS_io_uring_setup {
        if result < 0 && errno() == libc::EINVAL {
            // SAFETY: as above.
            result = unsafe { setup_single_issuer(arguments) };
            if result >= 0 {
                // The program did not see the refused call, so its error is discarded.
                set_errno(before);
            }
        }
        if result >= 0 {
            note_clamp(result as RawFd, b as u64);
        }
    }
    result
}

/// Registrations clamp their entry counts if the ring was made with IORING_SETUP_CLAMP.
fn note_clamp(fd: RawFd, params: u64) {
    let mut head = [0u8; PARAMS_FLAGS + 4];
    if user::copy_in(params, &mut head).is_err() {
        return;
    }
    let mut flags = [0; 4];
    flags.copy_from_slice(&head[PARAMS_FLAGS..]);
    let flags = u32::from_ne_bytes(flags);
    // With REGISTERED_FD_ONLY the kernel answers with an index of its own instead of a descriptor.
    if flags & SETUP_CLAMP == 0 || flags & SETUP_REGISTERED_FD_ONLY != 0 {
        return;
    }
    // The ring exists in any case. If the note fails, its registrations are refused instead of clamped.
    wrapped(|| registrations().note_clamp(fd).map(|()| 0));
}

/// Kernels require SINGLE_ISSUER with DEFER_TASKRUN; programs of the interface may leave it out. It binds submission
/// to the calling thread, and such a program never submits to this ring: it is the handle of its registration, and the
/// engine has one of its own.
///
/// # Safety
/// The arguments are those of an io_uring_setup that was answered with EINVAL.
unsafe fn setup_single_issuer(mut arguments: Arguments) -> c_long {
    let program = arguments[1] as u64;
    let mut params = [0u8; PARAMS_LEN];
    let asks = user::copy_in(program, &mut params).is_ok() && {
        let mut flags = [0; 4];
        flags.copy_from_slice(&params[PARAMS_FLAGS..PARAMS_FLAGS + 4]);
        let flags = u32::from_ne_bytes(flags);
        let with = flags | SETUP_SINGLE_ISSUER;
        params[PARAMS_FLAGS..PARAMS_FLAGS + 4].copy_from_slice(&with.to_ne_bytes());
        flags & SETUP_DEFER_TASKRUN != 0 && with != flags
    };
    if !asks {
        set_errno(libc::EINVAL);
        return -1;
    }
    arguments[1] = params.as_mut_ptr() as c_long;
    // SAFETY: the parameters are a live copy of the program's, in and out.
    let fd = unsafe { real_syscall(libc::SYS_io_uring_setup, arguments) };
    if fd < 0 {
        return fd;
    }
    // SAFETY: the program gave this place to be written by its call.
    let told = unsafe { user::copy_out(program, &params) };
    if let Err(error) = told {
        // SAFETY: just made, and nobody knows it yet.
        unsafe { libc::close(fd as RawFd) };
        set_errno(error.raw_os_error().unwrap_or(libc::EFAULT));
        return -1;
    }
    fd
}

fn os(error: std::io::Error, what: &str) -> Error {
    Error::os(&error, format_args!("registering a region: {what}"))
}

/// A structure of the program's, copied once.
///
/// # Safety
/// `T` must be plain integers without padding.
unsafe fn structure<T: Copy + Default>(address: u64, what: &str) -> Result<T> {
    let mut value = T::default();
    // SAFETY: the bytes of a live T, which takes any (the caller's promise).
    let bytes = unsafe {
        std::slice::from_raw_parts_mut(ptr::from_mut(&mut value).cast::<u8>(), size_of::<T>())
    };
    user::copy_in(address, bytes).map_err(|e| os(e, what))?;
    Ok(value)
}

fn refused(error: &Error) {
    log::log(Level::Error, format_args!("{error}"));
}

fn register(fd: RawFd, address: u64, count: c_uint) -> c_int {
    wrapped(|| {
        let registrations = registrations();
        let result = (|| {
            registrations.check_ring(fd)?;
            if count != 1 {
                return Err(Error::new(
                    libc::EINVAL,
                    format!("registering a region: {count} arguments instead of 1"),
                ));
            }
            // SAFETY: integers only, sizes asserted in abi.rs.
            let reg: UnifiedReg = unsafe { structure(address, "io_unified_reg")? };
            let clamp = registrations.clamps(fd)?;
            Registration::layout(&reg, clamp)?;
            // SAFETY: as above.
            let region: RegionDesc = unsafe { structure(reg.region_ptr, "its region_ptr")? };
            let device =
                user::c_string(reg.nvme_dev_path).map_err(|e| os(e, "its nvme_dev_path"))?;
            let device = String::from_utf8(device).map_err(|_| {
                Error::new(
                    libc::ENOENT,
                    "registering a region: its nvme_dev_path is not valid UTF-8",
                )
            })?;
            let request = Registration {
                reg,
                region,
                device,
                clamp,
            };
            let offsets = registrations.register(fd, &request)?;
            let filled = UnifiedReg { offsets, ..reg };
            // SAFETY: integers only, without padding.
            let bytes = unsafe {
                std::slice::from_raw_parts(
                    ptr::from_ref(&filled).cast::<u8>(),
                    size_of::<UnifiedReg>(),
                )
            };
            // SAFETY: the program gave this structure to be filled.
            unsafe { user::copy_out(address, bytes) }.map_err(|e| {
                let _ = registrations.unregister(fd);
                os(e, "io_unified_reg")
            })?;
            Ok(0)
        })();
        result.inspect_err(refused)
    })
}

fn unregister(fd: RawFd) -> c_int {
    wrapped(|| {
        registrations()
            .unregister(fd)
            .map(|()| 0)
            .inspect_err(refused)
    })
}

/// `struct xsk_umem_config` of libxdp's xsk.h.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct UmemConfig {
    fill_size: u32,
    comp_size: u32,
    frame_size: u32,
    frame_headroom: u32,
    flags: u32,
}

impl UmemConfig {
    /// libxdp's defaults.
    const DEFAULT: UmemConfig = UmemConfig {
        fill_size: 2048,
        comp_size: 2048,
        frame_size: 4096,
        frame_headroom: 0,
        flags: 0,
    };

    /// Aligned frames, and payloads at an address that a drive can use.
    fn adjusted(mut self) -> UmemConfig {
        // In unaligned mode descriptors carry an offset in their upper 16 bits; programs of the interface
        // add them to the buffers as they are. Without power of two frames there is no aligned mode.
        if self.frame_size.is_power_of_two() {
            self.flags &= !UMEM_UNALIGNED;
        }
        // Keep a headroom that the program asked for. A full MTU must still fit.
        if self.frame_headroom == 0 && self.frame_size >= 2048 {
            self.frame_headroom = HEADROOM;
        }
        self
    }
}

type UmemCreate = unsafe extern "C" fn(
    *mut *mut c_void,
    *mut c_void,
    u64,
    *mut c_void,
    *mut c_void,
    *const UmemConfig,
) -> c_int;

/// Stands in for libxdp's function in a program that is linked with `--wrap=xsk_umem__create`: clears
/// XDP_UMEM_UNALIGNED_CHUNK_FLAG and, if the program sets no headroom, chooses one that needs no copies. A negative
/// errno, as libxdp.
///
/// # Safety
/// As for libxdp's function.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn __wrap_xsk_umem__create(
    umem: *mut *mut c_void,
    area: *mut c_void,
    size: u64,
    fill: *mut c_void,
    completion: *mut c_void,
    config: *const UmemConfig,
) -> c_int {
    static FOUND: AtomicUsize = AtomicUsize::new(0);
    let Some(found) = function_of(LIBXDP, c"xsk_umem__create", &FOUND) else {
        remember("xsk_umem__create: the program has loaded no libxdp.so.1; link it with -lxdp");
        return -libc::ENOSYS;
    };
    // SAFETY: libxdp's function has this type (its rings and objects stay opaque).
    let create = unsafe { transmute::<usize, UmemCreate>(found) };
    // SAFETY: null, or a live configuration, by libxdp's contract.
    let given = unsafe { config.as_ref() };
    let adjusted = given.copied().unwrap_or(UmemConfig::DEFAULT).adjusted();
    // SAFETY: the program's own arguments; the configuration is read during the call.
    unsafe { create(umem, area, size, fill, completion, &adjusted) }
}

/// Stands in for `setrlimit` in a program that is linked with `--wrap=setrlimit`: a raise of RLIMIT_MEMLOCK that the
/// kernel refuses succeeds if nothing limits this process anyway (CAP_IPC_LOCK).
///
/// # Safety
/// As for the C library's function.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn __wrap_setrlimit(resource: c_int, limit: *const libc::rlimit) -> c_int {
    type Setrlimit = unsafe extern "C" fn(c_int, *const libc::rlimit) -> c_int;
    static FOUND: AtomicUsize = AtomicUsize::new(0);
    let before = errno();
    let found = function_of(LIBC, c"setrlimit", &FOUND);
    // SAFETY: the C library's function has this type.
    let set = found.map(|found| unsafe { transmute::<usize, Setrlimit>(found) });
    let result = match set {
        // SAFETY: the arguments are the program's own.
        Some(set) => unsafe { set(resource, limit) },
        None => {
            set_errno(libc::ENOSYS);
            -1
        }
    };
    let refused = result < 0 && errno() == libc::EPERM;
    if refused && resource == libc::RLIMIT_MEMLOCK as c_int && limits::memlock().is_none() {
        set_errno(before);
        return 0;
    }
    result
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_become_aligned_and_payloads_fall_on_blocks() {
        let given = UmemConfig {
            frame_size: 2048,
            flags: UMEM_UNALIGNED,
            ..UmemConfig::DEFAULT
        };
        let adjusted = given.adjusted();
        assert_eq!((adjusted.flags, adjusted.frame_headroom), (0, 214));
        assert_eq!((256 + adjusted.frame_headroom + 42) % 512, 0);
        let own = UmemConfig {
            frame_headroom: 64,
            ..given
        };
        assert_eq!(own.adjusted().frame_headroom, 64);
        let odd = UmemConfig {
            frame_size: 3000,
            ..given
        };
        assert_eq!(odd.adjusted().flags, UMEM_UNALIGNED);
    }

    #[test]
    fn other_calls_go_to_the_kernel_with_all_their_arguments() {
        // SAFETY: getpid takes nothing; mmap of six arguments makes a page that is then unmapped; a bad
        // descriptor is only an error.
        unsafe {
            let pid = __wrap_syscall(libc::SYS_getpid, 0, 0, 0, 0, 0, 0);
            assert_eq!(pid, c_long::from(libc::getpid()));
            let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
            let page = __wrap_syscall(libc::SYS_mmap, 0, 4096, 3, flags.into(), -1, 0);
            assert!(page > 0, "{page}");
            assert_eq!(__wrap_syscall(libc::SYS_munmap, page, 4096, 0, 0, 0, 0), 0);
            set_errno(0);
            assert_eq!(__wrap_syscall(libc::SYS_close, -1, 0, 0, 0, 0, 0), -1);
            assert_eq!(errno(), libc::EBADF);
        }
    }
}
