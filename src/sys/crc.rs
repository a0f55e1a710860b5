//! The checksum of logs: CRC32C (RFC 3720, B.4; Castagnoli).

pub fn crc32c(bytes: &[u8]) -> u32 {
    crc_fast::crc32_iscsi(bytes)
}

/// The same for a few bytes, as in the header of a record: calling the other one takes longer than this.
#[inline(always)]
pub fn crc32c_short<const N: usize>(bytes: &[u8; N]) -> u32 {
    const { assert!(N.is_multiple_of(8)) };
    #[cfg(target_arch = "x86_64")]
    if std::arch::is_x86_feature_detected!("sse4.2") {
        // SAFETY: the processor has SSE 4.2.
        return unsafe { by_words(bytes) };
    }
    crc32c(bytes)
}

/// # Safety
/// The processor must have SSE 4.2.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "sse4.2")]
unsafe fn by_words<const N: usize>(bytes: &[u8; N]) -> u32 {
    let (words, _) = bytes.as_chunks();
    let sum = words.iter().fold(u64::from(u32::MAX), |sum, word| {
        std::arch::x86_64::_mm_crc32_u64(sum, u64::from_le_bytes(*word))
    });
    !(sum as u32)
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
        fn a_few_bytes_have_the_same_sum(bytes in any::<[u8; 24]>()) {
            prop_assert_eq!(crc32c_short(&bytes), crc32c(&bytes));
        }
    }
}
