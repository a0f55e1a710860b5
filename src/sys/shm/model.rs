//! A ring for loom: the same words and entries as in `shm`, in memory whose accesses loom orders in all ways that the
//! language allows. Entries are cells, so a data race is an error.

use std::sync::Arc;

use loom::cell::UnsafeCell;
use loom::sync::atomic::{AtomicU32, Ordering};

use super::super::abi::RING_NEED_WAKEUP;
use super::super::mmap::Mapping;
use super::Entry;

#[derive(Debug)]
struct Memory<T> {
    producer: AtomicU32,
    consumer: AtomicU32,
    flags: AtomicU32,
    entries: Vec<UnsafeCell<T>>,
}

// SAFETY: loom's cells check at run time what Sync promises: an access that races is reported.
unsafe impl<T: Send> Sync for Memory<T> {}

#[derive(Debug)]
pub struct SharedRing<T>(Arc<Memory<T>>);

impl<T> Clone for SharedRing<T> {
    fn clone(&self) -> Self {
        SharedRing(self.0.clone())
    }
}

impl<T: Entry> SharedRing<T> {
    /// The mapping and the offsets are ignored.
    pub fn new(_: &Arc<Mapping>, _: usize, _: usize, count: u32) -> Option<SharedRing<T>> {
        count
            .is_power_of_two()
            .then(|| SharedRing::modelled(count, 0))
    }

    /// A ring of `count` entries whose indices start at `start`.
    pub fn modelled(count: u32, start: u32) -> SharedRing<T> {
        SharedRing(Arc::new(Memory {
            producer: AtomicU32::new(start),
            consumer: AtomicU32::new(start),
            flags: AtomicU32::new(0),
            entries: (0..count).map(|_| UnsafeCell::new(T::default())).collect(),
        }))
    }

    pub fn initialize(&self) {}

    pub fn count(&self) -> u32 {
        self.0.entries.len() as u32
    }

    pub fn producer(&self) -> &AtomicU32 {
        &self.0.producer
    }

    pub fn consumer(&self) -> &AtomicU32 {
        &self.0.consumer
    }

    pub fn set_need_wakeup(&self, on: bool) {
        let flags = if on { RING_NEED_WAKEUP } else { 0 };
        self.0.flags.store(flags, Ordering::Relaxed);
    }

    pub fn need_wakeup(&self) -> bool {
        self.0.flags.load(Ordering::Relaxed) & RING_NEED_WAKEUP != 0
    }

    fn entry(&self, index: u32) -> &UnsafeCell<T> {
        &self.0.entries[(index & (self.count() - 1)) as usize]
    }

    pub fn read(&self, index: u32) -> T {
        // SAFETY: the cell is live, and loom reports a write that races with this read.
        self.entry(index).with(|entry| unsafe { entry.read() })
    }

    pub fn write(&self, index: u32, value: T) {
        // SAFETY: the cell is live, and loom reports any access that races with this write.
        self.entry(index)
            .with_mut(|entry| unsafe { entry.write(value) })
    }
}
