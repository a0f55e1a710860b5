//! Who owns each frame: a private table, never derived from what stands in shared memory.
//!
//! A frame is *free*, *filled* (in the fill ring or on its way through the kernel), *held* by the caller
//! (received, or allocated) or *in flight* (given to the device). Every hand-over is one compare and
//! swap, so a frame used twice is noticed where it happens.
//!
//! Free frames stand in a bitmap rather than in a ring: whoever gives a frame back sets its bit, only
//! the RX thread takes bits, and it takes them in address order without sorting. So a run of packets
//! lies in a run of frames, and any thread may give frames back.

#![forbid(unsafe_code)]

#[cfg(loom)]
use loom::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering, fence};
#[cfg(not(loom))]
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering, fence};

use crate::error::{Error, Result};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum State {
    Free = 0,
    Filled = 1,
    Held = 2,
    InFlight = 3,
}

const STATE: u8 = 0x03;
/// In flight in a command that writes it (rather than reads into it).
const WRITES: u8 = 0x04;
/// In flight, and the caller gets it back.
const KEEP: u8 = 0x08;
/// Holds a received packet whose outcome (stored, failed, released) is not yet counted.
const PACKET: u8 = 0x10;
const STORED: u8 = 0x20;
const FAILED: u8 = 0x40;

/// What became of the packet in a frame that went back to the free ones.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PacketOutcome {
    /// There was no packet in it (allocated by the caller).
    Empty,
    Stored,
    Failed,
    Released,
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Census {
    pub free: u64,
    pub filled: u64,
    pub held: u64,
    pub in_flight: u64,
    /// Frames that hold a packet not yet accounted for, in the caller's hands.
    pub packets_held: u64,
    /// The same, in flight.
    pub packets_in_flight: u64,
}

#[derive(Debug)]
pub struct Frames {
    table: Box<[AtomicU8]>,
    free: Box<[AtomicU64]>,
    /// When the packet in a frame arrived. Written by the RX thread, before the frame is handed on.
    arrivals: Box<[AtomicU64]>,
    /// Set by the RX thread when it found no free frame; whoever gives one back then wakes it.
    dry: AtomicBool,
}

impl Frames {
    pub fn new(count: u32) -> Frames {
        let count = count as usize;
        let words = count.div_ceil(64);
        let free = (0..words).map(|word| {
            let bits = (count - word * 64).min(64);
            AtomicU64::new(if bits == 64 {
                u64::MAX
            } else {
                (1 << bits) - 1
            })
        });
        Frames {
            table: (0..count)
                .map(|_| AtomicU8::new(State::Free as u8))
                .collect(),
            free: free.collect(),
            arrivals: (0..count).map(|_| AtomicU64::new(0)).collect(),
            dry: AtomicBool::new(false),
        }
    }

    pub fn count(&self) -> u32 {
        self.table.len() as u32
    }

    fn entry(&self, frame: u32) -> Result<&AtomicU8> {
        self.table.get(frame as usize).ok_or_else(|| {
            Error::new(
                libc::EINVAL,
                format!(
                    "frame {frame} does not exist: there are {}",
                    self.table.len()
                ),
            )
        })
    }

    /// Moves a frame from one state to another; the flags stay unless `set` or `clear` name them.
    fn step(&self, frame: u32, from: State, to: State, set: u8, clear: u8) -> Result<u8> {
        let entry = self.entry(frame)?;
        let mut old = entry.load(Ordering::Relaxed);
        loop {
            if old & STATE != from as u8 {
                let errno = if old & STATE == State::InFlight as u8 {
                    libc::EBUSY
                } else {
                    libc::EINVAL
                };
                return Err(Error::new(
                    errno,
                    format!(
                        "frame {frame} is {}, not {}",
                        Self::name(old),
                        Self::name(from as u8)
                    ),
                ));
            }
            let new = (old & !(STATE | clear)) | to as u8 | set;
            // AcqRel: the frame's bytes go with the frame, from the old owner to the new one.
            match entry.compare_exchange_weak(old, new, Ordering::AcqRel, Ordering::Relaxed) {
                Ok(_) => return Ok(old),
                Err(now) => old = now,
            }
        }
    }

    fn name(entry: u8) -> &'static str {
        match entry & STATE {
            0 => "free",
            1 => "in the fill ring",
            2 => "held by the caller",
            _ => "in flight",
        }
    }

    /// Takes up to `out.len()` free frames in address order, going on where `cursor` stands, and says
    /// how many. RX thread only. They stay *free* in the table until `filled` or `held` is told.
    pub fn take(&self, cursor: &mut u32, out: &mut [u32]) -> usize {
        let words = self.free.len();
        let mut taken = 0;
        let mut word = (*cursor as usize / 64) % words.max(1);
        let mut from_bit = *cursor % 64;
        // One word more than there are, so that the bits below the cursor in the first are looked at too.
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
                // Acquire: pairs with `put`; whoever gave these frames back has finished with them.
                self.free[word].fetch_and(!mask, Ordering::Acquire);
            }
            from_bit = 0;
            word = (word + 1) % words;
        }
        if *cursor >= self.count() {
            *cursor = 0;
        }
        taken
    }

    /// Sets the bit; says whether the RX thread waits for a frame.
    fn put(&self, frame: u32) {
        // Release: everything done with the frame comes before it is free.
        self.free[frame as usize / 64].fetch_or(1 << (frame % 64), Ordering::Release);
    }

    /// A frame that was taken goes into the fill ring.
    pub fn fill(&self, frame: u32) -> Result<()> {
        self.step(frame, State::Free, State::Filled, 0, 0).map(drop)
    }

    /// A frame that was taken is handed to the caller, empty.
    pub fn allocate(&self, frame: u32) -> Result<()> {
        self.step(frame, State::Free, State::Held, 0, 0).map(drop)
    }

    /// The kernel delivered a packet in it.
    pub fn receive(&self, frame: u32) -> Result<()> {
        self.step(frame, State::Filled, State::Held, PACKET, 0)
            .map(drop)
    }

    /// When the packet in it arrived, in ns.
    pub fn arrived(&self, frame: u32, ns: u64) {
        if let Some(arrival) = self.arrivals.get(frame as usize) {
            arrival.store(ns, Ordering::Relaxed);
        }
    }

    /// That time, where the frame is in flight with the first write of its packet. Before `finish`.
    pub fn first_write(&self, frame: u32) -> Option<u64> {
        let entry = self.table.get(frame as usize)?.load(Ordering::Acquire);
        let first = State::InFlight as u8 | WRITES | PACKET;
        (entry & !KEEP == first).then(|| self.arrivals[frame as usize].load(Ordering::Relaxed))
    }

    /// The kernel gave it back without a packet for the caller.
    pub fn unfill(&self, frame: u32) -> Result<()> {
        self.step(frame, State::Filled, State::Free, 0, 0)?;
        self.put(frame);
        Ok(())
    }

    /// The caller gives it to the device, in a command that `writes` its bytes or not, and `keep`s it
    /// or not. `EBUSY` where it is there already.
    pub fn submit(&self, frame: u32, writes: bool, keep: bool) -> Result<()> {
        let set = if writes { WRITES } else { 0 } | if keep { KEEP } else { 0 };
        self.step(frame, State::Held, State::InFlight, set, WRITES | KEEP)
            .map(drop)
    }

    /// The command could not be submitted: the caller has it as before.
    pub fn unsubmit(&self, frame: u32) -> Result<()> {
        self.step(frame, State::InFlight, State::Held, 0, WRITES | KEEP)
            .map(drop)
    }

    /// The device is done with it. `None`: the caller has it back; else it is free, and that was the
    /// outcome of its packet.
    pub fn finish(&self, frame: u32, success: bool) -> Result<Option<PacketOutcome>> {
        let entry = self.entry(frame)?.load(Ordering::Relaxed);
        let set = match (entry & WRITES != 0, success) {
            (false, _) => 0,
            (true, true) => STORED,
            (true, false) => FAILED,
        };
        if entry & KEEP != 0 {
            self.step(frame, State::InFlight, State::Held, set, WRITES | KEEP)?;
            return Ok(None);
        }
        self.free_from(frame, State::InFlight, set).map(Some)
    }

    fn free_from(&self, frame: u32, from: State, set: u8) -> Result<PacketOutcome> {
        let old = self.step(frame, from, State::Free, 0, !STATE)? | set;
        self.put(frame);
        Ok(if old & PACKET == 0 {
            PacketOutcome::Empty
        } else if old & STORED != 0 {
            PacketOutcome::Stored
        } else if old & FAILED != 0 {
            PacketOutcome::Failed
        } else {
            PacketOutcome::Released
        })
    }

    /// The caller is done with it.
    pub fn release(&self, frame: u32) -> Result<PacketOutcome> {
        self.free_from(frame, State::Held, 0)
    }

    /// Whether it is in flight in a command that writes its bytes.
    pub fn is_writing(&self, frame: u32) -> bool {
        let writing = State::InFlight as u8 | WRITES;
        self.table
            .get(frame as usize)
            .is_some_and(|entry| entry.load(Ordering::Acquire) & (STATE | WRITES) == writing)
    }

    pub fn is_held(&self, frame: u32) -> bool {
        self.table
            .get(frame as usize)
            .is_some_and(|entry| entry.load(Ordering::Acquire) & STATE == State::Held as u8)
    }

    /// The RX thread found nothing to fill with and wants to be woken. `true` where still nothing is
    /// free: the same store, fence, look protocol as the rings' need-wakeup.
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

    /// After frames were given back: whether the RX thread sleeps for want of them. Once a batch.
    pub fn wants_wakeup(&self) -> bool {
        fence(Ordering::SeqCst);
        self.dry.load(Ordering::Relaxed)
    }

    /// Counts the table. Exact only at a quiet moment.
    pub fn census(&self) -> Census {
        let mut census = Census::default();
        for entry in &self.table {
            let entry = entry.load(Ordering::Relaxed);
            let packet = u64::from(entry & PACKET != 0);
            match entry & STATE {
                0 => census.free += 1,
                1 => census.filled += 1,
                2 => {
                    census.held += 1;
                    census.packets_held += packet;
                }
                _ => {
                    census.in_flight += 1;
                    census.packets_in_flight += packet;
                }
            }
        }
        census
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
        assert_eq!(frames.take(&mut cursor, &mut out), 150);
        assert!(out.iter().copied().eq(0..150));
        for frame in [3, 70, 140] {
            frames.allocate(frame).unwrap();
            assert_eq!(frames.release(frame).unwrap(), PacketOutcome::Empty);
        }
        let mut rest = [0; 150];
        let n = frames.take(&mut cursor, &mut rest);
        let expected: Vec<u32> = (150..200).chain([3, 70, 140]).collect();
        assert_eq!(&rest[..n], &expected[..]);
        assert_eq!(frames.take(&mut cursor, &mut rest), 0);
    }

    #[test]
    fn a_frame_is_never_handed_over_twice() {
        let frames = Frames::new(64);
        let mut cursor = 0;
        let mut out = [0; 1];
        assert_eq!(frames.take(&mut cursor, &mut out), 1);
        frames.fill(0).unwrap();
        assert_eq!(frames.fill(0).unwrap_err().errno(), libc::EINVAL);
        frames.receive(0).unwrap();
        frames.submit(0, true, true).unwrap();
        assert_eq!(
            frames.submit(0, true, true).unwrap_err().errno(),
            libc::EBUSY
        );
        assert_eq!(frames.release(0).unwrap_err().errno(), libc::EBUSY);
        assert_eq!(frames.finish(0, false).unwrap(), None, "kept");
        frames.submit(0, true, false).unwrap();
        frames.unsubmit(0).unwrap();
        frames.submit(0, true, false).unwrap();
        assert_eq!(frames.finish(0, true).unwrap(), Some(PacketOutcome::Stored));
        assert_eq!(frames.finish(0, true).unwrap_err().errno(), libc::EINVAL);
        assert_eq!(frames.release(64).unwrap_err().errno(), libc::EINVAL);
    }

    #[test]
    fn a_packet_is_timed_once() {
        let frames = Frames::new(64);
        let (mut cursor, mut out) = (0, [0; 2]);
        assert_eq!(frames.take(&mut cursor, &mut out), 2);
        frames.fill(0).unwrap();
        frames.receive(0).unwrap();
        frames.arrived(0, 7);
        assert_eq!(frames.first_write(0), None, "held");
        // A compare with it is no write; the first write is, failed or not; a second one is not.
        for (writes, expected) in [(false, None), (true, Some(7)), (true, None)] {
            frames.submit(0, writes, true).unwrap();
            assert_eq!(frames.first_write(0), expected);
            frames.finish(0, false).unwrap();
        }
        frames.allocate(1).unwrap();
        frames.submit(1, true, true).unwrap();
        assert_eq!(frames.first_write(1), None, "there is no packet in it");
        assert_eq!(frames.first_write(64), None);
    }

    #[test]
    fn the_census_always_adds_up() {
        let frames = Frames::new(100);
        let mut cursor = 0;
        let mut out = [0; 30];
        frames.take(&mut cursor, &mut out);
        for frame in out {
            frames.fill(frame).unwrap();
        }
        for frame in 0..20 {
            frames.receive(frame).unwrap();
        }
        for frame in 0..10 {
            frames.submit(frame, true, false).unwrap();
        }
        assert_eq!(frames.release(15).unwrap(), PacketOutcome::Released);
        let c = frames.census();
        assert_eq!((c.free, c.filled, c.held, c.in_flight), (71, 10, 9, 10));
        assert_eq!((c.packets_held, c.packets_in_flight), (9, 10));
    }

    #[test]
    fn the_dry_side_is_woken() {
        let frames = Frames::new(64);
        let mut cursor = 0;
        let mut out = [0; 64];
        assert_eq!(frames.take(&mut cursor, &mut out), 64);
        assert!(frames.prepare_sleep());
        frames.allocate(9).unwrap();
        frames.release(9).unwrap();
        assert!(frames.wants_wakeup());
        assert!(!frames.prepare_sleep(), "one is free");
        frames.awake();
        assert!(!frames.wants_wakeup());
    }
}
