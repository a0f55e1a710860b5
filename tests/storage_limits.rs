//! What a device takes: its limits as a context shows them, and the copies that they cost.

mod common;
mod store;

use common::payload;
use store::{
    DEVICE_BYTES, DRIVES, LoopDevice, Rig, Target, can_loop, each, storage_config, succeeded,
};

/// The limits that a context shows are those of the device.
#[test]
fn limits_are_those_of_sysfs() {
    if !can_loop("limits_are_those_of_sysfs") {
        return;
    }
    for sector in [512, 4096] {
        let device = LoopDevice::new(DEVICE_BYTES, sector);
        let rig = Rig::open(&storage_config(&device.node, DRIVES[0]));
        let limits = rig.context.info().devices[0].limits;
        let said = |name| device.queue(name).parse::<u64>().unwrap();
        assert_eq!(u64::from(limits.block_size), said("logical_block_size"));
        assert_eq!(limits.block_size, sector);
        assert_eq!(limits.blocks * u64::from(sector), DEVICE_BYTES);
        assert_eq!(
            u64::from(limits.max_transfer),
            said("max_hw_sectors_kb") * 1024
        );
        assert_eq!(u64::from(limits.max_segments), said("max_segments"));
        assert_eq!(limits.virt_boundary, said("virt_boundary_mask"));
        assert_eq!(u64::from(limits.dma_alignment), said("dma_alignment"));
        let cached = device.queue("write_cache") == "write back";
        assert_eq!(limits.volatile_cache, Some(cached));
        assert!(limits.direct);
    }
}

/// What the device cannot take in place is copied, and every copy is counted.
#[test]
fn bounces_are_counted_one_by_one() {
    if !can_loop("bounces_are_counted_one_by_one") {
        return;
    }
    for (sector, places) in [
        // Place in the frame, length, bounced or not.
        (
            512,
            [
                (512, 1024, false),
                (512, 1472, false),
                (516, 1024, true),
                (300, 1, true),
                (3584, 512, false),
                (3600, 100, true),
            ],
        ),
        (
            4096,
            [
                (0, 4096, false),
                (0, 1, false),
                (512, 1472, true),
                (512, 3584, true),
                (514, 1, true),
                (4095, 1, true),
            ],
        ),
    ] {
        let target = Target::loop_device(sector);
        for drive in DRIVES {
            let rig = target.open(drive);
            let (mut bounced, mut bytes) = (0, 0);
            for (i, (at, len, expected)) in places.into_iter().enumerate() {
                let data = payload(i as u32, len);
                let lba = i as u64 * 8;
                let done = rig.write(lba, at, &data);
                succeeded(&done);
                assert_eq!(done.bounced, expected, "{len} bytes at {at}");
                let padded = len.next_multiple_of(sector as usize);
                bounced += u64::from(expected);
                bytes += if expected { padded as u64 } else { 0 };
                let from = lba as usize * sector as usize;
                let image = target.image();
                assert!(image[from..from + len] == data[..]);
                assert!(image[from + len..from + padded].iter().all(|b| *b == 0));
            }
            let stats = rig.context.statistics().unwrap();
            assert_eq!((stats.bounced, stats.bounced_bytes), (bounced, bytes));
        }
    }
}

/// Without the bounce pool the device gets the data as it is: what it refuses shows as its error, what it
/// takes is stored right, and nothing is ever copied.
#[test]
fn without_bouncing_the_device_decides() {
    each(Target::plain(), without_bouncing);
    if can_loop("without_bouncing_the_device_decides on loop devices") {
        each(Target::loops(), without_bouncing);
    }
}

fn without_bouncing(target: &Target, rig: Rig) {
    let mut config = target.config(rig.context.info().drive);
    drop(rig);
    config.bounce = false;
    let rig = Rig::open(&config);
    let block = rig.block();
    let old = rig.prefill(64 << 10);
    for at in [0, 2, 4, 300, 511, 512, 516] {
        let frame = rig.stale_frame();
        let len = rig.frame_size().min(block);
        if at + len > rig.frame_size() {
            // The padded end is beyond the frame, where other packets' bytes are: the one copy that is
            // always made.
            let bytes = payload(at as u32, len - at);
            let done = rig.write(0, at, &bytes);
            succeeded(&done);
            assert!(done.bounced);
            if target.stores() {
                let image = target.image();
                assert!(image[..bytes.len()] == bytes[..]);
                assert!(image[bytes.len()..block].iter().all(|b| *b == 0));
            }
            rig.context.frame_release(frame).unwrap();
            continue;
        }
        let bytes = payload(at as u32, len);
        rig.fill(frame, at, &bytes);
        rig.context
            .submit_write(&rig.transfer(frame, at, len, 8))
            .unwrap();
        let done = rig.one();
        assert!(!done.bounced, "{done:?}");
        if at % 512 == 0 {
            succeeded(&done);
        }
        if !target.stores() {
            continue;
        }
        let stored = &target.image()[8 * block..9 * block];
        if done.status == 0 {
            assert!(stored == bytes, "at {at}");
        } else {
            assert_eq!(
                (done.result, done.status),
                (-libc::EINVAL, 0x002),
                "at {at}"
            );
            assert!(stored == &old[..block], "at {at}");
        }
        succeeded(&rig.write(8, 0, &old[..len]));
    }
    let stats = rig.context.statistics().unwrap();
    let copied = if block == rig.frame_size() { 6 } else { 0 };
    assert_eq!(stats.bounced, copied, "{stats:#?}");
}
