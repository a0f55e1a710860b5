//! The rings of a socket, a type for each. One thread at a time uses a ring.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use libxdp_sys as xdp;

use super::Socket;

/// A received packet: where it begins in the UMEM, and its bytes.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct RxDescriptor {
    pub addr: u64,
    pub len: u32,
}

/// Gives free frames to the kernel.
pub struct FillQueue {
    ring: *mut xdp::xsk_ring_prod,
    // The ring is mapped, and its struct lives, as long as the socket.
    _socket: Arc<Socket>,
}

// SAFETY: the ring has no thread affinity, and this is the one place that uses its struct.
unsafe impl Send for FillQueue {}

impl FillQueue {
    pub(super) fn new(socket: Arc<Socket>) -> FillQueue {
        FillQueue {
            ring: socket.rings.fill.0,
            _socket: socket,
        }
    }

    /// Room in the ring; asks the kernel's index only if fewer than `wanted` entries are known to be free.
    pub fn room(&mut self, wanted: u32) -> u32 {
        // SAFETY: the ring is mapped as long as the socket lives, which self holds.
        unsafe { xdp::xsk_prod_nb_free(self.ring, wanted) }
    }

    /// Gives frames to the kernel: all of `addresses`, or none if they do not fit.
    pub fn fill(&mut self, addresses: impl ExactSizeIterator<Item = u64>) -> bool {
        let count = addresses.len() as u32;
        let mut index = 0;
        // SAFETY: the ring is mapped as long as the socket lives; `reserve` gave `count` slots from `index`, masked by
        // libxdp.
        unsafe {
            if count == 0 || xdp::xsk_ring_prod__reserve(self.ring, count, &mut index) != count {
                return count == 0;
            }
            for (i, address) in addresses.take(count as usize).enumerate() {
                *xdp::xsk_ring_prod__fill_addr(self.ring, index.wrapping_add(i as u32)) = address;
            }
            xdp::xsk_ring_prod__submit(self.ring, count);
        }
        true
    }

    /// Whether the driver sleeps until it is told that the ring has frames again (`Socket::wake`).
    pub fn needs_wakeup(&self) -> bool {
        // SAFETY: the ring's flags are mapped as long as the socket lives.
        unsafe { xdp::xsk_ring_prod__needs_wakeup(self.ring) != 0 }
    }
}

/// Takes received packets from the kernel.
pub struct RxQueue {
    ring: *mut xdp::xsk_ring_cons,
    // As above.
    _socket: Arc<Socket>,
}

// SAFETY: as for FillQueue.
unsafe impl Send for RxQueue {}

impl RxQueue {
    pub(super) fn new(socket: Arc<Socket>) -> RxQueue {
        RxQueue {
            ring: socket.rx.0,
            _socket: socket,
        }
    }

    /// Takes received descriptors. The caller checks them before use.
    pub fn receive(&mut self, out: &mut [RxDescriptor]) -> usize {
        let mut index = 0;
        // SAFETY: the ring is mapped as long as the socket lives; indices come from libxdp and are masked by it; `peek`
        // never gives more than asked for.
        unsafe {
            let count = xdp::xsk_ring_cons__peek(self.ring, out.len() as u32, &mut index);
            for (i, slot) in out[..count as usize].iter_mut().enumerate() {
                let descriptor =
                    &*xdp::xsk_ring_cons__rx_desc(self.ring, index.wrapping_add(i as u32));
                *slot = RxDescriptor {
                    addr: descriptor.addr,
                    len: descriptor.len,
                };
            }
            if count > 0 {
                xdp::xsk_ring_cons__release(self.ring, count);
            }
            count as usize
        }
    }

    /// Descriptors that wait in the ring.
    pub fn pending(&mut self) -> u32 {
        // SAFETY: the ring is mapped as long as the socket lives; both words are aligned u32 of it.
        unsafe {
            let producer = (*(*self.ring).producer.cast::<AtomicU32>()).load(Ordering::Acquire);
            let consumer = (*(*self.ring).consumer.cast::<AtomicU32>()).load(Ordering::Relaxed);
            producer.wrapping_sub(consumer)
        }
    }
}
