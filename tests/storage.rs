//! Every command on every kind of device, through the API, compared with what stands on the device.

mod common;
mod store;

use std::time::Duration;

use store::{DEVICE_BYTES, Rig, STALE, Target, can_loop, succeeded};
use unified::config::{Config, Drive};
use unified::context::Context;
use unified::lane::{Blocks, Completion, Transfer};
use unified::sys::abi::NvmeUringCmd;
use unified::sys::event::poll_readable;

use common::payload;

/// Makes each of these functions a test on the devices that need no privilege, and one on loop devices;
/// both with either drive.
macro_rules! on_every_target {
    ($($name:ident),* $(,)?) => {
        mod plain {
            $(#[test]
            fn $name() {
                super::store::each(super::Target::plain(), super::$name);
            })*
        }

        mod loops {
            $(#[test]
            fn $name() {
                if super::can_loop(concat!("loops::", stringify!($name))) {
                    super::store::each(super::Target::loops(), super::$name);
                }
            })*
        }
    };
}

on_every_target!(
    writes_of_every_length,
    payloads_of_packets,
    compare_tells_equal_from_different,
    flush_and_fua,
    write_zeroes_and_deallocate,
    identify,
    what_cannot_be_right_gets_its_status,
    the_end_of_the_device,
    what_does_not_fit_a_frame_is_refused,
    frames_are_kept_or_consumed,
    a_batch_is_taken_whole,
    a_full_sq_says_so_and_goes_on,
    a_device_opened_for_reading,
);

/// Writes at growing LBAs, then compares the whole device with what should be there.
fn write_all(target: &Target, rig: Rig, at: usize, lens: &[usize]) {
    let block = rig.block();
    let mut expected = rig.prefill(64 << 10);
    let mut lba = 0;
    for (i, len) in lens.iter().enumerate() {
        let bytes = payload(i as u32, *len);
        let done = rig.write(lba as u64, at, &bytes);
        succeeded(&done);
        let padded = len.next_multiple_of(block);
        assert_eq!(done.len as usize, padded);
        let start = lba * block;
        expected[start..start + padded].fill(0);
        expected[start..start + len].copy_from_slice(&bytes);
        let back = rig.read(lba as u64, padded);
        if target.stores() {
            assert!(
                back == expected[start..start + padded],
                "{len} bytes at {at}"
            );
        } else {
            assert!(back.iter().all(|b| *b == 0), "null reads as zeroes");
        }
        lba += padded / block;
    }
    let stats = rig.context.statistics().unwrap();
    assert_eq!(stats.errors, 0, "{stats:#?}");
    drop(rig);
    if target.stores() {
        expected.resize(DEVICE_BYTES as usize, 0);
        let image = target.image();
        assert_eq!(image.len(), expected.len());
        if image != expected {
            let wrong = image.iter().zip(&expected).position(|(a, b)| a != b);
            panic!("first wrong byte on {}: {wrong:?}", target.name);
        }
    }
}

fn writes_of_every_length(target: &Target, rig: Rig) {
    write_all(target, rig, 0, &[1, 511, 512, 513, 1472, 2048, 4095, 4096]);
}

/// As packets have them: at 512, and with headers that do not align them.
fn payloads_of_packets(target: &Target, rig: Rig) {
    let drive = rig.context.info().drive;
    write_all(target, rig, 512, &[1, 511, 512, 513, 1472, 3584]);
    for frame_size in [2048, 4096] {
        for at in [300, 516, 532] {
            let mut config = target.config(drive);
            config.frame_size = frame_size;
            if target.block > frame_size as usize {
                // A block does not fit into a frame of these: it is written, but not read by them.
                let rig = Rig::open(&config);
                let bytes = payload(at as u32, 1472);
                let done = rig.write(3, at, &bytes);
                succeeded(&done);
                assert!(done.bounced, "the padded end is beyond the frame");
                let image = target.image();
                assert!(image[3 * 4096..][..1472] == bytes[..]);
                assert!(image[3 * 4096 + 1472..4 * 4096].iter().all(|b| *b == 0));
                continue;
            }
            write_all(target, Rig::open(&config), at, &[1, 511, 512, 513, 1472]);
        }
    }
}

fn compare_tells_equal_from_different(target: &Target, rig: Rig) {
    let block = rig.block();
    let len = 4096;
    let bytes = payload(9, len);
    let lba = (65536 / block) as u64;
    succeeded(&rig.write(lba, 0, &bytes));
    let frame = rig.stale_frame();
    // Equal, then with one byte different at each end and in the middle.
    for wrong in [None, Some(0), Some(len / 2), Some(len - 1)] {
        let mut other = bytes.clone();
        if let Some(at) = wrong {
            other[at] ^= 1;
        }
        rig.fill(frame, 0, &other);
        let transfer = rig.transfer(frame, 0, len, lba);
        rig.context.submit_compare(&transfer).unwrap();
        let done = rig.one();
        let status = if wrong.is_some() && target.stores() {
            0x285
        } else {
            0
        };
        assert_eq!((done.status, done.result), (status, 0), "{done:?}");
        assert_eq!(done.frame, Some(frame));
        assert!(rig.bytes(frame, 0, len) == other, "compare changes nothing");
    }
    rig.context.frame_release(frame).unwrap();
}

fn flush_and_fua(target: &Target, rig: Rig) {
    let bytes = payload(4, 1000);
    let frame = rig.stale_frame();
    rig.fill(frame, 0, &bytes);
    let transfer = Transfer {
        fua: true,
        ..rig.transfer(frame, 0, bytes.len(), 5)
    };
    rig.context.submit_write(&transfer).unwrap();
    succeeded(&rig.one());
    let operations = |fua: bool| {
        let before = rig.context.statistics().unwrap().operations;
        rig.context
            .submit_write_zeroes(&Blocks::new(9, 1, 77), fua)
            .unwrap();
        succeeded(&rig.one());
        rig.context.statistics().unwrap().operations - before
    };
    let (fua, plain) = (operations(true), operations(false));
    let synced = u64::from(target.stores());
    assert_eq!(fua, plain + synced, "zeroing has no FUA: a sync follows it");
    rig.context.submit_flush(None, 78).unwrap();
    let done = rig.one();
    succeeded(&done);
    assert_eq!((done.user_data, done.len, done.frame), (78, 0, None));
    if target.stores() {
        let at = 5 * rig.block();
        assert!(target.image()[at..at + 1000] == bytes[..]);
    }
}

/// Small, and longer than any buffer of the library.
fn write_zeroes_and_deallocate(target: &Target, rig: Rig) {
    let block = rig.block();
    let len = 256 << 10;
    let mut expected = rig.prefill(len);
    let per = |bytes: usize| (bytes / block) as u32;
    let mut check = |first: usize, count: usize| {
        if target.stores() {
            expected[first * block..(first + count) * block].fill(0);
            assert!(target.image()[..len] == expected[..], "{count} at {first}");
        }
    };
    for (first, count) in [(1, 1), (5, 3), (8, per(200 << 10))] {
        rig.context
            .submit_write_zeroes(&Blocks::new(first, count, first), false)
            .unwrap();
        let done = rig.one();
        succeeded(&done);
        assert_eq!((done.user_data, done.frame), (first, None));
        check(first as usize, count as usize);
    }
    let (first, count) = (per(208 << 10), per(16 << 10));
    rig.context
        .submit_deallocate(&Blocks::new(first.into(), count, 11))
        .unwrap();
    let done = rig.one();
    succeeded(&done);
    // The frame of the range was the library's.
    assert_eq!((done.user_data, done.frame), (11, None));
    check(first as usize, count as usize);

    for (lba, blocks) in [(0, 0), (0, 65537)] {
        let error = rig
            .context
            .submit_write_zeroes(&Blocks::new(lba, blocks, 1), false);
        assert_eq!(error.unwrap_err().errno(), libc::EINVAL);
        let error = rig.context.submit_deallocate(&Blocks::new(lba, blocks, 1));
        assert_eq!(error.unwrap_err().errno(), libc::EINVAL);
    }
    // Beyond the end neither touches anything.
    let last = target.blocks() - 1;
    rig.context
        .submit_write_zeroes(&Blocks::new(last, 2, 12), false)
        .unwrap();
    assert_eq!(rig.one().status, 0x080);
    rig.context
        .submit_deallocate(&Blocks::new(last, 2, 13))
        .unwrap();
    assert_eq!(rig.one().status, if target.stores() { 0x080 } else { 0 });
    check(0, 0);
}

fn le(page: &[u8], at: usize, len: usize) -> u64 {
    (0..len).fold(0, |sum, i| sum | u64::from(page[at + i]) << (8 * i))
}

fn identify(target: &Target, rig: Rig) {
    let frame = rig.stale_frame();
    let ask = |cns: u32, nsid: u32| {
        let cmd = NvmeUringCmd {
            opcode: 0x06,
            nsid,
            data_len: 4096,
            cdw10: cns,
            ..NvmeUringCmd::default()
        };
        rig.fill(frame, 0, &[STALE; 4096]);
        rig.context
            .submit_raw(0, &cmd, Some((frame, 0)), rig.id())
            .unwrap();
        let done = rig.one();
        assert_eq!((done.frame, done.result), (Some(frame), 0));
        (done.status, rig.bytes(frame, 0, 4096))
    };
    let limits = rig.context.info().devices[0].limits;
    let (status, namespace) = ask(0, 1);
    assert_eq!(status, 0);
    for (name, at) in [("nsze", 0), ("ncap", 8), ("nuse", 16)] {
        assert_eq!(le(&namespace, at, 8), target.blocks(), "{name}");
    }
    assert_eq!((namespace[25], namespace[26]), (0, 0), "one format, in use");
    let format = le(&namespace, 128, 4);
    assert_eq!(format & 0xffff, 0, "no metadata");
    assert_eq!(1 << (format >> 16 & 0xff), target.block, "lbads");

    let (status, controller) = ask(1, 0);
    assert_eq!(status, 0);
    let text = |from: usize, to: usize| String::from_utf8_lossy(&controller[from..to]).to_string();
    assert!(text(24, 64).starts_with("unified "), "{}", text(24, 64));
    assert_eq!(text(64, 72).trim(), env!("CARGO_PKG_VERSION"));
    let mdts = 4096u64 << controller[77];
    assert!(mdts <= limits.max_transfer.into() && mdts * 2 > limits.max_transfer.into());
    assert_eq!(le(&controller, 516, 4), 1, "one namespace");
    assert_eq!(controller[520], 0x0d, "compare, dataset management, zeroes");
    assert_eq!(controller[525] == 1, limits.volatile_cache != Some(false));

    let (status, list) = ask(2, 0);
    assert_eq!((status, le(&list, 0, 4), le(&list, 4, 4)), (0, 1, 0));
    let (status, list) = ask(2, 1);
    assert_eq!((status, le(&list, 0, 4)), (0, 0), "none above 1");
    assert_eq!(ask(0, 7).0, 0x00b, "there is no namespace 7");
    assert_eq!(ask(0x42, 1).0, 0x002);
    rig.context.frame_release(frame).unwrap();
}

fn what_cannot_be_right_gets_its_status(target: &Target, rig: Rig) {
    let block = rig.block() as u32;
    let write = NvmeUringCmd {
        opcode: 0x01,
        data_len: block,
        ..NvmeUringCmd::default()
    };
    let frame = rig.stale_frame();
    for (what, cmd, status) in [
        (
            "unknown opcode",
            NvmeUringCmd {
                opcode: 0x7d,
                ..write
            },
            0x001,
        ),
        (
            "two blocks in cdw12",
            NvmeUringCmd { cdw12: 1, ..write },
            0x002,
        ),
        (
            "data of half a block",
            NvmeUringCmd {
                data_len: block / 2,
                ..write
            },
            0x002,
        ),
        (
            "a foreign namespace",
            NvmeUringCmd { nsid: 7, ..write },
            0x00b,
        ),
        (
            "metadata",
            NvmeUringCmd {
                metadata: 64,
                metadata_len: 8,
                ..write
            },
            0x002,
        ),
        ("fused", NvmeUringCmd { flags: 1, ..write }, 0x002),
    ] {
        rig.context
            .submit_raw(0, &cmd, Some((frame, 0)), rig.id())
            .unwrap();
        let done = rig.one();
        assert_eq!((done.status, done.result), (status, 0), "{what}: {done:?}");
        assert_eq!((done.frame, done.len), (Some(frame), 0), "{what}");
    }
    // And the same command without a mistake, as raw.
    rig.context
        .submit_raw(0, &write, Some((frame, 0)), rig.id())
        .unwrap();
    succeeded(&rig.one());
    rig.context.frame_release(frame).unwrap();
    let stats = rig.context.statistics().unwrap();
    assert_eq!((stats.errors, stats.bytes_written), (6, block.into()));
    if target.stores() {
        let image = target.image();
        assert!(image[..block as usize].iter().all(|b| *b == STALE));
        assert!(image[block as usize..].iter().all(|b| *b == 0));
    }
}

fn the_end_of_the_device(target: &Target, rig: Rig) {
    let blocks = target.blocks();
    let bytes = payload(2, 4096);
    let count = (4096 / rig.block()) as u64;
    succeeded(&rig.write(blocks - count, 0, &bytes));
    for lba in [
        blocks - count + 1,
        blocks,
        blocks + 1,
        u64::MAX / 512,
        u64::MAX - count,
        u64::MAX,
    ] {
        let done = rig.write(lba, 0, &bytes);
        assert_eq!(
            (done.status, done.result),
            (0x080, 0),
            "LBA {lba}: {done:?}"
        );
        let frame = rig.stale_frame();
        let transfer = rig.transfer(frame, 0, 4096, lba);
        rig.context.submit_read(&transfer).unwrap();
        assert_eq!(rig.one().status, 0x080, "LBA {lba}");
        assert!(rig.bytes(frame, 0, 4096).iter().all(|b| *b == STALE));
        rig.context.frame_release(frame).unwrap();
    }
    if target.stores() {
        let image = target.image();
        assert_eq!(image.len() as u64, DEVICE_BYTES, "it does not grow");
        assert!(image[DEVICE_BYTES as usize - 4096..] == bytes[..]);
    }
}

fn what_does_not_fit_a_frame_is_refused(_: &Target, rig: Rig) {
    let frame = rig.stale_frame();
    let refused = |transfer: &Transfer| {
        let error = rig.context.submit_write(transfer).unwrap_err();
        assert_eq!(error.errno(), libc::EINVAL, "{error}");
        assert!(error.message().contains("frame"), "{error}");
    };
    for (at, len) in [(0, 0), (0, 4097), (4000, 97), (0, 64 << 10), (0, 1 << 20)] {
        refused(&rig.transfer(frame, at, len, 0));
    }
    let good = rig.transfer(frame, 0, 4096, 0);
    refused(&Transfer {
        offset: u64::MAX - 10,
        ..good
    });
    refused(&Transfer {
        frame: 5000,
        ..good
    });
    // Another frame, which nobody holds.
    let error = rig.context.submit_write(&Transfer {
        frame: frame + 1,
        offset: good.offset + 4096,
        ..good
    });
    assert_eq!(error.unwrap_err().errno(), libc::EINVAL);
    let error = rig.context.submit_read(&Transfer { len: 700, ..good });
    assert_eq!(error.unwrap_err().errno(), libc::EINVAL, "not whole blocks");
    let raw = NvmeUringCmd {
        opcode: 1,
        data_len: 64 << 10,
        cdw12: (64 << 10) / rig.block() as u32 - 1,
        ..NvmeUringCmd::default()
    };
    let error = rig.context.submit_raw(0, &raw, Some((frame, 0)), 1);
    assert_eq!(error.unwrap_err().errno(), libc::EINVAL);
    let error = rig.context.submit_raw(0, &raw, None, 1);
    assert_eq!(error.unwrap_err().errno(), libc::EINVAL);
    // After all these the caller holds the frame as before.
    rig.check_sums(1);
    rig.context.submit_write(&good).unwrap();
    succeeded(&rig.one());
}

fn frames_are_kept_or_consumed(_: &Target, rig: Rig) {
    let frame = rig.stale_frame();
    for lba in 0..3 {
        let transfer = Transfer {
            keep: true,
            ..rig.transfer(frame, 0, 4096, lba * 8)
        };
        rig.context.submit_write(&transfer).unwrap();
        let again = rig.context.submit_write(&transfer).unwrap_err();
        assert_eq!(again.errno(), libc::EBUSY, "{again}");
        let release = rig.context.frame_release(frame).unwrap_err();
        assert_eq!(release.errno(), libc::EBUSY, "{release}");
        let done = rig.one();
        succeeded(&done);
        assert_eq!(done.frame, Some(frame));
    }
    rig.check_sums(1);
    let transfer = rig.transfer(frame, 0, 4096, 0);
    rig.context.submit_write(&transfer).unwrap();
    assert_eq!(rig.one().frame, None);
    let gone = rig.context.submit_write(&transfer).unwrap_err();
    assert_eq!(gone.errno(), libc::EINVAL, "{gone}");
}

/// Nothing of a batch is seen before its last entry; then all of it is done.
fn a_batch_is_taken_whole(target: &Target, rig: Rig) {
    for last_by_pending in [false, true] {
        let before = rig.context.statistics().unwrap().submitted;
        let mut sent = Vec::new();
        for i in 0..16 {
            let frame = rig.stale_frame();
            rig.fill(frame, 0, &payload(i, 4096));
            let transfer = Transfer {
                more: i < 15 || last_by_pending,
                ..rig.transfer(frame, 0, 4096, u64::from(i) * 8)
            };
            if i == 15 {
                let mut none = [Default::default(); 4];
                assert_eq!(rig.context.completions(&mut none).unwrap(), 0);
                let now = rig.context.statistics().unwrap().submitted;
                assert_eq!(now, before, "the engine has seen nothing yet");
            }
            rig.context.submit_write(&transfer).unwrap();
            sent.push(transfer.user_data);
        }
        if last_by_pending {
            rig.context.submit_pending().unwrap();
        }
        let mut done: Vec<u64> = rig
            .take(16)
            .iter()
            .inspect(|c| succeeded(c))
            .map(|c| c.user_data)
            .collect();
        done.sort_unstable();
        assert_eq!(done, sent);
    }
    if target.stores() {
        let (image, block) = (target.image(), rig.block());
        for i in 0..16 {
            let at = i * 8 * block;
            // On 512-byte blocks the next one begins where this one ends; on 4 KiB ones they are apart.
            assert!(image[at..at + 4096] == payload(i as u32, 4096)[..], "{i}");
        }
    }
}

/// More commands than the rings hold: EAGAIN, and after completions were taken it goes on.
fn a_full_sq_says_so_and_goes_on(target: &Target, rig: Rig) {
    const COUNT: usize = 500;
    let mut config = target.config(rig.context.info().drive);
    drop(rig);
    // More than both rings hold, so that frames are not what runs out.
    config.frame_count = 256;
    let rig = Rig::open(&config);
    let mut seen = vec![0; COUNT];
    let (mut sent, mut taken, mut full) = (0, 0, 0);
    while taken < COUNT {
        while sent < COUNT {
            let Ok(frame) = rig.context.frame_alloc() else {
                break;
            };
            rig.fill(frame, 0, &payload(sent as u32, 4096));
            let transfer = Transfer {
                user_data: sent as u64,
                ..rig.transfer(frame, 0, 4096, (sent * 4096 / rig.block()) as u64)
            };
            match rig.context.submit_write(&transfer) {
                Ok(()) => sent += 1,
                Err(error) => {
                    assert_eq!(error.errno(), libc::EAGAIN, "{error}");
                    full += 1;
                    rig.context.frame_release(frame).unwrap();
                    break;
                }
            }
        }
        for done in rig.take(1.min(sent - taken)) {
            succeeded(&done);
            seen[done.user_data as usize] += 1;
            taken += 1;
        }
    }
    assert!(seen.iter().all(|n| *n == 1), "each exactly once");
    let stats = rig.context.statistics().unwrap();
    assert!(full > 0, "64 entries are less than 500 commands");
    assert_eq!(stats.sq_full, full);
    if target.stores() {
        let image = target.image();
        for (i, bytes) in image.chunks(4096).take(COUNT).enumerate() {
            assert!(bytes == payload(i as u32, 4096), "write {i}");
        }
    }
}

fn a_device_opened_for_reading(target: &Target, rig: Rig) {
    let bytes = payload(6, 4096);
    succeeded(&rig.write(0, 0, &bytes));
    let mut config = target.config(rig.context.info().drive);
    drop(rig);
    config.device.read_only = true;
    let rig = Rig::open(&config);
    assert!(!rig.context.info().devices[0].writable);
    let done = rig.write(0, 0, &[1; 4096]);
    assert_eq!((done.status, done.result), (0x020, 0), "{done:?}");
    rig.context
        .submit_write_zeroes(&Blocks::new(0, 8, 1), false)
        .unwrap();
    assert_eq!(rig.one().status, 0x020);
    rig.context
        .submit_deallocate(&Blocks::new(0, 8, 2))
        .unwrap();
    assert_eq!(rig.one().status, 0x020);
    rig.context.submit_flush(None, 3).unwrap();
    let flushed = rig.one();
    assert!(flushed.status == 0, "{flushed:?}");
    let back = rig.read(0, 4096);
    if target.stores() {
        assert!(back == bytes);
        assert!(target.image()[..4096] == bytes[..], "untouched");
    }
}

/// Less than was asked for promises that the pollable descriptor tells of the next completion: entries for which there
/// was no room before are completed while it is armed, and nothing would tell of those.
#[test]
fn less_than_was_asked_for_means_that_the_descriptor_tells() {
    let mut config = Config {
        sq_entries: 64,
        cq_entries: 4,
        ..Config::default()
    };
    config.device.path = "null:".into();
    for drive in [Drive::Inline, Drive::Thread] {
        let context = Context::open(&Config {
            drive,
            ..config.clone()
        })
        .unwrap();
        let fd = context.poll_fd().unwrap();
        for round in 0..100 {
            for number in 0..32 {
                context.submit_flush(None, number).unwrap();
            }
            let mut done = [Completion::default(); 64];
            let mut count = 0;
            while count < 32 {
                let woken = poll_readable(&[fd], Some(Duration::from_secs(10))).unwrap();
                assert!(woken, "{drive:?}: round {round} hangs at {count} of 32");
                loop {
                    let got = context.completions(&mut done).unwrap();
                    count += got;
                    if got < done.len() {
                        break;
                    }
                }
            }
            assert_eq!(count, 32);
        }
    }
}
