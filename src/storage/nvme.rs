//! NVMe passthrough: the command goes to the drive as it is.

#![forbid(unsafe_code)]

use super::command::{Command, DNR, opcode, status};
use super::device::Device;
use super::{FILE_DEVICE, Outcome, Step, Task, may_retry};
use crate::sys::uring::Op;

/// Number of the controller in the registered file table.
const FILE_CONTROLLER: u32 = 1;

#[derive(Debug)]
pub struct Nvme {
    has_controller: bool,
}

impl Nvme {
    pub fn new(device: &Device) -> Nvme {
        Nvme {
            has_controller: device.has_controller,
        }
    }

    pub fn begin(&self, task: &mut Task) -> Step {
        let admin = task.command.opcode == opcode::IDENTIFY;
        if admin && !self.has_controller {
            // An unprivileged user has the namespace's node and not the controller's.
            return Step::Done(Outcome::errno(libc::EACCES, opcode::IDENTIFY));
        }
        Step::Submit(Op::Nvme {
            file: if admin { FILE_CONTROLLER } else { FILE_DEVICE },
            admin,
            cmd: task.command.raw,
            data: task.data,
        })
    }

    pub fn advance(&self, task: &mut Task, result: i32) -> Step {
        if may_retry(task, result) {
            return self.begin(task);
        }
        Step::Done(outcome(result, &task.command))
    }
}

fn outcome(result: i32, command: &Command) -> Outcome {
    match result {
        0 => Outcome::success(command.len),
        r if r < 0 => Outcome::errno(-r, command.opcode),
        // Positive: the NVMe status as the drive gave it, with its do-not-retry bit.
        r => Outcome {
            status: match r as u16 & 0x7ff {
                status::SUCCESS => status::INTERNAL,
                status => status,
            },
            dnr: r as u16 & DNR != 0,
            ..Outcome::default()
        },
    }
}
