//! Converts the kernel's timestamps to the clock of this process.
//!
//! bpf_ktime_get_ns() is CLOCK_MONOTONIC of the initial time namespace. In another time namespace the same clock
//! differs by an offset that is constant for the life of the process (time_namespaces(7)).

#![forbid(unsafe_code)]

use std::fs;

use crate::log::{self, Level};

/// The offset to add to a kernel timestamp, to get CLOCK_MONOTONIC as this process reads it.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct StampOffset(u64);

impl StampOffset {
    /// The offset of this process. If it cannot be determined, logs a warning and returns 0.
    pub fn of_this_process() -> StampOffset {
        // A kernel without time namespaces.
        let Ok(offsets) = fs::read_to_string("/proc/self/timens_offsets") else {
            return StampOffset(0);
        };
        // These are the offsets of children. After unshare(2), only a process's children are in the new time
        // namespace.
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

    /// Converts a kernel timestamp. 0 means no timestamp and stays 0.
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
        // The kernel writes -3.5 s like this: the nanoseconds are never negative.
        let behind = StampOffset(parse("monotonic -4 500000000\n").unwrap());
        assert_eq!(behind.apply(10_000_000_000), 6_500_000_000);
        assert_eq!(parse("boottime 1 0\n"), None);
        assert_eq!(parse("monotonic x 0\n"), None);
    }
}
