//! Parses a packet's headers in user space, with the same checks as the XDP program in the kernel.

#![forbid(unsafe_code)]

use super::wire::Meta;

const ETH_LEN: usize = 14;
const VLAN_LEN: usize = 4;
const UDP_LEN: usize = 8;
const MAX_VLANS: usize = 2;
const MAX_IPV6_EXTENSIONS: usize = 4;

/// Positions in a UDP packet. Offsets count from the Ethernet header; both ends of the payload lie inside the packet.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Headers {
    pub l3_offset: u16,
    pub payload_offset: u16,
    pub payload_len: u16,
    /// The outermost tag.
    pub vlan_tci: Option<u16>,
    pub src_port: u16,
    pub dst_port: u16,
    /// 4 or 6.
    pub ip_version: u8,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unusable {
    /// Not UDP over IPv4 or IPv6, or cut off before its headers end.
    NotUdp,
    Fragment,
    /// Its lengths contradict each other.
    Malformed,
}

fn be16(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes([*bytes.get(at)?, *bytes.get(at + 1)?]))
}

/// Reads the headers of a whole packet, as the NIC delivered it (Ethernet header first, no checksum).
pub fn parse(packet: &[u8]) -> Result<Headers, Unusable> {
    walk(packet).unwrap_or(Err(Unusable::NotUdp))
}

/// `None`: the packet ends too early.
fn walk(packet: &[u8]) -> Option<Result<Headers, Unusable>> {
    let mut headers = Headers::default();
    let mut at = ETH_LEN;
    let mut proto = be16(packet, 12)?;
    for tag in 0..MAX_VLANS {
        if !matches!(proto, 0x8100 | 0x88a8) {
            break;
        }
        if tag == 0 {
            headers.vlan_tci = Some(be16(packet, at)?);
        }
        proto = be16(packet, at + 2)?;
        at += VLAN_LEN;
    }
    headers.l3_offset = at as u16;
    let l3 = at;
    // `l3_end`: the end of the packet by its IP header.
    let l3_end = match proto {
        0x0800 => {
            let header = packet.get(at..at + 20)?;
            let len = usize::from(header[0] & 0x0f) * 4;
            if header[0] >> 4 != 4 || len < 20 || header[9] != 17 {
                return None;
            }
            if be16(header, 6)? & 0x3fff != 0 {
                return Some(Err(Unusable::Fragment));
            }
            headers.ip_version = 4;
            at += len;
            l3 + usize::from(be16(header, 2)?)
        }
        0x86dd => {
            let header = packet.get(at..at + 40)?;
            if header[0] >> 4 != 6 {
                return None;
            }
            headers.ip_version = 6;
            let mut next = header[6];
            at += 40;
            for _ in 0..MAX_IPV6_EXTENSIONS {
                match next {
                    44 => return Some(Err(Unusable::Fragment)),
                    0 | 43 | 60 => {
                        next = *packet.get(at)?;
                        at += (usize::from(*packet.get(at + 1)?) + 1) * 8;
                    }
                    _ => break,
                }
            }
            if next != 17 {
                return None;
            }
            l3 + 40 + usize::from(be16(header, 4)?)
        }
        _ => return None,
    };
    let udp = packet.get(at..at + UDP_LEN)?;
    headers.src_port = be16(udp, 0)?;
    headers.dst_port = be16(udp, 2)?;
    let udp_len = usize::from(be16(udp, 4)?);
    if udp_len < UDP_LEN || at + udp_len > l3_end || l3_end > packet.len() {
        return Some(Err(Unusable::Malformed));
    }
    headers.payload_offset = (at + UDP_LEN) as u16;
    headers.payload_len = (udp_len - UDP_LEN) as u16;
    Some(Ok(headers))
}

/// Uses the XDP program's record, after checking that it stays inside the packet: the record is in memory that others
/// can write to. `read` copies bytes of the packet out.
pub fn from_meta(
    meta: &Meta,
    packet_len: usize,
    read: impl FnOnce(usize, &mut [u8; 4]),
) -> Option<Headers> {
    let payload = usize::from(meta.payload_offset);
    let sane = payload + usize::from(meta.payload_len) <= packet_len
        && usize::from(meta.l3_offset) + 20 <= payload;
    if !sane {
        return None;
    }
    let mut ports = [0; 4];
    read(payload - UDP_LEN, &mut ports);
    Some(Headers {
        l3_offset: meta.l3_offset.into(),
        payload_offset: meta.payload_offset,
        payload_len: meta.payload_len,
        vlan_tci: meta.vlan_tci,
        src_port: u16::from_be_bytes([ports[0], ports[1]]),
        dst_port: u16::from_be_bytes([ports[2], ports[3]]),
        ip_version: meta.ip_version,
    })
}

/// Source and destination address; IPv4 in the first four bytes.
pub fn addresses(packet: &[u8], headers: &Headers) -> Option<([u8; 16], [u8; 16])> {
    let (first, len) = match headers.ip_version {
        4 => (12, 4),
        _ => (8, 16),
    };
    let at = usize::from(headers.l3_offset) + first;
    let (mut source, mut destination) = ([0; 16], [0; 16]);
    source[..len].copy_from_slice(packet.get(at..at + len)?);
    destination[..len].copy_from_slice(packet.get(at + len..at + 2 * len)?);
    Some((source, destination))
}

#[cfg(test)]
mod tests {
    use super::*;
    use etherparse::PacketBuilder;
    use proptest::prelude::*;

    fn build(vlan: Option<u16>, v6: bool, ports: (u16, u16), payload: &[u8]) -> Vec<u8> {
        let eth = PacketBuilder::ethernet2([2; 6], [4; 6]);
        let mut out = Vec::new();
        macro_rules! finish {
            ($ip:expr) => {
                $ip.udp(ports.0, ports.1).write(&mut out, payload).unwrap()
            };
        }
        match (vlan, v6) {
            (None, false) => finish!(eth.ipv4([10, 0, 0, 1], [10, 0, 0, 2], 64)),
            (None, true) => finish!(eth.ipv6([1; 16], [2; 16], 64)),
            (Some(id), false) => {
                finish!(eth.single_vlan(id.try_into().unwrap()).ipv4(
                    [10, 0, 0, 1],
                    [10, 0, 0, 2],
                    64
                ))
            }
            (Some(id), true) => finish!(
                eth.single_vlan(id.try_into().unwrap())
                    .ipv6([1; 16], [2; 16], 64)
            ),
        }
        out
    }

    proptest! {
        #[test]
        fn what_another_library_builds_is_read_back(
            vlan in proptest::option::of(0u16..4096), v6 in any::<bool>(), ports in any::<(u16, u16)>(),
            payload in proptest::collection::vec(any::<u8>(), 0..1473), trailer in 0usize..20,
        ) {
            let mut packet = build(vlan, v6, ports, &payload);
            packet.resize(packet.len() + trailer, 0xee);
            let headers = parse(&packet).unwrap();
            let at = usize::from(headers.payload_offset);
            prop_assert_eq!(&packet[at..at + usize::from(headers.payload_len)], &payload[..]);
            prop_assert_eq!((headers.src_port, headers.dst_port), ports);
            prop_assert_eq!(headers.vlan_tci, vlan);
            prop_assert_eq!(headers.ip_version, if v6 { 6 } else { 4 });
            let (source, _) = addresses(&packet, &headers).unwrap();
            prop_assert_eq!(&source[..4], if v6 { &[1u8; 4] } else { &[10u8, 0, 0, 1] });
        }

        #[test]
        fn a_cut_packet_is_never_usable(v6 in any::<bool>(), len in 1usize..200, cut in 1usize..240) {
            let packet = build(None, v6, (1, 9999), &vec![7; len]);
            let kept = packet.len().saturating_sub(cut);
            prop_assert!(parse(&packet[..kept]).is_err());
        }

        #[test]
        fn any_bytes_stay_inside(packet in proptest::collection::vec(any::<u8>(), 0..200)) {
            if let Ok(headers) = parse(&packet) {
                prop_assert!(usize::from(headers.payload_offset) + usize::from(headers.payload_len) <= packet.len());
            }
        }
    }

    #[test]
    fn fragments_and_lying_lengths_are_told_apart() {
        let mut packet = build(None, false, (1, 9999), &[1; 100]);
        packet[20] = 0x20;
        assert_eq!(parse(&packet), Err(Unusable::Fragment));
        let mut packet = build(None, false, (1, 9999), &[1; 100]);
        packet[38..40].copy_from_slice(&200u16.to_be_bytes());
        assert_eq!(parse(&packet), Err(Unusable::Malformed));
    }

    #[test]
    fn a_packet_shorter_than_its_ip_header_says_is_malformed_also_with_a_whole_datagram() {
        let mut packet = build(None, false, (1, 9999), &[1; 100]);
        packet[16..18].copy_from_slice(&129u16.to_be_bytes());
        assert_eq!(parse(&packet), Err(Unusable::Malformed));
        packet.push(0);
        assert_eq!(parse(&packet).unwrap().payload_len, 100);
    }
}
