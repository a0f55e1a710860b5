//! Runs of entries: one operation for the device, one completion for each entry, each with its own truth.

mod common;

use std::fs;
use std::time::{Duration, Instant};

use common::{Scratch, payload};
use unified::config::{Config, Drive};
use unified::context::Context;
use unified::lane::{Completion, Ready, Transfer};
use unified::storage::command::status;

const FRAME: u32 = 2048;
const BLOCKS: u64 = 4;

fn open(path: &str, drive: Drive, bytes: u64) -> Context {
    let mut config = Config {
        drive,
        ..Config::default()
    };
    config.device.path = path.into();
    config.device.file_size = bytes;
    Context::open(&config).unwrap()
}

/// Whole frames one after the other, in memory and on the device.
fn submit(context: &Context, count: u32, first_lba: u64) -> Vec<Vec<u8>> {
    let mut written = Vec::new();
    for i in 0..count {
        let frame = context.frame_alloc().unwrap();
        let bytes = payload(first_lba as u32 + i, FRAME as usize);
        let offset = u64::from(frame) * u64::from(FRAME);
        context.data().write(offset as usize, &bytes);
        context
            .submit_write(&Transfer {
                frame,
                offset,
                len: FRAME,
                lba: first_lba + u64::from(i) * BLOCKS,
                user_data: first_lba + u64::from(i),
                more: i + 1 < count,
                ..Transfer::default()
            })
            .unwrap();
        written.push(bytes);
    }
    written
}

fn take(context: &Context, count: usize) -> Vec<Completion> {
    let mut all = Vec::new();
    let mut batch = [Completion::default(); 64];
    let start = Instant::now();
    while all.len() < count {
        assert!(start.elapsed() < Duration::from_secs(10), "{all:?}");
        context
            .wait(Ready::COMPLETIONS, Some(Duration::from_millis(100)))
            .unwrap();
        let got = context.completions(&mut batch).unwrap();
        all.extend_from_slice(&batch[..got]);
    }
    all
}

#[test]
fn a_run_is_one_operation_and_many_completions() {
    for drive in [Drive::Inline, Drive::Thread] {
        for dir in [env!("CARGO_TARGET_TMPDIR"), "/dev/shm"] {
            let file = Scratch::new(dir, "run");
            let context = open(file.path(), drive, 4 << 20);
            let written = submit(&context, 64, 8);
            let done = take(&context, 64);
            for (i, completion) in done.iter().enumerate() {
                assert_eq!(completion.user_data, 8 + i as u64);
                assert_eq!((completion.status, completion.len), (0, FRAME));
            }
            let stats = context.statistics().unwrap();
            assert_eq!((stats.submitted, stats.completed), (64, 64));
            // The engine's thread may have seen the first ones alone.
            assert!(stats.operations <= 8, "{} operations", stats.operations);
            assert_eq!(stats.bytes_written, 64 * u64::from(FRAME));
            let stored = fs::read(file.path()).unwrap();
            assert!(stored[8 * 512..][..64 * FRAME as usize] == written.concat()[..]);
        }
    }
}

/// As packets of the payload layout: their blocks follow one another, their memory does not.
fn submit_in_pieces(context: &Context, count: u32) -> Vec<Vec<u8>> {
    let mut frames: Vec<u32> = (0..count).map(|_| context.frame_alloc().unwrap()).collect();
    frames.reverse();
    let mut written = Vec::new();
    for (i, frame) in frames.into_iter().enumerate() {
        let bytes = payload(i as u32, 1000);
        let offset = u64::from(frame) * u64::from(FRAME) + 512;
        context.data().write(offset as usize, &bytes);
        context
            .submit_write(&Transfer {
                frame,
                offset,
                len: 1000,
                lba: i as u64 * 2,
                user_data: i as u64,
                more: i + 1 < count as usize,
                ..Transfer::default()
            })
            .unwrap();
        written.push(bytes);
    }
    written
}

#[test]
fn memory_in_pieces_is_gathered_into_one_operation() {
    for drive in [Drive::Inline, Drive::Thread] {
        for dir in [env!("CARGO_TARGET_TMPDIR"), "/dev/shm"] {
            let file = Scratch::new(dir, "pieces");
            let context = open(file.path(), drive, 1 << 20);
            let written = submit_in_pieces(&context, 200);
            let done = take(&context, 200);
            assert!(done.iter().all(|c| (c.status, c.len) == (0, 1024)));
            let stats = context.statistics().unwrap();
            assert_eq!((stats.completed, stats.bounced), (200, 0));
            if kernel_gathers() {
                // 64 pieces an operation; the engine's thread may have seen the first ones alone.
                assert!(stats.operations <= 10, "{} operations", stats.operations);
            } else {
                assert_eq!(stats.operations, 200);
            }
            let stored = fs::read(file.path()).unwrap();
            for (i, bytes) in written.iter().enumerate() {
                let slot = &stored[i * 1024..][..1024];
                assert!(slot[..1000] == bytes[..], "payload {i}");
                assert!(slot[1000..].iter().all(|b| *b == 0), "padding {i}");
            }
        }
    }
}

/// WRITEV_FIXED is of kernel 6.15.
fn kernel_gathers() -> bool {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
    let mut parts = release
        .split('.')
        .map(|part| part.parse::<u32>().unwrap_or(0));
    (parts.next().unwrap(), parts.next().unwrap()) >= (6, 15)
}

#[test]
fn entries_that_do_not_follow_stay_apart() {
    let file = Scratch::new(env!("CARGO_TARGET_TMPDIR"), "apart");
    let context = open(file.path(), Drive::Inline, 4 << 20);
    for i in 0..8 {
        submit(&context, 1, 8 + i * 100);
    }
    take(&context, 8);
    assert_eq!(context.statistics().unwrap().operations, 8);
}

/// The same for a run in pieces.
#[test]
fn a_run_in_pieces_that_fails_is_tried_entry_by_entry() {
    let Some(small) = common::SmallDisk::new("pieces", 4 << 20) else {
        return;
    };
    let path = small.dir.join("device");
    let context = open(path.to_str().unwrap(), Drive::Inline, 1 << 20);
    let file = fs::OpenOptions::new().write(true).open(&path).unwrap();
    file.set_len(16 * 1024).unwrap();
    small.fill();
    let written = submit_in_pieces(&context, 40);
    let done = take(&context, 40);
    let stored = fs::read(&path).unwrap();
    let mut failed = 0;
    for completion in &done {
        let i = completion.user_data as usize;
        if completion.status == 0 {
            assert!(stored[i * 1024..][..1000] == written[i][..], "{i}");
        } else {
            assert_eq!(completion.result, -libc::ENOSPC);
            failed += 1;
        }
    }
    assert!((1..=24).contains(&failed), "{failed} failed");
    assert_eq!(context.statistics().unwrap().frames.free, 4096);
}

/// The file ends in the middle of the run: what it holds is written, the rest fails, each entry on its own.
#[test]
fn a_run_that_fails_is_tried_entry_by_entry() {
    let small = common::SmallDisk::new("split", 4 << 20);
    let Some(small) = small else {
        return;
    };
    // The library fallocates, so the test cuts the file and fills the disk.
    let path = small.dir.join("device");
    let context = open(path.to_str().unwrap(), Drive::Inline, 1 << 20);
    let file = fs::OpenOptions::new().write(true).open(&path).unwrap();
    file.set_len(16 * u64::from(FRAME)).unwrap();
    small.fill();
    let written = submit(&context, 32, 0);
    let mut done = take(&context, 32);
    done.sort_by_key(|completion| completion.user_data);
    let stored = fs::read(&path).unwrap();
    let mut failed = 0;
    for (i, completion) in done.iter().enumerate() {
        assert_eq!(completion.user_data, i as u64);
        if completion.status == 0 {
            let at = i * FRAME as usize;
            assert!(stored[at..at + FRAME as usize] == written[i][..], "{i}");
        } else {
            assert_eq!(completion.status, status::CAPACITY_EXCEEDED);
            assert_eq!(completion.result, -libc::ENOSPC);
            failed += 1;
        }
    }
    assert!((1..=16).contains(&failed), "{failed} failed");
    let stats = context.statistics().unwrap();
    assert_eq!((stats.completed, stats.errors), (32, failed));
    assert_eq!(stats.frames.free, 4096);
}

#[test]
fn a_device_that_was_closed_can_be_opened_at_once() {
    let file = Scratch::new("/dev/shm", "reopened");
    for drive in [Drive::Inline, Drive::Thread] {
        for _ in 0..20 {
            let context = open(file.path(), drive, 1 << 20);
            submit(&context, 4, 0);
            assert!(
                take(&context, 4)
                    .iter()
                    .all(|c| c.status == status::SUCCESS)
            );
        }
    }
}
