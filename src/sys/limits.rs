//! Limits and privileges of this process.

use std::fs;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

/// A capability, by number and name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Capability(u32, &'static str);

pub const NET_ADMIN: Capability = Capability(12, "CAP_NET_ADMIN");
pub const NET_RAW: Capability = Capability(13, "CAP_NET_RAW");
pub const IPC_LOCK: Capability = Capability(14, "CAP_IPC_LOCK");
pub const SYS_ADMIN: Capability = Capability(21, "CAP_SYS_ADMIN");
pub const PERFMON: Capability = Capability(38, "CAP_PERFMON");
pub const BPF: Capability = Capability(39, "CAP_BPF");

/// Effective capabilities, one bit each. `None` if /proc cannot be read.
fn effective() -> Option<u64> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let hex = status
        .lines()
        .find_map(|line| line.strip_prefix("CapEff:"))?;
    u64::from_str_radix(hex.trim(), 16).ok()
}

pub fn has(capability: Capability) -> bool {
    effective().is_some_and(|caps| caps >> capability.0 & 1 != 0)
}

/// The names of those of `needed` that this process lacks.
pub fn missing(needed: &[Capability]) -> Vec<&'static str> {
    needed.iter().filter(|c| !has(**c)).map(|c| c.1).collect()
}

/// Describes which of `needed` this process lacks, or, if none, what else may forbid the call.
pub fn lacking(needed: &[Capability]) -> String {
    let names = |list: Vec<&Capability>| {
        let names: Vec<&str> = list.iter().map(|c| c.1).collect();
        names.join(", ")
    };
    let missing = needed.iter().filter(|c| !has(**c)).collect::<Vec<_>>();
    if missing.is_empty() {
        let all = names(needed.iter().collect());
        return format!(
            "this process has {all}: a user namespace other than the first, seccomp or an LSM may forbid it"
        );
    }
    format!(
        "this process lacks {} (run as root, or grant it)",
        names(missing)
    )
}

/// As `lacking`, for loading and attaching an XDP program.
pub fn lacking_for_xdp() -> String {
    if has(SYS_ADMIN) {
        return lacking(&[NET_ADMIN]);
    }
    format!(
        "{}; CAP_SYS_ADMIN includes the last two",
        lacking(&[NET_ADMIN, BPF, PERFMON])
    )
}

/// RLIMIT_MEMLOCK in bytes, or `None` if nothing limits this process: the limit is infinite, or the process has
/// CAP_IPC_LOCK in the initial user namespace (the kernel checks that one; a container's own does not count).
pub fn memlock() -> Option<u64> {
    let initial = fs::read_to_string("/proc/self/uid_map")
        .is_ok_and(|map| map.split_whitespace().eq(["0", "0", "4294967295"]));
    if has(IPC_LOCK) && initial {
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

/// Bytes that the contexts of this process have locked, as far as they are counted.
static LOCKED: AtomicU64 = AtomicU64::new(0);

pub fn locked_here() -> u64 {
    LOCKED.load(Ordering::Relaxed)
}

/// Adds to them if the sum stays within `limit`. `Err` has the bytes that are locked already.
pub fn add_locked(bytes: u64, limit: u64) -> Result<(), u64> {
    let sum = |there: u64| there.checked_add(bytes).filter(|sum| *sum <= limit);
    LOCKED
        .fetch_update(Ordering::Relaxed, Ordering::Relaxed, sum)
        .map(|_| ())
}

pub fn remove_locked(bytes: u64) {
    LOCKED.fetch_sub(bytes, Ordering::Relaxed);
}

/// The kernel releases locked memory some time after a socket or ring was closed, within this time.
const LATE: Duration = Duration::from_secs(2);
const LATE_PAUSE: Duration = Duration::from_millis(5);

/// Runs an attempt that locks memory. While it fails with `ENOMEM` or `ENOBUFS`, retries for at most two seconds: the
/// kernel may not have released earlier memory yet.
pub fn retry_locking<T>(mut attempt: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    let until = Instant::now() + LATE;
    loop {
        match attempt() {
            Err(e)
                if matches!(e.raw_os_error(), Some(libc::ENOMEM | libc::ENOBUFS))
                    && Instant::now() < until =>
            {
                thread::sleep(LATE_PAUSE);
            }
            result => return result,
        }
    }
}

/// The hint for when the kernel refuses `bytes` of locked memory although this process has room for them.
pub fn shortage(bytes: usize) -> String {
    let allowed = match memlock() {
        None => return format!("locking {bytes} bytes failed; free some memory"),
        Some(limit) => limit,
    };
    format!(
        "{bytes} bytes were to be locked, RLIMIT_MEMLOCK allows {allowed}, and the contexts of this process count {} with \
         them; other processes of this user count too: end those, raise RLIMIT_MEMLOCK (ulimit -l) or give CAP_IPC_LOCK",
        locked_here()
    )
}

/// Whether files may grow without limit (RLIMIT_FSIZE).
pub fn files_unlimited() -> bool {
    let mut limit = libc::rlimit {
        rlim_cur: 0,
        rlim_max: 0,
    };
    // SAFETY: `limit` is live.
    let rc = unsafe { libc::getrlimit(libc::RLIMIT_FSIZE, &mut limit) };
    rc == 0 && limit.rlim_cur == libc::RLIM_INFINITY
}

/// The smallest memory limit of this process's control groups in bytes, and the file that holds it. `None` if there is
/// none, or if the groups' files are not mounted in the usual place.
pub fn memory_cgroup() -> Option<(u64, String)> {
    let groups = fs::read_to_string("/proc/self/cgroup").ok()?;
    let mut least: Option<(u64, String)> = None;
    for line in groups.lines() {
        let mut fields = line.splitn(3, ':');
        let (_, controllers, path) = (fields.next()?, fields.next()?, fields.next()?);
        let (root, file) = match controllers {
            "" => ("/sys/fs/cgroup", "memory.max"),
            list if list.split(',').any(|c| c == "memory") => {
                ("/sys/fs/cgroup/memory", "memory.limit_in_bytes")
            }
            _ => continue,
        };
        // The parents' limits apply too.
        let mut group = std::path::Path::new(path);
        loop {
            let at = format!("{root}{}/{file}", group.display());
            // "max" is not a number, and means no limit.
            let limit = fs::read_to_string(&at)
                .ok()
                .and_then(|t| t.trim().parse().ok());
            if let Some(limit) = limit
                && least.as_ref().is_none_or(|(least, _)| limit < *least)
            {
                least = Some((limit, at));
            }
            match group.parent() {
                Some(parent) => group = parent,
                None => break,
            }
        }
    }
    least
}

/// Whether the process has privileges that its starter may lack (AT_SECURE). Its environment must not be trusted then.
pub fn is_secure_execution() -> bool {
    // SAFETY: takes and gives a number.
    unsafe { libc::getauxval(libc::AT_SECURE) != 0 }
}
