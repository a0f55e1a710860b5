//! The configuration of a context, checked before anything is opened.

#![forbid(unsafe_code)]

use std::os::fd::RawFd;

use crate::buffers::DEFAULT_LIMIT;
use crate::cpus::Cpus;
use crate::error::{Error, Result};
use crate::frame::MAX_LANES;
use crate::net::link::Link;
use crate::net::socket::ZeroCopy;
use crate::net::xdp::XdpMode;
use crate::region::MAX_ENTRIES;
use crate::storage::device::{DeviceConfig, MAX_DEVICES};
use crate::storage::retry::{MAX_BACKOFF_US, Retry};

/// Bytes that the kernel keeps before the headroom (XDP_PACKET_HEADROOM).
pub const KERNEL_HEADROOM: u32 = 256;
/// With this headroom the payload of a plain Ethernet/IPv4/UDP packet begins at byte 512 of its frame:
/// 256 of the kernel + 214 + 42 of headers. Aligned for NVMe (4) and for 512-byte direct I/O.
pub const DEFAULT_HEADROOM: u32 = 214;
pub const DEFAULT_PORT: u16 = 9999;
/// What a frame must hold besides the headroom, as zero-copy drivers count: the kernel's headroom, one buffer of 128
/// bytes, and the 320 bytes that multi-buffer reserves at the end.
const FRAME_OVERHEAD: u32 = KERNEL_HEADROOM + 320 + 128;

/// All queues of the interface, from the first one on.
pub const ALL_QUEUES: u32 = u32::MAX;
/// Frames of each lane, if their number is not given.
pub const FRAMES_PER_LANE: u32 = 4096;
/// Lanes exchange so many at once, and none can do with less.
const FRAMES_PER_BLOCK: u32 = 64;
const MOST_FRAMES: u32 = 1 << 22;

/// Who moves SQ entries to the device.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub enum Drive {
    /// The thread that asks for completions.
    #[default]
    Inline,
    /// A thread of the library.
    Thread,
}

/// A context's configuration.
#[derive(Debug, Clone)]
pub struct Config {
    /// `None`: storage only, frames come from `frame_alloc`.
    pub ifname: Option<String>,
    /// The first queue.
    pub queue: u32,
    /// How many queues, each of them a lane: 0 is 1, `ALL_QUEUES` is all from the first one on. Without an interface: how
    /// many lanes.
    pub queues: u32,
    /// UDP destination ports.
    pub ports: Vec<u16>,
    pub xdp_mode: XdpMode,
    pub zero_copy: ZeroCopy,
    pub run_priority: u32,
    /// One event in so many packets; 0: none.
    pub event_sample: u32,
    pub events_bytes: u32,
    pub device: DeviceConfig,
    /// Devices 1 and so on; `device` is number 0.
    pub more_devices: Vec<DeviceConfig>,
    pub drive: Drive,
    /// 2048 or 4096 bytes.
    pub frame_size: u32,
    /// Of all lanes together. 0: `FRAMES_PER_LANE` for each.
    pub frame_count: u32,
    pub headroom: u32,
    pub sq_entries: u32,
    pub cq_entries: u32,
    pub rx_ring: u32,
    pub fill_ring: u32,
    pub huge_pages: bool,
    /// Copies (and counts) what the device cannot take in place. If off, the kernel gets the data where it is. Data
    /// whose padding would reach beyond the frame is copied in any case, because other packets' bytes are there.
    pub bounce: bool,
    /// Which errors the engine retries, how often and when.
    pub retry: Retry,
    /// For processes that may not attach programs: the map of AF_XDP sockets of a program that another process
    /// attached to the interface. No program is attached then. The descriptor stays the caller's, who may close it
    /// afterwards.
    pub xsk_map: Option<RawFd>,
    /// For processes without CAP_NET_RAW: an AF_XDP socket for each queue, none of them bound yet. As `xsk_map`.
    pub xsks: Vec<RawFd>,
    /// Where the library's threads run.
    pub cpus: Cpus,
    /// Most bytes that are registered for buffers at a time. They are allocated when they are asked for.
    pub buffers_max: u64,
    /// First index of the SQ and CQ rings; for tests of their wrap.
    #[doc(hidden)]
    pub first_index: u32,
}

impl Default for Config {
    fn default() -> Self {
        Config {
            ifname: None,
            queue: 0,
            queues: 0,
            ports: vec![DEFAULT_PORT],
            xdp_mode: XdpMode::Auto,
            zero_copy: ZeroCopy::Auto,
            run_priority: 50,
            event_sample: 1,
            events_bytes: 256 << 10,
            device: DeviceConfig::default(),
            more_devices: Vec::new(),
            drive: Drive::Inline,
            frame_size: 2048,
            frame_count: 0,
            headroom: DEFAULT_HEADROOM,
            sq_entries: 256,
            cq_entries: 256,
            rx_ring: 2048,
            fill_ring: 2048,
            huge_pages: false,
            bounce: true,
            retry: Retry::default(),
            xsk_map: None,
            xsks: Vec::new(),
            cpus: Cpus::default(),
            buffers_max: DEFAULT_LIMIT,
            first_index: 0,
        }
    }
}

fn invalid(message: String) -> Error {
    Error::new(libc::EINVAL, message)
}

impl Config {
    /// `EINVAL`, naming the field.
    pub fn validate(&self) -> Result<()> {
        for (number, device) in self.devices().enumerate() {
            if device.path.is_empty() && device.fd.is_none() {
                let which = match number {
                    0 => "no device is given".into(),
                    _ => format!("device {number} has no path"),
                };
                return Err(invalid(format!(
                    "{which}: a path, or null: to store nothing"
                )));
            }
        }
        let devices = 1 + self.more_devices.len();
        if devices > MAX_DEVICES {
            return Err(invalid(format!(
                "{devices} devices: a context has 1 to {MAX_DEVICES}; take fewer, or make several contexts"
            )));
        }
        if !matches!(self.frame_size, 2048 | 4096) {
            return Err(invalid(format!(
                "frame size {} is neither 2048 nor 4096 bytes",
                self.frame_size
            )));
        }
        if self.frame_count != 0 && !(FRAMES_PER_BLOCK..=MOST_FRAMES).contains(&self.frame_count) {
            return Err(invalid(format!(
                "{} frames: {FRAMES_PER_BLOCK} to {MOST_FRAMES} are possible",
                self.frame_count
            )));
        }
        let most = self.frame_size - FRAME_OVERHEAD;
        if self.headroom > most {
            return Err(invalid(format!(
                "headroom {} leaves no room for a packet in a frame of {}; at most {most}",
                self.headroom, self.frame_size
            )));
        }
        for (name, size, max) in [
            ("SQ entries", self.sq_entries, MAX_ENTRIES),
            ("CQ entries", self.cq_entries, MAX_ENTRIES),
            ("RX ring entries", self.rx_ring, 1 << 20),
            ("fill ring entries", self.fill_ring, 1 << 20),
        ] {
            if !size.is_power_of_two() || size > max {
                return Err(invalid(format!(
                    "{size} {name}: a power of two up to {max} is needed"
                )));
            }
        }
        if self.retry.limit > u8::MAX.into() || self.retry.backoff_us > MAX_BACKOFF_US {
            return Err(invalid(format!(
                "{} retries with a backoff of {} us: at most 255 and {MAX_BACKOFF_US}",
                self.retry.limit, self.retry.backoff_us
            )));
        }
        if self.ports.contains(&0) {
            return Err(invalid(
                "UDP port 0 cannot be received; ports are 1 to 65535".into(),
            ));
        }
        if self.ifname.is_none() && (self.xsk_map.is_some() || !self.xsks.is_empty()) {
            return Err(invalid(
                "xsk_map_fd, xsk_fd or xsk_fds is set, but no interface is named".into(),
            ));
        }
        if self.ifname.is_some() {
            if self.ports.is_empty() {
                return Err(invalid("no UDP port is given".into()));
            }
            if !self.events_bytes.is_power_of_two()
                || !(4096..=1 << 28).contains(&self.events_bytes)
            {
                return Err(invalid(format!(
                    "an events ring buffer of {} bytes: a power of two from 4096 to 268435456 is needed",
                    self.events_bytes
                )));
            }
            if self.run_priority == 0 || self.run_priority > 65535 {
                return Err(invalid(format!(
                    "run priority {} is not 1 to 65535",
                    self.run_priority
                )));
            }
        }
        Ok(())
    }

    /// How many lanes there are, on an interface that has so many receive queues; `None`: without one. `EINVAL` if they cannot
    /// be, or not with that many frames.
    pub fn lanes(&self, link: Option<&Link>) -> Result<u32> {
        let lanes = match (self.queues, link) {
            (0, _) => 1,
            (ALL_QUEUES, Some(link)) => link.rx_queues.saturating_sub(self.queue),
            (ALL_QUEUES, None) => {
                return Err(invalid(
                    "all queues of an interface are asked for, but no interface is named".into(),
                ));
            }
            (queues, _) => queues,
        };
        if let Some(link) = link
            && u64::from(self.queue) + u64::from(lanes) > u64::from(link.rx_queues)
        {
            return Err(invalid(format!(
                "{lanes} queues of '{}' from queue {} on: it has {}; take fewer, or give it more (ethtool -L)",
                link.name, self.queue, link.rx_queues
            )));
        }
        if !(1..=MAX_LANES).contains(&lanes) {
            return Err(invalid(format!(
                "{lanes} queues: a context has 1 to {MAX_LANES} lanes; name how many queues it takes, or make several contexts"
            )));
        }
        let sockets = self.xsks.len();
        if sockets > 0 && sockets != lanes as usize {
            return Err(invalid(format!(
                "{sockets} AF_XDP sockets were handed in for {lanes} queues, which need one each: hand in {lanes} (xsk_fds), \
                 or name as many queues as there are sockets"
            )));
        }
        let doubled = |(i, socket)| self.xsks[..i].contains(socket);
        if let Some((i, socket)) = self.xsks.iter().enumerate().find(|at| doubled(*at)) {
            return Err(invalid(format!(
                "xsk_fds[{i}] is descriptor {socket}, which is there before: each queue needs a socket of its own"
            )));
        }
        let frames = self.frames(lanes);
        if !(lanes * FRAMES_PER_BLOCK..=MOST_FRAMES).contains(&frames) {
            return Err(invalid(format!(
                "{frames} frames for {lanes} lanes: at least {FRAMES_PER_BLOCK} for each and at most {MOST_FRAMES} are possible"
            )));
        }
        Ok(lanes)
    }

    /// All devices, in the order of their numbers.
    pub fn devices(&self) -> impl Iterator<Item = &DeviceConfig> {
        std::iter::once(&self.device).chain(&self.more_devices)
    }

    /// How many frames so many lanes have together.
    pub fn frames(&self, lanes: u32) -> u32 {
        match self.frame_count {
            0 => lanes * FRAMES_PER_LANE,
            count => count,
        }
    }

    /// Most commands in flight, of each lane.
    pub fn depth(&self) -> u32 {
        self.sq_entries.min(self.cq_entries).min(1024)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_is_right_once_it_has_a_device() {
        let mut config = Config::default();
        assert_eq!(config.validate().unwrap_err().errno(), libc::EINVAL);
        config.device.path = "null:".into();
        config.validate().unwrap();
        assert_eq!(KERNEL_HEADROOM + DEFAULT_HEADROOM + 42, 512);
    }

    #[test]
    fn every_wrong_field_is_named() {
        type Change = fn(&mut Config);
        let wrong: [(Change, &str); 13] = [
            (|c| c.frame_size = 3000, "3000"),
            (|c| c.frame_count = 1, "frames"),
            (|c| c.headroom = 1500, "headroom"),
            (|c| c.sq_entries = 100, "SQ entries"),
            (|c| c.cq_entries = 0, "CQ entries"),
            (|c| c.rx_ring = 3, "RX ring"),
            (|c| c.fill_ring = 1 << 21, "fill ring"),
            (|c| c.ports = vec![9999, 0], "port 0"),
            (|c| c.ports.clear(), "no UDP port"),
            (|c| c.events_bytes = 5000, "events"),
            (|c| c.run_priority = 0, "priority"),
            (|c| c.retry.limit = 256, "retries"),
            (|c| c.retry.backoff_us = 1_000_001, "backoff"),
        ];
        for (change, name) in wrong {
            let mut config = Config {
                ifname: Some("eth0".into()),
                ..Config::default()
            };
            config.device.path = "null:".into();
            change(&mut config);
            let error = config.validate().unwrap_err();
            assert_eq!(error.errno(), libc::EINVAL);
            assert!(error.message().contains(name), "{error}");
        }
    }

    #[test]
    fn lanes_are_counted_by_the_queues_that_there_are() {
        let link = |rx_queues| Link {
            name: "eth0".into(),
            index: 7,
            rx_queues,
        };
        let config = |queue, queues| Config {
            queue,
            queues,
            ..Config::default()
        };
        let lanes = |queue, queues, of| config(queue, queues).lanes(Some(&link(of)));
        assert_eq!(lanes(0, 0, 4).unwrap(), 1);
        assert_eq!(lanes(3, 1, 4).unwrap(), 1);
        assert_eq!(lanes(1, ALL_QUEUES, 4).unwrap(), 3);
        assert_eq!(lanes(0, 64, 96).unwrap(), 64);
        assert_eq!(config(0, 5).lanes(None).unwrap(), 5);
        for (queue, queues, of, text) in [
            (0, 5, 4, "5 queues of 'eth0' from queue 0 on: it has 4"),
            (2, 3, 4, "from queue 2 on"),
            (0, ALL_QUEUES, 96, "96 queues: a context has 1 to 64 lanes"),
            (1, u32::MAX - 1, 4, "it has 4"),
        ] {
            let error = lanes(queue, queues, of).unwrap_err();
            assert_eq!(error.errno(), libc::EINVAL);
            assert!(error.message().contains(text), "{error}");
        }
        assert!(config(0, ALL_QUEUES).lanes(None).is_err());
        assert_eq!(config(0, 3).frames(3), 3 * 4096);
        let mut few = config(0, 3);
        few.frame_count = 191;
        assert!(
            few.lanes(None)
                .unwrap_err()
                .message()
                .contains("191 frames for 3 lanes")
        );
        few.frame_count = 192;
        assert_eq!((few.lanes(None).unwrap(), few.frames(3)), (3, 192));
        few.xsks = vec![3];
        let refused = |config: &Config| config.lanes(None).unwrap_err().message().to_string();
        assert!(refused(&few).contains("1 AF_XDP sockets were handed in for 3 queues"));
        few.xsks = vec![3, 4, 3];
        assert!(refused(&few).contains("xsk_fds[2] is descriptor 3"));
        few.xsks = vec![3, 4, 5];
        assert_eq!(few.lanes(None).unwrap(), 3);
    }
}
