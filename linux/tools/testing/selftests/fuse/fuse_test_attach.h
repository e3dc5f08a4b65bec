/* SPDX-License-Identifier: GPL-2.0 */
/*
 * FUSE_DEV_IOC_PASSTHROUGH_OPEN, tried by a server before it answers an open.
 *
 * A failed ioctl changes nothing: after each the server answers the same
 * request without passthrough, and gets the reads and writes.
 */
#ifndef FUSE_TEST_ATTACH_H
#define FUSE_TEST_ATTACH_H

#include <sys/ioctl.h>
#include <sys/mount.h>

#include "fuse_test_files.h"

#define OTHER		SRV_LOWER "/other"
#define DIR2		SRV_BASE "/second"

/* What is tried could not be tried, which is no errno */
#define NOT_TRIED	1

static inline long native_ioctl(int dev, const void *arg)
{
	return srv_result(ioctl(dev, FUSE_DEV_IOC_PASSTHROUGH_OPEN, arg));
}

/* The ioctl, by the system call of this or of a 32-bit program */
static long (*do_ioctl)(int dev, const void *arg) = native_ioctl;

static inline int attach(int dev, __u64 unique, int fd)
{
	struct fuse_passthrough_out arg = { .unique = unique, .fd = fd };

	return do_ioctl(dev, &arg);
}

/* Consumes @fd. */
static inline int attach_close(struct srv_req *req, int fd)
{
	int err;

	if (fd < 0)
		return NOT_TRIED;
	err = attach(req->dev, req->in.unique, fd);
	close(fd);
	return err;
}

static inline int attach_path(struct srv_req *req, const char *path, int flags)
{
	return attach_close(req, open(path, flags | O_CLOEXEC));
}

/* What is tried.  @fd is the lower file as it should be. */
static int (*attempt)(struct srv *srv, struct srv_req *req, int fd);
static atomic_int attempted = NOT_TRIED;

/* The open before this one, which has its answer */
static __u64 last_unique;

static inline int try_attempt(struct srv *srv, struct srv_req *req,
			      struct fuse_entry_out *entry,
			      struct fuse_open_out *out)
{
	if (attempt)
		attempted = attempt(srv, req, out->fh);
	last_unique = req->in.unique;
	return SRV_GO_ON;
}

/* Opens are plain, but for what the attempt does. */
static inline void set_up(struct __test_metadata *_metadata, struct env *env)
{
	env_setup(_metadata, env, "tmpfs", PLAIN, BLOCK);
	ASSERT_EQ(0, mkdir(DIR2, 0700));
	ASSERT_TRUE(make_lower(OTHER, 0666, 2 * BLOCK));
	env->srv->options = NULL;
	env->srv->on_open = try_attempt;
}

static inline int right(struct srv *srv, struct srv_req *req, int fd)
{
	return attach(req->dev, req->in.unique, fd);
}

static inline int mount_overlay(void)
{
	mkdir(SRV_BASE "/upper", 0700);
	mkdir(SRV_BASE "/work", 0700);
	return mount("overlay", DIR2, "overlay", 0,
		     "lowerdir=" SRV_LOWER ",upperdir=" SRV_BASE "/upper,workdir="
		     SRV_BASE "/work");
}

/* Reads and writes of @fd, a new open file, are passed through, or are not. */
static inline void check_io(struct __test_metadata *_metadata, struct srv *srv,
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
static inline bool written(const char *path)
{
	int fd = open(path, O_RDONLY);
	bool same = pread(fd, back, BLOCK, BLOCK) == BLOCK &&
		    !memcmp(data + BLOCK, back, BLOCK);

	close(fd);
	return same;
}

/* Where the server writes */
static const char *lower_path = LOWER;

static inline void refuse_and_serve(struct __test_metadata *_metadata,
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

#endif /* FUSE_TEST_ATTACH_H */
