//! The engine: moves entries from the SQ ring to the device and completions into the CQ ring.
//!
//! One turn (`pump`) reaps io_uring, takes SQ entries, and publishes completions. An entry is taken only
//! when a CQ slot can be reserved for it, so no completion can ever be lost. Whoever calls `pump` drives
//! the engine: the caller's thread (inline) or `EngineThread`.
//!
//! An entry's way: `next_entry`, `start` (which finds a place for its data, `bounce`), then either into the run
//! that grows (`run`) or to the device (`begin`); back through `reap` and `follow`, which knows what comes next, and on
//! its way out through the spill (`overflow`) where the device failed it; `finish` and `post` tell.

#![forbid(unsafe_code)]

mod bounce;
mod overflow;
mod run;
mod shared;
#[cfg(test)]
mod tests;
mod thread;

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};
use std::time::{Duration, Instant};

use bounce::BouncePool;
pub use bounce::{bounce_bytes, bounce_piece, locked_bytes};
use overflow::Overflow;
use run::Run;
pub use shared::EngineShared;
pub use thread::{EngineThread, LONGEST_STUCK};

use super::command::{self, Command, Rules, entry_flags, opcode};
use super::device::{Device, Kind, Limits};
use super::merge::{self, AccessPattern, Bounds};
use super::nvme;
use super::{Backend, MAX_BACKOFF_US, Memory, Outcome, Retry, Step, Task};
use crate::error::{Error, Result};
use crate::log::{self, Level};
use crate::ring::{Consumer, Producer};
use crate::sys::abi::{CQE_BOUNCED, CQE_DNR, CQE_FRAME, CQE_SPILLED, UnifiedCqe, UnifiedSqe};
use crate::sys::event::monotonic_ns;
use crate::sys::limits;
use crate::sys::probe;
use crate::sys::shm::Shared;
use crate::sys::uring::{BufRange, Op, Reaped, Ring, Table};

/// Scattered operations are handed to the kernel in small batches while the device has less than `FED` of them: what
/// waits for the rest of a long batch to be prepared, an idle device could have begun. The kernel holds a batch back
/// until its end, too (its own plug).
const FEED: usize = 4;
const FED: usize = 32;
const DOORBELL_DATA: u64 = u64::MAX;

#[derive(Debug, Default, Clone, Copy)]
struct Slot {
    /// What the device is given: at the head of a run, the command for all of it.
    task: Task,
    /// The entry's own command and data, for its own completion.
    command: Command,
    data: Option<BufRange>,
    /// The entry behind this one in the same run.
    next: Option<u16>,
    /// The head of a run whose memory is in pieces: where its vectors are.
    table: Option<Table>,
    /// The run failed: its entries are tried each by itself.
    alone: bool,
    user_data: u64,
    offset: u64,
    frame: bool,
    bounce: Option<u16>,
    /// The data is in the bounce piece (rather than the piece being scratch).
    bounced: bool,
    scratch: Option<u16>,
    /// On its way to the spill: how the device ended it.
    spilling: Option<Outcome>,
    spilled: bool,
}

impl Slot {
    fn answer(&self) -> Answer {
        Answer {
            opcode: self.command.opcode,
            user_data: self.user_data,
            offset: self.offset,
            frame: self.frame,
            bounced: self.bounced,
            spilled: self.spilled,
        }
    }

    /// For those who trace.
    fn tell(&self, outcome: &Outcome, submitted: u64) {
        let command = &self.command;
        let what = (command.opcode, command.lba, command.len, self.offset);
        probe::completed(what, outcome.status, submitted);
    }
}

/// What a completion takes from its entry.
#[derive(Debug, Clone, Copy)]
struct Answer {
    opcode: u8,
    user_data: u64,
    offset: u64,
    frame: bool,
    bounced: bool,
    spilled: bool,
}

/// How an engine is set up.
#[derive(Debug, Clone, Copy)]
pub struct EngineConfig {
    /// Commands in flight at most.
    pub depth: u32,
    /// Copy what the device cannot take in place. Without, the kernel is given it as it is.
    pub bounce: bool,
    /// The entries come from a program that writes the rings itself.
    pub raw: bool,
    /// Driven by one thread that calls `enable`.
    pub threaded: bool,
    /// Entries that are taken out of the SQ ring before there is room for their completions, and wait
    /// inside. For programs that count a full SQ ring as an error instead of waiting.
    pub backlog: u32,
    /// NVMe commands use the registered buffers, where the kernel takes them so.
    pub registered: bool,
    pub retry: Retry,
}

pub struct Engine {
    sq: Consumer<UnifiedSqe>,
    cq: Producer<UnifiedCqe>,
    ring: Ring,
    backend: Backend,
    memory: Memory,
    limits: Limits,
    rules: Rules,
    config: EngineConfig,
    slots: Box<[Slot]>,
    /// When the entry in each slot was submitted. Not in the slot, which is long enough to copy.
    times: Box<[u64]>,
    free_slots: Vec<u16>,
    bounce: BouncePool,
    bounds: Bounds,
    /// Runs may be of memory in pieces.
    gathers: bool,
    /// Grows while the device is busy.
    run: Option<Run>,
    pattern: AccessPattern,
    /// Operations that the device has.
    operating: u32,
    /// An entry that waits for a bounce piece.
    stalled: Option<UnifiedSqe>,
    /// Never longer than it was made.
    backlog: VecDeque<UnifiedSqe>,
    /// When the entry was submitted that was popped last, which one that is stalled is. ns; 0 where times are not kept.
    submitted: u64,
    reaped: Vec<Reaped>,
    /// Where failed writes go, if anywhere.
    spill: Option<Overflow>,
    bell_file: u32,
    bell_armed: bool,
    shared: Arc<EngineShared>,
    // Kept open as long as the engine may use its files.
    _device: Device,
}

/// What one turn did.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Turn {
    pub taken: u32,
    pub completed: u32,
    /// Completions that are not yet timed, and when they were submitted: those of a batch count together.
    timed: u64,
    submitted: u64,
    /// Looked at once, when there is something to time. ns; 0 before.
    now: u64,
}

impl Engine {
    /// `data` are the data buffers, `bounce` the pool's memory (`bounce_bytes` of it).
    pub fn new(
        mut device: Device,
        sq: Consumer<UnifiedSqe>,
        cq: Producer<UnifiedCqe>,
        data: Shared,
        bounce: Shared,
        config: EngineConfig,
        shared: Arc<EngineShared>,
    ) -> Result<Engine> {
        let limits = device.limits;
        let backend = Backend::of(&device)?;
        let entries = bounce::ring_entries(config.depth);
        let mut ring = if config.threaded {
            Ring::deferred(entries)?
        } else {
            Ring::shared(entries)?
        };
        let mut files = device.duplicate_files()?;
        let bell_file = files.len() as u32;
        files.push(
            shared
                .engine_bell
                .duplicate()
                .map_err(|e| Error::os(&e, "duplicating the engine's doorbell"))?,
        );
        let spill = device.spill.take().map(|spill| {
            files.push(spill.file);
            Overflow {
                file: files.len() as u32 - 1,
                path: spill.path,
                dirty: false,
                syncing: 0,
                _claim: spill.claim,
            }
        });
        let mut in_pieces = true;
        if device.kind == Kind::Nvme {
            let takes = match config.registered {
                true => nvme::takes(&device)?,
                false => nvme::Takes::default(),
            };
            let registered = takes.registered;
            in_pieces = takes.pieces;
            if config.registered && !registered {
                log::log(
                    Level::Warn,
                    format_args!(
                        "device '{}': this kernel refuses registered buffers for passthrough; each command maps its own (kernel 6.11.8 or newer does not)",
                        device.path
                    ),
                );
            }
            ring.set_fixed_nvme(registered);
        }
        ring.register(vec![data.clone(), bounce.clone()], files)?;
        ring.set_pauses(
            Duration::from_micros(config.retry.backoff_us.into()),
            Duration::from_micros(MAX_BACKOFF_US.into()),
        );
        // RLIMIT_FSIZE is for regular files. A thread of the library's own has its signals blocked.
        let limited = (device.kind == Kind::File || spill.is_some()) && !limits::files_unlimited();
        ring.set_shield(limited && !config.threaded);
        let piece = bounce_piece(&limits);
        let pieces = (bounce.len() / piece as usize) as u16;
        Ok(Engine {
            rules: Rules {
                nsid: limits.nsid,
                block_shift: limits.block_shift(),
                blocks: limits.blocks,
                max_transfer: limits.max_transfer,
                writable: device.writable,
                buffers: data.address() as u64,
                buffers_len: data.len() as u64,
                raw: config.raw,
                pass_unknown: backend.passes_unknown(),
            },
            bounds: Bounds::of(&limits, device.kind != Kind::Nvme),
            gathers: backend.gathers() && ring.gathers() && in_pieces,
            run: None,
            pattern: AccessPattern::default(),
            operating: 0,
            sq,
            cq,
            ring,
            backend,
            memory: Memory { data, bounce },
            limits,
            config,
            slots: vec![Slot::default(); config.depth as usize].into_boxed_slice(),
            times: vec![0; config.depth as usize].into_boxed_slice(),
            free_slots: (0..config.depth as u16).rev().collect(),
            bounce: BouncePool {
                piece,
                free: (0..pieces).rev().collect(),
            },
            stalled: None,
            backlog: VecDeque::with_capacity(config.backlog as usize),
            submitted: 0,
            reaped: Vec::with_capacity(config.depth as usize * 2 + 2),
            spill,
            bell_file,
            bell_armed: false,
            shared,
            _device: device,
        })
    }

    /// Whether the device's commands use the registered buffers.
    pub fn registered(&self) -> bool {
        self.ring.fixed_nvme()
    }

    pub fn in_flight(&self) -> u32 {
        (self.slots.len() - self.free_slots.len()) as u32
    }

    /// Readable when completions wait to be reaped, or when the doorbell was rung while armed.
    pub fn fd(&self) -> i32 {
        self.ring.fd()
    }

    /// Binds a threaded engine to the calling thread.
    pub fn enable(&self) -> Result<()> {
        self.ring.enable()
    }

    /// Where the program sees the data buffers, when that is not where this process's engine does: the
    /// data pointers of its entries are understood so. Before the first turn.
    pub fn set_program_address(&mut self, address: u64) {
        self.rules.buffers = address;
    }

    /// One turn: reap, take, publish. Hands what it queued to the kernel when `submit` says so.
    pub fn pump(&mut self, submit: bool) -> Result<Turn> {
        let result = self.turn(submit);
        if let Err(error) = &result {
            self.shared.end.fail(error.errno());
        }
        result
    }

    fn turn(&mut self, submit: bool) -> Result<Turn> {
        let mut turn = Turn::default();
        let result = self.work(&mut turn);
        // Also before an error: what was done until then is told.
        if turn.taken > 0 {
            self.sq.release();
            self.shared.stats.submitted.add(turn.taken.into());
        }
        self.publish(&mut turn);
        result?;
        if submit && self.ring.queued() > 0 {
            self.ring.submit(0, None)?;
        }
        Ok(turn)
    }

    fn work(&mut self, turn: &mut Turn) -> Result<()> {
        let reaped = self.reap(turn)?;
        self.take(turn)?;
        // Plugging: a run grows while the device is busy, and goes when it has room again. Where nothing ever
        // joins one, waiting would only cost the device a command.
        if reaped || self.operating == 0 || self.pattern.is_scattered() {
            self.unplug(turn)?;
        }
        Ok(())
    }

    fn publish(&mut self, turn: &mut Turn) {
        if turn.completed > 0 {
            self.time(turn);
            self.shared.stats.completed.add(turn.completed.into());
            if self.cq.publish() {
                self.shared.taker_bell.ring();
            }
        }
    }

    /// Whether the device finished anything.
    fn reap(&mut self, turn: &mut Turn) -> Result<bool> {
        let mut reaped = std::mem::take(&mut self.reaped);
        reaped.clear();
        // The slab bounds what can be in flight, so this never grows the vector.
        self.ring.reap(|done| reaped.push(done));
        let mut result = Ok(());
        let before = self.operating;
        for done in &reaped {
            if done.user_data == DOORBELL_DATA {
                self.bell_armed = false;
                self.shared.engine_bell.clear();
                continue;
            }
            let slot = done.user_data as u16;
            let state = &mut self.slots[slot as usize];
            if !state.task.pausing {
                self.operating -= 1;
            }
            if result.is_err() {
                // The rings are broken: these have ended too, but nobody can be told.
                self.forget(slot);
                continue;
            }
            let step = if let Some(failure) = state.spilling {
                self.spilled(slot, failure, done.result)
            } else if state.table.is_some() {
                self.backend.gathered_ended(&state.task, done.result)
            } else {
                self.backend.advance(
                    &mut state.task,
                    done.result,
                    &self.memory,
                    &self.config.retry,
                )
            };
            result = self.follow(slot, step, turn);
        }
        self.reaped = reaped;
        result.map(|()| self.operating < before)
    }

    fn take(&mut self, turn: &mut Turn) -> Result<()> {
        while !self.free_slots.is_empty() && self.cq_room()? {
            let Some(sqe) = self.next_entry(turn)? else {
                break;
            };
            if !self.start(&sqe, turn)? {
                self.stalled = Some(sqe);
                break;
            }
        }
        while self.backlog.len() < self.config.backlog as usize
            && let Some(sqe) = self.sq.pop()?
        {
            turn.taken += 1;
            tell_submitted(&sqe);
            self.backlog.push_back(sqe);
        }
        Ok(())
    }

    /// In the order in which they were submitted.
    fn next_entry(&mut self, turn: &mut Turn) -> Result<Option<UnifiedSqe>> {
        let waiting = self.stalled.take().or_else(|| self.backlog.pop_front());
        if waiting.is_some() {
            return Ok(waiting);
        }
        let index = self.sq.head();
        let taken = self.sq.pop()?;
        if let Some(sqe) = &taken {
            turn.taken += 1;
            tell_submitted(sqe);
            // Before the slot is released, behind which its producer may write the next stamp.
            self.submitted = self.shared.stamps.get(index);
        }
        Ok(taken)
    }

    /// Whether one more entry could be completed: every command in flight has its CQ slot reserved.
    fn cq_room(&mut self) -> Result<bool> {
        let reserved = self.in_flight() + 1;
        Ok(self.cq.free(reserved)? >= reserved)
    }

    /// Begins a command; `false` where it must wait for a bounce piece.
    fn start(&mut self, sqe: &UnifiedSqe, turn: &mut Turn) -> Result<bool> {
        let flags = if self.config.raw { 0 } else { sqe.flags };
        let mut slot = Slot {
            user_data: sqe.user_data,
            offset: sqe.buf_offset,
            frame: flags & entry_flags::FRAME != 0,
            ..Slot::default()
        };
        let command = match command::parse(sqe, &self.rules) {
            Ok(command) => command,
            Err(status) => {
                self.post(
                    &slot.answer(),
                    self.submitted,
                    Outcome::status(status),
                    turn,
                )?;
                let (code, lba, bytes) = as_given(sqe);
                let what = (code, lba, bytes, sqe.buf_offset);
                probe::completed(what, status, self.submitted);
                return Ok(true);
            }
        };
        slot.command = command;
        slot.task.command = command;
        if command.len > 0 {
            slot.offset = command.offset;
            match self.place(sqe, flags, &mut slot) {
                Ok(true) => {}
                Ok(false) => return Ok(false),
                Err(outcome) => {
                    self.post(&slot.answer(), self.submitted, outcome, turn)?;
                    slot.tell(&outcome, self.submitted);
                    return Ok(true);
                }
            }
        }
        if self.backend.needs_scratch(&command) {
            let Some(piece) = self.bounce.take() else {
                self.free_pieces(&mut slot);
                return Ok(false);
            };
            slot.scratch = Some(piece);
            slot.task.scratch = Some(self.bounce.range(piece, self.bounce.piece));
        }
        let Some(index) = self.free_slots.pop() else {
            self.free_pieces(&mut slot);
            return Ok(false);
        };
        slot.data = slot.task.data;
        self.slots[index as usize] = slot;
        self.times[index as usize] = self.submitted;
        self.pattern.see(&command);
        if self.joins_run(index) {
            return Ok(true);
        }
        // Nothing overtakes a run: what cannot join it goes behind it.
        self.unplug(turn).inspect_err(|_| self.forget(index))?;
        match slot.data {
            Some(piece) if merge::mergeable(&command) && slot.bounce.is_none() => {
                self.run = Some(Run {
                    head: index,
                    tail: index,
                    piece,
                    pieces: 1,
                    segments: merge::segments(piece),
                });
            }
            _ => self.begin(index, turn)?,
        }
        Ok(true)
    }

    fn begin(&mut self, index: u16, turn: &mut Turn) -> Result<()> {
        if let Some(table) = self.slots[index as usize].table {
            let step = match self.gather(index, table) {
                Ok(op) => Step::Submit(op),
                Err(error) => Step::Done(Outcome::errno(error.errno(), opcode::WRITE)),
            };
            return self.follow(index, step, turn);
        }
        let step = self
            .backend
            .begin(&mut self.slots[index as usize].task, &self.memory);
        self.follow(index, step, turn)
    }

    /// Queues a command's next operation, or completes it.
    fn follow(&mut self, index: u16, step: Step, turn: &mut Turn) -> Result<()> {
        let mut outcome = match step {
            Step::Submit(op) => match self.queue(&op, u64::from(index)) {
                Ok(()) => {
                    // The device has nothing to do with a pause.
                    if !matches!(op, Op::Pause { .. }) {
                        self.operating += 1;
                        self.shared.stats.operations.add(1);
                    }
                    return Ok(());
                }
                Err(error) => Outcome::errno(
                    error.errno(),
                    self.slots[index as usize].task.command.opcode,
                ),
            },
            Step::Done(outcome) => outcome,
        };
        let slot = &self.slots[index as usize];
        let alone = slot.alone;
        let next = slot.next;
        if (alone || next.is_none()) && self.spills(index, &mut outcome) {
            return Ok(());
        }
        let Some(next) = next else {
            return self.finish(index, outcome, turn);
        };
        // A run: each of its entries gets its own truth.
        if alone {
            self.slots[index as usize].next = None;
            return self
                .finish(index, outcome, turn)
                .inspect_err(|_| self.forget(next))
                .and_then(|()| self.begin(next, turn));
        }
        if outcome.status == 0 {
            return self.finish_run(index, outcome, turn);
        }
        self.part_run(index);
        self.begin(index, turn)
    }

    fn finish(&mut self, index: u16, outcome: Outcome, turn: &mut Turn) -> Result<()> {
        let slot = &self.slots[index as usize];
        if slot.bounced && outcome.status == 0 {
            self.copy_back(slot);
        }
        let answer = slot.answer();
        let submitted = self.times[index as usize];
        let posted = self.post(&answer, submitted, outcome, turn);
        if posted.is_ok() {
            self.slots[index as usize].tell(&outcome, submitted);
        }
        // Also when it could not be told: whoever waits for the last command counts slots.
        self.free_slot(index);
        posted
    }

    /// Frees a slot, and those of its run, without telling anybody.
    fn forget(&mut self, head: u16) {
        let mut at = Some(head);
        while let Some(index) = at {
            at = self.slots[index as usize].next.take();
            self.free_slot(index);
        }
    }

    #[inline(always)]
    fn free_slot(&mut self, index: u16) {
        let slot = &mut self.slots[index as usize];
        self.bounce.free.extend(slot.bounce.take());
        self.bounce.free.extend(slot.scratch.take());
        if let Some(table) = slot.table.take() {
            self.ring.release(table);
        }
        self.free_slots.push(index);
    }

    fn queue(&mut self, op: &Op, user_data: u64) -> Result<()> {
        let queued = self.ring.queued();
        if self.pattern.is_scattered() && queued >= FEED && (self.operating as usize) < FED + queued
        {
            self.ring.submit(0, None)?;
        }
        match self.ring.push(op, user_data) {
            Err(error) if error.errno() == libc::EAGAIN => {
                // The queue holds what was pushed this turn: hand it over and go on.
                self.ring.submit(0, None)?;
                self.ring.push(op, user_data)
            }
            result => result,
        }
    }

    #[inline(always)]
    fn post(
        &mut self,
        answer: &Answer,
        submitted: u64,
        outcome: Outcome,
        turn: &mut Turn,
    ) -> Result<()> {
        let stats = &self.shared.stats;
        let flag = |on: bool, bit: u32| if on { bit } else { 0 };
        if outcome.status == 0 {
            match answer.opcode {
                opcode::WRITE if answer.spilled => {}
                opcode::WRITE => stats.bytes_written.add(outcome.len.into()),
                opcode::READ => stats.bytes_read.add(outcome.len.into()),
                _ => {}
            }
        } else {
            stats.errors.add(1);
        }
        let cqe = UnifiedCqe {
            user_data: answer.user_data,
            result: outcome.result,
            status: outcome.status.into(),
            dma_addr: answer.offset,
            len: outcome.len,
            flags: flag(outcome.dnr, CQE_DNR)
                | flag(answer.frame, CQE_FRAME)
                | flag(answer.bounced, CQE_BOUNCED)
                | flag(answer.spilled, CQE_SPILLED),
        };
        // Room was reserved before the entry was taken; the one way to be without is a consumer index
        // that went backwards.
        if !self.cq.push(cqe)? {
            return Err(Error::new(
                libc::EBADMSG,
                "CQ ring: reserved slots are gone; something outside the library wrote to the region",
            ));
        }
        turn.completed += 1;
        if submitted != turn.submitted {
            self.time(turn);
            turn.submitted = submitted;
        }
        turn.timed += 1;
        Ok(())
    }

    /// Records how long the last completions took that were submitted together.
    #[inline(never)]
    fn time(&self, turn: &mut Turn) {
        let count = std::mem::take(&mut turn.timed);
        if turn.submitted == 0 || count == 0 {
            return;
        }
        if turn.now == 0 {
            turn.now = monotonic_ns();
        }
        // What was submitted after that look took no time.
        let latency = turn.now.saturating_sub(turn.submitted);
        self.shared.stats.latency.record(latency, count);
    }

    /// Makes ready to sleep: arms the doorbell and says so to the SQ's producer (unless enough is in
    /// flight that a completion comes soon) and to the CQ's consumer where its ring is full. `false`
    /// where there is work after all.
    pub fn prepare_sleep(&mut self) -> Result<bool> {
        if !self.bell_armed {
            self.queue(
                &Op::Poll {
                    file: self.bell_file,
                },
                DOORBELL_DATA,
            )?;
            self.bell_armed = true;
        }
        let blocked = self.stalled.is_some() || self.free_slots.is_empty();
        if !self.cq_room()? {
            self.shared.cq_starved.store(true, Ordering::Relaxed);
            fence(Ordering::SeqCst);
            return Ok(!self.cq_room()?);
        }
        if blocked {
            // Only a completion helps, and one is on its way: every slot and piece in use is in flight.
            return Ok(true);
        }
        self.sq.prepare_sleep()
    }

    /// Undoes `prepare_sleep`.
    pub fn awake(&mut self) {
        self.sq.awake();
        self.shared.cq_starved.store(false, Ordering::Relaxed);
    }

    /// Hands queued operations to the kernel; for a sleeper that polls `fd` itself.
    pub fn submit(&mut self) -> Result<()> {
        // Entering the kernel for nothing would cost a system call for every sleep.
        if self.ring.queued() == 0 {
            return Ok(());
        }
        self.ring.submit(0, None)
    }
}

impl Engine {
    /// Finishes what is in flight and takes no more; what waits to be tried again is not. For an engine that
    /// is about to go.
    pub fn drain(&mut self) -> Result<()> {
        self.config.retry.limit = 0;
        let mut turn = Turn::default();
        let unplugged = self.unplug(&mut turn);
        self.publish(&mut std::mem::take(&mut turn));
        unplugged?;
        while self.in_flight() > 0 {
            let reaped = self.reap(&mut turn);
            self.publish(&mut std::mem::take(&mut turn));
            reaped?;
            if self.in_flight() > 0 {
                self.ring.submit(1, Some(Duration::from_millis(100)))?;
            }
        }
        Ok(())
    }

    /// As `drain` where the rings are broken: waits until no operation touches memory any more, and tells
    /// nobody.
    pub fn abandon(&mut self) -> Result<()> {
        self.abandon_until(None).map(drop)
    }

    /// As `abandon`, at most until then: `false` where operations are left.
    pub fn abandon_until(&mut self, until: Option<Instant>) -> Result<bool> {
        // Not yet given to the device.
        if let Some(run) = self.run.take() {
            self.forget(run.head);
        }
        while self.in_flight() > 0 {
            if until.is_some_and(|until| Instant::now() >= until) {
                return Ok(false);
            }
            self.ring.submit(1, Some(Duration::from_millis(100)))?;
            let mut reaped = std::mem::take(&mut self.reaped);
            reaped.clear();
            self.ring.reap(|done| reaped.push(done));
            for done in reaped.iter().filter(|d| d.user_data != DOORBELL_DATA) {
                if !self.slots[done.user_data as u16 as usize].task.pausing {
                    self.operating -= 1;
                }
                self.forget(done.user_data as u16);
            }
            self.reaped = reaped;
        }
        Ok(true)
    }

    /// One turn of an engine whose SQ ring gets no more entries and whose CQ ring is emptied: `true` when all is done.
    pub fn serve(&mut self) -> Result<bool> {
        self.pump(true)?;
        Ok(self.in_flight() == 0 && !self.has_entries()?)
    }

    /// Whether entries wait to be taken.
    pub(super) fn has_entries(&mut self) -> Result<bool> {
        Ok(self.stalled.is_some() || !self.backlog.is_empty() || self.sq.available()? > 0)
    }

    /// Hands queued operations to the kernel and waits for a completion, at most for `timeout`. For a
    /// driver that polls, so without any doorbell.
    pub fn wait(&mut self, timeout: Duration) -> Result<()> {
        self.ring.submit(1, Some(timeout))
    }

    /// Whether one more command could be taken and completed.
    pub fn has_room(&mut self) -> Result<bool> {
        self.cq_room()
    }
}

/// The fields of an entry as they are given, which need not make sense.
#[inline]
fn tell_submitted(sqe: &UnifiedSqe) {
    let (opcode, lba, bytes) = as_given(sqe);
    probe::submitted(opcode, lba, bytes, sqe.buf_offset, sqe.user_data);
}

fn as_given(sqe: &UnifiedSqe) -> (u8, u64, u32) {
    let cmd = &sqe.nvme_cmd;
    let lba = u64::from(cmd.cdw11) << 32 | u64::from(cmd.cdw10);
    (cmd.opcode, lba, cmd.data_len)
}
