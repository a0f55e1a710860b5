//! Pipelines whose payloads are spread over several devices.

use super::*;
use unified::pipeline::stripe::Stripe;
use unified::pipeline::{StoreLayout, stripe_of};
use unified::storage::device::DeviceConfig;

/// Several files as devices of a context, each of so many bytes in blocks of so many.
struct Striped {
    veth: Veth,
    files: Vec<Scratch>,
    devices: Vec<(u64, u32)>,
    context: Arc<Context>,
    stripe: Stripe,
}

/// What payloads must be on the devices.
struct Wanted {
    images: Vec<Vec<u8>>,
    /// Of each device: payloads, and bytes with their padding.
    payloads: Vec<u64>,
    bytes: Vec<u64>,
    next: u64,
    laps: u64,
    stored: u64,
}

impl Striped {
    /// `change` gets what each device is to be.
    fn new(
        devices: &[(u64, u32)],
        chunk_bytes: u32,
        drive: Drive,
        change: impl Fn(&mut [DeviceConfig]),
    ) -> Striped {
        let veth = Veth::new();
        let files: Vec<Scratch> = devices
            .iter()
            .map(|_| Scratch::new(env!("CARGO_TARGET_TMPDIR"), "striped"))
            .collect();
        let mut all: Vec<DeviceConfig> = files
            .iter()
            .zip(devices)
            .map(|(file, &(file_size, block_size))| DeviceConfig {
                path: file.path().into(),
                file_size,
                block_size,
                ..DeviceConfig::default()
            })
            .collect();
        change(&mut all);
        let mut config = Config {
            drive,
            ..config(&veth)
        };
        config.device = all.remove(0);
        config.more_devices = all;
        let context = Arc::new(Context::open(&config).unwrap());
        let stripe = stripe_of(&context, chunk_bytes.into()).unwrap();
        Striped {
            veth,
            files,
            devices: devices.to_vec(),
            context,
            stripe,
        }
    }

    fn wanted(&self, sent: &[Vec<u8>], start: u64, blocks: u64, at_end: AtEnd) -> Wanted {
        let unit = self.stripe.block_size();
        let per_chunk = self.stripe.chunk_bytes() / u64::from(unit);
        let count = self.devices.len();
        let mut wanted = Wanted {
            images: self.devices.iter().map(|d| vec![0; d.0 as usize]).collect(),
            payloads: vec![0; count],
            bytes: vec![0; count],
            next: start,
            laps: 0,
            stored: 0,
        };
        for payload in sent {
            let needed = u64::from((payload.len() as u32).div_ceil(unit));
            let fit = |lba: u64| match lba % per_chunk + needed > per_chunk {
                true => lba.next_multiple_of(per_chunk),
                false => lba,
            };
            let mut lba = fit(wanted.next);
            if lba + needed > start + blocks {
                if at_end == AtEnd::Stop {
                    break;
                }
                (lba, wanted.laps) = (fit(start), wanted.laps + 1);
            }
            wanted.next = lba + needed;
            wanted.stored += 1;
            let place = self.stripe.locate(lba).unwrap();
            let device = usize::from(place.device);
            let size = self.devices[device].1 as usize;
            let (at, padded) = (
                place.lba as usize * size,
                payload.len().next_multiple_of(size),
            );
            let image = &mut wanted.images[device];
            image[at..at + padded].fill(0);
            image[at..at + payload.len()].copy_from_slice(payload);
            wanted.payloads[device] += 1;
            wanted.bytes[device] += padded as u64;
        }
        wanted
    }

    fn start(&self, config: PipelineConfig) -> unified::Result<Pipeline> {
        Pipeline::start(
            self.context.clone(),
            PipelineConfig {
                chunk_bytes: Some(self.stripe.chunk_bytes() as u32),
                ..config
            },
        )
    }

    /// The device holds this and nothing else.
    fn compare(&self, device: usize, image: &[u8]) {
        same(self.files[device].path(), image, device);
    }
}

fn same(path: &str, image: &[u8], device: usize) {
    let got = fs::read(path).unwrap();
    let differs = got.iter().zip(image).position(|(a, b)| a != b);
    let expected = (image.len(), None);
    assert_eq!((got.len(), differs), expected, "device {device}, '{path}'");
}

fn mixed(count: u32) -> Vec<Vec<u8>> {
    (0..count)
        .map(|i| payload(i, 1 + (i as usize * 389) % 1472))
        .collect()
}

/// Each payload is where the mapping says, and nothing else is anywhere, for these devices: bytes and block size.
fn spread(devices: &[(u64, u32)], chunk_bytes: u32, blocks: u64, wraps: bool, drive: Drive) {
    let striped = Striped::new(devices, chunk_bytes, drive, |_| {});
    let unit = striped.stripe.block_size();
    assert_eq!(Some(unit), devices.iter().map(|device| device.1).max());
    let (start, sent) = (3, mixed(600));
    let want = striped.wanted(&sent, start, blocks, AtEnd::Wrap);
    assert_eq!(want.laps > 0, wraps);
    let used = want.bytes.iter().all(|bytes| *bytes > 0);
    assert!(used, "{:?}", want.bytes);
    let config = PipelineConfig {
        start_lba: start,
        blocks,
        at_end: AtEnd::Wrap,
        ..PipelineConfig::default()
    };
    let pipeline = striped.start(config).unwrap();
    striped.veth.send(PORT, sent, 4000).join().unwrap();
    reached(&pipeline, |status| status.stored == 600);
    let (status, result) = pipeline.stop();
    result.unwrap();
    assert_eq!((status.next_lba, status.wraps), (want.next, want.laps));
    assert_eq!(
        (status.submitted, status.failed, status.durable),
        (600, 0, 600)
    );
    let stats = quiet(&striped.context, |stats| stats.received == 600);
    assert_eq!((stats.stored, stats.failed, stats.released), (600, 0, 0));
    for (device, image) in want.images.iter().enumerate() {
        assert_eq!(stats.devices[device].bytes_written, want.bytes[device]);
        striped.compare(device, image);
    }
}

#[test]
fn payloads_are_where_the_mapping_says() {
    if !is_root("payloads_are_where_the_mapping_says") {
        return;
    }
    let same = [(2 << 20, 512), (2 << 20, 512)];
    let mixed = [(2 << 20, 512), (4 << 20, 4096), (1 << 20, 512)];
    for drive in [Drive::Inline, Drive::Thread] {
        spread(&same, 8192, 5000, false, drive);
        spread(&same, 4096, 301, true, drive);
        spread(&mixed, 16384, 1000, false, drive);
        // Through all zones: the last of them is on one device only.
        let small = mixed.map(|(bytes, block)| (bytes / 4, block));
        spread(&small, 16384, 440, true, drive);
        spread(&mixed, 8192, 41, true, drive);
    }
}

/// A full range stops the pipeline at the first payload that does not fit, also if a later one would.
#[test]
fn the_end_of_the_space_stops_all_devices() {
    if !is_root("the_end_of_the_space_stops_all_devices") {
        return;
    }
    for drive in [Drive::Inline, Drive::Thread] {
        // The end of the range, and that of the devices, whose last zone is one device.
        for (devices, start, blocks) in [
            ([(2 << 20, 512), (2 << 20, 512)], 3, 301),
            ([(64 << 10, 512), (256 << 10, 4096)], 0, 0),
        ] {
            let striped = Striped::new(&devices, 8192, drive, |_| {});
            let sent = mixed(400);
            let all = match blocks {
                0 => striped.stripe.blocks(),
                blocks => blocks,
            };
            let want = striped.wanted(&sent, start, all, AtEnd::Stop);
            assert!((20..380).contains(&want.stored), "{}", want.stored);
            let config = PipelineConfig {
                start_lba: start,
                blocks,
                ..PipelineConfig::default()
            };
            let pipeline = striped.start(config).unwrap();
            striped.veth.send(PORT, sent, 4000).join().unwrap();
            reached(&pipeline, |s| s.stored + s.no_space == 400);
            let (status, result) = pipeline.stop();
            result.unwrap();
            assert_eq!(
                (status.stored, status.failed, status.error),
                (want.stored, 0, libc::ENOSPC)
            );
            assert_eq!((status.next_lba, status.wraps), (want.next, 0));
            let stats = quiet(&striped.context, |stats| stats.received == 400);
            assert_eq!(
                (stats.stored, stats.released),
                (want.stored, 400 - want.stored)
            );
            for (device, image) in want.images.iter().enumerate() {
                striped.compare(device, image);
            }
        }
    }
}

/// A file in a memory file system without room, so that writes to it fail.
struct Full(Scratch);

impl Full {
    fn new(bytes: u64) -> Full {
        let dir = Scratch::new("/tmp", "striped-full");
        fs::create_dir(&dir.0).unwrap();
        let size = "size=65536";
        common::run("mount", &["-t", "tmpfs", "-o", size, "tmpfs", dir.path()]);
        let full = Full(dir);
        let file = fs::File::create(full.device()).unwrap();
        file.set_len(bytes).unwrap();
        let mut filler = fs::File::create(full.0.0.join("filler")).unwrap();
        while std::io::Write::write_all(&mut filler, &[7; 4096]).is_ok() {}
        full
    }

    fn device(&self) -> String {
        format!("{}/device", self.0.path())
    }
}

impl Drop for Full {
    fn drop(&mut self) {
        common::run("umount", &["-l", self.0.path()]);
        let _ = fs::remove_dir(&self.0.0);
    }
}

/// One of the devices fails every write. Its payloads have failed, or are in its spill; those of the others are stored.
#[test]
fn what_a_device_fails_is_counted_or_in_its_spill() {
    if !is_root("what_a_device_fails_is_counted_or_in_its_spill") {
        return;
    }
    const COUNT: u64 = 300;
    let devices = [(1 << 20, 512), (1 << 20, 4096), (1 << 20, 512)];
    for drive in [Drive::Inline, Drive::Thread] {
        for spills in [false, true] {
            let full = Full::new(1 << 20);
            let spill = Scratch::new(env!("CARGO_TARGET_TMPDIR"), "striped-spill");
            let striped = Striped::new(&devices, 8192, drive, |all| {
                all[1].path = full.device();
                all[1].file_size = 0;
                all[1].spill = spills.then(|| spill.path().into());
            });
            let sent = mixed(COUNT as u32);
            let want = striped.wanted(&sent, 0, striped.stripe.blocks(), AtEnd::Wrap);
            assert!(want.payloads.iter().all(|count| *count > 10));
            let config = PipelineConfig {
                at_end: AtEnd::Wrap,
                flush_interval: Some(Duration::from_millis(20)),
                ..PipelineConfig::default()
            };
            let pipeline = striped.start(config).unwrap();
            striped.veth.send(PORT, sent, 4000).join().unwrap();
            reached(&pipeline, |s| s.stored + s.failed == COUNT);
            let (status, result) = pipeline.stop();
            result.unwrap();
            let failed = if spills { 0 } else { want.payloads[1] };
            assert_eq!((status.stored, status.failed), (COUNT - failed, failed));
            assert_eq!((status.submitted, status.error), (COUNT, 0));
            // A write that failed has ended too.
            assert_eq!(status.completed, COUNT);
            let stats = quiet(&striped.context, |stats| stats.received == COUNT);
            assert_eq!((stats.stored, stats.failed), (COUNT - failed, failed));
            let bad = stats.devices[1];
            assert!(bad.errors >= u64::from(!spills), "{bad:?}");
            assert_eq!(bad.bytes_written, 0);
            let spilled = if spills { want.bytes[1] } else { 0 };
            assert_eq!((bad.spilled_bytes, stats.spilled_bytes), (spilled, spilled));
            assert_eq!(bad.spilled > 0, spills);
            for device in [0, 2] {
                assert_eq!(stats.devices[device].errors, 0);
                assert_eq!(stats.devices[device].bytes_written, want.bytes[device]);
                striped.compare(device, &want.images[device]);
            }
            same(&full.device(), &vec![0; 1 << 20], 1);
            if spills {
                let got = fs::read(&spill.0).unwrap();
                let last = want.images[1].iter().rposition(|byte| *byte != 0).unwrap();
                assert!(got.len() > last, "{} of {last}", got.len());
                let differs = got.iter().zip(&want.images[1]).position(|(a, b)| a != b);
                assert_eq!(differs, None);
            }
        }
    }
}

#[test]
fn ranges_and_chunks_that_cannot_be_are_refused() {
    if !is_root("ranges_and_chunks_that_cannot_be_are_refused") {
        return;
    }
    // In chunks of 8192 bytes: 8 and 10 of them, and a part of one that is not used.
    let devices = [(68 << 10, 512), (80 << 10, 4096)];
    let striped = Striped::new(&devices, 8192, Drive::Inline, |_| {});
    let blocks = striped.stripe.blocks();
    assert_eq!((striped.stripe.block_size(), blocks), (4096, 36));
    type Change = fn(&mut PipelineConfig);
    let wrong: [(Change, &str); 10] = [
        (|c| c.chunk_bytes = Some(12288), "power of two"),
        (|c| c.chunk_bytes = Some(1), "power of two|block size"),
        (|c| c.chunk_bytes = Some(2048), "block size 4096"),
        (|c| c.chunk_bytes = Some(1 << 31), "at most"),
        (|c| c.chunk_bytes = None, "no device has room for a chunk"),
        (
            |c| c.blocks = 37,
            "blocks 0 to 37 are not all on the 2 devices",
        ),
        (|c| c.start_lba = 36, "whole chunks have 36"),
        (
            |c| (c.start_lba, c.blocks) = (u64::MAX, 2),
            "are not all on",
        ),
        (|c| c.layout = StoreLayout::Log, "a log has segments"),
        (|c| c.layout = StoreLayout::Slot, "a log has segments"),
    ];
    for (change, words) in wrong {
        let mut config = PipelineConfig {
            chunk_bytes: Some(8192),
            ..PipelineConfig::default()
        };
        change(&mut config);
        let Err(error) = Pipeline::start(striped.context.clone(), config) else {
            panic!("started: {words}");
        };
        assert_eq!(error.errno(), libc::EINVAL, "{error}");
        let named = words
            .split('|')
            .any(|words| error.message().contains(words));
        assert!(named, "{words}: {error}");
    }
    // None of them has left anything behind.
    let pipeline = striped.start(PipelineConfig::default()).unwrap();
    let (status, result) = pipeline.stop();
    result.unwrap();
    assert_eq!((status.submitted, status.error), (0, 0));
    for (device, (bytes, _)) in devices.into_iter().enumerate() {
        striped.compare(device, &vec![0; bytes as usize]);
    }
    // A chunk that is shorter than a frame.
    let small = Striped::new(&[(64 << 10, 512); 2], 1024, Drive::Inline, |_| {});
    let error = small.start(PipelineConfig::default()).err().unwrap();
    assert_eq!(error.errno(), libc::EINVAL);
    assert!(
        error.message().contains("at least a frame's size, 2048"),
        "{error}"
    );
}
