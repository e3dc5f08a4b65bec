// SPDX-License-Identifier: GPL-2.0
/*
 * Where the bytes come from and go to: pipes, other files, the kernel itself,
 * and buffers whose pages are not there, or can't be had for a device.
 */
#define _GNU_SOURCE
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/sendfile.h>
#include <sys/uio.h>
#include <linux/fs.h>

#include "fuse_test_blocked.h"
#include "fuse_test_io.h"

static const char zeros[32 * BLOCK];

/* These can read without waiting, tmpfs and overlayfs can not. */
static bool on_disk(const char *fs)
{
	return strcmp(fs, "tmpfs") && strcmp(fs, "overlay");
}

TEST_F(io, copy_file_range)
{
	loff_t from = 10, to = 100;
	int in, out;

	ASSERT_TRUE(make_lower(LOWER2, 0666, 2 * BLOCK));
	in = open(self->other, O_RDONLY);
	out = open(self->env.path, O_RDWR);
	ASSERT_LE(0, in);
	ASSERT_LE(0, out);
	ASSERT_EQ(BLOCK, copy_file_range(in, &from, out, &to, BLOCK, 0));
	ASSERT_EQ(100 + BLOCK, size_of(out));
	ASSERT_EQ(BLOCK, pread(out, back, sizeof(back), 100));
	ASSERT_EQ(0, memcmp(data + 10, back, BLOCK));
	ASSERT_TRUE(lower_is(100 + BLOCK, 100, data + 10, BLOCK));
	close(in);
	close(out);
	check_seen(_metadata, self->env.srv, variant->way, FUSE_READ);
	if (self->env.srv) {
		ASSERT_EQ(1, self->env.srv->seen[FUSE_COPY_FILE_RANGE]);
		ASSERT_EQ(0, self->env.srv->seen[FUSE_WRITE]);
	}
}

TEST_F(io, splice)
{
	loff_t in = 100, out = 50;
	int fd, pipes[2];

	ASSERT_TRUE(make_lower(LOWER, 0666, 2 * BLOCK));
	fd = open(self->env.path, O_RDWR);
	ASSERT_LE(0, fd);
	ASSERT_EQ(0, pipe(pipes));
	ASSERT_EQ(5000, splice(fd, &in, pipes[1], NULL, 5000, 0));
	ASSERT_EQ(5100, in);
	ASSERT_EQ(5000, read(pipes[0], back, sizeof(back)));
	ASSERT_EQ(0, memcmp(data + 100, back, 5000));
	ASSERT_EQ(BLOCK, write(pipes[1], data + 7, BLOCK));
	ASSERT_EQ(BLOCK, splice(pipes[0], NULL, fd, &out, BLOCK, 0));
	ASSERT_EQ(50 + BLOCK, out);
	ASSERT_TRUE(lower_is(2 * BLOCK, 50, data + 7, BLOCK));
	/* Past the end. */
	out = 3 * BLOCK;
	ASSERT_EQ(BLOCK, write(pipes[1], data, BLOCK));
	ASSERT_EQ(BLOCK, splice(pipes[0], NULL, fd, &out, BLOCK, 0));
	ASSERT_EQ(4 * BLOCK, size_of(fd));
	ASSERT_TRUE(lower_is(4 * BLOCK, 3 * BLOCK, data, BLOCK));
	close(fd);
	close(pipes[0]);
	close(pipes[1]);
	check_seen(_metadata, self->env.srv, variant->way, FUSE_READ);
	check_seen(_metadata, self->env.srv, variant->way, FUSE_WRITE);
}

struct splicer {
	pthread_t id;
	atomic_int tid;
	int from;
	int to;
	ssize_t result;
};

static void *splice_it(void *arg)
{
	struct splicer *s = arg;

	s->tid = gettid();
	s->result = srv_result(splice(s->from, NULL, s->to, NULL, BLOCK, 0));
	return NULL;
}

/* Until the thread waits, not to be interrupted; false when it is gone. */
static bool wait_until_stuck(int tid)
{
	char state;

	do {
		state = task_state(tid);
	} while (state && state != 'D');
	return state;
}

/*
 * A splice to a frozen file system waits before it locks the pipe: whoever
 * needs the pipe for the thaw would wait for ever.
 */
TEST_F(io, splice_to_frozen)
{
	struct splicer s = { 0 };
	int root, pipes[2];
	pid_t thaw;

	if (!strcmp(variant->fs, "tmpfs") || variant->way == PLAIN)
		return;
	root = open(strcmp(variant->fs, "overlay") ? SRV_LOWER :
						     SRV_BASE "/ext4",
		    O_RDONLY);
	s.to = open(self->env.path, O_WRONLY);
	ASSERT_LE(0, root);
	ASSERT_LE(0, s.to);
	ASSERT_EQ(0, pipe2(pipes, O_NONBLOCK));
	ASSERT_EQ(BLOCK, write(pipes[1], data, BLOCK));
	s.from = pipes[0];
	ASSERT_EQ(0, ioctl(root, FIFREEZE, 0));
	thaw = fork();
	if (!thaw) {
		/* Late enough that the thaw below fails. */
		sleep(15);
		ioctl(root, FITHAW, 0);
		_exit(0);
	}
	ASSERT_EQ(0, pthread_create(&s.id, NULL, splice_it, &s));
	while (!s.tid)
		sched_yield();
	EXPECT_TRUE(wait_until_stuck(s.tid));
	EXPECT_EQ(10, write(pipes[1], data, 10));
	EXPECT_EQ(0, ioctl(root, FITHAW, 0));
	kill(thaw, SIGKILL);
	ASSERT_EQ(thaw, waitpid(thaw, NULL, 0));
	ASSERT_EQ(0, pthread_join(s.id, NULL));
	ASSERT_EQ(BLOCK, s.result);
	ASSERT_TRUE(lower_is(BLOCK, 0, data, BLOCK));
	close(root);
	close(s.to);
	close(pipes[0]);
	close(pipes[1]);
}

TEST_F(io, sendfile)
{
	int from, to;

	ASSERT_TRUE(make_lower(LOWER2, 0666, 9000));
	from = open(self->other, O_RDONLY);
	to = open(self->env.path, O_RDWR);
	ASSERT_LE(0, from);
	ASSERT_LE(0, to);
	ASSERT_EQ(9000, sendfile(to, from, NULL, sizeof(data)));
	ASSERT_EQ(9000, size_of(to));
	ASSERT_EQ(9000, lseek(to, 0, SEEK_CUR));
	ASSERT_EQ(9000, pread(to, back, sizeof(back), 0));
	ASSERT_EQ(0, memcmp(data, back, 9000));
	ASSERT_TRUE(lower_is(9000, 0, data, 9000));
	close(from);
	close(to);
	check_seen(_metadata, self->env.srv, variant->way, FUSE_READ);
	check_seen(_metadata, self->env.srv, variant->way, FUSE_WRITE);
}

/* The kernel itself reads: the first line of a script, then its shell. */
TEST_F(io, exec)
{
	static const char script[] = "#!/bin/sh\nexit 42\n";
	int fd = open(LOWER, O_WRONLY | O_TRUNC), status;
	pid_t pid;

	ASSERT_EQ((ssize_t)strlen(script), write(fd, script, strlen(script)));
	ASSERT_EQ(0, fchmod(fd, 0755));
	close(fd);
	pid = fork();
	if (!pid) {
		execl(self->env.path, "file", NULL);
		_exit(1);
	}
	ASSERT_EQ(pid, waitpid(pid, &status, 0));
	ASSERT_TRUE(WIFEXITED(status));
	ASSERT_EQ(42, WEXITSTATUS(status));
	check_seen(_metadata, self->env.srv, variant->way, FUSE_READ);
}

TEST_F(io, direct)
{
	char *buf = aligned_alloc(BLOCK, 8 * BLOCK);
	bool tmpfs = !strcmp(variant->fs, "tmpfs");
	int fd = open(self->env.path, O_RDWR | O_DIRECT);

	ASSERT_NE(NULL, buf);
	if (tmpfs) {
		ASSERT_EQ(-1, fd);
		ASSERT_EQ(EINVAL, errno);
		return;
	}
	ASSERT_LE(0, fd);
	memcpy(buf, data, 8 * BLOCK);
	ASSERT_EQ(8 * BLOCK, pwrite(fd, buf, 8 * BLOCK, BLOCK));
	ASSERT_EQ(9 * BLOCK, size_of(fd));
	ASSERT_TRUE(lower_is(9 * BLOCK, BLOCK, data, 8 * BLOCK));
	memset(buf, 0, 8 * BLOCK);
	ASSERT_EQ(7 * BLOCK, pread(fd, buf, 8 * BLOCK, 2 * BLOCK));
	ASSERT_EQ(0, memcmp(data + BLOCK, buf, 7 * BLOCK));
	ASSERT_EQ(0, pread(fd, buf, BLOCK, 9 * BLOCK));
	/* The lower file's alignment counts. */
	if (variant->way != PLAIN) {
		ASSERT_EQ(-1, pread(fd, buf + 1, 100, BLOCK));
		ASSERT_EQ(EINVAL, errno);
	}
	close(fd);
	check_seen(_metadata, self->env.srv, variant->way, FUSE_READ);
	check_seen(_metadata, self->env.srv, variant->way, FUSE_WRITE);
}

/*
 * In a file without extents, O_DIRECT fills a hole by way of the page cache.
 * What the buffer has no pages for is there exactly the hole.
 */
TEST_F(io, direct_over_a_hole)
{
	int lower, source, fd;
	char *map;

	if (!strcmp(variant->fs, "tmpfs"))
		return;
	lower = open(LOWER, O_RDWR);
	ASSERT_EQ(8 * BLOCK, write(lower, back, 8 * BLOCK));
	ASSERT_EQ(0, fsync(lower));
	ASSERT_TRUE(strcmp(variant->fs, "ext4") || map_by_blocks(lower));
	ASSERT_EQ(0, ftruncate(lower, 64 * BLOCK));
	ASSERT_EQ(0, fsync(lower));
	close(lower);

	source = open(SRV_BASE "/source", O_CREAT | O_RDWR, 0600);
	ASSERT_EQ(32 * BLOCK, write(source, data, 32 * BLOCK));
	map = mmap(NULL, 32 * BLOCK, PROT_READ, MAP_SHARED, source, 0);
	ASSERT_NE(MAP_FAILED, map);
	ASSERT_EQ(0, madvise(map, 8 * BLOCK, MADV_POPULATE_READ));
	ASSERT_EQ(0, madvise(map + 8 * BLOCK, 24 * BLOCK, MADV_DONTNEED));
	fd = open(self->env.path, O_RDWR | O_DIRECT);
	ASSERT_LE(0, fd);
	ASSERT_EQ(32 * BLOCK, write(fd, map, 32 * BLOCK));
	ASSERT_EQ(32 * BLOCK, lseek(fd, 0, SEEK_CUR));
	close(fd);
	ASSERT_TRUE(lower_is(64 * BLOCK, 0, data, 32 * BLOCK));
	ASSERT_TRUE(lower_is(64 * BLOCK, 32 * BLOCK, zeros, 32 * BLOCK));
	munmap(map, 32 * BLOCK);
	close(source);
	check_seen(_metadata, self->env.srv, variant->way, FUSE_WRITE);
}

/* Only a fault as the processor's own lets a stack grow. */
TEST_F(io, read_below_a_stack)
{
	const size_t room = 4 << 20;
	int fd = open(self->env.path, O_RDWR);
	char *low, *stack;

	ASSERT_LE(0, fd);
	ASSERT_EQ(3 * BLOCK, write(fd, data, 3 * BLOCK));
	low = mmap(NULL, room, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	ASSERT_NE(MAP_FAILED, low);
	ASSERT_EQ(0, munmap(low, room));
	stack = low + room - BLOCK;
	ASSERT_EQ(stack, mmap(stack, BLOCK, PROT_READ | PROT_WRITE,
			      MAP_PRIVATE | MAP_ANONYMOUS | MAP_GROWSDOWN |
			      MAP_FIXED_NOREPLACE, -1, 0));
	ASSERT_EQ(3 * BLOCK, pread(fd, stack - 3 * BLOCK, 3 * BLOCK, 0));
	ASSERT_EQ(0, memcmp(stack - 3 * BLOCK, data, 3 * BLOCK));
	ASSERT_EQ(0, munmap(stack - 3 * BLOCK, 4 * BLOCK));
	close(fd);
	if (passes(variant->way))
		check_seen(_metadata, self->env.srv, variant->way, FUSE_READ);
}

/* The pages of the vDSO's variables can be read, and not be had for a device. */
static char *page_without_struct_page(void)
{
	FILE *maps = fopen("/proc/self/maps", "r");
	char line[200];
	unsigned long start = 0;

	if (!maps)
		return NULL;
	while (fgets(line, sizeof(line), maps))
		if (strstr(line, "[vvar]"))
			start = strtoul(line, NULL, 16);
	fclose(maps);
	return (char *)start;
}

TEST_F(io, direct_from_the_vdso)
{
	char *page = page_without_struct_page();
	int fd = open(self->env.path, O_RDWR | O_DIRECT);

	if (!strcmp(variant->fs, "tmpfs"))
		return;
	ASSERT_LE(0, fd);
	ASSERT_NE(NULL, page);
	/* Passthrough has a page of its own for what a device can't have. */
	ASSERT_EQ(passes(variant->way) ? BLOCK : -EFAULT,
		  srv_result(pwrite(fd, page, BLOCK, 0)));
	ASSERT_EQ(passes(variant->way) ? BLOCK : 0, size_of(fd));
	close(fd);
}

/* A buffer that is too large for the file costs no memory. */
TEST_F(io, read_to_a_large_buffer)
{
	const size_t len = 64 << 20;
	unsigned char there;
	char *buf;
	int fd;

	buf = mmap(NULL, len, PROT_READ | PROT_WRITE,
		   MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	ASSERT_NE(MAP_FAILED, buf);
	ASSERT_EQ(0, madvise(buf, len, MADV_NOHUGEPAGE));
	ASSERT_TRUE(make_lower(LOWER, 0666, BLOCK));
	fd = open(self->env.path, O_RDONLY);
	ASSERT_LE(0, fd);
	ASSERT_EQ(BLOCK, pread(fd, buf, len, 0));
	ASSERT_EQ(0, memcmp(data, buf, BLOCK));
	ASSERT_EQ(0, mincore(buf, BLOCK, &there));
	ASSERT_TRUE(there & 1);
	ASSERT_EQ(0, mincore(buf + BLOCK, BLOCK, &there));
	ASSERT_FALSE(there & 1);
	close(fd);
	munmap(buf, len);
}

/* A write longer than what is made accessible at once */
TEST_F(io, write_from_a_fresh_mapping)
{
	const size_t len = 3 << 20;
	int fd, source;
	char *map, *there;
	size_t i;

	if (variant->way == PLAIN)
		return;
	source = open(SRV_BASE "/source", O_CREAT | O_RDWR, 0600);
	for (i = 0; i < len; i += sizeof(data))
		ASSERT_EQ((ssize_t)sizeof(data),
			  write(source, data, sizeof(data)));
	map = mmap(NULL, len, PROT_READ, MAP_SHARED, source, 0);
	ASSERT_NE(MAP_FAILED, map);
	there = mmap(NULL, len, PROT_READ | PROT_WRITE,
		     MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	ASSERT_NE(MAP_FAILED, there);
	for (i = 0; i < 2; i++) {
		fd = open(self->env.path, O_RDWR | (i ? O_DIRECT : 0));
		if (i && fd < 0)
			break;	/* tmpfs */
		ASSERT_EQ(0, madvise(map, len, MADV_DONTNEED));
		ASSERT_EQ(0, madvise(there, len, MADV_DONTNEED));
		ASSERT_EQ(len, pwrite(fd, map, len, i * len));
		ASSERT_EQ(0, memcmp(map, data, sizeof(data)));
		ASSERT_EQ(len, pread(fd, there, len, i * len));
		ASSERT_EQ(0, memcmp(map, there, len));
		ASSERT_EQ((off_t)((i + 1) * len), size_of(fd));
		close(fd);
	}
	munmap(map, len);
	munmap(there, len);
	close(source);
	check_seen(_metadata, self->env.srv, variant->way, FUSE_WRITE);
}

/* What may not wait does as on the lower file, hot and cold. */
TEST_F(io, nowait)
{
	struct iovec out = { data, BLOCK }, in = { back, BLOCK };
	int fd, lower, tries = 1000;
	ssize_t bare, got;

	ASSERT_TRUE(make_lower(LOWER, 0666, 2 * BLOCK));
	fd = open(self->env.path, O_RDWR);
	lower = open(variant->way == PLAIN ? self->env.path : LOWER, O_RDWR);
	ASSERT_LE(0, fd);
	ASSERT_LE(0, lower);
	ASSERT_EQ(srv_result(preadv2(lower, &in, 1, 0, RWF_NOWAIT)),
		  srv_result(preadv2(fd, &in, 1, 0, RWF_NOWAIT)));
	/* A write that has to move the times would wait: find a tick for two. */
	do {
		ASSERT_EQ(BLOCK, pwrite(lower, data, BLOCK, 0));
		bare = srv_result(pwritev2(lower, &out, 1, 0, RWF_NOWAIT));
		got = srv_result(pwritev2(fd, &out, 1, 0, RWF_NOWAIT));
	} while ((bare == -EAGAIN || got == -EAGAIN) && --tries);
	ASSERT_NE(0, tries);
	ASSERT_EQ(bare, got);
	ASSERT_EQ(0, fsync(lower));
	ASSERT_EQ(0, posix_fadvise(lower, 0, 0, POSIX_FADV_DONTNEED));
	ASSERT_EQ(variant->way != PLAIN && on_disk(variant->fs) ?
			-EAGAIN : -EOPNOTSUPP,
		  srv_result(preadv2(fd, &in, 1, 0, RWF_NOWAIT)));
	ASSERT_EQ(BLOCK, preadv2(fd, &in, 1, 0, 0));
	ASSERT_EQ(0, memcmp(data, back, BLOCK));
	ASSERT_EQ(srv_result(preadv2(lower, &in, 1, 0, RWF_NOWAIT)),
		  srv_result(preadv2(fd, &in, 1, 0, RWF_NOWAIT)));
	close(fd);
	close(lower);
	check_seen(_metadata, self->env.srv, variant->way, FUSE_READ);
}

/* Advice goes to the page cache that is in use. */
TEST_F(io, fadvise)
{
	struct iovec in = { back, BLOCK };
	int fd, lower;

	if (!on_disk(variant->fs) || variant->way == PLAIN)
		return;
	ASSERT_TRUE(make_lower(LOWER, 0666, 2 * BLOCK));
	fd = open(self->env.path, O_RDWR);
	lower = open(LOWER, O_RDWR);
	ASSERT_LE(0, fd);
	ASSERT_LE(0, lower);
	ASSERT_EQ(0, fsync(fd));
	ASSERT_EQ(BLOCK, preadv2(lower, &in, 1, 0, RWF_NOWAIT));
	ASSERT_EQ(0, posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED));
	ASSERT_EQ(-1, preadv2(lower, &in, 1, 0, RWF_NOWAIT));
	ASSERT_EQ(EAGAIN, errno);
	close(fd);
	close(lower);
}

TEST_HARNESS_MAIN
