//! Reads a log: from the oldest record to the newest, live while a recorder writes, by sequence number or time. Needs
//! no context.
//!
//! `slots` reads version 1, and `units` version 2 of one lane on one device, both from a `source`. `set` reads what several
//! lanes wrote to one or several devices: each device is a `leg`, and each `lane` a merge of its segments on all of them.

#![forbid(unsafe_code)]

mod lane;
mod leg;
mod set;
mod slots;
mod source;
mod units;

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use set::SetReader;
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
        lane: u16,
        first: u64,
        count: u64,
        damaged: bool,
    },
    /// The recorder has overtaken the reader, and this many records were overwritten unread.
    Overwritten { lane: u16, first: u64, count: u64 },
}

/// An item without the packet's bytes, which are in the buffer.
#[derive(Debug, Clone, Copy)]
enum Found {
    Record(Header),
    Gap {
        lane: u16,
        first: u64,
        count: u64,
        damaged: bool,
    },
    Overwritten {
        lane: u16,
        first: u64,
        count: u64,
    },
}

impl Found {
    /// For a reader that has dealt with records.
    fn without_packet<'a>(self) -> Item<'a> {
        match self {
            Found::Record(header) => Item::Record {
                header,
                packet: &[],
            },
            Found::Gap {
                lane,
                first,
                count,
                damaged,
            } => Item::Gap {
                lane,
                first,
                count,
                damaged,
            },
            Found::Overwritten { lane, first, count } => Item::Overwritten { lane, first, count },
        }
    }
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
    Set(Box<SetReader>),
}

/// Calls the reader of either version.
macro_rules! either {
    ($reader:expr, $name:ident => $call:expr) => {
        match &$reader.version {
            Version::Slots($name) => $call,
            Version::Units($name) => $call,
            Version::Set($name) => $call,
        }
    };
    (mut $reader:expr, $name:ident => $call:expr) => {
        match &mut $reader.version {
            Version::Slots($name) => $call,
            Version::Units($name) => $call,
            Version::Set($name) => $call,
        }
    };
}

impl LogReader {
    /// Opens the log that begins `start` bytes into a device or file. `ENOENT`, `EACCES` (the path), `ENOMSG` (there
    /// is no log), `EINVAL` (`start` is not a multiple of 512), `EPROTONOSUPPORT` (a version or features that this library
    /// does not know).
    pub fn open(path: &Path, start: u64) -> Result<LogReader> {
        log::to_stderr_if_asked();
        let version = match opened(path, start)? {
            Opened::Slots(source, found) => {
                Version::Slots(Box::new(SlotReader::open(source, found)?))
            }
            Opened::Units(source, found) if found.devices > 1 || found.lanes > 1 => {
                Version::Set(Box::new(SetReader::open(vec![(source, found)])?))
            }
            Opened::Units(source, found) => {
                Version::Units(Box::new(UnitReader::open(source, found)?))
            }
        };
        Ok(LogReader { version })
    }

    /// Opens devices of a set together, each with the byte where its log begins, in any order. Not all need to be there: what
    /// only the others have is reported as missing. As `open`, and `EINVAL` for none, for devices of different sets, for one
    /// that is given twice, and for several of which one is no device of a set.
    pub fn open_set(devices: &[(PathBuf, u64)]) -> Result<LogReader> {
        if let [(path, start)] = devices {
            return LogReader::open(path, *start);
        }
        log::to_stderr_if_asked();
        let mut found = Vec::new();
        for (path, start) in devices {
            match opened(path, *start)? {
                Opened::Units(source, log) => found.push((source, log)),
                Opened::Slots(source, _) => {
                    return Err(Error::new(
                        libc::EINVAL,
                        format!(
                            "'{}' holds a log of version 1, which is on one device: read it by itself",
                            source.name
                        ),
                    ));
                }
            }
        }
        Ok(LogReader {
            version: Version::Set(Box::new(SetReader::open(found)?)),
        })
    }

    /// Devices of the recording, and those of them that are read. Version 1 has one.
    pub fn devices(&self) -> (u16, u16) {
        match &self.version {
            Version::Set(reader) => reader.devices(),
            _ => (1, 1),
        }
    }

    /// Numbers of the devices of the recording that are not read.
    pub fn missing_devices(&self) -> Vec<u16> {
        match &self.version {
            Version::Set(reader) => reader.missing_devices(),
            _ => Vec::new(),
        }
    }

    /// Lanes that wrote the log. Version 1 has one.
    pub fn lanes(&self) -> u16 {
        match &self.version {
            Version::Set(reader) => reader.lanes(),
            _ => 1,
        }
    }

    /// Adds the spill of the recorder that wrote the log. Records that the device does not have are read from there. Of a
    /// set, it is that of the first device that was given. `ENOENT`, `EACCES` (the path).
    pub fn add_spill(&mut self, path: &Path) -> Result<()> {
        self.add_spill_of(0, path)
    }

    /// As `add_spill`, for the device that was given as number `place`, from 0. `EINVAL`: there is none.
    pub fn add_spill_of(&mut self, place: usize, path: &Path) -> Result<()> {
        match &mut self.version {
            Version::Set(reader) => reader.add_spill(place, path),
            _ if place > 0 => Err(set::no_such_device(place, 1)),
            Version::Slots(reader) => reader.add_spill(path),
            Version::Units(reader) => reader.add_spill(path),
        }
    }

    /// Sequence number after the newest record. Of several lanes the sum of these numbers, as for `oldest` and
    /// `position`: `end - oldest` is then about how many records there are.
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
            Version::Units(_) | Version::Set(_) => unit_superblock::VERSION,
        }
    }

    pub fn tally(&self) -> Tally {
        either!(self, reader => reader.tally())
    }

    /// Sequence number of the record that comes next.
    pub fn position(&self) -> u64 {
        either!(self, reader => reader.position())
    }

    /// Seeks to a record. If it was overwritten, the next item is `Item::Overwritten`. `EINVAL` if there are several
    /// lanes, each of which has its own sequence numbers.
    pub fn seek(&mut self, sequence: u64) -> Result<()> {
        match &mut self.version {
            Version::Slots(reader) => reader.seek(sequence),
            Version::Units(reader) => reader.seek(sequence),
            Version::Set(reader) => reader.seek(sequence)?,
        }
        Ok(())
    }

    /// Seeks to the first record, of each lane, that is not older than `timestamp` (ns since 1970-01-01 UTC).
    pub fn seek_time(&mut self, timestamp: u64) -> Result<()> {
        either!(mut self, reader => reader.seek_time(timestamp))
    }

    fn step(&mut self, following: bool) -> Result<Option<Found>> {
        either!(mut self, reader => reader.step(following))
    }

    fn item(&self, found: Found) -> Item<'_> {
        either!(self, reader => reader.item(found))
    }

    /// The next item of the log; `None` at its end. Several lanes are merged by time; each keeps its own order. The packet is valid until the next call.
    pub fn next_item(&mut self) -> Result<Option<Item<'_>>> {
        let found = self.step(false)?;
        Ok(found.map(|found| self.item(found)))
    }

    /// As `next_item`, but waits for a recorder to continue, for at most `timeout`. Of several lanes, a record is held back for
    /// up to 100 ms for lanes that have none, so that the order by time is kept.
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

/// A log of either version.
enum Opened {
    Slots(Source, Superblock),
    Units(Source, unit_superblock::Superblock),
}

fn opened(path: &Path, start: u64) -> Result<Opened> {
    let mut source = Source::open(path, start)?;
    let got = source.read_head()?;
    let bytes = source.bytes(0, got);
    let slots = slots::superblock_in(&source, bytes);
    let units = units::superblock_in(&source, bytes);
    // The copy at the start says the version. Elsewhere there may be one of an earlier log with longer slots.
    let first_is_units = unit_superblock::Superblock::read(bytes).is_some();
    let first_is_slots = Superblock::read(bytes).is_some();
    match (slots, units) {
        (Some(found), None) => Ok(Opened::Slots(source, found)),
        (Some(found), Some(_)) if first_is_slots => Ok(Opened::Slots(source, found)),
        (slots, Some(found)) if slots.is_none() || first_is_units => {
            unit_superblock::refuse_features(&found, &source.name)?;
            Ok(Opened::Units(source, found))
        }
        // If there is a valid copy, one elsewhere than at the start may be bytes of a packet.
        _ => {
            let unknown = Source::copies(bytes).find_map(|(_, copy)| {
                Superblock::unknown_version(copy).filter(|v| *v != unit_superblock::VERSION)
            });
            Err(match unknown {
                Some(version) => refuse_version(&source.name, version),
                None => Error::new(
                    libc::ENOMSG,
                    format!("there is no log at byte {start} of '{}'", source.name),
                ),
            })
        }
    }
}
