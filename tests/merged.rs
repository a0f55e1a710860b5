//! Datagrams that come merged into one packet, because the sender left the cutting to a device (GSO) or the stack
//! put them together (GRO): they are never stored as one, and each such packet is counted.
#![deny(unsafe_code)]

mod common;

use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::net::{SocketAddrV4, TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsRawFd;
use std::path::Path;
use std::process::Command;
use std::sync::{Mutex, Once};
use std::time::{Duration, Instant};

use common::packet::{mac_of, udp};
use common::{Scratch, Veth, check_sums, ip, is_root, payload, run, skip};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::sys::socket::{setsockopt, sockopt::UdpGsoSegment};
use unified::config::{Config, Drive};
use unified::context::Context;
use unified::lane::Ready;
use unified::log::Level;
use unified::net::rx::Received;
use unified::net::xdp::XdpMode;
use unified::stats::Statistics;

const PORT: u16 = 9999;
const FRAMES: u32 = 512;

// ---- The library's log, of all tests in this process ----

static LINES: Mutex<Vec<(Level, String)>> = Mutex::new(Vec::new());

/// The warnings about one interface.
fn warnings(interface: &str) -> Vec<String> {
    let of = |line: &str| line.contains(&format!("'{interface}'"));
    let lines = LINES.lock().unwrap();
    let all = lines
        .iter()
        .filter(|(level, line)| *level == Level::Warn && of(line));
    all.map(|(_, line)| line.clone()).collect()
}

fn told_of_merged(interface: &str) -> usize {
    let told =
        |line: &&String| line.contains("xdp_merged") && line.contains("tx-udp-segmentation off");
    warnings(interface).iter().filter(told).count()
}

/// Whether the test can run: as root, on a kernel that tells merged datagrams apart.
fn can_run(test: &str) -> bool {
    if !is_root(test) {
        return false;
    }
    let symbols = std::fs::read_to_string("/proc/kallsyms").unwrap();
    let tells = symbols.contains(" bpf_rdonly_cast\n") && Path::new(BTF).exists();
    if !tells {
        skip(test, "it takes kernel 6.2 or newer, and its BTF");
    }
    tells
}

const BTF: &str = "/sys/kernel/btf/vmlinux";

// ---- What receives ----

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
        rx_ring: 256,
        fill_ring: 256,
        sq_entries: 64,
        cq_entries: 64,
        drive: Drive::Inline,
        ..Config::default()
    };
    config.device.path = "null:".into();
    Context::open(&config).unwrap()
}

/// Takes packets until `done`, and their payloads.
fn receive_until(
    context: &Context,
    done: impl Fn(&Statistics) -> bool,
) -> (Vec<Vec<u8>>, Statistics) {
    let mut payloads = Vec::new();
    let mut packets = [Received::default(); 32];
    let until = Instant::now() + Duration::from_secs(10);
    loop {
        context
            .wait(Ready::RX, Some(Duration::from_millis(20)))
            .unwrap();
        let count = context.receive(&mut packets).unwrap();
        for packet in &packets[..count] {
            let headers = packet.headers;
            let mut bytes = vec![0; headers.payload_len.into()];
            let at = packet.offset as usize + usize::from(headers.payload_offset);
            context.data().read(at, &mut bytes);
            payloads.push(bytes);
            context.frame_release(packet.frame).unwrap();
        }
        let stats = context.statistics().unwrap();
        if count == 0 && done(&stats) {
            check_sums(&stats, FRAMES);
            return (payloads, stats);
        }
        assert!(
            Instant::now() < until,
            "{} packets: {stats:#?}",
            payloads.len()
        );
    }
}

// ---- What sends ----

/// A datagram of 1000 bytes, merged of five if `segment` is 200.
fn send(veth: &Veth, datagram: Vec<u8>, segment: Option<i32>) {
    let to = SocketAddrV4::new(veth.host_addr, PORT);
    let sent = veth.far(move || {
        let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
        if let Some(bytes) = segment {
            setsockopt(&socket, UdpGsoSegment, &bytes).unwrap();
        }
        socket.send_to(&datagram, to).unwrap()
    });
    assert_eq!(sent.join().unwrap(), 1000);
}

fn pieces(datagram: &[u8]) -> Vec<Vec<u8>> {
    datagram.chunks(200).map(<[u8]>::to_vec).collect()
}

#[test]
fn datagrams_that_the_sender_did_not_cut_are_passed_and_counted_in_skb_mode() {
    if !can_run("datagrams_that_the_sender_did_not_cut_are_passed_and_counted_in_skb_mode") {
        return;
    }
    let veth = Veth::new();
    let context = open(&veth.host, XdpMode::Skb);
    // Whom the kernel's stack gives them to: one by one.
    let stack = UdpSocket::bind((veth.host_addr, PORT)).unwrap();
    stack
        .set_read_timeout(Some(Duration::from_secs(5)))
        .unwrap();
    let (first, merged, last) = (payload(1, 1000), payload(2, 1000), payload(3, 1000));
    send(&veth, first.clone(), None);
    send(&veth, merged.clone(), Some(200));
    send(&veth, merged.clone(), Some(200));
    send(&veth, last.clone(), None);
    let (got, stats) = receive_until(&context, |s| s.received == 2 && s.xdp.merged == 2);
    assert_eq!(got, [first, last]);
    assert_eq!(
        (stats.xdp.matched, stats.xdp.malformed),
        (2, 0),
        "{stats:#?}"
    );
    assert!(stats.xdp.passed >= 2);
    for want in pieces(&merged) {
        let mut bytes = [0; 2000];
        let len = stack.recv(&mut bytes).unwrap();
        assert_eq!(bytes[..len], want);
    }
    std::thread::sleep(Duration::from_millis(300));
    context.statistics().unwrap();
    assert_eq!(told_of_merged(&veth.host), 1, "{:#?}", warnings(&veth.host));
}

#[test]
fn a_veth_pair_cuts_datagrams_before_native_xdp() {
    if !can_run("a_veth_pair_cuts_datagrams_before_native_xdp") {
        return;
    }
    let veth = Veth::new();
    let context = open(&veth.host, XdpMode::Native);
    let (merged, whole) = (payload(4, 1000), payload(5, 1000));
    send(&veth, merged.clone(), Some(200));
    send(&veth, whole.clone(), None);
    let (got, stats) = receive_until(&context, |s| s.received + s.xdp.merged >= 6);
    assert_eq!(got[..5], pieces(&merged));
    assert_eq!(got[5], whole);
    assert_eq!(stats.xdp.merged, 0, "{stats:#?}");
}

// ---- A tap interface, as a virtual machine's: packets come with a header that may say "still to be cut" ----

/// VIRTIO_NET_HDR_GSO_UDP_L4 and VIRTIO_NET_HDR_GSO_UDP.
const CUT_DATAGRAMS: u8 = 5;
const CUT_FRAGMENTS: u8 = 3;

struct Tap {
    name: String,
    user: File,
}

impl Tap {
    #[allow(unsafe_code)]
    fn new(number: u32) -> Tap {
        let name = format!("ut{:x}n{number}", std::process::id() & 0xffff);
        let user = OpenOptions::new()
            .read(true)
            .write(true)
            .open("/dev/net/tun")
            .unwrap();
        // struct ifreq: the name, and flags.
        let mut request = [0u8; 40];
        request[..name.len()].copy_from_slice(name.as_bytes());
        let flags = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR;
        request[16..18].copy_from_slice(&(flags as u16).to_ne_bytes());
        // SAFETY: the request is live, and as long as struct ifreq.
        let rc = unsafe { libc::ioctl(user.as_raw_fd(), libc::TUNSETIFF, request.as_mut_ptr()) };
        assert_eq!(rc, 0, "{}", std::io::Error::last_os_error());
        ip(&format!("link set {name} up"));
        Tap { name, user }
    }

    /// A datagram; with `segment` for the kernel to be cut into pieces of so many bytes.
    fn send(&mut self, datagram: &[u8], segment: Option<(u8, u16)>) {
        // struct virtio_net_hdr: flags, gso_type, hdr_len, gso_size, csum_start, csum_offset.
        let mut bytes = vec![0u8; 10];
        if let Some((kind, size)) = segment {
            const NEEDS_CSUM: u8 = 1;
            bytes = vec![NEEDS_CSUM, kind];
            for field in [42, size, 34, 6] {
                bytes.extend(field.to_ne_bytes());
            }
        }
        bytes.extend(udp(mac_of(&self.name), (4321, PORT), datagram));
        assert_eq!(self.user.write(&bytes).unwrap(), bytes.len());
    }
}

#[test]
fn a_tap_interface_runs_native_xdp_on_what_is_still_to_be_cut() {
    if !can_run("a_tap_interface_runs_native_xdp_on_what_is_still_to_be_cut") {
        return;
    }
    for (number, mode) in [XdpMode::Native, XdpMode::Skb].into_iter().enumerate() {
        let mut tap = Tap::new(number as u32);
        let context = open(&tap.name, mode);
        assert_eq!(
            context.info().network.as_ref().unwrap().native,
            mode == XdpMode::Native
        );
        let mut whole = Vec::new();
        for i in 0..200 {
            let datagram = payload(i, 1000);
            match i % 10 {
                9 => tap.send(&datagram, Some((CUT_DATAGRAMS, 200))),
                rest => {
                    // One datagram, which is to be cut into fragments: as good as any other.
                    tap.send(&datagram, (rest == 5).then_some((CUT_FRAGMENTS, 400)));
                    whole.push(datagram);
                }
            }
            if i % 40 == 39 {
                let (got, _) = receive_until(&context, |s| s.received == whole.len() as u64);
                assert_eq!(got, whole[whole.len() - 36..]);
            }
        }
        let stats = context.statistics().unwrap();
        assert_eq!(
            (stats.xdp.merged, stats.xdp.matched),
            (20, 180),
            "{mode:?}: {stats:#?}"
        );
    }
}

// ---- A bridge, whose ports hand on what they got ----

struct Bridge {
    name: String,
    port: Veth,
}

impl Bridge {
    fn new(number: u32) -> Bridge {
        let name = format!("ub{:x}n{number}", std::process::id() & 0xffff);
        let port = Veth::new();
        ip(&format!("link add {name} type bridge"));
        ip(&format!("link set {} master {name}", port.host));
        ip(&format!("link set {name} up"));
        Bridge { name, port }
    }
}

impl Drop for Bridge {
    fn drop(&mut self) {
        let _ = Command::new("ip")
            .args(["link", "del", &self.name])
            .output();
    }
}

#[test]
fn a_bridge_hands_on_what_the_sender_did_not_cut() {
    if !can_run("a_bridge_hands_on_what_the_sender_did_not_cut") {
        return;
    }
    let bridge = Bridge::new(0);
    let context = open(&bridge.name, XdpMode::Auto);
    let (merged, whole) = (payload(6, 1000), payload(7, 1000));
    send(&bridge.port, merged, Some(200));
    send(&bridge.port, whole.clone(), None);
    let (got, stats) = receive_until(&context, |s| s.received == 1 && s.xdp.merged == 1);
    assert_eq!(got, [whole]);
    let told = warnings(&bridge.name);
    assert_eq!(told_of_merged(&bridge.name), 1, "{told:?} {stats:#?}");
    assert!(told.iter().any(|line| line.contains("gro off")), "{told:?}");
}

#[test]
fn datagrams_that_gro_put_together_are_passed_and_counted() {
    if !can_run("datagrams_that_gro_put_together_are_passed_and_counted") {
        return;
    }
    // As one run of bytes, and as a list of packets.
    for (number, feature) in [(1, "rx-udp-gro-forwarding"), (2, "rx-gro-list")] {
        let bridge = Bridge::new(number);
        let port = &bridge.port;
        run("ethtool", &["-K", &port.host, "gro", "on", feature, "on"]);
        // The far kernel cuts; and without TSO what it sends is good enough for GRO here.
        port.far_off("tx-udp-segmentation");
        port.far_off("tso");
        let context = open(&bridge.name, XdpMode::Auto);
        for number in 0..10 {
            send(port, payload(number, 1000), Some(200));
        }
        let (got, stats) = receive_until(&context, |s| s.received + 5 * s.xdp.merged >= 50);
        assert!(
            got.iter().all(|payload| payload.len() == 200),
            "{feature}: {got:?}"
        );
        assert!(stats.xdp.merged > 0, "{feature}: nothing was merged");
    }
}

#[test]
fn a_stream_that_is_sent_in_large_pieces_is_passed_and_not_counted() {
    if !can_run("a_stream_that_is_sent_in_large_pieces_is_passed_and_not_counted") {
        return;
    }
    let veth = Veth::new();
    let context = open(&veth.host, XdpMode::Skb);
    // The port's number is of no matter.
    let listener = TcpListener::bind((veth.host_addr, PORT)).unwrap();
    let to = SocketAddrV4::new(veth.host_addr, PORT);
    let sent = veth.far(move || {
        TcpStream::connect(to)
            .unwrap()
            .write_all(&[7; 200_000])
            .unwrap()
    });
    let mut bytes = Vec::new();
    listener
        .accept()
        .unwrap()
        .0
        .read_to_end(&mut bytes)
        .unwrap();
    sent.join().unwrap();
    assert_eq!(bytes.len(), 200_000);
    let (_, stats) = receive_until(&context, |_| true);
    assert!(
        (5..120).contains(&stats.xdp.passed),
        "not in large pieces: {stats:#?}"
    );
    assert_eq!((stats.xdp.matched, stats.xdp.merged), (0, 0), "{stats:#?}");
}

/// Opens a context on a kernel that, as far as the caller can see, has no BTF.
fn open_without_btf(interface: &str, mode: XdpMode) -> Context {
    let interface = interface.to_string();
    let opened = std::thread::spawn(move || {
        let nothing = Scratch::new(env!("CARGO_TARGET_TMPDIR"), "btf");
        File::create(&nothing.0).unwrap();
        unshare(CloneFlags::CLONE_NEWNS).unwrap();
        let none = None::<&str>;
        let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
        mount(none, "/", none, private, none).unwrap();
        if Path::new(BTF).exists() {
            mount(Some(&nothing.0), BTF, none, MsFlags::MS_BIND, none).unwrap();
        }
        open(&interface, mode)
    });
    opened.join().unwrap()
}

#[test]
fn a_kernel_that_cannot_tell_is_warned_of() {
    if !is_root("a_kernel_that_cannot_tell_is_warned_of") {
        return;
    }
    let veth = Veth::new();
    let told = || {
        let mut all = warnings(&veth.host);
        all.retain(|line| line.contains("6.2") && line.contains("tx-udp-segmentation off"));
        all.len()
    };
    drop(open_without_btf(&veth.host, XdpMode::Native));
    assert_eq!(told(), 0, "native XDP is given no merged datagrams");
    let context = open_without_btf(&veth.host, XdpMode::Skb);
    assert_eq!(told(), 1, "{:#?}", warnings(&veth.host));
    let (merged, whole) = (payload(8, 1000), payload(9, 1000));
    send(&veth, merged.clone(), Some(200));
    send(&veth, whole.clone(), None);
    let (got, stats) = receive_until(&context, |s| s.received == 2);
    assert_eq!(got, [merged, whole]);
    assert_eq!(stats.xdp.merged, 0);
    // What the warning says.
    veth.far_off("tx-udp-segmentation");
    let cut = payload(10, 1000);
    send(&veth, cut.clone(), Some(200));
    let (got, _) = receive_until(&context, |s| s.received >= 7);
    assert_eq!(got, pieces(&cut));
    assert_eq!(told(), 1);
}
