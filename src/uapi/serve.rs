//! The server of one registered region: the engine of every context, driven by a thread that polls.
//!
//! The program has no doorbell: it stores `producer` and waits. So the thread polls, and sleeps longer the longer
//! nothing came, up to `LONGEST_SLEEP`.

#![forbid(unsafe_code)]

use std::os::fd::RawFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::{Registration, identity};
use crate::error::{Error, Result};
use crate::locked::{Charge, Locked};
use crate::log::{self, Level};
use crate::region::{MAX_ENTRIES, Region};
use crate::storage::device::Device;
use crate::storage::engine::{
    Control, DriverThread, Engine, EngineConfig, EngineShared, OpenTarget, Pace, Turn, locked_bytes,
};
use crate::storage::retry::Retry;
use crate::sys::mmap::{is_mapped, same_origin};
use crate::sys::{event, file, limits};

/// Entries that wait inside the engine while the device stalls: such programs count a full SQ ring as an error and
/// lose the packet.
const BACKLOG: u32 = 4096;
/// The thread polls without sleeping for this long after the last work. It never yields: whoever runs instead keeps
/// the core for its time slice, milliseconds in which a ring of 256 entries fills up.
const SPIN: Duration = Duration::from_micros(20);
const SHORTEST_SLEEP: Duration = Duration::from_micros(20);
/// An entry is seen after at most this time plus a wakeup, which takes 10 to 30 us.
const LONGEST_SLEEP: Duration = Duration::from_micros(1050);
/// Traffic comes in bursts. For this long after the last work the sleeps stay short: a burst may fill a ring of 256
/// entries in a millisecond, and such programs count a full ring as an error.
const ALERT: Duration = Duration::from_millis(50);
const ALERT_SLEEP: Duration = Duration::from_micros(50);
/// With commands in flight the thread looks at the rings this often, and each time one of them ends. More looks gain
/// nothing, and each costs the program's threads 10 us of their core.
const BUSY_SLEEP: Duration = Duration::from_micros(100);
/// How often the thread checks that the program still has its ring and its region.
const WATCH: Duration = Duration::from_millis(100);
/// Most commands in flight.
const DEPTH: u32 = 256;

pub(super) const CLOSED: &str =
    "the program closed the ring without unregistering its region first";
pub(super) const UNMAPPED: &str = "the program unmapped the region without unregistering it first";

/// One region with the thread that serves it. Dropping it finishes what is in flight.
#[derive(Debug)]
pub(super) struct Server {
    ring: (u64, u64),
    /// Where the region begins for the program, and for the library while the thread runs.
    addresses: (usize, usize),
    /// `None` after it was ended.
    thread: Option<DriverThread>,
}

impl Server {
    pub fn start(
        fd: RawFd,
        request: &Registration,
        region: Region,
        device: Device,
    ) -> Result<Server> {
        let ring = identity(fd)?;
        let layout = region.layout;
        let depth = layout.sq_count.min(layout.cq_count).min(DEPTH);
        let others = locked_bytes(&[device.limits], depth);
        let locked = Locked::of(&layout, 0, others, region.mapping.is_huge());
        let charge = Charge::take(locked, limits::memlock())?;
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
        let target = OpenTarget::new(device, None);
        let mut engine = Engine::new(
            vec![target],
            &region,
            EngineConfig {
                lane: 0,
                depth,
                bounce: true,
                raw: true,
                threaded: true,
                backlog: BACKLOG,
                registered: true,
                retry: Retry::default(),
            },
        )?;
        // The program computes its data pointers from its own mapping, not from the library's.
        engine.set_program_address(request.region.user_addr + layout.buffers as u64);
        let addresses = (request.region.user_addr as usize, region.mapping.address());
        let now = Instant::now();
        let pace = Polling {
            shared: engine.shared().clone(),
            fd,
            ring,
            address: addresses.0,
            last_work: now,
            last_watch: now,
            left: MAX_ENTRIES,
            _charge: charge,
        };
        Ok(Server {
            ring,
            addresses,
            thread: Some(DriverThread::spawn("unified-raw", engine, pace)?),
        })
    }

    /// Whether the descriptor is still the ring that this was registered with.
    pub fn is_current(&self, fd: RawFd) -> bool {
        file::identity(fd).is_ok_and(|ring| ring == self.ring)
    }

    fn is_finished(&self) -> bool {
        self.thread.as_ref().is_none_or(DriverThread::is_finished)
    }

    /// Whether the program still has at its address what it registered. The thread cannot tell if the address was mapped
    /// anew: it checks often, and so does not read the memory map.
    pub fn has_its_region(&self) -> bool {
        let (program, library) = self.addresses;
        self.is_finished() || same_origin(program, library).unwrap_or(true)
    }

    /// Ends the service of a program that did not end it.
    pub fn abandon(&mut self, fd: RawFd, what: &str) {
        if !self.is_finished() {
            log::log(
                Level::Error,
                format_args!("io_uring {fd}: no longer served: {what}"),
            );
        }
        self.thread = None;
    }
}

/// Polls the rings, and checks that the program still has them.
struct Polling {
    shared: Arc<EngineShared>,
    fd: RawFd,
    ring: (u64, u64),
    /// Where the program has the region.
    address: usize,
    last_work: Instant,
    last_watch: Instant,
    /// Entries that are still taken after the stop, whatever the program goes on storing.
    left: u32,
    /// Locked memory, as long as the engine has it.
    _charge: Charge,
}

impl Pace for Polling {
    fn begin(&mut self) {
        event::sharpen_timers();
    }

    fn rest(&mut self, engine: &mut Engine, turn: Turn) -> Result<()> {
        let now = Instant::now();
        if now - self.last_watch >= WATCH {
            self.last_watch = now;
            self.watch()?;
        }
        let worked = turn != Turn::default();
        if worked {
            self.last_work = now;
        }
        match nap(now - self.last_work, worked, engine.in_flight() > 0) {
            Nap::None => {}
            Nap::Spin => std::hint::spin_loop(),
            Nap::Sleep(time) => std::thread::sleep(time),
            Nap::Wait(time) => engine.wait(time)?,
        }
        Ok(())
    }

    /// Takes the entries that are in the SQ ring, as many as can be completed, and at most a full ring of them.
    fn finish(&mut self, engine: &mut Engine, turn: Turn, _: &Control) -> Result<bool> {
        self.left = self.left.saturating_sub(turn.taken);
        let idle = turn == Turn::default() && engine.in_flight() == 0;
        if idle || self.left == 0 || !engine.has_room()? {
            return Ok(true);
        }
        match engine.in_flight() {
            0 => engine.submit()?,
            _ => engine.wait(LONGEST_SLEEP)?,
        }
        Ok(false)
    }

    fn end(&mut self, mut engine: Engine, result: Result<()>) {
        let fd = self.fd;
        let failed = |what: &str, error: &Error| {
            log::log(Level::Error, format_args!("io_uring {fd}: {what}: {error}"));
        };
        if let Err(error) = result {
            failed("no longer served", &error);
        }
        // Whatever happened: nothing may touch the region when this thread has ended.
        if engine.drain().is_err()
            && let Err(error) = engine.abandon()
        {
            failed("commands were left in flight", &error);
        }
        let stats = &self.shared.stats;
        let device = stats.devices[0].snapshot();
        log::log(
            Level::Info,
            format_args!(
                "io_uring {fd}: {} commands, {} of them failed, {} copied ({} bytes), {} bytes written, {} read",
                stats.completed.get(),
                stats.errors.get(),
                stats.bounced.get(),
                stats.bounced_bytes.get(),
                device.bytes_written,
                device.bytes_read
            ),
        );
    }
}

impl Polling {
    /// An error if the program has closed its ring or unmapped its region without unregistering.
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
        // In proportion: half as long as nothing came, within bounds.
        (false, false) => Nap::Sleep(sleep_after(idle)),
        // A completion ends the wait. Deferred completion work runs only while this thread is in the kernel.
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
