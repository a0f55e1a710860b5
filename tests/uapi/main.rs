//! Programs of the documented registration interface, written in C and built with nothing but the flags
//! of unified-uapi.pc, by gcc and clang, with and without optimization.
//!
//! UNIFIED_FULL=1 runs the long tier too: ten million no-ops instead of one.

#[path = "../common/mod.rs"]
mod common;

mod builds;
mod devices;
mod full_stack;
mod rings;

use std::collections::HashMap;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::sync::{PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::{Duration, Instant};

use common::{Veth, is_root, payload};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

const BUILDS: [(&str, &str); 4] = [
    ("gcc", "-O0"),
    ("gcc", "-O2"),
    ("clang", "-O0"),
    ("clang", "-O2"),
];

/// Held by the one test that measures time, shared by the others.
static QUIET: RwLock<()> = RwLock::new(());

const NAMES: [&str; 2] = ["libunified.so", "libunified.so.0"];

/// A directory of a test's own, with the programs that it builds.
struct Workshop {
    dir: PathBuf,
    _noise: Option<RwLockReadGuard<'static, ()>>,
}

impl Workshop {
    fn new(name: &str) -> Workshop {
        let dir = Path::new(env!("CARGO_TARGET_TMPDIR"))
            .join(format!("uapi-{name}-{}", std::process::id()));
        fs::create_dir_all(&dir).unwrap();
        let noise = QUIET.read().unwrap_or_else(PoisonError::into_inner);
        Workshop {
            dir,
            _noise: Some(noise),
        }
    }

    /// While it lives no other test of this file runs.
    fn quiet(name: &str) -> (RwLockWriteGuard<'static, ()>, Workshop) {
        let mut shop = Workshop::new(name);
        shop._noise = None;
        let quiet = QUIET.write().unwrap_or_else(PoisonError::into_inner);
        (quiet, shop)
    }

    /// The library that cargo has built with this test, under the names that linkers and loaders want.
    fn libdir(&self) -> PathBuf {
        let built = std::env::current_exe().unwrap();
        let built = built.parent().unwrap().join("libunified.so");
        assert!(built.exists(), "there is no {built:?}");
        let dir = self.dir.join("lib");
        if !dir.exists() {
            fs::create_dir(&dir).unwrap();
            for name in NAMES {
                std::os::unix::fs::symlink(&built, dir.join(name)).unwrap();
            }
        }
        dir
    }

    fn make(&self, target: &str, variables: &[(&str, String)]) {
        let mut command = Command::new("make");
        command
            .current_dir(env!("CARGO_MANIFEST_DIR"))
            .args(["-s", "-f", "selftest.mk", target])
            .arg(format!("UAPI_LIBDIR={}", self.libdir().display()))
            .arg(format!("UAPI_BUILD={}", self.dir.display()));
        for (name, value) in variables {
            command.arg(format!("{name}={value}"));
        }
        check(&run(&mut command), target);
    }

    fn build(&self, program: &str, cc: &str, flags: &str) -> PathBuf {
        let out = self.dir.join(format!(
            "{program}{}",
            format!("-{cc}{flags}").replace(' ', "")
        ));
        self.make(
            "selftest",
            &[
                ("SRC", format!("tests/capi/{program}.c")),
                ("OUT", out.display().to_string()),
                ("CC", cc.into()),
                ("CFLAGS", format!("-Wall -Wextra -Werror {flags}")),
            ],
        );
        out
    }

    /// A file of `len` bytes for a program to write to.
    fn file(&self, name: &str, len: u64) -> PathBuf {
        let path = self.dir.join(name);
        fs::File::create(&path).unwrap().set_len(len).unwrap();
        path
    }
}

impl Drop for Workshop {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.dir);
    }
}

/// A block device over a file.
struct Loop(String);

impl Loop {
    fn new(file: &Path, block: u32) -> Loop {
        let output = run(Command::new("losetup")
            .args(["--find", "--show", "--sector-size", &block.to_string()])
            .arg(file));
        check(&output, "losetup");
        Loop(String::from_utf8(output.stdout).unwrap().trim().to_string())
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        let _ = Command::new("losetup").args(["-d", &self.0]).status();
    }
}

fn run(command: &mut Command) -> Output {
    // Cargo's search path has other builds of the library in it than this test's.
    command
        .env_remove("LD_LIBRARY_PATH")
        .output()
        .unwrap_or_else(|e| panic!("{command:?}: {e}"))
}

fn check(output: &Output, what: &str) -> String {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert!(
        output.status.success(),
        "{what}: {}\n{}{}",
        output.status,
        text(&output.stdout),
        text(&output.stderr)
    );
    text(&output.stdout)
}

/// Runs a program in a mode; its output, followed by the library's log.
fn mode(program: &Path, mode: &str, device: &str, number: u64) -> String {
    let output = run(Command::new("timeout")
        .arg("300")
        .arg(program)
        .args([mode, device, &number.to_string()])
        .env("UNIFIED_LOG", "info"));
    let text = check(&output, mode);
    // An exit with 0 is not believed by itself.
    assert!(text.contains(&format!("{mode}: ok")), "{mode}: {text}");
    text + &String::from_utf8_lossy(&output.stderr)
}

fn number_behind(text: &str, word: &str) -> f64 {
    let at = text
        .find(word)
        .unwrap_or_else(|| panic!("no '{word}' in {text}"));
    let rest = text[at + word.len()..].trim_start();
    let end = rest
        .find(|c: char| !c.is_ascii_digit() && c != '.')
        .unwrap_or(rest.len());
    rest[..end].parse().unwrap()
}

/// Builds a program with the headers only: as one that knows nothing of this library.
fn build_plain(shop: &Workshop, program: &str) -> PathBuf {
    let out = shop.dir.join(format!("{program}-plain"));
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let include = root.join("include");
    let output = run(Command::new("gcc")
        .args(["-O2", "-o"])
        .arg(&out)
        .arg(root.join(format!("tests/capi/{program}.c")))
        .arg("-I")
        .arg(include.join("compat/tools/testing/selftests/unified"))
        .arg("-I")
        .arg(include)
        .args(["-lxdp", "-lbpf", "-lelf", "-lz", "-pthread"]));
    check(&output, program);
    shop.make("preload", &[]);
    out
}

fn preload(shop: &Workshop) -> PathBuf {
    shop.dir.join("libunified-uapi-preload.so")
}

/// A full-stack program that runs.
struct Stack {
    child: Child,
    lines: Receiver<String>,
}

#[derive(Debug, Default, Clone, Copy)]
struct Report {
    rx: u64,
    stored: u64,
    bytes: u64,
    errors: u64,
    full: u64,
}

impl Report {
    fn of(line: &str) -> Report {
        let field = |name: &str| number_behind(line, name) as u64;
        Report {
            rx: field("RX="),
            stored: field("Stored="),
            bytes: field("Bytes="),
            errors: field("Errors="),
            full: field("Full="),
        }
    }
}

impl Stack {
    fn start(command: &mut Command) -> Stack {
        // What the run script of such programs exports: BTF, a constant they forget, asm/types.h.
        let triplet = format!("{}-linux-gnu", std::env::consts::ARCH);
        let mut child = command
            .env(
                "CCC_OVERRIDE_OPTIONS",
                format!("# +-g +-DIPPROTO_UDP=17 +-I/usr/include/{triplet}"),
            )
            .env("UNIFIED_LOG", "info")
            .env_remove("LD_LIBRARY_PATH")
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let (sender, lines) = channel();
        let out = BufReader::new(child.stdout.take().unwrap());
        let err = BufReader::new(child.stderr.take().unwrap());
        let other = sender.clone();
        std::thread::spawn(move || {
            out.lines()
                .map_while(Result::ok)
                .all(|l| sender.send(l).is_ok())
        });
        std::thread::spawn(move || {
            err.lines()
                .map_while(Result::ok)
                .all(|l| other.send(l).is_ok())
        });
        Stack { child, lines }
    }

    /// The next line that contains `word`.
    fn until(&self, word: &str) -> String {
        let end = Instant::now() + Duration::from_secs(30);
        let mut before = String::new();
        loop {
            let left = end.saturating_duration_since(Instant::now());
            match self.lines.recv_timeout(left) {
                Ok(line) if line.contains(word) => return line,
                Ok(line) => before = before + "\n" + &line,
                Err(RecvTimeoutError::Timeout) => panic!("no '{word}' in 30 s:{before}"),
                Err(RecvTimeoutError::Disconnected) => panic!("ended without '{word}':{before}"),
            }
        }
    }

    /// Waits until `count` packets are accounted for, then ends it as a user would: its last report and
    /// the number of commands that the library copied.
    fn finish(mut self, count: u64) -> (Report, u64) {
        let end = Instant::now() + Duration::from_secs(20);
        loop {
            let now = Report::of(&self.until("Stats:"));
            let done = now.rx >= count && now.stored + now.errors + now.full >= now.rx;
            if done || Instant::now() > end {
                break;
            }
        }
        kill(Pid::from_raw(self.child.id() as i32), Signal::SIGINT).unwrap();
        let report = Report::of(&self.until("Final:"));
        let served = self.until(" copied (");
        self.until("Cleanup complete");
        let status = self.child.wait().unwrap();
        assert!(status.success(), "{status}");
        let copied = served.split(" copied").next().unwrap();
        (report, copied.rsplit(' ').next().unwrap().parse().unwrap())
    }
}

impl Drop for Stack {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

const COUNT: u32 = 2000;

fn payloads() -> Vec<Vec<u8>> {
    (0..COUNT)
        .map(|i| payload(i, 900 + (i as usize * 37) % 573))
        .collect()
}

/// Payloads that stand whole on some block, each once.
fn scan(path: &str, payloads: &[Vec<u8>]) -> u64 {
    let known: HashMap<&[u8], &[u8]> = payloads.iter().map(|p| (&p[..16], &p[..])).collect();
    let stored = fs::read(path).unwrap();
    let mut found = std::collections::HashSet::new();
    for at in (0..stored.len() - 16).step_by(512) {
        if let Some(payload) = known.get(&stored[at..at + 16]) {
            assert!(
                stored[at..].starts_with(payload),
                "a payload at {at} is damaged"
            );
            assert!(found.insert(&payload[..16]), "a payload at {at} is doubled");
        }
    }
    found.len() as u64
}

/// Sends packets through a program and finds them on the device.
fn full_stack(start: impl Fn(&str) -> Stack, device: &str) {
    let veth = Veth::new();
    let payloads = payloads();
    let stack = start(&veth.host);
    stack.until("System ready");
    veth.send(9999, payloads.clone(), 4000).join().unwrap();
    let (report, copied) = stack.finish(COUNT.into());
    assert_eq!(report.rx, u64::from(COUNT), "{report:?}");
    assert_eq!(report.errors, 0, "{report:?}");
    assert_eq!(report.stored + report.full, report.rx, "{report:?}");
    assert!(report.stored > u64::from(COUNT) / 2, "{report:?}");
    assert!(report.bytes >= report.stored * 1024, "{report:?}");
    // The headroom that the library chose puts every payload on a block.
    assert_eq!(copied, 0, "{report:?}");
    assert_eq!(scan(device, &payloads), report.stored, "{report:?}");
    assert!(unified::sys::bpf::attached(0).is_none());
}

fn stack_command(program: &Path, device: &str, quirk: &str) -> impl Fn(&str) -> Stack {
    let (program, device, quirk) = (program.to_path_buf(), device.to_string(), quirk.to_string());
    move |interface| Stack::start(Command::new(&program).args([interface, &device, "0", &quirk]))
}
