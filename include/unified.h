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

/**
 * unified_config.drive: the thread that asks for completions drives the device, inside its calls.
 */
#define UNIFIED_DRIVE_INLINE 0

/**
 * unified_config.drive: a thread of the library drives the device.
 */
#define UNIFIED_DRIVE_THREAD 1

/**
 * unified_config.xdp_mode: native mode if the driver supports it, otherwise SKB mode.
 */
#define UNIFIED_XDP_AUTO 0

/**
 * unified_config.xdp_mode: native mode only; -EOPNOTSUPP if the driver has none.
 */
#define UNIFIED_XDP_NATIVE 1

/**
 * unified_config.xdp_mode: SKB (generic) mode only.
 */
#define UNIFIED_XDP_SKB 2

/**
 * unified_config.copy_mode: zero-copy if the driver supports it, otherwise copy mode.
 */
#define UNIFIED_COPY_AUTO 0

/**
 * unified_config.copy_mode: copy mode only.
 */
#define UNIFIED_COPY_ONLY 1

/**
 * unified_config.copy_mode: zero-copy only; -EOPNOTSUPP if the driver has none.
 */
#define UNIFIED_COPY_ZERO 2

/**
 * Configuration flag: use reserved 2 MiB pages (vm.nr_hugepages) if there are enough. Without this flag, or if there are
 * too few, the region uses transparent huge pages if the kernel provides them
 * (/sys/kernel/mm/transparent_hugepage/enabled is "madvise" or "always") and the region fills at least one; otherwise it
 * uses 4 KiB pages. unified_info.huge_pages says what was used.
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
 * Configuration flag: use the block layer even if NVMe passthrough is available.
 */
#define UNIFIED_NO_PASSTHROUGH 8

/**
 * Configuration flag: never copy data inside the library; misaligned data is passed to the kernel as it is.
 */
#define UNIFIED_NO_BOUNCE 16

/**
 * Configuration flag: use the value of `headroom`, even if it is 0.
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
 * Submission flag: the data is on the medium when the command completes (Force Unit Access), even if the device has a
 * write cache.
 */
#define UNIFIED_FUA 1

/**
 * Submission flag: the completion returns the frame to the caller instead of to the fill ring.
 */
#define UNIFIED_KEEP 2

/**
 * Submission flag: more submissions follow at once. The engine sees this one together with the next submission that does
 * not have this flag.
 */
#define UNIFIED_MORE 4

/**
 * For unified_wait: packets are in the RX ring.
 */
#define UNIFIED_WAIT_RX 1

/**
 * For unified_wait: completions are in the CQ ring.
 */
#define UNIFIED_WAIT_COMPLETIONS 2

/**
 * unified_packet.flags: `vlan_tci` holds the outermost VLAN tag.
 */
#define UNIFIED_PACKET_VLAN 1

/**
 * unified_completion.flags: a retry would fail as well (NVMe Do Not Retry).
 */
#define UNIFIED_COMPLETION_DNR 1

/**
 * unified_completion.flags: the caller owns `frame` again.
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
 * unified_pipeline_config.layout: a log of version 1, a whole frame for each packet (docs/record-format.md).
 */
#define UNIFIED_LAYOUT_SLOT 1

/**
 * unified_pipeline_config.layout: a log of version 2. Large packets are written from the frames they arrived in. Small ones
 * are copied together, once, because that costs less (unified_stats.packed counts them). If the device is slower than the
 * packets, large ones are copied together too, so that fewer bytes are written.
 */
#define UNIFIED_LAYOUT_LOG 2

/**
 * unified_pipeline_config.flags, for UNIFIED_LAYOUT_LOG: checksums cover the headers of records, not the packets.
 */
#define UNIFIED_LOG_UNCHECKED 16

/**
 * unified_pipeline_config.flags: begin a new log. An earlier log in the range is discarded, and anything else there is
 * overwritten.
 */
#define UNIFIED_LOG_NEW 8

/**
 * unified_pipeline_config.at_end: stop storing; further packets are counted and released.
 */
#define UNIFIED_AT_END_STOP 0

/**
 * unified_pipeline_config.at_end: begin again at the start of the range.
 */
#define UNIFIED_AT_END_WRAP 1

/**
 * unified_config.queues: all queues of the interface.
 */
#define UNIFIED_ALL_QUEUES 4294967295

/**
 * unified_config.retries: report errors at once.
 */
#define UNIFIED_NO_RETRY 4294967295

/**
 * unified_submission.op: flush `device`, or all devices with UNIFIED_ALL_DEVICES (unified_submit_flush).
 */
#define UNIFIED_OP_FLUSH 0

/**
 * unified_submission.op: as unified_submit_write.
 */
#define UNIFIED_OP_WRITE 1

/**
 * unified_submission.op: as unified_submit_read.
 */
#define UNIFIED_OP_READ 2

/**
 * unified_submission.op: as unified_submit_compare.
 */
#define UNIFIED_OP_COMPARE 5

/**
 * unified_submission.op: as unified_submit_write_zeroes.
 */
#define UNIFIED_OP_WRITE_ZEROES 8

/**
 * unified_submission.op: as unified_submit_deallocate.
 */
#define UNIFIED_OP_DEALLOCATE 9

/**
 * unified_submission.op: `command`, as unified_submit_raw.
 */
#define UNIFIED_OP_RAW 256

/**
 * unified_submission.device: all devices of the context. Only for UNIFIED_OP_FLUSH.
 */
#define UNIFIED_ALL_DEVICES 4294967295

/**
 * For unified_ctx_latency: from the arrival of a packet until the completion of its first write was taken. Arrival is when
 * the XDP program saw the packet, or when unified_rx_batch took it if the driver has no metadata area. The count is stored +
 * failed + packets that were written and that the caller owns again.
 */
#define UNIFIED_LATENCY_PACKET 0

/**
 * For unified_ctx_latency: from the submission of a command to its completion in the CQ ring. With UNIFIED_MORE the
 * submission of the first command of the group counts. The count is `completed`.
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
 * Callback for log lines of the library, of libxdp and of libbpf. `level`: 0 error, 1 warning, 2 info, 3 debug. `line` ends in
 * a zero byte and is valid during the call. It is called from any thread. It must return (no longjmp) and must not call
 * unified_set_log_callback.
 */
typedef void (*unified_log_fn)(int level, const char *line, void *user);

/**
 * One of the devices of unified_config.devices. Zero the struct and set `size`, which is the same in all elements of the array,
 * and `path`.
 */
struct unified_device {
  /**
   * sizeof(struct unified_device)
   */
  uint64_t size;
  /**
   * As unified_config.device.
   */
  const char *path;
  /**
   * As unified_config.file_size.
   */
  uint64_t file_size;
  /**
   * As unified_config.block_size. Devices may differ in it.
   */
  uint32_t block_size;
  /**
   * UNIFIED_FORCE, UNIFIED_READ_ONLY, UNIFIED_NO_PASSTHROUGH or UNIFIED_DEVICE_FD, for this device.
   */
  uint32_t flags;
  /**
   * As unified_config.device_fd.
   */
  int32_t fd;
  /**
   * Must be 0.
   */
  uint32_t reserved;
  /**
   * As unified_config.spill, for this device.
   */
  const char *spill;
};

/**
 * Configuration of a context. Zero the struct, set `size` and `device`, and set the fields that shall differ from their
 * defaults. Zero means the default for every field.
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
   * Size in bytes of a regular file: it is created if it does not exist, and grown to this size if it is smaller. 0: the
   * file must exist and keeps its size.
   */
  uint64_t file_size;
  /**
   * Receive queue of the interface, from 0; the first one if there are several (`queues`).
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
   * UNIFIED_DRIVE_INLINE (default) or UNIFIED_DRIVE_THREAD.
   */
  uint32_t drive;
  /**
   * Bytes: 2048 (default) or 4096.
   */
  uint32_t frame_size;
  /**
   * Frames of all lanes together: 64 to 4194304, and at least 64 for each lane. Default 4096 for each lane. Packets are
   * received into frames only, and their number cannot grow: the kernel takes the memory of an AF_XDP socket (the UMEM)
   * once. Choose as many as the longest burst needs, and use buffers (unified_buffer_alloc) for all data that was not
   * received.
   */
  uint32_t frame_count;
  /**
   * Bytes before each packet, in addition to the kernel's 256. Default 214, which puts the payload of a plain IPv4 packet
   * at byte 512 of its frame. Other values count only with UNIFIED_HEADROOM.
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
   * UNIFIED_XDP_AUTO (default), UNIFIED_XDP_NATIVE or UNIFIED_XDP_SKB.
   */
  uint32_t xdp_mode;
  /**
   * UNIFIED_COPY_AUTO (default), UNIFIED_COPY_ONLY or UNIFIED_COPY_ZERO.
   */
  uint32_t copy_mode;
  /**
   * Order among several XDP programs on the interface, 1 to 65535; lower numbers run first. Default 50.
   */
  uint32_t run_priority;
  /**
   * Log one metadata event per this many packets. Default 1 (every packet).
   */
  uint32_t event_sample;
  /**
   * Bytes of the events ring buffer, a power of two from 4096. Default 262144.
   */
  uint32_t events_bytes;
  /**
   * Block size in bytes of a regular file or of "null:": 512, 1024, 2048 or 4096. Default: the smallest that the file
   * supports. Block devices and drives have a block size of their own.
   */
  uint32_t block_size;
  /**
   * Must be 0.
   */
  uint32_t reserved;
  /**
   * Number of retries, 1 to 255, of a storage operation that failed temporarily: EINTR and EAGAIN; with a backoff also
   * ENOMEM, EBUSY and NVMe statuses that ask the host to try again later. Default 8. UNIFIED_NO_RETRY: no retries.
   */
  uint32_t retries;
  /**
   * Microseconds before the first retry. The pause doubles with each further retry, up to one second. Default: no pause.
   */
  uint32_t retry_backoff_us;
  /**
   * Give up this many milliseconds after the first failure. Default: only `retries` limits the attempts.
   */
  uint32_t retry_give_up_ms;
  /**
   * This descriptor and the next two were opened by a process with more privileges. Each counts only with its flag. The
   * caller keeps them and may close them after unified_ctx_create. With UNIFIED_XSK_MAP_FD: the BPF_MAP_TYPE_XSKMAP of the
   * XDP program that is attached to the interface already. The library attaches no program then, that program decides
   * about ports and events, and the xdp_* statistics stay 0.
   */
  int32_t xsk_map_fd;
  /**
   * With UNIFIED_XSK_FD: an unbound socket(AF_XDP, SOCK_RAW, 0) in the interface's network namespace. It serves one queue
   * of one context. For several queues: `xsk_fds`.
   */
  int32_t xsk_fd;
  /**
   * With UNIFIED_DEVICE_FD: a regular file, block device or NVMe namespace that is open for reading and writing, with or
   * without O_DIRECT, but without O_APPEND. `device` may be NULL; otherwise it is only a name for messages. While the
   * context exists, no other context writes to the device, not even through a copy of this descriptor in another process.
   */
  int32_t device_fd;
  /**
   * Fallback for writes that still fail after all retries: a regular file, which is created if it does not exist, or a block
   * device that is at least as long. They go to the same address, padded as on the device, and complete with success and
   * UNIFIED_COMPLETION_SPILLED. A flush covers them, too. NULL: no fallback.
   */
  const char *spill;
  /**
   * Number of queues to receive from, `queue` being the first. Each is a lane with its own socket, rings and engine; all
   * share the memory, the XDP program and the device (unified_ctx_lane). 0: one. UNIFIED_ALL_QUEUES: all of the interface
   * from `queue` on. At most 64. Without an interface: the number of lanes.
   */
  uint32_t queues;
  /**
   * CPUs of the library's threads: those of lane i run on `cpus[i % cpu_count]`. 0: wherever the kernel lets them run.
   */
  uint32_t cpu_count;
  const uint32_t *cpus;
  /**
   * Several devices: `device_count` of them, at most 16, numbered from 0 in the order of the array. Then `device`, `file_size`,
   * `block_size`, `device_fd` and `spill` above must be zero, and the flags about devices above count for all of them. With 0
   * there is one device, which the fields above describe.
   */
  const struct unified_device *devices;
  uint32_t device_count;
  /**
   * Must be 0.
   */
  uint32_t reserved2;
  /**
   * Most bytes that are registered for buffers at a time (unified_buffer_alloc). They are allocated when they are asked for.
   * Default 1 GiB. It says nothing about frames: see frame_count.
   */
  uint64_t buffers_max;
  /**
   * For several queues, instead of `xsk_fd`: `xsk_fd_count` sockets like it, one for each queue, in the order of the queues.
   * The caller keeps them and may close them after unified_ctx_create. Each has a UMEM of its own, so the data buffers
   * count once for each of them against RLIMIT_MEMLOCK. With 0 the library makes the sockets, or `xsk_fd` is the only one.
   */
  const int32_t *xsk_fds;
  uint32_t xsk_fd_count;
  /**
   * Must be 0.
   */
  uint32_t reserved3;
};

/**
 * Properties of a context as it was created.
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
   * Maximum number of bytes in one command.
   */
  uint32_t max_transfer;
  /**
   * Alignment mask: a data address with one of these bits set cannot be used in place.
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
   * 0 or 1, each as it is and not as it was requested. huge_pages: the whole region is in huge pages, reserved or
   * transparent.
   */
  uint8_t huge_pages;
  uint8_t native;
  uint8_t zero_copy;
  uint8_t dispatcher;
  uint8_t direct_io;
  uint8_t writable;
  /**
   * 1: completed writes may stay in the device's cache until a flush. 2: unknown.
   */
  uint8_t volatile_cache;
  uint8_t threaded;
  uint32_t reserved;
  /**
   * How many lanes the context has.
   */
  uint32_t lanes;
  /**
   * The lane that this tells about: its rings and its queue. 0 for the handle of the context.
   */
  uint32_t lane;
  /**
   * How many devices the context has. The fields above are about device 0; unified_device_info tells about each.
   */
  uint32_t devices;
  uint32_t reserved1;
};

/**
 * All counters, since the context was created. While no packet and no command is on its way:
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
   * Passed to the kernel's network stack.
   */
  uint64_t xdp_passed;
  /**
   * Redirected to the AF_XDP socket.
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
   * UDP to one of the ports, with impossible length fields: passed.
   */
  uint64_t xdp_malformed;
  /**
   * IP fragments: passed.
   */
  uint64_t xdp_fragments;
  /**
   * Metadata events written, and events lost because the reader was too slow and the ring buffer was full. Before the first
   * unified_events or unified_events_fd nothing counts as lost: a full ring buffer keeps the oldest events.
   */
  uint64_t events;
  uint64_t events_lost;
  /**
   * Packets without a metadata record, because the driver has no metadata area.
   */
  uint64_t no_metadata;
  /**
   * Dropped by the kernel because no frame was free, or because the packet is longer than a frame.
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
   * Redirected packets that no counter of the kernel accounts for.
   */
  uint64_t redirect_errors;
  /**
   * Waiting in the RX ring.
   */
  uint64_t rx_pending;
  /**
   * Packets returned by unified_rx_batch or taken by a pipeline, and their bytes.
   */
  uint64_t received;
  uint64_t received_bytes;
  /**
   * Outcomes of received packets: written with success (bytes include padding), written without success, released without
   * being written.
   */
  uint64_t stored;
  uint64_t stored_bytes;
  uint64_t failed;
  uint64_t released;
  uint64_t packets_held;
  uint64_t packets_in_flight;
  /**
   * Commands that the engine took, that completed, that completed with an error, and the operations made of them.
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
   * In the fill ring, or inside the kernel.
   */
  uint64_t frames_filled;
  /**
   * Owned by the caller.
   */
  uint64_t frames_held;
  uint64_t frames_in_flight;
  /**
   * Packets that did not begin at the expected place in their frame.
   */
  uint64_t misplaced;
  /**
   * Invalid descriptors in the RX ring.
   */
  uint64_t bad_descriptors;
  /**
   * 1: the interface is up and has a carrier. 0: it is down or gone, or the context has none.
   */
  uint64_t link_up;
  /**
   * Observed changes between up and down, and the removal of the interface.
   */
  uint64_t link_changes;
  /**
   * 1: the XDP program is still attached. 0: somebody detached or replaced it.
   */
  uint64_t xdp_attached;
  /**
   * How many times somebody else changed the XDP program on the interface.
   */
  uint64_t xdp_changes;
  /**
   * Writes that the device failed and the spill took, and their bytes. They count as `stored`, and not in `errors` or
   * `bytes_written`.
   */
  uint64_t spilled;
  uint64_t spilled_bytes;
  /**
   * To one of the ports, but several datagrams that the sender (GSO) or the kernel (GRO) merged into one packet:
   * passed, and not in `xdp_matched`. They can be told apart in SKB mode and on tap interfaces, with kernel 6.2 or
   * newer and its BTF; native XDP of other drivers is given none.
   */
  uint64_t xdp_merged;
  /**
   * Packets that a pipeline copied together with others (UNIFIED_LAYOUT_LOG), and their bytes. They are among `stored`,
   * `failed` or `released` as soon as their write has ended.
   */
  uint64_t packed;
  uint64_t packed_bytes;
  /**
   * Free frames that no lane has, part of frames_free. 0 for a lane's handle, and if there is one lane.
   */
  uint64_t frames_reserve;
  /**
   * Buffers that are allocated now, their bytes, and the bytes that are registered for them (at most
   * unified_config.buffers_max), which are counted once, although the ring of each lane counts them against RLIMIT_MEMLOCK. 0
   * for a lane's handle.
   */
  uint64_t buffers;
  uint64_t buffer_bytes;
  uint64_t buffer_registered_bytes;
};

/**
 * A histogram of latency, since the context was created.
 */
struct unified_latency {
  /**
   * sizeof(struct unified_latency), set by the caller; then the bytes that were filled in.
   */
  uint64_t size;
  /**
   * Number of samples: the sum of `buckets`.
   */
  uint64_t count;
  /**
   * Sum of all samples, ns.
   */
  uint64_t sum;
  /**
   * Longest sample, ns.
   */
  uint64_t max;
  /**
   * Samples per bucket. The upper bounds are 1, 2, 3 and 4 us, then four equal steps up to each power of two: 5, 6, 7, 8,
   * 10, 12, 14, 16 us and so on up to 67 s. The last bucket has all longer samples. unified_latency_bound returns the
   * bounds.
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
 * Properties of a device, and what was counted of it: by all lanes, or by the lane whose handle was given.
 */
struct unified_device_info {
  /**
   * sizeof(struct unified_device_info), set by the caller; then the bytes that were filled in.
   */
  uint64_t size;
  /**
   * "nvme passthrough", "block", "file" or "null"; static.
   */
  const char *backend;
  /**
   * As it was opened; owned by the context.
   */
  const char *path;
  /**
   * Blocks of the device, and bytes in each.
   */
  uint64_t blocks;
  uint32_t block_size;
  /**
   * Maximum number of bytes in one command.
   */
  uint32_t max_transfer;
  /**
   * Alignment mask: a data address with one of these bits set cannot be used in place.
   */
  uint32_t dma_alignment;
  /**
   * NVMe namespace id; 1 for other devices.
   */
  uint32_t nsid;
  /**
   * 0 or 1.
   */
  uint8_t direct_io;
  uint8_t writable;
  /**
   * 1: completed writes may stay in the device's cache until a flush. 2: unknown.
   */
  uint8_t volatile_cache;
  /**
   * 1: it has failed while it was recorded to, and has not answered since. It is tried again every second.
   */
  uint8_t out;
  uint32_t reserved;
  /**
   * Operations that the device got, commands that completed with an error, bytes written and read with success, writes
   * that the device failed and the spill took, and their bytes: parts of the sums in unified_stats.
   */
  uint64_t operations;
  uint64_t errors;
  uint64_t bytes_written;
  uint64_t bytes_read;
  uint64_t spilled;
  uint64_t spilled_bytes;
  /**
   * Operations that the device, or its spill, has not answered yet.
   */
  uint64_t in_flight;
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
   * When the XDP program saw the packet: ns of CLOCK_MONOTONIC as this process reads it, also in a time namespace. 0 if the
   * driver has no metadata area.
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
 * One write of unified_submit_writes. This struct never changes.
 */
struct unified_write {
  /**
   * First byte, inside the frame.
   */
  const void *data;
  /**
   * First block on the device.
   */
  uint64_t lba;
  /**
   * Comes back with the completion.
   */
  uint64_t user_data;
  /**
   * Bytes from `data`.
   */
  uint32_t len;
  uint32_t frame;
  /**
   * UNIFIED_FUA, UNIFIED_KEEP
   */
  uint32_t flags;
  /**
   * 0
   */
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
   * 0, or a negative errno if the operating system failed and not the device.
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
   * UNIFIED_COMPLETION_DNR, _FRAME, _BOUNCED, _SPILLED
   */
  uint32_t flags;
  /**
   * Number of the device. Of a flush of several devices: that of the device with this status.
   */
  uint32_t device;
};

/**
 * A command for unified_submit, which says what to do on which device. Zero the struct, and set `size`, which is the same in all
 * elements of an array.
 */
struct unified_submission {
  /**
   * sizeof(struct unified_submission)
   */
  uint64_t size;
  /**
   * First block on the device.
   */
  uint64_t lba;
  /**
   * Comes back with the completion.
   */
  uint64_t user_data;
  /**
   * First byte of the data, inside the frame or buffer. NULL for operations without data.
   */
  void *data;
  /**
   * For UNIFIED_OP_RAW.
   */
  const struct unified_nvme_command *command;
  /**
   * UNIFIED_OP_WRITE and so on.
   */
  uint32_t op;
  /**
   * Number of the device.
   */
  uint32_t device;
  /**
   * The frame in which the data lies.
   */
  uint32_t frame;
  /**
   * Bytes from `data`, for writes, reads and compares.
   */
  uint32_t len;
  /**
   * 1 to 65536, for UNIFIED_OP_WRITE_ZEROES and UNIFIED_OP_DEALLOCATE.
   */
  uint32_t blocks;
  /**
   * UNIFIED_FUA, UNIFIED_KEEP, UNIFIED_MORE, for the operations that know them.
   */
  uint32_t flags;
  /**
   * The buffer in which the data lies, instead of a frame (unified_buffer_alloc); `frame` is ignored then. 0: a frame. For
   * writes, reads, compares and UNIFIED_OP_RAW, without UNIFIED_KEEP.
   */
  uint64_t buffer;
};

/**
 * A buffer. Set `size` before the call.
 */
struct unified_buffer_info {
  /**
   * sizeof(struct unified_buffer_info), set by the caller; then the bytes that were filled in.
   */
  uint64_t size;
  /**
   * First byte, on a page; owned by the context, or where the program has mapped it (unified_buffer_import).
   */
  void *data;
  /**
   * Bytes, as they were asked for.
   */
  uint64_t len;
  /**
   * Commands that use it: submitted, and their completions not yet taken.
   */
  uint32_t commands;
  uint32_t reserved;
};

/**
 * Configuration of a pipeline: what it stores, and where.
 */
struct unified_pipeline_config {
  /**
   * sizeof(struct unified_pipeline_config)
   */
  uint64_t size;
  /**
   * First block of the range. UNIFIED_LAYOUT_LOG: on each device, in its own blocks.
   */
  uint64_t start_lba;
  /**
   * Blocks in the range. 0: to the end of each device.
   */
  uint64_t blocks;
  /**
   * UNIFIED_AT_END_STOP or UNIFIED_AT_END_WRAP
   */
  uint32_t at_end;
  /**
   * UNIFIED_FUA, UNIFIED_LOG_NEW, UNIFIED_LOG_UNCHECKED
   */
  uint32_t flags;
  /**
   * UNIFIED_LAYOUT_PAYLOAD, UNIFIED_LAYOUT_SLOT or UNIFIED_LAYOUT_LOG
   */
  uint32_t layout;
  /**
   * Flush after this many completed writes, and this many ms after the last flush if writes completed since. Both 0: one
   * flush, at the end.
   */
  uint32_t flush_writes;
  uint32_t flush_interval_ms;
  /**
   * Interrupt moderation, us: while packets arrive, the pipeline polls the RX ring at this interval instead of being woken
   * by each packet, and packets that arrive together become one write. The first packet after a pause is taken at once. 0:
   * 4000. 1: every packet wakes. At most 1000000. The library polls more often if the RX ring is short (it allows 250 ns
   * per entry) or fills faster, and at least every flush_interval_ms.
   */
  uint32_t moderation_us;
  /**
   * UNIFIED_LAYOUT_LOG: packets shorter than this, in bytes from the Ethernet header on, are packed. 0: a default that was
   * measured. 1: none are, unless the device is the bound. UINT32_MAX: all are.
   */
  uint32_t pack_below;
  /**
   * UNIFIED_LAYOUT_PAYLOAD with several devices: payloads go round all devices, so many bytes to one before the next gets
   * some. A power of two, a multiple of each device's block size, at least frame_size, at most 1 GiB. 0: 1 MiB. No payload
   * crosses the border of a chunk. start_lba and blocks are blocks of all devices then: see unified_stripe_locate.
   */
  uint32_t chunk_bytes;
};

/**
 * State of a pipeline. Of several lanes together: sums, also of the sequence numbers; `next_lba` and `pack_below` are those of
 * the first lane, and `error` is the first that there is.
 */
struct unified_pipeline_status {
  /**
   * sizeof(struct unified_pipeline_status), set by the caller; then the bytes that were filled in.
   */
  uint64_t size;
  /**
   * Block that the next payload goes to.
   */
  uint64_t next_lba;
  /**
   * How many times it began again at the start of the range.
   */
  uint64_t wraps;
  /**
   * Writes submitted, writes completed with success, writes completed without success.
   */
  uint64_t submitted;
  uint64_t stored;
  uint64_t failed;
  /**
   * Payload bytes submitted, without padding.
   */
  uint64_t payload_bytes;
  /**
   * Packets released because the range was full.
   */
  uint64_t no_space;
  /**
   * Packets released because they have no payload.
   */
  uint64_t empty;
  /**
   * 0 or 1.
   */
  uint32_t running;
  /**
   * 0; -ENOSPC: the range was full; -EIO: a flush failed; otherwise the error that ended a thread.
   */
  int32_t error;
  /**
   * The logs' layouts: the sequence number of the first packet.
   */
  uint64_t first_sequence;
  /**
   * The first `completed` of the submitted writes are completed, with or without success; the first `durable` are on stable
   * storage.
   */
  uint64_t completed;
  uint64_t durable;
  /**
   * Completed flushes.
   */
  uint64_t flushes;
  /**
   * UNIFIED_LAYOUT_LOG: the value in use of unified_pipeline_config.pack_below. 0 in the other layouts.
   */
  uint64_t pack_below;
  /**
   * UNIFIED_LAYOUT_LOG on several devices: packets that were written again to another device, since theirs failed or did not
   * answer.
   */
  uint64_t rescued;
  /**
   * UNIFIED_LAYOUT_LOG on several devices: packets that a device had completed, and no flush had covered, when it failed. They
   * count as durable, and are lost if the device held them in a cache that is gone.
   */
  uint64_t unflushed;
};

/**
 * A record of a log, or a range of records that is missing, damaged or overwritten.
 */
struct unified_log_record {
  /**
   * sizeof(struct unified_log_record), set by the caller; then the bytes that were filled in.
   */
  uint64_t size;
  uint64_t sequence;
  /**
   * Number of records in the range; 1 for a record.
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
  /**
   * 0.
   */
  uint16_t reserved;
  /**
   * The lane that received the packet, also of ranges: each lane has its own sequence numbers. 0 if the log has one.
   */
  uint16_t lane;
  /**
   * Number of the device, in its recording, that the record was read from. 0 if the log is on one.
   */
  uint16_t device;
  /**
   * 0.
   */
  uint32_t reserved2;
};

/**
 * Properties of a log, and what this reader has read so far.
 */
struct unified_log_info {
  /**
   * sizeof(struct unified_log_info), set by the caller; then the bytes that were filled in.
   */
  uint64_t size;
  /**
   * A random number, chosen when the log was created.
   */
  uint64_t log_id;
  /**
   * ns since 1970-01-01 UTC.
   */
  uint64_t created;
  /**
   * Number of records that the log holds before it wraps, and bytes of each.
   */
  uint64_t slots;
  uint32_t slot_size;
  uint32_t block_size;
  /**
   * Sequence numbers: of the oldest record, of the record after the newest, and of the record that is read next.
   */
  uint64_t oldest;
  uint64_t end;
  uint64_t position;
  /**
   * Found by this reader so far.
   */
  uint64_t records;
  uint64_t missing;
  uint64_t damaged;
  uint64_t overwritten;
  /**
   * Packets for the recorded ports that the kernel dropped since the log was created, because the RX ring was full or no
   * frame was free. It is the sum over all recorders that wrote to this log. A recorder updates it once a second and when
   * it ends.
   */
  uint64_t dropped;
  /**
   * Packets for the recorded ports that were seen but not recorded: they came to another queue, were merged or malformed, or
   * the log was full.
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
  /**
   * Of the log's format: 1 (UNIFIED_LAYOUT_SLOT) or 2 (UNIFIED_LAYOUT_LOG).
   */
  uint32_t version;
  /**
   * 0.
   */
  uint32_t reserved;
  /**
   * Lanes that wrote the log. `oldest`, `end` and `position` are sums over them.
   */
  uint32_t lanes;
  /**
   * Devices that the recording has, and those of them that are read.
   */
  uint32_t devices;
  uint32_t devices_given;
  /**
   * 0.
   */
  uint32_t reserved2;
};

#ifdef __cplusplus
extern "C" {
#endif // __cplusplus

/**
 * Returns the library's version: major << 16 | minor << 8 | patch. Any thread.
 */
uint32_t unified_version(void);

/**
 * Returns the library's version as static text. Any thread.
 */
const char *unified_version_string(void);

/**
 * Returns a message about the last function of this thread that failed, or did only a part of a batch: what was tried, on what,
 * and what to do. Never NULL; empty before the first failure. Valid until the next call of this library in this thread.
 */
const char *unified_last_error(void);

/**
 * Returns the text of an errno, negative or positive. Valid until the next call of this function in this thread.
 */
const char *unified_strerror(int error);

/**
 * Returns the text of an NVMe status (type << 8 | code). It is static. Any thread.
 */
const char *unified_status_string(uint32_t status);

/**
 * Sets the log callback of the process. NULL turns the log off (the default). Lines above `max_level` are not passed on. When
 * the function returns, the previous callback is no longer running and will not be called again. Returns 0, or -EINVAL if
 * the level is out of range. Any thread.
 */
int unified_set_log_callback(unified_log_fn callback,
                             int max_level,
                             void *user);

/**
 * Opens the device and the interface, maps the region, and starts to receive. Stores the handle in `*ctx`. On failure
 * `*ctx` is NULL, and nothing stays attached or open. Any thread.
 *
 * Returns 0, or -EINVAL: a field has an invalid value; -E2BIG: this version does not know all fields; -ENODEV: there
 * is no such interface; -EPROTONOSUPPORT: the interface has no Ethernet headers; -ENETDOWN: the interface is down;
 * -ENOENT: there is no such device; -EACCES, -EROFS: the device may not be written to; -EBUSY: the interface, the
 * queue or the device is in use; -EEXIST: the device holds a file system or the like (UNIFIED_FORCE overrides this);
 * -ENOMEM: not enough memory or locked memory (RLIMIT_MEMLOCK); -EPERM: capabilities are missing; -EOPNOTSUPP: the
 * driver does not support the requested mode; -ENOSPC: no room for the file; -EBADF: an invalid descriptor; -ENOTSOCK:
 * `xsk_fd`, or one of `xsk_fds`, is not an AF_XDP socket.
 */
int unified_ctx_create(const struct unified_config *config,
                       unified_ctx **ctx);

/**
 * Stops the pipeline, detaches the XDP program, finishes submitted commands, and closes everything. Calls in other threads
 * return -ESHUTDOWN first, including those that wait. Afterwards packet pointers and the handle are invalid, whatever this
 * function returns.
 *
 * Submitted commands are carried out with either drive, including those submitted with UNIFIED_MORE that the engine has not
 * seen yet. Completions that nobody took are discarded. The function waits at most 30 s for the device. -EIO: commands
 * failed and nobody took their completions (reads and compares do not count), or the device did not answer in time;
 * unified_last_error() says how many. In that case the memory that the device may still use stays mapped, and the device
 * stays open, until the device answers (UNIFIED_DRIVE_THREAD) or the process ends (UNIFIED_DRIVE_INLINE).
 *
 * Returns 0, or -EIO; -EINVAL: `ctx` is NULL; -ESHUTDOWN: another thread is destroying it; -EBADF: it was destroyed before;
 * -ENOTSUP: in a forked child. Any thread, but not from within a callback.
 */
int unified_ctx_destroy(unified_ctx *ctx);

/**
 * Stores the handle of lane `lane` of a context in `*handle`. The lanes are numbered from 0; unified_info.lanes says how many
 * there are, and unified_info.lane which one a handle is for. Lane i receives from queue unified_config.queue + i.
 *
 * All functions that take a context take a lane's handle too. Functions of the data path then act on this lane alone, with
 * the same thread rule: one receiver's and one taker's thread for each lane, and no lock between lanes. A frame may be
 * submitted or released on another lane than the one it was received on. Of the control functions, unified_ctx_info,
 * unified_ctx_stats, unified_ctx_latency, unified_stats_render and unified_device_info tell about this lane, and pipelines belong
 * to it (unified_pipeline_status tells about this lane's part of the context's pipeline too); ports, events and the devices are
 * those of the context.
 *
 * Once a lane's handle was given out, the functions of the data path return -EBUSY on the handle of the context, except for
 * unified_frame_release and unified_frames_release. The same lane gives the same handle again. It ends with
 * unified_ctx_destroy of its context and must not be destroyed itself.
 *
 * Returns 0, or -EINVAL: there is no such lane, `ctx` is a lane's handle, or a pointer is NULL; -EBADF, -ESHUTDOWN, -ENOTSUP: as
 * every function. Any thread, but not while another one uses the data path of the context's handle.
 */
int unified_ctx_lane(const unified_ctx *ctx,
                     uint32_t lane,
                     unified_ctx **handle);

/**
 * Stores the properties of the context in `*info`. Set `info->size` first. Returns 0, -EINVAL or -EBADF. Any thread.
 */
int unified_ctx_info(const unified_ctx *ctx,
                     struct unified_info *info);

/**
 * Stores all counters in `*stats`. Set `stats->size` first. Returns 0, -EINVAL, -EBADF, or an error of the kernel. Any
 * thread; a receiving thread may have to wait for one system call of this function.
 */
int unified_ctx_stats(const unified_ctx *ctx,
                      struct unified_stats *stats);

/**
 * Stores a histogram of latency in `*latency`. `which` is UNIFIED_LATENCY_PACKET or UNIFIED_LATENCY_COMMAND. Set
 * `latency->size` first. It makes no system call and takes no lock of the data path, so it is cheap enough to call every
 * second. Returns 0, -EINVAL (`which`, `size`, NULL), -EBADF, or -ENOTSUP in a forked child. Any thread; samples that are
 * recorded during the call may be included or not.
 */
int unified_ctx_latency(const unified_ctx *ctx,
                        uint32_t which,
                        struct unified_latency *latency);

/**
 * Returns the inclusive upper bound, in ns, of a bucket of unified_latency; UINT64_MAX for the last bucket and for larger
 * numbers. Any thread.
 */
uint64_t unified_latency_bound(uint32_t bucket);

/**
 * Returns the latency in ns that the fraction `quantile` of all samples did not exceed (0 to 1; 0.99 is the 99th
 * percentile). The result is the upper bound of a bucket: at most a quarter too long (below 4 us: 1 us), and never more than
 * `max`. Returns 0 if there are no samples, for NULL, and for a struct that is shorter than this library's. Any thread.
 */
uint64_t unified_latency_quantile(const struct unified_latency *latency,
                                  double quantile);

/**
 * Writes all counters as OpenMetrics text (openmetrics.io), with labels for interface, queue and device. An HTTP endpoint for
 * Prometheus can return it with the type `application/openmetrics-text; version=1.0.0`. The names are those of
 * unified_stats with the prefix `unified_`; docs/monitoring.md lists them. The function writes at most `size` bytes,
 * including a zero byte at the end. `text` may be NULL if `size` is 0. Returns the length of the whole text without the zero
 * byte, so the text was cut if the result is at least `size`; or -EINVAL, -EBADF, or an error of the kernel. Any thread, as
 * unified_ctx_stats. Allocates memory.
 */
int unified_stats_render(const unified_ctx *ctx,
                         char *text,
                         uint32_t size);

/**
 * Starts receiving a UDP port, in addition to the others. Returns 0, -EINVAL (port 0), -ENOTCONN (no interface), or -ENOTSUP
 * (with `xsk_map_fd`: the XDP program belongs to another process). Any thread.
 */
int unified_port_add(const unified_ctx *ctx,
                     uint16_t port);

/**
 * Stops receiving a UDP port; its packets go to the network stack. Errors and thread as unified_port_add.
 */
int unified_port_remove(const unified_ctx *ctx,
                        uint16_t port);

/**
 * Logs one metadata event per `sample` packets from now on; 0 turns events off. Returns 0, -ENOTCONN or -ENOTSUP (as
 * unified_port_add). Any thread.
 */
int unified_events_sample(const unified_ctx *ctx,
                          uint32_t sample);

/**
 * Takes up to `max` metadata events out of the BPF ring buffer, oldest first, and returns their number. Until the first call
 * of this function or of unified_events_fd the ring buffer keeps the oldest events: when it is full, no more are logged.
 * Returns -EINVAL, -ENOTCONN or -ENOTSUP (as unified_port_add) on error. Any thread; concurrent calls wait for each other.
 */
int unified_events(const unified_ctx *ctx,
                   struct unified_event *events,
                   uint32_t max);

/**
 * Returns a descriptor that becomes readable when a quarter of the event ring buffer is full. The context owns it. It does not
 * report fewer events: call unified_events for those. Returns -ENOTCONN or -ENOTSUP (as unified_port_add) on error. Any
 * thread.
 */
int unified_events_fd(const unified_ctx *ctx);

/**
 * Copies the path of device 0, as it was opened, to `path`: at most `len` bytes, including the zero byte. Returns the length
 * without the zero byte, -EINVAL or -ENAMETOOLONG. Any thread.
 */
int unified_ctx_device(const unified_ctx *ctx,
                       char *path,
                       uint32_t len);

/**
 * Stores the properties of a device, and what was counted of it, in `*info`. Set `info->size` first. The devices are numbered
 * from 0; unified_info.devices says how many there are. With the handle of a context it counts what all lanes did, with a lane's
 * handle what that lane did. Returns 0, -EINVAL (there is no such device, NULL, or a wrong size), -EBADF, or -ENOTSUP in a
 * forked child. Any thread.
 */
int unified_device_info(const unified_ctx *ctx,
                        uint32_t device,
                        struct unified_device_info *info);

/**
 * Allocates a free frame and stores its number in `*frame`. The caller owns it until it is submitted or released. Returns 0,
 * -ENOBUFS (no frame is free now), -EBUSY (another thread receives) or -ESHUTDOWN (the context is being destroyed). The
 * receiver's thread.
 */
int unified_frame_alloc(const unified_ctx *ctx,
                        uint32_t *frame);

/**
 * Releases a frame that was received, allocated, or returned by a completion. Returns 0, -EINVAL (the caller does not own it)
 * or -EBUSY (it is in flight). Any thread.
 */
int unified_frame_release(const unified_ctx *ctx,
                          uint32_t frame);

/**
 * Releases `count` frames, in the order of the array. It does what unified_frame_release does with each, at a lower cost, which
 * is lowest if the numbers of the frames follow each other. Returns the number of released frames. That is less than `count` if
 * the caller does not own a frame or it is in flight: this frame and all after it stay as they were, and unified_last_error
 * says why. If that happens with the first frame, the error is that of unified_frame_release. -EINVAL also if `frames` is NULL
 * or not aligned. Any thread.
 */
int unified_frames_release(const unified_ctx *ctx,
                           const uint32_t *frames,
                           uint32_t count);

/**
 * Returns the first byte of a frame of `frame_size` bytes, aligned to a page or half a page; NULL if there is no frame of that
 * number. Access the memory only while the caller owns the frame. Any thread.
 */
void *unified_frame_data(const unified_ctx *ctx,
                         uint32_t frame);

/**
 * Takes up to `max` received packets and refills the fill ring with free frames. Returns the number of packets, 0 if there are
 * none. From now on the caller owns the frame of each packet. Errors: -EINVAL, -EBUSY (another thread receives, or a
 * pipeline runs), -ENOTCONN (no interface), -ENODEV (the interface was deleted or moved to another network namespace, and
 * all packets were taken), -ESHUTDOWN. The receiver's thread. It is not an error if the interface is down or if somebody
 * detached the XDP program: see unified_stats.link_up and xdp_attached.
 */
int unified_rx_batch(const unified_ctx *ctx,
                     struct unified_packet *packets,
                     uint32_t max);

/**
 * Writes `len` bytes at `data`, inside `frame`, to the device, beginning at block `lba`. The last block is padded with zeroes,
 * so the bytes of the frame after `data + len` may be overwritten. The library owns the frame until its completion was taken.
 * Then the frame goes back to the fill ring, or to the caller with UNIFIED_KEEP. If this function fails, the caller still
 * owns the frame.
 *
 * Returns 0, -EINVAL (wrong length, not inside the frame, or the caller does not own the frame), -EBUSY (the frame is in
 * flight, another thread submits, or a pipeline runs), -EAGAIN (the SQ ring is full: take completions) or -ESHUTDOWN. The
 * completion carries the status of the device: LBA Out of Range (80h), Write Fault (280h), Namespace is Write Protected
 * (20h), and so on. If the device has a volatile cache, the data is durable only after a flush, or with UNIFIED_FUA. The
 * receiver's thread. NVM Command Set Specification 1.0, section 3.2.6.
 */
int unified_submit_write(const unified_ctx *ctx,
                         uint32_t frame,
                         const void *data,
                         uint32_t len,
                         uint64_t lba,
                         uint64_t user_data,
                         uint32_t flags);

/**
 * Submits `count` writes, in the order of the array. It does what unified_submit_write does with each, at a lower cost. The
 * engine sees all of them together, and with them those that were submitted with UNIFIED_MORE before. The flags of an entry are
 * UNIFIED_FUA and UNIFIED_KEEP.
 *
 * Returns the number of submitted writes. That is less than `count` if the SQ ring became full or an entry was refused: the
 * caller still owns the frame of this entry and of all after it, and unified_last_error says why. If that happens with the first
 * entry, the error is that of unified_submit_write. -EINVAL also if `writes` is NULL or not aligned. The receiver's thread.
 */
int unified_submit_writes(const unified_ctx *ctx,
                          const struct unified_write *writes,
                          uint32_t count);

/**
 * Reads `len` bytes, whole blocks, beginning at block `lba`, to `data` inside a frame that the caller owns. The completion
 * returns the frame. Errors and thread as unified_submit_write. Section 3.2.4.
 */
int unified_submit_read(const unified_ctx *ctx,
                        uint32_t frame,
                        void *data,
                        uint32_t len,
                        uint64_t lba,
                        uint64_t user_data,
                        uint32_t flags);

/**
 * Compares `len` bytes, whole blocks, with the device. The status is Compare Failure (285h) if they differ. The completion
 * returns the frame. Errors and thread as unified_submit_write. Section 3.2.1.
 */
int unified_submit_compare(const unified_ctx *ctx,
                           uint32_t frame,
                           const void *data,
                           uint32_t len,
                           uint64_t lba,
                           uint64_t user_data,
                           uint32_t flags);

/**
 * Flushes all devices of the context: when the flush completes, all writes that completed before it was submitted are durable.
 * Writes that were in flight may or may not be covered. It has one completion, with the worst status of all devices, and the
 * device of that status; unified_submit flushes a single one. Returns 0, -EBUSY, -EAGAIN or -ESHUTDOWN. The receiver's thread. Base Specification 2.0, section 7.1.
 */
int unified_submit_flush(const unified_ctx *ctx,
                         uint64_t user_data);

/**
 * Zeroes `blocks` (1 to 65536) blocks, beginning at `lba`. `flags`: UNIFIED_FUA or 0. Errors and thread as
 * unified_submit_flush, and -EINVAL. NVM Command Set Specification 1.0, section 3.2.8.
 */
int unified_submit_write_zeroes(const unified_ctx *ctx,
                                uint64_t lba,
                                uint32_t blocks,
                                uint64_t user_data,
                                uint32_t flags);

/**
 * Deallocates `blocks` (1 to 65536) blocks, beginning at `lba` (Dataset Management). The device decides what they contain
 * afterwards. Errors and thread as unified_submit_flush, -EINVAL, and -ENOBUFS (it needs a free frame). NVM Command Set Specification 1.0, section 3.2.3.
 */
int unified_submit_deallocate(const unified_ctx *ctx,
                              uint64_t lba,
                              uint32_t blocks,
                              uint64_t user_data);

/**
 * Submits any NVMe command. Opcode 06h, Identify, goes to the controller. The data of the command is `command->data_len` bytes
 * at `data` inside `frame`; the completion returns the frame. For a command without data, `data` is NULL and `frame` is
 * ignored. Other devices than NVMe drives support the commands of this header and answer all others with Invalid Opcode
 * (1h). Errors and thread as unified_submit_write.
 */
int unified_submit_raw(const unified_ctx *ctx,
                       const struct unified_nvme_command *command,
                       uint32_t frame,
                       void *data,
                       uint64_t user_data);

/**
 * Makes commands that were submitted with UNIFIED_MORE visible to the engine. Returns 0, -EBUSY or -ESHUTDOWN. The receiver's
 * thread.
 */
int unified_submit_pending(const unified_ctx *ctx);

/**
 * Takes up to `max` completions and returns their number, 0 if there are none. With UNIFIED_DRIVE_INLINE this call also drives
 * the device. Errors: -EINVAL, -EBUSY (another thread takes completions, or a pipeline runs), -ESHUTDOWN, -EBADMSG (the
 * rings were overwritten), or the error that stopped the engine. The taker's thread.
 */
int unified_completions(const unified_ctx *ctx,
                        struct unified_completion *completions,
                        uint32_t max);

/**
 * Waits until packets or completions are ready, as `what` says (UNIFIED_WAIT_RX, UNIFIED_WAIT_COMPLETIONS or both), for at most
 * `timeout_ms` (-1: no limit). Returns the bits that are ready; 0 on timeout or signal. Errors: -EINVAL, -EBUSY, -ENOTCONN,
 * -ENODEV (the interface is gone and nothing is ready), -ESHUTDOWN (the context is being destroyed), or the error that
 * stopped the engine. The thread that has the role, or both roles. It keeps them until the function returns: meanwhile calls
 * of the same role in other threads return -EBUSY.
 */
int unified_wait(const unified_ctx *ctx,
                 uint32_t what,
                 int timeout_ms);

/**
 * Returns a descriptor for event loops. It is readable while packets or completions are ready. The context owns it and closes
 * it: remove it from the loop before the context is destroyed. When it is readable, call unified_rx_batch and
 * unified_completions until they return fewer than requested. They leave the descriptor armed; it becomes readable again only
 * when something new arrives. It also becomes readable, and stays so, when the context is being destroyed or the engine has
 * stopped; those calls then return the error. Errors: -EBUSY, -ESHUTDOWN. Call it once, before the loop, from the thread that
 * has both roles.
 */
int unified_poll_fd(const unified_ctx *ctx);

/**
 * Submits `count` commands, in the order of the array, each to the device that it names. It does what unified_submit_write,
 * unified_submit_read, unified_submit_compare, unified_submit_flush, unified_submit_write_zeroes, unified_submit_deallocate and
 * unified_submit_raw do with device 0. The engine sees all of them together, and with them those that were submitted with
 * UNIFIED_MORE before. With UNIFIED_MORE in the last element, they wait for the next submission.
 *
 * With `buffer`, the data lies there instead of in a frame, and `len` may be as long as the device takes at once
 * (unified_device_info.max_transfer). The buffer stays the caller's, and cannot be freed until the completion was taken, which
 * returns no frame. A write that does not end with a block is padded with zeroes on the device, not in the buffer; the library
 * copies it for that, so it may have 8192 bytes at most (or one block, if that is longer): write whole blocks first, and then
 * the rest. On the handle of a context with several lanes, it goes to the first lane.
 *
 * The order in which devices carry commands out is not that of the array, not even on one device.
 *
 * Returns the number of submitted commands. That is less than `count` if the SQ ring became full or an element was refused: the
 * caller still owns the frame of this element and of all after it, and unified_last_error says why. If that happens with the
 * first element, the error is that of the function above, or -EINVAL: there is no such device, operation or buffer, a flag does
 * not belong to the operation, the data does not lie in the buffer or has a wrong length, the elements differ in `size`, or `submissions` is NULL or not aligned. -E2BIG: this version does
 * not know all fields. The receiver's thread.
 */
int unified_submit(const unified_ctx *ctx,
                   const struct unified_submission *submissions,
                   uint32_t count);

/**
 * Allocates a buffer of `len` bytes, 1 to 1 GiB, for unified_submit: zeroed memory that begins on a page and is registered with
 * the rings of all lanes, so that commands use it in place, as they use frames. Stores its number, which is never 0 and never
 * used again, in `*buffer`, and the address of its first byte in `*data` (which may be NULL). The memory is the caller's until
 * it is freed: nothing but the caller's own commands reads or writes it. Children of fork do not have it.
 *
 * Memory comes from pools, which grow on demand up to unified_config.buffers_max: buffers of at most 256 KiB share slabs of
 * 2 MiB, longer ones are registered by themselves. What is registered counts against RLIMIT_MEMLOCK, for each lane.
 * unified_stats.buffer_registered_bytes says how much it is.
 *
 * Returns 0, -EINVAL (`len`, or a NULL or misaligned pointer), -ENOBUFS (the limit is reached, or there are 16384 buffers or 1024
 * registrations: free some), -ENOMEM (memory, or RLIMIT_MEMLOCK), -ETIMEDOUT (the thread that drives a lane did not register the
 * memory within 10 s), -EBADF, -ESHUTDOWN, or -ENOTSUP in a forked child. Any thread, also while others use the data path; it
 * waits until the driver of each lane has registered the memory.
 */
int unified_buffer_alloc(const unified_ctx *ctx,
                         uint64_t len,
                         uint64_t *buffer,
                         void **data);

/**
 * Makes `len` bytes of the program's own memory at `address` a buffer. It must be shared memory, mapped for reading and writing:
 * MAP_SHARED with MAP_ANONYMOUS, a memfd, tmpfs or hugetlbfs, and begin on a page of its kind. The library keeps the pages until
 * the buffer is freed, but submissions give addresses in the program's mapping: keep it as long. (Huge pages: the library may
 * have to use that mapping itself.) Whole pages are registered. Other processes that share the memory see what commands read into
 * it, and commands write what they put there.
 *
 * Returns 0, -EINVAL (`len`; misaligned, or private memory, as of malloc), -EFAULT (not all of it is mapped), -EOPNOTSUPP (the
 * kernel cannot pin it, as a file on a disk), or an error of unified_buffer_alloc. Any thread.
 */
int unified_buffer_import(const unified_ctx *ctx,
                          void *address,
                          uint64_t len,
                          uint64_t *buffer);

/**
 * Makes `len` bytes from `offset` on of a memfd, or of a file of tmpfs or hugetlbfs, a buffer. The library maps them until the
 * buffer is freed, and stores the address in `*data` (which may be NULL); the descriptor may be closed at once. `offset` must be
 * a multiple of the file's page, and the file long enough; whole pages are registered. It must not be shortened while it is a
 * buffer: if another process could, seal it before (F_SEAL_SHRINK), since access to memory that is gone ends the program.
 *
 * Returns 0, -EINVAL (`len`, `offset`, or another kind of file), -EBADF, -EACCES or -EPERM (not open for reading and writing, or
 * sealed), or an error of unified_buffer_alloc. Any thread.
 */
int unified_buffer_import_fd(const unified_ctx *ctx,
                             int fd,
                             uint64_t offset,
                             uint64_t len,
                             uint64_t *buffer,
                             void **data);

/**
 * Frees a buffer. Its memory must not be used any more. Longer buffers and imported memory are unregistered and unmapped at once.
 * A slab without buffers is, too, but for one, which is kept for a second, until the next unified_buffer_alloc, unified_buffer_free
 * or unified_ctx_stats of the context. unified_ctx_destroy frees all buffers that are left.
 *
 * Returns 0, -EBUSY (commands use it: take their completions first), -EINVAL (this context has no such buffer: it was freed, or is
 * one of another context), -EBADF, -ESHUTDOWN, or -ENOTSUP in a forked child. Any thread; it may wait for the drivers of all
 * lanes.
 */
int unified_buffer_free(const unified_ctx *ctx,
                        uint64_t buffer);

/**
 * Stores the properties of a buffer in `*info`. Set `info->size` first. Returns 0, -EINVAL (this context has no such buffer, NULL,
 * or a wrong size), -EBADF, -ESHUTDOWN, or -ENOTSUP in a forked child. Any thread.
 */
int unified_buffer_info(const unified_ctx *ctx,
                        uint64_t buffer,
                        struct unified_buffer_info *info);

/**
 * Returns the first byte of the UDP payload; NULL for NULL.
 */
void *unified_packet_payload(const struct unified_packet *packet);

/**
 * Returns the number of bytes of UDP payload; 0 for NULL.
 */
uint32_t unified_packet_payload_len(const struct unified_packet *packet);

/**
 * Returns when the XDP program saw the packet: ns of CLOCK_MONOTONIC as this process reads it, also in a time namespace; 0 if
 * that is not known.
 */
uint64_t unified_packet_timestamp(const struct unified_packet *packet);

/**
 * Returns the outermost VLAN tag (PCP, DEI, VID); -ENOENT if there is none, -EINVAL for NULL.
 */
int unified_packet_vlan(const struct unified_packet *packet);

/**
 * Stores the source and destination address (16 bytes each, network byte order, IPv4 in the first four) and the ports (host
 * byte order). Any of the pointers may be NULL. Returns the IP version, 4 or 6, or -EINVAL.
 */
int unified_packet_flow(const struct unified_packet *packet,
                        uint8_t (*src_addr)[16],
                        uint8_t (*dst_addr)[16],
                        uint16_t *src_port,
                        uint16_t *dst_port);

/**
 * Starts a packet thread and a storage thread that store the received packets in a range of the devices. If the context has
 * several lanes, each has two such threads, and all of them store to one recording; with the handle of a lane, that lane alone
 * is stored, to a range that no other lane's pipeline has. Until the pipeline is stopped, the functions of the data path return
 * -EBUSY.
 *
 * UNIFIED_LAYOUT_PAYLOAD stores the payloads one after the other, each padded to whole blocks, and spreads them over all devices
 * of the context (unified_stripe_locate says where). Of several lanes, each has an equal part of the range. There is no failover:
 * what a device fails is in its spill, or counts as failed.
 *
 * UNIFIED_LAYOUT_LOG writes a log on each device, in the same range of each, which unified_log_open_set reads together
 * (unified_log_open: that of one device alone). The lanes share them. If a device fails writes, or does not answer for more than
 * a second, its packets are written to the other devices; it is tried again every second, and used again when it answers. No
 * packet is stored twice on purpose: there is no mirror. UNIFIED_LAYOUT_SLOT writes a log of version 1, of one lane on device 0.
 * An existing log of the same layout is continued, or replaced with UNIFIED_LOG_NEW; the devices of one recording must be given
 * in the order in which it was begun, all of them.
 *
 * Returns 0, or -EINVAL: the range is not on the devices, no log fits into it, a log of other sizes or of the other layout is
 * there, the devices hold different recordings or are not all of one, in its order, or a field of `config` is out of range;
 * -EROFS; -EEXIST: the range holds something that is not a log (UNIFIED_LOG_NEW overrides this); -EALREADY: a pipeline runs, or
 * has not ended yet; -EBUSY: completions of earlier commands were not taken yet, another thread is taking some, the lanes are used
 * one by one (unified_ctx_lane), or the pipeline of another lane writes to the range; -ENOTCONN: no interface; -EIO: the log
 * cannot be read; -EPROTONOSUPPORT: this library does not know the version of the log in the range; -ETIMEDOUT: a device did not
 * answer for 30 s. Any thread.
 *
 * With UNIFIED_FUA, or on a device without volatile cache, a completed write is durable. Otherwise it is durable as soon as
 * unified_pipeline_status.durable has passed it.
 */
int unified_pipeline_start(const unified_ctx *ctx,
                           const struct unified_pipeline_config *config);

/**
 * Stores in `*device` and `*device_lba` where a block of UNIFIED_LAYOUT_PAYLOAD is, with that unified_pipeline_config.chunk_bytes. The
 * blocks of the layout are numbered from 0, and each has the largest block size of the devices; `*device_lba` counts blocks of
 * the device. All blocks of a payload follow each other on one device. With one device, the block is the one of that number.
 * Returns 0, -EINVAL (no chunk can have that size, or NULL), -ERANGE (the devices have no such block), -EBADF, or -ENOTSUP in
 * a forked child. Any thread.
 */
int unified_stripe_locate(const unified_ctx *ctx,
                          uint64_t lba,
                          uint32_t chunk_bytes,
                          uint32_t *device,
                          uint64_t *device_lba);

/**
 * Stores the state of the pipeline in `*status`. Set `status->size` first. With a lane's handle, it is the state of this lane, whether
 * the pipeline was started with that handle or with that of the context. Returns 0, -EINVAL or -ENOENT (no pipeline runs). Any
 * thread.
 */
int unified_pipeline_status(const unified_ctx *ctx,
                            struct unified_pipeline_status *status);

/**
 * Stops the pipeline: stores what was received, flushes the device, and ends both threads. Packets that arrive later stay in
 * the RX ring. `status` may be NULL; otherwise set `status->size` first. Returns 0, -ENOENT (no pipeline runs), -EIO (a flush
 * failed; `durable` says what is safe) or -EINVAL (invalid `status->size`; the pipeline continues). Any thread.
 */
int unified_pipeline_stop(const unified_ctx *ctx,
                          struct unified_pipeline_status *status);

/**
 * Opens a log that a pipeline with UNIFIED_LAYOUT_SLOT or UNIFIED_LAYOUT_LOG wrote, or still writes, to `path`. The log begins `start` bytes into the
 * device or file. No context is needed, and no privilege other than to read `path`. Stores the handle in `*log`; NULL on
 * failure. The first record to be read is the oldest.
 *
 * Returns 0, -EINVAL (NULL, or `start` is not a multiple of 512), -ENOENT, -EACCES (the path may not be read), -ENOMSG
 * (there is no log), -EPROTONOSUPPORT (this library does not know the log's version) or -EIO. Any thread. One thread
 * at a time uses a log; others wait. A forked child gets -ENOTSUP from all calls if a thread of the parent was inside
 * one at the fork.
 */
int unified_log_open(const char *path,
                     uint64_t start,
                     struct unified_log **log);

/**
 * As unified_log_open, of a recording over several devices: opens `count` of them together, in any order. Each log begins `starts[i]` bytes into
 * `paths[i]`; NULL for `starts`: all at 0. Not all devices of the recording need to be there: records that only the others have
 * are reported as missing. unified_log_info says how many there are. unified_log_open reads one device by itself in the same way.
 *
 * Returns as unified_log_open, and -EINVAL for a count of 0 or of more than 65535, for devices of different recordings, and for one
 * that is given twice, also under two names. unified_last_error names them.
 */
int unified_log_open_set(const char *const *paths,
                         const uint64_t *starts,
                         uint32_t count,
                         struct unified_log **log);

/**
 * Closes a log. Pointers into its records become invalid. Returns 0, -EINVAL for NULL, or -EBADF if it was closed before.
 */
int unified_log_close(struct unified_log *log);

/**
 * Adds the file or block device that the recorder spilled to (unified_config.spill): records that the device does not have are
 * read from there. Call it before the first unified_log_next; it goes back to the oldest record. Returns 0, -EINVAL for
 * NULL, -EBADF, -ENOENT, -EACCES (the path may not be read) or -EIO.
 */
int unified_log_add_spill(const struct unified_log *log,
                          const char *path);

/**
 * Reads the next record, or the next range of records that cannot be read. Set `record->size` first. Returns 1 and fills in
 * `*record`, or 0 at the end of the log. At the end it waits up to `timeout_ms` for a recorder to continue (-1: no limit).
 * `record->kind` says whether it is a record, or why a range of sequence numbers is not there. The log owns the packet's
 * bytes; they are valid until the next call with this log.
 *
 * A recorder's writes may complete in another order than they began. With a timeout, the function waits up to one second
 * for a record before it reports it as missing. Without one (0), a record is missing at once if a later one is there, which
 * is right for a log that nobody writes to.
 *
 * Several lanes are merged by time; each keeps the order of its own sequence numbers. With a timeout, a record is held back for up
 * to 100 ms for lanes that have none.
 *
 * Errors: -EINVAL, -EBADF, -EIO (the device cannot be read, or ends before the log does), -ENOMSG (the log was replaced by
 * something else or by a new log: close this handle and open the log again).
 */
int unified_log_next(const struct unified_log *log,
                     struct unified_log_record *record,
                     int timeout_ms);

/**
 * Seeks to a record by its sequence number: the next unified_log_next returns it, or why it is not there. Returns 0, -EINVAL (also
 * if the log has several lanes, each of which has its own sequence numbers: use unified_log_seek_time), -EBADF or -EIO.
 */
int unified_log_seek(const struct unified_log *log,
                     uint64_t sequence);

/**
 * Seeks to the first record (of each lane) that is not older than `timestamp`, in ns since 1970-01-01 UTC. Returns 0, -EINVAL, -EBADF or
 * -EIO.
 */
int unified_log_seek_time(const struct unified_log *log,
                          uint64_t timestamp);

/**
 * Stores the properties of the log, and what was read so far, in `*info`. Set `info->size` first. Returns 0, -EINVAL, -EBADF or
 * -EIO.
 */
int unified_log_info(const struct unified_log *log,
                     struct unified_log_info *info);

#ifdef __cplusplus
}  // extern "C"
#endif  // __cplusplus

#endif  /* UNIFIED_H */
