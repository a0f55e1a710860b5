#![deny(unsafe_code)]
#![deny(unsafe_op_in_unsafe_fn)]
#![warn(clippy::undocumented_unsafe_blocks)]

pub mod config;
pub mod context;
pub mod error;
pub mod frame;
pub mod log;
pub mod net;
pub mod region;
pub mod ring;
pub mod stats;
pub mod storage;
pub mod submit;
#[allow(unsafe_code)]
pub mod sys;
pub mod wait;

pub use error::{Error, Result};
