//! The sender: batches of prebuilt payloads by sendmmsg, paced.

use std::io::{Error, ErrorKind, IoSlice, Result};
use std::net::{SocketAddr, UdpSocket};
use std::os::fd::AsRawFd;
use std::thread::sleep;
use std::time::{Duration, Instant};

use clap::Args;
use nix::errno::Errno;
use nix::sys::socket::{MsgFlags, MultiHeaders, SockaddrStorage, sendmmsg};

use crate::payload::{self, Sizes};
use crate::print;

const BATCH: usize = 32;

#[derive(Args)]
pub struct Options {
    /// Address and port to send to
    #[arg(long)]
    to: SocketAddr,
    /// Payload bytes: one size, or a range such as 1-1472
    #[arg(long, default_value = "1024")]
    size: Sizes,
    /// Packets per second; 0: as fast as possible
    #[arg(long, default_value_t = 1000)]
    rate: u64,
    /// Stop after this many packets
    #[arg(long, required_unless_present = "duration")]
    count: Option<u64>,
    /// Stop after this many seconds
    #[arg(long)]
    duration: Option<u64>,
    /// Senders' ports: a receiver with several queues spreads them over its queues
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=4096))]
    flows: u16,
    /// Number of the first payload
    #[arg(long, default_value_t = 0)]
    first: u64,
}

pub fn run(options: &Options) -> Result<()> {
    let any = match options.to {
        SocketAddr::V4(_) => "0.0.0.0:0",
        SocketAddr::V6(_) => "[::]:0",
    };
    let connected = |_| {
        let socket = UdpSocket::bind(any)?;
        socket
            .connect(options.to)
            .map_err(|e| Error::new(e.kind(), format!("sending to {}: {e}", options.to)))?;
        Ok(socket)
    };
    let sockets: Vec<UdpSocket> = (0..options.flows).map(connected).collect::<Result<_>>()?;
    let mut flows = sockets.iter().cycle();
    let mut buffers = vec![vec![0u8; options.size.max()]; BATCH];
    let mut headers = MultiHeaders::<SockaddrStorage>::preallocate(BATCH, None);
    let count = options.count.unwrap_or(u64::MAX);
    let until = options.duration.map(Duration::from_secs);
    let start = Instant::now();
    let (mut sent, mut bytes) = (0u64, 0u64);
    let mut not_before = Duration::ZERO;
    while sent < count {
        let elapsed = start.elapsed();
        if until.is_some_and(|until| elapsed >= until) {
            break;
        }
        let mut batch = (count - sent).min(BATCH as u64);
        if options.rate > 0 {
            // What is due by now. What a stall held back is made up for at twice the rate, no faster: a
            // rate is also how close packets may follow one another.
            let due = (elapsed.as_secs_f64() * options.rate as f64) as u64 + 1;
            batch = batch.min(due.saturating_sub(sent));
            if batch == 0 {
                let next = Duration::from_secs_f64(sent as f64 / options.rate as f64);
                sleep(next.saturating_sub(elapsed).min(Duration::from_millis(20)));
                continue;
            }
            sleep(not_before.saturating_sub(elapsed));
            not_before =
                start.elapsed() + Duration::from_secs_f64(batch as f64 / options.rate as f64 / 2.0);
        }
        let batch = batch as usize;
        let mut slices = Vec::with_capacity(batch);
        for (i, buffer) in buffers[..batch].iter_mut().enumerate() {
            let number = options.first + sent + i as u64;
            let payload = &mut buffer[..options.size.of(number)];
            payload::fill(number, payload);
            slices.push([IoSlice::new(payload)]);
        }
        let to = [None::<SockaddrStorage>; BATCH];
        let socket = flows.next().ok_or(ErrorKind::NotConnected)?;
        match sendmmsg(
            socket.as_raw_fd(),
            &mut headers,
            &slices,
            &to[..batch],
            [],
            MsgFlags::empty(),
        ) {
            Ok(results) => {
                for result in results {
                    sent += 1;
                    bytes += result.bytes as u64;
                }
            }
            // Nobody listens there, or the queue is full for a moment: the packet counts as not sent.
            Err(Errno::ECONNREFUSED | Errno::ENOBUFS | Errno::EAGAIN | Errno::EINTR) => {}
            Err(errno) => {
                return Err(Error::other(format!(
                    "sending to {} after {sent} packets: {}",
                    options.to,
                    errno.desc()
                )));
            }
        }
    }
    let seconds = start.elapsed().as_secs_f64();
    print(format_args!(
        "Sent: {sent} packets, {bytes} bytes in {seconds:.2} s ({:.0} packets/s)",
        sent as f64 / seconds
    ))?;
    Ok(())
}
