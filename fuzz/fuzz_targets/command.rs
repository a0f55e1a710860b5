//! Any entry of the SQ ring: an accepted command stays inside the device and the data buffers, and writes nothing on
//! a device opened for reading; a refused one has a status.
#![no_main]

use arbitrary::Arbitrary;
use libfuzzer_sys::fuzz_target;
use unified::storage::command::{Rules, opcode, parse};
use unified::sys::abi::{NvmeUringCmd, UnifiedSqe};

#[derive(Debug, Arbitrary)]
struct Input {
    opcode: u8,
    nsid: u32,
    addr: u64,
    near_addr: bool,
    data_len: u32,
    exact: bool,
    cdws: [u32; 6],
    others: Option<[u32; 5]>,
    buf_offset: u64,
    flags: u32,
    pad: u32,
    own_nsid: u32,
    block_shift: u8,
    blocks: u64,
    max_transfer: u32,
    writable: bool,
    raw: bool,
    pass_unknown: bool,
}

const BUFFERS: u64 = 0x7000_0000;
const BUFFERS_LEN: u64 = 1 << 20;

fuzz_target!(|input: Input| {
    let rules = Rules {
        nsid: input.own_nsid,
        block_shift: 9 + u32::from(input.block_shift % 8),
        blocks: input.blocks,
        max_transfer: input.max_transfer,
        writable: input.writable,
        buffers: BUFFERS,
        buffers_len: BUFFERS_LEN,
        raw: input.raw,
        pass_unknown: input.pass_unknown,
    };
    let unit = if input.raw { 9 } else { rules.block_shift };
    let [cdw10, cdw11, cdw12, cdw13, cdw14, cdw15] = input.cdws;
    let [flags, metadata, metadata_len, cdw2, timeout_ms] = input.others.unwrap_or_default();
    let sqe = UnifiedSqe {
        nvme_cmd: NvmeUringCmd {
            opcode: input.opcode,
            flags: flags as u8,
            nsid: input.nsid,
            cdw2,
            metadata: metadata.into(),
            addr: match input.near_addr {
                true => BUFFERS
                    .wrapping_add(input.addr % (2 * BUFFERS_LEN))
                    .wrapping_sub(BUFFERS_LEN / 2),
                false => input.addr,
            },
            metadata_len,
            data_len: match input.exact {
                true => ((cdw12 & 0xffff) + 1) << unit,
                false => input.data_len,
            },
            cdw10,
            cdw11,
            cdw12,
            cdw13,
            cdw14,
            cdw15,
            timeout_ms,
            ..NvmeUringCmd::default()
        },
        buf_offset: input.buf_offset,
        flags: input.flags,
        pad: input.pad,
        ..UnifiedSqe::default()
    };
    match parse(&sqe, &rules) {
        Ok(command) => {
            assert_eq!(command.opcode, input.opcode);
            assert!(
                command.lba.checked_add(command.blocks.into()).unwrap() <= rules.blocks
                    || command.blocks == 0
            );
            let padded = !input.raw && input.flags & 1 != 0;
            let own = if padded {
                input.pad.min(command.len)
            } else {
                command.len
            };
            if command.len > 0 {
                assert!(command.offset.checked_add(own.into()).unwrap() <= BUFFERS_LEN);
            }
            if matches!(input.opcode, opcode::WRITE | opcode::READ | opcode::COMPARE) {
                assert_eq!(
                    u64::from(command.len),
                    u64::from(command.blocks) << rules.block_shift
                );
                assert!(command.len <= rules.max_transfer);
            }
            let reads = [
                opcode::FLUSH,
                opcode::READ,
                opcode::COMPARE,
                opcode::IDENTIFY,
            ];
            assert!(rules.writable || reads.contains(&input.opcode));
            assert!(command.raw.metadata == 0 && command.raw.metadata_len == 0);
        }
        Err(status) => assert!(status != 0 && status <= 0x7ff),
    }
});
