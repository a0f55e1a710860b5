//! A device that one context writes to is EBUSY for every other one, whichever way it was opened or handed in, and
//! free again exactly when that context ends.

mod common;
mod store;

use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{BufRead, BufReader, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::process::{Command, Stdio};

use common::{is_root, payload};
use store::{Rig, Target, can_loop, storage_config, succeeded};
use unified::config::{Config, Drive};
use unified::context::Context;

const CHILD: &str = "UNIFIED_TEST_CLAIMS";

fn writable(path: &str, flags: i32) -> File {
    OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(flags)
        .open(path)
        .unwrap()
}

fn handed(file: &File) -> Config {
    let mut config = storage_config("", Drive::Inline);
    config.device.fd = Some(file.as_raw_fd());
    config
}

fn refused(config: &Config) {
    let Err(error) = Context::open(config) else {
        panic!("{:?} was opened twice", config.device);
    };
    assert_eq!(error.errno(), libc::EBUSY, "{error}");
    let message = error.message();
    assert!(
        message.contains("recorder") || message.contains("claimed") || message.contains("another"),
        "{error}"
    );
}

/// Every way to open one device for writing; the files must stay open.
fn ways(path: &str) -> (Vec<Config>, Vec<File>) {
    let once = writable(path, 0);
    let dup = once.try_clone().unwrap();
    let again = writable(path, 0);
    let direct = writable(path, libc::O_DIRECT);
    let link = format!("/proc/self/fd/{}", again.as_raw_fd());
    let mut configs = vec![storage_config(path, Drive::Thread)];
    configs.extend([&once, &dup, &direct].map(handed));
    configs.push(storage_config(&link, Drive::Inline));
    (configs, vec![once, dup, again, direct])
}

fn each_against_each(path: &str) {
    let (configs, files) = ways(path);
    for first in &configs {
        let rig = Rig::open(first);
        succeeded(&rig.write(0, 0, &payload(1, 4096)));
        // Each tries for half a second.
        std::thread::scope(|scope| {
            for second in &configs {
                scope.spawn(|| refused(second));
            }
        });
        // Who only reads may look on.
        let mut reading = storage_config(path, Drive::Inline);
        reading.device.read_only = true;
        assert!(Rig::open(&reading).read(0, 4096) == payload(1, 4096));
        drop(rig);
        // Not some time later: this does not wait.
        let free = writable(path, 0);
        free.try_lock().unwrap();
        free.unlock().unwrap();
    }
    drop(files);
}

#[test]
fn one_file_opened_in_every_way() {
    each_against_each(&Target::disk().path);
}

#[test]
fn one_block_device_opened_in_every_way() {
    if can_loop("one_block_device_opened_in_every_way") {
        each_against_each(&Target::loop_device(512).path);
    }
}

/// Whoever hands a block device in may have claimed it (O_EXCL): that is no other context.
#[test]
fn a_device_that_its_giver_claimed() {
    if !can_loop("a_device_that_its_giver_claimed") {
        return;
    }
    let target = Target::loop_device(512);
    let file = writable(&target.path, libc::O_EXCL);
    let rig = Rig::open(&handed(&file));
    refused(&handed(&file));
    refused(&target.config(Drive::Inline));
    drop(rig);
    drop(Rig::open(&handed(&file)));
    // Without it the context claims the device itself, so that nobody mounts it meanwhile.
    drop(file);
    let file = writable(&target.path, 0);
    let rig = Rig::open(&handed(&file));
    let claimed = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_EXCL)
        .open(&target.path);
    assert_eq!(claimed.unwrap_err().raw_os_error(), Some(libc::EBUSY));
    drop(rig);
}

/// Two names for the same bytes.
#[test]
fn a_loop_device_and_the_file_behind_it() {
    if !can_loop("a_loop_device_and_the_file_behind_it") {
        return;
    }
    let target = Target::loop_device(512);
    let behind = storage_config(target.outside.as_ref().unwrap(), Drive::Inline);
    let rig = target.open(Drive::Inline);
    refused(&behind);
    drop(rig);
    let rig = Rig::open(&behind);
    refused(&target.config(Drive::Inline));
    drop(rig);
    drop(target.open(Drive::Inline));
}

#[test]
fn a_spill_that_is_somebodys_device() {
    let (device, other) = (Target::disk(), Target::disk());
    let rig = other.open(Drive::Inline);
    let spilling = |to: &str| {
        let mut config = device.config(Drive::Inline);
        config.device.spill = Some(to.into());
        config
    };
    refused(&spilling(&other.path));
    drop(rig);
    let rig = Rig::open(&spilling(&other.path));
    refused(&other.config(Drive::Inline));
    drop(rig);
    drop(other.open(Drive::Inline));
    // The device itself, by the name of its descriptor too.
    let file = writable(&device.path, 0);
    let mut itself = handed(&file);
    itself.device.spill = Some(device.path.clone());
    let Err(error) = Context::open(&itself) else {
        panic!("a device spills to itself");
    };
    assert_eq!(error.errno(), libc::EINVAL, "{error}");
}

/// The child of the tests below: opens what is its standard input, says how that went, and keeps it until told to end.
fn child(drop_privileges: bool) {
    let device = File::from(
        std::os::fd::AsFd::as_fd(&std::io::stdin())
            .try_clone_to_owned()
            .unwrap(),
    );
    if drop_privileges {
        // Nobody else's user: locked memory is counted by user.
        let id = 48_000 + std::process::id() % 4000;
        nix::unistd::setresgid(id.into(), id.into(), id.into()).unwrap();
        nix::unistd::setresuid(id.into(), id.into(), id.into()).unwrap();
        let again = OpenOptions::new()
            .write(true)
            .open(format!("/proc/self/fd/{}", device.as_raw_fd()));
        assert!(again.is_err(), "nobody may open it himself");
    }
    let context = Context::open(&Config {
        frame_count: 64,
        ..handed(&device)
    });
    // The descriptor is the giver's to close.
    drop(device);
    let mut out = std::io::stderr();
    match &context {
        Ok(_) => writeln!(out, "answer: opened").unwrap(),
        Err(error) => writeln!(out, "answer: {} {error}", error.errno()).unwrap(),
    }
    let pipe = std::env::var("UNIFIED_TEST_PIPE").unwrap();
    let mut line = String::new();
    BufReader::new(File::open(pipe).unwrap())
        .read_line(&mut line)
        .unwrap();
}

/// A process with a context on a descriptor that it shares with this one.
struct Holder {
    process: std::process::Child,
    pipe: common::Scratch,
    answer: String,
}

impl Holder {
    fn new(test: &str, kind: &str, device: &File) -> Holder {
        let pipe = common::Scratch::new("/dev/shm", "claims-pipe");
        store::run("mkfifo", &["-m", "666", pipe.path()]);
        let program = common::Scratch::new("/dev/shm", "claims");
        // By another process: a descriptor that is open for writing here may be inherited by a child of another test,
        // and what is open for writing is not executed.
        let own = std::env::current_exe().unwrap();
        store::run(
            "install",
            &["-m", "755", own.to_str().unwrap(), program.path()],
        );
        let mut process = Command::new(&program.0)
            .args(["--exact", test, "--nocapture"])
            .env(CHILD, kind)
            .env("UNIFIED_TEST_PIPE", pipe.path())
            .stdin(device.try_clone().unwrap())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let said = BufReader::new(process.stderr.take().unwrap());
        let answer = said
            .lines()
            .map_while(Result::ok)
            .find(|line| line.starts_with("answer: "))
            .expect("an answer");
        Holder {
            process,
            pipe,
            answer,
        }
    }

    fn is_open(&self) {
        assert_eq!(self.answer, "answer: opened");
    }

    fn end(mut self) {
        fs::write(&self.pipe.0, "\n").unwrap();
        assert!(self.process.wait().unwrap().success());
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        // When a test fails: nobody else would end it.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn shared_with_a_process(test: &str, kind: &str) {
    for target in [Target::memory(), Target::loop_device(512)] {
        fs::set_permissions(&target.path, Permissions::from_mode(0o600)).unwrap();
        let file = writable(&target.path, 0);
        let holder = Holder::new(test, kind, &file);
        holder.is_open();
        refused(&handed(&file));
        refused(&target.config(Drive::Inline));
        let second = Holder::new(test, kind, &file);
        assert!(
            second.answer.starts_with("answer: 16 "),
            "{}",
            second.answer
        );
        second.end();
        holder.end();
        // The giver has it open all the time.
        let rig = Rig::open(&handed(&file));
        succeeded(&rig.write(0, 0, &payload(1, 4096)));
        let third = Holder::new(test, kind, &file);
        assert!(third.answer.starts_with("answer: 16 "), "{}", third.answer);
        third.end();
        drop(rig);
    }
}

#[test]
fn a_descriptor_that_two_processes_share() {
    let test = "a_descriptor_that_two_processes_share";
    if std::env::var_os(CHILD).is_some() {
        return child(false);
    }
    if can_loop(test) {
        shared_with_a_process(test, "root");
    }
}

/// Nobody may not open the device once more, to have a lock of his own.
#[test]
fn a_descriptor_handed_to_who_may_not_open_it() {
    let test = "a_descriptor_handed_to_who_may_not_open_it";
    if std::env::var_os(CHILD).is_some() {
        return child(true);
    }
    if is_root(test) && can_loop(test) {
        shared_with_a_process(test, "nobody");
    }
}

/// It would write everything to the file's end.
#[test]
fn a_file_handed_in_for_appending() {
    let target = Target::disk();
    let file = OpenOptions::new()
        .read(true)
        .append(true)
        .open(&target.path)
        .unwrap();
    let Err(error) = Context::open(&handed(&file)) else {
        panic!("opened for appending");
    };
    assert_eq!(error.errno(), libc::EINVAL, "{error}");
    assert!(error.message().contains("O_APPEND"), "{error}");
}
