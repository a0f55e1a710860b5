//! Storage: from an NVMe command in the SQ ring to the device and back.
//!
//! `command` says what an entry means, `device` opens what it goes to, a backend (`nvme`, `block`,
//! `null`) turns it into io_uring operations, and `engine` moves entries through them.

#![forbid(unsafe_code)]

pub mod block;
pub mod command;
pub mod device;
pub mod engine;
#[cfg(test)]
pub mod faulty;
pub mod merge;
pub mod null;
pub mod nvme;
pub mod spill;

use std::time::{Duration, Instant};

use crate::error::Result;
use crate::sys::shm::Shared;
use crate::sys::uring::{BufRange, Gathered, Op};
use command::{Command, status, status_of_errno};
use device::{Device, Kind, Limits};

/// How a command ended.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Outcome {
    /// NVMe status: type << 8 | code; 0 is success.
    pub status: u16,
    /// 0, or a negative errno where the system failed rather than the device.
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

    /// A positive errno, with the status that stands beside it.
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

/// One command on its way: plain data in the engine's slab, used again and again.
#[derive(Debug, Default, Clone, Copy)]
pub struct Task {
    pub command: Command,
    /// Where its data is, fit for the device (the engine has bounced it otherwise).
    pub data: Option<BufRange>,
    /// A bounce buffer for operations that need one.
    pub scratch: Option<BufRange>,
    /// Bytes done, or ranges done, by a command that takes several operations.
    pub progress: u64,
    /// Operations that failed for now and were sent again.
    pub retries: u8,
    /// When the first of them failed, where the policy asks.
    pub failing_since: Option<Instant>,
    /// Waits before the next try.
    pub pausing: bool,
    /// Which way a command that has several is being tried.
    pub variant: u8,
}

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
    fn is_transient(&self, result: i32) -> bool {
        match -result {
            libc::EINTR | libc::EAGAIN => true,
            libc::ENOMEM | libc::EBUSY => self.backoff_us > 0,
            _ => false,
        }
    }

    /// A positive result is an NVMe status.
    fn is_transient_nvme(&self, result: i32) -> bool {
        let asks = matches!(result & 0x7ff, 0x021 | 0x022 | 0x082);
        let useless = result & i32::from(command::DNR) != 0;
        self.is_transient(result) || result > 0 && asks && !useless && self.backoff_us > 0
    }

    /// Counts an operation that is to be sent again; `false` where that was done often or long enough.
    fn again(&self, task: &mut Task) -> bool {
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

/// The registered memory that backends may look into: the data buffers and the bounce pool.
#[derive(Debug)]
pub struct Memory {
    pub data: Shared,
    pub bounce: Shared,
}

/// Numbers of the registered buffers.
pub const BUFFER_DATA: u16 = 0;
pub const BUFFER_BOUNCE: u16 = 1;
/// Number of the device in the registered file table.
pub const FILE_DEVICE: u32 = 0;

impl Memory {
    pub fn of(&self, range: BufRange) -> &Shared {
        if range.buffer == BUFFER_BOUNCE {
            &self.bounce
        } else {
            &self.data
        }
    }
}

/// Turns commands into operations, as the kind of device wants them.
#[derive(Debug)]
pub enum Backend {
    Nvme(nvme::Nvme),
    Block(block::Block),
    Null(null::Null),
    #[cfg(test)]
    Faulty(Box<faulty::Faulty>),
}

impl Backend {
    pub fn of(device: &Device) -> Result<Backend> {
        Ok(match device.kind {
            Kind::Nvme => Backend::Nvme(nvme::Nvme::new(device)?),
            Kind::Block | Kind::File => Backend::Block(block::Block::new(device)),
            Kind::Null => Backend::Null(null::Null::new(device)),
        })
    }

    /// The first step of a command.
    pub fn begin(&self, task: &mut Task, memory: &Memory) -> Step {
        task.progress = 0;
        task.retries = 0;
        task.failing_since = None;
        task.pausing = false;
        task.variant = 0;
        self.next(task, memory)
    }

    fn next(&self, task: &mut Task, memory: &Memory) -> Step {
        match self {
            Backend::Nvme(b) => b.begin(task, memory),
            Backend::Block(b) => b.next(task, memory),
            Backend::Null(b) => b.begin(task, memory),
            #[cfg(test)]
            Backend::Faulty(b) => b.device.next(task, memory),
        }
    }

    /// The next step, after an operation gave `result` (as io_uring gives it).
    pub fn advance(&self, task: &mut Task, result: i32, memory: &Memory, retry: &Retry) -> Step {
        if std::mem::take(&mut task.pausing) {
            return self.next(task, memory);
        }
        #[cfg(test)]
        if let Backend::Faulty(b) = self {
            let result = b.result(task, result);
            return b.device.advance(task, result, memory, retry);
        }
        let transient = match self {
            Backend::Nvme(_) => retry.is_transient_nvme(result),
            _ => retry.is_transient(result),
        };
        if transient && retry.again(task) {
            if retry.backoff_us == 0 {
                return self.next(task, memory);
            }
            task.pausing = true;
            return Step::Submit(Op::Pause {
                step: task.retries - 1,
            });
        }
        match self {
            Backend::Nvme(b) => b.advance(task, result),
            Backend::Block(b) => b.advance(task, result, memory),
            Backend::Null(_) => Step::Done(Outcome::status(status::INTERNAL)),
            #[cfg(test)]
            Backend::Faulty(_) => Step::Done(Outcome::status(status::INTERNAL)),
        }
    }

    /// Whether a command needs a bounce buffer of its own beside its data.
    pub fn needs_scratch(&self, command: &Command) -> bool {
        #[cfg(test)]
        if let Backend::Faulty(b) = self {
            return b.device.needs_scratch(command);
        }
        matches!(self, Backend::Block(_))
            && matches!(
                command.opcode,
                command::opcode::COMPARE | command::opcode::WRITE_ZEROES
            )
    }

    /// Whether the data of a command may stand anywhere: no DMA is made from it.
    pub fn takes_in_place(&self, command: &Command) -> bool {
        match self {
            #[cfg(test)]
            Backend::Faulty(b) => b.device.takes_in_place(command),
            Backend::Nvme(_) => false,
            Backend::Null(_) => true,
            Backend::Block(_) => !matches!(
                command.opcode,
                command::opcode::READ | command::opcode::WRITE
            ),
        }
    }

    /// Whether a command's data may be in pieces.
    pub fn gathers(&self) -> bool {
        matches!(self, Backend::Block(_) | Backend::Nvme(_))
    }

    /// How an operation in pieces ended. A short one is no success: then each entry is tried alone.
    pub fn gathered_ended(&self, task: &Task, result: i32) -> Step {
        let command = &task.command;
        Step::Done(match (self, u32::try_from(result)) {
            (Backend::Nvme(_), _) => nvme::outcome(result, command),
            (_, Ok(len)) if len == command.len => Outcome::success(len),
            (_, Ok(_)) => Outcome::errno(libc::EIO, command.opcode),
            (_, Err(_)) => Outcome::errno(-result, command.opcode),
        })
    }

    /// The operation of a write or read whose data is in pieces; for backends that gather.
    pub fn gathered(&self, command: &Command, pieces: Gathered) -> Op {
        match self {
            Backend::Block(b) => b.gathered(command, pieces),
            Backend::Nvme(n) => n.gathered(command, pieces),
            Backend::Null(_) => Op::Nop,
            #[cfg(test)]
            Backend::Faulty(_) => Op::Nop,
        }
    }

    /// Whether opcodes that the library does not know may go to the device.
    pub fn passes_unknown(&self) -> bool {
        matches!(self, Backend::Nvme(_))
    }
}

/// Identify for devices that are no NVMe: enough for a program that asks what it talks to.
/// Base specification 2.0, figures "Identify Namespace / Controller Data Structure".
pub fn synthesize_identify(
    cns: u8,
    nsid: u32,
    limits: &Limits,
    name: &str,
) -> Option<Box<[u8; 4096]>> {
    let mut page = Box::new([0u8; 4096]);
    let text = |page: &mut [u8], at: usize, len: usize, text: &str| {
        let bytes = text.bytes().chain(std::iter::repeat(b' ')).take(len);
        for (slot, byte) in page[at..at + len].iter_mut().zip(bytes) {
            *slot = byte;
        }
    };
    match cns {
        0 => {
            for at in [0, 8, 16] {
                page[at..at + 8].copy_from_slice(&limits.blocks.to_le_bytes());
            }
            // NSFEAT bit 0, thin provisioning is not claimed; one LBA format, number 0, in use.
            page[128 + 2] = limits.block_shift() as u8;
        }
        1 => {
            text(&mut page[..], 4, 20, "0");
            text(&mut page[..], 24, 40, &format!("unified {name}"));
            text(&mut page[..], 64, 8, env!("CARGO_PKG_VERSION"));
            // MDTS in units of 4 KiB.
            page[77] = (limits.max_transfer / 4096).max(1).ilog2() as u8;
            // NVMe 1.4; one namespace; Compare, Write Zeroes, Dataset Management.
            page[80..84].copy_from_slice(&0x0001_0400u32.to_le_bytes());
            page[512] = 0x66;
            page[513] = 0x44;
            page[516..520].copy_from_slice(&1u32.to_le_bytes());
            page[520] = 0x01 | 0x04 | 0x08;
            page[525] = u8::from(limits.volatile_cache.unwrap_or(true));
        }
        // Active namespaces above the given one: number 1, and zeroes behind it.
        2 => page[0] = u8::from(nsid < 1),
        _ => return None,
    }
    Some(page)
}
