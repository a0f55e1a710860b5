//! Creates the file that a device can be: only on a file system that keeps files. Only a file that was created here is
//! removed again.

#![forbid(unsafe_code)]

use std::fs::{self, File, Metadata, OpenOptions};
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use super::file_name;
use crate::error::{Error, Result};
use crate::sys::file as sysfile;

/// A file that was created. Removed again if this is dropped without `keep`, which loses nobody else's data.
#[derive(Debug)]
pub struct MadeFile(Option<(PathBuf, Identity)>);

/// Device and inode.
type Identity = (u64, u64);

fn identity(about: &Metadata) -> Identity {
    (about.dev(), about.ino())
}

impl MadeFile {
    /// The caller has created `file` at `path`.
    fn new(path: &Path, file: &File) -> io::Result<MadeFile> {
        // The program may change its working directory later.
        let path = std::path::absolute(path)?;
        Ok(MadeFile(Some((path, identity(&file.metadata()?)))))
    }

    pub fn keep(mut self) {
        self.0 = None;
    }
}

impl Drop for MadeFile {
    fn drop(&mut self) {
        // The path may name something else by now: a link, or a file that was moved there.
        if let Some((path, made)) = &self.0
            && fs::symlink_metadata(path).is_ok_and(|there| identity(&there) == *made)
        {
            let _ = fs::remove_file(path);
        }
    }
}

/// Opens a regular file at `path`, and creates it if it does not exist. A dangling symbolic link is an error:
/// `ENOENT`.
pub fn open_or_make(options: &OpenOptions, path: &Path) -> io::Result<(File, Option<MadeFile>)> {
    // O_EXCL: neither creates a link's target nor takes somebody else's file for one of our own.
    match options.clone().create_new(true).open(path) {
        Ok(file) => {
            let made = MadeFile::new(path, &file)?;
            Ok((file, Some(made)))
        }
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {
            options.open(path).map(|file| (file, None))
        }
        Err(e) => Err(e),
    }
}

/// `f_type` of file systems that keep no files but show or change kernel state.
const PSEUDO: [(u64, &str); 21] = [
    (0x0000_9fa0, "procfs"),
    (0x6265_6572, "sysfs"),
    (0x6462_6720, "debugfs"),
    (0x7472_6163, "tracefs"),
    (0x0027_e0eb, "cgroup"),
    (0x6367_7270, "cgroup2"),
    (0x7363_6673, "securityfs"),
    (0xcafe_4a11, "bpf"),
    (0x0000_1cd1, "devpts"),
    (0x6265_6570, "configfs"),
    (0x6165_676c, "pstore"),
    (0xde5e_81e4, "efivarfs"),
    (0xf97c_ff8c, "selinuxfs"),
    (0x4341_5d53, "smackfs"),
    (0x4249_4e4d, "binfmt_misc"),
    (0x1980_0202, "mqueue"),
    (0x6e73_6673, "nsfs"),
    (0x9584_58f6, "hugetlbfs"),
    (0x0000_0187, "autofs"),
    (0x0765_5821, "resctrl"),
    (0x6573_5543, "fusectl"),
];

/// The kind of file system, if no regular file in this directory may be a device; `None` if it may.
fn no_place_for_files(directory: &Path) -> Option<&'static str> {
    let directory = fs::canonicalize(directory).ok()?;
    let kind = sysfile::file_system_type(&directory).ok()?;
    if let Some((_, name)) = PSEUDO.iter().find(|(magic, _)| *magic == kind) {
        return Some(name);
    }
    let device = fs::metadata(&directory).ok()?.dev();
    // devtmpfs has the f_type of tmpfs.
    let numbers = format!("{}:{}", libc::major(device), libc::minor(device));
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let is_devtmpfs = |line: &str| {
        let (front, back) = line.split_once(" - ").unwrap_or((line, ""));
        front.split(' ').nth(2) == Some(numbers.as_str()) && back.starts_with("devtmpfs ")
    };
    if mounts.lines().any(is_devtmpfs) {
        return Some("devtmpfs");
    }
    // A container's /dev is an ordinary tmpfs, and a chroot's may be a directory. File systems mounted below it are
    // checked on their own.
    let of_nodes = directory.starts_with("/dev") && !directory.starts_with("/dev/shm");
    let dev = fs::metadata("/dev").ok()?.dev();
    (of_nodes && device == dev).then_some("the directory of device nodes")
}

fn parent(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

/// Refuses a regular file at `path`, existing or to be created, on a file system that keeps no files. `ENOENT`, or
/// `EINVAL` if the file exists.
pub fn check_place(path: &Path) -> Result<()> {
    let there = fs::canonicalize(path).ok();
    let directory = parent(there.as_deref().unwrap_or(path));
    let Some(kind) = no_place_for_files(directory) else {
        return Ok(());
    };
    let path = path.display();
    match there {
        Some(_) => Err(Error::new(
            libc::EINVAL,
            format!(
                "'{path}' is not a device but a file in {kind} ({}), which does not keep written data; remove it if it was created by mistake, and give a device or a file on a disk",
                directory.display()
            ),
        )),
        None => Err(Error::new(
            libc::ENOENT,
            format!(
                "there is no device '{path}', and no file is created there: {} is {kind}, which keeps no files; {}",
                directory.display(),
                similar_nodes(directory, &path.to_string())
            ),
        )),
    }
}

/// A sentence that suggests device nodes of the directory for a mistyped name.
fn similar_nodes(directory: &Path, wanted: &str) -> String {
    let letters = |name: &str| -> String {
        let end = name.find(|c: char| c.is_ascii_digit());
        name[..end.unwrap_or(name.len())].to_string()
    };
    let wanted = letters(file_name(Path::new(wanted)));
    let mut near = Vec::new();
    let mut others = Vec::new();
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        let Ok(name) = entry.file_name().into_string() else {
            continue;
        };
        let Ok(about) = fs::metadata(entry.path()) else {
            continue;
        };
        let is_ng = about.file_type().is_char_device() && name.starts_with("ng");
        if !about.file_type().is_block_device() && !is_ng {
            continue;
        }
        // sda and sdb, but not sda and sr0: all but the last letter of a name without a number.
        let own = letters(&name);
        let stem = own.get(..2).unwrap_or(&own);
        match own == wanted || wanted.starts_with(stem) {
            true => near.push(name),
            false if !["loop", "ram", "zram"].contains(&own.as_str()) => others.push(name),
            false => {}
        }
    }
    let mut names = if near.is_empty() { others } else { near };
    names.sort_by_key(|name| (name.len(), name.clone()));
    names.truncate(6);
    match names.is_empty() {
        true => "check the path".to_string(),
        false => {
            let list: Vec<String> = names
                .iter()
                .map(|name| directory.join(name).display().to_string())
                .collect();
            format!("did you mean {}?", list.join(", "))
        }
    }
}

/// The error for a path that does not exist. `None` if a file may be created there.
pub fn absent(path: &Path) -> Option<Error> {
    if let Ok(target) = fs::read_link(path) {
        return Some(Error::new(
            libc::ENOENT,
            format!(
                "'{}' is a symbolic link to '{}', which does not exist; create the target, or remove the link",
                path.display(),
                target.display()
            ),
        ));
    }
    check_place(path).err()
}
