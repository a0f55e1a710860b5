// SPDX-License-Identifier: MIT OR Apache-2.0
/*
 * For programs of the documented registration interface that are built already: LD_PRELOAD this object,
 * and their calls reach libunified as if they had been linked with --wrap. It interposes for everything
 * in the process, so it hands on at once whatever the interface is not about.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <stdarg.h>
#include <sys/resource.h>
#include <sys/syscall.h>

struct xsk_umem;
struct xsk_ring_prod;
struct xsk_ring_cons;
struct xsk_umem_config;

long __wrap_syscall(long number, ...);
int __wrap_setrlimit(int resource, const struct rlimit *limit);
int __wrap_xsk_umem__create(struct xsk_umem **umem, void *area, __UINT64_TYPE__ size,
			    struct xsk_ring_prod *fill, struct xsk_ring_cons *comp,
			    const struct xsk_umem_config *config);

static long (*real_syscall)(long number, ...);

/* Not at the first call: that one may come from a signal handler. */
__attribute__((constructor)) static void find_real(void)
{
	real_syscall = (long (*)(long, ...))dlsym(RTLD_NEXT, "syscall");
}

long syscall(long number, ...)
{
	long a[6];
	va_list list;

	va_start(list, number);
	for (int i = 0; i < 6; i++)
		a[i] = va_arg(list, long);
	va_end(list);
	if (number == SYS_io_uring_setup || number == SYS_io_uring_register)
		return __wrap_syscall(number, a[0], a[1], a[2], a[3], a[4], a[5]);
	if (!real_syscall)
		find_real();
	if (!real_syscall) {
		errno = ENOSYS;
		return -1;
	}
	return real_syscall(number, a[0], a[1], a[2], a[3], a[4], a[5]);
}

int xsk_umem__create(struct xsk_umem **umem, void *area, __UINT64_TYPE__ size,
		     struct xsk_ring_prod *fill, struct xsk_ring_cons *comp,
		     const struct xsk_umem_config *config)
{
	return __wrap_xsk_umem__create(umem, area, size, fill, comp, config);
}

int setrlimit(__rlimit_resource_t resource, const struct rlimit *limit)
{
	return __wrap_setrlimit((int)resource, limit);
}
