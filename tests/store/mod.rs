//! Storage without a network: devices of every kind, and a context over one of them that checks the
//! sums when it ends.
#![allow(dead_code)]

use std::cell::Cell;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, mpsc};
use std::time::{Duration, Instant};

use unified::config::{Config, Drive};
use unified::context::Context;
use unified::lane::{Completion, Ready, Transfer};

use crate::common::{Scratch, is_root};

/// Bytes of every device here; a loop device's file has as many.
pub const DEVICE_BYTES: u64 = 8 << 20;
/// Every frame is filled with this before use: if it shows up on a device, something leaked.
pub const STALE: u8 = 0xaa;
pub const DRIVES: [Drive; 2] = [Drive::Inline, Drive::Thread];
/// Longest wait for anything. A lost wakeup fails a test instead of hanging it.
const PATIENCE: Duration = Duration::from_secs(20);

static MAKING: Mutex<()> = Mutex::new(());

/// Runs a command of the system; its output if it succeeded.
pub fn try_run(program: &str, args: &[&str]) -> Result<String, String> {
    let output = Command::new(program)
        .args(args)
        .output()
        .map_err(|e| format!("{program}: {e}"))?;
    if output.status.success() {
        Ok(String::from_utf8_lossy(&output.stdout).trim().to_string())
    } else {
        Err(format!(
            "{program} {args:?}: {}",
            String::from_utf8_lossy(&output.stderr).trim()
        ))
    }
}

pub fn run(program: &str, args: &[&str]) -> String {
    try_run(program, args).unwrap()
}

/// A loop device over a file of its own; both are gone when it is dropped.
pub struct LoopDevice {
    pub node: String,
    pub backing: Scratch,
}

impl LoopDevice {
    pub fn new(bytes: u64, sector: u32) -> LoopDevice {
        LoopDevice::try_new(bytes, &["--sector-size", &sector.to_string()]).unwrap()
    }

    pub fn read_only() -> LoopDevice {
        LoopDevice::try_new(DEVICE_BYTES, &["--read-only"]).unwrap()
    }

    fn try_new(bytes: u64, options: &[&str]) -> Result<LoopDevice, String> {
        // On a disk: there the file can be punched and zeroed by range, which tmpfs does not know.
        let backing = Scratch::new(env!("CARGO_TARGET_TMPDIR"), "loop");
        File::create(&backing.0).unwrap().set_len(bytes).unwrap();
        // One at a time: who loses the race for a free device claims the winner's for a moment.
        let _one = MAKING.lock();
        let args = [&["--find", "--show"], options, &[backing.path()]].concat();
        let node = try_run("losetup", &args)?;
        Ok(LoopDevice { node, backing })
    }

    pub fn name(&self) -> &str {
        self.node.strip_prefix("/dev/").unwrap()
    }

    /// A limit of the request queue, as sysfs has it.
    pub fn queue(&self, name: &str) -> String {
        let path = format!("/sys/block/{}/queue/{name}", self.name());
        fs::read_to_string(path).unwrap().trim().to_string()
    }
}

impl Drop for LoopDevice {
    fn drop(&mut self) {
        // A partition that a test added would outlive the device.
        let _ = try_run("delpart", &[&self.node, "1"]);
        let _ = try_run("losetup", &["--detach", &self.node]);
    }
}

/// Whether loop devices can be made here. If CI requires root's tests, missing loop devices are a failure.
pub fn can_loop(test: &str) -> bool {
    if !is_root(test) {
        return false;
    }
    match LoopDevice::try_new(1 << 20, &[]) {
        Ok(_) => true,
        Err(why) => {
            assert!(
                std::env::var_os("UNIFIED_REQUIRE_ROOT").is_none(),
                "{test} needs loop devices, and skipping is not allowed here: {why}"
            );
            eprintln!("{test}: SKIPPED, it needs loop devices: {why}");
            false
        }
    }
}

/// One device to test on.
pub struct Target {
    pub name: &'static str,
    pub path: String,
    /// What stands on the device, seen from outside. `None`: nothing does.
    pub outside: Option<String>,
    pub block: usize,
    _file: Option<Scratch>,
    _loop: Option<LoopDevice>,
}

impl Target {
    fn file(name: &'static str, dir: &str) -> Target {
        let file = Scratch::new(dir, name);
        File::create(&file.0)
            .unwrap()
            .set_len(DEVICE_BYTES)
            .unwrap();
        Target {
            name,
            path: file.path().into(),
            outside: Some(file.path().into()),
            block: 512,
            _file: Some(file),
            _loop: None,
        }
    }

    /// A file on a disk, with direct I/O.
    pub fn disk() -> Target {
        Target::file("disk", env!("CARGO_TARGET_TMPDIR"))
    }

    /// A file in memory, buffered.
    pub fn memory() -> Target {
        Target::file("memory", "/dev/shm")
    }

    pub fn null() -> Target {
        Target {
            name: "null",
            path: format!("null:{DEVICE_BYTES}"),
            outside: None,
            block: 512,
            _file: None,
            _loop: None,
        }
    }

    pub fn loop_device(sector: u32) -> Target {
        let device = LoopDevice::new(DEVICE_BYTES, sector);
        Target {
            name: if sector == 512 { "loop512" } else { "loop4096" },
            path: device.node.clone(),
            outside: Some(device.backing.path().into()),
            block: sector as usize,
            _file: None,
            _loop: Some(device),
        }
    }

    /// Those that need no privilege.
    pub fn plain() -> Vec<Target> {
        vec![Target::disk(), Target::memory(), Target::null()]
    }

    pub fn loops() -> Vec<Target> {
        vec![Target::loop_device(512), Target::loop_device(4096)]
    }

    pub fn stores(&self) -> bool {
        self.outside.is_some()
    }

    pub fn blocks(&self) -> u64 {
        DEVICE_BYTES / self.block as u64
    }

    /// What is on the device now, read around the library.
    pub fn image(&self) -> Vec<u8> {
        fs::read(self.outside.as_ref().unwrap()).unwrap()
    }

    pub fn config(&self, drive: Drive) -> Config {
        storage_config(&self.path, drive)
    }

    pub fn open(&self, drive: Drive) -> Rig {
        Rig::open(&self.config(drive))
    }
}

/// Runs a test on each of these devices, with either drive.
pub fn each(targets: Vec<Target>, test: fn(&Target, Rig)) {
    for target in &targets {
        for drive in DRIVES {
            eprintln!("on {}, {drive:?}", target.name);
            test(target, target.open(drive));
        }
    }
}

/// A small context without a network. Frames are big enough for a block of any device.
pub fn storage_config(path: &str, drive: Drive) -> Config {
    let mut config = Config {
        drive,
        frame_size: 4096,
        frame_count: 128,
        sq_entries: 64,
        cq_entries: 64,
        ..Config::default()
    };
    config.device.path = path.into();
    config
}

/// A context, with what every test does with one. Dropping it checks the sums.
pub struct Rig {
    pub context: Context,
    next: Cell<u64>,
    /// Completions that `take` handed out.
    taken: Cell<u64>,
}

impl Rig {
    pub fn open(config: &Config) -> Rig {
        match Context::open(config) {
            Ok(context) => Rig {
                context,
                next: Cell::new(1),
                taken: Cell::new(0),
            },
            Err(error) => panic!("{error}"),
        }
    }

    /// A number for a command that no other one has.
    pub fn id(&self) -> u64 {
        self.next.replace(self.next.get() + 1)
    }

    pub fn block(&self) -> usize {
        self.context.info().devices[0].limits.block_size as usize
    }

    pub fn frame_size(&self) -> usize {
        self.context.info().frame_size as usize
    }

    /// A frame of the caller's, full of stale bytes.
    pub fn stale_frame(&self) -> u32 {
        let frame = self.context.frame_alloc().unwrap();
        self.fill(frame, 0, &vec![STALE; self.frame_size()]);
        frame
    }

    pub fn fill(&self, frame: u32, at: usize, bytes: &[u8]) {
        let start = frame as usize * self.frame_size();
        self.context.data().write(start + at, bytes);
    }

    pub fn bytes(&self, frame: u32, at: usize, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        let start = frame as usize * self.frame_size();
        self.context.data().read(start + at, &mut bytes);
        bytes
    }

    /// `len` bytes at `at` of a frame, to or from `lba`.
    pub fn transfer(&self, frame: u32, at: usize, len: usize, lba: u64) -> Transfer {
        Transfer {
            frame,
            offset: (frame as usize * self.frame_size() + at) as u64,
            len: len as u32,
            lba,
            user_data: self.id(),
            ..Transfer::default()
        }
    }

    /// Waits for exactly so many completions, in the order in which they come.
    pub fn take(&self, count: usize) -> Vec<Completion> {
        let mut taken = Vec::with_capacity(count);
        while taken.len() < count {
            // A wait that runs out is a lost wakeup, also if its last check then finds something.
            let start = Instant::now();
            let ready = self
                .context
                .wait(Ready::COMPLETIONS, Some(PATIENCE))
                .unwrap();
            assert!(
                ready != Ready::NONE && start.elapsed() < PATIENCE,
                "{} of {count} completions, none for {PATIENCE:?}: {:#?}",
                taken.len(),
                self.context.statistics()
            );
            let mut done = [Completion::default(); 16];
            let room = done.len().min(count - taken.len());
            let got = self.context.completions(&mut done[..room]).unwrap();
            taken.extend_from_slice(&done[..got]);
            self.taken.set(self.taken.get() + got as u64);
        }
        taken
    }

    /// The completion of the one command in flight.
    pub fn one(&self) -> Completion {
        self.take(1)[0]
    }

    /// Writes bytes that stand at `at` of an otherwise stale frame.
    pub fn write(&self, lba: u64, at: usize, bytes: &[u8]) -> Completion {
        let frame = self.stale_frame();
        self.fill(frame, at, bytes);
        let transfer = self.transfer(frame, at, bytes.len(), lba);
        self.context.submit_write(&transfer).unwrap();
        let done = self.one();
        assert_eq!((done.user_data, done.frame), (transfer.user_data, None));
        done
    }

    /// Reads whole blocks into the head of a frame.
    pub fn read(&self, lba: u64, len: usize) -> Vec<u8> {
        let frame = self.stale_frame();
        let transfer = self.transfer(frame, 0, len, lba);
        self.context.submit_read(&transfer).unwrap();
        let done = self.one();
        assert_eq!(
            (done.user_data, done.frame),
            (transfer.user_data, Some(frame))
        );
        succeeded(&done);
        assert_eq!(done.len as usize, len);
        let bytes = self.bytes(frame, 0, len);
        self.context.frame_release(frame).unwrap();
        bytes
    }

    /// Fills the first `len` bytes of the device with something that is neither zero nor stale.
    pub fn prefill(&self, len: usize) -> Vec<u8> {
        let old = vec![0x55; len];
        let step = self.frame_size();
        for (i, piece) in old.chunks(step).enumerate() {
            succeeded(&self.write((i * step / self.block()) as u64, 0, piece));
        }
        old
    }

    /// The sums at a quiet moment, with `held` frames in the test's hands.
    pub fn check_sums(&self, held: u64) {
        let stats = self.context.statistics().unwrap();
        assert_eq!(stats.submitted, stats.completed, "{stats:#?}");
        assert_eq!(stats.completed, self.taken.get(), "{stats:#?}");
        let f = stats.frames;
        assert_eq!((f.held, f.in_flight), (held, 0), "{stats:#?}");
        assert_eq!(
            f.free + f.filled + f.held + f.in_flight,
            u64::from(self.context.info().frame_count),
            "{stats:#?}"
        );
        let mut none = [Completion::default(); 4];
        assert_eq!(self.context.completions(&mut none).unwrap(), 0, "{none:?}");
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            self.check_sums(0);
        }
    }
}

pub fn succeeded(done: &Completion) {
    assert_eq!((done.status, done.result), (0, 0), "{done:?}");
}

/// Runs something that must end; fails if it does not.
pub fn within<T: Send + 'static>(time: Duration, act: impl FnOnce() -> T + Send + 'static) -> T {
    let (tell, told) = mpsc::channel();
    let thread = std::thread::spawn(move || {
        let result = act();
        let _ = tell.send(());
        result
    });
    if told.recv_timeout(time) == Err(mpsc::RecvTimeoutError::Timeout) {
        panic!("not done after {time:?}");
    }
    match thread.join() {
        Ok(result) => result,
        Err(panic) => std::panic::resume_unwind(panic),
    }
}

/// The length of a file.
pub fn len_of(path: impl AsRef<Path>) -> u64 {
    fs::metadata(path).unwrap().len()
}

/// A tmpfs of its own.
pub struct Memory {
    dir: PathBuf,
}

impl Memory {
    pub fn new(bytes: u64) -> Memory {
        let dir = Scratch::new("/dev/shm", "mount").0.clone();
        fs::create_dir(&dir).unwrap();
        let memory = Memory { dir };
        memory.mount(&format!("size={bytes}"));
        memory
    }

    pub fn mount(&self, options: &str) {
        run(
            "mount",
            &[
                "-t",
                "tmpfs",
                "-o",
                options,
                "unified",
                self.dir.to_str().unwrap(),
            ],
        );
    }

    pub fn sparse(&self, bytes: u64) -> PathBuf {
        let path = self.dir.join("device");
        File::create(&path).unwrap().set_len(bytes).unwrap();
        path
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        let _ = try_run("umount", &["-l", self.dir.to_str().unwrap()]);
        let _ = fs::remove_dir(&self.dir);
    }
}
