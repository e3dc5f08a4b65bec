// SPDX-License-Identifier: GPL-2.0
/*
 * The interface of passthrough: numbers, negotiation, and every errno of
 * FUSE_DEV_IOC_PASSTHROUGH_OPEN.
 *
 * A failed ioctl changes nothing: after each the server answers the same
 * request without passthrough, and gets the reads and writes.
 */
#define _GNU_SOURCE
#include <poll.h>
#include <signal.h>
#include <stddef.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/socket.h>
#include <sys/statfs.h>
#include <sys/syscall.h>

#include "fuse_test_files.h"

/* Where programs of 32 bit have no addresses, no page need be low */
#ifndef MAP_32BIT
#define MAP_32BIT	0
#endif

#define OTHER		SRV_LOWER "/other"
#define DIR2		SRV_BASE "/second"

/* What is tried could not be tried, which is no errno */
#define NOT_TRIED	1

/* The ioctl, by the system call of this or of a 32-bit program */

static long native_ioctl(int dev, const void *arg)
{
	return srv_result(ioctl(dev, FUSE_DEV_IOC_PASSTHROUGH_OPEN, arg));
}

#ifdef __x86_64__
/* The argument and the stack of a 32-bit program lie low. */
static long compat_call(long nr, long a, long b, const void *c)
{
	long ret;

	asm volatile("int $0x80"
		     : "=a" (ret)
		     : "a" (nr), "b" (a), "c" (b), "d" (c)
		     : "memory", "r8", "r9", "r10", "r11");
	return ret;
}

static long compat_ioctl(int dev, const void *arg)
{
	const int nr_ioctl = 54;
	void *low;
	long ret;

	if (!((uintptr_t)arg >> 32))
		return compat_call(nr_ioctl, dev, FUSE_DEV_IOC_PASSTHROUGH_OPEN,
				   arg);
	low = mmap(NULL, BLOCK, PROT_READ | PROT_WRITE,
		   MAP_PRIVATE | MAP_ANONYMOUS | MAP_32BIT, -1, 0);
	if (low == MAP_FAILED)
		return NOT_TRIED;
	memcpy(low, arg, sizeof(struct fuse_passthrough_out));
	ret = compat_call(nr_ioctl, dev, FUSE_DEV_IOC_PASSTHROUGH_OPEN, low);
	munmap(low, BLOCK);
	return ret;
}
#endif

static long (*do_ioctl)(int dev, const void *arg) = native_ioctl;

static int attach(int dev, __u64 unique, int fd)
{
	struct fuse_passthrough_out arg = { .unique = unique, .fd = fd };

	return do_ioctl(dev, &arg);
}

/* Consumes @fd. */
static int attach_close(struct srv_req *req, int fd)
{
	int err;

	if (fd < 0)
		return NOT_TRIED;
	err = attach(req->dev, req->in.unique, fd);
	close(fd);
	return err;
}

static int attach_path(struct srv_req *req, const char *path, int flags)
{
	return attach_close(req, open(path, flags | O_CLOEXEC));
}

/*
 * What the server tries before it answers the open.  @fd is the lower file as
 * it should be.
 */

static int right(struct srv *srv, struct srv_req *req, int fd)
{
	return attach(req->dev, req->in.unique, fd);
}

static int no_memory_there(struct srv *srv, struct srv_req *req, int fd)
{
	return do_ioctl(req->dev, (void *)1);
}

/* The last word of the argument lies on a page that is not there. */
static int half_an_argument(struct srv *srv, struct srv_req *req, int fd)
{
	struct fuse_passthrough_out arg = {
		.unique = req->in.unique,
		.fd = fd,
	};
	char *page = mmap(NULL, 2 * BLOCK, PROT_READ | PROT_WRITE,
			  MAP_PRIVATE | MAP_ANONYMOUS | MAP_32BIT, -1, 0);
	size_t half = offsetof(struct fuse_passthrough_out, vec);
	int err;

	if (page == MAP_FAILED || munmap(page + BLOCK, BLOCK))
		return NOT_TRIED;
	memcpy(page + BLOCK - half, &arg, half);
	err = do_ioctl(req->dev, page + BLOCK - half);
	munmap(page, BLOCK);
	return err;
}

static int reserved_len(struct srv *srv, struct srv_req *req, int fd)
{
	struct fuse_passthrough_out arg = {
		.unique = req->in.unique,
		.fd = fd,
		.len = 1,
	};

	return do_ioctl(req->dev, &arg);
}

static int reserved_vec(struct srv *srv, struct srv_req *req, int fd)
{
	struct fuse_passthrough_out arg = {
		.unique = req->in.unique,
		.fd = fd,
		.vec = 1ULL << 63,
	};

	return do_ioctl(req->dev, &arg);
}

static int closed_fd(struct srv *srv, struct srv_req *req, int fd)
{
	return attach(req->dev, req->in.unique, SRV_MAX_FD - 1);
}

static int negative_fd(struct srv *srv, struct srv_req *req, int fd)
{
	return attach(req->dev, req->in.unique, -1);
}

static int path_fd(struct srv *srv, struct srv_req *req, int fd)
{
	return attach_path(req, LOWER, O_PATH);
}

static int read_only(struct srv *srv, struct srv_req *req, int fd)
{
	return attach_path(req, LOWER, O_RDONLY);
}

static int write_only(struct srv *srv, struct srv_req *req, int fd)
{
	return attach_path(req, LOWER, O_WRONLY);
}

static int directory(struct srv *srv, struct srv_req *req, int fd)
{
	return attach_path(req, SRV_LOWER, O_RDONLY);
}

static int a_fifo(struct srv *srv, struct srv_req *req, int fd)
{
	mkfifo(SRV_LOWER "/fifo", 0600);
	return attach_path(req, SRV_LOWER "/fifo", O_RDWR);
}

static int device(struct srv *srv, struct srv_req *req, int fd)
{
	return attach_path(req, "/dev/null", O_RDWR);
}

static int block_device(struct srv *srv, struct srv_req *req, int fd)
{
	return attach_path(req, "/dev/ram0", O_RDWR);
}

static int fuse_device(struct srv *srv, struct srv_req *req, int fd)
{
	return attach(req->dev, req->in.unique, req->dev);
}

static int a_socket(struct srv *srv, struct srv_req *req, int fd)
{
	return attach_close(req, socket(AF_UNIX, SOCK_STREAM, 0));
}

static int anon_inode(struct srv *srv, struct srv_req *req, int fd)
{
	return attach_close(req, eventfd(0, 0));
}

static int sysfs(struct srv *srv, struct srv_req *req, int fd)
{
	return attach_path(req, "/sys/kernel/fscaps", O_RDONLY);
}

static int procfs(struct srv *srv, struct srv_req *req, int fd)
{
	return attach_path(req, "/proc/self/comm", O_RDWR);
}

/* A write of "0" would move whoever writes. */
static int cgroup_procs(struct srv *srv, struct srv_req *req, int fd)
{
	int err;

	if (mount("none", DIR2, "cgroup2", 0, NULL))
		return NOT_TRIED;
	err = attach_path(req, DIR2 "/cgroup.procs", O_RDWR);
	umount(DIR2);
	return err;
}

/* Regular, on no pseudo file system, but has ->read alone */
static int no_read_iter(struct srv *srv, struct srv_req *req, int fd)
{
	char path[64];
	struct statx st;

	if (statx(AT_FDCWD, SRV_MNT, AT_STATX_DONT_SYNC, 0, &st))
		return NOT_TRIED;
	snprintf(path, sizeof(path), SRV_BASE "/fusectl/%u/waiting",
		 st.stx_dev_minor);
	return attach_path(req, path, O_RDONLY);
}

/* An open file of the same mount */
static int same_mount_fd;

static int same_mount(struct srv *srv, struct srv_req *req, int fd)
{
	return attach(req->dev, req->in.unique, same_mount_fd);
}

static int mount_overlay(void)
{
	mkdir(SRV_BASE "/upper", 0700);
	mkdir(SRV_BASE "/work", 0700);
	return mount("overlay", DIR2, "overlay", 0,
		     "lowerdir=" SRV_LOWER ",upperdir=" SRV_BASE "/upper,workdir="
		     SRV_BASE "/work");
}

static int overlay(struct srv *srv, struct srv_req *req, int fd)
{
	int err;

	if (mount_overlay())
		return NOT_TRIED;
	err = attach_path(req, DIR2 "/file", O_RDWR);
	if (umount(DIR2))
		return NOT_TRIED;
	return err;
}

static int unknown_unique(struct srv *srv, struct srv_req *req, int fd)
{
	return attach(req->dev, req->in.unique + 1000, fd);
}

static int zero_unique(struct srv *srv, struct srv_req *req, int fd)
{
	return attach(req->dev, 0, fd);
}

/* This bit stands for the interrupt of the request. */
static int odd_unique(struct srv *srv, struct srv_req *req, int fd)
{
	return attach(req->dev, req->in.unique | 1, fd);
}

/* The open before this one, which has its answer */
static __u64 last_unique;

static int stale_unique(struct srv *srv, struct srv_req *req, int fd)
{
	if (!last_unique || last_unique == req->in.unique)
		return NOT_TRIED;
	return attach(req->dev, last_unique, fd);
}

static int attach_by(const char *dev_path, struct srv_req *req, int fd)
{
	int err, dev = open(dev_path, O_RDWR | O_CLOEXEC);

	if (dev < 0)
		return NOT_TRIED;
	err = attach(dev, req->in.unique, fd);
	close(dev);
	return err;
}

static int by_unmounted(struct srv *srv, struct srv_req *req, int fd)
{
	return attach_by("/dev/fuse", req, fd);
}

static int by_cuse(struct srv *srv, struct srv_req *req, int fd)
{
	return attach_by("/dev/cuse", req, fd);
}

static int not_fuse(struct srv *srv, struct srv_req *req, int fd)
{
	return attach(fd, req->in.unique, fd);
}

FIXTURE(refused) {
	struct srv *srv;
};

FIXTURE_VARIANT(refused) {
	int (*attempt)(struct srv *srv, struct srv_req *req, int fd);
	int flags;
	int error;
};

FIXTURE_VARIANT_ADD(refused, no_memory_there) {
	no_memory_there, O_RDWR, EFAULT
};

FIXTURE_VARIANT_ADD(refused, half_an_argument) {
	half_an_argument, O_RDWR, EFAULT
};

FIXTURE_VARIANT_ADD(refused, reserved_len) { reserved_len, O_RDWR, EINVAL };
FIXTURE_VARIANT_ADD(refused, reserved_vec) { reserved_vec, O_RDWR, EINVAL };
FIXTURE_VARIANT_ADD(refused, closed_fd) { closed_fd, O_RDWR, EBADF };
FIXTURE_VARIANT_ADD(refused, negative_fd) { negative_fd, O_RDWR, EBADF };
FIXTURE_VARIANT_ADD(refused, path_fd) { path_fd, O_RDONLY, EBADF };
FIXTURE_VARIANT_ADD(refused, read_only) { read_only, O_RDWR, EBADF };
FIXTURE_VARIANT_ADD(refused, write_only) { write_only, O_RDONLY, EBADF };
FIXTURE_VARIANT_ADD(refused, directory) { directory, O_RDONLY, EISDIR };
FIXTURE_VARIANT_ADD(refused, a_fifo) { a_fifo, O_RDWR, EINVAL };
FIXTURE_VARIANT_ADD(refused, device) { device, O_RDWR, EINVAL };
FIXTURE_VARIANT_ADD(refused, block_device) { block_device, O_RDWR, EINVAL };
FIXTURE_VARIANT_ADD(refused, fuse_device) { fuse_device, O_RDWR, EINVAL };
FIXTURE_VARIANT_ADD(refused, a_socket) { a_socket, O_RDWR, EINVAL };
FIXTURE_VARIANT_ADD(refused, anon_inode) { anon_inode, O_RDWR, EINVAL };
FIXTURE_VARIANT_ADD(refused, sysfs) { sysfs, O_RDONLY, EINVAL };
FIXTURE_VARIANT_ADD(refused, procfs) { procfs, O_RDWR, EINVAL };
FIXTURE_VARIANT_ADD(refused, cgroup_procs) { cgroup_procs, O_RDWR, EINVAL };
FIXTURE_VARIANT_ADD(refused, no_read_iter) {
	no_read_iter, O_RDONLY, EOPNOTSUPP
};

FIXTURE_VARIANT_ADD(refused, same_mount) { same_mount, O_RDWR, ELOOP };
FIXTURE_VARIANT_ADD(refused, overlay) { overlay, O_RDWR, ELOOP };
FIXTURE_VARIANT_ADD(refused, unknown_unique) { unknown_unique, O_RDWR, ENOENT };
FIXTURE_VARIANT_ADD(refused, zero_unique) { zero_unique, O_RDWR, ENOENT };
FIXTURE_VARIANT_ADD(refused, odd_unique) { odd_unique, O_RDWR, ENOENT };
FIXTURE_VARIANT_ADD(refused, stale_unique) { stale_unique, O_RDWR, ENOENT };
FIXTURE_VARIANT_ADD(refused, by_unmounted) { by_unmounted, O_RDWR, EPERM };
FIXTURE_VARIANT_ADD(refused, by_cuse) { by_cuse, O_RDWR, ENOTTY };
FIXTURE_VARIANT_ADD(refused, not_fuse) { not_fuse, O_RDWR, ENOTTY };
/* More ways to open */
FIXTURE_VARIANT_ADD(refused, read_only_for_writing) {
	read_only, O_WRONLY, EBADF
};

FIXTURE_VARIANT_ADD(refused, write_only_for_both) {
	write_only, O_RDWR, EBADF
};

FIXTURE_VARIANT_ADD(refused, direct_on_tmpfs) {
	read_only, O_RDONLY | O_DIRECT, EINVAL
};

FIXTURE_VARIANT_ADD(refused, create) {
	directory, O_CREAT | O_EXCL | O_RDWR, EISDIR
};

FIXTURE_VARIANT_ADD(refused, create_access_mode) {
	read_only, O_CREAT | O_EXCL | O_RDWR, EBADF
};

FIXTURE_VARIANT_ADD(refused, tmpfile) {
	directory, O_TMPFILE | O_RDWR, EISDIR
};

FIXTURE_VARIANT_ADD(refused, tmpfile_access_mode) {
	write_only, O_TMPFILE | O_RDWR, EBADF
};

/* A success does not count as a refusal. */
FIXTURE_VARIANT_ADD(refused, by_nothing) { right, O_RDWR, 0 };

static const char *lower_path = LOWER;
static int (*attempt)(struct srv *srv, struct srv_req *req, int fd);
static atomic_int attempted = NOT_TRIED;

static int try_attempt(struct srv *srv, struct srv_req *req,
		       struct fuse_entry_out *entry, struct fuse_open_out *out)
{
	if (attempt)
		attempted = attempt(srv, req, out->fh);
	last_unique = req->in.unique;
	return SRV_GO_ON;
}

/* A server by whom opens are plain, but for what a hook does. */
static struct srv *plain_server(struct __test_metadata *_metadata)
{
	struct srv *srv = srv_new();

	ASSERT_NE(NULL, srv);
	srv->lower = open(SRV_LOWER, O_PATH | O_DIRECTORY);
	ASSERT_LE(0, srv->lower);
	srv->valid = 3600;
	srv->on_open = try_attempt;
	return srv;
}

static void stop_server(struct __test_metadata *_metadata, struct srv *srv)
{
	close(srv->lower);
	EXPECT_EQ(0, srv_stop(srv));
	EXPECT_EQ(0, srv_unmount(SRV_LOWER));
}

static void make_files(struct __test_metadata *_metadata)
{
	make_data();
	ASSERT_EQ(0, srv_namespace());
	ASSERT_EQ(0, mkdir(DIR2, 0700));
	ASSERT_EQ(0, srv_mount_lower("tmpfs"));
	ASSERT_TRUE(make_lower(LOWER, 0666, BLOCK));
	ASSERT_TRUE(make_lower(OTHER, 0666, 2 * BLOCK));
}

FIXTURE_SETUP(refused)
{
	make_files(_metadata);
	self->srv = plain_server(_metadata);
	ASSERT_EQ(0, srv_start(self->srv, SRV_MNT));
	same_mount_fd = open(SRV_MNT "/other", O_RDWR);
	ASSERT_LE(0, same_mount_fd);
	attempt = variant->attempt;
}

FIXTURE_TEARDOWN(refused)
{
	close(same_mount_fd);
	stop_server(_metadata, self->srv);
}

/* Reads and writes of @fd, a new open file, are passed through, or are not. */
static void check_io(struct __test_metadata *_metadata, struct srv *srv,
		     int fd, int accmode, bool through)
{
	srv_reset_counts(srv);
	if (accmode != O_WRONLY) {
		ASSERT_EQ(BLOCK, pread(fd, back, BLOCK, 0));
		ASSERT_EQ(through, !srv->seen[FUSE_READ]);
	}
	if (accmode != O_RDONLY) {
		ASSERT_EQ(BLOCK, pwrite(fd, data + BLOCK, BLOCK, BLOCK));
		ASSERT_EQ(through, !srv->seen[FUSE_WRITE]);
	}
}

/* What check_io() wrote has arrived. */
static bool written(const char *path)
{
	int fd = open(path, O_RDONLY);
	bool same = pread(fd, back, BLOCK, BLOCK) == BLOCK &&
		    !memcmp(data + BLOCK, back, BLOCK);

	close(fd);
	return same;
}

static void refuse_and_serve(struct __test_metadata *_metadata,
			     struct srv *srv, int flags, int error)
{
	int fd, accmode = flags & O_ACCMODE;

	attempted = NOT_TRIED;
	fd = open(FILE_MNT, flags);
	ASSERT_LE(0, fd);
	ASSERT_EQ(-error, attempted);
	check_io(_metadata, srv, fd, accmode, !error);
	if (accmode != O_WRONLY)
		ASSERT_EQ(0, memcmp(data, back, BLOCK));
	if (accmode != O_RDONLY)
		ASSERT_TRUE(written(lower_path));
	close(fd);
}

static void refuse_and_create(struct __test_metadata *_metadata,
			      struct srv *srv, int flags, int error)
{
	const char *path = flags & O_CREAT ? SRV_MNT "/new" : SRV_MNT;
	int fd;

	attempted = NOT_TRIED;
	fd = open(path, flags, 0644);
	ASSERT_LE(0, fd);
	ASSERT_EQ(-error, attempted);
	ASSERT_EQ(0, ftruncate(fd, BLOCK));
	check_io(_metadata, srv, fd, flags & O_ACCMODE, !error);
	ASSERT_TRUE(all_zero(back, BLOCK));
	if (flags & O_CREAT)
		ASSERT_EQ(0, unlink(path));
	close(fd);
}

static void refuse(struct __test_metadata *_metadata, struct srv *srv,
		   int flags, int error)
{
	if (flags & (O_CREAT | __O_TMPFILE))
		refuse_and_create(_metadata, srv, flags, error);
	else
		refuse_and_serve(_metadata, srv, flags, error);
}

TEST_F(refused, and_served)
{
	refuse(_metadata, self->srv, variant->flags, variant->error);
#ifdef __x86_64__
	/* The same for 32-bit programs, with no translation. */
	do_ioctl = compat_ioctl;
	refuse(_metadata, self->srv, variant->flags, variant->error);
#endif
}

/* Numbers are for ever. */
TEST(numbers)
{
	ASSERT_EQ(24U, sizeof(struct fuse_passthrough_out));
	ASSERT_EQ(0U, offsetof(struct fuse_passthrough_out, unique));
	ASSERT_EQ(8U, offsetof(struct fuse_passthrough_out, fd));
	ASSERT_EQ(12U, offsetof(struct fuse_passthrough_out, len));
	ASSERT_EQ(16U, offsetof(struct fuse_passthrough_out, vec));
	ASSERT_EQ(0x4018e501U, FUSE_DEV_IOC_PASSTHROUGH_OPEN);
	ASSERT_EQ(16U, sizeof(struct fuse_backing_map));
	ASSERT_EQ(0x4010e501U, FUSE_DEV_IOC_BACKING_OPEN);
	ASSERT_EQ(0x4004e502U, FUSE_DEV_IOC_BACKING_CLOSE);
	ASSERT_EQ(1ULL << 37, FUSE_PASSTHROUGH);
	ASSERT_EQ(1 << 7, FOPEN_PASSTHROUGH);
	ASSERT_EQ(64U, sizeof(struct fuse_init_out));
	ASSERT_EQ(36U, offsetof(struct fuse_init_out, max_stack_depth));
	ASSERT_EQ(16U, sizeof(struct fuse_open_out));
	ASSERT_EQ(12U, offsetof(struct fuse_open_out, backing_id));
}

/* Negotiation */

FIXTURE(init) {
	struct srv *srv;
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
	make_files(_metadata);
	ASSERT_EQ(0, mount_overlay());
	self->srv = plain_server(_metadata);
	if (variant->stacked) {
		close(self->srv->lower);
		self->srv->lower = open(DIR2, O_PATH | O_DIRECTORY);
		ASSERT_LE(0, self->srv->lower);
		lower_path = DIR2 "/file";
	}
	self->srv->hold_init = true;
	self->srv->on_request = answer_init;
	attempt = right;
	init_out.flags = variant->flags;
	init_out.flags2 = variant->flags >> 32;
	init_out.max_stack_depth = variant->depth;
	ASSERT_EQ(0, srv_start(self->srv, SRV_MNT));
}

FIXTURE_TEARDOWN(init)
{
	close(self->srv->lower);
	EXPECT_EQ(0, srv_stop(self->srv));
	EXPECT_EQ(0, srv_unmount(DIR2));
	EXPECT_EQ(0, srv_unmount(SRV_LOWER));
}

TEST_F(init, negotiate)
{
	refuse_and_serve(_metadata, self->srv, O_RDWR, variant->error);
	/* It was offered, and nobody has it before the answer. */
	ASSERT_TRUE(!!(init_in.flags & FUSE_INIT_EXT));
	ASSERT_TRUE(!!(init_in.flags2 & (FUSE_PASSTHROUGH >> 32)));
	ASSERT_EQ(-EPERM, before_init);
}

/* What the requests and descriptors of one connection can do */

FIXTURE(conn) {
	struct srv *srv;
};

FIXTURE_SETUP(conn)
{
	make_files(_metadata);
	self->srv = plain_server(_metadata);
}

FIXTURE_TEARDOWN(conn)
{
	stop_server(_metadata, self->srv);
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
	ASSERT_EQ(0, srv_start(self->srv, SRV_MNT));
	refuse_and_serve(_metadata, self->srv, O_RDWR, 0);
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
	self->srv->by_hand = true;
	ASSERT_EQ(0, srv_start(self->srv, SRV_MNT));
	ASSERT_EQ(0, pthread_create(&thread, NULL, serve_clone, self->srv));
	refuse_and_serve(_metadata, self->srv, O_RDWR, 0);
	ASSERT_EQ(0, umount2(SRV_MNT, MNT_DETACH));
	ASSERT_EQ(0, srv_abort(self->srv));
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
	other->lower = self->srv->lower;
	ASSERT_EQ(0, srv_start(other, DIR2));
	ASSERT_EQ(0, srv_start(self->srv, SRV_MNT));
	other_dev = dup(other->dev);
	attempt = by_other;
	refuse_and_serve(_metadata, self->srv, O_RDWR, ENOENT);
	ASSERT_EQ(0, srv_stop(other));
	/* Which is unmounted by now */
	refuse_and_serve(_metadata, self->srv, O_RDWR, ENOTCONN);
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
	ASSERT_EQ(0, srv_start(self->srv, SRV_MNT));
	fd = open(FILE_MNT, O_RDWR);
	ASSERT_LE(0, fd);
	ASSERT_EQ(-EEXIST, attempted);
	check_io(_metadata, self->srv, fd, O_RDWR, true);
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
	ASSERT_EQ(0, srv_start(self->srv, SRV_MNT));
	fd = open(FILE_MNT, O_RDWR);
	ASSERT_LE(0, fd);
	ASSERT_EQ(0, attempted);
	check_io(_metadata, self->srv, fd, O_RDWR, true);
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
	self->srv->valid = 0;
	self->srv->data = &lower;
	self->srv->on_request = attach_to_any;
	ASSERT_EQ(0, srv_start(self->srv, SRV_MNT));
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
	ASSERT_TRUE(srv_wait(self->srv, FUSE_RELEASE, 1));
	for (i = 0; i < ARRAY_SIZE(requests); i++) {
		ASSERT_EQ(-EINVAL, said[requests[i]])
			TH_LOG("opcode %d", requests[i]);
	}
	/* Waits for no answer */
	ASSERT_TRUE(srv_wait(self->srv, FUSE_FORGET, 1));
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

	self->srv->by_hand = true;
	ASSERT_EQ(0, srv_start(self->srv, SRV_MNT));
	lower = open(LOWER, O_RDWR);
	other = open(OTHER, O_RDWR);
	ASSERT_EQ(0, srv_opener_start(&a, FILE_MNT, O_RDWR));
	ASSERT_EQ(0, srv_take(self->srv, FUSE_OPEN, &first));
	ASSERT_EQ(0, srv_opener_start(&b, FILE_MNT, O_RDWR));
	poll_dev = (struct pollfd){ .fd = self->srv->dev, .events = POLLIN };
	ASSERT_EQ(1, poll(&poll_dev, 1, 20000));
	ASSERT_EQ(-ENOENT, srv_attach(self->srv->dev, first.in.unique + 2,
				      lower));
	ASSERT_EQ(0, srv_take(self->srv, FUSE_OPEN, &second));
	ASSERT_EQ(first.in.unique + 2, second.in.unique);
	/* Two wait, each gets its own. */
	ASSERT_EQ(0, srv_attach(self->srv->dev, second.in.unique, lower));
	ASSERT_EQ(0, srv_attach(self->srv->dev, first.in.unique, other));
	ASSERT_EQ(0, srv_reply_open(&first, NULL, &out));
	ASSERT_LE(0, srv_opener_wait(&a));
	ASSERT_EQ(-ENOENT, srv_attach(self->srv->dev, first.in.unique, lower));
	ASSERT_EQ(0, srv_reply_open(&second, NULL, &out));
	ASSERT_LE(0, srv_opener_wait(&b));
	ASSERT_EQ(2 * BLOCK, pread(a.result, back, sizeof(back), 0));
	ASSERT_EQ(BLOCK, pread(b.result, back, sizeof(back), 0));
	close(lower);
	close(other);
	/* Closing asks the server, and there is none any more. */
	ASSERT_EQ(0, srv_abort(self->srv));
	close(a.result);
	close(b.result);
}

/* The connection goes while an open waits. */
TEST_F(conn, aborted)
{
	static struct srv_req req;
	struct srv_opener opener;
	int lower;

	self->srv->by_hand = true;
	ASSERT_EQ(0, srv_start(self->srv, SRV_MNT));
	lower = open(LOWER, O_RDWR);
	ASSERT_EQ(0, srv_opener_start(&opener, FILE_MNT, O_RDWR));
	ASSERT_EQ(0, srv_take(self->srv, FUSE_OPEN, &req));
	ASSERT_EQ(0, srv_abort(self->srv));
	ASSERT_EQ(-ENOTCONN, srv_attach(self->srv->dev, req.in.unique, lower));
	ASSERT_EQ(-ECONNABORTED, srv_opener_wait(&opener));
	ASSERT_EQ(-ENOTCONN, srv_attach(self->srv->dev, req.in.unique, lower));
	close(lower);
}

TEST_HARNESS_MAIN
