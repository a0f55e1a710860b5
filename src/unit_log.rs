//! The log of version 2 on the device: superblocks, and segments of units. docs/record-format.md describes every field.
//!
//! All numbers are little endian. These modules know bytes only; they do no I/O.

#![forbid(unsafe_code)]

pub mod lanes;
pub mod scan;
pub mod segments;
pub mod superblock;
pub mod unit;
pub mod units;
