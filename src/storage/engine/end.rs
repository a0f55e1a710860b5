//! The end of an engine: finishing what is in flight, or waiting until nothing touches memory any more.

#![forbid(unsafe_code)]

use std::time::{Duration, Instant};

use super::{DOORBELL_DATA, Engine, Turn};
use crate::error::Result;

/// Between two looks at devices that end their last commands.
const TICK: Duration = Duration::from_millis(100);
/// An engine that ends, has nothing in flight, and finds no room in a CQ ring that is being emptied gives up after
/// this time: the rings are broken.
pub const LONGEST_STUCK: Duration = Duration::from_secs(1);

impl Engine {
    /// One turn of an engine that ends while somebody empties its CQ ring. `true` when all is done.
    pub fn serve(&mut self) -> Result<bool> {
        self.pump(true)?;
        Ok(self.in_flight() == 0 && !self.has_entries()?)
    }

    /// Ends retries: an operation that fails from now on has failed.
    pub(super) fn stop_retries(&mut self) {
        self.config.retry.limit = 0;
    }

    /// Finishes what is in flight, takes no more, and does not retry. For an engine that is about to be dropped.
    pub fn drain(&mut self) -> Result<()> {
        self.stop_retries();
        let mut turn = Turn::default();
        for target in 0..self.targets.len() as u8 {
            let unplugged = self.unplug(target, &mut turn);
            self.publish(&mut std::mem::take(&mut turn));
            unplugged?;
        }
        while self.in_flight() > 0 {
            let mut reaped = self.reap(&mut turn);
            if reaped.is_ok() && self.targets.len() > 1 {
                // Those that wait for their device were taken, and are finished too.
                reaped = self
                    .take_waiting(&mut turn)
                    .and_then(|()| self.unplug_ready(&mut turn));
            }
            self.publish(&mut std::mem::take(&mut turn));
            reaped?;
            self.submit()?;
            if self.in_flight() > 0 {
                self.wait(TICK)?;
            }
        }
        Ok(())
    }

    /// As `drain`, for broken rings: waits until no operation touches memory any more, and posts no completion.
    pub fn abandon(&mut self) -> Result<()> {
        self.abandon_until(None).map(drop)
    }

    /// As `abandon`, at most until then. `false` if operations are left.
    pub fn abandon_until(&mut self, until: Option<Instant>) -> Result<bool> {
        for target in 0..self.targets.len() {
            // The device does not have it yet.
            if let Some(run) = self.targets[target].run.take() {
                self.forget(run.head);
            }
        }
        while self.in_flight() > 0 {
            if until.is_some_and(|until| Instant::now() >= until) {
                return Ok(false);
            }
            self.wait(TICK)?;
            let mut reaped = std::mem::take(&mut self.reaped);
            reaped.clear();
            self.ring.reap(|done| reaped.push(done));
            for done in reaped.iter().filter(|d| d.user_data != DOORBELL_DATA) {
                let slot = done.user_data as u16;
                self.operation_ended(slot);
                self.forget(slot);
            }
            self.reaped = reaped;
        }
        Ok(true)
    }
}
