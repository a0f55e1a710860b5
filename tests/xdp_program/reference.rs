//! Any bytes get the verdict of a second implementation.

use super::*;

/// What another library reads: the UDP payload of a packet that it takes for unfragmented UDP to our port.
/// `None` if its view and ours may differ: it fills in lengths that are zero, and knows other headers.
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
    // An IPv4 packet here, or an IPv6 one with a length and UDP directly after its header.
    let plain = match ip[0] >> 4 {
        4 => ip[9] == 17,
        _ => ip[6] == 17 && number(&ip[4..6]) > 0,
    };
    let ours = udp.destination_port() == PORT && udp.length() > 0;
    (two_tags_at_most && plain && ours && !sliced.is_ip_payload_fragmented()).then(|| udp.payload())
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
