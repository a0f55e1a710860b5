//! The documented registration interface: serves rings that a program writes itself.
//!
//! Registration checks the request, lays the region out in the program's memory and starts a server (`serve`) over it.
//!
//! The library works on a mapping of its own of the region's pages. A program that unmaps its region or closes its ring
//! without unregistering loses the server, but does not crash.

#![forbid(unsafe_code)]

mod serve;

use std::collections::HashMap;
use std::fmt;
use std::os::fd::RawFd;
use std::sync::Arc;

use parking_lot::Mutex;

use serve::{CLOSED, Server, UNMAPPED};

use crate::error::{Error, Result};
use crate::log::{self, Level};
use crate::region::{Layout, MAX_ENTRIES, Region};
use crate::storage::device::{Device, DeviceConfig};
use crate::sys::abi::{RegionDesc, UnifiedOffsets, UnifiedReg};
use crate::sys::file;
use crate::sys::mmap::Mapping;

/// `io_uring_region_desc` flag: memory of the program. It is the program's memory without the flag, too.
const REGION_USER: u32 = 1;

fn invalid(what: impl fmt::Display) -> Error {
    Error::new(libc::EINVAL, format!("registering a region: {what}"))
}

/// A request for registration, with the program's numbers.
#[derive(Debug, Clone)]
pub struct Registration {
    pub reg: UnifiedReg,
    pub region: RegionDesc,
    pub device: String,
    /// The ring was made with IORING_SETUP_CLAMP.
    pub clamp: bool,
}

impl Registration {
    /// The part of the checks that needs only the first structure. With `clamp`, a count above `MAX_ENTRIES`
    /// becomes `MAX_ENTRIES`. `EINVAL`.
    pub fn layout(reg: &UnifiedReg, clamp: bool) -> Result<Layout> {
        if reg.flags != 0 || reg.reserved != [0; 3] {
            return Err(invalid("flags and reserved fields must be zero"));
        }
        let count = |name: &str, count: u32| match count {
            1..=MAX_ENTRIES => Ok(count.next_power_of_two()),
            // Zero entries are an error with the flag too, as for io_uring_setup.
            1.. if clamp => Ok(MAX_ENTRIES),
            0 => Err(invalid(format_args!(
                "0 {name} entries; 1 to {MAX_ENTRIES} are possible"
            ))),
            _ => Err(invalid(format_args!(
                "{count} {name} entries; 1 to {MAX_ENTRIES} are possible: make the io_uring with \
                 IORING_SETUP_CLAMP to get {MAX_ENTRIES} instead"
            ))),
        };
        let (sq, cq) = (count("SQ", reg.sq_entries)?, count("CQ", reg.cq_entries)?);
        let buffers = u64::from(reg.buffer_entries) * u64::from(reg.buffer_entry_size);
        let buffers = usize::try_from(buffers).map_err(|_| invalid("the buffers are too long"))?;
        Layout::new(sq, cq, buffers)
    }

    fn check_region(&self) -> Result<()> {
        if self.region.flags & !REGION_USER != 0 || self.region.reserved != [0; 4] {
            return Err(invalid(
                "the region's flags (0 or 1) or reserved fields are wrong",
            ));
        }
        if self.region.user_addr == 0 {
            return Err(Error::new(
                libc::EFAULT,
                "registering a region: its address is NULL",
            ));
        }
        if self.region.size == 0 {
            return Err(invalid("its size is zero"));
        }
        Ok(())
    }

    fn map(&self, layout: Layout) -> Result<Region> {
        let (address, size) = (self.region.user_addr, self.region.size);
        let mapping = Mapping::of_program(address as usize, size as usize).map_err(|e| {
            let error = Error::os(
                &e,
                format_args!("the region of {size} bytes at {address:#x}"),
            );
            match e.raw_os_error() {
                Some(libc::EFAULT) => {
                    error.hint("all of it must be mapped for reading and writing")
                }
                Some(libc::EINVAL) => {
                    error.hint("it must be one shared mapping (MAP_SHARED) and begin on a page")
                }
                _ => error,
            }
        })?;
        if mapping.is_lent() {
            log::log(
                Level::Warn,
                format_args!(
                    "the region's huge pages are used where the program mapped them (a mapping of the \
                     library's own needs CAP_CHECKPOINT_RESTORE): unmapping them before unregistering \
                     would end the program"
                ),
            );
        }
        Region::over(Arc::new(mapping), layout)
    }
}

/// The registrations of one process.
#[derive(Debug, Default)]
pub struct Registrations {
    rings: Mutex<HashMap<RawFd, Server>>,
    /// The rings made with IORING_SETUP_CLAMP, by descriptor: the kernel does not report setup flags later. A
    /// descriptor may be another file by now, so its identity is compared.
    clamping: Mutex<HashMap<RawFd, (u64, u64)>>,
}

impl Registrations {
    pub fn new() -> Registrations {
        log::to_stderr_if_asked();
        Registrations::default()
    }

    /// Remembers that this ring was made with IORING_SETUP_CLAMP. `EBADF`.
    pub fn note_clamp(&self, fd: RawFd) -> Result<()> {
        let ring = identity(fd)?;
        self.clamping.lock().insert(fd, ring);
        Ok(())
    }

    /// Whether this ring was made with IORING_SETUP_CLAMP, also if the descriptor is a copy. `EBADF`.
    pub fn clamps(&self, fd: RawFd) -> Result<bool> {
        let ring = identity(fd)?;
        Ok(self.clamping.lock().values().any(|known| *known == ring))
    }

    /// `EBADF`, `EOPNOTSUPP` if the descriptor is not an io_uring, `EBUSY` if something is registered with it already.
    pub fn check_ring(&self, fd: RawFd) -> Result<()> {
        identity(fd)?;
        let target = std::fs::read_link(format!("/proc/thread-self/fd/{fd}"))
            .map_err(|e| Error::os(&e, format_args!("looking at descriptor {fd}")))?;
        if target.as_os_str() != "anon_inode:[io_uring]" {
            return Err(Error::new(
                libc::EOPNOTSUPP,
                format!("descriptor {fd} is not an io_uring"),
            ));
        }
        let mut rings = self.rings.lock();
        // What belongs to rings that were closed, and to regions that are not there any more, goes first:
        // its device may be wanted again.
        rings.retain(|fd, server| {
            let current = server.is_current(*fd);
            if !current {
                server.abandon(*fd, CLOSED);
            } else if !server.has_its_region() {
                server.abandon(*fd, UNMAPPED);
            }
            current
        });
        if rings.contains_key(&fd) {
            return Err(Error::new(
                libc::EBUSY,
                format!("a region is registered with io_uring {fd} already"),
            ));
        }
        Ok(())
    }

    /// Checks, opens the device, lays the region out and serves it until `unregister`. Any thread.
    ///
    /// `EINVAL` `EFAULT` (the region), `ENOMEM` (locked memory), `EPERM`, and what `Device::open` says.
    pub fn register(&self, fd: RawFd, request: &Registration) -> Result<UnifiedOffsets> {
        self.check_ring(fd)?;
        let layout = Registration::layout(&request.reg, request.clamp)?;
        request.check_region()?;
        let region = request.map(layout)?;
        let device = Device::open(&DeviceConfig {
            path: request.device.clone(),
            // The interface counts in 512 bytes, and a file has no format that could forbid it.
            small_blocks: true,
            ..DeviceConfig::default()
        })
        .map_err(|e| match e.errno() {
            // The interface knows one errno for what this process may not do.
            libc::EACCES => Error::new(libc::EPERM, e.message().to_string()),
            _ => e,
        })?;
        let mut rings = self.rings.lock();
        if rings.contains_key(&fd) {
            return Err(Error::new(
                libc::EBUSY,
                "another thread registered a region with this io_uring meanwhile",
            ));
        }
        let server = Server::start(fd, request, region, device)?;
        rings.insert(fd, server);
        let at = layout.rings(0);
        Ok(UnifiedOffsets {
            sq_ring: at.sq_ring as u64,
            cq_ring: at.cq_ring as u64,
            sq_entries: at.sq_entries as u64,
            cq_entries: at.cq_entries as u64,
            buffers: layout.buffers as u64,
        })
    }

    /// Finishes what is in flight. When it returns, nothing touches the region any more. Succeeds if nothing is
    /// registered with this ring, too. `EBADF`.
    pub fn unregister(&self, fd: RawFd) -> Result<()> {
        identity(fd)?;
        let server = self.rings.lock().remove(&fd);
        // Joins its thread.
        drop(server);
        Ok(())
    }
}

fn identity(fd: RawFd) -> Result<(u64, u64)> {
    file::identity(fd).map_err(|e| Error::os(&e, format_args!("descriptor {fd}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reg() -> UnifiedReg {
        UnifiedReg {
            sq_entries: 200,
            cq_entries: 256,
            buffer_entries: 64,
            buffer_entry_size: 4096,
            ..UnifiedReg::default()
        }
    }

    #[test]
    fn counts_are_rounded_up_and_bounded() {
        let layout = Registration::layout(&reg(), false).unwrap();
        assert_eq!((layout.sq_count, layout.cq_count), (256, 256));
        assert_eq!(layout.buffers, 36864);
        type Change = fn(&mut UnifiedReg);
        let wrong: [(&str, Change); 9] = [
            ("flags", |r| r.flags = 1),
            ("reserved", |r| r.reserved[2] = 1),
            ("no SQ", |r| r.sq_entries = 0),
            ("no CQ", |r| r.cq_entries = 0),
            ("SQ too long", |r| r.sq_entries = 32769),
            ("CQ too long", |r| r.cq_entries = u32::MAX),
            ("no buffers", |r| r.buffer_entries = 0),
            ("empty buffers", |r| r.buffer_entry_size = 0),
            ("too many bytes", |r| {
                (r.buffer_entries, r.buffer_entry_size) = (u32::MAX, u32::MAX)
            }),
        ];
        for (name, change) in wrong {
            let mut reg = reg();
            change(&mut reg);
            let error = Registration::layout(&reg, false).unwrap_err();
            assert_eq!(error.errno(), libc::EINVAL, "{name}: {error}");
        }
        let longest = UnifiedReg {
            sq_entries: 32768,
            cq_entries: 32767,
            ..reg()
        };
        let layout = Registration::layout(&longest, false).unwrap();
        assert_eq!(layout.cq_count, 32768);
    }

    #[test]
    fn counts_are_clamped_for_a_ring_that_asked_for_it() {
        for (sq, cq, want) in [
            (32769, 1, (32768, 1)),
            (200, u32::MAX, (256, 32768)),
            (1 << 31, 65536, (32768, 32768)),
            (129, 255, (256, 256)),
        ] {
            let reg = UnifiedReg {
                sq_entries: sq,
                cq_entries: cq,
                ..reg()
            };
            let layout = Registration::layout(&reg, true).unwrap();
            assert_eq!((layout.sq_count, layout.cq_count), want);
        }
        for (sq, cq) in [(0, 256), (256, 0)] {
            let reg = UnifiedReg {
                sq_entries: sq,
                cq_entries: cq,
                ..reg()
            };
            let error = Registration::layout(&reg, true).unwrap_err();
            assert_eq!(error.errno(), libc::EINVAL);
        }
    }
}
