//! Watches an interface while it is in use: it goes down and up again, is deleted or moved, or its XDP program is
//! detached or replaced.
//!
//! Nothing here runs on its own. A thread that finds nothing to receive, waits, or reads statistics checks the
//! interface at most once per `INTERVAL`; a netlink socket wakes waiters at once. A check is one request for the state
//! of this interface, whose answer also names the XDP program. So a lost event does no harm.

#![forbid(unsafe_code)]

use std::os::fd::RawFd;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;

use super::attributes::{attributes, u16_at, u32_at};
use super::features;
use super::link::Link;
use super::xdp::MergedCount;
use crate::error::{Error, Result};
use crate::log::{self, Level};
use crate::sys::bpf;
use crate::sys::event::monotonic_ns;
use crate::sys::netlink::RouteSocket;

/// Time between two checks.
pub const INTERVAL: Duration = Duration::from_millis(250);

const HERE: u8 = 0;
const DELETED: u8 = 1;
const MOVED: u8 = 2;

// linux/if_link.h
const IFLA_XDP: u16 = 43;
const IFLA_NEW_NETNSID: u16 = 45;
const IFLA_XDP_PROG_ID: u16 = 4;
const IFLA_XDP_SKB_PROG_ID: u16 = 6;
/// Administratively up, and with a carrier.
const UP: u32 = (libc::IFF_UP | libc::IFF_LOWER_UP) as u32;

/// The state of the interface, and what has changed so far.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct LinkState {
    /// Up, with a carrier.
    pub up: bool,
    /// Changes between up and down, and the end of the interface.
    pub changes: u64,
    /// The XDP program that feeds the socket is still attached.
    pub xdp_attached: bool,
    /// Times that somebody else detached it, replaced it, or put it back.
    pub xdp_changes: u64,
}

#[derive(Debug)]
pub struct Watch {
    socket: RouteSocket,
    link: Link,
    /// The program of this context; `None` if somebody else's program feeds the socket.
    program: Option<u32>,
    seen: Mutex<Seen>,
    gone: AtomicU8,
    up: AtomicBool,
    changes: AtomicU64,
    xdp_attached: AtomicBool,
    xdp_changes: AtomicU64,
    /// ns of CLOCK_MONOTONIC.
    next: AtomicU64,
}

#[derive(Debug)]
struct Seen {
    /// Program on the interface: this context's, or a dispatcher that calls it.
    hook: u32,
    buffer: Box<[u8]>,
    /// Until merged datagrams were seen and logged.
    merged: Option<MergedCount>,
}

/// News about an interface from one netlink message.
#[derive(Debug, PartialEq, Eq)]
enum News {
    Now { up: bool, hook: u32 },
    Deleted,
    Moved,
}

impl Watch {
    /// After the XDP program was attached.
    pub fn start(link: Link, program: Option<u32>, merged: Option<MergedCount>) -> Result<Watch> {
        let socket = RouteSocket::open(link.index)
            .map_err(|e| Error::os(&e, "opening a netlink socket to watch the interface"))?;
        let mut buffer = vec![0; 32 << 10].into_boxed_slice();
        let (mut up, mut hook) = (false, 0);
        socket
            .ask(link.index)
            .map_err(|e| Error::os(&e, format_args!("asking for the state of '{}'", link.name)))?;
        while let Ok(len) = socket.read(&mut buffer) {
            each_news(&buffer[..len], link.index, |news| {
                if let News::Now { up: u, hook: h } = news {
                    (up, hook) = (u, h);
                }
            });
        }
        Ok(Watch {
            socket,
            link,
            program,
            seen: Mutex::new(Seen {
                hook,
                buffer,
                merged,
            }),
            gone: AtomicU8::new(HERE),
            up: AtomicBool::new(up),
            changes: AtomicU64::new(0),
            xdp_attached: AtomicBool::new(hook != 0),
            xdp_changes: AtomicU64::new(0),
            next: AtomicU64::new(0),
        })
    }

    /// Readable when something changed on the interface.
    pub fn fd(&self) -> RawFd {
        self.socket.fd()
    }

    pub fn name(&self) -> &str {
        &self.link.name
    }

    pub fn state(&self) -> LinkState {
        LinkState {
            up: self.up.load(Ordering::Relaxed),
            changes: self.changes.load(Ordering::Relaxed),
            xdp_attached: self.xdp_attached.load(Ordering::Relaxed),
            xdp_changes: self.xdp_changes.load(Ordering::Relaxed),
        }
    }

    /// The id of the program on the interface. If a dispatcher calls this context's program, the dispatcher's id.
    pub fn hook(&self) -> u32 {
        self.seen.lock().hook
    }

    /// `ENODEV` if the interface was deleted, or moved to another network namespace.
    pub fn alive(&self) -> Result<()> {
        let name = &self.link.name;
        match self.gone.load(Ordering::Acquire) {
            HERE => Ok(()),
            MOVED => Err(Error::new(
                libc::ENODEV,
                format!(
                    "interface '{name}' was moved to another network namespace: nothing is received any more; \
                     destroy the context and create one where the interface is"
                ),
            )),
            _ => Err(Error::new(
                libc::ENODEV,
                format!(
                    "interface '{name}' was deleted: nothing is received any more; destroy the context and \
                     create another one when it is back"
                ),
            )),
        }
    }

    /// Checks the interface if the last check is `INTERVAL` ago. Any thread; if another thread is checking, this
    /// returns at once.
    pub fn check(&self) -> Result<()> {
        if monotonic_ns() >= self.next.load(Ordering::Relaxed) {
            self.look();
        }
        self.alive()
    }

    /// Checks the interface now.
    pub fn look(&self) {
        let Some(mut seen) = self.seen.try_lock() else {
            return;
        };
        self.next.store(
            monotonic_ns() + INTERVAL.as_nanos() as u64,
            Ordering::Relaxed,
        );
        if self.gone.load(Ordering::Relaxed) != HERE {
            return;
        }
        // Queued changes come first, so that each is counted, then the current state. If events were lost, the current
        // state counts.
        let _ = self.socket.ask(self.link.index);
        self.read(&mut seen);
        let count = seen.merged.as_ref().and_then(|merged| merged.get().ok());
        if let Some(count @ 1..) = count {
            seen.merged = None;
            features::tell_merged(&self.link, count);
        }
    }

    /// Takes queued events without a request. For callers whose descriptor they keep readable.
    pub fn take_events(&self) {
        if let Some(mut seen) = self.seen.try_lock() {
            self.read(&mut seen);
        }
    }

    fn read(&self, seen: &mut Seen) {
        let Seen { hook, buffer, .. } = seen;
        let mut latest = *hook;
        loop {
            match self.socket.read(buffer) {
                Ok(len) => each_news(&buffer[..len], self.link.index, |news| {
                    if let Some(hook) = self.learn(news) {
                        latest = hook;
                    }
                }),
                Err(e) if e.raw_os_error() == Some(libc::ENOBUFS) => {
                    let _ = self.socket.ask(self.link.index);
                }
                Err(_) => break,
            }
        }
        if latest != *hook {
            *hook = latest;
            self.program_changed(latest);
        }
    }

    /// Applies news. Returns the program on the interface, if the news contains it.
    fn learn(&self, news: News) -> Option<u32> {
        let name = &self.link.name;
        let (gone, how) = match news {
            News::Now { up, hook } => {
                if self.up.swap(up, Ordering::Relaxed) != up {
                    self.changes.fetch_add(1, Ordering::Relaxed);
                    let (level, what) = match up {
                        true => (Level::Info, "is up again"),
                        false => (Level::Warn, "is down, or its cable is out: waiting for it"),
                    };
                    log::log(level, format_args!("interface '{name}' {what}"));
                }
                return Some(hook);
            }
            News::Deleted => (DELETED, "was deleted"),
            News::Moved => (MOVED, "was moved to another network namespace"),
        };
        // A request about a moved interface is answered as if it were deleted: the first news counts.
        let first = self
            .gone
            .compare_exchange(HERE, gone, Ordering::AcqRel, Ordering::Relaxed);
        if first.is_ok() {
            self.up.store(false, Ordering::Relaxed);
            self.xdp_attached.store(false, Ordering::Relaxed);
            self.changes.fetch_add(1, Ordering::Relaxed);
            log::log(Level::Error, format_args!("interface '{name}' {how}"));
        }
        None
    }

    fn program_changed(&self, hook: u32) {
        if self.gone.load(Ordering::Relaxed) != HERE {
            return;
        }
        // If a dispatcher calls it, our program is still attached when somebody adds another one.
        let ours = self.program.is_some_and(|program| {
            hook == program
                || bpf::attached(self.link.index)
                    .is_some_and(|list| list.programs.iter().any(|p| p.id == program))
        });
        let attached = ours || self.program.is_none() && hook != 0;
        let was = self.xdp_attached.swap(attached, Ordering::Relaxed);
        if self.program.is_some() && was == attached {
            return;
        }
        self.xdp_changes.fetch_add(1, Ordering::Relaxed);
        let name = &self.link.name;
        match (attached, hook) {
            (true, _) => log::log(
                Level::Warn,
                format_args!(
                    "interface '{name}': its XDP program is now {hook}; the socket probably receives again"
                ),
            ),
            (false, 0) => log::log(
                Level::Warn,
                format_args!(
                    "interface '{name}': somebody detached the XDP program; packets go to the kernel's stack. Create a new context to continue"
                ),
            ),
            (false, _) => log::log(
                Level::Warn,
                format_args!(
                    "interface '{name}': somebody replaced the XDP program by program {hook}, which stays. Create a new context when it is gone"
                ),
            ),
        }
    }
}

/// Calls `each` with the news about one interface from a datagram of netlink messages.
fn each_news(mut datagram: &[u8], index: u32, mut each: impl FnMut(News)) {
    while let Some(len) = u32_at(datagram, 0) {
        let Some(message) = datagram.get(..len as usize).filter(|m| m.len() >= 16) else {
            return;
        };
        if let Some(news) = news_of(message, index) {
            each(news);
        }
        datagram = datagram
            .get((len as usize).next_multiple_of(4)..)
            .unwrap_or(&[]);
    }
}

fn news_of(message: &[u8], index: u32) -> Option<News> {
    let body = &message[16..];
    let kind = u16_at(message, 4)?;
    if i32::from(kind) == libc::NLMSG_ERROR {
        // The answer to a request: there is no such interface.
        let errno = u32_at(body, 0)? as i32;
        return (errno == -libc::ENODEV).then_some(News::Deleted);
    }
    let family = body.first()?;
    if u32_at(body, 4)? != index || i32::from(*family) != libc::AF_UNSPEC {
        return None;
    }
    match kind {
        libc::RTM_NEWLINK => {
            let flags = u32_at(body, 8)?;
            let programs = attributes(body.get(16..)?)
                .filter(|(kind, _)| *kind == IFLA_XDP)
                .flat_map(|(_, nested)| attributes(nested));
            let mut ids = programs
                .filter(|(kind, _)| (IFLA_XDP_PROG_ID..=IFLA_XDP_SKB_PROG_ID).contains(kind));
            let hook = ids.next().and_then(|(_, id)| u32_at(id, 0)).unwrap_or(0);
            Some(News::Now {
                up: flags & UP == UP,
                hook,
            })
        }
        libc::RTM_DELLINK => {
            let moved = attributes(body.get(16..)?).any(|(kind, _)| kind == IFLA_NEW_NETNSID);
            Some(if moved { News::Moved } else { News::Deleted })
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn message(kind: u16, index: u32, flags: u32, attributes: &[(u16, &[u8])]) -> Vec<u8> {
        let mut body = vec![0; 16];
        body[4..8].copy_from_slice(&index.to_ne_bytes());
        body[8..12].copy_from_slice(&flags.to_ne_bytes());
        for (kind, value) in attributes {
            body.extend((value.len() as u16 + 4).to_ne_bytes());
            body.extend(kind.to_ne_bytes());
            body.extend(*value);
            body.resize(body.len().next_multiple_of(4), 0);
        }
        let mut message = ((body.len() + 16) as u32).to_ne_bytes().to_vec();
        message.extend(kind.to_ne_bytes());
        message.resize(16, 0);
        message.extend(body);
        message
    }

    fn news(datagram: &[u8]) -> Vec<News> {
        let mut all = Vec::new();
        each_news(datagram, 7, |news| all.push(news));
        all
    }

    #[test]
    fn messages_about_this_interface_are_understood() {
        let mut xdp = vec![5, 0, 2, 0, 1, 0, 0, 0, 8, 0, 4, 0];
        xdp.extend(42u32.to_ne_bytes());
        let name: &[u8] = b"eth0\0";
        let mut datagram = message(libc::RTM_NEWLINK, 7, UP, &[(3, name), (IFLA_XDP, &xdp)]);
        datagram.extend(message(libc::RTM_NEWLINK, 8, 0, &[]));
        datagram.extend(message(
            libc::RTM_NEWLINK,
            7,
            libc::IFF_UP as u32,
            &[(3, name)],
        ));
        datagram.extend(message(
            libc::RTM_DELLINK,
            7,
            0,
            &[(IFLA_NEW_NETNSID, &[0; 4])],
        ));
        datagram.extend(message(libc::RTM_DELLINK, 7, 0, &[]));
        let expected = [
            News::Now { up: true, hook: 42 },
            News::Now { up: false, hook: 0 },
            News::Moved,
            News::Deleted,
        ];
        assert_eq!(news(&datagram), expected);
    }

    proptest! {
        #[test]
        fn any_bytes_end_and_stay_inside(datagram in prop::collection::vec(any::<u8>(), 0..300)) {
            let _ = news(&datagram);
        }
    }
}
