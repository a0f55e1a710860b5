//! The spill: a second device or a file that gets the writes which the device failed, at the same address.
//!
//! The engine writes them there through its io_uring, from the same memory, after all retries. A spilled write
//! completes with success and a flag; a flush covers it too. At the address of a spilled write, the spill holds what
//! the device should hold. Elsewhere it holds zeroes, or older spills.

#![forbid(unsafe_code)]

use std::fs::{File, Metadata, OpenOptions};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use super::command::{Command, opcode, status};
use super::device::{
    Claim, Device, DeviceConfig, MadeFile, absent, another_has, check_place, guard_contents,
    open_or_make, open_unused, own_description,
};
use super::task::Outcome;
use crate::error::{Error, Result};

#[derive(Debug)]
pub struct Spill {
    file: File,
    pub path: String,
    /// Set if opening created the file, which is removed again unless it is kept.
    pub made: Option<MadeFile>,
    /// Holds what no flush has covered yet.
    dirty: AtomicBool,
    /// Syncs of it that have not ended: they may fail, and a flush that comes meanwhile counts on none of them.
    syncing: AtomicU32,
    /// Nobody else writes there.
    _claim: Option<Claim>,
}

impl Spill {
    /// Opens `path` for `device`: a block device that is at least as long and that nobody else uses (unless `force`),
    /// or a regular file, which is created if it does not exist and stays sparse. Its contents are kept. Both go
    /// through the page cache, so the memory need not be aligned.
    ///
    /// `EINVAL` (too short, no file or block device, or the device itself), `EBUSY` (mounted, held, partitioned,
    /// or another context spills there), and what opening says.
    pub fn open(path: &str, device: &Device, force: bool) -> Result<Spill> {
        let name = |what: &str| format!("{what} '{path}', the spill of '{}'", device.path);
        let known = std::fs::metadata(path).ok();
        if known.as_ref().is_some_and(|about| is_same(about, device)) {
            return Err(Error::new(
                libc::EINVAL,
                format!("'{path}' is the device itself: spill to another one"),
            ));
        }
        let needed = device.limits.blocks << device.limits.block_shift();
        let (file, made, claim) = match known.filter(|about| about.file_type().is_block_device()) {
            Some(about) => {
                let config = DeviceConfig {
                    path: path.into(),
                    force,
                    ..DeviceConfig::default()
                };
                let (file, _, claim) = open_unused(&config, &about, 0)?;
                if length(&file)? < needed {
                    return Err(Error::new(
                        libc::EINVAL,
                        format!("{} is shorter than that device", name("the block device")),
                    ));
                }
                (file, None, claim)
            }
            None => {
                let (file, made, claim) = open_file(path, needed, force, name)?;
                (file, made, Some(claim))
            }
        };
        Ok(Spill {
            made,
            _claim: claim,
            ..Spill::to(file, path)
        })
    }

    /// To a file that is open for writing.
    pub(super) fn to(file: File, path: &str) -> Spill {
        Spill {
            file,
            path: path.into(),
            made: None,
            dirty: AtomicBool::new(false),
            syncing: AtomicU32::new(0),
            _claim: None,
        }
    }

    /// Whether something in it is not synced, and how many syncs run.
    #[cfg(test)]
    pub fn unsynced(&self) -> (bool, u32) {
        let syncing = self.syncing.load(Ordering::Acquire);
        (self.dirty.load(Ordering::Acquire), syncing)
    }

    /// A write to it was completed.
    pub fn written(&self) {
        self.dirty.store(true, Ordering::Release);
    }

    /// Whether a flush has something to sync. Then the caller syncs it, and tells `synced` what became of that.
    pub fn wants_sync(&self) -> bool {
        // First: whoever looks next must not find neither. And a sync that fails between the two has made it dirty again.
        let others = self.syncing.fetch_add(1, Ordering::AcqRel) > 0;
        // What is spilled from now on is for the next flush.
        let wants = self.dirty.swap(false, Ordering::AcqRel) || others;
        if !wants {
            self.syncing.fetch_sub(1, Ordering::AcqRel);
        }
        wants
    }

    /// A sync has ended.
    pub fn synced(&self, success: bool) {
        if !success {
            self.dirty.store(true, Ordering::Release);
        }
        self.syncing.fetch_sub(1, Ordering::AcqRel);
    }

    /// A descriptor for an engine's file table. `own`: as `Device::duplicate_files`.
    pub fn duplicate_file(&self, own: bool) -> Result<OwnedFd> {
        let duplicate = match own {
            true => own_description(&self.file, &self.path),
            false => self.file.try_clone(),
        };
        duplicate.map(OwnedFd::from).map_err(|e| {
            Error::os(
                &e,
                format_args!("duplicating the descriptor of the spill '{}'", self.path),
            )
        })
    }
}

fn is_same(about: &Metadata, device: &Device) -> bool {
    let open = device.files.first().and_then(|file| file.metadata().ok());
    [open, std::fs::metadata(&device.path).ok()]
        .into_iter()
        .flatten()
        .any(|other| {
            if about.file_type().is_block_device() {
                other.file_type().is_block_device() && other.rdev() == about.rdev()
            } else {
                (other.dev(), other.ino()) == (about.dev(), about.ino())
            }
        })
}

fn open_file(
    path: &str,
    needed: u64,
    force: bool,
    name: impl Fn(&str) -> String,
) -> Result<(File, Option<MadeFile>, Claim)> {
    let place = Path::new(path);
    let about = std::fs::metadata(place);
    if let Err(e) = &about
        && e.kind() == io::ErrorKind::NotFound
        && let Some(error) = absent(place)
    {
        return Err(error);
    }
    if about.is_ok_and(|about| about.is_file()) {
        check_place(place)?;
    }
    let mut options = OpenOptions::new();
    options.read(true).write(true).mode(0o600);
    let (file, made) = open_or_make(&options, place).map_err(|e| Error::os(&e, name("opening")))?;
    let about = file
        .metadata()
        .map_err(|e| Error::os(&e, name("looking at")))?;
    if !about.is_file() {
        return Err(Error::new(
            libc::EINVAL,
            name("neither a regular file nor a block device:"),
        ));
    }
    let failed = |e: io::Error| another_has(path, &e);
    let mut claim = Claim::new().map_err(failed)?;
    if let Err(e) = claim.add(&file) {
        if e.kind() != io::ErrorKind::WouldBlock {
            return Err(Error::os(&e, name("locking")));
        }
        // Another context found the new file first: it is not ours to remove.
        if let Some(made) = made {
            made.keep();
        }
        return Err(Error::new(libc::EBUSY, name("another context has")));
    }
    if !force && about.len() > 0 {
        guard_contents(path, &file, about.len())?;
    }
    if about.len() < needed {
        file.set_len(needed)
            .map_err(|e| Error::os(&e, name("giving its length to")))?;
    }
    Ok((file, made, claim))
}

fn length(mut file: &File) -> Result<u64> {
    use std::io::{Seek, SeekFrom};
    file.seek(SeekFrom::End(0))
        .map_err(|e| Error::os(&e, "finding a block device's end"))
}

/// Whether a command with this outcome goes to the spill: a write that the device failed, but not one that no device
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
