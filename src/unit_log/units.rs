//! One unit, out of its slots.

#![forbid(unsafe_code)]

use std::ops::Range;

use super::superblock::Superblock;
use super::unit::{
    CONTENT, RECORD_HEADER_LEN, RecordHeader, SLOT_HEADER_LEN, SlotHeader, UnitHeader, kind,
    record_flags,
};

/// Why there is no unit in a slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Flaw {
    /// Nothing was written there in this segment's generation.
    Absent,
    /// Something was, and it is damaged or incomplete.
    Damaged,
    /// The segment has a newer generation: the recorder has overtaken the reader.
    Newer(u64),
}

/// The place of a unit, and what its headers say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Unit {
    pub kind: u8,
    pub slots: u32,
    pub header: UnitHeader,
}

impl Unit {
    /// Reads the headers of the unit that begins in a slot of a segment. `bytes`: that slot and those after it, as many as
    /// there are up to the segment's end or more than a unit can have.
    pub fn read(
        log: &Superblock,
        generation: u64,
        slot: u32,
        bytes: &[u8],
    ) -> std::result::Result<Unit, Flaw> {
        let size = log.slot_size as usize;
        let header_of = |place: usize| {
            let slot = bytes.get(place * size..(place + 1) * size)?;
            SlotHeader::read(slot).filter(|header| header.tag == log.tag())
        };
        let Some(first) = header_of(0) else {
            // Not even a header of an earlier lap, or of what was there before.
            let blank = bytes.iter().take(SLOT_HEADER_LEN).all(|byte| *byte == 0);
            return Err(if blank { Flaw::Absent } else { Flaw::Damaged });
        };
        if first.generation > generation && first.slot == slot {
            return Err(Flaw::Newer(first.generation));
        }
        if first.generation != generation || first.slot != slot {
            return Err(Flaw::Absent);
        }
        if first.index != 0 || slot + u32::from(first.slots) > log.segment_slots {
            return Err(Flaw::Damaged);
        }
        for place in 1..first.slots {
            let expected = SlotHeader {
                index: place,
                slot: slot + u32::from(place),
                first: 0,
                ..first
            };
            let found = header_of(place.into()).map(|header| SlotHeader { first: 0, ..header });
            if found != Some(expected) {
                return Err(Flaw::Damaged);
            }
        }
        let header = UnitHeader::read(bytes).ok_or(Flaw::Damaged)?;
        Ok(Unit {
            kind: first.kind,
            slots: first.slots.into(),
            header,
        })
    }

    /// Whether it is of a kind that holds packets.
    pub fn has_packets(&self) -> bool {
        matches!(self.kind, kind::PACKET | kind::PACKED)
    }

    /// The content of a unit without packets: what follows the headers of its first slot.
    pub fn body<'a>(&self, log: &Superblock, bytes: &'a [u8]) -> &'a [u8] {
        bytes
            .get(CONTENT..log.slot_size as usize)
            .unwrap_or_default()
    }

    /// Takes the records out of the unit: appends each header, and the place of its packet in `stream`, which is filled
    /// anew. Fewer than the header says if one is damaged: those after it cannot be found.
    pub fn records(
        &self,
        log: &Superblock,
        bytes: &[u8],
        stream: &mut Vec<u8>,
        records: &mut Vec<(RecordHeader, Range<usize>)>,
    ) {
        let size = log.slot_size as usize;
        stream.clear();
        records.clear();
        let Some(bytes) = bytes.get(..self.slots as usize * size) else {
            return;
        };
        match self.kind {
            kind::PACKET => {
                let at = usize::from(self.header.data_offset);
                let head = &bytes[CONTENT..CONTENT + RECORD_HEADER_LEN];
                let Some(record) = RecordHeader::read(head) else {
                    return;
                };
                let packet = bytes.get(at..at + usize::from(record.stored_len));
                let Some(packet) = packet.filter(|_| at >= CONTENT + RECORD_HEADER_LEN) else {
                    return;
                };
                if self.header.records == 1 && record.matches(head, packet) {
                    stream.extend_from_slice(packet);
                    records.push((record, 0..packet.len()));
                }
            }
            kind::PACKED => {
                for (place, slot) in bytes.chunks_exact(size).enumerate() {
                    let from = if place == 0 { CONTENT } else { SLOT_HEADER_LEN };
                    stream.extend_from_slice(&slot[from..]);
                }
                stream.truncate(self.header.bytes as usize);
                let mut at = 0;
                for _ in 0..self.header.records {
                    let head = stream.get(at..at + RECORD_HEADER_LEN);
                    let Some((head, record)) = head.zip(head.and_then(RecordHeader::read)) else {
                        return;
                    };
                    let time = match record.flags & record_flags::HARDWARE_TIME {
                        0 => 0,
                        _ => 8,
                    };
                    let begin = at + RECORD_HEADER_LEN + time;
                    let end = begin + usize::from(record.stored_len);
                    let Some(packet) = stream.get(begin..end) else {
                        return;
                    };
                    if !record.matches(head, packet) {
                        return;
                    }
                    records.push((record, begin..end));
                    at = end;
                }
            }
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::crc::crc32c;
    use crate::unit_log::unit::{MAX_UNIT_SLOTS, UNIT_HEADER_LEN};
    use proptest::prelude::*;

    fn log() -> Superblock {
        Superblock::new(77, 1, 512, 512, 0, 1026, true).unwrap()
    }

    /// Packs packets by the description in docs/record-format.md.
    pub fn packed(log: &Superblock, generation: u64, slot: u32, packets: &[Vec<u8>]) -> Vec<u8> {
        let mut stream = Vec::new();
        for packet in packets {
            let record = RecordHeader {
                stored_len: packet.len() as u16,
                original_len: packet.len() as u16,
                ..RecordHeader::default()
            };
            stream.extend_from_slice(&record.to_bytes(crc32c(packet)));
            stream.extend_from_slice(packet);
        }
        let size = log.slot_size as usize;
        let bytes = stream.len();
        let slots = (bytes + UNIT_HEADER_LEN).div_ceil(size - SLOT_HEADER_LEN);
        let mut out = Vec::new();
        for index in 0..slots {
            let header = SlotHeader {
                kind: kind::PACKED,
                index: index as u8,
                slots: slots as u8,
                generation,
                slot: slot + index as u32,
                tag: log.tag(),
                first: 0,
            };
            if index > 0 {
                out.extend_from_slice(&header.to_bytes());
            } else {
                let unit = UnitHeader {
                    first_sequence: 10,
                    base_time: 1000,
                    records: packets.len() as u32,
                    bytes: bytes as u32,
                    lane: 0,
                    data_offset: CONTENT as u16,
                };
                out.extend_from_slice(&unit.to_bytes(&header));
            }
            let room = (index + 1) * size - out.len();
            let part: Vec<u8> = stream.drain(..room.min(stream.len())).collect();
            out.extend_from_slice(&part);
            out.resize((index + 1) * size, 0);
        }
        out
    }

    fn packets_in(log: &Superblock, unit: &Unit, bytes: &[u8]) -> Vec<Vec<u8>> {
        let (mut stream, mut records) = (Vec::new(), Vec::new());
        unit.records(log, bytes, &mut stream, &mut records);
        records
            .iter()
            .map(|(_, at)| stream[at.clone()].to_vec())
            .collect()
    }

    proptest! {
        #[test]
        fn packets_come_out_as_they_went_in(lengths in prop::collection::vec(0usize..700, 1..12), byte in any::<u8>()) {
            let log = log();
            let mut room = MAX_UNIT_SLOTS * (512 - SLOT_HEADER_LEN) - UNIT_HEADER_LEN;
            let packets: Vec<Vec<u8>> = lengths.iter().enumerate().map_while(|(i, len)| {
                room = room.checked_sub(len + RECORD_HEADER_LEN)?;
                Some(vec![byte ^ i as u8; *len])
            }).collect();
            let bytes = packed(&log, 5, 3, &packets);
            let unit = Unit::read(&log, 5, 3, &bytes).unwrap();
            prop_assert_eq!(packets_in(&log, &unit, &bytes), packets);
        }

        #[test]
        fn a_changed_byte_is_never_taken_for_a_packet(at in 0usize..4096, bit in 0u8..8) {
            let log = log();
            let packets: Vec<Vec<u8>> = (0..9u8).map(|i| vec![i + 1; 400]).collect();
            let mut bytes = packed(&log, 5, 3, &packets);
            bytes[at] ^= 1 << bit;
            if let Ok(unit) = Unit::read(&log, 5, 3, &bytes) {
                let found = packets_in(&log, &unit, &bytes);
                prop_assert!(packets.starts_with(&found));
            }
        }

        #[test]
        fn no_bytes_make_the_reader_fall_over(
            records in any::<u32>(), length in any::<u32>(), offset in any::<u16>(), kind in 0u8..9, slots in 1u8..9,
            content in prop::collection::vec(any::<u8>(), 512..4096),
        ) {
            let log = log();
            let mut bytes = content;
            let header = SlotHeader { kind, index: 0, slots, generation: 1, slot: 0, tag: log.tag(), first: 0 };
            let unit = UnitHeader { records, bytes: length, data_offset: offset, ..UnitHeader::default() };
            bytes[..CONTENT].copy_from_slice(&unit.to_bytes(&header));
            for place in 1..usize::from(slots) {
                let header = SlotHeader { index: place as u8, slot: place as u32, ..header };
                if let Some(slot) = bytes.get_mut(place * 512..place * 512 + SLOT_HEADER_LEN) {
                    slot.copy_from_slice(&header.to_bytes());
                }
            }
            if let Ok(unit) = Unit::read(&log, 1, 0, &bytes) {
                packets_in(&log, &unit, &bytes);
                unit.body(&log, &bytes);
            }
        }
    }

    #[test]
    fn what_is_not_this_unit_is_told_apart() {
        let log = log();
        let bytes = packed(&log, 5, 3, &[vec![1; 600]]);
        assert_eq!(Unit::read(&log, 5, 3, &bytes).unwrap().slots, 2);
        assert_eq!(Unit::read(&log, 5, 4, &bytes), Err(Flaw::Absent));
        assert_eq!(
            Unit::read(&log, 6, 3, &bytes),
            Err(Flaw::Absent),
            "of an earlier lap"
        );
        assert_eq!(Unit::read(&log, 4, 3, &bytes), Err(Flaw::Newer(5)));
        assert_eq!(
            Unit::read(&log, 5, 4, &bytes[512..]),
            Err(Flaw::Damaged),
            "its middle"
        );
        assert_eq!(Unit::read(&log, 5, 3, &bytes[..512]), Err(Flaw::Damaged));
        assert_eq!(Unit::read(&log, 5, 3, &[0; 512]), Err(Flaw::Absent));
        assert_eq!(Unit::read(&log, 5, 3, &[]), Err(Flaw::Absent));
        let other = Superblock { set_id: 78, ..log };
        assert_eq!(Unit::read(&other, 5, 3, &bytes), Err(Flaw::Damaged));
        let mut torn = bytes.clone();
        torn[512..].fill(0);
        assert_eq!(Unit::read(&log, 5, 3, &torn), Err(Flaw::Damaged));
    }

    #[test]
    fn a_payload_cannot_pass_for_a_slot() {
        // It holds whole units, and may lie anywhere but at a slot's start.
        let log = log();
        let inner = packed(&log, 5, 4, &[vec![7; 100]]);
        let bytes = packed(&log, 5, 3, &[inner.clone(), inner]);
        let unit = Unit::read(&log, 5, 3, &bytes).unwrap();
        assert_eq!(packets_in(&log, &unit, &bytes).len(), 2);
        for slot in 1..unit.slots {
            let at = slot as usize * 512;
            assert_eq!(
                Unit::read(&log, 5, 3 + slot, &bytes[at..]),
                Err(Flaw::Damaged)
            );
        }
    }
}
