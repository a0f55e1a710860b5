//! Merging: neighbouring entries become one operation. Pure: no I/O happens here.
//!
//! Two entries are neighbours when both are writes or both are reads, of the same namespace, with the same flags and
//! timeout, and when their blocks follow one another. If their memory follows too, one piece of memory serves both. If
//! not, the pieces are gathered, provided that backend and device can. The device then sees one command instead of
//! many; the engine completes each entry on its own.

#![forbid(unsafe_code)]

use super::command::{Command, MAX_BLOCKS, opcode};
use super::device::Limits;
use crate::sys::mmap::PAGE;
use crate::sys::uring::{BufRange, SHARD};

/// How long a run may grow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bounds {
    pub bytes: u32,
    pub blocks: u32,
    /// Of memory. `None` if a command with more segments is split.
    pub segments: Option<u32>,
}

impl Bounds {
    /// What the device takes in one command. With too many segments, the block layer splits the command, and
    /// passthrough fails it.
    pub fn of(limits: &Limits, split: bool) -> Bounds {
        Bounds {
            bytes: limits.max_transfer,
            blocks: MAX_BLOCKS,
            segments: (!split).then_some(limits.max_segments),
        }
    }

    pub fn take_segments(&self, segments: usize) -> bool {
        self.segments.is_none_or(|most| segments <= most as usize)
    }
}

/// Most segments of a piece of memory: its pages may lie anywhere.
pub fn segments(piece: BufRange) -> usize {
    let last = piece.offset + (piece.len as usize).saturating_sub(1);
    last / PAGE - piece.offset / PAGE + 1
}

/// Whether a command may be part of a run.
pub fn mergeable(command: &Command) -> bool {
    matches!(command.opcode, opcode::WRITE | opcode::READ)
}

/// What must be equal in all entries of a run: the upper half of cdw12 (FUA and the like), cdw2, 3, 13 to
/// 15, and the timeout.
fn attributes(command: &Command) -> [u32; 8] {
    let raw = &command.raw;
    [
        raw.cdw2,
        raw.cdw3,
        raw.cdw12 >> 16,
        raw.cdw13,
        raw.cdw14,
        raw.cdw15,
        raw.timeout_ms,
        command.nsid,
    ]
}

/// How an entry follows a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Follows {
    No,
    /// In memory and on the device: one piece of memory serves both.
    Whole,
    /// On the device alone: its memory is a piece of its own.
    Apart,
}

/// Whether `next` can follow `run`, the last piece of whose data is at `tail` and is all in place.
pub fn follows(
    run: &Command,
    tail: BufRange,
    next: &Command,
    next_at: BufRange,
    bounds: Bounds,
) -> Follows {
    let together = run.opcode == next.opcode
        && mergeable(run)
        && tail.buffer == next_at.buffer
        && run.lba + u64::from(run.blocks) == next.lba
        && attributes(run) == attributes(next)
        && u64::from(run.len) + u64::from(next.len) <= u64::from(bounds.bytes)
        && u64::from(run.blocks) + u64::from(next.blocks) <= u64::from(bounds.blocks)
        // One registered buffer: an operation cannot cross into the next.
        && tail.offset / SHARD == (next_at.offset + next_at.len as usize - 1) / SHARD;
    if !together {
        Follows::No
    } else if tail.offset + tail.len as usize == next_at.offset {
        Follows::Whole
    } else {
        Follows::Apart
    }
}

/// After this many entries in a row that do not continue the one before, the access pattern is scattered.
const STRANGERS: u32 = 16;

/// Whether entries follow one another on the device, judged by the last ones.
#[derive(Debug, Default, Clone, Copy)]
pub struct AccessPattern {
    opcode: u8,
    next_lba: u64,
    strangers: u32,
}

impl AccessPattern {
    /// Records an entry. Those that never merge are ignored.
    pub fn see(&mut self, command: &Command) {
        if !mergeable(command) {
            return;
        }
        if command.opcode == self.opcode && command.lba == self.next_lba {
            self.strangers = 0;
        } else {
            self.strangers = self.strangers.saturating_add(1);
        }
        self.opcode = command.opcode;
        self.next_lba = command.lba + u64::from(command.blocks);
    }

    /// Waiting for an entry's neighbour would gain nothing.
    pub fn is_scattered(&self) -> bool {
        self.strangers >= STRANGERS
    }
}

/// Makes `next`, which follows, part of the command of a run.
pub fn join(run: &mut Command, next: &Command) {
    run.blocks += next.blocks;
    run.len += next.len;
    run.raw.cdw12 = (run.raw.cdw12 & 0xffff_0000) | (run.blocks - 1);
    run.raw.data_len = run.len;
}

#[cfg(test)]
mod tests {
    use super::super::command::{Rules, parse, transfer};
    use super::*;
    use proptest::prelude::*;

    const BLOCK: u32 = 512;
    const BOUNDS: Bounds = Bounds {
        bytes: 16 * BLOCK,
        blocks: 65536,
        segments: None,
    };

    fn rules() -> Rules {
        Rules {
            nsid: 1,
            block_shift: 9,
            blocks: 1 << 20,
            max_transfer: 1 << 20,
            writable: true,
            buffers: 0x10000,
            buffers_len: 4 << 30,
            raw: false,
            pass_unknown: false,
        }
    }

    fn command(code: u8, lba: u64, blocks: u32, offset: u64, fua: bool) -> (Command, BufRange) {
        let len = blocks * BLOCK;
        let sqe = transfer(code, lba, blocks, offset, len, fua);
        let at = BufRange {
            buffer: 0,
            offset: offset as usize,
            len,
        };
        (parse(&sqe, &rules()).unwrap(), at)
    }

    #[test]
    fn neighbours_join_and_others_do_not() {
        let (run, run_at) = command(opcode::WRITE, 10, 4, 2048, false);
        let how = |next: (Command, BufRange)| follows(&run, run_at, &next.0, next.1, BOUNDS);
        let check = |next| how(next) != Follows::No;
        assert_eq!(
            how(command(opcode::WRITE, 14, 4, 4096, false)),
            Follows::Whole
        );
        assert_eq!(
            how(command(opcode::WRITE, 14, 4, 8192, false)),
            Follows::Apart
        );
        assert!(!check(command(opcode::READ, 14, 4, 4096, false)), "opcode");
        assert!(!check(command(opcode::WRITE, 15, 4, 4096, false)), "blocks");
        assert!(
            !check(command(opcode::WRITE, 9, 4, 4096, false)),
            "backwards"
        );
        assert!(!check(command(opcode::WRITE, 14, 4, 4096, true)), "FUA");
        assert!(
            !check(command(opcode::WRITE, 14, 13, 4096, false)),
            "length"
        );
        let (mut other, at) = command(opcode::WRITE, 14, 4, 4096, false);
        other.raw.timeout_ms = 5;
        assert!(!check((other, at)), "timeout");
        let mut bounced = at;
        bounced.buffer = 1;
        assert!(!check((
            command(opcode::WRITE, 14, 4, 4096, false).0,
            bounced
        )));
    }

    #[test]
    fn each_page_of_a_piece_is_a_segment() {
        let of = |offset, len| {
            segments(BufRange {
                buffer: 0,
                offset,
                len,
            })
        };
        assert_eq!((of(0, 4096), of(512, 1024), of(4095, 1)), (1, 1, 1));
        assert_eq!((of(512, 4096), of(4095, 2), of(4095, 4098)), (2, 2, 3));
        let bounds = Bounds {
            segments: Some(10),
            ..BOUNDS
        };
        assert!(bounds.take_segments(10) && !bounds.take_segments(11));
        assert!(BOUNDS.take_segments(1 << 20), "the block layer splits");
    }

    #[test]
    fn one_neighbour_ends_the_habit_of_scattering() {
        let mut pattern = AccessPattern::default();
        let mut see = |code, lba| {
            pattern.see(&command(code, lba, 4, 0, false).0);
            pattern.is_scattered()
        };
        for lba in 1..STRANGERS {
            assert!(!see(opcode::WRITE, u64::from(lba) * 100));
        }
        assert!(see(opcode::WRITE, 7));
        assert!(see(opcode::READ, 11), "another opcode at the right place");
        assert!(see(opcode::WRITE, 15), "behind a read");
        assert!(see(opcode::COMPARE, 19), "a compare is no neighbour");
        assert!(!see(opcode::WRITE, 19), "behind the last write");
        assert!(!see(opcode::WRITE, 500), "one alone");
    }

    #[test]
    fn a_run_stays_inside_its_registered_buffer() {
        let edge = SHARD as u64 - 2048;
        let (run, run_at) = command(opcode::WRITE, 0, 4, edge, false);
        let (next, at) = command(opcode::WRITE, 4, 4, SHARD as u64, false);
        assert_eq!(follows(&run, run_at, &next, at, BOUNDS), Follows::No);
    }

    /// What a device holds after writes: one value a block, taken from where the data stands in memory.
    fn apply(device: &mut [u64], run: &Command, pieces: &[BufRange]) {
        let values = pieces.iter().flat_map(|at| {
            let first = at.offset as u64 / u64::from(BLOCK);
            first..first + u64::from(at.len / BLOCK)
        });
        let blocks = &mut device[run.lba as usize..][..run.blocks as usize];
        assert_eq!(values.clone().count(), blocks.len());
        for (block, value) in blocks.iter_mut().zip(values) {
            *block = value;
        }
    }

    proptest! {
        /// Entry by entry or merged, the device holds the same, every block is written as often, and
        /// no operation is longer than it may be.
        #[test]
        fn merged_is_the_same_as_one_by_one(
            entries in prop::collection::vec(
                (0u64..40, 1u32..6, 0u64..40, any::<bool>(), any::<bool>(), any::<bool>()), 1..60
            )
        ) {
            let mut merged = vec![u64::MAX; 64];
            let mut single = vec![u64::MAX; 64];
            let mut run: Option<(Command, Vec<BufRange>)> = None;
            let mut last = (0u64, 0u64);
            let (mut blocks_merged, mut blocks_single) = (0u64, 0u64);
            for (lba, blocks, memory, follow, apart, fua) in entries {
                // Half of them follow the one before, as packets do; some of these in other frames.
                let follow = follow && last.0 + u64::from(blocks) < 58;
                let lba = if follow { last.0 } else { lba };
                let memory = if follow && !apart { last.1 } else { memory };
                last = (lba + u64::from(blocks), memory + u64::from(blocks));
                let (next, at) = command(opcode::WRITE, lba, blocks, memory * u64::from(BLOCK), fua && !follow);
                apply(&mut single, &next, &[at]);
                blocks_single += u64::from(blocks);
                let how = run.as_ref().map_or(Follows::No, |(command, pieces)| {
                    follows(command, *pieces.last().unwrap(), &next, at, BOUNDS)
                });
                match (&mut run, how) {
                    (Some((command, pieces)), Follows::Whole) => {
                        join(command, &next);
                        pieces.last_mut().unwrap().len += at.len;
                    }
                    (Some((command, pieces)), Follows::Apart) => {
                        join(command, &next);
                        pieces.push(at);
                    }
                    _ => {
                        if let Some((command, pieces)) = run.replace((next, vec![at])) {
                            apply(&mut merged, &command, &pieces);
                            blocks_merged += u64::from(command.blocks);
                        }
                    }
                }
                let (command, pieces) = run.as_ref().unwrap();
                prop_assert!(command.len <= BOUNDS.bytes.max(blocks * BLOCK));
                prop_assert_eq!(command.len, command.blocks * BLOCK);
                prop_assert_eq!(command.raw.cdw12 & 0xffff, command.blocks - 1);
                prop_assert_eq!(pieces.iter().map(|at| at.len).sum::<u32>(), command.len);
            }
            let (command, pieces) = run.unwrap();
            apply(&mut merged, &command, &pieces);
            blocks_merged += u64::from(command.blocks);
            prop_assert_eq!(blocks_merged, blocks_single);
            prop_assert_eq!(merged, single);
        }
    }
}
