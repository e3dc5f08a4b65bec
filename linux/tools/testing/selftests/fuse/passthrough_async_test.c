// SPDX-License-Identifier: GPL-2.0
/*
 * Asynchronous reading and writing through a lower file: Linux AIO and
 * io_uring by their system calls, buffered and direct, many in flight.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <semaphore.h>
#include <sys/fsuid.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <linux/fs.h>
#include <linux/loop.h>

#include "fuse_test_flight.h"

#define BELOW	SRV_BASE "/below"

FIXTURE(async) {
	struct env env;
	struct flight flight;
};

FIXTURE_VARIANT(async) {
	const char *fs;
	enum way way;
	enum engine engine;
	int direct;
};

#define VARIANT(fs, engine, direct)					\
	{ fs, BY_REQUEST, engine, direct }

FIXTURE_VARIANT_ADD(async, ext4_aio) VARIANT("ext4", AIO, 0);
FIXTURE_VARIANT_ADD(async, ext4_aio_direct) VARIANT("ext4", AIO, O_DIRECT);
FIXTURE_VARIANT_ADD(async, ext4_uring) VARIANT("ext4", URING, 0);
FIXTURE_VARIANT_ADD(async, ext4_uring_direct) VARIANT("ext4", URING, O_DIRECT);
FIXTURE_VARIANT_ADD(async, ext4_worker) VARIANT("ext4", URING_WORKER, 0);
FIXTURE_VARIANT_ADD(async, ext4_fixed) VARIANT("ext4", URING_FIXED, O_DIRECT);
FIXTURE_VARIANT_ADD(async, xfs_aio_direct) VARIANT("xfs", AIO, O_DIRECT);
FIXTURE_VARIANT_ADD(async, xfs_uring) VARIANT("xfs", URING, 0);
FIXTURE_VARIANT_ADD(async, xfs_worker) VARIANT("xfs", URING_WORKER, O_DIRECT);
FIXTURE_VARIANT_ADD(async, xfs_fixed) VARIANT("xfs", URING_FIXED, 0);
FIXTURE_VARIANT_ADD(async, tmpfs_aio) VARIANT("tmpfs", AIO, 0);
FIXTURE_VARIANT_ADD(async, tmpfs_uring) VARIANT("tmpfs", URING, 0);
FIXTURE_VARIANT_ADD(async, disk_aio) VARIANT("ext4-disk", AIO, O_DIRECT);
FIXTURE_VARIANT_ADD(async, disk_uring) VARIANT("xfs-disk", URING, O_DIRECT);
FIXTURE_VARIANT_ADD(async, disk_cold) VARIANT("xfs-disk", URING, 0);
FIXTURE_VARIANT_ADD(async, disk_fixed) VARIANT("ext4-disk", URING_FIXED, O_DIRECT);
FIXTURE_VARIANT_ADD(async, disk_id) { "xfs-disk", BY_ID, AIO, O_DIRECT };
FIXTURE_VARIANT_ADD(async, disk_bare) { "xfs-disk", BARE, AIO, O_DIRECT };
FIXTURE_VARIANT_ADD(async, id) { "ext4", BY_ID, URING, O_DIRECT };
FIXTURE_VARIANT_ADD(async, plain) { "ext4", PLAIN, AIO, O_DIRECT };
FIXTURE_VARIANT_ADD(async, bare) { "ext4", BARE, URING, O_DIRECT };

FIXTURE_SETUP(async)
{
	env_setup(_metadata, &self->env, variant->fs, variant->way, 0);
	self->flight.engine = variant->engine;
	env_start(_metadata, &self->env);
}

FIXTURE_TEARDOWN(async)
{
	env_teardown(_metadata, &self->env);
}

TEST_F(async, read_and_write)
{
	const size_t len = 2 * BLOCK, all = DEPTH * len;
	int fd = open(self->env.path, O_RDWR | variant->direct);

	ASSERT_LE(0, fd);
	/* Twice: the first extends the file, the second overwrites. */
	fly(_metadata, &self->flight,
	    (struct op){ fd, true, data, len, 0, 0 }, DEPTH);
	land(_metadata, &self->flight, DEPTH);
	ASSERT_EQ((off_t)all, size_of(fd));
	ASSERT_TRUE(lower_is(all, 0, data, all));
	fly(_metadata, &self->flight,
	    (struct op){ fd, true, data + all, len, 0, 0 }, DEPTH);
	land(_metadata, &self->flight, DEPTH);
	ASSERT_TRUE(lower_is(all, 0, data + all, all));
	memset(back, 0, sizeof(back));
	fly(_metadata, &self->flight,
	    (struct op){ fd, false, back, len, 0, 0 }, DEPTH);
	land(_metadata, &self->flight, DEPTH);
	ASSERT_EQ(0, memcmp(data + all, back, all));
	close(fd);
	check_seen(_metadata, self->env.srv, variant->way, FUSE_WRITE);
}

/* Size and times are right as soon as a write is said to be done. */
TEST_F(async, attributes)
{
	struct timespec old[2] = { { .tv_sec = 1000 }, { .tv_sec = 2000 } };
	int i, fd = open(self->env.path, O_RDWR | variant->direct);
	struct stat st, low;

	ASSERT_LE(0, fd);
	for (i = 0; i < 8; i++) {
		ASSERT_EQ(0, futimens(fd, old));
		ASSERT_EQ(0, fstat(fd, &st));
		fly(_metadata, &self->flight,
		    (struct op){ fd, true, data, BLOCK, i * BLOCK, 0 }, 1);
		land(_metadata, &self->flight, 1);
		ASSERT_EQ(0, fstat(fd, &st));
		ASSERT_EQ(0, stat(LOWER, &low));
		ASSERT_EQ((i + 1) * BLOCK, st.st_size);
		ASSERT_EQ(st.st_size, low.st_size);
		ASSERT_LT(2000, st.st_mtim.tv_sec);
		ASSERT_EQ(low.st_mtim.tv_sec, st.st_mtim.tv_sec);
		ASSERT_EQ(low.st_mtim.tv_nsec, st.st_mtim.tv_nsec);
		ASSERT_EQ(0, futimens(fd, old));
		ASSERT_EQ(0, fstat(fd, &st));
		fly(_metadata, &self->flight,
		    (struct op){ fd, false, back, BLOCK, i * BLOCK, 0 }, 1);
		land(_metadata, &self->flight, 1);
		ASSERT_EQ(0, fstat(fd, &st));
		ASSERT_EQ(0, stat(LOWER, &low));
		ASSERT_LT(1000, st.st_atim.tv_sec);
		ASSERT_EQ(low.st_atim.tv_sec, st.st_atim.tv_sec);
		ASSERT_EQ(low.st_atim.tv_nsec, st.st_atim.tv_nsec);
	}
	close(fd);
	check_seen(_metadata, self->env.srv, variant->way, FUSE_WRITE);
}

/* In any order, but all of them, and none on another. */
TEST_F(async, append)
{
	int i, fd = open(self->env.path, O_WRONLY | O_APPEND | variant->direct);
	unsigned int seen = 0;

	ASSERT_LE(0, fd);
	/* xfs itself lets one overwrite the other */
	if (variant->way == BARE && !strcmp(variant->fs, "xfs-disk")) {
		close(fd);
		return;
	}
	for (i = 0; i < DEPTH; i++)
		memset(data + i * BLOCK, i, BLOCK);
	fly(_metadata, &self->flight,
	    (struct op){ fd, true, data, BLOCK, 0, 0 }, DEPTH);
	land(_metadata, &self->flight, DEPTH);
	ASSERT_EQ(DEPTH * BLOCK, size_of(fd));
	close(fd);
	fd = open(LOWER, O_RDONLY);
	ASSERT_LE(0, fd);
	while (read(fd, back, BLOCK) == BLOCK) {
		ASSERT_EQ(0, memcmp(back, back + 1, BLOCK - 1));
		seen |= 1U << back[0];
	}
	ASSERT_EQ((1U << DEPTH) - 1, seen);
	close(fd);
	check_seen(_metadata, self->env.srv, variant->way, FUSE_WRITE);
}

static sem_t arrived, go;
static atomic_int strangers;

static int has_no_fsync(struct srv *srv, struct srv_req *req)
{
	return req->in.opcode == FUSE_FSYNC ? -ENOSYS : SRV_GO_ON;
}

static int hold_data(struct srv *srv, struct srv_req *req)
{
	strangers += req->in.uid != 0;
	if (req->in.opcode == FUSE_READ || req->in.opcode == FUSE_WRITE) {
		sem_post(&arrived);
		sem_wait(&go);
	}
	return SRV_GO_ON;
}

/*
 * The lower file is one of a server that takes its time, and sees for whom a
 * request is: for the server above, whoever reads or writes.
 */
TEST(submission_does_not_wait)
{
	const int direct = O_RDWR | O_DIRECT;
	struct flight flight = { .engine = AIO };
	struct srv *slow, *srv;
	char *nowhere;
	int fd[4], i;

	make_data();
	ASSERT_EQ(0, sem_init(&arrived, 0, 0));
	ASSERT_EQ(0, sem_init(&go, 0, 0));
	ASSERT_EQ(0, srv_namespace());
	ASSERT_EQ(0, srv_mount_lower("tmpfs"));
	ASSERT_TRUE(make_lower(LOWER, 0666, 4 * BLOCK));
	ASSERT_EQ(0, mkdir(BELOW, 0700));
	slow = srv_new();
	ASSERT_NE(NULL, slow);
	slow->lower = open(SRV_LOWER, O_PATH | O_DIRECTORY);
	slow->on_request = hold_data;
	ASSERT_EQ(0, srv_start(slow, BELOW));
	close(slow->lower);
	srv = srv_new();
	ASSERT_NE(NULL, srv);
	srv->lower = open(BELOW, O_PATH | O_DIRECTORY);
	srv->mode = SRV_PASSTHROUGH;
	srv->max_stack_depth = 2;
	srv->on_request = has_no_fsync;
	ASSERT_EQ(0, srv_start(srv, SRV_MNT));
	close(srv->lower);
	fd[0] = open(SRV_MNT "/file", direct);
	fd[1] = open(SRV_MNT "/file", direct | O_APPEND);
	fd[2] = open(SRV_MNT "/file", O_RDWR);
	ASSERT_LE(0, fd[0]);
	ASSERT_LE(0, fd[1]);
	ASSERT_LE(0, fd[2]);
	setfsuid(1000);
	/* Appends alone wait, each for the one before it */
	for (i = 0; i < 3; i++) {
		fly(_metadata, &flight,
		    (struct op){ fd[i == 2], i == 1, i == 1 ? data : back, BLOCK,
				 BLOCK, 0 }, 1);
		ASSERT_EQ(0, sem_wait(&arrived));
		ASSERT_EQ(0, syscall(__NR_io_getevents, flight.ctx, 0, 1,
				     &(struct io_event){}, NULL));
		sem_post(&go);
		land(_metadata, &flight, 1);
	}
	ASSERT_EQ(0, memcmp(data, back, BLOCK));
	/* FUSE below is done with these before it says that they are queued */
	nowhere = mmap(NULL, BLOCK, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1,
		       0);
	ASSERT_NE(MAP_FAILED, nowhere);
	for (i = 0; i < 2; i++) {
		fly(_metadata, &flight,
		    (struct op){ fd[0], i, nowhere, BLOCK, BLOCK, 0 }, 1);
		ASSERT_EQ(1, wait_for(&flight, 1));
		ASSERT_EQ(-EFAULT, flight.op[0].result);
	}
	for (i = 0; i < 40; i++)
		sem_post(&go);
	ASSERT_EQ(BLOCK, pread(fd[2], back, BLOCK, 2 * BLOCK));
	ASSERT_EQ(BLOCK, pwrite(fd[2], data, BLOCK, 0));
	ASSERT_EQ(0, fsync(fd[2]));
	ASSERT_EQ(1, slow->seen[FUSE_FSYNC]);
	ASSERT_EQ(0, posix_fadvise(fd[2], 0, 0, POSIX_FADV_DONTNEED));
	ASSERT_EQ(0, posix_fadvise(fd[2], 0, 0, POSIX_FADV_WILLNEED));
	ASSERT_EQ(BLOCK, pread(fd[2], back, BLOCK, 0));
	ASSERT_EQ(1000, setfsuid(0));
	ASSERT_LE(6, slow->seen[FUSE_READ] + slow->seen[FUSE_WRITE]);
	ASSERT_EQ(0, strangers);
	ASSERT_EQ(0, srv->seen[FUSE_READ]);
	ASSERT_EQ(0, srv->seen[FUSE_WRITE]);
	/* FUSE below leaves it to others to move the position */
	srv->mode = SRV_PLAIN;
	fd[3] = open(SRV_MNT "/file", O_RDONLY);
	ASSERT_LE(0, fd[3]);
	ASSERT_EQ(BLOCK, pread(fd[3], back, BLOCK, BLOCK));
	ASSERT_EQ(0, memcmp(data, back, BLOCK));
	fly(_metadata, &flight,
	    (struct op){ fd[0], true, data + BLOCK, BLOCK, BLOCK, 0 }, 1);
	land(_metadata, &flight, 1);
	ASSERT_EQ(BLOCK, pread(fd[3], back, BLOCK, BLOCK));
	ASSERT_EQ(0, memcmp(data + BLOCK, back, BLOCK));
	for (i = 0; i < 4; i++)
		close(fd[i]);
	ASSERT_EQ(0, srv_stop(srv));
	ASSERT_EQ(0, srv_stop(slow));
}

/* loop does not say that it writes, and overlayfs has to end the write. */
TEST(loop_over_overlayfs)
{
	struct loop_config config = { .info.lo_flags = LO_FLAGS_DIRECT_IO };
	struct srv *srv;
	int control, fs, loop;
	char name[32];

	make_data();
	ASSERT_EQ(0, srv_namespace());
	ASSERT_EQ(0, srv_mount_lower("overlay"));
	ASSERT_TRUE(make_lower(LOWER, 0666, 4 * BLOCK));
	srv = srv_new();
	ASSERT_NE(NULL, srv);
	srv->lower = open(SRV_LOWER, O_PATH | O_DIRECTORY);
	srv->mode = SRV_PASSTHROUGH;
	srv->max_stack_depth = 2;
	ASSERT_EQ(0, srv_start(srv, SRV_MNT));
	close(srv->lower);
	config.fd = open(SRV_MNT "/file", O_RDWR);
	ASSERT_LE(0, (int)config.fd);
	control = open("/dev/loop-control", O_RDWR);
	snprintf(name, sizeof(name), "/dev/loop%d",
		 ioctl(control, LOOP_CTL_GET_FREE));
	loop = open(name, O_RDWR | O_DIRECT);
	ASSERT_LE(0, loop);
	ASSERT_EQ(0, ioctl(loop, LOOP_CONFIGURE, &config));
	ASSERT_EQ(0, ioctl(loop, LOOP_GET_STATUS64, &config.info));
	ASSERT_TRUE(!!(config.info.lo_flags & LO_FLAGS_DIRECT_IO));
	ASSERT_EQ(BLOCK, pwrite(loop, data, BLOCK, BLOCK));
	ASSERT_EQ(BLOCK, pread(config.fd, back, BLOCK, BLOCK));
	ASSERT_EQ(0, memcmp(data, back, BLOCK));
	ASSERT_EQ(0, ioctl(loop, LOOP_CLR_FD));
	close(loop);
	close(control);
	close(config.fd);
	/* A write that has not ended would hold this up */
	fs = open(SRV_BASE "/ext4", O_RDONLY | O_DIRECTORY);
	ASSERT_EQ(0, ioctl(fs, FIFREEZE, 0));
	ASSERT_EQ(0, ioctl(fs, FITHAW, 0));
	close(fs);
	ASSERT_EQ(0, srv->seen[FUSE_WRITE]);
	ASSERT_EQ(0, srv_stop(srv));
	ASSERT_EQ(0, srv_unmount(SRV_LOWER));
	ASSERT_EQ(0, srv_unmount(SRV_BASE "/ext4"));
}

TEST_F(async, end_of_file)
{
	int fd;

	ASSERT_TRUE(make_lower(LOWER, 0666, BLOCK + 512));
	fd = open(self->env.path, O_RDONLY | variant->direct);
	ASSERT_LE(0, fd);
	fly(_metadata, &self->flight,
	    (struct op){ fd, false, back, BLOCK, 0, 0 }, 3);
	ASSERT_EQ(3, wait_for(&self->flight, 3));
	ASSERT_EQ(BLOCK, self->flight.op[0].result);
	ASSERT_EQ(512, self->flight.op[1].result);
	ASSERT_EQ(0, self->flight.op[2].result);
	ASSERT_EQ(0, memcmp(data, back, BLOCK + 512));
	close(fd);
	check_seen(_metadata, self->env.srv, variant->way, FUSE_READ);
}

/* What is not in the page cache is waited for, and read. */
TEST_F(async, cold_read)
{
	const size_t all = DEPTH * BLOCK;
	int fd, lower;

	ASSERT_TRUE(make_lower(LOWER, 0666, all));
	lower = open(LOWER, O_RDWR);
	ASSERT_LE(0, lower);
	ASSERT_EQ(0, fsync(lower));
	ASSERT_EQ(0, posix_fadvise(lower, 0, 0, POSIX_FADV_DONTNEED));
	close(lower);
	fd = open(self->env.path, O_RDONLY | variant->direct);
	ASSERT_LE(0, fd);
	fly(_metadata, &self->flight,
	    (struct op){ fd, false, back, BLOCK, 0, 0 }, DEPTH);
	land(_metadata, &self->flight, DEPTH);
	ASSERT_EQ(0, memcmp(data, back, all));
	close(fd);
	check_seen(_metadata, self->env.srv, variant->way, FUSE_READ);
}

/* The descriptor may go while its I/O is in flight. */
TEST_F(async, close_in_flight)
{
	const size_t all = DEPTH * BLOCK;
	int fd = open(self->env.path, O_RDWR | variant->direct);

	ASSERT_LE(0, fd);
	fly(_metadata, &self->flight,
	    (struct op){ fd, true, data, BLOCK, 0, 0 }, DEPTH);
	close(fd);
	land(_metadata, &self->flight, DEPTH);
	ASSERT_TRUE(lower_is(all, 0, data, all));
	check_seen(_metadata, self->env.srv, variant->way, FUSE_WRITE);
	if (self->env.srv)
		ASSERT_TRUE(srv_wait(self->env.srv, FUSE_RELEASE, 1));
}

/* Whoever wins, FUSE and the lower file agree on the size. */
TEST_F(async, truncate_in_flight)
{
	int i, fd = open(self->env.path, O_RDWR | variant->direct);
	struct stat st;

	ASSERT_LE(0, fd);
	for (i = 0; again(i, 20, 2); i++) {
		fly(_metadata, &self->flight,
		    (struct op){ fd, true, data, BLOCK, i * BLOCK, 0 }, 8);
		ASSERT_EQ(0, ftruncate(fd, 3 * BLOCK));
		land(_metadata, &self->flight, 8);
		ASSERT_EQ(0, stat(LOWER, &st));
		ASSERT_EQ(st.st_size, size_of(fd));
	}
	close(fd);
	check_seen(_metadata, self->env.srv, variant->way, FUSE_WRITE);
}

/* io_uring's workers are threads of the process, and stay for a while. */
static int threads(void)
{
	DIR *tasks = opendir("/proc/self/task");
	int n = 0;

	while (tasks && readdir(tasks))
		n++;
	closedir(tasks);
	return n;
}

/* Hot reads are done where they are submitted, as on the lower file. */
TEST_F(async, needs_no_worker)
{
	bool worker = !strcmp(variant->fs, "tmpfs") ||
		      variant->engine == URING_WORKER;
	const size_t all = DEPTH * BLOCK;
	int fd, before;

	if (variant->engine == AIO)
		return;
	ASSERT_TRUE(make_lower(LOWER, 0666, all));
	fd = open(self->env.path, O_RDONLY | variant->direct);
	ASSERT_LE(0, fd);
	ASSERT_EQ((ssize_t)all, pread(fd, back, all, 0));
	before = threads();
	fly(_metadata, &self->flight,
	    (struct op){ fd, false, back, BLOCK, 0, 0 }, DEPTH);
	ASSERT_EQ(worker, threads() > before);
	land(_metadata, &self->flight, DEPTH);
	close(fd);
}

/* Requests that hang together, by io_uring on one ring */

FIXTURE(uring) {
	struct env env;
	struct ring ring;
	int fd;
	int bare;
	int queued;
};

FIXTURE_VARIANT(uring) {
	const char *fs;
	enum way way;
	__u64 flags;
};

FIXTURE_VARIANT_ADD(uring, ext4) { "ext4", BY_REQUEST, 0 };
FIXTURE_VARIANT_ADD(uring, xfs) { "xfs", BY_REQUEST, 0 };
FIXTURE_VARIANT_ADD(uring, xfs_id) { "xfs", BY_ID, 0 };
FIXTURE_VARIANT_ADD(uring, xfs_writeback) {
	"xfs", BY_REQUEST, FUSE_WRITEBACK_CACHE
};

FIXTURE_SETUP(uring)
{
	env_setup(_metadata, &self->env, variant->fs, variant->way,
		  DEPTH * BLOCK);
	ASSERT_TRUE(make_lower(SRV_LOWER "/bare", 0666, DEPTH * BLOCK));
	self->env.srv->flags = variant->flags;
	env_start(_metadata, &self->env);
	self->fd = open(FILE_MNT, O_RDWR);
	ASSERT_LE(0, self->fd);
	self->bare = open(SRV_LOWER "/bare", O_RDWR);
	ASSERT_LE(0, self->bare);
	ASSERT_EQ(0, ring_open(&self->ring, DEPTH));
}

FIXTURE_TEARDOWN(uring)
{
	close(self->ring.fd);
	close(self->bare);
	close(self->fd);
	EXPECT_EQ(0, self->env.srv->seen[FUSE_READ]);
	EXPECT_EQ(0, self->env.srv->seen[FUSE_WRITE]);
	env_teardown(_metadata, &self->env);
}

static struct io_uring_sqe *queue(struct ring *ring, int *queued, struct op *op,
				  int flags)
{
	struct io_uring_sqe *sqe = &ring->sqe[*queued];

	ring_prepare(sqe, op, 0, URING);
	sqe->flags |= flags;
	ring_word(ring, ring->p.sq_off.array)[*queued] = *queued;
	(*queued)++;
	return sqe;
}

static int submit_queue(struct ring *ring, int *queued)
{
	int n = *queued;

	atomic_fetch_add(ring_word(ring, ring->p.sq_off.tail), n);
	*queued = 0;
	return srv_result(syscall(__NR_io_uring_enter, ring->fd, n, 0, 0, NULL,
				  0));
}

/* Waits for @n completions, which go to their ops. */
static bool reap(struct ring *ring, int n)
{
	struct io_uring_cqe *cqe = (void *)(ring->map + ring->p.cq_off.cqes);
	unsigned int head = *ring_word(ring, ring->p.cq_off.head);

	if (syscall(__NR_io_uring_enter, ring->fd, 0, n,
		    IORING_ENTER_GETEVENTS, NULL, 0) < 0)
		return false;
	for (; n; n--, head++)
		((struct op *)(uintptr_t)cqe[head].user_data)->result =
			cqe[head].res;
	*ring_word(ring, ring->p.cq_off.head) = head;
	return true;
}

TEST_F(uring, linked)
{
	struct op op[3] = {
		{ self->fd, true, data + 5, BLOCK, BLOCK, 0 },
		{ self->fd, true, data + 9, BLOCK, 2 * BLOCK, 0 },
		{ self->fd, false, back, 2 * BLOCK, BLOCK, 0 },
	};
	int i, flags = IOSQE_IO_LINK;

	for (i = 0; i < 3; i++, flags = i < 2 ? IOSQE_IO_LINK : 0)
		queue(&self->ring, &self->queued, &op[i], flags);
	ASSERT_EQ(3, submit_queue(&self->ring, &self->queued));
	ASSERT_TRUE(reap(&self->ring, 3));
	for (i = 0; i < 3; i++)
		ASSERT_EQ((ssize_t)op[i].len, op[i].result);
	ASSERT_EQ(0, memcmp(data + 5, back, BLOCK));
	ASSERT_EQ(0, memcmp(data + 9, back + BLOCK, BLOCK));
}

/* A short read ends the chain. */
TEST_F(uring, broken_chain)
{
	struct op op[2] = {
		{ self->fd, false, back, 2 * BLOCK, (DEPTH - 1) * BLOCK, 0 },
		{ self->fd, true, data + 9, BLOCK, 0, 0 },
	};

	queue(&self->ring, &self->queued, &op[0], IOSQE_IO_LINK);
	queue(&self->ring, &self->queued, &op[1], 0);
	ASSERT_EQ(2, submit_queue(&self->ring, &self->queued));
	ASSERT_TRUE(reap(&self->ring, 2));
	ASSERT_EQ(BLOCK, op[0].result);
	ASSERT_EQ(-ECANCELED, op[1].result);
	ASSERT_TRUE(lower_is(DEPTH * BLOCK, 0, data, BLOCK));
}

TEST_F(uring, drained)
{
	struct op op[8];
	int i;

	for (i = 0; i < 7; i++) {
		op[i] = (struct op){ self->fd, true, data + 100 + i * BLOCK,
				     BLOCK, i * BLOCK, 0 };
		queue(&self->ring, &self->queued, &op[i],
		      i & 1 ? IOSQE_ASYNC : 0);
	}
	op[7] = (struct op){ self->fd, false, back, 7 * BLOCK, 0, 0 };
	queue(&self->ring, &self->queued, &op[7], IOSQE_IO_DRAIN);
	ASSERT_EQ(8, submit_queue(&self->ring, &self->queued));
	ASSERT_TRUE(reap(&self->ring, 8));
	ASSERT_EQ(7 * BLOCK, op[7].result);
	ASSERT_EQ(0, memcmp(data + 100, back, 7 * BLOCK));
}

/*
 * A write is done inline if it does not have to wait, which is what
 * RWF_NOWAIT asks for.  One that has to move the times waits, so another
 * write moves them before.
 */
static bool writes_inline(int fd)
{
	struct iovec iov = { data, BLOCK };
	int i;

	for (i = 0; i < 1000; i++)
		if (pwrite(fd, data, 1, 0) == 1 &&
		    pwritev2(fd, &iov, 1, 0, RWF_NOWAIT) == BLOCK)
			return true;
	return false;
}

/* Where the lower file system writes inline, so does passthrough. */
TEST_F(uring, writes_as_inline_as_bare)
{
	ASSERT_EQ(DEPTH * BLOCK, pread(self->fd, back, sizeof(back), 0));
	ASSERT_EQ(DEPTH * BLOCK, pread(self->bare, back, sizeof(back), 0));
	ASSERT_EQ(!strcmp(variant->fs, "xfs"), writes_inline(self->bare));
	ASSERT_EQ(!strcmp(variant->fs, "xfs"), writes_inline(self->fd));
}

static int freeze_lower(int cmd)
{
	int err, dir = open(SRV_LOWER, O_RDONLY | O_DIRECTORY);

	err = srv_result(ioctl(dir, cmd, 0));
	close(dir);
	return err;
}

/* Two wait for a thaw, and the second is cancelled. */
TEST_F(uring, cancelled)
{
	struct op op[3] = {
		{ self->fd, true, data + 5, BLOCK, 0, 0 },
		{ self->fd, true, data + 9, BLOCK, BLOCK, 0 },
	};
	struct io_uring_sqe *sqe;

	ASSERT_EQ(0, freeze_lower(FIFREEZE));
	queue(&self->ring, &self->queued, &op[0], IOSQE_ASYNC);
	queue(&self->ring, &self->queued, &op[1], IOSQE_ASYNC);
	EXPECT_EQ(2, submit_queue(&self->ring, &self->queued));
	sqe = queue(&self->ring, &self->queued, &op[2], 0);
	sqe->opcode = IORING_OP_ASYNC_CANCEL;
	sqe->fd = -1;
	sqe->addr = (uintptr_t)&op[1];
	sqe->len = 0;
	sqe->off = 0;
	EXPECT_EQ(1, submit_queue(&self->ring, &self->queued));
	EXPECT_EQ(0, freeze_lower(FITHAW));
	ASSERT_TRUE(reap(&self->ring, 3));
	/* It may have been on its way to the lower file already */
	if (op[2].result || op[1].result != -ECANCELED) {
		ASSERT_EQ(-EALREADY, op[2].result);
		ASSERT_TRUE(op[1].result == BLOCK ||
			    op[1].result == -ECANCELED);
	}
	ASSERT_EQ(BLOCK, op[0].result);
	ASSERT_TRUE(lower_is(DEPTH * BLOCK, 0, data + 5, BLOCK));
}

/* A process ends while its requests wait. */
TEST_F(uring, exit_in_flight)
{
	struct op op[2] = {
		{ self->fd, true, data + 5, BLOCK, 0, 0 },
		{ self->fd, true, data + 9, BLOCK, BLOCK, 0 },
	};
	struct ring ring;
	int ready[2], queued = 0;
	pid_t pid;
	char c;

	ASSERT_EQ(0, pipe(ready));
	ASSERT_EQ(0, freeze_lower(FIFREEZE));
	pid = fork();
	if (!pid) {
		if (ring_open(&ring, DEPTH))
			_exit(1);
		queue(&ring, &queued, &op[0], IOSQE_ASYNC);
		queue(&ring, &queued, &op[1], IOSQE_ASYNC);
		submit_queue(&ring, &queued);
		if (write(ready[1], "x", 1) != 1)
			_exit(1);
		_exit(0);
	}
	EXPECT_EQ(1, read(ready[0], &c, 1));
	EXPECT_EQ(0, freeze_lower(FITHAW));
	ASSERT_EQ(pid, waitpid(pid, NULL, 0));
	close(ready[0]);
	close(ready[1]);
	ASSERT_EQ(BLOCK, pread(self->fd, back, BLOCK, 0));
}

TEST_HARNESS_MAIN
