/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/*
 * The full stack with the three threads of its document: the packet thread receives and submits, the
 * storage thread takes completions (and so drives the device), the main thread reports once a second.
 * With several queues each is a lane of its own, with a packet and a storage thread of its own.
 *
 * Several devices are filled in chunks, in turn (unified_stripe_locate).
 *
 *     unified-full-stack-test [OPTIONS] IFACE DEVICE[,DEVICE...] QUEUE
 *
 * Exit code: 0 every received packet was stored; 1 something failed; 2 wrong usage; 3 DEVICE holds data that would be
 * destroyed (a file system, a partition table and the like) and nobody insisted.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <getopt.h>
#include <inttypes.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/signalfd.h>
#include <time.h>
#include <unistd.h>
#include <unified.h>

#define BATCH 64
#define TICK_MS 50
#define FLUSH UINT64_MAX

static unified_ctx *ctx;
static struct unified_info info = { .size = sizeof(info) };
static atomic_bool stopping; /* no more packets are taken */
static atomic_uint_fast64_t stored, stored_bytes, errors, no_space;
static atomic_uint_fast64_t next_lba; /* shared by the lanes, as the device is */
static uint64_t end_lba;
static uint32_t block_size = 512; /* of the space that is spread over the devices: the longest of theirs */
#define CHUNK (1u << 20)

/* A lane and its two threads. */
struct lane {
	unified_ctx *ctx;
	pthread_t packets, storage;
	atomic_bool packets_done;      /* the packet thread has submitted its last command */
	atomic_bool flushed, flush_ok; /* the device has answered the flush at the end */
	atomic_uint_fast64_t submitted, finished;
	/* The chunk of the last write: its first block, and where that is. */
	uint64_t chunk, device_lba;
	uint32_t device, device_block;
};

static void complain(const char *what)
{
	fprintf(stderr, "%s: %s\n", what, unified_last_error());
}

static double now(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec + t.tv_nsec / 1e9;
}

/* The SQ ring is full: the storage thread makes room as the device completes. */
static void pause_for_room(void)
{
	struct timespec t = { .tv_nsec = 50000 };

	nanosleep(&t, NULL);
}

static void drop(const struct lane *lane, const struct unified_packet *packet, atomic_uint_fast64_t *why)
{
	(*why)++;
	unified_frame_release(lane->ctx, packet->frame);
}

/* A command is known by where it writes and how much of that is payload. */
static uint64_t tag(uint64_t lba, uint32_t len)
{
	return lba << 16 | len;
}

/* Where a block of the space is: the chunks go to the devices in turn. */
static void locate(struct lane *lane, uint64_t lba, struct unified_submission *to)
{
	uint64_t chunk = lba - lba % (CHUNK / block_size);
	struct unified_device_info about = { .size = sizeof(about) };

	to->lba = lba;
	if (info.devices == 1)
		return;
	if (chunk != lane->chunk || !lane->device_block) {
		unified_stripe_locate(ctx, chunk, CHUNK, &lane->device, &lane->device_lba);
		unified_device_info(ctx, lane->device, &about);
		lane->device_block = about.block_size;
		lane->chunk = chunk;
	}
	to->device = lane->device;
	to->lba = lane->device_lba + (lba - chunk) * (block_size / lane->device_block);
}

/* Writes one payload after the previous one, whichever lane that came to. The frame is free afterwards. */
static void store(struct lane *lane, const struct unified_packet *packet)
{
	uint64_t blocks = (packet->payload_len + block_size - 1) / block_size;
	uint64_t per_chunk = info.devices == 1 ? UINT64_MAX : CHUNK / block_size;
	uint_fast64_t next = next_lba, lba;
	struct unified_submission write = {
		.size = sizeof(write),
		.op = UNIFIED_OP_WRITE,
		.frame = packet->frame,
		.data = packet->payload,
		.len = packet->payload_len,
		.flags = UNIFIED_MORE,
	};
	int ret;

	do {
		/* A payload does not go on in the next chunk. */
		lba = next;
		if (lba % per_chunk + blocks > per_chunk)
			lba += per_chunk - lba % per_chunk;
		if (lba > end_lba || end_lba - lba < blocks) {
			drop(lane, packet, &no_space);
			return;
		}
	} while (!atomic_compare_exchange_weak(&next_lba, &next, lba + blocks));
	lane->submitted++;
	locate(lane, lba, &write);
	write.user_data = tag(lba, packet->payload_len);
	while ((ret = unified_submit(lane->ctx, &write, 1)) == -EAGAIN) {
		unified_submit_pending(lane->ctx);
		pause_for_room();
	}
	if (ret < 0) {
		complain("Submitting a write");
		lane->submitted--;
		drop(lane, packet, &errors);
	}
}

static void *packet_thread(void *argument)
{
	struct lane *lane = argument;
	struct unified_packet batch[BATCH];
	int count, ret;

	printf("Packet processing thread started\n");
	for (;;) {
		bool last = stopping;

		count = unified_rx_batch(lane->ctx, batch, BATCH);
		for (int i = 0; i < count; i++)
			store(lane, &batch[i]);
		if (count > 0)
			unified_submit_pending(lane->ctx);
		else if (count < 0 || last)
			break;
		else
			unified_wait(lane->ctx, UNIFIED_WAIT_RX, TICK_MS);
	}
	if (count < 0) {
		complain("Receiving");
		errors++;
	}
	/* Everything submitted must be completed before the flush covers it. */
	while (lane->finished != lane->submitted)
		pause_for_room();
	while ((ret = unified_submit_flush(lane->ctx, FLUSH)) == -EAGAIN)
		pause_for_room();
	if (ret < 0) {
		complain("Submitting the flush");
		lane->flushed = true;
	}
	lane->packets_done = true;
	return NULL;
}

static void *storage_thread(void *argument)
{
	struct lane *lane = argument;
	struct unified_completion batch[BATCH];
	int count;

	printf("Storage thread started\n");
	while (!lane->packets_done || !lane->flushed) {
		count = unified_completions(lane->ctx, batch, BATCH);
		if (count < 0) {
			complain("Taking completions");
			errors++;
			stopping = true;
			/* Nothing will complete any more: the packet thread must not wait for it. */
			lane->finished = (uint_fast64_t)lane->submitted;
			lane->flushed = true;
			pause_for_room();
			continue;
		}
		for (int i = 0; i < count; i++) {
			const struct unified_completion *c = &batch[i];

			if (c->user_data == FLUSH) {
				lane->flush_ok = c->status == 0;
				lane->flushed = true;
				continue;
			}
			lane->finished++;
			if (c->status == 0) {
				stored++;
				stored_bytes += c->user_data & 0xffff;
			} else if (errors++ < 10) {
				fprintf(stderr, "Write at block %" PRIu64 " failed: %s\n", c->user_data >> 16,
					unified_status_string(c->status));
			}
		}
		if (count == 0)
			unified_wait(lane->ctx, UNIFIED_WAIT_COMPLETIONS, TICK_MS);
	}
	return NULL;
}

static void on_log(int level, const char *line, void *unused)
{
	(void)unused;
	fprintf(stderr, "%s: %s\n", level <= 0 ? "error" : level == 1 ? "warning" : "note", line);
}

/* Packet metadata comes through the BPF ring buffer, whether the packet could be stored or not. */
static uint64_t drain_events(void)
{
	struct unified_event batch[BATCH];
	uint64_t sum = 0;
	int count;

	do {
		count = unified_events(ctx, batch, BATCH);
		sum += count > 0 ? count : 0;
	} while (count == BATCH);
	return sum;
}

static void print_setup(const struct unified_config *config)
{
	struct unified_device_info about = { .size = sizeof(about) };

	printf("BPF program loaded successfully (%s mode%s)\n", info.native ? "native" : "SKB",
	       info.dispatcher ? ", dispatcher" : "");
	for (uint32_t i = 0; i < info.lanes; i++)
		printf("AF_XDP socket created on %s queue %u (%s)\n", config->ifname, info.queue + i,
		       info.zero_copy ? "zero-copy" : "copy");
	printf("Unified interface registered successfully\n");
	printf("  SQ ring: %p (entries: %u)\n", (void *)((char *)info.region + info.sq_ring), info.sq_entries);
	printf("  CQ ring: %p (entries: %u)\n", (void *)((char *)info.region + info.cq_ring), info.cq_entries);
	printf("  Data buffers: %p\n", (void *)((char *)info.region + info.buffers));
	for (uint32_t i = 0; i < info.devices; i++) {
		unified_device_info(ctx, i, &about);
		printf("  Device: %s (%s, %" PRIu64 " blocks of %u bytes)\n", about.path, about.backend, about.blocks,
		       about.block_size);
		if (about.block_size > block_size)
			block_size = about.block_size;
	}
	printf("\n");
}

/* The length of the space that is spread over the devices, in its blocks. */
static uint64_t whole_space(void)
{
	uint64_t from = 0, to = UINT64_C(1) << 56, middle, lba;
	uint32_t device;

	if (info.devices == 1)
		return info.blocks;
	while (from < to) {
		middle = from + (to - from) / 2;
		if (unified_stripe_locate(ctx, middle, CHUNK, &device, &lba) < 0)
			to = middle;
		else
			from = middle + 1;
	}
	return from;
}

/* Whether everything is accounted for. Packets of queues without a lane are seen and passed on. */
static bool balances(const struct unified_stats *s, uint64_t frames)
{
	return s->xdp_seen == s->xdp_passed + s->xdp_redirected &&
	       s->xdp_redirected ==
		       s->rx_dropped + s->rx_ring_full + s->redirect_errors + s->received + s->rx_pending &&
	       s->received == s->stored + s->failed + s->released + s->packets_held + s->packets_in_flight &&
	       s->submitted == s->completed + s->commands_in_flight &&
	       s->frames_free + s->frames_filled + s->frames_held + s->frames_in_flight == frames;
}

static uint64_t frames_of(const struct unified_stats *s)
{
	return s->frames_free + s->frames_filled + s->frames_held + s->frames_in_flight;
}

/* What each lane of several has done. The frames of all of them and of the reserve are all frames. */
static bool print_lanes(const struct lane *lanes, const struct unified_stats *total)
{
	uint64_t frames = total->frames_reserve;
	bool balanced = true;

	for (uint32_t i = 0; i < info.lanes; i++) {
		struct unified_stats s = { .size = sizeof(s) };

		if (unified_ctx_stats(lanes[i].ctx, &s) < 0)
			return false;
		printf("  Queue %u: received %" PRIu64 ", stored %" PRIu64 ", dropped %" PRIu64 "\n", info.queue + i,
		       s.received, s.stored, s.rx_dropped + s.rx_ring_full + s.redirect_errors);
		frames += frames_of(&s);
		balanced &= balances(&s, frames_of(&s));
	}
	return balanced && frames == info.frame_count;
}

static int print_final(const struct lane *lanes, uint64_t events_read)
{
	struct unified_stats s = { .size = sizeof(s) };
	bool balanced, flush_ok = true;
	int failed = 0;

	if (unified_ctx_stats(ctx, &s) < 0) {
		complain("Reading the statistics");
		return 1;
	}
	printf("\nFinal stats:\n");
	printf("  Packets seen by XDP: %" PRIu64 " (passed on: %" PRIu64 ", redirected: %" PRIu64 ")\n", s.xdp_seen,
	       s.xdp_passed, s.xdp_redirected);
	printf("  Merged datagrams passed on: %" PRIu64 " packets\n", s.xdp_merged);
	printf("  Packets received: %" PRIu64 "\n", s.received);
	printf("  Packets stored: %" PRIu64 "\n", s.stored);
	printf("  Payload bytes stored: %" PRIu64 "\n", (uint64_t)stored_bytes);
	printf("  Device bytes written: %" PRIu64 "\n", s.bytes_written);
	printf("  Errors: %" PRIu64 "\n", (uint64_t)errors);
	printf("  No space: %" PRIu64 "\n", (uint64_t)no_space);
	if (no_space)
		fprintf(stderr,
			"%" PRIu64 " packets were not stored: the %" PRIu64 " blocks of %u bytes of the device are full; "
			"take a larger one, or for a file a larger --file-size\n",
			(uint64_t)no_space, end_lba, block_size);
	printf("  Dropped: %" PRIu64 " (no frame or too long: %" PRIu64 ", RX ring full: %" PRIu64 ")\n",
	       s.rx_dropped + s.rx_ring_full + s.redirect_errors, s.rx_dropped, s.rx_ring_full);
	printf("  Bounced: %" PRIu64 "\n", s.bounced);
	printf("  Events: %" PRIu64 " (read: %" PRIu64 ", lost: %" PRIu64 ")\n", s.events, events_read, s.events_lost);
	if (s.xdp_no_socket)
		printf("  On other queues: %" PRIu64 "\n", s.xdp_no_socket);
	balanced = balances(&s, info.frame_count);
	if (info.lanes > 1)
		balanced &= print_lanes(lanes, &s);
	printf("  Books: %s\n", balanced ? "balanced" : "DO NOT BALANCE");
	failed |= !balanced;
	for (uint32_t i = 0; i < info.lanes; i++)
		flush_ok &= lanes[i].flush_ok;
	if (!flush_ok) {
		printf("  The flush at the end failed: what was stored may not be durable\n");
		failed = 1;
	}
	return failed || errors || no_space || s.stored != s.received;
}

/* Names the option after the library has named its flag. */
static int not_opened(int ret)
{
	complain("Opening");
	if (strstr(unified_last_error(), "UNIFIED_FORCE"))
		fprintf(stderr, "--force writes to it all the same, and destroys what is on it\n");
	return ret == -EEXIST ? 3 : 1;
}

/* Opens the device alone, as it would be opened for recording. */
static int check(const struct unified_config *wanted)
{
	struct unified_config config = *wanted;
	int ret;

	config.ifname = NULL;
	config.ports = NULL;
	config.port_count = 0;
	config.queues = 0;
	config.flags &= ~UNIFIED_HUGE_PAGES;
	ret = unified_ctx_create(&config, &ctx);
	if (ret < 0)
		return not_opened(ret);
	return unified_ctx_destroy(ctx) < 0;
}

static void usage(FILE *to, const char *name)
{
	fprintf(to,
		"usage: %s [OPTIONS] IFACE DEVICE[,DEVICE...] QUEUE\n"
		"Stores the payloads of UDP packets that IFACE receives on QUEUE to DEVICE from block 0 on; to several devices\n"
		"in chunks of 1 MiB, in turn.\n"
		"  -q, --queues N|all       receive on this many queues, from QUEUE on (default 1)\n"
		"  -p, --port PORT          UDP port (default 9999)\n"
		"  -d, --duration SECONDS   stop after this time (default: at Ctrl-C)\n"
		"  -c, --count PACKETS      stop after this many received packets\n"
		"  -s, --file-size BYTES    create DEVICE as a regular file of at least this size\n"
		"  -f, --frame-size BYTES   2048 (default) or 4096\n"
		"  -T, --engine-thread      use a thread of the library for the device\n"
		"  -H, --huge-pages         use reserved 2 MiB pages for the region\n"
		"  -F, --force              write even if the device is in use or holds a file system\n"
		"  -k, --check              only check whether DEVICE may be written to (exit code 3: it holds data)\n"
		"  -h, --help\n",
		name);
}

/* One device, or several with commas between them, unless that is a name itself. */
static void name_devices(struct unified_config *config, char *names)
{
	static struct unified_device devices[16];
	char *rest = NULL, *name;
	uint32_t count = 0;

	if (!strchr(names, ',') || !access(names, F_OK)) {
		config->device = names;
		return;
	}
	for (name = strtok_r(names, ",", &rest); name; name = strtok_r(NULL, ",", &rest)) {
		if (count == 16) {
			fprintf(stderr, "More than 16 devices\n");
			exit(2);
		}
		devices[count].size = sizeof(devices[count]);
		devices[count].path = name;
		devices[count++].file_size = config->file_size;
	}
	config->devices = devices;
	config->device_count = count;
	config->file_size = 0;
}

static uint64_t number(const char *text, uint64_t max, const char *name)
{
	char *end;
	unsigned long long value;

	errno = 0;
	value = strtoull(text, &end, 0);
	if (errno || end == text || *end || *text == '-' || value > max) {
		fprintf(stderr, "%s: '%s' is not a number from 0 to %" PRIu64 "\n", name, text, max);
		exit(2);
	}
	return value;
}

int main(int argc, char **argv)
{
	static const struct option options[] = {
		{ "port", 1, NULL, 'p' },	   { "duration", 1, NULL, 'd' },   { "count", 1, NULL, 'c' },
		{ "file-size", 1, NULL, 's' },	   { "frame-size", 1, NULL, 'f' }, { "engine-thread", 0, NULL, 'T' },
		{ "huge-pages", 0, NULL, 'H' },	   { "force", 0, NULL, 'F' },	   { "check", 0, NULL, 'k' },
		{ "queues", 1, NULL, 'q' },	   { "help", 0, NULL, 'h' },	   { NULL, 0, NULL, 0 },
	};
	struct unified_config config = { .size = sizeof(config) };
	uint16_t port = 9999;
	uint64_t duration = 0, count = 0, events_read = 0, last_received = 0, last_bytes = 0;
	struct pollfd waits[2] = { { .events = POLLIN }, { .events = POLLIN } };
	struct lane *lanes;
	double start, last;
	sigset_t signals;
	bool only_check = false;
	int option, failed;

	while ((option = getopt_long(argc, argv, "p:d:c:s:f:q:THFkh", options, NULL)) != -1) {
		switch (option) {
		case 'p': port = number(optarg, 65535, "--port"); break;
		case 'd': duration = number(optarg, 1u << 30, "--duration"); break;
		case 'c': count = number(optarg, UINT64_MAX - 1, "--count"); break;
		case 's': config.file_size = number(optarg, INT64_MAX, "--file-size"); break;
		case 'f': config.frame_size = number(optarg, 65536, "--frame-size"); break;
		case 'q':
			config.queues = strcmp(optarg, "all") ? number(optarg, 65535, "--queues") : UNIFIED_ALL_QUEUES;
			break;
		case 'T': config.drive = UNIFIED_DRIVE_THREAD; break;
		case 'H': config.flags |= UNIFIED_HUGE_PAGES; break;
		case 'F': config.flags |= UNIFIED_FORCE; break;
		case 'k': only_check = true; break;
		case 'h': usage(stdout, argv[0]); return 0;
		default: usage(stderr, argv[0]); return 2;
		}
	}
	if (argc - optind != 3) {
		usage(stderr, argv[0]);
		return 2;
	}
	setvbuf(stdout, NULL, _IOLBF, 0);
	config.ifname = argv[optind];
	name_devices(&config, argv[optind + 1]);
	config.queue = number(argv[optind + 2], UINT32_MAX, "QUEUE");
	config.ports = &port;
	config.port_count = 1;

	/* Blocked in every thread; the main thread reads them. */
	sigemptyset(&signals);
	sigaddset(&signals, SIGINT);
	sigaddset(&signals, SIGTERM);
	pthread_sigmask(SIG_BLOCK, &signals, NULL);

	unified_set_log_callback(on_log, 1, NULL);
	if (only_check)
		return check(&config);
	failed = unified_ctx_create(&config, &ctx);
	if (failed < 0)
		return not_opened(failed);
	unified_ctx_info(ctx, &info);
	print_setup(&config);
	end_lba = whole_space();
	lanes = calloc(info.lanes, sizeof(*lanes));
	if (!lanes) {
		fprintf(stderr, "There is no memory for %u lanes\n", info.lanes);
		exit(1);
	}
	for (uint32_t i = 0; i < info.lanes; i++) {
		if (unified_ctx_lane(ctx, i, &lanes[i].ctx) < 0) {
			complain("Asking for a lane");
			exit(1);
		}
		if (pthread_create(&lanes[i].storage, NULL, storage_thread, &lanes[i]) ||
		    pthread_create(&lanes[i].packets, NULL, packet_thread, &lanes[i])) {
			fprintf(stderr, "A thread could not be started\n");
			exit(1);
		}
	}
	printf("System ready. Waiting for packets...\n\n");

	waits[0].fd = signalfd(-1, &signals, SFD_CLOEXEC);
	waits[1].fd = unified_events_fd(ctx);
	start = last = now();
	while (!stopping) {
		struct unified_stats s = { .size = sizeof(s) };
		double left = last + 1 - now();

		poll(waits, 2, left > 0 ? (int)(left * 1000) + 1 : 0);
		events_read += drain_events();
		if (waits[0].revents)
			stopping = true;
		if (stopping || now() < last + 1)
			continue;
		unified_ctx_stats(ctx, &s);
		printf("Stats: RX=%" PRIu64 " pps=%.0f | Stored=%" PRIu64 " Bps=%.0f | Errors=%" PRIu64 "\n", s.received,
		       (s.received - last_received) / (now() - last), s.stored, (stored_bytes - last_bytes) / (now() - last),
		       (uint64_t)errors);
		last_received = s.received;
		last_bytes = stored_bytes;
		last = now();
		if ((duration && last - start >= duration) || (count && s.received >= count))
			stopping = true;
	}
	for (uint32_t i = 0; i < info.lanes; i++) {
		pthread_join(lanes[i].packets, NULL);
		pthread_join(lanes[i].storage, NULL);
	}
	failed = print_final(lanes, events_read + drain_events());
	free(lanes);
	close(waits[0].fd);
	if (unified_ctx_destroy(ctx) < 0) {
		complain("Closing");
		failed = 1;
	}
	return failed;
}
