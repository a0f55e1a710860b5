//! The kernel's stamps in the clock of this process.
//!
//! bpf_ktime_get_ns() is CLOCK_MONOTONIC of the initial time namespace. In another time namespace the same clock is ahead of
//! it, or behind, by an amount that stays the same as long as the process lives (time_namespaces(7)).

#![forbid(unsafe_code)]

use std::fs;

use crate::log::{self, Level};

/// What is to be added to a stamp of the kernel's to have CLOCK_MONOTONIC as this process reads it.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct StampOffset(u64);

impl StampOffset {
    /// Of this process. 0, with a line in the log, if it cannot be told.
    pub fn of_this_process() -> StampOffset {
        // A kernel without time namespaces.
        let Ok(offsets) = fs::read_to_string("/proc/self/timens_offsets") else {
            return StampOffset(0);
        };
        // They are those that children get: of a process that went into a new time namespace by unshare(2) only its
        // children are in there.
        let namespace = |name: &str| fs::read_link(format!("/proc/self/ns/{name}")).ok();
        if namespace("time") != namespace("time_for_children") {
            log::log(
                Level::Warn,
                format_args!(
                    "this process's children are in a time namespace of their own, so how its own clock compares with the \
                     kernel's cannot be told: if it is in one too, times of packets are wrong; start it in its namespace \
                     (unshare --fork)"
                ),
            );
            return StampOffset(0);
        }
        StampOffset(parse(&offsets).unwrap_or(0))
    }

    /// A stamp of the kernel's in this process's clock; 0 stays 0, for that is none.
    pub fn apply(self, stamp: u64) -> u64 {
        match stamp {
            0 => 0,
            _ => stamp.wrapping_add(self.0),
        }
    }
}

/// The line "monotonic SECONDS NANOSECONDS" as ns, modulo 2^64: clocks may also be set back.
fn parse(offsets: &str) -> Option<u64> {
    offsets.lines().find_map(|line| {
        let mut words = line.split_whitespace();
        if words.next() != Some("monotonic") {
            return None;
        }
        let seconds: i64 = words.next()?.parse().ok()?;
        let nanoseconds: i64 = words.next()?.parse().ok()?;
        let sum = seconds
            .wrapping_mul(1_000_000_000)
            .wrapping_add(nanoseconds);
        Some(sum as u64)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn offsets_ahead_and_behind_are_applied() {
        let text = "monotonic      864000         5\nboottime           7         0\n";
        let ahead = StampOffset(parse(text).unwrap());
        assert_eq!(ahead.apply(100), 864_000_000_000_105);
        assert_eq!(ahead.apply(0), 0);
        // The kernel writes -3.5 s so: the nanoseconds are never negative.
        let behind = StampOffset(parse("monotonic -4 500000000\n").unwrap());
        assert_eq!(behind.apply(10_000_000_000), 6_500_000_000);
        assert_eq!(parse("boottime 1 0\n"), None);
        assert_eq!(parse("monotonic x 0\n"), None);
    }
}
