//! Descriptors that a privileged process hands in.

use super::*;

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
    (config.xsk_map, config.xsks) = (Some(numbers[0]), vec![numbers[1]]);
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
        queues: 1,
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
            xsks: vec![socket.as_raw_fd()],
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
        xsks: vec![wrong],
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
        (socket, libc::ENOTSOCK, "not an AF_XDP socket"),
        (alone, libc::EINVAL, "no interface is named"),
    ] {
        let error = Context::open(&config).err().unwrap();
        assert_eq!(error.errno(), errno, "{error}");
        assert!(error.message().contains(words), "{error}");
        assert!(bpf::attached(index_of(&veth)).is_none());
    }
}
