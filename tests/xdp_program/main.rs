//! The XDP program alone, packet by packet: the kernel runs it on bytes that the test hands over
//! (BPF_PROG_TEST_RUN), and every verdict, counter, metadata record and event is compared.
#![forbid(unsafe_code)]

#[path = "../common/mod.rs"]
mod common;

mod control;
mod events;
mod packets;
mod reference;
mod rig;
mod verdicts;

use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::time::Duration;

use common::{Veth, is_root, skip};
use etherparse::{
    IpFragOffset, IpNumber, Ipv4Header, Ipv6Header, PacketBuilder, SlicedPacket, TransportSlice,
    UdpHeader,
};
use packets::*;
use proptest::prelude::*;
use proptest::sample::Index;
use rig::*;
use unified::net::packet;
use unified::net::wire::{Event, META_LEN, Meta, XdpCounters};
use unified::net::xdp::{Xdp, XdpConfig, XdpMode};
use unified::sys::bpf::{Ingress, Variant as Program};
use unified::sys::event::{monotonic_ns, poll_readable};
use unified::sys::mmap::Mapping;
use unified::sys::shm::Shared;
use unified::sys::xsk::{BoundQueue, QueueSetup, Umem, UmemSetup};
const PORT: u16 = 9999;

// ---- The reference ----

/// Reads a packet by the RFCs and by what the library promises (two tags, four extension headers), in
/// other steps than the program: slices that get shorter, and no offsets.
fn reference(packet: &[u8], ports: &[u16]) -> Want {
    read(packet, ports).unwrap_or(Want::NotOurs)
}

fn number(bytes: &[u8]) -> usize {
    bytes.iter().fold(0, |n, b| n << 8 | usize::from(*b))
}

fn read(packet: &[u8], ports: &[u16]) -> Option<Want> {
    let (ethernet, mut rest) = packet.split_at_checked(ETH)?;
    let mut ether_type = number(&ethernet[12..]);
    let mut tags = Vec::new();
    while tags.len() < 2 && [0x8100, 0x88a8].contains(&ether_type) {
        let (tag, behind) = rest.split_at_checked(4)?;
        tags.push(number(&tag[..2]) as u16);
        ether_type = number(&tag[2..]);
        rest = behind;
    }
    let ip = rest;
    let ip_version = match (ether_type, ip.first()? >> 4) {
        (0x0800, 4) => 4,
        (0x86dd, 6) => 6,
        _ => return None,
    };
    let (addresses, ip_len, udp);
    if ip_version == 4 {
        let (header, _) = ip.split_at_checked(20)?;
        let header_len = usize::from(header[0] % 16) * 4;
        if header_len < 20 || header[9] != 17 {
            return None;
        }
        if number(&header[6..8]) & !0xc000 != 0 {
            return Some(Want::Fragment);
        }
        addresses = header[12..].split_at(4);
        ip_len = number(&header[2..4]);
        udp = ip.get(header_len..)?;
    } else {
        let (header, mut behind) = ip.split_at_checked(40)?;
        let mut next = header[6];
        for _ in 0..4 {
            if next == 44 {
                return Some(Want::Fragment);
            }
            if ![0, 43, 60].contains(&next) {
                break;
            }
            let (head, _) = behind.split_at_checked(2)?;
            next = head[0];
            // A header that reaches beyond the packet leaves nothing to read.
            behind = behind
                .get(8 + 8 * usize::from(head[1])..)
                .unwrap_or_default();
        }
        if next != 17 {
            return None;
        }
        addresses = header[8..].split_at(16);
        ip_len = 40 + number(&header[4..6]);
        udp = behind;
    }
    let (header, _) = udp.split_at_checked(8)?;
    let dst_port = number(&header[2..4]) as u16;
    if !ports.contains(&dst_port) {
        return None;
    }
    let udp_len = number(&header[4..6]);
    let before_udp = ip.len() - udp.len();
    if udp_len < 8 || before_udp + udp_len > ip_len || ip_len > ip.len() {
        return Some(Want::Malformed);
    }
    let wide = |from: &[u8]| {
        let mut wide = [0; 16];
        wide[..from.len()].copy_from_slice(from);
        wide
    };
    Some(Want::Ours(Flow {
        l3_offset: packet.len() - ip.len(),
        payload_offset: packet.len() - udp.len() + 8,
        payload_len: udp_len - 8,
        vlan_tci: tags.first().copied(),
        src_port: number(&header[..2]) as u16,
        dst_port,
        ip_version,
        src_addr: wide(addresses.0),
        dst_addr: wide(addresses.1),
    }))
}
