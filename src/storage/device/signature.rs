//! Recognizes data on a device: a file system, a volume, a partition table or the like is not overwritten.
//!
//! libblkid recognizes about a hundred formats, and is used if the system has it. Containers often lack it, so the
//! common formats are also checked here. Both check a copy of the device's first and last bytes, because libblkid
//! reads neither passthrough nodes nor descriptors that were opened with O_DIRECT.

#![forbid(unsafe_code)]

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use super::{FORCE, Limits};
use crate::error::{Error, Result};
use crate::log::{self, Level};
use crate::record::{Header, SUPER_SLOTS, Superblock};
use crate::sys::blkid::{self, Found};
use crate::sys::event::FileSizeShield;
use crate::sys::file as sysfile;
use crate::unit_log::superblock::Superblock as UnitSuperblock;
use crate::unit_log::unit::SlotHeader;

/// Bytes that are checked at the start, and as many at the end. The formats that are known here have their magic
/// there.
const LOOKED_AT: u64 = 1 << 20;
/// Bytes per read.
const PIECE: usize = 64 << 10;

/// The first and the last bytes of a device.
struct Ends {
    len: u64,
    block: u32,
    head: Vec<u8>,
    tail: Vec<u8>,
    tail_at: u64,
}

impl Ends {
    /// `read` fills as much of a piece as there is, at an offset that is a multiple of `PIECE`.
    fn read(
        name: &str,
        len: u64,
        block: u32,
        mut read: impl FnMut(u64, &mut [u8]) -> io::Result<()>,
    ) -> Ends {
        let align = PIECE as u64;
        let head_len = len.min(LOOKED_AT);
        let tail_at = (len.saturating_sub(LOOKED_AT) / align * align).max(head_len);
        let mut failed = None;
        let mut all = |from: u64, to: u64| {
            let mut bytes = vec![0; (to - from).next_multiple_of(align) as usize];
            for (i, piece) in bytes.chunks_mut(PIECE).enumerate() {
                if let Err(e) = read(from + i as u64 * align, piece) {
                    // A spot that cannot be read does not make the device empty: check the rest.
                    piece.fill(0);
                    failed = Some(e);
                }
            }
            bytes.truncate((to - from) as usize);
            bytes
        };
        let head = all(0, head_len);
        let tail = all(tail_at, len);
        if let Some(e) = failed {
            log::log(
                Level::Warn,
                format_args!(
                    "device '{name}': not all of its first and last {LOOKED_AT} bytes could be read ({e}): data there was not checked before writing"
                ),
            );
        }
        Ends {
            len,
            block,
            head,
            tail,
            tail_at,
        }
    }

    /// Bytes from `at` on, if all of them were read.
    fn bytes(&self, at: u64, len: usize) -> Option<&[u8]> {
        let slice = |bytes: &'_ [u8], from: u64| -> Option<std::ops::Range<usize>> {
            let start = usize::try_from(at.checked_sub(from)?).ok()?;
            let end = start.checked_add(len)?;
            (end <= bytes.len()).then_some(start..end)
        };
        if let Some(range) = slice(&self.head, 0) {
            return self.head.get(range);
        }
        self.tail.get(slice(&self.tail, self.tail_at)?)
    }

    fn has(&self, at: u64, magic: &[u8]) -> bool {
        self.bytes(at, magic.len()) == Some(magic)
    }

    fn u32(&self, at: u64) -> Option<u32> {
        let bytes = self.bytes(at, 4)?;
        Some(u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]))
    }

    /// A sparse copy of the device, for libblkid.
    fn image(&self) -> io::Result<File> {
        let _shield = FileSizeShield::new();
        let image = sysfile::memory_file()?;
        image.set_len(self.len)?;
        image.write_all_at(&self.head, 0)?;
        image.write_all_at(&self.tail, self.tail_at)?;
        Ok(image)
    }
}

/// Formats with magic bytes at one place.
#[rustfmt::skip]
const MAGICS: &[(&str, u64, &[u8])] = &[
    ("xfs", 0, b"XFSB"),
    ("btrfs", 0x1_0040, b"_BHRfS_M"),
    ("f2fs", 0x400, &[0x10, 0x20, 0xf5, 0xf2]),
    ("bcachefs", 0x1018, &[0xc6, 0x85, 0x73, 0xf6, 0x66, 0xce, 0x90, 0xa9]),
    ("bcache", 0x1018, &[0xc6, 0x85, 0x73, 0xf6, 0x4e, 0x1a, 0x45, 0xca]),
    ("ntfs", 3, b"NTFS    "),
    ("exfat", 3, b"EXFAT   "),
    ("BitLocker", 3, b"-FVE-FS-"),
    ("crypto_LUKS", 0, b"LUKS\xba\xbe"),
    ("crypto_LUKS", 0x4000, b"SKUL\xba\xbe"),
    ("crypto_LUKS", 0x8000, b"SKUL\xba\xbe"),
    ("linux_raid_member", 0, &[0xfc, 0x4e, 0x2b, 0xa9]),
    ("linux_raid_member", 0x1000, &[0xfc, 0x4e, 0x2b, 0xa9]),
    ("squashfs", 0, b"hsqs"),
    ("squashfs", 0, b"sqsh"),
    ("erofs", 0x400, &[0xe2, 0xe1, 0xf5, 0xe0]),
    ("cramfs", 0, &[0x45, 0x3d, 0xcd, 0x28]),
    ("romfs", 0, b"-rom1fs-"),
    ("iso9660", 0x8001, b"CD001"),
    ("udf", 0x8001, b"BEA01"),
    ("udf", 0x8001, b"NSR0"),
    ("jfs", 0x8000, b"JFS1"),
    ("reiserfs", 0x1_0034, b"ReIsEr"),
    ("reiser4", 0x1_0000, b"ReIsEr4"),
    ("gfs2", 0x1_0000, &[0x01, 0x16, 0x19, 0x70]),
    ("ocfs2", 0x400, b"OCFSV2"),
    ("ocfs2", 0x800, b"OCFSV2"),
    ("ocfs2", 0x1000, b"OCFSV2"),
    ("ocfs2", 0x2000, b"OCFSV2"),
    ("apfs", 0x20, b"NXSB"),
    ("hfsplus", 0x400, b"H+\x00\x04"),
    ("hfsplus", 0x400, b"HX\x00\x05"),
    ("ceph_bluestore", 0, b"bluestore block device"),
    ("vdo", 0, b"dmvdo001"),
    ("stratis", 0x204, b"!Stra0tis\x86\xff\x02^\x41rh"),
    ("DM_integrity", 0, b"integrt\x00"),
    ("DM_verity_hash", 0, b"verity\x00\x00"),
    ("gpt", 0x200, b"EFI PART"),
    ("gpt", 0x1000, b"EFI PART"),
];

/// Checks the formats that are known here. Returns libblkid's name.
fn known(ends: &Ends) -> Vec<Found> {
    let mut found = Vec::new();
    let mut add = |name: &str, at: u64| {
        found.push(Found {
            name: name.to_string(),
            at: Some(at),
        });
    };
    for (name, at, magic) in MAGICS {
        if ends.has(*at, magic) {
            add(name, *at);
        }
    }
    if is_ext(ends) {
        add("ext2, ext3 or ext4", EXT + 0x38);
    }
    let bootable = ends.has(0x1fe, &[0x55, 0xaa]);
    let fat = ends.has(0x52, b"FAT32   ")
        || [b"FAT12   ", b"FAT16   ", b"FAT     "]
            .iter()
            .any(|magic| ends.has(0x36, *magic));
    if bootable && fat {
        add("vfat", 0x1fe);
    } else if bootable && has_partitions(ends) {
        add("dos partition table", 0x1fe);
    }
    for sector in 0..4 {
        let at = sector * 512;
        if ends.has(at, b"LABELONE") && ends.has(at + 24, b"LVM2 001") {
            add("LVM2_member", at);
        }
    }
    for page in [4096, 8192, 16384, 65536] {
        for magic in [
            &b"SWAPSPACE2"[..],
            b"SWAP-SPACE",
            b"S1SUSPEND",
            b"LINHIB0001",
        ] {
            if ends.has(page - 10, magic) {
                add("swap", page - 10);
            }
        }
    }
    // An uberblock of the array in either label, in either byte order.
    for at in (128 << 10..256 << 10).step_by(1 << 10) {
        let number = 0x00ba_b10c_u64;
        if ends.has(at, &number.to_le_bytes()) || ends.has(at, &number.to_be_bytes()) {
            add("zfs_member", at);
            break;
        }
    }
    at_end(ends, &mut add);
    found
}

/// Formats with magic bytes at the device's end.
fn at_end(ends: &Ends, add: &mut impl FnMut(&str, u64)) {
    let len = ends.len;
    if let Some(at) = (len & !0xffff).checked_sub(0x1_0000)
        && ends.has(at, &[0xfc, 0x4e, 0x2b, 0xa9])
    {
        add("linux_raid_member", at);
    }
    if let Some(sector) = (len / 512).checked_sub(16)
        && ends.has((sector & !7) * 512, &[0xfc, 0x4e, 0x2b, 0xa9])
    {
        add("linux_raid_member", (sector & !7) * 512);
    }
    if let Some(at) =
        (len / u64::from(ends.block) * u64::from(ends.block)).checked_sub(ends.block.into())
        && ends.has(at, b"EFI PART")
    {
        add("gpt", at);
    }
    if let Some(at) = (len & !0xfff).checked_sub(0x1000)
        && (ends.has(at + 60, &[0x83, 0x74, 0x02, 0x6b])
            || ends.has(at + 60, &[0x83, 0x74, 0x02, 0x6c])
            || ends.has(at + 60, &[0x83, 0x74, 0x02, 0x6d]))
    {
        add("drbd", at + 60);
    }
}

const EXT: u64 = 0x400;

/// Two bytes of magic are weak evidence, so the fields around them must be valid.
fn is_ext(ends: &Ends) -> bool {
    ends.has(EXT + 0x38, &[0x53, 0xef])
        && ends.u32(EXT + 4).is_some_and(|blocks| blocks > 0)
        && ends.u32(EXT + 0x18).is_some_and(|shift| shift <= 6)
        && ends.u32(EXT + 0x4c).is_some_and(|revision| revision <= 1)
}

/// The four entries of a master boot record: each unused, or active or not.
fn has_partitions(ends: &Ends) -> bool {
    let entries = (0..4).map(|i| ends.bytes(0x1be + i * 16, 16));
    entries
        .map(|entry| entry.unwrap_or(&[0xff; 16]))
        .all(|entry| entry == [0; 16] || (entry[0] & 0x7f == 0 && entry[4] != 0))
}

/// A log of this library that begins at the device's start.
enum OwnLog {
    Slots(Superblock),
    Units(UnitSuperblock),
}

impl OwnLog {
    fn at_start(ends: &Ends) -> Option<OwnLog> {
        let bytes = ends.bytes(0, 512)?;
        let slots = Superblock::read(bytes).filter(|log| log.start_lba == 0);
        let units = || UnitSuperblock::read(bytes).filter(|log| log.start_lba == 0);
        slots
            .map(OwnLog::Slots)
            .or_else(|| units().map(OwnLog::Units))
    }

    /// Whether the bytes at a place are the log's. Packets may look like anything.
    fn holds(&self, ends: &Ends, at: u64) -> bool {
        let size = u64::from(match self {
            OwnLog::Slots(log) => log.slot_size,
            OwnLog::Units(log) => log.slot_size,
        });
        let number = at / size;
        let slot = ends.bytes(number * size, size as usize);
        slot.is_some_and(|slot| match self {
            OwnLog::Slots(_) if number < SUPER_SLOTS => Superblock::read(slot).is_some(),
            OwnLog::Slots(log) => Header::read(slot, log.log_id).is_ok(),
            OwnLog::Units(_) if number < SUPER_SLOTS => UnitSuperblock::read(slot).is_some(),
            OwnLog::Units(log) => SlotHeader::read(slot).is_some_and(|h| h.tag == log.tag()),
        })
    }
}

fn find(ends: &Ends) -> Vec<Found> {
    let mut found = known(ends);
    let more = ends
        .image()
        .ok()
        .and_then(|image| blkid::find(&image, ends.block));
    for one in more.unwrap_or_default() {
        // libblkid sometimes takes random bytes for an Atari partition table, and two bytes for an ext file system.
        let of_ext = one.name.starts_with("ext") || one.name == "jbd";
        let doubtful = one.name == "atari" || (of_ext && !is_ext(ends));
        if !doubtful {
            // Its names are more precise.
            found.retain(|other| other.at != one.at);
            found.push(one);
        }
    }
    if let Some(log) = OwnLog::at_start(ends) {
        found.retain(|one| !one.at.is_some_and(|at| log.holds(ends, at)));
    }
    found
}

fn check(name: &str, what: &str, ends: &Ends) -> Result<()> {
    let mut names: Vec<String> = find(ends).into_iter().map(|one| one.name).collect();
    names.sort();
    names.dedup();
    if names.is_empty() {
        return Ok(());
    }
    Err(Error::new(
        libc::EEXIST,
        format!(
            "{what} '{name}' holds data that writing would destroy ({}); use another one, erase it with wipefs -a if it is no longer needed, or override this with {FORCE}",
            names.join(", ")
        ),
    ))
}

/// Reads through any descriptor, even one that was opened with O_DIRECT.
fn reader(file: &File) -> impl FnMut(u64, &mut [u8]) -> io::Result<()> + '_ {
    // A piece that begins on one: more than any block or page.
    let mut room = vec![0; 2 * PIECE];
    let skip = room.as_ptr().align_offset(PIECE);
    move |at, to| {
        let buffer = &mut room[skip..skip + to.len()];
        let mut done = 0;
        while done < buffer.len() {
            match file.read_at(&mut buffer[done..], at + done as u64) {
                Ok(0) => break,
                Ok(n) => done += n,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                // The end of a file that is not a multiple of a block, read directly.
                Err(e) if done > 0 && e.raw_os_error() == Some(libc::EINVAL) => break,
                Err(e) => return Err(e),
            }
        }
        to[..done].copy_from_slice(&buffer[..done]);
        Ok(())
    }
}

/// `EEXIST` if a regular file holds a file system or the like.
pub(super) fn check_file(path: &str, file: &File, len: u64) -> Result<()> {
    let ends = Ends::read(path, len, 512, reader(file));
    check(path, "file", &ends)
}

/// `EEXIST` if a block device holds a file system or the like.
pub(super) fn check_block(path: &str, file: &File, limits: &Limits) -> Result<()> {
    let len = limits.blocks << limits.block_shift();
    let ends = Ends::read(path, len, limits.block_size, reader(file));
    check(path, "device", &ends)
}

/// The same of a namespace, read through its passthrough node.
pub(super) fn check_namespace(name: &str, file: &File, limits: &Limits) -> Result<()> {
    let len = limits.blocks << limits.block_shift();
    let longest = limits.max_transfer.min(PIECE as u32).max(limits.block_size);
    let read = |at: u64, to: &mut [u8]| {
        let mut at = at;
        for part in to.chunks_mut(longest as usize) {
            let lba = at >> limits.block_shift();
            let there = (len - at.min(len)).min(part.len() as u64);
            let part = &mut part[..there as usize];
            if part.is_empty() {
                break;
            }
            let blocks = (part.len() >> limits.block_shift()) as u16;
            sysfile::nvme_read(file, limits.nsid, lba, blocks, part)?;
            at += part.len() as u64;
        }
        Ok(())
    };
    let ends = Ends::read(name, len, limits.block_size, read);
    check(name, "device", &ends)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::unit_log::unit::kind;

    const LEN: usize = 4 << 20;

    fn ends(image: &[u8]) -> Ends {
        let copy = |at: u64, to: &mut [u8]| {
            let at = at as usize;
            let len = to.len().min(image.len().saturating_sub(at));
            to[..len].copy_from_slice(&image[at..at + len]);
            Ok(())
        };
        Ends::read("image", image.len() as u64, 512, copy)
    }

    fn with(marks: &[(usize, &[u8])]) -> Vec<u8> {
        let mut image = vec![0; LEN];
        for (at, bytes) in marks {
            image[*at..at + bytes.len()].copy_from_slice(bytes);
        }
        image
    }

    fn names(image: &[u8]) -> Vec<String> {
        let found = known(&ends(image));
        found.into_iter().map(|one| one.name).collect()
    }

    #[test]
    fn each_format_is_known_by_its_mark_without_libblkid() {
        for (name, at, magic) in MAGICS {
            let found = names(&with(&[(*at as usize, magic)]));
            assert!(found.contains(&name.to_string()), "{name}: {found:?}");
        }
        let entry = [0x80, 0, 2, 0, 0x83, 0, 0, 0, 0, 8, 0, 0, 0, 0x10, 0, 0];
        let raid = &[0xfc, 0x4e, 0x2b, 0xa9][..];
        let one = &1u32.to_le_bytes()[..];
        let uberblock = 0x00ba_b10c_u64.to_le_bytes();
        let odd = LEN - 512;
        for (name, marks) in [
            (
                "ext2, ext3 or ext4",
                &[(0x438, &[0x53, 0xef][..]), (0x404, one)][..],
            ),
            ("vfat", &[(0x52, b"FAT32   "), (510, &[0x55, 0xaa])]),
            ("vfat", &[(0x36, b"FAT16   "), (510, &[0x55, 0xaa])]),
            (
                "dos partition table",
                &[(0x1be, &entry), (510, &[0x55, 0xaa])],
            ),
            ("LVM2_member", &[(512, b"LABELONE"), (536, b"LVM2 001")]),
            ("swap", &[(4086, b"SWAPSPACE2")]),
            ("zfs_member", &[((128 << 10) + (7 << 10), &uberblock)]),
            ("linux_raid_member", &[(LEN - 0x1_0000, raid)]),
            ("linux_raid_member", &[(LEN - 8192, raid)]),
            ("gpt", &[(odd, b"EFI PART")]),
            ("drbd", &[(LEN - 4096 + 60, &[0x83, 0x74, 0x02, 0x6d])]),
        ] {
            assert!(names(&with(marks)).contains(&name.to_string()), "{name}");
        }
    }

    #[test]
    fn what_is_nobodys_is_not_taken_for_a_format() {
        assert_eq!(find(&ends(&with(&[]))), Vec::new());
        assert_eq!(find(&ends(&[])), Vec::new());
        assert_eq!(find(&ends(&[1; 100])), Vec::new());
        // Two matching bytes alone are not a file system or a table.
        let chance = [0x5a; 512];
        let image = with(&[
            (0x400, &chance),
            (0x438, &[0x53, 0xef]),
            (0, &chance),
            (510, &[0x55, 0xaa]),
        ]);
        assert_eq!(find(&ends(&image)), Vec::new());
        let mut state = 1u64;
        for round in 0..20 {
            let mut image = vec![0; 1 << 20];
            image.fill_with(|| {
                state = state
                    .wrapping_mul(6_364_136_223_846_793_005)
                    .wrapping_add(1);
                (state >> 56) as u8
            });
            assert_eq!(find(&ends(&image)), Vec::new(), "in round {round}");
        }
    }

    /// A record whose packet looks like a file system is not one. Data between records is.
    #[test]
    fn a_log_of_our_own_may_hold_anything() {
        const SLOT: usize = 2048;
        let mut log = Superblock::new(5, 1, 512, SLOT as u32, 0, (LEN / 512) as u64, true).unwrap();
        let mut packet = [0; 96];
        packet[..8].copy_from_slice(b"_BHRfS_M");
        let header = Header {
            log_id: log.log_id,
            packet_len: packet.len() as u32,
            packet_offset: 64,
            payload_offset: 64,
            ..Header::default()
        };
        let mut record = header.to_bytes(crate::sys::crc::crc32c(&packet)).to_vec();
        record.extend_from_slice(&packet);
        let record_at = 0x1_0000;
        let mut marks = vec![(record_at, record.as_slice())];
        assert_eq!(
            check("x", "file", &ends(&with(&marks)))
                .unwrap_err()
                .errno(),
            libc::EEXIST
        );
        let first = log.to_bytes();
        marks.push((0, &first));
        check("x", "file", &ends(&with(&marks))).unwrap();
        // A disk array has its magic where a record would be, and may leave older data before it.
        marks.push((4096, &[0xfc, 0x4e, 0x2b, 0xa9]));
        assert!(check("x", "file", &ends(&with(&marks))).is_err());
        marks.pop();
        log.log_id = 6;
        let other = log.to_bytes();
        marks[1] = (0, &other);
        assert!(
            check("x", "file", &ends(&with(&marks))).is_err(),
            "another log's record"
        );
    }

    #[test]
    fn nor_does_a_log_of_units_look_like_a_file_system() {
        const SLOT: usize = 2048;
        let log = UnitSuperblock::new(5, 1, 512, SLOT as u32, 0, (LEN / 512) as u64, true).unwrap();
        let header = SlotHeader {
            kind: kind::PACKED,
            index: 1,
            slots: 2,
            generation: 1,
            slot: 30,
            tag: log.tag(),
            first: 0,
        };
        // In the middle of a unit of packed packets.
        let mut slot = header.to_bytes().to_vec();
        slot.resize(64, 0);
        slot.extend_from_slice(b"_BHRfS_M");
        let mut marks = vec![(0x1_0000, slot.as_slice())];
        assert!(check("x", "file", &ends(&with(&marks))).is_err());
        let first = log.to_bytes();
        marks.push((0, &first));
        check("x", "file", &ends(&with(&marks))).unwrap();
        let other = UnitSuperblock { set_id: 6, ..log }.to_bytes();
        marks[1] = (0, &other);
        assert!(check("x", "file", &ends(&with(&marks))).is_err());
    }

    #[test]
    fn a_spot_that_cannot_be_read_hides_nothing_else() {
        let image = with(&[(0, b"XFSB"), (LEN - 512, b"EFI PART")]);
        let broken = |at: u64, to: &mut [u8]| {
            if at == 0 {
                return Err(io::Error::from_raw_os_error(libc::EIO));
            }
            to.copy_from_slice(&image[at as usize..at as usize + to.len()]);
            Ok(())
        };
        let found = find(&Ends::read("image", LEN as u64, 512, broken));
        assert!(found.iter().any(|one| one.name == "gpt"), "{found:?}");
    }
}
