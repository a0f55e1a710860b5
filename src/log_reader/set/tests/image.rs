//! Images of devices of a set, packed by the description in docs/record-format.md. The fuzz targets of sets use them too.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, SystemTime};

use crate::sys::crc::crc32c;
use crate::unit_log::lanes::{LaneMark, table_bytes};
use crate::unit_log::superblock::Superblock;
use crate::unit_log::unit::{
    CONTENT, RecordHeader, SLOT_HEADER_LEN, SegmentBody, SlotHeader, UNIT_HEADER_LEN, UnitHeader,
    kind,
};

pub const SLOT: usize = 512;
pub const SLOTS: u32 = 16;
pub const SET: u64 = 0x1234_5678_9abc_def0;

/// The packet that a lane has recorded under a sequence number: short ones and ones of several slots.
pub fn packet(lane: u16, sequence: u64) -> Vec<u8> {
    let mut packet = format!("lane {lane} packet {sequence} ").into_bytes();
    let more = [0, 10, 200, 600][(sequence % 4) as usize];
    packet.resize(packet.len() + more, (sequence as u8) ^ (lane as u8));
    packet
}

/// When it came: not long before it is read, so that followers wait for what is missing.
pub fn time(lane: u16, sequence: u64) -> u64 {
    static START: OnceLock<u64> = OnceLock::new();
    let start = START.get_or_init(|| {
        let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        (since.unwrap() + Duration::from_secs(3600)).as_nanos() as u64
    });
    let after = sequence.wrapping_mul(1000).wrapping_add(lane.into());
    start.wrapping_add(after)
}

/// One device.
#[derive(Debug, Clone)]
pub struct Device {
    pub log: Superblock,
    pub bytes: Vec<u8>,
    pub newest: u64,
    /// Of each lane, the generation of its segment and the next slot.
    open: BTreeMap<u16, (u64, u32)>,
    /// What the headers of segments say about all lanes.
    marks: Vec<LaneMark>,
}

impl Device {
    pub fn new(number: u16, devices: u16, lanes: u16, segments: u64) -> Device {
        Device::with_slots(SLOT, number, devices, lanes, segments)
    }

    /// As `new`, with slots of so many bytes.
    pub fn with_slots(slot: usize, number: u16, devices: u16, lanes: u16, segments: u64) -> Device {
        let slots = 2 + segments * u64::from(SLOTS);
        let blocks = slots * slot as u64 / 512;
        let log = Superblock::new(SET, 1, 512, slot as u32, 0, blocks, true).unwrap();
        let log = Superblock {
            segment_slots: SLOTS,
            segments,
            device: number,
            devices,
            lanes,
            ..log
        };
        let mut device = Device {
            log,
            bytes: vec![0; slots as usize * slot],
            newest: 0,
            open: BTreeMap::new(),
            marks: vec![LaneMark::default(); lanes.into()],
        };
        device.write_super();
        device
    }

    pub fn write_super(&mut self) {
        self.bytes[..512].copy_from_slice(&self.log.to_bytes());
    }

    pub fn at(&self, generation: u64, slot: u32) -> usize {
        self.log.slot_of(generation, slot) as usize * self.slot()
    }

    pub fn slot(&self) -> usize {
        self.log.slot_size as usize
    }

    /// Where the lane's next unit goes.
    pub fn place(&self, lane: u16) -> Option<(u64, u32)> {
        self.open.get(&lane).copied()
    }

    /// Begins a segment, `skip` generations after the next one.
    pub fn begin(&mut self, lane: u16, first: u64, skip: u64) {
        self.newest += 1 + skip;
        let generation = self.newest;
        // The lane's next new packet, as far as this device knows.
        let next = match self.marks.get_mut(usize::from(lane)) {
            Some(mark) => {
                mark.segment = generation;
                mark.next = mark.next.max(first);
                mark.next
            }
            None => first,
        };
        let header = SlotHeader {
            kind: kind::SEGMENT,
            slots: 1,
            generation,
            tag: self.log.tag(),
            ..SlotHeader::default()
        };
        let unit = UnitHeader {
            first_sequence: first,
            base_time: time(lane, next),
            lane,
            data_offset: CONTENT as u16,
            ..UnitHeader::default()
        };
        let body = SegmentBody {
            set_id: self.log.set_id,
            device: self.log.device,
            lane,
            lowest: first,
            previous: self
                .open
                .get(&lane)
                .map_or(0, |(generation, _)| *generation),
        };
        let at = self.at(generation, 0);
        let slot = self.slot();
        self.bytes[at..at + slot].fill(0);
        self.bytes[at..at + CONTENT].copy_from_slice(&unit.to_bytes(&header));
        let single = self.log.devices == 1 && self.log.lanes == 1;
        let marks = if single { &[] } else { &self.marks[..] };
        let body = [&body.to_bytes()[..], &table_bytes(marks)].concat();
        self.bytes[at + CONTENT..at + CONTENT + body.len()].copy_from_slice(&body);
        self.open.insert(lane, (generation, 1));
    }

    /// Writes a unit of consecutive packets, in a new segment if there is no room. Returns where it is.
    pub fn put(&mut self, lane: u16, first: u64, count: u64) -> (u64, u32, u32) {
        let mut stream = Vec::new();
        for sequence in first..first + count {
            let packet = packet(lane, sequence);
            let record = RecordHeader {
                stored_len: packet.len() as u16,
                original_len: packet.len() as u16,
                time_delta: (time(lane, sequence) - time(lane, first)) as i32,
                ..RecordHeader::default()
            };
            stream.extend_from_slice(&record.to_bytes(crc32c(&packet)));
            stream.extend_from_slice(&packet);
        }
        let size = self.slot();
        let slots = (stream.len() + UNIT_HEADER_LEN).div_ceil(size - SLOT_HEADER_LEN) as u32;
        assert!(slots <= 8, "too many packets for a unit");
        if self
            .place(lane)
            .is_none_or(|(_, slot)| slot + slots > SLOTS)
        {
            self.begin(lane, first, 0);
        }
        let (generation, slot) = self.place(lane).unwrap();
        let length = stream.len();
        let mut out = Vec::new();
        for index in 0..slots {
            let header = SlotHeader {
                kind: kind::PACKED,
                index: index as u8,
                slots: slots as u8,
                generation,
                slot: slot + index,
                tag: self.log.tag(),
                first: 0,
            };
            if index > 0 {
                out.extend_from_slice(&header.to_bytes());
            } else {
                let unit = UnitHeader {
                    first_sequence: first,
                    base_time: time(lane, first),
                    records: count as u32,
                    bytes: length as u32,
                    lane,
                    data_offset: CONTENT as u16,
                };
                out.extend_from_slice(&unit.to_bytes(&header));
            }
            let room = (index as usize + 1) * size - out.len();
            out.extend(stream.drain(..room.min(stream.len())).collect::<Vec<_>>());
            out.resize((index as usize + 1) * size, 0);
        }
        let at = self.at(generation, slot);
        self.bytes[at..at + out.len()].copy_from_slice(&out);
        self.open.insert(lane, (generation, slot + slots));
        if let Some(mark) = self.marks.get_mut(usize::from(lane)) {
            mark.next = mark.next.max(first + count);
        }
        (generation, slot, slots)
    }

    /// As `put`, in a segment that another one has followed.
    pub fn put_at(&mut self, place: (u64, u32), lane: u16, first: u64, count: u64) {
        let newest = self.open.insert(lane, place);
        let (generation, ..) = self.put(lane, first, count);
        assert_eq!(generation, place.0, "there is no room");
        self.open.extend(newest.map(|newest| (lane, newest)));
    }

    /// Breaks the header of a slot.
    pub fn damage(&mut self, generation: u64, slot: u32) {
        let at = self.at(generation, slot);
        self.bytes[at + 20] ^= 0xff;
    }

    /// As if a slot had never been written.
    pub fn lose(&mut self, generation: u64, slot: u32) {
        let at = self.at(generation, slot);
        let size = self.slot();
        self.bytes[at..at + size].fill(0);
    }
}

/// A file that is removed with this.
pub struct File(pub PathBuf);

impl Drop for File {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

pub fn file(device: &Device) -> File {
    static NUMBER: AtomicU32 = AtomicU32::new(0);
    let number = NUMBER.fetch_add(1, Ordering::Relaxed);
    let name = format!("unified-set-{}-{number}", std::process::id());
    let path = std::env::temp_dir().join(name);
    std::fs::write(&path, &device.bytes).unwrap();
    File(path)
}
