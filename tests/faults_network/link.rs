//! The interface goes down, flaps, moves, is deleted, or loses its program.

use super::*;

// ---- Log lines ----

static LINES: Mutex<Vec<(Level, String)>> = Mutex::new(Vec::new());

/// Keeps the process's log lines from now on.
fn keep_log() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        log::set_callback(Some(Box::new(|level, line| {
            LINES.lock().unwrap().push((level, line.to_string()));
        })));
    });
}

/// How many lines name the interface and say that.
fn said(ifname: &str, words: &str) -> usize {
    let quoted = format!("'{ifname}'");
    let lines = LINES.lock().unwrap();
    let about = |line: &&(Level, String)| line.1.contains(&quoted) && line.1.contains(words);
    lines.iter().filter(about).count()
}

// ---- The link ----

#[test]
fn an_interface_that_goes_down_and_comes_back_is_noticed_and_goes_on_by_itself() {
    if !is_root("an_interface_that_goes_down_and_comes_back_is_noticed_and_goes_on_by_itself") {
        return;
    }
    keep_log();
    let veth = Veth::new();
    let file = Scratch::new(env!("CARGO_TARGET_TMPDIR"), "down");
    let context = Arc::new(Context::open(&config(&veth, file.path())).unwrap());
    assert!(statistics(&context).link.up);
    let pipeline = Pipeline::start(context.clone(), PipelineConfig::default()).unwrap();
    let stream = Stream::start(&veth);
    let host = &veth.host;
    for round in 1..=3 {
        let before = pipeline.status().stored;
        until(10, "packets come", || {
            pipeline.status().stored > before + 50
        });
        ip(&format!("link set {host} down"));
        // The pipeline's own threads notice: the log tells without anybody asking.
        within_a_second("down is logged", || said(host, "is down") == round);
        let stats = statistics(&context);
        assert!(!stats.link.up);
        assert_eq!(stats.link.changes, round as u64 * 2 - 1);
        assert!(pipeline.status().running);
        ip(&format!("link set {host} up"));
        within_a_second("up is logged", || said(host, "is up again") == round);
        assert!(statistics(&context).link.up);
        assert!(statistics(&context).link.xdp_attached);
    }
    let before = pipeline.status().stored;
    until(10, "it goes on", || pipeline.status().stored > before + 50);
    let sent = stream.stop();
    settle(&context);
    let (status, result) = pipeline.stop();
    result.unwrap();
    assert_eq!((status.error, status.failed), (0, 0));
    let stats = settle(&context);
    assert_eq!(stats.stored, status.stored);
    assert_eq!(stats.link.changes, 6);
    check_stored(file.path(), status.stored, sent);
}

#[test]
fn a_cable_that_flaps_twenty_times_under_traffic_costs_nothing_but_what_was_on_it() {
    if !is_root("a_cable_that_flaps_twenty_times_under_traffic_costs_nothing_but_what_was_on_it") {
        return;
    }
    keep_log();
    let veth = Veth::new();
    let file = Scratch::new(env!("CARGO_TARGET_TMPDIR"), "flaps");
    let context = Arc::new(Context::open(&config(&veth, file.path())).unwrap());
    let pipeline = Pipeline::start(context.clone(), PipelineConfig::default()).unwrap();
    let stream = Stream::start(&veth);
    let cable = |up: &str| ip(&format!("-n {} link set {} {up}", veth.ns, veth.peer));
    for flap in 0..20 {
        cable("down");
        // Some too short to be seen, some long enough.
        std::thread::sleep(Duration::from_millis(if flap % 4 == 0 { 600 } else { 20 }));
        cable("up");
        let before = pipeline.status().stored;
        until(10, "packets after a flap", || {
            pipeline.status().stored > before
        });
    }
    let sent = stream.stop();
    let stats = settle(&context);
    let lines = said(&veth.host, "is down") + said(&veth.host, "is up again");
    assert!(stats.link.up);
    assert_eq!(stats.link.changes, lines as u64, "one line for each change");
    assert!((10..=40).contains(&stats.link.changes), "{:?}", stats.link);
    assert!(stats.link.xdp_attached && stats.link.xdp_changes == 0);
    let (status, result) = pipeline.stop();
    result.unwrap();
    assert_eq!(status.error, 0);
    check_stored(file.path(), status.stored, sent);
    drop(context);
    let index = unified::sys::link::index_of(&veth.host).unwrap();
    assert!(bpf::attached(index).is_none());
}

/// The interface ends under traffic: typed error, what was received is stored, nothing is left.
fn loses_its_interface(act: impl Fn(&Veth), words: &str) {
    keep_log();
    let veth = Veth::new();
    let file = Scratch::new(env!("CARGO_TARGET_TMPDIR"), "gone");
    let context = Arc::new(Context::open(&config(&veth, file.path())).unwrap());
    let pipeline = Pipeline::start(context.clone(), PipelineConfig::default()).unwrap();
    let stream = Stream::start(&veth);
    until(10, "packets come", || pipeline.status().stored > 100);
    act(&veth);
    within_a_second("the pipeline ends", || !pipeline.status().running);
    assert_eq!(
        said(&veth.host, words),
        2,
        "the change, and why the thread ended"
    );
    let sent = stream.stop();
    let stats = statistics(&context);
    assert!(!stats.link.up && !stats.link.xdp_attached);
    // The end, and before it perhaps that it goes down.
    assert!((1..=2).contains(&stats.link.changes), "{:?}", stats.link);
    let (status, result) = pipeline.stop();
    // The storing itself is in order: everything is flushed.
    result.unwrap();
    assert_eq!(status.error, libc::ENODEV);
    assert_eq!((status.durable, status.failed), (status.submitted, 0));
    assert!(status.stored > 100);
    let stats = statistics(&context);
    assert_eq!(stats.received, stats.stored);
    assert_eq!(stats.rx_pending, 0);
    assert_eq!(status.stored, stats.stored);
    check_stored(file.path(), status.stored, sent);
    // By hand the same, at once, and again.
    for _ in 0..3 {
        let start = Instant::now();
        for error in [
            context.receive(&mut [Received::default(); 4]).unwrap_err(),
            context.wait(Ready::RX, None).unwrap_err(),
        ] {
            assert_eq!(error.errno(), libc::ENODEV, "{error}");
            assert!(error.message().contains(words), "{error}");
            assert!(error.message().contains(&veth.host), "{error}");
        }
        assert!(start.elapsed() < Duration::from_millis(100));
    }
    drop(context);
}

#[test]
fn a_deleted_interface_ends_receiving_and_keeps_what_came() {
    if !is_root("a_deleted_interface_ends_receiving_and_keeps_what_came") {
        return;
    }
    loses_its_interface(|veth| ip(&format!("link del {}", veth.host)), "was deleted");
}

#[test]
fn an_interface_moved_to_another_namespace_ends_receiving_and_can_come_back() {
    if !is_root("an_interface_moved_to_another_namespace_ends_receiving_and_can_come_back") {
        return;
    }
    let moved = |veth: &Veth| {
        ip(&format!("link set {} netns {}", veth.host, veth.ns));
    };
    loses_its_interface(moved, "was moved");
    // It comes back while the process lives, with the program still on it: that is nobody's now.
    let veth = Veth::new();
    let file = Scratch::new(env!("CARGO_TARGET_TMPDIR"), "back");
    let config = config(&veth, file.path());
    let context = Context::open(&config).unwrap();
    moved(&veth);
    within_a_second("noticed", || !statistics(&context).link.xdp_attached);
    drop(context);
    ip(&format!(
        "-n {} link set {} netns {}",
        veth.ns,
        veth.host,
        std::process::id()
    ));
    ip(&format!("addr add {}/30 dev {}", veth.host_addr, veth.host));
    ip(&format!("link set {} up", veth.host));
    let context = Context::open(&config).unwrap();
    let stream = Stream::start(&veth);
    until(10, "packets come", || {
        let _ = context.receive(&mut [Received::default(); 1]).unwrap();
        statistics(&context).received > 5
    });
    drop(stream);
    let index = context.info().network.unwrap().ifindex;
    drop(context);
    assert!(bpf::attached(index).is_none());
}

#[test]
fn an_event_loop_is_woken_by_the_link_and_does_not_spin() {
    if !is_root("an_event_loop_is_woken_by_the_link_and_does_not_spin") {
        return;
    }
    keep_log();
    let veth = Veth::new();
    let context = Context::open(&config(&veth, "null:")).unwrap();
    let fd = context.poll_fd().unwrap();
    let poll =
        |ms| unified::sys::event::poll_readable(&[fd], Some(Duration::from_millis(ms))).unwrap();
    // One turn of a loop: how often it was woken until nothing more came.
    let turns = || {
        let mut turns = 0;
        while poll(700) && turns < 1000 {
            turns += 1;
            while !context
                .receive(&mut [Received::default(); 4])
                .unwrap()
                .eq(&0)
            {}
            let _ = context.completions(&mut [Default::default(); 4]).unwrap();
        }
        turns
    };
    turns();
    // What becomes of other interfaces is not for this one.
    for _ in 0..30 {
        drop(Veth::new());
    }
    assert_eq!(turns(), 0, "woken by other interfaces");
    for round in 1..=2 {
        ip(&format!("link set {} down", veth.host));
        assert!(turns() < 50, "it must not spin");
        assert_eq!(said(&veth.host, "is down"), round);
        ip(&format!("link set {} up", veth.host));
        assert!(turns() < 50, "it must not spin");
        assert_eq!(said(&veth.host, "is up again"), round);
    }
    ip(&format!("link del {}", veth.host));
    assert!(poll(1000), "the end wakes too");
    until(2, "the end is told", || {
        poll(100);
        context
            .receive(&mut [Received::default(); 4])
            .is_err_and(|e| e.errno() == libc::ENODEV)
    });
}

// ---- The XDP program ----

/// A program that passes everything, compiled here.
struct Passer(Scratch);

impl Passer {
    fn new() -> Passer {
        let source = Scratch::new(env!("CARGO_TARGET_TMPDIR"), "passer.c");
        let object = Scratch::new(env!("CARGO_TARGET_TMPDIR"), "passer.o");
        let text = "__attribute__((section(\"xdp\"), used)) int passer(void *ctx) { return 2; }\n\
                    char _license[] __attribute__((section(\"license\"), used)) = \"GPL\";\n";
        fs::write(&source.0, text).unwrap();
        let output = Command::new("clang")
            .args([
                "-O2",
                "-x",
                "c",
                "-target",
                "bpf",
                "-c",
                source.path(),
                "-o",
                object.path(),
            ])
            .output()
            .unwrap();
        assert!(output.status.success(), "{output:?}");
        Passer(object)
    }

    fn replace_on(&self, ifname: &str) {
        ip(&format!(
            "-force link set dev {ifname} xdp obj {} sec xdp",
            self.0.path()
        ));
    }
}

#[test]
fn an_xdp_program_that_somebody_takes_off_is_reported_and_not_fought_over() {
    if !is_root("an_xdp_program_that_somebody_takes_off_is_reported_and_not_fought_over") {
        return;
    }
    keep_log();
    let veth = Veth::new();
    let passer = Passer::new();
    let host = &veth.host;
    for replaced in [false, true] {
        let file = Scratch::new(env!("CARGO_TARGET_TMPDIR"), "taken-off");
        let context = Arc::new(Context::open(&config(&veth, file.path())).unwrap());
        let own = context.info().network.unwrap();
        let pipeline = Pipeline::start(context.clone(), PipelineConfig::default()).unwrap();
        let stream = Stream::start(&veth);
        until(10, "packets come", || pipeline.status().stored > 50);
        let words = if replaced {
            passer.replace_on(host);
            "replaced the XDP program"
        } else {
            ip(&format!("link set dev {host} xdp off"));
            "detached the XDP program"
        };
        within_a_second("logged", || said(host, words) == 1);
        let link = statistics(&context).link;
        assert!(link.up && !link.xdp_attached);
        assert_eq!(link.xdp_changes, 1);
        // Nothing was put back, neither now nor a second later, and nothing ended.
        std::thread::sleep(Duration::from_millis(700));
        let there = bpf::attached(own.ifindex);
        match &there {
            Some(list) => {
                assert!(replaced, "{list:?}");
                assert_ne!(list.programs[0].id, own.program_id);
            }
            None => assert!(!replaced),
        }
        assert_eq!(said(host, words), 1);
        assert!(pipeline.status().running);
        let sent = stream.stop();
        settle(&context);
        let (status, result) = pipeline.stop();
        result.unwrap();
        check_stored(file.path(), status.stored, sent);
        let busy = Context::open(&config(&veth, "null:"));
        if replaced {
            assert_eq!(busy.err().unwrap().errno(), libc::EBUSY);
        }
        drop(context);
        let left = bpf::attached(own.ifindex).map(|list| list.programs[0].id);
        assert_eq!(
            left,
            there.map(|list| list.programs[0].id),
            "the other's program stays"
        );
        ip(&format!("-force link set dev {host} xdp off"));
        // Anew, and everything is as before.
        let context = Context::open(&config(&veth, "null:")).unwrap();
        let stream = Stream::start(&veth);
        until(10, "packets come", || {
            let _ = context.receive(&mut [Received::default(); 1]).unwrap();
            statistics(&context).received > 5
        });
        drop(stream);
        drop(context);
        assert!(bpf::attached(own.ifindex).is_none());
    }
}
