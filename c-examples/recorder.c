/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/*
 * A recorder in two calls: the library's own threads keep a log of what comes to UDP port 9999, which
 * survives restarts and crashes; and the same log read back, or followed while it grows.
 *
 *     recorder record IFACE DEVICE COUNT    until COUNT packets are durable, or Ctrl-C
 *     recorder show DEVICE [SECONDS]        each record; with SECONDS waits so long for more
 */
#define _GNU_SOURCE
#include <errno.h>
#include <inttypes.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unified.h>

static int fail(const char *what)
{
	fprintf(stderr, "%s: %s\n", what, unified_last_error());
	return 1;
}

static int record(const char *iface, const char *device, uint64_t count)
{
	struct unified_config config = {
		.size = sizeof(config),
		.ifname = iface,
		.device = device,
		.file_size = 64 << 20,
		.drive = UNIFIED_DRIVE_THREAD,
	};
	struct unified_pipeline_config pipeline = {
		.size = sizeof(pipeline),
		.layout = UNIFIED_LAYOUT_SLOT,
		.at_end = UNIFIED_AT_END_WRAP,
		.flush_writes = 1000,
		.flush_interval_ms = 20,
	};
	struct unified_pipeline_status status = { .size = sizeof(status) };
	struct unified_stats stats = { .size = sizeof(stats) };
	struct timespec tick = { .tv_nsec = 50000000 };
	unified_ctx *ctx;
	sigset_t signals;
	uint64_t lost;
	int failed = 0;

	sigemptyset(&signals);
	sigaddset(&signals, SIGINT);
	sigaddset(&signals, SIGTERM);
	sigprocmask(SIG_BLOCK, &signals, NULL);
	if (unified_ctx_create(&config, &ctx) < 0)
		return fail("Opening");
	if (unified_pipeline_start(ctx, &pipeline) < 0) {
		failed = fail("Starting the pipeline");
		unified_ctx_destroy(ctx);
		return failed;
	}
	unified_pipeline_status(ctx, &status);
	printf("Recording from sequence number %" PRIu64 " on\n", status.first_sequence);
	fflush(stdout);
	while (status.running && status.durable < count) {
		if (sigtimedwait(&signals, NULL, &tick) > 0)
			break;
		unified_pipeline_status(ctx, &status);
	}
	if (unified_pipeline_stop(ctx, &status) < 0)
		failed = fail("Stopping");
	if (unified_ctx_stats(ctx, &stats) < 0)
		failed = fail("Counting");
	printf("%" PRIu64 " recorded, %" PRIu64 " failed, %" PRIu64 " durable\n", status.stored, status.failed,
	       status.durable);
	lost = stats.rx_dropped + stats.rx_ring_full + stats.redirect_errors;
	if (lost)
		printf("%" PRIu64 " dropped by the kernel: the log says so, too\n", lost);
	if (unified_ctx_destroy(ctx) < 0)
		failed = fail("Closing");
	return failed || status.failed;
}

static int show(const char *device, int seconds)
{
	struct unified_log_record record = { .size = sizeof(record) };
	struct unified_log *log;
	int ret;

	if (unified_log_open(device, 0, &log) < 0)
		return fail("Opening");
	while ((ret = unified_log_next(log, &record, seconds * 1000)) > 0) {
		time_t when = record.timestamp / 1000000000;
		struct tm utc;
		char text[32];

		switch (record.kind) {
		case UNIFIED_LOG_RECORD:
			gmtime_r(&when, &utc);
			strftime(text, sizeof(text), "%Y-%m-%dT%H:%M:%S", &utc);
			printf("%" PRIu64 " %s.%09" PRIu64 "Z port %u: %u bytes\n", record.sequence, text,
			       record.timestamp % 1000000000, record.dst_port, record.payload_len);
			break;
		case UNIFIED_LOG_OVERWRITTEN:
			printf("%" PRIu64 " and %" PRIu64 " more: overwritten\n", record.sequence, record.count - 1);
			break;
		default:
			printf("%" PRIu64 " and %" PRIu64 " more: %s\n", record.sequence, record.count - 1,
			       record.kind == UNIFIED_LOG_MISSING ? "never completed" : "damaged");
		}
		record.size = sizeof(record);
	}
	unified_log_close(log);
	if (ret < 0)
		return fail("Reading");
	if (fflush(stdout) != 0 || ferror(stdout))
		return perror("Writing the standard output"), 1;
	return 0;
}

int main(int argc, char **argv)
{
	if (argc == 5 && !strcmp(argv[1], "record"))
		return record(argv[2], argv[3], strtoull(argv[4], NULL, 0));
	if ((argc == 3 || argc == 4) && !strcmp(argv[1], "show"))
		return show(argv[2], argc == 4 ? atoi(argv[3]) : 0);
	fprintf(stderr, "usage: %s record IFACE DEVICE COUNT\n       %s show DEVICE [SECONDS]\n", argv[0], argv[0]);
	return 2;
}
