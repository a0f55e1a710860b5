//! Faults of the process: killed, stopped, aborted, ended, forked with I/O in flight; without a privilege,
//! without memory, without io_uring. A restart finds nothing in its way, and errors name what is missing.
#![deny(unsafe_code)]

mod common;

use std::fs::{self, File};
use std::net::UdpSocket;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use common::part::{Part, hear, say, told};
use common::recording::{Stream, check_stored, numbered, settle, statistics, until};
use common::{Scratch, Veth, check_sums, is_full_tier, is_root, payload};
use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::sys::mman::{MlockAllFlags, mlockall};
use nix::sys::signal::Signal;
use unified::config::{Config, Drive};
use unified::context::Context;
use unified::lane::{Completion, Ready};
use unified::net::link;
use unified::net::rx::Received;
use unified::net::xdp::{Xdp, XdpConfig, XdpMode, programs_of};
use unified::pipeline::{Pipeline, PipelineConfig};
use unified::sys::bpf;
use unified::sys::xsk;

fn part_config(ifname: &str, path: &str) -> Config {
    let mut config = Config {
        ifname: Some(ifname.into()),
        frame_count: 512,
        rx_ring: 256,
        fill_ring: 256,
        drive: Drive::Thread,
        ..Config::default()
    };
    config.device.path = path.into();
    config.device.block_size = common::recording::BLOCK as u32;
    if !path.starts_with("null:") {
        config.device.file_size = 16 << 20;
    }
    config
}

fn index_of(veth: &Veth) -> u32 {
    unified::sys::link::index_of(&veth.host).unwrap()
}

/// Opens, receives and closes: everything is as if nothing had been.
fn works_again(veth: &Veth) {
    let context = Context::open(&part_config(&veth.host, "null:")).unwrap();
    let stream = Stream::start(veth);
    until(10, "packets come", || {
        for packet in receive_some(&context) {
            context.frame_release(packet.frame).unwrap();
        }
        statistics(&context).received > 20
    });
    drop(stream);
    drop(context);
    assert!(bpf::attached(index_of(veth)).is_none());
}

fn receive_some(context: &Context) -> Vec<Received> {
    let mut packets = [Received::default(); 64];
    let count = context.receive(&mut packets).unwrap();
    packets[..count].to_vec()
}

// ---- How a process ends ----

/// Records until it is told how to end.
fn record(told: &str) {
    let (ifname, path) = told.split_once(' ').unwrap();
    let context = Arc::new(Context::open(&part_config(ifname, path)).unwrap());
    let pipeline = Pipeline::start(context.clone(), PipelineConfig::default()).unwrap();
    say("recording");
    loop {
        match hear().as_str() {
            "stored" => say(pipeline.status().stored),
            "abort" => std::process::abort(),
            // Neither is dropped: their threads run until the kernel stops them.
            "exit" => std::process::exit(0),
            "exec" => panic!("{}", Command::new("true").exec()),
            _ => break,
        }
    }
    settle(&context);
    let (status, result) = pipeline.stop();
    result.unwrap();
    let stats = context.statistics().unwrap();
    check_sums(&stats, context.info().frame_count);
    assert_eq!((status.error, status.failed), (0, 0));
    say(format_args!(
        "{} {}",
        status.stored,
        stats.xsk.rx_dropped + stats.xsk.rx_ring_full
    ));
    drop(context);
}

fn stored(part: &mut Part) -> u64 {
    part.tell("stored");
    part.says().parse().unwrap()
}

#[test]
fn however_a_recorder_ends_with_io_in_flight_nothing_is_left_in_the_way() {
    if let Some(told) = told() {
        return record(&told);
    }
    let name = "however_a_recorder_ends_with_io_in_flight_nothing_is_left_in_the_way";
    if !is_root(name) {
        return;
    }
    let veth = Veth::new();
    for ending in ["kill", "abort", "exit", "exec"] {
        let file = Scratch::new(env!("CARGO_TARGET_TMPDIR"), ending);
        let mut part = Part::start(name, &format!("{} {}", veth.host, file.path()), &[]);
        assert_eq!(part.says(), "recording");
        let stream = Stream::start(&veth);
        until(20, "packets are stored", || stored(&mut part) > 100);
        match ending {
            "kill" => part.signal(Signal::SIGKILL),
            how => part.tell(how),
        }
        let status = part.end();
        assert_eq!(
            status.success(),
            matches!(ending, "exit" | "exec"),
            "{status}"
        );
        let sent = stream.stop();
        // The program is still there, and passes everything to the stack.
        let index = index_of(&veth);
        assert_eq!(bpf::attached(index).unwrap().programs[0].name, bpf::PROGRAM);
        let socket = UdpSocket::bind((veth.host_addr, 9999)).unwrap();
        socket
            .set_read_timeout(Some(Duration::from_secs(5)))
            .unwrap();
        veth.send(9999, vec![payload(1, 100)], 100).join().unwrap();
        assert_eq!(socket.recv(&mut [0; 200]).unwrap(), 100);
        drop(socket);
        // Whatever reached the file is whole: blocks that were never written are zero.
        let bytes = fs::read(&file.0).unwrap();
        let mut whole = 0;
        for block in bytes.chunks(common::recording::BLOCK) {
            let number = u32::from_le_bytes(block[..4].try_into().unwrap());
            if number == 0 {
                assert!(block.iter().all(|b| *b == 0));
                continue;
            }
            assert!(number <= sent);
            let expected = numbered(number - 1);
            assert!(
                block.starts_with(&expected) && block[expected.len()..].iter().all(|b| *b == 0)
            );
            whole += 1;
        }
        assert!(whole > 100, "{ending}: {whole}");
        works_again(&veth);
        until(5, "the kernel frees its program", || {
            programs_of(part.pid()).unwrap().is_empty()
        });
        // Nor is the file locked.
        let context = Context::open(&part_config(&veth.host, file.path())).unwrap();
        drop(context);
    }
}

#[test]
fn a_recorder_that_was_stopped_for_seconds_goes_on_and_counts_what_it_missed() {
    if let Some(told) = told() {
        return record(&told);
    }
    let name = "a_recorder_that_was_stopped_for_seconds_goes_on_and_counts_what_it_missed";
    if !is_root(name) {
        return;
    }
    let veth = Veth::new();
    let file = Scratch::new(env!("CARGO_TARGET_TMPDIR"), "stopped");
    let mut part = Part::start(name, &format!("{} {}", veth.host, file.path()), &[]);
    assert_eq!(part.says(), "recording");
    let stream = Stream::start(&veth);
    until(20, "packets are stored", || stored(&mut part) > 100);
    part.signal(Signal::SIGSTOP);
    std::thread::sleep(Duration::from_secs(if is_full_tier() { 10 } else { 5 }));
    part.signal(Signal::SIGCONT);
    let before = stored(&mut part);
    // More than what had waited in the rings.
    until(20, "it goes on", || stored(&mut part) > before + 1000);
    let sent = stream.stop();
    part.tell("finish");
    let numbers = part.says();
    let (kept, missed) = numbers.split_once(' ').unwrap();
    let (kept, missed): (u64, u64) = (kept.parse().unwrap(), missed.parse().unwrap());
    assert!(part.end().success());
    assert!(missed > 100, "for seconds nobody received: {numbers}");
    assert_eq!(kept + missed, u64::from(sent), "each is stored or counted");
    check_stored(file.path(), kept, sent);
    assert!(bpf::attached(index_of(&veth)).is_none());
}

// ---- Fork ----

#[allow(unsafe_code)]
fn forked(act: impl FnOnce()) -> i32 {
    use nix::sys::wait::{WaitStatus, waitpid};
    use nix::unistd::{ForkResult, fork};
    // SAFETY: this process has a thread of the library beside this one, which holds no lock that the child
    // takes; the allocator's are handled by the C library. The child ends in `exit`.
    match unsafe { fork() }.unwrap() {
        ForkResult::Child => {
            act();
            std::process::exit(0);
        }
        ForkResult::Parent { child } => match waitpid(child, None).unwrap() {
            WaitStatus::Exited(_, code) => code,
            other => panic!("{other:?}"),
        },
    }
}

fn fork_while_recording(ifname: &str) {
    for drive in [Drive::Inline, Drive::Thread] {
        let config = Config {
            drive,
            ..part_config(ifname, "null:")
        };
        let context = Context::open(&config).unwrap();
        say("open");
        assert_eq!(hear(), "fork");
        // Every way into it is refused, and giving it up is no harm.
        let mut context = Some(context);
        let code = forked(|| {
            let context = context.take().unwrap();
            let refused = [
                context.receive(&mut [Received::default(); 4]).err(),
                context.completions(&mut [Completion::default(); 4]).err(),
                context.wait(Ready::RX, None).err(),
                context.wait(Ready::COMPLETIONS, None).err(),
                context.frame_alloc().err(),
                context.frame_release(0).err(),
                context.statistics().err(),
                context.port_add(1).err(),
                context.set_event_sample(0).err(),
                context.submit_flush(1).err(),
                context.detach().err(),
                context.poll_fd().err(),
            ];
            for (i, error) in refused.iter().enumerate() {
                match error {
                    Some(e) if e.errno() == libc::ENOTSUP && e.message().contains("fork") => {}
                    _ => std::process::exit(100 + i as i32),
                }
            }
            drop(context);
            // A context of its own is a right of the child's.
            let own = Config {
                ifname: None,
                ..part_config("", "null:")
            };
            let own = Context::open(&own).unwrap_or_else(|_| std::process::exit(2));
            if own.frame_alloc().is_err() || own.submit_flush(1).is_err() {
                std::process::exit(3);
            }
        });
        assert_eq!(code, 0);
        let context = context.unwrap();
        say("forked");
        let mut seen = 0;
        until(20, "packets", || {
            for packet in receive_some(&context) {
                context.frame_release(packet.frame).unwrap();
                seen += 1;
            }
            seen >= 50
        });
        context.submit_flush(7).unwrap();
        let mut done = [Completion::default(); 1];
        until(5, "its engine works", || {
            context.completions(&mut done).unwrap() == 1
        });
        assert_eq!((done[0].user_data, done[0].status), (7, 0));
        settle(&context);
        say("received");
        assert_eq!(hear(), "on");
    }
}

#[test]
fn a_forked_child_cannot_use_the_context_and_its_end_is_no_harm() {
    if let Some(told) = told() {
        return fork_while_recording(&told);
    }
    let name = "a_forked_child_cannot_use_the_context_and_its_end_is_no_harm";
    if !is_root(name) {
        return;
    }
    let veth = Veth::new();
    let mut part = Part::start(name, &veth.host, &[]);
    for _ in 0..2 {
        assert_eq!(part.says(), "open");
        let program = bpf::attached(index_of(&veth)).unwrap().programs[0].id;
        part.tell("fork");
        assert_eq!(part.says(), "forked");
        assert_eq!(
            bpf::attached(index_of(&veth)).unwrap().programs[0].id,
            program
        );
        let sender = veth.send(9999, (0..50).map(|i| payload(i, 100)).collect(), 2000);
        assert_eq!(part.says(), "received");
        sender.join().unwrap();
        part.tell("on");
    }
    assert!(part.end().success());
    assert!(bpf::attached(index_of(&veth)).is_none());
}

// ---- Privileges and limits ----

/// Opens, and says how that went.
fn try_to_open(told: &str) {
    match Context::open(&part_config(told, "null:")) {
        Ok(context) => say(format_args!(
            "0 {}",
            context.info().network.unwrap().program_id
        )),
        Err(e) => say(format_args!("{} {e}", e.errno())),
    }
}

#[test]
fn each_missing_capability_is_named_or_not_needed() {
    if let Some(told) = told() {
        return try_to_open(&told);
    }
    let name = "each_missing_capability_is_named_or_not_needed";
    if !is_root(name) {
        return;
    }
    let veth = Veth::new();
    // Dropped; the errno, and what the error names.
    let cases: [(&str, i32, &[&str]); 8] = [
        ("-net_admin", libc::EPERM, &["CAP_NET_ADMIN"]),
        ("-net_raw", libc::EPERM, &["CAP_NET_RAW"]),
        // CAP_SYS_ADMIN stands for it.
        ("-bpf", 0, &[]),
        ("-sys_admin", 0, &[]),
        // 512 frames fit into the limit that everybody has.
        ("-ipc_lock", 0, &[]),
        (
            "-bpf,-sys_admin",
            libc::EPERM,
            &["CAP_BPF", "CAP_SYS_ADMIN"],
        ),
        ("-perfmon,-sys_admin", libc::EACCES, &["CAP_PERFMON"]),
        // All that is needed.
        ("-all,+net_admin,+net_raw,+bpf,+perfmon", 0, &[]),
    ];
    for (dropped, errno, names) in cases {
        let before = [
            "setpriv",
            "--bounding-set",
            dropped,
            "--inh-caps=-all",
            "--",
        ];
        let mut part = Part::start(name, &veth.host, &before);
        let said = part.says();
        let (code, message) = said.split_once(' ').unwrap();
        assert_eq!(code, errno.to_string(), "{dropped}: {message}");
        for word in names {
            assert!(message.contains(word), "{dropped}: {message}");
        }
        if errno != 0 {
            assert!(message.contains(&veth.host), "{dropped}: {message}");
        }
        assert!(part.end().success());
        assert!(
            bpf::attached(index_of(&veth)).is_none(),
            "{dropped}: it left its program"
        );
    }
    works_again(&veth);
}

/// Locks what it has and will have, as programs with deadlines do, and says what the region became.
fn open_with_memory_locked() {
    mlockall(MlockAllFlags::MCL_CURRENT | MlockAllFlags::MCL_FUTURE).unwrap();
    let mut config = Config::default();
    config.device.path = "null:".into();
    let context = Context::open(&config).unwrap();
    say(context.info().huge_pages);
}

#[test]
fn locked_memory_is_in_huge_pages_too() {
    if told().is_some() {
        return open_with_memory_locked();
    }
    let name = "locked_memory_is_in_huge_pages_too";
    if !is_root(name) {
        return;
    }
    let switch = fs::read_to_string("/sys/kernel/mm/transparent_hugepage/enabled");
    let given = switch.is_ok_and(|switch| !switch.contains("[never]"));
    let mut part = Part::start(name, "", &[]);
    assert_eq!(part.says(), given.to_string());
    assert!(part.end().success());
}

fn open_without_io_uring(told: &str) {
    use seccompiler::{SeccompAction, SeccompFilter};
    let (ifname, errno) = told.split_once(' ').unwrap();
    let rules = [(libc::SYS_io_uring_setup, vec![])].into_iter().collect();
    let filter = SeccompFilter::new(
        rules,
        SeccompAction::Allow,
        SeccompAction::Errno(errno.parse().unwrap()),
        std::env::consts::ARCH.try_into().unwrap(),
    )
    .unwrap();
    let program: seccompiler::BpfProgram = filter.try_into().unwrap();
    seccompiler::apply_filter_all_threads(&program).unwrap();
    try_to_open(ifname);
}

#[test]
fn a_forbidden_io_uring_is_named() {
    if let Some(told) = told() {
        return open_without_io_uring(&told);
    }
    let name = "a_forbidden_io_uring_is_named";
    if !is_root(name) {
        return;
    }
    let veth = Veth::new();
    for (errno, words) in [
        (libc::EPERM, "io_uring is forbidden here"),
        (
            libc::ENOSYS,
            "this kernel has no io_uring, or seccomp hides it",
        ),
    ] {
        let mut part = Part::start(name, &format!("{} {errno}", veth.host), &[]);
        let said = part.says();
        assert!(said.starts_with(&format!("{errno} ")), "{said}");
        assert!(said.contains(words), "{said}");
        assert!(part.end().success());
        assert!(bpf::attached(index_of(&veth)).is_none());
    }
    works_again(&veth);
}

/// A memory control group; removed again.
struct MemoryGroup(std::path::PathBuf);

impl MemoryGroup {
    fn new(bytes: u64) -> Option<MemoryGroup> {
        for (root, file) in [
            ("/sys/fs/cgroup", "memory.max"),
            ("/sys/fs/cgroup/memory", "memory.limit_in_bytes"),
        ] {
            let dir =
                std::path::Path::new(root).join(format!("unified-test-{}", std::process::id()));
            if fs::create_dir(&dir).is_err() {
                continue;
            }
            let group = MemoryGroup(dir);
            // Under the first version the root is an ordinary directory.
            let real = group.0.join(file).exists();
            if real && fs::write(group.0.join(file), bytes.to_string()).is_ok() {
                return Some(group);
            }
        }
        None
    }
}

impl Drop for MemoryGroup {
    fn drop(&mut self) {
        let _ = fs::remove_dir(&self.0);
    }
}

#[test]
fn a_small_memory_group_is_refused_in_words_and_not_with_a_kill() {
    if let Some(told) = told() {
        let (ifname, group) = told.split_once(' ').unwrap();
        fs::write(
            format!("{group}/cgroup.procs"),
            std::process::id().to_string(),
        )
        .unwrap();
        let config = Config {
            frame_count: 65536,
            ..part_config(ifname, "null:")
        };
        let error = Context::open(&config).err().expect("128 MiB do not fit");
        say(format_args!("{} {error}", error.errno()));
        // What fits works.
        return try_to_open(ifname);
    }
    let name = "a_small_memory_group_is_refused_in_words_and_not_with_a_kill";
    if !is_root(name) {
        return;
    }
    let Some(group) = MemoryGroup::new(64 << 20) else {
        return common::skip(
            name,
            "this host has no memory control groups that can be made",
        );
    };
    let veth = Veth::new();
    let mut part = Part::start(name, &format!("{} {}", veth.host, group.0.display()), &[]);
    let said = part.says();
    assert!(said.starts_with(&format!("{} ", libc::ENOMEM)), "{said}");
    for words in ["bytes are needed", group.0.to_str().unwrap(), "67108864"] {
        assert!(said.contains(words), "{said}");
    }
    let said = part.says();
    assert!(said.starts_with("0 "), "{said}");
    assert!(part.end().success());
    assert!(bpf::attached(index_of(&veth)).is_none());
    drop(part);
    let dir = group.0.clone();
    drop(group);
    assert!(!dir.exists());
}

// ---- Without any privilege ----

fn inheritable(fd: &OwnedFd) -> RawFd {
    fcntl(fd, FcntlArg::F_SETFD(FdFlag::empty())).unwrap();
    fd.as_raw_fd()
}

fn record_with_what_was_handed_in(told: &str) {
    let words: Vec<&str> = told.split(' ').collect();
    let numbers: Vec<RawFd> = words[1..].iter().map(|n| n.parse().unwrap()).collect();
    assert!(!nix::unistd::Uid::effective().is_root());
    let status = fs::read_to_string("/proc/self/status").unwrap();
    assert!(status.contains("CapEff:\t0000000000000000"), "{status}");
    // Without them there is no way.
    let error = Context::open(&part_config(words[0], "null:"))
        .err()
        .unwrap();
    assert!(
        matches!(error.errno(), libc::EPERM | libc::EACCES),
        "{error}"
    );
    let mut config = part_config(words[0], "");
    config.frame_count = 256;
    (config.xsk_map, config.xsk) = (Some(numbers[0]), Some(numbers[1]));
    config.device.fd = Some(numbers[2]);
    let context = Arc::new(Context::open(&config).unwrap());
    let error = context.port_add(1).unwrap_err();
    assert_eq!(error.errno(), libc::ENOTSUP, "{error}");
    let pipeline = Pipeline::start(context.clone(), PipelineConfig::default()).unwrap();
    say("recording");
    assert_eq!(hear(), "finish");
    std::thread::sleep(Duration::from_millis(300));
    let (status, result) = pipeline.stop();
    result.unwrap();
    let stats = context.statistics().unwrap();
    assert_eq!(stats.received, stats.stored);
    assert!(stats.link.up && stats.link.xdp_attached);
    say(format_args!("{} {}", status.stored, status.error));
    drop(context);
    say("closed");
    hear();
}

/// The program, by somebody who may, for those to whom its map is handed in.
fn attach_for_others(veth: &Veth) -> Xdp {
    let config = XdpConfig {
        ports: vec![9999],
        mode: XdpMode::Auto,
        run_priority: 50,
        event_sample: 0,
        events_bytes: 4096,
    };
    Xdp::attach(link::look_up(&veth.host, 0).unwrap(), &config).unwrap()
}

#[test]
fn an_unprivileged_process_records_with_descriptors_that_were_handed_in() {
    if let Some(told) = told() {
        return record_with_what_was_handed_in(&told);
    }
    let name = "an_unprivileged_process_records_with_descriptors_that_were_handed_in";
    if !is_root(name) {
        return;
    }
    let veth = Veth::new();
    let file = Scratch::new(env!("CARGO_TARGET_TMPDIR"), "handed");
    // The privileged side: program, socket, device.
    let mut xdp = attach_for_others(&veth);
    let map = unified::sys::file::duplicate(xdp.socket_map()).unwrap();
    let socket = xsk::new_socket().unwrap();
    let device: OwnedFd = File::options()
        .read(true)
        .write(true)
        .create_new(true)
        .custom_flags(libc::O_DIRECT)
        .open(&file.0)
        .unwrap()
        .into();
    // By its descriptor: the directories above it may be closed to that user.
    let binary: OwnedFd = File::open(std::env::current_exe().unwrap()).unwrap().into();
    let fds = [&map, &socket, &device].map(inheritable);
    let run = format!("/proc/self/fd/{}", inheritable(&binary));
    let told = format!("{} {} {} {}", veth.host, fds[0], fds[1], fds[2]);
    let before = [
        "setpriv",
        "--reuid=65534",
        "--regid=65534",
        "--clear-groups",
        "--",
    ];
    let mut part = Part::start_as(name, &told, &before, &run);
    assert_eq!(part.says(), "recording");
    let payloads: Vec<Vec<u8>> = (0..300).map(numbered).collect();
    veth.send(9999, payloads.clone(), 3000).join().unwrap();
    part.tell("finish");
    assert_eq!(part.says(), "300 0");
    assert_eq!(part.says(), "closed");
    let bytes = fs::read(&file.0).unwrap();
    for (block, payload) in bytes.chunks(512).zip(&payloads) {
        assert!(block.starts_with(payload) && block[payload.len()..].iter().all(|b| *b == 0));
    }
    // The socket is out of the map, though this process has it open: packets go to the stack.
    let stack = UdpSocket::bind((veth.host_addr, 9999)).unwrap();
    stack
        .set_read_timeout(Some(Duration::from_secs(5)))
        .unwrap();
    veth.send(9999, vec![payload(1, 100)], 100).join().unwrap();
    assert_eq!(stack.recv(&mut [0; 200]).unwrap(), 100);
    part.tell("end");
    assert!(part.end().success());
    xdp.detach().unwrap();
    assert!(bpf::attached(index_of(&veth)).is_none());
}

/// The kernel frees a queue some time after its socket was closed: who comes next with a socket of his own waits.
#[test]
fn a_socket_that_was_handed_in_waits_for_its_queue() {
    let name = "a_socket_that_was_handed_in_waits_for_its_queue";
    if !is_root(name) {
        return;
    }
    let veth = Veth::new();
    let mut xdp = attach_for_others(&veth);
    let map = unified::sys::file::duplicate(xdp.socket_map()).unwrap();
    let open = || {
        let socket = xsk::new_socket().unwrap();
        Context::open(&Config {
            xsk_map: Some(map.as_raw_fd()),
            xsk: Some(socket.as_raw_fd()),
            ..part_config(&veth.host, "null:")
        })
    };
    let first = open().unwrap();
    let error = open().err().unwrap();
    assert_eq!(error.errno(), libc::EBUSY, "{error}");
    let closing = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(200));
        drop(first);
    });
    open().unwrap();
    closing.join().unwrap();
    xdp.detach().unwrap();
}

#[test]
fn descriptors_that_are_not_what_they_should_be_are_named() {
    let name = "descriptors_that_are_not_what_they_should_be_are_named";
    if !is_root(name) {
        return;
    }
    let veth = Veth::new();
    let null = File::open("/dev/null").unwrap();
    let wrong = null.as_raw_fd();
    let mut pipe = part_config(&veth.host, "");
    pipe.device.fd = Some(wrong);
    let mut closed = part_config(&veth.host, "");
    closed.device.fd = Some(1 << 20);
    let map = Config {
        xsk_map: Some(wrong),
        ..part_config(&veth.host, "null:")
    };
    let socket = Config {
        xsk: Some(wrong),
        ..part_config(&veth.host, "null:")
    };
    let alone = Config {
        ifname: None,
        ..map.clone()
    };
    for (config, errno, words) in [
        (pipe, libc::EROFS, "one direction only"),
        (closed, libc::EBADF, "descriptor 1048576"),
        (map, libc::EINVAL, "BPF_MAP_TYPE_XSKMAP"),
        (socket, libc::ENOTSOCK, "no AF_XDP socket"),
        (alone, libc::EINVAL, "no interface is named"),
    ] {
        let error = Context::open(&config).err().unwrap();
        assert_eq!(error.errno(), errno, "{error}");
        assert!(error.message().contains(words), "{error}");
        assert!(bpf::attached(index_of(&veth)).is_none());
    }
}
