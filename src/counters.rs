//! Counters that threads of the data path add to. Every one has a single place where it grows.

#![forbid(unsafe_code)]

use std::ops::AddAssign;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use crate::latency::Histogram;

/// A counter that one or more threads add to, once a batch on the hot path.
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

/// Written by the thread that drives the engine. On cache lines of its own.
#[derive(Debug, Default)]
#[repr(align(128))]
pub struct EngineStats {
    /// Entries taken from the SQ ring.
    pub submitted: Counter,
    /// Completions put into the CQ ring.
    pub completed: Counter,
    /// Of these, with a status other than success. A run of the pipeline that is submitted again in parts is not one.
    pub errors: Counter,
    /// Commands whose data was copied by the library because the device could not take it in place.
    pub bounced: Counter,
    pub bounced_bytes: Counter,
    /// Turns that found nothing to do and slept.
    pub sleeps: Counter,
    /// From a command's submission to its completion in the CQ ring.
    pub latency: Histogram,
    /// Of each device.
    pub devices: Box<[DeviceStats]>,
}

impl EngineStats {
    pub fn for_devices(count: usize) -> EngineStats {
        EngineStats {
            devices: (0..count).map(|_| DeviceStats::default()).collect(),
            ..EngineStats::default()
        }
    }
}

/// What an engine counts of one device.
#[derive(Debug, Default)]
pub struct DeviceStats {
    /// Operations given to the device (a command may take several).
    pub operations: Counter,
    /// Commands that completed with an error.
    pub errors: Counter,
    pub bytes_written: Counter,
    pub bytes_read: Counter,
    /// Writes that the device failed and the spill took; not in `errors` and `bytes_written`.
    pub spilled: Counter,
    pub spilled_bytes: Counter,
    /// Operations that the device, or its spill, has not answered yet.
    pub in_flight: AtomicU64,
    /// It has failed, and has not answered since: recordings leave it out.
    pub out: AtomicBool,
}

impl DeviceStats {
    pub fn snapshot(&self) -> DeviceCounts {
        DeviceCounts {
            operations: self.operations.get(),
            errors: self.errors.get(),
            bytes_written: self.bytes_written.get(),
            bytes_read: self.bytes_read.get(),
            spilled: self.spilled.get(),
            spilled_bytes: self.spilled_bytes.get(),
            in_flight: self.in_flight.load(Ordering::Relaxed),
            out: self.out.load(Ordering::Relaxed),
        }
    }
}

/// A snapshot of `DeviceStats`.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct DeviceCounts {
    pub operations: u64,
    pub errors: u64,
    pub bytes_written: u64,
    pub bytes_read: u64,
    pub spilled: u64,
    pub spilled_bytes: u64,
    pub in_flight: u64,
    pub out: bool,
}

impl AddAssign for DeviceCounts {
    fn add_assign(&mut self, other: DeviceCounts) {
        self.operations += other.operations;
        self.errors += other.errors;
        self.bytes_written += other.bytes_written;
        self.bytes_read += other.bytes_read;
        self.spilled += other.spilled;
        self.spilled_bytes += other.spilled_bytes;
        self.in_flight += other.in_flight;
        self.out |= other.out;
    }
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
    /// Invalid descriptors from the kernel.
    pub bad_descriptors: Counter,
    /// Packets that do not begin where the headroom says.
    pub misplaced: Counter,
    /// Packets that were copied into a unit with others, and their bytes.
    pub packed: Counter,
    pub packed_bytes: Counter,
}

/// Outcomes of the packets that a lane received, counted when their frame becomes free.
#[derive(Debug, Default)]
#[repr(align(128))]
pub struct OutcomeStats {
    pub stored: Counter,
    pub stored_bytes: Counter,
    pub failed: Counter,
    pub released: Counter,
    /// From a packet's arrival until the completion of its first write was taken. Written by the lane's taker.
    pub latency: Histogram,
    /// The same, written by the takers of other lanes, where the packet was submitted.
    pub latency_elsewhere: Histogram,
}
