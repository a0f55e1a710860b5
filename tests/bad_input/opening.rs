//! Configurations that cannot work are refused in words, and nothing is left of them.

use super::*;

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
