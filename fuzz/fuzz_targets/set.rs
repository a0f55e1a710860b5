//! What is read back from the devices of a set: whole and damaged ones, and ones that somebody forged. It comes to an end,
//! every packet is one that was written, none comes twice, and none is missed that is whole.
#![no_main]

#[path = "../set_plan.rs"]
#[allow(dead_code)]
mod set_plan;

use std::sync::OnceLock;

use arbitrary::Arbitrary;
use libfuzzer_sys::fuzz_target;
use set_plan::{Damage, Files, Forged, Plan, Set, image, read};
use unified::log_reader::LogReader;
use unified::{sys, unit_log};

#[derive(Debug, Arbitrary)]
struct Input {
    plan: Plan,
    damage: Vec<Damage>,
    forged: Vec<Forged>,
    /// A device that is not given, and whether the others come in their order.
    lost: Option<u8>,
    turned: bool,
    seek: u16,
    seek_any: Option<u64>,
}

static FILES: OnceLock<Files> = OnceLock::new();

fuzz_target!(|input: Input| {
    let files = FILES.get_or_init(Files::new);
    let mut set = Set::build(image::SLOT, &input.plan);
    input.damage.iter().for_each(|damage| set.damage(damage));
    input.forged.iter().for_each(|forged| set.forge(forged));
    files.hold(&set.devices);
    let mut given: Vec<usize> = (0..set.devices.len()).collect();
    if let Some(lost) = input.lost
        && given.len() > 1
    {
        given.remove(usize::from(lost) % set.devices.len());
    }
    if input.turned {
        given.reverse();
    }
    let paths: Vec<_> = given.iter().map(|n| (files.path(*n), 0)).collect();
    let Ok(mut reader) = LogReader::open_set(&paths) else {
        return;
    };
    let (records, result) = read(&mut reader, &set);
    if !set.forged {
        result.unwrap();
        let whole = set.whole(&given);
        let missed: Vec<_> = whole.difference(&records).collect();
        assert!(missed.is_empty(), "{missed:?}");
        assert!(reader.oldest().unwrap() <= reader.end().unwrap());
    } else {
        let _ = (reader.oldest(), reader.end());
    }
    let tally = reader.tally();
    assert_eq!(tally.records, records.len() as u64);
    // From somewhere on, it is the same.
    let from = u64::from(input.seek);
    if reader.seek(from).is_ok() && !set.forged {
        let (again, result) = read(&mut reader, &set);
        result.unwrap();
        let expected = records.range((0, from)..).copied().collect();
        assert_eq!(again, expected, "from {from} on");
    }
    let time = input.seek_any.unwrap_or(image::time(0, from));
    if reader.seek_time(time).is_ok() {
        let (again, _) = read(&mut reader, &set);
        assert!(set.forged || again.is_subset(&records));
    }
    if let Some(any) = input.seek_any
        && reader.seek(any).is_ok()
    {
        let _ = read(&mut reader, &set);
    }
});
