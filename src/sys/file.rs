//! System calls on devices and files that std lacks: direct I/O limits, NVMe ioctls, fallocate, locks.

use std::ffi::CString;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::thread::{self, JoinHandle};

use super::abi::NvmeUringCmd;
use super::event::{FileSizeShield, block_signals};

/// `NVME_IOCTL_ID`: _IO('N', 0x40).
const NVME_IOCTL_ID: libc::c_ulong = 0x4E40;
/// `NVME_IOCTL_ADMIN_CMD`: _IOWR('N', 0x41, struct nvme_admin_cmd of 72 bytes).
const NVME_IOCTL_ADMIN_CMD: libc::c_ulong = 0xC048_4E41;
/// `NVME_IOCTL_IO_CMD`: _IOWR('N', 0x43, the same struct).
const NVME_IOCTL_IO_CMD: libc::c_ulong = 0xC048_4E43;
/// `LOOP_GET_STATUS64` of linux/loop.h, and the bytes of its struct loop_info64.
const LOOP_GET_STATUS64: libc::c_ulong = 0x4C05;
const LOOP_INFO_WORDS: usize = 29;

/// Alignment that direct I/O on a file needs (STATX_DIOALIGN), in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DirectAlign {
    pub memory: u32,
    pub offset: u32,
}

/// The alignment for an open file. `None` if the file system does not report it, or has no direct I/O on this file.
pub fn direct_align_of(file: &File) -> Option<DirectAlign> {
    // SAFETY: statx is integers only; all zeroes is a value of it.
    let mut stat: libc::statx = unsafe { std::mem::zeroed() };
    let (path, flags) = (c"".as_ptr(), libc::AT_EMPTY_PATH);
    let mask = libc::STATX_DIOALIGN;
    // SAFETY: the path ends in a zero byte, and `stat` is a live statx that the kernel fills.
    let rc = unsafe { libc::statx(file.as_raw_fd(), path, flags, mask, &mut stat) };
    let said = rc == 0 && stat.stx_mask & mask != 0;
    (said && stat.stx_dio_mem_align > 0 && stat.stx_dio_offset_align > 0).then_some(DirectAlign {
        memory: stat.stx_dio_mem_align,
        offset: stat.stx_dio_offset_align,
    })
}

/// Duplicates a descriptor of the program. `EBADF` if it is not open.
pub fn duplicate(fd: RawFd) -> io::Result<OwnedFd> {
    // SAFETY: takes numbers only.
    let own = unsafe { libc::fcntl(fd, libc::F_DUPFD_CLOEXEC, 3) };
    if own < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: just made, and owned by nobody else.
    Ok(unsafe { OwnedFd::from_raw_fd(own) })
}

/// A description of its own of an open file, with the same flags. An error of writing back is reported once to each
/// description.
pub fn reopen(file: &File) -> io::Result<File> {
    let flags = open_flags(file)?;
    OpenOptions::new()
        .read(true)
        .write(flags & libc::O_ACCMODE != libc::O_RDONLY)
        .custom_flags(flags & libc::O_DIRECT)
        .open(format!("/proc/self/fd/{}", file.as_raw_fd()))
}

/// How a file was opened: the access mode, O_DIRECT and so on (F_GETFL).
pub fn open_flags(file: &File) -> io::Result<libc::c_int> {
    // SAFETY: takes numbers only; the descriptor is open as long as `file` is borrowed.
    match unsafe { libc::fcntl(file.as_raw_fd(), libc::F_GETFL) } {
        flags if flags >= 0 => Ok(flags),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Allocates a file's space up to `len` bytes, zeroed.
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
            // A file system without fallocate: the file stays sparse, and its space is allocated by the writes.
            Some(libc::EOPNOTSUPP) => return file.set_len(len as u64),
            _ => return Err(error),
        }
    }
}

/// Device and inode of an open descriptor. They distinguish it from a later one with the same number.
pub fn identity(fd: RawFd) -> io::Result<(u64, u64)> {
    // SAFETY: stat is integers only; all zeroes is a value of it.
    let mut stat: libc::stat = unsafe { std::mem::zeroed() };
    // SAFETY: `stat` is live; a number that is no descriptor is EBADF.
    match unsafe { libc::fstat(fd, &mut stat) } {
        0 => Ok((stat.st_dev, stat.st_ino)),
        _ => Err(io::Error::last_os_error()),
    }
}

/// The namespace id of a namespace's character or block node.
pub fn nvme_namespace_id(file: &File) -> io::Result<u32> {
    // SAFETY: this ioctl takes no argument and returns the id.
    let id = unsafe { libc::ioctl(file.as_raw_fd(), NVME_IOCTL_ID) };
    u32::try_from(id).map_err(|_| io::Error::last_os_error())
}

/// Identify (admin opcode 06h), synchronously: for opening a device, and for users who may not open the controller.
/// The inner `Err` is the drive's NVMe status.
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

/// Reads `to.len()` bytes, whole blocks of at most the drive's longest transfer, synchronously through a namespace's
/// passthrough node. `EIO` if the drive returns an error status.
pub fn nvme_read(file: &File, nsid: u32, lba: u64, blocks: u16, to: &mut [u8]) -> io::Result<()> {
    let mut cmd = NvmeUringCmd {
        opcode: 0x02,
        nsid,
        cdw10: lba as u32,
        cdw11: (lba >> 32) as u32,
        cdw12: u32::from(blocks).saturating_sub(1),
        addr: to.as_mut_ptr() as u64,
        data_len: to.len() as u32,
        ..NvmeUringCmd::default()
    };
    // SAFETY: as for Identify: a live struct of the size that the ioctl's number says, and a live buffer of
    // `data_len` bytes, which the kernel does not write beyond and fills before it returns.
    let rc = unsafe { libc::ioctl(file.as_raw_fd(), NVME_IOCTL_IO_CMD, &mut cmd) };
    match rc {
        0 => Ok(()),
        rc if rc < 0 => Err(io::Error::last_os_error()),
        _ => Err(io::Error::from_raw_os_error(libc::EIO)),
    }
}

/// Device and inode of the file behind a loop device.
pub fn loop_backing(node: &File) -> io::Result<(u64, u64)> {
    let mut info = [0u64; LOOP_INFO_WORDS];
    // SAFETY: `info` is live, has the size of struct loop_info64 (232 bytes) and its alignment.
    match unsafe { libc::ioctl(node.as_raw_fd(), LOOP_GET_STATUS64, info.as_mut_ptr()) } {
        0 => Ok((info[0], info[1])),
        _ => Err(io::Error::last_os_error()),
    }
}

fn file_system_type_by(ask: impl FnOnce(*mut libc::statfs) -> libc::c_int) -> io::Result<u64> {
    // SAFETY: statfs is integers only; all zeroes is a value of it.
    let mut stat: libc::statfs = unsafe { std::mem::zeroed() };
    match ask(&mut stat) {
        0 => Ok(u64::from(stat.f_type as u32)),
        _ => Err(io::Error::last_os_error()),
    }
}

/// The type of the file system of a path, as statfs(2) numbers them.
pub fn file_system_type(path: &Path) -> io::Result<u64> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    // SAFETY: the path ends in a zero byte, and the kernel fills the live struct that is passed.
    file_system_type_by(|stat| unsafe { libc::statfs(path.as_ptr(), stat) })
}

/// The same of an open file.
pub fn file_system_type_of(file: &File) -> io::Result<u64> {
    // SAFETY: the descriptor is open as long as `file` is borrowed, and the struct passed is live.
    file_system_type_by(|stat| unsafe { libc::fstatfs(file.as_raw_fd(), stat) })
}

/// A file in memory without a name.
pub fn memory_file() -> io::Result<File> {
    // SAFETY: the name is a constant that ends in a zero byte; the result is a new descriptor or -1.
    let fd = unsafe { libc::memfd_create(c"unified".as_ptr(), libc::MFD_CLOEXEC) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: just made, and owned by nobody else.
    Ok(unsafe { File::from_raw_fd(fd) })
}

/// Locks or unlocks the whole range of an open file. `WouldBlock` if somebody else has a lock on it.
fn set_lock(fd: RawFd, command: libc::c_int, kind: libc::c_int) -> io::Result<()> {
    // SAFETY: flock is integers only; all zeroes is a value of it: the whole file, from its start on.
    let mut lock: libc::flock = unsafe { std::mem::zeroed() };
    lock.l_type = kind as libc::c_short;
    lock.l_whence = libc::SEEK_SET as libc::c_short;
    // SAFETY: `lock` is live; a number that is no descriptor is EBADF.
    if unsafe { libc::fcntl(fd, command, &mut lock) } == 0 {
        return Ok(());
    }
    let error = io::Error::last_os_error();
    Err(match error.raw_os_error() {
        Some(libc::EAGAIN | libc::EACCES) => io::ErrorKind::WouldBlock.into(),
        _ => error,
    })
}

/// Locks a file, open for writing, for its open file description (F_OFD_SETLK). `WouldBlock` if somebody else has a
/// lock.
pub fn lock_range(file: &File) -> io::Result<()> {
    set_lock(file.as_raw_fd(), libc::F_OFD_SETLK, libc::F_WRLCK)
}

pub fn unlock_range(file: &File) -> io::Result<()> {
    set_lock(file.as_raw_fd(), libc::F_OFD_SETLK, libc::F_UNLCK)
}

/// A lock on a file for which this process has no open file description of its own, only a shared one.
///
/// A traditional lock (F_SETLK) belongs to a descriptor table, and is lost when any descriptor of the file is closed
/// in that table. So a sleeping thread holds it in a descriptor table of its own, which has only this one descriptor.
#[derive(Debug)]
pub struct LockApart {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl LockApart {
    /// `WouldBlock` if somebody has it.
    pub fn take(file: &File) -> io::Result<LockApart> {
        let stop = Arc::new(AtomicBool::new(false));
        let seen = stop.clone();
        let (tell, told) = mpsc::channel();
        let fd = file.as_raw_fd();
        let thread = thread::Builder::new()
            .name("unified-lock".into())
            .stack_size(64 << 10)
            .spawn(move || {
                block_signals();
                let locked =
                    part_descriptors(fd).and_then(|()| set_lock(fd, libc::F_SETLK, libc::F_WRLCK));
                let mine = locked.is_ok();
                let _ = tell.send(locked);
                if !mine {
                    return;
                }
                while !seen.load(Ordering::Acquire) {
                    thread::park();
                }
                // A thread that joins this one may continue before the table is gone.
                let _ = set_lock(fd, libc::F_SETLK, libc::F_UNLCK);
            })?;
        let lock = LockApart {
            stop,
            thread: Some(thread),
        };
        told.recv()
            .unwrap_or_else(|_| Err(io::Error::from_raw_os_error(libc::EIO)))
            .map(|()| lock)
    }
}

impl Drop for LockApart {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
        if let Some(thread) = self.thread.take() {
            thread.thread().unpark();
            let _ = thread.join();
        }
    }
}

/// Gives the calling thread a descriptor table of its own, which has only `fd`.
fn part_descriptors(fd: RawFd) -> io::Result<()> {
    const CLOSE_RANGE_UNSHARE: libc::c_uint = 2;
    let fd = fd as libc::c_uint;
    let close = |first: libc::c_uint, last: libc::c_uint, flags: libc::c_uint| {
        // SAFETY: numbers only. The first call makes the table this thread's own before it closes anything, and
        // the second is made only after that: no descriptor of another thread is closed.
        match unsafe { libc::syscall(libc::SYS_close_range, first, last, flags) } {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    };
    close(fd + 1, libc::c_uint::MAX, CLOSE_RANGE_UNSHARE)?;
    if fd > 0 {
        close(0, fd - 1, 0)?;
    }
    Ok(())
}
