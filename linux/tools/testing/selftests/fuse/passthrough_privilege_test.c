// SPDX-License-Identifier: GPL-2.0
/*
 * Who writes with which call, and which of setuid, setgid and file capabilities
 * are left: through a server of root the same as by the caller's own write to
 * the lower file, through an unprivileged one what neither of the two loses.
 * And whose quota a write counts against: that of the file's owner.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdio.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/quota.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/xattr.h>
#include <linux/aio_abi.h>
#include <linux/capability.h>
#include <linux/dqblk_xfs.h>
#include <linux/xattr.h>

#include "fuse_test_files.h"

#define BARE_PATH	SRV_LOWER "/bare"
#define STRANGER	2000

enum caller { ROOT, ROOT_WITHOUT, OWNER, GROUP, OTHER, OTHER_WITH, CALLERS };

static const char *const caller_name[] = {
	"root", "root without CAP_FSETID", "owner", "member of the group",
	"other user", "other user with CAP_FSETID",
};

enum call { WRITE, PWRITEV2, SPLICE, AIO, AIO_DIRECT, CALLS };

static const char *const call_name[] = {
	"write", "pwritev2", "splice", "aio", "aio, O_DIRECT",
};

static const mode_t modes[] = { 06777, 04777, 02777, 02767, 0777 };

/* What is left of a file's privileges */
struct left {
	mode_t mode;
	bool cap;
};

static int set_caps(bool fsetid)
{
	struct __user_cap_header_struct head = {
		.version = _LINUX_CAPABILITY_VERSION_3,
	};
	struct __user_cap_data_struct cap[2];

	if (syscall(SYS_capget, &head, cap))
		return -1;
	if (fsetid)
		cap[0].effective |= 1 << CAP_FSETID;
	else
		cap[0].effective &= ~(1 << CAP_FSETID);
	return syscall(SYS_capset, &head, cap);
}

static int become(enum caller who)
{
	gid_t group = who == GROUP ? USER : STRANGER;
	uid_t user = who == OWNER ? USER : STRANGER;

	if (who == ROOT)
		return 0;
	if (who == ROOT_WITHOUT)
		return set_caps(false);
	if (who == OWNER)
		group = USER;
	if (prctl(PR_SET_KEEPCAPS, 1, 0, 0, 0) || setgroups(0, NULL) ||
	    setresgid(group, group, group) || setresuid(user, user, user))
		return -1;
	return who == OTHER_WITH ? set_caps(true) : 0;
}

static bool aio_write(int fd)
{
	struct iocb iocb = {
		.aio_lio_opcode = IOCB_CMD_PWRITE,
		.aio_fildes = fd,
		.aio_buf = (uintptr_t)data,
		.aio_nbytes = BLOCK,
	};
	struct iocb *list = &iocb;
	struct io_event event;
	aio_context_t ctx = 0;

	return !syscall(__NR_io_setup, 1, &ctx) &&
	       syscall(__NR_io_submit, ctx, 1, &list) == 1 &&
	       syscall(__NR_io_getevents, ctx, 1, 1, &event, NULL) == 1 &&
	       event.res == BLOCK;
}

static bool splice_write(int fd)
{
	loff_t offset = 0;
	int end[2];

	return !pipe(end) && write(end[1], data, BLOCK) == BLOCK &&
	       splice(end[0], NULL, fd, &offset, BLOCK, 0) == BLOCK;
}

static bool do_call(int fd, enum call call)
{
	struct iovec iov = { data, BLOCK };

	switch (call) {
	case WRITE:
		return write(fd, data, BLOCK) == BLOCK;
	case PWRITEV2:
		return pwritev2(fd, &iov, 1, 0, RWF_HIPRI) == BLOCK;
	case SPLICE:
		return splice_write(fd);
	default:
		return aio_write(fd);
	}
}

/* A server has nothing to do with the write itself. */
static int asked(struct srv *srv)
{
	return srv->seen[FUSE_WRITE] + srv->seen[FUSE_GETATTR] +
	       srv->seen[FUSE_SETATTR] + srv->seen[FUSE_GETXATTR];
}

/* 0 if the caller could write, and the server was not asked */
static int write_as(struct srv *srv, const char *path, enum caller who,
		    enum call call)
{
	int fd, before, status = -1;
	pid_t pid = fork();

	if (pid) {
		waitpid(pid, &status, 0);
		return status;
	}
	if (become(who))
		_exit(1);
	fd = open(path, O_WRONLY | (call == AIO_DIRECT ? O_DIRECT : 0));
	if (fd < 0)
		_exit(2);
	before = asked(srv);
	if (!do_call(fd, call))
		_exit(3);
	_exit(asked(srv) == before ? 0 : 4);
}

static bool prepare(const char *path, mode_t mode, bool cap)
{
	const struct vfs_cap_data data = {
		.magic_etc = VFS_CAP_REVISION_2,
		.data[0].permitted = 1 << CAP_CHOWN,
	};

	return !chown(path, USER, USER) && !chmod(path, mode) &&
	       (!cap || !setxattr(path, XATTR_NAME_CAPS, &data,
				  XATTR_CAPS_SZ_2, 0));
}

static struct left left_of(const char *path)
{
	struct left left = { 0 };
	struct stat st;

	if (!stat(path, &st))
		left.mode = st.st_mode & 07777;
	left.cap = getxattr(path, XATTR_NAME_CAPS, back, 100) > 0;
	return left;
}

/* The server is one of this user. */
static void serve_as(struct __test_metadata *_metadata, struct env *env,
		     uid_t user)
{
	env->srv->uid = user;
	env->srv->valid = 0;
	env->srv->timeout = 490;
	env_start(_metadata, env);
}

FIXTURE(privilege) {
	struct env env;
};

FIXTURE_VARIANT(privilege) {
	const char *fs;
	enum way way;
	uid_t server;
};

FIXTURE_VARIANT_ADD(privilege, ext4) { "ext4", BY_REQUEST, 0 };
FIXTURE_VARIANT_ADD(privilege, xfs_id_user) { "xfs", BY_ID, USER };

FIXTURE_SETUP(privilege)
{
	env_setup(_metadata, &self->env, variant->fs, variant->way, BLOCK);
	ASSERT_TRUE(make_lower(BARE_PATH, 0777, BLOCK));
	ASSERT_TRUE(prepare(LOWER, 0777, false));
	serve_as(_metadata, &self->env, variant->server);
}

FIXTURE_TEARDOWN(privilege)
{
	EXPECT_EQ(0, self->env.srv->seen[FUSE_WRITE]);
	env_teardown(_metadata, &self->env);
}

/* What the bare file is left with */
static struct left bare_left(struct __test_metadata *_metadata, struct srv *srv,
			     enum caller who, enum call call, mode_t mode,
			     bool cap)
{
	EXPECT_TRUE(prepare(BARE_PATH, mode, cap));
	EXPECT_EQ(0, write_as(srv, BARE_PATH, who, call));
	return left_of(BARE_PATH);
}

static void check(struct __test_metadata *_metadata, struct srv *srv,
		  uid_t server, enum caller who, enum call call, mode_t mode)
{
	bool cap = mode == 0777;
	struct left want, left, own;

	want = bare_left(_metadata, srv, who, call, mode, cap);
	if (server) {
		own = bare_left(_metadata, srv, OWNER, call, mode, cap);
		/* The server is in the group, and the lower file asks it alone */
		want.mode |= mode & 0010 ? 0 : S_ISGID;
		want.mode &= own.mode;
		want.cap &= own.cap;
	}
	ASSERT_TRUE(prepare(LOWER, mode, cap));
	ASSERT_EQ(0, write_as(srv, FILE_MNT, who, call));
	left = left_of(LOWER);
	EXPECT_EQ(want.mode, left.mode) {
		TH_LOG("%s by %s, mode %04o", call_name[call],
		       caller_name[who], mode);
	}
	EXPECT_EQ(want.cap, left.cap);
	/* And it is seen at once. */
	left = left_of(FILE_MNT);
	EXPECT_EQ(want.mode, left.mode);
}

TEST_F_TIMEOUT(privilege, as_bare, 500)
{
	const unsigned int pairs = CALLERS * CALLS;
	const unsigned int all = pairs * ARRAY_SIZE(modes);
	unsigned int i, n;

	/* Who stops early has met all of each: 37 is prime to their number */
	for (i = 0; again(i, all, 45); i++) {
		n = i * 37 % all;
		check(_metadata, self->env.srv, variant->server, n % CALLERS,
		      n % pairs / CALLERS, modes[n / pairs]);
	}
}

/* Quota */

#define QUOTA		(100 * BLOCK)

FIXTURE(quota) {
	struct env env;
};

FIXTURE_VARIANT(quota) {
	enum way way;
	uid_t server;
	int flags;
};

FIXTURE_VARIANT_ADD(quota, root) { BY_REQUEST, 0, 0 };
FIXTURE_VARIANT_ADD(quota, root_direct) { BY_ID, 0, O_DIRECT };
FIXTURE_VARIANT_ADD(quota, user) { BY_ID, USER, 0 };
FIXTURE_VARIANT_ADD(quota, user_direct) { BY_REQUEST, USER, O_DIRECT };

/* Bytes that files of USER may take, 0: any number */
static bool limit_user(off_t bytes)
{
	struct fs_disk_quota quota = {
		.d_version = FS_DQUOT_VERSION,
		.d_flags = FS_USER_QUOTA,
		.d_fieldmask = FS_DQ_BHARD,
		.d_id = USER,
		.d_blk_hardlimit = bytes / 512,
	};

	return !syscall(SYS_quotactl, QCMD(Q_XSETQLIM, USRQUOTA), "/dev/ram2",
			USER, &quota);
}

FIXTURE_SETUP(quota)
{
	env_setup(_metadata, &self->env, "xfs-quota", variant->way, 0);
	ASSERT_TRUE(make_lower(BARE_PATH, 0666, 0));
	ASSERT_TRUE(prepare(LOWER, 0666, false));
	ASSERT_TRUE(prepare(BARE_PATH, 0666, false));
	ASSERT_TRUE(limit_user(QUOTA));
	serve_as(_metadata, &self->env, variant->server);
}

FIXTURE_TEARDOWN(quota)
{
	EXPECT_EQ(0, self->env.srv->seen[FUSE_WRITE]);
	EXPECT_TRUE(limit_user(0));
	env_teardown(_metadata, &self->env);
}

/* Writes until there is an error: the errno, and where it was. */
static int fill_up(const char *path, int flags, off_t *end, int *writes)
{
	int fd = open(path, O_RDWR | flags);
	ssize_t n = fd < 0 ? -errno : 1;

	for (*writes = 0, *end = 0; n > 0; *end += n > 0 ? n : 0, ++*writes)
		n = srv_result(pwrite(fd, data, 32 * BLOCK, *end));
	if (*end != size_of(fd))
		n = -EUCLEAN;
	if (ftruncate(fd, 0))
		n = -errno;
	close(fd);
	return n;
}

/* The last write that does anything is a short one. */
TEST_F(quota, as_bare)
{
	off_t end, bare_end;
	int writes, bare_writes;

	ASSERT_EQ(-EDQUOT, fill_up(BARE_PATH, variant->flags, &bare_end,
				   &bare_writes));
	ASSERT_LT(0, bare_end);
	ASSERT_GE(QUOTA, bare_end);
	ASSERT_EQ(-EDQUOT, fill_up(FILE_MNT, variant->flags, &end, &writes));
	ASSERT_EQ(bare_end, end);
	ASSERT_EQ(bare_writes, writes);
	/* Nothing is lost of what others may still write. */
	ASSERT_TRUE(limit_user(2 * QUOTA));
	ASSERT_EQ(-EDQUOT, fill_up(FILE_MNT, variant->flags, &end, &writes));
	ASSERT_LT(QUOTA, end);
}

TEST_HARNESS_MAIN
