//! The receiving side of a queue: packets out of the RX ring, frames back into the fill ring.
//!
//! One thread at a time works here, and it alone writes the fill ring. Other threads give frames back to the pool, and
//! wake this side if it has run out of frames.

#![forbid(unsafe_code)]

use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;

use super::clock::StampOffset;
use super::packet::{self, Headers};
use super::wire::{META_LEN, Meta};
use crate::counters::{OutcomeStats, RxStats};
use crate::error::Result;
use crate::frame::{FrameMap, Frames, PacketOutcome};
use crate::log::{self, Level};
use crate::sys::event::monotonic_ns;
use crate::sys::probe;
use crate::sys::shm::Shared;
use crate::sys::xsk::{BoundQueue, FillQueue, RxDescriptor, RxQueue, Socket, XskStatistics};

/// How many frames the kernel gets of a lane among others: few as long as few packets come at once, because what is posted
/// cannot be taken back and given to another lane.
#[derive(Debug)]
struct Supply {
    /// Whether there are other lanes. If not, the kernel gets all that fit.
    shared: bool,
    frames: u32,
    /// Bounds of them: all lanes together do not post more frames than there are.
    least: u32,
    most: u32,
    /// Packets since the kernel last needed most of them.
    calm: u32,
}

/// Frames that the kernel has of an idle lane.
const IDLE_SUPPLY: u32 = 256;

impl Supply {
    /// `share`: the frames of each lane, if all have as many.
    fn new(shared: bool, share: u32) -> Supply {
        // Some are left for those that the caller allocates.
        let most = if shared { share - share / 4 } else { u32::MAX };
        let least = if shared { IDLE_SUPPLY.min(most) } else { most };
        Supply {
            shared,
            frames: least,
            least,
            most,
            calm: 0,
        }
    }

    /// After `taken` packets, when the kernel has `left` frames. `most`: what the fill ring takes.
    fn adapt(&mut self, taken: u32, left: u32, most: u32) {
        if !self.shared || taken == 0 {
            return;
        }
        if left < self.frames / 2 {
            self.frames = (self.frames * 2).min(most).min(self.most).max(self.least);
            self.calm = 0;
        } else if left < self.frames - self.frames / 4 {
            self.calm = 0;
        } else {
            self.calm += taken;
            if self.calm >= self.frames * 4 {
                self.frames = (self.frames / 2).max(self.least);
                self.calm = 0;
            }
        }
    }
}

/// Most packets taken, and frames filled, at once.
const BATCH: usize = 64;
/// While a packet is looked at, this many after it are on their way into the cache.
const PREFETCH: usize = 8;

/// A received packet. Whoever took it holds its frame.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Received {
    pub frame: u32,
    /// The interface's queue that it came to.
    pub queue: u32,
    /// Offset of its Ethernet header in the data buffers.
    pub offset: u64,
    pub len: u32,
    pub headers: Headers,
    /// When the XDP program saw it, in ns of this process's CLOCK_MONOTONIC; 0 if the driver has no metadata area.
    pub timestamp: u64,
}

pub struct Receiver {
    socket: Arc<Socket>,
    fill: FillQueue,
    rx: RxQueue,
    map: FrameMap,
    frames: Arc<Frames>,
    data: Shared,
    /// Where a packet must begin in its frame.
    expected_start: u32,
    stamps: StampOffset,
    queue: u32,
    cursor: u32,
    /// Frames that the kernel has.
    filled: u32,
    fill_ring: u32,
    /// What the shorter of the fill and the RX ring holds.
    backlog: u32,
    /// Most frames that the kernel gets.
    most: u32,
    /// How many of them it gets now.
    supply: Supply,
    misplaced_said: bool,
    descriptors: [RxDescriptor; BATCH],
    /// Of each descriptor, the frame that was taken over from the kernel.
    located: [Option<u32>; BATCH],
    /// Buffer for packets without a metadata record.
    whole: Box<[u8]>,
    stats: Arc<RxStats>,
    outcomes: Arc<OutcomeStats>,
}

impl Receiver {
    /// Receives from a queue into `frames`, which lie in `data`. `expected_start`: where a packet must begin in its frame;
    /// `rings`: entries of the fill ring, and what the shorter of it and the RX ring holds.
    pub fn new(
        queue: BoundQueue,
        map: FrameMap,
        frames: Arc<Frames>,
        data: Shared,
        expected_start: u32,
        rings: (u32, u32),
        counters: (Arc<RxStats>, Arc<OutcomeStats>),
    ) -> Receiver {
        let supply = Supply::new(frames.pool.is_shared(), frames.pool.share_of_each());
        let (fill_ring, backlog) = rings;
        let cursor = frames.pool.first_cursor();
        let (stats, outcomes) = counters;
        let BoundQueue {
            queue,
            socket,
            fill,
            rx,
        } = queue;
        let mut receiver = Receiver {
            socket,
            fill,
            rx,
            map,
            frames,
            data,
            expected_start,
            stamps: StampOffset::of_this_process(),
            queue,
            cursor,
            filled: 0,
            fill_ring,
            backlog,
            most: fill_ring,
            supply,
            misplaced_said: false,
            descriptors: [RxDescriptor::default(); BATCH],
            located: [None; BATCH],
            whole: vec![0; map.frame_size() as usize].into(),
            stats,
            outcomes,
        };
        receiver.refill();
        receiver
    }

    pub fn fd(&self) -> RawFd {
        self.socket.as_raw_fd()
    }

    pub fn statistics(&self) -> std::io::Result<XskStatistics> {
        self.socket.statistics()
    }

    pub fn is_zero_copy(&self) -> std::io::Result<bool> {
        self.socket.is_zero_copy()
    }

    /// Packets that wait in the RX ring.
    pub fn pending(&mut self) -> u32 {
        self.rx.pending()
    }

    /// Takes up to `out.len()` packets and refills the fill ring.
    pub fn receive(&mut self, out: &mut [Received]) -> Result<usize> {
        let mut count = 0;
        let mut bytes = 0;
        let mut taken = 0;
        // Read once, and only if a packet has no timestamp.
        let mut now = 0;
        while count < out.len() {
            let want = (out.len() - count).min(BATCH);
            let got = self.rx.receive(&mut self.descriptors[..want]);
            taken += got;
            self.take_over(got);
            for descriptor in &self.descriptors[..got.min(PREFETCH)] {
                self.prefetch(*descriptor);
            }
            for i in 0..got {
                if i + PREFETCH < got {
                    self.prefetch(self.descriptors[i + PREFETCH]);
                }
                if let Some(packet) = self.accept(i) {
                    let arrival = match packet.timestamp {
                        0 if now == 0 => {
                            now = monotonic_ns();
                            now
                        }
                        0 => now,
                        timestamp => timestamp,
                    };
                    self.frames.table.arrived(packet.frame, arrival);
                    let payload_len = packet.headers.payload_len;
                    probe::received(packet.frame, packet.len, payload_len, arrival);
                    bytes += u64::from(packet.len);
                    out[count] = packet;
                    count += 1;
                }
            }
            if got < want {
                break;
            }
        }
        self.stats.received.add(taken as u64);
        self.stats.received_bytes.add(bytes);
        self.supply.adapt(taken as u32, self.filled, self.most);
        self.refill();
        Ok(count)
    }

    /// Takes the frames of `count` descriptors over from the kernel, those that are neighbours together.
    fn take_over(&mut self, count: usize) {
        let table = &self.frames.table;
        let mut at = 0;
        while at < count {
            let frame = |i: usize| {
                let RxDescriptor { addr, len } = self.descriptors[i];
                self.map.locate_all(addr, len).map(|(frame, _)| frame)
            };
            let Some(first) = frame(at) else {
                self.located[at] = None;
                at += 1;
                continue;
            };
            let mut end = at + 1;
            while end < count && frame(end) == Some(first + (end - at) as u32) {
                end += 1;
            }
            let all = table.receive(first, (end - at) as u32).is_ok();
            for i in at..end {
                let frame = first + (i - at) as u32;
                let ours = all || table.receive(frame, 1).is_ok();
                self.located[i] = ours.then_some(frame);
            }
            at = end;
        }
    }

    /// Fetches what `accept` reads of a packet into the cache.
    fn prefetch(&self, descriptor: RxDescriptor) {
        let at = descriptor.addr as usize;
        self.data.prefetch(at.saturating_sub(META_LEN));
        self.data.prefetch(at);
    }

    /// Locates the headers of a packet whose frame was taken over.
    fn accept(&mut self, index: usize) -> Option<Received> {
        let RxDescriptor { addr, len } = self.descriptors[index];
        let Some(frame) = self.located[index] else {
            // The kernel cannot have such a frame. Nothing is read through this address.
            self.stats.bad_descriptors.add(1);
            probe::dropped(c"bad_descriptor", 1, probe::NO_FRAME);
            return None;
        };
        let start = (addr - self.map.start(frame)) as u32;
        self.filled = self.filled.saturating_sub(1);
        if start != self.expected_start {
            self.misplaced(start);
        }
        let found = self.headers(frame, addr as usize, start, len as usize);
        let (headers, timestamp) = match found {
            Some(found) => found,
            None => {
                // Whoever knows what the frames hold has not seen this packet.
                let range = self.map.range(frame);
                let size = self.map.frame_size() as usize;
                self.data.zero(range.start as usize, size);
                let settled = self.frames.release(frame);
                if settled.is_ok_and(|settled| settled.outcome == PacketOutcome::Released) {
                    self.outcomes.released.add(1);
                    probe::dropped(c"malformed", 1, frame);
                }
                return None;
            }
        };
        Some(Received {
            frame,
            queue: self.queue,
            offset: addr,
            len,
            headers,
            timestamp,
        })
    }

    /// The kernel placed a packet elsewhere than the headroom says. It is stored, but may need a copy.
    #[cold]
    fn misplaced(&mut self, start: u32) {
        self.stats.misplaced.add(1);
        if !std::mem::replace(&mut self.misplaced_said, true) {
            log::log(
                Level::Warn,
                format_args!(
                    "packets begin at byte {start} of their frame and not at {}: payloads may need a copy",
                    self.expected_start
                ),
            );
        }
    }

    /// Locates the headers of a packet and reads its timestamp. `at`: its place; `start`: the same in its frame.
    fn headers(&mut self, frame: u32, at: usize, start: u32, len: usize) -> Option<(Headers, u64)> {
        if start as usize >= META_LEN {
            let earlier = match self.frames.table.arrival(frame) {
                // `refill` has cleared the place.
                None if start == self.expected_start => Some(0),
                earlier => earlier,
            };
            let found =
                earlier.and_then(|earlier| record_of(&self.data, at, len, self.stamps, earlier));
            if found.is_some() {
                return found;
            }
        }
        let whole = &mut self.whole[..len];
        self.data.read(at, whole);
        packet::parse(whole).ok().map(|headers| (headers, 0))
    }

    /// Gives free frames to the kernel, in address order.
    pub fn refill(&mut self) {
        let mut frames = [0u32; BATCH];
        let most = self.most.min(self.supply.frames);
        let ring = self.fill_ring.min(self.supply.frames);
        loop {
            let room = most.saturating_sub(self.filled) as usize;
            // Wait for a whole batch, unless the kernel is about to run out: each publication makes the NIC's side
            // fetch a cache line.
            let eager = self.filled < (ring / 4).max(1);
            if room < BATCH && !(eager && room > 0) {
                break;
            }
            let want = room.min(BATCH).min(self.fill.room(BATCH as u32) as usize);
            let count = self.frames.pool.take(&mut self.cursor, &mut frames[..want]);
            if count == 0 {
                break;
            }
            for run in frames[..count].chunk_by(|a, b| a + 1 == *b) {
                // Just taken, so they are free, and the step cannot fail.
                let step = self.frames.table.fill(run[0], run.len() as u32);
                debug_assert!(step.is_ok());
            }
            let map = self.map;
            for frame in &frames[..count] {
                if self.frames.table.arrival(*frame).is_none() {
                    // Bytes of a packet that was copied there must not pass for a record.
                    let start = map.start(*frame) + u64::from(self.expected_start);
                    if let Some(at) = (start as usize).checked_sub(META_LEN) {
                        self.data.zero(at, META_LEN);
                    }
                }
            }
            let filled = self
                .fill
                .fill(frames[..count].iter().map(|frame| map.start(*frame)));
            debug_assert!(filled, "room was asked for");
            self.filled += count as u32;
        }
        if self.fill.needs_wakeup() {
            let _ = self.socket.wake();
        }
    }

    /// Sets how many frames the kernel gets; at most as many as the fill ring has room for.
    pub fn fill_at_most(&mut self, frames: u32) {
        self.most = frames.min(self.fill_ring);
    }

    /// Packets that can wait in the kernel: it has so many frames for them, and places in the RX ring.
    pub fn backlog(&self) -> u32 {
        self.backlog.min(self.supply.frames)
    }

    /// Takes one free frame for the caller.
    pub fn allocate(&mut self) -> Result<Option<u32>> {
        self.frames.allocate(&mut self.cursor)
    }

    /// Prepares to sleep. `false` if frames can be filled now. If the kernel has few frames, whoever gives frames back
    /// wakes this side.
    pub fn prepare_sleep(&mut self) -> bool {
        self.refill();
        let wanted = self.most.min(self.supply.frames).min(self.map.count());
        if self.filled >= (wanted / 4).max(1) {
            return true;
        }
        self.frames.pool.prepare_sleep()
    }
}

/// What the XDP program's record says of the packet at `at`. `earlier`: when the packet before it in this frame arrived.
/// `None`: there is no record, or it is that of a packet before, which nothing has overwritten.
fn record_of(
    data: &Shared,
    at: usize,
    len: usize,
    stamps: StampOffset,
    earlier: u64,
) -> Option<(Headers, u64)> {
    let mut record = [0; META_LEN];
    data.read(at - META_LEN, &mut record);
    let meta = Meta::parse(&record)?;
    let timestamp = stamps.apply(meta.timestamp);
    if timestamp <= earlier {
        return None;
    }
    let headers = packet::from_meta(&meta, len, |place, to| data.read(at + place, to))?;
    Some((headers, timestamp))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::mmap::Mapping;

    #[test]
    fn the_supply_follows_the_packets() {
        let mut alone = Supply::new(false, 4096);
        alone.adapt(1000, 0, 2048);
        assert_eq!(alone.frames, u32::MAX);
        // Few frames: no lane posts more than its share.
        let mut few = Supply::new(true, 128);
        assert_eq!(few.frames, 96);
        few.adapt(100, 0, 2048);
        assert_eq!(few.frames, 96);
        let mut supply = Supply::new(true, 4096);
        assert_eq!(supply.frames, 256);
        for (left, expected) in [(200, 256), (127, 512), (100, 1024), (0, 2048), (0, 2048)] {
            supply.adapt(100, left, 2048);
            assert_eq!(supply.frames, expected);
        }
        // Nothing changes without packets, however often one looks.
        for _ in 0..100_000 {
            supply.adapt(0, 2048, 2048);
        }
        assert_eq!(supply.frames, 2048);
        for (packets, expected) in [(2048, 1024), (1024, 512), (512, 256), (256, 256)] {
            for i in 0..packets * 4 / 16 {
                assert_ne!(
                    supply.frames,
                    if i > 0 && packets > 256 { expected } else { 0 }
                );
                supply.adapt(16, supply.frames - 16, 2048);
            }
            assert_eq!(supply.frames, expected);
        }
    }

    #[test]
    fn a_record_counts_for_one_packet_only() {
        let mapping = Arc::new(Mapping::anonymous(4096, false).unwrap());
        let data = Shared::new(mapping, 0, 4096).unwrap();
        let at = 512;
        let mut record = [0; META_LEN];
        record[..8].copy_from_slice(&1000u64.to_ne_bytes());
        record[8..10].copy_from_slice(&42u16.to_ne_bytes());
        record[10..12].copy_from_slice(&100u16.to_ne_bytes());
        record[14] = 14;
        record[16..].copy_from_slice(b"UNF2");
        data.write(at - META_LEN, &record);
        data.write(at + 34, &[0x04, 0x00, 0x27, 0x0f]);
        let found = |len, earlier| record_of(&data, at, len, StampOffset::default(), earlier);
        let (headers, timestamp) = found(142, 0).unwrap();
        assert_eq!(timestamp, 1000);
        assert_eq!((headers.src_port, headers.dst_port), (1024, 9999));
        assert_eq!((headers.payload_offset, headers.payload_len), (42, 100));
        assert!(found(142, 999).is_some());
        assert!(found(142, 1000).is_none(), "of the packet before");
        assert!(found(141, 0).is_none(), "beyond the packet");
        data.write(at - 1, &[0]);
        assert!(found(142, 0).is_none(), "no marker");
    }
}
