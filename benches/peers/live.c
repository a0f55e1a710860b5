/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/*
 * Sends UDP frames out of an interface with XDP live frames (BPF_PROG_TEST_RUN). No socket buffer is made, so this is
 * several times faster than sendmmsg.
 *
 *     live [OPTIONS] OBJECT IFACE DEST_MAC SIZE
 *
 *     SIZE              bytes of payload, 8 to 1472; or "imix": frames of 64, 594 and 1518 bytes at 7:4:1. These
 *                       lengths include the 4 bytes of the frame check sequence, which a veth does not have
 *     --flows N         source ports 1024 to 1023 + N in turn (default 1)
 *     --rate N          packets a second; default: as many as possible
 *     --seconds S       (default 1)
 *     --batch N         frames from flush to flush, at most 256 (default 64)
 *
 * OBJECT is live.bpf.o. Packets go from 192.0.2.1 to 192.0.2.2 port 9999. The payload is a sequence number of 8 bytes in
 * the machine's byte order, then byte i has the value i.
 *
 * The program takes a whole core, also when it is paced. Prints sent= (frames redirected to the interface, which counts
 * its drops itself), refused=0, seconds=, skipped= (times at which it was more than 1 ms late and gave up the backlog)
 * and cpu= (of this program, s).
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <bpf/bpf.h>
#include <bpf/libbpf.h>
#include <errno.h>
#include <getopt.h>
#include <linux/if_link.h>
#include <net/ethernet.h>
#include <net/if.h>
#include <netinet/ip.h>
#include <netinet/udp.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <unistd.h>
#include "live.h"

#define SECOND 1000000000ull
#define MAX_PAYLOAD 1472

static void fail(const char *what)
{
	perror(what);
	exit(1);
}

/* A pending signal ends the test run; there is nothing else to do. */
static void wake(int signal)
{
	(void)signal;
}

static uint16_t checksum(const void *at, size_t words)
{
	const uint16_t *p = at;
	uint32_t sum = 0;

	while (words--)
		sum += *p++;
	while (sum >> 16)
		sum = (sum & 0xffff) + (sum >> 16);
	return ~sum;
}

static struct iphdr ip_header(uint32_t payload)
{
	struct iphdr ip = {
		.version = 4,
		.ihl = 5,
		.ttl = 64,
		.protocol = IPPROTO_UDP,
		.tot_len = htons(sizeof(ip) + sizeof(struct udphdr) + payload),
		.saddr = inet_addr("192.0.2.1"),
		.daddr = inet_addr("192.0.2.2"),
	};

	ip.check = checksum(&ip, sizeof(ip) / 2);
	return ip;
}

static struct live_shape shape(uint32_t payload)
{
	struct iphdr ip = ip_header(payload);

	return (struct live_shape){
		.frame_len = LIVE_HEADERS + payload,
		.ip_len = ip.tot_len,
		.ip_checksum = ip.check,
		.udp_len = htons(sizeof(struct udphdr) + payload),
	};
}

/* Every field; the program overwrites those that differ. */
static void fill_template(unsigned char *frame, const unsigned char *from, const unsigned char *to, uint32_t payload)
{
	struct ether_header eth = { .ether_type = htons(ETHERTYPE_IP) };
	struct iphdr ip = ip_header(payload);
	/* Without UDP checksum: IPv4 allows that, and no receiver has to compute one. */
	struct udphdr udp = { .source = htons(1024), .dest = htons(9999), .len = htons(sizeof(udp) + payload) };

	memcpy(eth.ether_shost, from, 6);
	memcpy(eth.ether_dhost, to, 6);
	memcpy(frame, &eth, sizeof(eth));
	memcpy(frame + sizeof(eth), &ip, sizeof(ip));
	memcpy(frame + sizeof(eth) + sizeof(ip), &udp, sizeof(udp));
	for (uint32_t i = 0; i < payload; i++)
		frame[LIVE_HEADERS + i] = i;
}

static void hardware_address(const char *name, unsigned char *mac)
{
	struct ifreq interface = { 0 };
	int fd = socket(AF_INET, SOCK_DGRAM, 0);

	snprintf(interface.ifr_name, sizeof(interface.ifr_name), "%s", name);
	if (fd < 0 || ioctl(fd, SIOCGIFHWADDR, &interface) < 0)
		fail(name);
	memcpy(mac, interface.ifr_hwaddr.sa_data, 6);
	close(fd);
}

int main(int argc, char **argv)
{
	static const struct option options[] = {
		{ "flows", required_argument, NULL, 'f' },   { "rate", required_argument, NULL, 'r' },
		{ "seconds", required_argument, NULL, 's' }, { "batch", required_argument, NULL, 'b' },
		{ NULL, 0, NULL, 0 },
	};
	static const uint32_t imix[LIVE_SHAPES] = { 64, 594, 64, 594, 64, 1518, 64, 594, 64, 594, 64, 64 };
	unsigned char frame[LIVE_HEADERS + MAX_PAYLOAD], from[6], to[6];
	struct live_state state = { .flows = 1, .shapes = 1, .duration_ns = SECOND };
	struct xdp_md where = { 0 };
	LIBBPF_OPTS(bpf_test_run_opts, test, .batch_size = 64);
	struct sigaction action = { .sa_handler = wake };
	struct itimerval timer = { .it_interval = { .tv_usec = 2000 } };
	struct bpf_object *object;
	struct bpf_program *program;
	uint32_t zero = 0, payload;
	struct rusage used;
	double rate = 0;
	int map, option, ret;

	while ((option = getopt_long(argc, argv, "", options, NULL)) != -1) {
		switch (option) {
		case 'f':
			state.flows = strtoul(optarg, NULL, 10);
			break;
		case 'r':
			rate = strtod(optarg, NULL);
			break;
		case 's':
			state.duration_ns = strtod(optarg, NULL) * SECOND;
			break;
		case 'b':
			test.batch_size = strtoul(optarg, NULL, 10);
			break;
		default:
			return 2;
		}
	}
	if (argc - optind != 4 || sscanf(argv[optind + 2], "%hhx:%hhx:%hhx:%hhx:%hhx:%hhx", &to[0], &to[1], &to[2],
					 &to[3], &to[4], &to[5]) != 6) {
		fprintf(stderr, "usage: %s [OPTIONS] OBJECT IFACE DEST_MAC SIZE\n", argv[0]);
		return 2;
	}
	if (strcmp(argv[optind + 3], "imix") == 0) {
		payload = 1518 - ETHER_CRC_LEN - LIVE_HEADERS;
		state.shapes = LIVE_SHAPES;
		for (int i = 0; i < LIVE_SHAPES; i++)
			state.shape[i] = shape(imix[i] - ETHER_CRC_LEN - LIVE_HEADERS);
	} else {
		payload = strtoul(argv[optind + 3], NULL, 10);
		if (payload < sizeof(uint64_t) || payload > MAX_PAYLOAD) {
			fprintf(stderr, "%s: a payload has 8 to %d bytes\n", argv[0], MAX_PAYLOAD);
			return 2;
		}
		state.shape[0] = shape(payload);
	}
	if (state.flows < 1 || state.flows > 60000 || rate < 0) {
		fprintf(stderr, "%s: 1 to 60000 flows, and no negative rate\n", argv[0]);
		return 2;
	}
	state.gap = rate > 0 ? SECOND * 1024 / rate : 0;
	state.template_len = LIVE_HEADERS + payload;
	state.out_ifindex = if_nametoindex(argv[optind + 1]);
	if (!state.out_ifindex)
		fail(argv[optind + 1]);
	hardware_address(argv[optind + 1], from);
	fill_template(frame, from, to, payload);

	object = bpf_object__open_file(argv[optind], NULL);
	if (!object || bpf_object__load(object) < 0)
		fail(argv[optind]);
	program = bpf_object__find_program_by_name(object, "live");
	map = bpf_object__find_map_fd_by_name(object, "live_state");
	if (!program || map < 0 || bpf_map_update_elem(map, &zero, &state, BPF_ANY) < 0)
		fail(argv[optind]);

	/* The program stops by its own clock. The signals end the run; they repeat in case one comes before it. */
	sigaction(SIGALRM, &action, NULL);
	timer.it_value.tv_sec = (state.duration_ns + SECOND / 100) / SECOND;
	timer.it_value.tv_usec = (state.duration_ns + SECOND / 100) % SECOND / 1000;
	where.data_end = state.template_len;
	where.ingress_ifindex = state.out_ifindex;
	test.data_in = frame;
	test.data_size_in = state.template_len;
	test.ctx_in = &where;
	test.ctx_size_in = sizeof(where);
	test.flags = BPF_F_TEST_XDP_LIVE_FRAMES;
	test.repeat = INT32_MAX;
	if (setitimer(ITIMER_REAL, &timer, NULL) < 0)
		fail("setitimer");
	do {
		ret = bpf_prog_test_run_opts(bpf_program__fd(program), &test);
		if (bpf_map_lookup_elem(map, &zero, &state) < 0)
			fail("map");
	} while (!state.done && (ret == 0 || ret == -EINTR));
	if (ret < 0 && ret != -EINTR) {
		errno = -ret;
		fail("BPF_PROG_TEST_RUN");
	}
	getrusage(RUSAGE_SELF, &used);
	printf("sent=%llu refused=0 seconds=%.6f skipped=%llu cpu=%.6f\n", (unsigned long long)state.sent,
	       state.last_ns / 1e9, (unsigned long long)state.skipped,
	       used.ru_utime.tv_sec + used.ru_stime.tv_sec + (used.ru_utime.tv_usec + used.ru_stime.tv_usec) / 1e6);
	bpf_object__close(object);
	return 0;
}
