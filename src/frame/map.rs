//! Frame arithmetic: which frame a byte of the data buffers lies in, and where a frame begins.

#![forbid(unsafe_code)]

use std::ops::Range;

/// The data buffers as frames of one size. All offsets are bytes from their start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FrameMap {
    /// log2 of the frame size.
    shift: u32,
    count: u32,
}

impl FrameMap {
    /// `size`: bytes of a frame, a power of two.
    pub fn new(size: u32, count: u32) -> FrameMap {
        assert!(size.is_power_of_two(), "a frame of {size} bytes");
        FrameMap {
            shift: size.trailing_zeros(),
            count,
        }
    }

    pub fn frame_size(&self) -> u32 {
        1 << self.shift
    }

    pub fn count(&self) -> u32 {
        self.count
    }

    /// Bytes of all frames.
    pub fn bytes(&self) -> u64 {
        u64::from(self.count) << self.shift
    }

    /// Where a frame begins. The frame need not exist.
    pub fn start(&self, frame: u32) -> u64 {
        u64::from(frame) << self.shift
    }

    /// The bytes of a frame. It need not exist.
    pub fn range(&self, frame: u32) -> Range<u64> {
        self.start(frame)..self.start(frame) + u64::from(self.frame_size())
    }

    /// The frame that a byte lies in, and the place of the byte in it. `None` if it lies in no frame.
    pub fn locate(&self, offset: u64) -> Option<(u32, u32)> {
        let frame = offset >> self.shift;
        let place = offset as u32 & (self.frame_size() - 1);
        (frame < u64::from(self.count)).then_some((frame as u32, place))
    }

    /// As `locate`, if `len` bytes from `offset` on lie in that frame.
    pub fn locate_all(&self, offset: u64, len: u32) -> Option<(u32, u32)> {
        self.locate(offset)
            .filter(|(_, place)| u64::from(*place) + u64::from(len) <= u64::from(self.frame_size()))
    }

    /// Whether `count` frames from `first` on exist.
    pub fn has(&self, first: u32, count: u32) -> bool {
        first
            .checked_add(count)
            .is_some_and(|end| end <= self.count)
    }

    /// Whether `len` bytes from `offset` on lie in `frame`.
    pub fn contains(&self, frame: u32, offset: u64, len: u64) -> bool {
        let range = self.range(frame);
        offset >= range.start && offset.checked_add(len).is_some_and(|end| end <= range.end)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_byte_lies_in_one_frame() {
        let map = FrameMap::new(2048, 64);
        assert_eq!(map.bytes(), 131072);
        assert_eq!(map.locate(0), Some((0, 0)));
        assert_eq!(map.locate(2047), Some((0, 2047)));
        assert_eq!(map.locate(63 * 2048 + 5), Some((63, 5)));
        for beyond in [64 * 2048, u64::from(u32::MAX) * 2048, u64::MAX] {
            assert_eq!(map.locate(beyond), None);
        }
        assert_eq!(map.locate_all(2048 + 48, 2000), Some((1, 48)));
        assert_eq!(map.locate_all(2048 + 48, 2001), None);
        assert_eq!(map.locate_all(2048, u32::MAX), None);
    }

    #[test]
    fn bytes_are_inside_a_frame_or_not() {
        let map = FrameMap::new(4096, 2);
        assert!(map.contains(1, 4096, 4096) && map.contains(1, 8191, 1));
        assert!(!map.contains(1, 4095, 2) && !map.contains(1, 8191, 2));
        assert!(!map.contains(1, u64::MAX, 2));
        // A frame that does not exist has its bytes too: whoever asks knows that it exists.
        assert!(map.contains(u32::MAX, map.start(u32::MAX), 4096));
    }
}
