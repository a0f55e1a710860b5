/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/*
 * Several devices: writes four blocks to the start of each in one batch, makes all of them durable, and says what each device
 * is and what it has got. A regular file that does not exist is made.
 *
 *     devices DEVICE...
 */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unified.h>

#define DEVICES 16
#define BLOCKS 4

static int fail(const char *what)
{
	fprintf(stderr, "%s: %s\n", what, unified_last_error());
	return -1;
}

/* Takes so many completions; how many commands failed, or -1. */
static int finish(unified_ctx *ctx, uint32_t count)
{
	struct unified_completion done[64];
	int failed = 0;

	while (count > 0) {
		int n = unified_completions(ctx, done, 64);

		if (n < 0)
			return fail("completions");
		for (int i = 0; i < n; i++)
			if (done[i].result != 0 || done[i].status != 0) {
				fprintf(stderr, "device %u, block %" PRIu64 ": %s\n", done[i].device, done[i].user_data,
					done[i].result ? unified_strerror(done[i].result) : unified_status_string(done[i].status));
				failed++;
			}
		count -= n;
		if (n == 0 && unified_wait(ctx, UNIFIED_WAIT_COMPLETIONS, -1) < 0)
			return fail("wait");
	}
	return failed;
}

/* Submits all of them, and waits for them. */
static int carry_out(unified_ctx *ctx, const struct unified_submission *submissions, uint32_t count)
{
	int n = unified_submit(ctx, submissions, count);

	if (n < 0)
		return fail("submit");
	if ((uint32_t)n < count)
		fail("submit"); /* why the next one was refused */
	int failed = finish(ctx, n);
	return failed < 0 ? failed : failed + (int)(count - n);
}

/* Fills one buffer with the blocks of all devices, and writes them as one batch. */
static int write_blocks(unified_ctx *ctx, const struct unified_device_info *info, uint32_t devices)
{
	struct unified_submission writes[DEVICES * BLOCKS];
	uint64_t buffer, size = 0;
	void *data;

	for (uint32_t i = 0; i < devices; i++)
		size += BLOCKS * info[i].block_size;
	if (unified_buffer_alloc(ctx, size, &buffer, &data) < 0)
		return fail("buffer_alloc");
	memset(writes, 0, sizeof(writes));
	char *at = data;
	for (uint32_t i = 0; i < devices * BLOCKS; i++) {
		struct unified_submission *w = &writes[i];

		/* In turn to each device: the engine joins the neighbours of one device all the same. */
		w->size = sizeof(*w);
		w->op = UNIFIED_OP_WRITE;
		w->device = i % devices;
		w->lba = w->user_data = i / devices;
		w->buffer = buffer;
		w->data = at;
		w->len = info[w->device].block_size;
		snprintf(at, w->len, "device %u, block %" PRIu64 "\n", w->device, w->lba);
		at += w->len;
	}
	int failed = carry_out(ctx, writes, devices * BLOCKS);
	if (unified_buffer_free(ctx, buffer) < 0)
		return fail("buffer_free");
	return failed;
}

static int run(unified_ctx *ctx, uint32_t devices)
{
	struct unified_submission flush = { .size = sizeof(flush), .op = UNIFIED_OP_FLUSH, .device = UNIFIED_ALL_DEVICES };
	struct unified_device_info info[DEVICES];
	int failed;

	for (uint32_t i = 0; i < devices; i++) {
		info[i] = (struct unified_device_info){ .size = sizeof(info[i]) };
		if (unified_device_info(ctx, i, &info[i]) < 0)
			return fail("device_info");
	}
	failed = write_blocks(ctx, info, devices);
	if (failed == 0)
		failed = carry_out(ctx, &flush, 1);
	for (uint32_t i = 0; i < devices; i++) {
		if (unified_device_info(ctx, i, &info[i]) < 0)
			return fail("device_info");
		printf("Device %u: %s (%s), %" PRIu64 " blocks of %u bytes, %" PRIu64 " bytes written, %" PRIu64 " errors\n", i,
		       info[i].path, info[i].backend, info[i].blocks, info[i].block_size, info[i].bytes_written, info[i].errors);
	}
	return failed;
}

int main(int argc, char **argv)
{
	struct unified_config config = { .size = sizeof(config) };
	struct unified_device devices[DEVICES];
	unified_ctx *ctx;
	int failed;

	if (argc < 2 || argc > DEVICES + 1) {
		fprintf(stderr, "usage: %s DEVICE... (at most %d)\n", argv[0], DEVICES);
		return 2;
	}
	for (int i = 1; i < argc; i++)
		devices[i - 1] = (struct unified_device){ .size = sizeof(devices[0]), .path = argv[i], .file_size = 1 << 20 };
	config.devices = devices;
	config.device_count = argc - 1;
	if (unified_ctx_create(&config, &ctx) < 0) {
		fail("ctx_create");
		return 1;
	}
	failed = run(ctx, config.device_count);
	if (unified_ctx_destroy(ctx) < 0) {
		fail("ctx_destroy");
		return 1;
	}
	return failed != 0;
}
