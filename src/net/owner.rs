//! Finds the process that owns an attached XDP program, and whether that process is alive.
//!
//! A process number is valid only within one PID namespace, and a start time only within one time namespace. So the
//! owner holds an abstract UNIX socket whose name is in the program's settings. The kernel releases that name when the
//! process ends, however it ends, and every process in the interface's network namespace can check for it.

#![forbid(unsafe_code)]

use std::fs;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};

use super::wire::Settings;
use crate::log::{self, Level};

/// Held by a process while it owns an XDP program.
#[derive(Debug)]
pub struct OwnerSocket {
    /// 0: there is no socket.
    token: u64,
    _socket: Option<UnixDatagram>,
}

impl OwnerSocket {
    pub fn new() -> OwnerSocket {
        // Each hasher of the standard library has random keys, so nobody can guess the name before it is bound.
        let token = RandomState::new().build_hasher().finish() | 1;
        match address(token).and_then(|name| UnixDatagram::bind_addr(&name)) {
            Ok(socket) => OwnerSocket {
                token,
                _socket: Some(socket),
            },
            Err(e) => {
                log::log(
                    Level::Warn,
                    format_args!(
                        "opening a UNIX socket that identifies the owner of this XDP program: {e}; other processes use the process number instead, which is not valid in another PID namespace"
                    ),
                );
                OwnerSocket {
                    token: 0,
                    _socket: None,
                }
            }
        }
    }

    /// `settings`, as a program of this process has them.
    pub fn sign(&self, settings: Settings) -> Settings {
        Settings {
            owner_pid: std::process::id(),
            owner_start: start_time("self").unwrap_or(0),
            owner_pid_namespace: pid_namespace().unwrap_or(0),
            owner_token: self.token,
            ..settings
        }
    }
}

/// What is known about a program's owner.
#[derive(Debug, PartialEq, Eq)]
pub enum Owner {
    /// It is alive. Its name, for messages.
    Alive(String),
    Ended,
    /// It holds no socket, and its process number is not valid here.
    Unknown,
}

/// Returns whether the process that these settings name is alive. An error if that cannot be determined.
pub fn owner_of(settings: &Settings) -> io::Result<Owner> {
    let pid = settings.owner_pid;
    if pid == 0 {
        return Ok(Owner::Ended);
    }
    let same_namespace = pid_namespace().is_some_and(|own| own == settings.owner_pid_namespace);
    let running = same_namespace && is_running(pid, settings.owner_start);
    if settings.owner_token != 0 && is_held(settings.owner_token)? {
        return Ok(Owner::Alive(match (same_namespace, running) {
            (true, true) => format!("process {pid}"),
            // A process that inherited the socket keeps it open.
            (true, false) if start_time(&pid.to_string()).is_none() => {
                format!("a process that process {pid} forked before it ended")
            }
            // In another time namespace the same moment has another value.
            (true, false) => format!("process {pid}"),
            (false, _) => format!("process {pid} of another PID namespace"),
        }));
    }
    Ok(match running {
        // Without a socket; or the interface was moved away from its network namespace.
        true => Owner::Alive(format!("process {pid}")),
        false if settings.owner_token == 0 && !same_namespace => Owner::Unknown,
        false => Owner::Ended,
    })
}

fn address(token: u64) -> io::Result<SocketAddr> {
    SocketAddr::from_abstract_name(format!("unified-xdp-{token:016x}"))
}

/// Whether some process holds the socket of that name, in this network namespace.
fn is_held(token: u64) -> io::Result<bool> {
    match UnixDatagram::unbound()?.connect_addr(&address(token)?) {
        Ok(()) => Ok(true),
        Err(e) if e.kind() == io::ErrorKind::ConnectionRefused => Ok(false),
        Err(e) => Err(e),
    }
}

/// The number of this process's PID namespace.
fn pid_namespace() -> Option<u32> {
    let found = fs::metadata("/proc/self/ns/pid").ok()?;
    found.ino().try_into().ok()
}

fn is_running(pid: u32, start: u64) -> bool {
    start_time(&pid.to_string()) == Some(start)
}

/// When a process started, in kernel ticks since boot; `None` if there is no process with this number ("self": this
/// one), or if it is a zombie.
fn start_time(pid: &str) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // After the command's name, which may contain anything, also ") ".
    let rest = &stat[stat.rfind(')')? + 2..];
    let fields: Vec<&str> = rest.split(' ').collect();
    // A main thread that ended alone is a zombie too, while the others run.
    let threads: u32 = fields.get(17)?.parse().ok()?;
    if matches!(fields[0], "Z" | "X") && threads <= 1 {
        return None;
    }
    fields.get(19)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_owner_lives_as_long_as_its_socket() {
        let socket = OwnerSocket::new();
        let settings = socket.sign(Settings::default());
        let own = format!("process {}", std::process::id());
        assert_eq!(owner_of(&settings).unwrap(), Owner::Alive(own));
        // As in another PID namespace: the number belongs to no process, or to another one.
        let elsewhere = Settings {
            owner_pid_namespace: settings.owner_pid_namespace - 1,
            ..settings
        };
        let Owner::Alive(who) = owner_of(&elsewhere).unwrap() else {
            panic!("its socket is held");
        };
        assert!(who.ends_with("of another PID namespace"), "{who}");
        // As in another time namespace.
        let later = Settings {
            owner_start: settings.owner_start + 8_640_000,
            ..settings
        };
        assert!(matches!(owner_of(&later).unwrap(), Owner::Alive(_)));
        drop(socket);
        assert_eq!(owner_of(&elsewhere).unwrap(), Owner::Ended);
        assert_eq!(owner_of(&later).unwrap(), Owner::Ended);
    }

    #[test]
    fn without_a_socket_a_number_says_nothing_in_another_namespace() {
        let settings = Settings {
            owner_token: 0,
            ..OwnerSocket::new().sign(Settings::default())
        };
        assert!(matches!(owner_of(&settings).unwrap(), Owner::Alive(_)));
        let elsewhere = Settings {
            owner_pid_namespace: settings.owner_pid_namespace - 1,
            ..settings
        };
        assert_eq!(owner_of(&elsewhere).unwrap(), Owner::Unknown);
        let nobody = Settings {
            owner_pid: 0,
            ..elsewhere
        };
        assert_eq!(owner_of(&nobody).unwrap(), Owner::Ended);
    }
}
