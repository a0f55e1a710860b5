//! C's submissions that name their device: what is submitted, what is refused, and whose the frames are then.
#![deny(unsafe_code)]

mod common;

use std::fs;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use common::{Scratch, payload};
use unified::capi::types::*;

#[allow(unsafe_code)]
mod c {
    use std::ffi::{CStr, CString, c_int};
    use std::mem::zeroed;
    use std::ptr::{from_ref, null_mut};

    use unified::capi::types::*;
    use unified::capi::*;

    pub struct Context(*mut unified_ctx);

    impl Drop for Context {
        fn drop(&mut self) {
            // SAFETY: a handle.
            assert_eq!(unsafe { unified_ctx_destroy(self.0) }, 0);
        }
    }

    pub fn last_error() -> String {
        // SAFETY: a string of this thread, until its next call.
        let text = unsafe { CStr::from_ptr(unified_last_error()) };
        text.to_string_lossy().into()
    }

    pub fn context(paths: &[&str]) -> Context {
        let paths: Vec<CString> = paths.iter().map(|p| CString::new(*p).unwrap()).collect();
        let mut ctx = null_mut();
        // SAFETY: zero is a value of every field, and what they point to lives during the call.
        let rc = unsafe {
            let devices: Vec<unified_device> = paths
                .iter()
                .map(|path| unified_device {
                    size: size_of::<unified_device>() as u64,
                    path: path.as_ptr(),
                    ..zeroed()
                })
                .collect();
            let mut config = zeroed::<unified_config>();
            config.size = size_of::<unified_config>() as u64;
            config.devices = devices.as_ptr();
            config.device_count = devices.len() as u32;
            config.frame_count = 256;
            unified_ctx_create(&config, &mut ctx)
        };
        assert_eq!(rc, 0, "{}", last_error());
        Context(ctx)
    }

    /// A submission with a frame of its own that holds these bytes.
    pub fn write(ctx: &Context, device: u32, lba: u64, bytes: &[u8]) -> unified_submission {
        // SAFETY: a frame of 2048 bytes at least, of which this thread is the owner.
        unsafe {
            let mut frame = 0;
            assert_eq!(
                unified_frame_alloc(ctx.0, &mut frame),
                0,
                "{}",
                last_error()
            );
            let data = unified_frame_data(ctx.0, frame);
            data.cast::<u8>().copy_from(bytes.as_ptr(), bytes.len());
            unified_submission {
                size: size_of::<unified_submission>() as u64,
                lba,
                user_data: lba,
                data,
                op: UNIFIED_OP_WRITE,
                device,
                frame,
                len: bytes.len() as u32,
                ..zeroed()
            }
        }
    }

    pub fn submit(ctx: &Context, submissions: &[unified_submission]) -> c_int {
        // SAFETY: as many elements as the slice has.
        unsafe { unified_submit(ctx.0, submissions.as_ptr(), submissions.len() as u32) }
    }

    /// An element of a later version, with a field at its end.
    pub fn submit_grown(ctx: &Context, known: unified_submission, tail: u64) -> c_int {
        #[repr(C)]
        struct Grown(unified_submission, u64);
        let mut grown = Grown(known, tail);
        grown.0.size = size_of::<Grown>() as u64;
        // SAFETY: one element, as long as it says.
        unsafe { unified_submit(ctx.0, from_ref(&grown).cast(), 1) }
    }

    /// With another number of elements than the slice has: NULL, misaligned, none, and more than there are.
    pub fn submit_so_many(ctx: &Context, at: *const unified_submission, count: u32) -> c_int {
        // SAFETY: what is NULL or not aligned is refused unread, and the caller's last element is one that is refused: nothing
        // after it is read.
        unsafe { unified_submit(ctx.0, at, count) }
    }

    pub fn release(ctx: &Context, frame: u32) -> c_int {
        // SAFETY: a handle; the library checks the frame.
        unsafe { unified_frame_release(ctx.0, frame) }
    }

    pub fn completions(ctx: &Context) -> Vec<unified_completion> {
        // SAFETY: integers, and as many elements as it says.
        unsafe {
            let mut done: [unified_completion; 16] = zeroed();
            let taken = unified_completions(ctx.0, done.as_mut_ptr(), 16);
            assert!(taken >= 0, "{}", last_error());
            done[..taken as usize].to_vec()
        }
    }

    pub fn locate(ctx: &Context, lba: u64, chunk_bytes: u32) -> Result<(u32, u64), c_int> {
        let (mut device, mut at) = (0, 0);
        // SAFETY: live places.
        match unsafe { unified_stripe_locate(ctx.0, lba, chunk_bytes, &mut device, &mut at) } {
            0 => Ok((device, at)),
            error => Err(error),
        }
    }
}

const DEVICE: u64 = 1 << 20;

/// One test counts the descriptors of the process.
fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

fn two() -> ([Scratch; 2], c::Context) {
    let files = [0, 1].map(|_| Scratch::new("/dev/shm", "submissions"));
    for file in &files {
        fs::write(&file.0, vec![0; DEVICE as usize]).unwrap();
    }
    let context = c::context(&[files[0].path(), files[1].path()]);
    (files, context)
}

fn take(ctx: &c::Context, count: usize) -> Vec<unified_completion> {
    let (mut all, until) = (Vec::new(), Instant::now() + Duration::from_secs(10));
    while all.len() < count {
        all.extend(c::completions(ctx));
        assert!(Instant::now() < until, "{} of {count}", all.len());
    }
    assert_eq!(all.len(), count);
    all
}

#[test]
fn a_batch_goes_to_the_devices_that_it_names() {
    let _alone = alone();
    let (files, ctx) = two();
    let bytes = payload(7, 512);
    let mut batch: Vec<_> = (0..4)
        .map(|i| c::write(&ctx, i % 2, 3 + u64::from(i), &bytes))
        .collect();
    // The last waits with all before it.
    batch[3].flags = UNIFIED_MORE;
    assert_eq!(c::submit(&ctx, &batch), 4, "{}", c::last_error());
    let flush = unified_submission {
        op: UNIFIED_OP_FLUSH,
        device: UNIFIED_ALL_DEVICES,
        data: std::ptr::null_mut(),
        frame: 0,
        len: 0,
        lba: 0,
        flags: 0,
        user_data: 99,
        ..batch[0]
    };
    assert_eq!(c::submit(&ctx, &[flush]), 1, "{}", c::last_error());
    let done = take(&ctx, 5);
    for done in done.iter().filter(|done| done.user_data != 99) {
        assert_eq!(
            (done.status, u64::from(done.device)),
            (0, (done.user_data - 3) % 2)
        );
    }
    let images = files.each_ref().map(|file| fs::read(&file.0).unwrap());
    for i in 0..4usize {
        let at = (3 + i) * 512;
        assert!(images[i % 2][at..at + 512] == bytes[..]);
        assert!(
            images[1 - i % 2][at..at + 512]
                .iter()
                .all(|byte| *byte == 0)
        );
    }
}

#[test]
fn what_follows_a_refused_element_is_still_the_callers() {
    let _alone = alone();
    let (_files, ctx) = two();
    let good = || c::write(&ctx, 1, 1, &[1; 512]);
    let change = |change: fn(&mut unified_submission)| {
        let mut wrong = good();
        change(&mut wrong);
        wrong
    };
    for (wrong, words) in [
        (change(|s| s.device = 2), "device 2 does not exist"),
        (change(|s| s.device = 256), "device 256 does not exist"),
        (
            change(|s| s.device = UNIFIED_ALL_DEVICES),
            "for flushes only",
        ),
        (change(|s| s.op = 77), "operation 77 is unknown"),
        (change(|s| s.flags = 1 << 30), "flag"),
        (change(|s| s.size -= 8), "size"),
    ] {
        let batch = [good(), wrong, good()];
        assert_eq!(c::submit(&ctx, &batch), 1, "{words}");
        assert!(
            c::last_error().contains(words),
            "{words}: {}",
            c::last_error()
        );
        // The first was published without the others.
        assert_eq!(take(&ctx, 1)[0].status, 0);
        for rest in &batch[1..] {
            assert_eq!(c::release(&ctx, rest.frame), 0, "{words}");
        }
    }
    let fua = change(|s| (s.op, s.flags) = (UNIFIED_OP_DEALLOCATE, UNIFIED_FUA));
    assert_eq!(c::submit(&ctx, &[fua]), -libc::EINVAL);
    assert_eq!(c::submit_grown(&ctx, fua, 1), -libc::E2BIG);
    assert_eq!(c::release(&ctx, fua.frame), 0);
    assert_eq!(c::submit_grown(&ctx, good(), 0), 1, "{}", c::last_error());
    take(&ctx, 1);
}

#[test]
fn counts_and_sizes_that_do_not_fit_are_refused() {
    let _alone = alone();
    let (files, ctx) = two();
    let before = fs::read_dir("/proc/self/fd").unwrap().count();
    let good = c::write(&ctx, 0, 1, &[7; 512]);
    let refused = |at, count, words: &str| {
        assert_eq!(c::submit_so_many(&ctx, at, count), -libc::EINVAL, "{words}");
        let error = c::last_error();
        assert!(error.contains(words), "{words}: {error}");
    };
    assert_eq!(c::submit(&ctx, &[]), 0);
    for count in [1, 2, u32::MAX] {
        refused(std::ptr::null(), count, "`submissions` is NULL");
        let crooked = std::ptr::from_ref(&good).wrapping_byte_add(4);
        refused(crooked, count, "not aligned");
    }
    let sized = |size| unified_submission { size, ..good };
    for size in [0, 7, 65537, u64::MAX] {
        refused(&sized(size), 1, &format!("holds {size}"));
    }
    let list = [good, sized(0)];
    assert_eq!(c::submit_so_many(&ctx, list.as_ptr(), u32::MAX), 1);
    let error = c::last_error();
    assert!(error.contains("element 1 has the size 0"), "{error}");
    assert_eq!(take(&ctx, 1)[0].status, 0);
    for op in [77, 255, u32::MAX] {
        let wrong = unified_submission { op, ..good };
        refused(&wrong, 1, &format!("operation {op} is unknown"));
    }
    for device in [2, 255, 256, u32::MAX - 1] {
        let wrong = unified_submission { device, ..good };
        refused(&wrong, 1, &format!("device {device} does not exist"));
    }
    let after = fs::read_dir("/proc/self/fd").unwrap().count();
    assert_eq!(after, before, "descriptors");
    let [first, second] = files.map(|file| fs::read(&file.0).unwrap());
    assert!(first[512..1024].iter().all(|byte| *byte == 7));
    assert!(
        first[..512]
            .iter()
            .chain(&first[1024..])
            .chain(&second)
            .all(|byte| *byte == 0)
    );
}

#[test]
fn a_reader_finds_the_blocks_of_the_payload_layout() {
    let _alone = alone();
    let (_files, ctx) = two();
    assert_eq!(c::locate(&ctx, 8, 4096), Ok((1, 0)));
    assert_eq!(c::locate(&ctx, 17, 4096), Ok((0, 9)));
    assert_eq!(c::locate(&ctx, 2048, 0), Ok((1, 0)));
    assert_eq!(c::locate(&ctx, 4096, 0), Err(-libc::ERANGE));
    assert!(c::last_error().contains("4096"), "{}", c::last_error());
    assert_eq!(c::locate(&ctx, 0, 4097), Err(-libc::EINVAL));
}
