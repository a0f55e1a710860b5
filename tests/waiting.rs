//! Nobody sleeps for ever, and nobody is woken for nothing: the end of a context against its waiters at every moment,
//! the roles of those who sleep, and the wakeups of an event loop.
#![deny(unsafe_code)]

mod common;

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Barrier, mpsc};
use std::time::{Duration, Instant};

use common::{Veth, check_sums, is_root, payload};
use unified::config::{Config, Drive};
use unified::context::Context;
use unified::lane::{Completion, Ready, Transfer};
use unified::net::rx::Received;
use unified::storage::engine::EngineShared;
use unified::sys::event::poll_readable;

const DRIVES: [Drive; 2] = [Drive::Inline, Drive::Thread];

fn null_config(drive: Drive) -> Config {
    let mut config = Config {
        drive,
        frame_count: 64,
        ..Config::default()
    };
    config.device.path = "null:1048576".into();
    config
}

#[allow(unsafe_code)]
mod c {
    use std::ffi::c_int;

    use unified::capi::types::*;
    use unified::capi::*;

    #[derive(Clone, Copy)]
    pub struct Handle(*mut unified_ctx);
    // SAFETY: a handle may be used from any thread.
    unsafe impl Send for Handle {}
    // SAFETY: as above.
    unsafe impl Sync for Handle {}

    impl Handle {
        pub fn create(drive: u32) -> Handle {
            let mut ctx = std::ptr::null_mut();
            // SAFETY: zero is a value of every field; the string is static.
            let rc = unsafe {
                let mut config = std::mem::zeroed::<unified_config>();
                config.size = size_of::<unified_config>() as u64;
                config.device = c"null:1048576".as_ptr();
                config.frame_count = 64;
                config.sq_entries = 64;
                config.cq_entries = 64;
                config.drive = drive;
                unified_ctx_create(&config, &mut ctx)
            };
            assert_eq!(rc, 0);
            Handle(ctx)
        }

        pub fn destroy(self) -> c_int {
            // SAFETY: a handle.
            unsafe { unified_ctx_destroy(self.0) }
        }

        pub fn wait(self) -> c_int {
            // SAFETY: a handle.
            unsafe { unified_wait(self.0, UNIFIED_WAIT_COMPLETIONS, -1) }
        }

        pub fn poll_fd(self) -> c_int {
            // SAFETY: a handle.
            unsafe { unified_poll_fd(self.0) }
        }
    }
}

/// Runs something that must end, and fails if it does not.
fn bounded<T: Send + 'static>(what: &str, act: impl FnOnce() -> T + Send + 'static) -> T {
    let (tell, told) = mpsc::channel();
    std::thread::spawn(move || tell.send(act()));
    told.recv_timeout(Duration::from_secs(20))
        .unwrap_or_else(|e| panic!("{what}: {e}"))
}

/// A destroy at a random moment of a thread that goes in and out of a wait. One lost ring in some thousand was what
/// made it hang.
#[test]
fn a_destroy_at_any_moment_wakes_the_waiter() {
    for drive in [0, 1] {
        let rounds = bounded("destroying at a random moment", move || {
            let start = Instant::now();
            let mut rounds = 0u32;
            while start.elapsed() < Duration::from_millis(1500) && rounds < 4000 {
                let ctx = c::Handle::create(drive);
                let begin = Arc::new(Barrier::new(2));
                let waiter = std::thread::spawn({
                    let begin = begin.clone();
                    move || {
                        begin.wait();
                        loop {
                            let rc = ctx.wait();
                            if rc < 0 {
                                return rc;
                            }
                        }
                    }
                });
                begin.wait();
                // 0 to 31 us, in an order that does not repeat soon.
                let pause =
                    Duration::from_nanos(u64::from(rounds.wrapping_mul(2_654_435_761) >> 17));
                let from = Instant::now();
                while from.elapsed() < pause {
                    std::hint::spin_loop();
                }
                assert_eq!(ctx.destroy(), 0);
                let rc = waiter.join().unwrap();
                assert!(matches!(-rc, libc::ESHUTDOWN | libc::EBADF), "{rc}");
                rounds += 1;
            }
            rounds
        });
        assert!(rounds > 100, "{rounds} rounds");
    }
}

/// The end is a state: whoever clears what, and however many wait, all of them hear of it.
#[test]
fn a_close_and_a_failure_wake_every_waiter() {
    for drive in DRIVES {
        for (fails, errno) in [(false, libc::ESHUTDOWN), (true, libc::EIO)] {
            let context = Arc::new(Context::open(&null_config(drive)).unwrap());
            let fd = context.poll_fd().unwrap();
            let waiter = std::thread::spawn({
                let context = context.clone();
                move || context.wait(Ready::COMPLETIONS, None).unwrap_err().errno()
            });
            let looper = std::thread::spawn(move || {
                poll_readable(&[fd], Some(Duration::from_secs(10))).unwrap()
            });
            std::thread::sleep(Duration::from_millis(20));
            if fails {
                context.lanes()[0].engine_shared().end.fail(libc::EIO);
            } else {
                context.close();
            }
            assert!(bounded("the event loop", move || looper.join().unwrap()));
            assert_eq!(bounded("the waiter", move || waiter.join().unwrap()), errno);
            // And those who come later.
            assert_eq!(
                context.wait(Ready::COMPLETIONS, None).unwrap_err().errno(),
                errno
            );
            let none = &mut [Completion::default(); 4];
            assert_eq!(context.completions(none).unwrap_err().errno(), errno);
            assert!(poll_readable(&[fd], Some(Duration::ZERO)).unwrap());
        }
    }
    let shared: Arc<EngineShared> = EngineShared::new(0, 1).unwrap();
    shared.end.fail(libc::EIO);
    shared.end.fail(libc::ENODEV);
    assert_eq!(shared.failure(), Some(libc::EIO), "the first tells why");
    // Through C: the descriptor ends with the context, and its waiter is woken before.
    let ctx = c::Handle::create(0);
    let fd = ctx.poll_fd();
    let looper =
        std::thread::spawn(move || poll_readable(&[fd], Some(Duration::from_secs(10))).unwrap());
    std::thread::sleep(Duration::from_millis(20));
    assert_eq!(ctx.destroy(), 0);
    assert!(bounded("the event loop", move || looper.join().unwrap()));
}

/// Waits, as soon as the other thread's looks leave it the role.
fn sleep(context: &Context, what: Ready) -> unified::Result<Ready> {
    loop {
        match context.wait(what, Some(Duration::from_secs(10))) {
            Err(error) if error.errno() == libc::EBUSY => std::thread::yield_now(),
            result => return result,
        }
    }
}

/// A second taker gets EBUSY for as long as the first sleeps, and the sleeper is woken by what comes then.
#[test]
fn whoever_sleeps_keeps_its_role() {
    for drive in DRIVES {
        let context = Arc::new(Context::open(&null_config(drive)).unwrap());
        for round in 0..20 {
            let sleeper = std::thread::spawn({
                let context = context.clone();
                move || sleep(&context, Ready::COMPLETIONS)
            });
            let mut out = [Completion::default(); 4];
            let until = Instant::now() + Duration::from_secs(5);
            // Before it sleeps nothing is there to be taken.
            while context.completions(&mut out) == Ok(0) {
                assert!(Instant::now() < until, "a second taker is not refused");
            }
            for _ in 0..100 {
                for refused in [
                    context.completions(&mut out).map(drop),
                    context
                        .wait(Ready::COMPLETIONS, Some(Duration::ZERO))
                        .map(drop),
                    context.poll_fd().map(drop),
                ] {
                    assert_eq!(refused.unwrap_err().errno(), libc::EBUSY);
                }
                // Nobody waits for the sleeper, and the other role is free.
                context.statistics().unwrap();
            }
            context.submit_flush(None, round).unwrap();
            let woken = bounded("the sleeper", move || sleeper.join().unwrap());
            assert_eq!(woken.unwrap(), Ready::COMPLETIONS);
            assert_eq!(context.completions(&mut out).unwrap(), 1);
            assert_eq!(out[0].user_data, round);
        }
    }
}

#[test]
fn a_receiver_that_sleeps_keeps_its_role() {
    if !is_root("a_receiver_that_sleeps_keeps_its_role") {
        return;
    }
    let veth = Veth::new();
    let context = Context::open(&common::recording::config(&veth, "null:")).unwrap();
    std::thread::scope(|scope| {
        let sleeper = scope.spawn(|| sleep(&context, Ready::RX));
        let mut out = [Received::default(); 4];
        let until = Instant::now() + Duration::from_secs(5);
        while context.receive(&mut out) == Ok(0) {
            assert!(Instant::now() < until, "a second receiver is not refused");
        }
        // It is asleep by now, if it was on its way.
        std::thread::sleep(Duration::from_millis(50));
        assert_eq!(context.receive(&mut out).unwrap_err().errno(), libc::EBUSY);
        assert_eq!(context.frame_alloc().unwrap_err().errno(), libc::EBUSY);
        // Statistics look at the receiver's socket without its role.
        let from = Instant::now();
        context.statistics().unwrap();
        assert!(from.elapsed() < Duration::from_secs(2));
        veth.send(9999, vec![payload(1, 100)], 1000).join().unwrap();
        assert_eq!(sleeper.join().unwrap().unwrap(), Ready::RX);
    });
}

/// The descriptor of an event loop is quiet when there is nothing, also after the frames ran out.
#[test]
fn an_event_loop_does_not_spin_after_a_dry_spell() {
    if !is_root("an_event_loop_does_not_spin_after_a_dry_spell") {
        return;
    }
    const FRAMES: u32 = 64;
    for drive in DRIVES {
        let veth = Veth::new();
        let config = Config {
            frame_count: FRAMES,
            rx_ring: FRAMES,
            fill_ring: FRAMES,
            drive,
            ..common::recording::config(&veth, "null:1048576")
        };
        let context = Context::open(&config).unwrap();
        let fd = context.poll_fd().unwrap();
        let taken = AtomicU64::new(0);
        let mut held = Vec::new();
        // Until nothing came for `quiet`: the wakeups.
        let turns = |quiet: u64, held: &mut Vec<Received>| {
            let mut wakeups = 0;
            while wakeups < 5000
                && poll_readable(&[fd], Some(Duration::from_millis(quiet))).unwrap()
            {
                wakeups += 1;
                let mut out = [Received::default(); 16];
                loop {
                    let count = context.receive(&mut out).unwrap();
                    held.extend(&out[..count]);
                    if count < out.len() {
                        break;
                    }
                }
                let mut done = [Completion::default(); 16];
                while context.completions(&mut done).unwrap() == done.len() {}
            }
            wakeups
        };
        turns(50, &mut held);
        for round in 0..3 {
            // More than there are frames: the rest is dropped.
            let packets = (0..2 * FRAMES).map(|i| payload(i, 100)).collect();
            let sender = veth.send(9999, packets, 20_000);
            turns(300, &mut held);
            sender.join().unwrap();
            assert!(
                held.len() as u32 > FRAMES / 2,
                "{} in round {round}",
                held.len()
            );
            taken.fetch_add(held.len() as u64, Ordering::Relaxed);
            // From elsewhere and one by one: each would ring.
            for packet in held.drain(..) {
                context.frame_release(packet.frame).unwrap();
            }
            let wakeups = turns(150, &mut held);
            assert!(
                wakeups < 50,
                "{wakeups} wakeups for nothing, {drive:?}, round {round}"
            );
        }
        // It still wakes: for a packet, and for a completion of another thread's submission.
        veth.send(9999, vec![payload(7, 100)], 1000).join().unwrap();
        assert!(turns(300, &mut held) > 0);
        assert_eq!(held.len(), 1);
        let packet = held[0];
        let transfer = Transfer {
            frame: packet.frame,
            offset: packet.offset,
            len: packet.len,
            ..Transfer::default()
        };
        context.submit_write(&transfer).unwrap();
        let mut done = [Completion::default(); 4];
        assert!(poll_readable(&[fd], Some(Duration::from_secs(5))).unwrap());
        while context.completions(&mut done).unwrap() == 0 {
            assert!(poll_readable(&[fd], Some(Duration::from_secs(5))).unwrap());
        }
        assert!(turns(100, &mut held) < 20);
        let stats = context.statistics().unwrap();
        assert_eq!(stats.received, taken.load(Ordering::Relaxed) + 1);
        check_sums(&stats, FRAMES);
    }
}
