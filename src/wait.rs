//! Waiting for packets and completions: a call with a timeout, and one descriptor for event loops.

#![forbid(unsafe_code)]

use std::os::fd::RawFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use parking_lot::{Mutex, MutexGuard};

use crate::context::{Context, RxSide, busy};
use crate::error::{Error, Result};
use crate::log;
use crate::net::watch;
use crate::ring::Consumer;
use crate::storage::engine::Engine;
use crate::sys::abi::UnifiedCqe;
use crate::sys::event::{Epoll, poll_which};

/// What to wait for.
pub const WAIT_RX: u32 = 1;
pub const WAIT_COMPLETIONS: u32 = 2;

/// Descriptors that one call waits for at most: the end, the socket, two bells, the link.
const FDS: usize = 5;

/// Roles of a thread that waits.
#[derive(Default)]
struct Roles<'a> {
    receiving: Option<MutexGuard<'a, ()>>,
    taking: Option<MutexGuard<'a, Consumer<UnifiedCqe>>>,
}

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
    /// time ran out, or a signal came. Pumps an inline engine meanwhile. The thread of the role(s), which it keeps
    /// while it sleeps: a second thread in one of them gets EBUSY, and cannot disarm the sleeper.
    pub fn wait(&self, what: u32, timeout: Option<Duration>) -> Result<u32> {
        if what == 0 || what & !(WAIT_RX | WAIT_COMPLETIONS) != 0 {
            return Err(Error::new(
                libc::EINVAL,
                "waiting: unknown or no condition; WAIT_RX and WAIT_COMPLETIONS are known",
            ));
        }
        // More than the clock can say is for ever.
        let until = timeout.and_then(|t| Instant::now().checked_add(t));
        let mut roles = self.roles(what)?;
        loop {
            self.alive()?;
            let (ready, mut fds, mut count) = self.look(&mut roles)?;
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
                let (ready, ..) = self.look(&mut roles)?;
                self.awake(what);
                return Ok(ready);
            }
        }
    }

    /// Takes the roles that waiting for `what` needs. The data of the receiver stays free meanwhile: statistics read it.
    fn roles(&self, what: u32) -> Result<Roles<'_>> {
        self.alive()?;
        let mut roles = Roles::default();
        if what & WAIT_RX != 0 {
            let role = self.receiving.try_lock().ok_or_else(|| busy("receive"))?;
            roles.receiving = Some(role);
        }
        if what & WAIT_COMPLETIONS != 0 {
            roles.taking = Some(self.taking.try_lock().ok_or_else(|| busy("take"))?);
        }
        Ok(roles)
    }

    /// What is there; and where nothing is, which descriptors will tell, all wakeups armed.
    fn look(&self, roles: &mut Roles<'_>) -> Result<(u32, [RawFd; FDS], usize)> {
        let (mut ready, mut fds, mut count) = (0, [-1; FDS], 0);
        let mut watch = |fd| {
            fds[count] = fd;
            count += 1;
        };
        watch(self.shared.end.fd());
        if roles.receiving.is_some() {
            let _held = log::hold();
            let mut rx_side = self.rx_side.lock();
            let Some(receiver) = &mut rx_side.receiver else {
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
                self.arm_receive(&mut rx_side);
            }
        }
        if let Some(taking) = &mut roles.taking {
            match self.engine()? {
                Some(mut engine) => {
                    engine.pump(true)?;
                    watch(engine.fd());
                }
                None => watch(self.shared.taker_bell.fd()),
            }
            if taking.available()? > 0 || !self.arm_take(taking)? {
                ready |= WAIT_COMPLETIONS;
            }
        }
        Ok((ready, fds, count))
    }

    fn awake(&self, what: u32) {
        if what & WAIT_RX != 0 {
            // Where event loops wait, the receiver stays armed behind every call.
            if !self.poll.is_used() {
                self.frames.awake();
            }
            self.rx_bell.clear();
        }
        if what & WAIT_COMPLETIONS != 0 {
            self.shared.taker_bell.clear();
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
    pub(crate) fn arm_receive(&self, rx_side: &mut RxSide) {
        if let Some(receiver) = &mut rx_side.receiver {
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
                self.shared.taker_bell.clear();
                taking.prepare_sleep()
            }
        }
    }

    /// One descriptor, readable when packets or completions wait. It belongs to the context. After it
    /// became readable call `receive` and `completions` until they give less than was asked for.
    pub fn poll_fd(&self) -> Result<RawFd> {
        // A callback may ask for the descriptor, too.
        let _held = log::hold();
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
        // Both roles, for whatever is armed here is theirs.
        let mut rx_side = self.lock_rx_side()?;
        let mut taking = self.taking.try_lock().ok_or_else(|| busy("take"))?;
        add(self.shared.end.fd())?;
        if let Some(watch) = &self.watch {
            add(watch.fd())?;
        }
        if let Some(receiver) = &rx_side.receiver {
            add(receiver.fd())?;
            add(self.rx_bell.fd())?;
        }
        self.hear_frames();
        self.arm_receive(&mut rx_side);
        match self.engine()? {
            Some(engine) => add(engine.fd())?,
            None => add(self.shared.taker_bell.fd())?,
        }
        self.poll.used.store(true, Ordering::Relaxed);
        if !self.arm_take(&mut taking)? && self.inline.is_none() {
            self.shared.taker_bell.ring();
        }
        let fd = epoll.fd();
        *slot = Some(epoll);
        Ok(fd)
    }
}
