//! Programs of earlier owners: whose a program is, and detaching one whose owner has ended.

#![forbid(unsafe_code)]

use std::ffi::CString;
use std::fs;
use std::io;
use std::thread;
use std::time::{Duration, Instant};

use crate::error::{Error, Result};
use crate::log::{self, Level};
use crate::net::link::Link;
use crate::net::owner::{Owner, owner_of};
use crate::net::wire::{SETTINGS_LEN, Settings};
use crate::sys::bpf::{self, Mode, PROGRAM};

/// A program that could not be detached, most likely because no descriptor was free. Dropping this tries again by the
/// program's id.
#[derive(Default)]
pub(super) struct Leftover(pub(super) Option<(Link, u32, Mode)>);

impl Drop for Leftover {
    fn drop(&mut self) {
        let Some((link, id, mode)) = self.0.take() else {
            return;
        };
        let there = |list: bpf::AttachedList| list.programs.iter().any(|p| p.id == id);
        if !bpf::attached(link.index).is_some_and(there) {
            return;
        }
        if let Err(e) = bpf::detach_id(link.index, id, mode) {
            let error = Error::os(
                &e,
                format_args!("detaching the XDP program from '{}'", link.name),
            );
            log::log(Level::Warn, format_args!("{error}"));
        }
    }
}

/// The directory in which libxdp pins a dispatcher's programs, with a directory for each interface and dispatcher.
const PINS: &str = "/sys/fs/bpf/xdp";

/// Removes the pins of the dispatcher that ran a program on an interface that no longer exists. libxdp finds no
/// dispatcher there, and leaves them.
pub(super) fn remove_pins(ifindex: u32, program_id: u32) {
    let Ok(directories) = fs::read_dir(PINS) else {
        return;
    };
    let mine = format!("dispatch-{ifindex}-");
    for directory in directories.flatten().map(|entry| entry.path()) {
        let named = directory
            .file_name()
            .is_some_and(|name| name.to_string_lossy().starts_with(&mine));
        // Another interface may have the same index by now, or in another network namespace.
        let runs_it = || {
            fs::read_dir(&directory).is_ok_and(|pins| {
                pins.flatten().any(|pin| {
                    let path = CString::new(pin.path().into_os_string().into_encoded_bytes());
                    path.is_ok_and(|path| {
                        bpf::pinned_program(&path).is_ok_and(|id| id == program_id)
                    })
                })
            })
        };
        if named && runs_it() {
            let _ = fs::remove_dir_all(&directory);
        }
    }
}

/// The ids of this library's programs that a process has loaded, attached or not. Needs CAP_SYS_ADMIN.
pub fn programs_of(pid: u32) -> io::Result<Vec<u32>> {
    let mut ids = bpf::program_ids()?;
    // A program that ended meanwhile, or is somebody else's, has no such settings.
    ids.retain(|id| settings_of(*id).is_ok_and(|settings| settings.owner_pid == pid));
    Ok(ids)
}

/// The settings of a loaded program of this library. `ENOENT`: there is no such program; `ENODATA`: it has no such
/// settings, being another version's or somebody else's.
fn settings_of(program_id: u32) -> io::Result<Settings> {
    let mut bytes = [0; SETTINGS_LEN];
    bpf::read_program_map(program_id, c"unified_set", &mut bytes)?;
    Ok(Settings::from_bytes(&bytes))
}

/// A program may be attached without an owner's name for this long: its owner has just attached it.
const UNSIGNED_TIME: Duration = Duration::from_secs(1);

/// The owner of an attached program; `None` if the program is gone by now.
fn owner(link: &Link, program_id: u32) -> Result<Option<(Owner, Settings)>> {
    let until = Instant::now() + UNSIGNED_TIME;
    let found = loop {
        match settings_of(program_id) {
            Ok(settings) if settings == Settings::default() && Instant::now() < until => {
                thread::sleep(Duration::from_millis(5));
            }
            Ok(settings) => break owner_of(&settings).map(|owner| Some((owner, settings))),
            Err(e) if e.raw_os_error() == Some(libc::ENOENT) => break Ok(None),
            Err(e) => break Err(e),
        }
    };
    found.map_err(|e| {
        Error::new(
            libc::EBUSY,
            format!(
                "interface '{0}' has XDP program {program_id}, and it is not known whether its owner is alive ({e}); stop the owner, or if there is none: ip link set {0} xdp off",
                link.name
            ),
        )
    })
}

/// Detaches the program of a process that was killed. Refuses while its owner is alive. Touches this library's own
/// program only.
pub(super) fn take_over(link: &Link) -> Result<()> {
    let Some(list) = bpf::attached(link.index) else {
        return Ok(());
    };
    for program in list.programs.iter().filter(|p| p.name == PROGRAM) {
        let Some((owner, settings)) = owner(link, program.id)? else {
            continue;
        };
        match owner {
            Owner::Ended => log::log(
                Level::Warn,
                format_args!(
                    "interface '{}': detaching XDP program {} of process {}, which has ended",
                    link.name, program.id, settings.owner_pid
                ),
            ),
            Owner::Alive(who) => {
                return Err(Error::new(
                    libc::EBUSY,
                    format!(
                        "interface '{}' is already in use by recorder {who}, whose XDP program serves all \
                         queues: stop that one first, or have it hand over its map of sockets (xsk_map)",
                        link.name
                    ),
                ));
            }
            Owner::Unknown => {
                return Err(Error::new(
                    libc::EBUSY,
                    format!(
                        "interface '{}' has XDP program {} of process {} of another PID namespace, and it is not known whether that process is alive; stop it, or if it has ended: ip link set {} xdp off",
                        link.name, program.id, settings.owner_pid, link.name
                    ),
                ));
            }
        }
        bpf::detach_id(link.index, program.id, list.mode).map_err(|e| {
            Error::os(
                &e,
                format_args!("detaching the XDP program that was left on '{}'", link.name),
            )
            .hint(format!("ip link set {} xdp off", link.name))
        })?;
    }
    Ok(())
}
