//! The rings' need-wakeup and the hand-over of frames, under every order of their memory accesses. The code is the
//! library's own (`ring`, `frame`); what sleeps and what rings is modelled by a flag and a yield.
//!
//! RUSTFLAGS="--cfg loom" cargo test --release --test loom_rings
#![cfg(loom)]

use loom::cell::UnsafeCell;
use loom::sync::Arc;
use loom::sync::atomic::{AtomicBool, Ordering};
use loom::thread;
use unified::frame::{Frames, Freed, PacketOutcome, Return, Settled};
use unified::ring::{Consumer, Producer};
use unified::sys::abi::UnifiedCqe;
use unified::sys::shm::SharedRing;

/// The indices wrap on the way.
const START: u32 = u32::MAX;

fn model(body: impl Fn() + Send + Sync + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(3);
    builder.check(body);
}

fn entry(user_data: u64) -> UnifiedCqe {
    UnifiedCqe {
        user_data,
        ..UnifiedCqe::default()
    }
}

/// An eventfd: once rung it stays readable until cleared. A sleeper for whom nobody rings never ends, which loom
/// reports as a deadlock.
struct Bell(loom::sync::Mutex<bool>, loom::sync::Condvar);

impl Bell {
    fn new() -> Arc<Bell> {
        Arc::new(Bell(
            loom::sync::Mutex::new(false),
            loom::sync::Condvar::new(),
        ))
    }

    fn ring(&self) {
        *self.0.lock().unwrap() = true;
        self.1.notify_one();
    }

    fn sleep(&self) {
        let mut rung = self.0.lock().unwrap();
        while !*rung {
            rung = self.1.wait(rung).unwrap();
        }
        *rung = false;
    }
}

/// Takes `total` entries, asleep in between as the engine and the taker are.
fn consume(ring: SharedRing<UnifiedCqe>, bell: Arc<Bell>, total: u64) {
    let mut consumer = Consumer::new(ring, "test");
    let mut next = 0;
    while next < total {
        while let Some(got) = consumer.pop().unwrap() {
            assert_eq!(got.user_data, next);
            next += 1;
        }
        consumer.release();
        if next < total {
            if consumer.prepare_sleep().unwrap() {
                bell.sleep();
            }
            consumer.awake();
        }
    }
}

#[test]
fn no_wakeup_is_lost() {
    model(|| {
        let ring = SharedRing::modelled(2, START);
        let bell = Bell::new();
        let consumer = thread::spawn({
            let (ring, bell) = (ring.clone(), bell.clone());
            move || consume(ring, bell, 2)
        });
        let mut producer = Producer::new(ring, "test");
        for i in 0..2 {
            assert!(producer.push(entry(i)).unwrap());
            if producer.publish() {
                bell.ring();
            }
        }
        consumer.join().unwrap();
    });
}

/// The other way round: a producer that waits for room tells so by a flag (as the engine does when the CQ is
/// full), and the consumer that frees slots looks at it.
#[test]
fn no_room_is_missed() {
    model(|| {
        let ring = SharedRing::modelled(1, START);
        let starved = Arc::new(AtomicBool::new(false));
        let bell = Bell::new();
        let producer = thread::spawn({
            let (ring, bell, starved) = (ring.clone(), bell.clone(), starved.clone());
            move || {
                let mut producer = Producer::new(ring, "test");
                for i in 0..2 {
                    while !producer.push(entry(i)).unwrap() {
                        starved.store(true, Ordering::Relaxed);
                        loom::sync::atomic::fence(Ordering::SeqCst);
                        if producer.free(1).unwrap() == 0 {
                            bell.sleep();
                        }
                        starved.store(false, Ordering::Relaxed);
                    }
                    let _ = producer.publish();
                }
            }
        });
        let mut consumer = Consumer::new(ring, "test");
        for i in 0..2 {
            let got = loop {
                match consumer.pop().unwrap() {
                    Some(got) => break got,
                    None => thread::yield_now(),
                }
            };
            assert_eq!(got.user_data, i);
            consumer.release();
            loom::sync::atomic::fence(Ordering::SeqCst);
            if starved.load(Ordering::Relaxed) {
                bell.ring();
            }
        }
        producer.join().unwrap();
    });
}

/// Without its fences the protocol loses a wakeup: the model finds it, so it would find it in the code above.
#[test]
#[should_panic(expected = "a wakeup is lost")]
fn without_fences_a_wakeup_is_lost() {
    model(|| {
        let ring: SharedRing<UnifiedCqe> = SharedRing::modelled(2, START);
        let consumer = thread::spawn({
            let ring = ring.clone();
            move || {
                ring.set_need_wakeup(true);
                // Asleep, if nothing is there.
                ring.producer().load(Ordering::Acquire) == START
            }
        });
        let next = START.wrapping_add(1);
        ring.producer().store(next, Ordering::Release);
        let rings = ring.need_wakeup();
        let sleeps = consumer.join().unwrap();
        assert!(rings || !sleeps, "a wakeup is lost");
    });
}

/// A frame's bytes: loom reports two owners at once.
struct Bytes(UnsafeCell<u32>);

// SAFETY: loom checks at run time what Sync promises: an access that races is reported.
unsafe impl Sync for Bytes {}

impl Bytes {
    fn touch(&self) {
        // SAFETY: the cell is live, and loom reports any access that races with this one.
        self.0.with_mut(|bytes| unsafe { *bytes += 1 });
    }
}

/// Given back by the taker, taken again by the receiver: never both at once, never lost, never twice.
#[test]
fn a_frame_has_one_owner() {
    model(|| {
        let frames = Arc::new(Frames::new(2));
        let bytes = Arc::new([(); 2].map(|()| Bytes(UnsafeCell::new(0))));
        let mut cursor = 0;
        let mut out = [0; 2];
        assert_eq!(frames.pool.take(&mut cursor, &mut out), 2);
        for frame in out {
            frames.table.fill(frame, 1).unwrap();
            frames.table.receive(frame, 1).unwrap();
            bytes[frame as usize].touch();
            frames.table.submit(frame, 1, true, Return::Free).unwrap();
        }
        let taker = thread::spawn({
            let (frames, bytes) = (frames.clone(), bytes.clone());
            move || {
                let mut freed = Freed::default();
                for frame in out {
                    bytes[frame as usize].touch();
                    assert_eq!(
                        frames.finish(frame, true, &mut freed).unwrap(),
                        Some(Settled {
                            outcome: PacketOutcome::Stored,
                            packets: 1,
                        })
                    );
                }
                frames.pool.give_back(&mut freed);
            }
        });
        let mut back = 0;
        while back < 2 {
            let mut out = [0; 2];
            let count = frames.pool.take(&mut cursor, &mut out);
            for frame in &out[..count] {
                frames.table.fill(*frame, 1).unwrap();
                bytes[*frame as usize].touch();
            }
            back += count;
            if count == 0 {
                thread::yield_now();
            }
        }
        taker.join().unwrap();
        assert_eq!(frames.pool.take(&mut cursor, &mut [0; 2]), 0);
        assert_eq!(frames.table.census().filled, 2);
    });
}

/// Two threads give the same frame back: one of them is told that it does not hold it.
#[test]
fn a_frame_is_given_back_once() {
    model(|| {
        let frames = Arc::new(Frames::new(1));
        assert_eq!(frames.pool.take(&mut 0, &mut [0]), 1);
        frames.table.allocate(0, 1).unwrap();
        let other = thread::spawn({
            let frames = frames.clone();
            move || frames.release(0).is_ok()
        });
        let here = frames.release(0).is_ok();
        assert!(here ^ other.join().unwrap());
        assert_eq!(frames.pool.take(&mut 0, &mut [0, 0]), 1);
    });
}

/// The same with a run of frames in one thread: it has all of them or none.
#[test]
fn a_run_is_given_back_once() {
    model(|| {
        let frames = Arc::new(Frames::new(2));
        assert_eq!(frames.pool.take(&mut 0, &mut [0, 0]), 2);
        frames.table.allocate(0, 2).unwrap();
        let other = thread::spawn({
            let frames = frames.clone();
            move || frames.release(1).is_ok()
        });
        let mut freed = Freed::default();
        let here = frames.release_run(0, 2, &mut freed).is_some();
        frames.pool.give_back(&mut freed);
        assert!(here ^ other.join().unwrap());
        let free = if here { 2 } else { 1 };
        assert_eq!(frames.pool.take(&mut 0, &mut [0; 3]), free);
    });
}

/// The receiver has run dry and sleeps; whoever gives a frame back wakes it.
#[test]
fn a_dry_receiver_is_woken() {
    model(|| {
        let frames = Arc::new(Frames::new(1));
        let bell = Bell::new();
        let mut cursor = 0;
        assert_eq!(frames.pool.take(&mut cursor, &mut [0]), 1);
        frames.table.allocate(0, 1).unwrap();
        let taker = thread::spawn({
            let (frames, bell) = (frames.clone(), bell.clone());
            move || {
                frames.release(0).unwrap();
                if frames.pool.to_wake(1) != 0 {
                    bell.ring();
                }
            }
        });
        while frames.pool.take(&mut cursor, &mut [0]) == 0 {
            if frames.pool.prepare_sleep() {
                bell.sleep();
            }
            frames.pool.awake();
        }
        taker.join().unwrap();
    });
}

/// A block that goes from lane to lane through the reserve, while somebody gives its last frame back: one lane has each frame,
/// and none is lost.
#[test]
fn a_block_is_of_one_lane_at_a_time() {
    model(|| {
        let lanes = Arc::new(Frames::of_lanes(2, 2));
        let bytes = Arc::new([0, 1].map(|_| Bytes(UnsafeCell::new(0))));
        let mut cursor = 0;
        let mut out = [0; 2];
        assert_eq!(lanes[0].pool.take(&mut cursor, &mut out), 2);
        lanes[0].table.allocate(0, 2).unwrap();
        // One is free already, so that the lane may be taking it while the other one comes.
        let mut freed = Freed::default();
        lanes[0].table.release(1).unwrap();
        lanes[0].pool.put(1, &mut freed);
        lanes[0].pool.give_back(&mut freed);
        let take = |lane: &Frames, bytes: &[Bytes; 2]| {
            let mut out = [0; 2];
            let count = lane.pool.take(&mut 0, &mut out);
            for frame in &out[..count] {
                // Fails if another lane has it.
                lane.table.allocate(*frame, 1).unwrap();
                bytes[*frame as usize].touch();
            }
            count
        };
        let giver = thread::spawn({
            let (lanes, bytes) = (lanes.clone(), bytes.clone());
            move || {
                let mut freed = Freed::default();
                bytes[0].touch();
                lanes[1].table.release(0).unwrap();
                lanes[1].pool.put(0, &mut freed);
                lanes[1].pool.give_back(&mut freed);
            }
        });
        let other = thread::spawn({
            let (lanes, bytes) = (lanes.clone(), bytes.clone());
            move || take(&lanes[1], &bytes)
        });
        let taken = take(&lanes[0], &bytes);
        giver.join().unwrap();
        let taken = taken + other.join().unwrap();
        let rest = take(&lanes[0], &bytes) + take(&lanes[1], &bytes);
        assert_eq!(taken + rest, 2);
    });
}

/// A lane has run dry and sleeps; what another lane's frames become whole by wakes it.
#[test]
fn a_dry_lane_is_woken_by_the_reserve() {
    model(|| {
        let lanes = Arc::new(Frames::of_lanes(1, 2));
        let bell = Bell::new();
        assert_eq!(lanes[0].pool.take(&mut 0, &mut [0]), 1);
        lanes[0].table.allocate(0, 1).unwrap();
        let giver = thread::spawn({
            let (lanes, bell) = (lanes.clone(), bell.clone());
            move || {
                let mut freed = Freed::default();
                lanes[0].table.release(0).unwrap();
                lanes[0].pool.put(0, &mut freed);
                lanes[0].pool.give_back(&mut freed);
                if lanes[0].pool.to_wake(freed.lanes) & 2 != 0 {
                    bell.ring();
                }
            }
        });
        let pool = &lanes[1].pool;
        while pool.take(&mut 0, &mut [0]) == 0 {
            if pool.prepare_sleep() {
                bell.sleep();
            }
            pool.awake();
        }
        giver.join().unwrap();
    });
}
