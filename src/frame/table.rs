//! Who owns each frame: a private table, never derived from what is in shared memory.
//!
//! A frame is *free*, *filled* (in the fill ring or on its way through the kernel), *held* by the caller (received, or
//! allocated) or *in flight* (given to the device). Every hand-over is a compare-and-swap, so a frame that is used twice
//! is noticed at once. Four neighbouring frames share a word: a run of frames changes hands a word at a time.

#![forbid(unsafe_code)]

use std::ops::AddAssign;

#[cfg(loom)]
use loom::sync::atomic::{AtomicU32, AtomicU64, Ordering};
#[cfg(not(loom))]
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

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
/// With `PACKET`: packets were packed into it, and `packed` says how many.
const PACKED: u16 = 0x80;
/// In flight, and the caller gets it back if the command fails.
const KEEP_FAILED: u16 = 0x100;

/// In an arrival: the frame may hold other bytes than the kernel left there.
const FOREIGN: u64 = 1 << 63;

/// A word holds the states of so many neighbouring frames.
const PER_WORD: u32 = 4;
const BITS: u32 = 16;

/// The same bits for every frame of a word.
fn every(bits: u16) -> u64 {
    u64::from(bits) * 0x0001_0001_0001_0001
}

/// What became of the packets in a frame that is free again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PacketOutcome {
    /// There was no packet in it (allocated by the caller, or its packet was packed).
    Empty,
    Stored,
    Failed,
    Released,
}

/// The outcome of the packets of one frame: of 1, or of many if they were packed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Settled {
    pub outcome: PacketOutcome,
    pub packets: u32,
}

/// What became of the packets of several frames.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Outcomes {
    pub stored: u64,
    pub failed: u64,
    pub released: u64,
}

impl Outcomes {
    fn add(&mut self, settled: Settled) {
        let packets = u64::from(settled.packets);
        match settled.outcome {
            PacketOutcome::Empty => {}
            PacketOutcome::Stored => self.stored += packets,
            PacketOutcome::Failed => self.failed += packets,
            PacketOutcome::Released => self.released += packets,
        }
    }
}

/// How a submitted frame comes back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Return {
    /// It is free when the device is done with it.
    Free,
    /// The caller has it back.
    Keep,
    /// The caller has it back if the command fails.
    KeepFailed,
}

/// The first write of the packets in a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FirstWrite {
    /// When the first packet arrived. ns.
    pub arrival: u64,
    pub packets: u32,
    /// If it fails, it has decided nothing.
    pub keep_failed: bool,
}

/// How many frames are in each state.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Census {
    pub free: u64,
    pub filled: u64,
    pub held: u64,
    pub in_flight: u64,
    /// Packets in the caller's frames that are not yet accounted for.
    pub packets_held: u64,
    /// The same, in flight.
    pub packets_in_flight: u64,
}

impl AddAssign for Census {
    fn add_assign(&mut self, other: Census) {
        self.free += other.free;
        self.filled += other.filled;
        self.held += other.held;
        self.in_flight += other.in_flight;
        self.packets_held += other.packets_held;
        self.packets_in_flight += other.packets_in_flight;
    }
}

#[derive(Debug)]
pub struct FrameTable {
    /// `PER_WORD` frames each. The last word may have more than there are.
    states: Box<[AtomicU64]>,
    count: u32,
    /// When the packet in a frame arrived. Written by the RX thread, before the frame is handed on.
    arrivals: Box<[AtomicU64]>,
    /// Packets that were packed into a frame. Written by the RX thread, before the frame is handed on.
    packed: Box<[AtomicU32]>,
}

impl FrameTable {
    pub fn new(count: u32) -> FrameTable {
        FrameTable {
            states: (0..count.div_ceil(PER_WORD))
                .map(|_| AtomicU64::new(every(State::Free as u16)))
                .collect(),
            count,
            arrivals: (0..count).map(|_| AtomicU64::new(0)).collect(),
            packed: (0..count).map(|_| AtomicU32::new(0)).collect(),
        }
    }

    /// The word of a frame, and where its state begins in it.
    fn word(&self, frame: u32) -> Result<(&AtomicU64, u32)> {
        if frame >= self.count {
            return Err(self.no_such(frame));
        }
        let word = &self.states[(frame / PER_WORD) as usize];
        Ok((word, frame % PER_WORD * BITS))
    }

    #[cold]
    fn no_such(&self, frame: u32) -> Error {
        Error::new(
            libc::EINVAL,
            format!("frame {frame} does not exist: there are {}", self.count),
        )
    }

    fn state(&self, frame: u32) -> Result<u16> {
        let (word, shift) = self.word(frame)?;
        Ok((word.load(Ordering::Acquire) >> shift) as u16)
    }

    /// Moves a frame from one state to another; the flags stay unless `set` or `clear` name them. Returns the state
    /// before.
    fn step(&self, frame: u32, from: State, to: State, set: u16, clear: u16) -> Result<u16> {
        let (word, shift) = self.word(frame)?;
        let mut old = word.load(Ordering::Relaxed);
        loop {
            let state = (old >> shift) as u16;
            if state & STATE != from as u16 {
                return Err(not_in_state(frame, state, from));
            }
            let stepped = (state & !(STATE | clear)) | to as u16 | set;
            let new = old ^ (u64::from(state ^ stepped) << shift);
            // AcqRel: the frame's bytes go with the frame, from the old owner to the new one.
            match word.compare_exchange_weak(old, new, Ordering::AcqRel, Ordering::Relaxed) {
                Ok(_) => return Ok(state),
                Err(now) => old = now,
            }
        }
    }

    /// As `step`, for `count` neighbouring frames, a word at a time. All or none.
    fn step_run(
        &self,
        first: u32,
        count: u32,
        from: State,
        to: State,
        set: u16,
        clear: u16,
    ) -> Result<()> {
        self.check_run(first, count)?;
        for (at, here) in words_of(first, count) {
            let (states, mask) = self.part(at, here);
            let mut old = states.load(Ordering::Relaxed);
            loop {
                if (old ^ every(from as u16)) & every(STATE) & mask != 0 {
                    // Back to how it was. `set` and `clear` are flags that no frame has in the state `from`.
                    let undone = self.step_run(first, at - first, to, from, 0, set);
                    debug_assert!(undone.is_ok());
                    return Err(self.first_not_in(first, count, from));
                }
                let new = (old & !(every(STATE | clear) & mask)) | (every(to as u16 | set) & mask);
                // AcqRel: as in `step`.
                match states.compare_exchange_weak(old, new, Ordering::AcqRel, Ordering::Relaxed) {
                    Ok(_) => break,
                    Err(now) => old = now,
                }
            }
        }
        Ok(())
    }

    fn check_run(&self, first: u32, count: u32) -> Result<()> {
        match first.checked_add(count) {
            Some(end) if end <= self.count => Ok(()),
            _ => Err(self.no_such(first.max(self.count))),
        }
    }

    #[cold]
    fn first_not_in(&self, first: u32, count: u32, wanted: State) -> Error {
        let wrong = (first..first + count).find_map(|frame| {
            let state = self.state(frame).ok()?;
            (state & STATE != wanted as u16).then(|| not_in_state(frame, state, wanted))
        });
        // It has moved on meanwhile.
        wrong.unwrap_or_else(|| not_in_state(first, State::InFlight as u16, wanted))
    }

    /// Frames that were taken from a pool go into the fill ring.
    pub fn fill(&self, first: u32, count: u32) -> Result<()> {
        self.step_run(first, count, State::Free, State::Filled, 0, 0)
    }

    /// Frames that were taken from a pool are handed to the caller, empty.
    pub fn allocate(&self, first: u32, count: u32) -> Result<()> {
        self.step_run(first, count, State::Free, State::Held, 0, 0)?;
        for arrival in &self.arrivals[first as usize..(first + count) as usize] {
            arrival.store(FOREIGN, Ordering::Relaxed);
        }
        Ok(())
    }

    /// The kernel delivered a packet in each of them.
    pub fn receive(&self, first: u32, count: u32) -> Result<()> {
        self.step_run(first, count, State::Filled, State::Held, PACKET, 0)
    }

    /// Sets when the packet in it arrived, in ns.
    pub fn arrived(&self, frame: u32, ns: u64) {
        if let Some(arrival) = self.arrivals.get(frame as usize) {
            arrival.store(ns, Ordering::Relaxed);
        }
    }

    /// Sets when the first of the packets arrived that are packed into it.
    pub fn packed_since(&self, frame: u32, ns: u64) {
        self.arrived(frame, ns | FOREIGN);
    }

    /// When the packet that was last received in this frame arrived; 0: none was. `None`: it was allocated since, and may hold
    /// other bytes than the kernel left there.
    pub fn arrival(&self, frame: u32) -> Option<u64> {
        let arrival = self.arrivals.get(frame as usize);
        let arrival = arrival.map_or(0, |arrival| arrival.load(Ordering::Relaxed));
        (arrival & FOREIGN == 0).then_some(arrival)
    }

    /// When the packet in a frame arrived, if it is in flight with the first write of its packet, and the number of its packets. Before
    /// `finish`.
    pub fn first_write(&self, frame: u32) -> Option<FirstWrite> {
        let state = self.state(frame).ok()?;
        let first = State::InFlight as u16 | WRITES | PACKET;
        (state & !(KEEP | KEEP_FAILED | PACKED) == first).then(|| {
            let arrival = self.arrivals[frame as usize].load(Ordering::Relaxed);
            FirstWrite {
                arrival: arrival & !FOREIGN,
                packets: self.packets_in(frame, state),
                keep_failed: state & KEEP_FAILED != 0,
            }
        })
    }

    /// The caller gives frames to the device, in a command that `writes` their bytes or not. `EBUSY` if one is in flight
    /// already. All or none.
    pub fn submit(&self, first: u32, count: u32, writes: bool, back: Return) -> Result<()> {
        let set = if writes { WRITES } else { 0 }
            | match back {
                Return::Free => 0,
                Return::Keep => KEEP,
                Return::KeepFailed => KEEP_FAILED,
            };
        if count == 1 {
            // Most submissions, and cheaper than a run of one.
            return self
                .step(first, State::Held, State::InFlight, set, 0)
                .map(drop);
        }
        self.step_run(first, count, State::Held, State::InFlight, set, 0)
    }

    /// The command could not be submitted: the caller has the frames as before.
    pub fn unsubmit(&self, first: u32, count: u32) -> Result<()> {
        let clear = WRITES | KEEP | KEEP_FAILED;
        self.step_run(first, count, State::InFlight, State::Held, 0, clear)
    }

    /// The device is done with it. `None` if the caller has it back; otherwise it is free, and this is the outcome of
    /// its packets.
    pub fn finish(&self, frame: u32, success: bool) -> Result<Option<Settled>> {
        let state = self.state(frame)?;
        let set = match (state & WRITES != 0, success) {
            (false, _) => 0,
            (true, true) => STORED,
            (true, false) => FAILED,
        };
        let clear = WRITES | KEEP | KEEP_FAILED;
        if state & KEEP_FAILED != 0 && !success {
            // The caller tries again: this was not the end of its packet.
            self.step(frame, State::InFlight, State::Held, 0, clear)?;
            return Ok(None);
        }
        if state & KEEP != 0 {
            self.step(frame, State::InFlight, State::Held, set, clear)?;
            return Ok(None);
        }
        self.free_from(frame, State::InFlight, set).map(Some)
    }

    /// As `finish` after a success, for frames that share a word. `None`: one of them does not just hold a packet that is
    /// being written for the first time and be free afterwards; nothing was done.
    pub fn finish_stored(&self, first: u32, count: u32) -> Option<()> {
        self.check_run(first, count).ok()?;
        debug_assert_eq!(words_of(first, count).count(), 1);
        let plain = State::InFlight as u16 | WRITES | PACKET;
        let (states, mask) = self.part(first, count);
        let mut old = states.load(Ordering::Relaxed);
        loop {
            if (old ^ every(plain)) & every(!KEEP_FAILED) & mask != 0 {
                return None;
            }
            // AcqRel: as in `step`.
            match states.compare_exchange_weak(
                old,
                old & !mask,
                Ordering::AcqRel,
                Ordering::Relaxed,
            ) {
                Ok(_) => return Some(()),
                Err(now) => old = now,
            }
        }
    }

    /// When the packets in some frames arrived.
    pub fn arrivals(&self, first: u32, count: u32) -> impl Iterator<Item = u64> {
        let frames = self.arrivals.get(first as usize..(first + count) as usize);
        let frames = frames.unwrap_or_default();
        let time = |arrival: &AtomicU64| arrival.load(Ordering::Relaxed) & !FOREIGN;
        frames.iter().map(time)
    }

    /// The word of frames that share one, and their bits in it.
    fn part(&self, first: u32, count: u32) -> (&AtomicU64, u64) {
        let mask = u64::MAX >> (64 - count * BITS) << (first % PER_WORD * BITS);
        (&self.states[(first / PER_WORD) as usize], mask)
    }

    /// The caller is done with it.
    pub fn release(&self, frame: u32) -> Result<Settled> {
        self.free_from(frame, State::Held, 0)
    }

    /// As `release`, for frames that share a word. `None`: the caller does not hold all of them; nothing was done.
    pub fn release_run(&self, first: u32, count: u32) -> Option<Outcomes> {
        self.check_run(first, count).ok()?;
        debug_assert_eq!(words_of(first, count).count(), 1);
        let (states, mask) = self.part(first, count);
        let mut old = states.load(Ordering::Relaxed);
        loop {
            if (old ^ every(State::Held as u16)) & every(STATE) & mask != 0 {
                return None;
            }
            // Before the step: the frames are somebody else's after it.
            let outcomes = self.outcomes(first, count, old, mask);
            // AcqRel: as in `step`.
            match states.compare_exchange_weak(
                old,
                old & !mask,
                Ordering::AcqRel,
                Ordering::Relaxed,
            ) {
                Ok(_) => return Some(outcomes),
                Err(now) => old = now,
            }
        }
    }

    /// The outcomes of frames that share a word, if they become free now.
    fn outcomes(&self, first: u32, count: u32, states: u64, mask: u64) -> Outcomes {
        if states & every(STORED | FAILED | PACKED) & mask == 0 {
            // Frames as they were received: one packet each.
            return Outcomes {
                released: (states & every(PACKET) & mask).count_ones().into(),
                ..Outcomes::default()
            };
        }
        let mut all = Outcomes::default();
        for frame in first..first + count {
            let state = (states >> (frame % PER_WORD * BITS)) as u16;
            all.add(Settled {
                outcome: outcome(state),
                packets: self.packets_in(frame, state),
            });
        }
        all
    }

    /// The caller has packed the packets of `count` neighbouring frames into another frame, which it holds too, and is
    /// done with them. RX thread.
    pub fn pack(&self, first: u32, count: u32, into: u32) -> Result<()> {
        let state = self.state(into)?;
        if state & STATE != State::Held as u16 {
            return Err(not_in_state(into, state, State::Held));
        }
        let before = self.packets_in(into, state);
        self.check_run(first, count)?;
        let held = |frame| Ok(self.state(frame)? & STATE == State::Held as u16);
        if !(first..first + count).try_fold(true, |all, frame| held(frame).map(|one| all && one))? {
            return Err(self.first_not_in(first, count, State::Held));
        }
        self.step_run(first, count, State::Held, State::Free, 0, !STATE)?;
        self.packed[into as usize].store(before + count, Ordering::Relaxed);
        self.step(into, State::Held, State::Held, PACKET | PACKED, 0)
            .map(drop)
    }

    fn packets_in(&self, frame: u32, state: u16) -> u32 {
        match (state & PACKET != 0, state & PACKED != 0) {
            (false, _) => 0,
            (true, false) => 1,
            (true, true) => self.packed[frame as usize].load(Ordering::Relaxed),
        }
    }

    fn free_from(&self, frame: u32, from: State, set: u16) -> Result<Settled> {
        // Read before the step: the frame is somebody else's after it.
        let packets = self.packets_in(frame, self.state(frame)?);
        let old = self.step(frame, from, State::Free, 0, !STATE)? | set;
        Ok(Settled {
            outcome: outcome(old),
            packets,
        })
    }

    /// Whether it is in flight in a command that writes its bytes.
    pub fn is_writing(&self, frame: u32) -> bool {
        let writing = State::InFlight as u16 | WRITES;
        self.state(frame)
            .is_ok_and(|state| state & (STATE | WRITES) == writing)
    }

    /// Counts the table. Exact only at a quiet moment.
    pub fn census(&self) -> Census {
        self.census_of(|_| true)
    }

    /// Counts those frames of the table that are `counted`.
    pub fn census_of(&self, counted: impl Fn(u32) -> bool) -> Census {
        let mut census = Census::default();
        self.count(|frame, one| {
            if counted(frame) {
                census += one;
            }
        });
        census
    }

    /// Gives each frame with what it counts for.
    pub fn count(&self, mut each: impl FnMut(u32, Census)) {
        for frame in 0..self.count {
            let Ok(state) = self.state(frame) else {
                continue;
            };
            let packets = u64::from(self.packets_in(frame, state));
            let mut one = Census::default();
            match state & STATE {
                0 => one.free = 1,
                1 => one.filled = 1,
                2 => (one.held, one.packets_held) = (1, packets),
                _ => (one.in_flight, one.packets_in_flight) = (1, packets),
            }
            each(frame, one);
        }
    }
}

/// The parts of a run of frames that share a word of the table: the first frame of each, and how many.
pub fn words_of(first: u32, count: u32) -> impl Iterator<Item = (u32, u32)> {
    let end = first + count;
    let mut at = first;
    std::iter::from_fn(move || {
        let here = (PER_WORD - at % PER_WORD).min(end - at);
        let part = (at, here);
        at += here;
        (here > 0).then_some(part)
    })
}

/// Groups frames into runs of neighbours that share a word of the table: the first frame of each, and how many. Keeps
/// their order.
pub fn runs_of(frames: impl IntoIterator<Item = u32>) -> impl Iterator<Item = (u32, u32)> {
    let mut frames = frames.into_iter();
    let mut ahead = frames.next();
    std::iter::from_fn(move || {
        let first = ahead?;
        let longest = PER_WORD - first % PER_WORD;
        let mut count = 1;
        ahead = frames.next();
        // No overflow: the last frame of a word has a number.
        while count < longest && ahead == Some(first + count) {
            count += 1;
            ahead = frames.next();
        }
        Some((first, count))
    })
}

/// What becomes of the packets of a frame that is free from this state on.
fn outcome(state: u16) -> PacketOutcome {
    if state & PACKET == 0 {
        PacketOutcome::Empty
    } else if state & STORED != 0 {
        PacketOutcome::Stored
    } else if state & FAILED != 0 {
        PacketOutcome::Failed
    } else {
        PacketOutcome::Released
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
