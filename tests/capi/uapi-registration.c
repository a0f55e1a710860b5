// SPDX-License-Identifier: MIT OR Apache-2.0
/*
 * A program of the documented registration interface: system calls and stores, nothing of the library's.
 * Built with the flags of unified-uapi.pc only.
 *
 *   uapi-registration MODE DEVICE [NUMBER]
 *
 * It exits with 0 if all that MODE tries is as the interface says, and says what did not.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#ifdef OWN_NVME_COMMAND
/* As in linux/nvme_ioctl.h: the headers must not get in the way of a program that has its own. */
struct nvme_uring_cmd {
	__UINT8_TYPE__ opcode, flags;
	__UINT16_TYPE__ rsvd1;
	__UINT32_TYPE__ nsid, cdw2, cdw3;
	__UINT64_TYPE__ metadata, addr;
	__UINT32_TYPE__ metadata_len, data_len, cdw10, cdw11, cdw12, cdw13, cdw14, cdw15, timeout_ms, rsvd2;
};
#elif defined(SYSTEM_NVME_COMMAND)
#include <linux/nvme_ioctl.h>
#endif
#ifdef RELATIVE_HEADERS
#include "../../../../include/uapi/linux/io_uring.h"
#include "../../../../include/uapi/linux/io_uring_unified.h"

_Static_assert(IORING_REGISTER_UNIFIED_IFQ == 33 && IORING_UNREGISTER_UNIFIED_IFQ == 34 && IORING_REGISTER_ZCRX_IFQ == 32,
	       "programs use these names");
#else
#include <linux/io_uring.h>
#include <linux/io_uring_unified.h>
#endif

#define ENTRIES 256
#define FRAMES 64
#define FRAME 4096

#define CHECK(condition, ...)                                                          \
	do {                                                                           \
		if (!(condition)) {                                                    \
			fprintf(stderr, "%s:%d: %s: ", __FILE__, __LINE__, #condition); \
			fprintf(stderr, __VA_ARGS__);                                  \
			fprintf(stderr, " (errno %d: %s)\n", errno, strerror(errno));  \
			exit(1);                                                       \
		}                                                                      \
	} while (0)

struct program {
	int ring;
	char *region;
	size_t size;
	struct io_uring_region_desc desc;
	struct io_unified_reg reg;
	volatile struct io_unified_ring *sq, *cq;
	volatile struct io_unified_sqe *sqes;
	volatile struct io_unified_cqe *cqes;
	char *buffers;
};

static int make_ring(unsigned int flags)
{
	struct io_uring_params params;

	memset(&params, 0, sizeof(params));
	params.flags = flags;
	return (int)syscall(__NR_io_uring_setup, 256, &params);
}

/* The plain sum of the parts, as programs compute it: less than what is laid out, until it is rounded up. */
static size_t plain_size(unsigned int sq, unsigned int cq, size_t buffers)
{
	return 2 * sizeof(struct io_unified_ring) + sq * sizeof(struct io_unified_sqe) +
	       cq * sizeof(struct io_unified_cqe) + buffers;
}

static void prepare(struct program *p, const char *device)
{
	memset(p, 0, sizeof(*p));
	p->ring = make_ring(IORING_SETUP_DEFER_TASKRUN | IORING_SETUP_CQE32 | IORING_SETUP_SQE128);
	CHECK(p->ring >= 0, "io_uring_setup");
	p->size = plain_size(ENTRIES, ENTRIES, FRAMES * FRAME);
	/* The descriptor means nothing beside MAP_ANONYMOUS; some pass it. */
	p->region = mmap(NULL, p->size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, p->ring, 0);
	CHECK(p->region != MAP_FAILED, "mmap");
	p->desc.user_addr = (uintptr_t)p->region;
	p->desc.size = p->size;
	p->desc.flags = 1;
	p->reg.region_ptr = (uintptr_t)&p->desc;
	p->reg.nvme_dev_path = (uintptr_t)device;
	p->reg.sq_entries = ENTRIES;
	p->reg.cq_entries = ENTRIES;
	p->reg.buffer_entries = FRAMES;
	p->reg.buffer_entry_size = FRAME;
}

static int call_register(struct program *p)
{
	return (int)syscall(__NR_io_uring_register, p->ring, 33, &p->reg, 1);
}

static int call_unregister(struct program *p)
{
	return (int)syscall(__NR_io_uring_register, p->ring, 34, NULL, 0);
}

static void start(struct program *p, const char *device)
{
	prepare(p, device);
	CHECK(call_register(p) == 0, "registering with %s", device);
	p->sq = (void *)(p->region + p->reg.offsets.sq_ring);
	p->cq = (void *)(p->region + p->reg.offsets.cq_ring);
	p->sqes = (void *)(p->region + p->reg.offsets.sq_entries);
	p->cqes = (void *)(p->region + p->reg.offsets.cq_entries);
	p->buffers = p->region + p->reg.offsets.buffers;
	CHECK(p->sq->ring_entries == ENTRIES && p->sq->ring_mask == ENTRIES - 1, "SQ ring");
	CHECK(p->cq->ring_entries == ENTRIES && p->cq->ring_mask == ENTRIES - 1, "CQ ring");
	CHECK((uintptr_t)p->buffers % 4096 == 0, "buffers at %p", (void *)p->buffers);
	CHECK(p->reg.offsets.buffers == 36864, "buffers at %llu", (unsigned long long)p->reg.offsets.buffers);
}

static void stop(struct program *p)
{
	CHECK(call_unregister(p) == 0, "unregistering");
	close(p->ring);
	munmap(p->region, p->size);
}

static double now(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

/* No barrier between the entry and the index, no doorbell. */
static void submit(struct program *p, int opcode, uint64_t lba, unsigned int len, const void *data, uint64_t user_data)
{
	uint32_t tail = p->sq->producer;
	volatile struct io_unified_sqe *sqe = &p->sqes[tail & p->sq->ring_mask];

	CHECK(tail - p->sq->consumer < ENTRIES, "the SQ is full");
	memset((void *)sqe, 0, sizeof(*sqe));
	sqe->nvme_cmd.opcode = (__u8)opcode;
	sqe->nvme_cmd.nsid = 1;
	sqe->nvme_cmd.addr = (uintptr_t)data;
	sqe->nvme_cmd.data_len = len;
	sqe->nvme_cmd.cdw10 = (__u32)lba;
	sqe->nvme_cmd.cdw11 = (__u32)(lba >> 32);
	sqe->nvme_cmd.cdw12 = len ? len / 512 - 1 : 0;
	sqe->buf_offset = data ? (uint64_t)((const char *)data - p->buffers) : IO_UNIFIED_NO_BUFFER;
	sqe->user_data = user_data;
	p->sq->producer = tail + 1;
}

static int take(struct program *p, struct io_unified_cqe *out)
{
	uint32_t head = p->cq->consumer;

	if (head == *(volatile __u32 *)&p->cq->producer)
		return 0;
	__atomic_thread_fence(__ATOMIC_ACQUIRE);
	memcpy(out, (const void *)&p->cqes[head & p->cq->ring_mask], sizeof(*out));
	__atomic_thread_fence(__ATOMIC_RELEASE);
	p->cq->consumer = head + 1;
	return 1;
}

static struct io_unified_cqe wait_one(struct program *p)
{
	struct io_unified_cqe cqe;
	double until = now() + 10;

	while (!take(p, &cqe)) {
		CHECK(now() < until, "no completion within 10 s");
		usleep(20);
	}
	return cqe;
}

static struct io_unified_cqe run(struct program *p, int opcode, uint64_t lba, unsigned int len, const void *data)
{
	submit(p, opcode, lba, len, data, 42);
	return wait_one(p);
}

static void pattern(char *at, size_t len, unsigned int seed)
{
	for (size_t i = 0; i < len; i++)
		at[i] = (char)((i * 7 + seed) | 1);
}

/* Writes at an aligned and at a misaligned place, reads back, compares. */
static void mode_roundtrip(const char *device)
{
	struct program p;
	struct io_unified_cqe cqe;

	start(&p, device);
	for (unsigned int place = 0; place < 3; place++) {
		/* 298: where a payload is without any headroom. */
		char *from = p.buffers + place * FRAME + (place ? 296 + place : 0), *to = p.buffers + 8 * FRAME;

		pattern(from, 1536, place);
		cqe = run(&p, 1, place * 3, 1536, from);
		CHECK(cqe.status == 0 && cqe.result == 0 && cqe.len == 1536, "write: status %#x result %d len %u", cqe.status, cqe.result, cqe.len);
		CHECK(cqe.user_data == 42, "user_data %llu", (unsigned long long)cqe.user_data);
		CHECK(cqe.dma_addr == (uint64_t)(from - p.buffers), "dma_addr %llu", (unsigned long long)cqe.dma_addr);
		memset(to, 0, 1536);
		cqe = run(&p, 2, place * 3, 1536, to);
		CHECK(cqe.status == 0 && cqe.len == 1536, "read: status %#x len %u", cqe.status, cqe.len);
		CHECK(memcmp(from, to, 1536) == 0, "what was read differs, place %u", place);
	}
	cqe = run(&p, 0, 0, 0, NULL);
	CHECK(cqe.status == 0, "flush: status %#x", cqe.status);
	stop(&p);
}

static void mode_identify(const char *device)
{
	struct program p;
	struct io_unified_cqe cqe;

	start(&p, device);
	memset((void *)&p.sqes[0], 0, sizeof(p.sqes[0]));
	p.sqes[0].nvme_cmd.opcode = 6;
	p.sqes[0].nvme_cmd.cdw10 = 1;
	p.sqes[0].nvme_cmd.data_len = 4096;
	p.sqes[0].nvme_cmd.addr = (uintptr_t)p.buffers;
	p.sqes[0].user_data = 0x1234;
	p.sq->producer = 1;
	cqe = wait_one(&p);
	CHECK(cqe.status == 0 && cqe.len == 4096 && cqe.user_data == 0x1234, "identify: status %#x", cqe.status);
	CHECK(p.buffers[24] != 0, "no model number");
	printf("Model: %.40s\n", p.buffers + 24);
	stop(&p);
}

static void expect(struct program *p, const char *what, int error)
{
	errno = 0;
	CHECK(call_register(p) == -1 && errno == error, "%s: expected errno %d", what, error);
}

static void mode_errors(const char *device)
{
	struct program p;
	struct io_unified_reg good;
	struct io_uring_region_desc good_desc;
	char *readonly, *private;
	int fd;

	prepare(&p, device);
	good = p.reg;
	good_desc = p.desc;
#define WRONG(statement, error)                      \
	do {                                         \
		statement;                           \
		expect(&p, #statement, error);       \
		p.reg = good;                        \
		p.desc = good_desc;                  \
	} while (0)
	WRONG(p.reg.flags = 1, EINVAL);
	WRONG(p.reg.__resv[1] = 1, EINVAL);
	WRONG(p.reg.sq_entries = 0, EINVAL);
	WRONG(p.reg.cq_entries = 0, EINVAL);
	WRONG(p.reg.buffer_entries = 0, EINVAL);
	WRONG(p.reg.buffer_entry_size = 0, EINVAL);
	WRONG(p.reg.sq_entries = 32769, EINVAL);
	WRONG(p.reg.buffer_entries = FRAMES + 1, EINVAL);
	WRONG(p.desc.size = 4096, EINVAL);
	WRONG(p.desc.size = 0, EINVAL);
	WRONG(p.desc.flags = 2, EINVAL);
	WRONG(p.desc.__resv[3] = 1, EINVAL);
	WRONG(p.desc.user_addr += 64, EINVAL);
	WRONG(p.desc.user_addr = 0, EFAULT);
	WRONG(p.desc.user_addr = 4096, EFAULT);
	WRONG(p.desc.size = 1UL << 46, EFAULT);
	WRONG(p.reg.region_ptr = 0, EFAULT);
	WRONG(p.reg.region_ptr = 1, EFAULT);
	WRONG(p.reg.nvme_dev_path = 0, EFAULT);
	WRONG(p.reg.nvme_dev_path = ~0UL, EFAULT);
	WRONG(p.reg.nvme_dev_path = (uintptr_t) "/nonexistent/nvme0n1", ENOENT);
	readonly = mmap(NULL, p.size, PROT_READ, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	private = mmap(NULL, p.size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	WRONG(p.desc.user_addr = (uintptr_t)readonly, EFAULT);
	WRONG(p.desc.user_addr = (uintptr_t)private, EINVAL);

	errno = 0;
	CHECK(syscall(__NR_io_uring_register, p.ring, 33, NULL, 1) == -1 && errno == EFAULT, "NULL");
	CHECK(syscall(__NR_io_uring_register, p.ring, 33, &p.reg, 2) == -1 && errno == EINVAL, "two");
	fd = p.ring;
	p.ring = -1;
	expect(&p, "no descriptor", EBADF);
	p.ring = 0;
	expect(&p, "no ring", EOPNOTSUPP);
	p.ring = fd;
	errno = 0;
	CHECK(call_unregister(&p) == 0, "nothing is registered");

	CHECK(call_register(&p) == 0, "after all these errors");
	p.reg = good;
	expect(&p, "again", EBUSY);
	CHECK(call_unregister(&p) == 0, "unregistering");
	/* flags 0 are as good as 1, counts are rounded up, and what was given back can be taken again. */
	p.reg = good;
	p.reg.sq_entries = 129;
	p.reg.cq_entries = 255;
	p.desc.flags = 0;
	CHECK(call_register(&p) == 0, "rounded up");
	CHECK(((struct io_unified_ring *)(p.region + p.reg.offsets.sq_ring))->ring_entries == 256, "SQ");
	CHECK(((struct io_unified_ring *)(p.region + p.reg.offsets.cq_ring))->ring_entries == 256, "CQ");
	CHECK(p.reg.sq_entries == 129, "the request is left as it was");
	stop(&p);
}

/* Without CAP_IPC_LOCK and with the small limit, and without the right to the device. */
static void mode_unprivileged(const char *device)
{
	struct rlimit limit = { 65536, 65536 };
	struct program p;

	CHECK(setrlimit(RLIMIT_MEMLOCK, &limit) == 0, "setrlimit");
	CHECK(setgid(65534) == 0 && setuid(65534) == 0, "becoming nobody");
	prepare(&p, "null:");
	expect(&p, "locked memory", ENOMEM);
	p.reg.nvme_dev_path = (uintptr_t)device;
	expect(&p, "no right to the device", EPERM);
	limit.rlim_cur = limit.rlim_max = RLIM_INFINITY;
	CHECK(setrlimit(RLIMIT_MEMLOCK, &limit) == -1 && errno == EPERM, "raising the limit");
}

/* With CAP_IPC_LOCK nothing limits locked memory: raising the limit succeeds whatever the kernel says. */
static void mode_rlimit(const char *device)
{
	struct rlimit limit = { RLIM_INFINITY, RLIM_INFINITY };

	(void)device;
	CHECK(setrlimit(RLIMIT_MEMLOCK, &limit) == 0, "raising RLIMIT_MEMLOCK");
	limit.rlim_cur = 2;
	limit.rlim_max = 1;
	CHECK(setrlimit(RLIMIT_MEMLOCK, &limit) == -1 && errno == EINVAL, "a wrong limit");
}

static void mode_status(const char *device)
{
	struct program p;
	struct io_unified_cqe cqe;

	start(&p, device);
	cqe = run(&p, 1, ~0ULL / 512, 512, p.buffers);
	CHECK(cqe.status == 0x80 && cqe.len == 0, "beyond the end: %#x", cqe.status);
	cqe = run(&p, 0x7d, 0, 512, p.buffers);
	CHECK(cqe.status == 0x01 || cqe.status == 0x02, "unknown opcode: %#x", cqe.status);
	cqe = run(&p, 1, 0, 512, (void *)(uintptr_t)0x1000);
	CHECK(cqe.status == 0x02, "a pointer outside: %#x", cqe.status);
	cqe = run(&p, 1, 0, 512, p.buffers + FRAMES * FRAME - 511);
	CHECK(cqe.status == 0x02, "a tail outside: %#x", cqe.status);
	cqe = run(&p, 1, 0, 512, p.region);
	CHECK(cqe.status == 0x02, "the rings as data: %#x", cqe.status);
	/* A length that differs from the blocks of cdw12; a foreign namespace. Stored by hand. */
	for (int i = 0; i < 2; i++) {
		volatile struct io_unified_sqe *sqe = &p.sqes[p.sq->producer % ENTRIES];

		memset((void *)sqe, 0, sizeof(*sqe));
		sqe->nvme_cmd.opcode = 1;
		sqe->nvme_cmd.nsid = i ? 77 : 1;
		sqe->nvme_cmd.data_len = i ? 512 : 1024;
		p.sq->producer++;
		cqe = wait_one(&p);
		CHECK(cqe.status == (i ? 0x0b : 0x02), "by hand %d: %#x", i, cqe.status);
	}
	/* Without an address the offset counts, also 0. */
	for (__u64 offset = 0; offset <= FRAME; offset += FRAME) {
		volatile struct io_unified_sqe *sqe = &p.sqes[p.sq->producer % ENTRIES];

		memset((void *)sqe, 0, sizeof(*sqe));
		sqe->nvme_cmd.opcode = 1;
		sqe->nvme_cmd.nsid = 1;
		sqe->nvme_cmd.data_len = 512;
		sqe->buf_offset = offset;
		p.sq->producer++;
		cqe = wait_one(&p);
		CHECK(cqe.status == 0 && cqe.dma_addr == offset, "offset %llu: %#x", (unsigned long long)offset, cqe.status);
	}
	stop(&p);
}

/* A device of 4096 byte blocks: LBAs still count 512 bytes, and what falls between its blocks is refused. */
static void mode_format(const char *device)
{
	struct program p;
	struct io_unified_cqe cqe;

	start(&p, device);
	cqe = run(&p, 1, 0, 512, p.buffers);
	CHECK(cqe.status == 0x02, "half a block: %#x", cqe.status);
	cqe = run(&p, 1, 4, 4096, p.buffers);
	CHECK(cqe.status == 0x02, "between two blocks: %#x", cqe.status);
	pattern(p.buffers, 4096, 5);
	cqe = run(&p, 1, 16, 4096, p.buffers);
	CHECK(cqe.status == 0 && cqe.len == 4096, "a block: %#x", cqe.status);
	cqe = run(&p, 2, 16, 4096, p.buffers + 2 * FRAME);
	CHECK(cqe.status == 0 && memcmp(p.buffers, p.buffers + 2 * FRAME, 4096) == 0, "read: %#x", cqe.status);
	stop(&p);
}

/* Writes of three blocks from LBA 0 on until the device is full: nothing is written past its end. */
static void mode_fill(const char *device, long blocks)
{
	struct program p;
	long lba = 0, stored = 0, refused = 0;

	start(&p, device);
	for (; lba < blocks + 9; lba += 3) {
		struct io_unified_cqe cqe;

		pattern(p.buffers, 1536, (unsigned int)lba);
		cqe = run(&p, 1, (uint64_t)lba, 1536, p.buffers);
		if (lba + 3 <= blocks) {
			CHECK(cqe.status == 0 && cqe.len == 1536, "block %ld: status %#x", lba, cqe.status);
			stored++;
		} else {
			CHECK(cqe.status == 0x80 && cqe.len == 0, "block %ld: status %#x len %u", lba, cqe.status, cqe.len);
			refused++;
		}
	}
	printf("stored %ld refused %ld\n", stored, refused);
	stop(&p);
}

/* Every no-op that goes in comes out exactly once, in order of nothing in particular. */
static void mode_noops(const char *device, long count)
{
	struct program p;
	unsigned char *seen = calloc((size_t)count, 1);
	long sent = 0, done = 0;
	double began, took;
	struct rusage usage;

	CHECK(seen, "memory");
	start(&p, device);
	began = now();
	while (done < count) {
		struct io_unified_cqe cqe;
		uint32_t tail = p.sq->producer;
		uint32_t room = ENTRIES - (tail - __atomic_load_n(&p.sq->consumer, __ATOMIC_ACQUIRE));
		int idle = 1;

		for (; room > 0 && sent < count; room--, sent++, tail++) {
			volatile struct io_unified_sqe *sqe = &p.sqes[tail & (ENTRIES - 1)];

			memset((void *)sqe, 0, sizeof(*sqe));
			sqe->nvme_cmd.nsid = 1;
			sqe->buf_offset = IO_UNIFIED_NO_BUFFER;
			sqe->user_data = (__u64)sent;
			idle = 0;
		}
		__atomic_store_n(&p.sq->producer, tail, __ATOMIC_RELEASE);
		while (take(&p, &cqe)) {
			CHECK(cqe.status == 0 && cqe.user_data < (__u64)count, "no-op %llu", (unsigned long long)cqe.user_data);
			CHECK(!seen[cqe.user_data], "no-op %llu completed twice", (unsigned long long)cqe.user_data);
			seen[cqe.user_data] = 1;
			done++;
			idle = 0;
		}
		if (idle)
			sched_yield();
		CHECK(now() < began + 300, "%ld of %ld after 300 s", done, count);
	}
	took = now() - began;
	usleep(5000);
	CHECK(p.cq->producer == p.cq->consumer && p.sq->producer == p.sq->consumer, "something is left");
	CHECK(p.sq->producer == (uint32_t)count, "SQ index");
	getrusage(RUSAGE_SELF, &usage);
	printf("noops %ld in %.3f s: %.0f per second\n", count, took, (double)count / took);
	stop(&p);
	free(seen);
}

static double cpu_time(void)
{
	struct timespec t;

	clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
	return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

static int compare_doubles(const void *a, const void *b)
{
	double x = *(const double *)a, y = *(const double *)b;

	return (x > y) - (x < y);
}

/* What an idle registration costs, and how late an entry is seen after a quiet time. */
static void mode_idle(const char *device, long samples)
{
	struct program p;
	double *late = calloc((size_t)samples, sizeof(*late)), cpu, began;
	/* How late this host is with a plain sleep: what others on it take away. */
	double *host = calloc((size_t)samples, sizeof(*host));

	CHECK(late && host, "memory");
	start(&p, device);
	usleep(100000);
	cpu = cpu_time();
	began = now();
	sleep(2);
	cpu = (cpu_time() - cpu) / (now() - began);
	srand(1);
	for (long i = 0; i < samples; i++) {
		struct io_unified_cqe cqe;
		unsigned int pause = 3000 + (unsigned int)rand() % 2000;
		double at = now();

		usleep(pause);
		host[i] = now() - at - pause * 1e-6;
		at = now();
		submit(&p, 0, 0, 0, NULL, (uint64_t)i);
		while (!take(&p, &cqe))
			usleep(10);
		late[i] = now() - at;
		CHECK(cqe.status == 0, "status %#x", cqe.status);
	}
	qsort(late, (size_t)samples, sizeof(*late), compare_doubles);
	qsort(host, (size_t)samples, sizeof(*host), compare_doubles);
	printf("idle %.2f %% of a core; answered after %.0f us at p50, %.0f us at p99, %.0f us at most; host late by %.0f us at p99\n",
	       cpu * 100, late[samples / 2] * 1e6, late[samples * 99 / 100] * 1e6, late[samples - 1] * 1e6,
	       host[samples * 99 / 100] * 1e6);
	stop(&p);
	free(late);
	free(host);
}

/* At exit completions are no longer taken, the CQ is full, and entries still come; then munmap at once. */
static void mode_abrupt(const char *device)
{
	for (int round = 0; round < 20; round++) {
		struct program p;
		double began;

		start(&p, device);
		for (int i = 0; i < ENTRIES; i++)
			submit(&p, 1, (uint64_t)i, 512, p.buffers + (i % FRAMES) * FRAME + (i % 2 ? 298 : 512), 7);
		if (round % 2) {
			began = now();
			while (p.cq->producer < ENTRIES && now() < began + 10)
				usleep(50);
			CHECK(p.cq->producer == ENTRIES, "%u of %d", p.cq->producer, ENTRIES);
			for (int i = 0; i < ENTRIES / 2; i++)
				submit(&p, 1, (uint64_t)i, 512, p.buffers, 8);
		}
		began = now();
		stop(&p);
		CHECK(now() < began + 5, "unregistering took %.3f s", now() - began);
	}
}

/* An index that makes no sense stops the server, and nothing else. */
static void mode_wild(const char *device)
{
	struct program p;
	struct io_unified_cqe cqe;

	start(&p, device);
	for (int i = 0; i < 100; i++)
		submit(&p, 1, (uint64_t)i, 512, p.buffers + (i % FRAMES) * FRAME, 1);
	p.sq->producer += 100000;
	usleep(20000);
	stop(&p);
	start(&p, device);
	/* Looked at when the CQ seems full. */
	p.cq->consumer = 1 << 20;
	for (int i = 0; i < ENTRIES; i++)
		submit(&p, 1, (uint64_t)i, 512, p.buffers, 1);
	usleep(100000);
	stop(&p);
	/* Ring constants are the program's to spoil: the server does not read them. */
	start(&p, device);
	p.sq->ring_entries = 0;
	p.sq->ring_size = ~0ULL;
	p.cq->ring_entries = ~0U;
	cqe = run(&p, 1, 0, 512, p.buffers);
	CHECK(cqe.status == 0, "status %#x", cqe.status);
	stop(&p);
}

/* Closed or unmapped without unregistering: the process lives on, and the device is free again. */
static void mode_careless(const char *device)
{
	struct program p, q;
	double until;

	start(&p, device);
	submit(&p, 1, 0, 512, p.buffers, 1);
	close(p.ring);
	/* At once, and most likely with the same descriptor. */
	start(&q, device);
	CHECK(run(&q, 1, 0, 512, q.buffers).status == 0, "after a close");
	munmap(p.region, p.size);

	submit(&q, 1, 0, 512, q.buffers, 1);
	munmap(q.region, q.size);
	usleep(300000);
	CHECK(call_unregister(&q) == 0, "unregistering after munmap");
	close(q.ring);

	/* Unmapped while the ring stays: the device comes free by itself. */
	start(&p, device);
	munmap(p.region, p.size);
	until = now() + 5;
	prepare(&q, device);
	while (call_register(&q) != 0) {
		CHECK(errno == EBUSY && now() < until, "the device stays busy");
		usleep(20000);
	}
	CHECK(call_unregister(&q) == 0, "unregistering");
}

static void mode_fork(const char *device)
{
	struct program p, q;
	int status;
	pid_t child;

	start(&p, device);
	child = fork();
	CHECK(child >= 0, "fork");
	if (child == 0) {
		/* The parent's registration is the parent's; its own works. */
		CHECK(call_unregister(&p) == 0, "the parent's region is left alone");
		start(&q, "null:");
		CHECK(run(&q, 0, 0, 0, NULL).status == 0, "in the child");
		stop(&q);
		_exit(0);
	}
	CHECK(waitpid(child, &status, 0) == child && status == 0, "the child ended with %#x", status);
	pattern(p.buffers, 512, 9);
	CHECK(run(&p, 1, 0, 512, p.buffers).status == 0, "after fork");
	CHECK(run(&p, 2, 0, 512, p.buffers + FRAME).status == 0, "after fork");
	CHECK(memcmp(p.buffers, p.buffers + FRAME, 512) == 0, "what was read differs");
	stop(&p);
}

/* Several rings in one process, each with its region, served at the same time. */
static void mode_several(const char *device)
{
	struct program p[4];
	char paths[4][64];

	for (int i = 0; i < 4; i++) {
		snprintf(paths[i], sizeof(paths[i]), "null:%d", 1 << (20 + i));
		start(&p[i], i ? paths[i] : device);
	}
	for (int round = 0; round < 50; round++)
		for (int i = 0; i < 4; i++)
			submit(&p[i], 1, (uint64_t)round, 512, p[i].buffers, (uint64_t)(i * 1000 + round));
	for (int i = 0; i < 4; i++) {
		unsigned long sum = 0;

		for (int round = 0; round < 50; round++) {
			struct io_unified_cqe cqe = wait_one(&p[i]);

			CHECK(cqe.status == 0 && cqe.user_data / 1000 == (__u64)i, "ring %d: %llu", i, (unsigned long long)cqe.user_data);
			sum += cqe.user_data % 1000;
		}
		CHECK(sum == 49 * 50 / 2, "ring %d: sum %lu", i, sum);
	}
	for (int i = 3; i >= 0; i--)
		stop(&p[i]);
}

static void *unregister_elsewhere(void *p)
{
	stop(p);
	return NULL;
}

/* Set up here, registered and unregistered by other threads; flags 0 and the others. */
static void mode_variants(const char *device)
{
	unsigned int flags[] = { 0, IORING_SETUP_DEFER_TASKRUN | IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_CQE32 | IORING_SETUP_SQE128,
				 IORING_SETUP_DEFER_TASKRUN | IORING_SETUP_CQE32 | IORING_SETUP_SQE128 };
	struct io_uring_params params;
	struct program p;
	pthread_t thread;

	for (size_t i = 0; i < sizeof(flags) / sizeof(*flags); i++) {
		int ring = make_ring(flags[i]);

		CHECK(ring >= 0, "flags %#x", flags[i]);
		close(ring);
	}
	/* Every other error of the kernel's comes through. */
	CHECK(make_ring(1U << 31) == -1 && errno == EINVAL, "unknown flags");
	CHECK(syscall(__NR_io_uring_setup, 256, NULL) == -1 && errno == EFAULT, "no parameters");
	memset(&params, 0, sizeof(params));
	params.flags = IORING_SETUP_DEFER_TASKRUN;
	CHECK(syscall(__NR_io_uring_setup, 0, &params) == -1 && errno == EINVAL, "no entries");
	CHECK(params.flags == IORING_SETUP_DEFER_TASKRUN, "parameters of a call that failed are left alone");

	start(&p, device);
	CHECK(pthread_create(&thread, NULL, unregister_elsewhere, &p) == 0, "thread");
	pthread_join(thread, NULL);
}

/* A ring made with IORING_SETUP_CLAMP gets as many entries as there can be; one without is refused. */
static void mode_clamp(const char *device)
{
	const unsigned int most = 32768, flags[] = { IORING_SETUP_CLAMP, IORING_SETUP_CLAMP | IORING_SETUP_DEFER_TASKRUN };
	struct io_uring_params params;
	struct io_unified_reg good;
	struct io_unified_cqe cqe;
	struct program p;

	prepare(&p, device);
	munmap(p.region, p.size);
	/* Room for the clamped rings, their padding and the buffers; the counts asked for would need more. */
	p.size = plain_size(most, most, FRAMES * FRAME) + 8192;
	p.region = mmap(NULL, p.size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	CHECK(p.region != MAP_FAILED, "mmap");
	p.desc.user_addr = (uintptr_t)p.region;
	p.desc.size = p.size;
	p.reg.sq_entries = most + 1;
	p.reg.cq_entries = ~0U;
	good = p.reg;
	expect(&p, "without the flag", EINVAL);
	close(p.ring);
	for (size_t i = 0; i < sizeof(flags) / sizeof(*flags); i++) {
		int copy;

		/* The kernel clamps its own count: the flag is set, and reaches it. */
		memset(&params, 0, sizeof(params));
		params.flags = flags[i];
		errno = 7;
		p.ring = (int)syscall(__NR_io_uring_setup, 1 << 20, &params);
		CHECK(p.ring >= 0 && params.sq_entries == most, "io_uring_setup");
		CHECK(errno == 7, "success leaves errno alone");
		p.reg = good;
		p.reg.sq_entries = 0;
		expect(&p, "no entries", EINVAL);
		p.reg = good;
		/* A copy of the descriptor is the same ring. */
		copy = dup(p.ring);
		CHECK(copy >= 0, "dup");
		close(p.ring);
		p.ring = copy;
		CHECK(call_register(&p) == 0, "clamped");
		p.sq = (void *)(p.region + p.reg.offsets.sq_ring);
		p.cq = (void *)(p.region + p.reg.offsets.cq_ring);
		p.sqes = (void *)(p.region + p.reg.offsets.sq_entries);
		p.cqes = (void *)(p.region + p.reg.offsets.cq_entries);
		p.buffers = p.region + p.reg.offsets.buffers;
		CHECK(p.sq->ring_entries == most && p.sq->ring_mask == most - 1, "SQ ring");
		CHECK(p.cq->ring_entries == most && p.cq->ring_mask == most - 1, "CQ ring");
		CHECK(p.reg.sq_entries == most + 1 && p.reg.cq_entries == ~0U, "the request is left as it was");
		cqe = run(&p, 0x01, 0, 512, p.buffers);
		CHECK(cqe.user_data == 42 && cqe.status == 0 && cqe.len == 512, "a write");
		CHECK(call_unregister(&p) == 0, "unregistering");
		close(p.ring);
	}
	/* The number of a descriptor that had the flag says nothing of the next ring. */
	p.ring = make_ring(0);
	p.reg = good;
	expect(&p, "the next ring", EINVAL);
	close(p.ring);
	munmap(p.region, p.size);
}

/* Tried first by some. The size that the descriptor names is less than the layout; rounded up to the huge
 * page it is enough. */
static void mode_huge(const char *device)
{
	struct program p;
	size_t huge = 2 << 20;

	prepare(&p, device);
	munmap(p.region, p.size);
	p.region = mmap(NULL, huge, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS | MAP_HUGETLB, -1, 0);
	CHECK(p.region != MAP_FAILED, "a huge page");
	p.desc.user_addr = (uintptr_t)p.region;
	p.desc.size = 36864 + FRAMES * FRAME - 4096;
	CHECK(call_register(&p) == 0, "huge pages");
	p.sq = (void *)(p.region + p.reg.offsets.sq_ring);
	p.cq = (void *)(p.region + p.reg.offsets.cq_ring);
	p.sqes = (void *)(p.region + p.reg.offsets.sq_entries);
	p.cqes = (void *)(p.region + p.reg.offsets.cq_entries);
	p.buffers = p.region + p.reg.offsets.buffers;
	pattern(p.buffers, 512, 3);
	CHECK(run(&p, 1, 0, 512, p.buffers).status == 0, "write");
	CHECK(run(&p, 2, 0, 512, p.buffers + FRAME).status == 0, "read");
	CHECK(memcmp(p.buffers, p.buffers + FRAME, 512) == 0, "what was read differs");
	CHECK(call_unregister(&p) == 0, "unregistering");
	munmap(p.region, huge);
	close(p.ring);
}

static uint64_t random_state = 88172645463325252ULL;

static uint64_t random_number(void)
{
	random_state ^= random_state << 13;
	random_state ^= random_state >> 7;
	random_state ^= random_state << 17;
	return random_state;
}

static volatile int scribbling;

/* Writes over everything but the three indices that the test itself needs, at any time. */
static void *scribble(void *unused)
{
	struct program *p = unused;
	uint64_t state = 0x9e3779b97f4a7c15ULL;

	while (scribbling) {
		state = state * 6364136223846793005ULL + 1442695040888963407ULL;
		((volatile uint32_t *)p->sqes)[(state >> 33) % (ENTRIES * 24)] ^= (uint32_t)(state >> 13) & 0x01010101;
		((volatile uint32_t *)p->buffers)[(state >> 20) % (FRAMES * FRAME / 4)] = (uint32_t)state;
		p->sq->ring_mask = state;
		p->sq->ring_entries = (uint32_t)state;
		p->cq->ring_size = state;
		p->sq->flags = (uint32_t)(state >> 40);
		p->cq->flags = (uint32_t)(state >> 41);
		p->sq->consumer = (uint32_t)state;
	}
	return NULL;
}

static void random_entry(struct program *p, volatile struct io_unified_sqe *sqe)
{
	uint64_t choice = random_number();
	uint64_t place = random_number() % (FRAMES * FRAME + 4096);

	for (size_t word = 0; word < sizeof(*sqe) / 8; word++)
		((volatile uint64_t *)sqe)[word] = choice & 1 ? random_number() : 0;
	sqe->nvme_cmd.opcode = (__u8)(random_number() % 10);
	if (choice & 6) {
		/* One that may well be right. */
		sqe->nvme_cmd.flags = 0;
		sqe->nvme_cmd.nsid = 1;
		sqe->nvme_cmd.metadata = 0;
		sqe->nvme_cmd.metadata_len = 0;
		sqe->nvme_cmd.addr = choice & 8 ? (uintptr_t)p->buffers + place : 0;
		sqe->nvme_cmd.cdw10 = (__u32)(random_number() % 1100);
		sqe->nvme_cmd.cdw11 = 0;
		sqe->nvme_cmd.cdw12 = (__u32)(random_number() % 20);
		sqe->nvme_cmd.data_len = (sqe->nvme_cmd.cdw12 + 1) * 512;
		sqe->buf_offset = choice & 8 ? 0 : place;
	}
}

/* Entries of any content, while another thread overwrites what it can: each is answered once. */
static void mode_fuzz(const char *device, long count)
{
	struct program p;
	pthread_t thread;
	uint32_t sent = 0, done = 0, good = 0;
	double until = now() + 120;

	start(&p, device);
	scribbling = 1;
	CHECK(pthread_create(&thread, NULL, scribble, &p) == 0, "thread");
	while (done < count) {
		/* Each entry has one completion: what is not answered yet has its slot in the SQ. */
		for (; sent - done < ENTRIES && sent < count; sent++)
			random_entry(&p, &p.sqes[sent & (ENTRIES - 1)]);
		__atomic_store_n(&p.sq->producer, sent, __ATOMIC_RELEASE);
		for (uint32_t seen = __atomic_load_n(&p.cq->producer, __ATOMIC_ACQUIRE); done != seen; done++) {
			CHECK(sent - done <= ENTRIES, "%u answered of %u", seen, sent);
			good += p.cqes[done & (ENTRIES - 1)].status == 0;
		}
		__atomic_store_n(&p.cq->consumer, done, __ATOMIC_RELEASE);
		CHECK(now() < until, "%u of %ld answered", done, count);
	}
	scribbling = 0;
	pthread_join(thread, NULL);
	usleep(5000);
	CHECK(p.cq->producer == sent, "more answers than entries: %u of %u", p.cq->producer, sent);
	CHECK(good > 0 && good < sent, "%u of %u succeeded", good, sent);
	printf("%u entries, %u succeeded\n", sent, good);
	stop(&p);
}

static void *churn(void *device)
{
	for (int round = 0; round < 30; round++) {
		struct program p;

		start(&p, device);
		for (int i = 0; i < round; i++)
			submit(&p, i % 3, (uint64_t)i, i % 3 ? 512 : 0, i % 3 ? p.buffers : NULL, 1);
		if (round % 3 == 0)
			for (int i = 0; i < round; i++)
				CHECK(wait_one(&p).status == 0, "round %d", round);
		stop(&p);
	}
	return NULL;
}

/* Rings that come and go in several threads at once. */
static void mode_churn(const char *device)
{
	pthread_t threads[4];

	for (int i = 0; i < 4; i++)
		CHECK(pthread_create(&threads[i], NULL, churn, (void *)(uintptr_t)device) == 0, "thread");
	for (int i = 0; i < 4; i++)
		pthread_join(threads[i], NULL);
}

int main(int argc, char **argv)
{
	const char *mode = argc > 1 ? argv[1] : "";
	const char *device = argc > 2 ? argv[2] : "null:";
	long number = argc > 3 ? atol(argv[3]) : 0;

#define MODE(name) else if (strcmp(mode, #name) == 0) mode_##name(device)
#define MODE_N(name) else if (strcmp(mode, #name) == 0) mode_##name(device, number)
	if (argc < 3) {
		fprintf(stderr, "usage: %s MODE DEVICE [NUMBER]\n", argv[0]);
		return 2;
	}
	MODE(roundtrip);
	MODE(identify);
	MODE(errors);
	MODE(unprivileged);
	MODE(rlimit);
	MODE(status);
	MODE(format);
	MODE_N(fill);
	MODE_N(fuzz);
	MODE(churn);
	MODE_N(noops);
	MODE_N(idle);
	MODE(abrupt);
	MODE(wild);
	MODE(careless);
	MODE(fork);
	MODE(several);
	MODE(variants);
	MODE(clamp);
	MODE(huge);
	else {
		fprintf(stderr, "unknown mode %s\n", mode);
		return 2;
	}
	printf("%s: ok\n", mode);
	return 0;
}
