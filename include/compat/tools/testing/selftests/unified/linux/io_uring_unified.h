/* SPDX-License-Identifier: MIT OR Apache-2.0 */
#ifndef UNIFIED_COMPAT_IO_URING_UNIFIED_H
#define UNIFIED_COMPAT_IO_URING_UNIFIED_H

#include <linux/io_uring.h>
#include <unified_uapi.h>

#endif
