//! The log of version 2: segments of units. A large packet is a unit in its own frame; small ones are packed.

#![forbid(unsafe_code)]

use std::collections::VecDeque;
use std::sync::Arc;

use super::blank::Blanks;
use super::losses::{LossCount, wall_offset};
use super::packing::OpenUnit;
use super::set::{Granted, LogSet, Segment};
use crate::config::KERNEL_HEADROOM;
use crate::context::Context;
use crate::error::Result;
use crate::frame::FrameMap;
use crate::lane::{FrameRun, Lane};
use crate::net::rx::Received;
use crate::record::Losses;
use crate::sys::event::monotonic_ns;
use crate::sys::shm::Shared;
use crate::unit_log::lanes::table_bytes;
use crate::unit_log::superblock::Superblock;
use crate::unit_log::unit::{
    CONTENT, LossEntry, MAX_UNIT_SLOTS, RECORD_HEADER_LEN, RecordHeader, SLOT_HEADER_LEN,
    SegmentBody, SlotHeader, UnitHeader, cause, kind, record_flags,
};

/// Bytes of the headers of a packet in place.
const HEADERS: usize = CONTENT + RECORD_HEADER_LEN;

/// How packets are stored.
#[derive(Debug, Clone, Copy)]
pub struct UnitConfig {
    /// Packets shorter than this, from their Ethernet header on, are packed.
    pub pack_below: u32,
    /// The checksum of a record covers its header only.
    pub unchecked: bool,
    pub fua: bool,
}

/// A segment whose last packets may still be in flight.
#[derive(Debug, Clone, Copy)]
struct Closed {
    device: u8,
    generation: u64,
    /// Packets of the lane up to its end, counted from the recorder's first one.
    packets: u64,
}

/// A segment that is being written.
#[derive(Debug, Clone, Copy)]
struct OpenSegment {
    device: u8,
    log: Superblock,
    tag: u32,
    generation: u64,
    /// The next one in it.
    slot: u32,
    /// It was begun by this recorder.
    begun: bool,
    /// The first sequence number of the last unit in it.
    last: Option<u64>,
}

#[derive(Debug)]
pub struct UnitRecorder {
    set: Arc<LogSet>,
    /// Of this recorder, in the set.
    lane: u16,
    config: UnitConfig,
    /// The segment that is being written.
    at: OpenSegment,
    /// While units are stored that another device has failed: the segment of the packets that come in. Else that of those units,
    /// so that the numbers in both ascend.
    other: OpenSegment,
    /// The unit that is open in `other`.
    other_unit: Option<OpenUnit>,
    rescuing: bool,
    closed: VecDeque<Closed>,
    wraps: u64,
    /// Of the next packet.
    next: u64,
    unit: Option<OpenUnit>,
    data: Shared,
    map: FrameMap,
    blanks: Blanks,
    /// CLOCK_REALTIME minus CLOCK_MONOTONIC, in ns.
    wall: u64,
    losses: LossCount,
    /// Losses of which records were written, and until when.
    told: Losses,
    told_at: u64,
}

impl UnitRecorder {
    /// For one of the set's lanes, which is not begun yet. `lane`: where its packets come from.
    pub fn new(
        context: &Context,
        lane: &Lane,
        set: Arc<LogSet>,
        number: u16,
        config: UnitConfig,
    ) -> Result<UnitRecorder> {
        let info = context.info();
        let wall = wall_offset();
        let (device, generation) = set.home(number);
        let log = *set.log(device);
        let none = OpenSegment {
            device,
            log,
            tag: log.tag(),
            generation,
            slot: log.segment_slots,
            begun: false,
            last: None,
        };
        Ok(UnitRecorder {
            lane: number,
            config,
            at: none,
            other: none,
            other_unit: None,
            rescuing: false,
            closed: VecDeque::new(),
            wraps: set.wraps(),
            next: set.first_sequence(number),
            unit: None,
            data: context.data().clone(),
            map: info.frames(),
            blanks: Blanks::new(
                info.frames(),
                context.data().clone(),
                HEADERS,
                KERNEL_HEADROOM + info.headroom,
                info.network
                    .is_some_and(|network| network.writes_are_delivered),
            ),
            wall,
            losses: LossCount::begin(context, lane, Losses::default())?,
            told: Losses::default(),
            told_at: wall.wrapping_add(monotonic_ns()),
            set,
        })
    }

    /// The logs that it writes to.
    pub fn set(&self) -> &Arc<LogSet> {
        &self.set
    }

    /// The device of the segment that is being written.
    pub fn device(&self) -> u8 {
        self.at.device
    }

    /// The sequence number that the next packet gets.
    pub fn next_sequence(&self) -> u64 {
        self.next
    }

    pub fn pack_below(&self) -> u32 {
        self.config.pack_below
    }

    /// Number of times that the logs wrapped to their start.
    pub fn wraps(&self) -> u64 {
        self.wraps
    }

    /// Where the next unit goes; after a whole segment, where it would go on this device.
    pub fn next_lba(&self) -> u64 {
        match self.at.slot == self.at.log.segment_slots {
            true => self.at.log.lba_of(self.at.generation + 1, 0),
            false => self.at.log.lba_of(self.at.generation, self.at.slot),
        }
    }

    /// How many packets may be outstanding. In a log of its own: fewer than have room in all segments but the one that is
    /// overwritten next. Each has at most one slot of its own, or its part of a unit that is full of others but for one slot.
    pub fn most_outstanding(&self) -> u64 {
        if !self.set.is_single() {
            return u64::MAX;
        }
        let half = (self.at.log.segments - 1) * u64::from(self.at.log.segment_slots) / 2;
        half - MAX_UNIT_SLOTS as u64
    }

    /// Slots that are left in the segment, besides those of the open unit.
    pub fn room(&self) -> u32 {
        let open = self.unit.as_ref().map_or(0, |unit| unit.frames);
        self.at.log.segment_slots - self.at.slot - open
    }

    /// Reads the clocks, once a batch: packets carry CLOCK_MONOTONIC, records carry the time of day.
    pub fn look_at_clock(&mut self) {
        self.wall = wall_offset();
    }

    /// Fetches what is read of a packet soon into the cache: all of it, for the processor's own prefetching stops at the end
    /// of each packet and begins slowly at the next one.
    pub fn prefetch(&self, packet: &Received) {
        let at = packet.offset as usize;
        for line in (0..packet.len as usize).step_by(64) {
            self.data.prefetch(at + line);
        }
        if packet.len >= self.config.pack_below {
            self.data.prefetch(self.map.start(packet.frame) as usize);
        }
    }

    /// The packet in this frame is not recorded, or not in place.
    pub fn skip(&mut self, frame: u32) {
        self.blanks.forget(frame);
    }

    fn write_of(&mut self, frame: u32, slots: u32, number: u64) -> FrameRun {
        let lba = self.at.log.lba_of(self.at.generation, self.at.slot);
        self.at.slot += slots;
        FrameRun {
            first: frame,
            frames: slots,
            lba,
            device: self.at.device,
            user_data: number,
            fua: self.config.fua,
            // If it fails, it goes to another device.
            parts: self.set.has_other(self.at.device),
        }
    }

    fn slot_header(&self, kind: u8) -> SlotHeader {
        SlotHeader {
            kind,
            index: 0,
            slots: 1,
            generation: self.at.generation,
            slot: self.at.slot,
            tag: self.at.tag,
            first: 0,
        }
    }

    /// Writes a unit of one slot without packets into a frame that the caller holds.
    fn plain_unit(&mut self, frame: u32, kind: u8, first: u64, body: &[u8]) -> FrameRun {
        self.blanks.forget(frame);
        let unit = UnitHeader {
            first_sequence: first,
            base_time: self.wall.wrapping_add(monotonic_ns()),
            lane: self.lane,
            data_offset: CONTENT as u16,
            ..UnitHeader::default()
        };
        let start = self.map.start(frame) as usize;
        let size = self.map.frame_size() as usize;
        let headers = unit.to_bytes(&self.slot_header(kind));
        self.data.write(start, &headers);
        self.data.write(start + CONTENT, body);
        let used = CONTENT + body.len();
        self.data.zero(start + used, size - used);
        FrameRun {
            parts: false,
            ..self.write_of(frame, 1, 0)
        }
    }

    /// Asks for the next segment. No unit is open, and the last segment is full.
    pub fn next_segment(&mut self) -> Granted {
        self.set.begin_segment(self.lane, self.next)
    }

    /// Begins a segment, with a frame that the caller holds. `lowest`: the number of the first packet that is not completed,
    /// counted from this recorder's first one. `first`: the sequence number of the first packet that follows.
    pub fn begin_segment(
        &mut self,
        frame: u32,
        segment: &Segment,
        lowest: u64,
        first: u64,
    ) -> FrameRun {
        if self.at.begun {
            self.closed.push_back(Closed {
                device: self.at.device,
                generation: self.at.generation,
                packets: self.next - self.set.first_sequence(self.lane),
            });
        }
        let log = *self.set.log(segment.device);
        self.at = OpenSegment {
            device: segment.device,
            log,
            tag: log.tag(),
            generation: segment.generation,
            slot: 0,
            begun: true,
            last: None,
        };
        self.wraps = self.set.wraps();
        let body = SegmentBody {
            set_id: self.at.log.set_id,
            device: self.at.log.device,
            lane: self.lane,
            lowest: self.set.first_sequence(self.lane) + lowest,
            previous: segment.previous,
        };
        let body = [&body.to_bytes()[..], &table_bytes(&segment.marks)].concat();
        self.plain_unit(frame, kind::SEGMENT, first, &body)
    }

    /// Whether the device of the segment that is being written has failed, and another one has not.
    pub fn has_to_leave(&self) -> bool {
        self.is_out() && self.set.has_other(self.at.device)
    }

    /// Whether the device of the segment that is being written has failed.
    pub fn is_out(&self) -> bool {
        self.set.is_out(self.at.device)
    }

    /// Whether a unit of so many slots that begins with this number can come next in the segment: numbers ascend.
    pub fn takes(&self, sequence: u64, slots: u32) -> bool {
        self.at.begun && self.room() >= slots && self.at.last.is_none_or(|last| last < sequence)
    }

    /// The first sequence number of the open unit, or of the next packet.
    pub fn first_unwritten(&self) -> u64 {
        self.unit.as_ref().map_or(self.next, |unit| unit.sequence)
    }

    /// The number of a packet, counted from this recorder's first one.
    pub fn number_of(&self, sequence: u64) -> u64 {
        sequence.wrapping_sub(self.set.first_sequence(self.lane))
    }

    /// Goes to the segment of units that another device has failed. `false`: it is there already.
    pub fn begin_rescue(&mut self) -> bool {
        let begins = !self.rescuing;
        if begins {
            self.change_segments();
        }
        begins
    }

    pub fn is_rescuing(&self) -> bool {
        self.rescuing
    }

    /// Goes back to the segment of the packets that come in.
    pub fn end_rescue(&mut self) {
        if self.rescuing {
            self.change_segments();
        }
    }

    fn change_segments(&mut self) {
        std::mem::swap(&mut self.at, &mut self.other);
        std::mem::swap(&mut self.unit, &mut self.other_unit);
        self.rescuing = !self.rescuing;
    }

    /// The headers of the unit in these frames, which was not stored. `None`: there is none.
    pub fn unit_in(&self, frame: u32) -> Option<(SlotHeader, UnitHeader)> {
        let mut bytes = [0; CONTENT];
        self.data.read(self.map.start(frame) as usize, &mut bytes);
        let slot = SlotHeader::read(&bytes).filter(|slot| slot.index == 0)?;
        Some((slot, UnitHeader::read(&bytes)?))
    }

    /// Gives the unit in these frames, which the caller holds, its place in the segment that is being written. There is room.
    pub fn move_unit(&mut self, frame: u32, slot: &SlotHeader, unit: &UnitHeader) -> FrameRun {
        let moved = SlotHeader {
            generation: self.at.generation,
            slot: self.at.slot,
            tag: self.at.tag,
            ..*slot
        };
        let start = self.map.start(frame) as usize;
        self.data.write(start, &unit.to_bytes(&moved));
        for index in 1..slot.slots {
            let start = self.map.start(frame + u32::from(index)) as usize;
            let mut bytes = [0; SLOT_HEADER_LEN];
            self.data.read(start, &mut bytes);
            // Only it knows where its first record begins.
            let first = SlotHeader::read(&bytes).map_or(0, |old| old.first);
            let moved = SlotHeader {
                index,
                slot: self.at.slot + u32::from(index),
                first,
                ..moved
            };
            self.data.write(start, &moved.to_bytes());
        }
        self.at.last = Some(unit.first_sequence);
        let number = self.number_of(unit.first_sequence);
        self.write_of(frame, slot.slots.into(), number)
    }

    /// The write of a unit at the place that its headers name, for the last time.
    pub fn write_in_place(
        &self,
        device: u8,
        frame: u32,
        slot: &SlotHeader,
        unit: &UnitHeader,
    ) -> FrameRun {
        FrameRun {
            first: frame,
            frames: slot.slots.into(),
            lba: self.set.log(device).lba_of(slot.generation, slot.slot),
            device,
            user_data: self.number_of(unit.first_sequence),
            fua: self.config.fua,
            parts: false,
        }
    }

    /// A superblock in a frame that the caller holds, for a device that is tried.
    pub fn try_device(&mut self, frame: u32, device: u8) -> FrameRun {
        self.superblock_in(frame, device)
    }

    /// Lets others use the segments of which all packets have come back: the first `completed` of this recorder.
    pub fn release_segments(&mut self, completed: u64) {
        while let Some(closed) = self.closed.front()
            && closed.packets <= completed
        {
            self.set.release(closed.device, closed.generation);
            self.closed.pop_front();
        }
    }

    /// What tells a write of this segment that is no packet's.
    pub fn mark(&self) -> u64 {
        LogSet::mark(self.at.device, self.at.generation)
    }

    fn time_of(&self, packet: &Received) -> u64 {
        let timestamp = match packet.timestamp {
            0 => monotonic_ns(),
            seen => seen,
        };
        timestamp.wrapping_add(self.wall)
    }

    fn record_header(&self, packet: &Received, time_delta: i32) -> RecordHeader {
        let headers = &packet.headers;
        let version = match headers.ip_version {
            4 => record_flags::IPV4,
            6 => record_flags::IPV6,
            _ => 0,
        };
        let vlan = if headers.vlan_tci.is_some() {
            record_flags::VLAN
        } else {
            0
        };
        let unchecked = if self.config.unchecked {
            record_flags::UNCHECKED
        } else {
            0
        };
        RecordHeader {
            stored_len: packet.len as u16,
            original_len: packet.len as u16,
            time_delta,
            payload_offset: headers.payload_offset,
            payload_len: headers.payload_len,
            vlan_tci: headers.vlan_tci.unwrap_or(0),
            l3_offset: headers.l3_offset as u8,
            flags: version | vlan | unchecked,
            interface: 0,
            queue: packet.queue as u16,
        }
    }

    /// The checksum of a packet; 0 if packets are not checked.
    fn checksum(&self, packet: &Received) -> u32 {
        match self.config.unchecked {
            true => 0,
            false => self
                .data
                .crc32c(packet.offset as usize, packet.len as usize),
        }
    }

    /// Stores a packet in its own frame. There is room, no unit is open, and the caller holds the frame.
    pub fn in_place(&mut self, packet: &Received, number: u64) -> FrameRun {
        let start = self.map.start(packet.frame);
        let at = (packet.offset - start) as u32;
        let record = self.record_header(packet, 0);
        let unit = UnitHeader {
            first_sequence: self.next,
            base_time: self.time_of(packet),
            records: 1,
            bytes: RECORD_HEADER_LEN as u32 + packet.len,
            lane: self.lane,
            data_offset: at as u16,
        };
        let start = start as usize;
        let of_record = record.to_words(self.checksum(packet));
        self.data
            .write_words(start, &unit.to_words(&self.slot_header(kind::PACKET)));
        self.data.write_words(start + CONTENT, &of_record);
        self.blanks.clear_around(packet.frame, at..at + packet.len);
        self.at.last = Some(self.next);
        self.next += 1;
        self.write_of(packet.frame, 1, number)
    }

    /// Whether a packet is packed rather than stored in its frame. `bound`: the device is slower than the packets.
    #[inline(always)]
    pub fn packs(&self, packet: &Received, bound: bool) -> bool {
        if packet.len < self.config.pack_below || bound || !self.takes_in_place(packet) {
            return true;
        }
        // To end the open unit would waste the rest of its last slot, and some of the packet's own: together more than the
        // packet takes in the unit.
        self.unit.as_ref().is_some_and(|unit| unit.fits(packet.len))
    }

    /// Whether a packet can be stored in its own frame.
    pub fn takes_in_place(&self, packet: &Received) -> bool {
        packet.offset - self.map.start(packet.frame) >= HEADERS as u64
    }

    /// Gives the open unit up: its frames, if there is one.
    pub fn drop_unit(&mut self) -> Option<std::ops::Range<u32>> {
        let unit = self.unit.take()?;
        self.next = unit.sequence;
        Some(unit.frame..unit.frame + unit.frames)
    }

    /// Frames that a unit gets which begins with a packet: at most as many as there is room for.
    pub fn frames_of_unit(&self) -> u32 {
        self.room().min(MAX_UNIT_SLOTS as u32)
    }

    /// Whether a packet fits into a unit of so many frames.
    pub fn fits(&self, packet: &Received, frames: u32) -> bool {
        RECORD_HEADER_LEN as u32 + packet.len <= OpenUnit::capacity(frames, self.map.frame_size())
    }

    /// Opens a unit in frames that the caller holds.
    pub fn begin_unit(&mut self, frame: u32, frames: u32, packet: &Received, number: u64) {
        debug_assert!(self.unit.is_none());
        (frame..frame + frames).for_each(|frame| self.blanks.forget(frame));
        let time = self.time_of(packet);
        let size = self.map.frame_size();
        self.unit = Some(OpenUnit::new(frame, frames, size, self.next, time, number));
    }

    /// Copies a packet into the open unit. The unit's first frame; `None` if none is open, or the packet does not fit.
    #[inline(always)]
    pub fn pack(&mut self, packet: &Received) -> Option<u32> {
        let unit = self.unit.as_ref()?;
        let since = self.time_of(packet).wrapping_sub(unit.time) as i64;
        let delta: i32 = since.try_into().ok()?;
        if !unit.fits(packet.len) {
            return None;
        }
        let header = self.record_header(packet, delta);
        let words = header.to_words(self.checksum(packet));
        // In place: an open unit is too long to be moved for each packet.
        let unit = self.unit.as_mut()?;
        let at = packet.offset as usize;
        unit.append(&self.map, &self.data, &words, at, packet.len);
        let frame = unit.frame;
        self.next += 1;
        self.blanks.forget(packet.frame);
        Some(frame)
    }

    /// Ends the open unit: its write, and the frames that it does not need.
    pub fn end_unit(&mut self) -> Option<(FrameRun, std::ops::Range<u32>)> {
        let unit = self.unit.take()?;
        unit.end(&self.map, &self.data);
        let slots = unit.slots();
        for index in (0..slots).rev() {
            let slot = SlotHeader {
                index: index as u8,
                slots: slots as u8,
                slot: self.at.slot + index,
                first: unit.first[index as usize],
                ..self.slot_header(kind::PACKED)
            };
            let start = self.map.start(unit.frame + index) as usize;
            if index > 0 {
                self.data.write(start, &slot.to_bytes());
                continue;
            }
            let header = UnitHeader {
                first_sequence: unit.sequence,
                base_time: unit.time,
                records: unit.records,
                bytes: unit.bytes,
                lane: self.lane,
                data_offset: CONTENT as u16,
            };
            self.data.write(start, &header.to_bytes(&slot));
        }
        self.at.last = Some(unit.sequence);
        let write = self.write_of(unit.frame, slots, unit.number);
        Some((write, unit.frame + slots..unit.frame + unit.frames))
    }

    /// Whether a unit is open.
    pub fn has_unit(&self) -> bool {
        self.unit.is_some()
    }

    /// Whether a superblock is due. `failed`: writes that failed since the superblock on the device, which may have failed too.
    /// After many segments without a unit, the log would be taken to end before them.
    pub fn wants_checkpoint(&self, failed: u64) -> bool {
        self.set.wants_checkpoint(self.at.device, failed)
    }

    /// Reads the loss counters. `true` if more was lost than the superblock on the device says. If they cannot be
    /// read, recording continues with the known values.
    pub fn look_at_losses(&mut self, context: &Context, lane: &Lane) -> bool {
        self.losses.look(context, lane);
        let known = self.losses.known;
        self.set.look_at_losses(self.lane, known, self.at.device)
    }

    /// Whether losses are known of which no record was written.
    pub fn has_losses_to_tell(&self) -> bool {
        let (known, told) = (&self.losses.known, &self.told);
        (known.dropped, known.unrecorded) != (told.dropped, told.unrecorded)
    }

    /// Turns a frame that the caller holds into a record of the losses since the last one. There is room, and no unit is
    /// open.
    pub fn tell_losses(&mut self, frame: u32) -> FrameRun {
        let now = self.wall.wrapping_add(monotonic_ns());
        let first = self.first_unwritten();
        let (known, told) = (self.losses.known, self.told);
        let entries = [
            (cause::DROPPED, known.dropped - told.dropped),
            (cause::UNRECORDED, known.unrecorded - told.unrecorded),
        ];
        let entries: Vec<LossEntry> = entries
            .into_iter()
            .filter(|(_, packets)| *packets > 0)
            .map(|(cause, packets)| LossEntry {
                cause,
                packets,
                from: self.told_at,
                to: now,
            })
            .collect();
        self.told = known;
        self.told_at = now;
        self.plain_unit(frame, kind::LOSS, first, &LossEntry::body(&entries))
    }

    /// Turns a frame that the caller holds into a superblock.
    pub fn checkpoint(&mut self, frame: u32) -> FrameRun {
        self.superblock_in(frame, self.at.device)
    }

    fn superblock_in(&mut self, frame: u32, device: u8) -> FrameRun {
        self.blanks.forget(frame);
        let superblock = self.set.checkpoint(device);
        let bytes = superblock.to_bytes();
        let start = self.map.start(frame) as usize;
        let size = self.map.frame_size() as usize;
        self.data.write(start, &bytes);
        self.data.zero(start + bytes.len(), size - bytes.len());
        FrameRun {
            first: frame,
            frames: 1,
            lba: superblock.super_lba(superblock.generation),
            device,
            ..FrameRun::default()
        }
    }
}
