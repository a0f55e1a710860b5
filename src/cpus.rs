//! CPUs of the library's threads.

#![forbid(unsafe_code)]

use std::thread::JoinHandle;

use crate::error::{Error, Result};
use crate::sys::thread::pin;

/// The threads of lane `i` run on number `i` of these CPUs, which are used again if there are more lanes. None: wherever the
/// kernel lets them run.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Cpus(pub Vec<u32>);

impl Cpus {
    /// Binds a lane's thread to its CPU. `EINVAL`: there is no such CPU, or this process may not use it.
    pub fn bind<T>(&self, lane: u32, thread: &JoinHandle<T>, name: &str) -> Result<()> {
        if self.0.is_empty() {
            return Ok(());
        }
        let cpu = self.0[lane as usize % self.0.len()];
        pin(thread, cpu).map_err(|e| {
            Error::os(&e, format_args!("binding the thread {name} to CPU {cpu}")).hint(
                "take CPUs that exist and that this process may use (Cpus_allowed_list in /proc/self/status)",
            )
        })
    }
}
