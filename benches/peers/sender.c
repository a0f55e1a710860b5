/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/*
 * Sends prebuilt UDP frames out of an interface, past the stack and its queues: faster than a receiver on the
 * same machine can take them, or paced.
 *
 *     sender IFACE DEST_MAC SIZE RATE SECONDS
 *
 * 192.0.2.1 port 9 to 192.0.2.2 port 9999, SIZE bytes of payload; RATE packets a second, 0 for as many as go.
 * Frames are handed over by sendmmsg, without the interface's queue. A veth peer with an XDP program copies each
 * packet once more, as every sender leaves less room in front than XDP wants.
 *
 * Prints sent= (accepted by the link), refused= (dropped by the link), seconds= and cpu= (of this program, s).
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <linux/if_packet.h>
#include <net/ethernet.h>
#include <net/if.h>
#include <netinet/ip.h>
#include <netinet/udp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define BATCH 256
#define HEADERS (sizeof(struct ether_header) + sizeof(struct iphdr) + sizeof(struct udphdr))
#define MAX_PAYLOAD 1472
/* Paced packets go in bursts this far apart, between which the CPU is idle. */
#define BURST_NS 200000
#define SECOND 1000000000ull

static unsigned char frames[BATCH][HEADERS + MAX_PAYLOAD];

static void fail(const char *what)
{
	perror(what);
	exit(1);
}

static uint64_t now(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec * SECOND + t.tv_nsec;
}

static uint16_t ip_checksum(const void *at, size_t words)
{
	const uint16_t *p = at;
	uint32_t sum = 0;

	while (words--)
		sum += *p++;
	while (sum >> 16)
		sum = (sum & 0xffff) + (sum >> 16);
	return ~sum;
}

static void build(unsigned char *frame, const unsigned char *from, const unsigned char *to, unsigned size)
{
	struct ether_header *eth = (void *)frame;
	struct iphdr ip = {
		.version = 4,
		.ihl = 5,
		.ttl = 64,
		.protocol = IPPROTO_UDP,
		.tot_len = htons(sizeof(ip) + sizeof(struct udphdr) + size),
		.saddr = inet_addr("192.0.2.1"),
		.daddr = inet_addr("192.0.2.2"),
	};
	/* Without UDP checksum: allowed for IPv4, and no receiver has to compute one. */
	struct udphdr udp = {
		.source = htons(9),
		.dest = htons(9999),
		.len = htons(sizeof(udp) + size),
	};

	memcpy(eth->ether_shost, from, 6);
	memcpy(eth->ether_dhost, to, 6);
	eth->ether_type = htons(ETHERTYPE_IP);
	ip.check = ip_checksum(&ip, sizeof(ip) / 2);
	memcpy(frame + sizeof(*eth), &ip, sizeof(ip));
	memcpy(frame + sizeof(*eth) + sizeof(ip), &udp, sizeof(udp));
	for (unsigned i = 0; i < size; i++)
		frame[HEADERS + i] = i;
}

int main(int argc, char **argv)
{
	struct sockaddr_ll to = { .sll_family = AF_PACKET, .sll_halen = 6, .sll_protocol = htons(ETHERTYPE_IP) };
	struct mmsghdr messages[BATCH] = { 0 };
	struct iovec pieces[BATCH];
	struct ifreq interface = { 0 };
	uint64_t sent = 0, refused = 0, start, elapsed, duration;
	unsigned size;
	double rate;
	struct rusage used;
	int fd, one = 1, room = 64 << 20;

	if (argc != 6) {
		fprintf(stderr, "usage: %s IFACE DEST_MAC SIZE RATE SECONDS\n", argv[0]);
		return 2;
	}
	size = strtoul(argv[3], NULL, 10);
	rate = strtod(argv[4], NULL);
	duration = strtod(argv[5], NULL) * SECOND;
	if (size > MAX_PAYLOAD || sscanf(argv[2], "%hhx:%hhx:%hhx:%hhx:%hhx:%hhx", &to.sll_addr[0], &to.sll_addr[1],
					 &to.sll_addr[2], &to.sll_addr[3], &to.sll_addr[4], &to.sll_addr[5]) != 6) {
		fprintf(stderr, "%s: not a MAC address, or more than %d bytes\n", argv[0], MAX_PAYLOAD);
		return 2;
	}
	/* Protocol 0: nothing that arrives comes to this socket. */
	fd = socket(AF_PACKET, SOCK_RAW, 0);
	if (fd < 0)
		fail("socket");
	snprintf(interface.ifr_name, sizeof(interface.ifr_name), "%s", argv[1]);
	if (ioctl(fd, SIOCGIFHWADDR, &interface) < 0)
		fail(argv[1]);
	to.sll_ifindex = if_nametoindex(argv[1]);
	if (setsockopt(fd, SOL_PACKET, PACKET_QDISC_BYPASS, &one, sizeof(one)) < 0 ||
	    setsockopt(fd, SOL_SOCKET, SO_SNDBUFFORCE, &room, sizeof(room)) < 0)
		fail("setsockopt");
	if (bind(fd, (struct sockaddr *)&to, sizeof(to)) < 0)
		fail("bind");
	for (int i = 0; i < BATCH; i++) {
		build(frames[i], (unsigned char *)interface.ifr_hwaddr.sa_data, to.sll_addr, size);
		pieces[i] = (struct iovec){ frames[i], HEADERS + size };
		messages[i].msg_hdr.msg_iov = &pieces[i];
		messages[i].msg_hdr.msg_iovlen = 1;
	}
	prctl(PR_SET_TIMERSLACK, 1);

	start = now();
	while ((elapsed = now() - start) < duration) {
		uint64_t batch = BATCH;
		int done;

		if (rate > 0) {
			uint64_t due = elapsed / 1e9 * rate;

			if (due <= sent + refused) {
				struct timespec pause = { .tv_nsec = BURST_NS };

				nanosleep(&pause, NULL);
				continue;
			}
			if (due - sent - refused < batch)
				batch = due - sent - refused;
		}
		done = sendmmsg(fd, messages, batch, 0);
		if (done > 0)
			sent += done;
		else if (errno == ENOBUFS || errno == EAGAIN)
			refused++;
		else if (errno != EINTR)
			fail("sendmmsg");
	}
	getrusage(RUSAGE_SELF, &used);
	printf("sent=%llu refused=%llu seconds=%.6f cpu=%.6f\n", (unsigned long long)sent, (unsigned long long)refused,
	       elapsed / 1e9,
	       used.ru_utime.tv_sec + used.ru_stime.tv_sec + (used.ru_utime.tv_usec + used.ru_stime.tv_usec) / 1e6);
	return 0;
}
