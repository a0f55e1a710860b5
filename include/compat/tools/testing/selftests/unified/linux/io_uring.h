/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/* The system's linux/io_uring.h, and what programs of the interface need and older ones lack. */
#ifndef UNIFIED_COMPAT_IO_URING_H
#define UNIFIED_COMPAT_IO_URING_H

#include_next <linux/io_uring.h>
#include <linux/types.h>
#include <linux/version.h>

#if LINUX_VERSION_CODE < KERNEL_VERSION(6, 13, 0)
enum {
	/* The region is memory of the program. */
	IORING_MEM_REGION_TYPE_USER = 1,
};

struct io_uring_region_desc {
	__u64	user_addr;
	__u64	size;
	__u32	flags;
	__u32	id;
	__u64	mmap_offset;
	__u64	__resv[4];
};
#endif

#endif
