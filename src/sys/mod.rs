//! Unsafe room 2: the system boundary. Everything above it is safe code.

pub mod abi;
pub mod event;
pub mod file;
pub mod mmap;
pub mod shm;
pub mod uring;
