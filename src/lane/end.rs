//! The end of a lane: what was submitted is carried out, its completions are taken, its engine ends.

#![forbid(unsafe_code)]

use std::time::{Duration, Instant};

use super::Lane;
use super::complete::Batch;
use crate::log::{self, Level};
use crate::storage::engine::{Driver, LONGEST_STUCK};
use crate::sys::abi::{CQE_FRAME, CQE_STORES_NOTHING};
use crate::sys::event::{SignalShield, poll_readable};

/// Between two looks at a device that ends its last commands.
const TICK: Duration = Duration::from_millis(10);

/// Commands that nobody waits for any more.
#[derive(Debug, Default)]
pub struct Unfinished {
    /// Failed, reads and compares left out, and the status of the first.
    pub failed: u64,
    pub status: u16,
    /// Still with the device, or not even given to it.
    pub unanswered: u32,
    /// The device may still use its memory, which stays mapped.
    pub stays: bool,
}

impl Unfinished {
    /// Adds those of another lane.
    pub fn add(&mut self, other: Unfinished) {
        if self.failed == 0 {
            self.status = other.status;
        }
        self.failed += other.failed;
        self.unanswered += other.unanswered;
        self.stays |= other.stays;
    }
}

impl Lane {
    /// Ends the lane after `close`: carries out what was submitted, ends the engine, closes the socket. Waits for the device
    /// at most until then.
    pub fn end(&mut self, until: Instant) -> Unfinished {
        let mut rest = self.finish(until);
        match &mut self.driver {
            Driver::Thread(thread) => match thread.get_mut().take() {
                // It ends when the device answers, and then frees what it has.
                Some(thread) if !thread.is_finished() => {
                    rest.stays = true;
                    thread.leave();
                }
                thread => drop(thread),
            },
            Driver::Inline(engine) => {
                // If something broke, nobody has waited for what is in flight.
                let quiet = engine.get_mut().abandon_until(Some(until));
                rest.stays = !quiet.is_ok_and(|quiet| quiet);
            }
        }
        self.drop_engine(rest.stays);
        let _shield = SignalShield::new();
        self.rx_side.get_mut().receiver = None;
        rest
    }

    /// Drops an inline engine, or leaks it if the device may still read and write its memory.
    fn drop_engine(&mut self, leak: bool) {
        let driver = std::mem::replace(&mut self.driver, Driver::none());
        match driver {
            Driver::Inline(engine) if leak => std::mem::forget(engine),
            driver => drop(driver),
        }
    }

    /// In a forked child: leaves everything to the parent.
    pub fn forget(&mut self) {
        std::mem::forget(std::mem::replace(&mut self.driver, Driver::none()));
        std::mem::forget(self.rx_side.get_mut().receiver.take());
    }

    pub(super) fn is_inline(&self) -> bool {
        matches!(self.driver, Driver::Inline(_))
    }

    /// Carries out what was submitted, published or not, and takes the completions that nobody else takes any more.
    fn finish(&self, until: Instant) -> Unfinished {
        let mut rest = Unfinished::default();
        let submitted = {
            let mut rx_side = self.rx_side.lock();
            self.kick(&mut rx_side);
            rx_side.sq.tail()
        };
        if let Driver::Thread(thread) = &self.driver
            && let Some(thread) = &*thread.lock()
        {
            thread.finish();
        }
        let mut progress = Instant::now();
        loop {
            // Asked before the completions are taken, so that none comes after the last look.
            let done = match &self.driver {
                Driver::Inline(engine) => engine.lock().serve().unwrap_or(true),
                Driver::Thread(thread) => thread.lock().as_ref().is_none_or(|t| t.is_finished()),
            };
            if self.take_rest(&mut rest) {
                progress = Instant::now();
            }
            let left = until.saturating_duration_since(Instant::now());
            if done || left.is_zero() {
                break;
            }
            let pause = left.min(TICK);
            let waited = match &self.driver {
                Driver::Inline(engine) => {
                    let mut engine = engine.lock();
                    if engine.in_flight() > 0 {
                        progress = Instant::now();
                        engine.wait(pause).is_ok()
                    } else if progress.elapsed() < LONGEST_STUCK {
                        // It had no room for completions, and has it now.
                        std::thread::yield_now();
                        true
                    } else {
                        log::log(
                            Level::Error,
                            format_args!(
                                "the CQ ring was emptied and has no room: something wrote to the region"
                            ),
                        );
                        break;
                    }
                }
                Driver::Thread(_) => {
                    self.shared.taker_bell.clear();
                    let asleep = self.taking.lock().prepare_sleep().unwrap_or(true);
                    !asleep || poll_readable(&[self.shared.taker_bell.fd()], Some(pause)).is_ok()
                }
            };
            if !waited {
                std::thread::sleep(pause);
            }
        }
        // Each entry gives one completion.
        rest.unanswered = submitted.wrapping_sub(self.taking.lock().head());
        rest
    }

    /// Takes what is in the CQ ring. Returns whether there was something.
    fn take_rest(&self, rest: &mut Unfinished) -> bool {
        let mut taking = self.taking.lock();
        let mut batch = Batch::default();
        let mut taken = false;
        while let Ok(Some(cqe)) = taking.pop() {
            taken = true;
            let writes = |(frame, _)| self.frames.table.is_writing(frame);
            let stores = match cqe.flags & CQE_FRAME {
                0 => cqe.flags & CQE_STORES_NOTHING == 0,
                _ => self.map.locate(cqe.dma_addr).is_some_and(writes),
            };
            let completion = self.settle(&cqe, &mut batch);
            if completion.status != 0 && stores {
                if rest.failed == 0 {
                    rest.status = completion.status;
                }
                rest.failed += u64::from(completion.frames.max(1));
            }
        }
        // Also without any: the indices in the region may have been overwritten.
        taking.release();
        self.give_back(batch);
        if taken {
            self.shared.cq_released();
        }
        taken
    }
}
