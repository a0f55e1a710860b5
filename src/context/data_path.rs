//! The data path of a whole context. Each function has the thread rule of the lane's function of the same name.

#![forbid(unsafe_code)]

use std::os::fd::RawFd;
use std::time::Duration;

use super::Context;
use crate::error::Result;
use crate::lane::{Completion, Direction, Lane, Progress, Ready, Transfer};
use crate::net::rx::Received;
use crate::sys::abi::NvmeUringCmd;

impl Context {
    /// The lane that serves the calls of the context.
    fn first(&self) -> &Lane {
        &self.lanes[0]
    }

    pub fn receive(&self, out: &mut [Received]) -> Result<usize> {
        self.first().receive(out)
    }

    pub fn frame_alloc(&self) -> Result<u32> {
        self.first().frame_alloc()
    }

    pub fn frame_release(&self, frame: u32) -> Result<()> {
        self.first().frame_release(frame)
    }

    pub fn frames_release(&self, frames: impl IntoIterator<Item = u32>) -> Result<Progress> {
        self.first().frames_release(frames)
    }

    pub fn blocks_of(&self, len: u32) -> u32 {
        self.first().blocks_of(len)
    }

    pub fn submit_transfer(&self, direction: Direction, request: &Transfer) -> Result<()> {
        self.first().submit_transfer(direction, request)
    }

    pub fn submit_write(&self, request: &Transfer) -> Result<()> {
        self.submit_transfer(Direction::Write, request)
    }

    pub fn submit_writes(
        &self,
        requests: impl IntoIterator<Item = Result<Transfer>>,
    ) -> Result<Progress> {
        self.first().submit_writes(requests)
    }

    pub fn submit_read(&self, request: &Transfer) -> Result<()> {
        self.submit_transfer(Direction::Read, request)
    }

    pub fn submit_compare(&self, request: &Transfer) -> Result<()> {
        self.submit_transfer(Direction::Compare, request)
    }

    pub fn submit_pending(&self) -> Result<()> {
        self.first().submit_pending()
    }

    pub fn submit_flush(&self, user_data: u64) -> Result<()> {
        self.first().submit_flush(user_data)
    }

    pub fn submit_write_zeroes(
        &self,
        lba: u64,
        blocks: u32,
        fua: bool,
        user_data: u64,
    ) -> Result<()> {
        self.first()
            .submit_write_zeroes(lba, blocks, fua, user_data)
    }

    pub fn submit_deallocate(&self, lba: u64, blocks: u32, user_data: u64) -> Result<()> {
        self.first().submit_deallocate(lba, blocks, user_data)
    }

    pub fn submit_raw(
        &self,
        cmd: &NvmeUringCmd,
        frame: Option<(u32, u32)>,
        user_data: u64,
    ) -> Result<()> {
        self.first().submit_raw(cmd, frame, user_data)
    }

    pub fn completions(&self, out: &mut [Completion]) -> Result<usize> {
        self.first().completions(out)
    }

    pub fn wait(&self, what: Ready, timeout: Option<Duration>) -> Result<Ready> {
        self.first().wait(what, timeout)
    }

    pub fn poll_fd(&self) -> Result<RawFd> {
        self.first().poll_fd()
    }

    pub(crate) fn outstanding(&self) -> Result<u32> {
        self.first().outstanding()
    }

    pub(crate) fn alive(&self) -> Result<()> {
        self.first().alive()
    }
}
