/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/*
 * Structs that begin with their size, as older and newer programs hand them over: growth IFACE FILE
 *
 * A struct of N bytes is at the very end of a page that is followed by nothing mapped, if N allows it, and
 * between guard bytes else. It says "ready" when packets may come, and at the end of each struct its name and how
 * many sizes were tried. It exits with 0 if everything is as the header says.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unified.h>

#define GUARD 0xA5
#define MOST 65536u
#define PAGES (MOST + 8192u)

/* Room for the largest possible struct; nothing is mapped after it. */
static unsigned char *room;
static unified_ctx *ctx;
static unified_log *opened;
static const char *what;

static void fail(const char *why, size_t size, long got)
{
	fprintf(stderr, "%s, size %zu: %s (%ld): %s\n", what, size, why, got, unified_last_error());
	exit(1);
}

static void *place(size_t size)
{
	size_t bytes = (size + 7) & ~(size_t)7;

	memset(room, GUARD, PAGES);
	return room + PAGES - bytes;
}

static void guarded(const unsigned char *at, size_t from, size_t size)
{
	for (const unsigned char *p = room; p < room + PAGES; p++)
		if ((p < at || p >= at + from) && *p != GUARD)
			fail("a byte outside of what is filled in was written", size, p - at);
}

/* --- structs that the library fills in */

typedef int filler(void *);

static int fill_info(void *at) { return unified_ctx_info(ctx, at); }
static int fill_stats(void *at) { return unified_ctx_stats(ctx, at); }
static int fill_status(void *at) { return unified_pipeline_status(ctx, at); }
static int fill_latency(void *at) { return unified_ctx_latency(ctx, UNIFIED_LATENCY_PACKET, at); }
static uint64_t buffer;
static int fill_device_info(void *at) { return unified_device_info(ctx, 0, at); }
static int fill_buffer_info(void *at) { return unified_buffer_info(ctx, buffer, at); }
static int fill_log_info(void *at) { return unified_log_info(opened, at); }
static int fill_record(void *at) { return unified_log_seek(opened, 0) == 0 ? unified_log_next(opened, at, 0) : -EIO; }

static void begin_pipeline(uint32_t layout);

static int fill_last_status(void *at)
{
	return unified_pipeline_stop(ctx, at);
}

static int fill_status_of_a_new_one(void *at)
{
	begin_pipeline(UNIFIED_LAYOUT_PAYLOAD);
	return fill_last_status(at);
}

static const uint64_t absurd[] = { 0, 1, 7, MOST + 1, 1ull << 32, (1ull << 32) + 64, UINT64_MAX };

static void refuses(const char *name, filler *fill)
{
	what = name;
	for (size_t i = 0; i < sizeof(absurd) / sizeof(*absurd); i++) {
		unsigned char *at = place(8);
		int rc;

		memcpy(at, &absurd[i], 8);
		rc = fill(at);
		if (rc != -EINVAL)
			fail("an absurd size was not refused", absurd[i], rc);
		if (memcmp(at, &absurd[i], 8))
			fail("a refused struct was written", absurd[i], 0);
		guarded(at, 8, absurd[i]);
	}
	if (fill(NULL) != -EINVAL)
		fail("NULL was not refused", 0, 0);
}

static void fills(const char *name, size_t known, size_t step, int good, filler *fill)
{
	static unsigned char whole[1024];
	unsigned tried = 0;

	what = name;
	for (size_t size = 8; size <= MOST; size = size < known + 64 ? size + step : size == MOST ? MOST + 1 : MOST) {
		unsigned char *at = place(size);
		size_t filled = size < known ? size : known;
		uint64_t given = size;
		int rc;

		memcpy(at, &given, 8);
		rc = fill(at);
		if (rc != good)
			fail("it was refused", size, rc);
		memcpy(&given, at, 8);
		if (given != filled)
			fail("not the bytes that were filled in", size, (long)given);
		guarded(at, filled, size);
		/* The last field of a whole struct is there too: every byte of it is the library's. */
		if (size == known) {
			memcpy(whole, at, known);
			memset(room, (unsigned char)~GUARD, PAGES);
			given = size;
			memcpy(at, &given, 8);
			if (fill(at) != good)
				fail("it was refused the second time", size, 0);
			for (size_t i = 8; i < known; i++)
				if (whole[i] == GUARD && at[i] == (unsigned char)~GUARD)
					fail("a byte was left as it was", size, (long)i);
		}
		tried++;
	}
	printf("%s %u\n", name, tried);
}

/* --- structs that the library reads */

typedef int reader(const void *);

static int read_config(const void *at)
{
	unified_ctx *made = NULL;
	int rc = unified_ctx_create(at, &made);

	return rc ? rc : unified_ctx_destroy(made);
}

static int read_device(const void *at)
{
	struct unified_config config = { .size = sizeof(config), .frame_count = 64, .devices = at, .device_count = 1 };

	return read_config(&config);
}

static int read_submission(const void *at)
{
	struct unified_completion done;
	int rc = unified_submit(ctx, at, 1);

	if (rc != 1)
		return rc;
	while ((rc = unified_completions(ctx, &done, 1)) == 0)
		unified_wait(ctx, UNIFIED_WAIT_COMPLETIONS, 1000);
	return rc < 0 ? rc : (int)done.status;
}

static int read_range(const void *at)
{
	int rc = unified_pipeline_start(ctx, at);

	return rc ? rc : unified_pipeline_stop(ctx, NULL);
}

static unsigned char before[PAGES];

static int reads_as_it_is(reader *read, const void *at, size_t size)
{
	int rc;

	memcpy(before, room, PAGES);
	rc = read(at);
	if (memcmp(before, room, PAGES))
		fail("a struct that is only read was written", size, rc);
	return rc;
}

/* Whole structs of which only the first `least` bytes are not zero. */
static void reads(const char *name, const void *config, size_t known, size_t least, reader *read)
{
	unsigned tried = 0;
	int rc;

	what = name;
	for (size_t size = 8; size <= MOST; size = size < known ? size + 8 : size < known + 64 ? size + 3 : size == MOST ? MOST + 1 : MOST) {
		unsigned char *at = place(size);
		uint64_t given = size;

		memset(at, 0, size);
		memcpy(at, config, size < known ? size : known);
		memcpy(at, &given, 8);
		/* An older program has nothing after its struct: a read there ends the test with a signal. */
		rc = reads_as_it_is(read, at, size);
		if (rc != (size < least ? -EINVAL : 0))
			fail("an older or newer struct", size, rc);
		tried++;
		if (size <= known)
			continue;
		/* Fields of a later version that are set, in the first and in the last byte. */
		for (int last = 0; last < 2; last++) {
			unsigned char *set = at + (last ? size - 1 : known);

			*set = 1;
			rc = reads_as_it_is(read, at, size);
			if (rc != -E2BIG)
				fail("an unknown field that is set", size, rc);
			*set = 0;
		}
	}
	for (size_t i = 0; i < sizeof(absurd) / sizeof(*absurd); i++) {
		unsigned char *at = place(8);

		memcpy(at, &absurd[i], 8);
		rc = reads_as_it_is(read, at, absurd[i]);
		if (rc != -EINVAL)
			fail("an absurd size was not refused", absurd[i], rc);
	}
	if (read(NULL) != -EINVAL)
		fail("NULL was not refused", 0, 0);
	printf("%s %u\n", name, tried);
}

static void begin_pipeline(uint32_t layout)
{
	struct unified_pipeline_config range = { .size = sizeof(range), .layout = layout };

	if (unified_pipeline_start(ctx, &range) < 0)
		fail("the pipeline did not start", sizeof(range), 0);
}

static void check(int rc)
{
	if (rc < 0)
		fail("not so far", 0, rc);
}

int main(int argc, char **argv)
{
	struct unified_config config = { .size = sizeof(config), .device = "null:1048576", .frame_count = 64 };
	struct unified_pipeline_config range = { .size = sizeof(range) };
	struct unified_device device = { .size = sizeof(device), .path = "null:1048576" };
	struct unified_submission flush = { .size = sizeof(flush) };
	struct unified_pipeline_status status = { .size = sizeof(status) };
	const struct timespec moment = { .tv_nsec = 10000000 };
	unsigned char *mapped;

	if (argc != 3)
		return fprintf(stderr, "usage: %s IFACE FILE\n", argv[0]), 2;
	mapped = mmap(NULL, PAGES + 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (mapped == MAP_FAILED || mprotect(mapped + PAGES, 4096, PROT_NONE))
		return perror("mmap"), 1;
	room = mapped;

	/* A configuration is one from its device on. */
	reads("unified_config", &config, sizeof(config), offsetof(struct unified_config, device) + sizeof(config.device),
	      read_config);

	reads("unified_device", &device, sizeof(device), offsetof(struct unified_device, path) + sizeof(device.path),
	      read_device);

	config.ifname = argv[1];
	config.device = argv[2];
	config.file_size = 1 << 20;
	config.frame_size = 4096;
	config.block_size = 512;
	config.frame_count = 256;
	config.rx_ring = config.fill_ring = 128;
	check(unified_ctx_create(&config, &ctx));
	fills("unified_info", sizeof(struct unified_info), 1, 0, fill_info);
	refuses("unified_info", fill_info);
	fills("unified_stats", sizeof(struct unified_stats), 1, 0, fill_stats);
	refuses("unified_stats", fill_stats);
	fills("unified_device_info", sizeof(struct unified_device_info), 1, 0, fill_device_info);
	refuses("unified_device_info", fill_device_info);
	check(unified_buffer_alloc(ctx, 4096, &buffer, NULL));
	fills("unified_buffer_info", sizeof(struct unified_buffer_info), 1, 0, fill_buffer_info);
	refuses("unified_buffer_info", fill_buffer_info);
	check(unified_buffer_free(ctx, buffer));
	reads("unified_submission", &flush, sizeof(flush), 8, read_submission);
	reads("unified_pipeline_config", &range, sizeof(range), 8, read_range);

	fills("unified_pipeline_status", sizeof(status), 8, 0, fill_status_of_a_new_one);
	begin_pipeline(UNIFIED_LAYOUT_SLOT);
	fills("unified_pipeline_status", sizeof(status), 1, 0, fill_status);
	refuses("unified_pipeline_status", fill_status);
	fills("unified_latency", sizeof(struct unified_latency), 8, 0, fill_latency);
	refuses("unified_latency", fill_latency);
	puts("ready");
	fflush(stdout);
	for (int turns = 0; status.stored < 3; turns++) {
		if (turns == 2000)
			fail("no packets came", 0, 0);
		nanosleep(&moment, NULL);
		status.size = sizeof(status);
		check(unified_pipeline_status(ctx, &status));
	}
	/* A status that cannot be filled in ends no pipeline. (NULL asks for none.) */
	what = "unified_pipeline_stop";
	for (size_t i = 0; i < sizeof(absurd) / sizeof(*absurd); i++) {
		unsigned char *at = place(8);

		memcpy(at, &absurd[i], 8);
		if (fill_last_status(at) != -EINVAL)
			fail("an absurd size was not refused", absurd[i], 0);
		status.size = sizeof(status);
		check(unified_pipeline_status(ctx, &status));
	}
	check(unified_pipeline_stop(ctx, NULL));
	check(unified_ctx_destroy(ctx));

	check(unified_log_open(argv[2], 0, &opened));
	fills("unified_log_record", sizeof(struct unified_log_record), 1, 1, fill_record);
	refuses("unified_log_record", fill_record);
	fills("unified_log_info", sizeof(struct unified_log_info), 1, 0, fill_log_info);
	refuses("unified_log_info", fill_log_info);
	return -unified_log_close(opened);
}
