//! Packets over a veth pair, stored through a context, read back and compared byte by byte.

mod common;

use std::fs;

use common::storing::store_and_compare;
use common::{Scratch, is_root};
use unified::config::{Config, Drive};

fn file_config(path: &str, drive: Drive, frame_size: u32) -> Config {
    let mut config = Config {
        drive,
        frame_size,
        ..Config::default()
    };
    config.device.path = path.into();
    config.device.file_size = 2 << 20;
    config
}

#[test]
fn a_file_with_direct_io() {
    if !is_root("a_file_with_direct_io") {
        return;
    }
    for drive in [Drive::Inline, Drive::Thread] {
        for frame_size in [2048, 4096] {
            let file = Scratch::new(env!("CARGO_TARGET_TMPDIR"), "direct");
            store_and_compare(
                file_config(file.path(), drive, frame_size),
                Some(&|| fs::read(file.path()).unwrap()),
            );
        }
    }
}

#[test]
fn a_buffered_file() {
    if !is_root("a_buffered_file") {
        return;
    }
    for drive in [Drive::Inline, Drive::Thread] {
        let file = Scratch::new("/dev/shm", "buffered");
        store_and_compare(
            file_config(file.path(), drive, 2048),
            Some(&|| fs::read(file.path()).unwrap()),
        );
    }
}

#[test]
fn the_null_device() {
    if !is_root("the_null_device") {
        return;
    }
    for drive in [Drive::Inline, Drive::Thread] {
        store_and_compare(file_config("null:", drive, 2048), None);
    }
}
