// SPDX-License-Identifier: GPL-2.0
/*
 * The interface of passthrough: its numbers, and which files and arguments
 * FUSE_DEV_IOC_PASSTHROUGH_OPEN refuses, by which errno.
 */
#define _GNU_SOURCE
#include <stddef.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/socket.h>

#include "fuse_test_attach.h"

/* Where programs of 32 bit have no addresses, no page need be low */
#ifndef MAP_32BIT
#define MAP_32BIT	0
#endif

/* The ioctl by the system call of a 32-bit program */

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

/* What the server tries, see fuse_test_attach.h */

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
	struct env env;
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

FIXTURE_SETUP(refused)
{
	set_up(_metadata, &self->env);
	env_start(_metadata, &self->env);
	same_mount_fd = open(SRV_MNT "/other", O_RDWR);
	ASSERT_LE(0, same_mount_fd);
	attempt = variant->attempt;
}

FIXTURE_TEARDOWN(refused)
{
	close(same_mount_fd);
	env_teardown(_metadata, &self->env);
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
	refuse(_metadata, self->env.srv, variant->flags, variant->error);
#ifdef __x86_64__
	/* The same for 32-bit programs, with no translation. */
	do_ioctl = compat_ioctl;
	refuse(_metadata, self->env.srv, variant->flags, variant->error);
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

TEST_HARNESS_MAIN
