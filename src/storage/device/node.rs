//! A block device: its limits and its users, from sysfs.

#![forbid(unsafe_code)]

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicU64;

use super::claim::Claim;
use super::{
    Device, DeviceConfig, FORCE, Kind, Limits, claim_patiently, is_busy, open_node, signature,
};
use crate::error::{Error, Result};
use crate::sys::file as sysfile;

/// The directory of a block device in sysfs, and the disk's directory if it is a partition.
pub(in crate::storage) struct Sysfs {
    own: PathBuf,
    disk: PathBuf,
}

impl Sysfs {
    pub(super) fn of(meta: &fs::Metadata) -> Option<Sysfs> {
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

    pub(super) fn limits(&self, path: &str) -> Result<Limits> {
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
            // Kernels before 6.0 do not report it: alignment to a block is always enough.
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

    /// Refuses a device that somebody else uses.
    pub(super) fn guard(&self, path: &str) -> Result<()> {
        if self.number(&self.own, "ro") == Some(1) || self.number(&self.disk, "ro") == Some(1) {
            return Err(Error::new(
                libc::EROFS,
                format!(
                    "device '{path}' is read-only; open it for reading, or clear it with blockdev --setrw"
                ),
            ));
        }
        self.guard_use(&format!("device '{path}'"))
    }

    /// Refuses a device that is mounted, held or partitioned. `subject` begins the message.
    pub(super) fn guard_use(&self, subject: &str) -> Result<()> {
        let refuse = |why: String| {
            Err(Error::new(
                libc::EBUSY,
                format!(
                    "{subject} {why}; writing would destroy that; take another device, or override this with {FORCE}"
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

/// Claims a block node as mount does, so that nobody mounts it while it is written to. `None` if this process may not
/// open it (an unprivileged user of passthrough): sysfs was checked before.
pub(super) fn exclusive(path: &Path) -> Result<Option<File>> {
    let open = || {
        OpenOptions::new()
            .read(true)
            .custom_flags(libc::O_EXCL)
            .open(path)
    };
    match claim_patiently(open, is_busy) {
        Ok(file) => Ok(Some(file)),
        Err(e) if is_busy(&e) => Err(Error::new(
            libc::EBUSY,
            format!(
                "device '{}' is in use: mounted, swapped on, or claimed by another program; stop that first, or override this with {FORCE}",
                path.display()
            ),
        )),
        Err(_) => Ok(None),
    }
}

/// The error if another context has the device.
pub(in crate::storage) fn another_has(path: &str, e: &io::Error) -> Error {
    match e.kind() {
        io::ErrorKind::WouldBlock => Error::new(
            libc::EBUSY,
            format!(
                "device '{path}' is claimed by another recorder, which writes to it; stop that one or take another device"
            ),
        ),
        _ => Error::os(e, format_args!("claiming device '{path}'")),
    }
}

/// The claim on a block device that is open for writing. `theirs`: it was handed in, and its opener may have claimed
/// it (O_EXCL), which looks the same as another program's claim.
pub(super) fn claim_block(
    config: &DeviceConfig,
    file: &File,
    node: &Path,
    theirs: bool,
) -> Result<Claim> {
    let path = config.path.as_str();
    let failed = |e: io::Error| another_has(path, &e);
    let mut claim = Claim::new().map_err(failed)?;
    claim.add(file).map_err(failed)?;
    if !config.force {
        let once = || {
            OpenOptions::new()
                .read(true)
                .custom_flags(libc::O_EXCL)
                .open(node)
        };
        let exclusive = match theirs {
            true => once().ok(),
            false => exclusive(node)?,
        };
        exclusive.into_iter().for_each(|node| claim.keep(node));
    }
    claim_backing(&mut claim, file).map_err(failed)?;
    Ok(claim)
}

/// Also claims the file of a loop device, which is written to as well. Skipped if this process cannot open the file.
fn claim_backing(claim: &mut Claim, file: &File) -> io::Result<()> {
    let Ok(backing) = sysfile::loop_backing(file) else {
        return Ok(());
    };
    let Some(sysfs) = file.metadata().ok().as_ref().and_then(Sysfs::of) else {
        return Ok(());
    };
    let path = fs::read_to_string(sysfs.disk.join("loop/backing_file")).unwrap_or_default();
    let path = path.trim_end_matches('\n');
    // A block device under it needs no claim: sysfs reports it as held.
    let is_it = |about: &fs::Metadata| about.is_file() && (about.dev(), about.ino()) == backing;
    if !fs::metadata(path).as_ref().is_ok_and(is_it) {
        return Ok(());
    }
    match OpenOptions::new().read(true).write(true).open(path) {
        Ok(file) if file.metadata().as_ref().is_ok_and(is_it) => claim.add(&file),
        _ => Ok(()),
    }
}

/// Opens a block device that nobody else uses (unless forced).
pub(in crate::storage) fn open_unused(
    config: &DeviceConfig,
    meta: &fs::Metadata,
    flags: i32,
) -> Result<(File, Sysfs, Option<Claim>)> {
    let sysfs = Sysfs::of(meta).ok_or_else(|| {
        Error::new(
            libc::ENODEV,
            format!(
                "device '{}' is not in sysfs; is it still there?",
                config.path
            ),
        )
    })?;
    if config.read_only {
        return Ok((
            open_node(config, Path::new(&config.path), flags)?,
            sysfs,
            None,
        ));
    }
    if !config.force {
        sysfs.guard(&config.path)?;
    }
    let path = Path::new(&config.path);
    let file = open_node(config, path, flags)?;
    let claim = claim_block(config, &file, path, false)?;
    if !config.force {
        signature::check_block(&config.path, &file, &sysfs.limits(&config.path)?)?;
    }
    Ok((file, sysfs, Some(claim)))
}

pub(super) fn open_block(config: &DeviceConfig, meta: &fs::Metadata) -> Result<Device> {
    let (file, sysfs, claim) = open_unused(config, meta, libc::O_DIRECT)?;
    let limits = sysfs.limits(&config.path)?;
    Ok(Device {
        path: config.path.clone(),
        kind: Kind::Block,
        limits,
        writable: !config.read_only,
        files: vec![file],
        has_controller: false,
        made: None,
        answers: AtomicU64::new(0),
        _claim: claim,
    })
}
