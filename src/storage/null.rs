//! No device: every command completes at once. For measuring everything except a device.

#![forbid(unsafe_code)]

use super::command::opcode;
use super::device::{Device, Limits};
use super::identify;
use super::task::{Memory, Outcome, Step, Task};

#[derive(Debug)]
pub struct Null {
    limits: Limits,
}

impl Null {
    pub fn new(device: &Device) -> Null {
        Null {
            limits: device.limits,
        }
    }

    /// Reads return zeroes; a compare always succeeds.
    pub fn begin(&self, task: &mut Task, memory: &Memory) -> Step {
        let command = &task.command;
        if let Some(range) = task.data {
            match command.opcode {
                opcode::READ => memory.of(range).zero(range.offset, range.len as usize),
                opcode::IDENTIFY => {
                    return Step::Done(identify::answer(
                        command,
                        range,
                        &self.limits,
                        "null",
                        memory,
                    ));
                }
                _ => {}
            }
        }
        Step::Done(Outcome::success(command.len))
    }
}
