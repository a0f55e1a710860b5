//! The headers of slots, units and records.

#![forbid(unsafe_code)]

use crate::bytes::{is_sealed, put, seal, u16_at, u32_at, u64_at};
use crate::record::MAX_SEQUENCE;
use crate::sys::crc::{crc32c, crc32c_words};

/// "UNIT".
const MAGIC: u32 = u32::from_le_bytes(*b"UNIT");
pub const SLOT_HEADER_LEN: usize = 32;
pub const UNIT_HEADER_LEN: usize = 40;
pub const RECORD_HEADER_LEN: usize = 24;
/// Where the content of a unit begins in its first slot.
pub const CONTENT: usize = SLOT_HEADER_LEN + UNIT_HEADER_LEN;
/// Most slots of a unit.
pub const MAX_UNIT_SLOTS: usize = 8;
/// Bytes of a segment's body.
pub(super) const SEGMENT_LEN: usize = 40;
/// Bytes of an entry of a record of losses, and most of them.
const LOSS_LEN: usize = 32;
const MAX_LOSSES: usize = 16;

/// What a unit is. Readers skip kinds that they do not know.
pub mod kind {
    pub const SEGMENT: u8 = 1;
    /// One packet in place.
    pub const PACKET: u8 = 2;
    pub const PACKED: u8 = 3;
    pub const LOSS: u8 = 5;
}

/// Flags of a record.
pub mod record_flags {
    pub const VLAN: u8 = 1;
    /// The checksum covers the record's header only.
    pub const UNCHECKED: u8 = 2;
    pub const IPV4: u8 = 4;
    pub const IPV6: u8 = 8;
    /// The hardware's time, 8 bytes, follows the header.
    pub const HARDWARE_TIME: u8 = 16;
}

/// Why packets are not in the log.
pub mod cause {
    /// The kernel dropped them.
    pub const DROPPED: u16 = 1;
    /// They were seen and not recorded.
    pub const UNRECORDED: u16 = 2;
}

fn bytes_of<const N: usize, const LEN: usize>(words: &[u64; N]) -> [u8; LEN] {
    const { assert!(N * 8 == LEN) };
    let mut bytes = [0; LEN];
    bytes.copy_from_slice(words.map(u64::to_le_bytes).as_flattened());
    bytes
}

/// At the start of every slot. In the first slot of a unit, the checksum is after the unit's header and covers both.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct SlotHeader {
    pub kind: u8,
    /// Number of the slot in its unit, and slots of the unit.
    pub index: u8,
    pub slots: u8,
    /// Of the segment.
    pub generation: u64,
    /// Number in the segment.
    pub slot: u32,
    /// `Superblock::tag`.
    pub tag: u32,
    /// Where the first record that begins in this slot does so; 0: none does.
    pub first: u16,
}

impl SlotHeader {
    /// Without its checksum.
    #[inline(always)]
    fn words(&self) -> [u64; 4] {
        [
            u64::from(MAGIC)
                | u64::from(self.kind) << 32
                | u64::from(self.index) << 40
                | u64::from(self.slots) << 48,
            self.generation,
            u64::from(self.slot) | u64::from(self.tag) << 32,
            u64::from(self.first),
        ]
    }

    /// Of a slot that is not the first of its unit.
    pub fn to_bytes(&self) -> [u8; SLOT_HEADER_LEN] {
        let mut words = self.words();
        words[3] |= u64::from(crc32c_words(&words, true)) << 32;
        bytes_of(&words)
    }

    /// `None`: there is no valid header.
    pub fn read(slot: &[u8]) -> Option<SlotHeader> {
        if slot.len() < SLOT_HEADER_LEN || u32_at(slot, 0) != MAGIC {
            return None;
        }
        let end = if slot[5] == 0 {
            CONTENT
        } else {
            SLOT_HEADER_LEN
        };
        if !is_sealed(slot, 0, end - 4) {
            return None;
        }
        let found = SlotHeader {
            kind: slot[4],
            index: slot[5],
            slots: slot[6],
            generation: u64_at(slot, 8),
            slot: u32_at(slot, 16),
            tag: u32_at(slot, 20),
            first: u16_at(slot, 24),
        };
        let sound = (1..=MAX_UNIT_SLOTS as u8).contains(&found.slots)
            && found.index < found.slots
            && u32::from(found.index) <= found.slot
            && (1..=MAX_SEQUENCE).contains(&found.generation);
        sound.then_some(found)
    }
}

/// After the header of a unit's first slot.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct UnitHeader {
    /// Of the first record, or of the next one if there is none.
    pub first_sequence: u64,
    /// ns since 1970-01-01 UTC.
    pub base_time: u64,
    pub records: u32,
    /// Of all records, with their headers.
    pub bytes: u32,
    pub lane: u16,
    /// Where the packet (in place) or the first record begins in the slot.
    pub data_offset: u16,
}

impl UnitHeader {
    /// The start of a unit's first slot, whose own header is `slot`, in words.
    #[inline(always)]
    pub fn to_words(&self, slot: &SlotHeader) -> [u64; CONTENT / 8] {
        let [a, b, c, d] = slot.words();
        let mut words = [
            a,
            b,
            c,
            d,
            self.first_sequence,
            self.base_time,
            u64::from(self.records) | u64::from(self.bytes) << 32,
            u64::from(self.lane) | u64::from(self.data_offset) << 16,
            0,
        ];
        words[8] = u64::from(crc32c_words(&words, true)) << 32;
        words
    }

    /// The same in bytes.
    pub fn to_bytes(&self, slot: &SlotHeader) -> [u8; CONTENT] {
        bytes_of(&self.to_words(slot))
    }

    /// Reads it out of a unit's first slot, whose own header was found valid.
    pub fn read(slot: &[u8]) -> Option<UnitHeader> {
        let b = slot.get(SLOT_HEADER_LEN..CONTENT)?;
        let found = UnitHeader {
            first_sequence: u64_at(b, 0),
            base_time: u64_at(b, 8),
            records: u32_at(b, 16),
            bytes: u32_at(b, 20),
            lane: u16_at(b, 24),
            data_offset: u16_at(b, 26),
        };
        (found.first_sequence <= MAX_SEQUENCE).then_some(found)
    }
}

/// Before each packet.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct RecordHeader {
    pub stored_len: u16,
    pub original_len: u16,
    /// ns after the unit's base time.
    pub time_delta: i32,
    /// From the packet's start on.
    pub payload_offset: u16,
    pub payload_len: u16,
    pub vlan_tci: u16,
    pub l3_offset: u8,
    pub flags: u8,
    pub interface: u8,
    pub queue: u16,
}

impl RecordHeader {
    /// In words. `crc`: of the packet; 0 if the record is `UNCHECKED`.
    #[inline(always)]
    pub fn to_words(&self, crc: u32) -> [u64; RECORD_HEADER_LEN / 8] {
        let mut words = [
            u64::from(self.stored_len)
                | u64::from(self.original_len) << 16
                | u64::from(self.time_delta as u32) << 32,
            u64::from(self.payload_offset)
                | u64::from(self.payload_len) << 16
                | u64::from(self.vlan_tci) << 32
                | u64::from(self.l3_offset) << 48
                | u64::from(self.flags) << 56,
            u64::from(self.interface) | u64::from(self.queue) << 16,
        ];
        let fields = words[2];
        words[2] = fields | u64::from(crc) << 32;
        words[2] = fields | u64::from(crc32c_words(&words, false)) << 32;
        words
    }

    /// The same in bytes.
    pub fn to_bytes(&self, crc: u32) -> [u8; RECORD_HEADER_LEN] {
        bytes_of(&self.to_words(crc))
    }

    /// The CRC32C of the fields, followed by that of the packet.
    fn sum(b: &[u8], crc: u32) -> u32 {
        let mut summed = [0; RECORD_HEADER_LEN];
        summed.copy_from_slice(&b[..RECORD_HEADER_LEN]);
        put(&mut summed, RECORD_HEADER_LEN - 4, crc.to_le_bytes());
        crc32c(&summed)
    }

    /// Reads a header, whose checksum is not looked at before `matches`.
    pub fn read(b: &[u8]) -> Option<RecordHeader> {
        if b.len() < RECORD_HEADER_LEN {
            return None;
        }
        Some(RecordHeader {
            stored_len: u16_at(b, 0),
            original_len: u16_at(b, 2),
            time_delta: u32_at(b, 4) as i32,
            payload_offset: u16_at(b, 8),
            payload_len: u16_at(b, 10),
            vlan_tci: u16_at(b, 12),
            l3_offset: b[14],
            flags: b[15],
            interface: b[16],
            queue: u16_at(b, 18),
        })
    }

    /// Whether the checksum in the header's bytes is right, and the payload lies in the packet.
    pub fn matches(&self, b: &[u8], packet: &[u8]) -> bool {
        let crc = match self.flags & record_flags::UNCHECKED {
            0 => crc32c(packet),
            _ => 0,
        };
        let sum = RecordHeader::sum(b, crc);
        let payload = usize::from(self.payload_offset) + usize::from(self.payload_len);
        sum == u32_at(b, RECORD_HEADER_LEN - 4) && payload <= packet.len()
    }
}

/// The content of a segment's first slot.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct SegmentBody {
    pub set_id: u64,
    pub device: u16,
    pub lane: u16,
    /// The lane's lowest sequence number that was not completed when the segment was begun.
    pub lowest: u64,
    /// Generation of this lane's segment before; 0: none.
    pub previous: u64,
}

impl SegmentBody {
    pub fn to_bytes(&self) -> [u8; SEGMENT_LEN] {
        let mut b = [0; SEGMENT_LEN];
        put(&mut b, 0, self.set_id.to_le_bytes());
        put(&mut b, 8, self.device.to_le_bytes());
        put(&mut b, 10, self.lane.to_le_bytes());
        put(&mut b, 16, self.lowest.to_le_bytes());
        put(&mut b, 24, self.previous.to_le_bytes());
        seal(&mut b, 0, SEGMENT_LEN - 4);
        b
    }

    pub fn read(b: &[u8]) -> Option<SegmentBody> {
        is_sealed(b, 0, SEGMENT_LEN - 4).then(|| SegmentBody {
            set_id: u64_at(b, 0),
            device: u16_at(b, 8),
            lane: u16_at(b, 10),
            lowest: u64_at(b, 16),
            previous: u64_at(b, 24),
        })
    }
}

/// Packets that are not in the log, for one cause.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct LossEntry {
    pub cause: u16,
    pub packets: u64,
    /// When this was noticed, and until when it had not been; ns since 1970-01-01 UTC.
    pub from: u64,
    pub to: u64,
}

impl LossEntry {
    /// The content of a unit of kind `LOSS`: at most 16 entries.
    pub fn body(entries: &[LossEntry]) -> Vec<u8> {
        let entries = &entries[..entries.len().min(MAX_LOSSES)];
        let mut b = vec![0; 8 + entries.len() * LOSS_LEN];
        for (place, entry) in entries.iter().enumerate() {
            let b = &mut b[8 + place * LOSS_LEN..];
            put(b, 0, entry.cause.to_le_bytes());
            put(b, 8, entry.packets.to_le_bytes());
            put(b, 16, entry.from.to_le_bytes());
            put(b, 24, entry.to.to_le_bytes());
        }
        let sum = crc32c(&b[8..]);
        put(&mut b, 0, (entries.len() as u32).to_le_bytes());
        put(&mut b, 4, sum.to_le_bytes());
        b
    }

    /// `None`: there are none, or they are damaged.
    pub fn read(b: &[u8]) -> Option<Vec<LossEntry>> {
        let count = u32_at(b, 0) as usize;
        if !(1..=MAX_LOSSES).contains(&count) {
            return None;
        }
        let entries = b.get(8..8 + count * LOSS_LEN)?;
        if crc32c(entries) != u32_at(b, 4) {
            return None;
        }
        let entry = |b: &[u8]| LossEntry {
            cause: u16_at(b, 0),
            packets: u64_at(b, 8),
            from: u64_at(b, 16),
            to: u64_at(b, 24),
        };
        Some(entries.chunks_exact(LOSS_LEN).map(entry).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_are_read_as_they_were_written() {
        let slot = SlotHeader {
            kind: kind::PACKED,
            index: 2,
            slots: 3,
            generation: 77,
            slot: 14,
            tag: 0xdead_beef,
            first: 99,
        };
        assert_eq!(SlotHeader::read(&slot.to_bytes()), Some(slot));
        let unit = UnitHeader {
            first_sequence: 5,
            base_time: 6,
            records: 7,
            bytes: 8,
            lane: 9,
            data_offset: 10,
        };
        let head = SlotHeader { index: 0, ..slot };
        let first = unit.to_bytes(&head);
        assert_eq!(SlotHeader::read(&first), Some(head));
        assert_eq!(UnitHeader::read(&first), Some(unit));
        let record = RecordHeader {
            stored_len: 100,
            original_len: 1500,
            time_delta: -3,
            payload_offset: 42,
            payload_len: 58,
            vlan_tci: 7,
            l3_offset: 14,
            flags: record_flags::VLAN | record_flags::IPV6,
            interface: 3,
            queue: 300,
        };
        let packet = [9; 100];
        let bytes = record.to_bytes(crc32c(&packet));
        assert_eq!(RecordHeader::read(&bytes), Some(record));
        assert!(record.matches(&bytes, &packet));
        assert!(!record.matches(&bytes, &[8; 100]));
        assert!(!record.matches(&bytes, &packet[..99]));
        let body = SegmentBody {
            set_id: 1,
            device: 2,
            lane: 3,
            lowest: 4,
            previous: 5,
        };
        assert_eq!(SegmentBody::read(&body.to_bytes()), Some(body));
        let losses = [1, 2].map(|cause| LossEntry {
            cause,
            packets: 10,
            from: 20,
            to: 30,
        });
        assert_eq!(LossEntry::read(&LossEntry::body(&losses)).unwrap(), losses);
        for at in 0..SLOT_HEADER_LEN {
            let mut bad = slot.to_bytes();
            bad[at] ^= 1;
            assert!(SlotHeader::read(&bad).is_none(), "byte {at}");
        }
        for at in 0..CONTENT {
            let mut bad = first;
            bad[at] ^= 1;
            assert!(SlotHeader::read(&bad).is_none(), "byte {at}");
        }
    }
}
