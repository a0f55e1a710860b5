//! Free frames of one lane: a bitmap, worked on in words of 64 neighbouring frames.
//!
//! A bitmap rather than a ring: whoever gives frames back sets bits, only the RX thread takes them, and it takes them in
//! address order without sorting. So a run of packets lies in a run of frames, and any thread may give frames back.

#![forbid(unsafe_code)]

#[cfg(loom)]
use loom::sync::atomic::{AtomicBool, AtomicU64, Ordering, fence};
#[cfg(not(loom))]
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering, fence};

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
        }
    }

    /// Takes up to `out.len()` free frames in address order from `cursor` on, and returns how many. RX thread only.
    pub fn take(&self, cursor: &mut u32, out: &mut [u32]) -> usize {
        let words = self.free.len();
        let mut taken = 0;
        let mut word = (*cursor as usize / 64) % words.max(1);
        let mut from_bit = *cursor % 64;
        // One word more than there are: the bits before the cursor in the first word come last.
        for _ in 0..=words {
            if taken == out.len() {
                break;
            }
            let mut bits = self.free[word].load(Ordering::Relaxed) & (u64::MAX << from_bit);
            let mut mask = 0u64;
            while bits != 0 && taken < out.len() {
                let bit = bits.trailing_zeros();
                bits &= bits - 1;
                mask |= 1 << bit;
                out[taken] = word as u32 * 64 + bit;
                taken += 1;
                *cursor = out[taken - 1] + 1;
            }
            if mask != 0 {
                // Acquire: pairs with `give_back`; whoever gave these frames back has finished with them.
                self.free[word].fetch_and(!mask, Ordering::Acquire);
            }
            from_bit = 0;
            word = (word + 1) % words;
        }
        if *cursor >= self.count {
            *cursor = 0;
        }
        taken
    }

    /// Takes neighbouring free frames from `cursor` on: `most` of them (at most 64) if there are so many together, else the
    /// first ones that are free. Returns the first and how many. RX thread only.
    pub fn take_run(&self, cursor: &mut u32, most: u32) -> Option<(u32, u32)> {
        let words = self.free.len();
        let from = *cursor as usize / 64;
        let mut found = None;
        for place in 0..words {
            let word = (from + place) % words;
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
