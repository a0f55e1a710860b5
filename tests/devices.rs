//! Several devices of one context: each command goes to the one that it names, with its own block size and limits, from the
//! memory that all of them share.
#![forbid(unsafe_code)]

mod common;
mod store;

use std::fs;

use common::{Scratch, payload};
use store::{DRIVES, LoopDevice, Rig, Target, can_loop, succeeded};
use unified::config::Config;
use unified::context::Context;
use unified::lane::{Blocks, Direction};
use unified::storage::device::DeviceConfig;

/// A context over these devices, in their order.
fn config(targets: &[&str]) -> Config {
    let mut config = store::storage_config(targets[0], unified::config::Drive::Inline);
    let more = targets[1..].iter().map(|path| DeviceConfig {
        path: (*path).into(),
        ..DeviceConfig::default()
    });
    config.more_devices = more.collect();
    config
}

fn mixed() -> Vec<Target> {
    let mut targets = Target::plain();
    if can_loop("loop devices among several devices") {
        targets.extend(Target::loops());
    }
    targets
}

fn paths(targets: &[Target]) -> Vec<&str> {
    targets.iter().map(|target| target.path.as_str()).collect()
}

#[test]
fn each_write_is_on_the_device_that_it_names() {
    let targets = mixed();
    for drive in DRIVES {
        let rig = Rig::open(&Config {
            drive,
            ..config(&paths(&targets))
        });
        for (device, target) in (0u8..).zip(&targets) {
            let frame = rig.stale_frame();
            let bytes = payload(device.into(), 1000);
            rig.fill(frame, 512, &bytes);
            let mut write = rig.transfer(frame, 512, bytes.len(), 3);
            write.device = device;
            write.keep = true;
            rig.context.submit_write(&write).unwrap();
            let done = rig.one();
            succeeded(&done);
            let padded = bytes.len().next_multiple_of(target.block);
            assert_eq!(
                (done.device, done.len as usize),
                (device, padded),
                "{}",
                target.name
            );
            rig.context.submit_flush(Some(device), rig.id()).unwrap();
            assert_eq!((rig.one().status, done.device), (0, device));
            // Back into the same frame, from that device.
            rig.fill(frame, 0, &[1; 4096]);
            let mut read = rig.transfer(frame, 0, padded, 3);
            read.device = device;
            rig.context.submit_read(&read).unwrap();
            succeeded(&rig.one());
            if target.stores() {
                assert_eq!(rig.bytes(frame, 0, bytes.len()), bytes, "{}", target.name);
                let at = 3 * target.block;
                assert!(target.image()[at..at + bytes.len()] == bytes[..]);
            }
            rig.context.frame_release(frame).unwrap();
        }
        // Each got its own bytes and no others.
        let stats = rig.context.statistics().unwrap();
        for (device, target) in targets.iter().enumerate() {
            let padded = 1000usize.next_multiple_of(target.block) as u64;
            let counts = stats.devices[device];
            assert_eq!((counts.bytes_written, counts.bytes_read), (padded, padded));
            let (about, of_all) = rig.context.device(device as u32, None).unwrap();
            assert_eq!(
                (about.path.as_str(), of_all),
                (target.path.as_str(), counts)
            );
        }
        let written: u64 = stats
            .devices
            .iter()
            .map(|device| device.bytes_written)
            .sum();
        assert_eq!(stats.bytes_written, written);
        assert_eq!(stats.devices[targets.len()], Default::default());
        for target in targets.iter().filter(|target| target.stores()) {
            let path = target.outside.as_ref().unwrap();
            fs::write(path, vec![0; store::DEVICE_BYTES as usize]).unwrap();
        }
    }
}

/// Whole blocks and limits are those of the device that a command goes to.
#[test]
fn blocks_are_those_of_the_device() {
    if !can_loop("blocks_are_those_of_the_device") {
        return;
    }
    let (small, large) = (Target::loop_device(512), Target::loop_device(4096));
    let rig = Rig::open(&config(&[&small.path, &large.path]));
    let frame = rig.stale_frame();
    let mut read = rig.transfer(frame, 0, 512, 0);
    rig.context.submit_transfer(Direction::Read, &read).unwrap();
    succeeded(&rig.one());
    read.device = 1;
    let error = rig
        .context
        .submit_transfer(Direction::Read, &read)
        .unwrap_err();
    assert!(error.message().contains("whole blocks of 4096"), "{error}");
    // The last block of each, and the one behind it.
    for (device, target) in [(0, &small), (1, &large)] {
        let last = target.blocks() - 1;
        for (lba, status) in [(last, 0), (last + 1, 0x080)] {
            let blocks = Blocks {
                device,
                lba,
                count: 1,
                user_data: lba,
            };
            rig.context.submit_write_zeroes(&blocks, false).unwrap();
            let done = rig.one();
            assert_eq!((done.status, done.device), (status, device));
        }
    }
    rig.context.frame_release(frame).unwrap();
}

#[test]
fn a_device_that_is_not_there_is_named() {
    let target = Target::memory();
    let rig = Rig::open(&config(&[&target.path, "null:"]));
    let frame = rig.stale_frame();
    let mut write = rig.transfer(frame, 0, 512, 0);
    write.device = 2;
    let blocks = Blocks {
        device: 2,
        count: 1,
        ..Blocks::default()
    };
    let raw = Default::default();
    for error in [
        rig.context.submit_write(&write).unwrap_err(),
        rig.context.submit_flush(Some(2), 1).unwrap_err(),
        rig.context.submit_write_zeroes(&blocks, false).unwrap_err(),
        rig.context.submit_deallocate(&blocks).unwrap_err(),
        rig.context.submit_raw(2, &raw, None, 1).unwrap_err(),
        rig.context.device(2, None).unwrap_err(),
    ] {
        assert_eq!(error.errno(), libc::EINVAL);
        assert!(
            error.message().contains("device 2 does not exist"),
            "{error}"
        );
        assert!(error.message().contains("has 2"), "{error}");
    }
    rig.context.frame_release(frame).unwrap();
}

#[test]
fn one_flush_covers_all_devices() {
    let targets = mixed();
    for drive in DRIVES {
        let rig = Rig::open(&Config {
            drive,
            ..config(&paths(&targets))
        });
        for _ in 0..20 {
            rig.context.submit_flush(None, rig.id()).unwrap();
        }
        let done = rig.take(20);
        assert!(done.iter().all(|done| (done.status, done.result) == (0, 0)));
        let stats = rig.context.statistics().unwrap();
        assert_eq!((stats.submitted, stats.completed), (20, 20));
        // Each of them had each flush.
        for (device, target) in targets.iter().enumerate().filter(|(_, t)| t.stores()) {
            assert!(stats.devices[device].operations >= 20, "{}", target.name);
        }
    }
}

fn refused(config: &Config, words: &[&str]) {
    let Err(error) = Context::open(config) else {
        panic!("{:?} {:?} were opened", config.device, config.more_devices);
    };
    assert_eq!(error.errno(), libc::EINVAL, "{error}");
    for word in words {
        assert!(error.message().contains(word), "{word}: {error}");
    }
}

#[test]
fn the_same_device_twice_is_refused_whatever_its_names() {
    let (one, two) = (Target::memory(), Target::memory());
    let link = Scratch::new("/dev/shm", "devices-link");
    std::os::unix::fs::symlink(&one.path, &link.0).unwrap();
    let hard = Scratch::new("/dev/shm", "devices-hard");
    fs::hard_link(&one.path, &hard.0).unwrap();
    let before = (one.image(), two.image());
    for again in [&one.path, link.path(), hard.path()] {
        let words = ["device 2", "the same as device 0", again, &one.path];
        refused(&config(&[&one.path, &two.path, again]), &words);
    }
    // Also if only read, where nothing is claimed.
    let mut reading = config(&[&one.path, link.path()]);
    reading.device.read_only = true;
    reading.more_devices[0].read_only = true;
    refused(&reading, &["device 1", "the same as device 0"]);
    // A spill is none of the devices, and no spill of another one.
    let mut spills = config(&[&one.path, &two.path]);
    spills.device.spill = Some(two.path.clone());
    refused(&spills, &["device 1", "the same as the spill of device 0"]);
    let file = Scratch::new("/dev/shm", "devices-spill");
    spills.device.spill = Some(file.path().into());
    spills.more_devices[0].spill = Some(file.path().into());
    refused(&spills, &["the spill of device 1", "the spill of device 0"]);
    assert!(!file.0.exists(), "nothing was made");
    assert!((one.image(), two.image()) == before, "nothing was written");
    // A device that stores nothing is not the same as itself.
    drop(Rig::open(&config(&["null:", "null:"])));
}

#[test]
fn a_loop_device_and_its_file_are_the_same() {
    if !can_loop("a_loop_device_and_its_file_are_the_same") {
        return;
    }
    let device = LoopDevice::new(store::DEVICE_BYTES, 512);
    let words = ["device 1", "the same as device 0"];
    refused(&config(&[&device.node, device.backing.path()]), &words);
    refused(&config(&[device.backing.path(), &device.node]), &words);
}

#[test]
fn a_missing_device_leaves_nothing_behind() {
    let made = Scratch::new(env!("CARGO_TARGET_TMPDIR"), "devices-made");
    let mut missing = config(&[made.path(), "/dev/shm/unified-no-such-device"]);
    missing.device.file_size = 1 << 20;
    let Err(error) = Context::open(&missing) else {
        panic!("a device that does not exist was opened");
    };
    assert_eq!(error.errno(), libc::ENOENT);
    assert!(
        error.message().contains("unified-no-such-device"),
        "{error}"
    );
    assert!(!made.0.exists(), "the file that was made is removed again");
    let many = vec!["null:"; 17];
    refused(&config(&many), &["17 devices"]);
    refused(&config(&["null:", ""]), &["device 1 has no path"]);
    drop(Rig::open(&config(&many[1..])));
}
