//! The writing side of a log in the slot layout: finds where an earlier one ended, makes received frames
//! records, and says where each goes.

#![forbid(unsafe_code)]

use std::collections::hash_map::RandomState;
use std::fs::File;
use std::hash::{BuildHasher, Hasher};
use std::io;
use std::os::unix::fs::FileExt;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use crate::context::Context;
use crate::error::{Error, Result};
use crate::frame::FrameMap;
use crate::lane::{Completion, Ready, Transfer};
use crate::net::rx::Received;
use crate::record::{
    Checksum, FLAG_VLAN, HEADER_LEN, Header, Losses, NAME_LEN, SUPER_LEN, SUPER_SLOTS, Superblock,
    mark_unreadable, refuse_version,
};
use crate::stats::Statistics;
use crate::storage::command::status_text;
use crate::storage::device::Kind;

use crate::sys::event::monotonic_ns;
use crate::sys::shm::Shared;

/// After so many slots in a row without a record nothing newer follows: more than can ever have been in
/// flight at once, so that a hole left by a crash is no end.
pub const HOLE: u64 = 4096;
/// Records between two superblocks that say how far the log has come.
const CHECKPOINT: u64 = 16384;
/// Slots read at once when the log is opened.
const READ_BATCH: u64 = 64;
/// Parts of a range, one slot of each of which is looked at before a log is begun there.
const SAMPLES: u64 = 32;

/// What to do with what stands in the range already.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub enum Existing {
    /// Go on behind the newest record of a log; make a new one where there is none.
    #[default]
    Continue,
    /// Begin a new log; records of an earlier one count no more.
    Replace,
}

#[derive(Debug)]
pub struct Recorder {
    superblock: Superblock,
    next: u64,
    checkpointed: u64,
    data: Shared,
    map: FrameMap,
    fua: bool,
    queue: u16,
    /// CLOCK_REALTIME less CLOCK_MONOTONIC, ns.
    wall: u64,
    losses: LossCount,
}

/// What was lost since the log was opened, beside what it knew before.
#[derive(Debug)]
struct LossCount {
    before: Losses,
    /// The context's counters when the log was opened.
    base: (u64, u64),
    known: Losses,
}

impl LossCount {
    fn begin(context: &Context, before: Losses) -> Result<LossCount> {
        Ok(LossCount {
            before,
            base: lost(&context.statistics()?),
            known: before,
        })
    }

    fn look(&mut self, stats: &Statistics) {
        let now = lost(stats);
        let known = &mut self.known;
        let total = known.total();
        // Counters of a program that was taken off are 0: what was known stays.
        let sum = |before: u64, now: u64, base: u64, known: u64| {
            known.max(before.saturating_add(now.saturating_sub(base)))
        };
        known.dropped = sum(self.before.dropped, now.0, self.base.0, known.dropped);
        known.unrecorded = sum(self.before.unrecorded, now.1, self.base.1, known.unrecorded);
        if known.total() != total {
            known.last = wall_offset().wrapping_add(monotonic_ns());
            if known.first == 0 {
                known.first = known.last;
            }
        }
    }
}

/// Packets of the recorded ports that are not in the log: dropped by the kernel, and seen but not recorded. Writes that
/// failed have numbers of their own, so the log tells of them itself.
fn lost(stats: &Statistics) -> (u64, u64) {
    let (xdp, xsk) = (stats.xdp, stats.xsk);
    (
        xsk.rx_dropped + xsk.rx_ring_full + stats.redirect_errors,
        xdp.no_socket + xdp.malformed + xdp.merged + stats.bad_descriptors + stats.released,
    )
}

fn name_bytes(name: Option<&str>) -> [u8; NAME_LEN] {
    let mut bytes = [0; NAME_LEN];
    let name = name.unwrap_or_default().as_bytes();
    // Linux has no longer ones.
    let len = name.len().min(NAME_LEN - 1);
    bytes[..len].copy_from_slice(&name[..len]);
    bytes
}

fn wall_offset() -> u64 {
    let wall = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    (wall.as_nanos() as u64).wrapping_sub(monotonic_ns())
}

impl Recorder {
    /// Opens the log in `blocks` blocks from `start_lba` on, with the roles of the context free: the caller's
    /// thread reads and writes through it. `EINVAL`: no log fits, or another one is there with other sizes. `EEXIST`:
    /// the range holds something else, and neither `existing` nor the context says that it may go.
    pub fn open(
        context: &Context,
        start_lba: u64,
        blocks: u64,
        wraps: bool,
        fua: bool,
        existing: Existing,
    ) -> Result<Recorder> {
        let info = context.info();
        let now = wall_offset().wrapping_add(monotonic_ns());
        // Each hasher of the standard library has random keys.
        let log_id = RandomState::new().build_hasher().finish() ^ now;
        let fresh = Superblock::new(
            log_id,
            now,
            info.limits.block_size,
            info.frame_size,
            start_lba,
            blocks,
            wraps,
        )?;
        let fresh = Superblock {
            interface: name_bytes(context.ifname()),
            ..fresh
        };
        let disk = Disk { context };
        let copies = disk.read(fresh.super_lba(0), SUPER_SLOTS)?;
        let found = newest_superblock(copies.iter().map(Vec::as_slice));
        if existing == Existing::Continue {
            let version = copies
                .iter()
                .find_map(|copy| Superblock::unknown_version(copy));
            if let Some(version) = version {
                return Err(refuse_version(&info.device, version));
            }
            // One copy is enough to go on. Without any, what cannot be read may be a log.
            if found.is_none() && copies.iter().any(|copy| is_unreadable(copy)) {
                return Err(Error::new(
                    libc::EIO,
                    format!(
                        "block {start_lba} of '{}', where a log would begin, cannot be read: choose another range, \
                         or begin a new log with UNIFIED_LOG_NEW",
                        info.device
                    ),
                ));
            }
        }
        let mut recorder = Recorder {
            superblock: fresh,
            next: 0,
            checkpointed: 0,
            data: context.data().clone(),
            map: info.frames(),
            fua,
            queue: info.network.map_or(0, |network| network.queue as u16),
            wall: wall_offset(),
            losses: LossCount::begin(context, Losses::default())?,
        };
        match (found, existing) {
            (Some(old), Existing::Continue) => {
                recorder.check_same(&old, &info.device)?;
                let interface = recorder.superblock.interface;
                recorder.superblock = Superblock {
                    wraps,
                    interface,
                    ..old
                };
                recorder.losses.before = old.losses;
                recorder.losses.known = old.losses;
                let log = recorder.superblock;
                let spill = info
                    .spill
                    .as_deref()
                    .map(File::open)
                    .transpose()
                    .map_err(|e| {
                        Error::os(&e, format_args!("reading the spill of '{}'", info.device))
                    })?;
                recorder.next = find_end(&log, |sequence, count| {
                    let mut slots = disk.read(log.lba_of(sequence), count)?;
                    if let Some(spill) = &spill {
                        mend(
                            spill,
                            &log,
                            sequence,
                            slots.iter_mut().map(Vec::as_mut_slice),
                        )?;
                    }
                    Ok(slots)
                })?;
                recorder.checkpointed = recorder.next;
                recorder.superblock.next_sequence = recorder.next;
                recorder.write_superblock(&disk)?;
            }
            _ => {
                if found.is_none() && existing == Existing::Continue && !info.forced {
                    check_empty(&disk, &fresh, &copies)?;
                }
                // Both copies, so that none of an earlier log survives.
                recorder.superblock.generation = found.map_or(0, |old| old.generation + 1);
                recorder.write_superblock(&disk)?;
                recorder.write_superblock(&disk)?;
            }
        }
        Ok(recorder)
    }

    fn check_same(&self, old: &Superblock, device: &str) -> Result<()> {
        let new = &self.superblock;
        let here = |s: &Superblock| (s.block_size, s.slot_size, s.start_lba, s.slots);
        if here(old) == here(new) {
            return Ok(());
        }
        Err(Error::new(
            libc::EINVAL,
            format!(
                "'{device}' holds a log of {} slots of {} bytes at block {} (blocks of {}), and this one would \
                 be {} of {} at {} (blocks of {}): give the same range and frame size, or replace it",
                old.slots,
                old.slot_size,
                old.start_lba,
                old.block_size,
                new.slots,
                new.slot_size,
                new.start_lba,
                new.block_size
            ),
        ))
    }

    fn write_superblock(&mut self, disk: &Disk) -> Result<()> {
        self.superblock.generation += 1;
        let lba = self.superblock.super_lba(self.superblock.generation);
        disk.write(lba, &self.superblock.to_bytes())
    }

    pub fn superblock(&self) -> &Superblock {
        &self.superblock
    }

    /// The sequence number that the next record gets.
    pub fn next_sequence(&self) -> u64 {
        self.next
    }

    /// Times the log began again at its start.
    pub fn wraps(&self) -> u64 {
        self.next.saturating_sub(1) / self.superblock.slots
    }

    /// No room is left, and the log does not wrap.
    pub fn is_full(&self) -> bool {
        !self.superblock.wraps && self.next >= self.superblock.slots
    }

    /// Looks at the clocks, once a batch: packets carry CLOCK_MONOTONIC, records the time of day.
    pub fn look_at_clock(&mut self) {
        self.wall = wall_offset();
    }

    /// Makes a received packet's frame a record, in place: the header in the frame's first bytes, zeroes
    /// around the packet. The caller holds the frame; `write` becomes the write to submit.
    pub fn record(&mut self, packet: &Received, write: &mut Transfer) {
        let frame = self.map.range(packet.frame);
        let (start, base) = (frame.start, frame.start as usize);
        let at = (packet.offset - start) as usize;
        let end = at + packet.len as usize;
        let headers = &packet.headers;
        let timestamp = match packet.timestamp {
            0 => monotonic_ns(),
            seen => seen,
        };
        let header = Header {
            sequence: self.next,
            log_id: self.superblock.log_id,
            timestamp: timestamp.wrapping_add(self.wall),
            packet_len: packet.len,
            packet_offset: at as u16,
            payload_offset: at as u16 + headers.payload_offset,
            payload_len: headers.payload_len,
            vlan_tci: headers.vlan_tci.unwrap_or(0),
            src_port: headers.src_port,
            dst_port: headers.dst_port,
            ip_version: headers.ip_version,
            flags: if headers.vlan_tci.is_some() {
                FLAG_VLAN
            } else {
                0
            },
            queue: self.queue,
        };
        let crc = self.checksum(base + at, packet.len as usize);
        self.data.write(base, &header.to_bytes(crc));
        self.data.zero(base + HEADER_LEN, at - HEADER_LEN);
        self.data
            .zero(base + end, self.map.frame_size() as usize - end);
        write.frame = packet.frame;
        write.offset = start;
        write.len = self.map.frame_size();
        write.lba = self.superblock.lba_of(self.next);
        write.fua = self.fua;
        self.next += 1;
    }

    /// Through a small copy: nobody else writes to a held frame, but the compiler need not believe it.
    fn checksum(&self, at: usize, len: usize) -> u32 {
        let mut piece = [0u8; 512];
        let mut sum = Checksum::default();
        let mut done = 0;
        while done < len {
            let part = (len - done).min(piece.len());
            self.data.read(at + done, &mut piece[..part]);
            sum.add(&piece[..part]);
            done += part;
        }
        sum.value()
    }

    /// Whether it is time for a superblock that says how far the log has come. `failed` writes since the one that is on
    /// the device: as many in a row as `HOLE` would be taken for the log's end, so they are not left behind it.
    pub fn wants_checkpoint(&self, failed: u64) -> bool {
        let often = if failed < HOLE / 2 {
            CHECKPOINT
        } else {
            HOLE / 8
        };
        self.next - self.checkpointed >= often.min(self.superblock.slots / 4).max(1)
    }

    /// Looks at what was lost meanwhile. `true` if it is more than the superblock on the device says. Counters that cannot
    /// be read are no reason to stop recording: what was known stays.
    pub fn look_at_losses(&mut self, context: &Context) -> bool {
        if let Ok(stats) = context.statistics() {
            self.losses.look(&stats);
        }
        self.losses.known != self.superblock.losses
    }

    /// Makes a free frame, which the caller holds, a superblock. `settled`: every record below it is on the
    /// device or has failed.
    pub fn checkpoint(&mut self, frame: u32, settled: u64) -> Transfer {
        self.checkpointed = self.next;
        self.superblock.generation += 1;
        self.superblock.losses = self.losses.known;
        self.superblock.next_sequence = settled;
        let start = self.map.start(frame);
        let bytes = self.superblock.to_bytes();
        self.data.write(start as usize, &bytes);
        self.data.zero(
            start as usize + SUPER_LEN,
            self.map.frame_size() as usize - SUPER_LEN,
        );
        Transfer {
            frame,
            offset: start,
            len: self.map.frame_size(),
            lba: self.superblock.super_lba(self.superblock.generation),
            ..Transfer::default()
        }
    }
}

/// As `mark_unreadable` leaves it.
fn is_unreadable(slot: &[u8]) -> bool {
    let mut marked = vec![0; slot.len()];
    mark_unreadable(&mut marked);
    slot == marked
}

/// The copy that counts.
pub fn newest_superblock<'a>(copies: impl Iterator<Item = &'a [u8]>) -> Option<Superblock> {
    copies
        .filter_map(Superblock::read)
        .max_by_key(|superblock| superblock.generation)
}

/// Takes from the spill the records from `first` on that are not in the slots of the device.
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

/// The sequence number behind the newest record. `read` gives that many slots from a record's slot on; it
/// is never asked to go past the last slot, and may give fewer, but one at least.
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
                    // The log went round since the superblock was written: the end is a lap or more ahead.
                    ahead = Some(header.sequence - i as u64);
                }
            }
        }
        at = ahead.unwrap_or(at) + slots.len() as u64;
    }
    Ok(end)
}

/// Refuses a range that holds something else than a log: `EEXIST`. Its first slots are looked at, its last ones, and
/// some in between. What cannot be read says nothing.
fn check_empty(disk: &Disk, log: &Superblock, copies: &[Vec<u8>]) -> Result<()> {
    // Nothing is ever stored there, and what reading gives is what the memory held.
    if disk.context.info().kind == Kind::Null {
        return Ok(());
    }
    let refuse = |lba: u64| {
        Err(Error::new(
            libc::EEXIST,
            format!(
                "'{}' holds something that is no log (at block {lba}), which a new log would write over; give an empty \
                 range or another device, or begin a new log there all the same (the flag UNIFIED_LOG_NEW, or \
                 UNIFIED_FORCE of the context)",
                disk.context.info().device
            ),
        ))
    };
    let is_empty = |slot: &[u8]| slot.iter().all(|byte| *byte == 0);
    for (number, copy) in copies.iter().enumerate() {
        if !is_empty(copy) {
            return refuse(log.super_lba(number as u64));
        }
    }
    let last = log.slots - READ_BATCH.min(log.slots);
    let between = (1..SAMPLES).map(|i| (log.slots / SAMPLES * i, 1));
    for (first, count) in [(0, READ_BATCH), (last, READ_BATCH)]
        .into_iter()
        .chain(between)
    {
        let mut at = first;
        let end = (first + count).min(log.slots);
        while at < end {
            let Ok(slots) = disk.read(log.lba_of(at), end - at) else {
                break;
            };
            for slot in &slots {
                if !is_empty(slot) {
                    return refuse(log.lba_of(at));
                }
                at += 1;
            }
        }
    }
    Ok(())
}

/// Reads and writes through the context, one after the other; only before its threads start.
struct Disk<'a> {
    context: &'a Context,
}

impl Disk<'_> {
    fn frames(&self) -> FrameMap {
        self.context.info().frames()
    }

    fn transfer(&self, frame: u32, lba: u64) -> Transfer {
        Transfer {
            frame,
            offset: self.frames().start(frame),
            len: self.frames().frame_size(),
            lba,
            user_data: frame.into(),
            ..Transfer::default()
        }
    }

    /// Takes the completions of `count` commands, all of which must succeed.
    fn finish(&self, count: usize, what: &str) -> Result<()> {
        match self.finish_each(count, what)?.first() {
            None => Ok(()),
            // A log whose superblock is not on its device would not be found again.
            Some((_, status)) => Err(Error::new(
                libc::EIO,
                format!(
                    "{what} the log on '{}': {}",
                    self.context.info().device,
                    status_text(*status)
                ),
            )),
        }
    }

    /// Takes the completions of `count` commands: the `user_data` and the status of those that failed or were spilled.
    fn finish_each(&self, mut count: usize, what: &str) -> Result<Vec<(u64, u16)>> {
        let until = Instant::now() + Duration::from_secs(30);
        let mut done = [Completion::default(); READ_BATCH as usize];
        let mut failed = Vec::new();
        while count > 0 {
            self.context.stays()?;
            self.context
                .wait(Ready::COMPLETIONS, Some(Duration::from_millis(100)))?;
            let got = self.context.completions(&mut done)?;
            for completion in &done[..got] {
                if completion.status != 0 || completion.spilled {
                    failed.push((completion.user_data, completion.status));
                }
            }
            count -= got.min(count);
            if count > 0 && Instant::now() > until {
                return Err(Error::new(
                    libc::ETIMEDOUT,
                    format!("{what} the log on '{}'", self.context.info().device),
                ));
            }
        }
        Ok(failed)
    }

    /// Up to `count` whole slots.
    fn read(&self, lba: u64, count: u64) -> Result<Vec<Vec<u8>>> {
        self.context.stays()?;
        let size = self.frames().frame_size();
        let step = u64::from(self.context.blocks_of(size));
        let mut frames = Vec::new();
        for _ in 0..count {
            match self.context.frame_alloc() {
                Ok(frame) => frames.push(frame),
                Err(error) if frames.is_empty() => {
                    return Err(
                        error.hint("opening a log needs a free frame: fewer in the fill ring")
                    );
                }
                Err(_) => break,
            }
        }
        let mut result = Ok(());
        let mut submitted = 0;
        for (i, frame) in frames.iter().enumerate() {
            let request = self.transfer(*frame, lba + i as u64 * step);
            match self.context.submit_read(&request) {
                Ok(()) => submitted += 1,
                // A short SQ ring: as many as it takes.
                Err(error) if error.errno() == libc::EAGAIN && submitted > 0 => break,
                Err(error) => {
                    result = Err(error);
                    break;
                }
            }
        }
        let finished = self.finish_each(submitted, "reading");
        let failed = finished.as_ref().map_or(&[][..], Vec::as_slice);
        let mut slots = Vec::new();
        for (i, frame) in frames.into_iter().enumerate() {
            if i < submitted {
                let mut slot = vec![0; size as usize];
                self.context
                    .data()
                    .read(self.frames().start(frame) as usize, &mut slot);
                // A block that cannot be read costs its slot, and no other.
                if failed.iter().any(|(data, _)| *data == u64::from(frame)) {
                    mark_unreadable(&mut slot);
                }
                slots.push(slot);
            }
            // Still in flight where the device took too long: its completion frees it.
            let _ = self.context.frame_release(frame);
        }
        result.and(finished).map(|_| slots)
    }

    /// Bytes padded with zeroes to a slot, on the medium when it returns.
    fn write(&self, lba: u64, bytes: &[u8]) -> Result<()> {
        let frame = self.context.frame_alloc()?;
        let request = Transfer {
            fua: true,
            ..self.transfer(frame, lba)
        };
        let at = request.offset as usize;
        self.context.data().write(at, bytes);
        self.context.data().zero(
            at + bytes.len(),
            self.frames().frame_size() as usize - bytes.len(),
        );
        self.context.submit_write(&request).inspect_err(|_| {
            let _ = self.context.frame_release(frame);
        })?;
        self.finish(1, "writing")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::MIN_SLOTS;
    use proptest::prelude::*;

    fn log(slots: u64, next_sequence: u64) -> Superblock {
        Superblock {
            next_sequence,
            ..Superblock::new(5, 1, 512, 512, 0, slots + SUPER_SLOTS, true).unwrap()
        }
    }

    /// A device on which these records stand, the later ones over the earlier ones.
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
            // A checkpoint is never more than a quarter of a lap behind, and what was in flight is lost.
            let known = written.saturating_sub(behind % (slots / 4 + 1));
            let log = log(slots, known);
            let holes: Vec<u64> = lost.iter().filter_map(|l| written.checked_sub(l + 2)).collect();
            let slots = device(&log, (0..written).filter(|s| !holes.contains(s)));
            let expected = (0..written).rev().find(|s| !holes.contains(s)).map_or(0, |s| s + 1).max(known);
            prop_assert_eq!(end(&log, &slots), expected);
        }
    }
}
