/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/*
 * All queues of an interface, with one thread for each: it receives, submits and takes completions of its lane, and shares
 * nothing with the others but the device's next block. Stores payloads until COUNT have come or Ctrl-C.
 *
 *     lanes IFACE DEVICE COUNT
 */
#define _GNU_SOURCE
#include <errno.h>
#include <inttypes.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <unified.h>

#define BATCH 64
#define TICK_MS 20

static struct unified_info info = { .size = sizeof(info) };
static atomic_uint_fast64_t next_lba, received, finished, failed;
static uint64_t wanted;
static atomic_bool stop;

struct lane {
	pthread_t thread;
	unified_ctx *ctx;
	uint64_t outstanding;
};

static int fail(const char *what)
{
	fprintf(stderr, "%s: %s\n", what, unified_last_error());
	stop = true;
	return -1;
}

/* Writes a payload behind the last one of all lanes. */
static int store(struct lane *lane, const struct unified_packet *p)
{
	uint32_t len = unified_packet_payload_len(p), blocks = (len + info.block_size - 1) / info.block_size;
	uint64_t lba = atomic_fetch_add(&next_lba, blocks);

	if (unified_submit_write(lane->ctx, p->frame, unified_packet_payload(p), len, lba, 0, UNIFIED_MORE) < 0) {
		unified_frame_release(lane->ctx, p->frame);
		failed++;
		finished++;
		return fail("submit_write");
	}
	lane->outstanding++;
	return 0;
}

/* Takes completions, and packets as far as there is room for their writes. */
static int turn(struct lane *lane)
{
	struct unified_completion done[BATCH];
	struct unified_packet packets[BATCH];
	uint64_t room = info.sq_entries - lane->outstanding;
	int n = unified_completions(lane->ctx, done, BATCH);

	if (n < 0)
		return fail("completions");
	for (int i = 0; i < n; i++)
		failed += done[i].status != 0;
	lane->outstanding -= n;
	finished += n;
	if (room == 0)
		return n;
	int taken = unified_rx_batch(lane->ctx, packets, room < BATCH ? room : BATCH);
	if (taken < 0)
		return fail("rx_batch");
	received += taken;
	for (int i = 0; i < taken; i++)
		store(lane, &packets[i]);
	if (taken > 0 && unified_submit_pending(lane->ctx) < 0)
		return fail("submit_pending");
	return n + taken;
}

static void *serve(void *argument)
{
	struct lane *lane = argument;

	while (!stop && finished < wanted) {
		int n = turn(lane);

		if (n == 0 && unified_wait(lane->ctx, UNIFIED_WAIT_RX | UNIFIED_WAIT_COMPLETIONS, TICK_MS) < 0)
			fail("wait");
	}
	return NULL;
}

static void on_signal(int number)
{
	(void)number;
	stop = true;
}

int main(int argc, char **argv)
{
	struct unified_config config = { .size = sizeof(config), .file_size = 64 << 20, .queues = UNIFIED_ALL_QUEUES };
	struct lane *lanes;
	unified_ctx *ctx;

	if (argc != 4 || !(wanted = strtoull(argv[3], NULL, 0))) {
		fprintf(stderr, "usage: %s IFACE DEVICE COUNT\n", argv[0]);
		return 2;
	}
	config.ifname = argv[1];
	config.device = argv[2];
	signal(SIGINT, on_signal);
	signal(SIGTERM, on_signal);
	if (unified_ctx_create(&config, &ctx) < 0) {
		fail("ctx_create");
		return 1;
	}
	unified_ctx_info(ctx, &info);
	lanes = calloc(info.lanes, sizeof(*lanes));
	if (!lanes)
		return 1;
	for (uint32_t i = 0; i < info.lanes; i++)
		if (unified_ctx_lane(ctx, i, &lanes[i].ctx) < 0) {
			fail("ctx_lane");
			return 1;
		}
	printf("Receiving on %s, %u queues, storing on %s (%s)\n", argv[1], info.lanes, argv[2], info.backend);
	fflush(stdout);
	for (uint32_t i = 0; i < info.lanes; i++)
		if (pthread_create(&lanes[i].thread, NULL, serve, &lanes[i])) {
			fprintf(stderr, "A thread could not be started\n");
			return 1;
		}
	for (uint32_t i = 0; i < info.lanes; i++) {
		struct unified_stats s = { .size = sizeof(s) };

		pthread_join(lanes[i].thread, NULL);
		unified_ctx_stats(lanes[i].ctx, &s);
		printf("Queue %u: %" PRIu64 " received, %" PRIu64 " stored\n", info.queue + i, s.received, s.stored);
	}
	free(lanes);
	/* What is still in flight is carried out. */
	if (unified_ctx_destroy(ctx) < 0) {
		fail("ctx_destroy");
		return 1;
	}
	printf("Stored %" PRIu64 " of %" PRIu64 "\n", (uint64_t)(finished - failed), (uint64_t)received);
	return failed > 0 || finished < received;
}
