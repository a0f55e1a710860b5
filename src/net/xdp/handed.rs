//! A map of AF_XDP sockets that another process's program redirects by.

#![forbid(unsafe_code)]

use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};

use crate::error::{Error, Result};
use crate::net::link::Link;
use crate::sys::bpf;
use crate::sys::file::duplicate;

/// This context's entry in the map of AF_XDP sockets of somebody else's program.
#[derive(Debug)]
pub struct HandedMap {
    map: OwnedFd,
    queue: u32,
}

impl HandedMap {
    /// `EINVAL` if it is not a BPF_MAP_TYPE_XSKMAP; `EBADF`.
    pub fn insert(map: RawFd, link: &Link, queue: u32, socket: RawFd) -> Result<HandedMap> {
        let failed = |e: io::Error| {
            Error::os(
                &e,
                format_args!(
                    "setting queue {queue} of '{}' in the map handed in (descriptor {map})",
                    link.name
                ),
            )
            .hint(match e.raw_os_error() {
                // The kernel refused the call before it looked at the descriptor.
                Some(libc::EPERM) => "in a container: allow bpf(2) in its seccomp profile",
                _ => "it must be the BPF_MAP_TYPE_XSKMAP of the XDP program on that interface",
            })
        };
        let own = duplicate(map).map_err(failed)?;
        // Keys and values of another map may be longer than what is written.
        if !bpf::is_socket_map(own.as_raw_fd()).map_err(failed)? {
            return Err(failed(io::Error::from_raw_os_error(libc::EINVAL)));
        }
        bpf::map_set(own.as_raw_fd(), queue, &(socket as u32).to_ne_bytes()).map_err(failed)?;
        Ok(HandedMap { map: own, queue })
    }
}

impl Drop for HandedMap {
    fn drop(&mut self) {
        // The process that made the socket may keep it open. Packets go to the stack from now on.
        let _ = bpf::map_delete(self.map.as_raw_fd(), self.queue);
    }
}
