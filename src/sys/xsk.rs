//! AF_XDP sockets over libxdp's xsk, on memory that the socket keeps alive.

use std::io;
use std::os::fd::{FromRawFd, IntoRawFd, OwnedFd, RawFd};
use std::ptr;
use std::thread;
use std::time::{Duration, Instant};

use libxdp_sys as xdp;

use super::file::duplicate;
use super::limits::retry_locking;
use super::shm::Shared;

/// The kernel frees a queue some time after its last socket was closed.
const BUSY_RETRY: Duration = Duration::from_secs(1);

/// What a socket is made of.
#[derive(Debug, Clone)]
pub struct XskSetup {
    pub ifname: String,
    pub queue: u32,
    /// 2048 or 4096 bytes.
    pub frame_size: u32,
    pub headroom: u32,
    /// Entries, powers of two.
    pub fill_size: u32,
    pub rx_size: u32,
    /// `None`: zero-copy where the driver can, as the kernel finds.
    pub zero_copy: Option<bool>,
    pub skb_mode: bool,
    /// An AF_XDP socket, not bound, that somebody with CAP_NET_RAW made; a duplicate is used.
    pub socket: Option<RawFd>,
}

/// What the kernel dropped on its way to the socket.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct XskStatistics {
    pub rx_dropped: u64,
    pub rx_ring_full: u64,
    pub rx_fill_ring_empty: u64,
    /// Addresses in the fill ring that the kernel refused.
    pub rx_invalid: u64,
}

/// A received packet: where it begins in the UMEM, and its bytes.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct RxDescriptor {
    pub addr: u64,
    pub len: u32,
}

/// One socket, its UMEM and its rings. One thread uses it at a time.
pub struct Xsk {
    socket: *mut xdp::xsk_socket,
    umem: *mut xdp::xsk_umem,
    // libxdp keeps pointers to these four: boxed, so that they do not move.
    fill: Box<xdp::xsk_ring_prod>,
    _completion: Box<xdp::xsk_ring_cons>,
    rx: Box<xdp::xsk_ring_cons>,
    fd: RawFd,
    // Last: the memory outlives the UMEM made of it.
    _memory: Shared,
}

// SAFETY: the libxdp objects have no thread affinity and one owner; &self methods only make system
// calls on the descriptor or atomic loads of ring indices.
unsafe impl Send for Xsk {}

fn negative(rc: i32) -> io::Result<()> {
    if rc < 0 {
        Err(io::Error::from_raw_os_error(-rc))
    } else {
        Ok(())
    }
}

fn zeroed_ring<T>() -> Box<T> {
    // SAFETY: used with libxdp's two ring structs only: integers and raw pointers, for which zero is a value.
    unsafe { Box::new(std::mem::zeroed()) }
}

/// An interface's name in a buffer of the full size: libxdp copies so many bytes whatever the name's length.
fn name_buffer(name: &str) -> io::Result<[libc::c_char; libc::IFNAMSIZ]> {
    let mut buffer = [0; libc::IFNAMSIZ];
    if name.len() >= buffer.len() || name.contains('\0') {
        return Err(io::Error::from_raw_os_error(libc::EINVAL));
    }
    for (to, from) in buffer.iter_mut().zip(name.bytes()) {
        *to = from as libc::c_char;
    }
    Ok(buffer)
}

impl Xsk {
    /// Makes the UMEM over `memory` and binds a socket as `setup.zero_copy` says. libxdp's default program is not
    /// loaded.
    pub fn open(setup: &XskSetup, memory: Shared) -> io::Result<Xsk> {
        let mut xsk = Xsk::new(setup, memory)?;
        xsk.bind(setup, setup.zero_copy)?;
        Ok(xsk)
    }

    /// Makes the UMEM over `memory`, for a socket that is yet to be bound.
    pub fn new(setup: &XskSetup, memory: Shared) -> io::Result<Xsk> {
        let mut xsk = Xsk {
            socket: ptr::null_mut(),
            umem: ptr::null_mut(),
            fill: zeroed_ring(),
            _completion: zeroed_ring(),
            rx: zeroed_ring(),
            fd: -1,
            _memory: memory.clone(),
        };
        let umem = xdp::xsk_umem_config {
            fill_size: setup.fill_size,
            // Nothing is sent; the kernel wants the ring all the same.
            comp_size: 64,
            frame_size: setup.frame_size,
            frame_headroom: setup.headroom,
            flags: 0,
        };
        retry_locking(|| {
            // libxdp's own would be inherited by the programs that this one starts, and would hold the queue in
            // them when it was closed here.
            let fd = match setup.socket {
                Some(socket) => duplicate(socket)?,
                None => Xsk::socket()?,
            }
            .into_raw_fd();
            // SAFETY: the memory is a live range that xsk keeps alive; the boxed rings live as long as the
            // UMEM; the config is read during the call. The descriptor belongs to the UMEM from here on, and
            // is closed with it, or when making it fails: then nothing else of it is left either.
            negative(unsafe {
                xdp::xsk_umem__create_with_fd(
                    &mut xsk.umem,
                    fd,
                    memory.pointer(0).cast(),
                    memory.len() as u64,
                    &mut *xsk.fill,
                    &mut *xsk._completion,
                    &umem,
                )
            })
        })?;
        Ok(xsk)
    }

    /// Binds the socket, for which it waits up to a second if another one has the queue. After another error the
    /// UMEM is of no use: not every kernel leaves its rings as they were.
    pub fn bind(&mut self, setup: &XskSetup, zero_copy: Option<bool>) -> io::Result<()> {
        let ifname = name_buffer(&setup.ifname)?;
        // SAFETY: integers only; zero is a value of each.
        let mut config: xdp::xsk_socket_config = unsafe { std::mem::zeroed() };
        config.rx_size = setup.rx_size;
        config.__bindgen_anon_1.libxdp_flags = xdp::XSK_LIBXDP_FLAGS__INHIBIT_PROG_LOAD;
        config.xdp_flags = if setup.skb_mode { 1 << 1 } else { 1 << 2 };
        let copy = match zero_copy {
            Some(true) => xdp::XDP_ZEROCOPY,
            Some(false) => xdp::XDP_COPY,
            None => 0,
        };
        config.bind_flags = (copy | xdp::XDP_USE_NEED_WAKEUP) as u16;
        let until = Instant::now() + BUSY_RETRY;
        loop {
            // SAFETY: the UMEM was made by `new`, and it and the boxed rings live as long as the socket; no TX ring
            // is asked for. When binding fails, libxdp keeps the UMEM, its rings and the descriptor as they were
            // before the call.
            let bound = negative(unsafe {
                xdp::xsk_socket__create(
                    &mut self.socket,
                    ifname.as_ptr(),
                    setup.queue,
                    self.umem,
                    &mut *self.rx,
                    ptr::null_mut(),
                    &config,
                )
            });
            match bound {
                Err(e) if e.raw_os_error() == Some(libc::EBUSY) && Instant::now() < until => {
                    thread::sleep(Duration::from_millis(10));
                }
                bound => break bound?,
            }
        }
        // SAFETY: the socket was just made.
        self.fd = unsafe { xdp::xsk_socket__fd(self.socket) };
        Ok(())
    }

    /// A socket that is nothing yet. Needs CAP_NET_RAW, and is the only step that does.
    pub fn socket() -> io::Result<OwnedFd> {
        // SAFETY: no memory is passed; the result is a new descriptor or -1.
        let fd = unsafe { libc::socket(libc::AF_XDP, libc::SOCK_RAW | libc::SOCK_CLOEXEC, 0) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: just made, and owned by nobody else.
        Ok(unsafe { OwnedFd::from_raw_fd(fd) })
    }

    pub fn fd(&self) -> RawFd {
        self.fd
    }

    /// Takes received descriptors; they are checked by the caller before use.
    pub fn receive(&mut self, out: &mut [RxDescriptor]) -> usize {
        let mut index = 0;
        // SAFETY: the RX ring is mapped as long as the socket lives; indices come from libxdp and are
        // masked by it; `peek` never gives more than asked for.
        unsafe {
            let count = xdp::xsk_ring_cons__peek(&mut *self.rx, out.len() as u32, &mut index);
            for (i, slot) in out[..count as usize].iter_mut().enumerate() {
                let descriptor =
                    &*xdp::xsk_ring_cons__rx_desc(&*self.rx, index.wrapping_add(i as u32));
                *slot = RxDescriptor {
                    addr: descriptor.addr,
                    len: descriptor.len,
                };
            }
            if count > 0 {
                xdp::xsk_ring_cons__release(&mut *self.rx, count);
            }
            count as usize
        }
    }

    /// Descriptors that wait in the RX ring.
    pub fn pending(&mut self) -> u32 {
        // SAFETY: the ring is mapped as long as the socket lives; both words are aligned u32 of it.
        unsafe {
            let producer = (*self.rx.producer.cast::<std::sync::atomic::AtomicU32>())
                .load(std::sync::atomic::Ordering::Acquire);
            let consumer = (*self.rx.consumer.cast::<std::sync::atomic::AtomicU32>())
                .load(std::sync::atomic::Ordering::Relaxed);
            producer.wrapping_sub(consumer)
        }
    }

    /// Room in the fill ring.
    pub fn fill_room(&mut self, wanted: u32) -> u32 {
        // SAFETY: the fill ring is mapped as long as the UMEM lives.
        unsafe { xdp::xsk_prod_nb_free(&mut *self.fill, wanted) }
    }

    /// Gives frames to the kernel: all of `addresses`, or none where they do not fit.
    pub fn fill(&mut self, addresses: impl ExactSizeIterator<Item = u64>) -> bool {
        let count = addresses.len() as u32;
        let mut index = 0;
        // SAFETY: the fill ring is mapped as long as the UMEM lives; `reserve` gave `count` slots from
        // `index`, masked by libxdp.
        unsafe {
            if count == 0
                || xdp::xsk_ring_prod__reserve(&mut *self.fill, count, &mut index) != count
            {
                return count == 0;
            }
            for (i, address) in addresses.take(count as usize).enumerate() {
                *xdp::xsk_ring_prod__fill_addr(&mut *self.fill, index.wrapping_add(i as u32)) =
                    address;
            }
            xdp::xsk_ring_prod__submit(&mut *self.fill, count);
        }
        true
    }

    /// The driver sleeps until it is told that the fill ring has frames again.
    pub fn needs_wakeup(&self) -> bool {
        // SAFETY: the ring's flags are mapped as long as the UMEM lives.
        unsafe { xdp::xsk_ring_prod__needs_wakeup(&*self.fill) != 0 }
    }

    /// Wakes the driver. An errno tells about the device: ENETDOWN, ENXIO.
    pub fn wake(&self) -> io::Result<()> {
        // SAFETY: no buffer is passed.
        let rc = unsafe {
            libc::recvfrom(
                self.fd,
                ptr::null_mut(),
                0,
                libc::MSG_DONTWAIT,
                ptr::null_mut(),
                ptr::null_mut(),
            )
        };
        match io::Error::last_os_error() {
            _ if rc >= 0 => Ok(()),
            e if matches!(
                e.raw_os_error(),
                Some(libc::EAGAIN | libc::EBUSY | libc::ENOBUFS | libc::EINTR)
            ) =>
            {
                Ok(())
            }
            e => Err(e),
        }
    }

    fn option<T>(&self, name: i32, value: &mut T) -> io::Result<()> {
        let mut len = size_of::<T>() as libc::socklen_t;
        // SAFETY: `value` is live and `len` its size; both uses are repr(C) integers.
        let rc = unsafe {
            libc::getsockopt(
                self.fd,
                libc::SOL_XDP,
                name,
                ptr::from_mut(value).cast(),
                &mut len,
            )
        };
        if rc < 0 {
            Err(io::Error::last_os_error())
        } else {
            Ok(())
        }
    }

    pub fn statistics(&self) -> io::Result<XskStatistics> {
        // struct xdp_statistics: rx_dropped, rx_invalid, tx_invalid, rx_ring_full, fill_empty, tx_empty.
        let mut words = [0u64; 6];
        self.option(libc::XDP_STATISTICS, &mut words)?;
        Ok(XskStatistics {
            rx_dropped: words[0],
            rx_invalid: words[1],
            rx_ring_full: words[3],
            rx_fill_ring_empty: words[4],
        })
    }

    /// What the kernel says it does, not what was asked for.
    pub fn is_zero_copy(&self) -> io::Result<bool> {
        let mut flags = 0u32;
        self.option(libc::XDP_OPTIONS, &mut flags)?;
        Ok(flags & libc::XDP_OPTIONS_ZEROCOPY != 0)
    }
}

impl Drop for Xsk {
    fn drop(&mut self) {
        // SAFETY: made by open, or null; the socket goes before its UMEM.
        unsafe {
            if !self.socket.is_null() {
                xdp::xsk_socket__delete(self.socket);
            }
            if !self.umem.is_null() {
                xdp::xsk_umem__delete(self.umem);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_in_a_buffer_as_long_as_libxdp_reads() {
        let buffer = name_buffer("eth0").unwrap();
        let bytes: Vec<u8> = buffer.iter().map(|c| *c as u8).collect();
        assert_eq!(bytes, *b"eth0\0\0\0\0\0\0\0\0\0\0\0\0");
        assert!(name_buffer("fifteen-letters").is_ok());
        for wrong in ["sixteen-letters-", "a\0b"] {
            assert!(name_buffer(wrong).is_err());
        }
    }
}
