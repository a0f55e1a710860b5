/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/*
 * Records a port with a pipeline, and answers http://127.0.0.1:HTTP_PORT/metrics for Prometheus and unified-top (or the
 * same on a Unix socket), all but the pipeline's own work in one thread. It answers one request after the other, whatever
 * they ask for, and reads nothing else.
 *
 *     metrics [-q QUEUES|all] IFACE DEVICE[,DEVICE...] HTTP_PORT|SOCKET
 *
 * -q receives on that many queues (default 1), from queue 0 on. Payloads go over several devices in turn.
 *
 * SOCKET is a path with a / in it; a socket that was left there is replaced, and taken away at the end.
 *
 * Ends with Ctrl-C. Exit code: 0 all that was received is stored; 1 something failed; 2 wrong usage.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <inttypes.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/time.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>
#include <unified.h>

static int fail(const char *what, const char *why)
{
	fprintf(stderr, "%s: %s\n", what, why);
	return 1;
}

/* On loopback only: who may read the figures from elsewhere is for a proxy to decide. */
static int listener(uint16_t port)
{
	struct sockaddr_in address = { .sin_family = AF_INET, .sin_port = htons(port),
				       .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
	int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0), yes = 1;

	setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &yes, sizeof(yes));
	if (fd < 0 || bind(fd, (struct sockaddr *)&address, sizeof(address)) < 0 || listen(fd, 16) < 0)
		return -1;
	return fd;
}

/* The socket that this program made. */
static struct stat made;

static int is_ours(const char *path)
{
	struct stat there;

	return lstat(path, &there) == 0 && there.st_dev == made.st_dev && there.st_ino == made.st_ino;
}

static int socket_at(const char *path)
{
	struct sockaddr_un address = { .sun_family = AF_UNIX };
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	int probe = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	struct stat found;

	if (strlen(path) >= sizeof(address.sun_path)) {
		errno = ENAMETOOLONG;
		return -1;
	}
	memcpy(address.sun_path, path, strlen(path));
	/* One that nobody listens at was left by a program that was killed. A link, and another's socket, stay. */
	if (lstat(path, &found) == 0 && S_ISSOCK(found.st_mode) &&
	    connect(probe, (struct sockaddr *)&address, sizeof(address)) < 0 && errno == ECONNREFUSED)
		unlink(path);
	close(probe);
	if (fd < 0 || bind(fd, (struct sockaddr *)&address, sizeof(address)) < 0 || lstat(path, &made) < 0 ||
	    listen(fd, 16) < 0)
		return -1;
	return fd;
}

/* The whole text, in memory that grows with it: each lane and each device has lines of its own. NULL: see unified_last_error. */
static const char *render(unified_ctx *ctx)
{
	static char *text;
	static size_t room;
	int length;

	while ((length = unified_stats_render(ctx, text, room)) >= 0 && (size_t)length >= room) {
		char *more = realloc(text, length + 4096);

		if (!more)
			return NULL;
		text = more;
		room = length + 4096;
	}
	return length < 0 ? NULL : text;
}

static void answer(int listening, unified_ctx *ctx)
{
	static char request[4096];
	struct timeval patience = { .tv_sec = 1 };
	struct timespec begun, now;
	int fd = accept4(listening, NULL, NULL, SOCK_CLOEXEC);
	const char *text = render(ctx);

	if (fd < 0)
		return;
	clock_gettime(CLOCK_MONOTONIC, &begun);
	setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof(patience));
	setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &patience, sizeof(patience));
	if (recv(fd, request, sizeof(request), 0) > 0) {
		const char *body = text ? text : unified_last_error();

		dprintf(fd, "HTTP/1.1 %s\r\nContent-Type: %s; charset=utf-8\r\nContent-Length: %zu\r\nConnection: close\r\n\r\n",
			text ? "200 OK" : "500 Internal Server Error",
			text ? "application/openmetrics-text; version=1.0.0" : "text/plain", strlen(body));
		for (size_t at = 0, all = strlen(body); at < all;) {
			ssize_t n = send(fd, body + at, all - at, MSG_NOSIGNAL);

			/* Each call is bounded; a client that takes a few bytes now and then must not make many of them. */
			clock_gettime(CLOCK_MONOTONIC, &now);
			if (n <= 0 || now.tv_sec - begun.tv_sec > 3)
				break;
			at += n;
		}
	}
	close(fd);
}

/* One device, or several with commas between them, unless that is a name itself. */
static void name_devices(struct unified_config *config, char *names)
{
	static struct unified_device devices[16];
	char *rest = NULL, *name;

	config->device = names;
	if (!strchr(names, ',') || !access(names, F_OK))
		return;
	for (name = strtok_r(names, ",", &rest); name; name = strtok_r(NULL, ",", &rest)) {
		if (config->device_count == 16) {
			fprintf(stderr, "More than 16 devices\n");
			exit(2);
		}
		devices[config->device_count].size = sizeof(*devices);
		devices[config->device_count].path = name;
		devices[config->device_count++].file_size = config->file_size;
	}
	config->devices = devices;
	config->device = NULL;
	config->file_size = 0;
}

int main(int argc, char **argv)
{
	struct unified_config config = { .size = sizeof(config), .file_size = 1 << 30 };
	struct unified_pipeline_config pipeline = { .size = sizeof(pipeline), .at_end = UNIFIED_AT_END_WRAP };
	struct unified_pipeline_status status = { .size = sizeof(status) };
	struct pollfd waits[2] = { { .events = POLLIN }, { .events = POLLIN } };
	const char *path, *name = argv[0];
	char devices[4096];
	unified_ctx *ctx;
	sigset_t signals;
	int rc;

	if (argc == 6 && !strcmp(argv[1], "-q")) {
		config.queues = strcmp(argv[2], "all") ? (uint32_t)atoi(argv[2]) : UNIFIED_ALL_QUEUES;
		argc -= 2;
		argv += 2;
	}
	/* All digits: a port. Anything else: the path of a socket. */
	path = argc == 4 && argv[3][strspn(argv[3], "0123456789")] ? argv[3] : NULL;
	if (argc != 4 || strlen(argv[2]) >= sizeof(devices) || (!path && (atoi(argv[3]) < 1 || atoi(argv[3]) > 65535)))
		return fprintf(stderr, "usage: %s [-q QUEUES|all] IFACE DEVICE[,DEVICE...] HTTP_PORT|SOCKET\n", name), 2;
	strcpy(devices, argv[2]);
	sigemptyset(&signals);
	sigaddset(&signals, SIGINT);
	sigaddset(&signals, SIGTERM);
	sigprocmask(SIG_BLOCK, &signals, NULL);
	/* Writing to a client that is gone is no reason to end. */
	signal(SIGPIPE, SIG_IGN);
	waits[0].fd = signalfd(-1, &signals, SFD_CLOEXEC);
	waits[1].fd = path ? socket_at(path) : listener(atoi(argv[3]));
	if (waits[0].fd < 0 || waits[1].fd < 0)
		return perror("listening"), 1;
	config.ifname = argv[1];
	name_devices(&config, devices);
	if (unified_ctx_create(&config, &ctx) < 0 || unified_pipeline_start(ctx, &pipeline) < 0)
		return fail("recording", unified_last_error());
	printf(path ? "Recording %s to %s; %s\n" : "Recording %s to %s; http://127.0.0.1:%s/metrics\n", argv[1], argv[2], argv[3]);
	fflush(stdout);
	do {
		poll(waits, 2, -1);
		if (waits[1].revents)
			answer(waits[1].fd, ctx);
	} while (!waits[0].revents);
	rc = unified_pipeline_stop(ctx, &status);
	if (rc < 0)
		fail("stopping", unified_last_error());
	printf("Stored %" PRIu64 " of %" PRIu64 "\n", status.stored, status.submitted);
	unified_ctx_destroy(ctx);
	if (path && is_ours(path))
		unlink(path);
	return rc < 0 || status.stored != status.submitted;
}
