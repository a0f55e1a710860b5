//! Statistics: a snapshot of all counters. The sums of the documentation hold between them.

#![forbid(unsafe_code)]

use std::ops::AddAssign;

use crate::buffers::BufferCounts;
use crate::counters::{DeviceCounts, EngineStats, OutcomeStats, RxStats};
use crate::frame::Census;
use crate::latency::Latency;
use crate::net::watch::LinkState;
use crate::net::wire::XdpCounters;
use crate::storage::device::MAX_DEVICES;
use crate::sys::xsk::XskStatistics;

/// A snapshot of everything that is counted. The sums, at a quiet moment:
///
/// * `xdp.seen = xdp.passed + xdp.redirected`; `no_socket`, `malformed`, `fragments` and `merged` are among those passed
/// * `xdp.redirected = xsk.rx_dropped + xsk.rx_ring_full + redirect_errors + received + rx_pending`
/// * `received = stored + failed + released + packets_in_flight + packets_held`
/// * `submitted = completed + commands_in_flight`
/// * `command_latency` counts `completed`, and `packet_latency` counts `stored + failed`, if the caller keeps no frame
///   that was written
/// * `free + filled + held + in_flight` frames are all there are
///
/// They hold for each lane, whose frames are those that belong to it, and for all lanes together, where `free` includes
/// the reserve. A packet counts on the lane that received it, a command on the lane that it was submitted to. The first
/// sum of all lanes includes the queues without a lane.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Statistics {
    pub xdp: XdpCounters,
    pub xsk: XskStatistics,
    pub rx_pending: u64,
    /// Redirected packets that the kernel does not count: the remainder of the second sum.
    pub redirect_errors: u64,
    pub received: u64,
    pub received_bytes: u64,
    pub sq_full: u64,
    pub bad_descriptors: u64,
    pub misplaced: u64,
    pub packed: u64,
    pub packed_bytes: u64,
    pub stored: u64,
    pub stored_bytes: u64,
    pub failed: u64,
    pub released: u64,
    pub submitted: u64,
    pub completed: u64,
    pub errors: u64,
    pub operations: u64,
    pub bounced: u64,
    pub bounced_bytes: u64,
    pub bytes_written: u64,
    pub bytes_read: u64,
    pub spilled: u64,
    pub spilled_bytes: u64,
    pub sleeps: u64,
    pub packet_latency: Latency,
    pub command_latency: Latency,
    pub frames: Census,
    /// Free frames that no lane has; part of `frames.free` of all lanes together.
    pub frames_reserve: u64,
    /// Of the context; a lane has none.
    pub buffers: BufferCounts,
    pub link: LinkState,
    /// Of each device: parts of `operations`, `errors`, `bytes_written`, `bytes_read`, `spilled` and `spilled_bytes`.
    pub devices: [DeviceCounts; MAX_DEVICES],
}

impl AddAssign<&Statistics> for Statistics {
    /// Adds what another lane has counted. The link and the buffers are none of the sums.
    fn add_assign(&mut self, lane: &Statistics) {
        // Every field, so that a new one cannot be forgotten.
        let Statistics {
            xdp,
            xsk,
            rx_pending,
            redirect_errors,
            received,
            received_bytes,
            sq_full,
            bad_descriptors,
            misplaced,
            packed,
            packed_bytes,
            stored,
            stored_bytes,
            failed,
            released,
            submitted,
            completed,
            errors,
            operations,
            bounced,
            bounced_bytes,
            bytes_written,
            bytes_read,
            spilled,
            spilled_bytes,
            sleeps,
            frames_reserve,
            packet_latency,
            command_latency,
            frames,
            link: _,
            buffers: _,
            devices,
        } = lane;
        self.xdp += *xdp;
        self.xsk += *xsk;
        self.packet_latency += packet_latency;
        self.command_latency += command_latency;
        self.frames += *frames;
        for (to, from) in self.devices.iter_mut().zip(devices) {
            *to += *from;
        }
        for (to, from) in [
            (&mut self.rx_pending, rx_pending),
            (&mut self.redirect_errors, redirect_errors),
            (&mut self.received, received),
            (&mut self.received_bytes, received_bytes),
            (&mut self.sq_full, sq_full),
            (&mut self.bad_descriptors, bad_descriptors),
            (&mut self.misplaced, misplaced),
            (&mut self.packed, packed),
            (&mut self.packed_bytes, packed_bytes),
            (&mut self.stored, stored),
            (&mut self.stored_bytes, stored_bytes),
            (&mut self.failed, failed),
            (&mut self.released, released),
            (&mut self.submitted, submitted),
            (&mut self.completed, completed),
            (&mut self.errors, errors),
            (&mut self.operations, operations),
            (&mut self.bounced, bounced),
            (&mut self.bounced_bytes, bounced_bytes),
            (&mut self.bytes_written, bytes_written),
            (&mut self.bytes_read, bytes_read),
            (&mut self.spilled, spilled),
            (&mut self.spilled_bytes, spilled_bytes),
            (&mut self.sleeps, sleeps),
            (&mut self.frames_reserve, frames_reserve),
        ] {
            *to += from;
        }
    }
}

impl Statistics {
    /// What of a total no lane has counted: packets of queues without a lane, the reserve, and buffers. The rest is zero.
    pub fn without(&self, lanes: &[Statistics]) -> Statistics {
        let mut xdp = self.xdp;
        lanes.iter().for_each(|lane| xdp -= lane.xdp);
        Statistics {
            xdp,
            frames: Census {
                free: self.frames_reserve,
                ..Census::default()
            },
            frames_reserve: self.frames_reserve,
            buffers: self.buffers,
            link: self.link,
            ..Statistics::default()
        }
    }

    /// Fills in what the library counts, but for frames and latencies. The kernel's part was filled in before.
    pub fn fill(&mut self, rx: &RxStats, outcomes: &OutcomeStats, engine: &EngineStats) {
        self.received = rx.received.get();
        self.received_bytes = rx.received_bytes.get();
        self.sq_full = rx.sq_full.get();
        self.bad_descriptors = rx.bad_descriptors.get();
        self.misplaced = rx.misplaced.get();
        self.packed = rx.packed.get();
        self.packed_bytes = rx.packed_bytes.get();
        self.stored = outcomes.stored.get();
        self.stored_bytes = outcomes.stored_bytes.get();
        self.failed = outcomes.failed.get();
        self.released = outcomes.released.get();
        self.completed = engine.completed.get();
        self.submitted = engine.submitted.get();
        self.errors = engine.errors.get();
        self.bounced = engine.bounced.get();
        self.bounced_bytes = engine.bounced_bytes.get();
        let mut all = DeviceCounts::default();
        for (counts, device) in self.devices.iter_mut().zip(&engine.devices) {
            *counts = device.snapshot();
            all += *counts;
        }
        self.operations = all.operations;
        self.bytes_written = all.bytes_written;
        self.bytes_read = all.bytes_read;
        self.spilled = all.spilled;
        self.spilled_bytes = all.spilled_bytes;
        self.sleeps = engine.sleeps.get();
        self.redirect_errors = self.xdp.redirected.saturating_sub(self.accounted_for());
    }

    /// Whether no more packets are accounted for than were redirected.
    pub fn is_consistent(&self) -> bool {
        self.accounted_for() <= self.xdp.redirected
    }

    /// Redirected packets of which is known what became of them in the kernel.
    pub fn accounted_for(&self) -> u64 {
        self.xsk.rx_dropped + self.xsk.rx_ring_full + self.received + self.rx_pending
    }

    pub fn commands_in_flight(&self) -> u64 {
        self.submitted.saturating_sub(self.completed)
    }
}
