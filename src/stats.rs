//! Counters. Every one has a single place where it grows; the sums of the documentation hold between them.

#![forbid(unsafe_code)]

use std::sync::atomic::{AtomicU64, Ordering};

use crate::frame::Census;
use crate::latency::{Histogram, Latency};
use crate::net::watch::LinkState;
use crate::net::wire::XdpCounters;
use crate::sys::xsk::XskStatistics;

/// A counter that one or more threads add to, in batches where it matters.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    pub fn add(&self, n: u64) {
        if n > 0 {
            self.0.fetch_add(n, Ordering::Relaxed);
        }
    }

    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// Written by the thread that drives the engine. A cache line apart from the others'.
#[derive(Debug, Default)]
#[repr(align(128))]
pub struct EngineStats {
    /// Entries taken from the SQ ring.
    pub submitted: Counter,
    /// Completions put into the CQ ring.
    pub completed: Counter,
    /// Of these, with a status other than success.
    pub errors: Counter,
    /// Operations given to the device (a command may take several).
    pub operations: Counter,
    /// Commands whose data was copied by the library because the device could not take it in place.
    pub bounced: Counter,
    pub bounced_bytes: Counter,
    pub bytes_written: Counter,
    pub bytes_read: Counter,
    /// Writes that the device failed and the spill took; not in `errors` and `bytes_written`.
    pub spilled: Counter,
    pub spilled_bytes: Counter,
    /// Turns that found nothing to do and slept.
    pub sleeps: Counter,
    /// From a command's submission to its completion in the CQ ring.
    pub latency: Histogram,
}

/// Written by the thread that receives and submits.
#[derive(Debug, Default)]
#[repr(align(128))]
pub struct RxStats {
    /// Packets handed to the caller.
    pub received: Counter,
    pub received_bytes: Counter,
    /// Submissions refused because the SQ ring was full.
    pub sq_full: Counter,
    /// Descriptors of the kernel that made no sense.
    pub bad_descriptors: Counter,
    /// Packets not where the headroom should have put them.
    pub misplaced: Counter,
}

/// Fates of packets, and of the frames they came in; counted where the frame becomes free.
#[derive(Debug, Default)]
#[repr(align(128))]
pub struct OutcomeStats {
    pub stored: Counter,
    pub stored_bytes: Counter,
    pub failed: Counter,
    pub released: Counter,
    /// From a packet's arrival until the completion of its first write was taken. Written by the taker.
    pub latency: Histogram,
}

/// A snapshot of everything that is counted. The sums, at a quiet moment:
///
/// * `xdp.seen = xdp.passed + xdp.redirected`; `no_socket`, `malformed`, `fragments` and `merged` are among those passed
/// * `xdp.redirected = xsk.rx_dropped + xsk.rx_ring_full + redirect_errors + received + rx_pending`
/// * `received = stored + failed + released + packets_in_flight + packets_held`
/// * `submitted = completed + commands_in_flight`
/// * `command_latency` counts `completed`, and `packet_latency` counts `stored + failed` where the caller keeps
///   no frame that was written
/// * `free + filled + held + in_flight` frames are all there are
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Statistics {
    pub xdp: XdpCounters,
    pub xsk: XskStatistics,
    pub rx_pending: u64,
    /// Redirected packets that the kernel counts nowhere: what is left of the second sum.
    pub redirect_errors: u64,
    pub received: u64,
    pub received_bytes: u64,
    pub sq_full: u64,
    pub bad_descriptors: u64,
    pub misplaced: u64,
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
    /// Fills in what the library itself counts; the kernel's part is there already.
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
        let known = self.xsk.rx_dropped + self.xsk.rx_ring_full + self.received + self.rx_pending;
        self.redirect_errors = self.xdp.redirected.saturating_sub(known);
    }

    pub fn commands_in_flight(&self) -> u64 {
        self.submitted.saturating_sub(self.completed)
    }
}
