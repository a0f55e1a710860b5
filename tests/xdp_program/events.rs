//! Events: sampled, lost, unread.

use super::*;

#[test]
fn one_event_in_so_many_packets() {
    if !is_root("one_event_in_so_many_packets") {
        return;
    }
    // Packets are counted for each CPU: stay on one.
    let cpu = nix::sched::sched_getaffinity(nix::unistd::Pid::this()).unwrap();
    let first = (0..nix::sched::CpuSet::count())
        .find(|n| cpu.is_set(*n).unwrap())
        .unwrap();
    let mut one = nix::sched::CpuSet::new();
    one.set(first).unwrap();
    nix::sched::sched_setaffinity(nix::unistd::Pid::from_raw(0), &one).unwrap();

    let mut rig = Rig::new(&XdpConfig {
        event_sample: 0,
        ..config()
    });
    let packet = ours().remove(0).packet;
    let foreign = not_ours().remove(0).packet;
    for (sample, expected) in [
        (0, 0),
        (1, 60),
        (2, 30),
        (3, 20),
        (60, 1),
        (1000, 0),
        (0, 0),
    ] {
        rig.xdp.set_event_sample(sample).unwrap();
        let mut events = 0;
        for _ in 0..60 {
            let got = rig.run(&packet);
            assert_eq!(got.counted.events, got.events.len() as u64);
            assert_eq!(got.counted.events_lost, 0);
            events += got.events.len();
            assert_eq!(rig.run(&foreign).events, [], "foreign packets log nothing");
        }
        // The count goes on from sample to sample: 1000 is first met after these tests' 420 packets.
        assert_eq!(events, expected, "one in {sample}");
    }
}

#[test]
fn events_beyond_the_ring_buffer_are_counted_as_lost() {
    if !is_root("events_beyond_the_ring_buffer_are_counted_as_lost") {
        return;
    }
    let mut rig = Rig::new(&config());
    let mut out = Vec::new();
    let fd = rig.xdp.events_fd().unwrap();
    let readable = || poll_readable(&[fd], Some(Duration::ZERO)).unwrap();
    let packets: Vec<Vec<u8>> = (0..100)
        .map(|len| ethernet(&[], 0x0800, &ipv4(0, IpNumber::UDP, &udp(PORT, &data(len)))))
        .collect();
    let records = 4096 / 64 - 1;
    for (i, packet) in packets.iter().enumerate() {
        // A record takes 8 bytes more than it holds, and the ring is never quite full. The reader is woken
        // when a quarter of it waits.
        assert_eq!(readable(), i >= 16, "after {i} packets");
        let verdict = rig.xdp.run(packet, None, &mut out).unwrap();
        assert_eq!(verdict, XDP_REDIRECT, "a lost event loses no packet");
        let count = rig.xdp.counters().unwrap();
        let kept = records.min(i + 1) as u64;
        assert_eq!(
            (count.events, count.events_lost),
            (kept, i as u64 + 1 - kept)
        );
    }
    // The oldest are kept, in their order; in two portions here.
    let mut lengths = Vec::new();
    let each = |event: &Event| lengths.push(usize::from(event.payload_len));
    assert_eq!(rig.xdp.drain_events(10, each).unwrap(), 10);
    let each = |event: &Event| lengths.push(usize::from(event.payload_len));
    assert_eq!(rig.xdp.drain_events(1000, each).unwrap(), records - 10);
    assert_eq!(lengths, (0..records).collect::<Vec<_>>());
    assert_eq!(rig.xdp.drain_events(1000, |_| panic!("empty")).unwrap(), 0);
    // And there is room again.
    rig.counted = rig.xdp.counters().unwrap();
    let got = rig.run(&packets[70]);
    assert_eq!(got.events[0].payload_len, 70);
    assert_eq!(got.counted.events_lost, 0);
}

#[test]
fn events_that_nobody_reads_are_not_lost() {
    if !is_root("events_that_nobody_reads_are_not_lost") {
        return;
    }
    let mut rig = Rig::new(&config());
    let mut out = Vec::new();
    let packet = |len| ethernet(&[], 0x0800, &ipv4(0, IpNumber::UDP, &udp(PORT, &data(len))));
    let records = 4096 / 64 - 1;
    for len in 0..100 {
        rig.xdp.run(&packet(len), None, &mut out).unwrap();
    }
    let count = rig.xdp.counters().unwrap();
    assert_eq!((count.events, count.events_lost), (records as u64, 0));
    // Whoever reads late finds the oldest ones; from now on what finds no room is lost.
    let mut lengths = Vec::new();
    let each = |event: &Event| lengths.push(usize::from(event.payload_len));
    assert_eq!(rig.xdp.drain_events(1000, each).unwrap(), records);
    assert_eq!(lengths, (0..records).collect::<Vec<_>>());
    for len in 0..100 {
        rig.xdp.run(&packet(len), None, &mut out).unwrap();
    }
    let count = rig.xdp.counters().unwrap();
    let lost = 100 - records as u64;
    assert_eq!(
        (count.events, count.events_lost),
        (2 * records as u64, lost)
    );
}
