//! Anonymous mappings: the region and the bounce pool.

use std::fs;
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::ptr::{self, NonNull};

/// Bytes in a base page. The layout of the region uses this size for every kind of page.
pub const PAGE: usize = 4096;
/// Bytes in a huge page (x86-64 and arm64 with 4 KiB base pages).
pub const HUGE_PAGE: usize = 2 << 20;

/// An anonymous mapping, or a mapping of our own of pages that a program mapped.
///
/// Nothing here makes a reference into it, because the kernel, the program and other threads write to it at any time.
/// All access goes through `sys::shm`.
#[derive(Debug)]
pub struct Mapping {
    base: NonNull<u8>,
    len: usize,
    huge: bool,
    /// The program's mapping itself, which only the program unmaps.
    lent: bool,
}

// SAFETY: a Mapping is an address and a length that never change until it is dropped; what is behind
// them is reached by atomic or raw accesses only (sys::shm), which need no exclusive owner.
unsafe impl Send for Mapping {}
// SAFETY: as above; no method of Mapping writes to its fields.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// `len` bytes (rounded up to whole pages), zeroed, prefaulted, and kept out of forked children: both AF_XDP and
    /// io_uring pin these pages, and a child's copy-on-write would separate them.
    pub fn anonymous(len: usize, huge: bool) -> io::Result<Mapping> {
        let unit = if huge { HUGE_PAGE } else { PAGE };
        let len = len
            .checked_next_multiple_of(unit)
            .filter(|&len| len > 0 && len <= isize::MAX as usize)
            .ok_or_else(|| io::Error::from_raw_os_error(libc::EINVAL))?;
        let mut flags = libc::MAP_SHARED | libc::MAP_ANONYMOUS;
        if huge {
            flags |= libc::MAP_HUGETLB | libc::MAP_HUGE_2MB | libc::MAP_POPULATE;
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
            huge,
            lent: false,
        };
        mapping.advise(libc::MADV_DONTFORK)?;
        if !huge {
            // Shared memory may get huge pages without being asked, and those count whole against RLIMIT_MEMLOCK. A
            // kernel without huge pages refuses this call.
            let _ = mapping.advise(libc::MADV_NOHUGEPAGE);
            mapping.advise(libc::MADV_POPULATE_WRITE)?;
        }
        Ok(mapping)
    }

    /// The same, entirely in transparent huge pages, with `len` rounded up to whole ones.
    ///
    /// Private, because shared memory gets huge pages only if that is enabled as well (shmem_enabled). No other
    /// process shares it anyway, and pinned pages are neither moved nor shared with a child (MADV_DONTFORK).
    ///
    /// `ENOMEM` if the kernel gives no huge pages, or too few.
    pub fn transparent(len: usize) -> io::Result<Mapping> {
        let len = len
            .checked_next_multiple_of(HUGE_PAGE)
            .filter(|&len| len > 0 && len <= isize::MAX as usize - HUGE_PAGE)
            .ok_or_else(|| io::Error::from_raw_os_error(libc::EINVAL))?;
        // SAFETY: no address is asked for, so no existing mapping can be replaced.
        let place = unsafe {
            libc::mmap(
                ptr::null_mut(),
                len + HUGE_PAGE,
                // In a program that locks future mappings (mlockall), base pages would be allocated here, before the
                // advice.
                libc::PROT_NONE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
                -1,
                0,
            )
        };
        if place == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let before = (place as usize).next_multiple_of(HUGE_PAGE) - place as usize;
        // SAFETY: `before` is less than HUGE_PAGE, and the place that much longer than `len`.
        let base = unsafe { place.add(before) };
        if before > 0 {
            // SAFETY: the part of the mapping just made before its first whole huge page; nothing is in it.
            unsafe { libc::munmap(place, before) };
        }
        // SAFETY: the part behind `len`, not empty because `before` is less than HUGE_PAGE; nothing is in it.
        unsafe { libc::munmap(base.add(len), HUGE_PAGE - before) };
        let mapping = Mapping {
            base: NonNull::new(base.cast()).expect("mmap never returns page zero"),
            len,
            huge: true,
            lent: false,
        };
        mapping.advise(libc::MADV_HUGEPAGE)?;
        mapping.advise(libc::MADV_DONTFORK)?;
        // SAFETY: the range is the mapping just made, and nothing of it has been looked at yet.
        if unsafe { libc::mprotect(base, len, libc::PROT_READ | libc::PROT_WRITE) } != 0 {
            return Err(io::Error::last_os_error());
        }
        mapping.advise(libc::MADV_POPULATE_WRITE)?;
        let maps = fs::read_to_string("/proc/thread-self/smaps")?;
        match size_at(&maps, mapping.address(), "AnonHugePages:") {
            Some(huge) if Some(huge) == size_at(&maps, mapping.address(), "Size:") => Ok(mapping),
            _ => Err(io::Error::from_raw_os_error(libc::ENOMEM)),
        }
    }

    /// Gives advice that does not change the contents: MADV_HUGEPAGE, MADV_NOHUGEPAGE, MADV_DONTFORK,
    /// MADV_POPULATE_WRITE.
    fn advise(&self, advice: libc::c_int) -> io::Result<()> {
        // SAFETY: the range is this mapping, which is live; the four, which are all that is asked for here, change nothing in it.
        match unsafe { libc::madvise(self.base.as_ptr().cast(), self.len, advice) } {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    }

    /// A mapping of our own of the pages that the program has at `address`, `len` bytes rounded up to whole pages of
    /// the size that it is mapped with. It stays if the program unmaps its own.
    ///
    /// `EFAULT`: not all of it is mapped for reading and writing. `EINVAL`: not shared (a private mapping's
    /// pages belong to it alone), of several origins, or not on a page.
    pub fn of_program(address: usize, len: usize) -> io::Result<Mapping> {
        let error = io::Error::from_raw_os_error;
        let maps = fs::read_to_string("/proc/thread-self/smaps")?;
        let page = size_at(&maps, address, "KernelPageSize:").ok_or_else(|| error(libc::EFAULT))?;
        let len = len
            .checked_next_multiple_of(page)
            .filter(|&len| len > 0 && len <= isize::MAX as usize)
            .ok_or_else(|| error(libc::EINVAL))?;
        if !address.is_multiple_of(page) {
            return Err(error(libc::EINVAL));
        }
        check_program_range(&maps, address, len).map_err(error)?;
        let huge = page > PAGE;
        let again = match huge {
            false => map_again(address, len),
            true => map_huge_again(&maps, address, len),
        };
        let (base, lent) = match again {
            Ok(base) => (base, false),
            // Huge pages cannot be mapped a second time without CAP_CHECKPOINT_RESTORE.
            Err(e) if huge && matches!(e.raw_os_error(), Some(libc::EPERM | libc::EACCES)) => {
                (address as *mut u8, true)
            }
            Err(e) => return Err(e),
        };
        let mapping = Mapping {
            base: NonNull::new(base).expect("page zero is never mapped"),
            len,
            huge,
            lent,
        };
        if lent {
            return Ok(mapping);
        }
        mapping.advise(libc::MADV_DONTFORK)?;
        Ok(mapping)
    }

    /// `len` bytes of a file of memory (a memfd, or one of tmpfs or hugetlbfs) from `offset` on, rounded up to whole pages of
    /// its kind, shared, prefaulted, and kept out of forked children. The descriptor may be closed afterwards.
    ///
    /// `EINVAL`: another kind of file, an offset that is no multiple of its page, or not as long a file. `EBADF`, `EACCES`.
    /// `ENOMEM` or `EFAULT`: too few pages.
    pub fn of_file(fd: RawFd, offset: u64, len: usize) -> io::Result<Mapping> {
        let wrong = || io::Error::from_raw_os_error(libc::EINVAL);
        // SAFETY: plain numbers, of which zero is a value.
        let (mut stat, mut fs) = unsafe { std::mem::zeroed::<(libc::stat, libc::statfs)>() };
        // SAFETY: both structs are live; an invalid descriptor is EBADF.
        if unsafe { libc::fstat(fd, &mut stat) != 0 || libc::fstatfs(fd, &mut fs) != 0 } {
            return Err(io::Error::last_os_error());
        }
        let huge = fs.f_type == libc::HUGETLBFS_MAGIC;
        let page = match huge {
            true => fs.f_bsize as usize,
            false => PAGE,
        };
        if !(huge || fs.f_type == libc::TMPFS_MAGIC) || stat.st_mode & libc::S_IFMT != libc::S_IFREG
        {
            return Err(wrong());
        }
        let end = offset.checked_add(len as u64).ok_or_else(wrong)?;
        if !offset.is_multiple_of(page as u64) || end > stat.st_size as u64 {
            return Err(wrong());
        }
        let len = len
            .checked_next_multiple_of(page)
            .filter(|&len| len > 0 && len <= isize::MAX as usize)
            .ok_or_else(wrong)?;
        // SAFETY: no address is asked for, so no existing mapping can be replaced.
        let base = unsafe {
            libc::mmap(
                ptr::null_mut(),
                len,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED,
                fd,
                offset as libc::off_t,
            )
        };
        if base == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let mapping = Mapping {
            base: NonNull::new(base.cast()).expect("mmap never returns page zero"),
            len,
            huge,
            lent: false,
        };
        mapping.advise(libc::MADV_DONTFORK)?;
        mapping.advise(libc::MADV_POPULATE_WRITE)?;
        Ok(mapping)
    }

    /// Whether this is the program's mapping itself, which the program must keep until this is dropped.
    pub fn is_lent(&self) -> bool {
        self.lent
    }

    pub fn base(&self) -> *mut u8 {
        self.base.as_ptr()
    }

    pub fn address(&self) -> usize {
        self.base.as_ptr() as usize
    }

    /// Length in bytes, a multiple of its page size.
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
        if !self.lent {
            // SAFETY: mapped by us with this base and length; whoever reaches into it holds an Arc of
            // this Mapping, so nobody does any more.
            unsafe { libc::munmap(self.base.as_ptr().cast(), self.len) };
        }
    }
}

/// A second mapping of the pages of a shared one.
fn map_again(address: usize, len: usize) -> io::Result<*mut u8> {
    // SAFETY: an old size of zero leaves the program's mapping as it is and makes a second one of the
    // same pages, at an address that the kernel chooses.
    let base = unsafe { libc::mremap(address as *mut _, 0, len, libc::MREMAP_MAYMOVE) };
    if base == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    Ok(base.cast())
}

/// The same for huge pages, which mremap refuses to map twice: through the file that the kernel has for every shared
/// mapping.
fn map_huge_again(maps: &str, address: usize, len: usize) -> io::Result<*mut u8> {
    let line = maps
        .lines()
        .filter_map(parse_line)
        .find(|l| (l.start..l.end).contains(&address))
        .ok_or_else(|| io::Error::from_raw_os_error(libc::EFAULT))?;
    let path = format!("/proc/self/map_files/{:x}-{:x}", line.start, line.end);
    let file = fs::File::options().read(true).write(true).open(path)?;
    let offset = line.offset as usize + (address - line.start);
    // SAFETY: no address is asked for, so no existing mapping can be replaced.
    let base = unsafe {
        libc::mmap(
            ptr::null_mut(),
            len,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_SHARED,
            file.as_raw_fd(),
            offset as libc::off_t,
        )
    };
    if base == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    Ok(base.cast())
}

/// Whether anything is mapped at an address (on a page) of this process.
pub fn is_mapped(address: usize) -> bool {
    let mut there = 0u8;
    // SAFETY: `there` has room for the one page asked about; an unmapped one is ENOMEM.
    let rc = unsafe { libc::mincore(address as *mut _, PAGE, &mut there) };
    rc == 0 || io::Error::last_os_error().raw_os_error() != Some(libc::ENOMEM)
}

/// The fields of a line of /proc/PID/maps that are needed here.
struct Line<'a> {
    start: usize,
    end: usize,
    access: &'a str,
    offset: u64,
    /// Device and inode.
    origin: (&'a str, &'a str),
}

fn parse_line(line: &str) -> Option<Line<'_>> {
    let mut fields = line.split_ascii_whitespace();
    let (start, end) = fields.next()?.split_once('-')?;
    Some(Line {
        start: usize::from_str_radix(start, 16).ok()?,
        end: usize::from_str_radix(end, 16).ok()?,
        access: fields.next()?,
        offset: u64::from_str_radix(fields.next()?, 16).ok()?,
        origin: (fields.next()?, fields.next()?),
    })
}

/// A field of smaps for the mapping of an address, converted from kB to bytes.
fn size_at(smaps: &str, address: usize, field: &str) -> Option<usize> {
    let mut inside = false;
    for line in smaps.lines() {
        if let Some(line) = parse_line(line) {
            inside = (line.start..line.end).contains(&address);
        } else if let (true, Some(size)) = (inside, line.strip_prefix(field)) {
            let size = size.trim().strip_suffix("kB")?.trim();
            return size.parse::<usize>().ok()?.checked_mul(1024);
        }
    }
    None
}

/// Whether the range is one contiguous part of one shared mapping (which advice or locks may have split).
fn check_program_range(maps: &str, address: usize, len: usize) -> Result<(), i32> {
    let end = address.checked_add(len).ok_or(libc::EFAULT)?;
    let mut at = address;
    let mut one = true;
    let mut last: Option<Line> = None;
    for line in maps.lines().filter_map(parse_line) {
        if at >= end || line.end <= at {
            continue;
        }
        if line.start > at || !line.access.starts_with("rw") {
            return Err(libc::EFAULT);
        }
        let follows = last.as_ref().is_none_or(|last| {
            last.origin == line.origin
                && last.offset + (last.end - last.start) as u64 == line.offset
        });
        one &= line.access.ends_with('s') && follows;
        at = line.end;
        last = Some(line);
    }
    // Unmapped parts are reported first: a range that is too long often reaches into another mapping.
    match (at < end, one) {
        (true, _) => Err(libc::EFAULT),
        (false, false) => Err(libc::EINVAL),
        (false, true) => Ok(()),
    }
}

/// Whether two addresses of this process lie in mappings of the same memory.
pub fn same_origin(a: usize, b: usize) -> io::Result<bool> {
    let maps = fs::read_to_string("/proc/thread-self/maps")?;
    let origin = |address: usize| {
        let line = maps
            .lines()
            .filter_map(parse_line)
            .find(|l| (l.start..l.end).contains(&address))?;
        line.access.ends_with('s').then_some(line.origin)
    };
    Ok(matches!((origin(a), origin(b)), (Some(a), Some(b)) if a == b))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_mapping_shows_the_same_pages_and_outlives_the_first() {
        let first = Mapping::anonymous(3 * PAGE, false).unwrap();
        // SAFETY: inside the mapping, which is live, and nobody else looks.
        unsafe { first.base().add(PAGE).write(7) };
        let second = Mapping::of_program(first.address(), 2 * PAGE + 1).unwrap();
        assert_eq!(second.len(), 3 * PAGE);
        let address = first.address();
        assert!(same_origin(address, second.address()).unwrap());
        let other = Mapping::anonymous(PAGE, false).unwrap();
        assert!(!same_origin(other.address(), second.address()).unwrap());
        drop(first);
        assert!(!same_origin(address, second.address()).unwrap());
        assert!(!is_mapped(address));
        assert!(is_mapped(second.address()));
        // SAFETY: inside the second mapping, which is live.
        assert_eq!(unsafe { second.base().add(PAGE).read() }, 7);
    }

    #[test]
    fn transparent_huge_pages_all_of_them_or_none() {
        let switch = fs::read_to_string("/sys/kernel/mm/transparent_hugepage/enabled");
        let given = switch.is_ok_and(|switch| !switch.contains("[never]"));
        let tried = Mapping::transparent(PAGE).map(|mapping| {
            assert!(mapping.is_huge() && mapping.address().is_multiple_of(HUGE_PAGE));
            assert_eq!(mapping.len(), HUGE_PAGE);
            // SAFETY: the last byte of the mapping, which is live, and nobody else looks.
            assert_eq!(unsafe { mapping.base().add(HUGE_PAGE - 1).read() }, 0);
            let address = mapping.address();
            drop(mapping);
            assert!(!is_mapped(address));
        });
        assert_eq!(tried.is_ok(), given, "{tried:?}");

        let disable = |on: libc::c_ulong| {
            // SAFETY: takes numbers only; until it is undone this process gets base pages, which changes no result.
            let rc = unsafe { libc::prctl(libc::PR_SET_THP_DISABLE, on, 0, 0, 0) };
            assert_eq!(rc, 0);
        };
        disable(1);
        let tried = Mapping::transparent(HUGE_PAGE);
        disable(0);
        assert_eq!(tried.unwrap_err().raw_os_error(), Some(libc::ENOMEM));
        assert_eq!(
            Mapping::transparent(usize::MAX).unwrap_err().kind(),
            io::ErrorKind::InvalidInput
        );
    }

    #[test]
    fn what_is_not_one_shared_mapping_is_refused() {
        let errno = |address: usize, len| {
            Mapping::of_program(address, len)
                .unwrap_err()
                .raw_os_error()
                .unwrap()
        };
        let mapping = Mapping::anonymous(2 * PAGE, false).unwrap();
        assert_eq!(errno(mapping.address() + 8, PAGE), libc::EINVAL);
        assert_eq!(errno(mapping.address(), usize::MAX - 5), libc::EINVAL);
        assert_eq!(errno(mapping.address(), 1 << 40), libc::EFAULT);
        assert_eq!(errno(PAGE, PAGE), libc::EFAULT);
        // The stack is private memory.
        let local = [0u8; 2 * PAGE];
        let page = (local.as_ptr() as usize).next_multiple_of(PAGE);
        assert_eq!(errno(page, PAGE), libc::EINVAL);
    }

    #[test]
    fn the_memory_map_is_read_as_it_is_written() {
        let maps = "7f0000000000-7f0000200000 rw-s 00000000 00:0f 77   /anon_hugepage (deleted)\n\
                    Size:               2048 kB\n\
                    KernelPageSize:     2048 kB\n\
                    7f0000200000-7f0000400000 rw-s 00200000 00:0f 77   /anon_hugepage (deleted)\n\
                    KernelPageSize:     2048 kB\n\
                    7f0000400000-7f0000401000 rw-s 00000000 00:01 78   /dev/zero (deleted)\n\
                    KernelPageSize:        4 kB\n\
                    7f0000401000-7f0000402000 r--s 00001000 00:01 78   /dev/zero (deleted)\n";
        assert_eq!(
            size_at(maps, 0x7f00_0000_1000, "KernelPageSize:"),
            Some(HUGE_PAGE)
        );
        assert_eq!(
            size_at(maps, 0x7f00_0040_0000, "KernelPageSize:"),
            Some(PAGE)
        );
        let check = |at, len| check_program_range(maps, at, len);
        assert_eq!(check(0x7f00_0000_0000, 0x40_0000), Ok(()));
        assert_eq!(check(0x7f00_0000_0000, 0x40_1000), Err(libc::EINVAL));
        assert_eq!(check(0x7f00_0040_0000, 0x2000), Err(libc::EFAULT));
        assert_eq!(check(0x7eff_ffff_f000, 0x2000), Err(libc::EFAULT));
    }
}
