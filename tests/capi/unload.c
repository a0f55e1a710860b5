/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/*
 * The library by dlopen, used with threads of its own and with an error, and unloaded, again and again:
 * unload LIBRARY IFACE FILE
 *
 * It prints what is left each time, and exits with 0 if that is nothing: no thread, no descriptor, and no mapping of
 * the library's once the threads that have called it have ended.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <dlfcn.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unified.h>

static char **words;
static void *library;

static int entries(const char *directory)
{
	DIR *open = opendir(directory);
	int count = 0;

	while (open && readdir(open))
		count++;
	if (open)
		closedir(open);
	return count;
}

static int mapped(void)
{
	FILE *maps = fopen("/proc/self/maps", "r");
	char line[512];
	int count = 0;

	while (maps && fgets(line, sizeof(line), maps))
		count += strstr(line, "libunified") != NULL;
	if (maps)
		fclose(maps);
	return count;
}

static void *symbol(const char *name)
{
	void *found = dlsym(library, name);

	if (!found)
		fprintf(stderr, "%s\n", dlerror()), exit(1);
	return found;
}

static void *use(void *unused)
{
	struct unified_config config = { .size = sizeof(config), .ifname = words[2], .device = words[3],
					 .file_size = 1 << 20, .drive = UNIFIED_DRIVE_THREAD };
	struct unified_pipeline_config range = { .size = sizeof(range) };
	int (*create)(const struct unified_config *, unified_ctx **);
	int (*start)(unified_ctx *, const struct unified_pipeline_config *);
	int (*destroy)(unified_ctx *);
	const char *(*last_error)(void);
	unified_ctx *ctx;

	(void)unused;
	*(void **)&create = symbol("unified_ctx_create");
	*(void **)&start = symbol("unified_pipeline_start");
	*(void **)&destroy = symbol("unified_ctx_destroy");
	*(void **)&last_error = symbol("unified_last_error");
	if (create(NULL, &ctx) >= 0 || !strlen(last_error()))
		fprintf(stderr, "NULL was taken\n"), exit(1);
	if (create(&config, &ctx) || start(ctx, &range) || destroy(ctx))
		fprintf(stderr, "%s\n", last_error()), exit(1);
	return NULL;
}

int main(int argc, char **argv)
{
	int fds = entries("/proc/self/fd"), left = 0;

	if (argc != 4)
		return 2;
	words = argv;
	for (int round = 0; round < 5; round++) {
		pthread_t thread;
		int threads, open;

		library = dlopen(words[1], RTLD_NOW | RTLD_LOCAL);
		if (!library)
			return fprintf(stderr, "%s\n", dlerror()), 1;
		if (pthread_create(&thread, NULL, use, NULL) || pthread_join(thread, NULL))
			return 2;
		/* The C library keeps mapped what a living thread has destructors of: the message of its last error. */
		if (dlclose(library))
			return fprintf(stderr, "%s\n", dlerror()), 1;
		threads = entries("/proc/self/task") - 3;
		open = entries("/proc/self/fd") - fds;
		printf("threads=%d descriptors=%d mappings=%d\n", threads, open, mapped());
		left |= threads | open | mapped();
	}
	return left != 0;
}
