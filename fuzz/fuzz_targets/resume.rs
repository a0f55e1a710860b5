//! A recording that goes on, on devices that somebody has damaged or forged. It is refused, and then nothing was written; or it
//! goes on after everything that can still be read, in segments of its own.
#![no_main]

#[path = "../set_plan.rs"]
#[allow(dead_code)]
mod set_plan;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::OnceLock;

use arbitrary::Arbitrary;
use libfuzzer_sys::fuzz_target;
use set_plan::{Damage, Files, Forged, Plan, Set, read};
use unified::config::Config;
use unified::context::Context;
use unified::log_reader::LogReader;
use unified::recorder::{Existing, Granted, LogSet, SetConfig};
use unified::storage::device::DeviceConfig;
use unified::unit_log::unit::SlotHeader;
use unified::{Result, sys, unit_log};

/// The shortest frame: a slot is a frame.
const SLOT: usize = 2048;

#[derive(Debug, Arbitrary)]
struct Input {
    plan: Plan,
    damage: Vec<Damage>,
    forged: Vec<Forged>,
    lanes: u8,
    begun: u8,
    replace: bool,
}

static FILES: OnceLock<Files> = OnceLock::new();

fn context(files: &Files, devices: usize) -> Result<Context> {
    let mut all = (0..devices).map(|number| DeviceConfig {
        fd: Some(files.descriptor(number)),
        block_size: 512,
        // What is there is not asked about: that a file system is not overwritten is tested elsewhere.
        force: true,
        ..DeviceConfig::default()
    });
    let config = Config {
        device: all.next().unwrap_or_default(),
        more_devices: all.collect(),
        frame_count: 64,
        sq_entries: 64,
        cq_entries: 64,
        ..Config::default()
    };
    Context::open(&config)
}

fn records(files: &Files, set: &Set) -> BTreeSet<(u16, u64)> {
    let paths: Vec<_> = (0..set.devices.len())
        .map(|number| (files.path(number), 0))
        .collect();
    match LogReader::open_set(&paths) {
        Ok(mut reader) => read(&mut reader, set).0,
        Err(_) => BTreeSet::new(),
    }
}

fuzz_target!(|input: Input| {
    let files = FILES.get_or_init(Files::new);
    let mut set = Set::build(SLOT, &input.plan);
    input.damage.iter().for_each(|damage| set.damage(damage));
    input.forged.iter().for_each(|forged| set.forge(forged));
    let count = set.devices.len();
    files.hold(&set.devices);
    let before = records(files, &set);
    // Files that hold not one block are no devices.
    let context = match context(files, count) {
        Ok(context) => context,
        Err(error) => {
            assert!(set.forged, "{error}");
            return;
        }
    };
    let bytes: Vec<_> = (0..count).map(|number| files.bytes(number)).collect();
    let lanes = 1 + u16::from(input.lanes % 4);
    let config = SetConfig {
        start_lba: 0,
        blocks: 0,
        wraps: true,
        existing: match input.replace {
            true => Existing::Replace,
            false => Existing::Continue,
        },
        lanes,
    };
    let opened = LogSet::open(&context, &context.lanes()[0], &config);
    let Ok(resumed) = opened else {
        for (number, bytes) in bytes.iter().enumerate() {
            assert!(files.bytes(number) == *bytes, "refused, and written to");
        }
        return;
    };
    // Whether the superblock of each device can be read, of which there are two copies.
    let after = records(files, &set);
    if input.replace {
        assert!(after.is_empty(), "of the replaced one: {after:?}");
        return;
    }
    if set.forged {
        return;
    }
    // With no superblock left on any device, it is a new one.
    let known = resumed.log(0).set_id == set.devices[0].log.set_id;
    if !known {
        assert!(before.is_empty() && after.is_empty());
        return;
    }
    assert_eq!(before, after, "what was there is there");
    let mut newest: BTreeMap<u8, u64> = BTreeMap::new();
    for (device, bytes) in (0..).zip(&bytes) {
        let log = set.devices[usize::from(device)].log;
        let slots = bytes.chunks_exact(SLOT).zip(0u64..).skip(2);
        let headers = slots.filter_map(|(slot, number)| {
            let header = SlotHeader::read(slot)?;
            (header.tag == log.tag() && log.slot_of(header.generation, header.slot) == number)
                .then_some(header.generation)
        });
        newest.insert(device, headers.max().unwrap_or(0));
    }
    let mut next: BTreeMap<u16, u64> = BTreeMap::new();
    for (lane, sequence) in &before {
        let after = next.entry(*lane).or_default();
        *after = (*after).max(sequence + 1);
    }
    for lane in 0..lanes {
        let first = resumed.first_sequence(lane);
        assert!(
            first >= next.get(&lane).copied().unwrap_or(0),
            "lane {lane}"
        );
        assert!(first <= set.next.get(&lane).copied().unwrap_or(0));
    }
    for turn in 0..input.begun {
        let lane = u16::from(turn) % lanes;
        let Granted::Segment(segment) = resumed.begin_segment(lane, resumed.first_sequence(lane))
        else {
            break;
        };
        let newest = newest.get_mut(&segment.device).unwrap();
        assert!(segment.generation > *newest, "over what is there");
        *newest = segment.generation;
        resumed.release(segment.device, segment.generation);
    }
});
