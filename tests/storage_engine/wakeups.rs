//! Sleeping engines: they cost nothing, and no wakeup is lost.

use super::*;

#[test]
fn an_idle_engine_costs_nothing() {
    let _alone = alone();
    for target in [Target::null(), Target::disk()] {
        let rig = target.open(Drive::Thread);
        assert_idle(&rig.context, "before the first command");
        for lba in 0..100 {
            succeeded(&rig.write(lba, 0, &[3; 512]));
        }
        assert_idle(&rig.context, "after a hundred");
    }
}

/// Pauses of 0 to 60 us, at random, often none: to meet the other side in every state between awake
/// and asleep.
struct Pauses(u64);

impl Pauses {
    fn next(&mut self) {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        match self.0 % 8 {
            0 => std::thread::sleep(Duration::from_micros(self.0 >> 8 & 63)),
            1..4 => {
                let until = Instant::now() + Duration::from_nanos(self.0 >> 8 & 0x3fff);
                while Instant::now() < until {
                    std::hint::spin_loop();
                }
            }
            _ => {}
        }
    }
}

/// One command at a time, so that either side falls asleep between any two.
#[test]
fn no_wakeup_is_lost_in_a_ping_pong() {
    let _alone = alone();
    let memory = Target::memory();
    for (path, count) in [("null:".to_string(), 20_000), (memory.path.clone(), 4_000)] {
        within(Duration::from_secs(90), move || {
            let rig = Rig::open(&storage_config(&path, Drive::Thread));
            let frame = rig.stale_frame();
            let mut pauses = Pauses(0x1234_5678_9abc_def1);
            for i in 0..count {
                let transfer = Transfer {
                    keep: true,
                    ..rig.transfer(frame, 0, 512, i % 1000)
                };
                rig.context.submit_write(&transfer).unwrap();
                let done = rig.one();
                assert_eq!((done.user_data, done.status), (transfer.user_data, 0));
                pauses.next();
            }
            rig.context.frame_release(frame).unwrap();
            let stats = rig.context.statistics().unwrap();
            assert_eq!((stats.submitted, stats.completed), (count, count));
            assert!(stats.sleeps > 0, "the engine did sleep: {stats:#?}");
        });
    }
}

/// A submitting and a taking thread, each pausing on its own, over rings that are often full and often
/// empty.
#[test]
fn no_wakeup_is_lost_between_two_threads() {
    const COUNT: u64 = 20_000;
    let _alone = alone();
    within(Duration::from_secs(90), || {
        let context = Context::open(&small_config("null:", Drive::Thread)).unwrap();
        let mut seen = vec![0u8; COUNT as usize];
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let mut pauses = Pauses(77);
                for user_data in 0..COUNT {
                    let frame = loop {
                        match context.frame_alloc() {
                            Ok(frame) => break frame,
                            Err(error) => assert_eq!(error.errno(), libc::ENOBUFS, "{error}"),
                        }
                        std::thread::yield_now();
                    };
                    let transfer = Transfer {
                        frame,
                        offset: u64::from(frame) * 2048,
                        len: 2048,
                        user_data,
                        ..Transfer::default()
                    };
                    while let Err(error) = context.submit_write(&transfer) {
                        assert_eq!(error.errno(), libc::EAGAIN, "{error}");
                        std::thread::yield_now();
                    }
                    pauses.next();
                }
            });
            let mut pauses = Pauses(99);
            let mut taken = 0;
            let mut done = [Completion::default(); 5];
            let until = Instant::now() + Duration::from_secs(80);
            while taken < COUNT {
                assert!(Instant::now() < until, "{:#?}", context.statistics());
                let (start, longest) = (Instant::now(), Duration::from_secs(10));
                let ready = context.wait(Ready::COMPLETIONS, Some(longest)).unwrap();
                assert!(
                    ready != Ready::NONE && start.elapsed() < longest,
                    "slept for {longest:?}: {:#?}",
                    context.statistics()
                );
                let count = context.completions(&mut done).unwrap();
                for done in &done[..count] {
                    succeeded(done);
                    seen[done.user_data as usize] += 1;
                }
                taken += count as u64;
                pauses.next();
            }
        });
        assert!(seen.iter().all(|n| *n == 1), "each exactly once");
        let stats = context.statistics().unwrap();
        assert_eq!((stats.submitted, stats.completed), (COUNT, COUNT));
        assert_eq!((stats.frames.free, stats.frames.in_flight), (64, 0));
    });
}
