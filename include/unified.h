/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/*
 * unified: packets from AF_XDP to NVMe (io_uring passthrough) without a copy.
 *
 * Functions return 0 or a count, or a negative errno; unified_last_error() then says in words what was
 * tried, on what, and what to do. Structs that begin with `size` may grow: zero them, set the size.
 *
 * Growth: a size from 8 to 65536 is taken, smaller than this header's (an older program) or larger (a newer one);
 * any other is -EINVAL. In a struct that is read, fields behind a smaller size are zero, and bytes of a larger one
 * that this version does not know must be zero, else -E2BIG. In one that is filled in, no byte behind its size and
 * none that this version does not know is written, and `size` says afterwards how many were.
 *
 * Threads: control functions (create, destroy, info, stats, ports, events, pipeline) may be called from
 * any thread. The data path has two roles, each one thread at a time: the receiver (frame_alloc,
 * rx_batch, every submit) and the taker (completions); one thread may have both. A second thread in a
 * role gets -EBUSY. Handles do not work in a forked child.
 *
 * Unloading: dlclose leaves nothing once every context is destroyed and every log closed. Threads that have called
 * the library must have ended before, or the C library keeps it mapped: their last message is still theirs.
 *
 * Order: the device may execute and complete commands in any order, whatever order they were submitted in;
 * who needs one waits for a completion before the next submission. A flush covers the writes whose
 * completion was given before it was submitted. Neighbouring writes (or reads) may reach the device as one
 * command; each has its own completion with its own status.
 *
 * Ownership: a frame is the caller's after rx_batch or frame_alloc, the library's after a submission
 * that succeeded, and free or the caller's again (UNIFIED_COMPLETION_FRAME) once its completion was taken.
 */

#ifndef UNIFIED_H
#define UNIFIED_H

/* Made by cbindgen from src/capi; do not edit. Checked by tests/header.rs. */

#include <stdint.h>

typedef struct unified_ctx unified_ctx; /* A context: opaque. */
typedef struct unified_log unified_log; /* A log being read: opaque. */

#define UNIFIED_DRIVE_INLINE 0

#define UNIFIED_DRIVE_THREAD 1

#define UNIFIED_XDP_AUTO 0

#define UNIFIED_XDP_NATIVE 1

#define UNIFIED_XDP_SKB 2

#define UNIFIED_COPY_AUTO 0

#define UNIFIED_COPY_ONLY 1

#define UNIFIED_COPY_ZERO 2

/**
 * Configuration flag: take reserved 2 MiB pages (vm.nr_hugepages) where there are enough. Without it, and where
 * there are not, the region is in transparent ones where the kernel gives them
 * (/sys/kernel/mm/transparent_hugepage/enabled is "madvise" or "always") and it fills one, and else in pages of
 * 4 KiB; see unified_info.huge_pages.
 */
#define UNIFIED_HUGE_PAGES 1

/**
 * Configuration flag: write even to a device that is mounted, held or partitioned, or that holds a file system,
 * a volume, a partition table or the like; and begin a log in a range that holds something else. Destroys data.
 */
#define UNIFIED_FORCE 2

/**
 * Configuration flag: open the device for reading only.
 */
#define UNIFIED_READ_ONLY 4

/**
 * Configuration flag: use the block layer also where NVMe passthrough would do.
 */
#define UNIFIED_NO_PASSTHROUGH 8

/**
 * Configuration flag: never copy in the library; the kernel gets misaligned data as it is.
 */
#define UNIFIED_NO_BOUNCE 16

/**
 * Configuration flag: take `headroom` as it is, also 0.
 */
#define UNIFIED_HEADROOM 32

/**
 * Configuration flag: log no metadata events.
 */
#define UNIFIED_NO_EVENTS 64

/**
 * Configuration flag: `xsk_map_fd` is set.
 */
#define UNIFIED_XSK_MAP_FD 128

/**
 * Configuration flag: `xsk_fd` is set.
 */
#define UNIFIED_XSK_FD 256

/**
 * Configuration flag: `device_fd` is set.
 */
#define UNIFIED_DEVICE_FD 512

/**
 * Submission flag: on the medium when it completes (Force Unit Access), also where the device caches.
 */
#define UNIFIED_FUA 1

/**
 * Submission flag: the completion gives the frame back to the caller instead of to the fill ring.
 */
#define UNIFIED_KEEP 2

/**
 * Submission flag: more follows at once; the engine sees it with the next submission without this flag.
 */
#define UNIFIED_MORE 4

/**
 * For unified_wait: packets.
 */
#define UNIFIED_WAIT_RX 1

/**
 * For unified_wait: completions.
 */
#define UNIFIED_WAIT_COMPLETIONS 2

/**
 * unified_packet.flags: `vlan_tci` holds the outermost VLAN tag.
 */
#define UNIFIED_PACKET_VLAN 1

/**
 * unified_completion.flags: the device says that trying again is useless (NVMe DNR).
 */
#define UNIFIED_COMPLETION_DNR 1

/**
 * unified_completion.flags: `frame` is in the caller's hands again.
 */
#define UNIFIED_COMPLETION_FRAME 2

/**
 * unified_completion.flags: the library copied the data, because the device could not take it in place.
 */
#define UNIFIED_COMPLETION_BOUNCED 4

/**
 * unified_completion.flags: the device failed the write, and it is in the spill (unified_config.spill).
 */
#define UNIFIED_COMPLETION_SPILLED 8

/**
 * unified_pipeline_config.layout: payloads, padded to blocks.
 */
#define UNIFIED_LAYOUT_PAYLOAD 0

/**
 * unified_pipeline_config.layout: a log of whole frames (docs/record-format.md).
 */
#define UNIFIED_LAYOUT_SLOT 1

/**
 * unified_pipeline_config.flags: begin a new log; an earlier one in the range counts no more, and whatever else is
 * there is written over.
 */
#define UNIFIED_LOG_NEW 8

/**
 * unified_pipeline_config.at_end: stop storing; further packets are counted and let go.
 */
#define UNIFIED_AT_END_STOP 0

/**
 * unified_pipeline_config.at_end: begin again at the start of the range.
 */
#define UNIFIED_AT_END_WRAP 1

/**
 * unified_config.retries: errors are given out at once.
 */
#define UNIFIED_NO_RETRY 4294967295

/**
 * For unified_ctx_latency: from a packet's arrival (when the XDP program saw it; where the driver has no metadata
 * area, when unified_rx_batch took it) until the completion of its first write was taken. It counts stored +
 * failed, and packets that were written and are in the caller's hands.
 */
#define UNIFIED_LATENCY_PACKET 0

/**
 * For unified_ctx_latency: from a command's submission (that of the first one, where several were made visible
 * together with UNIFIED_MORE) to its completion in the CQ ring. It counts completed.
 */
#define UNIFIED_LATENCY_COMMAND 1

/**
 * Elements of unified_latency.buckets; this number never changes.
 */
#define UNIFIED_LATENCY_BUCKETS 101

/**
 * unified_log_record.kind: a record.
 */
#define UNIFIED_LOG_RECORD 1

/**
 * unified_log_record.kind: `count` records from `sequence` on were never completed.
 */
#define UNIFIED_LOG_MISSING 2

/**
 * unified_log_record.kind: `count` records from `sequence` on are damaged.
 */
#define UNIFIED_LOG_DAMAGED 3

/**
 * unified_log_record.kind: `count` records from `sequence` on were overwritten before they were read.
 */
#define UNIFIED_LOG_OVERWRITTEN 4

/**
 * A log that is being read. As with contexts, the cell behind the handle is never freed.
 */
struct unified_log;

/**
 * Receives log lines of the library, of libxdp and of libbpf. `level`: 0 error, 1 warning, 2 info, 3
 * debug. `line` ends in a zero byte and lives during the call. Called from any thread; it must return
 * (longjmp out of it is forbidden) and must not call unified_set_log_callback.
 */
typedef void (*unified_log_fn)(int level, const char *line, void *user);

/**
 * What a context is made of. Zero everything, set `size` and `device`, and what differs from the
 * defaults; zero means the default everywhere.
 */
struct unified_config {
  /**
   * sizeof(struct unified_config)
   */
  uint64_t size;
  /**
   * Interface to receive from. NULL: storage only.
   */
  const char *ifname;
  /**
   * /dev/ngXnY or /dev/nvmeXnY (NVMe passthrough), another block device, a regular file, or
   * "null:" (stores nothing; "null:BYTES" gives its size).
   */
  const char *device;
  /**
   * A regular file is made and given at least this many bytes. 0: it is taken as it is.
   */
  uint64_t file_size;
  /**
   * Receive queue of the interface, from 0.
   */
  uint32_t queue;
  /**
   * UNIFIED_HUGE_PAGES and the other configuration flags.
   */
  uint32_t flags;
  /**
   * UDP destination ports, host byte order, each 1 to 65535. Default: 9999.
   */
  const uint16_t *ports;
  uint32_t port_count;
  /**
   * UNIFIED_DRIVE_INLINE: whoever asks for completions drives the device.
   * UNIFIED_DRIVE_THREAD: a thread of the library does.
   */
  uint32_t drive;
  /**
   * Bytes: 2048 (default) or 4096.
   */
  uint32_t frame_size;
  /**
   * Frames: 64 to 4194304. Default 4096.
   */
  uint32_t frame_count;
  /**
   * Bytes before each packet beside the kernel's 256. Default 214, which puts the payload of a plain
   * IPv4 packet on byte 512 of its frame. Only with UNIFIED_HEADROOM.
   */
  uint32_t headroom;
  /**
   * Ring entries, powers of two up to 32768. Default 256.
   */
  uint32_t sq_entries;
  uint32_t cq_entries;
  /**
   * AF_XDP ring entries, powers of two. Default 2048.
   */
  uint32_t rx_ring;
  uint32_t fill_ring;
  /**
   * UNIFIED_XDP_AUTO (native, else SKB), _NATIVE or _SKB.
   */
  uint32_t xdp_mode;
  /**
   * UNIFIED_COPY_AUTO (zero-copy, else copy), _ONLY or _ZERO.
   */
  uint32_t copy_mode;
  /**
   * Among several XDP programs on the interface: 1 to 65535, low runs first. Default 50.
   */
  uint32_t run_priority;
  /**
   * One metadata event in so many packets. Default 1 (each).
   */
  uint32_t event_sample;
  /**
   * Bytes of the events ring buffer, a power of two from 4096. Default 262144.
   */
  uint32_t events_bytes;
  /**
   * Bytes in a block of a regular file or of "null:": 512, 1024, 2048 or 4096. Default: the smallest
   * that the file takes. Devices have their own.
   */
  uint32_t block_size;
  /**
   * Must be 0.
   */
  uint32_t reserved;
  /**
   * Operations of storage that fail for now (EINTR, EAGAIN; with a backoff also ENOMEM, EBUSY and NVMe
   * statuses that ask for patience) are sent again so often: 1 to 255. Default 8.
   * UNIFIED_NO_RETRY: never.
   */
  uint32_t retries;
  /**
   * Microseconds before the first retry, doubled before each further one, up to a second. Default: at once.
   */
  uint32_t retry_backoff_us;
  /**
   * Milliseconds after the first failure from which on no more is tried. Default: only `retries` counts.
   */
  uint32_t retry_give_up_ms;
  /**
   * Descriptors that somebody with more privileges opened, each only with its flag; they stay the caller's,
   * who may close them after unified_ctx_create. With UNIFIED_XSK_MAP_FD: the map of AF_XDP sockets
   * (BPF_MAP_TYPE_XSKMAP) of the XDP program that is on the interface already; the library attaches none,
   * `ports` and events are that program's affair, and the xdp_* statistics stay 0.
   */
  int32_t xsk_map_fd;
  /**
   * With UNIFIED_XSK_FD: socket(AF_XDP, SOCK_RAW, 0), not bound, in the interface's network namespace. It
   * serves one context.
   */
  int32_t xsk_fd;
  /**
   * With UNIFIED_DEVICE_FD: a regular file, block device or NVMe namespace, open for reading and writing;
   * with O_DIRECT or without, but not with O_APPEND. `device` may be NULL and only names it. While the context
   * lives no other one writes to the device, also not by a copy of this descriptor in another process.
   */
  int32_t device_fd;
  /**
   * Where writes go that the device failed after all retries: a regular file, made where there is none, or a
   * block device at least as long; at the same address, padded as for the device. They complete with
   * success and UNIFIED_COMPLETION_SPILLED, and a flush covers them. NULL: nowhere.
   */
  const char *spill;
};

/**
 * What a context turned out to be.
 */
struct unified_info {
  /**
   * sizeof(struct unified_info), set by the caller; then the bytes that were filled in.
   */
  uint64_t size;
  /**
   * "nvme passthrough", "block", "file" or "null"; static.
   */
  const char *backend;
  /**
   * The mapping that holds the rings and the data buffers; owned by the context.
   */
  void *region;
  uint64_t region_size;
  /**
   * Offsets from `region`, in bytes.
   */
  uint64_t sq_ring;
  uint64_t cq_ring;
  uint64_t sq_entries_offset;
  uint64_t cq_entries_offset;
  uint64_t buffers;
  uint64_t buffers_size;
  /**
   * Blocks of the device, and bytes in each.
   */
  uint64_t blocks;
  uint32_t block_size;
  /**
   * Most bytes in one command.
   */
  uint32_t max_transfer;
  /**
   * Bits that a data address must not have set for the device to take it in place.
   */
  uint32_t dma_alignment;
  /**
   * NVMe namespace id; 1 for other devices.
   */
  uint32_t nsid;
  uint32_t sq_entries;
  uint32_t cq_entries;
  uint32_t frame_size;
  uint32_t frame_count;
  uint32_t headroom;
  uint32_t ifindex;
  uint32_t queue;
  uint32_t rx_queues;
  /**
   * The kernel's id of the XDP program (bpftool prog show id).
   */
  uint32_t xdp_program_id;
  /**
   * 0 or 1, each as it is, not as it was asked for. Huge pages: all of the region's, reserved or transparent.
   */
  uint8_t huge_pages;
  uint8_t native;
  uint8_t zero_copy;
  uint8_t dispatcher;
  uint8_t direct_io;
  uint8_t writable;
  /**
   * 1: completed writes may sit in the device's cache until a flush; 2: not known.
   */
  uint8_t volatile_cache;
  uint8_t threaded;
  uint32_t reserved;
};

/**
 * Everything that is counted, since the context was made. At a quiet moment:
 * xdp_seen = xdp_passed + xdp_redirected;
 * xdp_redirected = rx_dropped + rx_ring_full + redirect_errors + received + rx_pending;
 * received = stored + failed + released + packets_held + packets_in_flight;
 * submitted = completed + commands_in_flight;
 * frames_free + frames_filled + frames_held + frames_in_flight = all frames.
 */
struct unified_stats {
  /**
   * sizeof(struct unified_stats), set by the caller; then the bytes that were filled in.
   */
  uint64_t size;
  /**
   * Packets that the XDP program saw on the interface.
   */
  uint64_t xdp_seen;
  /**
   * Handed on to the kernel's stack.
   */
  uint64_t xdp_passed;
  /**
   * Sent to the AF_XDP socket.
   */
  uint64_t xdp_redirected;
  /**
   * UDP to one of the ports.
   */
  uint64_t xdp_matched;
  /**
   * Matched, but on a queue without a socket: passed.
   */
  uint64_t xdp_no_socket;
  /**
   * To one of the ports, with lengths that cannot be: passed.
   */
  uint64_t xdp_malformed;
  /**
   * IP fragments: passed.
   */
  uint64_t xdp_fragments;
  /**
   * Metadata events written; and lost, because the ring buffer was full although they are read. Before the first
   * unified_events or unified_events_fd a full ring buffer keeps the oldest, and nothing counts as lost.
   */
  uint64_t events;
  uint64_t events_lost;
  /**
   * Packets without a metadata record, because the driver has no room for one.
   */
  uint64_t no_metadata;
  /**
   * Dropped by the kernel for want of a frame, or because longer than one.
   */
  uint64_t rx_dropped;
  /**
   * Dropped by the kernel because the RX ring was full.
   */
  uint64_t rx_ring_full;
  /**
   * Times the fill ring was found empty (the same packets count as rx_dropped in copy mode).
   */
  uint64_t rx_fill_ring_empty;
  /**
   * Redirected packets that the kernel counts nowhere.
   */
  uint64_t redirect_errors;
  /**
   * Waiting in the RX ring.
   */
  uint64_t rx_pending;
  /**
   * Packets handed out, and their bytes.
   */
  uint64_t received;
  uint64_t received_bytes;
  /**
   * Fates of received packets: written with success (the bytes with their padding), written without,
   * let go unwritten.
   */
  uint64_t stored;
  uint64_t stored_bytes;
  uint64_t failed;
  uint64_t released;
  uint64_t packets_held;
  uint64_t packets_in_flight;
  /**
   * Commands taken by the engine, completed, completed with an error, and operations made of them.
   */
  uint64_t submitted;
  uint64_t completed;
  uint64_t errors;
  uint64_t operations;
  uint64_t commands_in_flight;
  /**
   * Submissions refused because the SQ ring was full.
   */
  uint64_t sq_full;
  /**
   * Commands whose data the library copied, and their bytes.
   */
  uint64_t bounced;
  uint64_t bounced_bytes;
  /**
   * Bytes written and read with success, padding included.
   */
  uint64_t bytes_written;
  uint64_t bytes_read;
  uint64_t frames_free;
  /**
   * In the fill ring, or on their way through the kernel.
   */
  uint64_t frames_filled;
  /**
   * In the caller's hands.
   */
  uint64_t frames_held;
  uint64_t frames_in_flight;
  /**
   * Packets not where the headroom should have put them.
   */
  uint64_t misplaced;
  /**
   * Descriptors of the kernel that made no sense.
   */
  uint64_t bad_descriptors;
  /**
   * 1: the interface is up and has a carrier. 0 also where it is gone, or where there is none.
   */
  uint64_t link_up;
  /**
   * Changes between up and down that were noticed, and the end of the interface.
   */
  uint64_t link_changes;
  /**
   * 1: the XDP program is where it was put. 0: somebody took it off or replaced it.
   */
  uint64_t xdp_attached;
  /**
   * Times that somebody else changed the XDP program on the interface.
   */
  uint64_t xdp_changes;
  /**
   * Writes that the device failed and the spill took, and their bytes. They are `stored`, and not in `errors`
   * and `bytes_written`.
   */
  uint64_t spilled;
  uint64_t spilled_bytes;
  /**
   * To one of the ports, but several datagrams that the sender (GSO) or the kernel (GRO) merged into one packet:
   * passed, and not in `xdp_matched`. They can be told apart in SKB mode and on tap interfaces, with kernel 6.2 or
   * newer and its BTF; native XDP of other drivers is given none.
   */
  uint64_t xdp_merged;
};

/**
 * How long things took, since the context was made.
 */
struct unified_latency {
  /**
   * sizeof(struct unified_latency), set by the caller; then the bytes that were filled in.
   */
  uint64_t size;
  /**
   * How often: the sum of `buckets`.
   */
  uint64_t count;
  /**
   * All times together, ns.
   */
  uint64_t sum;
  /**
   * The longest, ns.
   */
  uint64_t max;
  /**
   * How often it took at most 1, 2, 3 and 4 us, then in four equal steps up to each power of two: 5, 6, 7, 8, 10,
   * 12, 14, 16 us and so on up to 67 s; the last one: longer. Each counts what is in none before it. See
   * unified_latency_bound.
   */
  uint64_t buckets[101];
};

/**
 * Metadata of one redirected packet, from the BPF ring buffer.
 */
struct unified_event {
  /**
   * ns of CLOCK_MONOTONIC, as this process reads it.
   */
  uint64_t timestamp;
  /**
   * Network byte order; IPv4 in the first four bytes.
   */
  uint8_t src_addr[16];
  uint8_t dst_addr[16];
  /**
   * Host byte order.
   */
  uint16_t src_port;
  uint16_t dst_port;
  uint16_t payload_len;
  uint16_t vlan_tci;
  uint32_t queue;
  /**
   * 4 or 6.
   */
  uint8_t ip_version;
  /**
   * UNIFIED_PACKET_VLAN
   */
  uint8_t flags;
  uint16_t reserved;
};

/**
 * A received packet. Its frame belongs to the caller until it is submitted or released.
 */
struct unified_packet {
  /**
   * First byte of the Ethernet header.
   */
  void *data;
  /**
   * First byte of the UDP payload.
   */
  void *payload;
  /**
   * ns of CLOCK_MONOTONIC, as this process reads it (also in a time namespace), when the XDP program saw it; 0 where the driver has no metadata area.
   */
  uint64_t timestamp;
  /**
   * Bytes from `data`.
   */
  uint32_t len;
  uint32_t payload_len;
  /**
   * The frame's number, for submissions and unified_frame_release.
   */
  uint32_t frame;
  uint32_t queue;
  /**
   * From `data`.
   */
  uint16_t l3_offset;
  uint16_t payload_offset;
  /**
   * Host byte order.
   */
  uint16_t src_port;
  uint16_t dst_port;
  uint16_t vlan_tci;
  /**
   * 4 or 6.
   */
  uint8_t ip_version;
  /**
   * UNIFIED_PACKET_VLAN
   */
  uint8_t flags;
  uint32_t reserved;
};

/**
 * An NVMe command for unified_submit_raw: the fields of a submission queue entry without identifiers
 * and pointers (NVM Express Base Specification 2.0, section 3.3.3).
 */
struct unified_nvme_command {
  uint8_t opcode;
  uint8_t reserved0;
  uint16_t reserved1;
  /**
   * 0: the namespace that was opened.
   */
  uint32_t nsid;
  uint32_t cdw2;
  uint32_t cdw3;
  uint32_t cdw10;
  uint32_t cdw11;
  uint32_t cdw12;
  uint32_t cdw13;
  uint32_t cdw14;
  uint32_t cdw15;
  /**
   * Bytes of data, in or out.
   */
  uint32_t data_len;
  /**
   * ms; 0: the driver's default.
   */
  uint32_t timeout;
};

/**
 * One finished command.
 */
struct unified_completion {
  /**
   * As given with the submission.
   */
  uint64_t user_data;
  /**
   * 0, or a negative errno where the system failed rather than the device.
   */
  int32_t result;
  /**
   * NVMe status, type << 8 | code; 0 is success. See unified_status_string.
   */
  uint32_t status;
  /**
   * Bytes moved.
   */
  uint32_t len;
  /**
   * Valid with UNIFIED_COMPLETION_FRAME.
   */
  uint32_t frame;
  /**
   * UNIFIED_COMPLETION_DNR, _FRAME, _BOUNCED
   */
  uint32_t flags;
  uint32_t reserved;
};

/**
 * What a pipeline stores, and where.
 */
struct unified_pipeline_config {
  /**
   * sizeof(struct unified_pipeline_config)
   */
  uint64_t size;
  /**
   * First block of the range.
   */
  uint64_t start_lba;
  /**
   * Blocks in the range. 0: to the device's end.
   */
  uint64_t blocks;
  /**
   * UNIFIED_AT_END_STOP or UNIFIED_AT_END_WRAP
   */
  uint32_t at_end;
  /**
   * UNIFIED_FUA, UNIFIED_LOG_NEW
   */
  uint32_t flags;
  /**
   * UNIFIED_LAYOUT_PAYLOAD or UNIFIED_LAYOUT_SLOT
   */
  uint32_t layout;
  /**
   * Group flush: after so many completed writes, and so many ms after the last flush where something
   * was completed since. Both 0: one flush, at the end.
   */
  uint32_t flush_writes;
  uint32_t flush_interval_ms;
  /**
   * While packets come, the RX ring is looked at after so many us at the latest, and nobody is woken in between: what
   * comes meanwhile becomes one write. The first packet after a pause is taken at once. 0: 4000; 1: every packet wakes;
   * at most 1000000. The library looks more often where the RX ring is short (each of its entries is good for 250 ns)
   * or fills faster, and at least every flush_interval_ms.
   */
  uint32_t moderation_us;
};

/**
 * Where a pipeline stands.
 */
struct unified_pipeline_status {
  /**
   * sizeof(struct unified_pipeline_status), set by the caller; then the bytes that were filled in.
   */
  uint64_t size;
  /**
   * Where the next payload goes.
   */
  uint64_t next_lba;
  /**
   * Times it began again at the start.
   */
  uint64_t wraps;
  /**
   * Writes submitted, completed with success, and without.
   */
  uint64_t submitted;
  uint64_t stored;
  uint64_t failed;
  /**
   * Payload bytes submitted, without padding.
   */
  uint64_t payload_bytes;
  /**
   * Packets let go because the range was full.
   */
  uint64_t no_space;
  /**
   * Packets let go because they carry no payload.
   */
  uint64_t empty;
  /**
   * 0 or 1.
   */
  uint32_t running;
  /**
   * 0, -ENOSPC where the range was full, -EIO where a flush failed, or what ended a thread.
   */
  int32_t error;
  /**
   * Slot layout: the sequence number of the first write.
   */
  uint64_t first_sequence;
  /**
   * The first so many of `submitted` are completed (with success or without); and durable.
   */
  uint64_t completed;
  uint64_t durable;
  /**
   * Flushes that were answered.
   */
  uint64_t flushes;
};

/**
 * One thing found in a log.
 */
struct unified_log_record {
  /**
   * sizeof(struct unified_log_record), set by the caller; then the bytes that were filled in.
   */
  uint64_t size;
  uint64_t sequence;
  /**
   * Records in the range; 1 for a record.
   */
  uint64_t count;
  /**
   * ns since 1970-01-01 UTC when the XDP program saw the packet.
   */
  uint64_t timestamp;
  /**
   * The packet from its Ethernet header on, and its UDP payload. NULL for ranges.
   */
  const void *packet;
  const void *payload;
  /**
   * Bytes.
   */
  uint32_t len;
  uint32_t payload_len;
  /**
   * UNIFIED_LOG_RECORD, _MISSING, _DAMAGED or _OVERWRITTEN
   */
  uint32_t kind;
  /**
   * Host byte order.
   */
  uint16_t src_port;
  uint16_t dst_port;
  uint16_t vlan_tci;
  uint16_t queue;
  /**
   * 4 or 6.
   */
  uint8_t ip_version;
  /**
   * UNIFIED_PACKET_VLAN
   */
  uint8_t flags;
  uint16_t reserved;
};

/**
 * What a log is, and what has been read of it.
 */
struct unified_log_info {
  /**
   * sizeof(struct unified_log_info), set by the caller; then the bytes that were filled in.
   */
  uint64_t size;
  /**
   * Random, given when the log was made.
   */
  uint64_t log_id;
  /**
   * ns since 1970-01-01 UTC.
   */
  uint64_t created;
  /**
   * Records that it holds before it wraps, and bytes of each.
   */
  uint64_t slots;
  uint32_t slot_size;
  uint32_t block_size;
  /**
   * Sequence numbers: of the oldest record, behind the newest, and of the one that is read next.
   */
  uint64_t oldest;
  uint64_t end;
  uint64_t position;
  /**
   * Met by this reader so far.
   */
  uint64_t records;
  uint64_t missing;
  uint64_t damaged;
  uint64_t overwritten;
  /**
   * Packets of the recorded ports that the kernel dropped, since the log was made: the RX ring was full, or no frame was
   * free. All recorders that wrote to this log together; they look once a second, and when they end.
   */
  uint64_t dropped;
  /**
   * Packets of the recorded ports that were seen and not recorded: they came to another queue, were merged or
   * malformed, or the log had no room.
   */
  uint64_t unrecorded;
  /**
   * ns since 1970-01-01 UTC when a loss was first noticed, and when more was last noticed; 0: never.
   */
  uint64_t first_loss;
  uint64_t last_loss;
  /**
   * Name of the last recorder's interface, ended by a zero; empty if it is not known.
   */
  char interface[16];
};

#ifdef __cplusplus
extern "C" {
#endif // __cplusplus

/**
 * The library's version: major << 16 | minor << 8 | patch. Any thread.
 */
uint32_t unified_version(void);

/**
 * The same as text; static. Any thread.
 */
const char *unified_version_string(void);

/**
 * What the last function that failed in this thread tried, on what, and what to do about it. Never NULL;
 * valid until the next call of this library in this thread. Empty before the first failure.
 */
const char *unified_last_error(void);

/**
 * An errno in words, negative or positive; valid until the next call of this function in this thread.
 */
const char *unified_strerror(int error);

/**
 * An NVMe status (type << 8 | code) in words; static. Any thread.
 */
const char *unified_status_string(uint32_t status);

/**
 * Sets the log callback of the process; NULL: no log (the default). Lines above `max_level` are left out.
 * When it returns, the callback that was set before runs no more. 0, or -EINVAL for a level out of range.
 * Any thread.
 */
int unified_set_log_callback(unified_log_fn callback,
                             int max_level,
                             void *user);

/**
 * Opens device, interface and region, and starts to receive. `*ctx` is the handle; it is NULL after a
 * failure, and then nothing is left attached or open. Any thread.
 *
 * -EINVAL a field that cannot be; -E2BIG fields that this version does not know; -ENODEV no such
 * interface; -EPROTONOSUPPORT an interface without Ethernet headers; -ENETDOWN it is down; -ENOENT, -EACCES, -EROFS
 * the device; -EBUSY the device or the queue is in use; -EEXIST the device holds a file system or the like
 * (UNIFIED_FORCE insists); -ENOMEM locked memory (RLIMIT_MEMLOCK) or memory; -EPERM missing capabilities; -EOPNOTSUPP an
 * insisted-on mode that the driver has not; -ENOSPC no room for the file; -EBADF a descriptor that is none; -ENOTSOCK
 * one that is no AF_XDP socket.
 */
int unified_ctx_create(const struct unified_config *config,
                       unified_ctx **ctx);

/**
 * Stops a pipeline, takes the XDP program off, finishes what was submitted, closes everything. Calls in other
 * threads, also those that wait, return -ESHUTDOWN first. Packet pointers are invalid from then on, and the handle is
 * gone whatever is returned.
 *
 * What was submitted is carried out, with either drive, also what was submitted with UNIFIED_MORE and not yet shown to
 * the engine; completions that nobody took are dropped. It waits at most 30 s for the device. -EIO: commands
 * failed and nobody took their completions (reads and compares do not count), or the device did not answer in time;
 * unified_last_error() says how many. The memory that the device may still use then stays mapped, and the device
 * stays open, until it answers (UNIFIED_DRIVE_THREAD) or the process ends (UNIFIED_DRIVE_INLINE).
 *
 * 0, -EIO, -EINVAL for NULL, -ESHUTDOWN if another thread is destroying it, -EBADF if it was destroyed
 * already, -ENOTSUP in a forked child. Any thread, but not from within a callback.
 */
int unified_ctx_destroy(unified_ctx *ctx);

/**
 * Fills in what the context is. Set `info->size` first. 0, -EINVAL, -EBADF. Any thread.
 */
int unified_ctx_info(const unified_ctx *ctx, struct unified_info *info);

/**
 * Fills in all counters. Set `stats->size` first. 0, -EINVAL, -EBADF, or what the kernel said. Any
 * thread; a receiver waits for it during one system call at most.
 */
int unified_ctx_stats(const unified_ctx *ctx, struct unified_stats *stats);

/**
 * Fills in how long things took: `which` is UNIFIED_LATENCY_PACKET or UNIFIED_LATENCY_COMMAND, `latency->size` is set
 * by the caller. No system call, no lock of the data path: cheap enough for every second. 0, -EINVAL (`which`, `size`,
 * NULL), -EBADF, -ENOTSUP (in a forked child). Any thread; what is recorded meanwhile may be in it or not.
 */
int unified_ctx_latency(const unified_ctx *ctx,
                        uint32_t which,
                        struct unified_latency *latency);

/**
 * The longest time in ns that a bucket of unified_latency counts, itself included; UINT64_MAX for the last one and
 * for numbers beyond. Any thread.
 */
uint64_t unified_latency_bound(uint32_t bucket);

/**
 * The time in ns that a part `quantile` (0 to 1; 0.99: the 99th percentile) of all did not exceed: the bound of its
 * bucket, at most a quarter (below 4 us: 1 us) too long, and never more than `max`. 0 where nothing was counted, and
 * for NULL and a struct that is shorter than this library's. Any thread.
 */
uint64_t unified_latency_quantile(const struct unified_latency *latency,
                                  double quantile);

/**
 * Writes all counters as OpenMetrics text (openmetrics.io), labelled with interface, queue and device: what an
 * HTTP endpoint for Prometheus answers, with the type `application/openmetrics-text; version=1.0.0`. Counters are
 * named as in unified_stats behind `unified_`; docs/monitoring.md has the list. At most `size` bytes are
 * written, a zero byte at their end included; `text` may be NULL where `size` is 0. The length of the whole text
 * without the zero byte, so that a result of `size` or more says that it was cut; or -EINVAL, -EBADF, or what the
 * kernel said. Any thread, as unified_ctx_stats. Allocates.
 */
int unified_stats_render(const unified_ctx *ctx,
                         char *text,
                         uint32_t size);

/**
 * Receives one more UDP port from now on. 0, -EINVAL (port 0), -ENOTCONN (no interface), -ENOTSUP (the map was
 * handed in: the program is another one's). Any thread.
 */
int unified_port_add(const unified_ctx *ctx,
                     uint16_t port);

/**
 * Receives a UDP port no more; its packets go to the stack. As unified_port_add.
 */
int unified_port_remove(const unified_ctx *ctx, uint16_t port);

/**
 * Logs one metadata event in `sample` packets from now on; 0: none. 0, -ENOTCONN, -ENOTSUP (as unified_port_add).
 * Any thread.
 */
int unified_events_sample(const unified_ctx *ctx,
                          uint32_t sample);

/**
 * Takes up to `max` metadata events out of the BPF ring buffer, oldest first: their number. Until the first call of this
 * or of unified_events_fd the ring buffer (256 KiB) keeps the oldest events, and no more are logged when it is full. -EINVAL,
 * -ENOTCONN, -ENOTSUP (as unified_port_add). Any thread; calls wait for each other.
 */
int unified_events(const unified_ctx *ctx,
                   struct unified_event *events,
                   uint32_t max);

/**
 * A descriptor that becomes readable when a quarter of the events' ring buffer is full; it belongs to the
 * context. A few events are found only by asking. -ENOTCONN, -ENOTSUP (as unified_port_add). Any
 * thread.
 */
int unified_events_fd(const unified_ctx *ctx);

/**
 * The device's path as it was opened, copied to `path` (at most `len` bytes, zero byte included): the
 * length without the zero byte, -EINVAL, -ENAMETOOLONG. Any thread.
 */
int unified_ctx_device(const unified_ctx *ctx,
                       char *path,
                       uint32_t len);

/**
 * Takes an empty frame: its number to `*frame`. It is the caller's until submitted or released. 0,
 * -ENOBUFS (none is free now), -EBUSY (another thread receives), -ESHUTDOWN (the context is being destroyed). The receiver's thread.
 */
int unified_frame_alloc(const unified_ctx *ctx,
                        uint32_t *frame);

/**
 * Gives a frame back that was received, allocated, or came with a completion. 0, -EINVAL (not the
 * caller's), -EBUSY (in flight). Any thread.
 */
int unified_frame_release(const unified_ctx *ctx, uint32_t frame);

/**
 * The first byte of a frame (of `frame_size` bytes), page or half-page aligned; NULL for a number that
 * is not one. Read and write it only while the frame is the caller's. Any thread.
 */
void *unified_frame_data(const unified_ctx *ctx,
                         uint32_t frame);

/**
 * Takes up to `max` received packets, and gives free frames back to the NIC: the number of packets, 0
 * where there are none. Each packet's frame is the caller's from now on. -EINVAL, -EBUSY (another thread
 * receives, or a pipeline runs), -ENOTCONN (no interface), -ENODEV (it was deleted or moved to another
 * network namespace, and every packet was taken), -ESHUTDOWN. The receiver's thread. An interface that is
 * down, and one whose XDP program somebody took off, is no error: see unified_stats.link_up and xdp_attached.
 */
int unified_rx_batch(const unified_ctx *ctx,
                     struct unified_packet *packets,
                     uint32_t max);

/**
 * Writes `len` bytes at `data`, which lie in `frame`, to the device from block `lba` on. The last block is
 * padded with zeroes: the frame's bytes behind `data + len` may be overwritten. The frame is the library's
 * until its completion was taken; then it goes back to the NIC by itself, or with UNIFIED_KEEP to the
 * caller. After a failure the caller has it as before.
 *
 * 0, -EINVAL (length, not inside the frame, frame not the caller's), -EBUSY (frame in flight already,
 * another thread submits, or a pipeline runs), -EAGAIN (SQ ring full: take completions), -ESHUTDOWN. What
 * the device says comes with the completion: LBA Out of Range (80h), Write Fault (280h), Namespace is Write
 * Protected (20h), ... Without UNIFIED_FUA the data is durable only after a flush where the device has a
 * volatile cache. The receiver's thread. NVM Command Set Specification 1.0, section 3.2.6.
 */
int unified_submit_write(const unified_ctx *ctx,
                         uint32_t frame,
                         const void *data,
                         uint32_t len,
                         uint64_t lba,
                         uint64_t user_data,
                         uint32_t flags);

/**
 * Reads `len` bytes, whole blocks, from block `lba` on to `data`, which lies in a frame of the caller's.
 * The completion gives the frame back. Errors and thread as unified_submit_write. Section 3.2.4.
 */
int unified_submit_read(const unified_ctx *ctx,
                        uint32_t frame,
                        void *data,
                        uint32_t len,
                        uint64_t lba,
                        uint64_t user_data,
                        uint32_t flags);

/**
 * Compares `len` bytes, whole blocks, with the device: status Compare Failure (285h) where they differ.
 * The completion gives the frame back. Errors and thread as unified_submit_write. Section 3.2.1.
 */
int unified_submit_compare(const unified_ctx *ctx,
                           uint32_t frame,
                           const void *data,
                           uint32_t len,
                           uint64_t lba,
                           uint64_t user_data,
                           uint32_t flags);

/**
 * Makes durable what completed before it was submitted. Writes still in flight may or may not be covered.
 * 0, -EBUSY, -EAGAIN, -ESHUTDOWN. The receiver's thread. Base Specification 2.0, section 7.1.
 */
int unified_submit_flush(const unified_ctx *ctx,
                         uint64_t user_data);

/**
 * Zeroes `blocks` (1 to 65536) from `lba` on. `flags`: UNIFIED_FUA or 0. Errors and thread as
 * unified_submit_flush, and -EINVAL. NVM Command Set Specification 1.0, section 3.2.8.
 */
int unified_submit_write_zeroes(const unified_ctx *ctx,
                                uint64_t lba,
                                uint32_t blocks,
                                uint64_t user_data,
                                uint32_t flags);

/**
 * Tells the device that `blocks` (1 to 65536) from `lba` on are not needed any more (Dataset Management,
 * Deallocate). What they hold afterwards is the device's choice. Errors and thread as unified_submit_flush,
 * -EINVAL, and -ENOBUFS (needs a free frame). NVM Command Set Specification 1.0, section 3.2.3.
 */
int unified_submit_deallocate(const unified_ctx *ctx,
                              uint64_t lba,
                              uint32_t blocks,
                              uint64_t user_data);

/**
 * Submits any NVMe command; opcode 06h, Identify, goes to the controller. Its data, `command->data_len`
 * bytes at `data` in `frame`, comes back with the completion; NULL and any frame for none. Devices that
 * are no NVMe know the commands of this header and answer the others with Invalid Opcode (1h). Errors and
 * thread as unified_submit_write.
 */
int unified_submit_raw(const unified_ctx *ctx,
                       const struct unified_nvme_command *command,
                       uint32_t frame,
                       void *data,
                       uint64_t user_data);

/**
 * Shows the engine what was submitted with UNIFIED_MORE. 0, -EBUSY, -ESHUTDOWN. The receiver's thread.
 */
int unified_submit_pending(const unified_ctx *ctx);

/**
 * Takes up to `max` completions: their number, 0 where there are none. With UNIFIED_DRIVE_INLINE this also
 * drives the device. -EINVAL, -EBUSY (another thread takes, or a pipeline runs), -ESHUTDOWN, -EBADMSG (the
 * rings were overwritten), or what stopped the engine. The taker's thread.
 */
int unified_completions(const unified_ctx *ctx,
                        struct unified_completion *completions,
                        uint32_t max);

/**
 * Waits until there is something of `what` (UNIFIED_WAIT_RX, UNIFIED_WAIT_COMPLETIONS), at most
 * `timeout_ms` (-1: for ever): which, 0 when the time ran out or a signal came. -EINVAL, -EBUSY,
 * -ENOTCONN, -ENODEV (the interface is gone and nothing of `what` is there), -ESHUTDOWN (the context is being
 * destroyed), or what stopped the engine. The thread of the role or roles, which it has until it returns: other
 * threads get -EBUSY from calls of the same role meanwhile.
 */
int unified_wait(const unified_ctx *ctx,
                 uint32_t what,
                 int timeout_ms);

/**
 * A descriptor for event loops, readable when packets or completions wait; it belongs to the context. When
 * it is, call unified_rx_batch and unified_completions until they give less than was asked for: they
 * leave it armed, and it is not readable again before something new comes. It also becomes readable, for good, when the
 * context is being destroyed or the engine has stopped; those calls then say so. Take it out of the loop before the
 * context is destroyed, which closes it. -EBUSY, -ESHUTDOWN. Call it once, before the loop, from the thread that has both roles.
 */
int unified_poll_fd(const unified_ctx *ctx);

/**
 * First byte of the UDP payload; NULL for NULL.
 */
void *unified_packet_payload(const struct unified_packet *packet);

/**
 * Bytes of UDP payload, 0 for NULL.
 */
uint32_t unified_packet_payload_len(const struct unified_packet *packet);

/**
 * ns of CLOCK_MONOTONIC, as this process reads it (also in a time namespace), when the XDP program saw it; 0 where that is not known.
 */
uint64_t unified_packet_timestamp(const struct unified_packet *packet);

/**
 * The outermost VLAN tag (PCP, DEI, VID), or -ENOENT where there is none, -EINVAL for NULL.
 */
int unified_packet_vlan(const struct unified_packet *packet);

/**
 * Source and destination address (16 bytes each, network byte order, IPv4 in the first four) and ports
 * (host byte order); any of the places may be NULL. The IP version, 4 or 6; -EINVAL.
 */
int unified_packet_flow(const struct unified_packet *packet,
                        uint8_t (*src_addr)[16],
                        uint8_t (*dst_addr)[16],
                        uint16_t *src_port,
                        uint16_t *dst_port);

/**
 * Starts the packet thread and the storage thread: what the context receives is stored in a range of the
 * device. With UNIFIED_LAYOUT_PAYLOAD payload by payload, each padded to whole blocks; with
 * UNIFIED_LAYOUT_SLOT as records of a log, which unified_log_open reads, and which goes on where it ended
 * (or begins anew with UNIFIED_LOG_NEW). Until it is stopped the functions of the data path return -EBUSY.
 *
 * 0, -EINVAL (the range is not on the device; no log fits, or one of other sizes is there; more moderation_us than there can
 * be), -EROFS, -EEXIST (no log is in the range, but something else: UNIFIED_LOG_NEW begins one there all the same),
 * -EALREADY (one runs, or has not ended yet), -EBUSY (completions of earlier commands are not taken yet, or another thread is about to take
 * some), -ENOTCONN (no interface), -EIO (the log cannot be read), -EPROTONOSUPPORT
 * (a log of a version that this library does not know is there), -EEXIST (something that is no log is there), -ETIMEDOUT (the device did not answer for 30 s). Any
 * thread.
 *
 * What a completed write promises: with UNIFIED_FUA, or on a device without volatile cache, that it is
 * durable; else that it is as soon as unified_pipeline_status.durable has passed it.
 */
int unified_pipeline_start(const unified_ctx *ctx,
                           const struct unified_pipeline_config *config);

/**
 * Where the pipeline stands. Set `status->size` first. 0, -EINVAL, -ENOENT (none runs). Any thread.
 */
int unified_pipeline_status(const unified_ctx *ctx, struct unified_pipeline_status *status);

/**
 * Stops the pipeline: stores what was received, flushes the device, ends both threads. `status` may be
 * NULL; else set its size first. Packets that come later stay in the RX ring. 0, -ENOENT (none runs),
 * -EIO (a flush failed: see `durable` for what is safe), -EINVAL (the status' size: it runs on). Any thread.
 */
int unified_pipeline_stop(const unified_ctx *ctx,
                          struct unified_pipeline_status *status);

/**
 * Opens the log that a pipeline with UNIFIED_LAYOUT_SLOT has written (or is writing) to `path`, in a range
 * that begins `start` bytes into the device or file. Needs no context and no privilege but reading `path`.
 * `*log` is the handle, NULL after a failure; it stands at the oldest record.
 *
 * 0, -EINVAL (NULL, `start` no multiple of 512), -ENOENT, -EACCES (the path), -ENOMSG (there is no log),
 * -EPROTONOSUPPORT (it is of a version that this library does not know), -EIO.
 * Any thread; one log, one thread at a time (others wait; a forked child gets -ENOTSUP from every call if a thread of
 * its parent was within one).
 */
int unified_log_open(const char *path,
                     uint64_t start,
                     struct unified_log **log);

/**
 * Closes a log. Records' pointers are invalid from then on. 0, -EINVAL for NULL, -EBADF where it was closed
 * already.
 */
int unified_log_close(struct unified_log *log);

/**
 * Looks for records that the device does not have in the file or block device that the recorder spilled to
 * (unified_config.spill). Before the first unified_log_next; the log stands at its oldest record again. 0, -EINVAL
 * for NULL, -EBADF, -ENOENT, -EACCES (the path), -EIO.
 */
int unified_log_add_spill(const struct unified_log *log,
                          const char *path);

/**
 * The next thing in the log: 1 and `*record` filled in (set its size first), or 0 at the end. With
 * `timeout_ms` > 0 it waits so long for a recorder to go on, with -1 for ever. `record->kind` says what it
 * is: a record, or a range of sequence numbers that is not there, and why. The packet's bytes belong to the
 * log and are valid until the next call with it.
 *
 * Writes of a recorder may end in another order than they began. With a timeout a record that is not there yet is
 * waited for, a second at the longest, before it is called missing. Without (0) it is missing at once, if a later one
 * is there: right for a log that nobody writes to.
 *
 * -EINVAL, -EBADF, -EIO (the device cannot be read, or ends before the log does), -ENOMSG (something else stands where
 * the log began, or a new log was begun there: destroy this handle and open the log again).
 */
int unified_log_next(const struct unified_log *log,
                     struct unified_log_record *record,
                     int timeout_ms);

/**
 * Goes to a record by its sequence number: the next call of unified_log_next gives it, or says what became
 * of it. 0, -EINVAL, -EBADF.
 */
int unified_log_seek(const struct unified_log *log,
                     uint64_t sequence);

/**
 * Goes to the first record that is not older than `timestamp`, ns since 1970-01-01 UTC. 0, -EINVAL, -EBADF,
 * -EIO.
 */
int unified_log_seek_time(const struct unified_log *log,
                          uint64_t timestamp);

/**
 * Fills in what the log is and what has been read of it. Set `info->size` first. 0, -EINVAL, -EBADF, -EIO.
 */
int unified_log_info(const struct unified_log *log,
                     struct unified_log_info *info);

#ifdef __cplusplus
}  // extern "C"
#endif  // __cplusplus

#endif  /* UNIFIED_H */
