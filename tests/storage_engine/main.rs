//! The engine under load and at rest: random commands against a model, wakeups, full rings, idle cost.

#[path = "../common/mod.rs"]
mod common;
#[path = "../store/mod.rs"]
mod store;

mod ends;
mod model;
mod wakeups;

use std::collections::HashMap;
use std::fs;
use std::ops::Range;
use std::sync::{Mutex, MutexGuard};
use std::time::{Duration, Instant};

use proptest::prelude::*;

use common::{Scratch, payload};
use store::{DRIVES, Rig, Target, storage_config, succeeded, within};
use unified::config::{Config, Drive};
use unified::context::Context;
use unified::lane::{Blocks, Completion, Ready, Transfer};

/// One test of this file at a time: they look at threads of the process, and at time.
fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(|e| e.into_inner())
}

const BLOCK: usize = 512;
const BLOCKS: usize = 64;

#[derive(Debug, Clone)]
enum Command {
    Write {
        lba: usize,
        len: usize,
        at: usize,
        keep: bool,
        fua: bool,
        more: bool,
    },
    Read {
        lba: usize,
        blocks: usize,
    },
    Compare {
        lba: usize,
        blocks: usize,
        /// Which byte is changed, if any.
        flip: Option<usize>,
    },
    Zeroes {
        lba: usize,
        blocks: usize,
    },
    Deallocate {
        lba: usize,
        blocks: usize,
    },
    Flush,
    /// Wait for so many, or for all that are in flight.
    Take(usize),
}

fn command() -> impl Strategy<Value = Command> {
    // LBAs reach two blocks beyond the end.
    let lba = 0..BLOCKS + 2;
    prop_oneof![
        6 => (lba.clone(), 1..=1536usize, 0..=512usize, any::<[bool; 3]>()).prop_map(
            |(lba, len, at, [keep, fua, more])| Command::Write { lba, len, at, keep, fua, more }
        ),
        3 => (lba.clone(), 1..=4usize).prop_map(|(lba, blocks)| Command::Read { lba, blocks }),
        3 => (lba.clone(), 1..=4usize, proptest::option::of(0..4 * BLOCK))
            .prop_map(|(lba, blocks, flip)| Command::Compare { lba, blocks, flip }),
        1 => (lba.clone(), 1..=40usize).prop_map(|(lba, blocks)| Command::Zeroes { lba, blocks }),
        1 => (lba, 1..=40usize).prop_map(|(lba, blocks)| Command::Deallocate { lba, blocks }),
        1 => Just(Command::Flush),
        1 => (0..10usize).prop_map(Command::Take),
    ]
}

fn small_config(path: &str, drive: Drive) -> Config {
    Config {
        frame_size: 2048,
        frame_count: 64,
        sq_entries: 8,
        cq_entries: 8,
        ..storage_config(path, drive)
    }
}

/// Clock ticks that the one engine thread of this process has used.
fn engine_ticks() -> u64 {
    let mut found = Vec::new();
    for task in fs::read_dir("/proc/self/task").unwrap() {
        let Ok(stat) = fs::read_to_string(task.unwrap().path().join("stat")) else {
            continue;
        };
        // The name stands in parentheses; utime and stime are the 12th and 13th field after it.
        let (head, rest) = stat.rsplit_once(')').unwrap();
        if head.ends_with("(unified-engine") {
            let fields: Vec<&str> = rest.split_whitespace().collect();
            let ticks = |i: usize| fields[i].parse::<u64>().unwrap();
            found.push(ticks(11) + ticks(12));
        }
    }
    assert_eq!(found.len(), 1, "one engine thread");
    found[0]
}

/// Over one second the engine's thread uses next to nothing.
fn assert_idle(context: &Context, when: &str) {
    std::thread::sleep(Duration::from_millis(50));
    let (ticks, sleeps) = (engine_ticks(), context.statistics().unwrap().sleeps);
    std::thread::sleep(Duration::from_secs(1));
    let used = engine_ticks() - ticks;
    let woken = context.statistics().unwrap().sleeps - sleeps;
    assert!(used < 2, "{used} ticks in a second, {when}");
    assert!(woken <= 1, "woke {woken} times in a second, {when}");
}
