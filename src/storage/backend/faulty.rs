//! A device whose operations end as a test says: for faults that no device here can be made to have.
//!
//! The operation is done first; then its result is replaced. A short write has written more than it says.

#![forbid(unsafe_code)]

use std::collections::VecDeque;
use std::sync::Arc;

use parking_lot::Mutex;

use super::Backend;
use crate::storage::task::Task;

/// The next operation of a command with this opcode ends with this result, as io_uring gives it.
#[derive(Debug, Clone, Copy)]
pub struct Fault {
    pub opcode: u8,
    pub result: i32,
}

pub type Faults = Arc<Mutex<VecDeque<Fault>>>;

#[derive(Debug)]
pub struct Faulty {
    pub device: Backend,
    pub faults: Faults,
}

impl Faulty {
    /// What the operation of `task` is to have ended with. A pause is not the device's.
    pub fn result(&self, task: &Task, result: i32) -> i32 {
        let mut faults = self.faults.lock();
        match faults.front() {
            Some(fault) if !task.pausing && fault.opcode == task.command.opcode => {
                let result = fault.result;
                faults.pop_front();
                result
            }
            _ => result,
        }
    }
}
