//! Missing capabilities, forbidden system calls, too little memory.

use super::*;

// ---- Privileges and limits ----

/// Opens, and says how that went.
fn try_to_open(told: &str) {
    match Context::open(&part_config(told, "null:")) {
        Ok(context) => say(format_args!(
            "0 {}",
            context.info().network.unwrap().program_id
        )),
        Err(e) => say(format_args!("{} {e}", e.errno())),
    }
}

#[test]
fn each_missing_capability_is_named_or_not_needed() {
    if let Some(told) = told() {
        return try_to_open(&told);
    }
    let name = "each_missing_capability_is_named_or_not_needed";
    if !is_root(name) {
        return;
    }
    let veth = Veth::new();
    // Dropped; the errno, and what the error names.
    let cases: [(&str, i32, &[&str]); 8] = [
        ("-net_admin", libc::EPERM, &["CAP_NET_ADMIN"]),
        ("-net_raw", libc::EPERM, &["CAP_NET_RAW"]),
        // CAP_SYS_ADMIN stands for it.
        ("-bpf", 0, &[]),
        ("-sys_admin", 0, &[]),
        // 512 frames fit into the limit that everybody has.
        ("-ipc_lock", 0, &[]),
        (
            "-bpf,-sys_admin",
            libc::EPERM,
            &["CAP_BPF", "CAP_SYS_ADMIN"],
        ),
        ("-perfmon,-sys_admin", libc::EACCES, &["CAP_PERFMON"]),
        // All that is needed.
        ("-all,+net_admin,+net_raw,+bpf,+perfmon", 0, &[]),
    ];
    for (dropped, errno, names) in cases {
        let before = [
            "setpriv",
            "--bounding-set",
            dropped,
            "--inh-caps=-all",
            "--",
        ];
        let mut part = Part::start(name, &veth.host, &before);
        let said = part.says();
        let (code, message) = said.split_once(' ').unwrap();
        assert_eq!(code, errno.to_string(), "{dropped}: {message}");
        for word in names {
            assert!(message.contains(word), "{dropped}: {message}");
        }
        if errno != 0 {
            assert!(message.contains(&veth.host), "{dropped}: {message}");
        }
        assert!(part.end().success());
        assert!(
            bpf::attached(index_of(&veth)).is_none(),
            "{dropped}: it left its program"
        );
    }
    works_again(&veth);
}

/// Locks what it has and will have, as programs with deadlines do, and says what the region became.
fn open_with_memory_locked() {
    mlockall(MlockAllFlags::MCL_CURRENT | MlockAllFlags::MCL_FUTURE).unwrap();
    let mut config = Config::default();
    config.device.path = "null:".into();
    let context = Context::open(&config).unwrap();
    say(context.info().huge_pages);
}

#[test]
fn locked_memory_is_in_huge_pages_too() {
    if told().is_some() {
        return open_with_memory_locked();
    }
    let name = "locked_memory_is_in_huge_pages_too";
    if !is_root(name) {
        return;
    }
    let switch = fs::read_to_string("/sys/kernel/mm/transparent_hugepage/enabled");
    let given = switch.is_ok_and(|switch| !switch.contains("[never]"));
    let mut part = Part::start(name, "", &[]);
    assert_eq!(part.says(), given.to_string());
    assert!(part.end().success());
}

fn open_without_io_uring(told: &str) {
    use seccompiler::{SeccompAction, SeccompFilter};
    let (ifname, errno) = told.split_once(' ').unwrap();
    let rules = [(libc::SYS_io_uring_setup, vec![])].into_iter().collect();
    let filter = SeccompFilter::new(
        rules,
        SeccompAction::Allow,
        SeccompAction::Errno(errno.parse().unwrap()),
        std::env::consts::ARCH.try_into().unwrap(),
    )
    .unwrap();
    let program: seccompiler::BpfProgram = filter.try_into().unwrap();
    seccompiler::apply_filter_all_threads(&program).unwrap();
    try_to_open(ifname);
}

#[test]
fn a_forbidden_io_uring_is_named() {
    if let Some(told) = told() {
        return open_without_io_uring(&told);
    }
    let name = "a_forbidden_io_uring_is_named";
    if !is_root(name) {
        return;
    }
    let veth = Veth::new();
    for (errno, words) in [
        (libc::EPERM, "io_uring is forbidden here"),
        (
            libc::ENOSYS,
            "this kernel has no io_uring, or seccomp hides it",
        ),
    ] {
        let mut part = Part::start(name, &format!("{} {errno}", veth.host), &[]);
        let said = part.says();
        assert!(said.starts_with(&format!("{errno} ")), "{said}");
        assert!(said.contains(words), "{said}");
        assert!(part.end().success());
        assert!(bpf::attached(index_of(&veth)).is_none());
    }
    works_again(&veth);
}

/// A memory control group; removed again.
struct MemoryGroup(std::path::PathBuf);

impl MemoryGroup {
    fn new(bytes: u64) -> Option<MemoryGroup> {
        for (root, file) in [
            ("/sys/fs/cgroup", "memory.max"),
            ("/sys/fs/cgroup/memory", "memory.limit_in_bytes"),
        ] {
            let dir =
                std::path::Path::new(root).join(format!("unified-test-{}", std::process::id()));
            if fs::create_dir(&dir).is_err() {
                continue;
            }
            let group = MemoryGroup(dir);
            // Under the first version the root is an ordinary directory.
            let real = group.0.join(file).exists();
            if real && fs::write(group.0.join(file), bytes.to_string()).is_ok() {
                return Some(group);
            }
        }
        None
    }
}

impl Drop for MemoryGroup {
    fn drop(&mut self) {
        let _ = fs::remove_dir(&self.0);
    }
}

#[test]
fn a_small_memory_group_is_refused_in_words_and_not_with_a_kill() {
    if let Some(told) = told() {
        let (ifname, group) = told.split_once(' ').unwrap();
        fs::write(
            format!("{group}/cgroup.procs"),
            std::process::id().to_string(),
        )
        .unwrap();
        let config = Config {
            frame_count: 65536,
            ..part_config(ifname, "null:")
        };
        let error = Context::open(&config).err().expect("128 MiB do not fit");
        say(format_args!("{} {error}", error.errno()));
        // What fits works.
        return try_to_open(ifname);
    }
    let name = "a_small_memory_group_is_refused_in_words_and_not_with_a_kill";
    if !is_root(name) {
        return;
    }
    let Some(group) = MemoryGroup::new(64 << 20) else {
        return common::skip(
            name,
            "this host has no memory control groups that can be made",
        );
    };
    let veth = Veth::new();
    let mut part = Part::start(name, &format!("{} {}", veth.host, group.0.display()), &[]);
    let said = part.says();
    assert!(said.starts_with(&format!("{} ", libc::ENOMEM)), "{said}");
    for words in ["bytes are needed", group.0.to_str().unwrap(), "67108864"] {
        assert!(said.contains(words), "{said}");
    }
    let said = part.says();
    assert!(said.starts_with("0 "), "{said}");
    assert!(part.end().success());
    assert!(bpf::attached(index_of(&veth)).is_none());
    drop(part);
    let dir = group.0.clone();
    drop(group);
    assert!(!dir.exists());
}
