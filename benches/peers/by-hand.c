/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/*
 * A recorder as one writes it by hand with sockets: recvmmsg of up to 1024 datagrams, packed into aligned
 * buffers of 1 MiB, each written by a second thread with one O_DIRECT pwrite while the next one fills.
 *
 *     by-hand [--latency] [--buffered] PORT FILE
 *
 * FILE exists and is written round and round. A record is 16 bytes (length, zero, time) and the payload.
 * Prints "ready", records until SIGINT or SIGTERM, then key=value. A buffer that is not full is written when
 * nothing has come for 10 ms.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <inttypes.h>
#include <netinet/in.h>
#include <pthread.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#define BATCH 1024
#define DATAGRAM 2048
#define BUFFER (1u << 20)
#define BUFFERS 8
#define BLOCK 4096
#define SAMPLES (8u << 20)

struct record {
	uint32_t len;
	uint32_t zero;
	uint64_t time;
};

/* One filler, one writer; `filled` and `written` count buffers. */
static unsigned char *buffers[BUFFERS];
static size_t lengths[BUFFERS];
static uint64_t filled, written;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t changed = PTHREAD_COND_INITIALIZER;
static bool done;

static volatile sig_atomic_t stopping;
static int file;
static uint64_t file_size;
static uint64_t stored, stored_bytes, writes, receives;

/* The times of the packets in each buffer, if latency is measured. */
static bool timed;
static uint64_t *times[BUFFERS];
static size_t time_counts[BUFFERS];
static uint32_t *samples;
static size_t sample_count;

static void stop(int signal)
{
	(void)signal;
	stopping = 1;
}

static void fail(const char *what)
{
	perror(what);
	exit(1);
}

static uint64_t wall(void)
{
	struct timespec t;

	clock_gettime(CLOCK_REALTIME, &t);
	return t.tv_sec * 1000000000ull + t.tv_nsec;
}

static void *writer(void *unused)
{
	uint64_t at = 0;

	(void)unused;
	for (;;) {
		size_t index = written % BUFFERS;

		pthread_mutex_lock(&lock);
		while (filled == written && !done)
			pthread_cond_wait(&changed, &lock);
		if (filled == written) {
			pthread_mutex_unlock(&lock);
			return NULL;
		}
		pthread_mutex_unlock(&lock);
		if (at + lengths[index] > file_size)
			at = 0;
		if (pwrite(file, buffers[index], lengths[index], at) != (ssize_t)lengths[index])
			fail("pwrite");
		at += lengths[index];
		writes++;
		if (timed) {
			uint64_t now = wall();

			for (size_t i = 0; i < time_counts[index] && sample_count < SAMPLES; i++)
				samples[sample_count++] = now - times[index][i];
		}
		pthread_mutex_lock(&lock);
		written++;
		pthread_cond_signal(&changed);
		pthread_mutex_unlock(&lock);
	}
}

/* Hands the buffer over and waits for a free one. */
static void hand_over(size_t used)
{
	size_t index = filled % BUFFERS;
	size_t len = (used + BLOCK - 1) / BLOCK * BLOCK;

	memset(buffers[index] + used, 0, len - used);
	lengths[index] = len;
	pthread_mutex_lock(&lock);
	filled++;
	pthread_cond_signal(&changed);
	while (filled - written == BUFFERS)
		pthread_cond_wait(&changed, &lock);
	pthread_mutex_unlock(&lock);
	time_counts[filled % BUFFERS] = 0;
}

static uint64_t time_of(struct msghdr *header)
{
	struct cmsghdr *c = CMSG_FIRSTHDR(header);
	struct timespec t;

	if (!c || c->cmsg_type != SCM_TIMESTAMPNS)
		return wall();
	memcpy(&t, CMSG_DATA(c), sizeof(t));
	return t.tv_sec * 1000000000ull + t.tv_nsec;
}

static void record(int fd)
{
	static unsigned char staging[BATCH][DATAGRAM];
	static unsigned char control[BATCH][CMSG_SPACE(sizeof(struct timespec))];
	static struct mmsghdr messages[BATCH];
	static struct iovec pieces[BATCH];
	size_t used = 0;

	for (int i = 0; i < BATCH; i++) {
		pieces[i] = (struct iovec){ staging[i], DATAGRAM };
		messages[i].msg_hdr.msg_iov = &pieces[i];
		messages[i].msg_hdr.msg_iovlen = 1;
	}
	puts("ready");
	fflush(stdout);
	while (!stopping) {
		int count;

		for (int i = 0; timed && i < BATCH; i++) {
			messages[i].msg_hdr.msg_control = control[i];
			messages[i].msg_hdr.msg_controllen = sizeof(control[i]);
		}
		/* Waits for the first, takes what is there. */
		count = recvmmsg(fd, messages, BATCH, MSG_WAITFORONE, NULL);
		receives++;
		if (count < 0) {
			if (errno != EAGAIN && errno != EINTR)
				fail("recvmmsg");
			if (used > 0)
				hand_over(used);
			used = 0;
			continue;
		}
		for (int i = 0; i < count; i++) {
			struct record head = { .len = messages[i].msg_len };
			size_t index;

			if (used + sizeof(head) + head.len > BUFFER) {
				hand_over(used);
				used = 0;
			}
			index = filled % BUFFERS;
			if (timed) {
				head.time = time_of(&messages[i].msg_hdr);
				times[index][time_counts[index]++] = head.time;
			}
			memcpy(buffers[index] + used, &head, sizeof(head));
			memcpy(buffers[index] + used + sizeof(head), staging[i], head.len);
			used += sizeof(head) + head.len;
			stored_bytes += head.len;
		}
		stored += count;
	}
	if (used > 0)
		hand_over(used);
}

static int by_value(const void *a, const void *b)
{
	uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;

	return (x > y) - (x < y);
}

int main(int argc, char **argv)
{
	static const struct option options[] = {
		{ "latency", no_argument, NULL, 'l' }, { "buffered", no_argument, NULL, 'b' }, { NULL, 0, NULL, 0 },
	};
	struct sigaction action = { .sa_handler = stop };
	struct timeval idle = { .tv_usec = 10000 };
	struct sockaddr_in any = { .sin_family = AF_INET };
	int fd, option, one = 1, room = 64 << 20, flags = O_DIRECT;
	struct rusage used;
	struct stat status;
	pthread_t thread;

	while ((option = getopt_long(argc, argv, "", options, NULL)) != -1) {
		switch (option) {
		case 'l':
			timed = true;
			break;
		case 'b':
			flags = 0;
			break;
		default:
			return 2;
		}
	}
	if (argc - optind != 2) {
		fprintf(stderr, "usage: %s [--latency] [--buffered] PORT FILE\n", argv[0]);
		return 2;
	}
	sigaction(SIGINT, &action, NULL);
	sigaction(SIGTERM, &action, NULL);
	file = open(argv[optind + 1], O_WRONLY | flags);
	if (file < 0 || fstat(file, &status) < 0)
		fail(argv[optind + 1]);
	file_size = status.st_size / BUFFER * BUFFER;
	/* In transparent huge pages, if the kernel gives them. */
	if (posix_memalign((void **)&buffers[0], 2 << 20, BUFFERS * BUFFER) != 0)
		fail("posix_memalign");
	madvise(buffers[0], BUFFERS * BUFFER, MADV_HUGEPAGE);
	memset(buffers[0], 0, BUFFERS * BUFFER);
	for (int i = 0; i < BUFFERS; i++) {
		buffers[i] = buffers[0] + i * BUFFER;
		if (timed)
			times[i] = malloc(BUFFER / sizeof(struct record) * sizeof(uint64_t));
	}
	if (timed)
		samples = malloc(SAMPLES * sizeof(*samples));
	any.sin_port = htons(strtoul(argv[optind], NULL, 10));
	fd = socket(AF_INET, SOCK_DGRAM, 0);
	if (fd < 0 || setsockopt(fd, SOL_SOCKET, SO_RCVBUFFORCE, &room, sizeof(room)) < 0 ||
	    setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &idle, sizeof(idle)) < 0 ||
	    (timed && setsockopt(fd, SOL_SOCKET, SO_TIMESTAMPNS, &one, sizeof(one)) < 0) ||
	    bind(fd, (struct sockaddr *)&any, sizeof(any)) < 0)
		fail("socket");
	if (pthread_create(&thread, NULL, writer, NULL) != 0)
		fail("pthread_create");
	record(fd);
	pthread_mutex_lock(&lock);
	done = true;
	pthread_cond_signal(&changed);
	pthread_mutex_unlock(&lock);
	pthread_join(thread, NULL);
	if (fdatasync(file) < 0)
		fail("fdatasync");
	getrusage(RUSAGE_SELF, &used);
	printf("stored=%" PRIu64 "\npayload_bytes=%" PRIu64 "\noperations=%" PRIu64 "\nreceives=%" PRIu64 "\n", stored,
	       stored_bytes, writes, receives);
	printf("user_cpu=%.6f\nsystem_cpu=%.6f\n", used.ru_utime.tv_sec + used.ru_utime.tv_usec / 1e6,
	       used.ru_stime.tv_sec + used.ru_stime.tv_usec / 1e6);
	if (sample_count > 0) {
		qsort(samples, sample_count, sizeof(*samples), by_value);
		printf("samples=%zu\np50_ns=%" PRIu32 "\np99_ns=%" PRIu32 "\np999_ns=%" PRIu32 "\n", sample_count,
		       samples[sample_count / 2], samples[sample_count * 99 / 100],
		       samples[sample_count * 999 / 1000]);
	}
	return 0;
}
