//! Compiles the XDP program and puts it where `src/net/xdp.rs` embeds it.

use std::env;
use std::path::PathBuf;
use std::process::Command;

fn main() {
    println!("cargo:rerun-if-changed=bpf");
    println!("cargo:rerun-if-env-changed=CLANG");
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR"))
        .join("unified_xdp.bpf.o");
    let clang = env::var("CLANG").unwrap_or_else(|_| "clang".into());
    let mut command = Command::new(&clang);
    // -g: libbpf wants BTF for the maps.
    command.args([
        "-O2", "-g", "-Wall", "-Werror", "-target", "bpf", "-mcpu=v3",
    ]);
    // asm/types.h lies in the architecture's own include directory on Debian.
    let arch = env::var("CARGO_CFG_TARGET_ARCH").expect("cargo sets the target");
    command.arg(format!("-I/usr/include/{arch}-linux-gnu"));
    // The headers of the libbpf and libxdp that are linked in, not of those that may be installed.
    let bpf = PathBuf::from(
        env::var_os("DEP_BPF_INCLUDE").expect("libbpf-sys says where its headers are"),
    );
    let xdp = PathBuf::from(
        env::var_os("DEP_XDP_INCLUDE").expect("libxdp-sys says where its headers are"),
    );
    for dir in [bpf.clone(), bpf.join(".."), xdp.clone(), xdp.join("..")] {
        command.arg("-I").arg(dir);
    }
    command
        .args(["-c", "bpf/unified_xdp.bpf.c", "-o"])
        .arg(&out);
    match command.status() {
        Ok(status) if status.success() => {}
        Ok(status) => panic!("{clang} could not compile bpf/unified_xdp.bpf.c ({status})"),
        Err(e) => panic!("cannot run {clang} ({e}): install clang, or name it in $CLANG"),
    }
}
