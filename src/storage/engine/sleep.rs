//! Sleeping without losing a wakeup, for whoever drives the engine.

#![forbid(unsafe_code)]

use std::sync::atomic::{Ordering, fence};
use std::time::Duration;

use super::{DOORBELL_DATA, Engine};
use crate::error::Result;
use crate::storage::uring;
use crate::sys::uring::Op;

impl Engine {
    /// Prepares to sleep: arms the doorbell, then asks to be woken by the SQ's producer, or by the CQ's consumer if that
    /// ring is full. Returns `false` if there is work after all. The caller submits and sleeps on `fd`, then calls
    /// `awake`.
    pub fn prepare_sleep(&mut self) -> Result<bool> {
        if !self.bell_armed {
            let poll = Op::Poll {
                file: self.bell_file,
            };
            self.queue(&poll, DOORBELL_DATA).map_err(uring::failed)?;
            self.bell_armed = true;
        }
        let blocked = self.stalled.is_some() || self.slab.is_full();
        if !self.has_room()? {
            self.shared.cq_starved.store(true, Ordering::Relaxed);
            fence(Ordering::SeqCst);
            return Ok(!self.has_room()?);
        }
        if blocked {
            // Only a completion helps, and one will come: every slot and piece in use is in flight.
            return Ok(true);
        }
        self.sq.prepare_sleep()
    }

    /// Undoes `prepare_sleep`.
    pub fn awake(&mut self) {
        self.sq.awake();
        self.shared.cq_starved.store(false, Ordering::Relaxed);
    }

    /// Submits queued operations and waits for a completion, for at most `timeout`. For a driver that polls and has no
    /// doorbell.
    pub fn wait(&mut self, timeout: Duration) -> Result<()> {
        self.wait_for(1, Some(timeout))
    }

    /// Submits queued operations and waits for `count` completions, for at most `timeout`.
    pub(super) fn wait_for(&mut self, count: u32, timeout: Option<Duration>) -> Result<()> {
        self.ring
            .submit(count as usize, timeout)
            .map_err(uring::failed)
    }
}
