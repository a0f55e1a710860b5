//! Waiting for packets and completions: a call with a timeout, and one descriptor for event loops.

#![forbid(unsafe_code)]

use std::os::fd::RawFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use parking_lot::{Mutex, MutexGuard};

use crate::context::{Context, Feeding, busy};
use crate::error::{Error, Result};
use crate::net::watch;
use crate::ring::Consumer;
use crate::storage::engine::Engine;
use crate::sys::abi::UnifiedCqe;
use crate::sys::event::{Epoll, poll_which};

/// What to wait for.
pub const WAIT_RX: u32 = 1;
pub const WAIT_COMPLETIONS: u32 = 2;

/// The descriptor for event loops, made when first asked for.
#[derive(Debug, Default)]
pub(crate) struct PollState {
    epoll: Mutex<Option<Epoll>>,
    used: AtomicBool,
}

impl PollState {
    /// Whether calls must leave the wakeups armed behind them.
    pub fn is_used(&self) -> bool {
        self.used.load(Ordering::Relaxed)
    }
}

fn os(what: &'static str) -> impl Fn(std::io::Error) -> Error {
    move |e| Error::os(&e, what)
}

impl Context {
    fn engine(&self) -> Result<Option<MutexGuard<'_, Engine>>> {
        match &self.inline {
            Some(engine) => engine.try_lock().map(Some).ok_or_else(|| busy("pump")),
            None => Ok(None),
        }
    }

    /// Waits until there is something of `what` (`WAIT_RX`, `WAIT_COMPLETIONS`), and says which. 0: the
    /// time ran out, or a signal came. Pumps an inline engine meanwhile. The thread of the role(s).
    pub fn wait(&self, what: u32, timeout: Option<Duration>) -> Result<u32> {
        if what == 0 || what & !(WAIT_RX | WAIT_COMPLETIONS) != 0 {
            return Err(Error::new(
                libc::EINVAL,
                "waiting: unknown or no condition; WAIT_RX and WAIT_COMPLETIONS are known",
            ));
        }
        let until = timeout.map(|t| Instant::now() + t);
        loop {
            self.alive()?;
            let (ready, mut fds, mut count) = self.look(what)?;
            if ready != 0 {
                self.disarm_engine(what);
                return Ok(ready);
            }
            let mut left = until.map(|u| u.saturating_duration_since(Instant::now()));
            let mut link = 0;
            let watch = self.watch.as_ref().filter(|_| what & WAIT_RX != 0);
            if let Some(watch) = watch {
                // An interface that is gone makes its socket readable for ever.
                watch.check().inspect_err(|_| self.awake(what))?;
                fds[count] = watch.fd();
                link = 1 << count;
                count += 1;
                left = Some(left.map_or(watch::INTERVAL, |left| left.min(watch::INTERVAL)));
            }
            let (woken, signal) = match poll_which(&fds[..count], left) {
                Ok(woken) => (woken, false),
                Err(e) if e.kind() == std::io::ErrorKind::Interrupted => (0, true),
                Err(e) => return Err(os("waiting")(e)),
            };
            self.awake(what);
            if let Some(watch) = watch.filter(|_| woken & link != 0) {
                watch.look();
            }
            if signal || woken == 0 && until.is_some_and(|until| Instant::now() >= until) {
                // One more look: what came with the last moment counts.
                self.alive()?;
                let (ready, ..) = self.look(what)?;
                self.awake(what);
                return Ok(ready);
            }
        }
    }

    /// What is there; and where nothing is, which descriptors will tell, all wakeups armed.
    fn look(&self, what: u32) -> Result<(u32, [RawFd; 5], usize)> {
        let (mut ready, mut fds, mut count) = (0, [-1; 5], 0);
        let mut watch = |fd| {
            fds[count] = fd;
            count += 1;
        };
        if what & WAIT_RX != 0 {
            let mut feeding = self.feed()?;
            let Some(receiver) = &mut feeding.receiver else {
                return Err(Error::new(
                    libc::ENOTCONN,
                    "this context has no interface to wait for",
                ));
            };
            watch(receiver.fd());
            watch(self.rx_bell.fd());
            if receiver.pending() > 0 {
                ready |= WAIT_RX;
            } else {
                self.arm_receive(&mut feeding);
            }
        }
        if what & WAIT_COMPLETIONS != 0 {
            let mut taking = self.taking.try_lock().ok_or_else(|| busy("take"))?;
            match self.engine()? {
                Some(mut engine) => {
                    engine.pump(true)?;
                    watch(engine.fd());
                }
                None => watch(self.shore.taker_bell.fd()),
            }
            if taking.available()? > 0 || !self.arm_take(&mut taking)? {
                ready |= WAIT_COMPLETIONS;
            }
        }
        Ok((ready, fds, count))
    }

    fn awake(&self, what: u32) {
        if what & WAIT_RX != 0 {
            self.frames.awake();
            self.rx_bell.clear();
        }
        if what & WAIT_COMPLETIONS != 0 {
            self.shore.taker_bell.clear();
        }
        self.disarm_engine(what);
    }

    /// Whoever waited for an inline engine is awake and will pump it: submitters need not ring. Where event
    /// loops wait, the engine stays armed behind every call.
    fn disarm_engine(&self, what: u32) {
        if what & WAIT_COMPLETIONS != 0
            && !self.poll.is_used()
            && let Ok(Some(mut engine)) = self.engine()
        {
            engine.awake();
        }
    }

    /// Leaves the receiving side ready to sleep: fill ring full, or frames asked back for.
    pub(crate) fn arm_receive(&self, feeding: &mut Feeding) {
        if let Some(receiver) = &mut feeding.receiver {
            while !receiver.prepare_sleep() {
                self.frames.awake();
                receiver.refill();
            }
        }
    }

    /// Leaves the completion side ready to sleep. `false` where completions are there after all.
    pub(crate) fn arm_take(&self, taking: &mut Consumer<UnifiedCqe>) -> Result<bool> {
        match self.engine()? {
            Some(mut engine) => {
                // Entries that came meanwhile are pumped; what completes shows on the ring's descriptor.
                while !engine.prepare_sleep()? {
                    let turn = engine.pump(true)?;
                    if turn.completed > 0 || turn.taken == 0 {
                        break;
                    }
                }
                engine.submit()?;
                Ok(taking.available()? == 0)
            }
            None => {
                self.shore.taker_bell.clear();
                taking.prepare_sleep()
            }
        }
    }

    /// One descriptor, readable when packets or completions wait. It belongs to the context. After it
    /// became readable call `receive` and `completions` until they give less than was asked for.
    pub fn poll_fd(&self) -> Result<RawFd> {
        let mut slot = self.poll.epoll.lock();
        if let Some(epoll) = &*slot {
            return Ok(epoll.fd());
        }
        let epoll = Epoll::new().map_err(os("creating an epoll descriptor"))?;
        let add = |fd| {
            epoll
                .add(fd)
                .map_err(os("adding to the pollable descriptor"))
        };
        {
            let mut feeding = self.feed()?;
            if let Some(watch) = &self.watch {
                add(watch.fd())?;
            }
            if let Some(receiver) = &feeding.receiver {
                add(receiver.fd())?;
                add(self.rx_bell.fd())?;
            }
            self.arm_receive(&mut feeding);
        }
        match self.engine()? {
            Some(engine) => add(engine.fd())?,
            None => add(self.shore.taker_bell.fd())?,
        }
        let mut taking = self.taking.try_lock().ok_or_else(|| busy("take"))?;
        self.poll.used.store(true, Ordering::Relaxed);
        if !self.arm_take(&mut taking)? && self.inline.is_none() {
            self.shore.taker_bell.ring();
        }
        let fd = epoll.fd();
        *slot = Some(epoll);
        Ok(fd)
    }
}
