//! The C API used as it must not be: two threads in one role, calls during and after destroy, callbacks that
//! call back, children of fork. Each is an error code; nothing hangs, crashes, or harms who did it right.
#![deny(unsafe_code)]

mod common;

use std::ffi::CString;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::mpsc;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use common::recording::{Stream, until};
use common::{Veth, ip, is_root};

/// The log callback is the process's: one test at a time.
fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

#[allow(unsafe_code)]
mod c {
    use std::ffi::{CStr, CString, c_char, c_int, c_void};
    use std::ptr::{null, null_mut};
    use std::sync::atomic::{AtomicPtr, Ordering};

    use unified::capi::types::*;
    use unified::capi::*;

    #[derive(Clone, Copy, PartialEq, Eq, Debug)]
    pub struct Handle(*mut unified_ctx);
    // SAFETY: a handle may be used from any thread; that is what is tested.
    unsafe impl Send for Handle {}
    // SAFETY: as above.
    unsafe impl Sync for Handle {}

    pub fn create(ifname: Option<&CString>, drive: u32) -> Handle {
        let mut ctx = null_mut();
        // SAFETY: zero is a value of every field, and the strings live during the call.
        let rc = unsafe {
            let mut config = std::mem::zeroed::<unified_config>();
            config.size = size_of::<unified_config>() as u64;
            config.ifname = ifname.map_or(null(), |name| name.as_ptr());
            config.device = c"null:1048576".as_ptr();
            config.frame_count = 256;
            config.rx_ring = 128;
            config.fill_ring = 128;
            config.drive = drive;
            unified_ctx_create(&config, &mut ctx)
        };
        assert_eq!(rc, 0, "{}", last_error());
        Handle(ctx)
    }

    /// Storage only, with so many lanes.
    pub fn create_lanes(lanes: u32, drive: u32) -> Handle {
        let mut ctx = null_mut();
        // SAFETY: zero is a value of every field, and the string is static.
        let rc = unsafe {
            let mut config = std::mem::zeroed::<unified_config>();
            config.size = size_of::<unified_config>() as u64;
            config.device = c"null:1048576".as_ptr();
            config.queues = lanes;
            config.drive = drive;
            unified_ctx_create(&config, &mut ctx)
        };
        assert_eq!(rc, 0, "{}", last_error());
        Handle(ctx)
    }

    pub fn lane(ctx: Handle, number: u32) -> Result<Handle, c_int> {
        let mut lane = null_mut();
        // SAFETY: a handle and a live place.
        let rc = unsafe { unified_ctx_lane(ctx.0, number, &mut lane) };
        assert_eq!(lane.is_null(), rc < 0);
        if rc < 0 { Err(rc) } else { Ok(Handle(lane)) }
    }

    pub fn allocate(ctx: Handle) -> Result<u32, c_int> {
        let mut frame = 0;
        // SAFETY: a handle and a live place.
        match unsafe { unified_frame_alloc(ctx.0, &mut frame) } {
            rc if rc < 0 => Err(rc),
            _ => Ok(frame),
        }
    }

    pub fn last_error() -> String {
        // SAFETY: never NULL, and ends in a zero byte.
        let text = unsafe { CStr::from_ptr(unified_last_error()) };
        text.to_str().unwrap().into()
    }

    pub fn destroy(ctx: Handle) -> c_int {
        // SAFETY: a handle.
        unsafe { unified_ctx_destroy(ctx.0) }
    }

    pub fn wait(ctx: Handle, what: u32, timeout: c_int) -> c_int {
        // SAFETY: a handle.
        unsafe { unified_wait(ctx.0, what, timeout) }
    }

    pub fn stats(ctx: Handle) -> (c_int, unified_stats) {
        // SAFETY: integers, of which zero is a value; the size is set.
        unsafe {
            let mut stats = std::mem::zeroed::<unified_stats>();
            stats.size = size_of::<unified_stats>() as u64;
            (unified_ctx_stats(ctx.0, &mut stats), stats)
        }
    }

    /// Packets of one call; their frames.
    pub fn receive(ctx: Handle) -> Result<Vec<u32>, c_int> {
        // SAFETY: room for 16, of which zero is a value.
        unsafe {
            let mut packets = [std::mem::zeroed::<unified_packet>(); 16];
            match unified_rx_batch(ctx.0, packets.as_mut_ptr(), 16) {
                rc if rc < 0 => Err(rc),
                rc => Ok(packets[..rc as usize].iter().map(|p| p.frame).collect()),
            }
        }
    }

    pub fn write(ctx: Handle, frame: u32) -> c_int {
        // SAFETY: a handle; the library checks where the data lies.
        unsafe {
            let data = unified_frame_data(ctx.0, frame);
            unified_submit_write(ctx.0, frame, data, 512, 0, 1, 0)
        }
    }

    pub fn release(ctx: Handle, frame: u32) -> c_int {
        // SAFETY: a handle.
        unsafe { unified_frame_release(ctx.0, frame) }
    }

    pub fn complete(ctx: Handle) -> c_int {
        // SAFETY: room for 16, of which zero is a value.
        unsafe {
            let mut done = [std::mem::zeroed::<unified_completion>(); 16];
            unified_completions(ctx.0, done.as_mut_ptr(), 16)
        }
    }

    /// Every other call that takes a handle.
    pub fn others(ctx: Handle) -> Vec<c_int> {
        // SAFETY: a handle, and places that are live.
        unsafe {
            let mut frame = 0;
            let mut info = std::mem::zeroed::<unified_info>();
            info.size = size_of::<unified_info>() as u64;
            let mut config = std::mem::zeroed::<unified_pipeline_config>();
            config.size = size_of::<unified_pipeline_config>() as u64;
            let mut path = [0 as c_char; 64];
            let write = std::mem::zeroed::<unified_write>();
            vec![
                unified_frame_alloc(ctx.0, &mut frame),
                unified_ctx_info(ctx.0, &mut info),
                unified_port_add(ctx.0, 5),
                unified_port_remove(ctx.0, 5),
                unified_events_sample(ctx.0, 1),
                unified_events_fd(ctx.0),
                unified_submit_flush(ctx.0, 1),
                unified_submit_pending(ctx.0),
                unified_submit_writes(ctx.0, &write, 1),
                unified_frames_release(ctx.0, &frame, 1),
                unified_submit_write_zeroes(ctx.0, 0, 1, 1, 0),
                unified_submit_deallocate(ctx.0, 0, 1, 1),
                unified_poll_fd(ctx.0),
                unified_pipeline_start(ctx.0, &config),
                unified_pipeline_stop(ctx.0, null_mut()),
                unified_ctx_device(ctx.0, path.as_mut_ptr(), 64),
            ]
        }
    }

    /// Whom the log callback asks.
    static ASKED: AtomicPtr<unified_ctx> = AtomicPtr::new(null_mut());

    /// Calls back for each line, whoever logs, with whatever it holds.
    extern "C" fn calls_back(_: c_int, line: *const c_char, user: *mut c_void) {
        let ctx = Handle(ASKED.load(Ordering::Relaxed));
        // SAFETY: `user` is the counters of `log_calls_back`; the line ends in a zero byte.
        let (lines, about_link) = unsafe {
            let counters = &*user.cast::<super::Called>();
            let text = CStr::from_ptr(line).to_string_lossy();
            (counters, text.starts_with("interface '"))
        };
        lines.lines.fetch_add(1, Ordering::Relaxed);
        if about_link {
            lines.link.fetch_add(1, Ordering::Relaxed);
        }
        if ctx.0.is_null() {
            return;
        }
        if stats(ctx).0 == 0 {
            lines.answered.fetch_add(1, Ordering::Relaxed);
        }
        let _ = receive(ctx).map(|frames| {
            for frame in frames {
                release(ctx, frame);
            }
        });
        let _ = complete(ctx);
        // SAFETY: a handle and a live place.
        unsafe {
            let mut status = std::mem::zeroed::<unified_pipeline_status>();
            status.size = size_of::<unified_pipeline_status>() as u64;
            unified_pipeline_status(ctx.0, &mut status);
            unified_port_add(ctx.0, 77);
        }
    }

    pub fn log_calls_back(called: &'static super::Called) {
        let user = std::ptr::from_ref(called).cast_mut().cast();
        assert_eq!(unified_set_log_callback(Some(calls_back), 3, user), 0);
    }

    pub fn ask(ctx: Option<Handle>) {
        ASKED.store(ctx.map_or(null_mut(), |c| c.0), Ordering::Relaxed);
    }

    pub fn no_log() {
        assert_eq!(unified_set_log_callback(None, 3, null_mut()), 0);
    }

    pub fn start_pipeline(ctx: Handle) -> c_int {
        // SAFETY: a handle; zero is a value of every field.
        unsafe {
            let mut config = std::mem::zeroed::<unified_pipeline_config>();
            config.size = size_of::<unified_pipeline_config>() as u64;
            config.at_end = UNIFIED_AT_END_WRAP;
            unified_pipeline_start(ctx.0, &config)
        }
    }

    pub fn stop_pipeline(ctx: Handle) -> c_int {
        // SAFETY: a handle.
        unsafe { unified_pipeline_stop(ctx.0, null_mut()) }
    }

    /// The exit code of a forked child that does `act` and nothing else.
    pub fn forked(act: impl FnOnce() -> i32) -> i32 {
        use nix::sys::wait::{WaitStatus, waitpid};
        use nix::unistd::{ForkResult, fork};
        // SAFETY: the child calls the library, which refuses before it takes a lock, and ends without running
        // anything of its parent's.
        match unsafe { fork() }.unwrap() {
            ForkResult::Child => unsafe { libc::_exit(act()) },
            ForkResult::Parent { child } => match waitpid(child, None).unwrap() {
                WaitStatus::Exited(_, code) => code,
                other => panic!("{other:?}"),
            },
        }
    }
}

/// What a log callback counts.
#[derive(Default)]
pub struct Called {
    lines: AtomicU32,
    link: AtomicU32,
    answered: AtomicU32,
}

/// Runs something that must end, and fails if it does not.
fn bounded<T: Send + 'static>(what: &str, act: impl FnOnce() -> T + Send + 'static) -> T {
    let (tell, told) = mpsc::channel();
    std::thread::spawn(move || tell.send(act()));
    told.recv_timeout(Duration::from_secs(15))
        .unwrap_or_else(|e| panic!("{what}: {e}"))
}

const BOTH: u32 =
    unified::capi::types::UNIFIED_WAIT_RX | unified::capi::types::UNIFIED_WAIT_COMPLETIONS;

#[test]
fn two_threads_on_one_queue_get_busy_and_lose_nothing() {
    let _alone = alone();
    if !is_root("two_threads_on_one_queue_get_busy_and_lose_nothing") {
        return;
    }
    let veth = Veth::new();
    let name = CString::new(veth.host.as_str()).unwrap();
    for drive in [0, 1] {
        let ctx = c::create(Some(&name), drive);
        let stream = Stream::start(&veth);
        let stop = AtomicBool::new(false);
        let (busy, taken) = (AtomicU64::new(0), AtomicU64::new(0));
        let allowed = |rc: i32| match -rc {
            libc::EBUSY => {
                busy.fetch_add(1, Ordering::Relaxed);
            }
            libc::EAGAIN => {}
            other => panic!("{other}: {}", c::last_error()),
        };
        let one = || {
            while !stop.load(Ordering::Relaxed) {
                match c::receive(ctx) {
                    Ok(frames) => {
                        taken.fetch_add(frames.len() as u64, Ordering::Relaxed);
                        for frame in frames {
                            let mut rc = c::write(ctx, frame);
                            while rc != 0 {
                                allowed(rc);
                                let done = c::complete(ctx);
                                if done < 0 {
                                    allowed(done);
                                }
                                rc = c::write(ctx, frame);
                            }
                        }
                    }
                    Err(rc) => allowed(rc),
                }
                for rc in [c::complete(ctx), c::wait(ctx, BOTH, 0)] {
                    if rc < 0 {
                        allowed(rc);
                    }
                }
            }
        };
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(one);
            }
            until(20, "packets and quarrels", || {
                taken.load(Ordering::Relaxed) > 500 && busy.load(Ordering::Relaxed) > 100
            });
            stop.store(true, Ordering::Relaxed);
        });
        drop(stream);
        until(5, "all is completed", || {
            let _ = c::complete(ctx);
            let s = c::stats(ctx).1;
            s.commands_in_flight == 0 && s.packets_in_flight == 0
        });
        let (rc, s) = c::stats(ctx);
        assert_eq!(rc, 0);
        assert_eq!(s.received, taken.load(Ordering::Relaxed));
        assert_eq!(s.received, s.stored);
        assert_eq!((s.failed, s.bad_descriptors), (0, 0));
        assert_eq!(s.frames_free + s.frames_filled, 256);
        assert_eq!(c::destroy(ctx), 0);
    }
}

#[test]
fn the_handles_of_lanes_end_with_their_context() {
    let _alone = alone();
    for drive in [0, 1] {
        let ctx = c::create_lanes(4, drive);
        // Until then the whole context serves.
        let frame = c::allocate(ctx).unwrap();
        assert_eq!(c::release(ctx, frame), 0);
        let lanes: Vec<_> = (0..4).map(|lane| c::lane(ctx, lane).unwrap()).collect();
        assert_eq!(c::lane(ctx, 2), Ok(lanes[2]));
        assert_eq!(c::lane(ctx, 4), Err(-libc::EINVAL));
        assert!(c::last_error().contains("this context has 4"));
        assert_eq!(c::lane(lanes[0], 1), Err(-libc::EINVAL));
        assert_eq!(c::destroy(lanes[1]), -libc::EINVAL);
        assert!(c::last_error().contains("lane 1 ends with its context"));
        for rc in [
            c::allocate(ctx).unwrap_err(),
            c::complete(ctx),
            c::wait(ctx, 2, 0),
            c::write(ctx, 0),
        ] {
            assert_eq!(rc, -libc::EBUSY);
            assert!(c::last_error().contains("unified_ctx_lane"));
        }
        // A frame of one lane, written by another and given back through the whole context.
        let frame = c::allocate(lanes[3]).unwrap();
        assert_eq!(c::write(lanes[0], frame), 0);
        until(5, "the write", || c::complete(lanes[0]) == 1);
        let kept = c::allocate(lanes[3]).unwrap();
        assert_eq!(c::release(ctx, kept), 0);
        assert_eq!(c::stats(lanes[0]).1.completed, 1);
        assert_eq!(c::stats(lanes[3]).1.completed, 0);
        assert_eq!(c::stats(ctx).1.completed, 1);
        // Those who wait on lanes are sent home, and the handles say that it is over.
        let waiters: Vec<_> = lanes[1..]
            .iter()
            .map(|lane| {
                let lane = *lane;
                std::thread::spawn(move || c::wait(lane, 2, -1))
            })
            .collect();
        std::thread::sleep(Duration::from_millis(20));
        assert_eq!(bounded("destroy", move || c::destroy(ctx)), 0);
        for waiter in waiters {
            let rc = waiter.join().unwrap();
            assert!(matches!(-rc, libc::ESHUTDOWN | libc::EBADF), "{rc}");
        }
        for lane in lanes {
            assert_eq!(c::stats(lane).0, -libc::EBADF);
            assert_eq!(c::destroy(lane), -libc::EINVAL);
        }
        assert_eq!(c::lane(ctx, 0), Err(-libc::EBADF));
        assert_eq!(c::destroy(ctx), -libc::EBADF);
    }
}

/// Handles are asked for, used and destroyed by many threads at once.
#[test]
fn lanes_are_asked_for_while_their_context_ends() {
    let _alone = alone();
    for round in 0..20 {
        let ctx = c::create_lanes(3, round % 2);
        let users: Vec<_> = (0..3)
            .map(|number| {
                std::thread::spawn(move || {
                    let over = |rc: i32| matches!(-rc, libc::ESHUTDOWN | libc::EBADF);
                    let lane = match c::lane(ctx, number) {
                        Ok(lane) => lane,
                        Err(rc) => {
                            assert!(over(rc), "{rc}");
                            return;
                        }
                    };
                    loop {
                        let rc = match c::allocate(lane) {
                            Ok(frame) => c::write(lane, frame),
                            Err(rc) => rc,
                        };
                        if over(rc) {
                            return;
                        }
                        assert!(matches!(-rc, 0 | libc::EAGAIN | libc::ENOBUFS), "{rc}");
                        let rc = c::complete(lane);
                        assert!(rc >= 0 || over(rc), "{rc}");
                    }
                })
            })
            .collect();
        std::thread::sleep(Duration::from_millis(round.into()));
        assert_eq!(bounded("destroy", move || c::destroy(ctx)), 0);
        for user in users {
            bounded("a user of a lane", move || user.join().unwrap());
        }
    }
}

#[test]
fn destroy_while_others_wait_sends_them_home() {
    let _alone = alone();
    if !is_root("destroy_while_others_wait_sends_them_home") {
        return;
    }
    let veth = Veth::new();
    let name = CString::new(veth.host.as_str()).unwrap();
    for round in 0..8 {
        let ctx = c::create(Some(&name).filter(|_| round % 4 < 2), round % 2);
        let what = if round % 4 < 2 { BOTH } else { 2 };
        let home = |rc: i32| matches!(-rc, libc::ESHUTDOWN | libc::EBADF);
        let waiter = std::thread::spawn(move || c::wait(ctx, what, -1));
        let stop = std::sync::Arc::new(AtomicBool::new(false));
        let ended = stop.clone();
        let asker = std::thread::spawn(move || {
            loop {
                let (rc, _) = c::stats(ctx);
                if rc != 0 || ended.load(Ordering::Relaxed) {
                    return rc;
                }
            }
        });
        std::thread::sleep(Duration::from_millis(50));
        let start = Instant::now();
        let ends = bounded("destroying at once in two threads", move || {
            let other = std::thread::spawn(move || c::destroy(ctx));
            [c::destroy(ctx), other.join().unwrap()]
        });
        assert!(start.elapsed() < Duration::from_secs(5));
        assert!(ends.contains(&0), "{ends:?}");
        assert!(ends.iter().all(|rc| *rc == 0 || home(*rc)), "{ends:?}");
        let rc = bounded("the waiter", move || waiter.join().unwrap());
        assert!(home(rc), "{rc}");
        let rc = bounded("the asker", move || asker.join().unwrap());
        stop.store(true, Ordering::Relaxed);
        assert!(home(rc), "{rc}");
        // And everything afterwards is told that it is too late.
        assert!(c::others(ctx).iter().all(|rc| *rc == -libc::EBADF));
        assert_eq!(c::wait(ctx, what, -1), -libc::EBADF);
        assert_eq!(c::complete(ctx), -libc::EBADF);
        assert_eq!(c::destroy(ctx), -libc::EBADF);
    }
    let index = unified::sys::link::index_of(&veth.host).unwrap();
    assert!(unified::sys::bpf::attached(index).is_none());
}

#[test]
fn a_log_callback_may_call_the_library_back_from_anywhere() {
    let _alone = alone();
    if !is_root("a_log_callback_may_call_the_library_back_from_anywhere") {
        return;
    }
    static CALLED: std::sync::LazyLock<Called> = std::sync::LazyLock::new(Called::default);
    c::ask(None);
    c::log_calls_back(&CALLED);
    let host = bounded("all of it", || {
        let veth = Veth::new();
        let name = CString::new(veth.host.as_str()).unwrap();
        let up = |up: &str| ip(&format!("link set {} {up}", veth.host));
        for drive in [0, 1] {
            let ctx = c::create(Some(&name), drive);
            c::ask(Some(ctx));
            // Noticed by the statistics, by a wait, by receiving, and by a pipeline's threads.
            for way in 0..4 {
                if way == 3 {
                    assert_eq!(c::start_pipeline(ctx), 0, "{}", c::last_error());
                }
                for to in ["down", "up"] {
                    let before = CALLED.link.load(Ordering::Relaxed);
                    up(to);
                    until(5, "it is noticed", || {
                        match way {
                            0 => assert_eq!(c::stats(ctx).0, 0),
                            1 => assert!(c::wait(ctx, BOTH, 100) >= 0),
                            2 => assert!(c::receive(ctx).is_ok()),
                            _ => {}
                        }
                        CALLED.link.load(Ordering::Relaxed) > before
                    });
                }
            }
            assert_eq!(c::stop_pipeline(ctx), 0, "{}", c::last_error());
            // Teardown logs too, and a handle that goes is no trap.
            assert_eq!(c::destroy(ctx), 0);
            c::ask(None);
        }
        veth.host.clone()
    });
    c::no_log();
    assert!(CALLED.link.load(Ordering::Relaxed) >= 16);
    assert!(CALLED.answered.load(Ordering::Relaxed) >= 16);
    assert!(unified::sys::link::index_of(&host).is_none());
}

#[test]
fn every_call_of_a_forked_child_is_refused() {
    let _alone = alone();
    if !is_root("every_call_of_a_forked_child_is_refused") {
        return;
    }
    let veth = Veth::new();
    let name = CString::new(veth.host.as_str()).unwrap();
    for (drive, pipelined) in [(0, false), (1, false), (1, true)] {
        let ctx = c::create(Some(&name), drive);
        if pipelined {
            assert_eq!(c::start_pipeline(ctx), 0);
        }
        let code = c::forked(move || {
            let mut all = c::others(ctx);
            all.extend([
                c::destroy(ctx),
                c::wait(ctx, BOTH, -1),
                c::stats(ctx).0,
                c::receive(ctx).unwrap_err(),
                c::complete(ctx),
                c::write(ctx, 0),
                c::release(ctx, 0),
            ]);
            let wrong = all.iter().position(|rc| *rc != -libc::ENOTSUP);
            match wrong {
                Some(at) => 100 + at as i32,
                None if !c::last_error().contains("fork") => 99,
                None => 0,
            }
        });
        assert_eq!(code, 0);
        // The parent goes on.
        let stream = Stream::start(&veth);
        until(10, "packets", || {
            if !pipelined {
                for frame in c::receive(ctx).unwrap() {
                    assert_eq!(c::release(ctx, frame), 0);
                }
            }
            c::stats(ctx).1.received > 20
        });
        drop(stream);
        assert_eq!(c::destroy(ctx), 0);
        let index = unified::sys::link::index_of(&veth.host).unwrap();
        assert!(unified::sys::bpf::attached(index).is_none());
    }
}
