//! The end of a context: that it is being destroyed, or that its engine has failed.
//!
//! Both are states, not events. Each waiter checks them before it sleeps, and polls `fd` while it sleeps. The bell is
//! rung once and never cleared, so it wakes every waiter.

#![forbid(unsafe_code)]

use std::os::fd::RawFd;

#[cfg(loom)]
use loom::sync::atomic::{AtomicBool, AtomicI32, Ordering};
#[cfg(not(loom))]
use std::sync::atomic::{AtomicBool, AtomicI32, Ordering};

use crate::sys::event::Doorbell;

#[derive(Debug)]
pub struct End {
    closing: AtomicBool,
    /// An errno, or 0.
    failed: AtomicI32,
    bell: Doorbell,
}

impl End {
    pub fn new() -> std::io::Result<End> {
        Ok(End {
            closing: AtomicBool::new(false),
            failed: AtomicI32::new(0),
            bell: Doorbell::new()?,
        })
    }

    /// The context is being destroyed: every waiter wakes up, now and later.
    pub fn close(&self) {
        self.closing.store(true, Ordering::Release);
        self.bell.ring();
    }

    /// The engine has failed: every waiter wakes up. The first errno is kept, because it is the cause.
    pub fn fail(&self, errno: i32) {
        let _ = self
            .failed
            .compare_exchange(0, errno, Ordering::Release, Ordering::Relaxed);
        self.bell.ring();
    }

    pub fn is_closing(&self) -> bool {
        self.closing.load(Ordering::Acquire)
    }

    pub fn failure(&self) -> Option<i32> {
        match self.failed.load(Ordering::Acquire) {
            0 => None,
            errno => Some(errno),
        }
    }

    /// Stays readable after `close` or `fail`.
    pub fn fd(&self) -> RawFd {
        self.bell.fd()
    }

    pub fn bell(&self) -> &Doorbell {
        &self.bell
    }
}
