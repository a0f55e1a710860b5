//! Packets over a veth pair, of which half are stored and half released, many with each call.

mod common;

use std::fs;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use common::{Scratch, Veth, check_sums, is_root, payload};
use unified::config::{Config, Drive};
use unified::context::Context;
use unified::lane::{Completion, Ready, Transfer};
use unified::net::rx::Received;

const PATIENCE: Duration = Duration::from_secs(20);
const BLOCK: usize = 512;
const COUNT: usize = 2000;
const RING: u32 = 32;
/// The fill ring has room for all packets: none is dropped, however long the receiver is kept from running.
const FRAMES: u32 = 4096;

fn open(veth: &Veth, device: &str, drive: Drive) -> Context {
    let mut config = Config {
        ifname: Some(veth.host.clone()),
        frame_count: FRAMES,
        rx_ring: 2048,
        fill_ring: 2048,
        sq_entries: RING,
        cq_entries: RING,
        drive,
        ..Config::default()
    };
    config.device.path = device.into();
    config.device.file_size = 4 << 20;
    config.device.block_size = BLOCK as u32;
    Context::open(&config).unwrap()
}

fn payload_of(number: usize) -> Vec<u8> {
    payload(number as u32, 1 + number * 97 % 1472)
}

/// Takes completions, all of them of writes that succeeded: how many.
fn take(context: &Context) -> usize {
    let mut done = [Completion::default(); RING as usize];
    let count = context.completions(&mut done).unwrap();
    for one in &done[..count] {
        assert_eq!((one.status, one.result, one.frame), (0, 0, None));
    }
    count
}

/// Submits all writes, as many at once as there is room for: how many completions it took meanwhile.
fn submit(context: &Context, writes: &[Transfer]) -> usize {
    let (mut at, mut completed) = (0, 0);
    while at < writes.len() {
        let rest = &writes[at..];
        match context.submit_writes(rest.iter().map(|write| Ok(*write))) {
            Ok(progress) => {
                let errno = progress.refused.map(|error| error.errno());
                let short = (progress.done as usize) < rest.len();
                assert_eq!(errno, short.then_some(libc::EAGAIN));
                at += progress.done as usize;
            }
            Err(error) => assert_eq!(error.errno(), libc::EAGAIN, "{error}"),
        }
        completed += take(context);
    }
    completed
}

/// Every second packet is stored; the others are released by another thread.
fn store_half(veth: &Veth, drive: Drive) {
    let file = Scratch::new(env!("CARGO_TARGET_TMPDIR"), "batches");
    let context = open(veth, file.path(), drive);
    let payloads = (0..COUNT).map(payload_of).collect();
    let (unwanted, list) = mpsc::channel::<Vec<u32>>();
    let sender = veth.send(9999, payloads, 20_000);
    let stored: Vec<(usize, u64)> = std::thread::scope(|scope| {
        let other = scope.spawn(|| {
            for frames in list {
                let all = frames.len();
                let progress = context.frames_release(frames).unwrap();
                assert_eq!((progress.done as usize, progress.refused), (all, None));
            }
        });
        let mut packets = [Received::default(); 64];
        let (mut received, mut completed, mut lba) = (0, 0, 0);
        let mut stored = Vec::new();
        let start = Instant::now();
        while received < COUNT || completed < stored.len() {
            assert!(start.elapsed() < PATIENCE, "{:#?}", context.statistics());
            let wanted = Ready::RX | Ready::COMPLETIONS;
            context
                .wait(wanted, Some(Duration::from_millis(100)))
                .unwrap();
            let count = context.receive(&mut packets).unwrap();
            let (mut writes, mut others) = (Vec::new(), Vec::new());
            for packet in &packets[..count] {
                let len = u32::from(packet.headers.payload_len);
                if received % 2 == 1 {
                    others.push(packet.frame);
                } else {
                    writes.push(Transfer {
                        frame: packet.frame,
                        offset: packet.offset + u64::from(packet.headers.payload_offset),
                        len,
                        lba,
                        user_data: lba,
                        ..Transfer::default()
                    });
                    stored.push((received, lba));
                    lba += u64::from(context.blocks_of(0, len));
                }
                received += 1;
            }
            if !others.is_empty() {
                unwanted.send(others).unwrap();
            }
            completed += submit(&context, &writes) + take(&context);
        }
        drop(unwanted);
        other.join().unwrap();
        stored
    });
    sender.join().unwrap();
    let stats = context.statistics().unwrap();
    check_sums(&stats, FRAMES);
    let half = COUNT as u64 / 2;
    assert_eq!((stats.stored, stats.released), (half, half), "{stats:#?}");
    assert_eq!((stats.submitted, stats.errors), (half, 0), "{stats:#?}");
    assert_eq!(stats.frames.held, 0, "{stats:#?}");
    drop(context);
    let bytes = fs::read(file.path()).unwrap();
    for (number, lba) in stored {
        let expected = payload_of(number);
        let at = lba as usize * BLOCK;
        let (found, rest) = bytes[at..].split_at(expected.len());
        assert!(found == expected, "payload {number}");
        let padding = expected.len().next_multiple_of(BLOCK) - expected.len();
        assert!(rest[..padding].iter().all(|b| *b == 0), "{number}");
    }
}

#[test]
fn half_is_stored_and_half_released() {
    if !is_root("half_is_stored_and_half_released") {
        return;
    }
    let veth = Veth::new();
    for drive in [Drive::Inline, Drive::Thread] {
        store_half(&veth, drive);
    }
}

/// All frames are the caller's, and the receiver waits for packets: none can come before the release.
#[test]
fn a_receiver_that_ran_dry_is_woken_once_for_all() {
    if !is_root("a_receiver_that_ran_dry_is_woken_once_for_all") {
        return;
    }
    let veth = Veth::new();
    let context = open(&veth, "null:", Drive::Inline);
    let mut held = Vec::new();
    let mut packets = [Received::default(); 64];
    let start = Instant::now();
    while held.len() < FRAMES as usize {
        assert!(start.elapsed() < PATIENCE, "{:#?}", context.statistics());
        veth.send(9999, vec![vec![1]; 100], 20_000).join().unwrap();
        loop {
            match context.receive(&mut packets).unwrap() {
                0 => break,
                count => held.extend(packets[..count].iter().map(|packet| packet.frame)),
            }
        }
    }
    let before = context.statistics().unwrap();
    let dropped = before.xsk.rx_dropped;
    assert_eq!((before.frames.free, before.frames.filled), (0, 0));
    std::thread::scope(|scope| {
        let releaser = scope.spawn(|| {
            std::thread::sleep(Duration::from_millis(50));
            let done = context.frames_release(held.iter().copied()).unwrap().done;
            // Until the receiver has put frames into the fill ring.
            while context.statistics().unwrap().frames.filled < 100 {
                assert!(start.elapsed() < PATIENCE, "the receiver sleeps");
                std::thread::yield_now();
            }
            veth.send(9999, vec![vec![2]; 100], 20_000).join().unwrap();
            done
        });
        let ready = context.wait(Ready::RX, Some(PATIENCE)).unwrap();
        assert!(ready.rx, "{:#?}", context.statistics());
        assert_eq!(releaser.join().unwrap(), FRAMES);
    });
    let mut more = 0;
    while more < 100 {
        assert!(start.elapsed() < PATIENCE, "{:#?}", context.statistics());
        let count = context.receive(&mut packets).unwrap();
        let frames = packets[..count].iter().map(|packet| packet.frame);
        more += context.frames_release(frames).unwrap().done;
    }
    let stats = context.statistics().unwrap();
    assert_eq!(stats.xsk.rx_dropped, dropped, "{stats:#?}");
    assert_eq!(stats.released, u64::from(FRAMES) + 100, "{stats:#?}");
    check_sums(&stats, FRAMES);
}
