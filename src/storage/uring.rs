//! Making an io_uring, with errors in words.

#![forbid(unsafe_code)]

use std::io;
use std::os::fd::OwnedFd;

use crate::error::{Error, Result};
use crate::sys::limits;
use crate::sys::shm::Shared;
use crate::sys::uring::Ring;

/// Creates a ring. `deferred`: for the one thread that will call `enable`; otherwise any thread may drive it, one at a
/// time. `EPERM`, `ENOSYS` or `EINVAL` if this system does not allow or have the io_uring that is needed, `ENOMEM`.
pub(super) fn create(entries: u32, deferred: bool) -> Result<Ring> {
    let ring = match deferred {
        true => Ring::deferred(entries),
        false => Ring::shared(entries),
    };
    ring.map_err(|e| {
        let error = Error::os(&e, format_args!("creating an io_uring of {entries} entries"));
        match e.raw_os_error() {
            Some(libc::EPERM) => error.hint(
                "io_uring is forbidden here: see sysctl kernel.io_uring_disabled, or the container's seccomp profile",
            ),
            Some(libc::ENOSYS) => error.hint("this kernel has no io_uring, or seccomp hides it"),
            Some(libc::EINVAL) => error.hint("kernel 6.1 or newer is needed"),
            _ => error,
        }
    })
}

/// Registers memory and files, and keeps `more` numbers for memory that comes later. `ENOMEM` if RLIMIT_MEMLOCK does not allow the memory.
pub(super) fn register(
    ring: &mut Ring,
    memory: Vec<Shared>,
    more: u16,
    files: Vec<OwnedFd>,
) -> Result<()> {
    let bytes: usize = memory.iter().map(Shared::len).sum();
    ring.register_memory(memory, more).map_err(|e| {
        let error = Error::os(&e, format_args!("registering {bytes} bytes with io_uring"));
        match e.raw_os_error() {
            Some(libc::ENOMEM) => error.hint(limits::shortage(bytes)),
            _ => error,
        }
    })?;
    ring.register_files(files)
        .map_err(|e| Error::os(&e, "registering files with io_uring"))
}

/// An error of a ring in use.
pub(super) fn failed(error: io::Error) -> Error {
    Error::os(&error, "submitting to io_uring")
}
