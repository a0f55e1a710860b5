//! USDT probes, for bpftrace, perf and gdb: docs/monitoring.md says what each tells.
//!
//! A probe is a `nop`, and a note in the ELF file that says where it is and where its arguments are. They are worked
//! out only while somebody listens: a tracer counts the probe's semaphore up when it attaches, and one look at that is
//! all that a probe costs otherwise.

use std::ffi::CStr;

use probe::probe_lazy;

use super::event::monotonic_ns;

/// Instead of a frame's number, where there is none.
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

/// A completion is in the CQ ring. Six arguments: a tracer on x86 has no more. `submitted`: when its entry was, ns; 0 where that is not known.
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

/// Packets will not be stored, or were not. `frame`: NO_FRAME where they never came into one.
#[cold]
#[inline(never)]
pub fn dropped(cause: &'static CStr, count: u64, frame: u32) {
    probe_lazy!(unified, dropped, cause.as_ptr(), count, frame);
}
