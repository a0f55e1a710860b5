//! The structs that C sees. Those that begin with `size` may grow at their end.

use std::ffi::{c_char, c_void};

/// unified_config.drive: the thread that asks for completions drives the device, inside its calls.
pub const UNIFIED_DRIVE_INLINE: u32 = 0;
/// unified_config.drive: a thread of the library drives the device.
pub const UNIFIED_DRIVE_THREAD: u32 = 1;

/// unified_config.xdp_mode: native mode if the driver supports it, otherwise SKB mode.
pub const UNIFIED_XDP_AUTO: u32 = 0;
/// unified_config.xdp_mode: native mode only; -EOPNOTSUPP if the driver has none.
pub const UNIFIED_XDP_NATIVE: u32 = 1;
/// unified_config.xdp_mode: SKB (generic) mode only.
pub const UNIFIED_XDP_SKB: u32 = 2;

/// unified_config.copy_mode: zero-copy if the driver supports it, otherwise copy mode.
pub const UNIFIED_COPY_AUTO: u32 = 0;
/// unified_config.copy_mode: copy mode only.
pub const UNIFIED_COPY_ONLY: u32 = 1;
/// unified_config.copy_mode: zero-copy only; -EOPNOTSUPP if the driver has none.
pub const UNIFIED_COPY_ZERO: u32 = 2;

/// Configuration flag: use reserved 2 MiB pages (vm.nr_hugepages) if there are enough. Without this flag, or if there are
/// too few, the region uses transparent huge pages if the kernel provides them
/// (/sys/kernel/mm/transparent_hugepage/enabled is "madvise" or "always") and the region fills at least one; otherwise it
/// uses 4 KiB pages. unified_info.huge_pages says what was used.
pub const UNIFIED_HUGE_PAGES: u32 = 1;
/// Configuration flag: write even to a device that is mounted, held or partitioned, or that holds a file system,
/// a volume, a partition table or the like; and begin a log in a range that holds something else. Destroys data.
pub const UNIFIED_FORCE: u32 = 2;
/// Configuration flag: open the device for reading only.
pub const UNIFIED_READ_ONLY: u32 = 4;
/// Configuration flag: use the block layer even if NVMe passthrough is available.
pub const UNIFIED_NO_PASSTHROUGH: u32 = 8;
/// Configuration flag: never copy data inside the library; misaligned data is passed to the kernel as it is.
pub const UNIFIED_NO_BOUNCE: u32 = 16;
/// Configuration flag: use the value of `headroom`, even if it is 0.
pub const UNIFIED_HEADROOM: u32 = 32;
/// Configuration flag: log no metadata events.
pub const UNIFIED_NO_EVENTS: u32 = 64;
/// Configuration flag: `xsk_map_fd` is set.
pub const UNIFIED_XSK_MAP_FD: u32 = 128;
/// Configuration flag: `xsk_fd` is set.
pub const UNIFIED_XSK_FD: u32 = 256;
/// Configuration flag: `device_fd` is set.
pub const UNIFIED_DEVICE_FD: u32 = 512;

/// Submission flag: the data is on the medium when the command completes (Force Unit Access), even if the device has a
/// write cache.
pub const UNIFIED_FUA: u32 = 1;
/// Submission flag: the completion returns the frame to the caller instead of to the fill ring.
pub const UNIFIED_KEEP: u32 = 2;
/// Submission flag: more submissions follow at once. The engine sees this one together with the next submission that does
/// not have this flag.
pub const UNIFIED_MORE: u32 = 4;

/// For unified_wait: packets are in the RX ring.
pub const UNIFIED_WAIT_RX: u32 = 1;
/// For unified_wait: completions are in the CQ ring.
pub const UNIFIED_WAIT_COMPLETIONS: u32 = 2;

/// unified_packet.flags: `vlan_tci` holds the outermost VLAN tag.
pub const UNIFIED_PACKET_VLAN: u8 = 1;

/// unified_completion.flags: a retry would fail as well (NVMe Do Not Retry).
pub const UNIFIED_COMPLETION_DNR: u32 = 1;
/// unified_completion.flags: the caller owns `frame` again.
pub const UNIFIED_COMPLETION_FRAME: u32 = 2;
/// unified_completion.flags: the library copied the data, because the device could not take it in place.
pub const UNIFIED_COMPLETION_BOUNCED: u32 = 4;
/// unified_completion.flags: the device failed the write, and it is in the spill (unified_config.spill).
pub const UNIFIED_COMPLETION_SPILLED: u32 = 8;

/// unified_pipeline_config.layout: payloads, padded to blocks.
pub const UNIFIED_LAYOUT_PAYLOAD: u32 = 0;
/// unified_pipeline_config.layout: a log of version 1, a whole frame for each packet (docs/record-format.md).
pub const UNIFIED_LAYOUT_SLOT: u32 = 1;
/// unified_pipeline_config.layout: a log of version 2. Large packets are written from the frames they arrived in. Small ones
/// are copied together, once, because that costs less (unified_stats.packed counts them). If the device is slower than the
/// packets, large ones are copied together too, so that fewer bytes are written.
pub const UNIFIED_LAYOUT_LOG: u32 = 2;
/// unified_pipeline_config.flags, for UNIFIED_LAYOUT_LOG: checksums cover the headers of records, not the packets.
pub const UNIFIED_LOG_UNCHECKED: u32 = 16;
/// unified_pipeline_config.flags: begin a new log. An earlier log in the range is discarded, and anything else there is
/// overwritten.
pub const UNIFIED_LOG_NEW: u32 = 8;
/// unified_pipeline_config.at_end: stop storing; further packets are counted and released.
pub const UNIFIED_AT_END_STOP: u32 = 0;
/// unified_pipeline_config.at_end: begin again at the start of the range.
pub const UNIFIED_AT_END_WRAP: u32 = 1;

/// Configuration of a context. Zero the struct, set `size` and `device`, and set the fields that shall differ from their
/// defaults. Zero means the default for every field.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct unified_config {
    /// sizeof(struct unified_config)
    pub size: u64,
    /// Interface to receive from. NULL: storage only.
    pub ifname: *const c_char,
    /// /dev/ngXnY or /dev/nvmeXnY (NVMe passthrough), another block device, a regular file, or
    /// "null:" (stores nothing; "null:BYTES" gives its size).
    pub device: *const c_char,
    /// Size in bytes of a regular file: it is created if it does not exist, and grown to this size if it is smaller. 0: the
    /// file must exist and keeps its size.
    pub file_size: u64,
    /// Receive queue of the interface, from 0; the first one if there are several (`queues`).
    pub queue: u32,
    /// UNIFIED_HUGE_PAGES and the other configuration flags.
    pub flags: u32,
    /// UDP destination ports, host byte order, each 1 to 65535. Default: 9999.
    pub ports: *const u16,
    pub port_count: u32,
    /// UNIFIED_DRIVE_INLINE (default) or UNIFIED_DRIVE_THREAD.
    pub drive: u32,
    /// Bytes: 2048 (default) or 4096.
    pub frame_size: u32,
    /// Frames of all lanes together: 64 to 4194304, and at least 64 for each lane. Default 4096 for each lane. Packets are
    /// received into frames only, and their number cannot grow: the kernel takes the memory of an AF_XDP socket (the UMEM)
    /// once. Choose as many as the longest burst needs, and use buffers (unified_buffer_alloc) for all data that was not
    /// received.
    pub frame_count: u32,
    /// Bytes before each packet, in addition to the kernel's 256. Default 214, which puts the payload of a plain IPv4 packet
    /// at byte 512 of its frame. Other values count only with UNIFIED_HEADROOM.
    pub headroom: u32,
    /// Ring entries, powers of two up to 32768. Default 256.
    pub sq_entries: u32,
    pub cq_entries: u32,
    /// AF_XDP ring entries, powers of two. Default 2048.
    pub rx_ring: u32,
    pub fill_ring: u32,
    /// UNIFIED_XDP_AUTO (default), UNIFIED_XDP_NATIVE or UNIFIED_XDP_SKB.
    pub xdp_mode: u32,
    /// UNIFIED_COPY_AUTO (default), UNIFIED_COPY_ONLY or UNIFIED_COPY_ZERO.
    pub copy_mode: u32,
    /// Order among several XDP programs on the interface, 1 to 65535; lower numbers run first. Default 50.
    pub run_priority: u32,
    /// Log one metadata event per this many packets. Default 1 (every packet).
    pub event_sample: u32,
    /// Bytes of the events ring buffer, a power of two from 4096. Default 262144.
    pub events_bytes: u32,
    /// Block size in bytes of a regular file or of "null:": 512, 1024, 2048 or 4096. Default: the smallest that the file
    /// supports. Block devices and drives have a block size of their own.
    pub block_size: u32,
    /// Must be 0.
    pub reserved: u32,
    /// Number of retries, 1 to 255, of a storage operation that failed temporarily: EINTR and EAGAIN; with a backoff also
    /// ENOMEM, EBUSY and NVMe statuses that ask the host to try again later. Default 8. UNIFIED_NO_RETRY: no retries.
    pub retries: u32,
    /// Microseconds before the first retry. The pause doubles with each further retry, up to one second. Default: no pause.
    pub retry_backoff_us: u32,
    /// Give up this many milliseconds after the first failure. Default: only `retries` limits the attempts.
    pub retry_give_up_ms: u32,
    /// This descriptor and the next two were opened by a process with more privileges. Each counts only with its flag. The
    /// caller keeps them and may close them after unified_ctx_create. With UNIFIED_XSK_MAP_FD: the BPF_MAP_TYPE_XSKMAP of the
    /// XDP program that is attached to the interface already. The library attaches no program then, that program decides
    /// about ports and events, and the xdp_* statistics stay 0.
    pub xsk_map_fd: i32,
    /// With UNIFIED_XSK_FD: an unbound socket(AF_XDP, SOCK_RAW, 0) in the interface's network namespace. It serves one queue
    /// of one context. For several queues: `xsk_fds`.
    pub xsk_fd: i32,
    /// With UNIFIED_DEVICE_FD: a regular file, block device or NVMe namespace that is open for reading and writing, with or
    /// without O_DIRECT, but without O_APPEND. `device` may be NULL; otherwise it is only a name for messages. While the
    /// context exists, no other context writes to the device, not even through a copy of this descriptor in another process.
    pub device_fd: i32,
    /// Fallback for writes that still fail after all retries: a regular file, which is created if it does not exist, or a block
    /// device that is at least as long. They go to the same address, padded as on the device, and complete with success and
    /// UNIFIED_COMPLETION_SPILLED. A flush covers them, too. NULL: no fallback.
    pub spill: *const c_char,
    /// Number of queues to receive from, `queue` being the first. Each is a lane with its own socket, rings and engine; all
    /// share the memory, the XDP program and the device (unified_ctx_lane). 0: one. UNIFIED_ALL_QUEUES: all of the interface
    /// from `queue` on. At most 64. Without an interface: the number of lanes.
    pub queues: u32,
    /// CPUs of the library's threads: those of lane i run on `cpus[i % cpu_count]`. 0: wherever the kernel lets them run.
    pub cpu_count: u32,
    pub cpus: *const u32,
    /// Several devices: `device_count` of them, at most 16, numbered from 0 in the order of the array. Then `device`, `file_size`,
    /// `block_size`, `device_fd` and `spill` above must be zero, and the flags about devices above count for all of them. With 0
    /// there is one device, which the fields above describe.
    pub devices: *const unified_device,
    pub device_count: u32,
    /// Must be 0.
    pub reserved2: u32,
    /// Most bytes that are registered for buffers at a time (unified_buffer_alloc). They are allocated when they are asked for.
    /// Default 1 GiB. It says nothing about frames: see frame_count.
    pub buffers_max: u64,
    /// For several queues, instead of `xsk_fd`: `xsk_fd_count` sockets like it, one for each queue, in the order of the queues.
    /// The caller keeps them and may close them after unified_ctx_create. Each has a UMEM of its own, so the data buffers
    /// count once for each of them against RLIMIT_MEMLOCK. With 0 the library makes the sockets, or `xsk_fd` is the only one.
    pub xsk_fds: *const i32,
    pub xsk_fd_count: u32,
    /// Must be 0.
    pub reserved3: u32,
}

/// One of the devices of unified_config.devices. Zero the struct and set `size`, which is the same in all elements of the array,
/// and `path`.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct unified_device {
    /// sizeof(struct unified_device)
    pub size: u64,
    /// As unified_config.device.
    pub path: *const c_char,
    /// As unified_config.file_size.
    pub file_size: u64,
    /// As unified_config.block_size. Devices may differ in it.
    pub block_size: u32,
    /// UNIFIED_FORCE, UNIFIED_READ_ONLY, UNIFIED_NO_PASSTHROUGH or UNIFIED_DEVICE_FD, for this device.
    pub flags: u32,
    /// As unified_config.device_fd.
    pub fd: i32,
    /// Must be 0.
    pub reserved: u32,
    /// As unified_config.spill, for this device.
    pub spill: *const c_char,
}

/// unified_config.queues: all queues of the interface.
pub const UNIFIED_ALL_QUEUES: u32 = 0xffff_ffff;

/// unified_config.retries: report errors at once.
pub const UNIFIED_NO_RETRY: u32 = 0xffff_ffff;

/// Properties of a context as it was created.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct unified_info {
    /// sizeof(struct unified_info), set by the caller; then the bytes that were filled in.
    pub size: u64,
    /// "nvme passthrough", "block", "file" or "null"; static.
    pub backend: *const c_char,
    /// The mapping that holds the rings and the data buffers; owned by the context.
    pub region: *mut c_void,
    pub region_size: u64,
    /// Offsets from `region`, in bytes.
    pub sq_ring: u64,
    pub cq_ring: u64,
    pub sq_entries_offset: u64,
    pub cq_entries_offset: u64,
    pub buffers: u64,
    pub buffers_size: u64,
    /// Blocks of the device, and bytes in each.
    pub blocks: u64,
    pub block_size: u32,
    /// Maximum number of bytes in one command.
    pub max_transfer: u32,
    /// Alignment mask: a data address with one of these bits set cannot be used in place.
    pub dma_alignment: u32,
    /// NVMe namespace id; 1 for other devices.
    pub nsid: u32,
    pub sq_entries: u32,
    pub cq_entries: u32,
    pub frame_size: u32,
    pub frame_count: u32,
    pub headroom: u32,
    pub ifindex: u32,
    pub queue: u32,
    pub rx_queues: u32,
    /// The kernel's id of the XDP program (bpftool prog show id).
    pub xdp_program_id: u32,
    /// 0 or 1, each as it is and not as it was requested. huge_pages: the whole region is in huge pages, reserved or
    /// transparent.
    pub huge_pages: u8,
    pub native: u8,
    pub zero_copy: u8,
    pub dispatcher: u8,
    pub direct_io: u8,
    pub writable: u8,
    /// 1: completed writes may stay in the device's cache until a flush. 2: unknown.
    pub volatile_cache: u8,
    pub threaded: u8,
    pub reserved: u32,
    /// How many lanes the context has.
    pub lanes: u32,
    /// The lane that this tells about: its rings and its queue. 0 for the handle of the context.
    pub lane: u32,
    /// How many devices the context has. The fields above are about device 0; unified_device_info tells about each.
    pub devices: u32,
    pub reserved1: u32,
}

/// Properties of a device, and what was counted of it: by all lanes, or by the lane whose handle was given.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct unified_device_info {
    /// sizeof(struct unified_device_info), set by the caller; then the bytes that were filled in.
    pub size: u64,
    /// "nvme passthrough", "block", "file" or "null"; static.
    pub backend: *const c_char,
    /// As it was opened; owned by the context.
    pub path: *const c_char,
    /// Blocks of the device, and bytes in each.
    pub blocks: u64,
    pub block_size: u32,
    /// Maximum number of bytes in one command.
    pub max_transfer: u32,
    /// Alignment mask: a data address with one of these bits set cannot be used in place.
    pub dma_alignment: u32,
    /// NVMe namespace id; 1 for other devices.
    pub nsid: u32,
    /// 0 or 1.
    pub direct_io: u8,
    pub writable: u8,
    /// 1: completed writes may stay in the device's cache until a flush. 2: unknown.
    pub volatile_cache: u8,
    /// 1: it has failed while it was recorded to, and has not answered since. It is tried again every second.
    pub out: u8,
    pub reserved: u32,
    /// Operations that the device got, commands that completed with an error, bytes written and read with success, writes
    /// that the device failed and the spill took, and their bytes: parts of the sums in unified_stats.
    pub operations: u64,
    pub errors: u64,
    pub bytes_written: u64,
    pub bytes_read: u64,
    pub spilled: u64,
    pub spilled_bytes: u64,
    /// Operations that the device, or its spill, has not answered yet.
    pub in_flight: u64,
}

/// unified_submission.op: flush `device`, or all devices with UNIFIED_ALL_DEVICES (unified_submit_flush).
pub const UNIFIED_OP_FLUSH: u32 = 0;
/// unified_submission.op: as unified_submit_write.
pub const UNIFIED_OP_WRITE: u32 = 1;
/// unified_submission.op: as unified_submit_read.
pub const UNIFIED_OP_READ: u32 = 2;
/// unified_submission.op: as unified_submit_compare.
pub const UNIFIED_OP_COMPARE: u32 = 5;
/// unified_submission.op: as unified_submit_write_zeroes.
pub const UNIFIED_OP_WRITE_ZEROES: u32 = 8;
/// unified_submission.op: as unified_submit_deallocate.
pub const UNIFIED_OP_DEALLOCATE: u32 = 9;
/// unified_submission.op: `command`, as unified_submit_raw.
pub const UNIFIED_OP_RAW: u32 = 256;
/// unified_submission.device: all devices of the context. Only for UNIFIED_OP_FLUSH.
pub const UNIFIED_ALL_DEVICES: u32 = 0xffff_ffff;

/// A command for unified_submit, which says what to do on which device. Zero the struct, and set `size`, which is the same in all
/// elements of an array.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct unified_submission {
    /// sizeof(struct unified_submission)
    pub size: u64,
    /// First block on the device.
    pub lba: u64,
    /// Comes back with the completion.
    pub user_data: u64,
    /// First byte of the data, inside the frame or buffer. NULL for operations without data.
    pub data: *mut c_void,
    /// For UNIFIED_OP_RAW.
    pub command: *const unified_nvme_command,
    /// UNIFIED_OP_WRITE and so on.
    pub op: u32,
    /// Number of the device.
    pub device: u32,
    /// The frame in which the data lies.
    pub frame: u32,
    /// Bytes from `data`, for writes, reads and compares.
    pub len: u32,
    /// 1 to 65536, for UNIFIED_OP_WRITE_ZEROES and UNIFIED_OP_DEALLOCATE.
    pub blocks: u32,
    /// UNIFIED_FUA, UNIFIED_KEEP, UNIFIED_MORE, for the operations that know them.
    pub flags: u32,
    /// The buffer in which the data lies, instead of a frame (unified_buffer_alloc); `frame` is ignored then. 0: a frame. For
    /// writes, reads, compares and UNIFIED_OP_RAW, without UNIFIED_KEEP.
    pub buffer: u64,
}

/// A buffer. Set `size` before the call.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct unified_buffer_info {
    /// sizeof(struct unified_buffer_info), set by the caller; then the bytes that were filled in.
    pub size: u64,
    /// First byte, on a page; owned by the context, or where the program has mapped it (unified_buffer_import).
    pub data: *mut c_void,
    /// Bytes, as they were asked for.
    pub len: u64,
    /// Commands that use it: submitted, and their completions not yet taken.
    pub commands: u32,
    pub reserved: u32,
}

/// A received packet. Its frame belongs to the caller until it is submitted or released.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct unified_packet {
    /// First byte of the Ethernet header.
    pub data: *mut c_void,
    /// First byte of the UDP payload.
    pub payload: *mut c_void,
    /// When the XDP program saw the packet: ns of CLOCK_MONOTONIC as this process reads it, also in a time namespace. 0 if the
    /// driver has no metadata area.
    pub timestamp: u64,
    /// Bytes from `data`.
    pub len: u32,
    pub payload_len: u32,
    /// The frame's number, for submissions and unified_frame_release.
    pub frame: u32,
    pub queue: u32,
    /// From `data`.
    pub l3_offset: u16,
    pub payload_offset: u16,
    /// Host byte order.
    pub src_port: u16,
    pub dst_port: u16,
    pub vlan_tci: u16,
    /// 4 or 6.
    pub ip_version: u8,
    /// UNIFIED_PACKET_VLAN
    pub flags: u8,
    pub reserved: u32,
}

/// One write of unified_submit_writes. This struct never changes.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct unified_write {
    /// First byte, inside the frame.
    pub data: *const c_void,
    /// First block on the device.
    pub lba: u64,
    /// Comes back with the completion.
    pub user_data: u64,
    /// Bytes from `data`.
    pub len: u32,
    pub frame: u32,
    /// UNIFIED_FUA, UNIFIED_KEEP
    pub flags: u32,
    /// 0
    pub reserved: u32,
}

/// One finished command.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct unified_completion {
    /// As given with the submission.
    pub user_data: u64,
    /// 0, or a negative errno if the operating system failed and not the device.
    pub result: i32,
    /// NVMe status, type << 8 | code; 0 is success. See unified_status_string.
    pub status: u32,
    /// Bytes moved.
    pub len: u32,
    /// Valid with UNIFIED_COMPLETION_FRAME.
    pub frame: u32,
    /// UNIFIED_COMPLETION_DNR, _FRAME, _BOUNCED, _SPILLED
    pub flags: u32,
    /// Number of the device. Of a flush of several devices: that of the device with this status.
    pub device: u32,
}

/// An NVMe command for unified_submit_raw: the fields of a submission queue entry without identifiers
/// and pointers (NVM Express Base Specification 2.0, section 3.3.3).
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct unified_nvme_command {
    pub opcode: u8,
    pub reserved0: u8,
    pub reserved1: u16,
    /// 0: the namespace that was opened.
    pub nsid: u32,
    pub cdw2: u32,
    pub cdw3: u32,
    pub cdw10: u32,
    pub cdw11: u32,
    pub cdw12: u32,
    pub cdw13: u32,
    pub cdw14: u32,
    pub cdw15: u32,
    /// Bytes of data, in or out.
    pub data_len: u32,
    /// ms; 0: the driver's default.
    pub timeout: u32,
}

/// Metadata of one redirected packet, from the BPF ring buffer.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct unified_event {
    /// ns of CLOCK_MONOTONIC, as this process reads it.
    pub timestamp: u64,
    /// Network byte order; IPv4 in the first four bytes.
    pub src_addr: [u8; 16],
    pub dst_addr: [u8; 16],
    /// Host byte order.
    pub src_port: u16,
    pub dst_port: u16,
    pub payload_len: u16,
    pub vlan_tci: u16,
    pub queue: u32,
    /// 4 or 6.
    pub ip_version: u8,
    /// UNIFIED_PACKET_VLAN
    pub flags: u8,
    pub reserved: u16,
}

/// All counters, since the context was created. While no packet and no command is on its way:
/// xdp_seen = xdp_passed + xdp_redirected;
/// xdp_redirected = rx_dropped + rx_ring_full + redirect_errors + received + rx_pending;
/// received = stored + failed + released + packets_held + packets_in_flight;
/// submitted = completed + commands_in_flight;
/// frames_free + frames_filled + frames_held + frames_in_flight = all frames.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct unified_stats {
    /// sizeof(struct unified_stats), set by the caller; then the bytes that were filled in.
    pub size: u64,
    /// Packets that the XDP program saw on the interface.
    pub xdp_seen: u64,
    /// Passed to the kernel's network stack.
    pub xdp_passed: u64,
    /// Redirected to the AF_XDP socket.
    pub xdp_redirected: u64,
    /// UDP to one of the ports.
    pub xdp_matched: u64,
    /// Matched, but on a queue without a socket: passed.
    pub xdp_no_socket: u64,
    /// UDP to one of the ports, with impossible length fields: passed.
    pub xdp_malformed: u64,
    /// IP fragments: passed.
    pub xdp_fragments: u64,
    /// Metadata events written, and events lost because the reader was too slow and the ring buffer was full. Before the first
    /// unified_events or unified_events_fd nothing counts as lost: a full ring buffer keeps the oldest events.
    pub events: u64,
    pub events_lost: u64,
    /// Packets without a metadata record, because the driver has no metadata area.
    pub no_metadata: u64,
    /// Dropped by the kernel because no frame was free, or because the packet is longer than a frame.
    pub rx_dropped: u64,
    /// Dropped by the kernel because the RX ring was full.
    pub rx_ring_full: u64,
    /// Times the fill ring was found empty (the same packets count as rx_dropped in copy mode).
    pub rx_fill_ring_empty: u64,
    /// Redirected packets that no counter of the kernel accounts for.
    pub redirect_errors: u64,
    /// Waiting in the RX ring.
    pub rx_pending: u64,
    /// Packets returned by unified_rx_batch or taken by a pipeline, and their bytes.
    pub received: u64,
    pub received_bytes: u64,
    /// Outcomes of received packets: written with success (bytes include padding), written without success, released without
    /// being written.
    pub stored: u64,
    pub stored_bytes: u64,
    pub failed: u64,
    pub released: u64,
    pub packets_held: u64,
    pub packets_in_flight: u64,
    /// Commands that the engine took, that completed, that completed with an error, and the operations made of them.
    pub submitted: u64,
    pub completed: u64,
    pub errors: u64,
    pub operations: u64,
    pub commands_in_flight: u64,
    /// Submissions refused because the SQ ring was full.
    pub sq_full: u64,
    /// Commands whose data the library copied, and their bytes.
    pub bounced: u64,
    pub bounced_bytes: u64,
    /// Bytes written and read with success, padding included.
    pub bytes_written: u64,
    pub bytes_read: u64,
    pub frames_free: u64,
    /// In the fill ring, or inside the kernel.
    pub frames_filled: u64,
    /// Owned by the caller.
    pub frames_held: u64,
    pub frames_in_flight: u64,
    /// Packets that did not begin at the expected place in their frame.
    pub misplaced: u64,
    /// Invalid descriptors in the RX ring.
    pub bad_descriptors: u64,
    /// 1: the interface is up and has a carrier. 0: it is down or gone, or the context has none.
    pub link_up: u64,
    /// Observed changes between up and down, and the removal of the interface.
    pub link_changes: u64,
    /// 1: the XDP program is still attached. 0: somebody detached or replaced it.
    pub xdp_attached: u64,
    /// How many times somebody else changed the XDP program on the interface.
    pub xdp_changes: u64,
    /// Writes that the device failed and the spill took, and their bytes. They count as `stored`, and not in `errors` or
    /// `bytes_written`.
    pub spilled: u64,
    pub spilled_bytes: u64,
    /// To one of the ports, but several datagrams that the sender (GSO) or the kernel (GRO) merged into one packet:
    /// passed, and not in `xdp_matched`. They can be told apart in SKB mode and on tap interfaces, with kernel 6.2 or
    /// newer and its BTF; native XDP of other drivers is given none.
    pub xdp_merged: u64,
    /// Packets that a pipeline copied together with others (UNIFIED_LAYOUT_LOG), and their bytes. They are among `stored`,
    /// `failed` or `released` as soon as their write has ended.
    pub packed: u64,
    pub packed_bytes: u64,
    /// Free frames that no lane has, part of frames_free. 0 for a lane's handle, and if there is one lane.
    pub frames_reserve: u64,
    /// Buffers that are allocated now, their bytes, and the bytes that are registered for them (at most
    /// unified_config.buffers_max), which are counted once, although the ring of each lane counts them against RLIMIT_MEMLOCK. 0
    /// for a lane's handle.
    pub buffers: u64,
    pub buffer_bytes: u64,
    pub buffer_registered_bytes: u64,
}

/// For unified_ctx_latency: from the arrival of a packet until the completion of its first write was taken. Arrival is when
/// the XDP program saw the packet, or when unified_rx_batch took it if the driver has no metadata area. The count is stored +
/// failed + packets that were written and that the caller owns again.
pub const UNIFIED_LATENCY_PACKET: u32 = 0;
/// For unified_ctx_latency: from the submission of a command to its completion in the CQ ring. With UNIFIED_MORE the
/// submission of the first command of the group counts. The count is `completed`.
pub const UNIFIED_LATENCY_COMMAND: u32 = 1;
/// Elements of unified_latency.buckets; this number never changes.
pub const UNIFIED_LATENCY_BUCKETS: u32 = 101;

/// A histogram of latency, since the context was created.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct unified_latency {
    /// sizeof(struct unified_latency), set by the caller; then the bytes that were filled in.
    pub size: u64,
    /// Number of samples: the sum of `buckets`.
    pub count: u64,
    /// Sum of all samples, ns.
    pub sum: u64,
    /// Longest sample, ns.
    pub max: u64,
    /// Samples per bucket. The upper bounds are 1, 2, 3 and 4 us, then four equal steps up to each power of two: 5, 6, 7, 8,
    /// 10, 12, 14, 16 us and so on up to 67 s. The last bucket has all longer samples. unified_latency_bound returns the
    /// bounds.
    pub buckets: [u64; 101],
}

/// Configuration of a pipeline: what it stores, and where.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct unified_pipeline_config {
    /// sizeof(struct unified_pipeline_config)
    pub size: u64,
    /// First block of the range. UNIFIED_LAYOUT_LOG: on each device, in its own blocks.
    pub start_lba: u64,
    /// Blocks in the range. 0: to the end of each device.
    pub blocks: u64,
    /// UNIFIED_AT_END_STOP or UNIFIED_AT_END_WRAP
    pub at_end: u32,
    /// UNIFIED_FUA, UNIFIED_LOG_NEW, UNIFIED_LOG_UNCHECKED
    pub flags: u32,
    /// UNIFIED_LAYOUT_PAYLOAD, UNIFIED_LAYOUT_SLOT or UNIFIED_LAYOUT_LOG
    pub layout: u32,
    /// Flush after this many completed writes, and this many ms after the last flush if writes completed since. Both 0: one
    /// flush, at the end.
    pub flush_writes: u32,
    pub flush_interval_ms: u32,
    /// Interrupt moderation, us: while packets arrive, the pipeline polls the RX ring at this interval instead of being woken
    /// by each packet, and packets that arrive together become one write. The first packet after a pause is taken at once. 0:
    /// 4000. 1: every packet wakes. At most 1000000. The library polls more often if the RX ring is short (it allows 250 ns
    /// per entry) or fills faster, and at least every flush_interval_ms.
    pub moderation_us: u32,
    /// UNIFIED_LAYOUT_LOG: packets shorter than this, in bytes from the Ethernet header on, are packed. 0: a default that was
    /// measured. 1: none are, unless the device is the bound. UINT32_MAX: all are.
    pub pack_below: u32,
    /// UNIFIED_LAYOUT_PAYLOAD with several devices: payloads go round all devices, so many bytes to one before the next gets
    /// some. A power of two, a multiple of each device's block size, at least frame_size, at most 1 GiB. 0: 1 MiB. No payload
    /// crosses the border of a chunk. start_lba and blocks are blocks of all devices then: see unified_stripe_locate.
    pub chunk_bytes: u32,
}

/// State of a pipeline. Of several lanes together: sums, also of the sequence numbers; `next_lba` and `pack_below` are those of
/// the first lane, and `error` is the first that there is.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct unified_pipeline_status {
    /// sizeof(struct unified_pipeline_status), set by the caller; then the bytes that were filled in.
    pub size: u64,
    /// Block that the next payload goes to.
    pub next_lba: u64,
    /// How many times it began again at the start of the range.
    pub wraps: u64,
    /// Writes submitted, writes completed with success, writes completed without success.
    pub submitted: u64,
    pub stored: u64,
    pub failed: u64,
    /// Payload bytes submitted, without padding.
    pub payload_bytes: u64,
    /// Packets released because the range was full.
    pub no_space: u64,
    /// Packets released because they have no payload.
    pub empty: u64,
    /// 0 or 1.
    pub running: u32,
    /// 0; -ENOSPC: the range was full; -EIO: a flush failed; otherwise the error that ended a thread.
    pub error: i32,
    /// The logs' layouts: the sequence number of the first packet.
    pub first_sequence: u64,
    /// The first `completed` of the submitted writes are completed, with or without success; the first `durable` are on stable
    /// storage.
    pub completed: u64,
    pub durable: u64,
    /// Completed flushes.
    pub flushes: u64,
    /// UNIFIED_LAYOUT_LOG: the value in use of unified_pipeline_config.pack_below. 0 in the other layouts.
    pub pack_below: u64,
    /// UNIFIED_LAYOUT_LOG on several devices: packets that were written again to another device, since theirs failed or did not
    /// answer.
    pub rescued: u64,
    /// UNIFIED_LAYOUT_LOG on several devices: packets that a device had completed, and no flush had covered, when it failed. They
    /// count as durable, and are lost if the device held them in a cache that is gone.
    pub unflushed: u64,
}

/// unified_log_record.kind: a record.
pub const UNIFIED_LOG_RECORD: u32 = 1;
/// unified_log_record.kind: `count` records from `sequence` on were never completed.
pub const UNIFIED_LOG_MISSING: u32 = 2;
/// unified_log_record.kind: `count` records from `sequence` on are damaged.
pub const UNIFIED_LOG_DAMAGED: u32 = 3;
/// unified_log_record.kind: `count` records from `sequence` on were overwritten before they were read.
pub const UNIFIED_LOG_OVERWRITTEN: u32 = 4;

/// A record of a log, or a range of records that is missing, damaged or overwritten.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct unified_log_record {
    /// sizeof(struct unified_log_record), set by the caller; then the bytes that were filled in.
    pub size: u64,
    pub sequence: u64,
    /// Number of records in the range; 1 for a record.
    pub count: u64,
    /// ns since 1970-01-01 UTC when the XDP program saw the packet.
    pub timestamp: u64,
    /// The packet from its Ethernet header on, and its UDP payload. NULL for ranges.
    pub packet: *const c_void,
    pub payload: *const c_void,
    /// Bytes.
    pub len: u32,
    pub payload_len: u32,
    /// UNIFIED_LOG_RECORD, _MISSING, _DAMAGED or _OVERWRITTEN
    pub kind: u32,
    /// Host byte order.
    pub src_port: u16,
    pub dst_port: u16,
    pub vlan_tci: u16,
    pub queue: u16,
    /// 4 or 6.
    pub ip_version: u8,
    /// UNIFIED_PACKET_VLAN
    pub flags: u8,
    /// 0.
    pub reserved: u16,
    /// The lane that received the packet, also of ranges: each lane has its own sequence numbers. 0 if the log has one.
    pub lane: u16,
    /// Number of the device, in its recording, that the record was read from. 0 if the log is on one.
    pub device: u16,
    /// 0.
    pub reserved2: u32,
}

impl Default for unified_log_record {
    fn default() -> Self {
        // SAFETY: plain numbers and pointers, for which zero is a value.
        unsafe { std::mem::zeroed() }
    }
}

/// Properties of a log, and what this reader has read so far.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct unified_log_info {
    /// sizeof(struct unified_log_info), set by the caller; then the bytes that were filled in.
    pub size: u64,
    /// A random number, chosen when the log was created.
    pub log_id: u64,
    /// ns since 1970-01-01 UTC.
    pub created: u64,
    /// Number of records that the log holds before it wraps, and bytes of each.
    pub slots: u64,
    pub slot_size: u32,
    pub block_size: u32,
    /// Sequence numbers: of the oldest record, of the record after the newest, and of the record that is read next.
    pub oldest: u64,
    pub end: u64,
    pub position: u64,
    /// Found by this reader so far.
    pub records: u64,
    pub missing: u64,
    pub damaged: u64,
    pub overwritten: u64,
    /// Packets for the recorded ports that the kernel dropped since the log was created, because the RX ring was full or no
    /// frame was free. It is the sum over all recorders that wrote to this log. A recorder updates it once a second and when
    /// it ends.
    pub dropped: u64,
    /// Packets for the recorded ports that were seen but not recorded: they came to another queue, were merged or malformed, or
    /// the log was full.
    pub unrecorded: u64,
    /// ns since 1970-01-01 UTC when a loss was first noticed, and when more was last noticed; 0: never.
    pub first_loss: u64,
    pub last_loss: u64,
    /// Name of the last recorder's interface, ended by a zero; empty if it is not known.
    pub interface: [c_char; 16],
    /// Of the log's format: 1 (UNIFIED_LAYOUT_SLOT) or 2 (UNIFIED_LAYOUT_LOG).
    pub version: u32,
    /// 0.
    pub reserved: u32,
    /// Lanes that wrote the log. `oldest`, `end` and `position` are sums over them.
    pub lanes: u32,
    /// Devices that the recording has, and those of them that are read.
    pub devices: u32,
    pub devices_given: u32,
    /// 0.
    pub reserved2: u32,
}
