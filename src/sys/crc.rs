//! The checksum of logs: CRC32C (RFC 3720, B.4; Castagnoli).

/// The processor's own instruction takes 8 bytes, and its result 3 cycles later; it can begin another one each cycle. So long
/// inputs are cut into three parts, which are summed at the same time. Measured on an AMD EPYC of family 25: 10, 22, 63 and
/// 71 ns for 106, 342, 1066 and 1514 bytes in the cache, where the crate took 21, 60, 117 and 211.
pub fn crc32c(bytes: &[u8]) -> u32 {
    #[cfg(target_arch = "x86_64")]
    if std::arch::is_x86_feature_detected!("sse4.2")
        && std::arch::is_x86_feature_detected!("pclmulqdq")
    {
        // SAFETY: the processor has both.
        return unsafe { parts::crc32c(bytes) };
    }
    crc_fast::crc32_iscsi(bytes)
}

#[cfg(target_arch = "x86_64")]
mod parts {
    use std::arch::x86_64::{
        _mm_clmulepi64_si128, _mm_crc32_u8, _mm_crc32_u64, _mm_cvtsi32_si128, _mm_cvtsi64_si128,
        _mm_cvtsi128_si64,
    };

    /// Words of a part: below the shortest, putting the parts together costs more than it saves.
    const SHORTEST: usize = 8;
    const LONGEST: usize = 128;

    /// For each number of words: x^(64 * words - 33) modulo the polynomial, the highest power in the lowest bit.
    static SHIFTS: [u32; 2 * LONGEST + 1] = {
        let mut shifts = [0; 2 * LONGEST + 1];
        // x^31, for one word.
        let mut power = 1;
        let mut words = 1;
        while words < shifts.len() {
            shifts[words] = power;
            let mut bit = 0;
            while bit < 64 {
                power = power >> 1 ^ if power & 1 != 0 { 0x82f6_3b78 } else { 0 };
                bit += 1;
            }
            words += 1;
        }
        shifts
    };

    /// The sum after `words` more words of zeroes. The product of the sum and x^(64 * words - 33), of 64 bits, has a factor x
    /// too much in this order of bits, and summing it adds the missing x^32.
    #[target_feature(enable = "sse4.2,pclmulqdq")]
    fn shift(sum: u64, words: usize) -> u64 {
        let power = _mm_cvtsi32_si128(SHIFTS[words] as i32);
        let product = _mm_clmulepi64_si128::<0>(_mm_cvtsi64_si128(sum as i64), power);
        _mm_crc32_u64(0, _mm_cvtsi128_si64(product) as u64)
    }

    fn words(bytes: &[u8]) -> impl Iterator<Item = u64> {
        let (words, _) = bytes.as_chunks::<8>();
        words.iter().map(|word| u64::from_le_bytes(*word))
    }

    #[target_feature(enable = "sse4.2,pclmulqdq")]
    pub fn crc32c(bytes: &[u8]) -> u32 {
        let mut sum = u64::from(u32::MAX);
        let mut rest = bytes;
        while rest.len() >= 3 * 8 * SHORTEST {
            let count = (rest.len() / (3 * 8)).min(LONGEST);
            let (first, after) = rest.split_at(count * 8);
            let (second, after) = after.split_at(count * 8);
            let (third, after) = after.split_at(count * 8);
            let (mut a, mut b, mut c) = (sum, 0, 0);
            for ((x, y), z) in words(first).zip(words(second)).zip(words(third)) {
                a = _mm_crc32_u64(a, x);
                b = _mm_crc32_u64(b, y);
                c = _mm_crc32_u64(c, z);
            }
            sum = shift(a, 2 * count) ^ shift(b, count) ^ c;
            rest = after;
        }
        for word in words(rest) {
            sum = _mm_crc32_u64(sum, word);
        }
        let (_, last) = rest.as_chunks::<8>();
        !last
            .iter()
            .fold(sum as u32, |sum, byte| _mm_crc32_u8(sum, *byte))
    }
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

        /// As the crate computes it, in parts of all lengths.
        #[test]
        fn it_is_the_sum_of_the_crate(bytes in prop::collection::vec(any::<u8>(), 0..9000), from in 0usize..9) {
            let bytes = bytes.get(from..).unwrap_or_default();
            prop_assert_eq!(crc32c(bytes), crc_fast::crc32_iscsi(bytes));
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
