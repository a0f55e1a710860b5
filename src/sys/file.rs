//! System calls on devices and files that std does not have: direct I/O limits, NVMe ioctls, fallocate.

use std::ffi::{CStr, CString};
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use super::abi::NvmeUringCmd;
use super::event::FileSizeShield;

/// `NVME_IOCTL_ID`: _IO('N', 0x40).
const NVME_IOCTL_ID: libc::c_ulong = 0x4E40;
/// `NVME_IOCTL_ADMIN_CMD`: _IOWR('N', 0x41, struct nvme_admin_cmd of 72 bytes).
const NVME_IOCTL_ADMIN_CMD: libc::c_ulong = 0xC048_4E41;

/// What direct I/O on a file needs (STATX_DIOALIGN), in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DirectAlign {
    pub memory: u32,
    pub offset: u32,
}

/// `None` where the file system does not say, or does not do direct I/O on this file.
pub fn direct_align(path: &Path) -> Option<DirectAlign> {
    let path = CString::new(path.as_os_str().as_bytes()).ok()?;
    direct_align_at(libc::AT_FDCWD, &path, 0)
}

/// The same of an open file.
pub fn direct_align_of(file: &File) -> Option<DirectAlign> {
    direct_align_at(file.as_raw_fd(), c"", libc::AT_EMPTY_PATH)
}

fn direct_align_at(at: RawFd, path: &CStr, flags: libc::c_int) -> Option<DirectAlign> {
    // SAFETY: statx is integers only; all zeroes is a value of it.
    let mut stat: libc::statx = unsafe { std::mem::zeroed() };
    // SAFETY: the path ends in a zero byte, and `stat` is a live statx that the kernel fills.
    let rc = unsafe { libc::statx(at, path.as_ptr(), flags, libc::STATX_DIOALIGN, &mut stat) };
    let said = rc == 0 && stat.stx_mask & libc::STATX_DIOALIGN != 0;
    (said && stat.stx_dio_mem_align > 0 && stat.stx_dio_offset_align > 0).then_some(DirectAlign {
        memory: stat.stx_dio_mem_align,
        offset: stat.stx_dio_offset_align,
    })
}

/// A descriptor of our own for what the program's `fd` is open on. `EBADF` where it is not open.
pub fn duplicate(fd: RawFd) -> io::Result<OwnedFd> {
    // SAFETY: takes numbers only.
    let own = unsafe { libc::fcntl(fd, libc::F_DUPFD_CLOEXEC, 3) };
    if own < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: just made, and owned by nobody else.
    Ok(unsafe { OwnedFd::from_raw_fd(own) })
}

/// How a file was opened: the access mode, O_DIRECT and so on (F_GETFL).
pub fn open_flags(file: &File) -> io::Result<libc::c_int> {
    // SAFETY: takes numbers only; the descriptor is open as long as `file` is borrowed.
    match unsafe { libc::fcntl(file.as_raw_fd(), libc::F_GETFL) } {
        flags if flags >= 0 => Ok(flags),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Gives a file `len` bytes of allocated, zeroed space.
pub fn allocate(file: &File, len: u64) -> io::Result<()> {
    let _shield = FileSizeShield::new();
    let len = i64::try_from(len).map_err(|_| io::Error::from_raw_os_error(libc::EFBIG))?;
    loop {
        // SAFETY: the descriptor is open as long as `file` is borrowed; no memory is passed.
        if unsafe { libc::fallocate(file.as_raw_fd(), 0, 0, len) } == 0 {
            return Ok(());
        }
        let error = io::Error::last_os_error();
        match error.raw_os_error() {
            Some(libc::EINTR) => {}
            // A file system without fallocate: a sparse file does, its space comes with the writes.
            Some(libc::EOPNOTSUPP) => return file.set_len(len as u64),
            _ => return Err(error),
        }
    }
}

/// Device and inode of an open descriptor: what tells it from a later one of the same number.
pub fn identity(fd: RawFd) -> io::Result<(u64, u64)> {
    // SAFETY: stat is integers only; all zeroes is a value of it.
    let mut stat: libc::stat = unsafe { std::mem::zeroed() };
    // SAFETY: `stat` is live; a number that is no descriptor is EBADF.
    match unsafe { libc::fstat(fd, &mut stat) } {
        0 => Ok((stat.st_dev, stat.st_ino)),
        _ => Err(io::Error::last_os_error()),
    }
}

/// The namespace id behind a namespace's character or block node.
pub fn nvme_namespace_id(file: &File) -> io::Result<u32> {
    // SAFETY: this ioctl takes no argument and returns the id.
    let id = unsafe { libc::ioctl(file.as_raw_fd(), NVME_IOCTL_ID) };
    u32::try_from(id).map_err(|_| io::Error::last_os_error())
}

/// Identify (admin opcode 06h), synchronously: for use when a device is opened, and for those who may
/// not open the controller. The inner `Err` is the drive's NVMe status.
pub fn nvme_identify(
    file: &File,
    nsid: u32,
    cdw10: u32,
    cdw11: u32,
) -> io::Result<Result<Box<[u8; 4096]>, u16>> {
    let mut page = Box::new([0u8; 4096]);
    let mut cmd = NvmeUringCmd {
        opcode: 0x06,
        nsid,
        cdw10,
        cdw11,
        addr: page.as_mut_ptr() as u64,
        data_len: 4096,
        ..NvmeUringCmd::default()
    };
    // struct nvme_admin_cmd has the same 72 bytes, with `result` where the last reserved word is.
    // SAFETY: `cmd` is a live struct of the size the ioctl number says, and its data pointer is a live
    // buffer of `data_len` bytes, which Identify fills synchronously.
    let rc = unsafe { libc::ioctl(file.as_raw_fd(), NVME_IOCTL_ADMIN_CMD, &mut cmd) };
    match rc {
        0 => Ok(Ok(page)),
        rc if rc < 0 => Err(io::Error::last_os_error()),
        status => Ok(Err(status as u16)),
    }
}
