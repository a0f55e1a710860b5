//! Frames: the pieces of the data buffers that hold a packet each.
//!
//! `map` is their arithmetic, `table` says who owns each of them, `pool` has those of a lane that are free.

#![forbid(unsafe_code)]

mod map;
mod pool;
mod table;

pub use map::FrameMap;
pub use pool::{FramePool, Freed};
pub use table::{Census, FrameTable, PacketOutcome};

use std::sync::Arc;

use crate::error::Result;

/// The frames of a lane: the table of all frames, and the lane's own pool. A frame that was received on one lane may be
/// given back on another, and is free there.
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
            pool: FramePool::full(count),
        }
    }

    /// The caller is done with a frame.
    pub fn release(&self, frame: u32) -> Result<PacketOutcome> {
        let mut freed = Freed::default();
        let outcome = self.table.release(frame)?;
        self.pool.put(frame, &mut freed);
        self.pool.give_back(&mut freed);
        Ok(outcome)
    }

    /// The device is done with a frame. `None` if the caller has it back; otherwise it will be free after
    /// `pool.give_back(freed)`.
    #[inline(always)]
    pub fn finish(
        &self,
        frame: u32,
        success: bool,
        freed: &mut Freed,
    ) -> Result<Option<PacketOutcome>> {
        let outcome = self.table.finish(frame, success)?;
        if outcome.is_some() {
            self.pool.put(frame, freed);
        }
        Ok(outcome)
    }

    /// Takes one free frame for the caller, from `cursor` on. RX thread only.
    pub fn allocate(&self, cursor: &mut u32) -> Result<Option<u32>> {
        let mut frame = [0];
        if self.pool.take(cursor, &mut frame) == 0 {
            return Ok(None);
        }
        self.table.allocate(frame[0])?;
        Ok(Some(frame[0]))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_come_in_address_order_and_every_one_once() {
        let frames = Frames::new(200);
        let mut cursor = 0;
        let mut out = [0; 150];
        assert_eq!(frames.pool.take(&mut cursor, &mut out), 150);
        assert!(out.iter().copied().eq(0..150));
        for frame in [3, 70, 140] {
            frames.table.allocate(frame).unwrap();
            assert_eq!(frames.release(frame).unwrap(), PacketOutcome::Empty);
        }
        let mut rest = [0; 150];
        let n = frames.pool.take(&mut cursor, &mut rest);
        let expected: Vec<u32> = (150..200).chain([3, 70, 140]).collect();
        assert_eq!(&rest[..n], &expected[..]);
        assert_eq!(frames.pool.take(&mut cursor, &mut rest), 0);
    }

    #[test]
    fn a_frame_is_never_handed_over_twice() {
        let frames = Frames::new(64);
        let mut cursor = 0;
        let mut out = [0; 1];
        assert_eq!(frames.pool.take(&mut cursor, &mut out), 1);
        frames.table.fill(0).unwrap();
        assert_eq!(frames.table.fill(0).unwrap_err().errno(), libc::EINVAL);
        frames.table.receive(0).unwrap();
        frames.table.submit(0, true, true).unwrap();
        assert_eq!(
            frames.table.submit(0, true, true).unwrap_err().errno(),
            libc::EBUSY
        );
        assert_eq!(frames.release(0).unwrap_err().errno(), libc::EBUSY);
        assert_eq!(frames.table.finish(0, false).unwrap(), None, "kept");
        frames.table.submit(0, true, false).unwrap();
        frames.table.unsubmit(0).unwrap();
        frames.table.submit(0, true, false).unwrap();
        assert_eq!(
            frames.table.finish(0, true).unwrap(),
            Some(PacketOutcome::Stored)
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
        frames.table.fill(0).unwrap();
        frames.table.receive(0).unwrap();
        frames.table.arrived(0, 7);
        assert_eq!(frames.table.first_write(0), None, "held");
        // A compare with it is no write; the first write is, failed or not; a second one is not.
        for (writes, expected) in [(false, None), (true, Some(7)), (true, None)] {
            frames.table.submit(0, writes, true).unwrap();
            assert_eq!(frames.table.first_write(0), expected);
            frames.table.finish(0, false).unwrap();
        }
        frames.table.allocate(1).unwrap();
        frames.table.submit(1, true, true).unwrap();
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
            frames.table.fill(frame).unwrap();
        }
        for frame in 0..20 {
            frames.table.receive(frame).unwrap();
        }
        for frame in 0..10 {
            frames.table.submit(frame, true, false).unwrap();
        }
        assert_eq!(frames.release(15).unwrap(), PacketOutcome::Released);
        let c = frames.table.census();
        assert_eq!((c.free, c.filled, c.held, c.in_flight), (71, 10, 9, 10));
        assert_eq!((c.packets_held, c.packets_in_flight), (9, 10));
    }

    #[test]
    fn the_dry_side_is_woken() {
        let frames = Frames::new(64);
        let mut cursor = 0;
        let mut out = [0; 64];
        assert_eq!(frames.pool.take(&mut cursor, &mut out), 64);
        assert!(frames.pool.prepare_sleep());
        frames.table.allocate(9).unwrap();
        frames.release(9).unwrap();
        assert!(frames.pool.wants_wakeup());
        assert!(!frames.pool.prepare_sleep(), "one is free");
        frames.pool.awake();
        assert!(!frames.pool.wants_wakeup());
    }
}
