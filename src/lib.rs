#![deny(unsafe_code)]
#![deny(unsafe_op_in_unsafe_fn)]
#![warn(clippy::undocumented_unsafe_blocks)]

pub mod error;
pub mod frame;
pub mod log;
pub mod ring;
pub mod stats;
pub mod storage;
#[allow(unsafe_code)]
pub mod sys;

pub use error::{Error, Result};
