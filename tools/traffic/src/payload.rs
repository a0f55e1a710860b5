//! What payload number N looks like.

use std::ops::RangeInclusive;
use std::str::FromStr;

/// "UNIF", then the length (u32) and the number (u64), little endian; then bytes that follow from both.
pub const HEADER: usize = 16;
const MAGIC: u32 = u32::from_le_bytes(*b"UNIF");
/// The largest UDP payload.
pub const MAX: usize = 65507;

/// Payload bytes: one size, or a range from which each number gets its own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sizes(RangeInclusive<usize>);

impl FromStr for Sizes {
    type Err = String;

    fn from_str(text: &str) -> Result<Sizes, String> {
        let (low, high) = text.split_once('-').unwrap_or((text, text));
        let parse = |t: &str| {
            t.parse::<usize>()
                .ok()
                .filter(|n| (1..=MAX).contains(n))
                .ok_or_else(|| format!("'{t}' is not a payload size from 1 to {MAX} bytes"))
        };
        let (low, high) = (parse(low)?, parse(high)?);
        if low > high {
            return Err(format!("{low} is more than {high}"));
        }
        Ok(Sizes(low..=high))
    }
}

impl Sizes {
    pub fn of(&self, number: u64) -> usize {
        let span = self.0.end() - self.0.start() + 1;
        self.0.start() + (mix(number) % span as u64) as usize
    }

    pub fn max(&self) -> usize {
        *self.0.end()
    }
}

/// splitmix64's finalizer: neighbouring numbers give unrelated values.
fn mix(number: u64) -> u64 {
    let mut x = number.wrapping_add(0x9e37_79b9_7f4a_7c15);
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

/// Fills `out`, whose length is the payload's. Payloads shorter than the header carry no number.
pub fn fill(number: u64, out: &mut [u8]) {
    let len = out.len();
    let body = if len >= HEADER {
        out[..4].copy_from_slice(&MAGIC.to_le_bytes());
        out[4..8].copy_from_slice(&(len as u32).to_le_bytes());
        out[8..HEADER].copy_from_slice(&number.to_le_bytes());
        &mut out[HEADER..]
    } else {
        out
    };
    let mut state = mix(number) | 1;
    for chunk in body.chunks_mut(8) {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        // No zero byte: padding and payload cannot be mistaken for each other.
        let word = (state | 0x0101_0101_0101_0101).to_le_bytes();
        chunk.copy_from_slice(&word[..chunk.len()]);
    }
}

/// Number and length of the payload that begins here, if one does.
pub fn identify(bytes: &[u8]) -> Option<(u64, usize)> {
    let word = |at: usize| Some(u32::from_le_bytes(bytes.get(at..at + 4)?.try_into().ok()?));
    if word(0)? != MAGIC {
        return None;
    }
    let len = word(4)? as usize;
    let number = u64::from_le_bytes(bytes.get(8..HEADER)?.try_into().ok()?);
    (HEADER..=MAX).contains(&len).then_some((number, len))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_payload_says_what_it_is() {
        let mut bytes = [0; 100];
        fill(7, &mut bytes);
        assert_eq!(identify(&bytes), Some((7, 100)));
        let mut other = [0; 100];
        fill(8, &mut other);
        assert_ne!(bytes[HEADER..], other[HEADER..]);
        assert!(bytes[HEADER..].iter().all(|b| *b != 0));
        assert_eq!(identify(&[0; 100]), None);
        assert_eq!(identify(b"UNIF"), None);
    }

    #[test]
    fn sizes_stay_in_their_range_and_reach_its_ends() {
        let sizes: Sizes = "1-10".parse().unwrap();
        let seen: std::collections::BTreeSet<_> = (0..1000).map(|n| sizes.of(n)).collect();
        assert_eq!(seen, (1..=10).collect());
        assert_eq!("1024".parse::<Sizes>().unwrap().of(5), 1024);
        for wrong in ["0", "5-4", "x", "-", "65508", ""] {
            assert!(wrong.parse::<Sizes>().is_err(), "{wrong}");
        }
    }
}
