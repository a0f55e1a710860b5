//! Dispatch: which operations a command becomes, by the kind of its device.

#![forbid(unsafe_code)]

#[cfg(test)]
pub mod faulty;

use super::command::{self, Command, status};
use super::device::{Device, Kind};
use super::retry::Retry;
use super::task::{Memory, Outcome, Step, Task};
use super::{block, null, nvme};
use crate::error::Result;
use crate::sys::uring::{Gathered, Op};

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
    /// `file`: number of the device's first file in the registered file table.
    pub fn of(device: &Device, file: u32) -> Result<Backend> {
        Ok(match device.kind {
            Kind::Nvme => Backend::Nvme(nvme::Nvme::new(device, file)?),
            Kind::Block | Kind::File => Backend::Block(block::Block::new(device, file)),
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

    /// Whether a command needs a bounce buffer besides its data.
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

    /// Whether the data of a command may be at any address, because no DMA uses it.
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

    /// How an operation in pieces ended. A short one has failed: each entry is then tried alone.
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
