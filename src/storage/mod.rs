//! Storage: from an NVMe command in the SQ ring to the device and back.
//!
//! `command` says what an entry means, `device` opens what it goes to, a backend (`nvme`, `block`,
//! `null`) turns it into io_uring operations, and `engine` moves entries through them.

#![forbid(unsafe_code)]

pub mod block;
pub mod command;
pub mod device;
pub mod engine;
pub mod null;
pub mod nvme;

use crate::sys::shm::Shared;
use crate::sys::uring::{BufRange, Op};
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
    /// Operations that were interrupted and sent again.
    pub retries: u8,
    /// Which way a command that has several is being tried.
    pub variant: u8,
}

/// Interrupted or short-of-memory operations are sent again this often before the error is given out.
pub const MAX_RETRIES: u8 = 8;

/// Counts an operation that the kernel asks to send again.
pub fn may_retry(task: &mut Task, result: i32) -> bool {
    let transient = matches!(-result, libc::EINTR | libc::EAGAIN);
    if transient && task.retries < MAX_RETRIES {
        task.retries += 1;
        return true;
    }
    false
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
}

impl Backend {
    pub fn of(device: &Device) -> Backend {
        match device.kind {
            Kind::Nvme => Backend::Nvme(nvme::Nvme::new(device)),
            Kind::Block | Kind::File => Backend::Block(block::Block::new(device)),
            Kind::Null => Backend::Null(null::Null::new(device)),
        }
    }

    /// The first step of a command.
    pub fn begin(&self, task: &mut Task, memory: &Memory) -> Step {
        task.progress = 0;
        task.retries = 0;
        task.variant = 0;
        match self {
            Backend::Nvme(b) => b.begin(task),
            Backend::Block(b) => b.next(task, memory),
            Backend::Null(b) => b.begin(task, memory),
        }
    }

    /// The next step, after an operation gave `result` (as io_uring gives it).
    pub fn advance(&self, task: &mut Task, result: i32, memory: &Memory) -> Step {
        match self {
            Backend::Nvme(b) => b.advance(task, result),
            Backend::Block(b) => b.advance(task, result, memory),
            Backend::Null(_) => Step::Done(Outcome::status(status::INTERNAL)),
        }
    }

    /// Whether a command needs a bounce buffer of its own beside its data.
    pub fn needs_scratch(&self, command: &Command) -> bool {
        matches!(self, Backend::Block(_))
            && matches!(
                command.opcode,
                command::opcode::COMPARE | command::opcode::WRITE_ZEROES
            )
    }

    /// Whether the data of a command may stand anywhere: no DMA is made from it.
    pub fn takes_in_place(&self, command: &Command) -> bool {
        match self {
            Backend::Nvme(_) => false,
            Backend::Null(_) => true,
            Backend::Block(_) => !matches!(
                command.opcode,
                command::opcode::READ | command::opcode::WRITE
            ),
        }
    }

    /// Whether opcodes that the library does not know may go to the device.
    pub fn passes_unknown(&self) -> bool {
        matches!(self, Backend::Nvme(_))
    }
}

/// Identify for devices that are no NVMe: enough for a program that asks what it talks to.
/// Base specification 2.0, figures "Identify Namespace / Controller Data Structure".
pub fn synthesize_identify(cns: u8, limits: &Limits, name: &str) -> Option<Box<[u8; 4096]>> {
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
        // Active namespaces: number 1, and zeroes behind it.
        2 => page[0] = 1,
        _ => return None,
    }
    Some(page)
}
