//! Pipelines: their range, their start and their stop.

use super::*;

struct Store {
    veth: Veth,
    file: Scratch,
    context: Arc<Context>,
    block: usize,
}

const FILE_SIZE: usize = 2 << 20;

impl Store {
    fn new(drive: Drive) -> Store {
        let veth = Veth::new();
        let file = Scratch::new(env!("CARGO_TARGET_TMPDIR"), "range");
        let mut config = Config {
            drive,
            ..config(&veth)
        };
        config.device.path = file.path().into();
        config.device.file_size = FILE_SIZE as u64;
        let context = Arc::new(Context::open(&config).unwrap());
        let block = context.info().devices[0].limits.block_size as usize;
        Store {
            veth,
            file,
            context,
            block,
        }
    }

    fn blocks(&self, payload: &[u8]) -> u64 {
        payload.len().div_ceil(self.block) as u64
    }

    fn send(&self, payloads: &[Vec<u8>]) {
        self.veth
            .send(PORT, payloads.to_vec(), 4000)
            .join()
            .unwrap();
    }

    /// Compares the whole file with payloads at their LBAs, later ones over earlier ones.
    fn compare(&self, payloads: &[(u64, Vec<u8>)]) {
        let mut want = vec![0; FILE_SIZE];
        for (lba, payload) in payloads {
            let at = *lba as usize * self.block;
            let end = at + payload.len().next_multiple_of(self.block);
            want[at..end].fill(0);
            want[at..at + payload.len()].copy_from_slice(payload);
        }
        let got = fs::read(&self.file.0).unwrap();
        let differs = got.iter().zip(&want).position(|(a, b)| a != b);
        assert_eq!((got.len(), differs), (FILE_SIZE, None));
    }
}

#[test]
fn a_full_range_stops_the_pipeline_and_loses_nothing_that_was_acknowledged() {
    if !is_root("a_full_range_stops_the_pipeline_and_loses_nothing_that_was_acknowledged") {
        return;
    }
    for drive in [Drive::Inline, Drive::Thread] {
        let store = Store::new(drive);
        let block = store.block;
        // Two blocks each; the range has room for 20 of them and one block more. The last is one that would
        // still fit, but comes too late.
        let mut sent: Vec<Vec<u8>> = (0..30).map(|i| payload(i, block + 1)).collect();
        sent.push(payload(30, 1));
        let (start, blocks) = (3, 41);
        let config = PipelineConfig {
            start_lba: start,
            blocks,
            at_end: AtEnd::Stop,
            fua: false,
            ..PipelineConfig::default()
        };
        assert!(
            block < 1472,
            "blocks of {block} bytes: take another directory"
        );
        let pipeline = Pipeline::start(store.context.clone(), config).unwrap();
        store.send(&sent);
        let status = reached(&pipeline, |s| s.stored + s.no_space == 31);
        assert_eq!(status.error, libc::ENOSPC);
        assert!(status.running, "it goes on letting packets go");
        let (status, result) = pipeline.stop();
        result.unwrap();
        let want = PipelineStatus {
            running: false,
            error: libc::ENOSPC,
            next_lba: start + 40,
            submitted: 20,
            stored: 20,
            payload_bytes: 20 * (block as u64 + 1),
            no_space: 11,
            completed: 20,
            durable: 20,
            flushes: 1,
            ..PipelineStatus::default()
        };
        assert_eq!(status, want);
        let stats = quiet(&store.context, |stats| stats.received == 31);
        assert_eq!((stats.stored, stats.failed, stats.released), (20, 0, 11));
        let stored: Vec<_> = sent[..20]
            .iter()
            .enumerate()
            .map(|(i, payload)| (start + 2 * i as u64, payload.clone()))
            .collect();
        store.compare(&stored);
    }
}

#[test]
fn a_wrapping_pipeline_keeps_the_newest() {
    if !is_root("a_wrapping_pipeline_keeps_the_newest") {
        return;
    }
    // The shorter one has room for a few payloads only: a lap must not overtake the one before it.
    for (drive, blocks) in [
        (Drive::Inline, 401),
        (Drive::Thread, 401),
        (Drive::Inline, 9),
        (Drive::Thread, 9),
    ] {
        let store = Store::new(drive);
        let (start, end) = (5u64, 5 + blocks);
        let config = PipelineConfig {
            start_lba: start,
            blocks: end - start,
            at_end: AtEnd::Wrap,
            fua: true,
            ..PipelineConfig::default()
        };
        let sent: Vec<Vec<u8>> = (0..600)
            .map(|i| payload(i, 1 + (i as usize * 389) % 1472))
            .collect();
        let (mut next, mut wraps, mut stored) = (start, 0, Vec::new());
        for payload in &sent {
            if end - next < store.blocks(payload) {
                next = start;
                wraps += 1;
            }
            stored.push((next, payload.clone()));
            next += store.blocks(payload);
        }
        assert!(wraps >= 1);
        let pipeline = Pipeline::start(store.context.clone(), config).unwrap();
        store.send(&sent);
        reached(&pipeline, |status| status.stored == 600);
        let (status, result) = pipeline.stop();
        result.unwrap();
        let want = PipelineStatus {
            next_lba: next,
            wraps,
            submitted: 600,
            stored: 600,
            payload_bytes: sent.iter().map(|p| p.len() as u64).sum(),
            completed: 600,
            durable: 600,
            flushes: 1,
            ..PipelineStatus::default()
        };
        assert_eq!(status, want);
        let stats = quiet(&store.context, |stats| stats.received == 600);
        assert_eq!((stats.stored, stats.failed, stats.released), (600, 0, 0));
        store.compare(&stored);
    }
}

#[test]
fn a_pipeline_does_not_start_over_the_callers_commands() {
    if !is_root("a_pipeline_does_not_start_over_the_callers_commands") {
        return;
    }
    for drive in [Drive::Inline, Drive::Thread] {
        let store = Store::new(drive);
        store.context.submit_flush(None, 7).unwrap();
        let config = PipelineConfig::default();
        let error = Pipeline::start(store.context.clone(), config)
            .err()
            .unwrap();
        assert_eq!(error.errno(), libc::EBUSY, "{error}");
        assert!(error.message().contains("1 commands"), "{error}");
        let mut done = [Completion::default(); 4];
        let until = Instant::now() + PATIENCE;
        while store.context.completions(&mut done).unwrap() == 0 {
            assert!(Instant::now() < until);
        }
        assert_eq!(done[0].user_data, 7);
        let pipeline = Pipeline::start(store.context.clone(), config).unwrap();
        pipeline.stop().1.unwrap();
    }
}

#[test]
fn one_pipeline_at_a_time() {
    if !is_root("one_pipeline_at_a_time") {
        return;
    }
    let store = Store::new(Drive::Inline);
    let config = PipelineConfig::default();
    for _ in 0..2 {
        let one = Pipeline::start(store.context.clone(), config).unwrap();
        let error = Pipeline::start(store.context.clone(), config)
            .err()
            .unwrap();
        assert_eq!(error.errno(), libc::EALREADY, "{error}");
        assert!(store.context.is_pipelined());
        one.stop().1.unwrap();
        assert!(!store.context.is_pipelined());
    }
    // What cannot begin leaves the context free.
    let beyond = PipelineConfig {
        start_lba: u64::MAX,
        ..config
    };
    assert!(Pipeline::start(store.context.clone(), beyond).is_err());
    assert!(!store.context.is_pipelined());
}

#[test]
fn a_pipeline_can_be_started_again() {
    if !is_root("a_pipeline_can_be_started_again") {
        return;
    }
    for drive in [Drive::Inline, Drive::Thread] {
        let store = Store::new(drive);
        let mut queue = VecDeque::new();
        let mut stored = Vec::new();
        let mut total = 0;
        for round in 0..3u32 {
            // Packets that come while none runs wait in the RX ring, for the next one.
            let early = payloads(1000 * round, 20);
            store.send(&early);
            queue.extend(early);
            let waiting = quiet(&store.context, |stats| stats.rx_pending == 20);
            assert_eq!(waiting.received, total);
            let config = PipelineConfig {
                start_lba: 500 * u64::from(round),
                blocks: 500,
                ..PipelineConfig::default()
            };
            let pipeline = Pipeline::start(store.context.clone(), config).unwrap();
            let late = payloads(1000 * round + 500, 30);
            store.send(&late);
            queue.extend(late);
            reached(&pipeline, |status| status.stored == 50);
            let (status, result) = pipeline.stop();
            result.unwrap();
            assert_eq!((status.running, status.error), (false, 0));
            assert_eq!(
                (status.submitted, status.stored, status.failed),
                (50, 50, 0)
            );
            total += 50;
            let mut lba = config.start_lba;
            for payload in queue.drain(..) {
                stored.push((lba, payload.clone()));
                lba += store.blocks(&payload);
            }
            assert_eq!(status.next_lba, lba);
            let stats = quiet(&store.context, |stats| stats.received == total);
            assert_eq!(stats.stored, total);
            store.compare(&stored);
        }
        // And by hand again, once no pipeline has the roles.
        store.send(&[payload(1, 9)]);
        assert_eq!(contents(&receive(&store.context, 1)), [&payload(1, 9)]);
    }
}

#[test]
fn a_stopping_pipeline_stores_what_has_come() {
    if !is_root("a_stopping_pipeline_stores_what_has_come") {
        return;
    }
    for drive in [Drive::Inline, Drive::Thread] {
        let store = Store::new(drive);
        let sent = payloads(0, 200);
        store.send(&sent);
        quiet(&store.context, |stats| stats.rx_pending == 200);
        // Stopped before its threads have hardly begun.
        let pipeline = Pipeline::start(store.context.clone(), PipelineConfig::default()).unwrap();
        let (status, result) = pipeline.stop();
        result.unwrap();
        assert_eq!(
            (status.submitted, status.stored, status.failed),
            (200, 200, 0)
        );
        let stats = quiet(&store.context, |stats| stats.received == 200);
        assert_eq!((stats.stored, stats.rx_pending), (200, 0));
        let mut lba = 0;
        let mut stored = Vec::new();
        for payload in sent {
            let blocks = store.blocks(&payload);
            stored.push((lba, payload));
            lba += blocks;
        }
        store.compare(&stored);
    }
}
