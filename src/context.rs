//! A context: interfaces, lanes and devices over one region, from opening to teardown.
//!
//! It only opens, closes, and answers control calls, which any thread may make. The data path is in the lanes
//! (`data_path` forwards to them).

#![forbid(unsafe_code)]

mod buffers;
mod data_path;
mod info;
mod open;

use std::ops::Range;
use std::os::fd::RawFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

pub use info::{DeviceInfo, Info, NetworkInfo};

use crate::buffers::Buffers;
use crate::counters::DeviceCounts;
use crate::error::{Error, Result};
use crate::lane::{Lane, Unfinished};
use crate::latency::Latency;
use crate::locked::Charge;
use crate::log::{self, Level};
use crate::net::interface::Interface;
use crate::net::watch::LinkState;
use crate::net::wire::{Event, XdpCounters};
use crate::net::xdp::Xdp;
use crate::region::Region;
use crate::stats::Statistics;
use crate::storage::command::status_text;
use crate::sys::event::Epoll;
use crate::sys::fork::ProcessId;
use crate::sys::shm::Shared;

/// Counting is repeated at most this often.
const RECOUNTS: usize = 3;

/// Counts, and again if a packet came between two of the counters, and is in one of them only. That is rare.
fn recounted<T>(count: impl Fn() -> Result<T>, is_right: impl Fn(&T) -> bool) -> Result<T> {
    let mut found = count()?;
    for _ in 0..RECOUNTS {
        if is_right(&found) {
            break;
        }
        found = count()?;
    }
    Ok(found)
}

/// How long a context's end waits for its devices.
pub const LONGEST_END: Duration = Duration::from_secs(30);

pub struct Context {
    info: Info,
    /// A child of fork must not touch what it shares with its parent.
    process: ProcessId,
    interfaces: Vec<Arc<Interface>>,
    /// At least one.
    lanes: Vec<Lane>,
    /// Somebody waits to destroy the context: calls that take long give up.
    leaving: AtomicBool,
    /// Where the next look at all lanes begins.
    turns: data_path::Turns,
    /// A bit for each lane with entries that are not published yet.
    unpublished: AtomicU64,
    /// The lanes are used one by one.
    apart: AtomicBool,
    /// The lane, the device and the blocks that the pipelines of lanes write to.
    ranges: Mutex<Vec<(u32, u8, Range<u64>)>>,
    /// The pollable descriptor of several lanes, made when first asked for.
    poll: Mutex<Option<Epoll>>,
    /// The teardown was done.
    ended: bool,
    // The lanes reach into them, and give their memory back before.
    buffers: Buffers,
    // Everything above may still reach into it.
    region: Region,
    // Last: given back when nothing is locked any more.
    _charge: Charge,
}

impl Context {
    pub fn info(&self) -> &Info {
        &self.info
    }

    /// All of them have the same data buffers and devices. At least one.
    pub fn lanes(&self) -> &[Lane] {
        &self.lanes
    }

    /// The lane of a number. `EINVAL`, saying how many there are.
    pub fn lane(&self, number: u32) -> Result<&Lane> {
        self.lanes.get(number as usize).ok_or_else(|| {
            Error::new(
                libc::EINVAL,
                format!(
                    "lane {number} does not exist: this context has {}, numbered from 0",
                    self.lanes.len()
                ),
            )
        })
    }

    /// A device, and what was counted of it: by one lane, or by all. `EINVAL`, saying how many there are.
    pub fn device(&self, number: u32, lane: Option<u32>) -> Result<(&DeviceInfo, DeviceCounts)> {
        self.check_process()?;
        let about = self.info.devices.get(number as usize).ok_or_else(|| {
            Error::new(
                libc::EINVAL,
                format!(
                    "device {number} does not exist: this context has {}, numbered from 0",
                    self.info.devices.len()
                ),
            )
        })?;
        let mut counts = DeviceCounts::default();
        for one in &self.lanes {
            if lane.is_none_or(|lane| lane == one.number()) {
                counts += one.engine_shared().stats.devices[number as usize].snapshot();
            }
        }
        Ok((about, counts))
    }

    /// From now on the lanes are used one by one, each by threads of its own.
    pub fn set_apart(&self) {
        self.apart.store(true, Ordering::Relaxed);
    }

    /// Whether the lanes are used one by one.
    pub fn is_apart(&self) -> bool {
        self.apart.load(Ordering::Relaxed)
    }

    /// The data buffers, for those who look at packets.
    pub fn data(&self) -> &Shared {
        &self.region.data
    }

    /// Whether a pipeline has the roles of one of the lanes.
    pub fn is_pipelined(&self) -> bool {
        self.lanes.iter().any(Lane::is_pipelined)
    }

    /// Whether the caller is in the process that opened it, not in a forked child.
    pub fn is_ours(&self) -> bool {
        self.process.is_current()
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

    /// Hands out up to `max` events of the XDP program. Any thread; one at a time.
    pub fn drain_events(&self, max: usize, each: impl FnMut(&Event)) -> Result<usize> {
        self.with_program(|xdp| xdp.drain_events(max, each))
    }

    pub fn events_fd(&self) -> Result<RawFd> {
        self.with_program(Xdp::events_fd)
    }

    pub fn port_add(&self, port: u16) -> Result<()> {
        self.with_program(|xdp| xdp.add_port(port))
    }

    pub fn port_remove(&self, port: u16) -> Result<()> {
        self.with_program(|xdp| xdp.remove_port(port))
    }

    pub fn set_event_sample(&self, sample: u32) -> Result<()> {
        self.with_program(|xdp| xdp.set_event_sample(sample))
    }

    fn with_program<T>(&self, act: impl FnOnce(&mut Xdp) -> Result<T>) -> Result<T> {
        self.check_process()?;
        match self.interfaces.first() {
            Some(interface) => interface.with_program(act),
            None => Err(Error::new(
                libc::ENOTCONN,
                "this context has no interface: it was made for storage only",
            )),
        }
    }

    /// Gives blocks of devices to a lane's pipeline. `EBUSY` if that of another lane has some of them.
    pub(crate) fn claim_ranges(&self, lane: u32, wanted: &[(u8, Range<u64>)]) -> Result<()> {
        let mut ranges = self.ranges.lock();
        for (device, range) in wanted {
            let overlaps = |(_, on, other): &&(u32, u8, Range<u64>)| {
                on == device && other.start < range.end && range.start < other.end
            };
            if let Some((other, _, taken)) = ranges.iter().find(overlaps) {
                let path = &self.info.devices[*device as usize].path;
                return Err(Error::new(
                    libc::EBUSY,
                    format!(
                        "blocks {} to {} of '{path}' for lane {lane}: the pipeline of lane {other} writes to blocks {} to \
                         {}; give each lane a range of its own",
                        range.start, range.end, taken.start, taken.end
                    ),
                ));
            }
        }
        let claimed = wanted.iter().cloned();
        ranges.extend(claimed.map(|(device, range)| (lane, device, range)));
        Ok(())
    }

    pub(crate) fn release_range(&self, lane: u32) {
        self.ranges.lock().retain(|(other, ..)| *other != lane);
    }

    /// All counters, of all lanes together. Any thread; the sums hold at quiet moments.
    pub fn statistics(&self) -> Result<Statistics> {
        let (total, _) = self.all_statistics()?;
        Ok(total)
    }

    /// All counters of one lane. Looks at no other.
    pub fn lane_statistics(&self, lane: u32) -> Result<Statistics> {
        self.check_process()?;
        let _held = log::hold();
        let lane = self.lane(lane)?;
        let link = self.link_state();
        let count = || {
            let mut stats = lane.statistics(self.queue_counters(lane)?)?;
            stats.link = link;
            Ok(stats)
        };
        recounted(count, Statistics::is_consistent)
    }

    /// What packets of a lane have met, without what takes longer to count: its frames and latencies. The first lane answers
    /// for the queues without a lane, too.
    pub(crate) fn losses_of(&self, lane: &Lane) -> Result<Statistics> {
        let _held = log::hold();
        let count = || {
            let mut stats = lane.count(self.queue_counters(lane)?)?;
            if lane.number() == 0
                && let Some(interface) = self.interfaces.first()
            {
                let mut others = interface.counters()?;
                for lane in &self.lanes {
                    others -= self.queue_counters(lane)?;
                }
                stats.xdp += others;
            }
            Ok(stats)
        };
        recounted(count, Statistics::is_consistent)
    }

    /// What the XDP program has counted of a lane's queue.
    fn queue_counters(&self, lane: &Lane) -> Result<XdpCounters> {
        match (self.interfaces.first(), self.info.network) {
            (Some(interface), Some(network)) => {
                interface.queue_counters(network.queue + lane.number())
            }
            _ => Ok(XdpCounters::default()),
        }
    }

    fn link_state(&self) -> LinkState {
        let Some(interface) = self.interfaces.first() else {
            return LinkState::default();
        };
        // An interface that is gone is counted all the same.
        let _ = interface.watch.check();
        interface.watch.state()
    }

    /// All counters, of all lanes together and of each.
    pub fn all_statistics(&self) -> Result<(Statistics, Vec<Statistics>)> {
        self.check_process()?;
        let _held = log::hold();
        recounted(
            || self.count(),
            |(_, lanes)| lanes.iter().all(Statistics::is_consistent),
        )
    }

    fn count(&self) -> Result<(Statistics, Vec<Statistics>)> {
        // Packets of queues without a lane are in the total, too.
        let link = self.link_state();
        let xdp = match self.interfaces.first() {
            Some(interface) => interface.counters()?,
            None => XdpCounters::default(),
        };
        let mut total = Statistics::default();
        let mut lanes = Vec::with_capacity(self.lanes.len());
        let frames = self.lanes[0].census_of_all();
        for (lane, frames) in self.lanes.iter().zip(frames) {
            let mut stats = lane.count(self.queue_counters(lane)?)?;
            stats.frames = frames;
            lane.add_latencies(&mut stats);
            total += &stats;
            stats.link = link;
            lanes.push(stats);
        }
        total.xdp = xdp;
        total.link = link;
        let reserve = u64::from(self.lanes[0].frames_in_reserve());
        total.frames.free += reserve;
        total.frames_reserve = reserve;
        total.buffers = self.count_buffers();
        Ok((total, lanes))
    }

    /// From a packet's arrival until the completion of its first write was taken.
    pub fn packet_latency(&self) -> Latency {
        self.sum_of(Lane::packet_latency)
    }

    /// From a command's submission to its completion in the CQ ring.
    pub fn command_latency(&self) -> Latency {
        self.sum_of(Lane::command_latency)
    }

    fn sum_of(&self, latency: impl Fn(&Lane) -> Latency) -> Latency {
        let mut sum = Latency::default();
        for lane in &self.lanes {
            sum += &latency(lane);
        }
        sum
    }

    /// The interface's name, if there is one.
    pub fn ifname(&self) -> Option<&str> {
        self.interfaces.first().map(|interface| interface.name())
    }

    /// Stops receiving: takes the XDP program off, so that packets go to the stack. Control.
    pub fn detach(&self) -> Result<()> {
        self.check_process()?;
        self.interfaces
            .iter()
            .try_for_each(|interface| interface.detach())
    }

    /// Calls that take long, such as the search for the end of a log, return `ESHUTDOWN` from now on. Control.
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

    /// Makes every waiting call return `ESHUTDOWN`, now and later. Control.
    pub fn close(&self) {
        self.lanes.iter().for_each(Lane::close);
    }
}

impl Context {
    /// As a drop, and reports what was lost. Waits for the devices at most until then. `EIO`: commands failed whose
    /// completions nobody took, or a device did not answer.
    pub fn end(mut self, until: Instant) -> Result<()> {
        self.teardown(until)
    }

    /// XDP off first, then what was submitted is finished, then the sockets, then (by dropping) the region.
    fn teardown(&mut self, until: Instant) -> Result<()> {
        if std::mem::replace(&mut self.ended, true) {
            return Ok(());
        }
        if !self.is_ours() {
            self.forget();
            return Ok(());
        }
        self.close();
        self.interfaces
            .iter()
            .for_each(|interface| interface.close());
        let mut rest = Unfinished::default();
        for lane in &mut self.lanes {
            rest.add(lane.end(until));
        }
        match rest.failed == 0 && rest.unanswered == 0 {
            true => Ok(()),
            false => Err(self.lost(&rest)),
        }
    }

    /// What is lost, of all lanes together.
    fn lost(&self, rest: &Unfinished) -> Error {
        let lost = rest.failed + u64::from(rest.unanswered);
        let devices = self.info.device_names();
        let mut text = format!(
            "destroying the context: {lost} commands submitted to {devices} are lost: {} failed",
            rest.failed
        );
        if rest.failed > 0 {
            text += &format!(" ({})", status_text(rest.status));
        }
        text += &format!(", {} were not answered", rest.unanswered);
        if rest.stays {
            text += "; the memory that the device may still use stays mapped and the device open: see why it does not \
                     answer";
        }
        Error::new(libc::EIO, text)
    }

    /// In a forked child everything here is the parent's, and closing it would be felt there: the program would come off,
    /// the io_uring would be driven. The region is not even mapped. The child's copies of the descriptors are closed when it
    /// ends, or executes another program.
    fn forget(&mut self) {
        self.interfaces
            .iter()
            .for_each(|interface| interface.forget());
        self.lanes.iter_mut().for_each(Lane::forget);
        std::mem::forget(self.region.mapping.clone());
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
