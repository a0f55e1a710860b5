//! Free frames: a bitmap of all of them, worked on in blocks of 64 neighbouring frames.
//!
//! A bitmap rather than a ring: whoever gives frames back sets bits, only the RX thread of a lane takes them, and it takes
//! them in address order without sorting. So a run of packets lies in a run of frames, and any thread may give frames back.
//!
//! A block belongs to one lane or to the reserve, in which all blocks are free as a whole. A lane that needs frames takes a
//! block out of the reserve; it never takes one from another lane. A block whose 64 frames are all free goes to the
//! reserve if its lane is idle, or if the reserve is empty. A context of one lane has no reserve: all blocks are that lane's.

#![forbid(unsafe_code)]

use std::ops::Range;

#[cfg(loom)]
use loom::sync::{
    Arc,
    atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, Ordering, fence},
};
#[cfg(not(loom))]
use std::sync::{
    Arc,
    atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, Ordering, fence},
};

/// Most lanes that can share frames.
pub const MAX_LANES: u32 = 64;
/// The owner of a block that no lane has.
const RESERVE: u8 = u8::MAX;
/// Frames of a block.
const BLOCK: u32 = 64;
/// Whole blocks that a busy lane keeps when another one needs some.
pub(super) const KEPT: usize = 4;

/// Frames that are given back together: those of one block at a time.
#[derive(Debug, Default)]
pub struct Freed {
    block: usize,
    mask: u64,
    /// A bit for each lane that was given some back.
    pub lanes: u64,
}

/// The free frames of all lanes.
#[derive(Debug)]
struct Blocks {
    /// Of each block, a bit for each frame that is free and that a lane has.
    free: Box<[AtomicU64]>,
    owners: Box<[AtomicU8]>,
    count: u32,
    /// Blocks of the reserve.
    reserve: AtomicU32,
    /// A bit for each lane whose RX thread found no free frame. Whoever gives one back then wakes it.
    dry: AtomicU64,
    /// A bit for each lane that keeps no blocks it does not need.
    idle: AtomicU64,
    /// A lane found the reserve empty: others give up what they keep beyond a few blocks.
    wanting: AtomicBool,
}

impl Blocks {
    /// All in the reserve, or all of lane 0.
    fn new(count: u32, reserve: bool) -> Blocks {
        let len = count.div_ceil(BLOCK);
        let mut blocks = Blocks {
            free: Box::default(),
            owners: (0..len)
                .map(|_| AtomicU8::new(if reserve { RESERVE } else { 0 }))
                .collect(),
            count,
            reserve: AtomicU32::new(if reserve { len } else { 0 }),
            dry: AtomicU64::new(0),
            idle: AtomicU64::new(0),
            wanting: AtomicBool::new(false),
        };
        let bits = |block| match reserve {
            true => 0,
            false => blocks.whole(block),
        };
        blocks.free = (0..len as usize)
            .map(|block| AtomicU64::new(bits(block)))
            .collect();
        blocks
    }

    /// What a block is when all of its frames are free. The last one may be shorter than the others.
    fn whole(&self, block: usize) -> u64 {
        match self.count as usize - block * BLOCK as usize {
            64.. => u64::MAX,
            bits => (1 << bits) - 1,
        }
    }

    /// Moves a block to the reserve, if all of its frames are free.
    fn surrender(&self, block: usize) {
        // AcqRel: whoever gave its last frame back has finished with it, and so has the thread here. Who has all 64 bits
        // is alone with the block.
        let whole = self.free[block].compare_exchange(
            self.whole(block),
            0,
            Ordering::AcqRel,
            Ordering::Relaxed,
        );
        if whole.is_ok() {
            self.owners[block].store(RESERVE, Ordering::Release);
            self.reserve.fetch_add(1, Ordering::Release);
        }
    }

    /// Takes a block out of the reserve for a lane: the first from `from` on.
    fn claim(&self, lane: u8, from: usize) -> Option<usize> {
        if self.reserve.load(Ordering::Acquire) == 0 {
            return None;
        }
        let from = from.min(self.owners.len());
        for block in (from..self.owners.len()).chain(0..from) {
            let owner = &self.owners[block];
            if owner.load(Ordering::Relaxed) == RESERVE
                && owner
                    .compare_exchange(RESERVE, lane, Ordering::Acquire, Ordering::Relaxed)
                    .is_ok()
            {
                self.reserve.fetch_sub(1, Ordering::Relaxed);
                // Nobody else has a frame of it. Release: a thread that takes some because it believes to be the owner sees
                // the new one (`take_bits`).
                self.free[block].fetch_or(self.whole(block), Ordering::Release);
                return Some(block);
            }
        }
        None
    }
}

/// The free frames of a lane, and its way to those of the reserve.
#[derive(Debug)]
pub struct FramePool {
    blocks: Arc<Blocks>,
    lane: u8,
    shared: bool,
    first: u32,
    share: u32,
    /// Blocks at the start whose frames are kept for runs.
    for_runs: AtomicU32,
    /// Lanes that were given frames outside of a batch.
    owed: AtomicU64,
}

impl FramePool {
    /// The pool of a context's only lane: all of `count` frames are free in it.
    pub fn alone(count: u32) -> FramePool {
        FramePool::new(Blocks::new(count, false).into(), 0, 1)
    }

    fn new(blocks: Arc<Blocks>, lane: u8, lanes: u32) -> FramePool {
        FramePool {
            first: u32::from(lane) * (blocks.free.len() as u32 / lanes) * BLOCK,
            share: match lanes {
                1 => blocks.count,
                _ => blocks.count / BLOCK / lanes * BLOCK,
            },
            blocks,
            lane,
            shared: lanes > 1,
            for_runs: AtomicU32::new(0),
            owed: AtomicU64::new(0),
        }
    }

    /// A pool for each of `lanes` lanes, 1 to `MAX_LANES`. If it is one, it has all of the `count` frames; otherwise all are in
    /// the reserve.
    pub fn of_lanes(count: u32, lanes: u32) -> Vec<FramePool> {
        debug_assert!((1..=MAX_LANES).contains(&lanes));
        if lanes == 1 {
            return vec![FramePool::alone(count)];
        }
        let blocks = Arc::new(Blocks::new(count, true));
        let pool = |lane| FramePool::new(blocks.clone(), lane, lanes);
        (0..lanes as u8).map(pool).collect()
    }

    /// Frames of each lane, if all have as many: whole blocks of them, if there are several lanes.
    pub fn share_of_each(&self) -> u32 {
        self.share
    }

    /// Whether other lanes take frames from the same reserve.
    pub fn is_shared(&self) -> bool {
        self.shared
    }

    /// Where this lane begins to take frames: as far from where the others begin as possible.
    pub fn first_cursor(&self) -> u32 {
        self.first
    }

    /// The lane that a frame belongs to; `None` if it is in the reserve, or does not exist. It stays that of a frame that is
    /// not free.
    pub fn owner(&self, frame: u32) -> Option<u32> {
        let owner = self.blocks.owners.get((frame / BLOCK) as usize)?;
        match owner.load(Ordering::Relaxed) {
            RESERVE => None,
            lane => Some(lane.into()),
        }
    }

    /// Whether a frame belongs to this lane.
    pub fn owns_frame(&self, frame: u32) -> bool {
        self.owner(frame) == Some(self.lane.into())
    }

    fn owns(&self, block: usize) -> bool {
        !self.shared || self.blocks.owners[block].load(Ordering::Relaxed) == self.lane
    }

    /// Frames in the reserve. Exact only at a quiet moment.
    pub fn in_reserve(&self) -> u32 {
        let owners = self.blocks.owners.iter().enumerate();
        let reserved = owners.filter(|(_, owner)| owner.load(Ordering::Relaxed) == RESERVE);
        reserved
            .map(|(block, _)| self.blocks.whole(block).count_ones())
            .sum()
    }

    /// From now on, runs come from the first `frames` frames as long as there are any, and single frames from the others. A run
    /// is written to and soon free again: in few frames, this stays in the processor's cache. A lane among others has no
    /// first frames, and takes both from wherever it has some. RX thread only.
    pub fn keep_for_runs(&self, frames: u32) {
        if !self.shared {
            let blocks = frames.min(self.blocks.count) / BLOCK;
            self.for_runs.store(blocks, Ordering::Relaxed);
        }
    }

    /// The blocks of the frames that are kept for runs, and those of the others.
    fn parts(&self) -> (Range<usize>, Range<usize>) {
        let blocks = self.blocks.free.len();
        let kept = self.for_runs.load(Ordering::Relaxed) as usize;
        match kept < blocks {
            true => (0..kept, kept..blocks),
            false => (0..0, 0..blocks),
        }
    }

    /// Takes up to `out.len()` free frames in address order from `cursor` on, and returns how many. RX thread only.
    pub fn take(&self, cursor: &mut u32, out: &mut [u32]) -> usize {
        let (kept, others) = self.parts();
        let from = (*cursor as usize / 64).max(others.start);
        let from_bit = (*cursor).max(from as u32 * BLOCK) % BLOCK;
        let mut taken = 0;
        // The bits before the cursor in the first block come last.
        let first = std::iter::once((from, u64::MAX << from_bit));
        let rest = (from + 1..others.end).chain(others.start..from + 1);
        for (block, mask) in first.chain(rest.chain(kept).map(|block| (block, u64::MAX))) {
            if taken == out.len() {
                break;
            }
            if !self.owns(block) {
                continue;
            }
            let count = self.take_of(block, mask, &mut out[taken..]);
            if count > 0 {
                taken += count;
                *cursor = out[taken - 1] + 1;
            }
        }
        while taken < out.len()
            && let Some(block) = self.claim(*cursor)
        {
            let count = self.take_of(block, u64::MAX, &mut out[taken..]);
            // None: others have moved the block away again.
            if count > 0 {
                taken += count;
                *cursor = out[taken - 1] + 1;
            }
        }
        if *cursor >= self.blocks.count {
            *cursor = 0;
        }
        taken
    }

    /// Takes a block out of the reserve.
    fn claim(&self, cursor: u32) -> Option<usize> {
        if !self.shared {
            return None;
        }
        let claimed = self
            .blocks
            .claim(self.lane, cursor.div_ceil(BLOCK) as usize);
        if claimed.is_none() {
            self.blocks.wanting.store(true, Ordering::Relaxed);
        }
        claimed
    }

    /// Takes the free frames of a block that are in `mask`, as many as `out` has room for.
    fn take_of(&self, block: usize, mask: u64, out: &mut [u32]) -> usize {
        let bits = self.blocks.free[block].load(Ordering::Relaxed) & mask;
        let mut rest = 0;
        if bits.count_ones() as usize > out.len() {
            rest = (0..out.len()).fold(bits, |rest, _| rest & (rest - 1));
        }
        let mut mask = self.take_bits(block, bits & !rest);
        let mut taken = 0;
        while mask != 0 {
            out[taken] = block as u32 * BLOCK + mask.trailing_zeros();
            mask &= mask - 1;
            taken += 1;
        }
        taken
    }

    /// Takes those frames of a block that are still free.
    fn take_bits(&self, block: usize, mask: u64) -> u64 {
        if mask == 0 {
            return 0;
        }
        if !self.shared {
            // Nobody else takes any. Acquire: as below.
            self.blocks.free[block].fetch_and(!mask, Ordering::Acquire);
            return mask;
        }
        // Acquire: pairs with `give_back`; whoever gave these frames back has finished with them.
        let before = self.blocks.free[block].fetch_and(!mask, Ordering::Acquire);
        let taken = before & mask;
        if taken != 0 && !self.owns(block) {
            // Since the look at the owner, another thread moved the block to the reserve, and another lane took it.
            self.give_back_later(block, taken);
            return 0;
        }
        taken
    }

    /// Gives frames back outside of a batch.
    fn give_back_later(&self, block: usize, mask: u64) {
        let mut freed = Freed {
            block,
            mask,
            lanes: 0,
        };
        self.give_back(&mut freed);
        self.owe(freed.lanes);
    }

    /// Some lanes were given frames outside of a batch: `owed` tells about them.
    pub fn owe(&self, lanes: u64) {
        if self.shared {
            self.owed.fetch_or(lanes, Ordering::Relaxed);
        }
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
        for block in within(kept).chain(within(others)) {
            if !self.owns(block) {
                continue;
            }
            let bits = self.blocks.free[block].load(Ordering::Relaxed);
            if bits == 0 {
                continue;
            }
            let wide = (1..most).fold(bits, |wide, shift| wide & bits >> shift);
            let bit = if wide == 0 { bits } else { wide }.trailing_zeros();
            let count = (!(bits >> bit)).trailing_zeros().min(most);
            if wide != 0 {
                found = Some((block, bit, count));
                break;
            }
            found = found.or(Some((block, bit, count)));
        }
        let full = found.is_some_and(|(_, _, count)| count == most);
        if !full && let Some(block) = self.claim(*cursor) {
            let whole = self.blocks.whole(block);
            found = Some((block, 0, whole.trailing_ones().min(most)));
        }
        let (block, bit, count) = found?;
        let run = |bit, count| u64::MAX >> (BLOCK - count) << bit;
        let mut taken = self.take_bits(block, run(bit, count));
        if taken == 0 {
            return None;
        }
        // Fewer than were there: another lane believed to be the owner, and will give some of them back.
        let bit = taken.trailing_zeros();
        let count = (!(taken >> bit)).trailing_zeros();
        taken &= !run(bit, count);
        if taken != 0 {
            self.give_back_later(block, taken);
        }
        let first = block as u32 * BLOCK + bit;
        *cursor = (first + count) % self.blocks.count;
        Some((first, count))
    }

    /// Notes that a frame is to be given back. It is free after the next `give_back`, or before that.
    #[inline(always)]
    pub fn put(&self, frame: u32, freed: &mut Freed) {
        let block = frame as usize / 64;
        if block != freed.block {
            self.give_back(freed);
            freed.block = block;
        }
        freed.mask |= 1 << (frame % BLOCK);
    }

    /// As `put`, for a run of neighbouring frames.
    pub fn put_run(&self, first: u32, count: u32, freed: &mut Freed) {
        let end = first + count;
        let mut at = first;
        while at < end {
            let here = (BLOCK - at % BLOCK).min(end - at);
            self.put(at, freed);
            freed.mask |= u64::MAX >> (BLOCK - here) << (at % BLOCK);
            at += here;
        }
    }

    /// Gives back the frames that were noted.
    pub fn give_back(&self, freed: &mut Freed) {
        let mask = std::mem::take(&mut freed.mask);
        if mask == 0 {
            return;
        }
        let blocks = &*self.blocks;
        if !self.shared {
            // Release: everything that was done with the frames comes before they are free.
            blocks.free[freed.block].fetch_or(mask, Ordering::Release);
            freed.lanes = 1;
            return;
        }
        self.give_back_shared(freed, mask);
    }

    #[inline(never)]
    fn give_back_shared(&self, freed: &mut Freed, mask: u64) {
        let blocks = &*self.blocks;
        // Before they are free: until then the block stays its lane's.
        let owner = blocks.owners[freed.block].load(Ordering::Relaxed);
        // Release: as above.
        let before = blocks.free[freed.block].fetch_or(mask, Ordering::Release);
        let bit = 1u64.checked_shl(owner.into()).unwrap_or(0);
        freed.lanes |= bit;
        if before | mask == blocks.whole(freed.block) {
            // As in `rest`.
            fence(Ordering::SeqCst);
            let idle = blocks.idle.load(Ordering::Relaxed) & bit != 0;
            if idle || blocks.reserve.load(Ordering::Relaxed) == 0 {
                blocks.surrender(freed.block);
            }
        }
    }

    /// This lane has nothing to do: until `works`, the reserve gets every block of which all frames are free. RX thread only.
    pub fn rest(&self) {
        let bit = 1 << self.lane;
        if !self.shared || self.blocks.idle.load(Ordering::Relaxed) & bit != 0 {
            return;
        }
        self.blocks.idle.fetch_or(bit, Ordering::Relaxed);
        // Whoever makes a block whole sees the bit, or this thread sees the block.
        fence(Ordering::SeqCst);
        for block in 0..self.blocks.free.len() {
            if self.owns(block) {
                self.blocks.surrender(block);
            }
        }
        self.owe(u64::MAX);
    }

    /// If another lane has found the reserve empty: gives up what this one keeps beyond a few blocks. RX thread only.
    pub fn share(&self) {
        let blocks = &*self.blocks;
        if !self.shared
            || !blocks.wanting.load(Ordering::Relaxed)
            || !blocks.wanting.swap(false, Ordering::Relaxed)
        {
            return;
        }
        let whole = |block: &usize| {
            self.owns(*block) && blocks.free[*block].load(Ordering::Relaxed) == blocks.whole(*block)
        };
        for block in (0..blocks.free.len()).filter(whole).skip(KEPT) {
            blocks.surrender(block);
        }
        self.owe(u64::MAX);
    }

    /// This lane keeps its blocks again. RX thread only.
    pub fn works(&self) {
        let bit = 1 << self.lane;
        if self.shared && self.blocks.idle.load(Ordering::Relaxed) & bit != 0 {
            self.blocks.idle.fetch_and(!bit, Ordering::Relaxed);
        }
    }

    /// The RX thread has found no free frame and wants to be woken. `true` if still none is free: the same protocol of
    /// store, fence and look as the need-wakeup flag of a ring.
    pub fn prepare_sleep(&self) -> bool {
        let blocks = &*self.blocks;
        blocks.dry.fetch_or(1 << self.lane, Ordering::Relaxed);
        fence(Ordering::SeqCst);
        let none = |(block, free): (usize, &AtomicU64)| {
            free.load(Ordering::Relaxed) == 0 || !self.owns(block)
        };
        blocks.reserve.load(Ordering::Relaxed) == 0 && blocks.free.iter().enumerate().all(none)
    }

    pub fn awake(&self) {
        let bit = 1 << self.lane;
        if self.blocks.dry.load(Ordering::Relaxed) & bit != 0 {
            self.blocks.dry.fetch_and(!bit, Ordering::Relaxed);
        }
    }

    /// As `to_wake`, for what was given back outside of a batch. RX thread only.
    pub fn owed(&self) -> u64 {
        if !self.shared || self.owed.load(Ordering::Relaxed) == 0 {
            return 0;
        }
        self.to_wake(self.owed.swap(0, Ordering::Relaxed))
    }

    /// After frames of some lanes (`Freed::lanes`) were given back: a bit for each lane whose RX thread sleeps because it had
    /// none, and can have some now. Once a batch.
    pub fn to_wake(&self, lanes: u64) -> u64 {
        fence(Ordering::SeqCst);
        let dry = self.blocks.dry.load(Ordering::Relaxed);
        if dry == 0 {
            return 0;
        }
        match self.blocks.reserve.load(Ordering::Relaxed) {
            0 => dry & lanes,
            _ => dry,
        }
    }
}
