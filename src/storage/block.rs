//! Block devices and regular files: NVMe commands translated to file operations.
//!
//! Write and Read become WRITE_FIXED and READ_FIXED, and a short one continues with the rest; FUA becomes RWF_DSYNC;
//! Flush is fdatasync; Compare reads into a bounce buffer piece by piece; Write Zeroes and Dataset Management are
//! fallocate.

#![forbid(unsafe_code)]

use super::command::{Command, DSM_RANGE, opcode, parse_dsm_range, status};
use super::device::{Device, Limits};
use super::identify;
use super::task::{Memory, Outcome, Step, Task};
use crate::sys::uring::{BufRange, Gathered, Op};

const KEEP_SIZE: i32 = libc::FALLOC_FL_KEEP_SIZE;
const ZERO_RANGE: i32 = libc::FALLOC_FL_ZERO_RANGE | KEEP_SIZE;
const PUNCH_HOLE: i32 = libc::FALLOC_FL_PUNCH_HOLE | KEEP_SIZE;

/// Ways to write zeroes, best first; `Task::variant` counts through them.
const BY_ZERO_RANGE: u8 = 0;
const BY_PUNCH_HOLE: u8 = 1;
const BY_WRITING: u8 = 2;
/// Zeroed by fallocate and now made durable, because FUA was asked for.
const THEN_SYNC: u8 = 3;

#[derive(Debug)]
pub struct Block {
    limits: Limits,
    name: String,
    /// Number of the device in the registered file table.
    file: u32,
}

impl Block {
    pub fn new(device: &Device, file: u32) -> Block {
        Block {
            file,
            limits: device.limits,
            name: device.path.clone(),
        }
    }

    fn bytes(&self, blocks: u64) -> u64 {
        blocks << self.limits.block_shift()
    }

    /// The next operation of a task, from its progress on.
    pub fn next(&self, task: &mut Task, memory: &Memory) -> Step {
        let command = task.command;
        let at = self.bytes(command.lba) + task.progress;
        let file = self.file;
        match (command.opcode, task.data, task.scratch) {
            (opcode::FLUSH, ..) => Step::Submit(Op::Sync { file }),
            (opcode::WRITE, Some(data), _) => {
                let range = data.part(task.progress as u32, u32::MAX);
                Step::Submit(Op::Write {
                    file,
                    range,
                    offset: at,
                    dsync: command.fua,
                })
            }
            (opcode::READ, Some(data), _) => {
                let range = data.part(task.progress as u32, u32::MAX);
                Step::Submit(Op::Read {
                    file,
                    range,
                    offset: at,
                })
            }
            (opcode::COMPARE, Some(data), Some(scratch)) => {
                let range = scratch.part(0, data.len - task.progress as u32);
                Step::Submit(Op::Read {
                    file,
                    range,
                    offset: at,
                })
            }
            (opcode::WRITE_ZEROES, _, Some(scratch)) => self.zero_step(task, at, scratch, memory),
            (opcode::DATASET_MANAGEMENT, Some(data), _) => self.deallocate_step(task, data, memory),
            (opcode::IDENTIFY, Some(data), _) => Step::Done(identify::answer(
                &command,
                data,
                &self.limits,
                &self.name,
                memory,
            )),
            _ => Step::Done(Outcome::status(status::INTERNAL)),
        }
    }

    pub fn gathered(&self, command: &Command, pieces: Gathered) -> Op {
        let (file, offset) = (self.file, self.bytes(command.lba));
        match command.opcode {
            opcode::WRITE => Op::WriteGather {
                file,
                pieces,
                offset,
                dsync: command.fua,
            },
            _ => Op::ReadScatter {
                file,
                pieces,
                offset,
            },
        }
    }

    fn zero_step(&self, task: &Task, at: u64, scratch: BufRange, memory: &Memory) -> Step {
        let file = self.file;
        let left = self.bytes(task.command.blocks.into()) - task.progress;
        Step::Submit(match task.variant {
            BY_ZERO_RANGE => Op::Fallocate {
                file,
                mode: ZERO_RANGE,
                offset: at,
                len: left,
            },
            BY_PUNCH_HOLE => Op::Fallocate {
                file,
                mode: PUNCH_HOLE,
                offset: at,
                len: left,
            },
            THEN_SYNC => Op::Sync { file },
            _ => {
                let range = scratch.part(0, left.min(u64::from(u32::MAX)) as u32);
                memory.of(range).zero(range.offset, range.len as usize);
                Op::Write {
                    file,
                    range,
                    offset: at,
                    dsync: task.command.fua,
                }
            }
        })
    }

    /// `progress` counts ranges here.
    fn deallocate_step(&self, task: &mut Task, data: BufRange, memory: &Memory) -> Step {
        let deallocate = task.command.raw.cdw11 & super::command::DEALLOCATE != 0;
        while deallocate && task.progress < u64::from(data.len / DSM_RANGE) {
            let mut range = [0; DSM_RANGE as usize];
            memory.of(data).read(
                data.offset + task.progress as usize * range.len(),
                &mut range,
            );
            let (lba, blocks) = parse_dsm_range(&range);
            match lba.checked_add(blocks.into()) {
                Some(end) if end <= self.limits.blocks => {}
                _ => return Step::Done(Outcome::status(status::LBA_OUT_OF_RANGE)),
            }
            if blocks > 0 {
                return Step::Submit(Op::Fallocate {
                    file: self.file,
                    mode: PUNCH_HOLE,
                    offset: self.bytes(lba),
                    len: self.bytes(blocks.into()),
                });
            }
            task.progress += 1;
        }
        Step::Done(Outcome::success(0))
    }

    /// What follows an operation that ended with `result`.
    pub fn advance(&self, task: &mut Task, result: i32, memory: &Memory) -> Step {
        let command = task.command;
        if result < 0 {
            return self.failed(task, -result, memory);
        }
        let moved = result as u64;
        match command.opcode {
            opcode::WRITE | opcode::READ => {
                if moved == 0 {
                    // Nothing moved and no error: the file was cut short beneath us.
                    return Step::Done(Outcome::errno(libc::EIO, command.opcode));
                }
                self.progressed(task, moved, command.len.into(), memory)
            }
            opcode::COMPARE => {
                let (Some(data), Some(scratch)) = (task.data, task.scratch) else {
                    return Step::Done(Outcome::status(status::INTERNAL));
                };
                if moved == 0 {
                    return Step::Done(Outcome::errno(libc::EIO, command.opcode));
                }
                let at = data.offset + task.progress as usize;
                let moved_len = (moved as usize).min(data.len as usize - task.progress as usize);
                if !memory
                    .of(data)
                    .equal(at, memory.of(scratch), scratch.offset, moved_len)
                {
                    return Step::Done(Outcome::status(status::COMPARE_FAILURE));
                }
                self.progressed(task, moved, command.len.into(), memory)
            }
            opcode::WRITE_ZEROES if task.variant == BY_WRITING => {
                if moved == 0 {
                    return Step::Done(Outcome::errno(libc::EIO, command.opcode));
                }
                self.progressed(task, moved, self.bytes(command.blocks.into()), memory)
            }
            opcode::WRITE_ZEROES if command.fua && task.variant < BY_WRITING => {
                task.variant = THEN_SYNC;
                self.next(task, memory)
            }
            opcode::DATASET_MANAGEMENT => {
                task.progress += 1;
                self.next(task, memory)
            }
            _ => Step::Done(Outcome::success(0)),
        }
    }

    fn progressed(&self, task: &mut Task, moved: u64, total: u64, memory: &Memory) -> Step {
        task.progress += moved;
        task.retries = 0;
        task.failing_since = None;
        if task.progress < total {
            self.next(task, memory)
        } else {
            Step::Done(Outcome::success(task.command.len))
        }
    }

    fn failed(&self, task: &mut Task, errno: i32, memory: &Memory) -> Step {
        match task.command.opcode {
            // A file system without this way of zeroing may have the next one.
            opcode::WRITE_ZEROES
                if task.variant < BY_WRITING
                    && matches!(errno, libc::EOPNOTSUPP | libc::EINVAL) =>
            {
                task.variant += 1;
                self.next(task, memory)
            }
            // Deallocate is advice (NVM Command Set 1.0, 3.2.3): a device without it may ignore it.
            opcode::DATASET_MANAGEMENT if errno == libc::EOPNOTSUPP => {
                Step::Done(Outcome::success(0))
            }
            opcode => Step::Done(Outcome {
                len: task.progress as u32,
                ..Outcome::errno(errno, opcode)
            }),
        }
    }
}
