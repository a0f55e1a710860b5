//! VLAN tags that are not in the bytes of packets but beside them, in the socket buffer: a sender that leaves them
//! there, a receiver that puts them there, and the warnings about both.
#![forbid(unsafe_code)]

mod common;

use std::fs;
use std::process::Command;
use std::sync::{Mutex, Once};
use std::time::{Duration, Instant};

use common::{Scratch, Veth, check_sums, ip, is_root, payload, run};
use unified::config::{Config, Drive};
use unified::context::Context;
use unified::lane::Ready;
use unified::log::Level;
use unified::net::rx::Received;
use unified::net::xdp::XdpMode;

const PORT: u16 = 9999;
const FRAMES: u32 = 256;
const TAG: u16 = 42;

/// An interface, until it is dropped.
struct Link(String);

impl Link {
    fn name(letter: &str) -> String {
        format!("uv{:x}{letter}", std::process::id() & 0xffff)
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        let _ = Command::new("ip").args(["link", "del", &self.0]).output();
    }
}

// ---- The library's log, of all tests in this process ----

static LINES: Mutex<Vec<(Level, String)>> = Mutex::new(Vec::new());

/// The warnings about VLAN tags on one interface.
fn warnings(interface: &str) -> Vec<String> {
    let of = |line: &str| line.contains(&format!("'{interface}'")) && line.contains("VLAN");
    let lines = LINES.lock().unwrap();
    let all = lines
        .iter()
        .filter(|(level, line)| *level == Level::Warn && of(line));
    all.map(|(_, line)| line.clone()).collect()
}

fn open(interface: &str, mode: XdpMode) -> Context {
    static LOG: Once = Once::new();
    LOG.call_once(|| {
        unified::log::set_callback(Some(Box::new(|level, line| {
            LINES.lock().unwrap().push((level, line.into()));
        })));
    });
    let mut config = Config {
        ifname: Some(interface.into()),
        ports: vec![PORT],
        xdp_mode: mode,
        frame_count: FRAMES,
        rx_ring: 64,
        fill_ring: 64,
        sq_entries: 64,
        cq_entries: 64,
        drive: Drive::Inline,
        ..Config::default()
    };
    config.device.path = "null:".into();
    Context::open(&config).unwrap()
}

/// From now on the sending end pushes a tag into the socket buffer of each packet, as a VLAN interface does.
fn push_tags(veth: &Veth, protocol: u16) {
    let source = Scratch::new(env!("CARGO_TARGET_TMPDIR"), "push.c");
    let object = Scratch::new(env!("CARGO_TARGET_TMPDIR"), "push.o");
    let program = format!(
        "struct __sk_buff;\n\
         static long (*vlan_push)(struct __sk_buff *, unsigned short, unsigned short) = (void *)18;\n\
         __attribute__((section(\"tc\"), used)) int push(struct __sk_buff *skb)\n\
         {{ vlan_push(skb, {}, {TAG}); return 0; }}\n\
         __attribute__((section(\"license\"), used)) char _license[] = \"GPL\";\n",
        protocol.to_be()
    );
    fs::write(&source.0, program).unwrap();
    run(
        "clang",
        &[
            "-O2",
            "-target",
            "bpf",
            "-x",
            "c",
            "-c",
            source.path(),
            "-o",
            object.path(),
        ],
    );
    let tc = |words: &str| {
        let words: Vec<&str> = words.split(' ').collect();
        run("tc", &[&["-n", &veth.ns], &words[..]].concat());
    };
    tc(&format!("qdisc add dev {} clsact", veth.peer));
    tc(&format!(
        "filter add dev {} egress bpf da obj {} sec tc",
        veth.peer,
        object.path()
    ));
}

/// The tag of a datagram as it arrives.
fn tag_of_one(veth: &Veth, context: &Context) -> Option<u16> {
    let sent = payload(7, 300);
    veth.send(PORT, vec![sent.clone()], 1000).join().unwrap();
    let mut packets = [Received::default(); 4];
    let until = Instant::now() + Duration::from_secs(5);
    loop {
        context
            .wait(Ready::RX, Some(Duration::from_millis(20)))
            .unwrap();
        if context.receive(&mut packets).unwrap() > 0 {
            break;
        }
        assert!(Instant::now() < until, "{:#?}", context.statistics());
    }
    context.frame_release(packets[0].frame).unwrap();
    check_sums(&context.statistics().unwrap(), FRAMES);
    packets[0].headers.vlan_tci
}

/// Does what a warning says to do; PEER is the far end.
fn obey(veth: &Veth, warning: &str) {
    for part in warning.split("ethtool -K ").skip(1) {
        let command = part.split([':', ',']).next().unwrap();
        let words: Vec<&str> = command.split(' ').collect();
        let device = words[0];
        for pair in words[1..].chunks_exact(2) {
            match device {
                "PEER" => veth.far_off(pair[0]),
                _ => run("ethtool", &["-K", device, pair[0], pair[1]]),
            }
        }
    }
}

#[test]
fn tags_beside_the_bytes_are_warned_of_and_what_the_warning_says_helps() {
    if !is_root("tags_beside_the_bytes_are_warned_of_and_what_the_warning_says_helps") {
        return;
    }
    // One tag, and the outer one of two (802.1ad).
    for (protocol, mode) in [(0x8100, XdpMode::Native), (0x88a8, XdpMode::Skb)] {
        let veth = Veth::new();
        push_tags(&veth, protocol);
        let context = open(&veth.host, mode);
        let warned = warnings(&veth.host);
        assert_eq!(warned.len(), 1, "once: {warned:?}");
        assert!(warned[0].contains(&format!("ethtool -K {} rxvlan off", veth.host)));
        // If this fails, the kernel gives the tag back: then there is nothing to warn of any more.
        assert_eq!(tag_of_one(&veth, &context), None);
        drop(context);
        obey(&veth, &warned[0]);
        let context = open(&veth.host, mode);
        assert_eq!(tag_of_one(&veth, &context), Some(TAG), "{}", warned[0]);
        assert_eq!(warnings(&veth.host).len(), 1, "it is right now");
    }
}

#[test]
fn a_peer_in_reach_is_named() {
    if !is_root("a_peer_in_reach_is_named") {
        return;
    }
    let (near, far) = (Link::name("a"), Link::name("b"));
    ip(&format!("link add {near} type veth peer name {far}"));
    let _near = Link(near.clone());
    ip(&format!("link set {near} up"));
    ip(&format!("link set {far} up"));
    drop(open(&near, XdpMode::Auto));
    let warned = warnings(&near);
    assert_eq!(warned.len(), 1, "{warned:?}");
    let command = format!("ethtool -K {far} txvlan off tx-vlan-stag-hw-insert off");
    assert!(warned[0].ends_with(&command), "{warned:?}");
    run("ethtool", &command.split(' ').skip(1).collect::<Vec<_>>());
    // What the near end says of itself is of no matter then.
    drop(open(&near, XdpMode::Auto));
    assert_eq!(warnings(&near).len(), 1);
}

#[test]
fn an_interface_above_others_has_no_tags() {
    if !is_root("an_interface_above_others_has_no_tags") {
        return;
    }
    for (kind, letter) in [("bridge", "c"), ("macvlan", "d")] {
        let veth = Veth::new();
        let upper = Link(Link::name(letter));
        if kind == "bridge" {
            ip(&format!("link add {} type bridge", upper.0));
            ip(&format!("link set {} master {}", veth.host, upper.0));
        } else {
            let (lower, upper) = (&veth.host, &upper.0);
            ip(&format!(
                "link add link {lower} {upper} type macvlan mode passthru"
            ));
        }
        ip(&format!("link set {} up", upper.0));
        push_tags(&veth, 0x8100);
        veth.far_off("txvlan");
        let context = open(&upper.0, XdpMode::Auto);
        assert_eq!(tag_of_one(&veth, &context), None, "{kind}");
        let warned = warnings(&upper.0);
        assert_eq!(warned.len(), 1, "{warned:?}");
        assert!(warned[0].contains("from the interface below"), "{warned:?}");
    }
}

#[test]
fn what_keeps_its_tags_is_not_warned_of() {
    if !is_root("what_keeps_its_tags_is_not_warned_of") {
        return;
    }
    drop(open("lo", XdpMode::Skb));
    assert_eq!(warnings("lo"), [""; 0]);
}
