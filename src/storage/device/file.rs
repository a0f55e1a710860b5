//! A regular file as a device: made, locked, sized and measured.

#![forbid(unsafe_code)]

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use super::{Device, DeviceConfig, Kind, Limits, claim_patiently};
use crate::error::{Error, Result};
use crate::sys::file as sysfile;

/// A file that did not exist before. Removed again when this is dropped without `keep`: nobody else's data
/// is lost with it.
#[derive(Debug)]
pub struct MadeFile(Option<PathBuf>);

impl MadeFile {
    pub fn new(path: impl Into<PathBuf>) -> MadeFile {
        MadeFile(Some(path.into()))
    }

    pub fn keep(mut self) {
        self.0 = None;
    }
}

impl Drop for MadeFile {
    fn drop(&mut self) {
        if let Some(path) = &self.0 {
            let _ = fs::remove_file(path);
        }
    }
}

/// Opens a file, making it where there is none; whether it was made.
pub fn open_or_make(options: &OpenOptions, path: &Path) -> io::Result<(File, bool)> {
    match options.clone().create_new(true).open(path) {
        Ok(file) => Ok((file, true)),
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {
            options.open(path).map(|file| (file, false))
        }
        Err(e) => Err(e),
    }
}

pub(super) fn open_file(config: &DeviceConfig) -> Result<Device> {
    let path = Path::new(&config.path);
    let mut options = OpenOptions::new();
    options.read(true).write(!config.read_only).mode(0o600);
    let what = |what: &str| format!("{what} file '{}'", config.path);
    let make = config.file_size > 0 && !config.read_only;
    let opened = match make {
        true => open_or_make(&options, path),
        false => options.open(path).map(|file| (file, false)),
    };
    let (plain, fresh) = opened.map_err(|e| Error::os(&e, what("opening")))?;
    finish_file(config, plain, fresh.then_some(path), |_| {
        let align = sysfile::direct_align(path).filter(|a| !config.small_blocks || a.offset <= 512);
        // tmpfs takes O_DIRECT and buffers all the same: without the alignment there is no direct I/O.
        let direct = align.and_then(|_| options.custom_flags(libc::O_DIRECT).open(path).ok());
        (align.filter(|_| direct.is_some()), direct)
    })
}

/// Locks an open file, gives it its size and measures it. `direct` says what direct I/O asks for, where there
/// is any, and opens it once more for that where that is needed.
pub(super) fn finish_file(
    config: &DeviceConfig,
    plain: File,
    fresh: Option<&Path>,
    direct: impl FnOnce(&File) -> (Option<sysfile::DirectAlign>, Option<File>),
) -> Result<Device> {
    let what = |what: &str| format!("{what} file '{}'", config.path);
    if !config.read_only {
        let held = |e: &TryLockError| matches!(e, TryLockError::WouldBlock);
        claim_patiently(|| plain.try_lock(), held).map_err(|e| match e {
            TryLockError::WouldBlock => Error::new(
                libc::EBUSY,
                format!("file '{}' is locked: another recorder writes to it; stop that one or take another file", config.path),
            ),
            TryLockError::Error(e) => Error::os(&e, what("locking")),
        })?;
    }
    // Only now, with the lock, is it surely ours to remove.
    let made = fresh.map(MadeFile::new);
    let len = plain
        .metadata()
        .map_err(|e| Error::os(&e, what("looking at")))?
        .len();
    if config.file_size > len && !config.read_only {
        sysfile::allocate(&plain, config.file_size).map_err(|e| {
            // What could be had before space ran out has been added already: back to what it was.
            let _ = plain.set_len(len);
            Error::os(
                &e,
                format!("giving file '{}' {} bytes", config.path, config.file_size),
            )
            .hint("free space, or take a smaller file")
        })?;
    }
    let (align, direct) = direct(&plain);
    let wanted = align.map_or(512, |a| a.offset.max(512));
    let block_size = if config.block_size == 0 {
        wanted
    } else {
        config.block_size
    };
    if block_size < wanted {
        return Err(Error::new(
            libc::EINVAL,
            format!(
                "file '{}' takes direct I/O in blocks of {wanted} bytes, not {block_size}",
                config.path
            ),
        ));
    }
    let len = plain
        .metadata()
        .map_err(|e| Error::os(&e, what("looking at")))?
        .len();
    let limits = Limits {
        block_size,
        blocks: len / u64::from(block_size),
        max_transfer: 1 << 20,
        max_segments: 128,
        virt_boundary: 0,
        dma_alignment: align.map_or(0, |a| a.memory - 1),
        volatile_cache: Some(true),
        direct: align.is_some(),
        nsid: 1,
    };
    if limits.blocks == 0 {
        return Err(Error::new(
            libc::EINVAL,
            format!(
                "file '{}' has {len} bytes, less than one block of {block_size}; give it a file size",
                config.path
            ),
        ));
    }
    // The lock belongs to the first descriptor: it stays open as the claim.
    let (file, claim) = match direct {
        Some(direct) => (direct, Some(plain)),
        None => (plain, None),
    };
    Ok(Device {
        path: config.path.clone(),
        kind: Kind::File,
        limits,
        writable: !config.read_only,
        files: vec![file],
        has_controller: false,
        made,
        spill: None,
        _claim: claim,
    })
}
