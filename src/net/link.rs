//! Looks an interface up before anything is attached to it.

#![forbid(unsafe_code)]

use std::fs;
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};

/// An interface that exists and is up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Link {
    pub name: String,
    pub index: u32,
    /// Receive queues.
    pub rx_queues: u32,
}

fn sysfs(name: &str) -> PathBuf {
    Path::new("/sys/class/net").join(name)
}

/// Looks an interface up. `ENODEV` (no such interface), `EPROTONOSUPPORT` (no Ethernet headers),
/// `ENETDOWN`, `EINVAL` (no such queue).
///
/// Uses sysfs, which may be mounted for another network namespace (`ip netns exec` mounts its own), so the index comes
/// from the caller's namespace itself.
pub fn look_up(name: &str, queue: u32) -> Result<Link> {
    let bad = name.is_empty() || name.len() > 15 || name.contains(['/', ' ', '\0']);
    let index = if bad {
        None
    } else {
        crate::sys::link::index_of(name)
    };
    let Some(index) = index else {
        return Err(Error::new(
            libc::ENODEV,
            format!("interface '{name}' does not exist in this network namespace; see 'ip link'"),
        ));
    };
    match crate::sys::link::hardware_type(name) {
        // If the number is not known, the kernel decides.
        None | Some(libc::ARPHRD_ETHER | libc::ARPHRD_LOOPBACK) => {}
        Some(other) => {
            return Err(Error::new(
                libc::EPROTONOSUPPORT,
                format!(
                    "interface '{name}' has no Ethernet headers (its ARPHRD type is {other}; tun, ppp and tunnels have \
                     such), and no packet would match; take an Ethernet interface, for example the one below the tunnel"
                ),
            ));
        }
    }
    if !crate::sys::link::is_up(name) {
        return Err(Error::new(
            libc::ENETDOWN,
            format!("interface '{name}' is down; bring it up with 'ip link set {name} up'"),
        ));
    }
    let rx_queues = count_rx_queues(name);
    if queue >= rx_queues {
        return Err(Error::new(
            libc::EINVAL,
            format!(
                "interface '{name}' has {rx_queues} receive queue{}, numbered from 0; queue {queue} does not exist",
                if rx_queues == 1 { "" } else { "s" }
            ),
        ));
    }
    Ok(Link {
        name: name.into(),
        index,
        rx_queues,
    })
}

fn count_rx_queues(name: &str) -> u32 {
    if let Some(channels) = crate::sys::link::rx_channels(name) {
        return channels;
    }
    let entries = fs::read_dir(sysfs(name).join("queues"));
    let rx = |e: fs::DirEntry| e.file_name().to_string_lossy().starts_with("rx-");
    entries
        .map_or(1, |all| {
            all.flatten()
                .filter(|e| !e.path().is_file())
                .map(rx)
                .filter(|x| *x)
                .count() as u32
        })
        .max(1)
}
