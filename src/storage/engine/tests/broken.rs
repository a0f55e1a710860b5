//! Rings that something outside has overwritten.

use super::*;

/// The consumer index of the CQ goes mad while entries wait for one another: no slot is left behind, so
/// nothing waits for it for ever, and what was taken is finished or given up.
#[test]
fn a_broken_ring_frees_every_slot() {
    for bad in [100u32, 1 << 31] {
        for drains in [true, false] {
            let mut rig = Rig::new("broken", Retry::default());
            rig.write(0..32);
            while rig.shared.stats.completed.get() < 32 {
                rig.engine.pump(true).unwrap();
            }
            rig.region.rings[0]
                .cq
                .consumer()
                .store(bad, Ordering::Relaxed);
            rig.write(0..40);
            let error = rig.engine.pump(true).unwrap_err();
            assert_eq!(error.errno(), libc::EBADMSG, "{error}");
            assert_eq!(rig.shared.failure(), Some(libc::EBADMSG));
            let taken = rig.shared.stats.submitted.get();
            assert_eq!((taken, rig.engine.in_flight()), (64, 32), "a slot for each");
            let start = Instant::now();
            if drains {
                rig.engine.drain().unwrap();
            } else {
                rig.engine.abandon().unwrap();
                rig.shared.stats.completed.add(32);
            }
            assert!(start.elapsed() < Duration::from_secs(5));
        }
    }
}
/// It goes backwards: slots that were reserved are gone. What still fits is told, the rest is let go.
#[test]
fn a_consumer_that_goes_back_is_noticed_and_frees_every_slot() {
    let mut rig = Rig::new("back", Retry::default());
    rig.write(0..32);
    while rig.shared.stats.completed.get() < 32 {
        rig.engine.pump(true).unwrap();
    }
    rig.region.rings[0]
        .cq
        .consumer()
        .store(-21i32 as u32, Ordering::Relaxed);
    rig.write(0..40);
    let start = Instant::now();
    let error = loop {
        assert!(start.elapsed() < Duration::from_secs(5));
        if let Err(error) = rig.engine.pump(true) {
            break error;
        }
    };
    assert_eq!(error.errno(), libc::EBADMSG, "{error}");
    assert_eq!(rig.engine.in_flight(), 0);
    let stats = &rig.shared.stats;
    assert_eq!(
        (stats.submitted.get(), stats.completed.get()),
        (64, 32 + 11)
    );
    stats.completed.add(21);
    let _ = rig.engine.drain();
    assert!(start.elapsed() < Duration::from_secs(5));
}
