//! NVMe commands as pure data: what an SQ entry means, whether it is valid, and how to make one.
//!
//! Numbers are those of the NVM Express Base and NVM Command Set specifications (2.0): opcodes from
//! figures "Opcodes for NVM Commands", status from "Status Code". No I/O happens here.

#![forbid(unsafe_code)]

use crate::sys::abi::{NO_BUFFER, NvmeUringCmd, UnifiedSqe};

pub mod opcode {
    pub const FLUSH: u8 = 0x00;
    pub const WRITE: u8 = 0x01;
    pub const READ: u8 = 0x02;
    pub const COMPARE: u8 = 0x05;
    /// An admin command: it goes to the controller.
    pub const IDENTIFY: u8 = 0x06;
    pub const WRITE_ZEROES: u8 = 0x08;
    pub const DATASET_MANAGEMENT: u8 = 0x09;
}

/// Status: type << 8 | code, 11 bits, as a completion carries it.
pub mod status {
    pub const SUCCESS: u16 = 0x000;
    pub const INVALID_OPCODE: u16 = 0x001;
    pub const INVALID_FIELD: u16 = 0x002;
    pub const INTERNAL: u16 = 0x006;
    pub const ABORT_REQUESTED: u16 = 0x007;
    pub const INVALID_NAMESPACE: u16 = 0x00b;
    pub const WRITE_PROTECTED: u16 = 0x020;
    pub const LBA_OUT_OF_RANGE: u16 = 0x080;
    pub const CAPACITY_EXCEEDED: u16 = 0x081;
    pub const WRITE_FAULT: u16 = 0x280;
    pub const UNRECOVERED_READ: u16 = 0x281;
    pub const COMPARE_FAILURE: u16 = 0x285;
    pub const HOST_PATH_ERROR: u16 = 0x370;
}

/// The device's do-not-retry bit, in the kernel's result.
pub const DNR: u16 = 0x4000;
/// FUA, bit 30 of cdw12.
pub const FUA: u32 = 1 << 30;
/// Attribute Deallocate of Dataset Management, bit 2 of cdw11.
pub const DEALLOCATE: u32 = 1 << 2;
/// Most blocks in one command: NLB is 16 bits, zero based.
pub const MAX_BLOCKS: u32 = 65536;
/// Bytes of one range of Dataset Management.
pub const DSM_RANGE: u32 = 16;
/// Bytes that Identify returns.
pub const IDENTIFY_LEN: u32 = 4096;

/// An NVMe status in words.
pub fn status_text(status: u16) -> &'static str {
    match status {
        0x000 => "Successful Completion",
        0x001 => "Invalid Command Opcode",
        0x002 => "Invalid Field in Command",
        0x003 => "Command ID Conflict",
        0x004 => "Data Transfer Error",
        0x005 => "Commands Aborted due to Power Loss Notification",
        0x006 => "Internal Error",
        0x007 => "Command Abort Requested",
        0x008 => "Command Aborted due to SQ Deletion",
        0x009 => "Command Aborted due to Failed Fused Command",
        0x00a => "Command Aborted due to Missing Fused Command",
        0x00b => "Invalid Namespace or Format",
        0x00c => "Command Sequence Error",
        0x013 => "Data SGL Length Invalid",
        0x01c => "Sanitize Failed",
        0x01d => "Sanitize In Progress",
        0x020 => "Namespace is Write Protected",
        0x021 => "Command Interrupted",
        0x022 => "Transient Transport Error",
        0x080 => "LBA Out of Range",
        0x081 => "Capacity Exceeded",
        0x082 => "Namespace Not Ready",
        0x083 => "Reservation Conflict",
        0x084 => "Format In Progress",
        0x180 => "Conflicting Attributes",
        0x181 => "Invalid Protection Information",
        0x182 => "Attempted Write to Read Only Range",
        0x183 => "Command Size Limit Exceeded",
        0x280 => "Write Fault",
        0x281 => "Unrecovered Read Error",
        0x282 => "End-to-end Guard Check Error",
        0x283 => "End-to-end Application Tag Check Error",
        0x284 => "End-to-end Reference Tag Check Error",
        0x285 => "Compare Failure",
        0x286 => "Access Denied",
        0x287 => "Deallocated or Unwritten Logical Block",
        0x370 => "Host Path Error",
        0x371 => "Command Aborted by Host",
        _ => "Unknown Status",
    }
}

/// The NVMe status for an errno, if the system failed rather than the device.
pub fn status_of_errno(errno: i32, opcode: u8) -> u16 {
    match errno {
        libc::ENOSPC | libc::EDQUOT | libc::EFBIG => status::CAPACITY_EXCEEDED,
        libc::EROFS => status::WRITE_PROTECTED,
        libc::EINVAL => status::INVALID_FIELD,
        libc::ECANCELED => status::ABORT_REQUESTED,
        libc::EOPNOTSUPP => status::INVALID_OPCODE,
        libc::EIO | libc::ENODATA => match opcode {
            opcode::READ | opcode::COMPARE => status::UNRECOVERED_READ,
            _ => status::WRITE_FAULT,
        },
        _ => status::INTERNAL,
    }
}

/// What a command does with its data, from the opcode's two low bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    None,
    ToDevice,
    FromDevice,
    Both,
}

pub fn direction(opcode: u8) -> Direction {
    match opcode & 3 {
        0 => Direction::None,
        1 => Direction::ToDevice,
        2 => Direction::FromDevice,
        _ => Direction::Both,
    }
}

/// Whether a command with data stores it: compares only look at what is there.
pub fn stores(opcode: u8) -> bool {
    opcode != opcode::COMPARE && matches!(direction(opcode), Direction::ToDevice | Direction::Both)
}

/// What the checks need to know about the device and the submitter.
#[derive(Debug, Clone, Copy)]
pub struct Rules {
    pub nsid: u32,
    /// log2 of the namespace's block, 9 to 16.
    pub block_shift: u32,
    pub blocks: u64,
    /// Most bytes in one transfer.
    pub max_transfer: u32,
    pub writable: bool,
    /// Where the data buffers lie in this process, and how many bytes they are.
    pub buffers: u64,
    pub buffers_len: u64,
    /// The entries come through the raw interface: nsid 1 means the opened namespace, LBAs count 512 bytes.
    pub raw: bool,
    /// Unknown opcodes go to the device (passthrough). If not set, they are refused.
    pub pass_unknown: bool,
}

/// A checked command, in the device's own blocks.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Command {
    pub opcode: u8,
    pub fua: bool,
    pub nsid: u32,
    pub lba: u64,
    pub blocks: u32,
    /// Bytes moved between memory and device.
    pub len: u32,
    /// Offset in the data buffers, if `len` > 0.
    pub offset: u64,
    /// The entry's command, with LBA and NLB in the device's blocks.
    pub raw: NvmeUringCmd,
}

/// Private flags in entries of the library's own submitters. Flags of a raw ring's entries are ignored.
pub mod entry_flags {
    /// Only the first `pad` bytes of the data are the caller's, and the padded end reaches beyond the frame. They go
    /// through a bounce buffer, whose rest is zeroed.
    pub const PAD_IN_BOUNCE: u32 = 1 << 0;
    /// The data lies in a frame that travels with the command.
    pub const FRAME: u32 = 1 << 1;
    /// If it fails, its submitter submits its parts again: it does not go to the spill.
    pub const PARTS: u32 = 1 << 2;
    /// A flush of all devices: it has one completion, with the worst status.
    pub const ALL_DEVICES: u32 = 1 << 3;
    /// The data lies in a buffer that was allocated while the context runs: `buf_offset` counts from its first byte. Not
    /// together with `FRAME`.
    pub const BUFFER: u32 = 1 << 4;
    /// Where the number of the device begins; 8 bits.
    pub const DEVICE_SHIFT: u32 = 8;
    /// Where the number of its frames, less one, begins, or that of its buffer; 16 bits.
    pub const FRAMES_SHIFT: u32 = 16;

    pub fn device_of(flags: u32) -> u8 {
        (flags >> DEVICE_SHIFT) as u8
    }

    pub fn buffer_of(flags: u32) -> u16 {
        (flags >> FRAMES_SHIFT) as u16
    }

    /// Less one.
    pub fn frames_of(flags: u32) -> u16 {
        (flags >> FRAMES_SHIFT) as u16
    }
}

/// Checks an entry. The error is the NVMe status that its completion gets.
pub fn parse(sqe: &UnifiedSqe, rules: &Rules) -> Result<Command, u16> {
    let mut raw = sqe.nvme_cmd;
    let code = raw.opcode;
    if raw.flags != 0 || raw.metadata != 0 || raw.metadata_len != 0 {
        return Err(status::INVALID_FIELD);
    }
    let own = raw.nsid == 0 || raw.nsid == rules.nsid || (rules.raw && raw.nsid == 1);
    if !own && code != opcode::IDENTIFY {
        return Err(status::INVALID_NAMESPACE);
    }
    if own && code != opcode::IDENTIFY {
        raw.nsid = rules.nsid;
    }
    let mut command = Command {
        opcode: code,
        nsid: raw.nsid,
        ..Command::default()
    };
    match code {
        opcode::FLUSH => {}
        opcode::WRITE | opcode::READ | opcode::COMPARE | opcode::WRITE_ZEROES => {
            let (lba, blocks) = blocks_of(&raw, rules)?;
            command.lba = lba;
            command.blocks = blocks;
            command.fua = raw.cdw12 & FUA != 0;
            raw.cdw10 = lba as u32;
            raw.cdw11 = (lba >> 32) as u32;
            raw.cdw12 = (raw.cdw12 & 0xffff_0000) | (blocks - 1);
            if code == opcode::WRITE_ZEROES {
                if raw.data_len != 0 {
                    return Err(status::INVALID_FIELD);
                }
            } else {
                let bytes = u64::from(blocks) << rules.block_shift;
                if u64::from(raw.data_len) != bytes || bytes > u64::from(rules.max_transfer) {
                    return Err(status::INVALID_FIELD);
                }
                command.len = raw.data_len;
            }
        }
        opcode::DATASET_MANAGEMENT => {
            let ranges = (raw.cdw10 & 0xff) + 1;
            // A longer buffer than the ranges is common (whole 4 KiB); only the ranges are read.
            if raw.data_len < ranges * DSM_RANGE || raw.data_len > 4096 {
                return Err(status::INVALID_FIELD);
            }
            command.len = ranges * DSM_RANGE;
        }
        opcode::IDENTIFY => {
            if raw.data_len != IDENTIFY_LEN {
                return Err(status::INVALID_FIELD);
            }
            if rules.raw && raw.nsid == 1 {
                raw.nsid = if raw.cdw10 & 0xff == 0 { rules.nsid } else { 0 };
            }
            command.nsid = raw.nsid;
            command.len = IDENTIFY_LEN;
        }
        _ if rules.pass_unknown => {
            let moves = direction(code) != Direction::None;
            if moves != (raw.data_len > 0) || raw.data_len > rules.max_transfer {
                return Err(status::INVALID_FIELD);
            }
            command.len = raw.data_len;
        }
        _ => return Err(status::INVALID_OPCODE),
    }
    let writes = matches!(
        code,
        opcode::WRITE | opcode::WRITE_ZEROES | opcode::DATASET_MANAGEMENT
    );
    // An unknown opcode that could write is refused on a device opened for reading as well.
    let known = matches!(
        code,
        opcode::FLUSH | opcode::READ | opcode::COMPARE | opcode::IDENTIFY
    );
    if !rules.writable && (writes || !known) {
        return Err(status::WRITE_PROTECTED);
    }
    if command.len > 0 {
        // If data is padded in a bounce buffer, only the caller's own bytes are read.
        let padded = !rules.raw && sqe.flags & entry_flags::PAD_IN_BOUNCE != 0;
        let own = if padded {
            sqe.pad.min(command.len)
        } else {
            command.len
        };
        command.offset = data_offset(sqe, own, rules)?;
    }
    command.raw = raw;
    Ok(command)
}

fn blocks_of(raw: &NvmeUringCmd, rules: &Rules) -> Result<(u64, u32), u16> {
    let mut lba = u64::from(raw.cdw10) | u64::from(raw.cdw11) << 32;
    let mut blocks = (raw.cdw12 & 0xffff) + 1;
    // Programs that write the rings themselves give the length of a read by data_len alone.
    let alone = rules.raw && raw.opcode == opcode::READ && blocks == 1 && raw.data_len > 0;
    if alone && raw.data_len.is_multiple_of(512) && raw.data_len >> 9 <= 1 << 16 {
        blocks = raw.data_len >> 9;
    }
    if rules.raw && rules.block_shift > 9 {
        let shift = rules.block_shift - 9;
        let mask = (1u64 << shift) - 1;
        if lba & mask != 0 || u64::from(blocks) & mask != 0 {
            return Err(status::INVALID_FIELD);
        }
        lba >>= shift;
        blocks >>= shift;
    }
    match lba.checked_add(u64::from(blocks)) {
        Some(end) if end <= rules.blocks => Ok((lba, blocks)),
        _ => Err(status::LBA_OUT_OF_RANGE),
    }
}

/// The offset of the data in the data buffers: from `addr` if it is not zero (a nonzero `buf_offset` must then agree),
/// else from `buf_offset`.
fn data_offset(sqe: &UnifiedSqe, len: u32, rules: &Rules) -> Result<u64, u16> {
    let addr = sqe.nvme_cmd.addr;
    let offset = if addr != 0 {
        let offset = addr
            .checked_sub(rules.buffers)
            .ok_or(status::INVALID_FIELD)?;
        if sqe.buf_offset != 0 && sqe.buf_offset != NO_BUFFER && sqe.buf_offset != offset {
            return Err(status::INVALID_FIELD);
        }
        offset
    } else if sqe.buf_offset == NO_BUFFER {
        return Err(status::INVALID_FIELD);
    } else {
        sqe.buf_offset
    };
    match offset.checked_add(u64::from(len)) {
        Some(end) if end <= rules.buffers_len => Ok(offset),
        _ => Err(status::INVALID_FIELD),
    }
}

/// A read, write or compare of `blocks` (1 to 65536) blocks at `lba`, whose data is `len` bytes at
/// `offset` of the data buffers.
pub fn transfer(code: u8, lba: u64, blocks: u32, offset: u64, len: u32, fua: bool) -> UnifiedSqe {
    UnifiedSqe {
        nvme_cmd: NvmeUringCmd {
            opcode: code,
            data_len: len,
            cdw10: lba as u32,
            cdw11: (lba >> 32) as u32,
            cdw12: ((blocks - 1) & 0xffff) | if fua { FUA } else { 0 },
            ..NvmeUringCmd::default()
        },
        buf_offset: offset,
        ..UnifiedSqe::default()
    }
}

pub fn flush() -> UnifiedSqe {
    UnifiedSqe {
        buf_offset: NO_BUFFER,
        ..UnifiedSqe::default()
    }
}

pub fn write_zeroes(lba: u64, blocks: u32, fua: bool) -> UnifiedSqe {
    let mut sqe = transfer(opcode::WRITE_ZEROES, lba, blocks, NO_BUFFER, 0, fua);
    sqe.buf_offset = NO_BUFFER;
    sqe
}

/// Deallocates the one range that is described at `offset` of the data buffers (see `dsm_range`).
pub fn deallocate(offset: u64) -> UnifiedSqe {
    UnifiedSqe {
        nvme_cmd: NvmeUringCmd {
            opcode: opcode::DATASET_MANAGEMENT,
            data_len: DSM_RANGE,
            cdw10: 0,
            cdw11: DEALLOCATE,
            ..NvmeUringCmd::default()
        },
        buf_offset: offset,
        ..UnifiedSqe::default()
    }
}

/// A range definition of Dataset Management: attributes, blocks, LBA.
pub fn dsm_range(lba: u64, blocks: u32) -> [u8; DSM_RANGE as usize] {
    let mut range = [0; DSM_RANGE as usize];
    range[4..8].copy_from_slice(&blocks.to_le_bytes());
    range[8..].copy_from_slice(&lba.to_le_bytes());
    range
}

pub fn parse_dsm_range(range: &[u8; DSM_RANGE as usize]) -> (u64, u32) {
    let blocks = u32::from_le_bytes([range[4], range[5], range[6], range[7]]);
    let mut lba = [0; 8];
    lba.copy_from_slice(&range[8..]);
    (u64::from_le_bytes(lba), blocks)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn rules() -> Rules {
        Rules {
            nsid: 3,
            block_shift: 9,
            blocks: 1000,
            max_transfer: 64 << 10,
            writable: true,
            buffers: 0x7000_0000,
            buffers_len: 1 << 20,
            raw: false,
            pass_unknown: false,
        }
    }

    #[test]
    fn a_write_round_trips() {
        let sqe = transfer(opcode::WRITE, 998, 2, 512, 1024, true);
        let command = parse(&sqe, &rules()).unwrap();
        assert_eq!((command.lba, command.blocks, command.len), (998, 2, 1024));
        assert_eq!((command.offset, command.nsid, command.fua), (512, 3, true));
        assert_eq!(command.raw.cdw12, FUA | 1);
    }

    #[test]
    fn what_cannot_be_right_gets_its_status() {
        let write =
            |lba, blocks, offset, len| transfer(opcode::WRITE, lba, blocks, offset, len, false);
        let mut foreign = write(0, 1, 0, 512);
        foreign.nvme_cmd.nsid = 1;
        let mut disagrees = write(0, 1, 512, 512);
        disagrees.nvme_cmd.addr = 0x7000_0000;
        let mut outside = write(0, 1, 0, 512);
        outside.nvme_cmd.addr = 0x6fff_ffff;
        let mut unknown = write(0, 1, 0, 512);
        unknown.nvme_cmd.opcode = 0x7d;
        for (name, sqe, expected) in [
            (
                "last block + 1",
                write(999, 2, 0, 1024),
                status::LBA_OUT_OF_RANGE,
            ),
            (
                "lba overflow",
                write(u64::MAX, 1, 0, 512),
                status::LBA_OUT_OF_RANGE,
            ),
            ("length", write(0, 1, 0, 513), status::INVALID_FIELD),
            (
                "beyond the buffers",
                write(0, 2, (1 << 20) - 512, 1024),
                status::INVALID_FIELD,
            ),
            (
                "no data",
                write(0, 1, NO_BUFFER, 512),
                status::INVALID_FIELD,
            ),
            (
                "too long",
                write(0, 129, 0, 129 * 512),
                status::INVALID_FIELD,
            ),
            ("foreign namespace", foreign, status::INVALID_NAMESPACE),
            ("addr and offset disagree", disagrees, status::INVALID_FIELD),
            ("addr outside", outside, status::INVALID_FIELD),
            ("unknown opcode", unknown, status::INVALID_OPCODE),
        ] {
            assert_eq!(parse(&sqe, &rules()), Err(expected), "{name}");
        }
        let read_only = Rules {
            writable: false,
            ..rules()
        };
        assert_eq!(
            parse(&write(0, 1, 0, 512), &read_only),
            Err(status::WRITE_PROTECTED)
        );
        assert_eq!(
            parse(&write_zeroes(0, 1, false), &read_only),
            Err(status::WRITE_PROTECTED)
        );
    }

    #[test]
    fn the_raw_interface_counts_512_bytes_and_means_its_own_namespace() {
        let rules = Rules {
            raw: true,
            block_shift: 12,
            ..rules()
        };
        let mut sqe = transfer(opcode::WRITE, 16, 8, 0, 4096, false);
        sqe.nvme_cmd.nsid = 1;
        let command = parse(&sqe, &rules).unwrap();
        assert_eq!((command.lba, command.blocks, command.nsid), (2, 1, 3));
        sqe.nvme_cmd.cdw10 = 17;
        assert_eq!(parse(&sqe, &rules), Err(status::INVALID_FIELD));
    }

    #[test]
    fn the_raw_interface_takes_the_length_of_a_read_from_its_data() {
        let raw = Rules {
            raw: true,
            ..rules()
        };
        let sqe = |code, len| transfer(code, 16, 1, 0, len, false);
        let command = parse(&sqe(opcode::READ, 4096), &raw).unwrap();
        assert_eq!((command.blocks, command.len), (8, 4096));
        assert_eq!(command.raw.cdw12 & 0xffff, 7);
        for (code, len, rules) in [
            (opcode::READ, 4097, raw),
            (opcode::WRITE, 4096, raw),
            (opcode::READ, 4096, rules()),
        ] {
            assert_eq!(parse(&sqe(code, len), &rules), Err(status::INVALID_FIELD));
        }
    }

    proptest! {
        /// Whatever the entry says, an accepted command stays inside the device and the buffers.
        #[test]
        fn an_accepted_command_is_inside(
            opcode in 0u8..12, nsid in 0u32..5, lba in prop_oneof![0u64..1100, any::<u64>()],
            cdw12 in any::<u32>(), addr in prop_oneof![Just(0u64), any::<u64>(), 0x6fff_0000u64..0x7011_0000],
            buf_offset in prop_oneof![any::<u64>(), 0u64..1 << 21], data_len in prop_oneof![0u32..70000, any::<u32>()],
            shift in 9u32..13, raw in any::<bool>(), exact in any::<bool>(),
        ) {
            let rules = Rules { block_shift: shift, raw, ..rules() };
            let cdw12 = if exact { cdw12 & 0x4000_003f } else { cdw12 };
            let data_len = if exact { ((cdw12 & 0xffff) + 1) << if raw { 9 } else { shift } } else { data_len };
            let sqe = UnifiedSqe {
                nvme_cmd: NvmeUringCmd {
                    opcode, nsid, addr, data_len, cdw10: lba as u32, cdw11: (lba >> 32) as u32, cdw12,
                    ..NvmeUringCmd::default()
                },
                buf_offset, ..UnifiedSqe::default()
            };
            if let Ok(command) = parse(&sqe, &rules) {
                prop_assert!(command.offset.checked_add(command.len.into()).unwrap() <= rules.buffers_len);
                prop_assert!(command.lba.checked_add(command.blocks.into()).unwrap() <= rules.blocks);
                if matches!(opcode, 1 | 2 | 5) {
                    prop_assert_eq!(command.len, command.blocks << shift);
                }
            }
        }
    }
}
