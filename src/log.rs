//! Log lines, also those of libxdp and libbpf, go to a callback of the program; without one, nowhere.
//!
//! A callback may call the library again. So no line is handed out while its thread holds a lock of the
//! library: `hold` keeps such lines until the lock is gone.

#![forbid(unsafe_code)]

use std::cell::{Cell, RefCell};
use std::fmt;
use std::marker::PhantomData;

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

thread_local! {
    static DEPTH: Cell<u32> = const { Cell::new(0) };
    static KEPT: RefCell<Vec<(Level, String)>> = const { RefCell::new(Vec::new()) };
}

/// Replaces the process's callback. Returns when no call of the old one runs any more, so it must not
/// be called from within the callback.
pub fn set_callback(callback: Option<Callback>) {
    *CALLBACK.write() = callback;
}

/// Hands a line (without a newline) to the callback. Never called on the hot path.
pub fn log(level: Level, line: fmt::Arguments<'_>) {
    let held = DEPTH.try_with(Cell::get).unwrap_or(0) > 0;
    // Recursive read: a callback may call into the library, which may log again.
    let callback = CALLBACK.read_recursive();
    let Some(callback) = &*callback else {
        return;
    };
    let line = line.to_string();
    if held {
        let _ = KEPT.try_with(|kept| kept.borrow_mut().push((level, line)));
    } else {
        callback(level, line.trim_end());
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

/// Where the variable UNIFIED_LOG names a level (error, warn, info, debug) and the program has set no
/// callback, lines up to that level go to stderr: for programs that do not know this library.
pub fn to_stderr_if_asked() {
    let Some(limit) = std::env::var("UNIFIED_LOG").ok().and_then(|name| {
        [
            ("error", Level::Error),
            ("warn", Level::Warn),
            ("info", Level::Info),
            ("debug", Level::Debug),
        ]
        .into_iter()
        .find_map(|(known, level)| (known == name).then_some(level))
    }) else {
        return;
    };
    let mut callback = CALLBACK.write();
    if callback.is_none() {
        *callback = Some(Box::new(move |level, line| {
            if level <= limit {
                eprintln!("unified: {line}");
            }
        }));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    #[test]
    fn lines_wait_for_the_end_of_the_outermost_hold() {
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
