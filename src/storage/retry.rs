//! Which failed operations are sent again, how often and after which pause.

#![forbid(unsafe_code)]

use std::time::{Duration, Instant};

use super::command;
use super::task::Task;

/// The policy for transient errors.
///
/// `EINTR` and `EAGAIN` are transient. With a pause before the next try, so are `ENOMEM`, `EBUSY` and the NVMe
/// statuses Command Interrupted (21h), Transient Transport Error (22h) and Namespace Not Ready (82h), unless the
/// device sets Do Not Retry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Retry {
    /// Number of retries before the error is reported: 0 to 255. An operation that moved some bytes starts counting
    /// anew.
    pub limit: u32,
    /// Microseconds before the first retry, at most `MAX_BACKOFF_US`. The pause doubles with each further retry, up to
    /// `MAX_BACKOFF_US`. 0: at once.
    pub backoff_us: u32,
    /// Milliseconds after the first failure after which no retry begins. 0: only `limit` counts.
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

    /// Counts a retry. `false` if the limit of retries or of time is reached.
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
