//! Where each write goes: the range of a payload layout, or a log.

#![forbid(unsafe_code)]

use std::ops::Range;
use std::sync::Arc;

use super::stripe::{Member, Stripe};
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

/// How the payload layout spreads over the devices of a context. `EINVAL`: there are no such chunks.
pub fn stripe_of(context: &Context, chunk_bytes: u64) -> Result<Stripe> {
    let members = context.info().devices.iter().map(|device| Member {
        blocks: device.limits.blocks,
        block_size: device.limits.block_size,
    });
    Stripe::new(members.collect(), chunk_bytes)
}

/// As `stripe_of`, if a pipeline can use it. `None`: the layout is not spread.
fn check_stripe(context: &Context, config: &PipelineConfig) -> Result<Option<Stripe>> {
    if config.layout != StoreLayout::Payload {
        return match config.chunk_bytes {
            None => Ok(None),
            Some(_) => Err(Error::new(
                libc::EINVAL,
                "a chunk is for the payload layout: a log has segments",
            )),
        };
    }
    let stripe = stripe_of(context, config.chunk_bytes.unwrap_or(0).into())?;
    let (chunk, frame) = (stripe.chunk_bytes(), context.info().frame_size);
    if chunk > 0 && chunk < frame.into() {
        return Err(Error::new(
            libc::EINVAL,
            format!(
                "a chunk of {chunk} bytes: it must have room for the longest payload, so take at least a frame's size, \
                 {frame}"
            ),
        ));
    }
    Ok(Some(stripe))
}

/// Blocks that a pipeline writes to, out of `all` that these devices have.
fn check_range(
    context: &Context,
    config: &PipelineConfig,
    all: u64,
    devices: &[DeviceInfo],
) -> Result<Range<u64>> {
    let blocks = match config.blocks {
        0 => all.saturating_sub(config.start_lba),
        blocks => blocks,
    };
    let end = config
        .start_lba
        .checked_add(blocks)
        .filter(|end| *end <= all && blocks > 0);
    let Some(end) = end else {
        let place = match devices {
            [device] => format!("'{}', which has", device.path),
            _ => format!("the {} devices, whose whole chunks have", devices.len()),
        };
        return Err(Error::new(
            libc::EINVAL,
            format!(
                "blocks {} to {} are not all on {place} {all}",
                config.start_lba,
                config.start_lba.saturating_add(blocks),
            ),
        ));
    };
    if context.info().network.is_none() {
        return Err(Error::new(
            libc::ENOTCONN,
            "a pipeline needs a context with an interface",
        ));
    }
    if let Some(device) = devices.iter().find(|device| !device.writable) {
        return Err(Error::new(
            libc::EROFS,
            format!("device '{}' was opened for reading only", device.path),
        ));
    }
    Ok(config.start_lba..end)
}

/// What the lanes of a recording share.
pub(super) enum Store {
    /// Blocks of the space that is spread over the devices.
    Payloads(Box<Stripe>, Range<u64>),
    /// Blocks of the first device.
    Slots(Range<u64>),
    Set(Arc<LogSet>),
}

impl Store {
    /// Checks the range, and opens the logs through one of the lanes, for so many lanes. `EINVAL`: the range is not on the
    /// devices, no log fits into it, or several lanes cannot share it. `EBUSY`: the pipeline of another lane has it. `ENOTCONN`,
    /// `EROFS`: nothing to receive from, or to write to.
    pub fn open(
        context: &Context,
        lane: &Lane,
        lanes: u32,
        config: &PipelineConfig,
    ) -> Result<Store> {
        let devices = &context.info().devices;
        if let Some(stripe) = check_stripe(context, config)? {
            let range = check_range(context, config, stripe.blocks(), devices)?;
            let ranges: Vec<_> = (0..devices.len() as u8)
                .map(|device| (device, stripe.on_device(range.clone(), device)))
                .collect();
            context.claim_ranges(lane.number(), &ranges)?;
            return Ok(Store::Payloads(Box::new(stripe), range));
        }
        let used = match config.layout {
            StoreLayout::Log => &devices[..],
            _ => &devices[..1],
        };
        if lanes > 1 && config.layout != StoreLayout::Log {
            return Err(Error::new(
                libc::EINVAL,
                "a log of version 1 has one lane: record several lanes with UNIFIED_LAYOUT_LOG, or start a pipeline with the \
                 handle of each lane",
            ));
        }
        let mut ranges = Vec::new();
        for (number, device) in (0u8..).zip(used) {
            let all = device.limits.blocks;
            let range = check_range(context, config, all, std::slice::from_ref(device))?;
            ranges.push((number, range));
        }
        context.claim_ranges(lane.number(), &ranges)?;
        if config.layout != StoreLayout::Log {
            return Ok(Store::Slots(ranges.swap_remove(0).1));
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
            Store::Slots(range) => Ok(WriteTarget::Slots(Box::new(SlotRecorder::open(
                context,
                lane,
                range.start,
                range.end - range.start,
                config.at_end == AtEnd::Wrap,
                config.fua,
                config.existing,
            )?))),
            Store::Payloads(stripe, range) => {
                // Each lane has a part of its own.
                let part = (range.end - range.start) / u64::from(lanes);
                if part == 0 {
                    return Err(Error::new(
                        libc::EINVAL,
                        "the range has fewer blocks than there are lanes: give a longer one",
                    ));
                }
                let start = range.start + part * u64::from(place);
                Ok(WriteTarget::Range(Box::new(Payloads {
                    stripe: Stripe::clone(stripe),
                    start,
                    end: start + part,
                    next: start,
                    at_end: config.at_end,
                    full: false,
                    wraps: 0,
                    fua: config.fua,
                })))
            }
        }
    }

    pub fn set(&self) -> Option<Arc<LogSet>> {
        match self {
            Store::Set(set) => Some(set.clone()),
            _ => None,
        }
    }
}

/// Where the next write goes.
pub(super) enum WriteTarget {
    Range(Box<Payloads>),
    Slots(Box<SlotRecorder>),
    Units(Box<UnitRecorder>),
}

pub(super) struct Payloads {
    /// The space that the blocks below are in.
    stripe: Stripe,
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
    fn blocks_of(&self, len: u32) -> u64 {
        len.div_ceil(self.stripe.block_size()).into()
    }

    /// Where `blocks` go that may begin at `lba`, if they lie before the end.
    fn place(&self, lba: u64, blocks: u64) -> Option<u64> {
        let lba = self.stripe.fit(lba, blocks);
        (lba + blocks <= self.end).then_some(lba)
    }

    /// Whether the next `blocks` wrap to the start.
    fn wraps_with(&self, blocks: u64) -> bool {
        self.at_end == AtEnd::Wrap && self.place(self.next, blocks).is_none()
    }

    /// Where the next `blocks` go. Wraps if configured.
    fn take(&mut self, blocks: u64) -> Option<u64> {
        if self.full {
            return None;
        }
        let lba = match self.place(self.next, blocks) {
            Some(lba) => lba,
            None => {
                self.full = self.at_end == AtEnd::Stop;
                if self.full {
                    return None;
                }
                let lba = self.place(self.start, blocks)?;
                self.wraps += 1;
                lba
            }
        };
        self.next = lba + blocks;
        Some(lba)
    }
}

impl WriteTarget {
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
    pub fn outstanding_before(&self, packet: &Received) -> u64 {
        match self {
            WriteTarget::Range(range) => {
                let len = u32::from(packet.headers.payload_len);
                match range.wraps_with(range.blocks_of(len)) {
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
    pub fn write(&mut self, packet: &Received, write: &mut Transfer) -> bool {
        match self {
            WriteTarget::Range(range) => {
                let len = u32::from(packet.headers.payload_len);
                let lba = range.take(range.blocks_of(len));
                let Some(place) = lba.and_then(|lba| range.stripe.locate(lba)) else {
                    return false;
                };
                write.frame = packet.frame;
                write.offset = packet.offset + u64::from(packet.headers.payload_offset);
                write.len = len;
                write.lba = place.lba;
                write.device = place.device;
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

    fn stripe(of: &[(u64, u32)]) -> Stripe {
        let members = of
            .iter()
            .map(|&(blocks, block_size)| Member { blocks, block_size });
        Stripe::new(members.collect(), 4096).unwrap()
    }

    /// Two devices with chunks of eight blocks: blocks 5 to 22 of their space.
    #[test]
    fn a_range_goes_on_in_the_next_chunk() {
        let mut range = Payloads {
            stripe: stripe(&[(16, 512), (16, 512)]),
            start: 5,
            end: 22,
            next: 5,
            at_end: AtEnd::Wrap,
            wraps: 0,
            fua: false,
            full: false,
        };
        assert_eq!((range.take(2), range.take(2)), (Some(5), Some(8)));
        // Neither what is left of its chunk nor the part of the next one has room for seven; from the start on, a chunk has.
        assert!(range.wraps_with(7) && !range.wraps_with(6));
        assert_eq!((range.take(7), range.next, range.wraps), (Some(8), 15, 1));
        assert_eq!((range.take(6), range.wraps), (Some(16), 1));
        // What fits nowhere moves nothing.
        range.end = 15;
        assert_eq!((range.take(8), range.next, range.wraps), (None, 22, 1));
    }

    #[test]
    fn a_range_says_when_it_begins_again() {
        let mut range = Payloads {
            stripe: stripe(&[(20, 512)]),
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
