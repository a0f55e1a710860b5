//! A network of its own for a test: a veth pair whose far end is in a network namespace, taken down
//! again when the test ends, also by a panic.
#![allow(dead_code)]

pub mod packet;
pub mod part;
pub mod recording;
pub mod sets;
pub mod storing;

use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddrV4, UdpSocket};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use unified::context::Context;
use unified::stats::Statistics;

static NUMBER: AtomicU32 = AtomicU32::new(0);

/// Whether this test can run: it needs root. If CI requires it, a missing root is a failure.
pub fn is_root(test: &str) -> bool {
    if nix::unistd::Uid::effective().is_root() {
        return true;
    }
    assert!(
        std::env::var_os("UNIFIED_REQUIRE_ROOT").is_none(),
        "{test} needs root, and skipping is not allowed here"
    );
    skip(test, "it needs root");
    false
}

/// Says that a test did not run, and why, also to whoever counts.
pub fn skip(test: &str, why: &str) {
    eprintln!("{test}: SKIPPED, {why}");
    if let Some(path) = std::env::var_os("UNIFIED_SKIPS") {
        let mut file = File::options()
            .append(true)
            .create(true)
            .open(path)
            .unwrap();
        // In one piece: other tests write here too.
        file.write_all(format!("{test}: {why}\n").as_bytes())
            .unwrap();
    }
}

/// The library's log, for failed tests.
pub fn log_to_stderr() {
    unified::log::set_callback(Some(Box::new(|level, line| {
        if level != unified::log::Level::Debug && !line.contains("skipping unrecognized") {
            eprintln!("{level:?}: {line}");
        }
    })));
}

pub fn ip(args: &str) {
    let output = Command::new("ip")
        .args(args.split(' '))
        .output()
        .expect("iproute2 is installed");
    assert!(
        output.status.success(),
        "ip {args}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
}

pub struct Veth {
    pub host: String,
    pub peer: String,
    pub ns: String,
    pub host_addr: Ipv4Addr,
}

impl Veth {
    pub fn new() -> Veth {
        Veth::with_queues(1)
    }

    /// Both ends with so many receive and transmit queues.
    pub fn with_queues(queues: u32) -> Veth {
        let n = NUMBER.fetch_add(1, Ordering::Relaxed);
        let pid = std::process::id();
        let id = format!("{:x}{n:x}", pid & 0xffff);
        let (a, b) = ((pid >> 8) as u8, pid as u8);
        let veth = Veth {
            host: format!("uh{id}"),
            peer: format!("up{id}"),
            ns: format!("un{id}"),
            host_addr: Ipv4Addr::new(10, a, b, (n * 4 + 1) as u8),
        };
        let far = Ipv4Addr::new(10, a, b, (n * 4 + 2) as u8);
        let (h, p, ns) = (&veth.host, &veth.peer, &veth.ns);
        ip(&format!("netns add {ns}"));
        let many = format!("numrxqueues {queues} numtxqueues {queues}");
        ip(&format!(
            "link add {h} {many} type veth peer name {p} {many} netns {ns}"
        ));
        ip(&format!("addr add {}/30 dev {h}", veth.host_addr));
        ip(&format!("-n {ns} addr add {far}/30 dev {p}"));
        ip(&format!("link set {h} up"));
        ip(&format!("-n {ns} link set {p} up"));
        ip(&format!("-n {ns} link set lo up"));
        // No neighbour discovery in between: the first packet must not wait for it.
        let mac = fs::read_to_string(format!("/sys/class/net/{h}/address")).unwrap();
        ip(&format!(
            "-n {ns} neigh replace {} lladdr {} dev {p} nud permanent",
            veth.host_addr,
            mac.trim()
        ));
        veth
    }

    /// Runs a closure in a thread that lives in the far namespace.
    pub fn far<T: Send + 'static>(
        &self,
        act: impl FnOnce() -> T + Send + 'static,
    ) -> JoinHandle<T> {
        let ns = File::open(format!("/run/netns/{}", self.ns)).unwrap();
        std::thread::spawn(move || {
            nix::sched::setns(ns, nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
            act()
        })
    }

    /// Turns a feature of the far end off, as `ethtool -K` calls it.
    pub fn far_off(&self, feature: &str) {
        let ethtool = ["ethtool", "-K", &self.peer, feature, "off"];
        run("ip", &[&["netns", "exec", &self.ns], &ethtool[..]].concat());
    }

    /// Sends payloads from the far end to a port here, at most `per_second` a second.
    pub fn send(&self, port: u16, payloads: Vec<Vec<u8>>, per_second: u32) -> JoinHandle<()> {
        let to = SocketAddrV4::new(self.host_addr, port);
        self.far(move || {
            let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
            let start = std::time::Instant::now();
            for (i, payload) in payloads.iter().enumerate() {
                socket.send_to(payload, to).unwrap();
                let due = Duration::from_secs_f64(i as f64 / f64::from(per_second));
                if let Some(wait) = due.checked_sub(start.elapsed()) {
                    std::thread::sleep(wait);
                }
            }
        })
    }
}

impl Drop for Veth {
    fn drop(&mut self) {
        let _ = Command::new("ip")
            .args(["link", "del", &self.host])
            .output();
        let _ = Command::new("ip").args(["netns", "del", &self.ns]).output();
    }
}

/// A file that is removed again.
pub struct Scratch(pub PathBuf);

impl Scratch {
    pub fn new(dir: &str, name: &str) -> Scratch {
        let n = NUMBER.fetch_add(1, Ordering::Relaxed);
        Scratch(PathBuf::from(dir).join(format!("unified-{name}-{}-{n}", std::process::id())))
    }

    pub fn path(&self) -> &str {
        self.0.to_str().unwrap()
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

/// A payload that no other one equals, from its number and length.
pub fn payload(number: u32, len: usize) -> Vec<u8> {
    let mut state = u64::from(number).wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    (0..len)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            // Never zero, so that padding and payload cannot be mistaken for each other.
            (state >> 32) as u8 | 1
        })
        .collect()
}

/// The sums that must hold at a quiet moment.
pub fn check_sums(stats: &Statistics, frames: u32) {
    assert_eq!(
        stats.xdp.seen,
        stats.xdp.passed + stats.xdp.redirected,
        "{stats:#?}"
    );
    assert_eq!(stats.redirect_errors, 0, "{stats:#?}");
    assert_eq!(
        stats.xdp.redirected,
        stats.xsk.rx_dropped + stats.xsk.rx_ring_full + stats.received + stats.rx_pending,
        "{stats:#?}"
    );
    let f = stats.frames;
    assert_eq!(
        stats.received,
        stats.stored + stats.failed + stats.released + f.packets_held + f.packets_in_flight,
        "{stats:#?}"
    );
    assert_eq!(stats.submitted, stats.completed, "{stats:#?}");
    let timed = (stats.command_latency.count(), stats.packet_latency.count());
    assert_eq!(timed.0, stats.completed, "{stats:#?}");
    // A frame that the caller keeps was written or not.
    let ended = stats.stored + stats.failed;
    assert!(
        (ended..=ended + f.packets_held).contains(&timed.1),
        "{stats:#?}"
    );
    assert_eq!(
        f.free + f.filled + f.held + f.in_flight,
        u64::from(frames),
        "{stats:#?}"
    );
}

/// The same for each lane of a context and for all of them together. Gives the statistics of the lanes.
pub fn check_lanes(context: &Context) -> Vec<Statistics> {
    let (total, lanes) = context.all_statistics().unwrap();
    check_sums(&total, context.info().frame_count);
    let mut frames = total.frames_reserve;
    let mut sum = Statistics::default();
    for lane in &lanes {
        let f = lane.frames;
        let own = f.free + f.filled + f.held + f.in_flight;
        check_sums(lane, own as u32);
        frames += own;
        sum += lane;
    }
    assert_eq!(frames, u64::from(context.info().frame_count), "{lanes:#?}");
    assert_eq!(
        (sum.received, sum.stored, sum.failed, sum.released),
        (total.received, total.stored, total.failed, total.released)
    );
    assert_eq!(sum.completed, total.completed);
    lanes
}

/// The first bytes of a device as they stand there: the page cache knows nothing of passthrough.
pub fn read_direct(node: impl AsRef<Path>, len: usize) -> Vec<u8> {
    let mut file = File::options()
        .read(true)
        .custom_flags(libc::O_DIRECT)
        .open(node)
        .unwrap();
    let mut buffer = vec![0; len + 4096];
    let base = buffer.as_ptr().align_offset(4096);
    file.read_exact(&mut buffer[base..base + len]).unwrap();
    buffer[base..base + len].to_vec()
}

/// Whether the long variants of tests are to run.
pub fn is_full_tier() -> bool {
    std::env::var("UNIFIED_TIER").is_ok_and(|tier| tier == "full")
}

/// A small ext4 file system of its own on a loop device, to be filled up. Needs root.
pub struct SmallDisk {
    pub dir: PathBuf,
    image: Scratch,
}

impl SmallDisk {
    pub fn new(test: &str, bytes: u64) -> Option<SmallDisk> {
        if !is_root(test) {
            return None;
        }
        let image = Scratch::new(env!("CARGO_TARGET_TMPDIR"), test);
        let file = File::create(&image.0).unwrap();
        file.set_len(bytes).unwrap();
        run(
            "mkfs.ext4",
            &["-q", "-F", "-O", "^has_journal", "-m", "0", image.path()],
        );
        let disk = SmallDisk {
            dir: image.0.with_extension("mount"),
            image,
        };
        fs::create_dir(&disk.dir).unwrap();
        run(
            "mount",
            &["-o", "loop", disk.image.path(), disk.dir.to_str().unwrap()],
        );
        Some(disk)
    }

    /// Takes all the room that is left.
    pub fn fill(&self) {
        let mut file = File::create(self.dir.join("filler")).unwrap();
        let chunk = [7; 4096];
        while file.write_all(&chunk).is_ok() {}
        let _ = file.sync_all();
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.dir).output();
        let _ = fs::remove_dir(&self.dir);
    }
}

pub fn run(program: &str, args: &[&str]) {
    let output = Command::new(program).args(args).output().unwrap();
    assert!(
        output.status.success(),
        "{program} {args:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
}
