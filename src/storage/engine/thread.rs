//! The library's own thread around an engine.

#![forbid(unsafe_code)]

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use super::{Engine, Shore};
use crate::error::{Error, Result};
use crate::log::{self, Level};
use crate::sys::event::block_signals;

/// With this many commands in flight the engine does not ask to be rung for new entries: the next
/// completion brings it round anyway, and meanwhile the run of entries grows.
const BUSY: u32 = 8;
/// Most completions waited for at once, and the longest wait for that many.
const WAIT_BATCH: u32 = 32;
const WAIT_BATCH_TIME: Duration = Duration::from_micros(200);

/// Messages to an engine's thread.
#[derive(Debug, Default)]
struct Control {
    stop: AtomicBool,
}

/// The library's own thread around an engine. Dropping it stops it: what is in flight is finished first.
pub struct EngineThread {
    control: Arc<Control>,
    shore: Arc<Shore>,
    thread: Option<JoinHandle<()>>,
}

impl EngineThread {
    pub fn spawn(mut engine: Engine, shore: Arc<Shore>) -> Result<EngineThread> {
        let control = Arc::new(Control::default());
        let seen = control.clone();
        let thread = std::thread::Builder::new()
            .name("unified-engine".into())
            .spawn(move || {
                block_signals();
                if let Err(error) = run(&mut engine, &seen) {
                    // Nothing may touch the region when the thread has ended.
                    let _ = engine.abandon();
                    engine
                        .shore
                        .failed
                        .store(error.errno() as u64, Ordering::Release);
                    log::log(Level::Error, format_args!("engine stopped: {error}"));
                    engine.shore.taker_bell.ring();
                }
            })
            .map_err(|e| Error::os(&e, "starting the engine's thread"))?;
        Ok(EngineThread {
            control,
            shore,
            thread: Some(thread),
        })
    }
}

impl Drop for EngineThread {
    fn drop(&mut self) {
        // Release: whatever the stopper did before is seen by the engine's last turns.
        self.control.stop.store(true, Ordering::Release);
        self.shore.engine_bell.ring();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn run(engine: &mut Engine, control: &Control) -> Result<()> {
    engine.enable()?;
    loop {
        // Looked at before the pump, so that it takes whatever was submitted before the stop.
        let stopping = control.stop.load(Ordering::Acquire);
        let turn = engine.pump(false)?;
        if stopping {
            engine.config.retry.limit = 0;
            // Entries that are in the SQ ring now were submitted before the stop: they are served, and
            // what is in flight is finished. A CQ that nobody empties ends it too.
            let stuck = !engine.cq_room()?;
            if engine.in_flight() == 0 && (turn.taken == 0 || stuck) {
                return Ok(());
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
            self.shore.stats.sleeps.add(1);
            self.ring.submit(1, None)?;
        }
        self.awake();
        Ok(())
    }
}
