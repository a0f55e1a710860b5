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

struct EngineShared {
    end: End,
    taker_bell: Doorbell,
    /// A completion is there.
    done: AtomicBool,
}

fn shared() -> Arc<EngineShared> {
    Arc::new(EngineShared {
        end: End::new().unwrap(),
        taker_bell: Doorbell::new().unwrap(),
        done: AtomicBool::new(false),
    })
}

/// A waiter's steps up to its sleep: `true` if it goes to sleep.
fn goes_to_sleep(shared: &EngineShared) -> bool {
    if shared.end.is_closing() || shared.end.failure().is_some() {
        return false;
    }
    shared.taker_bell.clear();
    !shared.done.load(Ordering::Relaxed)
}

/// Whether one that sleeps is woken.
fn wakes(shared: &EngineShared) -> bool {
    shared.taker_bell.is_readable() || shared.end.bell().is_readable()
}

/// The engine rings, and the context is closed, at any moment of a waiter that clears the engine's bell.
#[test]
fn a_close_is_missed_by_nobody() {
    model(|| {
        let shared = shared();
        let closer = thread::spawn({
            let shared = shared.clone();
            move || shared.end.close()
        });
        let engine = thread::spawn({
            let shared = shared.clone();
            move || shared.taker_bell.ring()
        });
        let asleep = goes_to_sleep(&shared);
        closer.join().unwrap();
        engine.join().unwrap();
        assert!(!asleep || wakes(&shared), "it sleeps for ever");
        // Whoever comes later is not even asleep.
        assert!(!goes_to_sleep(&shared));
    });
}

/// A failure and a close at once, and two waiters that clear what they can.
#[test]
fn a_failure_is_missed_by_nobody() {
    model(|| {
        let shared = shared();
        let engine = thread::spawn({
            let shared = shared.clone();
            move || shared.end.fail(5)
        });
        let other = thread::spawn({
            let shared = shared.clone();
            move || goes_to_sleep(&shared)
        });
        let asleep = goes_to_sleep(&shared);
        shared.end.close();
        let other = other.join().unwrap();
        engine.join().unwrap();
        assert!(!(asleep || other) || wakes(&shared), "it sleeps for ever");
        assert_eq!(shared.end.failure(), Some(5));
    });
}

/// What was done before a ring is seen after the clear, or the bell is rung still; also where the ring was spared
/// because of an earlier one.
#[test]
fn a_ring_that_is_spared_is_no_ring_lost() {
    model(|| {
        let shared = shared();
        let early = thread::spawn({
            let shared = shared.clone();
            move || shared.taker_bell.ring()
        });
        let late = thread::spawn({
            let shared = shared.clone();
            move || {
                shared.done.store(true, Ordering::Relaxed);
                shared.taker_bell.ring();
            }
        });
        let asleep = goes_to_sleep(&shared);
        early.join().unwrap();
        late.join().unwrap();
        assert!(!asleep || wakes(&shared), "it sleeps for ever");
    });
}

/// A close that only rings what waiters clear: the model finds the waiter that sleeps for ever.
#[test]
#[should_panic(expected = "it sleeps for ever")]
fn a_close_that_rings_the_takers_bell_is_missed() {
    model(|| {
        let shared = shared();
        let closing = Arc::new(AtomicBool::new(false));
        let closer = thread::spawn({
            let (shared, closing) = (shared.clone(), closing.clone());
            move || {
                closing.store(true, Ordering::SeqCst);
                shared.taker_bell.ring();
            }
        });
        let asleep = !closing.load(Ordering::SeqCst) && goes_to_sleep(&shared);
        closer.join().unwrap();
        assert!(!asleep || wakes(&shared), "it sleeps for ever");
    });
}
