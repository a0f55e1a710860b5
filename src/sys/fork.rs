//! Telling a process from its forked children.
//!
//! A page that the kernel wipes in every child (MADV_WIPEONFORK) holds a mark: reading it costs one load,
//! and it also tells children of a bare clone(2), which no handler of the C library sees.

use std::io;
use std::ptr;
use std::sync::atomic::{AtomicPtr, AtomicU32, Ordering};

static PAGE: AtomicPtr<AtomicU32> = AtomicPtr::new(ptr::null_mut());

/// The mark of the process that asked for it first; not current in its children.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mark(u32);

fn page() -> io::Result<&'static AtomicU32> {
    let mut page = PAGE.load(Ordering::Acquire);
    if page.is_null() {
        const LEN: usize = 4096;
        // SAFETY: no address is asked for, so no existing mapping can be replaced.
        let made = unsafe {
            libc::mmap(
                ptr::null_mut(),
                LEN,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
                -1,
                0,
            )
        };
        if made == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the page was just mapped, and nobody else knows of it.
        if unsafe { libc::madvise(made, LEN, libc::MADV_WIPEONFORK) } != 0 {
            let error = io::Error::last_os_error();
            // SAFETY: as above; it is given up.
            unsafe { libc::munmap(made, LEN) };
            return Err(error);
        }
        let null = ptr::null_mut();
        page = made.cast();
        if let Err(other) = PAGE.compare_exchange(null, page, Ordering::AcqRel, Ordering::Acquire) {
            // SAFETY: another thread was first; this page was never shown to anybody.
            unsafe { libc::munmap(made, LEN) };
            page = other;
        }
    }
    // SAFETY: the page is mapped for good, aligned, and used as this one atomic only.
    Ok(unsafe { &*page })
}

impl Mark {
    /// This process's.
    pub fn of_this_process() -> io::Result<Mark> {
        let word = page()?;
        let pid = std::process::id();
        // In a child the page reads zero again.
        let mark = match word.compare_exchange(0, pid, Ordering::AcqRel, Ordering::Acquire) {
            Ok(_) => pid,
            Err(there) => there,
        };
        Ok(Mark(mark))
    }

    /// Whether the process that this is the mark of is the one that asks.
    pub fn is_current(self) -> bool {
        page().is_ok_and(|word| word.load(Ordering::Relaxed) == self.0)
    }
}
