//! The documented registration interface: serves rings that a program writes itself.
//!
//! Registration lays the region out in the program's memory and starts a thread that drives the same
//! engine as every context. The program has no doorbell: it stores `producer` and waits. So that thread
//! polls, and sleeps longer the longer nothing came, up to `LONGEST_SLEEP`.
//!
//! The library works on a mapping of its own of the region's pages. A program that unmaps its region or
//! closes its ring without unregistering loses the server, never its life.

#![forbid(unsafe_code)]

use std::collections::HashMap;
use std::fmt;
use std::os::fd::RawFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use crate::error::{Error, Result};
use crate::locked::{Charge, Locked};
use crate::log::{self, Level};
use crate::region::{Layout, MAX_ENTRIES, Region};
use crate::ring::{Consumer, Producer};
use crate::storage::Retry;
use crate::storage::device::{Device, DeviceConfig};
use crate::storage::engine::{
    Engine, EngineConfig, EngineShared, Turn, bounce_bytes, locked_bytes,
};
use crate::sys::abi::{RegionDesc, UnifiedOffsets, UnifiedReg};
use crate::sys::mmap::{Mapping, is_mapped, same_origin};
use crate::sys::shm::Shared;
use crate::sys::{event, file, limits};

/// Entries that wait inside while the device stalls: such programs count a full SQ ring as an error and
/// lose the packet.
const BACKLOG: u32 = 4096;
/// Without work for so long the thread looks again at once; then it sleeps. It never yields: whoever runs
/// then keeps the core for a slice of its own, milliseconds in which a ring of 256 entries is full.
const SPIN: Duration = Duration::from_micros(20);
const SHORTEST_SLEEP: Duration = Duration::from_micros(20);
/// An entry is seen at most so late, and the time a thread takes to wake up. A wakeup costs 10 to 30 us.
const LONGEST_SLEEP: Duration = Duration::from_micros(1050);
/// Traffic comes in bursts. For so long after the last work the sleeps stay short: a burst may fill a
/// ring of 256 entries in a millisecond, and such programs count a full ring as an error.
const ALERT: Duration = Duration::from_millis(50);
const ALERT_SLEEP: Duration = Duration::from_micros(50);
/// With commands in flight the rings are looked at so often, besides each time one of them ends: an entry
/// more or less has nothing to gain, and each look costs the program's threads 10 us of their core.
const BUSY_SLEEP: Duration = Duration::from_micros(100);
/// How often the thread looks whether the program is still interested.
const WATCH: Duration = Duration::from_millis(100);
/// Most commands in flight.
const DEPTH: u32 = 256;
/// `io_uring_region_desc` flag: memory of the program. Without it, it is that too.
const REGION_USER: u32 = 1;

const CLOSED: &str = "the program closed the ring without unregistering its region first";
const UNMAPPED: &str = "the program unmapped the region without unregistering it first";

fn invalid(what: impl fmt::Display) -> Error {
    Error::new(libc::EINVAL, format!("registering a region: {what}"))
}

/// What registration is asked for; numbers as the program gave them.
#[derive(Debug, Clone)]
pub struct Registration {
    pub reg: UnifiedReg,
    pub region: RegionDesc,
    pub device: String,
    /// The ring was made with IORING_SETUP_CLAMP.
    pub clamp: bool,
}

impl Registration {
    /// The part of the checks that needs only the first structure. With `clamp`, a count above `MAX_ENTRIES`
    /// becomes `MAX_ENTRIES`. `EINVAL`.
    pub fn layout(reg: &UnifiedReg, clamp: bool) -> Result<Layout> {
        if reg.flags != 0 || reg.reserved != [0; 3] {
            return Err(invalid("flags and reserved fields must be zero"));
        }
        let count = |name: &str, count: u32| match count {
            1..=MAX_ENTRIES => Ok(count.next_power_of_two()),
            // No entries are wrong with the flag too, as for io_uring_setup.
            1.. if clamp => Ok(MAX_ENTRIES),
            0 => Err(invalid(format_args!(
                "0 {name} entries; 1 to {MAX_ENTRIES} are possible"
            ))),
            _ => Err(invalid(format_args!(
                "{count} {name} entries; 1 to {MAX_ENTRIES} are possible: make the io_uring with \
                 IORING_SETUP_CLAMP to get {MAX_ENTRIES} instead"
            ))),
        };
        let (sq, cq) = (count("SQ", reg.sq_entries)?, count("CQ", reg.cq_entries)?);
        let buffers = u64::from(reg.buffer_entries) * u64::from(reg.buffer_entry_size);
        let buffers = usize::try_from(buffers).map_err(|_| invalid("the buffers are too long"))?;
        Layout::new(sq, cq, buffers)
    }

    fn check_region(&self) -> Result<()> {
        if self.region.flags & !REGION_USER != 0 || self.region.reserved != [0; 4] {
            return Err(invalid(
                "the region's flags (0 or 1) or reserved fields are wrong",
            ));
        }
        if self.region.user_addr == 0 {
            return Err(Error::new(
                libc::EFAULT,
                "registering a region: its address is NULL",
            ));
        }
        if self.region.size == 0 {
            return Err(invalid("its size is zero"));
        }
        Ok(())
    }

    fn map(&self, layout: Layout) -> Result<Region> {
        let (address, size) = (self.region.user_addr, self.region.size);
        let mapping = Mapping::of_program(address as usize, size as usize).map_err(|e| {
            let error = Error::os(
                &e,
                format_args!("the region of {size} bytes at {address:#x}"),
            );
            match e.raw_os_error() {
                Some(libc::EFAULT) => {
                    error.hint("all of it must be mapped for reading and writing")
                }
                Some(libc::EINVAL) => {
                    error.hint("it must be one shared mapping (MAP_SHARED) and begin on a page")
                }
                _ => error,
            }
        })?;
        if mapping.is_lent() {
            log::log(
                Level::Warn,
                format_args!(
                    "the region's huge pages are used where the program mapped them (a mapping of the \
                     library's own needs CAP_CHECKPOINT_RESTORE): unmapping them before unregistering \
                     would end the program"
                ),
            );
        }
        Region::over(Arc::new(mapping), layout)
    }
}

/// The registrations of one process.
#[derive(Debug, Default)]
pub struct Registrations {
    rings: Mutex<HashMap<RawFd, Server>>,
    /// The rings made with IORING_SETUP_CLAMP, by descriptor: the kernel tells nobody its setup flags later.
    /// A descriptor may be another file by now, so its identity is compared.
    clamping: Mutex<HashMap<RawFd, (u64, u64)>>,
}

impl Registrations {
    pub fn new() -> Registrations {
        log::to_stderr_if_asked();
        Registrations::default()
    }

    /// Remembers that this ring was made with IORING_SETUP_CLAMP. `EBADF`.
    pub fn note_clamp(&self, fd: RawFd) -> Result<()> {
        let ring = identity(fd)?;
        self.clamping.lock().insert(fd, ring);
        Ok(())
    }

    /// Whether this ring was made with IORING_SETUP_CLAMP, also if the descriptor is a copy. `EBADF`.
    pub fn clamps(&self, fd: RawFd) -> Result<bool> {
        let ring = identity(fd)?;
        Ok(self.clamping.lock().values().any(|known| *known == ring))
    }

    /// `EBADF`, `EOPNOTSUPP` where the descriptor is not an io_uring, `EBUSY` where something is
    /// registered with it already.
    pub fn check_ring(&self, fd: RawFd) -> Result<()> {
        identity(fd)?;
        let target = std::fs::read_link(format!("/proc/thread-self/fd/{fd}"))
            .map_err(|e| Error::os(&e, format_args!("looking at descriptor {fd}")))?;
        if target.as_os_str() != "anon_inode:[io_uring]" {
            return Err(Error::new(
                libc::EOPNOTSUPP,
                format!("descriptor {fd} is not an io_uring"),
            ));
        }
        let mut rings = self.rings.lock();
        // What belongs to rings that were closed, and to regions that are not there any more, goes first:
        // its device may be wanted again.
        rings.retain(|fd, server| {
            let current = server.is_current(*fd);
            if !current {
                server.abandon(*fd, CLOSED);
            } else if !server.has_its_region() {
                server.abandon(*fd, UNMAPPED);
            }
            current
        });
        if rings.contains_key(&fd) {
            return Err(Error::new(
                libc::EBUSY,
                format!("a region is registered with io_uring {fd} already"),
            ));
        }
        Ok(())
    }

    /// Checks, opens the device, lays the region out and serves it until `unregister`. Any thread.
    ///
    /// `EINVAL` `EFAULT` (the region), `ENOMEM` (locked memory), `EPERM`, and what `Device::open` says.
    pub fn register(&self, fd: RawFd, request: &Registration) -> Result<UnifiedOffsets> {
        self.check_ring(fd)?;
        let layout = Registration::layout(&request.reg, request.clamp)?;
        request.check_region()?;
        let region = request.map(layout)?;
        let device = Device::open(&DeviceConfig {
            path: request.device.clone(),
            // The interface counts in 512 bytes, and a file has no format that could forbid it.
            small_blocks: true,
            ..DeviceConfig::default()
        })
        .map_err(|e| match e.errno() {
            // The interface knows one errno for what this process may not do.
            libc::EACCES => Error::new(libc::EPERM, e.message().to_string()),
            _ => e,
        })?;
        let mut rings = self.rings.lock();
        if rings.contains_key(&fd) {
            return Err(Error::new(
                libc::EBUSY,
                "another thread registered a region with this io_uring meanwhile",
            ));
        }
        let server = Server::start(fd, request, region, device)?;
        rings.insert(fd, server);
        Ok(UnifiedOffsets {
            sq_ring: layout.sq_ring as u64,
            cq_ring: layout.cq_ring as u64,
            sq_entries: layout.sq_entries as u64,
            cq_entries: layout.cq_entries as u64,
            buffers: layout.buffers as u64,
        })
    }

    /// Finishes what is in flight. When it returns, nothing touches the region any more. Succeeds if nothing is
    /// registered with this ring, too. `EBADF`.
    pub fn unregister(&self, fd: RawFd) -> Result<()> {
        identity(fd)?;
        let server = self.rings.lock().remove(&fd);
        // Joins its thread.
        drop(server);
        Ok(())
    }
}

fn identity(fd: RawFd) -> Result<(u64, u64)> {
    file::identity(fd).map_err(|e| Error::os(&e, format_args!("descriptor {fd}")))
}

/// One region with the thread that serves it. Dropping it finishes what is in flight.
#[derive(Debug)]
struct Server {
    ring: (u64, u64),
    /// Where the region begins for the program, and for the library as long as the thread runs.
    addresses: (usize, usize),
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    fn start(fd: RawFd, request: &Registration, region: Region, device: Device) -> Result<Server> {
        let ring = identity(fd)?;
        let layout = region.layout;
        let depth = layout.sq_count.min(layout.cq_count).min(DEPTH);
        let bounce_len = bounce_bytes(&device.limits, depth);
        let others = locked_bytes(&device.limits, depth);
        let locked = Locked::of(&layout, false, others, region.mapping.is_huge());
        let charge = Charge::take(locked, limits::memlock())?;
        let bounce = Mapping::anonymous(bounce_len, false).map_err(|e| {
            Error::os(
                &e,
                format_args!("mapping a bounce pool of {bounce_len} bytes"),
            )
        })?;
        let bounce =
            Shared::new(Arc::new(bounce), 0, bounce_len).expect("the pool is its own mapping");
        log::log(
            Level::Info,
            format_args!(
                "io_uring {fd}: {} as {}, {} blocks of {} bytes; {} SQ and {} CQ entries, {} bytes of buffers",
                device.path,
                device.kind.name(),
                device.limits.blocks,
                device.limits.block_size,
                layout.sq_count,
                layout.cq_count,
                layout.buffers_len
            ),
        );
        let shared = EngineShared::new()?;
        let mut engine = Engine::new(
            device,
            Consumer::new(region.sq.clone(), "SQ"),
            Producer::new(region.cq.clone(), "CQ"),
            region.data.clone(),
            bounce,
            EngineConfig {
                depth,
                bounce: true,
                raw: true,
                threaded: true,
                backlog: BACKLOG,
                registered: true,
                retry: Retry::default(),
            },
            shared.clone(),
        )?;
        // Not where the library maps it: the program computes its data pointers from its own mapping.
        engine.set_program_address(request.region.user_addr + layout.buffers as u64);
        let addresses = (request.region.user_addr as usize, region.mapping.address());
        let stop = Arc::new(AtomicBool::new(false));
        let mut service = Service {
            engine,
            shared,
            fd,
            ring,
            address: addresses.0,
            stop: stop.clone(),
            _charge: charge,
        };
        let thread = std::thread::Builder::new()
            .name("unified-raw".into())
            .spawn(move || service.run())
            .map_err(|e| Error::os(&e, "starting the thread that serves the rings"))?;
        Ok(Server {
            ring,
            addresses,
            stop,
            thread: Some(thread),
        })
    }

    /// Whether the descriptor is still the ring that this was registered with.
    fn is_current(&self, fd: RawFd) -> bool {
        file::identity(fd).is_ok_and(|ring| ring == self.ring)
    }

    /// Whether the program still has at its address what it registered. An address that was mapped anew
    /// looks right to the thread, which asks often and so cannot read the memory map.
    fn has_its_region(&self) -> bool {
        let (program, library) = self.addresses;
        self.thread.as_ref().is_none_or(JoinHandle::is_finished)
            || same_origin(program, library).unwrap_or(true)
    }

    /// Ends the service of a program that did not end it.
    fn abandon(&mut self, fd: RawFd, what: &str) {
        if self.thread.as_ref().is_some_and(|t| !t.is_finished()) {
            log::log(
                Level::Error,
                format_args!("io_uring {fd}: no longer served: {what}"),
            );
        }
        self.halt();
    }

    fn halt(&mut self) {
        // Release: entries that the program published before are seen by the last turns.
        self.stop.store(true, Ordering::Release);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.halt();
    }
}

/// What the thread owns: when it ends, the device is free again and the library's mapping is gone.
struct Service {
    engine: Engine,
    shared: Arc<EngineShared>,
    fd: RawFd,
    ring: (u64, u64),
    address: usize,
    stop: Arc<AtomicBool>,
    /// Locked memory, as long as the engine has it.
    _charge: Charge,
}

impl Service {
    fn run(&mut self) {
        event::block_signals();
        event::sharpen_timers();
        if let Err(error) = self.serve() {
            log::log(
                Level::Error,
                format_args!("io_uring {}: no longer served: {error}", self.fd),
            );
        }
        // Whatever happened: nothing may touch the region when this thread has ended.
        if self.engine.drain().is_err()
            && let Err(error) = self.engine.abandon()
        {
            log::log(
                Level::Error,
                format_args!(
                    "io_uring {}: commands were left in flight: {error}",
                    self.fd
                ),
            );
        }
        let stats = &self.shared.stats;
        log::log(
            Level::Info,
            format_args!(
                "io_uring {}: {} commands, {} of them failed, {} copied ({} bytes), {} bytes written, {} read",
                self.fd,
                stats.completed.get(),
                stats.errors.get(),
                stats.bounced.get(),
                stats.bounced_bytes.get(),
                stats.bytes_written.get(),
                stats.bytes_read.get()
            ),
        );
    }

    fn serve(&mut self) -> Result<()> {
        self.engine.enable()?;
        let mut last_work = Instant::now();
        let mut last_watch = last_work;
        loop {
            let turn = self.engine.pump(false)?;
            if self.stop.load(Ordering::Acquire) {
                return self.finish();
            }
            let now = Instant::now();
            if now - last_watch >= WATCH {
                last_watch = now;
                self.watch()?;
            }
            let worked = turn != Turn::default();
            if worked {
                last_work = now;
            }
            let in_flight = self.engine.in_flight() > 0;
            match nap(now - last_work, worked, in_flight) {
                Nap::None => {}
                Nap::Spin => std::hint::spin_loop(),
                Nap::Sleep(time) => std::thread::sleep(time),
                Nap::Wait(time) => self.engine.wait(time)?,
            }
        }
    }

    /// Takes the entries that stand in the SQ ring, as many as can be completed, and no more than a ring
    /// full of them, whatever the program goes on storing.
    fn finish(&mut self) -> Result<()> {
        let mut left = MAX_ENTRIES;
        while left > 0 && self.engine.has_room()? {
            let turn = self.engine.pump(true)?;
            if turn == Turn::default() && self.engine.in_flight() == 0 {
                break;
            }
            left = left.saturating_sub(turn.taken);
            if self.engine.in_flight() > 0 {
                self.engine.wait(LONGEST_SLEEP)?;
            }
        }
        Ok(())
    }

    /// An error where the program has closed its ring or unmapped its region without unregistering.
    fn watch(&self) -> Result<()> {
        if !file::identity(self.fd).is_ok_and(|ring| ring == self.ring) {
            return Err(Error::new(libc::ESHUTDOWN, CLOSED));
        }
        if !is_mapped(self.address) {
            return Err(Error::new(libc::ESHUTDOWN, UNMAPPED));
        }
        Ok(())
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Nap {
    None,
    Spin,
    Sleep(Duration),
    /// In the kernel, until a completion at the latest.
    Wait(Duration),
}

/// How long to stay away from the rings after `idle` without work.
fn nap(idle: Duration, worked: bool, in_flight: bool) -> Nap {
    match (worked, in_flight) {
        (true, false) => Nap::None,
        (false, false) if idle < SPIN => Nap::Spin,
        // In proportion to what passed already: half as late as it was quiet, and soon at the longest.
        (false, false) => Nap::Sleep(sleep_after(idle)),
        // A completion ends it. Only in the kernel those that it holds back for this thread are run.
        (_, true) => Nap::Wait(sleep_after(idle).max(BUSY_SLEEP)),
    }
}

fn sleep_after(idle: Duration) -> Duration {
    let longest = if idle < ALERT {
        ALERT_SLEEP
    } else {
        LONGEST_SLEEP
    };
    (idle / 2).clamp(SHORTEST_SLEEP, longest)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reg() -> UnifiedReg {
        UnifiedReg {
            sq_entries: 200,
            cq_entries: 256,
            buffer_entries: 64,
            buffer_entry_size: 4096,
            ..UnifiedReg::default()
        }
    }

    #[test]
    fn counts_are_rounded_up_and_bounded() {
        let layout = Registration::layout(&reg(), false).unwrap();
        assert_eq!((layout.sq_count, layout.cq_count), (256, 256));
        assert_eq!(layout.buffers, 36864);
        type Change = fn(&mut UnifiedReg);
        let wrong: [(&str, Change); 9] = [
            ("flags", |r| r.flags = 1),
            ("reserved", |r| r.reserved[2] = 1),
            ("no SQ", |r| r.sq_entries = 0),
            ("no CQ", |r| r.cq_entries = 0),
            ("SQ too long", |r| r.sq_entries = 32769),
            ("CQ too long", |r| r.cq_entries = u32::MAX),
            ("no buffers", |r| r.buffer_entries = 0),
            ("empty buffers", |r| r.buffer_entry_size = 0),
            ("too many bytes", |r| {
                (r.buffer_entries, r.buffer_entry_size) = (u32::MAX, u32::MAX)
            }),
        ];
        for (name, change) in wrong {
            let mut reg = reg();
            change(&mut reg);
            let error = Registration::layout(&reg, false).unwrap_err();
            assert_eq!(error.errno(), libc::EINVAL, "{name}: {error}");
        }
        let longest = UnifiedReg {
            sq_entries: 32768,
            cq_entries: 32767,
            ..reg()
        };
        let layout = Registration::layout(&longest, false).unwrap();
        assert_eq!(layout.cq_count, 32768);
    }

    #[test]
    fn counts_are_clamped_for_a_ring_that_asked_for_it() {
        for (sq, cq, want) in [
            (32769, 1, (32768, 1)),
            (200, u32::MAX, (256, 32768)),
            (1 << 31, 65536, (32768, 32768)),
            (129, 255, (256, 256)),
        ] {
            let reg = UnifiedReg {
                sq_entries: sq,
                cq_entries: cq,
                ..reg()
            };
            let layout = Registration::layout(&reg, true).unwrap();
            assert_eq!((layout.sq_count, layout.cq_count), want);
        }
        for (sq, cq) in [(0, 256), (256, 0)] {
            let reg = UnifiedReg {
                sq_entries: sq,
                cq_entries: cq,
                ..reg()
            };
            let error = Registration::layout(&reg, true).unwrap_err();
            assert_eq!(error.errno(), libc::EINVAL);
        }
    }

    #[test]
    fn naps_grow_with_the_quiet_and_end_in_time() {
        let ms = Duration::from_millis;
        assert_eq!(nap(ms(0), true, false), Nap::None);
        assert_eq!(nap(ms(0), true, true), Nap::Wait(BUSY_SLEEP));
        assert_eq!(nap(SPIN / 2, false, false), Nap::Spin);
        assert_eq!(nap(SPIN / 4, false, true), Nap::Wait(BUSY_SLEEP));
        assert_eq!(nap(ms(1), false, false), Nap::Sleep(ALERT_SLEEP));
        assert_eq!(nap(ALERT, false, false), Nap::Sleep(LONGEST_SLEEP));
        assert_eq!(nap(ms(10_000), false, false), Nap::Sleep(LONGEST_SLEEP));
        assert_eq!(nap(ms(10_000), false, true), Nap::Wait(LONGEST_SLEEP));
    }
}
