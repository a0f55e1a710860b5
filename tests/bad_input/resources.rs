//! Too few descriptors, too little locked memory: nothing is left, and nothing leaks.

use super::*;

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
        .args([name, "--nocapture"])
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
