// SPDX-License-Identifier: GPL-2.0
/*
 * Reading and writing through a lower file.
 *
 * The same body runs over passthrough, plain FUSE and the bare lower file.
 * Passthrough must do what the bare file does, and the server must see no
 * READ and no WRITE; plain FUSE is the control that these counters count.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/resource.h>
#include <sys/sendfile.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <sys/xattr.h>
#include <linux/capability.h>
#include <linux/fs.h>
#include <linux/xattr.h>

#include "fuse_test_files.h"

#define LOWER2		SRV_LOWER "/other"

static const char zeros[32 * BLOCK];

static int mode_of(const char *path)
{
	struct stat st;

	return stat(path, &st) ? -errno : (int)(st.st_mode & 07777);
}

static bool same_time(struct timespec a, struct timespec b)
{
	return a.tv_sec == b.tv_sec && a.tv_nsec == b.tv_nsec;
}

/* These can read without waiting, tmpfs and overlayfs can not. */
static bool on_disk(const char *fs)
{
	return strcmp(fs, "tmpfs") && strcmp(fs, "overlay");
}

/* Size, mode and times are those of the lower file. */
static bool same_stat(int fd)
{
	struct stat st, low;

	return !fstat(fd, &st) && !stat(LOWER, &low) &&
	       st.st_size == low.st_size && st.st_mode == low.st_mode &&
	       same_time(st.st_mtim, low.st_mtim) &&
	       same_time(st.st_ctim, low.st_ctim) &&
	       same_time(st.st_atim, low.st_atim);
}

FIXTURE(io) {
	struct env env;
	const char *other;
};

FIXTURE_VARIANT(io) {
	const char *fs;
	enum way way;
};

FIXTURE_VARIANT_ADD(io, ext4) { "ext4", BY_REQUEST };
FIXTURE_VARIANT_ADD(io, xfs) { "xfs", BY_REQUEST };
FIXTURE_VARIANT_ADD(io, tmpfs) { "tmpfs", BY_REQUEST };
FIXTURE_VARIANT_ADD(io, ext4_id) { "ext4", BY_ID };
FIXTURE_VARIANT_ADD(io, xfs_id) { "xfs", BY_ID };
FIXTURE_VARIANT_ADD(io, overlay) { "overlay", BY_REQUEST };
FIXTURE_VARIANT_ADD(io, ext4_plain) { "ext4", PLAIN };
FIXTURE_VARIANT_ADD(io, ext4_bare) { "ext4", BARE };

FIXTURE_SETUP(io)
{
	env_setup(_metadata, &self->env, variant->fs, variant->way, 0);
	ASSERT_TRUE(make_lower(LOWER2, 0666, 0));
	self->other = variant->way == BARE ? LOWER2 : SRV_MNT "/other";
	env_start(_metadata, &self->env);
}

FIXTURE_TEARDOWN(io)
{
	env_teardown(_metadata, &self->env);
}

TEST_F(io, read)
{
	size_t size = 16 * BLOCK + 123;
	struct iovec iov[2] = { { back, 100 }, { back + 100, BLOCK } };
	int fd;

	ASSERT_TRUE(make_lower(LOWER, 0666, size));
	fd = open(self->env.path, O_RDONLY);
	ASSERT_LE(0, fd);
	ASSERT_EQ(size, (size_t)pread(fd, back, sizeof(back), 0));
	ASSERT_EQ(0, memcmp(data, back, size));
	ASSERT_EQ(10000, pread(fd, back, 10000, BLOCK + 1));
	ASSERT_EQ(0, memcmp(data + BLOCK + 1, back, 10000));
	ASSERT_EQ(23, pread(fd, back, BLOCK, size - 23));
	ASSERT_EQ(0, pread(fd, back, BLOCK, size));
	ASSERT_EQ(0, pread(fd, back, BLOCK, size + 10 * BLOCK));
	ASSERT_EQ(100 + BLOCK, preadv(fd, iov, 2, 77));
	ASSERT_EQ(0, memcmp(data + 77, back, 100 + BLOCK));
	/* The position moves as it should. */
	ASSERT_EQ(size - 10, (size_t)lseek(fd, -10, SEEK_END));
	ASSERT_EQ(10, read(fd, back, 100));
	ASSERT_EQ(0, read(fd, back, 100));
	ASSERT_EQ(size, (size_t)lseek(fd, 0, SEEK_CUR));
	ASSERT_EQ(-1, write(fd, data, 1));
	ASSERT_EQ(EBADF, errno);
	close(fd);
	check_seen(_metadata, self->env.srv, variant->way, FUSE_READ);
}

TEST_F(io, write)
{
	struct iovec iov[2] = { { data, 100 }, { data + 100, BLOCK } };
	int fd = open(self->env.path, O_WRONLY);

	ASSERT_LE(0, fd);
	ASSERT_EQ(BLOCK, write(fd, data, BLOCK));
	ASSERT_EQ(333, write(fd, data + BLOCK, 333));
	ASSERT_EQ(BLOCK + 333, lseek(fd, 0, SEEK_CUR));
	ASSERT_TRUE(lower_is(BLOCK + 333, 0, data, BLOCK + 333));
	ASSERT_EQ(100 + BLOCK, pwritev(fd, iov, 2, 7));
	ASSERT_TRUE(lower_is(BLOCK + 333, 7, data, 100 + BLOCK));
	/* One that is larger than any request, after a hole. */
	ASSERT_EQ(1 << 19, pwrite(fd, data, 1 << 19, 1 << 16));
	ASSERT_EQ((1 << 19) + (1 << 16), size_of(fd));
	ASSERT_TRUE(lower_is((1 << 19) + (1 << 16), 1 << 16, data, 1 << 19));
	ASSERT_EQ(-1, read(fd, back, 1));
	ASSERT_EQ(EBADF, errno);
	close(fd);
	fd = open(self->env.path, O_RDWR);
	ASSERT_LE(0, fd);
	ASSERT_EQ(1 << 15, pread(fd, back, 1 << 15, 1 << 14));
	ASSERT_TRUE(all_zero(back, 1 << 15));
	close(fd);
	check_seen(_metadata, self->env.srv, variant->way, FUSE_WRITE);
}

TEST_F(io, create)
{
	int fd;

	ASSERT_EQ(0, unlink(self->env.path));
	fd = open(self->env.path, O_CREAT | O_EXCL | O_RDWR, 0640);
	ASSERT_LE(0, fd);
	ASSERT_EQ(1000, write(fd, data, 1000));
	ASSERT_EQ(1000, pread(fd, back, BLOCK, 0));
	ASSERT_TRUE(lower_is(1000, 0, data, 1000));
	ASSERT_TRUE(same_stat(fd));
	/* Unlinked, it goes on. */
	ASSERT_EQ(0, unlink(self->env.path));
	ASSERT_EQ(BLOCK, pwrite(fd, data, BLOCK, BLOCK));
	ASSERT_EQ(2 * BLOCK, size_of(fd));
	ASSERT_EQ(BLOCK, pread(fd, back, BLOCK, BLOCK));
	ASSERT_EQ(0, memcmp(data, back, BLOCK));
	close(fd);
	check_seen(_metadata, self->env.srv, variant->way, FUSE_WRITE);
	if (self->env.srv)
		ASSERT_EQ(1, self->env.srv->seen[FUSE_CREATE]);
}

TEST_F(io, tmpfile)
{
	int fd = open(variant->way == BARE ? SRV_LOWER : SRV_MNT,
		      O_TMPFILE | O_RDWR, 0600);

	if (!strcmp(variant->fs, "overlay")) {
		ASSERT_EQ(-1, fd);
		ASSERT_EQ(EOPNOTSUPP, errno);
		return;
	}
	ASSERT_LE(0, fd);
	ASSERT_EQ(1000, write(fd, data, 1000));
	ASSERT_EQ(1000, size_of(fd));
	ASSERT_EQ(1000, pread(fd, back, BLOCK, 0));
	ASSERT_EQ(0, memcmp(data, back, 1000));
	close(fd);
	check_seen(_metadata, self->env.srv, variant->way, FUSE_WRITE);
	if (self->env.srv)
		ASSERT_EQ(1, self->env.srv->seen[FUSE_TMPFILE]);
}

TEST_F(io, append)
{
	struct iovec iov = { data, 50 };
	int a = open(self->env.path, O_WRONLY | O_APPEND);
	int b = open(self->env.path, O_RDWR);

	ASSERT_LE(0, a);
	ASSERT_LE(0, b);
	ASSERT_EQ(100, write(a, data, 100));
	ASSERT_EQ(200, pwrite(b, data + 100, 200, 100));
	ASSERT_EQ(300, write(a, data + 300, 300));
	ASSERT_EQ(600, lseek(a, 0, SEEK_CUR));
	/* Linux appends whatever the offset. */
	ASSERT_EQ(400, pwrite(a, data + 600, 400, 0));
	ASSERT_EQ(1000, size_of(b));
	ASSERT_EQ(1000, lseek(b, 0, SEEK_END));
	ASSERT_TRUE(lower_is(1000, 0, data, 1000));
	if (variant->way == BY_REQUEST && !strcmp(variant->fs, "overlay")) {
		/* Without a lower file that appends by itself, this is refused. */
		ASSERT_EQ(-EINVAL, srv_result(pwritev2(b, &iov, 1, 0,
						       RWF_APPEND)));
		ASSERT_EQ(0, fcntl(b, F_SETFL, O_APPEND));
		ASSERT_EQ(-EINVAL, srv_result(pwrite(b, data, 10, 0)));
		ASSERT_TRUE(lower_is(1000, 0, data, 1000));
		close(a);
		close(b);
		return;
	}
	ASSERT_EQ(50, pwritev2(b, &iov, 1, 0, RWF_APPEND));
	ASSERT_TRUE(lower_is(1050, 1000, data, 50));
	/* The flag comes and goes on an open file. */
	ASSERT_EQ(0, fcntl(b, F_SETFL, O_APPEND));
	ASSERT_EQ(10, pwrite(b, data + 50, 10, 0));
	ASSERT_TRUE(lower_is(1060, 1000, data, 60));
	ASSERT_EQ(0, fcntl(b, F_SETFL, 0));
	ASSERT_EQ(10, pwrite(b, data + 7, 10, 0));
	ASSERT_TRUE(lower_is(1060, 0, data + 7, 10));
	/* What the server has opened with it appends. */
	ASSERT_EQ(0, fcntl(a, F_SETFL, 0));
	ASSERT_EQ(10, pwrite(a, data + 9, 10, 0));
	ASSERT_TRUE(variant->way == BY_REQUEST ?
		    lower_is(1070, 1060, data + 9, 10) :
		    lower_is(1060, 0, data + 9, 10));
	close(a);
	close(b);
	check_seen(_metadata, self->env.srv, variant->way, FUSE_WRITE);
}

TEST_F(io, truncate)
{
	int fd = open(self->env.path, O_RDWR);

	ASSERT_LE(0, fd);
	ASSERT_EQ(2 * BLOCK, write(fd, data, 2 * BLOCK));
	ASSERT_EQ(0, ftruncate(fd, 100));
	ASSERT_EQ(100, size_of(fd));
	ASSERT_EQ(100, pread(fd, back, BLOCK, 0));
	ASSERT_EQ(0, memcmp(data, back, 100));
	ASSERT_EQ(0, truncate(self->env.path, 5000));
	ASSERT_EQ(5000, size_of(fd));
	ASSERT_EQ(4900, pread(fd, back, 2 * BLOCK, 100));
	ASSERT_TRUE(all_zero(back, 4900));
	/* The lower position, if there were one, must not show. */
	ASSERT_EQ(0, ftruncate(fd, 0));
	ASSERT_EQ(10, pwrite(fd, data, 10, 0));
	ASSERT_TRUE(lower_is(10, 0, data, 10));
	close(fd);
	fd = open(self->env.path, O_RDWR | O_TRUNC);
	ASSERT_LE(0, fd);
	ASSERT_EQ(0, size_of(fd));
	ASSERT_TRUE(lower_is(0, 0, data, 0));
	ASSERT_EQ(20, pwrite(fd, data, 20, 0));
	ASSERT_TRUE(lower_is(20, 0, data, 20));
	close(fd);
	check_seen(_metadata, self->env.srv, variant->way, FUSE_WRITE);
}

/* O_TRUNC as a flag of OPEN, not as a SETATTR after it. */
TEST_F(io, atomic_o_trunc)
{
	int a, b;

	if (self->env.srv) {
		ASSERT_EQ(0, srv_stop(self->env.srv));
		self->env.srv = serve_lower(_metadata, variant->way,
					FUSE_ATOMIC_O_TRUNC);
	}
	ASSERT_TRUE(make_lower(LOWER, 0666, 2 * BLOCK));
	a = open(self->env.path, O_RDWR);
	ASSERT_LE(0, a);
	ASSERT_EQ(2 * BLOCK, pread(a, back, sizeof(back), 0));
	b = open(self->env.path, O_WRONLY | O_TRUNC);
	ASSERT_LE(0, b);
	ASSERT_EQ(0, size_of(a));
	ASSERT_EQ(0, pread(a, back, BLOCK, 0));
	ASSERT_EQ(30, write(b, data, 30));
	ASSERT_EQ(30, pread(a, back, BLOCK, 0));
	ASSERT_TRUE(lower_is(30, 0, data, 30));
	close(a);
	close(b);
	check_seen(_metadata, self->env.srv, variant->way, FUSE_WRITE);
	if (self->env.srv)
		ASSERT_EQ(0, self->env.srv->seen[FUSE_SETATTR]);
}

/* stat(2) is right directly after each write, though attributes are cached. */
TEST_F(io, attributes)
{
	struct timespec old[2] = { { .tv_sec = 1000 }, { .tv_sec = 2000 } };
	int fd = open(self->env.path, O_RDWR);
	struct stat st;
	int i;

	ASSERT_LE(0, fd);
	for (i = 1; i <= 5; i++) {
		ASSERT_EQ(0, futimens(fd, old));
		ASSERT_EQ(0, fstat(fd, &st));
		ASSERT_EQ(2000, st.st_mtime);
		ASSERT_EQ(100, write(fd, data, 100));
		ASSERT_EQ(0, stat(self->env.path, &st));
		ASSERT_EQ(100 * i, st.st_size);
		ASSERT_LT(2000, st.st_mtime);
		ASSERT_TRUE(same_stat(fd));
	}
	ASSERT_EQ(0, futimens(fd, old));
	ASSERT_EQ(0, fstat(fd, &st));
	ASSERT_EQ(1000, st.st_atime);
	ASSERT_EQ(500, pread(fd, back, BLOCK, 0));
	ASSERT_EQ(0, fstat(fd, &st));
	ASSERT_EQ(2000, st.st_mtime);
	if (variant->way != PLAIN)
		ASSERT_LT(1000, st.st_atime);
	if (passes(variant->way))
		ASSERT_TRUE(same_stat(fd));
	close(fd);
	check_seen(_metadata, self->env.srv, variant->way, FUSE_WRITE);
}

TEST_F(io, seek_and_fallocate)
{
	int fd = open(self->env.path, O_RDWR);

	ASSERT_LE(0, fd);
	ASSERT_EQ(BLOCK, pwrite(fd, data, BLOCK, 1 << 18));
	ASSERT_EQ(1 << 18, lseek(fd, 0, SEEK_DATA));
	ASSERT_EQ(0, lseek(fd, 0, SEEK_HOLE));
	ASSERT_EQ(0, fallocate(fd, 0, 0, 1 << 19));
	ASSERT_EQ(1 << 19, size_of(fd));
	ASSERT_EQ(1 << 19, lseek(fd, 0, SEEK_END));
	ASSERT_EQ(2 * BLOCK, pwrite(fd, data, 2 * BLOCK, 0));
	ASSERT_EQ(0, fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
			       BLOCK, BLOCK));
	ASSERT_EQ(2 * BLOCK, pread(fd, back, 2 * BLOCK, 0));
	ASSERT_EQ(0, memcmp(data, back, BLOCK));
	ASSERT_TRUE(all_zero(back + BLOCK, BLOCK));
	close(fd);
	check_seen(_metadata, self->env.srv, variant->way, FUSE_WRITE);
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
	char path[64], stat[256], *state;
	int fd;

	snprintf(path, sizeof(path), "/proc/self/task/%d/stat", tid);
	do {
		fd = open(path, O_RDONLY);
		if (fd < 0)
			return false;
		memset(stat, 0, sizeof(stat));
		if (read(fd, stat, sizeof(stat) - 1) <= 0)
			return false;
		close(fd);
		state = strrchr(stat, ')');
	} while (!state || state[2] != 'D');
	return true;
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
		ASSERT_EQ(sizeof(data), write(source, data, sizeof(data)));
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
		ASSERT_EQ((i + 1) * len, size_of(fd));
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

TEST_F(io, sync)
{
	int fd = open(self->env.path, O_RDWR | O_DSYNC);
	struct iovec out = { data, BLOCK };

	ASSERT_LE(0, fd);
	ASSERT_EQ(BLOCK, pwrite(fd, data, BLOCK, 0));
	ASSERT_EQ(BLOCK, pwritev2(fd, &out, 1, BLOCK, RWF_SYNC));
	ASSERT_TRUE(lower_is(2 * BLOCK, BLOCK, data, BLOCK));
	check_seen(_metadata, self->env.srv, variant->way, FUSE_WRITE);
	if (self->env.srv)
		srv_reset_counts(self->env.srv);
	ASSERT_EQ(0, fsync(fd));
	ASSERT_EQ(0, fdatasync(fd));
	close(fd);
	if (self->env.srv)
		ASSERT_EQ(2, self->env.srv->seen[FUSE_FSYNC]);
}

TEST_F(io, mmap_shared)
{
	struct timespec old[2] = { { .tv_sec = 1000 }, { .tv_sec = 2000 } };
	struct stat st;
	char *map;
	int fd;

	ASSERT_TRUE(make_lower(LOWER, 0666, 2 * BLOCK));
	fd = open(self->env.path, O_RDWR);
	ASSERT_LE(0, fd);
	map = mmap(NULL, 2 * BLOCK, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	ASSERT_NE(MAP_FAILED, map);
	ASSERT_EQ(0, memcmp(data, map, 2 * BLOCK));
	ASSERT_EQ(0, futimens(fd, old));
	/* A store is seen by read, a write by the mapping, both at once. */
	map[10] = ~data[10];
	ASSERT_EQ(1, pread(fd, back, 1, 10));
	ASSERT_EQ((char)~data[10], back[0]);
	ASSERT_EQ(100, pwrite(fd, data + 5, 100, BLOCK));
	ASSERT_EQ(0, memcmp(data + 5, map + BLOCK, 100));
	if (variant->way == PLAIN)
		ASSERT_EQ(0, msync(map, 2 * BLOCK, MS_SYNC));
	ASSERT_TRUE(lower_is(2 * BLOCK, 0, map, 2 * BLOCK));
	ASSERT_EQ(0, fstat(fd, &st));
	ASSERT_LT(2000, st.st_mtime);
	ASSERT_EQ(0, munmap(map, 2 * BLOCK));
	close(fd);
	check_seen(_metadata, self->env.srv, variant->way, FUSE_READ);
}

/* A store alone moves the time of modification. */
TEST_F(io, mmap_mtime)
{
	struct timespec old[2] = { { .tv_sec = 1000 }, { .tv_sec = 2000 } };
	struct stat st;
	char *map;
	int fd;

	ASSERT_TRUE(make_lower(LOWER, 0666, BLOCK));
	fd = open(self->env.path, O_RDWR);
	ASSERT_LE(0, fd);
	ASSERT_EQ(0, futimens(fd, old));
	map = mmap(NULL, BLOCK, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	ASSERT_NE(MAP_FAILED, map);
	map[0]++;
	ASSERT_EQ(0, msync(map, BLOCK, MS_SYNC));
	ASSERT_EQ(0, munmap(map, BLOCK));
	ASSERT_EQ(0, fstat(fd, &st));
	/* tmpfs has no hook for it, and the bare file does the same. */
	if (strcmp(variant->fs, "tmpfs"))
		ASSERT_LT(2000, st.st_mtime);
	if (passes(variant->way))
		ASSERT_TRUE(same_stat(fd));
	close(fd);
	check_seen(_metadata, self->env.srv, variant->way, FUSE_READ);
}

TEST_F(io, mmap_private)
{
	char *map;
	int fd;

	ASSERT_TRUE(make_lower(LOWER, 0666, BLOCK));
	fd = open(self->env.path, O_RDONLY);
	ASSERT_LE(0, fd);
	map = mmap(NULL, BLOCK, PROT_READ | PROT_WRITE, MAP_PRIVATE, fd, 0);
	ASSERT_NE(MAP_FAILED, map);
	ASSERT_EQ(0, memcmp(data, map, BLOCK));
	map[0]++;
	ASSERT_TRUE(lower_is(BLOCK, 0, data, BLOCK));
	ASSERT_EQ(1, pread(fd, back, 1, 0));
	ASSERT_EQ(data[0], back[0]);
	ASSERT_EQ(MAP_FAILED, mmap(NULL, BLOCK, PROT_WRITE, MAP_SHARED, fd, 0));
	ASSERT_EQ(EACCES, errno);
	ASSERT_EQ(0, munmap(map, BLOCK));
	close(fd);
	check_seen(_metadata, self->env.srv, variant->way, FUSE_READ);
}

/* The mapping keeps the file open, and the server hears of its end. */
TEST_F(io, mmap_outlives_close)
{
	char *map;
	int fd;

	ASSERT_TRUE(make_lower(LOWER, 0666, BLOCK));
	fd = open(self->env.path, O_RDWR);
	ASSERT_LE(0, fd);
	map = mmap(NULL, BLOCK, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	ASSERT_NE(MAP_FAILED, map);
	close(fd);
	if (self->env.srv)
		ASSERT_EQ(0, self->env.srv->seen[FUSE_RELEASE]);
	ASSERT_EQ(0, memcmp(data, map, BLOCK));
	map[1] = ~data[1];
	ASSERT_EQ(0, munmap(map, BLOCK));
	if (self->env.srv)
		ASSERT_TRUE(srv_wait(self->env.srv, FUSE_RELEASE, 1));
	ASSERT_TRUE(lower_is(BLOCK, 1, (char[]){ ~data[1] }, 1));
	check_seen(_metadata, self->env.srv, variant->way, FUSE_READ);
}

static int write_one(const char *path)
{
	int fd = open(path, O_WRONLY);
	bool written = fd >= 0 && pwrite(fd, "x", 1, 0) == 1;

	close(fd);
	return !written;
}

/* Set-id bits fall as if the caller wrote the lower file itself. */
TEST_F(io, set_id_bits)
{
	ASSERT_TRUE(make_lower(LOWER, 06777, 10));
	ASSERT_EQ(06777, mode_of(self->env.path));
	ASSERT_EQ(0, as_user(write_one, self->env.path));
	ASSERT_EQ(0777, mode_of(self->env.path));
	ASSERT_EQ(0777, mode_of(LOWER));
	check_seen(_metadata, self->env.srv, variant->way, FUSE_WRITE);
	if (variant->way == PLAIN)
		return;
	/* Without group execute, a writer of another group. */
	ASSERT_EQ(0, chown(LOWER, 0, USER + 1));
	ASSERT_EQ(0, chmod(LOWER, 06767));
	ASSERT_EQ(0, as_user(write_one, self->env.path));
	ASSERT_EQ(0767, mode_of(LOWER));
	/* CAP_FSETID keeps them. */
	ASSERT_EQ(0, chmod(LOWER, 06777));
	ASSERT_EQ(0, write_one(self->env.path));
	ASSERT_EQ(06777, mode_of(LOWER));
	check_seen(_metadata, self->env.srv, variant->way, FUSE_WRITE);
}

/* File capabilities always fall. */
TEST_F(io, file_capabilities)
{
	const struct vfs_cap_data cap = {
		.magic_etc = VFS_CAP_REVISION_2,
		.data[0].permitted = 1 << CAP_CHOWN,
	};

	ASSERT_TRUE(make_lower(LOWER, 0777, 10));
	ASSERT_EQ(0, setxattr(LOWER, XATTR_NAME_CAPS, &cap, XATTR_CAPS_SZ_2,
			      0));
	ASSERT_EQ(0, as_user(write_one, self->env.path));
	ASSERT_EQ(-1, getxattr(LOWER, XATTR_NAME_CAPS, back, 100));
	ASSERT_EQ(ENODATA, errno);
	ASSERT_EQ(0, setxattr(LOWER, XATTR_NAME_CAPS, &cap, XATTR_CAPS_SZ_2,
			      0));
	ASSERT_EQ(0, write_one(self->env.path));
	ASSERT_EQ(-1, getxattr(LOWER, XATTR_NAME_CAPS, back, 100));
	ASSERT_EQ(ENODATA, errno);
	check_seen(_metadata, self->env.srv, variant->way, FUSE_WRITE);
}

static int write_past_limit(const char *path)
{
	struct rlimit limit = { 2 * BLOCK, 2 * BLOCK };
	int fd = open(path, O_RDWR);

	if (fd < 0 || setrlimit(RLIMIT_FSIZE, &limit))
		return 1;
	if (pwrite(fd, data, 2 * BLOCK, BLOCK) != BLOCK)
		return 2;
	signal(SIGXFSZ, SIG_IGN);
	if (pwrite(fd, data, 1, 2 * BLOCK) != -1 || errno != EFBIG)
		return 3;
	signal(SIGXFSZ, SIG_DFL);
	pwrite(fd, data, 1, 2 * BLOCK);
	return 4;
}

TEST_F(io, rlimit)
{
	ASSERT_EQ(-SIGXFSZ, as_user(write_past_limit, self->env.path));
	ASSERT_TRUE(lower_is(2 * BLOCK, BLOCK, data, BLOCK));
	check_seen(_metadata, self->env.srv, variant->way, FUSE_WRITE);
}

/* Take all space but a few blocks, with unwritten extents. */
static void fill_disk(int fd)
{
	off_t end = 0, step;

	for (step = 512 << 20; step >= BLOCK; step /= 2)
		while (!fallocate(fd, 0, end, step))
			end += step;
}

/* The limit cuts a write whose buffer has no pages yet. */
TEST_F(io, rlimit_and_a_fresh_buffer)
{
	struct rlimit limit = { 2 * BLOCK, RLIM_INFINITY };
	const size_t len = 16 * BLOCK;
	struct iovec iov[2];
	char *buf;
	int fd;

	if (variant->way == PLAIN)
		return;
	fd = open(self->env.path, O_RDWR);
	ASSERT_LE(0, fd);
	buf = mmap(NULL, len, PROT_READ | PROT_WRITE,
		   MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	ASSERT_NE(MAP_FAILED, buf);
	ASSERT_EQ(0, madvise(buf, len, MADV_NOHUGEPAGE));
	ASSERT_EQ(0, setrlimit(RLIMIT_FSIZE, &limit));
	ASSERT_EQ(2 * BLOCK, pwrite(fd, buf, len, 0));
	ASSERT_EQ(0, madvise(buf, len, MADV_DONTNEED));
	iov[0] = (struct iovec){ buf, BLOCK };
	iov[1] = (struct iovec){ buf + 4 * BLOCK, 8 * BLOCK };
	ASSERT_EQ(2 * BLOCK, pwritev(fd, iov, 2, 0));
	/* What fails loses nothing of the buffer either. */
	ASSERT_EQ(-EFAULT, srv_result(pwrite(fd, NULL, len, 0)));
	ASSERT_EQ(2 * BLOCK, size_of(fd));
	munmap(buf, len);
	close(fd);
}

TEST_F(io, enospc)
{
	int filler = open(LOWER2, O_RDWR);
	int fd = open(self->env.path, O_RDWR);
	off_t end = 0;
	ssize_t n;

	ASSERT_LE(0, filler);
	ASSERT_LE(0, fd);
	fill_disk(filler);
	do {
		n = pwrite(fd, data, sizeof(data), end);
		if (n > 0)
			end += n;
	} while (n > 0);
	ASSERT_EQ(-1, n);
	ASSERT_EQ(ENOSPC, errno);
	ASSERT_EQ(end, size_of(fd));
	ASSERT_EQ(0, ftruncate(filler, 0));
	ASSERT_EQ(BLOCK, pwrite(fd, data, BLOCK, end));
	ASSERT_TRUE(lower_is(end + BLOCK, end, data, BLOCK));
	close(filler);
	close(fd);
	check_seen(_metadata, self->env.srv, variant->way, FUSE_WRITE);
}

#define WRITERS	4
#define RECORDS	100

struct writer {
	pthread_t id;
	const char *path;
	char tag;
	bool failed;
};

static void *append_records(void *arg)
{
	struct writer *writer = arg;
	char record[64];
	int i, fd = open(writer->path, O_WRONLY | O_APPEND);

	memset(record, writer->tag, sizeof(record));
	for (i = 0; i < RECORDS; i++)
		if (write(fd, record, sizeof(record)) != sizeof(record))
			writer->failed = true;
	close(fd);
	return NULL;
}

/* Appends by several writers neither overlap nor tear. */
TEST_F(io, concurrent_appends)
{
	struct writer writer[WRITERS];
	int seen[WRITERS] = { 0 };
	int i, fd;

	for (i = 0; i < WRITERS; i++) {
		writer[i] = (struct writer){ 0, self->env.path, 'a' + i,
					     false };
		ASSERT_EQ(0, pthread_create(&writer[i].id, NULL,
					    append_records, &writer[i]));
	}
	for (i = 0; i < WRITERS; i++) {
		ASSERT_EQ(0, pthread_join(writer[i].id, NULL));
		ASSERT_FALSE(writer[i].failed);
	}
	fd = open(LOWER, O_RDONLY);
	ASSERT_LE(0, fd);
	while (read(fd, back, 64) == 64) {
		ASSERT_EQ(0, memcmp(back, back + 1, 63));
		ASSERT_LE('a', back[0]);
		ASSERT_GT('a' + WRITERS, back[0]);
		seen[back[0] - 'a']++;
	}
	for (i = 0; i < WRITERS; i++)
		ASSERT_EQ(RECORDS, seen[i]);
	ASSERT_EQ(WRITERS * RECORDS * 64, size_of(fd));
	close(fd);
	check_seen(_metadata, self->env.srv, variant->way, FUSE_WRITE);
}

/* What only a server can do: mixed decisions, other credentials. */

FIXTURE(server) {
	struct env env;
};

FIXTURE_VARIANT(server) {
	const char *fs;
	enum way way;
};

FIXTURE_VARIANT_ADD(server, ext4) { "ext4", BY_REQUEST };
FIXTURE_VARIANT_ADD(server, xfs) { "xfs", BY_REQUEST };
FIXTURE_VARIANT_ADD(server, tmpfs) { "tmpfs", BY_REQUEST };
FIXTURE_VARIANT_ADD(server, ext4_id) { "ext4", BY_ID };

FIXTURE_SETUP(server)
{
	env_setup(_metadata, &self->env, variant->fs, variant->way, 4 * BLOCK);
	ASSERT_EQ(0, chmod(LOWER, 0600));
}

FIXTURE_TEARDOWN(server)
{
	env_teardown(_metadata, &self->env);
}

static void mixed(struct __test_metadata *_metadata, struct srv *srv)
{
	enum srv_mode mode = srv->mode;
	int pass, cached;

	srv->mode = SRV_PLAIN;
	cached = open(FILE_MNT, O_RDWR);
	ASSERT_LE(0, cached);
	/* Fill the FUSE page cache. */
	ASSERT_EQ(4 * BLOCK, pread(cached, back, sizeof(back), 0));
	srv->mode = mode;
	pass = open(FILE_MNT, O_RDWR);
	ASSERT_LE(0, pass);
	srv_reset_counts(srv);
	ASSERT_EQ(100, pwrite(pass, data + 50, 100, BLOCK));
	ASSERT_EQ(0, srv->seen[FUSE_WRITE]);
	ASSERT_EQ(100, pread(cached, back, 100, BLOCK));
	ASSERT_EQ(0, memcmp(data + 50, back, 100));
	ASSERT_LT(0, srv->seen[FUSE_READ]);
	ASSERT_EQ(100, pwrite(cached, data + 9, 100, BLOCK + 50));
	ASSERT_EQ(100, pread(pass, back, 100, BLOCK + 50));
	ASSERT_EQ(0, memcmp(data + 9, back, 100));
	ASSERT_LT(0, srv->seen[FUSE_WRITE]);
	/* The end moves for both, by either. */
	ASSERT_EQ(10, pwrite(pass, data, 10, 5 * BLOCK));
	ASSERT_EQ(10, pread(cached, back, BLOCK, 5 * BLOCK));
	ASSERT_EQ(0, memcmp(data, back, 10));
	ASSERT_EQ(20, pwrite(cached, data, 20, 6 * BLOCK));
	ASSERT_EQ(20, pread(pass, back, BLOCK, 6 * BLOCK));
	ASSERT_EQ(0, memcmp(data, back, 20));
	ASSERT_EQ(6 * BLOCK + 20, size_of(pass));
	ASSERT_EQ(0, ftruncate(pass, 10));
	ASSERT_EQ(10, pread(cached, back, BLOCK, 0));
	ASSERT_EQ(6 * BLOCK, pwrite(pass, data, 6 * BLOCK, 0));
	ASSERT_EQ(6 * BLOCK, pread(cached, back, sizeof(back), 0));
	ASSERT_EQ(0, memcmp(data, back, 6 * BLOCK));
	close(cached);
	close(pass);
	ASSERT_TRUE(lower_is(6 * BLOCK, 0, data, 6 * BLOCK));
}

/* Two openers of one file, of whom the server passes one through. */
TEST_F(server, mixed_opens)
{
	env_start(_metadata, &self->env);
	mixed(_metadata, self->env.srv);
}

TEST_F(server, mixed_opens_writeback)
{
	self->env.srv->flags = FUSE_WRITEBACK_CACHE;
	env_start(_metadata, &self->env);
	ASSERT_TRUE(!!(self->env.srv->granted & FUSE_WRITEBACK_CACHE));
	mixed(_metadata, self->env.srv);
}

/* With the writeback cache, too, data and size are the lower file's. */
TEST_F(server, writeback)
{
	struct timespec old[2] = { { .tv_sec = 1000 }, { .tv_sec = 2000 } };
	struct stat st;
	int fd;

	self->env.srv->flags = FUSE_WRITEBACK_CACHE;
	env_start(_metadata, &self->env);
	fd = open(FILE_MNT, O_RDWR);
	ASSERT_LE(0, fd);
	ASSERT_EQ(0, futimens(fd, old));
	ASSERT_EQ(5 * BLOCK, pwrite(fd, data, 5 * BLOCK, 0));
	ASSERT_TRUE(lower_is(5 * BLOCK, 0, data, 5 * BLOCK));
	ASSERT_EQ(0, fstat(fd, &st));
	ASSERT_EQ(5 * BLOCK, st.st_size);
	ASSERT_LT(2000, st.st_mtime);
	close(fd);
	ASSERT_EQ(0, stat(LOWER, &st));
	ASSERT_LT(2000, st.st_mtime);
	ASSERT_EQ(0, self->env.srv->seen[FUSE_READ]);
	ASSERT_EQ(0, self->env.srv->seen[FUSE_WRITE]);
}

/* FOPEN_DIRECT_IO: read and write ask the server, a mapping does not. */
TEST_F(server, direct_io)
{
	char *map;
	int fd;

	self->env.srv->open_flags = FOPEN_DIRECT_IO;
	env_start(_metadata, &self->env);
	fd = open(FILE_MNT, O_RDWR);
	ASSERT_LE(0, fd);
	map = mmap(NULL, BLOCK, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	ASSERT_NE(MAP_FAILED, map);
	ASSERT_EQ(0, memcmp(data, map, BLOCK));
	ASSERT_EQ(0, self->env.srv->seen[FUSE_READ]);
	ASSERT_EQ(10, pwrite(fd, data + 50, 10, 0));
	ASSERT_EQ(1, self->env.srv->seen[FUSE_WRITE]);
	ASSERT_EQ(0, memcmp(data + 50, map, 10));
	map[0] = 'm';
	ASSERT_EQ(1, pread(fd, back, 1, 0));
	ASSERT_EQ(1, self->env.srv->seen[FUSE_READ]);
	ASSERT_EQ('m', back[0]);
	ASSERT_EQ(0, munmap(map, BLOCK));
	close(fd);
}

/* An append-only lower file stays so, whatever the FUSE inode looks like. */
TEST_F(server, append_only)
{
	const char *path = SRV_MNT "/append_only";
	int fd, lower, flags = FS_APPEND_FL;

	ASSERT_TRUE(make_lower(SRV_LOWER "/append_only", 0600, BLOCK));
	lower = open(SRV_LOWER "/append_only", O_RDONLY);
	ASSERT_LE(0, lower);
	ASSERT_EQ(0, ioctl(lower, FS_IOC_SETFLAGS, &flags));
	env_start(_metadata, &self->env);
	EXPECT_EQ(-1, open(path, O_RDWR));
	EXPECT_EQ(EPERM, errno);
	fd = open(path, O_RDWR | O_APPEND);
	EXPECT_LE(0, fd);
	EXPECT_EQ(0, fcntl(fd, F_SETFL, 0));
	EXPECT_EQ(10, pwrite(fd, "0123456789", 10, 0));
	EXPECT_EQ(BLOCK + 10, size_of(lower));
	EXPECT_EQ(BLOCK + 10, size_of(fd));
	EXPECT_EQ(BLOCK, pread(lower, back, BLOCK, 0));
	EXPECT_EQ(0, memcmp(data, back, BLOCK));
	EXPECT_EQ(MAP_FAILED, mmap(NULL, BLOCK, PROT_READ | PROT_WRITE,
				   MAP_SHARED, fd, 0));
	EXPECT_EQ(EACCES, errno);
	flags = 0;
	ASSERT_EQ(0, ioctl(lower, FS_IOC_SETFLAGS, &flags));
	close(fd);
	close(lower);
	ASSERT_EQ(0, self->env.srv->seen[FUSE_WRITE]);
}

static int read_and_write(const char *path)
{
	int fd = open(path, O_RDWR);
	char c;

	if (fd < 0)
		return errno;
	return pread(fd, &c, 1, 0) == 1 && pwrite(fd, "x", 1, 0) == 1 ? 0 : 1;
}

/* A user writes a file of root's, since the server of root lets it. */
TEST_F(server, lends_its_rights)
{
	env_start(_metadata, &self->env);
	ASSERT_EQ(EACCES, as_user(read_and_write, LOWER));
	ASSERT_EQ(0, as_user(read_and_write, FILE_MNT));
	ASSERT_TRUE(lower_is(4 * BLOCK, 0, "x", 1));
	ASSERT_EQ(0, self->env.srv->seen[FUSE_READ]);
	ASSERT_EQ(0, self->env.srv->seen[FUSE_WRITE]);
}

/* Root gets from a user's server what the user may do, and no more. */
TEST_F(server, has_no_more_rights)
{
	int fd;

	ASSERT_EQ(0, chmod(LOWER, 0644));
	self->env.srv->uid = USER;
	env_start(_metadata, &self->env);
	ASSERT_EQ(-1, open(FILE_MNT, O_RDWR));
	ASSERT_EQ(EACCES, errno);
	fd = open(FILE_MNT, O_RDONLY);
	ASSERT_LE(0, fd);
	ASSERT_EQ(4 * BLOCK, pread(fd, back, sizeof(back), 0));
	ASSERT_EQ(0, memcmp(data, back, 4 * BLOCK));
	ASSERT_EQ(-1, pwrite(fd, data, 1, 0));
	ASSERT_EQ(EBADF, errno);
	close(fd);
	ASSERT_EQ(0, self->env.srv->seen[FUSE_READ]);
}

/* The server's own write would drop the bits: so does root's through it. */
TEST_F(server, drops_privileges_as_its_own)
{
	ASSERT_EQ(0, chown(LOWER, USER, USER));
	ASSERT_EQ(0, chmod(LOWER, 06777));
	self->env.srv->uid = USER;
	env_start(_metadata, &self->env);
	ASSERT_EQ(0, write_one(FILE_MNT));
	ASSERT_EQ(0777, mode_of(LOWER));
	ASSERT_EQ(0, self->env.srv->seen[FUSE_WRITE]);
}

TEST_HARNESS_MAIN
