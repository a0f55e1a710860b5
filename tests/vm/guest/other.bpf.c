/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/* A second XDP program beside the library's: it runs after it and passes everything. */
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>
#include <xdp/xdp_helpers.h>

struct {
	__uint(priority, 70);
	__uint(XDP_PASS, 1);
} XDP_RUN_CONFIG(other_pass);

SEC("xdp")
int other_pass(struct xdp_md *ctx)
{
	return XDP_PASS;
}

char _license[] SEC("license") = "Dual MIT/GPL";
