//! The structures that the region shares between the program, the library and the kernel.
//!
//! Little endian, natural alignment, all padding named. The registration interface fixes every size here; the
//! assertions below check them.

/// `io_unified_ring`: the indices of one ring. 40 bytes; the region gives each a cache line of its own.
#[repr(C)]
#[derive(Debug, Default, Clone, Copy)]
pub struct UnifiedRing {
    pub producer: u32,
    pub consumer: u32,
    pub cached_producer: u32,
    pub cached_consumer: u32,
    pub flags: u32,
    pub ring_entries: u32,
    pub ring_mask: u64,
    pub ring_size: u64,
}

/// Bit 0 of `UnifiedRing::flags`, written only by that ring's consumer: it sleeps, and needs a wakeup after the next
/// store to `producer`.
pub const RING_NEED_WAKEUP: u32 = 1;

/// `nvme_uring_cmd`, as in linux/nvme_ioctl.h: an NVMe command without its data pointers (72 bytes).
#[repr(C)]
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct NvmeUringCmd {
    pub opcode: u8,
    pub flags: u8,
    pub rsvd1: u16,
    pub nsid: u32,
    pub cdw2: u32,
    pub cdw3: u32,
    pub metadata: u64,
    pub addr: u64,
    pub metadata_len: u32,
    pub data_len: u32,
    pub cdw10: u32,
    pub cdw11: u32,
    pub cdw12: u32,
    pub cdw13: u32,
    pub cdw14: u32,
    pub cdw15: u32,
    pub timeout_ms: u32,
    pub rsvd2: u32,
}

/// `io_unified_sqe`: one entry of the SQ ring (96 bytes).
#[repr(C)]
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct UnifiedSqe {
    pub nvme_cmd: NvmeUringCmd,
    /// Offset into the data buffers; all ones: no data.
    pub buf_offset: u64,
    pub user_data: u64,
    pub flags: u32,
    pub pad: u32,
}

/// `buf_offset` of an entry without data.
pub const NO_BUFFER: u64 = u64::MAX;

/// `io_unified_cqe`: one entry of the CQ ring (32 bytes).
#[repr(C)]
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct UnifiedCqe {
    pub user_data: u64,
    /// 0, or a negative errno if the system failed rather than the device.
    pub result: i32,
    /// NVMe status: type << 8 | code, 11 bits; 0 is success.
    pub status: u32,
    /// The data's offset in the data buffers.
    pub dma_addr: u64,
    /// Bytes moved.
    pub len: u32,
    pub flags: u32,
}

/// `UnifiedCqe::flags`: the device set its do-not-retry bit.
pub const CQE_DNR: u32 = 1 << 0;
/// `UnifiedCqe::flags`: a frame travelled with the command (only for the library's own submitters).
pub const CQE_FRAME: u32 = 1 << 1;
/// `UnifiedCqe::flags`: the library copied the data through a bounce buffer.
pub const CQE_BOUNCED: u32 = 1 << 2;
/// `UnifiedCqe::flags`: the device failed it, and it is in the spill.
pub const CQE_SPILLED: u32 = 1 << 3;
/// `UnifiedCqe::flags`: the data was in a buffer, whose number stands where that of frames does (only for the library's own
/// submitters).
pub const CQE_BUFFER: u32 = 1 << 4;
/// `UnifiedCqe::flags`, with `CQE_BUFFER`: it stored nothing on the device.
pub const CQE_STORES_NOTHING: u32 = 1 << 5;
/// `UnifiedCqe::flags`: where the number of the device begins; 8 bits.
pub const CQE_DEVICE_SHIFT: u32 = 8;
/// `UnifiedCqe::flags`: where the number of frames that travelled with the command, less one, begins; 16 bits. `dma_addr`
/// lies in the first of them.
pub const CQE_FRAMES_SHIFT: u32 = 16;

/// `io_unified_reg`: the request for registration, and its answer (88 bytes).
#[repr(C)]
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct UnifiedReg {
    /// Address of an `io_uring_region_desc`.
    pub region_ptr: u64,
    /// Address of a C string.
    pub nvme_dev_path: u64,
    pub sq_entries: u32,
    pub cq_entries: u32,
    pub buffer_entries: u32,
    pub buffer_entry_size: u32,
    pub flags: u32,
    pub reserved: [u32; 3],
    /// Filled by registration.
    pub offsets: UnifiedOffsets,
}

/// The parts of a region, in bytes from its start.
#[repr(C)]
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct UnifiedOffsets {
    pub sq_ring: u64,
    pub cq_ring: u64,
    pub sq_entries: u64,
    pub cq_entries: u64,
    pub buffers: u64,
}

/// `io_uring_region_desc`, as in linux/io_uring.h since 6.13 (64 bytes).
#[repr(C)]
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct RegionDesc {
    pub user_addr: u64,
    pub size: u64,
    /// 0, or 1: memory of the program. Both mean that here.
    pub flags: u32,
    pub id: u32,
    pub mmap_offset: u64,
    pub reserved: [u64; 4],
}

const _: () = {
    assert!(size_of::<UnifiedReg>() == 88);
    assert!(std::mem::offset_of!(UnifiedReg, offsets) == 48);
    assert!(size_of::<RegionDesc>() == 64);
    assert!(size_of::<UnifiedRing>() == 40);
    assert!(size_of::<NvmeUringCmd>() == 72);
    assert!(size_of::<UnifiedSqe>() == 96);
    assert!(size_of::<UnifiedCqe>() == 32);
};
