//! What a lane's handle says about pipelines, in C: its own, and its part of the context's.
#![deny(unsafe_code)]

mod common;

use std::net::{SocketAddrV4, UdpSocket};
use std::time::{Duration, Instant};

use common::{Veth, is_root, log_to_stderr, payload, run};
use unified::capi::types::*;

#[allow(unsafe_code)]
mod c {
    use std::ffi::{CStr, CString, c_int};
    use std::mem::zeroed;
    use std::ptr::null_mut;

    use unified::capi::types::*;
    use unified::capi::*;

    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub struct Handle(*mut unified_ctx);

    fn result<T>(rc: c_int, value: T) -> Result<T, (c_int, String)> {
        if rc == 0 {
            return Ok(value);
        }
        // SAFETY: a string of this thread, until its next call.
        let text = unsafe { CStr::from_ptr(unified_last_error()) };
        Err((-rc, text.to_string_lossy().into()))
    }

    pub fn create(ifname: &str, queues: u32) -> Handle {
        let ifname = CString::new(ifname).unwrap();
        let mut ctx = null_mut();
        // SAFETY: zero is a value of every field, and the strings live during the call.
        let rc = unsafe {
            let mut config = zeroed::<unified_config>();
            config.size = size_of::<unified_config>() as u64;
            config.ifname = ifname.as_ptr();
            config.device = c"null:1073741824".as_ptr();
            config.queues = queues;
            unified_ctx_create(&config, &mut ctx)
        };
        result(rc, Handle(ctx)).unwrap()
    }

    pub fn lane(ctx: Handle, number: u32) -> Handle {
        let mut lane = null_mut();
        // SAFETY: a handle and a live place.
        let rc = unsafe { unified_ctx_lane(ctx.0, number, &mut lane) };
        result(rc, Handle(lane)).unwrap()
    }

    pub fn start(ctx: Handle, start_lba: u64, blocks: u64) -> Result<(), (c_int, String)> {
        // SAFETY: a handle, and integers, for which zero is a value.
        let rc = unsafe {
            let mut config = zeroed::<unified_pipeline_config>();
            config.size = size_of::<unified_pipeline_config>() as u64;
            (config.start_lba, config.blocks) = (start_lba, blocks);
            unified_pipeline_start(ctx.0, &config)
        };
        result(rc, ())
    }

    pub fn status(ctx: Handle) -> Result<unified_pipeline_status, (c_int, String)> {
        // SAFETY: a handle, and integers, for which zero is a value.
        unsafe {
            let mut status = zeroed::<unified_pipeline_status>();
            status.size = size_of::<unified_pipeline_status>() as u64;
            let rc = unified_pipeline_status(ctx.0, &mut status);
            result(rc, status)
        }
    }

    pub fn stop(ctx: Handle) -> Result<unified_pipeline_status, (c_int, String)> {
        // SAFETY: as above.
        unsafe {
            let mut status = zeroed::<unified_pipeline_status>();
            status.size = size_of::<unified_pipeline_status>() as u64;
            let rc = unified_pipeline_stop(ctx.0, &mut status);
            result(rc, status)
        }
    }

    pub fn stored(ctx: Handle) -> u64 {
        // SAFETY: as above.
        unsafe {
            let mut stats = zeroed::<unified_stats>();
            stats.size = size_of::<unified_stats>() as u64;
            assert_eq!(unified_ctx_stats(ctx.0, &mut stats), 0);
            stats.stored
        }
    }

    pub fn destroy(ctx: Handle) {
        // SAFETY: a handle, which is never freed.
        assert_eq!(unsafe { unified_ctx_destroy(ctx.0) }, 0);
    }
}

const QUEUES: u32 = 4;
const FLOWS: u64 = 32;

/// Each of these flows sends so many packets of 100 bytes. The kernel spreads the flows over the queues.
fn send(veth: &Veth, each: u64) {
    let to = SocketAddrV4::new(veth.host_addr, 9999);
    let sender = veth.far(move || {
        let bind = |_| UdpSocket::bind("0.0.0.0:0").unwrap();
        let sockets: Vec<UdpSocket> = (0..FLOWS).map(bind).collect();
        for number in 0..each {
            for socket in &sockets {
                socket.send_to(&payload(number as u32, 100), to).unwrap();
            }
            std::thread::sleep(Duration::from_millis(2));
        }
    });
    sender.join().unwrap();
}

fn wait_for(what: &str, mut is_so: impl FnMut() -> bool) {
    let until = Instant::now() + Duration::from_secs(20);
    while !is_so() {
        assert!(Instant::now() < until, "{what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn network() -> Veth {
    log_to_stderr();
    let veth = Veth::with_queues(QUEUES);
    let (ns, peer) = (veth.ns.clone(), veth.peer.clone());
    let root = ["-n", &ns, "qdisc", "replace", "dev", &peer, "root", "mq"];
    run("tc", &root);
    veth
}

fn no_pipeline(handle: c::Handle, words: &str) {
    let asked = [c::status(handle), c::stop(handle)];
    for (errno, message) in asked.map(|result| result.map(|s| s.stored).unwrap_err()) {
        assert_eq!(errno, libc::ENOENT, "{message}");
        assert!(message.contains(words), "{words}: {message}");
    }
}

#[test]
fn a_lane_tells_its_part_of_the_pipeline_of_the_context() {
    if !is_root("a_lane_tells_its_part_of_the_pipeline_of_the_context") {
        return;
    }
    let veth = network();
    let ctx = c::create(&veth.host, QUEUES);
    c::start(ctx, 0, 0).unwrap();
    // Asked for while it runs: it goes on.
    let lanes: Vec<c::Handle> = (0..QUEUES).map(|number| c::lane(ctx, number)).collect();
    send(&veth, 20);
    let all = FLOWS * 20;
    wait_for("stored", || c::status(ctx).unwrap().stored == all);
    let whole = c::status(ctx).unwrap();
    let of_lanes: Vec<unified_pipeline_status> =
        lanes.iter().map(|lane| c::status(*lane).unwrap()).collect();
    for (lane, status) in lanes.iter().zip(&of_lanes) {
        assert_eq!((status.running, status.error, status.failed), (1, 0, 0));
        assert_eq!(status.stored, c::stored(*lane), "what the lane has stored");
        assert_eq!(status.payload_bytes, status.stored * 100);
        assert_eq!(
            (status.submitted, status.completed),
            (status.stored, status.stored)
        );
    }
    let stored: Vec<u64> = of_lanes.iter().map(|status| status.stored).collect();
    assert_eq!(stored.iter().sum::<u64>(), all, "{stored:?}");
    let busy = stored.iter().filter(|stored| **stored > 0).count();
    assert!(busy > 1, "{stored:?}");
    // Each lane has an equal part of the range, one after the other.
    let part = (1u64 << 30) / 512 / u64::from(QUEUES);
    for (number, status) in (0u64..).zip(&of_lanes) {
        assert_eq!(status.next_lba, part * number + status.stored);
    }
    assert_eq!((whole.stored, whole.next_lba), (all, of_lanes[0].next_lba));
    // It is the context's to stop.
    for lane in &lanes {
        let (errno, message) = c::stop(*lane).map(|s| s.stored).unwrap_err();
        assert_eq!(errno, libc::ENOENT);
        assert!(
            message.contains("the one that runs is the context's"),
            "{message}"
        );
        let (errno, _) = c::start(*lane, 0, 8).unwrap_err();
        assert_eq!(errno, libc::EALREADY);
    }
    assert_eq!(c::stop(ctx).unwrap().stored, all);
    no_pipeline(ctx, "on this context");
    lanes
        .iter()
        .for_each(|lane| no_pipeline(*lane, "on this lane"));
    c::destroy(ctx);
    for handle in [ctx, lanes[0]] {
        assert_eq!(
            c::status(handle).map(|s| s.stored).unwrap_err().0,
            libc::EBADF
        );
    }
}

#[test]
fn a_pipeline_of_a_lane_is_that_lanes_alone() {
    if !is_root("a_pipeline_of_a_lane_is_that_lanes_alone") {
        return;
    }
    let veth = network();
    let ctx = c::create(&veth.host, QUEUES);
    let lanes: Vec<c::Handle> = (0..QUEUES).map(|number| c::lane(ctx, number)).collect();
    for (number, lane) in (0u64..).zip(&lanes).skip(1) {
        c::start(*lane, number * 10_000, 10_000).unwrap();
    }
    send(&veth, 10);
    let stored = || -> u64 {
        lanes[1..]
            .iter()
            .map(|l| c::status(*l).unwrap().stored)
            .sum()
    };
    wait_for("stored", || stored() > 0);
    wait_for("all of them", || {
        let before = stored();
        std::thread::sleep(Duration::from_millis(100));
        before == stored()
    });
    for (number, lane) in (0u64..).zip(&lanes).skip(1) {
        let status = c::status(*lane).unwrap();
        assert_eq!(status.stored, c::stored(*lane));
        assert_eq!(status.next_lba, number * 10_000 + status.stored);
    }
    no_pipeline(lanes[0], "on this lane");
    no_pipeline(ctx, "on this context");
    c::stop(lanes[1]).unwrap();
    no_pipeline(lanes[1], "on this lane");
    assert_eq!(c::status(lanes[2]).unwrap().running, 1);
    c::destroy(ctx);
}
