//! Programs of the documented registration interface, written in C and built with nothing but the flags
//! of unified-uapi.pc, by gcc and clang, with and without optimization.
//!
//! UNIFIED_FULL=1 runs the long tier too: ten million no-ops instead of one.

mod common;

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

fn install(shop: &Workshop) -> PathBuf {
    let prefix = shop.dir.join("prefix");
    shop.make("uapi-install", &[("PREFIX", prefix.display().to_string())]);
    for name in NAMES {
        fs::copy(shop.libdir().join(name), prefix.join("lib").join(name)).unwrap();
    }
    prefix
}

#[test]
fn an_installed_tree_is_all_that_a_build_needs() {
    let shop = Workshop::new("installed");
    let prefix = install(&shop);
    let program = shop.dir.join("program");
    let flags = run(Command::new("pkg-config")
        .args(["--cflags", "--libs", "unified-uapi"])
        .env("PKG_CONFIG_PATH", prefix.join("lib/pkgconfig")));
    let flags = check(&flags, "pkg-config");
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/capi/uapi-registration.c");
    for headers in ["-DRELATIVE_HEADERS", "-DOWN_NVME_COMMAND"] {
        let output = run(Command::new("gcc")
            .current_dir(&shop.dir)
            .args(["-Wall", "-Werror", headers, "-o"])
            .arg(&program)
            .arg(&source)
            .args(flags.split_whitespace())
            .args(["-lxdp", "-lbpf", "-lelf", "-lz", "-pthread"]));
        check(&output, "gcc");
        let file = shop.file("device", 1 << 20);
        mode(&program, "roundtrip", file.to_str().unwrap(), 0);
    }
    assert!(prefix.join("lib/libunified-uapi-preload.so").exists());
    assert!(prefix.join("include/unified_uapi.h").exists());
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

/// Runs a program in a mode; what it printed, and behind that what the library logged.
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

#[test]
fn every_build_of_an_unchanged_program_runs() {
    let shop = Workshop::new("builds");
    let file = shop.file("device", 4 << 20);
    let file = file.to_str().unwrap();
    for (cc, optimization) in BUILDS {
        let program = shop.build("uapi-registration", cc, optimization);
        for (name, logged) in [
            // Two of its writes are where no direct I/O can take them.
            ("roundtrip", " 2 copied (3072 bytes)"),
            ("identify", " 1 commands, 0 of them failed"),
            ("errors", "registering a region"),
            ("clamp", " 1 commands, 0 of them failed"),
            ("status", " of them failed"),
            ("abrupt", " 256 commands, 0 of them failed"),
            ("wild", "SQ ring: its indices are"),
            ("wild", "CQ ring: its indices are"),
            ("careless", "closed the ring without unregistering"),
            ("careless", "unmapped the region without unregistering"),
            ("fork", " 2 commands, 0 of them failed"),
            ("several", " 50 commands, 0 of them failed"),
            ("variants", " 0 commands, 0 of them failed"),
        ] {
            let text = mode(&program, name, file, 0);
            assert!(text.contains(logged), "{name}: {text}");
        }
        mode(&program, "identify", "null:", 0);
        assert_eq!(fs::metadata(file).unwrap().len(), 4 << 20);
    }
}

#[test]
fn headers_work_by_every_path_and_beside_every_definition() {
    let shop = Workshop::new("headers");
    let file = shop.file("device", 1 << 20);
    for (cc, _) in [BUILDS[0], BUILDS[2]] {
        for flags in [
            "-DRELATIVE_HEADERS",
            "-DOWN_NVME_COMMAND",
            "-DSYSTEM_NVME_COMMAND",
            "-DRELATIVE_HEADERS -DOWN_NVME_COMMAND",
            "-DRELATIVE_HEADERS -DSYSTEM_NVME_COMMAND -std=gnu99",
        ] {
            let program = shop.build("uapi-registration", cc, flags);
            mode(&program, "roundtrip", file.to_str().unwrap(), 0);
        }
    }
}

#[test]
fn entries_of_any_content_are_answered_once() {
    let shop = Workshop::new("fuzz");
    let program = shop.build("uapi-registration", "gcc", "-O2");
    let file = shop.file("device", 1000 * 512);
    mode(&program, "fuzz", "null:512000", 200_000);
    mode(&program, "fuzz", file.to_str().unwrap(), 20_000);
    assert_eq!(fs::metadata(&file).unwrap().len(), 1000 * 512);
}

#[test]
fn rings_come_and_go() {
    let shop = Workshop::new("churn");
    let program = shop.build("uapi-registration", "clang", "-O2");
    let text = mode(&program, "churn", "null:", 0);
    assert_eq!(text.matches(" of them failed, ").count(), 4 * 30);
    assert!(!text.contains("no longer served"), "{text}");
}

#[test]
fn no_completion_is_lost_or_doubled() {
    let shop = Workshop::new("noops");
    let program = shop.build("uapi-registration", "gcc", "-O2");
    let count = match std::env::var_os("UNIFIED_FULL") {
        Some(_) => 10_000_000,
        None => 1_000_000,
    };
    print!("{}", mode(&program, "noops", "null:", count));
}

#[test]
fn idle_rings_cost_little_and_are_answered_soon() {
    let (_quiet, shop) = Workshop::quiet("idle");
    let program = shop.build("uapi-registration", "gcc", "-O2");
    let mut seen = String::new();
    // Others share this machine's cores, and delay every thread: twice what a plain sleep is late by is
    // theirs (the server's thread, then the program's). It must come out once.
    for _ in 0..6 {
        let text = mode(&program, "idle", "null:", 300);
        print!("{text}");
        let idle = number_behind(&text, "idle");
        let p99 = number_behind(&text, "p50,");
        let host = number_behind(&text, "host late by");
        if idle <= 4.0 && p99 <= 1500.0 + 2.0 * host {
            return;
        }
        seen += &text;
    }
    panic!("never at most 4 % of a core and 1500 us at p99:\n{seen}");
}

#[test]
fn nothing_is_written_past_the_end() {
    let shop = Workshop::new("fill");
    // Not a multiple of three blocks, nor of one.
    let (blocks, len) = (1000, 1000 * 512 + 100);
    let file = shop.file("device", len);
    let program = shop.build("uapi-registration", "clang", "-O2");
    let text = mode(&program, "fill", file.to_str().unwrap(), blocks);
    assert_eq!(number_behind(&text, "stored"), 333.0);
    assert_eq!(number_behind(&text, "refused"), 4.0);
    let stored = fs::read(&file).unwrap();
    assert_eq!(stored.len() as u64, len, "the file has grown");
    let end = 999 * 512;
    assert!(stored[..end].iter().all(|b| *b != 0));
    assert!(
        stored[end..].iter().all(|b| *b == 0),
        "a write that was refused reached the device in part"
    );
}

#[test]
fn block_devices_and_their_formats() {
    if !is_root("block_devices_and_their_formats") {
        return;
    }
    let shop = Workshop::new("block");
    let file = shop.file("backing", 4 << 20);
    let program = shop.build("uapi-registration", "gcc", "-O2");
    {
        let device = Loop::new(&file, 512);
        for name in [
            "roundtrip",
            "identify",
            "status",
            "abrupt",
            "errors",
            "careless",
        ] {
            mode(&program, name, &device.0, 0);
        }
        mode(&program, "fill", &device.0, (4 << 20) / 512);
    }
    let device = Loop::new(&file, 4096);
    mode(&program, "format", &device.0, 0);
}

/// A file system on a device of 4096 byte blocks, where direct I/O wants that much.
struct Mounted {
    dir: PathBuf,
    _device: Loop,
}

impl Mounted {
    fn new(shop: &Workshop) -> Mounted {
        let device = Loop::new(&shop.file("file-system", 32 << 20), 4096);
        let dir = shop.dir.join("mounted");
        fs::create_dir(&dir).unwrap();
        check(
            &run(Command::new("mkfs.ext4").args(["-q", &device.0])),
            "mkfs",
        );
        check(
            &run(Command::new("mount").arg(&device.0).arg(&dir)),
            "mount",
        );
        Mounted {
            dir,
            _device: device,
        }
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(&self.dir).status();
    }
}

#[test]
fn a_file_has_no_format_that_forbids_512_bytes() {
    if !is_root("a_file_has_no_format_that_forbids_512_bytes") {
        return;
    }
    let shop = Workshop::new("small");
    let program = shop.build("uapi-registration", "gcc", "-O2");
    let mounted = Mounted::new(&shop);
    let file = mounted.dir.join("device");
    fs::write(&file, vec![0; 1000 * 512]).unwrap();
    let text = mode(&program, "fill", file.to_str().unwrap(), 1000);
    assert_eq!(number_behind(&text, "stored"), 333.0);
    assert_eq!(fs::metadata(&file).unwrap().len(), 1000 * 512);
    mode(&program, "roundtrip", file.to_str().unwrap(), 0);
}

/// A few huge pages for the time of a test.
struct HugePages(u64);

impl HugePages {
    const PATH: &str = "/proc/sys/vm/nr_hugepages";

    fn more(count: u64) -> HugePages {
        let before = fs::read_to_string(HugePages::PATH).unwrap();
        let before: u64 = before.trim().parse().unwrap();
        fs::write(HugePages::PATH, (before + count).to_string()).unwrap();
        HugePages(before)
    }
}

impl Drop for HugePages {
    fn drop(&mut self) {
        let _ = fs::write(HugePages::PATH, self.0.to_string());
    }
}

/// With the right to map them twice, and without.
#[test]
fn a_region_of_huge_pages() {
    if !is_root("a_region_of_huge_pages") {
        return;
    }
    let (_quiet, shop) = Workshop::quiet("huge");
    let program = shop.build("uapi-registration", "gcc", "-O2");
    let file = shop.file("device", 1 << 20);
    let file = file.to_str().unwrap();
    let _pages = HugePages::more(8);
    mode(&program, "huge", file, 0);
    let dropped = ["--bounding-set", "-sys_admin,-checkpoint_restore"];
    let output = run(Command::new("setpriv")
        .args(dropped)
        .arg(&program)
        .args(["huge", file])
        .env("UNIFIED_LOG", "warn"));
    check(&output, "huge, with fewer rights");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains("CAP_CHECKPOINT_RESTORE"), "{said}");

    // The UMEM in huge pages too.
    let program = shop.build("uapi-full-stack", "gcc", "-O2");
    let file = shop.file("device", 8 << 20);
    let file = file.to_str().unwrap();
    full_stack(
        |interface| {
            let stack = Stack::start(Command::new(&program).args([interface, file, "0"]));
            stack.until("Huge pages: yes");
            stack
        },
        file,
    );
}

#[test]
fn rights_and_limits() {
    if !is_root("rights_and_limits") {
        return;
    }
    let shop = Workshop::new("rights");
    let file = shop.file("device", 1 << 20);
    fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).unwrap();
    let program = shop.build("uapi-registration", "gcc", "-O2");
    mode(&program, "unprivileged", file.to_str().unwrap(), 0);
    mode(&program, "rlimit", "null:", 0);
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

#[test]
fn programs_built_already_run_with_the_preloaded_object() {
    let shop = Workshop::new("preload");
    let file = shop.file("device", 1 << 20);
    let program = build_plain(&shop, "uapi-registration");
    let start = |preloaded: bool, mode: &str| {
        let mut command = Command::new("timeout");
        command.arg("60");
        if preloaded {
            command
                .arg("env")
                .arg(format!("LD_PRELOAD={}", preload(&shop).display()));
        }
        run(command.arg(&program).args([mode, file.to_str().unwrap()]))
    };
    assert!(
        !start(false, "roundtrip").status.success(),
        "a stock kernel does not serve it"
    );
    for mode in ["roundtrip", "errors", "clamp", "variants", "fork", "abrupt"] {
        check(&start(true, mode), mode);
    }
    if is_root("programs_built_already_run_with_the_preloaded_object (rlimit)") {
        check(&start(true, "rlimit"), "rlimit");
    }
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

#[test]
fn the_full_stack_of_an_unchanged_program() {
    if !is_root("the_full_stack_of_an_unchanged_program") {
        return;
    }
    let shop = Workshop::new("full-stack");
    for (cc, optimization) in BUILDS {
        let program = shop.build("uapi-full-stack", cc, optimization);
        let file = shop.file("device", 8 << 20);
        let file = file.to_str().unwrap();
        full_stack(stack_command(&program, file, ""), file);
    }
}

#[test]
fn the_full_stack_on_a_block_device() {
    if !is_root("the_full_stack_on_a_block_device") {
        return;
    }
    let shop = Workshop::new("stack-block");
    let program = shop.build("uapi-full-stack", "gcc", "-O2");
    let file = shop.file("backing", 8 << 20);
    let device = Loop::new(&file, 512);
    full_stack(stack_command(&program, &device.0, ""), &device.0);
}

#[test]
fn the_full_stack_of_a_program_built_already() {
    if !is_root("the_full_stack_of_a_program_built_already") {
        return;
    }
    let shop = Workshop::new("stack-preload");
    let program = build_plain(&shop, "uapi-full-stack");
    let file = shop.file("device", 8 << 20);
    let file = file.to_str().unwrap();
    let object = preload(&shop);
    full_stack(
        |interface| {
            Stack::start(
                Command::new(&program)
                    .args([interface, file, "0"])
                    .env("LD_PRELOAD", &object),
            )
        },
        file,
    );
}

/// Frames that are refilled while they are written, and addresses that are none: nothing breaks but the
/// program's own data.
#[test]
fn wild_refills_break_nothing() {
    if !is_root("wild_refills_break_nothing") {
        return;
    }
    let shop = Workshop::new("stack-wild");
    let program = shop.build("uapi-full-stack", "gcc", "-O2");
    let file = shop.file("device", 8 << 20);
    let start = stack_command(&program, file.to_str().unwrap(), "wild");
    let veth = Veth::new();
    let stack = start(&veth.host);
    stack.until("System ready");
    veth.send(9999, payloads(), 4000).join().unwrap();
    let (report, copied) = stack.finish(COUNT.into());
    assert!(report.rx > 0 && report.stored > 0, "{report:?}");
    assert_eq!((report.errors, copied), (0, 0), "{report:?}");
    std::io::stdout().flush().unwrap();
}
