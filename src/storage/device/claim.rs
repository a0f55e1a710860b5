//! The claim on a device: one context at a time writes to it, no matter how it was opened or handed in.
//!
//! The kernel keeps the claim, so it also works between processes and ends with them. Locks belong to an open file
//! description, and one that was handed in is shared with its opener, and perhaps with other contexts. So a claim uses
//! a description of its own: it opens the same file once more.

#![forbid(unsafe_code)]

use std::fs::{File, OpenOptions, TryLockError};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;

use super::claim_patiently;
use crate::sys::file::{self as sysfile, LockApart};
use crate::sys::fork::ProcessId;

/// `f_type` of file systems whose server treats flock and fcntl locks as one kind: NFS, SMB, CIFS.
const ONE_KIND_OF_LOCK: [u64; 3] = [0x6969, 0xfe53_4d42, 0xff53_4d42];

/// Dropping it releases the device at once, even if a child that is just being started still has the descriptors.
#[derive(Debug)]
pub struct Claim {
    owner: ProcessId,
    held: Vec<Held>,
    /// Open with O_EXCL.
    _node: Option<File>,
}

#[derive(Debug)]
enum Held {
    /// Locked both ways.
    Own(File),
    /// Locked by flock alone: open for reading.
    Flocked(File),
    /// Only the description that was handed in is available.
    Apart(LockApart),
}

impl Claim {
    /// An empty claim.
    pub fn new() -> io::Result<Claim> {
        Ok(Claim {
            owner: ProcessId::of_this_process()?,
            held: Vec::new(),
            _node: None,
        })
    }

    /// Keeps a block node that was opened with O_EXCL.
    pub fn keep(&mut self, exclusive: File) {
        self._node = Some(exclusive);
    }

    /// Locks a file, open for reading at least, and keeps it. `WouldBlock` if another context has it.
    pub fn flock(&mut self, file: File) -> io::Result<()> {
        patiently(|| flock(&file))?;
        self.held.push(Held::Flocked(file));
        Ok(())
    }

    /// Locks an open file, and retries for a moment if somebody has it. `WouldBlock` if somebody keeps it.
    pub fn add(&mut self, file: &File) -> io::Result<()> {
        let held = match reopen(file) {
            Ok(own) => {
                patiently(|| lock(&own))?;
                Held::Own(own)
            }
            // Handed in by a process with more privileges.
            Err(_) => Held::Apart(patiently(|| LockApart::take(file))?),
        };
        self.held.push(held);
        Ok(())
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        // A forked child shares the parent's descriptions: unlocking them would release the parent's claim.
        let ours = self.owner.is_current();
        for held in self.held.drain(..) {
            match held {
                Held::Own(file) if ours => {
                    let _ = sysfile::unlock_range(&file);
                    let _ = file.unlock();
                }
                Held::Flocked(file) if ours => {
                    let _ = file.unlock();
                }
                Held::Apart(lock) if !ours => std::mem::forget(lock),
                // Closed.
                Held::Own(_) | Held::Flocked(_) | Held::Apart(_) => {}
            }
        }
    }
}

fn patiently<T>(attempt: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    claim_patiently(attempt, |e| e.kind() == io::ErrorKind::WouldBlock)
}

/// A path to an open file that stays valid if the file is renamed.
pub(super) fn link_of(file: &File) -> PathBuf {
    format!("/proc/self/fd/{}", file.as_raw_fd()).into()
}

/// Opens the same file again, for a description of its own.
fn reopen(file: &File) -> io::Result<File> {
    let own = OpenOptions::new()
        .read(true)
        .write(true)
        .open(link_of(file))?;
    let (this, that) = (file.metadata()?, own.metadata()?);
    match (this.dev(), this.ino()) == (that.dev(), that.ino()) {
        true => Ok(own),
        false => Err(io::Error::from_raw_os_error(libc::ENOENT)),
    }
}

fn flock(file: &File) -> io::Result<()> {
    file.try_lock().map_err(|e| match e {
        TryLockError::WouldBlock => io::ErrorKind::WouldBlock.into(),
        TryLockError::Error(e) => e,
    })
}

/// Takes two kinds of lock: flock, which other programs check and which udev and systemd respect on block devices; and
/// a lock of the range, which conflicts with `LockApart`.
fn lock(file: &File) -> io::Result<()> {
    flock(file)?;
    let kind = sysfile::file_system_type_of(file)?;
    if ONE_KIND_OF_LOCK.contains(&kind) {
        return Ok(());
    }
    sysfile::lock_range(file).inspect_err(|_| {
        let _ = file.unlock();
    })
}
