//! What is read back from a device that anybody may have written to, version 2: superblocks, units and their records, and
//! the search for a log's end, which must come to one.
#![no_main]

use arbitrary::Arbitrary;
use libfuzzer_sys::fuzz_target;
use unified::unit_log::scan::find_end;
use unified::unit_log::superblock::Superblock;
use unified::unit_log::unit::{CONTENT, SLOT_HEADER_LEN, SlotHeader, UnitHeader};
use unified::unit_log::units::Unit;

const SLOT: usize = 512;

#[derive(Debug, Arbitrary)]
struct Input {
    set_id: u64,
    /// Slots as they are on the device; and headers that are right, over their starts.
    bytes: Vec<u8>,
    kind: u8,
    slots: u8,
    records: u32,
    length: u32,
    data_offset: u16,
    sealed: bool,
    newest: u64,
    /// Generation and first sequence number of the header in each slot of a log.
    headers: Vec<(u64, u64)>,
}

fn headers(log: &Superblock, generation: u64, slot: u32, first_sequence: u64) -> [u8; CONTENT] {
    let header = SlotHeader {
        kind: 2,
        slots: 1,
        generation,
        slot,
        tag: log.tag(),
        ..SlotHeader::default()
    };
    let unit = UnitHeader {
        first_sequence,
        records: 1,
        ..UnitHeader::default()
    };
    unit.to_bytes(&header)
}

fuzz_target!(|input: Input| {
    let _ = Superblock::read(&input.bytes);
    let Ok(log) = Superblock::new(input.set_id, 0, 512, SLOT as u32, 0, 2 + 16 * 8, true) else {
        return;
    };
    let mut bytes = input.bytes;
    if input.sealed && bytes.len() >= SLOT {
        let slot = |index: u8| SlotHeader {
            kind: input.kind,
            index,
            slots: input.slots,
            generation: 1,
            slot: index.into(),
            tag: log.tag(),
            first: 0,
        };
        let unit = UnitHeader {
            records: input.records,
            bytes: input.length,
            data_offset: input.data_offset,
            ..UnitHeader::default()
        };
        bytes[..CONTENT].copy_from_slice(&unit.to_bytes(&slot(0)));
        for (index, bytes) in bytes.chunks_exact_mut(SLOT).enumerate().skip(1).take(8) {
            bytes[..SLOT_HEADER_LEN].copy_from_slice(&slot(index as u8).to_bytes());
        }
    }
    if let Ok(unit) = Unit::read(&log, 1, 0, &bytes) {
        let (mut stream, mut records) = (Vec::new(), Vec::new());
        unit.records(&log, &bytes, &mut stream, &mut records);
        assert!(records.len() <= unit.header.records as usize);
        for (record, place) in &records {
            assert!(place.end <= stream.len());
            assert_eq!(place.len(), usize::from(record.stored_len));
            assert!(usize::from(record.payload_offset) + usize::from(record.payload_len) <= place.len());
        }
        let _ = unit.body(&log, &bytes);
    }
    let log = Superblock {
        newest: input.newest >> 2,
        ..log
    };
    let mut reads = 0u64;
    let end = find_end(&log, |slot, count| {
        reads += 1;
        assert!(reads <= 64 * (1 + input.headers.len() as u64), "endless");
        assert!(count > 0 && slot + count <= log.slots(), "past the last slot");
        Ok((slot..slot + count)
            .map(|number| {
                let mut bytes = vec![0; SLOT];
                let place = (number.max(2) - 2) % u64::from(log.segment_slots);
                if let Some((generation, sequence)) = input.headers.get(number as usize) {
                    let head = headers(&log, *generation >> 2, place as u32, *sequence >> 2);
                    bytes[..CONTENT].copy_from_slice(&head);
                }
                bytes
            })
            .collect())
    });
    assert!(end.unwrap().newest_generation >= log.newest);
});
