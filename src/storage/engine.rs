//! The engine: moves entries from the SQ ring to the device and completions into the CQ ring.
//!
//! One turn (`pump`) reaps io_uring, takes SQ entries, and publishes completions. An entry is taken only
//! when a CQ slot can be reserved for it, so no completion can ever be lost. Whoever calls `pump` drives
//! the engine: the caller's thread (inline) or `EngineThread`.

#![forbid(unsafe_code)]

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering, fence};
use std::time::Duration;

use super::command::{self, Rules, entry_flags, opcode};
use super::device::{Device, Limits};
use super::{BUFFER_BOUNCE, BUFFER_DATA, Backend, Memory, Outcome, Step, Task};
use crate::error::{Error, Result};
use crate::ring::{Consumer, Producer};
use crate::stats::EngineStats;
use crate::sys::abi::{CQE_BOUNCED, CQE_DNR, CQE_FRAME, UnifiedCqe, UnifiedSqe};
use crate::sys::event::Doorbell;
use crate::sys::shm::Shared;
use crate::sys::uring::{BufRange, Op, Reaped, Ring, SHARD};

/// With this many commands in flight the engine does not ask to be rung for new entries: the next
/// completion brings it round anyway, and meanwhile the run of entries grows.
const BUSY: u32 = 8;
/// Most completions waited for at once, and the longest wait for that many.
const WAIT_BATCH: u32 = 32;
const WAIT_BATCH_TIME: Duration = Duration::from_micros(200);
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
}

impl Shore {
    pub fn new() -> Result<Arc<Shore>> {
        let bell = || Doorbell::new().map_err(|e| Error::os(&e, "creating an eventfd"));
        Ok(Arc::new(Shore {
            engine_bell: bell()?,
            taker_bell: bell()?,
            cq_starved: AtomicBool::new(false),
            failed: AtomicU64::new(0),
            stats: EngineStats::default(),
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
    task: Task,
    user_data: u64,
    offset: u64,
    frame: bool,
    bounce: Option<u16>,
    /// The data is in the bounce piece (rather than the piece being scratch).
    bounced: bool,
    scratch: Option<u16>,
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
    free_slots: Vec<u16>,
    bounce: BouncePool,
    /// An entry that waits for a bounce piece.
    stalled: Option<UnifiedSqe>,
    reaped: Vec<Reaped>,
    bell_file: u32,
    bell_armed: bool,
    shore: Arc<Shore>,
    // Kept open as long as the engine may use its files.
    _device: Device,
}

/// What one turn did.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Turn {
    pub taken: u32,
    pub completed: u32,
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
        device: Device,
        sq: Consumer<UnifiedSqe>,
        cq: Producer<UnifiedCqe>,
        data: Shared,
        bounce: Shared,
        config: EngineConfig,
        shore: Arc<Shore>,
    ) -> Result<Engine> {
        let limits = device.limits;
        let backend = Backend::of(&device);
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
        ring.register(vec![data.clone(), bounce.clone()], files)?;
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
            sq,
            cq,
            ring,
            backend,
            memory: Memory { data, bounce },
            limits,
            config,
            slots: vec![Slot::default(); config.depth as usize].into_boxed_slice(),
            free_slots: (0..config.depth as u16).rev().collect(),
            bounce: BouncePool {
                piece,
                free: (0..pieces).rev().collect(),
            },
            stalled: None,
            reaped: Vec::with_capacity(config.depth as usize * 2 + 2),
            bell_file,
            bell_armed: false,
            shore,
            _device: device,
        })
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
        self.reap(&mut turn)?;
        self.take(&mut turn)?;
        if turn.taken > 0 {
            self.sq.release();
            self.shore.stats.submitted.add(turn.taken.into());
        }
        if turn.completed > 0 {
            self.shore.stats.completed.add(turn.completed.into());
            if self.cq.publish() {
                self.shore.taker_bell.ring();
            }
        }
        if submit && self.ring.queued() > 0 {
            self.ring.submit(0, None)?;
        }
        Ok(turn)
    }

    fn reap(&mut self, turn: &mut Turn) -> Result<()> {
        let mut reaped = std::mem::take(&mut self.reaped);
        reaped.clear();
        // The slab bounds what can be in flight, so this never grows the vector.
        self.ring.reap(|done| reaped.push(done));
        let mut result = Ok(());
        for done in &reaped {
            if done.user_data == DOORBELL_DATA {
                self.bell_armed = false;
                self.shore.engine_bell.clear();
                continue;
            }
            let slot = done.user_data as u16;
            let step = self.backend.advance(
                &mut self.slots[slot as usize].task,
                done.result,
                &self.memory,
            );
            result = self.follow(slot, step, turn);
            if result.is_err() {
                break;
            }
        }
        self.reaped = reaped;
        result
    }

    fn take(&mut self, turn: &mut Turn) -> Result<()> {
        while !self.free_slots.is_empty() && self.cq_room()? {
            let sqe = match self.stalled.take() {
                Some(sqe) => sqe,
                None => match self.sq.pop()? {
                    Some(sqe) => {
                        turn.taken += 1;
                        sqe
                    }
                    None => break,
                },
            };
            if !self.start(&sqe, turn)? {
                self.stalled = Some(sqe);
                break;
            }
        }
        Ok(())
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
                self.post(&slot, Outcome::status(status), turn)?;
                return Ok(true);
            }
        };
        slot.task.command = command;
        if command.len > 0 {
            slot.offset = command.offset;
            match self.place(sqe, flags, &mut slot) {
                Ok(true) => {}
                Ok(false) => return Ok(false),
                Err(outcome) => {
                    self.post(&slot, outcome, turn)?;
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
        self.slots[index as usize] = slot;
        let step = self
            .backend
            .begin(&mut self.slots[index as usize].task, &self.memory);
        self.follow(index, step, turn)?;
        Ok(true)
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
        Ok(true)
    }

    fn free_pieces(&mut self, slot: &mut Slot) {
        self.bounce.free.extend(slot.bounce.take());
        self.bounce.free.extend(slot.scratch.take());
    }

    /// Queues a command's next operation, or completes it.
    fn follow(&mut self, index: u16, step: Step, turn: &mut Turn) -> Result<()> {
        let outcome = match step {
            Step::Submit(op) => match self.queue(&op, u64::from(index)) {
                Ok(()) => {
                    self.shore.stats.operations.add(1);
                    return Ok(());
                }
                Err(error) => Outcome::errno(
                    error.errno(),
                    self.slots[index as usize].task.command.opcode,
                ),
            },
            Step::Done(outcome) => outcome,
        };
        let mut slot = self.slots[index as usize];
        if slot.bounced && outcome.status == 0 {
            self.copy_back(&slot);
        }
        self.post(&slot, outcome, turn)?;
        self.free_pieces(&mut slot);
        self.slots[index as usize] = slot;
        self.free_slots.push(index);
        Ok(())
    }

    fn copy_back(&self, slot: &Slot) {
        let command = &slot.task.command;
        let reads = matches!(
            command::direction(command.opcode),
            command::Direction::FromDevice | command::Direction::Both
        );
        if let (true, Some(range)) = (reads, slot.task.data) {
            let to = command.offset as usize;
            self.memory
                .bounce
                .copy_to(range.offset, &self.memory.data, to, range.len as usize);
        }
    }

    fn queue(&mut self, op: &Op, user_data: u64) -> Result<()> {
        match self.ring.push(op, user_data) {
            Err(error) if error.errno() == libc::EAGAIN => {
                // The queue holds what was pushed this turn: hand it over and go on.
                self.ring.submit(0, None)?;
                self.ring.push(op, user_data)
            }
            result => result,
        }
    }

    fn post(&mut self, slot: &Slot, outcome: Outcome, turn: &mut Turn) -> Result<()> {
        let stats = &self.shore.stats;
        let flag = |on: bool, bit: u32| if on { bit } else { 0 };
        if outcome.status == 0 {
            match slot.task.command.opcode {
                opcode::WRITE => stats.bytes_written.add(outcome.len.into()),
                opcode::READ => stats.bytes_read.add(outcome.len.into()),
                _ => {}
            }
        } else {
            stats.errors.add(1);
        }
        let cqe = UnifiedCqe {
            user_data: slot.user_data,
            result: outcome.result,
            status: outcome.status.into(),
            dma_addr: slot.offset,
            len: outcome.len,
            flags: flag(outcome.dnr, CQE_DNR)
                | flag(slot.frame, CQE_FRAME)
                | flag(slot.bounced, CQE_BOUNCED),
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
        Ok(())
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
        self.ring.submit(0, None)
    }

    /// Sleeps in io_uring until a completion or the doorbell, as its thread does.
    fn sleep(&mut self) -> Result<()> {
        let in_flight = self.in_flight();
        let ready = if in_flight >= BUSY && self.cq_room()? {
            // Busy: no doorbell wanted. New entries wait for the next completion and go in one batch.
            let want = (in_flight / 4).clamp(1, WAIT_BATCH);
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
    /// Finishes what is in flight and takes no more. For an inline engine that is about to go.
    pub fn drain(&mut self) -> Result<()> {
        let mut turn = Turn::default();
        while self.in_flight() > 0 {
            self.reap(&mut turn)?;
            if self.in_flight() > 0 {
                self.ring.submit(1, Some(Duration::from_millis(100)))?;
            }
        }
        Ok(())
    }
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
        if control.stop.load(Ordering::Acquire) {
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
