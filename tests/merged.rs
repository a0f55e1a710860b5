//! Datagrams that come merged into one packet, because the sender left the cutting to a device (GSO) or the stack
//! put them together (GRO): they are never stored as one, and each such packet is counted.
#![deny(unsafe_code)]

mod common;

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::net::{Ipv4Addr, SocketAddrV4, TcpStream, UdpSocket};
use std::os::fd::AsRawFd;
use std::sync::{Arc, Mutex, Once};
use std::time::{Duration, Instant};

use common::{Veth, check_sums, ip, is_root, payload, run};
use etherparse::PacketBuilder;
use nix::sys::socket::{setsockopt, sockopt::UdpGsoSegment};
use unified::config::{Config, Drive};
use unified::context::Context;
use unified::log::Level;
use unified::net::rx::Received;
use unified::net::xdp::XdpMode;
use unified::stats::Statistics;
use unified::wait::WAIT_RX;

const PORT: u16 = 9999;
const FRAMES: u32 = 512;

// ---- The library's log, of all tests in this process ----

static LINES: Mutex<Vec<(Level, String)>> = Mutex::new(Vec::new());

/// The warnings about one interface.
fn warnings(interface: &str) -> Vec<String> {
    let of = |line: &str| line.contains(&format!("'{interface}'"));
    let lines = LINES.lock().unwrap();
    let all = lines.iter().filter(|(level, line)| *level == Level::Warn && of(line));
    all.map(|(_, line)| line.clone()).collect()
}

fn told_of_merged(interface: &str) -> usize {
    let told = |line: &&String| line.contains("xdp_merged") && line.contains("tx-udp-segmentation off");
    warnings(interface).iter().filter(told).count()
}

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
fn receive_until(context: &Context, done: impl Fn(&Statistics) -> bool) -> (Vec<Vec<u8>>, Statistics) {
    let mut payloads = Vec::new();
    let mut packets = [Received::default(); 32];
    let until = Instant::now() + Duration::from_secs(10);
    loop {
        context.wait(WAIT_RX, Some(Duration::from_millis(20))).unwrap();
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
        assert!(Instant::now() < until, "{} packets: {stats:#?}", payloads.len());
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
    if !is_root("datagrams_that_the_sender_did_not_cut_are_passed_and_counted_in_skb_mode") {
        return;
    }
    let veth = Veth::new();
    let context = open(&veth.host, XdpMode::Skb);
    // Whom the kernel's stack gives them to: one by one.
    let stack = UdpSocket::bind((veth.host_addr, PORT)).unwrap();
    stack.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    let (first, merged, last) = (payload(1, 1000), payload(2, 1000), payload(3, 1000));
    send(&veth, first.clone(), None);
    send(&veth, merged.clone(), Some(200));
    send(&veth, merged.clone(), Some(200));
    send(&veth, last.clone(), None);
    let (got, stats) = receive_until(&context, |s| s.received == 2 && s.xdp.merged == 2);
    assert_eq!(got, [first, last]);
    assert_eq!((stats.xdp.matched, stats.xdp.malformed), (2, 0), "{stats:#?}");
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
    if !is_root("a_veth_pair_cuts_datagrams_before_native_xdp") {
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

struct Tap {
    name: String,
    user: File,
}

impl Tap {
    #[allow(unsafe_code)]
    fn new(number: u32) -> Tap {
        let name = format!("ut{:x}n{number}", std::process::id() & 0xffff);
        let user = OpenOptions::new().read(true).write(true).open("/dev/net/tun").unwrap();
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

    /// A datagram, for the kernel to be cut into pieces of so many bytes.
    fn send(&mut self, datagram: &[u8], segment: Option<u16>) {
        // struct virtio_net_hdr: flags, gso_type, hdr_len, gso_size, csum_start, csum_offset.
        let mut bytes = vec![0u8; 10];
        if let Some(segment) = segment {
            const NEEDS_CSUM: u8 = 1;
            const GSO_UDP_L4: u8 = 5;
            bytes = vec![NEEDS_CSUM, GSO_UDP_L4];
            for field in [42, segment, 34, 6] {
                bytes.extend(field.to_ne_bytes());
            }
        }
        let mac = std::fs::read_to_string(format!("/sys/class/net/{}/address", self.name)).unwrap();
        let mac: Vec<u8> = mac.trim().split(':').map(|b| u8::from_str_radix(b, 16).unwrap()).collect();
        PacketBuilder::ethernet2([2, 0, 0, 0, 0, 1], mac.try_into().unwrap())
            .ipv4([198, 18, 0, 1], [198, 18, 0, 2], 64)
            .udp(4321, PORT)
            .write(&mut bytes, datagram)
            .unwrap();
        assert_eq!(self.user.write(&bytes).unwrap(), bytes.len());
    }
}

#[test]
fn a_tap_interface_runs_native_xdp_on_what_is_still_to_be_cut() {
    if !is_root("a_tap_interface_runs_native_xdp_on_what_is_still_to_be_cut") {
        return;
    }
    for (number, mode) in [XdpMode::Native, XdpMode::Skb].into_iter().enumerate() {
        let mut tap = Tap::new(number as u32);
        let context = open(&tap.name, mode);
        assert_eq!(context.info().network.as_ref().unwrap().native, mode == XdpMode::Native);
        let mut whole = Vec::new();
        for i in 0..200 {
            let datagram = payload(i, 1000);
            match i % 10 {
                9 => tap.send(&datagram, Some(200)),
                _ => {
                    tap.send(&datagram, None);
                    whole.push(datagram);
                }
            }
            if i % 40 == 39 {
                let (got, _) = receive_until(&context, |s| s.received == whole.len() as u64);
                assert_eq!(got, whole[whole.len() - 36..]);
            }
        }
        let stats = context.statistics().unwrap();
        assert_eq!((stats.xdp.merged, stats.xdp.matched), (20, 180), "{mode:?}: {stats:#?}");
    }
}
