/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/* The system's linux/io_uring.h, and what programs of the interface need and older ones lack. */
#ifndef UNIFIED_COMPAT_IO_URING_H
#define UNIFIED_COMPAT_IO_URING_H

#include_next <linux/io_uring.h>
#include <linux/types.h>
#include <linux/version.h>

/* Operations of the interface. The numbers are RESIZE_RINGS and MEM_REGION in other kernels. */
#define IORING_REGISTER_UNIFIED_IFQ	33
#define IORING_UNREGISTER_UNIFIED_IFQ	34

#if LINUX_VERSION_CODE < KERNEL_VERSION(6, 15, 0)
#define IORING_REGISTER_ZCRX_IFQ	32
#endif

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
