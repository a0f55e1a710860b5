//! Statistics: a snapshot of all counters. The sums of the documentation hold between them.

#![forbid(unsafe_code)]

use crate::counters::{EngineStats, OutcomeStats, RxStats};
use crate::frame::Census;
use crate::latency::Latency;
use crate::net::watch::LinkState;
use crate::net::wire::XdpCounters;
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
    pub link: LinkState,
}

impl Statistics {
    /// Fills in what the library counts. The kernel's part was filled in before.
    pub fn fill(
        &mut self,
        rx: &RxStats,
        outcomes: &OutcomeStats,
        engine: &EngineStats,
        frames: Census,
    ) {
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
        self.operations = engine.operations.get();
        self.bounced = engine.bounced.get();
        self.bounced_bytes = engine.bounced_bytes.get();
        self.bytes_written = engine.bytes_written.get();
        self.bytes_read = engine.bytes_read.get();
        self.spilled = engine.spilled.get();
        self.spilled_bytes = engine.spilled_bytes.get();
        self.sleeps = engine.sleeps.get();
        self.packet_latency = outcomes.latency.snapshot();
        self.command_latency = engine.latency.snapshot();
        self.frames = frames;
        self.redirect_errors = self.xdp.redirected.saturating_sub(self.accounted_for());
    }

    /// Redirected packets of which is known what became of them in the kernel.
    pub fn accounted_for(&self) -> u64 {
        self.xsk.rx_dropped + self.xsk.rx_ring_full + self.received + self.rx_pending
    }

    pub fn commands_in_flight(&self) -> u64 {
        self.submitted.saturating_sub(self.completed)
    }
}
