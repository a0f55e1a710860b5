//! Another XDP program beside the library's, through libxdp's dispatcher. UNIFIED_TEST_OTHER_XDP names the
//! other one's object; its program is called other_pass. The kernel must let the dispatcher in.

mod common;

use std::net::{SocketAddrV4, UdpSocket};
use std::process::Command;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use common::{Veth, check_sums, is_root, log_to_stderr, payload, skip};
use nix::sys::socket::{setsockopt, sockopt::UdpGsoSegment};
use unified::config::Config;
use unified::context::Context;
use unified::lane::Ready;
use unified::log::Level;
use unified::net::rx::Received;
use unified::net::xdp::XdpMode;

const OURS: &str = "unified_xdp";
const OTHER: &str = "other_pass";

fn loader(args: &[&str]) -> String {
    let output = Command::new("xdp-loader").args(args).output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert!(
        output.status.success(),
        "xdp-loader {args:?}: {}{}",
        text(&output.stdout),
        text(&output.stderr)
    );
    text(&output.stdout)
}

/// The programs on an interface in the order in which they run, as (priority, name), with xdp-loader's
/// lines for it: " => 50  unified_xdp  ID ...".
fn programs(ifname: &str) -> Vec<(u32, String)> {
    let status = loader(&["status", ifname]);
    status
        .lines()
        .filter_map(|line| line.trim().strip_prefix("=>"))
        .map(|line| {
            let mut words = line.split_whitespace();
            let priority = words.next().unwrap().parse().unwrap();
            (priority, words.next().unwrap().to_string())
        })
        .collect()
}

fn is(ifname: &str, expected: &[(u32, &str)]) {
    let found = programs(ifname);
    let found: Vec<(u32, &str)> = found.iter().map(|(p, n)| (*p, n.as_str())).collect();
    assert_eq!(found, expected, "{}", loader(&["status", ifname]));
}

/// The number that xdp-loader's status gives a program.
fn id_of(ifname: &str, name: &str) -> String {
    let status = loader(&["status", ifname]);
    let line = status.lines().find(|line| line.contains(name)).unwrap();
    line.split_whitespace().nth(3).unwrap().to_string()
}

fn open(veth: &Veth) -> Context {
    let mut config = Config {
        ifname: Some(veth.host.clone()),
        ..Config::default()
    };
    config.device.path = "null:".into();
    let context = Context::open(&config).unwrap();
    let network = context.info().network.unwrap();
    assert!(network.dispatcher && network.native);
    context
}

/// Packets still come through: sends some and takes them.
fn receives(veth: &Veth, context: &Context) {
    const COUNT: usize = 100;
    let payloads = (0..COUNT).map(|i| payload(i as u32, 100)).collect();
    let sender = veth.send(9999, payloads, 2000);
    let mut packets = [Received::default(); 32];
    let (mut count, start) = (0, Instant::now());
    while count < COUNT && start.elapsed() < Duration::from_secs(20) {
        context
            .wait(Ready::RX, Some(Duration::from_millis(100)))
            .unwrap();
        let received = context.receive(&mut packets).unwrap();
        for packet in &packets[..received] {
            context.frame_release(packet.frame).unwrap();
        }
        count += received;
    }
    sender.join().unwrap();
    assert_eq!(count, COUNT, "{:#?}", context.statistics().unwrap());
}

fn no_pins() {
    let pins: Vec<_> = std::fs::read_dir("/sys/fs/bpf/xdp")
        .map(|dir| dir.map(|e| e.unwrap().path()).collect())
        .unwrap_or_default();
    assert!(pins.is_empty(), "{pins:?}");
}

/// The other program's object, or `None` with the skip said.
fn other(test: &str) -> Option<String> {
    if !is_root(test) {
        return None;
    }
    log_to_stderr();
    match std::env::var("UNIFIED_TEST_OTHER_XDP") {
        Ok(path) => Some(path),
        Err(_) => {
            skip(test, "UNIFIED_TEST_OTHER_XDP names no XDP object");
            None
        }
    }
}

#[test]
fn another_program_comes_later_and_stays() {
    let Some(object) = other("another_program_comes_later_and_stays") else {
        return;
    };
    let veth = Veth::new();
    let ifname = veth.host.as_str();
    let context = open(&veth);
    is(ifname, &[(50, OURS)]);
    loader(&["load", "-m", "native", ifname, &object]);
    is(ifname, &[(50, OURS), (70, OTHER)]);
    receives(&veth, &context);
    drop(context);
    is(ifname, &[(70, OTHER)]);
    loader(&["unload", ifname, "--all"]);
    is(ifname, &[]);
    no_pins();
}

#[test]
fn another_program_is_there_first_and_goes() {
    let Some(object) = other("another_program_is_there_first_and_goes") else {
        return;
    };
    let veth = Veth::new();
    let ifname = veth.host.as_str();
    loader(&["load", "-m", "native", ifname, &object]);
    is(ifname, &[(70, OTHER)]);
    let context = open(&veth);
    is(ifname, &[(50, OURS), (70, OTHER)]);
    receives(&veth, &context);
    loader(&["unload", ifname, "--id", &id_of(ifname, OTHER)]);
    is(ifname, &[(50, OURS)]);
    receives(&veth, &context);
    drop(context);
    is(ifname, &[]);
    no_pins();
}

/// Somebody unloads the library's program, alone or with all others: that is reported, nothing is put back,
/// and at the end nothing of somebody else's is touched.
#[test]
fn somebody_unloads_ours() {
    let Some(object) = other("somebody_unloads_ours") else {
        return;
    };
    for all in [false, true] {
        let veth = Veth::new();
        let ifname = veth.host.as_str();
        let context = open(&veth);
        loader(&["load", "-m", "native", ifname, &object]);
        receives(&veth, &context);
        let link = context.statistics().unwrap().link;
        assert_eq!(
            (link.xdp_attached, link.xdp_changes),
            (true, 0),
            "beside ours"
        );
        if all {
            loader(&["unload", ifname, "--all"]);
        } else {
            loader(&["unload", ifname, "--id", &id_of(ifname, OURS)]);
        }
        let left: &[(u32, &str)] = if all { &[] } else { &[(70, OTHER)] };
        let start = Instant::now();
        while context.statistics().unwrap().link.xdp_attached {
            assert!(start.elapsed() < Duration::from_secs(5), "not noticed");
            std::thread::sleep(Duration::from_millis(20));
        }
        assert_eq!(context.statistics().unwrap().link.xdp_changes, 1);
        std::thread::sleep(Duration::from_secs(1));
        is(ifname, left);
        drop(context);
        is(ifname, left);
        if !all {
            loader(&["unload", ifname, "--all"]);
        }
        // And again from the beginning.
        let context = open(&veth);
        is(ifname, &[(50, OURS)]);
        receives(&veth, &context);
        drop(context);
        is(ifname, &[]);
        no_pins();
    }
}

/// Datagrams that the sender left to a device to cut: the program looks for them as an extension too, and a kernel
/// that cannot tell is warned of.
#[test]
fn merged_datagrams_in_skb_mode() {
    if other("merged_datagrams_in_skb_mode").is_none() {
        return;
    }
    let symbols = std::fs::read_to_string("/proc/kallsyms").unwrap();
    let tells = symbols.contains(" bpf_rdonly_cast\n");
    static WARNINGS: Mutex<Vec<String>> = Mutex::new(Vec::new());
    unified::log::set_callback(Some(Box::new(|level, line| {
        eprintln!("{level:?}: {line}");
        if level == Level::Warn {
            WARNINGS.lock().unwrap().push(line.into());
        }
    })));
    let veth = Veth::new();
    let mut config = Config {
        ifname: Some(veth.host.clone()),
        xdp_mode: XdpMode::Skb,
        ..Config::default()
    };
    config.device.path = "null:".into();
    let context = Context::open(&config).unwrap();
    let network = context.info().network.unwrap();
    assert!(network.dispatcher && !network.native);
    let warned = || {
        let warnings = WARNINGS.lock().unwrap();
        warnings
            .iter()
            .any(|line| line.contains("tx-udp-segmentation off"))
    };
    assert_eq!(warned(), !tells);
    let to = SocketAddrV4::new(veth.host_addr, 9999);
    let sent = veth.far(move || {
        let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
        socket.send_to(&payload(1, 1000), to).unwrap();
        setsockopt(&socket, UdpGsoSegment, &200).unwrap();
        socket.send_to(&payload(2, 1000), to).unwrap();
    });
    sent.join().unwrap();
    let want = if tells { (1, 1) } else { (2, 0) };
    let mut packets = [Received::default(); 4];
    let start = Instant::now();
    loop {
        let wait = Some(Duration::from_millis(100));
        context.wait(Ready::RX, wait).unwrap();
        let received = context.receive(&mut packets).unwrap();
        for packet in &packets[..received] {
            assert_eq!(packet.headers.payload_len, 1000);
            context.frame_release(packet.frame).unwrap();
        }
        let stats = context.statistics().unwrap();
        if (stats.received, stats.xdp.merged) == want && warned() {
            check_sums(&stats, config.frames(1));
            break;
        }
        assert!(start.elapsed() < Duration::from_secs(10), "{stats:#?}");
    }
    drop(context);
    no_pins();
}
