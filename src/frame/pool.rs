//! Free frames of one lane: a bitmap, worked on in words of 64 neighbouring frames.
//!
//! A bitmap rather than a ring: whoever gives frames back sets bits, only the RX thread takes them, and it takes them in
//! address order without sorting. So a run of packets lies in a run of frames, and any thread may give frames back.

#![forbid(unsafe_code)]

use std::ops::Range;

#[cfg(loom)]
use loom::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering, fence};
#[cfg(not(loom))]
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering, fence};

/// Frames that are given back together: those of one word at a time.
#[derive(Debug, Default)]
pub struct Freed {
    word: usize,
    mask: u64,
}

#[derive(Debug)]
pub struct FramePool {
    free: Box<[AtomicU64]>,
    count: u32,
    /// Set by the RX thread when it found no free frame. Whoever gives one back then wakes it.
    dry: AtomicBool,
    /// Words at the start whose frames are kept for runs.
    for_runs: AtomicU32,
}

impl FramePool {
    /// A pool in which all of `count` frames are free.
    pub fn full(count: u32) -> FramePool {
        let words = (count as usize).div_ceil(64);
        let free = (0..words).map(|word| {
            AtomicU64::new(match count as usize - word * 64 {
                64.. => u64::MAX,
                bits => (1 << bits) - 1,
            })
        });
        FramePool {
            free: free.collect(),
            count,
            dry: AtomicBool::new(false),
            for_runs: AtomicU32::new(0),
        }
    }

    /// From now on, runs come from the first `frames` frames as long as there are any, and single frames from the others. A run
    /// is written to and soon free again: in few frames, this stays in the processor's cache. RX thread only.
    pub fn keep_for_runs(&self, frames: u32) {
        self.for_runs
            .store(frames.min(self.count) / 64, Ordering::Relaxed);
    }

    /// The words of the frames that are kept for runs, and those of the others.
    fn parts(&self) -> (Range<usize>, Range<usize>) {
        let words = self.free.len();
        let kept = self.for_runs.load(Ordering::Relaxed) as usize;
        match kept < words {
            true => (0..kept, kept..words),
            false => (0..0, 0..words),
        }
    }

    /// Takes up to `out.len()` free frames in address order from `cursor` on, and returns how many. RX thread only.
    pub fn take(&self, cursor: &mut u32, out: &mut [u32]) -> usize {
        let (kept, others) = self.parts();
        let from = (*cursor as usize / 64).max(others.start);
        let from_bit = (*cursor).max(from as u32 * 64) % 64;
        let mut taken = 0;
        // The bits before the cursor in the first word come last.
        let first = std::iter::once((from, u64::MAX << from_bit));
        let rest = (from + 1..others.end).chain(others.start..from + 1);
        for (word, mask) in first.chain(rest.chain(kept).map(|word| (word, u64::MAX))) {
            if taken == out.len() {
                break;
            }
            let count = self.take_of(word, mask, &mut out[taken..]);
            if count > 0 {
                taken += count;
                *cursor = out[taken - 1] + 1;
            }
        }
        if *cursor >= self.count {
            *cursor = 0;
        }
        taken
    }

    /// Takes the free frames of a word that are in `mask`, as many as `out` has room for.
    fn take_of(&self, word: usize, mask: u64, out: &mut [u32]) -> usize {
        let mut bits = self.free[word].load(Ordering::Relaxed) & mask;
        let mut mask = 0u64;
        let mut taken = 0;
        while bits != 0 && taken < out.len() {
            let bit = bits.trailing_zeros();
            bits &= bits - 1;
            mask |= 1 << bit;
            out[taken] = word as u32 * 64 + bit;
            taken += 1;
        }
        if mask != 0 {
            // Acquire: pairs with `give_back`; whoever gave these frames back has finished with them.
            self.free[word].fetch_and(!mask, Ordering::Acquire);
        }
        taken
    }

    /// Takes neighbouring free frames from `cursor` on: `most` of them (at most 64) if there are so many together, else the
    /// first ones that are free. Returns the first and how many. RX thread only.
    pub fn take_run(&self, cursor: &mut u32, most: u32) -> Option<(u32, u32)> {
        let (kept, others) = self.parts();
        let from = *cursor as usize / 64;
        let within = |part: Range<usize>| {
            let from = if part.contains(&from) {
                from
            } else {
                part.start
            };
            (from..part.end).chain(part.start..from)
        };
        let mut found = None;
        for word in within(kept).chain(within(others)) {
            let bits = self.free[word].load(Ordering::Relaxed);
            if bits == 0 {
                continue;
            }
            let wide = (1..most).fold(bits, |wide, shift| wide & bits >> shift);
            let bit = if wide == 0 { bits } else { wide }.trailing_zeros();
            let count = (!(bits >> bit)).trailing_zeros().min(most);
            if wide != 0 {
                found = Some((word, bit, count));
                break;
            }
            found = found.or(Some((word, bit, count)));
        }
        let (word, bit, count) = found?;
        // Acquire: as in `take`.
        self.free[word].fetch_and(!(u64::MAX >> (64 - count) << bit), Ordering::Acquire);
        let first = word as u32 * 64 + bit;
        *cursor = (first + count) % self.count;
        Some((first, count))
    }

    /// Notes that a frame is to be given back. It is free after the next `give_back`, or before that.
    #[inline(always)]
    pub fn put(&self, frame: u32, freed: &mut Freed) {
        let word = frame as usize / 64;
        if word != freed.word {
            self.give_back(freed);
            freed.word = word;
        }
        freed.mask |= 1 << (frame % 64);
    }

    /// As `put`, for a run of neighbouring frames.
    pub fn put_run(&self, first: u32, count: u32, freed: &mut Freed) {
        let end = first + count;
        let mut at = first;
        while at < end {
            let here = (64 - at % 64).min(end - at);
            self.put(at, freed);
            freed.mask |= u64::MAX >> (64 - here) << (at % 64);
            at += here;
        }
    }

    /// Gives back the frames that were noted.
    pub fn give_back(&self, freed: &mut Freed) {
        let mask = std::mem::take(&mut freed.mask);
        if mask != 0 {
            // Release: everything that was done with the frames comes before they are free.
            self.free[freed.word].fetch_or(mask, Ordering::Release);
        }
    }

    /// The RX thread has found no free frame and wants to be woken. `true` if still none is free: the same protocol of
    /// store, fence and look as the need-wakeup flag of a ring.
    pub fn prepare_sleep(&self) -> bool {
        self.dry.store(true, Ordering::Relaxed);
        fence(Ordering::SeqCst);
        self.free
            .iter()
            .all(|word| word.load(Ordering::Relaxed) == 0)
    }

    pub fn awake(&self) {
        self.dry.store(false, Ordering::Relaxed);
    }

    /// After frames were given back: whether the RX thread sleeps because it has none. Once a batch.
    pub fn wants_wakeup(&self) -> bool {
        fence(Ordering::SeqCst);
        self.dry.load(Ordering::Relaxed)
    }
}
