//! A flush of all devices: one entry, a flush of each device, and one completion when the last has ended.

#![forbid(unsafe_code)]

use smallvec::SmallVec;

use super::slab::{Answer, Slot};
use super::submit::Entry;
use super::{Engine, Turn};
use crate::error::Result;
use crate::storage::command::{self, opcode, status};
use crate::storage::device::MAX_DEVICES;
use crate::storage::task::Outcome;

/// Most flushes of all devices at once. One more waits, with all entries after it.
pub(super) const GROUPS: usize = 2;

/// Slots that an engine for so many devices keeps for them: one of each flush counts as the command.
pub(super) fn spare_slots(devices: usize) -> usize {
    GROUPS * devices.saturating_sub(1)
}

#[derive(Debug, Clone, Copy)]
pub(super) struct Group {
    /// Flushes that have not ended.
    waiting: u8,
    /// The completion, as far as it is known: of the device whose outcome is the worst.
    answer: Answer,
    worst: Outcome,
    submitted: u64,
}

/// Of two failures, the one that cannot be helped; then that of the medium, whose status is greater.
fn is_worse(one: &Outcome, other: &Outcome) -> bool {
    let rank = |outcome: &Outcome| {
        (
            outcome.status != status::SUCCESS,
            outcome.dnr,
            outcome.status,
        )
    };
    rank(one) > rank(other)
}

impl Engine {
    /// Begins a flush of each device, but for those that are left out. One that does not answer an earlier flush fails this one
    /// at once: it would only take one slot after the other. `false` if too many flushes are in flight.
    pub(super) fn start_group(&mut self, entry: &Entry, turn: &mut Turn) -> Result<bool> {
        let Entry { sqe, submitted } = entry;
        let all = self.targets.len() as u8;
        let mut devices: SmallVec<[u8; MAX_DEVICES]> = (0..all)
            .filter(|device| !self.shared.is_out(*device))
            .collect();
        if devices.is_empty() {
            devices.extend(0..all);
        }
        let answers = |device: &u8| self.targets[*device as usize].orphans == 0;
        let hung = devices.iter().copied().find(|device| !answers(device));
        if devices.iter().any(answers) {
            devices.retain(|device| answers(device));
        }
        let hung = hung.filter(|hung| !devices.contains(hung));
        let free = self.groups.iter().position(Option::is_none);
        let Some(number) = free.filter(|_| self.slab.spare() + 1 >= devices.len()) else {
            return Ok(false);
        };
        let mut slots: SmallVec<[u16; MAX_DEVICES]> = SmallVec::new();
        for target in devices.iter().copied() {
            // An entry of this library, which is valid for every device.
            let command = command::parse(sqe, &self.targets[target as usize].rules);
            let command = command.unwrap_or_default();
            let mut slot = Slot {
                user_data: sqe.user_data,
                offset: sqe.buf_offset,
                target,
                command,
                group: Some(number as u8),
                spare: !slots.is_empty(),
                ..Slot::default()
            };
            slot.task.command = command;
            let index = match slot.spare {
                true => self.slab.take_spare(),
                false => self.slab.take(),
            };
            // There are as many as were asked for.
            let Some(index) = index else {
                return Ok(false);
            };
            self.slab.slots[index as usize] = slot;
            self.targets[target as usize].slots += 1;
            self.slab.times[index as usize] = *submitted;
            slots.push(index);
        }
        let answer = self.slab.at(slots[0]).answer();
        let (target, worst) = match hung {
            None => (answer.target, Outcome::default()),
            Some(device) => (device, Outcome::status(status::HOST_PATH_ERROR)),
        };
        self.groups[number] = Some(Group {
            waiting: devices.len() as u8,
            answer: Answer { target, ..answer },
            worst,
            submitted: *submitted,
        });
        for (place, (target, index)) in devices.into_iter().zip(slots.clone()).enumerate() {
            // Nothing overtakes a run.
            let begun = self
                .unplug(target, turn)
                .and_then(|()| self.begin(index, turn));
            begun.inspect_err(|_| {
                // The rings are broken: the rest ends here.
                slots[place + 1..]
                    .iter()
                    .for_each(|index| self.free_slot(*index));
            })?;
        }
        Ok(true)
    }

    /// The flush of one device has ended.
    #[inline(never)]
    pub(super) fn finish_part(
        &mut self,
        group: u8,
        index: u16,
        outcome: Outcome,
        turn: &mut Turn,
    ) -> Result<()> {
        let answer = self.slab.at(index).answer();
        self.slab
            .at(index)
            .trace_rare(&outcome, self.slab.times[index as usize]);
        self.free_slot(index);
        self.end_part(group, answer, outcome, turn)
    }

    /// What became of the flush of one device is known.
    pub(super) fn end_part(
        &mut self,
        group: u8,
        answer: Answer,
        outcome: Outcome,
        turn: &mut Turn,
    ) -> Result<()> {
        let place = &mut self.groups[group as usize];
        let Some(known) = place else {
            return Ok(());
        };
        debug_assert_eq!(answer.opcode, opcode::FLUSH);
        if is_worse(&outcome, &known.worst) {
            known.worst = outcome;
            known.answer = answer;
        }
        known.waiting -= 1;
        if known.waiting > 0 {
            return Ok(());
        }
        let Group {
            answer,
            worst,
            submitted,
            ..
        } = *known;
        *place = None;
        self.post(&answer, submitted, worst, turn)
    }
}
