//! io_uring, as far as the engine needs it: a safe set of operations on registered memory and files.
//!
//! A `Ring` owns what the kernel may touch through it: the registered buffers (as `Shared`, which keeps their mapping
//! alive) and the registered files. An operation names them by number and is checked when it is pushed, so no caller
//! can make the kernel access other memory or files.
//!
//! Dropping a ring with operations in flight is sound: registered pages stay pinned by the kernel until the last
//! operation on them ends, whether or not they are still mapped here. A caller who needs the bytes to be unused drains
//! the ring first.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::time::Duration;

use io_uring::{IoUring, Probe, cqueue, opcode, squeue, types};

use super::abi::NvmeUringCmd;
use super::event::FileSizeShield;
use super::limits;
use super::mmap::PAGE;
use super::shm::Shared;

/// Most bytes in one registered buffer (io_uring's limit). Longer memory is registered in shards, and
/// one operation stays within one of them.
pub const SHARD: usize = 1 << 30;

/// `NVME_URING_CMD_IO` and `NVME_URING_CMD_ADMIN` of linux/nvme_ioctl.h: _IOWR('N', 0x80 / 0x81 / 0x82, 72 bytes).
const NVME_URING_CMD_IO: u32 = 0xC048_4E80;
/// The same with vectors: `addr` points to them, and `data_len` is their number.
const NVME_URING_CMD_IO_VEC: u32 = 0xC048_4E81;
const NVME_URING_CMD_ADMIN: u32 = 0xC048_4E82;

/// Most bytes that a ring of so many entries counts against RLIMIT_MEMLOCK by itself; kernels before 6.14 do not count
/// it. Entries of 128 bytes with their indices, twice as many completions of 32 bytes, and the header.
pub fn ring_bytes(entries: u32) -> usize {
    let entries = entries.next_power_of_two() as usize;
    let page = |bytes: usize| bytes.next_multiple_of(PAGE);
    page(entries * 128) + page(256 + 2 * entries * 32 + entries * 4)
}

/// The longest time that a dropped ring waits for operations that are being cancelled.
const CANCEL_TIME: Duration = Duration::from_secs(1);

/// Number of different pauses; all further ones are as long as the last.
const PAUSES: u32 = 21;

/// Bytes `offset..offset + len` of registered memory number `buffer`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BufRange {
    pub buffer: u16,
    pub offset: usize,
    pub len: u32,
}

impl BufRange {
    /// The part that starts `by` bytes later, at most `len` long.
    pub fn part(self, by: u32, len: u32) -> BufRange {
        let by = by.min(self.len);
        BufRange {
            buffer: self.buffer,
            offset: self.offset + by as usize,
            len: len.min(self.len - by),
        }
    }
}

/// An operation. `file` is a number of the registered file table; offsets and lengths are bytes.
#[derive(Debug, Clone, Copy)]
pub enum Op {
    Write {
        file: u32,
        range: BufRange,
        offset: u64,
        dsync: bool,
    },
    Read {
        file: u32,
        range: BufRange,
        offset: u64,
    },
    /// A write or read whose memory is in several pieces, put together by `Ring::gather`.
    WriteGather {
        file: u32,
        pieces: Gathered,
        offset: u64,
        dsync: bool,
    },
    ReadScatter {
        file: u32,
        pieces: Gathered,
        offset: u64,
    },
    /// fdatasync
    Sync {
        file: u32,
    },
    Fallocate {
        file: u32,
        mode: i32,
        offset: u64,
        len: u64,
    },
    /// An NVMe command; its data pointer is `data`, whatever `cmd` says.
    Nvme {
        file: u32,
        admin: bool,
        cmd: NvmeUringCmd,
        data: Option<BufRange>,
    },
    /// One whose memory is in several pieces of a registered buffer.
    NvmeGather {
        file: u32,
        cmd: NvmeUringCmd,
        pieces: Gathered,
    },
    /// One shot: completes when the file is readable.
    Poll {
        file: u32,
    },
    /// Completes after the `step`th of the ring's pauses (`set_pauses`).
    Pause {
        step: u8,
    },
    Nop,
}

/// Most pieces of one gathered operation.
pub const PIECES: usize = 64;
/// Gathered operations that can be in flight.
const TABLES: u16 = 256;

/// An iovec as a number, so that a ring may go from thread to thread.
#[derive(Debug, Default, Clone, Copy)]
#[repr(C)]
struct Vector {
    base: usize,
    len: usize,
}

const _: () = {
    use std::mem::offset_of;
    assert!(size_of::<Vector>() == size_of::<libc::iovec>());
    assert!(offset_of!(Vector, base) == offset_of!(libc::iovec, iov_base));
    assert!(offset_of!(Vector, len) == offset_of!(libc::iovec, iov_len));
};

/// A place for the vectors of one operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Table(u16);

/// Pieces in one of a ring's tables.
#[derive(Debug, Clone, Copy)]
pub struct Gathered {
    table: Table,
    count: u32,
    buffer: u16,
}

/// A completion as io_uring gives it.
#[derive(Debug, Clone, Copy)]
pub struct Reaped {
    pub user_data: u64,
    pub result: i32,
}

/// A place in the table of registered buffers that is empty.
const NOTHING: libc::iovec = libc::iovec {
    iov_base: std::ptr::null_mut(),
    iov_len: 0,
};

struct Buffer {
    memory: Shared,
    first_index: u16,
}

pub struct Ring {
    // Dropped first: closes the ring before the memory and the files that it may still use.
    ring: IoUring<squeue::Entry128, cqueue::Entry32>,
    buffers: Vec<Buffer>,
    /// What is registered and unregistered while the ring runs. Its numbers follow those of `buffers`, and its indices
    /// in the kernel's table begin at `first_more`.
    more: Box<[Option<Shared>]>,
    first_more: u32,
    files: Vec<OwnedFd>,
    fixed_nvme: bool,
    /// The vectors of gathered operations, `PIECES` for each. The box never moves. A table is reused only after its
    /// operation has completed: the kernel may read it until then (if it could not begin an NVMe command at once).
    tables: Box<[Vector]>,
    free_tables: Vec<Table>,
    /// What Pause names; the kernel reads it when the operation is submitted.
    pauses: Box<[types::Timespec]>,
    /// Keeps SIGXFSZ from the submitting thread.
    shield: bool,
}

impl Ring {
    /// A ring that any thread may drive, one at a time. `entries` is rounded up to a power of two.
    pub fn shared(entries: u32) -> io::Result<Ring> {
        Ring::build(entries, false)
    }

    /// A ring for one thread, which calls `enable` and alone drives it from then on. Its creator registers buffers and
    /// files before that.
    pub fn deferred(entries: u32) -> io::Result<Ring> {
        Ring::build(entries, true)
    }

    fn build(entries: u32, deferred: bool) -> io::Result<Ring> {
        let mut builder = IoUring::builder();
        builder.dontfork();
        if deferred {
            builder
                .setup_single_issuer()
                .setup_defer_taskrun()
                .setup_r_disabled();
        }
        let ring = limits::retry_locking(|| builder.build(entries))?;
        let mut probe = Probe::new();
        // WRITEV_FIXED and READV_FIXED came with kernel 6.15. If the probe fails, they count as missing.
        let gathers = ring.submitter().register_probe(&mut probe).is_ok()
            && probe.is_supported(opcode::WritevFixed::CODE)
            && probe.is_supported(opcode::ReadvFixed::CODE);
        let tables = if gathers { TABLES } else { 0 };
        Ok(Ring {
            ring,
            buffers: Vec::new(),
            more: Box::default(),
            first_more: 0,
            files: Vec::new(),
            fixed_nvme: true,
            tables: vec![Vector::default(); tables as usize * PIECES].into(),
            free_tables: (0..tables).rev().map(Table).collect(),
            pauses: Box::default(),
            shield: false,
        })
    }

    /// Registers memory, once. Each piece must start on a page. `more`: how many numbers after theirs are kept for
    /// memory that `replace` registers later.
    pub fn register_memory(&mut self, memory: Vec<Shared>, more: u16) -> io::Result<()> {
        let mut vectors = Vec::new();
        for shared in memory {
            let first_index = vectors.len() as u16;
            let mut at = 0;
            while at < shared.len() {
                let len = SHARD.min(shared.len() - at);
                vectors.push(libc::iovec {
                    iov_base: shared.pointer(at).cast(),
                    iov_len: len,
                });
                at += len;
            }
            self.buffers.push(Buffer {
                memory: shared,
                first_index,
            });
        }
        self.first_more = vectors.len() as u32;
        self.more = (0..more).map(|_| None).collect();
        vectors.extend((0..more).map(|_| NOTHING));
        if !vectors.is_empty() {
            // SAFETY: every vector that is not empty lies in a Shared that self now owns, and self's ring is dropped
            // before them; the kernel pins the pages, so they outlive even that.
            let register = || unsafe { self.ring.submitter().register_buffers(&vectors) };
            limits::retry_locking(register)?;
        }
        Ok(())
    }

    /// Registers memory under a number that `register_memory` has kept, or unregisters what has it. Of a deferred ring:
    /// on the thread that drives it. Operations in flight keep the pages that they use.
    ///
    /// `EINVAL`: there is no such number, or the memory is empty or longer than `SHARD`. `ENOMEM`: it cannot be locked.
    pub fn replace(&mut self, number: u16, memory: Option<Shared>) -> io::Result<()> {
        let wrong = || io::Error::from_raw_os_error(libc::EINVAL);
        let slot = (number as usize).checked_sub(self.buffers.len());
        let slot = slot
            .filter(|slot| *slot < self.more.len())
            .ok_or_else(wrong)?;
        let vector = match &memory {
            None => NOTHING,
            Some(memory) if memory.is_empty() || memory.len() > SHARD => return Err(wrong()),
            Some(memory) => libc::iovec {
                iov_base: memory.pointer(0).cast(),
                iov_len: memory.len(),
            },
        };
        let index = self.first_more + slot as u32;
        // SAFETY: the vector is empty, or lies in a Shared that self owns from here on, as in `register_memory`.
        unsafe {
            self.ring
                .submitter()
                .register_buffers_update(index, &[vector], None)?;
        }
        self.more[slot] = memory;
        Ok(())
    }

    /// Registers files, once.
    pub fn register_files(&mut self, files: Vec<OwnedFd>) -> io::Result<()> {
        self.files = files;
        let fds: Vec<RawFd> = self.files.iter().map(|fd| fd.as_raw_fd()).collect();
        if !fds.is_empty() {
            self.ring.submitter().register_files(&fds)?;
        }
        Ok(())
    }

    /// Gives the registered memory back, and what it counts against RLIMIT_MEMLOCK.
    pub fn unregister(&mut self) -> io::Result<()> {
        self.ring.submitter().unregister_buffers()?;
        self.buffers.clear();
        self.more = Box::default();
        Ok(())
    }

    /// Binds a deferred ring to the calling thread.
    pub fn enable(&self) -> io::Result<()> {
        self.ring.submitter().register_enable_rings()
    }

    /// Whether NVMe commands use the registered buffers (some kernels before 6.11.8 refuse that).
    pub fn set_fixed_nvme(&mut self, on: bool) {
        self.fixed_nvme = on;
    }

    pub fn fixed_nvme(&self) -> bool {
        self.fixed_nvme
    }

    /// A table for the vectors of one operation, kept until `release`. `None` if all are in use, or if the kernel does
    /// not take registered memory in several pieces.
    pub fn reserve(&mut self) -> Option<Table> {
        self.free_tables.pop()
    }

    #[cfg(test)]
    pub fn all_tables_are_free(&self) -> bool {
        self.free_tables.len() * PIECES == self.tables.len()
    }

    /// The operation has completed, or was never queued.
    pub fn release(&mut self, table: Table) {
        self.free_tables.push(table);
    }

    /// Gathers pieces for one operation, in their order; neighbours become one. `EFAULT` if there are too many, or if
    /// they are not all in one registered buffer. The table holds them until it is released.
    pub fn gather(
        &mut self,
        table: Table,
        pieces: impl Iterator<Item = BufRange>,
    ) -> io::Result<Gathered> {
        let wrong = || io::Error::from_raw_os_error(libc::EFAULT);
        let first = table.0 as usize * PIECES;
        let mut count = 0;
        let mut buffer = None;
        for range in pieces {
            let (index, pointer) = self.resolve(range).ok_or_else(wrong)?;
            if *buffer.get_or_insert(index) != index {
                return Err(wrong());
            }
            let vectors = self
                .tables
                .get_mut(first..first + PIECES)
                .ok_or_else(wrong)?;
            let len = range.len as usize;
            if count > 0 {
                let last = &mut vectors[count - 1];
                if last.base + last.len == pointer as usize {
                    last.len += len;
                    continue;
                }
            }
            *vectors.get_mut(count).ok_or_else(wrong)? = Vector {
                base: pointer as usize,
                len,
            };
            count += 1;
        }
        Ok(Gathered {
            table,
            count: count as u32,
            buffer: buffer.ok_or_else(wrong)?,
        })
    }

    /// The vectors of a gathered operation.
    fn vectors(&self, pieces: &Gathered) -> Option<*const libc::iovec> {
        let first = pieces.table.0 as usize * PIECES;
        let vectors = self.tables.get(first..)?.get(..pieces.count as usize)?;
        Some(vectors.as_ptr().cast())
    }

    /// What Pause operations wait for: `first`, then twice as long each, never above `longest`. Once.
    pub fn set_pauses(&mut self, first: Duration, longest: Duration) {
        let each = |step: u32| first.saturating_mul(1 << step).min(longest);
        self.pauses = (0..PAUSES)
            .map(|s| types::Timespec::from(each(s)))
            .collect();
    }

    /// A write beyond RLIMIT_FSIZE then only fails with EFBIG. The signal that comes with it, which by default ends
    /// the program, is taken from the submitting thread.
    pub fn set_shield(&mut self, on: bool) {
        self.shield = on;
    }

    /// Readable when completions wait; for poll and epoll.
    pub fn fd(&self) -> RawFd {
        self.ring.as_raw_fd()
    }

    /// The registered index and the address of a range; `None` if it is not inside one shard.
    fn resolve(&self, range: BufRange) -> Option<(u16, *mut u8)> {
        let number = range.buffer as usize;
        let (memory, first_index) = match self.buffers.get(number) {
            Some(buffer) => (&buffer.memory, buffer.first_index),
            None => {
                let slot = number - self.buffers.len();
                let memory = self.more.get(slot)?.as_ref()?;
                (memory, self.first_more as u16 + slot as u16)
            }
        };
        let end = range.offset.checked_add(range.len as usize)?;
        let shard = range.offset / SHARD;
        if range.len == 0 || end > memory.len() || (end - 1) / SHARD != shard {
            return None;
        }
        Some((first_index + shard as u16, memory.pointer(range.offset)))
    }

    fn entry(&self, op: &Op) -> Option<squeue::Entry128> {
        let fixed = |file: u32| ((file as usize) < self.files.len()).then_some(types::Fixed(file));
        Some(match *op {
            Op::Write {
                file,
                range,
                offset,
                dsync,
            } => {
                let (index, pointer) = self.resolve(range)?;
                opcode::WriteFixed::new(fixed(file)?, pointer, range.len, index)
                    .offset(offset)
                    .rw_flags(if dsync { libc::RWF_DSYNC } else { 0 })
                    .build()
                    .into()
            }
            Op::Read {
                file,
                range,
                offset,
            } => {
                let (index, pointer) = self.resolve(range)?;
                opcode::ReadFixed::new(fixed(file)?, pointer, range.len, index)
                    .offset(offset)
                    .build()
                    .into()
            }
            Op::WriteGather {
                file,
                pieces,
                offset,
                dsync,
            } => opcode::WritevFixed::new(
                fixed(file)?,
                self.vectors(&pieces)?,
                pieces.count,
                pieces.buffer,
            )
            .offset(offset)
            .rw_flags(if dsync { libc::RWF_DSYNC } else { 0 })
            .build()
            .into(),
            Op::ReadScatter {
                file,
                pieces,
                offset,
            } => opcode::ReadvFixed::new(
                fixed(file)?,
                self.vectors(&pieces)?,
                pieces.count,
                pieces.buffer,
            )
            .offset(offset)
            .build()
            .into(),
            Op::Sync { file } => opcode::Fsync::new(fixed(file)?)
                .flags(types::FsyncFlags::DATASYNC)
                .build()
                .into(),
            Op::Fallocate {
                file,
                mode,
                offset,
                len,
            } => opcode::Fallocate::new(fixed(file)?, len)
                .offset(offset)
                .mode(mode)
                .build()
                .into(),
            Op::Nvme {
                file,
                admin,
                mut cmd,
                data,
            } => {
                let mut index = None;
                cmd.addr = 0;
                cmd.data_len = 0;
                // Metadata pointers are never passed on: the library uses none.
                cmd.metadata = 0;
                cmd.metadata_len = 0;
                if let Some(range) = data {
                    let (fixed_index, pointer) = self.resolve(range)?;
                    cmd.addr = pointer as u64;
                    cmd.data_len = range.len;
                    index = self.fixed_nvme.then_some(fixed_index);
                }
                let code = if admin {
                    NVME_URING_CMD_ADMIN
                } else {
                    NVME_URING_CMD_IO
                };
                opcode::UringCmd80::new(fixed(file)?, code)
                    .buf_index(index)
                    .cmd(command_bytes(&cmd))
                    .build()
            }
            Op::NvmeGather {
                file,
                mut cmd,
                pieces,
            } => {
                cmd.addr = self.vectors(&pieces)? as u64;
                cmd.data_len = pieces.count;
                cmd.metadata = 0;
                cmd.metadata_len = 0;
                opcode::UringCmd80::new(fixed(file)?, NVME_URING_CMD_IO_VEC)
                    .buf_index(Some(pieces.buffer))
                    .cmd(command_bytes(&cmd))
                    .build()
            }
            Op::Poll { file } => opcode::PollAdd::new(fixed(file)?, libc::POLLIN as u32)
                .build()
                .into(),
            Op::Pause { step } => {
                let last = self.pauses.len().checked_sub(1)?;
                opcode::Timeout::new(&self.pauses[usize::from(step).min(last)])
                    .build()
                    .into()
            }
            Op::Nop => opcode::Nop::new().build().into(),
        })
    }

    /// Queues an operation. `EAGAIN` if the queue is full (submit, then push again), `EFAULT` if it names memory or a
    /// file that is not registered.
    pub fn push(&mut self, op: &Op, user_data: u64) -> io::Result<()> {
        let Some(entry) = self.entry(op) else {
            return Err(io::Error::from_raw_os_error(libc::EFAULT));
        };
        let entry = entry.user_data(user_data);
        // SAFETY: the entry's buffer lies in registered memory that self owns (resolve), its file is in the table that
        // self owns, and its vectors, if any, lie in self's tables, whose box lives as long as the ring. If they were
        // changed too early, the kernel would still check them against the registered buffer. A pause's time is in a
        // box of self that is set before the first push.
        unsafe { self.ring.submission().push(&entry) }
            .map_err(|_| io::Error::from_raw_os_error(libc::EAGAIN))
    }

    /// Submits queued operations and, if `want` > 0, waits for that many completions for at most `timeout`. A signal
    /// or timeout is not an error.
    pub fn submit(&mut self, want: usize, timeout: Option<Duration>) -> io::Result<()> {
        let _shield = match self.shield && self.queued() > 0 {
            true => Some(FileSizeShield::new()),
            false => None,
        };
        let result = match timeout {
            Some(timeout) if want > 0 => {
                let time = types::Timespec::from(timeout);
                let args = types::SubmitArgs::new().timespec(&time);
                self.ring.submitter().submit_with_args(want, &args)
            }
            _ => self.ring.submit_and_wait(want),
        };
        match result {
            Ok(_) => Ok(()),
            Err(e) => match e.raw_os_error() {
                // EBUSY: completions must be taken first. EAGAIN: no memory for a request. Both leave the operations
                // in the queue for the next turn.
                Some(libc::ETIME | libc::EINTR | libc::EBUSY | libc::EAGAIN) => Ok(()),
                _ => Err(e),
            },
        }
    }

    /// Whether `reap` or `submit` has work without waiting: queued operations.
    pub fn queued(&mut self) -> usize {
        self.ring.submission().len()
    }

    /// Takes what has completed.
    pub fn reap(&mut self, mut each: impl FnMut(Reaped)) -> usize {
        let mut count = 0;
        for cqe in self.ring.completion() {
            count += 1;
            each(Reaped {
                user_data: cqe.user_data(),
                result: cqe.result(),
            });
        }
        count
    }
}

impl Drop for Ring {
    /// Releases files and memory now. Closing releases them too, but later, in a worker of the kernel: until then a
    /// file stays locked, a device claimed and pages charged, and opening the same device again would fail.
    fn drop(&mut self) {
        // Errors are ignored: nothing was registered, or another thread than a deferred ring's own drops it, and the
        // kernel releases it later.
        let submitter = self.ring.submitter();
        // Kernels before 6.13 wait in unregister_files for every operation on a registered file, and a poll on a
        // doorbell that nobody rings never ends by itself.
        let longest = types::Timespec::from(CANCEL_TIME);
        let _ = submitter.register_sync_cancel(Some(longest), types::CancelBuilder::any());
        let _ = submitter.unregister_files();
        let _ = submitter.unregister_buffers();
    }
}

fn command_bytes(cmd: &NvmeUringCmd) -> [u8; 80] {
    let mut bytes = [0; 80];
    // SAFETY: NvmeUringCmd is repr(C) integers, 72 bytes without padding (asserted in abi.rs), and the
    // destination has 80.
    unsafe {
        std::ptr::copy_nonoverlapping(
            std::ptr::from_ref(cmd).cast::<u8>(),
            bytes.as_mut_ptr(),
            size_of::<NvmeUringCmd>(),
        );
    }
    bytes
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::sys::mmap::Mapping;

    fn memory(len: usize) -> Shared {
        let mapping = Arc::new(Mapping::anonymous(len, false).unwrap());
        Shared::new(mapping, 0, len).unwrap()
    }

    #[test]
    fn an_operation_cannot_name_foreign_memory_or_files() {
        let mut ring = Ring::shared(8).unwrap();
        let file = OwnedFd::from(std::fs::File::open("/dev/null").unwrap());
        ring.register_memory(vec![memory(8192)], 0).unwrap();
        ring.register_files(vec![file]).unwrap();
        let range = |buffer, offset, len| BufRange {
            buffer,
            offset,
            len,
        };
        for (file, range) in [
            (0, range(0, 4096, 4097)),
            (0, range(1, 0, 1)),
            (0, range(0, usize::MAX, 2)),
            (0, range(0, 0, 0)),
            (1, range(0, 0, 1)),
        ] {
            let error = ring
                .push(
                    &Op::Read {
                        file,
                        range,
                        offset: 0,
                    },
                    1,
                )
                .unwrap_err();
            assert_eq!(
                error.raw_os_error(),
                Some(libc::EFAULT),
                "{range:?} of file {file}"
            );
        }
        let ok = Op::Read {
            file: 0,
            range: range(0, 4096, 4096),
            offset: 0,
        };
        ring.push(&ok, 7).unwrap();
        ring.submit(1, None).unwrap();
        let mut seen = Vec::new();
        ring.reap(|c| seen.push((c.user_data, c.result)));
        assert_eq!(seen, [(7, 0)]);
    }

    #[test]
    fn memory_comes_and_goes_while_the_ring_runs() {
        let mut ring = Ring::shared(8).unwrap();
        let file = OwnedFd::from(std::fs::File::open("/dev/zero").unwrap());
        ring.register_memory(vec![memory(8192)], 2).unwrap();
        ring.register_files(vec![file]).unwrap();
        let read = |ring: &mut Ring, buffer| {
            let op = Op::Read {
                file: 0,
                range: BufRange {
                    buffer,
                    offset: 0,
                    len: 4096,
                },
                offset: 0,
            };
            ring.push(&op, 1)?;
            ring.submit(1, None)?;
            let mut result = 0;
            ring.reap(|done| result = done.result);
            Ok::<_, io::Error>(result)
        };
        for round in 0..3 {
            let errno = |error: io::Error| error.raw_os_error();
            assert_eq!(
                errno(read(&mut ring, 2).unwrap_err()),
                Some(libc::EFAULT),
                "{round}"
            );
            let new = memory(4096);
            new.write(0, &[7; 4096]);
            ring.replace(2, Some(new.clone())).unwrap();
            assert_eq!(read(&mut ring, 2).unwrap(), 4096);
            assert!(new.equal(0, &memory(4096), 0, 4096));
            ring.replace(2, None).unwrap();
            for number in [0, 3] {
                assert_eq!(
                    errno(ring.replace(number, None).unwrap_err()),
                    Some(libc::EINVAL)
                );
            }
        }
    }

    #[test]
    fn a_deferred_ring_is_driven_by_the_thread_that_enables_it() {
        let mut ring = Ring::deferred(8).unwrap();
        ring.register_memory(vec![memory(4096)], 0).unwrap();
        std::thread::spawn(move || {
            ring.enable().unwrap();
            ring.push(&Op::Nop, 3).unwrap();
            ring.submit(1, Some(Duration::from_secs(5))).unwrap();
            let mut seen = 0;
            ring.reap(|c| seen = c.user_data);
            assert_eq!(seen, 3);
        })
        .join()
        .unwrap();
    }

    #[test]
    fn a_dropped_ring_has_given_its_files_back() {
        let path = std::env::temp_dir().join(format!("unified-ring-{}", std::process::id()));
        for round in 0..60 {
            let file = std::fs::File::create(&path).unwrap();
            file.try_lock().unwrap();
            let files = vec![OwnedFd::from(file)];
            let enter = |mut ring: Ring| {
                ring.push(&Op::Nop, 1).unwrap();
                ring.submit(1, None).unwrap();
            };
            let mut ring = match round % 2 {
                0 => Ring::shared(8).unwrap(),
                _ => Ring::deferred(8).unwrap(),
            };
            ring.register_memory(vec![memory(4096)], 0).unwrap();
            ring.register_files(files).unwrap();
            match round % 3 {
                // Opening a context failed later on.
                0 => drop(ring),
                _ if round % 2 == 1 => std::thread::spawn(move || {
                    ring.enable().unwrap();
                    enter(ring);
                })
                .join()
                .unwrap(),
                _ => enter(ring),
            }
            let again = std::fs::File::open(&path).unwrap();
            assert!(again.try_lock().is_ok(), "round {round}");
        }
        std::fs::remove_file(&path).unwrap();
    }
}
