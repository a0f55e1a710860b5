//! Unsafe room 2: the system boundary. Everything above it is safe code.

pub mod abi;
pub mod bpf;
pub mod event;
pub mod file;
pub mod limits;
pub mod link;
pub mod mmap;
pub mod shm;
pub mod uring;
pub mod xsk;
