/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/*
 * A recorder without any privilege: asks hand-over (or the AF_XDP device plugin for Kubernetes, which has the map
 * only) at the Unix socket PATH for what it may not open itself, and stores COUNT payloads.
 *
 *     unprivileged PATH IFACE COUNT              everything from the socket: all queues, and all devices
 *     unprivileged PATH IFACE COUNT DEVICE       the map from the socket; CAP_NET_RAW and DEVICE are its own: queue 0
 */
#define _GNU_SOURCE
#include <errno.h>
#include <inttypes.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>
#include <unified.h>

/* A context has no more. */
#define QUEUES 64
#define DEVICES 16

static int peer;
/* A socket for each queue, and the devices. */
static int32_t sockets[QUEUES];
static struct unified_device devices[DEVICES];

static int dial(const char *path)
{
	struct sockaddr_un address = { .sun_family = AF_UNIX };
	struct timeval patience = { .tv_sec = 5 };

	strncpy(address.sun_path, path, sizeof(address.sun_path) - 1);
	peer = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
	/* Before it connects: that waits too, if the other side takes no connections. */
	if (peer >= 0) {
		setsockopt(peer, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof(patience));
		setsockopt(peer, SOL_SOCKET, SO_SNDTIMEO, &patience, sizeof(patience));
	}
	if (peer < 0 || connect(peer, (struct sockaddr *)&address, sizeof(address)) < 0)
		return fprintf(stderr, "%s: %s\n", path, strerror(errno)), -1;
	return 0;
}

/* Sends a request: the descriptor that came with the answer, or -1 if none did. */
static int say(const char *text, char reply[256])
{
	union {
		char space[CMSG_SPACE(sizeof(int))];
		struct cmsghdr align;
	} control;
	struct iovec words = { .iov_base = reply, .iov_len = 255 };
	struct msghdr message = {
		.msg_iov = &words, .msg_iovlen = 1, .msg_control = control.space, .msg_controllen = sizeof(control.space),
	};
	struct cmsghdr *header;
	ssize_t got = -1;
	int fd = -1;

	if (send(peer, text, strlen(text), MSG_NOSIGNAL) >= 0)
		got = recvmsg(peer, &message, MSG_CMSG_CLOEXEC);
	reply[got > 0 ? got : 0] = 0;
	header = got > 0 ? CMSG_FIRSTHDR(&message) : NULL;
	if (header && header->cmsg_level == SOL_SOCKET && header->cmsg_type == SCM_RIGHTS)
		memcpy(&fd, CMSG_DATA(header), sizeof(fd));
	return fd;
}

/* Sends a request, and wants this answer: the descriptor that came with it, or -1 if none did. -2: another answer. */
static int ask(const char *request, const char *argument, const char *wanted)
{
	char text[256], reply[256];
	int fd;

	snprintf(text, sizeof(text), argument ? "%s, %s" : "%s", request, argument);
	fd = say(text, reply);
	if (strcmp(reply, wanted)) {
		fprintf(stderr, "%s was answered with '%s'\n", text, reply);
		return -2;
	}
	return fd;
}

static int fetch(const char *what, const char *iface, int32_t *fd)
{
	*fd = ask(what, iface, "/fd_ack");
	return *fd < 0 ? -1 : 0;
}

/* How many there are, and no more than `most`. Who does not know the question has one. */
static uint32_t how_many(const char *request, uint32_t most)
{
	char reply[256], *end;
	unsigned long count;

	say(request, reply);
	count = strtoul(reply, &end, 10);
	if (end == reply || *end || !count) {
		fprintf(stderr, "%s was answered with '%s': one is taken\n", request, reply);
		return 1;
	}
	if (count > most)
		fprintf(stderr, "%s: there are %lu, and a context has %u at most\n", request, count, most);
	return count < most ? count : most;
}

static int gather(struct unified_config *config)
{
	char name[64] = "", text[64];

	gethostname(name, sizeof(name) - 1);
	if (ask("/connect", name, "/host_ok") == -2 || fetch("/xsk_map_fd", config->ifname, &config->xsk_map_fd) < 0)
		return -1;
	config->flags |= UNIFIED_XSK_MAP_FD;
	if (!config->device) {
		snprintf(text, sizeof(text), "/queues, %s", config->ifname);
		config->queues = config->xsk_fd_count = how_many(text, QUEUES);
		config->xsk_fds = sockets;
		if (config->queues > 1) {
			/* What counts as locked is for each queue all frames, and twice: four queues stay below 8 MiB. */
			config->frame_count = 64 * config->queues;
			config->sq_entries = config->cq_entries = 32;
		}
		for (uint32_t i = 0; i < config->xsk_fd_count; i++)
			if (fetch("/xsk_fd", config->ifname, &sockets[i]) < 0)
				return -1;
		config->device_count = how_many("/devices", DEVICES);
		config->devices = devices;
		for (uint32_t i = 0; i < config->device_count; i++) {
			snprintf(text, sizeof(text), "%u", i);
			devices[i].size = sizeof(devices[i]);
			devices[i].flags = UNIFIED_DEVICE_FD;
			if (fetch("/device_fd", i ? text : NULL, &devices[i].fd) < 0)
				return -1;
		}
	}
	return ask("/fin", NULL, "/fin_ack") == -2 ? -1 : 0;
}

int main(int argc, char **argv)
{
	/* UMEM and registered buffers are both charged as locked memory: 256 frames need a little over 1 MiB. */
	struct unified_config config = {
		.size = sizeof(config), .frame_count = 256, .rx_ring = 128, .fill_ring = 128, .sq_entries = 128, .cq_entries = 128,
		.drive = UNIFIED_DRIVE_THREAD,
	};
	struct unified_pipeline_config pipeline = { .size = sizeof(pipeline) };
	struct unified_pipeline_status status = { .size = sizeof(status) };
	struct unified_stats stats = { .size = sizeof(stats) };
	struct timespec tick = { .tv_nsec = 20000000 };
	unified_ctx *ctx;
	sigset_t signals;
	uint64_t count;
	int failed = 0;

	if ((argc != 4 && argc != 5) || !(count = strtoull(argv[3], NULL, 0)))
		return fprintf(stderr, "usage: %s PATH IFACE COUNT [DEVICE]\n", argv[0]), 2;
	config.ifname = argv[2];
	config.device = argc == 5 ? argv[4] : NULL;
	sigemptyset(&signals);
	sigaddset(&signals, SIGINT);
	sigaddset(&signals, SIGTERM);
	sigprocmask(SIG_BLOCK, &signals, NULL);
	if (dial(argv[1]) < 0 || gather(&config) < 0)
		return 1;
	if (unified_ctx_create(&config, &ctx) < 0)
		return fprintf(stderr, "Opening: %s\n", unified_last_error()), 1;
	close(config.xsk_map_fd);
	/* The library has its own of each. A socket that stays open here would keep its queue. */
	for (uint32_t i = 0; i < config.xsk_fd_count; i++)
		close(sockets[i]);
	for (uint32_t i = 0; i < config.device_count; i++)
		close(devices[i].fd);
	if (unified_pipeline_start(ctx, &pipeline) < 0) {
		fprintf(stderr, "Starting: %s\n", unified_last_error());
		unified_ctx_destroy(ctx);
		return 1;
	}
	printf("Receiving on %s as user %u\n", argv[2], (unsigned int)geteuid());
	if (config.queues > 1 || config.device_count > 1)
		printf("Queues: %u, devices: %u\n", config.queues, config.device_count);
	fflush(stdout);
	while (unified_pipeline_status(ctx, &status) == 0 && status.running && status.stored + status.failed < count)
		if (sigtimedwait(&signals, NULL, &tick) > 0)
			break;
	if (unified_pipeline_stop(ctx, &status) < 0)
		failed = fprintf(stderr, "Stopping: %s\n", unified_last_error());
	if (unified_ctx_stats(ctx, &stats) < 0)
		failed = fprintf(stderr, "Counting: %s\n", unified_last_error());
	printf("Stored %" PRIu64 " of %" PRIu64 "\n", status.stored, count);
	if (stats.rx_dropped + stats.rx_ring_full)
		printf("%" PRIu64 " dropped by the kernel: there were too few frames for the rate\n",
		       stats.rx_dropped + stats.rx_ring_full);
	unified_ctx_destroy(ctx);
	return failed || status.failed || status.stored < count;
}
