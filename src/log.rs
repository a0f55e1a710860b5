//! Log lines of the library, of libxdp and of libbpf go to the program's callback. Without a callback they are
//! dropped.
//!
//! A callback may call the library. So no line is delivered while its thread holds a lock of the library: `hold` keeps
//! lines until the lock is released.

#![forbid(unsafe_code)]

use std::cell::{Cell, RefCell};
use std::fmt;
use std::io::Write;
use std::marker::PhantomData;
use std::time::Duration;

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use once_cell::race::OnceBool;

use crate::sys::fork::{Lock, ProcessId};
use crate::sys::limits::is_secure_execution;

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[repr(i32)]
pub enum Level {
    Error = 0,
    Warn = 1,
    Info = 2,
    Debug = 3,
}

type Callback = Box<dyn Fn(Level, &str) + Send + Sync>;

/// The callback, and the calls of it that run in this process.
#[derive(Clone)]
struct Current {
    call: Arc<Callback>,
    running: Arc<AtomicU32>,
    /// In a forked child the parent's calls do not run.
    process: Option<ProcessId>,
}

/// Held for a moment only, and never while a callback runs.
static CALLBACK: Lock<Option<Current>> = Lock::new(None);

thread_local! {
    static DEPTH: Cell<u32> = const { Cell::new(0) };
    static KEPT: RefCell<Vec<(Level, String)>> = const { RefCell::new(Vec::new()) };
}

/// Replaces the process's callback. Returns after the last call of the old one has returned, so it must not be called
/// from within the callback.
pub fn set_callback(callback: Option<Callback>) {
    let fresh = callback.map(|call| Current {
        call: Arc::new(call),
        running: Arc::default(),
        process: ProcessId::of_this_process().ok(),
    });
    let old = std::mem::replace(&mut *CALLBACK.lock_or_renew(|| None), fresh);
    if let Some(old) = old.filter(|old| old.process == ProcessId::of_this_process().ok()) {
        while old.running.load(Ordering::Acquire) > 0 {
            std::thread::sleep(Duration::from_micros(100));
        }
    }
}

/// Counts a call of the callback, until it returns or unwinds.
struct Running(Current);

impl Running {
    fn begin() -> Option<Running> {
        // If the parent was just setting one at the fork, the child has none.
        let mut slot = CALLBACK.lock_or_renew(|| None);
        let current = slot.as_mut()?;
        let process = ProcessId::of_this_process().ok();
        if current.process != process {
            current.process = process;
            current.running = Arc::default();
        }
        // Under the lock: whoever replaces it waits for this call.
        current.running.fetch_add(1, Ordering::Relaxed);
        Some(Running(current.clone()))
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.0.running.fetch_sub(1, Ordering::Release);
    }
}

/// Passes a line (without a newline) to the callback. Never called on the hot path.
pub fn log(level: Level, line: fmt::Arguments<'_>) {
    let held = DEPTH.try_with(Cell::get).unwrap_or(0) > 0;
    // No lock is held meanwhile: a callback may call into the library, which may log again.
    let Some(current) = Running::begin() else {
        return;
    };
    let line = line.to_string();
    if held {
        let _ = KEPT.try_with(|kept| kept.borrow_mut().push((level, line)));
    } else {
        (current.0.call)(level, line.trim_end());
    }
}

/// Keeps this thread's lines until it is dropped: declared before a lock is taken, dropped after it.
pub struct Held(PhantomData<*const ()>);

pub fn hold() -> Held {
    let _ = DEPTH.try_with(|depth| depth.set(depth.get() + 1));
    Held(PhantomData)
}

impl Drop for Held {
    fn drop(&mut self) {
        let left = DEPTH.try_with(|depth| {
            depth.set(depth.get() - 1);
            depth.get()
        });
        if left != Ok(0) {
            return;
        }
        let kept = KEPT.try_with(|kept| match kept.try_borrow_mut() {
            // On the hot path there is nothing to take.
            Ok(mut kept) if !kept.is_empty() => std::mem::take(&mut *kept),
            _ => Vec::new(),
        });
        for (level, line) in kept.unwrap_or_default() {
            log(level, format_args!("{line}"));
        }
    }
}

/// If the variable UNIFIED_LOG names a level (error, warn, info, debug), lines up to that level go to stderr, until
/// the program sets a callback. Read once per process, before anything that may log is opened. Ignored in programs
/// that run with the privileges of their file (AT_SECURE).
pub fn to_stderr_if_asked() {
    // Without a lock: a forked child may come here while a thread of its parent did.
    static ASKED: OnceBool = OnceBool::new();
    if ASKED.set(true).is_err() || is_secure_execution() {
        return;
    }
    let Some(name) = std::env::var_os("UNIFIED_LOG").filter(|name| !name.is_empty()) else {
        return;
    };
    let limit = match name.to_str() {
        Some("error") => Level::Error,
        Some("warn") => Level::Warn,
        Some("info") => Level::Info,
        Some("debug") => Level::Debug,
        _ => {
            to_stderr(&format!(
                "UNIFIED_LOG is '{}', which is not a level: use error, warn, info or debug",
                name.display()
            ));
            return;
        }
    };
    let mut slot = CALLBACK.lock_or_renew(|| None);
    if slot.is_none() {
        let call: Callback = Box::new(move |level, line| {
            if level <= limit {
                to_stderr(line);
            }
        });
        *slot = Some(Current {
            call: Arc::new(call),
            running: Arc::default(),
            process: ProcessId::of_this_process().ok(),
        });
    }
}

/// A program may have closed its stderr.
fn to_stderr(line: &str) {
    let _ = writeln!(std::io::stderr(), "unified: {line}");
}

/// For tests: the callback is the process's.
#[cfg(test)]
pub(crate) static ALONE: parking_lot::Mutex<()> = parking_lot::Mutex::new(());

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_wait_for_the_end_of_the_outermost_hold() {
        let _alone = ALONE.lock();
        let lines = Arc::new(parking_lot::Mutex::new(Vec::new()));
        let to = lines.clone();
        set_callback(Some(Box::new(move |_, line| {
            if line.starts_with("held ") {
                to.lock().push(line.to_string());
            }
        })));
        {
            let _outer = hold();
            log(Level::Info, format_args!("held 1\n"));
            drop(hold());
            log(Level::Info, format_args!("held 2"));
            assert!(lines.lock().is_empty());
        }
        log(Level::Info, format_args!("held 3"));
        set_callback(None);
        assert_eq!(*lines.lock(), ["held 1", "held 2", "held 3"]);
    }
}
