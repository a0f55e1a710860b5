//! Where a file is made, and what is removed again: nothing of anybody else's, and no file among device nodes.

mod common;
mod store;

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, symlink};
use std::path::{Path, PathBuf};

use common::{Scratch, is_root, payload};
use store::{Rig, Target, run, storage_config, try_run};
use unified::config::{Config, Drive};
use unified::context::Context;

fn making(path: &str) -> Config {
    let mut config = storage_config(path, Drive::Inline);
    config.device.file_size = 1 << 20;
    config
}

fn spilling(device: &str, path: &str) -> Config {
    let mut config = storage_config(device, Drive::Inline);
    config.device.spill = Some(path.into());
    config
}

fn refused(config: &Config, errno: i32, words: &[&str]) {
    let Err(error) = Context::open(config) else {
        panic!("{:?} was opened", config.device);
    };
    assert_eq!(error.errno(), errno, "{error}");
    for word in words {
        assert!(error.message().contains(word), "'{word}' in: {error}");
    }
}

struct Directory(PathBuf);

impl Directory {
    fn new(name: &str) -> Directory {
        let dir =
            Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("{name}-{}", std::process::id()));
        fs::create_dir(&dir).unwrap();
        Directory(dir)
    }

    fn path(&self, name: &str) -> String {
        self.0.join(name).to_str().unwrap().into()
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// Two tries: the first one must not clear the way for the second.
#[test]
fn a_link_that_leads_nowhere_stays() {
    let dir = Directory::new("links");
    let device = Target::disk();
    fs::create_dir(dir.path("there")).unwrap();
    for target in ["missing/log", "there/log", "/dev/nvme9n1"] {
        let link = dir.path("link");
        symlink(target, &link).unwrap();
        for config in [
            making(&link),
            spilling(&device.path, &link),
            storage_config(&link, Drive::Inline),
        ] {
            for _ in 0..2 {
                refused(&config, libc::ENOENT, &["symbolic link", target, &link]);
                assert_eq!(fs::read_link(&link).unwrap(), Path::new(target));
            }
        }
        fs::remove_file(&link).unwrap();
    }
    assert_eq!(fs::read_dir(dir.path("there")).unwrap().count(), 0);
    assert!(!Path::new("/dev/nvme9n1").exists());
}

#[test]
fn a_link_that_leads_somewhere_is_followed_and_stays() {
    let dir = Directory::new("followed");
    let (file, link) = (dir.path("file"), dir.path("link"));
    File::create(&file)
        .unwrap()
        .write_all_at(&payload(1, 4096), 0)
        .unwrap();
    symlink("file", &link).unwrap();
    // The second fails for its size alone, and what was there before stays.
    drop(Rig::open(&making(&link)));
    let mut wrong = making(&link);
    wrong.device.block_size = 512;
    wrong.device.file_size = u64::MAX >> 1;
    let Err(_) = Context::open(&wrong) else {
        panic!("that much does not fit");
    };
    assert_eq!(fs::read_link(&link).unwrap(), Path::new("file"));
    assert!(fs::read(&file).unwrap()[..4096] == payload(1, 4096));
}

/// What a failed opening made is gone, the spill and the device both; what it found is not.
#[test]
fn only_what_was_made_is_removed() {
    let dir = Directory::new("made");
    let file = dir.path("file");
    // The device is made first.
    let mut config = making(&file);
    config.device.spill = Some(dir.path("no/spill"));
    refused(&config, libc::ENOENT, &["no/spill"]);
    assert_eq!(fs::read_dir(&dir.0).unwrap().count(), 0);
    fs::write(&file, payload(1, 4096)).unwrap();
    refused(&config, libc::ENOENT, &["no/spill"]);
    assert!(fs::read(&file).unwrap()[..4096] == payload(1, 4096));
}

/// Each program that makes a file for its device comes by here.
#[test]
fn no_file_is_made_among_device_nodes() {
    if !is_root("no_file_is_made_among_device_nodes") {
        return;
    }
    let device = Target::disk();
    for path in [
        "/dev/nvme9n1",
        "/dev/ng9n1",
        "/dev/disk9",
        "/proc/unified",
        "/sys/unified",
        "/sys/block/nvme9n1",
    ] {
        for config in [making(path), spilling(&device.path, path)] {
            refused(&config, libc::ENOENT, &["no device", path]);
        }
        assert!(!Path::new(path).exists());
    }
    // A loop device is what was meant, if there are any.
    if Path::new("/dev/loop0").exists() {
        refused(
            &making("/dev/loop977"),
            libc::ENOENT,
            &["did you mean", "/dev/loop"],
        );
    }
    // Through a link, and relative.
    let dir = Directory::new("nodes");
    symlink("/dev", dir.path("devices")).unwrap();
    refused(
        &making(&dir.path("devices/nvme9n1")),
        libc::ENOENT,
        &["no device"],
    );
    refused(
        &making("/dev/../dev/./nvme9n1"),
        libc::ENOENT,
        &["no device"],
    );
    // One that is there by an earlier mistake.
    let mistake = Scratch::new("/dev", "mistake");
    File::create(&mistake.0).unwrap().set_len(1 << 20).unwrap();
    let mut plain = making(mistake.path());
    refused(&plain, libc::EINVAL, &["not a device", mistake.path()]);
    plain.device.file_size = 0;
    refused(&plain, libc::EINVAL, &["not a device", mistake.path()]);
    // Files in memory are legitimate where files are kept.
    let shared = Scratch::new("/dev/shm", "place");
    drop(Rig::open(&making(shared.path())));
    assert!(shared.0.exists());
}

/// A container's /dev is an ordinary tmpfs, and may be seen under another name too.
#[test]
fn no_file_is_made_in_a_containers_dev() {
    if !is_root("no_file_is_made_in_a_containers_dev") {
        return;
    }
    let dir = Directory::new("container");
    let (elsewhere, free) = (dir.path("dev"), dir.path("free"));
    let there = std::thread::spawn(move || {
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNS).unwrap();
        run("mount", &["--make-rprivate", "/"]);
        for path in [&elsewhere, &free] {
            fs::create_dir(path).unwrap();
        }
        run("mount", &["--bind", "/dev", &elsewhere]);
        run("mount", &["-t", "tmpfs", "free", &free]);
        refused(
            &making(&format!("{elsewhere}/nvme9n1")),
            libc::ENOENT,
            &["no device", "devtmpfs"],
        );
        drop(Rig::open(&making(&format!("{free}/log"))));
        run("umount", &[&free]);
        run("umount", &[&elsewhere]);
        run("mount", &["-t", "tmpfs", "dev", "/dev"]);
        fs::create_dir("/dev/shm").unwrap();
        refused(
            &making("/dev/nvme9n1"),
            libc::ENOENT,
            &["no device", "device nodes"],
        );
        drop(Rig::open(&making("/dev/shm/log")));
        let _ = try_run("umount", &["/dev"]);
    });
    there.join().unwrap();
}

/// Whoever gave a size is told what is wrong with it.
#[test]
fn a_size_that_is_too_small_is_told_as_such() {
    let file = Scratch::new("/dev/shm", "size");
    let mut config = making(file.path());
    config.device.file_size = 100;
    refused(
        &config,
        libc::EINVAL,
        &["file size given is 100", "at least 512"],
    );
    assert!(!file.0.exists());
    fs::write(&file.0, [1; 100]).unwrap();
    config.device.file_size = 0;
    refused(
        &config,
        libc::EINVAL,
        &["has 100 bytes", "give a file size"],
    );
}
