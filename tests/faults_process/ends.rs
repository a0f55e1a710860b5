//! However a recorder ends, stops or forks.

use super::*;

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
                context.submit_flush(None, 1).err(),
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
            if own.frame_alloc().is_err() || own.submit_flush(None, 1).is_err() {
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
        context.submit_flush(None, 7).unwrap();
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
