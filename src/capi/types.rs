//! The structs that C sees. Those that begin with `size` may grow at their end.

use std::ffi::{c_char, c_void};

pub const UNIFIED_DRIVE_INLINE: u32 = 0;
pub const UNIFIED_DRIVE_THREAD: u32 = 1;

pub const UNIFIED_XDP_AUTO: u32 = 0;
pub const UNIFIED_XDP_NATIVE: u32 = 1;
pub const UNIFIED_XDP_SKB: u32 = 2;

pub const UNIFIED_COPY_AUTO: u32 = 0;
pub const UNIFIED_COPY_ONLY: u32 = 1;
pub const UNIFIED_COPY_ZERO: u32 = 2;

/// Configuration flag: take reserved 2 MiB pages (vm.nr_hugepages) where there are enough. Without it, and where
/// there are not, the region is in transparent ones where the kernel gives them
/// (/sys/kernel/mm/transparent_hugepage/enabled is "madvise" or "always") and it fills one, and else in pages of
/// 4 KiB; see unified_info.huge_pages.
pub const UNIFIED_HUGE_PAGES: u32 = 1;
/// Configuration flag: write even to a device that is mounted, held or partitioned, or that holds a file system,
/// a volume, a partition table or the like; and begin a log in a range that holds something else. Destroys data.
pub const UNIFIED_FORCE: u32 = 2;
/// Configuration flag: open the device for reading only.
pub const UNIFIED_READ_ONLY: u32 = 4;
/// Configuration flag: use the block layer also where NVMe passthrough would do.
pub const UNIFIED_NO_PASSTHROUGH: u32 = 8;
/// Configuration flag: never copy in the library; the kernel gets misaligned data as it is.
pub const UNIFIED_NO_BOUNCE: u32 = 16;
/// Configuration flag: take `headroom` as it is, also 0.
pub const UNIFIED_HEADROOM: u32 = 32;
/// Configuration flag: log no metadata events.
pub const UNIFIED_NO_EVENTS: u32 = 64;
/// Configuration flag: `xsk_map_fd` is set.
pub const UNIFIED_XSK_MAP_FD: u32 = 128;
/// Configuration flag: `xsk_fd` is set.
pub const UNIFIED_XSK_FD: u32 = 256;
/// Configuration flag: `device_fd` is set.
pub const UNIFIED_DEVICE_FD: u32 = 512;

/// Submission flag: on the medium when it completes (Force Unit Access), also where the device caches.
pub const UNIFIED_FUA: u32 = 1;
/// Submission flag: the completion gives the frame back to the caller instead of to the fill ring.
pub const UNIFIED_KEEP: u32 = 2;
/// Submission flag: more follows at once; the engine sees it with the next submission without this flag.
pub const UNIFIED_MORE: u32 = 4;

/// For unified_wait: packets.
pub const UNIFIED_WAIT_RX: u32 = 1;
/// For unified_wait: completions.
pub const UNIFIED_WAIT_COMPLETIONS: u32 = 2;

/// unified_packet.flags: `vlan_tci` holds the outermost VLAN tag.
pub const UNIFIED_PACKET_VLAN: u8 = 1;

/// unified_completion.flags: the device says that trying again is useless (NVMe DNR).
pub const UNIFIED_COMPLETION_DNR: u32 = 1;
/// unified_completion.flags: `frame` is in the caller's hands again.
pub const UNIFIED_COMPLETION_FRAME: u32 = 2;
/// unified_completion.flags: the library copied the data, because the device could not take it in place.
pub const UNIFIED_COMPLETION_BOUNCED: u32 = 4;
/// unified_completion.flags: the device failed the write, and it is in the spill (unified_config.spill).
pub const UNIFIED_COMPLETION_SPILLED: u32 = 8;

/// unified_pipeline_config.layout: payloads, padded to blocks.
pub const UNIFIED_LAYOUT_PAYLOAD: u32 = 0;
/// unified_pipeline_config.layout: a log of whole frames (docs/record-format.md).
pub const UNIFIED_LAYOUT_SLOT: u32 = 1;
/// unified_pipeline_config.flags: begin a new log; an earlier one in the range counts no more, and whatever else is
/// there is written over.
pub const UNIFIED_LOG_NEW: u32 = 8;
/// unified_pipeline_config.at_end: stop storing; further packets are counted and let go.
pub const UNIFIED_AT_END_STOP: u32 = 0;
/// unified_pipeline_config.at_end: begin again at the start of the range.
pub const UNIFIED_AT_END_WRAP: u32 = 1;

/// What a context is made of. Zero everything, set `size` and `device`, and what differs from the
/// defaults; zero means the default everywhere.
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
    /// A regular file is made and given at least this many bytes. 0: it is taken as it is.
    pub file_size: u64,
    /// Receive queue of the interface, from 0.
    pub queue: u32,
    /// UNIFIED_HUGE_PAGES and the other configuration flags.
    pub flags: u32,
    /// UDP destination ports, host byte order, each 1 to 65535. Default: 9999.
    pub ports: *const u16,
    pub port_count: u32,
    /// UNIFIED_DRIVE_INLINE: whoever asks for completions drives the device.
    /// UNIFIED_DRIVE_THREAD: a thread of the library does.
    pub drive: u32,
    /// Bytes: 2048 (default) or 4096.
    pub frame_size: u32,
    /// Frames: 64 to 4194304. Default 4096.
    pub frame_count: u32,
    /// Bytes before each packet beside the kernel's 256. Default 214, which puts the payload of a plain
    /// IPv4 packet on byte 512 of its frame. Only with UNIFIED_HEADROOM.
    pub headroom: u32,
    /// Ring entries, powers of two up to 32768. Default 256.
    pub sq_entries: u32,
    pub cq_entries: u32,
    /// AF_XDP ring entries, powers of two. Default 2048.
    pub rx_ring: u32,
    pub fill_ring: u32,
    /// UNIFIED_XDP_AUTO (native, else SKB), _NATIVE or _SKB.
    pub xdp_mode: u32,
    /// UNIFIED_COPY_AUTO (zero-copy, else copy), _ONLY or _ZERO.
    pub copy_mode: u32,
    /// Among several XDP programs on the interface: 1 to 65535, low runs first. Default 50.
    pub run_priority: u32,
    /// One metadata event in so many packets. Default 1 (each).
    pub event_sample: u32,
    /// Bytes of the events ring buffer, a power of two from 4096. Default 262144.
    pub events_bytes: u32,
    /// Bytes in a block of a regular file or of "null:": 512, 1024, 2048 or 4096. Default: the smallest
    /// that the file takes. Devices have their own.
    pub block_size: u32,
    /// Must be 0.
    pub reserved: u32,
    /// Operations of storage that fail for now (EINTR, EAGAIN; with a backoff also ENOMEM, EBUSY and NVMe
    /// statuses that ask for patience) are sent again so often: 1 to 255. Default 8.
    /// UNIFIED_NO_RETRY: never.
    pub retries: u32,
    /// Microseconds before the first retry, doubled before each further one, up to a second. Default: at once.
    pub retry_backoff_us: u32,
    /// Milliseconds after the first failure from which on no more is tried. Default: only `retries` counts.
    pub retry_give_up_ms: u32,
    /// Descriptors that somebody with more privileges opened, each only with its flag; they stay the caller's,
    /// who may close them after unified_ctx_create. With UNIFIED_XSK_MAP_FD: the map of AF_XDP sockets
    /// (BPF_MAP_TYPE_XSKMAP) of the XDP program that is on the interface already; the library attaches none,
    /// `ports` and events are that program's affair, and the xdp_* statistics stay 0.
    pub xsk_map_fd: i32,
    /// With UNIFIED_XSK_FD: socket(AF_XDP, SOCK_RAW, 0), not bound, in the interface's network namespace. It
    /// serves one context.
    pub xsk_fd: i32,
    /// With UNIFIED_DEVICE_FD: a regular file, block device or NVMe namespace, open for reading and writing;
    /// with O_DIRECT or without, but not with O_APPEND. `device` may be NULL and only names it. While the context
    /// lives no other one writes to the device, also not by a copy of this descriptor in another process.
    pub device_fd: i32,
    /// Where writes go that the device failed after all retries: a regular file, made where there is none, or a
    /// block device at least as long; at the same address, padded as for the device. They complete with
    /// success and UNIFIED_COMPLETION_SPILLED, and a flush covers them. NULL: nowhere.
    pub spill: *const c_char,
}

/// unified_config.retries: errors are given out at once.
pub const UNIFIED_NO_RETRY: u32 = 0xffff_ffff;

/// What a context turned out to be.
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
    /// Most bytes in one command.
    pub max_transfer: u32,
    /// Bits that a data address must not have set for the device to take it in place.
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
    /// 0 or 1, each as it is, not as it was asked for. Huge pages: all of the region's, reserved or transparent.
    pub huge_pages: u8,
    pub native: u8,
    pub zero_copy: u8,
    pub dispatcher: u8,
    pub direct_io: u8,
    pub writable: u8,
    /// 1: completed writes may sit in the device's cache until a flush; 2: not known.
    pub volatile_cache: u8,
    pub threaded: u8,
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
    /// ns of CLOCK_MONOTONIC, as this process reads it (also in a time namespace), when the XDP program saw it; 0 where the driver has no metadata area.
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

/// One finished command.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct unified_completion {
    /// As given with the submission.
    pub user_data: u64,
    /// 0, or a negative errno where the system failed rather than the device.
    pub result: i32,
    /// NVMe status, type << 8 | code; 0 is success. See unified_status_string.
    pub status: u32,
    /// Bytes moved.
    pub len: u32,
    /// Valid with UNIFIED_COMPLETION_FRAME.
    pub frame: u32,
    /// UNIFIED_COMPLETION_DNR, _FRAME, _BOUNCED
    pub flags: u32,
    pub reserved: u32,
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

/// Everything that is counted, since the context was made. At a quiet moment:
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
    /// Handed on to the kernel's stack.
    pub xdp_passed: u64,
    /// Sent to the AF_XDP socket.
    pub xdp_redirected: u64,
    /// UDP to one of the ports.
    pub xdp_matched: u64,
    /// Matched, but on a queue without a socket: passed.
    pub xdp_no_socket: u64,
    /// To one of the ports, with lengths that cannot be: passed.
    pub xdp_malformed: u64,
    /// IP fragments: passed.
    pub xdp_fragments: u64,
    /// Metadata events written; and lost, because the ring buffer was full although they are read. Before the first
    /// unified_events or unified_events_fd a full ring buffer keeps the oldest, and nothing counts as lost.
    pub events: u64,
    pub events_lost: u64,
    /// Packets without a metadata record, because the driver has no room for one.
    pub no_metadata: u64,
    /// Dropped by the kernel for want of a frame, or because longer than one.
    pub rx_dropped: u64,
    /// Dropped by the kernel because the RX ring was full.
    pub rx_ring_full: u64,
    /// Times the fill ring was found empty (the same packets count as rx_dropped in copy mode).
    pub rx_fill_ring_empty: u64,
    /// Redirected packets that the kernel counts nowhere.
    pub redirect_errors: u64,
    /// Waiting in the RX ring.
    pub rx_pending: u64,
    /// Packets handed out, and their bytes.
    pub received: u64,
    pub received_bytes: u64,
    /// Fates of received packets: written with success (the bytes with their padding), written without,
    /// let go unwritten.
    pub stored: u64,
    pub stored_bytes: u64,
    pub failed: u64,
    pub released: u64,
    pub packets_held: u64,
    pub packets_in_flight: u64,
    /// Commands taken by the engine, completed, completed with an error, and operations made of them.
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
    /// In the fill ring, or on their way through the kernel.
    pub frames_filled: u64,
    /// In the caller's hands.
    pub frames_held: u64,
    pub frames_in_flight: u64,
    /// Packets not where the headroom should have put them.
    pub misplaced: u64,
    /// Descriptors of the kernel that made no sense.
    pub bad_descriptors: u64,
    /// 1: the interface is up and has a carrier. 0 also where it is gone, or where there is none.
    pub link_up: u64,
    /// Changes between up and down that were noticed, and the end of the interface.
    pub link_changes: u64,
    /// 1: the XDP program is where it was put. 0: somebody took it off or replaced it.
    pub xdp_attached: u64,
    /// Times that somebody else changed the XDP program on the interface.
    pub xdp_changes: u64,
    /// Writes that the device failed and the spill took, and their bytes. They are `stored`, and not in `errors`
    /// and `bytes_written`.
    pub spilled: u64,
    pub spilled_bytes: u64,
    /// To one of the ports, but several datagrams that the sender (GSO) or the kernel (GRO) merged into one packet:
    /// passed, and not in `xdp_matched`. They can be told apart in SKB mode and on tap interfaces, with kernel 6.2 or
    /// newer and its BTF; native XDP of other drivers is given none.
    pub xdp_merged: u64,
}

/// For unified_ctx_latency: from a packet's arrival (when the XDP program saw it; where the driver has no metadata
/// area, when unified_rx_batch took it) until the completion of its first write was taken. It counts stored +
/// failed, and packets that were written and are in the caller's hands.
pub const UNIFIED_LATENCY_PACKET: u32 = 0;
/// For unified_ctx_latency: from a command's submission (that of the first one, where several were made visible
/// together with UNIFIED_MORE) to its completion in the CQ ring. It counts completed.
pub const UNIFIED_LATENCY_COMMAND: u32 = 1;
/// Elements of unified_latency.buckets; this number never changes.
pub const UNIFIED_LATENCY_BUCKETS: u32 = 101;

/// How long things took, since the context was made.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct unified_latency {
    /// sizeof(struct unified_latency), set by the caller; then the bytes that were filled in.
    pub size: u64,
    /// How often: the sum of `buckets`.
    pub count: u64,
    /// All times together, ns.
    pub sum: u64,
    /// The longest, ns.
    pub max: u64,
    /// How often it took at most 1, 2, 3 and 4 us, then in four equal steps up to each power of two: 5, 6, 7, 8, 10,
    /// 12, 14, 16 us and so on up to 67 s; the last one: longer. Each counts what is in none before it. See
    /// unified_latency_bound.
    pub buckets: [u64; 101],
}

/// What a pipeline stores, and where.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct unified_pipeline_config {
    /// sizeof(struct unified_pipeline_config)
    pub size: u64,
    /// First block of the range.
    pub start_lba: u64,
    /// Blocks in the range. 0: to the device's end.
    pub blocks: u64,
    /// UNIFIED_AT_END_STOP or UNIFIED_AT_END_WRAP
    pub at_end: u32,
    /// UNIFIED_FUA, UNIFIED_LOG_NEW
    pub flags: u32,
    /// UNIFIED_LAYOUT_PAYLOAD or UNIFIED_LAYOUT_SLOT
    pub layout: u32,
    /// Group flush: after so many completed writes, and so many ms after the last flush where something
    /// was completed since. Both 0: one flush, at the end.
    pub flush_writes: u32,
    pub flush_interval_ms: u32,
    /// While packets come, the RX ring is looked at after so many us at the latest, and nobody is woken in between: what
    /// comes meanwhile becomes one write. The first packet after a pause is taken at once. 0: 4000; 1: every packet wakes;
    /// at most 1000000. The library looks more often where the RX ring is short (each of its entries is good for 250 ns)
    /// or fills faster, and at least every flush_interval_ms.
    pub moderation_us: u32,
}

/// Where a pipeline stands.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct unified_pipeline_status {
    /// sizeof(struct unified_pipeline_status), set by the caller; then the bytes that were filled in.
    pub size: u64,
    /// Where the next payload goes.
    pub next_lba: u64,
    /// Times it began again at the start.
    pub wraps: u64,
    /// Writes submitted, completed with success, and without.
    pub submitted: u64,
    pub stored: u64,
    pub failed: u64,
    /// Payload bytes submitted, without padding.
    pub payload_bytes: u64,
    /// Packets let go because the range was full.
    pub no_space: u64,
    /// Packets let go because they carry no payload.
    pub empty: u64,
    /// 0 or 1.
    pub running: u32,
    /// 0, -ENOSPC where the range was full, -EIO where a flush failed, or what ended a thread.
    pub error: i32,
    /// Slot layout: the sequence number of the first write.
    pub first_sequence: u64,
    /// The first so many of `submitted` are completed (with success or without); and durable.
    pub completed: u64,
    pub durable: u64,
    /// Flushes that were answered.
    pub flushes: u64,
}

/// unified_log_record.kind: a record.
pub const UNIFIED_LOG_RECORD: u32 = 1;
/// unified_log_record.kind: `count` records from `sequence` on were never completed.
pub const UNIFIED_LOG_MISSING: u32 = 2;
/// unified_log_record.kind: `count` records from `sequence` on are damaged.
pub const UNIFIED_LOG_DAMAGED: u32 = 3;
/// unified_log_record.kind: `count` records from `sequence` on were overwritten before they were read.
pub const UNIFIED_LOG_OVERWRITTEN: u32 = 4;

/// One thing found in a log.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct unified_log_record {
    /// sizeof(struct unified_log_record), set by the caller; then the bytes that were filled in.
    pub size: u64,
    pub sequence: u64,
    /// Records in the range; 1 for a record.
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
    pub reserved: u16,
}

impl Default for unified_log_record {
    fn default() -> Self {
        // SAFETY: plain numbers and pointers, for which zero is a value.
        unsafe { std::mem::zeroed() }
    }
}

/// What a log is, and what has been read of it.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct unified_log_info {
    /// sizeof(struct unified_log_info), set by the caller; then the bytes that were filled in.
    pub size: u64,
    /// Random, given when the log was made.
    pub log_id: u64,
    /// ns since 1970-01-01 UTC.
    pub created: u64,
    /// Records that it holds before it wraps, and bytes of each.
    pub slots: u64,
    pub slot_size: u32,
    pub block_size: u32,
    /// Sequence numbers: of the oldest record, behind the newest, and of the one that is read next.
    pub oldest: u64,
    pub end: u64,
    pub position: u64,
    /// Met by this reader so far.
    pub records: u64,
    pub missing: u64,
    pub damaged: u64,
    pub overwritten: u64,
    /// Packets of the recorded ports that the kernel dropped, since the log was made: the RX ring was full, or no frame was
    /// free. All recorders that wrote to this log together; they look once a second, and when they end.
    pub dropped: u64,
    /// Packets of the recorded ports that were seen and not recorded: they came to another queue, were merged or
    /// malformed, or the log had no room.
    pub unrecorded: u64,
    /// ns since 1970-01-01 UTC when a loss was first noticed, and when more was last noticed; 0: never.
    pub first_loss: u64,
    pub last_loss: u64,
    /// Name of the last recorder's interface, ended by a zero; empty if it is not known.
    pub interface: [c_char; 16],
}
