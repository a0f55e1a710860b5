//! Flushes of all devices.

use super::*;
use crate::storage::command::entry_flags;

fn rig(name: &str) -> Rig {
    let once = Retry {
        limit: 0,
        ..Retry::default()
    };
    Rig::with_others(name, once, |_| None, 3)
}

fn flush_all(number: u64) -> UnifiedSqe {
    UnifiedSqe {
        user_data: number,
        flags: entry_flags::ALL_DEVICES,
        ..command::flush()
    }
}

fn device_of(cqe: &UnifiedCqe) -> u32 {
    cqe.flags >> CQE_DEVICE_SHIFT & 0xff
}

#[test]
fn a_flush_of_all_devices_has_one_completion() {
    let mut rig = rig("group");
    rig.push(flush_all(5));
    let _ = rig.sq.publish();
    let done = rig.take(1)[0];
    assert_eq!((done.user_data, done.status, done.result), (5, 0, 0));
    let stats = &rig.shared.stats;
    assert_eq!((stats.submitted.get(), stats.completed.get()), (1, 1));
    assert_eq!(rig.engine.slab.spare(), group::spare_slots(4));
}

#[test]
fn the_worst_status_is_that_of_the_flush() {
    let mut rig = rig("worst");
    // The other devices flush well before and after it.
    rig.fail(opcode::FLUSH, -libc::EIO);
    rig.push(flush_all(7));
    let _ = rig.sq.publish();
    let done = rig.take(1)[0];
    assert_eq!(
        (
            done.user_data,
            done.status as u16,
            done.result,
            device_of(&done)
        ),
        (7, status::WRITE_FAULT, -libc::EIO, 0)
    );
    assert_eq!(rig.shared.stats.devices[0].errors.get(), 1);
    // That of one device is its own.
    for device in 1..4 {
        rig.push(UnifiedSqe {
            user_data: 1,
            flags: device << entry_flags::DEVICE_SHIFT,
            ..command::flush()
        });
        let _ = rig.sq.publish();
        let done = rig.take(1)[0];
        assert_eq!((done.status, device_of(&done)), (0, device));
    }
}

/// More than can be in flight at once: the others wait, and so does what comes after them.
#[test]
fn many_flushes_of_all_devices_wait_for_one_another() {
    let mut rig = rig("many");
    rig.write(0..4);
    for number in 10..DEPTH as u64 {
        rig.push(flush_all(number));
    }
    let _ = rig.sq.publish();
    let done = rig.take(DEPTH as usize - 6);
    assert!(done.iter().all(|cqe| cqe.status == 0));
    let numbers: Vec<u64> = done.iter().map(|cqe| cqe.user_data).collect();
    let expected: Vec<u64> = (0..4).chain(10..DEPTH as u64).collect();
    assert_eq!(numbers, expected);
    assert_eq!(rig.engine.slab.spare(), group::spare_slots(4));
    assert!(rig.stored(3));
}
