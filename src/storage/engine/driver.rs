//! Who drives an engine: the caller, or a thread of the library.
//!
//! A driver's thread makes one turn after the other. What it does in between is its pace: a context's thread sleeps in
//! io_uring until a doorbell rings (`Doorbell`), the server of raw rings has no doorbell and polls (`uapi::serve`).

#![forbid(unsafe_code)]

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::end::LONGEST_STUCK;
use super::{Engine, EngineShared, Turn};
use crate::error::{Error, Result};
use crate::log::{self, Level};
use crate::sys::event::block_signals;

/// With this many commands in flight the thread does not ask to be woken for new entries: the next completion wakes it
/// anyway, and until then the run of entries grows.
const BUSY: u32 = 8;
/// Most completions waited for at once, and the longest wait for that many.
const WAIT_BATCH: u32 = 32;
const WAIT_BATCH_TIME: Duration = Duration::from_micros(200);

/// Whoever takes completions often submits more at once. The thread lets others run for this time, so that it finds those
/// entries before it sleeps.
const ANSWER_TIME: Duration = Duration::from_micros(20);
/// After so many times in vain it does so only once in `ANSWER_AGAIN` times.
const ANSWER_TRIES: u32 = 4;
const ANSWER_AGAIN: u32 = 64;

/// Who calls `pump`.
pub enum Driver {
    /// Whoever takes completions.
    Inline(Mutex<Box<Engine>>),
    /// The library's thread, until it is taken to be ended.
    Thread(Mutex<Option<DriverThread>>),
}

impl Driver {
    pub fn inline(engine: Engine) -> Driver {
        Driver::Inline(Mutex::new(Box::new(engine)))
    }

    /// Nobody: the engine has ended.
    pub fn none() -> Driver {
        Driver::Thread(Mutex::new(None))
    }

    /// A thread that sleeps until its doorbell rings. `settle` says where it runs; if that fails, it ends.
    pub fn thread(
        name: &str,
        engine: Engine,
        settle: impl FnOnce(&JoinHandle<()>) -> Result<()>,
    ) -> Result<Driver> {
        let thread = DriverThread::spawn(name, engine, Doorbell::default())?;
        thread.thread.as_ref().map_or(Ok(()), settle)?;
        Ok(Driver::Thread(Mutex::new(Some(thread))))
    }
}

/// What a driver's thread does between two turns, and at its end.
pub trait Pace: Send + 'static {
    /// On the thread, before its first turn.
    fn begin(&mut self) {}

    /// After a turn: rests until there may be work. An error ends the thread.
    fn rest(&mut self, engine: &mut Engine, turn: Turn) -> Result<()>;

    /// After each turn since the thread was told to stop. `true`: it can end.
    fn finish(&mut self, engine: &mut Engine, turn: Turn, control: &Control) -> Result<bool>;

    /// On the thread, after its last turn. When this returns, nothing touches the region any more.
    fn end(&mut self, engine: Engine, result: Result<()>);
}

/// Messages to a driver's thread.
#[derive(Debug, Default)]
pub struct Control {
    stop: AtomicBool,
    /// With a stop: somebody empties the CQ ring, so entries that wait for room there are served too.
    emptied: AtomicBool,
    /// Nobody waits for what the device has not answered.
    left: AtomicBool,
    /// The thread touches nothing any more.
    done: AtomicBool,
}

/// Reports the end of the thread, also after a panic.
struct Ended(Arc<Control>, Arc<EngineShared>);

impl Drop for Ended {
    fn drop(&mut self) {
        self.0.done.store(true, Ordering::Release);
        self.1.taker_bell.ring();
    }
}

/// The library's thread around an engine. Dropping it stops it: it finishes first what is in flight.
#[derive(Debug)]
pub struct DriverThread {
    control: Arc<Control>,
    shared: Arc<EngineShared>,
    thread: Option<JoinHandle<()>>,
}

impl DriverThread {
    pub fn spawn(name: &str, mut engine: Engine, mut pace: impl Pace) -> Result<DriverThread> {
        let control = Arc::new(Control::default());
        let shared = engine.shared().clone();
        let (seen, ended) = (control.clone(), Ended(control.clone(), shared.clone()));
        let thread = std::thread::Builder::new()
            .name(name.into())
            .spawn(move || {
                block_signals();
                let _ended = ended;
                pace.begin();
                let result = run(&mut engine, &mut pace, &seen);
                if let Err(error) = &result {
                    // First: whoever waits must not do so for a device that may never answer.
                    engine.shared.end.fail(error.errno());
                }
                pace.end(engine, result);
            })
            .map_err(|e| Error::os(&e, format_args!("starting the thread {name}")))?;
        Ok(DriverThread {
            control,
            shared,
            thread: Some(thread),
        })
    }

    fn stop(&self) {
        // Release: entries that were published before the stop are seen by the last turns.
        self.control.stop.store(true, Ordering::Release);
        self.shared.engine_bell.ring();
    }

    /// Tells it to carry out what is in the SQ ring and then to end, while the caller empties the CQ ring.
    pub fn finish(&self) {
        self.control.emptied.store(true, Ordering::Release);
        self.stop();
    }

    pub fn is_finished(&self) -> bool {
        self.control.done.load(Ordering::Acquire)
    }

    /// Waits no longer for what the device has not answered. The thread keeps the memory that belongs to it, and ends
    /// when the device answers.
    pub fn leave(mut self) {
        self.control.left.store(true, Ordering::Release);
        self.stop();
        drop(self.thread.take());
    }
}

impl Drop for DriverThread {
    fn drop(&mut self) {
        self.stop();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn run(engine: &mut Engine, pace: &mut impl Pace, control: &Control) -> Result<()> {
    engine.enable()?;
    loop {
        // Read before the turn, so that the turn takes whatever was submitted before the stop.
        let stopping = control.stop.load(Ordering::Acquire);
        let turn = engine.pump(false)?;
        if stopping {
            if pace.finish(engine, turn, control)? {
                return Ok(());
            }
            continue;
        }
        // Read again after the turn, which may have consumed the ring of the bell that comes with a stop.
        if !control.stop.load(Ordering::Acquire) {
            pace.rest(engine, turn)?;
        }
    }
}

/// Sleeps in io_uring until a completion arrives or the doorbell rings.
#[derive(Debug, Default)]
struct Doorbell {
    stuck_since: Option<Instant>,
    /// Times in a row that nobody answered completions with entries.
    unanswered: u32,
}

impl Doorbell {
    /// Whether there are entries, after those who wait for the completions of a turn had time to submit some.
    fn is_answered(&mut self, engine: &mut Engine, turn: Turn) -> Result<bool> {
        if turn.completed == 0 {
            return Ok(false);
        }
        if self.unanswered >= ANSWER_TRIES && !self.unanswered.is_multiple_of(ANSWER_AGAIN) {
            self.unanswered = self.unanswered.wrapping_add(1);
            return Ok(false);
        }
        let begin = Instant::now();
        while !engine.has_entries()? {
            if begin.elapsed() >= ANSWER_TIME {
                self.unanswered = self.unanswered.wrapping_add(1);
                return Ok(false);
            }
            std::thread::yield_now();
        }
        self.unanswered = 0;
        Ok(true)
    }
}

fn no_room_left() -> Error {
    Error::new(
        libc::EBADMSG,
        "CQ ring: it was emptied but has no room; something outside the library wrote to the region",
    )
}

impl Pace for Doorbell {
    fn rest(&mut self, engine: &mut Engine, turn: Turn) -> Result<()> {
        if self.is_answered(engine, turn)? {
            return Ok(());
        }
        if engine.in_flight() >= BUSY && engine.has_room()? {
            // Busy: no doorbell wanted. New entries wait for the next completion and go in one batch.
            let want = (engine.operating() / 4).clamp(1, WAIT_BATCH);
            engine.wait_for(want, Some(WAIT_BATCH_TIME))?;
        } else if engine.prepare_sleep()? {
            engine.shared.stats.sleeps.add(1);
            engine.wait_for(1, None)?;
        }
        engine.awake();
        Ok(())
    }

    /// Entries that are in the SQ ring now were submitted before the stop: they are carried out, and what is in flight is
    /// finished. If nobody empties the CQ ring, a full one ends it too.
    fn finish(&mut self, engine: &mut Engine, turn: Turn, control: &Control) -> Result<bool> {
        if control.left.load(Ordering::Acquire) {
            engine.abandon()?;
            return Ok(true);
        }
        let emptied = control.emptied.load(Ordering::Acquire);
        if !emptied {
            engine.stop_retries();
        }
        let stuck = !engine.has_room()?;
        if engine.in_flight() == 0 {
            let done = match emptied {
                true => !engine.has_entries()?,
                false => turn.taken == 0 || stuck,
            };
            if done {
                return Ok(true);
            }
            if stuck {
                let since = *self.stuck_since.get_or_insert_with(Instant::now);
                if since.elapsed() >= LONGEST_STUCK {
                    return Err(no_room_left());
                }
                std::thread::sleep(WAIT_BATCH_TIME);
            } else {
                self.stuck_since = None;
            }
        }
        let want = u32::from(engine.in_flight() > 0);
        engine.wait_for(want, Some(WAIT_BATCH_TIME))?;
        Ok(false)
    }

    fn end(&mut self, mut engine: Engine, result: Result<()>) {
        let Err(error) = result else {
            return;
        };
        log::log(Level::Error, format_args!("engine stopped: {error}"));
        if engine.abandon().is_err() && engine.in_flight() > 0 {
            // The device may still write to its memory, which is never given back.
            std::mem::forget(engine);
        }
    }
}
