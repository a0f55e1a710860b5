//! A regular file as a device: created, locked, sized and measured.

#![forbid(unsafe_code)]

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::sync::atomic::AtomicU64;

use super::claim::{Claim, link_of};
use super::make::{MadeFile, check_place, open_or_make};
use super::node::Sysfs;
use super::{Device, DeviceConfig, Kind, Limits, signature};
use crate::error::{Error, Result};
use crate::sys::file as sysfile;

pub(super) fn open_file(config: &DeviceConfig) -> Result<Device> {
    let path = Path::new(&config.path);
    let mut options = OpenOptions::new();
    options.read(true).write(!config.read_only).mode(0o600);
    let what = |what: &str| format!("{what} file '{}'", config.path);
    let make = config.file_size > 0 && !config.read_only;
    if !config.read_only {
        check_place(path)?;
    }
    let opened = match make {
        true => open_or_make(&options, path),
        false => options.open(path).map(|file| (file, None)),
    };
    let (plain, made) = opened.map_err(|e| Error::os(&e, what("opening")))?;
    finish_file(config, plain, made, |plain| {
        let align =
            sysfile::direct_align_of(plain).filter(|a| !config.small_blocks || a.offset <= 512);
        // tmpfs accepts O_DIRECT but still buffers. A file system that reports no alignment has no direct I/O.
        let direct = align.and_then(|_| {
            options.custom_flags(libc::O_DIRECT);
            let again = options.open(link_of(plain));
            again.or_else(|_| options.open(path)).ok()
        });
        // The path may name another file by now.
        let direct = direct.filter(|direct| is_same_file(plain, direct));
        (align.filter(|_| direct.is_some()), direct)
    })
}

fn is_same_file(a: &File, b: &File) -> bool {
    match (a.metadata(), b.metadata()) {
        (Ok(a), Ok(b)) => (a.dev(), a.ino()) == (b.dev(), b.ino()),
        _ => false,
    }
}

/// Refuses a file of `len` bytes that somebody uses as a device, or that holds a file system or the like.
pub(in crate::storage) fn guard_contents(path: &str, file: &File, len: u64) -> Result<()> {
    guard_backing(file, path)?;
    signature::check_file(path, file, len)
}

/// Refuses a file that backs a loop device in use: mounted, held, or partitioned.
fn guard_backing(file: &File, path: &str) -> Result<()> {
    let Ok(here) = fs::read_link(link_of(file)) else {
        return Ok(());
    };
    for entry in fs::read_dir("/sys/block").into_iter().flatten().flatten() {
        let backing = fs::read_to_string(entry.path().join("loop/backing_file"));
        if backing.is_ok_and(|backing| Path::new(backing.trim_end_matches('\n')) == here) {
            let node = Path::new("/dev").join(entry.file_name());
            if let Some(sysfs) = fs::metadata(&node).ok().as_ref().and_then(Sysfs::of) {
                sysfs.guard_use(&format!("file '{path}', which is {},", node.display()))?;
            }
        }
    }
    Ok(())
}

/// Locks an open file, extends it and measures it. `direct` returns the alignment for direct I/O, if there is any, and
/// the file opened again for it, if needed.
pub(super) fn finish_file(
    config: &DeviceConfig,
    plain: File,
    made: Option<MadeFile>,
    direct: impl FnOnce(&File) -> (Option<sysfile::DirectAlign>, Option<File>),
) -> Result<Device> {
    let what = |what: &str| format!("{what} file '{}'", config.path);
    let mut claim = None;
    if !config.read_only {
        let mut own = Claim::new().map_err(|e| Error::os(&e, what("claiming")))?;
        if let Err(e) = own.add(&plain) {
            if e.kind() != io::ErrorKind::WouldBlock {
                return Err(Error::os(&e, what("locking")));
            }
            // Another context uses the new file by now, so it is not removed.
            if let Some(made) = made {
                made.keep();
            }
            return Err(Error::new(
                libc::EBUSY,
                format!(
                    "file '{}' is locked: another recorder writes to it; stop that one or take another file",
                    config.path
                ),
            ));
        }
        claim = Some(own);
    }
    let len = plain
        .metadata()
        .map_err(|e| Error::os(&e, what("looking at")))?
        .len();
    if !config.read_only && !config.force && len > 0 {
        guard_contents(&config.path, &plain, len)?;
    }
    if config.file_size > len && !config.read_only {
        sysfile::allocate(&plain, config.file_size).map_err(|e| {
            // Space that was allocated before the disk was full is part of the file: shorten it again.
            let _ = plain.set_len(len);
            Error::os(
                &e,
                format!("giving file '{}' {} bytes", config.path, config.file_size),
            )
            .hint("free some space, or use a smaller file")
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
        let path = &config.path;
        return Err(Error::new(
            libc::EINVAL,
            match config.file_size {
                0 => format!(
                    "file '{path}' has {len} bytes, less than one block of {block_size}; give a file size, and the file is extended to it"
                ),
                size => format!(
                    "file '{path}' would have {len} bytes, less than one block of {block_size}; the file size given is {size}, and at least {block_size} is needed"
                ),
            },
        ));
    }
    let file = direct.unwrap_or(plain);
    Ok(Device {
        path: config.path.clone(),
        kind: Kind::File,
        limits,
        writable: !config.read_only,
        files: vec![file],
        has_controller: false,
        made,
        answers: AtomicU64::new(0),
        _claim: claim,
    })
}
