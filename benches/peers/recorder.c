/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/*
 * This library as a recorder to be measured.
 *
 *     recorder [OPTIONS] IFACE DEVICE
 *
 *     --mode pipeline|receive|latency   pipeline: unified_pipeline_start. receive: every packet is taken and let
 *                                       go. latency: one thread with the low-level calls, each payload written
 *                                       on its own, its packet-to-completion time kept
 *     --layout payload|slot|log         of the pipeline (default slot)
 *     --drive inline|thread             (default inline)
 *     --frames N --frame-size N --rings N --sq N --moderation US --pack-below BYTES
 *     --unchecked                       no checksum of packets (layout log)
 *     --reserved-pages                  reserved huge pages
 *     --small-pages                     no transparent huge pages for this process
 *     --events                          of the pipeline: an event of each packet, read by this program
 *
 * Prints "ready", records until SIGINT or SIGTERM, and prints what became of every packet as key=value.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <getopt.h>
#include <inttypes.h>
#include <poll.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <time.h>
#include <unistd.h>
#include <unified.h>

#define BATCH 64
#define SAMPLES (8u << 20)

static unified_ctx *ctx;
static struct unified_info info = { .size = sizeof(info) };
static volatile sig_atomic_t stopping;
static uint32_t *samples;
static size_t sample_count;

static void stop(int signal)
{
	(void)signal;
	stopping = 1;
}

static void check(int ret, const char *what)
{
	if (ret >= 0)
		return;
	fprintf(stderr, "%s: %s\n", what, unified_last_error());
	if (ctx)
		unified_ctx_destroy(ctx);
	exit(1);
}

static uint64_t now(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec * 1000000000ull + t.tv_nsec;
}

static void ready(void)
{
	puts("ready");
	fflush(stdout);
}

/* Taken and let go: what receiving alone costs. */
static void receive(void)
{
	struct unified_packet packets[BATCH];

	ready();
	while (!stopping) {
		int count = unified_rx_batch(ctx, packets, BATCH);

		check(count, "Receiving");
		for (int i = 0; i < count; i++)
			check(unified_frame_release(ctx, packets[i].frame), "Releasing");
		if (count == 0)
			check(unified_wait(ctx, UNIFIED_WAIT_RX, 50), "Waiting");
	}
}

static void take_completions(uint64_t *in_flight)
{
	struct unified_completion done[BATCH];
	int count = unified_completions(ctx, done, BATCH);

	check(count, "Taking completions");
	for (int i = 0; i < count; i++) {
		/* A write carries its packet's timestamp. */
		uint64_t took = now() - done[i].user_data;

		if (done[i].status == 0 && sample_count < SAMPLES)
			samples[sample_count++] = took < UINT32_MAX ? took : UINT32_MAX;
		(*in_flight)--;
	}
}

static void latency(void)
{
	struct unified_packet packets[BATCH];
	uint64_t lba = 0, in_flight = 0;

	samples = malloc(SAMPLES * sizeof(*samples));
	ready();
	while (!stopping) {
		int count = unified_rx_batch(ctx, packets, BATCH);

		check(count, "Receiving");
		for (int i = 0; i < count; i++) {
			const struct unified_packet *p = &packets[i];
			uint32_t blocks = (p->payload_len + info.block_size - 1) / info.block_size;
			int ret;

			if (lba + blocks > info.blocks)
				lba = 0;
			while ((ret = unified_submit_write(ctx, p->frame, p->payload, p->payload_len, lba,
							   p->timestamp, UNIFIED_MORE)) == -EAGAIN)
				take_completions(&in_flight);
			check(ret, "Submitting");
			in_flight++;
			lba += blocks;
		}
		if (count > 0)
			check(unified_submit_pending(ctx), "Submitting");
		take_completions(&in_flight);
		if (count == 0)
			check(unified_wait(ctx, UNIFIED_WAIT_RX | UNIFIED_WAIT_COMPLETIONS, 50), "Waiting");
	}
	while (in_flight > 0) {
		take_completions(&in_flight);
		check(unified_wait(ctx, UNIFIED_WAIT_COMPLETIONS, 10), "Waiting");
	}
}

/* A signal; and meanwhile takes the events, if there are any. */
static void await(void)
{
	static struct unified_event events[256];
	struct pollfd fd = { .fd = unified_events_fd(ctx), .events = POLLIN };
	int count;

	poll(&fd, 1, -1);
	do
		count = unified_events(ctx, events, 256);
	while (count > 0);
	if (fd.fd >= 0)
		check(count, "Taking events");
}

static uint32_t moderation_us, pack_below, log_flags = UNIFIED_LOG_NEW;

static void pipeline(uint32_t layout)
{
	struct unified_pipeline_config config = {
		.size = sizeof(config),
		.at_end = UNIFIED_AT_END_WRAP,
		.layout = layout,
		.flags = layout == UNIFIED_LAYOUT_PAYLOAD ? 0 : log_flags,
		.moderation_us = moderation_us,
		.pack_below = pack_below,
	};
	struct unified_pipeline_status status = { .size = sizeof(status) };

	check(unified_pipeline_start(ctx, &config), "Starting the pipeline");
	ready();
	while (!stopping)
		await();
	check(unified_pipeline_stop(ctx, &status), "Stopping the pipeline");
	printf("payload_bytes=%" PRIu64 " no_space=%" PRIu64 " empty=%" PRIu64 " wraps=%" PRIu64 "\n",
	       status.payload_bytes, status.no_space, status.empty, status.wraps);
}

static int by_value(const void *a, const void *b)
{
	uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;

	return (x > y) - (x < y);
}

/* Within a quarter: the end of the bucket in which it is. */
static uint64_t quantile(const struct unified_latency *latency, double part)
{
	uint64_t seen = 0;
	uint32_t i = 0;

	while (i < 100 && (seen += latency->buckets[i]) < part * latency->count)
		i++;
	return unified_latency_bound(i);
}

static void report(void)
{
	struct unified_latency latency = { .size = sizeof(latency) };
	struct unified_stats s = { .size = sizeof(s) };
	struct rusage used;

	check(unified_ctx_stats(ctx, &s), "Statistics");
	getrusage(RUSAGE_SELF, &used);
#define SAY(field) printf(#field "=%" PRIu64 "\n", s.field)
	SAY(xdp_seen);
	SAY(xdp_redirected);
	SAY(events);
	SAY(events_lost);
	SAY(rx_dropped);
	SAY(rx_ring_full);
	SAY(redirect_errors);
	SAY(rx_pending);
	SAY(received);
	SAY(stored);
	SAY(failed);
	SAY(released);
	SAY(operations);
	SAY(bytes_written);
	SAY(bounced);
	SAY(bounced_bytes);
	SAY(misplaced);
	SAY(packed);
	SAY(packed_bytes);
	printf("huge_pages=%d\n", info.huge_pages);
	printf("backend=%s\nzero_copy=%d\nnative=%d\ndirect_io=%d\n", info.backend, info.zero_copy, info.native,
	       info.direct_io);
	printf("user_cpu=%.6f\nsystem_cpu=%.6f\n", used.ru_utime.tv_sec + used.ru_utime.tv_usec / 1e6,
	       used.ru_stime.tv_sec + used.ru_stime.tv_usec / 1e6);
	if (sample_count > 0) {
		qsort(samples, sample_count, sizeof(*samples), by_value);
		printf("samples=%zu\np50_ns=%" PRIu32 "\np99_ns=%" PRIu32 "\np999_ns=%" PRIu32 "\n", sample_count,
		       samples[sample_count / 2], samples[sample_count * 99 / 100],
		       samples[sample_count * 999 / 1000]);
		return;
	}
	check(unified_ctx_latency(ctx, UNIFIED_LATENCY_PACKET, &latency), "Latency");
	if (latency.count > 0)
		printf("samples=%" PRIu64 "\np50_ns=%" PRIu64 "\np99_ns=%" PRIu64 "\np999_ns=%" PRIu64 "\n",
		       latency.count, quantile(&latency, .5), quantile(&latency, .99), quantile(&latency, .999));
}

static int one_of(const char *value, const char *a, const char *b)
{
	if (strcmp(value, a) != 0 && strcmp(value, b) != 0) {
		fprintf(stderr, "'%s': %s or %s\n", value, a, b);
		exit(2);
	}
	return strcmp(value, b) == 0;
}

int main(int argc, char **argv)
{
	static const struct option options[] = {
		{ "mode", required_argument, NULL, 'm' },	{ "layout", required_argument, NULL, 'l' },
		{ "drive", required_argument, NULL, 'd' },	{ "frames", required_argument, NULL, 'n' },
		{ "frame-size", required_argument, NULL, 's' }, { "rings", required_argument, NULL, 'r' },
		{ "sq", required_argument, NULL, 'q' },		{ "moderation", required_argument, NULL, 'M' },
		{ "pack-below", required_argument, NULL, 'P' },
		{ "reserved-pages", no_argument, NULL, 'H' },	{ "small-pages", no_argument, NULL, 'S' },
		{ "events", no_argument, NULL, 'e' },		{ "unchecked", no_argument, NULL, 'u' },
		{ NULL, 0, NULL, 0 },
	};
	struct unified_config config = {
		.size = sizeof(config),
		.flags = UNIFIED_NO_EVENTS,
		/* 64 MiB of frames: what the others have for buffers. */
		.frame_count = 32768,
		.rx_ring = 16384,
		.fill_ring = 16384,
		.sq_entries = 16384,
		.cq_entries = 16384,
	};
	struct sigaction action = { .sa_handler = stop };
	uint32_t layout = UNIFIED_LAYOUT_SLOT;
	const char *mode = "pipeline";
	int option;

	while ((option = getopt_long(argc, argv, "", options, NULL)) != -1) {
		switch (option) {
		case 'm':
			mode = optarg;
			break;
		case 'l':
			if (strcmp(optarg, "log") == 0)
				layout = UNIFIED_LAYOUT_LOG;
			else
				layout = one_of(optarg, "payload", "slot") ? UNIFIED_LAYOUT_SLOT : UNIFIED_LAYOUT_PAYLOAD;
			break;
		case 'd':
			config.drive = one_of(optarg, "inline", "thread") ? UNIFIED_DRIVE_THREAD : UNIFIED_DRIVE_INLINE;
			break;
		case 'n':
			config.frame_count = strtoul(optarg, NULL, 10);
			break;
		case 's':
			config.frame_size = strtoul(optarg, NULL, 10);
			break;
		case 'r':
			config.rx_ring = config.fill_ring = strtoul(optarg, NULL, 10);
			break;
		case 'q':
			config.sq_entries = config.cq_entries = strtoul(optarg, NULL, 10);
			break;
		case 'M':
			moderation_us = strtoul(optarg, NULL, 10);
			break;
		case 'P':
			pack_below = strtoul(optarg, NULL, 10);
			break;
		case 'u':
			log_flags |= UNIFIED_LOG_UNCHECKED;
			break;
		case 'e':
			config.flags &= ~UNIFIED_NO_EVENTS;
			break;
		case 'H':
			config.flags |= UNIFIED_HUGE_PAGES;
			break;
		case 'S':
			prctl(PR_SET_THP_DISABLE, 1, 0, 0, 0);
			break;
		default:
			return 2;
		}
	}
	if (argc - optind != 2) {
		fprintf(stderr, "usage: %s [OPTIONS] IFACE DEVICE\n", argv[0]);
		return 2;
	}
	config.ifname = argv[optind];
	config.device = argv[optind + 1];
	sigaction(SIGINT, &action, NULL);
	sigaction(SIGTERM, &action, NULL);
	check(unified_ctx_create(&config, &ctx), "Opening");
	check(unified_ctx_info(ctx, &info), "Info");
	if (strcmp(mode, "receive") == 0)
		receive();
	else if (strcmp(mode, "latency") == 0)
		latency();
	else
		pipeline(layout);
	report();
	return unified_ctx_destroy(ctx) < 0;
}
