//! Several recorders on one interface, one after the other and at once.

use super::*;

#[test]
fn a_queue_that_another_socket_holds_is_busy() {
    let _alone = alone();
    if !is_root("a_queue_that_another_socket_holds_is_busy") {
        return;
    }
    let veth = Veth::new();
    let wish = Wish::new(&veth.host, "null:");
    c::destroy(wish.create().unwrap()).unwrap();
    let len = 64 * 2048;
    let umem = UmemSetup {
        frame_size: 2048,
        headroom: 0,
        fill_size: 64,
        socket: None,
    };
    let queue = QueueSetup {
        ifname: veth.host.clone(),
        queue: 0,
        rx_size: 64,
        zero_copy: Some(false),
        skb_mode: true,
    };
    let memory = Arc::new(Mapping::anonymous(len, false).unwrap());
    let umem = Umem::new(&umem, Shared::new(memory, 0, len).unwrap()).unwrap();
    let foreign = umem.bind(&queue).unwrap();
    let before = holdings();
    let Refusal(errno, message) = wish.create().unwrap_err();
    assert_eq!(errno, libc::EBUSY, "{message}");
    let named = format!("queue 0 of '{}'", veth.host);
    assert!(message.contains(&named), "{message}");
    assert_bare(&veth, "busy");
    assert_unchanged(&before, "busy");
    drop((foreign, umem));
    // The queue is free again as soon as the library has waited for it.
    c::destroy(wish.create().unwrap()).unwrap();
}

/// This test binary again, running one test, whose child's part is chosen by a variable.
struct Recorder(Child);

impl Recorder {
    fn start(test: &str, ifname: &str) -> Recorder {
        let child = Command::new(std::env::current_exe().unwrap())
            .args([test, "--nocapture"])
            .env(CHILD, ifname)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut recorder = Recorder(child);
        let out = BufReader::new(recorder.0.stdout.take().unwrap());
        let ready = out
            .lines()
            .map_while(Result::ok)
            .any(|line| line.ends_with("recording"));
        assert!(ready, "the child has a context");
        recorder
    }

    fn pid(&self) -> u32 {
        self.0.id()
    }

    /// Ended with all its threads, and not yet asked for its end.
    fn is_zombie(&self) -> bool {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.pid())).unwrap();
        let fields: Vec<&str> = stat[stat.rfind(')').unwrap() + 2..].split(' ').collect();
        fields[0] == "Z" && fields[17] == "1"
    }
}

impl Drop for Recorder {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The child's part: holds a context until it is killed, or its parent is gone.
fn record_until_killed(ifname: &str) {
    let _context = Context::open(&recorder_config(ifname)).unwrap();
    println!("recording");
    let mut nothing = String::new();
    let _ = std::io::stdin().read_line(&mut nothing);
}

/// Receives what the far end sends: all of it, in order.
fn receive_all(veth: &Veth, context: &Context, count: usize) {
    let payloads: Vec<Vec<u8>> = (0..count).map(|i| payload(i as u32, 1 + i)).collect();
    let sender = veth.send(9999, payloads, 2000);
    let mut lengths = Vec::new();
    let until = Instant::now() + Duration::from_secs(10);
    let mut packets = [Received::default(); 16];
    while lengths.len() < count && Instant::now() < until {
        context
            .wait(Ready::RX, Some(Duration::from_millis(50)))
            .unwrap();
        let got = context.receive(&mut packets).unwrap();
        for packet in &packets[..got] {
            lengths.push(usize::from(packet.headers.payload_len));
            context.frame_release(packet.frame).unwrap();
        }
    }
    sender.join().unwrap();
    assert_eq!(lengths, (1..=count).collect::<Vec<_>>());
}

#[test]
fn a_second_recorder_is_told_who_the_first_is_and_does_it_no_harm() {
    if let Ok(ifname) = std::env::var(CHILD) {
        return record_until_killed(&ifname);
    }
    let name = "a_second_recorder_is_told_who_the_first_is_and_does_it_no_harm";
    let _alone = alone();
    if !is_root(name) {
        return;
    }
    let veth = Veth::new();
    let index = link::index_of(&veth.host).unwrap();
    let busy = |owner: u32| {
        let before = holdings();
        let error = Context::open(&recorder_config(&veth.host)).err().unwrap();
        assert_eq!(error.errno(), libc::EBUSY, "{error}");
        assert!(
            error.message().contains(&format!("process {owner},")),
            "{error}"
        );
        assert!(error.message().contains(&veth.host), "{error}");
        assert_unchanged(&before, "busy");
    };
    // In this process...
    let config = Config {
        drive: Drive::Inline,
        ..recorder_config(&veth.host)
    };
    let first = Context::open(&config).unwrap();
    let program = bpf::attached(index).unwrap().programs[0].id;
    busy(std::process::id());
    assert_eq!(bpf::attached(index).unwrap().programs[0].id, program);
    receive_all(&veth, &first, 50);
    busy(std::process::id());
    receive_all(&veth, &first, 50);
    drop(first);
    assert_bare(&veth, "the first has gone");
    // ... and in another one.
    let child = Recorder::start(name, &veth.host);
    let program = bpf::attached(index).unwrap().programs[0].id;
    busy(child.pid());
    assert_eq!(bpf::attached(index).unwrap().programs[0].id, program);
    assert_eq!(programs_of(child.pid()).unwrap(), [program]);
}

#[test]
fn what_a_killed_recorder_left_is_harmless_and_taken_over() {
    if let Ok(ifname) = std::env::var(CHILD) {
        return record_until_killed(&ifname);
    }
    let name = "what_a_killed_recorder_left_is_harmless_and_taken_over";
    let _alone = alone();
    if !is_root(name) {
        return;
    }
    let veth = Veth::new();
    let index = link::index_of(&veth.host).unwrap();
    // Once its parent has asked for its end, and once it is still a zombie.
    for reaped in [true, false] {
        let mut child = Recorder::start(name, &veth.host);
        child.0.kill().unwrap();
        if reaped {
            child.0.wait().unwrap();
        } else {
            let until = Instant::now() + Duration::from_secs(5);
            while !child.is_zombie() {
                assert!(Instant::now() < until, "killed");
                std::thread::sleep(Duration::from_millis(5));
            }
        }
        let left = bpf::attached(index).expect("the program outlives its process");
        assert_eq!(left.programs[0].name, bpf::PROGRAM);
        // What it redirected goes to the stack now.
        let socket = UdpSocket::bind((veth.host_addr, 9999)).unwrap();
        socket
            .set_read_timeout(Some(Duration::from_secs(5)))
            .unwrap();
        let sent = payload(1, 500);
        veth.send(9999, vec![sent.clone()], 1000).join().unwrap();
        let mut got = [0; 2048];
        let len = socket.recv(&mut got).unwrap();
        assert_eq!(&got[..len], sent);
        drop(socket);

        let context = Context::open(&recorder_config(&veth.host)).unwrap();
        let now = bpf::attached(index).unwrap();
        assert_eq!(now.programs.len(), 1, "{now:?}");
        assert_ne!(now.programs[0].id, left.programs[0].id);
        receive_all(&veth, &context, 50);
        drop(context);
        assert_bare(&veth, "nothing is left of either");
    }
}

#[test]
fn a_program_that_is_started_meanwhile_inherits_nothing() {
    let _alone = alone();
    if !is_root("a_program_that_is_started_meanwhile_inherits_nothing") {
        return;
    }
    let veth = Veth::new();
    let file = Scratch::new(env!("CARGO_TARGET_TMPDIR"), "inherited");
    let list = || {
        let output = Command::new("ls").args(["-l", "/proc/self/fd"]).output();
        let text = String::from_utf8(output.unwrap().stdout).unwrap();
        let inherited = |line: &&str| line.contains("socket:") || line.contains("anon_inode:");
        let files = |line: &&str| line.contains(file.path());
        let lines = text.lines();
        lines
            .filter(|line| inherited(line) || files(line))
            .map(|line| line.split(' ').next_back().unwrap().to_string())
            .collect::<Vec<_>>()
    };
    let before = list().len();
    for drive in [UNIFIED_DRIVE_INLINE, UNIFIED_DRIVE_THREAD] {
        let mut wish = Wish::new(&veth.host, file.path());
        wish.c.known.file_size = 1 << 20;
        wish.c.known.drive = drive;
        let context = wish.create().unwrap();
        let during = list();
        assert_eq!(during.len(), before, "{during:?}");
        c::destroy(context).unwrap();
    }
}
