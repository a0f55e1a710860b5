//! What a context is, as found at open.

#![forbid(unsafe_code)]

use std::ffi::CString;

use crate::config::Drive;
use crate::cpus::Cpus;
use crate::frame::FrameMap;
use crate::region::Layout;
use crate::storage::device::{Kind, Limits};

#[derive(Debug, Clone)]
pub struct Info {
    /// At least one.
    pub devices: Vec<DeviceInfo>,
    pub frame_size: u32,
    pub frame_count: u32,
    pub headroom: u32,
    pub layout: Layout,
    pub region_address: usize,
    pub huge_pages: bool,
    pub drive: Drive,
    /// Where the library's threads run.
    pub cpus: Cpus,
    /// The data buffers are registered once. Otherwise each NVMe command maps its own.
    pub registered_buffers: bool,
    /// `None`: storage only.
    pub network: Option<NetworkInfo>,
}

impl Info {
    /// The devices, in the words of messages.
    pub fn device_names(&self) -> String {
        let names: Vec<_> = self
            .devices
            .iter()
            .map(|d| format!("'{}'", d.path))
            .collect();
        names.join(", ")
    }

    /// Where frames are in the data buffers.
    pub fn frames(&self) -> FrameMap {
        FrameMap::new(self.frame_size, self.frame_count)
    }
}

/// A device, as it was opened.
#[derive(Debug, Clone)]
pub struct DeviceInfo {
    pub path: String,
    /// The same for C.
    pub name: CString,
    /// Where the writes go that the device failed.
    pub spill: Option<String>,
    pub kind: Kind,
    pub limits: Limits,
    pub writable: bool,
    /// The caller insists: what is on the device may be overwritten.
    pub forced: bool,
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
    /// The kernel writes into a frame only what it then delivers to the one lane that there is: it copies packets, and the RX
    /// ring has a place for every frame that it can have.
    pub writes_are_delivered: bool,
}
