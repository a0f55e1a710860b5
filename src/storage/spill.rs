//! Where writes go that the device did not take: a second device or a file, at the same address.
//!
//! The engine writes them there from the memory in which they stand, through its io_uring, after all retries.
//! What was spilled completes with success and says so in a flag; a flush covers it too. A reader finds at an
//! address of the spill what the device should hold there, and otherwise nothing (zeroes, or older spills).

#![forbid(unsafe_code)]

use std::fs::{File, Metadata, OpenOptions, TryLockError};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::Path;

use super::Outcome;
use super::command::{Command, opcode, status};
use super::device::{Device, DeviceConfig, MadeFile, claim_patiently, open_or_make, open_unused};
use crate::error::{Error, Result};

#[derive(Debug)]
pub struct Spill {
    pub file: OwnedFd,
    pub path: String,
    /// The file was made by the opening, and goes again unless whoever opened it keeps it.
    pub made: Option<MadeFile>,
}

impl Spill {
    /// Opens `path` for `device`: a block device at least as long, which nobody else may have (but with
    /// `force`), or a regular file, which is made where there is none and stays sparse. What it holds stays.
    /// Both go through the page cache: the memory that is written need not be aligned for them.
    ///
    /// `EINVAL` (too short, no file or block device, or the device itself), `EBUSY` (mounted, held, partitioned,
    /// or another context spills there), and what opening says.
    pub fn open(path: &str, device: &Device, force: bool) -> Result<Spill> {
        let name = |what: &str| format!("{what} '{path}', where '{}' spills to", device.path);
        let known = std::fs::metadata(path).ok();
        if known.as_ref().is_some_and(|about| is_same(about, device)) {
            return Err(Error::new(
                libc::EINVAL,
                format!("'{path}' is the device itself: spill to another one"),
            ));
        }
        let needed = device.limits.blocks << device.limits.block_shift();
        let (file, made) = match known.filter(|about| about.file_type().is_block_device()) {
            Some(about) => {
                let config = DeviceConfig {
                    path: path.into(),
                    force,
                    ..DeviceConfig::default()
                };
                let file = open_unused(&config, &about, 0)?.0;
                if length(&file)? < needed {
                    return Err(Error::new(
                        libc::EINVAL,
                        format!("{} is shorter than it", name("the block device")),
                    ));
                }
                (file, None)
            }
            None => open_file(path, needed, name)?,
        };
        Ok(Spill {
            file: file.into(),
            path: path.into(),
            made,
        })
    }
}

fn is_same(about: &Metadata, device: &Device) -> bool {
    std::fs::metadata(&device.path).is_ok_and(|other| {
        if about.file_type().is_block_device() {
            other.rdev() == about.rdev()
        } else {
            (other.dev(), other.ino()) == (about.dev(), about.ino())
        }
    })
}

fn open_file(
    path: &str,
    needed: u64,
    name: impl Fn(&str) -> String,
) -> Result<(File, Option<MadeFile>)> {
    let mut options = OpenOptions::new();
    options.read(true).write(true).mode(0o600);
    let (file, fresh) =
        open_or_make(&options, Path::new(path)).map_err(|e| Error::os(&e, name("opening")))?;
    let about = file
        .metadata()
        .map_err(|e| Error::os(&e, name("looking at")))?;
    if !about.is_file() {
        return Err(Error::new(
            libc::EINVAL,
            name("neither a regular file nor a block device:"),
        ));
    }
    claim_patiently(
        || file.try_lock(),
        |e| matches!(e, TryLockError::WouldBlock),
    )
    .map_err(|e| match e {
        TryLockError::WouldBlock => Error::new(libc::EBUSY, name("another context has")),
        TryLockError::Error(e) => Error::os(&e, name("locking")),
    })?;
    // Only now, with the lock, is it surely ours to remove.
    let made = fresh.then(|| MadeFile::new(path));
    if about.len() < needed {
        file.set_len(needed)
            .map_err(|e| Error::os(&e, name("giving its length to")))?;
    }
    Ok((file, made))
}

fn length(mut file: &File) -> Result<u64> {
    use std::io::{Seek, SeekFrom};
    file.seek(SeekFrom::End(0))
        .map_err(|e| Error::os(&e, "finding a block device's end"))
}

/// Whether a command that ended so goes to the spill: a write that the device failed, not one that no device
/// would take.
pub fn wants(command: &Command, outcome: &Outcome) -> bool {
    command.opcode == opcode::WRITE
        && !matches!(
            outcome.status,
            status::SUCCESS
                | status::INVALID_OPCODE
                | status::INVALID_FIELD
                | status::INVALID_NAMESPACE
                | status::LBA_OUT_OF_RANGE
        )
        && !matches!(
            -outcome.result,
            libc::EINVAL | libc::EFAULT | libc::EOPNOTSUPP
        )
}
