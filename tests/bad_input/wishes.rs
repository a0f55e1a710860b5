//! Configurations, and what is wrong with each.

use super::*;

// ---- The C API ----

/// A configuration as a later version of the header may have it: more fields at the end.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Grown {
    pub known: unified_config,
    pub more: [u64; 8],
}

/// A configuration and the memory that it points to.
pub struct Wish {
    pub ifname: Option<CString>,
    pub device: Option<CString>,
    pub ports: Option<Vec<u16>>,
    pub c: Grown,
}

impl Wish {
    pub fn new(ifname: &str, device: &str) -> Wish {
        let known = unified_config {
            size: size_of::<unified_config>() as u64,
            ifname: std::ptr::null(),
            device: std::ptr::null(),
            file_size: 0,
            queue: 0,
            flags: 0,
            ports: std::ptr::null(),
            port_count: 0,
            drive: 0,
            frame_size: 0,
            frame_count: 256,
            headroom: 0,
            sq_entries: 64,
            cq_entries: 64,
            rx_ring: 128,
            fill_ring: 128,
            xdp_mode: 0,
            copy_mode: 0,
            run_priority: 0,
            event_sample: 0,
            events_bytes: 4096,
            block_size: 0,
            reserved: 0,
            retries: 0,
            retry_backoff_us: 0,
            retry_give_up_ms: 0,
            xsk_map_fd: 0,
            xsk_fd: 0,
            device_fd: 0,
            spill: std::ptr::null(),
            devices: std::ptr::null(),
            device_count: 0,
            reserved2: 0,
            buffers_max: 0,
            xsk_fds: std::ptr::null(),
            xsk_fd_count: 0,
            reserved3: 0,
            queues: 0,
            cpu_count: 0,
            cpus: std::ptr::null(),
        };
        let mut wish = Wish {
            ifname: None,
            device: None,
            ports: None,
            c: Grown {
                known,
                more: [0; 8],
            },
        };
        wish.on(ifname);
        wish.to(device);
        wish
    }

    pub fn on(&mut self, ifname: &str) {
        self.ifname = Some(CString::new(ifname).unwrap());
    }

    pub fn to(&mut self, device: &str) {
        self.device = Some(CString::new(device).unwrap());
    }

    pub fn ports(&mut self, ports: &[u16]) {
        self.ports = Some(ports.to_vec());
        self.c.known.port_count = ports.len() as u32;
    }

    pub fn config(&self) -> Grown {
        let mut c = self.c;
        let text = |text: &Option<CString>| text.as_ref().map_or(std::ptr::null(), |t| t.as_ptr());
        c.known.ifname = text(&self.ifname);
        c.known.device = text(&self.device);
        c.known.ports = self.ports.as_ref().map_or(std::ptr::null(), |p| p.as_ptr());
        c
    }

    pub fn create(&self) -> Result<c::Handle, Refusal> {
        c::create(Some(&self.config()))
    }
}

/// A negative errno, made positive, and its sentence.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal(pub i32, pub String);

// ---- Refused when it is created ----

pub type Change = Box<dyn Fn(&mut Wish)>;

/// What is changed in a right configuration, and which errno and words must come of it.
pub fn wrong(veth: &Veth) -> Vec<(Change, i32, String)> {
    use libc::{E2BIG, EINVAL, ENODEV, ENOENT, EOPNOTSUPP};
    let mut all: Vec<(Change, i32, String)> = Vec::new();
    let mut add = |change: fn(&mut Wish), errno, words: &str| {
        all.push((Box::new(change), errno, words.to_string()));
    };
    add(|w| w.on("nosuch0"), ENODEV, "'nosuch0'");
    add(|w| w.on(""), ENODEV, "''");
    add(
        |w| w.on("a-name-much-too-long-for-one"),
        ENODEV,
        "'a-name-much-too-long-for-one'",
    );
    add(|w| w.on("../eth0"), ENODEV, "'../eth0'");
    add(|w| w.on("eth 0"), ENODEV, "'eth 0'");
    add(
        |w| w.ifname = Some(CString::new([0xff, 0xfe]).unwrap()),
        EINVAL,
        "interface's name",
    );
    add(
        |w| w.device = Some(CString::new([0xff, 0xfe]).unwrap()),
        EINVAL,
        "device's path",
    );
    add(|w| w.device = None, EINVAL, "`device` is NULL");
    add(|w| w.to(""), EINVAL, "no device");
    add(
        |w| w.to("/nonexistent/device"),
        ENOENT,
        "'/nonexistent/device'",
    );
    add(|w| w.to("/dev/nvme999n1"), ENOENT, "'/dev/nvme999n1'");
    add(|w| w.to("/tmp"), EINVAL, "'/tmp'");
    add(|w| w.to("/dev/null"), EINVAL, "'/dev/null'");
    add(|w| w.to("null:many"), EINVAL, "'many'");
    add(|w| w.to("null:511"), EINVAL, "'null:511'");
    add(|w| w.c.known.block_size = 100, EINVAL, "block size 100");
    add(|w| w.c.known.block_size = 8192, EINVAL, "block size 8192");
    add(|w| w.ports(&[0]), EINVAL, "port 0");
    add(|w| w.ports(&[9999, 0, 1]), EINVAL, "port 0");
    add(|w| w.c.known.port_count = 1, EINVAL, "ports is NULL");
    add(|w| w.ports(&[1; 65536]), EINVAL, "ports is NULL");
    add(|w| w.c.known.queue = 1, EINVAL, "queue 1 ");
    add(|w| w.c.known.queue = u32::MAX, EINVAL, "queue 4294967295 ");
    add(|w| w.c.known.queues = 2, EINVAL, "2 queues of '");
    add(|w| w.c.known.queues = 65, EINVAL, "65 queues of '");
    add(|w| w.c.known.queues = u32::MAX - 1, EINVAL, "it has 1");
    add(|w| w.c.known.cpu_count = 1, EINVAL, "cpus is NULL");
    add(|w| w.c.known.frame_size = 1000, EINVAL, "frame size 1000");
    add(|w| w.c.known.frame_size = 8192, EINVAL, "frame size 8192");
    add(|w| w.c.known.frame_count = 63, EINVAL, "63 frames");
    add(
        |w| w.c.known.frame_count = (1 << 22) + 1,
        EINVAL,
        "4194305 frames",
    );
    add(
        |w| w.c.known.frame_count = u32::MAX,
        EINVAL,
        "4294967295 frames",
    );
    add(|w| w.c.known.sq_entries = 100, EINVAL, "100 SQ entries");
    add(|w| w.c.known.sq_entries = 65536, EINVAL, "65536 SQ entries");
    add(|w| w.c.known.sq_entries = u32::MAX, EINVAL, "SQ entries");
    add(|w| w.c.known.cq_entries = 3, EINVAL, "3 CQ entries");
    add(|w| w.c.known.cq_entries = 1 << 31, EINVAL, "CQ entries");
    add(|w| w.c.known.rx_ring = 3, EINVAL, "3 RX ring");
    add(|w| w.c.known.rx_ring = 1 << 31, EINVAL, "RX ring");
    add(|w| w.c.known.fill_ring = 5, EINVAL, "5 fill ring");
    add(|w| w.c.known.fill_ring = 1 << 21, EINVAL, "fill ring");
    add(|w| w.c.known.events_bytes = 5000, EINVAL, "5000 bytes");
    add(|w| w.c.known.events_bytes = 2048, EINVAL, "2048 bytes");
    add(|w| w.c.known.events_bytes = 1 << 29, EINVAL, "events ring");
    add(|w| w.c.known.run_priority = 65536, EINVAL, "priority 65536");
    add(|w| w.c.known.headroom = 2, EINVAL, "UNIFIED_HEADROOM");
    add(
        |w| {
            w.c.known.headroom = 1345;
            w.c.known.flags = UNIFIED_HEADROOM;
        },
        EINVAL,
        "headroom 1345",
    );
    add(
        |w| {
            w.c.known.headroom = u32::MAX;
            w.c.known.flags = UNIFIED_HEADROOM;
        },
        EINVAL,
        "headroom 4294967295",
    );
    add(|w| w.c.known.flags = 1024, EINVAL, "flags 0x400");
    add(
        |w| w.c.known.flags = 1 << 31 | UNIFIED_FORCE,
        EINVAL,
        "flags 0x80000000",
    );
    add(|w| w.c.known.reserved = 1, EINVAL, "flags");
    add(|w| w.c.known.drive = 2, EINVAL, "drive 2");
    add(|w| w.c.known.xdp_mode = 3, EINVAL, "XDP mode 3");
    add(|w| w.c.known.copy_mode = 3, EINVAL, "copy mode 3");
    add(|w| w.c.known.size = 0, EINVAL, "size field holds 0");
    add(|w| w.c.known.size = 7, EINVAL, "size field holds 7");
    add(|w| w.c.known.size = 65537, EINVAL, "size field holds 65537");
    // A struct that ends before the device.
    add(|w| w.c.known.size = 8, EINVAL, "`device` is NULL");
    add(
        |w| {
            w.c.known.size = size_of::<Grown>() as u64;
            w.c.more[7] = 1 << 63;
        },
        E2BIG,
        "does not know",
    );
    add(
        |w| {
            w.c.known.size += 1;
            w.c.more[0] = 1;
        },
        E2BIG,
        "does not know",
    );
    // The last thing to fail: the program is attached by then.
    all.push((
        Box::new(|w| w.c.known.copy_mode = UNIFIED_COPY_ZERO),
        EOPNOTSUPP,
        format!("zero-copy) on queue 0 of '{}'", veth.host),
    ));
    all
}
