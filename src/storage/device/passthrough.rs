//! An NVMe namespace by its passthrough node: found, identified and claimed.

#![forbid(unsafe_code)]

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicU64;

use super::claim::Claim;
use super::node::{Sysfs, another_has, exclusive};
use super::{Device, DeviceConfig, Kind, Limits, file_name, open_node, signature};
use crate::error::{Error, Result};
use crate::storage::command;
use crate::sys::file as sysfile;
use crate::sys::mmap::PAGE;

/// The passthrough node of an NVMe namespace's block node: /dev/nvme0n1 -> /dev/ng0n1. With multipath
/// the block node's numbers are the subsystem's, and so are the ng node's.
pub(super) fn passthrough_node(block: &Path) -> Option<PathBuf> {
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

pub(super) fn open_nvme(
    config: &DeviceConfig,
    node: &Path,
    block: Option<&Path>,
) -> Result<Device> {
    let name = node.display().to_string();
    let sysfs = block.and_then(|path| Sysfs::of(&fs::metadata(path).ok()?));
    if let (Some(sysfs), false) = (&sysfs, config.read_only || config.force) {
        sysfs.guard(&name)?;
    }
    let file = open_node(config, node, 0)?;
    let claim = match config.read_only {
        true => None,
        false => Some(claim_namespace(config, &file, &name, block)?),
    };
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
    if !config.read_only && !config.force {
        signature::check_namespace(&name, &file, &limits)?;
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
        answers: AtomicU64::new(0),
        _claim: claim,
    })
}

/// The claim on a namespace that is open for writing: on its passthrough node, and on its block node if this process
/// may open that, so that nobody mounts it.
pub(super) fn claim_namespace(
    config: &DeviceConfig,
    file: &File,
    name: &str,
    block: Option<&Path>,
) -> Result<Claim> {
    let failed = |e: io::Error| another_has(name, &e);
    let mut claim = Claim::new().map_err(failed)?;
    claim.add(file).map_err(failed)?;
    let node = match block {
        Some(block) if config.force => OpenOptions::new().read(true).open(block).ok(),
        Some(block) => exclusive(block)?,
        None => None,
    };
    if let Some(node) = node {
        claim.flock(node).map_err(failed)?;
    }
    Ok(claim)
}

/// The block node of an open passthrough node: /dev/ng0n1 -> /dev/nvme0n1.
pub(super) fn block_node_of(about: &fs::Metadata) -> Option<PathBuf> {
    let (major, minor) = (libc::major(about.rdev()), libc::minor(about.rdev()));
    let own = fs::canonicalize(format!("/sys/dev/char/{major}:{minor}")).ok()?;
    let rest = file_name(&own).strip_prefix("ng")?;
    let block = Path::new("/dev").join(format!("nvme{rest}"));
    block.exists().then_some(block)
}

/// Most bytes that always fit into a command's segments. Passthrough is never split, each page may be a
/// segment of its own, and data that begins inside a page lies in one page more.
pub(super) fn segmented(limits: &Limits) -> u32 {
    let pages = limits.max_segments.saturating_sub(1).max(1);
    let bytes = pages.saturating_mul(PAGE as u32);
    // A drive whose blocks are larger than a page takes at least one block.
    (bytes - bytes % limits.block_size).max(limits.block_size)
}

/// /dev/ng0n1 -> /dev/nvme0, if the namespace belongs to that controller alone.
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

pub(super) fn identify_limits(file: &File, nsid: u32, name: &str) -> Result<Limits> {
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
        // Without sysfs the host's limit is unknown: use what every controller and host takes.
        max_transfer: 64 << 10,
        max_segments: 16,
        virt_boundary: 4095,
        dma_alignment: 3,
        volatile_cache: None,
        direct: true,
        nsid,
    })
}
