//! What recordings of several lanes on several devices are tested with: packets with numbers, what stands on the devices, and what
//! the reader makes of it.

use std::collections::BTreeMap;
use std::fs;
use std::net::{SocketAddrV4, UdpSocket};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use super::{Veth, log_to_stderr, payload, run};
use unified::log_reader::{Item, LogReader};
use unified::pipeline::{Pipeline, PipelineStatus};
use unified::unit_log::superblock::Superblock;
use unified::unit_log::unit::{SlotHeader, kind};
use unified::unit_log::units::Unit;

const PORT: u16 = 9999;
pub const PATIENCE: Duration = Duration::from_secs(30);

/// A pair of so many queues that loses nothing: the far end waits if a ring is full.
pub fn network(queues: u32) -> Veth {
    log_to_stderr();
    let veth = Veth::with_queues(queues);
    let (ns, peer) = (veth.ns.clone(), veth.peer.clone());
    let kind = if queues > 1 { "mq" } else { "pfifo" };
    let root = ["-n", &ns, "qdisc", "replace", "dev", &peer, "root", kind];
    run("tc", &root);
    veth
}

/// Number `i` of flow `f`, with a length that is now packed and now stored in place.
pub fn numbered(flow: u32, i: u32) -> Vec<u8> {
    let len = if i.is_multiple_of(3) { 1200 } else { 100 };
    let mut bytes = payload(flow << 16 | i, len);
    bytes[..4].copy_from_slice(&(flow << 16 | i).to_le_bytes());
    bytes
}

/// Sends these numbers from a socket for each flow. The kernel spreads them over the queues by their ports.
pub fn send(veth: &Veth, flows: std::ops::Range<u32>, numbers: std::ops::Range<u32>) {
    let to = SocketAddrV4::new(veth.host_addr, PORT);
    let sender = veth.far(move || {
        let bind = |_| UdpSocket::bind("0.0.0.0:0").unwrap();
        let sockets: Vec<UdpSocket> = flows.clone().map(bind).collect();
        for i in numbers {
            for (flow, socket) in flows.clone().zip(&sockets) {
                socket.send_to(&numbered(flow, i), to).unwrap();
            }
            std::thread::sleep(Duration::from_millis(4));
        }
    });
    sender.join().unwrap();
}

/// A packet as it stands on a device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stored {
    pub payload: Vec<u8>,
    pub device: usize,
    pub queue: u16,
}

/// All packets on these devices, by lane and sequence number. Looks at every place: no reader is trusted here.
pub fn packets_on(images: &[Vec<u8>]) -> BTreeMap<(u16, u64), Vec<Stored>> {
    let mut found: BTreeMap<_, Vec<Stored>> = BTreeMap::new();
    for (device, image) in images.iter().enumerate() {
        // The second copy has a slot of its own.
        let copies = [0, 2048, 4096].map(|at| Superblock::read(&image[at..]));
        let newest = copies
            .into_iter()
            .flatten()
            .max_by_key(|log| (log.created, log.generation));
        let log = newest.expect("a superblock");
        let slot_size = log.slot_size as usize;
        assert_eq!(usize::from(log.device), device);
        assert_eq!(usize::from(log.devices), images.len());
        for place in 0..log.segments {
            let at = log.slot_of(place + 1, 0) as usize * slot_size;
            let slots = image[at..]
                .chunks(slot_size)
                .take(log.segment_slots as usize);
            let headers = slots.filter_map(SlotHeader::read);
            let of_log = headers.filter(|header| header.tag == log.tag());
            // The header of the segment may be lost.
            let Some(generation) = of_log.map(|header| header.generation).max() else {
                continue;
            };
            let mut slot = 0;
            let (mut lane, mut last) = (None, None);
            while slot < log.segment_slots {
                let bytes = &image[log.slot_of(generation, slot) as usize * slot_size..];
                let Ok(unit) = Unit::read(&log, generation, slot, bytes) else {
                    slot += 1;
                    continue;
                };
                let of = *lane.get_or_insert(unit.header.lane);
                assert_eq!(unit.header.lane, of, "a segment has one lane");
                assert!(slot > 0 || unit.kind == kind::SEGMENT);
                let (mut stream, mut records) = (Vec::new(), Vec::new());
                if unit.has_packets() {
                    unit.records(&log, bytes, &mut stream, &mut records);
                    assert_eq!(records.len(), unit.header.records as usize);
                }
                for (sequence, (record, range)) in (unit.header.first_sequence..).zip(&records) {
                    assert!(last.is_none_or(|last| last < sequence), "they ascend");
                    last = Some(sequence);
                    let packet = &stream[range.clone()];
                    let start = usize::from(record.payload_offset);
                    let payload = packet[start..start + usize::from(record.payload_len)].to_vec();
                    found.entry((of, sequence)).or_default().push(Stored {
                        payload,
                        device,
                        queue: record.queue,
                    });
                }
                slot += unit.slots;
            }
        }
    }
    found
}

pub fn images(paths: &[&str]) -> Vec<Vec<u8>> {
    paths.iter().map(|path| fs::read(path).unwrap()).collect()
}

/// What the reader finds on these devices must be what stands there: each packet once, in the order of its lane, all of them in
/// the order of time (lanes read the clock a little apart), and what is on none of the devices as missing.
pub fn check_reader(paths: &[&str], found: &BTreeMap<(u16, u64), Vec<Stored>>, all: bool) {
    let devices: Vec<(PathBuf, u64)> = paths.iter().map(|path| (path.into(), 0)).collect();
    let mut reader = LogReader::open_set(&devices).unwrap();
    let mut next: BTreeMap<u16, u64> = BTreeMap::new();
    let (mut read, mut missing, mut time) = (0, 0, 0);
    while let Some(item) = reader.next_item().unwrap() {
        match item {
            Item::Record { header, packet } => {
                let next = next.entry(header.lane).or_default();
                assert_eq!(header.sequence, *next, "lane {}", header.lane);
                *next += 1;
                let stored = &found[&(header.lane, header.sequence)];
                let start = usize::from(header.payload_offset);
                let payload = &packet[start..start + usize::from(header.payload_len)];
                assert!(payload == stored[0].payload, "{header:?}");
                assert!(
                    header.timestamp + 1_000_000 > time || !all,
                    "in the order of time"
                );
                time = time.max(header.timestamp);
                read += 1;
            }
            Item::Gap {
                lane,
                first,
                count,
                damaged,
            } => {
                let next = next.entry(lane).or_default();
                assert_eq!((first, damaged), (*next, false), "lane {lane}");
                *next += count;
                missing += count;
            }
            Item::Overwritten { .. } => panic!("nothing is overwritten"),
        }
    }
    let tally = reader.tally();
    assert_eq!(
        (tally.records, tally.missing, tally.damaged),
        (read, missing, 0)
    );
    assert_eq!(read, found.len() as u64, "all that is there is read");
    assert!(!all || missing == 0);
}

/// Of each flow so many numbers are there, each once, each flow on one lane and in its order, each lane without a gap.
pub fn check_all_there(found: &BTreeMap<(u16, u64), Vec<Stored>>, expected: &[u32]) {
    let mut next_of_lane: BTreeMap<u16, u64> = BTreeMap::new();
    let mut next_of_flow: BTreeMap<u32, u32> = BTreeMap::new();
    for ((lane, sequence), stored) in found {
        assert_eq!(stored.len(), 1, "lane {lane} {sequence}: once");
        let next = next_of_lane.entry(*lane).or_default();
        assert_eq!(sequence, next, "lane {lane} has a gap");
        *next += 1;
        let number = u32::from_le_bytes(stored[0].payload[..4].try_into().unwrap());
        let (flow, i) = (number >> 16, number & 0xffff);
        let next = next_of_flow.entry(flow).or_default();
        assert_eq!(i, *next, "flow {flow} in its order");
        *next += 1;
        assert!(stored[0].payload == numbered(flow, i));
        assert_eq!(stored[0].queue, *lane);
    }
    let counts: Vec<u32> = next_of_flow.into_values().collect();
    assert_eq!(counts, expected);
}

/// Waits until so many are completed, and stops.
pub fn finish(pipeline: Pipeline, count: u64) -> PipelineStatus {
    let until = Instant::now() + PATIENCE;
    while pipeline.status().completed < count {
        assert!(Instant::now() < until, "{:?}", pipeline.status());
        std::thread::sleep(Duration::from_millis(2));
    }
    let (status, result) = pipeline.stop();
    result.unwrap();
    assert_eq!((status.error, status.durable), (0, status.submitted));
    status
}

/// As `check_all_there`, but a packet may be there twice, and is then the same.
pub fn check_all_there_once_or_twice(found: &BTreeMap<(u16, u64), Vec<Stored>>, expected: &[u32]) {
    let mut once = found.clone();
    for stored in once.values_mut() {
        let first = stored[0].payload.clone();
        assert!(stored.iter().all(|other| other.payload == first));
        stored.truncate(1);
    }
    check_all_there(&once, expected);
}
