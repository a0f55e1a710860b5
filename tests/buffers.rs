//! Buffers that are allocated while a context runs: commands use them as they use frames, they come and go while others are
//! in flight, and all of their memory is counted.
#![deny(unsafe_code)]

mod common;
mod store;

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use common::payload;
use store::{DRIVES, Rig, Target, can_loop, each, succeeded};
use unified::buffers::{Buffer, BufferCounts, BufferId, IDLE, LONGEST_BUFFER};
use unified::config::{Config, Drive};
use unified::context::Context;
use unified::lane::{BufferTransfer, Completion, Direction, Ready};
use unified::storage::command::opcode;
use unified::sys::abi::NvmeUringCmd;

const MIB: usize = 1 << 20;

/// The memory of buffers, as a program has it.
#[allow(unsafe_code)]
mod memory {
    use std::os::fd::{FromRawFd, OwnedFd};
    use std::ptr;

    pub fn write(address: u64, bytes: &[u8]) {
        // SAFETY: the tests write to buffers that they have, and inside them.
        unsafe { ptr::copy_nonoverlapping(bytes.as_ptr(), address as *mut u8, bytes.len()) }
    }

    pub fn read(address: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        // SAFETY: as above.
        unsafe { ptr::copy_nonoverlapping(address as *const u8, bytes.as_mut_ptr(), len) }
        bytes
    }

    /// A memfd of so many bytes.
    pub fn memfd(len: usize, flags: libc::c_uint) -> Option<OwnedFd> {
        // SAFETY: the name lives during the call, and the descriptor is new.
        let fd = unsafe {
            let fd = libc::memfd_create(c"unified-test".as_ptr(), flags);
            (fd >= 0).then(|| OwnedFd::from_raw_fd(fd))?
        };
        std::fs::File::from(fd.try_clone().unwrap())
            .set_len(len as u64)
            .ok()?;
        Some(fd)
    }

    /// A shared mapping of a descriptor, or an anonymous one, shared or private. Never unmapped.
    pub fn map(fd: i32, len: usize, shared: bool) -> u64 {
        let flags = match (shared, fd) {
            (true, -1) => libc::MAP_SHARED | libc::MAP_ANONYMOUS,
            (true, _) => libc::MAP_SHARED,
            (false, _) => libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
        };
        // SAFETY: no address is asked for, so no existing mapping can be replaced.
        let at = unsafe {
            let access = libc::PROT_READ | libc::PROT_WRITE;
            libc::mmap(ptr::null_mut(), len, access, flags, fd, 0)
        };
        assert_ne!(at, libc::MAP_FAILED);
        at as u64
    }

    pub fn unmap(address: u64, len: usize) {
        // SAFETY: a mapping of `map`, which nobody looks at any more.
        unsafe { libc::munmap(address as *mut _, len) };
    }
}

fn all_targets(test: &str) -> Vec<Target> {
    let mut targets = Target::plain();
    if can_loop(test) {
        targets.extend(Target::loops());
    }
    targets
}

fn transfer(rig: &Rig, buffer: Buffer, offset: usize, len: usize, lba: u64) -> BufferTransfer {
    BufferTransfer {
        buffer: buffer.id,
        offset: offset as u64,
        len: len as u32,
        lba,
        user_data: rig.id(),
        ..BufferTransfer::default()
    }
}

/// Submits one command and takes its completion.
fn carry_out(rig: &Rig, direction: Direction, request: &BufferTransfer) -> Completion {
    rig.context.submit_buffer(direction, request).unwrap();
    let done = rig.one();
    assert_eq!((done.user_data, done.frame), (request.user_data, None));
    done
}

fn free(rig: &Rig, buffer: Buffer) {
    rig.context.buffer_free(buffer.id).unwrap();
}

fn counts(context: &Context) -> BufferCounts {
    context.statistics().unwrap().buffers
}

fn errno<T: std::fmt::Debug>(result: unified::Result<T>) -> i32 {
    result.unwrap_err().errno()
}

/// Whole blocks of any length: written, compared, and read back into another buffer.
#[test]
fn commands_use_buffers_of_every_size() {
    each(
        all_targets("commands_use_buffers_of_every_size"),
        |target, rig| {
            let most = rig.context.info().devices[0].limits.max_transfer as usize;
            for len in [1, 4096, 40_960, MIB, 3 * MIB] {
                let buffer = rig.context.buffer_alloc(len as u64).unwrap();
                assert!(
                    memory::read(buffer.address, len)
                        .iter()
                        .all(|byte| *byte == 0)
                );
                let bytes = payload(len as u32, len);
                memory::write(buffer.address, &bytes);
                let back = rig.context.buffer_alloc(len.max(4096) as u64).unwrap();
                let step = most.min(len);
                for at in (0..len).step_by(step) {
                    let lba = (at / target.block) as u64;
                    let part = step.min(len - at);
                    let write = transfer(&rig, buffer, at, part, lba);
                    let done = carry_out(&rig, Direction::Write, &write);
                    succeeded(&done);
                    let padded = part.next_multiple_of(target.block);
                    assert_eq!(done.len as usize, padded);
                    assert_eq!(done.bounced, padded != part, "in place if it can be");
                    let read = transfer(&rig, back, at, padded, lba);
                    succeeded(&carry_out(&rig, Direction::Read, &read));
                    succeeded(&carry_out(&rig, Direction::Compare, &read));
                }
                if target.stores() {
                    assert!(memory::read(back.address, len) == bytes, "{len} bytes");
                    let image = target.image();
                    assert!(image[..len] == bytes);
                    // A partial block is padded on the device.
                    let end = len.next_multiple_of(target.block);
                    assert!(image[len..end].iter().all(|byte| *byte == 0));
                    memory::write(back.address, &[!bytes[0]]);
                    let compare = transfer(&rig, back, 0, 4096, 0);
                    let differs = carry_out(&rig, Direction::Compare, &compare);
                    assert_eq!(differs.status, 0x285);
                }
                free(&rig, buffer);
                free(&rig, back);
            }
        },
    );
}

/// What is after the data in the buffer stays there, and does not go to the device.
#[test]
fn a_partial_block_is_padded_on_the_device_only() {
    each(
        all_targets("a_partial_block_is_padded_on_the_device_only"),
        |target, rig| {
            let buffer = rig.context.buffer_alloc(64 << 10).unwrap();
            memory::write(buffer.address, &[store::STALE; 64 << 10]);
            memory::write(buffer.address + 4096, &[7; 1000]);
            let write = transfer(&rig, buffer, 4096, 1000, 2);
            let done = carry_out(&rig, Direction::Write, &write);
            succeeded(&done);
            let after = memory::read(buffer.address + 5096, (64 << 10) - 5096);
            assert!(after.iter().all(|byte| *byte == store::STALE));
            if target.stores() {
                let at = 2 * target.block;
                let image = target.image();
                assert!(image[at..at + 1000] == [7; 1000]);
                let end = at + done.len as usize;
                assert!(image[at + 1000..end].iter().all(|byte| *byte == 0));
            }
            // Misaligned whole blocks are copied, too.
            let misaligned = transfer(&rig, buffer, 4097, target.block, 9);
            succeeded(&carry_out(&rig, Direction::Write, &misaligned));
            let read = transfer(&rig, buffer, 32_769, target.block, 9);
            succeeded(&carry_out(&rig, Direction::Read, &read));
            if target.stores() {
                let of = |at| memory::read(buffer.address + at, target.block);
                assert_eq!(of(32_769), of(4097));
            }
            free(&rig, buffer);
        },
    );
}

#[test]
fn what_cannot_be_is_refused_in_words() {
    let rig = Target::disk().open(Drive::Inline);
    for len in [0, LONGEST_BUFFER as u64 + 1, u64::MAX] {
        let error = rig.context.buffer_alloc(len).unwrap_err();
        assert_eq!(error.errno(), libc::EINVAL);
        assert!(error.message().contains("1073741824"), "{error}");
    }
    let buffer = rig.context.buffer_alloc(2 * MIB as u64).unwrap();
    let other = Target::memory().open(Drive::Inline);
    let foreign = other.context.buffer_alloc(2 * MIB as u64).unwrap();
    let refused = |direction, request: BufferTransfer, word: &str| {
        let error = rig.context.submit_buffer(direction, &request).unwrap_err();
        assert_eq!(error.errno(), libc::EINVAL, "{error}");
        assert!(error.message().contains(word), "'{word}' in {error}");
    };
    let with = |offset, len| transfer(&rig, buffer, offset, len, 0);
    refused(Direction::Write, with(0, 0), "at least 1");
    refused(
        Direction::Write,
        with(0, MIB + 512),
        "takes at once (1048576)",
    );
    refused(
        Direction::Write,
        with(2 * MIB - 511, 512),
        "not inside the buffer of 2097152",
    );
    refused(Direction::Write, with(usize::MAX, 512), "not inside");
    refused(Direction::Write, with(0, 9000), "8192");
    refused(Direction::Read, with(0, 100), "whole blocks");
    refused(Direction::Compare, with(0, 100), "whole blocks");
    let mut to_none = with(0, 512);
    to_none.device = 1;
    refused(Direction::Write, to_none, "device 1");
    refused(
        Direction::Write,
        transfer(&rig, foreign, 0, 512, 0),
        "another context",
    );
    for id in [foreign.id, BufferId(0), BufferId(u64::MAX)] {
        assert_eq!(errno(rig.context.buffer_free(id)), libc::EINVAL);
        assert_eq!(errno(rig.context.buffer(id)), libc::EINVAL);
    }
    let command = |data_len| NvmeUringCmd {
        opcode: opcode::WRITE,
        data_len,
        ..NvmeUringCmd::default()
    };
    for len in [0, 2 * MIB as u32] {
        let raw = (buffer.id, 0);
        assert_eq!(
            errno(rig.context.submit_raw_in_buffer(0, &command(len), raw, 1)),
            libc::EINVAL
        );
    }
    assert_eq!(rig.context.buffer(buffer.id).unwrap(), (buffer, 0));
    free(&rig, buffer);
    assert_eq!(errno(rig.context.buffer_free(buffer.id)), libc::EINVAL);
    refused(Direction::Write, with(0, 512), "was freed");
    // The next one has the same place, and another number.
    let next = rig.context.buffer_alloc(2 * MIB as u64).unwrap();
    refused(Direction::Write, with(0, 512), "was freed");
    free(&rig, next);
    free(&other, foreign);
}

#[test]
fn a_buffer_in_flight_is_not_freed() {
    for drive in DRIVES {
        let target = Target::disk();
        let rig = target.open(drive);
        let buffer = rig.context.buffer_alloc(MIB as u64).unwrap();
        memory::write(buffer.address, &payload(3, MIB));
        for lba in [0, 2048] {
            let write = transfer(&rig, buffer, 0, MIB, lba);
            rig.context.submit_buffer(Direction::Write, &write).unwrap();
        }
        assert_eq!(rig.context.buffer(buffer.id).unwrap().1, 2);
        for left in [2, 1] {
            let error = rig.context.buffer_free(buffer.id).unwrap_err();
            assert_eq!(error.errno(), libc::EBUSY);
            assert!(
                error.message().contains(&format!("{left} commands")),
                "{error}"
            );
            succeeded(&rig.one());
        }
        free(&rig, buffer);
        assert_eq!(counts(&rig.context), BufferCounts::default());
        assert!(target.image()[MIB..2 * MIB] == payload(3, MIB));
    }
}

/// A raw command, and one that the device refuses: both give the buffer back.
#[test]
fn raw_and_failed_commands_give_the_buffer_back() {
    each(Target::plain(), |target, rig| {
        let buffer = rig.context.buffer_alloc(8192).unwrap();
        memory::write(buffer.address + 512, &payload(1, 512));
        let mut command = NvmeUringCmd {
            opcode: opcode::WRITE,
            data_len: 512,
            cdw10: 5,
            ..NvmeUringCmd::default()
        };
        let data = (buffer.id, 512);
        rig.context
            .submit_raw_in_buffer(0, &command, data, 77)
            .unwrap();
        let done = rig.one();
        succeeded(&done);
        assert_eq!((done.user_data, done.len), (77, 512));
        if target.stores() {
            assert!(target.image()[5 * 512..6 * 512] == payload(1, 512));
        }
        command.opcode = opcode::IDENTIFY;
        command.data_len = 4096;
        command.cdw10 = 0;
        rig.context
            .submit_raw_in_buffer(0, &command, data, 78)
            .unwrap();
        succeeded(&rig.one());
        let blocks = memory::read(buffer.address + 512, 8);
        assert_eq!(
            u64::from_le_bytes(blocks.try_into().unwrap()),
            target.blocks()
        );
        let beyond = transfer(&rig, buffer, 0, 512, target.blocks());
        assert_eq!(carry_out(&rig, Direction::Write, &beyond).status, 0x80);
        command.opcode = 0x7d;
        rig.context
            .submit_raw_in_buffer(0, &command, data, 79)
            .unwrap();
        assert_eq!(rig.one().status, 0x001);
        assert_eq!(rig.context.buffer(buffer.id).unwrap().1, 0);
        free(&rig, buffer);
    });
}

/// Registered bytes grow with what is allocated, up to the limit, and shrink when it is freed.
#[test]
fn the_pool_grows_and_shrinks() {
    for drive in DRIVES {
        let target = Target::memory();
        let rig = Rig::open(&Config {
            buffers_max: 96 * MIB as u64,
            ..target.config(drive)
        });
        let registered = || counts(&rig.context).registered_bytes as usize;
        let alloc = |len: usize| rig.context.buffer_alloc(len as u64);
        assert_eq!(registered(), 0);
        let small: Vec<_> = (0..600).map(|_| alloc(4096).unwrap()).collect();
        assert_eq!(registered(), 4 * MIB);
        let large = alloc(64 * MIB).unwrap();
        assert_eq!(registered(), 68 * MIB);
        let now = counts(&rig.context);
        assert_eq!(
            (now.buffers, now.bytes as usize),
            (601, 64 * MIB + 600 * 4096)
        );
        let error = alloc(32 * MIB).unwrap_err();
        assert_eq!(error.errno(), libc::ENOBUFS);
        assert!(error.message().contains("buffers_max"), "{error}");
        // The whole of a long one goes to the device and comes back, a piece at a time.
        let write = transfer(&rig, large, 63 * MIB, MIB, 0);
        succeeded(&carry_out(&rig, Direction::Write, &write));
        free(&rig, large);
        assert_eq!(registered(), 4 * MIB);
        small.into_iter().for_each(|buffer| free(&rig, buffer));
        // One is kept for a moment.
        assert_eq!(registered(), 2 * MIB);
        std::thread::sleep(IDLE);
        assert_eq!(counts(&rig.context), BufferCounts::default());
        // And again.
        let again = alloc(80 * MIB).unwrap();
        free(&rig, again);
        assert_eq!(registered(), 0);
    }
}

/// 32 writes are in flight all the time, while buffers come and go.
#[test]
fn buffers_come_and_go_while_writes_are_in_flight() {
    const LEN: usize = 64 << 10;
    each(all_targets("buffers_come_and_go"), |target, rig| {
        let mut live: Vec<(Buffer, u64)> = Vec::new();
        let places = store::DEVICE_BYTES / LEN as u64;
        let mut done = 0;
        for round in 0..256u64 {
            let buffer = match round % 3 {
                0 => rig.context.buffer_alloc(LEN as u64),
                1 => rig.context.buffer_alloc(MIB as u64),
                _ => rig.context.buffer_alloc(300 << 10),
            };
            let buffer = buffer.unwrap();
            memory::write(buffer.address, &payload(round as u32, LEN));
            let lba = round % places * LEN as u64 / target.block as u64;
            let mut write = transfer(&rig, buffer, 0, LEN, lba);
            write.user_data = buffer.id.0;
            write.more = round % 2 == 0;
            rig.context.submit_buffer(Direction::Write, &write).unwrap();
            live.push((buffer, round));
            if live.len() < 32 {
                continue;
            }
            if write.more {
                rig.context.submit_pending().unwrap();
            }
            let completion = rig.one();
            succeeded(&completion);
            let of = |(buffer, _): &(Buffer, u64)| buffer.id.0 == completion.user_data;
            let at = live.iter().position(of).unwrap();
            free(&rig, live.swap_remove(at).0);
            done += 1;
        }
        rig.context.submit_pending().unwrap();
        for completion in rig.take(live.len()) {
            succeeded(&completion);
            done += 1;
        }
        live.into_iter().for_each(|(buffer, _)| free(&rig, buffer));
        assert_eq!(done, 256);
        if target.stores() {
            let image = target.image();
            for place in 0..places as usize {
                // The last round that wrote there.
                let round = place as u64 + (255 - place as u64) / places * places;
                let at = place * LEN;
                assert!(image[at..at + LEN] == payload(round as u32, LEN), "{place}");
            }
        }
    });
}

/// One thread drives an inline engine and takes completions, another one allocates and frees: neither gets EBUSY.
#[test]
fn allocating_disturbs_no_other_thread() {
    for drive in DRIVES {
        let target = Target::memory();
        let context = &Context::open(&target.config(drive)).unwrap();
        let (ended, taken) = (AtomicBool::new(false), AtomicU64::new(0));
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let mut done = [Completion::default(); 16];
                while !ended.load(Ordering::Relaxed) {
                    context
                        .wait(Ready::COMPLETIONS, Some(Duration::from_millis(20)))
                        .unwrap();
                    let count = context.completions(&mut done).unwrap();
                    done[..count].iter().for_each(succeeded);
                    taken.fetch_add(count as u64, Ordering::Relaxed);
                }
            });
            for round in 0..300u64 {
                let buffer = context.buffer_alloc(MIB as u64).unwrap();
                let write = BufferTransfer {
                    buffer: buffer.id,
                    len: 4096,
                    ..BufferTransfer::default()
                };
                context.submit_buffer(Direction::Write, &write).unwrap();
                while taken.load(Ordering::Relaxed) <= round {
                    std::thread::yield_now();
                }
                context.buffer_free(buffer.id).unwrap();
            }
            ended.store(true, Ordering::Relaxed);
        });
        let stats = context.statistics().unwrap();
        assert_eq!((stats.submitted, stats.completed), (300, 300));
    }
}

/// A buffer is used on each lane, and an engine that sleeps registers it all the same.
#[test]
fn all_lanes_use_a_buffer() {
    for drive in DRIVES {
        let target = Target::disk();
        let context = Context::open(&Config {
            queues: 3,
            frame_count: 192,
            ..target.config(drive)
        })
        .unwrap();
        std::thread::sleep(Duration::from_millis(20));
        let buffer = context.buffer_alloc(3 * MIB as u64).unwrap();
        let bytes = payload(9, 3 * MIB);
        memory::write(buffer.address, &bytes);
        for (lane, number) in context.lanes().iter().zip(0u64..) {
            let write = BufferTransfer {
                buffer: buffer.id,
                offset: number * MIB as u64,
                len: MIB as u32,
                lba: number * 2048,
                ..BufferTransfer::default()
            };
            lane.submit_buffer(Direction::Write, &write).unwrap();
        }
        assert_eq!(errno(context.buffer_free(buffer.id)), libc::EBUSY);
        for lane in context.lanes() {
            lane.wait(Ready::COMPLETIONS, Some(Duration::from_secs(10)))
                .unwrap();
            let mut done = [Completion::default(); 2];
            assert_eq!(lane.completions(&mut done).unwrap(), 1);
            succeeded(&done[0]);
        }
        let (total, lanes) = context.all_statistics().unwrap();
        assert_eq!(total.bytes_written, 3 * MIB as u64);
        assert!(lanes.iter().all(|lane| lane.bytes_written == MIB as u64));
        assert_eq!(total.buffers.registered_bytes, 3 * MIB as u64);
        context.buffer_free(buffer.id).unwrap();
        assert!(target.image()[..3 * MIB] == bytes);
    }
}

/// What one mapping writes goes to the device from another, and what the device gives is seen in the first.
#[test]
fn memory_of_the_program_is_shared() {
    use std::os::fd::AsRawFd;
    each(
        all_targets("memory_of_the_program_is_shared"),
        |target, rig| {
            let fd = memory::memfd(2 * MIB, 0).unwrap();
            let outside = memory::map(fd.as_raw_fd(), 2 * MIB, true);
            let check = |buffer: Buffer, offset: u64, lba: u64| {
                let bytes = payload(lba as u32 + 1, 8192);
                memory::write(outside + offset, &bytes);
                let write = transfer(&rig, buffer, 0, 8192, lba);
                succeeded(&carry_out(&rig, Direction::Write, &write));
                memory::write(outside + offset, &[0; 8192]);
                succeeded(&carry_out(&rig, Direction::Read, &write));
                if target.stores() {
                    assert!(memory::read(outside + offset, 8192) == bytes);
                }
            };
            let by_fd = rig
                .context
                .buffer_import_fd(fd.as_raw_fd(), 4096, MIB as u64);
            let by_fd = by_fd.unwrap();
            assert_ne!(by_fd.address, outside + 4096);
            check(by_fd, 4096, 0);
            let by_address = rig
                .context
                .buffer_import(outside + MIB as u64, 10_000)
                .unwrap();
            assert_eq!(
                (by_address.address, by_address.len),
                (outside + MIB as u64, 10_000)
            );
            check(by_address, MIB as u64, 32);
            assert_eq!(counts(&rig.context).registered_bytes, MIB as u64 + 12_288);
            // Only what was named is part of it, not the rest of the page.
            let beyond = transfer(&rig, by_address, 8192, 4096, 0);
            assert_eq!(
                errno(rig.context.submit_buffer(Direction::Write, &beyond)),
                libc::EINVAL
            );
            drop(fd);
            memory::unmap(outside, 2 * MIB);
            // The library has its own mapping.
            let write = transfer(&rig, by_address, 0, 4096, 0);
            succeeded(&carry_out(&rig, Direction::Write, &write));
            free(&rig, by_fd);
            free(&rig, by_address);
            assert_eq!(counts(&rig.context), BufferCounts::default());
        },
    );
}

#[test]
fn memory_that_cannot_be_taken_is_refused_in_words() {
    use std::os::fd::AsRawFd;
    let target = Target::memory();
    let rig = target.open(Drive::Thread);
    let shared = memory::map(-1, MIB, true);
    let private = memory::map(-1, MIB, false);
    let by_address = |address, len, code, word: &str| {
        let error = rig.context.buffer_import(address, len).unwrap_err();
        assert_eq!(error.errno(), code, "{error}");
        assert!(error.message().contains(word), "'{word}' in {error}");
    };
    by_address(shared + 1, 4096, libc::EINVAL, "begin on a page");
    by_address(private, 4096, libc::EINVAL, "MAP_SHARED");
    by_address(shared, 0, libc::EINVAL, "1 to");
    by_address(shared, (1 << 30) + 1, libc::EINVAL, "1 to");
    memory::unmap(shared + MIB as u64 / 2, MIB / 2);
    by_address(shared, MIB as u64, libc::EFAULT, "mapped");
    by_address(0x1000, 4096, libc::EFAULT, "mapped");
    let fd = memory::memfd(MIB, 0).unwrap();
    let disk = Target::disk();
    let on_disk = std::fs::File::options()
        .read(true)
        .write(true)
        .open(&disk.path)
        .unwrap();
    let by_fd = |fd: i32, offset, len, code, word: &str| {
        let error = rig.context.buffer_import_fd(fd, offset, len).unwrap_err();
        assert_eq!(error.errno(), code, "{error}");
        assert!(error.message().contains(word), "'{word}' in {error}");
    };
    by_fd(
        fd.as_raw_fd(),
        512,
        4096,
        libc::EINVAL,
        "multiple of its page",
    );
    by_fd(
        fd.as_raw_fd(),
        4096,
        MIB as u64,
        libc::EINVAL,
        "long enough",
    );
    by_fd(
        fd.as_raw_fd(),
        u64::MAX - 4095,
        4096,
        libc::EINVAL,
        "long enough",
    );
    by_fd(on_disk.as_raw_fd(), 0, 4096, libc::EINVAL, "memfd");
    by_fd(-1, 0, 4096, libc::EBADF, "descriptor -1");
    let read_only = std::fs::File::open(&target.path).unwrap();
    by_fd(
        read_only.as_raw_fd(),
        0,
        4096,
        libc::EACCES,
        "reading and writing",
    );
    assert_eq!(counts(&rig.context), BufferCounts::default());
}

#[test]
fn huge_pages_of_the_program() {
    use std::os::fd::AsRawFd;
    let rig = Target::disk().open(Drive::Thread);
    let flags = libc::MFD_HUGETLB | libc::MFD_HUGE_2MB;
    let fd = memory::memfd(2 * MIB, flags);
    let Some(fd) = fd else {
        eprintln!("huge_pages_of_the_program: SKIPPED, no hugetlb memfd can be made");
        return;
    };
    match rig.context.buffer_import_fd(fd.as_raw_fd(), 0, MIB as u64) {
        Err(error) => {
            assert_eq!(error.errno(), libc::ENOMEM, "{error}");
            assert!(error.message().contains("vm.nr_hugepages"), "{error}");
            eprintln!("huge_pages_of_the_program: SKIPPED, none are reserved: {error}");
        }
        Ok(buffer) => {
            assert_eq!(counts(&rig.context).registered_bytes, 2 * MIB as u64);
            memory::write(buffer.address, &payload(1, MIB));
            let write = transfer(&rig, buffer, 0, MIB, 0);
            succeeded(&carry_out(&rig, Direction::Write, &write));
            succeeded(&carry_out(&rig, Direction::Compare, &write));
            free(&rig, buffer);
            assert_eq!(counts(&rig.context), BufferCounts::default());
        }
    }
}

/// A program that changes entries in the SQ ring reaches no other buffer, and nothing outside of one.
#[test]
fn an_entry_that_lies_is_refused() {
    /// In an entry: the offset of its data, and its private flags.
    const OFFSET: u64 = 72;
    const FLAGS: u64 = 88;
    for drive in DRIVES {
        let target = Target::disk();
        let rig = target.open(drive);
        let info = rig.context.info();
        let entry = info.region_address as u64 + info.layout.rings(0).sq_entries as u64;
        let alloc = || rig.context.buffer_alloc(4096).unwrap();
        let (one, other) = (alloc(), alloc());
        memory::write(other.address, &[9; 4096]);
        let mut index = 0;
        let mut lie = |at: u64, bytes: &[u8]| {
            let mut write = transfer(&rig, one, 0, 4096, 0);
            write.more = true;
            rig.context.submit_buffer(Direction::Write, &write).unwrap();
            memory::write(entry + index * 96 + at, bytes);
            rig.context.submit_pending().unwrap();
            index += 1;
            rig.one()
        };
        // The next piece of the same slab belongs to the other one.
        let beyond = lie(OFFSET, &512u64.to_le_bytes());
        assert_eq!((beyond.status, beyond.result), (0x002, 0));
        assert_eq!(rig.context.buffer(one.id).unwrap().1, 0);
        let flags = |index: u16| (1u32 << 4 | u32::from(index) << 16).to_le_bytes();
        for index in [other.id.index(), 999, u16::MAX] {
            let done = lie(FLAGS, &flags(index));
            assert_eq!(
                (done.status, done.result),
                (0x002, -libc::EBADMSG),
                "{index}"
            );
        }
        assert!(target.image()[..4096].iter().all(|byte| *byte == 0));
        // Nobody knows any more that these have ended.
        assert_eq!(errno(rig.context.buffer_free(one.id)), libc::EBUSY);
        free(&rig, other);
    }
}

#[allow(unsafe_code)]
mod c {
    use std::ffi::{CStr, CString};
    use std::ptr::{null, null_mut};

    use unified::capi::types::*;
    use unified::capi::*;

    pub struct Context(pub *mut unified_ctx);

    pub fn open(path: &str) -> Context {
        let path = CString::new(path).unwrap();
        let mut ctx = null_mut();
        // SAFETY: zero is a value of every field, and the path lives during the call.
        unsafe {
            let mut config = std::mem::zeroed::<unified_config>();
            config.size = size_of::<unified_config>() as u64;
            config.device = path.as_ptr();
            config.buffers_max = 4 << 20;
            assert_eq!(unified_ctx_create(&config, &mut ctx), 0);
        }
        Context(ctx)
    }

    pub fn error() -> String {
        // SAFETY: a string of this thread that ends in a zero byte.
        unsafe { CStr::from_ptr(unified_last_error()) }
            .to_string_lossy()
            .into()
    }

    impl Context {
        pub fn alloc(&self, len: u64) -> Result<(u64, u64), i32> {
            let (mut buffer, mut data) = (7, null_mut());
            // SAFETY: a handle, and both are live.
            let rc = unsafe { unified_buffer_alloc(self.0, len, &mut buffer, &mut data) };
            assert_eq!(buffer == 0, rc < 0);
            (rc == 0).then_some((buffer, data as u64)).ok_or(rc)
        }

        pub fn free(&self, buffer: u64) -> i32 {
            // SAFETY: a handle.
            unsafe { unified_buffer_free(self.0, buffer) }
        }

        pub fn info(&self, buffer: u64) -> Result<unified_buffer_info, i32> {
            // SAFETY: zero is a value of every field; a handle, and the struct has its size.
            unsafe {
                let mut info = std::mem::zeroed::<unified_buffer_info>();
                info.size = size_of::<unified_buffer_info>() as u64;
                match unified_buffer_info(self.0, buffer, &mut info) {
                    0 => Ok(info),
                    rc => Err(rc),
                }
            }
        }

        pub fn submit(&self, op: u32, buffer: u64, data: u64, len: u32, flags: u32) -> i32 {
            let s = unified_submission {
                size: size_of::<unified_submission>() as u64,
                lba: 3,
                user_data: 5,
                data: data as *mut _,
                command: null(),
                op,
                device: 0,
                frame: 0,
                len,
                blocks: 1,
                flags,
                buffer,
            };
            // SAFETY: a handle, and one element.
            unsafe { unified_submit(self.0, &s, 1) }
        }

        pub fn complete(&self) -> unified_completion {
            // SAFETY: zero is a value of every field; a handle, and room for one.
            unsafe {
                let mut done = std::mem::zeroed();
                assert_eq!(unified_wait(self.0, UNIFIED_WAIT_COMPLETIONS, 10_000), 2);
                assert_eq!(unified_completions(self.0, &mut done, 1), 1);
                done
            }
        }

        pub fn stats(&self) -> (u64, u64, u64) {
            // SAFETY: zero is a value of every field; a handle, and the struct has its size.
            let s = unsafe {
                let mut stats = std::mem::zeroed::<unified_stats>();
                stats.size = size_of::<unified_stats>() as u64;
                assert_eq!(unified_ctx_stats(self.0, &mut stats), 0);
                stats
            };
            (s.buffers, s.buffer_bytes, s.buffer_registered_bytes)
        }

        pub fn import(&self, address: u64, len: u64) -> (i32, u64) {
            let mut buffer = 0;
            // SAFETY: a handle, and the number is live.
            let rc = unsafe { unified_buffer_import(self.0, address as *mut _, len, &mut buffer) };
            (rc, buffer)
        }

        pub fn null_pointers(&self, fd: i32) -> Vec<i32> {
            // SAFETY: NULL is what is tested, and nothing is written there.
            unsafe {
                vec![
                    unified_buffer_alloc(self.0, 1, null_mut(), null_mut()),
                    unified_buffer_alloc(null(), 1, &mut 0, null_mut()),
                    unified_buffer_import(self.0, null_mut(), 4096, null_mut()),
                    unified_buffer_import_fd(self.0, fd, 0, 4096, null_mut(), null_mut()),
                    unified_buffer_info(self.0, 1, null_mut()),
                    unified_buffer_free(null(), 1),
                ]
            }
        }

        pub fn destroy(&self) -> i32 {
            // SAFETY: a handle, which is never freed.
            unsafe { unified_ctx_destroy(self.0) }
        }
    }
}

#[test]
fn the_c_api_has_buffers() {
    use unified::capi::types::*;
    let target = Target::disk();
    let ctx = c::open(&target.path);
    assert_eq!(ctx.alloc(0).unwrap_err(), -libc::EINVAL);
    assert_eq!(ctx.alloc(5 << 20).unwrap_err(), -libc::ENOBUFS);
    assert!(
        c::error().contains("the limit is 4194304"),
        "{}",
        c::error()
    );
    let (buffer, data) = ctx.alloc(100_000).unwrap();
    let info = ctx.info(buffer).unwrap();
    assert_eq!(
        (info.data as u64, info.len, info.commands),
        (data, 100_000, 0)
    );
    assert_eq!(ctx.stats(), (1, 100_000, 2 << 20));
    memory::write(data + 4096, &payload(1, 8192));
    assert_eq!(
        ctx.submit(UNIFIED_OP_WRITE, buffer, data + 4096, 8192, UNIFIED_FUA),
        1
    );
    assert_eq!(ctx.free(buffer), -libc::EBUSY);
    assert_eq!(ctx.info(buffer).unwrap().commands, 1);
    let done = ctx.complete();
    assert_eq!(
        (
            done.status,
            done.result,
            done.len,
            done.flags,
            done.user_data
        ),
        (0, 0, 8192, 0, 5)
    );
    assert!(target.image()[3 * 512..3 * 512 + 8192] == payload(1, 8192));
    assert_eq!(
        ctx.submit(UNIFIED_OP_READ, buffer, data + 16_384, 8192, 0),
        1
    );
    assert_eq!(ctx.complete().status, 0);
    assert!(memory::read(data + 16_384, 8192) == payload(1, 8192));
    assert_eq!(
        ctx.submit(UNIFIED_OP_COMPARE, buffer, data + 16_384, 8192, 0),
        1
    );
    assert_eq!(ctx.complete().status, 0);
    for (op, at, flags, word) in [
        (UNIFIED_OP_WRITE, data - 1, 0, "does not lie in the buffer"),
        (UNIFIED_OP_WRITE, data + 100_000, 0, "not inside the buffer"),
        (UNIFIED_OP_WRITE, data, UNIFIED_KEEP, "UNIFIED_KEEP"),
        (UNIFIED_OP_FLUSH, data, 0, "no data"),
        (UNIFIED_OP_WRITE_ZEROES, data, 0, "no data"),
        (UNIFIED_OP_RAW, data, 0, "command"),
    ] {
        assert_eq!(
            ctx.submit(op, buffer, at, 512, flags),
            -libc::EINVAL,
            "{word}"
        );
        assert!(c::error().contains(word), "'{word}' in {}", c::error());
    }
    let second = c::open("null:");
    let (foreign, _) = second.alloc(4096).unwrap();
    assert_eq!(
        ctx.submit(UNIFIED_OP_WRITE, foreign, data, 512, 0),
        -libc::EINVAL
    );
    assert_eq!(ctx.free(foreign), -libc::EINVAL);
    assert_eq!(ctx.null_pointers(0), [-libc::EINVAL; 6]);
    let shared = memory::map(-1, 8192, true);
    let (rc, imported) = ctx.import(shared, 8192);
    assert_eq!(rc, 0, "{}", c::error());
    memory::write(shared, &[5; 512]);
    assert_eq!(ctx.submit(UNIFIED_OP_WRITE, imported, shared, 512, 0), 1);
    assert_eq!(ctx.complete().status, 0);
    assert!(target.image()[3 * 512..4 * 512] == [5; 512]);
    assert_eq!((ctx.free(imported), ctx.free(imported)), (0, -libc::EINVAL));
    assert_eq!(ctx.import(data, 0).0, -libc::EINVAL);
    assert_eq!((ctx.destroy(), second.destroy()), (0, 0));
    assert_eq!(ctx.free(buffer), -libc::EBADF);
    assert_eq!(ctx.alloc(1).unwrap_err(), -libc::EBADF);
}

/// A context that ends finishes what is in flight, and frees the buffers that are left.
#[test]
fn a_context_ends_with_buffers_in_flight() {
    for drive in DRIVES {
        let target = Target::disk();
        let context = Context::open(&target.config(drive)).unwrap();
        let buffer = context.buffer_alloc(MIB as u64).unwrap();
        let bytes = payload(4, MIB);
        memory::write(buffer.address, &bytes);
        context.buffer_alloc(1).unwrap();
        for lba in [0, 2048] {
            let write = BufferTransfer {
                buffer: buffer.id,
                len: MIB as u32,
                lba,
                ..BufferTransfer::default()
            };
            context.submit_buffer(Direction::Write, &write).unwrap();
        }
        drop(context);
        assert!(target.image()[MIB..2 * MIB] == bytes);
    }
}
