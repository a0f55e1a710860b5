//! libbpf and libxdp, as far as the library needs them: the embedded program, its maps, its events.

use std::cell::RefCell;
use std::ffi::{CStr, c_char, c_int, c_void};
use std::io;
use std::os::fd::RawFd;
use std::ptr;
use std::sync::atomic::{AtomicBool, Ordering};

use super::fork::{Guard, Lock};

/// The object must start on 8 bytes: libelf reads its headers in place.
#[repr(C, align(8))]
struct Aligned<T: ?Sized>(T);

macro_rules! object {
    ($name:literal) => {{
        static OBJECT: &Aligned<[u8]> =
            &Aligned(*include_bytes!(concat!(env!("OUT_DIR"), "/", $name)));
        &OBJECT.0
    }};
}

/// A variant of the embedded program.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Variant {
    /// It leaves a record before each packet, which newer kernels refuse under libxdp's dispatcher (`EINVAL` when
    /// it is attached).
    pub metadata: bool,
    /// It passes packets that are several merged datagrams. Takes kernel 6.2 and its BTF.
    pub merged: bool,
}

impl Variant {
    fn object(self) -> &'static [u8] {
        match (self.metadata, self.merged) {
            (true, false) => object!("unified_xdp.bpf.o"),
            (false, false) => object!("unified_xdp_plain.bpf.o"),
            (true, true) => object!("unified_xdp_merged.bpf.o"),
            (false, true) => object!("unified_xdp_plain_merged.bpf.o"),
        }
    }
}

/// libxdp builds its paths in buffers that all threads share, so only one thread at a time may call it. (Found by
/// ThreadSanitizer with two contexts being made at once.)
static LIBXDP: Lock<()> = Lock::new(());

/// Receives the lines of libbpf and libxdp: whether a line is for debugging only, and the line.
pub type Print = fn(debug: bool, line: &str);

static PRINT: Lock<Option<Print>> = Lock::new(None);

thread_local! {
    /// Lines that this thread got while it was in libxdp; `None` outside.
    static KEPT: RefCell<Option<Vec<(bool, String)>>> = const { RefCell::new(None) };
}

/// Sets where the lines of both libraries go. Until then they go nowhere.
pub fn set_print(print: Print) {
    *PRINT.lock_or_renew(|| None) = Some(print);
}

fn print(debug: bool, line: &str) {
    let to = *PRINT.lock_or_renew(|| None);
    if let Some(to) = to {
        to(debug, line);
    }
}

/// Keeps other threads out of libxdp. Lines are printed after that: whoever gets them may call the library again.
struct Within(Option<Guard<'static, ()>>);

fn libxdp() -> Within {
    // Whoever was in it when this process was forked left nothing but those buffers, which each call fills anew.
    let within = Within(Some(LIBXDP.lock_or_renew(|| ())));
    let _ = KEPT.try_with(|kept| *kept.borrow_mut() = Some(Vec::new()));
    within
}

impl Drop for Within {
    fn drop(&mut self) {
        self.0 = None;
        let lines = KEPT.try_with(|kept| kept.borrow_mut().take());
        for (debug, line) in lines.ok().flatten().unwrap_or_default() {
            print(debug, &line);
        }
    }
}

/// For tests: is in it while `wait` runs.
#[cfg(test)]
pub(crate) fn within_libxdp(wait: &dyn Fn()) {
    let _one = libxdp();
    wait();
}

const SECTION: &CStr = c"xdp.frags";
pub const PROGRAM: &str = "unified_xdp";

fn negative(rc: c_int) -> io::Result<c_int> {
    if rc < 0 {
        Err(io::Error::from_raw_os_error(-rc))
    } else {
        Ok(rc)
    }
}

unsafe extern "C" {
    fn vsnprintf(buf: *mut c_char, size: usize, format: *const c_char, args: *mut c_void) -> c_int;
}

/// # Safety
/// `format` and `args` must be a printf format and the arguments it asks for.
unsafe fn forward(level: c_int, format: *const c_char, args: *mut c_void) -> c_int {
    let mut line = [0u8; 512];
    // SAFETY: the buffer and its size belong together; format and args are the caller's promise.
    unsafe { vsnprintf(line.as_mut_ptr().cast(), line.len(), format, args) };
    if let Ok(text) = CStr::from_bytes_until_nul(&line) {
        // libbpf's and libxdp's warnings: also of what they try and do without. A failure comes back as an error.
        let (debug, line) = (level != 0, text.to_string_lossy());
        let kept = KEPT.try_with(|kept| match &mut *kept.borrow_mut() {
            Some(lines) => {
                lines.push((debug, line.to_string()));
                true
            }
            None => false,
        });
        if !kept.unwrap_or(false) {
            print(debug, &line);
        }
    }
    0
}

unsafe extern "C" fn print_bpf(
    level: libbpf_sys::libbpf_print_level,
    format: *const c_char,
    args: *mut libbpf_sys::__va_list_tag,
) -> c_int {
    // SAFETY: libbpf passes a format and its arguments.
    unsafe { forward(level as c_int, format, args.cast()) }
}

unsafe extern "C" fn print_xdp(
    level: libxdp_sys::libxdp_print_level,
    format: *const c_char,
    args: *mut libxdp_sys::__va_list_tag,
) -> c_int {
    // SAFETY: libxdp passes a format and its arguments.
    unsafe { forward(level as c_int, format, args.cast()) }
}

/// Both libraries' lines go to `print` from now on, and never to stderr.
fn route_log() {
    static ROUTED: AtomicBool = AtomicBool::new(false);
    if ROUTED.load(Ordering::Acquire) {
        return;
    }
    // Not std's Once: in a forked child it may count as running forever.
    let _one = libxdp();
    // SAFETY: both functions live as long as the library; the libraries are this one's private copies.
    unsafe {
        libbpf_sys::libbpf_set_print(Some(print_bpf));
        libxdp_sys::libxdp_set_print(Some(print_xdp));
    }
    ROUTED.store(true, Ordering::Release);
}

/// How a program is attached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    Native,
    Skb,
}

/// linux/if_link.h
const XDP_FLAGS_UPDATE_IF_NOEXIST: u32 = 1;

impl Mode {
    /// XDP_FLAGS_DRV_MODE, XDP_FLAGS_SKB_MODE
    fn flag(self) -> u32 {
        match self {
            Mode::Native => 1 << 2,
            Mode::Skb => 1 << 1,
        }
    }

    fn raw(self) -> libxdp_sys::xdp_attach_mode {
        match self {
            Mode::Native => libxdp_sys::xdp_attach_mode_XDP_MODE_NATIVE,
            Mode::Skb => libxdp_sys::xdp_attach_mode_XDP_MODE_SKB,
        }
    }
}

/// The origin of a test packet. The interface must have its XDP queues set up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ingress {
    pub ifindex: u32,
    pub queue: u32,
}

/// The embedded program: opened, then loaded by attaching it (or on its own, for tests).
pub struct Program {
    object: *mut libbpf_sys::bpf_object,
    program: *mut libxdp_sys::xdp_program,
}

// SAFETY: libbpf and libxdp objects have no thread affinity; Program has one owner, and what takes &self
// only reads fields that are constant once the program is loaded.
unsafe impl Send for Program {}
// SAFETY: see above; everything that changes the object takes &mut self.
unsafe impl Sync for Program {}

impl Program {
    /// Opens the embedded object; `events_bytes` is a power of two of at least a page, `queues` how many are counted apart, from the first one on.
    pub fn open(events_bytes: u32, queues: u32, variant: Variant) -> io::Result<Program> {
        route_log();
        let bytes = variant.object();
        // SAFETY: the object is a live static; no options.
        let object = unsafe {
            libbpf_sys::bpf_object__open_mem(bytes.as_ptr().cast(), bytes.len() as _, ptr::null())
        };
        if object.is_null() {
            return Err(io::Error::last_os_error());
        }
        let mut program = Program {
            object,
            program: ptr::null_mut(),
        };
        let events = program.map(c"unified_events")?;
        // SAFETY: `events` belongs to the open, not yet loaded object.
        negative(unsafe { libbpf_sys::bpf_map__set_max_entries(events, events_bytes) })?;
        let stats = program.map(c"unified_stats")?;
        // SAFETY: as above.
        negative(unsafe { libbpf_sys::bpf_map__set_max_entries(stats, queues.saturating_add(1)) })?;
        // SAFETY: the object is open and outlives the program (Drop closes the program first).
        let raw = unsafe { libxdp_sys::xdp_program__from_bpf_obj(object.cast(), SECTION.as_ptr()) };
        // SAFETY: libxdp_get_error takes any pointer that libxdp returned.
        let error = unsafe { libxdp_sys::libxdp_get_error(raw.cast()) };
        if raw.is_null() || error != 0 {
            return Err(io::Error::from_raw_os_error(if error < 0 {
                -error as i32
            } else {
                libc::EINVAL
            }));
        }
        program.program = raw;
        Ok(program)
    }

    /// Its order among several programs (lower runs first), and whether later ones see passed packets.
    pub fn set_run_config(&mut self, priority: u32, chain_pass: bool) -> io::Result<()> {
        // SAFETY: the program is open and not yet attached.
        unsafe {
            negative(libxdp_sys::xdp_program__set_run_prio(
                self.program,
                priority,
            ))?;
            negative(libxdp_sys::xdp_program__set_chain_call_enabled(
                self.program,
                libxdp_sys::xdp_action_XDP_PASS,
                chain_pass,
            ))?;
        }
        Ok(())
    }

    /// Loads it without attaching, for BPF_PROG_TEST_RUN.
    pub fn load(&mut self) -> io::Result<()> {
        // SAFETY: the object is open and not loaded.
        negative(unsafe { libbpf_sys::bpf_object__load(self.object) }).map(drop)
    }

    pub fn attach(&mut self, ifindex: u32, mode: Mode) -> io::Result<()> {
        let _one = libxdp();
        // SAFETY: the program is open; the flags are zero as libxdp demands.
        negative(unsafe {
            libxdp_sys::xdp_program__attach(self.program, ifindex as c_int, mode.raw(), 0)
        })
        .map(drop)
    }

    pub fn detach(&mut self, ifindex: u32, mode: Mode) -> io::Result<()> {
        let _one = libxdp();
        // SAFETY: the program is open.
        negative(unsafe {
            libxdp_sys::xdp_program__detach(self.program, ifindex as c_int, mode.raw(), 0)
        })
        .map(drop)
    }

    fn fd(&self) -> io::Result<RawFd> {
        // SAFETY: the object is open and the program named; a program that is not loaded has no descriptor.
        negative(unsafe {
            let program =
                libbpf_sys::bpf_object__find_program_by_name(self.object, c"unified_xdp".as_ptr());
            libbpf_sys::bpf_program__fd(program)
        })
    }

    /// Attaches the loaded program without libxdp, if no program is attached. `EBUSY` if one is.
    pub fn attach_alone(&self, ifindex: u32, mode: Mode) -> io::Result<()> {
        let flags = XDP_FLAGS_UPDATE_IF_NOEXIST | mode.flag();
        // SAFETY: takes numbers; no options.
        negative(unsafe {
            libbpf_sys::bpf_xdp_attach(ifindex as c_int, self.fd()?, flags, ptr::null())
        })
        .map(drop)
    }

    /// Detaches the program if the interface runs it directly, without a dispatcher. `EEXIST` if another one is
    /// attached: the kernel compares, so nobody else's program is ever detached. Needs only CAP_NET_ADMIN.
    pub fn detach_alone(&self, ifindex: u32, mode: Mode) -> io::Result<()> {
        // SAFETY: the options are integers, for which zero is a value.
        let mut options: libbpf_sys::bpf_xdp_attach_opts = unsafe { std::mem::zeroed() };
        options.sz = size_of_val(&options) as _;
        options.old_prog_fd = self.fd()?;
        // SAFETY: the options are live and as long as said.
        negative(unsafe { libbpf_sys::bpf_xdp_detach(ifindex as c_int, mode.flag(), &options) })
            .map(drop)
    }

    /// The kernel's id of the loaded program; 0 before.
    pub fn id(&self) -> u32 {
        let Ok(fd) = self.fd() else {
            return 0;
        };
        // SAFETY: bpf_prog_info is integers, for which zero is a value.
        let mut info: libbpf_sys::bpf_prog_info = unsafe { std::mem::zeroed() };
        let mut len = size_of_val(&info) as u32;
        // SAFETY: info and its length belong together.
        let rc = unsafe {
            libbpf_sys::bpf_obj_get_info_by_fd(fd, ptr::from_mut(&mut info).cast(), &mut len)
        };
        if rc < 0 { 0 } else { info.id }
    }

    fn map(&self, name: &CStr) -> io::Result<*mut libbpf_sys::bpf_map> {
        // SAFETY: the object is open; the name ends in a zero byte.
        let map = unsafe { libbpf_sys::bpf_object__find_map_by_name(self.object, name.as_ptr()) };
        if map.is_null() {
            Err(io::Error::from_raw_os_error(libc::ENOENT))
        } else {
            Ok(map)
        }
    }

    /// A map of the loaded object. Its descriptor belongs to the program.
    pub fn map_fd(&self, name: &CStr) -> io::Result<RawFd> {
        let map = self.map(name)?;
        // SAFETY: the map belongs to the open object.
        negative(unsafe { libbpf_sys::bpf_map__fd(map) })
    }

    /// Runs the loaded program on a packet (BPF_PROG_TEST_RUN): the verdict, and what it made of the packet.
    pub fn test_run(
        &self,
        packet: &[u8],
        ingress: Option<Ingress>,
        out: &mut Vec<u8>,
    ) -> io::Result<u32> {
        let fd = self.fd()?;
        out.resize(packet.len() + 512, 0);
        // SAFETY: bpf_test_run_opts is integers and pointers, for which zero is a value.
        let mut opts: libbpf_sys::bpf_test_run_opts = unsafe { std::mem::zeroed() };
        opts.sz = size_of::<libbpf_sys::bpf_test_run_opts>() as _;
        opts.data_in = packet.as_ptr().cast();
        opts.data_size_in = packet.len() as u32;
        opts.data_out = out.as_mut_ptr().cast();
        opts.data_size_out = out.len() as u32;
        opts.repeat = 1;
        // SAFETY: xdp_md is integers, for which zero is a value.
        let mut context: libbpf_sys::xdp_md = unsafe { std::mem::zeroed() };
        if let Some(ingress) = ingress {
            context.data_end = packet.len() as u32;
            context.ingress_ifindex = ingress.ifindex;
            context.rx_queue_index = ingress.queue;
            opts.ctx_in = ptr::from_ref(&context).cast();
            opts.ctx_size_in = size_of_val(&context) as u32;
        }
        // SAFETY: in and out buffers and the context are live and as long as said.
        negative(unsafe { libbpf_sys::bpf_prog_test_run_opts(fd, &mut opts) })?;
        out.truncate(opts.data_size_out as usize);
        Ok(opts.retval)
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        // SAFETY: both were made by open, or are null; the program goes before its object.
        unsafe {
            if !self.program.is_null() {
                libxdp_sys::xdp_program__close(self.program);
            }
            libbpf_sys::bpf_object__close(self.object);
        }
    }
}

/// Reads `value` of a map by key. The slice must be as long as the map's value.
pub(crate) fn map_get(fd: RawFd, key: u32, value: &mut [u8]) -> io::Result<()> {
    // SAFETY: keys are u32 in all our maps; the value's length is the caller's promise, kept by the
    // callers in this crate (the settings' 24 bytes, the counters' 96 a possible CPU).
    negative(unsafe {
        libbpf_sys::bpf_map_lookup_elem(fd, ptr::from_ref(&key).cast(), value.as_mut_ptr().cast())
    })
    .map(drop)
}

/// Writes a map's value; at least as long as the map's.
pub(crate) fn map_set(fd: RawFd, key: u32, value: &[u8]) -> io::Result<()> {
    // SAFETY: as in map_get, the other way round.
    negative(unsafe {
        libbpf_sys::bpf_map_update_elem(fd, ptr::from_ref(&key).cast(), value.as_ptr().cast(), 0)
    })
    .map(drop)
}

/// Whether a descriptor is a map of AF_XDP sockets. The other functions here do not check that.
pub(crate) fn is_socket_map(fd: RawFd) -> io::Result<bool> {
    let mut info = libbpf_sys::bpf_map_info::default();
    let mut len = size_of_val(&info) as u32;
    // SAFETY: `info` is live and `len` bytes long; the kernel writes at most so many.
    negative(unsafe { libbpf_sys::bpf_map_get_info_by_fd(fd, &mut info, &mut len) })?;
    Ok(info.type_ == libbpf_sys::BPF_MAP_TYPE_XSKMAP)
}

/// Removes a key.
pub(crate) fn map_delete(fd: RawFd, key: u32) -> io::Result<()> {
    // SAFETY: keys are u32 in all our maps, and in every map of AF_XDP sockets.
    negative(unsafe { libbpf_sys::bpf_map_delete_elem(fd, ptr::from_ref(&key).cast()) }).map(drop)
}

/// A per-CPU value of `N` words, summed over all possible CPUs.
pub(crate) fn map_sum<const N: usize>(fd: RawFd, key: u32) -> io::Result<[u64; N]> {
    // SAFETY: takes nothing.
    let cpus = negative(unsafe { libbpf_sys::libbpf_num_possible_cpus() })? as usize;
    let mut words = vec![0u64; cpus * N];
    // SAFETY: a per-CPU lookup writes one value, rounded up to 8 bytes, for each possible CPU: that is
    // exactly this vector.
    negative(unsafe {
        libbpf_sys::bpf_map_lookup_elem(fd, ptr::from_ref(&key).cast(), words.as_mut_ptr().cast())
    })?;
    let mut sum = [0; N];
    for cpu in words.chunks_exact(N) {
        for (total, word) in sum.iter_mut().zip(cpu) {
            *total += word;
        }
    }
    Ok(sum)
}

/// One program that is attached to an interface.
#[derive(Debug, Clone)]
pub struct Attached {
    pub name: String,
    pub id: u32,
}

/// The programs attached to an interface.
#[derive(Debug, Clone)]
pub struct AttachedList {
    /// libxdp's dispatcher runs them. Otherwise there is one program alone.
    pub dispatcher: bool,
    pub mode: Mode,
    pub programs: Vec<Attached>,
}

/// The programs attached to an interface; `None` if there are none.
pub fn attached(ifindex: u32) -> Option<AttachedList> {
    route_log();
    let _one = libxdp();
    // SAFETY: takes an index; the result is checked before use.
    let multi = unsafe { libxdp_sys::xdp_multiprog__get_from_ifindex(ifindex as c_int) };
    // SAFETY: takes any pointer that libxdp returned.
    if multi.is_null() || unsafe { libxdp_sys::libxdp_get_error(multi.cast()) } != 0 {
        return None;
    }
    // SAFETY: `multi` is valid until closed below; programs are valid as long as it is.
    unsafe {
        let dispatcher = !libxdp_sys::xdp_multiprog__is_legacy(multi);
        let mode = match libxdp_sys::xdp_multiprog__attach_mode(multi) {
            libxdp_sys::xdp_attach_mode_XDP_MODE_SKB => Mode::Skb,
            _ => Mode::Native,
        };
        let mut programs = Vec::new();
        let mut each = |program: *mut libxdp_sys::xdp_program| {
            let name = libxdp_sys::xdp_program__name(program);
            if !name.is_null() {
                programs.push(Attached {
                    name: CStr::from_ptr(name).to_string_lossy().into_owned(),
                    id: libxdp_sys::xdp_program__id(program),
                });
            }
        };
        if dispatcher {
            let mut program = libxdp_sys::xdp_multiprog__next_prog(ptr::null(), multi);
            while !program.is_null() {
                each(program);
                program = libxdp_sys::xdp_multiprog__next_prog(program, multi);
            }
        } else {
            let program = libxdp_sys::xdp_multiprog__main_prog(multi);
            if !program.is_null() {
                each(program);
            }
        }
        libxdp_sys::xdp_multiprog__close(multi);
        Some(AttachedList {
            dispatcher,
            mode,
            programs,
        })
    }
}

/// Detaches a program by its id.
pub fn detach_id(ifindex: u32, id: u32, mode: Mode) -> io::Result<()> {
    let _one = libxdp();
    // SAFETY: takes an id; the result is checked, used, and closed.
    unsafe {
        let program = libxdp_sys::xdp_program__from_id(id);
        let error = libxdp_sys::libxdp_get_error(program.cast());
        if program.is_null() || error != 0 {
            return Err(io::Error::from_raw_os_error(if error < 0 {
                -error as i32
            } else {
                libc::ENOENT
            }));
        }
        let rc = libxdp_sys::xdp_program__detach(program, ifindex as c_int, mode.raw(), 0);
        libxdp_sys::xdp_program__close(program);
        negative(rc).map(drop)
    }
}

/// The ids of all loaded programs of the system, attached or not. Needs CAP_SYS_ADMIN.
pub fn program_ids() -> io::Result<Vec<u32>> {
    let mut ids = Vec::new();
    let mut id = 0;
    loop {
        // SAFETY: `id` is live.
        match negative(unsafe { libbpf_sys::bpf_prog_get_next_id(id, &mut id) }) {
            Ok(_) => ids.push(id),
            Err(e) if e.raw_os_error() == Some(libc::ENOENT) => return Ok(ids),
            Err(e) => return Err(e),
        }
    }
}

/// The id of the program that is pinned at `path`.
pub fn pinned_program(path: &CStr) -> io::Result<u32> {
    // SAFETY: the path ends in a zero byte; the result is a new descriptor or an error.
    let fd = negative(unsafe { libbpf_sys::bpf_obj_get(path.as_ptr()) })?;
    // SAFETY: bpf_prog_info is integers, for which zero is a value.
    let mut info: libbpf_sys::bpf_prog_info = unsafe { std::mem::zeroed() };
    let mut len = size_of_val(&info) as u32;
    // SAFETY: info and its length belong together; the descriptor is closed once.
    let rc = unsafe {
        let rc = libbpf_sys::bpf_obj_get_info_by_fd(fd, ptr::from_mut(&mut info).cast(), &mut len);
        libc::close(fd);
        rc
    };
    negative(rc).map(|_| info.id)
}

/// Reads key 0 of the map called `name` that a loaded program uses. `ENOENT`: there is no such program; `ENODATA`: it has
/// no such map with values of that length.
pub(crate) fn read_program_map(program_id: u32, name: &CStr, value: &mut [u8]) -> io::Result<()> {
    let close = |fd: RawFd| {
        // SAFETY: made in this function and closed once.
        unsafe { libc::close(fd) };
    };
    // SAFETY: takes an id.
    let program = negative(unsafe { libbpf_sys::bpf_prog_get_fd_by_id(program_id) })?;
    let mut ids = [0u32; 16];
    // SAFETY: bpf_prog_info is integers, for which zero is a value.
    let mut info: libbpf_sys::bpf_prog_info = unsafe { std::mem::zeroed() };
    info.nr_map_ids = ids.len() as u32;
    info.map_ids = ids.as_mut_ptr() as u64;
    let mut len = size_of_val(&info) as u32;
    // SAFETY: info and its length belong together, and map_ids has room for nr_map_ids.
    let rc = unsafe {
        libbpf_sys::bpf_obj_get_info_by_fd(program, ptr::from_mut(&mut info).cast(), &mut len)
    };
    close(program);
    negative(rc)?;
    for id in ids.iter().take(info.nr_map_ids as usize) {
        // SAFETY: takes an id.
        let Ok(map) = negative(unsafe { libbpf_sys::bpf_map_get_fd_by_id(*id) }) else {
            continue;
        };
        // SAFETY: bpf_map_info is integers, for which zero is a value.
        let mut info: libbpf_sys::bpf_map_info = unsafe { std::mem::zeroed() };
        let mut len = size_of_val(&info) as u32;
        // SAFETY: info and its length belong together.
        let rc = unsafe {
            libbpf_sys::bpf_obj_get_info_by_fd(map, ptr::from_mut(&mut info).cast(), &mut len)
        };
        // SAFETY: the kernel ends the name with a zero byte within its 16.
        let found = rc == 0
            && unsafe { CStr::from_ptr(info.name.as_ptr()) } == name
            && info.value_size as usize == value.len();
        let result = if found {
            map_get(map, 0, value)
        } else {
            Ok(())
        };
        close(map);
        if found {
            return result;
        }
    }
    Err(io::Error::from_raw_os_error(libc::ENODATA))
}

/// The reading side of the events ring buffer.
pub struct Events {
    ring: *mut libbpf_sys::ring_buffer,
    sink: Box<Sink>,
}

type EachRecord = dyn FnMut(&[u8]) + 'static;

struct Sink {
    /// Only set while `drain` runs.
    each: Option<*mut EachRecord>,
}

// SAFETY: libbpf's ring_buffer has no thread affinity and one owner; `sink` is only used inside drain.
unsafe impl Send for Events {}

unsafe extern "C" fn sample(
    context: *mut c_void,
    data: *mut c_void,
    len: libbpf_sys::size_t,
) -> c_int {
    // SAFETY: the context is the boxed Sink of a live Events, whose `each` is valid during drain, the
    // only caller of consume; libbpf gives a record of `len` bytes.
    unsafe {
        let sink = &*context.cast::<Sink>();
        if let Some(each) = sink.each {
            (*each)(std::slice::from_raw_parts(data.cast(), len as usize));
        }
    }
    0
}

impl Events {
    /// `map` stays open as long as the Events live: the caller keeps its Program.
    pub fn new(map: RawFd) -> io::Result<Events> {
        let mut sink = Box::new(Sink { each: None });
        // SAFETY: the callback fits its type; the boxed Sink does not move and outlives the ring.
        let ring = unsafe {
            libbpf_sys::ring_buffer__new(
                map,
                Some(sample),
                ptr::from_mut(&mut *sink).cast(),
                ptr::null(),
            )
        };
        if ring.is_null() {
            return Err(io::Error::last_os_error());
        }
        Ok(Events { ring, sink })
    }

    /// Readable when the program has woken its reader.
    pub fn fd(&self) -> RawFd {
        // SAFETY: the ring is live.
        unsafe { libbpf_sys::ring_buffer__epoll_fd(self.ring) }
    }

    /// Hands out up to `max` records.
    pub fn drain(&mut self, max: usize, each: &mut dyn FnMut(&[u8])) -> io::Result<usize> {
        // SAFETY: only the lifetime is erased; the pointer is removed again before `each` ends.
        let erased: *mut EachRecord = unsafe { std::mem::transmute(ptr::from_mut(each)) };
        self.sink.each = Some(erased);
        // SAFETY: the ring is live; `sample` runs within this call only.
        let rc = unsafe { libbpf_sys::ring_buffer__consume_n(self.ring, max as _) };
        self.sink.each = None;
        negative(rc).map(|n| n as usize)
    }
}

impl Drop for Events {
    fn drop(&mut self) {
        // SAFETY: made by new, freed once.
        unsafe { libbpf_sys::ring_buffer__free(self.ring) }
    }
}
