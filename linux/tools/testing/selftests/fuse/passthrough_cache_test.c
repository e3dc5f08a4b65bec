// SPDX-License-Identifier: GPL-2.0
/*
 * Page cache and attributes of an inode that is open through the cache and
 * through passthrough, while the server holds a request or its answer back.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <semaphore.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <linux/aio_abi.h>

#include "fuse_test_files.h"

#define LINK_MNT	SRV_MNT "/link"
#define SIZE		(64 * BLOCK)

static sem_t arrived, go;

/* Opcodes: the request is held before it is served, or its answer is held */
static atomic_uint held_request, held_answer;

/* What the server says now, to be said later */
static int answer_later(struct srv *srv, struct srv_req *req)
{
	static char answer[SRV_MAX_WRITE + 4096];
	int dev = req->dev, end[2];
	ssize_t n;

	if (pipe(end) || fcntl(end[1], F_SETPIPE_SZ, 1 << 18) < 0)
		return -EIO;
	req->dev = end[1];
	srv_serve(srv, req);
	req->dev = dev;
	n = read(end[0], answer, sizeof(answer));
	close(end[0]);
	close(end[1]);
	sem_post(&arrived);
	sem_wait(&go);
	return n > 0 && write(dev, answer, n) == n ? SRV_TAKEN : -EIO;
}

/* The server knows no LINK: link here, and let it look the new name up. */
static void link_first(struct srv_req *req)
{
	size_t names = sizeof(struct fuse_link_in);

	if (link(LOWER, SRV_LOWER "/link"))
		return;
	req->in.opcode = FUSE_LOOKUP;
	req->in.len -= names;
	memmove(req->arg, req->arg + names, req->in.len - sizeof(req->in));
}

static int hold(struct srv *srv, struct srv_req *req)
{
	unsigned int opcode = req->in.opcode;

	if (atomic_compare_exchange_strong(&held_request, &opcode, 0)) {
		sem_post(&arrived);
		sem_wait(&go);
	}
	opcode = req->in.opcode;
	if (!atomic_compare_exchange_strong(&held_answer, &opcode, 0))
		return SRV_GO_ON;
	if (opcode == FUSE_LINK)
		link_first(req);
	return answer_later(srv, req);
}

FIXTURE(cache) {
	struct env env;
	int cached;
	int through;
};

FIXTURE_VARIANT(cache) {
	const char *fs;
	enum way way;
	__u64 flags;
};

FIXTURE_VARIANT_ADD(cache, ext4) { "ext4", BY_REQUEST, 0 };
FIXTURE_VARIANT_ADD(cache, ext4_writeback) {
	"ext4", BY_REQUEST, FUSE_WRITEBACK_CACHE
};

FIXTURE_VARIANT_ADD(cache, xfs_id_writeback) {
	"xfs", BY_ID, FUSE_WRITEBACK_CACHE
};

FIXTURE_VARIANT_ADD(cache, tmpfs_id) { "tmpfs", BY_ID, 0 };

FIXTURE_SETUP(cache)
{
	sem_init(&arrived, 0, 0);
	sem_init(&go, 0, 0);
	env_setup(_metadata, &self->env, variant->fs, PLAIN, SIZE);
	ASSERT_EQ(0, chmod(SRV_LOWER, 0777));
	self->env.srv->flags = variant->flags | FUSE_ATOMIC_O_TRUNC;
	self->env.srv->threads = 4;
	self->env.srv->on_request = hold;
	env_start(_metadata, &self->env);
	self->cached = open(FILE_MNT, O_RDWR);
	ASSERT_LE(0, self->cached);
	self->through = -1;
}

FIXTURE_TEARDOWN(cache)
{
	close(self->cached);
	close(self->through);
	env_teardown(_metadata, &self->env);
}

static int open_through(struct srv *srv, enum way way, int flags)
{
	int fd;

	srv->mode = mode_for(way);
	fd = open(FILE_MNT, flags);
	srv->mode = SRV_PLAIN;
	return fd;
}

#define OPEN_THROUGH()							\
	do {								\
		self->through = open_through(self->env.srv,		\
					     variant->way, O_RDWR);	\
		ASSERT_LE(0, self->through);				\
	} while (0)

/* A system call in a thread */
struct call {
	int fd;
	char *buf;
	size_t len;
	off_t offset;
	int flags;
	ssize_t result;
	pthread_t id;
};

#define CALL(file, bytes, count, pos)					\
	{ .fd = file, .buf = bytes, .len = count, .offset = pos }

static void *call_pread(void *arg)
{
	struct call *call = arg;

	call->result = srv_result(pread(call->fd, call->buf, call->len,
					call->offset));
	return NULL;
}

static void *call_pwrite(void *arg)
{
	struct call *call = arg;

	call->result = srv_result(pwrite(call->fd, call->buf, call->len,
					 call->offset));
	return NULL;
}

static void *call_fchmod(void *arg)
{
	struct call *call = arg;

	call->result = srv_result(fchmod(call->fd, call->flags));
	return NULL;
}

static void *call_link(void *arg)
{
	struct call *call = arg;

	call->result = srv_result(link(FILE_MNT, LINK_MNT));
	return NULL;
}

static void *call_ftruncate(void *arg)
{
	struct call *call = arg;

	call->result = srv_result(ftruncate(call->fd, call->len));
	return NULL;
}

static bool is_filled(const char *p, char byte, size_t len)
{
	return p[0] == byte && !memcmp(p, p + 1, len - 1);
}

/* Stores to a mapping are over: no cached read is older, no cached write too. */
TEST_F(cache, stores_then_cached_readers_and_writer)
{
	static char one[SIZE], two[SIZE];
	char byte = 'w', *map;
	int i;

	OPEN_THROUGH();
	for (i = 0; again(i, 50, 5); i++) {
		struct call a = CALL(self->cached, one, SIZE, 0);
		struct call b = CALL(self->cached, two, SIZE, 0);
		struct call w = CALL(self->cached, &byte, 1, SIZE / 2);

		ASSERT_EQ(SIZE, pread(self->cached, back, SIZE, 0));
		map = mmap(NULL, SIZE, PROT_READ | PROT_WRITE, MAP_SHARED,
			   self->through, 0);
		ASSERT_NE(MAP_FAILED, map);
		memset(map, i, SIZE);
		ASSERT_EQ(0, munmap(map, SIZE));
		ASSERT_EQ(0, pthread_create(&a.id, NULL, call_pread, &a));
		ASSERT_EQ(0, pthread_create(&w.id, NULL, call_pwrite, &w));
		ASSERT_EQ(0, pthread_create(&b.id, NULL, call_pread, &b));
		ASSERT_EQ(0, pthread_join(a.id, NULL));
		ASSERT_EQ(0, pthread_join(b.id, NULL));
		ASSERT_EQ(0, pthread_join(w.id, NULL));
		ASSERT_EQ(SIZE, a.result);
		ASSERT_EQ(SIZE, b.result);
		ASSERT_EQ(1, w.result);
		one[SIZE / 2] = i;
		two[SIZE / 2] = i;
		ASSERT_TRUE(is_filled(one, i, SIZE));
		ASSERT_TRUE(is_filled(two, i, SIZE));
		ASSERT_EQ(0, fsync(self->cached));
		ASSERT_EQ(SIZE, pread(self->through, one, SIZE, 0));
		ASSERT_EQ('w', one[SIZE / 2]);
		one[SIZE / 2] = i;
		ASSERT_TRUE(is_filled(one, i, SIZE));
	}
}

/* A cached write began before the inode had a passthrough open. */
TEST_F(cache, store_during_a_cached_write)
{
	struct call call = CALL(self->cached, data + 9, 100, 50);
	struct statx stx;
	char *map;

	ASSERT_EQ(BLOCK, pread(self->cached, back, BLOCK, 0));
	/* From here on attributes are asked for each time */
	self->env.srv->valid = 0;
	ASSERT_EQ(0, statx(self->cached, "", AT_EMPTY_PATH |
			   AT_STATX_FORCE_SYNC, STATX_BASIC_STATS, &stx));
	held_request = variant->flags ? FUSE_GETATTR : FUSE_WRITE;
	ASSERT_EQ(0, pthread_create(&call.id, NULL, call_pwrite, &call));
	sem_wait(&arrived);
	/* The open waits for a cached write that holds the inode's lock */
	if (variant->flags)
		OPEN_THROUGH();
	else
		self->through = open_through(self->env.srv, variant->way,
					     O_RDWR);
	ASSERT_LE(0, self->through);
	map = mmap(NULL, BLOCK, PROT_READ | PROT_WRITE, MAP_SHARED,
		   self->through, 0);
	ASSERT_NE(MAP_FAILED, map);
	map[1000]++;
	sem_post(&go);
	ASSERT_EQ(0, pthread_join(call.id, NULL));
	ASSERT_EQ(100, call.result);
	map[1001]++;
	ASSERT_EQ(0, fsync(self->cached));
	EXPECT_EQ((char)(data[1000] + 1), map[1000]);
	EXPECT_EQ((char)(data[1001] + 1), map[1001]);
	EXPECT_EQ(0, memcmp(map + 50, data + 9, 100));
	ASSERT_EQ(0, munmap(map, BLOCK));
}

/* What fstat() says is what the lower file has. */
static void check_attributes(struct __test_metadata *_metadata, int fd)
{
	struct stat st, low;

	ASSERT_EQ(0, fstat(fd, &st));
	ASSERT_EQ(0, stat(LOWER, &low));
	ASSERT_EQ(low.st_mtim.tv_sec, st.st_mtim.tv_sec);
	ASSERT_EQ(low.st_mtim.tv_nsec, st.st_mtim.tv_nsec);
	ASSERT_EQ(low.st_mode, st.st_mode);
	ASSERT_EQ(low.st_nlink, st.st_nlink);
	ASSERT_EQ(low.st_size, st.st_size);
}

/* Of this thread alone: a child that ends would flush, and wait for the inode */
static void *call_pwrite_as_user(void *arg)
{
	syscall(SYS_setresuid, USER, USER, USER);
	return call_pwrite(arg);
}

/* Times of files have the grain of the clock tick: wait for another one. */
static void wait_a_tick(void)
{
	struct timespec first, now;

	clock_gettime(CLOCK_REALTIME_COARSE, &first);
	do {
		clock_gettime(CLOCK_REALTIME_COARSE, &now);
	} while (now.tv_sec == first.tv_sec && now.tv_nsec == first.tv_nsec);
}

/* The server's answer is from before a write, and comes after it. */
TEST_F(cache, write_before_the_answer_to_chmod)
{
	struct call call = { .fd = self->cached, .flags = 0640 };

	OPEN_THROUGH();
	held_answer = FUSE_SETATTR;
	ASSERT_EQ(0, pthread_create(&call.id, NULL, call_fchmod, &call));
	sem_wait(&arrived);
	wait_a_tick();
	EXPECT_EQ(10, pwrite(self->through, data + 5, 10, 0));
	sem_post(&go);
	ASSERT_EQ(0, pthread_join(call.id, NULL));
	ASSERT_EQ(0, call.result);
	check_attributes(_metadata, self->cached);
}

TEST_F(cache, extension_before_the_answer_to_chmod)
{
	struct call call = { .fd = self->cached, .flags = 0640 };

	OPEN_THROUGH();
	held_answer = FUSE_SETATTR;
	ASSERT_EQ(0, pthread_create(&call.id, NULL, call_fchmod, &call));
	sem_wait(&arrived);
	EXPECT_EQ(10, pwrite(self->through, data + 5, 10, 2 * SIZE));
	sem_post(&go);
	ASSERT_EQ(0, pthread_join(call.id, NULL));
	ASSERT_EQ(0, call.result);
	ASSERT_EQ(10, pread(self->cached, back, BLOCK, 2 * SIZE));
	check_attributes(_metadata, self->cached);
}

TEST_F(cache, write_before_the_answer_to_link)
{
	struct call call = {};

	OPEN_THROUGH();
	held_answer = FUSE_LINK;
	ASSERT_EQ(0, pthread_create(&call.id, NULL, call_link, &call));
	sem_wait(&arrived);
	wait_a_tick();
	EXPECT_EQ(10, pwrite(self->through, data + 5, 10, 2 * SIZE));
	sem_post(&go);
	ASSERT_EQ(0, pthread_join(call.id, NULL));
	ASSERT_EQ(0, call.result);
	check_attributes(_metadata, self->cached);
	ASSERT_EQ(0, unlink(LINK_MNT));
}

TEST_F(cache, setuid_lost_before_the_answer)
{
	struct call call = { .fd = self->cached, .flags = 04755 };
	struct call user = { .buf = data + 5, .len = 10 };

	OPEN_THROUGH();
	held_answer = FUSE_SETATTR;
	ASSERT_EQ(0, pthread_create(&call.id, NULL, call_fchmod, &call));
	sem_wait(&arrived);
	user.fd = self->through;
	ASSERT_EQ(0, pthread_create(&user.id, NULL, call_pwrite_as_user,
				    &user));
	ASSERT_EQ(0, pthread_join(user.id, NULL));
	EXPECT_EQ(10, user.result);
	sem_post(&go);
	ASSERT_EQ(0, pthread_join(call.id, NULL));
	ASSERT_EQ(0, call.result);
	check_attributes(_metadata, self->cached);
}

/* An extension is not lost to a truncation that the server did before it. */
TEST_F(cache, extension_before_the_answer_to_truncate)
{
	struct call call = { .fd = self->cached, .len = BLOCK };

	OPEN_THROUGH();
	held_answer = FUSE_SETATTR;
	ASSERT_EQ(0, pthread_create(&call.id, NULL, call_ftruncate, &call));
	sem_wait(&arrived);
	EXPECT_EQ(10, pwrite(self->through, data + 5, 10, 3 * BLOCK));
	sem_post(&go);
	ASSERT_EQ(0, pthread_join(call.id, NULL));
	ASSERT_EQ(0, call.result);
	check_attributes(_metadata, self->cached);
	ASSERT_EQ(10, pread(self->cached, back, BLOCK, 3 * BLOCK));
	ASSERT_EQ(0, memcmp(data + 5, back, 10));
}

/* The file is truncated, and not yet attached */
static int hold_open(struct srv *srv, struct srv_req *req,
		     struct fuse_entry_out *entry, struct fuse_open_out *out)
{
	sem_post(&arrived);
	sem_wait(&go);
	return SRV_GO_ON;
}

/* The same where the server truncates while it opens the file */
static void write_during_open(struct __test_metadata *_metadata,
			      struct srv *srv, enum way way, int through,
			      int cached)
{
	struct srv_opener opener;
	int fd;

	srv->on_open = hold_open;
	srv->mode = mode_for(way);
	ASSERT_EQ(0, srv_opener_start(&opener, FILE_MNT, O_RDWR | O_TRUNC));
	sem_wait(&arrived);
	EXPECT_EQ(BLOCK, pwrite(through, data + 9, BLOCK, 0));
	sem_post(&go);
	fd = srv_opener_wait(&opener);
	ASSERT_LE(0, fd);
	srv->on_open = NULL;
	srv->mode = SRV_PLAIN;
	check_attributes(_metadata, cached);
	ASSERT_EQ(BLOCK, lseek(fd, 0, SEEK_END));
	ASSERT_EQ(BLOCK, pread(cached, back, BLOCK, 0));
	ASSERT_EQ(0, memcmp(data + 9, back, BLOCK));
	close(fd);
}

TEST_F(cache, write_during_truncating_open)
{
	OPEN_THROUGH();
	write_during_open(_metadata, self->env.srv, PLAIN, self->through,
			  self->cached);
	write_during_open(_metadata, self->env.srv, variant->way, self->through,
			  self->cached);
}

/* An answer to READ is from before a write that did not wait for it. */
TEST_F(cache, read_answered_after_a_write)
{
	static char buf[BLOCK];
	struct call reader = CALL(self->cached, buf, BLOCK, 0);
	struct call writer = { .buf = data + 9, .len = BLOCK };

	OPEN_THROUGH();
	writer.fd = self->through;
	held_answer = FUSE_READ;
	ASSERT_EQ(0, pthread_create(&reader.id, NULL, call_pread, &reader));
	sem_wait(&arrived);
	ASSERT_EQ(0, pthread_create(&writer.id, NULL, call_pwrite, &writer));
	while (!lower_is(SIZE, 0, data + 9, BLOCK))
		sched_yield();
	sem_post(&go);
	ASSERT_EQ(0, pthread_join(reader.id, NULL));
	ASSERT_EQ(0, pthread_join(writer.id, NULL));
	ASSERT_EQ(BLOCK, writer.result);
	ASSERT_EQ(BLOCK, pread(self->cached, back, BLOCK, 0));
	ASSERT_EQ(0, memcmp(data + 9, back, BLOCK));
}

/* The same for a write that completes asynchronously, whichever comes first */
TEST_F(cache, read_beside_an_asynchronous_write)
{
	static alignas(BLOCK) char buf[BLOCK];
	struct call reader = CALL(self->cached, buf, BLOCK, 0);
	aio_context_t ctx = 0;
	struct io_event event;
	int i, fd;

	if (!strcmp(variant->fs, "tmpfs"))
		return;
	fd = open_through(self->env.srv, variant->way, O_RDWR | O_DIRECT);
	ASSERT_LE(0, fd);
	ASSERT_EQ(0, syscall(__NR_io_setup, 1, &ctx));
	for (i = 0; again(i, 200, 5); i++) {
		struct iocb iocb = {
			.aio_lio_opcode = IOCB_CMD_PWRITE,
			.aio_fildes = fd,
			.aio_buf = (uintptr_t)(data + (i % 50) * BLOCK),
			.aio_nbytes = BLOCK,
		}, *list = &iocb;

		posix_fadvise(self->cached, 0, 0, POSIX_FADV_DONTNEED);
		ASSERT_EQ(0, pthread_create(&reader.id, NULL, call_pread,
					    &reader));
		ASSERT_EQ(1, syscall(__NR_io_submit, ctx, 1, &list));
		ASSERT_EQ(1, syscall(__NR_io_getevents, ctx, 1, 1, &event,
				     NULL));
		ASSERT_EQ(BLOCK, event.res);
		ASSERT_EQ(BLOCK, pread(self->cached, back, BLOCK, 0));
		ASSERT_EQ(0, memcmp(data + (i % 50) * BLOCK, back, BLOCK));
		ASSERT_EQ(0, pthread_join(reader.id, NULL));
	}
	ASSERT_EQ(0, syscall(__NR_io_destroy, ctx));
	close(fd);
}

/*
 * The page of a cached write is dropped by a passthrough write and read again,
 * before the WRITE arrives.
 */
TEST_F(cache, page_read_again_during_a_cached_write)
{
	struct call call = CALL(self->cached, data + 9, 100, 50);

	OPEN_THROUGH();
	ASSERT_EQ(BLOCK, pread(self->cached, back, BLOCK, 0));
	held_request = FUSE_WRITE;
	ASSERT_EQ(0, pthread_create(&call.id, NULL, call_pwrite, &call));
	sem_wait(&arrived);
	EXPECT_EQ(BLOCK, pwrite(self->through, data + 7, BLOCK, 0));
	EXPECT_EQ(BLOCK, pread(self->cached, back, BLOCK, 0));
	sem_post(&go);
	ASSERT_EQ(0, pthread_join(call.id, NULL));
	ASSERT_EQ(100, call.result);
	ASSERT_EQ(BLOCK, pread(self->cached, back, BLOCK, 0));
	ASSERT_EQ(0, memcmp(data + 7, back, 50));
	ASSERT_EQ(0, memcmp(data + 9, back + 50, 100));
	ASSERT_EQ(0, memcmp(data + 7 + 150, back + 150, BLOCK - 150));
	ASSERT_TRUE(lower_is(SIZE, 50, data + 9, 100));
}

/* A dirty last page, written back under a new size, would overwrite an append. */
TEST_F(cache, append_behind_a_stored_page)
{
	char *map;
	int fd;

	OPEN_THROUGH();
	fd = open_through(self->env.srv, variant->way, O_RDWR | O_APPEND);
	ASSERT_LE(0, fd);
	ASSERT_EQ(0, ftruncate(self->cached, SIZE - 1000));
	map = mmap(NULL, BLOCK, PROT_READ | PROT_WRITE, MAP_SHARED,
		   self->cached, SIZE - BLOCK);
	ASSERT_NE(MAP_FAILED, map);
	map[5]++;
	ASSERT_EQ(100, write(fd, data + 3, 100));
	/* By a cached open's handle: the server's descriptor of fd appends */
	ASSERT_EQ(0, msync(map, BLOCK, MS_SYNC));
	ASSERT_EQ(0, fsync(self->cached));
	ASSERT_TRUE(lower_is(SIZE - 900, SIZE - 1000, data + 3, 100));
	ASSERT_EQ((char)(data[SIZE - BLOCK + 5] + 1), map[5]);
	ASSERT_EQ(0, munmap(map, BLOCK));
	close(fd);
}

/* A request that may not wait does not wait for the server. */
TEST_F(cache, nowait_write_beside_a_truncation)
{
	struct call call = { .fd = self->cached, .len = SIZE / 2 };
	struct iovec iov = { data + 3, 100 };
	ssize_t n;

	OPEN_THROUGH();
	held_request = FUSE_SETATTR;
	ASSERT_EQ(0, pthread_create(&call.id, NULL, call_ftruncate, &call));
	sem_wait(&arrived);
	n = srv_result(pwritev2(self->through, &iov, 1, 0, RWF_NOWAIT));
	EXPECT_TRUE(n == 100 || n == -EAGAIN || n == -EOPNOTSUPP);
	sem_post(&go);
	ASSERT_EQ(0, pthread_join(call.id, NULL));
	ASSERT_EQ(0, call.result);
	ASSERT_TRUE(lower_is(SIZE / 2, 0, data + (n == 100 ? 3 : 0), 100));
}

TEST_F(cache, nowait_read_into_fresh_memory)
{
	char *buf = mmap(NULL, BLOCK, PROT_READ | PROT_WRITE,
			 MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	struct iovec iov = { buf, BLOCK };
	ssize_t n;

	ASSERT_NE(MAP_FAILED, buf);
	OPEN_THROUGH();
	ASSERT_EQ(BLOCK, pread(self->through, back, BLOCK, 0));
	n = srv_result(preadv2(self->through, &iov, 1, 0, RWF_NOWAIT));
	ASSERT_TRUE(n == BLOCK || n == -EAGAIN || n == -EOPNOTSUPP);
	ASSERT_EQ(0, munmap(buf, BLOCK));
}

/* O_DIRECT from and to a mapping of the same file, of odd length */
TEST_F(cache, direct_from_its_own_mapping)
{
	const ssize_t len = 33280;
	char *map;
	int fd;

	if (!strcmp(variant->fs, "tmpfs"))
		return;
	fd = open_through(self->env.srv, variant->way, O_RDWR | O_DIRECT);
	ASSERT_LE(0, fd);
	map = mmap(NULL, SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	ASSERT_NE(MAP_FAILED, map);
	memcpy(map, data + 7, SIZE);
	ASSERT_EQ(len, pwrite(fd, map, len, 0));
	ASSERT_EQ(len, pread(fd, map, len, 0));
	ASSERT_TRUE(lower_is(SIZE, 0, data + 7, SIZE));
	ASSERT_EQ(0, munmap(map, SIZE));
	close(fd);
	ASSERT_EQ(0, self->env.srv->seen[FUSE_WRITE]);
}

TEST_HARNESS_MAIN
