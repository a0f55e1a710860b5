//! Flushes, and writes that go to the spill.

use super::*;

fn unsynced(rig: &Rig) -> (bool, u32) {
    rig.engine.targets[0]
        .spill
        .as_ref()
        .unwrap()
        .spill
        .unsynced()
}

#[test]
fn a_flush_that_fails_says_so_and_the_next_one_is_its_own() {
    let mut rig = Rig::new("flush", Retry::default());
    rig.write(0..1);
    rig.take(1);
    rig.fail(opcode::FLUSH, -libc::EIO);
    let done = rig.flush();
    assert_eq!(
        (done.status as u16, done.result),
        (status::WRITE_FAULT, -libc::EIO)
    );
    assert_eq!(rig.flush().status, 0);
}

#[test]
fn what_the_device_fails_is_in_the_spill_and_a_flush_covers_it() {
    let path = format!("/dev/shm/unified-engine-spill-{}", std::process::id());
    let once = Retry {
        limit: 0,
        ..Retry::default()
    };
    let mut rig = Rig::with_spill("spilling", once, |device| {
        Some(Spill::open(&path, device, false).unwrap())
    });
    let device = Device::open(&DeviceConfig {
        path: "null:4096".into(),
        ..DeviceConfig::default()
    })
    .unwrap();
    assert_eq!(
        Spill::open(&path, &device, false).unwrap_err().errno(),
        libc::EBUSY
    );
    // The run fails, and then the first and third of its entries.
    rig.fail(opcode::WRITE, -libc::EIO);
    rig.fail(opcode::WRITE, -libc::EIO);
    rig.fail(opcode::WRITE, BLOCK as i32);
    rig.fail(opcode::WRITE, -libc::ENOSPC);
    rig.write(0..4);
    let done = rig.take(4);
    let flags: Vec<_> = done
        .iter()
        .map(|cqe| (cqe.user_data, cqe.status, cqe.len, cqe.flags))
        .collect();
    let spilled = |i| (i, 0, BLOCK, CQE_SPILLED);
    let written = |i| (i, 0, BLOCK, 0);
    assert_eq!(flags, [spilled(0), written(1), spilled(2), written(3)]);
    let stats = &rig.shared.stats;
    assert_eq!(
        (
            stats.devices[0].spilled.get(),
            stats.devices[0].spilled_bytes.get()
        ),
        (2, 1024)
    );
    assert_eq!(
        (stats.errors.get(), stats.devices[0].bytes_written.get()),
        (0, 1024)
    );
    let there = std::fs::read(&path).unwrap();
    assert_eq!(there.len() as u64, BLOCKS * u64::from(BLOCK));
    for (i, block) in there.chunks(BLOCK as usize).enumerate() {
        let expected = if i == 0 || i == 2 { i as u8 + 1 } else { 0 };
        assert!(block.iter().all(|b| *b == expected), "block {i}");
    }
    assert_eq!(unsynced(&rig), (true, 0));
    assert_eq!(rig.flush().status, 0);
    assert_eq!(unsynced(&rig), (false, 0));
    // A flush that fails on the device has failed; nothing of the caller's own fault is spilled.
    rig.fail(opcode::FLUSH, -libc::EIO);
    assert_ne!(rig.flush().status, 0);
    let beyond = command::transfer(opcode::WRITE, BLOCKS, 1, 0, BLOCK, false);
    assert!(rig.sq.push(beyond).unwrap());
    let _ = rig.sq.publish();
    assert_eq!(rig.take(1)[0].status as u16, status::LBA_OUT_OF_RANGE);
    assert_eq!(rig.shared.stats.devices[0].spilled.get(), 2);
    std::fs::remove_file(&path).unwrap();
}

#[test]
fn a_flush_waits_for_the_spill_also_where_another_one_syncs_it() {
    let path = format!(
        "/dev/shm/unified-engine-twice-spilled-{}",
        std::process::id()
    );
    let once = Retry {
        limit: 0,
        ..Retry::default()
    };
    let mut rig = Rig::with_spill("twice", once, |device| {
        Some(Spill::open(&path, device, false).unwrap())
    });
    rig.fail(opcode::WRITE, -libc::EIO);
    rig.write(0..1);
    assert_eq!(rig.take(1)[0].flags, CQE_SPILLED);
    for _ in 0..2 {
        rig.push(command::flush());
    }
    let _ = rig.sq.publish();
    rig.engine.pump(false).unwrap();
    // Both have been through the device when the engine looks.
    let until = Instant::now() + Duration::from_secs(20);
    rig.engine
        .ring
        .submit(2, Some(Duration::from_secs(20)))
        .unwrap();
    assert!(Instant::now() < until);
    rig.engine.pump(false).unwrap();
    assert!(rig.cq.pop().unwrap().is_none(), "not synced yet");
    assert_eq!(unsynced(&rig), (false, 2));
    assert!(rig.take(2).iter().all(|done| done.status == 0));
    assert_eq!(unsynced(&rig), (false, 0));
    std::fs::remove_file(&path).unwrap();
}

/// The device fails the write and the spill has no room: the entry gets the device's truth.
#[test]
fn a_spill_that_fails_too_leaves_the_devices_error() {
    let once = Retry {
        limit: 0,
        ..Retry::default()
    };
    // Always full, and as long as one likes.
    let mut rig = Rig::with_spill("spill-full", once, |_| {
        let full = std::fs::OpenOptions::new().write(true).open("/dev/full");
        Some(Spill::to(full.unwrap(), "/dev/full"))
    });
    rig.fail(opcode::WRITE, -libc::EIO);
    rig.write(0..1);
    let done = rig.take(1)[0];
    assert_eq!(
        (done.status as u16, done.result),
        (status::WRITE_FAULT, -libc::EIO)
    );
    assert_eq!(done.flags & CQE_SPILLED, 0);
    let stats = &rig.shared.stats;
    assert_eq!((stats.devices[0].spilled.get(), stats.errors.get()), (0, 1));
}
