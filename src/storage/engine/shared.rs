//! What the engine shares with those who feed it and empty it.

#![forbid(unsafe_code)]

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering, fence};

use super::changes::Changes;
use crate::counters::EngineStats;
use crate::end::End;
use crate::error::{Error, Result};
use crate::latency::Stamps;
use crate::sys::event::Doorbell;

/// What the engine shares with those who feed it and empty it.
#[derive(Debug)]
pub struct EngineShared {
    /// Rung by the SQ's producer and, if the CQ was full, by its consumer.
    pub engine_bell: Doorbell,
    /// Rung by the engine when the CQ's flag asks for it.
    pub taker_bell: Doorbell,
    /// The engine has entries and no CQ slot for them.
    pub(super) cq_starved: AtomicBool,
    /// Memory to be registered.
    pub changes: Changes,
    /// Something is broken for good (the rings were corrupted, or io_uring fails), or the context is being destroyed.
    pub end: End,
    pub stats: EngineStats,
    /// Devices, a bit for each, that a flush of all devices leaves out.
    out: AtomicU32,
    /// When each entry of the SQ ring was submitted.
    pub stamps: Stamps,
}

impl EngineShared {
    /// For an SQ ring of so many entries, whose producer stamps them (0 if it does not), and so many devices.
    pub fn new(sq_entries: u32, devices: usize) -> Result<Arc<EngineShared>> {
        let bell = || Doorbell::new().map_err(|e| Error::os(&e, "creating an eventfd"));
        Ok(Arc::new(EngineShared {
            engine_bell: bell()?,
            taker_bell: bell()?,
            cq_starved: AtomicBool::new(false),
            changes: Changes::default(),
            end: End::new().map_err(|e| Error::os(&e, "creating an eventfd"))?,
            stats: EngineStats::for_devices(devices),
            out: AtomicU32::new(0),
            stamps: Stamps::new(sq_entries),
        }))
    }

    /// Wakes an engine that waits for CQ places, after the taker has freed some. Once a batch.
    pub fn cq_released(&self) {
        // The rings' need-wakeup protocol, the other way round: release the places, fence, read the flag.
        fence(Ordering::SeqCst);
        if self.cq_starved.load(Ordering::Relaxed) {
            self.engine_bell.ring();
        }
    }

    /// Leaves a device out of the flushes of all devices, or takes it in again.
    pub fn set_out(&self, device: u8, out: bool) {
        let bit = 1 << device;
        match out {
            true => self.out.fetch_or(bit, Ordering::Relaxed),
            false => self.out.fetch_and(!bit, Ordering::Relaxed),
        };
    }

    /// Whether flushes of all devices leave it out.
    pub fn is_out(&self, device: u8) -> bool {
        self.out.load(Ordering::Relaxed) & 1 << device != 0
    }

    /// The errno of a failure that has stopped the engine.
    pub fn failure(&self) -> Option<i32> {
        self.end.failure()
    }
}
