//! Writes a log: finds the end of an earlier one, turns received packets into records, and decides where each goes.
//!
//! `slots` writes version 1, a frame for each packet. `units` writes version 2: large packets in their frames, small ones
//! packed together (`packing`), in logs on several devices that several lanes share (`set`).

#![forbid(unsafe_code)]

mod blank;
mod disk;
mod losses;
mod packing;
mod set;
mod slots;
mod units;

pub use set::{Granted, LogSet, Segment, SetConfig};
pub use slots::SlotRecorder;
pub use units::{UnitConfig, UnitRecorder};

use std::collections::hash_map::RandomState;
use std::hash::{BuildHasher, Hasher};

use disk::Disk;

use crate::error::{Error, Result};
use crate::log_scan::{READ_BATCH, is_unreadable};
use crate::record::NAME_LEN;
use crate::storage::device::Kind;

/// Before a log is begun in a range, one slot in each of this many parts is checked.
const SAMPLES: u64 = 32;

/// What to do with an existing log in the range.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub enum Existing {
    /// Continue after its newest record; begin a new log if there is none.
    #[default]
    Continue,
    /// Begin a new log; records of an earlier one are ignored.
    Replace,
}

fn name_bytes(name: Option<&str>) -> [u8; NAME_LEN] {
    let mut bytes = [0; NAME_LEN];
    let name = name.unwrap_or_default().as_bytes();
    // Linux has no longer names.
    let len = name.len().min(NAME_LEN - 1);
    bytes[..len].copy_from_slice(&name[..len]);
    bytes
}

/// A number that no other log has.
fn random_id(now: u64) -> u64 {
    // Each hasher of the standard library has random keys.
    RandomState::new().build_hasher().finish() ^ now
}

/// `EIO`: nobody can say whether a log begins there.
fn unreadable_start(device: &str, start_lba: u64) -> Error {
    Error::new(
        libc::EIO,
        format!(
            "block {start_lba} of '{device}', where a log would begin, cannot be read: choose another range, or begin a new \
             log with UNIFIED_LOG_NEW"
        ),
    )
}

/// Refuses a range of `count` slots that holds something else than a log: `EEXIST`. Checks its first slots, its last ones,
/// and some in between. Slots that cannot be read are ignored. `lba`: where a slot of the range begins.
fn check_empty(disk: &Disk, count: u64, lba: impl Fn(u64) -> u64) -> Result<()> {
    // A null device stores nothing: a read returns what the memory held.
    if disk.about().kind == Kind::Null {
        return Ok(());
    }
    let last = count - READ_BATCH.min(count);
    let between = (1..SAMPLES).map(|i| (count / SAMPLES * i, 1));
    for (first, wanted) in [(0, READ_BATCH), (last, READ_BATCH)]
        .into_iter()
        .chain(between)
    {
        let mut at = first;
        let end = (first + wanted).min(count);
        while at < end {
            let Ok(slots) = disk.read(lba(at), end - at) else {
                break;
            };
            for slot in &slots {
                if !is_unreadable(slot) && slot.iter().any(|byte| *byte != 0) {
                    return Err(Error::new(
                        libc::EEXIST,
                        format!(
                            "'{}' holds data that is not a log (at block {}) and would be overwritten; use an empty range or another device, or overwrite it (the flag UNIFIED_LOG_NEW, or UNIFIED_FORCE of the context)",
                            disk.about().path,
                            lba(at)
                        ),
                    ));
                }
                at += 1;
            }
        }
    }
    Ok(())
}
