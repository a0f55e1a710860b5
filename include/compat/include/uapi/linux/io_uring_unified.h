/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/* For programs that name the kernel tree's header by its path relative to tools/testing/selftests/NAME. */
#include <linux/io_uring_unified.h>
