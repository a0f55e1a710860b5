//! Reads and writes of whole slots through a lane, before its pipeline's threads start.

#![forbid(unsafe_code)]

use std::fs::File;
use std::time::{Duration, Instant};

use crate::context::{Context, DeviceInfo};
use crate::error::{Error, Result};
use crate::frame::FrameMap;
use crate::lane::{Completion, Direction, Lane, Ready, Transfer};
use crate::log_scan::READ_BATCH;
use crate::record::mark_unreadable;
use crate::storage::command::status_text;

/// Reads and writes through a lane, one command after the other. Only before the pipeline's threads start.
pub(super) struct Disk<'a> {
    pub(super) context: &'a Context,
    pub(super) lane: &'a Lane,
    /// Number of the device.
    pub(super) device: u8,
}

impl Disk<'_> {
    pub(super) fn frames(&self) -> FrameMap {
        self.context.info().frames()
    }

    /// What the device is.
    pub(super) fn about(&self) -> &DeviceInfo {
        &self.context.info().devices[self.device as usize]
    }

    pub(super) fn transfer(&self, frame: u32, lba: u64) -> Transfer {
        Transfer {
            frame,
            offset: self.frames().start(frame),
            len: self.frames().frame_size(),
            lba,
            device: self.device,
            user_data: frame.into(),
            ..Transfer::default()
        }
    }

    /// The file with the writes that the device has failed, if there is one.
    pub(super) fn spill(&self) -> Result<Option<File>> {
        let about = self.about();
        let open = |path: &str| {
            File::open(path)
                .map_err(|e| Error::os(&e, format_args!("reading the spill of '{}'", about.path)))
        };
        about.spill.as_deref().map(open).transpose()
    }

    /// Takes the completions of `count` commands, all of which must succeed.
    pub(super) fn finish(&self, count: usize, what: &str) -> Result<()> {
        match self.finish_each(count, what)?.first() {
            None => Ok(()),
            // A log whose superblock is not on its device would not be found again.
            Some((_, status)) => Err(Error::new(
                libc::EIO,
                format!(
                    "{what} the log on '{}': {}",
                    self.about().path,
                    status_text(*status)
                ),
            )),
        }
    }

    /// Takes the completions of `count` commands: the `user_data` and the status of those that failed or were spilled.
    pub(super) fn finish_each(&self, mut count: usize, what: &str) -> Result<Vec<(u64, u16)>> {
        let until = Instant::now() + Duration::from_secs(30);
        let mut done = [Completion::default(); READ_BATCH as usize];
        let mut failed = Vec::new();
        while count > 0 {
            self.context.stays()?;
            self.lane
                .wait(Ready::COMPLETIONS, Some(Duration::from_millis(100)))?;
            let got = self.lane.completions(&mut done)?;
            for completion in &done[..got] {
                if completion.status != 0 || completion.spilled {
                    failed.push((completion.user_data, completion.status));
                }
            }
            count -= got.min(count);
            if count > 0 && Instant::now() > until {
                return Err(Error::new(
                    libc::ETIMEDOUT,
                    format!("{what} the log on '{}'", self.about().path),
                ));
            }
        }
        Ok(failed)
    }

    /// Up to `count` whole slots.
    pub(super) fn read(&self, lba: u64, count: u64) -> Result<Vec<Vec<u8>>> {
        self.context.stays()?;
        let size = self.frames().frame_size();
        let step = u64::from(self.lane.blocks_of(self.device, size));
        let mut frames = Vec::new();
        for _ in 0..count {
            match self.lane.frame_alloc() {
                Ok(frame) => frames.push(frame),
                Err(error) if frames.is_empty() => {
                    return Err(error.hint(
                        "opening a log needs a free frame: use a shorter fill ring or more frames",
                    ));
                }
                Err(_) => break,
            }
        }
        let mut result = Ok(());
        let mut submitted = 0;
        for (i, frame) in frames.iter().enumerate() {
            let request = self.transfer(*frame, lba + i as u64 * step);
            match self.lane.submit_transfer(Direction::Read, &request) {
                Ok(()) => submitted += 1,
                // The SQ ring is short: read as many as it takes.
                Err(error) if error.errno() == libc::EAGAIN && submitted > 0 => break,
                Err(error) => {
                    result = Err(error);
                    break;
                }
            }
        }
        let finished = self.finish_each(submitted, "reading");
        let failed = finished.as_ref().map_or(&[][..], Vec::as_slice);
        let mut slots = Vec::new();
        for (i, frame) in frames.into_iter().enumerate() {
            if i < submitted {
                let mut slot = vec![0; size as usize];
                self.context
                    .data()
                    .read(self.frames().start(frame) as usize, &mut slot);
                // A block that cannot be read costs only its own slot.
                if failed.iter().any(|(data, _)| *data == u64::from(frame)) {
                    mark_unreadable(&mut slot);
                }
                slots.push(slot);
            }
            // If the device took too long it is still in flight, and its completion frees it.
            let _ = self.lane.frame_release(frame);
        }
        result.and(finished).map(|_| slots)
    }

    /// Writes bytes, padded with zeroes to a slot. They are durable when it returns.
    pub(super) fn write(&self, lba: u64, bytes: &[u8]) -> Result<()> {
        let frame = self.lane.frame_alloc()?;
        let request = Transfer {
            fua: true,
            ..self.transfer(frame, lba)
        };
        let at = request.offset as usize;
        self.context.data().write(at, bytes);
        self.context.data().zero(
            at + bytes.len(),
            self.frames().frame_size() as usize - bytes.len(),
        );
        self.lane
            .submit_transfer(Direction::Write, &request)
            .inspect_err(|_| {
                let _ = self.lane.frame_release(frame);
            })?;
        self.finish(1, "writing")
    }
}
