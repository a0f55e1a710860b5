//! Unchanged programs build and run, whichever way they are linked.

use super::*;

fn install(shop: &Workshop) -> PathBuf {
    let prefix = shop.dir.join("prefix");
    shop.make("uapi-install", &[("PREFIX", prefix.display().to_string())]);
    for name in NAMES {
        fs::copy(shop.libdir().join(name), prefix.join("lib").join(name)).unwrap();
    }
    prefix
}

#[test]
fn an_installed_tree_is_all_that_a_build_needs() {
    let shop = Workshop::new("installed");
    let prefix = install(&shop);
    let program = shop.dir.join("program");
    let flags = run(Command::new("pkg-config")
        .args(["--cflags", "--libs", "unified-uapi"])
        .env("PKG_CONFIG_PATH", prefix.join("lib/pkgconfig")));
    let flags = check(&flags, "pkg-config");
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/capi/uapi-registration.c");
    for headers in ["-DRELATIVE_HEADERS", "-DOWN_NVME_COMMAND"] {
        let output = run(Command::new("gcc")
            .current_dir(&shop.dir)
            .args(["-Wall", "-Werror", headers, "-o"])
            .arg(&program)
            .arg(&source)
            .args(flags.split_whitespace())
            .args(["-lxdp", "-lbpf", "-lelf", "-lz", "-pthread"]));
        check(&output, "gcc");
        let file = shop.file("device", 1 << 20);
        mode(&program, "roundtrip", file.to_str().unwrap(), 0);
    }
    assert!(prefix.join("lib/libunified-uapi-preload.so").exists());
    assert!(prefix.join("include/unified_uapi.h").exists());
}

#[test]
fn every_build_of_an_unchanged_program_runs() {
    let shop = Workshop::new("builds");
    let file = shop.file("device", 4 << 20);
    let file = file.to_str().unwrap();
    for (cc, optimization) in BUILDS {
        let program = shop.build("uapi-registration", cc, optimization);
        for (name, logged) in [
            // Two of its writes are where no direct I/O can take them.
            ("roundtrip", " 2 copied (3072 bytes)"),
            ("identify", " 1 commands, 0 of them failed"),
            ("errors", "registering a region"),
            ("clamp", " 1 commands, 0 of them failed"),
            ("status", " of them failed"),
            ("abrupt", " 256 commands, 0 of them failed"),
            ("wild", "SQ ring: its indices are"),
            ("wild", "CQ ring: its indices are"),
            ("careless", "closed the ring without unregistering"),
            ("careless", "unmapped the region without unregistering"),
            ("fork", " 2 commands, 0 of them failed"),
            ("several", " 50 commands, 0 of them failed"),
            ("variants", " 0 commands, 0 of them failed"),
        ] {
            let text = mode(&program, name, file, 0);
            assert!(text.contains(logged), "{name}: {text}");
        }
        mode(&program, "identify", "null:", 0);
        assert_eq!(fs::metadata(file).unwrap().len(), 4 << 20);
    }
}

#[test]
fn headers_work_by_every_path_and_beside_every_definition() {
    let shop = Workshop::new("headers");
    let file = shop.file("device", 1 << 20);
    for (cc, _) in [BUILDS[0], BUILDS[2]] {
        for flags in [
            "-DRELATIVE_HEADERS",
            "-DOWN_NVME_COMMAND",
            "-DSYSTEM_NVME_COMMAND",
            "-DRELATIVE_HEADERS -DOWN_NVME_COMMAND",
            "-DRELATIVE_HEADERS -DSYSTEM_NVME_COMMAND -std=gnu99",
        ] {
            let program = shop.build("uapi-registration", cc, flags);
            mode(&program, "roundtrip", file.to_str().unwrap(), 0);
        }
    }
}

#[test]
fn programs_built_already_run_with_the_preloaded_object() {
    let shop = Workshop::new("preload");
    let file = shop.file("device", 1 << 20);
    let program = build_plain(&shop, "uapi-registration");
    let start = |preloaded: bool, mode: &str| {
        let mut command = Command::new("timeout");
        command.arg("60");
        if preloaded {
            command
                .arg("env")
                .arg(format!("LD_PRELOAD={}", preload(&shop).display()));
        }
        run(command.arg(&program).args([mode, file.to_str().unwrap()]))
    };
    assert!(
        !start(false, "roundtrip").status.success(),
        "a stock kernel does not serve it"
    );
    for mode in ["roundtrip", "errors", "clamp", "variants", "fork", "abrupt"] {
        check(&start(true, mode), mode);
    }
    if is_root("programs_built_already_run_with_the_preloaded_object (rlimit)") {
        check(&start(true, "rlimit"), "rlimit");
    }
}
