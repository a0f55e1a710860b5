//! Frames: the pieces of the data buffers that hold a packet each.
//!
//! `map` is their arithmetic, `table` says who owns each of them, `pool` has those that are free, of each lane.

#![forbid(unsafe_code)]

mod map;
mod pool;
mod table;

pub use map::FrameMap;
pub use pool::{FramePool, Freed, MAX_LANES};
pub use table::{Census, FrameTable, Outcomes, PacketOutcome, Return, Settled, runs_of, words_of};

use std::sync::Arc;

use crate::error::Result;

/// The frames of a lane: the table of all frames, and the lane's own pool. A frame that was received on one lane may be
/// given back on another. It is free on the lane that it belongs to.
#[derive(Debug)]
pub struct Frames {
    pub table: Arc<FrameTable>,
    pub pool: FramePool,
}

impl Frames {
    /// A table of its own, in which all frames are free.
    pub fn new(count: u32) -> Frames {
        Frames {
            table: Arc::new(FrameTable::new(count)),
            pool: FramePool::alone(count),
        }
    }

    /// The same table for each of `lanes` lanes, with a pool for each.
    pub fn of_lanes(count: u32, lanes: u32) -> Vec<Frames> {
        let table = Arc::new(FrameTable::new(count));
        let frames = |pool| Frames {
            table: table.clone(),
            pool,
        };
        FramePool::of_lanes(count, lanes)
            .into_iter()
            .map(frames)
            .collect()
    }

    /// Counts the frames of this lane. Exact only at a quiet moment.
    pub fn census(&self) -> Census {
        match self.pool.is_shared() {
            true => self.table.census_of(|frame| self.pool.owns_frame(frame)),
            false => self.table.census(),
        }
    }

    /// The same of each of `lanes` lanes.
    pub fn census_of_all(&self, lanes: usize) -> Vec<Census> {
        let mut all = vec![Census::default(); lanes];
        match self.pool.is_shared() {
            true => self.table.count(|frame, counted| {
                let owner = self.pool.owner(frame);
                if let Some(census) = owner.and_then(|lane| all.get_mut(lane as usize)) {
                    *census += counted;
                }
            }),
            false => all[0] = self.table.census(),
        }
        all
    }

    /// The caller is done with a frame.
    pub fn release(&self, frame: u32) -> Result<Settled> {
        let mut freed = Freed::default();
        let settled = self.table.release(frame)?;
        self.pool.put(frame, &mut freed);
        self.pool.give_back(&mut freed);
        self.pool.owe(freed.lanes);
        Ok(settled)
    }

    /// The caller is done with frames that share a word of the table; they will be free after `pool.give_back(freed)`.
    /// `None`: it does not hold all of them, and nothing was done.
    #[inline(always)]
    pub fn release_run(&self, first: u32, count: u32, freed: &mut Freed) -> Option<Outcomes> {
        let outcomes = self.table.release_run(first, count)?;
        self.pool.put_run(first, count, freed);
        Some(outcomes)
    }

    /// The device is done with a frame. `None` if the caller has it back; otherwise it will be free after
    /// `pool.give_back(freed)`.
    #[inline(always)]
    pub fn finish(&self, frame: u32, success: bool, freed: &mut Freed) -> Result<Option<Settled>> {
        let settled = self.table.finish(frame, success)?;
        if settled.is_some() {
            self.pool.put(frame, freed);
        }
        Ok(settled)
    }

    /// As `finish` after a success, for frames that share a word of the table. `false`: one of them is not as expected,
    /// and nothing was done.
    #[inline(always)]
    pub fn finish_stored(&self, first: u32, count: u32, freed: &mut Freed) -> bool {
        let stored = self.table.finish_stored(first, count).is_some();
        if stored {
            self.pool.put_run(first, count, freed);
        }
        stored
    }

    /// Packets were copied out of a run of frames into the frame `into`: the run will be free after
    /// `pool.give_back(freed)`. RX thread.
    pub fn pack(&self, first: u32, count: u32, into: u32, freed: &mut Freed) -> Result<()> {
        self.table.pack(first, count, into)?;
        self.pool.put_run(first, count, freed);
        Ok(())
    }

    /// Takes one free frame for the caller, from `cursor` on. RX thread only.
    pub fn allocate(&self, cursor: &mut u32) -> Result<Option<u32>> {
        let mut frame = [0];
        if self.pool.take(cursor, &mut frame) == 0 {
            return Ok(None);
        }
        self.table.allocate(frame[0], 1)?;
        Ok(Some(frame[0]))
    }
}

#[cfg(test)]
mod tests {
    use super::pool::KEPT;
    use super::*;

    #[test]
    fn frames_that_lie_together_are_taken_together() {
        let frames = Frames::new(130);
        let pool = &frames.pool;
        let mut cursor = 0;
        assert_eq!(pool.take_run(&mut cursor, 8), Some((0, 8)));
        assert_eq!(pool.take_run(&mut cursor, 64), Some((64, 64)));
        assert_eq!(pool.take_run(&mut cursor, 56), Some((8, 56)));
        assert_eq!(pool.take_run(&mut cursor, 8), Some((128, 2)), "the rest");
        assert_eq!(pool.take_run(&mut cursor, 8), None);
        let mut freed = Freed::default();
        pool.put_run(3, 2, &mut freed);
        pool.put_run(60, 10, &mut freed);
        pool.give_back(&mut freed);
        // A run does not reach beyond a word.
        assert_eq!(pool.take_run(&mut cursor, 4), Some((60, 4)));
        assert_eq!(pool.take_run(&mut cursor, 6), Some((64, 6)));
        assert_eq!(pool.take_run(&mut cursor, 3), Some((3, 2)));
        assert_eq!(pool.take_run(&mut cursor, 1), None);
    }

    #[test]
    fn runs_have_frames_of_their_own_as_long_as_there_are_any() {
        let frames = Frames::new(256);
        let pool = &frames.pool;
        pool.keep_for_runs(130);
        let (mut cursor, mut run_cursor) = (0, 0);
        let mut out = [0; 100];
        assert_eq!(pool.take(&mut cursor, &mut out), 100);
        assert_eq!((out[0], out[99]), (128, 227));
        assert_eq!(pool.take_run(&mut run_cursor, 64), Some((0, 64)));
        assert_eq!(pool.take_run(&mut run_cursor, 64), Some((64, 64)));
        // Each takes what the other has left.
        assert_eq!(pool.take_run(&mut run_cursor, 4), Some((228, 4)));
        let mut freed = Freed::default();
        pool.put_run(10, 10, &mut freed);
        pool.give_back(&mut freed);
        assert_eq!(pool.take(&mut cursor, &mut out), 34);
        assert_eq!((out[0], out[23], out[24], out[33]), (232, 255, 10, 19));
        assert_eq!(pool.take(&mut cursor, &mut out), 0);
        // Single frames come from everywhere again.
        pool.keep_for_runs(0);
        pool.put_run(0, 5, &mut freed);
        pool.give_back(&mut freed);
        let mut cursor = 0;
        assert_eq!(pool.take(&mut cursor, &mut out), 5);
        assert_eq!(out[..5], [0, 1, 2, 3, 4]);
    }

    #[test]
    fn a_frame_that_was_allocated_says_so_until_a_packet_comes() {
        let table = FrameTable::new(8);
        assert_eq!(table.arrival(3), Some(0));
        table.allocate(2, 2).unwrap();
        assert_eq!((table.arrival(1), table.arrival(3)), (Some(0), None));
        table.packed_since(2, 70);
        assert_eq!(table.arrival(2), None);
        assert_eq!(table.arrivals(2, 1).next(), Some(70));
        table.release(2).unwrap();
        table.fill(2, 1).unwrap();
        assert_eq!(table.arrival(2), None);
        table.receive(2, 1).unwrap();
        table.arrived(2, 90);
        assert_eq!(table.arrival(2), Some(90));
    }

    const EMPTY: Settled = Settled {
        outcome: PacketOutcome::Empty,
        packets: 0,
    };

    fn one(outcome: PacketOutcome) -> Settled {
        Settled {
            outcome,
            packets: 1,
        }
    }

    /// Frames of which the first `count` hold a packet each.
    fn received(all: u32, count: u32) -> Frames {
        let frames = Frames::new(all);
        let mut out = vec![0; count as usize];
        assert_eq!(frames.pool.take(&mut 0, &mut out), count as usize);
        frames.table.fill(0, count).unwrap();
        frames.table.receive(0, count).unwrap();
        frames
    }

    #[test]
    fn a_run_changes_hands_as_a_whole_or_not_at_all() {
        for (first, count) in [(0, 1), (0, 4), (3, 2), (1, 7), (2, 130), (5, 62)] {
            let frames = received(200, 150);
            let table = &frames.table;
            table
                .submit(first, count, true, Return::KeepFailed)
                .unwrap();
            let c = table.census();
            assert_eq!((c.in_flight, c.held), (count.into(), (150 - count).into()));
            assert_eq!(c.packets_in_flight, u64::from(count));
            // One of them is in flight: none is submitted, and all stay as they were.
            let before = table.census();
            let error = table.submit(0, 140, true, Return::Free).unwrap_err();
            assert_eq!(error.errno(), libc::EBUSY);
            assert_eq!(table.census(), before);
            let mut freed = Freed::default();
            for (first, count) in words_of(first, count) {
                assert!(frames.finish_stored(first, count, &mut freed));
                assert!(!frames.finish_stored(first, count, &mut freed), "once");
            }
            frames.pool.give_back(&mut freed);
            let c = table.census();
            assert_eq!((c.free, c.in_flight), ((50 + count).into(), 0));
            let mut rest = [0; 200];
            assert_eq!(frames.pool.take(&mut 0, &mut rest), 50 + count as usize);
        }
        let frames = received(10, 10);
        for (first, count) in [(9, 2), (10, 1), (u32::MAX, 2), (0, u32::MAX)] {
            let error = frames.table.submit(first, count, true, Return::Free);
            assert_eq!(error.unwrap_err().errno(), libc::EINVAL, "{first} {count}");
        }
        assert_eq!(frames.table.census().held, 10);
    }

    #[test]
    fn a_run_that_fails_is_the_callers_again() {
        let frames = received(64, 8);
        let mut freed = Freed::default();
        frames.table.submit(0, 8, true, Return::KeepFailed).unwrap();
        for frame in 0..8 {
            assert_eq!(frames.finish(frame, false, &mut freed).unwrap(), None);
        }
        // Its packets have no outcome yet.
        let c = frames.table.census();
        assert_eq!((c.packets_held, c.held), (8, 8));
        frames.table.submit(3, 1, true, Return::Free).unwrap();
        let failed = frames.finish(3, false, &mut freed).unwrap();
        assert_eq!(failed, Some(one(PacketOutcome::Failed)));
    }

    #[test]
    fn packed_packets_share_the_fate_of_the_frame_they_are_in() {
        let frames = received(64, 10);
        let mut freed = Freed::default();
        frames.table.allocate(20, 2).unwrap();
        frames.pack(1, 6, 20, &mut freed).unwrap();
        frames.pack(8, 1, 20, &mut freed).unwrap();
        frames.pool.give_back(&mut freed);
        let c = frames.table.census();
        assert_eq!((c.held, c.packets_held), (5, 10));
        // A frame that is not held is not packed, and nothing of its run is.
        let error = frames.pack(0, 2, 20, &mut freed).unwrap_err();
        assert_eq!(error.errno(), libc::EINVAL);
        assert_eq!(frames.table.census().packets_held, 10);
        frames.table.submit(20, 2, true, Return::Free).unwrap();
        frames.table.arrived(20, 5);
        let first = frames.table.first_write(20).unwrap();
        assert_eq!(
            (first.arrival, first.packets, first.keep_failed),
            (5, 7, false)
        );
        assert!(!frames.finish_stored(20, 2, &mut freed));
        let stored = Settled {
            outcome: PacketOutcome::Stored,
            packets: 7,
        };
        assert_eq!(frames.finish(20, true, &mut freed).unwrap(), Some(stored));
        assert_eq!(frames.finish(21, true, &mut freed).unwrap(), Some(EMPTY));
        assert_eq!(frames.table.census().packets_held, 3);
    }

    #[test]
    fn frames_come_in_address_order_and_every_one_once() {
        let frames = Frames::new(200);
        let mut cursor = 0;
        let mut out = [0; 150];
        assert_eq!(frames.pool.take(&mut cursor, &mut out), 150);
        assert!(out.iter().copied().eq(0..150));
        for frame in [3, 70, 140] {
            frames.table.allocate(frame, 1).unwrap();
            assert_eq!(frames.release(frame).unwrap(), EMPTY);
        }
        let mut rest = [0; 150];
        let n = frames.pool.take(&mut cursor, &mut rest);
        let expected: Vec<u32> = (150..200).chain([3, 70, 140]).collect();
        assert_eq!(&rest[..n], &expected[..]);
        assert_eq!(frames.pool.take(&mut cursor, &mut rest), 0);
    }

    #[test]
    fn runs_share_a_word_and_keep_their_order() {
        let runs = |frames: &[u32]| runs_of(frames.iter().copied()).collect::<Vec<_>>();
        assert_eq!(runs(&[]), []);
        assert_eq!(runs(&[0, 1, 2, 3, 4, 5]), [(0, 4), (4, 2)]);
        assert_eq!(runs(&[3, 4, 6, 7, 8]), [(3, 1), (4, 1), (6, 2), (8, 1)]);
        assert_eq!(runs(&[5, 5, 6, 4]), [(5, 1), (5, 2), (4, 1)]);
        let last = u32::MAX;
        assert_eq!(runs(&[last - 1, last, 0]), [(last - 1, 2), (0, 1)]);
    }

    #[test]
    fn frames_that_are_released_together_are_counted_as_one_by_one() {
        // In one word: a packet, an empty frame, packed packets, one that was stored, one whose write failed.
        for (first, count) in [(0, 4), (1, 3), (2, 2), (3, 1), (4, 1), (4, 4)] {
            let made = || {
                let frames = received(64, 16);
                let table = &frames.table;
                let mut freed = Freed::default();
                assert_eq!(frames.release(1).unwrap(), one(PacketOutcome::Released));
                table.allocate(1, 1).unwrap();
                frames.pack(10, 5, 2, &mut freed).unwrap();
                for (frame, success) in [(3, true), (4, false)] {
                    table.submit(frame, 1, true, Return::Keep).unwrap();
                    assert_eq!(frames.finish(frame, success, &mut freed).unwrap(), None);
                }
                frames.pool.give_back(&mut freed);
                frames
            };
            let (together, singly) = (made(), made());
            let mut freed = Freed::default();
            let outcomes = together.release_run(first, count, &mut freed).unwrap();
            assert_eq!(together.release_run(first, count, &mut freed), None, "once");
            together.pool.give_back(&mut freed);
            let mut expected = Outcomes::default();
            for frame in first..first + count {
                let settled = singly.release(frame).unwrap();
                let packets = u64::from(settled.packets);
                match settled.outcome {
                    PacketOutcome::Empty => assert_eq!((frame, packets), (1, 0)),
                    PacketOutcome::Stored => expected.stored += packets,
                    PacketOutcome::Failed => expected.failed += packets,
                    PacketOutcome::Released => expected.released += packets,
                }
            }
            assert_eq!(outcomes, expected, "{first} {count}");
            assert_eq!(together.table.census(), singly.table.census());
            let free = |frames: &Frames| {
                let mut out = [0; 64];
                let count = frames.pool.take(&mut 0, &mut out);
                out[..count].to_vec()
            };
            assert_eq!(free(&together), free(&singly));
        }
    }

    #[test]
    fn a_run_is_released_as_a_whole_or_not_at_all() {
        let frames = received(60, 8);
        let mut freed = Freed::default();
        frames.table.submit(6, 1, true, Return::Free).unwrap();
        let before = frames.table.census();
        // In flight, free, not there.
        for (first, count) in [(4, 4), (6, 1), (8, 1), (59, 2), (60, 1), (u32::MAX, 1)] {
            assert_eq!(frames.release_run(first, count, &mut freed), None);
        }
        assert_eq!(frames.table.census(), before);
        let released = Outcomes {
            released: 2,
            ..Outcomes::default()
        };
        assert_eq!(frames.release_run(4, 2, &mut freed), Some(released));
        // Its neighbours in the word are as they were.
        assert!(frames.table.is_writing(6));
        assert_eq!(frames.release(7).unwrap(), one(PacketOutcome::Released));
    }

    #[test]
    fn a_frame_is_never_handed_over_twice() {
        let frames = Frames::new(64);
        let mut cursor = 0;
        let mut out = [0; 1];
        assert_eq!(frames.pool.take(&mut cursor, &mut out), 1);
        frames.table.fill(0, 1).unwrap();
        assert_eq!(frames.table.fill(0, 1).unwrap_err().errno(), libc::EINVAL);
        frames.table.receive(0, 1).unwrap();
        frames.table.submit(0, 1, true, Return::Keep).unwrap();
        assert_eq!(
            frames
                .table
                .submit(0, 1, true, Return::Keep)
                .unwrap_err()
                .errno(),
            libc::EBUSY
        );
        assert_eq!(frames.release(0).unwrap_err().errno(), libc::EBUSY);
        assert_eq!(frames.table.finish(0, false).unwrap(), None, "kept");
        frames.table.submit(0, 1, true, Return::Free).unwrap();
        frames.table.unsubmit(0, 1).unwrap();
        frames.table.submit(0, 1, true, Return::Free).unwrap();
        assert_eq!(
            frames.table.finish(0, true).unwrap(),
            Some(one(PacketOutcome::Stored))
        );
        assert_eq!(
            frames.table.finish(0, true).unwrap_err().errno(),
            libc::EINVAL
        );
        assert_eq!(frames.release(64).unwrap_err().errno(), libc::EINVAL);
    }

    #[test]
    fn a_packet_is_timed_once() {
        let frames = Frames::new(64);
        let (mut cursor, mut out) = (0, [0; 2]);
        assert_eq!(frames.pool.take(&mut cursor, &mut out), 2);
        frames.table.fill(0, 1).unwrap();
        frames.table.receive(0, 1).unwrap();
        frames.table.arrived(0, 7);
        assert_eq!(frames.table.first_write(0), None, "held");
        // A compare with it is no write; the first write is, failed or not; a second one is not.
        for (writes, expected) in [(false, None), (true, Some((7, 1))), (true, None)] {
            frames.table.submit(0, 1, writes, Return::Keep).unwrap();
            let first = frames.table.first_write(0);
            assert_eq!(first.map(|write| (write.arrival, write.packets)), expected);
            frames.table.finish(0, false).unwrap();
        }
        frames.table.allocate(1, 1).unwrap();
        frames.table.submit(1, 1, true, Return::Keep).unwrap();
        assert_eq!(
            frames.table.first_write(1),
            None,
            "there is no packet in it"
        );
        assert_eq!(frames.table.first_write(64), None);
    }

    #[test]
    fn the_census_always_adds_up() {
        let frames = Frames::new(100);
        let mut cursor = 0;
        let mut out = [0; 30];
        frames.pool.take(&mut cursor, &mut out);
        for frame in out {
            frames.table.fill(frame, 1).unwrap();
        }
        for frame in 0..20 {
            frames.table.receive(frame, 1).unwrap();
        }
        for frame in 0..10 {
            frames.table.submit(frame, 1, true, Return::Free).unwrap();
        }
        assert_eq!(frames.release(15).unwrap(), one(PacketOutcome::Released));
        let c = frames.table.census();
        assert_eq!((c.free, c.filled, c.held, c.in_flight), (71, 10, 9, 10));
        assert_eq!((c.packets_held, c.packets_in_flight), (9, 10));
    }

    #[test]
    fn lanes_exchange_blocks_through_the_reserve() {
        let lanes = Frames::of_lanes(200, 2);
        let (a, b) = (&lanes[0], &lanes[1]);
        assert_eq!(a.pool.in_reserve(), 200);
        let mut out = [0; 200];
        let (mut at_a, mut at_b) = (a.pool.first_cursor(), b.pool.first_cursor());
        assert_eq!(a.pool.take(&mut at_a, &mut out[..10]), 10);
        assert_eq!(b.pool.take(&mut at_b, &mut out[10..20]), 10);
        assert_eq!((out[0], out[9], out[10], out[19]), (0, 9, 128, 137));
        let owners = [0, 63, 64, 128, 191].map(|frame| a.pool.owner(frame));
        assert_eq!(owners, [Some(0), Some(0), None, Some(1), Some(1)]);
        assert_eq!(a.pool.owner(200), None);
        // The block of 8 frames at the end too, but nothing of the other lane's.
        assert_eq!(a.pool.take(&mut at_a, &mut out[20..]), 54 + 64 + 8);
        assert_eq!(a.pool.take(&mut at_a, &mut [0]), 0);
        assert!(a.pool.prepare_sleep());
        let mut freed = Freed::default();
        // Given back by the other lane: it is of the lane that it belongs to.
        b.pool.put(3, &mut freed);
        b.pool.give_back(&mut freed);
        assert_eq!((freed.lanes, b.pool.to_wake(freed.lanes)), (1, 1));
        assert!(!a.pool.prepare_sleep());
        a.pool.awake();
        let mut one = [0; 64];
        assert_eq!(b.pool.take(&mut at_b, &mut one), 54, "of its own block");
        assert_eq!(b.pool.take(&mut at_b, &mut one), 0);
        assert!(b.pool.prepare_sleep());
        assert_eq!(a.pool.take(&mut at_a, &mut one[..1]), 1);
        assert_eq!(one[0], 3);
        // A whole block goes to the reserve, which is empty: both can have it.
        let mut freed = Freed::default();
        b.pool.put_run(64, 64, &mut freed);
        b.pool.give_back(&mut freed);
        assert_eq!((a.pool.owner(64), a.pool.in_reserve()), (None, 64));
        assert_eq!(a.pool.to_wake(freed.lanes), 2);
        assert!(!b.pool.prepare_sleep());
        b.pool.awake();
        assert_eq!(b.pool.take(&mut at_b, &mut one), 64);
        assert_eq!((one[0], one[63], b.pool.owner(100)), (64, 127, Some(1)));
    }

    #[test]
    fn an_idle_lane_keeps_no_whole_block() {
        let lanes = Frames::of_lanes(64 * 8, 2);
        let (a, b) = (&lanes[0], &lanes[1]);
        let (mut at, mut out) = (0, [0; 256]);
        assert_eq!(a.pool.take(&mut at, &mut out), 256);
        let mut freed = Freed::default();
        a.pool.put_run(0, 130, &mut freed);
        a.pool.give_back(&mut freed);
        // It works, and the reserve is not empty: it keeps them.
        assert_eq!((a.pool.owner(0), a.pool.in_reserve()), (Some(0), 256));
        a.pool.rest();
        assert_eq!((a.pool.owner(0), a.pool.owner(64)), (None, None));
        assert_eq!((a.pool.owner(128), a.pool.in_reserve()), (Some(0), 384));
        // While it rests, whoever completes a block moves it.
        b.pool.put_run(130, 62, &mut freed);
        b.pool.give_back(&mut freed);
        assert_eq!((a.pool.owner(128), a.pool.in_reserve()), (None, 448));
        a.pool.works();
        a.pool.put_run(192, 64, &mut freed);
        a.pool.give_back(&mut freed);
        assert_eq!((a.pool.owner(192), a.pool.in_reserve()), (Some(0), 448));
        let mut cursor = 192;
        assert_eq!(a.pool.take_run(&mut cursor, 64), Some((192, 64)));
        assert_eq!(a.pool.take_run(&mut cursor, 64), Some((256, 64)));
        assert_eq!(a.pool.in_reserve(), 384);
    }

    #[test]
    fn a_busy_lane_gives_up_blocks_that_another_one_misses() {
        let lanes = Frames::of_lanes(64 * 20, 2);
        let (a, b) = (&lanes[0], &lanes[1]);
        assert_eq!(a.pool.share_of_each(), 640);
        let (mut at_a, mut at_b, mut out) = (0, 0, [0; 64 * 19]);
        assert_eq!(a.pool.take(&mut at_a, &mut out), 64 * 19);
        // While the reserve has a block, the others stay with the lane that works.
        let mut freed = Freed::default();
        a.pool.put_run(0, 64 * 19, &mut freed);
        a.pool.give_back(&mut freed);
        assert_eq!(a.pool.in_reserve(), 64);
        a.pool.share();
        assert_eq!(a.pool.in_reserve(), 64, "nobody misses any");
        assert_eq!(b.pool.take(&mut at_b, &mut out), 64);
        assert!(b.pool.prepare_sleep());
        a.pool.share();
        assert_eq!(a.pool.owed(), 2, "it waits for some");
        b.pool.awake();
        assert_eq!(a.pool.in_reserve(), 64 * (19 - KEPT as u32));
        a.pool.share();
        assert_eq!(a.pool.in_reserve(), 64 * (19 - KEPT as u32));
        assert_eq!(b.pool.take(&mut at_b, &mut out), 64 * (19 - KEPT));
    }

    #[test]
    fn frames_of_many_lanes_are_never_lost_or_handed_out_twice() {
        const COUNT: u32 = 64 * 20 + 5;
        const LANES: u32 = 4;
        let lanes = Frames::of_lanes(COUNT, LANES);
        let (sender, receiver) = std::sync::mpsc::sync_channel::<u32>(200);
        let receiver = parking_lot::Mutex::new(receiver);
        std::thread::scope(|scope| {
            for (number, lane) in lanes.iter().enumerate() {
                let (sender, receiver) = (sender.clone(), &receiver);
                scope.spawn(move || {
                    let (mut cursor, mut random) = (0, number as u32 * 77 + 1);
                    for round in 0..20_000 {
                        random = random.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                        let mut out = [0; 100];
                        let want = (random >> 24) as usize % 100;
                        let count = lane.pool.take(&mut cursor, &mut out[..want]);
                        for frame in &out[..count] {
                            // The table knows who has it.
                            lane.table.allocate(*frame, 1).unwrap();
                            assert_eq!(lane.pool.owner(*frame), Some(number as u32));
                        }
                        let mut own = out[..count].to_vec();
                        if let Some((first, count)) =
                            lane.pool.take_run(&mut cursor, 1 + want as u32 % 40)
                        {
                            lane.table.allocate(first, count).unwrap();
                            own.extend(first..first + count);
                        }
                        lane.pool.share();
                        // Some go to whichever lane gives them back.
                        let mut freed = Freed::default();
                        own.retain(|frame| frame % 3 != 0 || sender.try_send(*frame).is_err());
                        own.extend(receiver.lock().try_iter().take(50));
                        for frame in own {
                            lane.table.release(frame).unwrap();
                            lane.pool.put(frame, &mut freed);
                        }
                        lane.pool.give_back(&mut freed);
                        match round % 50 {
                            0 => lane.pool.rest(),
                            5 => lane.pool.works(),
                            _ => {}
                        }
                    }
                    lane.pool.rest();
                });
            }
        });
        let mut freed = Freed::default();
        for frame in receiver.lock().try_iter() {
            lanes[0].table.release(frame).unwrap();
            lanes[0].pool.put(frame, &mut freed);
        }
        lanes[0].pool.give_back(&mut freed);
        assert_eq!(lanes[0].table.census().free, u64::from(COUNT));
        assert_eq!(lanes[0].pool.in_reserve(), COUNT);
        let (mut cursor, mut all) = (0, vec![0; COUNT as usize + 1]);
        assert_eq!(lanes[2].pool.take(&mut cursor, &mut all), COUNT as usize);
        all.truncate(COUNT as usize);
        all.sort_unstable();
        assert!(all.iter().copied().eq(0..COUNT));
    }

    #[test]
    fn the_dry_side_is_woken() {
        let frames = Frames::new(64);
        let mut cursor = 0;
        let mut out = [0; 64];
        assert_eq!(frames.pool.take(&mut cursor, &mut out), 64);
        assert!(frames.pool.prepare_sleep());
        frames.table.allocate(9, 1).unwrap();
        frames.release(9).unwrap();
        assert_eq!(frames.pool.to_wake(1), 1);
        assert!(!frames.pool.prepare_sleep(), "one is free");
        frames.pool.awake();
        assert_eq!(frames.pool.to_wake(1), 0);
    }
}
