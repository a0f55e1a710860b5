//! Packets of the recorded ports that are not in the log.

#![forbid(unsafe_code)]

use std::time::{SystemTime, UNIX_EPOCH};

use crate::context::Context;
use crate::error::Result;
use crate::lane::Lane;
use crate::record::Losses;
use crate::stats::Statistics;
use crate::sys::event::monotonic_ns;

/// Losses since the log was opened, added to those that it recorded before.
#[derive(Debug)]
pub(super) struct LossCount {
    pub(super) before: Losses,
    /// The context's counters when the log was opened.
    base: (u64, u64),
    pub(super) known: Losses,
}

impl LossCount {
    pub(super) fn begin(context: &Context, lane: &Lane, before: Losses) -> Result<LossCount> {
        Ok(LossCount {
            before,
            base: lost(&context.losses_of(lane)?),
            known: before,
        })
    }

    /// Looks at the counters. If they cannot be read, the known losses stay.
    pub(super) fn look(&mut self, context: &Context, lane: &Lane) {
        if let Ok(stats) = context.losses_of(lane) {
            self.add(&stats);
        }
    }

    fn add(&mut self, stats: &Statistics) {
        let now = lost(stats);
        let known = &mut self.known;
        let total = known.total();
        // The counters of a program that was detached are 0: keep the known values.
        let sum = |before: u64, now: u64, base: u64, known: u64| {
            known.max(before.saturating_add(now.saturating_sub(base)))
        };
        known.dropped = sum(self.before.dropped, now.0, self.base.0, known.dropped);
        known.unrecorded = sum(self.before.unrecorded, now.1, self.base.1, known.unrecorded);
        if known.total() != total {
            known.last = wall_offset().wrapping_add(monotonic_ns());
            if known.first == 0 {
                known.first = known.last;
            }
        }
    }
}

/// Packets of the recorded ports that are not in the log: dropped by the kernel, and seen but not recorded. Failed
/// writes are not counted here: they leave gaps in the sequence numbers.
pub(super) fn lost(stats: &Statistics) -> (u64, u64) {
    let (xdp, xsk) = (stats.xdp, stats.xsk);
    (
        xsk.rx_dropped + xsk.rx_ring_full + stats.redirect_errors,
        xdp.no_socket + xdp.malformed + xdp.merged + stats.bad_descriptors + stats.released,
    )
}

/// CLOCK_REALTIME minus CLOCK_MONOTONIC, in ns. A thread that is interrupted between the two would be wrong by that time, and
/// with it the times of all packets until it looks again.
pub(super) fn wall_offset() -> u64 {
    const TRIES: u32 = 5;
    const SHORT: u64 = 10_000;
    let read = || {
        let before = monotonic_ns();
        let wall = SystemTime::now().duration_since(UNIX_EPOCH);
        let took = monotonic_ns() - before;
        let wall = wall.unwrap_or_default().as_nanos() as u64;
        (took, wall.wrapping_sub(before + took / 2))
    };
    let mut best = read();
    for _ in 1..TRIES {
        if best.0 <= SHORT {
            break;
        }
        best = best.min(read());
    }
    best.1
}
