//! The end of a context against those who wait, under every order of their memory accesses. The end and the bells are the
//! library's own (`end`, `sys::event`); the kernel's counter is modelled, and a sleep is the question whether anything
//! that is polled would be readable.
//!
//! RUSTFLAGS="--cfg loom" cargo test --release --test loom_end
#![cfg(loom)]

use loom::sync::Arc;
use loom::sync::atomic::{AtomicBool, Ordering};
use loom::thread;
use unified::end::End;
use unified::sys::event::Doorbell;

fn model(body: impl Fn() + Send + Sync + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(3);
    builder.check(body);
}

struct Shore {
    end: End,
    taker_bell: Doorbell,
    /// A completion is there.
    done: AtomicBool,
}

fn shore() -> Arc<Shore> {
    Arc::new(Shore {
        end: End::new().unwrap(),
        taker_bell: Doorbell::new().unwrap(),
        done: AtomicBool::new(false),
    })
}

/// A waiter's steps up to its sleep: `true` where it goes to sleep.
fn goes_to_sleep(shore: &Shore) -> bool {
    if shore.end.is_closing() || shore.end.failure().is_some() {
        return false;
    }
    shore.taker_bell.clear();
    !shore.done.load(Ordering::Relaxed)
}

/// Whether one that sleeps is woken.
fn wakes(shore: &Shore) -> bool {
    shore.taker_bell.is_readable() || shore.end.bell().is_readable()
}

/// The engine rings, and the context is closed, at any moment of a waiter that clears the engine's bell.
#[test]
fn a_close_is_missed_by_nobody() {
    model(|| {
        let shore = shore();
        let closer = thread::spawn({
            let shore = shore.clone();
            move || shore.end.close()
        });
        let engine = thread::spawn({
            let shore = shore.clone();
            move || shore.taker_bell.ring()
        });
        let asleep = goes_to_sleep(&shore);
        closer.join().unwrap();
        engine.join().unwrap();
        assert!(!asleep || wakes(&shore), "it sleeps for ever");
        // Whoever comes later is not even asleep.
        assert!(!goes_to_sleep(&shore));
    });
}

/// A failure and a close at once, and two waiters that clear what they can.
#[test]
fn a_failure_is_missed_by_nobody() {
    model(|| {
        let shore = shore();
        let engine = thread::spawn({
            let shore = shore.clone();
            move || shore.end.fail(5)
        });
        let other = thread::spawn({
            let shore = shore.clone();
            move || goes_to_sleep(&shore)
        });
        let asleep = goes_to_sleep(&shore);
        shore.end.close();
        let other = other.join().unwrap();
        engine.join().unwrap();
        assert!(!(asleep || other) || wakes(&shore), "it sleeps for ever");
        assert_eq!(shore.end.failure(), Some(5));
    });
}

/// What was done before a ring is seen after the clear, or the bell is rung still; also where the ring was spared
/// because of an earlier one.
#[test]
fn a_ring_that_is_spared_is_no_ring_lost() {
    model(|| {
        let shore = shore();
        let early = thread::spawn({
            let shore = shore.clone();
            move || shore.taker_bell.ring()
        });
        let late = thread::spawn({
            let shore = shore.clone();
            move || {
                shore.done.store(true, Ordering::Relaxed);
                shore.taker_bell.ring();
            }
        });
        let asleep = goes_to_sleep(&shore);
        early.join().unwrap();
        late.join().unwrap();
        assert!(!asleep || wakes(&shore), "it sleeps for ever");
    });
}

/// A close that only rings what waiters clear: the model finds the waiter that sleeps for ever.
#[test]
#[should_panic(expected = "it sleeps for ever")]
fn a_close_that_rings_the_takers_bell_is_missed() {
    model(|| {
        let shore = shore();
        let closing = Arc::new(AtomicBool::new(false));
        let closer = thread::spawn({
            let (shore, closing) = (shore.clone(), closing.clone());
            move || {
                closing.store(true, Ordering::SeqCst);
                shore.taker_bell.ring();
            }
        });
        let asleep = !closing.load(Ordering::SeqCst) && goes_to_sleep(&shore);
        closer.join().unwrap();
        assert!(!asleep || wakes(&shore), "it sleeps for ever");
    });
}
