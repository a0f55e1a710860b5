//! Latencies: histograms of a fixed size, each written by one thread and read by any.
//!
//! A bucket is a fifth to a quarter of its own upper bound wide: four buckets to each power of two, from 1 us to
//! 67 s. Recording is a few plain loads and stores; nothing is allocated, and no bucket ever grows or moves.

#![forbid(unsafe_code)]

use std::fmt;
use std::ops::AddAssign;
use std::sync::atomic::{AtomicU64, Ordering};

/// Buckets: four of a microsecond each, four for every further power of two, and one for what took longer.
pub const BUCKETS: usize = 4 + 24 * 4 + 1;
const NS_PER_US: u64 = 1000;

/// Which bucket holds `ns`. A bucket's upper bound belongs to it.
fn bucket(ns: u64) -> usize {
    let us = ns.saturating_sub(1) / NS_PER_US;
    if us < 4 {
        return us as usize;
    }
    let power = us.ilog2() as usize;
    let quarter = (us >> (power - 2)) as usize & 3;
    ((power - 1) * 4 + quarter).min(BUCKETS - 1)
}

/// The longest time that bucket `index` holds, in ns; `None` for the last one and beyond.
pub fn bound(index: usize) -> Option<u64> {
    let us = match index {
        0..4 => index as u64 + 1,
        4.. if index < BUCKETS - 1 => (5 + index as u64 % 4) << (index / 4 - 1),
        _ => return None,
    };
    Some(us * NS_PER_US)
}

/// Written by one thread at a time, whose turns are ordered by the lock of its role; or by many (`record_among_others`).
#[derive(Debug)]
pub struct Histogram {
    buckets: [AtomicU64; BUCKETS],
    sum: AtomicU64,
    max: AtomicU64,
}

impl Default for Histogram {
    fn default() -> Histogram {
        Histogram {
            buckets: [const { AtomicU64::new(0) }; BUCKETS],
            sum: AtomicU64::new(0),
            max: AtomicU64::new(0),
        }
    }
}

impl Histogram {
    /// `count` times the same.
    pub fn record(&self, ns: u64, count: u64) {
        // One writer: no bus lock is needed.
        let add = |to: &AtomicU64, n: u64| {
            to.store(
                to.load(Ordering::Relaxed).wrapping_add(n),
                Ordering::Relaxed,
            );
        };
        add(&self.buckets[bucket(ns)], count);
        add(&self.sum, ns.wrapping_mul(count));
        if ns > self.max.load(Ordering::Relaxed) {
            self.max.store(ns, Ordering::Relaxed);
        }
    }

    /// As `record`, for a histogram that many threads write to, all of them with this function.
    pub fn record_among_others(&self, ns: u64, count: u64) {
        self.buckets[bucket(ns)].fetch_add(count, Ordering::Relaxed);
        self.sum
            .fetch_add(ns.wrapping_mul(count), Ordering::Relaxed);
        self.max.fetch_max(ns, Ordering::Relaxed);
    }

    pub fn snapshot(&self) -> Latency {
        let mut latency = Latency {
            sum: self.sum.load(Ordering::Relaxed),
            max: self.max.load(Ordering::Relaxed),
            ..Latency::default()
        };
        for (to, from) in latency.buckets.iter_mut().zip(&self.buckets) {
            *to = from.load(Ordering::Relaxed);
        }
        latency
    }
}

/// A snapshot of a histogram.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Latency {
    pub buckets: [u64; BUCKETS],
    /// ns
    pub sum: u64,
    pub max: u64,
}

impl Default for Latency {
    fn default() -> Latency {
        Latency {
            buckets: [0; BUCKETS],
            sum: 0,
            max: 0,
        }
    }
}

impl Latency {
    pub fn count(&self) -> u64 {
        self.buckets.iter().sum()
    }

    /// The quantile `0 < q <= 1` in ns: the bound of its bucket, or the longest time if that is less. 0 if nothing was
    /// recorded.
    pub fn quantile(&self, q: f64) -> u64 {
        let rank = ((q.clamp(0.0, 1.0) * self.count() as f64).ceil() as u64).max(1);
        let mut seen = 0;
        for (index, count) in self.buckets.iter().enumerate() {
            seen += count;
            if seen >= rank {
                return bound(index).map_or(self.max, |ns| ns.min(self.max));
            }
        }
        0
    }
}

impl AddAssign<&Latency> for Latency {
    fn add_assign(&mut self, other: &Latency) {
        for (to, from) in self.buckets.iter_mut().zip(&other.buckets) {
            *to += from;
        }
        self.sum = self.sum.wrapping_add(other.sum);
        self.max = self.max.max(other.max);
    }
}

impl fmt::Debug for Latency {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} times, {} ns together, {} ns at the most",
            self.count(),
            self.sum,
            self.max
        )
    }
}

/// When the entries of a ring were submitted: one value for each entry, outside the region. The ring's producer writes
/// them, and the ring's own ordering makes them visible.
#[derive(Debug, Default)]
pub struct Stamps(Box<[AtomicU64]>);

impl Stamps {
    /// For a ring of so many entries, a power of two; none if times are not kept.
    pub fn new(entries: u32) -> Stamps {
        Stamps((0..entries).map(|_| AtomicU64::new(0)).collect())
    }

    fn at(&self, index: u32) -> Option<&AtomicU64> {
        self.0.get(index as usize & self.0.len().wrapping_sub(1))
    }

    pub fn set(&self, index: u32, ns: u64) {
        if let Some(stamp) = self.at(index) {
            stamp.store(ns, Ordering::Relaxed);
        }
    }

    /// 0 if times are not kept.
    pub fn get(&self, index: u32) -> u64 {
        self.at(index)
            .map_or(0, |stamp| stamp.load(Ordering::Relaxed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bound_is_the_last_time_of_its_bucket() {
        assert_eq!(bound(0), Some(1_000));
        assert_eq!(bound(BUCKETS - 2), Some((1 << 26) * 1_000), "67 s");
        assert_eq!(bound(BUCKETS - 1), None);
        let mut before = 0;
        for index in 0..BUCKETS - 1 {
            let ns = bound(index).unwrap();
            assert!(ns > before, "{index}");
            assert_eq!((bucket(ns), bucket(before + 1)), (index, index), "{ns}");
            assert!(index < 4 || (ns - before) * 4 <= before, "{index} is wide");
            before = ns;
        }
        assert_eq!((bucket(0), bucket(before + 1)), (0, BUCKETS - 1));
        assert_eq!(bucket(u64::MAX), BUCKETS - 1);
    }

    #[test]
    fn what_is_recorded_is_counted_summed_and_ranked() {
        let histogram = Histogram::default();
        assert_eq!(histogram.snapshot().quantile(0.99), 0);
        histogram.record(10_000, 98);
        histogram.record(10_000, 1);
        histogram.record(1_000_000, 1);
        let latency = histogram.snapshot();
        assert_eq!(
            (latency.count(), latency.sum),
            (100, 99 * 10_000 + 1_000_000)
        );
        assert_eq!((latency.max, latency.quantile(0.5)), (1_000_000, 10_000));
        assert_eq!(latency.quantile(0.99), 10_000);
        assert_eq!(latency.quantile(0.999), 1_000_000, "not its bucket's bound");
        histogram.record(100_000_000_000, 1);
        assert_eq!(histogram.snapshot().quantile(1.0), 100_000_000_000);
    }

    #[test]
    fn stamps_go_round_with_their_ring() {
        let stamps = Stamps::new(4);
        for index in [0, 3, u32::MAX] {
            stamps.set(index, u64::from(index) + 1);
        }
        assert_eq!((stamps.get(4), stamps.get(7)), (1, 1 << 32));
        let none = Stamps::default();
        none.set(5, 1);
        assert_eq!(none.get(5), 0);
    }
}
