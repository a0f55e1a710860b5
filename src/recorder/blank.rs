//! Which bytes around the packets are zero already, so that they need not be zeroed again.
//!
//! A written frame must hold nothing of a packet that is not stored in it. Zeroing all that surrounds a small packet costs
//! more than storing it. While a pipeline runs, only the kernel and the pipeline write to frames. If the kernel delivers
//! all that it writes, then what was zeroed once stays zero, except where packets were.

#![forbid(unsafe_code)]

use std::ops::Range;

use crate::frame::FrameMap;
use crate::net::wire::META_LEN;
use crate::sys::shm::Shared;

#[derive(Debug)]
pub(super) struct Blanks {
    map: FrameMap,
    data: Shared,
    /// Bytes of the header that begins each frame.
    header: u32,
    /// Where packets begin in their frames, unless something has moved them.
    usual: u32,
    /// Of each frame: its bytes from here on are zero, and so are those between the header and the metadata of a packet
    /// that begins at `usual`. `None`: nothing is known. Empty if the kernel may write what it does not deliver.
    ends: Box<[Option<u32>]>,
}

impl Blanks {
    /// `known`: the kernel writes into a frame only what it then delivers.
    pub fn new(map: FrameMap, data: Shared, header: usize, usual: u32, known: bool) -> Blanks {
        let count = if known { map.count() } else { 0 };
        Blanks {
            map,
            data,
            header: header as u32,
            usual,
            ends: vec![None; count as usize].into(),
        }
    }

    /// Zeroes what surrounds a packet in its frame and is not zero: from the end of the header to the packet, and from
    /// there to the end of the frame. `packet`: its place in the frame.
    pub fn clear_around(&mut self, frame: u32, packet: Range<u32>) {
        let size = self.map.frame_size();
        let as_usual = packet.start == self.usual && self.header + META_LEN as u32 <= self.usual;
        let known = match self.ends.get_mut(frame as usize) {
            // A packet elsewhere may have covered what is zero before the usual place.
            Some(end) => std::mem::replace(end, as_usual.then_some(packet.end)),
            None => None,
        };
        let (from, to) = match known.filter(|_| as_usual) {
            Some(end) => (self.usual - META_LEN as u32, end),
            None => (self.header, size),
        };
        let start = self.map.start(frame) as usize;
        let zero = |range: Range<u32>| {
            if range.start < range.end {
                let len = range.end - range.start;
                self.data.zero(start + range.start as usize, len as usize);
            }
        };
        zero(from..packet.start);
        zero(packet.end..to);
    }

    /// The frame was written to by somebody else, or its packet was not stored.
    pub fn forget(&mut self, frame: u32) {
        if let Some(end) = self.ends.get_mut(frame as usize) {
            *end = None;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::sys::mmap::Mapping;
    use proptest::prelude::*;

    const SIZE: u32 = 2048;
    const HEADER: u32 = 64;
    const USUAL: u32 = 470;

    fn memory() -> Shared {
        let mapping = Arc::new(Mapping::anonymous(2 * SIZE as usize, false).unwrap());
        let data = Shared::new(mapping, 0, 2 * SIZE as usize).unwrap();
        data.write(0, &[0xaa; 2 * SIZE as usize]);
        data
    }

    proptest! {
        /// Whatever packets came before, in whatever order: around a packet there are only zeroes.
        #[test]
        fn nothing_of_an_earlier_packet_is_left(
            known in any::<bool>(),
            packets in prop::collection::vec((0u32..2, 96u32..500, 1u32..1500, any::<bool>(), 0u8..4), 1..40),
        ) {
            let data = memory();
            let map = FrameMap::new(SIZE, 2);
            let mut blanks = Blanks::new(map, data.clone(), HEADER as usize, USUAL, known);
            for (frame, start, len, usual, fate) in packets {
                let start = if usual { USUAL } else { start };
                let at = (frame * SIZE) as usize;
                // The kernel writes the packet and what the program puts before it.
                data.write(at + start as usize - META_LEN, &[0x55; META_LEN]);
                data.write(at + start as usize, &vec![0x77; len as usize]);
                if fate == 0 {
                    blanks.forget(frame);
                    continue;
                }
                data.write(at, &[0x11; HEADER as usize]);
                blanks.clear_around(frame, start..start + len);
                let mut bytes = vec![0; SIZE as usize];
                data.read(at, &mut bytes);
                for (place, byte) in bytes.iter().enumerate() {
                    let place = place as u32;
                    let expected = match place {
                        _ if place < HEADER => 0x11,
                        _ if (start..start + len).contains(&place) => 0x77,
                        _ => 0,
                    };
                    prop_assert_eq!(*byte, expected, "byte {}", place);
                }
            }
        }
    }

    #[test]
    fn what_is_zero_is_not_zeroed_again() {
        let data = memory();
        let mut blanks = Blanks::new(FrameMap::new(SIZE, 2), data.clone(), 64, USUAL, true);
        blanks.clear_around(1, USUAL..USUAL + 100);
        // Nobody does this; it shows what was not touched.
        data.write(SIZE as usize + 100, &[1]);
        data.write(SIZE as usize + 2000, &[1]);
        blanks.clear_around(1, USUAL..USUAL + 50);
        let mut byte = [0; 1];
        data.read(SIZE as usize + 100, &mut byte);
        assert_eq!(byte, [1]);
        data.read(SIZE as usize + 2000, &mut byte);
        assert_eq!(byte, [1]);
        data.read(SIZE as usize + USUAL as usize + 75, &mut byte);
        assert_eq!(byte, [0], "of the longer packet before");
    }
}
