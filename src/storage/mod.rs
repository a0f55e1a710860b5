//! Storage: from an NVMe command in the SQ ring to the device and back.
//!
//! `command` defines what an entry means, `device` opens devices, `backend` dispatches to the backend of a device's kind
//! (`nvme`, `block`, `null`), which turns commands into io_uring operations, and `engine` moves entries through them.

#![forbid(unsafe_code)]

pub mod backend;
pub mod block;
pub mod command;
pub mod device;
pub mod engine;
pub mod identify;
pub mod merge;
pub mod null;
pub mod nvme;
pub mod retry;
pub mod spill;
pub mod task;
mod uring;
