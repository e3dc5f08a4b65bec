// SPDX-License-Identifier: GPL-2.0
/*
 * A connection: what it negotiates, and which of its requests can have a lower
 * file, by which of its descriptors, and until when.
 */
#define _GNU_SOURCE
#include <poll.h>
#include <sys/mman.h>
#include <sys/statfs.h>

#include "fuse_test_attach.h"

FIXTURE(init) {
	struct env env;
};

FIXTURE_VARIANT(init) {
	__u64 flags;
	__u32 depth;
	bool stacked;
	int error;
};

#define ASKS	(FUSE_INIT_EXT | FUSE_PASSTHROUGH)

FIXTURE_VARIANT_ADD(init, does_not_ask) { FUSE_INIT_EXT, 0, false, EPERM };
FIXTURE_VARIANT_ADD(init, depth_only) { FUSE_INIT_EXT, 1, false, EPERM };
/* Bit 5 of a word that the kernel may not look at */
FIXTURE_VARIANT_ADD(init, no_ext) { FUSE_PASSTHROUGH, 1, false, EPERM };
FIXTURE_VARIANT_ADD(init, depth_0) { ASKS, 0, false, 0 };
FIXTURE_VARIANT_ADD(init, depth_1) { ASKS, 1, false, 0 };
FIXTURE_VARIANT_ADD(init, depth_2) { ASKS, 2, false, 0 };
FIXTURE_VARIANT_ADD(init, depth_3) { ASKS, 3, false, EPERM };
FIXTURE_VARIANT_ADD(init, depth_max) { ASKS, ~0U, false, EPERM };
FIXTURE_VARIANT_ADD(init, stacked_0) { ASKS, 0, true, ELOOP };
FIXTURE_VARIANT_ADD(init, stacked_1) { ASKS, 1, true, ELOOP };
FIXTURE_VARIANT_ADD(init, stacked_2) { ASKS, 2, true, 0 };
FIXTURE_VARIANT_ADD(init, stacked_3) { ASKS, 3, true, EPERM };

static struct fuse_init_out init_out = {
	.major = FUSE_KERNEL_VERSION,
	.minor = FUSE_KERNEL_MINOR_VERSION,
	.max_write = SRV_MAX_WRITE,
	.time_gran = 1,
};

static struct fuse_init_in init_in;
static atomic_int before_init = NOT_TRIED;

static int answer_init(struct srv *srv, struct srv_req *req)
{
	int fd;

	if (req->in.opcode != FUSE_INIT)
		return SRV_GO_ON;
	memcpy(&init_in, req->arg, sizeof(init_in));
	fd = open(LOWER, O_RDWR | O_CLOEXEC);
	before_init = attach(req->dev, req->in.unique, fd);
	close(fd);
	srv_reply(req, 0, &init_out, sizeof(init_out));
	return SRV_TAKEN;
}

FIXTURE_SETUP(init)
{
	set_up(_metadata, &self->env);
	ASSERT_EQ(0, mount_overlay());
	if (variant->stacked) {
		close(self->env.srv->lower);
		self->env.srv->lower = open(DIR2, O_PATH | O_DIRECTORY);
		ASSERT_LE(0, self->env.srv->lower);
		lower_path = DIR2 "/file";
	}
	self->env.srv->hold_init = true;
	self->env.srv->on_request = answer_init;
	attempt = right;
	init_out.flags = variant->flags;
	init_out.flags2 = variant->flags >> 32;
	init_out.max_stack_depth = variant->depth;
	ASSERT_EQ(0, srv_start(self->env.srv, SRV_MNT));
	close(self->env.srv->lower);
}

FIXTURE_TEARDOWN(init)
{
	EXPECT_EQ(0, srv_stop(self->env.srv));
	EXPECT_EQ(0, srv_unmount(DIR2));
	EXPECT_EQ(0, srv_unmount(SRV_LOWER));
}

TEST_F(init, negotiate)
{
	refuse_and_serve(_metadata, self->env.srv, O_RDWR, variant->error);
	/* It was offered, and nobody has it before the answer. */
	ASSERT_TRUE(!!(init_in.flags & FUSE_INIT_EXT));
	ASSERT_TRUE(!!(init_in.flags2 & (FUSE_PASSTHROUGH >> 32)));
	ASSERT_EQ(-EPERM, before_init);
}

/* What the requests and descriptors of one connection can do */

FIXTURE(conn) {
	struct env env;
};

FIXTURE_SETUP(conn)
{
	set_up(_metadata, &self->env);
}

FIXTURE_TEARDOWN(conn)
{
	env_teardown(_metadata, &self->env);
}

/* By any descriptor of the connection that comes first */
static int by_clone(struct srv *srv, struct srv_req *req, int fd)
{
	int err, dev = srv_clone(srv);

	if (dev < 0)
		return NOT_TRIED;
	err = attach(dev, req->in.unique, fd);
	close(dev);
	return err;
}

TEST_F(conn, by_clone)
{
	attempt = by_clone;
	env_start(_metadata, &self->env);
	refuse_and_serve(_metadata, self->env.srv, O_RDWR, 0);
}

static int by_first(struct srv *srv, struct srv_req *req, int fd)
{
	if (req->dev == srv->dev)
		return NOT_TRIED;
	return attach(srv->dev, req->in.unique, fd);
}

static struct srv_req clone_req;

static void *serve_clone(void *arg)
{
	struct srv *srv = arg;
	int dev = srv_clone(srv);

	while (!srv_read_request(dev, &clone_req))
		srv_serve(srv, &clone_req);
	close(dev);
	return NULL;
}

/* A request that was read by a clone */
TEST_F(conn, of_clone)
{
	pthread_t thread;

	attempt = by_first;
	self->env.srv->by_hand = true;
	env_start(_metadata, &self->env);
	ASSERT_EQ(0, pthread_create(&thread, NULL, serve_clone, self->env.srv));
	refuse_and_serve(_metadata, self->env.srv, O_RDWR, 0);
	ASSERT_EQ(0, umount2(SRV_MNT, MNT_DETACH));
	ASSERT_EQ(0, srv_abort(self->env.srv));
	ASSERT_EQ(0, pthread_join(thread, NULL));
	/* For the teardown */
	ASSERT_EQ(0, mount("none", SRV_MNT, "tmpfs", 0, NULL));
}

/* Our request, by the device of another connection */
static int other_dev;

static int by_other(struct srv *srv, struct srv_req *req, int fd)
{
	return attach(other_dev, req->in.unique, fd);
}

TEST_F(conn, other)
{
	struct srv *other = srv_new();

	ASSERT_NE(NULL, other);
	other->lower = self->env.srv->lower;
	ASSERT_EQ(0, srv_start(other, DIR2));
	env_start(_metadata, &self->env);
	other_dev = dup(other->dev);
	attempt = by_other;
	refuse_and_serve(_metadata, self->env.srv, O_RDWR, ENOENT);
	ASSERT_EQ(0, srv_stop(other));
	/* Which is unmounted by now */
	refuse_and_serve(_metadata, self->env.srv, O_RDWR, ENOTCONN);
	close(other_dev);
}

/* The first stays, whatever the second is. */
static int twice(struct srv *srv, struct srv_req *req, int fd)
{
	int err = attach(req->dev, req->in.unique, fd);

	if (err)
		return NOT_TRIED;
	if (attach(req->dev, req->in.unique, fd) != -EEXIST)
		return NOT_TRIED;
	return attach_path(req, OTHER, O_RDWR);
}

TEST_F(conn, twice)
{
	int fd;

	attempt = twice;
	env_start(_metadata, &self->env);
	fd = open(FILE_MNT, O_RDWR);
	ASSERT_LE(0, fd);
	ASSERT_EQ(-EEXIST, attempted);
	check_io(_metadata, self->env.srv, fd, O_RDWR, true);
	ASSERT_TRUE(written(LOWER));
	close(fd);
}

/* Some files of no directory are lower files like any other. */
static int memfd(struct srv *srv, struct srv_req *req, int fd)
{
	int lower = memfd_create("lower", MFD_CLOEXEC);

	if (lower < 0 || ftruncate(lower, BLOCK))
		return NOT_TRIED;
	return attach_close(req, lower);
}

TEST_F(conn, memfd)
{
	int fd;

	attempt = memfd;
	env_start(_metadata, &self->env);
	fd = open(FILE_MNT, O_RDWR);
	ASSERT_LE(0, fd);
	ASSERT_EQ(0, attempted);
	check_io(_metadata, self->env.srv, fd, O_RDWR, true);
	close(fd);
}

/* Each request that is no open, and what the ioctl says of it */
static atomic_int said[64];

static int attach_to_any(struct srv *srv, struct srv_req *req)
{
	int *lower = srv->data;

	if (req->in.opcode != FUSE_OPEN)
		said[req->in.opcode % 64] = attach(req->dev, req->in.unique,
						   *lower);
	return SRV_GO_ON;
}

TEST_F(conn, no_open)
{
	static const int requests[] = {
		FUSE_LOOKUP, FUSE_GETATTR, FUSE_SETATTR, FUSE_READ, FUSE_WRITE,
		FUSE_OPENDIR, FUSE_STATFS, FUSE_FSYNC, FUSE_FLUSH,
		FUSE_FALLOCATE, FUSE_RELEASE, FUSE_UNLINK, FUSE_MKNOD,
	};
	int fd, lower = open(OTHER, O_RDWR);
	struct statfs st;
	struct stat attr;
	unsigned int i;

	ASSERT_LE(0, lower);
	self->env.srv->valid = 0;
	self->env.srv->data = &lower;
	self->env.srv->on_request = attach_to_any;
	env_start(_metadata, &self->env);
	fd = open(FILE_MNT, O_RDWR);
	ASSERT_LE(0, fd);
	ASSERT_EQ(0, fstat(fd, &attr));
	ASSERT_EQ(10, pread(fd, back, 10, 0));
	ASSERT_EQ(10, pwrite(fd, data, 10, 0));
	ASSERT_EQ(0, ftruncate(fd, 10));
	ASSERT_EQ(0, fsync(fd));
	ASSERT_EQ(0, fallocate(fd, 0, 0, BLOCK));
	ASSERT_EQ(0, statfs(SRV_MNT, &st));
	close(fd);
	fd = open(SRV_MNT, O_RDONLY | O_DIRECTORY);
	ASSERT_LE(0, fd);
	close(fd);
	ASSERT_EQ(-1, mknod(SRV_MNT "/node", S_IFREG | 0600, 0));
	ASSERT_EQ(0, unlink(FILE_MNT));
	ASSERT_TRUE(srv_wait(self->env.srv, FUSE_RELEASE, 1));
	for (i = 0; i < ARRAY_SIZE(requests); i++) {
		ASSERT_EQ(-EINVAL, said[requests[i]])
			TH_LOG("opcode %d", requests[i]);
	}
	/* Waits for no answer */
	ASSERT_TRUE(srv_wait(self->env.srv, FUSE_FORGET, 1));
	ASSERT_EQ(-ENOENT, said[FUSE_FORGET]);
	close(lower);
}

/* By hand: what was not read yet, and what was answered, is not found. */
TEST_F(conn, too_early_and_too_late)
{
	static struct srv_req first, second;
	struct fuse_open_out out = { 0 };
	struct srv_opener a, b;
	struct pollfd poll_dev;
	int lower, other;

	self->env.srv->by_hand = true;
	env_start(_metadata, &self->env);
	lower = open(LOWER, O_RDWR);
	other = open(OTHER, O_RDWR);
	ASSERT_EQ(0, srv_opener_start(&a, FILE_MNT, O_RDWR));
	ASSERT_EQ(0, srv_take(self->env.srv, FUSE_OPEN, &first));
	ASSERT_EQ(0, srv_opener_start(&b, FILE_MNT, O_RDWR));
	poll_dev = (struct pollfd){ .fd = self->env.srv->dev, .events = POLLIN };
	ASSERT_EQ(1, poll(&poll_dev, 1, 20000));
	ASSERT_EQ(-ENOENT, srv_attach(self->env.srv->dev, first.in.unique + 2,
				      lower));
	ASSERT_EQ(0, srv_take(self->env.srv, FUSE_OPEN, &second));
	ASSERT_EQ(first.in.unique + 2, second.in.unique);
	/* Two wait, each gets its own. */
	ASSERT_EQ(0, srv_attach(self->env.srv->dev, second.in.unique, lower));
	ASSERT_EQ(0, srv_attach(self->env.srv->dev, first.in.unique, other));
	ASSERT_EQ(0, srv_reply_open(&first, NULL, &out));
	ASSERT_LE(0, srv_opener_wait(&a));
	ASSERT_EQ(-ENOENT, srv_attach(self->env.srv->dev, first.in.unique, lower));
	ASSERT_EQ(0, srv_reply_open(&second, NULL, &out));
	ASSERT_LE(0, srv_opener_wait(&b));
	ASSERT_EQ(2 * BLOCK, pread(a.result, back, sizeof(back), 0));
	ASSERT_EQ(BLOCK, pread(b.result, back, sizeof(back), 0));
	close(lower);
	close(other);
	/* Closing asks the server, and there is none any more. */
	ASSERT_EQ(0, srv_abort(self->env.srv));
	close(a.result);
	close(b.result);
}

/* The connection goes while an open waits. */
TEST_F(conn, aborted)
{
	static struct srv_req req;
	struct srv_opener opener;
	int lower;

	self->env.srv->by_hand = true;
	env_start(_metadata, &self->env);
	lower = open(LOWER, O_RDWR);
	ASSERT_EQ(0, srv_opener_start(&opener, FILE_MNT, O_RDWR));
	ASSERT_EQ(0, srv_take(self->env.srv, FUSE_OPEN, &req));
	ASSERT_EQ(0, srv_abort(self->env.srv));
	ASSERT_EQ(-ENOTCONN, srv_attach(self->env.srv->dev, req.in.unique, lower));
	ASSERT_EQ(-ECONNABORTED, srv_opener_wait(&opener));
	ASSERT_EQ(-ENOTCONN, srv_attach(self->env.srv->dev, req.in.unique, lower));
	close(lower);
}

TEST_HARNESS_MAIN
