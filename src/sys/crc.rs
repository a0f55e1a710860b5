//! The checksum of logs: CRC32C (RFC 3720, B.4; Castagnoli).

#![forbid(unsafe_code)]

pub fn crc32c(bytes: &[u8]) -> u32 {
    crc_fast::crc32_iscsi(bytes)
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
    }
}
