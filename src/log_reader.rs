//! Reads a log: from the oldest record to the newest, live while a recorder writes, by sequence number or time. Needs
//! no context.
//!
//! `slots` reads version 1 and `units` version 2, both from a `source`.

#![forbid(unsafe_code)]

mod slots;
mod source;
mod units;

use std::path::Path;
use std::time::{Duration, Instant};

use slots::SlotReader;
use source::Source;
use units::UnitReader;

use crate::error::{Error, Result};
use crate::log;
use crate::record::{self, Header, Superblock, refuse_version};
use crate::unit_log::superblock as unit_superblock;

/// Time between two polls of a follower.
const LOOK: Duration = Duration::from_millis(2);

/// One item of the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Item<'a> {
    Record {
        header: Header,
        /// The packet from its Ethernet header on.
        packet: &'a [u8],
    },
    /// These records are missing: their writes failed or were cut off, or they are damaged.
    Gap {
        first: u64,
        count: u64,
        damaged: bool,
    },
    /// The recorder has overtaken the reader, and this many records were overwritten unread.
    Overwritten { first: u64, count: u64 },
}

/// An item without the packet's bytes, which are in the buffer.
#[derive(Debug, Clone, Copy)]
enum Found {
    Record(Header),
    Gap {
        first: u64,
        count: u64,
        damaged: bool,
    },
    Overwritten {
        first: u64,
        count: u64,
    },
}

/// What the reader has found so far.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Tally {
    pub records: u64,
    pub missing: u64,
    pub damaged: u64,
    pub overwritten: u64,
}

#[derive(Debug)]
pub struct LogReader {
    version: Version,
}

#[derive(Debug)]
enum Version {
    Slots(Box<SlotReader>),
    Units(Box<UnitReader>),
}

/// Calls the reader of either version.
macro_rules! either {
    ($reader:expr, $name:ident => $call:expr) => {
        match &$reader.version {
            Version::Slots($name) => $call,
            Version::Units($name) => $call,
        }
    };
    (mut $reader:expr, $name:ident => $call:expr) => {
        match &mut $reader.version {
            Version::Slots($name) => $call,
            Version::Units($name) => $call,
        }
    };
}

impl LogReader {
    /// Opens the log that begins `start` bytes into a device or file. `ENOENT`, `EACCES` (the path), `ENOMSG` (there
    /// is no log), `EINVAL` (`start` is not a multiple of 512), `EPROTONOSUPPORT` (a version or features that this library
    /// does not know).
    pub fn open(path: &Path, start: u64) -> Result<LogReader> {
        log::to_stderr_if_asked();
        let mut source = Source::open(path, start)?;
        let got = source.read_head()?;
        let bytes = source.bytes(0, got);
        let slots = slots::superblock_in(&source, bytes);
        let units = units::superblock_in(&source, bytes);
        // The copy at the start says the version. Elsewhere there may be one of an earlier log with longer slots.
        let first_is_units = unit_superblock::Superblock::read(bytes).is_some();
        let first_is_slots = Superblock::read(bytes).is_some();
        let version = match (slots, units) {
            (Some(found), None) => Version::Slots(Box::new(SlotReader::open(source, found)?)),
            (Some(found), Some(_)) if first_is_slots => {
                Version::Slots(Box::new(SlotReader::open(source, found)?))
            }
            (slots, Some(found)) if slots.is_none() || first_is_units => {
                unit_superblock::refuse_features(&found, &source.name)?;
                Version::Units(Box::new(UnitReader::open(source, found)?))
            }
            // If there is a valid copy, one elsewhere than at the start may be bytes of a packet.
            _ => {
                let unknown = Source::copies(bytes).find_map(|(_, copy)| {
                    Superblock::unknown_version(copy).filter(|v| *v != unit_superblock::VERSION)
                });
                return Err(match unknown {
                    Some(version) => refuse_version(&source.name, version),
                    None => Error::new(
                        libc::ENOMSG,
                        format!("there is no log at byte {start} of '{}'", source.name),
                    ),
                });
            }
        };
        Ok(LogReader { version })
    }

    /// Adds the spill of the recorder that wrote the log. Records that the device does not have are read from there.
    /// `ENOENT`, `EACCES` (the path).
    pub fn add_spill(&mut self, path: &Path) -> Result<()> {
        either!(mut self, reader => reader.add_spill(path))
    }

    /// Sequence number after the newest record.
    pub fn end(&mut self) -> Result<u64> {
        either!(mut self, reader => reader.end())
    }

    /// Sequence number of the oldest record that may still exist.
    pub fn oldest(&mut self) -> Result<u64> {
        either!(mut self, reader => reader.oldest())
    }

    /// The properties of the log, as version 1 has them: of version 2, `log_id` is the set's, and `slots` are all slots
    /// of its segments.
    pub fn superblock(&self) -> &Superblock {
        either!(self, reader => reader.superblock())
    }

    /// 1 or 2.
    pub fn version(&self) -> u16 {
        match &self.version {
            Version::Slots(_) => record::VERSION,
            Version::Units(_) => unit_superblock::VERSION,
        }
    }

    pub fn tally(&self) -> Tally {
        either!(self, reader => reader.tally())
    }

    /// Sequence number of the record that comes next.
    pub fn position(&self) -> u64 {
        either!(self, reader => reader.position())
    }

    /// Seeks to a record. If it was overwritten, the next item is `Item::Overwritten`.
    pub fn seek(&mut self, sequence: u64) {
        either!(mut self, reader => reader.seek(sequence));
    }

    /// Seeks to the first record that is not older than `timestamp` (ns since 1970-01-01 UTC).
    pub fn seek_time(&mut self, timestamp: u64) -> Result<()> {
        either!(mut self, reader => reader.seek_time(timestamp))
    }

    fn step(&mut self, following: bool) -> Result<Option<Found>> {
        either!(mut self, reader => reader.step(following))
    }

    fn item(&self, found: Found) -> Item<'_> {
        either!(self, reader => reader.item(found))
    }

    /// The next item of the log; `None` at its end. The packet is valid until the next call.
    pub fn next_item(&mut self) -> Result<Option<Item<'_>>> {
        let found = self.step(false)?;
        Ok(found.map(|found| self.item(found)))
    }

    /// As `next_item`, but waits for a recorder to continue, for at most `timeout`.
    pub fn follow(&mut self, timeout: Duration) -> Result<Option<Item<'_>>> {
        let until = Instant::now() + timeout;
        loop {
            if let Some(found) = self.step(true)? {
                return Ok(Some(self.item(found)));
            }
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(None);
            }
            std::thread::sleep(left.min(LOOK));
        }
    }
}
