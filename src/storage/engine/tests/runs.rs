//! Runs: what joins them, and what a failed or short one becomes.

use super::*;

#[test]
fn scattered_entries_wait_for_no_neighbour_and_no_long_batch() {
    let mut rig = Rig::new("scattered", Retry::default());
    let turn = |rig: &mut Rig, blocks: &mut dyn Iterator<Item = u64>| {
        blocks.for_each(|block| rig.write(block..block + 1));
        rig.engine.pump(false).unwrap();
    };
    // At first nobody knows: the last one waits, and all others for the end of the turn.
    turn(&mut rig, &mut (0..8).map(|i| i * 2));
    assert!(rig.engine.targets[0].run.is_some());
    assert_eq!(rig.engine.ring.queued(), 7);
    turn(&mut rig, &mut (8..24).map(|i| i * 2));
    assert!(rig.engine.targets[0].run.is_none());
    assert_eq!(rig.engine.operating(), 24);
    assert_eq!(rig.shared.stats.devices[0].snapshot().in_flight, 24);
    assert!((1..=FEED).contains(&rig.engine.ring.queued()));
    assert_eq!(rig.take(24).len(), 24);
    // Once the device has enough, the rest goes as one batch.
    turn(&mut rig, &mut (0..48).map(|i| (i * 7) % 64));
    assert_eq!(rig.engine.operating(), 48);
    let batch = rig.engine.ring.queued();
    assert!((FEED + 1..=48 - FED).contains(&batch), "{batch}");
    assert_eq!(rig.take(48).len(), 48);
    // Neighbours again.
    turn(&mut rig, &mut (50..56));
    assert!(
        rig.engine.targets[0].run.is_none(),
        "the device had nothing to do"
    );
    turn(&mut rig, &mut (56..64));
    assert!(
        rig.engine.targets[0].run.is_some(),
        "it grows while the device is busy"
    );
    assert_eq!(rig.take(14).len(), 14);
    assert!((50..64).all(|block| rig.stored(block)));
}

#[test]
fn a_short_write_goes_on_where_it_stopped_also_in_a_run() {
    for count in [1, 16] {
        let mut rig = Rig::new("short", Retry::default());
        rig.write(0..count);
        // Not even whole blocks.
        rig.fail(opcode::WRITE, 100);
        rig.fail(opcode::WRITE, 1);
        rig.fail(opcode::WRITE, -libc::EINTR);
        for (i, done) in rig.take(count as usize).iter().enumerate() {
            assert_eq!(
                (done.user_data, done.status, done.len),
                (i as u64, 0, BLOCK)
            );
            assert!(rig.stored(i as u64));
        }
    }
}

#[test]
fn a_write_of_nothing_is_an_error_and_no_loop() {
    let mut rig = Rig::new("nothing", Retry::default());
    rig.write(0..1);
    rig.fail(opcode::WRITE, 0);
    let done = rig.take(1)[0];
    assert_eq!(
        (done.status as u16, done.result),
        (status::WRITE_FAULT, -libc::EIO)
    );
}

#[test]
fn a_run_that_fails_is_tried_again_each_entry_by_itself() {
    let mut rig = Rig::new("run", Retry::default());
    rig.write(0..8);
    // The run; then the first three of its entries.
    for _ in 0..4 {
        rig.fail(opcode::WRITE, -libc::EDQUOT);
    }
    let done = rig.take(8);
    assert_eq!(
        (done[0].status as u16, done[0].result),
        (status::CAPACITY_EXCEEDED, -libc::EDQUOT)
    );
    let failed: Vec<u64> = done
        .iter()
        .filter(|d| d.status != 0)
        .map(|d| d.user_data)
        .collect();
    assert_eq!(failed, [0, 1, 2]);
    for done in &done[3..] {
        assert!(rig.stored(done.user_data));
    }
}
