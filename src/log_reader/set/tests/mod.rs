//! Whole and damaged sets, built slot by slot.

mod image;

use std::collections::BTreeMap;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use image::{Device, SLOT, SLOTS, file, packet, time};
use proptest::prelude::*;

use super::super::{Item, LogReader};
use crate::unit_log::superblock::Superblock;

/// What was read: the records of each lane, and the ranges that are not there, with what became of them.
#[derive(Debug, Default, PartialEq, Eq)]
struct Read {
    records: BTreeMap<u16, Vec<u64>>,
    gaps: Vec<(u16, u64, u64, &'static str)>,
}

fn open(devices: &[&Device]) -> (LogReader, Vec<image::File>) {
    let files: Vec<_> = devices.iter().map(|device| file(device)).collect();
    let paths: Vec<_> = files.iter().map(|file| (file.0.clone(), 0)).collect();
    (LogReader::open_set(&paths).unwrap(), files)
}

fn take(read: &mut Read, last: &mut u64, item: Item) {
    match item {
        Item::Record { header, packet: p } => {
            assert_eq!(p, packet(header.lane, header.sequence), "a wrong packet");
            assert_eq!(header.timestamp, time(header.lane, header.sequence));
            *last = header.timestamp;
            read.records
                .entry(header.lane)
                .or_default()
                .push(header.sequence);
        }
        Item::Gap {
            lane,
            first,
            count,
            damaged,
        } => {
            let what = if damaged { "damaged" } else { "missing" };
            read.gaps.push((lane, first, count, what));
        }
        Item::Overwritten { lane, first, count } => {
            read.gaps.push((lane, first, count, "overwritten"));
        }
    }
}

/// Reads to the end. Each lane's items are in order, without a number twice.
fn all(reader: &mut LogReader) -> Read {
    let (mut read, mut last) = (Read::default(), 0);
    let mut next: BTreeMap<u16, u64> = BTreeMap::new();
    for _ in 0..100_000 {
        let Some(item) = reader.next_item().unwrap() else {
            return read;
        };
        let (lane, first, count) = match item {
            Item::Record { header, .. } => (header.lane, header.sequence, 1),
            Item::Gap {
                lane, first, count, ..
            }
            | Item::Overwritten { lane, first, count } => (lane, first, count),
        };
        let expected = next.insert(lane, first + count);
        assert!(expected.is_none_or(|expected| expected == first));
        take(&mut read, &mut last, item);
    }
    panic!("endless");
}

fn read(devices: &[&Device]) -> Read {
    all(&mut open(devices).0)
}

/// `count` packets of each lane, in units of up to `per` packets, which go to the devices in turn.
fn recorded(lanes: u16, devices: u16, count: u64, per: u64) -> Vec<Device> {
    let mut set: Vec<_> = (0..devices)
        .map(|number| Device::new(number, devices, lanes, 40 + u64::from(number) * 3))
        .collect();
    let mut turn = 0;
    for first in (0..count).step_by(per as usize) {
        for lane in 0..lanes {
            set[turn % usize::from(devices)].put(lane, first, per.min(count - first));
            turn += 1;
        }
        turn += usize::from(lanes.is_multiple_of(devices));
    }
    set
}

#[test]
fn every_mix_of_lanes_and_devices() {
    for lanes in [1, 2, 4] {
        for devices in [1, 2, 3] {
            let set = recorded(lanes, devices, 100, 5);
            let expected = Read {
                records: (0..lanes).map(|lane| (lane, (0..100).collect())).collect(),
                gaps: Vec::new(),
            };
            let mut order: Vec<_> = set.iter().collect();
            assert_eq!(read(&order), expected, "{lanes} lanes, {devices} devices");
            order.reverse();
            assert_eq!(read(&order), expected);
            let (mut reader, _files) = open(&order);
            assert_eq!(reader.devices(), (devices, devices));
            assert_eq!((reader.lanes(), reader.version()), (lanes, 2));
            let all = 100 * u64::from(lanes);
            assert_eq!((reader.oldest().unwrap(), reader.end().unwrap()), (0, all));
            // By time, over all lanes.
            let (mut times, mut records) = (Vec::new(), 0);
            while let Some(item) = reader.next_item().unwrap() {
                if let Item::Record { header, .. } = item {
                    times.push(header.timestamp);
                    records += 1;
                }
            }
            assert!(times.is_sorted());
            assert_eq!((records, reader.position()), (all, all));
        }
    }
}

#[test]
fn a_missing_device_is_exact_ranges() {
    let set = recorded(2, 3, 90, 5);
    let mut where_is = BTreeMap::new();
    for (number, device) in set.iter().enumerate() {
        for (lane, sequences) in read(&[device]).records {
            for sequence in sequences {
                assert_eq!(where_is.insert((lane, sequence), number), None);
            }
        }
    }
    assert_eq!(where_is.len(), 180);
    for lost in 0..3 {
        let rest: Vec<_> = (0..3).filter(|n| *n != lost).map(|n| &set[n]).collect();
        let (mut reader, _files) = open(&rest);
        assert_eq!(reader.missing_devices(), [lost as u16]);
        assert_eq!(reader.devices(), (3, 2));
        let found = all(&mut reader);
        for ((lane, sequence), number) in &where_is {
            let there = found.records[lane].contains(sequence);
            assert_eq!(there, *number != lost);
        }
        let last = |lane: u16| *found.records[&lane].last().unwrap();
        let gone = where_is
            .iter()
            .filter(|((lane, sequence), number)| **number == lost && *sequence < last(*lane));
        let missing: u64 = found.gaps.iter().map(|gap| gap.2).sum();
        assert_eq!(missing, gone.count() as u64);
        assert!(found.gaps.iter().all(|gap| gap.3 == "missing"));
    }
}

#[test]
fn duplicates_and_segments_that_overlap() {
    // The second device was stuck: what was sent to it went to the first as well, in a later segment that begins with lower
    // numbers and then jumps forward.
    let mut set = [Device::new(0, 2, 1, 20), Device::new(1, 2, 1, 20)];
    set[0].put(0, 0, 5);
    set[1].put(0, 5, 5);
    set[0].put(0, 10, 5);
    set[0].put(0, 20, 5);
    set[0].begin(0, 15, 0);
    set[0].put(0, 15, 5);
    set[0].put(0, 25, 5);
    set[1].put(0, 15, 5);
    set[1].put(0, 30, 5);
    let expected: Vec<u64> = (0..35).collect();
    let whole = read(&[&set[0], &set[1]]);
    assert_eq!(whole.records[&0], expected);
    assert_eq!(whole.gaps, []);
    let first = read(&[&set[0]]);
    assert_eq!(first.gaps, [(0, 5, 5, "missing")]);
    let second = read(&[&set[1]]);
    assert_eq!(
        second.gaps,
        [
            (0, 0, 5, "missing"),
            (0, 10, 5, "missing"),
            (0, 20, 10, "missing")
        ]
    );
}

#[test]
fn more_segments_that_overlap_than_are_open_at_once() {
    let mut device = Device::new(0, 1, 2, 120);
    for part in 0..50 {
        device.begin(1, part, 0);
        device.put(1, part, 3);
        device.put(1, 50 + part * 2, 2);
    }
    assert_eq!(read(&[&device]).records[&1], (0..150).collect::<Vec<_>>());
}

#[test]
fn a_skipped_generation_leaves_the_segment_of_an_earlier_lap() {
    let mut device = Device::new(0, 1, 2, 6);
    for sequence in 0..7 {
        device.begin(0, sequence * 3, 0);
        device.put(0, sequence * 3, 3);
    }
    // Generation 8 is skipped: its place has generation 2, with records 3 to 5.
    device.begin(0, 21, 1);
    device.put(0, 21, 3);
    let found = read(&[&device]);
    let expected: Vec<u64> = (3..6).chain(9..24).collect();
    assert_eq!(found.records[&0], expected);
    assert_eq!(found.gaps, [(0, 6, 3, "overwritten")]);
}

#[test]
fn without_its_header_a_segment_is_known_by_its_units() {
    let set = recorded(2, 2, 60, 3);
    let whole = read(&[&set[0], &set[1]]);
    for generation in 1..=set[0].newest {
        let mut damaged = set.clone();
        damaged[0].damage(generation, 0);
        assert_eq!(read(&[&damaged[0], &damaged[1]]), whole, "{generation}");
        damaged[0].lose(generation, 0);
        assert_eq!(read(&[&damaged[0], &damaged[1]]), whole, "{generation}");
    }
}

#[test]
fn a_damaged_unit_costs_its_own_packets() {
    let mut set = [Device::new(0, 2, 1, 20), Device::new(1, 2, 1, 20)];
    set[0].put(0, 0, 3);
    let (generation, slot, slots) = set[0].put(0, 3, 4);
    set[1].put(0, 7, 3);
    set[0].put(0, 10, 3);
    for part in 0..slots {
        let mut damaged = set.clone();
        damaged[0].damage(generation, slot + part);
        let found = read(&[&damaged[0], &damaged[1]]);
        assert_eq!(found.gaps, [(0, 3, 4, "damaged")]);
        let mut expected: Vec<u64> = (0..13).collect();
        expected.retain(|sequence| !(3..7).contains(sequence));
        assert_eq!(found.records[&0], expected);
    }
    // A bit of the last packet.
    let mut damaged = set.clone();
    let at = damaged[0].at(generation, slot + slots - 1);
    damaged[0].bytes[at + 40] ^= 1;
    let found = read(&[&damaged[0], &damaged[1]]);
    assert_eq!(found.gaps, [(0, 6, 1, "damaged")]);
}

#[test]
fn wrapped_rings() {
    let mut set = [Device::new(0, 2, 2, 5), Device::new(1, 2, 2, 8)];
    for first in (0..600).step_by(3) {
        for lane in 0..2 {
            set[(first as usize / 3 + usize::from(lane)) % 2].put(lane, first, 3);
        }
    }
    let (mut reader, _files) = open(&[&set[0], &set[1]]);
    assert_eq!(reader.end().unwrap(), 1200);
    let oldest = reader.oldest().unwrap();
    assert!(oldest > 600 && oldest == reader.position());
    let found = all(&mut reader);
    for lane in 0..2 {
        assert_eq!(found.records[&lane].last(), Some(&599));
    }
    assert!(found.gaps.iter().all(|gap| gap.3 == "overwritten"));
    let there: u64 = found.records.values().map(|r| r.len() as u64).sum();
    let gone: u64 = found.gaps.iter().map(|gap| gap.2).sum();
    assert_eq!(oldest + there + gone, 1200);
}

#[test]
fn what_does_not_belong_together_is_refused() {
    let set = recorded(2, 2, 30, 3);
    let mut other = Device::new(1, 2, 2, 20);
    other.log.set_id = 77;
    other.write_super();
    let files = [&set[0], &set[1], &other].map(file);
    let refused = |places: &[usize]| {
        let paths: Vec<_> = places.iter().map(|p| (files[*p].0.clone(), 0)).collect();
        let error = LogReader::open_set(&paths).unwrap_err();
        assert_eq!(error.errno(), libc::EINVAL);
        error.message().to_string()
    };
    let mixed = refused(&[0, 2]);
    for part in ["123456789abcdef0", "000000000000004d"] {
        assert!(mixed.contains(part), "{mixed}");
    }
    for place in [0, 2] {
        assert!(mixed.contains(files[place].0.to_str().unwrap()), "{mixed}");
    }
    assert!(refused(&[0, 1, 0]).contains("both device 0"));
    assert!(refused(&[]).contains("no device"));
    // Under another name.
    let link = PathBuf::from(format!("{}-link", files[1].0.display()));
    std::os::unix::fs::symlink(&files[1].0, &link).unwrap();
    let twice = LogReader::open_set(&[(files[1].0.clone(), 0), (link.clone(), 0)]);
    assert!(twice.unwrap_err().message().contains("both device 1"));
    std::fs::remove_file(link).unwrap();
    let mut slots = Device::new(1, 2, 2, 20);
    slots.log.slot_size = 1024;
    slots.log.segments = 4;
    slots.write_super();
    let slots = file(&slots);
    let paths = [(files[0].0.clone(), 0), (slots.0.clone(), 0)];
    let error = LogReader::open_set(&paths).unwrap_err();
    assert!(error.message().contains("slots of 512 bytes"));
}

#[test]
fn segments_of_others_are_ignored() {
    // An earlier recording in the same range, and a segment of another device.
    let mut device = Device::new(0, 2, 2, 20);
    let mut before = Device::new(0, 2, 2, 20);
    before.log.set_id = 99;
    before.put(1, 5, 3);
    before.begin(0, 0, 0);
    before.put(0, 0, 3);
    device.bytes[2 * SLOT..].copy_from_slice(&before.bytes[2 * SLOT..]);
    device.put(1, 0, 3);
    let mut other = Device::new(1, 2, 2, 20);
    other.begin(1, 3, 1);
    other.put(1, 3, 3);
    let at = device.at(2, 0);
    device.bytes[at..at + 4 * SLOT].copy_from_slice(&other.bytes[at..at + 4 * SLOT]);
    // One that is not in its place.
    let from = device.at(1, 0);
    device
        .bytes
        .copy_within(from..from + 4 * SLOT, at + 16 * SLOT);
    let found = read(&[&device]);
    assert_eq!(found.records, BTreeMap::from([(1, vec![0, 1, 2])]));
    assert_eq!(found.gaps, []);
}

#[test]
fn by_time_and_by_number() {
    let set = recorded(2, 2, 100, 3);
    let (mut reader, _files) = open(&[&set[0], &set[1]]);
    assert_eq!(reader.seek(5).unwrap_err().errno(), libc::EINVAL);
    for first in [0, 1, 50, 98, 99, 100] {
        reader.seek_time(time(0, first)).unwrap();
        assert_eq!(reader.position(), 2 * first);
        let found = all(&mut reader);
        for lane in 0..2 {
            let records = found.records.get(&lane).cloned().unwrap_or_default();
            assert_eq!(records, (first..100).collect::<Vec<_>>());
        }
    }
    let set = recorded(1, 3, 100, 3);
    let (mut reader, _files) = open(&[&set[2], &set[0], &set[1]]);
    for first in [0, 1, 50, 99, 100, u64::MAX] {
        reader.seek(first).unwrap();
        let records = all(&mut reader).records.remove(&0).unwrap_or_default();
        assert_eq!(records, (first.min(100)..100).collect::<Vec<_>>());
    }
}

#[test]
fn a_seek_finds_what_is_in_a_segment_before_one_that_is_not_needed() {
    // The first segment has the newest packets. The others have old ones, which another device did not store.
    let mut set = [Device::new(0, 2, 1, 20), Device::new(1, 2, 1, 20)];
    for first in [0, 15, 20, 25] {
        set[0].put(0, first, 5);
    }
    for first in [5, 10] {
        set[0].begin(0, first, 0);
        set[0].put(0, first, 5);
    }
    let (mut reader, _files) = open(&[&set[0], &set[1]]);
    for first in 0..=30 {
        reader.seek(first).unwrap();
        let found = all(&mut reader);
        let records = found.records.get(&0).cloned().unwrap_or_default();
        assert_eq!(records, (first..30).collect::<Vec<_>>());
        assert_eq!(found.gaps, []);
        reader.seek_time(time(0, first)).unwrap();
        let found = all(&mut reader);
        let records = found.records.get(&0).cloned().unwrap_or_default();
        assert_eq!(records, (first..30).collect::<Vec<_>>());
    }
}

#[test]
fn a_seek_finds_old_packets_that_were_stored_late() {
    // A segment for what another device did not store stays open while those for new packets come and go.
    let mut device = Device::new(0, 2, 1, 20);
    device.put(0, 5, 5);
    device.begin(0, 0, 0);
    device.put(0, 0, 5);
    let late = device.place(0).unwrap();
    for first in [10, 20, 30, 40] {
        device.begin(0, first, 0);
        device.put(0, first, 5);
    }
    device.put_at(late, 0, 35, 5);
    let (mut reader, _files) = open(&[&device]);
    reader.seek(32).unwrap();
    let found = all(&mut reader).records.remove(&0).unwrap();
    assert_eq!(found, [32, 33, 34, 35, 36, 37, 38, 39, 40, 41, 42, 43, 44]);
}

#[test]
fn a_device_alone_is_read_like_a_set() {
    let set = recorded(1, 2, 40, 4);
    let files = [file(&set[0]), file(&set[1])];
    let found = all(&mut LogReader::open(&files[0].0, 0).unwrap());
    assert_eq!(found, read(&[&set[0]]));
    assert_eq!(found.gaps[0], (0, 4, 4, "missing"));
}

#[test]
fn the_spill_of_each_device() {
    let set = recorded(2, 2, 40, 4);
    let whole = read(&[&set[0], &set[1]]);
    let mut failed = set.clone();
    for slot in 0..4 {
        failed[1].lose(1, slot);
    }
    let (mut reader, _files) = open(&[&failed[0], &failed[1]]);
    assert_ne!(all(&mut reader).gaps, []);
    let spill = file(&set[1]);
    assert_eq!(
        reader.add_spill_of(2, &spill.0).unwrap_err().errno(),
        libc::EINVAL
    );
    reader.add_spill_of(1, &spill.0).unwrap();
    assert_eq!(all(&mut reader), whole);
}

#[test]
fn a_file_that_ends_before_its_log_is_read_to_its_end() {
    let set = recorded(2, 1, 60, 4);
    let mut short = set[0].clone();
    short.bytes.truncate(short.at(3, 0));
    let (mut reader, _files) = open(&[&short]);
    let mut records = 0;
    let error = loop {
        match reader.next_item() {
            Ok(Some(Item::Record { .. })) => records += 1,
            Ok(item) => assert!(item.is_some()),
            Err(error) => break error,
        }
    };
    assert!(records > 10);
    assert_eq!(error.errno(), libc::EIO);
}

#[test]
fn a_new_log_is_noticed() {
    let mut set = recorded(2, 2, 20, 4);
    let (mut reader, files) = open(&[&set[0], &set[1]]);
    all(&mut reader);
    set[1].log.set_id = 5;
    set[1].write_super();
    std::fs::write(&files[1].0, &set[1].bytes).unwrap();
    assert_eq!(reader.next_item().unwrap_err().errno(), libc::ENOMSG);
}

#[test]
fn a_follower_sees_what_a_recorder_writes_bit_by_bit() {
    let set = recorded(2, 2, 150, 3);
    let empty: Vec<_> = (0..2).map(|n| Device::new(n, 2, 2, 60)).collect();
    let files: Vec<_> = empty.iter().map(file).collect();
    let paths: Vec<_> = files.iter().map(|file| (file.0.clone(), 0)).collect();
    for (device, empty) in set.iter().zip(&empty) {
        std::fs::write(
            &files[usize::from(empty.log.device)].0,
            &device.bytes[..2 * SLOT],
        )
        .unwrap();
        let file = std::fs::OpenOptions::new()
            .write(true)
            .open(&files[usize::from(empty.log.device)].0);
        file.unwrap().set_len(device.bytes.len() as u64).unwrap();
    }
    let mut reader = LogReader::open_set(&paths).unwrap();
    let writer = std::thread::spawn(move || {
        let files: Vec<_> = paths
            .iter()
            .map(|(path, _)| std::fs::OpenOptions::new().write(true).open(path).unwrap())
            .collect();
        // Neighbouring slots in the other order, and one device ahead of the other.
        for slot in (2..set[0].bytes.len() / SLOT).step_by(2) {
            for place in [slot + 1, slot] {
                for (device, file) in set.iter().zip(&files) {
                    let at = place * SLOT;
                    if let Some(bytes) = device.bytes.get(at..at + SLOT) {
                        file.write_all_at(bytes, at as u64).unwrap();
                    }
                }
            }
            if slot % 16 == 2 {
                std::thread::sleep(Duration::from_millis(2));
            }
        }
    });
    let (mut found, mut last, start) = (Read::default(), 0, Instant::now());
    while found.records.values().map(Vec::len).sum::<usize>() < 300 {
        assert!(start.elapsed() < Duration::from_secs(60), "{found:?}");
        if let Some(item) = reader.follow(Duration::from_millis(200)).unwrap() {
            take(&mut found, &mut last, item);
        }
    }
    writer.join().unwrap();
    assert_eq!(found.gaps, []);
    for lane in 0..2 {
        assert_eq!(found.records[&lane], (0..150).collect::<Vec<_>>());
    }
}

/// Where each unit of a recording goes, and what is done to the image.
#[derive(Debug, Clone)]
struct Plan {
    lanes: u16,
    devices: u16,
    /// Lane, device, packets, whether it is written to a second device too, and whether a new segment is begun for it.
    units: Vec<(u16, u16, u64, bool, bool)>,
}

fn plan() -> impl Strategy<Value = Plan> {
    let unit = (
        any::<u16>(),
        any::<u16>(),
        1u64..6,
        prop::bool::weighted(0.2),
        prop::bool::weighted(0.1),
    );
    (1u16..5, 1u16..4, prop::collection::vec(unit, 1..60)).prop_map(|(lanes, devices, units)| {
        Plan {
            lanes,
            devices,
            units,
        }
    })
}

/// The devices, and how many packets each lane has.
fn built(plan: &Plan) -> (Vec<Device>, BTreeMap<u16, u64>) {
    let lanes = if plan.devices == 1 {
        plan.lanes.max(2)
    } else {
        plan.lanes
    };
    let mut set: Vec<_> = (0..plan.devices)
        .map(|number| Device::new(number, plan.devices, lanes, 130))
        .collect();
    let mut next: BTreeMap<u16, u64> = BTreeMap::new();
    for (lane, device, count, twice, anew) in &plan.units {
        let (lane, device) = (lane % plan.lanes, device % plan.devices);
        let first = next.entry(lane).or_default();
        let devices = [device, (device + 1) % plan.devices];
        for device in &devices[..1 + usize::from(*twice && plan.devices > 1)] {
            if *anew {
                set[usize::from(*device)].begin(lane, *first, u64::from(*twice));
            }
            set[usize::from(*device)].put(lane, *first, *count);
        }
        *first += count;
    }
    (set, next)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn of_a_whole_set_every_packet_comes_once_and_in_order(plan in plan()) {
        let (set, lanes) = built(&plan);
        let found = read(&set.iter().collect::<Vec<_>>());
        prop_assert_eq!(&found.gaps, &[]);
        let expected: BTreeMap<u16, Vec<u64>> = lanes.iter().map(|(lane, end)| (*lane, (0..*end).collect())).collect();
        prop_assert_eq!(&found.records, &expected);
    }

    #[test]
    fn damage_never_makes_a_wrong_packet(
        plan in plan(),
        bits in prop::collection::vec((any::<u16>(), any::<prop::sample::Index>(), any::<u8>()), 0..40),
        slots in prop::collection::vec((any::<u16>(), any::<prop::sample::Index>(), any::<prop::sample::Index>()), 0..6),
        lost in prop::option::of(any::<u16>()),
    ) {
        let (mut set, lanes) = built(&plan);
        for (device, at, bit) in bits {
            let device = &mut set[usize::from(device % plan.devices)];
            let used = (2 + device.newest as usize * SLOTS as usize) * SLOT;
            device.bytes[2 * SLOT + at.index(used - 2 * SLOT + 1)] ^= 1 << (bit % 8);
        }
        // Slots in wrong places.
        for (device, from, to) in slots {
            let device = &mut set[usize::from(device % plan.devices)];
            let used = device.newest as usize * SLOTS as usize + 1;
            let (from, to) = (2 + from.index(used), 2 + to.index(used));
            device.bytes.copy_within(from * SLOT..(from + 1) * SLOT, to * SLOT);
        }
        let mut given: Vec<_> = set.iter().collect();
        if let Some(lost) = lost && plan.devices > 1 {
            given.remove(usize::from(lost % plan.devices));
        }
        // `all` checks packets and order.
        let found = read(&given);
        for (lane, records) in &found.records {
            prop_assert!(records.last().is_none_or(|last| *last < lanes[lane]));
            let gone: u64 = found.gaps.iter().filter(|gap| gap.0 == *lane).map(|gap| gap.2).sum();
            prop_assert!(records.len() as u64 + gone <= lanes[lane]);
        }
    }

    #[test]
    fn forged_superblocks_and_sequence_numbers_end(
        plan in plan(), newest in any::<u64>(), devices in any::<u16>(), jump in any::<u64>(),
    ) {
        let (mut set, _) = built(&plan);
        let first = &mut set[0];
        first.log = Superblock { newest: newest >> 2, devices, ..first.log };
        first.write_super();
        first.begin(3, jump >> 2, 0);
        let mut reader = open(&set.iter().collect::<Vec<_>>()).0;
        for _ in 0..2000 {
            if reader.next_item().unwrap().is_none() {
                break;
            }
        }
        prop_assert!(reader.next_item().unwrap().is_none());
        reader.end().unwrap();
        reader.seek_time(jump).unwrap();
    }
}
