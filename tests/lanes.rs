//! Contexts of several lanes: all queues of an interface over one memory, with one thread for all lanes or with threads of
//! their own, and frames that go from lane to lane. The sums hold for each lane and for all together.
#![forbid(unsafe_code)]

mod common;

use std::collections::HashSet;
use std::fs;
use std::net::{SocketAddrV4, UdpSocket};
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use common::{Scratch, Veth, check_lanes, is_root, log_to_stderr, payload, run};
use unified::config::{ALL_QUEUES, Config, Drive};
use unified::context::Context;
use unified::cpus::Cpus;
use unified::lane::{Completion, Direction, Lane, Ready, Transfer};
use unified::log_reader::{Item, LogReader};
use unified::net::link;
use unified::net::rx::Received;
use unified::net::xdp::{Xdp, XdpConfig, XdpMode};
use unified::pipeline::{Pipeline, PipelineConfig, StoreLayout};
use unified::sys::event::poll_readable;
use unified::sys::xsk;

const PORT: u16 = 9999;
const QUEUES: u32 = 4;
const BLOCK: u64 = 512;
const PATIENCE: Duration = Duration::from_secs(20);

/// A pair of four queues that loses nothing: the far end waits if a ring is full.
fn network() -> Veth {
    log_to_stderr();
    let veth = Veth::with_queues(QUEUES);
    let (ns, peer) = (veth.ns.clone(), veth.peer.clone());
    run(
        "tc",
        &["-n", &ns, "qdisc", "replace", "dev", &peer, "root", "mq"],
    );
    veth
}

fn config(veth: &Veth, device: &str) -> Config {
    let mut config = Config {
        ifname: Some(veth.host.clone()),
        queues: ALL_QUEUES,
        rx_ring: 1024,
        fill_ring: 1024,
        ..Config::default()
    };
    config.device.path = device.into();
    config.device.block_size = BLOCK as u32;
    if device.starts_with('/') {
        config.device.file_size = 8 << 20;
    }
    config
}

fn open(veth: &Veth, device: &str, drive: Drive) -> Context {
    Context::open(&Config {
        drive,
        ..config(veth, device)
    })
    .unwrap()
}

/// Sends `count` payloads of 200 bytes from each of `flows` sockets of the far end, which the kernel spreads over the queues
/// by their ports. Slowly: a lane has only 256 frames posted, and its thread may have to wait for a processor. Payload `i` of
/// flow `f` has the number `f << 16 | i`.
fn send(veth: &Veth, flows: u32, count: u32) -> JoinHandle<()> {
    let to = SocketAddrV4::new(veth.host_addr, PORT);
    veth.far(move || {
        let bind = |_| UdpSocket::bind("0.0.0.0:0").unwrap();
        let sockets: Vec<UdpSocket> = (0..flows).map(bind).collect();
        for i in 0..count {
            for (flow, socket) in (0..).zip(&sockets) {
                socket.send_to(&numbered(flow << 16 | i), to).unwrap();
            }
            std::thread::sleep(Duration::from_millis(12));
        }
    })
}

fn numbered(number: u32) -> Vec<u8> {
    let mut bytes = payload(number, 200);
    bytes[..4].copy_from_slice(&number.to_le_bytes());
    bytes
}

fn number_of(payload: &[u8]) -> u32 {
    u32::from_le_bytes(payload[..4].try_into().unwrap())
}

/// The write of a packet's payload to a block.
fn write_of(packet: &Received, lba: u64) -> Transfer {
    let headers = packet.headers;
    Transfer {
        frame: packet.frame,
        offset: packet.offset + u64::from(headers.payload_offset),
        len: headers.payload_len.into(),
        lba,
        user_data: lba,
        ..Transfer::default()
    }
}

/// Every payload of `flows` times `count` is in one block of the file, whole.
fn check_blocks(file: &Scratch, flows: u32, count: u32) {
    let bytes = fs::read(&file.0).unwrap();
    let mut seen = HashSet::new();
    for block in bytes.chunks(BLOCK as usize).take((flows * count) as usize) {
        let number = number_of(block);
        assert_eq!(block[..200], numbered(number)[..], "payload {number:x}");
        assert!(block[200..].iter().all(|byte| *byte == 0));
        assert!(seen.insert(number), "payload {number:x} twice");
    }
    let all = (0..flows).flat_map(|flow| (0..count).map(move |i| flow << 16 | i));
    assert_eq!(seen, all.collect());
}

/// One thread receives and stores so many packets, of all lanes. The queues that they came from.
fn store_all(context: &Context, all: u64) -> HashSet<u32> {
    let mut packets = [Received::default(); 64];
    let mut done = [Completion::default(); 64];
    let (mut received, mut completed) = (0u64, 0);
    let mut queues = HashSet::new();
    let until = Instant::now() + PATIENCE;
    while completed < all {
        assert!(
            Instant::now() < until,
            "{received} {completed}: {:#?}",
            context.statistics()
        );
        let ready = Ready::RX | Ready::COMPLETIONS;
        context
            .wait(ready, Some(Duration::from_millis(100)))
            .unwrap();
        let got = context.receive(&mut packets).unwrap();
        let writes = packets[..got].iter().map(|packet| {
            queues.insert(packet.queue);
            received += 1;
            Ok(write_of(packet, received - 1))
        });
        if got > 0 {
            let progress = context.submit_writes(writes).unwrap();
            assert_eq!(progress.done, got as u32, "{:?}", progress.refused);
        }
        let got = context.completions(&mut done).unwrap();
        assert!(done[..got].iter().all(|done| done.status == 0));
        completed += got as u64;
    }
    queues
}

#[test]
fn one_thread_serves_all_queues() {
    if !is_root("one_thread_serves_all_queues") {
        return;
    }
    for drive in [Drive::Inline, Drive::Thread] {
        let veth = network();
        let file = Scratch::new("/dev/shm", "lanes");
        let context = open(&veth, file.path(), drive);
        assert_eq!(context.lanes().len(), QUEUES as usize);
        assert_eq!(context.info().frame_count, QUEUES * 4096);
        let (flows, count) = (64, 50);
        let sender = send(&veth, flows, count);
        let all = u64::from(flows * count);
        let queues = store_all(&context, all);
        sender.join().unwrap();
        assert_eq!(queues, (0..QUEUES).collect());
        let lanes = check_lanes(&context);
        for (queue, lane) in lanes.iter().enumerate() {
            // Each has its own packets, and wrote them itself.
            assert!(lane.received > 0, "queue {queue}");
            assert_eq!(
                (lane.stored, lane.completed),
                (lane.received, lane.received)
            );
            assert_eq!(lane.xdp.redirected, lane.received);
        }
        let total = context.statistics().unwrap();
        assert_eq!((total.received, total.xdp.no_socket), (all, 0));
        drop(context);
        check_blocks(&file, flows, count);
    }
}

/// What the threads of a lane do until `all` packets are stored by all lanes: one receives and submits, one takes completions.
fn serve(lane: &Lane, written: &AtomicU32, completed: &AtomicU32, all: u32) {
    let until = Instant::now() + PATIENCE;
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut packets = [Received::default(); 64];
            while written.load(Ordering::Relaxed) < all {
                assert!(Instant::now() < until, "lane {}", lane.number());
                lane.wait(Ready::RX, Some(Duration::from_millis(20)))
                    .unwrap();
                let got = lane.receive(&mut packets).unwrap();
                for packet in &packets[..got] {
                    let lba = written.fetch_add(1, Ordering::Relaxed);
                    let write = write_of(packet, lba.into());
                    while let Err(error) = lane.submit_transfer(Direction::Write, &write) {
                        assert_eq!(error.errno(), libc::EAGAIN, "{error}");
                        std::thread::yield_now();
                    }
                }
            }
        });
        let mut done = [Completion::default(); 64];
        while completed.load(Ordering::Relaxed) < all {
            assert!(Instant::now() < until, "lane {}", lane.number());
            lane.wait(Ready::COMPLETIONS, Some(Duration::from_millis(20)))
                .unwrap();
            let got = lane.completions(&mut done).unwrap();
            assert!(done[..got].iter().all(|done| done.status == 0));
            completed.fetch_add(got as u32, Ordering::Relaxed);
        }
    });
}

#[test]
fn each_lane_has_threads_of_its_own() {
    if !is_root("each_lane_has_threads_of_its_own") {
        return;
    }
    for drive in [Drive::Inline, Drive::Thread] {
        let veth = network();
        let file = Scratch::new("/dev/shm", "lanes");
        let context = open(&veth, file.path(), drive);
        let (flows, count) = (64, 100);
        let sender = send(&veth, flows, count);
        let (written, completed) = (AtomicU32::new(0), AtomicU32::new(0));
        std::thread::scope(|scope| {
            for lane in context.lanes() {
                let (written, completed) = (&written, &completed);
                scope.spawn(move || serve(lane, written, completed, flows * count));
            }
        });
        sender.join().unwrap();
        let lanes = check_lanes(&context);
        assert!(lanes.iter().all(|lane| lane.stored > 0));
        let stored: u64 = lanes.iter().map(|lane| lane.stored).sum();
        assert_eq!(stored, u64::from(flows * count));
        drop(context);
        check_blocks(&file, flows, count);
    }
}

#[test]
fn a_frame_goes_through_another_lane_and_counts_on_its_own() {
    if !is_root("a_frame_goes_through_another_lane_and_counts_on_its_own") {
        return;
    }
    let veth = network();
    let file = Scratch::new("/dev/shm", "lanes");
    let context = Context::open(&config(&veth, file.path())).unwrap();
    let (flows, count) = (64, 30);
    let sender = send(&veth, flows, count);
    let lanes = context.lanes();
    let mut packets = [Received::default(); 64];
    let mut done = [Completion::default(); 64];
    let (mut lba, mut completed, mut released) = (0, 0, 0);
    let until = Instant::now() + PATIENCE;
    let all = u64::from(flows * count);
    while completed + released < all {
        assert!(Instant::now() < until, "{:#?}", context.statistics());
        for (number, lane) in lanes.iter().enumerate() {
            let got = lane.receive(&mut packets).unwrap();
            let next = &lanes[(number + 1) % lanes.len()];
            for packet in &packets[..got] {
                assert_eq!(packet.queue as usize, number);
                assert_eq!(lane.owner(packet.frame) as usize, number);
                if packet.headers.src_port % 2 == 0 {
                    next.frame_release(packet.frame).unwrap();
                    released += 1;
                    continue;
                }
                let write = write_of(packet, lba);
                lba += 1;
                while next.submit_transfer(Direction::Write, &write).is_err() {
                    completed += next.completions(&mut done).unwrap() as u64;
                }
            }
            completed += lane.completions(&mut done).unwrap() as u64;
        }
    }
    sender.join().unwrap();
    let counted = check_lanes(&context);
    for (number, lane) in counted.iter().enumerate() {
        assert_eq!(lane.stored + lane.released, lane.received);
        // Those of the lane before came through this one.
        let before = &counted[(number + counted.len() - 1) % counted.len()];
        assert_eq!(lane.completed, before.stored);
        assert_eq!(lane.packet_latency.count(), lane.stored);
    }
    assert!(counted.iter().map(|lane| lane.released).sum::<u64>() == released);
}

/// A port of the far end for each of the first queues, from which packets come to it.
fn sockets_to_each(veth: &Veth, context: &Context, queues: u32) -> Vec<u16> {
    let to = SocketAddrV4::new(veth.host_addr, PORT);
    let mut found = vec![None; queues as usize];
    let mut packets = [Received::default(); 8];
    for port in 20_000..20_200 {
        veth.far(move || {
            let socket = UdpSocket::bind(("0.0.0.0", port)).unwrap();
            socket.send_to(&[1; 100], to).unwrap();
        })
        .join()
        .unwrap();
        let got = context.receive(&mut packets).unwrap();
        for packet in &packets[..got] {
            if let Some(place) = found.get_mut(packet.queue as usize) {
                *place = Some(packet.headers.src_port);
            }
            context.frame_release(packet.frame).unwrap();
        }
        if found.iter().all(Option::is_some) {
            return found.into_iter().flatten().collect();
        }
    }
    panic!("no port for some of {queues} queues: {found:?}");
}

#[test]
fn the_frames_of_idle_lanes_are_there_for_a_busy_one() {
    if !is_root("the_frames_of_idle_lanes_are_there_for_a_busy_one") {
        return;
    }
    let veth = network();
    let frames = 4096;
    let context = Context::open(&Config {
        frame_count: frames,
        ..config(&veth, "null:")
    })
    .unwrap();
    let posted = |context: &Context| {
        let lanes = check_lanes(context);
        lanes
            .iter()
            .map(|lane| lane.frames.filled)
            .collect::<Vec<_>>()
    };
    assert_eq!(posted(&context), [256; 4]);
    assert_eq!(
        context.statistics().unwrap().frames_reserve,
        u64::from(frames) - 4 * 256
    );
    let port = sockets_to_each(&veth, &context, QUEUES)[2];
    // Far more than a quarter of the frames is held by one lane: all but what the others have posted.
    let to = SocketAddrV4::new(veth.host_addr, PORT);
    let most = frames - 3 * 256;
    let stop = Arc::new(AtomicBool::new(false));
    let stopped = stop.clone();
    let sender = veth.far(move || {
        let socket = UdpSocket::bind(("0.0.0.0", port)).unwrap();
        while !stopped.load(Ordering::Relaxed) {
            for _ in 0..32 {
                socket.send_to(&[7; 100], to).unwrap();
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    });
    let lane = &context.lanes()[2];
    let mut held = Vec::new();
    let mut packets = [Received::default(); 64];
    let until = Instant::now() + PATIENCE;
    while (held.len() as u32) < most - 64 {
        assert!(
            Instant::now() < until,
            "{} held: {:#?}",
            held.len(),
            context.statistics()
        );
        lane.wait(Ready::RX, Some(Duration::from_millis(20)))
            .unwrap();
        let got = lane.receive(&mut packets).unwrap();
        held.extend(packets[..got].iter().map(|packet| packet.frame));
    }
    stop.store(true, Ordering::Relaxed);
    sender.join().unwrap();
    // What it gives back is there for the others: the lane sleeps, and keeps no block.
    lane.frames_release(held).unwrap();
    let mut rest = 1;
    while rest > 0 {
        rest = lane.receive(&mut packets).unwrap();
        lane.frames_release(packets[..rest].iter().map(|p| p.frame))
            .unwrap();
    }
    lane.wait(Ready::RX, Some(Duration::from_millis(1)))
        .unwrap();
    let counted = check_lanes(&context);
    let reserve = context.statistics().unwrap().frames_reserve;
    let own = counted[2].frames;
    // Blocks of which a frame is posted stay: in the worst case one for each posted frame.
    assert!(own.free <= 63 * own.filled, "{own:?}");
    assert!(
        reserve > u64::from(frames) / 4,
        "{reserve} in the reserve, {own:?}"
    );
}

#[test]
fn one_descriptor_is_readable_for_every_lane() {
    if !is_root("one_descriptor_is_readable_for_every_lane") {
        return;
    }
    for drive in [Drive::Inline, Drive::Thread] {
        let veth = network();
        let context = open(&veth, "null:", drive);
        let fd = context.poll_fd().unwrap();
        assert_eq!(context.poll_fd().unwrap(), fd);
        let readable = |ms| poll_readable(&[fd], Some(Duration::from_millis(ms))).unwrap();
        assert!(!readable(0));
        let mut packets = [Received::default(); 64];
        let mut done = [Completion::default(); 64];
        let ports = sockets_to_each(&veth, &context, QUEUES);
        for (queue, port) in (0..QUEUES).zip(ports) {
            while context.receive(&mut packets).unwrap() > 0 {}
            assert!(!readable(0), "queue {queue}");
            let to = SocketAddrV4::new(veth.host_addr, PORT);
            veth.far(move || {
                let socket = UdpSocket::bind(("0.0.0.0", port)).unwrap();
                socket.send_to(&[1; 100], to).unwrap();
            })
            .join()
            .unwrap();
            assert!(readable(2000), "queue {queue}");
            let until = Instant::now() + PATIENCE;
            let mut got = 0;
            while got == 0 {
                assert!(Instant::now() < until);
                got = context.receive(&mut packets).unwrap();
            }
            assert_eq!((got, packets[0].queue), (1, queue));
            context.submit_write(&write_of(&packets[0], 0)).unwrap();
            let mut completed = 0;
            while completed == 0 {
                assert!(readable(2000), "completion of queue {queue}");
                completed = context.completions(&mut done).unwrap();
            }
            while context.receive(&mut packets).unwrap() > 0 {}
        }
        check_lanes(&context);
        context.close();
        assert!(readable(0));
    }
}

#[test]
fn each_lane_has_a_pipeline_with_a_log_of_its_own() {
    if !is_root("each_lane_has_a_pipeline_with_a_log_of_its_own") {
        return;
    }
    let veth = network();
    let file = Scratch::new("/dev/shm", "lanes");
    let mut wanted = config(&veth, file.path());
    wanted.device.file_size = 64 << 20;
    wanted.drive = Drive::Thread;
    wanted.cpus = Cpus(vec![0]);
    let context = Arc::new(Context::open(&wanted).unwrap());
    let version_1 = PipelineConfig {
        layout: StoreLayout::Slot,
        ..PipelineConfig::default()
    };
    let error = Pipeline::start(context.clone(), version_1).err().unwrap();
    assert!(error.message().contains("has one lane"), "{error}");
    let blocks = (16 << 20) / BLOCK;
    let range = |lane: u32| PipelineConfig {
        start_lba: u64::from(lane) * blocks,
        blocks,
        layout: StoreLayout::Log,
        ..PipelineConfig::default()
    };
    // Two lanes with some blocks in common.
    let first = Pipeline::start_on_lane(context.clone(), 0, range(0)).unwrap();
    let mut both = range(1);
    both.start_lba -= 1;
    let error = Pipeline::start_on_lane(context.clone(), 1, both)
        .err()
        .unwrap();
    assert_eq!(error.errno(), libc::EBUSY);
    assert!(
        error
            .message()
            .contains("the pipeline of lane 0 writes to blocks 0 to"),
        "{error}"
    );
    first.stop().1.unwrap();
    let start = |lane| Pipeline::start_on_lane(context.clone(), lane, range(lane));
    let pipelines: Vec<Pipeline> = (0..QUEUES).map(|lane| start(lane).unwrap()).collect();
    let error = start(3).err().unwrap();
    assert_eq!(error.errno(), libc::EALREADY);
    let error = Pipeline::start_on_lane(context.clone(), 4, range(0))
        .err()
        .unwrap();
    assert!(error.message().contains("lane 4 does not exist"), "{error}");
    let names: HashSet<String> = fs::read_dir("/proc/self/task")
        .unwrap()
        .filter_map(|task| fs::read_to_string(task.unwrap().path().join("comm")).ok())
        .map(|name| name.trim().to_string())
        .collect();
    for name in [
        "unified-eng-0",
        "unified-eng-3",
        "unified-pack-2",
        "unified-stor-1",
    ] {
        assert!(names.contains(name), "{name} is not in {names:?}");
    }
    let (flows, count) = (64, 100);
    send(&veth, flows, count).join().unwrap();
    let until = Instant::now() + PATIENCE;
    while context.statistics().unwrap().received < u64::from(flows * count) {
        assert!(Instant::now() < until, "{:#?}", context.statistics());
        std::thread::sleep(Duration::from_millis(10));
    }
    let mut sum = 0;
    for pipeline in pipelines {
        let (status, result) = pipeline.stop();
        result.unwrap();
        assert_eq!((status.error, status.failed), (0, 0));
        sum += status.stored;
    }
    assert_eq!(sum, u64::from(flows * count));
    let counted = check_lanes(&context);
    drop(context);
    let mut seen = HashSet::new();
    for lane in 0..QUEUES {
        let start = u64::from(lane) * blocks * BLOCK;
        let mut log = LogReader::open(&file.0, start).unwrap();
        let mut records = 0;
        while let Some(item) = log.next_item().unwrap() {
            let Item::Record { header, packet } = item else {
                panic!("lane {lane}: {item:?}");
            };
            assert_eq!(header.queue, lane as u16);
            let at = usize::from(header.payload_offset - header.packet_offset);
            let stored = &packet[at..at + usize::from(header.payload_len)];
            let number = number_of(stored);
            assert_eq!(stored, numbered(number));
            assert!(seen.insert(number));
            records += 1;
        }
        assert_eq!(records, counted[lane as usize].stored);
    }
    assert_eq!(seen.len() as u32, flows * count);
}

#[test]
fn lanes_without_an_interface_write_for_many_threads() {
    for drive in [Drive::Inline, Drive::Thread] {
        let file = Scratch::new("/dev/shm", "lanes");
        let context = storage(8, drive, file.path());
        let each = 1000u64;
        std::thread::scope(|scope| {
            for lane in context.lanes() {
                let context = &context;
                scope.spawn(move || {
                    let mut done = [Completion::default(); 16];
                    let (mut submitted, mut completed) = (0, 0);
                    while completed < each {
                        let frame = match lane.frame_alloc() {
                            Ok(frame) if submitted < each => frame,
                            Ok(frame) => {
                                lane.frame_release(frame).unwrap();
                                completed += lane.completions(&mut done).unwrap() as u64;
                                continue;
                            }
                            Err(error) => {
                                assert_eq!(error.errno(), libc::ENOBUFS);
                                completed += lane.completions(&mut done).unwrap() as u64;
                                continue;
                            }
                        };
                        let lba = u64::from(lane.number()) * each + submitted;
                        let write = block_of(context, frame, lba, false);
                        context
                            .data()
                            .write(write.offset as usize, &[lba as u8 | 1; BLOCK as usize]);
                        match lane.submit_transfer(Direction::Write, &write) {
                            Ok(()) => submitted += 1,
                            Err(error) => {
                                assert_eq!(error.errno(), libc::EAGAIN);
                                lane.frame_release(frame).unwrap();
                            }
                        }
                        let got = lane.completions(&mut done).unwrap();
                        assert!(done[..got].iter().all(|done| done.status == 0));
                        completed += got as u64;
                    }
                });
            }
        });
        let counted = check_lanes(&context);
        assert!(counted.iter().all(|lane| lane.completed == each));
        drop(context);
        let bytes = fs::read(&file.0).unwrap();
        for (lba, block) in bytes
            .chunks(BLOCK as usize)
            .take(8 * each as usize)
            .enumerate()
        {
            assert!(
                block.iter().all(|byte| *byte == lba as u8 | 1),
                "block {lba}"
            );
        }
    }
}

/// A context of storage only, with so many lanes.
fn storage(lanes: u32, drive: Drive, device: &str) -> Context {
    let mut wanted = Config {
        queues: lanes,
        frame_count: lanes * 64,
        drive,
        ..Config::default()
    };
    wanted.device.path = device.into();
    wanted.device.block_size = BLOCK as u32;
    if device.starts_with('/') {
        wanted.device.file_size = 8 << 20;
    }
    Context::open(&wanted).unwrap()
}

fn block_of(context: &Context, frame: u32, lba: u64, more: bool) -> Transfer {
    Transfer {
        frame,
        offset: context.info().frames().start(frame),
        len: BLOCK as u32,
        lba,
        user_data: lba,
        more,
        ..Transfer::default()
    }
}

#[test]
fn what_waits_on_other_lanes_is_published_with_the_last_one() {
    for drive in [Drive::Inline, Drive::Thread] {
        let context = storage(3, drive, "null:");
        let lanes = context.lanes();
        let mut done = [Completion::default(); 16];
        let mut take = |count: usize| {
            let (mut taken, until) = (0, Instant::now() + PATIENCE);
            while taken < count {
                assert!(Instant::now() < until, "{taken} of {count}");
                let left = Some(Duration::from_millis(100));
                context.wait(Ready::COMPLETIONS, left).unwrap();
                taken += context.completions(&mut done).unwrap();
            }
            assert_eq!(taken, count);
        };
        let frame = |lane: usize| lanes[lane].frame_alloc().unwrap();
        let write = |frame, more| {
            let write = block_of(&context, frame, 0, more);
            context.submit_write(&write).unwrap();
        };
        write(frame(1), true);
        write(frame(2), true);
        write(frame(0), false);
        take(3);
        write(frame(1), true);
        context.submit_flush(None, 7).unwrap();
        take(2);
        write(frame(2), true);
        let batch =
            [frame(0), frame(1), frame(0)].map(|frame| Ok(block_of(&context, frame, 1, false)));
        assert_eq!(context.submit_writes(batch).unwrap().done, 3);
        take(4);
        write(frame(1), true);
        context.submit_pending().unwrap();
        take(1);
        check_lanes(&context);
    }
}

#[test]
fn the_end_carries_out_what_every_lane_has() {
    for drive in [Drive::Inline, Drive::Thread] {
        let file = Scratch::new("/dev/shm", "lanes");
        let context = storage(3, drive, file.path());
        for (lane, lba) in context.lanes().iter().zip(0..) {
            // The first lane's write fails: its block does not exist.
            let lba = if lba == 0 { 1 << 40 } else { lba };
            let frame = lane.frame_alloc().unwrap();
            let write = block_of(&context, frame, lba, true);
            context
                .data()
                .write(write.offset as usize, &[7; BLOCK as usize]);
            lane.submit_transfer(Direction::Write, &write).unwrap();
        }
        let error = context.end(Instant::now() + PATIENCE).unwrap_err();
        assert_eq!(error.errno(), libc::EIO);
        assert!(error.message().contains("1 commands"), "{error}");
        let bytes = fs::read(&file.0).unwrap();
        for lba in 1..3 {
            let at = lba * BLOCK as usize;
            assert!(
                bytes[at..at + BLOCK as usize].iter().all(|byte| *byte == 7),
                "block {lba}"
            );
        }
    }
}

#[test]
fn what_a_lane_without_packets_gives_back_is_there_for_all() {
    let context = storage(4, Drive::Inline, "null:");
    for lane in context.lanes().iter().cycle().take(8) {
        let mut frames = Vec::new();
        while let Ok(frame) = lane.frame_alloc() {
            frames.push(frame);
        }
        assert_eq!(frames.len(), 4 * 64, "lane {}", lane.number());
        lane.frames_release(frames).unwrap();
        check_lanes(&context);
    }
}

#[test]
fn no_lane_waits_for_ever_behind_a_busy_one() {
    let context = storage(2, Drive::Inline, "null:");
    let mut done = [Completion::default(); 8];
    let mut waits = context.lanes()[1].frame_alloc().unwrap();
    context
        .submit_write(&block_of(&context, waits, 1000, false))
        .unwrap();
    for round in 0..20 {
        // The first lane always has enough for a whole batch.
        while let Ok(frame) = context.lanes()[0].frame_alloc() {
            let write = block_of(&context, frame, 0, false);
            context.lanes()[0]
                .submit_transfer(Direction::Write, &write)
                .unwrap();
            if context.lanes()[0].outstanding().unwrap() >= 16 {
                break;
            }
        }
        let _ = context.receive(&mut []);
        let got = context.completions(&mut done).unwrap();
        if done[..got].iter().any(|done| done.user_data == 1000) {
            waits = u32::MAX;
            break;
        }
        assert!(round < 10, "not in {round} rounds");
    }
    assert_eq!(waits, u32::MAX);
}

#[test]
fn with_few_frames_every_queue_has_some() {
    if !is_root("with_few_frames_every_queue_has_some") {
        return;
    }
    let veth = network();
    for (frames, expected) in [(256, 48), (400, 48), (600, 64), (1024, 192), (8192, 256)] {
        let context = Context::open(&Config {
            frame_count: frames,
            ..config(&veth, "null:")
        })
        .unwrap();
        let lanes = check_lanes(&context);
        let posted: Vec<u64> = lanes.iter().map(|lane| lane.frames.filled).collect();
        assert_eq!(posted, [expected; 4], "{frames} frames");
    }
}

/// A frame that goes from lane to lane holds other packets' bytes: none of them may reach a log.
#[test]
fn no_log_has_bytes_of_another_lanes_packets() {
    if !is_root("no_log_has_bytes_of_another_lanes_packets") {
        return;
    }
    for layout in [StoreLayout::Slot, StoreLayout::Log] {
        let veth = network();
        let file = Scratch::new("/dev/shm", "lanes");
        let mut wanted = config(&veth, file.path());
        wanted.device.file_size = 32 << 20;
        wanted.drive = Drive::Thread;
        wanted.queues = 2;
        // Each lane has some blocks posted and takes the next one from the reserve: frames go from lane to lane.
        (wanted.frame_count, wanted.rx_ring, wanted.fill_ring) = (8 * 64, 256, 256);
        let context = Arc::new(Context::open(&wanted).unwrap());
        // What one lane knows to be zero in a frame, another lane may have written to.
        let delivered = |context: &Context| context.info().network.unwrap().writes_are_delivered;
        assert!(!delivered(&context));
        let ports = sockets_to_each(&veth, &context, 2);
        let blocks = (16 << 20) / BLOCK;
        let start = |lane: u32| {
            let config = PipelineConfig {
                start_lba: u64::from(lane) * blocks,
                blocks,
                layout,
                pack_below: Some(1),
                ..PipelineConfig::default()
            };
            Pipeline::start_on_lane(context.clone(), lane, config).unwrap()
        };
        let pipelines: Vec<Pipeline> = (0..2).map(start).collect();
        let before = context.statistics().unwrap().received;
        let to = SocketAddrV4::new(veth.host_addr, PORT);
        let (rounds, each) = (20, 40);
        veth.far(move || {
            let bind = |port| UdpSocket::bind(("0.0.0.0", port)).unwrap();
            let sockets: Vec<UdpSocket> = ports.into_iter().map(bind).collect();
            for round in 0..rounds {
                // The lanes take turns with long payloads of one byte and short ones of another.
                for (lane, socket) in sockets.iter().enumerate() {
                    let long = (lane + round) % 2 == 0;
                    let payload = if long {
                        vec![0xaa; 1400]
                    } else {
                        vec![0xbb; 20]
                    };
                    for _ in 0..each {
                        socket.send_to(&payload, to).unwrap();
                    }
                    std::thread::sleep(Duration::from_millis(12));
                }
            }
        })
        .join()
        .unwrap();
        std::thread::sleep(Duration::from_millis(100));
        for pipeline in pipelines {
            pipeline.stop().1.unwrap();
        }
        let lanes = check_lanes(&context);
        let received = context.statistics().unwrap().received - before;
        assert_eq!(received, 2 * rounds as u64 * each, "{lanes:#?}");
        drop(context);
        let one = Context::open(&Config {
            queues: 1,
            ..wanted.clone()
        });
        assert!(delivered(&one.unwrap()));
        let bytes = fs::read(&file.0).unwrap();
        let mut short = 0;
        for slot in bytes.chunks(2048) {
            // A slot with a short payload has nothing of a long one.
            let run =
                |byte: u8, len: usize| slot.windows(len).any(|w| w.iter().all(|b| *b == byte));
            if run(0xbb, 20) {
                short += 1;
                assert!(!run(0xaa, 8), "{layout:?}: bytes of another packet");
            }
        }
        assert_eq!(short, rounds as u64 * each);
    }
}

#[test]
fn what_cannot_be_is_refused_and_leaves_nothing() {
    if !is_root("what_cannot_be_is_refused_and_leaves_nothing") {
        return;
    }
    let veth = network();
    for (queue, queues, text) in [
        (0, 5, "5 queues of"),
        (3, 2, "from queue 3 on: it has 4"),
        (4, 1, "queue 4 does not exist"),
    ] {
        let error = Context::open(&Config {
            queue,
            queues,
            ..config(&veth, "null:")
        });
        let error = error.err().unwrap();
        assert_eq!(error.errno(), libc::EINVAL);
        assert!(error.message().contains(text), "{error}");
    }
    let far_cpu = Context::open(&Config {
        cpus: Cpus(vec![0, 1023]),
        drive: Drive::Thread,
        ..config(&veth, "null:")
    });
    let error = far_cpu.err().unwrap();
    assert_eq!(error.errno(), libc::EINVAL);
    assert!(
        error.message().contains("unified-eng-1 to CPU 1023"),
        "{error}"
    );
    // One queue is taken: the others are given back.
    let one = Context::open(&Config {
        queue: 2,
        queues: 1,
        ..config(&veth, "null:")
    })
    .unwrap();
    let error = Context::open(&config(&veth, "null:")).err().unwrap();
    assert_eq!(error.errno(), libc::EBUSY, "{error}");
    drop(one);
    let context = Context::open(&config(&veth, "null:")).unwrap();
    check_lanes(&context);
}

#[test]
fn a_map_that_was_handed_in_feeds_several_queues() {
    if !is_root("a_map_that_was_handed_in_feeds_several_queues") {
        return;
    }
    let veth = network();
    let attach = XdpConfig {
        ports: vec![PORT],
        mode: XdpMode::Auto,
        run_priority: 50,
        event_sample: 0,
        events_bytes: 4096,
        queues: 1,
    };
    let mut xdp = Xdp::attach(link::look_up(&veth.host, 0).unwrap(), &attach).unwrap();
    let context = Context::open(&Config {
        xsk_map: Some(xdp.socket_map()),
        ..config(&veth, "null:")
    })
    .unwrap();
    let (flows, count) = (64, 10);
    let sender = send(&veth, flows, count);
    let mut packets = [Received::default(); 64];
    let (mut received, mut queues, until) = (0, HashSet::new(), Instant::now() + PATIENCE);
    while received < flows * count {
        assert!(
            Instant::now() < until,
            "{received}: {:#?}",
            context.statistics()
        );
        let got = context.receive(&mut packets).unwrap();
        queues.extend(packets[..got].iter().map(|packet| packet.queue));
        let frames = packets[..got].iter().map(|packet| packet.frame);
        received += got as u32;
        if got > 0 {
            context.frames_release(frames).unwrap();
        }
    }
    sender.join().unwrap();
    assert_eq!(queues, (0..QUEUES).collect());
    // What it counts is the owner's: all of it, though one queue is counted apart.
    let counted = xdp.counters().unwrap();
    assert_eq!(counted.redirected, u64::from(flows * count));
    let total = context.statistics().unwrap();
    assert_eq!(
        (total.xdp.seen, total.released),
        (0, u64::from(flows * count))
    );
    drop(context);
    xdp.detach().unwrap();
}

/// Each with a UMEM of its own, of the same memory: a frame goes from the fill ring of one queue to that of another.
#[test]
fn sockets_that_were_handed_in_serve_a_queue_each() {
    if !is_root("sockets_that_were_handed_in_serve_a_queue_each") {
        return;
    }
    let veth = network();
    let file = Scratch::new("/dev/shm", "handed");
    let sockets: Vec<_> = (0..QUEUES).map(|_| xsk::new_socket().unwrap()).collect();
    let numbers: Vec<_> = sockets.iter().map(AsRawFd::as_raw_fd).collect();
    let with = |xsks: &[i32]| Config {
        xsks: xsks.to_vec(),
        // Few: all of them are used many times.
        frame_count: 64 * 12,
        ..config(&veth, file.path())
    };
    // One for each queue, and none for two of them.
    let error = Context::open(&with(&numbers[1..])).err().unwrap();
    assert_eq!(error.errno(), libc::EINVAL, "{error}");
    let words = "3 AF_XDP sockets were handed in for 4 queues";
    assert!(error.message().contains(words), "{error}");
    let twice = [numbers[0], numbers[1], numbers[2], numbers[0]];
    let error = Context::open(&with(&twice)).err().unwrap();
    assert!(error.message().contains("xsk_fds[3]"), "{error}");

    let context = Context::open(&with(&numbers)).unwrap();
    // They are the context's now.
    drop(sockets);
    let (flows, count) = (64, 40);
    let sender = send(&veth, flows, count);
    let all = u64::from(flows * count);
    let queues = store_all(&context, all);
    sender.join().unwrap();
    assert_eq!(queues, (0..QUEUES).collect());
    check_blocks(&file, flows, count);
    let total = context.statistics().unwrap();
    assert_eq!((total.received, total.stored), (all, all));
    check_lanes(&context);
}

#[test]
fn packets_of_queues_without_a_lane_are_counted() {
    if !is_root("packets_of_queues_without_a_lane_are_counted") {
        return;
    }
    let veth = network();
    let context = Context::open(&Config {
        queue: 1,
        queues: 2,
        ..config(&veth, "null:")
    })
    .unwrap();
    let (flows, count) = (64, 20);
    let sender = send(&veth, flows, count);
    let mut packets = [Received::default(); 64];
    let until = Instant::now() + PATIENCE;
    loop {
        let got = context.receive(&mut packets).unwrap();
        let frames = packets[..got].iter().map(|packet| packet.frame);
        assert!(packets[..got].iter().all(|p| matches!(p.queue, 1 | 2)));
        if got > 0 {
            context.frames_release(frames).unwrap();
        }
        let total = context.statistics().unwrap();
        if total.received + total.xdp.no_socket == u64::from(flows * count) {
            break;
        }
        assert!(Instant::now() < until, "{total:#?}");
    }
    sender.join().unwrap();
    let lanes = check_lanes(&context);
    assert!(
        lanes
            .iter()
            .all(|lane| lane.received > 0 && lane.xdp.no_socket == 0)
    );
    let text = unified::metrics::render(&context, None).unwrap();
    let total = context.statistics().unwrap();
    assert!(total.xdp.no_socket > 0);
    let of = |name: &str, lane: &str, queue: &str| {
        let labels = format!("lane=\"{lane}\",queue=\"{queue}\"}} ");
        let line = text
            .lines()
            .find(|line| line.starts_with(&format!("unified_{name}{{")) && line.contains(&labels));
        let line = line.unwrap_or_else(|| panic!("no {name} of lane {lane} in\n{text}"));
        line.rsplit(' ').next().unwrap().parse::<u64>().unwrap()
    };
    assert_eq!(of("received_total", "0", "1"), lanes[0].received);
    assert_eq!(of("received_total", "1", "2"), lanes[1].received);
    assert_eq!(of("received_total", "none", ""), 0);
    assert_eq!(of("xdp_no_socket_total", "none", ""), total.xdp.no_socket);
    assert_eq!(of("xdp_no_socket_total", "1", "2"), 0);
    let alone = unified::metrics::render(&context, Some(1)).unwrap();
    assert!(alone.contains("lane=\"1\"") && !alone.contains("lane=\"0\""));
}
