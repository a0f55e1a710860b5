//! NVMe namespaces by passthrough: packets, every command, limits, failures. UNIFIED_TEST_NVME names them,
//! separated by commas (/dev/ng0n1,...); their first blocks are overwritten. tests/vm/run has such drives.

mod common;

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use common::storing::store_and_compare;
use common::{is_root, log_to_stderr, payload, read_direct, skip};
use nix::unistd::{Uid, seteuid};
use unified::config::{Config, DEFAULT_HEADROOM, Drive, KERNEL_HEADROOM};
use unified::context::Context;
use unified::lane::{Blocks, Completion, Ready, Transfer};
use unified::region::{Layout, Region};
use unified::ring::{Consumer, Producer};
use unified::storage::command::{self, opcode, status};
use unified::storage::device::{Device, DeviceConfig, Kind};
use unified::storage::engine::{Engine, EngineConfig, OpenTarget};
use unified::sys::abi::{CQE_BOUNCED, NvmeUringCmd};

/// Where tests write: the first bytes of each namespace. A block of 4 KiB for each of 600 packets fits.
const AREA: usize = 3 << 20;
const BOTH: [Drive; 2] = [Drive::Inline, Drive::Thread];

/// A namespace of the test machine.
struct Namespace {
    /// /dev/ng0n1
    node: String,
    /// nvme0n1
    block: String,
}

impl Namespace {
    fn block_node(&self) -> PathBuf {
        Path::new("/dev").join(&self.block)
    }

    fn sysfs(&self, name: &str) -> String {
        let text = fs::read_to_string(format!("/sys/class/block/{}/{name}", self.block)).unwrap();
        text.trim().into()
    }

    fn number(&self, name: &str) -> u64 {
        self.sysfs(name).parse().unwrap()
    }

    /// The controller's name: nvme0.
    fn controller(&self) -> String {
        let instance = self.block.strip_prefix("nvme").unwrap();
        format!("nvme{}", instance.split('n').next().unwrap())
    }

    fn transport(&self) -> String {
        let path = format!("/sys/class/nvme/{}/transport", self.controller());
        fs::read_to_string(path).unwrap().trim().into()
    }

    fn serial(&self) -> String {
        let path = format!("/sys/class/nvme/{}/serial", self.controller());
        fs::read_to_string(path).unwrap().trim().into()
    }

    /// The drive that fails writes. It does not say so: QEMU has no write protection of namespaces.
    fn fails_writes(&self) -> bool {
        self.serial() == "unwritable"
    }

    fn config(&self, drive: Drive) -> Config {
        let mut config = Config {
            drive,
            frame_size: 4096,
            frame_count: 64,
            ..Config::default()
        };
        config.device.path = self.node.clone();
        config
    }

    /// Zeroes the area that tests write to.
    fn clear(&self) {
        let mut file = OpenOptions::new()
            .write(true)
            .open(self.block_node())
            .unwrap();
        file.write_all(&vec![0; AREA]).unwrap();
        file.sync_all().unwrap();
    }

    /// The area as the drive has it.
    fn read(&self) -> Vec<u8> {
        read_direct(self.block_node(), AREA)
    }
}

/// The namespaces to test, or `None` with the skip said.
fn namespaces(test: &str) -> Option<Vec<Namespace>> {
    if !is_root(test) {
        return None;
    }
    log_to_stderr();
    let Ok(list) = std::env::var("UNIFIED_TEST_NVME") else {
        skip(test, "UNIFIED_TEST_NVME names no NVMe namespace");
        return None;
    };
    let all: Vec<Namespace> = list
        .split(',')
        .map(|node| Namespace {
            node: node.into(),
            block: node.replace("/dev/ng", "nvme"),
        })
        .collect();
    assert!(!all.is_empty());
    Some(all)
}

fn writable(test: &str) -> Option<Vec<Namespace>> {
    let mut all = namespaces(test)?;
    all.retain(|n| !n.fails_writes());
    assert!(!all.is_empty());
    Some(all)
}

fn packets(test: &str, drive: Drive) {
    for namespace in writable(test).into_iter().flatten() {
        for frame_size in [2048, 4096] {
            eprintln!("{} frames of {frame_size}", namespace.node);
            namespace.clear();
            let mut config = namespace.config(drive);
            (config.frame_size, config.frame_count) = (frame_size, 4096);
            let (info, stats) = store_and_compare(config, Some(&|| namespace.read()));
            assert_eq!(info.devices[0].kind, Kind::Nvme);
            // Before 6.12 the local drive's driver refuses them; the one over TCP never does.
            let remote = namespace.transport() != "pcie";
            assert_eq!(info.registered_buffers, remote || kernel() >= (6, 12));
            match info.devices[0].limits.block_size {
                512 => assert_eq!(stats.bounced, 0, "{stats:#?}"),
                // The padding of a 4 KiB block reaches beyond the frame's end.
                4096 => assert_eq!(stats.bounced, stats.stored, "{stats:#?}"),
                other => panic!("blocks of {other} bytes"),
            }
        }
    }
}

#[test]
fn packets_by_the_callers_thread() {
    packets("packets_by_the_callers_thread", Drive::Inline);
}

#[test]
fn packets_by_the_engines_thread() {
    packets("packets_by_the_engines_thread", Drive::Thread);
}

fn kernel() -> (u32, u32) {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
    let mut numbers = release.split('.').map(|n| n.parse().unwrap());
    (numbers.next().unwrap(), numbers.next().unwrap())
}

/// How often the kernel copied data of this process's into pages of its own (`bio_copy_from_iter`, the block layer's) for the
/// threads that may drive a device, while `action` ran.
fn kernel_copies(action: impl FnOnce()) -> usize {
    const TRACING: &str = "/sys/kernel/tracing";
    let set = |file: &str, text: &str| {
        let mut file = OpenOptions::new()
            .append(true)
            .open(format!("{TRACING}/{file}"))
            .unwrap();
        file.write_all(text.as_bytes()).unwrap();
    };
    let enable = "events/kprobes/unified_copy/enable";
    // The name is taken by the probe itself: what tracing puts before an event comes from a cache that has a thread only
    // once it was switched away from.
    set(
        "kprobe_events",
        "p:unified_copy bio_copy_from_iter comm=$comm",
    );
    File::create(format!("{TRACING}/trace")).unwrap();
    set(enable, "1");
    action();
    set(enable, "0");
    let trace = fs::read_to_string(format!("{TRACING}/trace")).unwrap();
    set("kprobe_events", "-:unified_copy");
    // The test's own thread, the engine's, and the kernel's helpers of both.
    let drives = |line: &&str| {
        ["unified-engine", "kernel_itself", "iou-wrk"]
            .iter()
            .any(|name| line.contains(&format!("comm=\"{name}")))
    };
    let hits = trace.lines().filter(|line| line.contains("unified_copy:"));
    hits.filter(drives).count()
}

#[test]
fn nothing_is_copied_by_the_kernel_itself() {
    nix::sys::prctl::set_name(c"kernel_itself").unwrap();
    let all = writable("nothing_is_copied_by_the_kernel_itself");
    for namespace in all.into_iter().flatten() {
        if namespace.number("queue/logical_block_size") != 512 {
            continue;
        }
        for drive in BOTH {
            eprintln!("{} {drive:?}", namespace.node);
            namespace.clear();
            let mut config = namespace.config(drive);
            config.frame_count = 4096;
            assert_eq!(config.headroom, DEFAULT_HEADROOM);
            let copies = kernel_copies(|| {
                let (_, stats) = store_and_compare(config, Some(&|| namespace.read()));
                assert_eq!(stats.bounced, 0, "{stats:#?}");
            });
            assert_eq!(copies, 0, "with the library's headroom");
            // So the probe sees what there is to see: without headroom a payload begins here. One after the
            // other, because under load the kernel has no memory for it (ENOMEM).
            let mut config = namespace.config(drive);
            config.bounce = false;
            let context = Context::open(&config).unwrap();
            let frame = context.frame_alloc().unwrap();
            let copies = kernel_copies(|| {
                for _ in 0..20 {
                    let mut write = transfer(&context, frame, 0);
                    write.offset += u64::from(KERNEL_HEADROOM) + 42;
                    write.len = 1024;
                    context.submit_write(&write).unwrap();
                    assert!(!succeeded(&context, "a misaligned write").bounced);
                }
            });
            assert!(copies >= 20, "{copies} copies of 20 misaligned payloads");
        }
    }
}

/// Neighbours on the device whose memory is in pieces: in few commands if the drive takes gaps between them and the
/// kernel such commands (6.15), each by itself elsewhere. Nowhere does the kernel copy.
#[test]
fn memory_in_pieces_is_one_command_where_the_drive_takes_gaps() {
    const COUNT: usize = 200;
    nix::sys::prctl::set_name(c"kernel_itself").unwrap();
    let mut gathered = 0;
    let all = writable("memory_in_pieces_is_one_command_where_the_drive_takes_gaps");
    for namespace in all.iter().flatten() {
        let gaps = namespace.number("queue/virt_boundary_mask") == 0 && kernel() >= (6, 15);
        gathered += usize::from(gaps);
        for drive in BOTH {
            namespace.clear();
            let mut config = namespace.config(drive);
            config.frame_count = 512;
            let context = Context::open(&config).unwrap();
            let block = context.info().devices[0].limits.block_size;
            let len = block.max(1024);
            let mut frames: Vec<u32> = (0..COUNT).map(|_| context.frame_alloc().unwrap()).collect();
            frames.reverse();
            let pieces: Vec<Transfer> = frames
                .iter()
                .enumerate()
                .map(|(i, frame)| Transfer {
                    offset: u64::from(*frame) * 4096 + u64::from(512 * u32::from(len < 4096)),
                    len,
                    more: i + 1 < COUNT,
                    ..transfer(&context, *frame, (i as u32 * len / block).into())
                })
                .collect();
            let data = |i: usize| payload(i as u32 + 3, len as usize);
            for (i, piece) in pieces.iter().enumerate() {
                context.data().write(piece.offset as usize, &data(i));
            }
            let finish = || {
                let mut done = [Completion::default(); 64];
                let (mut finished, until) = (0, Instant::now() + Duration::from_secs(10));
                while finished < COUNT {
                    assert!(Instant::now() < until, "{finished} of {COUNT}");
                    context
                        .wait(Ready::COMPLETIONS, Some(Duration::from_millis(100)))
                        .unwrap();
                    let count = context.completions(&mut done).unwrap();
                    for one in &done[..count] {
                        assert_eq!((one.status, one.result, one.len), (0, 0, len));
                    }
                    finished += count;
                }
            };
            let copies = kernel_copies(|| {
                pieces.iter().for_each(|p| context.submit_write(p).unwrap());
                finish();
            });
            assert_eq!(copies, 0, "{}", namespace.node);
            let stored = namespace.read();
            for (i, piece) in pieces.iter().enumerate() {
                assert!(stored[i * len as usize..][..len as usize] == data(i), "{i}");
                context.data().zero(piece.offset as usize, len as usize);
            }
            pieces.iter().for_each(|p| context.submit_read(p).unwrap());
            finish();
            for (i, piece) in pieces.iter().enumerate() {
                let mut found = vec![0; len as usize];
                context.data().read(piece.offset as usize, &mut found);
                assert!(found == data(i), "{i} read");
            }
            let operations = context.statistics().unwrap().operations;
            eprintln!(
                "{} {drive:?}: {operations} commands, gaps: {gaps}",
                namespace.node
            );
            match gaps {
                // As long as a command may be; and the first and the last of both directions may be short.
                true => {
                    let limits = context.info().devices[0].limits;
                    let each = (limits.max_transfer / len).min(limits.max_segments).min(64);
                    let most = 2 * (COUNT as u64 / u64::from(each) + 3);
                    assert!(operations <= most, "{operations} of {most}");
                }
                false => assert_eq!(operations, 2 * COUNT as u64),
            }
        }
    }
    // QEMU's drives take scatter gather lists, for which newer kernels allow gaps.
    assert!(all.is_none() || gathered > 0 || kernel() < (7, 0));
}

/// Waits for one completion, which must be there soon.
fn complete(context: &Context) -> Completion {
    let mut done = [Completion::default(); 2];
    for _ in 0..100 {
        context
            .wait(Ready::COMPLETIONS, Some(Duration::from_millis(100)))
            .unwrap();
        match context.completions(&mut done).unwrap() {
            0 => {}
            1 => return done[0],
            more => panic!("{more} completions of one command"),
        }
    }
    panic!("no completion");
}

fn succeeded(context: &Context, what: &str) -> Completion {
    let done = complete(context);
    assert_eq!((done.status, done.result), (0, 0), "{what}: {done:?}");
    done
}

/// One command on a whole frame.
fn transfer(context: &Context, frame: u32, lba: u64) -> Transfer {
    assert_eq!(4096 % context.info().devices[0].limits.block_size, 0);
    Transfer {
        frame,
        offset: u64::from(frame) * 4096,
        len: 4096,
        lba,
        user_data: lba,
        keep: true,
        ..Transfer::default()
    }
}

fn frame_bytes(context: &Context, frame: u32) -> Vec<u8> {
    let mut bytes = vec![0; 4096];
    context.data().read(frame as usize * 4096, &mut bytes);
    bytes
}

#[test]
fn every_command() {
    for namespace in writable("every_command").into_iter().flatten() {
        for drive in BOTH {
            eprintln!("{} {drive:?}", namespace.node);
            namespace.clear();
            commands(&namespace, drive);
        }
    }
}

fn commands(namespace: &Namespace, drive: Drive) {
    let context = Context::open(&namespace.config(drive)).unwrap();
    let limits = context.info().devices[0].limits;
    let blocks = 4096 / limits.block_size;
    let frame = context.frame_alloc().unwrap();
    let at = frame as usize * 4096;
    let lba = u64::from(8 * blocks);
    for (round, fua) in [false, true].into_iter().enumerate() {
        let data = payload(round as u32 + 7, 4096);
        context.data().write(at, &data);
        let write = Transfer {
            fua,
            ..transfer(&context, frame, lba)
        };
        context.submit_write(&write).unwrap();
        let done = succeeded(&context, "write");
        assert_eq!((done.len, done.frame), (4096, Some(frame)));
        assert!(!done.bounced);
        context.submit_compare(&write).unwrap();
        succeeded(&context, "compare with what was written");
        context.data().zero(at, 4096);
        context.submit_read(&write).unwrap();
        assert_eq!(succeeded(&context, "read").len, 4096);
        assert!(frame_bytes(&context, frame) == data);
        assert!(namespace.read()[8 * 4096..9 * 4096] == data[..]);
        // One wrong bit, in the last byte.
        context.data().write(at + 4095, &[data[4095] ^ 1]);
        context.submit_compare(&write).unwrap();
        let done = complete(&context);
        assert_eq!(
            (done.status, done.result),
            (status::COMPARE_FAILURE, 0),
            "{done:?}"
        );
    }
    context.submit_flush(None, 1).unwrap();
    succeeded(&context, "flush");

    context
        .submit_write_zeroes(&Blocks::new(lba, blocks, 2), false)
        .unwrap();
    succeeded(&context, "write zeroes");
    context
        .submit_read(&transfer(&context, frame, lba))
        .unwrap();
    succeeded(&context, "read zeroes");
    assert!(frame_bytes(&context, frame).iter().all(|b| *b == 0));
    context
        .submit_deallocate(&Blocks::new(lba, blocks, 3))
        .unwrap();
    assert_eq!(succeeded(&context, "deallocate").user_data, 3);

    identify(&context, frame, namespace);

    // Verify (0Ch): a command that the library does not know, so the drive answers.
    let verify = NvmeUringCmd {
        opcode: 0x0c,
        cdw10: lba as u32,
        cdw12: blocks - 1,
        ..NvmeUringCmd::default()
    };
    context.submit_raw(0, &verify, None, 4).unwrap();
    succeeded(&context, "verify");
    let raw = NvmeUringCmd {
        nsid: limits.nsid,
        data_len: limits.block_size,
        ..command::transfer(opcode::READ, 0, 1, 0, limits.block_size, false).nvme_cmd
    };
    context.submit_raw(0, &raw, Some((frame, 0)), 5).unwrap();
    assert_eq!(succeeded(&context, "raw read").len, limits.block_size);
    context.frame_release(frame).unwrap();
    let stats = context.statistics().unwrap();
    assert_eq!(
        (stats.bounced, stats.errors, stats.commands_in_flight()),
        (0, 2, 0),
        "{stats:#?}"
    );
    assert_eq!(stats.frames.free, 64);
}

/// Identify Controller and Namespace through a context, against what the kernel knows.
fn identify(context: &Context, frame: u32, namespace: &Namespace) {
    let command = |cns, nsid| NvmeUringCmd {
        opcode: opcode::IDENTIFY,
        nsid,
        cdw10: cns,
        data_len: 4096,
        ..NvmeUringCmd::default()
    };
    let limits = context.info().devices[0].limits;
    context
        .submit_raw(0, &command(1, 0), Some((frame, 0)), 10)
        .unwrap();
    assert_eq!(succeeded(context, "Identify Controller").len, 4096);
    let page = frame_bytes(context, frame);
    let serial = String::from_utf8_lossy(&page[4..24]);
    assert_eq!(serial.trim(), namespace.serial());
    // MDTS, in powers of two of the controller's smallest page, which is 4 KiB.
    assert!(page[77] > 0);
    // Each page may be a segment, and data that begins inside one lies in one page more.
    let segments = (namespace.number("queue/max_segments") as u32 - 1) * 4096;
    assert_eq!(limits.max_transfer, segments.min(4096 << page[77]));
    context
        .submit_raw(0, &command(0, limits.nsid), Some((frame, 0)), 11)
        .unwrap();
    succeeded(context, "Identify Namespace");
    let page = frame_bytes(context, frame);
    assert_eq!(page[..8], limits.blocks.to_le_bytes());
}

#[test]
fn limits_are_the_drives_own() {
    let test = "limits_are_the_drives_own";
    let mut transfers = Vec::new();
    for namespace in writable(test).into_iter().flatten() {
        let context = Context::open(&namespace.config(Drive::Inline)).unwrap();
        let limits = context.info().devices[0].limits;
        eprintln!("{} ({}): {limits:?}", namespace.node, namespace.serial());
        let block = namespace.number("queue/logical_block_size");
        assert_eq!(u64::from(limits.block_size), block);
        assert_eq!(limits.blocks * block, namespace.number("size") * 512);
        assert_eq!(limits.nsid.to_string(), namespace.sysfs("nsid"));
        assert_eq!(limits.dma_alignment, 3);
        let cached = namespace.sysfs("queue/write_cache") == "write back";
        assert_eq!(limits.volatile_cache, Some(cached));
        if namespace.serial() == "mdts64" {
            assert_eq!(limits.max_transfer, 64 << 10);
        }
        transfers.push(limits.max_transfer);
    }
    assert!(transfers.is_empty() || transfers.iter().max() > transfers.iter().min());
}

#[test]
fn namespaces_of_one_controller_are_apart() {
    let Some(all) = writable("namespaces_of_one_controller_are_apart") else {
        return;
    };
    let first = all.iter().find(|n| n.serial() == "plain").unwrap();
    let pair: Vec<&Namespace> = all
        .iter()
        .filter(|n| n.controller() == first.controller())
        .collect();
    assert_eq!(pair.len(), 2);
    let open = |n: &&Namespace| Context::open(&n.config(Drive::Inline)).unwrap();
    let contexts: Vec<Context> = pair.iter().map(open).collect();
    for (i, context) in contexts.iter().enumerate() {
        assert_eq!(
            context.info().devices[0].limits.nsid.to_string(),
            pair[i].sysfs("nsid")
        );
        let frame = context.frame_alloc().unwrap();
        let data = payload(i as u32, 4096);
        context.data().write(frame as usize * 4096, &data);
        context.submit_write(&transfer(context, frame, 0)).unwrap();
        succeeded(context, "write");
    }
    for (i, namespace) in pair.iter().enumerate() {
        assert!(namespace.read()[..4096] == payload(i as u32, 4096)[..]);
    }
}

#[test]
fn failures_keep_their_status() {
    for namespace in writable("failures_keep_their_status").into_iter().flatten() {
        for drive in BOTH {
            eprintln!("{} {drive:?}", namespace.node);
            failures(&namespace, drive);
        }
    }
}

fn failures(namespace: &Namespace, drive: Drive) {
    let context = Context::open(&namespace.config(drive)).unwrap();
    let limits = context.info().devices[0].limits;
    let frame = context.frame_alloc().unwrap();
    // What the library refuses itself never reaches the drive.
    context
        .submit_write(&transfer(&context, frame, limits.blocks))
        .unwrap();
    let done = complete(&context);
    assert_eq!((done.status, done.result), (status::LBA_OUT_OF_RANGE, 0));
    assert_eq!(done.frame, Some(frame));
    let none = NvmeUringCmd::default();
    let foreign = NvmeUringCmd { nsid: 99, ..none };
    let identify = |cns| NvmeUringCmd {
        opcode: opcode::IDENTIFY,
        cdw10: cns,
        data_len: 4096,
        ..none
    };
    let verify = |lba: u64| NvmeUringCmd {
        opcode: 0x0c,
        cdw10: lba as u32,
        cdw11: (lba >> 32) as u32,
        ..none
    };
    let unknown = NvmeUringCmd {
        opcode: 0x80,
        ..none
    };
    for (what, cmd, data, expected, from_drive) in [
        ("foreign", foreign, None, status::INVALID_NAMESPACE, false),
        (
            "verify behind the end",
            verify(limits.blocks),
            None,
            status::LBA_OUT_OF_RANGE,
            true,
        ),
        ("opcode 80h", unknown, None, status::INVALID_OPCODE, true),
        (
            "Identify with a CNS that is none",
            identify(0xff),
            Some((frame, 0)),
            status::INVALID_FIELD,
            true,
        ),
    ] {
        context.submit_raw(0, &cmd, data, 7).unwrap();
        let done = complete(&context);
        assert_eq!((done.status, done.result), (expected, 0), "{what}");
        // Only the drive sets its do-not-retry bit.
        assert_eq!(done.dnr, from_drive, "{what}");
    }
    context.frame_release(frame).unwrap();
    let stats = context.statistics().unwrap();
    assert_eq!(
        (stats.errors, stats.commands_in_flight(), stats.frames.free),
        (5, 0, 64)
    );
}

#[test]
fn writes_that_are_refused() {
    let test = "writes_that_are_refused";
    let Some(all) = namespaces(test) else {
        return;
    };
    // A context for reading refuses on any drive.
    let first = all.iter().find(|n| !n.fails_writes()).unwrap();
    let mut config = first.config(Drive::Inline);
    config.device.read_only = true;
    let context = Context::open(&config).unwrap();
    let frame = context.frame_alloc().unwrap();
    let request = transfer(&context, frame, 0);
    context.submit_write(&request).unwrap();
    assert_eq!(complete(&context).status, status::WRITE_PROTECTED);
    context.submit_read(&request).unwrap();
    succeeded(&context, "read");
    drop(context);

    // The drive's own refusal.
    let unwritable = all.iter().find(|n| n.fails_writes()).unwrap();
    for drive in BOTH {
        let context = Context::open(&unwritable.config(drive)).unwrap();
        let frame = context.frame_alloc().unwrap();
        context.submit_write(&transfer(&context, frame, 0)).unwrap();
        let done = complete(&context);
        assert_eq!((done.status, done.result), (status::WRITE_FAULT, 0));
        assert_eq!(done.frame, Some(frame));
    }
}

/// Commands as long as the drive takes them, with registered buffers and without.
#[test]
fn the_longest_commands() {
    for namespace in writable("the_longest_commands").into_iter().flatten() {
        for registered in [true, false] {
            eprintln!("{} registered: {registered}", namespace.node);
            longest(&namespace, registered);
        }
    }
}

fn longest(namespace: &Namespace, registered: bool) {
    let device = Device::open(&DeviceConfig {
        path: namespace.node.clone(),
        ..DeviceConfig::default()
    })
    .unwrap();
    let limits = device.limits;
    let len = limits.max_transfer as usize;
    let layout = Layout::new(16, 16, 3 * len).unwrap();
    let region = Region::create(layout, false).unwrap();
    let target = OpenTarget::new(device, None);
    let mut engine = Engine::new(
        vec![target],
        &region,
        EngineConfig {
            lane: 0,
            depth: 8,
            bounce: true,
            raw: false,
            threaded: false,
            backlog: 0,
            registered,
            retry: Default::default(),
        },
    )
    .unwrap();
    if kernel() >= (6, 12) {
        assert_eq!(engine.registered(), registered);
    } else {
        assert!(!engine.registered());
    }
    let mut sq = Producer::new(region.rings[0].sq.clone(), "SQ");
    let mut cq = Consumer::new(region.rings[0].cq.clone(), "CQ");
    let mut run = |sqe| {
        assert!(sq.push(sqe).unwrap());
        let _ = sq.publish();
        for _ in 0..5000 {
            engine.pump(true).unwrap();
            if let Some(cqe) = cq.pop().unwrap() {
                cq.release();
                assert_eq!(cqe.flags & CQE_BOUNCED, 0);
                return (cqe.status as u16, cqe.result, cqe.len as usize);
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        panic!("no completion");
    };
    let blocks_of = |len: usize| len as u32 / limits.block_size;
    // Not on a page either: 4 bytes are all the alignment a drive asks for.
    for offset in [0, len + 4] {
        let blocks = blocks_of(len);
        let data = payload(blocks, len);
        region.data.write(offset, &data);
        let make = |code| command::transfer(code, 0, blocks, offset as u64, len as u32, false);
        assert_eq!(run(make(opcode::WRITE)), (0, 0, len), "{limits:?}");
        assert!(namespace.read()[..len] == data[..]);
        region.data.zero(offset, len);
        assert_eq!(run(make(opcode::READ)), (0, 0, len));
        let mut back = vec![0; len];
        region.data.read(offset, &mut back);
        assert!(back == data);
    }
    let more = len + limits.block_size as usize;
    let longer = command::transfer(opcode::WRITE, 0, blocks_of(more), 0, more as u32, false);
    assert_eq!(run(longer).0, status::INVALID_FIELD);
}

/// A user who may use a namespace's node and not the controller's.
#[test]
fn an_unprivileged_user() {
    let Some(all) = writable("an_unprivileged_user") else {
        return;
    };
    let namespace = &all[0];
    let set_mode = |mode| {
        fs::set_permissions(&namespace.node, fs::Permissions::from_mode(mode)).unwrap();
    };
    let before = fs::metadata(&namespace.node).unwrap().permissions().mode();
    set_mode(0o666);
    let result = std::panic::catch_unwind(|| {
        seteuid(Uid::from_raw(65534)).unwrap();
        assert!(File::open(format!("/dev/{}", namespace.controller())).is_err());
        as_nobody(namespace);
    });
    seteuid(Uid::from_raw(0)).unwrap();
    set_mode(before);
    if let Err(panic) = result {
        std::panic::resume_unwind(panic);
    }
}

fn as_nobody(namespace: &Namespace) {
    let context = Context::open(&namespace.config(Drive::Inline)).unwrap();
    let frame = context.frame_alloc().unwrap();
    let request = transfer(&context, frame, 0);
    context.submit_write(&request).unwrap();
    let done = complete(&context);
    if kernel() < (6, 2) {
        // Passthrough was root's alone.
        assert_eq!(
            (done.status, done.result),
            (status::INTERNAL, -libc::EACCES)
        );
        return;
    }
    assert_eq!((done.status, done.result), (0, 0));
    context.submit_read(&request).unwrap();
    succeeded(&context, "read");
    identify(&context, frame, namespace);
}
