/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/*
 * Records a port with a pipeline, and answers http://127.0.0.1:HTTP_PORT/metrics for Prometheus and unified-top (or the
 * same on a Unix socket), all but the pipeline's own work in one thread. It answers one request after the other, whatever
 * they ask for, and reads nothing else.
 *
 *     metrics IFACE DEVICE HTTP_PORT|SOCKET
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

/* Room for the text; one that is longer is an error and not cut. */
#define TEXT (64 << 10)

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

static void answer(int listening, unified_ctx *ctx)
{
	static char text[TEXT], request[4096];
	struct timeval patience = { .tv_sec = 1 };
	struct timespec begun, now;
	int fd = accept4(listening, NULL, NULL, SOCK_CLOEXEC), length = unified_stats_render(ctx, text, sizeof(text));
	int good = length >= 0 && length < TEXT;

	if (fd < 0)
		return;
	clock_gettime(CLOCK_MONOTONIC, &begun);
	setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof(patience));
	setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &patience, sizeof(patience));
	if (recv(fd, request, sizeof(request), 0) > 0) {
		const char *body = good ? text : unified_last_error();

		dprintf(fd, "HTTP/1.1 %s\r\nContent-Type: %s; charset=utf-8\r\nContent-Length: %zu\r\nConnection: close\r\n\r\n",
			good ? "200 OK" : "500 Internal Server Error",
			good ? "application/openmetrics-text; version=1.0.0" : "text/plain", strlen(body));
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

int main(int argc, char **argv)
{
	struct unified_config config = { .size = sizeof(config), .file_size = 1 << 30 };
	struct unified_pipeline_config pipeline = { .size = sizeof(pipeline), .at_end = UNIFIED_AT_END_WRAP };
	struct unified_pipeline_status status = { .size = sizeof(status) };
	struct pollfd waits[2] = { { .events = POLLIN }, { .events = POLLIN } };
	const char *path;
	unified_ctx *ctx;
	sigset_t signals;
	int rc;

	/* All digits: a port. Anything else: the path of a socket. */
	path = argc == 4 && argv[3][strspn(argv[3], "0123456789")] ? argv[3] : NULL;
	if (argc != 4 || (!path && (atoi(argv[3]) < 1 || atoi(argv[3]) > 65535)))
		return fprintf(stderr, "usage: %s IFACE DEVICE HTTP_PORT|SOCKET\n", argv[0]), 2;
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
	config.device = argv[2];
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
