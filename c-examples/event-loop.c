/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/*
 * One thread, one epoll: packets and completions come through the context's pollable descriptor, beside
 * whatever else a program waits for (here signals). Stores payloads until COUNT have come or Ctrl-C.
 *
 *     event-loop IFACE DEVICE COUNT
 */
#define _GNU_SOURCE
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/signalfd.h>
#include <unistd.h>
#include <unified.h>

#define BATCH 64

struct recorder {
	unified_ctx *ctx;
	struct unified_info info;
	uint64_t lba, received, finished, failed, count;
};

static int fail(const char *what)
{
	fprintf(stderr, "%s: %s\n", what, unified_last_error());
	return 1;
}

/* Takes completions, then packets while there is room for their writes, until both have run dry. */
static int turn(struct recorder *r)
{
	struct unified_completion done[BATCH];
	struct unified_packet packets[BATCH];
	bool more = true;

	while (more) {
		uint64_t room, left;
		uint32_t most;
		int n = unified_completions(r->ctx, done, BATCH);

		if (n < 0)
			return fail("completions");
		for (int i = 0; i < n; i++, r->finished++)
			r->failed += done[i].status != 0;
		more = n == BATCH;
		room = r->info.sq_entries - (r->received - r->finished);
		left = r->count - r->received;
		most = room < left ? room : left;
		if (most > BATCH)
			most = BATCH;
		if (!most)
			continue;
		n = unified_rx_batch(r->ctx, packets, most);
		if (n < 0)
			return fail("rx_batch");
		for (int i = 0; i < n; i++, r->received++) {
			const struct unified_packet *p = &packets[i];
			uint32_t len = unified_packet_payload_len(p);

			if (unified_submit_write(r->ctx, p->frame, unified_packet_payload(p), len, r->lba, 0,
						 UNIFIED_MORE) < 0) {
				fail("submit_write");
				unified_frame_release(r->ctx, p->frame);
				r->failed++, r->finished++;
				continue;
			}
			r->lba += (len + r->info.block_size - 1) / r->info.block_size;
		}
		if (n > 0)
			unified_submit_pending(r->ctx);
		/* Less than asked for leaves the descriptor armed; more than that means another turn. */
		more |= n > 0;
	}
	return 0;
}

int main(int argc, char **argv)
{
	struct unified_config config = { .size = sizeof(config), .file_size = 64 << 20 };
	struct recorder r = { .info = { .size = sizeof(r.info) } };
	struct epoll_event event = { .events = EPOLLIN };
	bool stop = false;
	sigset_t signals;
	int loop, poll_fd, signal_fd, failed = 0;

	if (argc != 4 || !(r.count = strtoull(argv[3], NULL, 0))) {
		fprintf(stderr, "usage: %s IFACE DEVICE COUNT\n", argv[0]);
		return 2;
	}
	config.ifname = argv[1];
	config.device = argv[2];
	sigemptyset(&signals);
	sigaddset(&signals, SIGINT);
	sigaddset(&signals, SIGTERM);
	sigprocmask(SIG_BLOCK, &signals, NULL);

	if (unified_ctx_create(&config, &r.ctx) < 0)
		return fail("ctx_create");
	unified_ctx_info(r.ctx, &r.info);
	poll_fd = unified_poll_fd(r.ctx);
	loop = epoll_create1(EPOLL_CLOEXEC);
	signal_fd = signalfd(-1, &signals, SFD_CLOEXEC);
	event.data.fd = poll_fd;
	if (poll_fd < 0 || epoll_ctl(loop, EPOLL_CTL_ADD, poll_fd, &event))
		return fail("poll_fd");
	event.data.fd = signal_fd;
	epoll_ctl(loop, EPOLL_CTL_ADD, signal_fd, &event);
	printf("Receiving on %s, storing on %s (%s)\n", argv[1], argv[2], r.info.backend);
	fflush(stdout);

	/* The first turn arms the descriptor. */
	failed = turn(&r);
	while (!failed && !stop && r.finished < r.count) {
		struct epoll_event ready[2];
		int n = epoll_wait(loop, ready, 2, -1);

		for (int i = 0; i < n; i++) {
			if (ready[i].data.fd == signal_fd)
				stop = true;
			else
				failed = turn(&r);
		}
	}
	printf("Stored %llu of %llu\n", (unsigned long long)(r.finished - r.failed), (unsigned long long)r.count);
	close(signal_fd);
	close(loop);
	if (unified_ctx_destroy(r.ctx) < 0)
		return fail("ctx_destroy");
	return failed || r.failed || r.finished - r.failed < r.count;
}
