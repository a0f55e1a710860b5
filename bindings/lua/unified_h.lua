-- Made from include/unified.h by bindings/header.py; do not edit.
require("ffi").cdef [[
typedef struct unified_ctx unified_ctx;
typedef struct unified_log unified_log;
struct unified_log;
typedef void (*unified_log_fn)(int level, const char *line, void *user);
struct unified_device {
  uint64_t size;
  const char *path;
  uint64_t file_size;
  uint32_t block_size;
  uint32_t flags;
  int32_t fd;
  uint32_t reserved;
  const char *spill;
};
struct unified_config {
  uint64_t size;
  const char *ifname;
  const char *device;
  uint64_t file_size;
  uint32_t queue;
  uint32_t flags;
  const uint16_t *ports;
  uint32_t port_count;
  uint32_t drive;
  uint32_t frame_size;
  uint32_t frame_count;
  uint32_t headroom;
  uint32_t sq_entries;
  uint32_t cq_entries;
  uint32_t rx_ring;
  uint32_t fill_ring;
  uint32_t xdp_mode;
  uint32_t copy_mode;
  uint32_t run_priority;
  uint32_t event_sample;
  uint32_t events_bytes;
  uint32_t block_size;
  uint32_t reserved;
  uint32_t retries;
  uint32_t retry_backoff_us;
  uint32_t retry_give_up_ms;
  int32_t xsk_map_fd;
  int32_t xsk_fd;
  int32_t device_fd;
  const char *spill;
  uint32_t queues;
  uint32_t cpu_count;
  const uint32_t *cpus;
  const struct unified_device *devices;
  uint32_t device_count;
  uint32_t reserved2;
  uint64_t buffers_max;
  const int32_t *xsk_fds;
  uint32_t xsk_fd_count;
  uint32_t reserved3;
};
struct unified_info {
  uint64_t size;
  const char *backend;
  void *region;
  uint64_t region_size;
  uint64_t sq_ring;
  uint64_t cq_ring;
  uint64_t sq_entries_offset;
  uint64_t cq_entries_offset;
  uint64_t buffers;
  uint64_t buffers_size;
  uint64_t blocks;
  uint32_t block_size;
  uint32_t max_transfer;
  uint32_t dma_alignment;
  uint32_t nsid;
  uint32_t sq_entries;
  uint32_t cq_entries;
  uint32_t frame_size;
  uint32_t frame_count;
  uint32_t headroom;
  uint32_t ifindex;
  uint32_t queue;
  uint32_t rx_queues;
  uint32_t xdp_program_id;
  uint8_t huge_pages;
  uint8_t native;
  uint8_t zero_copy;
  uint8_t dispatcher;
  uint8_t direct_io;
  uint8_t writable;
  uint8_t volatile_cache;
  uint8_t threaded;
  uint32_t reserved;
  uint32_t lanes;
  uint32_t lane;
  uint32_t devices;
  uint32_t reserved1;
};
struct unified_stats {
  uint64_t size;
  uint64_t xdp_seen;
  uint64_t xdp_passed;
  uint64_t xdp_redirected;
  uint64_t xdp_matched;
  uint64_t xdp_no_socket;
  uint64_t xdp_malformed;
  uint64_t xdp_fragments;
  uint64_t events;
  uint64_t events_lost;
  uint64_t no_metadata;
  uint64_t rx_dropped;
  uint64_t rx_ring_full;
  uint64_t rx_fill_ring_empty;
  uint64_t redirect_errors;
  uint64_t rx_pending;
  uint64_t received;
  uint64_t received_bytes;
  uint64_t stored;
  uint64_t stored_bytes;
  uint64_t failed;
  uint64_t released;
  uint64_t packets_held;
  uint64_t packets_in_flight;
  uint64_t submitted;
  uint64_t completed;
  uint64_t errors;
  uint64_t operations;
  uint64_t commands_in_flight;
  uint64_t sq_full;
  uint64_t bounced;
  uint64_t bounced_bytes;
  uint64_t bytes_written;
  uint64_t bytes_read;
  uint64_t frames_free;
  uint64_t frames_filled;
  uint64_t frames_held;
  uint64_t frames_in_flight;
  uint64_t misplaced;
  uint64_t bad_descriptors;
  uint64_t link_up;
  uint64_t link_changes;
  uint64_t xdp_attached;
  uint64_t xdp_changes;
  uint64_t spilled;
  uint64_t spilled_bytes;
  uint64_t xdp_merged;
  uint64_t packed;
  uint64_t packed_bytes;
  uint64_t frames_reserve;
  uint64_t buffers;
  uint64_t buffer_bytes;
  uint64_t buffer_registered_bytes;
};
struct unified_latency {
  uint64_t size;
  uint64_t count;
  uint64_t sum;
  uint64_t max;
  uint64_t buckets[101];
};
struct unified_event {
  uint64_t timestamp;
  uint8_t src_addr[16];
  uint8_t dst_addr[16];
  uint16_t src_port;
  uint16_t dst_port;
  uint16_t payload_len;
  uint16_t vlan_tci;
  uint32_t queue;
  uint8_t ip_version;
  uint8_t flags;
  uint16_t reserved;
};
struct unified_device_info {
  uint64_t size;
  const char *backend;
  const char *path;
  uint64_t blocks;
  uint32_t block_size;
  uint32_t max_transfer;
  uint32_t dma_alignment;
  uint32_t nsid;
  uint8_t direct_io;
  uint8_t writable;
  uint8_t volatile_cache;
  uint8_t out;
  uint32_t reserved;
  uint64_t operations;
  uint64_t errors;
  uint64_t bytes_written;
  uint64_t bytes_read;
  uint64_t spilled;
  uint64_t spilled_bytes;
  uint64_t in_flight;
};
struct unified_packet {
  void *data;
  void *payload;
  uint64_t timestamp;
  uint32_t len;
  uint32_t payload_len;
  uint32_t frame;
  uint32_t queue;
  uint16_t l3_offset;
  uint16_t payload_offset;
  uint16_t src_port;
  uint16_t dst_port;
  uint16_t vlan_tci;
  uint8_t ip_version;
  uint8_t flags;
  uint32_t reserved;
};
struct unified_write {
  const void *data;
  uint64_t lba;
  uint64_t user_data;
  uint32_t len;
  uint32_t frame;
  uint32_t flags;
  uint32_t reserved;
};
struct unified_nvme_command {
  uint8_t opcode;
  uint8_t reserved0;
  uint16_t reserved1;
  uint32_t nsid;
  uint32_t cdw2;
  uint32_t cdw3;
  uint32_t cdw10;
  uint32_t cdw11;
  uint32_t cdw12;
  uint32_t cdw13;
  uint32_t cdw14;
  uint32_t cdw15;
  uint32_t data_len;
  uint32_t timeout;
};
struct unified_completion {
  uint64_t user_data;
  int32_t result;
  uint32_t status;
  uint32_t len;
  uint32_t frame;
  uint32_t flags;
  uint32_t device;
};
struct unified_submission {
  uint64_t size;
  uint64_t lba;
  uint64_t user_data;
  void *data;
  const struct unified_nvme_command *command;
  uint32_t op;
  uint32_t device;
  uint32_t frame;
  uint32_t len;
  uint32_t blocks;
  uint32_t flags;
  uint64_t buffer;
};
struct unified_buffer_info {
  uint64_t size;
  void *data;
  uint64_t len;
  uint32_t commands;
  uint32_t reserved;
};
struct unified_pipeline_config {
  uint64_t size;
  uint64_t start_lba;
  uint64_t blocks;
  uint32_t at_end;
  uint32_t flags;
  uint32_t layout;
  uint32_t flush_writes;
  uint32_t flush_interval_ms;
  uint32_t moderation_us;
  uint32_t pack_below;
  uint32_t chunk_bytes;
};
struct unified_pipeline_status {
  uint64_t size;
  uint64_t next_lba;
  uint64_t wraps;
  uint64_t submitted;
  uint64_t stored;
  uint64_t failed;
  uint64_t payload_bytes;
  uint64_t no_space;
  uint64_t empty;
  uint32_t running;
  int32_t error;
  uint64_t first_sequence;
  uint64_t completed;
  uint64_t durable;
  uint64_t flushes;
  uint64_t pack_below;
  uint64_t rescued;
  uint64_t unflushed;
};
struct unified_log_record {
  uint64_t size;
  uint64_t sequence;
  uint64_t count;
  uint64_t timestamp;
  const void *packet;
  const void *payload;
  uint32_t len;
  uint32_t payload_len;
  uint32_t kind;
  uint16_t src_port;
  uint16_t dst_port;
  uint16_t vlan_tci;
  uint16_t queue;
  uint8_t ip_version;
  uint8_t flags;
  uint16_t reserved;
  uint16_t lane;
  uint16_t device;
  uint32_t reserved2;
};
struct unified_log_info {
  uint64_t size;
  uint64_t log_id;
  uint64_t created;
  uint64_t slots;
  uint32_t slot_size;
  uint32_t block_size;
  uint64_t oldest;
  uint64_t end;
  uint64_t position;
  uint64_t records;
  uint64_t missing;
  uint64_t damaged;
  uint64_t overwritten;
  uint64_t dropped;
  uint64_t unrecorded;
  uint64_t first_loss;
  uint64_t last_loss;
  char interface[16];
  uint32_t version;
  uint32_t reserved;
  uint32_t lanes;
  uint32_t devices;
  uint32_t devices_given;
  uint32_t reserved2;
};
uint32_t unified_version(void);
const char *unified_version_string(void);
const char *unified_last_error(void);
const char *unified_strerror(int error);
const char *unified_status_string(uint32_t status);
int unified_set_log_callback(unified_log_fn callback,
                             int max_level,
                             void *user);
int unified_ctx_create(const struct unified_config *config,
                       unified_ctx **ctx);
int unified_ctx_destroy(unified_ctx *ctx);
int unified_ctx_lane(const unified_ctx *ctx,
                     uint32_t lane,
                     unified_ctx **handle);
int unified_ctx_info(const unified_ctx *ctx,
                     struct unified_info *info);
int unified_ctx_stats(const unified_ctx *ctx,
                      struct unified_stats *stats);
int unified_ctx_latency(const unified_ctx *ctx,
                        uint32_t which,
                        struct unified_latency *latency);
uint64_t unified_latency_bound(uint32_t bucket);
uint64_t unified_latency_quantile(const struct unified_latency *latency,
                                  double quantile);
int unified_stats_render(const unified_ctx *ctx,
                         char *text,
                         uint32_t size);
int unified_port_add(const unified_ctx *ctx,
                     uint16_t port);
int unified_port_remove(const unified_ctx *ctx,
                        uint16_t port);
int unified_events_sample(const unified_ctx *ctx,
                          uint32_t sample);
int unified_events(const unified_ctx *ctx,
                   struct unified_event *events,
                   uint32_t max);
int unified_events_fd(const unified_ctx *ctx);
int unified_ctx_device(const unified_ctx *ctx,
                       char *path,
                       uint32_t len);
int unified_device_info(const unified_ctx *ctx,
                        uint32_t device,
                        struct unified_device_info *info);
int unified_frame_alloc(const unified_ctx *ctx,
                        uint32_t *frame);
int unified_frame_release(const unified_ctx *ctx,
                          uint32_t frame);
int unified_frames_release(const unified_ctx *ctx,
                           const uint32_t *frames,
                           uint32_t count);
void *unified_frame_data(const unified_ctx *ctx,
                         uint32_t frame);
int unified_rx_batch(const unified_ctx *ctx,
                     struct unified_packet *packets,
                     uint32_t max);
int unified_submit_write(const unified_ctx *ctx,
                         uint32_t frame,
                         const void *data,
                         uint32_t len,
                         uint64_t lba,
                         uint64_t user_data,
                         uint32_t flags);
int unified_submit_writes(const unified_ctx *ctx,
                          const struct unified_write *writes,
                          uint32_t count);
int unified_submit_read(const unified_ctx *ctx,
                        uint32_t frame,
                        void *data,
                        uint32_t len,
                        uint64_t lba,
                        uint64_t user_data,
                        uint32_t flags);
int unified_submit_compare(const unified_ctx *ctx,
                           uint32_t frame,
                           const void *data,
                           uint32_t len,
                           uint64_t lba,
                           uint64_t user_data,
                           uint32_t flags);
int unified_submit_flush(const unified_ctx *ctx,
                         uint64_t user_data);
int unified_submit_write_zeroes(const unified_ctx *ctx,
                                uint64_t lba,
                                uint32_t blocks,
                                uint64_t user_data,
                                uint32_t flags);
int unified_submit_deallocate(const unified_ctx *ctx,
                              uint64_t lba,
                              uint32_t blocks,
                              uint64_t user_data);
int unified_submit_raw(const unified_ctx *ctx,
                       const struct unified_nvme_command *command,
                       uint32_t frame,
                       void *data,
                       uint64_t user_data);
int unified_submit_pending(const unified_ctx *ctx);
int unified_completions(const unified_ctx *ctx,
                        struct unified_completion *completions,
                        uint32_t max);
int unified_wait(const unified_ctx *ctx,
                 uint32_t what,
                 int timeout_ms);
int unified_poll_fd(const unified_ctx *ctx);
int unified_submit(const unified_ctx *ctx,
                   const struct unified_submission *submissions,
                   uint32_t count);
int unified_buffer_alloc(const unified_ctx *ctx,
                         uint64_t len,
                         uint64_t *buffer,
                         void **data);
int unified_buffer_import(const unified_ctx *ctx,
                          void *address,
                          uint64_t len,
                          uint64_t *buffer);
int unified_buffer_import_fd(const unified_ctx *ctx,
                             int fd,
                             uint64_t offset,
                             uint64_t len,
                             uint64_t *buffer,
                             void **data);
int unified_buffer_free(const unified_ctx *ctx,
                        uint64_t buffer);
int unified_buffer_info(const unified_ctx *ctx,
                        uint64_t buffer,
                        struct unified_buffer_info *info);
void *unified_packet_payload(const struct unified_packet *packet);
uint32_t unified_packet_payload_len(const struct unified_packet *packet);
uint64_t unified_packet_timestamp(const struct unified_packet *packet);
int unified_packet_vlan(const struct unified_packet *packet);
int unified_packet_flow(const struct unified_packet *packet,
                        uint8_t (*src_addr)[16],
                        uint8_t (*dst_addr)[16],
                        uint16_t *src_port,
                        uint16_t *dst_port);
int unified_pipeline_start(const unified_ctx *ctx,
                           const struct unified_pipeline_config *config);
int unified_stripe_locate(const unified_ctx *ctx,
                          uint64_t lba,
                          uint32_t chunk_bytes,
                          uint32_t *device,
                          uint64_t *device_lba);
int unified_pipeline_status(const unified_ctx *ctx,
                            struct unified_pipeline_status *status);
int unified_pipeline_stop(const unified_ctx *ctx,
                          struct unified_pipeline_status *status);
int unified_log_open(const char *path,
                     uint64_t start,
                     struct unified_log **log);
int unified_log_open_set(const char *const *paths,
                         const uint64_t *starts,
                         uint32_t count,
                         struct unified_log **log);
int unified_log_close(struct unified_log *log);
int unified_log_add_spill(const struct unified_log *log,
                          const char *path);
int unified_log_next(const struct unified_log *log,
                     struct unified_log_record *record,
                     int timeout_ms);
int unified_log_seek(const struct unified_log *log,
                     uint64_t sequence);
int unified_log_seek_time(const struct unified_log *log,
                          uint64_t timestamp);
int unified_log_info(const struct unified_log *log,
                     struct unified_log_info *info);
]]

return {
    DRIVE_INLINE = 0,
    DRIVE_THREAD = 1,
    XDP_AUTO = 0,
    XDP_NATIVE = 1,
    XDP_SKB = 2,
    COPY_AUTO = 0,
    COPY_ONLY = 1,
    COPY_ZERO = 2,
    HUGE_PAGES = 1,
    FORCE = 2,
    READ_ONLY = 4,
    NO_PASSTHROUGH = 8,
    NO_BOUNCE = 16,
    HEADROOM = 32,
    NO_EVENTS = 64,
    XSK_MAP_FD = 128,
    XSK_FD = 256,
    DEVICE_FD = 512,
    FUA = 1,
    KEEP = 2,
    MORE = 4,
    WAIT_RX = 1,
    WAIT_COMPLETIONS = 2,
    PACKET_VLAN = 1,
    COMPLETION_DNR = 1,
    COMPLETION_FRAME = 2,
    COMPLETION_BOUNCED = 4,
    COMPLETION_SPILLED = 8,
    LAYOUT_PAYLOAD = 0,
    LAYOUT_SLOT = 1,
    LAYOUT_LOG = 2,
    LOG_UNCHECKED = 16,
    LOG_NEW = 8,
    AT_END_STOP = 0,
    AT_END_WRAP = 1,
    ALL_QUEUES = 4294967295,
    NO_RETRY = 4294967295,
    OP_FLUSH = 0,
    OP_WRITE = 1,
    OP_READ = 2,
    OP_COMPARE = 5,
    OP_WRITE_ZEROES = 8,
    OP_DEALLOCATE = 9,
    OP_RAW = 256,
    ALL_DEVICES = 4294967295,
    LATENCY_PACKET = 0,
    LATENCY_COMMAND = 1,
    LATENCY_BUCKETS = 101,
    LOG_RECORD = 1,
    LOG_MISSING = 2,
    LOG_DAMAGED = 3,
    LOG_OVERWRITTEN = 4,
}
