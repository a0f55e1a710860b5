//! Unsafe room 2: the system boundary. Everything above it is safe code.

pub mod abi;
pub mod mmap;
pub mod shm;
