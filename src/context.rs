//! A context: one region, one lane (queue, SQ, CQ, engine) and one device, from opening to teardown.
//!
//! Three roles, each one thread at a time: the *receiver* takes packets and submits, the *taker* takes
//! completions, and the *pumper* drives an inline engine. Each role is a mutex that is only ever tried:
//! a second thread in the same role gets EBUSY instead of waiting.

#![forbid(unsafe_code)]

use std::ops::{Deref, DerefMut};
use std::os::fd::RawFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use parking_lot::{Mutex, MutexGuard};

use crate::config::{Config, Drive, KERNEL_HEADROOM};
use crate::error::{Error, Result};
use crate::frame::{Frames, PacketOutcome};
use crate::latency::Latency;
use crate::locked::{Budget, Charge};
use crate::log::{self, Held, Level};
use crate::net::features;
use crate::net::link;
use crate::net::rx::{Received, Receiver};
use crate::net::socket;
use crate::net::watch::Watch;
use crate::net::wire::Event;
use crate::net::xdp::{HandedMap, Xdp, XdpConfig};
use crate::region::{Layout, Region, check_memory_cgroup};
use crate::ring::{Consumer, Producer};
use crate::stats::{OutcomeStats, RxStats, Statistics};
use crate::storage::command::status_text;
use crate::storage::device::{Device, Kind, Limits, MadeFile};
use crate::storage::engine::{
    Driver, DriverThread, Engine, EngineConfig, EngineShared, LONGEST_STUCK, OpenTarget,
    bounce_bytes, locked_bytes,
};
use crate::storage::spill::Spill;
use crate::sys::abi::{CQE_BOUNCED, CQE_DNR, CQE_FRAME, CQE_SPILLED, UnifiedCqe, UnifiedSqe};
use crate::sys::bpf::Mode;
use crate::sys::event::{Doorbell, SignalShield, monotonic_ns, poll_readable};
use crate::sys::fork::ProcessId;
use crate::sys::limits;
use crate::sys::mmap::HUGE_PAGE;
use crate::sys::probe;
use crate::sys::shm::Shared;
use crate::sys::xsk::{XskSetup, XskStatistics};

/// How long a context's end waits for its device.
pub const LONGEST_END: Duration = Duration::from_secs(30);
/// Between two looks at a device that ends its last commands.
const END_TICK: Duration = Duration::from_millis(10);

/// What a context is, as found at open.
#[derive(Debug, Clone)]
pub struct Info {
    pub device: String,
    /// Where the writes are that the device failed.
    pub spill: Option<String>,
    pub kind: Kind,
    pub limits: Limits,
    pub writable: bool,
    /// The caller insists: what is on the device may go.
    pub forced: bool,
    pub frame_size: u32,
    pub frame_count: u32,
    pub headroom: u32,
    pub layout: Layout,
    pub region_address: usize,
    pub huge_pages: bool,
    pub drive: Drive,
    /// The data buffers are registered once; otherwise each NVMe command maps its own.
    pub registered_buffers: bool,
    /// `None`: storage only.
    pub network: Option<NetworkInfo>,
}

#[derive(Debug, Clone, Copy)]
pub struct NetworkInfo {
    pub ifindex: u32,
    pub queue: u32,
    pub rx_queues: u32,
    pub native: bool,
    pub dispatcher: bool,
    pub zero_copy: bool,
    pub program_id: u32,
    /// Packets that can wait in the kernel: entries of the shorter of the RX and the fill ring.
    pub backlog: u32,
}

/// One finished command.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Completion {
    pub user_data: u64,
    /// 0, or a negative errno where the system failed rather than the device.
    pub result: i32,
    /// NVMe status: type << 8 | code; 0 is success.
    pub status: u16,
    /// The device says that trying again is useless.
    pub dnr: bool,
    /// The library copied the data.
    pub bounced: bool,
    /// The device failed it, and it is in the spill.
    pub spilled: bool,
    /// Bytes moved.
    pub len: u32,
    /// The frame, where the caller has it back.
    pub frame: Option<u32>,
}

/// The receiver's half: packets in, entries out.
pub(crate) struct RxSide {
    pub receiver: Option<Receiver>,
    pub sq: Producer<UnifiedSqe>,
    /// When the entries that are not yet published were submitted; 0 where there are none.
    pub submitted_at: u64,
    /// What the kernel had dropped when that was last looked at.
    dropped: XskStatistics,
    /// For contexts without a network: where `frame_alloc` goes on.
    cursor: u32,
}

impl RxSide {
    /// What the kernel dropped since the last look, for those who trace.
    fn tell_dropped(&mut self, now: XskStatistics) {
        let before = std::mem::replace(&mut self.dropped, now);
        for (cause, now, before) in [
            (c"no_frame", now.rx_dropped, before.rx_dropped),
            (c"rx_ring_full", now.rx_ring_full, before.rx_ring_full),
        ] {
            if now > before {
                probe::dropped(cause, now - before, probe::NO_FRAME);
            }
        }
    }
}

/// The receiver's role, taken.
pub(crate) struct RxSideGuard<'a> {
    rx_side: MutexGuard<'a, RxSide>,
    // After the lock of the data.
    _role: MutexGuard<'a, ()>,
    // Last: what was logged meanwhile is told when the locks are free.
    _held: Held,
}

impl Deref for RxSideGuard<'_> {
    type Target = RxSide;

    fn deref(&self) -> &RxSide {
        &self.rx_side
    }
}

impl DerefMut for RxSideGuard<'_> {
    fn deref_mut(&mut self) -> &mut RxSide {
        &mut self.rx_side
    }
}

pub struct Context {
    pub(crate) info: Info,
    /// A child of fork must not touch what it shares with its parent.
    born: ProcessId,
    xdp: Mutex<Option<Xdp>>,
    /// In place of a program of its own.
    handed_map: Mutex<Option<HandedMap>>,
    pub(crate) watch: Option<Watch>,
    /// Who receives and submits; apart from the lock of what it works on, so that reading statistics
    /// makes a receiver wait for a moment instead of telling it EBUSY.
    pub(crate) receiving: Mutex<()>,
    pub(crate) rx_side: Mutex<RxSide>,
    pub(crate) taking: Mutex<Consumer<UnifiedCqe>>,
    pub(crate) inline: Option<Mutex<Engine>>,
    thread: Mutex<Option<DriverThread>>,
    pub(crate) frames: Arc<Frames>,
    pub(crate) shared: Arc<EngineShared>,
    pub(crate) rx_bell: Doorbell,
    pub(crate) rx_stats: Arc<RxStats>,
    pub(crate) outcomes: Arc<OutcomeStats>,
    /// Somebody waits to destroy it: what takes long gives up.
    leaving: AtomicBool,
    /// The teardown was done.
    ended: bool,
    /// A pipeline does what the data path's functions do.
    pipelined: AtomicBool,
    pub(crate) poll: crate::wait::PollState,
    // Everything above may still reach into it.
    pub(crate) region: Region,
    // Last: given back when nothing is locked any more.
    _charge: Charge,
}

pub(crate) fn busy(role: &'static str) -> Error {
    match role {
        "receive" => Error::new(
            libc::EBUSY,
            "another thread is receiving or submitting on this context: one thread at a time",
        ),
        "take" => Error::new(
            libc::EBUSY,
            "another thread is taking completions from this context: one thread at a time",
        ),
        _ => Error::new(
            libc::EBUSY,
            "another thread is pumping this context: one thread at a time",
        ),
    }
}

/// Who lacks one privilege mostly lacks others: they are named with the first error, not one after the other.
fn name_what_else_is_missing(config: &Config, error: Error) -> Error {
    if !matches!(error.errno(), libc::EPERM | libc::EACCES | libc::ENOMEM) {
        return error;
    }
    let mut needed = Vec::new();
    if config.ifname.is_some() && config.xsk_map.is_none() {
        needed.push(limits::NET_ADMIN);
        if !limits::has(limits::SYS_ADMIN) {
            needed.extend([limits::BPF, limits::PERFMON]);
        }
    }
    if config.ifname.is_some() && config.xsk.is_none() {
        needed.push(limits::NET_RAW);
    }
    let mut more = limits::missing(&needed);
    more.retain(|name| !error.message().contains(name));
    match more.is_empty() {
        true => error,
        false => error.hint(format_args!(
            "this process also lacks {} (run as root, or give it those)",
            more.join(", ")
        )),
    }
}

impl Context {
    /// Opens everything, in an order in which nothing is attached before all that can be checked was:
    /// configuration, interface, memory, device, region, engine, socket, XDP program last.
    ///
    /// Errors are those of `Config::validate`, `link::look_up`, `Device::open`, `Budget::take`,
    /// `Region::create`, `socket::open` and `Xdp::attach`. After an error nothing is left behind.
    pub fn open(config: &Config) -> Result<Context> {
        config.validate()?;
        log::to_stderr_if_asked();
        // Loading a program gives EAGAIN as long as a signal is pending, and other calls end early.
        let _shield = SignalShield::new();
        Context::open_valid(config).map_err(|error| name_what_else_is_missing(config, error))
    }

    fn open_valid(config: &Config) -> Result<Context> {
        let born =
            ProcessId::of_this_process().map_err(|e| Error::os(&e, "marking this process"))?;
        let link = match &config.ifname {
            Some(name) => Some(link::look_up(name, config.queue)?),
            None => None,
        };
        let layout = Layout::new(
            config.sq_entries,
            config.cq_entries,
            config.frame_count as usize * config.frame_size as usize,
        )?;
        let mut device = Device::open(&config.device)?;
        let mut made = vec![device.made.take()];
        let device_limits = device.limits;
        let mut open_spill = None;
        if let Some(path) = &config.spill {
            let mut spill = Spill::open(path, &device, config.device.force)?;
            made.push(spill.made.take());
            open_spill = Some(spill);
        }
        let bounce_len = bounce_bytes(&[device_limits], config.depth());
        let budget = Budget::take(
            layout,
            link.is_some(),
            locked_bytes(&[device_limits], config.depth()),
            config.huge_pages,
            limits::memlock(),
        )?;
        check_memory_cgroup(layout.memory() + bounce_len, limits::memory_cgroup())?;
        let region = match budget.huge || layout.total < HUGE_PAGE {
            true => Region::create(layout, config.huge_pages && budget.huge)?,
            false => {
                log::log(
                    Level::Info,
                    format_args!(
                        "the region of {} bytes takes base pages: huge pages count whole, and RLIMIT_MEMLOCK allows less",
                        layout.total
                    ),
                );
                Region::in_base_pages(layout)?
            }
        };
        let charge = budget.settle(region.mapping.is_huge());
        region.begin_at(config.first_index);
        let (kind, path, writable) = (device.kind, device.path.clone(), device.writable);
        let engine = Engine::new(
            vec![OpenTarget {
                device,
                spill: open_spill,
            }],
            &region,
            EngineConfig {
                depth: config.depth(),
                bounce: config.bounce,
                raw: false,
                threaded: config.drive == Drive::Thread,
                backlog: 0,
                registered: true,
                retry: config.retry,
            },
        )?;
        let shared = engine.shared().clone();
        let registered_buffers = engine.registered();
        let frames = Arc::new(Frames::new(config.frame_count));
        let (rx_stats, outcomes) = (
            Arc::new(RxStats::default()),
            Arc::new(OutcomeStats::default()),
        );
        let network = match link {
            Some(link) => Some(open_network(
                config, link, &region, &frames, &rx_stats, &outcomes,
            )?),
            None => None,
        };
        let (inline, thread) = match config.drive {
            Drive::Inline => (Some(Mutex::new(engine)), None),
            Drive::Thread => {
                let Driver::Thread(thread) = Driver::thread(engine)? else {
                    unreachable!()
                };
                (None, thread.into_inner())
            }
        };
        let (receiver, (xdp, handed_map), watch, network) = match network {
            Some((receiver, feed, watch, info)) => (Some(receiver), feed, Some(watch), Some(info)),
            None => (None, (None, None), None, None),
        };
        let bell = Doorbell::new().map_err(|e| Error::os(&e, "creating an eventfd"))?;
        made.into_iter().flatten().for_each(MadeFile::keep);
        Ok(Context {
            info: Info {
                device: path,
                spill: config.spill.clone(),
                kind,
                limits: device_limits,
                writable,
                forced: config.device.force,
                frame_size: config.frame_size,
                frame_count: config.frame_count,
                headroom: config.headroom,
                layout,
                region_address: region.mapping.address(),
                huge_pages: region.mapping.is_huge(),
                drive: config.drive,
                registered_buffers,
                network,
            },
            born,
            xdp: Mutex::new(xdp),
            handed_map: Mutex::new(handed_map),
            watch,
            receiving: Mutex::new(()),
            rx_side: Mutex::new(RxSide {
                receiver,
                sq: Producer::new(region.sq.clone(), "SQ"),
                submitted_at: 0,
                dropped: XskStatistics::default(),
                cursor: 0,
            }),
            taking: Mutex::new(Consumer::new(region.cq.clone(), "CQ")),
            inline,
            thread: Mutex::new(thread),
            frames,
            shared,
            rx_bell: bell,
            rx_stats,
            outcomes,
            leaving: AtomicBool::new(false),
            ended: false,
            pipelined: AtomicBool::new(false),
            poll: crate::wait::PollState::default(),
            region,
            _charge: charge,
        })
    }

    pub fn info(&self) -> &Info {
        &self.info
    }

    /// What the engine shares with those who feed and empty it: its counters, its end.
    pub fn engine_shared(&self) -> &EngineShared {
        &self.shared
    }

    /// The data buffers, for those who look at packets.
    pub fn data(&self) -> &Shared {
        &self.region.data
    }

    pub(crate) fn lock_rx_side(&self) -> Result<RxSideGuard<'_>> {
        self.alive()?;
        let held = log::hold();
        let role = self.receiving.try_lock().ok_or_else(|| busy("receive"))?;
        Ok(RxSideGuard {
            rx_side: self.rx_side.lock(),
            _role: role,
            _held: held,
        })
    }

    /// Whether a pipeline has the roles of this context.
    pub fn is_pipelined(&self) -> bool {
        self.pipelined.load(Ordering::Relaxed)
    }

    /// Gives the roles of this context to a pipeline; `false` where one has them.
    pub(crate) fn claim_for_pipeline(&self) -> bool {
        !self.pipelined.swap(true, Ordering::AcqRel)
    }

    pub(crate) fn release_from_pipeline(&self) {
        self.pipelined.store(false, Ordering::Release);
    }

    /// Whether the caller is in the process that opened it, not in a forked child.
    pub fn is_ours(&self) -> bool {
        self.born.is_current()
    }

    fn check_process(&self) -> Result<()> {
        if self.is_ours() {
            return Ok(());
        }
        Err(Error::new(
            libc::ENOTSUP,
            "this context belongs to the parent process of a fork; create one here",
        ))
    }

    /// `ESHUTDOWN` once teardown began; the engine's errno where it failed for good; `ENOTSUP` in a forked
    /// child.
    pub(crate) fn alive(&self) -> Result<()> {
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

    /// `ENODEV` where the interface was deleted or moved away. Looks four times a second at the most.
    pub(crate) fn check_link(&self) -> Result<()> {
        match &self.watch {
            Some(watch) => watch.check(),
            None => Ok(()),
        }
    }

    /// Takes up to `out.len()` packets; 0 where there are none, `ENODEV` where there are none and the
    /// interface is gone. Receiver's thread.
    pub fn receive(&self, out: &mut [Received]) -> Result<usize> {
        let mut rx_side = self.lock_rx_side()?;
        if self.poll.is_used() {
            // Before the look, which sees whatever the bell told of.
            self.hear_frames();
        }
        let count = match &mut rx_side.receiver {
            Some(receiver) => receiver.receive(out)?,
            None => {
                return Err(Error::new(
                    libc::ENOTCONN,
                    "this context has no interface: it was made for storage only",
                ));
            }
        };
        if self.poll.is_used() {
            self.arm_receive(&mut rx_side);
        }
        drop(rx_side);
        if count < out.len()
            && let Some(watch) = self.watch.as_ref().filter(|_| self.poll.is_used())
        {
            watch.take_events();
        }
        if count == 0 {
            self.check_link()?;
        }
        Ok(count)
    }

    /// An empty frame, held by the caller. `ENOBUFS` where none is free now. Receiver's thread.
    pub fn frame_alloc(&self) -> Result<u32> {
        let mut rx_side = self.lock_rx_side()?;
        let rx_side = &mut *rx_side;
        let frame = match &mut rx_side.receiver {
            Some(receiver) => receiver.allocate(),
            None => {
                let mut frame = [0];
                (self.frames.take(&mut rx_side.cursor, &mut frame) == 1).then_some(frame[0])
            }
        };
        let frame = frame.ok_or_else(|| {
            Error::new(
                libc::ENOBUFS,
                "no frame is free: take completions and release frames first",
            )
        })?;
        self.frames.allocate(frame)?;
        Ok(frame)
    }

    /// Gives a held frame back. Any thread. `EINVAL`/`EBUSY` where the caller does not hold it.
    pub fn frame_release(&self, frame: u32) -> Result<()> {
        self.check_process()?;
        let outcome = self.frames.release(frame)?;
        self.count_outcome(frame, outcome, 0);
        self.wake_receiver();
        Ok(())
    }

    fn count_outcome(&self, frame: u32, outcome: PacketOutcome, bytes: u32) {
        match outcome {
            PacketOutcome::Empty => {}
            PacketOutcome::Stored => {
                self.outcomes.stored.add(1);
                self.outcomes.stored_bytes.add(bytes.into());
            }
            PacketOutcome::Failed => {
                self.outcomes.failed.add(1);
                probe::dropped(c"failed", 1, frame);
            }
            PacketOutcome::Released => {
                self.outcomes.released.add(1);
                probe::dropped(c"released", 1, frame);
            }
        }
    }

    /// Frames were given back: wakes the receiver where it waits for some.
    pub(crate) fn wake_receiver(&self) {
        if self.frames.wants_wakeup() {
            self.rx_bell.ring();
        }
    }

    /// The receiver is awake: nobody need ring for it, and what rang so far is heard.
    pub(crate) fn hear_frames(&self) {
        self.frames.awake();
        self.rx_bell.clear();
    }

    /// Entries submitted whose completions are not taken yet. Each entry gives one completion, so the indices tell.
    pub(crate) fn outstanding(&self) -> Result<u32> {
        let submitted = self.lock_rx_side()?.sq.tail();
        let taking = self.taking.try_lock().ok_or_else(|| busy("take"))?;
        Ok(submitted.wrapping_sub(taking.head()))
    }

    /// Takes up to `out.len()` completions; 0 where there are none. An inline engine is pumped by it.
    /// Taker's thread.
    pub fn completions(&self, out: &mut [Completion]) -> Result<usize> {
        self.check_process()?;
        // The role comes first: without it nothing is touched, least of all what wakes the one who has it.
        let mut taking = self.taking.try_lock().ok_or_else(|| busy("take"))?;
        let mut pumped = Ok(());
        if let Some(engine) = &self.inline {
            pumped = self.alive();
            if pumped.is_ok() {
                let mut engine = engine.try_lock().ok_or_else(|| busy("pump"))?;
                engine.awake();
                pumped = engine.pump(true).map(drop);
            }
        }
        // Whoever looks does not sleep: a flag that stays would cost a system call with every publication.
        if taking.wants_wakeup() {
            taking.awake();
        }
        let mut count = self.take(&mut taking, out)?;
        if count == 0 {
            // What completed before a failure was handed out above.
            pumped?;
            self.alive()?;
        }
        // Less than was asked for says that the descriptor will tell of the next one: what came between the last
        // look and the arming, of which it does not tell, is taken too.
        while self.poll.is_used() && count < out.len() {
            match self.arm_take(&mut taking) {
                Ok(true) => break,
                Ok(false) => count += self.take(&mut taking, &mut out[count..])?,
                Err(error) if count == 0 => return Err(error),
                // It shows again at the next call.
                Err(_) => break,
            }
        }
        Ok(count)
    }

    fn take(&self, taking: &mut Consumer<UnifiedCqe>, out: &mut [Completion]) -> Result<usize> {
        let mut count = 0;
        let mut freed = false;
        let mut now = 0;
        while count < out.len() {
            let cqe = match taking.pop() {
                Ok(Some(cqe)) => cqe,
                Ok(None) => break,
                Err(error) if count == 0 => return Err(error),
                // What was settled is handed out; the error shows again at the next call.
                Err(_) => break,
            };
            let (completion, was_freed) = self.settle(&cqe, &mut now);
            out[count] = completion;
            count += 1;
            freed |= was_freed;
        }
        if count > 0 {
            taking.release();
            self.shared.cq_released();
            if freed {
                self.wake_receiver();
            }
        }
        Ok(count)
    }

    /// What a completion means for its frame. `now` is read once for a batch, where it is needed.
    fn settle(&self, cqe: &UnifiedCqe, now: &mut u64) -> (Completion, bool) {
        let mut completion = Completion {
            user_data: cqe.user_data,
            result: cqe.result,
            status: cqe.status as u16,
            dnr: cqe.flags & CQE_DNR != 0,
            bounced: cqe.flags & CQE_BOUNCED != 0,
            spilled: cqe.flags & CQE_SPILLED != 0,
            len: cqe.len,
            frame: None,
        };
        let mut freed = false;
        if cqe.flags & CQE_FRAME != 0 {
            let frame = (cqe.dma_addr / u64::from(self.info.frame_size)) as u32;
            if let Some(arrival) = self.frames.first_write(frame) {
                if *now == 0 {
                    *now = monotonic_ns();
                }
                self.outcomes.latency.record(now.saturating_sub(arrival), 1);
            }
            // The table, not the entry, says whether that frame was in flight; a lie is not followed.
            match self.frames.finish(frame, cqe.status == 0) {
                Ok(None) => completion.frame = Some(frame),
                Ok(Some(outcome)) => {
                    self.count_outcome(frame, outcome, cqe.len);
                    freed = true;
                }
                Err(_) => completion.result = -libc::EBADMSG,
            }
        }
        (completion, freed)
    }

    /// Hands out up to `max` events of the XDP program. Any thread; one at a time.
    pub fn drain_events(&self, max: usize, each: impl FnMut(&Event)) -> Result<usize> {
        self.with_xdp(|xdp| xdp.drain_events(max, each))
    }

    pub fn events_fd(&self) -> Result<RawFd> {
        self.with_xdp(Xdp::events_fd)
    }

    pub fn port_add(&self, port: u16) -> Result<()> {
        self.with_xdp(|xdp| xdp.add_port(port))
    }

    pub fn port_remove(&self, port: u16) -> Result<()> {
        self.with_xdp(|xdp| xdp.remove_port(port))
    }

    pub fn set_event_sample(&self, sample: u32) -> Result<()> {
        self.with_xdp(|xdp| xdp.set_event_sample(sample))
    }

    fn with_xdp<T>(&self, act: impl FnOnce(&mut Xdp) -> Result<T>) -> Result<T> {
        self.check_process()?;
        let _held = log::hold();
        let _shield = SignalShield::new();
        match &mut *self.xdp.lock() {
            Some(xdp) => act(xdp),
            None if self.watch.is_some() => Err(Error::new(
                libc::ENOTSUP,
                "the XDP program is not this context's: its map was handed in, and whoever attached it \
                 sets its ports and reads its events",
            )),
            None => Err(Error::new(
                libc::ENOTCONN,
                "this context has no interface: it was made for storage only",
            )),
        }
    }

    /// All counters. Any thread; the sums hold at quiet moments.
    pub fn statistics(&self) -> Result<Statistics> {
        self.check_process()?;
        let mut stats = Statistics::default();
        if let Some(watch) = &self.watch {
            // That the interface is gone is no reason not to count.
            let _ = watch.check();
            stats.link = watch.state();
        }
        let _held = log::hold();
        if let Some(xdp) = &*self.xdp.lock() {
            stats.xdp = xdp.counters()?;
        }
        // Blocks a receiver for the time of one system call at most.
        {
            let mut rx_side = self.rx_side.lock();
            if let Some(receiver) = &mut rx_side.receiver {
                stats.xsk = receiver
                    .statistics()
                    .map_err(|e| Error::os(&e, "reading the AF_XDP socket's statistics"))?;
                stats.rx_pending = receiver.pending().into();
                rx_side.tell_dropped(stats.xsk);
            }
        }
        stats.fill(
            &self.rx_stats,
            &self.outcomes,
            &self.shared.stats,
            self.frames.census(),
        );
        Ok(stats)
    }

    /// From a packet's arrival until the completion of its first write was taken.
    pub fn packet_latency(&self) -> Latency {
        self.outcomes.latency.snapshot()
    }

    /// From a command's submission to its completion in the CQ ring.
    pub fn command_latency(&self) -> Latency {
        self.shared.stats.latency.snapshot()
    }

    /// The interface's name, where there is one.
    pub fn ifname(&self) -> Option<&str> {
        self.watch.as_ref().map(Watch::name)
    }

    /// Stops receiving: takes the XDP program off, so that packets go to the stack. Control.
    pub fn detach(&self) -> Result<()> {
        self.check_process()?;
        let _held = log::hold();
        let _shield = SignalShield::new();
        *self.handed_map.lock() = None;
        match &mut *self.xdp.lock() {
            Some(xdp) => xdp.detach(),
            None => Ok(()),
        }
    }

    /// Calls that take long, such as looking for the end of a log, return ESHUTDOWN from now on. Control.
    pub fn leave(&self) {
        self.leaving.store(true, Ordering::Release);
    }

    pub(crate) fn stays(&self) -> Result<()> {
        if self.leaving.load(Ordering::Acquire) {
            return Err(Error::new(
                libc::ESHUTDOWN,
                "the context is being destroyed",
            ));
        }
        Ok(())
    }

    /// Makes every waiting call return ESHUTDOWN, now and later. Control.
    pub fn close(&self) {
        self.shared.end.close();
    }
}

/// The program of its own, or what was handed in instead.
type Feed = (Option<Xdp>, Option<HandedMap>);
type Network = (Receiver, Feed, Watch, NetworkInfo);

fn open_network(
    config: &Config,
    link: link::Link,
    region: &Region,
    frames: &Arc<Frames>,
    rx_stats: &Arc<RxStats>,
    outcomes: &Arc<OutcomeStats>,
) -> Result<Network> {
    let xdp_config = XdpConfig {
        ports: config.ports.clone(),
        mode: config.xdp_mode,
        run_priority: config.run_priority,
        event_sample: config.event_sample,
        events_bytes: config.events_bytes,
    };
    // The program first: a native zero-copy bind wants it there. It passes everything until the socket
    // stands in its map.
    let mut xdp = match config.xsk_map {
        None => Some(Xdp::attach(link.clone(), &xdp_config)?),
        Some(_) => None,
    };
    let setup = XskSetup {
        ifname: link.name.clone(),
        queue: config.queue,
        frame_size: config.frame_size,
        headroom: config.headroom,
        fill_size: config.fill_ring,
        rx_size: config.rx_ring,
        zero_copy: None,
        skb_mode: xdp.as_ref().is_some_and(|xdp| xdp.mode() == Mode::Skb),
        socket: config.xsk,
    };
    let xsk = socket::open(&setup, config.zero_copy, &region.data)?;
    let receiver = Receiver::new(
        xsk,
        frames.clone(),
        region.data.clone(),
        config.frame_size,
        KERNEL_HEADROOM + config.headroom,
        config.fill_ring,
        rx_stats.clone(),
        outcomes.clone(),
    );
    let zero_copy = receiver
        .is_zero_copy()
        .map_err(|e| Error::os(&e, "asking the AF_XDP socket for its mode"))?;
    // Frames are in the fill ring before the first packet can come.
    let mut handed = None;
    if let Some(xdp) = &mut xdp {
        xdp.insert_socket(config.queue, receiver.fd())?;
    } else if let Some(map) = config.xsk_map {
        handed = Some(HandedMap::insert(map, &link, config.queue, receiver.fd())?);
    }
    let own = xdp.as_ref().map(Xdp::program_id);
    let merged = xdp.as_ref().map_or(Ok(None), Xdp::merged)?;
    let watch = Watch::start(link.clone(), own, merged)?;
    features::warn_of_lost_tags(&link, xdp.as_ref().map(Xdp::mode));
    let info = NetworkInfo {
        ifindex: link.index,
        queue: config.queue,
        rx_queues: link.rx_queues,
        native: xdp.as_ref().is_some_and(|xdp| xdp.mode() == Mode::Native),
        dispatcher: xdp.as_ref().is_some_and(Xdp::has_dispatcher),
        zero_copy,
        program_id: own.unwrap_or_else(|| watch.hook()),
        backlog: config.rx_ring.min(config.fill_ring).min(config.frame_count),
    };
    Ok((receiver, (xdp, handed), watch, info))
}

impl Context {
    /// In a forked child everything here is the parent's, and closing it would be felt there: the program
    /// would come off, the io_uring would be driven. The region is not even mapped. The child's copies of the
    /// descriptors are closed when it ends, or executes another program.
    fn forget(&mut self) {
        std::mem::forget(self.handed_map.get_mut().take());
        std::mem::forget(self.xdp.get_mut().take());
        std::mem::forget(self.thread.get_mut().take());
        std::mem::forget(self.inline.take());
        std::mem::forget(self.rx_side.get_mut().receiver.take());
        std::mem::forget(self.region.mapping.clone());
    }
}

/// What became of the commands that nobody waits for any more.
#[derive(Debug, Default)]
struct Rest {
    /// Failed, reads and compares left out, and the status of the first.
    failed: u64,
    status: u16,
    /// Still with the device, or not even given to it.
    unanswered: u32,
}

impl Context {
    /// As a drop, and says what was lost. Waits for the device until then at the most. `EIO`: commands failed that
    /// nobody asked for any more, or the device did not answer.
    pub fn end(mut self, until: Instant) -> Result<()> {
        self.teardown(until)
    }

    /// XDP off first, then what was submitted is finished, then the socket, then (by dropping) the region.
    fn teardown(&mut self, until: Instant) -> Result<()> {
        if std::mem::replace(&mut self.ended, true) {
            return Ok(());
        }
        if !self.is_ours() {
            self.forget();
            return Ok(());
        }
        self.close();
        {
            let _shield = SignalShield::new();
            *self.handed_map.get_mut() = None;
            *self.xdp.get_mut() = None;
        }
        let rest = self.finish(until);
        let thread = self.thread.get_mut().take();
        let mut stays = false;
        match thread {
            // When the device answers, it ends and frees what it has.
            Some(thread) if !thread.is_finished() => {
                stays = true;
                thread.leave();
            }
            thread => drop(thread),
        }
        if let Some(mut engine) = self.inline.take() {
            // Where something broke, what is in flight has not been waited for.
            let quiet = engine.get_mut().abandon_until(Some(until));
            if !quiet.is_ok_and(|quiet| quiet) {
                // The device may still read and write its memory, so that is never given back.
                stays = true;
                std::mem::forget(engine);
            }
        }
        {
            let _shield = SignalShield::new();
            self.rx_side.get_mut().receiver = None;
        }
        if rest.failed == 0 && rest.unanswered == 0 {
            return Ok(());
        }
        let (device, lost) = (&self.info.device, rest.failed + u64::from(rest.unanswered));
        let mut text = format!(
            "destroying the context: {lost} commands submitted to '{device}' are lost: {} failed",
            rest.failed
        );
        if rest.failed > 0 {
            text += &format!(" ({})", status_text(rest.status));
        }
        text += &format!(", {} were not answered", rest.unanswered);
        if stays {
            text += "; the memory that the device may still use stays mapped and the device open: see why it does not \
                     answer";
        }
        Err(Error::new(libc::EIO, text))
    }

    /// Carries out what was submitted, published or not, and takes the completions in place of those who are gone.
    fn finish(&self, until: Instant) -> Rest {
        let mut rest = Rest::default();
        let submitted = {
            let mut rx_side = self.rx_side.lock();
            self.kick(&mut rx_side);
            rx_side.sq.tail()
        };
        let thread = self.thread.lock();
        if let Some(thread) = &*thread {
            thread.finish();
        }
        let mut progress = Instant::now();
        loop {
            // Asked before the completions are taken, so that none comes after the last look.
            let done = match (&self.inline, &*thread) {
                (Some(engine), _) => engine.lock().serve().unwrap_or(true),
                (None, Some(thread)) => thread.is_finished(),
                (None, None) => true,
            };
            if self.take_rest(&mut rest) {
                progress = Instant::now();
            }
            let left = until.saturating_duration_since(Instant::now());
            if done || left.is_zero() {
                break;
            }
            let pause = left.min(END_TICK);
            let waited = match &self.inline {
                Some(engine) => {
                    let mut engine = engine.lock();
                    if engine.in_flight() > 0 {
                        progress = Instant::now();
                        engine.wait(pause).is_ok()
                    } else if progress.elapsed() < LONGEST_STUCK {
                        // It had no room for completions, which it has now.
                        std::thread::yield_now();
                        true
                    } else {
                        log::log(
                            Level::Error,
                            format_args!(
                                "the CQ ring was emptied and has no room: something wrote to the region"
                            ),
                        );
                        break;
                    }
                }
                None => {
                    self.shared.taker_bell.clear();
                    let mut taking = self.taking.lock();
                    let asleep = taking.prepare_sleep().unwrap_or(true);
                    !asleep || poll_readable(&[self.shared.taker_bell.fd()], Some(pause)).is_ok()
                }
            };
            if !waited {
                std::thread::sleep(pause);
            }
        }
        // Each entry gives one completion.
        rest.unanswered = submitted.wrapping_sub(self.taking.lock().head());
        rest
    }

    /// Whether there were completions.
    fn take_rest(&self, rest: &mut Rest) -> bool {
        let mut taking = self.taking.lock();
        let mut now = 0;
        let mut taken = false;
        while let Ok(Some(cqe)) = taking.pop() {
            taken = true;
            let frame = (cqe.dma_addr / u64::from(self.info.frame_size)) as u32;
            let stores = cqe.flags & CQE_FRAME == 0 || self.frames.is_writing(frame);
            let (completion, _) = self.settle(&cqe, &mut now);
            if completion.status != 0 && stores {
                if rest.failed == 0 {
                    rest.status = completion.status;
                }
                rest.failed += 1;
            }
        }
        // Also without any: what stands in the region may have been written over.
        taking.release();
        if taken {
            self.shared.cq_released();
        }
        taken
    }
}

impl Drop for Context {
    fn drop(&mut self) {
        if let Err(error) = self.teardown(Instant::now() + LONGEST_END) {
            log::log(Level::Error, format_args!("{error}"));
        }
    }
}

const _: () = {
    const fn assert_send_sync<T: Send + Sync>() {}
    assert_send_sync::<Context>();
};
