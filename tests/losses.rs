//! What a recorder knew to be lost can be read from its log alone, also if the recorder was killed.
#![deny(unsafe_code)]

mod common;

use std::path::Path;
use std::sync::Arc;

use common::part::{Part, hear, say, told};
use common::recording::{settle, until};
use common::{Scratch, Veth, check_sums, is_root, payload};
use nix::sys::signal::Signal;
use unified::config::{Config, Drive};
use unified::context::Context;
use unified::log_reader::LogReader;
use unified::pipeline::{AtEnd, Pipeline, PipelineConfig, StoreLayout};
use unified::record::Losses;

const FRAMES: u32 = 256;

/// Records until it is told to end, or killed.
fn record(told: &str) {
    let [ifname, path, at_end] = told.split(' ').collect::<Vec<_>>()[..] else {
        panic!("{told}")
    };
    let mut config = Config {
        ifname: Some(ifname.into()),
        frame_count: FRAMES,
        rx_ring: 64,
        fill_ring: 64,
        drive: Drive::Thread,
        ..Config::default()
    };
    config.device.path = path.into();
    config.device.file_size = 2 << 20;
    let context = Arc::new(Context::open(&config).unwrap());
    let pipeline = Pipeline::start(
        context.clone(),
        PipelineConfig {
            layout: StoreLayout::Slot,
            at_end: match at_end {
                "wrap" => AtEnd::Wrap,
                _ => AtEnd::Stop,
            },
            ..PipelineConfig::default()
        },
    )
    .unwrap();
    say("recording");
    while hear() == "look" {
        let stats = settle(&context);
        check_sums(&stats, FRAMES);
        say(stats.stored);
    }
    pipeline.stop().1.unwrap();
    say("stopped");
    hear();
}

fn send(veth: &Veth, count: u32) {
    let packets = (0..count).map(|i| payload(i, 300)).collect();
    veth.send(9999, packets, 20_000).join().unwrap();
}

fn stored(part: &mut Part) -> u64 {
    part.tell("look");
    part.says().parse().unwrap()
}

fn losses(path: &Path) -> Losses {
    LogReader::open(path, 0).unwrap().superblock().losses
}

#[test]
fn losses_are_in_the_log_and_add_up() {
    if let Some(told) = told() {
        return record(&told);
    }
    let name = "losses_are_in_the_log_and_add_up";
    if !is_root(name) {
        return;
    }
    let veth = Veth::new();
    let file = Scratch::new(env!("CARGO_TARGET_TMPDIR"), "losses");
    let path = file.0.clone();
    let start = |at_end: &str| {
        let told = format!("{} {} {at_end}", veth.host, file.path());
        let mut part = Part::start(name, &told, &[]);
        assert_eq!(part.says(), "recording");
        part
    };
    let mut part = start("wrap");
    send(&veth, 10);
    until(10, "they are stored", || stored(&mut part) == 10);
    assert_eq!(losses(&path), Losses::default());
    // Nobody takes packets: the rings fill, and the rest is dropped.
    part.signal(Signal::SIGSTOP);
    send(&veth, 300);
    part.signal(Signal::SIGCONT);
    let mut kept = 0;
    until(10, "the log knows of every packet", || {
        kept = stored(&mut part);
        losses(&path).dropped == 310 - kept
    });
    assert!((10..310).contains(&kept), "{kept}");
    part.signal(Signal::SIGKILL);
    part.end();
    let first = losses(&path);
    assert_eq!((first.dropped, first.unrecorded), (310 - kept, 0));
    assert!(first.first > 0 && first.first <= first.last);
    let mut reader = LogReader::open(&path, 0).unwrap();
    assert_eq!(reader.superblock().interface_name(), Some(&*veth.host));
    assert_eq!(reader.end().unwrap(), kept);

    // The next recorder goes on with it. This one stops when the log is full.
    let slots = reader.superblock().slots;
    let mut part = start("stop");
    send(&veth, 1500);
    until(10, "all has come", || stored(&mut part) == slots - kept);
    part.tell("end");
    assert_eq!(part.says(), "stopped");
    part.tell("end");
    assert!(part.end().success());
    let second = losses(&path);
    assert_eq!(
        second.dropped - first.dropped + second.unrecorded,
        1500 - (slots - kept)
    );
    assert!(second.unrecorded > 0);
    assert_eq!(second.first, first.first);
    assert!(second.last > first.last);
}
