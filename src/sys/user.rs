//! Access through a program's pointers, as system calls do it: a wrong pointer is EFAULT, not a crash.
//!
//! Bytes go through a pipe. The kernel checks the address while it copies. A check of the memory map beforehand would
//! race.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use super::mmap::PAGE;

fn fault() -> io::Error {
    io::Error::from_raw_os_error(libc::EFAULT)
}

fn pipe() -> io::Result<(OwnedFd, OwnedFd)> {
    let mut fds = [-1; 2];
    // SAFETY: the array has room for the two descriptors.
    if unsafe { libc::pipe2(fds.as_mut_ptr(), libc::O_CLOEXEC | libc::O_NONBLOCK) } < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: both were just made, and are owned by nobody else.
    Ok(unsafe { (OwnedFd::from_raw_fd(fds[0]), OwnedFd::from_raw_fd(fds[1])) })
}

/// All or nothing: a partial copy reached unmapped memory.
fn whole(copied: isize, len: usize) -> io::Result<()> {
    match copied {
        n if n < 0 => Err(io::Error::last_os_error()),
        n if n as usize == len => Ok(()),
        _ => Err(fault()),
    }
}

/// Copies up to a page from an address of this process. `EFAULT` if it cannot be read.
pub fn copy_in(address: u64, out: &mut [u8]) -> io::Result<()> {
    assert!(out.len() <= PAGE, "a page fits into every pipe");
    let (from, to) = pipe()?;
    // As a bare system call: a sanitizer that checks write(2) would report the bytes after a string's end. SAFETY: the
    // kernel reads the source and answers EFAULT if it is not readable; nothing here dereferences it.
    let written = unsafe { libc::syscall(libc::SYS_write, to.as_raw_fd(), address, out.len()) };
    whole(written as isize, out.len())?;
    // SAFETY: `out` is live and of that length.
    let read = unsafe { libc::read(from.as_raw_fd(), out.as_mut_ptr().cast(), out.len()) };
    whole(read, out.len())
}

/// Copies up to a page to an address of this process. `EFAULT` if it cannot be written.
///
/// # Safety
/// If the range is mapped, it must be the caller's to write: an argument of the program, not memory of Rust's.
pub unsafe fn copy_out(address: u64, bytes: &[u8]) -> io::Result<()> {
    assert!(bytes.len() <= PAGE, "a page fits into every pipe");
    let (from, to) = pipe()?;
    // SAFETY: `bytes` is live.
    let written = unsafe { libc::write(to.as_raw_fd(), bytes.as_ptr().cast(), bytes.len()) };
    whole(written, bytes.len())?;
    // SAFETY: the kernel answers EFAULT if the destination is not writable; if it is, it is the
    // caller's to write.
    let read = unsafe { libc::read(from.as_raw_fd(), address as *mut _, bytes.len()) };
    whole(read, bytes.len())
}

/// A string that ends in a zero byte, without it. `EFAULT` if it cannot be read, `ENAMETOOLONG` if it is longer than
/// PATH_MAX.
pub fn c_string(address: u64) -> io::Result<Vec<u8>> {
    let mut text = Vec::new();
    let mut at = address;
    while text.len() < libc::PATH_MAX as usize {
        // Never read across a page: if the string ends before the next page, that page may be unmapped.
        let mut piece = vec![0; PAGE - at as usize % PAGE];
        copy_in(at, &mut piece)?;
        if let Some(end) = piece.iter().position(|b| *b == 0) {
            text.extend_from_slice(&piece[..end]);
            return Ok(text);
        }
        at = at.checked_add(piece.len() as u64).ok_or_else(fault)?;
        text.append(&mut piece);
    }
    Err(io::Error::from_raw_os_error(libc::ENAMETOOLONG))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn good_pointers_are_copied_and_wrong_ones_are_efault() {
        let bytes: Vec<u8> = (0..200).collect();
        let mut out = [0; 200];
        copy_in(bytes.as_ptr() as u64, &mut out).unwrap();
        assert_eq!(out[..], bytes[..]);
        for wrong in [0, 1, u64::MAX - 7, 1 << 47, 0xdead_0000_0000_0000] {
            let error = copy_in(wrong, &mut out).unwrap_err();
            assert_eq!(error.raw_os_error(), Some(libc::EFAULT), "{wrong:#x}");
            let error = c_string(wrong).unwrap_err();
            assert_eq!(error.raw_os_error(), Some(libc::EFAULT), "{wrong:#x}");
            // SAFETY: nothing is mapped there.
            let error = unsafe { copy_out(wrong, &[0; 8]) }.unwrap_err();
            assert_eq!(error.raw_os_error(), Some(libc::EFAULT), "{wrong:#x}");
        }
        assert_eq!(c_string(c"/dev/x".as_ptr() as u64).unwrap(), b"/dev/x");
        let long = vec![b'a'; 3 * PAGE];
        let error = c_string(long.as_ptr() as u64).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::ENAMETOOLONG));
    }
}
