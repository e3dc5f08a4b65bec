// SPDX-License-Identifier: GPL-2.0
/*
 * Nothing waits for itself: buffers that the server fills, who needs the locks
 * of the lower file for that, and a lower file system that is frozen.
 */
#define _GNU_SOURCE
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <linux/fs.h>

#include "fuse_test_blocked.h"

/*
 * Buffers that are a cached mapping of the file itself: a fault on one asks
 * the server, which needs the locks of the lower file to answer.
 */

FIXTURE(recursion) {
	struct env env;
	int cached;
	int through;
	char *map;
};

FIXTURE_VARIANT(recursion) {
	const char *fs;
	int direct;
};

FIXTURE_VARIANT_ADD(recursion, xfs) { "xfs", 0 };
FIXTURE_VARIANT_ADD(recursion, xfs_direct) { "xfs", O_DIRECT };
FIXTURE_VARIANT_ADD(recursion, ext4) { "ext4", 0 };
FIXTURE_VARIANT_ADD(recursion, ext4_direct) { "ext4", O_DIRECT };
FIXTURE_VARIANT_ADD(recursion, tmpfs) { "tmpfs", 0 };

FIXTURE_SETUP(recursion)
{
	env_setup(_metadata, &self->env, variant->fs, PLAIN, 4 * BLOCK);
	self->env.srv->valid = 0;
	env_start(_metadata, &self->env);
	self->cached = open(FILE_MNT, O_RDWR);
	ASSERT_LE(0, self->cached);
	self->env.srv->mode = SRV_PASSTHROUGH;
	self->through = open(FILE_MNT, O_RDWR | variant->direct);
	ASSERT_LE(0, self->through);
	self->map = mmap(NULL, 4 * BLOCK, PROT_READ | PROT_WRITE, MAP_SHARED,
			 self->cached, 0);
	ASSERT_NE(MAP_FAILED, self->map);
}

FIXTURE_TEARDOWN(recursion)
{
	munmap(self->map, 4 * BLOCK);
	close(self->cached);
	close(self->through);
	env_teardown(_metadata, &self->env);
}

TEST_F(recursion, write)
{
	/* None of its pages is there. */
	ASSERT_EQ(4 * BLOCK, pwrite(self->through, self->map, 4 * BLOCK,
				    4 * BLOCK));
	ASSERT_TRUE(lower_is(8 * BLOCK, 4 * BLOCK, data, 4 * BLOCK));
	ASSERT_LT(0, self->env.srv->seen[FUSE_READ]);
	ASSERT_EQ(0, self->env.srv->seen[FUSE_WRITE]);
}

TEST_F(recursion, write_over_the_buffer)
{
	ASSERT_EQ(2 * BLOCK, pwrite(self->through, self->map + BLOCK,
				    2 * BLOCK, 2 * BLOCK));
	ASSERT_TRUE(lower_is(4 * BLOCK, 0, data, 2 * BLOCK));
	ASSERT_EQ(4 * BLOCK, pread(self->through, back, 4 * BLOCK, 0));
	ASSERT_EQ(0, memcmp(data + BLOCK, back + 2 * BLOCK, BLOCK));
}

TEST_F(recursion, read)
{
	struct stat st;

	ASSERT_EQ(BLOCK, pread(self->through, self->map, BLOCK, 2 * BLOCK));
	ASSERT_EQ(0, memcmp(self->map, data + 2 * BLOCK, BLOCK));
	ASSERT_EQ(0, msync(self->map, BLOCK, MS_SYNC));
	ASSERT_TRUE(lower_is(4 * BLOCK, 0, data + 2 * BLOCK, BLOCK));
	ASSERT_EQ(0, fstat(self->through, &st));
	ASSERT_EQ(4 * BLOCK, st.st_size);
}

/*
 * The buffer is a mapping through passthrough, and what a cached open has left
 * in the page cache goes to the server before the first fault on it.
 */
TEST(aio_from_its_own_mapping)
{
	struct iocb iocb = { .aio_lio_opcode = IOCB_CMD_PWRITE }, *list = &iocb;
	aio_context_t ctx = 0;
	struct io_event event;
	int cached, through;
	struct env env = { 0 };
	struct srv *srv;
	char *map, *dirty;

	env_setup(_metadata, &env, "ext4", PLAIN, 4 * BLOCK);
	srv = env.srv;
	srv->valid = 0;
	srv->flags = FUSE_WRITEBACK_CACHE;
	env_start(_metadata, &env);
	cached = open(FILE_MNT, O_RDWR);
	ASSERT_LE(0, cached);
	srv->mode = SRV_PASSTHROUGH;
	through = open(FILE_MNT, O_RDWR);
	ASSERT_LE(0, through);
	/* The server may be asked to write by this open, and without alignment */
	ASSERT_EQ(0, fcntl(through, F_SETFL, O_DIRECT));
	dirty = mmap(NULL, BLOCK, PROT_READ | PROT_WRITE, MAP_SHARED, cached,
		     3 * BLOCK);
	ASSERT_NE(MAP_FAILED, dirty);
	memcpy(dirty, data + 9 * BLOCK, BLOCK);
	map = mmap(NULL, 2 * BLOCK, PROT_READ, MAP_SHARED, through, 0);
	ASSERT_NE(MAP_FAILED, map);
	ASSERT_EQ(0, srv->seen[FUSE_WRITE]);

	ASSERT_EQ(0, syscall(__NR_io_setup, 1, &ctx));
	iocb.aio_fildes = through;
	iocb.aio_buf = (uintptr_t)(map + BLOCK);
	iocb.aio_nbytes = BLOCK;
	ASSERT_EQ(1, syscall(__NR_io_submit, ctx, 1, &list));
	ASSERT_EQ(1, syscall(__NR_io_getevents, ctx, 1, 1, &event, NULL));
	ASSERT_EQ(BLOCK, event.res);
	ASSERT_EQ(0, syscall(__NR_io_destroy, ctx));
	/* And not because the guard had to end it */
	ASSERT_EQ(0, fsync(through));
	ASSERT_LT(0, srv->seen[FUSE_FSYNC]);
	ASSERT_TRUE(lower_is(4 * BLOCK, 0, data + BLOCK, BLOCK));
	ASSERT_TRUE(lower_is(4 * BLOCK, 3 * BLOCK, data + 9 * BLOCK, BLOCK));
	munmap(dirty, BLOCK);
	munmap(map, 2 * BLOCK);
	close(cached);
	close(through);
	env_teardown(_metadata, &env);
}

/* The lower file system is frozen. */

FIXTURE(freeze) {
	struct env env;
	int lower;
	int fd;
	int dir;
};

FIXTURE_VARIANT(freeze) {
	const char *fs;
};

FIXTURE_VARIANT_ADD(freeze, ext4) { "ext4" };
FIXTURE_VARIANT_ADD(freeze, xfs) { "xfs" };
FIXTURE_VARIANT_ADD(freeze, ext4_disk) { "ext4-disk" };
FIXTURE_VARIANT_ADD(freeze, xfs_disk) { "xfs-disk" };

FIXTURE_SETUP(freeze)
{
	env_setup(_metadata, &self->env, variant->fs, BY_REQUEST, 4 * BLOCK);
	self->env.srv->valid = 0;
	env_start(_metadata, &self->env);
	self->fd = open(FILE_MNT, O_RDWR | O_DIRECT);
	ASSERT_LE(0, self->fd);
	self->lower = open(LOWER, O_RDWR);
	ASSERT_LE(0, self->lower);
	self->dir = open(SRV_LOWER, O_RDONLY | O_DIRECTORY);
	ASSERT_LE(0, self->dir);
}

FIXTURE_TEARDOWN(freeze)
{
	ioctl(self->dir, FITHAW);
	close(self->dir);
	close(self->lower);
	close(self->fd);
	env_teardown(_metadata, &self->env);
}

struct held_read {
	atomic_bool asked;
	atomic_bool go;
};

static int hold_read(struct srv *srv, struct srv_req *req)
{
	struct held_read *held = srv->data;

	if (req->in.opcode != FUSE_READ)
		return SRV_GO_ON;
	held->asked = true;
	while (!held->go)
		sched_yield();
	return SRV_GO_ON;
}

struct map_writer {
	pthread_t id;
	int fd;
	char *map;
	ssize_t result;
};

static void *write_map(void *arg)
{
	struct map_writer *w = arg;

	w->result = srv_result(pwrite(w->fd, w->map, 4 * BLOCK, 4 * BLOCK));
	return NULL;
}

/* Who waits for the server to fill the buffer does not hold up a freeze. */
TEST_F(freeze, while_the_buffer_is_filled)
{
	struct held_read held = { 0 };
	/* Nobody faults in for this one before its first attempt */
	struct map_writer w = { .fd = open(FILE_MNT, O_RDWR) };
	int cached;

	ASSERT_LE(0, w.fd);
	self->env.srv->mode = SRV_PLAIN;
	cached = open(FILE_MNT, O_RDONLY);
	ASSERT_LE(0, cached);
	w.map = mmap(NULL, 4 * BLOCK, PROT_READ, MAP_SHARED, cached, 0);
	ASSERT_NE(MAP_FAILED, w.map);
	self->env.srv->data = &held;
	self->env.srv->on_request = hold_read;
	ASSERT_EQ(0, pthread_create(&w.id, NULL, write_map, &w));
	while (!held.asked)
		sched_yield();
	EXPECT_EQ(0, ioctl(self->dir, FIFREEZE));
	held.go = true;
	EXPECT_EQ(0, ioctl(self->dir, FITHAW));
	ASSERT_EQ(0, pthread_join(w.id, NULL));
	ASSERT_EQ(4 * BLOCK, w.result);
	ASSERT_TRUE(lower_is(8 * BLOCK, 4 * BLOCK, data, 4 * BLOCK));
	ASSERT_EQ(0, self->env.srv->seen[FUSE_WRITE]);
	munmap(w.map, 4 * BLOCK);
	close(w.fd);
	close(cached);
}

/* A write waits for the thaw, a read does not. */
TEST_F(freeze, holds_aio)
{
	struct aio_writer writer = { .fd = self->fd };

	ASSERT_EQ(0, syscall(__NR_io_setup, AIO_DEPTH, &writer.ctx));
	ASSERT_EQ(0, ioctl(self->dir, FIFREEZE));
	ASSERT_EQ(0, pthread_create(&writer.id, NULL, submit_aio, &writer));
	ASSERT_TRUE(wait_blocked(&writer.tid));
	ASSERT_TRUE(reads(self->fd, data));
	ASSERT_TRUE(lower_is(4 * BLOCK, 0, data, 4 * BLOCK));
	ASSERT_EQ(0, ioctl(self->dir, FITHAW));
	ASSERT_EQ(0, pthread_join(writer.id, NULL));
	ASSERT_EQ(AIO_DEPTH, writer.submitted);
	ASSERT_TRUE(aio_landed(&writer));
	ASSERT_TRUE(lower_is(4 * BLOCK, 0, data + 4 * BLOCK, 4 * BLOCK));
	ASSERT_EQ(0, syscall(__NR_io_destroy, writer.ctx));
	ASSERT_EQ(0, self->env.srv->seen[FUSE_WRITE]);
}

/* The protection of each write goes with its completion. */
TEST_F(freeze, waits_for_aio)
{
	struct aio_writer writer = { .fd = self->fd };
	int i;

	ASSERT_EQ(0, syscall(__NR_io_setup, AIO_DEPTH, &writer.ctx));
	for (i = 0; i < 20; i++) {
		submit_aio(&writer);
		ASSERT_EQ(AIO_DEPTH, writer.submitted);
		ASSERT_EQ(0, ioctl(self->dir, FIFREEZE));
		ASSERT_TRUE(aio_landed(&writer));
		ASSERT_TRUE(lower_is(4 * BLOCK, 0, data + 4 * BLOCK,
				     4 * BLOCK));
		ASSERT_EQ(0, ioctl(self->dir, FITHAW));
	}
	ASSERT_EQ(0, syscall(__NR_io_destroy, writer.ctx));
}

/* One pipe is spliced to the FUSE file and to the lower file. */
struct splicer {
	pthread_t id;
	int *pipe;
	int fd;
	atomic_bool *stop;
	long spliced;
};

static void *splice_on(void *arg)
{
	struct splicer *splicer = arg;
	loff_t offset;
	ssize_t n;

	while (!*splicer->stop) {
		if (write(splicer->pipe[1], data, BLOCK) != BLOCK)
			break;
		offset = 0;
		n = splice(splicer->pipe[0], NULL, splicer->fd, &offset, BLOCK,
			   SPLICE_F_NONBLOCK);
		if (n > 0)
			splicer->spliced += n;
	}
	return NULL;
}

/*
 * Whoever took the lock of the pipe before the freeze protection would wait
 * for the freeze, the freeze for the other, and the other for the pipe.
 */
TEST_F(freeze, among_splices)
{
	atomic_bool stop = false;
	struct splicer splicer[2];
	int i, end[2], fd;

	fd = open(FILE_MNT, O_RDWR);
	ASSERT_LE(0, fd);
	ASSERT_EQ(0, pipe2(end, O_NONBLOCK));
	for (i = 0; i < 2; i++) {
		splicer[i] = (struct splicer){
			.pipe = end,
			.fd = i ? self->lower : fd,
			.stop = &stop,
		};
		ASSERT_EQ(0, pthread_create(&splicer[i].id, NULL, splice_on,
					    &splicer[i]));
	}
	for (i = 0; again(i, 50, 4); i++) {
		ASSERT_EQ(0, ioctl(self->dir, FIFREEZE));
		ASSERT_EQ(0, ioctl(self->dir, FITHAW));
	}
	stop = true;
	for (i = 0; i < 2; i++) {
		ASSERT_EQ(0, pthread_join(splicer[i].id, NULL));
		ASSERT_LT(0, splicer[i].spliced);
	}
	close(fd);
	close(end[0]);
	close(end[1]);
}

TEST_HARNESS_MAIN
