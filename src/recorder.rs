//! Writes a log in the slot layout: finds the end of an earlier log, turns received frames into records, and decides
//! where each record goes.

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

/// After this many slots in a row without a record, nothing newer follows. More than can ever be in flight at once, so
/// a hole that a crash left is not taken for the end.
pub const HOLE: u64 = 4096;
/// Records between two superblocks that record the log's progress.
const CHECKPOINT: u64 = 16384;
/// Slots read at once when the log is opened.
const READ_BATCH: u64 = 64;
/// Before a log is begun in a range, one slot in each of this many parts is checked.
const SAMPLES: u64 = 32;

/// What to do with an existing log in the range.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub enum Existing {
    /// Continue after its newest record; begin a new log if there is none.
    #[default]
    Continue,
    /// Begin a new log; records of an earlier one are ignored.
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
    /// CLOCK_REALTIME minus CLOCK_MONOTONIC, in ns.
    wall: u64,
    losses: LossCount,
}

/// Losses since the log was opened, added to those that it recorded before.
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
        // The counters of a program that was detached are 0: keep the known values.
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

/// Packets of the recorded ports that are not in the log: dropped by the kernel, and seen but not recorded. Failed
/// writes are not counted here: they leave gaps in the sequence numbers.
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
    // Linux has no longer names.
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
    /// Opens the log in `blocks` blocks from `start_lba` on. The caller's thread reads and writes through the context,
    /// whose roles must be free. `EINVAL`: no log fits, or there is one with other sizes. `EEXIST`: the range holds
    /// something else, and neither `existing` nor the context allows overwriting it.
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
            // One readable copy is enough. Without any, the range may hold a log that cannot be read.
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
                // Write both copies, so that none of an earlier log survives.
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

    /// Number of times that the log wrapped to its start.
    pub fn wraps(&self) -> u64 {
        self.next.saturating_sub(1) / self.superblock.slots
    }

    /// Whether no room is left, in a log that does not wrap.
    pub fn is_full(&self) -> bool {
        !self.superblock.wraps && self.next >= self.superblock.slots
    }

    /// Reads the clocks, once a batch: packets carry CLOCK_MONOTONIC, records carry the time of day.
    pub fn look_at_clock(&mut self) {
        self.wall = wall_offset();
    }

    /// Turns a received packet's frame into a record, in place: the header in the frame's first bytes, zeroes around
    /// the packet. The caller holds the frame. `write` becomes the write to submit.
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

    /// Copies the packet piece by piece: nobody else writes to a held frame, but the compiler must not rely on that.
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

    /// Whether a superblock with the log's progress is due. `failed`: writes that failed since the superblock on the
    /// device. `HOLE` of them in a row would be taken for the log's end, so a superblock is written before that.
    pub fn wants_checkpoint(&self, failed: u64) -> bool {
        let often = if failed < HOLE / 2 {
            CHECKPOINT
        } else {
            HOLE / 8
        };
        self.next - self.checkpointed >= often.min(self.superblock.slots / 4).max(1)
    }

    /// Reads the loss counters. `true` if more was lost than the superblock on the device says. If they cannot be
    /// read, recording continues with the known values.
    pub fn look_at_losses(&mut self, context: &Context) -> bool {
        if let Ok(stats) = context.statistics() {
            self.losses.look(&stats);
        }
        self.losses.known != self.superblock.losses
    }

    /// Turns an empty frame, which the caller holds, into a superblock. `settled`: every record before this number is
    /// on the device or has failed.
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

/// Whether `mark_unreadable` has marked it.
fn is_unreadable(slot: &[u8]) -> bool {
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

/// Refuses a range that holds something else than a log: `EEXIST`. Checks its first slots, its last ones, and some in
/// between. Slots that cannot be read are ignored.
fn check_empty(disk: &Disk, log: &Superblock, copies: &[Vec<u8>]) -> Result<()> {
    // A null device stores nothing: a read returns what the memory held.
    if disk.context.info().kind == Kind::Null {
        return Ok(());
    }
    let refuse = |lba: u64| {
        Err(Error::new(
            libc::EEXIST,
            format!(
                "'{}' holds data that is not a log (at block {lba}) and would be overwritten; use an empty range or another device, or overwrite it (the flag UNIFIED_LOG_NEW, or UNIFIED_FORCE of the context)",
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

/// Reads and writes through the context, one command after the other. Only before the pipeline's threads start.
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
                    return Err(error.hint(
                        "opening a log needs a free frame: use a shorter fill ring or more frames",
                    ));
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
                // The SQ ring is short: read as many as it takes.
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
                // A block that cannot be read costs only its own slot.
                if failed.iter().any(|(data, _)| *data == u64::from(frame)) {
                    mark_unreadable(&mut slot);
                }
                slots.push(slot);
            }
            // If the device took too long it is still in flight, and its completion frees it.
            let _ = self.context.frame_release(frame);
        }
        result.and(finished).map(|_| slots)
    }

    /// Writes bytes, padded with zeroes to a slot. They are durable when it returns.
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
