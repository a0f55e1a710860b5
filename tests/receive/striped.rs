//! Pipelines whose payloads are spread over several devices.

use super::*;
use unified::pipeline::stripe_of;
use unified::storage::device::DeviceConfig;

/// Each payload is where the mapping says, and nothing else is anywhere, for these devices: bytes and block size.
fn spread(devices: &[(u64, u32)], chunk_bytes: u32, blocks: u64, wraps: bool, drive: Drive) {
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
    let mut config = Config {
        drive,
        ..config(&veth)
    };
    config.device = all.remove(0);
    config.more_devices = all;
    let context = Arc::new(Context::open(&config).unwrap());
    let stripe = stripe_of(&context, chunk_bytes.into()).unwrap();
    let unit = stripe.block_size();
    assert_eq!(Some(unit), devices.iter().map(|device| device.1).max());
    let (start, per_chunk) = (3, u64::from(chunk_bytes / unit));
    let end = start + blocks;
    let sent: Vec<Vec<u8>> = (0..600)
        .map(|i| payload(i, 1 + (i as usize * 389) % 1472))
        .collect();
    let mut want: Vec<Vec<u8>> = devices.iter().map(|d| vec![0; d.0 as usize]).collect();
    let mut bytes = vec![0; devices.len()];
    let (mut next, mut laps) = (start, 0);
    for payload in &sent {
        let blocks = u64::from((payload.len() as u32).div_ceil(unit));
        let fit = |lba: u64| match lba % per_chunk + blocks > per_chunk {
            true => lba.next_multiple_of(per_chunk),
            false => lba,
        };
        let mut lba = fit(next);
        if lba + blocks > end {
            (lba, laps) = (fit(start), laps + 1);
        }
        next = lba + blocks;
        let place = stripe.locate(lba).unwrap();
        let size = devices[place.device as usize].1 as usize;
        let (at, padded) = (
            place.lba as usize * size,
            payload.len().next_multiple_of(size),
        );
        let image = &mut want[place.device as usize];
        image[at..at + padded].fill(0);
        image[at..at + payload.len()].copy_from_slice(payload);
        bytes[place.device as usize] += padded as u64;
    }
    assert_eq!(laps > 0, wraps);
    assert!(bytes.iter().all(|bytes| *bytes > 0), "{bytes:?}");
    let pipeline = Pipeline::start(
        context.clone(),
        PipelineConfig {
            start_lba: start,
            blocks,
            at_end: AtEnd::Wrap,
            chunk_bytes: Some(chunk_bytes),
            ..PipelineConfig::default()
        },
    )
    .unwrap();
    veth.send(PORT, sent.clone(), 4000).join().unwrap();
    reached(&pipeline, |status| status.stored == 600);
    let (status, result) = pipeline.stop();
    result.unwrap();
    assert_eq!((status.next_lba, status.wraps), (next, laps));
    assert_eq!(
        (status.submitted, status.failed, status.durable),
        (600, 0, 600)
    );
    let stats = quiet(&context, |stats| stats.received == 600);
    assert_eq!((stats.stored, stats.failed, stats.released), (600, 0, 0));
    for (device, file) in files.iter().enumerate() {
        assert_eq!(stats.devices[device].bytes_written, bytes[device]);
        let got = fs::read(&file.0).unwrap();
        let differs = got.iter().zip(&want[device]).position(|(a, b)| a != b);
        assert_eq!(
            (got.len(), differs),
            (want[device].len(), None),
            "device {device}"
        );
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
