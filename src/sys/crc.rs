//! The checksum of logs: CRC32C (RFC 3720, B.4; Castagnoli).

pub fn crc32c(bytes: &[u8]) -> u32 {
    crc_fast::crc32_iscsi(bytes)
}

/// The same of a header that is still in registers, as little-endian words; without the upper half of the last one if
/// `half`. Bytes that were just written in other widths would have to leave the store buffer first.
#[inline(always)]
pub fn crc32c_words<const N: usize>(words: &[u64; N], half: bool) -> u32 {
    #[cfg(target_arch = "x86_64")]
    if std::arch::is_x86_feature_detected!("sse4.2") {
        // SAFETY: the processor has SSE 4.2.
        return unsafe { by_words(words, half) };
    }
    let bytes = words.map(u64::to_le_bytes);
    let bytes = bytes.as_flattened();
    crc32c(&bytes[..bytes.len() - if half { 4 } else { 0 }])
}

/// # Safety
/// The processor must have SSE 4.2.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "sse4.2")]
unsafe fn by_words<const N: usize>(words: &[u64; N], half: bool) -> u32 {
    use std::arch::x86_64::{_mm_crc32_u32, _mm_crc32_u64};
    let whole = N - usize::from(half);
    let sum = words[..whole]
        .iter()
        .fold(u64::from(u32::MAX), |sum, word| _mm_crc32_u64(sum, *word)) as u32;
    !match half {
        true => _mm_crc32_u32(sum, words[N - 1] as u32),
        false => sum,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_crc32c_that_others_compute_too() {
        // RFC 3720, B.4.
        assert_eq!(crc32c(&[0; 32]), 0x8a91_36aa);
        assert_eq!(crc32c(&[0xff; 32]), 0x62a8_ab43);
        let up: Vec<u8> = (0..32).collect();
        assert_eq!(crc32c(&up), 0x46dd_794e);
        assert_eq!(crc32c(b"123456789"), 0xe306_9283);
        assert_eq!(crc32c(&[]), 0);
    }

    proptest! {
        /// Every length takes its own way through the processor's instructions.
        #[test]
        fn it_is_the_polynomial_bit_by_bit(bytes in prop::collection::vec(any::<u8>(), 0..3000)) {
            let mut expected = u32::MAX;
            for byte in &bytes {
                expected ^= u32::from(*byte);
                for _ in 0..8 {
                    expected = expected >> 1 ^ if expected & 1 != 0 { 0x82f6_3b78 } else { 0 };
                }
            }
            prop_assert_eq!(crc32c(&bytes), !expected);
        }

        #[test]
        fn words_have_the_sum_of_their_bytes(words in any::<[u64; 9]>()) {
            let bytes = words.map(u64::to_le_bytes);
            let bytes = bytes.as_flattened();
            prop_assert_eq!(crc32c_words(&words, false), crc32c(bytes));
            prop_assert_eq!(crc32c_words(&words, true), crc32c(&bytes[..68]));
        }
    }
}
