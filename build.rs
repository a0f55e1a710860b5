//! Compiles the XDP program and puts it where `src/net/xdp.rs` embeds it.

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;

fn main() {
    println!("cargo:rerun-if-changed=bpf");
    println!("cargo:rerun-if-env-changed=CLANG");
    // Programs record this name, so that a later minor version still serves them.
    let major = env::var("CARGO_PKG_VERSION_MAJOR").expect("cargo sets the version");
    println!("cargo:rustc-cdylib-link-arg=-Wl,-soname,libunified.so.{major}");
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR"));
    // Without the metadata record: for kernels on which an extension of libxdp's dispatcher may not change packet
    // data. With a look for merged datagrams: where packets come in socket buffers, and the kernel tells.
    let cache_bytes = format!("-DUNIFIED_CACHE_BYTES={}", cache_bytes());
    let merged = ["-DUNIFIED_MERGED", &cache_bytes];
    let plain = ["-DUNIFIED_NO_METADATA"];
    for (name, defines) in [
        ("unified_xdp", &[][..]),
        ("unified_xdp_plain", &plain),
        ("unified_xdp_merged", &merged),
        ("unified_xdp_plain_merged", &[&plain[..], &merged].concat()),
    ] {
        compile(&out.join(format!("{name}.bpf.o")), defines);
    }
}

/// SMP_CACHE_BYTES of the kernels of the target: struct skb_shared_info is aligned to it.
fn cache_bytes() -> u32 {
    match env::var("CARGO_CFG_TARGET_ARCH").as_deref() {
        Ok("powerpc64") => 128,
        Ok("s390x") => 256,
        _ => 64,
    }
}

fn compile(out: &Path, defines: &[&str]) {
    let clang = env::var("CLANG").unwrap_or_else(|_| "clang".into());
    let mut command = Command::new(&clang);
    // -g: libbpf wants BTF for the maps.
    command.args([
        "-O2", "-g", "-Wall", "-Werror", "-target", "bpf", "-mcpu=v3",
    ]);
    // asm/types.h lies in the architecture's own include directory on Debian.
    let arch = env::var("CARGO_CFG_TARGET_ARCH").expect("cargo sets the target");
    command.arg(format!("-I/usr/include/{arch}-linux-gnu"));
    // The headers of the libbpf that is linked in. libxdp-sys hands on none of its own, so
    // xdp/xdp_helpers.h is the installed one (libxdp-dev): a macro for the run configuration.
    let bpf = PathBuf::from(
        env::var_os("DEP_BPF_INCLUDE").expect("libbpf-sys says where its headers are"),
    );
    for dir in [bpf.clone(), bpf.join("..")] {
        command.arg("-I").arg(dir);
    }
    command
        .args(defines)
        .args(["-c", "bpf/unified_xdp.bpf.c", "-o"])
        .arg(out);
    match command.status() {
        Ok(status) if status.success() => {}
        Ok(status) => panic!(
            "{clang} could not compile bpf/unified_xdp.bpf.c ({status}): \
             see what `make -f Makefile.full-stack check-deps` misses"
        ),
        Err(e) => panic!("cannot run {clang} ({e}): install clang, or name it in $CLANG"),
    }
}
