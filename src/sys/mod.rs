//! Unsafe room 2: the system boundary. Everything above it is safe code.

pub mod abi;
pub mod blkid;
pub mod bpf;
pub mod crc;
pub mod ethtool;
pub mod event;
pub mod file;
pub mod fork;
pub mod limits;
pub mod link;
pub mod mmap;
pub mod netlink;
pub mod numa;
pub mod probe;
pub mod shm;
pub mod thread;
pub mod uring;
pub mod user;
pub mod xsk;
