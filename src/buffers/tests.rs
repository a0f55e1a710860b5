//! The pool with rings that only remember.

#![forbid(unsafe_code)]

use std::cell::{Cell, RefCell};
use std::collections::HashMap;

use proptest::prelude::*;

use super::*;

/// Rings that remember what is registered, and fail on request.
#[derive(Default)]
struct Fake {
    registered: RefCell<HashMap<u16, usize>>,
    refuses: Cell<bool>,
    keeps: Cell<bool>,
}

impl Rings for Fake {
    fn replace(&self, number: u16, memory: Option<&Shared>) -> Result<()> {
        let mut registered = self.registered.borrow_mut();
        match memory {
            Some(_) if self.refuses.get() => return Err(Error::new(libc::ENOMEM, "refused")),
            Some(memory) => assert!(registered.insert(number, memory.len()).is_none()),
            None if self.keeps.get() => return Err(Error::new(libc::EBUSY, "in use")),
            None => drop(registered.remove(&number)),
        }
        Ok(())
    }

    fn count(&self) -> usize {
        1
    }
}

impl Fake {
    fn bytes(&self) -> u64 {
        self.registered.borrow().values().sum::<usize>() as u64
    }
}

#[test]
fn the_pool_grows_to_its_limit_and_shrinks() {
    let (rings, mib) = (Fake::default(), 1 << 20);
    let buffers = Buffers::new(5 * mib);
    let alloc = |len| buffers.alloc(&rings, len);
    let small = alloc(1).unwrap();
    assert_eq!(buffers.counts().registered_bytes, 2 * mib);
    let large = alloc(2 * mib).unwrap();
    let error = alloc(2 * mib).unwrap_err();
    assert_eq!(error.errno(), libc::ENOBUFS, "{error}");
    assert!(error.message().contains("5242880"), "{error}");
    // Small ones fill the slab, then what is left.
    let mut more = Vec::new();
    while let Ok(one) = alloc(SMALL as u64) {
        more.push(one);
    }
    assert_eq!(buffers.counts().registered_bytes, 5 * mib);
    assert_eq!(more.len(), 7 + 4);
    assert_eq!(rings.bytes(), 5 * mib);
    // A slab that is idle makes room at once, even if it is kept otherwise.
    more.into_iter()
        .for_each(|one| buffers.free(&rings, one.id).unwrap());
    assert_eq!(buffers.counts().registered_bytes, 5 * mib);
    let again = alloc(mib).unwrap();
    assert_eq!(buffers.counts().registered_bytes, 5 * mib);
    for one in [large, again, small] {
        buffers.free(&rings, one.id).unwrap();
    }
    assert_eq!(buffers.counts().registered_bytes, 2 * mib);
    std::thread::sleep(IDLE);
    buffers.tidy(&rings);
    assert_eq!(buffers.counts(), BufferCounts::default());
    assert_eq!(rings.bytes(), 0);
}

#[test]
fn what_the_rings_refuse_leaves_nothing_behind() {
    let rings = Fake::default();
    let buffers = Buffers::new(DEFAULT_LIMIT);
    for len in [0, LONGEST_BUFFER as u64 + 1, u64::MAX] {
        assert_eq!(
            buffers.alloc(&rings, len).unwrap_err().errno(),
            libc::EINVAL
        );
    }
    rings.refuses.set(true);
    for len in [1, 1 << 20] {
        assert_eq!(
            buffers.alloc(&rings, len).unwrap_err().errno(),
            libc::ENOMEM
        );
    }
    assert_eq!(buffers.counts(), BufferCounts::default());
    rings.refuses.set(false);
    let one = buffers.alloc(&rings, 1 << 20).unwrap();
    // A ring that still uses it keeps it, and it stays counted.
    rings.keeps.set(true);
    buffers.free(&rings, one.id).unwrap();
    assert_eq!(buffers.counts().registered_bytes, 1 << 20);
    assert_eq!(buffers.counts().bytes, 0);
    rings.keeps.set(false);
    buffers.tidy(&rings);
    assert_eq!(buffers.counts(), BufferCounts::default());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    /// Buffers never overlap, begin on a page, are zero, and all memory comes back.
    #[test]
    fn any_sequence_of_calls(
        steps in prop::collection::vec((any::<bool>(), 1u64..600_000, any::<prop::sample::Index>()), 1..80)
    ) {
        let rings = Fake::default();
        let buffers = Buffers::new(8 << 20);
        let mut live: Vec<Buffer> = Vec::new();
        for (free, len, which) in steps {
            if free && !live.is_empty() {
                let one = live.swap_remove(which.index(live.len()));
                buffers.free(&rings, one.id).unwrap();
                prop_assert_eq!(buffers.free(&rings, one.id).unwrap_err().errno(), libc::EINVAL);
            } else {
                match buffers.alloc(&rings, len) {
                    Err(error) => prop_assert_eq!(error.errno(), libc::ENOBUFS),
                    Ok(one) => {
                        prop_assert_eq!(one.len, len);
                        prop_assert!(one.address.is_multiple_of(PAGE as u64));
                        let apart = |other: &Buffer| {
                            other.address + other.len <= one.address || one.address + len <= other.address
                        };
                        prop_assert!(live.iter().all(apart));
                        let place = buffers.table.begin_use(one.id).unwrap();
                        prop_assert!(buffers.table.end_use(one.id.index()));
                        let pool = buffers.pool.lock();
                        let memory = &pool.registrations[place.registration as usize].as_ref().unwrap().memory;
                        let mut bytes = vec![1; len as usize];
                        memory.read(place.start as usize, &mut bytes);
                        prop_assert!(bytes.iter().all(|byte| *byte == 0));
                        memory.write(place.start as usize, &vec![0xee; len as usize]);
                        live.push(one);
                    }
                }
            }
            let counts = buffers.counts();
            prop_assert_eq!(counts.buffers, live.len() as u64);
            prop_assert_eq!(counts.bytes, live.iter().map(|one| one.len).sum::<u64>());
            prop_assert_eq!(counts.registered_bytes, rings.bytes());
            prop_assert!(counts.bytes <= counts.registered_bytes && counts.registered_bytes <= 8 << 20);
        }
        for one in live.drain(..) {
            buffers.free(&rings, one.id).unwrap();
        }
        buffers.shrink(&mut buffers.pool.lock(), &rings, Duration::ZERO);
        prop_assert_eq!(buffers.counts(), BufferCounts::default());
    }
}
