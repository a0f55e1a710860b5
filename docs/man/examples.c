/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/* The EXAMPLES of the manual pages: the part after a mark belongs to the page of that name. A test compiles all of them. */
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>
#include <unified.h>

/* EXAMPLE unified_ctx_create */
int with_context(const char *interface, const char *device)
{
	struct unified_config config = { .size = sizeof(config), .ifname = interface, .device = device };
	unified_ctx *ctx;

	if (unified_ctx_create(&config, &ctx) < 0) {
		fprintf(stderr, "%s\n", unified_last_error());
		return -1;
	}
	/* ... receive and store ... */
	if (unified_ctx_destroy(ctx) < 0) {
		fprintf(stderr, "%s\n", unified_last_error());
		return -1;
	}
	return 0;
}

/* EXAMPLE unified_ctx_info */
int describe(const unified_ctx *ctx)
{
	struct unified_info info = { .size = sizeof(info) };
	char path[256];

	if (unified_ctx_info(ctx, &info) < 0 || unified_ctx_device(ctx, path, sizeof(path)) < 0) {
		fprintf(stderr, "%s\n", unified_last_error());
		return -1;
	}
	printf("%s (%s): %" PRIu64 " blocks of %" PRIu32 " bytes\n", path, info.backend, info.blocks, info.block_size);
	for (uint32_t i = 1; i < info.devices; i++) {
		struct unified_device_info other = { .size = sizeof(other) };

		if (unified_device_info(ctx, i, &other) == 0)
			printf("%s: %" PRIu64 " bytes written\n", other.path, other.bytes_written);
	}
	return 0;
}

/* EXAMPLE unified_ctx_lane */
/* A context over all queues: with config.queues = UNIFIED_ALL_QUEUES. Each lane is for one thread, which pthread_create gets
 * as its argument. */
int each_lane(unified_ctx *ctx, int (*start)(unified_ctx *lane))
{
	struct unified_info info = { .size = sizeof(info) };
	unified_ctx *lane;

	if (unified_ctx_info(ctx, &info) < 0)
		return -1;
	for (uint32_t i = 0; i < info.lanes; i++)
		if (unified_ctx_lane(ctx, i, &lane) < 0 || start(lane) < 0) {
			fprintf(stderr, "lane %" PRIu32 ": %s\n", i, unified_last_error());
			return -1;
		}
	return 0;
}

/* EXAMPLE unified_ctx_stats */
int report(const unified_ctx *ctx)
{
	struct unified_stats stats = { .size = sizeof(stats) };
	struct unified_latency latency = { .size = sizeof(latency) };

	if (unified_ctx_stats(ctx, &stats) < 0 || unified_ctx_latency(ctx, UNIFIED_LATENCY_PACKET, &latency) < 0) {
		fprintf(stderr, "%s\n", unified_last_error());
		return -1;
	}
	printf("received %" PRIu64 ", stored %" PRIu64 ", dropped %" PRIu64 "\n", stats.received, stats.stored,
	       stats.rx_dropped + stats.rx_ring_full + stats.redirect_errors);
	printf("99 %% within %" PRIu64 " ns\n", unified_latency_quantile(&latency, 0.99));
	for (uint32_t i = 0; i < UNIFIED_LATENCY_BUCKETS; i++)
		if (latency.buckets[i])
			printf("up to %" PRIu64 " ns: %" PRIu64 "\n", unified_latency_bound(i), latency.buckets[i]);
	return 0;
}

/* The same as text for Prometheus. */
int metrics(const unified_ctx *ctx, char *text, uint32_t size)
{
	int length = unified_stats_render(ctx, text, size);

	if (length < 0)
		fprintf(stderr, "%s\n", unified_last_error());
	return length < (int)size ? length : -1; /* -1 also if the text was cut */
}

/* EXAMPLE unified_port_add */
int move_port(const unified_ctx *ctx, uint16_t from, uint16_t to)
{
	if (unified_port_add(ctx, to) < 0 || unified_port_remove(ctx, from) < 0) {
		fprintf(stderr, "%s\n", unified_last_error());
		return -1;
	}
	return 0;
}

/* EXAMPLE unified_events */
int print_events(const unified_ctx *ctx)
{
	struct unified_event events[64];
	int count;

	if (unified_events_sample(ctx, 100) < 0 || unified_events_fd(ctx) < 0)
		goto failed;
	while ((count = unified_events(ctx, events, 64)) > 0)
		for (int i = 0; i < count; i++)
			printf("%" PRIu64 ": port %u, %u bytes\n", events[i].timestamp, (unsigned)events[i].dst_port,
			       (unsigned)events[i].payload_len);
	if (count == 0)
		return 0;
failed:
	fprintf(stderr, "%s\n", unified_last_error());
	return -1;
}

/* EXAMPLE unified_frame_alloc */
int write_text(const unified_ctx *ctx, const char *text, uint64_t lba)
{
	uint32_t frame, length = strlen(text);
	char *data;

	if (unified_frame_alloc(ctx, &frame) < 0 || (data = unified_frame_data(ctx, frame)) == NULL) {
		fprintf(stderr, "%s\n", unified_last_error());
		return -1;
	}
	memcpy(data, text, length); /* at most info.frame_size bytes */
	if (unified_submit_write(ctx, frame, data, length, lba, 0, 0) < 0) {
		fprintf(stderr, "%s\n", unified_last_error());
		unified_frame_release(ctx, frame); /* still the caller's */
		return -1;
	}
	return 0;
}

/* Releases the frames of up to 64 packets. */
void release_batch(const unified_ctx *ctx, const struct unified_packet *packets, int count)
{
	uint32_t frames[64];

	for (int i = 0; i < count; i++)
		frames[i] = packets[i].frame;
	if (count > 0 && unified_frames_release(ctx, frames, count) < count)
		fprintf(stderr, "%s\n", unified_last_error()); /* a frame that is not the caller's */
}

/* EXAMPLE unified_buffer_alloc */
int write_long(const unified_ctx *ctx, const void *bytes, uint32_t length, uint64_t lba)
{
	struct unified_submission write = { .size = sizeof(write), .op = UNIFIED_OP_WRITE, .lba = lba, .len = length };

	/* Whole blocks, at most unified_device_info.max_transfer bytes. */
	if (unified_buffer_alloc(ctx, length, &write.buffer, &write.data) < 0) {
		fprintf(stderr, "%s\n", unified_last_error());
		return -1;
	}
	memcpy(write.data, bytes, length);
	write.user_data = write.buffer;
	if (unified_submit(ctx, &write, 1) < 0) {
		fprintf(stderr, "%s\n", unified_last_error());
		unified_buffer_free(ctx, write.buffer);
		return -1;
	}
	return 0; /* whoever takes the completion calls unified_buffer_free(ctx, done.user_data) */
}

/* Memory that another process has too: a memfd of `length` bytes. */
int share(const unified_ctx *ctx, int memfd, uint64_t length, uint64_t *buffer)
{
	struct unified_buffer_info info = { .size = sizeof(info) };

	if (unified_buffer_import_fd(ctx, memfd, 0, length, buffer, NULL) < 0 || unified_buffer_info(ctx, *buffer, &info) < 0) {
		fprintf(stderr, "%s\n", unified_last_error());
		return -1;
	}
	printf("%" PRIu64 " bytes at %p\n", info.len, info.data);
	return 0;
}

/* What the program has mapped itself: shared memory that begins on a page. */
int share_mapped(const unified_ctx *ctx, void *address, uint64_t length, uint64_t *buffer)
{
	return unified_buffer_import(ctx, address, length, buffer);
}

/* EXAMPLE unified_rx_batch */
int count_bytes(const unified_ctx *ctx, uint64_t *bytes)
{
	struct unified_packet packets[64];
	int count = unified_rx_batch(ctx, packets, 64);

	if (count < 0)
		fprintf(stderr, "%s\n", unified_last_error());
	for (int i = 0; i < count; i++)
		*bytes += packets[i].len;
	release_batch(ctx, packets, count);
	return count;
}

/* EXAMPLE unified_packet_payload */
void print_packet(const struct unified_packet *packet)
{
	uint16_t source, target;
	int version = unified_packet_flow(packet, NULL, NULL, &source, &target), tag = unified_packet_vlan(packet);

	if (version < 0)
		return;
	printf("IPv%d, port %u to %u, at %" PRIu64 " ns", version, (unsigned)source, (unsigned)target,
	       unified_packet_timestamp(packet));
	if (tag >= 0)
		printf(", VLAN %d", tag & 0xfff);
	printf(": %.*s\n", (int)unified_packet_payload_len(packet), (const char *)unified_packet_payload(packet));
}

/* EXAMPLE unified_submit_write */
int store_batch(const unified_ctx *ctx, const struct unified_packet *packets, int count, uint64_t lba)
{
	struct unified_write writes[64];
	int done;

	/* At most 64 packets, one block each; the engine sees all of them together. */
	for (int i = 0; i < count; i++)
		writes[i] = (struct unified_write){ .data = packets[i].payload, .lba = lba + i, .user_data = lba + i,
						    .len = packets[i].payload_len, .frame = packets[i].frame };
	done = unified_submit_writes(ctx, writes, count);
	if (done < count)
		fprintf(stderr, "%s\n", unified_last_error()); /* take completions, then submit the others */
	return done;
}

/* One packet and a flush; with UNIFIED_MORE the engine sees the write when the next call says so. */
int store_packet(const unified_ctx *ctx, const struct unified_packet *packet, uint64_t lba)
{
	if (unified_submit_write(ctx, packet->frame, packet->payload, packet->payload_len, lba, lba, UNIFIED_MORE) < 0 ||
	    unified_submit_pending(ctx) < 0 || unified_submit_flush(ctx, UINT64_MAX) < 0) {
		fprintf(stderr, "%s\n", unified_last_error());
		return -1;
	}
	return 0;
}

/* The same packet on the second device. */
int store_on_another(const unified_ctx *ctx, const struct unified_packet *packet, uint64_t lba)
{
	struct unified_submission write = { .size = sizeof(write), .op = UNIFIED_OP_WRITE, .device = 1, .lba = lba,
					    .frame = packet->frame, .data = packet->payload, .len = packet->payload_len };

	return unified_submit(ctx, &write, 1);
}

/* The other commands, on a frame of the caller's. */
int other_commands(const unified_ctx *ctx, uint32_t frame, uint32_t block)
{
	struct unified_nvme_command identify = { .opcode = 0x06, .cdw10 = 1, .data_len = 4096 };
	void *data = unified_frame_data(ctx, frame);

	if (unified_submit_write_zeroes(ctx, 0, 8, 1, UNIFIED_FUA) < 0 || unified_submit_deallocate(ctx, 8, 8, 2) < 0)
		return -1;
	if (unified_submit_read(ctx, frame, data, block, 0, 3, 0) < 0) /* then take the completion: it returns the frame */
		return -1;
	if (unified_submit_compare(ctx, frame, data, block, 0, 4, 0) < 0)
		return -1;
	return unified_submit_raw(ctx, &identify, frame, data, 5); /* frames of 4096 bytes */
}

/* EXAMPLE unified_completions */
int take(const unified_ctx *ctx)
{
	struct unified_completion done[64];
	int count = unified_completions(ctx, done, 64);

	if (count < 0)
		fprintf(stderr, "%s\n", unified_last_error());
	for (int i = 0; i < count; i++) {
		if (done[i].status != 0)
			fprintf(stderr, "command %" PRIu64 ": %s\n", done[i].user_data, unified_status_string(done[i].status));
		if (done[i].flags & UNIFIED_COMPLETION_FRAME)
			unified_frame_release(ctx, done[i].frame);
	}
	return count;
}

/* EXAMPLE unified_wait */
int receive_for_a_second(const unified_ctx *ctx)
{
	struct unified_packet packets[64];
	int ready = unified_wait(ctx, UNIFIED_WAIT_RX, 1000);

	if (ready < 0) {
		fprintf(stderr, "%s\n", unified_last_error());
		return -1;
	}
	return ready & UNIFIED_WAIT_RX ? unified_rx_batch(ctx, packets, 64) : 0;
}

/* For an event loop: add this descriptor to it, once. c-examples/event-loop.c is a whole program. */
int descriptor(const unified_ctx *ctx)
{
	int fd = unified_poll_fd(ctx);

	if (fd < 0)
		fprintf(stderr, "%s\n", unified_last_error());
	return fd;
}

/* EXAMPLE unified_pipeline_start */
int record_until(const unified_ctx *ctx, uint64_t packets)
{
	struct unified_pipeline_config config = { .size = sizeof(config), .layout = UNIFIED_LAYOUT_SLOT };
	struct unified_pipeline_status status = { .size = sizeof(status) };

	if (unified_pipeline_start(ctx, &config) < 0) {
		fprintf(stderr, "%s\n", unified_last_error());
		return -1;
	}
	do {
		sleep(1);
		if (unified_pipeline_status(ctx, &status) < 0)
			break;
	} while (status.running && status.stored < packets);
	if (unified_pipeline_stop(ctx, &status) < 0) {
		fprintf(stderr, "%s\n", unified_last_error());
		return -1;
	}
	printf("stored %" PRIu64 ", durable %" PRIu64 "\n", status.stored, status.durable);
	return 0;
}

/* Where the payload layout over several devices has a block. */
int where(const unified_ctx *ctx, uint64_t lba)
{
	uint32_t device;
	uint64_t place;

	if (unified_stripe_locate(ctx, lba, 0, &device, &place) < 0)
		return -1;
	printf("block %" PRIu64 " of device %" PRIu32 "\n", place, device);
	return 0;
}

/* EXAMPLE unified_log_open */
int print_log(const char *path, const char *spill, uint64_t since)
{
	struct unified_log_record record = { .size = sizeof(record) };
	struct unified_log_info info = { .size = sizeof(info) };
	struct unified_log *log;
	int more;

	if (unified_log_open(path, 0, &log) < 0)
		goto failed;
	if ((spill && unified_log_add_spill(log, spill) < 0) || unified_log_seek_time(log, since) < 0 ||
	    unified_log_info(log, &info) < 0)
		goto failed;
	while ((more = unified_log_next(log, &record, 0)) > 0) {
		if (record.kind == UNIFIED_LOG_RECORD)
			printf("%" PRIu64 ": %" PRIu32 " bytes\n", record.sequence, record.len);
		else
			printf("%" PRIu64 ": %" PRIu64 " records are not there\n", record.sequence, record.count);
		record.size = sizeof(record);
	}
	if (more == 0 && unified_log_seek(log, 0) == 0) /* again from the first record */
		return unified_log_close(log);
failed:
	fprintf(stderr, "%s\n", unified_last_error());
	unified_log_close(log); /* -EINVAL for NULL */
	return -1;
}

int count_of_set(const char *first, const char *second)
{
	const char *paths[] = { first, second };
	struct unified_log_record record = { .size = sizeof(record) };
	struct unified_log_info info = { .size = sizeof(info) };
	struct unified_log *log;
	int more;

	if (unified_log_open_set(paths, NULL, 2, &log) < 0)
		goto failed;
	while ((more = unified_log_next(log, &record, 0)) > 0) {
		if (record.kind != UNIFIED_LOG_RECORD)
			printf("lane %u, %" PRIu64 ": %" PRIu64 " records are not there\n", record.lane, record.sequence,
			       record.count);
		record.size = sizeof(record);
	}
	if (more < 0 || unified_log_info(log, &info) < 0)
		goto failed;
	printf("%" PRIu64 " records of %u lanes; %u of %u devices\n", info.records, info.lanes, info.devices_given,
	       info.devices);
	return unified_log_close(log);
failed:
	fprintf(stderr, "%s\n", unified_last_error());
	unified_log_close(log);
	return -1;
}

/* EXAMPLE unified_last_error */
static void log_line(int level, const char *line, void *user)
{
	fprintf(user, "%s: %s\n", level == 0 ? "error" : "unified", line);
}

void log_to_stderr(void)
{
	if (unified_set_log_callback(log_line, 2, stderr) < 0)
		fprintf(stderr, "%s\n", unified_last_error());
}

void explain(int result, uint32_t status)
{
	printf("%s; %s\n", unified_strerror(result), unified_status_string(status));
}

/* EXAMPLE unified_version */
int is_new_enough(void)
{
	printf("unified %s\n", unified_version_string());
	return unified_version() >= (0u << 16 | 1u << 8);
}
