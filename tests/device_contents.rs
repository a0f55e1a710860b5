//! What is on a device belongs to somebody: it is written over only for those who insist.

mod common;
mod store;

use std::fs::{self, File, OpenOptions};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, OpenOptionsExt};

use common::{Scratch, payload};
use store::{
    DEVICE_BYTES, DRIVES, LoopDevice, Rig, Target, can_loop, run, storage_config, succeeded,
};
use unified::config::{Config, Drive};
use unified::context::Context;
use unified::recorder::{Existing, SlotRecorder};

fn config(path: &str) -> Config {
    storage_config(path, Drive::Inline)
}

fn refused(config: &Config, words: &[&str]) {
    let Err(error) = Context::open(config) else {
        panic!("{:?} was opened", config.device);
    };
    assert_eq!(error.errno(), libc::EEXIST, "{error}");
    for word in words.iter().chain(&["UNIFIED_FORCE", "wipefs"]) {
        assert!(error.message().contains(word), "'{word}' in: {error}");
    }
}

/// Refused in every way to open it for writing, and left as it is; reading and insisting are not refused.
fn every_way(path: &str, image: &str, what: &str) {
    let before = fs::read(image).unwrap();
    refused(&config(path), &[what, path]);
    for flags in [0, libc::O_DIRECT] {
        let mut handed = config("");
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(flags)
            .open(path)
            .unwrap();
        handed.device.fd = Some(file.as_raw_fd());
        refused(&handed, &[what, "descriptor"]);
    }
    let mut reading = config(path);
    reading.device.read_only = true;
    let rig = Rig::open(&reading);
    assert!(rig.read(0, 4096) == before[..4096]);
    drop(rig);
    assert!(fs::read(image).unwrap() == before, "{what}: as it was");
    let mut insisting = config(path);
    insisting.device.force = true;
    drop(Rig::open(&insisting));
}

/// libblkid knows all of these, this library itself only some.
#[test]
fn a_block_device_with_something_on_it() {
    if !can_loop("a_block_device_with_something_on_it") {
        return;
    }
    for (what, make) in [
        ("ext4", &["mkfs.ext4", "-q", "-F"][..]),
        ("ext2", &["mkfs.ext2", "-q", "-F"]),
        ("swap", &["mkswap"]),
        ("minix", &["mkfs.minix"]),
        ("bfs", &["mkfs.bfs"]),
    ] {
        let device = LoopDevice::new(DEVICE_BYTES, 512);
        run(make[0], &[&make[1..], &[device.node.as_str()]].concat());
        every_way(&device.node, device.backing.path(), what);
        run("wipefs", &["-q", "-a", &device.node]);
        drop(Rig::open(&config(&device.node)));
    }
    // A table without partitions, which the kernel does not show; of a device of other blocks, too.
    for sector in [512, 4096] {
        let device = LoopDevice::new(DEVICE_BYTES, sector);
        let node = OpenOptions::new().write(true).open(&device.node).unwrap();
        node.write_all_at(b"EFI PART", sector.into()).unwrap();
        node.sync_all().unwrap();
        drop(node);
        every_way(&device.node, device.backing.path(), "gpt");
    }
}

#[test]
fn a_file_with_something_in_it() {
    for dir in [env!("CARGO_TARGET_TMPDIR"), "/dev/shm"] {
        let file = Scratch::new(dir, "contents");
        File::create(&file.0)
            .unwrap()
            .set_len(DEVICE_BYTES)
            .unwrap();
        run("mkfs.ext4", &["-q", "-F", file.path()]);
        if dir == "/dev/shm" {
            refused(&config(file.path()), &["ext4"]);
        } else {
            every_way(file.path(), file.path(), "ext4");
        }
        // A size is no permission either.
        let mut longer = config(file.path());
        longer.device.file_size = 2 * DEVICE_BYTES;
        refused(&longer, &["ext4"]);
        assert_eq!(fs::metadata(&file.0).unwrap().len(), DEVICE_BYTES);
        let device = Target::disk();
        let mut spill = device.config(Drive::Inline);
        spill.device.spill = Some(file.path().into());
        refused(&spill, &["ext4"]);
    }
}

#[test]
fn a_spill_device_with_something_on_it() {
    if !can_loop("a_spill_device_with_something_on_it") {
        return;
    }
    let device = Target::disk();
    let spill = LoopDevice::new(DEVICE_BYTES, 512);
    run("mkfs.ext4", &["-q", "-F", &spill.node]);
    let mut config = device.config(Drive::Inline);
    config.device.spill = Some(spill.node.clone());
    refused(&config, &["ext4", &spill.node]);
    config.device.force = true;
    drop(Rig::open(&config));
}

/// Payloads of an earlier run are nobody's: a device is used again without a question.
#[test]
fn what_was_stored_before_is_written_over() {
    for target in [Target::disk(), Target::memory()] {
        for round in 0..4 {
            let rig = target.open(DRIVES[round % 2]);
            for lba in 0..200 {
                succeeded(&rig.write(lba * 8, 0, &payload(lba as u32 + round as u32, 4096)));
            }
        }
    }
}

fn open(config: &Config) -> Context {
    match Context::open(config) {
        Ok(context) => context,
        Err(error) => panic!("{error}"),
    }
}

fn begin(context: &Context, start: u64, blocks: u64, existing: Existing) -> Result<(), i32> {
    match SlotRecorder::open(
        context,
        &context.lanes()[0],
        start,
        blocks,
        false,
        false,
        existing,
    ) {
        Ok(_) => Ok(()),
        Err(error) => {
            for word in [
                "not a log",
                &context.info().devices[0].path,
                "UNIFIED_LOG_NEW",
            ] {
                assert!(error.message().contains(word), "'{word}' in: {error}");
            }
            Err(error.errno())
        }
    }
}

#[test]
fn a_log_is_begun_in_an_empty_range_only() {
    for target in [Target::disk(), Target::memory()] {
        let blocks = target.blocks();
        // At the start, after 32 KiB, in the middle, at the end.
        for (at, len) in [
            (0, 512),
            (1, 1),
            (32 << 10, 512),
            (DEVICE_BYTES / 2, 1 << 20),
            (DEVICE_BYTES - 512, 512),
        ] {
            let file = File::options().write(true).open(&target.path).unwrap();
            file.set_len(0).unwrap();
            file.set_len(DEVICE_BYTES).unwrap();
            file.write_all_at(&payload(1, len), at).unwrap();
            let before = target.image();
            let context = open(&target.config(Drive::Inline));
            assert_eq!(
                begin(&context, 0, blocks, Existing::Continue),
                Err(libc::EEXIST),
                "{at}"
            );
            assert!(target.image() == before, "as it was");
            // Another range is empty, and may have one.
            if at == 0 {
                begin(&context, 4096, 4096, Existing::Continue).unwrap();
                begin(&context, 4096, 4096, Existing::Continue).unwrap();
            }
            begin(&context, 0, 4096, Existing::Replace).unwrap();
            // Now it is a log, with other data after its records.
            begin(&context, 0, 4096, Existing::Continue).unwrap();
        }
        let file = File::options().write(true).open(&target.path).unwrap();
        file.write_all_at(&payload(1, 8192), 0).unwrap();
        let mut insisting = target.config(Drive::Inline);
        insisting.device.force = true;
        let context = open(&insisting);
        begin(&context, 0, blocks, Existing::Continue).unwrap();
    }
}
