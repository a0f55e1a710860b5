//! The XDP program on an interface: loading, attaching, its ports, its counters, its events.

#![forbid(unsafe_code)]

use std::fs;
use std::io;
use std::os::fd::RawFd;

use super::link::Link;
use super::wire::{COUNTERS, EVENT_LEN, Event, SETTINGS_LEN, Settings, XdpCounters};
use crate::error::{Error, Result};
use crate::log::{self, Level};
use crate::sys::bpf::{self, Mode, PROGRAM, Program};

/// Which way the program is attached.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub enum XdpMode {
    /// Native where the driver can, else SKB.
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
    /// Among several programs on the interface: low runs first.
    pub run_priority: u32,
    /// One event in so many packets; 0: none.
    pub event_sample: u32,
    /// Bytes of the events ring buffer, a power of two.
    pub events_bytes: u32,
}

pub struct Xdp {
    // Before the program, whose map it reads.
    events: bpf::Events,
    program: Program,
    link: Link,
    mode: Mode,
    dispatcher: bool,
    attached: bool,
    ports: Vec<u16>,
    fds: Fds,
}

/// The program's maps; the descriptors belong to the program.
struct Fds {
    xsks: RawFd,
    ports: RawFd,
    stats: RawFd,
    settings: RawFd,
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
        let mut last = None;
        for mode in modes {
            match Xdp::attach_as(link.clone(), config, *mode) {
                Ok(xdp) => return Ok(xdp),
                Err(error) => {
                    log::log(Level::Info, format_args!("{mode:?} mode: {error}"));
                    let permission = matches!(error.errno(), libc::EPERM | libc::EACCES);
                    last = Some(error);
                    if permission {
                        break;
                    }
                }
            }
        }
        Err(last.expect("at least one mode was tried"))
    }

    fn attach_as(link: Link, config: &XdpConfig, mode: Mode) -> Result<Xdp> {
        let name = link.name.clone();
        let failed = |e: io::Error, what: &str| {
            let error = Error::os(&e, format_args!("{what} interface '{name}'"));
            match e.raw_os_error() {
                Some(libc::EPERM | libc::EACCES) => {
                    error.hint("CAP_NET_ADMIN, CAP_BPF and CAP_NET_RAW are needed (run as root), and /sys/fs/bpf mounted")
                }
                Some(libc::EOPNOTSUPP) => error.hint("the driver has no native XDP: take SKB mode"),
                Some(libc::EBUSY | libc::EEXIST) => {
                    error.hint("a program that is no libxdp dispatcher's holds the interface: see 'bpftool net show'")
                }
                _ => error,
            }
        };
        let mut program = Program::open(config.events_bytes)
            .map_err(|e| failed(e, "preparing the XDP program for"))?;
        program
            .set_run_config(config.run_priority, true)
            .map_err(|e| failed(e, "configuring the XDP program for"))?;
        program
            .attach(link.index, mode)
            .map_err(|e| failed(e, "attaching the XDP program to"))?;
        // From here on a failure must detach again: `Xdp` does when dropped.
        let late = |e: io::Error| failed(e, "setting up the maps of the XDP program on");
        let map = |program: &Program, name| program.map_fd(name);
        let made = (|| -> io::Result<(Fds, bpf::Events)> {
            let fds = Fds {
                xsks: map(&program, c"unified_xsks")?,
                ports: map(&program, c"unified_ports")?,
                stats: map(&program, c"unified_stats")?,
                settings: map(&program, c"unified_set")?,
            };
            let settings = Settings {
                event_sample: config.event_sample,
                wake_bytes: config.events_bytes / 4,
                owner_pid: std::process::id(),
                owner_start: start_time(std::process::id()).unwrap_or(0),
            };
            bpf::map_set(fds.settings, 0, &settings.to_bytes())?;
            Ok((fds, bpf::Events::new(program.map_fd(c"unified_events")?)?))
        })();
        let (fds, events) = match made {
            Ok(made) => made,
            Err(e) => {
                let _ = program.detach(link.index, mode);
                return Err(late(e));
            }
        };
        let dispatcher = bpf::attached(link.index).is_some_and(|list| list.dispatcher);
        let mut xdp = Xdp {
            events,
            program,
            link,
            mode,
            dispatcher,
            attached: true,
            ports: Vec::new(),
            fds,
        };
        for port in &config.ports {
            xdp.add_port(*port)?;
        }
        Ok(xdp)
    }

    pub fn link(&self) -> &Link {
        &self.link
    }

    pub fn mode(&self) -> Mode {
        self.mode
    }

    /// Whether libxdp's dispatcher runs it (so that others can be attached beside it).
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

    pub fn counters(&self) -> Result<XdpCounters> {
        bpf::map_sum::<COUNTERS>(self.fds.stats, 0)
            .map(|words| XdpCounters::from_words(&words))
            .map_err(|e| {
                Error::os(
                    &e,
                    format_args!("reading the XDP counters of '{}'", self.link.name),
                )
            })
    }

    /// One event in `sample` packets from now on; 0: none.
    pub fn set_event_sample(&self, sample: u32) -> Result<()> {
        let mut bytes = [0; SETTINGS_LEN];
        let change = |bytes: &mut [u8; SETTINGS_LEN]| -> io::Result<()> {
            bpf::map_get(self.fds.settings, 0, bytes)?;
            let settings = Settings {
                event_sample: sample,
                ..Settings::from_bytes(bytes)
            };
            bpf::map_set(self.fds.settings, 0, &settings.to_bytes())
        };
        change(&mut bytes).map_err(|e| {
            Error::os(
                &e,
                format_args!("changing the event sampling on '{}'", self.link.name),
            )
        })
    }

    /// Readable when many events wait; a few are found by draining.
    pub fn events_fd(&self) -> RawFd {
        self.events.fd()
    }

    /// Hands out up to `max` events.
    pub fn drain_events(&mut self, max: usize, mut each: impl FnMut(&Event)) -> Result<usize> {
        debug_assert_eq!(EVENT_LEN, 56);
        self.events
            .drain(max, &mut |bytes| {
                if let Some(event) = Event::parse(bytes) {
                    each(&event);
                }
            })
            .map_err(|e| Error::os(&e, format_args!("reading events of '{}'", self.link.name)))
    }

    /// Takes the program off the interface. Packets go to the stack from now on.
    pub fn detach(&mut self) -> Result<()> {
        if !std::mem::take(&mut self.attached) {
            return Ok(());
        }
        match self.program.detach(self.link.index, self.mode) {
            Ok(()) => Ok(()),
            // Gone already: with its interface, or taken off by somebody else.
            Err(e)
                if matches!(
                    e.raw_os_error(),
                    Some(libc::ENOENT | libc::ENODEV | libc::ENXIO)
                ) =>
            {
                Ok(())
            }
            Err(e) => Err(Error::os(
                &e,
                format_args!("detaching the XDP program from '{}'", self.link.name),
            )),
        }
    }
}

impl Drop for Xdp {
    fn drop(&mut self) {
        if let Err(error) = self.detach() {
            log::log(Level::Warn, format_args!("{error}"));
        }
    }
}

/// Removes what an earlier process left behind when it was killed; refuses where its owner lives.
/// Looks at this library's own program only.
fn take_over(link: &Link) -> Result<()> {
    let Some(list) = bpf::attached(link.index) else {
        return Ok(());
    };
    for program in list.programs.iter().filter(|p| p.name == PROGRAM) {
        let mut bytes = [0; SETTINGS_LEN];
        let settings = bpf::read_program_map(program.id, c"unified_set", &mut bytes)
            .map(|()| Settings::from_bytes(&bytes))
            .unwrap_or_default();
        let alive =
            settings.owner_pid != 0 && start_time(settings.owner_pid) == Some(settings.owner_start);
        if alive {
            return Err(Error::new(
                libc::EBUSY,
                format!(
                    "interface '{}' is recorded from by process {} already; stop that one first",
                    link.name, settings.owner_pid
                ),
            ));
        }
        log::log(
            Level::Warn,
            format_args!(
                "interface '{}': taking off XDP program {} that process {} left behind",
                link.name, program.id, settings.owner_pid
            ),
        );
        bpf::detach_id(link.index, program.id, list.mode).map_err(|e| {
            Error::os(
                &e,
                format_args!(
                    "taking off the XDP program that was left on '{}'",
                    link.name
                ),
            )
            .hint(format!("ip link set {} xdp off", link.name))
        })?;
    }
    Ok(())
}

/// When a process started, in the kernel's ticks since boot; `None` where there is no such process.
fn start_time(pid: u32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // Behind the command's name, which may contain anything, also ") ".
    let rest = &stat[stat.rfind(')')? + 2..];
    rest.split(' ').nth(19)?.parse().ok()
}
