//! The engine over a device that fails as told.

#![forbid(unsafe_code)]

use std::sync::atomic::Ordering;
use std::time::Instant;

use super::submit::{FED, FEED};
use super::*;
use crate::region::{Layout, Region};
use crate::storage::backend::Backend;
use crate::storage::backend::faulty::{Fault, Faults, Faulty};
use crate::storage::command::status;
use crate::storage::command::{self, opcode};
use crate::storage::device::Device;
use crate::storage::device::DeviceConfig;
use crate::storage::null::Null;
use crate::storage::spill::Spill;
use crate::sys::abi::CQE_SPILLED;
use crate::sys::event::monotonic_ns;

const BLOCK: u32 = 512;
const BLOCKS: u64 = 64;

/// An inline engine over a file in memory, whose operations fail as told.
struct Rig {
    engine: Engine,
    region: Region,
    sq: Producer<UnifiedSqe>,
    cq: Consumer<UnifiedCqe>,
    faults: Faults,
    path: std::path::PathBuf,
    shared: Arc<EngineShared>,
}

impl Rig {
    fn new(name: &str, retry: Retry) -> Rig {
        Rig::with_spill(name, retry, |_| None)
    }

    fn with_spill(name: &str, retry: Retry, spill: impl FnOnce(&Device) -> Option<Spill>) -> Rig {
        let path = std::path::PathBuf::from(format!(
            "/dev/shm/unified-engine-{name}-{}",
            std::process::id()
        ));
        let region = Region::create(Layout::new(64, 64, 1 << 20).unwrap(), false).unwrap();
        let device = Device::open(&DeviceConfig {
            path: path.to_str().unwrap().into(),
            file_size: BLOCKS * u64::from(BLOCK),
            ..DeviceConfig::default()
        });
        let mut device = device.unwrap();
        device.made.take().unwrap().keep();
        let mut spill = spill(&device);
        if let Some(made) = spill.as_mut().and_then(|spill| spill.made.take()) {
            made.keep();
        }
        let mut engine = Engine::new(
            vec![OpenTarget { device, spill }],
            &region,
            EngineConfig {
                depth: 64,
                bounce: true,
                raw: false,
                threaded: false,
                backlog: 0,
                registered: true,
                retry,
            },
        )
        .unwrap();
        let faults = Faults::default();
        let target = &mut engine.targets[0];
        let null = Backend::Null(Null::new(&target.device));
        let device = std::mem::replace(&mut target.backend, null);
        target.backend = Backend::Faulty(Box::new(Faulty {
            device,
            faults: faults.clone(),
        }));
        let shared = engine.shared().clone();
        Rig {
            sq: Producer::new(region.sq.clone(), "SQ"),
            cq: Consumer::new(region.cq.clone(), "CQ"),
            engine,
            region,
            faults,
            path,
            shared,
        }
    }

    fn fail(&self, opcode: u8, result: i32) {
        self.faults.lock().push_back(Fault { opcode, result });
    }

    /// One block each, neighbours in memory and on the device: one run.
    fn write(&mut self, blocks: std::ops::Range<u64>) {
        for block in blocks {
            let at = block * u64::from(BLOCK);
            self.region
                .data
                .write(at as usize, &[block as u8 + 1; BLOCK as usize]);
            let mut sqe = command::transfer(opcode::WRITE, block, 1, at, BLOCK, false);
            sqe.user_data = block;
            self.push(sqe);
        }
        let _ = self.sq.publish();
    }

    fn push(&mut self, sqe: UnifiedSqe) {
        self.shared.stamps.set(self.sq.tail(), monotonic_ns());
        assert!(self.sq.push(sqe).unwrap());
    }

    fn flush(&mut self) -> UnifiedCqe {
        self.push(command::flush());
        let _ = self.sq.publish();
        self.take(1)[0]
    }

    fn take(&mut self, count: usize) -> Vec<UnifiedCqe> {
        let start = Instant::now();
        let mut done = Vec::new();
        while done.len() < count {
            assert!(
                start.elapsed() < Duration::from_secs(20),
                "{} of {count}",
                done.len()
            );
            self.engine.pump(true).unwrap();
            match self.cq.pop().unwrap() {
                Some(cqe) => done.push(cqe),
                None => self
                    .engine
                    .ring
                    .submit(1, Some(Duration::from_millis(100)))
                    .unwrap(),
            }
            self.cq.release();
        }
        done.sort_by_key(|cqe| cqe.user_data);
        done
    }

    fn stored(&self, block: u64) -> bool {
        let file = std::fs::read(&self.path).unwrap();
        file.chunks(BLOCK as usize).nth(block as usize)
            == Some(&[block as u8 + 1; BLOCK as usize][..])
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
        if !std::thread::panicking() {
            assert_eq!((self.engine.in_flight(), self.engine.operating()), (0, 0));
            assert_eq!(self.engine.bounce.free.len(), 64, "every piece came back");
            assert!(self.engine.ring.all_tables_are_free());
            assert_eq!(
                self.shared.stats.submitted.get(),
                self.shared.stats.completed.get()
            );
            assert!(self.faults.lock().is_empty(), "every fault happened");
        }
    }
}

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
fn a_flush_that_fails_says_so_and_the_next_one_is_its_own() {
    let mut rig = Rig::new("flush", Retry::default());
    rig.write(0..1);
    rig.take(1);
    rig.fail(opcode::FLUSH, -libc::EIO);
    let done = rig.flush();
    assert_eq!(
        (done.status as u16, done.result),
        (status::WRITE_FAULT, -libc::EIO)
    );
    assert_eq!(rig.flush().status, 0);
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

#[test]
fn what_the_device_fails_is_in_the_spill_and_a_flush_covers_it() {
    let path = format!("/dev/shm/unified-engine-spill-{}", std::process::id());
    let once = Retry {
        limit: 0,
        ..Retry::default()
    };
    let mut rig = Rig::with_spill("spilling", once, |device| {
        Some(Spill::open(&path, device, false).unwrap())
    });
    let device = Device::open(&DeviceConfig {
        path: "null:4096".into(),
        ..DeviceConfig::default()
    })
    .unwrap();
    assert_eq!(
        Spill::open(&path, &device, false).unwrap_err().errno(),
        libc::EBUSY
    );
    // The run fails, and then the first and third of its entries.
    rig.fail(opcode::WRITE, -libc::EIO);
    rig.fail(opcode::WRITE, -libc::EIO);
    rig.fail(opcode::WRITE, BLOCK as i32);
    rig.fail(opcode::WRITE, -libc::ENOSPC);
    rig.write(0..4);
    let done = rig.take(4);
    let flags: Vec<_> = done
        .iter()
        .map(|cqe| (cqe.user_data, cqe.status, cqe.len, cqe.flags))
        .collect();
    let spilled = |i| (i, 0, BLOCK, CQE_SPILLED);
    let written = |i| (i, 0, BLOCK, 0);
    assert_eq!(flags, [spilled(0), written(1), spilled(2), written(3)]);
    let stats = &rig.shared.stats;
    assert_eq!((stats.spilled.get(), stats.spilled_bytes.get()), (2, 1024));
    assert_eq!((stats.errors.get(), stats.bytes_written.get()), (0, 1024));
    let there = std::fs::read(&path).unwrap();
    assert_eq!(there.len() as u64, BLOCKS * u64::from(BLOCK));
    for (i, block) in there.chunks(BLOCK as usize).enumerate() {
        let expected = if i == 0 || i == 2 { i as u8 + 1 } else { 0 };
        assert!(block.iter().all(|b| *b == expected), "block {i}");
    }
    assert!(rig.engine.targets[0].spill.as_ref().unwrap().dirty);
    assert_eq!(rig.flush().status, 0);
    assert!(!rig.engine.targets[0].spill.as_ref().unwrap().dirty);
    // A flush that fails on the device has failed; nothing of the caller's own fault is spilled.
    rig.fail(opcode::FLUSH, -libc::EIO);
    assert_ne!(rig.flush().status, 0);
    let beyond = command::transfer(opcode::WRITE, BLOCKS, 1, 0, BLOCK, false);
    assert!(rig.sq.push(beyond).unwrap());
    let _ = rig.sq.publish();
    assert_eq!(rig.take(1)[0].status as u16, status::LBA_OUT_OF_RANGE);
    assert_eq!(rig.shared.stats.spilled.get(), 2);
    std::fs::remove_file(&path).unwrap();
}

#[test]
fn a_flush_waits_for_the_spill_also_where_another_one_syncs_it() {
    let path = format!(
        "/dev/shm/unified-engine-twice-spilled-{}",
        std::process::id()
    );
    let once = Retry {
        limit: 0,
        ..Retry::default()
    };
    let mut rig = Rig::with_spill("twice", once, |device| {
        Some(Spill::open(&path, device, false).unwrap())
    });
    rig.fail(opcode::WRITE, -libc::EIO);
    rig.write(0..1);
    assert_eq!(rig.take(1)[0].flags, CQE_SPILLED);
    for _ in 0..2 {
        rig.push(command::flush());
    }
    let _ = rig.sq.publish();
    rig.engine.pump(false).unwrap();
    // Both have been through the device when the engine looks.
    let until = Instant::now() + Duration::from_secs(20);
    rig.engine
        .ring
        .submit(2, Some(Duration::from_secs(20)))
        .unwrap();
    assert!(Instant::now() < until);
    rig.engine.pump(false).unwrap();
    assert!(rig.cq.pop().unwrap().is_none(), "not synced yet");
    assert_eq!(rig.engine.targets[0].spill.as_ref().unwrap().syncing, 2);
    assert!(rig.take(2).iter().all(|done| done.status == 0));
    assert_eq!(rig.engine.targets[0].spill.as_ref().unwrap().syncing, 0);
    std::fs::remove_file(&path).unwrap();
}

/// The device fails the write and the spill has no room: the entry gets the device's truth.
#[test]
fn a_spill_that_fails_too_leaves_the_devices_error() {
    let once = Retry {
        limit: 0,
        ..Retry::default()
    };
    // Always full, and as long as one likes.
    let mut rig = Rig::with_spill("spill-full", once, |_| {
        let full = std::fs::OpenOptions::new().write(true).open("/dev/full");
        Some(Spill {
            file: full.unwrap().into(),
            path: "/dev/full".into(),
            made: None,
            claim: None,
        })
    });
    rig.fail(opcode::WRITE, -libc::EIO);
    rig.write(0..1);
    let done = rig.take(1)[0];
    assert_eq!(
        (done.status as u16, done.result),
        (status::WRITE_FAULT, -libc::EIO)
    );
    assert_eq!(done.flags & CQE_SPILLED, 0);
    let stats = &rig.shared.stats;
    assert_eq!((stats.spilled.get(), stats.errors.get()), (0, 1));
}

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
    assert_eq!(rig.shared.stats.operations.get(), 5);
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
            rig.region.cq.consumer().store(bad, Ordering::Relaxed);
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
    rig.region
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
