//! AF_XDP over libxdp's xsk: a UMEM, the sockets that share it, and their rings.
//!
//! The objects keep one another alive: a ring holds its socket, a socket holds its UMEM, the UMEM holds its memory.

mod queues;

use std::io;
use std::ops::AddAssign;
use std::os::fd::{AsRawFd, FromRawFd, IntoRawFd, OwnedFd, RawFd};
use std::ptr;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use libxdp_sys as xdp;
use parking_lot::Mutex;

use super::file::duplicate;
use super::limits::retry_locking;
use super::shm::Shared;

pub use queues::{FillQueue, RxDescriptor, RxQueue};

/// The kernel frees a queue some time after its last socket was closed.
const BUSY_RETRY: Duration = Duration::from_secs(1);
/// Entries of the completion ring. Nothing is sent, but the kernel requires the ring.
const COMPLETION_RING: u32 = 64;

/// How a UMEM is made.
#[derive(Debug, Clone)]
pub struct UmemSetup {
    /// 2048 or 4096 bytes.
    pub frame_size: u32,
    pub headroom: u32,
    /// Entries of each socket's fill ring, a power of two.
    pub fill_size: u32,
    /// An AF_XDP socket, not bound, that somebody with CAP_NET_RAW made. A duplicate is used for the first queue.
    pub socket: Option<RawFd>,
}

/// What a socket is bound to, and how.
#[derive(Debug, Clone)]
pub struct QueueSetup {
    pub ifname: String,
    pub queue: u32,
    /// Entries of the RX ring, a power of two.
    pub rx_size: u32,
    /// `None`: zero-copy if the driver can; the kernel decides.
    pub zero_copy: Option<bool>,
    pub skb_mode: bool,
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

impl AddAssign for XskStatistics {
    fn add_assign(&mut self, other: XskStatistics) {
        self.rx_dropped += other.rx_dropped;
        self.rx_ring_full += other.rx_ring_full;
        self.rx_fill_ring_empty += other.rx_fill_ring_empty;
        self.rx_invalid += other.rx_invalid;
    }
}

fn negative(rc: i32) -> io::Result<()> {
    if rc < 0 {
        Err(io::Error::from_raw_os_error(-rc))
    } else {
        Ok(())
    }
}

/// One of libxdp's ring structs on the heap. libxdp keeps a pointer to it until its socket or UMEM is deleted.
struct RingStruct<T>(*mut T);

impl<T> RingStruct<T> {
    fn zeroed() -> RingStruct<T> {
        // SAFETY: used with libxdp's two ring structs only: integers and raw pointers, for which zero is a value.
        RingStruct(Box::into_raw(unsafe { Box::new(std::mem::zeroed()) }))
    }
}

impl<T> Drop for RingStruct<T> {
    fn drop(&mut self) {
        // SAFETY: made by `zeroed` and freed once. Its owner, a UMEM or a socket, deletes the libxdp object that points
        // to it before its own fields are dropped.
        drop(unsafe { Box::from_raw(self.0) });
    }
}

/// The fill and the completion ring of a socket.
struct UmemRings {
    fill: RingStruct<xdp::xsk_ring_prod>,
    completion: RingStruct<xdp::xsk_ring_cons>,
}

impl UmemRings {
    fn zeroed() -> UmemRings {
        UmemRings {
            fill: RingStruct::zeroed(),
            completion: RingStruct::zeroed(),
        }
    }
}

struct UmemInner {
    umem: *mut xdp::xsk_umem,
    /// Those that were made with the UMEM, until the first socket takes them. The lock also orders calls of libxdp on
    /// this UMEM, which is not made for several threads.
    first: Mutex<Option<UmemRings>>,
    // Last: the memory outlives the UMEM made of it.
    _memory: Shared,
}

// SAFETY: libxdp objects have no thread affinity; this one has one owner, and calls that change it are made under its
// lock.
unsafe impl Send for UmemInner {}
// SAFETY: see above; everything else only reads.
unsafe impl Sync for UmemInner {}

impl Drop for UmemInner {
    fn drop(&mut self) {
        // SAFETY: made by `Umem::new`; every socket held an Arc of this and is gone. libxdp reads the first rings'
        // structs here if no socket took them: the field is dropped after this.
        unsafe { xdp::xsk_umem__delete(self.umem) };
    }
}

/// Memory that AF_XDP sockets receive into. Several sockets can share it.
#[derive(Clone)]
pub struct Umem(Arc<UmemInner>);

impl Umem {
    /// Makes a UMEM of `memory`.
    pub fn new(setup: &UmemSetup, memory: Shared) -> io::Result<Umem> {
        let config = xdp::xsk_umem_config {
            fill_size: setup.fill_size,
            comp_size: COMPLETION_RING,
            frame_size: setup.frame_size,
            frame_headroom: setup.headroom,
            flags: 0,
        };
        let rings = UmemRings::zeroed();
        let mut umem = ptr::null_mut();
        retry_locking(|| {
            // A socket of libxdp's own would be inherited by the programs that this one starts, which then would hold
            // the queue after it was closed here.
            let fd = match setup.socket {
                Some(socket) => duplicate(socket)?,
                None => new_socket()?,
            }
            .into_raw_fd();
            // SAFETY: the memory is a live range that the UMEM keeps alive; the ring structs live as long as the UMEM;
            // the config is read during the call. The descriptor belongs to the UMEM from here on, and is closed with
            // it, or if making it fails: then nothing else of it is left either.
            negative(unsafe {
                xdp::xsk_umem__create_with_fd(
                    &mut umem,
                    fd,
                    memory.pointer(0).cast(),
                    memory.len() as u64,
                    rings.fill.0,
                    rings.completion.0,
                    &config,
                )
            })
        })?;
        Ok(Umem(Arc::new(UmemInner {
            umem,
            first: Mutex::new(Some(rings)),
            _memory: memory,
        })))
    }

    /// Binds a socket to a queue, without libxdp's default program. If another socket has the queue, this waits up to a
    /// second for it. If the first socket of a UMEM cannot be bound, the UMEM is of no more use: some kernels lose its
    /// rings.
    pub fn bind(&self, setup: &QueueSetup) -> io::Result<BoundQueue> {
        let ifname = name_buffer(&setup.ifname)?;
        // SAFETY: integers only; zero is a value of each.
        let mut config: xdp::xsk_socket_config = unsafe { std::mem::zeroed() };
        config.rx_size = setup.rx_size;
        config.__bindgen_anon_1.libxdp_flags = xdp::XSK_LIBXDP_FLAGS__INHIBIT_PROG_LOAD;
        config.xdp_flags = if setup.skb_mode { 1 << 1 } else { 1 << 2 };
        let copy = match setup.zero_copy {
            Some(true) => xdp::XDP_ZEROCOPY,
            Some(false) => xdp::XDP_COPY,
            None => 0,
        };
        config.bind_flags = (copy | xdp::XDP_USE_NEED_WAKEUP) as u16;
        let rx = RingStruct::zeroed();
        let mut first = self.0.first.lock();
        let further = first.is_none().then(UmemRings::zeroed);
        let rings = further.as_ref().or(first.as_ref());
        let rings = rings.expect("one of them is there");
        let mut socket = ptr::null_mut();
        let until = Instant::now() + BUSY_RETRY;
        loop {
            // SAFETY: the UMEM is alive and locked, and it and the ring structs live as long as the socket; no TX ring is
            // asked for. If binding fails, libxdp keeps no pointer to `rx` and to rings other than the UMEM's own, which
            // stay with the UMEM.
            let bound = negative(unsafe {
                xdp::xsk_socket__create_shared(
                    &mut socket,
                    ifname.as_ptr(),
                    setup.queue,
                    self.0.umem,
                    rx.0,
                    ptr::null_mut(),
                    rings.fill.0,
                    rings.completion.0,
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
        let fd = unsafe { xdp::xsk_socket__fd(socket) };
        let socket = Arc::new(Socket {
            socket,
            fd,
            rings: further.or_else(|| first.take()).expect("as above"),
            rx,
            umem: self.clone(),
        });
        drop(first);
        Ok(BoundQueue {
            queue: setup.queue,
            fill: FillQueue::new(socket.clone()),
            rx: RxQueue::new(socket.clone()),
            socket,
        })
    }
}

/// A socket that is bound to a queue, and its rings.
pub struct BoundQueue {
    pub queue: u32,
    pub socket: Arc<Socket>,
    pub fill: FillQueue,
    pub rx: RxQueue,
}

pub struct Socket {
    socket: *mut xdp::xsk_socket,
    fd: RawFd,
    // libxdp points to these until the socket is deleted.
    rings: UmemRings,
    rx: RingStruct<xdp::xsk_ring_cons>,
    umem: Umem,
}

// SAFETY: libxdp objects have no thread affinity. What takes &self makes system calls on the descriptor only; a ring is
// used through its one queue, which takes &mut self.
unsafe impl Send for Socket {}
// SAFETY: see above.
unsafe impl Sync for Socket {}

/// An interface's name in a buffer of the full size: libxdp copies that many bytes, however long the name is.
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

/// An AF_XDP socket that is not bound. Needs CAP_NET_RAW, and is the only step that does.
pub fn new_socket() -> io::Result<OwnedFd> {
    // SAFETY: no memory is passed; the result is a new descriptor or -1.
    let fd = unsafe { libc::socket(libc::AF_XDP, libc::SOCK_RAW | libc::SOCK_CLOEXEC, 0) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: just made, and owned by nobody else.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

impl Socket {
    /// Wakes the driver. The errno tells about the device: `ENETDOWN`, `ENXIO`.
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

impl AsRawFd for Socket {
    fn as_raw_fd(&self) -> RawFd {
        self.fd
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        let _one = self.umem.0.first.lock();
        // SAFETY: made by `bind`; its rings' structs and its UMEM are fields of self, dropped after this.
        unsafe { xdp::xsk_socket__delete(self.socket) };
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
