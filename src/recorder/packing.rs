//! A unit that is being packed: records one after the other, around the headers of its slots.

#![forbid(unsafe_code)]

use crate::frame::FrameMap;
use crate::sys::shm::Shared;
use crate::unit_log::unit::{
    CONTENT, MAX_UNIT_SLOTS, RECORD_HEADER_LEN, SLOT_HEADER_LEN, UNIT_HEADER_LEN,
};

/// Words of a record's header.
const WORDS: usize = RECORD_HEADER_LEN / 8;

#[derive(Debug)]
pub(super) struct OpenUnit {
    /// Neighbouring frames, which the caller holds.
    pub frame: u32,
    pub frames: u32,
    /// Most bytes of records.
    capacity: u32,
    /// Sequence number and time of its first packet.
    pub sequence: u64,
    pub time: u64,
    /// The pipeline's number of its first packet.
    pub number: u64,
    pub records: u32,
    /// Bytes of all records.
    pub bytes: u32,
    /// The slot and the place in it where the next byte goes. The place may be the slot's end.
    slot: u32,
    place: u32,
    /// Where the first record that begins in each slot does so; 0 if none does.
    pub first: [u16; MAX_UNIT_SLOTS],
}

impl OpenUnit {
    pub fn new(
        frame: u32,
        frames: u32,
        slot_size: u32,
        sequence: u64,
        time: u64,
        number: u64,
    ) -> OpenUnit {
        debug_assert!(frames <= MAX_UNIT_SLOTS as u32);
        OpenUnit {
            frame,
            frames,
            capacity: OpenUnit::capacity(frames, slot_size),
            sequence,
            time,
            number,
            records: 0,
            bytes: 0,
            slot: 0,
            place: CONTENT as u32,
            first: [0; MAX_UNIT_SLOTS],
        }
    }

    /// Bytes that records of `slots` slots may have.
    pub fn capacity(slots: u32, slot_size: u32) -> u32 {
        match slots {
            0 => 0,
            _ => slots * (slot_size - SLOT_HEADER_LEN as u32) - UNIT_HEADER_LEN as u32,
        }
    }

    /// Whether a packet of `len` bytes fits.
    pub fn fits(&self, len: u32) -> bool {
        self.bytes + RECORD_HEADER_LEN as u32 + len <= self.capacity
    }

    /// Slots that it has.
    pub fn slots(&self) -> u32 {
        self.slot + 1
    }

    /// Appends a record, which must fit: its header, and `len` bytes from `at` of the data buffers.
    #[inline(always)]
    pub fn append(
        &mut self,
        map: &FrameMap,
        data: &Shared,
        header: &[u64; WORDS],
        at: usize,
        len: u32,
    ) {
        let size = map.frame_size();
        if self.place == size {
            self.next_slot();
        }
        let begin = &mut self.first[self.slot as usize];
        if *begin == 0 {
            *begin = self.place as u16;
        }
        self.records += 1;
        self.bytes += RECORD_HEADER_LEN as u32 + len;
        let here = size - self.place;
        if here >= RECORD_HEADER_LEN as u32 + len {
            let to = self.address(map);
            data.write_words(to, header);
            data.copy_to(at, data, to + RECORD_HEADER_LEN, len as usize);
            self.place += RECORD_HEADER_LEN as u32 + len;
            return;
        }
        let bytes = header.map(u64::to_le_bytes);
        let bytes = bytes.as_flattened();
        self.put(map, RECORD_HEADER_LEN as u32, |to, done, part| {
            data.write(to, &bytes[done as usize..(done + part) as usize]);
        });
        self.put(map, len, |to, done, part| {
            data.copy_to(at + done as usize, data, to, part as usize);
        });
    }

    /// Puts `len` bytes around the headers of slots: `write` gets a place in the data buffers, how many bytes it has
    /// written before, and how many go there.
    fn put(&mut self, map: &FrameMap, len: u32, write: impl Fn(usize, u32, u32)) {
        let mut done = 0;
        while done < len {
            if self.place == map.frame_size() {
                self.next_slot();
            }
            let part = (map.frame_size() - self.place).min(len - done);
            write(self.address(map), done, part);
            self.place += part;
            done += part;
        }
    }

    fn next_slot(&mut self) {
        self.slot += 1;
        self.place = SLOT_HEADER_LEN as u32;
        debug_assert!(self.slot < self.frames);
    }

    fn address(&self, map: &FrameMap) -> usize {
        (map.start(self.frame + self.slot) + u64::from(self.place)) as usize
    }

    /// Zeroes the rest of its last slot.
    pub fn end(&self, map: &FrameMap, data: &Shared) {
        data.zero(self.address(map), (map.frame_size() - self.place) as usize);
    }
}
