//! Limits of this process.

use std::fs;

const CAP_IPC_LOCK: u64 = 1 << 14;

/// RLIMIT_MEMLOCK in bytes, or `None` where nothing limits this process: unlimited, or CAP_IPC_LOCK in
/// the initial user namespace (the kernel asks there, so a container's own does not count).
pub fn memlock() -> Option<u64> {
    let capable = fs::read_to_string("/proc/self/status").is_ok_and(|status| {
        status
            .lines()
            .find_map(|line| line.strip_prefix("CapEff:"))
            .and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok())
            .is_some_and(|caps| caps & CAP_IPC_LOCK != 0)
    });
    let initial = fs::read_to_string("/proc/self/uid_map")
        .is_ok_and(|map| map.split_whitespace().eq(["0", "0", "4294967295"]));
    if capable && initial {
        return None;
    }
    let mut limit = libc::rlimit {
        rlim_cur: 0,
        rlim_max: 0,
    };
    // SAFETY: `limit` is live.
    let rc = unsafe { libc::getrlimit(libc::RLIMIT_MEMLOCK, &mut limit) };
    (rc == 0 && limit.rlim_cur != libc::RLIM_INFINITY).then_some(limit.rlim_cur)
}
