//! A pipeline on an interface, a sender that does not mind what happens to the link, and what must be true of
//! what was stored.

use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::{Duration, Instant};

use super::{Veth, check_sums, payload};
use unified::config::{Config, Drive};
use unified::context::Context;
use unified::stats::Statistics;

pub const BLOCK: usize = 512;

/// Waits until something is so: how long it took.
pub fn until(seconds: u64, what: &str, mut is_so: impl FnMut() -> bool) -> Duration {
    let start = Instant::now();
    while !is_so() {
        assert!(
            start.elapsed() < Duration::from_secs(seconds),
            "not within {seconds} s: {what}"
        );
        std::thread::sleep(Duration::from_millis(10));
    }
    start.elapsed()
}

pub fn within_a_second(what: &str, is_so: impl FnMut() -> bool) {
    let took = until(5, what, is_so);
    assert!(took < Duration::from_millis(1000), "{what}: after {took:?}");
}

pub fn config(veth: &Veth, path: &str) -> Config {
    let mut config = Config {
        ifname: Some(veth.host.clone()),
        frame_count: 1024,
        rx_ring: 512,
        fill_ring: 512,
        drive: Drive::Thread,
        ..Config::default()
    };
    config.device.path = path.into();
    config.device.block_size = BLOCK as u32;
    config.device.file_size = 16 << 20;
    config
}

/// The number stands in the first bytes; the length follows from it.
pub fn numbered(number: u32) -> Vec<u8> {
    let mut bytes = payload(number, 16 + (number as usize * 37) % 480);
    bytes[..4].copy_from_slice(&(number + 1).to_le_bytes());
    bytes
}

/// Sends numbered payloads until it is dropped, whatever happens to the link.
pub struct Stream {
    stop: Arc<AtomicBool>,
    sent: Arc<AtomicU32>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Stream {
    pub fn start(veth: &Veth) -> Stream {
        Stream::with_pause(veth, Duration::from_micros(500))
    }

    /// So long a pause after each packet.
    pub fn with_pause(veth: &Veth, pause: Duration) -> Stream {
        let stop = Arc::new(AtomicBool::new(false));
        let sent = Arc::new(AtomicU32::new(0));
        let to = std::net::SocketAddrV4::new(veth.host_addr, 9999);
        let (stopped, count) = (stop.clone(), sent.clone());
        let thread = veth.far(move || {
            let socket = std::net::UdpSocket::bind("0.0.0.0:0").unwrap();
            let start = Instant::now();
            while !stopped.load(Ordering::Relaxed) && start.elapsed() < Duration::from_secs(60) {
                let number = count.load(Ordering::Relaxed);
                // Without a link there is no route: that is the test's fault, in both senses.
                let _ = socket.send_to(&numbered(number), to);
                count.store(number + 1, Ordering::Relaxed);
                std::thread::sleep(pause);
            }
        });
        Stream {
            stop,
            sent,
            thread: Some(thread),
        }
    }

    pub fn stop(mut self) -> u32 {
        self.end();
        self.sent.load(Ordering::Relaxed)
    }

    fn end(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            thread.join().unwrap();
        }
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.end();
    }
}

/// Every block that was stored holds a payload that was sent, whole, padded with zeroes, and none twice;
/// nothing follows the last one. (Not in order: where the sender has to resolve the address again,
/// what waited for that comes later.)
pub fn check_stored(path: &str, stored: u64, sent: u32) {
    let bytes = fs::read(path).unwrap();
    let mut seen = std::collections::HashSet::new();
    for (i, block) in bytes.chunks(BLOCK).enumerate() {
        let number = u32::from_le_bytes(block[..4].try_into().unwrap());
        if i as u64 >= stored {
            assert!(block.iter().all(|b| *b == 0), "block {i} holds something");
            continue;
        }
        assert!((1..=sent).contains(&number), "block {i}: {number}");
        assert!(seen.insert(number), "{number} is stored twice");
        let expected = numbered(number - 1);
        assert!(block[..expected.len()] == expected, "payload {number}");
        assert!(
            block[expected.len()..].iter().all(|b| *b == 0),
            "padding of {number}"
        );
    }
}

pub fn statistics(context: &Context) -> Statistics {
    context.statistics().unwrap()
}

/// Waits until nothing moves any more, and checks the sums.
pub fn settle(context: &Context) -> Statistics {
    let mut last = statistics(context);
    until(10, "quiet", || {
        std::thread::sleep(Duration::from_millis(100));
        let now = statistics(context);
        std::mem::replace(&mut last, now) == now
    });
    check_sums(&last, context.info().frame_count);
    last
}
