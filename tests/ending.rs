//! Destroying a context: what was submitted is stored, nothing keeps it from its end, and a device that never answers
//! costs its commands and the memory that they use, no more. And calls under a storm of signals.
#![deny(unsafe_code)]

mod common;
mod store;

use std::fs;
use std::process::Command;
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use common::{Scratch, SmallDisk, Veth, is_root, payload};
use store::{DRIVES, storage_config};
use unified::config::Config;
use unified::context::Context;
use unified::lane::Transfer;
use unified::pipeline::{Pipeline, PipelineConfig};

const BLOCK: usize = 4096;

#[allow(unsafe_code)]
mod c {
    use std::ffi::{CStr, CString, c_int};
    use std::ptr::{null, null_mut};
    use std::sync::atomic::{AtomicU32, Ordering};

    use unified::capi::types::*;
    use unified::capi::*;

    #[derive(Clone, Copy)]
    pub struct Handle(*mut unified_ctx);
    // SAFETY: a handle may be used from any thread.
    unsafe impl Send for Handle {}
    // SAFETY: as above.
    unsafe impl Sync for Handle {}

    pub fn last_error() -> String {
        // SAFETY: never NULL, and ends in a zero byte.
        unsafe { CStr::from_ptr(unified_last_error()) }
            .to_string_lossy()
            .into()
    }

    impl Handle {
        pub fn create(ifname: Option<&str>, device: &str, drive: u32) -> Result<Handle, String> {
            let ifname = ifname.map(|name| CString::new(name).unwrap());
            let device = CString::new(device).unwrap();
            let mut ctx = null_mut();
            // SAFETY: zero is a value of every field, and the strings live during the call.
            let rc = unsafe {
                let mut config = std::mem::zeroed::<unified_config>();
                config.size = size_of::<unified_config>() as u64;
                config.ifname = ifname.as_ref().map_or(null(), |name| name.as_ptr());
                config.device = device.as_ptr();
                config.frame_count = 256;
                config.rx_ring = 128;
                config.fill_ring = 128;
                config.file_size = 4 << 20;
                config.drive = drive;
                unified_ctx_create(&config, &mut ctx)
            };
            match rc {
                0 => Ok(Handle(ctx)),
                rc => Err(format!("{rc}: {}", last_error())),
            }
        }

        pub fn destroy(self) -> c_int {
            // SAFETY: a handle.
            unsafe { unified_ctx_destroy(self.0) }
        }

        pub fn render(self) -> c_int {
            // SAFETY: a handle; nothing is written.
            unsafe { unified_stats_render(self.0, null_mut(), 0) }
        }

        /// Calls of all kinds but the data path's; the first that fails, in words.
        pub fn control(self, pipeline: bool) -> Result<(), String> {
            let told = |what: &str, rc: c_int| match rc {
                0.. => Ok(()),
                rc => Err(format!("{what}: {rc}: {}", last_error())),
            };
            // SAFETY: a handle, and structs whose size is set.
            unsafe {
                let mut stats = std::mem::zeroed::<unified_stats>();
                stats.size = size_of::<unified_stats>() as u64;
                told("stats", unified_ctx_stats(self.0, &mut stats))?;
                told("render", self.render())?;
                if !pipeline {
                    return Ok(());
                }
                told("port_add", unified_port_add(self.0, 4000))?;
                told("port_remove", unified_port_remove(self.0, 4000))?;
                told("events_sample", unified_events_sample(self.0, 16))?;
                for layout in [UNIFIED_LAYOUT_PAYLOAD, UNIFIED_LAYOUT_SLOT] {
                    let mut config = std::mem::zeroed::<unified_pipeline_config>();
                    config.size = size_of::<unified_pipeline_config>() as u64;
                    config.layout = layout;
                    told("pipeline_start", unified_pipeline_start(self.0, &config))?;
                    told("pipeline_stop", unified_pipeline_stop(self.0, null_mut()))?;
                }
                Ok(())
            }
        }
    }

    /// SIGALRM every 500 us for the calling thread, until it is dropped. (Of several threads the kernel takes one that
    /// has nothing to do, where it could not harm.)
    pub struct Storm(libc::timer_t);

    static COUNT: AtomicU32 = AtomicU32::new(0);

    extern "C" fn counts(_: c_int) {
        COUNT.fetch_add(1, Ordering::Relaxed);
    }

    impl Storm {
        pub fn begin() -> Storm {
            let time = libc::timespec {
                tv_sec: 0,
                tv_nsec: 500_000,
            };
            let every = libc::itimerspec {
                it_interval: time,
                it_value: time,
            };
            // SAFETY: the handler only counts, so it is safe at any moment; the structs are live.
            unsafe {
                let mut action = std::mem::zeroed::<libc::sigaction>();
                action.sa_sigaction = counts as extern "C" fn(c_int) as usize;
                libc::sigaction(libc::SIGALRM, &action, null_mut());
                let mut event = std::mem::zeroed::<libc::sigevent>();
                event.sigev_notify = libc::SIGEV_THREAD_ID;
                event.sigev_signo = libc::SIGALRM;
                event.sigev_notify_thread_id = libc::gettid();
                let mut timer = null_mut();
                assert_eq!(
                    libc::timer_create(libc::CLOCK_MONOTONIC, &mut event, &mut timer),
                    0
                );
                assert_eq!(libc::timer_settime(timer, 0, &every, null_mut()), 0);
                Storm(timer)
            }
        }

        pub fn count(&self) -> u32 {
            COUNT.load(Ordering::Relaxed)
        }
    }

    impl Drop for Storm {
        fn drop(&mut self) {
            // SAFETY: made by `begin`, and deleted once.
            unsafe { libc::timer_delete(self.0) };
        }
    }
}

/// Runs something that must end, and fails if it does not.
fn bounded<T: Send + 'static>(what: &str, act: impl FnOnce() -> T + Send + 'static) -> T {
    let (tell, told) = mpsc::channel();
    std::thread::spawn(move || tell.send(act()));
    told.recv_timeout(Duration::from_secs(40))
        .unwrap_or_else(|e| panic!("{what}: {e}"))
}

/// Submits writes of whole frames to the blocks from 0 on, and takes nothing.
fn submit(context: &Context, count: u32, more: bool) {
    for number in 0..count {
        let frame = context.frame_alloc().unwrap();
        let offset = u64::from(frame) * BLOCK as u64;
        context
            .data()
            .write(offset as usize, &payload(number, BLOCK));
        let block = context.info().devices[0].limits.block_size;
        let transfer = Transfer {
            frame,
            offset,
            len: BLOCK as u32,
            lba: u64::from(number) * (BLOCK as u64 / u64::from(block)),
            user_data: number.into(),
            more,
            ..Transfer::default()
        };
        context.submit_write(&transfer).unwrap();
    }
}

fn stored(path: &str, count: u32) -> usize {
    let bytes = fs::read(path).unwrap();
    (0..count)
        .filter(|n| bytes[*n as usize * BLOCK..][..BLOCK] == payload(*n, BLOCK))
        .count()
}

fn file_config(path: &str, drive: unified::config::Drive) -> Config {
    let mut config = storage_config(path, drive);
    config.device.file_size = 4 << 20;
    config
}

#[test]
fn what_was_submitted_is_stored_by_destroying() {
    for drive in DRIVES {
        for more in [false, true] {
            let file = Scratch::new(env!("CARGO_TARGET_TMPDIR"), "ending");
            let context = Context::open(&file_config(file.path(), drive)).unwrap();
            submit(&context, 20, more);
            context
                .end(Instant::now() + Duration::from_secs(30))
                .unwrap();
            assert_eq!(stored(file.path(), 20), 20, "{drive:?}, more: {more}");
            // By dropping, and with more entries than the CQ ring has room for.
            let context = Context::open(&file_config(file.path(), drive)).unwrap();
            for _ in 0..3 {
                submit(&context, 20, more);
            }
            drop(context);
            assert_eq!(stored(file.path(), 20), 20);
        }
    }
}

/// A CQ ring that nobody has emptied keeps no entry from the device.
#[test]
fn completions_that_nobody_took_keep_no_write_from_the_device() {
    for drive in DRIVES {
        let file = Scratch::new(env!("CARGO_TARGET_TMPDIR"), "full-cq");
        let config = Config {
            frame_count: 256,
            ..file_config(file.path(), drive)
        };
        let context = Context::open(&config).unwrap();
        let room = context.info().layout.cq_count;
        for number in 0..room {
            while context.submit_flush(None, number.into()).is_err() {
                context
                    .wait(unified::lane::Ready::COMPLETIONS, Some(Duration::ZERO))
                    .unwrap();
            }
        }
        // Inline, waiting pumps.
        let until = Instant::now() + Duration::from_secs(10);
        while context.statistics().unwrap().completed < u64::from(room) {
            context
                .wait(unified::lane::Ready::COMPLETIONS, Some(Duration::ZERO))
                .unwrap();
            assert!(Instant::now() < until);
        }
        submit(&context, 40, false);
        context
            .end(Instant::now() + Duration::from_secs(30))
            .unwrap();
        assert_eq!(stored(file.path(), 40), 40, "{drive:?}");
    }
}

/// Writes that fail, and whose completions nobody took, are told by number; reads that fail lose nothing.
#[test]
fn destroying_says_how_many_writes_failed() {
    for drive in DRIVES {
        let file = Scratch::new(env!("CARGO_TARGET_TMPDIR"), "failing");
        let context = Context::open(&file_config(file.path(), drive)).unwrap();
        submit(&context, 20, false);
        for (write, lba) in [(true, 1 << 40), (false, 1 << 40), (true, 1 << 41)] {
            let frame = context.frame_alloc().unwrap();
            let transfer = Transfer {
                frame,
                offset: u64::from(frame) * BLOCK as u64,
                len: BLOCK as u32,
                lba,
                ..Transfer::default()
            };
            match write {
                true => context.submit_write(&transfer).unwrap(),
                false => context.submit_read(&transfer).unwrap(),
            }
        }
        let lost = context
            .end(Instant::now() + Duration::from_secs(30))
            .unwrap_err();
        assert_eq!(lost.errno(), libc::EIO);
        let text = lost.message();
        assert!(
            text.contains(": 2 commands") && text.contains("2 failed"),
            "{text}"
        );
        assert!(text.contains("0 were not answered"), "{text}");
        assert_eq!(stored(file.path(), 20), 20, "{drive:?}");
    }
}

/// A frozen file system: its writes never end. Thawed at the end, also by a panic.
struct Frozen<'a>(&'a SmallDisk);

impl Frozen<'_> {
    fn new(disk: &SmallDisk) -> Frozen<'_> {
        let done = Command::new("fsfreeze").arg("-f").arg(&disk.dir).status();
        assert!(done.unwrap().success());
        Frozen(disk)
    }
}

impl Drop for Frozen<'_> {
    fn drop(&mut self) {
        let _ = Command::new("fsfreeze").arg("-u").arg(&self.0.dir).status();
    }
}

#[test]
fn a_device_that_does_not_answer_delays_destroying_and_does_not_hang_it() {
    const TEST: &str = "a_device_that_does_not_answer_delays_destroying_and_does_not_hang_it";
    let Some(disk) = SmallDisk::new(TEST, 24 << 20) else {
        return;
    };
    for drive in DRIVES {
        let path = disk.dir.join(format!("{drive:?}"));
        let path = path.to_str().unwrap().to_string();
        let context = Context::open(&file_config(&path, drive)).unwrap();
        let (address, len) = (context.info().region_address, context.info().layout.total);
        let frozen = Frozen::new(&disk);
        submit(&context, 20, false);
        let start = Instant::now();
        let error = bounded("destroying", move || {
            context.end(start + Duration::from_millis(700)).unwrap_err()
        });
        let took = start.elapsed();
        assert!(took >= Duration::from_millis(600), "{took:?}");
        assert!(took < Duration::from_secs(5), "{took:?}");
        assert_eq!(error.errno(), libc::EIO);
        let text = error.message();
        assert!(
            text.contains("20 commands") && text.contains("20 were not answered"),
            "{text}"
        );
        // Nothing else may come to lie where the device still reads.
        assert!(unified::sys::mmap::is_mapped(address) && len > 0);
        drop(frozen);
        let until = Instant::now() + Duration::from_secs(10);
        match drive {
            // Its thread has what it needs, and ends when it is answered.
            unified::config::Drive::Thread => loop {
                match Context::open(&file_config(&path, drive)) {
                    Ok(_) => break,
                    Err(error) => assert_eq!(error.errno(), libc::EBUSY, "{error}"),
                }
                assert!(Instant::now() < until, "the device is not given back");
                std::thread::sleep(Duration::from_millis(20));
            },
            unified::config::Drive::Inline => {
                let open = Context::open(&file_config(&path, drive));
                assert_eq!(open.err().map(|e| e.errno()), Some(libc::EBUSY));
            }
        }
    }
}

/// The same with a pipeline, whose threads wait for the device: they end with the context.
#[test]
fn a_pipeline_on_a_device_that_does_not_answer_ends_with_its_context() {
    const TEST: &str = "a_pipeline_on_a_device_that_does_not_answer_ends_with_its_context";
    let Some(disk) = SmallDisk::new(TEST, 24 << 20) else {
        return;
    };
    let veth = Veth::new();
    let path = disk.dir.join("log");
    let config = common::recording::config(&veth, path.to_str().unwrap());
    let context = Arc::new(Context::open(&config).unwrap());
    let pipeline = Pipeline::start(context.clone(), PipelineConfig::default()).unwrap();
    let frozen = Frozen::new(&disk);
    let packets = (0..200).map(|i| payload(i, 400)).collect();
    veth.send(9999, packets, 20_000).join().unwrap();
    common::recording::until(5, "packets", || pipeline.status().submitted > 100);
    let start = Instant::now();
    let until = start + Duration::from_millis(500);
    let error = bounded("destroying", move || {
        pipeline.end(until);
        let context = Arc::try_unwrap(context)
            .ok()
            .expect("its threads have ended");
        context.end(until).unwrap_err()
    });
    assert!(
        start.elapsed() < Duration::from_secs(5),
        "{:?}",
        start.elapsed()
    );
    assert_eq!(error.errno(), libc::EIO);
    assert!(error.message().contains("were not answered"), "{error}");
    drop(frozen);
    let index = unified::sys::link::index_of(&veth.host).unwrap();
    assert!(unified::sys::bpf::attached(index).is_none());
}

#[test]
fn a_stream_of_calls_does_not_starve_a_destroy() {
    for drive in [0, 1] {
        let ctx = c::Handle::create(None, "null:1048576", drive).unwrap();
        let callers: Vec<_> = (0..16)
            .map(|_| {
                std::thread::spawn(move || {
                    loop {
                        let rc = ctx.render();
                        if rc < 0 {
                            return rc;
                        }
                    }
                })
            })
            .collect();
        std::thread::sleep(Duration::from_millis(200));
        let start = Instant::now();
        assert_eq!(bounded("destroying", move || ctx.destroy()), 0);
        assert!(
            start.elapsed() < Duration::from_secs(3),
            "{:?}",
            start.elapsed()
        );
        for caller in callers {
            let rc = caller.join().unwrap();
            assert!(matches!(-rc, libc::ESHUTDOWN | libc::EBADF), "{rc}");
        }
        assert_eq!(ctx.destroy(), -libc::EBADF);
    }
}

/// A profiler's timer, a runtime's, a garbage collector's: nobody who has one can do without the library.
#[test]
fn signals_keep_no_call_from_its_end() {
    let root = is_root("signals_keep_no_call_from_its_end");
    let veth = root.then(Veth::new);
    let file = Scratch::new(env!("CARGO_TARGET_TMPDIR"), "storm");
    let storm = c::Storm::begin();
    let mut wrong = Vec::new();
    for round in 0..6 {
        let ifname = veth
            .as_ref()
            .filter(|_| round % 3 > 0)
            .map(|v| v.host.as_str());
        match c::Handle::create(ifname, file.path(), round % 2) {
            Err(text) => wrong.push(format!("create: {text}")),
            Ok(ctx) => {
                if let Err(text) = ctx.control(ifname.is_some()) {
                    wrong.push(text);
                }
                let rc = ctx.destroy();
                if rc != 0 {
                    wrong.push(format!("destroy: {rc}: {}", c::last_error()));
                }
            }
        }
    }
    assert!(storm.count() > 50, "{} signals", storm.count());
    drop(storm);
    assert!(wrong.is_empty(), "{wrong:#?}");
    if let Some(veth) = veth {
        let index = unified::sys::link::index_of(&veth.host).unwrap();
        assert!(unified::sys::bpf::attached(index).is_none());
    }
}
