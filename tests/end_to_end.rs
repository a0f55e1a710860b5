//! Packets over a veth pair, stored through a context, read back and compared byte by byte.

mod common;

use std::fs;
use std::time::{Duration, Instant};

use common::{Scratch, Veth, is_root, payload};
use unified::config::{Config, Drive};
use unified::context::{Completion, Context};
use unified::net::rx::Received;
use unified::stats::Statistics;
use unified::submit::Transfer;
use unified::wait::{WAIT_COMPLETIONS, WAIT_RX};

const COUNT: u32 = 600;

/// The sums that must hold at a quiet moment.
fn check_sums(stats: &Statistics, frames: u32) {
    assert_eq!(
        stats.xdp.seen,
        stats.xdp.passed + stats.xdp.redirected,
        "{stats:#?}"
    );
    assert_eq!(stats.redirect_errors, 0, "{stats:#?}");
    assert_eq!(
        stats.xdp.redirected,
        stats.xsk.rx_dropped + stats.xsk.rx_ring_full + stats.received + stats.rx_pending,
        "{stats:#?}"
    );
    let f = stats.frames;
    assert_eq!(
        stats.received,
        stats.stored + stats.failed + stats.released + f.packets_held + f.packets_in_flight,
        "{stats:#?}"
    );
    assert_eq!(stats.submitted, stats.completed, "{stats:#?}");
    assert_eq!(
        f.free + f.filled + f.held + f.in_flight,
        u64::from(frames),
        "{stats:#?}"
    );
}

/// Mixed sizes, both ends of the range among them.
fn sizes() -> impl Iterator<Item = usize> {
    [1, 1472, 512, 511, 513, 1024, 1025]
        .into_iter()
        .chain((0..).map(|i: usize| 1 + (i * 97) % 1472))
}

fn store_and_compare(config: Config, path: &str) {
    let veth = Veth::new();
    let config = Config {
        ifname: Some(veth.host.clone()),
        ..config
    };
    let frames = config.frame_count;
    let context = Context::open(&config).unwrap();
    let block = context.info().limits.block_size as usize;
    let payloads: Vec<Vec<u8>> = sizes()
        .take(COUNT as usize)
        .enumerate()
        .map(|(i, len)| payload(i as u32, len))
        .collect();
    let sender = veth.send(9999, payloads.clone(), 20_000);

    let mut packets = [Received::default(); 64];
    let mut done = [Completion::default(); 64];
    let (mut received, mut completed, mut lba) = (0, 0, 0u64);
    let start = Instant::now();
    while completed < COUNT && start.elapsed() < Duration::from_secs(20) {
        context
            .wait(WAIT_RX | WAIT_COMPLETIONS, Some(Duration::from_millis(100)))
            .unwrap();
        let count = context.receive(&mut packets).unwrap();
        for packet in &packets[..count] {
            assert_eq!(
                packet.headers.payload_len as usize,
                payloads[received].len()
            );
            assert!(packet.timestamp > 0, "the metadata record is there on veth");
            let transfer = Transfer {
                frame: packet.frame,
                offset: packet.offset + u64::from(packet.headers.payload_offset),
                len: packet.headers.payload_len.into(),
                lba,
                user_data: received as u64,
                ..Transfer::default()
            };
            while let Err(error) = context.submit_write(&transfer) {
                assert_eq!(error.errno(), libc::EAGAIN, "{error}");
                completed += take(&context, &mut done);
            }
            lba += u64::from(context.blocks_of(transfer.len));
            received += 1;
        }
        completed += take(&context, &mut done);
    }
    sender.join().unwrap();
    let stats = context.statistics().unwrap();
    assert_eq!(completed, COUNT, "{stats:#?}");
    assert_eq!((stats.stored, stats.failed), (COUNT.into(), 0));
    check_sums(&stats, frames);
    drop(context);

    if path.is_empty() {
        return;
    }
    let stored = fs::read(path).unwrap();
    let mut at = 0;
    for (i, payload) in payloads.iter().enumerate() {
        let end = at + payload.len().next_multiple_of(block);
        assert!(
            stored[at..at + payload.len()] == payload[..],
            "payload {i} of {} bytes",
            payload.len()
        );
        assert!(
            stored[at + payload.len()..end].iter().all(|b| *b == 0),
            "padding of payload {i}"
        );
        at = end;
    }
    assert!(
        stored[at..].iter().all(|b| *b == 0),
        "nothing behind the last one"
    );
    assert!(unified::sys::bpf::attached(0).is_none());
}

fn take(context: &Context, done: &mut [Completion]) -> u32 {
    let count = context.completions(done).unwrap();
    for completion in &done[..count] {
        assert_eq!(
            (completion.status, completion.result),
            (0, 0),
            "{completion:?}"
        );
    }
    count as u32
}

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
            store_and_compare(file_config(file.path(), drive, frame_size), file.path());
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
        store_and_compare(file_config(file.path(), drive, 2048), file.path());
    }
}

#[test]
fn the_null_device() {
    if !is_root("the_null_device") {
        return;
    }
    for drive in [Drive::Inline, Drive::Thread] {
        store_and_compare(file_config("null:", drive, 2048), "");
    }
}
