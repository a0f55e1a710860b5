//! Identify for devices that are not NVMe drives.

#![forbid(unsafe_code)]

use super::command::{Command, status};
use super::device::Limits;
use super::task::{Memory, Outcome};
use crate::sys::uring::BufRange;

/// The page for a device that is not an NVMe drive: enough for a program that asks what it talks to. Base
/// specification 2.0, figures "Identify Namespace / Controller Data Structure".
fn synthesize(cns: u8, nsid: u32, limits: &Limits, name: &str) -> Option<Box<[u8; 4096]>> {
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
        // Active namespaces above the given one: number 1, then zeroes.
        2 => page[0] = u8::from(nsid < 1),
        _ => return None,
    }
    Some(page)
}

/// The namespace id that means every one.
const ALL_NAMESPACES: u32 = u32::MAX;

/// Answers Identify with a synthesized page.
pub fn answer(
    command: &Command,
    data: BufRange,
    limits: &Limits,
    name: &str,
    memory: &Memory,
) -> Outcome {
    let (cns, nsid) = (command.raw.cdw10 as u8, command.nsid);
    if cns == 0 && ![0, limits.nsid, ALL_NAMESPACES].contains(&nsid) {
        return Outcome::status(status::INVALID_NAMESPACE);
    }
    match synthesize(cns, nsid, limits, name) {
        Some(page) => {
            memory
                .of(data)
                .write(data.offset, &page[..data.len.min(4096) as usize]);
            Outcome::success(command.len)
        }
        None => Outcome::status(status::INVALID_FIELD),
    }
}
