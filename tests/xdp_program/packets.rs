//! Packets of every kind, and what the program must do with each.

use super::*;
use crate::common::packet::{self, Tags};

pub const ETH: usize = 14;
pub const SOURCE_PORT: u16 = 4321;
pub const V4: ([u8; 4], [u8; 4]) = ([10, 1, 2, 3], [192, 168, 4, 5]);
pub const V6: ([u8; 16], [u8; 16]) = (
    [0xfd, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15],
    [
        0xfd, 31, 30, 29, 28, 27, 26, 25, 24, 23, 22, 21, 20, 19, 18, 17,
    ],
);

// ---- Packets ----

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Flow {
    pub l3_offset: usize,
    pub payload_offset: usize,
    pub payload_len: usize,
    pub vlan_tci: Option<u16>,
    pub src_port: u16,
    pub dst_port: u16,
    pub ip_version: u8,
    pub src_addr: [u8; 16],
    pub dst_addr: [u8; 16],
}

/// What must become of a packet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Want {
    NotOurs,
    Fragment,
    Malformed,
    Ours(Flow),
}

#[derive(Debug, Clone)]
pub struct Variant {
    pub name: String,
    pub packet: Vec<u8>,
    pub want: Want,
    /// Bytes that must be there for it to be redirected: up to the end of the IP packet.
    pub whole: usize,
}

pub const Q: u16 = 0x8100;
pub const AD: u16 = 0x88a8;

pub fn ethernet(tags: Tags, ether_type: u16, l3: &[u8]) -> Vec<u8> {
    packet::ethernet([2, 0, 0, 0, 0, 2], tags, ether_type, l3)
}

pub fn udp(port: u16, payload: &[u8]) -> Vec<u8> {
    let header = UdpHeader {
        source_port: SOURCE_PORT,
        destination_port: port,
        length: 8 + payload.len() as u16,
        checksum: 0,
    };
    [&header.to_bytes()[..], payload].concat()
}

pub fn ipv4_header(option_words: usize, protocol: IpNumber, l4_len: usize) -> Ipv4Header {
    let mut header = Ipv4Header::new(0, 64, protocol, V4.0, V4.1).unwrap();
    // No-operation options: what a parser must step over.
    header.options = vec![1; option_words * 4].as_slice().try_into().unwrap();
    header.total_len = (header.header_len() + l4_len) as u16;
    header.header_checksum = header.calc_header_checksum();
    header
}

pub fn ipv4(option_words: usize, protocol: IpNumber, l4: &[u8]) -> Vec<u8> {
    let header = ipv4_header(option_words, protocol, l4.len());
    [&header.to_bytes()[..], l4].concat()
}

/// `extensions`: their protocol numbers and lengths in units of 8 bytes, in order.
pub fn ipv6(extensions: &[(u8, u8)], protocol: IpNumber, l4: &[u8]) -> Vec<u8> {
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

pub fn flow(tags: Tags, ip_version: u8, l3_headers: usize, port: u16, payload_len: usize) -> Flow {
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

pub fn data(len: usize) -> Vec<u8> {
    common::payload(len as u32, len)
}

pub const TAGS: [(&str, Tags); 4] = [
    ("untagged", &[]),
    ("802.1Q", &[(Q, 0xa123)]),
    ("802.1Q with VLAN 0", &[(Q, 0)]),
    ("QinQ", &[(AD, 0x7064), (Q, 0x00c8)]),
];

/// Packets that must reach the socket.
pub fn ours() -> Vec<Variant> {
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
pub fn not_ours() -> Vec<Variant> {
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
