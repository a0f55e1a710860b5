//! Scanning a log: which superblock is valid, where the newest record is, which records are in the spill. For the recorder
//! and the reader.

#![forbid(unsafe_code)]

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use crate::error::{Error, Result};
use crate::record::{Header, Superblock, mark_unreadable};

/// After this many slots in a row without a record, nothing newer follows. More than can ever be in flight at once, so
/// a hole that a crash left is not taken for the end.
pub const HOLE: u64 = 4096;
/// Slots read at once when the log is opened.
pub const READ_BATCH: u64 = 64;

/// Whether `mark_unreadable` has marked it.
pub fn is_unreadable(slot: &[u8]) -> bool {
    let mut marked = vec![0; slot.len()];
    mark_unreadable(&mut marked);
    slot == marked
}

/// The valid copy with the higher generation.
pub fn newest_superblock<'a>(copies: impl Iterator<Item = &'a [u8]>) -> Option<Superblock> {
    copies
        .filter_map(Superblock::read)
        .max_by_key(|superblock| superblock.generation)
}

/// Takes the records from `first` on that are missing on the device from the spill.
pub fn mend<'a>(
    spill: &File,
    log: &Superblock,
    first: u64,
    slots: impl Iterator<Item = &'a mut [u8]>,
) -> Result<()> {
    let mut other = vec![0; log.slot_size as usize];
    for (sequence, slot) in (first..).zip(slots) {
        let is_it = |slot: &[u8]| {
            Header::read(slot, log.log_id).is_ok_and(|header| header.sequence == sequence)
        };
        if is_it(slot) {
            continue;
        }
        match spill.read_exact_at(&mut other, log.offset_of(sequence)) {
            Ok(()) if is_it(&other) => slot.copy_from_slice(&other),
            Ok(()) => {}
            Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => {}
            Err(e) => return Err(Error::os(&e, "reading the spill")),
        }
    }
    Ok(())
}

/// The sequence number after the newest record. `read` returns that many slots from a record's slot on. It is never
/// asked to go past the last slot, and may return fewer, but at least one.
pub fn find_end(
    log: &Superblock,
    mut read: impl FnMut(u64, u64) -> Result<Vec<Vec<u8>>>,
) -> Result<u64> {
    let hole = HOLE.min(log.slots);
    let mut end = log.next_sequence;
    let mut at = log.next_sequence;
    while at < end + hole {
        let to_edge = log.slots - at % log.slots;
        let slots = read(at, READ_BATCH.min(to_edge))?;
        let mut ahead = None;
        for (i, slot) in slots.iter().enumerate() {
            let expected = at + i as u64;
            if let Ok(header) = Header::read(slot, log.log_id)
                && header.sequence >= expected
                && header.sequence % log.slots == expected % log.slots
            {
                end = end.max(header.sequence + 1);
                if header.sequence > expected {
                    // The log wrapped since the superblock was written: its end is a lap or more ahead.
                    ahead = Some(header.sequence - i as u64);
                }
            }
        }
        at = ahead.unwrap_or(at) + slots.len() as u64;
    }
    Ok(end)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::{HEADER_LEN, MIN_SLOTS, SUPER_SLOTS};
    use proptest::prelude::*;

    fn log(slots: u64, next_sequence: u64) -> Superblock {
        Superblock {
            next_sequence,
            ..Superblock::new(5, 1, 512, 512, 0, slots + SUPER_SLOTS, true).unwrap()
        }
    }

    /// A device with these records, the later ones over the earlier ones.
    fn device(log: &Superblock, sequences: impl Iterator<Item = u64>) -> Vec<Vec<u8>> {
        let mut slots = vec![vec![0; 512]; log.slots as usize];
        for sequence in sequences {
            let header = Header {
                sequence,
                log_id: log.log_id,
                packet_offset: 64,
                payload_offset: 64,
                ..Header::default()
            };
            slots[(sequence % log.slots) as usize][..HEADER_LEN]
                .copy_from_slice(&header.to_bytes(0));
        }
        slots
    }

    fn end(log: &Superblock, slots: &[Vec<u8>]) -> u64 {
        find_end(log, |sequence, count| {
            let at = (sequence % log.slots) as usize;
            Ok(slots[at..at + count as usize].to_vec())
        })
        .unwrap()
    }

    #[test]
    fn the_end_is_found_behind_holes_and_laps() {
        let whole = log(100, 0);
        assert_eq!(end(&whole, &device(&whole, std::iter::empty())), 0);
        assert_eq!(end(&whole, &device(&whole, 0..60)), 60);
        assert_eq!(
            end(&whole, &device(&whole, (0..60).filter(|s| s % 7 != 2))),
            60
        );
        assert_eq!(end(&whole, &device(&whole, 0..100)), 100);
        assert_eq!(end(&whole, &device(&whole, 0..730)), 730);
        let later = log(100, 700);
        assert_eq!(end(&later, &device(&later, 0..730)), 730);
        let foreign = log(100, 0);
        let mut other = device(&foreign, 0..50);
        other[7][16] ^= 1;
        assert_eq!(end(&foreign, &other), 50);
    }

    proptest! {
        #[test]
        fn whatever_the_superblock_knew_the_end_is_found(
            slots in MIN_SLOTS..300, written in 0u64..2000, behind in 0u64..2000, lost in prop::collection::vec(0u64..40, 0..10)
        ) {
            // A superblock is at most a quarter of a lap old, and writes in flight are lost.
            let known = written.saturating_sub(behind % (slots / 4 + 1));
            let log = log(slots, known);
            let holes: Vec<u64> = lost.iter().filter_map(|l| written.checked_sub(l + 2)).collect();
            let slots = device(&log, (0..written).filter(|s| !holes.contains(s)));
            let expected = (0..written).rev().find(|s| !holes.contains(s)).map_or(0, |s| s + 1).max(known);
            prop_assert_eq!(end(&log, &slots), expected);
        }
    }
}
