//! The lanes of a log: what the header of a segment says about all of them, and where each of them ends.

#![forbid(unsafe_code)]

use super::scan::{each_unit, first_slots, in_flight_segments, newest_segment};
use super::superblock::Superblock;
use super::unit::{CONTENT, SEGMENT_LEN, SlotHeader, kind};
use crate::bytes::{put, u16_at, u32_at, u64_at};
use crate::error::Result;
use crate::sys::crc::crc32c;

/// Most lanes of a log.
pub const MOST_LANES: usize = 64;
/// Bytes before the marks, and of a mark.
const TABLE_HEADER: usize = 8;
const MARK_LEN: usize = 16;

/// What is known of a lane when a segment is begun.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct LaneMark {
    /// Its next sequence number, or a lower one.
    pub next: u64,
    /// Generation of its newest segment on this device; 0: none.
    pub segment: u64,
}

/// What follows the body of a segment's first slot: a mark of each lane. Nothing without marks.
pub fn table_bytes(marks: &[LaneMark]) -> Vec<u8> {
    if marks.is_empty() {
        return Vec::new();
    }
    let marks = &marks[..marks.len().min(MOST_LANES)];
    let mut b = vec![0; TABLE_HEADER + marks.len() * MARK_LEN];
    put(&mut b, 4, (marks.len() as u16).to_le_bytes());
    for (place, mark) in marks.iter().enumerate() {
        let at = TABLE_HEADER + place * MARK_LEN;
        put(&mut b, at, mark.next.to_le_bytes());
        put(&mut b, at + 8, mark.segment.to_le_bytes());
    }
    let sum = crc32c(&b[4..]);
    put(&mut b, 0, sum.to_le_bytes());
    b
}

/// Bytes of a segment's first slot that its header takes, with the marks of so many lanes.
pub fn header_len(lanes: usize) -> usize {
    CONTENT + SEGMENT_LEN + TABLE_HEADER + lanes * MARK_LEN
}

/// Reads the marks out of a segment's first slot. `None`: there are none, or they are damaged.
pub fn read_table(slot: &[u8]) -> Option<Vec<LaneMark>> {
    let b = slot.get(CONTENT + SEGMENT_LEN..)?;
    let count = usize::from(u16_at(b.get(..TABLE_HEADER)?, 4));
    let end = TABLE_HEADER + count * MARK_LEN;
    if count == 0 || count > MOST_LANES || crc32c(b.get(4..end)?) != u32_at(b, 0) {
        return None;
    }
    let marks = b[TABLE_HEADER..end].chunks_exact(MARK_LEN);
    let mark = |b: &[u8]| LaneMark {
        next: u64_at(b, 0),
        segment: u64_at(b, 8),
    };
    Some(marks.map(mark).collect())
}

/// The end of a log of several lanes, or of one of several devices.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct LaneEnds {
    /// Generation of the newest segment; 0: none.
    pub newest: u64,
    /// Of each lane: the sequence number after its newest packet on this device, and its newest segment.
    pub lanes: Vec<LaneMark>,
}

/// The first slot of the segment of a generation, if that is still there.
fn header_of(
    log: &Superblock,
    generation: u64,
    read: &mut impl FnMut(u64, u64) -> Result<Vec<Vec<u8>>>,
) -> Result<Option<Vec<u8>>> {
    let slot = first_slots(log, generation, 1, read)?.pop();
    Ok(slot.filter(|slot| {
        SlotHeader::read(slot).is_some_and(|header| {
            header.tag == log.tag()
                && header.kind == kind::SEGMENT
                && (header.generation, header.slot) == (generation, 0)
        })
    }))
}

/// Finds the ends of all lanes. `read` as for `find_end`.
pub fn find_lanes(
    log: &Superblock,
    read: &mut impl FnMut(u64, u64) -> Result<Vec<Vec<u8>>>,
) -> Result<LaneEnds> {
    let lanes = usize::from(log.lanes).clamp(1, MOST_LANES);
    // Each lane may have begun segments of which nothing was written.
    let patience = in_flight_segments(log) * lanes as u64;
    let newest = newest_segment(log, patience.min(log.segments), read)?;
    let mut ends = LaneEnds {
        newest,
        lanes: vec![LaneMark::default(); lanes],
    };
    let mut look_at = Vec::new();
    for generation in (log.oldest(newest)..=newest).rev() {
        // Those after the newest marks, and with them the segments that the marks name.
        look_at.push(generation);
        let header = header_of(log, generation, read)?;
        if let Some(marks) = header.as_deref().and_then(read_table) {
            for (end, mark) in ends.lanes.iter_mut().zip(marks) {
                *end = mark;
                look_at.push(mark.segment);
            }
            break;
        }
    }
    look_at.sort_unstable();
    look_at.dedup();
    for generation in look_at.into_iter().filter(|generation| *generation > 0) {
        each_unit(log, generation, read, |unit| {
            if let Some(end) = ends.lanes.get_mut(usize::from(unit.lane)) {
                let after = unit.first_sequence.saturating_add(unit.records.into());
                end.next = end.next.max(after);
                end.segment = end.segment.max(generation);
            }
        })?;
    }
    Ok(ends)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::unit_log::unit::{SegmentBody, UnitHeader};
    use proptest::prelude::*;

    const SLOTS: u32 = 16;
    const SLOT: usize = 2048;

    fn log(segments: u64, lanes: u16) -> Superblock {
        let log = Superblock::new(5, 1, 512, SLOT as u32, 0, 1 << 20, true).unwrap();
        Superblock {
            lanes,
            segments,
            segment_slots: SLOTS,
            ..log
        }
    }

    /// A device to which lanes write, as a recorder does.
    struct Writer {
        log: Superblock,
        slots: Vec<Vec<u8>>,
        newest: u64,
        marks: Vec<LaneMark>,
        /// Of each lane: its segment, and the next slot in it.
        open: Vec<(u64, u32)>,
        next: Vec<u64>,
    }

    impl Writer {
        fn new(log: Superblock) -> Writer {
            let lanes = usize::from(log.lanes);
            Writer {
                log,
                slots: vec![vec![0; SLOT]; log.slots() as usize],
                newest: 0,
                marks: vec![LaneMark::default(); lanes],
                open: vec![(0, SLOTS); lanes],
                next: vec![0; lanes],
            }
        }

        fn put(&mut self, generation: u64, slot: u32, kind: u8, unit: UnitHeader, body: &[u8]) {
            let header = SlotHeader {
                kind,
                slots: 1,
                generation,
                slot,
                tag: self.log.tag(),
                ..SlotHeader::default()
            };
            let bytes = &mut self.slots[self.log.slot_of(generation, slot) as usize];
            bytes.fill(0);
            bytes[..CONTENT].copy_from_slice(&unit.to_bytes(&header));
            bytes[CONTENT..CONTENT + body.len()].copy_from_slice(body);
        }

        /// A packet of a lane.
        fn write(&mut self, lane: usize) {
            if self.open[lane].1 == SLOTS {
                self.newest += 1;
                let place = |generation: u64| (generation - 1) % self.log.segments;
                while (0..self.open.len()).any(|other| {
                    let (generation, slot) = self.open[other];
                    other != lane
                        && slot < SLOTS
                        && generation > 0
                        && place(generation) == place(self.newest)
                }) {
                    self.newest += 1;
                }
                self.open[lane] = (self.newest, 1);
                self.marks[lane] = LaneMark {
                    next: self.next[lane],
                    segment: self.newest,
                };
                let body = SegmentBody {
                    lane: lane as u16,
                    ..SegmentBody::default()
                };
                let body = [&body.to_bytes()[..], &table_bytes(&self.marks)].concat();
                let unit = UnitHeader {
                    first_sequence: self.next[lane],
                    lane: lane as u16,
                    ..UnitHeader::default()
                };
                self.put(self.newest, 0, kind::SEGMENT, unit, &body);
            }
            let (generation, slot) = self.open[lane];
            let unit = UnitHeader {
                first_sequence: self.next[lane],
                records: 1,
                lane: lane as u16,
                ..UnitHeader::default()
            };
            self.put(generation, slot, kind::PACKET, unit, &[]);
            self.open[lane].1 += 1;
            self.next[lane] += 1;
        }

        fn ends(&self, log: &Superblock) -> LaneEnds {
            let mut reads = 0;
            find_lanes(log, &mut |slot, count| {
                reads += 1;
                assert!(reads < 4000, "bounded by the segments");
                Ok(self.slots[slot as usize..(slot + count) as usize].to_vec())
            })
            .unwrap()
        }
    }

    #[test]
    fn marks_are_read_as_they_were_written() {
        let marks: Vec<LaneMark> = (0..64)
            .map(|n| LaneMark {
                next: n * 1000,
                segment: n,
            })
            .collect();
        assert!(header_len(marks.len()) <= SLOT);
        let mut slot = vec![0; SLOT];
        let bytes = table_bytes(&marks);
        let at = CONTENT + SEGMENT_LEN;
        slot[at..at + bytes.len()].copy_from_slice(&bytes);
        assert_eq!(read_table(&slot), Some(marks));
        for byte in 0..bytes.len() {
            let mut bad = slot.clone();
            bad[at + byte] ^= 1;
            assert_eq!(read_table(&bad), None, "byte {byte}");
        }
        assert_eq!(read_table(&[0; SLOT]), None);
        assert_eq!(read_table(&slot[..at + 20]), None);
    }

    #[test]
    fn a_lane_that_has_long_been_quiet_keeps_its_number() {
        let mut device = Writer::new(log(8, 3));
        for _ in 0..5 {
            device.write(2);
        }
        for _ in 0..1000 {
            device.write(0);
        }
        // Its open segment was left out, and is still there.
        let ends = device.ends(&device.log);
        let next: Vec<u64> = ends.lanes.iter().map(|lane| lane.next).collect();
        assert_eq!((next, ends.newest), (vec![1000, 0, 5], device.newest));
        assert_eq!(ends.lanes[2].segment, 1);
    }

    proptest! {
        #[test]
        fn every_lane_ends_where_it_was_left(
            writes in prop::collection::vec(0usize..4, 0..600), known in 0u64..4, segments in 6u64..20,
            lost in prop::collection::vec(any::<bool>(), 3),
        ) {
            let mut device = Writer::new(log(segments, 4));
            for lane in writes {
                device.write(lane);
            }
            let log = Superblock { newest: device.newest.saturating_sub(known), ..device.log };
            // Headers of the newest segments may be lost: the marks of one before serve as well.
            for (generation, lost) in (1..=device.newest).rev().zip(lost) {
                let open = device.open.iter().any(|(of, slot)| *of == generation && *slot > 1);
                if lost && open {
                    device.slots[log.slot_of(generation, 0) as usize].fill(0);
                }
            }
            let ends = device.ends(&log);
            let next: Vec<u64> = ends.lanes.iter().map(|lane| lane.next).collect();
            prop_assert_eq!(next, device.next);
            prop_assert_eq!(ends.newest, device.newest);
        }

        #[test]
        fn no_bytes_make_it_fall_over(bytes in prop::collection::vec(any::<u8>(), 0..200), count in any::<u16>()) {
            let mut slot = vec![0; CONTENT + SEGMENT_LEN];
            slot.extend(&bytes);
            if bytes.len() > 8 {
                let at = CONTENT + SEGMENT_LEN;
                slot[at + 4..at + 6].copy_from_slice(&count.to_le_bytes());
            }
            let _ = read_table(&slot);
        }
    }
}
