//! Which failed operations are sent again, how often and after which pause.

#![forbid(unsafe_code)]

use std::time::{Duration, Instant};

use super::command;
use super::task::Task;

/// What to do about errors that may be gone a moment later.
///
/// `EINTR` and `EAGAIN` are such. Where there is a pause before the next try, so are `ENOMEM`, `EBUSY` and the
/// NVMe statuses that ask for patience (Command Interrupted 21h, Transient Transport Error 22h, Namespace Not
/// Ready 82h), unless the device says that trying again is useless.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Retry {
    /// An operation is sent again this often before its error is given out: 0 to 255. What moved some bytes
    /// starts to count anew.
    pub limit: u32,
    /// Microseconds before the first retry, up to `MAX_BACKOFF_US`; twice as many before each further one, never
    /// above `MAX_BACKOFF_US`. 0: at once.
    pub backoff_us: u32,
    /// Milliseconds after the first failure from which on no more is tried. 0: only `limit` counts.
    pub give_up_ms: u32,
}

/// Longest pause before a retry. Also how long a context that is destroyed may wait for one.
pub const MAX_BACKOFF_US: u32 = 1_000_000;

impl Default for Retry {
    fn default() -> Self {
        Retry {
            limit: 8,
            backoff_us: 0,
            give_up_ms: 0,
        }
    }
}

impl Retry {
    pub(super) fn is_transient(&self, result: i32) -> bool {
        match -result {
            libc::EINTR | libc::EAGAIN => true,
            libc::ENOMEM | libc::EBUSY => self.backoff_us > 0,
            _ => false,
        }
    }

    /// A positive result is an NVMe status.
    pub(super) fn is_transient_nvme(&self, result: i32) -> bool {
        let asks = matches!(result & 0x7ff, 0x021 | 0x022 | 0x082);
        let useless = result & i32::from(command::DNR) != 0;
        self.is_transient(result) || result > 0 && asks && !useless && self.backoff_us > 0
    }

    /// Counts an operation that is to be sent again; `false` where that was done often or long enough.
    pub(super) fn again(&self, task: &mut Task) -> bool {
        if u32::from(task.retries) >= self.limit {
            return false;
        }
        if self.give_up_ms > 0 {
            let since = *task.failing_since.get_or_insert_with(Instant::now);
            if since.elapsed() >= Duration::from_millis(self.give_up_ms.into()) {
                return false;
            }
        }
        task.retries += 1;
        true
    }
}
