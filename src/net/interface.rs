//! A network interface of a context: its link, the XDP program that feeds its queues, and the watch over both.

#![forbid(unsafe_code)]

use std::os::fd::RawFd;

use parking_lot::Mutex;

use super::features;
use super::link::Link;
use super::watch::Watch;
use super::wire::XdpCounters;
use super::xdp::{HandedMap, Xdp, XdpConfig, log_libraries};
use crate::error::{Error, Result};
use crate::log;
use crate::sys::bpf::Mode;
use crate::sys::event::SignalShield;

/// What redirects packets to the sockets.
enum Feed {
    /// The library's program, attached by this context.
    Own(Box<Xdp>),
    /// A program of somebody else, whose map of sockets was handed in: its entries of this context.
    HandedIn(Vec<HandedMap>),
}

/// An interface while its context is being opened: its program is attached, and its queues are inserted one by one.
pub struct Attached {
    link: Link,
    feed: Feed,
    handed_in: Option<RawFd>,
}

impl Attached {
    /// Attaches the XDP program; not if the map of another one is handed in. The program passes everything until a
    /// socket is in its map. Errors are those of `Xdp::attach`.
    pub fn attach(link: Link, config: &XdpConfig, handed_in: Option<RawFd>) -> Result<Attached> {
        log_libraries();
        let feed = match handed_in {
            Some(_) => Feed::HandedIn(Vec::new()),
            None => Feed::Own(Box::new(Xdp::attach(link.clone(), config)?)),
        };
        Ok(Attached {
            link,
            feed,
            handed_in,
        })
    }

    /// How the library's own program is attached.
    pub fn mode(&self) -> Option<Mode> {
        match &self.feed {
            Feed::Own(xdp) => Some(xdp.mode()),
            Feed::HandedIn(_) => None,
        }
    }

    /// Redirects the packets of a queue to a socket.
    pub fn insert_socket(&mut self, queue: u32, socket: RawFd) -> Result<()> {
        match (&mut self.feed, self.handed_in) {
            (Feed::HandedIn(entries), Some(map)) => {
                entries.push(HandedMap::insert(map, &self.link, queue, socket)?);
                Ok(())
            }
            (Feed::HandedIn(_), None) => Ok(()),
            (Feed::Own(xdp), _) => xdp.insert_socket(queue, socket),
        }
    }

    /// Starts the watch. From now on changes of the link and of its program are counted.
    pub fn watched(self) -> Result<Interface> {
        let mode = self.mode();
        let Attached { link, feed, .. } = self;
        let (own, merged) = match &feed {
            Feed::Own(xdp) => (Some(xdp.program_id()), xdp.merged()?),
            Feed::HandedIn(_) => (None, None),
        };
        let watch = Watch::start(link.clone(), own, merged)?;
        features::warn_of_lost_tags(&link, mode);
        let info = InterfaceInfo {
            ifindex: link.index,
            rx_queues: link.rx_queues,
            native: mode == Some(Mode::Native),
            dispatcher: matches!(&feed, Feed::Own(xdp) if xdp.has_dispatcher()),
            program_id: own.unwrap_or_else(|| watch.hook()),
        };
        Ok(Interface {
            watch,
            info,
            feed: Mutex::new(Some(feed)),
        })
    }
}

/// What an interface is, as found at open.
#[derive(Debug, Clone, Copy)]
pub struct InterfaceInfo {
    pub ifindex: u32,
    pub rx_queues: u32,
    /// Of the library's own program; not for one whose map was handed in.
    pub native: bool,
    pub dispatcher: bool,
    /// Also of somebody else's program.
    pub program_id: u32,
}

/// An interface that is received from. Its queues belong to lanes.
pub struct Interface {
    pub watch: Watch,
    pub info: InterfaceInfo,
    /// `None` after `close`.
    feed: Mutex<Option<Feed>>,
}

impl Interface {
    pub fn name(&self) -> &str {
        self.watch.name()
    }

    /// Acts on the library's own program. `ENOTSUP` if the program is somebody else's.
    pub fn with_program<T>(&self, act: impl FnOnce(&mut Xdp) -> Result<T>) -> Result<T> {
        let _held = log::hold();
        let _shield = SignalShield::new();
        match &mut *self.feed.lock() {
            Some(Feed::Own(xdp)) => act(xdp),
            _ => Err(Error::new(
                libc::ENOTSUP,
                "the XDP program is not this context's: its map was handed in, and whoever attached it \
                 sets its ports and reads its events",
            )),
        }
    }

    /// The counters of the library's own program, of all queues; zeroes if it is somebody else's.
    pub fn counters(&self) -> Result<XdpCounters> {
        self.counted(Xdp::counters)
    }

    /// The same of one queue.
    pub fn queue_counters(&self, queue: u32) -> Result<XdpCounters> {
        self.counted(|xdp| xdp.queue_counters(queue))
    }

    fn counted(&self, read: impl FnOnce(&Xdp) -> Result<XdpCounters>) -> Result<XdpCounters> {
        let _held = log::hold();
        match &*self.feed.lock() {
            Some(Feed::Own(xdp)) => read(xdp),
            _ => Ok(XdpCounters::default()),
        }
    }

    /// Stops receiving: takes the own program off, or the sockets out of the map that was handed in. Packets then go to
    /// the stack.
    pub fn detach(&self) -> Result<()> {
        let _held = log::hold();
        let _shield = SignalShield::new();
        match &mut *self.feed.lock() {
            Some(Feed::Own(xdp)) => xdp.detach(),
            Some(Feed::HandedIn(entries)) => {
                entries.clear();
                Ok(())
            }
            None => Ok(()),
        }
    }

    /// As `detach`, and closes the program, which is not asked any more.
    pub fn close(&self) {
        let _held = log::hold();
        let _shield = SignalShield::new();
        *self.feed.lock() = None;
    }

    /// In a forked child: leaves everything to the parent. Nothing is detached or closed.
    pub fn forget(&self) {
        std::mem::forget(self.feed.lock().take());
    }
}
