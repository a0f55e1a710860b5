//! Buffers that are allocated while a context runs: memory of any size up to 1 GiB that is registered with the rings of all
//! lanes, so that commands use it in place as they use frames.
//!
//! Each buffer lies in one *registration*, a number in each ring's table of registered buffers. Small buffers share a slab;
//! a large one, and memory of the program, has a registration of its own. Registrations are made when they are needed, up
//! to a limit. A slab without buffers is given back, but for one that is kept for a moment.
//!
//! All lanes have all registrations from the start of a buffer's life to its end. A buffer can then be used on any of them,
//! and what the system refuses is an error of the call that allocates, not of a command.

#![forbid(unsafe_code)]

mod pieces;
mod table;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use pieces::Pieces;
pub use table::{BufferId, Place, Table};

use crate::error::{Error, Result};
use crate::locked::Charge;
use crate::region::check_memory_cgroup;
use crate::sys::limits;
use crate::sys::mmap::{HUGE_PAGE, Mapping, PAGE};
use crate::sys::shm::Shared;
use crate::sys::uring::SHARD;

/// Most bytes of a buffer: an operation cannot cross from one registration into another, and older kernels take no longer
/// ones.
pub const LONGEST_BUFFER: usize = SHARD;
/// Most buffers of a context.
pub const MOST_BUFFERS: usize = 1 << 14;
/// Most registrations of a context.
pub const MOST_REGISTRATIONS: u16 = 1024;
/// Unless the configuration says something else: nothing is allocated before it is asked for.
pub const DEFAULT_LIMIT: u64 = 1 << 30;

/// Buffers up to this length share slabs.
const SMALL: usize = 256 << 10;
const SLAB: usize = HUGE_PAGE;
/// From this length on, a buffer that does not fill its last huge page takes all of it: at most an eighth more.
const ROUNDED: usize = 8 * HUGE_PAGE;
/// How long a slab without buffers is kept.
pub const IDLE: Duration = Duration::from_secs(1);

/// No two buffers of a process have the same, so that a buffer of another context is refused.
static SERIAL: AtomicU64 = AtomicU64::new(1);

/// Those who register memory: the rings of all lanes.
pub trait Rings {
    /// Registers memory under a number, or unregisters what has it. After an error some may have done it.
    fn replace(&self, number: u16, memory: Option<&Shared>) -> Result<()>;

    /// How many they are: each counts the memory.
    fn count(&self) -> usize;
}

/// What a buffer is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Buffer {
    pub id: BufferId,
    /// Of its first byte, as the program sees it.
    pub address: u64,
    pub len: u64,
}

/// Counted now, not since the beginning.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct BufferCounts {
    pub buffers: u64,
    /// Of all buffers.
    pub bytes: u64,
    /// Of all registrations, each counted once, whatever the number of lanes.
    pub registered_bytes: u64,
}

#[derive(Debug)]
enum Holds {
    /// Small buffers.
    Slab { pieces: Pieces, idle_since: Instant },
    /// One buffer.
    One,
    /// Nothing: a ring has not unregistered it yet.
    Nothing,
}

#[derive(Debug)]
struct Registration {
    memory: Shared,
    holds: Holds,
    _charge: Charge,
}

#[derive(Debug, Default)]
struct Pool {
    /// By number.
    registrations: Vec<Option<Registration>>,
    places: HashMap<BufferId, Place>,
    /// Indices in the table that were used before, and the first that was not.
    free: Vec<u16>,
    fresh: u16,
}

/// The buffers of a context.
#[derive(Debug)]
pub struct Buffers {
    table: Arc<Table>,
    /// Most bytes that are registered.
    limit: u64,
    /// Allocating and freeing: one thread at a time. Commands do without.
    pool: Mutex<Pool>,
    // Apart from the pool, so that whoever reads them never waits for a registration.
    buffers: AtomicU64,
    bytes: AtomicU64,
    registered: AtomicU64,
}

impl Buffers {
    pub fn new(limit: u64) -> Buffers {
        Buffers {
            table: Arc::default(),
            limit,
            pool: Mutex::default(),
            buffers: AtomicU64::new(0),
            bytes: AtomicU64::new(0),
            registered: AtomicU64::new(0),
        }
    }

    /// What the data path looks at.
    pub fn table(&self) -> &Arc<Table> {
        &self.table
    }

    pub fn counts(&self) -> BufferCounts {
        BufferCounts {
            buffers: self.buffers.load(Ordering::Relaxed),
            bytes: self.bytes.load(Ordering::Relaxed),
            registered_bytes: self.registered.load(Ordering::Relaxed),
        }
    }

    /// A zeroed buffer that begins on a page. `EINVAL` (length), `ENOBUFS` (the limit), `ENOMEM`, and errors of the rings.
    pub fn alloc(&self, rings: &(impl Rings + ?Sized), len: u64) -> Result<Buffer> {
        let wanted = pages_of(len)?;
        let mut pool = self.pool.lock();
        self.shrink(&mut pool, rings, IDLE);
        pool.check_room()?;
        let (registration, start) = match wanted {
            ..=SMALL => self.piece(&mut pool, rings, wanted)?,
            _ => {
                self.make_room(&mut pool, rings, wanted)?;
                let memory = map(wanted, self.limit - self.registered.load(Ordering::Relaxed))?;
                (self.register(&mut pool, rings, memory, Holds::One)?, 0)
            }
        };
        let place = Place {
            registration,
            start: start as u32,
            len: len as u32,
        };
        Ok(self.add(&mut pool, place, None))
    }

    /// A buffer in memory of the program. `address`: where the program sees it, if not where it is mapped. Errors as
    /// `alloc`.
    pub fn import(
        &self,
        rings: &(impl Rings + ?Sized),
        memory: Mapping,
        len: u64,
        address: Option<u64>,
    ) -> Result<Buffer> {
        pages_of(len)?;
        let whole = memory.len();
        if whole > LONGEST_BUFFER {
            return Err(too_long(whole as u64));
        }
        let memory = Shared::new(Arc::new(memory), 0, whole).expect("all of the mapping");
        let mut pool = self.pool.lock();
        self.shrink(&mut pool, rings, IDLE);
        pool.check_room()?;
        self.make_room(&mut pool, rings, whole)?;
        let place = Place {
            registration: self.register(&mut pool, rings, memory, Holds::One)?,
            start: 0,
            len: len as u32,
        };
        Ok(self.add(&mut pool, place, address))
    }

    /// Frees a buffer. `EBUSY` while a command uses it, `EINVAL` if there is no such buffer.
    pub fn free(&self, rings: &(impl Rings + ?Sized), id: BufferId) -> Result<()> {
        let mut pool = self.pool.lock();
        self.table.remove(id)?;
        let Some(place) = pool.places.remove(&id) else {
            return Ok(());
        };
        pool.free.push(id.index());
        self.buffers.fetch_sub(1, Ordering::Relaxed);
        self.bytes.fetch_sub(place.len.into(), Ordering::Relaxed);
        if let Some(registration) = &mut pool.registrations[place.registration as usize] {
            match &mut registration.holds {
                Holds::Slab { pieces, idle_since } => {
                    let len = (place.len as usize).next_multiple_of(PAGE);
                    pieces.give_back(place.start as usize, len);
                    *idle_since = Instant::now();
                }
                holds => *holds = Holds::Nothing,
            }
        }
        self.shrink(&mut pool, rings, IDLE);
        Ok(())
    }

    /// Gives idle memory back, unless somebody allocates or frees at this moment.
    pub fn tidy(&self, rings: &(impl Rings + ?Sized)) {
        if self.registered.load(Ordering::Relaxed) > 0
            && let Some(mut pool) = self.pool.try_lock()
        {
            self.shrink(&mut pool, rings, IDLE);
        }
    }

    /// Gives slabs without buffers back, but for one that had some less than `idle` ago.
    fn shrink(&self, pool: &mut Pool, rings: &(impl Rings + ?Sized), idle: Duration) {
        let mut spared = false;
        for number in 0..pool.registrations.len() as u16 {
            let Some(registration) = &mut pool.registrations[number as usize] else {
                continue;
            };
            match &registration.holds {
                Holds::One => continue,
                Holds::Slab { pieces, .. } if !pieces.is_unused() => continue,
                Holds::Slab { idle_since, .. } if !spared && idle_since.elapsed() < idle => {
                    spared = true;
                    continue;
                }
                _ => {}
            }
            // If a ring cannot do it now, the next call tries again.
            registration.holds = Holds::Nothing;
            if rings.replace(number, None).is_ok() {
                self.unregistered(registration.memory.len());
                pool.registrations[number as usize] = None;
            }
        }
    }

    fn unregistered(&self, len: usize) {
        self.registered.fetch_sub(len as u64, Ordering::Relaxed);
    }

    /// `ENOBUFS` if so many more bytes would exceed the limit, even after all idle memory was given back.
    fn make_room(&self, pool: &mut Pool, rings: &(impl Rings + ?Sized), len: usize) -> Result<()> {
        let left = || {
            self.limit
                .saturating_sub(self.registered.load(Ordering::Relaxed))
        };
        if (len as u64) > left() {
            self.shrink(pool, rings, Duration::ZERO);
        }
        if (len as u64) <= left() {
            return Ok(());
        }
        Err(Error::new(
            libc::ENOBUFS,
            format!(
                "{len} more bytes for buffers: {} are registered, and the limit is {}; free some, or raise buffers_max",
                self.registered.load(Ordering::Relaxed),
                self.limit
            ),
        ))
    }

    /// A piece of a slab: its registration, and where it starts.
    fn piece(
        &self,
        pool: &mut Pool,
        rings: &(impl Rings + ?Sized),
        len: usize,
    ) -> Result<(u16, usize)> {
        for (number, registration) in pool.registrations.iter_mut().enumerate() {
            if let Some(Registration {
                memory,
                holds: Holds::Slab { pieces, .. },
                ..
            }) = registration
                && let Some(start) = pieces.take(len)
            {
                memory.zero(start, len);
                return Ok((number as u16, start));
            }
        }
        // At the limit, a slab is as long as it can be.
        let left = self
            .limit
            .saturating_sub(self.registered.load(Ordering::Relaxed)) as usize;
        let slab = SLAB.min(left / PAGE * PAGE).max(len);
        self.make_room(pool, rings, slab)?;
        let mut pieces = Pieces::new(slab);
        let start = pieces.take(len).expect("a slab is at least that long");
        let holds = Holds::Slab {
            pieces,
            idle_since: Instant::now(),
        };
        let number = self.register(pool, rings, map(slab, slab as u64)?, holds)?;
        Ok((number, start))
    }

    /// Registers memory with all rings. Returns its number.
    fn register(
        &self,
        pool: &mut Pool,
        rings: &(impl Rings + ?Sized),
        memory: Shared,
        holds: Holds,
    ) -> Result<u16> {
        let free = pool.registrations.iter().position(Option::is_none);
        let number = free.unwrap_or(pool.registrations.len());
        if number == MOST_REGISTRATIONS as usize {
            return Err(Error::new(
                libc::ENOBUFS,
                format!(
                    "{MOST_REGISTRATIONS} pieces of memory are registered: free some buffers, or take fewer and longer ones"
                ),
            ));
        }
        let len = memory.len();
        let charge = Charge::of_buffers(len as u64 * rings.count() as u64, limits::memlock())?;
        if free.is_none() {
            pool.registrations.push(None);
        }
        let made = rings.replace(number as u16, Some(&memory));
        let undone = made.is_err() && rings.replace(number as u16, None).is_ok();
        if !undone {
            self.registered.fetch_add(len as u64, Ordering::Relaxed);
            pool.registrations[number] = Some(Registration {
                memory,
                holds: match made {
                    Ok(()) => holds,
                    Err(_) => Holds::Nothing,
                },
                _charge: charge,
            });
        }
        made.map(|()| number as u16)
    }

    fn add(&self, pool: &mut Pool, place: Place, address: Option<u64>) -> Buffer {
        let index = pool.free.pop().unwrap_or_else(|| {
            pool.fresh += 1;
            pool.fresh - 1
        });
        let serial = SERIAL.fetch_add(1, Ordering::Relaxed);
        debug_assert!(serial < table::MOST_SERIALS);
        let id = BufferId::new(serial, index);
        let registration = pool.registrations[place.registration as usize].as_ref();
        let base = registration.map_or(0, |found| found.memory.address());
        let address = address.unwrap_or((base + place.start as usize) as u64);
        self.table.add(id, place, address);
        pool.places.insert(id, place);
        self.buffers.fetch_add(1, Ordering::Relaxed);
        self.bytes.fetch_add(place.len.into(), Ordering::Relaxed);
        Buffer {
            id,
            address,
            len: place.len.into(),
        }
    }
}

impl Pool {
    /// `ENOBUFS` if there are too many buffers.
    fn check_room(&self) -> Result<()> {
        if self.places.len() < MOST_BUFFERS {
            return Ok(());
        }
        Err(Error::new(
            libc::ENOBUFS,
            format!("{MOST_BUFFERS} buffers are allocated, as many as there can be: free some"),
        ))
    }
}

fn too_long(len: u64) -> Error {
    Error::new(
        libc::EINVAL,
        format!(
            "a buffer of {len} bytes: 1 to {LONGEST_BUFFER} are possible, because the kernel registers no more in one piece; \
             take several"
        ),
    )
}

/// The whole pages that so many bytes take. `EINVAL`.
fn pages_of(len: u64) -> Result<usize> {
    match len {
        1..=LONG => Ok((len as usize).next_multiple_of(PAGE)),
        _ => Err(too_long(len)),
    }
}

const LONG: u64 = LONGEST_BUFFER as u64;

/// Zeroed memory of whole pages, in huge pages if it fills them and the system has some. At most `most` bytes.
fn map(len: usize, most: u64) -> Result<Shared> {
    check_memory_cgroup(len, limits::memory_cgroup())?;
    let rounded = len.next_multiple_of(HUGE_PAGE);
    let huge = len == rounded || len >= ROUNDED && rounded as u64 <= most;
    let transparent = huge.then(|| Mapping::transparent(len).ok()).flatten();
    let mapping = match transparent {
        Some(mapping) => mapping,
        None => Mapping::anonymous(len, false)
            .map_err(|e| Error::os(&e, format_args!("mapping {len} bytes for a buffer")))?,
    };
    let len = mapping.len();
    Ok(Shared::new(Arc::new(mapping), 0, len).expect("all of the mapping"))
}
