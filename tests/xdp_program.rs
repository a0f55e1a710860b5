//! The XDP program alone, packet by packet: the kernel runs it on bytes that the test hands over
//! (BPF_PROG_TEST_RUN), and every verdict, counter, metadata record and event is compared.
#![forbid(unsafe_code)]

mod common;

use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::time::Duration;

use common::{Veth, is_root, skip};
use etherparse::{
    EtherType, Ethernet2Header, IpFragOffset, IpNumber, Ipv4Header, Ipv6Header, PacketBuilder,
    SingleVlanHeader, SlicedPacket, TransportSlice, UdpHeader, VlanId,
};
use proptest::prelude::*;
use proptest::sample::Index;
use unified::net::packet;
use unified::net::wire::{Event, META_LEN, Meta, XdpCounters};
use unified::net::xdp::{Xdp, XdpConfig, XdpMode};
use unified::sys::bpf::{Ingress, Variant as Program};
use unified::sys::event::{monotonic_ns, poll_readable};
use unified::sys::mmap::Mapping;
use unified::sys::shm::Shared;
use unified::sys::xsk::{BoundQueue, QueueSetup, Umem, UmemSetup};

const XDP_PASS: u32 = 2;
const XDP_REDIRECT: u32 = 4;
const ETH: usize = 14;
const PORT: u16 = 9999;
const SOURCE_PORT: u16 = 4321;
const V4: ([u8; 4], [u8; 4]) = ([10, 1, 2, 3], [192, 168, 4, 5]);
const V6: ([u8; 16], [u8; 16]) = (
    [0xfd, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15],
    [
        0xfd, 31, 30, 29, 28, 27, 26, 25, 24, 23, 22, 21, 20, 19, 18, 17,
    ],
);

// ---- The program, with a socket behind it ----

struct Rig {
    xdp: Xdp,
    // Both only have to live as long as the program's map may name them.
    _socket: BoundQueue,
    veth: Veth,
    counted: XdpCounters,
}

/// What one packet caused.
#[derive(Debug)]
struct Outcome {
    verdict: u32,
    counted: XdpCounters,
    /// Between the start of the run and its end, in ns.
    between: (u64, u64),
    meta: Option<Meta>,
    events: Vec<Event>,
}

fn config() -> XdpConfig {
    XdpConfig {
        ports: vec![PORT],
        mode: XdpMode::Auto,
        run_priority: 50,
        event_sample: 1,
        events_bytes: 4096,
    }
}

const NATIVE: Program = Program {
    metadata: true,
    merged: false,
};

impl Rig {
    fn without_socket(config: &XdpConfig, program: Program) -> Rig {
        let veth = Veth::new();
        let umem = UmemSetup {
            frame_size: 2048,
            headroom: 0,
            fill_size: 64,
            socket: None,
        };
        let queue = QueueSetup {
            ifname: veth.host.clone(),
            queue: 0,
            rx_size: 64,
            zero_copy: Some(false),
            skb_mode: true,
        };
        let len = 64 * 2048;
        let memory = Arc::new(Mapping::anonymous(len, false).unwrap());
        Rig {
            xdp: Xdp::load_as(config, program).unwrap(),
            _socket: Umem::new(&umem, Shared::new(memory, 0, len).unwrap())
                .and_then(|umem| umem.bind(&queue))
                .unwrap(),
            veth,
            counted: XdpCounters::default(),
        }
    }

    fn new(config: &XdpConfig) -> Rig {
        Rig::running(config, NATIVE)
    }

    fn running(config: &XdpConfig, program: Program) -> Rig {
        let mut rig = Rig::without_socket(config, program);
        rig.insert_socket();
        rig
    }

    fn insert_socket(&mut self) {
        self.xdp
            .insert_socket(0, self._socket.socket.as_raw_fd())
            .unwrap();
    }

    fn run(&mut self, packet: &[u8]) -> Outcome {
        self.run_from(packet, None)
    }

    /// Also checks what holds for every packet: one verdict, counted once, and the packet unchanged.
    fn run_from(&mut self, packet: &[u8], ingress: Option<Ingress>) -> Outcome {
        let mut out = Vec::new();
        let start = monotonic_ns();
        let verdict = self.xdp.run(packet, ingress, &mut out).unwrap();
        let between = (start, monotonic_ns());
        let meta = match verdict {
            XDP_PASS => {
                assert_eq!(out, packet, "a passed packet is left as it was");
                None
            }
            XDP_REDIRECT => {
                assert_eq!(&out[META_LEN..], packet, "behind its record");
                let meta = Meta::parse(out[..META_LEN].try_into().unwrap());
                assert!(meta.is_some(), "no markers in {:x?}", &out[..META_LEN]);
                meta
            }
            other => panic!("verdict {other} for {packet:x?}"),
        };
        let now = self.xdp.counters().unwrap();
        let counted = difference(&now, &self.counted);
        self.counted = now;
        assert_eq!(now.seen, now.passed + now.redirected, "{now:?}");
        assert_eq!(
            (counted.seen, counted.passed, counted.redirected),
            (
                1,
                u64::from(verdict == XDP_PASS),
                u64::from(verdict == XDP_REDIRECT)
            ),
        );
        let mut events = Vec::new();
        let drained = self
            .xdp
            .drain_events(usize::MAX >> 1, |event| events.push(*event))
            .unwrap();
        assert_eq!(drained, events.len());
        Outcome {
            verdict,
            counted,
            between,
            meta,
            events,
        }
    }

    /// Runs a packet through a program that logs every event, and compares everything with `want`.
    fn check(&mut self, packet: &[u8], want: &Want, context: &str) {
        let got = self.run(packet);
        let mut counted = XdpCounters {
            seen: 1,
            passed: 1,
            ..XdpCounters::default()
        };
        match want {
            Want::NotOurs => {}
            Want::Fragment => counted.fragments = 1,
            Want::Malformed => counted.malformed = 1,
            Want::Ours(_) => {
                counted = XdpCounters {
                    seen: 1,
                    redirected: 1,
                    matched: 1,
                    events: 1,
                    ..XdpCounters::default()
                }
            }
        }
        assert_eq!(got.counted, counted, "{context}: {packet:x?}");
        let Want::Ours(flow) = want else {
            assert_eq!(got.verdict, XDP_PASS, "{context}");
            assert_eq!(got.events, [], "{context}");
            return;
        };
        assert_eq!(got.verdict, XDP_REDIRECT, "{context}");
        let timestamp = got.meta.unwrap().timestamp;
        assert!(
            (got.between.0..=got.between.1).contains(&timestamp),
            "{context}: {timestamp} is not in {:?}",
            got.between
        );
        let meta = Meta {
            timestamp,
            payload_offset: flow.payload_offset as u16,
            payload_len: flow.payload_len as u16,
            l3_offset: flow.l3_offset as u16,
            vlan_tci: flow.vlan_tci,
            src_port: flow.src_port,
            dst_port: flow.dst_port,
            ip_version: flow.ip_version,
        };
        assert_eq!(got.meta, Some(meta), "{context}");
        let event = Event {
            timestamp,
            src_addr: flow.src_addr,
            dst_addr: flow.dst_addr,
            src_port: flow.src_port,
            dst_port: flow.dst_port,
            payload_len: flow.payload_len as u16,
            vlan_tci: flow.vlan_tci,
            queue: 0,
            ip_version: flow.ip_version,
        };
        assert_eq!(got.events, [event], "{context}");
    }
}

fn difference(now: &XdpCounters, before: &XdpCounters) -> XdpCounters {
    XdpCounters {
        seen: now.seen - before.seen,
        passed: now.passed - before.passed,
        redirected: now.redirected - before.redirected,
        matched: now.matched - before.matched,
        no_socket: now.no_socket - before.no_socket,
        malformed: now.malformed - before.malformed,
        fragments: now.fragments - before.fragments,
        events: now.events - before.events,
        events_lost: now.events_lost - before.events_lost,
        no_metadata: now.no_metadata - before.no_metadata,
        merged: now.merged - before.merged,
    }
}

// ---- Packets ----

#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Flow {
    l3_offset: usize,
    payload_offset: usize,
    payload_len: usize,
    vlan_tci: Option<u16>,
    src_port: u16,
    dst_port: u16,
    ip_version: u8,
    src_addr: [u8; 16],
    dst_addr: [u8; 16],
}

/// What must become of a packet.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Want {
    NotOurs,
    Fragment,
    Malformed,
    Ours(Flow),
}

#[derive(Debug, Clone)]
struct Variant {
    name: String,
    packet: Vec<u8>,
    want: Want,
    /// Bytes that must be there for it to be redirected: up to the end of the IP packet.
    whole: usize,
}

/// VLAN tags: EtherType of the tag, and what it carries.
type Tags<'a> = &'a [(u16, u16)];
const Q: u16 = 0x8100;
const AD: u16 = 0x88a8;

fn ethernet(tags: Tags, ether_type: u16, l3: &[u8]) -> Vec<u8> {
    let mut types = tags.iter().map(|tag| tag.0).chain([ether_type]);
    let header = Ethernet2Header {
        source: [2, 0, 0, 0, 0, 1],
        destination: [2, 0, 0, 0, 0, 2],
        ether_type: EtherType(types.next().unwrap()),
    };
    let mut packet = header.to_bytes().to_vec();
    for (tag, next) in tags.iter().zip(types) {
        let header = SingleVlanHeader {
            pcp: ((tag.1 >> 13) as u8).try_into().unwrap(),
            drop_eligible_indicator: tag.1 & 0x1000 != 0,
            vlan_id: VlanId::try_new(tag.1 & 0xfff).unwrap(),
            ether_type: EtherType(next),
        };
        packet.extend(header.to_bytes());
    }
    packet.extend(l3);
    packet
}

fn udp(port: u16, payload: &[u8]) -> Vec<u8> {
    let header = UdpHeader {
        source_port: SOURCE_PORT,
        destination_port: port,
        length: 8 + payload.len() as u16,
        checksum: 0,
    };
    [&header.to_bytes()[..], payload].concat()
}

fn ipv4_header(option_words: usize, protocol: IpNumber, l4_len: usize) -> Ipv4Header {
    let mut header = Ipv4Header::new(0, 64, protocol, V4.0, V4.1).unwrap();
    // No-operation options: what a parser must step over.
    header.options = vec![1; option_words * 4].as_slice().try_into().unwrap();
    header.total_len = (header.header_len() + l4_len) as u16;
    header.header_checksum = header.calc_header_checksum();
    header
}

fn ipv4(option_words: usize, protocol: IpNumber, l4: &[u8]) -> Vec<u8> {
    let header = ipv4_header(option_words, protocol, l4.len());
    [&header.to_bytes()[..], l4].concat()
}

/// `extensions`: their protocol numbers and lengths in units of 8 bytes, in order.
fn ipv6(extensions: &[(u8, u8)], protocol: IpNumber, l4: &[u8]) -> Vec<u8> {
    let mut rest = Vec::new();
    let types = extensions.iter().map(|e| e.0).chain([protocol.0]);
    for ((_, len), next) in extensions.iter().zip(types.clone().skip(1)) {
        rest.extend([next, len - 1]);
        // A padding option over the rest (or a routing header of type 1: nobody here looks).
        rest.extend([1, len * 8 - 4]);
        rest.resize(rest.len() + usize::from(*len) * 8 - 4, 0);
    }
    rest.extend(l4);
    let header = Ipv6Header {
        payload_length: rest.len() as u16,
        next_header: IpNumber(types.clone().next().unwrap()),
        hop_limit: 64,
        source: V6.0,
        destination: V6.1,
        ..Ipv6Header::default()
    };
    [&header.to_bytes()[..], &rest].concat()
}

fn flow(tags: Tags, ip_version: u8, l3_headers: usize, port: u16, payload_len: usize) -> Flow {
    let l3_offset = ETH + 4 * tags.len();
    let wide = |short: [u8; 4]| {
        let mut wide = [0; 16];
        wide[..4].copy_from_slice(&short);
        wide
    };
    Flow {
        l3_offset,
        payload_offset: l3_offset + l3_headers + 8,
        payload_len,
        vlan_tci: tags.first().map(|tag| tag.1),
        src_port: SOURCE_PORT,
        dst_port: port,
        ip_version,
        src_addr: if ip_version == 4 { wide(V4.0) } else { V6.0 },
        dst_addr: if ip_version == 4 { wide(V4.1) } else { V6.1 },
    }
}

fn data(len: usize) -> Vec<u8> {
    common::payload(len as u32, len)
}

const TAGS: [(&str, Tags); 4] = [
    ("untagged", &[]),
    ("802.1Q", &[(Q, 0xa123)]),
    ("802.1Q with VLAN 0", &[(Q, 0)]),
    ("QinQ", &[(AD, 0x7064), (Q, 0x00c8)]),
];

/// Packets that must reach the socket.
fn ours() -> Vec<Variant> {
    let mut all = Vec::new();
    let mut add = |name: String, packet: Vec<u8>, flow: Flow| {
        all.push(Variant {
            name,
            whole: packet.len(),
            packet,
            want: Want::Ours(flow),
        });
    };
    for (name, tags) in TAGS {
        for len in [0, 1, 18, 100] {
            let packet = ethernet(
                tags,
                0x0800,
                &ipv4(0, IpNumber::UDP, &udp(PORT, &data(len))),
            );
            add(
                format!("IPv4, {name}, {len} bytes"),
                packet,
                flow(tags, 4, 20, PORT, len),
            );
            let packet = ethernet(
                tags,
                0x86dd,
                &ipv6(&[], IpNumber::UDP, &udp(PORT, &data(len))),
            );
            add(
                format!("IPv6, {name}, {len} bytes"),
                packet,
                flow(tags, 6, 40, PORT, len),
            );
        }
        for words in 1..=10 {
            let l3 = ipv4(words, IpNumber::UDP, &udp(PORT, &data(33)));
            add(
                format!("IPv4, IHL {}, {name}", 5 + words),
                ethernet(tags, 0x0800, &l3),
                flow(tags, 4, 20 + words * 4, PORT, 33),
            );
        }
    }
    for extensions in [
        &[(0u8, 1u8)][..],
        &[(43, 1)],
        &[(60, 1)],
        &[(0, 3)],
        &[(0, 1), (60, 2), (43, 1), (60, 1)],
    ] {
        for (name, tags) in TAGS {
            let l3 = ipv6(extensions, IpNumber::UDP, &udp(PORT, &data(20)));
            let len: usize = extensions.iter().map(|e| usize::from(e.1) * 8).sum();
            add(
                format!("IPv6 with {extensions:?}, {name}"),
                ethernet(tags, 0x86dd, &l3),
                flow(tags, 6, 40 + len, PORT, 20),
            );
        }
    }
    let mut dont_fragment = ipv4(0, IpNumber::UDP, &udp(PORT, &data(9)));
    dont_fragment[6] = 0x40;
    add(
        "IPv4 with don't-fragment".into(),
        ethernet(&[], 0x0800, &dont_fragment),
        flow(&[], 4, 20, PORT, 9),
    );
    for (ether_type, l3, version, header) in [
        (0x0800, ipv4(0, IpNumber::UDP, &udp(PORT, &data(3))), 4, 20),
        (
            0x86dd,
            ipv6(&[], IpNumber::UDP, &udp(PORT, &data(3))),
            6,
            40,
        ),
    ] {
        let mut padded = ethernet(&[], ether_type, &l3);
        let whole = padded.len();
        padded.resize(whole + 15, 0xee);
        all.push(Variant {
            name: format!("IPv{version} in an Ethernet frame with padding"),
            packet: padded,
            want: Want::Ours(flow(&[], version, header, PORT, 3)),
            whole,
        });
        // RFC 768 leaves the bytes between the datagram's end and the packet's undefined.
        let mut surplus = ethernet(&[], ether_type, &l3);
        surplus[ETH + header + 5] -= 2;
        all.push(Variant {
            name: format!("IPv{version} with a datagram shorter than the packet"),
            packet: surplus,
            want: Want::Ours(flow(&[], version, header, PORT, 1)),
            whole,
        });
    }
    all
}

/// Packets that the stack must get, and why.
fn not_ours() -> Vec<Variant> {
    let mut all = Vec::new();
    let mut add = |name: &str, packet: Vec<u8>, want: Want| {
        all.push(Variant {
            name: name.into(),
            whole: packet.len(),
            packet,
            want,
        });
    };
    let built = |port| udp(port, &data(40));
    let four = |l4: &[u8]| ethernet(&[], 0x0800, &ipv4(0, IpNumber::UDP, l4));
    let six = |l4: &[u8]| ethernet(&[], 0x86dd, &ipv6(&[], IpNumber::UDP, l4));
    for port in [0, 1, 9998, 10000, 0x0f27, 65535] {
        add("IPv4, other port", four(&built(port)), Want::NotOurs);
        add("IPv6, other port", six(&built(port)), Want::NotOurs);
    }
    let three = [(AD, 1), (Q, 2), (Q, 3)];
    let l3 = ipv4(0, IpNumber::UDP, &built(PORT));
    add("three tags", ethernet(&three, 0x0800, &l3), Want::NotOurs);
    for ether_type in [0x0806, 0x86dd, 0x8847, 0x0100, 0] {
        add(
            "IPv4 under another EtherType",
            ethernet(&[], ether_type, &l3),
            Want::NotOurs,
        );
    }
    add(
        "IPv6 as IPv4",
        ethernet(&[], 0x0800, &ipv6(&[], IpNumber::UDP, &built(PORT))),
        Want::NotOurs,
    );
    for protocol in [0, 1, 6, 47, 58, 132, 136] {
        let l3 = ipv4(0, IpNumber(protocol), &built(PORT));
        add("IPv4, no UDP", ethernet(&[], 0x0800, &l3), Want::NotOurs);
    }
    for protocol in [1, 6, 50, 51, 58, 59, 135, 136] {
        let l3 = ipv6(&[(60, 1)], IpNumber(protocol), &built(PORT));
        add("IPv6, no UDP", ethernet(&[], 0x86dd, &l3), Want::NotOurs);
    }
    let five = [(60, 1), (60, 1), (60, 1), (60, 1), (60, 1)];
    add(
        "IPv6 with five extension headers",
        ethernet(&[], 0x86dd, &ipv6(&five, IpNumber::UDP, &built(PORT))),
        Want::NotOurs,
    );
    for ihl in 0..5u8 {
        let mut packet = four(&built(PORT));
        packet[ETH] = 0x40 | ihl;
        add("IPv4 with a short IHL", packet, Want::NotOurs);
    }
    for version in [0, 5, 6, 15u8] {
        let mut packet = four(&built(PORT));
        packet[ETH] = version << 4 | 5;
        add("IPv4 of another version", packet, Want::NotOurs);
    }

    let eth = || PacketBuilder::ethernet2([2; 6], [4; 6]);
    let mut tcp = Vec::new();
    eth()
        .ipv4(V4.0, V4.1, 64)
        .tcp(SOURCE_PORT, PORT, 1, 1024)
        .write(&mut tcp, &data(30))
        .unwrap();
    add("TCP", tcp, Want::NotOurs);
    let mut icmp = Vec::new();
    eth()
        .ipv4(V4.0, V4.1, 64)
        .icmpv4_echo_request(1, 2)
        .write(&mut icmp, &data(30))
        .unwrap();
    add("ICMP", icmp, Want::NotOurs);
    let mut icmp6 = Vec::new();
    eth()
        .ipv6(V6.0, V6.1, 64)
        .icmpv6_echo_request(1, 2)
        .write(&mut icmp6, &data(30))
        .unwrap();
    add("ICMPv6", icmp6, Want::NotOurs);
    let arp = [
        &[0, 1, 8, 0, 6, 4, 0, 1, 2, 0, 0, 0, 0, 1, 10, 1, 2, 3][..],
        &[0, 0, 0, 0, 0, 0, 192, 168, 4, 5],
    ];
    add("ARP", ethernet(&[], 0x0806, &arp.concat()), Want::NotOurs);

    for (name, more, offset) in [
        ("first fragment", true, 0),
        ("middle fragment", true, 185),
        ("last fragment", false, 370),
        ("last possible fragment", false, 0x1fff),
    ] {
        let l4 = built(PORT);
        let mut header = ipv4_header(0, IpNumber::UDP, l4.len());
        header.more_fragments = more;
        header.fragment_offset = IpFragOffset::try_new(offset).unwrap();
        let l3 = [&header.to_bytes()[..], &l4].concat();
        add(name, ethernet(&[], 0x0800, &l3), Want::Fragment);
    }
    for (name, before) in [
        ("IPv6 fragment", &[][..]),
        ("IPv6 fragment behind options", &[(0, 1), (60, 1)]),
    ] {
        let chain = [before, &[(44, 1)]].concat();
        let l3 = ipv6(&chain, IpNumber::UDP, &built(PORT));
        add(name, ethernet(&[(Q, 5)], 0x86dd, &l3), Want::Fragment);
    }

    for (name, length) in [
        ("UDP length zero", 0u16),
        ("UDP length below its header", 7),
        ("UDP length one too long", 49),
        ("UDP length far too long", 65535),
    ] {
        let mut l4 = built(PORT);
        l4[4..6].copy_from_slice(&length.to_be_bytes());
        add(name, four(&l4), Want::Malformed);
        add(name, six(&l4), Want::Malformed);
    }
    for (name, total) in [
        ("IPv4 length zero", 0u16),
        ("IPv4 length below its header", 19),
        ("IPv4 length one too short", 67),
        ("IPv4 packet one longer than its frame", 69),
        ("IPv4 packet far longer than its frame", 65535),
    ] {
        let mut packet = four(&built(PORT));
        packet[ETH + 2..ETH + 4].copy_from_slice(&total.to_be_bytes());
        add(name, packet, Want::Malformed);
    }
    for (name, length) in [
        ("IPv6 payload length zero", 0u16),
        ("IPv6 payload one too short", 47),
        ("IPv6 packet one longer than its frame", 49),
        ("IPv6 packet far longer than its frame", 65535),
    ] {
        let mut packet = six(&built(PORT));
        packet[ETH + 4..ETH + 6].copy_from_slice(&length.to_be_bytes());
        add(name, packet, Want::Malformed);
    }
    all
}

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

/// What another library reads: the UDP payload of a packet that it takes for unfragmented UDP to our port.
/// `None` where its view and ours may differ: it fills in lengths that are zero, and knows other headers.
fn by_etherparse(packet: &[u8]) -> Option<&[u8]> {
    let sliced = SlicedPacket::from_ethernet(packet).ok()?;
    let Some(TransportSlice::Udp(udp)) = &sliced.transport else {
        return None;
    };
    let tags = sliced.vlan_ids().len();
    // It also knows 0x9100 and MACsec.
    let known = |tag: &[u8]| matches!(number(&tag[..2]), 0x8100 | 0x88a8);
    let two_tags_at_most = tags == sliced.link_exts.len()
        && tags <= 2
        && packet[12..].chunks_exact(4).take(tags).all(known);
    let ip = &packet[ETH + 4 * tags..];
    // An IPv4 packet here, or an IPv6 one with a length and UDP directly behind its header.
    let plain = match ip[0] >> 4 {
        4 => ip[9] == 17,
        _ => ip[6] == 17 && number(&ip[4..6]) > 0,
    };
    let ours = udp.destination_port() == PORT && udp.length() > 0;
    (two_tags_at_most && plain && ours && !sliced.is_ip_payload_fragmented()).then(|| udp.payload())
}

// ---- Tests ----

#[test]
fn every_kind_of_packet_gets_its_verdict_record_and_event() {
    if !is_root("every_kind_of_packet_gets_its_verdict_record_and_event") {
        return;
    }
    let mut rig = Rig::new(&config());
    for Variant {
        name, packet, want, ..
    } in ours().iter().chain(&not_ours())
    {
        rig.check(packet, want, name);
        assert_eq!(&reference(packet, &[PORT]), want, "the reference: {name}");
        let parsed = packet::parse(packet).ok();
        assert_eq!(
            parsed.map(|h| (h.payload_offset.into(), h.payload_len.into(), h.vlan_tci)),
            match want {
                Want::Ours(f) => Some((f.payload_offset, f.payload_len, f.vlan_tci)),
                // The library's own parser leaves the port to its caller.
                _ => parsed.map(|h| {
                    assert_ne!(h.dst_port, PORT, "user space: {name}");
                    (h.payload_offset.into(), h.payload_len.into(), h.vlan_tci)
                }),
            },
            "user space: {name}"
        );
    }
}

#[test]
fn a_look_for_merged_datagrams_finds_none_among_single_ones() {
    let name = "a_look_for_merged_datagrams_finds_none_among_single_ones";
    if !is_root(name) {
        return;
    }
    let symbols = std::fs::read_to_string("/proc/kallsyms").unwrap();
    if !symbols.contains(" bpf_rdonly_cast\n") {
        return skip(name, "it takes kernel 6.2 or newer");
    }
    let looking = Program {
        metadata: true,
        merged: true,
    };
    let mut rig = Rig::running(&config(), looking);
    for variant in ours().into_iter().chain(not_ours()) {
        rig.check(&variant.packet, &variant.want, &variant.name);
    }
}

#[test]
fn a_packet_that_is_cut_anywhere_is_never_redirected() {
    if !is_root("a_packet_that_is_cut_anywhere_is_never_redirected") {
        return;
    }
    let mut rig = Rig::new(&config());
    for variant in ours().iter().chain(&not_ours()) {
        let Variant { name, packet, .. } = variant;
        for len in ETH..packet.len() {
            let cut = &packet[..len];
            let want = reference(cut, &[PORT]);
            assert_eq!(
                matches!(want, Want::Ours(_)),
                matches!(variant.want, Want::Ours(_)) && len >= variant.whole,
                "{name}, {len} of {} bytes",
                packet.len()
            );
            rig.check(cut, &want, &format!("{name}, {len} of {}", packet.len()));
        }
    }
    // The kernel runs a program on nothing shorter than an Ethernet header.
    let whole = &ours()[0].packet;
    for len in 0..ETH {
        let error = rig.xdp.run(&whole[..len], None, &mut Vec::new());
        assert_eq!(error.unwrap_err().errno(), libc::EINVAL, "{len} bytes");
    }
    assert_eq!(rig.xdp.counters().unwrap(), rig.counted);
}

#[test]
fn without_a_socket_everything_passes_and_is_counted() {
    if !is_root("without_a_socket_everything_passes_and_is_counted") {
        return;
    }
    let mut rig = Rig::without_socket(&config(), NATIVE);
    for Variant { name, packet, .. } in ours() {
        let got = rig.run(&packet);
        let want = XdpCounters {
            seen: 1,
            passed: 1,
            matched: 1,
            no_socket: 1,
            ..XdpCounters::default()
        };
        assert_eq!((got.verdict, got.counted), (XDP_PASS, want), "{name}");
        assert_eq!(got.events, [], "{name}");
    }
    rig.insert_socket();
    let first = &ours()[0];
    rig.check(&first.packet, &first.want, "with a socket");
}

#[test]
fn only_the_queue_of_the_socket_is_redirected() {
    if !is_root("only_the_queue_of_the_socket_is_redirected") {
        return;
    }
    let mut rig = Rig::new(&config());
    let veth = Veth::with_queues(2);
    let ifindex = unified::sys::link::index_of(&veth.host).unwrap();
    let packet = ours().remove(0).packet;
    // An interface has its XDP queues set up while a program is attached to it.
    let link = unified::net::link::look_up(&veth.host, 1).unwrap();
    let _attached = Xdp::attach(link, &config()).unwrap();
    let on = |queue| Some(Ingress { ifindex, queue });
    assert_eq!(rig.run_from(&packet, on(0)).verdict, XDP_REDIRECT);
    let other = rig.run_from(&packet, on(1));
    assert_eq!((other.verdict, other.counted.no_socket), (XDP_PASS, 1));
    rig.xdp
        .insert_socket(1, rig._socket.socket.as_raw_fd())
        .unwrap();
    let redirected = rig.run_from(&packet, on(1));
    assert_eq!(redirected.verdict, XDP_REDIRECT);
    assert_eq!(redirected.events[0].queue, 1);
}

#[test]
fn ports_come_and_go() {
    if !is_root("ports_come_and_go") {
        return;
    }
    let mut rig = Rig::new(&config());
    let to = |port| ethernet(&[], 0x0800, &ipv4(0, IpNumber::UDP, &udp(port, &data(5))));
    let ours = |port| Want::Ours(flow(&[], 4, 20, port, 5));
    for port in [1, 80, 0x0f27, 65535] {
        rig.check(&to(port), &Want::NotOurs, "not yet");
        rig.xdp.add_port(port).unwrap();
        rig.check(&to(port), &ours(port), "added");
        rig.check(&to(PORT), &ours(PORT), "the others stay");
    }
    rig.xdp.add_port(80).unwrap();
    rig.xdp.remove_port(80).unwrap();
    rig.check(&to(80), &Want::NotOurs, "added twice, removed once");
    rig.xdp.remove_port(80).unwrap();
    rig.xdp.remove_port(PORT).unwrap();
    rig.check(&to(PORT), &Want::NotOurs, "removed");
    rig.check(&to(65535), &ours(65535), "the others stay");
    assert_eq!(rig.xdp.ports(), [1, 0x0f27, 65535]);
    for change in [Xdp::add_port, Xdp::remove_port] {
        let error = change(&mut rig.xdp, 0).unwrap_err();
        assert_eq!(error.errno(), libc::EINVAL);
        assert!(error.message().contains("port 0"), "{error}");
    }
    rig.check(&to(0), &Want::NotOurs, "port 0");
}

#[test]
fn jumbo_packets_are_seen_whole() {
    if !is_root("jumbo_packets_are_seen_whole") {
        return;
    }
    let mut rig = Rig::new(&config());
    let payload = data(8000);
    let packet = ethernet(&[], 0x0800, &ipv4(0, IpNumber::UDP, &udp(PORT, &payload)));
    rig.check(&packet, &Want::Ours(flow(&[], 4, 20, PORT, 8000)), "jumbo");
    // The part behind the first page is missing, in part or as a whole.
    for len in [packet.len() - 1, 5000, 3000, 100] {
        rig.check(&packet[..len], &Want::Malformed, "cut jumbo");
    }
}

#[test]
fn one_event_in_so_many_packets() {
    if !is_root("one_event_in_so_many_packets") {
        return;
    }
    // Packets are counted for each CPU: stay on one.
    let cpu = nix::sched::sched_getaffinity(nix::unistd::Pid::this()).unwrap();
    let first = (0..nix::sched::CpuSet::count())
        .find(|n| cpu.is_set(*n).unwrap())
        .unwrap();
    let mut one = nix::sched::CpuSet::new();
    one.set(first).unwrap();
    nix::sched::sched_setaffinity(nix::unistd::Pid::from_raw(0), &one).unwrap();

    let mut rig = Rig::new(&XdpConfig {
        event_sample: 0,
        ..config()
    });
    let packet = ours().remove(0).packet;
    let foreign = not_ours().remove(0).packet;
    for (sample, expected) in [
        (0, 0),
        (1, 60),
        (2, 30),
        (3, 20),
        (60, 1),
        (1000, 0),
        (0, 0),
    ] {
        rig.xdp.set_event_sample(sample).unwrap();
        let mut events = 0;
        for _ in 0..60 {
            let got = rig.run(&packet);
            assert_eq!(got.counted.events, got.events.len() as u64);
            assert_eq!(got.counted.events_lost, 0);
            events += got.events.len();
            assert_eq!(rig.run(&foreign).events, [], "foreign packets log nothing");
        }
        // The count goes on from sample to sample: 1000 is first met after these tests' 420 packets.
        assert_eq!(events, expected, "one in {sample}");
    }
}

#[test]
fn events_beyond_the_ring_buffer_are_counted_as_lost() {
    if !is_root("events_beyond_the_ring_buffer_are_counted_as_lost") {
        return;
    }
    let mut rig = Rig::new(&config());
    let mut out = Vec::new();
    let fd = rig.xdp.events_fd().unwrap();
    let readable = || poll_readable(&[fd], Some(Duration::ZERO)).unwrap();
    let packets: Vec<Vec<u8>> = (0..100)
        .map(|len| ethernet(&[], 0x0800, &ipv4(0, IpNumber::UDP, &udp(PORT, &data(len)))))
        .collect();
    let records = 4096 / 64 - 1;
    for (i, packet) in packets.iter().enumerate() {
        // A record takes 8 bytes more than it holds, and the ring is never quite full. The reader is woken
        // when a quarter of it waits.
        assert_eq!(readable(), i >= 16, "after {i} packets");
        let verdict = rig.xdp.run(packet, None, &mut out).unwrap();
        assert_eq!(verdict, XDP_REDIRECT, "a lost event loses no packet");
        let count = rig.xdp.counters().unwrap();
        let kept = records.min(i + 1) as u64;
        assert_eq!(
            (count.events, count.events_lost),
            (kept, i as u64 + 1 - kept)
        );
    }
    // The oldest are kept, in their order; in two portions here.
    let mut lengths = Vec::new();
    let each = |event: &Event| lengths.push(usize::from(event.payload_len));
    assert_eq!(rig.xdp.drain_events(10, each).unwrap(), 10);
    let each = |event: &Event| lengths.push(usize::from(event.payload_len));
    assert_eq!(rig.xdp.drain_events(1000, each).unwrap(), records - 10);
    assert_eq!(lengths, (0..records).collect::<Vec<_>>());
    assert_eq!(rig.xdp.drain_events(1000, |_| panic!("empty")).unwrap(), 0);
    // And there is room again.
    rig.counted = rig.xdp.counters().unwrap();
    let got = rig.run(&packets[70]);
    assert_eq!(got.events[0].payload_len, 70);
    assert_eq!(got.counted.events_lost, 0);
}

#[test]
fn events_that_nobody_reads_are_not_lost() {
    if !is_root("events_that_nobody_reads_are_not_lost") {
        return;
    }
    let mut rig = Rig::new(&config());
    let mut out = Vec::new();
    let packet = |len| ethernet(&[], 0x0800, &ipv4(0, IpNumber::UDP, &udp(PORT, &data(len))));
    let records = 4096 / 64 - 1;
    for len in 0..100 {
        rig.xdp.run(&packet(len), None, &mut out).unwrap();
    }
    let count = rig.xdp.counters().unwrap();
    assert_eq!((count.events, count.events_lost), (records as u64, 0));
    // Whoever reads late finds the oldest ones; from now on what finds no room is lost.
    let mut lengths = Vec::new();
    let each = |event: &Event| lengths.push(usize::from(event.payload_len));
    assert_eq!(rig.xdp.drain_events(1000, each).unwrap(), records);
    assert_eq!(lengths, (0..records).collect::<Vec<_>>());
    for len in 0..100 {
        rig.xdp.run(&packet(len), None, &mut out).unwrap();
    }
    let count = rig.xdp.counters().unwrap();
    let lost = 100 - records as u64;
    assert_eq!(
        (count.events, count.events_lost),
        (2 * records as u64, lost)
    );
}

#[test]
fn the_rig_leaves_its_interface_alone() {
    if !is_root("the_rig_leaves_its_interface_alone") {
        return;
    }
    let mut rig = Rig::new(&config());
    rig.run(&ours()[0].packet);
    let index = unified::sys::link::index_of(&rig.veth.host).unwrap();
    assert!(unified::sys::bpf::attached(index).is_none());
    assert_eq!(rig.xdp.ports(), [PORT]);
    rig.xdp.detach().unwrap();
}

/// Compares program, reference and etherparse on many packets, with one program for all of them.
fn compare(cases: u32, packets: impl Strategy<Value = Vec<u8>>) {
    let rig = std::cell::RefCell::new(Rig::new(&config()));
    let redirected = std::cell::Cell::new(0);
    let runner = ProptestConfig {
        cases,
        failure_persistence: None,
        ..ProptestConfig::default()
    };
    proptest!(runner, |(packet in packets)| {
        let want = reference(&packet, &[PORT]);
        rig.borrow_mut().check(&packet, &want, "random");
        if let Want::Ours(flow) = &want {
            redirected.set(redirected.get() + 1);
            prop_assert!(flow.payload_offset + flow.payload_len <= packet.len());
        }
        if let Some(payload) = by_etherparse(&packet) {
            let Want::Ours(flow) = &want else {
                return Err(TestCaseError::fail(format!("etherparse reads a datagram: {packet:x?}")));
            };
            prop_assert_eq!(&packet[flow.payload_offset..][..flow.payload_len], payload);
        }
    });
    assert!(redirected.get() > 0, "none of {cases} packets was ours");
}

#[test]
fn mutated_packets_get_the_verdict_of_the_reference() {
    if !is_root("mutated_packets_get_the_verdict_of_the_reference") {
        return;
    }
    let seeds: Vec<Vec<u8>> = ours()
        .into_iter()
        .chain(not_ours())
        .map(|variant| variant.packet)
        .collect();
    let change = (any::<Index>(), any::<u8>(), 0u8..3);
    let packets = (
        0..seeds.len(),
        proptest::collection::vec(change, 0..5),
        proptest::option::weighted(0.3, any::<Index>()),
        0usize..20,
    )
        .prop_map(move |(seed, changes, cut, trailer)| {
            let mut packet = seeds[seed].clone();
            for (at, value, how) in changes {
                let at = at.index(packet.len().min(90));
                match how {
                    0 => packet[at] = value,
                    1 => packet[at] ^= 1 << (value % 8),
                    _ => packet[at] = packet[at].wrapping_add(value % 17).wrapping_sub(8),
                }
            }
            match cut {
                Some(cut) => packet.truncate(ETH + cut.index(packet.len() - ETH)),
                None => packet.resize(packet.len() + trailer, 0xdd),
            }
            packet
        });
    compare(6000, packets);
}

#[test]
fn random_bytes_get_the_verdict_of_the_reference() {
    if !is_root("random_bytes_get_the_verdict_of_the_reference") {
        return;
    }
    let bytes = proptest::collection::vec(any::<u8>(), ETH..200);
    // Pure noise is hardly ever UDP to our port: some of its bytes are set, each with some chance.
    let packets = (
        bytes,
        any::<[bool; 8]>(),
        0usize..3,
        any::<bool>(),
        any::<u8>(),
    )
        .prop_map(|(mut bytes, set, tags, v6, small)| {
            let mut put = |when: bool, at: usize, what: &[u8]| {
                if when && bytes.len() >= at + what.len() {
                    bytes[at..at + what.len()].copy_from_slice(what);
                }
            };
            for tag in 0..tags {
                put(
                    true,
                    12 + 4 * tag,
                    if tag == 0 { &[0x88, 0xa8] } else { &[0x81, 0] },
                );
            }
            let at = ETH + 4 * tags;
            put(set[0], at - 2, if v6 { &[0x86, 0xdd] } else { &[8, 0] });
            put(set[1], at, if v6 { &[0x60] } else { &[0x45] });
            let (next, len, header) = if v6 { (6, 4, 40) } else { (9, 2, 20) };
            put(set[2] || set[3], at + next, &[17]);
            put(set[4] || set[5], at + len, &[0, small]);
            if !v6 {
                put(set[6] || set[7], at + 6, &[0, 0]);
            }
            put(true, at + header + 2, &PORT.to_be_bytes());
            put(set[3] || set[7], at + header + 4, &[0, small % 32]);
            bytes
        });
    compare(6000, packets);
}
