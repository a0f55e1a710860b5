/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* What the XDP program and the library share. The Rust side is src/net/wire.rs; both assert the sizes. */
#ifndef UNIFIED_XDP_H
#define UNIFIED_XDP_H

/*
 * Stands directly before the packet, its marker next to the first byte of the Ethernet header. So short that it lies in the
 * cache line in which the packet begins, if the payload begins at the next block.
 */
struct unified_meta {
	__u64 timestamp; /* ns, CLOCK_MONOTONIC */
	__u16 payload_offset; /* from the Ethernet header; the UDP header ends there */
	__u16 payload_len;
	__u16 vlan_tci; /* outermost tag; valid with UNIFIED_META_VLAN */
	__u8 l3_offset;
	__u8 flags;
	__u32 marker;
} __attribute__((packed, aligned(4)));

#define UNIFIED_META_VLAN 1
#define UNIFIED_META_IPV6 2 /* else IPv4 */
#define UNIFIED_META_MARKER 0x32464e55

/* One record of the events ring buffer. */
struct unified_event {
	__u64 timestamp;
	__u8 src_addr[16]; /* IPv4: the first four bytes */
	__u8 dst_addr[16];
	__u16 src_port; /* host order */
	__u16 dst_port;
	__u16 payload_len;
	__u16 vlan_tci;
	__u32 queue;
	__u8 ip_version;
	__u8 flags;
	__u16 reserved;
};

/* Per CPU; seen = passed + redirected. */
struct unified_counters {
	__u64 seen;
	__u64 passed;
	__u64 redirected;
	__u64 matched; /* UDP to a port of the map, whole, not a fragment */
	__u64 no_socket; /* matched, but no socket on this queue: passed */
	__u64 malformed; /* UDP to one of our ports whose lengths cannot be: passed */
	__u64 fragments; /* passed */
	__u64 events;
	__u64 events_lost; /* somebody reads them, and the ring buffer was full */
	__u64 no_metadata; /* no metadata area: the driver has none, or the dispatcher may not make one */
	__u64 merged; /* several datagrams to one of our ports in one packet: passed */
	__u64 since_event; /* packets since the last that was logged: the program's own */
};

/* Changed from user space at any time. */
struct unified_settings {
	__u32 event_sample; /* one event in so many packets; 0: none */
	__u32 wake_bytes; /* wake the events' reader when so much waits */
	__u32 owner_pid; /* the process that loaded the program */
	__u32 owner_pid_namespace; /* in which that number is meant: the inode of /proc/self/ns/pid */
	__u64 owner_start; /* its start time, as /proc tells */
	/* The process lives as long as the abstract UNIX socket "unified-xdp-" and this in 16 hex digits is bound in the
	 * interface's network namespace. 0: there is none. */
	__u64 owner_token;
	__u32 events_read; /* somebody reads events: one that finds no room is lost */
	/* The program's own: nobody has read events yet, and there is no room for more. None is logged. */
	__u32 events_unread;
};

_Static_assert(sizeof(struct unified_meta) == 20, "at most 32 bytes fit before a packet on older kernels");
_Static_assert(sizeof(struct unified_event) == 56, "src/net/wire.rs");
_Static_assert(sizeof(struct unified_counters) == 96, "src/net/wire.rs");
_Static_assert(sizeof(struct unified_settings) == 40, "src/net/wire.rs");

#endif
