//! The three things done for every packet: a ring's entry, a packet's headers, and the engine's turn.

use std::hint::black_box;
use std::time::{Duration, Instant};

use criterion::{Criterion, Throughput, criterion_group, criterion_main};

use unified::config::Config;
use unified::context::Context;
use unified::lane::{Completion, Transfer};
use unified::net::packet;
use unified::region::{Layout, Region};
use unified::ring::{Consumer, Producer};
use unified::sys::abi::UnifiedSqe;

const BATCH: usize = 64;

/// A batch into the SQ ring, published once, and out again.
fn ring(c: &mut Criterion) {
    let layout = Layout::new(256, 256, 1 << 20).unwrap();
    let region = Region::create(layout, false).unwrap();
    let mut producer = Producer::new(region.rings[0].sq.clone(), "SQ");
    let mut consumer = Consumer::new(region.rings[0].sq.clone(), "SQ");
    let mut group = c.benchmark_group("ring");
    group.throughput(Throughput::Elements(BATCH as u64));
    group.bench_function("push and pop 64 entries", |b| {
        b.iter(|| {
            for user_data in 0..BATCH as u64 {
                let entry = UnifiedSqe {
                    user_data,
                    ..UnifiedSqe::default()
                };
                assert!(producer.push(black_box(entry)).unwrap());
            }
            assert!(!producer.publish(), "nobody sleeps");
            let mut sum = 0;
            while let Some(entry) = consumer.pop().unwrap() {
                sum += entry.user_data;
            }
            consumer.release();
            assert_eq!(sum, 63 * 64 / 2);
        });
    });
}

fn headers(c: &mut Criterion) {
    let payload = [7; 1024];
    let mut group = c.benchmark_group("packet");
    group.throughput(Throughput::Elements(1));
    let eth = || etherparse::PacketBuilder::ethernet2([2; 6], [4; 6]);
    let mut plain = Vec::new();
    eth()
        .ipv4([10, 0, 0, 1], [10, 0, 0, 2], 64)
        .udp(1, 9999)
        .write(&mut plain, &payload)
        .unwrap();
    let mut tagged = Vec::new();
    eth()
        .single_vlan(5.try_into().unwrap())
        .ipv6([1; 16], [2; 16], 64)
        .udp(1, 9999)
        .write(&mut tagged, &payload)
        .unwrap();
    for (name, bytes) in [("IPv4", plain), ("VLAN and IPv6", tagged)] {
        group.bench_function(name, |b| {
            b.iter(|| {
                let headers = packet::parse(black_box(&bytes)).unwrap();
                assert_eq!(headers.payload_len, 1024);
                headers
            });
        });
    }
}

/// What a packet costs the library, by the length of its payload: it should not depend on it, for nothing touches the
/// payload. Beside it what a copy of the same payload would cost, over more memory than a cache holds.
fn lengths(c: &mut Criterion) {
    const COPIED: usize = 32 << 20;
    let mut config = Config::default();
    config.device.path = "null:".into();
    let context = Context::open(&config).unwrap();
    let frames: Vec<u32> = (0..BATCH).map(|_| context.frame_alloc().unwrap()).collect();
    let mut done = [Completion::default(); BATCH];
    let from = vec![1u8; COPIED];
    let mut to = vec![2u8; COPIED];
    let mut group = c.benchmark_group("by length");
    group.throughput(Throughput::Elements(BATCH as u64));
    for len in [64, 512, 1024, 1472] {
        let transfer = |i: usize| Transfer {
            frame: frames[i],
            offset: u64::from(frames[i]) * 2048 + 512,
            len,
            lba: i as u64 * 3,
            keep: true,
            more: i + 1 < BATCH,
            ..Transfer::default()
        };
        group.bench_function(format!("submit and complete {len} bytes"), |b| {
            b.iter(|| {
                for i in 0..BATCH {
                    context.submit_write(&transfer(i)).unwrap();
                }
                assert_eq!(context.completions(&mut done).unwrap(), BATCH);
            });
        });
        group.bench_function(format!("submit {len} bytes"), |b| {
            b.iter_custom(|rounds| {
                let mut spent = Duration::ZERO;
                for _ in 0..rounds {
                    let start = Instant::now();
                    for i in 0..BATCH {
                        context.submit_write(&transfer(i)).unwrap();
                    }
                    spent += start.elapsed();
                    assert_eq!(context.completions(&mut done).unwrap(), BATCH);
                }
                spent
            });
        });
        let mut at = 0;
        group.bench_function(format!("copy {len} bytes"), |b| {
            b.iter(|| {
                for _ in 0..BATCH {
                    let end = at + len as usize;
                    to[at..end].copy_from_slice(black_box(&from[at..end]));
                    at = (at + 2048) % COPIED;
                }
            });
        });
    }
}

/// 64 writes to no device, from submitting them to taking their completions.
fn turn(c: &mut Criterion) {
    let mut config = Config::default();
    config.device.path = "null:".into();
    let context = Context::open(&config).unwrap();
    let frames: Vec<u32> = (0..BATCH).map(|_| context.frame_alloc().unwrap()).collect();
    let mut done = [Completion::default(); BATCH];
    let mut group = c.benchmark_group("engine");
    group.throughput(Throughput::Elements(BATCH as u64));
    group.bench_function("64 writes, null device, inline", |b| {
        b.iter(|| {
            for (i, frame) in frames.iter().enumerate() {
                let transfer = Transfer {
                    frame: *frame,
                    offset: u64::from(*frame) * 2048 + 512,
                    len: 1024,
                    lba: i as u64 * 2,
                    keep: true,
                    more: i + 1 < BATCH,
                    ..Transfer::default()
                };
                context.submit_write(&transfer).unwrap();
            }
            assert_eq!(context.completions(&mut done).unwrap(), BATCH);
        });
    });
    let stats = context.statistics().unwrap();
    assert_eq!((stats.submitted, stats.errors), (stats.completed, 0));
}

/// Calls of the C interface, on a context that has 64 frames and no device.
mod c {
    use std::ffi::{CStr, c_int};
    use std::mem::zeroed;

    use unified::capi::types::*;
    use unified::capi::*;

    use super::BATCH;

    pub struct Calls {
        ctx: *mut unified_ctx,
        frames: [u32; BATCH],
        writes: [unified_write; BATCH],
    }

    fn done(rc: c_int) -> usize {
        // SAFETY: never NULL, ends in a zero byte, and is valid until this thread's next call.
        rc.try_into()
            .unwrap_or_else(|_| panic!("{:?}", unsafe { CStr::from_ptr(unified_last_error()) }))
    }

    impl Calls {
        pub fn new() -> Calls {
            // SAFETY: plain data, of which zero is a value; the size is set, and the places are live.
            let mut calls = unsafe {
                let mut config = zeroed::<unified_config>();
                config.size = size_of::<unified_config>() as u64;
                config.device = c"null:".as_ptr();
                config.frame_count = BATCH as u32;
                let mut ctx = std::ptr::null_mut();
                done(unified_ctx_create(&config, &mut ctx));
                Calls {
                    ctx,
                    frames: [0; BATCH],
                    writes: [zeroed::<unified_write>(); BATCH],
                }
            };
            calls.allocate();
            for (i, frame) in calls.frames.into_iter().enumerate() {
                calls.writes[i] = unified_write {
                    // SAFETY: a handle.
                    data: unsafe { unified_frame_data(calls.ctx, frame) },
                    lba: i as u64 * 2,
                    user_data: 0,
                    len: 1024,
                    frame,
                    flags: UNIFIED_KEEP,
                    reserved: 0,
                };
            }
            calls
        }

        /// All frames, in address order.
        pub fn allocate(&mut self) {
            for frame in &mut self.frames {
                // SAFETY: a handle and a live place.
                done(unsafe { unified_frame_alloc(self.ctx, frame) });
            }
            self.frames.sort_unstable();
        }

        pub fn release_each(&self) {
            for frame in self.frames {
                // SAFETY: a handle.
                done(unsafe { unified_frame_release(self.ctx, frame) });
            }
        }

        pub fn release_all(&self) {
            let frames = self.frames.as_ptr();
            // SAFETY: a handle, and as many elements as said.
            let rc = unsafe { unified_frames_release(self.ctx, frames, BATCH as u32) };
            assert_eq!(done(rc), BATCH);
        }

        /// The engine sees all of them with the last one.
        pub fn submit_each(&self) {
            for (i, w) in self.writes.iter().enumerate() {
                let more = if i + 1 < BATCH { UNIFIED_MORE } else { 0 };
                let flags = w.flags | more;
                // SAFETY: a handle; the library checks where the data lies.
                done(unsafe {
                    unified_submit_write(
                        self.ctx,
                        w.frame,
                        w.data,
                        w.len,
                        w.lba,
                        w.user_data,
                        flags,
                    )
                });
            }
        }

        pub fn submit_all(&self) {
            // SAFETY: a handle, and as many elements as said.
            let rc = unsafe { unified_submit_writes(self.ctx, self.writes.as_ptr(), BATCH as u32) };
            assert_eq!(done(rc), BATCH);
        }

        pub fn complete(&self) {
            // SAFETY: a handle, and room for as many as said; zero is a value.
            let rc = unsafe {
                let mut all = [zeroed::<unified_completion>(); BATCH];
                unified_completions(self.ctx, all.as_mut_ptr(), BATCH as u32)
            };
            assert_eq!(done(rc), BATCH);
        }
    }

    impl Drop for Calls {
        fn drop(&mut self) {
            // SAFETY: a handle.
            done(unsafe { unified_ctx_destroy(self.ctx) });
        }
    }
}

/// Single calls, and their batch forms.
fn calls(c: &mut Criterion) {
    type Step = fn(&mut c::Calls);
    let steps: [(&str, Step, Step); 4] = [
        (
            "release one by one",
            |calls| calls.release_each(),
            c::Calls::allocate,
        ),
        (
            "release 64 together",
            |calls| calls.release_all(),
            c::Calls::allocate,
        ),
        (
            "submit 64 one by one",
            |calls| calls.submit_each(),
            |calls| calls.complete(),
        ),
        (
            "submit 64 together",
            |calls| calls.submit_all(),
            |calls| calls.complete(),
        ),
    ];
    let mut group = c.benchmark_group("C");
    group.throughput(Throughput::Elements(BATCH as u64));
    for (name, step, after) in steps {
        let mut calls = c::Calls::new();
        group.bench_function(name, |b| {
            b.iter_custom(|rounds| {
                let mut spent = Duration::ZERO;
                for _ in 0..rounds {
                    let start = Instant::now();
                    step(&mut calls);
                    spent += start.elapsed();
                    after(&mut calls);
                }
                spent
            });
        });
    }
}

criterion_group! {
    name = hot_path;
    config = Criterion::default()
        .warm_up_time(Duration::from_millis(300))
        .measurement_time(Duration::from_secs(1))
        .sample_size(30);
    targets = ring, headers, turn, lengths, calls
}
criterion_main!(hot_path);
