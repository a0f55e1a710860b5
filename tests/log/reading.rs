//! Reading back, after an end, a kill or failed writes.

use super::*;

#[test]
fn recorded_read_back_and_gone_on_with() {
    if !is_root("recorded_read_back_and_gone_on_with") {
        return;
    }
    for (drive, dir) in [
        (Drive::Inline, env!("CARGO_TARGET_TMPDIR")),
        (Drive::Thread, env!("CARGO_TARGET_TMPDIR")),
        (Drive::Thread, "/dev/shm"),
    ] {
        let veth = Veth::new();
        let file = Scratch::new(dir, "log");
        let mut expected = Vec::new();
        for round in 0..3u32 {
            let sent = payloads(round * 500, 500);
            let context = Context::open(&config(&veth.host, file.path(), 4000, drive)).unwrap();
            let context = Arc::new(context);
            let pipeline = Pipeline::start(context.clone(), slots()).unwrap();
            assert_eq!(pipeline.status().first_sequence, u64::from(round) * 500);
            veth.send(9999, sent.clone(), 20_000).join().unwrap();
            let status = finish(pipeline, 500);
            assert_eq!((status.stored, status.failed, status.error), (500, 0, 0));
            assert_eq!((status.completed, status.durable), (500, 500));
            let stats = context.statistics().unwrap();
            common::check_sums(&stats, 4096);
            assert_eq!(stats.bounced, 0);
            expected.extend(sent);
            let found = read_all(file.path());
            assert_eq!(found.len(), expected.len());
            for (i, (sequence, bytes)) in found.iter().enumerate() {
                assert_eq!(*sequence, i as u64);
                assert!(*bytes == expected[i], "record {i}");
            }
        }
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
        let mut reader = LogReader::open(Path::new(file.path()), 0).unwrap();
        reader
            .seek_time((now - Duration::from_secs(3600)).as_nanos() as u64)
            .unwrap();
        assert_eq!(reader.position(), 0, "timestamps are of today");
        reader.seek_time(now.as_nanos() as u64).unwrap();
        assert_eq!(reader.position(), 1500);
    }
}

/// Far fewer records than there are between two superblocks; but a hole as long as the failed writes leave would be
/// taken for the log's end if the superblock did not cover what lies after it.
#[test]
fn records_behind_failed_writes_are_found_again() {
    if !is_root("records_behind_failed_writes_are_found_again") {
        return;
    }
    let veth = Veth::new();
    let memory = Memory::new(1 << 20);
    let path = memory.sparse((100_000 + 2) * FRAME);
    let path = path.to_str().unwrap();
    let config = Config {
        frame_count: 16384,
        rx_ring: 8192,
        fill_ring: 8192,
        ..config(&veth.host, path, 100_000, Drive::Thread)
    };
    let context = Arc::new(Context::open(&config).unwrap());
    let pipeline = Pipeline::start(context.clone(), slots()).unwrap();
    let reached = |count: u64| {
        let until = Instant::now() + Duration::from_secs(20);
        while pipeline.status().completed < count {
            assert!(Instant::now() < until, "{:?}", pipeline.status());
            std::thread::sleep(Duration::from_millis(5));
        }
    };
    veth.send(9999, payloads(0, 6000), 50_000).join().unwrap();
    reached(6000);
    let status = pipeline.status();
    assert!(status.failed > 5000, "{status:?}");
    memory.mount("remount,size=64m");
    veth.send(9999, payloads(6000, 1000), 50_000)
        .join()
        .unwrap();
    reached(7000);
    // As a recorder finds it that comes after a crash.
    let until = Instant::now() + Duration::from_secs(5);
    let mut reader = loop {
        let mut reader = LogReader::open(Path::new(path), 0).unwrap();
        if reader.end().unwrap() == 7000 {
            break reader;
        }
        assert!(Instant::now() < until, "{:?}", reader.superblock());
        std::thread::sleep(Duration::from_millis(10));
    };
    let (mut records, mut missing) = (0, 0);
    while let Some(item) = reader.next_item().unwrap() {
        match item {
            Item::Record { .. } => records += 1,
            Item::Gap { count, .. } => missing += count,
            item => panic!("{item:?}"),
        }
    }
    assert_eq!((records, missing), (7000 - status.failed, status.failed));
    let (status, _) = pipeline.stop();
    assert_eq!((status.stored, status.failed), (records, missing));
}

/// Runs in a process of its own (see below): records until it is killed, and says what is completed.
fn record_until_killed(veth: &str, path: &str, layout: StoreLayout) {
    let config = config(veth, path, 3000, Drive::Thread);
    let context = Arc::new(Context::open(&config).unwrap());
    let wraps = PipelineConfig {
        at_end: AtEnd::Wrap,
        layout,
        ..slots()
    };
    let pipeline = Pipeline::start(context, wraps).unwrap();
    loop {
        let status = pipeline.status();
        assert_eq!(status.failed, 0);
        println!("completed {}", status.first_sequence + status.completed);
        std::thread::sleep(Duration::from_micros(500));
    }
}

#[test]
fn killed_at_any_moment_it_loses_nothing_that_was_completed() {
    if let Ok(args) = std::env::var("UNIFIED_TEST_RECORD") {
        let mut args = args.split(' ');
        let [veth, path, layout] = [(); 3].map(|()| args.next().unwrap());
        let layout = match layout {
            "log" => StoreLayout::Log,
            _ => StoreLayout::Slot,
        };
        return record_until_killed(veth, path, layout);
    }
    if !is_root("killed_at_any_moment_it_loses_nothing_that_was_completed") {
        return;
    }
    let rounds = if common::is_full_tier() { 50 } else { 8 };
    for layout in ["slot", "log"] {
        killed_again_and_again(layout, rounds);
    }
}

fn killed_again_and_again(layout: &str, rounds: u32) {
    let veth = Veth::new();
    let file = Scratch::new(env!("CARGO_TARGET_TMPDIR"), "killed");
    let mut end = 0;
    for round in 0..rounds {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .arg("--nocapture")
            .arg("killed_at_any_moment_it_loses_nothing_that_was_completed")
            .env(
                "UNIFIED_TEST_RECORD",
                format!("{} {} {layout}", veth.host, file.path()),
            )
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let mut completed = 0;
        let mut number = |line: &str| {
            if let Some(n) = line.strip_prefix("completed ") {
                completed = n.parse().unwrap_or(completed);
            }
        };
        // The libtest harness prints before the first one.
        for line in lines.by_ref() {
            let line = line.unwrap();
            number(&line);
            if line.starts_with("completed ") {
                break;
            }
        }
        let sender = veth.send(9999, payloads(round * 10_000, 2_000), 20_000);
        // A moment that differs from round to round, in the middle of the traffic.
        std::thread::sleep(Duration::from_micros(
            15_000 + u64::from(round) * 7_919 % 80_000,
        ));
        child.kill().unwrap();
        child.wait().unwrap();
        // What it had said by then is still in the pipe; a line that was cut off is not a promise.
        let rest: Vec<String> = lines.map_while(Result::ok).collect();
        for line in rest.iter().take(rest.len().saturating_sub(1)) {
            number(line);
        }
        sender.join().unwrap();

        let mut reader = LogReader::open(Path::new(file.path()), 0).unwrap();
        let new_end = reader.end().unwrap();
        assert!(new_end >= completed, "{new_end} < {completed}");
        assert!(new_end >= end);
        let mut sequence = reader.position();
        let sent = payloads(round * 10_000, 2_000);
        let mut newest_of_round = None;
        while let Some(item) = reader.next_item().unwrap() {
            match item {
                Item::Record { header, packet } => {
                    assert_eq!(header.sequence, sequence);
                    sequence += 1;
                    if header.sequence >= end {
                        // Of this round: in the order in which it was sent.
                        let bytes = &packet[42..];
                        let at = sent.iter().position(|p| p[..] == *bytes).unwrap();
                        assert!(newest_of_round.is_none_or(|newest| at > newest));
                        newest_of_round = Some(at);
                    }
                }
                Item::Gap {
                    first,
                    count,
                    damaged,
                    ..
                } => {
                    assert_eq!(first, sequence);
                    assert!(
                        first >= completed || first < end,
                        "{first} of {completed} lost"
                    );
                    assert!(!damaged || first >= completed || first < end);
                    sequence += count;
                }
                Item::Overwritten { .. } => panic!("{item:?}"),
            }
        }
        assert_eq!(sequence, new_end);
        end = new_end;
    }
    // Takes over what the last one left, and takes it down.
    drop(Context::open(&config(&veth.host, file.path(), 3000, Drive::Inline)).unwrap());
    assert!(
        end > u64::from(rounds) * 100,
        "hardly anything was recorded: {end}"
    );
}

/// A block device of which all but the beginning is lost for a while: what it failed is in the spill, is read
/// back with the others, and a recorder that comes later continues after it.
#[test]
fn what_the_device_fails_is_spilled_read_back_and_gone_on_with() {
    if !can_loop("what_the_device_fails_is_spilled_read_back_and_gone_on_with") {
        return;
    }
    const SLOTS: u64 = 400;
    const LENGTH: u64 = (SLOTS + 2) * FRAME;
    let veth = Veth::new();
    let device = LoopDevice::new(LENGTH, 512);
    let spill = Scratch::new(env!("CARGO_TARGET_TMPDIR"), "spill");
    let resize = |length| {
        let backing = std::fs::File::options().write(true).open(&device.backing.0);
        backing.unwrap().set_len(length).unwrap();
        run("losetup", &["--set-capacity", &device.node]);
    };
    let mut config = config(&veth.host, &device.node, SLOTS, Drive::Thread);
    config.device.spill = Some(device.node.clone());
    assert_eq!(Context::open(&config).err().unwrap().errno(), libc::EINVAL);
    config.device.spill = Some(spill.path().into());
    let sent = payloads(0, 300);
    for (first, spilled) in [(0, 50), (150, 0)] {
        let context = Arc::new(Context::open(&config).unwrap());
        let pipeline = Pipeline::start(context.clone(), slots()).unwrap();
        assert_eq!(pipeline.status().first_sequence, first as u64);
        if spilled > 0 {
            // Two superblocks and a hundred records.
            resize(102 * FRAME);
        }
        let part = sent[first..first + 150].to_vec();
        veth.send(9999, part, 5000).join().unwrap();
        let status = finish(pipeline, 150);
        assert_eq!((status.stored, status.failed, status.error), (150, 0, 0));
        let stats = context.statistics().unwrap();
        common::check_sums(&stats, 4096);
        assert_eq!((stats.spilled, stats.errors), (spilled, 0));
        assert_eq!(stats.spilled_bytes, spilled * FRAME);
        drop(context);
        resize(LENGTH);
    }
    let path = Path::new(&device.node);
    let mut reader = LogReader::open(path, 0).unwrap();
    reader.add_spill(Path::new(spill.path())).unwrap();
    let found = read_through(reader);
    assert_eq!(found.len(), sent.len());
    for (i, (sequence, bytes)) in found.iter().enumerate() {
        assert_eq!(*sequence, i as u64);
        assert!(*bytes == sent[i], "record {i}");
    }
    let mut without = LogReader::open(path, 0).unwrap();
    while without.next_item().unwrap().is_some() {}
    let tally = without.tally();
    assert_eq!((tally.records, tally.missing), (250, 50));
    assert!(without.add_spill(Path::new("/nonexistent")).is_err());
}

#[test]
fn a_follower_is_told_of_a_log_that_was_begun_anew() {
    if !is_root("a_follower_is_told_of_a_log_that_was_begun_anew") {
        return;
    }
    let veth = Veth::new();
    let file = Scratch::new("/dev/shm", "anew");
    let config = config(&veth.host, file.path(), 1000, Drive::Inline);
    let record = |count, existing| {
        let context = Arc::new(Context::open(&config).unwrap());
        let pipeline = PipelineConfig {
            existing,
            ..slots()
        };
        let pipeline = Pipeline::start(context.clone(), pipeline).unwrap();
        veth.send(9999, payloads(0, count), 10_000).join().unwrap();
        assert_eq!(finish(pipeline, count.into()).stored, u64::from(count));
        let stats = context.statistics().unwrap();
        common::check_sums(&stats, config.frames(1));
    };
    record(100, Existing::Continue);
    // At the end of the old log, in the middle of the overwritten part, and after it.
    for position in [100, 20, 60] {
        let mut reader = LogReader::open(Path::new(file.path()), 0).unwrap();
        reader.seek(position).unwrap();
        record(50, Existing::Replace);
        let mut old = position;
        let error = loop {
            match reader.follow(Duration::from_secs(3)) {
                // Old records that are still there may be handed out, in order.
                Ok(Some(Item::Record { header, .. })) => {
                    assert_eq!(header.sequence, old);
                    old += 1;
                }
                Ok(other) => panic!("{other:?} from position {position} on"),
                Err(error) => break error,
            }
        };
        assert_eq!(error.errno(), libc::ENOMSG, "{error}");
        assert_eq!(read_all(file.path()).len(), 50);
        record(50, Existing::Continue);
    }
}
