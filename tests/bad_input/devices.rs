//! Several devices, described wrongly: each mistake is named, with the number or the path of the device, and nothing is left.

use super::*;

const ITEM: u64 = size_of::<unified_device>() as u64;

/// A device as a later version of the header may have it.
#[repr(C)]
#[derive(Clone, Copy)]
struct Item {
    known: unified_device,
    more: [u64; 2],
}

/// Devices as a program describes them, one behind the other, each of them `size` bytes long.
struct Described {
    paths: Vec<CString>,
    items: Vec<Item>,
    size: u64,
    count: u32,
}

impl Described {
    fn new(paths: &[&str]) -> Described {
        let paths: Vec<CString> = paths.iter().map(|p| CString::new(*p).unwrap()).collect();
        let item = |path: &CString| Item {
            known: unified_device {
                size: ITEM,
                path: path.as_ptr(),
                file_size: 0,
                block_size: 0,
                flags: 0,
                fd: 0,
                reserved: 0,
                spill: std::ptr::null(),
            },
            more: [0; 2],
        };
        Described {
            items: paths.iter().map(item).collect(),
            count: paths.len() as u32,
            size: ITEM,
            paths,
        }
    }

    /// Creates a context with them, and without an interface.
    fn create(&self, change: impl Fn(&mut unified_config)) -> Result<c::Handle, Refusal> {
        self.create_on(None, change)
    }

    fn create_on(
        &self,
        ifname: Option<&str>,
        change: impl Fn(&mut unified_config),
    ) -> Result<c::Handle, Refusal> {
        let mut words = Vec::new();
        for item in &self.items {
            let known = &item.known;
            let all = [
                known.size,
                known.path as u64,
                known.file_size,
                u64::from(known.block_size) | u64::from(known.flags) << 32,
                u64::from(known.fd as u32) | u64::from(known.reserved) << 32,
                known.spill as u64,
                item.more[0],
                item.more[1],
            ];
            words.extend_from_slice(&all[..(self.size as usize).div_ceil(8).min(8)]);
        }
        // What is behind the last one.
        words.extend([0; 16]);
        let mut wish = Wish::new("", "");
        wish.ifname = ifname.map(|name| CString::new(name).unwrap());
        wish.device = None;
        wish.c.known.devices = words.as_ptr().cast();
        wish.c.known.device_count = self.count;
        change(&mut wish.c.known);
        wish.create()
    }
}

fn refused(described: &Described, errno: i32, words: &[&str]) {
    let before = holdings();
    let result = described.create(|_| {});
    let Err(Refusal(got, message)) = result else {
        panic!("created: {words:?}");
    };
    assert_eq!(got, errno, "{message}");
    for word in words {
        assert!(message.contains(word), "{word}: {message}");
    }
    assert_unchanged(&before, &message);
}

#[test]
fn arrays_of_devices_that_are_none_are_refused() {
    use libc::{E2BIG, EBADF, EINVAL};
    let _alone = alone();
    let before = holdings();
    let right = Described::new(&["null:", "null:4096", "null:"]);
    let ctx = right.create(|_| {}).unwrap();
    assert_eq!(c::info(ctx).devices, 3);
    c::destroy(ctx).unwrap();
    assert_unchanged(&before, "right ones");
    for count in [1, 2, 16] {
        let nowhere = right.create(|c| {
            c.devices = std::ptr::null();
            c.device_count = count;
        });
        let Refusal(errno, message) = nowhere.unwrap_err();
        assert!(
            errno == EINVAL && message.contains("`devices` is NULL"),
            "{message}"
        );
        let crooked = right.create(|c| {
            c.devices = c.devices.wrapping_byte_add(4);
            c.device_count = count;
        });
        let Refusal(errno, message) = crooked.unwrap_err();
        assert!(
            errno == EINVAL && message.contains("not aligned"),
            "{message}"
        );
    }
    // More than there can be are not even looked at.
    for count in [17, 1000, u32::MAX] {
        let Refusal(errno, message) = right.create(|c| c.device_count = count).unwrap_err();
        assert_eq!(errno, EINVAL);
        assert!(message.contains(&format!("{count} devices")), "{message}");
    }
    type Change = fn(&mut Described);
    let wrong: [(Change, i32, &[&str]); 17] = [
        (
            |d| d.items[0].known.size = 0,
            EINVAL,
            &["`devices`", "size"],
        ),
        (
            |d| d.items[1].known.size = 0,
            EINVAL,
            &["element 1", "size 0"],
        ),
        (
            |d| d.items[2].known.size += 8,
            EINVAL,
            &["element 2", "size 56"],
        ),
        (
            |d| (d.count, d.items[0].known.size) = (1, 7),
            EINVAL,
            &["holds 7"],
        ),
        (
            |d| (d.count, d.items[0].known.size) = (1, 65537),
            EINVAL,
            &["holds 65537"],
        ),
        (
            |d| d.items[0].known.size = ITEM + 4,
            E2BIG,
            &["`devices`", "does not know"],
        ),
        (
            |d| d.items[0].known.size = u64::MAX,
            EINVAL,
            &["holds 18446744073709551615"],
        ),
        // A struct that ends before its path.
        (
            |d| (d.count, d.items[0].known.size) = (1, 8),
            EINVAL,
            &["no device is given"],
        ),
        (
            |d| {
                d.size = ITEM + 8;
                d.items.iter_mut().for_each(|i| i.known.size = ITEM + 8);
                d.items[1].more[0] = 1;
            },
            E2BIG,
            &["`devices`", "does not know"],
        ),
        (
            |d| d.items[1].known.path = std::ptr::null(),
            EINVAL,
            &["device 1 has no path"],
        ),
        (
            |d| d.items[2].known.flags = 1 << 20,
            EINVAL,
            &["device 2", "0x100000"],
        ),
        (
            |d| d.items[2].known.reserved = 5,
            EINVAL,
            &["device 2", "`reserved` is 5"],
        ),
        (
            |d| d.items[1].known.fd = 7,
            EINVAL,
            &["device 1 7 is set without its flag"],
        ),
        (
            |d| (d.items[1].known.fd, d.items[1].known.flags) = (-1, UNIFIED_DEVICE_FD),
            EBADF,
            &["device 1 -1 is not a descriptor"],
        ),
        (
            |d| (d.items[1].known.fd, d.items[1].known.flags) = (999_999, UNIFIED_DEVICE_FD),
            EBADF,
            &["999999"],
        ),
        (
            |d| {
                d.paths.push(CString::new([0xff, 0xfe]).unwrap());
                d.items[2].known.path = d.paths[3].as_ptr();
            },
            EINVAL,
            &["the path of device 2", "UTF-8"],
        ),
        (
            |d| d.items[1].known.block_size = 100,
            EINVAL,
            &["block size 100"],
        ),
    ];
    for (change, errno, words) in wrong {
        let mut described = Described::new(&["null:", "null:4096", "null:"]);
        change(&mut described);
        refused(&described, errno, words);
    }
    // A later version's devices, whose new fields are zero.
    let mut later = Described::new(&["null:", "null:"]);
    later.size = ITEM + 16;
    later
        .items
        .iter_mut()
        .for_each(|i| i.known.size = ITEM + 16);
    c::destroy(later.create(|_| {}).unwrap()).unwrap();
    assert_unchanged(&before, "later ones");
}

#[test]
fn devices_and_a_device_exclude_each_other() {
    let _alone = alone();
    let before = holdings();
    let right = Described::new(&["null:", "null:"]);
    type Change = fn(&mut unified_config);
    let both: [Change; 5] = [
        |c| c.device = c"null:".as_ptr(),
        |c| c.file_size = 1 << 20,
        |c| c.block_size = 512,
        |c| c.spill = c"/dev/shm/unified-no-spill".as_ptr(),
        |c| (c.device_fd, c.flags) = (0, UNIFIED_DEVICE_FD),
    ];
    for (number, change) in both.into_iter().enumerate() {
        // `Wish` sets the device itself.
        let result = match number {
            0 => {
                let mut wish = Wish::new("", "null:");
                wish.ifname = None;
                wish.c.known.devices = std::ptr::from_ref(&right.items[0].known);
                wish.c.known.device_count = 1;
                wish.create()
            }
            _ => right.create(change),
        };
        let Refusal(errno, message) = result.unwrap_err();
        assert_eq!(errno, libc::EINVAL, "{message}");
        assert!(message.contains("`devices` is given"), "{message}");
        assert_unchanged(&before, &message);
    }
    assert!(!std::path::Path::new("/dev/shm/unified-no-spill").exists());
}

#[test]
fn the_same_device_by_another_name_and_one_that_is_missing() {
    let _alone = alone();
    let files = [0, 1].map(|_| Scratch::new("/dev/shm", "misdescribed"));
    for file in &files {
        fs::write(&file.0, vec![5; 1 << 20]).unwrap();
    }
    let (soft, hard) = (
        Scratch::new("/dev/shm", "misdescribed-soft"),
        Scratch::new("/dev/shm", "misdescribed-hard"),
    );
    std::os::unix::fs::symlink(&files[0].0, &soft.0).unwrap();
    fs::hard_link(&files[0].0, &hard.0).unwrap();
    for again in [files[0].path(), soft.path(), hard.path()] {
        let twice = Described::new(&[files[0].path(), files[1].path(), again]);
        let words = ["device 2", again, "the same as device 0", files[0].path()];
        refused(&twice, libc::EINVAL, &words);
    }
    let gone = "/dev/shm/unified-no-such-device";
    let made = Scratch::new(env!("CARGO_TARGET_TMPDIR"), "misdescribed-made");
    let mut missing = Described::new(&[made.path(), gone, files[1].path()]);
    missing.items[0].known.file_size = 1 << 20;
    refused(&missing, libc::ENOENT, &[gone]);
    assert!(!made.0.exists(), "what was made is removed again");
    for file in &files {
        assert!(fs::read(&file.0).unwrap().iter().all(|byte| *byte == 5));
    }
}

#[test]
fn one_device_without_room_for_a_log_refuses_all() {
    let _alone = alone();
    if !is_root("one_device_without_room_for_a_log_refuses_all") {
        return;
    }
    let veth = Veth::new();
    let [long, short] = [8 << 20, 80 << 10].map(|bytes: usize| {
        let file = Scratch::new(env!("CARGO_TARGET_TMPDIR"), "misdescribed-log");
        fs::write(&file.0, vec![0; bytes]).unwrap();
        file
    });
    let described = Described::new(&[long.path(), short.path()]);
    let ctx = described.create_on(Some(&veth.host), |_| {}).unwrap();
    let before = holdings();
    let error = c::start_log(ctx).unwrap_err();
    assert_eq!(error.0, libc::EINVAL);
    for words in ["room for", short.path()] {
        assert!(error.1.contains(words), "{error:?}");
    }
    assert_unchanged(&before, &error.1);
    assert_eq!(c::pipeline_stop(ctx).unwrap_err().0, libc::ENOENT);
    c::destroy(ctx).unwrap();
    for file in [long, short] {
        let bytes = fs::read(&file.0).unwrap();
        assert!(bytes.iter().all(|byte| *byte == 0), "written to");
    }
}

#[test]
fn the_info_of_a_device_is_asked_for_in_wrong_ways() {
    let _alone = alone();
    let described = Described::new(&["null:4096", "null:8192"]);
    let ctx = described.create(|c| c.queues = 2).unwrap();
    let lane = c::lane(ctx, 1).unwrap();
    let before = holdings();
    let refused = |handle, device, size, errno, words: &str| {
        let (result, bytes) = c::device_info(handle, device, size);
        let Refusal(got, message) = result.unwrap_err();
        assert_eq!(got, errno, "{message}");
        assert!(message.contains(words), "{message}");
        assert!(bytes[1..].iter().all(|word| *word == u64::MAX), "untouched");
    };
    let whole = size_of::<unified_device_info>() as u64;
    for handle in [ctx, lane] {
        for device in [2, 16, 256, u32::MAX] {
            let words = format!("device {device} does not exist");
            refused(handle, device, whole, libc::EINVAL, &words);
        }
        for size in [0, 7, 65537, u64::MAX] {
            let words = format!("holds {size}");
            refused(handle, 1, size, libc::EINVAL, &words);
        }
        // An older program's struct: as much as it has, and no byte more.
        for size in [8, 16, 32, whole, whole + 64] {
            let (result, bytes) = c::device_info(handle, 1, size);
            result.unwrap();
            let known = size.min(whole);
            assert_eq!(bytes[0], known);
            let rest = known as usize / 8;
            assert!(bytes[rest..].iter().all(|word| *word == u64::MAX));
            if known >= 32 {
                // Blocks of 512 bytes.
                assert_eq!(bytes[3], 16);
            }
        }
        let error = c::device_info_nowhere(handle).unwrap_err();
        assert!(error.1.contains("NULL"), "{error:?}");
    }
    assert_eq!(c::lane(ctx, 2).unwrap_err().0, libc::EINVAL);
    assert_eq!(c::lane(lane, 0).unwrap_err().0, libc::EINVAL);
    refused(c::NULL, 0, whole, libc::EINVAL, "`ctx` is NULL");
    assert_unchanged(&before, "asking");
    c::destroy(ctx).unwrap();
    // With the context, its lanes have ended.
    for handle in [ctx, lane] {
        refused(handle, 0, whole, libc::EBADF, "destroyed");
    }
}
