//! How packets become records.

use super::*;

#[test]
fn moderation_gathers_packets_into_one_write() {
    if !is_root("moderation_gathers_packets_into_one_write") {
        return;
    }
    let veth = Veth::new();
    let operations = |moderation| {
        let file = Scratch::new("/dev/shm", "moderation");
        let mut config = config(&veth.host, file.path(), 1000, Drive::Inline);
        (config.rx_ring, config.fill_ring, config.frame_count) = (8192, 8192, 16384);
        let context = Arc::new(Context::open(&config).unwrap());
        let pipeline = PipelineConfig {
            moderation,
            ..slots()
        };
        let pipeline = Pipeline::start(context.clone(), pipeline).unwrap();
        veth.send(9999, payloads(0, 500), 10_000).join().unwrap();
        assert_eq!(finish(pipeline, 500).stored, 500);
        let stats = context.statistics().unwrap();
        common::check_sums(&stats, 16384);
        stats.operations
    };
    // 20 packets come in the 2 ms that this ring allows. A busy machine finds more together, never fewer.
    let gathered = operations(PipelineConfig::default().moderation);
    assert!(gathered <= 100, "{gathered}");
    // Without, each is found alone, whenever the machine lets the thread run.
    let single = (0..10).map(|_| operations(Some(Duration::from_micros(1))));
    assert!(single.into_iter().any(|count| count > 150));
}

#[test]
fn no_byte_of_another_packet_is_in_a_slot() {
    if !is_root("no_byte_of_another_packet_is_in_a_slot") {
        return;
    }
    let veth = Veth::new();
    let file = Scratch::new(env!("CARGO_TARGET_TMPDIR"), "clean");
    let mut config = config(&veth.host, file.path(), 1000, Drive::Thread);
    // Few frames, so that each is used many times: long packets first, then short ones in the same frames.
    config.frame_count = 64;
    config.fill_ring = 64;
    config.rx_ring = 64;
    let context = Arc::new(Context::open(&config).unwrap());
    // All frames are in the fill ring: the log cannot be opened through it.
    let error = Pipeline::start(context.clone(), slots()).err();
    drop(context);
    assert_eq!(error.unwrap().errno(), libc::ENOBUFS);
    config.frame_count = 128;
    let context = Arc::new(Context::open(&config).unwrap());
    let pipeline = Pipeline::start(context.clone(), slots()).unwrap();
    let mut sent: Vec<Vec<u8>> = (0..300).map(|i| payload(i, 1472)).collect();
    sent.extend((300..600).map(|i| payload(i, 1 + i as usize % 50)));
    // The RX ring is short: a disk that is busy for a tenth of a second loses none.
    veth.send(9999, sent.clone(), 500).join().unwrap();
    let status = finish(pipeline, 600);
    assert_eq!(status.stored, 600);
    drop(context);
    let bytes = std::fs::read(file.path()).unwrap();
    for (i, payload) in sent.iter().enumerate() {
        let slot = &bytes[(i + 2) * FRAME as usize..][..FRAME as usize];
        assert!(slot[512..512 + payload.len()] == payload[..], "payload {i}");
        assert!(slot[64..470].iter().all(|b| *b == 0), "before packet {i}");
        let behind = &slot[512 + payload.len()..];
        assert!(behind.iter().all(|b| *b == 0), "behind packet {i}");
    }
}

#[test]
fn the_end_of_the_range() {
    if !is_root("the_end_of_the_range") {
        return;
    }
    let veth = Veth::new();
    let file = Scratch::new(env!("CARGO_TARGET_TMPDIR"), "end");
    let config = config(&veth.host, file.path(), 100, Drive::Thread);
    let context = Arc::new(Context::open(&config).unwrap());
    let pipeline = Pipeline::start(context.clone(), slots()).unwrap();
    veth.send(9999, payloads(0, 130), 20_000).join().unwrap();
    let status = finish(pipeline, 130);
    assert_eq!((status.stored, status.no_space), (100, 30));
    assert_eq!(status.error, libc::ENOSPC);
    common::check_sums(&context.statistics().unwrap(), 4096);
    assert_eq!(read_all(file.path()).len(), 100);

    // The same log may go on by wrapping: the newest overwrite the oldest.
    let wraps = PipelineConfig {
        at_end: AtEnd::Wrap,
        ..slots()
    };
    let pipeline = Pipeline::start(context.clone(), wraps).unwrap();
    assert_eq!(pipeline.status().first_sequence, 100);
    veth.send(9999, payloads(100, 150), 20_000).join().unwrap();
    let status = finish(pipeline, 150);
    assert_eq!((status.stored, status.no_space, status.wraps), (150, 0, 2));
    let found = read_all(file.path());
    assert_eq!((found[0].0, found.len()), (150, 100));
    for (sequence, bytes) in found {
        assert!(bytes == payloads(sequence as u32, 1)[0]);
    }

    // Another range is not taken for the same log; a new one may replace it.
    let half = PipelineConfig {
        blocks: 4 * 52,
        ..slots()
    };
    let error = Pipeline::start(context.clone(), half).err().unwrap();
    assert_eq!(error.errno(), libc::EINVAL);
    assert!(error.message().contains("100 slots"), "{error}");
    let replace = PipelineConfig {
        existing: Existing::Replace,
        ..half
    };
    let pipeline = Pipeline::start(context, replace).unwrap();
    assert_eq!(pipeline.status().first_sequence, 0);
    assert_eq!(finish(pipeline, 0).stored, 0);
    assert!(read_all(file.path()).is_empty());
}

#[test]
fn a_log_never_has_more_in_flight_than_it_has_slots() {
    if !is_root("a_log_never_has_more_in_flight_than_it_has_slots") {
        return;
    }
    for drive in [Drive::Inline, Drive::Thread] {
        let veth = Veth::new();
        let file = Scratch::new(env!("CARGO_TARGET_TMPDIR"), "lap");
        let config = config(&veth.host, file.path(), 16, drive);
        let context = Arc::new(Context::open(&config).unwrap());
        let wraps = PipelineConfig {
            at_end: AtEnd::Wrap,
            ..slots()
        };
        let pipeline = Pipeline::start(context.clone(), wraps).unwrap();
        // The RX ring holds 2048 of them: a disk that stores 5,000 a second loses none.
        let sender = veth.send(9999, payloads(0, 3000), 15_000);
        let (mut most, mut looks) = (0, 0);
        let until = Instant::now() + Duration::from_secs(20);
        while pipeline.status().completed < 3000 {
            // The order of these two makes the difference too small, never too large.
            let submitted = pipeline.status().submitted;
            most = most.max(submitted.saturating_sub(pipeline.status().completed));
            looks += 1;
            // Spinning would take the core from the threads that are looked at.
            std::thread::sleep(Duration::from_micros(20));
            assert!(Instant::now() < until, "{:?}", pipeline.status());
        }
        sender.join().unwrap();
        assert!(most <= 16, "{most} of 16 in flight");
        assert!(looks > 100, "looked {looks} times only");
        let status = finish(pipeline, 3000);
        assert_eq!((status.stored, status.failed), (3000, 0));
        let found = read_all(file.path());
        let expected: Vec<u64> = (3000 - 16..3000).collect();
        assert_eq!(found.iter().map(|f| f.0).collect::<Vec<_>>(), expected);
    }
}

#[test]
fn group_flushes_say_what_is_durable() {
    if !is_root("group_flushes_say_what_is_durable") {
        return;
    }
    let veth = Veth::new();
    let file = Scratch::new(env!("CARGO_TARGET_TMPDIR"), "flush");
    let config = config(&veth.host, file.path(), 2000, Drive::Thread);
    let context = Arc::new(Context::open(&config).unwrap());
    let flushing = PipelineConfig {
        flush_writes: Some(100),
        flush_interval: Some(Duration::from_millis(20)),
        ..slots()
    };
    let pipeline = Pipeline::start(context, flushing).unwrap();
    veth.send(9999, payloads(0, 550), 5_000).join().unwrap();
    let start = Instant::now();
    loop {
        let status = pipeline.status();
        assert!(status.durable <= status.completed);
        if status.durable == 550 {
            assert!(status.flushes >= 2, "{status:?}");
            break;
        }
        assert!(start.elapsed() < Duration::from_secs(10), "{status:?}");
        std::thread::sleep(Duration::from_millis(1));
    }
    pipeline.stop().1.unwrap();
}
