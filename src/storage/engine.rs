//! The engine: moves entries from the SQ ring to devices and completions into the CQ ring.
//!
//! One turn (`pump`) reaps io_uring, takes SQ entries, and publishes completions. An entry is taken only if a place in
//! the CQ ring can be reserved for it, so no completion can be lost. Whoever calls `pump` drives the engine: see
//! `driver`.
//!
//! An entry passes these files, in this order: `submit` (take, parse, find a place for its data with `bounce`), `run`
//! (join neighbours), `submit` again (queue the operation), `complete` (reap, next step or end, with `spilling` for a
//! write that the device failed), and `complete` again (post the completion).

#![forbid(unsafe_code)]

mod bounce;
mod changes;
mod complete;
mod driver;
mod end;
mod group;
mod run;
mod shared;
mod slab;
mod sleep;
mod spilling;
mod stuck;
mod submit;
mod target;
#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::os::fd::{OwnedFd, RawFd};
use std::sync::Arc;
use std::time::Duration;

use bounce::BouncePool;
pub use bounce::{bounce_bytes, bounce_piece, locked_bytes};
pub use driver::{Control, Driver, DriverThread, Pace};
pub use end::LONGEST_STUCK;
use group::{GROUPS, Group};
pub use shared::{EngineShared, Stuck};
use slab::Slab;
use submit::Entry;
pub use target::OpenTarget;
use target::Target;

use super::device::Kind;
use super::retry::{MAX_BACKOFF_US, Retry};
use super::task::Memory;
use super::uring;
use crate::buffers::{MOST_REGISTRATIONS, Table};
use crate::error::{Error, Result};
use crate::region::Region;
use crate::ring::{Consumer, Producer};
use crate::sys::abi::{UnifiedCqe, UnifiedSqe};
use crate::sys::limits;
use crate::sys::uring::{Reaped, Ring};

/// The doorbell's poll, in an operation's user data. All others are numbers of slots.
const DOORBELL_DATA: u64 = u64::MAX;

/// How an engine is set up.
#[derive(Debug, Clone, Copy)]
pub struct EngineConfig {
    /// Whose rings it works on.
    pub lane: u32,
    /// Most commands in flight.
    pub depth: u32,
    /// Copies what a device cannot take in place. If not set, the kernel gets the data where it is.
    pub bounce: bool,
    /// The entries come from a program that writes the rings itself.
    pub raw: bool,
    /// Driven by one thread, which calls `enable`.
    pub threaded: bool,
    /// Entries that are taken out of the SQ ring before there is room for their completions, and wait
    /// inside. For programs that count a full SQ ring as an error instead of waiting.
    pub backlog: u32,
    /// NVMe commands use the registered buffers, if the kernel takes them. If not set, each command maps its own.
    pub registered: bool,
    pub retry: Retry,
}

pub struct Engine {
    sq: Consumer<UnifiedSqe>,
    cq: Producer<UnifiedCqe>,
    ring: Ring,
    targets: Box<[Target]>,
    memory: Memory,
    /// Of memory that is registered while the engine runs: how many commands in flight use each.
    users: Box<[u32]>,
    /// The buffers in that memory.
    buffers: Option<Arc<Table>>,
    config: EngineConfig,
    slab: Slab,
    bounce: BouncePool,
    /// An entry that waits for a bounce piece.
    stalled: Option<Entry>,
    /// Never longer than it was made.
    backlog: VecDeque<Entry>,
    /// Flushes of all devices.
    groups: [Option<Group>; GROUPS],
    reaped: Vec<Reaped>,
    /// The doorbell's number in the registered file table, and whether its poll is queued.
    bell_file: u32,
    bell_armed: bool,
    shared: Arc<EngineShared>,
}

/// What one turn did.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Turn {
    pub taken: u32,
    pub completed: u32,
    /// Completions that are not yet timed, and when they were submitted: those of a batch are recorded together.
    timed: u64,
    submitted: u64,
    /// Read once, when there is something to time. ns; 0 before.
    now: u64,
}

impl Engine {
    /// The one constructor: for contexts and for the server of raw rings. `region` holds the rings and the data
    /// buffers. The engine makes its io_uring, its bounce pool and what it shares with its callers
    /// (`shared`).
    ///
    /// `EINVAL` for no target or more than `MAX_DEVICES`, `ENOMEM`, and the errors of `uring::create`.
    pub fn new(targets: Vec<OpenTarget>, region: &Region, config: EngineConfig) -> Result<Engine> {
        Engine::with_buffers(targets, region, config, None)
    }

    /// As `new`. Entries may also name those buffers, whose memory `replace` registers.
    pub fn with_buffers(
        targets: Vec<OpenTarget>,
        region: &Region,
        config: EngineConfig,
        buffers: Option<Arc<Table>>,
    ) -> Result<Engine> {
        let rings = region.rings.get(config.lane as usize).ok_or_else(|| {
            Error::new(
                libc::EINVAL,
                format!("the region has no rings of a lane {}", config.lane),
            )
        })?;
        let stamped = match config.raw {
            // Nobody says when these entries were submitted.
            true => 0,
            false => region.layout.sq_count,
        };
        let shared = EngineShared::new(stamped, targets.len())?;
        let mut files: Vec<OwnedFd> = Vec::new();
        let mut opened = Vec::new();
        for target in targets {
            opened.push(Target::new(target, &config, &region.data, &mut files)?);
        }
        let mut targets = target::checked(opened)?;
        if targets.len() > 1 {
            let most = stuck::MOST_WAITING * config.depth as usize;
            targets
                .iter_mut()
                .for_each(|target| target.waiting.reserve(most));
        }
        let bounce = BouncePool::new(&targets, config.depth)?;
        let spare = group::spare_slots(targets.len());
        let mut ring = uring::create(
            bounce::ring_entries(config.depth, targets.len()),
            config.threaded,
        )?;
        let bell_file = files.len() as u32;
        files.push(
            shared
                .engine_bell
                .duplicate()
                .map_err(|e| Error::os(&e, "duplicating the engine's doorbell"))?,
        );
        ring.set_fixed_nvme(targets.iter().all(|target| target.registered));
        let more = match buffers {
            Some(_) => MOST_REGISTRATIONS,
            None => 0,
        };
        let memory = Memory {
            data: region.data.clone(),
            bounce: bounce.memory.clone(),
            more: (0..more).map(|_| None).collect(),
        };
        let registered = vec![memory.data.clone(), memory.bounce.clone()];
        uring::register(&mut ring, registered, more, files)?;
        ring.set_pauses(
            Duration::from_micros(config.retry.backoff_us.into()),
            Duration::from_micros(MAX_BACKOFF_US.into()),
        );
        // RLIMIT_FSIZE is for regular files. A thread of the library's own has its signals blocked.
        let to_files = |target: &Target| target.kind() == Kind::File || target.spill.is_some();
        let limited = targets.iter().any(to_files) && !limits::files_unlimited();
        ring.set_shield(limited && !config.threaded);
        Ok(Engine {
            sq: Consumer::new(rings.sq.clone(), "SQ"),
            cq: Producer::new(rings.cq.clone(), "CQ"),
            ring,
            targets,
            memory,
            users: vec![0; more.into()].into(),
            buffers,
            config,
            slab: Slab::new(config.depth, spare),
            bounce,
            stalled: None,
            backlog: VecDeque::with_capacity(config.backlog as usize),
            groups: Default::default(),
            reaped: Vec::with_capacity((config.depth as usize + spare) * 2 + 2),
            bell_file,
            bell_armed: false,
            shared,
        })
    }

    /// What the engine shares with those who feed it and empty it.
    pub fn shared(&self) -> &Arc<EngineShared> {
        &self.shared
    }

    /// Whether NVMe commands use the registered buffers.
    pub fn registered(&self) -> bool {
        self.ring.fixed_nvme()
    }

    pub fn in_flight(&self) -> u32 {
        self.slab.in_use()
    }

    /// Operations that the devices have.
    fn operating(&self) -> u32 {
        self.targets.iter().map(|target| target.operating).sum()
    }

    /// Binds a threaded engine to the calling thread, which alone drives it from now on.
    fn enable(&self) -> Result<()> {
        self.ring
            .enable()
            .map_err(|e| Error::os(&e, "enabling the io_uring in the engine's thread"))
    }

    /// Readable when completions wait to be reaped, or when the doorbell was rung while armed.
    pub fn fd(&self) -> RawFd {
        self.ring.fd()
    }

    /// Sets where the program that writes the rings sees the data buffers, if not where this process does: the data
    /// pointers of its entries are relative to that address. Before the first turn.
    pub fn set_program_address(&mut self, address: u64) {
        for target in &mut self.targets {
            target.rules.buffers = address;
        }
    }

    /// One turn: reap, take, publish. With `submit`, hands what it queued to the kernel. After an error, the engine has
    /// failed for good.
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
        // Also after an error: what was done until then is published.
        if turn.taken > 0 {
            self.sq.release();
            self.shared.stats.submitted.add(turn.taken.into());
        }
        self.publish(&mut turn);
        result?;
        if submit {
            self.submit()?;
        }
        Ok(turn)
    }

    fn work(&mut self, turn: &mut Turn) -> Result<()> {
        self.reap(turn)?;
        if self.shared.takes_look() {
            self.look_for_stuck(turn)?;
        }
        // After the doorbell was cleared, which is rung for it.
        self.make_changes();
        self.take(turn)?;
        self.unplug_ready(turn)
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

    /// Whether one more entry could be completed: every command in flight has its CQ place reserved.
    pub fn has_room(&mut self) -> Result<bool> {
        let reserved = self.slab.commands() + 1;
        Ok(self.cq.free(reserved)? >= reserved)
    }

    /// Whether entries wait to be taken.
    fn has_entries(&mut self) -> Result<bool> {
        Ok(self.stalled.is_some() || !self.backlog.is_empty() || self.sq.available()? > 0)
    }
}
