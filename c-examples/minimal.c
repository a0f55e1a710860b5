/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/* Stores COUNT payloads that come to UDP port 9999 of IFACE, one block or more each: minimal IFACE DEVICE COUNT */
#include <stdio.h>
#include <stdlib.h>
#include <unified.h>

int main(int argc, char **argv)
{
	struct unified_config config = { .size = sizeof(config), .file_size = 64 << 20 };
	struct unified_info info = { .size = sizeof(info) };
	struct unified_packet packets[64];
	struct unified_completion done[64];
	unified_ctx *ctx;
	uint64_t lba = 0, received = 0, finished = 0, failed = 0, count;

	if (argc != 4 || !(count = strtoull(argv[3], NULL, 0)))
		return fprintf(stderr, "usage: %s IFACE DEVICE COUNT\n", argv[0]), 2;
	config.ifname = argv[1];
	config.device = argv[2];
	if (unified_ctx_create(&config, &ctx) < 0 || unified_ctx_info(ctx, &info) < 0)
		return fprintf(stderr, "%s\n", unified_last_error()), 1;
	printf("Receiving on %s, storing on %s (%s)\n", argv[1], argv[2], info.backend);
	fflush(stdout);
	while (finished < count) {
		uint64_t room = info.sq_entries - (received - finished), left = count - received;
		uint32_t most = room < 64 ? room : 64;
		int n = 0, got;

		unified_wait(ctx, (left && room ? UNIFIED_WAIT_RX : 0) | UNIFIED_WAIT_COMPLETIONS, 1000);
		if (left && room && (n = unified_rx_batch(ctx, packets, left < most ? left : most)) < 0)
			break;
		for (int i = 0; i < n; i++, received++) {
			struct unified_packet *p = &packets[i];

			if (unified_submit_write(ctx, p->frame, p->payload, p->payload_len, lba, lba, 0) < 0) {
				unified_frame_release(ctx, p->frame); /* an empty payload */
				finished++, failed++;
				continue;
			}
			lba += (p->payload_len + info.block_size - 1) / info.block_size;
		}
		if ((got = unified_completions(ctx, done, 64)) < 0)
			break;
		for (int i = 0; i < got; i++, finished++)
			failed += done[i].status != 0;
	}
	printf("Stored %llu of %llu\n", (unsigned long long)(finished - failed), (unsigned long long)count);
	if (finished < count)
		fprintf(stderr, "%s\n", unified_last_error());
	if (unified_ctx_destroy(ctx) < 0) {
		fprintf(stderr, "%s\n", unified_last_error());
		failed++;
	}
	return failed || finished < count;
}
