//! What is on its way into the units of a log of version 2.

#![forbid(unsafe_code)]

use std::ops::Range;
use std::time::{Duration, Instant};

use crate::error::Result;
use crate::frame::Freed;
use crate::lane::Lane;

#[derive(Debug, Default)]
pub(super) struct Filling {
    /// Neighbouring frames whose packets were copied into the open unit, and are still held.
    pub copied: Range<u32>,
    pub bytes: u64,
    pub into: u32,
    pub freed: Freed,
    /// Packets of the open unit, and when it was opened.
    pub unsubmitted: u64,
    pub since: Option<Instant>,
    /// Frames that were submitted.
    pub submitted: u64,
    /// Kept for the header of a segment of units that a device has failed: they hold all frames, perhaps.
    pub spare: Option<u32>,
    /// Counts frames without packets that were submitted.
    pub serial: u64,
    /// Packets since the engine was last told.
    pub unpublished: usize,
    pub bound: bool,
}

impl Filling {
    pub fn is_open(&self) -> bool {
        self.since.is_some()
    }

    pub fn is_older(&self, than: Duration) -> bool {
        self.since.is_some_and(|since| since.elapsed() >= than)
    }

    /// The copied frames join their unit.
    pub fn settle(&mut self, lane: &Lane) -> Result<()> {
        let (first, count) = (self.copied.start, self.copied.len() as u32);
        if count == 0 {
            return Ok(());
        }
        lane.pack(first, count, self.bytes, self.into, &mut self.freed)?;
        self.copied = 0..0;
        self.bytes = 0;
        Ok(())
    }
}
