// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/*
 * Redirects UDP packets to chosen ports into an AF_XDP socket, and passes everything else on.
 *
 * Whatever cannot be understood is passed to the stack: this program never drops. It works on the
 * packet's first (linear) part only; the headers of interest always lie there.
 */
#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/ip.h>
#include <linux/ipv6.h>
#include <linux/udp.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>
#ifdef UNIFIED_MERGED
#include <bpf/bpf_core_read.h>
#endif
#include <xdp/xdp_helpers.h>

#include "unified_xdp.h"

#define MAX_VLANS 2
#define MAX_IPV6_EXTENSIONS 4
#define IP_FRAGMENT_MASK 0x3fff /* more fragments, or an offset */

struct {
	__uint(priority, 50);
	__uint(XDP_PASS, 1);
} XDP_RUN_CONFIG(unified_xdp);

struct {
	__uint(type, BPF_MAP_TYPE_XSKMAP);
	__uint(max_entries, 4096); /* queues of an interface */
	__type(key, __u32);
	__type(value, __u32);
} unified_xsks SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 65536);
	__type(key, __u32);
	__type(value, __u8);
} unified_ports SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	/* Entry 1 + n counts queue n, and the first one all that have none. Whoever loads the program may give it more. */
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct unified_counters);
} unified_stats SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct unified_settings);
} unified_set SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 256 * 1024);
} unified_events SEC(".maps");

struct vlan_tag {
	__be16 tci;
	__be16 next;
};

/* What the headers say. Offsets count from the Ethernet header. */
struct found {
	__u32 l3_end; /* where the IP header says that the packet ends */
	__u16 l3;
	__u16 payload;
	__u16 payload_len;
	__u16 vlan_tci;
	__u16 src_port;
	__u16 dst_port;
	__u8 version;
	__u8 vlan;
};

static __always_inline int is_vlan(__be16 proto)
{
	return proto == bpf_htons(ETH_P_8021Q) || proto == bpf_htons(ETH_P_8021AD);
}

#ifdef UNIFIED_MERGED
/*
 * Kernel types, with the members that are read here. When the program is loaded, libbpf replaces the offsets and
 * sizes by those of the running kernel.
 */
#pragma clang attribute push(__attribute__((preserve_access_index)), apply_to = record)
struct net_device {
	struct netdev_rx_queue *_rx;
};
struct xdp_rxq_info {
	struct net_device *dev;
	__u32 queue_index;
};
struct netdev_rx_queue {
	struct xdp_rxq_info xdp_rxq;
};
struct xdp_buff {
	void *data_hard_start;
	struct xdp_rxq_info *rxq;
	__u32 frame_sz;
};
struct skb_shared_info {
	unsigned short gso_size;
	unsigned short gso_segs;
	unsigned int gso_type;
};
#pragma clang attribute pop

/* Kernel 6.2 or newer, as bpf_rdonly_cast of bpf_core_read.h is. */
extern void *bpf_cast_to_kern_ctx(void *) __ksym;

#ifndef UNIFIED_CACHE_BYTES
#error "SMP_CACHE_BYTES of the target: see build.rs"
#endif
#define SKB_GSO_UDP (1 << 16) /* one datagram that the device below is to cut into IP fragments */

/*
 * Whether the packet is several datagrams that the sender has not cut yet (GSO) or the stack has put together (GRO).
 * Its bytes look like one long datagram; only the socket buffer says what it is. For the time of this program a
 * packet in SKB mode lies in its socket buffer, whose struct skb_shared_info is where the frame ends.
 */
static __always_inline int is_merged(struct xdp_md *ctx)
{
	__u64 size = (bpf_core_type_size(struct skb_shared_info) + UNIFIED_CACHE_BYTES - 1) & -(__u64)UNIFIED_CACHE_BYTES;
	struct xdp_buff *xdp = bpf_cast_to_kern_ctx(ctx);
	struct xdp_rxq_info *rxq = xdp->rxq;
	__u64 own = rxq->queue_index * bpf_core_type_size(struct netdev_rx_queue) +
		    bpf_core_field_offset(struct netdev_rx_queue, xdp_rxq);
	struct skb_shared_info *shared;

	/*
	 * Only a packet in a socket buffer comes with the receive queue that the kernel itself keeps for the
	 * interface. A driver's native XDP has its own, and what is at the end of its frames may be anything.
	 */
	if ((__u64)rxq - (__u64)rxq->dev->_rx != own)
		return 0;
	shared = bpf_rdonly_cast(xdp->data_hard_start + xdp->frame_sz - size,
				 bpf_core_type_id_kernel(struct skb_shared_info));
	return shared->gso_size && shared->gso_segs != 1 && !(shared->gso_type & SKB_GSO_UDP);
}
#endif

enum verdict { NOT_OURS, OURS, FRAGMENT, MALFORMED };

static __always_inline enum verdict parse(void *data, void *end, struct found *f)
{
	struct ethhdr *eth = data;
	void *at = eth + 1;
	__be16 proto;
	__u8 next;
	__u32 l3_len, length;
	struct udphdr *udp;
	__u32 port, udp_len;
	__u8 *wanted;

	if (at > end)
		return NOT_OURS;
	proto = eth->h_proto;

#pragma unroll
	for (int i = 0; i < MAX_VLANS; i++) {
		struct vlan_tag *tag = at;

		if (!is_vlan(proto))
			break;
		if ((void *)(tag + 1) > end)
			return NOT_OURS;
		if (i == 0) {
			f->vlan = 1;
			f->vlan_tci = bpf_ntohs(tag->tci);
		}
		proto = tag->next;
		at = tag + 1;
	}
	f->l3 = at - data;

	if (proto == bpf_htons(ETH_P_IP)) {
		struct iphdr *ip = at;

		if ((void *)(ip + 1) > end || ip->version != 4 || ip->ihl < 5)
			return NOT_OURS;
		l3_len = ip->ihl * 4;
		length = bpf_ntohs(ip->tot_len);
		next = ip->protocol;
		if (next != IPPROTO_UDP)
			return NOT_OURS;
		if (ip->frag_off & bpf_htons(IP_FRAGMENT_MASK))
			return FRAGMENT;
		f->version = 4;
		at += l3_len;
	} else if (proto == bpf_htons(ETH_P_IPV6)) {
		struct ipv6hdr *ip6 = at;

		if ((void *)(ip6 + 1) > end || ip6->version != 6)
			return NOT_OURS;
		l3_len = sizeof(*ip6);
		length = bpf_ntohs(ip6->payload_len) + sizeof(*ip6);
		next = ip6->nexthdr;
		f->version = 6;
		at = ip6 + 1;
#pragma unroll
		for (int i = 0; i < MAX_IPV6_EXTENSIONS; i++) {
			struct ipv6_opt_hdr *opt = at;
			__u32 len;

			if (next == IPPROTO_FRAGMENT)
				return FRAGMENT;
			if (next != IPPROTO_HOPOPTS && next != IPPROTO_ROUTING && next != IPPROTO_DSTOPTS)
				break;
			if ((void *)(opt + 1) > end)
				return NOT_OURS;
			next = opt->nexthdr;
			len = (opt->hdrlen + 1) * 8;
			at += len;
			l3_len += len;
		}
		if (next != IPPROTO_UDP)
			return NOT_OURS;
	} else {
		return NOT_OURS;
	}

	udp = at;
	if ((void *)(udp + 1) > end)
		return NOT_OURS;
	port = bpf_ntohs(udp->dest);
	wanted = bpf_map_lookup_elem(&unified_ports, &port);
	if (!wanted || !*wanted)
		return NOT_OURS;
	udp_len = bpf_ntohs(udp->len);
	if (udp_len < sizeof(*udp) || l3_len + udp_len > length)
		return MALFORMED;
	f->l3_end = f->l3 + length;
	f->src_port = bpf_ntohs(udp->source);
	f->dst_port = port;
	f->payload = (void *)(udp + 1) - data;
	f->payload_len = udp_len - sizeof(*udp);
	return OURS;
}

static __always_inline void leave_metadata(struct xdp_md *ctx, const struct found *f, __u64 now,
					   struct unified_counters *count)
{
#ifdef UNIFIED_NO_METADATA
	/*
	 * Newer kernels look at the program that an extension replaces: if that one never changes packet
	 * data, and the slots of libxdp's dispatcher do not, the extension may not call what does.
	 */
	count->no_metadata++;
#else
	struct unified_meta *meta;

	if (bpf_xdp_adjust_meta(ctx, -(int)sizeof(*meta))) {
		count->no_metadata++;
		return;
	}
	meta = (void *)(long)ctx->data_meta;
	if ((void *)(meta + 1) > (void *)(long)ctx->data)
		return;
	meta->timestamp = now;
	meta->payload_offset = f->payload;
	meta->payload_len = f->payload_len;
	meta->vlan_tci = f->vlan_tci;
	meta->l3_offset = f->l3;
	meta->flags = (f->vlan ? UNIFIED_META_VLAN : 0) | (f->version == 6 ? UNIFIED_META_IPV6 : 0);
	meta->marker = UNIFIED_META_MARKER;
#endif
}

static __always_inline void log_event(struct xdp_md *ctx, const struct found *f, __u64 now,
				      struct unified_counters *count)
{
	void *data = (void *)(long)ctx->data;
	void *end = (void *)(long)ctx->data_end;
	struct unified_settings *set;
	struct unified_event *event;
	__u32 zero = 0;
	__u64 l3 = f->l3;
	__u64 flags = BPF_RB_NO_WAKEUP;

	set = bpf_map_lookup_elem(&unified_set, &zero);
	if (!set || !set->event_sample || (set->events_unread && !set->events_read))
		return;
	if (++count->since_event < set->event_sample)
		return;
	count->since_event = 0;
	event = bpf_ringbuf_reserve(&unified_events, sizeof(*event), 0);
	if (!event) {
		if (set->events_read)
			count->events_lost++;
		else
			set->events_unread = 1;
		return;
	}
	__builtin_memset(event, 0, sizeof(*event));
	event->timestamp = now;
	event->src_port = f->src_port;
	event->dst_port = f->dst_port;
	event->payload_len = f->payload_len;
	event->vlan_tci = f->vlan_tci;
	event->flags = f->vlan ? UNIFIED_META_VLAN : 0;
	event->queue = ctx->rx_queue_index;
	event->ip_version = f->version;
	/* At most 14 + 2 * 4. The compiler knows and drops the bound, which the verifier needs to see. */
	asm volatile("%0 &= 0x1f" : "+r"(l3));
	if (f->version == 4) {
		struct iphdr *ip = data + l3;

		if ((void *)(ip + 1) <= end) {
			__builtin_memcpy(event->src_addr, &ip->saddr, 4);
			__builtin_memcpy(event->dst_addr, &ip->daddr, 4);
		}
	} else {
		struct ipv6hdr *ip6 = data + l3;

		if ((void *)(ip6 + 1) <= end) {
			__builtin_memcpy(event->src_addr, &ip6->saddr, 16);
			__builtin_memcpy(event->dst_addr, &ip6->daddr, 16);
		}
	}
	/* Waking the reader costs more than writing the record: once for many. */
	if (bpf_ringbuf_query(&unified_events, BPF_RB_AVAIL_DATA) >= set->wake_bytes)
		flags = BPF_RB_FORCE_WAKEUP;
	bpf_ringbuf_submit(event, flags);
	count->events++;
}

static __always_inline int pass(struct unified_counters *count)
{
	count->passed++;
	return XDP_PASS;
}

SEC("xdp.frags")
int unified_xdp(struct xdp_md *ctx)
{
	struct found f = {};
	struct unified_counters *count;
	__u32 zero = 0, queue = ctx->rx_queue_index, counted = queue + 1;
	__u64 now;

	count = bpf_map_lookup_elem(&unified_stats, &counted);
	if (!count)
		count = bpf_map_lookup_elem(&unified_stats, &zero);
	if (!count)
		return XDP_PASS;
	count->seen++;

	switch (parse((void *)(long)ctx->data, (void *)(long)ctx->data_end, &f)) {
	case OURS:
		break;
	case FRAGMENT:
		count->fragments++;
		return pass(count);
	case MALFORMED:
		count->malformed++;
		return pass(count);
	default:
		return pass(count);
	}
#ifdef UNIFIED_MERGED
	if (is_merged(ctx)) {
		count->merged++;
		return pass(count);
	}
#endif
	/*
	 * Cut off: the stack drops such a packet, even if the datagram itself is whole. (What lies beyond the
	 * linear part is seldom there to be asked for.)
	 */
	if (f.l3_end > ctx->data_end - ctx->data && f.l3_end > bpf_xdp_get_buff_len(ctx)) {
		count->malformed++;
		return pass(count);
	}
	count->matched++;
	/* First, for a packet that is passed must be left as it was. */
	if (bpf_redirect_map(&unified_xsks, queue, XDP_PASS) != XDP_REDIRECT) {
		count->no_socket++;
		return pass(count);
	}
	now = bpf_ktime_get_ns();
	leave_metadata(ctx, &f, now, count);
	count->redirected++;
	log_event(ctx, &f, now, count);
	return XDP_REDIRECT;
}

char _license[] SEC("license") = "Dual BSD/GPL";
