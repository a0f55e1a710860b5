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
