//! RLIMIT_MEMLOCK as the kernel gives it to everybody: what fits is opened, again and again, and what does not is
//! refused at once, in bytes.

mod common;

use std::fs::File;
use std::process::Command;
use std::time::{Duration, Instant};

use common::{Scratch, Veth, is_root, payload};
use unified::config::{Config, Drive};
use unified::context::Context;
use unified::lane::{Completion, Ready, Transfer};

const LIMIT: u64 = 8 << 20;
const CHILD: &str = "UNIFIED_TEST_LOCKED";

/// Runs one of the tests below as a user of its own, for locked memory is counted by user: without CAP_IPC_LOCK, and
/// with the capabilities named.
fn as_user(test: &str, words: &str, caps: &[&str]) {
    let program = Scratch::new("/dev/shm", "locked");
    // By another process: a descriptor that is open for writing here may be inherited by a child of another test, and
    // what is open for writing is not executed.
    let copied = Command::new("install")
        .args(["-m", "755"])
        .args([&std::env::current_exe().unwrap(), &program.0])
        .status();
    assert!(copied.unwrap().success());
    let user = 52_000 + std::process::id() % 4000 + test.len() as u32 * 4000;
    let kept: String = caps.iter().map(|name| format!(",+{name}")).collect();
    let output = Command::new("prlimit")
        .args([&format!("--memlock={LIMIT}:{LIMIT}"), "setpriv"])
        .args([format!("--reuid={user}"), format!("--regid={user}")])
        .args([
            "--clear-groups".into(),
            format!("--bounding-set=-all{kept}"),
        ])
        .args([
            format!("--inh-caps=-all{kept}"),
            format!("--ambient-caps=-all{kept}"),
        ])
        .args([program.path(), "--exact", test, "--nocapture"])
        .env(CHILD, words)
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success() && said.contains("1 passed"),
        "{said}{}",
        String::from_utf8_lossy(&output.stderr)
    );
}

fn words() -> Option<String> {
    std::env::var(CHILD).ok()
}

fn config(frames: u32, device: &str) -> Config {
    let mut config = Config {
        frame_count: frames,
        frame_size: 2048,
        ..Config::default()
    };
    config.device.path = device.into();
    config
}

fn open(config: &Config) -> Context {
    match Context::open(config) {
        Ok(context) => context,
        Err(error) => panic!("{error}"),
    }
}

/// A packet's worth of bytes to the device and back, through the registered memory.
fn store_one(context: &Context) {
    let bytes = payload(7, 2048);
    let one = |submit: fn(&Context, &Transfer) -> unified::error::Result<()>, fill: &[u8]| {
        let frame = context.frame_alloc().unwrap();
        let offset = u64::from(frame) * 2048;
        context.data().write(offset as usize, fill);
        let transfer = Transfer {
            frame,
            offset,
            len: 2048,
            ..Transfer::default()
        };
        submit(context, &transfer).unwrap();
        let mut done = [Completion::default()];
        while context.completions(&mut done).unwrap() == 0 {
            context
                .wait(Ready::COMPLETIONS, Some(Duration::from_secs(5)))
                .unwrap();
        }
        assert_eq!(done[0].status, 0, "{:?}", done[0]);
        let mut found = vec![0; 2048];
        context.data().read(offset as usize, &mut found);
        found
    };
    one(Context::submit_write, &bytes);
    assert!(one(Context::submit_read, &[0; 2048]) == bytes);
}

/// 4 MiB of frames, 2 MiB of bounce pool, 100 KiB of io_uring's rings. With the region in huge pages, of which it touches
/// three, that would be more than 8 MiB.
#[test]
fn what_fits_in_base_pages_is_opened_200_times_in_a_row() {
    let test = "what_fits_in_base_pages_is_opened_200_times_in_a_row";
    if words().is_some() {
        let device = format!("null:{}", 1 << 20);
        for round in 0..200 {
            let mut config = config(2048, &device);
            config.drive = [Drive::Inline, Drive::Thread][round % 2];
            drop(open(&config));
        }
        let file = Scratch::new("/dev/shm", "locked-device");
        File::create(&file.0).unwrap().set_len(1 << 20).unwrap();
        let context = open(&config(2048, file.path()));
        store_one(&context);
        // As many again do not fit, which needs no waiting to know.
        let before = Instant::now();
        let Err(error) = Context::open(&config(2048, &device)) else {
            panic!("12 MiB of 8 were locked");
        };
        assert!(
            before.elapsed() < Duration::from_secs(1),
            "{:?}",
            before.elapsed()
        );
        assert_eq!(error.errno(), libc::ENOMEM, "{error}");
        for part in [
            "6393856 bytes are needed",
            "allows 8388608",
            "use 6393856 of them",
            "ulimit -l 12488",
        ] {
            assert!(error.message().contains(part), "'{part}' in: {error}");
        }
        return;
    }
    if is_root(test) {
        as_user(test, "yes", &[]);
    }
}

/// Buffers count for each lane, while they are registered and no longer.
#[test]
fn buffers_count_for_each_lane() {
    let test = "buffers_count_for_each_lane";
    if words().is_some() {
        const MIB: u64 = 1 << 20;
        let device = format!("null:{MIB}");
        for drive in [Drive::Inline, Drive::Thread] {
            let context = open(&Config {
                queues: 2,
                drive,
                ..config(128, &device)
            });
            for _ in 0..50 {
                let one = context.buffer_alloc(MIB).unwrap();
                let before = Instant::now();
                let error = context.buffer_alloc(MIB).unwrap_err();
                assert!(before.elapsed() < Duration::from_secs(1));
                assert_eq!(error.errno(), libc::ENOMEM, "{error}");
                for part in [
                    "2097152 more bytes",
                    "allows 8388608",
                    "free buffers",
                    "ulimit -l",
                ] {
                    assert!(error.message().contains(part), "'{part}' in: {error}");
                }
                context.buffer_free(one.id).unwrap();
            }
            assert_eq!(context.statistics().unwrap().buffers.registered_bytes, 0);
        }
        return;
    }
    if is_root(test) {
        as_user(test, "yes", &[]);
    }
}

/// As many frames as docs/containers.md says, with an interface: the UMEM and the registered memory count both.
#[test]
fn the_documented_1500_frames_receive_and_reopen() {
    let test = "the_documented_1500_frames_receive_and_reopen";
    if let Some(words) = words() {
        let file = Scratch::new("/dev/shm", "locked-device");
        File::create(&file.0).unwrap().set_len(1 << 20).unwrap();
        let config = Config {
            ifname: Some(words),
            ..config(1500, file.path())
        };
        for _ in 0..40 {
            let context = open(&config);
            assert!(!context.info().network.unwrap().zero_copy);
        }
        let Err(error) = Context::open(&Config {
            frame_count: 2048,
            ..config
        }) else {
            panic!("10 MiB of 8 were locked");
        };
        assert_eq!(error.errno(), libc::ENOMEM, "{error}");
        assert!(
            error
                .message()
                .contains("10588160 bytes are needed (4194304 for the UMEM, 6393856"),
            "{error}"
        );
        return;
    }
    if is_root(test) {
        let veth = Veth::new();
        as_user(
            test,
            &veth.host,
            &["net_admin", "net_raw", "bpf", "perfmon"],
        );
    }
}

/// Another process of the same user has the memory, and gives it back late: that is waited for. What it keeps is not
/// there, which is told within some seconds.
#[test]
fn memory_that_another_process_has() {
    let test = "memory_that_another_process_has";
    let device = format!("null:{}", 1 << 20);
    match words().as_deref() {
        Some("holder") => {
            let _context = open(&config(2048, &device));
            println!("held");
            let mut line = String::new();
            std::io::stdin().read_line(&mut line).unwrap();
            return;
        }
        Some(_) => {
            let mut holder = Command::new(std::env::current_exe().unwrap())
                .args(["--exact", test, "--nocapture"])
                .env(CHILD, "holder")
                .stdin(std::process::Stdio::piped())
                .stdout(std::process::Stdio::piped())
                .spawn()
                .unwrap();
            let mut said = std::io::BufReader::new(holder.stdout.take().unwrap());
            let mut line = String::new();
            while !line.contains("held") {
                line.clear();
                assert!(std::io::BufRead::read_line(&mut said, &mut line).unwrap() > 0);
            }
            let before = Instant::now();
            let Err(error) = Context::open(&config(2048, &device)) else {
                panic!("12 MiB of 8 were locked");
            };
            assert!(
                before.elapsed() < Duration::from_secs(5),
                "{:?}",
                before.elapsed()
            );
            assert_eq!(error.errno(), libc::ENOMEM, "{error}");
            for part in [
                "6291456 bytes",
                "8388608",
                "other processes of this user",
                "ulimit -l",
            ] {
                assert!(error.message().contains(part), "'{part}' in: {error}");
            }
            drop(holder.stdin.take());
            assert!(holder.wait().unwrap().success());
            drop(open(&config(2048, &device)));
            return;
        }
        None => {}
    }
    if is_root(test) {
        as_user(test, "yes", &[]);
    }
}

/// All that is missing is named with the first error.
#[test]
fn everything_that_is_missing_is_named_at_once() {
    let test = "everything_that_is_missing_is_named_at_once";
    if let Some(words) = words() {
        let config = Config {
            ifname: Some(words),
            ..config(4096, "null:")
        };
        let Err(error) = Context::open(&config) else {
            panic!("opened without privileges");
        };
        assert_eq!(error.errno(), libc::ENOMEM, "{error}");
        for part in [
            "locked memory",
            "CAP_NET_ADMIN",
            "CAP_BPF",
            "CAP_PERFMON",
            "CAP_NET_RAW",
        ] {
            assert!(error.message().contains(part), "'{part}' in: {error}");
        }
        let Err(error) = Context::open(&Config {
            frame_count: 64,
            ..config
        }) else {
            panic!("opened without privileges");
        };
        assert_eq!(error.errno(), libc::EPERM, "{error}");
        for part in ["CAP_NET_ADMIN", "CAP_BPF", "CAP_PERFMON", "CAP_NET_RAW"] {
            assert!(error.message().contains(part), "'{part}' in: {error}");
        }
        return;
    }
    if is_root(test) {
        let veth = Veth::new();
        as_user(test, &veth.host, &[]);
    }
}
