//! Sockets, queues and ports, changed while it runs.

use super::*;

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
