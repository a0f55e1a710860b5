//! The library's own thread around an engine.

#![forbid(unsafe_code)]

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::{Engine, EngineShared};
use crate::error::{Error, Result};
use crate::log::{self, Level};
use crate::sys::event::block_signals;

/// With this many commands in flight the engine does not ask to be rung for new entries: the next
/// completion brings it round anyway, and meanwhile the run of entries grows.
const BUSY: u32 = 8;
/// Most completions waited for at once, and the longest wait for that many.
const WAIT_BATCH: u32 = 32;
const WAIT_BATCH_TIME: Duration = Duration::from_micros(200);

/// So long an engine that ends has nothing in flight, and no room in a CQ that is being emptied: the rings are broken.
pub const LONGEST_STUCK: Duration = Duration::from_secs(1);

fn no_room_left() -> Error {
    Error::new(
        libc::EBADMSG,
        "CQ ring: it was emptied and has no room all the same; something outside the library wrote to the region",
    )
}

/// Messages to an engine's thread.
#[derive(Debug, Default)]
struct Control {
    stop: AtomicBool,
    /// With a stop: somebody empties the CQ ring, so what waits for room there is served too.
    emptied: AtomicBool,
    /// What the device has not answered is not waited for by anybody.
    left: AtomicBool,
    /// It touches nothing any more.
    done: AtomicBool,
}

/// Tells whoever waits for the end of the thread, also when it panics.
struct Ended(Arc<Control>, Arc<EngineShared>);

impl Drop for Ended {
    fn drop(&mut self) {
        self.0.done.store(true, Ordering::Release);
        self.1.taker_bell.ring();
    }
}

/// The library's own thread around an engine. Dropping it stops it: what is in flight is finished first.
pub struct EngineThread {
    control: Arc<Control>,
    shared: Arc<EngineShared>,
    thread: Option<JoinHandle<()>>,
}

impl EngineThread {
    pub fn spawn(mut engine: Engine, shared: Arc<EngineShared>) -> Result<EngineThread> {
        let control = Arc::new(Control::default());
        let seen = control.clone();
        let thread = std::thread::Builder::new()
            .name("unified-engine".into())
            .spawn(move || {
                block_signals();
                let _ended = Ended(seen.clone(), engine.shared.clone());
                if let Err(error) = run(&mut engine, &seen) {
                    // First: whoever waits must not do so for a device that may never answer.
                    engine.shared.end.fail(error.errno());
                    log::log(Level::Error, format_args!("engine stopped: {error}"));
                    // Nothing may touch the region when the thread has ended.
                    if engine.abandon().is_err() && engine.in_flight() > 0 {
                        std::mem::forget(engine);
                    }
                }
            })
            .map_err(|e| Error::os(&e, "starting the engine's thread"))?;
        Ok(EngineThread {
            control,
            shared,
            thread: Some(thread),
        })
    }
}

impl EngineThread {
    fn stop(&self) {
        // Release: whatever the stopper did before is seen by the engine's last turns.
        self.control.stop.store(true, Ordering::Release);
        self.shared.engine_bell.ring();
    }

    /// Tells it to carry out what stands in the SQ ring and then to end, while the caller empties the CQ ring.
    pub fn finish(&self) {
        self.control.emptied.store(true, Ordering::Release);
        self.stop();
    }

    pub fn is_finished(&self) -> bool {
        self.control.done.load(Ordering::Acquire)
    }

    /// Waits no longer for what the device has not answered. The thread keeps the memory that belongs to it, and ends
    /// when it is answered.
    pub fn leave(mut self) {
        self.control.left.store(true, Ordering::Release);
        self.stop();
        drop(self.thread.take());
    }
}

impl Drop for EngineThread {
    fn drop(&mut self) {
        self.stop();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn run(engine: &mut Engine, control: &Control) -> Result<()> {
    engine.enable()?;
    let mut stuck_since = None;
    loop {
        // Looked at before the pump, so that it takes whatever was submitted before the stop.
        let stopping = control.stop.load(Ordering::Acquire);
        let turn = engine.pump(false)?;
        if stopping {
            if control.left.load(Ordering::Acquire) {
                return engine.abandon();
            }
            // Entries that are in the SQ ring now were submitted before the stop: they are served, and
            // what is in flight is finished. A CQ that nobody empties ends it too.
            let emptied = control.emptied.load(Ordering::Acquire);
            if !emptied {
                engine.config.retry.limit = 0;
            }
            let stuck = !engine.cq_room()?;
            if engine.in_flight() == 0 {
                let done = if emptied {
                    !engine.has_entries()?
                } else {
                    turn.taken == 0 || stuck
                };
                if done {
                    return Ok(());
                }
                if stuck {
                    let since = *stuck_since.get_or_insert_with(Instant::now);
                    if since.elapsed() >= LONGEST_STUCK {
                        return Err(no_room_left());
                    }
                    std::thread::sleep(WAIT_BATCH_TIME);
                } else {
                    stuck_since = None;
                }
            }
            engine
                .ring
                .submit(usize::from(engine.in_flight() > 0), Some(WAIT_BATCH_TIME))?;
            continue;
        }
        // And again behind it, for it may have taken the ring of the bell that comes with a stop.
        if !control.stop.load(Ordering::Acquire) {
            engine.sleep()?;
        }
    }
}

impl Engine {
    /// Sleeps in io_uring until a completion or the doorbell, as its thread does.
    fn sleep(&mut self) -> Result<()> {
        let in_flight = self.in_flight();
        let ready = if in_flight >= BUSY && self.cq_room()? {
            // Busy: no doorbell wanted. New entries wait for the next completion and go in one batch.
            let want = (self.operating / 4).clamp(1, WAIT_BATCH);
            self.ring.submit(want as usize, Some(WAIT_BATCH_TIME))?;
            false
        } else {
            self.prepare_sleep()?
        };
        if ready {
            self.shared.stats.sleeps.add(1);
            self.ring.submit(1, None)?;
        }
        self.awake();
        Ok(())
    }
}
