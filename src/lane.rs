//! A lane: one RX queue, one SQ, one CQ, one driver, and the frames between them.
//!
//! Everything that is single-threaded by contract is here. Three roles work on a lane, each one thread at a time: the
//! *receiver* takes packets and submits (`receive`, `submit`), the *taker* takes completions (`complete`), and the *pumper*
//! drives an inline engine. Each role is a mutex that is only ever tried: a second thread in the same role gets `EBUSY`
//! instead of waiting. `wait` sleeps for one or both of the first two roles.

#![forbid(unsafe_code)]

mod buffers;
mod complete;
mod end;
mod receive;
mod rescue;
mod submit;
mod wait;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::{Mutex, MutexGuard};

pub use buffers::BufferTransfer;
pub use complete::Completion;
pub use end::Unfinished;
pub use receive::{RxSide, RxSideGuard};
pub use submit::{Blocks, Direction, FrameRun, Transfer};
pub use wait::{Ready, wait};

use crate::buffers::Table;
use crate::counters::{OutcomeStats, RxStats};
use crate::error::{Error, Result};
use crate::frame::{Census, FrameMap, Frames};
use crate::latency::Latency;
use crate::net::interface::Interface;
use crate::net::rx::Receiver;
use crate::net::wire::XdpCounters;
use crate::ring::{Consumer, Producer};
use crate::stats::Statistics;
use crate::storage::device::Limits;
use crate::storage::engine::{Driver, Engine, EngineShared};
use crate::sys::abi::{UnifiedCqe, UnifiedSqe};
use crate::sys::event::Doorbell;
use crate::sys::fork::ProcessId;
use crate::sys::shm::Shared;

/// What a lane has that other lanes of its context use too, for the frames that belong to it.
#[derive(Debug)]
pub struct Peer {
    pub outcomes: Arc<OutcomeStats>,
    /// Rung by whoever gives frames back to a receiver that has none.
    pub rx_bell: Doorbell,
}

impl Peer {
    pub fn new() -> Result<Peer> {
        Ok(Peer {
            outcomes: Arc::default(),
            rx_bell: Doorbell::new().map_err(|e| Error::os(&e, "creating an eventfd"))?,
        })
    }
}

/// What a lane is made of. Its context opened all of it.
pub struct LaneParts {
    pub process: ProcessId,
    /// Of this lane in `peers`.
    pub number: u32,
    /// All lanes of the context.
    pub peers: Arc<[Peer]>,
    pub interface: Option<Arc<Interface>>,
    pub receiver: Option<Receiver>,
    pub driver: Driver,
    pub shared: Arc<EngineShared>,
    pub frames: Arc<Frames>,
    pub map: FrameMap,
    pub data: Shared,
    pub buffers: Arc<Table>,
    /// Of each device.
    pub devices: Arc<[Limits]>,
    pub rx_stats: Arc<RxStats>,
    pub sq: Producer<UnifiedSqe>,
    pub cq: Consumer<UnifiedCqe>,
}

/// How far a batch came of which at least the first entry was accepted.
#[derive(Debug)]
pub struct Progress {
    pub done: u32,
    /// Why the entry after these was refused; `None` if all are done.
    pub refused: Option<Error>,
}

impl Progress {
    /// The error of the first entry is that of the batch.
    pub(crate) fn new(done: u32, refused: Option<Error>) -> Result<Progress> {
        match refused {
            Some(error) if done == 0 => Err(error),
            refused => Ok(Progress { done, refused }),
        }
    }
}

pub struct Lane {
    /// A child of fork must not touch what it shares with its parent.
    process: ProcessId,
    interface: Option<Arc<Interface>>,
    /// Who receives and submits. Apart from the lock of what it works on: reading statistics makes a receiver wait for a
    /// moment instead of giving it `EBUSY`.
    receiving: Mutex<()>,
    rx_side: Mutex<RxSide>,
    taking: Mutex<Consumer<UnifiedCqe>>,
    driver: Driver,
    shared: Arc<EngineShared>,
    frames: Arc<Frames>,
    map: FrameMap,
    data: Shared,
    /// Of the context.
    buffers: Arc<Table>,
    devices: Arc<[Limits]>,
    number: u32,
    peers: Arc<[Peer]>,
    rx_stats: Arc<RxStats>,
    poll: wait::PollState,
    /// A pipeline has the roles.
    pipelined: AtomicBool,
    /// Frames that are written twice; and whether there are some.
    rescues: Mutex<Vec<rescue::Rescue>>,
    rescuing: AtomicBool,
}

/// The roles of a lane.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Role {
    Receive,
    Take,
    Pump,
}

impl Role {
    /// Another thread has the role.
    #[cold]
    fn busy(self) -> Error {
        Error::new(
            libc::EBUSY,
            match self {
                Role::Receive => {
                    "another thread is receiving or submitting on this context: one thread at a time"
                }
                Role::Take => {
                    "another thread is taking completions from this context: one thread at a time"
                }
                Role::Pump => "another thread is pumping this context: one thread at a time",
            },
        )
    }
}

impl Lane {
    pub fn new(parts: LaneParts) -> Lane {
        let cursor = parts.frames.pool.first_cursor();
        if parts.receiver.is_none() {
            // No packets come: it keeps no frames for them.
            parts.frames.pool.rest();
        }
        Lane {
            process: parts.process,
            interface: parts.interface,
            receiving: Mutex::new(()),
            rx_side: Mutex::new(RxSide::new(parts.receiver, parts.sq, cursor)),
            taking: Mutex::new(parts.cq),
            driver: parts.driver,
            shared: parts.shared,
            frames: parts.frames,
            map: parts.map,
            data: parts.data,
            buffers: parts.buffers,
            devices: parts.devices,
            number: parts.number,
            peers: parts.peers,
            rx_stats: parts.rx_stats,
            poll: wait::PollState::default(),
            pipelined: AtomicBool::new(false),
            rescues: Mutex::new(Vec::new()),
            rescuing: AtomicBool::new(false),
        }
    }

    /// Its number in its context.
    pub fn number(&self) -> u32 {
        self.number
    }

    /// Whether a pipeline has the roles of this lane.
    pub fn is_pipelined(&self) -> bool {
        self.pipelined.load(Ordering::Relaxed)
    }

    /// Gives the roles of this lane to a pipeline. `false` if one has them.
    pub(crate) fn claim_for_pipeline(&self) -> bool {
        !self.pipelined.swap(true, Ordering::AcqRel)
    }

    pub(crate) fn release_from_pipeline(&self) {
        self.pipelined.store(false, Ordering::Release);
    }

    fn peer(&self) -> &Peer {
        &self.peers[self.number as usize]
    }

    /// The number of the lane that a frame belongs to, which is where its packet was received. This one's if the frame is
    /// nobody's.
    #[inline(always)]
    pub fn owner(&self, frame: u32) -> u32 {
        match self.frames.pool.is_shared() {
            true => self.frames.pool.owner(frame).unwrap_or(self.number),
            false => 0,
        }
    }

    /// What the engine shares with those who feed and empty it: its counters, its end.
    pub fn engine_shared(&self) -> &EngineShared {
        &self.shared
    }

    /// Blocks that `len` bytes take on a device. There is one of that number.
    pub fn blocks_of(&self, device: u8, len: u32) -> u32 {
        len.div_ceil(self.devices[device as usize].block_size)
    }

    /// The limits of a device. `EINVAL`, saying how many there are.
    #[inline(always)]
    fn limits_of(&self, device: u8) -> Result<&Limits> {
        match self.devices.get(device as usize) {
            Some(limits) => Ok(limits),
            None => Err(self.no_device(device)),
        }
    }

    #[cold]
    fn no_device(&self, device: u8) -> Error {
        Error::new(
            libc::EINVAL,
            format!(
                "device {device} does not exist: this context has {}, numbered from 0",
                self.devices.len()
            ),
        )
    }

    fn check_process(&self) -> Result<()> {
        if self.process.is_current() {
            return Ok(());
        }
        Err(Error::new(
            libc::ENOTSUP,
            "this context belongs to the parent process of a fork; create one here",
        ))
    }

    /// `ESHUTDOWN` once teardown began; the engine's errno if it failed for good; `ENOTSUP` in a forked child.
    pub fn alive(&self) -> Result<()> {
        self.check_process()?;
        if self.shared.end.is_closing() {
            return Err(Error::new(
                libc::ESHUTDOWN,
                "the context is being destroyed",
            ));
        }
        match self.shared.failure() {
            None => Ok(()),
            Some(errno) => Err(Error::new(
                errno,
                "the engine has stopped after a failure (see the log); destroy the context",
            )),
        }
    }

    fn lock_taking(&self) -> Result<MutexGuard<'_, Consumer<UnifiedCqe>>> {
        self.taking.try_lock().ok_or_else(|| Role::Take.busy())
    }

    /// The engine, if whoever takes completions drives it.
    fn inline_engine(&self) -> Result<Option<MutexGuard<'_, Box<Engine>>>> {
        match &self.driver {
            Driver::Inline(engine) => match engine.try_lock() {
                None => self.after_visitors(engine).map(Some),
                engine => Ok(engine),
            },
            Driver::Thread(_) => Ok(None),
        }
    }

    /// Entries submitted whose completions are not taken yet. Each entry gives one completion, so the indices tell.
    pub fn outstanding(&self) -> Result<u32> {
        let submitted = self.lock_rx_side()?.sq.tail();
        Ok(submitted.wrapping_sub(self.lock_taking()?.head()))
    }

    /// From a packet's arrival until the completion of its first write was taken.
    pub fn packet_latency(&self) -> Latency {
        let outcomes = &self.peer().outcomes;
        let mut latency = outcomes.latency.snapshot();
        latency += &outcomes.latency_elsewhere.snapshot();
        latency
    }

    /// From a command's submission to its completion in the CQ ring.
    pub fn command_latency(&self) -> Latency {
        self.shared.stats.latency.snapshot()
    }

    /// As `count`, with its frames and latencies.
    pub fn statistics(&self, xdp: XdpCounters) -> Result<Statistics> {
        let mut stats = self.count(xdp)?;
        stats.frames = self.frames.census();
        self.add_latencies(&mut stats);
        Ok(stats)
    }

    /// Fills in the latencies.
    pub fn add_latencies(&self, stats: &mut Statistics) {
        stats.packet_latency = self.packet_latency();
        stats.command_latency = self.command_latency();
    }

    /// The frames of all lanes of the context, counted in one go.
    pub fn census_of_all(&self) -> Vec<Census> {
        self.frames.census_of_all(self.peers.len())
    }

    /// What this lane counts, but for its frames and latencies, which take longer. `xdp`: what the XDP program has counted of
    /// its queue. May make a receiver wait for one system call.
    pub fn count(&self, xdp: XdpCounters) -> Result<Statistics> {
        let mut stats = Statistics {
            xdp,
            ..Statistics::default()
        };
        {
            let mut rx_side = self.rx_side.lock();
            if let Some(receiver) = &mut rx_side.receiver {
                stats.xsk = receiver
                    .statistics()
                    .map_err(|e| Error::os(&e, "reading the AF_XDP socket's statistics"))?;
                stats.rx_pending = receiver.pending().into();
                rx_side.trace_dropped(stats.xsk);
            }
        }
        stats.fill(&self.rx_stats, &self.peer().outcomes, &self.shared.stats);
        Ok(stats)
    }

    /// Free frames that no lane of the context has.
    pub fn frames_in_reserve(&self) -> u32 {
        self.frames.pool.in_reserve()
    }

    /// Makes every waiting call return `ESHUTDOWN`, now and later.
    pub fn close(&self) {
        self.shared.end.close();
    }
}
