//! Invalid requests are refused with an errno and a sentence that names the reason, and leave nothing: no
//! program on the interface, no descriptor, no mapping, no program in the kernel, no thread.
#![deny(unsafe_code)]

#[path = "../common/mod.rs"]
mod common;

#[allow(unsafe_code)]
mod c;
mod calls;
mod devices;
mod opening;
mod recorders;
mod resources;
mod wishes;

use std::collections::BTreeMap;
use std::ffi::CString;
use std::fs;
use std::io::{BufRead, BufReader};
use std::net::UdpSocket;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use common::{Scratch, Veth, ip, is_root, payload};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use unified::capi::types::*;
use unified::config::{Config, Drive};
use unified::context::Context;
use unified::lane::Ready;
use unified::net::rx::Received;
use unified::net::xdp::programs_of;
use unified::sys::mmap::Mapping;
use unified::sys::shm::Shared;
use unified::sys::xsk::{QueueSetup, Umem, UmemSetup};
use unified::sys::{bpf, link};
use wishes::*;

/// What these tests count belongs to the whole process: one at a time.
fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

// ---- What a process holds ----

#[derive(Debug, PartialEq, Eq)]
struct Holdings {
    fds: BTreeMap<String, String>,
    /// Mappings that only the library makes: shared anonymous memory, and those of kernel objects.
    mappings: Vec<String>,
    programs: Vec<u32>,
    threads: Vec<String>,
}

fn holdings() -> Holdings {
    let name = |entry: &fs::DirEntry| entry.file_name().into_string().unwrap();
    let fds = fs::read_dir("/proc/self/fd").unwrap().flatten();
    // The one that reads the directory is gone again when its link is read.
    let fds = fds
        .filter_map(|e| Some((name(&e), fs::read_link(e.path()).ok()?)))
        .map(|(fd, to)| (fd, to.to_string_lossy().into_owned()))
        .filter(|(_, to)| !to.ends_with("/fd"))
        .collect();
    let maps = fs::read_to_string("/proc/self/maps").unwrap();
    let ours = ["/dev/zero", "anon_inode:", "socket:"];
    let mappings = maps
        .lines()
        .filter(|line| ours.iter().any(|our| line.contains(our)))
        .map(String::from)
        .collect();
    let threads = fs::read_dir("/proc/self/task").unwrap().flatten();
    let threads = threads
        .filter_map(|task| fs::read_to_string(task.path().join("comm")).ok())
        .filter(|comm| comm.starts_with("unified-"))
        .collect();
    Holdings {
        fds,
        mappings,
        programs: programs_of(std::process::id()).unwrap(),
        threads,
    }
}

/// Programs and sockets are freed by the kernel a little after their last descriptor was closed.
fn assert_unchanged(before: &Holdings, after: &str) {
    let until = Instant::now() + Duration::from_secs(3);
    loop {
        let now = holdings();
        if now == *before {
            return;
        }
        assert!(
            Instant::now() < until,
            "{after}: {before:#?} became {now:#?}"
        );
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn assert_bare(veth: &Veth, after: &str) {
    let index = link::index_of(&veth.host).unwrap();
    let attached = bpf::attached(index);
    assert!(attached.is_none(), "{after}: {attached:?}");
}

// ---- Other processes ----

const CHILD: &str = "UNIFIED_TEST_CHILD";

fn recorder_config(ifname: &str) -> Config {
    let mut config = Config {
        ifname: Some(ifname.into()),
        frame_count: 256,
        drive: Drive::Thread,
        ..Config::default()
    };
    config.device.path = "null:".into();
    config
}
