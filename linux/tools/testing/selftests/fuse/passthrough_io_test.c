// SPDX-License-Identifier: GPL-2.0
/*
 * Reading and writing through a lower file: data, size, times and limits.
 */
#define _GNU_SOURCE
#include <pthread.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/uio.h>

#include "fuse_test_io.h"

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
	iov[0] = (struct iovec){ NULL, len };
	ASSERT_EQ(-EFAULT, srv_result(pwritev(fd, iov, 1, 0)));
	ASSERT_EQ(2 * BLOCK, size_of(fd));
	munmap(buf, len);
	close(fd);
}

/* Take all space but a few blocks, with unwritten extents. */
static void fill_disk(int fd)
{
	off_t end = 0, step;

	for (step = 512 << 20; step >= BLOCK; step /= 2)
		while (!fallocate(fd, 0, end, step))
			end += step;
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

TEST_HARNESS_MAIN
