//! The engine under load and at rest: random commands against a model, wakeups, full rings, idle cost.

mod common;
mod store;

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
use unified::lane::{Completion, Ready, Transfer};

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

/// What a command in flight is to end with.
struct Expected {
    status: u16,
    blocks: Range<usize>,
    frame: Option<u32>,
    bytes: Option<Vec<u8>>,
}

/// The device as it should be, and what is in flight.
struct Model<'a> {
    rig: &'a Rig,
    image: Vec<u8>,
    flying: HashMap<u64, Expected>,
    number: u32,
}

impl Model<'_> {
    fn settle(&mut self, count: usize) {
        self.rig.context.submit_pending().unwrap();
        for done in self.rig.take(count.min(self.flying.len())) {
            let Some(expected) = self.flying.remove(&done.user_data) else {
                panic!("not in flight, or twice: {done:?}");
            };
            assert_eq!((done.status, done.result), (expected.status, 0), "{done:?}");
            assert_eq!(done.frame, expected.frame, "{done:?}");
            if let Some(frame) = done.frame {
                if let Some(bytes) = expected.bytes {
                    let found = self.rig.bytes(frame, 0, bytes.len());
                    assert!(found == bytes, "read of blocks {:?}", expected.blocks);
                }
                self.rig.context.frame_release(frame).unwrap();
            }
        }
    }

    /// The device orders nothing: commands on the same blocks wait for each other.
    fn clear(&mut self, lba: usize, count: usize) -> Range<usize> {
        let blocks = lba..lba + count;
        let crosses = |e: &Expected| e.blocks.start < blocks.end && blocks.start < e.blocks.end;
        if self.flying.values().any(crosses) {
            self.settle(self.flying.len());
        }
        blocks
    }

    fn bytes_of(&self, blocks: &Range<usize>) -> Option<Range<usize>> {
        (blocks.end <= BLOCKS).then_some(blocks.start * BLOCK..blocks.end * BLOCK)
    }

    /// Submits until it is taken: EAGAIN is answered by taking a completion.
    fn submit(
        &mut self,
        expected: Expected,
        submit: impl Fn(&Context, u64) -> unified::Result<()>,
    ) {
        let id = self.rig.id();
        while let Err(error) = submit(&self.rig.context, id) {
            assert_eq!(error.errno(), libc::EAGAIN, "{error}");
            self.settle(1);
        }
        self.flying.insert(id, expected);
    }

    fn step(&mut self, command: &Command) {
        self.number += 1;
        match *command {
            Command::Write {
                lba,
                len,
                at,
                keep,
                fua,
                more,
            } => {
                let blocks = self.clear(lba, len.div_ceil(BLOCK));
                let frame = self.frame();
                let bytes = payload(self.number, len);
                self.rig.fill(frame, at, &bytes);
                let inside = self.bytes_of(&blocks);
                if let Some(range) = inside.clone() {
                    self.image[range.clone()].fill(0);
                    self.image[range.start..range.start + len].copy_from_slice(&bytes);
                }
                let expected = Expected {
                    status: if inside.is_some() { 0 } else { 0x080 },
                    blocks,
                    frame: keep.then_some(frame),
                    bytes: None,
                };
                let transfer = Transfer {
                    keep,
                    fua,
                    more,
                    ..self.rig.transfer(frame, at, len, lba as u64)
                };
                self.submit(expected, |context, user_data| {
                    context.submit_write(&Transfer {
                        user_data,
                        ..transfer
                    })
                });
            }
            Command::Read { lba, blocks } => self.look(lba, blocks, None, false),
            Command::Compare { lba, blocks, flip } => self.look(lba, blocks, flip, true),
            Command::Zeroes { lba, blocks } | Command::Deallocate { lba, blocks } => {
                let range = self.clear(lba, blocks);
                let inside = self.bytes_of(&range);
                if let Some(bytes) = inside.clone() {
                    self.image[bytes].fill(0);
                }
                let expected = Expected {
                    status: if inside.is_some() { 0 } else { 0x080 },
                    blocks: range,
                    frame: None,
                    bytes: None,
                };
                let (lba, blocks) = (lba as u64, blocks as u32);
                let zeroes = matches!(command, Command::Zeroes { .. });
                if !zeroes && self.rig.context.statistics().unwrap().frames.free == 0 {
                    self.settle(self.flying.len());
                }
                self.submit(expected, |context, id| match zeroes {
                    true => context.submit_write_zeroes(lba, blocks, id % 2 == 0, id),
                    false => context.submit_deallocate(lba, blocks, id),
                });
            }
            Command::Flush => {
                let expected = Expected {
                    status: 0,
                    blocks: 0..0,
                    frame: None,
                    bytes: None,
                };
                self.submit(expected, |context, id| context.submit_flush(id));
            }
            Command::Take(count) => self.settle(count),
        }
        let f = self.rig.context.statistics().unwrap().frames;
        let frames = self.rig.context.info().frame_count;
        assert_eq!(f.free + f.held + f.in_flight, u64::from(frames), "{f:?}");
        assert_eq!((f.held, f.filled), (0, 0), "{f:?}");
    }

    fn frame(&mut self) -> u32 {
        if self.rig.context.statistics().unwrap().frames.free == 0 {
            self.settle(self.flying.len());
        }
        self.rig.stale_frame()
    }

    /// A read, or a compare with one byte changed or none.
    fn look(&mut self, lba: usize, count: usize, flip: Option<usize>, compare: bool) {
        let blocks = self.clear(lba, count);
        let frame = self.frame();
        let mut bytes = None;
        let mut status = 0x080;
        if let Some(range) = self.bytes_of(&blocks) {
            let mut there = self.image[range].to_vec();
            status = 0;
            if compare {
                if let Some(at) = flip {
                    let at = at % there.len();
                    there[at] ^= 0x80;
                    status = 0x285;
                }
                self.rig.fill(frame, 0, &there);
            }
            bytes = Some(there);
        }
        let expected = Expected {
            status,
            blocks,
            frame: Some(frame),
            bytes,
        };
        let transfer = self.rig.transfer(frame, 0, count * BLOCK, lba as u64);
        self.submit(expected, |context, user_data| {
            let transfer = Transfer {
                user_data,
                ..transfer
            };
            match compare {
                true => context.submit_compare(&transfer),
                false => context.submit_read(&transfer),
            }
        });
    }
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

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_sequence_leaves_what_a_model_says(
        threaded in any::<bool>(), commands in proptest::collection::vec(command(), 1..120),
    ) {
        let _alone = alone();
        let file = Scratch::new("/dev/shm", "model");
        let mut config = small_config(file.path(), DRIVES[usize::from(threaded)]);
        config.device.file_size = (BLOCKS * BLOCK) as u64;
        let rig = Rig::open(&config);
        let mut model = Model {
            rig: &rig,
            image: vec![0; BLOCKS * BLOCK],
            flying: HashMap::new(),
            number: 0,
        };
        for command in &commands {
            model.step(command);
        }
        model.settle(model.flying.len());
        assert!(model.flying.is_empty());
        let image = model.image;
        drop(rig);
        assert!(fs::read(&file.0).unwrap() == image);
    }
}

/// Clock ticks that the one engine thread of this process has used.
fn engine_ticks() -> u64 {
    let mut found = Vec::new();
    for task in fs::read_dir("/proc/self/task").unwrap() {
        let Ok(stat) = fs::read_to_string(task.unwrap().path().join("stat")) else {
            continue;
        };
        // The name stands in parentheses; utime and stime are the 12th and 13th field behind it.
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

#[test]
fn an_idle_engine_costs_nothing() {
    let _alone = alone();
    for target in [Target::null(), Target::disk()] {
        let rig = target.open(Drive::Thread);
        assert_idle(&rig.context, "before the first command");
        for lba in 0..100 {
            succeeded(&rig.write(lba, 0, &[3; 512]));
        }
        assert_idle(&rig.context, "after a hundred");
    }
}

/// Pauses of 0 to 60 us, at random, often none: to meet the other side in every state between awake
/// and asleep.
struct Pauses(u64);

impl Pauses {
    fn next(&mut self) {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        match self.0 % 8 {
            0 => std::thread::sleep(Duration::from_micros(self.0 >> 8 & 63)),
            1..4 => {
                let until = Instant::now() + Duration::from_nanos(self.0 >> 8 & 0x3fff);
                while Instant::now() < until {
                    std::hint::spin_loop();
                }
            }
            _ => {}
        }
    }
}

/// One command at a time, so that either side falls asleep between any two.
#[test]
fn no_wakeup_is_lost_in_a_ping_pong() {
    let _alone = alone();
    let memory = Target::memory();
    for (path, count) in [("null:".to_string(), 20_000), (memory.path.clone(), 4_000)] {
        within(Duration::from_secs(90), move || {
            let rig = Rig::open(&storage_config(&path, Drive::Thread));
            let frame = rig.stale_frame();
            let mut pauses = Pauses(0x1234_5678_9abc_def1);
            for i in 0..count {
                let transfer = Transfer {
                    keep: true,
                    ..rig.transfer(frame, 0, 512, i % 1000)
                };
                rig.context.submit_write(&transfer).unwrap();
                let done = rig.one();
                assert_eq!((done.user_data, done.status), (transfer.user_data, 0));
                pauses.next();
            }
            rig.context.frame_release(frame).unwrap();
            let stats = rig.context.statistics().unwrap();
            assert_eq!((stats.submitted, stats.completed), (count, count));
            assert!(stats.sleeps > 0, "the engine did sleep: {stats:#?}");
        });
    }
}

/// A submitting and a taking thread, each pausing on its own, over rings that are often full and often
/// empty.
#[test]
fn no_wakeup_is_lost_between_two_threads() {
    const COUNT: u64 = 20_000;
    let _alone = alone();
    within(Duration::from_secs(90), || {
        let context = Context::open(&small_config("null:", Drive::Thread)).unwrap();
        let mut seen = vec![0u8; COUNT as usize];
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let mut pauses = Pauses(77);
                for user_data in 0..COUNT {
                    let frame = loop {
                        match context.frame_alloc() {
                            Ok(frame) => break frame,
                            Err(error) => assert_eq!(error.errno(), libc::ENOBUFS, "{error}"),
                        }
                        std::thread::yield_now();
                    };
                    let transfer = Transfer {
                        frame,
                        offset: u64::from(frame) * 2048,
                        len: 2048,
                        user_data,
                        ..Transfer::default()
                    };
                    while let Err(error) = context.submit_write(&transfer) {
                        assert_eq!(error.errno(), libc::EAGAIN, "{error}");
                        std::thread::yield_now();
                    }
                    pauses.next();
                }
            });
            let mut pauses = Pauses(99);
            let mut taken = 0;
            let mut done = [Completion::default(); 5];
            let until = Instant::now() + Duration::from_secs(80);
            while taken < COUNT {
                assert!(Instant::now() < until, "{:#?}", context.statistics());
                let (start, longest) = (Instant::now(), Duration::from_secs(10));
                let ready = context.wait(Ready::COMPLETIONS, Some(longest)).unwrap();
                assert!(
                    ready != Ready::NONE && start.elapsed() < longest,
                    "slept for {longest:?}: {:#?}",
                    context.statistics()
                );
                let count = context.completions(&mut done).unwrap();
                for done in &done[..count] {
                    succeeded(done);
                    seen[done.user_data as usize] += 1;
                }
                taken += count as u64;
                pauses.next();
            }
        });
        assert!(seen.iter().all(|n| *n == 1), "each exactly once");
        let stats = context.statistics().unwrap();
        assert_eq!((stats.submitted, stats.completed), (COUNT, COUNT));
        assert_eq!((stats.frames.free, stats.frames.in_flight), (64, 0));
    });
}

/// Submits writes of one frame each until the rings take no more for a while. How many they took.
fn submit_until_full(rig: &Rig) -> Vec<u64> {
    let mut sent = Vec::new();
    let mut refused = 0;
    while refused < 20 {
        let frame = rig.stale_frame();
        let transfer = rig.transfer(frame, 0, 512, 0);
        match rig.context.submit_write(&transfer) {
            Ok(()) => {
                sent.push(transfer.user_data);
                refused = 0;
            }
            Err(error) => {
                assert_eq!(error.errno(), libc::EAGAIN, "{error}");
                rig.context.frame_release(frame).unwrap();
                refused += 1;
                std::thread::sleep(Duration::from_millis(2));
            }
        }
    }
    sent
}

#[test]
fn a_cq_that_nobody_empties_loses_nothing() {
    let _alone = alone();
    let memory = Target::memory();
    for path in ["null:", &memory.path] {
        for drive in DRIVES {
            let config = Config {
                sq_entries: 16,
                cq_entries: 8,
                ..storage_config(path, drive)
            };
            let rig = Rig::open(&config);
            for round in 0..3 {
                let sent = submit_until_full(&rig);
                // A thread moves what the CQ holds; nobody pumps an inline engine here.
                let fit = if drive == Drive::Thread { 16 + 8 } else { 16 };
                assert_eq!(sent.len(), fit, "{path} {drive:?}");
                if drive == Drive::Thread && round == 0 {
                    assert_idle(&rig.context, "with a full CQ");
                }
                let mut ids: Vec<u64> = rig.take(fit).iter().map(|c| c.user_data).collect();
                ids.sort_unstable();
                assert_eq!(ids, sent);
                rig.check_sums(0);
            }
        }
    }
}

/// Destroyed with a full CQ, a full SQ, and commands in flight: it ends.
#[test]
fn a_context_is_destroyed_in_any_state() {
    let _alone = alone();
    let memory = Target::memory();
    for path in ["null:".to_string(), memory.path.clone()] {
        for drive in DRIVES {
            for count in [1, 8, 24] {
                let config = Config {
                    sq_entries: 16,
                    cq_entries: 8,
                    ..storage_config(&path, drive)
                };
                within(Duration::from_secs(20), move || {
                    let context = Context::open(&config).unwrap();
                    for _ in 0..count {
                        let frame = context.frame_alloc().unwrap();
                        let transfer = Transfer {
                            frame,
                            offset: u64::from(frame) * 4096,
                            len: 4096,
                            ..Transfer::default()
                        };
                        if let Err(error) = context.submit_write(&transfer) {
                            assert_eq!(error.errno(), libc::EAGAIN, "{error}");
                        }
                    }
                    let stats = context.statistics().unwrap();
                    assert_eq!(stats.frames.free + count, 128);
                    drop(context);
                });
            }
        }
    }
}
