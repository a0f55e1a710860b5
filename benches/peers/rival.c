/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/*
 * The rival: a recorder on AF_XDP that copies every packet, written by hand with libxdp, libbpf and liburing, as fast
 * as we could make it.
 *
 *     rival [OPTIONS] OBJECT IFACE FILE
 *
 *     --payload         store the UDP payload; default: the frame from its Ethernet header on
 *     --writer HOW      thread: a second thread writes with io_uring, several writes in flight (default)
 *                       inline: the receiving thread does the same itself
 *                       pwrite: a second thread writes one buffer after the other
 *                       null: buffers are thrown away
 *     --wait HOW        sleep (default): --sleep us after the ring was emptied. poll: until a packet is there
 *     --sleep US        at most 1000 (default 1000)
 *     --depth N         writes in flight (default 8)
 *     --batch N         descriptors taken at a time (default 256)
 *     --frames N        of 2048 bytes; also the size of both rings (default 32768)
 *
 * OBJECT is rival.bpf.o. FILE must exist; when it is full, writing goes on at its start. A record is a header of 16
 * bytes (length, flags, time), the packet, and up to 3 zero bytes, so that records start at multiples of 4 bytes.
 * Buffers of 1 MiB are written with O_DIRECT when they are full, or after 10 ms without a packet. If a length is 0, the
 * next record is at the next multiple of 4096 bytes. The time is that of the batch in which the packet was taken.
 *
 * Prints "ready", records until SIGINT or SIGTERM, then prints key=value.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <inttypes.h>
#include <liburing.h>
#include <linux/if_link.h>
#include <net/if.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>
#include <bpf/bpf.h>
#include <bpf/libbpf.h>
#include <xdp/xsk.h>

#define FRAME 2048u
#define HUGE (2ul << 20)
#define BUFFER (1u << 20)
#define BUFFERS 16u
#define BLOCK 4096u
#define UDP_HEADERS 42u
/* Packets whose bytes are fetched ahead of the copy. */
#define AHEAD 4
#define FLUSH_NS 10000000ull
#define WAKE_UP UINT64_MAX

struct record {
	uint32_t len;
	uint32_t flags;
	uint64_t time;
};

enum writer { WRITER_THREAD, WRITER_INLINE, WRITER_PWRITE, WRITER_NULL };

static enum writer how;
static uint32_t depth = 8, frames = 32768, batch = 256, sleep_us = 1000;
static bool payload_only, polling;
static volatile sig_atomic_t stopping;

/* The receiver fills buffers in turn, the writer writes them in turn; completions may come out of turn. */
static unsigned char *buffers, *buffer;
static size_t used;
static size_t lengths[BUFFERS];
static _Atomic uint64_t filled, written;
static _Atomic bool done;
static int filled_event;

static int file;
static uint64_t file_size, file_at, operations, device_bytes;
static uint64_t stored, payload_bytes, stored_bytes;

static struct io_uring ring;
static bool finished[BUFFERS];
static uint64_t submitted;
static uint32_t in_flight;

static struct xsk_ring_prod fill;
static struct xsk_ring_cons rx, completion;
static struct xsk_socket *xsk;
static unsigned char *umem_area;

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

static void check(int ret, const char *what)
{
	if (ret >= 0)
		return;
	errno = -ret;
	fail(what);
}

static uint64_t now(clockid_t clock)
{
	struct timespec t;

	clock_gettime(clock, &t);
	return t.tv_sec * 1000000000ull + t.tv_nsec;
}

/* In reserved huge pages if there are any, else in transparent ones if the kernel gives them. */
static unsigned char *huge_area(size_t size)
{
	unsigned char *at;

	size = (size + HUGE - 1) / HUGE * HUGE;
	at = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_HUGETLB, -1, 0);
	if (at != MAP_FAILED)
		return at;
	at = mmap(NULL, size + HUGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (at == MAP_FAILED)
		fail("mmap");
	at += -(uintptr_t)at % HUGE;
	madvise(at, size, MADV_HUGEPAGE);
	memset(at, 0, size);
	return at;
}

/* --- writing */

static uint64_t place(size_t len)
{
	uint64_t at;

	if (file_at + len > file_size)
		file_at = 0;
	at = file_at;
	file_at += len;
	operations++;
	device_bytes += len;
	return at;
}

static void open_ring(void)
{
	struct io_uring_params params = {
		.flags = IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_DEFER_TASKRUN,
	};
	struct iovec all = { buffers, BUFFERS * BUFFER };

	check(io_uring_queue_init_params(2 * BUFFERS, &ring, &params), "io_uring_queue_init");
	check(io_uring_register_buffers(&ring, &all, 1), "io_uring_register_buffers");
	check(io_uring_register_files(&ring, &file, 1), "io_uring_register_files");
}

/* Queues filled buffers while there is room in flight. */
static void queue_writes(void)
{
	uint64_t end = atomic_load_explicit(&filled, memory_order_acquire);

	while (submitted < end && in_flight < depth) {
		size_t index = submitted % BUFFERS;
		struct io_uring_sqe *sqe = io_uring_get_sqe(&ring);

		io_uring_prep_write_fixed(sqe, 0, buffers + index * BUFFER, lengths[index], place(lengths[index]), 0);
		sqe->flags |= IOSQE_FIXED_FILE;
		io_uring_sqe_set_data64(sqe, index);
		submitted++;
		in_flight++;
	}
}

/* Returns whether somebody has signalled `filled_event`. */
static bool take_completions(void)
{
	struct io_uring_cqe *cqe;
	unsigned head, count = 0;
	bool woken = false;
	uint64_t free;

	io_uring_for_each_cqe(&ring, head, cqe) {
		count++;
		if (cqe->user_data == WAKE_UP) {
			woken = true;
			continue;
		}
		if (cqe->res < 0 || (size_t)cqe->res != lengths[cqe->user_data]) {
			fprintf(stderr, "a write of %zu bytes returned %d\n", lengths[cqe->user_data], cqe->res);
			exit(1);
		}
		finished[cqe->user_data] = true;
		in_flight--;
	}
	io_uring_cq_advance(&ring, count);
	free = atomic_load_explicit(&written, memory_order_relaxed);
	while (free < submitted && finished[free % BUFFERS])
		finished[free++ % BUFFERS] = false;
	atomic_store_explicit(&written, free, memory_order_release);
	return woken;
}

static void *uring_writer(void *unused)
{
	uint64_t count;
	bool armed = false;

	(void)unused;
	open_ring();
	for (;;) {
		bool last = atomic_load_explicit(&done, memory_order_acquire);

		queue_writes();
		if (last && !in_flight && submitted == atomic_load(&filled))
			return NULL;
		if (!armed) {
			struct io_uring_sqe *sqe = io_uring_get_sqe(&ring);

			io_uring_prep_read(sqe, filled_event, &count, sizeof(count), 0);
			io_uring_sqe_set_data64(sqe, WAKE_UP);
			armed = true;
		}
		check(io_uring_submit_and_wait(&ring, 1), "io_uring_submit_and_wait");
		if (take_completions())
			armed = false;
	}
}

static void *pwrite_writer(void *unused)
{
	uint64_t count, next = 0;

	(void)unused;
	for (;;) {
		bool last = atomic_load_explicit(&done, memory_order_acquire);
		size_t index = next % BUFFERS;

		if (next == atomic_load_explicit(&filled, memory_order_acquire)) {
			if (last)
				return NULL;
			if (read(filled_event, &count, sizeof(count)) < 0 && errno != EINTR)
				fail("eventfd");
			continue;
		}
		if (pwrite(file, buffers + index * BUFFER, lengths[index], place(lengths[index])) !=
		    (ssize_t)lengths[index])
			fail("pwrite");
		atomic_store_explicit(&written, ++next, memory_order_release);
	}
}

static void wake_writer(void)
{
	uint64_t one = 1;

	if (write(filled_event, &one, sizeof(one)) < 0)
		fail("eventfd");
}

/* Submits and completes without waiting. */
static void write_inline(void)
{
	if (io_uring_cq_ready(&ring) || in_flight)
		check(io_uring_get_events(&ring), "io_uring_get_events");
	take_completions();
	queue_writes();
	if (io_uring_sq_ready(&ring))
		check(io_uring_submit(&ring), "io_uring_submit");
}

/* Hands over the buffer that is being filled, and waits until the next one is free. */
static void hand_over(void)
{
	uint64_t next = atomic_load_explicit(&filled, memory_order_relaxed);
	size_t len = (used + BLOCK - 1) / BLOCK * BLOCK;

	memset(buffer + used, 0, len - used);
	lengths[next % BUFFERS] = len;
	atomic_store_explicit(&filled, ++next, memory_order_release);
	if (how == WRITER_NULL) {
		place(len);
		atomic_store_explicit(&written, next, memory_order_relaxed);
	} else if (how == WRITER_INLINE) {
		write_inline();
		while (next - written == BUFFERS) {
			check(io_uring_submit_and_wait(&ring, 1), "io_uring_submit_and_wait");
			take_completions();
			queue_writes();
		}
	} else {
		wake_writer();
		while (next - atomic_load_explicit(&written, memory_order_acquire) == BUFFERS) {
			struct timespec pause = { .tv_nsec = 100000 };

			nanosleep(&pause, NULL);
		}
	}
	buffer = buffers + next % BUFFERS * BUFFER;
	used = 0;
}

/* --- receiving */

/* The whole packet: the processor's own prefetcher starts anew, and slowly, with each packet. */
static void prefetch(const unsigned char *packet, size_t len)
{
	for (size_t at = 0; at < len; at += 64)
		__builtin_prefetch(packet + at);
}

static void wait_for_packets(void)
{
	if (polling) {
		struct pollfd fd = { .fd = xsk_socket__fd(xsk), .events = POLLIN };

		poll(&fd, 1, 10);
	} else {
		struct timespec pause = { .tv_nsec = sleep_us * 1000 };

		nanosleep(&pause, NULL);
	}
}

/* Copies packets into the buffer, and gives their frames back to the fill ring. */
static void copy(uint32_t from, uint32_t to, unsigned count)
{
	uint64_t time = now(CLOCK_REALTIME);

	for (unsigned i = 0; i < count && i < AHEAD; i++) {
		const struct xdp_desc *d = xsk_ring_cons__rx_desc(&rx, from + i);

		prefetch(umem_area + d->addr, d->len);
	}
	for (unsigned i = 0; i < count; i++) {
		const struct xdp_desc *d = xsk_ring_cons__rx_desc(&rx, from + i);
		const unsigned char *packet = umem_area + d->addr;
		uint32_t len = d->len, space;
		struct record head;

		if (i + AHEAD < count) {
			const struct xdp_desc *next = xsk_ring_cons__rx_desc(&rx, from + i + AHEAD);

			prefetch(umem_area + next->addr, next->len);
		}
		*xsk_ring_prod__fill_addr(&fill, to + i) = d->addr;
		payload_bytes += len - UDP_HEADERS;
		if (payload_only) {
			packet += UDP_HEADERS;
			len -= UDP_HEADERS;
		}
		space = (sizeof(head) + len + 3) & ~3u;
		if (used + space > BUFFER)
			hand_over();
		head = (struct record){ .len = len, .time = time };
		/* Padding first: the packet overwrites what is not padding. */
		memset(buffer + used + space - 4, 0, 4);
		memcpy(buffer + used, &head, sizeof(head));
		memcpy(buffer + used + sizeof(head), packet, len);
		used += space;
		stored_bytes += len;
	}
	stored += count;
}

static void record(void)
{
	uint64_t idle_since = 0;

	puts("ready");
	fflush(stdout);
	for (;;) {
		/* Read before the ring, so that all packets that came before the signal are stored. */
		bool ending = stopping;
		uint32_t from = 0, to = 0;
		unsigned count = xsk_ring_cons__peek(&rx, batch, &from);

		if (xsk_ring_prod__needs_wakeup(&fill))
			recvfrom(xsk_socket__fd(xsk), NULL, 0, MSG_DONTWAIT, NULL, NULL);
		if (count > 0) {
			idle_since = 0;
			/*
			 * There is room for the frames that were received. But the kernel publishes received packets
			 * an instant before it publishes what it took from the fill ring.
			 */
			while (xsk_ring_prod__reserve(&fill, count, &to) != count)
				;
			copy(from, to, count);
			xsk_ring_cons__release(&rx, count);
			xsk_ring_prod__submit(&fill, count);
		}
		if (count == batch)
			continue;
		/* The ring is empty. The next packets are cheaper to take in one batch, later. */
		if (ending)
			break;
		if (how == WRITER_INLINE && (in_flight || submitted < filled))
			write_inline();
		if (!idle_since)
			idle_since = now(CLOCK_MONOTONIC);
		else if (used > 0 && now(CLOCK_MONOTONIC) - idle_since > FLUSH_NS)
			hand_over();
		wait_for_packets();
	}
	if (used > 0)
		hand_over();
	while (how == WRITER_INLINE && (in_flight || submitted < filled)) {
		check(io_uring_submit_and_wait(&ring, 1), "io_uring_submit_and_wait");
		take_completions();
		queue_writes();
	}
}

static struct bpf_object *attach(const char *path, unsigned ifindex, int *map)
{
	struct bpf_object *object = bpf_object__open_file(path, NULL);
	struct bpf_program *program;

	if (!object || bpf_object__load(object) < 0)
		fail(path);
	program = bpf_object__find_program_by_name(object, "rival");
	*map = bpf_object__find_map_fd_by_name(object, "sockets");
	if (!program || *map < 0)
		fail(path);
	check(bpf_xdp_attach(ifindex, bpf_program__fd(program), XDP_FLAGS_DRV_MODE, NULL), "bpf_xdp_attach");
	return object;
}

static struct xsk_umem *open_socket(const char *interface)
{
	struct xsk_umem_config umem_config = {
		.fill_size = frames,
		.comp_size = 64,
		.frame_size = FRAME,
		.frame_headroom = 0,
	};
	struct xsk_socket_config config = {
		.rx_size = frames,
		.libxdp_flags = XSK_LIBXDP_FLAGS__INHIBIT_PROG_LOAD,
		.bind_flags = XDP_USE_NEED_WAKEUP,
	};
	struct xsk_umem *umem;
	uint32_t at = 0;

	umem_area = huge_area((size_t)frames * FRAME);
	check(xsk_umem__create(&umem, umem_area, (uint64_t)frames * FRAME, &fill, &completion, &umem_config),
	      "xsk_umem__create");
	if (xsk_ring_prod__reserve(&fill, frames, &at) != frames)
		fail("fill ring");
	for (uint32_t i = 0; i < frames; i++)
		*xsk_ring_prod__fill_addr(&fill, at + i) = (uint64_t)i * FRAME;
	xsk_ring_prod__submit(&fill, frames);
	check(xsk_socket__create(&xsk, interface, 0, umem, &rx, NULL, &config), "xsk_socket__create");
	return umem;
}

static int one_of(const char *value, const char *const *names)
{
	for (int i = 0; names[i]; i++)
		if (strcmp(value, names[i]) == 0)
			return i;
	fprintf(stderr, "'%s' is not known\n", value);
	exit(2);
}

static uint32_t number(const char *value, uint32_t most)
{
	unsigned long n = strtoul(value, NULL, 10);

	if (n >= 1 && n <= most)
		return n;
	fprintf(stderr, "'%s': 1 to %" PRIu32 "\n", value, most);
	exit(2);
}

int main(int argc, char **argv)
{
	static const struct option options[] = {
		{ "payload", no_argument, NULL, 'p' },	   { "writer", required_argument, NULL, 'w' },
		{ "wait", required_argument, NULL, 'W' },  { "sleep", required_argument, NULL, 's' },
		{ "depth", required_argument, NULL, 'd' }, { "frames", required_argument, NULL, 'f' },
		{ "batch", required_argument, NULL, 'b' }, { NULL, 0, NULL, 0 },
	};
	static const char *const writers[] = { "thread", "inline", "pwrite", "null", NULL };
	static const char *const waits[] = { "sleep", "poll", NULL };
	struct sigaction action = { .sa_handler = stop };
	struct xdp_statistics statistics = { 0 };
	socklen_t length = sizeof(statistics);
	struct bpf_object *object;
	struct xsk_umem *umem;
	struct rusage usage;
	struct stat status;
	unsigned ifindex;
	pthread_t thread;
	int option, map;

	while ((option = getopt_long(argc, argv, "", options, NULL)) != -1) {
		switch (option) {
		case 'p':
			payload_only = true;
			break;
		case 'w':
			how = one_of(optarg, writers);
			break;
		case 'W':
			polling = one_of(optarg, waits);
			break;
		case 's':
			sleep_us = number(optarg, 1000);
			break;
		case 'd':
			depth = number(optarg, BUFFERS - 1);
			break;
		case 'f':
			frames = number(optarg, 1 << 20);
			break;
		case 'b':
			batch = number(optarg, 4096);
			break;
		default:
			return 2;
		}
	}
	if (argc - optind != 3) {
		fprintf(stderr, "usage: %s [OPTIONS] OBJECT IFACE FILE\n", argv[0]);
		return 2;
	}
	sigaction(SIGINT, &action, NULL);
	sigaction(SIGTERM, &action, NULL);
	prctl(PR_SET_TIMERSLACK, 1);
	ifindex = if_nametoindex(argv[optind + 1]);
	if (!ifindex)
		fail(argv[optind + 1]);
	buffer = buffers = huge_area(BUFFERS * BUFFER);
	if (how != WRITER_NULL) {
		file = open(argv[optind + 2], O_WRONLY | O_DIRECT);
		if (file < 0 || fstat(file, &status) < 0)
			fail(argv[optind + 2]);
		file_size = status.st_size / BUFFER * BUFFER;
	}
	filled_event = eventfd(0, 0);
	if (filled_event < 0)
		fail("eventfd");
	if (how == WRITER_INLINE)
		open_ring();
	if ((how == WRITER_THREAD && pthread_create(&thread, NULL, uring_writer, NULL) != 0) ||
	    (how == WRITER_PWRITE && pthread_create(&thread, NULL, pwrite_writer, NULL) != 0))
		fail("pthread_create");
	umem = open_socket(argv[optind + 1]);
	object = attach(argv[optind], ifindex, &map);
	check(xsk_socket__update_xskmap(xsk, map), "xsk_socket__update_xskmap");

	record();

	if (how == WRITER_THREAD || how == WRITER_PWRITE) {
		atomic_store(&done, true);
		wake_writer();
		pthread_join(thread, NULL);
	}
	if (how != WRITER_NULL && fdatasync(file) < 0)
		fail("fdatasync");
	bpf_xdp_detach(ifindex, XDP_FLAGS_DRV_MODE, NULL);
	if (getsockopt(xsk_socket__fd(xsk), SOL_XDP, XDP_STATISTICS, &statistics, &length) < 0)
		fail("XDP_STATISTICS");
	getrusage(RUSAGE_SELF, &usage);
	printf("stored=%" PRIu64 "\nstored_bytes=%" PRIu64 "\npayload_bytes=%" PRIu64 "\noperations=%" PRIu64
	       "\ndevice_bytes=%" PRIu64 "\n",
	       stored, stored_bytes, payload_bytes, operations, device_bytes);
	printf("rx_dropped=%llu\nrx_ring_full=%llu\nfill_empty=%llu\n", (unsigned long long)statistics.rx_dropped,
	       (unsigned long long)statistics.rx_ring_full, (unsigned long long)statistics.rx_fill_ring_empty_descs);
	printf("user_cpu=%.6f\nsystem_cpu=%.6f\n", usage.ru_utime.tv_sec + usage.ru_utime.tv_usec / 1e6,
	       usage.ru_stime.tv_sec + usage.ru_stime.tv_usec / 1e6);
	xsk_socket__delete(xsk);
	xsk_umem__delete(umem);
	bpf_object__close(object);
	return 0;
}
