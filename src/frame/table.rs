//! Who owns each frame: a private table, never derived from what is in shared memory.
//!
//! A frame is *free*, *filled* (in the fill ring or on its way through the kernel), *held* by the caller (received, or
//! allocated) or *in flight* (given to the device). Every hand-over is one compare-and-swap, so a frame that is used
//! twice is noticed at once.

#![forbid(unsafe_code)]

#[cfg(loom)]
use loom::sync::atomic::{AtomicU16, AtomicU64, Ordering};
#[cfg(not(loom))]
use std::sync::atomic::{AtomicU16, AtomicU64, Ordering};

use crate::error::{Error, Result};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u16)]
enum State {
    Free = 0,
    Filled = 1,
    Held = 2,
    InFlight = 3,
}

const STATE: u16 = 0x03;
/// In flight in a command that writes it (rather than reads into it).
const WRITES: u16 = 0x04;
/// In flight, and the caller gets it back.
const KEEP: u16 = 0x08;
/// Holds a received packet whose outcome (stored, failed, released) is not yet counted.
const PACKET: u16 = 0x10;
const STORED: u16 = 0x20;
const FAILED: u16 = 0x40;

/// What became of the packet in a frame that is free again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PacketOutcome {
    /// There was no packet in it (allocated by the caller).
    Empty,
    Stored,
    Failed,
    Released,
}

/// How many frames are in each state.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Census {
    pub free: u64,
    pub filled: u64,
    pub held: u64,
    pub in_flight: u64,
    /// Frames in the caller's hands with a packet that is not yet accounted for.
    pub packets_held: u64,
    /// The same, in flight.
    pub packets_in_flight: u64,
}

#[derive(Debug)]
pub struct FrameTable {
    states: Box<[AtomicU16]>,
    /// When the packet in a frame arrived. Written by the RX thread, before the frame is handed on.
    arrivals: Box<[AtomicU64]>,
}

impl FrameTable {
    pub fn new(count: u32) -> FrameTable {
        FrameTable {
            states: (0..count)
                .map(|_| AtomicU16::new(State::Free as u16))
                .collect(),
            arrivals: (0..count).map(|_| AtomicU64::new(0)).collect(),
        }
    }

    fn entry(&self, frame: u32) -> Result<&AtomicU16> {
        self.states.get(frame as usize).ok_or_else(|| {
            Error::new(
                libc::EINVAL,
                format!(
                    "frame {frame} does not exist: there are {}",
                    self.states.len()
                ),
            )
        })
    }

    /// Moves a frame from one state to another; the flags stay unless `set` or `clear` name them.
    fn step(&self, frame: u32, from: State, to: State, set: u16, clear: u16) -> Result<u16> {
        let entry = self.entry(frame)?;
        let mut old = entry.load(Ordering::Relaxed);
        loop {
            if old & STATE != from as u16 {
                return Err(not_in_state(frame, old, from));
            }
            let new = (old & !(STATE | clear)) | to as u16 | set;
            // AcqRel: the frame's bytes go with the frame, from the old owner to the new one.
            match entry.compare_exchange_weak(old, new, Ordering::AcqRel, Ordering::Relaxed) {
                Ok(_) => return Ok(old),
                Err(now) => old = now,
            }
        }
    }

    /// A frame that was taken from a pool goes into the fill ring.
    pub fn fill(&self, frame: u32) -> Result<()> {
        self.step(frame, State::Free, State::Filled, 0, 0).map(drop)
    }

    /// A frame that was taken from a pool is handed to the caller, empty.
    pub fn allocate(&self, frame: u32) -> Result<()> {
        self.step(frame, State::Free, State::Held, 0, 0).map(drop)
    }

    /// The kernel delivered a packet in it.
    pub fn receive(&self, frame: u32) -> Result<()> {
        self.step(frame, State::Filled, State::Held, PACKET, 0)
            .map(drop)
    }

    /// Sets when the packet in it arrived, in ns.
    pub fn arrived(&self, frame: u32, ns: u64) {
        if let Some(arrival) = self.arrivals.get(frame as usize) {
            arrival.store(ns, Ordering::Relaxed);
        }
    }

    /// That time, if the frame is in flight with the first write of its packet. Before `finish`.
    pub fn first_write(&self, frame: u32) -> Option<u64> {
        let entry = self.states.get(frame as usize)?.load(Ordering::Acquire);
        let first = State::InFlight as u16 | WRITES | PACKET;
        (entry & !KEEP == first).then(|| self.arrivals[frame as usize].load(Ordering::Relaxed))
    }

    /// The caller gives it to the device, in a command that `writes` its bytes or not, and gets it back (`keep`) or not.
    /// `EBUSY` if it is in flight already.
    pub fn submit(&self, frame: u32, writes: bool, keep: bool) -> Result<()> {
        let set = if writes { WRITES } else { 0 } | if keep { KEEP } else { 0 };
        self.step(frame, State::Held, State::InFlight, set, WRITES | KEEP)
            .map(drop)
    }

    /// The command could not be submitted: the caller has the frame as before.
    pub fn unsubmit(&self, frame: u32) -> Result<()> {
        self.step(frame, State::InFlight, State::Held, 0, WRITES | KEEP)
            .map(drop)
    }

    /// The device is done with it. `None` if the caller has it back; otherwise it is free, and this is the outcome of
    /// its packet.
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

    /// The caller is done with it.
    pub fn release(&self, frame: u32) -> Result<PacketOutcome> {
        self.free_from(frame, State::Held, 0)
    }

    fn free_from(&self, frame: u32, from: State, set: u16) -> Result<PacketOutcome> {
        let old = self.step(frame, from, State::Free, 0, !STATE)? | set;
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

    /// Whether it is in flight in a command that writes its bytes.
    pub fn is_writing(&self, frame: u32) -> bool {
        let writing = State::InFlight as u16 | WRITES;
        self.states
            .get(frame as usize)
            .is_some_and(|entry| entry.load(Ordering::Acquire) & (STATE | WRITES) == writing)
    }

    /// Counts the table. Exact only at a quiet moment.
    pub fn census(&self) -> Census {
        let mut census = Census::default();
        for entry in &self.states {
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

#[cold]
fn not_in_state(frame: u32, entry: u16, wanted: State) -> Error {
    let errno = match entry & STATE == State::InFlight as u16 {
        true => libc::EBUSY,
        false => libc::EINVAL,
    };
    let (is, wanted) = (name(entry), name(wanted as u16));
    Error::new(errno, format!("frame {frame} is {is}, not {wanted}"))
}

fn name(entry: u16) -> &'static str {
    match entry & STATE {
        0 => "free",
        1 => "in the fill ring",
        2 => "held by the caller",
        _ => "in flight",
    }
}
