// SPDX-License-Identifier: GPL-2.0
/*
 * The same operations, chosen at random, on a bare file, on one of plain FUSE,
 * and on one that is open through the page cache and through passthrough in both
 * ways at once.  After each step they must agree.  FOPEN_DIRECT_IO is left out:
 * beside cached opens it is not coherent on plain FUSE either.
 *
 *	PASSTHROUGH_SEED=17 PASSTHROUGH_STEPS=1000 ./passthrough_diff_test
 *
 * A failure says which step of which seed it was.
 */
#define _GNU_SOURCE
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/sendfile.h>
#include <sys/uio.h>
#include <linux/falloc.h>

#include "fuse_test_files.h"

#define MAX_SIZE	(96 << 10)	/* of the file */
#define MAX_LEN		(20 << 10)	/* of an operation */
#define STEPS		250

/* Descriptors of one file, and how the server answers their opens */
enum { CACHED, REQUEST, ID_APPEND, REQUEST_DIRECT, FDS };

static const char *const fd_name[] = {
	"cached", "request", "id, O_APPEND", "request, O_DIRECT",
};

enum { BARE_FILE, PLAIN_FILE, MIXED_FILE, TARGETS };

static const char *const target_name[] = { "bare", "plain", "mixed" };

enum what {
	READ, READV, WRITE, WRITEV, APPEND, TRUNCATE, FALLOCATE, PUNCH, ZERO,
	COPY, SPLICE, SENDFILE, LOAD, STORE, SYNC, REOPEN, OPEN_TRUNC, SEEK_TO_END,
	WHATS
};

static const char *const what_name[] = {
	"read", "readv", "write", "writev", "append", "truncate", "fallocate",
	"punch", "zero", "copy_file_range", "splice", "sendfile", "load",
	"store", "sync", "reopen", "open_trunc", "seek_end",
};

/* How often each is chosen, relative to the others */
static const int weight[] = {
	12, 3, 12, 3, 6, 4, 1, 2, 1, 2, 3, 3, 4, 4, 1, 2, 1, 2,
};

struct step {
	enum what what;
	int fd;
	size_t len;
	off_t offset;
	unsigned int seed;
};

struct target {
	const char *path;
	int fd[FDS];
	char *map;
	char *buf;
	ssize_t result;
	bool touched;
	bool was_empty;
};

FIXTURE(diff) {
	struct srv *srv;
	struct target target[TARGETS];
	unsigned int random;
};

FIXTURE_VARIANT(diff) {
	const char *fs;
	__u64 flags;
	unsigned int open_flags;
};

FIXTURE_VARIANT_ADD(diff, ext4) { "ext4", 0, 0 };
FIXTURE_VARIANT_ADD(diff, ext4_writeback) { "ext4", FUSE_WRITEBACK_CACHE, 0 };
FIXTURE_VARIANT_ADD(diff, ext4_keep_cache) { "ext4", 0, FOPEN_KEEP_CACHE };
FIXTURE_VARIANT_ADD(diff, ext4_auto_inval) { "ext4", FUSE_AUTO_INVAL_DATA, 0 };
FIXTURE_VARIANT_ADD(diff, xfs) { "xfs", FUSE_ATOMIC_O_TRUNC, 0 };
FIXTURE_VARIANT_ADD(diff, xfs_writeback) {
	"xfs", FUSE_WRITEBACK_CACHE | FUSE_ATOMIC_O_TRUNC, FOPEN_KEEP_CACHE
};

FIXTURE_VARIANT_ADD(diff, tmpfs) {
	"tmpfs", 0, FOPEN_PARALLEL_DIRECT_WRITES
};

FIXTURE_VARIANT_ADD(diff, tmpfs_writeback) { "tmpfs", FUSE_WRITEBACK_CACHE, 0 };

/* tmpfs has no O_DIRECT, and the server has to be told what to answer. */
static int open_one(struct srv *srv, const char *fs, int target, int i,
		    const char *path, int more)
{
	static const enum srv_mode mode[] = {
		SRV_PLAIN, SRV_PASSTHROUGH, SRV_BACKING_ID, SRV_PASSTHROUGH,
	};
	int flags = O_RDWR | more;

	if (i == ID_APPEND)
		flags |= O_APPEND;
	if (i == REQUEST_DIRECT && strcmp(fs, "tmpfs"))
		flags |= O_DIRECT;
	srv->mode = target == MIXED_FILE ? mode[i] : SRV_PLAIN;
	return srv_result(open(path, flags));
}

FIXTURE_SETUP(diff)
{
	static const char *const name[] = {
		SRV_LOWER "/bare", SRV_MNT "/plain", SRV_MNT "/mixed",
	};
	const char *seed = getenv("PASSTHROUGH_SEED");
	int i, k;

	self->random = seed && atoi(seed) ? atoi(seed) : 1;
	make_data();
	ASSERT_EQ(0, srv_namespace());
	ASSERT_EQ(0, srv_mount_lower(variant->fs));
	ASSERT_TRUE(make_lower(SRV_LOWER "/bare", 0600, 3 * BLOCK));
	ASSERT_TRUE(make_lower(SRV_LOWER "/plain", 0600, 3 * BLOCK));
	ASSERT_TRUE(make_lower(SRV_LOWER "/mixed", 0600, 3 * BLOCK));
	self->srv = srv_new();
	ASSERT_NE(NULL, self->srv);
	self->srv->lower = open(SRV_LOWER, O_PATH | O_DIRECTORY);
	ASSERT_LE(0, self->srv->lower);
	self->srv->flags = variant->flags;
	self->srv->open_flags = variant->open_flags;
	self->srv->valid = 3600;
	self->srv->timeout = 590;
	ASSERT_EQ(0, srv_start(self->srv, SRV_MNT));
	close(self->srv->lower);
	for (i = 0; i < TARGETS; i++) {
		struct target *t = &self->target[i];

		t->path = name[i];
		for (k = 0; k < FDS; k++) {
			t->fd[k] = open_one(self->srv, variant->fs, i, k,
					    t->path, 0);
			ASSERT_LE(0, t->fd[k]);
		}
		t->buf = aligned_alloc(BLOCK, MAX_SIZE + MAX_LEN);
		ASSERT_NE(NULL, t->buf);
		t->map = mmap(NULL, MAX_SIZE, PROT_READ | PROT_WRITE,
			      i == PLAIN_FILE ? MAP_PRIVATE : MAP_SHARED,
			      t->fd[REQUEST], 0);
		ASSERT_NE(MAP_FAILED, t->map);
	}
}

FIXTURE_TEARDOWN(diff)
{
	int i, k;

	for (i = 0; i < TARGETS; i++) {
		munmap(self->target[i].map, MAX_SIZE);
		for (k = 0; k < FDS; k++)
			close(self->target[i].fd[k]);
	}
	EXPECT_EQ(0, srv_stop(self->srv));
	EXPECT_EQ(0, srv_unmount(SRV_LOWER));
}

static void choose(struct step *step, unsigned int *random)
{
	int i, sum = 0, pick;

	for (i = 0; i < WHATS; i++)
		sum += weight[i];
	pick = next_random(random) % sum;
	for (i = 0; pick >= weight[i]; i++)
		pick -= weight[i];
	step->what = i;
	step->fd = next_random(random) % FDS;
	if (step->what == APPEND)
		step->fd = ID_APPEND;
	/* The end of a file is no whole block: bare says -EINVAL, FUSE copies. */
	if (step->what == COPY && step->fd == REQUEST_DIRECT)
		step->fd = REQUEST;
	step->len = 1 + next_random(random) % MAX_LEN;
	step->offset = next_random(random) % (MAX_SIZE - MAX_LEN);
	if (step->fd == REQUEST_DIRECT || next_random(random) % 4 == 0) {
		step->len = (step->len + BLOCK - 1) & -BLOCK;
		step->offset &= -BLOCK;
	}
	step->seed = next_random(random);
}

static void fill(char *buf, const struct step *step)
{
	unsigned int i, x = step->seed;

	for (i = 0; i < step->len; i++) {
		x = x * 1103515245 + 12345;
		buf[i] = x >> 16;
	}
}

/* An append must not make the file too large. */
static bool too_large(int fd, const struct step *step)
{
	return size_of(fd) + (off_t)step->len > MAX_SIZE;
}

static ssize_t through_pipe(int fd, const struct step *step, char *buf)
{
	loff_t offset = step->offset;
	size_t len = step->len;
	int end[2];
	ssize_t n;

	if (pipe(end))
		return -errno;
	if (step->what == SPLICE) {
		fill(buf, step);
		n = write(end[1], buf, len);
		/* Not allowed for O_APPEND */
		if (n == (ssize_t)len)
			n = srv_result(splice(end[0], NULL, fd, &offset, len, 0));
	} else {
		n = srv_result(sendfile(end[1], fd, &offset, len));
		if (n > 0 && read(end[0], buf, n) != n)
			n = -EIO;
	}
	close(end[0]);
	close(end[1]);
	return n;
}

static ssize_t copy_within(int fd, const struct step *step)
{
	loff_t from = step->offset, to = (step->offset + MAX_SIZE / 2) %
					 (MAX_SIZE - MAX_LEN);

	return srv_result(copy_file_range(fd, &from, fd, &to, step->len, 0));
}

/* Plain FUSE promises nothing of a shared mapping, so it has none. */
static ssize_t use_map(struct target *t, const struct step *step, bool plain)
{
	off_t size = size_of(t->fd[REQUEST]);
	size_t len = step->len;

	if (step->offset >= size)
		return 0;
	if (step->offset + (off_t)len > size)
		len = size - step->offset;
	if (step->what == STORE)
		fill(t->buf, step);
	if (plain && step->what == STORE)
		return pwrite(t->fd[CACHED], t->buf, len, step->offset);
	if (plain)
		return pread(t->fd[CACHED], t->buf, len, step->offset);
	if (step->what == STORE)
		memcpy(t->map + step->offset, t->buf, len);
	else
		memcpy(t->buf, t->map + step->offset, len);
	return len;
}

static ssize_t vectors(int fd, const struct step *step, char *buf)
{
	size_t half = step->fd == REQUEST_DIRECT ? step->len / 2 & -BLOCK :
						   step->len / 3;
	struct iovec iov[] = {
		{ buf, half }, { buf + half, step->len - half },
	};

	if (step->what == READV)
		return srv_result(preadv(fd, iov, 2, step->offset));
	fill(buf, step);
	return srv_result(pwritev(fd, iov, 2, step->offset));
}

static ssize_t change_size(int fd, const struct step *step)
{
	static const int mode[] = {
		[FALLOCATE] = 0,
		[PUNCH] = FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
		[ZERO] = FALLOC_FL_ZERO_RANGE,
	};

	if (step->what == TRUNCATE)
		return srv_result(ftruncate(fd, step->offset));
	return srv_result(fallocate(fd, mode[step->what], step->offset,
				    step->len));
}

static ssize_t do_io(struct target *t, const struct step *step, bool plain)
{
	int fd = t->fd[step->fd];

	switch (step->what) {
	case READ:
		return srv_result(pread(fd, t->buf, step->len, step->offset));
	case WRITE:
	case APPEND:
		if (step->fd == ID_APPEND && too_large(fd, step))
			return 0;
		fill(t->buf, step);
		return srv_result(pwrite(fd, t->buf, step->len, step->offset));
	case READV:
		return vectors(fd, step, t->buf);
	case WRITEV:
		if (step->fd == ID_APPEND && too_large(fd, step))
			return 0;
		return vectors(fd, step, t->buf);
	case TRUNCATE:
	case FALLOCATE:
	case PUNCH:
	case ZERO:
		return change_size(fd, step);
	case COPY:
		return copy_within(fd, step);
	case SPLICE:
	case SENDFILE:
		return through_pipe(fd, step, t->buf);
	case LOAD:
	case STORE:
		return use_map(t, step, plain);
	case SYNC:
		return srv_result(step->len & 1 ? fsync(fd) : fdatasync(fd));
	case SEEK_TO_END:
		return srv_result(lseek(fd, 0, SEEK_END));
	default:
		return 0;
	}
}

/* One step on one target */
static void run_step(struct srv *srv, const char *fs, struct target *t, int i,
		     const struct step *step)
{
	struct timespec old[2] = { { .tv_sec = 1000 }, { .tv_sec = 1000 } };
	struct stat st;

	memset(t->buf, 0x55, MAX_SIZE);
	t->was_empty = !size_of(t->fd[CACHED]);
	futimens(t->fd[CACHED], old);
	if (step->what == REOPEN || step->what == OPEN_TRUNC) {
		int fd = step->what == REOPEN ? step->fd : CACHED;

		close(t->fd[fd]);
		t->fd[fd] = open_one(srv, fs, i, fd, t->path,
				     step->what == REOPEN ? 0 : O_TRUNC);
		t->result = t->fd[fd] < 0 ? t->fd[fd] : 0;
	} else {
		t->result = do_io(t, step, i == PLAIN_FILE);
	}
	t->touched = !fstat(t->fd[step->seed % FDS], &st) &&
		     st.st_mtim.tv_sec != 1000;
}

/* The whole file, by one of its descriptors */
static ssize_t read_all(struct target *t, unsigned int how)
{
	memset(t->buf, 0x55, MAX_SIZE);
	return srv_result(pread(t->fd[how % FDS], t->buf, MAX_SIZE, 0));
}

/*
 * Times of what the server does are as with plain FUSE, the rest as bare.  A
 * store may move them once more, where a page was clean again.
 */
static bool same_touch(struct target *t, const struct step *step)
{
	bool bare = t[BARE_FILE].touched, mixed = t[MIXED_FILE].touched;
	bool plain = t[PLAIN_FILE].touched;

	switch (step->what) {
	case STORE:
		return mixed || !bare;
	case FALLOCATE:
	case PUNCH:
	case ZERO:
	case COPY:
	case TRUNCATE:
		return mixed == bare || mixed == plain;
	case OPEN_TRUNC:
		/* truncate(2) in the server leaves an empty file alone */
		return mixed == bare || mixed == plain ||
		       t[MIXED_FILE].was_empty;
	default:
		return mixed == bare;
	}
}

static const char *compare(struct target *t, const struct step *step, int i)
{
	struct target *bare = &t[BARE_FILE];
	ssize_t n;

	if (t[i].result != bare->result)
		return "result";
	/* Behind the end, O_DIRECT may write to the buffer */
	if (bare->result > 0 && step->what != COPY &&
	    step->what != SEEK_TO_END &&
	    memcmp(t[i].buf, bare->buf, bare->result))
		return "data";
	if (i == MIXED_FILE && !same_touch(t, step))
		return "mtime";
	if (size_of(t[i].fd[(step->seed >> 8) % FDS]) !=
	    size_of(bare->fd[CACHED]))
		return "size";
	n = read_all(bare, CACHED);
	if (read_all(&t[i], step->seed >> 4) != n)
		return "length of the content";
	if (n > 0 && memcmp(t[i].buf, bare->buf, n))
		return "content";
	return NULL;
}

TEST_F_TIMEOUT(diff, steps, 600)
{
	const char *steps = getenv("PASSTHROUGH_STEPS");
	int i, n, asked = steps ? atoi(steps) : 0;
	unsigned int seed = self->random;
	char *result = malloc(MAX_SIZE);
	const char *what;
	struct step step;

	ASSERT_NE(NULL, result);
	for (n = 0; again(n, asked ?: STEPS, asked ? 600 : 15); n++) {
		choose(&step, &self->random);
		for (i = 0; i < TARGETS; i++)
			run_step(self->srv, variant->fs, &self->target[i], i,
				 &step);
		memcpy(result, self->target[BARE_FILE].buf, MAX_SIZE);
		for (i = PLAIN_FILE; i < TARGETS; i++) {
			memcpy(self->target[BARE_FILE].buf, result, MAX_SIZE);
			what = compare(self->target, &step, i);
			ASSERT_EQ(NULL, what) {
				TH_LOG("seed %u, step %d: %s on %s", seed, n,
				       what_name[step.what], fd_name[step.fd]);
				TH_LOG("%zu bytes at %ld: %s of %s", step.len,
				       (long)step.offset, what, target_name[i]);
				TH_LOG("%zd for %zd, touched %d %d %d",
				       self->target[i].result,
				       self->target[BARE_FILE].result,
				       self->target[0].touched,
				       self->target[1].touched,
				       self->target[2].touched);
			}
		}
	}
	free(result);
}

TEST_HARNESS_MAIN
