//! Memory that is registered and unregistered while the engine runs. Only its driver may do that: other threads ask for it.

#![forbid(unsafe_code)]

use std::io;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

use super::slab::Slot;
use super::{Engine, EngineShared};
use crate::buffers::Place;
use crate::error::{Error, Result};
use crate::storage::command::{self, Command, Rules, entry_flags, status};
use crate::storage::task::BUFFER_MORE;
use crate::sys::abi::UnifiedSqe;
use crate::sys::shm::Shared;

/// The driver's thread begins what it is asked for within this time, or it is not asked any more.
const LONGEST_ASKING: Duration = Duration::from_secs(10);
/// And ends it within this time: the kernel pins at most 1 GiB.
const LONGEST_WORK: Duration = Duration::from_secs(60);
/// Between two looks at whether the engine has failed.
const TICK: Duration = Duration::from_millis(50);

#[derive(Debug, Default)]
enum Asked {
    #[default]
    Nothing,
    /// The number of a registration, and its memory; `None`: to be unregistered.
    For(u16, Option<Shared>),
    Working,
    Done(io::Result<()>),
}

/// What the engine is asked for, and by whom.
#[derive(Debug, Default)]
pub struct Changes {
    /// One thread asks at a time.
    asking: Mutex<()>,
    is_asked: AtomicBool,
    asked: Mutex<Asked>,
    answered: Condvar,
    /// Threads that have an inline engine for a change, or wait for it.
    visitors: AtomicU32,
}

impl Changes {
    /// Whether a thread that changes something may have the inline engine: it gives it back soon.
    pub fn has_visitors(&self) -> bool {
        self.visitors.load(Ordering::SeqCst) > 0
    }

    /// Counts the caller among the visitors while `visit` runs.
    pub fn visit<T>(&self, visit: impl FnOnce() -> T) -> T {
        self.visitors.fetch_add(1, Ordering::SeqCst);
        let result = visit();
        self.visitors.fetch_sub(1, Ordering::SeqCst);
        result
    }
}

impl EngineShared {
    /// Asks the thread that drives the engine to register memory, or to unregister it, and waits until it has. The errno
    /// of an engine that has failed; `ETIMEDOUT` if its thread does not get to it.
    pub fn ask_to_replace(&self, number: u16, memory: Option<Shared>) -> Result<io::Result<()>> {
        let changes = &self.changes;
        let _asking = changes.asking.lock();
        let mut asked = changes.asked.lock();
        *asked = Asked::For(number, memory);
        changes.is_asked.store(true, Ordering::Release);
        self.engine_bell.ring();
        let begin = Instant::now();
        loop {
            let late = |longest| {
                (begin.elapsed() >= longest).then(|| {
                    Error::new(
                        libc::ETIMEDOUT,
                        "the engine's thread did not register the memory in time: it hangs in the kernel, or gets no CPU",
                    )
                })
            };
            let refused = match &*asked {
                Asked::Done(_) => None,
                Asked::For(..) => match self.failure() {
                    Some(errno) => Some(Error::new(
                        errno,
                        "the engine has stopped after a failure (see the log); destroy the context",
                    )),
                    None => late(LONGEST_ASKING),
                },
                Asked::Working | Asked::Nothing => late(LONGEST_WORK),
            };
            if let Some(error) = refused {
                *asked = Asked::Nothing;
                changes.is_asked.store(false, Ordering::Relaxed);
                return Err(error);
            }
            match std::mem::take(&mut *asked) {
                Asked::Done(result) => return Ok(result),
                other => *asked = other,
            }
            changes.answered.wait_for(&mut asked, TICK);
        }
    }
}

impl Engine {
    /// Does what another thread has asked for. Looks at one flag if nobody has.
    #[inline(always)]
    pub(super) fn make_changes(&mut self) {
        if self.shared.changes.is_asked.load(Ordering::Relaxed) {
            self.make_change();
        }
    }

    #[cold]
    fn make_change(&mut self) {
        let shared = self.shared.clone();
        let mut asked = shared.changes.asked.lock();
        shared.changes.is_asked.store(false, Ordering::Relaxed);
        let Asked::For(number, memory) = std::mem::take(&mut *asked) else {
            return;
        };
        *asked = Asked::Working;
        // Not under the lock: whoever asks looks at the engine's end meanwhile.
        drop(asked);
        let result = self.replace(number, memory);
        let mut asked = shared.changes.asked.lock();
        // Otherwise nobody waits for it any more.
        if let Asked::Working = &*asked {
            *asked = Asked::Done(result);
            shared.changes.answered.notify_all();
        }
    }

    /// Registers memory under a number below `MOST_REGISTRATIONS`, or unregisters what has it. For the engine's driver.
    /// `EBUSY` if a command uses what is registered: that can only be if a program wrote to the SQ ring itself.
    pub fn replace(&mut self, number: u16, memory: Option<Shared>) -> io::Result<()> {
        let error = io::Error::from_raw_os_error;
        let place = self
            .memory
            .more
            .get_mut(number as usize)
            .ok_or_else(|| error(libc::EINVAL))?;
        if place.is_none() && memory.is_none() {
            return Ok(());
        }
        if self.users[number as usize] > 0 {
            return Err(error(libc::EBUSY));
        }
        self.ring.replace(BUFFER_MORE + number, memory.clone())?;
        *place = memory;
        Ok(())
    }

    /// As `command::parse`, for an entry whose data is in a buffer. The command's offset is one of the registration then,
    /// the slot's one of the buffer.
    pub(super) fn parse_in_buffer(
        &self,
        sqe: &UnifiedSqe,
        rules: &Rules,
        slot: &mut Slot,
    ) -> std::result::Result<Command, u16> {
        let place = self.place_of_buffer(sqe).ok_or(status::INVALID_FIELD)?;
        let rules = Rules {
            buffers: 0,
            buffers_len: place.len.into(),
            ..*rules
        };
        let mut command = command::parse(sqe, &rules)?;
        slot.offset = command.offset;
        command.offset += u64::from(place.start);
        slot.home = BUFFER_MORE + place.registration;
        Ok(command)
    }

    /// `None` if this engine has no such memory.
    fn place_of_buffer(&self, sqe: &UnifiedSqe) -> Option<Place> {
        let place = self
            .buffers
            .as_ref()?
            .place(entry_flags::buffer_of(sqe.flags))?;
        let memory = self.memory.get(BUFFER_MORE + place.registration)?;
        let end = place.start as usize + place.len as usize;
        (end <= memory.len()).then_some(place)
    }

    /// A command begins to use what is registered, or has ended.
    #[inline(always)]
    pub(super) fn count_user(&mut self, home: u16, begins: bool) {
        if home < BUFFER_MORE {
            return;
        }
        let users = &mut self.users[(home - BUFFER_MORE) as usize];
        match begins {
            true => *users += 1,
            false => *users -= 1,
        }
    }
}
