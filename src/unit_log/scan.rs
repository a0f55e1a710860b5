//! Where a log ends, and what of it is in the spill.

#![forbid(unsafe_code)]

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use super::superblock::Superblock;
use super::unit::{SlotHeader, UnitHeader};
use super::units::Unit;
use crate::error::{Error, Result};

/// Slots that a recorder has in flight at most. A crash may lose all of them but the newest.
const IN_FLIGHT: u64 = 65536;
/// Slots read at once.
const BATCH: u64 = 64;

/// The end of a log.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct End {
    /// The newest segment that was begun; 0: none.
    pub newest_generation: u64,
    /// The sequence number after the newest packet.
    pub next_sequence: u64,
}

/// The generation of the segment of which these are the first slots, if it is `least` or newer.
fn generation_of(log: &Superblock, slots: &[Vec<u8>], least: u64) -> Option<u64> {
    let found = slots.iter().filter_map(|slot| SlotHeader::read(slot));
    let here = |header: &SlotHeader| {
        header.tag == log.tag()
            && header.generation >= least
            && (header.generation - least).is_multiple_of(log.segments)
    };
    found.filter(here).map(|header| header.generation).max()
}

/// Segments that a lane has in flight at most.
pub(super) fn in_flight_segments(log: &Superblock) -> u64 {
    IN_FLIGHT / u64::from(log.segment_slots) + 1
}

/// Generation of the newest segment that was begun; 0: none. So many in a row may be lost.
pub(super) fn newest_segment(
    log: &Superblock,
    patience: u64,
    read: &mut impl FnMut(u64, u64) -> Result<Vec<Vec<u8>>>,
) -> Result<u64> {
    let batch = BATCH.min(log.segment_slots.into());
    let mut newest = 0;
    let mut at = log.newest.max(1);
    let mut last = at + patience;
    while at < last {
        let slots = first_slots(log, at, batch, read)?;
        if let Some(found) = generation_of(log, &slots, at) {
            // The log may have come round since the superblock was written: then this segment is of a later lap.
            newest = found;
            at = found;
            last = at + patience;
        }
        at += 1;
    }
    // Or nothing was written since the superblock.
    Ok(if newest == 0 { log.newest } else { newest })
}

/// Finds the end. `read` returns that many slots from a slot of the range on; it is never asked to go past the last slot,
/// and may return fewer, but at least one.
pub fn find_end(
    log: &Superblock,
    mut read: impl FnMut(u64, u64) -> Result<Vec<Vec<u8>>>,
) -> Result<End> {
    let patience = in_flight_segments(log).min(log.segments);
    let newest = newest_segment(log, patience, &mut read)?;
    let mut end = End {
        newest_generation: newest,
        next_sequence: 0,
    };
    // The newest segments may be empty, or lost.
    let oldest = log
        .oldest(newest)
        .max((newest + 1).saturating_sub(patience + 1))
        .max(1);
    for generation in (oldest..=newest).rev() {
        if let Some(next) = end_of_segment(log, generation, &mut read)? {
            end.next_sequence = next;
            break;
        }
    }
    Ok(end)
}

/// The first `count` slots of a segment, or as many as can be read.
pub(super) fn first_slots(
    log: &Superblock,
    generation: u64,
    count: u64,
    read: &mut impl FnMut(u64, u64) -> Result<Vec<Vec<u8>>>,
) -> Result<Vec<Vec<u8>>> {
    let mut slots = Vec::new();
    while (slots.len() as u64) < count {
        let got = slots.len() as u64;
        let more = read(log.slot_of(generation, 0) + got, count - got)?;
        if more.is_empty() {
            break;
        }
        slots.extend(more);
    }
    Ok(slots)
}

/// The sequence number after the last packet of a segment; `None` if it has no unit.
fn end_of_segment(
    log: &Superblock,
    generation: u64,
    read: &mut impl FnMut(u64, u64) -> Result<Vec<Vec<u8>>>,
) -> Result<Option<u64>> {
    let mut next = None;
    each_unit(log, generation, read, |unit| {
        let after = unit.first_sequence.saturating_add(unit.records.into());
        next = next.max(Some(after));
    })?;
    Ok(next)
}

/// Looks at all units of a segment.
pub(super) fn each_unit(
    log: &Superblock,
    generation: u64,
    read: &mut impl FnMut(u64, u64) -> Result<Vec<Vec<u8>>>,
    mut each: impl FnMut(&UnitHeader),
) -> Result<()> {
    let mut slot = 0;
    while slot < log.segment_slots {
        let count = BATCH.min((log.segment_slots - slot).into());
        let slots = read(log.slot_of(generation, slot), count)?;
        if slots.is_empty() {
            break;
        }
        for (place, bytes) in slots.iter().enumerate() {
            let here = slot + place as u32;
            let header = SlotHeader::read(bytes).filter(|header| {
                header.tag == log.tag()
                    && (header.generation, header.slot, header.index) == (generation, here, 0)
            });
            if let Some(unit) = header.and_then(|_| UnitHeader::read(bytes)) {
                each(&unit);
            }
        }
        slot += slots.len() as u32;
    }
    Ok(())
}

impl Superblock {
    /// Takes slots that are missing on the device from the spill, where they have the same place. `first`: the number of
    /// the first slot in the range; `generation`: of its segment.
    pub fn mend<'a>(
        &self,
        spill: &File,
        first: u64,
        slots: impl Iterator<Item = &'a mut [u8]>,
    ) -> Result<()> {
        let mut other = vec![0; self.slot_size as usize];
        let header = |slot: &[u8]| SlotHeader::read(slot).filter(|h| h.tag == self.tag());
        for (number, slot) in (first..).zip(slots) {
            let at =
                self.start_lba * u64::from(self.block_size) + number * u64::from(self.slot_size);
            match spill.read_exact_at(&mut other, at) {
                Ok(()) => {}
                Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => continue,
                Err(e) => return Err(Error::os(&e, "reading the spill")),
            }
            // The newer one counts: a slot that the device failed still holds what was there a lap before.
            let spilled =
                header(&other).filter(|found| self.slot_of(found.generation, found.slot) == number);
            if let Some(spilled) = spilled
                && header(slot).is_none_or(|here| here.generation < spilled.generation)
            {
                slot.copy_from_slice(&other);
            }
        }
        Ok(())
    }
}

/// Whether a unit of this generation begins in one of these slots, the first of which is `slot` of its segment.
pub fn has_unit(log: &Superblock, generation: u64, slot: u32, bytes: &[u8]) -> bool {
    let size = log.slot_size as usize;
    (0..bytes.len() / size).any(|place| {
        Unit::read(log, generation, slot + place as u32, &bytes[place * size..]).is_ok()
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::unit_log::unit::{CONTENT, kind};
    use proptest::prelude::*;

    const SLOTS: u32 = 16;

    fn log(newest: u64) -> Superblock {
        let log = Superblock::new(5, 1, 512, 512, 0, 2 + 6 * u64::from(SLOTS), true).unwrap();
        assert_eq!((log.segment_slots, log.segments), (SLOTS, 6));
        Superblock { newest, ..log }
    }

    /// A device on which units of one slot and one packet were written, the later ones over the earlier ones.
    fn device(log: &Superblock, units: impl Iterator<Item = (u64, u32, u64)>) -> Vec<Vec<u8>> {
        let mut slots = vec![vec![0; 512]; log.slots() as usize];
        for (generation, slot, sequence) in units {
            let header = SlotHeader {
                kind: if slot == 0 {
                    kind::SEGMENT
                } else {
                    kind::PACKET
                },
                slots: 1,
                generation,
                slot,
                tag: log.tag(),
                ..SlotHeader::default()
            };
            let unit = UnitHeader {
                first_sequence: sequence,
                records: u32::from(slot > 0),
                ..UnitHeader::default()
            };
            let bytes = &mut slots[log.slot_of(generation, slot) as usize];
            bytes[..CONTENT].copy_from_slice(&unit.to_bytes(&header));
        }
        slots
    }

    /// The first `count` slots that a recorder writes: generation, slot, sequence number.
    fn written(count: u64) -> impl Iterator<Item = (u64, u32, u64)> {
        (0..count).map(|number| {
            let (segment, slot) = (number / u64::from(SLOTS), number % u64::from(SLOTS));
            (
                segment + 1,
                slot as u32,
                segment * u64::from(SLOTS - 1) + slot.max(1) - 1,
            )
        })
    }

    fn end(log: &Superblock, slots: &[Vec<u8>]) -> (u64, u64) {
        let mut reads = 0;
        let end = find_end(log, |slot, count| {
            reads += 1;
            assert!(reads < 200, "bounded by the segments");
            Ok(slots[slot as usize..(slot + count) as usize].to_vec())
        })
        .unwrap();
        (end.newest_generation, end.next_sequence)
    }

    #[test]
    fn the_end_is_after_the_newest_unit() {
        let log = log(0);
        assert_eq!(end(&log, &device(&log, std::iter::empty())), (0, 0));
        assert_eq!(end(&log, &device(&log, written(1))), (1, 0));
        assert_eq!(end(&log, &device(&log, written(10))), (1, 9));
        assert_eq!(end(&log, &device(&log, written(16))), (1, 15));
        assert_eq!(end(&log, &device(&log, written(17))), (2, 15));
        assert_eq!(end(&log, &device(&log, written(500))), (32, 31 * 15 + 3));
        // A segment's header is lost, and so is a whole segment.
        let holes = written(60).filter(|(generation, slot, _)| *slot != 0 && *generation != 2);
        assert_eq!(end(&log, &device(&log, holes)), (4, 3 * 15 + 11));
        let foreign = Superblock { set_id: 6, ..log };
        assert_eq!(end(&foreign, &device(&log, written(60))), (0, 0));
    }

    proptest! {
        #[test]
        fn whatever_the_superblock_knew_the_end_is_found(count in 0u64..1000, behind in 0u64..5) {
            let newest = count.div_ceil(u64::from(SLOTS));
            let log = log(newest.saturating_sub(behind));
            let (expected, next) = match written(count).last() {
                Some((generation, 0, sequence)) => (generation, sequence),
                Some((generation, _, sequence)) => (generation, sequence + 1),
                None => (0, 0),
            };
            prop_assert_eq!(end(&log, &device(&log, written(count))), (expected, next));
        }
    }
}
