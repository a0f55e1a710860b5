//! Recordings of several lanes on several devices: every packet is there once, on some device, and in the order of its lane.
#![forbid(unsafe_code)]

mod common;
mod store;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::Write;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use common::recording::until;
use common::sets::{
    PATIENCE, Stored, check_all_there, check_all_there_once_or_twice, check_reader, finish, images,
    network, numbered, packets_on, send,
};
use common::{Scratch, SmallDisk, Veth, check_lanes, is_root, run};
use store::{LoopDevice, can_loop};
use unified::config::{ALL_QUEUES, Config, Drive};
use unified::context::Context;
use unified::log_reader::{Item, LogReader, Tally};
use unified::pipeline::{AtEnd, Pipeline, PipelineConfig, StoreLayout};
use unified::recorder::Existing;
use unified::storage::device::DeviceConfig;

const QUEUES: u32 = 4;
const FRAME: usize = 2048;

fn config(veth: &Veth, lanes: u32, devices: &[&str], bytes: u64) -> Config {
    let mut all = devices.iter().map(|path| DeviceConfig {
        path: (*path).into(),
        file_size: if path.starts_with("/dev/loop") {
            0
        } else {
            bytes
        },
        ..DeviceConfig::default()
    });
    Config {
        ifname: Some(veth.host.clone()),
        queues: if lanes == QUEUES { ALL_QUEUES } else { lanes },
        frame_count: 8192,
        drive: Drive::Inline,
        device: all.next().unwrap(),
        more_devices: all.collect(),
        ..Config::default()
    }
}

fn recording() -> PipelineConfig {
    PipelineConfig {
        layout: StoreLayout::Log,
        ..PipelineConfig::default()
    }
}

fn record(
    context: &Arc<Context>,
    veth: &Veth,
    pipeline: PipelineConfig,
    flows: u32,
    numbers: std::ops::Range<u32>,
) {
    let count = u64::from(flows) * numbers.len() as u64;
    let pipeline = Pipeline::start(context.clone(), pipeline).unwrap();
    send(veth, 0..flows, numbers);
    let status = finish(pipeline, count);
    assert_eq!((status.stored, status.failed), (count, 0));
}

#[test]
fn every_packet_is_stored_once_on_every_mix_of_lanes_and_devices() {
    if !is_root("every_packet_is_stored_once_on_every_mix_of_lanes_and_devices") {
        return;
    }
    const FLOWS: u32 = 24;
    const NUMBERS: u32 = 60;
    let files: Vec<Scratch> = (0..2)
        .map(|_| Scratch::new(env!("CARGO_TARGET_TMPDIR"), "set"))
        .collect();
    let device = can_loop("a loop device in a recording").then(|| LoopDevice::new(8 << 20, 512));
    for lanes in [1, 2, 4] {
        let veth = network(lanes);
        for devices in 1..=3 {
            let mut paths = vec![files[0].path()];
            let mut seen = vec![files[0].path()];
            if let (Some(device), true) = (&device, devices > 1) {
                paths.push(&device.node);
                seen.push(device.backing.path());
            }
            if devices > 2 {
                paths.push(files[1].path());
                seen.push(files[1].path());
            }
            eprintln!("{lanes} lanes, {} devices", paths.len());
            let config = config(&veth, lanes, &paths, 8 << 20);
            let context = Arc::new(Context::open(&config).unwrap());
            let fresh = PipelineConfig {
                existing: Existing::Replace,
                ..recording()
            };
            record(&context, &veth, fresh, FLOWS, 0..NUMBERS);
            check_lanes(&context);
            drop(context);
            let found = packets_on(&images(&seen));
            check_all_there(&found, &[NUMBERS; FLOWS as usize]);
            check_reader(&seen, &found, true);
            // In another order, and with one of them missing.
            let turned: Vec<&str> = seen.iter().rev().copied().collect();
            check_reader(&turned, &found, true);
            for lost in 0..seen.len() {
                let is_left = |(device, _): &(usize, &&str)| *device != lost;
                let left: Vec<&str> = seen
                    .iter()
                    .enumerate()
                    .filter(is_left)
                    .map(|(_, path)| *path)
                    .collect();
                let mut on_them = found.clone();
                on_them.retain(|_, stored| stored[0].device != lost);
                if !on_them.is_empty() {
                    check_reader(&left, &on_them, false);
                }
            }
        }
    }
}

/// One lane fills all devices evenly, measured by their length.
#[test]
fn one_lane_uses_all_devices_evenly() {
    if !is_root("one_lane_uses_all_devices_evenly") {
        return;
    }
    let veth = network(1);
    let names = ["even-a", "even-b", "even-c"];
    let files = names.map(|name| Scratch::new(env!("CARGO_TARGET_TMPDIR"), name));
    let paths = files.each_ref().map(Scratch::path);
    // The last one is twice as long.
    let mut config = config(&veth, 1, &paths, 2 << 20);
    config.more_devices[1].file_size = 4 << 20;
    let context = Arc::new(Context::open(&config).unwrap());
    let large = PipelineConfig {
        pack_below: Some(1),
        ..recording()
    };
    record(&context, &veth, large, 8, 0..200);
    check_lanes(&context);
    drop(context);
    let found = packets_on(&images(&paths));
    check_all_there(&found, &[200; 8]);
    let mut on = [0; 3];
    found.values().for_each(|stored| on[stored[0].device] += 1);
    let total: u32 = on.iter().sum();
    for (device, share) in [(0, 4), (1, 4), (2, 2)] {
        let (fair, has) = (total / share, on[device]);
        assert!(has > fair * 6 / 10 && has < fair * 14 / 10, "{on:?}");
    }
}

/// A recording goes on where it ended, also with another number of lanes.
#[test]
fn a_recording_is_continued_with_more_and_with_fewer_lanes() {
    if !is_root("a_recording_is_continued_with_more_and_with_fewer_lanes") {
        return;
    }
    let names = ["go-on-a", "go-on-b"];
    let files = names.map(|name| Scratch::new(env!("CARGO_TARGET_TMPDIR"), name));
    let paths = files.each_ref().map(Scratch::path);
    let mut before: BTreeMap<(u16, u64), Vec<Stored>> = BTreeMap::new();
    for (round, lanes) in [2, 4, 1, 4].into_iter().enumerate() {
        let veth = network(lanes);
        let config = config(&veth, lanes, &paths, 8 << 20);
        let context = Arc::new(Context::open(&config).unwrap());
        let round = round as u32;
        record(
            &context,
            &veth,
            recording(),
            16,
            round * 30..(round + 1) * 30,
        );
        check_lanes(&context);
        drop(context);
        let now = packets_on(&images(&paths));
        assert_eq!(now.len(), before.len() + 16 * 30);
        for (key, stored) in &before {
            assert_eq!(&now[key], stored, "what was there stays");
        }
        // Each lane's numbers are consecutive over all recordings.
        let mut next: BTreeMap<u16, u64> = BTreeMap::new();
        for (lane, sequence) in now.keys() {
            let next = next.entry(*lane).or_default();
            assert_eq!(sequence, next);
            *next += 1;
        }
        check_reader(&paths, &now, true);
        before = now;
    }
    let numbers: BTreeSet<&[u8]> = before
        .values()
        .map(|stored| &stored[0].payload[..4])
        .collect();
    assert_eq!(numbers.len(), 16 * 120);
}

/// The logs come round many times: what is left is whole, and of each lane the newest.
#[test]
fn logs_that_wrap_keep_the_newest_of_each_lane() {
    if !is_root("logs_that_wrap_keep_the_newest_of_each_lane") {
        return;
    }
    let veth = network(QUEUES);
    let names = ["wrap-a", "wrap-b"];
    let files = names.map(|name| Scratch::new(env!("CARGO_TARGET_TMPDIR"), name));
    let paths = files.each_ref().map(Scratch::path);
    let mut config = config(&veth, QUEUES, &paths, (2 + 8 * 16) * FRAME as u64);
    config.more_devices[0].file_size = (2 + 12 * 16) * FRAME as u64;
    let context = Arc::new(Context::open(&config).unwrap());
    let wraps = PipelineConfig {
        at_end: AtEnd::Wrap,
        pack_below: Some(1),
        ..recording()
    };
    record(&context, &veth, wraps, 16, 0..150);
    check_lanes(&context);
    drop(context);
    let found = packets_on(&images(&paths));
    let mut of_lanes: BTreeMap<u16, Vec<u64>> = BTreeMap::new();
    for ((lane, sequence), stored) in &found {
        assert_eq!(stored.len(), 1);
        of_lanes.entry(*lane).or_default().push(*sequence);
    }
    let ends: u64 = of_lanes.values().map(|of| of.last().unwrap() + 1).sum();
    assert_eq!(ends, 16 * 150, "the newest of each lane is there");
    assert!(found.len() > 150, "{}", found.len());
}

fn refused(context: &Arc<Context>, words: &[&str]) {
    let Err(error) = Pipeline::start(context.clone(), recording()) else {
        panic!("a recording was begun");
    };
    assert_eq!(error.errno(), libc::EINVAL, "{error}");
    for word in words {
        assert!(error.message().contains(word), "{word}: {error}");
    }
}

#[test]
fn devices_that_do_not_belong_together_are_refused_and_left_alone() {
    if !is_root("devices_that_do_not_belong_together_are_refused_and_left_alone") {
        return;
    }
    let veth = network(QUEUES);
    let names = ["one-a", "one-b", "two-a", "two-b", "none", "short"];
    let files = names.map(|name| Scratch::new(env!("CARGO_TARGET_TMPDIR"), name));
    let [a, b, other_a, other_b, none, short] = files.each_ref().map(Scratch::path);
    let open = |paths: &[&str]| {
        let context = Context::open(&config(&veth, QUEUES, paths, 4 << 20));
        Arc::new(context.unwrap())
    };
    for pair in [[a, b], [other_a, other_b]] {
        let context = open(&pair);
        let pipeline = Pipeline::start(context, recording()).unwrap();
        pipeline.stop().1.unwrap();
    }
    fs::File::create(none).unwrap().set_len(4 << 20).unwrap();
    let all = [a, b, other_a, other_b, none];
    let before = images(&all);
    refused(&open(&[a, other_b]), &[a, other_b, "different recordings"]);
    refused(&open(&[b, a]), &[b, "is device 1", "was given as device 0"]);
    refused(
        &open(&[a]),
        &[a, "a recording on 2 devices, and 1 are given"],
    );
    refused(&open(&[a, b, none]), &["on 2 devices, and 3 are given"]);
    refused(&open(&[none, b]), &[none, "holds no log", "2 devices"]);
    let mut config = config(&veth, QUEUES, &[none, short], 4 << 20);
    config.more_devices[0].file_size = 60 * FRAME as u64;
    let context = Arc::new(Context::open(&config).unwrap());
    refused(&context, &[short, "at least"]);
    assert!(images(&all) == before, "nothing was written");
}

/// A sparse file in a memory file system of its own, which takes no new blocks once that is full.
struct Fragile {
    file: String,
    dir: PathBuf,
}

impl Fragile {
    fn new(bytes: u64) -> Fragile {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let name = (std::process::id(), NUMBER.fetch_add(1, Ordering::Relaxed));
        let dir = std::env::temp_dir().join(format!("unified-fragile-{}-{}", name.0, name.1));
        fs::create_dir(&dir).unwrap();
        let size = format!("size={}", bytes + (1 << 20));
        let path = dir.to_str().unwrap();
        run("mount", &["-t", "tmpfs", "-o", &size, "tmpfs", path]);
        let file = format!("{path}/device");
        fs::File::create(&file).unwrap().set_len(bytes).unwrap();
        Fragile { file, dir }
    }

    /// Takes all the room that is left.
    fn fill(&self) {
        let mut file = fs::File::create(self.dir.join("filler")).unwrap();
        while file.write_all(&[7; 4096]).is_ok() {}
    }

    /// Gives it back.
    fn empty(&self) {
        fs::remove_file(self.dir.join("filler")).unwrap();
    }
}

impl Drop for Fragile {
    fn drop(&mut self) {
        let _ = store::try_run("umount", &["-l", self.dir.to_str().unwrap()]);
        let _ = fs::remove_dir(&self.dir);
    }
}

/// One of two devices fails every write, and works again later: nothing is lost, and it is used again.
#[test]
fn what_a_device_fails_goes_to_the_others_until_it_works_again() {
    if !is_root("what_a_device_fails_goes_to_the_others_until_it_works_again") {
        return;
    }
    const FLOWS: u32 = 16;
    for drive in [Drive::Inline, Drive::Thread] {
        for packed in [1, u32::MAX] {
            let fragile = Fragile::new(4 << 20);
            let veth = network(QUEUES);
            let file = Scratch::new(env!("CARGO_TARGET_TMPDIR"), "rescue");
            let mut config = Config {
                drive,
                ..config(&veth, QUEUES, &[file.path(), &fragile.file], 8 << 20)
            };
            config.more_devices[0].file_size = 0;
            let context = Arc::new(Context::open(&config).unwrap());
            let flushing = PipelineConfig {
                pack_below: Some(packed),
                flush_interval: Some(Duration::from_millis(20)),
                ..recording()
            };
            let pipeline = Pipeline::start(context.clone(), flushing).unwrap();
            let stored = |count: u32| {
                until(PATIENCE.as_secs(), "stored", || {
                    pipeline.status().completed == u64::from(FLOWS * count)
                });
            };
            send(&veth, 0..FLOWS, 0..40);
            stored(40);
            let before = context.device(1, None).unwrap().1;
            assert!(before.bytes_written > 0, "both devices are used");
            fragile.fill();
            send(&veth, FLOWS..2 * FLOWS, 0..60);
            stored(100);
            let status = pipeline.status();
            assert_eq!((status.error, status.failed), (0, 0), "{status:?}");
            assert!(status.rescued > 0, "{status:?}");
            assert!(context.device(1, None).unwrap().1.out);
            // There is room again: it is tried within a second or two, and used.
            fragile.empty();
            let written = || context.device(1, None).unwrap().1.bytes_written;
            let failed = written();
            until(PATIENCE.as_secs(), "the device answers", || {
                written() > failed
            });
            send(&veth, 2 * FLOWS..3 * FLOWS, 0..120);
            stored(220);
            let (status, result) = pipeline.stop();
            result.unwrap();
            assert_eq!((status.failed, status.durable), (0, u64::from(FLOWS * 220)));
            check_lanes(&context);
            let stats = context.statistics().unwrap();
            assert_eq!((stats.stored, stats.failed), (u64::from(FLOWS * 220), 0));
            drop(context);
            let found = packets_on(&images(&[file.path(), &fragile.file]));
            let counts = [40, 60, 120].map(|count| [count; FLOWS as usize]);
            check_all_there_once_or_twice(&found, counts.as_flattened());
            check_reader(&[file.path(), &fragile.file], &found, true);
            let late = |stored: &Stored| {
                let number = u32::from_le_bytes(stored.payload[..4].try_into().unwrap());
                stored.device == 1 && number >> 16 >= 2 * FLOWS
            };
            assert!(found.values().flatten().any(late), "it is used again");
        }
    }
}

/// A file system that is frozen: writes to its files are not answered until it thaws.
struct Frozen<'a>(&'a SmallDisk);

impl<'a> Frozen<'a> {
    fn new(disk: &'a SmallDisk) -> Frozen<'a> {
        run("fsfreeze", &["-f", disk.dir.to_str().unwrap()]);
        Frozen(disk)
    }
}

impl Drop for Frozen<'_> {
    fn drop(&mut self) {
        run("fsfreeze", &["-u", self.0.dir.to_str().unwrap()]);
    }
}

/// A file on a file system of its own, which can be frozen.
fn freezable(name: &str, bytes: u64) -> Option<(SmallDisk, String)> {
    let disk = SmallDisk::new(name, 2 * bytes)?;
    let path = disk.dir.join("device").to_str().unwrap().to_string();
    fs::write(&path, vec![0; bytes as usize]).unwrap();
    run("sync", &["-f", &path]);
    Some((disk, path))
}

/// Flushes often, and begins anew.
fn flushing(packed: u32) -> PipelineConfig {
    PipelineConfig {
        pack_below: Some(packed),
        flush_interval: Some(Duration::from_millis(20)),
        existing: Existing::Replace,
        ..recording()
    }
}

fn wait_for_durable(pipeline: &Pipeline, count: u64) {
    let until = Instant::now() + PATIENCE;
    while pipeline.status().durable < count {
        assert!(Instant::now() < until, "{count}: {:?}", pipeline.status());
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// One of two devices answers nothing for some seconds. Recording goes on, all of it is stored and durable meanwhile, and no
/// frame is used again before the device has let it go.
#[test]
fn a_device_that_does_not_answer_keeps_nobody_waiting() {
    const TEST: &str = "a_device_that_does_not_answer_keeps_nobody_waiting";
    if !is_root(TEST) {
        return;
    }
    const FLOWS: u32 = 16;
    for drive in [Drive::Inline, Drive::Thread] {
        for packed in [1, u32::MAX] {
            let Some((disk, stuck)) = freezable(TEST, 8 << 20) else {
                return;
            };
            let veth = network(QUEUES);
            let file = Scratch::new(env!("CARGO_TARGET_TMPDIR"), "stall");
            let config = Config {
                drive,
                ..config(&veth, QUEUES, &[file.path(), &stuck], 8 << 20)
            };
            let context = Arc::new(Context::open(&config).unwrap());
            let pipeline = Pipeline::start(context.clone(), flushing(packed)).unwrap();
            let durable = |count: u32| wait_for_durable(&pipeline, u64::from(FLOWS * count));
            send(&veth, 0..FLOWS, 0..40);
            durable(40);
            let frozen = Frozen::new(&disk);
            send(&veth, FLOWS..2 * FLOWS, 0..60);
            durable(100);
            let status = pipeline.status();
            assert_eq!((status.error, status.failed), (0, 0), "{status:?}");
            assert!(status.rescued > 0, "{status:?}");
            let held = context.statistics().unwrap().frames.in_flight;
            assert!(held > 0, "the device may still read them");
            send(&veth, 2 * FLOWS..3 * FLOWS, 0..40);
            durable(140);
            drop(frozen);
            until(PATIENCE.as_secs(), "it lets the frames go", || {
                context.statistics().unwrap().frames.in_flight == 0
            });
            let (status, result) = pipeline.stop();
            result.unwrap();
            assert_eq!((status.failed, status.durable), (0, u64::from(FLOWS * 140)));
            check_lanes(&context);
            let stats = context.statistics().unwrap();
            assert_eq!((stats.stored, stats.failed), (u64::from(FLOWS * 140), 0));
            drop(context);
            let found = packets_on(&images(&[file.path(), &stuck]));
            let counts = [40, 60, 40].map(|count| [count; FLOWS as usize]);
            check_all_there_once_or_twice(&found, counts.as_flattened());
            check_reader(&[file.path(), &stuck], &found, true);
        }
    }
}

/// One device does not answer, and the other one fails what it is given instead. What counts as stored can be read, and the
/// rest is counted.
#[test]
fn what_was_written_twice_and_failed_once_is_stored_or_counted() {
    const TEST: &str = "what_was_written_twice_and_failed_once_is_stored_or_counted";
    if !is_root(TEST) {
        return;
    }
    const FLOWS: u32 = 16;
    for packed in [1, u32::MAX] {
        let Some((disk, stuck)) = freezable(TEST, 8 << 20) else {
            return;
        };
        let fragile = Fragile::new(4 << 20);
        let veth = network(QUEUES);
        let mut config = config(&veth, QUEUES, &[&fragile.file, &stuck], 8 << 20);
        config.device.file_size = 0;
        let context = Arc::new(Context::open(&config).unwrap());
        let pipeline = Pipeline::start(context.clone(), flushing(packed)).unwrap();
        send(&veth, 0..FLOWS, 0..40);
        wait_for_durable(&pipeline, u64::from(FLOWS * 40));
        let frozen = Frozen::new(&disk);
        send(&veth, FLOWS..2 * FLOWS, 0..60);
        // It stores what it gets until the other one is found to be stuck.
        fragile.fill();
        until(PATIENCE.as_secs(), "written twice", || {
            pipeline.status().rescued > 0
        });
        std::thread::sleep(Duration::from_secs(1));
        drop(frozen);
        let (status, result) = pipeline.stop();
        assert!(result.is_ok() || status.failed > 0, "{status:?} {result:?}");
        assert_eq!(status.submitted, u64::from(FLOWS * 100));
        assert_eq!(status.stored + status.failed, status.submitted);
        check_lanes(&context);
        let stats = context.statistics().unwrap();
        assert_eq!(stats.stored, status.stored, "{status:?}");
        assert_eq!(stats.frames.in_flight, 0);
        drop(context);
        let found = packets_on(&images(&[&fragile.file, &stuck]));
        assert!(
            found.len() as u64 >= status.stored,
            "{} are there: {status:?}",
            found.len()
        );
    }
}

/// It is over at once, also while a device does not answer; what it was given is on the other one.
#[test]
fn a_recording_ends_while_a_device_does_not_answer() {
    const TEST: &str = "a_recording_ends_while_a_device_does_not_answer";
    if !is_root(TEST) {
        return;
    }
    const FLOWS: u32 = 16;
    for packed in [1, u32::MAX] {
        let bytes = (2 + 100 * 16) * FRAME as u64;
        let Some((disk, stuck)) = freezable(TEST, bytes) else {
            return;
        };
        let veth = network(QUEUES);
        let file = Scratch::new(env!("CARGO_TARGET_TMPDIR"), "ends");
        let config = config(&veth, QUEUES, &[file.path(), &stuck], bytes);
        let context = Arc::new(Context::open(&config).unwrap());
        let pipeline = Pipeline::start(context.clone(), flushing(packed)).unwrap();
        send(&veth, 0..FLOWS, 0..20);
        wait_for_durable(&pipeline, u64::from(FLOWS * 20));
        let frozen = Frozen::new(&disk);
        send(&veth, FLOWS..2 * FLOWS, 0..40);
        let begin = Instant::now();
        let ended = std::thread::spawn(move || pipeline.stop());
        until(PATIENCE.as_secs(), "it is stopped", || ended.is_finished());
        let (status, result) = ended.join().unwrap();
        result.unwrap();
        assert!(begin.elapsed() < Duration::from_secs(15));
        assert_eq!(
            (status.error, status.failed, status.durable),
            (0, 0, u64::from(FLOWS * 60)),
            "{status:?}"
        );
        let device = context.device(1, None).unwrap().1;
        assert!(!device.out, "nobody tries it any more");
        drop(frozen);
        drop(context);
        let found = packets_on(&images(&[file.path(), &stuck]));
        let counts = [20, 40].map(|count| [count; FLOWS as usize]);
        check_all_there_once_or_twice(&found, counts.as_flattened());
        check_reader(&[file.path(), &stuck], &found, true);
    }
}

/// No device answers, and later one does: it stores what the others were given. Nothing is lost, and nothing has failed.
#[test]
fn one_of_several_that_do_not_answer_is_enough_when_it_does() {
    const TEST: &str = "one_of_several_that_do_not_answer_is_enough_when_it_does";
    if !is_root(TEST) {
        return;
    }
    const FLOWS: u32 = 16;
    for (drive, turned) in [(Drive::Inline, false), (Drive::Thread, true)] {
        let (Some((disk, first)), Some((other, second))) = (
            freezable("no-answer-a", 32 << 20),
            freezable("no-answer-b", 32 << 20),
        ) else {
            return;
        };
        let veth = network(QUEUES);
        let config = Config {
            drive,
            ..config(&veth, QUEUES, &[&first, &second], 32 << 20)
        };
        let context = Arc::new(Context::open(&config).unwrap());
        let pipeline = Pipeline::start(context.clone(), flushing(1)).unwrap();
        send(&veth, 0..FLOWS, 0..40);
        wait_for_durable(&pipeline, u64::from(FLOWS * 40));
        let (frozen, still) = (Frozen::new(&disk), Frozen::new(&other));
        send(&veth, FLOWS..2 * FLOWS, 0..40);
        std::thread::sleep(Duration::from_secs(4));
        let status = pipeline.status();
        assert_eq!((status.error, status.failed), (0, 0), "{status:?}");
        let (thaws, still) = match turned {
            false => (frozen, still),
            true => (still, frozen),
        };
        drop(thaws);
        wait_for_durable(&pipeline, u64::from(FLOWS * 80));
        send(&veth, 2 * FLOWS..3 * FLOWS, 0..40);
        wait_for_durable(&pipeline, u64::from(FLOWS * 120));
        drop(still);
        until(PATIENCE.as_secs(), "it lets the frames go", || {
            context.statistics().unwrap().frames.in_flight == 0
        });
        let (status, result) = pipeline.stop();
        result.unwrap();
        assert_eq!((status.error, status.failed), (0, 0), "{status:?}");
        check_lanes(&context);
        drop(context);
        let found = packets_on(&images(&[&first, &second]));
        let counts = [40; 3 * FLOWS as usize];
        check_all_there_once_or_twice(&found, &counts);
        check_reader(&[&first, &second], &found, true);
    }
}

/// The device that takes over does not answer either, and a third one does.
#[test]
fn a_second_device_that_does_not_answer_is_left_for_a_third() {
    const TEST: &str = "a_second_device_that_does_not_answer_is_left_for_a_third";
    if !is_root(TEST) {
        return;
    }
    const FLOWS: u32 = 16;
    for packed in [1, u32::MAX] {
        let (Some((disk, first)), Some((other, second))) = (
            freezable("taken-over-a", 8 << 20),
            freezable("taken-over-b", 8 << 20),
        ) else {
            return;
        };
        let veth = network(QUEUES);
        let file = Scratch::new(env!("CARGO_TARGET_TMPDIR"), "third");
        // One lane, whose home is the first device; the second one is the next best.
        run("ethtool", &["-L", &veth.host, "rx", "1"]);
        let paths = [first.as_str(), second.as_str(), file.path()];
        let config = config(&veth, 1, &paths, 8 << 20);
        let context = Arc::new(Context::open(&config).unwrap());
        let pipeline = Pipeline::start(context.clone(), flushing(packed)).unwrap();
        send(&veth, 0..FLOWS, 0..40);
        wait_for_durable(&pipeline, u64::from(FLOWS * 40));
        let (frozen, still) = (Frozen::new(&disk), Frozen::new(&other));
        send(&veth, FLOWS..2 * FLOWS, 0..60);
        wait_for_durable(&pipeline, u64::from(FLOWS * 100));
        let status = pipeline.status();
        assert_eq!((status.error, status.failed), (0, 0), "{status:?}");
        let held = context.statistics().unwrap().frames.in_flight;
        assert!(held > 0, "the devices may still read them");
        drop((frozen, still));
        until(PATIENCE.as_secs(), "they let the frames go", || {
            context.statistics().unwrap().frames.in_flight == 0
        });
        let (status, result) = pipeline.stop();
        result.unwrap();
        assert_eq!((status.error, status.failed), (0, 0), "{status:?}");
        check_lanes(&context);
        drop(context);
        let found = packets_on(&images(&paths));
        let counts = [40, 60].map(|count| [count; FLOWS as usize]);
        check_all_there_once_or_twice(&found, counts.as_flattened());
        check_reader(&paths, &found, true);
    }
}

/// Writes that were durable at once are not reported as lost when their device fails, and no device stays out when the
/// recording has ended.
#[test]
fn what_was_durable_at_once_is_not_reported_as_lost() {
    if !is_root("what_was_durable_at_once_is_not_reported_as_lost") {
        return;
    }
    const FLOWS: u32 = 16;
    let fragile = Fragile::new(4 << 20);
    let veth = network(QUEUES);
    run("ethtool", &["-L", &veth.host, "rx", "1"]);
    let file = Scratch::new(env!("CARGO_TARGET_TMPDIR"), "at-once");
    let mut config = Config {
        frame_count: 4096,
        ..config(&veth, 1, &[&fragile.file, file.path()], 16 << 20)
    };
    config.device.file_size = 0;
    let context = Arc::new(Context::open(&config).unwrap());
    let fua = PipelineConfig {
        fua: true,
        ..PipelineConfig {
            flush_interval: None,
            ..flushing(1)
        }
    };
    let pipeline = Pipeline::start(context.clone(), fua).unwrap();
    send(&veth, 0..FLOWS, 0..10);
    wait_for_durable(&pipeline, u64::from(FLOWS * 10));
    fragile.fill();
    let mut sent = 10;
    while pipeline.status().rescued == 0 {
        assert!(sent < 300, "{:?}", pipeline.status());
        send(&veth, 0..FLOWS, sent..sent + 5);
        sent += 5;
    }
    wait_for_durable(&pipeline, u64::from(FLOWS * sent));
    // It is tried after a second.
    assert!(context.device(0, None).unwrap().1.out);
    let (status, result) = pipeline.stop();
    result.unwrap();
    assert_eq!((status.failed, status.unflushed), (0, 0), "{status:?}");
    assert!(!context.device(0, None).unwrap().1.out);
    check_lanes(&context);
}

/// A pipeline is ended in the time that it gets, also if what it has written is not answered.
#[test]
fn a_pipeline_ends_in_time_while_no_device_answers() {
    const TEST: &str = "a_pipeline_ends_in_time_while_no_device_answers";
    if !is_root(TEST) {
        return;
    }
    for drive in [Drive::Inline, Drive::Thread] {
        let Some((disk, stuck)) = freezable(TEST, 8 << 20) else {
            return;
        };
        let veth = network(QUEUES);
        let config = Config {
            drive,
            ..config(&veth, QUEUES, &[&stuck], 8 << 20)
        };
        let context = Arc::new(Context::open(&config).unwrap());
        let pipeline = Pipeline::start(context.clone(), flushing(1)).unwrap();
        let frozen = Frozen::new(&disk);
        send(&veth, 0..16, 0..10);
        until(PATIENCE.as_secs(), "submitted", || {
            pipeline.status().submitted == 160
        });
        assert_eq!(pipeline.status().completed, 0);
        let begin = Instant::now();
        let ended = std::thread::spawn(move || pipeline.end(begin + Duration::from_secs(1)));
        until(PATIENCE.as_secs(), "it has ended", || ended.is_finished());
        ended.join().unwrap();
        assert!(begin.elapsed() < Duration::from_secs(15));
        drop(frozen);
        drop(context);
    }
}

/// Many frames wait for a device that does not answer, and none is free: they are stored on the other one, and recording goes
/// on.
#[test]
fn few_frames_are_enough_while_a_device_does_not_answer() {
    const TEST: &str = "few_frames_are_enough_while_a_device_does_not_answer";
    if !is_root(TEST) {
        return;
    }
    for packed in [1, u32::MAX] {
        let Some((disk, stuck)) = freezable(TEST, 64 << 20) else {
            return;
        };
        let veth = network(QUEUES);
        run("ethtool", &["-L", &veth.host, "rx", "1"]);
        let file = Scratch::new(env!("CARGO_TARGET_TMPDIR"), "few");
        let config = Config {
            frame_count: 4096,
            ..config(&veth, 1, &[&stuck, file.path()], 64 << 20)
        };
        let context = Arc::new(Context::open(&config).unwrap());
        let pipeline = Pipeline::start(context.clone(), flushing(packed)).unwrap();
        send(&veth, 0..16, 0..10);
        wait_for_durable(&pipeline, 160);
        let frozen = Frozen::new(&disk);
        send(&veth, 16..80, 0..500);
        until(PATIENCE.as_secs(), "it is durable", || {
            let status = pipeline.status();
            status.rescued > 0 && status.durable == status.submitted
        });
        drop(frozen);
        let (status, result) = pipeline.stop();
        result.unwrap();
        assert_eq!((status.error, status.failed), (0, 0), "{status:?}");
        until(PATIENCE.as_secs(), "it lets the frames go", || {
            context.statistics().unwrap().frames.in_flight == 0
        });
        check_lanes(&context);
    }
}

/// Reads a recording while it goes on, until all of it was seen or overwritten. `pause`: after so many items, for so long. Every
/// packet is one that was sent, none comes twice, and each number of each lane comes once, as a packet or as missing.
fn follow_all(paths: &[&str], sent: u64, (items, pause): (u64, Duration)) -> Tally {
    let devices: Vec<(PathBuf, u64)> = paths.iter().map(|path| (path.into(), 0)).collect();
    let mut reader = LogReader::open_set(&devices).unwrap();
    let mut next: BTreeMap<u16, u64> = BTreeMap::new();
    let mut numbers = BTreeSet::new();
    let (mut seen, mut overwritten, mut at) = (0, 0, Instant::now());
    while next.values().sum::<u64>() < sent {
        assert!(at.elapsed() < PATIENCE, "{next:?} of {sent}");
        let Some(item) = reader.follow(Duration::from_millis(100)).unwrap() else {
            continue;
        };
        at = Instant::now();
        let (lane, first, count) = match item {
            Item::Record { header, packet } => {
                let start = usize::from(header.payload_offset);
                let bytes = &packet[start..start + usize::from(header.payload_len)];
                let number = u32::from_le_bytes(bytes[..4].try_into().unwrap());
                assert!(bytes == numbered(number >> 16, number & 0xffff), "wrong");
                assert!(numbers.insert(number), "{number:#x} came twice");
                (header.lane, header.sequence, 1)
            }
            Item::Overwritten { lane, first, count } => {
                overwritten += count;
                (lane, first, count)
            }
            gap => panic!("nothing was lost: {gap:?}"),
        };
        let next = next.entry(lane).or_default();
        assert_eq!(first, *next, "lane {lane}");
        *next += count;
        seen += 1;
        if seen % items == 0 {
            std::thread::sleep(pause);
        }
    }
    assert_eq!(next.values().sum::<u64>(), sent);
    let tally = reader.tally();
    assert_eq!((tally.missing, tally.damaged), (0, 0));
    assert_eq!(
        (tally.records, tally.overwritten),
        (numbers.len() as u64, overwritten)
    );
    tally
}

/// The devices are overwritten several times while they are read, by one reader that keeps up and by others that do not.
#[test]
fn readers_of_a_set_that_wraps_say_what_was_overwritten() {
    if !is_root("readers_of_a_set_that_wraps_say_what_was_overwritten") {
        return;
    }
    const FLOWS: u32 = 16;
    const EACH: u32 = 500;
    let veth = network(QUEUES);
    let files = [0, 1].map(|_| Scratch::new(env!("CARGO_TARGET_TMPDIR"), "wrapping"));
    let paths = files.each_ref().map(Scratch::path);
    let context = Context::open(&config(&veth, QUEUES, &paths, 1 << 20)).unwrap();
    let context = Arc::new(context);
    let wrapping = PipelineConfig {
        at_end: AtEnd::Wrap,
        ..recording()
    };
    let pipeline = Pipeline::start(context.clone(), wrapping).unwrap();
    let sent = u64::from(FLOWS * EACH);
    std::thread::scope(|scope| {
        let paces = [
            (u64::MAX, Duration::ZERO),
            (100, Duration::from_millis(100)),
            (1000, Duration::from_millis(1500)),
        ];
        let readers = paces.map(|pace| scope.spawn(move || follow_all(&paths, sent, pace)));
        send(&veth, 0..FLOWS, 0..EACH);
        until(PATIENCE.as_secs(), "stored", || {
            pipeline.status().completed == sent
        });
        let (status, result) = pipeline.stop();
        result.unwrap();
        assert_eq!((status.stored, status.failed), (sent, 0));
        assert!(status.wraps > 2, "{status:?}");
        let tallies = readers.map(|reader| reader.join().unwrap());
        for tally in tallies {
            assert_eq!(tally.records + tally.overwritten, sent);
        }
        // One that rests for longer than the devices last is overtaken.
        assert!(tallies[2].overwritten > 0, "{tallies:?}");
        // And whoever comes afterwards finds the rest.
        let (found, mut rest) = (packets_on(&images(&paths)), 0);
        let devices = paths.map(|path| (PathBuf::from(path), 0));
        let mut reader = LogReader::open_set(&devices).unwrap();
        while let Some(item) = reader.next_item().unwrap() {
            rest += u64::from(matches!(item, Item::Record { .. }));
        }
        assert_eq!(rest, found.len() as u64);
        assert!(rest > 100 && rest < sent, "{rest}");
    });
    check_lanes(&context);
}
