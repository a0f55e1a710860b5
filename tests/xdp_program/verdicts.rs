//! What the program does with each kind of packet.

use super::*;

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
fn jumbo_packets_are_seen_whole() {
    if !is_root("jumbo_packets_are_seen_whole") {
        return;
    }
    let mut rig = Rig::new(&config());
    let payload = data(8000);
    let packet = ethernet(&[], 0x0800, &ipv4(0, IpNumber::UDP, &udp(PORT, &payload)));
    rig.check(&packet, &Want::Ours(flow(&[], 4, 20, PORT, 8000)), "jumbo");
    // The part after the first page is missing, in part or as a whole.
    for len in [packet.len() - 1, 5000, 3000, 100] {
        rig.check(&packet[..len], &Want::Malformed, "cut jumbo");
    }
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
