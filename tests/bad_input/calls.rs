//! Wrong handles, pointers, sizes, transfers and pipelines are errors of the call.

use super::*;

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
    each(c::NULL, libc::EINVAL, "`ctx` is NULL");
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

/// A batch that ended early: how many it did, and why it did no more.
fn cut_short(result: Result<i32, Refusal>, done: i32, words: &str) {
    assert_eq!(result, Ok(done), "{words}");
    assert!(c::last_error().contains(words), "{}", c::last_error());
}

fn refused(result: Result<i32, Refusal>, errno: i32, words: &str) {
    let Refusal(got, message) = result.unwrap_err();
    assert_eq!(got, errno, "{words}: {message}");
    assert!(message.contains(words), "{words}: {message}");
}

fn frames_of(done: &[unified_completion]) -> Vec<u32> {
    done.iter().map(|one| one.frame).collect()
}

#[test]
fn a_batch_of_frames_ends_at_the_first_that_is_not_held() {
    use libc::{EBUSY, EINVAL};
    let _alone = alone();
    let ctx = storage_only();
    for result in c::misplaced(ctx) {
        refused(result, EINVAL, "is NULL or not aligned");
    }
    assert_eq!(c::release_all(ctx, &[]), Ok(0));
    let mut frames: Vec<u32> = (0..100).map(|_| c::alloc(ctx)).collect();
    assert!(frames.is_sorted());
    let mut next = |count: usize| frames.drain(..count).collect::<Vec<u32>>();
    // Free, and not there: in the middle, and first.
    for (foreign, is) in [
        (200, "is free"),
        (256, "does not exist"),
        (u32::MAX, "does"),
    ] {
        let words = format!("frame {foreign} {is}");
        let mine = next(9);
        let list = [&mine[..6], &[foreign], &mine[6..]].concat();
        cut_short(c::release_all(ctx, &list), 6, &words);
        for (i, frame) in mine[..6].iter().enumerate() {
            let words = format!("frame {frame} is free");
            refused(c::release_all(ctx, &list[i..]), EINVAL, &words);
        }
        refused(c::release_all(ctx, &list[6..]), EINVAL, &words);
        // What comes after it is still the caller's.
        assert_eq!(c::release_all(ctx, &mine[6..]), Ok(3));
    }
    // The same frame twice, at once and later; neighbours in another order.
    let mine = next(8);
    let words = format!("frame {} is free", mine[1]);
    cut_short(c::release_all(ctx, &[mine[1], mine[1], mine[2]]), 1, &words);
    cut_short(c::release_all(ctx, &[mine[3], mine[2], mine[1]]), 2, &words);
    cut_short(c::release_all(ctx, &[mine[0], mine[1]]), 1, &words);
    assert_eq!(
        c::release_all(ctx, &[mine[7], mine[4], mine[6], mine[5]]),
        Ok(4)
    );
    // In flight: among its neighbours, and first.
    let mine = next(8);
    c::submit_all(ctx, &[c::entry(ctx, mine[5], 0, UNIFIED_KEEP)]).unwrap();
    let words = format!("frame {} is in flight", mine[5]);
    cut_short(c::release_all(ctx, &mine), 5, &words);
    refused(c::release_all(ctx, &mine[5..]), EBUSY, &words);
    assert_eq!(frames_of(&c::completions(ctx)), [mine[5]]);
    assert_eq!(c::release_all(ctx, &mine[5..]), Ok(3));
    let rest = next(57);
    assert_eq!(c::release_all(ctx, &rest), Ok(57));
    assert_eq!(c::held(ctx), 0);
    c::destroy(ctx).unwrap();
}

#[test]
fn a_batch_of_writes_ends_at_the_first_that_is_refused() {
    use libc::{EAGAIN, EBUSY, EINVAL};
    let _alone = alone();
    let ctx = storage_only();
    assert_eq!(c::submit_all(ctx, &[]), Ok(0));
    let frames: Vec<u32> = (0..100).map(|_| c::alloc(ctx)).collect();
    let entry = |i: usize| c::entry(ctx, frames[i], i as u64, UNIFIED_KEEP);
    // What an entry can have wrong: second of three, and first.
    type Change = fn(&mut unified_write);
    let named = format!("frame {} ", frames[1]);
    let wrong: [(Change, i32, &str); 9] = [
        (|w| w.flags = UNIFIED_MORE, EINVAL, "UNIFIED_MORE"),
        (|w| w.flags = 8, EINVAL, "flags 0x8"),
        (|w| w.reserved = 1, EINVAL, "reserved"),
        (|w| w.len = 0, EINVAL, &named),
        (|w| w.len = 2049, EINVAL, &named),
        (|w| w.data = std::ptr::null(), EINVAL, "data buffers"),
        (|w| w.data = w.data.wrapping_byte_sub(1), EINVAL, &named),
        (|w| w.frame = 200, EINVAL, "frame 200 "),
        (|w| w.frame = u32::MAX, EINVAL, "4294967295"),
    ];
    let mut submitted = 0;
    for (change, errno, words) in wrong {
        let mut list = [entry(0), entry(1), entry(2)];
        change(&mut list[1]);
        cut_short(c::submit_all(ctx, &list), 1, words);
        refused(c::submit_all(ctx, &list[1..]), errno, words);
        submitted += 1;
        assert_eq!(frames_of(&c::completions(ctx)), frames[..1]);
    }
    // A frame that is not the caller's, one twice in one call, and one in flight.
    let free = c::entry(ctx, 200, 1, 0);
    cut_short(
        c::submit_all(ctx, &[entry(0), free]),
        1,
        "frame 200 is free",
    );
    cut_short(
        c::submit_all(ctx, &[entry(1), entry(1), entry(2)]),
        1,
        "in flight",
    );
    refused(
        c::submit_all(ctx, &[entry(0), entry(2)]),
        EBUSY,
        "in flight",
    );
    submitted += 2;
    assert_eq!(frames_of(&c::completions(ctx)), frames[..2]);
    // What was submitted with UNIFIED_MORE before goes along, first.
    let at = i64::from(frames[5]) * 2048;
    let more = UNIFIED_KEEP | UNIFIED_MORE;
    c::transfer(ctx, 1, frames[5], at, 512, 5, more).unwrap();
    assert_eq!(c::completions(ctx).len(), 0);
    assert_eq!(c::submit_all(ctx, &[entry(4)]), Ok(1));
    assert_eq!(frames_of(&c::completions(ctx)), [frames[5], frames[4]]);
    submitted += 2;
    // More than the ring has room for: 64 of 100, then none, then the others.
    let all: Vec<unified_write> = (0..100).map(entry).collect();
    cut_short(c::submit_all(ctx, &all), 64, "SQ ring is full");
    refused(c::submit_all(ctx, &all[64..]), EAGAIN, "SQ ring is full");
    refused(c::release(ctx, frames[63]), EBUSY, "in flight");
    let taken = |count: usize| {
        let mut done = Vec::new();
        while done.len() < count {
            done.extend(c::completions(ctx));
        }
        assert!(done.iter().all(|one| one.status == 0));
        frames_of(&done)
    };
    assert_eq!(taken(64), frames[..64]);
    assert_eq!(c::submit_all(ctx, &all[64..]), Ok(36));
    assert_eq!(taken(36), frames[64..]);
    submitted += 100;
    let stats = c::stats(ctx);
    assert_eq!((stats.submitted, stats.completed), (submitted, submitted));
    assert_eq!((stats.sq_full, stats.errors), (2, 0));
    // Without UNIFIED_KEEP they come back free.
    let consumed = all[..10].iter().map(|write| unified_write {
        flags: UNIFIED_FUA,
        ..*write
    });
    let consumed: Vec<_> = consumed.collect();
    assert_eq!(c::submit_all(ctx, &consumed), Ok(10));
    assert_eq!(taken(10).len(), 10);
    refused(c::submit_all(ctx, &consumed), EINVAL, "is free");
    assert_eq!(c::held(ctx), 90);
    assert_eq!(c::release_all(ctx, &frames[10..]), Ok(90));
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
                pack_below: 0,
                chunk_bytes: 0,
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
