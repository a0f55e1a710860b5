//! Distinguishes a process from its forked children.
//!
//! A page that the kernel zeroes in every child (MADV_WIPEONFORK) holds an id. Reading it costs one load. It also
//! works for children of a bare clone(2), for which the C library calls no fork handler.
//!
//! If another thread of the parent holds a lock at the fork, the lock is held forever in the child, which does not
//! have that thread. `Lock` records its owner's process, so a child never waits forever for a lock that outlives a
//! context (a static, a handle of a log).

use std::cell::UnsafeCell;
use std::io;
use std::marker::PhantomData;
use std::ops::{Deref, DerefMut};
use std::ptr;
use std::sync::atomic::{AtomicPtr, AtomicU32, Ordering};

static PAGE: AtomicPtr<AtomicU32> = AtomicPtr::new(ptr::null_mut());
/// The last id in this process and its ancestors. The process number does not work: a child in another PID namespace
/// can have the same one.
static LAST: AtomicU32 = AtomicU32::new(0);

/// The id of a process. It is not current in the process's children.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ProcessId(u32);

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

impl ProcessId {
    /// This process's.
    pub fn of_this_process() -> io::Result<ProcessId> {
        let word = page()?;
        let there = word.load(Ordering::Acquire);
        if there != 0 {
            return Ok(ProcessId(there));
        }
        // In a child the page is zero again, and its ids continue after its parent's.
        let next = (LAST.fetch_add(1, Ordering::AcqRel) + 1) & !WAITED;
        match word.compare_exchange(0, next, Ordering::AcqRel, Ordering::Acquire) {
            Ok(_) => Ok(ProcessId(next)),
            Err(there) => Ok(ProcessId(there)),
        }
    }

    /// Whether the calling process is the one with this id.
    pub fn is_current(self) -> bool {
        page().is_ok_and(|word| word.load(Ordering::Relaxed) == self.0)
    }
}

/// In a lock's word, besides the owner's id: somebody waits for it.
const WAITED: u32 = 1 << 31;
/// The owner's id if the system could not give one. Such a process is not distinguished from its children.
const UNMARKED: u32 = WAITED - 1;

/// A mutex that detects in a forked child that a thread of the parent has locked it. For data that outlives a context.
pub struct Lock<T> {
    /// 0: free; else the id of the process that has locked it.
    owner: AtomicU32,
    value: UnsafeCell<T>,
}

// SAFETY: the value is reached through a guard only, of which there is one at a time.
unsafe impl<T: Send> Sync for Lock<T> {}

/// A lock is held by a thread that this process does not have. The data that it protects may be inconsistent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Inherited(u32);

pub struct Guard<'a, T> {
    lock: &'a Lock<T>,
    // Released by the thread that took it.
    _not_send: PhantomData<*const ()>,
}

impl<T> Lock<T> {
    pub const fn new(value: T) -> Lock<T> {
        Lock {
            owner: AtomicU32::new(0),
            value: UnsafeCell::new(value),
        }
    }

    fn guard(&self) -> Guard<'_, T> {
        Guard {
            lock: self,
            _not_send: PhantomData,
        }
    }

    /// Waits for other threads of this process.
    pub fn lock(&self) -> Result<Guard<'_, T>, Inherited> {
        let me = ProcessId::of_this_process().map_or(UNMARKED, |mark| mark.0);
        // A thread that has waited does not know whether others still wait.
        let mut take = me;
        loop {
            let word =
                match self
                    .owner
                    .compare_exchange(0, take, Ordering::Acquire, Ordering::Relaxed)
                {
                    Ok(_) => return Ok(self.guard()),
                    Err(word) => word,
                };
            if word & !WAITED != me {
                return Err(Inherited(word));
            }
            take = me | WAITED;
            if word == take
                || self
                    .owner
                    .compare_exchange(word, take, Ordering::Relaxed, Ordering::Relaxed)
                    .is_ok()
            {
                // SAFETY: the word is live; the kernel compares it and sleeps, or returns at once. No timeout.
                unsafe {
                    libc::syscall(
                        libc::SYS_futex,
                        self.owner.as_ptr(),
                        libc::FUTEX_WAIT | libc::FUTEX_PRIVATE_FLAG,
                        take,
                        ptr::null::<libc::timespec>(),
                    );
                }
            }
        }
    }

    /// As `lock`. If the lock was inherited locked, its value may be inconsistent: it is leaked and made anew.
    pub fn lock_or_renew(&self, fresh: impl Fn() -> T) -> Guard<'_, T> {
        loop {
            let inherited = match self.lock() {
                Ok(guard) => return guard,
                Err(Inherited(word)) => word,
            };
            let me = ProcessId::of_this_process().map_or(UNMARKED, |mark| mark.0);
            if self
                .owner
                .compare_exchange(inherited, me, Ordering::Acquire, Ordering::Relaxed)
                .is_ok()
            {
                // SAFETY: this thread has just become the owner, and the one before it does not run in this
                // process. The old value is overwritten without being looked at.
                unsafe { self.value.get().write(fresh()) };
                return self.guard();
            }
        }
    }
}

impl<T> Deref for Guard<'_, T> {
    type Target = T;

    fn deref(&self) -> &T {
        // SAFETY: the guard is the only one, so nobody changes the value meanwhile.
        unsafe { &*self.lock.value.get() }
    }
}

impl<T> DerefMut for Guard<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        // SAFETY: the guard is the only one, and it is borrowed mutably.
        unsafe { &mut *self.lock.value.get() }
    }
}

impl<T> Drop for Guard<'_, T> {
    fn drop(&mut self) {
        if self.lock.owner.swap(0, Ordering::Release) & WAITED != 0 {
            // SAFETY: the word is live; waking needs its address alone.
            unsafe {
                libc::syscall(
                    libc::SYS_futex,
                    self.lock.owner.as_ptr(),
                    libc::FUTEX_WAKE | libc::FUTEX_PRIVATE_FLAG,
                    1,
                );
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc;
    use std::time::{Duration, Instant};

    /// The exit code of a forked child that runs `act`; `None` if it does not end in time.
    pub(crate) fn forked(act: impl FnOnce() -> i32) -> Option<i32> {
        // SAFETY: the child does what the test says, and ends without running anything of its parent's.
        let child = match unsafe { libc::fork() } {
            // SAFETY: ends the child.
            0 => unsafe { libc::_exit(act()) },
            child => child,
        };
        assert!(child > 0);
        let until = Instant::now() + Duration::from_secs(5);
        let mut status = 0;
        loop {
            // SAFETY: `child` is this process's, and not yet waited for; `status` is live.
            let ended = unsafe { libc::waitpid(child, &mut status, libc::WNOHANG) };
            if ended == child {
                return libc::WIFEXITED(status).then(|| libc::WEXITSTATUS(status));
            }
            if Instant::now() > until {
                // SAFETY: as above.
                unsafe {
                    libc::kill(child, libc::SIGKILL);
                    libc::waitpid(child, &mut status, 0);
                }
                return None;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// Forks while another thread is inside `hold`, which gets a function that returns when the child has ended.
    pub(crate) fn forked_while(
        hold: impl FnOnce(&dyn Fn()) + Send,
        act: impl FnOnce() -> i32,
    ) -> Option<i32> {
        let (tell, told) = mpsc::channel();
        let (done, end) = mpsc::channel::<()>();
        std::thread::scope(|scope| {
            scope.spawn(move || {
                hold(&|| {
                    tell.send(()).unwrap();
                    let _ = end.recv();
                });
            });
            told.recv().unwrap();
            let code = forked(act);
            drop(done);
            code
        })
    }

    #[test]
    fn a_child_does_not_wait_for_a_thread_of_its_parent() {
        static LOCK: Lock<u32> = Lock::new(7);
        let hold = |wait: &dyn Fn()| {
            let mut guard = LOCK.lock().unwrap();
            *guard = 8;
            wait();
        };
        let code = forked_while(hold, || {
            if LOCK.lock().is_ok() {
                return 1;
            }
            *LOCK.lock_or_renew(|| 9) += 1;
            LOCK.lock().map_or(2, |value| *value as i32)
        });
        assert_eq!(code, Some(10));
        assert_eq!(*LOCK.lock().unwrap(), 8, "the parent's is its own");
        // A lock that is free at the fork works as before.
        assert_eq!(forked(|| LOCK.lock().map_or(2, |v| *v as i32)), Some(8));
    }

    #[test]
    fn a_childs_mark_is_none_of_its_ancestors() {
        let mine = ProcessId::of_this_process().unwrap();
        let code = forked(|| {
            let childs = ProcessId::of_this_process().unwrap();
            let again = ProcessId::of_this_process().unwrap();
            i32::from(mine.is_current() || childs == mine || childs != again)
        });
        assert_eq!(code, Some(0));
        assert!(mine.is_current());
    }

    #[test]
    fn threads_take_turns() {
        let lock = Lock::new(0u64);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..20_000 {
                        *lock.lock().unwrap() += 1;
                    }
                });
            }
        });
        assert_eq!(*lock.lock().unwrap(), 80_000);
    }

    #[test]
    fn nothing_that_outlives_a_context_is_waited_for_in_a_child() {
        use crate::log::{self, Level};
        let _alone = log::ALONE.lock();
        // Within libxdp.
        let code = forked_while(crate::sys::bpf::within_libxdp, || {
            crate::sys::bpf::attached(1);
            0
        });
        assert_eq!(code, Some(0), "libxdp");
        // Within a callback of the log.
        let hold = |wait: &dyn Fn()| {
            let (tell, told) = mpsc::channel::<()>();
            let (done, end) = mpsc::channel::<()>();
            let (tell, end) = (std::sync::Mutex::new(tell), std::sync::Mutex::new(end));
            let here = std::thread::current().id();
            log::set_callback(Some(Box::new(move |_, line| {
                if line == "inherited" && std::thread::current().id() != here {
                    let _ = tell.lock().unwrap().send(());
                    let _ = end.lock().unwrap().recv();
                }
            })));
            std::thread::scope(|scope| {
                scope.spawn(|| log::log(Level::Info, format_args!("inherited")));
                told.recv().unwrap();
                wait();
                drop(done);
            });
            log::set_callback(None);
        };
        let code = forked_while(hold, || {
            log::set_callback(None);
            0
        });
        assert_eq!(code, Some(0), "the log's callback");
    }
}
