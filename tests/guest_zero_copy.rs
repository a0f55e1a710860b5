//! Zero-copy from a NIC to an NVMe drive, and the fallback if the driver cannot. UNIFIED_TEST_NIC names
//! the interface, UNIFIED_TEST_SENDER a channel on which a sender beyond it takes requests, and
//! UNIFIED_TEST_ZERO_COPY says whether the kernel's driver can (1) or not (0). tests/vm/run has all that.

mod common;

use std::env;
use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader, Write};
use std::process::Command;
use std::time::{Duration, Instant};

use common::check_sums;
use common::{is_root, log_to_stderr, skip};
use unified::config::{Config, Drive};
use unified::context::Context;
use unified::lane::{Completion, Ready, Transfer};
use unified::net::rx::Received;
use unified::net::socket::ZeroCopy;

const COUNT: u64 = 1000;
const SIZE: u32 = 1024;

struct Machine {
    nic: String,
    node: String,
    block: String,
    sender: File,
    can: bool,
}

/// What the tests need, or `None` with the skip said.
fn machine(test: &str) -> Option<Machine> {
    if !is_root(test) {
        return None;
    }
    log_to_stderr();
    let all = ["NIC", "SENDER", "ZERO_COPY", "NVME"].map(|n| env::var(format!("UNIFIED_TEST_{n}")));
    let [Ok(nic), Ok(sender), Ok(can), Ok(drives)] = all else {
        skip(
            test,
            "UNIFIED_TEST_NIC and its fellows name no NIC, sender, drive",
        );
        return None;
    };
    let sender = OpenOptions::new()
        .read(true)
        .write(true)
        .open(sender)
        .unwrap();
    // The first drive that takes a payload of 1024 bytes as it is.
    let node = drives
        .split(',')
        .find(|node| {
            let block = node.replace("/dev/ng", "/sys/class/block/nvme");
            let name = |file: &str| std::fs::read_to_string(format!("{block}/{file}")).unwrap();
            name("queue/logical_block_size").trim() == "512"
                && name("device/serial").trim() == "plain"
        })
        .unwrap();
    let block = node.replace("/dev/ng", "/dev/nvme");
    // What other tests have left there.
    let mut file = OpenOptions::new().write(true).open(&block).unwrap();
    file.write_all(&vec![0; 4 << 20]).unwrap();
    file.sync_all().unwrap();
    Some(Machine {
        nic,
        node: node.into(),
        block,
        sender,
        can: can == "1",
    })
}

impl Machine {
    fn config(&self, zero_copy: ZeroCopy, drive: Drive) -> Config {
        let mut config = Config {
            ifname: Some(self.nic.clone()),
            zero_copy,
            drive,
            ..Config::default()
        };
        config.device.path = self.node.clone();
        config
    }

    /// Asks for packets, stores all of them, and has every byte verified.
    fn store(&mut self, context: Context, first: u64) {
        let frames = context.info().frame_count;
        writeln!(self.sender, "send {COUNT} {SIZE} 2000 9999 {first}").unwrap();
        let mut packets = [Received::default(); 64];
        let mut done = [Completion::default(); 64];
        let (mut lba, mut completed, start) = (0, 0, Instant::now());
        while completed < COUNT && start.elapsed() < Duration::from_secs(30) {
            context
                .wait(
                    Ready::RX | Ready::COMPLETIONS,
                    Some(Duration::from_millis(50)),
                )
                .unwrap();
            let count = context.receive(&mut packets).unwrap();
            for packet in &packets[..count] {
                assert_eq!(u32::from(packet.headers.payload_len), SIZE);
                let transfer = Transfer {
                    frame: packet.frame,
                    offset: packet.offset + u64::from(packet.headers.payload_offset),
                    len: SIZE,
                    lba,
                    ..Transfer::default()
                };
                // On a block of the frame, so that any device takes it where it is.
                assert_eq!(transfer.offset % 512, 0);
                while let Err(error) = context.submit_write(&transfer) {
                    assert_eq!(error.errno(), libc::EAGAIN, "{error}");
                    completed += take(&context, &mut done);
                }
                lba += u64::from(SIZE / 512);
            }
            completed += take(&context, &mut done);
        }
        let mut answer = String::new();
        BufReader::new(&self.sender).read_line(&mut answer).unwrap();
        assert_eq!(answer.trim(), format!("sent {COUNT}"));
        let stats = context.statistics().unwrap();
        assert_eq!(completed, COUNT, "{stats:#?}");
        assert_eq!((stats.stored, stats.bounced), (COUNT, 0), "{stats:#?}");
        check_sums(&stats, frames);
        drop(context);
        let verified = Command::new("unified-traffic")
            .args(["verify", &self.block, "--block", "512"])
            .args(["--stored", &COUNT.to_string(), "--sent", &COUNT.to_string()])
            .args(["--size", &SIZE.to_string(), "--first", &first.to_string()])
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&verified.stdout);
        assert!(verified.status.success(), "{text}");
        eprintln!("{text}");
    }
}

fn take(context: &Context, done: &mut [Completion]) -> u64 {
    let count = context.completions(done).unwrap();
    for completion in &done[..count] {
        let Completion { status, result, .. } = *completion;
        assert_eq!((status, result), (0, 0), "{completion:?}");
    }
    count as u64
}

#[test]
fn packets_from_the_nic_to_the_drive() {
    let Some(mut machine) = machine("packets_from_the_nic_to_the_drive") else {
        return;
    };
    for (i, drive) in [Drive::Inline, Drive::Thread].into_iter().enumerate() {
        let context = Context::open(&machine.config(ZeroCopy::Auto, drive)).unwrap();
        let network = context.info().network.unwrap();
        assert!(network.native && network.dispatcher);
        assert_eq!(network.zero_copy, machine.can);
        machine.store(context, i as u64 * COUNT);
    }
}

#[test]
fn zero_copy_is_insisted_on() {
    let Some(mut machine) = machine("zero_copy_is_insisted_on") else {
        return;
    };
    let opened = Context::open(&machine.config(ZeroCopy::Insist, Drive::Inline));
    if machine.can {
        let context = opened.unwrap();
        assert!(context.info().network.unwrap().zero_copy);
        machine.store(context, 7000);
    } else {
        let error = opened.err().unwrap();
        assert_eq!(error.errno(), libc::EOPNOTSUPP, "{error}");
        for word in ["zero-copy", machine.nic.as_str(), "copy mode"] {
            assert!(error.message().contains(word), "{error}");
        }
    }
}

#[test]
fn copy_mode_is_there_everywhere() {
    let Some(mut machine) = machine("copy_mode_is_there_everywhere") else {
        return;
    };
    let context = Context::open(&machine.config(ZeroCopy::Copy, Drive::Inline)).unwrap();
    assert!(!context.info().network.unwrap().zero_copy);
    machine.store(context, 9000);
}
