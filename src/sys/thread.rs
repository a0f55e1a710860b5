//! Which CPU a thread runs on, and its end.

use std::io;
use std::mem::MaybeUninit;
use std::os::unix::thread::JoinHandleExt;
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// Between two looks at a thread that is to end.
const TICK: Duration = Duration::from_millis(100);
/// The kernel may keep a thread this long that has run its last line.
const PATIENCE: Duration = Duration::from_secs(1);

/// Binds a thread to a CPU. `EINVAL` if there is no such CPU, or if this process may not use it.
pub fn pin<T>(thread: &JoinHandle<T>, cpu: u32) -> io::Result<()> {
    if cpu >= libc::CPU_SETSIZE as u32 {
        return Err(io::Error::from_raw_os_error(libc::EINVAL));
    }
    let mut set = MaybeUninit::<libc::cpu_set_t>::zeroed();
    // SAFETY: zero is a value of the set, which is an array of integers; the CPU lies in it, as was checked.
    let set = unsafe {
        libc::CPU_SET(cpu as usize, set.assume_init_mut());
        set.assume_init()
    };
    // SAFETY: the handle is live and was neither joined nor detached, so its thread's id is valid; the set lives until the
    // return.
    let errno = unsafe {
        libc::pthread_setaffinity_np(thread.as_pthread_t(), size_of::<libc::cpu_set_t>(), &set)
    };
    match errno {
        0 => Ok(()),
        errno => Err(io::Error::from_raw_os_error(errno)),
    }
}

/// Waits for a thread. If all of it `is_over`, and the kernel does not let it go, it is left to itself and ends when it can:
/// `false`. (A thread that gave io_uring a write to a file system that does not answer.)
pub fn join_or_leave(thread: JoinHandle<()>, is_over: impl Fn() -> bool) -> bool {
    let id = thread.into_pthread_t();
    let mut over: Option<Instant> = None;
    loop {
        let until = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default()
            + TICK;
        let until = libc::timespec {
            tv_sec: until.as_secs() as libc::time_t,
            tv_nsec: until.subsec_nanos().into(),
        };
        // SAFETY: the handle was taken above, so nobody else joins or detaches its thread, and neither has happened: both end
        // the loop. No result is asked for, and the time lives until the return.
        let errno = unsafe { libc::pthread_timedjoin_np(id, std::ptr::null_mut(), &until) };
        if errno != libc::ETIMEDOUT {
            return true;
        }
        if is_over() && over.get_or_insert_with(Instant::now).elapsed() >= PATIENCE {
            // SAFETY: as above.
            unsafe { libc::pthread_detach(id) };
            return false;
        }
    }
}
