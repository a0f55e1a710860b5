//! The data path of a whole context, over all of its lanes. Each function has the thread rule of the lane's function of the
//! same name, for all lanes together: one thread receives from all and submits to all, one takes the completions of all.
//!
//! A submission goes to the lane that its frame belongs to; one without a frame goes to the first lane.

#![forbid(unsafe_code)]

use std::iter;
use std::os::fd::RawFd;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use super::Context;
use crate::error::{Error, Result};
use crate::lane::{self, Blocks, Completion, Direction, Lane, Progress, Ready, Transfer};
use crate::log;
use crate::net::rx::Received;
use crate::sys::abi::NvmeUringCmd;
use crate::sys::event::Epoll;

/// Where the next look at all lanes begins, of each function that looks at them: with one for all, two that are called in
/// turn would each begin with the same lanes for ever.
#[derive(Debug, Default)]
pub(super) struct Turns {
    receive: AtomicUsize,
    complete: AtomicUsize,
    allocate: AtomicUsize,
}

impl Context {
    /// The lane that serves what belongs to no other.
    fn first(&self) -> &Lane {
        &self.lanes[0]
    }

    /// The lane that a frame belongs to.
    fn lane_of(&self, frame: u32) -> &Lane {
        let first = self.first();
        self.lanes.get(first.owner(frame) as usize).unwrap_or(first)
    }

    /// All lanes, beginning with another one at each call: none waits for ever behind a busy one.
    fn in_turn(&self, turn: &AtomicUsize) -> impl Iterator<Item = &Lane> {
        let begin = turn.fetch_add(1, Ordering::Relaxed) % self.lanes.len();
        self.lanes[begin..].iter().chain(&self.lanes[..begin])
    }

    /// An entry was queued on a lane, which has published it unless more will follow. Those that wait on other lanes are
    /// published with the last one.
    pub(super) fn published(&self, lane: &Lane, more: bool) -> Result<()> {
        if self.lanes.len() == 1 {
            return Ok(());
        }
        let bit = 1 << lane.number();
        if more {
            self.unpublished.fetch_or(bit, Ordering::Relaxed);
            return Ok(());
        }
        let mut waiting = self.unpublished.swap(0, Ordering::Relaxed) & !bit;
        while waiting != 0 {
            self.lanes[waiting.trailing_zeros() as usize].submit_pending()?;
            waiting &= waiting - 1;
        }
        Ok(())
    }

    /// Submits on the first lane, and publishes what waits on the others.
    pub(super) fn on_first(&self, submit: impl FnOnce(&Lane) -> Result<()>) -> Result<()> {
        let first = self.first();
        submit(first).and_then(|()| self.published(first, false))
    }

    /// Fills `out` from one lane after the other. What they gave is handed out, even if one of them has failed: it says so
    /// again at the next call.
    fn gather<T>(
        &self,
        turn: &AtomicUsize,
        out: &mut [T],
        mut of: impl FnMut(&Lane, &mut [T]) -> Result<usize>,
    ) -> Result<usize> {
        if let [lane] = &*self.lanes {
            return of(lane, out);
        }
        let (mut count, mut failed) = (0, None);
        for lane in self.in_turn(turn) {
            if count == out.len() {
                break;
            }
            match of(lane, &mut out[count..]) {
                Ok(some) => count += some,
                Err(error) => failed = failed.or(Some(error)),
            }
        }
        match failed {
            Some(error) if count == 0 => Err(error),
            _ => Ok(count),
        }
    }

    pub fn receive(&self, out: &mut [Received]) -> Result<usize> {
        self.gather(&self.turns.receive, out, Lane::receive)
    }

    pub fn completions(&self, out: &mut [Completion]) -> Result<usize> {
        self.gather(&self.turns.complete, out, Lane::completions)
    }

    pub fn frame_alloc(&self) -> Result<u32> {
        let mut none = None;
        for lane in self.in_turn(&self.turns.allocate) {
            match lane.frame_alloc() {
                Err(error) if error.errno() == libc::ENOBUFS => none = Some(error),
                result => return result,
            }
        }
        none.map_or_else(|| self.first().frame_alloc(), Err)
    }

    pub fn frame_release(&self, frame: u32) -> Result<()> {
        self.first().frame_release(frame)
    }

    pub fn frames_release(&self, frames: impl IntoIterator<Item = u32>) -> Result<Progress> {
        self.first().frames_release(frames)
    }

    pub fn blocks_of(&self, device: u8, len: u32) -> u32 {
        self.first().blocks_of(device, len)
    }

    pub fn submit_transfer(&self, direction: Direction, request: &Transfer) -> Result<()> {
        let lane = self.lane_of(request.frame);
        lane.submit_transfer(direction, request)
            .and_then(|()| self.published(lane, request.more))
    }

    pub fn submit_write(&self, request: &Transfer) -> Result<()> {
        self.submit_transfer(Direction::Write, request)
    }

    pub fn submit_writes(
        &self,
        requests: impl IntoIterator<Item = Result<Transfer>>,
    ) -> Result<Progress> {
        if let [lane] = &*self.lanes {
            return lane.submit_writes(requests);
        }
        // Neighbours of one lane together.
        let mut requests = requests.into_iter().peekable();
        let mut done = 0;
        while let Some(next) = requests.peek() {
            let lane = match next {
                Ok(request) => self.lane_of(request.frame).number(),
                Err(_) => 0,
            };
            let same = |request: &Result<Transfer>| match request {
                Ok(request) => self.lane_of(request.frame).number() == lane,
                Err(_) => true,
            };
            let part = iter::from_fn(|| requests.next_if(same));
            match self.lanes[lane as usize].submit_writes(part) {
                Ok(progress) => {
                    done += progress.done;
                    self.published(&self.lanes[lane as usize], false)?;
                    if progress.refused.is_some() {
                        return Progress::new(done, progress.refused);
                    }
                }
                Err(error) => return Progress::new(done, Some(error)),
            }
        }
        Progress::new(done, None)
    }

    pub fn submit_read(&self, request: &Transfer) -> Result<()> {
        self.submit_transfer(Direction::Read, request)
    }

    pub fn submit_compare(&self, request: &Transfer) -> Result<()> {
        self.submit_transfer(Direction::Compare, request)
    }

    pub fn submit_pending(&self) -> Result<()> {
        self.lanes.iter().try_for_each(Lane::submit_pending)
    }

    pub fn submit_flush(&self, device: Option<u8>, user_data: u64) -> Result<()> {
        self.on_first(|lane| lane.submit_flush(device, user_data))
    }

    pub fn submit_write_zeroes(&self, blocks: &Blocks, fua: bool) -> Result<()> {
        self.on_first(|lane| lane.submit_write_zeroes(blocks, fua))
    }

    pub fn submit_deallocate(&self, blocks: &Blocks) -> Result<()> {
        self.on_first(|lane| lane.submit_deallocate(blocks))
    }

    pub fn submit_raw(
        &self,
        device: u8,
        cmd: &NvmeUringCmd,
        frame: Option<(u32, u32)>,
        user_data: u64,
    ) -> Result<()> {
        let lane = frame.map_or(self.first(), |(frame, _)| self.lane_of(frame));
        lane.submit_raw(device, cmd, frame, user_data)
            .and_then(|()| self.published(lane, false))
    }

    pub fn wait(&self, what: Ready, timeout: Option<Duration>) -> Result<Ready> {
        lane::wait(&self.lanes, what, timeout)
    }

    /// Of one lane its own descriptor; of several, one that is readable if that of any of them is.
    pub fn poll_fd(&self) -> Result<RawFd> {
        if let [lane] = &*self.lanes {
            return lane.poll_fd();
        }
        let failed = |e| Error::os(&e, "making the pollable descriptor of several lanes");
        // As in `Lane::poll_fd`.
        let _held = log::hold();
        let mut slot = self.poll.lock();
        if let Some(epoll) = &*slot {
            return Ok(epoll.fd());
        }
        let epoll = Epoll::new().map_err(failed)?;
        for lane in &self.lanes {
            epoll.add(lane.poll_fd()?).map_err(failed)?;
        }
        let fd = epoll.fd();
        *slot = Some(epoll);
        Ok(fd)
    }
}
