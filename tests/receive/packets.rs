//! Packets of every kind, to our ports and to others.

use super::*;
use crate::common::packet::{ethernet, mac_of, send_frames};

fn assert_nothing(socket: &UdpSocket) {
    socket.set_nonblocking(true).unwrap();
    let error = socket.recv(&mut [0; 2048]).unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::WouldBlock);
    socket.set_nonblocking(false).unwrap();
}

fn wide(from: IpAddr) -> [u8; 16] {
    match from {
        IpAddr::V6(addr) => addr.octets(),
        IpAddr::V4(addr) => {
            let mut wide = [0; 16];
            wide[..4].copy_from_slice(&addr.octets());
            wide
        }
    }
}

/// A port that was closed stays in use for a moment longer if another thread is starting a program: its
/// child has all descriptors until it runs.
fn bind_patiently(addr: SocketAddr) -> UdpSocket {
    let until = Instant::now() + PATIENCE;
    loop {
        match UdpSocket::bind(addr) {
            Ok(socket) => return socket,
            Err(e) => {
                assert_eq!(e.kind(), std::io::ErrorKind::AddrInUse);
                assert!(Instant::now() < until, "{addr} stays in use");
                std::thread::sleep(Duration::from_millis(1));
            }
        }
    }
}

/// Sends datagrams from the far end, each from a socket of its own port, to where each says.
fn send_to(veth: &Veth, datagrams: Vec<(u16, SocketAddr, Vec<u8>)>) {
    let far = veth.far(move || {
        for (source, to, payload) in datagrams {
            let any: IpAddr = match to {
                SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
                SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
            };
            let socket = bind_patiently((any, source).into());
            assert_eq!(socket.send_to(&payload, to).unwrap(), payload.len());
        }
    });
    far.join().unwrap();
}

#[test]
fn other_ports_reach_the_stack_while_ours_are_received() {
    if !is_root("other_ports_reach_the_stack_while_ours_are_received") {
        return;
    }
    let veth = Veth::new();
    let (other, ours) = (stack(&veth, 7777), stack(&veth, PORT));
    let context = Context::open(&config(&veth)).unwrap();
    let (mine, theirs) = (payloads(0, 100), payloads(1000, 100));
    let mut datagrams = Vec::new();
    for (mine, theirs) in mine.iter().zip(&theirs) {
        let to = |port| SocketAddr::from((veth.host_addr, port));
        datagrams.push((4000, to(PORT), mine.clone()));
        datagrams.push((4001, to(7777), theirs.clone()));
    }
    send_to(&veth, datagrams);
    assert_eq!(contents(&receive(&context, 100)), mine);
    assert_eq!(read(&other, 100), theirs);
    assert_nothing(&ours);
    let stats = quiet(&context, |stats| stats.received == 100);
    assert_eq!((stats.xdp.matched, stats.xdp.redirected), (100, 100));
    assert!(stats.xdp.passed >= 100);
    assert_eq!((stats.received, stats.released), (100, 100));
    drop(context);
    // With the context gone its port belongs to the stack.
    send_to(
        &veth,
        vec![(4000, (veth.host_addr, PORT).into(), mine[7].clone())],
    );
    assert_eq!(read(&ours, 1), [mine[7].clone()]);
}

#[test]
fn ports_change_while_packets_come() {
    if !is_root("ports_change_while_packets_come") {
        return;
    }
    let veth = Veth::new();
    let port = 5000;
    let socket = stack(&veth, port);
    let context = Context::open(&config(&veth)).unwrap();
    let send = |first| {
        let payloads = payloads(first, 20);
        let to = SocketAddr::from((veth.host_addr, port));
        send_to(
            &veth,
            payloads.iter().map(|p| (4000, to, p.clone())).collect(),
        );
        payloads
    };
    for round in 0..3u32 {
        let passed = send(100 * round);
        assert_eq!(read(&socket, 20), passed);
        context.port_add(port).unwrap();
        let redirected = send(100 * round + 50);
        assert_eq!(contents(&receive(&context, 20)), redirected);
        assert_nothing(&socket);
        context.port_remove(port).unwrap();
        let stats = quiet(&context, |stats| {
            stats.received == 20 * u64::from(round + 1)
        });
        assert_eq!(stats.xdp.redirected, stats.received);
    }
    // The last port of all: from then on everything passes.
    context.port_remove(PORT).unwrap();
    let passed = send(900);
    assert_eq!(read(&socket, 20), passed);
    quiet(&context, |stats| stats.received == 60);
}

#[test]
fn events_tell_what_was_sent() {
    if !is_root("events_tell_what_was_sent") {
        return;
    }
    let veth = Veth::new();
    let context = Context::open(&config(&veth)).unwrap();
    let start = monotonic_ns();
    let sent = payloads(0, 60);
    let far = far_addr(&veth);
    let datagrams = sent.iter().enumerate().map(|(i, payload)| {
        let to = SocketAddr::from((veth.host_addr, PORT));
        (4000 + i as u16 % 7, to, payload.clone())
    });
    send_to(&veth, datagrams.collect());
    let got = receive(&context, sent.len());
    let mut events = Vec::new();
    // A limit is kept, and the rest is there afterwards.
    assert_eq!(
        context
            .drain_events(7, |event| events.push(*event))
            .unwrap(),
        7
    );
    let rest = context.drain_events(1000, |event| events.push(*event));
    assert_eq!((rest.unwrap(), events.len()), (sent.len() - 7, sent.len()));
    for (i, event) in events.iter().enumerate() {
        let want = Event {
            timestamp: got[i].timestamp,
            src_addr: wide(far.into()),
            dst_addr: wide(veth.host_addr.into()),
            src_port: 4000 + i as u16 % 7,
            dst_port: PORT,
            payload_len: sent[i].len() as u16,
            vlan_tci: None,
            queue: 0,
            ip_version: 4,
        };
        assert_eq!(*event, want, "event {i}");
        assert_eq!(got[i].addresses, (want.src_addr, want.dst_addr));
    }
    assert!(events.is_sorted_by_key(|event| event.timestamp));
    assert!(events[0].timestamp >= start && events[59].timestamp <= monotonic_ns());
    assert_eq!(
        context
            .drain_events(10, |_| panic!("none is left"))
            .unwrap(),
        0
    );

    context.set_event_sample(0).unwrap();
    send_to(&veth, vec![(4000, (veth.host_addr, PORT).into(), vec![1])]);
    receive(&context, 1);
    assert_eq!(
        context
            .drain_events(10, |_| panic!("switched off"))
            .unwrap(),
        0
    );
    let stats = quiet(&context, |stats| stats.received == 61);
    assert_eq!((stats.xdp.events, stats.xdp.events_lost), (60, 0));
}

fn far_addr(veth: &Veth) -> Ipv4Addr {
    let [a, b, c, d] = veth.host_addr.octets();
    Ipv4Addr::new(a, b, c, d + 1)
}

#[test]
fn a_datagram_without_payload_is_a_packet_all_the_same() {
    if !is_root("a_datagram_without_payload_is_a_packet_all_the_same") {
        return;
    }
    let veth = Veth::new();
    let context = Arc::new(Context::open(&config(&veth)).unwrap());
    let to = SocketAddr::from((veth.host_addr, PORT));
    let send = || {
        send_to(
            &veth,
            vec![
                (4000, to, vec![]),
                (4000, to, vec![5; 5]),
                (4000, to, vec![]),
            ],
        )
    };
    send();
    let got = receive(&context, 3);
    assert_eq!(contents(&got), [&[][..], &[5; 5], &[]]);
    assert_eq!(got[0].headers.payload_offset, 42);
    quiet(&context, |stats| stats.released == 3);
    // Nothing can be written of it: the pipeline lets it go, and counts it.
    let pipeline = Pipeline::start(context.clone(), PipelineConfig::default()).unwrap();
    send();
    let status = reached(&pipeline, |status| status.empty == 2 && status.stored == 1);
    assert_eq!((status.submitted, status.payload_bytes), (1, 5));
    pipeline.stop().1.unwrap();
    let stats = quiet(&context, |stats| stats.received == 6);
    assert_eq!((stats.stored, stats.released), (1, 5));
}

#[test]
fn tagged_and_ipv6_packets_are_received_with_their_fields() {
    if !is_root("tagged_and_ipv6_packets_are_received_with_their_fields") {
        return;
    }
    let veth = Veth::new();
    let (h, p, ns) = (&veth.host, &veth.peer, &veth.ns);
    let near6: Ipv6Addr = "fd00:ab::1".parse().unwrap();
    let far6: Ipv6Addr = "fd00:ab::2".parse().unwrap();
    let mac = fs::read_to_string(format!("/sys/class/net/{h}/address")).unwrap();
    let mac = mac.trim();
    ip(&format!("addr add {near6}/64 dev {h} nodad"));
    ip(&format!("-n {ns} addr add {far6}/64 dev {p} nodad"));
    ip(&format!(
        "-n {ns} neigh replace {near6} lladdr {mac} dev {p} nud permanent"
    ));
    let context = Context::open(&config(&veth)).unwrap();
    let sent = payloads(0, 30);
    let to = SocketAddr::from((near6, PORT));
    // A 1472 byte payload and the IPv6 header would be a fragment.
    let sent: Vec<_> = sent.into_iter().filter(|p| p.len() <= 1452).collect();
    send_to(&veth, sent.iter().map(|p| (4006, to, p.clone())).collect());
    let got = receive(&context, sent.len());
    assert_eq!(contents(&got), sent);
    for got in &got {
        let headers = Headers {
            l3_offset: 14,
            payload_offset: 62,
            payload_len: got.payload.len() as u16,
            vlan_tci: None,
            src_port: 4006,
            dst_port: PORT,
            ip_version: 6,
        };
        assert_eq!(got.headers, headers);
        assert_eq!(got.addresses, (far6.octets(), near6.octets()));
        assert!(got.timestamp > 0);
    }

    // Tags as they stand in the frame; the outermost is told.
    let mut frames = Vec::new();
    let (source, target) = ([10, 9, 8, 7], [10, 9, 8, 6]);
    for (i, tags) in TAGS.iter().enumerate() {
        let mut inner = Vec::new();
        PacketBuilder::ipv4(source, target, 64)
            .udp(4007, PORT)
            .write(&mut inner, &payload(i as u32, 100 + i))
            .unwrap();
        frames.push(ethernet(mac_of(h), tags, 0x0800, &inner));
    }
    send_frames(&veth, frames.clone());
    let got = receive(&context, TAGS.len());
    for (i, (got, tags)) in got.iter().zip(TAGS).enumerate() {
        let l3_offset = 14 + 4 * tags.len() as u16;
        let headers = Headers {
            l3_offset,
            payload_offset: l3_offset + 28,
            payload_len: 100 + i as u16,
            vlan_tci: tags.first().map(|tag| tag.1),
            src_port: 4007,
            dst_port: PORT,
            ip_version: 4,
        };
        assert_eq!(got.headers, headers);
        assert_eq!(got.payload, payload(i as u32, 100 + i));
        assert_eq!(got.len as usize, frames[i].len());
        assert_eq!(got.addresses, (wide(source.into()), wide(target.into())));
    }
    let mut tags = Vec::new();
    context
        .drain_events(1000, |event| tags.push((event.ip_version, event.vlan_tci)))
        .unwrap();
    let want = TAGS.map(|tags| (4, tags.first().map(|tag| tag.1)));
    assert_eq!(tags[sent.len()..], want);
    assert!(tags[..sent.len()].iter().all(|tag| *tag == (6, None)));
    let all = (sent.len() + TAGS.len()) as u64;
    quiet(&context, |stats| stats.released == all);
}

const TAGS: [&[(u16, u16)]; 4] = [
    &[],
    &[(0x8100, 0x6005)],
    &[(0x88a8, 0x0fff), (0x8100, 0x0001)],
    &[(0x8100, 0)],
];

#[test]
fn packets_longer_than_a_frame_are_dropped_and_counted() {
    if !is_root("packets_longer_than_a_frame_are_dropped_and_counted") {
        return;
    }
    // 3000 fits into a page and is one buffer; 9000 is several.
    for (mtu, frame_size, longest) in [(3000, 2048, 2048 - 470), (9000, 4096, 4096 - 470)] {
        let veth = Veth::new();
        ip(&format!("link set {} mtu {mtu}", veth.host));
        ip(&format!("-n {} link set {} mtu {mtu}", veth.ns, veth.peer));
        let file = Scratch::new(env!("CARGO_TARGET_TMPDIR"), "jumbo");
        let mut config = Config {
            frame_size,
            ..config(&veth)
        };
        config.device.path = file.path().into();
        config.device.file_size = 1 << 20;
        let context = Arc::new(Context::open(&config).unwrap());
        let block = context.info().devices[0].limits.block_size as usize;
        let pipeline = Pipeline::start(context.clone(), PipelineConfig::default()).unwrap();
        let fits = longest - 42;
        let mut datagrams = Vec::new();
        let (mut kept, mut dropped) = (Vec::new(), 0);
        for i in 0..40u32 {
            let len = match i % 4 {
                0 => 100 + i as usize,
                1 => fits,
                2 => fits + 1,
                _ => mtu as usize - 28,
            };
            let payload = payload(i, len);
            datagrams.push((4009, (veth.host_addr, PORT).into(), payload.clone()));
            if len <= fits {
                kept.push(payload);
            } else {
                dropped += 1;
            }
        }
        send_to(&veth, datagrams);
        let stored = kept.len() as u64;
        reached(&pipeline, |status| status.stored == stored);
        let (status, result) = pipeline.stop();
        result.unwrap();
        assert_eq!((status.failed, status.no_space), (0, 0));
        let stats = quiet(&context, |stats| stats.xdp.redirected == 40);
        assert_eq!(stats.xsk.rx_dropped, dropped, "{stats:#?}");
        assert_eq!((stats.received, stats.stored), (stored, stored));
        drop(context);
        let mut want = Vec::new();
        for payload in &kept {
            want.extend_from_slice(payload);
            want.resize(want.len().next_multiple_of(block), 0);
        }
        want.resize(1 << 20, 0);
        assert!(fs::read(&file.0).unwrap() == want, "these and nothing else");
    }
}

#[test]
fn fragments_reach_the_stack_and_are_put_together_there() {
    if !is_root("fragments_reach_the_stack_and_are_put_together_there") {
        return;
    }
    let veth = Veth::new();
    let socket = stack(&veth, PORT);
    let context = Context::open(&config(&veth)).unwrap();
    let (whole, small) = (payload(1, 4000), payload(2, 1000));
    let to = SocketAddr::from((veth.host_addr, PORT));
    send_to(
        &veth,
        vec![
            (4010, to, whole.clone()),
            (4010, to, small.clone()),
            (4010, to, whole.clone()),
        ],
    );
    assert_eq!(read(&socket, 2), [whole.clone(), whole]);
    assert_eq!(contents(&receive(&context, 1)), [small]);
    assert_nothing(&socket);
    let stats = quiet(&context, |stats| stats.received == 1);
    // 4008 bytes of UDP in pieces of 1480.
    assert_eq!((stats.xdp.fragments, stats.xdp.matched), (6, 1));
}

#[test]
fn the_shortest_fill_ring_is_filled() {
    if !is_root("the_shortest_fill_ring_is_filled") {
        return;
    }
    for fill_ring in [1, 2, 4] {
        let veth = Veth::new();
        let config = Config {
            fill_ring,
            ..config(&veth)
        };
        let context = Context::open(&config).unwrap();
        for i in 0..5 {
            veth.send(PORT, vec![payload(i, 100)], 1000).join().unwrap();
            assert_eq!(receive(&context, 1)[0].payload, payload(i, 100));
        }
    }
}
