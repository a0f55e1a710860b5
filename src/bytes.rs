//! Numbers in bytes.

#![forbid(unsafe_code)]

use crate::sys::crc::crc32c;

pub fn put<const N: usize>(bytes: &mut [u8], at: usize, value: [u8; N]) {
    bytes[at..at + N].copy_from_slice(&value);
}

/// The `N` bytes at `at`; zeroes if there are fewer.
pub fn get<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    let found = bytes.get(at..).and_then(|rest| rest.first_chunk());
    found.copied().unwrap_or([0; N])
}

pub fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes(get(bytes, at))
}

pub fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(get(bytes, at))
}

pub fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(get(bytes, at))
}

/// Puts the CRC32C of the bytes from `from` to `at` at `at`.
pub fn seal(bytes: &mut [u8], from: usize, at: usize) {
    let sum = crc32c(&bytes[from..at]);
    put(bytes, at, sum.to_le_bytes());
}

/// Whether the bytes from `from` to `at` have the CRC32C that is at `at`.
pub fn is_sealed(bytes: &[u8], from: usize, at: usize) -> bool {
    bytes.len() >= at + 4 && crc32c(&bytes[from..at]) == u32_at(bytes, at)
}
