//! Waiting for packets and completions: a call with a timeout, and one descriptor for event loops.

#![forbid(unsafe_code)]

use std::ops::{BitOr, BitOrAssign};
use std::os::fd::RawFd;
use std::slice;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use parking_lot::{Mutex, MutexGuard};
use smallvec::SmallVec;

use super::{Lane, Role, RxSide};
use crate::error::{Error, Result};
use crate::log;
use crate::net::watch;
use crate::ring::Consumer;
use crate::sys::abi::UnifiedCqe;
use crate::sys::event::{Epoll, Woken, poll_which};

/// What to wait for, and what is ready.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Ready {
    pub rx: bool,
    pub completions: bool,
}

impl Ready {
    pub const NONE: Ready = Ready {
        rx: false,
        completions: false,
    };
    pub const RX: Ready = Ready {
        rx: true,
        completions: false,
    };
    pub const COMPLETIONS: Ready = Ready {
        rx: false,
        completions: true,
    };
}

impl BitOr for Ready {
    type Output = Ready;

    fn bitor(mut self, other: Ready) -> Ready {
        self |= other;
        self
    }
}

impl BitOrAssign for Ready {
    fn bitor_assign(&mut self, other: Ready) {
        self.rx |= other.rx;
        self.completions |= other.completions;
    }
}

/// The descriptors that one call waits for; without an allocation for a lane or two.
type Fds = SmallVec<[RawFd; 12]>;

/// Roles of a thread that waits.
#[derive(Default)]
struct Roles<'a> {
    receiving: Option<MutexGuard<'a, ()>>,
    taking: Option<MutexGuard<'a, Consumer<UnifiedCqe>>>,
}

/// The descriptor for event loops, made when first asked for.
#[derive(Debug, Default)]
pub(super) struct PollState {
    epoll: Mutex<Option<Epoll>>,
    used: AtomicBool,
}

impl PollState {
    /// Whether calls must leave the wakeups armed when they return.
    pub fn is_used(&self) -> bool {
        self.used.load(Ordering::Relaxed)
    }
}

fn os(what: &'static str) -> impl Fn(std::io::Error) -> Error {
    move |e| Error::os(&e, what)
}

/// Waits until something of `what` is ready on one of the lanes, and returns what is. `Ready::NONE` on timeout or signal.
/// Drives inline engines meanwhile. The thread of the role or roles of all of these lanes, which it keeps while it sleeps: a
/// second thread in one of them gets `EBUSY`, and cannot disarm the sleeper. The lanes are of one context.
pub fn wait(lanes: &[Lane], what: Ready, timeout: Option<Duration>) -> Result<Ready> {
    // A timeout beyond the clock's range is none.
    let until = timeout.and_then(|t| Instant::now().checked_add(t));
    let mut roles = SmallVec::<[Roles; 2]>::new();
    for lane in lanes {
        roles.push(lane.roles(what)?);
    }
    let interface = lanes.first().and_then(|lane| lane.interface.as_ref());
    let watch = interface.filter(|_| what.rx).map(|found| &found.watch);
    let awake = || lanes.iter().for_each(|lane| lane.awake(what));
    loop {
        alive(lanes)?;
        let mut fds = Fds::new();
        if let Some(watch) = watch {
            fds.push(watch.fd());
        }
        let ready = look(lanes, &mut roles, &mut fds)?;
        if ready != Ready::NONE {
            lanes.iter().for_each(|lane| lane.disarm_engine(what));
            return Ok(ready);
        }
        let mut left = until.map(|u| u.saturating_duration_since(Instant::now()));
        if let Some(watch) = watch {
            // The socket of an interface that is gone stays readable for ever.
            watch.check().inspect_err(|_| awake())?;
            left = Some(left.map_or(watch::INTERVAL, |left| left.min(watch::INTERVAL)));
        }
        let (woken, signal) = match poll_which(&fds, left) {
            Ok(woken) => (woken, false),
            Err(e) if e.kind() == std::io::ErrorKind::Interrupted => (Woken::default(), true),
            Err(e) => return Err(os("waiting")(e)),
        };
        awake();
        if let Some(watch) = watch.filter(|_| woken.first) {
            watch.look();
        }
        if signal || !woken.any && until.is_some_and(|until| Instant::now() >= until) {
            // One more look: what came in the last moment counts.
            alive(lanes)?;
            let ready = look(lanes, &mut roles, &mut fds)?;
            awake();
            return Ok(ready);
        }
    }
}

fn alive(lanes: &[Lane]) -> Result<()> {
    lanes.iter().try_for_each(Lane::alive)
}

/// Returns what is ready on some lane. If nothing is, all wakeups are armed, and the descriptors that are added to `fds`
/// become readable when something is.
fn look(lanes: &[Lane], roles: &mut [Roles<'_>], fds: &mut Fds) -> Result<Ready> {
    let mut ready = Ready::NONE;
    for (lane, roles) in lanes.iter().zip(roles) {
        ready |= lane.look(roles, fds)?;
    }
    Ok(ready)
}

impl Lane {
    /// As the function `wait`, for this lane alone.
    pub fn wait(&self, what: Ready, timeout: Option<Duration>) -> Result<Ready> {
        wait(slice::from_ref(self), what, timeout)
    }

    /// Takes the roles that waiting for `what` needs. The data of the receiver stays unlocked: statistics read it.
    fn roles(&self, what: Ready) -> Result<Roles<'_>> {
        self.alive()?;
        let mut roles = Roles::default();
        if what.rx {
            let role = self
                .receiving
                .try_lock()
                .ok_or_else(|| Role::Receive.busy())?;
            roles.receiving = Some(role);
        }
        if what.completions {
            roles.taking = Some(self.lock_taking()?);
        }
        Ok(roles)
    }

    /// As the function `look`, for this lane.
    fn look(&self, roles: &mut Roles<'_>, fds: &mut Fds) -> Result<Ready> {
        let mut ready = Ready::NONE;
        fds.push(self.shared.end.fd());
        if roles.receiving.is_some() {
            let _held = log::hold();
            let mut rx_side = self.rx_side.lock();
            let Some(receiver) = &mut rx_side.receiver else {
                return Err(Error::new(
                    libc::ENOTCONN,
                    "this context has no interface to wait for",
                ));
            };
            fds.extend([receiver.fd(), self.peer().rx_bell.fd()]);
            if receiver.pending() > 0 {
                ready.rx = true;
            } else {
                self.arm_receive(&mut rx_side);
                self.give_up_frames();
            }
        }
        if let Some(taking) = &mut roles.taking {
            match self.inline_engine()? {
                Some(mut engine) => {
                    engine.pump(true)?;
                    fds.push(engine.fd());
                }
                None => fds.push(self.shared.taker_bell.fd()),
            }
            if taking.available()? > 0 || !self.arm_take(taking)? {
                ready.completions = true;
            }
        }
        Ok(ready)
    }

    fn awake(&self, what: Ready) {
        if what.rx {
            // For event loops the receiver stays armed after every call.
            if !self.poll.is_used() {
                self.frames.pool.awake();
            }
            self.peer().rx_bell.clear();
        }
        if what.completions {
            self.shared.taker_bell.clear();
        }
        self.disarm_engine(what);
    }

    /// Whoever waited for an inline engine is awake and will drive it: submitters need not ring. For event loops the engine
    /// stays armed after every call.
    fn disarm_engine(&self, what: Ready) {
        if what.completions
            && !self.poll.is_used()
            && let Ok(Some(mut engine)) = self.inline_engine()
        {
            engine.awake();
        }
    }

    /// Prepares the receiving side to sleep: the fill ring is full, or whoever gives a frame back will ring.
    pub(super) fn arm_receive(&self, rx_side: &mut RxSide) {
        if let Some(receiver) = &mut rx_side.receiver {
            while !receiver.prepare_sleep() {
                self.frames.pool.awake();
                receiver.refill();
            }
        }
    }

    /// Prepares the completion side to sleep. `false` if there are completions after all.
    pub(super) fn arm_take(&self, taking: &mut Consumer<UnifiedCqe>) -> Result<bool> {
        match self.inline_engine()? {
            Some(mut engine) => {
                // Entries that came meanwhile are taken; their completions make the ring's descriptor readable.
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

    /// One descriptor, readable when packets or completions wait. It belongs to the lane. When it is readable, call
    /// `receive` and `completions` until they return fewer than requested.
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
        // Both roles: what is armed here belongs to them.
        let mut rx_side = self.lock_rx_side()?;
        let mut taking = self.lock_taking()?;
        add(self.shared.end.fd())?;
        if let Some(interface) = &self.interface {
            add(interface.watch.fd())?;
        }
        if let Some(receiver) = &rx_side.receiver {
            add(receiver.fd())?;
            add(self.peer().rx_bell.fd())?;
        }
        self.hear_frames();
        self.arm_receive(&mut rx_side);
        match self.inline_engine()? {
            Some(engine) => add(engine.fd())?,
            None => add(self.shared.taker_bell.fd())?,
        }
        self.poll.used.store(true, Ordering::Relaxed);
        if !self.arm_take(&mut taking)? && !self.is_inline() {
            self.shared.taker_bell.ring();
        }
        let fd = epoll.fd();
        *slot = Some(epoll);
        Ok(fd)
    }
}
