//! include/unified.h is what cbindgen makes of src/capi. UNIFIED_BLESS=1 writes it anew.

use std::{env, fs, path::Path};

#[test]
fn the_checked_in_header_is_current() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let config = cbindgen::Config::from_file(root.join("cbindgen.toml")).unwrap();
    let mut made = Vec::new();
    let mut builder = cbindgen::Builder::new().with_config(config);
    for file in [
        "types",
        "misc",
        "context",
        "device",
        "io",
        "submission",
        "buffer",
        "packet",
        "pipeline",
        "log_reader",
    ] {
        builder = builder.with_src(root.join(format!("src/capi/{file}.rs")));
    }
    builder.generate().unwrap().write(&mut made);
    // The Rust side's "# Safety" sections say nothing that the C side's text does not.
    let text = String::from_utf8(made).unwrap();
    let mut lines: Vec<&str> = Vec::new();
    let mut skipping = false;
    for line in text.lines() {
        if line.trim() == "* # Safety" {
            skipping = true;
            while lines.last().is_some_and(|l| l.trim() == "*") {
                lines.pop();
            }
        }
        skipping &= !line.trim_start().starts_with("*/");
        if !skipping {
            lines.push(line);
        }
    }
    let made = lines.join("\n") + "\n";
    let path = root.join("include/unified.h");
    if env::var_os("UNIFIED_BLESS").is_some() {
        fs::write(&path, &made).unwrap();
    }
    let stands = fs::read_to_string(&path).unwrap_or_default();
    assert!(
        stands == made,
        "include/unified.h is out of date: run UNIFIED_BLESS=1 cargo test --test header"
    );
    assert!(made.contains("unified_submit_write") && made.contains("struct unified_stats"));
}
