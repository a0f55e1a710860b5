//! The log of version 1: a slot of one frame for each packet, written in place.

#![forbid(unsafe_code)]

use super::blank::Blanks;
use super::disk::Disk;
use super::losses::{LossCount, wall_offset};
use super::{Existing, check_empty, name_bytes, random_id, unreadable_start};
use crate::config::KERNEL_HEADROOM;
use crate::context::Context;
use crate::error::{Error, Result};
use crate::frame::FrameMap;
use crate::lane::{Lane, Transfer};
use crate::log_scan::{HOLE, find_end, is_unreadable, mend, newest_superblock};
use crate::net::rx::Received;
use crate::record::{
    FLAG_VLAN, HEADER_LEN, Header, Losses, SUPER_LEN, SUPER_SLOTS, Superblock, refuse_version,
};
use crate::sys::event::monotonic_ns;
use crate::sys::shm::Shared;
use crate::unit_log::superblock as unit_log;

/// Records between two superblocks that record the log's progress.
const CHECKPOINT: u64 = 16384;
#[derive(Debug)]
pub struct SlotRecorder {
    superblock: Superblock,
    next: u64,
    checkpointed: u64,
    data: Shared,
    map: FrameMap,
    blanks: Blanks,
    fua: bool,
    /// CLOCK_REALTIME minus CLOCK_MONOTONIC, in ns.
    wall: u64,
    losses: LossCount,
}

impl SlotRecorder {
    /// Opens the log in `blocks` blocks from `start_lba` on. The caller's thread reads and writes through the lane,
    /// whose roles must be free. `EINVAL`: no log fits, or there is one with other sizes. `EEXIST`: the range holds
    /// something else, and neither `existing` nor the context allows overwriting it.
    pub fn open(
        context: &Context,
        lane: &Lane,
        start_lba: u64,
        blocks: u64,
        wraps: bool,
        fua: bool,
        existing: Existing,
    ) -> Result<SlotRecorder> {
        let info = context.info();
        let now = wall_offset().wrapping_add(monotonic_ns());
        let log_id = random_id(now);
        let fresh = Superblock::new(
            log_id,
            now,
            info.devices[0].limits.block_size,
            info.frame_size,
            start_lba,
            blocks,
            wraps,
        )?;
        let fresh = Superblock {
            interface: name_bytes(context.ifname()),
            ..fresh
        };
        let disk = Disk {
            context,
            lane,
            device: 0,
        };
        let copies = disk.read(fresh.super_lba(0), SUPER_SLOTS)?;
        let found = newest_superblock(copies.iter().map(Vec::as_slice));
        if existing == Existing::Continue {
            let version = copies
                .iter()
                .find_map(|copy| Superblock::unknown_version(copy));
            match version {
                None => {}
                Some(unit_log::VERSION) => {
                    return Err(Error::new(
                        libc::EINVAL,
                        format!(
                            "'{}' holds a log of version 2: continue it with UNIFIED_LAYOUT_LOG, or begin a new log over it \
                             with UNIFIED_LOG_NEW",
                            info.devices[0].path
                        ),
                    ));
                }
                Some(version) => return Err(refuse_version(&info.devices[0].path, version)),
            }
            // One readable copy is enough. Without any, the range may hold a log that cannot be read.
            if found.is_none() && copies.iter().any(|copy| is_unreadable(copy)) {
                return Err(unreadable_start(&info.devices[0].path, start_lba));
            }
        }
        let mut recorder = SlotRecorder {
            superblock: fresh,
            next: 0,
            checkpointed: 0,
            data: context.data().clone(),
            map: info.frames(),
            blanks: Blanks::new(
                info.frames(),
                context.data().clone(),
                HEADER_LEN,
                KERNEL_HEADROOM + info.headroom,
                info.network
                    .is_some_and(|network| network.writes_are_delivered),
            ),
            fua,
            wall: wall_offset(),
            losses: LossCount::begin(context, lane, Losses::default())?,
        };
        match (found, existing) {
            (Some(old), Existing::Continue) => {
                recorder.check_same(&old, &info.devices[0].path)?;
                let interface = recorder.superblock.interface;
                recorder.superblock = Superblock {
                    wraps,
                    interface,
                    ..old
                };
                recorder.losses.before = old.losses;
                recorder.losses.known = old.losses;
                let log = recorder.superblock;
                let spill = disk.spill()?;
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
                if found.is_none() && existing == Existing::Continue && !info.devices[0].forced {
                    let step = u64::from(fresh.blocks_per_slot());
                    check_empty(&disk, SUPER_SLOTS + fresh.slots, |slot| {
                        fresh.start_lba + slot * step
                    })?;
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
            queue: packet.queue as u16,
            ..Header::default()
        };
        let crc = self.data.crc32c(base + at, packet.len as usize);
        self.data.write(base, &header.to_bytes(crc));
        self.blanks
            .clear_around(packet.frame, at as u32..at as u32 + packet.len);
        write.frame = packet.frame;
        write.offset = start;
        write.len = self.map.frame_size();
        write.lba = self.superblock.lba_of(self.next);
        write.fua = self.fua;
        self.next += 1;
    }

    /// The packet in this frame is not recorded.
    pub fn skip(&mut self, frame: u32) {
        self.blanks.forget(frame);
    }

    /// Fetches what `record` reads of a packet, and writes in front of it, into the cache. All of it: the processor's own
    /// prefetching stops at the end of each packet and begins slowly at the next one.
    pub fn prefetch(&self, packet: &Received) {
        self.data.prefetch(self.map.start(packet.frame) as usize);
        let at = packet.offset as usize;
        for line in (0..packet.len as usize).step_by(64) {
            self.data.prefetch(at + line);
        }
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
    pub fn look_at_losses(&mut self, context: &Context, lane: &Lane) -> bool {
        self.losses.look(context, lane);
        self.losses.known != self.superblock.losses
    }

    /// Turns an empty frame, which the caller holds, into a superblock. `settled`: every record before this number is
    /// on the device or has failed.
    pub fn checkpoint(&mut self, frame: u32, settled: u64) -> Transfer {
        self.checkpointed = self.next;
        self.blanks.forget(frame);
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
