//! Where each write goes: the range of a payload layout, or a log.

#![forbid(unsafe_code)]

use std::ops::Range;
use std::sync::Arc;

use super::{AtEnd, PipelineConfig, StoreLayout, WINDOW};
use crate::context::{Context, DeviceInfo};
use crate::error::{Error, Result};
use crate::lane::{Lane, Transfer};
use crate::log_scan::HOLE;
use crate::net::rx::Received;
use crate::recorder::{LogSet, SetConfig, SlotRecorder, UnitConfig, UnitRecorder};

/// Most records in flight. A crash may lose all of them but the newest, and whoever looks for the log's end must not take
/// the hole for it.
const MOST_RECORDS: u64 = HOLE * 3 / 4;

/// Packets shorter than this are packed, unless the configuration says otherwise.
pub const PACK_BELOW: u32 = 800;

/// Blocks of a device that a pipeline writes to.
fn check_range(
    context: &Context,
    config: &PipelineConfig,
    device: &DeviceInfo,
) -> Result<Range<u64>> {
    let limits = device.limits;
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
                device.path,
                limits.blocks
            ),
        ));
    };
    if context.info().network.is_none() {
        return Err(Error::new(
            libc::ENOTCONN,
            "a pipeline needs a context with an interface",
        ));
    }
    if !device.writable {
        return Err(Error::new(
            libc::EROFS,
            format!("device '{}' was opened for reading only", device.path),
        ));
    }
    Ok(config.start_lba..end)
}

/// What the lanes of a recording share.
pub(super) enum Store {
    /// A range of blocks of the first device.
    Range(Range<u64>),
    Set(Arc<LogSet>),
}

impl Store {
    /// Checks the range, and opens the logs through one of the lanes, for so many lanes. `EINVAL`: the range is not on the
    /// device, no log fits into it, or several lanes cannot share it. `EBUSY`: the pipeline of another lane has it. `ENOTCONN`,
    /// `EROFS`: nothing to receive from, or to write to.
    pub fn open(
        context: &Context,
        lane: &Lane,
        lanes: u32,
        config: &PipelineConfig,
    ) -> Result<Store> {
        let devices = &context.info().devices;
        let used = match config.layout {
            StoreLayout::Log => &devices[..],
            _ => &devices[..1],
        };
        if lanes > 1 && config.layout == StoreLayout::Slot {
            return Err(Error::new(
                libc::EINVAL,
                "a log of version 1 has one lane: record several lanes with UNIFIED_LAYOUT_LOG, or start a pipeline with the \
                 handle of each lane",
            ));
        }
        let mut ranges = Vec::new();
        for device in used {
            ranges.push(check_range(context, config, device)?);
        }
        for (device, range) in (0u8..).zip(&ranges) {
            context.claim_range(lane.number(), device, range.clone())?;
        }
        if config.layout != StoreLayout::Log {
            return Ok(Store::Range(ranges.swap_remove(0)));
        }
        let set = LogSet::open(
            context,
            lane,
            &SetConfig {
                start_lba: config.start_lba,
                blocks: config.blocks,
                wraps: config.at_end == AtEnd::Wrap,
                existing: config.existing,
                lanes: lanes as u16,
            },
        )?;
        Ok(Store::Set(Arc::new(set)))
    }

    /// Where a lane writes, which is number `place` of `lanes` in the recording.
    pub fn target(
        &self,
        context: &Context,
        lane: &Lane,
        (place, lanes): (u32, u32),
        config: &PipelineConfig,
    ) -> Result<WriteTarget> {
        match self {
            Store::Set(set) => {
                let config = UnitConfig {
                    pack_below: config.pack_below.unwrap_or(PACK_BELOW),
                    unchecked: config.unchecked,
                    fua: config.fua,
                };
                let recorder = UnitRecorder::new(context, lane, set.clone(), place as u16, config)?;
                Ok(WriteTarget::Units(Box::new(recorder)))
            }
            Store::Range(range) => {
                // Each lane has a part of its own.
                let part = (range.end - range.start) / u64::from(lanes);
                let start = range.start + part * u64::from(place);
                WriteTarget::open(context, lane, start..start + part, config)
            }
        }
    }

    pub fn set(&self) -> Option<Arc<LogSet>> {
        match self {
            Store::Set(set) => Some(set.clone()),
            Store::Range(_) => None,
        }
    }
}

/// Where the next write goes.
pub(super) enum WriteTarget {
    Range(Payloads),
    Slots(Box<SlotRecorder>),
    Units(Box<UnitRecorder>),
}

pub(super) struct Payloads {
    start: u64,
    end: u64,
    next: u64,
    at_end: AtEnd,
    wraps: u64,
    fua: bool,
    /// `AtEnd::Stop` took effect: a smaller payload that would still fit must not follow a gap.
    full: bool,
}

impl Payloads {
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
    /// Writes to a range. `EINVAL`: it is empty, or no log fits into it.
    fn open(
        context: &Context,
        lane: &Lane,
        range: Range<u64>,
        config: &PipelineConfig,
    ) -> Result<WriteTarget> {
        let Range { start, end } = range;
        if start == end {
            return Err(Error::new(
                libc::EINVAL,
                "the range has fewer blocks than there are lanes: give a longer one",
            ));
        }
        match config.layout {
            StoreLayout::Slot => Ok(WriteTarget::Slots(Box::new(SlotRecorder::open(
                context,
                lane,
                start,
                end - start,
                config.at_end == AtEnd::Wrap,
                config.fua,
                config.existing,
            )?))),
            _ => Ok(WriteTarget::Range(Payloads {
                start,
                end,
                next: start,
                at_end: config.at_end,
                full: false,
                wraps: 0,
                fua: config.fua,
            })),
        }
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
        let mut range = Payloads {
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
