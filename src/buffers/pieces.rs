//! Which bytes of a slab are free. Pure arithmetic, in whole pages.

#![forbid(unsafe_code)]

use std::collections::BTreeMap;

/// The free ranges of a slab.
#[derive(Debug)]
pub(super) struct Pieces {
    /// Start and length of each. Neighbours are one.
    free: BTreeMap<usize, usize>,
    len: usize,
}

impl Pieces {
    pub fn new(len: usize) -> Pieces {
        Pieces {
            free: BTreeMap::from([(0, len)]),
            len,
        }
    }

    pub fn is_unused(&self) -> bool {
        self.free.get(&0) == Some(&self.len)
    }

    /// The start of `len` bytes that were free: the first that fit.
    pub fn take(&mut self, len: usize) -> Option<usize> {
        let (&start, &there) = self.free.iter().find(|(_, there)| **there >= len)?;
        self.free.remove(&start);
        if there > len {
            self.free.insert(start + len, there - len);
        }
        Some(start)
    }

    /// Gives back what was taken.
    pub fn give_back(&mut self, mut start: usize, mut len: usize) {
        let before = self.free.range(..start).next_back();
        if let Some((&at, &there)) = before
            && at + there == start
        {
            self.free.remove(&at);
            start = at;
            len += there;
        }
        if let Some(there) = self.free.remove(&(start + len)) {
            len += there;
        }
        self.free.insert(start, len);
    }
}
