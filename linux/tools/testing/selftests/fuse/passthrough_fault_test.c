// SPDX-License-Identifier: GPL-2.0
/*
 * System calls on a passthrough file, and the ioctl that makes it one, while
 * one allocation or copy after the other fails in them.
 *
 * A call that fails must fail with an errno, one that succeeds must have done
 * what it says, and neither may leave anything behind: no reference to the
 * lower file, no freeze protection, no memory (the kernel's leak detector
 * sees to that).
 */
#define _GNU_SOURCE
#include <stdio.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/syscall.h>
#include <linux/aio_abi.h>
#include <linux/fs.h>

#include "fuse_test_files.h"

#define NEW_MNT		SRV_MNT "/new"
#define DEBUGFS		SRV_BASE "/debug"
#define FAIL_NTH	"/proc/thread-self/fail-nth"

/* No call comes to so many places where it could fail. */
#define MAX_NTH		2000

static bool write_knob(const char *name, const char *value)
{
	char path[128];
	bool done;
	int fd;

	snprintf(path, sizeof(path), DEBUGFS "/%s", name);
	fd = open(path, O_WRONLY);
	done = write(fd, value, strlen(value)) == (ssize_t)strlen(value);
	close(fd);
	return done;
}

/* What may sleep fails too, and quietly. */
static bool set_knobs(void)
{
	return !mkdir(DEBUGFS, 0700) &&
	       !mount("debugfs", DEBUGFS, "debugfs", 0, NULL) &&
	       write_knob("failslab/ignore-gfp-wait", "N") &&
	       write_knob("failslab/verbose", "0") &&
	       write_knob("fail_page_alloc/ignore-gfp-wait", "N") &&
	       write_knob("fail_page_alloc/min-order", "0") &&
	       write_knob("fail_page_alloc/verbose", "0") &&
	       write_knob("fail_usercopy/verbose", "0");
}

static void write_nth(int fd, int nth)
{
	char text[16];
	int len = snprintf(text, sizeof(text), "%d", nth);

	/* This write may be the one that fails. */
	while (pwrite(fd, text, len, 0) != len)
		;
}

/*
 * A thread whose nth chance fails in each round of a loop:
 *
 *	while (next_fault(faults)) {
 *		arm(faults);
 *		fd = srv_result(open(path, O_RDWR));
 *		if (!succeeds(_metadata, faults, fd))
 *			continue;
 *		...
 *	}
 *
 * @hit: it came to that chance in this round; the loop ends after one where it
 *	did not
 */
struct faults {
	int fd;
	int nth;
	int failed;
	bool hit;
};

static struct faults no_faults(void)
{
	return (struct faults){
		.fd = open(FAIL_NTH, O_RDWR | O_CLOEXEC),
		.hit = true,
	};
}

static bool next_fault(struct faults *faults)
{
	return faults->hit && ++faults->nth < MAX_NTH;
}

/* Let the nth chance fail. */
static void arm(struct faults *faults)
{
	write_nth(faults->fd, faults->nth);
}

/* Whether it came to that. */
static bool fired(struct faults *faults)
{
	char text[16] = "";
	bool none_left = pread(faults->fd, text, sizeof(text) - 1, 0) > 0 &&
			 text[0] == '0';

	write_nth(faults->fd, 0);
	return none_left;
}

/* The errors that injected faults make */
static bool injected(int err)
{
	return err == -ENOMEM || err == -EFAULT;
}

/* The call is over: true if it succeeded, else it failed for the fault. */
static bool succeeds(struct __test_metadata *_metadata, struct faults *faults,
		     ssize_t result)
{
	faults->hit = fired(faults);
	if (result >= 0)
		return true;
	ASSERT_TRUE(injected(result)) TH_LOG("%zd", result);
	faults->failed++;
	return false;
}

FIXTURE(fault) {
	struct env env;
	int lower;
	int dir;
	struct faults faults;
};

FIXTURE_VARIANT(fault) {
	const char *fs;
};

FIXTURE_VARIANT_ADD(fault, tmpfs) { "tmpfs" };
FIXTURE_VARIANT_ADD(fault, ext4) { "ext4" };

static bool retry_ioctl;
static atomic_int no_memory, no_copy, other_error;

/* Tries the ioctl until it succeeds, or once for a plain answer. */
static int attach_with_faults(struct srv *srv, struct srv_req *req,
			      struct fuse_entry_out *entry,
			      struct fuse_open_out *out)
{
	struct faults faults = no_faults();
	int err;

	while (next_fault(&faults)) {
		arm(&faults);
		err = srv_attach(req->dev, req->in.unique, out->fh);
		fired(&faults);
		if (!err)
			break;
		no_memory += err == -ENOMEM;
		no_copy += err == -EFAULT;
		other_error += !injected(err);
		if (!retry_ioctl && err == -ENOMEM)
			break;
	}
	close(faults.fd);
	return SRV_GO_ON;
}

FIXTURE_SETUP(fault)
{
	self->faults = no_faults();
	if (self->faults.fd < 0 && errno == ENOENT)
		return;
	ASSERT_LE(0, self->faults.fd);
	env_setup(_metadata, &self->env, variant->fs, BY_REQUEST, 4 * BLOCK);
	ASSERT_TRUE(set_knobs());
	self->dir = open(SRV_LOWER, O_RDONLY | O_DIRECTORY);
	ASSERT_LE(0, self->dir);
	env_start(_metadata, &self->env);
}

/* A freeze waits for every write that has not ended. */
FIXTURE_TEARDOWN(fault)
{
	if (!self->env.srv)
		return;
	if (strcmp(variant->fs, "tmpfs")) {
		EXPECT_EQ(0, ioctl(self->dir, FIFREEZE));
		EXPECT_EQ(0, ioctl(self->dir, FITHAW));
	}
	close(self->dir);
	close(self->faults.fd);
	EXPECT_EQ(0, srv_unmount(DEBUGFS));
	env_teardown(_metadata, &self->env);
}

/* The reads of @fd do not reach the server. */
static bool passes_through(struct srv *srv, int fd)
{
	int seen = srv->seen[FUSE_READ];

	return pread(fd, back, 1, 0) >= 0 && srv->seen[FUSE_READ] == seen;
}

TEST_F_TIMEOUT(fault, open, 60)
{
	struct faults *faults = &self->faults;
	int fd = -1;

	if (!self->env.srv)
		SKIP(return, "no fault injection");
	while (next_fault(faults)) {
		arm(faults);
		fd = srv_result(open(FILE_MNT, O_RDWR));
		if (!succeeds(_metadata, faults, fd))
			continue;
		ASSERT_TRUE(passes_through(self->env.srv, fd));
		close(fd);
	}
	ASSERT_FALSE(faults->hit);
	ASSERT_LE(0, fd);
	ASSERT_LT(3, faults->failed);
}

TEST_F_TIMEOUT(fault, create, 60)
{
	struct faults *faults = &self->faults;
	int fd = -1;

	if (!self->env.srv)
		SKIP(return, "no fault injection");
	while (next_fault(faults)) {
		unlink(NEW_MNT);
		arm(faults);
		fd = srv_result(open(NEW_MNT, O_CREAT | O_RDWR, 0600));
		if (!succeeds(_metadata, faults, fd))
			continue;
		ASSERT_TRUE(passes_through(self->env.srv, fd));
		close(fd);
	}
	ASSERT_FALSE(faults->hit);
	ASSERT_LE(0, fd);
	ASSERT_LT(3, faults->failed);
}

TEST_F_TIMEOUT(fault, read, 60)
{
	struct faults *faults = &self->faults;
	int fd = open(FILE_MNT, O_RDWR);
	ssize_t n = 0;

	if (!self->env.srv)
		SKIP(return, "no fault injection");
	ASSERT_LE(0, fd);
	while (next_fault(faults)) {
		posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED);
		memset(back, 0x55, 4 * BLOCK);
		arm(faults);
		n = srv_result(pread(fd, back, 4 * BLOCK, 0));
		if (!succeeds(_metadata, faults, n))
			continue;
		ASSERT_NE(0, n);
		ASSERT_EQ(0, memcmp(data, back, n));
	}
	ASSERT_FALSE(faults->hit);
	ASSERT_EQ(4 * BLOCK, n);
	close(fd);
	ASSERT_EQ(0, self->env.srv->seen[FUSE_READ]);
}

/* Each write extends the file. */
TEST_F_TIMEOUT(fault, write, 60)
{
	struct faults *faults = &self->faults;
	int fd = open(FILE_MNT, O_RDWR);
	off_t end = 4 * BLOCK;
	ssize_t n = 0;

	if (!self->env.srv)
		SKIP(return, "no fault injection");
	ASSERT_LE(0, fd);
	while (next_fault(faults)) {
		arm(faults);
		n = srv_result(pwrite(fd, data, 2 * BLOCK, end));
		if (!succeeds(_metadata, faults, n))
			continue;
		ASSERT_NE(0, n);
		ASSERT_TRUE(lower_is(end + n, end, data, n));
		end += n;
		ASSERT_EQ(end, size_of(fd));
	}
	ASSERT_FALSE(faults->hit);
	ASSERT_EQ(2 * BLOCK, n);
	ASSERT_LT(1, faults->nth);
	close(fd);
	ASSERT_EQ(0, self->env.srv->seen[FUSE_WRITE]);
}

static int aio_write_one(aio_context_t ctx, int fd)
{
	struct iocb iocb = {
		.aio_lio_opcode = IOCB_CMD_PWRITE,
		.aio_fildes = fd,
		.aio_buf = (uintptr_t)(data + BLOCK),
		.aio_nbytes = BLOCK,
	}, *list = &iocb;

	return srv_result(syscall(__NR_io_submit, ctx, 1, &list));
}

/* Of ext4 alone, tmpfs has no direct I/O. */
TEST_F_TIMEOUT(fault, aio, 60)
{
	struct faults *faults = &self->faults;
	aio_context_t ctx = 0;
	struct io_event event;
	int fd, n;

	if (!self->env.srv)
		SKIP(return, "no fault injection");
	if (!strcmp(variant->fs, "tmpfs"))
		return;
	ASSERT_EQ(0, syscall(__NR_io_setup, 1, &ctx));
	while (next_fault(faults)) {
		/* The first request of an open file is the one that allocates */
		fd = open(FILE_MNT, O_RDWR | O_DIRECT);
		ASSERT_LE(0, fd);
		arm(faults);
		n = aio_write_one(ctx, fd);
		faults->hit = fired(faults);
		close(fd);
		if (n < 0) {
			/* EINVAL when the ring can't be faulted in */
			ASSERT_TRUE(injected(n) || n == -EAGAIN || n == -EINVAL)
				TH_LOG("%d", n);
			faults->failed++;
			continue;
		}
		ASSERT_EQ(1, syscall(__NR_io_getevents, ctx, 1, 1, &event,
				     NULL));
		if (event.res == BLOCK) {
			ASSERT_TRUE(lower_is(4 * BLOCK, 0, data + BLOCK,
					     BLOCK));
		} else {
			ASSERT_TRUE(injected(event.res))
				TH_LOG("%lld", event.res);
			faults->failed++;
		}
	}
	ASSERT_FALSE(faults->hit);
	ASSERT_LT(0, faults->failed);
	ASSERT_EQ(0, syscall(__NR_io_destroy, ctx));
	ASSERT_EQ(0, self->env.srv->seen[FUSE_WRITE]);
}

TEST_F_TIMEOUT(fault, mmap, 60)
{
	struct faults *faults = &self->faults;
	int fd = open(FILE_MNT, O_RDWR);
	char *map;

	if (!self->env.srv)
		SKIP(return, "no fault injection");
	ASSERT_LE(0, fd);
	while (next_fault(faults)) {
		arm(faults);
		map = mmap(NULL, BLOCK, PROT_READ | PROT_WRITE, MAP_SHARED, fd,
			   0);
		if (map == MAP_FAILED) {
			ASSERT_EQ(ENOMEM, errno);
			faults->failed++;
			faults->hit = fired(faults);
			continue;
		}
		faults->hit = fired(faults);
		ASSERT_EQ(0, memcmp(data, map, BLOCK));
		/* The unmapping has its own chances. */
		arm(faults);
		if (munmap(map, BLOCK)) {
			ASSERT_EQ(ENOMEM, errno);
			fired(faults);
			ASSERT_EQ(0, munmap(map, BLOCK));
		}
		faults->hit |= fired(faults);
	}
	ASSERT_FALSE(faults->hit);
	ASSERT_LT(0, faults->failed);
	close(fd);
	ASSERT_TRUE(srv_wait(self->env.srv, FUSE_RELEASE, 1));
	ASSERT_EQ(0, self->env.srv->seen[FUSE_READ]);
}

/* close(2) closes, whatever it says. */
TEST_F_TIMEOUT(fault, close, 60)
{
	struct faults *faults = &self->faults;
	int fd;

	if (!self->env.srv)
		SKIP(return, "no fault injection");
	while (next_fault(faults)) {
		fd = open(FILE_MNT, O_RDWR);
		ASSERT_LE(0, fd);
		arm(faults);
		close(fd);
		faults->hit = fired(faults);
		ASSERT_EQ(-1, close(fd));
		ASSERT_EQ(EBADF, errno);
		ASSERT_TRUE(srv_wait(self->env.srv, FUSE_RELEASE, faults->nth));
	}
	ASSERT_FALSE(faults->hit);
}

/* A failed ioctl changes nothing, the next one may succeed. */
TEST_F_TIMEOUT(fault, ioctl, 60)
{
	int fd;

	if (!self->env.srv)
		SKIP(return, "no fault injection");
	self->env.srv->mode = SRV_PLAIN;
	self->env.srv->on_open = attach_with_faults;
	retry_ioctl = true;
	fd = open(FILE_MNT, O_RDWR);
	ASSERT_LE(0, fd);
	ASSERT_TRUE(passes_through(self->env.srv, fd));
	ASSERT_LT(0, no_memory);
	ASSERT_LT(0, no_copy);
	ASSERT_EQ(0, other_error);
	close(fd);
}

/* ENOMEM, and the server reads and writes. */
TEST_F_TIMEOUT(fault, ioctl_and_serve, 60)
{
	int fd;

	if (!self->env.srv)
		SKIP(return, "no fault injection");
	self->env.srv->mode = SRV_PLAIN;
	self->env.srv->on_open = attach_with_faults;
	fd = open(FILE_MNT, O_RDWR);
	ASSERT_LE(0, fd);
	ASSERT_EQ(1, no_memory);
	ASSERT_EQ(BLOCK, pread(fd, back, BLOCK, 0));
	ASSERT_EQ(0, memcmp(data, back, BLOCK));
	ASSERT_EQ(1, self->env.srv->seen[FUSE_READ]);
	close(fd);
}

TEST_HARNESS_MAIN
