//! VLAN tags that are not in the bytes of packets but beside them, in the socket buffer: a sender that leaves them
//! there, a receiver that puts them there, and the warnings about both.
#![forbid(unsafe_code)]

mod common;

use std::fs;
use std::net::{SocketAddrV4, UdpSocket};
use std::sync::{Mutex, Once};
use std::time::{Duration, Instant};

use common::{Scratch, Veth, check_sums, ip, is_root, payload, run};
use unified::config::{Config, Drive};
use unified::context::Context;
use unified::log::Level;
use unified::net::rx::Received;
use unified::net::xdp::XdpMode;
use unified::wait::WAIT_RX;

const PORT: u16 = 9999;
const FRAMES: u32 = 256;
const TAG: u16 = 42;

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

/// Turns a feature of the sending end off.
fn far_off(veth: &Veth, features: &[&str]) {
    for feature in features {
        let ethtool = [
            "netns", "exec", &veth.ns, "ethtool", "-K", &veth.peer, feature, "off",
        ];
        run("ip", &ethtool);
    }
}

/// The tag of a datagram as it arrives.
fn tag_of_one(veth: &Veth, context: &Context) -> Option<u16> {
    let sent = payload(7, 300);
    veth.send(PORT, vec![sent.clone()], 1000).join().unwrap();
    let mut packets = [Received::default(); 4];
    let until = Instant::now() + Duration::from_secs(5);
    loop {
        context
            .wait(WAIT_RX, Some(Duration::from_millis(20)))
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

#[test]
fn explore() {
    for protocol in [0x8100, 0x88a8] {
        for mode in [XdpMode::Native, XdpMode::Skb] {
            let veth = Veth::new();
            push_tags(&veth, protocol);
            let context = open(&veth.host, mode);
            let t = |what: &str| {
                eprintln!(
                    "{protocol:x} {mode:?} {what}: {:?}",
                    tag_of_one(&veth, &context)
                )
            };
            t("default");
            run("ethtool", &["-K", &veth.host, "rxvlan", "off"]);
            run(
                "ethtool",
                &["-K", &veth.host, "rx-vlan-stag-hw-parse", "off"],
            );
            t("rxvlan off");
            far_off(&veth, &["txvlan"]);
            t("txvlan off");
            far_off(&veth, &["tx-vlan-stag-hw-insert"]);
            t("stag off");
            eprintln!("{:#?}", warnings(&veth.host));
        }
    }
}

#[test]
fn explore_bridge() {
    for kind in ["bridge", "macvlan"] {
        let veth = Veth::new();
        let br = format!("ub{:x}", std::process::id() & 0xffff);
        if kind == "bridge" {
            ip(&format!("link add {br} type bridge"));
            ip(&format!("link set {} master {br}", veth.host));
        } else {
            ip(&format!(
                "link add link {} {br} type macvlan mode passthru",
                veth.host
            ));
        }
        ip(&format!("link set {br} up"));
        push_tags(&veth, 0x8100);
        far_off(&veth, &["txvlan"]);
        std::thread::sleep(Duration::from_millis(500));
        let context = open(&br, XdpMode::Auto);
        eprintln!(
            "{kind}: {:?} {:?}",
            tag_of_one(&veth, &context),
            warnings(&br)
        );
        eprintln!("{:?}", context.info().network);
        drop(context);
        ip(&format!("link del {br}"));
    }
}
