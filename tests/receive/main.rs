//! Real traffic over a veth pair: what is received, what reaches the stack, what is dropped and counted,
//! and what the pipeline makes of it. The sums of the statistics are checked after each.
#![forbid(unsafe_code)]

#[path = "../common/mod.rs"]
mod common;

mod packets;
mod pipelines;
mod striped;

use std::collections::VecDeque;
use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::time::{Duration, Instant};

use common::{Scratch, Veth, check_sums, ip, is_root, payload};
use etherparse::PacketBuilder;
use unified::config::{Config, Drive};
use unified::context::Context;
use unified::lane::{Completion, Ready};
use unified::net::packet::{Headers, addresses};
use unified::net::rx::Received;
use unified::net::wire::Event;
use unified::pipeline::{AtEnd, Pipeline, PipelineConfig, PipelineStatus};
use unified::stats::Statistics;
use unified::sys::event::monotonic_ns;

const PORT: u16 = 9999;
const FRAMES: u32 = 1024;
const PATIENCE: Duration = Duration::from_secs(10);

fn config(veth: &Veth) -> Config {
    let mut config = Config {
        ifname: Some(veth.host.clone()),
        frame_count: FRAMES,
        rx_ring: 512,
        fill_ring: 512,
        sq_entries: 64,
        cq_entries: 64,
        ..Config::default()
    };
    config.device.path = "null:".into();
    config
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Got {
    payload: Vec<u8>,
    headers: Headers,
    addresses: ([u8; 16], [u8; 16]),
    timestamp: u64,
    len: u32,
}

/// Receives until `count` packets have come, and releases them. Fails if they do not come.
fn receive(context: &Context, count: usize) -> Vec<Got> {
    let mut all = Vec::new();
    let mut packets = [Received::default(); 32];
    let until = Instant::now() + PATIENCE;
    while all.len() < count {
        assert!(
            Instant::now() < until,
            "{} of {count} packets: {:#?}",
            all.len(),
            context.statistics()
        );
        context
            .wait(Ready::RX, Some(Duration::from_millis(50)))
            .unwrap();
        let got = context.receive(&mut packets).unwrap();
        for packet in &packets[..got] {
            let mut bytes = vec![0; packet.len as usize];
            context.data().read(packet.offset as usize, &mut bytes);
            let headers = packet.headers;
            let at = usize::from(headers.payload_offset);
            all.push(Got {
                payload: bytes[at..at + usize::from(headers.payload_len)].to_vec(),
                headers,
                addresses: addresses(&bytes, &headers).unwrap(),
                timestamp: packet.timestamp,
                len: packet.len,
            });
            context.frame_release(packet.frame).unwrap();
        }
    }
    all
}

fn contents(got: &[Got]) -> Vec<&[u8]> {
    got.iter().map(|got| &got.payload[..]).collect()
}

/// The statistics once `done` says that everything has come, with their sums checked.
fn quiet(context: &Context, done: impl Fn(&Statistics) -> bool) -> Statistics {
    let until = Instant::now() + PATIENCE;
    let mut before = context.statistics().unwrap();
    loop {
        // Neighbour discovery and the like come at any time: quiet is what does not change.
        std::thread::sleep(Duration::from_millis(10));
        let now = context.statistics().unwrap();
        let same = now.xdp == before.xdp && now.received == before.received;
        if same && done(&now) {
            check_sums(&now, context.info().frame_count);
            return now;
        }
        assert!(Instant::now() < until, "not quiet: {now:#?}");
        before = now;
    }
}

/// An ordinary socket on the near side.
fn stack(veth: &Veth, port: u16) -> UdpSocket {
    let socket = UdpSocket::bind((veth.host_addr, port)).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    socket
}

fn read(socket: &UdpSocket, count: usize) -> Vec<Vec<u8>> {
    let mut buffer = vec![0; 65536];
    let mut one = || {
        let len = socket.recv(&mut buffer).expect("a datagram for the stack");
        buffer[..len].to_vec()
    };
    (0..count).map(|_| one()).collect()
}

fn payloads(first: u32, count: usize) -> Vec<Vec<u8>> {
    (0..count as u32)
        .map(|i| payload(first + i, 1 + (i as usize * 61) % 1472))
        .collect()
}

// ---- The pipeline ----

fn reached(pipeline: &Pipeline, done: impl Fn(&PipelineStatus) -> bool) -> PipelineStatus {
    let until = Instant::now() + PATIENCE;
    loop {
        let status = pipeline.status();
        if done(&status) {
            return status;
        }
        assert!(Instant::now() < until, "{status:?}");
        std::thread::sleep(Duration::from_millis(5));
    }
}
