//! Faults of the process: killed, stopped, aborted, ended, forked with I/O in flight; without a privilege,
//! without memory, without io_uring. A restart finds nothing in its way, and errors name what is missing.
#![deny(unsafe_code)]

#[path = "../common/mod.rs"]
mod common;

mod ends;
mod handed_in;
mod limits;

use std::fs::{self, File};
use std::net::UdpSocket;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use common::part::{Part, hear, say, told};
use common::recording::{Stream, check_stored, numbered, settle, statistics, until};
use common::{Scratch, Veth, check_sums, is_full_tier, is_root, payload};
use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::sys::mman::{MlockAllFlags, mlockall};
use nix::sys::signal::Signal;
use unified::config::{Config, Drive};
use unified::context::Context;
use unified::lane::{Completion, Ready};
use unified::net::link;
use unified::net::rx::Received;
use unified::net::xdp::{Xdp, XdpConfig, XdpMode, programs_of};
use unified::pipeline::{Pipeline, PipelineConfig};
use unified::sys::bpf;
use unified::sys::xsk;

fn part_config(ifname: &str, path: &str) -> Config {
    let mut config = Config {
        ifname: Some(ifname.into()),
        frame_count: 512,
        rx_ring: 256,
        fill_ring: 256,
        drive: Drive::Thread,
        ..Config::default()
    };
    config.device.path = path.into();
    config.device.block_size = common::recording::BLOCK as u32;
    if !path.starts_with("null:") {
        config.device.file_size = 16 << 20;
    }
    config
}

fn index_of(veth: &Veth) -> u32 {
    unified::sys::link::index_of(&veth.host).unwrap()
}

/// Opens, receives and closes: everything is as if nothing had been.
fn works_again(veth: &Veth) {
    let context = Context::open(&part_config(&veth.host, "null:")).unwrap();
    let stream = Stream::start(veth);
    until(10, "packets come", || {
        for packet in receive_some(&context) {
            context.frame_release(packet.frame).unwrap();
        }
        statistics(&context).received > 20
    });
    drop(stream);
    drop(context);
    assert!(bpf::attached(index_of(veth)).is_none());
}

fn receive_some(context: &Context) -> Vec<Received> {
    let mut packets = [Received::default(); 64];
    let count = context.receive(&mut packets).unwrap();
    packets[..count].to_vec()
}

fn stored(part: &mut Part) -> u64 {
    part.tell("stored");
    part.says().parse().unwrap()
}
