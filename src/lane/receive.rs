//! Receiving: packets in, empty frames, and frames given back.

#![forbid(unsafe_code)]

use std::mem::take;
use std::ops::{Deref, DerefMut};

use parking_lot::MutexGuard;

use super::complete::Batch;
use super::{Lane, Progress, Role};
use crate::error::{Error, Result};
use crate::frame::{Freed, runs_of};
use crate::log::{self, Held};
use crate::net::rx::{Received, Receiver};
use crate::ring::Producer;
use crate::sys::abi::UnifiedSqe;
use crate::sys::probe;
use crate::sys::xsk::XskStatistics;

/// What the receiver's role works on: packets in, entries out.
pub struct RxSide {
    pub(super) receiver: Option<Receiver>,
    pub(super) sq: Producer<UnifiedSqe>,
    /// When the entries that are not yet published were submitted; 0 if there are none.
    pub(super) submitted_at: u64,
    /// What the kernel had dropped when the statistics were read last.
    dropped: XskStatistics,
    /// Without a network: where `frame_alloc` goes on.
    cursor: u32,
    /// Where `allocate_run` goes on.
    run_cursor: u32,
    /// Times in a row that no packet was there.
    empty_looks: u32,
}

/// After so many looks in vain, a lane gives the frames that it does not need to the others.
const EMPTY_LOOKS: u32 = 256;

impl RxSide {
    /// `cursor`: where the lane begins to take frames.
    pub(super) fn new(receiver: Option<Receiver>, sq: Producer<UnifiedSqe>, cursor: u32) -> RxSide {
        RxSide {
            receiver,
            sq,
            submitted_at: 0,
            dropped: XskStatistics::default(),
            cursor,
            run_cursor: cursor,
            empty_looks: 0,
        }
    }

    /// The kernel gets at most this many frames, until this is called again.
    pub fn fill_at_most(&mut self, frames: u32) {
        if let Some(receiver) = &mut self.receiver {
            receiver.fill_at_most(frames);
        }
    }

    /// Fires the probes of what the kernel has dropped since the last call.
    pub(super) fn trace_dropped(&mut self, now: XskStatistics) {
        let before = std::mem::replace(&mut self.dropped, now);
        for (cause, now, before) in [
            (c"no_frame", now.rx_dropped, before.rx_dropped),
            (c"rx_ring_full", now.rx_ring_full, before.rx_ring_full),
        ] {
            if now > before {
                probe::dropped(cause, now - before, probe::NO_FRAME);
            }
        }
    }
}

/// The receiver's role, taken.
pub struct RxSideGuard<'a> {
    rx_side: MutexGuard<'a, RxSide>,
    // Released after the lock of the data.
    _role: MutexGuard<'a, ()>,
    // Last: lines that were logged meanwhile reach the callback when the locks are free.
    _held: Held,
}

impl Deref for RxSideGuard<'_> {
    type Target = RxSide;

    fn deref(&self) -> &RxSide {
        &self.rx_side
    }
}

impl DerefMut for RxSideGuard<'_> {
    fn deref_mut(&mut self) -> &mut RxSide {
        &mut self.rx_side
    }
}

impl Lane {
    pub fn lock_rx_side(&self) -> Result<RxSideGuard<'_>> {
        self.alive()?;
        let held = log::hold();
        let role = self.receiving.try_lock();
        let role = role.ok_or_else(|| Role::Receive.busy())?;
        Ok(RxSideGuard {
            rx_side: self.rx_side.lock(),
            _role: role,
            _held: held,
        })
    }

    /// Takes up to `out.len()` packets; 0 if there are none, `ENODEV` if there are none and the interface is gone.
    /// Receiver's thread.
    pub fn receive(&self, out: &mut [Received]) -> Result<usize> {
        let mut rx_side = self.lock_rx_side()?;
        if self.poll.is_used() {
            // Before the look, which sees whatever the bell announced.
            self.hear_frames();
        }
        let count = match &mut rx_side.receiver {
            Some(receiver) => receiver.receive(out)?,
            None => {
                return Err(Error::new(
                    libc::ENOTCONN,
                    "this context has no interface: it was made for storage only",
                ));
            }
        };
        if self.poll.is_used() {
            self.arm_receive(&mut rx_side);
        }
        if self.frames.pool.is_shared() {
            let sleeps = self.poll.is_used() && count < out.len();
            self.share_frames(&mut rx_side, count, sleeps);
        }
        drop(rx_side);
        if count < out.len()
            && self.poll.is_used()
            && let Some(interface) = &self.interface
        {
            interface.watch.take_events();
        }
        if count == 0 {
            self.check_link()?;
        }
        Ok(count)
    }

    /// Among several lanes: keeps the free frames while packets come, and gives them up if none come, or if the caller
    /// `sleeps` now.
    fn share_frames(&self, rx_side: &mut RxSide, packets: usize, sleeps: bool) {
        rx_side.empty_looks = match packets {
            0 => rx_side.empty_looks.saturating_add(1),
            _ => 0,
        };
        if sleeps || rx_side.empty_looks >= EMPTY_LOOKS {
            self.frames.pool.rest();
        } else if packets > 0 {
            self.frames.pool.works();
        }
        self.frames.pool.share();
        self.ring_owed();
    }

    /// Until the next packet this lane needs no frames but those that the kernel has.
    pub(super) fn give_up_frames(&self) {
        self.frames.pool.rest();
        self.ring_owed();
    }

    /// Wakes the receivers that wait for what was given back outside of a batch.
    fn ring_owed(&self) {
        self.ring_receivers(self.frames.pool.owed());
    }

    /// Packets that can wait in the kernel now; 1 without an interface.
    pub fn backlog(&self) -> u32 {
        let rx_side = self.rx_side.lock();
        rx_side.receiver.as_ref().map_or(1, Receiver::backlog)
    }

    /// `ENODEV` if the interface was deleted or moved away. Looks at most four times a second.
    fn check_link(&self) -> Result<()> {
        match &self.interface {
            Some(interface) => interface.watch.check(),
            None => Ok(()),
        }
    }

    /// An empty frame, held by the caller. `ENOBUFS` if none is free now. Receiver's thread.
    pub fn frame_alloc(&self) -> Result<u32> {
        let mut rx_side = self.lock_rx_side()?;
        let rx_side = &mut *rx_side;
        let frame = match &mut rx_side.receiver {
            Some(receiver) => receiver.allocate(),
            None => self.frames.allocate(&mut rx_side.cursor),
        }?;
        self.ring_owed();
        frame.ok_or_else(|| {
            Error::new(
                libc::ENOBUFS,
                "no frame is free: take completions and release frames first",
            )
        })
    }

    /// Neighbouring empty frames, held by the caller: up to `most`, or `None` if none is free now. For whoever has the
    /// role.
    pub fn allocate_run(&self, rx_side: &mut RxSide, most: u32) -> Result<Option<(u32, u32)>> {
        let Some((first, count)) = self.frames.pool.take_run(&mut rx_side.run_cursor, most) else {
            return Ok(None);
        };
        self.ring_owed();
        self.frames.table.allocate(first, count)?;
        Ok(Some((first, count)))
    }

    /// `allocate_run` takes from the first `frames` frames as long as it can. For whoever has the role.
    pub fn keep_for_runs(&self, _rx_side: &mut RxSide, frames: u32) {
        self.frames.pool.keep_for_runs(frames);
    }

    /// When the packet in a held frame arrived is when those arrived that will be packed into another one.
    pub fn arrive_with(&self, packet: u32, frame: u32) {
        let table = &self.frames.table;
        for arrival in table.arrivals(packet, 1) {
            table.packed_since(frame, arrival);
        }
    }

    /// The packets of `count` neighbouring frames, `bytes` in all, were copied into the frame `into`; the caller holds all
    /// of them. The neighbours are free after `free`. For whoever has the role.
    pub fn pack(
        &self,
        first: u32,
        count: u32,
        bytes: u64,
        into: u32,
        freed: &mut Freed,
    ) -> Result<()> {
        self.frames.pack(first, count, into, freed)?;
        self.rx_stats.packed.add(count.into());
        self.rx_stats.packed_bytes.add(bytes);
        Ok(())
    }

    /// Gives back what was packed.
    pub fn free(&self, freed: &mut Freed) {
        self.frames.pool.give_back(freed);
        if self.frames.pool.is_shared() {
            self.wake_receivers(take(&mut freed.lanes));
        }
    }

    /// Gives a held frame back. Any thread. `EINVAL` or `EBUSY` if the caller does not hold it.
    pub fn frame_release(&self, frame: u32) -> Result<()> {
        self.check_process()?;
        let mut batch = Batch::default();
        self.attribute(frame, &mut batch);
        let owner = self.owner(frame);
        let settled = self.frames.release(frame)?;
        batch.count(frame, settled, 0);
        self.add_outcomes(&mut batch);
        self.wake_receivers(1 << owner);
        Ok(())
    }

    /// Gives many held frames back, in their order, up to the first that the caller does not hold. Any thread. Errors as
    /// `frame_release`.
    pub fn frames_release(&self, frames: impl IntoIterator<Item = u32>) -> Result<Progress> {
        self.check_process()?;
        let mut batch = Batch::default();
        let mut done = 0;
        let mut refused = None;
        for (first, count) in runs_of(frames) {
            match self.release_run(first, count, &mut batch) {
                Ok(()) => done += count,
                Err((before, error)) => {
                    done += before;
                    refused = Some(error);
                    break;
                }
            }
        }
        self.give_back(batch);
        Progress::new(done, refused)
    }

    /// Gives back frames that share a word of the table. With an error: how many were given back before it.
    #[inline(always)]
    fn release_run(
        &self,
        first: u32,
        count: u32,
        batch: &mut Batch,
    ) -> std::result::Result<(), (u32, Error)> {
        self.attribute(first, batch);
        match self.frames.release_run(first, count, &mut batch.freed) {
            Some(outcomes) => {
                batch.count_run(first, outcomes);
                Ok(())
            }
            None => self.release_some(first, count, batch),
        }
    }

    /// As `release_run`, frame by frame.
    #[cold]
    fn release_some(
        &self,
        first: u32,
        count: u32,
        batch: &mut Batch,
    ) -> std::result::Result<(), (u32, Error)> {
        for i in 0..count {
            let frame = first + i;
            let settled = self.frames.table.release(frame);
            let settled = settled.map_err(|error| (i, error))?;
            self.frames.pool.put(frame, &mut batch.freed);
            batch.has_freed = true;
            batch.count(frame, settled, 0);
        }
        Ok(())
    }

    /// After frames of some lanes (a bit for each) were given back: wakes the receivers that wait for some.
    pub(super) fn wake_receivers(&self, lanes: u64) {
        self.ring_receivers(self.frames.pool.to_wake(lanes));
    }

    /// Wakes the receivers of some lanes, a bit for each.
    pub(super) fn ring_receivers(&self, mut lanes: u64) {
        while lanes != 0 {
            self.peers[lanes.trailing_zeros() as usize].rx_bell.ring();
            lanes &= lanes - 1;
        }
    }

    /// The receiver is awake: nobody needs to ring for it, and the bell's earlier rings are consumed.
    pub(super) fn hear_frames(&self) {
        self.frames.pool.awake();
        self.peer().rx_bell.clear();
    }
}
