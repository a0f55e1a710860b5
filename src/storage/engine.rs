//! The engine: moves entries from the SQ ring to the device and completions into the CQ ring.
//!
//! One turn (`pump`) reaps io_uring, takes SQ entries, and publishes completions. An entry is taken only
//! when a CQ slot can be reserved for it, so no completion can ever be lost. Whoever calls `pump` drives
//! the engine: the caller's thread (inline) or `EngineThread`.

#![forbid(unsafe_code)]

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering, fence};
use std::time::Duration;

use super::command::{self, Command, Rules, entry_flags, opcode};
use super::device::{Device, Kind, Limits};
use super::merge::{self, Bounds, Follows, Habit};
use super::nvme;
use super::spill;
use super::{
    BUFFER_BOUNCE, BUFFER_DATA, Backend, MAX_BACKOFF_US, Memory, Outcome, Retry, Step, Task,
};
use crate::error::{Error, Result};
use crate::latency::Stamps;
use crate::log::{self, Level};
use crate::ring::{Consumer, Producer};
use crate::stats::EngineStats;
use crate::sys::abi::{CQE_BOUNCED, CQE_DNR, CQE_FRAME, CQE_SPILLED, UnifiedCqe, UnifiedSqe};
use crate::sys::event::{Doorbell, monotonic_ns};
use crate::sys::limits;
use crate::sys::probe;
use crate::sys::shm::Shared;
use crate::sys::uring::{BufRange, Op, PIECES, Reaped, Ring, SHARD, Table};

/// With this many commands in flight the engine does not ask to be rung for new entries: the next
/// completion brings it round anyway, and meanwhile the run of entries grows.
const BUSY: u32 = 8;
/// Most completions waited for at once, and the longest wait for that many.
const WAIT_BATCH: u32 = 32;
const WAIT_BATCH_TIME: Duration = Duration::from_micros(200);
/// Scattered operations are handed to the kernel in small batches while the device has less than `FED` of them: what
/// waits for the rest of a long batch to be prepared, an idle device could have begun. The kernel holds a batch back
/// until its end, too (its own plug).
const FEED: usize = 4;
const FED: usize = 32;
const DOORBELL_DATA: u64 = u64::MAX;

/// What the engine shares with those who feed it and empty it.
#[derive(Debug)]
pub struct Shore {
    /// Rung by the SQ's producer and, when the CQ was full, by its consumer.
    pub engine_bell: Doorbell,
    /// Rung by the engine when the CQ's flag asks for it.
    pub taker_bell: Doorbell,
    /// The engine has entries and no CQ slot for them.
    cq_starved: AtomicBool,
    /// Something is broken for good: the rings were corrupted, or io_uring fails. An errno, or 0.
    failed: AtomicU64,
    pub stats: EngineStats,
    /// When each entry of the SQ ring was submitted.
    pub stamps: Stamps,
}

impl Shore {
    /// For rings that a program writes itself: nobody says when it submitted, and no times are kept.
    pub fn new() -> Result<Arc<Shore>> {
        Self::timed(0)
    }

    /// For an SQ ring of so many entries, whose producer stamps them.
    pub fn timed(sq_entries: u32) -> Result<Arc<Shore>> {
        let bell = || Doorbell::new().map_err(|e| Error::os(&e, "creating an eventfd"));
        Ok(Arc::new(Shore {
            engine_bell: bell()?,
            taker_bell: bell()?,
            cq_starved: AtomicBool::new(false),
            failed: AtomicU64::new(0),
            stats: EngineStats::default(),
            stamps: Stamps::new(sq_entries),
        }))
    }

    /// The taker has freed CQ slots: wakes an engine that waits for them. Once a batch.
    pub fn cq_released(&self) {
        // The mirror image of the rings' need-wakeup: release the slots, fence, look at the flag.
        fence(Ordering::SeqCst);
        if self.cq_starved.load(Ordering::Relaxed) {
            self.engine_bell.ring();
        }
    }

    /// The errno of a failure that the engine cannot go on from.
    pub fn failure(&self) -> Option<i32> {
        match self.failed.load(Ordering::Acquire) {
            0 => None,
            errno => Some(errno as i32),
        }
    }
}

/// Fixed pieces of registered memory, for data that the device cannot take where it is.
#[derive(Debug)]
struct BouncePool {
    piece: u32,
    free: Vec<u16>,
}

impl BouncePool {
    fn take(&mut self) -> Option<u16> {
        self.free.pop()
    }

    fn range(&self, piece: u16, len: u32) -> BufRange {
        BufRange {
            buffer: BUFFER_BOUNCE,
            offset: piece as usize * self.piece as usize,
            len,
        }
    }
}

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

/// Entries that have become one operation, which is not yet given to the device.
#[derive(Debug, Clone, Copy)]
struct Run {
    head: u16,
    tail: u16,
    /// The last piece of its memory, and how many there are.
    piece: BufRange,
    pieces: usize,
    segments: usize,
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
    habit: Habit,
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
    shore: Arc<Shore>,
    // Kept open as long as the engine may use its files.
    _device: Device,
}

/// The spill, as the engine uses it.
#[derive(Debug)]
struct Overflow {
    /// Number in the registered file table.
    file: u32,
    path: String,
    /// Holds what no flush has covered yet.
    dirty: bool,
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

/// Bytes in a bounce piece: the longest command that can be bounced.
pub fn bounce_piece(limits: &Limits) -> u32 {
    limits.block_size.max(8192)
}

/// Bytes of the bounce pool for a depth.
pub fn bounce_bytes(limits: &Limits, depth: u32) -> usize {
    bounce_piece(limits) as usize * depth.clamp(2, 256) as usize
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
        shore: Arc<Shore>,
    ) -> Result<Engine> {
        let limits = device.limits;
        let backend = Backend::of(&device)?;
        // One more for the doorbell's poll; io_uring's own CQ is twice as long.
        let entries = config.depth + 1;
        let mut ring = if config.threaded {
            Ring::deferred(entries)?
        } else {
            Ring::shared(entries)?
        };
        let mut files = device.duplicate_files()?;
        let bell_file = files.len() as u32;
        files.push(
            shore
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
            habit: Habit::default(),
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
            shore,
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
            self.shore
                .failed
                .store(error.errno() as u64, Ordering::Release);
        }
        result
    }

    fn turn(&mut self, submit: bool) -> Result<Turn> {
        let mut turn = Turn::default();
        let result = self.work(&mut turn);
        // Also before an error: what was done until then is told.
        if turn.taken > 0 {
            self.sq.release();
            self.shore.stats.submitted.add(turn.taken.into());
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
        if reaped || self.operating == 0 || self.habit.is_scattered() {
            self.unplug(turn)?;
        }
        Ok(())
    }

    fn publish(&mut self, turn: &mut Turn) {
        if turn.completed > 0 {
            self.time(turn);
            self.shore.stats.completed.add(turn.completed.into());
            if self.cq.publish() {
                self.shore.taker_bell.ring();
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
                self.shore.engine_bell.clear();
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
            self.submitted = self.shore.stamps.get(index);
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
        self.habit.see(&command);
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

    /// Adds an entry to the run, where it is the next one.
    fn joins_run(&mut self, index: u16) -> bool {
        let Some(run) = &mut self.run else {
            return false;
        };
        // A slot is some cache lines long: looked at where it is.
        let Ok([head, next]) = self
            .slots
            .get_disjoint_mut([run.head as usize, index as usize])
        else {
            return false;
        };
        let Some(at) = next.data.filter(|_| next.bounce.is_none()) else {
            return false;
        };
        let command = &mut head.task.command;
        let segments = run.segments + merge::segments(at);
        let fits = self.bounds.take_segments(segments);
        match merge::follows(command, run.piece, &next.command, at, self.bounds) {
            Follows::Whole if head.table.is_none() || fits => {
                run.piece.len += at.len;
                if let Some(data) = &mut head.task.data {
                    data.len += at.len;
                }
            }
            Follows::Apart if self.gathers && run.pieces < PIECES && fits => {
                if head.table.is_none() {
                    head.table = self.ring.reserve();
                }
                if head.table.is_none() {
                    return false;
                }
                run.piece = at;
                run.pieces += 1;
            }
            _ => return false,
        }
        run.segments = segments;
        merge::join(command, &next.command);
        self.slots[run.tail as usize].next = Some(index);
        run.tail = index;
        true
    }

    /// Gives the run to the device.
    fn unplug(&mut self, turn: &mut Turn) -> Result<()> {
        match self.run.take() {
            Some(run) => self.begin(run.head, turn),
            None => Ok(()),
        }
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

    /// Finds where the data is, or copies it to where the device can take it. `Ok(false)`: no piece.
    fn place(
        &mut self,
        sqe: &UnifiedSqe,
        flags: u32,
        slot: &mut Slot,
    ) -> std::result::Result<bool, Outcome> {
        let command = slot.task.command;
        let (at, len) = (command.offset as usize, command.len as usize);
        let short = flags & entry_flags::PAD_IN_BOUNCE != 0;
        let in_place = self.backend.takes_in_place(&command)
            || ((self.memory.data.address() + at) | len) & self.limits.dma_alignment as usize == 0;
        let one_shard = at / SHARD == (at + len - 1) / SHARD;
        if !short && one_shard && (in_place || !self.config.bounce) {
            slot.task.data = Some(BufRange {
                buffer: BUFFER_DATA,
                offset: at,
                len: command.len,
            });
            return Ok(true);
        }
        if command.len > self.bounce.piece {
            // Longer than what the library can copy for it: the caller has to align it.
            return Err(Outcome::errno(libc::EINVAL, command.opcode));
        }
        let Some(piece) = self.bounce.take() else {
            return Ok(false);
        };
        slot.bounce = Some(piece);
        slot.bounced = true;
        let range = self.bounce.range(piece, command.len);
        slot.task.data = Some(range);
        if command::direction(command.opcode) != command::Direction::FromDevice {
            let valid = if short {
                (sqe.pad as usize).min(len)
            } else {
                len
            };
            self.memory
                .data
                .copy_to(at, &self.memory.bounce, range.offset, valid);
            self.memory.bounce.zero(range.offset + valid, len - valid);
        }
        self.shore.stats.bounced.add(1);
        self.shore.stats.bounced_bytes.add(command.len.into());
        probe::bounced(command.opcode, command.lba, command.len, command.offset);
        Ok(true)
    }

    fn free_pieces(&mut self, slot: &mut Slot) {
        self.bounce.free.extend(slot.bounce.take());
        self.bounce.free.extend(slot.scratch.take());
    }

    /// The one operation of a run whose memory is in pieces.
    fn gather(&mut self, head: u16, table: Table) -> Result<Op> {
        let slots = &self.slots;
        let chain = std::iter::successors(Some(head), |index| slots[*index as usize].next);
        let pieces = chain.filter_map(|index| slots[index as usize].data);
        let pieces = self.ring.gather(table, pieces)?;
        Ok(self
            .backend
            .gathered(&self.slots[head as usize].task.command, pieces))
    }

    /// Queues a command's next operation, or completes it.
    fn follow(&mut self, index: u16, step: Step, turn: &mut Turn) -> Result<()> {
        let mut outcome = match step {
            Step::Submit(op) => match self.queue(&op, u64::from(index)) {
                Ok(()) => {
                    // The device has nothing to do with a pause.
                    if !matches!(op, Op::Pause { .. }) {
                        self.operating += 1;
                        self.shore.stats.operations.add(1);
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
        // What failed as one is tried entry by entry, and one after the other: the block layer makes one
        // request of neighbours that come together, which then fails as one again. A block that was written
        // by the first try is written again with the same data.
        let mut at = Some(index);
        while let Some(index) = at {
            let slot = &mut self.slots[index as usize];
            slot.alone = true;
            if let Some(table) = slot.table.take() {
                self.ring.release(table);
            }
            slot.task = Task {
                command: slot.command,
                data: slot.data,
                ..Task::default()
            };
            at = slot.next;
        }
        self.begin(index, turn)
    }

    /// Sends a write that the device failed to the spill, and a flush on to it. `false`: it has ended.
    fn spills(&mut self, index: u16, outcome: &mut Outcome) -> bool {
        let slot = &self.slots[index as usize];
        let (Some(spill), None) = (&mut self.spill, slot.spilling) else {
            return false;
        };
        let file = spill.file;
        let op = match slot.data {
            Some(range) if spill::wants(&slot.command, outcome) => Op::Write {
                file,
                range,
                offset: slot.command.lba << self.limits.block_shift(),
                dsync: slot.command.fua,
            },
            _ if slot.command.opcode == opcode::FLUSH && outcome.status == 0 && spill.dirty => {
                // What is spilled from now on is for the next one.
                spill.dirty = false;
                Op::Sync { file }
            }
            _ => return false,
        };
        if let Err(error) = self.queue(&op, u64::from(index)) {
            if let (Op::Sync { .. }, Some(spill)) = (&op, &mut self.spill) {
                // Not flushed: that must not be taken for durable.
                spill.dirty = true;
                *outcome = Outcome::errno(error.errno(), opcode::FLUSH);
            }
            return false;
        }
        self.slots[index as usize].spilling = Some(*outcome);
        self.operating += 1;
        true
    }

    /// What became of a command that went to the spill.
    fn spilled(&mut self, index: u16, ended: Outcome, result: i32) -> Step {
        let slot = &mut self.slots[index as usize];
        let Some(spill) = &mut self.spill else {
            return Step::Done(ended);
        };
        if slot.command.opcode == opcode::FLUSH {
            spill.dirty |= result < 0;
            return Step::Done(match result {
                0.. => ended,
                _ => Outcome::errno(-result, opcode::FLUSH),
            });
        }
        let len = slot.command.len;
        if u32::try_from(result) != Ok(len) {
            log::log(
                Level::Error,
                format_args!(
                    "block {}: the device failed the write (status {:#x}), and so did the spill '{}' ({result} of \
                     {len} bytes)",
                    slot.command.lba, ended.status, spill.path
                ),
            );
            return Step::Done(ended);
        }
        slot.spilled = true;
        spill.dirty = true;
        let stats = &self.shore.stats;
        if stats.spilled.get() == 0 {
            log::log(
                Level::Warn,
                format_args!(
                    "block {}: the device failed the write (status {:#x}); it is in '{}', and others may follow it",
                    slot.command.lba, ended.status, spill.path
                ),
            );
        }
        stats.spilled.add(1);
        stats.spilled_bytes.add(len.into());
        Step::Done(Outcome::success(len))
    }

    fn finish_run(&mut self, head: u16, outcome: Outcome, turn: &mut Turn) -> Result<()> {
        let mut at = Some(head);
        while let Some(index) = at {
            let slot = &mut self.slots[index as usize];
            at = slot.next.take();
            let outcome = Outcome {
                len: slot.command.len,
                ..outcome
            };
            self.finish(index, outcome, turn).inspect_err(|_| {
                // The rings are broken: the rest of the run ends here too.
                if let Some(rest) = at {
                    self.forget(rest);
                }
            })?;
        }
        Ok(())
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

    fn copy_back(&self, slot: &Slot) {
        let command = &slot.command;
        let reads = matches!(
            command::direction(command.opcode),
            command::Direction::FromDevice | command::Direction::Both
        );
        if let (true, Some(range)) = (reads, slot.data) {
            let to = command.offset as usize;
            self.memory
                .bounce
                .copy_to(range.offset, &self.memory.data, to, range.len as usize);
        }
    }

    fn queue(&mut self, op: &Op, user_data: u64) -> Result<()> {
        let queued = self.ring.queued();
        if self.habit.is_scattered() && queued >= FEED && (self.operating as usize) < FED + queued {
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
        let stats = &self.shore.stats;
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
        self.shore.stats.latency.record(latency, count);
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
            self.shore.cq_starved.store(true, Ordering::Relaxed);
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
        self.shore.cq_starved.store(false, Ordering::Relaxed);
    }

    /// Hands queued operations to the kernel; for a sleeper that polls `fd` itself.
    pub fn submit(&mut self) -> Result<()> {
        // Entering the kernel for nothing would cost a system call for every sleep.
        if self.ring.queued() == 0 {
            return Ok(());
        }
        self.ring.submit(0, None)
    }

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
        // Not yet given to the device.
        if let Some(run) = self.run.take() {
            self.forget(run.head);
        }
        while self.in_flight() > 0 {
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
        Ok(())
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

/// Messages to an engine's thread.
#[derive(Debug, Default)]
pub struct Control {
    stop: AtomicBool,
}

/// The library's own thread around an engine. Dropping it stops it: what is in flight is finished first.
pub struct EngineThread {
    control: Arc<Control>,
    shore: Arc<Shore>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl EngineThread {
    pub fn spawn(mut engine: Engine, shore: Arc<Shore>) -> Result<EngineThread> {
        let control = Arc::new(Control::default());
        let seen = control.clone();
        let thread = std::thread::Builder::new()
            .name("unified-engine".into())
            .spawn(move || {
                crate::sys::event::block_signals();
                if let Err(error) = run(&mut engine, &seen) {
                    // Nothing may touch the region when the thread has ended.
                    let _ = engine.abandon();
                    engine
                        .shore
                        .failed
                        .store(error.errno() as u64, Ordering::Release);
                    crate::log::log(
                        crate::log::Level::Error,
                        format_args!("engine stopped: {error}"),
                    );
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
        let turn = engine.pump(false)?;
        // Behind the pump, which may have taken the ring of the bell that came with it.
        if control.stop.load(Ordering::Acquire) {
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
        engine.sleep()?;
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::super::device::DeviceConfig;
    use super::super::faulty::{Fault, Faults, Faulty};
    use super::super::spill::Spill;
    use super::*;
    use crate::region::{Layout, Region};
    use crate::storage::command::status;
    use crate::sys::mmap::Mapping;

    const BLOCK: u32 = 512;
    const BLOCKS: u64 = 64;

    /// An inline engine over a file in memory, whose operations fail as told.
    struct Rig {
        engine: Engine,
        region: Region,
        sq: Producer<UnifiedSqe>,
        cq: Consumer<UnifiedCqe>,
        faults: Faults,
        path: std::path::PathBuf,
        shore: Arc<Shore>,
    }

    impl Rig {
        fn new(name: &str, retry: Retry) -> Rig {
            Rig::with_spill(name, retry, |_| None)
        }

        fn with_spill(
            name: &str,
            retry: Retry,
            spill: impl FnOnce(&Device) -> Option<Spill>,
        ) -> Rig {
            let path = std::path::PathBuf::from(format!(
                "/dev/shm/unified-engine-{name}-{}",
                std::process::id()
            ));
            let region = Region::create(Layout::new(64, 64, 1 << 20).unwrap(), false).unwrap();
            let device = Device::open(&DeviceConfig {
                path: path.to_str().unwrap().into(),
                file_size: BLOCKS * u64::from(BLOCK),
                ..DeviceConfig::default()
            });
            let mut device = device.unwrap();
            device.made.take().unwrap().keep();
            device.spill = spill(&device);
            let len = bounce_bytes(&device.limits, 64);
            let bounce = Arc::new(Mapping::anonymous(len, false).unwrap());
            let shore = Shore::timed(64).unwrap();
            let mut engine = Engine::new(
                device,
                Consumer::new(region.sq.clone(), "SQ"),
                Producer::new(region.cq.clone(), "CQ"),
                region.data.clone(),
                Shared::new(bounce, 0, len).unwrap(),
                EngineConfig {
                    depth: 64,
                    bounce: true,
                    raw: false,
                    threaded: false,
                    backlog: 0,
                    registered: true,
                    retry,
                },
                shore.clone(),
            )
            .unwrap();
            let faults = Faults::default();
            let device = std::mem::replace(
                &mut engine.backend,
                Backend::Faulty(Box::new(Faulty {
                    device: Backend::Null(super::super::null::Null::new(&engine._device)),
                    faults: faults.clone(),
                })),
            );
            if let Backend::Faulty(faulty) = &mut engine.backend {
                faulty.device = device;
            }
            Rig {
                sq: Producer::new(region.sq.clone(), "SQ"),
                cq: Consumer::new(region.cq.clone(), "CQ"),
                engine,
                region,
                faults,
                path,
                shore,
            }
        }

        fn fail(&self, opcode: u8, result: i32) {
            self.faults.lock().push_back(Fault { opcode, result });
        }

        /// One block each, neighbours in memory and on the device: one run.
        fn write(&mut self, blocks: std::ops::Range<u64>) {
            for block in blocks {
                let at = block * u64::from(BLOCK);
                self.region
                    .data
                    .write(at as usize, &[block as u8 + 1; BLOCK as usize]);
                let mut sqe = command::transfer(opcode::WRITE, block, 1, at, BLOCK, false);
                sqe.user_data = block;
                self.push(sqe);
            }
            let _ = self.sq.publish();
        }

        fn push(&mut self, sqe: UnifiedSqe) {
            self.shore.stamps.set(self.sq.tail(), monotonic_ns());
            assert!(self.sq.push(sqe).unwrap());
        }

        fn flush(&mut self) -> UnifiedCqe {
            self.push(command::flush());
            let _ = self.sq.publish();
            self.take(1)[0]
        }

        fn take(&mut self, count: usize) -> Vec<UnifiedCqe> {
            let start = Instant::now();
            let mut done = Vec::new();
            while done.len() < count {
                assert!(
                    start.elapsed() < Duration::from_secs(20),
                    "{} of {count}",
                    done.len()
                );
                self.engine.pump(true).unwrap();
                match self.cq.pop().unwrap() {
                    Some(cqe) => done.push(cqe),
                    None => self
                        .engine
                        .ring
                        .submit(1, Some(Duration::from_millis(100)))
                        .unwrap(),
                }
                self.cq.release();
            }
            done.sort_by_key(|cqe| cqe.user_data);
            done
        }

        fn stored(&self, block: u64) -> bool {
            let file = std::fs::read(&self.path).unwrap();
            file.chunks(BLOCK as usize).nth(block as usize)
                == Some(&[block as u8 + 1; BLOCK as usize][..])
        }
    }

    impl Drop for Rig {
        fn drop(&mut self) {
            let _ = std::fs::remove_file(&self.path);
            if !std::thread::panicking() {
                assert_eq!((self.engine.in_flight(), self.engine.operating), (0, 0));
                assert_eq!(self.engine.bounce.free.len(), 64, "every piece came back");
                assert!(self.engine.ring.all_tables_are_free());
                assert_eq!(
                    self.shore.stats.submitted.get(),
                    self.shore.stats.completed.get()
                );
                assert!(self.faults.lock().is_empty(), "every fault happened");
            }
        }
    }

    #[test]
    fn scattered_entries_wait_for_no_neighbour_and_no_long_batch() {
        let mut rig = Rig::new("scattered", Retry::default());
        let turn = |rig: &mut Rig, blocks: &mut dyn Iterator<Item = u64>| {
            blocks.for_each(|block| rig.write(block..block + 1));
            rig.engine.pump(false).unwrap();
        };
        // At first nobody knows: the last one waits, and all others for the end of the turn.
        turn(&mut rig, &mut (0..8).map(|i| i * 2));
        assert!(rig.engine.run.is_some());
        assert_eq!(rig.engine.ring.queued(), 7);
        turn(&mut rig, &mut (8..24).map(|i| i * 2));
        assert!(rig.engine.run.is_none());
        assert_eq!(rig.engine.operating, 24);
        assert!((1..=FEED).contains(&rig.engine.ring.queued()));
        assert_eq!(rig.take(24).len(), 24);
        // Once the device has enough, the rest goes as one batch.
        turn(&mut rig, &mut (0..48).map(|i| (i * 7) % 64));
        assert_eq!(rig.engine.operating, 48);
        let batch = rig.engine.ring.queued();
        assert!((FEED + 1..=48 - FED).contains(&batch), "{batch}");
        assert_eq!(rig.take(48).len(), 48);
        // Neighbours again.
        turn(&mut rig, &mut (50..56));
        assert!(rig.engine.run.is_none(), "the device had nothing to do");
        turn(&mut rig, &mut (56..64));
        assert!(
            rig.engine.run.is_some(),
            "it grows while the device is busy"
        );
        assert_eq!(rig.take(14).len(), 14);
        assert!((50..64).all(|block| rig.stored(block)));
    }

    #[test]
    fn a_flush_that_fails_says_so_and_the_next_one_is_its_own() {
        let mut rig = Rig::new("flush", Retry::default());
        rig.write(0..1);
        rig.take(1);
        rig.fail(opcode::FLUSH, -libc::EIO);
        let done = rig.flush();
        assert_eq!(
            (done.status as u16, done.result),
            (status::WRITE_FAULT, -libc::EIO)
        );
        assert_eq!(rig.flush().status, 0);
    }

    #[test]
    fn a_short_write_goes_on_where_it_stopped_also_in_a_run() {
        for count in [1, 16] {
            let mut rig = Rig::new("short", Retry::default());
            rig.write(0..count);
            // Not even whole blocks.
            rig.fail(opcode::WRITE, 100);
            rig.fail(opcode::WRITE, 1);
            rig.fail(opcode::WRITE, -libc::EINTR);
            for (i, done) in rig.take(count as usize).iter().enumerate() {
                assert_eq!(
                    (done.user_data, done.status, done.len),
                    (i as u64, 0, BLOCK)
                );
                assert!(rig.stored(i as u64));
            }
        }
    }

    #[test]
    fn a_write_of_nothing_is_an_error_and_no_loop() {
        let mut rig = Rig::new("nothing", Retry::default());
        rig.write(0..1);
        rig.fail(opcode::WRITE, 0);
        let done = rig.take(1)[0];
        assert_eq!(
            (done.status as u16, done.result),
            (status::WRITE_FAULT, -libc::EIO)
        );
    }

    #[test]
    fn a_run_that_fails_is_tried_again_each_entry_by_itself() {
        let mut rig = Rig::new("run", Retry::default());
        rig.write(0..8);
        // The run; then the first three of its entries.
        for _ in 0..4 {
            rig.fail(opcode::WRITE, -libc::EDQUOT);
        }
        let done = rig.take(8);
        assert_eq!(
            (done[0].status as u16, done[0].result),
            (status::CAPACITY_EXCEEDED, -libc::EDQUOT)
        );
        let failed: Vec<u64> = done
            .iter()
            .filter(|d| d.status != 0)
            .map(|d| d.user_data)
            .collect();
        assert_eq!(failed, [0, 1, 2]);
        for done in &done[3..] {
            assert!(rig.stored(done.user_data));
        }
    }

    #[test]
    fn what_the_device_fails_is_in_the_spill_and_a_flush_covers_it() {
        let path = format!("/dev/shm/unified-engine-spill-{}", std::process::id());
        let once = Retry {
            limit: 0,
            ..Retry::default()
        };
        let mut rig = Rig::with_spill("spilling", once, |device| {
            Some(Spill::open(&path, device, false).unwrap())
        });
        let device = Device::open(&DeviceConfig {
            path: "null:4096".into(),
            ..DeviceConfig::default()
        })
        .unwrap();
        assert_eq!(
            Spill::open(&path, &device, false).unwrap_err().errno(),
            libc::EBUSY
        );
        // The run fails, and then the first and third of its entries.
        rig.fail(opcode::WRITE, -libc::EIO);
        rig.fail(opcode::WRITE, -libc::EIO);
        rig.fail(opcode::WRITE, BLOCK as i32);
        rig.fail(opcode::WRITE, -libc::ENOSPC);
        rig.write(0..4);
        let done = rig.take(4);
        let flags: Vec<_> = done
            .iter()
            .map(|cqe| (cqe.user_data, cqe.status, cqe.len, cqe.flags))
            .collect();
        let spilled = |i| (i, 0, BLOCK, CQE_SPILLED);
        let written = |i| (i, 0, BLOCK, 0);
        assert_eq!(flags, [spilled(0), written(1), spilled(2), written(3)]);
        let stats = &rig.shore.stats;
        assert_eq!((stats.spilled.get(), stats.spilled_bytes.get()), (2, 1024));
        assert_eq!((stats.errors.get(), stats.bytes_written.get()), (0, 1024));
        let there = std::fs::read(&path).unwrap();
        assert_eq!(there.len() as u64, BLOCKS * u64::from(BLOCK));
        for (i, block) in there.chunks(BLOCK as usize).enumerate() {
            let expected = if i == 0 || i == 2 { i as u8 + 1 } else { 0 };
            assert!(block.iter().all(|b| *b == expected), "block {i}");
        }
        assert!(rig.engine.spill.as_ref().unwrap().dirty);
        assert_eq!(rig.flush().status, 0);
        assert!(!rig.engine.spill.as_ref().unwrap().dirty);
        // A flush that fails on the device has failed; nothing of the caller's own fault is spilled.
        rig.fail(opcode::FLUSH, -libc::EIO);
        assert_ne!(rig.flush().status, 0);
        let beyond = command::transfer(opcode::WRITE, BLOCKS, 1, 0, BLOCK, false);
        assert!(rig.sq.push(beyond).unwrap());
        let _ = rig.sq.publish();
        assert_eq!(rig.take(1)[0].status as u16, status::LBA_OUT_OF_RANGE);
        assert_eq!(rig.shore.stats.spilled.get(), 2);
        std::fs::remove_file(&path).unwrap();
    }

    /// The device fails the write and the spill has no room: the entry gets the device's truth.
    #[test]
    fn a_spill_that_fails_too_leaves_the_devices_error() {
        let once = Retry {
            limit: 0,
            ..Retry::default()
        };
        // Always full, and as long as one likes.
        let mut rig = Rig::with_spill("spill-full", once, |_| {
            let full = std::fs::OpenOptions::new().write(true).open("/dev/full");
            Some(Spill {
                file: full.unwrap().into(),
                path: "/dev/full".into(),
            })
        });
        rig.fail(opcode::WRITE, -libc::EIO);
        rig.write(0..1);
        let done = rig.take(1)[0];
        assert_eq!(
            (done.status as u16, done.result),
            (status::WRITE_FAULT, -libc::EIO)
        );
        assert_eq!(done.flags & CQE_SPILLED, 0);
        let stats = &rig.shore.stats;
        assert_eq!((stats.spilled.get(), stats.errors.get()), (0, 1));
    }

    #[test]
    fn by_default_a_transient_error_is_tried_eight_times_at_once() {
        for (faults, status) in [(8, 0), (9, status::INTERNAL)] {
            let mut rig = Rig::new("eight", Retry::default());
            (0..faults).for_each(|_| rig.fail(opcode::WRITE, -libc::EAGAIN));
            rig.write(0..1);
            assert_eq!(rig.take(1)[0].status as u16, status, "{faults}");
        }
        let mut rig = Rig::new("nomem", Retry::default());
        rig.fail(opcode::WRITE, -libc::ENOMEM);
        rig.write(0..1);
        assert_eq!(rig.take(1)[0].result, -libc::ENOMEM);
    }

    #[test]
    fn with_a_backoff_it_waits_longer_each_time_and_others_go_on() {
        let mut rig = Rig::new(
            "backoff",
            Retry {
                limit: 3,
                backoff_us: 20_000,
                give_up_ms: 0,
            },
        );
        for error in [libc::ENOMEM, libc::EBUSY, libc::EAGAIN] {
            rig.fail(opcode::WRITE, -error);
        }
        let start = Instant::now();
        rig.write(0..1);
        // A flush passes meanwhile.
        let mut first = rig.flush();
        assert_eq!(first.status, 0);
        assert!(
            start.elapsed() < Duration::from_millis(140),
            "{:?}",
            start.elapsed()
        );
        first = rig.take(1)[0];
        assert_eq!((first.status, first.len), (0, BLOCK));
        assert!(
            start.elapsed() >= Duration::from_millis(20 + 40 + 80),
            "{:?}",
            start.elapsed()
        );
        assert_eq!(rig.shore.stats.operations.get(), 5);
        // The flush was quick, and the write took as long as its pauses.
        let latency = rig.shore.stats.latency.snapshot();
        assert_eq!(latency.count(), 2);
        assert!(latency.quantile(0.5) < 140_000_000, "{latency:?}");
        let passed = start.elapsed().as_nanos() as u64;
        assert!((140_000_000..=passed).contains(&latency.max), "{latency:?}");
    }

    #[test]
    fn it_gives_up_when_the_time_is_over() {
        let mut rig = Rig::new(
            "giveup",
            Retry {
                limit: 255,
                backoff_us: 10_000,
                give_up_ms: 100,
            },
        );
        (0..5).for_each(|_| rig.fail(opcode::WRITE, -libc::EBUSY));
        let start = Instant::now();
        rig.write(0..1);
        assert_eq!(rig.take(1)[0].result, -libc::EBUSY);
        // 10 + 20 + 40 + 80 ms: then the 100 are over.
        assert!(
            (150..5000).contains(&start.elapsed().as_millis()),
            "{:?}",
            start.elapsed()
        );
    }

    #[test]
    fn without_retries_the_first_error_counts_and_draining_does_not_retry() {
        let mut rig = Rig::new(
            "none",
            Retry {
                limit: 0,
                ..Retry::default()
            },
        );
        rig.fail(opcode::WRITE, -libc::EAGAIN);
        rig.write(0..1);
        assert_eq!(rig.take(1)[0].result, -libc::EAGAIN);
        drop(rig);
        let mut rig = Rig::new(
            "drain",
            Retry {
                limit: 255,
                backoff_us: 300_000,
                give_up_ms: 0,
            },
        );
        (0..2).for_each(|_| rig.fail(opcode::WRITE, -libc::EBUSY));
        rig.write(0..1);
        rig.engine.pump(true).unwrap();
        let start = Instant::now();
        rig.engine.drain().unwrap();
        assert!(start.elapsed() < Duration::from_secs(3));
        rig.faults.lock().clear();
    }

    /// The consumer index of the CQ goes mad while entries wait for one another: no slot is left behind, so
    /// nothing waits for it for ever, and what was taken is finished or given up.
    #[test]
    fn a_broken_ring_frees_every_slot() {
        for bad in [100u32, 1 << 31] {
            for drains in [true, false] {
                let mut rig = Rig::new("broken", Retry::default());
                rig.write(0..32);
                while rig.shore.stats.completed.get() < 32 {
                    rig.engine.pump(true).unwrap();
                }
                rig.region.cq.consumer().store(bad, Ordering::Relaxed);
                rig.write(0..40);
                let error = rig.engine.pump(true).unwrap_err();
                assert_eq!(error.errno(), libc::EBADMSG, "{error}");
                assert_eq!(rig.shore.failure(), Some(libc::EBADMSG));
                let taken = rig.shore.stats.submitted.get();
                assert_eq!((taken, rig.engine.in_flight()), (64, 32), "a slot for each");
                let start = Instant::now();
                if drains {
                    rig.engine.drain().unwrap();
                } else {
                    rig.engine.abandon().unwrap();
                    rig.shore.stats.completed.add(32);
                }
                assert!(start.elapsed() < Duration::from_secs(5));
            }
        }
    }
    /// It goes backwards: slots that were reserved are gone. What still fits is told, the rest is let go.
    #[test]
    fn a_consumer_that_goes_back_is_noticed_and_frees_every_slot() {
        let mut rig = Rig::new("back", Retry::default());
        rig.write(0..32);
        while rig.shore.stats.completed.get() < 32 {
            rig.engine.pump(true).unwrap();
        }
        rig.region
            .cq
            .consumer()
            .store(-21i32 as u32, Ordering::Relaxed);
        rig.write(0..40);
        let start = Instant::now();
        let error = loop {
            assert!(start.elapsed() < Duration::from_secs(5));
            if let Err(error) = rig.engine.pump(true) {
                break error;
            }
        };
        assert_eq!(error.errno(), libc::EBADMSG, "{error}");
        assert_eq!(rig.engine.in_flight(), 0);
        let stats = &rig.shore.stats;
        assert_eq!(
            (stats.submitted.get(), stats.completed.get()),
            (64, 32 + 11)
        );
        stats.completed.add(21);
        let _ = rig.engine.drain();
        assert!(start.elapsed() < Duration::from_secs(5));
    }
}
