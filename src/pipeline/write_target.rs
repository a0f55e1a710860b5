//! Where each write goes: the range of a payload layout, or a log.

#![forbid(unsafe_code)]

use super::{AtEnd, PipelineConfig, StoreLayout, WINDOW};
use crate::context::Context;
use crate::error::{Error, Result};
use crate::lane::{Lane, Transfer};
use crate::log_scan::HOLE;
use crate::net::rx::Received;
use crate::recorder::{SlotRecorder, UnitConfig, UnitRecorder};

/// Most records in flight. A crash may lose all of them but the newest, and whoever looks for the log's end must not take
/// the hole for it.
const MOST_RECORDS: u64 = HOLE * 3 / 4;

/// Packets shorter than this are packed, unless the configuration says otherwise.
pub const PACK_BELOW: u32 = 800;

/// The block after the range's last.
fn check_range(context: &Context, config: &PipelineConfig) -> Result<u64> {
    let info = context.info();
    let limits = info.devices[0].limits;
    let blocks = match config.blocks {
        0 => limits.blocks.saturating_sub(config.start_lba),
        blocks => blocks,
    };
    let end = config
        .start_lba
        .checked_add(blocks)
        .filter(|end| *end <= limits.blocks && blocks > 0);
    let Some(end) = end else {
        return Err(Error::new(
            libc::EINVAL,
            format!(
                "blocks {} to {} are not all on '{}', which has {}",
                config.start_lba,
                config.start_lba.saturating_add(blocks),
                info.devices[0].path,
                limits.blocks
            ),
        ));
    };
    if info.network.is_none() {
        return Err(Error::new(
            libc::ENOTCONN,
            "a pipeline needs a context with an interface",
        ));
    }
    if !info.devices[0].writable {
        return Err(Error::new(
            libc::EROFS,
            format!(
                "device '{}' was opened for reading only",
                info.devices[0].path
            ),
        ));
    }
    Ok(end)
}

/// Where the next write goes.
pub(super) enum WriteTarget {
    Range(Range),
    Slots(Box<SlotRecorder>),
    Units(Box<UnitRecorder>),
}

pub(super) struct Range {
    start: u64,
    end: u64,
    next: u64,
    at_end: AtEnd,
    wraps: u64,
    fua: bool,
    /// `AtEnd::Stop` took effect: a smaller payload that would still fit must not follow a gap.
    full: bool,
}

impl Range {
    /// Whether the next `blocks` wrap to the start.
    fn wraps_with(&self, blocks: u64) -> bool {
        self.end - self.next < blocks && self.at_end == AtEnd::Wrap
    }

    /// Where the next `blocks` go. Wraps if configured.
    fn take(&mut self, blocks: u64) -> Option<u64> {
        if self.full {
            return None;
        }
        if self.end - self.next < blocks {
            self.full = self.at_end == AtEnd::Stop;
            if self.full || blocks > self.end - self.start {
                return None;
            }
            self.next = self.start;
            self.wraps += 1;
        }
        let lba = self.next;
        self.next += blocks;
        Some(lba)
    }
}

impl WriteTarget {
    /// `EINVAL`: the range is not on the device, or no log fits into it. `EBUSY`: the pipeline of another lane has it. `ENOTCONN`, `EROFS`: nothing to
    /// receive from, or to write to.
    pub fn open(context: &Context, lane: &Lane, config: &PipelineConfig) -> Result<WriteTarget> {
        let end = check_range(context, config)?;
        context.claim_range(lane.number(), config.start_lba..end)?;
        let start = config.start_lba;
        Ok(match config.layout {
            StoreLayout::Payload => WriteTarget::Range(Range {
                start,
                end,
                next: start,
                at_end: config.at_end,
                full: false,
                wraps: 0,
                fua: config.fua,
            }),
            StoreLayout::Log => WriteTarget::Units(Box::new(UnitRecorder::open(
                context,
                lane,
                start,
                end - start,
                config.existing,
                UnitConfig {
                    pack_below: config.pack_below.unwrap_or(PACK_BELOW),
                    unchecked: config.unchecked,
                    fua: config.fua,
                    wraps: config.at_end == AtEnd::Wrap,
                },
            )?)),
            StoreLayout::Slot => WriteTarget::Slots(Box::new(SlotRecorder::open(
                context,
                lane,
                start,
                end - start,
                config.at_end == AtEnd::Wrap,
                config.fua,
                config.existing,
            )?)),
        })
    }

    pub fn next_lba(&self) -> u64 {
        match self {
            WriteTarget::Range(range) => range.next,
            WriteTarget::Slots(log) => log.superblock().lba_of(log.next_sequence()),
            WriteTarget::Units(log) => log.next_lba(),
        }
    }

    pub fn next_sequence(&self) -> u64 {
        match self {
            WriteTarget::Range(_) => 0,
            WriteTarget::Slots(log) => log.next_sequence(),
            WriteTarget::Units(log) => log.next_sequence(),
        }
    }

    /// Packets shorter than this are packed.
    pub fn pack_below(&self) -> u32 {
        match self {
            WriteTarget::Units(log) => log.pack_below(),
            _ => 0,
        }
    }

    pub fn wraps(&self) -> u64 {
        match self {
            WriteTarget::Range(range) => range.wraps,
            WriteTarget::Slots(log) => log.wraps(),
            WriteTarget::Units(log) => log.wraps(),
        }
    }

    /// How many earlier writes may be outstanding when this packet's write begins. It must not overlap one of the
    /// previous lap: the device could carry that one out later.
    pub fn outstanding_before(&self, lane: &Lane, packet: &Received) -> u64 {
        match self {
            WriteTarget::Range(range) => {
                let len = u32::from(packet.headers.payload_len);
                match range.wraps_with(lane.blocks_of(0, len).into()) {
                    true => 0,
                    false => WINDOW - 1,
                }
            }
            WriteTarget::Units(log) => log.most_outstanding(),
            WriteTarget::Slots(log) => (log.superblock().slots - 1).min(MOST_RECORDS),
        }
    }

    /// A packet is not stored, and its frame is given back.
    pub fn skip(&mut self, packet: &Received) {
        match self {
            WriteTarget::Range(_) => {}
            WriteTarget::Slots(log) => log.skip(packet.frame),
            WriteTarget::Units(log) => log.skip(packet.frame),
        }
    }

    /// Makes `write` the write of a packet. `false` if there is no room. In place: moving the struct would read bytes
    /// that were just written in other widths, which stalls until the frame's zeroes have left the store buffer.
    pub fn write(&mut self, lane: &Lane, packet: &Received, write: &mut Transfer) -> bool {
        match self {
            WriteTarget::Range(range) => {
                let len = u32::from(packet.headers.payload_len);
                let Some(lba) = range.take(lane.blocks_of(0, len).into()) else {
                    return false;
                };
                write.frame = packet.frame;
                write.offset = packet.offset + u64::from(packet.headers.payload_offset);
                write.len = len;
                write.lba = lba;
                write.fua = range.fua;
            }
            WriteTarget::Slots(log) if log.is_full() => return false,
            WriteTarget::Slots(log) => log.record(packet, write),
            // Its packets do not all have writes of their own: see `units`.
            WriteTarget::Units(_) => return false,
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_says_when_it_begins_again() {
        let mut range = Range {
            start: 5,
            end: 14,
            next: 5,
            at_end: AtEnd::Wrap,
            wraps: 0,
            fua: false,
            full: false,
        };
        assert!(!range.wraps_with(9));
        assert_eq!((range.take(4), range.take(4)), (Some(5), Some(9)));
        assert!(range.wraps_with(2) && !range.wraps_with(1));
        assert_eq!((range.take(2), range.wraps), (Some(5), 1));
        assert!(!range.wraps_with(7) && range.wraps_with(8));
        range.at_end = AtEnd::Stop;
        assert!(!range.wraps_with(8));
    }
}
