//! Several devices: one that does not answer must not keep the others waiting.
//!
//! Each device has a part of the slots. Entries for one that has its part wait aside, while those behind them go on to
//! other devices. When asked to, the engine finds commands that their devices do not answer.

#![forbid(unsafe_code)]

use std::sync::atomic::Ordering;

use super::shared::Stuck;
use super::submit::Entry;
use super::{Engine, Turn};
use crate::error::Result;
use crate::storage::command::{entry_flags, status};
use crate::storage::task::Outcome;

/// How long a device has answered no lane, in looks.
#[derive(Debug, Default)]
pub(super) struct Silence {
    /// Its answers at the last look.
    answers: u64,
    looks: u8,
    /// The longest silence of late that an answer ended: a slow device has not failed.
    usual: u8,
    /// Looks that found answers since then.
    lively: u8,
}

impl Silence {
    /// Looks at a device that has answered so often. `busy`: there is something to answer.
    pub fn look(&mut self, answers: u64, busy: bool) {
        if answers == self.answers {
            self.looks = self.looks.saturating_add(1) * u8::from(busy);
            return;
        }
        self.answers = answers;
        if self.looks > 0 {
            self.usual = self.usual.max(self.looks.min(MOST_USUAL));
            self.lively = 0;
        }
        self.looks = 0;
        self.lively += 1;
        if self.lively >= FORGET {
            self.usual = self.usual.saturating_sub(1);
            self.lively = 0;
        }
    }

    /// It has been silent for much longer than it usually is.
    pub fn is_unusual(&self) -> bool {
        self.looks > 3 * self.usual
    }
}

/// A command is stuck if so many looks found it in flight, and its device answered younger ones meanwhile.
const OVERTAKEN: u8 = 3;
/// A silence of more looks than this is never usual.
const MOST_USUAL: u8 = 2;
/// So many looks with answers make a device a look faster.
const FORGET: u8 = 16;
/// Most entries that wait for a device, in lengths of the SQ ring.
pub(super) const MOST_WAITING: usize = 4;

impl Engine {
    /// Slots that a device may have.
    fn part(&self) -> usize {
        (self.config.depth as usize / self.targets.len()).max(1)
    }

    fn number_of(&self, entry: &Entry) -> Option<usize> {
        let flags = if self.config.raw { 0 } else { entry.sqe.flags };
        let number = usize::from(entry_flags::device_of(flags));
        let to_one = flags & entry_flags::ALL_DEVICES == 0;
        (to_one && number < self.targets.len()).then_some(number)
    }

    /// Puts an entry aside if its device has as many commands as it may. The entry, if it can be started.
    #[inline(always)]
    pub(super) fn park(&mut self, entry: Entry) -> Option<Entry> {
        match self.targets.len() {
            1 => Some(entry),
            _ => self.park_among(entry),
        }
    }

    fn park_among(&mut self, entry: Entry) -> Option<Entry> {
        let part = self.part();
        let Some(number) = self.number_of(&entry) else {
            return Some(entry);
        };
        let target = &mut self.targets[number];
        // Nothing overtakes those that wait, unless there are too many of them.
        let most = MOST_WAITING * self.config.depth as usize;
        if (target.slots < part && target.waiting.is_empty()) || target.waiting.len() >= most {
            return Some(entry);
        }
        target.waiting.push_back(entry);
        None
    }

    /// Starts entries that wait for their device, as far as it may have more.
    pub(super) fn take_waiting(&mut self, turn: &mut Turn) -> Result<()> {
        let part = self.part();
        for number in 0..self.targets.len() {
            if self.shared.is_out(number as u8) {
                self.fail_run(number, turn)?;
            }
            while !self.slab.is_full()
                && self.has_room()?
                && (self.targets[number].slots < part || self.shared.is_out(number as u8))
                && let Some(entry) = self.targets[number].waiting.pop_front()
            {
                if !self.start(&entry, turn)? {
                    self.targets[number].waiting.push_front(entry);
                    break;
                }
            }
        }
        Ok(())
    }

    /// The run that a device does not have yet goes elsewhere, if it can.
    fn fail_run(&mut self, number: usize, turn: &mut Turn) -> Result<()> {
        let Some(run) = self.targets[number].run else {
            return Ok(());
        };
        let slots = &self.slab.slots;
        let mut chain = std::iter::successors(Some(run.head), |index| slots[*index as usize].next);
        // What cannot go elsewhere is tried.
        if !chain.all(|index| slots[index as usize].splits) {
            return Ok(());
        }
        self.targets[number].run = None;
        let outcome = Outcome::status(status::HOST_PATH_ERROR);
        self.finish_run(run.head, outcome, turn)
    }

    /// Finds commands that were in flight at the look before, and whose device has answered nothing since then (and usually
    /// does), or only commands that were begun later. They stay in flight, and are reported at every look. A flush of all
    /// devices does not wait for such a device, unless all others are left out.
    pub(super) fn look_for_stuck(&mut self, turn: &mut Turn) -> Result<()> {
        for target in &mut self.targets {
            let answers = target.device.answers.load(Ordering::Relaxed);
            target.silence.look(answers, target.operating > 0);
        }
        for index in self.slab.indices_in_use() {
            let slot = self.slab.at_mut(index);
            let target = &self.targets[slot.target as usize];
            let silent = slot.looks > 0 && target.silence.is_unusual();
            let overtaken = slot.looks >= OVERTAKEN && target.young_answers;
            slot.looks = slot.looks.saturating_add(1);
            if !(silent || overtaken) || slot.orphan || target.operating == 0 {
                continue;
            }
            let (number, answer) = (slot.target, slot.answer());
            if slot.group.is_some() {
                let shared = &self.shared;
                let mut others = (0..self.targets.len() as u8).filter(|other| *other != number);
                if !others.any(|other| !shared.is_out(other)) {
                    continue;
                }
            }
            if let Some(group) = slot.group.take() {
                slot.orphan = true;
                self.targets[number as usize].orphans += 1;
                let outcome = Outcome::status(status::HOST_PATH_ERROR);
                self.end_part(group, answer, outcome, turn)?;
                continue;
            }
            self.shared.report(Stuck {
                user_data: slot.user_data,
                device: number,
                offset: slot.offset,
                lba: slot.command.lba,
                frames: match slot.frame {
                    true => u32::from(slot.more_frames) + 1,
                    false => 0,
                },
            });
        }
        for target in &mut self.targets {
            target.young_answers = false;
        }
        self.shared.taker_bell.ring();
        Ok(())
    }
}
