//! libblkid, if the system has it. mkfs, mount and udev use it to recognize what is on a device.
//!
//! Loaded when it is needed: nearly every system has it, but a program must start without it, and build without its
//! headers. Unloaded again, so that nothing is left when this library is unloaded. Its functions and constants are
//! those of blkid.h since util-linux 2.30.

use std::ffi::{CStr, c_char, c_int, c_uint, c_void};
use std::fs::File;
use std::os::fd::AsRawFd;
use std::ptr;

/// A recognized format: its name, and the offset of its magic bytes, if known.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    pub name: String,
    pub at: Option<u64>,
}

type Probe = *mut c_void;

const SUBLKS_TYPE: c_int = 1 << 5;
const SUBLKS_MAGIC: c_int = 1 << 9;
const PARTS_MAGIC: c_int = 1 << 3;
/// Most formats on one device.
const MOST: usize = 32;

type New = unsafe extern "C" fn() -> Probe;
type Free = unsafe extern "C" fn(Probe);
type SetDevice = unsafe extern "C" fn(Probe, c_int, libc::loff_t, libc::loff_t) -> c_int;
type SetSector = unsafe extern "C" fn(Probe, c_uint) -> c_int;
type Set = unsafe extern "C" fn(Probe, c_int) -> c_int;
type Next = unsafe extern "C" fn(Probe) -> c_int;
type Value = unsafe extern "C" fn(Probe, *const c_char, *mut *const c_char, *mut usize) -> c_int;

#[derive(Debug)]
struct Library {
    _handle: Handle,
    new: New,
    free: Free,
    set_device: SetDevice,
    set_sector: SetSector,
    superblocks: Set,
    superblock_flags: Set,
    partitions: Set,
    partition_flags: Set,
    probe: Next,
    value: Value,
}

/// From dlopen. Open until this is dropped.
#[derive(Debug)]
struct Handle(*mut c_void);

impl Drop for Handle {
    fn drop(&mut self) {
        // SAFETY: opened by `load`, and closed once. The functions are in the same struct, and go with it.
        unsafe { libc::dlclose(self.0) };
    }
}

/// A function of the library, with its type in blkid.h.
macro_rules! symbol {
    ($handle:expr, $name:literal, $type:ty) => {{
        // SAFETY: the handle is open, and the name ends in a zero byte.
        let address = unsafe { libc::dlsym($handle.0, $name.as_ptr()) };
        if address.is_null() {
            return None;
        }
        // SAFETY: the function of this name in libblkid.so.1 has this type by blkid.h, and keeps it: the library's
        // ABI version is part of its name.
        unsafe { std::mem::transmute::<*mut c_void, $type>(address) }
    }};
}

fn load() -> Option<Library> {
    // SAFETY: the name ends in a zero byte. The library has no constructor that does anything.
    let handle =
        unsafe { libc::dlopen(c"libblkid.so.1".as_ptr(), libc::RTLD_NOW | libc::RTLD_LOCAL) };
    if handle.is_null() {
        return None;
    }
    let handle = Handle(handle);
    Some(Library {
        new: symbol!(handle, c"blkid_new_probe", New),
        free: symbol!(handle, c"blkid_free_probe", Free),
        set_device: symbol!(handle, c"blkid_probe_set_device", SetDevice),
        set_sector: symbol!(handle, c"blkid_probe_set_sectorsize", SetSector),
        superblocks: symbol!(handle, c"blkid_probe_enable_superblocks", Set),
        superblock_flags: symbol!(handle, c"blkid_probe_set_superblocks_flags", Set),
        partitions: symbol!(handle, c"blkid_probe_enable_partitions", Set),
        partition_flags: symbol!(handle, c"blkid_probe_set_partitions_flags", Set),
        probe: symbol!(handle, c"blkid_do_probe", Next),
        value: symbol!(handle, c"blkid_probe_lookup_value", Value),
        _handle: handle,
    })
}

/// Everything that libblkid recognizes in a file with blocks of `sector` bytes. `None` if there is no libblkid, or if
/// it refused the file.
pub fn find(image: &File, sector: u32) -> Option<Vec<Found>> {
    let library = load()?;
    // SAFETY: takes nothing; the result is a new probe or null.
    let probe = unsafe { (library.new)() };
    if probe.is_null() {
        return None;
    }
    // SAFETY: the probe is live until it is freed below, and used by this thread alone. The descriptor is open as long
    // as `image` is borrowed, which is longer than the probe. All other arguments are numbers.
    let ready = unsafe {
        (library.set_device)(probe, image.as_raw_fd(), 0, 0) == 0
            && (library.set_sector)(probe, sector) == 0
            && (library.superblocks)(probe, 1) == 0
            && (library.superblock_flags)(probe, SUBLKS_TYPE | SUBLKS_MAGIC) == 0
            && (library.partitions)(probe, 1) == 0
            && (library.partition_flags)(probe, PARTS_MAGIC) == 0
    };
    let mut found = Vec::new();
    // SAFETY: as above. 0: one more was found, whose values can be asked for.
    while ready && found.len() < MOST && unsafe { (library.probe)(probe) } == 0 {
        let value = |name| value(&library, probe, name);
        let kinds = [(c"TYPE", c"SBMAGIC_OFFSET"), (c"PTTYPE", c"PTMAGIC_OFFSET")];
        for (kind, place) in kinds {
            if let Some(name) = value(kind) {
                let at = value(place).and_then(|at| at.parse().ok());
                found.push(Found { name, at });
            }
        }
    }
    // SAFETY: made above, freed once, and not used any more.
    unsafe { (library.free)(probe) };
    ready.then_some(found)
}

fn value(library: &Library, probe: Probe, name: &CStr) -> Option<String> {
    let mut data = ptr::null();
    // SAFETY: the probe is live, the name ends in a zero byte, `data` is live, and a null length is allowed.
    let rc = unsafe { (library.value)(probe, name.as_ptr(), &mut data, ptr::null_mut()) };
    if rc != 0 || data.is_null() {
        return None;
    }
    // SAFETY: a value that is found is a string that ends in a zero byte, kept by the probe until its next turn;
    // it is copied here.
    let text = unsafe { CStr::from_ptr(data) };
    Some(text.to_string_lossy().into_owned())
}
