//! Packets over a veth pair into a context, and the comparison of what it stored.

use std::time::{Duration, Instant};

use super::{Veth, check_sums, log_to_stderr, payload};
use unified::config::Config;
use unified::context::{Context, Info};
use unified::lane::{Completion, Ready, Transfer};
use unified::net::rx::Received;
use unified::stats::Statistics;

const COUNT: u32 = 600;

/// Mixed sizes, both ends of the range among them.
fn sizes() -> impl Iterator<Item = usize> {
    [1, 1472, 512, 511, 513, 1024, 1025]
        .into_iter()
        .chain((0..).map(|i: usize| 1 + (i * 97) % 1472))
}

/// Stores mixed packets through a context, checks every sum, and compares what `read_back` finds on the
/// device afterwards, from its first block on. `None`: the device keeps nothing.
pub fn store_and_compare(
    config: Config,
    read_back: Option<&dyn Fn() -> Vec<u8>>,
) -> (Info, Statistics) {
    log_to_stderr();
    let veth = Veth::new();
    let config = Config {
        ifname: Some(veth.host.clone()),
        ..config
    };
    let frames = config.frames(1);
    let context = Context::open(&config).unwrap();
    let block = context.info().devices[0].limits.block_size as usize;
    let payloads: Vec<Vec<u8>> = sizes()
        .take(COUNT as usize)
        .enumerate()
        .map(|(i, len)| payload(i as u32, len))
        .collect();
    let sender = veth.send(9999, payloads.clone(), 20_000);

    let mut packets = [Received::default(); 64];
    let mut done = [Completion::default(); 64];
    let (mut received, mut completed, mut lba) = (0, 0, 0u64);
    let mut timestamps = 0;
    let start = Instant::now();
    while completed < COUNT && start.elapsed() < Duration::from_secs(20) {
        context
            .wait(
                Ready::RX | Ready::COMPLETIONS,
                Some(Duration::from_millis(100)),
            )
            .unwrap();
        let count = context.receive(&mut packets).unwrap();
        for packet in &packets[..count] {
            assert_eq!(
                packet.headers.payload_len as usize,
                payloads[received].len()
            );
            timestamps += u64::from(packet.timestamp > 0);
            let transfer = Transfer {
                frame: packet.frame,
                offset: packet.offset + u64::from(packet.headers.payload_offset),
                len: packet.headers.payload_len.into(),
                lba,
                user_data: received as u64,
                ..Transfer::default()
            };
            while let Err(error) = context.submit_write(&transfer) {
                assert_eq!(error.errno(), libc::EAGAIN, "{error}");
                completed += take(&context, &mut done);
            }
            lba += u64::from(context.blocks_of(0, transfer.len));
            received += 1;
        }
        completed += take(&context, &mut done);
    }
    sender.join().unwrap();
    let stats = context.statistics().unwrap();
    assert_eq!(completed, COUNT, "{stats:#?}");
    assert_eq!((stats.stored, stats.failed), (COUNT.into(), 0));
    check_sums(&stats, frames);
    // veth has a metadata area. Only a dispatcher may stand between it and the program.
    assert_eq!(timestamps + stats.xdp.no_metadata, u64::from(COUNT));
    let dispatched = context.info().network.is_some_and(|n| n.dispatcher);
    assert!(dispatched || stats.xdp.no_metadata == 0, "{stats:#?}");
    let info = context.info().clone();
    drop(context);

    let Some(read_back) = read_back else {
        return (info, stats);
    };
    let stored = read_back();
    let mut at = 0;
    for (i, payload) in payloads.iter().enumerate() {
        let end = at + payload.len().next_multiple_of(block);
        assert!(
            stored[at..at + payload.len()] == payload[..],
            "payload {i} of {} bytes",
            payload.len()
        );
        assert!(
            stored[at + payload.len()..end].iter().all(|b| *b == 0),
            "padding of payload {i}"
        );
        at = end;
    }
    assert!(
        stored[at..].iter().all(|b| *b == 0),
        "nothing behind the last one"
    );
    (info, stats)
}

fn take(context: &Context, done: &mut [Completion]) -> u32 {
    let count = context.completions(done).unwrap();
    for completion in &done[..count] {
        assert_eq!(
            (completion.status, completion.result),
            (0, 0),
            "{completion:?}"
        );
    }
    count as u32
}
