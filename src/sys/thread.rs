//! Which CPU a thread runs on.

use std::io;
use std::mem::MaybeUninit;
use std::os::unix::thread::JoinHandleExt;
use std::thread::JoinHandle;

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
