//! What must not be written to is refused, in words; what goes away gives errors and no hang.

mod common;
mod store;

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use common::{Scratch, is_root, payload};
use store::{
    DEVICE_BYTES, DRIVES, LoopDevice, Rig, Target, can_loop, len_of, run, storage_config,
    succeeded, try_run, within,
};
use unified::config::{Config, Drive};
use unified::context::Context;
use unified::lane::Transfer;

fn config(path: &str) -> Config {
    storage_config(path, Drive::Inline)
}

/// Opening fails with that errno, and the message names the path and says why.
fn refused(config: &Config, errno: i32, words: &[&str]) {
    let Err(error) = Context::open(config) else {
        panic!("{} was opened", config.device.path);
    };
    assert_eq!(error.errno(), errno, "{error}");
    for word in words.iter().chain([&config.device.path.as_str()]) {
        assert!(error.message().contains(word), "'{word}' in: {error}");
    }
}

fn forced(config: &Config) -> Config {
    let mut config = config.clone();
    config.device.force = true;
    config
}

/// Nobody uses the device any more, but it holds something: only who insists writes to it.
fn holds(node: &str, what: &str) {
    refused(&config(node), libc::EEXIST, &[what, "wipefs", "force"]);
    drop(Rig::open(&forced(&config(node))));
}

/// A file system mounted in a directory of its own.
struct Mount(PathBuf);

impl Mount {
    fn new(device: &LoopDevice) -> Mount {
        let name = format!("mnt-{}-{}", device.name(), std::process::id());
        let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
        fs::create_dir(&dir).unwrap();
        let mount = Mount(dir);
        run("mkfs.ext4", &["-q", "-F", "-m", "0", &device.node]);
        run("mount", &[&device.node, mount.path()]);
        mount
    }

    fn path(&self) -> &str {
        self.0.to_str().unwrap()
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        let _ = try_run("umount", &[self.path()]);
        let _ = fs::remove_dir(&self.0);
    }
}

#[test]
fn a_mounted_device() {
    if !can_loop("a_mounted_device") {
        return;
    }
    let device = LoopDevice::new(DEVICE_BYTES, 512);
    let mount = Mount::new(&device);
    let kept = mount.0.join("kept");
    fs::write(&kept, payload(1, 100_000)).unwrap();
    refused(
        &config(&device.node),
        libc::EBUSY,
        &["mounted on", mount.path(), "force"],
    );
    let mut reading = config(&device.node);
    reading.device.read_only = true;
    drop(Rig::open(&reading));
    assert!(fs::read(&kept).unwrap() == payload(1, 100_000));
    drop(mount);
    holds(&device.node, "ext4");
}

/// Mounted in another mount namespace: the exclusive claim still detects it.
#[test]
fn a_device_mounted_in_another_namespace() {
    if !can_loop("a_device_mounted_in_another_namespace") {
        return;
    }
    let device = LoopDevice::new(DEVICE_BYTES, 512);
    run("mkfs.ext4", &["-q", "-F", &device.node]);
    let node = device.node.clone();
    let (mounted, wait) = std::sync::mpsc::channel();
    let (finish, finished) = std::sync::mpsc::channel::<()>();
    let there = std::thread::spawn(move || {
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNS).unwrap();
        run("mount", &["--make-rprivate", "/"]);
        run("mount", &[&node, "/mnt"]);
        mounted.send(()).unwrap();
        let _ = finished.recv();
        run("umount", &["/mnt"]);
    });
    wait.recv_timeout(Duration::from_secs(20)).unwrap();
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
    assert!(!mounts.contains(&format!("{} ", device.node)));
    refused(&config(&device.node), libc::EBUSY, &["mounted", "claimed"]);
    drop(finish);
    there.join().unwrap();
    holds(&device.node, "ext4");
}

fn exclusive(path: &str) -> std::io::Result<File> {
    OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_EXCL)
        .open(path)
}

#[test]
fn a_device_that_somebody_claimed() {
    if !can_loop("a_device_that_somebody_claimed") {
        return;
    }
    let device = LoopDevice::new(DEVICE_BYTES, 512);
    let claimed = exclusive(&device.node).unwrap();
    refused(&config(&device.node), libc::EBUSY, &["claimed"]);
    // Who insists writes all the same.
    let rig = Rig::open(&forced(&config(&device.node)));
    succeeded(&rig.write(0, 0, &payload(1, 4096)));
    drop(rig);
    drop(claimed);
    // And the other way round: nobody claims what a context writes to.
    let rig = Rig::open(&config(&device.node));
    assert_eq!(
        exclusive(&device.node).unwrap_err().raw_os_error(),
        Some(libc::EBUSY)
    );
    drop(rig);
    // Children that other tests start may hold it for a moment, between fork and exec.
    let until = Instant::now() + Duration::from_secs(5);
    while let Err(error) = exclusive(&device.node) {
        assert!(Instant::now() < until, "{error}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn a_read_only_device() {
    if !can_loop("a_read_only_device") {
        return;
    }
    let device = LoopDevice::read_only();
    let mut config = config(&device.node);
    refused(&config, libc::EROFS, &["read-only"]);
    config.device.read_only = true;
    let rig = Rig::open(&config);
    assert!(rig.read(0, 4096).iter().all(|b| *b == 0));
    assert_eq!(rig.write(0, 0, &[1; 512]).status, 0x020);
}

#[test]
fn a_partitioned_device() {
    if !can_loop("a_partitioned_device") {
        return;
    }
    let device = LoopDevice::new(DEVICE_BYTES, 512);
    // Told to the kernel directly: it may have been built without the formats of tables.
    run("addpart", &[&device.node, "1", "2048", "4096"]);
    let name = format!("{}p1", device.name());
    refused(
        &config(&device.node),
        libc::EBUSY,
        &["partitions", &name, "force"],
    );

    let partition = config(&format!("/dev/{name}"));
    let rig = Rig::open(&partition);
    assert_eq!(rig.context.info().devices[0].limits.blocks, 4096);
    let bytes = payload(3, 4096);
    succeeded(&rig.write(0, 0, &bytes));
    assert_eq!(rig.write(4096, 0, &bytes).status, 0x080);
    drop(rig);
    let image = fs::read(device.backing.path()).unwrap();
    assert!(image[2048 * 512..][..4096] == bytes[..]);
    assert!(image[(2048 + 4096) * 512..].iter().all(|b| *b == 0));

    let rig = Rig::open(&forced(&config(&device.node)));
    assert!(rig.read(2048, 4096) == bytes);
    succeeded(&rig.write(0, 0, &bytes));
}

struct Swap<'a>(&'a str);

impl Drop for Swap<'_> {
    fn drop(&mut self) {
        let _ = try_run("swapoff", &[self.0]);
    }
}

#[test]
fn a_device_that_is_swapped_on() {
    if !can_loop("a_device_that_is_swapped_on") {
        return;
    }
    let device = LoopDevice::new(DEVICE_BYTES, 512);
    run("mkswap", &[&device.node]);
    run("swapon", &[&device.node]);
    let swap = Swap(&device.node);
    refused(&config(&device.node), libc::EBUSY, &["claimed"]);
    drop(swap);
    holds(&device.node, "swap");
}

fn two_contexts(target: &Target, words: &[&str]) {
    for drive in DRIVES {
        let first = target.open(drive);
        refused(&target.config(drive), libc::EBUSY, words);
        succeeded(&first.write(0, 0, &payload(1, 4096)));
        // One that only reads may look on.
        let mut reading = target.config(drive);
        reading.device.read_only = true;
        let second = Rig::open(&reading);
        assert!(second.read(0, 4096) == payload(1, 4096));
    }
}

#[test]
fn a_file_that_another_context_writes_to() {
    for target in [Target::disk(), Target::memory()] {
        two_contexts(&target, &["locked", "another recorder"]);
    }
}

#[test]
fn a_device_that_another_context_writes_to() {
    if can_loop("a_device_that_another_context_writes_to") {
        two_contexts(&Target::loop_device(512), &["claimed"]);
    }
}

/// A destroyed context has given its device back when the call returns, not some time later.
fn open_again_and_again(target: &Target) {
    for round in 0..40 {
        for drive in DRIVES {
            let rig = target.open(drive);
            succeeded(&rig.write(round, 0, &[7; 4096]));
        }
    }
}

#[test]
fn a_file_can_be_opened_again_at_once() {
    for target in [Target::disk(), Target::memory()] {
        open_again_and_again(&target);
    }
}

#[test]
fn a_device_can_be_opened_again_at_once() {
    if can_loop("a_device_can_be_opened_again_at_once") {
        open_again_and_again(&Target::loop_device(512));
    }
}

/// Runs `without_permission` in a child without privileges, on a path.
fn open_as_nobody(path: &str, wanted: &str) {
    // A copy that everybody may execute; the build directory may be private.
    let program = Scratch::new("/dev/shm", "nobody");
    fs::copy(std::env::current_exe().unwrap(), &program.0).unwrap();
    fs::set_permissions(&program.0, fs::Permissions::from_mode(0o755)).unwrap();
    let output = Command::new("setpriv")
        .args(["--reuid=65534", "--regid=65534", "--clear-groups"])
        .args(["--inh-caps=-all", "--bounding-set=-all", program.path()])
        .args(["--exact", "without_permission", "--nocapture"])
        .env("UNIFIED_TEST_PATH", path)
        .env("UNIFIED_TEST_ERRNO", wanted)
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success() && said.contains("1 passed"),
        "{said}{}",
        String::from_utf8_lossy(&output.stderr)
    );
}

fn as_nobody(path: &str) {
    let errno = std::env::var("UNIFIED_TEST_ERRNO").unwrap();
    let mut config = config(path);
    config.frame_count = 64;
    refused(&config, errno.parse().unwrap(), &["ermission"]);
}

#[test]
fn without_permission() {
    if let Ok(path) = std::env::var("UNIFIED_TEST_PATH") {
        // The child.
        return as_nobody(&path);
    }
    if !is_root("without_permission") {
        return;
    }
    let closed = Scratch::new("/dev/shm", "closed");
    File::create(&closed.0).unwrap().set_len(1 << 20).unwrap();
    fs::set_permissions(&closed.0, fs::Permissions::from_mode(0o600)).unwrap();
    open_as_nobody(closed.path(), &libc::EACCES.to_string());
}

#[test]
fn a_device_without_permission() {
    if can_loop("a_device_without_permission") {
        let device = LoopDevice::new(DEVICE_BYTES, 512);
        fs::set_permissions(&device.node, fs::Permissions::from_mode(0o600)).unwrap();
        open_as_nobody(&device.node, &libc::EACCES.to_string());
    }
}

#[test]
fn what_is_no_device() {
    let fifo = Scratch::new("/dev/shm", "fifo");
    run("mkfifo", &[fifo.path()]);
    for path in ["/dev", "/dev/zero", "/dev/tty", fifo.path()] {
        // A size is no permission to make a file of it either.
        for size in [0, 1 << 20] {
            let mut config = config(path);
            config.device.file_size = size;
            refused(&config, libc::EINVAL, &["neither", "regular file"]);
        }
    }
    refused(
        &config("/dev/shm/nothing/here"),
        libc::ENOENT,
        &["check the path"],
    );
    let small = Scratch::new("/dev/shm", "small");
    let mut tiny = config(small.path());
    tiny.device.file_size = 100;
    refused(&tiny, libc::EINVAL, &["less than one block"]);
    assert!(!small.0.exists(), "what the failed call made is gone");
    for len in [0, 1, 511] {
        fs::write(&small.0, vec![1; len]).unwrap();
        refused(
            &config(small.path()),
            libc::EINVAL,
            &["less than one block"],
        );
        assert_eq!(len_of(&small.0), len as u64);
    }
    fs::write(&small.0, vec![1; 1023]).unwrap();
    let rig = Rig::open(&config(small.path()));
    assert_eq!(
        rig.context.info().devices[0].limits.blocks,
        1,
        "half a block is none"
    );
}

/// A file that does not fit is not left half grown.
#[test]
fn more_than_the_file_system_has() {
    if !can_loop("more_than_the_file_system_has") {
        return;
    }
    let device = LoopDevice::new(32 << 20, 512);
    let mount = Mount::new(&device);
    let path = mount.0.join("recording");
    let mut config = config(path.to_str().unwrap());
    config.device.file_size = 1 << 30;
    refused(&config, libc::ENOSPC, &["1073741824", "free some space"]);
    assert!(!path.exists());
    let old = payload(1, 1 << 20);
    fs::write(&path, &old).unwrap();
    refused(&config, libc::ENOSPC, &["1073741824", "free some space"]);
    assert!(fs::read(&path).unwrap() == old, "as it was");
    config.device.file_size = 20 << 20;
    let rig = Rig::open(&config);
    assert!(rig.read(0, 4096) == old[..4096]);
    drop(rig);
    assert_eq!(len_of(&path), 20 << 20, "and the space was there");
}

/// Cut short beneath a context: reads say so.
#[test]
fn a_file_that_is_cut_short() {
    for target in [Target::disk(), Target::memory()] {
        for drive in DRIVES {
            let rig = target.open(drive);
            let file = File::options().write(true).open(&target.path).unwrap();
            succeeded(&rig.write(9000, 0, &payload(1, 4096)));
            file.set_len(4096 * 512 + 1024).unwrap();
            let frame = rig.stale_frame();
            for (lba, len) in [(9000, 4096), (4097, 4096)] {
                rig.context
                    .submit_read(&rig.transfer(frame, 0, len, lba))
                    .unwrap();
                let done = rig.one();
                assert_eq!((done.status, done.result), (0x281, -libc::EIO), "{done:?}");
                rig.context
                    .submit_compare(&rig.transfer(frame, 0, len, lba))
                    .unwrap();
                assert_ne!(rig.one().status, 0);
            }
            rig.context.frame_release(frame).unwrap();
            drop(rig);
            file.set_len(DEVICE_BYTES).unwrap();
        }
    }
}

/// The device shrinks while commands are in flight, at last to an eighth: every one of them ends, those behind
/// the new end with an error, and the context can be destroyed.
#[test]
fn a_device_that_vanishes() {
    if !can_loop("a_device_that_vanishes") {
        return;
    }
    for drive in DRIVES {
        let target = Target::loop_device(512);
        let (path, backing) = (target.path.clone(), target.outside.clone().unwrap());
        within(Duration::from_secs(60), move || {
            let rig = Rig::open(&storage_config(&path, drive));
            let mut sent = 0;
            let mut seen = [0; 400];
            let mut errors = 0;
            let take = |count: usize, seen: &mut [i32], errors: &mut u32| {
                for done in rig.take(count) {
                    seen[done.user_data as usize] += 1;
                    *errors += u32::from(done.status != 0);
                }
            };
            for i in 0..400 {
                if i == 300 {
                    // Writes that were in flight have let the file grow again; now none is.
                    take(sent, &mut seen, &mut errors);
                    sent = 0;
                }
                if i == 200 || i == 300 {
                    let file = File::options().write(true).open(&backing).unwrap();
                    file.set_len(DEVICE_BYTES / 8).unwrap();
                    run("losetup", &["--set-capacity", &path]);
                }
                let frame = rig.stale_frame();
                let transfer = Transfer {
                    user_data: i,
                    ..rig.transfer(frame, 0, 4096, (i * 37 % 256) * 64)
                };
                rig.context.submit_write(&transfer).unwrap();
                sent += 1;
                if sent == 32 {
                    take(16, &mut seen, &mut errors);
                    sent -= 16;
                }
            }
            take(sent, &mut seen, &mut errors);
            assert!(seen.iter().all(|n| *n == 1), "each exactly once");
            assert!(errors >= 80, "{errors} of the 87 or more behind the end");
            // What is still there still works; what is not does not.
            succeeded(&rig.write(0, 0, &payload(1, 4096)));
            let done = rig.write(DEVICE_BYTES / 512 - 8, 0, &payload(1, 4096));
            assert!(done.status != 0 && done.result < 0, "{done:?}");
            let frame = rig.stale_frame();
            let transfer = rig.transfer(frame, 0, 4096, DEVICE_BYTES / 512 - 8);
            rig.context.submit_read(&transfer).unwrap();
            let done = rig.one();
            assert!(done.status != 0 && done.result < 0, "{done:?}");
            rig.context.frame_release(frame).unwrap();
        });
    }
}

/// Detached while it is open: the kernel keeps it until the context is gone.
#[test]
fn a_device_that_is_detached() {
    if !can_loop("a_device_that_is_detached") {
        return;
    }
    for drive in DRIVES {
        let target = Target::loop_device(512);
        let rig = target.open(drive);
        run("losetup", &["--detach", &target.path]);
        succeeded(&rig.write(1, 0, &payload(1, 4096)));
        assert!(rig.read(1, 4096) == payload(1, 4096));
        within(Duration::from_secs(20), move || drop(rig));
        let Err(error) = Context::open(&target.config(drive)) else {
            panic!("{} is still there", target.path);
        };
        assert_eq!(error.errno(), libc::EINVAL, "{error}");
        assert!(error.message().contains("nothing can be stored"), "{error}");
    }
}
