//! The AF_XDP socket of a queue: opened with the best mode there is, and asked what it got.

#![forbid(unsafe_code)]

use std::io;

use crate::error::{Error, Result};
use crate::log::{self, Level};
use crate::sys::limits;
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

/// Opens a socket. `setup.zero_copy` is decided here. `EBUSY` (another socket holds the queue),
/// `EOPNOTSUPP` (zero-copy was insisted on), `ENOBUFS`/`ENOMEM` (RLIMIT_MEMLOCK), `EPERM`.
pub fn open(setup: &XskSetup, zero_copy: ZeroCopy, buffers: &Shared) -> Result<Xsk> {
    let ways: &[Option<bool>] = match zero_copy {
        // A socket that was handed in cannot be bound a second time: the kernel chooses.
        ZeroCopy::Auto if setup.socket.is_some() => &[None],
        ZeroCopy::Auto if setup.skb_mode => &[Some(false)],
        ZeroCopy::Auto => &[Some(true), Some(false)],
        ZeroCopy::Copy => &[Some(false)],
        ZeroCopy::Insist => &[Some(true)],
    };
    let mut last = None;
    let refused = |way: Option<bool>, os: &io::Error| {
        let setup = XskSetup {
            zero_copy: way,
            ..setup.clone()
        };
        refusal(&setup, os, buffers.len())
    };
    for way in ways {
        // A UMEM for each way: where binding failed once, kernel 6.12 binds again, but the fill ring is lost and no
        // packet arrives. Locked memory that is given back late is waited for.
        let mut xsk = Xsk::new(setup, buffers.clone()).map_err(|os| refused(*way, &os))?;
        match xsk.bind(setup, *way).map_err(|os| refused(*way, &os)) {
            Ok(()) => return Ok(xsk),
            Err(error)
                if *way == Some(true)
                    && matches!(error.errno(), libc::EOPNOTSUPP | libc::EINVAL) =>
            {
                log::log(Level::Info, format_args!("{error}"));
                last = Some(error);
            }
            Err(error) => return Err(error),
        }
    }
    Err(last.unwrap_or_else(|| Error::new(libc::EINVAL, "no way to open the socket")))
}

/// What was tried, and what to do about the errno.
fn refusal(setup: &XskSetup, os: &io::Error, umem: usize) -> Error {
    let error = Error::os(
        os,
        format_args!(
            "opening an AF_XDP socket ({}) on queue {} of '{}'",
            match setup.zero_copy {
                Some(true) => "zero-copy",
                Some(false) => "copy",
                None => "handed in",
            },
            setup.queue,
            setup.ifname
        ),
    );
    match os.raw_os_error() {
        Some(libc::EBUSY) if setup.socket.is_some() => error
            .hint("another AF_XDP socket holds this queue, or the one handed in is bound already"),
        Some(libc::EBUSY) => error.hint("another AF_XDP socket holds this queue"),
        Some(libc::EBADF | libc::ENOTSOCK | libc::EINVAL) if setup.socket.is_some() => {
            error.hint("the descriptor handed in is no AF_XDP socket")
        }
        Some(libc::EOPNOTSUPP) => error.hint("the driver cannot; take copy mode"),
        Some(libc::ENOBUFS | libc::ENOMEM) => error.hint(limits::shortage(umem)),
        Some(libc::EPERM) => error.hint(limits::lacking(&[limits::NET_RAW])),
        Some(libc::EAFNOSUPPORT) => error.hint("this kernel is built without CONFIG_XDP_SOCKETS"),
        _ => error,
    }
}
