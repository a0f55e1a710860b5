//! Runs of packets: neighbouring frames that go to neighbouring blocks are one command with one completion. If that fails,
//! the frames are submitted again one by one, so that each packet gets its own result.

#![forbid(unsafe_code)]

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;

use crate::error::Error;
use crate::lane::{Completion, FrameRun, Lane};

/// `EBADMSG`: a completion that no write of the pipeline can have.
#[cold]
pub(super) fn not_submitted() -> Error {
    Error::new(
        libc::EBADMSG,
        "CQ ring: a completion of what was not submitted; something outside the library wrote to the region",
    )
}

/// A run that failed. Its frames are held again.
#[derive(Debug, Clone, Copy)]
pub(super) struct FailedRun {
    /// Of its first packet.
    pub number: u64,
    pub packets: u32,
    pub first: u32,
    pub frames: u32,
    pub device: u8,
    pub status: u16,
}

impl FailedRun {
    pub fn of(completion: &Completion) -> FailedRun {
        FailedRun {
            number: completion.user_data,
            packets: completion.undecided,
            first: completion.frame.unwrap_or_default(),
            frames: completion.frames,
            device: completion.device,
            status: completion.status,
        }
    }

    /// Gives its frames up.
    pub fn release(&self, lane: &Lane) {
        for frame in self.first..self.first + self.frames {
            // A frame that is not held was not given back by the completion.
            let _ = lane.frame_release(frame);
        }
    }
}

/// From the storage thread, which finds them, to the packet thread, which submits.
#[derive(Debug, Default)]
pub(super) struct FailedRuns {
    /// Looked at without the lock.
    some: AtomicBool,
    runs: Mutex<Vec<FailedRun>>,
    /// Those that nobody submits again.
    given_up: Mutex<Vec<FailedRun>>,
}

impl FailedRuns {
    pub fn push(&self, run: FailedRun) {
        self.runs.lock().push(run);
        self.some.store(true, Ordering::Release);
    }

    /// The storage thread releases it.
    pub fn give_up(&self, run: FailedRun) {
        self.given_up.lock().push(run);
    }

    pub fn take_given_up(&self) -> Vec<FailedRun> {
        std::mem::take(&mut *self.given_up.lock())
    }

    pub fn take(&self) -> Vec<FailedRun> {
        if !self.some.load(Ordering::Acquire) {
            return Vec::new();
        }
        self.some.store(false, Ordering::Release);
        std::mem::take(&mut *self.runs.lock())
    }
}

/// The run that grows, and those that were submitted and may still fail.
#[derive(Debug, Default)]
pub(super) struct Runs {
    pub open: FrameRun,
    /// Most frames of `open`, and blocks of each on its device.
    longest: u32,
    step: u32,
    submitted: VecDeque<FrameRun>,
}

impl Runs {
    /// Whether a frame lies after those of the open run, which can grow.
    pub fn continues(&self, frame: u32) -> bool {
        let open = &self.open;
        open.frames > 0 && open.frames < self.longest && frame == open.first + open.frames
    }

    /// Adds a write of a whole frame. `false`: it is no neighbour of the open run, which is to be submitted first.
    pub fn join(&mut self, next: &FrameRun) -> bool {
        let neighbours = self.continues(next.first)
            && next.device == self.open.device
            && next.lba == self.open.lba + u64::from(self.open.frames * self.step);
        if neighbours {
            self.open.frames += 1;
        }
        neighbours
    }

    pub fn begin(&mut self, run: FrameRun, longest: u32, step: u32) {
        self.open = run;
        self.longest = longest;
        self.step = step;
    }

    /// The open run was submitted. All writes below `completed` are completed.
    pub fn note_submitted(&mut self, completed: u64) {
        let run = std::mem::take(&mut self.open);
        let done = |run: &FrameRun| run.user_data + u64::from(run.frames) <= completed;
        while self.submitted.front().is_some_and(done) {
            self.submitted.pop_front();
        }
        self.submitted.push_back(run);
    }

    /// What was submitted with this number.
    pub fn find(&self, number: u64) -> Option<FrameRun> {
        let at = self
            .submitted
            .binary_search_by_key(&number, |run| run.user_data);
        self.submitted.get(at.ok()?).copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(first: u32, lba: u64, number: u64) -> FrameRun {
        FrameRun {
            first,
            frames: 1,
            lba,
            user_data: number,
            ..FrameRun::default()
        }
    }

    #[test]
    fn neighbours_in_memory_and_on_the_device_are_one_run() {
        let mut runs = Runs::default();
        assert!(!runs.join(&frame(0, 0, 0)), "nothing is open");
        runs.begin(frame(7, 100, 50), 3, 4);
        assert!(!runs.join(&frame(9, 104, 51)), "another frame");
        assert!(!runs.join(&frame(8, 105, 51)), "other blocks");
        assert!(runs.join(&frame(8, 104, 51)));
        assert!(runs.join(&frame(9, 108, 52)));
        assert!(!runs.join(&frame(10, 112, 53)), "long enough");
        assert_eq!((runs.open.first, runs.open.frames), (7, 3));
    }

    #[test]
    fn a_run_is_known_until_it_is_completed() {
        let mut runs = Runs::default();
        for number in [0, 5, 9] {
            runs.begin(frame(number as u32, 10, number), 8, 4);
            runs.note_submitted(0);
        }
        assert_eq!(runs.open.frames, 0);
        assert_eq!(runs.find(5).unwrap().first, 5);
        assert!(runs.find(6).is_none());
        runs.begin(frame(1, 10, 10), 8, 4);
        runs.note_submitted(6);
        assert!(runs.find(0).is_none() && runs.find(5).is_none());
        assert_eq!(runs.find(9).unwrap().first, 9);
    }
}
