//! Interfaces of the caller's network namespace, by ioctl (sysfs may show another namespace's).

use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

const ETHTOOL_GCHANNELS: u32 = 0x3c;

pub fn index_of(name: &str) -> Option<u32> {
    let name = CString::new(name).ok()?;
    // SAFETY: the name ends in a zero byte.
    match unsafe { libc::if_nametoindex(name.as_ptr()) } {
        0 => None,
        index => Some(index),
    }
}

/// The name of the interface with that index.
pub fn name_of(index: u32) -> Option<String> {
    let mut name = [0; libc::IF_NAMESIZE];
    // SAFETY: the buffer has the room that the call demands.
    if unsafe { libc::if_indextoname(index, name.as_mut_ptr()) }.is_null() {
        return None;
    }
    // SAFETY: the call wrote a name that ends in a zero byte into the buffer, which is live.
    let name = unsafe { CStr::from_ptr(name.as_ptr()) };
    Some(name.to_string_lossy().into_owned())
}

fn socket() -> Option<OwnedFd> {
    // SAFETY: no memory is passed; the result is a new descriptor or -1.
    let fd = unsafe { libc::socket(libc::AF_INET, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, 0) };
    // SAFETY: just made, and owned by nobody else.
    (fd >= 0).then(|| unsafe { OwnedFd::from_raw_fd(fd) })
}

fn request(name: &str) -> Option<libc::ifreq> {
    // SAFETY: ifreq is bytes, integers and pointers, for which zero is a value.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    if name.len() >= request.ifr_name.len() {
        return None;
    }
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = from as libc::c_char;
    }
    Some(request)
}

/// Whether it is certain that no interface of this network namespace has that index. The check needs a descriptor:
/// without one this returns `false`.
pub fn is_gone(index: u32) -> bool {
    let mut name = [0; libc::IF_NAMESIZE];
    // SAFETY: the buffer has the room that the call demands.
    let found = unsafe { libc::if_indextoname(index, name.as_mut_ptr()) };
    found.is_null() && std::io::Error::last_os_error().raw_os_error() == Some(libc::ENXIO)
}

/// Whether it is administratively up.
pub fn is_up(name: &str) -> bool {
    let (Some(socket), Some(mut request)) = (socket(), request(name)) else {
        return false;
    };
    // SAFETY: the request is live and named; the kernel fills the flags member, which is read only after
    // success.
    unsafe {
        libc::ioctl(socket.as_raw_fd(), libc::SIOCGIFFLAGS, &mut request) == 0
            && i32::from(request.ifr_ifru.ifru_flags) & libc::IFF_UP != 0
    }
}

/// What the interface's packets begin with: ARPHRD_ETHER and its like. `None` if the kernel does not report it.
pub fn hardware_type(name: &str) -> Option<u16> {
    let (socket, mut request) = (socket()?, request(name)?);
    // SAFETY: the request is live and named; the kernel fills the address member, which is integers that
    // were zero before.
    unsafe {
        (libc::ioctl(socket.as_raw_fd(), libc::SIOCGIFHWADDR, &mut request) == 0)
            .then_some(request.ifr_ifru.ifru_hwaddr.sa_family)
    }
}

/// Calls the driver. Returns the kernel's errno; `EINVAL` for a name that no interface can have.
///
/// # Safety
/// `command`, a struct of linux/ethtool.h, must have room for whatever the kernel answers.
pub(super) unsafe fn ethtool(name: &str, command: &mut [u32]) -> io::Result<()> {
    let socket = socket().ok_or_else(io::Error::last_os_error)?;
    let mut request = request(name).ok_or(io::ErrorKind::InvalidInput)?;
    request.ifr_ifru.ifru_data = command.as_mut_ptr().cast();
    // SAFETY: the request names the command, which is live and, so the caller says, long enough.
    match unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCETHTOOL, &mut request) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Receive queues in use (ETHTOOL_GCHANNELS: rx + combined). `None` if the driver does not report them.
pub fn rx_channels(name: &str) -> Option<u32> {
    // struct ethtool_channels: cmd, max_rx, max_tx, max_other, max_combined, rx, tx, other, combined.
    let mut channels = [0u32; 9];
    channels[0] = ETHTOOL_GCHANNELS;
    // SAFETY: the array has the size of struct ethtool_channels.
    unsafe { ethtool(name, &mut channels) }.ok()?;
    match channels[5] + channels[8] {
        0 => None,
        count => Some(count),
    }
}
