//! Which buffers there are, where, and how many commands use each: what submitters, engines and takers look at without a
//! lock. Private: nothing in shared memory changes it.

#![forbid(unsafe_code)]

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

use super::MOST_BUFFERS;
use crate::error::{Error, Result};
use crate::sys::mmap::PAGE;

/// A buffer's id: a serial number that no other buffer of this process ever has, and its index in the table.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, Hash)]
pub struct BufferId(pub u64);

impl BufferId {
    pub(super) fn new(serial: u64, index: u16) -> BufferId {
        BufferId(serial << 16 | u64::from(index))
    }

    /// Its index, as entries and completions have it.
    pub fn index(self) -> u16 {
        self.0 as u16
    }

    fn serial(self) -> u64 {
        self.0 >> 16
    }
}

/// Where a buffer is: bytes `start..start + len` of a registration.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    /// Below `MOST_REGISTRATIONS`.
    pub registration: u16,
    /// A multiple of the page, below 1 GiB.
    pub start: u32,
    /// 1 byte to 1 GiB.
    pub len: u32,
}

impl Place {
    // One word, so that nobody sees half of it: 31 bits of length, 18 of the first page, 15 of the registration.
    fn packed(self) -> u64 {
        let page = u64::from(self.start) / PAGE as u64;
        u64::from(self.len) | page << 31 | u64::from(self.registration) << 49
    }

    fn unpacked(word: u64) -> Place {
        Place {
            registration: (word >> 49) as u16,
            start: (word >> 31 & 0x3_ffff) as u32 * PAGE as u32,
            len: (word & 0x7fff_ffff) as u32,
        }
    }
}

/// Bits of `state` that count commands.
const USES: u32 = 24;
const MOST_USES: u64 = (1 << USES) - 1;
/// Serial numbers have the other 40 bits.
pub(super) const MOST_SERIALS: u64 = 1 << 40;

#[derive(Debug, Default)]
struct Entry {
    /// The serial number, and how many commands use the buffer. 0: there is none.
    state: AtomicU64,
    place: AtomicU64,
    /// Of its first byte, as the program sees it.
    address: AtomicU64,
}

/// The buffers of a context, by index.
#[derive(Debug, Default)]
pub struct Table {
    entries: OnceLock<Box<[Entry]>>,
}

fn no_such_buffer() -> Error {
    Error::new(
        libc::EINVAL,
        "this context has no such buffer: it was freed, or it is one of another context",
    )
}

impl Table {
    fn entry(&self, index: u16) -> Option<&Entry> {
        self.entries.get()?.get(index as usize)
    }

    fn of(&self, id: BufferId) -> Result<(&Entry, u64)> {
        let entry = self.entry(id.index()).ok_or_else(no_such_buffer)?;
        let state = entry.state.load(Ordering::Acquire);
        match id.serial() {
            0 => Err(no_such_buffer()),
            serial if serial == state >> USES => Ok((entry, state)),
            _ => Err(no_such_buffer()),
        }
    }

    /// Adds a buffer at an index that is free.
    pub(super) fn add(&self, id: BufferId, place: Place, address: u64) {
        let make = || (0..MOST_BUFFERS).map(|_| Entry::default()).collect();
        let entry = &self.entries.get_or_init(make)[id.index() as usize];
        entry.place.store(place.packed(), Ordering::Relaxed);
        entry.address.store(address, Ordering::Relaxed);
        entry.state.store(id.serial() << USES, Ordering::Release);
    }

    /// Takes a buffer away. `EBUSY` if commands use it, `EINVAL` if there is no such buffer.
    pub(super) fn remove(&self, id: BufferId) -> Result<()> {
        let (entry, _) = self.of(id)?;
        let unused = id.serial() << USES;
        match entry
            .state
            .compare_exchange(unused, 0, Ordering::AcqRel, Ordering::Acquire)
        {
            Ok(_) => Ok(()),
            Err(state) if state >> USES == id.serial() => Err(Error::new(
                libc::EBUSY,
                format!(
                    "{} commands use the buffer: take their completions first",
                    state & MOST_USES
                ),
            )),
            Err(_) => Err(no_such_buffer()),
        }
    }

    /// The address of its first byte, its length, and how many commands use it. `EINVAL`.
    pub fn about(&self, id: BufferId) -> Result<(u64, u32, u32)> {
        let (entry, _) = self.of(id)?;
        let address = entry.address.load(Ordering::Acquire);
        let place = Place::unpacked(entry.place.load(Ordering::Acquire));
        // Still the same: what was read is its own.
        let (_, state) = self.of(id)?;
        Ok((address, place.len, (state & MOST_USES) as u32))
    }

    /// Counts a command that uses the buffer, which then cannot be freed. `EINVAL`.
    pub fn begin_use(&self, id: BufferId) -> Result<Place> {
        let (entry, mut state) = self.of(id)?;
        loop {
            if state >> USES != id.serial() {
                return Err(no_such_buffer());
            }
            if state & MOST_USES == MOST_USES {
                return Err(Error::new(
                    libc::EAGAIN,
                    "too many commands use the buffer: take completions, then submit again",
                ));
            }
            match entry.state.compare_exchange_weak(
                state,
                state + 1,
                Ordering::AcqRel,
                Ordering::Acquire,
            ) {
                Ok(_) => return Ok(Place::unpacked(entry.place.load(Ordering::Relaxed))),
                Err(now) => state = now,
            }
        }
    }

    /// A command that used the buffer of this index has ended. `false` if none did.
    pub fn end_use(&self, index: u16) -> bool {
        let less = |state: u64| (state & MOST_USES > 0).then(|| state - 1);
        self.entry(index).is_some_and(|entry| {
            entry
                .state
                .fetch_update(Ordering::AcqRel, Ordering::Acquire, less)
                .is_ok()
        })
    }

    /// Where the buffer of an index is. Only while a command uses it does that mean something.
    pub fn place(&self, index: u16) -> Option<Place> {
        let entry = self.entry(index)?;
        let state = entry.state.load(Ordering::Acquire);
        (state & MOST_USES > 0).then(|| Place::unpacked(entry.place.load(Ordering::Relaxed)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_is_one_word() {
        for place in [
            Place {
                registration: 0,
                start: 0,
                len: 1,
            },
            Place {
                registration: 1023,
                start: (1 << 30) - PAGE as u32,
                len: 1 << 30,
            },
        ] {
            assert_eq!(Place::unpacked(place.packed()), place);
        }
    }

    #[test]
    fn a_buffer_in_use_stays_and_one_that_is_gone_is_refused() {
        let table = Table::default();
        let place = Place {
            registration: 3,
            start: 8192,
            len: 100,
        };
        let id = BufferId::new(7, 5);
        assert_eq!(table.begin_use(id).unwrap_err().errno(), libc::EINVAL);
        assert!(!table.end_use(5));
        table.add(id, place, 0x1000);
        assert_eq!(table.place(5), None);
        assert_eq!(table.begin_use(id).unwrap(), place);
        assert_eq!(table.about(id).unwrap(), (0x1000, 100, 1));
        assert_eq!(table.place(5), Some(place));
        assert_eq!(table.remove(id).unwrap_err().errno(), libc::EBUSY);
        assert!(table.end_use(5));
        assert!(!table.end_use(5));
        table.remove(id).unwrap();
        let next = BufferId::new(8, 5);
        table.add(next, place, 0x2000);
        for gone in [
            id,
            BufferId::default(),
            BufferId::new(0, 5),
            BufferId::new(8, 6),
        ] {
            assert_eq!(table.begin_use(gone).unwrap_err().errno(), libc::EINVAL);
            assert_eq!(table.remove(gone).unwrap_err().errno(), libc::EINVAL);
        }
        table.remove(next).unwrap();
    }
}
