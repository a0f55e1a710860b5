//! Which errors are tried again, how often and when.

use super::*;

#[test]
fn by_default_a_transient_error_is_tried_eight_times_at_once() {
    for (faults, status) in [(8, 0), (9, status::INTERNAL)] {
        let mut rig = Rig::new("eight", Retry::default());
        (0..faults).for_each(|_| rig.fail(opcode::WRITE, -libc::EAGAIN));
        rig.write(0..1);
        assert_eq!(rig.take(1)[0].status as u16, status, "{faults}");
    }
    let mut rig = Rig::new("nomem", Retry::default());
    rig.fail(opcode::WRITE, -libc::ENOMEM);
    rig.write(0..1);
    assert_eq!(rig.take(1)[0].result, -libc::ENOMEM);
}

#[test]
fn with_a_backoff_it_waits_longer_each_time_and_others_go_on() {
    let mut rig = Rig::new(
        "backoff",
        Retry {
            limit: 3,
            backoff_us: 20_000,
            give_up_ms: 0,
        },
    );
    for error in [libc::ENOMEM, libc::EBUSY, libc::EAGAIN] {
        rig.fail(opcode::WRITE, -error);
    }
    let start = Instant::now();
    rig.write(0..1);
    // A flush passes meanwhile.
    let mut first = rig.flush();
    assert_eq!(first.status, 0);
    assert!(
        start.elapsed() < Duration::from_millis(140),
        "{:?}",
        start.elapsed()
    );
    first = rig.take(1)[0];
    assert_eq!((first.status, first.len), (0, BLOCK));
    assert!(
        start.elapsed() >= Duration::from_millis(20 + 40 + 80),
        "{:?}",
        start.elapsed()
    );
    assert_eq!(rig.shared.stats.devices[0].operations.get(), 5);
    // The flush was quick, and the write took as long as its pauses.
    let latency = rig.shared.stats.latency.snapshot();
    assert_eq!(latency.count(), 2);
    assert!(latency.quantile(0.5) < 140_000_000, "{latency:?}");
    let passed = start.elapsed().as_nanos() as u64;
    assert!((140_000_000..=passed).contains(&latency.max), "{latency:?}");
}

#[test]
fn it_gives_up_when_the_time_is_over() {
    let mut rig = Rig::new(
        "giveup",
        Retry {
            limit: 255,
            backoff_us: 10_000,
            give_up_ms: 100,
        },
    );
    (0..5).for_each(|_| rig.fail(opcode::WRITE, -libc::EBUSY));
    let start = Instant::now();
    rig.write(0..1);
    assert_eq!(rig.take(1)[0].result, -libc::EBUSY);
    // 10 + 20 + 40 + 80 ms: then the 100 are over.
    assert!(
        (150..5000).contains(&start.elapsed().as_millis()),
        "{:?}",
        start.elapsed()
    );
}

#[test]
fn without_retries_the_first_error_counts_and_draining_does_not_retry() {
    let mut rig = Rig::new(
        "none",
        Retry {
            limit: 0,
            ..Retry::default()
        },
    );
    rig.fail(opcode::WRITE, -libc::EAGAIN);
    rig.write(0..1);
    assert_eq!(rig.take(1)[0].result, -libc::EAGAIN);
    drop(rig);
    let mut rig = Rig::new(
        "drain",
        Retry {
            limit: 255,
            backoff_us: 300_000,
            give_up_ms: 0,
        },
    );
    (0..2).for_each(|_| rig.fail(opcode::WRITE, -libc::EBUSY));
    rig.write(0..1);
    rig.engine.pump(true).unwrap();
    let start = Instant::now();
    rig.engine.drain().unwrap();
    assert!(start.elapsed() < Duration::from_secs(3));
    rig.faults.lock().clear();
}
