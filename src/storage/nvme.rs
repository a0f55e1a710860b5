//! NVMe passthrough: commands go to the drive unchanged.

#![forbid(unsafe_code)]

use std::fs::File;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::command::{self, Command, DNR, IDENTIFY_LEN, opcode, status};
use super::device::Device;
use super::task::{Memory, Outcome, Step, Task};
use super::uring;
use crate::error::{Error, Result};
use crate::sys::abi::NvmeUringCmd;
use crate::sys::file as sysfile;
use crate::sys::mmap::{Mapping, PAGE};
use crate::sys::shm::Shared;
use crate::sys::uring::{BufRange, Gathered, Op, Ring};

/// Number of the device in the registered file table of a ring that only probes it.
const PROBED: u32 = 0;

#[derive(Debug)]
pub struct Nvme {
    /// Number of the namespace's node in the registered file table. The controller's is the next one.
    file: u32,
    /// The namespace's node, if the controller's cannot be opened.
    node: Option<File>,
}

impl Nvme {
    pub fn new(device: &Device, file: u32) -> Result<Nvme> {
        let node = match (device.has_controller, device.files.first()) {
            (false, Some(node)) => Some(node.try_clone().map_err(|e| {
                Error::os(
                    &e,
                    format_args!("duplicating the descriptor of '{}'", device.path),
                )
            })?),
            _ => None,
        };
        Ok(Nvme { file, node })
    }

    pub fn begin(&self, task: &mut Task, memory: &Memory) -> Step {
        let admin = task.command.opcode == opcode::IDENTIFY;
        if let (true, Some(node)) = (admin, &self.node) {
            return Step::Done(identify(node, task, memory));
        }
        Step::Submit(Op::Nvme {
            file: self.file + u32::from(admin),
            admin,
            cmd: task.command.raw,
            data: task.data,
        })
    }

    pub fn gathered(&self, command: &Command, pieces: Gathered) -> Op {
        Op::NvmeGather {
            file: self.file,
            cmd: command.raw,
            pieces,
        }
    }

    pub fn advance(&self, task: &mut Task, result: i32) -> Step {
        Step::Done(outcome(result, &task.command))
    }
}

/// Identify for a user who may open the namespace's node but not the controller's. A namespace's node takes admin
/// commands by ioctl only, so this blocks its thread until the drive has answered.
fn identify(node: &File, task: &Task, memory: &Memory) -> Outcome {
    let raw = &task.command.raw;
    match sysfile::nvme_identify(node, raw.nsid, raw.cdw10, raw.cdw11) {
        Ok(Ok(page)) => {
            if let Some(range) = task.data {
                memory.of(range).write(range.offset, &page[..]);
            }
            Outcome::success(IDENTIFY_LEN)
        }
        Ok(Err(status)) => outcome(status.into(), &task.command),
        Err(e) => Outcome::errno(e.raw_os_error().unwrap_or(libc::EIO), opcode::IDENTIFY),
    }
}

/// How long the probe below waits for its read.
const PROBE_TIME: Duration = Duration::from_secs(10);
/// More segments than this are not tried: drives have 33 to 257.
const MOST_SEGMENTS: u32 = 1024;

/// What passthrough to a drive takes.
#[derive(Debug, Default, Clone, Copy)]
pub struct Takes {
    /// Registered buffers.
    pub registered: bool,
    /// Several pieces of one in a command.
    pub pieces: bool,
}

/// Probes whether the kernel takes registered buffers that are longer than the I/O. Kernels before 6.11.8 may answer
/// EINVAL, some of them only if the buffer has more pages than a command has segments. Reads one block into such a
/// buffer, the way commands will be sent. Then reads two blocks into pieces with a gap between them, unless the drive
/// has a boundary that gaps must respect (there the kernel would copy).
pub fn takes(device: &Device) -> Result<Takes> {
    let limits = &device.limits;
    let block = limits.block_size as usize;
    let pages = (limits.max_segments.min(MOST_SEGMENTS) + 2) as usize;
    let len = (pages * PAGE).max(3 * block);
    let mapping = Mapping::anonymous(len, false)
        .map_err(|e| Error::os(&e, format_args!("mapping {len} bytes to try reading into")))?;
    let memory = Shared::new(Arc::new(mapping), 0, len).expect("the mapping is that long");
    let mut ring = uring::create(2, false)?;
    uring::register(&mut ring, vec![memory], 0, device.duplicate_files(false)?)?;
    let cmd = NvmeUringCmd {
        nsid: limits.nsid,
        ..command::transfer(opcode::READ, 0, 1, 0, limits.block_size, false).nvme_cmd
    };
    let answer = probe(&mut ring, cmd).and_then(|registered| {
        let asked = registered && limits.virt_boundary == 0 && limits.blocks >= 2;
        Ok(Takes {
            registered,
            pieces: asked && takes_pieces(&mut ring, cmd, limits.block_size)?,
        })
    });
    // Now, not when the kernel gets to it: the memory no longer counts against RLIMIT_MEMLOCK.
    ring.unregister()
        .map_err(|e| Error::os(&e, "unregistering memory from io_uring"))?;
    answer
}

fn takes_pieces(ring: &mut Ring, mut cmd: NvmeUringCmd, block: u32) -> Result<bool> {
    let piece = |number: usize| BufRange {
        buffer: 0,
        offset: number * block as usize,
        len: block,
    };
    let Some(table) = ring.reserve() else {
        return Ok(false);
    };
    // Two blocks: NLB is zero based.
    cmd.cdw12 += 1;
    let pieces = [piece(0), piece(2)].into_iter();
    let pieces = ring.gather(table, pieces).map_err(uring::failed)?;
    let read = Op::NvmeGather {
        file: PROBED,
        cmd,
        pieces,
    };
    Ok(ask(ring, &read, 2)? == Some(0))
}

/// Returns the result of one operation, or `None` if there is none in time. Each operation has its own `number`, so
/// that a late answer is not taken for the next one's.
fn ask(ring: &mut Ring, op: &Op, number: u64) -> Result<Option<i32>> {
    ring.push(op, number).map_err(uring::failed)?;
    let until = Instant::now() + PROBE_TIME;
    let mut result = None;
    loop {
        let left = until.saturating_duration_since(Instant::now());
        // A signal may end the wait early.
        ring.submit(1, Some(left)).map_err(uring::failed)?;
        ring.reap(|done| {
            if done.user_data == number {
                result = Some(done.result);
            }
        });
        if result.is_some() || left.is_zero() {
            return Ok(result);
        }
    }
}

fn probe(ring: &mut Ring, cmd: NvmeUringCmd) -> Result<bool> {
    let read = Op::Nvme {
        file: PROBED,
        admin: false,
        cmd,
        data: Some(BufRange {
            buffer: 0,
            offset: 0,
            len: cmd.data_len,
        }),
    };
    for (number, fixed) in [true, false].into_iter().enumerate() {
        ring.set_fixed_nvme(fixed);
        let result = ask(ring, &read, number as u64)?;
        // No answer, or another error, says nothing against registered buffers.
        if result != Some(-libc::EINVAL) {
            return Ok(fixed || result.is_none_or(|r| r < 0));
        }
    }
    Ok(true)
}

pub fn outcome(result: i32, command: &Command) -> Outcome {
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
