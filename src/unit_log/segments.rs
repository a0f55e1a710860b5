//! Which segment is in a place of the ring, out of its first slots.

#![forbid(unsafe_code)]

use super::lanes::{LaneMark, read_table};
use super::superblock::Superblock;
use super::unit::{CONTENT, SegmentBody, SlotHeader, UnitHeader, kind};

/// A segment as its header says, or, if that is lost, as its first readable unit does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Segment {
    pub generation: u64,
    pub lane: u16,
    /// No packet in the segment has a lower sequence number.
    pub first_sequence: u64,
    pub base_time: u64,
    /// The slot that says so; 0: it is the segment's header.
    pub slot: u32,
    /// It was begun for the lane's newest packets, as its header says: on this device, segments that were begun before and are
    /// in order too have lower sequence numbers only. Others are written with packets that another device did not store, perhaps
    /// long after they were begun.
    pub in_order: bool,
}

/// What the slots of a place say. Grows with every slot that is looked at.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Found {
    /// The newest generation of which there is a slot; 0: none.
    pub generation: u64,
    /// `None`: no unit of that generation begins in these slots.
    pub segment: Option<Segment>,
    /// The header belongs to another set, device or lane.
    pub foreign: bool,
}

impl Found {
    /// Looks at slots of the segment in `place` of the ring, the first of which has number `first`. Slots must be
    /// looked at in ascending order.
    pub fn look(&mut self, log: &Superblock, place: u64, first: u32, bytes: &[u8]) {
        let slots = bytes.chunks_exact(log.slot_size as usize);
        for (number, bytes) in (first..log.segment_slots).zip(slots) {
            let Some(header) = SlotHeader::read(bytes) else {
                continue;
            };
            let fits = header.tag == log.tag()
                && header.slot == number
                && log.place_of(header.generation) == place;
            if !fits || header.generation < self.generation {
                continue;
            }
            if header.generation > self.generation {
                *self = Found {
                    generation: header.generation,
                    ..Found::default()
                };
            }
            if header.index > 0 || self.segment.is_some() || self.foreign {
                continue;
            }
            let Some(unit) = UnitHeader::read(bytes) else {
                continue;
            };
            if header.kind == kind::SEGMENT
                && let Some(body) = SegmentBody::read(&bytes[CONTENT..])
                && (body.set_id, body.device, body.lane) != (log.set_id, log.device, unit.lane)
            {
                self.foreign = true;
                continue;
            }
            let of_lane = |marks: Vec<LaneMark>| marks.get(usize::from(unit.lane)).copied();
            let in_order = header.kind == kind::SEGMENT
                && read_table(bytes)
                    .and_then(of_lane)
                    .is_some_and(|mark| mark.next == unit.first_sequence);
            self.segment = Some(Segment {
                generation: header.generation,
                lane: unit.lane,
                first_sequence: unit.first_sequence,
                base_time: unit.base_time,
                slot: number,
                in_order,
            });
        }
    }
}

impl Superblock {
    /// Place in the ring of the segment with a generation, which is 1 or greater.
    pub fn place_of(&self, generation: u64) -> u64 {
        generation.wrapping_sub(1) % self.segments
    }

    /// The newest generation up to `newest` that belongs into a place; 0: none.
    pub fn newest_in(&self, place: u64, newest: u64) -> u64 {
        match newest.checked_sub(place + 1) {
            Some(after) => place + 1 + after / self.segments * self.segments,
            None => 0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn generations_that_belong_into_a_place() {
        let log = Superblock::new(5, 1, 512, 512, 0, 2 + 6 * 16, true).unwrap();
        for newest in 0..40 {
            for place in 0..log.segments {
                let expected = (1..=newest).rev().find(|g| log.place_of(*g) == place);
                assert_eq!(log.newest_in(place, newest), expected.unwrap_or(0));
            }
        }
    }

    #[test]
    fn the_newest_slots_say_what_the_segment_is() {
        let log = Superblock::new(5, 1, 512, 512, 0, 2 + 6 * 16, true).unwrap();
        let slot = |kind, generation, slot, lane, set_id| {
            let header = SlotHeader {
                kind,
                slots: 1,
                generation,
                slot,
                tag: log.tag(),
                ..SlotHeader::default()
            };
            let unit = UnitHeader {
                first_sequence: generation * 100,
                lane,
                ..UnitHeader::default()
            };
            let body = SegmentBody {
                set_id,
                lane,
                ..SegmentBody::default()
            };
            let mut bytes = vec![0; 512];
            bytes[..CONTENT].copy_from_slice(&unit.to_bytes(&header));
            bytes[CONTENT..CONTENT + 40].copy_from_slice(&body.to_bytes());
            bytes
        };
        let look = |place, slots: &[Vec<u8>]| {
            let mut found = Found::default();
            found.look(&log, place, 0, &slots.concat());
            found
        };
        let header = slot(kind::SEGMENT, 8, 0, 3, 5);
        let found = look(1, &[header.clone(), slot(kind::PACKED, 2, 1, 1, 5)]);
        let segment = found.segment.unwrap();
        assert_eq!(
            (segment.generation, segment.lane, segment.slot),
            (8, 3, 0),
            "the rest is of a lap before"
        );
        let found = look(1, &[header.clone(), slot(kind::PACKED, 14, 1, 1, 5)]);
        let segment = found.segment.unwrap();
        assert_eq!(
            (segment.generation, segment.lane, segment.slot),
            (14, 1, 1),
            "the header is not written yet, or lost"
        );
        assert_eq!(look(2, std::slice::from_ref(&header)), Found::default());
        assert!(look(1, &[slot(kind::SEGMENT, 8, 0, 3, 6)]).foreign);
        assert_eq!(look(1, &[vec![0; 512], header]), Found::default());
    }
}
