//! Locked memory: what the kernel counts against RLIMIT_MEMLOCK, counted here before it does.
//!
//! The UMEM counts in base pages, even if it lies in huge ones. Memory that is registered with io_uring counts in the
//! pages that it lies in: a huge page counts whole, even if only a part of it is registered. The rings of io_uring
//! count too. The limit is one for all processes of a user. A process with CAP_IPC_LOCK is exempt.

#![forbid(unsafe_code)]

use crate::error::{Error, Result};
use crate::region::Layout;
use crate::sys::limits;
use crate::sys::mmap::{HUGE_PAGE, PAGE};

/// Bytes that a context or registration counts.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Locked {
    pub umem: usize,
    pub registered: usize,
}

impl Locked {
    /// `umems`: how many UMEMs the data buffers become. `others`: what the engines lock besides, in base pages. `huge`: the
    /// region lies in huge pages and begins on one.
    pub fn of(layout: &Layout, umems: usize, others: usize, huge: bool) -> Locked {
        let page = if huge { HUGE_PAGE } else { PAGE };
        let end = (layout.buffers + layout.buffers_len).next_multiple_of(page);
        let data = end - layout.buffers / page * page;
        Locked {
            umem: layout.buffers_len.next_multiple_of(PAGE) * umems,
            // Each lane's engine registers the data buffers for itself.
            registered: data * layout.lanes as usize + others.next_multiple_of(PAGE),
        }
    }

    fn sum(self) -> u64 {
        self.umem as u64 + self.registered as u64
    }
}

/// Bytes that are counted for this process until it is dropped.
#[derive(Debug)]
pub struct Charge {
    bytes: u64,
}

impl Charge {
    /// `ENOMEM` says how many bytes are needed, allowed and in use. `limit`: RLIMIT_MEMLOCK; `None`: nothing is counted.
    pub fn take(needed: Locked, limit: Option<u64>) -> Result<Charge> {
        let Some(limit) = limit else {
            return Ok(Charge { bytes: 0 });
        };
        let bytes = needed.sum();
        let Err(used) = limits::add_locked(bytes, limit) else {
            return Ok(Charge { bytes });
        };
        Err(Error::new(
            libc::ENOMEM,
            format!(
                "locked memory: {bytes} bytes are needed ({} for the UMEM, {} for io_uring), RLIMIT_MEMLOCK allows {limit}, \
                 and other contexts of this process use {used} of them; raise it (ulimit -l {}), give CAP_IPC_LOCK, or \
                 take fewer frames",
                needed.umem,
                needed.registered,
                used.saturating_add(bytes).div_ceil(1024)
            ),
        ))
    }

    /// For buffers: so many bytes, of all rings together. As `take`.
    pub fn of_buffers(bytes: u64, limit: Option<u64>) -> Result<Charge> {
        let Some(limit) = limit else {
            return Ok(Charge { bytes: 0 });
        };
        match limits::add_locked(bytes, limit) {
            Ok(()) => Ok(Charge { bytes }),
            Err(used) => Err(Error::new(
                libc::ENOMEM,
                format!(
                    "locked memory: a buffer needs {bytes} more bytes, counted by the ring of each lane; RLIMIT_MEMLOCK allows \
                     {limit}, and this process uses {used} of them; raise it (ulimit -l {}), give CAP_IPC_LOCK, or free buffers",
                    used.saturating_add(bytes).div_ceil(1024)
                ),
            )),
        }
    }

    /// Reduces the charge to what was locked in the end.
    fn settle(&mut self, now: Locked) {
        // Base pages count no more than huge ones.
        if let Some(less) = self.bytes.checked_sub(now.sum()) {
            limits::remove_locked(less);
            self.bytes -= less;
        }
    }
}

impl Drop for Charge {
    fn drop(&mut self) {
        limits::remove_locked(self.bytes);
    }
}

/// A charge, and whether the region may lie in huge pages: no, if only base pages fit the limit.
#[derive(Debug)]
pub struct Budget {
    charge: Charge,
    layout: Layout,
    umems: usize,
    others: usize,
    pub huge: bool,
}

impl Budget {
    /// For a region of that layout. `reserved`: in reserved huge pages (hugetlbfs), even if it is shorter than one.
    /// `ENOMEM`.
    pub fn take(
        layout: Layout,
        umems: usize,
        others: usize,
        reserved: bool,
        limit: Option<u64>,
    ) -> Result<Budget> {
        let with = |huge| {
            let charge = Charge::take(Locked::of(&layout, umems, others, huge), limit)?;
            Ok(Budget {
                charge,
                layout,
                umems,
                others,
                huge,
            })
        };
        let could_be_huge = reserved || layout.total >= HUGE_PAGE;
        match could_be_huge.then(|| with(true)) {
            Some(Ok(budget)) => Ok(budget),
            _ => with(false),
        }
    }

    /// Settles the charge after the region was made, in huge pages or not.
    pub fn settle(mut self, huge: bool) -> Charge {
        let now = Locked::of(&self.layout, self.umems, self.others, huge);
        self.charge.settle(now);
        self.charge
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: usize = 1 << 20;

    #[test]
    fn huge_pages_count_whole_and_the_umem_in_base_pages() {
        let layout = Layout::new(256, 256, 4 * MIB).unwrap();
        let base = Locked::of(&layout, 1, 2 * MIB, false);
        assert_eq!((base.umem, base.registered), (4 * MIB, 6 * MIB));
        assert_eq!(Locked::of(&layout, 3, 0, false).umem, 12 * MIB);
        // From 36 KiB of the first page on: three pages are touched.
        let huge = Locked::of(&layout, 1, 2 * MIB, true);
        assert_eq!((huge.umem, huge.registered), (4 * MIB, 8 * MIB));
        let none = Locked::of(&layout, 0, 0, false);
        assert_eq!((none.umem, none.registered), (0, 4 * MIB));
        let odd = Locked::of(&Layout::new(64, 64, 3 * 2048).unwrap(), 1, 100, false);
        assert_eq!((odd.umem, odd.registered), (8192, 8192 + 4096));
    }

    #[test]
    fn base_pages_are_taken_if_only_they_fit_and_what_is_missing_is_told_in_bytes() {
        let layout = Layout::new(256, 256, 4 * MIB).unwrap();
        let take = |limit| Budget::take(layout, 0, 2 * MIB, false, limit);
        assert!(take(None).unwrap().huge);
        let far = 1 << 40;
        assert!(take(Some(far)).unwrap().huge);
        // Other tests of this process may have charges of their own: none are as large as that.
        let most = 64 << 30;
        let rest = Charge::take(
            Locked {
                umem: 0,
                registered: most,
            },
            Some(far),
        )
        .unwrap();
        let used = limits::locked_here();
        let tight = take(Some(used + 7 * MIB as u64)).unwrap();
        assert!(!tight.huge);
        drop(tight);
        let error = take(Some(most as u64)).unwrap_err();
        assert_eq!(error.errno(), libc::ENOMEM);
        for part in [
            "6291456 bytes are needed",
            "68719476736",
            "use 6",
            "ulimit -l 6",
        ] {
            assert!(error.message().contains(part), "'{part}' in: {error}");
        }
        drop(rest);
        assert!(limits::locked_here() < most as u64);
    }
}
