//! The documented three threads as one call: the packet thread receives and submits, the storage thread
//! takes completions, and the caller's thread reports.
//!
//! Layouts. *Payload*: every payload padded to whole blocks, one after the other, in chunks over all devices (`stripe`).
//! *Slot*: whole frames with a record header, a log that can be read after a crash (`recorder`, `record`). *Log*: units of
//! packets in segments, on all devices, which the lanes share (`units`, `recorder::set`); `failover` stores elsewhere what a
//! device fails or does not answer.
//!
//! Every write has a number. The storage thread publishes the number up to which all writes are completed. A flush
//! makes durable what was completed when it was submitted, and no more.

#![forbid(unsafe_code)]

mod completions;
mod failover;
mod filling;
mod packets;
mod runs;
pub mod stripe;
mod units;
mod window;
mod write_target;

use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime};

use completions::completions;
use failover::Rescues;
use packets::{Packets, moderation_of};
use runs::FailedRuns;
pub use write_target::stripe_of;
use write_target::{Store, WriteTarget};

use crate::context::Context;
use crate::counters::Counter;
use crate::error::{Error, Result};
use crate::lane::Lane;
use crate::log::{self, Level};
use crate::recorder::{Existing, LogSet};
use crate::storage::device::MAX_DEVICES;
use crate::sys::event::{Doorbell, block_signals};
use crate::sys::thread::join_until;

/// Packets, or completions, taken at once.
const BATCH: usize = 256;
/// A pipeline waits at most this long until its threads, which have nothing left to do, have left the process.
const LONGEST_EXIT: Duration = Duration::from_secs(1);
/// A stop is noticed after at most this time.
const TICK: Duration = Duration::from_millis(50);
/// Bits in `user_data` above every write's number: a flush (with the number that it covers) and a superblock (with the
/// number of failed writes that it covers).
const FLUSH: u64 = 1 << 63;
const SUPERBLOCK: u64 = 1 << 62;
/// The same: a segment's header or a record of losses in a log of version 2 (with the mark of its segment).
const SEGMENT: u64 = 1 << 61;
/// The same: a write that tries a device (whose number it has) which has failed.
const TRY: u64 = 1 << 60;
/// The same: a part of a run (whose number it has) that is written to another device.
const RESCUE: u64 = 1 << 59;
/// The same: seven bits that tell apart what else would look the same.
const SERIAL: u64 = 0x7f << SERIAL_SHIFT;
const SERIAL_SHIFT: u32 = 52;
/// Most writes between the oldest that is not completed and the newest.
const WINDOW: u64 = 1 << 20;

/// What to do when the range is full.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub enum AtEnd {
    /// Stop storing. Further packets are released and counted.
    #[default]
    Stop,
    /// Continue at the start, over the oldest data.
    Wrap,
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub enum StoreLayout {
    #[default]
    Payload,
    /// A log of version 1.
    Slot,
    /// A log of version 2.
    Log,
}

#[derive(Debug, Default, Clone, Copy)]
pub struct PipelineConfig {
    pub start_lba: u64,
    /// 0: to the end of the device.
    pub blocks: u64,
    pub at_end: AtEnd,
    /// Every write is durable when it completes.
    pub fua: bool,
    pub layout: StoreLayout,
    /// Slot layout: what to do with an existing log.
    pub existing: Existing,
    /// Flush after this many completed writes, and at most this long after one. `None`: flush only at the end.
    pub flush_writes: Option<u32>,
    pub flush_interval: Option<Duration>,
    /// The longest time between two polls of the RX ring while packets come. `None`: 4 ms.
    pub moderation: Option<Duration>,
    /// Log: packets shorter than this, from their Ethernet header on, are packed. `None`: `PACK_BELOW`.
    pub pack_below: Option<u32>,
    /// Log: checksums cover headers only.
    pub unchecked: bool,
    /// Payload layout over several devices: bytes of a chunk. `None`: `stripe::CHUNK_BYTES`.
    pub chunk_bytes: Option<u32>,
}

/// The state of a pipeline.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct PipelineStatus {
    pub running: bool,
    /// 0; ENOSPC if the range is full; EIO if a flush failed; or the error that ended a thread.
    pub error: i32,
    pub next_lba: u64,
    pub wraps: u64,
    /// Writes submitted, and completed with success and without.
    pub submitted: u64,
    pub stored: u64,
    pub failed: u64,
    pub payload_bytes: u64,
    /// Packets released because the range was full, or because they had no payload.
    pub no_space: u64,
    pub empty: u64,
    /// Slot layout: the sequence number of the first write.
    pub first_sequence: u64,
    /// All writes below this number (of `submitted`) are completed; and durable.
    pub completed: u64,
    pub durable: u64,
    pub flushes: u64,
    /// Log: packets shorter than this are packed; 0 in other layouts.
    pub pack_below: u32,
    /// Log on several devices: packets that were written again to another device, since theirs failed.
    pub rescued: u64,
    /// The same: packets that a device had completed, and no flush had covered, when it failed. They are lost if it held them
    /// in a cache that is gone.
    pub unflushed: u64,
}

struct Progress {
    stop: AtomicBool,
    packets_done: AtomicBool,
    /// The storage thread has ended: nobody takes completions any more.
    storage_done: AtomicBool,
    error: AtomicI32,
    next_lba: AtomicU64,
    wraps: AtomicU64,
    submitted: AtomicU64,
    stored: Counter,
    failed: Counter,
    payload_bytes: Counter,
    no_space: Counter,
    empty: Counter,
    first_sequence: u64,
    pack_below: u32,
    completed: AtomicU64,
    durable: AtomicU64,
    flushes: Counter,
    /// Frames of which completions were taken.
    frames_done: AtomicU64,
    /// Superblocks, segments' headers and records of losses in flight.
    superblocks: AtomicU64,
    /// Writes in flight that try a device.
    trying: AtomicU64,
    /// Failed writes that the superblock on the device covers.
    failures_covered: AtomicU64,
    /// Flushes submitted and not completed: 0 or 1.
    flushing: AtomicBool,
    /// Status of the first flush that failed: nothing becomes durable after it.
    flush_failed: AtomicI32,
    fua: bool,
    /// The storage thread made room in the SQ ring, for which the packet thread waits.
    room: Doorbell,
    waiting: AtomicBool,
    /// Runs that failed: the packet thread submits their frames one by one.
    failed_runs: FailedRuns,
    /// Logs of version 2: those that it writes to.
    set: Option<Arc<LogSet>>,
    /// The lanes that write to them, by their numbers in the context.
    lanes: Range<usize>,
    /// Runs that their device does not answer: the packet thread writes them to another one.
    stuck_runs: FailedRuns,
    rescues: Rescues,
    /// Packets of units that were written again to another device.
    rescued: Counter,
    /// A device failed the last flush, or was left out of it unexpectedly: those that are left are to be flushed.
    flush_again: AtomicBool,
    /// Of each device: packets that it completed and no flush has covered, and those that the flush in flight covers.
    unflushed: [AtomicU64; MAX_DEVICES],
    covered: [AtomicU64; MAX_DEVICES],
    /// How often each device had been taken out before the flush in flight.
    times_out: [AtomicU64; MAX_DEVICES],
    /// Of devices that failed: packets that no flush had covered.
    unflushed_lost: Counter,
}

impl Progress {
    fn fail(&self, errno: i32) {
        // The first error is the cause.
        let _ = self
            .error
            .compare_exchange(0, errno, Ordering::Relaxed, Ordering::Relaxed);
    }
}

/// A lane of a context.
#[derive(Clone)]
struct OnLane {
    context: Arc<Context>,
    number: usize,
}

impl OnLane {
    fn lane(&self) -> &Lane {
        &self.context.lanes()[self.number]
    }
}

/// The roles of a lane, until it is dropped.
struct Claim(OnLane);

impl Claim {
    fn new(on: &OnLane) -> Result<Claim> {
        if !on.lane().claim_for_pipeline() {
            return Err(Error::new(
                libc::EALREADY,
                "a pipeline runs on this context or lane already, or is about to end",
            ));
        }
        Ok(Claim(on.clone()))
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        self.0.context.release_range(self.0.number as u32);
        // Nobody tries them any more: the next ones who write here find out for themselves.
        for device in 0..self.0.context.info().devices.len() {
            self.0.lane().engine_shared().set_out(device as u8, false);
        }
        self.0.lane().release_from_pipeline();
    }
}

/// What stores the packets of one lane, or of all lanes of a context.
pub struct Pipeline {
    /// At least one.
    lanes: Vec<LanePipeline>,
}

/// The two threads of a lane.
struct LanePipeline {
    on: OnLane,
    progress: Arc<Progress>,
    threads: Vec<JoinHandle<()>>,
    // Dropped after the threads have ended.
    _claim: Claim,
}

impl Pipeline {
    /// Stores all lanes of a context, with two threads for each. In one recording: the logs on all devices are shared by the
    /// lanes; of a payload layout each lane has an equal part of the range.
    ///
    /// `EINVAL`: the range is not on the device, no log fits into it, several lanes cannot share it, or the moderation is out
    /// of range. `EALREADY`: another pipeline runs or has not ended yet. `EBUSY`: completions of earlier commands were not
    /// taken; the threads would take them for their own.
    pub fn start(context: Arc<Context>, config: PipelineConfig) -> Result<Pipeline> {
        let lanes = context.lanes().len() as u32;
        Pipeline::start_lanes(&context, 0..lanes, config)
    }

    /// As `start`, with one lane alone.
    pub fn start_on_lane(
        context: Arc<Context>,
        lane: u32,
        config: PipelineConfig,
    ) -> Result<Pipeline> {
        context.lane(lane)?;
        Pipeline::start_lanes(&context, lane..lane + 1, config)
    }

    fn start_lanes(
        context: &Arc<Context>,
        numbers: Range<u32>,
        config: PipelineConfig,
    ) -> Result<Pipeline> {
        let moderation = moderation_of(&config)?;
        let of_set = numbers.start as usize..numbers.end as usize;
        let mut claims = Vec::new();
        for number in numbers {
            let on = OnLane {
                context: context.clone(),
                number: number as usize,
            };
            claims.push(Claim::new(&on)?);
            match on.lane().outstanding()? {
                0 => {}
                count => {
                    return Err(Error::new(
                        libc::EBUSY,
                        format!(
                            "starting a pipeline while {count} commands are outstanding: take their completions first"
                        ),
                    ));
                }
            }
        }
        let count = claims.len() as u32;
        let store = match claims.first() {
            Some(claim) => Store::open(context, claim.0.lane(), count, &config)?,
            None => return Ok(Pipeline { lanes: Vec::new() }),
        };
        let mut targets = Vec::new();
        for (place, claim) in (0..).zip(&claims) {
            targets.push(store.target(context, claim.0.lane(), (place, count), &config)?);
        }
        let mut lanes = Vec::new();
        for (claim, target) in claims.into_iter().zip(targets) {
            let set = store.set();
            let lane =
                LanePipeline::start(claim, target, set, of_set.clone(), &config, moderation)?;
            lanes.push(lane);
        }
        Ok(Pipeline { lanes })
    }

    /// Of all lanes together: sums. `next_lba` and `pack_below` are those of the first lane, `error` is the first that there
    /// is, and it runs as long as all of them do.
    pub fn status(&self) -> PipelineStatus {
        let mut all = self.lanes.iter().map(LanePipeline::status);
        let first = all.next().unwrap_or_default();
        all.fold(first, PipelineStatus::and)
    }

    /// Of one lane, by its number in the context. `None` if it is not stored.
    pub fn status_of(&self, lane: u32) -> Option<PipelineStatus> {
        let of = |one: &&LanePipeline| one.on.number == lane as usize;
        self.lanes.iter().find(of).map(LanePipeline::status)
    }

    /// Stores what has been received, flushes the devices, and ends the threads. Packets that come later stay in the
    /// RX ring. Returns the error of a flush, if one failed.
    pub fn stop(mut self) -> (PipelineStatus, Result<()>) {
        self.lanes.iter().for_each(LanePipeline::tell_to_stop);
        self.lanes.iter_mut().for_each(LanePipeline::join);
        let results: Result<Vec<()>> = self.lanes.iter().map(LanePipeline::result).collect();
        (self.status(), results.map(drop))
    }

    /// As a drop, but waits at most until then. If the device keeps the threads waiting, the context is closed, which
    /// ends them.
    pub fn end(mut self, until: Instant) {
        self.lanes.iter().for_each(LanePipeline::tell_to_stop);
        // Dropping them joins them.
        let lanes = std::mem::take(&mut self.lanes);
        lanes.into_iter().for_each(|lane| lane.end(until));
    }
}

impl Drop for Pipeline {
    fn drop(&mut self) {
        // All of them, before the first is waited for; and none is given back while another one may take a device out.
        self.lanes.iter().for_each(LanePipeline::tell_to_stop);
        self.lanes.iter_mut().for_each(LanePipeline::join);
    }
}

impl PipelineStatus {
    /// Of two lanes together.
    fn and(self, other: PipelineStatus) -> PipelineStatus {
        PipelineStatus {
            running: self.running && other.running,
            error: if self.error == 0 {
                other.error
            } else {
                self.error
            },
            next_lba: self.next_lba,
            wraps: self.wraps.max(other.wraps),
            submitted: self.submitted + other.submitted,
            stored: self.stored + other.stored,
            failed: self.failed + other.failed,
            payload_bytes: self.payload_bytes + other.payload_bytes,
            no_space: self.no_space + other.no_space,
            empty: self.empty + other.empty,
            first_sequence: self.first_sequence + other.first_sequence,
            completed: self.completed + other.completed,
            durable: self.durable + other.durable,
            flushes: self.flushes + other.flushes,
            pack_below: self.pack_below,
            rescued: self.rescued + other.rescued,
            unflushed: self.unflushed + other.unflushed,
        }
    }
}

impl LanePipeline {
    /// Starts both threads of a lane.
    fn start(
        claim: Claim,
        target: WriteTarget,
        set: Option<Arc<LogSet>>,
        lanes: Range<usize>,
        config: &PipelineConfig,
        moderation: Duration,
    ) -> Result<LanePipeline> {
        let on = claim.0.clone();
        let progress = Arc::new(Progress {
            stop: AtomicBool::new(false),
            packets_done: AtomicBool::new(false),
            storage_done: AtomicBool::new(false),
            error: AtomicI32::new(0),
            next_lba: AtomicU64::new(target.next_lba()),
            wraps: AtomicU64::new(target.wraps()),
            submitted: AtomicU64::new(0),
            stored: Counter::default(),
            failed: Counter::default(),
            payload_bytes: Counter::default(),
            no_space: Counter::default(),
            empty: Counter::default(),
            first_sequence: target.next_sequence(),
            pack_below: target.pack_below(),
            completed: AtomicU64::new(0),
            durable: AtomicU64::new(0),
            flushes: Counter::default(),
            frames_done: AtomicU64::new(0),
            superblocks: AtomicU64::new(0),
            trying: AtomicU64::new(0),
            failures_covered: AtomicU64::new(0),
            flushing: AtomicBool::new(false),
            flush_failed: AtomicI32::new(0),
            fua: config.fua,
            room: Doorbell::new().map_err(|e| Error::os(&e, "creating an eventfd"))?,
            waiting: AtomicBool::new(false),
            failed_runs: FailedRuns::default(),
            set,
            lanes,
            stuck_runs: FailedRuns::default(),
            rescues: Rescues::default(),
            rescued: Counter::default(),
            flush_again: AtomicBool::new(false),
            unflushed: Default::default(),
            covered: Default::default(),
            times_out: Default::default(),
            unflushed_lost: Counter::default(),
        });
        let number = on.number;
        let (store, packet) = match on.context.lanes().len() {
            1 => ("unified-store".into(), "unified-packet".into()),
            _ => (
                format!("unified-stor-{number}"),
                format!("unified-pack-{number}"),
            ),
        };
        let mut pipeline = LanePipeline {
            on,
            progress,
            threads: Vec::new(),
            _claim: claim,
        };
        pipeline.spawn(
            store,
            |progress| &progress.storage_done,
            |on, progress| completions(&on.context, on.lane(), progress),
        )?;
        let config = *config;
        pipeline.spawn(
            packet,
            |progress| &progress.packets_done,
            move |on, progress| {
                let (context, lane) = (&on.context, on.lane());
                Packets::new(context, lane, progress, target, &config, moderation).run()
            },
        )?;
        Ok(pipeline)
    }

    fn spawn(
        &mut self,
        name: String,
        done: fn(&Progress) -> &AtomicBool,
        body: impl FnOnce(&OnLane, &Progress) -> Result<()> + Send + 'static,
    ) -> Result<()> {
        let (on, progress) = (self.on.clone(), self.progress.clone());
        let called = name.clone();
        let thread = std::thread::Builder::new()
            .name(name.clone())
            .spawn(move || {
                let name = called;
                block_signals();
                // A bug must not keep the other thread waiting for this one.
                let result = catch_unwind(AssertUnwindSafe(|| body(&on, &progress)));
                let bug = |_| Err(Error::new(libc::ENOTRECOVERABLE, "a bug in the library"));
                if let Err(error) = result.unwrap_or_else(bug) {
                    log::log(Level::Error, format_args!("{name} thread ended: {error}"));
                    progress.fail(error.errno());
                    progress.stop.store(true, Ordering::Release);
                }
                // The last thing that it touches: nobody waits for its end.
                drop(on);
                done(&progress).store(true, Ordering::Release);
            })
            .map_err(|e| {
                // The other thread must not wait for this one.
                done(&self.progress).store(true, Ordering::Release);
                Error::os(&e, format_args!("starting the thread {name}"))
            })?;
        self.threads.push(thread);
        let cpus = &self.on.context.info().cpus;
        self.threads.last().map_or(Ok(()), |thread| {
            cpus.bind(self.on.number as u32, thread, &name)
        })
    }

    fn status(&self) -> PipelineStatus {
        let p = &self.progress;
        PipelineStatus {
            running: !p.stop.load(Ordering::Acquire),
            error: p.error.load(Ordering::Relaxed),
            next_lba: p.next_lba.load(Ordering::Relaxed),
            wraps: p.wraps.load(Ordering::Relaxed),
            submitted: p.submitted.load(Ordering::Acquire),
            stored: p.stored.get(),
            failed: p.failed.get(),
            payload_bytes: p.payload_bytes.get(),
            no_space: p.no_space.get(),
            empty: p.empty.get(),
            first_sequence: p.first_sequence,
            completed: p.completed.load(Ordering::Acquire),
            durable: p.durable.load(Ordering::Acquire),
            flushes: p.flushes.get(),
            pack_below: p.pack_below,
            rescued: p.rescued.get(),
            unflushed: p.unflushed_lost.get(),
        }
    }

    /// Once the threads have ended: the error of a flush, if one failed.
    fn result(&self) -> Result<()> {
        let p = &self.progress;
        let failed = p.flush_failed.load(Ordering::Relaxed);
        let (submitted, durable) = (
            p.submitted.load(Ordering::Relaxed),
            p.durable.load(Ordering::Relaxed),
        );
        self.on.lane().alive()?;
        if failed == 0 && durable == submitted {
            return Ok(());
        }
        Err(Error::new(
            libc::EIO,
            format!(
                "of {submitted} writes only the first {durable} are known to be durable (status {failed:#x} of a flush, \
                 error {} of a thread)",
                p.error.load(Ordering::Relaxed)
            ),
        ))
    }

    fn tell_to_stop(&self) {
        if self.on.context.is_ours() {
            self.progress.stop.store(true, Ordering::Release);
            self.progress.room.ring();
        }
    }

    /// See `Pipeline::end`.
    fn end(self, until: Instant) {
        if self.on.context.is_ours() {
            while !self.threads.iter().all(JoinHandle::is_finished) {
                if Instant::now() >= until {
                    self.on.context.close();
                    break;
                }
                std::thread::sleep(Duration::from_millis(1));
            }
        }
        // Dropping it joins them.
    }

    fn join(&mut self) {
        if !self.on.context.is_ours() {
            // A forked child has no such threads.
            self.threads.drain(..).for_each(std::mem::forget);
            return;
        }
        self.tell_to_stop();
        if self.threads.len() < 2 {
            // The packet thread was never started, and the storage thread waits for its end.
            self.progress.packets_done.store(true, Ordering::Release);
        }
        let threads = &self.threads;
        while !threads.iter().all(JoinHandle::is_finished) {
            std::thread::sleep(Duration::from_millis(1));
        }
        // They are through with everything. The kernel keeps one that drove an engine until the writes have ended that it
        // handed to workers, which may be long if a device does not answer.
        let now = SystemTime::UNIX_EPOCH.elapsed().unwrap_or_default();
        for thread in self.threads.drain(..) {
            if !join_until(thread, now + LONGEST_EXIT) {
                log::log(
                    Level::Warn,
                    format_args!(
                        "a device does not answer what a pipeline has written: its thread ends when the device does"
                    ),
                );
            }
        }
    }
}

impl Drop for LanePipeline {
    fn drop(&mut self) {
        self.join();
    }
}
