//! What cannot be is refused with an errno and a sentence that names it, and leaves nothing behind: no
//! program on the interface, no descriptor, no mapping, no program in the kernel, no thread.
#![deny(unsafe_code)]

mod common;

use std::collections::BTreeMap;
use std::ffi::CString;
use std::fs;
use std::io::{BufRead, BufReader};
use std::net::UdpSocket;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use common::{Scratch, Veth, ip, is_root, payload};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use unified::capi::types::*;
use unified::config::{Config, Drive};
use unified::context::Context;
use unified::lane::Ready;
use unified::net::rx::Received;
use unified::net::xdp::programs_of;
use unified::sys::mmap::Mapping;
use unified::sys::shm::Shared;
use unified::sys::xsk::{QueueSetup, Umem, UmemSetup};
use unified::sys::{bpf, link};

/// What these tests count belongs to the whole process: one at a time.
fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

// ---- What a process holds ----

#[derive(Debug, PartialEq, Eq)]
struct Holdings {
    fds: BTreeMap<String, String>,
    /// Mappings that only the library makes: shared anonymous memory, and those of kernel objects.
    mappings: Vec<String>,
    programs: Vec<u32>,
    threads: Vec<String>,
}

fn holdings() -> Holdings {
    let name = |entry: &fs::DirEntry| entry.file_name().into_string().unwrap();
    let fds = fs::read_dir("/proc/self/fd").unwrap().flatten();
    // The one that reads the directory is gone again when its link is read.
    let fds = fds
        .filter_map(|e| Some((name(&e), fs::read_link(e.path()).ok()?)))
        .map(|(fd, to)| (fd, to.to_string_lossy().into_owned()))
        .filter(|(_, to)| !to.ends_with("/fd"))
        .collect();
    let maps = fs::read_to_string("/proc/self/maps").unwrap();
    let ours = ["/dev/zero", "anon_inode:", "socket:"];
    let mappings = maps
        .lines()
        .filter(|line| ours.iter().any(|our| line.contains(our)))
        .map(String::from)
        .collect();
    let threads = fs::read_dir("/proc/self/task").unwrap().flatten();
    let threads = threads
        .filter_map(|task| fs::read_to_string(task.path().join("comm")).ok())
        .filter(|comm| comm.starts_with("unified-"))
        .collect();
    Holdings {
        fds,
        mappings,
        programs: programs_of(std::process::id()).unwrap(),
        threads,
    }
}

/// Programs and sockets are freed by the kernel a little after their last descriptor was closed.
fn assert_unchanged(before: &Holdings, after: &str) {
    let until = Instant::now() + Duration::from_secs(3);
    loop {
        let now = holdings();
        if now == *before {
            return;
        }
        assert!(
            Instant::now() < until,
            "{after}: {before:#?} became {now:#?}"
        );
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn assert_bare(veth: &Veth, after: &str) {
    let index = link::index_of(&veth.host).unwrap();
    let attached = bpf::attached(index);
    assert!(attached.is_none(), "{after}: {attached:?}");
}

// ---- The C API ----

/// A configuration as a later version of the header may have it: more fields at the end.
#[repr(C)]
#[derive(Clone, Copy)]
struct Grown {
    known: unified_config,
    more: [u64; 8],
}

/// A configuration and the memory that it points to.
struct Wish {
    ifname: Option<CString>,
    device: Option<CString>,
    ports: Option<Vec<u16>>,
    c: Grown,
}

impl Wish {
    fn new(ifname: &str, device: &str) -> Wish {
        let known = unified_config {
            size: size_of::<unified_config>() as u64,
            ifname: std::ptr::null(),
            device: std::ptr::null(),
            file_size: 0,
            queue: 0,
            flags: 0,
            ports: std::ptr::null(),
            port_count: 0,
            drive: 0,
            frame_size: 0,
            frame_count: 256,
            headroom: 0,
            sq_entries: 64,
            cq_entries: 64,
            rx_ring: 128,
            fill_ring: 128,
            xdp_mode: 0,
            copy_mode: 0,
            run_priority: 0,
            event_sample: 0,
            events_bytes: 4096,
            block_size: 0,
            reserved: 0,
            retries: 0,
            retry_backoff_us: 0,
            retry_give_up_ms: 0,
            xsk_map_fd: 0,
            xsk_fd: 0,
            device_fd: 0,
            spill: std::ptr::null(),
        };
        let mut wish = Wish {
            ifname: None,
            device: None,
            ports: None,
            c: Grown {
                known,
                more: [0; 8],
            },
        };
        wish.on(ifname);
        wish.to(device);
        wish
    }

    fn on(&mut self, ifname: &str) {
        self.ifname = Some(CString::new(ifname).unwrap());
    }

    fn to(&mut self, device: &str) {
        self.device = Some(CString::new(device).unwrap());
    }

    fn ports(&mut self, ports: &[u16]) {
        self.ports = Some(ports.to_vec());
        self.c.known.port_count = ports.len() as u32;
    }

    fn config(&self) -> Grown {
        let mut c = self.c;
        let text = |text: &Option<CString>| text.as_ref().map_or(std::ptr::null(), |t| t.as_ptr());
        c.known.ifname = text(&self.ifname);
        c.known.device = text(&self.device);
        c.known.ports = self.ports.as_ref().map_or(std::ptr::null(), |p| p.as_ptr());
        c
    }

    fn create(&self) -> Result<c::Handle, Refusal> {
        c::create(Some(&self.config()))
    }
}

/// A negative errno, made positive, and its sentence.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Refusal(i32, String);

/// The exported functions, called as C calls them.
#[allow(unsafe_code)]
mod c {
    use std::ffi::{CStr, c_int};
    use std::ptr::{from_mut, from_ref, null, null_mut};

    use super::{Grown, Refusal};
    use unified::capi::types::*;
    use unified::capi::*;

    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub struct Handle(*mut unified_ctx);

    pub const NULL: Handle = Handle(null_mut());

    pub fn result(rc: c_int) -> Result<c_int, Refusal> {
        if rc >= 0 {
            return Ok(rc);
        }
        // SAFETY: never NULL, ends in a zero byte, and is valid until this thread's next call.
        let text = unsafe { CStr::from_ptr(unified_last_error()) };
        Err(Refusal(-rc, text.to_str().unwrap().into()))
    }

    pub fn create(config: Option<&Grown>) -> Result<Handle, Refusal> {
        if let Some(c) = config {
            let size = c.known.size;
            assert!(size <= size_of::<Grown>() as u64 || size > 1 << 16, "test");
        }
        let mut ctx = Handle(std::ptr::without_provenance_mut(8));
        // SAFETY: the struct has the `size` bytes that it names (or a size that is refused unread), and its
        // pointers are NULL or lead to what its owner holds.
        let rc = unsafe {
            unified_ctx_create(config.map_or(null(), |c| from_ref(&c.known)), &mut ctx.0)
        };
        assert_eq!(rc != 0, ctx == NULL, "NULL after a failure, and only then");
        result(rc).map(|_| ctx)
    }

    pub fn create_nowhere(config: &Grown) -> Result<c_int, Refusal> {
        // SAFETY: as in create; a NULL place is refused.
        result(unsafe { unified_ctx_create(&config.known, null_mut()) })
    }

    pub fn destroy(ctx: Handle) -> Result<c_int, Refusal> {
        // SAFETY: NULL or a handle, which is never freed.
        result(unsafe { unified_ctx_destroy(ctx.0) })
    }

    pub fn info(ctx: Handle) -> unified_info {
        let mut info = std::mem::MaybeUninit::<unified_info>::zeroed();
        // SAFETY: integers and pointers, for which zero is a value; the size is set before the call.
        unsafe {
            (*info.as_mut_ptr()).size = size_of::<unified_info>() as u64;
            assert_eq!(unified_ctx_info(ctx.0, info.as_mut_ptr()), 0);
            info.assume_init()
        }
    }

    pub fn alloc(ctx: Handle) -> u32 {
        let mut frame = u32::MAX;
        // SAFETY: a handle and a live place.
        assert_eq!(unsafe { unified_frame_alloc(ctx.0, &mut frame) }, 0);
        frame
    }

    pub fn release(ctx: Handle, frame: u32) -> Result<c_int, Refusal> {
        // SAFETY: a handle.
        result(unsafe { unified_frame_release(ctx.0, frame) })
    }

    /// Writes, reads or compares (by `opcode`) `len` bytes at `at` of the data buffers.
    pub fn transfer(
        ctx: Handle,
        opcode: u8,
        frame: u32,
        at: i64,
        len: u32,
        lba: u64,
        flags: u32,
    ) -> Result<c_int, Refusal> {
        let info = info(ctx);
        let data = info.region.wrapping_byte_add(info.buffers as usize);
        let data = data.wrapping_byte_offset(at as isize);
        // SAFETY: a handle; the library checks where the data lies before it uses the address.
        result(unsafe {
            match opcode {
                1 => unified_submit_write(ctx.0, frame, data, len, lba, 7, flags),
                2 => unified_submit_read(ctx.0, frame, data, len, lba, 7, flags),
                _ => unified_submit_compare(ctx.0, frame, data, len, lba, 7, flags),
            }
        })
    }

    pub fn raw(
        ctx: Handle,
        reserved: u8,
        data_len: u32,
        frame: Option<u32>,
    ) -> Result<c_int, Refusal> {
        let command = unified_nvme_command {
            opcode: 2,
            reserved0: reserved,
            reserved1: 0,
            nsid: 0,
            cdw2: 0,
            cdw3: 0,
            cdw10: 0,
            cdw11: 0,
            cdw12: 0,
            cdw13: 0,
            cdw14: 0,
            cdw15: 0,
            data_len,
            timeout: 0,
        };
        // SAFETY: a handle and a live command; NULL or the frame's own memory.
        result(unsafe {
            let data = frame.map_or(null_mut(), |f| unified_frame_data(ctx.0, f));
            unified_submit_raw(ctx.0, &command, frame.unwrap_or(0), data, 7)
        })
    }

    pub fn completions(ctx: Handle) -> Vec<unified_completion> {
        let none = unified_completion {
            user_data: 0,
            result: 0,
            status: 0,
            len: 0,
            frame: 0,
            flags: 0,
            reserved: 0,
        };
        let mut all = vec![none; 16];
        // SAFETY: a handle, and room for as many as said.
        let rc = unsafe {
            unified_wait(ctx.0, UNIFIED_WAIT_COMPLETIONS, 2000);
            unified_completions(ctx.0, all.as_mut_ptr(), all.len() as u32)
        };
        all.truncate(rc.try_into().unwrap());
        all
    }

    pub fn frame_data(ctx: Handle, frame: u32) -> bool {
        // SAFETY: a handle.
        !unsafe { unified_frame_data(ctx.0, frame) }.is_null()
    }

    pub fn port(ctx: Handle, add: bool, port: u16) -> Result<c_int, Refusal> {
        // SAFETY: a handle.
        result(unsafe {
            if add {
                unified_port_add(ctx.0, port)
            } else {
                unified_port_remove(ctx.0, port)
            }
        })
    }

    pub fn wait(ctx: Handle, what: u32) -> Result<c_int, Refusal> {
        // SAFETY: a handle.
        result(unsafe { unified_wait(ctx.0, what, 0) })
    }

    pub fn blocks(ctx: Handle, zero: bool, count: u32, flags: u32) -> Result<c_int, Refusal> {
        // SAFETY: a handle.
        result(unsafe {
            if zero {
                unified_submit_write_zeroes(ctx.0, 0, count, 7, flags)
            } else {
                unified_submit_deallocate(ctx.0, 0, count, 7)
            }
        })
    }

    pub fn log_level(level: c_int) -> Result<c_int, Refusal> {
        result(unified_set_log_callback(None, level, null_mut()))
    }

    /// The struct as it is, and one that a later header may have: `unknown` stands behind it.
    #[repr(C)]
    pub struct GrownPipeline {
        pub known: unified_pipeline_config,
        pub unknown: u64,
    }

    pub fn pipeline_start(ctx: Handle, config: &GrownPipeline) -> Result<c_int, Refusal> {
        let size = config.known.size;
        assert!(
            size <= size_of::<GrownPipeline>() as u64 || size > 1 << 16,
            "test"
        );
        // SAFETY: a handle, and a struct that has the bytes that it names.
        result(unsafe { unified_pipeline_start(ctx.0, &config.known) })
    }

    pub fn pipeline_stop(ctx: Handle) -> Result<c_int, Refusal> {
        // SAFETY: a handle; no status is asked for.
        result(unsafe { unified_pipeline_stop(ctx.0, null_mut()) })
    }

    /// Calls every function that takes a handle, with arguments that are right otherwise.
    pub fn every(ctx: Handle) -> Vec<(&'static str, Result<c_int, Refusal>)> {
        let mut words = [0u64; 128];
        words[0] = 64;
        let place = words.as_mut_ptr();
        let range = unified_pipeline_config {
            size: size_of::<unified_pipeline_config>() as u64,
            start_lba: 0,
            blocks: 0,
            at_end: 0,
            flags: 0,
            layout: 0,
            flush_writes: 0,
            flush_interval_ms: 0,
            moderation_us: 0,
        };
        let mut all = Vec::new();
        macro_rules! call {
            ($($function:ident($($argument:expr),*);)*) => {$(
                // SAFETY: NULL or a handle, whose cell is never freed; places have room for all that is
                // written there, and a sized struct names its size.
                let rc = unsafe { $function(ctx.0 $(, $argument)*) };
                all.push((stringify!($function), result(rc)));
            )*};
        }
        call! {
            unified_ctx_info(place.cast());
            unified_ctx_stats(place.cast());
            unified_ctx_device(place.cast(), 64);
            unified_port_add(1);
            unified_port_remove(1);
            unified_events_sample(1);
            unified_events(place.cast(), 1);
            unified_events_fd();
            unified_frame_alloc(place.cast());
            unified_frame_release(0);
            unified_rx_batch(place.cast(), 1);
            unified_submit_write(0, place.cast(), 1, 0, 0, 0);
            unified_submit_read(0, place.cast(), 512, 0, 0, 0);
            unified_submit_compare(0, place.cast(), 512, 0, 0, 0);
            unified_submit_flush(0);
            unified_submit_write_zeroes(0, 1, 0, 0);
            unified_submit_deallocate(0, 1, 0);
            unified_submit_raw(place.add(32).cast(), 0, null_mut(), 0);
            unified_submit_pending();
            unified_completions(place.cast(), 1);
            unified_wait(UNIFIED_WAIT_RX, 0);
            unified_poll_fd();
            unified_pipeline_start(&range);
            unified_pipeline_status(place.cast());
            unified_pipeline_stop(null_mut());
            unified_ctx_destroy();
        }
        all
    }

    /// Every function that takes a place or a struct, with NULL for it.
    pub fn every_null(ctx: Handle) -> Vec<(&'static str, Result<c_int, Refusal>)> {
        // SAFETY: a handle; NULL is refused.
        unsafe {
            vec![
                ("ctx_info", result(unified_ctx_info(ctx.0, null_mut()))),
                ("ctx_stats", result(unified_ctx_stats(ctx.0, null_mut()))),
                (
                    "ctx_device",
                    result(unified_ctx_device(ctx.0, null_mut(), 9)),
                ),
                ("events", result(unified_events(ctx.0, null_mut(), 1))),
                (
                    "frame_alloc",
                    result(unified_frame_alloc(ctx.0, null_mut())),
                ),
                ("rx_batch", result(unified_rx_batch(ctx.0, null_mut(), 1))),
                (
                    "submit_write",
                    result(unified_submit_write(ctx.0, 0, null(), 1, 0, 0, 0)),
                ),
                (
                    "submit_raw",
                    result(unified_submit_raw(ctx.0, null(), 0, null_mut(), 0)),
                ),
                (
                    "completions",
                    result(unified_completions(ctx.0, null_mut(), 1)),
                ),
                (
                    "pipeline_start",
                    result(unified_pipeline_start(ctx.0, null())),
                ),
                ("packet_flow", {
                    let flow =
                        unified_packet_flow(null(), null_mut(), null_mut(), null_mut(), null_mut());
                    result(flow)
                }),
            ]
        }
    }

    /// What the accessors say of a NULL packet.
    pub fn null_packet() -> (bool, u32, u64, c_int) {
        // SAFETY: NULL is allowed.
        unsafe {
            (
                unified_packet_payload(null()).is_null(),
                unified_packet_payload_len(null()),
                unified_packet_timestamp(null()),
                unified_packet_vlan(null()),
            )
        }
    }

    /// Asks for info, statistics and the pipeline's status in structs of `size` bytes: what came back, and
    /// the words (of which `size` bytes and no more may have been written).
    pub fn sized(ctx: Handle, size: u64) -> Vec<(Result<c_int, Refusal>, Vec<u64>)> {
        let mut all = Vec::new();
        for which in 0..3 {
            let mut words = vec![u64::MAX; 128];
            words[0] = size;
            let place = words.as_mut_ptr();
            // SAFETY: a handle; 1024 bytes are more than each of the structs has.
            let rc = unsafe {
                match which {
                    0 => unified_ctx_info(ctx.0, place.cast()),
                    1 => unified_ctx_stats(ctx.0, place.cast()),
                    _ => unified_pipeline_status(ctx.0, place.cast()),
                }
            };
            all.push((result(rc), words));
        }
        all
    }

    /// The device's path into `len` bytes.
    pub fn device(ctx: Handle, len: u32) -> Result<String, Refusal> {
        let mut text = [0xffu8; 64];
        assert!(len as usize <= text.len());
        // SAFETY: a handle, and room for `len`.
        let rc = unsafe { unified_ctx_device(ctx.0, from_mut(&mut text).cast(), len) };
        let end = result(rc)? as usize;
        assert_eq!(text[end], 0);
        Ok(String::from_utf8(text[..end].to_vec()).unwrap())
    }
}

// ---- Refused when it is created ----

type Change = Box<dyn Fn(&mut Wish)>;

/// What is changed in a right configuration, and which errno and words must come of it.
fn wrong(veth: &Veth) -> Vec<(Change, i32, String)> {
    use libc::{E2BIG, EINVAL, ENODEV, ENOENT, EOPNOTSUPP};
    let mut all: Vec<(Change, i32, String)> = Vec::new();
    let mut add = |change: fn(&mut Wish), errno, words: &str| {
        all.push((Box::new(change), errno, words.to_string()));
    };
    add(|w| w.on("nosuch0"), ENODEV, "'nosuch0'");
    add(|w| w.on(""), ENODEV, "''");
    add(
        |w| w.on("a-name-much-too-long-for-one"),
        ENODEV,
        "'a-name-much-too-long-for-one'",
    );
    add(|w| w.on("../eth0"), ENODEV, "'../eth0'");
    add(|w| w.on("eth 0"), ENODEV, "'eth 0'");
    add(
        |w| w.ifname = Some(CString::new([0xff, 0xfe]).unwrap()),
        EINVAL,
        "interface's name",
    );
    add(
        |w| w.device = Some(CString::new([0xff, 0xfe]).unwrap()),
        EINVAL,
        "device's path",
    );
    add(|w| w.device = None, EINVAL, "device's path is NULL");
    add(|w| w.to(""), EINVAL, "no device");
    add(
        |w| w.to("/nonexistent/device"),
        ENOENT,
        "'/nonexistent/device'",
    );
    add(|w| w.to("/dev/nvme999n1"), ENOENT, "'/dev/nvme999n1'");
    add(|w| w.to("/tmp"), EINVAL, "'/tmp'");
    add(|w| w.to("/dev/null"), EINVAL, "'/dev/null'");
    add(|w| w.to("null:many"), EINVAL, "'many'");
    add(|w| w.to("null:511"), EINVAL, "'null:511'");
    add(|w| w.c.known.block_size = 100, EINVAL, "block size 100");
    add(|w| w.c.known.block_size = 8192, EINVAL, "block size 8192");
    add(|w| w.ports(&[0]), EINVAL, "port 0");
    add(|w| w.ports(&[9999, 0, 1]), EINVAL, "port 0");
    add(|w| w.c.known.port_count = 1, EINVAL, "list of ports");
    add(|w| w.ports(&[1; 65536]), EINVAL, "list of ports");
    add(|w| w.c.known.queue = 1, EINVAL, "queue 1 ");
    add(|w| w.c.known.queue = u32::MAX, EINVAL, "queue 4294967295 ");
    add(|w| w.c.known.frame_size = 1000, EINVAL, "frame size 1000");
    add(|w| w.c.known.frame_size = 8192, EINVAL, "frame size 8192");
    add(|w| w.c.known.frame_count = 63, EINVAL, "63 frames");
    add(
        |w| w.c.known.frame_count = (1 << 22) + 1,
        EINVAL,
        "4194305 frames",
    );
    add(
        |w| w.c.known.frame_count = u32::MAX,
        EINVAL,
        "4294967295 frames",
    );
    add(|w| w.c.known.sq_entries = 100, EINVAL, "100 SQ entries");
    add(|w| w.c.known.sq_entries = 65536, EINVAL, "65536 SQ entries");
    add(|w| w.c.known.sq_entries = u32::MAX, EINVAL, "SQ entries");
    add(|w| w.c.known.cq_entries = 3, EINVAL, "3 CQ entries");
    add(|w| w.c.known.cq_entries = 1 << 31, EINVAL, "CQ entries");
    add(|w| w.c.known.rx_ring = 3, EINVAL, "3 RX ring");
    add(|w| w.c.known.rx_ring = 1 << 31, EINVAL, "RX ring");
    add(|w| w.c.known.fill_ring = 5, EINVAL, "5 fill ring");
    add(|w| w.c.known.fill_ring = 1 << 21, EINVAL, "fill ring");
    add(|w| w.c.known.events_bytes = 5000, EINVAL, "5000 bytes");
    add(|w| w.c.known.events_bytes = 2048, EINVAL, "2048 bytes");
    add(|w| w.c.known.events_bytes = 1 << 29, EINVAL, "events ring");
    add(|w| w.c.known.run_priority = 65536, EINVAL, "priority 65536");
    add(|w| w.c.known.headroom = 2, EINVAL, "UNIFIED_HEADROOM");
    add(
        |w| {
            w.c.known.headroom = 1345;
            w.c.known.flags = UNIFIED_HEADROOM;
        },
        EINVAL,
        "headroom 1345",
    );
    add(
        |w| {
            w.c.known.headroom = u32::MAX;
            w.c.known.flags = UNIFIED_HEADROOM;
        },
        EINVAL,
        "headroom 4294967295",
    );
    add(|w| w.c.known.flags = 1024, EINVAL, "flags 0x400");
    add(
        |w| w.c.known.flags = 1 << 31 | UNIFIED_FORCE,
        EINVAL,
        "flags 0x80000000",
    );
    add(|w| w.c.known.reserved = 1, EINVAL, "flags");
    add(|w| w.c.known.drive = 2, EINVAL, "drive 2");
    add(|w| w.c.known.xdp_mode = 3, EINVAL, "XDP mode 3");
    add(|w| w.c.known.copy_mode = 3, EINVAL, "copy mode 3");
    add(|w| w.c.known.size = 0, EINVAL, "size field holds 0");
    add(|w| w.c.known.size = 7, EINVAL, "size field holds 7");
    add(|w| w.c.known.size = 65537, EINVAL, "size field holds 65537");
    // A struct that ends before the device.
    add(|w| w.c.known.size = 8, EINVAL, "device's path is NULL");
    add(
        |w| {
            w.c.known.size = size_of::<Grown>() as u64;
            w.c.more[7] = 1 << 63;
        },
        E2BIG,
        "does not know",
    );
    add(
        |w| {
            w.c.known.size += 1;
            w.c.more[0] = 1;
        },
        E2BIG,
        "does not know",
    );
    // The last thing to fail: the program is attached by then.
    all.push((
        Box::new(|w| w.c.known.copy_mode = UNIFIED_COPY_ZERO),
        EOPNOTSUPP,
        format!("zero-copy) on queue 0 of '{}'", veth.host),
    ));
    all
}

#[test]
fn what_cannot_be_is_named_and_leaves_nothing() {
    let _alone = alone();
    if !is_root("what_cannot_be_is_named_and_leaves_nothing") {
        return;
    }
    let veth = Veth::new();
    // Once with success: what the process keeps for good (log routing, BTF, ...) is there from then on.
    let right = Wish::new(&veth.host, "null:");
    c::destroy(right.create().unwrap()).unwrap();
    let before = holdings();
    for (change, errno, words) in wrong(&veth) {
        for drive in [UNIFIED_DRIVE_INLINE, UNIFIED_DRIVE_THREAD] {
            let mut wish = Wish::new(&veth.host, "null:");
            wish.c.known.drive = drive;
            change(&mut wish);
            let Refusal(got, message) = wish.create().unwrap_err();
            assert_eq!(got, errno, "{words}: {message}");
            assert!(message.contains(&words), "{words}: {message}");
            assert_bare(&veth, &message);
            assert_unchanged(&before, &message);
        }
    }
    for refusal in [c::create(None).unwrap_err(), {
        c::create_nowhere(&right.config()).unwrap_err()
    }] {
        assert_eq!(refusal.0, libc::EINVAL);
        assert!(refusal.1.contains("NULL"), "{refusal:?}");
        assert_unchanged(&before, "NULL");
    }

    ip(&format!("link set {} down", veth.host));
    let Refusal(errno, message) = right.create().unwrap_err();
    assert_eq!(errno, libc::ENETDOWN, "{message}");
    assert!(
        message.contains(&format!("'{}' is down", veth.host)),
        "{message}"
    );
    assert_unchanged(&before, "interface down");
    ip(&format!("link set {} up", veth.host));
    c::destroy(right.create().unwrap()).unwrap();
    assert_bare(&veth, "right again");
    assert_unchanged(&before, "right again");
}

#[test]
fn files_that_cannot_be_are_named_and_leave_nothing() {
    let _alone = alone();
    if !is_root("files_that_cannot_be_are_named_and_leave_nothing") {
        return;
    }
    let file = |path: &str, size: u64| {
        let mut wish = Wish::new("", path);
        wish.ifname = None;
        wish.c.known.file_size = size;
        wish
    };
    c::destroy(file("null:", 0).create().unwrap()).unwrap();
    let before = holdings();
    let dir = env!("CARGO_TARGET_TMPDIR");
    let refused = |wish: Wish, errnos: &[i32], words: &str| {
        let Refusal(errno, message) = wish.create().unwrap_err();
        assert!(errnos.contains(&errno), "{errno}: {message}");
        assert!(message.contains(words), "{words}: {message}");
        assert_unchanged(&before, &message);
    };
    let fresh = Scratch::new(dir, "fresh");
    let missing = format!("{dir}/no/such/directory/file");
    refused(file(&missing, 1 << 20), &[libc::ENOENT], &missing);
    refused(file(fresh.path(), 0), &[libc::ENOENT], fresh.path());
    refused(
        file(fresh.path(), 1 << 62),
        &[libc::ENOSPC, libc::EFBIG],
        "4611686018427387904 bytes",
    );
    assert!(!fresh.0.exists(), "what could not be that big was not kept");

    // A file that was made, and then the context could not be.
    let veth = Veth::new();
    let mut wish = Wish::new(&veth.host, fresh.path());
    wish.c.known.file_size = 1 << 20;
    wish.c.known.copy_mode = UNIFIED_COPY_ZERO;
    refused(wish, &[libc::EOPNOTSUPP], "zero-copy");
    assert!(!fresh.0.exists(), "made for nothing");
    fs::write(&fresh.0, [1; 1000]).unwrap();
    let mut wish = Wish::new(&veth.host, fresh.path());
    wish.c.known.copy_mode = UNIFIED_COPY_ZERO;
    refused(wish, &[libc::EOPNOTSUPP], "zero-copy");
    assert_eq!(fs::read(&fresh.0).unwrap(), [1; 1000], "left as it was");

    let tiny = Scratch::new(dir, "tiny");
    fs::write(&tiny.0, [1; 100]).unwrap();
    refused(file(tiny.path(), 0), &[libc::EINVAL], "100 bytes");
    assert_eq!(fs::read(&tiny.0).unwrap(), [1; 100], "left as it was");

    let taken = Scratch::new(dir, "taken");
    let first = file(taken.path(), 1 << 20).create().unwrap();
    let Refusal(errno, message) = file(taken.path(), 1 << 20).create().unwrap_err();
    assert_eq!(errno, libc::EBUSY, "{message}");
    assert!(message.contains(taken.path()), "{message}");
    c::destroy(first).unwrap();
    assert_unchanged(&before, "the first recorder ended");
    let again = file(taken.path(), 1 << 20).create().unwrap();
    c::destroy(again).unwrap();

    // Reading only: opened, but never written to.
    let mut wish = file(taken.path(), 0);
    wish.c.known.flags = UNIFIED_READ_ONLY;
    let reader = wish.create().unwrap();
    let frame = c::alloc(reader);
    let at = i64::from(frame) * 2048;
    c::transfer(reader, 1, frame, at, 512, 0, 0).unwrap();
    let done = c::completions(reader);
    assert_eq!((done.len(), done[0].status), (1, 0x20), "{done:?}");
    c::destroy(reader).unwrap();
    assert_unchanged(&before, "read only");
}

/// The kernel's own refusals, one after the other: each descriptor that a context makes is the one too many.
#[test]
fn running_out_of_descriptors_at_any_point_leaves_nothing() {
    let _alone = alone();
    if !is_root("running_out_of_descriptors_at_any_point_leaves_nothing") {
        return;
    }
    let veth = Veth::new();
    let file = Scratch::new(env!("CARGO_TARGET_TMPDIR"), "descriptors");
    let spill = Scratch::new(env!("CARGO_TARGET_TMPDIR"), "descriptors-spill");
    let spill_path = CString::new(spill.path()).unwrap();
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    for drive in [UNIFIED_DRIVE_INLINE, UNIFIED_DRIVE_THREAD] {
        let mut wish = Wish::new(&veth.host, file.path());
        wish.c.known.file_size = 1 << 20;
        wish.c.known.drive = drive;
        wish.c.known.spill = spill_path.as_ptr();
        c::destroy(wish.create().unwrap()).unwrap();
        assert!(spill.0.exists(), "a spill stays after a context that was");
        fs::remove_file(&spill.0).unwrap();
        let before = holdings();
        let open = before.fds.len() as u64;
        let mut failures = 0;
        let context = loop {
            setrlimit(Resource::RLIMIT_NOFILE, open + failures, hard).unwrap();
            let tried = wish.create();
            setrlimit(Resource::RLIMIT_NOFILE, soft, hard).unwrap();
            match tried {
                Ok(context) => break context,
                Err(Refusal(errno, message)) => {
                    assert!(errno > 0 && !message.is_empty());
                    let after = format!("{failures} descriptors more: {message}");
                    assert_bare(&veth, &after);
                    assert_unchanged(&before, &after);
                    assert!(
                        !spill.0.exists(),
                        "{after}: the spill that was made is still there"
                    );
                }
            }
            failures += 1;
            assert!(failures < 100, "a context does not take so many");
        };
        assert!(failures > 8, "a context takes more than {failures}");
        c::destroy(context).unwrap();
        assert_bare(&veth, "destroyed");
        assert_unchanged(&before, "destroyed");
    }
}

#[test]
fn a_queue_that_another_socket_holds_is_busy() {
    let _alone = alone();
    if !is_root("a_queue_that_another_socket_holds_is_busy") {
        return;
    }
    let veth = Veth::new();
    let wish = Wish::new(&veth.host, "null:");
    c::destroy(wish.create().unwrap()).unwrap();
    let len = 64 * 2048;
    let umem = UmemSetup {
        frame_size: 2048,
        headroom: 0,
        fill_size: 64,
        socket: None,
    };
    let queue = QueueSetup {
        ifname: veth.host.clone(),
        queue: 0,
        rx_size: 64,
        zero_copy: Some(false),
        skb_mode: true,
    };
    let memory = Arc::new(Mapping::anonymous(len, false).unwrap());
    let umem = Umem::new(&umem, Shared::new(memory, 0, len).unwrap()).unwrap();
    let foreign = umem.bind(&queue).unwrap();
    let before = holdings();
    let Refusal(errno, message) = wish.create().unwrap_err();
    assert_eq!(errno, libc::EBUSY, "{message}");
    let named = format!("queue 0 of '{}'", veth.host);
    assert!(message.contains(&named), "{message}");
    assert_bare(&veth, "busy");
    assert_unchanged(&before, "busy");
    drop((foreign, umem));
    // The queue is free again as soon as the library has waited for it.
    c::destroy(wish.create().unwrap()).unwrap();
}

#[test]
fn thirty_contexts_leave_no_trace() {
    let _alone = alone();
    if !is_root("thirty_contexts_leave_no_trace") {
        return;
    }
    let veth = Veth::new();
    let file = Scratch::new(env!("CARGO_TARGET_TMPDIR"), "thirty");
    let mut wish = Wish::new(&veth.host, file.path());
    wish.c.known.file_size = 1 << 20;
    c::destroy(wish.create().unwrap()).unwrap();
    let before = holdings();
    for i in 0..30 {
        wish.c.known.drive = i % 2;
        let context = wish.create().unwrap();
        assert_ne!(holdings(), before, "a context holds something");
        c::destroy(context).unwrap();
        assert_bare(&veth, "destroyed");
        assert_unchanged(&before, &format!("context {i}"));
    }
}

// ---- Refused when it is called ----

fn storage_only() -> c::Handle {
    let mut wish = Wish::new("", "null:1048576");
    wish.ifname = None;
    wish.create().unwrap()
}

#[test]
fn handles_that_are_null_or_destroyed_are_errors_everywhere() {
    let _alone = alone();
    let each = |ctx, errno, words: &str| {
        for (function, result) in c::every(ctx) {
            let Err(Refusal(got, message)) = result else {
                panic!("{function}: {result:?}");
            };
            assert_eq!(got, errno, "{function}: {message}");
            assert!(message.contains(words), "{function}: {message}");
        }
        assert!(!c::frame_data(ctx, 0));
    };
    each(c::NULL, libc::EINVAL, "the context is NULL");
    let ctx = storage_only();
    assert!(c::frame_data(ctx, 0));
    c::destroy(ctx).unwrap();
    each(ctx, libc::EBADF, "destroyed");
    // A new context does not bring the old handle back to life.
    let new = storage_only();
    each(ctx, libc::EBADF, "destroyed");
    c::destroy(new).unwrap();
}

#[test]
fn null_places_and_wrong_sizes_are_errors() {
    let _alone = alone();
    let ctx = storage_only();
    for (function, result) in c::every_null(ctx) {
        let Refusal(errno, message) = result.unwrap_err();
        assert_eq!(errno, libc::EINVAL, "{function}: {message}");
        let named = message.contains("NULL") || message.contains("data buffers");
        assert!(named, "{function}: {message}");
    }
    assert_eq!(c::null_packet(), (true, 0, 0, -libc::EINVAL));

    let outcomes = |size| -> Vec<_> { c::sized(ctx, size) };
    for size in [0, 1, 7, 65537, u64::MAX] {
        for (result, words) in &outcomes(size)[..2] {
            let Refusal(errno, message) = result.clone().unwrap_err();
            assert_eq!(errno, libc::EINVAL);
            assert!(message.contains(&format!("holds {size}")), "{message}");
            assert!(words[1..].iter().all(|w| *w == u64::MAX), "untouched");
        }
    }
    // An older header's struct, and a newer one's: so much is filled in and no byte more.
    let sizes = [size_of::<unified_info>(), size_of::<unified_stats>()];
    for size in [8, 16, 104, 1024u64] {
        for ((result, words), whole) in outcomes(size).iter().zip(sizes) {
            assert_eq!(result, &Ok(0));
            let filled = (size as usize).min(whole);
            assert_eq!(words[0], filled as u64);
            assert!(words[filled / 8..].iter().all(|w| *w == u64::MAX), "{size}");
        }
    }
    let (no_pipeline, _) = outcomes(64).pop().unwrap();
    assert_eq!(no_pipeline.unwrap_err().0, libc::ENOENT);

    assert_eq!(c::device(ctx, 64).unwrap(), "null:1048576");
    assert_eq!(c::device(ctx, 13).unwrap(), "null:1048576");
    for len in [0, 1, 12] {
        let Refusal(errno, message) = c::device(ctx, len).unwrap_err();
        assert_eq!(errno, libc::ENAMETOOLONG);
        assert!(message.contains("12 bytes"), "{message}");
    }
    for level in [-1, 4] {
        let Refusal(errno, message) = c::log_level(level).unwrap_err();
        assert_eq!(errno, libc::EINVAL);
        assert!(message.contains(&format!("level {level}")), "{message}");
    }
    c::destroy(ctx).unwrap();
    // A newer program's configuration whose new fields are zero, and an older one's without the last field.
    for size in [size_of::<Grown>(), size_of::<unified_config>() - 8] {
        let mut wish = Wish::new("", "null:");
        wish.ifname = None;
        wish.c.known.size = size as u64;
        c::destroy(wish.create().unwrap()).unwrap();
    }
}

#[test]
fn transfers_that_cannot_be_are_refused_and_the_frame_stays_the_callers() {
    let _alone = alone();
    let ctx = storage_only();
    let first = c::alloc(ctx);
    // Not the first, so that there are data buffers on both sides of it.
    let frame = c::alloc(ctx);
    c::release(ctx, first).unwrap();
    let at = i64::from(frame) * 2048;
    let refused = |result: Result<i32, Refusal>, errno: i32, words: &str| {
        let Refusal(got, message) = result.unwrap_err();
        assert_eq!(got, errno, "{words}: {message}");
        assert!(message.contains(words), "{words}: {message}");
    };
    let (write, read, compare) = (1, 2, 5);
    use libc::{EBUSY, EINVAL, ENOTCONN};
    let named = format!("frame {frame} ");
    for (opcode, at, len, words) in [
        (write, at, 0, &*named),
        (write, at, 2049, &named),
        (write, at, u32::MAX, &named),
        (write, at + 1, 2048, &named),
        (write, at - 1, 10, &named),
        (write, at + 2048, 1, &named),
        (write, i64::MAX >> 1, 1, &named),
        (write, -1 << 20, 1, "data buffers"),
        (read, at, 0, &named),
        (read, at, 100, "100 bytes"),
        (read, at + 512, 2048, &named),
        (compare, at, 513, "513 bytes"),
    ] {
        refused(
            c::transfer(ctx, opcode, frame, at, len, 0, 0),
            EINVAL,
            words,
        );
    }
    for flags in [8, 1 << 31, u32::MAX] {
        refused(
            c::transfer(ctx, write, frame, at, 512, 0, flags),
            EINVAL,
            &format!("flags {flags:#x}"),
        );
    }
    // Frames that are not the caller's.
    let other = (frame + 1) % 256;
    for frame in [other, 256, u32::MAX] {
        let at = i64::from(frame) * 2048;
        refused(
            c::transfer(ctx, write, frame, at, 512, 0, 0),
            EINVAL,
            &format!("frame {frame}"),
        );
        refused(c::release(ctx, frame), EINVAL, &format!("frame {frame}"));
    }
    assert!(c::frame_data(ctx, 255) && !c::frame_data(ctx, 256));
    for (zero, count, flags, words) in [
        (true, 0, 0, "0 blocks"),
        (true, 65537, 0, "65537 blocks"),
        (true, 1, 2, "flags 0x2"),
        (false, 0, 0, "0 blocks"),
        (false, 65537, 0, "65537 blocks"),
    ] {
        refused(c::blocks(ctx, zero, count, flags), EINVAL, words);
    }
    refused(c::raw(ctx, 1, 512, Some(frame)), EINVAL, "reserved");
    refused(c::raw(ctx, 0, 512, None), EINVAL, "needs a frame");
    refused(c::raw(ctx, 0, 2049, Some(frame)), EINVAL, "2049 bytes");
    refused(c::raw(ctx, 0, 512, Some(other)), EINVAL, "frame");
    for what in [0, 4, u32::MAX] {
        refused(c::wait(ctx, what), EINVAL, "condition");
    }
    refused(c::wait(ctx, UNIFIED_WAIT_RX), ENOTCONN, "interface");
    for add in [true, false] {
        refused(c::port(ctx, add, 9999), ENOTCONN, "interface");
    }
    assert_eq!(c::completions(ctx).len(), 0, "nothing was submitted");

    // After all that the frame is still there to be used, and used once.
    c::transfer(ctx, write, frame, at, 512, 0, UNIFIED_KEEP | UNIFIED_MORE).unwrap();
    refused(
        c::transfer(ctx, write, frame, at, 512, 0, 0),
        EBUSY,
        "in flight",
    );
    refused(c::release(ctx, frame), EBUSY, "in flight");
    let done = c::completions(ctx);
    // UNIFIED_MORE: not shown to the engine before the next submission without it.
    assert_eq!(done.len(), 0);
    // The null device has 2048 blocks: the device's own answer comes with the completion.
    let second = c::alloc(ctx);
    c::transfer(ctx, write, second, i64::from(second) * 2048, 1024, 2047, 0).unwrap();
    let mut done = c::completions(ctx);
    while done.len() < 2 {
        let more = c::completions(ctx);
        assert!(!more.is_empty(), "{done:?}");
        done.extend(more);
    }
    // An entry that cannot be may complete before one that must go to the device.
    done.sort_by_key(|completion| completion.status);
    assert_eq!((done[0].status, done[0].frame), (0, frame));
    assert_eq!(
        done[0].flags & UNIFIED_COMPLETION_FRAME,
        UNIFIED_COMPLETION_FRAME
    );
    assert_eq!(done[1].status, 0x80, "LBA Out of Range");
    c::release(ctx, frame).unwrap();
    refused(c::release(ctx, frame), EINVAL, &format!("frame {frame}"));
    c::destroy(ctx).unwrap();
}

#[test]
fn pipelines_that_cannot_be_are_refused() {
    let _alone = alone();
    if !is_root("pipelines_that_cannot_be_are_refused") {
        return;
    }
    let veth = Veth::new();
    let ctx = Wish::new(&veth.host, "null:1048576").create().unwrap();
    let range = |change: fn(&mut c::GrownPipeline)| {
        let mut config = c::GrownPipeline {
            known: unified_pipeline_config {
                size: size_of::<unified_pipeline_config>() as u64,
                start_lba: 0,
                blocks: 0,
                at_end: 0,
                flags: 0,
                layout: 0,
                flush_writes: 0,
                flush_interval_ms: 0,
                moderation_us: 0,
            },
            unknown: 0,
        };
        change(&mut config);
        config
    };
    use libc::{E2BIG, EINVAL};
    let size = size_of::<c::GrownPipeline>() as u64;
    assert_eq!(size, size_of::<unified_pipeline_config>() as u64 + 8);
    type Change = fn(&mut c::GrownPipeline);
    let wrong: [(Change, i32, &str); 12] = [
        (|r| r.known.start_lba = 2048, EINVAL, "blocks 2048"),
        (
            |r| r.known.start_lba = u64::MAX,
            EINVAL,
            "18446744073709551615",
        ),
        (|r| r.known.blocks = 2049, EINVAL, "'null:1048576'"),
        (
            |r| {
                r.known.start_lba = 5;
                r.known.blocks = u64::MAX - 2;
            },
            EINVAL,
            "blocks 5",
        ),
        (|r| r.known.at_end = 2, EINVAL, "at_end 2"),
        (|r| r.known.flags = 2, EINVAL, "flags 0x2"),
        (
            |r| r.known.moderation_us = 1_000_001,
            EINVAL,
            "moderation of 1000001 us",
        ),
        (|r| r.known.size = 0, EINVAL, "size field holds 0"),
        (|r| r.known.size = 4, EINVAL, "size field holds 4"),
        (
            |r| r.known.size = 1 << 20,
            EINVAL,
            "size field holds 1048576",
        ),
        (
            |r| {
                r.known.size = size_of::<c::GrownPipeline>() as u64;
                r.unknown = 1;
            },
            E2BIG,
            "does not know",
        ),
        (
            |r| {
                r.known.size = size_of::<unified_pipeline_config>() as u64 + 1;
                r.unknown = 0xff;
            },
            E2BIG,
            "does not know",
        ),
    ];
    let before = holdings();
    for (change, errno, words) in wrong {
        let Refusal(got, message) = c::pipeline_start(ctx, &range(change)).unwrap_err();
        assert_eq!(got, errno, "{words}: {message}");
        assert!(message.contains(words), "{words}: {message}");
        assert_unchanged(&before, words);
    }
    assert_eq!(c::pipeline_stop(ctx).unwrap_err().0, libc::ENOENT);
    c::pipeline_start(
        ctx,
        &range(|r| r.known.size = size_of::<c::GrownPipeline>() as u64),
    )
    .unwrap();
    let twice = c::pipeline_start(ctx, &range(|_| {})).unwrap_err();
    assert_eq!(twice.0, libc::EALREADY, "{twice:?}");
    let taken = c::wait(ctx, UNIFIED_WAIT_RX).unwrap_err();
    assert_eq!(taken.0, libc::EBUSY, "{taken:?}");
    assert!(taken.1.contains("pipeline"), "{taken:?}");
    c::pipeline_stop(ctx).unwrap();
    assert_eq!(c::pipeline_stop(ctx).unwrap_err().0, libc::ENOENT);
    assert_unchanged(&before, "the pipeline was stopped");
    for add in [true, false] {
        let Refusal(errno, message) = c::port(ctx, add, 0).unwrap_err();
        assert_eq!(errno, libc::EINVAL);
        assert!(message.contains("port 0"), "{message}");
    }
    // Destroyed while it runs.
    c::pipeline_start(ctx, &range(|_| {})).unwrap();
    c::destroy(ctx).unwrap();
    assert_bare(&veth, "destroyed with its pipeline");

    let ctx = storage_only();
    let refusal = c::pipeline_start(ctx, &range(|_| {})).unwrap_err();
    assert_eq!(refusal.0, libc::ENOTCONN, "{refusal:?}");
    c::destroy(ctx).unwrap();
}

// ---- Other processes ----

const CHILD: &str = "UNIFIED_TEST_CHILD";

/// This test binary again, running one test, whose child's part is chosen by a variable.
struct Recorder(Child);

impl Recorder {
    fn start(test: &str, ifname: &str) -> Recorder {
        let child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", test, "--nocapture"])
            .env(CHILD, ifname)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut recorder = Recorder(child);
        let out = BufReader::new(recorder.0.stdout.take().unwrap());
        let ready = out
            .lines()
            .map_while(Result::ok)
            .any(|line| line.ends_with("recording"));
        assert!(ready, "the child has a context");
        recorder
    }

    fn pid(&self) -> u32 {
        self.0.id()
    }

    /// Ended with all its threads, and not yet asked for its end.
    fn is_zombie(&self) -> bool {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.pid())).unwrap();
        let fields: Vec<&str> = stat[stat.rfind(')').unwrap() + 2..].split(' ').collect();
        fields[0] == "Z" && fields[17] == "1"
    }
}

impl Drop for Recorder {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn recorder_config(ifname: &str) -> Config {
    let mut config = Config {
        ifname: Some(ifname.into()),
        frame_count: 256,
        drive: Drive::Thread,
        ..Config::default()
    };
    config.device.path = "null:".into();
    config
}

/// The child's part: holds a context until it is killed, or its parent is gone.
fn record_until_killed(ifname: &str) {
    let _context = Context::open(&recorder_config(ifname)).unwrap();
    println!("recording");
    let mut nothing = String::new();
    let _ = std::io::stdin().read_line(&mut nothing);
}

/// Receives what the far end sends: all of it, in order.
fn receive_all(veth: &Veth, context: &Context, count: usize) {
    let payloads: Vec<Vec<u8>> = (0..count).map(|i| payload(i as u32, 1 + i)).collect();
    let sender = veth.send(9999, payloads, 2000);
    let mut lengths = Vec::new();
    let until = Instant::now() + Duration::from_secs(10);
    let mut packets = [Received::default(); 16];
    while lengths.len() < count && Instant::now() < until {
        context
            .wait(Ready::RX, Some(Duration::from_millis(50)))
            .unwrap();
        let got = context.receive(&mut packets).unwrap();
        for packet in &packets[..got] {
            lengths.push(usize::from(packet.headers.payload_len));
            context.frame_release(packet.frame).unwrap();
        }
    }
    sender.join().unwrap();
    assert_eq!(lengths, (1..=count).collect::<Vec<_>>());
}

#[test]
fn a_second_recorder_is_told_who_the_first_is_and_does_it_no_harm() {
    if let Ok(ifname) = std::env::var(CHILD) {
        return record_until_killed(&ifname);
    }
    let name = "a_second_recorder_is_told_who_the_first_is_and_does_it_no_harm";
    let _alone = alone();
    if !is_root(name) {
        return;
    }
    let veth = Veth::new();
    let index = link::index_of(&veth.host).unwrap();
    let busy = |owner: u32| {
        let before = holdings();
        let error = Context::open(&recorder_config(&veth.host)).err().unwrap();
        assert_eq!(error.errno(), libc::EBUSY, "{error}");
        assert!(
            error.message().contains(&format!("process {owner},")),
            "{error}"
        );
        assert!(error.message().contains(&veth.host), "{error}");
        assert_unchanged(&before, "busy");
    };
    // In this process...
    let config = Config {
        drive: Drive::Inline,
        ..recorder_config(&veth.host)
    };
    let first = Context::open(&config).unwrap();
    let program = bpf::attached(index).unwrap().programs[0].id;
    busy(std::process::id());
    assert_eq!(bpf::attached(index).unwrap().programs[0].id, program);
    receive_all(&veth, &first, 50);
    busy(std::process::id());
    receive_all(&veth, &first, 50);
    drop(first);
    assert_bare(&veth, "the first has gone");
    // ... and in another one.
    let child = Recorder::start(name, &veth.host);
    let program = bpf::attached(index).unwrap().programs[0].id;
    busy(child.pid());
    assert_eq!(bpf::attached(index).unwrap().programs[0].id, program);
    assert_eq!(programs_of(child.pid()).unwrap(), [program]);
}

#[test]
fn what_a_killed_recorder_left_is_harmless_and_taken_over() {
    if let Ok(ifname) = std::env::var(CHILD) {
        return record_until_killed(&ifname);
    }
    let name = "what_a_killed_recorder_left_is_harmless_and_taken_over";
    let _alone = alone();
    if !is_root(name) {
        return;
    }
    let veth = Veth::new();
    let index = link::index_of(&veth.host).unwrap();
    // Once its parent has asked for its end, and once it is still a zombie.
    for reaped in [true, false] {
        let mut child = Recorder::start(name, &veth.host);
        child.0.kill().unwrap();
        if reaped {
            child.0.wait().unwrap();
        } else {
            let until = Instant::now() + Duration::from_secs(5);
            while !child.is_zombie() {
                assert!(Instant::now() < until, "killed");
                std::thread::sleep(Duration::from_millis(5));
            }
        }
        let left = bpf::attached(index).expect("the program outlives its process");
        assert_eq!(left.programs[0].name, bpf::PROGRAM);
        // What it redirected goes to the stack now.
        let socket = UdpSocket::bind((veth.host_addr, 9999)).unwrap();
        socket
            .set_read_timeout(Some(Duration::from_secs(5)))
            .unwrap();
        let sent = payload(1, 500);
        veth.send(9999, vec![sent.clone()], 1000).join().unwrap();
        let mut got = [0; 2048];
        let len = socket.recv(&mut got).unwrap();
        assert_eq!(&got[..len], sent);
        drop(socket);

        let context = Context::open(&recorder_config(&veth.host)).unwrap();
        let now = bpf::attached(index).unwrap();
        assert_eq!(now.programs.len(), 1, "{now:?}");
        assert_ne!(now.programs[0].id, left.programs[0].id);
        receive_all(&veth, &context, 50);
        drop(context);
        assert_bare(&veth, "nothing is left of either");
    }
}

#[test]
fn too_little_lockable_memory_is_refused_with_what_is_needed() {
    let name = "too_little_lockable_memory_is_refused_with_what_is_needed";
    if std::env::var_os(CHILD).is_some() {
        return without_ipc_lock();
    }
    let _alone = alone();
    if !is_root(name) {
        return;
    }
    // A root without CAP_IPC_LOCK, in a process of its own.
    let output = Command::new("setpriv")
        .args(["--bounding-set", "-ipc_lock", "--"])
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", name, "--nocapture"])
        .env(CHILD, "limited")
        .output()
        .expect("util-linux is installed");
    let out = String::from_utf8_lossy(&output.stdout);
    let err = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{out}\n{err}");
    assert!(
        out.contains("refused above the limit, taken below"),
        "{out}\n{err}"
    );
}

fn without_ipc_lock() {
    let veth = Veth::new();
    setrlimit(Resource::RLIMIT_MEMLOCK, 4 << 20, 4 << 20).unwrap();
    let small = recorder_config(&veth.host);
    let small = Config {
        frame_count: 128,
        sq_entries: 64,
        cq_entries: 64,
        rx_ring: 64,
        fill_ring: 64,
        ..small
    };
    drop(Context::open(&small).unwrap());
    let before = holdings();
    for frame_count in [1024, 4096] {
        let config = Config {
            frame_count,
            ..small.clone()
        };
        let error = Context::open(&config).err().unwrap();
        assert_eq!(error.errno(), libc::ENOMEM, "{error}");
        let umem = format!("{} for the UMEM", frame_count * 2048);
        for words in [&*umem, "RLIMIT_MEMLOCK allows 4194304", "CAP_IPC_LOCK"] {
            assert!(error.message().contains(words), "{error}");
        }
        assert_bare(&veth, "too little");
        assert_unchanged(&before, "too little");
    }
    drop(Context::open(&small).unwrap());
    assert_unchanged(&before, "small enough");
    println!("refused above the limit, taken below");
}

#[test]
fn a_program_that_is_started_meanwhile_inherits_nothing() {
    let _alone = alone();
    if !is_root("a_program_that_is_started_meanwhile_inherits_nothing") {
        return;
    }
    let veth = Veth::new();
    let file = Scratch::new(env!("CARGO_TARGET_TMPDIR"), "inherited");
    let list = || {
        let output = Command::new("ls").args(["-l", "/proc/self/fd"]).output();
        let text = String::from_utf8(output.unwrap().stdout).unwrap();
        let inherited = |line: &&str| line.contains("socket:") || line.contains("anon_inode:");
        let files = |line: &&str| line.contains(file.path());
        let lines = text.lines();
        lines
            .filter(|line| inherited(line) || files(line))
            .map(|line| line.split(' ').next_back().unwrap().to_string())
            .collect::<Vec<_>>()
    };
    let before = list().len();
    for drive in [UNIFIED_DRIVE_INLINE, UNIFIED_DRIVE_THREAD] {
        let mut wish = Wish::new(&veth.host, file.path());
        wish.c.known.file_size = 1 << 20;
        wish.c.known.drive = drive;
        let context = wish.create().unwrap();
        let during = list();
        assert_eq!(during.len(), before, "{during:?}");
        c::destroy(context).unwrap();
    }
}
