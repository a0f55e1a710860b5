//! A device of a recording fails: what it did not store goes to another one, from the same frames, and it is tried again until
//! it answers.

#![forbid(unsafe_code)]

use std::sync::atomic::Ordering;

use super::packets::Packets;
use super::runs::FailedRun;
use super::write_target::WriteTarget;
use super::{Progress, TRY};
use crate::context::Context;
use crate::error::Result;
use crate::lane::Completion;
use crate::log::{self, Level};
use crate::recorder::LogSet;
use crate::storage::command::{status, status_text};
use crate::unit_log::unit::{SlotHeader, UnitHeader};

/// A unit that was not stored, in frames that the packet thread holds.
struct Lost {
    frame: u32,
    slot: SlotHeader,
    unit: UnitHeader,
    device: u8,
}

/// Nothing more is written to a device. Says so once.
pub(super) fn take_out(context: &Context, set: &LogSet, device: u8, status: u16) {
    if !set.has_other(device) || !set.take_out(device) {
        return;
    }
    for lane in context.lanes() {
        lane.engine_shared().set_out(device, true);
    }
    let about = &context.info().devices[usize::from(device)];
    log::log(
        Level::Error,
        format_args!(
            "device {device} '{}' has failed ({}): what it did not store goes to the other devices, and it is tried again \
             every second",
            about.path,
            status_text(status)
        ),
    );
}

/// What became of a device that was tried.
pub(super) fn tried(context: &Context, progress: &Progress, completion: &Completion) {
    let Some(set) = &progress.set else {
        return;
    };
    let device = (completion.user_data & !TRY) as u8;
    let good = completion.status == status::SUCCESS && !completion.spilled;
    if set.tried(device, good) {
        for lane in context.lanes() {
            lane.engine_shared().set_out(device, false);
        }
        let about = &context.info().devices[usize::from(device)];
        log::log(
            Level::Warn,
            format_args!(
                "device {device} '{}' answers again, and is used again",
                about.path
            ),
        );
    }
}

impl<'a> Packets<'a> {
    fn set(&self) -> Option<&LogSet> {
        self.progress.set.as_deref()
    }

    /// Whether what a device fails can go elsewhere.
    pub(super) fn has_many_devices(&self) -> bool {
        self.set().is_some_and(|set| set.devices() > 1)
    }

    /// Tries a device that has failed, if it is time for that.
    pub(super) fn try_devices(&mut self) -> Result<()> {
        if !self.has_many_devices() {
            return Ok(());
        }
        let Some(device) = self.set().and_then(LogSet::wants_try) else {
            return Ok(());
        };
        let lane = self.lane;
        let mut rx_side = lane.lock_rx_side()?;
        let frame = lane.allocate_run(&mut rx_side, 1)?;
        let (Some((frame, _)), WriteTarget::Units(log)) = (frame, &mut self.target) else {
            if let Some(set) = self.set() {
                set.tried(device, false);
            }
            return Ok(());
        };
        let mut write = log.try_device(frame, device);
        write.user_data = TRY | u64::from(device);
        match self.queue_run(rx_side, 0, &write) {
            Ok(mut rx_side) => {
                self.filling.submitted += 1;
                lane.kick(&mut rx_side);
                Ok(())
            }
            Err(error) => {
                self.release(frame..frame + 1);
                Err(error)
            }
        }
    }

    /// Stores elsewhere what a device has failed to store.
    pub(super) fn rescue(&mut self, failed: &[FailedRun]) -> Result<()> {
        let mut lost = Vec::new();
        for run in failed {
            if let Some(set) = self.set() {
                take_out(self.context, set, run.device, run.status);
            }
            let mut frame = run.first;
            while frame < run.first + run.frames {
                let Some((slot, unit)) = self.units().unit_in(frame) else {
                    // Somebody wrote to the frame: what it holds is no packet any more.
                    self.progress.failed_runs.give_up(FailedRun {
                        first: frame,
                        frames: run.first + run.frames - frame,
                        ..*run
                    });
                    break;
                };
                lost.push(Lost {
                    frame,
                    slot,
                    unit,
                    device: run.device,
                });
                frame += u32::from(slot.slots);
            }
        }
        lost.sort_by_key(|lost| lost.unit.first_sequence);
        for (place, one) in lost.iter().enumerate() {
            if let Err(error) = self.store_elsewhere(one) {
                for rest in &lost[place..] {
                    self.release(rest.frame..rest.frame + u32::from(rest.slot.slots));
                }
                return Err(error);
            }
        }
        self.lane.submit_pending()
    }

    fn store_elsewhere(&mut self, lost: &Lost) -> Result<()> {
        let Lost {
            frame,
            slot,
            unit,
            device,
        } = lost;
        let slots = u32::from(slot.slots);
        let mut rx_side = self.lane.lock_rx_side()?;
        let mut room = self.set().is_some_and(|set| set.has_other(*device));
        while room && (self.units().is_out() || !self.units().takes(unit.first_sequence, slots)) {
            let first = self.units().first_unwritten().min(unit.first_sequence);
            (rx_side, room) = self.begin_segment(rx_side, first)?;
            room &= self.set().is_some_and(|set| set.has_other(*device));
        }
        let write = match room {
            true => self.units().move_unit(*frame, slot, unit),
            // No device takes it: the spill does, or it has failed.
            false => self.units().write_in_place(*device, *frame, slot, unit),
        };
        self.filling.submitted += u64::from(slots);
        rx_side = self.end_run(rx_side)?;
        self.queue_run(rx_side, 0, &write)?;
        if room {
            self.progress.rescued.add(unit.records.into());
        }
        Ok(())
    }

    /// Packets that a device completed and no flush had covered when it failed: they are lost if it had them in a cache that is
    /// gone.
    pub(super) fn count_unflushed(&mut self) {
        let Some(set) = self.set() else {
            return;
        };
        for device in 0..set.devices() {
            let about = &self.context.info().devices[device];
            let may_lose = about.limits.volatile_cache != Some(false);
            if set.is_out(device as u8) && may_lose {
                let packets = self.progress.unflushed[device].swap(0, Ordering::Relaxed);
                self.progress.unflushed_lost.add(packets);
            }
        }
    }
}
