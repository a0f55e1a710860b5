//! Bad packets, many packets, and a device that is too slow.

use super::*;
use crate::common::packet::{mac_of, send_frames, udp};

// ---- Bad packets, and many ----

/// A frame to the right port that must not be stored. `kind` counts up.
fn bad(mac: [u8; 6], kind: u32) -> Vec<u8> {
    let noise = payload(kind, 1500);
    let mut bytes = udp(mac, (4000, 9999), &noise[..100 + kind as usize % 400]);
    let short = |bytes: &mut Vec<u8>, to: usize| bytes.truncate(to);
    match kind % 12 {
        // Cut off: inside the Ethernet header's follower, the IP header, the UDP header, the payload.
        0 => short(&mut bytes, 15 + kind as usize % 19),
        1 => short(&mut bytes, 35 + kind as usize % 7),
        2 => short(&mut bytes, 43 + kind as usize % 90),
        // Lengths that contradict each other: IP's too long, UDP's too long, too short, zero.
        3 => bytes[16..18].copy_from_slice(&60000u16.to_be_bytes()),
        4 => bytes[38..40].copy_from_slice(&60000u16.to_be_bytes()),
        5 => bytes[38..40].copy_from_slice(&(kind as u16 % 8).to_be_bytes()),
        6 => bytes[16..18].copy_from_slice(&27u16.to_be_bytes()),
        // A header length below 20, and one that takes the ports elsewhere.
        7 => bytes[14] = 0x40 | (kind as u8 % 5),
        // Fragments: the first, and one from the middle.
        8 => bytes[20..22].copy_from_slice(&0x2000u16.to_be_bytes()),
        9 => bytes[20..22].copy_from_slice(&(1 + kind as u16 % 0x1fff).to_be_bytes()),
        // Three tags: more than are followed.
        10 => {
            for _ in 0..3 {
                bytes.splice(12..12, [0x81, 0x00, 0x00, 0x05]);
            }
        }
        // Random bytes after the address.
        _ => {
            let len = bytes.len();
            bytes[12..].copy_from_slice(&noise[12..len]);
        }
    }
    bytes
}

#[test]
fn bad_packets_of_every_kind_are_refused_and_the_good_ones_between_them_stored() {
    let name = "bad_packets_of_every_kind_are_refused_and_the_good_ones_between_them_stored";
    if !is_root(name) {
        return;
    }
    let veth = Veth::new();
    ip(&format!("link set {} mtu 9000", veth.host));
    ip(&format!("-n {} link set {} mtu 9000", veth.ns, veth.peer));
    let file = Scratch::new(env!("CARGO_TARGET_TMPDIR"), "bad");
    let context = Arc::new(Context::open(&config(&veth, file.path())).unwrap());
    let pipeline = Pipeline::start(context.clone(), PipelineConfig::default()).unwrap();
    let mac = mac_of(&veth.host);
    let good = 1200;
    let mut frames = Vec::new();
    for number in 0..good {
        for kind in 0..3 {
            frames.push(bad(mac, number * 3 + kind));
        }
        if number % 100 == 50 {
            // Beyond a frame of the data buffers.
            frames.push(udp(
                mac,
                (4000, 9999),
                &payload(number, 2000 + number as usize % 6000),
            ));
        }
        frames.push(udp(mac, (4000, 9999), &recording::numbered(number)));
    }
    let all = frames.len() as u64;
    send_frames(&veth, frames);
    // A datagram that the far kernel cuts into fragments.
    let big = veth.send(9999, vec![payload(7, 20000)], 1000);
    big.join().unwrap();
    until(10, "all are seen", || {
        statistics(&context).xdp.seen >= all + 3
    });
    let stats = settle(&context);
    let (status, result) = pipeline.stop();
    result.unwrap();
    assert_eq!(stats.stored, u64::from(good), "{stats:#?}");
    assert_eq!((status.stored, status.failed), (good.into(), 0));
    assert_eq!(stats.bad_descriptors, 0);
    assert!(stats.xdp.fragments >= 2 * 300, "{stats:#?}");
    assert!(stats.xdp.malformed >= 4 * 250, "{stats:#?}");
    check_stored(file.path(), good.into(), good);
}

#[test]
fn very_many_tiny_packets_are_stored_or_counted() {
    if !is_root("very_many_tiny_packets_are_stored_or_counted") {
        return;
    }
    let count: u32 = if is_full_tier() { 1_000_000 } else { 100_000 };
    let veth = Veth::new();
    let file = Scratch::new(env!("CARGO_TARGET_TMPDIR"), "tiny");
    let mut config = config(&veth, file.path());
    config.device.file_size = u64::from(count) * recording::BLOCK as u64;
    config.event_sample = 0;
    let context = Arc::new(Context::open(&config).unwrap());
    let pipeline = Pipeline::start(context.clone(), PipelineConfig::default()).unwrap();
    let tiny = |number: u32| {
        let mut bytes = payload(number, 4 + number as usize % 13);
        bytes[..4].copy_from_slice(&(number + 1).to_le_bytes());
        bytes
    };
    veth.send(9999, (0..count).map(tiny).collect(), 100_000)
        .join()
        .unwrap();
    until(10, "all are seen", || {
        statistics(&context).xdp.matched >= count.into()
    });
    let stats = settle(&context);
    let (status, result) = pipeline.stop();
    result.unwrap();
    let dropped = stats.xsk.rx_dropped + stats.xsk.rx_ring_full;
    assert_eq!(status.stored + dropped, count.into(), "{stats:#?}");
    assert!(status.stored > u64::from(count / 20), "{stats:#?}");
    let bytes = fs::read(&file.0).unwrap();
    let mut last = 0;
    for (i, block) in bytes.chunks(recording::BLOCK).enumerate() {
        let number = u32::from_le_bytes(block[..4].try_into().unwrap());
        if i as u64 >= status.stored {
            assert!(block.iter().all(|b| *b == 0));
            continue;
        }
        assert!(number > last && number <= count, "{number} behind {last}");
        last = number;
        let expected = tiny(number - 1);
        assert!(block.starts_with(&expected));
        assert!(block[expected.len()..].iter().all(|b| *b == 0));
    }
}

// ---- A device that is too slow ----

/// Holds a file system's writes up.
struct Frozen<'a>(&'a std::path::Path);

impl Frozen<'_> {
    fn new(dir: &std::path::Path) -> Frozen<'_> {
        let output = Command::new("fsfreeze")
            .arg("-f")
            .arg(dir)
            .output()
            .unwrap();
        assert!(output.status.success(), "{output:?}");
        Frozen(dir)
    }
}

impl Drop for Frozen<'_> {
    fn drop(&mut self) {
        let _ = Command::new("fsfreeze").arg("-u").arg(self.0).output();
    }
}

fn resident_bytes() -> u64 {
    let text = fs::read_to_string("/proc/self/statm").unwrap();
    let pages: u64 = text.split(' ').nth(1).unwrap().parse().unwrap();
    pages * 4096
}

/// In a process of its own, so that it is its memory that is measured.
#[test]
fn a_device_slower_than_the_network_costs_counted_drops_and_no_memory() {
    let name = "a_device_slower_than_the_network_costs_counted_drops_and_no_memory";
    if told().is_some() {
        record_on_a_slow_device(name);
        return say("done");
    }
    if !is_root(name) {
        return;
    }
    let mut part = Part::start(name, "", &[]);
    assert_eq!(part.says(), "done");
    assert!(part.end().success());
}

fn record_on_a_slow_device(name: &str) {
    let Some(disk) = SmallDisk::new(name, 96 << 20) else {
        return;
    };
    let veth = Veth::new();
    let path = disk.dir.join("stored");
    let path = path.to_str().unwrap();
    let mut config = config(&veth, path);
    config.device.file_size = 64 << 20;
    let context = Arc::new(Context::open(&config).unwrap());
    let pipeline = Pipeline::start(context.clone(), PipelineConfig::default()).unwrap();
    let stream = Stream::with_pause(&veth, Duration::from_micros(20));
    until(10, "packets come", || pipeline.status().stored > 2000);
    let (memory, first) = (resident_bytes(), statistics(&context));
    let dropped = |stats: &Statistics| stats.xsk.rx_dropped + stats.xsk.rx_ring_full;
    for _ in 0..3 {
        let before = dropped(&statistics(&context));
        let frozen = Frozen::new(&disk.dir);
        // Every frame is on its way to the device or waits for that: what comes now is dropped, and counted.
        until(20, "drops", || {
            dropped(&statistics(&context)) > before + 200
        });
        let stuck = pipeline.status();
        assert!(stuck.running && stuck.error == 0);
        drop(frozen);
        until(20, "it goes on", || {
            pipeline.status().stored > stuck.submitted + 8000
        });
    }
    // Far less than the packets themselves, so that a leak of each would be seen.
    let grown = resident_bytes().saturating_sub(memory);
    let received = statistics(&context).received_bytes - first.received_bytes;
    assert!(received > 4 << 20, "{received} bytes");
    assert!(
        grown < received / 4,
        "{grown} bytes for {received} received"
    );
    let sent = stream.stop();
    let stats = settle(&context);
    let (status, result) = pipeline.stop();
    result.unwrap();
    assert_eq!((status.error, status.failed), (0, 0));
    assert_eq!(status.stored + dropped(&stats), sent.into(), "{stats:#?}");
    check_sums(&stats, context.info().frame_count);
    check_stored(path, status.stored, sent);
    drop(context);
    eprintln!("{grown} bytes more for {received} received");
}

// ---- Indices ----

#[test]
fn ring_indices_wrap_in_the_middle_of_a_recording() {
    if !is_root("ring_indices_wrap_in_the_middle_of_a_recording") {
        return;
    }
    for (drive, first_index) in [
        (Drive::Inline, u32::MAX - 300),
        (Drive::Thread, u32::MAX - 299),
    ] {
        let veth = Veth::new();
        let file = Scratch::new(env!("CARGO_TARGET_TMPDIR"), "wrap");
        let config = Config {
            drive,
            first_index,
            ..config(&veth, file.path())
        };
        let context = Arc::new(Context::open(&config).unwrap());
        let pipeline = Pipeline::start(context.clone(), PipelineConfig::default()).unwrap();
        let count = 1000;
        veth.send(9999, (0..count).map(recording::numbered).collect(), 5000)
            .join()
            .unwrap();
        until(10, "all are stored", || {
            pipeline.status().stored == count.into()
        });
        let stats = settle(&context);
        assert_eq!(stats.completed, stats.submitted);
        let (status, result) = pipeline.stop();
        result.unwrap();
        assert_eq!(
            (status.stored, status.failed, status.error),
            (count.into(), 0, 0)
        );
        check_stored(file.path(), count.into(), count);
    }
}
