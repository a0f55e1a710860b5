//! The AF_XDP socket of a queue: opened with the best mode there is, and asked what it got.

#![forbid(unsafe_code)]

use std::io;
use std::os::fd::RawFd;

use crate::error::{Error, Result};
use crate::log::{self, Level};
use crate::sys::limits;
use crate::sys::shm::Shared;
use crate::sys::xsk::{BoundQueue, QueueSetup, Umem, UmemSetup};

/// Whether the NIC writes into the frames itself.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub enum ZeroCopy {
    /// Zero-copy if the driver supports it, else copy.
    #[default]
    Auto,
    Copy,
    Insist,
}

/// Makes a UMEM of the data buffers and binds a socket to each of the queues. `handed_in`: sockets to bind, as many as there
/// are queues; or none, and they are made here. `setup.zero_copy` and `setup.queue` are decided here.
///
/// `EBUSY` (another socket holds a queue), `EOPNOTSUPP` (zero-copy was insisted on), `ENOBUFS`/`ENOMEM` (RLIMIT_MEMLOCK), `EPERM`.
pub fn open(
    umem_setup: &UmemSetup,
    setup: &QueueSetup,
    queues: impl Iterator<Item = u32> + Clone,
    handed_in: &[RawFd],
    zero_copy: ZeroCopy,
    buffers: &Shared,
) -> Result<Vec<BoundQueue>> {
    let ways: &[Option<bool>] = match zero_copy {
        // A socket that was handed in cannot be bound a second time: the kernel chooses.
        ZeroCopy::Auto if !handed_in.is_empty() => &[None],
        ZeroCopy::Auto if setup.skb_mode => &[Some(false)],
        ZeroCopy::Auto => &[Some(true), Some(false)],
        ZeroCopy::Copy => &[Some(false)],
        ZeroCopy::Insist => &[Some(true)],
    };
    let mut last = None;
    for way in ways {
        let setup = QueueSetup {
            zero_copy: *way,
            ..setup.clone()
        };
        // A new UMEM for each way: after one failed bind, kernel 6.12 binds again but loses the fill ring, so that no
        // packet arrives.
        let bound = match handed_in.is_empty() {
            true => bind_all(umem_setup, &setup, queues.clone(), buffers),
            false => bind_each(umem_setup, &setup, queues.clone().zip(handed_in), buffers),
        };
        match bound {
            Ok(queues) => return Ok(queues),
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

fn bind_all(
    umem_setup: &UmemSetup,
    setup: &QueueSetup,
    queues: impl Iterator<Item = u32>,
    buffers: &Shared,
) -> Result<Vec<BoundQueue>> {
    let refused = |setup: &QueueSetup, os: &io::Error| refusal(setup, false, os, buffers.len());
    let umem = Umem::new(umem_setup, buffers.clone()).map_err(|os| refused(setup, &os))?;
    queues
        .map(|queue| {
            let setup = QueueSetup {
                queue,
                ..setup.clone()
            };
            umem.bind(&setup).map_err(|os| refused(&setup, &os))
        })
        .collect()
}

/// Binds sockets that were handed in. libxdp would make the sockets that share a UMEM itself, which takes CAP_NET_RAW, so each
/// of these has a UMEM of its own, of the same memory: a frame may go into the fill ring of any of them.
fn bind_each<'a>(
    umem_setup: &UmemSetup,
    setup: &QueueSetup,
    queues: impl Iterator<Item = (u32, &'a RawFd)>,
    buffers: &Shared,
) -> Result<Vec<BoundQueue>> {
    queues
        .map(|(queue, socket)| {
            let setup = QueueSetup {
                queue,
                ..setup.clone()
            };
            let umem_setup = UmemSetup {
                socket: Some(*socket),
                ..umem_setup.clone()
            };
            Umem::new(&umem_setup, buffers.clone())
                .and_then(|umem| umem.bind(&setup))
                .map_err(|os| refusal(&setup, true, &os, buffers.len()))
        })
        .collect()
}

/// What was tried, and what to do about the errno.
fn refusal(setup: &QueueSetup, handed_in: bool, os: &io::Error, umem: usize) -> Error {
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
        Some(libc::EBUSY) if handed_in => error
            .hint("another AF_XDP socket holds this queue, or the one handed in is bound already"),
        Some(libc::EBUSY) => error.hint("another AF_XDP socket holds this queue"),
        Some(libc::EBADF | libc::ENOTSOCK | libc::EINVAL) if handed_in => {
            error.hint("the descriptor handed in is not an AF_XDP socket")
        }
        Some(libc::EOPNOTSUPP) => error.hint("the driver does not support this; use copy mode"),
        Some(libc::ENOBUFS | libc::ENOMEM) => error.hint(limits::shortage(umem)),
        Some(libc::EPERM) => error.hint(limits::lacking(&[limits::NET_RAW])),
        Some(libc::EAFNOSUPPORT) => error.hint("this kernel is built without CONFIG_XDP_SOCKETS"),
        _ => error,
    }
}
