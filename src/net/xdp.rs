//! The XDP program on an interface: loading, attaching, its ports, its counters, its events.

#![forbid(unsafe_code)]

mod handed;
mod left;

use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};

pub use handed::HandedMap;
pub use left::programs_of;
use left::{Leftover, remove_pins, take_over};

use super::clock::StampOffset;
use super::features;
use super::link::Link;
use super::owner::OwnerSocket;
use super::wire::{COUNTERS, EVENT_LEN, Event, SETTINGS_LEN, Settings, XdpCounters};
use crate::error::{Error, Result};
use crate::log::{self, Level};
use crate::sys::bpf::{self, Ingress, Mode, Program, Variant};
use crate::sys::file::duplicate;
use crate::sys::limits;
use crate::sys::link as sys_link;

/// How to attach the program.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub enum XdpMode {
    /// Native if the driver supports it, else SKB.
    #[default]
    Auto,
    Native,
    Skb,
}

#[derive(Debug, Clone)]
pub struct XdpConfig {
    /// UDP destination ports, none of them 0.
    pub ports: Vec<u16>,
    pub mode: XdpMode,
    /// Order among several programs on the interface: lower runs first.
    pub run_priority: u32,
    /// One event in so many packets; 0: none.
    pub event_sample: u32,
    /// Bytes of the events ring buffer, a power of two.
    pub events_bytes: u32,
    /// How many queues are counted apart, from the first one on.
    pub queues: u32,
}

pub struct Xdp {
    // Before the program, whose map it reads.
    events: bpf::Events,
    program: Program,
    link: Link,
    mode: Mode,
    dispatcher: bool,
    attached: bool,
    /// It recognizes merged datagrams.
    merged: bool,
    /// How many are counted apart.
    queues: u32,
    ports: Vec<u16>,
    /// Somebody has asked for events.
    events_read: bool,
    fds: Fds,
    stamps: StampOffset,
    _owner: OwnerSocket,
    // Last: detaching takes descriptors, and the program's own are closed by then.
    leftover: Leftover,
}

/// The program's maps; the descriptors belong to the program.
struct Fds {
    xsks: RawFd,
    ports: RawFd,
    stats: RawFd,
    settings: RawFd,
}

/// Lines of libbpf and libxdp go to the log, a level lower than they come: both warn of everything that they try and do
/// without. What fails for good comes back as an error and is reported as one.
pub(super) fn log_libraries() {
    bpf::set_print(|debug, line| {
        let level = if debug { Level::Debug } else { Level::Info };
        log::log(level, format_args!("{line}"));
    });
}

impl Xdp {
    /// Loads and attaches. `EBUSY` (another process records from this interface), `EPERM` (missing
    /// capabilities), `EOPNOTSUPP` (the insisted-on mode), all with the interface's name.
    pub fn attach(link: Link, config: &XdpConfig) -> Result<Xdp> {
        take_over(&link)?;
        let modes: &[Mode] = match config.mode {
            XdpMode::Auto => &[Mode::Native, Mode::Skb],
            XdpMode::Native => &[Mode::Native],
            XdpMode::Skb => &[Mode::Skb],
        };
        let mut last: Option<Error> = None;
        // Why the variant that recognizes merged datagrams could not be loaded.
        let mut unmerged: Option<Error> = None;
        // In each mode, the variant that does most is tried first. Kernels that check extensions refuse the metadata
        // record with EINVAL. Older ones may refuse the check for merged datagrams with any error.
        for (mode, merged, metadata) in modes.iter().flat_map(|&mode| {
            [(true, true), (true, false), (false, true), (false, false)]
                .map(|(merged, metadata)| (mode, merged, metadata))
        }) {
            let variant = Variant { metadata, merged };
            let errno = last.as_ref().map_or(0, Error::errno);
            let may_merge = features::may_merge(&link, mode);
            if merged && !may_merge || !metadata && errno != libc::EINVAL {
                continue;
            }
            if may_merge && !merged && metadata {
                if matches!(errno, libc::EBUSY | libc::EEXIST | libc::ENODEV) {
                    continue;
                }
                unmerged = last.take();
            }
            match Xdp::attach_as(link.clone(), config, mode, variant) {
                Ok(xdp) => {
                    if !metadata {
                        log::log(
                            Level::Info,
                            format_args!(
                                "interface '{}': attached without the metadata record; packets carry no timestamp",
                                link.name
                            ),
                        );
                    }
                    if may_merge && !merged {
                        features::warn_of_merging(&link, unmerged.as_ref());
                    }
                    return Ok(xdp);
                }
                Err(error) => {
                    let with = match (metadata, may_merge && !merged) {
                        (true, false) => "",
                        (false, false) => ", without metadata",
                        (true, true) => ", without the check for merged datagrams",
                        (false, true) => ", without metadata and the check for merged datagrams",
                    };
                    log::log(Level::Info, format_args!("{mode:?} mode{with}: {error}"));
                    // EACCES may also come from the verifier, for something that an older kernel lacks.
                    let permission =
                        error.errno() == libc::EPERM || error.errno() == libc::EACCES && !merged;
                    last = Some(error);
                    if permission {
                        break;
                    }
                }
            }
        }
        Err(last.or(unmerged).expect("at least one mode was tried"))
    }

    fn attach_as(link: Link, config: &XdpConfig, mode: Mode, variant: Variant) -> Result<Xdp> {
        let name = link.name.clone();
        let failed = |e: io::Error, what: &str| {
            let error = Error::os(&e, format_args!("{what} interface '{name}'"));
            match e.raw_os_error() {
                Some(libc::EPERM | libc::EACCES) => {
                    error.hint(limits::lacking_for_xdp())
                }
                Some(libc::EOPNOTSUPP) => error.hint("the driver has no native XDP: use SKB mode"),
                Some(libc::EBUSY | libc::EEXIST) => {
                    error.hint("a program without libxdp's dispatcher is attached to the interface: see 'bpftool net show'")
                }
                _ => error,
            }
        };
        log_libraries();
        let mut program = Program::open(config.events_bytes, config.queues, variant)
            .map_err(|e| failed(e, "preparing the XDP program for"))?;
        program
            .set_run_config(config.run_priority, true)
            .map_err(|e| failed(e, "configuring the XDP program for"))?;
        // Without CAP_SYS_ADMIN a process cannot list attached programs: libxdp would attach the program, and not find
        // it again to detach it.
        let attached = match limits::has(limits::SYS_ADMIN) {
            true => program.attach(link.index, mode),
            false => program
                .load()
                .and_then(|()| program.attach_alone(link.index, mode)),
        };
        attached.map_err(|e| failed(e, "attaching the XDP program to"))?;
        let owner = OwnerSocket::new();
        let (fds, events) = match open_maps(&program, config, &owner) {
            Ok(made) => made,
            Err(e) => {
                let alone = program.detach_alone(link.index, mode);
                if alone.is_err() && program.detach(link.index, mode).is_err() {
                    let id = program.id();
                    drop(program);
                    drop(Leftover(Some((link, id, mode))));
                }
                return Err(failed(e, "setting up the maps of the XDP program on"));
            }
        };
        // From here on a failure must detach again: `Xdp` does when dropped.
        let dispatcher = bpf::attached(link.index).is_some_and(|list| list.dispatcher);
        if !dispatcher {
            log::log(
                Level::Info,
                format_args!(
                    "libxdp's dispatcher is not available on '{}': the XDP program runs alone there, and no other program can be added",
                    link.name
                ),
            );
        }
        let mut xdp = Xdp {
            events,
            program,
            link,
            mode,
            dispatcher,
            attached: true,
            merged: variant.merged,
            queues: config.queues,
            ports: Vec::new(),
            events_read: false,
            fds,
            stamps: StampOffset::of_this_process(),
            _owner: owner,
            leftover: Leftover::default(),
        };
        for port in &config.ports {
            xdp.add_port(*port)?;
        }
        Ok(xdp)
    }

    /// Loads a variant of the program and attaches it nowhere: it sees the packets of `run` only.
    pub fn load_as(config: &XdpConfig, variant: Variant) -> Result<Xdp> {
        let failed = |e: io::Error| Error::os(&e, "loading the XDP program");
        log_libraries();
        let mut program =
            Program::open(config.events_bytes, config.queues, variant).map_err(failed)?;
        program.load().map_err(failed)?;
        let owner = OwnerSocket::new();
        let (fds, events) = open_maps(&program, config, &owner).map_err(failed)?;
        let mut xdp = Xdp {
            events,
            program,
            link: Link {
                name: "no interface".into(),
                index: 0,
                rx_queues: 1,
            },
            mode: Mode::Native,
            dispatcher: false,
            attached: false,
            merged: variant.merged,
            queues: config.queues,
            ports: Vec::new(),
            events_read: false,
            fds,
            stamps: StampOffset::of_this_process(),
            _owner: owner,
            leftover: Leftover::default(),
        };
        for port in &config.ports {
            xdp.add_port(*port)?;
        }
        Ok(xdp)
    }

    /// Runs the program on a packet, as if it came from `ingress` (loopback's queue 0 if that is `None`). Returns the
    /// verdict, and in `out` the packet as the program left it, metadata record first. Nothing is redirected. `EINVAL`
    /// for less than an Ethernet header.
    pub fn run(&self, packet: &[u8], ingress: Option<Ingress>, out: &mut Vec<u8>) -> Result<u32> {
        self.program
            .test_run(packet, ingress, out)
            .map_err(|e| Error::os(&e, "running the XDP program on a packet"))
    }

    pub fn mode(&self) -> Mode {
        self.mode
    }

    /// Whether libxdp's dispatcher runs it (so that other programs can be attached too).
    pub fn has_dispatcher(&self) -> bool {
        self.dispatcher
    }

    pub fn program_id(&self) -> u32 {
        self.program.id()
    }

    /// From now on matching packets of this queue go to the socket.
    pub fn insert_socket(&mut self, queue: u32, fd: RawFd) -> Result<()> {
        bpf::map_set(self.fds.xsks, queue, &(fd as u32).to_ne_bytes()).map_err(|e| {
            Error::os(
                &e,
                format_args!(
                    "redirecting queue {queue} of '{}' to its socket",
                    self.link.name
                ),
            )
        })
    }

    /// The map of sockets, to be handed to a process that may not attach programs (`Config::xsk_map`).
    pub fn socket_map(&self) -> RawFd {
        self.fds.xsks
    }

    pub fn ports(&self) -> &[u16] {
        &self.ports
    }

    /// `EINVAL` for port 0.
    pub fn add_port(&mut self, port: u16) -> Result<()> {
        self.set_port(port, 1)?;
        if !self.ports.contains(&port) {
            self.ports.push(port);
        }
        Ok(())
    }

    pub fn remove_port(&mut self, port: u16) -> Result<()> {
        self.set_port(port, 0)?;
        self.ports.retain(|p| *p != port);
        Ok(())
    }

    fn set_port(&self, port: u16, on: u8) -> Result<()> {
        if port == 0 {
            return Err(Error::new(
                libc::EINVAL,
                "UDP port 0 cannot be received; ports are 1 to 65535",
            ));
        }
        // The value is one byte; the kernel reads whole map values, rounded up to 8.
        bpf::map_set(self.fds.ports, port.into(), &[on, 0, 0, 0, 0, 0, 0, 0]).map_err(|e| {
            Error::os(
                &e,
                format_args!("setting UDP port {port} on '{}'", self.link.name),
            )
        })
    }

    /// What it has counted of all queues.
    pub fn counters(&self) -> Result<XdpCounters> {
        let all = all_counters(self.fds.stats, self.queues);
        all.map_err(|e| self.not_read(&e))
    }

    /// What it has counted of a queue that is counted apart.
    pub fn queue_counters(&self, queue: u32) -> Result<XdpCounters> {
        counters_at(self.fds.stats, queue + 1).map_err(|e| self.not_read(&e))
    }

    fn not_read(&self, e: &io::Error) -> Error {
        let what = format_args!("reading the XDP counters of '{}'", self.link.name);
        Error::os(e, what)
    }

    /// Its counter of merged datagrams, which stays readable after it is detached; `None` if it does not recognize
    /// them.
    pub fn merged(&self) -> Result<Option<MergedCount>> {
        if !self.merged {
            return Ok(None);
        }
        let map = duplicate(self.fds.stats)
            .map_err(|e| Error::os(&e, format_args!("watching '{}'", self.link.name)))?;
        Ok(Some(MergedCount {
            map,
            queues: self.queues,
        }))
    }

    /// One event in `sample` packets from now on; 0: none.
    pub fn set_event_sample(&self, sample: u32) -> Result<()> {
        self.change(|settings| settings.event_sample = sample)
            .map_err(|e| {
                Error::os(
                    &e,
                    format_args!("changing the event sampling on '{}'", self.link.name),
                )
            })
    }

    fn change(&self, change: impl FnOnce(&mut Settings)) -> io::Result<()> {
        let mut bytes = [0; SETTINGS_LEN];
        bpf::map_get(self.fds.settings, 0, &mut bytes)?;
        let mut settings = Settings::from_bytes(&bytes);
        change(&mut settings);
        bpf::map_set(self.fds.settings, 0, &settings.to_bytes())
    }

    /// From the first call on, events that find no room are counted as lost. Until then the ring buffer keeps the
    /// oldest events: when it is full, no more are logged.
    fn reads_events(&mut self) -> Result<()> {
        if self.events_read {
            return Ok(());
        }
        self.change(|settings| settings.events_read = 1)
            .map_err(|e| Error::os(&e, format_args!("reading events of '{}'", self.link.name)))?;
        self.events_read = true;
        Ok(())
    }

    /// Readable when many events wait. Drain to get fewer.
    pub fn events_fd(&mut self) -> Result<RawFd> {
        self.reads_events()?;
        Ok(self.events.fd())
    }

    /// Hands out up to `max` events.
    pub fn drain_events(&mut self, max: usize, mut each: impl FnMut(&Event)) -> Result<usize> {
        debug_assert_eq!(EVENT_LEN, 56);
        let stamps = self.stamps;
        let drained = self
            .events
            .drain(max, &mut |bytes| {
                if let Some(mut event) = Event::parse(bytes) {
                    event.timestamp = stamps.apply(event.timestamp);
                    each(&event);
                }
            })
            .map_err(|e| Error::os(&e, format_args!("reading events of '{}'", self.link.name)))?;
        // Afterwards, so that there is room when the program goes on.
        self.reads_events()?;
        Ok(drained)
    }

    /// Takes the program off the interface. Packets go to the stack from now on.
    pub fn detach(&mut self) -> Result<()> {
        if !std::mem::take(&mut self.attached) {
            return Ok(());
        }
        if self
            .program
            .detach_alone(self.link.index, self.mode)
            .is_ok()
        {
            return Ok(());
        }
        let id = self.program.id();
        // If no descriptor is free, libxdp returns a list without programs, which means nothing.
        if let Some(list) = bpf::attached(self.link.index)
            && !list.programs.is_empty()
            && list.programs.iter().all(|p| p.id != id)
        {
            log::log(
                Level::Info,
                format_args!(
                    "interface '{}': the XDP program there is no longer this context's, and stays",
                    self.link.name
                ),
            );
            self.disown();
            return Ok(());
        }
        // So a dispatcher runs it, or it is gone.
        let Err(e) = self.program.detach(self.link.index, self.mode) else {
            return Ok(());
        };
        self.disown();
        let errno = e.raw_os_error();
        // Gone with its interface; the pins of libxdp's dispatcher are not.
        if sys_link::is_gone(self.link.index) {
            remove_pins(self.link.index, self.program.id());
            return Ok(());
        }
        self.leftover.0 = Some((self.link.clone(), self.program.id(), self.mode));
        // Detached by somebody else. But libxdp reports this too if no descriptor was free to check.
        if errno == Some(libc::ENOENT) {
            return Ok(());
        }
        Err(Error::os(
            &e,
            format_args!("detaching the XDP program from '{}'", self.link.name),
        ))
    }
}

impl Xdp {
    /// If the program is still attached somewhere (in another namespace, for example), it has no owner from now on,
    /// and the next recorder there may detach it.
    fn disown(&self) {
        let _ = self.change(|settings| (settings.owner_pid, settings.owner_token) = (0, 0));
    }
}

/// The counter of merged datagrams of an XDP program.
#[derive(Debug)]
pub struct MergedCount {
    map: OwnedFd,
    queues: u32,
}

impl MergedCount {
    pub fn get(&self) -> io::Result<u64> {
        Ok(all_counters(self.map.as_raw_fd(), self.queues)?.merged)
    }
}

fn counters_at(map: RawFd, entry: u32) -> io::Result<XdpCounters> {
    let words = bpf::map_sum::<COUNTERS>(map, entry)?;
    Ok(XdpCounters::from_words(&words))
}

fn all_counters(map: RawFd, queues: u32) -> io::Result<XdpCounters> {
    let mut sum = XdpCounters::default();
    for entry in 0..=queues {
        sum += counters_at(map, entry)?;
    }
    Ok(sum)
}

fn open_maps(
    program: &Program,
    config: &XdpConfig,
    owner: &OwnerSocket,
) -> io::Result<(Fds, bpf::Events)> {
    let fds = Fds {
        xsks: program.map_fd(c"unified_xsks")?,
        ports: program.map_fd(c"unified_ports")?,
        stats: program.map_fd(c"unified_stats")?,
        settings: program.map_fd(c"unified_set")?,
    };
    let settings = Settings {
        event_sample: config.event_sample,
        wake_bytes: config.events_bytes / 4,
        ..Settings::default()
    };
    let settings = owner.sign(settings);
    bpf::map_set(fds.settings, 0, &settings.to_bytes())?;
    let events = bpf::Events::new(program.map_fd(c"unified_events")?)?;
    Ok((fds, events))
}

impl Drop for Xdp {
    fn drop(&mut self) {
        if let Err(error) = self.detach() {
            log::log(Level::Info, format_args!("{error}; trying by its id"));
        }
    }
}
