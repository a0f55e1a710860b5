//! Devices, formats, huge pages and rights.

use super::*;

#[test]
fn block_devices_and_their_formats() {
    if !is_root("block_devices_and_their_formats") {
        return;
    }
    let shop = Workshop::new("block");
    let file = shop.file("backing", 4 << 20);
    let program = shop.build("uapi-registration", "gcc", "-O2");
    {
        let device = Loop::new(&file, 512);
        for name in [
            "roundtrip",
            "identify",
            "status",
            "abrupt",
            "errors",
            "careless",
        ] {
            mode(&program, name, &device.0, 0);
        }
        mode(&program, "fill", &device.0, (4 << 20) / 512);
    }
    let device = Loop::new(&file, 4096);
    mode(&program, "format", &device.0, 0);
}

/// A file system on a device of 4096 byte blocks, where direct I/O wants that much.
struct Mounted {
    dir: PathBuf,
    _device: Loop,
}

impl Mounted {
    fn new(shop: &Workshop) -> Mounted {
        let device = Loop::new(&shop.file("file-system", 32 << 20), 4096);
        let dir = shop.dir.join("mounted");
        fs::create_dir(&dir).unwrap();
        check(
            &run(Command::new("mkfs.ext4").args(["-q", &device.0])),
            "mkfs",
        );
        check(
            &run(Command::new("mount").arg(&device.0).arg(&dir)),
            "mount",
        );
        Mounted {
            dir,
            _device: device,
        }
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(&self.dir).status();
    }
}

#[test]
fn a_file_has_no_format_that_forbids_512_bytes() {
    if !is_root("a_file_has_no_format_that_forbids_512_bytes") {
        return;
    }
    let shop = Workshop::new("small");
    let program = shop.build("uapi-registration", "gcc", "-O2");
    let mounted = Mounted::new(&shop);
    let file = mounted.dir.join("device");
    fs::write(&file, vec![0; 1000 * 512]).unwrap();
    let text = mode(&program, "fill", file.to_str().unwrap(), 1000);
    assert_eq!(number_behind(&text, "stored"), 333.0);
    assert_eq!(fs::metadata(&file).unwrap().len(), 1000 * 512);
    mode(&program, "roundtrip", file.to_str().unwrap(), 0);
}

/// A few huge pages for the time of a test.
struct HugePages(u64);

impl HugePages {
    const PATH: &str = "/proc/sys/vm/nr_hugepages";

    fn more(count: u64) -> HugePages {
        let before = fs::read_to_string(HugePages::PATH).unwrap();
        let before: u64 = before.trim().parse().unwrap();
        fs::write(HugePages::PATH, (before + count).to_string()).unwrap();
        HugePages(before)
    }
}

impl Drop for HugePages {
    fn drop(&mut self) {
        let _ = fs::write(HugePages::PATH, self.0.to_string());
    }
}

/// With the right to map them twice, and without.
#[test]
fn a_region_of_huge_pages() {
    if !is_root("a_region_of_huge_pages") {
        return;
    }
    let (_quiet, shop) = Workshop::quiet("huge");
    let program = shop.build("uapi-registration", "gcc", "-O2");
    let file = shop.file("device", 1 << 20);
    let file = file.to_str().unwrap();
    let _pages = HugePages::more(8);
    mode(&program, "huge", file, 0);
    let dropped = ["--bounding-set", "-sys_admin,-checkpoint_restore"];
    let output = run(Command::new("setpriv")
        .args(dropped)
        .arg(&program)
        .args(["huge", file])
        .env("UNIFIED_LOG", "warn"));
    check(&output, "huge, with fewer rights");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains("CAP_CHECKPOINT_RESTORE"), "{said}");

    // The UMEM in huge pages too.
    let program = shop.build("uapi-full-stack", "gcc", "-O2");
    let file = shop.file("device", 8 << 20);
    let file = file.to_str().unwrap();
    full_stack(
        |interface| {
            let stack = Stack::start(Command::new(&program).args([interface, file, "0"]));
            stack.until("Huge pages: yes");
            stack
        },
        file,
    );
}

#[test]
fn rights_and_limits() {
    if !is_root("rights_and_limits") {
        return;
    }
    let shop = Workshop::new("rights");
    let file = shop.file("device", 1 << 20);
    fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).unwrap();
    let program = shop.build("uapi-registration", "gcc", "-O2");
    mode(&program, "unprivileged", file.to_str().unwrap(), 0);
    mode(&program, "rlimit", "null:", 0);
}
