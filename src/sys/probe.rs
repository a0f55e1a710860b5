//! USDT probes, for bpftrace, perf and gdb. docs/monitoring.md describes each.
//!
//! A probe is a `nop`, and a note in the ELF file with its address and the places of its arguments. Arguments are
//! computed only while a tracer is attached: it increments the probe's semaphore. Otherwise a probe costs one load of
//! that semaphore.

use std::ffi::CStr;

use probe::probe_lazy;

use super::event::monotonic_ns;

/// Instead of a frame's number, if there is none.
pub const NO_FRAME: u32 = u32::MAX;

/// A packet is handed out by the receiver. `arrival`: ns of CLOCK_MONOTONIC.
#[inline]
pub fn received(frame: u32, len: u32, payload_len: u16, arrival: u64) {
    probe_lazy!(unified, received, frame, len, payload_len, arrival);
}

/// The engine has taken an entry from the SQ ring. `offset`: where its data is, in the data buffers.
#[inline]
pub fn submitted(opcode: u8, lba: u64, bytes: u32, offset: u64, user_data: u64) {
    probe_lazy!(unified, submitted, opcode, lba, bytes, offset, user_data);
}

/// A completion is in the CQ ring. Six arguments: a tracer on x86 has no more. `submitted`: when its entry was
/// submitted, in ns; 0 if that is not known.
#[inline]
pub fn completed((opcode, lba, bytes, offset): (u8, u64, u32, u64), status: u16, submitted: u64) {
    probe_lazy!(
        unified,
        completed,
        opcode,
        lba,
        bytes,
        offset,
        status,
        match submitted {
            0 => 0,
            then => monotonic_ns().saturating_sub(then),
        },
    );
}

/// The library copied a command's data, because the device cannot take it where it is.
#[inline]
pub fn bounced(opcode: u8, lba: u64, bytes: u32, offset: u64) {
    probe_lazy!(unified, bounced, opcode, lba, bytes, offset);
}

/// Packets were not or will not be stored. `frame`: NO_FRAME if they never got one.
#[cold]
#[inline(never)]
pub fn dropped(cause: &'static CStr, count: u64, frame: u32) {
    probe_lazy!(unified, dropped, cause.as_ptr(), count, frame);
}
