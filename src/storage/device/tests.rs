//! Opening devices that need no privileges.

#![forbid(unsafe_code)]

use super::passthrough::segmented;
use super::*;

fn config(path: &str) -> DeviceConfig {
    DeviceConfig {
        path: path.into(),
        ..DeviceConfig::default()
    }
}

#[test]
fn what_is_not_there_or_not_a_device_is_named() {
    for (path, errno) in [
        ("/nonexistent/disk", libc::ENOENT),
        ("/dev/null", libc::EINVAL),
        ("/tmp", libc::EINVAL),
        ("null:many", libc::EINVAL),
        ("null:511", libc::EINVAL),
    ] {
        let error = Device::open(&config(path)).unwrap_err();
        assert_eq!(error.errno(), errno, "{path}: {error}");
        assert!(error.message().contains(path), "{error}");
    }
}

#[test]
fn a_file_is_made_locked_and_measured() {
    let path = std::env::temp_dir().join(format!("unified-device-{}", std::process::id()));
    let config = DeviceConfig {
        file_size: 1 << 20,
        ..config(path.to_str().unwrap())
    };
    drop(Device::open(&config).unwrap());
    assert!(!path.exists(), "made, and not kept");
    let mut device = Device::open(&config).unwrap();
    device.made.take().unwrap().keep();
    assert_eq!(device.kind, Kind::File);
    assert_eq!(
        device.limits.blocks * u64::from(device.limits.block_size),
        1 << 20
    );
    let error = Device::open(&config).unwrap_err();
    assert_eq!(error.errno(), libc::EBUSY, "{error}");
    drop(device);
    assert!(Device::open(&config).unwrap().made.is_none());
    fs::remove_file(path).unwrap();
}

#[test]
fn a_transfer_fits_into_its_segments_wherever_it_begins() {
    let Device { limits, .. } = open_null(&config("null:"), "").unwrap();
    let most = |max_segments, block_size| {
        segmented(&Limits {
            max_segments,
            block_size,
            ..limits
        })
    };
    assert_eq!(most(128, 512), 127 * 4096);
    assert_eq!(most(2, 4096), 4096);
    // Three pages are no multiple of 8 KiB.
    assert_eq!(most(4, 8192), 8192);
    assert_eq!(most(0, 512), 4096);
    assert_eq!(most(1, 65536), 65536);
    assert_eq!(most(u32::MAX, 512), u32::MAX - u32::MAX % 512);
}

#[test]
fn an_empty_file_without_a_size_is_refused() {
    let path = std::env::temp_dir().join(format!("unified-empty-{}", std::process::id()));
    fs::write(&path, b"").unwrap();
    let error = Device::open(&config(path.to_str().unwrap())).unwrap_err();
    fs::remove_file(&path).unwrap();
    assert_eq!(error.errno(), libc::EINVAL);
}

/// Somebody may have replaced a file between its creation and its removal.
#[test]
fn what_took_a_made_files_place_is_not_removed() {
    let path = std::env::temp_dir().join(format!("unified-place-{}", std::process::id()));
    let other = path.with_extension("other");
    let mut options = OpenOptions::new();
    options.read(true).write(true);
    let (_file, made) = open_or_make(&options, &path).unwrap();
    fs::write(&other, b"another's").unwrap();
    fs::rename(&other, &path).unwrap();
    drop(made.unwrap());
    assert_eq!(fs::read(&path).unwrap(), b"another's");
    let (_file, made) = open_or_make(&options, &path).unwrap();
    assert!(made.is_none());
    fs::remove_file(&path).unwrap();
    let (_file, made) = open_or_make(&options, &path).unwrap();
    drop(made.unwrap());
    assert!(!path.exists());
}
