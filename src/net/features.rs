//! What drivers do to packets before the XDP program sees them: they strip VLAN tags, and they merge datagrams.

#![forbid(unsafe_code)]

use std::fmt;

use super::attributes::{attributes, u32_at};
use super::link::Link;
use crate::error::Error;
use crate::log::{self, Level};
use crate::sys::bpf::Mode;
use crate::sys::ethtool::{self, Features};
use crate::sys::link::name_of;
use crate::sys::netlink::RouteSocket;

/// Features that move the tags of received packets out of the bytes into the socket buffer: the kernel's name, and the
/// name that `ethtool -K` uses.
const TAKE_TAGS: [(&str, &str); 2] = [
    ("rx-vlan-hw-parse", "rxvlan"),
    ("rx-vlan-stag-hw-parse", "rx-vlan-stag-hw-parse"),
];
/// Features that leave the tag of a sent packet in the socket buffer.
const LEAVE_TAGS: [(&str, &str); 2] = [
    ("tx-vlan-hw-insert", "txvlan"),
    ("tx-vlan-stag-hw-insert", "tx-vlan-stag-hw-insert"),
];
/// Drivers of interfaces whose packets come from another interface. There the kernel has stripped the tags and may
/// have merged datagrams.
const ABOVE_OTHERS: [&str; 6] = [
    "bridge",
    "bonding",
    "team",
    "macvlan",
    "ipvlan",
    "openvswitch",
];

fn is_above_others(link: &Link) -> bool {
    ethtool::driver(&link.name).is_ok_and(|driver| ABOVE_OTHERS.contains(&driver.as_str()))
}

/// Features of an interface that are on, and the command that turns them off.
struct On<'a> {
    interface: &'a str,
    features: Vec<&'static str>,
    /// Their names for `ethtool -K`, without those that cannot be turned off.
    words: Vec<&'static str>,
}

impl On<'_> {
    /// `None` if all are off, or if the interface does not report them.
    fn of<'a>(interface: &'a str, known: &[(&'static str, &'static str)]) -> Option<On<'a>> {
        let features = Features::of(interface).ok()?;
        let on = known.iter().filter_map(|(name, word)| {
            let feature = features.get(name).filter(|f| f.on)?;
            Some((*name, feature.changeable.then_some(*word)))
        });
        let (features, words): (Vec<_>, Vec<_>) = on.unzip();
        (!features.is_empty()).then(|| On {
            interface,
            features,
            words: words.into_iter().flatten().collect(),
        })
    }
}

impl fmt::Display for On<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.words.is_empty() {
            return write!(f, "the driver of '{}' does not allow that", self.interface);
        }
        write!(f, "ethtool -K {}", self.interface)?;
        self.words.iter().try_for_each(|w| write!(f, " {w} off"))
    }
}

/// The other end of a veth pair, if it is in this network namespace.
fn veth_peer(link: &Link) -> Option<String> {
    // linux/if_link.h
    const IFLA_LINK: u16 = 5;
    const IFLA_LINK_NETNSID: u16 = 37;
    /// struct nlmsghdr and struct ifinfomsg.
    const HEADERS: usize = 16 + 16;
    let socket = RouteSocket::open(link.index).ok()?;
    socket.ask(link.index).ok()?;
    let mut buffer = vec![0; 32 << 10];
    let len = socket.read(&mut buffer).ok()?;
    let (mut peer, mut elsewhere) = (None, false);
    for (kind, value) in attributes(buffer[..len].get(HEADERS..)?) {
        match kind {
            IFLA_LINK => peer = u32_at(value, 0),
            IFLA_LINK_NETNSID => elsewhere = true,
            _ => {}
        }
    }
    name_of(peer.filter(|_| !elsewhere)?)
}

/// Warns if packets arrive without the VLAN tags that they were sent with: neither the XDP program nor the stored data
/// has them then. `mode`: of the XDP program; `None` if the program is somebody else's.
pub fn warn_of_lost_tags(link: &Link, mode: Option<Mode>) {
    let name = &link.name;
    if ethtool::driver(name).is_ok_and(|driver| driver == "veth") {
        // The receiving side strips no tag: it gets a packet as the other end sent it.
        if let Some(peer) = veth_peer(link) {
            if let Some(on) = On::of(&peer, &LEAVE_TAGS) {
                log::log(
                    Level::Warn,
                    format_args!(
                        "interface '{name}': its peer '{peer}' leaves VLAN tags out of the bytes of the packets that it \
                         sends ({} on), so they are stored without; to keep the tags: {on}",
                        on.features.join(", "),
                    ),
                );
            }
        } else if let Some(on) = On::of(name, &TAKE_TAGS) {
            log::log(
                Level::Warn,
                format_args!(
                    "interface '{name}': VLAN tags may be left out of the bytes of received packets ({} on), which are \
                     stored without; to keep the tags: {on}, and in the network namespace of its peer: \
                     ethtool -K PEER txvlan off tx-vlan-stag-hw-insert off",
                    on.features.join(", "),
                ),
            );
        }
        return;
    }
    if is_above_others(link) && mode != Some(Mode::Native) {
        log::log(
            Level::Warn,
            format_args!(
                "interface '{name}' is above others: the kernel takes the VLAN tags out of packets before \
                 they come to it, so they are stored without; to keep the tags, record from the interface below, \
                 after: ethtool -K INTERFACE rxvlan off"
            ),
        );
    } else if let Some(on) = On::of(name, &TAKE_TAGS) {
        log::log(
            Level::Warn,
            format_args!(
                "interface '{name}' takes VLAN tags out of the packets that it receives ({} on), so they are stored \
                 without; to keep the tags: {on}",
                on.features.join(", "),
            ),
        );
    }
}

/// Whether a packet can be several merged datagrams, which is possible in socket buffers. A driver stops merging for
/// native XDP. But a tap interface runs the program on a socket buffer if its user sent several datagrams at once.
pub fn may_merge(link: &Link, mode: Mode) -> bool {
    mode == Mode::Skb || ethtool::driver(&link.name).is_ok_and(|driver| driver == "tun")
}

/// How to get single datagrams. The kernel itself merges nothing on an interface with a program in SKB mode.
fn apart(link: &Link) -> String {
    let below = match is_above_others(link) {
        true => "on the interfaces below it: ethtool -K INTERFACE gro off; and ",
        false => "",
    };
    format!("{below}where they are sent: ethtool -K DEV tx-udp-segmentation off")
}

/// Warns that the variant of the program that recognizes merged datagrams could not be loaded, and `why`.
pub fn warn_of_merging(link: &Link, why: Option<&Error>) {
    log::log(
        Level::Warn,
        format_args!(
            "interface '{}': several datagrams that the sender or the kernel merged into one packet (GSO, GRO) are stored \
             as one, and nothing tells: that takes kernel 6.2 or newer, and its BTF{}. To have each by itself: {}",
            link.name,
            why.map(|e| format!(" ({e})")).unwrap_or_default(),
            apart(link)
        ),
    );
}

/// Reports the first merged datagrams.
pub fn tell_merged(link: &Link, count: u64) {
    log::log(
        Level::Warn,
        format_args!(
            "interface '{}': {count} packet{} so far came as several datagrams merged into one (GSO at the sender, or GRO), \
             and went to the kernel's stack; xdp_merged counts them. To have each datagram by itself: {}",
            link.name,
            if count == 1 { "" } else { "s" },
            apart(link)
        ),
    );
}
