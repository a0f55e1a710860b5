// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/*
 * Redirects the frame that it runs on to another interface, with a sequence number at the start of its payload.
 *
 * A frame that is not due yet is dropped: this paces the sender, since a drop costs only some 50 ns. The kernel reuses
 * the pages and restores only the length of a frame, so each run writes every field that varies.
 */
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_endian.h>
#include "live.h"

/* If the sender was held up for longer than this, it does not catch up: a burst is not a steady rate. */
#define CATCH_UP (1000000ull << 10)

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct live_state);
} live_state SEC(".maps");

SEC("xdp")
int live(struct xdp_md *ctx)
{
	__u32 zero = 0;
	struct live_state *s = bpf_map_lookup_elem(&live_state, &zero);
	const struct live_shape *shape;
	unsigned char *data, *end;
	__u32 position;

	if (!s || s->done)
		return XDP_DROP;
	/* The clock costs as much as the rest of this program. Without pacing, read it for every 64th frame only. */
	if (s->gap || !(s->calls & 63)) {
		__u64 now = bpf_ktime_get_ns();

		if (!s->start_ns)
			s->start_ns = now;
		now -= s->start_ns;
		s->last_ns = now;
		if (now >= s->duration_ns) {
			s->done = 1;
			return XDP_DROP;
		}
		now <<= 10;
		if (s->gap) {
			if (now < s->due)
				return XDP_DROP;
			if (now - s->due > CATCH_UP) {
				s->skipped++;
				s->due = now;
			}
			s->due += s->gap;
		}
	}
	s->calls++;

	position = s->position;
	if (position >= LIVE_SHAPES)
		return XDP_ABORTED;
	shape = &s->shape[position];
	s->position = position + 1 < s->shapes ? position + 1 : 0;
	if (shape->frame_len != s->template_len &&
	    bpf_xdp_adjust_tail(ctx, (int)shape->frame_len - (int)s->template_len) < 0)
		return XDP_ABORTED;
	data = (void *)(long)ctx->data;
	end = (void *)(long)ctx->data_end;
	if (data + LIVE_HEADERS + sizeof(__u64) > end)
		return XDP_ABORTED;
	*(__u16 *)(data + 16) = shape->ip_len;
	*(__u16 *)(data + 24) = shape->ip_checksum;
	*(__u16 *)(data + 34) = bpf_htons(1024 + s->flow);
	*(__u16 *)(data + 38) = shape->udp_len;
	*(__u64 *)(data + LIVE_HEADERS) = s->sent++;
	s->flow = s->flow + 1 < s->flows ? s->flow + 1 : 0;
	return bpf_redirect(s->out_ifindex, 0);
}

char _license[] SEC("license") = "Dual BSD/GPL";
