//! Faults of the network, made for real: interfaces that go down, disappear and move away, XDP programs that
//! somebody else takes off or replaces, packets of every bad kind. Nothing hangs, nothing is lost unsaid, and
//! what can go on goes on by itself.
#![forbid(unsafe_code)]

mod common;

use std::fs;
use std::process::Command;
use std::sync::{Arc, Mutex, Once};
use std::time::{Duration, Instant};

use common::part::{Part, say, told};
use common::recording;
use common::recording::{Stream, check_stored, config, settle, statistics, until, within_a_second};
use common::{Scratch, SmallDisk, Veth, check_sums, ip, is_full_tier, is_root, payload};
use unified::config::{Config, Drive};
use unified::context::Context;
use unified::lane::Ready;
use unified::log::{self, Level};
use unified::net::rx::Received;
use unified::pipeline::{Pipeline, PipelineConfig};
use unified::stats::Statistics;
use unified::sys::bpf;

// ---- Log lines ----

static LINES: Mutex<Vec<(Level, String)>> = Mutex::new(Vec::new());

/// Keeps the process's log lines from now on.
fn keep_log() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        log::set_callback(Some(Box::new(|level, line| {
            LINES.lock().unwrap().push((level, line.to_string()));
        })));
    });
}

/// How many lines name the interface and say that.
fn said(ifname: &str, words: &str) -> usize {
    let quoted = format!("'{ifname}'");
    let lines = LINES.lock().unwrap();
    let about = |line: &&(Level, String)| line.1.contains(&quoted) && line.1.contains(words);
    lines.iter().filter(about).count()
}

// ---- The link ----

#[test]
fn an_interface_that_goes_down_and_comes_back_is_noticed_and_goes_on_by_itself() {
    if !is_root("an_interface_that_goes_down_and_comes_back_is_noticed_and_goes_on_by_itself") {
        return;
    }
    keep_log();
    let veth = Veth::new();
    let file = Scratch::new(env!("CARGO_TARGET_TMPDIR"), "down");
    let context = Arc::new(Context::open(&config(&veth, file.path())).unwrap());
    assert!(statistics(&context).link.up);
    let pipeline = Pipeline::start(context.clone(), PipelineConfig::default()).unwrap();
    let stream = Stream::start(&veth);
    let host = &veth.host;
    for round in 1..=3 {
        let before = pipeline.status().stored;
        until(10, "packets come", || {
            pipeline.status().stored > before + 50
        });
        ip(&format!("link set {host} down"));
        // The pipeline's own threads notice: the log tells without anybody asking.
        within_a_second("down is logged", || said(host, "is down") == round);
        let stats = statistics(&context);
        assert!(!stats.link.up);
        assert_eq!(stats.link.changes, round as u64 * 2 - 1);
        assert!(pipeline.status().running);
        ip(&format!("link set {host} up"));
        within_a_second("up is logged", || said(host, "is up again") == round);
        assert!(statistics(&context).link.up);
        assert!(statistics(&context).link.xdp_attached);
    }
    let before = pipeline.status().stored;
    until(10, "it goes on", || pipeline.status().stored > before + 50);
    let sent = stream.stop();
    settle(&context);
    let (status, result) = pipeline.stop();
    result.unwrap();
    assert_eq!((status.error, status.failed), (0, 0));
    let stats = settle(&context);
    assert_eq!(stats.stored, status.stored);
    assert_eq!(stats.link.changes, 6);
    check_stored(file.path(), status.stored, sent);
}

#[test]
fn a_cable_that_flaps_twenty_times_under_traffic_costs_nothing_but_what_was_on_it() {
    if !is_root("a_cable_that_flaps_twenty_times_under_traffic_costs_nothing_but_what_was_on_it") {
        return;
    }
    keep_log();
    let veth = Veth::new();
    let file = Scratch::new(env!("CARGO_TARGET_TMPDIR"), "flaps");
    let context = Arc::new(Context::open(&config(&veth, file.path())).unwrap());
    let pipeline = Pipeline::start(context.clone(), PipelineConfig::default()).unwrap();
    let stream = Stream::start(&veth);
    let cable = |up: &str| ip(&format!("-n {} link set {} {up}", veth.ns, veth.peer));
    for flap in 0..20 {
        cable("down");
        // Some too short to be seen, some long enough.
        std::thread::sleep(Duration::from_millis(if flap % 4 == 0 { 600 } else { 20 }));
        cable("up");
        let before = pipeline.status().stored;
        until(10, "packets after a flap", || {
            pipeline.status().stored > before
        });
    }
    let sent = stream.stop();
    let stats = settle(&context);
    let lines = said(&veth.host, "is down") + said(&veth.host, "is up again");
    assert!(stats.link.up);
    assert_eq!(stats.link.changes, lines as u64, "one line for each change");
    assert!((10..=40).contains(&stats.link.changes), "{:?}", stats.link);
    assert!(stats.link.xdp_attached && stats.link.xdp_changes == 0);
    let (status, result) = pipeline.stop();
    result.unwrap();
    assert_eq!(status.error, 0);
    check_stored(file.path(), status.stored, sent);
    drop(context);
    let index = unified::sys::link::index_of(&veth.host).unwrap();
    assert!(bpf::attached(index).is_none());
}

/// The interface ends under traffic: typed error, what was received is stored, nothing is left.
fn loses_its_interface(act: impl Fn(&Veth), words: &str) {
    keep_log();
    let veth = Veth::new();
    let file = Scratch::new(env!("CARGO_TARGET_TMPDIR"), "gone");
    let context = Arc::new(Context::open(&config(&veth, file.path())).unwrap());
    let pipeline = Pipeline::start(context.clone(), PipelineConfig::default()).unwrap();
    let stream = Stream::start(&veth);
    until(10, "packets come", || pipeline.status().stored > 100);
    act(&veth);
    within_a_second("the pipeline ends", || !pipeline.status().running);
    assert_eq!(
        said(&veth.host, words),
        2,
        "the change, and why the thread ended"
    );
    let sent = stream.stop();
    let stats = statistics(&context);
    assert!(!stats.link.up && !stats.link.xdp_attached);
    // The end, and before it perhaps that it goes down.
    assert!((1..=2).contains(&stats.link.changes), "{:?}", stats.link);
    let (status, result) = pipeline.stop();
    // The storing itself is in order: everything is flushed.
    result.unwrap();
    assert_eq!(status.error, libc::ENODEV);
    assert_eq!((status.durable, status.failed), (status.submitted, 0));
    assert!(status.stored > 100);
    let stats = statistics(&context);
    assert_eq!(stats.received, stats.stored);
    assert_eq!(stats.rx_pending, 0);
    assert_eq!(status.stored, stats.stored);
    check_stored(file.path(), status.stored, sent);
    // By hand the same, at once, and again.
    for _ in 0..3 {
        let start = Instant::now();
        for error in [
            context.receive(&mut [Received::default(); 4]).unwrap_err(),
            context.wait(Ready::RX, None).unwrap_err(),
        ] {
            assert_eq!(error.errno(), libc::ENODEV, "{error}");
            assert!(error.message().contains(words), "{error}");
            assert!(error.message().contains(&veth.host), "{error}");
        }
        assert!(start.elapsed() < Duration::from_millis(100));
    }
    drop(context);
}

#[test]
fn a_deleted_interface_ends_receiving_and_keeps_what_came() {
    if !is_root("a_deleted_interface_ends_receiving_and_keeps_what_came") {
        return;
    }
    loses_its_interface(|veth| ip(&format!("link del {}", veth.host)), "was deleted");
}

#[test]
fn an_interface_moved_to_another_namespace_ends_receiving_and_can_come_back() {
    if !is_root("an_interface_moved_to_another_namespace_ends_receiving_and_can_come_back") {
        return;
    }
    let moved = |veth: &Veth| {
        ip(&format!("link set {} netns {}", veth.host, veth.ns));
    };
    loses_its_interface(moved, "was moved");
    // It comes back while the process lives, with the program still on it: that is nobody's now.
    let veth = Veth::new();
    let file = Scratch::new(env!("CARGO_TARGET_TMPDIR"), "back");
    let config = config(&veth, file.path());
    let context = Context::open(&config).unwrap();
    moved(&veth);
    within_a_second("noticed", || !statistics(&context).link.xdp_attached);
    drop(context);
    ip(&format!(
        "-n {} link set {} netns {}",
        veth.ns,
        veth.host,
        std::process::id()
    ));
    ip(&format!("addr add {}/30 dev {}", veth.host_addr, veth.host));
    ip(&format!("link set {} up", veth.host));
    let context = Context::open(&config).unwrap();
    let stream = Stream::start(&veth);
    until(10, "packets come", || {
        let _ = context.receive(&mut [Received::default(); 1]).unwrap();
        statistics(&context).received > 5
    });
    drop(stream);
    let index = context.info().network.unwrap().ifindex;
    drop(context);
    assert!(bpf::attached(index).is_none());
}

#[test]
fn an_event_loop_is_woken_by_the_link_and_does_not_spin() {
    if !is_root("an_event_loop_is_woken_by_the_link_and_does_not_spin") {
        return;
    }
    keep_log();
    let veth = Veth::new();
    let context = Context::open(&config(&veth, "null:")).unwrap();
    let fd = context.poll_fd().unwrap();
    let poll =
        |ms| unified::sys::event::poll_readable(&[fd], Some(Duration::from_millis(ms))).unwrap();
    // One turn of a loop: how often it was woken until nothing more came.
    let turns = || {
        let mut turns = 0;
        while poll(700) && turns < 1000 {
            turns += 1;
            while !context
                .receive(&mut [Received::default(); 4])
                .unwrap()
                .eq(&0)
            {}
            let _ = context.completions(&mut [Default::default(); 4]).unwrap();
        }
        turns
    };
    turns();
    // What becomes of other interfaces is not for this one.
    for _ in 0..30 {
        drop(Veth::new());
    }
    assert_eq!(turns(), 0, "woken by other interfaces");
    for round in 1..=2 {
        ip(&format!("link set {} down", veth.host));
        assert!(turns() < 50, "it must not spin");
        assert_eq!(said(&veth.host, "is down"), round);
        ip(&format!("link set {} up", veth.host));
        assert!(turns() < 50, "it must not spin");
        assert_eq!(said(&veth.host, "is up again"), round);
    }
    ip(&format!("link del {}", veth.host));
    assert!(poll(1000), "the end wakes too");
    until(2, "the end is told", || {
        poll(100);
        context
            .receive(&mut [Received::default(); 4])
            .is_err_and(|e| e.errno() == libc::ENODEV)
    });
}

// ---- The XDP program ----

/// A program that passes everything, compiled here.
struct Passer(Scratch);

impl Passer {
    fn new() -> Passer {
        let source = Scratch::new(env!("CARGO_TARGET_TMPDIR"), "passer.c");
        let object = Scratch::new(env!("CARGO_TARGET_TMPDIR"), "passer.o");
        let text = "__attribute__((section(\"xdp\"), used)) int passer(void *ctx) { return 2; }\n\
                    char _license[] __attribute__((section(\"license\"), used)) = \"GPL\";\n";
        fs::write(&source.0, text).unwrap();
        let output = Command::new("clang")
            .args([
                "-O2",
                "-x",
                "c",
                "-target",
                "bpf",
                "-c",
                source.path(),
                "-o",
                object.path(),
            ])
            .output()
            .unwrap();
        assert!(output.status.success(), "{output:?}");
        Passer(object)
    }

    fn replace_on(&self, ifname: &str) {
        ip(&format!(
            "-force link set dev {ifname} xdp obj {} sec xdp",
            self.0.path()
        ));
    }
}

#[test]
fn an_xdp_program_that_somebody_takes_off_is_reported_and_not_fought_over() {
    if !is_root("an_xdp_program_that_somebody_takes_off_is_reported_and_not_fought_over") {
        return;
    }
    keep_log();
    let veth = Veth::new();
    let passer = Passer::new();
    let host = &veth.host;
    for replaced in [false, true] {
        let file = Scratch::new(env!("CARGO_TARGET_TMPDIR"), "taken-off");
        let context = Arc::new(Context::open(&config(&veth, file.path())).unwrap());
        let own = context.info().network.unwrap();
        let pipeline = Pipeline::start(context.clone(), PipelineConfig::default()).unwrap();
        let stream = Stream::start(&veth);
        until(10, "packets come", || pipeline.status().stored > 50);
        let words = if replaced {
            passer.replace_on(host);
            "replaced the XDP program"
        } else {
            ip(&format!("link set dev {host} xdp off"));
            "took the XDP program off"
        };
        within_a_second("logged", || said(host, words) == 1);
        let link = statistics(&context).link;
        assert!(link.up && !link.xdp_attached);
        assert_eq!(link.xdp_changes, 1);
        // Nothing was put back, neither now nor a second later, and nothing ended.
        std::thread::sleep(Duration::from_millis(700));
        let there = bpf::attached(own.ifindex);
        match &there {
            Some(list) => {
                assert!(replaced, "{list:?}");
                assert_ne!(list.programs[0].id, own.program_id);
            }
            None => assert!(!replaced),
        }
        assert_eq!(said(host, words), 1);
        assert!(pipeline.status().running);
        let sent = stream.stop();
        settle(&context);
        let (status, result) = pipeline.stop();
        result.unwrap();
        check_stored(file.path(), status.stored, sent);
        let busy = Context::open(&config(&veth, "null:"));
        if replaced {
            assert_eq!(busy.err().unwrap().errno(), libc::EBUSY);
        }
        drop(context);
        let left = bpf::attached(own.ifindex).map(|list| list.programs[0].id);
        assert_eq!(
            left,
            there.map(|list| list.programs[0].id),
            "the other's program stays"
        );
        ip(&format!("-force link set dev {host} xdp off"));
        // Anew, and everything is as before.
        let context = Context::open(&config(&veth, "null:")).unwrap();
        let stream = Stream::start(&veth);
        until(10, "packets come", || {
            let _ = context.receive(&mut [Received::default(); 1]).unwrap();
            statistics(&context).received > 5
        });
        drop(stream);
        drop(context);
        assert!(bpf::attached(own.ifindex).is_none());
    }
}

// ---- Bad packets, and many ----

/// Sends frames from the far end as they are.
fn send_frames(veth: &Veth, frames: Vec<Vec<u8>>) {
    use nix::sys::socket::{
        AddressFamily, MsgFlags, SockFlag, SockType, SockaddrLike, sendto, socket,
    };
    use std::os::fd::AsRawFd;
    let peer = veth.peer.clone();
    let far = veth.far(move || {
        let to = nix::ifaddrs::getifaddrs()
            .unwrap()
            .filter(|a| a.interface_name == peer)
            .filter_map(|a| a.address)
            .find(|a| a.family() == Some(AddressFamily::Packet))
            .unwrap();
        let flags = SockFlag::SOCK_CLOEXEC;
        let socket = socket(AddressFamily::Packet, SockType::Raw, flags, None).unwrap();
        for (i, frame) in frames.iter().enumerate() {
            let sent = sendto(socket.as_raw_fd(), frame, &to, MsgFlags::empty());
            assert_eq!(sent, Ok(frame.len()));
            if i % 32 == 0 {
                std::thread::sleep(Duration::from_millis(1));
            }
        }
    });
    far.join().unwrap();
}

fn mac_of(veth: &Veth) -> [u8; 6] {
    let text = fs::read_to_string(format!("/sys/class/net/{}/address", veth.host)).unwrap();
    let mut mac = [0; 6];
    for (byte, hex) in mac.iter_mut().zip(text.trim().split(':')) {
        *byte = u8::from_str_radix(hex, 16).unwrap();
    }
    mac
}

fn frame(mac: [u8; 6], payload: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    etherparse::PacketBuilder::ethernet2([2, 0, 0, 0, 0, 9], mac)
        .ipv4([10, 9, 8, 7], [10, 9, 8, 6], 64)
        .udp(4000, 9999)
        .write(&mut bytes, payload)
        .unwrap();
    bytes
}

/// A frame to the right port that must not be stored. `kind` counts up.
fn bad(mac: [u8; 6], kind: u32) -> Vec<u8> {
    let noise = payload(kind, 1500);
    let mut bytes = frame(mac, &noise[..100 + kind as usize % 400]);
    let short = |bytes: &mut Vec<u8>, to: usize| bytes.truncate(to);
    match kind % 12 {
        // Cut off: inside the Ethernet header's follower, the IP header, the UDP header, the payload.
        0 => short(&mut bytes, 15 + kind as usize % 19),
        1 => short(&mut bytes, 35 + kind as usize % 7),
        2 => short(&mut bytes, 43 + kind as usize % 90),
        // Lengths that contradict each other: IP's too long, UDP's too long, too short, zero.
        3 => bytes[16..18].copy_from_slice(&60000u16.to_be_bytes()),
        4 => bytes[38..40].copy_from_slice(&60000u16.to_be_bytes()),
        5 => bytes[38..40].copy_from_slice(&(kind as u16 % 8).to_be_bytes()),
        6 => bytes[16..18].copy_from_slice(&27u16.to_be_bytes()),
        // A header length below 20, and one that takes the ports elsewhere.
        7 => bytes[14] = 0x40 | (kind as u8 % 5),
        // Fragments: the first, and one from the middle.
        8 => bytes[20..22].copy_from_slice(&0x2000u16.to_be_bytes()),
        9 => bytes[20..22].copy_from_slice(&(1 + kind as u16 % 0x1fff).to_be_bytes()),
        // Three tags: more than are followed.
        10 => {
            for _ in 0..3 {
                bytes.splice(12..12, [0x81, 0x00, 0x00, 0x05]);
            }
        }
        // Random bytes behind the address.
        _ => {
            let len = bytes.len();
            bytes[12..].copy_from_slice(&noise[12..len]);
        }
    }
    bytes
}

#[test]
fn bad_packets_of_every_kind_are_refused_and_the_good_ones_between_them_stored() {
    let name = "bad_packets_of_every_kind_are_refused_and_the_good_ones_between_them_stored";
    if !is_root(name) {
        return;
    }
    let veth = Veth::new();
    ip(&format!("link set {} mtu 9000", veth.host));
    ip(&format!("-n {} link set {} mtu 9000", veth.ns, veth.peer));
    let file = Scratch::new(env!("CARGO_TARGET_TMPDIR"), "bad");
    let context = Arc::new(Context::open(&config(&veth, file.path())).unwrap());
    let pipeline = Pipeline::start(context.clone(), PipelineConfig::default()).unwrap();
    let mac = mac_of(&veth);
    let good = 1200;
    let mut frames = Vec::new();
    for number in 0..good {
        for kind in 0..3 {
            frames.push(bad(mac, number * 3 + kind));
        }
        if number % 100 == 50 {
            // Beyond a frame of the data buffers.
            frames.push(frame(mac, &payload(number, 2000 + number as usize % 6000)));
        }
        frames.push(frame(mac, &recording::numbered(number)));
    }
    let all = frames.len() as u64;
    send_frames(&veth, frames);
    // A datagram that the far kernel cuts into fragments.
    let big = veth.send(9999, vec![payload(7, 20000)], 1000);
    big.join().unwrap();
    until(10, "all are seen", || {
        statistics(&context).xdp.seen >= all + 3
    });
    let stats = settle(&context);
    let (status, result) = pipeline.stop();
    result.unwrap();
    assert_eq!(stats.stored, u64::from(good), "{stats:#?}");
    assert_eq!((status.stored, status.failed), (good.into(), 0));
    assert_eq!(stats.bad_descriptors, 0);
    assert!(stats.xdp.fragments >= 2 * 300, "{stats:#?}");
    assert!(stats.xdp.malformed >= 4 * 250, "{stats:#?}");
    check_stored(file.path(), good.into(), good);
}

#[test]
fn very_many_tiny_packets_are_stored_or_counted() {
    if !is_root("very_many_tiny_packets_are_stored_or_counted") {
        return;
    }
    let count: u32 = if is_full_tier() { 1_000_000 } else { 100_000 };
    let veth = Veth::new();
    let file = Scratch::new(env!("CARGO_TARGET_TMPDIR"), "tiny");
    let mut config = config(&veth, file.path());
    config.device.file_size = u64::from(count) * recording::BLOCK as u64;
    config.event_sample = 0;
    let context = Arc::new(Context::open(&config).unwrap());
    let pipeline = Pipeline::start(context.clone(), PipelineConfig::default()).unwrap();
    let tiny = |number: u32| {
        let mut bytes = payload(number, 4 + number as usize % 13);
        bytes[..4].copy_from_slice(&(number + 1).to_le_bytes());
        bytes
    };
    veth.send(9999, (0..count).map(tiny).collect(), 100_000)
        .join()
        .unwrap();
    until(10, "all are seen", || {
        statistics(&context).xdp.matched >= count.into()
    });
    let stats = settle(&context);
    let (status, result) = pipeline.stop();
    result.unwrap();
    let dropped = stats.xsk.rx_dropped + stats.xsk.rx_ring_full;
    assert_eq!(status.stored + dropped, count.into(), "{stats:#?}");
    assert!(status.stored > u64::from(count / 20), "{stats:#?}");
    let bytes = fs::read(&file.0).unwrap();
    let mut last = 0;
    for (i, block) in bytes.chunks(recording::BLOCK).enumerate() {
        let number = u32::from_le_bytes(block[..4].try_into().unwrap());
        if i as u64 >= status.stored {
            assert!(block.iter().all(|b| *b == 0));
            continue;
        }
        assert!(number > last && number <= count, "{number} behind {last}");
        last = number;
        let expected = tiny(number - 1);
        assert!(block.starts_with(&expected));
        assert!(block[expected.len()..].iter().all(|b| *b == 0));
    }
}

// ---- A device that is too slow ----

/// Holds a file system's writes up.
struct Frozen<'a>(&'a std::path::Path);

impl Frozen<'_> {
    fn new(dir: &std::path::Path) -> Frozen<'_> {
        let output = Command::new("fsfreeze")
            .arg("-f")
            .arg(dir)
            .output()
            .unwrap();
        assert!(output.status.success(), "{output:?}");
        Frozen(dir)
    }
}

impl Drop for Frozen<'_> {
    fn drop(&mut self) {
        let _ = Command::new("fsfreeze").arg("-u").arg(self.0).output();
    }
}

fn resident_bytes() -> u64 {
    let text = fs::read_to_string("/proc/self/statm").unwrap();
    let pages: u64 = text.split(' ').nth(1).unwrap().parse().unwrap();
    pages * 4096
}

/// In a process of its own, so that it is its memory that is measured.
#[test]
fn a_device_slower_than_the_network_costs_counted_drops_and_no_memory() {
    let name = "a_device_slower_than_the_network_costs_counted_drops_and_no_memory";
    if told().is_some() {
        record_on_a_slow_device(name);
        return say("done");
    }
    if !is_root(name) {
        return;
    }
    let mut part = Part::start(name, "", &[]);
    assert_eq!(part.says(), "done");
    assert!(part.end().success());
}

fn record_on_a_slow_device(name: &str) {
    let Some(disk) = SmallDisk::new(name, 96 << 20) else {
        return;
    };
    let veth = Veth::new();
    let path = disk.dir.join("stored");
    let path = path.to_str().unwrap();
    let mut config = config(&veth, path);
    config.device.file_size = 64 << 20;
    let context = Arc::new(Context::open(&config).unwrap());
    let pipeline = Pipeline::start(context.clone(), PipelineConfig::default()).unwrap();
    let stream = Stream::with_pause(&veth, Duration::from_micros(20));
    until(10, "packets come", || pipeline.status().stored > 2000);
    let (memory, first) = (resident_bytes(), statistics(&context));
    let dropped = |stats: &Statistics| stats.xsk.rx_dropped + stats.xsk.rx_ring_full;
    for _ in 0..3 {
        let before = dropped(&statistics(&context));
        let frozen = Frozen::new(&disk.dir);
        // Every frame is on its way to the device or waits for that: what comes now is dropped, and counted.
        until(20, "drops", || {
            dropped(&statistics(&context)) > before + 200
        });
        let stuck = pipeline.status();
        assert!(stuck.running && stuck.error == 0);
        drop(frozen);
        until(20, "it goes on", || {
            pipeline.status().stored > stuck.submitted + 8000
        });
    }
    // Far less than the packets themselves, so that a leak of each would be seen.
    let grown = resident_bytes().saturating_sub(memory);
    let received = statistics(&context).received_bytes - first.received_bytes;
    assert!(received > 4 << 20, "{received} bytes");
    assert!(
        grown < received / 4,
        "{grown} bytes for {received} received"
    );
    let sent = stream.stop();
    let stats = settle(&context);
    let (status, result) = pipeline.stop();
    result.unwrap();
    assert_eq!((status.error, status.failed), (0, 0));
    assert_eq!(status.stored + dropped(&stats), sent.into(), "{stats:#?}");
    check_sums(&stats, context.info().frame_count);
    check_stored(path, status.stored, sent);
    drop(context);
    eprintln!("{grown} bytes more for {received} received");
}

// ---- Indices ----

#[test]
fn ring_indices_wrap_in_the_middle_of_a_recording() {
    if !is_root("ring_indices_wrap_in_the_middle_of_a_recording") {
        return;
    }
    for (drive, first_index) in [
        (Drive::Inline, u32::MAX - 300),
        (Drive::Thread, u32::MAX - 299),
    ] {
        let veth = Veth::new();
        let file = Scratch::new(env!("CARGO_TARGET_TMPDIR"), "wrap");
        let config = Config {
            drive,
            first_index,
            ..config(&veth, file.path())
        };
        let context = Arc::new(Context::open(&config).unwrap());
        let pipeline = Pipeline::start(context.clone(), PipelineConfig::default()).unwrap();
        let count = 1000;
        veth.send(9999, (0..count).map(recording::numbered).collect(), 5000)
            .join()
            .unwrap();
        until(10, "all are stored", || {
            pipeline.status().stored == count.into()
        });
        let stats = settle(&context);
        assert_eq!(stats.completed, stats.submitted);
        let (status, result) = pipeline.stop();
        result.unwrap();
        assert_eq!(
            (status.stored, status.failed, status.error),
            (count.into(), 0, 0)
        );
        check_stored(file.path(), count.into(), count);
    }
}
