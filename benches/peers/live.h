/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* What live.c and its XDP program share: one element of an array map. */
#ifndef LIVE_H
#define LIVE_H

#define LIVE_SHAPES 12
#define LIVE_HEADERS 42

/* The header fields that depend on a frame's length, in network byte order, and that length. */
struct live_shape {
	__u32 frame_len;
	__u16 ip_len;
	__u16 ip_checksum;
	__u16 udp_len;
	__u16 unused;
};

struct live_state {
	/* Set by live.c. */
	__u32 out_ifindex;
	__u32 flows;
	__u32 shapes;
	__u32 template_len;
	/* From frame to frame, in 1/1024 ns; 0: no pacing. */
	__u64 gap;
	__u64 duration_ns;
	struct live_shape shape[LIVE_SHAPES];
	/* Set by the program. */
	__u64 calls;
	__u64 sent;
	__u64 start_ns;
	__u64 last_ns;
	__u64 skipped;
	/* When the next frame is due, in 1/1024 ns since start_ns. */
	__u64 due;
	__u32 flow;
	__u32 position;
	__u32 done;
	__u32 unused;
};

#endif
