//! Recordings on several NVMe drives by passthrough: how they scale, and what happens if one is slow, falls silent or is pulled
//! out. UNIFIED_TEST_SET names the serial numbers of the drives, separated by commas, and UNIFIED_TEST_SENDER a channel to who can
//! throttle and unplug them. tests/vm/run has such drives. They are overwritten.
#![forbid(unsafe_code)]

mod common;

use std::collections::{BTreeMap, BTreeSet};
use std::env;
use std::fs::{self, File, OpenOptions};
use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddrV4, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use common::recording::until;
use common::sets::{
    Stored, check_all_there, check_all_there_once_or_twice, check_reader, finish, network,
    packets_on, send,
};
use common::{Veth, check_lanes, is_root, payload, read_direct, skip};
use unified::config::{ALL_QUEUES, Config, Drive};
use unified::context::Context;
use unified::net::socket::ZeroCopy;
use unified::pipeline::{AtEnd, Pipeline, PipelineConfig, StoreLayout};
use unified::recorder::Existing;
use unified::storage::device::{DeviceConfig, Kind};

const QUEUES: u32 = 4;
/// What tests of content write to, from the start of each drive.
const AREA: usize = 8 << 20;
/// Bytes a second of a throttled drive. An emulated processor does not send more than four such drives can take.
const SLOW: u64 = 1_000_000;
const PATIENCE: u64 = 40;

/// The drives and the channel to their machine.
struct Machine {
    drives: Vec<String>,
    channel: File,
}

impl Machine {
    /// `None` with the skip said.
    fn new(test: &str) -> Option<Machine> {
        if !is_root(test) {
            return None;
        }
        let (Ok(drives), Ok(channel)) = (
            env::var("UNIFIED_TEST_SET"),
            env::var("UNIFIED_TEST_SENDER"),
        ) else {
            skip(test, "UNIFIED_TEST_SET names no drives");
            return None;
        };
        let channel = OpenOptions::new().read(true).write(true).open(channel);
        let machine = Machine {
            drives: drives.split(',').map(Into::into).collect(),
            channel: channel.unwrap(),
        };
        assert_eq!(machine.drives.len(), 4);
        Some(machine)
    }

    fn ask(&self, request: &str, answer: &str) {
        writeln!(&self.channel, "{request}").unwrap();
        let mut said = String::new();
        BufReader::new(&self.channel).read_line(&mut said).unwrap();
        assert_eq!(said.trim(), answer, "{request}");
    }

    /// Bytes a second that may be written to a drive; 0: any number.
    fn limit(&self, drive: usize, bytes: u64) {
        self.ask(
            &format!("limit {}-1 {bytes}", self.drives[drive]),
            "throttled",
        );
    }

    /// The controller of a drive, if it is there: nvme3.
    fn controller(&self, drive: usize) -> Option<String> {
        let mut all = fs::read_dir("/sys/class/nvme").unwrap();
        let found = all.find(|entry| {
            let serial = entry.as_ref().unwrap().path().join("serial");
            fs::read_to_string(serial).is_ok_and(|serial| serial.trim() == self.drives[drive])
        })?;
        Some(found.unwrap().file_name().into_string().unwrap())
    }

    /// Its nodes for passthrough and as a block device.
    fn nodes(&self, drive: usize) -> (String, String) {
        let controller = self.controller(drive).expect("the drive is there");
        let number = controller.strip_prefix("nvme").unwrap();
        (format!("/dev/ng{number}n1"), format!("/dev/nvme{number}n1"))
    }

    /// The area of the first drives as it stands there.
    fn images(&self, drives: usize) -> Vec<Vec<u8>> {
        (0..drives)
            .map(|drive| read_direct(self.nodes(drive).1, AREA))
            .collect()
    }

    fn config(&self, veth: &Veth, drives: usize) -> Config {
        let mut all = (0..drives).map(|drive| DeviceConfig {
            path: self.nodes(drive).0,
            ..DeviceConfig::default()
        });
        Config {
            ifname: Some(veth.host.clone()),
            queues: ALL_QUEUES,
            frame_count: 8192,
            drive: Drive::Thread,
            device: all.next().unwrap(),
            more_devices: all.collect(),
            ..Config::default()
        }
    }

    /// What was found on the first drives must be what the reader finds there.
    fn check_reader(&self, drives: usize, found: &BTreeMap<(u16, u64), Vec<Stored>>) {
        let nodes: Vec<String> = (0..drives).map(|drive| self.nodes(drive).1).collect();
        let nodes: Vec<&str> = nodes.iter().map(String::as_str).collect();
        check_reader(&nodes, found, true);
    }
}

impl Drop for Machine {
    /// The next test finds the drives as they were.
    fn drop(&mut self) {
        if !std::thread::panicking() {
            return;
        }
        let ask = |request: String| {
            let _ = writeln!(&self.channel, "{request}");
            let _ = BufReader::new(&self.channel).read_line(&mut String::new());
        };
        for (number, drive) in self.drives.iter().enumerate() {
            if self.controller(number).is_none() {
                ask(format!("plug {drive}"));
                std::thread::sleep(Duration::from_secs(2));
            }
            ask(format!("limit {drive}-1 0"));
        }
    }
}

/// A new recording in the area.
fn recording() -> PipelineConfig {
    PipelineConfig {
        layout: StoreLayout::Log,
        existing: Existing::Replace,
        blocks: (AREA / 512) as u64,
        flush_interval: Some(Duration::from_millis(50)),
        ..PipelineConfig::default()
    }
}

#[test]
fn every_packet_is_stored_once_on_one_two_and_three_drives() {
    let Some(machine) = Machine::new("every_packet_is_stored_once_on_one_two_and_three_drives")
    else {
        return;
    };
    const FLOWS: u32 = 16;
    const NUMBERS: u32 = 30;
    for lanes in [1, 2, 4] {
        let veth = network(lanes);
        for drives in 1..=3 {
            eprintln!("{lanes} lanes, {drives} drives");
            let config = machine.config(&veth, drives);
            let context = Arc::new(Context::open(&config).unwrap());
            let info = context.info();
            assert!(info.devices.iter().all(|device| device.kind == Kind::Nvme));
            let pipeline = Pipeline::start(context.clone(), recording()).unwrap();
            send(&veth, 0..FLOWS, 0..NUMBERS);
            let count = u64::from(FLOWS * NUMBERS);
            let status = finish(pipeline, count);
            assert_eq!((status.stored, status.failed), (count, 0));
            assert_eq!(check_lanes(&context).len(), lanes as usize);
            drop(context);
            let found = packets_on(&machine.images(drives));
            check_all_there(&found, &[NUMBERS; FLOWS as usize]);
            machine.check_reader(drives, &found);
        }
    }
}

/// Pages of the mapping at an address on the first two NUMA nodes.
fn pages_by_node(address: usize) -> [u64; 2] {
    let maps = fs::read_to_string("/proc/self/numa_maps").unwrap();
    let start = format!("{address:08x} ");
    let line = maps.lines().find(|line| line.starts_with(&start)).unwrap();
    [0, 1].map(|node| {
        let name = format!("N{node}=");
        let mut words = line.split(' ');
        let count = words.find_map(|word| word.strip_prefix(&name));
        count.map_or(0, |count| count.parse().unwrap())
    })
}

/// A NIC whose RSS spreads flows over four queues: all of them are recorded, on two drives, whatever the NIC and the kernel can.
#[test]
fn all_queues_of_a_nic_are_recorded() {
    let test = "all_queues_of_a_nic_are_recorded";
    let (Some(machine), Ok(nic)) = (Machine::new(test), env::var("UNIFIED_TEST_MANY")) else {
        return skip(test, "UNIFIED_TEST_MANY names no NIC of several queues");
    };
    const COUNT: u64 = 2000;
    // By ports, too.
    common::run("ethtool", &["-L", &nic, "combined", "4"]);
    common::run("ethtool", &["-N", &nic, "rx-flow-hash", "udp4", "sdfn"]);
    let veth = Veth::new();
    for zero_copy in [ZeroCopy::Auto, ZeroCopy::Copy] {
        let config = Config {
            ifname: Some(nic.clone()),
            zero_copy,
            ..machine.config(&veth, 2)
        };
        let context = Arc::new(Context::open(&config).unwrap());
        let network = context.info().network.unwrap();
        let can = env::var("UNIFIED_TEST_ZERO_COPY").is_ok_and(|can| can == "1");
        assert_eq!(network.zero_copy, can && zero_copy == ZeroCopy::Auto);
        assert!(network.native);
        // The NIC is on the second of two NUMA nodes, and so is the region.
        let pages = pages_by_node(context.info().region_address);
        assert!(pages[0] == 0 && pages[1] > 0, "{pages:?}");
        let pipeline = Pipeline::start(context.clone(), recording()).unwrap();
        machine.ask(
            &format!("spread {COUNT} 1024 2000 9999 0"),
            &format!("sent {COUNT}"),
        );
        let status = finish(pipeline, COUNT);
        assert_eq!((status.stored, status.failed), (COUNT, 0), "{status:?}");
        let lanes = check_lanes(&context);
        let received: Vec<u64> = lanes.iter().map(|lane| lane.received).collect();
        println!("received by lane: {received:?}");
        assert_eq!((lanes.len(), received.iter().sum()), (4, COUNT));
        assert!(
            received.iter().all(|lane| *lane > COUNT / 20),
            "{received:?}"
        );
        drop(context);
        let found = packets_on(&machine.images(2));
        assert_eq!(found.len() as u64, COUNT);
        let different: BTreeSet<&[u8]> = found
            .values()
            .map(|stored| &stored[0].payload[..])
            .collect();
        assert_eq!(different.len() as u64, COUNT, "each of them once");
        machine.check_reader(2, &found);
    }
}

/// A recording on three drives, and what was sent to it.
struct Session {
    machine: Machine,
    veth: Veth,
    context: Arc<Context>,
    pipeline: Pipeline,
    counts: Vec<u32>,
}

const FLOWS: u32 = 16;
const DRIVES: usize = 3;
/// The drive that fails.
const BAD: usize = 1;

impl Session {
    fn new(test: &str) -> Option<Session> {
        let machine = Machine::new(test)?;
        let veth = network(QUEUES);
        let config = machine.config(&veth, DRIVES);
        let context = Arc::new(Context::open(&config).unwrap());
        let pipeline = Pipeline::start(context.clone(), recording()).unwrap();
        Some(Session {
            machine,
            veth,
            context,
            pipeline,
            counts: Vec::new(),
        })
    }

    /// So many packets of each of some new flows.
    fn send(&mut self, count: u32) {
        let first = FLOWS * self.counts.len() as u32;
        send(&self.veth, first..first + FLOWS, 0..count);
        self.counts.push(count);
    }

    fn sent(&self) -> u64 {
        self.counts
            .iter()
            .map(|count| u64::from(count * FLOWS))
            .sum()
    }

    /// All that was sent is durable.
    fn durable(&self) {
        until(PATIENCE, "all is durable", || {
            self.pipeline.status().durable >= self.sent()
        });
        let status = self.pipeline.status();
        assert_eq!((status.error, status.failed), (0, 0), "{status:?}");
    }

    fn is_out(&self) -> bool {
        self.context.device(BAD as u32, None).unwrap().1.out
    }

    /// Ends the recording. All is stored.
    fn stop(self) -> (Machine, Vec<u32>) {
        let sent = self.sent();
        let (status, result) = self.pipeline.stop();
        result.unwrap();
        assert_eq!((status.failed, status.durable), (0, sent), "{status:?}");
        check_lanes(&self.context);
        let stats = self.context.statistics().unwrap();
        assert_eq!((stats.stored, stats.failed), (sent, 0));
        let of_flow = |count: &u32| [*count; FLOWS as usize];
        (self.machine, self.counts.iter().flat_map(of_flow).collect())
    }
}

#[test]
fn a_drive_that_stalls_for_twenty_seconds_keeps_nobody_waiting() {
    let test = "a_drive_that_stalls_for_twenty_seconds_keeps_nobody_waiting";
    let Some(mut session) = Session::new(test) else {
        return;
    };
    session.send(30);
    session.durable();
    session.machine.limit(BAD, 1);
    let stalled = Instant::now();
    while stalled.elapsed() < Duration::from_secs(20) {
        session.send(50);
        std::thread::sleep(Duration::from_millis(500));
    }
    session.durable();
    assert!(session.is_out());
    let status = session.pipeline.status();
    assert!(status.rescued > 0, "{status:?}");
    let held = session.context.statistics().unwrap().frames.in_flight;
    assert!(held > 0, "the drive may still read them");
    session.machine.limit(BAD, 0);
    until(PATIENCE, "it lets the frames go, and is used again", || {
        let held = session.context.statistics().unwrap().frames.in_flight;
        held == 0 && !session.is_out()
    });
    session.send(60);
    session.durable();
    let (machine, counts) = session.stop();
    let found = packets_on(&machine.images(DRIVES));
    check_all_there_once_or_twice(&found, &counts);
    machine.check_reader(DRIVES, &found);
}

/// What it had not completed is on the others; what it had is on it, and missing without it.
#[test]
fn a_drive_that_is_pulled_out_takes_only_what_it_had_completed() {
    let test = "a_drive_that_is_pulled_out_takes_only_what_it_had_completed";
    let Some(mut session) = Session::new(test) else {
        return;
    };
    session.send(40);
    session.durable();
    let name = session.machine.drives[BAD].clone();
    // While it is written to.
    std::thread::scope(|scope| {
        let veth = &session.veth;
        scope.spawn(|| send(veth, FLOWS..2 * FLOWS, 0..150));
        std::thread::sleep(Duration::from_millis(300));
        session.machine.ask(&format!("unplug {name}"), "unplugged");
    });
    session.counts.push(150);
    session.send(40);
    session.durable();
    // It was written to, or flushed, when it was gone.
    assert!(session.is_out());
    let (machine, counts) = session.stop();
    assert_eq!(machine.controller(BAD), None);
    let left: Vec<String> = [0, 2].map(|drive| machine.nodes(drive).1).into();
    machine.ask(&format!("plug {name}"), "plugged");
    until(PATIENCE, "it is back", || {
        let back = machine.controller(BAD);
        back.is_some() && File::open(machine.nodes(BAD).1).is_ok()
    });
    let found = packets_on(&machine.images(DRIVES));
    check_all_there_once_or_twice(&found, &counts);
    machine.check_reader(DRIVES, &found);
    let mut on_others = found.clone();
    for stored in on_others.values_mut() {
        stored.retain(|stored| stored.device != BAD);
    }
    on_others.retain(|_, stored| !stored.is_empty());
    assert!(on_others.len() < found.len(), "it had completed some");
    let left: Vec<&str> = left.iter().map(String::as_str).collect();
    check_reader(&left, &on_others, false);
}

/// Sends large packets as fast as it goes until it is dropped.
struct Flood {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<u64>>,
}

const LARGE: usize = 3300;

impl Flood {
    fn new(veth: &Veth) -> Flood {
        let to = SocketAddrV4::new(veth.host_addr, 9999);
        let stop = Arc::new(AtomicBool::new(false));
        let end = stop.clone();
        let thread = veth.far(move || {
            let sockets: Vec<UdpSocket> = (0..16)
                .map(|_| UdpSocket::bind("0.0.0.0:0").unwrap())
                .collect();
            let packet = payload(1, LARGE);
            let mut sent = 0;
            while !end.load(Ordering::Relaxed) {
                for socket in &sockets {
                    socket.send_to(&packet, to).unwrap();
                    sent += 1;
                }
                // The machine has two processors for all.
                std::thread::sleep(Duration::from_millis(2));
            }
            sent
        });
        Flood {
            stop,
            thread: Some(thread),
        }
    }

    fn stop(&mut self) -> u64 {
        self.stop.store(true, Ordering::Relaxed);
        self.thread
            .take()
            .map_or(0, |thread| thread.join().unwrap())
    }
}

impl Drop for Flood {
    fn drop(&mut self) {
        self.stop();
    }
}

/// Packets a second that so many drives store of more than they can take.
fn rate(machine: &Machine, veth: &Veth, limits: &[u64]) -> f64 {
    let drives = limits.len();
    for (drive, limit) in limits.iter().enumerate() {
        machine.limit(drive, *limit);
    }
    let config = Config {
        frame_size: 4096,
        ..machine.config(veth, drives)
    };
    let context = Arc::new(Context::open(&config).unwrap());
    let wraps = PipelineConfig {
        at_end: AtEnd::Wrap,
        blocks: 0,
        ..recording()
    };
    let pipeline = Pipeline::start(context.clone(), wraps).unwrap();
    let mut flood = Flood::new(veth);
    let begun = Instant::now();
    std::thread::sleep(Duration::from_secs(5));
    let (start, before) = (Instant::now(), pipeline.status());
    std::thread::sleep(Duration::from_secs(8));
    let (after, took) = (pipeline.status(), start.elapsed());
    let offered = flood.stop() as f64 / begun.elapsed().as_secs_f64();
    // What waits in the frames need not take so long.
    (0..drives).for_each(|drive| machine.limit(drive, 0));
    let (status, result) = pipeline.stop();
    result.unwrap();
    assert_eq!((status.failed, status.error), (0, 0), "{status:?}");
    check_lanes(&context);
    let rate = (after.stored - before.stored) as f64 / took.as_secs_f64();
    println!(
        "{drives} drives: {rate:.0} of {offered:.0} packets/s, {} rescued",
        status.rescued
    );
    assert!(offered > rate * 1.05, "the drives are the limit");
    rate
}

fn wide(queues: u32) -> Veth {
    let veth = network(queues);
    for (at, link) in [(vec![], &veth.host), (vec!["-n", &veth.ns], &veth.peer)] {
        let set = ["link", "set", link, "mtu", "3500"];
        common::run("ip", &[&at[..], &set[..]].concat());
    }
    veth
}

#[test]
fn drives_add_up() {
    let Some(machine) = Machine::new("drives_add_up") else {
        return;
    };
    let veth = wide(QUEUES);
    let rates: Vec<f64> = (1..=4)
        .map(|drives| rate(&machine, &veth, &[SLOW; 4][..drives]))
        .collect();
    let uneven = rate(&machine, &veth, &[SLOW, SLOW, SLOW, SLOW / 10]);
    let times: Vec<f64> = rates.iter().map(|rate| rate / rates[0]).collect();
    println!(
        "times one drive: {times:.2?}; one at a tenth: {:.2}",
        uneven / rates[0]
    );
    for (drives, least) in [(2, 1.9), (3, 2.8), (4, 3.7)] {
        assert!(times[drives - 1] >= least, "{drives} drives: {times:?}");
    }
    assert!(uneven / rates[0] >= 3.1 * 0.95, "{}", uneven / rates[0]);
}
