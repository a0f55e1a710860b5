//! One command on its way to a device: its state, its next step, how it ended, and the memory that it uses.

#![forbid(unsafe_code)]

use std::io;
use std::time::Instant;

use super::command::{Command, status_of_errno};
use crate::sys::shm::Shared;
use crate::sys::uring::{BufRange, Op};

/// How a command ended.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Outcome {
    /// NVMe status: type << 8 | code; 0 is success.
    pub status: u16,
    /// 0, or a negative errno if the system failed rather than the device.
    pub result: i32,
    /// The device says that trying again is useless.
    pub dnr: bool,
    /// Bytes moved.
    pub len: u32,
}

impl Outcome {
    pub fn success(len: u32) -> Outcome {
        Outcome {
            len,
            ..Outcome::default()
        }
    }

    pub fn status(status: u16) -> Outcome {
        Outcome {
            status,
            ..Outcome::default()
        }
    }

    /// An error of the system.
    pub fn os(error: &io::Error, opcode: u8) -> Outcome {
        Outcome::errno(error.raw_os_error().unwrap_or(libc::EIO), opcode)
    }

    /// A positive errno, with the NVMe status that comes closest to it.
    pub fn errno(errno: i32, opcode: u8) -> Outcome {
        Outcome {
            status: status_of_errno(errno, opcode),
            result: -errno,
            ..Outcome::default()
        }
    }
}

/// What to do next for a command.
#[derive(Debug, Clone, Copy)]
pub enum Step {
    Submit(Op),
    Done(Outcome),
}

/// One command in flight: plain data in a reused slot of the engine.
#[derive(Debug, Default, Clone, Copy)]
pub struct Task {
    pub command: Command,
    /// Where its data is. The device can take it there: the engine has bounced it if not.
    pub data: Option<BufRange>,
    /// A bounce buffer for operations that need one.
    pub scratch: Option<BufRange>,
    /// Bytes done, or ranges done, by a command that takes several operations.
    pub progress: u64,
    /// Operations that failed and were retried.
    pub retries: u8,
    /// When the first of them failed, if the policy has a time limit.
    pub failing_since: Option<Instant>,
    /// Waits before the next try.
    pub pausing: bool,
    /// Which of several ways to do a command is being tried.
    pub variant: u8,
}

/// The registered memory that backends may read and write: the data buffers, the bounce pool, and what is registered
/// while the engine runs.
#[derive(Debug)]
pub struct Memory {
    pub data: Shared,
    pub bounce: Shared,
    pub more: Box<[Option<Shared>]>,
}

/// Numbers of the registered buffers.
pub const BUFFER_DATA: u16 = 0;
pub const BUFFER_BOUNCE: u16 = 1;
/// The first of those in `Memory::more`.
pub const BUFFER_MORE: u16 = 2;

impl Memory {
    pub fn of(&self, range: BufRange) -> &Shared {
        self.at(range.buffer)
    }

    /// The memory of a number that a command in flight uses: it stays registered until then.
    pub fn at(&self, number: u16) -> &Shared {
        self.get(number)
            .expect("a command in flight uses registered memory")
    }

    /// The memory of a number, if there is some.
    pub fn get(&self, number: u16) -> Option<&Shared> {
        match number {
            BUFFER_DATA => Some(&self.data),
            BUFFER_BOUNCE => Some(&self.bounce),
            more => self.more.get((more - BUFFER_MORE) as usize)?.as_ref(),
        }
    }
}
