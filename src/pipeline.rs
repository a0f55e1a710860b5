//! The documented three threads as one call: the packet thread receives and submits, the storage thread
//! takes completions, and the caller's thread reports.
//!
//! Two layouts. *Payload*: every payload padded to whole blocks, one behind the other. *Slot*: whole frames
//! with a record header, a log that is found again after a crash (`recorder`, `record`).
//!
//! Every write has a number. The storage thread says up to which number all are completed, and a flush makes
//! durable what was completed when it was submitted, no more.

#![forbid(unsafe_code)]

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::context::{Completion, Context};
use crate::error::{Error, Result};
use crate::log::{self, Level};
use crate::net::rx::Received;
use crate::recorder::{Existing, Recorder};
use crate::stats::Counter;
use crate::storage::command::{opcode, status};
use crate::submit::Transfer;
use crate::sys::event::{Doorbell, block_signals, poll_readable};
use crate::wait::{WAIT_COMPLETIONS, WAIT_RX};

/// Packets taken at once, for one look of the engine.
const BATCH: usize = 256;
/// How late a stop is noticed at the most.
const TICK: Duration = Duration::from_millis(50);
/// How late a group flush may be, where there is one.
const FLUSH_TICK: Duration = Duration::from_millis(5);
/// While packets come, the packet thread looks at the RX ring this often by default and is not woken in between: waking it
/// for a few packets costs more than storing them, and what is found together becomes one operation. The
/// first packet behind a pause is taken at once.
const MODERATION: Duration = Duration::from_millis(4);
const LONGEST_MODERATION: Duration = Duration::from_secs(1);
/// It looks more often where the RX ring is short: a burst of two million packets a second may fill half of it
/// meanwhile.
const MODERATION_ENTRY: Duration = Duration::from_nanos(250);
/// The kernel's timers are late by as much: a shorter pause is none.
const SHORTEST_PAUSE: Duration = Duration::from_micros(50);
/// And where packets come so fast that they would fill more than this part of the RX ring.
const MODERATION_RING: u32 = 8;
/// Marks in `user_data`, above every number: a flush (with the number that it covers) and a superblock.
const FLUSH: u64 = 1 << 63;
const SUPERBLOCK: u64 = 1 << 62;
/// Writes between the oldest that is not completed and the newest.
const WINDOW: u64 = 1 << 20;

/// What to do when the range is full.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub enum AtEnd {
    /// Store no more; further packets are released and counted.
    #[default]
    Stop,
    /// Begin again at the start, over the oldest.
    Wrap,
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub enum Layout {
    #[default]
    Payload,
    Slot,
}

#[derive(Debug, Default, Clone, Copy)]
pub struct PipelineConfig {
    pub start_lba: u64,
    /// 0: to the end of the device.
    pub blocks: u64,
    pub at_end: AtEnd,
    /// Every write is durable when it completes.
    pub fua: bool,
    pub layout: Layout,
    /// Slot layout: what to do with a log that is there.
    pub existing: Existing,
    /// A flush after so many completed writes, and at the latest so long after one. `None`: only at the end.
    pub flush_writes: Option<u32>,
    pub flush_interval: Option<Duration>,
    /// The longest between two looks at the RX ring while packets come. `None`: 4 ms.
    pub moderation: Option<Duration>,
}

/// Where a pipeline stands.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct PipelineStatus {
    pub running: bool,
    /// 0; ENOSPC where the range was full; EIO where a flush failed; or what ended a thread.
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
}

struct Progress {
    stop: AtomicBool,
    packets_done: AtomicBool,
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
    completed: AtomicU64,
    durable: AtomicU64,
    flushes: Counter,
    /// Superblocks that are on their way.
    superblocks: AtomicU64,
    /// Flushes submitted and not completed: 0 or 1.
    flushing: AtomicBool,
    /// Status of the first flush that failed: nothing becomes durable after it.
    flush_failed: AtomicI32,
    fua: bool,
    /// The storage thread made room in the SQ ring, for which the packet thread waits.
    room: Doorbell,
    waiting: AtomicBool,
}

impl Progress {
    fn fail(&self, errno: i32) {
        // The first error is the one that tells why.
        let _ = self
            .error
            .compare_exchange(0, errno, Ordering::Relaxed, Ordering::Relaxed);
    }
}

pub struct Pipeline {
    context: Arc<Context>,
    progress: Arc<Progress>,
    threads: Vec<JoinHandle<()>>,
}

impl Pipeline {
    /// Starts both threads. `EINVAL`: the range is not on the device, or no log fits into it; more moderation than
    /// there can be.
    pub fn start(context: Arc<Context>, config: PipelineConfig) -> Result<Pipeline> {
        let moderation = config.moderation.unwrap_or(MODERATION);
        if moderation > LONGEST_MODERATION {
            return Err(Error::new(
                libc::EINVAL,
                format!(
                    "a moderation of {} us: at most {} (1 second)",
                    moderation.as_micros(),
                    LONGEST_MODERATION.as_micros()
                ),
            ));
        }
        // A group flush is not late for it.
        let moderation = config
            .flush_interval
            .map_or(moderation, |interval| interval.min(moderation));
        let end = check_range(&context, &config)?;
        let place = match config.layout {
            Layout::Payload => Place::Range(Range {
                start: config.start_lba,
                end,
                next: config.start_lba,
                at_end: config.at_end,
                full: false,
                wraps: 0,
                fua: config.fua,
            }),
            Layout::Slot => Place::Log(Recorder::open(
                &context,
                config.start_lba,
                end - config.start_lba,
                config.at_end == AtEnd::Wrap,
                config.fua,
                config.existing,
            )?),
        };
        let progress = Arc::new(Progress {
            stop: AtomicBool::new(false),
            packets_done: AtomicBool::new(false),
            error: AtomicI32::new(0),
            next_lba: AtomicU64::new(place.next_lba()),
            wraps: AtomicU64::new(place.wraps()),
            submitted: AtomicU64::new(0),
            stored: Counter::default(),
            failed: Counter::default(),
            payload_bytes: Counter::default(),
            no_space: Counter::default(),
            empty: Counter::default(),
            first_sequence: place.next_sequence(),
            completed: AtomicU64::new(0),
            durable: AtomicU64::new(0),
            flushes: Counter::default(),
            superblocks: AtomicU64::new(0),
            flushing: AtomicBool::new(false),
            flush_failed: AtomicI32::new(0),
            fua: config.fua,
            room: Doorbell::new().map_err(|e| Error::os(&e, "creating an eventfd"))?,
            waiting: AtomicBool::new(false),
        });
        context.set_pipelined(true);
        let mut pipeline = Pipeline {
            context,
            progress,
            threads: Vec::new(),
        };
        let flusher = Flusher {
            writes: config.flush_writes.map(u64::from),
            interval: config.flush_interval,
            covered: 0,
            last: Instant::now(),
        };
        pipeline.spawn("unified-packet", move |context, progress| {
            Packets {
                context,
                progress,
                place,
                flusher,
                moderation,
            }
            .run()
        })?;
        pipeline.spawn("unified-store", completions)?;
        Ok(pipeline)
    }

    fn spawn(
        &mut self,
        name: &str,
        body: impl FnOnce(&Context, &Progress) -> Result<()> + Send + 'static,
    ) -> Result<()> {
        let (context, progress) = (self.context.clone(), self.progress.clone());
        let label = name.to_string();
        let thread = std::thread::Builder::new()
            .name(name.into())
            .spawn(move || {
                block_signals();
                if let Err(error) = body(&context, &progress) {
                    log::log(Level::Error, format_args!("{label} thread ended: {error}"));
                    progress.fail(error.errno());
                    progress.stop.store(true, Ordering::Release);
                }
                if label == "unified-packet" {
                    progress.packets_done.store(true, Ordering::Release);
                }
            })
            .map_err(|e| Error::os(&e, format_args!("starting the thread {name}")))?;
        self.threads.push(thread);
        Ok(())
    }

    pub fn status(&self) -> PipelineStatus {
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
        }
    }

    /// Stores what has been received, flushes the device, and ends both threads. Packets that come later
    /// stay in the RX ring. The error is a flush's, where one failed.
    pub fn stop(mut self) -> (PipelineStatus, Result<()>) {
        self.join();
        let p = &self.progress;
        let failed = p.flush_failed.load(Ordering::Relaxed);
        let (submitted, durable) = (
            p.submitted.load(Ordering::Relaxed),
            p.durable.load(Ordering::Relaxed),
        );
        let result = self.context.alive().and_then(|()| {
            if failed == 0 && durable == submitted {
                return Ok(());
            }
            Err(Error::new(
                libc::EIO,
                format!(
                    "of {submitted} writes only the first {durable} are known to be durable (status {failed:#x} of a \
                     flush, error {} of a thread)",
                    p.error.load(Ordering::Relaxed)
                ),
            ))
        });
        (self.status(), result)
    }

    fn join(&mut self) {
        if !self.context.is_ours() {
            // In a forked child there are no such threads to wait for.
            self.threads.drain(..).for_each(std::mem::forget);
            return;
        }
        self.progress.stop.store(true, Ordering::Release);
        self.progress.room.ring();
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
        self.context.set_pipelined(false);
    }
}

impl Drop for Pipeline {
    fn drop(&mut self) {
        self.join();
    }
}

/// The block behind the range's last.
fn check_range(context: &Context, config: &PipelineConfig) -> Result<u64> {
    let info = context.info();
    let limits = info.limits;
    let blocks = match config.blocks {
        0 => limits.blocks.saturating_sub(config.start_lba),
        blocks => blocks,
    };
    let end = config
        .start_lba
        .checked_add(blocks)
        .filter(|end| *end <= limits.blocks && blocks > 0);
    let Some(end) = end else {
        return Err(Error::new(
            libc::EINVAL,
            format!(
                "blocks {} to {} are not all on '{}', which has {}",
                config.start_lba,
                config.start_lba.saturating_add(blocks),
                info.device,
                limits.blocks
            ),
        ));
    };
    if info.network.is_none() {
        return Err(Error::new(
            libc::ENOTCONN,
            "a pipeline needs a context with an interface",
        ));
    }
    if !info.writable {
        return Err(Error::new(
            libc::EROFS,
            format!("device '{}' was opened for reading only", info.device),
        ));
    }
    Ok(end)
}

/// Where the next write goes.
enum Place {
    Range(Range),
    Log(Recorder),
}

struct Range {
    start: u64,
    end: u64,
    next: u64,
    at_end: AtEnd,
    wraps: u64,
    fua: bool,
    /// `Stop` has come: a smaller payload that would still fit must not follow a gap.
    full: bool,
}

impl Range {
    /// Where the next `blocks` go; wraps where that is wanted.
    fn take(&mut self, blocks: u64) -> Option<u64> {
        if self.full {
            return None;
        }
        if self.end - self.next < blocks {
            self.full = self.at_end == AtEnd::Stop;
            if self.full || blocks > self.end - self.start {
                return None;
            }
            self.next = self.start;
            self.wraps += 1;
        }
        let lba = self.next;
        self.next += blocks;
        Some(lba)
    }
}

impl Place {
    fn next_lba(&self) -> u64 {
        match self {
            Place::Range(range) => range.next,
            Place::Log(log) => log.superblock().lba_of(log.next_sequence()),
        }
    }

    fn next_sequence(&self) -> u64 {
        match self {
            Place::Range(_) => 0,
            Place::Log(log) => log.next_sequence(),
        }
    }

    fn wraps(&self) -> u64 {
        match self {
            Place::Range(range) => range.wraps,
            Place::Log(log) => log.wraps(),
        }
    }

    /// Makes `write` the write of a packet; `false` where there is no room. In place: moving it would read what
    /// was just written in other widths, which waits until the frame's zeroes have left the store buffer.
    fn write(&mut self, context: &Context, packet: &Received, write: &mut Transfer) -> bool {
        match self {
            Place::Range(range) => {
                let len = u32::from(packet.headers.payload_len);
                let Some(lba) = range.take(context.blocks_of(len).into()) else {
                    return false;
                };
                write.frame = packet.frame;
                write.offset = packet.offset + u64::from(packet.headers.payload_offset);
                write.len = len;
                write.lba = lba;
                write.fua = range.fua;
            }
            Place::Log(log) if log.is_full() => return false,
            Place::Log(log) => log.record(packet, write),
        }
        true
    }
}

/// When to flush.
struct Flusher {
    writes: Option<u64>,
    interval: Option<Duration>,
    /// What the last flush covers.
    covered: u64,
    last: Instant,
}

impl Flusher {
    fn is_used(&self) -> bool {
        self.writes.is_some() || self.interval.is_some()
    }

    fn wants(&self, completed: u64) -> bool {
        let fresh = completed - self.covered;
        fresh > 0
            && (self.writes.is_some_and(|writes| fresh >= writes)
                || self
                    .interval
                    .is_some_and(|interval| self.last.elapsed() >= interval))
    }
}

/// The packet thread.
struct Packets<'a> {
    context: &'a Context,
    progress: &'a Progress,
    place: Place,
    flusher: Flusher,
    /// The longest between two looks while packets come.
    moderation: Duration,
}

impl Packets<'_> {
    fn run(&mut self) -> Result<()> {
        match self.take_packets() {
            // The interface is gone. What was received is stored all the same, and then that is the error.
            Err(error) if error.errno() == libc::ENODEV => self.settle().and(Err(error)),
            result => result.and_then(|()| self.settle()),
        }
    }

    fn take_packets(&mut self) -> Result<()> {
        let mut batch = [Received::default(); BATCH];
        let idle = if self.flusher.is_used() {
            FLUSH_TICK
        } else {
            TICK
        };
        // A stop takes what had arrived by then: at most a full RX ring.
        let mut last_round = self.context.info().frame_count as usize;
        let backlog = self.context.info().network.map_or(1, |n| n.backlog);
        let mut woken = Instant::now();
        let mut fresh = 0;
        loop {
            let stopping = self.progress.stop.load(Ordering::Acquire);
            let count = self.context.receive(&mut batch)?;
            if count > 0 {
                self.store(&batch[..count])?;
            }
            self.upkeep()?;
            if stopping {
                last_round = last_round.saturating_sub(count);
                if count == 0 || last_round == 0 {
                    return Ok(());
                }
            } else if count == 0 {
                let left = pause_after(fresh, backlog)
                    .min(self.moderation)
                    .saturating_sub(woken.elapsed());
                if fresh > 0 && left >= SHORTEST_PAUSE {
                    std::thread::sleep(left);
                } else {
                    self.context.wait(WAIT_RX, Some(idle))?;
                }
                woken = Instant::now();
                fresh = 0;
            }
            fresh += count as u32;
        }
    }

    /// Group flushes, and superblocks of a log.
    fn upkeep(&mut self) -> Result<()> {
        let completed = self.progress.completed.load(Ordering::Acquire);
        if let Place::Log(log) = &self.place
            && log.wants_checkpoint()
        {
            self.superblock(completed)?;
        }
        if !self.progress.flushing.load(Ordering::Acquire) && self.flusher.wants(completed) {
            self.flush(completed)?;
        }
        Ok(())
    }

    fn superblock(&mut self, completed: u64) -> Result<()> {
        // Without a free frame there is another turn.
        let Ok(frame) = self.context.frame_alloc() else {
            return Ok(());
        };
        let Place::Log(log) = &mut self.place else {
            return self.context.frame_release(frame);
        };
        let mut write = log.checkpoint(frame, self.progress.first_sequence + completed);
        write.user_data = SUPERBLOCK;
        self.progress.superblocks.fetch_add(1, Ordering::AcqRel);
        while let Err(error) = self.context.submit_write(&write) {
            retry(self.progress, error).inspect_err(|_| {
                self.progress.superblocks.fetch_sub(1, Ordering::AcqRel);
            })?;
        }
        Ok(())
    }

    fn flush(&mut self, covers: u64) -> Result<()> {
        self.progress.flushing.store(true, Ordering::Release);
        while let Err(error) = self.context.submit_flush(FLUSH | covers) {
            retry(self.progress, error).inspect_err(|_| {
                self.progress.flushing.store(false, Ordering::Release);
            })?;
        }
        self.flusher.covered = covers;
        self.flusher.last = Instant::now();
        Ok(())
    }

    /// Everything is completed, the log knows where it ends, and all of it is flushed.
    fn settle(&mut self) -> Result<()> {
        self.wait_for(|p| {
            p.completed.load(Ordering::Acquire) == p.submitted.load(Ordering::Acquire)
        })?;
        self.superblock(self.progress.completed.load(Ordering::Acquire))?;
        self.wait_for(|p| {
            p.superblocks.load(Ordering::Acquire) == 0 && !p.flushing.load(Ordering::Acquire)
        })?;
        self.flush(self.progress.completed.load(Ordering::Acquire))
    }

    fn wait_for(&self, reached: impl Fn(&Progress) -> bool) -> Result<()> {
        while !reached(self.progress) {
            self.context.alive()?;
            pause(self.progress)?;
        }
        Ok(())
    }

    fn store(&mut self, batch: &[Received]) -> Result<()> {
        let (context, progress) = (self.context, self.progress);
        let mut feeding = context.feed()?;
        let mut number = progress.submitted.load(Ordering::Acquire);
        if let Place::Log(log) = &mut self.place {
            log.look_at_clock();
        }
        let mut transfer = Transfer {
            more: true,
            ..Transfer::default()
        };
        for packet in batch {
            if packet.headers.payload_len == 0 && matches!(self.place, Place::Range(_)) {
                progress.empty.add(1);
                context.frame_release(packet.frame)?;
                continue;
            }
            if !self.place.write(context, packet, &mut transfer) {
                progress.fail(libc::ENOSPC);
                progress.no_space.add(1);
                context.frame_release(packet.frame)?;
                continue;
            }
            transfer.user_data = number;
            // Counted first: the completion may be taken before this thread goes on.
            progress.submitted.fetch_add(1, Ordering::AcqRel);
            progress
                .payload_bytes
                .add(packet.headers.payload_len.into());
            while let Err(error) = context.queue_transfer(&mut feeding, opcode::WRITE, &transfer) {
                drop(feeding);
                let again = retry(progress, error).and_then(|()| context.feed());
                feeding = again.inspect_err(|_| {
                    progress.submitted.fetch_sub(1, Ordering::AcqRel);
                })?;
            }
            number += 1;
        }
        progress
            .next_lba
            .store(self.place.next_lba(), Ordering::Relaxed);
        progress.wraps.store(self.place.wraps(), Ordering::Relaxed);
        context.kick(&mut feeding);
        drop(feeding);
        // Only where one write hangs while a million others complete.
        self.wait_for(|p| number - p.completed.load(Ordering::Acquire) < WINDOW - BATCH as u64)
    }
}

/// How long the next look at the RX ring can wait, for the ring's sake, where the last one found so many packets.
fn pause_after(found: u32, backlog: u32) -> Duration {
    let part = (backlog / MODERATION_RING).max(1);
    MODERATION_ENTRY * backlog * part / found.max(part)
}

/// Waits for room in the SQ ring; other errors are the caller's.
fn retry(progress: &Progress, error: Error) -> Result<()> {
    if error.errno() != libc::EAGAIN {
        return Err(error);
    }
    pause(progress)
}

/// Until the storage thread has taken completions.
fn pause(progress: &Progress) -> Result<()> {
    // A ring that is missed between the flag and the poll costs the timeout, no more.
    progress.waiting.store(true, Ordering::Relaxed);
    poll_readable(&[progress.room.fd()], Some(Duration::from_millis(2)))
        .map_err(|e| Error::os(&e, "waiting for completions"))?;
    progress.waiting.store(false, Ordering::Relaxed);
    progress.room.clear();
    Ok(())
}

/// Which writes are completed: the first that is not, and a bit for each of the window behind it.
struct Window {
    first: u64,
    bits: Box<[u64]>,
}

impl Window {
    fn new() -> Window {
        Window {
            first: 0,
            bits: vec![0; (WINDOW / 64) as usize].into(),
        }
    }

    fn complete(&mut self, number: u64) {
        let bit = |n: u64| ((n % WINDOW / 64) as usize, 1u64 << (n % 64));
        let (word, mask) = bit(number);
        self.bits[word] |= mask;
        loop {
            let (word, mask) = bit(self.first);
            if self.bits[word] & mask == 0 {
                return;
            }
            self.bits[word] &= !mask;
            self.first += 1;
        }
    }
}

/// The storage thread.
fn completions(context: &Context, progress: &Progress) -> Result<()> {
    let mut batch = [Completion::default(); BATCH];
    let mut window = Window::new();
    loop {
        let count = context.completions(&mut batch)?;
        let (mut stored, mut failed) = (0, 0);
        for completion in &batch[..count] {
            let good = completion.status == status::SUCCESS;
            if completion.user_data & FLUSH != 0 {
                flushed(progress, completion);
            } else if completion.user_data & SUPERBLOCK != 0 {
                if !good {
                    log::log(
                        Level::Warn,
                        format_args!(
                            "a superblock could not be written (status {:#x}): opening the log will take longer",
                            completion.status
                        ),
                    );
                }
                progress.superblocks.fetch_sub(1, Ordering::AcqRel);
            } else {
                stored += u64::from(good);
                failed += u64::from(!good);
                window.complete(completion.user_data);
            }
        }
        progress.stored.add(stored);
        progress.failed.add(failed);
        progress.completed.store(window.first, Ordering::Release);
        if progress.fua {
            progress.durable.store(window.first, Ordering::Release);
        }
        if count > 0 {
            if progress.waiting.load(Ordering::Relaxed) {
                progress.room.ring();
            }
            continue;
        }
        // The packet thread ends behind its last submission.
        if progress.packets_done.load(Ordering::Acquire)
            && window.first == progress.submitted.load(Ordering::Acquire)
            && !progress.flushing.load(Ordering::Acquire)
            && progress.superblocks.load(Ordering::Acquire) == 0
        {
            return Ok(());
        }
        context.wait(WAIT_COMPLETIONS, Some(TICK))?;
    }
}

/// A flush covers what was completed when it was submitted. Behind one that failed nothing is called
/// durable any more: the device may have dropped what it had cached.
fn flushed(progress: &Progress, completion: &Completion) {
    let covers = completion.user_data & !FLUSH;
    progress.flushes.add(1);
    if completion.status != status::SUCCESS {
        progress.fail(libc::EIO);
        let _ = progress.flush_failed.compare_exchange(
            0,
            completion.status.into(),
            Ordering::Relaxed,
            Ordering::Relaxed,
        );
        log::log(
            Level::Error,
            format_args!(
                "a flush failed (status {:#x}): what was stored since the last one may not be durable",
                completion.status
            ),
        );
    } else if progress.flush_failed.load(Ordering::Relaxed) == 0 {
        progress.durable.fetch_max(covers, Ordering::AcqRel);
    }
    progress.flushing.store(false, Ordering::Release);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pause_is_shorter_the_faster_packets_come() {
        let full = MODERATION_ENTRY * 2048;
        assert_eq!(pause_after(1, 2048), full);
        assert_eq!(pause_after(256, 2048), full);
        assert_eq!(pause_after(512, 2048), full / 2);
        assert_eq!(pause_after(2048, 2048), full / 8);
        assert!(pause_after(1, 16384) > MODERATION);
        assert_eq!(pause_after(1, 64), Duration::from_micros(16));
    }

    #[test]
    fn the_first_that_is_not_completed() {
        let mut window = Window::new();
        for number in [1, 2, 5] {
            window.complete(number);
            assert_eq!(window.first, 0);
        }
        window.complete(0);
        assert_eq!(window.first, 3);
        window.complete(4);
        window.complete(3);
        assert_eq!(window.first, 6);
        for number in 6..WINDOW * 2 + 10 {
            window.complete(number);
        }
        assert_eq!(window.first, WINDOW * 2 + 10);
        assert!(window.bits.iter().all(|word| *word == 0));
    }
}
