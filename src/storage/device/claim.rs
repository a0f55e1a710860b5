//! A device that is written to belongs to one context, whichever way it was opened or handed in.
//!
//! The kernel keeps the claim, so it also holds between processes and ends with them. Locks belong to an open file
//! description, and one that was handed in is shared with whoever handed it in, and perhaps with other contexts. So
//! a claim is made on a description of its own: the same file opened once more.

#![forbid(unsafe_code)]

use std::fs::{File, OpenOptions, TryLockError};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;

use super::claim_patiently;
use crate::sys::file::{self as sysfile, LockApart};
use crate::sys::fork::ProcessId;

/// `f_type` of file systems that make flock and fcntl locks one kind at their server: NFS, SMB, CIFS.
const ONE_KIND_OF_LOCK: [u64; 3] = [0x6969, 0xfe53_4d42, 0xff53_4d42];

/// Dropping it gives the device free at once, also if a child that is just being started still has the descriptors.
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
    /// Nothing but the description that was handed in can be had.
    Apart(LockApart),
}

impl Claim {
    /// Of nothing yet.
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

    /// Locks what a file is open on, for a moment again if somebody has it. `WouldBlock` if somebody keeps it.
    pub fn add(&mut self, file: &File) -> io::Result<()> {
        let held = match reopen(file) {
            Ok(own) => {
                patiently(|| lock(&own))?;
                Held::Own(own)
            }
            // Handed in by somebody who may more than this process.
            Err(_) => Held::Apart(patiently(|| LockApart::take(file))?),
        };
        self.held.push(held);
        Ok(())
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        // A forked child has the parent's descriptions, and no thread of it: unlocking them would free the parent's.
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

/// A path that leads to what a file is open on, whatever was renamed meanwhile.
pub(super) fn link_of(file: &File) -> PathBuf {
    format!("/proc/self/fd/{}", file.as_raw_fd()).into()
}

/// The same file in a description of its own.
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

/// Two kinds: flock is what other programs look at, and what udev and systemd respect on block devices. A lock of
/// the range is what `LockApart` meets.
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
