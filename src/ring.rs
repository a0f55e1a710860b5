//! The AF_XDP style rings of the region: single producer, single consumer, free running u32 indices.
//!
//! An entry is written before its index is published with a release store, and read after that index was loaded with
//! acquire. Each side keeps its own index privately and looks at the other's only when its copy has run out. Indices
//! in shared memory are never trusted: a distance greater than the ring is an error, not a loop.
//!
//! **Need-wakeup.** The consumer that goes to sleep sets bit 0 of the ring's flags, issues a SeqCst fence, and looks
//! at the producer once more. The producer publishes, issues a SeqCst fence, and reads the flag. One of the two fences
//! comes first in the single total order: either the consumer sees the new index and stays awake, or the producer sees
//! the flag and rings. Without them both may read the old value (store buffering), and the wakeup is lost.

#![forbid(unsafe_code)]

#[cfg(loom)]
use loom::sync::atomic::{Ordering, fence};
#[cfg(not(loom))]
use std::sync::atomic::{Ordering, fence};

use crate::error::{Error, Result};
use crate::sys::shm::{Entry, SharedRing};

fn corrupt(which: &'static str, distance: u32, count: u32) -> Error {
    Error::new(
        libc::EBADMSG,
        format!(
            "{which} ring: its indices are {distance} apart, more than its {count} entries; \
             something outside the library wrote to the region; destroy the context"
        ),
    )
}

/// The side that fills a ring. Used by one thread at a time.
#[derive(Debug)]
pub struct Producer<T> {
    ring: SharedRing<T>,
    name: &'static str,
    /// Next index to write; published up to the last `publish`.
    tail: u32,
    /// The consumer's index when last looked at.
    consumer: u32,
}

impl<T: Entry> Producer<T> {
    /// Starts at the ring's current indices.
    pub fn new(ring: SharedRing<T>, name: &'static str) -> Self {
        let tail = ring.producer().load(Ordering::Relaxed);
        let consumer = ring.consumer().load(Ordering::Acquire);
        Producer {
            ring,
            name,
            tail,
            consumer,
        }
    }

    /// Entries that fit now. `EBADMSG` if the shared consumer index makes no sense.
    pub fn free(&mut self, wanted: u32) -> Result<u32> {
        let count = self.ring.count();
        let mut used = self.tail.wrapping_sub(self.consumer);
        if count - used < wanted {
            // Acquire: the consumer has read an entry before it frees its slot.
            let consumer = self.ring.consumer().load(Ordering::Acquire);
            used = self.tail.wrapping_sub(consumer);
            if used > count {
                return Err(corrupt(self.name, used, count));
            }
            self.consumer = consumer;
        }
        Ok(count - used)
    }

    /// Writes the next entry; `publish` makes it visible. `false` if the ring is full.
    #[inline(always)]
    pub fn push(&mut self, entry: T) -> Result<bool> {
        if self.free(1)? == 0 {
            return Ok(false);
        }
        self.ring.write(self.tail, entry);
        self.tail = self.tail.wrapping_add(1);
        Ok(true)
    }

    /// Makes pushed entries visible. Returns whether the consumer sleeps and must be woken.
    #[must_use]
    pub fn publish(&mut self) -> bool {
        // Release: the entries are written before the index that covers them.
        self.ring.producer().store(self.tail, Ordering::Release);
        // Orders that store before the load of the flag (see the head of this file).
        fence(Ordering::SeqCst);
        self.ring.need_wakeup()
    }

    /// The free running index of the next entry to be pushed.
    pub fn tail(&self) -> u32 {
        self.tail
    }
}

/// The side that empties a ring. Lives in one thread at a time.
#[derive(Debug)]
pub struct Consumer<T> {
    ring: SharedRing<T>,
    name: &'static str,
    /// Next index to read; freed up to the last `release`.
    head: u32,
    /// The producer's index when last looked at.
    producer: u32,
}

impl<T: Entry> Consumer<T> {
    /// Starts at the ring's current indices.
    pub fn new(ring: SharedRing<T>, name: &'static str) -> Self {
        let head = ring.consumer().load(Ordering::Relaxed);
        Consumer {
            ring,
            name,
            head,
            producer: head,
        }
    }

    /// Entries that can be taken now. `EBADMSG` if the shared producer index makes no sense.
    pub fn available(&mut self) -> Result<u32> {
        let known = self.producer.wrapping_sub(self.head);
        if known > 0 {
            return Ok(known);
        }
        // Acquire: pairs with the producer's release; its entries are there.
        let producer = self.ring.producer().load(Ordering::Acquire);
        let distance = producer.wrapping_sub(self.head);
        if distance > self.ring.count() {
            return Err(corrupt(self.name, distance, self.ring.count()));
        }
        self.producer = producer;
        Ok(distance)
    }

    /// A copy of the next entry. Its slot is freed by the next `release`.
    pub fn pop(&mut self) -> Result<Option<T>> {
        if self.available()? == 0 {
            return Ok(None);
        }
        let entry = self.ring.read(self.head);
        self.head = self.head.wrapping_add(1);
        Ok(Some(entry))
    }

    /// The free running index of the next entry to be popped.
    pub fn head(&self) -> u32 {
        self.head
    }

    /// Frees the slots of everything popped.
    pub fn release(&mut self) {
        // Release: the entries have been copied before their slots are handed back.
        self.ring.consumer().store(self.head, Ordering::Release);
    }

    /// Announces that this side goes to sleep. `true` if the ring is still empty, so that it may.
    pub fn prepare_sleep(&mut self) -> Result<bool> {
        self.ring.set_need_wakeup(true);
        // Orders the store of the flag before the load of the producer (see the head of this file).
        fence(Ordering::SeqCst);
        Ok(self.available()? == 0)
    }

    /// Announces that this side is awake: the producer need not wake it.
    pub fn awake(&mut self) {
        self.ring.set_need_wakeup(false);
    }

    pub fn wants_wakeup(&self) -> bool {
        self.ring.need_wakeup()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::Ordering;

    use super::*;
    use crate::sys::abi::UnifiedCqe;
    use crate::sys::mmap::Mapping;

    fn ring(count: u32, start: u32) -> SharedRing<UnifiedCqe> {
        let mapping = Arc::new(Mapping::anonymous(64 * 1024, false).unwrap());
        let ring = SharedRing::new(&mapping, 64, 128, count).unwrap();
        ring.initialize();
        ring.producer().store(start, Ordering::Relaxed);
        ring.consumer().store(start, Ordering::Relaxed);
        ring
    }

    fn entry(user_data: u64) -> UnifiedCqe {
        UnifiedCqe {
            user_data,
            ..UnifiedCqe::default()
        }
    }

    proptest::proptest! {
        /// Any sequence of pushes and pops behaves as a bounded queue, also across the wrap of u32.
        #[test]
        fn a_ring_is_a_bounded_queue(
            shift in 0u32..9,
            start in proptest::prelude::prop_oneof![proptest::prelude::any::<u32>(), u32::MAX - 300..=u32::MAX],
            steps in proptest::collection::vec((proptest::prelude::any::<bool>(), 1u32..40), 1..100),
        ) {
            let count = 1 << shift;
            let ring = ring(count, start);
            let mut producer = Producer::new(ring.clone(), "test");
            let mut consumer = Consumer::new(ring, "test");
            let mut model = std::collections::VecDeque::new();
            let mut next = 0u64;
            for (push, times) in steps {
                for _ in 0..times {
                    if push {
                        let fits = producer.push(entry(next)).unwrap();
                        proptest::prop_assert_eq!(fits, model.len() < count as usize);
                        if fits {
                            model.push_back(next);
                            next += 1;
                        }
                        let _ = producer.publish();
                    } else {
                        let got = consumer.pop().unwrap().map(|e| e.user_data);
                        proptest::prop_assert_eq!(got, model.pop_front());
                        consumer.release();
                    }
                }
            }
        }
    }

    #[test]
    fn a_wild_index_is_an_error_and_not_a_loop() {
        let shared = ring(8, 0);
        let mut consumer = Consumer::new(shared.clone(), "SQ");
        shared.producer().store(9, Ordering::Release);
        let error = consumer.pop().unwrap_err();
        assert_eq!(error.errno(), libc::EBADMSG);
        assert!(error.message().contains("SQ ring"), "{error}");

        let shared = ring(8, 0);
        let mut producer = Producer::new(shared.clone(), "CQ");
        for i in 0..8 {
            assert!(producer.push(entry(i)).unwrap());
        }
        shared.consumer().store(u32::MAX - 7, Ordering::Release);
        assert_eq!(producer.push(entry(8)).unwrap_err().errno(), libc::EBADMSG);
    }

    #[test]
    fn nothing_is_visible_before_publish_and_the_sleeper_is_rung() {
        let shared = ring(8, 5);
        let mut producer = Producer::new(shared.clone(), "test");
        let mut consumer = Consumer::new(shared, "test");
        assert!(producer.push(entry(1)).unwrap());
        assert!(consumer.pop().unwrap().is_none());
        assert!(!producer.publish(), "nobody sleeps yet");
        assert!(!consumer.prepare_sleep().unwrap(), "an entry is there");
        assert_eq!(consumer.pop().unwrap().unwrap().user_data, 1);
        assert!(consumer.prepare_sleep().unwrap());
        assert!(producer.push(entry(2)).unwrap());
        assert!(producer.publish(), "the sleeper must be rung");
        consumer.awake();
        assert!(producer.push(entry(3)).unwrap());
        assert!(!producer.publish());
    }

    #[test]
    fn two_threads_pass_a_million_entries_in_order() {
        let shared = ring(64, u32::MAX - 1000);
        let mut producer = Producer::new(shared.clone(), "test");
        let mut consumer = Consumer::new(shared, "test");
        const TOTAL: u64 = 1_000_000;
        std::thread::scope(|scope| {
            scope.spawn(move || {
                let mut next = 0;
                while next < TOTAL {
                    if producer.push(entry(next)).unwrap() {
                        next += 1;
                        let _ = producer.publish();
                    } else {
                        std::thread::yield_now();
                    }
                }
            });
            let mut expected = 0;
            while expected < TOTAL {
                match consumer.pop().unwrap() {
                    Some(got) => {
                        assert_eq!(got.user_data, expected);
                        expected += 1;
                        consumer.release();
                    }
                    None => std::thread::yield_now(),
                }
            }
        });
    }
}
