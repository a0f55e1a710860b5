/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/*
 * Writes through this library's rings without any network: the storage half of its ceiling, and what fio is
 * compared with.
 *
 *     write-only [--random] [--drive inline|thread] FILE FRAME_SIZE DEPTH SECONDS
 *
 * Sequential: frame after frame and block after block, handed over in batches, which the engine merges.
 * --random: random places, so that each write stays one command, and each handed to the device at once, as fio
 * does. Prints key=value.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <getopt.h>
#include <inttypes.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <time.h>
#include <unified.h>

#define BATCH 64

static unified_ctx *ctx;

static void check(int ret, const char *what)
{
	if (ret >= 0)
		return;
	fprintf(stderr, "%s: %s\n", what, unified_last_error());
	if (ctx)
		unified_ctx_destroy(ctx);
	exit(1);
}

static double now(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec + t.tv_nsec / 1e9;
}

/* xorshift64 */
static uint64_t next_random(void)
{
	static uint64_t x = 88172645463325252ull;

	x ^= x << 13;
	x ^= x >> 7;
	x ^= x << 17;
	return x;
}

int main(int argc, char **argv)
{
	static const struct option options[] = {
		{ "random", no_argument, NULL, 'r' },
		{ "drive", required_argument, NULL, 'd' },
		{ NULL, 0, NULL, 0 },
	};
	struct unified_config config = { .size = sizeof(config) };
	struct unified_info info = { .size = sizeof(info) };
	struct unified_stats stats = { .size = sizeof(stats) };
	struct unified_completion done[BATCH];
	uint64_t places, place = 0, in_flight = 0, finished = 0, step;
	double start, end, until;
	bool random = false;
	struct rusage used;
	uint32_t depth, *free_frames, free_count;
	int option;

	while ((option = getopt_long(argc, argv, "", options, NULL)) != -1) {
		if (option == 'r')
			random = true;
		else if (option == 'd')
			config.drive = strcmp(optarg, "thread") == 0 ? UNIFIED_DRIVE_THREAD : UNIFIED_DRIVE_INLINE;
		else
			return 2;
	}
	if (argc - optind != 4) {
		fprintf(stderr, "usage: %s [--random] [--drive inline|thread] FILE FRAME_SIZE DEPTH SECONDS\n", argv[0]);
		return 2;
	}
	config.device = argv[optind];
	config.frame_size = strtoul(argv[optind + 1], NULL, 10);
	depth = strtoul(argv[optind + 2], NULL, 10);
	config.frame_count = depth < 64 ? 64 : depth;
	config.sq_entries = config.cq_entries = depth;
	check(unified_ctx_create(&config, &ctx), "Opening");
	check(unified_ctx_info(ctx, &info), "Info");
	step = info.frame_size / info.block_size;
	places = info.blocks / step;
	free_frames = calloc(depth, sizeof(*free_frames));
	for (free_count = 0; free_count < depth; free_count++)
		check(unified_frame_alloc(ctx, &free_frames[depth - 1 - free_count]), "Allocating");

	start = now();
	until = start + strtod(argv[optind + 3], NULL);
	/* Frames are taken in the order in which they came back, so that runs stay runs. */
	for (uint32_t head = 0, tail = depth; in_flight > 0 || now() < until;) {
		bool more = now() < until;
		int count;

		while (more && in_flight < depth) {
			uint32_t frame = free_frames[depth - 1 - head++ % depth];
			uint64_t lba = (random ? next_random() % places : place++ % places) * step;

			check(unified_submit_write(ctx, frame, unified_frame_data(ctx, frame), info.frame_size, lba,
						   frame, UNIFIED_KEEP | (random ? 0 : UNIFIED_MORE)),
			      "Submitting");
			in_flight++;
		}
		check(unified_submit_pending(ctx), "Submitting");
		count = unified_completions(ctx, done, BATCH);
		check(count, "Taking completions");
		for (int i = 0; i < count; i++) {
			if (done[i].status != 0) {
				fprintf(stderr, "a write failed: %s\n", unified_status_string(done[i].status));
				return 1;
			}
			free_frames[depth - 1 - tail++ % depth] = done[i].frame;
		}
		in_flight -= count;
		finished += count;
		if (count == 0)
			check(unified_wait(ctx, UNIFIED_WAIT_COMPLETIONS, 100), "Waiting");
	}
	end = now();
	check(unified_ctx_stats(ctx, &stats), "Statistics");
	getrusage(RUSAGE_SELF, &used);
	printf("writes=%" PRIu64 " operations=%" PRIu64 " seconds=%.6f rate=%.0f direct_io=%d cpu=%.6f\n", finished,
	       stats.operations, end - start, finished / (end - start), info.direct_io,
	       used.ru_utime.tv_sec + used.ru_stime.tv_sec + (used.ru_utime.tv_usec + used.ru_stime.tv_usec) / 1e6);
	return unified_ctx_destroy(ctx) < 0;
}
