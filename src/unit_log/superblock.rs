//! The superblock: the properties of a log, where its segments are, and how far it had come when this was written.

#![forbid(unsafe_code)]

use crate::bytes::{get, is_sealed, put, seal, u16_at, u32_at, u64_at};
use crate::error::{Error, Result};
use crate::record::{self, Losses, MAX_SEQUENCE, NAME_LEN};

/// "UNIFLOG1", as in version 1.
const MAGIC: u64 = u64::from_le_bytes(*b"UNIFLOG1");
pub const VERSION: u16 = 2;
/// Bytes of a superblock; it is written with zeroes up to a whole slot.
pub const SUPER_LEN: usize = 512;
/// Slots at the start of the range that hold the two copies.
pub const SUPER_SLOTS: u32 = 2;
/// Bytes of a segment, if at least `MANY_SEGMENTS` fit into the range.
const SEGMENT_BYTES: u64 = 4 << 20;
const MANY_SEGMENTS: u64 = 8;
const FEWEST_SEGMENTS: u64 = 4;
const FEWEST_SLOTS: u64 = 16;

/// Two copies are written in turn; of the valid ones, the one with the higher generation counts.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Superblock {
    /// Counts up with every write.
    pub generation: u64,
    /// Random. All devices of a recording have the same; its bits are in every slot.
    pub set_id: u64,
    /// Bytes of a block of the device when the log was made, and of a slot.
    pub block_size: u32,
    pub slot_size: u32,
    pub segment_slots: u32,
    pub segments: u64,
    /// First block of the range.
    pub start_lba: u64,
    /// Generation of a segment that was begun before this was written; 0: none. The search for the end starts there.
    pub newest: u64,
    /// ns since 1970-01-01 UTC when the log was made.
    pub created: u64,
    /// Number of this device, how many there are, and how many lanes.
    pub device: u16,
    pub devices: u16,
    pub lanes: u16,
    /// Features that a reader may ignore, and those that it must know. None is defined yet.
    pub compat: u32,
    pub incompat: u32,
    /// The log wraps to its start when it is full.
    pub wraps: bool,
    /// Of all recorders that wrote to this log.
    pub losses: Losses,
    /// Name of the last recorder's interface, padded with zeroes; all zero if it is not known.
    pub interface: [u8; NAME_LEN],
}

impl Superblock {
    /// A new log in a range of a device. `EINVAL` if slots are not whole blocks, or if there are too few.
    pub fn new(
        set_id: u64,
        created: u64,
        block_size: u32,
        slot_size: u32,
        start_lba: u64,
        blocks: u64,
        wraps: bool,
    ) -> Result<Superblock> {
        if !slot_size.is_multiple_of(block_size) {
            return Err(Error::new(
                libc::EINVAL,
                format!(
                    "slots of {slot_size} bytes are not whole blocks of {block_size}: \
                     take a larger frame size for a log"
                ),
            ));
        }
        let slots = (blocks / u64::from(slot_size / block_size)).saturating_sub(SUPER_SLOTS.into());
        let mut segment_slots = (SEGMENT_BYTES / u64::from(slot_size)).max(FEWEST_SLOTS);
        while segment_slots > FEWEST_SLOTS && slots / segment_slots < MANY_SEGMENTS {
            segment_slots /= 2;
        }
        let segments = slots / segment_slots;
        if segments < FEWEST_SEGMENTS {
            return Err(Error::new(
                libc::EINVAL,
                format!(
                    "{blocks} blocks of {block_size} bytes have room for {slots} slots of {slot_size}; a log needs at \
                     least {}",
                    FEWEST_SEGMENTS * FEWEST_SLOTS
                ),
            ));
        }
        Ok(Superblock {
            set_id,
            block_size,
            slot_size,
            segment_slots: segment_slots as u32,
            segments,
            start_lba,
            created,
            devices: 1,
            lanes: 1,
            wraps,
            ..Superblock::default()
        })
    }

    pub fn to_bytes(&self) -> [u8; SUPER_LEN] {
        let mut b = [0; SUPER_LEN];
        put(&mut b, 0, MAGIC.to_le_bytes());
        put(&mut b, 8, VERSION.to_le_bytes());
        put(&mut b, 10, u16::from(self.wraps).to_le_bytes());
        put(&mut b, 12, self.block_size.to_le_bytes());
        put(&mut b, 16, self.slot_size.to_le_bytes());
        put(&mut b, 20, self.segment_slots.to_le_bytes());
        put(&mut b, 24, self.generation.to_le_bytes());
        put(&mut b, 32, self.set_id.to_le_bytes());
        put(&mut b, 40, self.start_lba.to_le_bytes());
        put(&mut b, 48, self.segments.to_le_bytes());
        put(&mut b, 56, self.newest.to_le_bytes());
        put(&mut b, 64, self.created.to_le_bytes());
        put(&mut b, 72, self.device.to_le_bytes());
        put(&mut b, 74, self.devices.to_le_bytes());
        put(&mut b, 76, self.lanes.to_le_bytes());
        put(&mut b, 80, self.compat.to_le_bytes());
        put(&mut b, 84, self.incompat.to_le_bytes());
        put(&mut b, 88, SUPER_SLOTS.to_le_bytes());
        put(&mut b, 104, self.interface);
        seal(&mut b, 0, 124);
        put(&mut b, 128, self.losses.dropped.to_le_bytes());
        put(&mut b, 136, self.losses.unrecorded.to_le_bytes());
        put(&mut b, 144, self.losses.first.to_le_bytes());
        put(&mut b, 152, self.losses.last.to_le_bytes());
        seal(&mut b, 128, SUPER_LEN - 4);
        b
    }

    /// `None` if there is no valid superblock of version 2.
    pub fn read(b: &[u8]) -> Option<Superblock> {
        if b.len() < SUPER_LEN
            || u64_at(b, 0) != MAGIC
            || u16_at(b, 8) != VERSION
            || !is_sealed(b, 0, 124)
            || !is_sealed(b, 128, SUPER_LEN - 4)
        {
            return None;
        }
        let found = Superblock {
            generation: u64_at(b, 24),
            set_id: u64_at(b, 32),
            block_size: u32_at(b, 12),
            slot_size: u32_at(b, 16),
            segment_slots: u32_at(b, 20),
            segments: u64_at(b, 48),
            start_lba: u64_at(b, 40),
            newest: u64_at(b, 56),
            created: u64_at(b, 64),
            device: u16_at(b, 72),
            devices: u16_at(b, 74),
            lanes: u16_at(b, 76),
            compat: u32_at(b, 80),
            incompat: u32_at(b, 84),
            wraps: u16_at(b, 10) & 1 != 0,
            losses: Losses {
                dropped: u64_at(b, 128),
                unrecorded: u64_at(b, 136),
                first: u64_at(b, 144),
                last: u64_at(b, 152),
            },
            interface: get(b, 104),
        };
        let sound = found.slot_size.is_power_of_two()
            && (512..=65536).contains(&found.slot_size)
            && found.block_size.is_power_of_two()
            && (512..=found.slot_size).contains(&found.block_size)
            && found.segment_slots.is_power_of_two()
            && (FEWEST_SLOTS..=1 << 24).contains(&found.segment_slots.into())
            && found.segments >= FEWEST_SEGMENTS
            && found.newest.max(found.generation) <= MAX_SEQUENCE
            && u32_at(b, 88) == SUPER_SLOTS
            && found.end().is_some();
        sound.then_some(found)
    }

    /// Bytes from the device's start to the log's end; `None` if that overflows.
    fn end(&self) -> Option<u64> {
        let slots = self.segments.checked_mul(self.segment_slots.into())?;
        let bytes = slots.checked_add(SUPER_SLOTS.into())?;
        self.start_lba
            .checked_mul(self.block_size.into())?
            .checked_add(bytes.checked_mul(self.slot_size.into())?)
    }

    /// For a recorder that continues a log: `EPROTONOSUPPORT` for a superblock of a later version, or with features that are
    /// not known; `EINVAL` for one of version 1.
    pub fn refuse_others(b: &[u8], name: &str) -> Result<()> {
        if record::Superblock::read(b).is_some() {
            return Err(Error::new(
                libc::EINVAL,
                format!(
                    "'{name}' holds a log of version 1: continue it with UNIFIED_LAYOUT_SLOT, or begin a new log over it \
                     with UNIFIED_LOG_NEW"
                ),
            ));
        }
        match Superblock::read(b) {
            Some(found) => refuse_features(&found, name),
            None => match record::Superblock::unknown_version(b) {
                Some(version) if version != VERSION => Err(record::refuse_version(name, version)),
                _ => Ok(()),
            },
        }
    }

    /// What every slot of this device carries.
    pub fn tag(&self) -> u32 {
        self.set_id as u32 ^ (self.set_id >> 32) as u32 ^ u32::from(self.device)
    }

    /// All slots, those of the superblocks included.
    pub fn slots(&self) -> u64 {
        u64::from(SUPER_SLOTS) + self.segments * u64::from(self.segment_slots)
    }

    /// Number in the range of a slot of the segment with a generation, which is 1 or greater.
    pub fn slot_of(&self, generation: u64, slot: u32) -> u64 {
        let segment = generation.wrapping_sub(1) % self.segments;
        u64::from(SUPER_SLOTS) + segment * u64::from(self.segment_slots) + u64::from(slot)
    }

    /// First block of a slot of the range.
    pub fn lba_of_slot(&self, slot: u64) -> u64 {
        self.start_lba + slot * u64::from(self.slot_size / self.block_size)
    }

    /// First block of a slot of the segment with a generation.
    pub fn lba_of(&self, generation: u64, slot: u32) -> u64 {
        self.lba_of_slot(self.slot_of(generation, slot))
    }

    /// First block of the superblock's copy for a generation of it.
    pub fn super_lba(&self, generation: u64) -> u64 {
        self.lba_of_slot(generation % u64::from(SUPER_SLOTS))
    }

    /// The oldest generation that can still be there when the newest one is `newest`; `newest + 1` if there is none.
    pub fn oldest(&self, newest: u64) -> u64 {
        (newest + 1).saturating_sub(self.segments).max(1)
    }
}

/// `EPROTONOSUPPORT` if a log has features that a reader must know.
pub fn refuse_features(found: &Superblock, name: &str) -> Result<()> {
    match found.incompat {
        0 => Ok(()),
        features => Err(Error::new(
            libc::EPROTONOSUPPORT,
            format!(
                "'{name}' holds a log with features {features:#x} that this library does not know: read it with a newer \
                 one, or begin a new log over it with UNIFIED_LOG_NEW"
            ),
        )),
    }
}

/// `EPROTONOSUPPORT` if a log has features that a writer must know.
pub fn refuse_compat(found: &Superblock, name: &str) -> Result<()> {
    match found.compat {
        0 => Ok(()),
        features => Err(Error::new(
            libc::EPROTONOSUPPORT,
            format!(
                "'{name}' holds a log with features {features:#x} that this library does not know: write to it with a newer \
                 one, or begin a new log over it with UNIFIED_LOG_NEW"
            ),
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn log() -> Superblock {
        Superblock {
            generation: 7,
            newest: 3,
            losses: Losses {
                dropped: 1,
                unrecorded: 2,
                first: 3,
                last: 4,
            },
            interface: *b"eth0\0\0\0\0\0\0\0\0\0\0\0\0",
            ..Superblock::new(0x1234_5678_9abc_def0, 9, 512, 2048, 100, 1 << 20, true).unwrap()
        }
    }

    #[test]
    fn segments_are_4_mib_or_smaller_in_a_short_range() {
        let log = log();
        assert_eq!((log.segment_slots, log.segments), (2048, 127));
        let small = Superblock::new(1, 1, 512, 2048, 0, 4 * 66, true).unwrap();
        assert_eq!((small.segment_slots, small.segments), (16, 4));
        let error = Superblock::new(1, 1, 512, 2048, 0, 4 * 65, true).unwrap_err();
        assert_eq!(error.errno(), libc::EINVAL);
        let error = Superblock::new(1, 1, 4096, 2048, 0, 1 << 20, true).unwrap_err();
        assert_eq!(error.errno(), libc::EINVAL);
        assert_eq!(log.lba_of(1, 0), 100 + 8);
        assert_eq!(log.lba_of(128, 3), 100 + 8 + 12);
        assert_eq!(log.lba_of(2, 1), 100 + 8 + 2048 * 4 + 4);
        assert_eq!((log.oldest(5), log.oldest(127), log.oldest(128)), (1, 1, 2));
    }

    #[test]
    fn what_is_written_is_read_and_every_byte_counts() {
        let log = log();
        let bytes = log.to_bytes();
        assert_eq!(Superblock::read(&bytes), Some(log));
        // What older libraries look at: they say that they do not know this version.
        assert_eq!(record::Superblock::unknown_version(&bytes), Some(2));
        for at in 0..SUPER_LEN {
            let mut bad = bytes;
            bad[at] ^= 1;
            assert!(Superblock::read(&bad).is_none(), "byte {at}");
        }
    }

    #[test]
    fn other_versions_are_refused() {
        let errno = |bytes: &[u8]| {
            let refused = Superblock::refuse_others(bytes, "x");
            refused.err().map_or(0, |error| error.errno())
        };
        assert_eq!(errno(&log().to_bytes()), 0);
        assert_eq!(errno(&[0; 512]), 0);
        let features = Superblock {
            incompat: 4,
            ..log()
        };
        assert_eq!(errno(&features.to_bytes()), libc::EPROTONOSUPPORT);
        let first = record::Superblock::new(9, 1, 512, 2048, 0, 4000, true).unwrap();
        assert_eq!(errno(&first.to_bytes()), libc::EINVAL);
        let mut later = log().to_bytes();
        later[8] = 3;
        seal(&mut later, 0, 124);
        assert_eq!(errno(&later), libc::EPROTONOSUPPORT);
    }

    proptest! {
        #[test]
        fn no_bytes_make_the_reader_fall_over(bytes in prop::collection::vec(any::<u8>(), 512), sealed in any::<bool>()) {
            let mut bytes = bytes;
            if sealed {
                bytes[..8].copy_from_slice(b"UNIFLOG1");
                bytes[8..10].copy_from_slice(&2u16.to_le_bytes());
                seal(&mut bytes, 0, 124);
                seal(&mut bytes, 128, 508);
            }
            if let Some(found) = Superblock::read(&bytes) {
                prop_assert!(found.end().is_some());
            }
        }
    }
}
