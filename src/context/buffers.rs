//! Buffers of a context: allocating and freeing them, registered with the rings of all lanes.

#![forbid(unsafe_code)]

use std::os::fd::RawFd;

use super::Context;
use crate::buffers::{Buffer, BufferCounts, BufferId, LONGEST_BUFFER, Rings};
use crate::error::{Error, Result};
use crate::lane::{BufferTransfer, Direction, Lane};
use crate::sys::abi::NvmeUringCmd;
use crate::sys::mmap::Mapping;
use crate::sys::shm::Shared;

impl Rings for [Lane] {
    fn replace(&self, number: u16, memory: Option<&Shared>) -> Result<()> {
        match memory {
            Some(_) => self
                .iter()
                .try_for_each(|lane| lane.replace_memory(number, memory)),
            // All of them, even if one cannot.
            None => self
                .iter()
                .map(|lane| lane.replace_memory(number, None))
                .fold(Ok(()), Result::and),
        }
    }

    fn count(&self) -> usize {
        self.len()
    }
}

impl Context {
    fn living(&self) -> Result<&[Lane]> {
        self.lanes.iter().try_for_each(Lane::alive)?;
        Ok(&self.lanes)
    }

    /// A zeroed buffer of `len` bytes, 1 to 1 GiB, which all lanes can use. It begins on a page. Any thread; waits for the
    /// drivers of all lanes.
    ///
    /// `EINVAL` (length), `ENOBUFS` (`buffers_max`, or too many), `ENOMEM` (memory, or RLIMIT_MEMLOCK), `ETIMEDOUT` (a driver
    /// hangs), `ESHUTDOWN`.
    pub fn buffer_alloc(&self, len: u64) -> Result<Buffer> {
        self.buffers.alloc(self.living()?, len)
    }

    /// A buffer in shared memory that the program has mapped at an address. Errors as `buffer_alloc`; `EFAULT` if it is not
    /// mapped, and `EINVAL` if it is not shared or does not begin on a page.
    pub fn buffer_import(&self, address: u64, len: u64) -> Result<Buffer> {
        let lanes = self.living()?;
        check(len)?;
        let memory = Mapping::of_program(address as usize, len as usize).map_err(|e| {
            let error = Error::os(
                &e,
                format_args!("taking {len} bytes at {address:#x} as a buffer"),
            );
            match e.raw_os_error() {
                Some(libc::EINVAL) => error.hint(
                    "the memory must begin on a page of its kind and be one shared mapping (MAP_SHARED, a memfd): private \
                     memory, as of malloc, cannot be a buffer",
                ),
                Some(libc::EFAULT) => error.hint("not all of it is mapped for reading and writing"),
                _ => error,
            }
        })?;
        self.buffers.import(lanes, memory, len, Some(address))
    }

    /// A buffer in a file of memory: a memfd, or one of hugetlbfs. It is mapped until the buffer is freed. Errors as
    /// `buffer_alloc`; `EBADF`, `EACCES`.
    pub fn buffer_import_fd(&self, fd: RawFd, offset: u64, len: u64) -> Result<Buffer> {
        let lanes = self.living()?;
        check(len)?;
        let memory = Mapping::of_file(fd, offset, len as usize).map_err(|e| {
            let error = Error::os(
                &e,
                format_args!("taking {len} bytes at offset {offset} of descriptor {fd} as a buffer"),
            );
            match e.raw_os_error() {
                Some(libc::EINVAL) => error.hint(
                    "a memfd or a file of tmpfs or hugetlbfs is needed, an offset that is a multiple of its page, and a file \
                     that is long enough",
                ),
                Some(libc::EACCES | libc::EPERM) => {
                    error.hint("open it for reading and writing, and do not seal it against writing")
                }
                Some(libc::ENOMEM | libc::EFAULT) => {
                    error.hint("there are too few free pages, or too few reserved huge ones (vm.nr_hugepages)")
                }
                _ => error,
            }
        })?;
        self.buffers.import(lanes, memory, len, None)
    }

    /// Frees a buffer, and gives memory back that is not used any more. `EBUSY` while a command uses it (until its completion
    /// was taken), `EINVAL` if this context has no such buffer. Any thread; may wait for the drivers of all lanes.
    pub fn buffer_free(&self, id: BufferId) -> Result<()> {
        self.check_process()?;
        self.buffers.free(&*self.lanes, id)
    }

    /// A buffer, and how many commands use it. `EINVAL`.
    pub fn buffer(&self, id: BufferId) -> Result<(Buffer, u32)> {
        let (address, len, commands) = self.buffers.table().about(id)?;
        let len = len.into();
        Ok((Buffer { id, address, len }, commands))
    }

    /// What buffers there are now. Gives idle memory back.
    pub(super) fn count_buffers(&self) -> BufferCounts {
        if self.living().is_ok() {
            self.buffers.tidy(&*self.lanes);
        }
        self.buffers.counts()
    }

    pub fn submit_buffer(&self, direction: Direction, request: &BufferTransfer) -> Result<()> {
        let first = &self.lanes[0];
        first
            .submit_buffer(direction, request)
            .and_then(|()| self.published(first, request.more))
    }

    pub fn submit_raw_in_buffer(
        &self,
        device: u8,
        cmd: &NvmeUringCmd,
        data: (BufferId, u64),
        user_data: u64,
    ) -> Result<()> {
        self.on_first(|lane| lane.submit_raw_in_buffer(device, cmd, data, user_data))
    }
}

/// `EINVAL` for a length that no buffer can have.
fn check(len: u64) -> Result<()> {
    match len {
        1..=LONG => Ok(()),
        _ => Err(Error::new(
            libc::EINVAL,
            format!("a buffer of {len} bytes: 1 to {LONGEST_BUFFER} are possible; take several"),
        )),
    }
}

const LONG: u64 = LONGEST_BUFFER as u64;
