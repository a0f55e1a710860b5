//! An XDP program is taken off an interface only if its owner has ended, whatever namespaces the two are in.
#![deny(unsafe_code)]

mod common;

use std::sync::Arc;

use common::part::{Part, hear, say, told};
use common::recording::{Stream, settle, statistics, until};
use common::{Veth, check_sums, is_root};
use unified::config::{Config, Drive};
use unified::context::Context;
use unified::pipeline::{Pipeline, PipelineConfig};
use unified::sys::bpf;
use unified::sys::link::index_of;

fn config(ifname: &str) -> Config {
    let mut config = Config {
        ifname: Some(ifname.into()),
        frame_count: 256,
        rx_ring: 128,
        fill_ring: 128,
        drive: Drive::Thread,
        ..Config::default()
    };
    config.device.path = "null:".into();
    config
}

/// Records until told to end, in whatever namespaces this process is.
fn record(ifname: &str) {
    let context = Arc::new(Context::open(&config(ifname)).unwrap());
    let pipeline = Pipeline::start(context.clone(), PipelineConfig::default()).unwrap();
    say("recording");
    while hear() == "look" {
        say(statistics(&context).stored);
    }
    let stats = settle(&context);
    drop(pipeline);
    check_sums(&stats, 256);
    say(stats.stored);
}

/// A recorder in namespaces of its own, and one here that wants its interface: it is refused, and the first goes on;
/// when that was killed, its program is taken off.
fn keeps_its_interface(test: &str, unshare: &[&str], who: &str) {
    let veth = Veth::new();
    let mut part = Part::start(test, &veth.host, unshare);
    assert_eq!(part.says(), "recording");
    let program = || {
        let index = index_of(&veth.host).unwrap();
        bpf::attached(index).map(|list| list.programs[0].id)
    };
    let before = program().unwrap();
    let error = Context::open(&config(&veth.host)).err().unwrap();
    assert_eq!(error.errno(), libc::EBUSY, "{error}");
    assert!(error.message().contains(who), "{error}");
    assert_eq!(program(), Some(before));
    let stored = |part: &mut Part| -> u64 {
        part.tell("look");
        part.says().parse().unwrap()
    };
    let stream = Stream::start(&veth);
    until(20, "the first one goes on", || stored(&mut part) > 100);
    stream.stop();
    // unshare kills what it started when it is killed itself.
    part.child.kill().unwrap();
    part.child.wait().unwrap();
    let mut context = None;
    until(10, "what it left is taken off", || {
        context = Context::open(&config(&veth.host)).ok();
        context.is_some()
    });
    assert_ne!(program(), Some(before));
}

#[test]
fn a_recorder_in_another_pid_namespace_keeps_its_interface() {
    if let Some(ifname) = told() {
        return record(&ifname);
    }
    let name = "a_recorder_in_another_pid_namespace_keeps_its_interface";
    if is_root(name) {
        let unshare = ["unshare", "--pid", "--fork", "--mount-proc", "--kill-child"];
        keeps_its_interface(name, &unshare, "of another PID namespace");
    }
}

/// There a process's start time, which the kernel tells in the reader's clock, has another number.
#[test]
fn a_recorder_in_another_time_namespace_keeps_its_interface() {
    if let Some(ifname) = told() {
        return record(&ifname);
    }
    let name = "a_recorder_in_another_time_namespace_keeps_its_interface";
    if is_root(name) {
        let unshare = [
            "unshare",
            "--time",
            "--boottime",
            "864000",
            "--fork",
            "--kill-child",
        ];
        keeps_its_interface(name, &unshare, "is already in use by recorder process");
    }
}
