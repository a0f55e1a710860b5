//! Which CPU a thread runs on, and its end.

use std::io;
use std::mem::MaybeUninit;
use std::os::unix::thread::JoinHandleExt;
use std::thread::JoinHandle;
use std::time::Duration;

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

/// Waits until a thread has left the process, at most until a time of CLOCK_REALTIME. `false`: it has not, and runs on alone. What
/// it returns is lost.
///
/// A thread that has submitted to an io_uring leaves only when the kernel's workers have ended its writes.
pub fn join_until<T>(thread: JoinHandle<T>, until: Duration) -> bool {
    let thread = thread.into_pthread_t();
    let until = libc::timespec {
        tv_sec: until.as_secs() as libc::time_t,
        tv_nsec: until.subsec_nanos().into(),
    };
    // SAFETY: the handle was consumed, and so the thread was neither joined nor detached; a null pointer asks for no value; the
    // time is valid until the return.
    if unsafe { libc::pthread_timedjoin_np(thread, std::ptr::null_mut(), &until) } == 0 {
        return true;
    }
    // SAFETY: as above: it was not joined.
    unsafe { libc::pthread_detach(thread) };
    false
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc::channel;
    use std::time::SystemTime;

    #[test]
    fn a_thread_that_does_not_end_is_left_alone() {
        let now = || SystemTime::UNIX_EPOCH.elapsed().unwrap();
        assert!(join_until(
            std::thread::spawn(|| {}),
            now() + Duration::from_secs(20)
        ));
        let (end, waits) = channel::<()>();
        let (tell, told) = channel();
        let thread = std::thread::spawn(move || {
            let _ = waits.recv();
            tell.send(1).unwrap();
        });
        assert!(!join_until(thread, now() + Duration::from_millis(20)));
        drop(end);
        assert_eq!(told.recv_timeout(Duration::from_secs(20)), Ok(1));
    }
}
