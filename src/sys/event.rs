//! Waiting: eventfd doorbells, poll, epoll, and the names and signals of threads.

#[cfg(not(loom))]
use std::fs::File;
use std::io;
#[cfg(not(loom))]
use std::io::{Read, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
#[cfg(not(loom))]
use std::sync::atomic::{AtomicU64, Ordering, fence};
use std::time::Duration;

use smallvec::SmallVec;

#[cfg(loom)]
use loom::sync::atomic::{AtomicU64, Ordering, fence};

/// An eventfd: writes add up until it is read.
#[cfg(not(loom))]
#[derive(Debug)]
struct Counter(File);

#[cfg(not(loom))]
impl Counter {
    fn new() -> io::Result<Counter> {
        // SAFETY: no memory is passed; the result is a new descriptor or -1.
        let fd = unsafe { libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: just made, and owned by nobody else.
        Ok(Counter(unsafe { File::from_raw_fd(fd) }))
    }

    fn add_one(&self) -> io::Result<()> {
        (&self.0).write(&1u64.to_ne_bytes()).map(drop)
    }

    fn take(&self) -> io::Result<u64> {
        let mut count = [0; 8];
        // All eight bytes, or an error.
        (&self.0).read_exact(&mut count)?;
        Ok(u64::from_ne_bytes(count))
    }

    fn fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }

    fn duplicate(&self) -> io::Result<OwnedFd> {
        self.0.try_clone().map(OwnedFd::from)
    }
}

/// A model of it for loom, without a descriptor.
#[cfg(loom)]
#[derive(Debug)]
struct Counter(loom::sync::Mutex<u64>);

#[cfg(loom)]
impl Counter {
    fn new() -> io::Result<Counter> {
        Ok(Counter(loom::sync::Mutex::new(0)))
    }

    fn add_one(&self) -> io::Result<()> {
        *self.0.lock().unwrap() += 1;
        Ok(())
    }

    fn take(&self) -> io::Result<u64> {
        match std::mem::take(&mut *self.0.lock().unwrap()) {
            0 => Err(io::ErrorKind::WouldBlock.into()),
            count => Ok(count),
        }
    }

    fn fd(&self) -> RawFd {
        -1
    }

    fn duplicate(&self) -> io::Result<OwnedFd> {
        Err(io::ErrorKind::Unsupported.into())
    }
}

/// A doorbell: readable after `ring`, until `clear`.
#[derive(Debug)]
pub struct Doorbell {
    counter: Counter,
    /// Rings begun and not yet cleared. Saves `clear` a system call if nobody rang. Counted before the write, which
    /// may wake the clearer at once: if `clear` skipped the read, the descriptor would stay readable until the ringer
    /// runs again.
    rung: AtomicU64,
}

impl Doorbell {
    pub fn new() -> io::Result<Doorbell> {
        Ok(Doorbell {
            counter: Counter::new()?,
            rung: AtomicU64::new(0),
        })
    }

    /// Rings, unless an earlier ring is not yet cleared: whoever clears that one then sees everything that was written
    /// before this call.
    pub fn ring(&self) {
        // Pairs with the fence in `clear`: either this side sees that the bell was cleared and rings again, or the
        // clearer's loads after its fence see what was done before this one.
        fence(Ordering::SeqCst);
        if self.rung.load(Ordering::Relaxed) > 0 {
            return;
        }
        self.rung.fetch_add(1, Ordering::AcqRel);
        if self.counter.add_one().is_err() {
            // A full counter (EAGAIN) is readable already.
            self.rung.fetch_sub(1, Ordering::AcqRel);
        }
    }

    /// Clears the bell. Returns whether it had been rung.
    pub fn clear(&self) -> bool {
        if self.rung.load(Ordering::Acquire) == 0 {
            return false;
        }
        let Ok(rings) = self.counter.take() else {
            return false;
        };
        // The counter's value is the number of rings that are cleared. Other ringers may be about to write.
        self.rung.fetch_sub(rings, Ordering::AcqRel);
        fence(Ordering::SeqCst);
        true
    }

    pub fn fd(&self) -> RawFd {
        self.counter.fd()
    }

    pub fn duplicate(&self) -> io::Result<OwnedFd> {
        self.counter.duplicate()
    }

    /// Whether a poll of its descriptor would return at once.
    #[cfg(loom)]
    pub fn is_readable(&self) -> bool {
        *self.counter.0.lock().unwrap() > 0
    }
}

/// Waits until one of `fds` is readable, at most for `timeout` (`None`: forever). `false` on timeout or signal; the
/// caller checks its rings in any case.
pub fn poll_readable(fds: &[RawFd], timeout: Option<Duration>) -> io::Result<bool> {
    match poll_which(fds, timeout) {
        Ok(woken) => Ok(woken.any),
        Err(e) if e.kind() == io::ErrorKind::Interrupted => Ok(false),
        Err(e) => Err(e),
    }
}

/// Which descriptors are readable, or broken.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Woken {
    pub any: bool,
    pub first: bool,
}

/// As `poll_readable`, and says whether the first of them is readable; `Interrupted` for a signal.
pub fn poll_which(fds: &[RawFd], timeout: Option<Duration>) -> io::Result<Woken> {
    let poll = |fd: &RawFd| libc::pollfd {
        fd: *fd,
        events: libc::POLLIN,
        revents: 0,
    };
    // Without an allocation for a lane or two.
    let mut polls: SmallVec<[libc::pollfd; 12]> = fds.iter().map(poll).collect();
    let time = timeout.map(|t| libc::timespec {
        tv_sec: t.as_secs().min(i32::MAX as u64) as libc::time_t,
        tv_nsec: t.subsec_nanos().into(),
    });
    let time_ptr = time.as_ref().map_or(std::ptr::null(), std::ptr::from_ref);
    // SAFETY: the array holds polls.len() entries; the timespec is null or lives until the return.
    let rc = unsafe {
        libc::ppoll(
            polls.as_mut_ptr(),
            polls.len() as _,
            time_ptr,
            std::ptr::null(),
        )
    };
    match rc {
        rc if rc >= 0 => Ok(Woken {
            any: rc > 0,
            first: polls.first().is_some_and(|poll| poll.revents != 0),
        }),
        _ => Err(io::Error::last_os_error()),
    }
}

/// One descriptor that is readable if any of several is.
#[derive(Debug)]
pub struct Epoll(OwnedFd);

impl Epoll {
    pub fn new() -> io::Result<Epoll> {
        // SAFETY: no memory is passed; the result is a new descriptor or -1.
        let fd = unsafe { libc::epoll_create1(libc::EPOLL_CLOEXEC) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: just made, and owned by nobody else.
        Ok(Epoll(unsafe { OwnedFd::from_raw_fd(fd) }))
    }

    pub fn add(&self, fd: RawFd) -> io::Result<()> {
        let mut event = libc::epoll_event {
            events: libc::EPOLLIN as u32,
            u64: fd as u64,
        };
        // SAFETY: `event` is live; the kernel copies it.
        let rc =
            unsafe { libc::epoll_ctl(self.0.as_raw_fd(), libc::EPOLL_CTL_ADD, fd, &mut event) };
        if rc < 0 {
            Err(io::Error::last_os_error())
        } else {
            Ok(())
        }
    }

    pub fn fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

/// Blocks every signal in the calling thread: a library's threads leave signals to the program.
pub fn block_signals() {
    // SAFETY: the set is initialized by sigfillset before it is used; the old mask is not asked for.
    unsafe {
        let mut set = std::mem::zeroed::<libc::sigset_t>();
        libc::sigfillset(&mut set);
        libc::pthread_sigmask(libc::SIG_BLOCK, &set, std::ptr::null_mut());
    }
}

/// Makes short sleeps of the calling thread punctual: its timers end within a microsecond instead of the usual 50, and
/// after a wakeup it does not wait for another thread's whole time slice (kernel 6.12 or newer; older ones ignore
/// this).
pub fn sharpen_timers() {
    /// The first version of struct sched_attr.
    #[repr(C)]
    #[derive(Default)]
    struct SchedAttr {
        size: u32,
        policy: u32,
        flags: u64,
        nice: i32,
        priority: u32,
        runtime: u64,
        deadline: u64,
        period: u64,
    }
    let mut attr = SchedAttr::default();
    let size = size_of::<SchedAttr>() as u32;
    // SAFETY: `attr` is live and of the size that is named; 0 is the calling thread. What fails changes
    // nothing, and only makes wakeups later.
    unsafe {
        libc::prctl(libc::PR_SET_TIMERSLACK, 1000 as libc::c_ulong);
        if libc::syscall(libc::SYS_sched_getattr, 0, &mut attr, size, 0) == 0
            && attr.policy == libc::SCHED_OTHER as u32
        {
            attr.size = size;
            // Not inherited by io_uring's workers, which this thread creates.
            attr.flags |= libc::SCHED_FLAG_RESET_ON_FORK as u64;
            // The shortest slice that the kernel allows, in ns.
            attr.runtime = 100_000;
            libc::syscall(libc::SYS_sched_setattr, 0, &attr, 0);
        }
    }
}

/// Until it is dropped, signals to the calling thread are pending and do not interrupt it. For short calls that must
/// not end early. Signals for the thread's own faults are delivered.
#[derive(Debug)]
pub struct SignalShield {
    old: libc::sigset_t,
    // The signal mask belongs to the thread.
    _not_send: std::marker::PhantomData<*const ()>,
}

impl SignalShield {
    #[must_use]
    pub fn new() -> SignalShield {
        // SAFETY: sigset_t is integers; both sets are live, one initialized before use, one filled in.
        unsafe {
            let mut set = std::mem::zeroed::<libc::sigset_t>();
            let mut old = std::mem::zeroed::<libc::sigset_t>();
            libc::sigfillset(&mut set);
            for fault in [
                libc::SIGSEGV,
                libc::SIGBUS,
                libc::SIGFPE,
                libc::SIGILL,
                libc::SIGTRAP,
                libc::SIGABRT,
                libc::SIGSYS,
            ] {
                libc::sigdelset(&mut set, fault);
            }
            libc::pthread_sigmask(libc::SIG_BLOCK, &set, &mut old);
            SignalShield {
                old,
                _not_send: std::marker::PhantomData,
            }
        }
    }
}

impl Default for SignalShield {
    fn default() -> Self {
        SignalShield::new()
    }
}

impl Drop for SignalShield {
    fn drop(&mut self) {
        // SAFETY: the set is live and was filled in.
        unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, &self.old, std::ptr::null_mut()) };
    }
}

/// Until it is dropped, SIGXFSZ does not reach the calling thread. One that was sent meanwhile is discarded.
///
/// The kernel sends it with every EFBIG of RLIMIT_FSIZE to the thread that submits the write, and its default action
/// ends the program. The library returns the errno instead.
#[derive(Debug)]
pub struct FileSizeShield {
    old: libc::sigset_t,
    set: libc::sigset_t,
    // The mask is the thread's.
    _not_send: std::marker::PhantomData<*const ()>,
}

impl FileSizeShield {
    #[must_use]
    pub fn new() -> FileSizeShield {
        // SAFETY: sigset_t is integers; both sets are live, one initialized before use, one filled in.
        unsafe {
            let mut set = std::mem::zeroed::<libc::sigset_t>();
            let mut old = std::mem::zeroed::<libc::sigset_t>();
            libc::sigemptyset(&mut set);
            libc::sigaddset(&mut set, libc::SIGXFSZ);
            libc::pthread_sigmask(libc::SIG_BLOCK, &set, &mut old);
            FileSizeShield {
                old,
                set,
                _not_send: std::marker::PhantomData,
            }
        }
    }
}

impl Default for FileSizeShield {
    fn default() -> Self {
        FileSizeShield::new()
    }
}

impl Drop for FileSizeShield {
    fn drop(&mut self) {
        let now = libc::timespec {
            tv_sec: 0,
            tv_nsec: 0,
        };
        // SAFETY: the sets and the time are live and initialized; no information is asked for.
        unsafe {
            libc::sigtimedwait(&self.set, std::ptr::null_mut(), &now);
            libc::pthread_sigmask(libc::SIG_SETMASK, &self.old, std::ptr::null_mut());
        }
    }
}

/// Nanoseconds of CLOCK_MONOTONIC, the clock of the packets' RX timestamps.
pub fn monotonic_ns() -> u64 {
    let mut time = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: `time` is live; CLOCK_MONOTONIC exists everywhere.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &mut time) };
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A ring is skipped if an earlier one is not cleared yet. What was done before it is visible after that clear.
    #[test]
    fn no_ring_is_lost() {
        const RINGS: u64 = 200_000;
        let bell = Doorbell::new().unwrap();
        let done = AtomicU64::new(0);
        std::thread::scope(|scope| {
            let ringer = scope.spawn(|| {
                for i in 1..=RINGS {
                    done.store(i, Ordering::Relaxed);
                    bell.ring();
                }
            });
            let mut seen = 0;
            while seen < RINGS {
                // Sleeps only if nothing was done since the last check.
                let woken = poll_readable(&[bell.fd()], Some(Duration::from_secs(10))).unwrap();
                assert!(
                    woken,
                    "of {RINGS} steps {seen} were seen, and no bell rings"
                );
                bell.clear();
                seen = done.load(Ordering::Relaxed);
            }
            // ThreadSanitizer sees a join, but not the end of a scope.
            ringer.join().unwrap();
        });
    }

    #[test]
    fn a_bell_that_is_heard_can_be_cleared() {
        const RINGS: u32 = 100_000;
        let bell = Doorbell::new().unwrap();
        let readable = |timeout| poll_readable(&[bell.fd()], Some(timeout)).unwrap();
        std::thread::scope(|scope| {
            let ringer = scope.spawn(|| (0..RINGS).for_each(|_| bell.ring()));
            // Also between the ringer's write and what it does after it.
            while !ringer.is_finished() {
                if readable(Duration::from_millis(1)) {
                    assert!(bell.clear());
                }
            }
            ringer.join().unwrap();
        });
        bell.clear();
        assert!(!readable(Duration::ZERO));
        assert!(!bell.clear(), "nobody rang");
        bell.ring();
        bell.ring();
        assert!(readable(Duration::ZERO));
        assert!(bell.clear(), "two rings are cleared at once");
        assert!(!bell.clear());
    }
}
