//! Opening a device: what kind it is, what it can do, and whether it may be written to.
//!
//! `file`: a regular file, which `make` may make. `node`: a block device, by sysfs. `passthrough`: an NVMe namespace,
//! by Identify too. `claim`: one writer at a time. `signature`: whose data is on it.

#![forbid(unsafe_code)]

mod claim;
mod file;
mod identity;
mod make;
mod node;
mod passthrough;
mod signature;
#[cfg(test)]
mod tests;

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::{OwnedFd, RawFd};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::Path;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

pub use claim::Claim;
pub(super) use file::guard_contents;
use file::{finish_file, open_file};
pub use identity::check_different;
pub(super) use make::absent;
pub use make::{MadeFile, check_place, open_or_make};
use node::{Sysfs, claim_block, open_block};
pub(super) use node::{another_has, open_unused};
use passthrough::{block_node_of, claim_namespace, identify_limits, open_nvme, passthrough_node};

use crate::error::{Error, Result};
use crate::log::{self, Level};
use crate::sys::file as sysfile;

/// How to open a device.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DeviceConfig {
    /// `/dev/ngXnY`, `/dev/nvmeXnY`, another block device, a regular file, or `null:[BYTES]`.
    pub path: String,
    /// A descriptor that a privileged process opened: a regular file, a block device or an NVMe namespace. `path` is
    /// then only its name in messages. It stays the caller's, who may close it afterwards.
    pub fd: Option<RawFd>,
    /// For reading only: writing commands get Namespace is Write Protected.
    pub read_only: bool,
    /// Write even if the device is mounted, held or partitioned, or holds a file system or the like.
    pub force: bool,
    /// Use the block layer even if NVMe passthrough is possible.
    pub no_passthrough: bool,
    /// Creates a regular file if there is none, and extends it to at least this many bytes. 0: use it as it is.
    pub file_size: u64,
    /// Bytes in a block of a regular file or null device: 0 (512, or what direct I/O asks for), 512 .. 4096.
    pub block_size: u32,
    /// Uses a regular file in blocks of 512 bytes: through the page cache if direct I/O needs larger ones.
    pub small_blocks: bool,
    /// Where the writes go that the device failed: a regular file (created if it does not exist) or a block device.
    /// `Spill::open` opens it.
    pub spill: Option<String>,
}

/// Most devices of a context. Entries have a byte for the number.
pub const MAX_DEVICES: usize = 16;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Nvme,
    Block,
    File,
    Null,
}

impl Kind {
    pub fn name(self) -> &'static str {
        match self {
            Kind::Nvme => "nvme passthrough",
            Kind::Block => "block",
            Kind::File => "file",
            Kind::Null => "null",
        }
    }
}

/// The limits of a device, read when it is opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Bytes, a power of two, 512 to 65536.
    pub block_size: u32,
    pub blocks: u64,
    /// Most bytes in one command.
    pub max_transfer: u32,
    pub max_segments: u32,
    /// Zero, or the mask that a gap between two segments must respect.
    pub virt_boundary: u64,
    /// Bits that a data address must not have set (NVMe: 3).
    pub dma_alignment: u32,
    /// `None` if it is not known.
    pub volatile_cache: Option<bool>,
    /// Direct I/O: no page cache in between.
    pub direct: bool,
    pub nsid: u32,
}

impl Limits {
    pub fn block_shift(&self) -> u32 {
        self.block_size.trailing_zeros()
    }
}

/// An open device. Dropping it releases its claim.
#[derive(Debug)]
pub struct Device {
    pub path: String,
    pub kind: Kind,
    pub limits: Limits,
    pub writable: bool,
    /// What the engine registers with its io_uring: the node first, then an NVMe controller's.
    pub files: Vec<File>,
    pub has_controller: bool,
    /// Set if opening created the file.
    pub made: Option<MadeFile>,
    /// Operations with data that have ended, of all lanes. Counted if there are several devices.
    pub answers: AtomicU64,
    /// Only if the device is opened for writing.
    _claim: Option<Claim>,
}

impl Device {
    /// Opens it and reads its limits. Errors name the path: `ENOENT` `EACCES` (the path), `EBUSY` (in use:
    /// mounted, held, partitioned, or written to by another context), `EEXIST` (it holds a file system or the like),
    /// `EROFS` (read-only), `EINVAL` (not a device this library can write to, or a size that cannot work), `ENOSPC`
    /// (a file that cannot be that big).
    pub fn open(config: &DeviceConfig) -> Result<Device> {
        if config.block_size != 0
            && !(config.block_size.is_power_of_two() && (512..=4096).contains(&config.block_size))
        {
            return Err(Error::new(
                libc::EINVAL,
                format!(
                    "block size {} is not 512, 1024, 2048 or 4096",
                    config.block_size
                ),
            ));
        }
        if let Some(fd) = config.fd {
            return open_handed(config, fd);
        }
        if let Some(size) = config.path.strip_prefix("null:") {
            return open_null(config, size);
        }
        let path = Path::new(&config.path);
        let meta = match fs::metadata(path) {
            Ok(meta) => meta,
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                if let Some(error) = absent(path) {
                    return Err(error);
                }
                if config.file_size > 0 && !config.read_only {
                    return open_file(config);
                }
                return Err(Error::os(&e, format_args!("device '{}'", config.path))
                    .hint("check the path; a file is created if a file size is given"));
            }
            Err(e) => {
                return Err(
                    Error::os(&e, format_args!("device '{}'", config.path)).hint("check the path")
                );
            }
        };
        let kind = meta.file_type();
        if kind.is_file() {
            open_file(config)
        } else if kind.is_block_device() {
            match passthrough_node(path).filter(|_| !config.no_passthrough) {
                Some(node) => open_nvme(config, &node, Some(path)),
                None => open_block(config, &meta),
            }
        } else if kind.is_char_device() && file_name(path).starts_with("ng") {
            let block = Path::new("/dev").join(file_name(path).replacen("ng", "nvme", 1));
            open_nvme(config, path, block.exists().then_some(block.as_path()))
        } else {
            Err(Error::new(
                libc::EINVAL,
                format!(
                    "device '{}' is neither a block device, an NVMe namespace (/dev/ngXnY) nor a regular file",
                    config.path
                ),
            ))
        }
    }

    /// The descriptors for an engine's file table, in `files`' order. `own`: with file descriptions of their own, so that each of
    /// several engines is told if writing back fails.
    pub fn duplicate_files(&self, own: bool) -> Result<Vec<OwnedFd>> {
        let cached = matches!(self.kind, Kind::File | Kind::Block);
        self.files
            .iter()
            .map(|f| {
                let duplicate = match own && cached {
                    true => own_description(f, &self.path),
                    false => f.try_clone(),
                };
                duplicate.map(OwnedFd::from).map_err(|e| {
                    Error::os(
                        &e,
                        format_args!("duplicating the descriptor of '{}'", self.path),
                    )
                })
            })
            .collect()
    }
}

/// A description of its own of an open file, or a duplicate if there can be none.
pub(super) fn own_description(file: &File, path: &str) -> io::Result<File> {
    sysfile::reopen(file).or_else(|e| {
        log::log(
            Level::Warn,
            format_args!(
                "'{path}' cannot be opened again ({e}): if cached writes fail, only one of the lanes that flush is told"
            ),
        );
        file.try_clone()
    })
}

fn file_name(path: &Path) -> &str {
    path.file_name().and_then(|n| n.to_str()).unwrap_or("")
}

/// Tries to claim something, and retries for a moment if somebody has it. While a program starts another one, each
/// descriptor exists twice between fork and exec: a claim that was just released then stays for some milliseconds.
pub(super) fn claim_patiently<T, E>(
    mut attempt: impl FnMut() -> std::result::Result<T, E>,
    is_busy: impl Fn(&E) -> bool,
) -> std::result::Result<T, E> {
    for _ in 0..CLAIM_TRIES {
        match attempt() {
            Err(e) if is_busy(&e) => std::thread::sleep(CLAIM_PAUSE),
            result => return result,
        }
    }
    attempt()
}

const CLAIM_TRIES: u32 = 100;
const CLAIM_PAUSE: Duration = Duration::from_millis(5);

fn is_busy(e: &io::Error) -> bool {
    e.raw_os_error() == Some(libc::EBUSY)
}

fn open_node(config: &DeviceConfig, path: &Path, flags: i32) -> Result<File> {
    let open = || {
        OpenOptions::new()
            .read(true)
            .write(!config.read_only)
            .custom_flags(flags)
            .open(path)
    };
    claim_patiently(open, is_busy).map_err(|e| {
        let error = Error::os(&e, format_args!("opening device '{}'", path.display()));
        match e.raw_os_error() {
            Some(libc::EACCES | libc::EPERM) => {
                error.hint("the node's permissions must let this user read and write it")
            }
            Some(libc::EBUSY) => {
                error.hint("it is mounted, held by another device, or claimed by another program")
            }
            Some(libc::EROFS) => error.hint("it is read-only; open it for reading"),
            _ => error,
        }
    })
}

fn open_null(config: &DeviceConfig, size: &str) -> Result<Device> {
    let bytes: u64 = match size {
        "" => 1 << 40,
        size => size.parse().map_err(|_| {
            Error::new(
                libc::EINVAL,
                format!(
                    "device '{}': '{size}' is not a number of bytes",
                    config.path
                ),
            )
        })?,
    };
    let block_size = if config.block_size == 0 {
        512
    } else {
        config.block_size
    };
    if bytes < u64::from(block_size) {
        return Err(Error::new(
            libc::EINVAL,
            format!(
                "device '{}' has {bytes} bytes, less than one block of {block_size}",
                config.path
            ),
        ));
    }
    Ok(Device {
        path: config.path.clone(),
        kind: Kind::Null,
        limits: Limits {
            block_size,
            blocks: bytes / u64::from(block_size),
            max_transfer: 1 << 20,
            max_segments: 256,
            virt_boundary: 0,
            dma_alignment: 3,
            volatile_cache: Some(false),
            direct: true,
            nsid: 1,
        },
        writable: !config.read_only,
        files: Vec::new(),
        has_controller: false,
        made: None,
        answers: AtomicU64::new(0),
        _claim: None,
    })
}

/// How a caller overrides the guards, in the words of messages.
const FORCE: &str = "force (the flag UNIFIED_FORCE)";

/// Opens a device that was handed in as a descriptor. Whoever opened it chose direct I/O or not.
fn open_handed(config: &DeviceConfig, fd: RawFd) -> Result<Device> {
    let name = match config.path.is_empty() {
        true => format!("descriptor {fd}"),
        false => config.path.clone(),
    };
    let config = DeviceConfig {
        path: name.clone(),
        ..config.clone()
    };
    let failed = |e: io::Error| {
        Error::os(
            &e,
            format_args!("device '{name}', handed in as descriptor {fd}"),
        )
    };
    let file = File::from(sysfile::duplicate(fd).map_err(failed)?);
    let flags = sysfile::open_flags(&file).map_err(failed)?;
    if !config.read_only && flags & libc::O_ACCMODE != libc::O_RDWR {
        return Err(Error::new(
            libc::EROFS,
            format!(
                "device '{name}' was handed in open for one direction only: reading and writing are needed"
            ),
        ));
    }
    if !config.read_only && flags & libc::O_APPEND != 0 {
        return Err(Error::new(
            libc::EINVAL,
            format!(
                "device '{name}' was handed in open for appending (O_APPEND), so that every write would go to its end; open it without that flag"
            ),
        ));
    }
    let meta = file.metadata().map_err(failed)?;
    let kind = meta.file_type();
    if kind.is_file() {
        let direct = flags & libc::O_DIRECT != 0;
        return finish_file(&config, file, None, |file| {
            (sysfile::direct_align_of(file).filter(|_| direct), None)
        });
    }
    let device = |kind, limits, file, claim| Device {
        path: name.clone(),
        kind,
        limits,
        writable: !config.read_only,
        files: vec![file],
        has_controller: false,
        made: None,
        answers: AtomicU64::new(0),
        _claim: claim,
    };
    if kind.is_block_device() {
        let sysfs = Sysfs::of(&meta).ok_or_else(|| {
            Error::new(
                libc::ENODEV,
                format!("device '{name}' is not in sysfs; is it still there?"),
            )
        })?;
        let limits = Limits {
            direct: flags & libc::O_DIRECT != 0,
            ..sysfs.limits(&name)?
        };
        if config.read_only {
            return Ok(device(Kind::Block, limits, file, None));
        }
        if !config.force {
            sysfs.guard(&name)?;
        }
        let claim = claim_block(&config, &file, &claim::link_of(&file), true)?;
        if !config.force {
            signature::check_block(&name, &file, &limits)?;
        }
        return Ok(device(Kind::Block, limits, file, Some(claim)));
    }
    match sysfile::nvme_namespace_id(&file) {
        Ok(nsid) if kind.is_char_device() => {
            let limits = identify_limits(&file, nsid, &name)?;
            if config.read_only {
                return Ok(device(Kind::Nvme, limits, file, None));
            }
            let block = block_node_of(&meta);
            let sysfs = block
                .as_ref()
                .and_then(|path| Sysfs::of(&fs::metadata(path).ok()?));
            if let (Some(sysfs), false) = (&sysfs, config.force) {
                sysfs.guard(&name)?;
            }
            let claim = claim_namespace(&config, &file, &name, block.as_deref())?;
            if !config.force {
                signature::check_namespace(&name, &file, &limits)?;
            }
            Ok(device(Kind::Nvme, limits, file, Some(claim)))
        }
        _ => Err(Error::new(
            libc::EINVAL,
            format!(
                "device '{name}', handed in as descriptor {fd}, is neither a block device, an NVMe namespace nor a regular file"
            ),
        )),
    }
}
