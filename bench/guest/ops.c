// SPDX-License-Identifier: GPL-2.0
/*
 * What fio can't count: ops KIND PATH NUMBER [HELD] prints nanoseconds, in a
 * guest whose clock counts instructions, of
 *
 *	open	an open and close
 *	read	a pread of the last 4 KiB, while PATH is open HELD times more
 */
#include <err.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

static int open_file(const char *path)
{
	int fd = open(path, O_RDWR);

	if (fd < 0)
		err(1, "%s", path);
	return fd;
}

static void open_and_close(const char *path)
{
	close(open_file(path));
}

static void read_last(int fd, off_t end)
{
	static char block[4096];

	if (pread(fd, block, sizeof(block), end - sizeof(block)) != sizeof(block))
		err(1, "pread");
}

static void hold(const char *path, int count)
{
	struct rlimit files = { count + 64, count + 64 };

	if (setrlimit(RLIMIT_NOFILE, &files))
		err(1, "%d open files", count);
	while (count--)
		open_file(path);
}

static long long now(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec * 1000000000ll + t.tv_nsec;
}

int main(int argc, char **argv)
{
	int opens = argc > 1 && !strcmp(argv[1], "open"), number, fd, i;
	long long start = 0;
	struct stat st;

	if (argc < 4)
		errx(2, "ops open|read PATH NUMBER [HELD]");
	number = atoi(argv[3]);
	if (argc > 4)
		hold(argv[2], atoi(argv[4]));
	fd = open_file(argv[2]);
	if (fstat(fd, &st))
		err(1, "%s", argv[2]);
	/* The first tenth warms up */
	for (i = -number / 10; i < number; i++) {
		if (!i)
			start = now();
		if (opens)
			open_and_close(argv[2]);
		else
			read_last(fd, st.st_size);
	}
	printf("%.1f\n", (double)(now() - start) / number);
	return 0;
}
