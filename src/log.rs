//! Log lines, also those of libxdp and libbpf, go to a callback of the program; without one, nowhere.

#![forbid(unsafe_code)]

use std::fmt;

use parking_lot::RwLock;

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[repr(i32)]
pub enum Level {
    Error = 0,
    Warn = 1,
    Info = 2,
    Debug = 3,
}

type Callback = Box<dyn Fn(Level, &str) + Send + Sync>;

static CALLBACK: RwLock<Option<Callback>> = RwLock::new(None);

/// Replaces the process's callback. Returns when no call of the old one runs any more, so it must not
/// be called from within the callback.
pub fn set_callback(callback: Option<Callback>) {
    *CALLBACK.write() = callback;
}

/// Hands a line (without a newline) to the callback. Never called on the hot path.
pub fn log(level: Level, line: fmt::Arguments<'_>) {
    // Recursive read: a callback may call into the library, which may log again.
    if let Some(callback) = &*CALLBACK.read_recursive() {
        callback(level, line.to_string().trim_end());
    }
}
