//! The slot layout on the device: a superblock, then slots of one frame each, every one a record.
//!
//! A record is a whole frame: a header of 64 bytes, zeroes, the packet where the kernel put it, zeroes. The slot of a
//! record follows from its sequence number, so the log is a ring on the device without any pointer to maintain.
//! docs/record-format.md describes every field.
//!
//! All numbers are little endian. This module knows bytes only; it does no I/O.

#![forbid(unsafe_code)]

use crate::bytes::{get, put, u16_at, u32_at, u64_at};
use crate::error::{Error, Result};
use crate::sys::crc::crc32c;

pub const HEADER_LEN: usize = 64;
pub const VERSION: u16 = 1;
/// "UREC" and "UNIFLOG1" as they are on the device.
const RECORD_MAGIC: u32 = u32::from_le_bytes(*b"UREC");
const SUPER_MAGIC: u64 = u64::from_le_bytes(*b"UNIFLOG1");
/// Bytes of a superblock that its checksum covers; it is written with zeroes up to a whole slot.
pub const SUPER_LEN: usize = 128;
/// Slots at the start of the range that hold the two copies of the superblock.
pub const SUPER_SLOTS: u64 = 2;
/// Fewest slots for records. A recorder never has more writes in flight than there are slots, so a lap never overtakes
/// the one before.
pub const MIN_SLOTS: u64 = 16;

/// Flag: `vlan_tci` is valid.
pub const FLAG_VLAN: u8 = 1;
/// No log gets this far. A higher number on a device was not written by a recorder.
pub const MAX_SEQUENCE: u64 = 1 << 62;

/// A record's header.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// 0, 1, 2, ... without a gap, except for records that could not be written.
    pub sequence: u64,
    /// As in the superblock. Records of an earlier log in the same range have another one.
    pub log_id: u64,
    /// ns since 1970-01-01 UTC when the XDP program saw the packet.
    pub timestamp: u64,
    /// Bytes of the packet, Ethernet header included, and where it begins in the slot.
    pub packet_len: u32,
    pub packet_offset: u16,
    /// Where the UDP payload begins in the slot, and its bytes.
    pub payload_offset: u16,
    pub payload_len: u16,
    pub vlan_tci: u16,
    pub src_port: u16,
    pub dst_port: u16,
    /// 4 or 6.
    pub ip_version: u8,
    pub flags: u8,
    pub queue: u16,
    /// The lane that received the packet, and the number of the device that this was read from: not in the record itself, but
    /// in the unit (version 2) around it. 0 in version 1.
    pub lane: u16,
    pub device: u16,
}

/// Why a slot is not a record of this log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Flaw {
    /// No record was ever written there (or it is of another log or another lap).
    Absent,
    /// The header is damaged.
    Header,
    /// The header is valid, the packet is not.
    Data,
    /// A version that this library does not know.
    Version(u16),
}

impl Header {
    /// The header's bytes. `data_crc` is the CRC32C of the packet.
    pub fn to_bytes(&self, data_crc: u32) -> [u8; HEADER_LEN] {
        let mut b = [0; HEADER_LEN];
        put(&mut b, 0, RECORD_MAGIC.to_le_bytes());
        put(&mut b, 4, VERSION.to_le_bytes());
        put(&mut b, 6, (HEADER_LEN as u16).to_le_bytes());
        put(&mut b, 8, self.sequence.to_le_bytes());
        put(&mut b, 16, self.log_id.to_le_bytes());
        put(&mut b, 24, self.timestamp.to_le_bytes());
        put(&mut b, 32, self.packet_len.to_le_bytes());
        put(&mut b, 36, self.packet_offset.to_le_bytes());
        put(&mut b, 38, self.payload_offset.to_le_bytes());
        put(&mut b, 40, self.payload_len.to_le_bytes());
        put(&mut b, 42, self.vlan_tci.to_le_bytes());
        put(&mut b, 44, self.src_port.to_le_bytes());
        put(&mut b, 46, self.dst_port.to_le_bytes());
        b[48] = self.ip_version;
        b[49] = self.flags;
        put(&mut b, 50, self.queue.to_le_bytes());
        // 52 to 55 are reserved and zero.
        put(&mut b, 56, data_crc.to_le_bytes());
        let crc = crc32c(&b[..60]);
        put(&mut b, 60, crc.to_le_bytes());
        b
    }

    /// Reads a slot. Returns the record if it belongs to log `log_id` and its checksums are right.
    pub fn read(slot: &[u8], log_id: u64) -> std::result::Result<Header, Flaw> {
        if slot.len() < HEADER_LEN || u32_at(slot, 0) != RECORD_MAGIC {
            return Err(Flaw::Absent);
        }
        if crc32c(&slot[..60]) != u32_at(slot, 60) {
            return Err(Flaw::Header);
        }
        let version = u16_at(slot, 4);
        if version != VERSION {
            return Err(Flaw::Version(version));
        }
        let header = Header {
            sequence: u64_at(slot, 8),
            log_id: u64_at(slot, 16),
            timestamp: u64_at(slot, 24),
            packet_len: u32_at(slot, 32),
            packet_offset: u16_at(slot, 36),
            payload_offset: u16_at(slot, 38),
            payload_len: u16_at(slot, 40),
            vlan_tci: u16_at(slot, 42),
            src_port: u16_at(slot, 44),
            dst_port: u16_at(slot, 46),
            ip_version: slot[48],
            flags: slot[49],
            queue: u16_at(slot, 50),
            ..Header::default()
        };
        if header.log_id != log_id || header.sequence > MAX_SEQUENCE {
            return Err(Flaw::Absent);
        }
        let start = usize::from(header.packet_offset);
        let end = start + header.packet_len as usize;
        let payload = usize::from(header.payload_offset);
        if start < HEADER_LEN
            || end > slot.len()
            || payload < start
            || payload + usize::from(header.payload_len) > end
        {
            return Err(Flaw::Header);
        }
        if crc32c(&slot[start..end]) != u32_at(slot, 56) {
            return Err(Flaw::Data);
        }
        Ok(header)
    }
}

/// Losses that recorders have noticed since the log was made.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Losses {
    /// Packets of the recorded ports that the kernel dropped: the RX ring was full, or no frame was free.
    pub dropped: u64,
    /// Packets of the recorded ports that were seen and not recorded: they came to another queue, were merged or malformed,
    /// or the log had no room.
    pub unrecorded: u64,
    /// When the recorder first noticed a loss, and last noticed more, in ns since 1970-01-01 UTC; 0: never. It checks
    /// once a second.
    pub first: u64,
    pub last: u64,
}

impl Losses {
    pub fn total(&self) -> u64 {
        self.dropped.saturating_add(self.unrecorded)
    }
}

/// Bytes of an interface's name, the zero at its end included (IFNAMSIZ).
pub const NAME_LEN: usize = 16;

/// The properties of the log, and its progress when this was written. Two copies are written in turn.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Superblock {
    /// Counts up with every write; the copy with the higher one counts.
    pub generation: u64,
    /// Random. Distinguishes this log's records from those of an earlier one.
    pub log_id: u64,
    /// Bytes of a block of the device when the log was made, and of a slot.
    pub block_size: u32,
    pub slot_size: u32,
    /// First block of the range, and slots for records in it.
    pub start_lba: u64,
    pub slots: u64,
    /// A sequence number up to which the log was known to be written. The scan for the newest record
    /// begins there.
    pub next_sequence: u64,
    /// ns since 1970-01-01 UTC when the log was made.
    pub created: u64,
    /// The log wraps to its start when it is full.
    pub wraps: bool,
    /// Of all recorders that wrote to this log.
    pub losses: Losses,
    /// Name of the last recorder's interface, padded with zeroes; all zero if it is not known.
    pub interface: [u8; NAME_LEN],
}

impl Superblock {
    pub fn to_bytes(&self) -> [u8; SUPER_LEN] {
        let mut b = [0; SUPER_LEN];
        put(&mut b, 0, SUPER_MAGIC.to_le_bytes());
        put(&mut b, 8, VERSION.to_le_bytes());
        put(&mut b, 10, u16::from(self.wraps).to_le_bytes());
        put(&mut b, 12, self.block_size.to_le_bytes());
        put(&mut b, 16, self.slot_size.to_le_bytes());
        // 20 to 23 are reserved and zero.
        put(&mut b, 24, self.generation.to_le_bytes());
        put(&mut b, 32, self.log_id.to_le_bytes());
        put(&mut b, 40, self.start_lba.to_le_bytes());
        put(&mut b, 48, self.slots.to_le_bytes());
        put(&mut b, 56, self.next_sequence.to_le_bytes());
        put(&mut b, 64, self.created.to_le_bytes());
        put(&mut b, 72, self.losses.dropped.to_le_bytes());
        put(&mut b, 80, self.losses.unrecorded.to_le_bytes());
        put(&mut b, 88, self.losses.first.to_le_bytes());
        put(&mut b, 96, self.losses.last.to_le_bytes());
        put(&mut b, 104, self.interface);
        // 120 to 123 are reserved and zero.
        let crc = crc32c(&b[..SUPER_LEN - 4]);
        put(&mut b, SUPER_LEN - 4, crc.to_le_bytes());
        b
    }

    /// The version of a superblock, if this library does not know it. Magic, version and checksum stay in place in
    /// every version.
    pub fn unknown_version(b: &[u8]) -> Option<u16> {
        let whole = b.len() >= SUPER_LEN
            && u64_at(b, 0) == SUPER_MAGIC
            && crc32c(&b[..SUPER_LEN - 4]) == u32_at(b, SUPER_LEN - 4);
        let version = whole.then(|| u16_at(b, 8))?;
        (version != VERSION).then_some(version)
    }

    /// `None` if there is no valid superblock.
    pub fn read(b: &[u8]) -> Option<Superblock> {
        if b.len() < SUPER_LEN
            || u64_at(b, 0) != SUPER_MAGIC
            || crc32c(&b[..SUPER_LEN - 4]) != u32_at(b, SUPER_LEN - 4)
            || u16_at(b, 8) != VERSION
        {
            return None;
        }
        let found = Superblock {
            generation: u64_at(b, 24),
            log_id: u64_at(b, 32),
            block_size: u32_at(b, 12),
            slot_size: u32_at(b, 16),
            start_lba: u64_at(b, 40),
            slots: u64_at(b, 48),
            next_sequence: u64_at(b, 56),
            created: u64_at(b, 64),
            wraps: u16_at(b, 10) & 1 != 0,
            losses: Losses {
                dropped: u64_at(b, 72),
                unrecorded: u64_at(b, 80),
                first: u64_at(b, 88),
                last: u64_at(b, 96),
            },
            interface: get(b, 104),
        };
        let sound = found.slot_size.is_power_of_two()
            && (512..=65536).contains(&found.slot_size)
            && found.block_size.is_power_of_two()
            && (512..=found.slot_size).contains(&found.block_size)
            && found.slots >= MIN_SLOTS
            && found.next_sequence.max(found.generation) <= MAX_SEQUENCE
            && found.bytes_needed().is_some();
        sound.then_some(found)
    }

    /// Bytes from the device's start to the log's end; `None` if that overflows.
    fn bytes_needed(&self) -> Option<u64> {
        self.start_lba
            .checked_mul(self.block_size.into())?
            .checked_add(
                self.slots
                    .checked_add(SUPER_SLOTS)?
                    .checked_mul(self.slot_size.into())?,
            )
    }

    /// Bytes from the start of the device to the slot of a record.
    pub fn offset_of(&self, sequence: u64) -> u64 {
        self.start_lba * u64::from(self.block_size)
            + (SUPER_SLOTS + sequence % self.slots) * u64::from(self.slot_size)
    }

    /// The interface's name, if it is valid for Linux (dev_valid_name). Data from a device is never trusted.
    pub fn interface_name(&self) -> Option<&str> {
        let end = self.interface.iter().position(|byte| *byte == 0)?;
        let name = std::str::from_utf8(&self.interface[..end]).ok()?;
        let sound = |c: char| c.is_ascii_graphic() && !matches!(c, '/' | ':');
        (!name.is_empty() && name.chars().all(sound)).then_some(name)
    }

    /// First block of the slot of a record.
    pub fn lba_of(&self, sequence: u64) -> u64 {
        self.offset_of(sequence) / u64::from(self.block_size)
    }

    pub fn blocks_per_slot(&self) -> u32 {
        self.slot_size / self.block_size
    }

    /// First block of the superblock's copy for a generation.
    pub fn super_lba(&self, generation: u64) -> u64 {
        self.start_lba + generation % SUPER_SLOTS * u64::from(self.blocks_per_slot())
    }

    /// A new log in a range of a device. `EINVAL` if slots are not whole blocks, or if there are too few.
    pub fn new(
        log_id: u64,
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
                     take a larger frame size for the slot layout"
                ),
            ));
        }
        let slots = (blocks / u64::from(slot_size / block_size)).saturating_sub(SUPER_SLOTS);
        if slots < MIN_SLOTS {
            return Err(Error::new(
                libc::EINVAL,
                format!(
                    "{blocks} blocks of {block_size} bytes have room for {slots} records of {slot_size}; \
                     a log needs at least {MIN_SLOTS}"
                ),
            ));
        }
        Ok(Superblock {
            generation: 0,
            log_id,
            block_size,
            slot_size,
            start_lba,
            slots,
            next_sequence: 0,
            created,
            wraps,
            losses: Losses::default(),
            interface: [0; NAME_LEN],
        })
    }
}

/// Marks a slot that could not be read. It is then neither a superblock nor a record, and counts as damaged rather
/// than absent.
pub fn mark_unreadable(slot: &mut [u8]) {
    slot.fill(0);
    if let Some(magic) = slot.first_chunk_mut() {
        *magic = RECORD_MAGIC.to_le_bytes();
    }
}

/// `EPROTONOSUPPORT` for a log of a later version.
pub fn refuse_version(name: &str, version: u16) -> Error {
    Error::new(
        libc::EPROTONOSUPPORT,
        format!(
            "'{name}' holds a log of version {version}, and this library knows 1 and 2: read it with a newer \
             one, or begin a new log over it with UNIFIED_LOG_NEW"
        ),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_later_version_is_told_from_no_superblock() {
        let mut b = Superblock::new(1, 2, 512, 2048, 0, 100, true)
            .map(|s| s.to_bytes())
            .unwrap();
        assert_eq!(Superblock::unknown_version(&b), None);
        put(&mut b, 8, 2u16.to_le_bytes());
        assert_eq!(
            Superblock::unknown_version(&b),
            None,
            "the checksum is wrong"
        );
        let crc = crc32c(&b[..SUPER_LEN - 4]);
        put(&mut b, SUPER_LEN - 4, crc.to_le_bytes());
        assert_eq!(Superblock::unknown_version(&b), Some(2));
        assert_eq!(Superblock::read(&b), None);
        mark_unreadable(&mut b);
        assert_eq!(Superblock::unknown_version(&b), None);
        assert_eq!(Header::read(&b, 0), Err(Flaw::Header));
    }

    fn header(packet_len: u32) -> Header {
        Header {
            sequence: 77,
            log_id: 0x1234_5678_9abc_def0,
            timestamp: 1_700_000_000_123_456_789,
            packet_len,
            packet_offset: 470,
            payload_offset: 512,
            payload_len: (packet_len - 42) as u16,
            vlan_tci: 0,
            src_port: 4000,
            dst_port: 9999,
            ip_version: 4,
            flags: 0,
            queue: 3,
            ..Header::default()
        }
    }

    fn slot(header: &Header, size: usize) -> Vec<u8> {
        let mut slot = vec![0; size];
        let at = usize::from(header.packet_offset);
        for (i, byte) in slot[at..at + header.packet_len as usize]
            .iter_mut()
            .enumerate()
        {
            *byte = i as u8 ^ 0x5a;
        }
        let crc = crc32c(&slot[at..at + header.packet_len as usize]);
        slot[..HEADER_LEN].copy_from_slice(&header.to_bytes(crc));
        slot
    }

    #[test]
    fn numbers_that_no_log_reaches_are_not_believed() {
        for (sequence, read) in [
            (MAX_SEQUENCE, true),
            (MAX_SEQUENCE + 1, false),
            (u64::MAX, false),
        ] {
            let header = Header {
                sequence,
                packet_offset: HEADER_LEN as u16,
                payload_offset: HEADER_LEN as u16,
                ..Header::default()
            };
            // The checksum of no bytes is 0.
            assert_eq!(Header::read(&header.to_bytes(0), 0).is_ok(), read);
            for (next_sequence, generation) in [(sequence, 0), (0, sequence)] {
                let mut log = Superblock::new(0, 0, 512, 2048, 0, 1000, true).unwrap();
                (log.next_sequence, log.generation) = (next_sequence, generation);
                assert_eq!(Superblock::read(&log.to_bytes()).is_some(), read);
            }
        }
    }

    #[test]
    fn a_record_is_read_as_it_was_written() {
        let header = header(1066);
        assert_eq!(
            Header::read(&slot(&header, 2048), header.log_id),
            Ok(header)
        );
    }

    #[test]
    fn every_single_wrong_byte_is_seen() {
        let header = header(200);
        let good = slot(&header, 2048);
        for at in (0..HEADER_LEN).chain(470..670) {
            let mut bad = good.clone();
            bad[at] ^= 0x10;
            assert!(Header::read(&bad, header.log_id).is_err(), "byte {at}");
        }
        assert_eq!(Header::read(&good, 1), Err(Flaw::Absent), "another log's");
        assert_eq!(Header::read(&good[..600], header.log_id), Err(Flaw::Header));
        assert_eq!(Header::read(&[0; 2048], header.log_id), Err(Flaw::Absent));
    }

    #[test]
    fn a_superblock_says_where_every_record_is() {
        let log = Superblock::new(9, 1, 512, 2048, 100, 4 * 102, true).unwrap();
        assert_eq!(log.slots, 100);
        assert_eq!(log.lba_of(0), 100 + 8);
        assert_eq!(log.lba_of(99), 100 + 8 + 99 * 4);
        assert_eq!(log.lba_of(100), log.lba_of(0));
        assert_eq!(
            (log.super_lba(0), log.super_lba(1), log.super_lba(2)),
            (100, 104, 100)
        );
        let bytes = log.to_bytes();
        assert_eq!(Superblock::read(&bytes), Some(log));
        for at in 0..SUPER_LEN {
            let mut bad = bytes;
            bad[at] ^= 1;
            assert_eq!(Superblock::read(&bad), None, "byte {at}");
        }
        assert!(Superblock::new(9, 1, 4096, 2048, 0, 1000, true).is_err());
        assert!(Superblock::new(9, 1, 512, 2048, 0, 4 * 17, true).is_err());
    }

    proptest! {
        #[test]
        fn no_bytes_make_the_reader_fall_over(bytes in prop::collection::vec(any::<u8>(), 0..300), sum in any::<bool>()) {
            let mut bytes = bytes;
            if sum && bytes.len() >= HEADER_LEN {
                // A right checksum over any header: the lengths must be checked all the same.
                bytes[..4].copy_from_slice(b"UREC");
                bytes[4..6].copy_from_slice(&1u16.to_le_bytes());
                let crc = crc32c(&bytes[..60]).to_le_bytes();
                bytes[60..64].copy_from_slice(&crc);
            }
            let id = if bytes.len() >= 24 { u64_at(&bytes, 16) } else { 0 };
            if let Ok(header) = Header::read(&bytes, id) {
                prop_assert!(usize::from(header.packet_offset) + header.packet_len as usize <= bytes.len());
            }
            let _ = Superblock::read(&bytes);
        }
    }
}
