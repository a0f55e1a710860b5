//! Logs over a veth pair: recorded by the pipeline, read back, gone on with, killed.

#[path = "../common/mod.rs"]
mod common;
#[path = "../store/mod.rs"]
mod store;

mod reading;
mod recording;
mod units;

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use common::{Scratch, Veth, is_root, payload};
use store::{LoopDevice, Memory, can_loop, run};
use unified::config::{Config, Drive};
use unified::context::Context;
use unified::log_reader::{Item, LogReader};
use unified::pipeline::{AtEnd, Pipeline, PipelineConfig, PipelineStatus, StoreLayout};
use unified::recorder::Existing;

const FRAME: u64 = 2048;

fn config(veth: &str, path: &str, slots: u64, drive: Drive) -> Config {
    let mut config = Config {
        ifname: Some(veth.into()),
        drive,
        ..Config::default()
    };
    config.device.path = path.into();
    config.device.file_size = (slots + 2) * FRAME;
    config
}

fn slots() -> PipelineConfig {
    PipelineConfig {
        layout: StoreLayout::Slot,
        ..PipelineConfig::default()
    }
}

/// Waits until the pipeline has seen so many packets, and stops it.
fn finish(pipeline: Pipeline, packets: u64) -> PipelineStatus {
    let start = Instant::now();
    loop {
        let status = pipeline.status();
        if status.completed + status.no_space >= packets {
            break;
        }
        assert!(start.elapsed() < Duration::from_secs(20), "{status:?}");
        std::thread::sleep(Duration::from_millis(5));
    }
    let (status, result) = pipeline.stop();
    result.unwrap();
    status
}

/// Every record with its sequence number and payload; and no gap.
fn read_all(path: &str) -> Vec<(u64, Vec<u8>)> {
    read_through(LogReader::open(Path::new(path), 0).unwrap())
}

fn read_through(mut reader: LogReader) -> Vec<(u64, Vec<u8>)> {
    let mut all = Vec::new();
    while let Some(item) = reader.next_item().unwrap() {
        let Item::Record { header, packet } = item else {
            panic!("{item:?}");
        };
        let at = usize::from(header.payload_offset - header.packet_offset);
        let payload = &packet[at..at + usize::from(header.payload_len)];
        assert_eq!(header.dst_port, 9999);
        assert_eq!(packet.len(), at + payload.len());
        all.push((header.sequence, payload.to_vec()));
    }
    all
}

fn payloads(first: u32, count: u32) -> Vec<Vec<u8>> {
    (first..first + count)
        .map(|i| payload(i, 1 + (i as usize * 131) % 1472))
        .collect()
}
