/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/*
 * unified_uapi.h - the documented registration interface: rings that a program writes itself.
 *
 * A program makes an io_uring, maps a region (shared memory), and registers the region and a storage
 * device with that ring:
 *
 *     int ring = syscall(__NR_io_uring_setup, 256, &params);
 *     syscall(__NR_io_uring_register, ring, IO_UNIFIED_REGISTER, &reg, 1);
 *     ... store entries, raise sq->producer; load cq->producer, raise cq->consumer ...
 *     syscall(__NR_io_uring_register, ring, IO_UNIFIED_UNREGISTER, NULL, 0);
 *
 * From registration on the rings are served; no further system call is made. Link the program with what
 * `pkg-config --libs unified-uapi` prints: it sends these two operations to the library, which works on
 * a stock kernel. All other system calls go to the kernel.
 *
 * struct io_uring_region_desc is that of linux/io_uring.h; where the system's is older than 6.13, the
 * directory that `pkg-config --cflags unified-uapi` names has one that adds it.
 *
 * For programs that need no raw rings unified.h is the simpler interface to the same engine.
 *
 * Little endian, natural alignment, no hidden padding. Documentation: docs/uapi.md.
 */
#ifndef UNIFIED_UAPI_H
#define UNIFIED_UAPI_H

#include <linux/types.h>

/*
 * struct nvme_uring_cmd (72 bytes) is the one of linux/nvme_ioctl.h where that was included before this
 * file, or where a program that has one of its own says so with UNIFIED_HAVE_NVME_URING_CMD. Otherwise
 * the same layout has a name that collides with neither; its fields are the same.
 */
#if defined(_LINUX_NVME_IOCTL_H) || defined(UNIFIED_HAVE_NVME_URING_CMD)
#define io_unified_nvme_cmd nvme_uring_cmd
#else
struct io_unified_nvme_cmd {
	__u8	opcode;		/* 01h Write, 02h Read, 00h Flush, 06h Identify, ... */
	__u8	flags;		/* zero */
	__u16	rsvd1;
	__u32	nsid;		/* 0 or 1: the opened namespace */
	__u32	cdw2;
	__u32	cdw3;
	__u64	metadata;	/* zero */
	__u64	addr;		/* data: an address in the data buffers, or 0 (then buf_offset) */
	__u32	metadata_len;	/* zero */
	__u32	data_len;	/* bytes; must be what cdw12 says */
	__u32	cdw10;		/* LBA, low half, in units of 512 bytes */
	__u32	cdw11;		/* LBA, high half */
	__u32	cdw12;		/* low 16 bits: units of 512 bytes, less one; bit 30: FUA */
	__u32	cdw13;
	__u32	cdw14;
	__u32	cdw15;
	__u32	timeout_ms;
	__u32	rsvd2;
};
#endif

/* Operations of io_uring_register. Both return 0, or -1 and errno. */
#define IO_UNIFIED_REGISTER	33	/* arg: struct io_unified_reg, nr_args 1 */
#define IO_UNIFIED_UNREGISTER	34	/* arg: NULL, nr_args 0 */

#define IO_UNIFIED_MAX_ENTRIES	32768

/* buf_offset of an entry without data. */
#define IO_UNIFIED_NO_BUFFER	(~(__u64)0)

/*
 * io_unified_ring.flags, bit 0: that ring's consumer sleeps and wants to be woken. The server of raw
 * rings polls and never sets it; a program may ignore it.
 */
#define IO_UNIFIED_NEED_WAKEUP	(1U << 0)

/* io_unified_cqe.flags */
#define IO_UNIFIED_CQE_DNR	(1U << 0)	/* the device says: do not retry */
#define IO_UNIFIED_CQE_BOUNCED	(1U << 2)	/* the data was copied: its place did not suit the device */

/* Where the parts are, in bytes from the region's start. */
struct io_unified_offsets {
	__u64	sq_ring;	/* struct io_unified_ring */
	__u64	cq_ring;	/* struct io_unified_ring */
	__u64	sq_entries;	/* struct io_unified_sqe, as many as sq_ring's ring_entries */
	__u64	cq_entries;	/* struct io_unified_cqe */
	__u64	buffers;	/* the data buffers; on a page boundary */
};

/*
 * Registration. errno:
 *   EPERM         the device may not be opened, or io_uring is forbidden
 *   EBUSY         something is registered with this ring already; the device is in use
 *   EINVAL        flags or reserved fields not zero, a count zero or above IO_UNIFIED_MAX_ENTRIES, the
 *                 region too small, not shared memory, or not on a page
 *   EFAULT        a bad pointer; a region that is not mapped for reading and writing
 *   ENOMEM        RLIMIT_MEMLOCK
 *   ENOENT ENODEV the device
 *   EBADF EOPNOTSUPP  the descriptor is none, or not an io_uring
 */
struct io_unified_reg {
	__u64	region_ptr;		/* in: struct io_uring_region_desc */
	__u64	nvme_dev_path;		/* in: a C string: /dev/ngXnY, /dev/nvmeXnY, block device, file */
	__u32	sq_entries;		/* in: rounded up to a power of two */
	__u32	cq_entries;		/* in: the same */
	__u32	buffer_entries;		/* in: number of data buffers */
	__u32	buffer_entry_size;	/* in: bytes in one */
	__u32	flags;			/* zero */
	union {				/* zero; programs name it either way */
		__u32	__resv[3];
		__u32	resv[3];
		__u32	reserved[3];
	};
	struct io_unified_offsets offsets;	/* out */
};

/*
 * One ring. Indices run freely through all 32 bits; ring_mask is applied on access only. One side writes
 * an entry and then `producer` (release); the other reads it and then writes `consumer` (release). Each
 * reads the other's index with acquire. The program produces on the SQ and consumes on the CQ.
 */
struct io_unified_ring {
	__u32	producer;
	__u32	consumer;
	__u32	cached_producer;	/* the program's, for whatever it likes */
	__u32	cached_consumer;	/* the program's */
	__u32	flags;
	__u32	ring_entries;		/* a power of two */
	__u64	ring_mask;		/* ring_entries - 1 */
	__u64	ring_size;		/* bytes of the entries */
};

/* An SQ entry: 96 bytes. */
struct io_unified_sqe {
	struct io_unified_nvme_cmd nvme_cmd;
	__u64	buf_offset;	/* into the data buffers, where nvme_cmd.addr is zero */
	__u64	user_data;	/* comes back in the completion; need not be unique */
	__u32	flags;		/* zero */
	__u32	pad;
};

/* A CQ entry: 32 bytes. */
struct io_unified_cqe {
	__u64	user_data;
	__s32	result;		/* 0, or a negative errno where the system failed rather than the device */
	__u32	status;		/* NVMe status: type << 8 | code; 0 is success */
	__u64	dma_addr;	/* the data's offset in the data buffers */
	__u32	len;		/* bytes moved */
	__u32	flags;		/* IO_UNIFIED_CQE_* */
};

#if defined(__STDC_VERSION__) && __STDC_VERSION__ >= 201112L
_Static_assert(sizeof(struct io_unified_reg) == 88, "io_unified_reg");
_Static_assert(sizeof(struct io_unified_ring) == 40, "io_unified_ring");
_Static_assert(sizeof(struct io_unified_sqe) == 96, "io_unified_sqe");
_Static_assert(sizeof(struct io_unified_cqe) == 32, "io_unified_cqe");
#endif

#endif /* UNIFIED_UAPI_H */
