//! Payloads over several devices: a linear space of blocks, spread over the devices a chunk at a time.
//!
//! Row r has chunk r of each device that is long enough. The rows follow each other, and in a row the devices, in the order of
//! their numbers. Rows with the same devices are a zone. docs/devices.md has the formula.

#![forbid(unsafe_code)]

use std::ops::Range;

use crate::error::{Error, Result};

/// Bytes of a chunk, unless the configuration says otherwise.
pub const CHUNK_BYTES: u64 = 1 << 20;
pub const LONGEST_CHUNK: u64 = 1 << 30;

/// Rows over the same devices.
#[derive(Debug, Clone)]
struct Zone {
    /// Its first chunk in the linear space, and its first row.
    chunk: u64,
    row: u64,
    /// The row after its last.
    end_row: u64,
    devices: Vec<u8>,
}

/// A device: its blocks, and the bytes of one.
#[derive(Debug, Clone, Copy)]
pub struct Member {
    pub blocks: u64,
    pub block_size: u32,
}

/// Where a block of the linear space is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    pub device: u8,
    /// In blocks of this device.
    pub lba: u64,
}

#[derive(Debug, Clone)]
pub struct Stripe {
    zones: Vec<Zone>,
    members: Vec<Member>,
    /// Bytes of a block of the linear space: the largest block size of the devices.
    block_size: u32,
    /// Blocks of the linear space in a chunk. 0: there is one device, and the space is its blocks.
    chunk: u64,
    /// Blocks of the space.
    blocks: u64,
}

impl Stripe {
    /// `chunk_bytes` 0 is the default. `EINVAL`: it is no chunk of these devices, or none of them has room for one.
    pub fn new(members: Vec<Member>, chunk_bytes: u64) -> Result<Stripe> {
        let bytes = match chunk_bytes {
            0 => CHUNK_BYTES,
            bytes => bytes,
        };
        let invalid = |text: String| Err(Error::new(libc::EINVAL, text));
        if !bytes.is_power_of_two() || bytes > LONGEST_CHUNK {
            return invalid(format!(
                "a chunk of {bytes} bytes: it must be a power of two, and at most {LONGEST_CHUNK}"
            ));
        }
        let sizes = || members.iter().map(|member| u64::from(member.block_size));
        let known = members.len() > 1 || chunk_bytes > 0;
        if let Some(size) = sizes().find(|size| known && !bytes.is_multiple_of(*size)) {
            return invalid(format!(
                "a chunk of {bytes} bytes is not a multiple of the block size {size} of each device"
            ));
        }
        let block_size = members.iter().map(|m| m.block_size).max().unwrap_or(1);
        if let [only] = members[..] {
            return Ok(Stripe {
                zones: Vec::new(),
                members,
                block_size,
                chunk: 0,
                blocks: only.blocks,
            });
        }
        let rows: Vec<u64> = members
            .iter()
            .map(|m| m.blocks / (bytes / u64::from(m.block_size)))
            .collect();
        let mut ends = rows.clone();
        ends.sort_unstable();
        ends.dedup();
        let (mut zones, mut chunk, mut row) = (Vec::new(), 0, 0);
        for end_row in ends.into_iter().filter(|end| *end > 0) {
            let devices: Vec<u8> = (0u8..)
                .zip(&rows)
                .filter(|(_, rows)| **rows >= end_row)
                .map(|(device, _)| device)
                .collect();
            let chunks = (end_row - row) * devices.len() as u64;
            zones.push(Zone {
                chunk,
                row,
                end_row,
                devices,
            });
            (chunk, row) = (chunk + chunks, end_row);
        }
        if zones.is_empty() {
            return invalid(format!("no device has room for a chunk of {bytes} bytes"));
        }
        let blocks_of_chunk = bytes / u64::from(block_size);
        Ok(Stripe {
            zones,
            members,
            block_size,
            chunk: blocks_of_chunk,
            blocks: chunk * blocks_of_chunk,
        })
    }

    /// Blocks of the linear space, and the bytes of one.
    pub fn blocks(&self) -> u64 {
        self.blocks
    }

    pub fn block_size(&self) -> u32 {
        self.block_size
    }

    /// The bytes of a chunk. 0: one device has all.
    pub fn chunk_bytes(&self) -> u64 {
        self.chunk * u64::from(self.block_size)
    }

    /// Where so many blocks go that are at `lba` or after it: they must not cross the border of a chunk.
    #[inline(always)]
    pub fn fit(&self, lba: u64, blocks: u64) -> u64 {
        // A power of two, or 0: a single device.
        let within = lba & self.chunk.wrapping_sub(1);
        match self.chunk > 0 && within + blocks > self.chunk {
            true => lba - within + self.chunk,
            false => lba,
        }
    }

    fn device_blocks(&self, device: u8, blocks: u64) -> u64 {
        let size = self.members[device as usize].block_size;
        blocks * u64::from(self.block_size / size)
    }

    /// The zone, the row, and the place in the row of a block, and its place in its chunk.
    fn find(&self, lba: u64) -> Option<(&Zone, u64, usize, u64)> {
        if lba >= self.blocks {
            return None;
        }
        let (chunk, within) = (lba / self.chunk, lba % self.chunk);
        let after = self.zones.partition_point(|zone| zone.chunk <= chunk);
        let zone = &self.zones[after - 1];
        let (nth, devices) = (chunk - zone.chunk, zone.devices.len() as u64);
        let row = zone.row + nth / devices;
        debug_assert!(row < zone.end_row);
        Some((zone, row, (nth % devices) as usize, within))
    }

    /// `None`: the space has no such block.
    pub fn locate(&self, lba: u64) -> Option<Place> {
        if self.chunk == 0 {
            return (lba < self.blocks).then_some(Place { device: 0, lba });
        }
        let (zone, row, column, within) = self.find(lba)?;
        let device = zone.devices[column];
        let lba = self.device_blocks(device, row * self.chunk + within);
        Some(Place { device, lba })
    }

    /// What a range of the space is on a device: one range too, since a device has its chunks in their order. Ranges
    /// that do not overlap in the space do not overlap on a device.
    pub fn on_device(&self, range: Range<u64>, device: u8) -> Range<u64> {
        self.first_on(range.start, device)..self.first_on(range.end, device)
    }

    /// The first block of a device that belongs to `lba` or comes after it.
    fn first_on(&self, lba: u64, device: u8) -> u64 {
        if self.chunk == 0 {
            return lba;
        }
        let rows = |device: u8| {
            let mut zones = self.zones.iter().rev();
            let last = zones.find(|zone| zone.devices.contains(&device));
            last.map_or(0, |zone| zone.end_row)
        };
        let blocks = match self.find(lba) {
            None => rows(device) * self.chunk,
            Some((zone, row, column, within)) => {
                match zone.devices.iter().position(|d| *d == device) {
                    None => rows(device) * self.chunk,
                    Some(own) if own < column => (row + 1) * self.chunk,
                    Some(own) if own == column => row * self.chunk + within,
                    Some(_) => row * self.chunk,
                }
            }
        };
        self.device_blocks(device, blocks)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    fn members(of: &[(u64, u32)]) -> Vec<Member> {
        of.iter()
            .map(|&(blocks, block_size)| Member { blocks, block_size })
            .collect()
    }

    /// Small numbers from a seed, different ones each time.
    fn random(state: &mut u64) -> u64 {
        *state = state
            .wrapping_mul(6364136223846793005)
            .wrapping_add(1442695040888963407);
        *state >> 33
    }

    #[test]
    fn the_mapping_is_one_to_one_and_on_the_devices() {
        let mut state = 1;
        for _ in 0..300 {
            let chunk_bytes = 4096 << (random(&mut state) % 3);
            let count = 2 + random(&mut state) % 4;
            let of: Vec<(u64, u32)> = (0..count)
                .map(|_| {
                    let size = [512, 1024, 4096][random(&mut state) as usize % 3];
                    (random(&mut state) % (1 << 17) / u64::from(size), size)
                })
                .collect();
            let whole: Vec<u64> = of
                .iter()
                .map(|(blocks, size)| blocks * u64::from(*size) / chunk_bytes * chunk_bytes)
                .collect();
            let Ok(stripe) = Stripe::new(members(&of), chunk_bytes) else {
                assert!(whole.iter().all(|bytes| *bytes == 0));
                continue;
            };
            let unit = u64::from(stripe.block_size());
            // All whole chunks of all devices are in the space, and each of their blocks once.
            assert_eq!(stripe.blocks() * unit, whole.iter().sum::<u64>());
            let mut seen = HashSet::new();
            for lba in 0..stripe.blocks() {
                let place = stripe.locate(lba).unwrap();
                let device = place.device as usize;
                let byte = place.lba * u64::from(of[device].1);
                assert!(byte + unit <= whole[device], "{of:?} {lba} {place:?}");
                assert!(byte.is_multiple_of(unit) && seen.insert((device, byte)));
                // In a chunk, neighbours are neighbours.
                if stripe.fit(lba, 2) == lba && lba + 1 < stripe.blocks() {
                    let next = stripe.locate(lba + 1).unwrap();
                    let step = unit / u64::from(of[device].1);
                    assert_eq!((next.device, next.lba), (place.device, place.lba + step));
                }
            }
            assert_eq!(stripe.locate(stripe.blocks()), None);
            assert_eq!(stripe.locate(u64::MAX), None);
            // A range has on each device what its blocks have there.
            let mut ends = [0, 0].map(|_| random(&mut state) % (stripe.blocks() + 1));
            ends.sort_unstable();
            for device in 0..of.len() {
                let range = stripe.on_device(ends[0]..ends[1], device as u8);
                let step = unit / u64::from(of[device].1);
                let mut own: Vec<u64> = (ends[0]..ends[1])
                    .filter_map(|lba| stripe.locate(lba))
                    .filter(|place| place.device as usize == device)
                    .map(|place| place.lba)
                    .collect();
                own.sort_unstable();
                let all: Vec<u64> = range.step_by(step as usize).collect();
                assert_eq!(own, all, "{of:?} {ends:?} {device}");
            }
        }
    }

    #[test]
    fn the_shortest_device_ends_first() {
        // In chunks of 4096 bytes: 1, 3 and 2 of them.
        let stripe = Stripe::new(members(&[(15, 512), (3, 4096), (16, 512)]), 4096).unwrap();
        let places: Vec<_> = (0..stripe.blocks())
            .map(|lba| stripe.locate(lba).map(|place| (place.device, place.lba)))
            .collect();
        let want = [(0, 0), (1, 0), (2, 0), (1, 1), (2, 8), (1, 2)];
        assert_eq!(places, want.map(Some));
    }

    #[test]
    fn nothing_crosses_the_border_of_a_chunk() {
        let stripe = Stripe::new(members(&[(64, 512), (64, 512)]), 4096).unwrap();
        assert_eq!((stripe.fit(5, 3), stripe.fit(6, 3)), (5, 8));
        assert_eq!((stripe.fit(8, 8), stripe.fit(9, 8)), (8, 16));
        let one = Stripe::new(members(&[(64, 512)]), 4096).unwrap();
        assert_eq!((one.fit(6, 3), one.blocks()), (6, 64));
        assert_eq!(one.locate(63), Some(Place { device: 0, lba: 63 }));
        assert_eq!(one.locate(64), None);
    }

    #[test]
    fn chunks_that_no_device_can_have_are_refused_in_words() {
        let two = [(1 << 23, 512), (1 << 20, 4096)];
        for (chunk_bytes, words) in [
            (12288, "power of two"),
            (1 << 31, "at most 1073741824"),
            (2048, "block size 4096"),
        ] {
            let error = Stripe::new(members(&two), chunk_bytes).unwrap_err();
            assert_eq!(error.errno(), libc::EINVAL);
            assert!(error.message().contains(words), "{error}");
        }
        assert_eq!(
            Stripe::new(members(&two), 0).unwrap().chunk_bytes(),
            CHUNK_BYTES
        );
        assert_eq!(
            Stripe::new(members(&two), 1 << 30).unwrap().blocks(),
            8 << 18
        );
        let error = Stripe::new(members(&[(1, 512), (7, 512)]), 4096).unwrap_err();
        assert!(error.message().contains("no device has room"), "{error}");
    }
}
