// SPDX-License-Identifier: GPL-2.0
/*
 * One inode open through the page cache and through passthrough: what is
 * between the two, and when.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <semaphore.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/uio.h>
#include <linux/fs.h>

#include "fuse_test_blocked.h"

#define MNT2		SRV_BASE "/mnt2"

FIXTURE(mixed) {
	struct env env;
	int cached;
	int through;
};

FIXTURE_VARIANT(mixed) {
	const char *fs;
	enum way way;
	__u64 flags;
};

FIXTURE_VARIANT_ADD(mixed, ext4) { "ext4", BY_REQUEST, 0 };
FIXTURE_VARIANT_ADD(mixed, ext4_writeback) {
	"ext4", BY_REQUEST, FUSE_WRITEBACK_CACHE
};

FIXTURE_VARIANT_ADD(mixed, xfs_id_writeback) {
	"xfs", BY_ID, FUSE_WRITEBACK_CACHE
};

FIXTURE_VARIANT_ADD(mixed, tmpfs_id) { "tmpfs", BY_ID, 0 };

static sem_t arrived, go;
static atomic_bool hold, take_away;
static int buffer;

/* Nobody has the pages mapped any more, and all is where it was. */
static bool new_pages(int fd, off_t offset, size_t len)
{
	return !fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
			  offset, len) &&
	       pwrite(fd, data + offset, len, offset) == (ssize_t)len;
}

/* The server is slow with one WRITE, or takes the client's buffer away. */
static int in_a_write(struct srv *srv, struct srv_req *req)
{
	if (req->in.opcode != FUSE_WRITE)
		return SRV_GO_ON;
	if (atomic_exchange(&hold, false)) {
		sem_post(&arrived);
		sem_wait(&go);
	}
	if (atomic_exchange(&take_away, false) &&
	    !new_pages(buffer, 2 * BLOCK, 30 * BLOCK))
		return -EIO;
	return SRV_GO_ON;
}

FIXTURE_SETUP(mixed)
{
	sem_init(&arrived, 0, 0);
	sem_init(&go, 0, 0);
	env_setup(_metadata, &self->env, variant->fs, PLAIN, 4 * BLOCK);
	self->env.srv->flags = variant->flags | FUSE_ATOMIC_O_TRUNC;
	self->env.srv->threads = 3;
	self->env.srv->on_request = in_a_write;
	env_start(_metadata, &self->env);
	self->cached = open(FILE_MNT, O_RDWR);
	ASSERT_LE(0, self->cached);
	self->env.srv->mode = mode_for(variant->way);
	self->through = open(FILE_MNT, O_RDWR);
	ASSERT_LE(0, self->through);
}

FIXTURE_TEARDOWN(mixed)
{
	close(self->cached);
	close(self->through);
	env_teardown(_metadata, &self->env);
}

/* A system call in a thread, and whether it has to wait */
struct call {
	int fd;
	bool write;
	char *buf;
	ssize_t result;
	atomic_int tid;
	atomic_bool done;
	pthread_t id;
};

static void *run_call(void *arg)
{
	struct call *call = arg;

	call->tid = syscall(SYS_gettid);
	if (call->write)
		call->result = pwrite(call->fd, call->buf, 100, 50);
	else
		call->result = pread(call->fd, call->buf, BLOCK, 0);
	call->done = true;
	return NULL;
}

/* True when the call sleeps and can't be interrupted, false when it is done. */
static bool comes_to_wait(struct call *call)
{
	while (!call->done) {
		if (call->tid && task_state(call->tid) == 'D')
			return true;
		sched_yield();
	}
	return false;
}

static bool in_page_cache(int fd)
{
	unsigned char there = 0;
	char *map = mmap(NULL, BLOCK, PROT_READ, MAP_SHARED, fd, 0);

	if (map == MAP_FAILED || mincore(map, BLOCK, &there))
		there = 2;
	munmap(map, BLOCK);
	return there & 1;
}

/*
 * A page that a store dirtied, that is clean and gone, and that the server has
 * not written yet.
 */
static void store_and_drop(struct __test_metadata *_metadata, int cached)
{
	char *map = mmap(NULL, BLOCK, PROT_READ | PROT_WRITE, MAP_SHARED,
			 cached, 0);

	ASSERT_NE(MAP_FAILED, map);
	memcpy(map, data + BLOCK, BLOCK);
	hold = true;
	ASSERT_EQ(0, munmap(map, BLOCK));
	ASSERT_EQ(0, sem_wait(&arrived));
	while (in_page_cache(cached))
		ASSERT_EQ(0, posix_fadvise(cached, 0, 0, POSIX_FADV_DONTNEED));
}

/* The page was dropped, and its data is still on the way to the server. */
TEST_F(mixed, read_behind_writeback)
{
	struct call call = { .fd = self->through, .buf = back };

	store_and_drop(_metadata, self->cached);
	ASSERT_EQ(0, pthread_create(&call.id, NULL, run_call, &call));
	EXPECT_TRUE(comes_to_wait(&call));
	sem_post(&go);
	pthread_join(call.id, NULL);
	ASSERT_EQ(BLOCK, call.result);
	ASSERT_EQ(0, memcmp(data + BLOCK, back, BLOCK));
}

TEST_F(mixed, write_behind_writeback)
{
	struct call call = { .fd = self->through, .write = true, .buf = data };

	store_and_drop(_metadata, self->cached);
	ASSERT_EQ(0, pthread_create(&call.id, NULL, run_call, &call));
	EXPECT_TRUE(comes_to_wait(&call));
	sem_post(&go);
	pthread_join(call.id, NULL);
	ASSERT_EQ(100, call.result);
	ASSERT_TRUE(lower_is(4 * BLOCK, 50, data, 100));
}

/* Whole pages are written back: nothing else in them may be lost. */
TEST_F(mixed, write_beside_cached_writer)
{
	struct call call = { .fd = self->through, .write = true, .buf = data };
	const char x = 'x';
	int i;

	for (i = 0; again(i, 200, 5); i++) {
		call.done = false;
		ASSERT_EQ(10, pwrite(self->through, "0123456789", 10, 50));
		ASSERT_EQ(0, pthread_create(&call.id, NULL, run_call, &call));
		ASSERT_EQ(1, pwrite(self->cached, &x, 1, 1000 + i));
		pthread_join(call.id, NULL);
		ASSERT_EQ(100, call.result);
		ASSERT_EQ(0, fsync(self->cached));
		ASSERT_TRUE(lower_is(4 * BLOCK, 50, data, 100));
		ASSERT_TRUE(lower_is(4 * BLOCK, 1000 + i, &x, 1));
	}
}

/* Pages in the cache don't keep the times of a write from being seen. */
TEST_F(mixed, times_beside_pages)
{
	const struct timespec old[2] = { { .tv_sec = 1000 }, { .tv_sec = 1000 } };
	struct stat st;

	ASSERT_EQ(0, futimens(self->cached, old));
	ASSERT_EQ(BLOCK, pread(self->cached, back, BLOCK, 0));
	ASSERT_TRUE(in_page_cache(self->cached));
	ASSERT_EQ(0, fstat(self->cached, &st));
	ASSERT_EQ(1000, st.st_mtim.tv_sec);
	ASSERT_EQ(100, pwrite(self->through, data + BLOCK, 100, 50));
	ASSERT_EQ(0, fstat(self->cached, &st));
	ASSERT_NE(1000, st.st_mtim.tv_sec);
	ASSERT_EQ(BLOCK, pread(self->cached, back, BLOCK, 0));
	ASSERT_EQ(0, memcmp(data + BLOCK, back + 50, 100));
}

/* A writer that waits for a thaw holds no lock that cached readers need. */
TEST_F(mixed, frozen_writer)
{
	struct call through = { .fd = self->through, .write = true,
				.buf = data };
	struct call cached = { .fd = self->cached, .buf = back };
	struct timespec deadline;
	bool joined;
	int dir;

	/* tmpfs can't be frozen */
	if (!strcmp(variant->fs, "tmpfs"))
		return;
	dir = open(SRV_LOWER, O_RDONLY | O_DIRECTORY);
	ASSERT_LE(0, dir);
	ASSERT_EQ(0, ioctl(dir, FIFREEZE, 0));
	pthread_create(&through.id, NULL, run_call, &through);
	EXPECT_TRUE(comes_to_wait(&through));
	pthread_create(&cached.id, NULL, run_call, &cached);
	clock_gettime(CLOCK_REALTIME, &deadline);
	deadline.tv_sec += 15;
	/* The thaw lets the rest of the test go on if this fails */
	joined = !pthread_timedjoin_np(cached.id, NULL, &deadline);
	EXPECT_TRUE(joined);
	EXPECT_FALSE(through.done);
	EXPECT_EQ(0, ioctl(dir, FITHAW, 0));
	pthread_join(through.id, NULL);
	if (!joined)
		pthread_join(cached.id, NULL);
	close(dir);
	ASSERT_EQ(100, through.result);
	ASSERT_EQ(BLOCK, cached.result);
	ASSERT_EQ(100, pwrite(self->cached, data, 100, 50));
	ASSERT_TRUE(lower_is(4 * BLOCK, 50, data, 100));
}

static char *map_file(int fd)
{
	return mmap(NULL, 4 * BLOCK, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
}

/* What was written by a cached open is in a mapping made later. */
TEST_F(mixed, may_not_wait)
{
	struct iovec iov = { data, BLOCK };
	int dir;

	if (!strcmp(variant->fs, "tmpfs"))
		return;
	/* For the lock under which the size is moved */
	ASSERT_EQ(-EAGAIN, srv_result(pwritev2(self->through, &iov, 1,
					       4 * BLOCK, RWF_NOWAIT)));
	dir = open(SRV_LOWER, O_RDONLY | O_DIRECTORY);
	ASSERT_LE(0, dir);
	/* For the thaw */
	ASSERT_EQ(0, ioctl(dir, FIFREEZE, 0));
	EXPECT_EQ(-EAGAIN, srv_result(pwritev2(self->through, &iov, 1, 0,
					       RWF_NOWAIT)));
	ASSERT_EQ(0, ioctl(dir, FITHAW, 0));
	close(dir);
}

TEST_F(mixed, mapping_after_cached_write)
{
	char *map;

	ASSERT_EQ(100, pwrite(self->cached, data + 7, 100, BLOCK));
	map = map_file(self->through);
	ASSERT_NE(MAP_FAILED, map);
	ASSERT_EQ(0, memcmp(map + BLOCK, data + 7, 100));
	ASSERT_EQ(0, memcmp(map + BLOCK + 100, data + BLOCK + 100, 100));
	ASSERT_EQ(0, munmap(map, 4 * BLOCK));
}

/* Stores, and cached reads and writes, see each other at once. */
TEST_F(mixed, mapping_beside_cached)
{
	char *map = map_file(self->through);
	int i, seen;

	ASSERT_NE(MAP_FAILED, map);
	for (i = 0; i < 3; i++) {
		map[100] = 'a' + i;
		ASSERT_EQ(200, pread(self->cached, back, 200, 0));
		ASSERT_EQ('a' + i, back[100]);
		ASSERT_EQ(1, pwrite(self->cached, &back[100], 1, 101));
		ASSERT_EQ('a' + i, map[101]);
		map[102] = 'A' + i;
		ASSERT_EQ(1, pwrite(self->cached, "y", 1, 103));
		ASSERT_EQ(200, pread(self->through, back, 200, 0));
		ASSERT_EQ('A' + i, back[102]);
		ASSERT_EQ('y', back[103]);
	}
	ASSERT_EQ(200, pread(self->cached, back, 200, 0));
	map[100] = 'z';
	ASSERT_EQ(0, munmap(map, 4 * BLOCK));
	ASSERT_EQ(200, pread(self->cached, back, 200, 0));
	ASSERT_EQ('z', back[100]);
	/* Nothing tells when the last store was: the page cache is not used again. */
	seen = self->env.srv->seen[FUSE_READ];
	ASSERT_EQ(200, pread(self->cached, back, 200, 0));
	ASSERT_LT(seen, self->env.srv->seen[FUSE_READ]);
}

/* The answer is refused, the file is truncated all the same. */
TEST_F(mixed, refused_truncation)
{
	struct stat st;

	self->env.srv->mode = SRV_PLAIN;
	self->env.srv->open_flags = FOPEN_PASSTHROUGH;
	ASSERT_EQ(4 * BLOCK, pread(self->cached, back, 4 * BLOCK, 0));
	ASSERT_EQ(-1, open(FILE_MNT, O_RDWR | O_TRUNC));
	ASSERT_EQ(EIO, errno);
	ASSERT_EQ(0, stat(LOWER, &st));
	ASSERT_EQ(0, st.st_size);
	ASSERT_EQ(0, size_of(self->cached));
	ASSERT_EQ(0, pread(self->cached, back, BLOCK, 0));
	ASSERT_EQ(0, pread(self->through, back, BLOCK, 0));
}

/* Pages of a buffer that are not there, once the first has been read. */
TEST_F(mixed, buffer_that_faults)
{
	const size_t size = 8 * BLOCK;
	char *buf = mmap(NULL, size, PROT_READ | PROT_WRITE,
			 MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	ASSERT_NE(MAP_FAILED, buf);
	memcpy(buf, data + 9, BLOCK);
	ASSERT_EQ((ssize_t)size, pwrite(self->through, buf, size, 123));
	ASSERT_TRUE(lower_is(size + 123, 123, data + 9, BLOCK));
	ASSERT_TRUE(lower_is(size + 123, 123 + BLOCK, buf + BLOCK, BLOCK));
	ASSERT_EQ(0, munmap(buf, size));
	buf = mmap(NULL, size, PROT_READ | PROT_WRITE,
		   MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	ASSERT_NE(MAP_FAILED, buf);
	buf[BLOCK] = 1;
	ASSERT_EQ((ssize_t)size, pread(self->through, buf, size, 123));
	ASSERT_EQ(0, memcmp(data + 9, buf, BLOCK));
	ASSERT_TRUE(all_zero(buf + BLOCK, size - BLOCK));
	ASSERT_EQ(0, munmap(buf, size));
	ASSERT_EQ(0, self->env.srv->seen[FUSE_READ]);
	ASSERT_EQ(0, self->env.srv->seen[FUSE_WRITE]);
}

/*
 * The server reads for the fault, and needs a lock that the write holds: that
 * of xfs, when the end moves to where no block begins.
 */
TEST_F(mixed, buffer_of_the_same_file)
{
	struct iocb iocb = {
		.aio_lio_opcode = IOCB_CMD_PWRITE,
		.aio_nbytes = 4 * BLOCK,
		.aio_offset = 4 * BLOCK + 512,
	}, *list = &iocb;
	aio_context_t ctx = 0;
	struct io_event event;
	char *map;
	int fd;

	if (!strcmp(variant->fs, "tmpfs"))
		return;
	fd = open(FILE_MNT, O_RDWR | O_DIRECT);
	ASSERT_LE(0, fd);
	map = mmap(NULL, 4 * BLOCK, PROT_READ, MAP_SHARED, self->cached, 0);
	ASSERT_NE(MAP_FAILED, map);
	iocb.aio_fildes = fd;
	iocb.aio_buf = (uintptr_t)map;
	ASSERT_EQ(0, syscall(__NR_io_setup, 1, &ctx));
	ASSERT_EQ(1, syscall(__NR_io_submit, ctx, 1, &list));
	ASSERT_EQ(1, syscall(__NR_io_getevents, ctx, 1, 1, &event, NULL));
	ASSERT_EQ(4 * BLOCK, event.res);
	ASSERT_LT(0, self->env.srv->seen[FUSE_READ]);
	ASSERT_TRUE(lower_is(8 * BLOCK + 512, 4 * BLOCK + 512, data,
			     4 * BLOCK));
	ASSERT_EQ(0, syscall(__NR_io_destroy, ctx));
	ASSERT_EQ(0, munmap(map, 4 * BLOCK));
	close(fd);
}

/*
 * The buffer is a mapping of the same lower file by another mount, whose
 * server needs the lower file's locks to fill it.
 */
TEST_F(mixed, buffer_of_another_mount)
{
	struct srv *other;
	char *map;
	int fd;

	ASSERT_EQ(0, mkdir(MNT2, 0700));
	other = srv_new();
	ASSERT_NE(NULL, other);
	other->lower = open(SRV_LOWER, O_PATH | O_DIRECTORY);
	ASSERT_LE(0, other->lower);
	ASSERT_EQ(0, srv_start(other, MNT2));
	close(other->lower);
	fd = open(MNT2 "/file", O_RDONLY);
	ASSERT_LE(0, fd);
	map = mmap(NULL, 4 * BLOCK, PROT_READ, MAP_SHARED, fd, 0);
	ASSERT_NE(MAP_FAILED, map);
	ASSERT_EQ(4 * BLOCK, pwrite(self->through, map, 4 * BLOCK, 4 * BLOCK));
	ASSERT_LT(0, other->seen[FUSE_READ]);
	ASSERT_TRUE(lower_is(8 * BLOCK, 4 * BLOCK, data, 4 * BLOCK));
	ASSERT_EQ(0, munmap(map, 4 * BLOCK));
	close(fd);
	ASSERT_EQ(0, srv_stop(other));
	ASSERT_EQ(0, self->env.srv->seen[FUSE_WRITE]);
}

/*
 * The buffer goes between the look at it and the write, which is then half done
 * when it fails: the next attempt begins where this one did.
 */
TEST_F(mixed, buffer_taken_away)
{
	char *map, *buf;
	int lower;

	if (!strcmp(variant->fs, "tmpfs"))
		return;
	lower = open(LOWER, O_RDWR);
	ASSERT_LE(0, lower);
	ASSERT_EQ(0, fsync(lower));
	ASSERT_TRUE(strcmp(variant->fs, "ext4") || map_by_blocks(lower));
	close(lower);
	ASSERT_EQ(0, ftruncate(self->cached, 64 * BLOCK));
	buffer = memfd_create("buffer", 0);
	ASSERT_EQ(32 * BLOCK, write(buffer, data, 32 * BLOCK));
	buf = mmap(NULL, 32 * BLOCK, PROT_READ, MAP_SHARED, buffer, 0);
	ASSERT_NE(MAP_FAILED, buf);
	/* The server's own writes are not aligned */
	ASSERT_EQ(0, fcntl(self->through, F_SETFL, O_DIRECT));
	map = mmap(NULL, 4 * BLOCK, PROT_READ | PROT_WRITE, MAP_SHARED,
		   self->cached, 0);
	ASSERT_NE(MAP_FAILED, map);

	map[2 * BLOCK] = 1;
	take_away = true;
	ASSERT_EQ(BLOCK, lseek(self->through, BLOCK, SEEK_SET));
	ASSERT_EQ(32 * BLOCK, write(self->through, buf, 32 * BLOCK));
	ASSERT_FALSE(take_away);
	ASSERT_EQ(33 * BLOCK, lseek(self->through, 0, SEEK_CUR));
	ASSERT_TRUE(lower_is(64 * BLOCK, 0, data, BLOCK));
	ASSERT_TRUE(lower_is(64 * BLOCK, BLOCK, data, 32 * BLOCK));
	ASSERT_EQ(0, munmap(map, 4 * BLOCK));
	ASSERT_EQ(0, munmap(buf, 32 * BLOCK));
	close(buffer);
}

/* The buffer is what is read or written, and goes when that is flushed. */
TEST_F(mixed, buffer_flushed_with_the_file)
{
	char *map = mmap(NULL, 4 * BLOCK, PROT_READ | PROT_WRITE, MAP_SHARED,
			 self->cached, 0);

	ASSERT_NE(MAP_FAILED, map);
	ASSERT_EQ(BLOCK, pread(self->through, map, BLOCK, 0));
	ASSERT_EQ(0, memcmp(map, data, BLOCK));
	ASSERT_EQ(3 * BLOCK, pread(self->through, map, 4 * BLOCK, BLOCK));
	ASSERT_EQ(0, memcmp(map, data + BLOCK, BLOCK));
	ASSERT_EQ(0, munmap(map, 4 * BLOCK));
}

TEST_F(mixed, buffer_of_the_lower_file)
{
	char *map;

	if (!strcmp(variant->fs, "tmpfs"))
		return;
	map = mmap(NULL, 4 * BLOCK, PROT_READ | PROT_WRITE, MAP_SHARED,
		   self->through, 0);
	ASSERT_NE(MAP_FAILED, map);
	ASSERT_EQ(0, fcntl(self->through, F_SETFL, O_DIRECT));
	memcpy(map, data + 7, BLOCK);
	ASSERT_EQ(BLOCK, pread(self->through, map, BLOCK, 0));
	ASSERT_EQ(BLOCK, pwrite(self->through, map, BLOCK, 0));
	ASSERT_EQ(4 * BLOCK, pwrite(self->through, map, 4 * BLOCK, 0));
	ASSERT_TRUE(lower_is(4 * BLOCK, 0, data + 7, BLOCK));
	ASSERT_TRUE(lower_is(4 * BLOCK, BLOCK, data + BLOCK, 3 * BLOCK));
	ASSERT_EQ(0, munmap(map, 4 * BLOCK));
	ASSERT_EQ(0, self->env.srv->seen[FUSE_READ]);
	ASSERT_EQ(0, self->env.srv->seen[FUSE_WRITE]);
}

/* The server is slow with what is held. */
static atomic_uint held;

static int hold_request(struct srv *srv, struct srv_req *req)
{
	if (req->in.opcode == held) {
		sem_post(&arrived);
		sem_wait(&go);
	}
	return SRV_GO_ON;
}

static void *write_two_blocks(void *arg)
{
	struct call *call = arg;

	call->result = pwrite(call->fd, call->buf, 2 * BLOCK, 0);
	return NULL;
}

static void *sync_file(void *arg)
{
	struct call *call = arg;

	call->result = srv_result(fsync(call->fd));
	return NULL;
}

/* A buffer that is not there yet is no reason to wait for the server. */
TEST_F(mixed, new_buffer_beside_fsync)
{
	struct call call = { .fd = self->cached };
	char *buf;

	/* Writes of such a mount have its lock */
	if (variant->flags & FUSE_WRITEBACK_CACHE)
		return;
	buf = mmap(NULL, BLOCK, PROT_READ | PROT_WRITE,
		   MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	ASSERT_NE(MAP_FAILED, buf);
	held = FUSE_FSYNC;
	self->env.srv->on_request = hold_request;
	ASSERT_EQ(0, pthread_create(&call.id, NULL, sync_file, &call));
	sem_wait(&arrived);
	EXPECT_EQ(100, pwrite(self->through, buf, 100, BLOCK));
	sem_post(&go);
	ASSERT_EQ(0, pthread_join(call.id, NULL));
	ASSERT_EQ(0, call.result);
	ASSERT_TRUE(lower_is(4 * BLOCK, BLOCK, buf, 100));
	ASSERT_EQ(0, munmap(buf, BLOCK));
}

/*
 * A write that waits for a page of its buffer is resumed: each block is of one
 * writer, and all of it is written.
 */
TEST_F(mixed, resumed_write)
{
	struct call call = { .fd = self->through };
	struct srv *other;
	int fd;

	ASSERT_EQ(0, mkdir(MNT2, 0700));
	other = srv_new();
	ASSERT_NE(NULL, other);
	other->lower = open(SRV_LOWER, O_PATH | O_DIRECTORY);
	ASSERT_LE(0, other->lower);
	held = FUSE_READ;
	other->on_request = hold_request;
	ASSERT_EQ(0, srv_start(other, MNT2));
	close(other->lower);
	fd = open(MNT2 "/file", O_RDONLY);
	ASSERT_LE(0, fd);
	call.buf = mmap(NULL, 2 * BLOCK, PROT_READ | PROT_WRITE,
			MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	ASSERT_NE(MAP_FAILED, call.buf);
	memcpy(call.buf, data + 9, BLOCK);
	ASSERT_EQ(call.buf + BLOCK, mmap(call.buf + BLOCK, BLOCK, PROT_READ,
					 MAP_PRIVATE | MAP_FIXED, fd, 0));

	ASSERT_EQ(0, pthread_create(&call.id, NULL, write_two_blocks, &call));
	sem_wait(&arrived);
	EXPECT_EQ(2 * BLOCK, pwrite(self->through, data + 5, 2 * BLOCK, 0));
	sem_post(&go);
	ASSERT_EQ(0, pthread_join(call.id, NULL));
	ASSERT_EQ(2 * BLOCK, call.result);
	ASSERT_TRUE(lower_is(4 * BLOCK, 0, data + 9, BLOCK) ||
		    lower_is(4 * BLOCK, 0, data + 5, BLOCK));
	ASSERT_TRUE(lower_is(4 * BLOCK, BLOCK, call.buf + BLOCK, BLOCK));
	ASSERT_EQ(0, munmap(call.buf, 2 * BLOCK));
	close(fd);
	ASSERT_EQ(0, srv_stop(other));
	ASSERT_EQ(0, self->env.srv->seen[FUSE_WRITE]);
}

/* Whoever appends, what is behind the end in pages comes first. */
TEST_F(mixed, append_behind_cached_write)
{
	int fd = open(FILE_MNT, O_RDWR | O_APPEND);
	bool by_id = variant->way == BY_ID;

	ASSERT_LE(0, fd);
	ASSERT_EQ(0, fcntl(fd, F_SETFL, 0));
	ASSERT_EQ(BLOCK, pwrite(self->cached, data + 3, BLOCK, 4 * BLOCK));
	/* The server's descriptor still has the flag */
	ASSERT_EQ(100, pwrite(fd, data + 9, 100, 0));
	ASSERT_EQ(0, fsync(self->cached));
	ASSERT_TRUE(lower_is(5 * BLOCK + (by_id ? 0 : 100), 4 * BLOCK,
			     data + 3, BLOCK));
	ASSERT_TRUE(lower_is(5 * BLOCK + (by_id ? 0 : 100),
			     by_id ? 0 : 5 * BLOCK, data + 9, 100));
	close(fd);
}

/* What a write did before it failed is seen, and the size that it found. */
TEST_F(mixed, half_a_write)
{
	int lower;
	char *buf;

	/* Elsewhere it does not fail */
	if (strcmp(variant->fs, "ext4"))
		return;
	lower = open(LOWER, O_RDWR);
	ASSERT_LE(0, lower);
	ASSERT_EQ(0, fsync(lower));
	ASSERT_TRUE(map_by_blocks(lower));
	ASSERT_EQ(0, ftruncate(self->cached, 64 * BLOCK));
	ASSERT_EQ(4 * BLOCK, pread(self->cached, back, 4 * BLOCK, 0));
	ASSERT_EQ(0, fcntl(self->through, F_SETFL, O_DIRECT));
	buf = mmap(NULL, 8 * BLOCK, PROT_READ | PROT_WRITE,
		   MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	ASSERT_NE(MAP_FAILED, buf);
	memcpy(buf, data + 9, 4 * BLOCK);
	ASSERT_EQ(0, mprotect(buf + 4 * BLOCK, 4 * BLOCK, PROT_NONE));
	ASSERT_EQ(0, ftruncate(lower, 80 * BLOCK));
	close(lower);

	ASSERT_EQ(-1, pwrite(self->through, buf, 8 * BLOCK, 0));
	ASSERT_EQ(EFAULT, errno);
	ASSERT_TRUE(lower_is(80 * BLOCK, 0, buf, 4 * BLOCK));
	ASSERT_EQ(4 * BLOCK, pread(self->cached, back, 4 * BLOCK, 0));
	ASSERT_EQ(0, memcmp(buf, back, 4 * BLOCK));
	ASSERT_EQ(80 * BLOCK, size_of(self->cached));
	ASSERT_EQ(0, munmap(buf, 8 * BLOCK));
}

TEST_HARNESS_MAIN
