//! Anonymous shared mappings: the region and the bounce pool.

use std::io;
use std::ptr::{self, NonNull};

/// Bytes in a base page. The layout of the region is written in these, whatever maps it.
pub const PAGE: usize = 4096;
/// Bytes in a huge page (x86-64 and arm64 with 4 KiB base pages).
pub const HUGE_PAGE: usize = 2 << 20;

/// One anonymous shared mapping, or memory that a program mapped itself and lends us.
///
/// It is only a place: nothing here makes a reference into it, because the kernel, the program and
/// other threads write to it whenever they like. All access goes through `sys::shm`.
#[derive(Debug)]
pub struct Mapping {
    base: NonNull<u8>,
    len: usize,
    owned: bool,
    huge: bool,
}

// SAFETY: a Mapping is an address and a length that never change until it is dropped; what is behind
// them is reached by atomic or raw accesses only (sys::shm), which need no exclusive owner.
unsafe impl Send for Mapping {}
// SAFETY: as above; no method of Mapping writes to its fields.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// `len` bytes (rounded up to whole pages), zeroed, prefaulted, and kept out of forked children:
    /// both AF_XDP and io_uring pin these pages, and a child's copy-on-write would part the two.
    pub fn anonymous(len: usize, huge: bool) -> io::Result<Mapping> {
        let unit = if huge { HUGE_PAGE } else { PAGE };
        let len = len
            .checked_next_multiple_of(unit)
            .filter(|&len| len > 0 && len <= isize::MAX as usize)
            .ok_or_else(|| io::Error::from_raw_os_error(libc::EINVAL))?;
        let mut flags = libc::MAP_SHARED | libc::MAP_ANONYMOUS | libc::MAP_POPULATE;
        if huge {
            flags |= libc::MAP_HUGETLB | libc::MAP_HUGE_2MB;
        }
        // SAFETY: no address is asked for, so no existing mapping can be replaced.
        let base = unsafe {
            libc::mmap(
                ptr::null_mut(),
                len,
                libc::PROT_READ | libc::PROT_WRITE,
                flags,
                -1,
                0,
            )
        };
        if base == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let base = NonNull::new(base.cast()).expect("mmap never returns page zero");
        let mapping = Mapping {
            base,
            len,
            owned: true,
            huge,
        };
        // SAFETY: the range is the mapping just made.
        let rc = unsafe { libc::madvise(base.as_ptr().cast(), len, libc::MADV_DONTFORK) };
        if rc != 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(mapping)
    }

    pub fn base(&self) -> *mut u8 {
        self.base.as_ptr()
    }

    pub fn address(&self) -> usize {
        self.base.as_ptr() as usize
    }

    /// Bytes, a multiple of the page (huge page) it is made of.
    pub fn len(&self) -> usize {
        self.len
    }

    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    pub fn is_huge(&self) -> bool {
        self.huge
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        if self.owned {
            // SAFETY: mapped by us with this base and length; whoever reaches into it holds an Arc of
            // this Mapping, so nobody does any more.
            unsafe { libc::munmap(self.base.as_ptr().cast(), self.len) };
        }
    }
}
