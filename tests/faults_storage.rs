//! Storage that fails: every fault is made for real. No command hangs, no byte is wrong, every entry gets its own
//! truth, every frame comes back once, and the device is used again when the fault is gone.

mod common;
mod store;

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
/// Entries of a batch: in a run they are one operation of 128 KiB.
const BATCH: usize = 32;

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

/// What a failed command must say.
fn refused(entry: &Entry, status: u16, errno: i32) {
    let done = entry.done;
    assert_eq!(
        (done.status, done.result),
        (status, -errno),
        "at {}: {done:?}",
        entry.at
    );
}

/// Every entry that succeeded is on the medium as it was given; returns how many failed.
fn check_stored(entries: &[Entry], medium: &Path, status: u16, errno: i32) -> usize {
    let mut file = File::open(medium).unwrap();
    for entry in entries {
        if entry.failed() {
            refused(entry, status, errno);
            continue;
        }
        assert_eq!((entry.done.result, entry.done.len as usize), (0, FRAME));
        let mut there = vec![0; FRAME];
        file.seek(SeekFrom::Start(entry.at)).unwrap();
        file.read_exact(&mut there).unwrap();
        assert!(there == entry.bytes, "wrong bytes at {}", entry.at);
    }
    entries.iter().filter(|e| e.failed()).count()
}

/// Both drives, each entry by itself and in a run.
fn each_way(mut test: impl FnMut(Drive, bool)) {
    for drive in DRIVES {
        for merged in [false, true] {
            eprintln!("{drive:?}, merged: {merged}");
            test(drive, merged);
        }
    }
}

/// A loop device over a file somewhere.
struct Loop(String);

impl Loop {
    fn over(path: &Path) -> Loop {
        Loop(run(
            "losetup",
            &["--find", "--show", path.to_str().unwrap()],
        ))
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        let _ = try_run("losetup", &["--detach", &self.0]);
    }
}

/// The file under a loop device is cut: what is beyond cannot be read any more.
#[test]
fn blocks_that_cannot_be_read() {
    if !can_loop("blocks_that_cannot_be_read") {
        return;
    }
    const CUT: u64 = 1 << 20;
    each_way(|drive, merged| {
        let device = LoopDevice::new(4 << 20, 512);
        let rig = Rig::open(&storage_config(&device.node, drive));
        // Half of the batch before the place where it will be cut, half behind.
        let start = CUT - (BATCH / 2 * FRAME) as u64;
        let written = batch(&rig, start, BATCH, true, true);
        assert_eq!(check_stored(&written, &device.backing.0, 0, 0), 0);
        let backing = File::options().write(true).open(&device.backing.0).unwrap();
        backing.set_len(CUT).unwrap();
        let read = batch(&rig, start, BATCH, merged, false);
        for (entry, old) in read.iter().zip(&written) {
            if entry.at < CUT {
                succeeded(&entry.done);
                assert!(entry.bytes == old.bytes, "{}", entry.at);
            } else {
                refused(entry, status::UNRECOVERED_READ, libc::EIO);
            }
        }
        assert_eq!(rig.context.statistics().unwrap().errors, BATCH as u64 / 2);
        // A write brings the blocks back.
        let again = batch(&rig, start, BATCH, merged, true);
        assert_eq!(check_stored(&again, &device.backing.0, 0, 0), 0);
        for (entry, old) in batch(&rig, start, BATCH, merged, false).iter().zip(&again) {
            succeeded(&entry.done);
            assert!(entry.bytes == old.bytes, "{}", entry.at);
        }
    });
}

/// The device itself becomes smaller than it was when it was opened.
#[test]
fn a_device_that_shrinks() {
    if !can_loop("a_device_that_shrinks") {
        return;
    }
    const CUT: u64 = 1 << 20;
    each_way(|drive, merged| {
        let device = LoopDevice::new(4 << 20, 512);
        let rig = Rig::open(&storage_config(&device.node, drive));
        let backing = File::options().write(true).open(&device.backing.0).unwrap();
        backing.set_len(CUT).unwrap();
        run("losetup", &["--set-capacity", &device.node]);
        let start = CUT - (BATCH / 2 * FRAME) as u64;
        let written = batch(&rig, start, BATCH, merged, true);
        let failed = check_stored(
            &written,
            &device.backing.0,
            status::CAPACITY_EXCEEDED,
            libc::ENOSPC,
        );
        assert_eq!(failed, BATCH / 2);
        for entry in batch(&rig, start, BATCH, merged, false) {
            match entry.at < CUT {
                true => assert!(!entry.failed() && entry.bytes == payload(entry.at as u32, FRAME)),
                false => refused(&entry, status::UNRECOVERED_READ, libc::EIO),
            }
        }
        backing.set_len(4 << 20).unwrap();
        run("losetup", &["--set-capacity", &device.node]);
        let again = batch(&rig, start, BATCH, merged, true);
        assert_eq!(check_stored(&again, &device.backing.0, 0, 0), 0);
    });
}

/// A file without room for its blocks. The first write of a run is a short one there.
#[test]
fn a_file_system_that_is_full() {
    if !is_root("a_file_system_that_is_full") {
        return;
    }
    each_way(|drive, merged| {
        // Room for half a batch, and not at a frame's edge of the run.
        let room = (BATCH / 2 * FRAME) as u64;
        let memory = Memory::new(room);
        let path = memory.sparse(4 << 20);
        let rig = Rig::open(&storage_config(path.to_str().unwrap(), drive));
        let written = batch(&rig, 0, BATCH, merged, true);
        let failed = check_stored(&written, &path, status::CAPACITY_EXCEEDED, libc::ENOSPC);
        assert_eq!(failed, BATCH / 2, "as much as there is room for");
        assert_eq!(rig.context.statistics().unwrap().errors, failed as u64);
        memory.mount("remount,size=8m");
        let again = batch(&rig, 0, BATCH, merged, true);
        assert_eq!(check_stored(&again, &path, 0, 0), 0);
    });
}

/// A block device without room beneath it, as thin provisioning has it; and a flush that finds what another
/// program's writes could not do.
#[test]
fn a_block_device_whose_backing_is_full() {
    if !can_loop("a_block_device_whose_backing_is_full") {
        return;
    }
    each_way(|drive, merged| {
        let memory = Memory::new((BATCH / 2 * FRAME) as u64);
        let path = memory.sparse(4 << 20);
        let device = Loop::over(&path);
        let rig = Rig::open(&storage_config(&device.0, drive));
        // Every second frame's blocks take all the room. The loop driver says nothing of a write that it could
        // do in part, so each operation here can be done as a whole or not even begun.
        for i in (1..BATCH).step_by(2) {
            let entries = batch(&rig, (i * FRAME) as u64, 1, false, true);
            assert_eq!(check_stored(&entries, &path, 0, 0), 0);
        }
        let operations = rig.context.statistics().unwrap().operations;
        let written = batch(&rig, 0, BATCH, merged, true);
        check_stored(&written, &path, status::CAPACITY_EXCEEDED, libc::ENOSPC);
        for (i, entry) in written.iter().enumerate() {
            assert_eq!(entry.failed(), i % 2 == 0, "{i}");
        }
        let operations = rig.context.statistics().unwrap().operations - operations;
        assert_eq!(
            operations,
            (BATCH + usize::from(merged)) as u64,
            "the run, then each"
        );
        let mut other = File::options().write(true).open(&device.0).unwrap();
        other.seek(SeekFrom::Start(2 << 20)).unwrap();
        other.write_all(&[1; FRAME]).unwrap();
        let flush = || {
            rig.context.submit_flush(rig.id()).unwrap();
            rig.one()
        };
        let done = flush();
        assert_eq!(
            (done.status, done.result),
            (status::WRITE_FAULT, -libc::EIO),
            "{done:?}"
        );
        // Told once: the next one is about what came since.
        succeeded(&flush());
        memory.mount("remount,size=8m");
        let again = batch(&rig, 0, BATCH, merged, true);
        assert_eq!(check_stored(&again, &path, 0, 0), 0);
        succeeded(&flush());
    });
}

/// A field of /proc/thread-self/status.
fn own_status(name: &str) -> u64 {
    let text = fs::read_to_string("/proc/thread-self/status").unwrap();
    let line = text.lines().find_map(|l| l.strip_prefix(name)).unwrap();
    u64::from_str_radix(line.trim_start_matches(':').trim(), 16).unwrap()
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
            .args([test, "--exact", "--nocapture"])
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

/// RLIMIT_FSIZE: an errno, and not the signal whose default ends the program.
#[test]
fn a_file_size_limit_does_not_kill() {
    const TEST: &str = "a_file_size_limit_does_not_kill";
    let Some(_) = child_task() else {
        let said = Own::start(TEST, "limit").finish(Duration::from_secs(60));
        assert!(said.contains("limit was met"), "{said}");
        return;
    };
    const LIMIT: u64 = (BATCH / 2 * FRAME) as u64;
    let (_, hard) = getrlimit(Resource::RLIMIT_FSIZE).unwrap();
    let limit = |bytes| setrlimit(Resource::RLIMIT_FSIZE, bytes, hard).unwrap();
    let masks = || ["SigBlk", "SigPnd", "ShdPnd"].map(own_status);
    let before = masks();
    each_way(|drive, merged| {
        for dir in [env!("CARGO_TARGET_TMPDIR"), "/dev/shm"] {
            let file = Scratch::new(dir, "limit");
            File::create(&file.0).unwrap().set_len(1 << 20).unwrap();
            limit(LIMIT);
            let rig = Rig::open(&storage_config(file.path(), drive));
            let written = batch(&rig, 0, BATCH, merged, true);
            let failed = check_stored(&written, &file.0, status::CAPACITY_EXCEEDED, libc::EFBIG);
            assert_eq!(failed, BATCH / 2, "{dir}");
            limit(hard);
            let again = batch(&rig, 0, BATCH, merged, true);
            assert_eq!(check_stored(&again, &file.0, 0, 0), 0);
            assert_eq!(masks(), before, "no signal is left, and none is blocked");
        }
    });
    // Making a file that is too long is refused, and leaves none behind.
    let file = Scratch::new("/dev/shm", "toolong");
    let mut config = storage_config(file.path(), Drive::Inline);
    config.device.file_size = LIMIT * 2;
    limit(LIMIT);
    let error = Context::open(&config).err().unwrap();
    assert_eq!(error.errno(), libc::EFBIG, "{error}");
    assert!(!file.0.exists());
    assert_eq!(masks(), before);
    limit(hard);
    println!("limit was met");
}

/// Nobody takes completions: the engine stops taking entries, costs nothing, and loses none. All of them fail.
#[test]
fn a_full_completion_ring_of_failures() {
    if !is_root("a_full_completion_ring_of_failures") {
        return;
    }
    let memory = Memory::new(FRAME as u64);
    let path = memory.sparse(4 << 20);
    for drive in DRIVES {
        let config = Config {
            sq_entries: 16,
            cq_entries: 8,
            ..storage_config(path.to_str().unwrap(), drive)
        };
        let rig = Rig::open(&config);
        let mut submitted = Vec::new();
        let start = Instant::now();
        loop {
            assert!(start.elapsed() < Duration::from_secs(20));
            let frame = rig.stale_frame();
            // Far apart, so that nothing merges; only the first has room.
            let lba = 8 + submitted.len() as u64 * 64;
            let transfer = rig.transfer(frame, 0, FRAME, lba);
            match rig.context.submit_write(&transfer) {
                Ok(()) => submitted.push(transfer.user_data),
                Err(error) => {
                    assert_eq!(error.errno(), libc::EAGAIN);
                    rig.context.frame_release(frame).unwrap();
                    // The engine may still be taking some.
                    std::thread::sleep(Duration::from_millis(50));
                    if rig.context.statistics().unwrap().sq_full > 3 {
                        break;
                    }
                }
            }
            if drive == Drive::Inline && submitted.len() == 16 {
                break;
            }
        }
        if drive == Drive::Thread {
            assert_eq!(submitted.len(), 16 + 8, "both rings are full");
            let sleeps = rig.context.statistics().unwrap().sleeps;
            std::thread::sleep(Duration::from_millis(300));
            let woken = rig.context.statistics().unwrap().sleeps - sleeps;
            assert!(woken <= 1, "woke {woken} times for nothing");
        }
        let done = rig.take(submitted.len());
        let mut ids: Vec<u64> = done.iter().map(|d| d.user_data).collect();
        ids.sort_unstable();
        assert_eq!(ids, submitted);
        let failed = done
            .iter()
            .filter(|d| d.status == status::CAPACITY_EXCEEDED)
            .count();
        assert!(failed + 1 >= submitted.len(), "{failed}");
        assert_eq!(rig.context.statistics().unwrap().errors, failed as u64);
    }
}

/// Numbers for a fuzz loop.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    fn below(&mut self, end: u64) -> u64 {
        (self.next() >> 16) % end
    }

    /// A word as a corrupted ring has it: near an index, at an edge, or anything.
    fn word(&mut self, near: u32) -> u32 {
        match self.below(4) {
            0 => near.wrapping_add(self.below(9) as u32).wrapping_sub(4),
            1 => near.wrapping_add(64).wrapping_sub(self.below(129) as u32),
            2 => [0, 1, 0x7fff_ffff, 0x8000_0000, u32::MAX][self.below(5) as usize],
            _ => self.next() as u32,
        }
    }
}

/// Writes nonsense into the rings of a context, through the process's own memory file: as the program that the
/// region is shared with could.
fn scribble(context: &Context, random: &mut Random) {
    let info = context.info();
    let layout = info.layout;
    let memory = File::options()
        .read(true)
        .write(true)
        .open("/proc/self/mem")
        .unwrap();
    let at = |offset: usize| (info.region_address + offset) as u64;
    for _ in 0..=random.below(3) {
        match random.below(8) {
            // A word of a ring: producer, consumer, cached indices, flags, entries, mask, size.
            0..4 => {
                let ring = [layout.sq_ring, layout.cq_ring][random.below(2) as usize];
                // The indices more often than the rest.
                let word = match random.below(2) {
                    0 => random.below(2),
                    _ => random.below(10),
                } as usize;
                let mut near = [0; 4];
                memory.read_exact_at(&mut near, at(ring)).unwrap();
                let value = random.word(u32::from_le_bytes(near));
                memory
                    .write_all_at(&value.to_le_bytes(), at(ring + 4 * word))
                    .unwrap();
            }
            // A piece of an SQ or CQ entry: opcodes, addresses, offsets, lengths, LBAs.
            kind => {
                let (start, len) = match kind {
                    4..7 => (layout.sq_entries, layout.sq_count as u64 * 96),
                    _ => (layout.cq_entries, layout.cq_count as u64 * 32),
                };
                let offset = start + (random.below(len / 4) * 4) as usize;
                let value = match random.below(3) {
                    0 => random.below(12) as u32,
                    _ => random.word(0),
                };
                memory
                    .write_all_at(&value.to_le_bytes(), at(offset))
                    .unwrap();
            }
        }
    }
}

const SECRET: u8 = 0x5c;

/// Contexts whose rings are corrupted while they work, until the time is over; says how many, and how many
/// ended in the error state.
fn corrupt_rings(seed: u64, time: Duration) -> (u64, u64) {
    let start = Instant::now();
    let mut random = Random(seed | 1);
    let (mut rounds, mut broken) = (0, 0);
    // Memory that is no part of any region.
    let secret = vec![SECRET; 1 << 20];
    while start.elapsed() < time {
        rounds += 1;
        let file = Scratch::new("/dev/shm", "corrupt");
        let path = match rounds % 4 {
            0 => "null:1048576",
            _ => file.path(),
        };
        let mut config = Config {
            sq_entries: 16,
            cq_entries: 16,
            frame_count: 64,
            frame_size: 2048,
            ..storage_config(path, DRIVES[rounds as usize % 2])
        };
        if rounds % 4 != 0 {
            config.device.file_size = 1 << 20;
        }
        let context = Context::open(&config).unwrap();
        context.data().write(0, &vec![STALE; context.data().len()]);
        let mut errors = 0;
        let mut held = Vec::new();
        for step in 0..200u64 {
            let outcome = match random.below(6) {
                0..3 => {
                    let frame = held.pop().map_or_else(|| context.frame_alloc(), Ok);
                    frame.and_then(|frame| {
                        let transfer = Transfer {
                            frame,
                            offset: u64::from(frame) * 2048,
                            len: 512 * (1 + random.below(4) as u32),
                            lba: random.below(2000),
                            user_data: step,
                            keep: random.below(2) == 0,
                            ..Transfer::default()
                        };
                        match random.below(2) {
                            0 => context.submit_write(&transfer),
                            _ => context.submit_read(&transfer),
                        }
                    })
                }
                3 => context.submit_flush(step),
                4 => context
                    .wait(Ready::COMPLETIONS, Some(Duration::from_millis(1)))
                    .map(drop),
                _ => {
                    let mut done = [Completion::default(); 8];
                    context.completions(&mut done).map(|count| {
                        assert!(count <= done.len());
                        held.extend(done[..count].iter().filter_map(|d| d.frame));
                    })
                }
            };
            if let Err(error) = outcome {
                match error.errno() {
                    libc::EBADMSG => {
                        errors += 1;
                        if errors > 8 {
                            break;
                        }
                    }
                    libc::EAGAIN | libc::ENOBUFS => {}
                    // A frame that a corrupted completion gave back, twice or too early.
                    libc::EINVAL | libc::EBUSY => {}
                    _ => panic!("{error}"),
                }
            }
            if step > 20 && random.below(4) == 0 {
                scribble(&context, &mut random);
            }
            let frames = context.statistics().unwrap().frames;
            let sum = frames.free + frames.filled + frames.held + frames.in_flight;
            assert_eq!(sum, 64, "{frames:?}");
        }
        broken += u64::from(errors > 0);
        let end = Instant::now();
        drop(context);
        let took = end.elapsed();
        assert!(took < Duration::from_secs(5), "teardown took {took:?}");
        assert!(
            secret.iter().all(|b| *b == SECRET),
            "memory outside was written"
        );
        if let Ok(stored) = fs::read(&file.0) {
            assert_eq!(stored.len(), 1 << 20, "the device grew");
            let leaked = stored.windows(8).any(|w| w == [SECRET; 8]);
            assert!(!leaked, "memory outside was stored");
        }
    }
    (rounds, broken)
}

/// A child does it, so that an endless loop or a crash is seen from outside.
#[test]
fn rings_corrupted_while_the_engine_runs() {
    const TEST: &str = "rings_corrupted_while_the_engine_runs";
    let seconds = if common::is_full_tier() { 30 } else { 4 };
    if let Some(seed) = child_task() {
        let (rounds, broken) = corrupt_rings(seed.parse().unwrap(), Duration::from_secs(seconds));
        println!("\nrounds {rounds} broken {broken}.");
        return;
    }
    let children = [0x9e37_79b9, 0xdead_beef].map(|seed: u64| Own::start(TEST, &seed.to_string()));
    for child in children {
        let said = child.finish(Duration::from_secs(seconds + 30));
        let line = said.lines().find(|l| l.starts_with("rounds ")).unwrap();
        let numbers: Vec<u64> = line
            .split([' ', '.'])
            .filter_map(|w| w.parse().ok())
            .collect();
        assert!(numbers[0] > 10 && numbers[1] > numbers[0] / 10, "{line}");
        eprintln!("{line}");
    }
}
