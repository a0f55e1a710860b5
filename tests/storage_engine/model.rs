//! Random commands against a model of a device.

use super::*;

/// What a command in flight is to end with.
struct Expected {
    status: u16,
    blocks: Range<usize>,
    frame: Option<u32>,
    bytes: Option<Vec<u8>>,
}

/// The device as it should be, and what is in flight.
struct Model<'a> {
    rig: &'a Rig,
    image: Vec<u8>,
    flying: HashMap<u64, Expected>,
    number: u32,
}

impl Model<'_> {
    fn settle(&mut self, count: usize) {
        self.rig.context.submit_pending().unwrap();
        for done in self.rig.take(count.min(self.flying.len())) {
            let Some(expected) = self.flying.remove(&done.user_data) else {
                panic!("not in flight, or twice: {done:?}");
            };
            assert_eq!((done.status, done.result), (expected.status, 0), "{done:?}");
            assert_eq!(done.frame, expected.frame, "{done:?}");
            if let Some(frame) = done.frame {
                if let Some(bytes) = expected.bytes {
                    let found = self.rig.bytes(frame, 0, bytes.len());
                    assert!(found == bytes, "read of blocks {:?}", expected.blocks);
                }
                self.rig.context.frame_release(frame).unwrap();
            }
        }
    }

    /// The device orders nothing: commands on the same blocks wait for each other.
    fn clear(&mut self, lba: usize, count: usize) -> Range<usize> {
        let blocks = lba..lba + count;
        let crosses = |e: &Expected| e.blocks.start < blocks.end && blocks.start < e.blocks.end;
        if self.flying.values().any(crosses) {
            self.settle(self.flying.len());
        }
        blocks
    }

    fn bytes_of(&self, blocks: &Range<usize>) -> Option<Range<usize>> {
        (blocks.end <= BLOCKS).then_some(blocks.start * BLOCK..blocks.end * BLOCK)
    }

    /// Submits until it is taken: EAGAIN is answered by taking a completion.
    fn submit(
        &mut self,
        expected: Expected,
        submit: impl Fn(&Context, u64) -> unified::Result<()>,
    ) {
        let id = self.rig.id();
        while let Err(error) = submit(&self.rig.context, id) {
            assert_eq!(error.errno(), libc::EAGAIN, "{error}");
            self.settle(1);
        }
        self.flying.insert(id, expected);
    }

    fn step(&mut self, command: &Command) {
        self.number += 1;
        match *command {
            Command::Write {
                lba,
                len,
                at,
                keep,
                fua,
                more,
            } => {
                let blocks = self.clear(lba, len.div_ceil(BLOCK));
                let frame = self.frame();
                let bytes = payload(self.number, len);
                self.rig.fill(frame, at, &bytes);
                let inside = self.bytes_of(&blocks);
                if let Some(range) = inside.clone() {
                    self.image[range.clone()].fill(0);
                    self.image[range.start..range.start + len].copy_from_slice(&bytes);
                }
                let expected = Expected {
                    status: if inside.is_some() { 0 } else { 0x080 },
                    blocks,
                    frame: keep.then_some(frame),
                    bytes: None,
                };
                let transfer = Transfer {
                    keep,
                    fua,
                    more,
                    ..self.rig.transfer(frame, at, len, lba as u64)
                };
                self.submit(expected, |context, user_data| {
                    context.submit_write(&Transfer {
                        user_data,
                        ..transfer
                    })
                });
            }
            Command::Read { lba, blocks } => self.look(lba, blocks, None, false),
            Command::Compare { lba, blocks, flip } => self.look(lba, blocks, flip, true),
            Command::Zeroes { lba, blocks } | Command::Deallocate { lba, blocks } => {
                let range = self.clear(lba, blocks);
                let inside = self.bytes_of(&range);
                if let Some(bytes) = inside.clone() {
                    self.image[bytes].fill(0);
                }
                let expected = Expected {
                    status: if inside.is_some() { 0 } else { 0x080 },
                    blocks: range,
                    frame: None,
                    bytes: None,
                };
                let (lba, blocks) = (lba as u64, blocks as u32);
                let zeroes = matches!(command, Command::Zeroes { .. });
                if !zeroes && self.rig.context.statistics().unwrap().frames.free == 0 {
                    self.settle(self.flying.len());
                }
                self.submit(expected, |context, id| match zeroes {
                    true => context.submit_write_zeroes(&Blocks::new(lba, blocks, id), id % 2 == 0),
                    false => context.submit_deallocate(&Blocks::new(lba, blocks, id)),
                });
            }
            Command::Flush => {
                let expected = Expected {
                    status: 0,
                    blocks: 0..0,
                    frame: None,
                    bytes: None,
                };
                self.submit(expected, |context, id| context.submit_flush(None, id));
            }
            Command::Take(count) => self.settle(count),
        }
        let f = self.rig.context.statistics().unwrap().frames;
        let frames = self.rig.context.info().frame_count;
        assert_eq!(f.free + f.held + f.in_flight, u64::from(frames), "{f:?}");
        assert_eq!((f.held, f.filled), (0, 0), "{f:?}");
    }

    fn frame(&mut self) -> u32 {
        if self.rig.context.statistics().unwrap().frames.free == 0 {
            self.settle(self.flying.len());
        }
        self.rig.stale_frame()
    }

    /// A read, or a compare with one byte changed or none.
    fn look(&mut self, lba: usize, count: usize, flip: Option<usize>, compare: bool) {
        let blocks = self.clear(lba, count);
        let frame = self.frame();
        let mut bytes = None;
        let mut status = 0x080;
        if let Some(range) = self.bytes_of(&blocks) {
            let mut there = self.image[range].to_vec();
            status = 0;
            if compare {
                if let Some(at) = flip {
                    let at = at % there.len();
                    there[at] ^= 0x80;
                    status = 0x285;
                }
                self.rig.fill(frame, 0, &there);
            }
            bytes = Some(there);
        }
        let expected = Expected {
            status,
            blocks,
            frame: Some(frame),
            bytes,
        };
        let transfer = self.rig.transfer(frame, 0, count * BLOCK, lba as u64);
        self.submit(expected, |context, user_data| {
            let transfer = Transfer {
                user_data,
                ..transfer
            };
            match compare {
                true => context.submit_compare(&transfer),
                false => context.submit_read(&transfer),
            }
        });
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_sequence_leaves_what_a_model_says(
        threaded in any::<bool>(), commands in proptest::collection::vec(command(), 1..120),
    ) {
        let _alone = alone();
        let file = Scratch::new("/dev/shm", "model");
        let mut config = small_config(file.path(), DRIVES[usize::from(threaded)]);
        config.device.file_size = (BLOCKS * BLOCK) as u64;
        let rig = Rig::open(&config);
        let mut model = Model {
            rig: &rig,
            image: vec![0; BLOCKS * BLOCK],
            flying: HashMap::new(),
            number: 0,
        };
        for command in &commands {
            model.step(command);
        }
        model.settle(model.flying.len());
        assert!(model.flying.is_empty());
        let image = model.image;
        drop(rig);
        assert!(fs::read(&file.0).unwrap() == image);
    }
}
