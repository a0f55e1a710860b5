//! Packets from AF_XDP to NVMe without a copy.
//!
//! One mapping, the [`region`], holds the SQ and CQ rings and the data buffers, which are at once the UMEM
//! of an AF_XDP socket and the registered buffer of an io_uring.
//!
//! # The path of a packet
//!
//! 1. The XDP program (`bpf/`, loaded by [`net::xdp`]) redirects it to the socket; the kernel puts it into a
//!    frame of the data buffers.
//! 2. [`net::rx`] takes the descriptor, checks it, and hands out the frame. The frame table ([`frame`]) then says that
//!    the caller holds it.
//! 3. [`lane`] turns it into an NVMe command in the SQ ring ([`ring`]).
//! 4. [`storage::engine`] takes the entry, checks it ([`storage::command`]), and gives it to a backend
//!    ([`storage::nvme`], [`storage::block`], [`storage::null`]) through io_uring.
//! 5. The completion goes through the CQ ring back to the [`lane`], which frees the frame. The receiver puts it into
//!    the fill ring again.
//!
//! # Invariants
//!
//! - A frame has one owner at a time, in a private table. Nothing in shared memory changes that.
//! - The engine takes only as many entries as the CQ has room for: no completion is lost.
//! - An index, offset or length that comes from shared memory is checked before it is used.
//! - Every packet that the XDP program redirected is in exactly one counter of [`stats::Statistics`].
//! - Unsafe code is in [`sys`] and [`capi`] only.

#![deny(unsafe_code)]
#![deny(unsafe_op_in_unsafe_fn)]
#![warn(clippy::undocumented_unsafe_blocks)]

pub mod buffers;
pub mod bytes;
#[allow(unsafe_code)]
pub mod capi;
pub mod config;
pub mod context;
pub mod counters;
pub mod cpus;
pub mod end;
pub mod error;
pub mod frame;
pub mod lane;
pub mod latency;
pub mod locked;
pub mod log;
pub mod log_reader;
pub mod log_scan;
pub mod metrics;
pub mod net;
pub mod numa;
pub mod pipeline;
pub mod record;
pub mod recorder;
pub mod region;
pub mod ring;
pub mod stats;
pub mod storage;
#[allow(unsafe_code)]
pub mod sys;
pub mod uapi;
pub mod unit_log;

pub use error::{Error, Result};
