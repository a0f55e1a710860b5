//! The log of version 2: packets in place and packed.

use std::os::unix::fs::FileExt;

use super::*;
use unified::log_reader::Tally;
use unified::unit_log::superblock::Superblock;
use unified::unit_log::unit::{CONTENT, RECORD_HEADER_LEN, SLOT_HEADER_LEN, kind};
use unified::unit_log::units::Unit;

/// Ethernet, IPv4 and UDP.
const HEADERS: usize = 42;

fn units() -> PipelineConfig {
    PipelineConfig {
        layout: StoreLayout::Log,
        ..PipelineConfig::default()
    }
}

/// Every unit of a log that has not come round: the generation of its segment, its first byte in the file, and the unit.
fn places_of(bytes: &[u8]) -> Vec<(u64, u64, Unit)> {
    let log = Superblock::read(bytes)
        .into_iter()
        .chain(Superblock::read(&bytes[FRAME as usize..]))
        .max_by_key(|log| log.generation)
        .unwrap();
    let slots = (1..=log.segments).flat_map(|generation| {
        let slots = 0..log.segment_slots;
        slots.map(move |slot| (generation, slot))
    });
    slots
        .filter_map(|(generation, slot)| {
            let at = log.slot_of(generation, slot) * FRAME;
            let unit = Unit::read(&log, generation, slot, &bytes[at as usize..]);
            unit.ok().map(|unit| (generation, at, unit))
        })
        .collect()
}

/// The same, with the slots of each.
fn units_of(path: &str) -> Vec<(Unit, Vec<u8>)> {
    let bytes = std::fs::read(path).unwrap();
    let slots = |(_, at, unit): (u64, u64, Unit)| {
        let slots = &bytes[at as usize..][..unit.slots as usize * FRAME as usize];
        (unit, slots.to_vec())
    };
    places_of(&bytes).into_iter().map(slots).collect()
}

/// Records these packets into a new file, which is closed again.
fn recorded(name: &str, slots: u64, sent: &[Vec<u8>], rate: u32) -> Scratch {
    let veth = Veth::new();
    let file = Scratch::new(env!("CARGO_TARGET_TMPDIR"), name);
    let config = config(&veth.host, file.path(), slots, Drive::Inline);
    let context = Arc::new(Context::open(&config).unwrap());
    let pipeline = Pipeline::start(context, units()).unwrap();
    let count = sent.len() as u64;
    veth.send(9999, sent.to_vec(), rate).join().unwrap();
    assert_eq!(finish(pipeline, count).stored, count);
    file
}

fn writable(file: &Scratch) -> std::fs::File {
    let options = std::fs::File::options().write(true).open(file.path());
    options.unwrap()
}

/// Nothing but headers and packets is in a unit: no byte of a packet that is not stored in it.
fn check_rest_is_zero(unit: &Unit, bytes: &[u8]) {
    let zero = |range: std::ops::Range<usize>| {
        let rest = &bytes[range.clone()];
        assert!(rest.iter().all(|byte| *byte == 0), "{unit:?} {range:?}");
    };
    let size = FRAME as usize;
    match unit.kind {
        kind::PACKET => {
            let at = usize::from(unit.header.data_offset);
            let len = unit.header.bytes as usize - RECORD_HEADER_LEN;
            zero(CONTENT + RECORD_HEADER_LEN..at);
            zero(at + len..size);
        }
        kind::PACKED => {
            let room = size - SLOT_HEADER_LEN;
            let used = unit.header.bytes as usize + CONTENT - SLOT_HEADER_LEN;
            assert_eq!(
                used.div_ceil(room),
                unit.slots as usize,
                "no slot for nothing"
            );
            let rest = unit.slots as usize * room - used;
            zero(bytes.len() - rest..bytes.len());
        }
        kind::SEGMENT => zero(CONTENT + 40..size),
        _ => {}
    }
}

#[test]
fn large_packets_are_stored_in_place_and_small_ones_packed() {
    if !is_root("large_packets_are_stored_in_place_and_small_ones_packed") {
        return;
    }
    let veth = Veth::new();
    for drive in [Drive::Inline, Drive::Thread] {
        let file = Scratch::new(env!("CARGO_TARGET_TMPDIR"), "units");
        let config = config(&veth.host, file.path(), 4000, drive);
        let context = Arc::new(Context::open(&config).unwrap());
        let pipeline = Pipeline::start(context.clone(), units()).unwrap();
        let below = pipeline.status().pack_below as usize;
        // Bursts of one kind, and both kinds mixed.
        let mut sent: Vec<Vec<u8>> = (0..500).map(|i| payload(i, 1400)).collect();
        sent.extend((500..1500).map(|i| payload(i, 40 + i as usize % 200)));
        sent.extend(payloads(1500, 1000));
        veth.send(9999, sent.clone(), 20_000).join().unwrap();
        let status = finish(pipeline, 2500);
        assert_eq!((status.stored, status.failed, status.error), (2500, 0, 0));
        assert_eq!((status.completed, status.durable), (2500, 2500));
        let stats = context.statistics().unwrap();
        common::check_sums(&stats, 4096);
        let small = sent.iter().filter(|p| p.len() + HEADERS < below);
        assert!(stats.packed >= small.count() as u64, "{stats:?}");
        assert!(stats.packed <= 2000, "the first 500 are large: {stats:?}");
        assert_eq!(stats.stored, 2500);
        drop(context);
        let found = read_all(file.path());
        assert_eq!(found.len(), sent.len());
        for (i, (sequence, bytes)) in found.iter().enumerate() {
            assert_eq!(*sequence, i as u64);
            assert!(*bytes == sent[i], "record {i}");
        }
        let all = units_of(file.path());
        all.iter()
            .for_each(|(unit, bytes)| check_rest_is_zero(unit, bytes));
        let of = |kind| all.iter().filter(move |(unit, _)| unit.kind == kind);
        let in_place = of(kind::PACKET).count() as u64;
        assert_eq!(in_place + stats.packed, 2500);
        assert!(in_place >= 500);
        let packed: u32 = of(kind::PACKED).map(|(unit, _)| unit.header.records).sum();
        assert_eq!(u64::from(packed), stats.packed);
    }
}

/// Packets are published together. The last ones do not wait for others, however many there are.
#[test]
fn no_packet_waits_for_others() {
    if !is_root("no_packet_waits_for_others") {
        return;
    }
    let veth = Veth::new();
    let file = Scratch::new("/dev/shm", "publish");
    let mut config = config(&veth.host, file.path(), 20_000, Drive::Inline);
    (config.rx_ring, config.fill_ring, config.frame_count) = (4096, 4096, 8192);
    let context = Arc::new(Context::open(&config).unwrap());
    // A poll after a pause finds what came meanwhile: of these counts, many end with a whole batch.
    let pipeline = PipelineConfig {
        moderation: Some(Duration::from_millis(20)),
        ..units()
    };
    let pipeline = Pipeline::start(context.clone(), pipeline).unwrap();
    let mut sent = 0;
    for count in [256, 255, 257, 512, 511, 513, 1024, 1023, 1025, 768] {
        let payloads = (0..count).map(|i| payload(i, 1200)).collect();
        veth.send(9999, payloads, 200_000).join().unwrap();
        sent += u64::from(count);
        let until = Instant::now() + Duration::from_secs(5);
        while pipeline.status().completed < sent {
            assert!(Instant::now() < until, "{count}: {:?}", pipeline.status());
            std::thread::sleep(Duration::from_millis(1));
        }
    }
    assert_eq!(finish(pipeline, sent).stored, sent);
    common::check_sums(&context.statistics().unwrap(), 8192);
}

/// What a byte of a packet costs on the device, if packets come fast enough to fill units.
#[test]
fn small_packets_cost_little_on_the_device() {
    if !is_root("small_packets_cost_little_on_the_device") {
        return;
    }
    let veth = Veth::new();
    // 64, 594 and 1518 bytes on the wire, 7:4:1.
    let imix = [22, 548, 22, 548, 22, 1472, 22, 548, 22, 548, 22, 22];
    for (lengths, most) in [(&[64][..], 1.30), (&[300], 1.15), (&imix, 1.15)] {
        let file = Scratch::new("/dev/shm", "cost");
        let mut config = config(&veth.host, file.path(), 4000, Drive::Inline);
        (config.rx_ring, config.fill_ring, config.frame_count) = (4096, 4096, 16384);
        let context = Arc::new(Context::open(&config).unwrap());
        let pipeline = PipelineConfig {
            moderation: Some(Duration::from_millis(200)),
            ..units()
        };
        let pipeline = Pipeline::start(context.clone(), pipeline).unwrap();
        let len = |i: u32| lengths[i as usize % lengths.len()];
        let bytes: usize = (0..4000).map(|i| len(i) + HEADERS).sum();
        let sent = (0..4000).map(|i| payload(i, len(i))).collect();
        veth.send(9999, sent, 100_000).join().unwrap();
        assert_eq!(finish(pipeline, 4000).stored, 4000);
        let stats = context.statistics().unwrap();
        common::check_sums(&stats, 16384);
        let is_imix = lengths.len() > 1;
        assert!(
            stats.packed == 4000 || (is_imix && stats.packed > 3800),
            "{stats:?}"
        );
        // Without the superblocks and the headers of segments, which are 4 MiB apart in a log of any size.
        let in_place = (4000 - stats.packed) * FRAME;
        let written = (stats.stored_bytes - in_place) as f64 / stats.packed_bytes as f64;
        assert!((1.0..most).contains(&written), "{lengths:?}: {written}");
        assert!(stats.packed_bytes <= bytes as u64);
    }
}

#[test]
fn a_log_of_units_goes_on_and_wraps() {
    if !is_root("a_log_of_units_goes_on_and_wraps") {
        return;
    }
    let veth = Veth::new();
    let file = Scratch::new(env!("CARGO_TARGET_TMPDIR"), "laps");
    // 8 segments of 16 slots.
    let config = config(&veth.host, file.path(), 128, Drive::Thread);
    let wraps = PipelineConfig {
        at_end: AtEnd::Wrap,
        ..units()
    };
    let mut first = 0;
    for round in 0..6u32 {
        let context = Arc::new(Context::open(&config).unwrap());
        let pipeline = Pipeline::start(context.clone(), wraps).unwrap();
        assert_eq!(pipeline.status().first_sequence, first);
        let count = 30 + round * 10;
        veth.send(9999, payloads(first as u32, count), 5_000)
            .join()
            .unwrap();
        let status = finish(pipeline, count.into());
        assert_eq!((status.stored, status.no_space), (count.into(), 0));
        common::check_sums(&context.statistics().unwrap(), 4096);
        first += u64::from(count);
        drop(context);
        let found = read_all(file.path());
        let oldest = found[0].0;
        assert_eq!(found.len() as u64, first - oldest, "all up to the newest");
        assert!(found.len() >= count as usize);
        for (sequence, bytes) in found {
            assert!(bytes == payloads(sequence as u32, 1)[0], "{sequence}");
        }
    }
    let mut reader = LogReader::open(Path::new(file.path()), 0).unwrap();
    assert_eq!(reader.version(), 2);
    let oldest = reader.oldest().unwrap();
    assert!(oldest > 0, "it has come round");
    reader.seek(0).unwrap();
    match reader.next_item().unwrap() {
        Some(Item::Overwritten {
            first: 0, count, ..
        }) => assert_eq!(count, oldest),
        other => panic!("{other:?}"),
    }
    reader.seek(first - 3).unwrap();
    let rest = std::iter::from_fn(|| reader.next_item().unwrap().map(|_| ())).count();
    assert_eq!(rest, 3);
}

#[test]
fn a_log_of_units_ends_when_it_is_full() {
    if !is_root("a_log_of_units_ends_when_it_is_full") {
        return;
    }
    let veth = Veth::new();
    let file = Scratch::new(env!("CARGO_TARGET_TMPDIR"), "full");
    let config = config(&veth.host, file.path(), 128, Drive::Thread);
    let context = Arc::new(Context::open(&config).unwrap());
    let in_place = PipelineConfig {
        pack_below: Some(1),
        ..units()
    };
    let pipeline = Pipeline::start(context.clone(), in_place).unwrap();
    let sent: Vec<Vec<u8>> = (0..150).map(|i| payload(i, 1300)).collect();
    veth.send(9999, sent.clone(), 20_000).join().unwrap();
    let status = finish(pipeline, 150);
    // 8 segments of 16 slots, of which the first is the segment's header.
    assert_eq!((status.stored, status.no_space), (120, 30));
    assert_eq!(status.error, libc::ENOSPC);
    let stats = context.statistics().unwrap();
    common::check_sums(&stats, 4096);
    assert_eq!(stats.packed, 0);
    let found = read_all(file.path());
    assert_eq!(found.len(), 120);
    assert!(found.iter().all(|(i, bytes)| *bytes == sent[*i as usize]));
}

#[test]
fn the_two_versions_are_not_mixed() {
    if !is_root("the_two_versions_are_not_mixed") {
        return;
    }
    let veth = Veth::new();
    for (old, new, errno) in [
        (slots(), units(), libc::EINVAL),
        (units(), slots(), libc::EINVAL),
    ] {
        let file = Scratch::new(env!("CARGO_TARGET_TMPDIR"), "versions");
        let config = config(&veth.host, file.path(), 400, Drive::Inline);
        let context = Arc::new(Context::open(&config).unwrap());
        let pipeline = Pipeline::start(context.clone(), old).unwrap();
        veth.send(9999, payloads(0, 50), 5_000).join().unwrap();
        assert_eq!(finish(pipeline, 50).stored, 50);
        let error = Pipeline::start(context.clone(), new).err().unwrap();
        assert_eq!(error.errno(), errno, "{error}");
        assert!(error.message().contains("UNIFIED_LOG_NEW"), "{error}");
        assert_eq!(read_all(file.path()).len(), 50, "nothing was changed");
        let replace = PipelineConfig {
            existing: Existing::Replace,
            ..new
        };
        let pipeline = Pipeline::start(context.clone(), replace).unwrap();
        veth.send(9999, payloads(0, 20), 5_000).join().unwrap();
        assert_eq!(finish(pipeline, 20).stored, 20);
        assert_eq!(read_all(file.path()).len(), 20);
    }
}

fn tally_of(path: &str) -> Tally {
    let mut reader = LogReader::open(Path::new(path), 0).unwrap();
    while reader.next_item().unwrap().is_some() {}
    reader.tally()
}

/// A damaged slot costs the packets of its unit, and no other.
#[test]
fn damage_costs_one_unit() {
    if !is_root("damage_costs_one_unit") {
        return;
    }
    let mut sent: Vec<Vec<u8>> = (0..300).map(|i| payload(i, 100)).collect();
    sent.extend((300..320).map(|i| payload(i, 1400)));
    sent.extend((320..400).map(|i| payload(i, 100)));
    let file = recorded("damage", 4000, &sent, 50_000);
    let bytes = std::fs::read(file.path()).unwrap();
    let whole = writable(&file);
    let log = Superblock::read(&bytes)
        .or(Superblock::read(&bytes[FRAME as usize..]))
        .unwrap();
    let mut slot = 0;
    let mut kinds = Vec::new();
    while slot < log.segment_slots {
        let at = log.slot_of(1, slot) * FRAME;
        let Ok(unit) = Unit::read(&log, 1, slot, &bytes[at as usize..]) else {
            break;
        };
        kinds.push(unit.kind);
        // In its last slot, in the bytes of a packet.
        let place = match unit.kind {
            kind::PACKET => at + u64::from(unit.header.data_offset) + 500,
            _ => at + u64::from(unit.slots - 1) * FRAME + 40,
        };
        let old = bytes[place as usize];
        whole.write_all_at(&[old ^ 1], place).unwrap();
        let tally = tally_of(file.path());
        let of_unit = u64::from(unit.header.records);
        let lost = tally.missing + tally.damaged;
        assert_eq!(tally.records + lost, 400, "{unit:?} {tally:?}");
        assert!(lost <= of_unit, "{unit:?} {tally:?}");
        match unit.kind {
            kind::SEGMENT => assert_eq!(lost, 0),
            kind::PACKET => assert_eq!((tally.damaged, lost), (1, 1)),
            _ => {}
        }
        whole.write_all_at(&[old], place).unwrap();
        // The slot cannot be read at all: its unit is gone, and nothing else.
        let slot_at = at + u64::from(unit.slots - 1) * FRAME;
        let content = &bytes[slot_at as usize..][..FRAME as usize];
        whole
            .write_all_at(&[0xee; FRAME as usize], slot_at)
            .unwrap();
        let tally = tally_of(file.path());
        let is_last = tally.records + of_unit == 400 && tally.damaged == 0;
        assert!(is_last || tally.damaged == of_unit, "{unit:?} {tally:?}");
        whole.write_all_at(content, slot_at).unwrap();
        slot += unit.slots;
    }
    assert!(
        kinds.len() > 10 && kinds.contains(&kind::PACKED) && kinds.contains(&kind::PACKET),
        "{kinds:?}"
    );
    assert_eq!(tally_of(file.path()).records, 400);
}

/// A device that fails for a while: what it failed is in the spill, read back, and gone on with.
#[test]
fn units_that_the_device_fails_are_spilled() {
    if !can_loop("units_that_the_device_fails_are_spilled") {
        return;
    }
    const SLOTS: u64 = 1000;
    const LENGTH: u64 = (SLOTS + 2) * FRAME;
    let veth = Veth::new();
    let device = LoopDevice::new(LENGTH, 512);
    let spill = Scratch::new(env!("CARGO_TARGET_TMPDIR"), "unit-spill");
    let resize = |length| {
        let backing = std::fs::File::options().write(true).open(&device.backing.0);
        backing.unwrap().set_len(length).unwrap();
        run("losetup", &["--set-capacity", &device.node]);
    };
    let mut config = config(&veth.host, &device.node, SLOTS, Drive::Thread);
    config.device.spill = Some(spill.path().into());
    let sent = payloads(0, 600);
    for first in [0, 300] {
        let context = Arc::new(Context::open(&config).unwrap());
        let pipeline = Pipeline::start(context.clone(), units()).unwrap();
        assert_eq!(pipeline.status().first_sequence, first as u64);
        if first == 0 {
            resize(80 * FRAME);
        }
        let part = sent[first..first + 300].to_vec();
        veth.send(9999, part, 5000).join().unwrap();
        let status = finish(pipeline, 300);
        assert_eq!((status.stored, status.failed, status.error), (300, 0, 0));
        let stats = context.statistics().unwrap();
        common::check_sums(&stats, 4096);
        assert_eq!(stats.spilled > 0, first == 0, "{stats:?}");
        assert_eq!(stats.errors, 0);
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
    let tally = tally_of(&device.node);
    assert_eq!(tally.records + tally.missing + tally.damaged, 600);
    assert!((1..600).contains(&tally.records));
}

#[test]
fn units_are_found_by_number_and_time_and_while_they_are_written() {
    if !is_root("units_are_found_by_number_and_time_and_while_they_are_written") {
        return;
    }
    let veth = Veth::new();
    let file = Scratch::new(env!("CARGO_TARGET_TMPDIR"), "live");
    let config = config(&veth.host, file.path(), 2000, Drive::Inline);
    let context = Arc::new(Context::open(&config).unwrap());
    let pipeline = Pipeline::start(context.clone(), units()).unwrap();
    let mut reader = LogReader::open(Path::new(file.path()), 0).unwrap();
    assert_eq!(reader.follow(Duration::from_millis(20)).unwrap(), None);
    let mut middle = 0;
    let mut seen = 0u64;
    for part in 0..4 {
        if part == 2 {
            let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
            middle = now.as_nanos() as u64;
        }
        let sending = veth.send(9999, payloads(part * 250, 250), 5_000);
        while seen < u64::from(part + 1) * 250 {
            match reader.follow(Duration::from_secs(5)).unwrap() {
                Some(Item::Record { header, packet }) => {
                    assert_eq!(header.sequence, seen);
                    let at = usize::from(header.payload_offset);
                    assert!(packet[at..] == payloads(seen as u32, 1)[0]);
                    seen += 1;
                }
                other => panic!("{seen}: {other:?}"),
            }
        }
        sending.join().unwrap();
    }
    assert_eq!(finish(pipeline, 1000).stored, 1000);
    reader.seek_time(middle).unwrap();
    assert_eq!(reader.position(), 500);
    let Some(Item::Record { header, .. }) = reader.next_item().unwrap() else {
        panic!("there are records after that");
    };
    assert_eq!(header.sequence, 500);
    reader.seek_time(u64::MAX).unwrap();
    assert_eq!(
        (reader.position(), reader.next_item().unwrap()),
        (1000, None)
    );
    reader.seek_time(0).unwrap();
    assert_eq!(reader.position(), 0);
    for sequence in [999, 0, 437] {
        reader.seek(sequence).unwrap();
        let item = reader.next_item().unwrap();
        assert!(matches!(item, Some(Item::Record { header, .. }) if header.sequence == sequence));
    }
    reader.seek(5000).unwrap();
    assert_eq!(reader.next_item().unwrap(), None);
}

/// A unit whose headers are on the device before its packets are.
#[test]
fn a_follower_waits_for_a_unit_that_is_half_written() {
    if !is_root("a_follower_waits_for_a_unit_that_is_half_written") {
        return;
    }
    let mut sent: Vec<Vec<u8>> = (0..200).map(|i| payload(i, 100)).collect();
    sent.extend((200..220).map(|i| payload(i, 1400)));
    let file = recorded("half", 2000, &sent, 50_000);
    let bytes = std::fs::read(file.path()).unwrap();
    let device = writable(&file);
    let places = places_of(&bytes);
    let last_of = |kind| places.iter().rfind(|(_, _, unit)| unit.kind == kind);
    for kind in [kind::PACKET, kind::PACKED] {
        let (_, at, unit) = last_of(kind).unwrap();
        // The packets end before the slot does.
        let from = at + u64::from(unit.header.data_offset) + 60;
        let half = from as usize..(at + FRAME) as usize;
        let before = unit.header.first_sequence;
        device.write_all_at(&vec![0; half.len()], from).unwrap();
        let mut reader = LogReader::open(Path::new(file.path()), 0).unwrap();
        let mut next = 0;
        let mut read = |reader: &mut LogReader, wait: u64| {
            while let Some(item) = reader.follow(Duration::from_millis(wait)).unwrap() {
                let Item::Record { header, .. } = item else {
                    panic!("{item:?}");
                };
                assert_eq!(header.sequence, next);
                next += 1;
            }
            next
        };
        assert_eq!(read(&mut reader, 100), before);
        device.write_all_at(&bytes[half], from).unwrap();
        assert_eq!(read(&mut reader, 500), 220);
        assert_eq!(reader.tally().damaged, 0);
    }
}

#[test]
fn a_record_is_found_before_a_segment_whose_start_is_lost() {
    if !is_root("a_record_is_found_before_a_segment_whose_start_is_lost") {
        return;
    }
    let sent: Vec<Vec<u8>> = (0..500).map(|i| payload(i, 1400)).collect();
    let file = recorded("start", 700, &sent, 20_000);
    let bytes = std::fs::read(file.path()).unwrap();
    let places = places_of(&bytes);
    let newest = places.iter().map(|(generation, ..)| *generation).max();
    let newest = newest.unwrap();
    assert!(newest > 4, "{newest} segments");
    let device = writable(&file);
    let lost = newest / 2 + 1;
    for (_, at, _) in places.iter().filter(|(of, ..)| *of == lost).take(16) {
        device.write_all_at(&[0; FRAME as usize], *at).unwrap();
    }
    let before = places.iter().rfind(|(of, ..)| *of == lost - 1).unwrap();
    let sequence = before.2.header.first_sequence;
    let mut reader = LogReader::open(Path::new(file.path()), 0).unwrap();
    for sequence in [sequence, 499, 0] {
        reader.seek(sequence).unwrap();
        let item = reader.next_item().unwrap();
        assert!(
            matches!(item, Some(Item::Record { header, .. }) if header.sequence == sequence),
            "{sequence}: {item:?}"
        );
    }
}

/// The RX ring holds as many packets as one batch takes, and the fill ring as many frames as are left.
#[test]
fn a_pipeline_starts_with_its_ring_full() {
    if !is_root("a_pipeline_starts_with_its_ring_full") {
        return;
    }
    let veth = Veth::new();
    for len in [50, 1400] {
        let file = Scratch::new(env!("CARGO_TARGET_TMPDIR"), "full-ring");
        let mut config = config(&veth.host, file.path(), 2000, Drive::Inline);
        (config.frame_count, config.fill_ring, config.rx_ring) = (512, 256, 256);
        let context = Arc::new(Context::open(&config).unwrap());
        let sent: Vec<Vec<u8>> = (0..400).map(|i| payload(i, len)).collect();
        veth.send(9999, sent, 20_000).join().unwrap();
        let pipeline = Pipeline::start(context.clone(), units()).unwrap();
        let status = finish(pipeline, 256);
        assert_eq!((status.stored, status.failed, status.error), (256, 0, 0));
        common::check_sums(&context.statistics().unwrap(), 512);
    }
}
