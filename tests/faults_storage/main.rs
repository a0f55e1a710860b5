//! Storage that fails: every fault is made for real. No command hangs, no byte is wrong, every entry gets its own
//! truth, every frame comes back once, and the device is used again when the fault is gone.

#[path = "../common/mod.rs"]
mod common;
#[path = "../store/mod.rs"]
mod store;

mod devices;
mod rings;

use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::resource::{Resource, getrlimit, setrlimit};

use common::{Scratch, is_root, payload};
use store::{
    DRIVES, LoopDevice, Memory, Rig, STALE, can_loop, run, storage_config, succeeded, try_run,
};
use unified::config::{Config, Drive};
use unified::context::Context;
use unified::lane::{Completion, Ready, Transfer};
use unified::storage::command::status;

const FRAME: usize = 4096;

/// One frame's entry of a batch, and what became of it.
struct Entry {
    at: u64,
    bytes: Vec<u8>,
    done: Completion,
}

impl Entry {
    fn failed(&self) -> bool {
        self.done.status != 0
    }
}

/// Whole frames that follow one another in memory and from byte `at` of the device on; as one run, or each
/// submitted and taken by itself.
fn batch(rig: &Rig, at: u64, count: usize, merged: bool, write: bool) -> Vec<Entry> {
    let block = rig.block() as u64;
    let mut entries = Vec::new();
    let mut frames = Vec::new();
    for i in 0..count {
        let at = at + (i * FRAME) as u64;
        let frame = rig.stale_frame();
        let mut bytes = payload(at as u32, FRAME);
        if write {
            rig.fill(frame, 0, &bytes);
        }
        let transfer = Transfer {
            more: merged && i + 1 < count,
            ..rig.transfer(frame, 0, FRAME, at / block)
        };
        match write {
            true => rig.context.submit_write(&transfer).unwrap(),
            false => rig.context.submit_read(&transfer).unwrap(),
        }
        let done = match merged {
            true => Completion {
                user_data: transfer.user_data,
                ..Completion::default()
            },
            false => rig.one(),
        };
        assert_eq!(done.user_data, transfer.user_data);
        if !write && !merged {
            bytes = rig.bytes(frame, 0, FRAME);
        }
        frames.push(frame);
        entries.push(Entry { at, bytes, done });
    }
    if merged {
        for done in rig.take(count) {
            let found = entries
                .iter()
                .position(|e| e.done.user_data == done.user_data);
            let found = found.unwrap_or_else(|| panic!("not submitted: {done:?}"));
            entries[found].done = done;
            if !write {
                entries[found].bytes = rig.bytes(frames[found], 0, FRAME);
            }
        }
    }
    for (entry, frame) in entries.iter().zip(frames) {
        assert_eq!(
            entry.done.frame,
            (!write).then_some(frame),
            "{:?}",
            entry.done
        );
        if !write {
            rig.context.frame_release(frame).unwrap();
        }
    }
    entries
}

/// What a child that this test starts of itself is to do.
fn child_task() -> Option<String> {
    std::env::var("UNIFIED_FAULT_CHILD").ok()
}

/// This test again, in a process of its own that is ended when it is dropped.
struct Own(Child);

impl Own {
    fn start(test: &str, task: &str) -> Own {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command
            .args([test, "--nocapture"])
            .env("UNIFIED_FAULT_CHILD", task)
            .stdout(Stdio::piped());
        Own(command.spawn().unwrap())
    }

    /// What it printed; it must end well, and in time.
    fn finish(mut self, patience: Duration) -> String {
        let start = Instant::now();
        let status = loop {
            if let Some(status) = self.0.try_wait().unwrap() {
                break status;
            }
            assert!(start.elapsed() < patience, "not done after {patience:?}");
            std::thread::sleep(Duration::from_millis(20));
        };
        let mut said = String::new();
        self.0
            .stdout
            .take()
            .unwrap()
            .read_to_string(&mut said)
            .unwrap();
        assert!(status.success(), "{status}: {said}");
        said
    }
}

impl Drop for Own {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
