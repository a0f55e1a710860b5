//! What is read back from a device that anybody may have written to: headers, superblocks, and the search for a
//! log's end, which must come to one.
#![no_main]

use arbitrary::Arbitrary;
use libfuzzer_sys::fuzz_target;
use unified::record::{HEADER_LEN, Header, MAX_SEQUENCE, MIN_SLOTS, SUPER_LEN, Superblock};
use unified::log_scan::{HOLE, find_end, newest_superblock};

#[derive(Debug, Arbitrary)]
struct Input {
    log_id: u64,
    /// A slot, or a superblock's bytes, as they are.
    bytes: Vec<u8>,
    slots: u8,
    next: u64,
    /// Sequence number of the record in each slot.
    sequences: Vec<u64>,
    batch: u8,
}

fn header(sequence: u64, log_id: u64) -> Vec<u8> {
    let header = Header {
        sequence,
        log_id,
        packet_offset: HEADER_LEN as u16,
        payload_offset: HEADER_LEN as u16,
        ip_version: 4,
        ..Header::default()
    };
    // The checksum of no bytes is 0.
    header.to_bytes(0).to_vec()
}

fuzz_target!(|input: Input| {
    if let Ok(header) = Header::read(&input.bytes, input.log_id) {
        let (at, len) = (
            u64::from(header.packet_offset),
            u64::from(header.packet_len),
        );
        assert!(at + len <= input.bytes.len() as u64);
    }
    if input.bytes.len() >= SUPER_LEN {
        let _ = Superblock::read(&input.bytes);
        let _ = newest_superblock(input.bytes.chunks_exact(SUPER_LEN));
    }
    let slots = MIN_SLOTS + u64::from(input.slots);
    let Ok(mut log) = Superblock::new(input.log_id, 0, 512, 2048, 0, (slots + 2) * 4, true) else {
        return;
    };
    log.next_sequence = input.next % MAX_SEQUENCE;
    let mut reads = 0u64;
    let end = find_end(&log, |sequence, count| {
        reads += 1;
        assert!(
            reads <= 16 * (HOLE + slots) * (1 + input.sequences.len() as u64),
            "endless"
        );
        assert!(
            count > 0 && sequence % log.slots + count <= log.slots,
            "past the last slot"
        );
        let count = count.min(1 + u64::from(input.batch));
        Ok((0..count)
            .map(|i| {
                let slot = ((sequence + i) % log.slots) as usize;
                match input.sequences.get(slot) {
                    Some(found) => header(*found, input.log_id),
                    None => vec![0; HEADER_LEN],
                }
            })
            .collect())
    });
    assert!(end.unwrap() >= log.next_sequence);
});
