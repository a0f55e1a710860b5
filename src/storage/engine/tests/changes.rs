//! Memory that is registered while commands are in flight.

use std::cell::RefCell;

use super::*;
use crate::buffers::{Buffer, Rings};
use crate::storage::command::entry_flags;
use crate::sys::abi::CQE_BUFFER;
use crate::sys::shm::Shared;

/// The rings of one engine.
struct One<'a>(RefCell<&'a mut Engine>);

impl Rings for One<'_> {
    fn replace(&self, number: u16, memory: Option<&Shared>) -> Result<()> {
        let replaced = self.0.borrow_mut().replace(number, memory.cloned());
        replaced.map_err(|e| Error::os(&e, "replacing"))
    }

    fn count(&self) -> usize {
        1
    }
}

impl Rig {
    fn alloc(&mut self, len: u64) -> Buffer {
        let rings = One(RefCell::new(&mut self.engine));
        self.buffers.alloc(&rings, len).unwrap()
    }

    /// A write of one block out of a buffer.
    fn write_buffer(&mut self, buffer: Buffer, offset: u64, lba: u64) {
        self.buffers.table().begin_use(buffer.id).unwrap();
        let mut sqe = command::transfer(opcode::WRITE, lba, 1, offset, BLOCK, false);
        sqe.flags = entry_flags::BUFFER | u32::from(buffer.id.index()) << entry_flags::FRAMES_SHIFT;
        self.push(sqe);
        let _ = self.sq.publish();
    }
}

#[test]
fn memory_in_flight_stays_registered() {
    let mut rig = Rig::new("in-flight", Retry::default());
    let buffer = rig.alloc(1 << 20);
    let place = rig.buffers.table().begin_use(buffer.id).unwrap();
    assert_eq!(place.registration, 0);
    rig.write_buffer(buffer, 0, 3);
    rig.engine.pump(true).unwrap();
    // Not yet reaped: the pool would not ask for this, but an entry may lie about its buffer.
    let busy = rig.engine.replace(0, None).unwrap_err();
    assert_eq!(busy.raw_os_error(), Some(libc::EBUSY));
    let done = rig.take(1);
    assert_eq!(done[0].status, 0);
    assert_eq!(done[0].flags & CQE_BUFFER, CQE_BUFFER);
    rig.engine.replace(0, None).unwrap();
    rig.engine.replace(0, None).unwrap();
    // What is not registered is refused, and so is a number that cannot be.
    rig.write_buffer(buffer, 0, 3);
    assert_eq!(rig.take(1)[0].status, u32::from(status::INVALID_FIELD));
    assert!(rig.engine.replace(u16::MAX, None).is_err());
}

/// Neighbours on the device, whose offsets follow one another, too.
#[test]
fn neighbours_of_two_registrations_stay_apart() {
    let mut rig = Rig::new("apart", Retry::default());
    let (one, other) = (rig.alloc(1 << 20), rig.alloc(1 << 20));
    for (second, operations) in [(one, 1), (other, 2)] {
        let before = rig.shared.stats.devices[0].operations.get();
        rig.write_buffer(one, 0, 10);
        rig.write_buffer(second, u64::from(BLOCK), 11);
        let done = rig.take(2);
        assert!(done.iter().all(|cqe| cqe.status == 0), "{done:?}");
        let made = rig.shared.stats.devices[0].operations.get() - before;
        assert_eq!(made, operations);
    }
    assert!(rig.engine.users.iter().all(|users| *users == 0));
}
