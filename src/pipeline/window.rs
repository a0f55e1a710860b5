//! Which writes are completed.

#![forbid(unsafe_code)]

use super::WINDOW;

/// Which writes are completed: the first that is not, and a bit for each write of the window after it.
pub(super) struct Window {
    first: u64,
    bits: Box<[u64]>,
}

/// The word of a write's bit.
fn word_of(number: u64) -> usize {
    (number % WINDOW / 64) as usize
}

impl Window {
    pub fn new() -> Window {
        Window {
            first: 0,
            bits: vec![0; (WINDOW / 64) as usize].into(),
        }
    }

    /// The first write that is not completed.
    pub fn first(&self) -> u64 {
        self.first
    }

    /// Whether a write of the window, or one before it, is completed.
    pub fn is_complete(&self, number: u64) -> bool {
        number < self.first || self.bits[word_of(number)] >> (number % 64) & 1 != 0
    }

    /// `count` writes from `number` on are completed.
    pub fn complete(&mut self, number: u64, count: u32) {
        let end = number + u64::from(count);
        let mut at = number;
        while at < end {
            let here = (64 - at % 64).min(end - at);
            self.bits[word_of(at)] |= u64::MAX >> (64 - here) << (at % 64);
            at += here;
        }
        loop {
            let place = self.first % 64;
            let word = &mut self.bits[word_of(self.first)];
            let done = (*word >> place).trailing_ones();
            if done == 0 {
                return;
            }
            *word &= !(u64::MAX >> (64 - done) << place);
            self.first += u64::from(done);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_that_is_not_completed() {
        let mut window = Window::new();
        for number in [1, 2, 5] {
            window.complete(number, 1);
            assert_eq!(window.first, 0);
        }
        window.complete(0, 1);
        assert_eq!(window.first, 3);
        window.complete(4, 1);
        window.complete(3, 1);
        assert_eq!(window.first, 6);
        for number in 6..WINDOW * 2 + 10 {
            window.complete(number, 1);
        }
        let mut first = WINDOW * 2 + 10;
        assert_eq!(window.first, first);
        // Runs of all lengths, every second pair in the wrong order.
        for count in 1..400 {
            let next = first + u64::from(count);
            if count % 2 == 0 {
                window.complete(next, 3);
                assert_eq!(window.first, first);
                window.complete(first, count);
                first = next + 3;
            } else {
                window.complete(first, count);
                first = next;
            }
            assert_eq!(window.first, first);
        }
        assert!(window.bits.iter().all(|word| *word == 0));
    }
}
