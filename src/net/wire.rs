//! Structs that the XDP program and the library share: the Rust side of bpf/unified_xdp.h.

#![forbid(unsafe_code)]

use std::ops::{AddAssign, SubAssign};

/// Counters of the XDP program, summed over the CPUs. `seen = passed + redirected`.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
#[repr(C)]
pub struct XdpCounters {
    pub seen: u64,
    pub passed: u64,
    pub redirected: u64,
    pub matched: u64,
    pub no_socket: u64,
    pub malformed: u64,
    pub fragments: u64,
    pub events: u64,
    pub events_lost: u64,
    pub no_metadata: u64,
    pub merged: u64,
}

impl XdpCounters {
    /// Combines each counter with that of the same name.
    fn each(self, other: XdpCounters, with: impl Fn(u64, u64) -> u64) -> XdpCounters {
        XdpCounters {
            seen: with(self.seen, other.seen),
            passed: with(self.passed, other.passed),
            redirected: with(self.redirected, other.redirected),
            matched: with(self.matched, other.matched),
            no_socket: with(self.no_socket, other.no_socket),
            malformed: with(self.malformed, other.malformed),
            fragments: with(self.fragments, other.fragments),
            events: with(self.events, other.events),
            events_lost: with(self.events_lost, other.events_lost),
            no_metadata: with(self.no_metadata, other.no_metadata),
            merged: with(self.merged, other.merged),
        }
    }
}

impl AddAssign for XdpCounters {
    fn add_assign(&mut self, other: XdpCounters) {
        *self = self.each(other, |a, b| a + b);
    }
}

impl SubAssign for XdpCounters {
    /// Not below zero.
    fn sub_assign(&mut self, other: XdpCounters) {
        *self = self.each(other, u64::saturating_sub);
    }
}

/// `u64`s that the XDP program keeps for each CPU and queue.
pub const COUNTERS: usize = 12;

impl XdpCounters {
    pub fn from_words(words: &[u64; COUNTERS]) -> XdpCounters {
        let [
            seen,
            passed,
            redirected,
            matched,
            no_socket,
            malformed,
            fragments,
            events,
            events_lost,
            no_metadata,
            merged,
            _since_event,
        ] = *words;
        XdpCounters {
            seen,
            passed,
            redirected,
            matched,
            no_socket,
            malformed,
            fragments,
            events,
            events_lost,
            no_metadata,
            merged,
        }
    }
}

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_ne_bytes([bytes[at], bytes[at + 1]])
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_ne_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_ne_bytes(std::array::from_fn(|i| bytes[at + i]))
}

/// Bytes of the record before the packet.
pub const META_LEN: usize = 20;
const META_MARKER: u32 = 0x3246_4e55;
const FLAG_VLAN: u8 = 1;
const FLAG_IPV6: u8 = 2;

/// The record that the XDP program leaves before a packet; not yet checked against the packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Meta {
    pub timestamp: u64,
    pub payload_offset: u16,
    pub payload_len: u16,
    pub vlan_tci: Option<u16>,
    pub l3_offset: u8,
    pub ip_version: u8,
}

impl Meta {
    /// `None` if the marker is missing: the driver has no metadata area.
    pub fn parse(bytes: &[u8; META_LEN]) -> Option<Meta> {
        if u32_at(bytes, 16) != META_MARKER {
            return None;
        }
        let flags = bytes[15];
        Some(Meta {
            timestamp: u64_at(bytes, 0),
            payload_offset: u16_at(bytes, 8),
            payload_len: u16_at(bytes, 10),
            vlan_tci: (flags & FLAG_VLAN != 0).then(|| u16_at(bytes, 12)),
            l3_offset: bytes[14],
            ip_version: if flags & FLAG_IPV6 != 0 { 6 } else { 4 },
        })
    }
}

/// Bytes of one event record.
pub const EVENT_LEN: usize = 56;

/// Metadata of one redirected packet, from the BPF ring buffer.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Event {
    /// ns of CLOCK_MONOTONIC: of the initial time namespace when it is parsed, of this process when it is handed out.
    pub timestamp: u64,
    /// IPv4 addresses are the first four bytes.
    pub src_addr: [u8; 16],
    pub dst_addr: [u8; 16],
    pub src_port: u16,
    pub dst_port: u16,
    pub payload_len: u16,
    pub vlan_tci: Option<u16>,
    pub queue: u32,
    /// 4 or 6.
    pub ip_version: u8,
}

impl Event {
    pub fn parse(bytes: &[u8]) -> Option<Event> {
        if bytes.len() < EVENT_LEN {
            return None;
        }
        let mut event = Event {
            timestamp: u64_at(bytes, 0),
            src_port: u16_at(bytes, 40),
            dst_port: u16_at(bytes, 42),
            payload_len: u16_at(bytes, 44),
            vlan_tci: (bytes[53] & FLAG_VLAN != 0).then(|| u16_at(bytes, 46)),
            queue: u32_at(bytes, 48),
            ip_version: bytes[52],
            ..Event::default()
        };
        event.src_addr.copy_from_slice(&bytes[8..24]);
        event.dst_addr.copy_from_slice(&bytes[24..40]);
        Some(event)
    }
}

/// `struct unified_settings` as bytes.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Settings {
    pub event_sample: u32,
    pub wake_bytes: u32,
    pub owner_pid: u32,
    pub owner_pid_namespace: u32,
    pub owner_start: u64,
    pub owner_token: u64,
    pub events_read: u32,
    /// Written by the program.
    pub events_unread: u32,
}

pub const SETTINGS_LEN: usize = 40;

impl Settings {
    pub fn to_bytes(self) -> [u8; SETTINGS_LEN] {
        let mut bytes = [0; SETTINGS_LEN];
        bytes[0..4].copy_from_slice(&self.event_sample.to_ne_bytes());
        bytes[4..8].copy_from_slice(&self.wake_bytes.to_ne_bytes());
        bytes[8..12].copy_from_slice(&self.owner_pid.to_ne_bytes());
        bytes[12..16].copy_from_slice(&self.owner_pid_namespace.to_ne_bytes());
        bytes[16..24].copy_from_slice(&self.owner_start.to_ne_bytes());
        bytes[24..32].copy_from_slice(&self.owner_token.to_ne_bytes());
        bytes[32..36].copy_from_slice(&self.events_read.to_ne_bytes());
        bytes[36..40].copy_from_slice(&self.events_unread.to_ne_bytes());
        bytes
    }

    pub fn from_bytes(bytes: &[u8; SETTINGS_LEN]) -> Settings {
        Settings {
            event_sample: u32_at(bytes, 0),
            wake_bytes: u32_at(bytes, 4),
            owner_pid: u32_at(bytes, 8),
            owner_pid_namespace: u32_at(bytes, 12),
            owner_start: u64_at(bytes, 16),
            owner_token: u64_at(bytes, 24),
            events_read: u32_at(bytes, 32),
            events_unread: u32_at(bytes, 36),
        }
    }
}
