//! Opening a device: what kind it is, what it can do, and whether it may be written to.

#![forbid(unsafe_code)]

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io;
use std::os::fd::{OwnedFd, RawFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::command;
use super::spill::Spill;
use crate::error::{Error, Result};
use crate::sys::file as sysfile;
use crate::sys::mmap::PAGE;

/// How a device is to be opened.
#[derive(Debug, Clone, Default)]
pub struct DeviceConfig {
    /// `/dev/ngXnY`, `/dev/nvmeXnY`, another block device, a regular file, or `null:[BYTES]`.
    pub path: String,
    /// Open already, by somebody who may: a regular file, a block device or an NVMe namespace. `path` then only
    /// names it. The caller's, who may close it afterwards.
    pub fd: Option<RawFd>,
    /// For reading only: writing commands get Namespace is Write Protected.
    pub read_only: bool,
    /// Write even where the device is mounted, held or partitioned.
    pub force: bool,
    /// Use the block layer also where NVMe passthrough would do.
    pub no_passthrough: bool,
    /// A regular file is made, and given at least this many bytes. 0: take it as it is.
    pub file_size: u64,
    /// Bytes in a block of a regular file or null device: 0 (512, or what direct I/O asks for), 512 .. 4096.
    pub block_size: u32,
    /// A regular file is taken in blocks of 512 bytes: through the page cache where direct I/O wants more.
    pub small_blocks: bool,
}

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

/// What a device takes, read when it is opened.
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
    /// `None` where nothing says.
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

/// An open device. Dropping it gives up its claim.
#[derive(Debug)]
pub struct Device {
    pub path: String,
    pub kind: Kind,
    pub limits: Limits,
    pub writable: bool,
    /// What the engine registers with its io_uring: the node first, then an NVMe controller's.
    pub files: Vec<File>,
    pub has_controller: bool,
    /// Set where opening made the file.
    pub made: Option<MadeFile>,
    /// Where the engine puts the writes that this one fails.
    pub spill: Option<Spill>,
    /// Holds the exclusive claim on the block node while passthrough goes around the block layer.
    _claim: Option<File>,
}

/// A file that did not exist before. Removed again when this is dropped without `keep`: nobody else's data
/// is lost with it.
#[derive(Debug)]
pub struct MadeFile(Option<PathBuf>);

impl MadeFile {
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

impl Device {
    /// Opens it and reads its limits. Errors name the path: `ENOENT` `EACCES` (the path), `EBUSY` (in use:
    /// mounted, held, partitioned, or another recorder's file), `EROFS` (read-only), `EINVAL` (not a device
    /// this library can write to, or a size that cannot work), `ENOSPC` (a file that cannot be that big).
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
            Err(e)
                if e.kind() == io::ErrorKind::NotFound
                    && config.file_size > 0
                    && !config.read_only =>
            {
                return open_file(config).inspect_err(|e| {
                    // Made by this very call, unless another recorder came first and has it locked.
                    if e.errno() != libc::EBUSY {
                        let _ = fs::remove_file(path);
                    }
                });
            }
            Err(e) => {
                return Err(Error::os(&e, format_args!("device '{}'", config.path))
                    .hint("check the path; a file is made when a file size is given"));
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

    /// The descriptors for the engine's file table, in `files`' order.
    pub fn duplicate_files(&self) -> Result<Vec<OwnedFd>> {
        self.files
            .iter()
            .map(|f| {
                f.try_clone().map(OwnedFd::from).map_err(|e| {
                    Error::os(
                        &e,
                        format_args!("duplicating the descriptor of '{}'", self.path),
                    )
                })
            })
            .collect()
    }
}

fn file_name(path: &Path) -> &str {
    path.file_name().and_then(|n| n.to_str()).unwrap_or("")
}

/// Tries to claim something, for a moment again where somebody has it. A program that starts another
/// one has, between fork and exec, every descriptor twice: then a claim that was just given up is still
/// there for some milliseconds.
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
        spill: None,
        _claim: None,
    })
}

/// What somebody else opened. Direct I/O, and an exclusive claim on a block device (O_EXCL), are his choice.
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
    let meta = file.metadata().map_err(failed)?;
    let kind = meta.file_type();
    if kind.is_file() {
        let direct = flags & libc::O_DIRECT != 0;
        return finish_file(&config, file, None, |file| {
            (sysfile::direct_align_of(file).filter(|_| direct), None)
        });
    }
    let device = |kind, limits, file| Device {
        path: name.clone(),
        kind,
        limits,
        writable: !config.read_only,
        files: vec![file],
        has_controller: false,
        made: None,
        spill: None,
        _claim: None,
    };
    if kind.is_block_device() {
        let sysfs = Sysfs::of(&meta).ok_or_else(|| {
            Error::new(
                libc::ENODEV,
                format!("device '{name}' is not in sysfs; is it still there?"),
            )
        })?;
        if !config.read_only && !config.force {
            sysfs.guard(&name)?;
        }
        let limits = Limits {
            direct: flags & libc::O_DIRECT != 0,
            ..sysfs.limits(&name)?
        };
        return Ok(device(Kind::Block, limits, file));
    }
    match sysfile::nvme_namespace_id(&file) {
        Ok(nsid) if kind.is_char_device() => {
            let limits = identify_limits(&file, nsid, &name)?;
            Ok(device(Kind::Nvme, limits, file))
        }
        _ => Err(Error::new(
            libc::EINVAL,
            format!(
                "device '{name}', handed in as descriptor {fd}, is neither a block device, an NVMe namespace nor a regular file"
            ),
        )),
    }
}

fn open_file(config: &DeviceConfig) -> Result<Device> {
    let path = Path::new(&config.path);
    let mut options = OpenOptions::new();
    options.read(true).write(!config.read_only).mode(0o600);
    let what = |what: &str| format!("{what} file '{}'", config.path);
    let make = config.file_size > 0 && !config.read_only;
    let tried = match make {
        true => options.clone().create_new(true).open(path),
        false => options.open(path),
    };
    let (plain, fresh) = match tried {
        Ok(file) => (file, make),
        Err(e) if make && e.kind() == io::ErrorKind::AlreadyExists => {
            let file = options
                .open(path)
                .map_err(|e| Error::os(&e, what("opening")))?;
            (file, false)
        }
        Err(e) => return Err(Error::os(&e, what("opening"))),
    };
    finish_file(config, plain, fresh.then_some(path), |_| {
        let align = sysfile::direct_align(path).filter(|a| !config.small_blocks || a.offset <= 512);
        // tmpfs takes O_DIRECT and buffers all the same: without the alignment there is no direct I/O.
        let direct = align.and_then(|_| options.custom_flags(libc::O_DIRECT).open(path).ok());
        (align.filter(|_| direct.is_some()), direct)
    })
}

/// Locks an open file, gives it its size and measures it. `direct` says what direct I/O asks for, where there
/// is any, and opens it once more for that where that is needed.
fn finish_file(
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
    let made = fresh.map(|path| MadeFile(Some(path.into())));
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

/// The directory of a block device under sysfs, and that of the disk where it is a partition.
pub(super) struct Sysfs {
    own: PathBuf,
    disk: PathBuf,
}

impl Sysfs {
    fn of(meta: &fs::Metadata) -> Option<Sysfs> {
        let (major, minor) = (libc::major(meta.rdev()), libc::minor(meta.rdev()));
        let own = fs::canonicalize(format!("/sys/dev/block/{major}:{minor}")).ok()?;
        let disk = match own.join("partition").exists() {
            true => own.parent()?.to_path_buf(),
            false => own.clone(),
        };
        Some(Sysfs { own, disk })
    }

    fn number(&self, base: &Path, name: &str) -> Option<u64> {
        fs::read_to_string(base.join(name))
            .ok()?
            .trim()
            .parse()
            .ok()
    }

    fn queue(&self, name: &str) -> Option<u64> {
        self.number(&self.disk.join("queue"), name)
    }

    fn names(&self, dir: &str) -> Vec<String> {
        let Ok(entries) = fs::read_dir(self.own.join(dir)) else {
            return Vec::new();
        };
        entries
            .filter_map(|e| e.ok()?.file_name().into_string().ok())
            .collect()
    }

    fn partitions(&self) -> Vec<String> {
        let mut names = self.names("");
        names.retain(|name| self.own.join(name).join("partition").exists());
        names
    }

    fn limits(&self, path: &str) -> Result<Limits> {
        let block_size = self.queue("logical_block_size").unwrap_or(512) as u32;
        let sectors = self.number(&self.own, "size").unwrap_or(0);
        let blocks = (sectors * 512)
            .checked_div(u64::from(block_size))
            .unwrap_or(0);
        if blocks == 0 || !block_size.is_power_of_two() || block_size < 512 {
            return Err(Error::new(
                libc::EINVAL,
                format!(
                    "device '{path}' has {blocks} blocks of {block_size} bytes; nothing can be stored on it"
                ),
            ));
        }
        if fs::read_to_string(self.disk.join("queue/zoned")).is_ok_and(|z| z.trim() != "none") {
            return Err(Error::new(
                libc::EINVAL,
                format!(
                    "device '{path}' is zoned; this library writes at any LBA, which zones refuse"
                ),
            ));
        }
        let max = self.queue("max_hw_sectors_kb").unwrap_or(128) * 1024;
        Ok(Limits {
            block_size,
            blocks,
            max_transfer: max.min(u64::from(block_size) * 65536).min(1 << 30) as u32,
            max_segments: self.queue("max_segments").unwrap_or(1) as u32,
            virt_boundary: self.queue("virt_boundary_mask").unwrap_or(0),
            // Kernels before 6.0 do not tell: a block is always right.
            dma_alignment: self
                .queue("dma_alignment")
                .map_or(block_size - 1, |a| a as u32),
            volatile_cache: fs::read_to_string(self.disk.join("queue/write_cache"))
                .ok()
                .map(|text| text.trim() == "write back"),
            direct: true,
            nsid: 1,
        })
    }

    /// Refuses what somebody else uses.
    fn guard(&self, path: &str) -> Result<()> {
        if self.number(&self.own, "ro") == Some(1) || self.number(&self.disk, "ro") == Some(1) {
            return Err(Error::new(
                libc::EROFS,
                format!(
                    "device '{path}' is read-only; open it for reading, or clear it with blockdev --setrw"
                ),
            ));
        }
        let refuse = |why: String| {
            Err(Error::new(
                libc::EBUSY,
                format!(
                    "device '{path}' {why}; writing would destroy that; take another device, or insist with force"
                ),
            ))
        };
        let holders = self.names("holders");
        if !holders.is_empty() {
            return refuse(format!("is held by {}", holders.join(", ")));
        }
        let partitions = self.partitions();
        if !partitions.is_empty() {
            return refuse(format!("has partitions ({})", partitions.join(", ")));
        }
        let number = fs::read_to_string(self.own.join("dev")).unwrap_or_default();
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        for line in mounts.lines() {
            let mut fields = line.split(' ');
            if fields.nth(2) == Some(number.trim()) {
                return refuse(format!("is mounted on {}", fields.nth(1).unwrap_or("?")));
            }
        }
        Ok(())
    }
}

/// Claims a block node as mount does, so that nobody mounts it while it is written to.
fn claim(config: &DeviceConfig, path: &Path) -> Result<Option<File>> {
    if config.read_only || config.force {
        return Ok(None);
    }
    let exclusive = || {
        OpenOptions::new()
            .read(true)
            .custom_flags(libc::O_EXCL)
            .open(path)
    };
    match claim_patiently(exclusive, is_busy) {
        Ok(file) => Ok(Some(file)),
        Err(e) if is_busy(&e) => Err(Error::new(
            libc::EBUSY,
            format!(
                "device '{}' is in use: mounted, swapped on, or claimed by another program; stop that first, or insist with force",
                path.display()
            ),
        )),
        // May not open the block node (an unprivileged user of passthrough): sysfs has been asked already.
        Err(_) => Ok(None),
    }
}

/// A block device that nobody else has, unless that is forced.
pub(super) fn open_unused(
    config: &DeviceConfig,
    meta: &fs::Metadata,
    flags: i32,
) -> Result<(File, Sysfs)> {
    let sysfs = Sysfs::of(meta).ok_or_else(|| {
        Error::new(
            libc::ENODEV,
            format!(
                "device '{}' is not in sysfs; is it still there?",
                config.path
            ),
        )
    })?;
    let mut flags = flags;
    if !config.read_only && !config.force {
        sysfs.guard(&config.path)?;
        flags |= libc::O_EXCL;
    }
    let file = open_node(config, Path::new(&config.path), flags)?;
    Ok((file, sysfs))
}

fn open_block(config: &DeviceConfig, meta: &fs::Metadata) -> Result<Device> {
    let (file, sysfs) = open_unused(config, meta, libc::O_DIRECT)?;
    let limits = sysfs.limits(&config.path)?;
    Ok(Device {
        path: config.path.clone(),
        kind: Kind::Block,
        limits,
        writable: !config.read_only,
        files: vec![file],
        has_controller: false,
        made: None,
        spill: None,
        _claim: None,
    })
}

/// The passthrough node of an NVMe namespace's block node: /dev/nvme0n1 -> /dev/ng0n1. With multipath
/// the block node's numbers are the subsystem's, and so are the ng node's.
fn passthrough_node(block: &Path) -> Option<PathBuf> {
    let real = fs::canonicalize(block).ok()?;
    let name = file_name(&real);
    let rest = name.strip_prefix("nvme")?;
    // A partition (nvme0n1p2) has no passthrough node of its own.
    let mut parts = rest.splitn(2, 'n');
    let digits = |s: &str| !s.is_empty() && s.bytes().all(|b| b.is_ascii_digit());
    if !(digits(parts.next()?) && digits(parts.next()?)) {
        return None;
    }
    let node = Path::new("/dev").join(format!("ng{rest}"));
    node.exists().then_some(node)
}

fn open_nvme(config: &DeviceConfig, node: &Path, block: Option<&Path>) -> Result<Device> {
    let name = node.display().to_string();
    let sysfs = block.and_then(|path| Sysfs::of(&fs::metadata(path).ok()?));
    if let (Some(sysfs), false) = (&sysfs, config.read_only || config.force) {
        sysfs.guard(&name)?;
    }
    let claim = match block {
        Some(block) => claim(config, block)?,
        None => None,
    };
    let file = open_node(config, node, 0)?;
    let nsid = sysfile::nvme_namespace_id(&file)
        .map_err(|e| Error::os(&e, format_args!("asking '{name}' for its namespace id")))?;
    let mut limits = match &sysfs {
        Some(sysfs) => sysfs.limits(&name)?,
        None => identify_limits(&file, nsid, &name)?,
    };
    limits.nsid = nsid;
    limits.max_transfer = limits.max_transfer.min(segmented(&limits));
    if let Ok(Ok(page)) = sysfile::nvme_identify(&file, nsid, 0, 0) {
        refuse_metadata(&page, &name)?;
    }
    let mut files = vec![file];
    let controller = controller_node(node);
    if let Some(controller) =
        controller.and_then(|path| OpenOptions::new().read(true).write(true).open(path).ok())
    {
        files.push(controller);
    }
    Ok(Device {
        path: name,
        kind: Kind::Nvme,
        limits,
        writable: !config.read_only,
        has_controller: files.len() == 2,
        files,
        made: None,
        spill: None,
        _claim: claim,
    })
}

/// Most bytes that always fit into a command's segments. Passthrough is never split, each page may be a
/// segment of its own, and data that begins inside a page lies in one page more.
fn segmented(limits: &Limits) -> u32 {
    let pages = limits.max_segments.saturating_sub(1).max(1);
    let bytes = pages.saturating_mul(PAGE as u32);
    // A drive whose blocks are bigger than a page takes at least one of them.
    (bytes - bytes % limits.block_size).max(limits.block_size)
}

/// /dev/ng0n1 -> /dev/nvme0, where the namespace belongs to that controller alone.
fn controller_node(node: &Path) -> Option<PathBuf> {
    let rest = file_name(node).strip_prefix("ng")?;
    let instance = rest.split('n').next()?;
    let path = Path::new("/dev").join(format!("nvme{instance}"));
    fs::metadata(&path)
        .ok()?
        .file_type()
        .is_char_device()
        .then_some(path)
}

/// The format byte of Identify Namespace (NVM Command Set 1.0, 4.1.5.1): the LBA format in use.
fn format_of(page: &[u8; 4096]) -> (u32, u16) {
    let index = usize::from(page[26] & 0x0f) | usize::from(page[26] & 0x60) >> 1;
    let at = 128 + index * 4;
    (
        u32::from(page[at + 2]),
        u16::from_le_bytes([page[at], page[at + 1]]),
    )
}

fn refuse_metadata(page: &[u8; 4096], name: &str) -> Result<()> {
    let (_, metadata) = format_of(page);
    if metadata != 0 || page[29] & 7 != 0 {
        return Err(Error::new(
            libc::EINVAL,
            format!(
                "namespace '{name}' is formatted with {metadata} bytes of metadata a block, or with protection information; format it without (nvme format)"
            ),
        ));
    }
    Ok(())
}

fn identify_limits(file: &File, nsid: u32, name: &str) -> Result<Limits> {
    let page = sysfile::nvme_identify(file, nsid, 0, 0)
        .map_err(|e| Error::os(&e, format_args!("Identify Namespace of '{name}'")))?
        .map_err(|status| {
            Error::new(
                libc::EIO,
                format!(
                    "Identify Namespace of '{name}': {}",
                    command::status_text(status & 0x7ff)
                ),
            )
        })?;
    let (shift, _) = format_of(&page);
    let mut blocks = [0; 8];
    blocks.copy_from_slice(&page[..8]);
    if !(9..=16).contains(&shift) {
        return Err(Error::new(
            libc::EINVAL,
            format!("namespace '{name}' has blocks of 2^{shift} bytes"),
        ));
    }
    Ok(Limits {
        block_size: 1 << shift,
        blocks: u64::from_le_bytes(blocks),
        // Without sysfs nothing tells the host's limit: what every controller and host takes.
        max_transfer: 64 << 10,
        max_segments: 16,
        virt_boundary: 4095,
        dma_alignment: 3,
        volatile_cache: None,
        direct: true,
        nsid,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(path: &str) -> DeviceConfig {
        DeviceConfig {
            path: path.into(),
            ..DeviceConfig::default()
        }
    }

    #[test]
    fn what_is_not_there_or_not_a_device_is_named() {
        for (path, errno) in [
            ("/nonexistent/disk", libc::ENOENT),
            ("/dev/null", libc::EINVAL),
            ("/tmp", libc::EINVAL),
            ("null:many", libc::EINVAL),
            ("null:511", libc::EINVAL),
        ] {
            let error = Device::open(&config(path)).unwrap_err();
            assert_eq!(error.errno(), errno, "{path}: {error}");
            assert!(error.message().contains(path), "{error}");
        }
    }

    #[test]
    fn a_file_is_made_locked_and_measured() {
        let path = std::env::temp_dir().join(format!("unified-device-{}", std::process::id()));
        let config = DeviceConfig {
            file_size: 1 << 20,
            ..config(path.to_str().unwrap())
        };
        drop(Device::open(&config).unwrap());
        assert!(!path.exists(), "made, and not kept");
        let mut device = Device::open(&config).unwrap();
        device.made.take().unwrap().keep();
        assert_eq!(device.kind, Kind::File);
        assert_eq!(
            device.limits.blocks * u64::from(device.limits.block_size),
            1 << 20
        );
        let error = Device::open(&config).unwrap_err();
        assert_eq!(error.errno(), libc::EBUSY, "{error}");
        drop(device);
        assert!(Device::open(&config).unwrap().made.is_none());
        fs::remove_file(path).unwrap();
    }

    #[test]
    fn a_transfer_fits_into_its_segments_wherever_it_begins() {
        let Device { limits, .. } = open_null(&config("null:"), "").unwrap();
        let most = |max_segments, block_size| {
            segmented(&Limits {
                max_segments,
                block_size,
                ..limits
            })
        };
        assert_eq!(most(128, 512), 127 * 4096);
        assert_eq!(most(2, 4096), 4096);
        // Three pages are no multiple of 8 KiB.
        assert_eq!(most(4, 8192), 8192);
        assert_eq!(most(0, 512), 4096);
        assert_eq!(most(1, 65536), 65536);
        assert_eq!(most(u32::MAX, 512), u32::MAX - u32::MAX % 512);
    }

    #[test]
    fn an_empty_file_without_a_size_is_refused() {
        let path = std::env::temp_dir().join(format!("unified-empty-{}", std::process::id()));
        fs::write(&path, b"").unwrap();
        let error = Device::open(&config(path.to_str().unwrap())).unwrap_err();
        fs::remove_file(&path).unwrap();
        assert_eq!(error.errno(), libc::EINVAL);
    }
}
