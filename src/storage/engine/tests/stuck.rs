//! One of several devices does not answer.

use super::*;
use crate::storage::command::entry_flags;
use crate::storage::engine::stuck::Silence;

fn rig(name: &str) -> Rig {
    Rig::with_others(name, Retry::default(), |_| None, 1)
}

fn write_to(rig: &mut Rig, device: u32, number: u64) {
    let mut sqe = command::transfer(opcode::WRITE, number, 1, number * 512, BLOCK, false);
    sqe.user_data = number;
    sqe.flags = device << entry_flags::DEVICE_SHIFT;
    rig.push(sqe);
}

/// More entries for one device than it may have: the rest waits aside, and what follows goes to the other one. All are carried
/// out, also while the engine ends.
#[test]
fn entries_for_one_device_do_not_keep_those_for_another_waiting() {
    for drains in [false, true] {
        let mut rig = rig("aside");
        for number in 0..60 {
            write_to(&mut rig, u32::from(number >= 58), number);
        }
        let _ = rig.sq.publish();
        rig.engine.pump(true).unwrap();
        assert_eq!(rig.shared.stats.submitted.get(), 60, "all are taken");
        let first = &rig.engine.targets[0];
        assert_eq!(first.slots + first.waiting.len() + completed(&rig, 0), 58);
        assert!(first.slots <= DEPTH as usize / 2);
        if drains {
            rig.engine.drain().unwrap();
        }
        let done = rig.take(60);
        assert!(done.iter().all(|cqe| cqe.status == 0));
        assert!((0..58).all(|number| done[number as usize].user_data == number));
        assert_eq!(rig.engine.targets[0].slots, 0);
    }
}

fn completed(rig: &Rig, device: usize) -> usize {
    (rig.shared.stats.devices[device].bytes_written.get() / u64::from(BLOCK)) as usize
}

/// A device that is out gets no write that can go elsewhere, and other commands as before.
#[test]
fn a_device_that_is_out_gets_nothing_that_can_go_elsewhere() {
    let mut rig = rig("out");
    rig.shared.set_out(0, true);
    write_to(&mut rig, 0, 1);
    let mut elsewhere = command::transfer(opcode::WRITE, 2, 1, 1024, BLOCK, false);
    elsewhere.user_data = 2;
    elsewhere.flags = entry_flags::PARTS;
    rig.push(elsewhere);
    let _ = rig.sq.publish();
    let done = rig.take(2);
    assert_eq!(
        (done[0].status, done[1].status as u16),
        (0, status::HOST_PATH_ERROR)
    );
    rig.shared.set_out(0, false);
    rig.push(elsewhere);
    let _ = rig.sq.publish();
    assert_eq!(rig.take(1)[0].status, 0);
}

/// Nothing is stuck that was begun since the last look.
#[test]
fn what_is_answered_is_not_stuck() {
    let mut rig = rig("answered");
    for number in 0..20 {
        write_to(&mut rig, 0, number);
        let _ = rig.sq.publish();
        rig.shared.look_for_stuck();
        rig.take(1);
    }
    rig.shared.look_for_stuck();
    rig.engine.pump(true).unwrap();
    assert_eq!(rig.shared.take_stuck(), []);
}

/// A device that is slow by habit has not failed; one that never was is silent after one look.
#[test]
fn a_silence_is_measured_by_those_before() {
    let mut fast = Silence::default();
    let mut slow = Silence::default();
    for answers in 1..=8 {
        fast.look(answers, true);
        slow.look(answers, true);
        assert!(!fast.is_unusual() && !slow.is_unusual());
        // Two looks without an answer. At first that is unusual.
        slow.look(answers, true);
        assert_eq!(slow.is_unusual(), answers == 1);
        slow.look(answers, true);
        assert_eq!(slow.is_unusual(), answers == 1);
    }
    fast.look(8, true);
    assert!(fast.is_unusual());
    // Nothing was asked of it.
    fast.look(8, false);
    assert!(!fast.is_unusual());
    for _ in 0..4 {
        slow.look(8, true);
    }
    assert!(!slow.is_unusual());
    slow.look(8, true);
    assert!(slow.is_unusual(), "no device is that slow");
    // What is fast for long is a fast device again.
    (9..60).for_each(|answers| slow.look(answers, true));
    slow.look(59, true);
    assert!(slow.is_unusual());
}

/// A flush of all devices does not wait for one that does not answer, unless there is no other one. What is not submitted is not
/// answered.
#[test]
fn a_flush_waits_only_for_the_last_device() {
    for out in [false, true] {
        let mut rig = rig("last");
        rig.shared.set_out(1, out);
        let mut sqe = command::flush();
        sqe.flags = entry_flags::ALL_DEVICES;
        rig.push(sqe);
        let _ = rig.sq.publish();
        for _ in 0..3 {
            rig.engine.pump(false).unwrap();
            rig.shared.look_for_stuck();
        }
        rig.engine.pump(false).unwrap();
        assert_eq!(rig.engine.groups[0].is_some(), out);
        let done = rig.take(1);
        let expected = if out { 0 } else { status::HOST_PATH_ERROR };
        assert_eq!(done[0].status as u16, expected);
        while rig.engine.in_flight() > 0 {
            rig.engine.pump(true).unwrap();
        }
    }
}

/// What is stuck is reported again until it is answered: nobody may have been able to help when it was found.
#[test]
fn what_is_stuck_is_reported_until_it_is_answered() {
    let mut rig = rig("again");
    write_to(&mut rig, 0, 7);
    let _ = rig.sq.publish();
    rig.engine.pump(false).unwrap();
    for look in 0..4 {
        rig.shared.look_for_stuck();
        rig.engine.pump(false).unwrap();
        let found: Vec<_> = rig
            .shared
            .take_stuck()
            .iter()
            .map(|stuck| (stuck.user_data, stuck.device, stuck.lba))
            .collect();
        let expected = if look == 0 { vec![] } else { vec![(7, 0, 7)] };
        assert_eq!(found, expected, "look {look}");
    }
    assert_eq!(rig.take(1)[0].status, 0);
}

/// A device that answers its writes but not its flushes: they do not fill the engine.
#[test]
fn flushes_without_an_answer_do_not_pile_up() {
    let mut rig = rig("flushes");
    let flush = |rig: &mut Rig| {
        let mut sqe = command::flush();
        sqe.flags = entry_flags::ALL_DEVICES;
        rig.push(sqe);
        let _ = rig.sq.publish();
        rig.engine.pump(false).unwrap();
    };
    let answer = |rig: &mut Rig| {
        let done = rig.cq.pop().unwrap().expect("it has ended");
        rig.cq.release();
        (
            done.status as u16,
            done.flags >> CQE_DEVICE_SHIFT & u32::from(u8::MAX),
        )
    };
    flush(&mut rig);
    assert!(rig.cq.pop().unwrap().is_none(), "device 0 has it");
    for _ in 0..2 {
        rig.shared.look_for_stuck();
        rig.engine.pump(false).unwrap();
    }
    assert_eq!(answer(&mut rig), (status::HOST_PATH_ERROR, 0));
    for _ in 0..100 {
        flush(&mut rig);
        assert_eq!(answer(&mut rig), (status::HOST_PATH_ERROR, 0));
        assert_eq!(rig.engine.in_flight(), 1);
    }
    while rig.engine.in_flight() > 0 {
        rig.engine.pump(true).unwrap();
    }
    flush(&mut rig);
    assert_eq!(rig.take(1)[0].status, 0, "it answers");
}

/// A run for a device that is taken out fails only if all of it can go elsewhere.
#[test]
fn what_cannot_go_elsewhere_is_tried_though_its_neighbours_could() {
    for last in [0, entry_flags::PARTS] {
        let mut rig = rig("neighbours");
        // Something keeps the device busy, so that a run grows.
        write_to(&mut rig, 0, 40);
        let _ = rig.sq.publish();
        rig.engine.pump(false).unwrap();
        for number in 0..3 {
            let mut sqe = command::transfer(opcode::WRITE, number, 1, number * 512, BLOCK, false);
            sqe.user_data = number;
            sqe.flags = if number == 2 {
                last
            } else {
                entry_flags::PARTS
            };
            rig.push(sqe);
        }
        let _ = rig.sq.publish();
        rig.engine.pump(false).unwrap();
        assert!(rig.engine.targets[0].run.is_some());
        rig.shared.set_out(0, true);
        let done = rig.take(4);
        let expected = match last {
            0 => [0; 3],
            _ => [status::HOST_PATH_ERROR; 3],
        };
        let found = [0, 1, 2].map(|place| done[place].status as u16);
        assert_eq!(found, expected);
    }
}
