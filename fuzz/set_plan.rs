//! Sets that a plan describes, the damage that is done to them, and what a reader must find then.

#[path = "../src/log_reader/set/tests/image.rs"]
#[allow(dead_code)]
pub mod image;

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{File, OpenOptions};
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

use arbitrary::Arbitrary;
use image::{Device, SLOTS, packet, time};
use unified::Result;
use unified::log_reader::{Item, LogReader};
use unified::unit_log::superblock::Superblock;
use unified::unit_log::unit::{CONTENT, SlotHeader, UnitHeader};

/// Items that the largest plan can be read as, with room for forged ones.
const MOST_ITEMS: usize = 50_000;

#[derive(Debug, Arbitrary)]
pub struct Plan {
    lanes: u8,
    devices: u8,
    segments: u8,
    /// So many units come out of a seed, before the others.
    seeded: u8,
    seed: u64,
    /// What of `how` they may have.
    mask: u8,
    units: Vec<PlannedUnit>,
}

#[derive(Debug, Clone, Copy, Arbitrary)]
struct PlannedUnit {
    lane: u8,
    device: u8,
    packets: u8,
    /// `TWICE` and so on.
    how: u8,
}

/// It is written to a second device too.
const TWICE: u8 = 1;
/// A new segment is begun for it.
const ANEW: u8 = 2;
/// It gets its numbers now, and is written later, to a segment of its own.
const LATE: u8 = 4;
/// Before it, what is late is written.
const CATCH_UP: u8 = 8;
/// A generation is skipped before its new segment.
const SKIP: u8 = 16;

#[derive(Debug, Arbitrary)]
pub enum Damage {
    Flip {
        device: u8,
        at: u32,
        bit: u8,
    },
    Overwrite {
        device: u8,
        at: u32,
        bytes: Vec<u8>,
    },
    /// A slot that is in another place too, of another device perhaps.
    Copy {
        from: (u8, u16),
        to: (u8, u16),
    },
    Lose {
        device: u8,
        slot: u16,
    },
    /// The second superblock is there again.
    Restore {
        device: u8,
    },
}

/// What nobody wrote, with checksums that are right.
#[derive(Debug, Arbitrary)]
pub enum Forged {
    Superblock {
        device: u8,
        copy: bool,
        sizes: Option<(u32, u32, u64)>,
        generation: u64,
        newest: u64,
        numbers: (u16, u16, u16),
        other_set: bool,
        features: (u32, u32),
    },
    Unit {
        device: u8,
        place: u16,
        in_place: bool,
        generation: u64,
        slot: u32,
        kind: u8,
        index: u8,
        slots: u8,
        lane: u16,
        first: u64,
        time: u64,
        records: u32,
        bytes: u32,
        data_offset: u16,
    },
    /// The range holds these bytes and nothing else.
    Bytes {
        device: u8,
        bytes: Vec<u8>,
    },
    Cut {
        device: u8,
        bytes: u32,
    },
}

/// A unit that was written.
struct Written {
    device: usize,
    generation: u64,
    at: usize,
    bytes: Vec<u8>,
    lane: u16,
    first: u64,
    packets: u64,
}

impl Plan {
    fn units(&self) -> impl Iterator<Item = PlannedUnit> {
        let mut state = self.seed;
        let seeded = (0..self.seeded).map(move |_| {
            state = state
                .wrapping_mul(6364136223846793005)
                .wrapping_add(1442695040888963407);
            let [how, lane, device, packets, ..] = (state >> 32).to_le_bytes();
            let rare = packets % 7 > 2;
            PlannedUnit {
                lane,
                device,
                packets,
                how: if rare { 0 } else { how & self.mask },
            }
        });
        seeded.chain(self.units.iter().copied()).take(400)
    }
}

pub struct Set {
    pub devices: Vec<Device>,
    written: Vec<Written>,
    /// Of each lane, the sequence number after its last packet.
    pub next: BTreeMap<u16, u64>,
    /// Something that nobody wrote has a checksum that is right.
    pub forged: bool,
}

impl Set {
    pub fn build(slot: usize, plan: &Plan) -> Set {
        let count = 1 + u16::from(plan.devices % 3);
        // One lane on one device has no set.
        let lanes = match count {
            1 => 2 + u16::from(plan.lanes % 3),
            _ => 1 + u16::from(plan.lanes % 4),
        };
        let segments = |number: u16| 5 + u64::from(plan.segments % 6) + u64::from(number % 2);
        let devices = (0..count)
            .map(|number| Device::with_slots(slot, number, count, lanes, segments(number)))
            .collect();
        let mut set = Set {
            devices,
            written: Vec::new(),
            next: BTreeMap::new(),
            forged: false,
        };
        let mut late = Vec::new();
        for unit in plan.units() {
            let lane = u16::from(unit.lane) % lanes;
            let packets = 1 + u64::from(unit.packets % 5);
            let next = set.next.entry(lane).or_default();
            let first = *next;
            *next += packets;
            let device = usize::from(unit.device) % set.devices.len();
            if unit.how & CATCH_UP != 0 {
                set.catch_up(&mut late);
            }
            if unit.how & LATE != 0 && late.len() < 8 {
                late.push((device, lane, first, packets));
                continue;
            }
            let copies = 1 + usize::from(unit.how & TWICE != 0 && set.devices.len() > 1);
            for copy in 0..copies {
                let device = (device + copy) % set.devices.len();
                if unit.how & ANEW != 0 {
                    let skip = u64::from(unit.how & SKIP != 0 && lanes > 1);
                    set.devices[device].begin(lane, first, skip);
                }
                set.put(device, lane, first, packets);
            }
        }
        set.catch_up(&mut late);
        for device in &mut set.devices {
            device.write_super();
            let log = Superblock {
                generation: 1,
                newest: device.newest,
                ..device.log
            };
            device.bytes[slot..slot + 512].copy_from_slice(&log.to_bytes());
        }
        set
    }

    fn catch_up(&mut self, late: &mut Vec<(usize, u16, u64, u64)>) {
        for (device, lane, first, packets) in late.drain(..) {
            self.devices[device].begin(lane, first, 0);
            self.put(device, lane, first, packets);
        }
    }

    fn put(&mut self, number: usize, lane: u16, first: u64, packets: u64) {
        let device = &mut self.devices[number];
        let (generation, slot, slots) = device.put(lane, first, packets);
        let at = device.at(generation, slot);
        let end = at + slots as usize * device.slot();
        self.written.push(Written {
            device: number,
            generation,
            at,
            bytes: device.bytes[at..end].to_vec(),
            lane,
            first,
            packets,
        });
    }

    fn device(&mut self, number: u8) -> &mut Device {
        let count = self.devices.len();
        &mut self.devices[usize::from(number) % count]
    }

    fn slot(device: &Device, number: u16) -> usize {
        let slots = device.bytes.len() / device.slot();
        usize::from(number) % slots * device.slot()
    }

    pub fn damage(&mut self, damage: &Damage) {
        match damage {
            Damage::Flip { device, at, bit } => {
                let bytes = &mut self.device(*device).bytes;
                let at = *at as usize % bytes.len();
                bytes[at] ^= 1 << (bit % 8);
            }
            Damage::Overwrite { device, at, bytes } => {
                let whole = &mut self.device(*device).bytes;
                let at = *at as usize % whole.len();
                let room = whole[at..].iter_mut();
                room.zip(bytes).for_each(|(to, from)| *to = *from);
            }
            Damage::Copy { from, to } => {
                let source = self.device(from.0);
                let at = Set::slot(source, from.1);
                let bytes = source.bytes[at..at + source.slot()].to_vec();
                let target = self.device(to.0);
                let at = Set::slot(target, to.1);
                target.bytes[at..at + bytes.len()].copy_from_slice(&bytes);
            }
            Damage::Lose { device, slot } => {
                let device = self.device(*device);
                let (at, size) = (Set::slot(device, *slot), device.slot());
                device.bytes[at..at + size].fill(0);
            }
            Damage::Restore { device } => {
                let device = self.device(*device);
                let at = device.slot();
                let bytes = device.log.to_bytes();
                device.bytes[at..at + bytes.len()].copy_from_slice(&bytes);
            }
        }
    }

    pub fn forge(&mut self, forged: &Forged) {
        self.forged = true;
        match forged {
            Forged::Superblock {
                device,
                copy,
                sizes,
                generation,
                newest,
                numbers,
                other_set,
                features,
            } => {
                let device = self.device(*device);
                let mut log = device.log;
                if let Some((slot_size, segment_slots, segments)) = sizes {
                    log.slot_size = *slot_size;
                    log.segment_slots = *segment_slots;
                    log.segments = *segments;
                }
                (log.generation, log.newest) = (generation >> 2, newest >> 2);
                (log.device, log.devices, log.lanes) = *numbers;
                log.set_id ^= u64::from(*other_set);
                (log.compat, log.incompat) = *features;
                let at = usize::from(*copy) * device.slot();
                device.bytes.truncate(device.bytes.len().max(at + 512));
                if let Some(to) = device.bytes.get_mut(at..at + 512) {
                    to.copy_from_slice(&log.to_bytes());
                }
            }
            Forged::Unit {
                device,
                place,
                in_place,
                generation,
                slot,
                kind,
                index,
                slots,
                lane,
                first,
                time,
                records,
                bytes,
                data_offset,
            } => {
                let device = self.device(*device);
                if device.bytes.len() < device.slot() {
                    return;
                }
                let at = Set::slot(device, *place);
                let number = (at / device.slot()).saturating_sub(2) as u64;
                let (mut generation, mut slot) = (generation >> 2, *slot);
                if *in_place {
                    let of_place = number / u64::from(SLOTS) + 1;
                    let laps = generation % 4;
                    generation = of_place + laps * device.log.segments;
                    slot = (number % u64::from(SLOTS)) as u32;
                }
                let header = SlotHeader {
                    kind: *kind,
                    index: *index,
                    slots: *slots,
                    generation,
                    slot,
                    tag: device.log.tag(),
                    first: 0,
                };
                let unit = UnitHeader {
                    first_sequence: first >> 2,
                    base_time: *time,
                    records: *records,
                    bytes: *bytes,
                    lane: *lane,
                    data_offset: *data_offset,
                };
                device.bytes[at..at + CONTENT].copy_from_slice(&unit.to_bytes(&header));
            }
            Forged::Bytes { device, bytes } => self.device(*device).bytes = bytes.clone(),
            Forged::Cut { device, bytes } => {
                let whole = &mut self.device(*device).bytes;
                whole.truncate(*bytes as usize % (whole.len() + 1));
            }
        }
    }

    /// The records that are whole on these devices, and that no later segment has taken the place of.
    pub fn whole(&self, given: &[usize]) -> BTreeSet<(u16, u64)> {
        let mut newest = BTreeMap::new();
        for unit in &self.written {
            let place = self.devices[unit.device].log.place_of(unit.generation);
            let newest: &mut u64 = newest.entry((unit.device, place)).or_default();
            *newest = unit.generation.max(*newest);
        }
        let mut whole = BTreeSet::new();
        for unit in self.written.iter().filter(|u| given.contains(&u.device)) {
            let device = &self.devices[unit.device];
            let place = device.log.place_of(unit.generation);
            let there = device.bytes.get(unit.at..unit.at + unit.bytes.len());
            if there == Some(&unit.bytes) && newest[&(unit.device, place)] == unit.generation {
                whole.extend((unit.first..unit.first + unit.packets).map(|n| (unit.lane, n)));
            }
        }
        whole
    }
}

/// Files without a name, which hold the devices one after the other.
pub struct Files(Vec<File>);

impl Files {
    pub fn new() -> Files {
        let make = |number: u32| {
            let path = format!("/dev/shm/unified-fuzz-{}-{number}", std::process::id());
            let mut open = OpenOptions::new();
            let file = open.read(true).write(true).create_new(true).open(&path);
            std::fs::remove_file(&path).unwrap();
            file.unwrap()
        };
        Files((0..3).map(make).collect())
    }

    pub fn hold(&self, devices: &[Device]) {
        for (file, device) in self.0.iter().zip(devices) {
            file.write_all_at(&device.bytes, 0).unwrap();
            file.set_len(device.bytes.len() as u64).unwrap();
        }
    }

    pub fn bytes(&self, number: usize) -> Vec<u8> {
        let file = &self.0[number];
        let mut bytes = vec![0; file.metadata().unwrap().len() as usize];
        file.read_exact_at(&mut bytes, 0).unwrap();
        bytes
    }

    pub fn path(&self, number: usize) -> PathBuf {
        PathBuf::from(format!("/proc/self/fd/{}", self.descriptor(number)))
    }

    pub fn descriptor(&self, number: usize) -> RawFd {
        self.0[number].as_raw_fd()
    }
}

/// Reads to the end, or to an error. Lanes ascend, without a word left out, so that nothing comes twice, and every packet is
/// one that was written.
pub fn read(reader: &mut LogReader, set: &Set) -> (BTreeSet<(u16, u64)>, Result<()>) {
    let mut records = BTreeSet::new();
    let mut next: BTreeMap<u16, u64> = BTreeMap::new();
    for _ in 0..MOST_ITEMS {
        let (lane, first, count) = match reader.next_item() {
            Err(error) => return (records, Err(error)),
            Ok(None) => return (records, Ok(())),
            Ok(Some(Item::Record { header, packet: p })) => {
                let (lane, number) = (header.lane, header.sequence);
                if !set.forged {
                    assert_eq!(p, packet(lane, number), "a wrong packet");
                    assert_eq!(header.timestamp, time(lane, number));
                }
                assert!(records.insert((lane, number)));
                (lane, number, 1)
            }
            Ok(Some(Item::Gap {
                lane, first, count, ..
            }))
            | Ok(Some(Item::Overwritten { lane, first, count })) => (lane, first, count),
        };
        assert!(count > 0, "nothing is missing");
        let expected = next.insert(lane, first + count);
        // A log of several lanes may say that it has one.
        let ascends = expected.is_none_or(|expected| match set.forged {
            true => expected <= first,
            false => expected == first,
        });
        assert!(ascends, "lane {lane}: {first} after {expected:?}");
        if !set.forged {
            assert!(first + count <= set.next.get(&lane).copied().unwrap_or(0));
        }
    }
    panic!("endless");
}
