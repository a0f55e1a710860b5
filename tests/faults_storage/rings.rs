//! Rings that are full of failures, or overwritten.

use super::*;

/// Nobody takes completions: the engine stops taking entries, costs nothing, and loses none. All of them fail.
#[test]
fn a_full_completion_ring_of_failures() {
    if !is_root("a_full_completion_ring_of_failures") {
        return;
    }
    let memory = Memory::new(FRAME as u64);
    let path = memory.sparse(4 << 20);
    for drive in DRIVES {
        let config = Config {
            sq_entries: 16,
            cq_entries: 8,
            ..storage_config(path.to_str().unwrap(), drive)
        };
        let rig = Rig::open(&config);
        let mut submitted = Vec::new();
        let start = Instant::now();
        loop {
            assert!(start.elapsed() < Duration::from_secs(20));
            let frame = rig.stale_frame();
            // Far apart, so that nothing merges; only the first has room.
            let lba = 8 + submitted.len() as u64 * 64;
            let transfer = rig.transfer(frame, 0, FRAME, lba);
            match rig.context.submit_write(&transfer) {
                Ok(()) => submitted.push(transfer.user_data),
                Err(error) => {
                    assert_eq!(error.errno(), libc::EAGAIN);
                    rig.context.frame_release(frame).unwrap();
                    // The engine may still be taking some.
                    std::thread::sleep(Duration::from_millis(50));
                    if rig.context.statistics().unwrap().sq_full > 3 {
                        break;
                    }
                }
            }
            if drive == Drive::Inline && submitted.len() == 16 {
                break;
            }
        }
        if drive == Drive::Thread {
            assert_eq!(submitted.len(), 16 + 8, "both rings are full");
            let sleeps = rig.context.statistics().unwrap().sleeps;
            std::thread::sleep(Duration::from_millis(300));
            let woken = rig.context.statistics().unwrap().sleeps - sleeps;
            assert!(woken <= 1, "woke {woken} times for nothing");
        }
        let done = rig.take(submitted.len());
        let mut ids: Vec<u64> = done.iter().map(|d| d.user_data).collect();
        ids.sort_unstable();
        assert_eq!(ids, submitted);
        let failed = done
            .iter()
            .filter(|d| d.status == status::CAPACITY_EXCEEDED)
            .count();
        assert!(failed + 1 >= submitted.len(), "{failed}");
        assert_eq!(rig.context.statistics().unwrap().errors, failed as u64);
    }
}

/// Numbers for a fuzz loop.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    fn below(&mut self, end: u64) -> u64 {
        (self.next() >> 16) % end
    }

    /// A word as a corrupted ring has it: near an index, at an edge, or anything.
    fn word(&mut self, near: u32) -> u32 {
        match self.below(4) {
            0 => near.wrapping_add(self.below(9) as u32).wrapping_sub(4),
            1 => near.wrapping_add(64).wrapping_sub(self.below(129) as u32),
            2 => [0, 1, 0x7fff_ffff, 0x8000_0000, u32::MAX][self.below(5) as usize],
            _ => self.next() as u32,
        }
    }
}

/// Writes nonsense into the rings of a context, through the process's own memory file: as the program that the
/// region is shared with could.
fn scribble(context: &Context, random: &mut Random) {
    let info = context.info();
    let layout = info.layout;
    let memory = File::options()
        .read(true)
        .write(true)
        .open("/proc/self/mem")
        .unwrap();
    let rings = layout.rings(0);
    let at = |offset: usize| (info.region_address + offset) as u64;
    for _ in 0..=random.below(3) {
        match random.below(8) {
            // A word of a ring: producer, consumer, cached indices, flags, entries, mask, size.
            0..4 => {
                let ring = [rings.sq_ring, rings.cq_ring][random.below(2) as usize];
                // The indices more often than the rest.
                let word = match random.below(2) {
                    0 => random.below(2),
                    _ => random.below(10),
                } as usize;
                let mut near = [0; 4];
                memory.read_exact_at(&mut near, at(ring)).unwrap();
                let value = random.word(u32::from_le_bytes(near));
                memory
                    .write_all_at(&value.to_le_bytes(), at(ring + 4 * word))
                    .unwrap();
            }
            // A piece of an SQ or CQ entry: opcodes, addresses, offsets, lengths, LBAs.
            kind => {
                let (start, len) = match kind {
                    4..7 => (rings.sq_entries, layout.sq_count as u64 * 96),
                    _ => (rings.cq_entries, layout.cq_count as u64 * 32),
                };
                let offset = start + (random.below(len / 4) * 4) as usize;
                let value = match random.below(3) {
                    0 => random.below(12) as u32,
                    _ => random.word(0),
                };
                memory
                    .write_all_at(&value.to_le_bytes(), at(offset))
                    .unwrap();
            }
        }
    }
}

const SECRET: u8 = 0x5c;

/// Contexts whose rings are corrupted while they work, until the time is over; says how many, and how many
/// ended in the error state.
fn corrupt_rings(seed: u64, time: Duration) -> (u64, u64) {
    let start = Instant::now();
    let mut random = Random(seed | 1);
    let (mut rounds, mut broken) = (0, 0);
    // Memory that is no part of any region.
    let secret = vec![SECRET; 1 << 20];
    while start.elapsed() < time {
        rounds += 1;
        let file = Scratch::new("/dev/shm", "corrupt");
        let path = match rounds % 4 {
            0 => "null:1048576",
            _ => file.path(),
        };
        let mut config = Config {
            sq_entries: 16,
            cq_entries: 16,
            frame_count: 64,
            frame_size: 2048,
            ..storage_config(path, DRIVES[rounds as usize % 2])
        };
        if rounds % 4 != 0 {
            config.device.file_size = 1 << 20;
        }
        let context = Context::open(&config).unwrap();
        context.data().write(0, &vec![STALE; context.data().len()]);
        let mut errors = 0;
        let mut held = Vec::new();
        for step in 0..200u64 {
            let outcome = match random.below(6) {
                0..3 => {
                    let frame = held.pop().map_or_else(|| context.frame_alloc(), Ok);
                    frame.and_then(|frame| {
                        let transfer = Transfer {
                            frame,
                            offset: u64::from(frame) * 2048,
                            len: 512 * (1 + random.below(4) as u32),
                            lba: random.below(2000),
                            user_data: step,
                            keep: random.below(2) == 0,
                            ..Transfer::default()
                        };
                        match random.below(2) {
                            0 => context.submit_write(&transfer),
                            _ => context.submit_read(&transfer),
                        }
                    })
                }
                3 => context.submit_flush(None, step),
                4 => context
                    .wait(Ready::COMPLETIONS, Some(Duration::from_millis(1)))
                    .map(drop),
                _ => {
                    let mut done = [Completion::default(); 8];
                    context.completions(&mut done).map(|count| {
                        assert!(count <= done.len());
                        held.extend(done[..count].iter().filter_map(|d| d.frame));
                    })
                }
            };
            if let Err(error) = outcome {
                match error.errno() {
                    libc::EBADMSG => {
                        errors += 1;
                        if errors > 8 {
                            break;
                        }
                    }
                    libc::EAGAIN | libc::ENOBUFS => {}
                    // A frame that a corrupted completion gave back, twice or too early.
                    libc::EINVAL | libc::EBUSY => {}
                    _ => panic!("{error}"),
                }
            }
            if step > 20 && random.below(4) == 0 {
                scribble(&context, &mut random);
            }
            let frames = context.statistics().unwrap().frames;
            let sum = frames.free + frames.filled + frames.held + frames.in_flight;
            assert_eq!(sum, 64, "{frames:?}");
        }
        broken += u64::from(errors > 0);
        let end = Instant::now();
        drop(context);
        let took = end.elapsed();
        assert!(took < Duration::from_secs(5), "teardown took {took:?}");
        assert!(
            secret.iter().all(|b| *b == SECRET),
            "memory outside was written"
        );
        if let Ok(stored) = fs::read(&file.0) {
            assert_eq!(stored.len(), 1 << 20, "the device grew");
            let leaked = stored.windows(8).any(|w| w == [SECRET; 8]);
            assert!(!leaked, "memory outside was stored");
        }
    }
    (rounds, broken)
}

/// A child does it, so that an endless loop or a crash is seen from outside.
#[test]
fn rings_corrupted_while_the_engine_runs() {
    const TEST: &str = "rings_corrupted_while_the_engine_runs";
    let seconds = if common::is_full_tier() { 30 } else { 4 };
    if let Some(seed) = child_task() {
        let (rounds, broken) = corrupt_rings(seed.parse().unwrap(), Duration::from_secs(seconds));
        println!("\nrounds {rounds} broken {broken}.");
        return;
    }
    let children = [0x9e37_79b9, 0xdead_beef].map(|seed: u64| Own::start(TEST, &seed.to_string()));
    for child in children {
        let said = child.finish(Duration::from_secs(seconds + 30));
        let line = said.lines().find(|l| l.starts_with("rounds ")).unwrap();
        let numbers: Vec<u64> = line
            .split([' ', '.'])
            .filter_map(|w| w.parse().ok())
            .collect();
        assert!(numbers[0] > 10 && numbers[1] > numbers[0] / 10, "{line}");
        eprintln!("{line}");
    }
}
