//! A route netlink socket, for changes of one interface.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};

/// Offsets in `struct nlmsghdr` and `struct ifinfomsg`.
const REQUEST_LEN: usize = 16 + 16;

/// It belongs to the network namespace of the thread that opened it, even if used from another one.
#[derive(Debug)]
pub struct RouteSocket(OwnedFd);

impl RouteSocket {
    /// Subscribes to changes of the interface with that index only: on a host where containers come and go, waiters
    /// are not woken for others. Needs no privilege.
    pub fn open(index: u32) -> io::Result<RouteSocket> {
        // SAFETY: no memory is passed; the result is a new descriptor or -1.
        let fd = unsafe {
            libc::socket(
                libc::AF_NETLINK,
                libc::SOCK_RAW | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK,
                libc::NETLINK_ROUTE,
            )
        };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: just made, and owned by nobody else.
        let socket = RouteSocket(unsafe { OwnedFd::from_raw_fd(fd) });
        only(fd, index)?;
        // SAFETY: sockaddr_nl is integers, for which zero is a value.
        let mut address: libc::sockaddr_nl = unsafe { std::mem::zeroed() };
        address.nl_family = libc::AF_NETLINK as libc::sa_family_t;
        address.nl_groups = libc::RTMGRP_LINK as u32;
        // SAFETY: the address is live and as long as said.
        let rc = unsafe {
            libc::bind(
                fd,
                std::ptr::from_ref(&address).cast(),
                size_of_val(&address) as libc::socklen_t,
            )
        };
        if rc < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(socket)
    }

    pub fn fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }

    /// Asks for an interface by its index (RTM_GETLINK). The kernel has queued the answer when this returns.
    pub fn ask(&self, index: u32) -> io::Result<()> {
        let mut request = [0u8; REQUEST_LEN];
        request[0..4].copy_from_slice(&(REQUEST_LEN as u32).to_ne_bytes());
        request[4..6].copy_from_slice(&libc::RTM_GETLINK.to_ne_bytes());
        request[6..8].copy_from_slice(&(libc::NLM_F_REQUEST as u16).to_ne_bytes());
        request[20..24].copy_from_slice(&index.to_ne_bytes());
        // SAFETY: the request is live and as long as said; the socket's peer is the kernel by default.
        let rc = unsafe { libc::send(self.fd(), request.as_ptr().cast(), request.len(), 0) };
        if rc < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(())
    }

    /// One datagram of messages; `WouldBlock` if none waits, `ENOBUFS` if some were lost.
    pub fn read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        // SAFETY: the buffer is live, writable and as long as said.
        let rc = unsafe { libc::recv(self.fd(), buffer.as_mut_ptr().cast(), buffer.len(), 0) };
        usize::try_from(rc).map_err(|_| io::Error::last_os_error())
    }
}

/// A filter for answers that are errors, and for messages about one interface. The kernel sends changes of
/// interfaces one message a datagram.
fn only(fd: RawFd, index: u32) -> io::Result<()> {
    // Offsets in struct nlmsghdr and, after it, struct ifinfomsg; a load converts from network order.
    const TYPE: u32 = 4;
    const INDEX: u32 = 16 + 4;
    let step = |code: u32, jt, jf, k| libc::sock_filter {
        code: code as u16,
        jt,
        jf,
        k,
    };
    let equal = libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K;
    let mut steps = [
        step(libc::BPF_LD | libc::BPF_H | libc::BPF_ABS, 0, 0, TYPE),
        step(equal, 2, 0, u16::to_be(libc::NLMSG_ERROR as u16).into()),
        step(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0, INDEX),
        step(equal, 0, 1, index.to_be()),
        step(libc::BPF_RET | libc::BPF_K, 0, 0, u32::MAX),
        step(libc::BPF_RET | libc::BPF_K, 0, 0, 0),
    ];
    let program = libc::sock_fprog {
        len: steps.len() as u16,
        filter: steps.as_mut_ptr(),
    };
    // SAFETY: the program and its steps are live and as long as said; the kernel copies and checks them.
    let rc = unsafe {
        libc::setsockopt(
            fd,
            libc::SOL_SOCKET,
            libc::SO_ATTACH_FILTER,
            std::ptr::from_ref(&program).cast(),
            size_of_val(&program) as libc::socklen_t,
        )
    };
    if rc < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}
