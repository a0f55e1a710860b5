// SPDX-License-Identifier: MIT OR Apache-2.0
/*
 * The documented full-stack flow as a program of the registration interface: packets of an AF_XDP socket,
 * whose UMEM are the data buffers, are written to storage by entries that this program stores into the SQ
 * ring itself. Three threads: this one, one for packets, one for completions. The XDP program stands below
 * as text and is compiled when it runs.
 *
 *   uapi-full-stack INTERFACE DEVICE QUEUE [QUIRK]
 *
 * It runs until SIGINT. What programs of the interface do differently from what they should is done here
 * too, on purpose; a comment marks each.
 */
#define _GNU_SOURCE
#include <bpf/bpf.h>
#include <bpf/libbpf.h>
#include <errno.h>
#include <linux/if_link.h>
#include <linux/if_xdp.h>
#include <net/if.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>
#include <xdp/xsk.h>

#include "../../../../include/uapi/linux/io_uring.h"
#include "../../../../include/uapi/linux/io_uring_unified.h"

#define ENTRIES 256
#define FRAMES 2048
#ifdef UNWRAPPED
/* Refills go by the fill ring's index, which grows for ever: the UMEM ends before it does. */
#define UMEM_FRAMES (2 * FRAMES)
#else
#define UMEM_FRAMES FRAMES
#endif
#define FRAME 2048
#define PORT 9999
#define BATCH 64
#define HEADERS 42

static const char xdp_source[] =
	/* IPPROTO_UDP is declared nowhere here, and clang is called without -g. */
	"#include <linux/bpf.h>\n"
	"#include <linux/if_ether.h>\n"
	"#include <linux/ip.h>\n"
	"#include <linux/udp.h>\n"
	"#include <bpf/bpf_helpers.h>\n"
	"#include <bpf/bpf_endian.h>\n"
	"struct { __uint(type, BPF_MAP_TYPE_XSKMAP); __uint(max_entries, 64);\n"
	"	__type(key, __u32); __type(value, __u32); } xsks_map SEC(\".maps\");\n"
	"struct { __uint(type, BPF_MAP_TYPE_RINGBUF); __uint(max_entries, 1 << 16); } events SEC(\".maps\");\n"
	"struct info { __u32 src, len; __u64 time; };\n"
	"SEC(\"xdp\") int storage(struct xdp_md *ctx) {\n"
	"	void *data = (void *)(long)ctx->data, *end = (void *)(long)ctx->data_end;\n"
	"	struct ethhdr *eth = data; struct iphdr *ip = (void *)(eth + 1);\n"
	"	struct udphdr *udp = (void *)(ip + 1); struct info *info;\n"
	"	if ((void *)(udp + 1) > end) return XDP_PASS;\n"
	"	if (eth->h_proto != bpf_htons(ETH_P_IP) || ip->protocol != IPPROTO_UDP) return XDP_PASS;\n"
	"	if (udp->dest != bpf_htons(9999)) return XDP_PASS;\n"
	"	info = bpf_ringbuf_reserve(&events, sizeof(*info), 0);\n"
	"	if (info) { info->src = ip->saddr; info->len = bpf_ntohs(udp->len) - 8;\n"
	"		info->time = bpf_ktime_get_ns(); bpf_ringbuf_submit(info, 0); }\n"
	"	return bpf_redirect_map(&xsks_map, ctx->rx_queue_index, XDP_PASS);\n"
	"}\n"
	"char _license[] SEC(\"license\") = \"GPL\";\n";

/* Written after the payload, into the frame, and stored with it. */
struct metadata {
	uint64_t number;
	uint64_t time;
	uint32_t len;
	uint32_t source;
	uint32_t magic;
} __attribute__((packed));

static struct {
	int ring, ifindex, prog;
	char *region;
	size_t size;
	struct io_unified_ring *sq, *cq;
	struct io_unified_sqe *sqes;
	struct io_unified_cqe *cqes;
	char *buffers;
	struct xsk_umem *umem;
	struct xsk_socket *xsk;
	struct xsk_ring_prod fill;
	struct xsk_ring_cons comp, rx;
	struct bpf_object *object;
	/* Frames whose write completed, from the storage thread to the packet thread. */
	uint64_t returned[FRAMES];
	uint32_t returned_tail, returned_head;
	uint64_t rx_packets, stored, bytes, errors, sq_full;
	uint64_t lba;
	int wild;
} ctx;

static volatile int running = 1;

static void stop(int signal)
{
	(void)signal;
	running = 0;
}

static int fail(const char *what)
{
	fprintf(stderr, "%s: %s\n", what, strerror(errno));
	return -1;
}

static int load_xdp(const char *ifname, unsigned int queue)
{
	char dir[] = "/tmp/uapi-full-stack-XXXXXX", path[64], command[256];
	struct bpf_program *program;
	FILE *file;
	int map, fd, rc;

	if (!mkdtemp(dir))
		return fail("mkdtemp");
	snprintf(path, sizeof(path), "%s/xdp.c", dir);
	file = fopen(path, "w");
	if (!file)
		return fail(path);
	fputs(xdp_source, file);
	fclose(file);
	snprintf(command, sizeof(command), "clang -O2 -target bpf -c %s/xdp.c -o %s/xdp.o", dir, dir);
	rc = system(command);
	snprintf(path, sizeof(path), "%s/xdp.o", dir);
	if (rc == 0)
		ctx.object = bpf_object__open_file(path, NULL);
	snprintf(command, sizeof(command), "rm -r %s", dir);
	if (system(command) != 0)
		return fail("removing the temporary directory");
	if (rc != 0 || !ctx.object || bpf_object__load(ctx.object) != 0)
		return fail("compiling and loading the XDP program");
	program = bpf_object__find_program_by_name(ctx.object, "storage");
	map = bpf_object__find_map_fd_by_name(ctx.object, "xsks_map");
	if (!program || map < 0)
		return fail("the XDP program");
	ctx.ifindex = (int)if_nametoindex(ifname);
	ctx.prog = bpf_program__fd(program);
	if (!ctx.ifindex || bpf_xdp_attach(ctx.ifindex, ctx.prog, XDP_FLAGS_UPDATE_IF_NOEXIST | XDP_FLAGS_DRV_MODE, NULL) != 0)
		return fail("attaching the XDP program");
	fd = xsk_socket__fd(ctx.xsk);
	if (bpf_map_update_elem(map, &queue, &fd, BPF_ANY) != 0)
		return fail("the socket map");
	printf("BPF program loaded successfully\n");
	return 0;
}

static int register_region(const char *device)
{
	struct io_uring_params params;
	struct io_uring_region_desc desc;
	struct io_unified_reg reg;

	memset(&params, 0, sizeof(params));
	params.flags = IORING_SETUP_DEFER_TASKRUN | IORING_SETUP_CQE32 | IORING_SETUP_SQE128;
	ctx.ring = (int)syscall(__NR_io_uring_setup, 256, &params);
	if (ctx.ring < 0)
		return fail("io_uring_setup");
	ctx.size = 2 * sizeof(struct io_unified_ring) + ENTRIES * sizeof(struct io_unified_sqe) +
		   ENTRIES * sizeof(struct io_unified_cqe) + (size_t)UMEM_FRAMES * FRAME;
	ctx.region = mmap(NULL, ctx.size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS | MAP_HUGETLB, -1, 0);
	printf("Huge pages: %s\n", ctx.region == MAP_FAILED ? "no" : "yes");
	if (ctx.region == MAP_FAILED)
		ctx.region = mmap(NULL, ctx.size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	if (ctx.region == MAP_FAILED)
		return fail("mmap");
	fflush(stdout);
	memset(&desc, 0, sizeof(desc));
	desc.user_addr = (uintptr_t)ctx.region;
	desc.size = ctx.size;
	memset(&reg, 0, sizeof(reg));
	reg.region_ptr = (uintptr_t)&desc;
	reg.nvme_dev_path = (uintptr_t)device;
	reg.sq_entries = ENTRIES;
	reg.cq_entries = ENTRIES;
	reg.buffer_entries = UMEM_FRAMES;
	reg.buffer_entry_size = FRAME;
	if (syscall(__NR_io_uring_register, ctx.ring, 33, &reg, 1) < 0)
		return fail("registering");
	ctx.sq = (void *)(ctx.region + reg.offsets.sq_ring);
	ctx.cq = (void *)(ctx.region + reg.offsets.cq_ring);
	ctx.sqes = (void *)(ctx.region + reg.offsets.sq_entries);
	ctx.cqes = (void *)(ctx.region + reg.offsets.cq_entries);
	ctx.buffers = ctx.region + reg.offsets.buffers;
	printf("Unified interface registered successfully\n");
	return 0;
}

static int open_socket(const char *ifname, unsigned int queue)
{
	struct xsk_umem_config umem = {
		.fill_size = FRAMES,
		.comp_size = 64,
		.frame_size = FRAME,
		.frame_headroom = 0,
		/* Then addresses carry offsets, and are used below as if they did not. */
		.flags = XDP_UMEM_UNALIGNED_CHUNK_FLAG,
	};
	struct xsk_socket_config config = {
		.rx_size = 1024,
		.tx_size = 0,
		.libbpf_flags = XSK_LIBBPF_FLAGS__INHIBIT_PROG_LOAD,
		.xdp_flags = XDP_FLAGS_DRV_MODE,
		.bind_flags = XDP_COPY,
	};
	uint32_t idx;

	errno = -xsk_umem__create(&ctx.umem, ctx.buffers, (uint64_t)UMEM_FRAMES * FRAME, &ctx.fill, &ctx.comp, &umem);
	if (errno)
		return fail("xsk_umem__create");
	errno = -xsk_socket__create(&ctx.xsk, ifname, queue, ctx.umem, &ctx.rx, NULL, &config);
	if (errno)
		return fail("xsk_socket__create");
	if (xsk_ring_prod__reserve(&ctx.fill, FRAMES, &idx) != FRAMES)
		return fail("the fill ring");
	for (uint32_t i = 0; i < FRAMES; i++)
		*xsk_ring_prod__fill_addr(&ctx.fill, idx++) = (uint64_t)i * FRAME;
	xsk_ring_prod__submit(&ctx.fill, FRAMES);
	printf("AF_XDP socket created on %s queue %u\n", ifname, queue);
	return 0;
}

static void refill(uint64_t addr)
{
	uint32_t idx;

	if (xsk_ring_prod__reserve(&ctx.fill, 1, &idx) != 1)
		return;
#ifdef UNWRAPPED
	addr = ((uint64_t)idx - 1) * FRAME;
#endif
	*xsk_ring_prod__fill_addr(&ctx.fill, idx) = addr;
	xsk_ring_prod__submit(&ctx.fill, 1);
}

static int submit_write(char *data, uint32_t len, uint64_t number)
{
	uint32_t tail = ctx.sq->producer;
	struct io_unified_sqe *sqe;

	if (tail - *(volatile uint32_t *)&ctx.sq->consumer >= ctx.sq->ring_entries)
		return -1;
	sqe = &ctx.sqes[tail & ctx.sq->ring_mask];
	memset(sqe, 0, sizeof(*sqe));
	sqe->nvme_cmd.opcode = 0x01;
	sqe->nvme_cmd.nsid = 1;
	sqe->nvme_cmd.addr = (uint64_t)(uintptr_t)data;
	sqe->nvme_cmd.data_len = len;
	sqe->nvme_cmd.cdw10 = (uint32_t)ctx.lba;
	sqe->nvme_cmd.cdw11 = (uint32_t)(ctx.lba >> 32);
	sqe->nvme_cmd.cdw12 = len / 512 - 1;
	sqe->buf_offset = (uint64_t)(data - ctx.buffers);
	/* Not unique: it wraps early. */
	sqe->user_data = number % 1000;
	/* The compiler keeps the order; the processor does if it keeps stores in order. */
	__asm__ __volatile__("" ::: "memory");
#ifndef __x86_64__
	__atomic_thread_fence(__ATOMIC_RELEASE);
#endif
	*(volatile uint32_t *)&ctx.sq->producer = tail + 1;
	return 0;
}

static void *packet_thread(void *unused)
{
	struct pollfd poller = { .fd = xsk_socket__fd(ctx.xsk), .events = POLLIN };
	uint64_t number = 0;

	(void)unused;
	printf("Packet processing thread started\n");
	while (running) {
		uint32_t idx, count = xsk_ring_cons__peek(&ctx.rx, BATCH, &idx), tail;

		tail = __atomic_load_n(&ctx.returned_tail, __ATOMIC_ACQUIRE);
		for (; ctx.returned_head != tail; ctx.returned_head++)
			refill(ctx.returned[ctx.returned_head % FRAMES]);
		if (!count) {
			poll(&poller, 1, 10);
			continue;
		}
		for (uint32_t i = 0; i < count; i++, idx++) {
			uint64_t addr = xsk_ring_cons__rx_desc(&ctx.rx, idx)->addr;
			uint32_t len = xsk_ring_cons__rx_desc(&ctx.rx, idx)->len;
			/* The address as it is: right only in aligned mode. */
			char *packet = ctx.buffers + addr, *payload = packet + HEADERS;
			struct metadata metadata = { number, 0, len - HEADERS, 0, 0x4d455441 };
			uint32_t whole = (len - HEADERS + (uint32_t)sizeof(metadata) + 511) / 512 * 512;

			ctx.rx_packets++;
			memcpy(packet + len, &metadata, sizeof(metadata));
			if (submit_write(payload, whole, number) != 0) {
				/* An error is counted, the blocks are skipped. */
				ctx.sq_full++;
				refill(addr / FRAME * FRAME);
			}
			ctx.lba += whole / 512;
			number++;
			if (ctx.wild) {
				/* Beyond the UMEM, and a frame that is in use. */
				refill((uint64_t)FRAMES * FRAME + addr);
				refill(addr / FRAME * FRAME);
			}
		}
		xsk_ring_cons__release(&ctx.rx, count);
	}
	return NULL;
}

static void *storage_thread(void *unused)
{
	(void)unused;
	printf("Storage thread started\n");
	while (running) {
		uint32_t head = ctx.cq->consumer, tail = __atomic_load_n(&ctx.cq->producer, __ATOMIC_ACQUIRE);

		if (head == tail)
			usleep(100);
		for (; head != tail; head++) {
			struct io_unified_cqe *cqe = &ctx.cqes[head & ctx.cq->ring_mask];

			if (cqe->status == 0) {
				ctx.stored++;
				ctx.bytes += cqe->len;
			} else {
				ctx.errors++;
			}
			if (!ctx.wild) {
				ctx.returned[ctx.returned_tail % FRAMES] = cqe->dma_addr / FRAME * FRAME;
				__atomic_store_n(&ctx.returned_tail, ctx.returned_tail + 1, __ATOMIC_RELEASE);
			}
		}
		__atomic_store_n(&ctx.cq->consumer, head, __ATOMIC_RELEASE);
	}
	return NULL;
}

static void report(const char *prefix)
{
	printf("%s: RX=%llu Stored=%llu Bytes=%llu Errors=%llu Full=%llu\n", prefix, (unsigned long long)ctx.rx_packets,
	       (unsigned long long)ctx.stored, (unsigned long long)ctx.bytes, (unsigned long long)ctx.errors,
	       (unsigned long long)ctx.sq_full);
	fflush(stdout);
}

int main(int argc, char **argv)
{
	struct rlimit limit = { RLIM_INFINITY, RLIM_INFINITY };
	pthread_t packets, storage;
	unsigned int queue;

	if (argc < 4) {
		fprintf(stderr, "usage: %s INTERFACE DEVICE QUEUE [wild]\n", argv[0]);
		return 2;
	}
	queue = (unsigned int)atoi(argv[3]);
	ctx.wild = argc > 4 && strcmp(argv[4], "wild") == 0;
	signal(SIGINT, stop);
	if (setrlimit(RLIMIT_MEMLOCK, &limit) != 0) {
		fail("setrlimit");
		return 1;
	}
	if (register_region(argv[2]) || open_socket(argv[1], queue) || load_xdp(argv[1], queue))
		return 1;
	if (pthread_create(&packets, NULL, packet_thread, NULL) || pthread_create(&storage, NULL, storage_thread, NULL))
		return 1;
	printf("System ready. Waiting for packets...\n");
	fflush(stdout);
	for (int i = 0; running; i++) {
		usleep(50000);
		if (i % 10 == 9)
			report("Stats");
	}
	pthread_join(packets, NULL);
	/* Completions are no longer taken from here on. */
	pthread_join(storage, NULL);
	report("Final");
	bpf_xdp_detach(ctx.ifindex, XDP_FLAGS_DRV_MODE, NULL);
	if (syscall(__NR_io_uring_register, ctx.ring, 34, NULL, 0) < 0)
		fail("unregistering");
	xsk_socket__delete(ctx.xsk);
	xsk_umem__delete(ctx.umem);
	bpf_object__close(ctx.object);
	close(ctx.ring);
	munmap(ctx.region, ctx.size);
	printf("Cleanup complete\n");
	return 0;
}
