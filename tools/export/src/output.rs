//! The file that is written: never one that is read.

use std::fs::{self, File, Metadata, OpenOptions};
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::os::linux::fs::MetadataExt;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};

use unified::storage::device::check_place;

use crate::Outcome;

/// What a path leads to, through links of both kinds: a device, or a file of a file system.
#[derive(Debug, PartialEq, Eq)]
enum Identity {
    Device(u64),
    File(u64, u64),
}

fn identity(metadata: &Metadata) -> Identity {
    let kind = metadata.file_type();
    if kind.is_block_device() || kind.is_char_device() {
        Identity::Device(metadata.st_rdev())
    } else {
        Identity::File(metadata.st_dev(), metadata.st_ino())
    }
}

/// The file below a loop device.
fn backing_file(metadata: &Metadata) -> Option<PathBuf> {
    let number = metadata.st_rdev();
    let (major, minor) = (number >> 8 & 0xfff, number & 0xff | number >> 12 & 0xfff00);
    let path = format!("/sys/dev/block/{major}:{minor}/loop/backing_file");
    let path = fs::read_to_string(path).ok()?;
    Some(path.trim_end_matches('\n').into())
}

/// Opens the output; `-` is the standard output. Refuses one of the inputs, also by another name, and block devices.
/// Nothing is cut off before that is known.
pub fn create<'a>(path: &Path, inputs: impl Iterator<Item = &'a Path>) -> Outcome<Box<dyn Write>> {
    let stdout = path.as_os_str() == "-";
    let name = if stdout {
        "the standard output".into()
    } else {
        format!("'{}'", path.display())
    };
    let say = |e: io::Error| format!("{name}: {e}");
    let metadata = match stdout {
        true => {
            let file = File::from(io::stdout().as_fd().try_clone_to_owned().map_err(say)?);
            Some(file.metadata().map_err(say)?)
        }
        false => match fs::metadata(path) {
            Ok(metadata) => Some(metadata),
            Err(e) if e.kind() == io::ErrorKind::NotFound => None,
            Err(e) => return Err(say(e).into()),
        },
    };
    if let Some(metadata) = &metadata {
        if metadata.file_type().is_block_device() {
            return Err(format!(
                "{name} is a block device, which would be overwritten: give a file"
            )
            .into());
        }
        for input in inputs {
            let read = fs::metadata(input)?;
            let below = backing_file(&read).and_then(|path| fs::metadata(path).ok());
            if std::iter::once(read)
                .chain(below)
                .any(|read| identity(&read) == identity(metadata))
            {
                return Err(format!(
                    "{name} is '{}', which is read, and would be destroyed: give another output",
                    input.display()
                )
                .into());
            }
        }
    }
    if stdout {
        return Ok(Box::new(io::stdout()));
    }
    // A mistyped device, say: a file there would be in memory.
    if metadata.is_none_or(|metadata| metadata.is_file()) {
        check_place(path)?;
    }
    let file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .open(path);
    Ok(Box::new(file.map_err(say)?))
}
