//! What the engine shares with those who feed it and empty it.

#![forbid(unsafe_code)]

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering, fence};

use parking_lot::Mutex;

use super::changes::Changes;
use crate::counters::EngineStats;
use crate::end::End;
use crate::error::{Error, Result};
use crate::latency::Stamps;
use crate::sys::event::Doorbell;

/// A command that its device does not answer. It stays in flight.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stuck {
    pub user_data: u64,
    pub device: u8,
    /// Of its data, in the data buffers.
    pub offset: u64,
    /// Its first block.
    pub lba: u64,
    /// Frames that travel with it; 0: none.
    pub frames: u32,
}

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
    /// Somebody wants to know which operations their devices do not answer.
    look: AtomicBool,
    stuck: Mutex<Vec<Stuck>>,
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
            look: AtomicBool::new(false),
            stuck: Mutex::new(Vec::new()),
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

    /// Asks the engine to look for commands that their devices do not answer. To be called once a second: those are found that
    /// were in flight at the call before, and whose device has answered nothing since, or only younger ones.
    pub fn look_for_stuck(&self) {
        self.look.store(true, Ordering::Release);
        self.engine_bell.ring();
    }

    pub(super) fn takes_look(&self) -> bool {
        // Read first: this is asked in every turn.
        self.look.load(Ordering::Relaxed) && self.look.swap(false, Ordering::Acquire)
    }

    pub(super) fn report(&self, stuck: Stuck) {
        self.stuck.lock().push(stuck);
    }

    /// What was found; each at every look until it is answered.
    pub fn take_stuck(&self) -> Vec<Stuck> {
        std::mem::take(&mut *self.stuck.lock())
    }

    /// Leaves a device out of the flushes of all devices, and fails writes that can go elsewhere before the device has them; or
    /// takes it in again.
    pub fn set_out(&self, device: u8, out: bool) {
        if let Some(stats) = self.stats.devices.get(usize::from(device)) {
            stats.out.store(out, Ordering::Relaxed);
        }
    }

    /// Whether a device is left out.
    pub fn is_out(&self, device: u8) -> bool {
        let stats = self.stats.devices.get(usize::from(device));
        stats.is_some_and(|stats| stats.out.load(Ordering::Relaxed))
    }

    /// The errno of a failure that has stopped the engine.
    pub fn failure(&self) -> Option<i32> {
        self.end.failure()
    }
}
