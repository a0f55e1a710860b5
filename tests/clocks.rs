//! Times of packets are in the clock of the process that reads them, whatever time namespace it is in.
#![deny(unsafe_code)]

mod common;

use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use common::part::{Part, hear, say, told};
use common::recording::{settle, until};
use common::{Scratch, Veth, check_sums, is_root, payload};
use unified::config::{Config, Drive};
use unified::context::Context;
use unified::lane::Ready;
use unified::pipeline::{Pipeline, PipelineConfig, StoreLayout};
use unified::sys::event::monotonic_ns;

const COUNT: u32 = 50;
const LATE: u64 = 20_000_000_000;

fn config(ifname: &str, path: &str) -> Config {
    let mut config = Config {
        ifname: Some(ifname.into()),
        drive: Drive::Thread,
        ..Config::default()
    };
    config.device.path = path.into();
    config.device.file_size = 1 << 20;
    config
}

/// `COUNT` packets by hand, then a log of `COUNT` more.
fn receive_and_record(ifname: &str, path: &str) {
    let context = Context::open(&config(ifname, "null:")).unwrap();
    context.set_event_sample(1).unwrap();
    say("send");
    let mut received = 0;
    let mut packets = [Default::default(); 64];
    until(20, "packets come", || {
        context.wait(Ready::RX, None).unwrap();
        let count = context.receive(&mut packets).unwrap();
        for packet in &packets[..count] {
            let ago = monotonic_ns().wrapping_sub(packet.timestamp);
            assert!(ago < LATE, "received {ago} ns after its stamp");
            context.frame_release(packet.frame).unwrap();
        }
        received += count;
        received == COUNT as usize
    });
    let mut events = 0;
    until(20, "events come", || {
        context
            .drain_events(64, |event| {
                let ago = monotonic_ns().wrapping_sub(event.timestamp);
                assert!(ago < LATE, "read {ago} ns after its stamp");
                events += 1;
            })
            .unwrap();
        events == COUNT
    });
    check_sums(&context.statistics().unwrap(), context.info().frame_count);
    drop(context);

    let context = Arc::new(Context::open(&config(ifname, path)).unwrap());
    let slots = PipelineConfig {
        layout: StoreLayout::Slot,
        ..PipelineConfig::default()
    };
    let pipeline = Pipeline::start(context.clone(), slots).unwrap();
    say("send");
    until(20, "they are stored", || {
        pipeline.status().stored == u64::from(COUNT)
    });
    let stats = settle(&context);
    check_sums(&stats, context.info().frame_count);
    assert_eq!(stats.packet_latency.count(), COUNT.into());
    assert!(
        stats.packet_latency.max < LATE,
        "{:?}",
        stats.packet_latency
    );
    pipeline.stop().1.unwrap();
    say("done");
    hear();
}

#[test]
fn times_in_a_time_namespace_are_its_own() {
    if let Some(told) = told() {
        let (ifname, path) = told.split_once(' ').unwrap();
        return receive_and_record(ifname, path);
    }
    let name = "times_in_a_time_namespace_are_its_own";
    if !is_root(name) {
        return;
    }
    // A clock that is ahead, and one that is late.
    for monotonic in ["864000", "-1"] {
        let veth = Veth::new();
        let file = Scratch::new(env!("CARGO_TARGET_TMPDIR"), "clock");
        let told = format!("{} {}", veth.host, file.path());
        let unshare = [
            "unshare",
            "--time",
            "--monotonic",
            monotonic,
            "--fork",
            "--kill-child",
        ];
        let mut part = Part::start(name, &told, &unshare);
        for _ in 0..2 {
            assert_eq!(part.says(), "send");
            let packets = (0..COUNT).map(|i| payload(i, 300)).collect();
            veth.send(9999, packets, 5000).join().unwrap();
        }
        assert_eq!(part.says(), "done");
        part.tell("end");
        assert!(part.end().success());
        let mut reader = unified::log_reader::LogReader::open(file.path().as_ref(), 0).unwrap();
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
        let now = now.as_nanos() as u64;
        reader.seek_time(now - 2 * LATE).unwrap();
        assert_eq!(reader.position(), 0, "the records are of now");
        reader.seek_time(now).unwrap();
        assert_eq!(reader.position(), COUNT.into());
    }
}
