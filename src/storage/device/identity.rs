//! Which device a path or descriptor means: one device under two names is found before anything is opened for writing.

#![forbid(unsafe_code)]

use std::fs::{self, Metadata};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use super::passthrough::block_node_of;
use super::{DeviceConfig, file_name};
use crate::error::{Error, Result};
use crate::sys::file as sysfile;

/// What tells a device from another. One device may have several.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Identity {
    /// A regular file from a byte on: also the one behind a loop device.
    File {
        dev: u64,
        inode: u64,
        offset: u64,
    },
    Block(u64),
    /// A character node without a block node.
    Node(u64),
    /// An NVMe namespace, whatever controller leads to it.
    Namespace(String),
}

fn of_file(about: &Metadata, offset: u64) -> Identity {
    Identity::File {
        dev: about.dev(),
        inode: about.ino(),
        offset,
    }
}

fn of_block(about: &Metadata) -> Vec<Identity> {
    let (major, minor) = (libc::major(about.rdev()), libc::minor(about.rdev()));
    let own = PathBuf::from(format!("/sys/dev/block/{major}:{minor}"));
    let text = |name: &str| fs::read_to_string(own.join(name)).ok();
    let mut found = vec![Identity::Block(about.rdev())];
    if let Some(behind) = text("loop/backing_file")
        && let Ok(file) = fs::metadata(behind.trim_end_matches('\n'))
    {
        let offset = text("loop/offset").and_then(|text| text.trim().parse().ok());
        found.push(of_file(&file, offset.unwrap_or(0)));
    }
    // A partition has none, and two of them are different devices.
    if let Some(name) = text("wwid") {
        found.push(Identity::Namespace(name.trim().into()));
    }
    found
}

fn of_metadata(about: &Metadata, path: Option<&Path>) -> Vec<Identity> {
    let kind = about.file_type();
    if kind.is_file() {
        return vec![of_file(about, 0)];
    }
    if kind.is_block_device() {
        return of_block(about);
    }
    let beside = || {
        let name = file_name(path?).strip_prefix("ng")?;
        Some(PathBuf::from(format!("/dev/nvme{name}")))
    };
    let node = block_node_of(about).or_else(beside);
    match node.and_then(|node| fs::metadata(node).ok()) {
        Some(block) => of_block(&block),
        None => vec![Identity::Node(about.rdev())],
    }
}

/// Nothing for what does not exist yet, or cannot be looked at: opening it says why.
fn of_path(path: &Path) -> Vec<Identity> {
    fs::metadata(path).map_or(Vec::new(), |about| of_metadata(&about, Some(path)))
}

fn of_device(config: &DeviceConfig) -> Vec<Identity> {
    match config.fd {
        Some(fd) => {
            let about = sysfile::duplicate(fd).and_then(|file| fs::File::from(file).metadata());
            about.map_or(Vec::new(), |about| of_metadata(&about, None))
        }
        None if config.path.starts_with("null:") => Vec::new(),
        None => of_path(Path::new(&config.path)),
    }
}

/// Refuses a device, or a spill, that is there twice, also under two names: `EINVAL`.
pub fn check_different(devices: &[DeviceConfig]) -> Result<()> {
    let mut known: Vec<(String, String, Vec<Identity>)> = Vec::new();
    for (number, config) in devices.iter().enumerate() {
        let device = (
            format!("device {number}"),
            config.path.clone(),
            of_device(config),
        );
        let spill = config.spill.as_ref().map(|path| {
            (
                format!("the spill of device {number}"),
                path.clone(),
                of_path(Path::new(path)),
            )
        });
        for (what, path, identities) in std::iter::once(device).chain(spill) {
            // Two files that do not exist yet are the same if they have the same name.
            let is_same = |(_, other, theirs): &&(String, String, Vec<Identity>)| {
                identities.iter().any(|identity| theirs.contains(identity))
                    || (identities.is_empty()
                        && !path.is_empty()
                        && !path.starts_with("null:")
                        && *other == path)
            };
            if let Some((first, other, _)) = known.iter().find(is_same) {
                return Err(Error::new(
                    libc::EINVAL,
                    format!(
                        "{what} '{path}' is the same as {first} '{other}': give each device once"
                    ),
                ));
            }
            known.push((what, path, identities));
        }
    }
    Ok(())
}
