//! Memory that others write to at the same time. Every access to the region goes through here.
//!
//! A program, the kernel, a NIC and a drive write into the region at any time, so there is no `&[u8]`
//! or `&mut [u8]` of it anywhere in the library except for the packet pointers handed to C. Indices are
//! atomics; entries and bytes are copied in and out, each exactly once.

use std::sync::Arc;
#[cfg(not(loom))]
use std::sync::atomic::{AtomicU32, Ordering};

#[cfg(not(loom))]
use super::abi::{RING_NEED_WAKEUP, UnifiedRing};
use super::abi::{UnifiedCqe, UnifiedSqe};
use super::crc::crc32c;
use super::mmap::Mapping;

/// A range inside a mapping, which it keeps alive. Checked once, when made.
#[derive(Debug, Clone)]
pub struct Shared {
    mapping: Arc<Mapping>,
    offset: usize,
    len: usize,
}

impl Shared {
    /// `None` if `offset..offset + len` is not inside the mapping.
    pub fn new(mapping: Arc<Mapping>, offset: usize, len: usize) -> Option<Shared> {
        let end = offset.checked_add(len)?;
        (end <= mapping.len()).then_some(Shared {
            mapping,
            offset,
            len,
        })
    }

    pub fn len(&self) -> usize {
        self.len
    }

    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The address of its first byte in this process.
    pub fn address(&self) -> usize {
        self.mapping.address() + self.offset
    }

    /// A raw pointer to byte `at`; `at <= len`. Creating it is safe; only the unsafe rooms may use it.
    pub fn pointer(&self, at: usize) -> *mut u8 {
        assert!(at <= self.len, "byte {at} of {} shared bytes", self.len);
        self.mapping.base().wrapping_add(self.offset + at)
    }

    fn contains(&self, at: usize, len: usize) -> bool {
        at.checked_add(len).is_some_and(|end| end <= self.len)
    }

    /// Copies bytes out. Panics on a range outside. (Callers check their ranges; this is the last check.)
    pub fn read(&self, at: usize, to: &mut [u8]) {
        assert!(self.contains(at, to.len()));
        // SAFETY: the source range was just checked to be inside a live mapping, `to` is ours alone, and
        // a mapping never overlaps a Rust allocation. The bytes may change while they are copied; plain
        // bytes have no invalid values.
        unsafe { std::ptr::copy_nonoverlapping(self.pointer(at), to.as_mut_ptr(), to.len()) }
    }

    /// Copies bytes in. Panics on a range outside.
    pub fn write(&self, at: usize, from: &[u8]) {
        assert!(self.contains(at, from.len()));
        // SAFETY: as in `read`, the other way round.
        unsafe { std::ptr::copy_nonoverlapping(from.as_ptr(), self.pointer(at), from.len()) }
    }

    /// Writes words in little-endian order. Panics on a range outside.
    #[inline(always)]
    pub fn write_words<const N: usize>(&self, at: usize, words: &[u64; N]) {
        assert!(self.contains(at, N * 8));
        for (place, word) in words.iter().enumerate() {
            // SAFETY: inside the range that was just checked to be inside a live mapping; it need not be aligned.
            unsafe {
                self.pointer(at + place * 8)
                    .cast::<u64>()
                    .write_unaligned(word.to_le());
            }
        }
    }

    /// Zeroes bytes. Panics on a range outside.
    pub fn zero(&self, at: usize, len: usize) {
        assert!(self.contains(at, len));
        // SAFETY: the range was just checked to be inside a live mapping.
        unsafe { std::ptr::write_bytes(self.pointer(at), 0, len) }
    }

    /// Copies between two shared ranges, which may be the same mapping. Panics on a range outside.
    pub fn copy_to(&self, at: usize, to: &Shared, to_at: usize, len: usize) {
        assert!(self.contains(at, len) && to.contains(to_at, len));
        // SAFETY: both ranges were just checked; `copy` allows them to overlap.
        unsafe { std::ptr::copy(self.pointer(at), to.pointer(to_at), len) }
    }

    /// Asks for the cache line of a byte, which will be read soon. Nothing happens if it lies outside.
    #[inline(always)]
    pub fn prefetch(&self, at: usize) {
        if at < self.len {
            let pointer = self.pointer(at);
            #[cfg(target_arch = "x86_64")]
            // SAFETY: a prefetch is a hint that touches no memory and never faults; SSE is part of x86_64.
            unsafe {
                use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
                _mm_prefetch::<_MM_HINT_T0>(pointer.cast_const().cast());
            }
            #[cfg(target_arch = "aarch64")]
            // SAFETY: as above; `prfm` is part of every aarch64.
            unsafe {
                std::arch::asm!("prfm pldl1keep, [{}]", in(reg) pointer, options(nostack, readonly));
            }
            #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
            let _ = pointer;
        }
    }

    /// CRC32C of bytes, read where they are. Panics on a range outside. Whoever calls it holds the bytes: if somebody
    /// writes to them all the same, the sum is of old or new ones, or of both.
    pub fn crc32c(&self, at: usize, len: usize) -> u32 {
        assert!(self.contains(at, len));
        // SAFETY: the range was just checked to be inside a live mapping, and bytes have no invalid values. By the
        // contract above nobody writes to them while the slice lives, which is this call.
        let bytes = unsafe { std::slice::from_raw_parts(self.pointer(at), len) };
        crc32c(bytes)
    }

    /// Whether two shared ranges hold the same bytes (at this moment).
    pub fn equal(&self, at: usize, other: &Shared, other_at: usize, len: usize) -> bool {
        assert!(self.contains(at, len) && other.contains(other_at, len));
        // SAFETY: both ranges were just checked; memcmp reads bytes and makes no claim about them.
        unsafe { libc::memcmp(self.pointer(at).cast(), other.pointer(other_at).cast(), len) == 0 }
    }
}

/// An entry type of a ring: plain bytes, any bit pattern valid.
///
/// # Safety
/// The type must be `repr(C)`, `Copy`, without padding, and valid for every bit pattern.
pub unsafe trait Entry: Copy + Default {}
// SAFETY: repr(C) integers only; sizes asserted in abi.rs leave no room for padding.
unsafe impl Entry for UnifiedSqe {}
// SAFETY: as above.
unsafe impl Entry for UnifiedCqe {}

#[cfg(loom)]
mod model;
#[cfg(loom)]
pub use model::SharedRing;

/// One ring of the region: its shared indices and its entries.
///
/// The number of entries comes from the library's layout, never from shared memory.
#[cfg(not(loom))]
#[derive(Debug, Clone)]
pub struct SharedRing<T> {
    indices: Shared,
    entries: Shared,
    mask: u32,
    marker: std::marker::PhantomData<T>,
}

#[cfg(not(loom))]
impl<T: Entry> SharedRing<T> {
    /// `count` is a power of two; `None` if the ring is misaligned or does not fit.
    pub fn new(
        mapping: &Arc<Mapping>,
        indices: usize,
        entries: usize,
        count: u32,
    ) -> Option<SharedRing<T>> {
        if !count.is_power_of_two() || !indices.is_multiple_of(8) || !entries.is_multiple_of(8) {
            return None;
        }
        Some(SharedRing {
            indices: Shared::new(mapping.clone(), indices, size_of::<UnifiedRing>())?,
            entries: Shared::new(mapping.clone(), entries, count as usize * size_of::<T>())?,
            mask: count - 1,
            marker: std::marker::PhantomData,
        })
    }

    /// Writes the ring's constants and zeroes its indices. Before anybody else reads them.
    pub fn initialize(&self) {
        let count = self.mask + 1;
        let ring = UnifiedRing {
            ring_entries: count,
            ring_mask: u64::from(self.mask),
            ring_size: u64::from(count) * size_of::<T>() as u64,
            ..UnifiedRing::default()
        };
        // SAFETY: `indices` is a checked, 8-byte aligned range of 40 bytes in a live mapping.
        unsafe { self.indices.pointer(0).cast::<UnifiedRing>().write(ring) }
    }

    pub fn count(&self) -> u32 {
        self.mask + 1
    }

    fn word(&self, at: usize) -> &AtomicU32 {
        debug_assert!(at + 4 <= size_of::<UnifiedRing>());
        // SAFETY: inside the checked `indices`, 4-byte aligned, alive as long as self (Arc), and no
        // non-atomic access to the index words is made after `initialize`.
        unsafe { &*self.indices.pointer(at).cast::<AtomicU32>() }
    }

    pub fn producer(&self) -> &AtomicU32 {
        self.word(0)
    }

    pub fn consumer(&self) -> &AtomicU32 {
        self.word(4)
    }

    fn flags(&self) -> &AtomicU32 {
        self.word(16)
    }

    /// Sets or clears the consumer's need-wakeup flag.
    pub fn set_need_wakeup(&self, on: bool) {
        let flags = if on { RING_NEED_WAKEUP } else { 0 };
        self.flags().store(flags, Ordering::Relaxed);
    }

    pub fn need_wakeup(&self) -> bool {
        self.flags().load(Ordering::Relaxed) & RING_NEED_WAKEUP != 0
    }

    /// A copy of the entry at a free running index.
    pub fn read(&self, index: u32) -> T {
        let at = (index & self.mask) as usize * size_of::<T>();
        // SAFETY: masked, so inside `entries`; entries are 8-byte aligned and valid for every bit
        // pattern (Entry). Volatile: the copy is taken once, here, whatever the program does meanwhile.
        unsafe { self.entries.pointer(at).cast::<T>().read_volatile() }
    }

    /// Writes the entry at a free running index.
    pub fn write(&self, index: u32, entry: T) {
        let at = (index & self.mask) as usize * size_of::<T>();
        // SAFETY: as in `read`.
        unsafe { self.entries.pointer(at).cast::<T>().write_volatile(entry) }
    }
}
