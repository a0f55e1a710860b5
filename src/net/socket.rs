//! The AF_XDP socket of a queue: opened with the best mode there is, and asked what it got.

#![forbid(unsafe_code)]

use std::time::{Duration, Instant};

use crate::error::{Error, Result};
use crate::log::{self, Level};
use crate::sys::shm::Shared;
use crate::sys::xsk::{Xsk, XskSetup};

/// Whether the NIC writes into the frames itself.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub enum ZeroCopy {
    /// Zero-copy where the driver can, else copy.
    #[default]
    Auto,
    Copy,
    Insist,
}

/// The kernel frees a queue some time after its last socket was closed.
const BUSY_RETRY: Duration = Duration::from_secs(1);

/// Opens a socket. `setup.zero_copy` is decided here. `EBUSY` (another socket holds the queue),
/// `EOPNOTSUPP` (zero-copy was insisted on), `ENOBUFS`/`ENOMEM` (RLIMIT_MEMLOCK), `EPERM`.
pub fn open(setup: &XskSetup, zero_copy: ZeroCopy, buffers: &Shared) -> Result<Xsk> {
    let ways: &[bool] = match zero_copy {
        ZeroCopy::Auto if setup.skb_mode => &[false],
        ZeroCopy::Auto => &[true, false],
        ZeroCopy::Copy => &[false],
        ZeroCopy::Insist => &[true],
    };
    let mut result = Err(Error::new(libc::EINVAL, "no way to open the socket"));
    for way in ways {
        let setup = XskSetup {
            zero_copy: *way,
            ..setup.clone()
        };
        result = open_patiently(&setup, buffers);
        match &result {
            Err(error) if *way && matches!(error.errno(), libc::EOPNOTSUPP | libc::EINVAL) => {
                log::log(Level::Info, format_args!("{error}"));
            }
            _ => break,
        }
    }
    result
}

fn open_patiently(setup: &XskSetup, buffers: &Shared) -> Result<Xsk> {
    let until = Instant::now() + BUSY_RETRY;
    let os = loop {
        match Xsk::open(setup, buffers.clone()) {
            Ok(xsk) => return Ok(xsk),
            Err(e) if e.raw_os_error() == Some(libc::EBUSY) && Instant::now() < until => {
                std::thread::sleep(Duration::from_millis(10));
            }
            Err(e) => break e,
        }
    };
    let error = Error::os(
        &os,
        format_args!(
            "opening an AF_XDP socket ({}) on queue {} of '{}'",
            if setup.zero_copy { "zero-copy" } else { "copy" },
            setup.queue,
            setup.ifname
        ),
    );
    Err(match os.raw_os_error() {
        Some(libc::EBUSY) => error.hint("another AF_XDP socket holds this queue"),
        Some(libc::EOPNOTSUPP) => error.hint("the driver cannot; take copy mode"),
        Some(libc::ENOBUFS | libc::ENOMEM) => {
            error.hint("raise RLIMIT_MEMLOCK (ulimit -l) or give CAP_IPC_LOCK")
        }
        Some(libc::EPERM) => error.hint("CAP_NET_RAW is needed (run as root)"),
        Some(libc::EAFNOSUPPORT) => error.hint("this kernel is built without CONFIG_XDP_SOCKETS"),
        _ => error,
    })
}
