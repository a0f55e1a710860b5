//! A raw program against the server of its rings, under every order of their memory accesses.
//!
//! The server's side is the library's own code (`ring::Consumer` and `ring::Producer`). The program's side
//! is what a C program does: loads, an entry, a store. Entries are loom cells, so an entry that is read
//! before it is written, or written while it is read, fails the model.
//!
//! RUSTFLAGS="--cfg loom" cargo test --release --test loom_raw
#![cfg(loom)]

use loom::sync::atomic::Ordering::{self, Acquire, Relaxed, Release};
use loom::thread;
use unified::ring::{Consumer, Producer};
use unified::sys::abi::{UnifiedCqe, UnifiedSqe};
use unified::sys::shm::SharedRing;

type Sq = SharedRing<UnifiedSqe>;
type Cq = SharedRing<UnifiedCqe>;

/// The indices wrap on the way.
const START: u32 = u32::MAX;

/// Serves `total` entries: takes one only with a CQ slot for it, as the engine does.
fn serve(sq: Sq, cq: Cq, total: u32) {
    let mut sq = Consumer::new(sq, "SQ");
    let mut cq = Producer::new(cq, "CQ");
    let mut served = 0;
    while served < total {
        if cq.free(1).unwrap() == 0 {
            thread::yield_now();
            continue;
        }
        let Some(sqe) = sq.pop().unwrap() else {
            thread::yield_now();
            continue;
        };
        let pushed = cq.push(UnifiedCqe {
            user_data: sqe.user_data,
            ..UnifiedCqe::default()
        });
        assert!(pushed.unwrap(), "the slot was free");
        sq.release();
        let _ = cq.publish();
        served += 1;
    }
}

/// Stores entries, with `publish` as the order of the store to `producer`.
fn submit(sq: &Sq, first: u64, total: u32, publish: Ordering) {
    for i in 0..total {
        let tail = sq.producer().load(Relaxed);
        while tail.wrapping_sub(sq.consumer().load(Acquire)) >= sq.count() {
            thread::yield_now();
        }
        sq.write(
            tail,
            UnifiedSqe {
                user_data: first + u64::from(i),
                ..UnifiedSqe::default()
            },
        );
        sq.producer().store(tail.wrapping_add(1), publish);
    }
}

/// Takes completions, each of which must be the next one, with `free` as the order of the store to
/// `consumer`.
fn take(cq: &Cq, first: u64, total: u32, free: Ordering) {
    for i in 0..total {
        let head = cq.consumer().load(Relaxed);
        while cq.producer().load(Acquire) == head {
            thread::yield_now();
        }
        assert_eq!(cq.read(head).user_data, first + u64::from(i));
        cq.consumer().store(head.wrapping_add(1), free);
    }
}

fn model(sq: u32, cq: u32, body: impl Fn(Sq, Cq) + Send + Sync + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(3);
    builder.check(move || body(Sq::modelled(sq, START), Cq::modelled(cq, START)));
}

fn server(sq: &Sq, cq: &Cq, total: u32) -> thread::JoinHandle<()> {
    let (sq, cq) = (sq.clone(), cq.clone());
    thread::spawn(move || serve(sq, cq, total))
}

/// Rings of one entry, whose slot is used again: each side waits for the other.
#[test]
fn entries_and_completions_arrive_whole_and_once() {
    model(1, 1, |sq, cq| {
        let server = server(&sq, &cq, 2);
        submit(&sq, 1, 1, Release);
        take(&cq, 1, 1, Release);
        submit(&sq, 2, 1, Release);
        take(&cq, 2, 1, Release);
        server.join().unwrap();
        assert_eq!(sq.consumer().load(Relaxed), START.wrapping_add(2));
        assert_eq!(cq.producer().load(Relaxed), START.wrapping_add(2));
    });
}

/// The document's packet thread: it only submits. The completions are looked at in the end.
#[test]
fn a_thread_that_submits() {
    model(1, 4, |sq, cq| {
        let server = server(&sq, &cq, 3);
        submit(&sq, 1, 3, Release);
        server.join().unwrap();
        take(&cq, 1, 3, Release);
    });
}

/// The document's storage thread: it only takes. The entries were there before.
#[test]
fn a_thread_that_takes() {
    model(4, 1, |sq, cq| {
        submit(&sq, 1, 3, Release);
        let server = server(&sq, &cq, 3);
        take(&cq, 1, 3, Release);
        server.join().unwrap();
    });
}

/// Without order between the entry and the index the server may read the entry too early. On x86 the
/// processor gives that order to every store; programs that leave it out work there and nowhere else.
#[test]
#[should_panic(expected = "Causality violation")]
fn a_program_without_release_is_wrong_where_stores_are_not_ordered() {
    model(1, 1, |sq, cq| {
        let server = server(&sq, &cq, 1);
        submit(&sq, 1, 1, Relaxed);
        server.join().unwrap();
    });
}

/// The same for a taker that frees a slot before it has read it.
#[test]
#[should_panic(expected = "Causality violation")]
fn a_taker_without_release_is_wrong_where_stores_are_not_ordered() {
    model(4, 1, |sq, cq| {
        submit(&sq, 1, 2, Release);
        let server = server(&sq, &cq, 2);
        take(&cq, 1, 2, Relaxed);
        server.join().unwrap();
    });
}
