//! Devices that fail, shrink or are full.

use super::*;

/// Entries of a batch: in a run they are one operation of 128 KiB.
const BATCH: usize = 32;

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
        // Half of the batch before the cut, half after it.
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
            rig.context.submit_flush(None, rig.id()).unwrap();
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
    // Creating a file that is too long is refused, and leaves no file.
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
