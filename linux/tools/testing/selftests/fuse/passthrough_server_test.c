// SPDX-License-Identifier: GPL-2.0
/*
 * What a server decides: who passes through, whose rights count, and which
 * privileges of a file are left after a write.
 */
#define _GNU_SOURCE
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/xattr.h>
#include <linux/capability.h>
#include <linux/fs.h>
#include <linux/xattr.h>

#include "fuse_test_io.h"

static int mode_of(const char *path)
{
	struct stat st;

	return stat(path, &st) ? -errno : (int)(st.st_mode & 07777);
}

static int write_one(const char *path)
{
	int fd = open(path, O_WRONLY);
	bool written = fd >= 0 && pwrite(fd, "x", 1, 0) == 1;

	close(fd);
	return !written;
}

/* Set-id bits fall as if the caller wrote the lower file itself. */
TEST_F(io, set_id_bits)
{
	ASSERT_TRUE(make_lower(LOWER, 06777, 10));
	ASSERT_EQ(06777, mode_of(self->env.path));
	ASSERT_EQ(0, as_user(write_one, self->env.path));
	ASSERT_EQ(0777, mode_of(self->env.path));
	ASSERT_EQ(0777, mode_of(LOWER));
	check_seen(_metadata, self->env.srv, variant->way, FUSE_WRITE);
	if (variant->way == PLAIN)
		return;
	/* Without group execute, a writer of another group. */
	ASSERT_EQ(0, chown(LOWER, 0, USER + 1));
	ASSERT_EQ(0, chmod(LOWER, 06767));
	ASSERT_EQ(0, as_user(write_one, self->env.path));
	ASSERT_EQ(0767, mode_of(LOWER));
	/* CAP_FSETID keeps them. */
	ASSERT_EQ(0, chmod(LOWER, 06777));
	ASSERT_EQ(0, write_one(self->env.path));
	ASSERT_EQ(06777, mode_of(LOWER));
	check_seen(_metadata, self->env.srv, variant->way, FUSE_WRITE);
}

/* File capabilities always fall. */
TEST_F(io, file_capabilities)
{
	const struct vfs_cap_data cap = {
		.magic_etc = VFS_CAP_REVISION_2,
		.data[0].permitted = 1 << CAP_CHOWN,
	};

	ASSERT_TRUE(make_lower(LOWER, 0777, 10));
	ASSERT_EQ(0, setxattr(LOWER, XATTR_NAME_CAPS, &cap, XATTR_CAPS_SZ_2,
			      0));
	ASSERT_EQ(0, as_user(write_one, self->env.path));
	ASSERT_EQ(-1, getxattr(LOWER, XATTR_NAME_CAPS, back, 100));
	ASSERT_EQ(ENODATA, errno);
	ASSERT_EQ(0, setxattr(LOWER, XATTR_NAME_CAPS, &cap, XATTR_CAPS_SZ_2,
			      0));
	ASSERT_EQ(0, write_one(self->env.path));
	ASSERT_EQ(-1, getxattr(LOWER, XATTR_NAME_CAPS, back, 100));
	ASSERT_EQ(ENODATA, errno);
	check_seen(_metadata, self->env.srv, variant->way, FUSE_WRITE);
}

/* What only a server can do: mixed decisions, other credentials. */

FIXTURE(server) {
	struct env env;
};

FIXTURE_VARIANT(server) {
	const char *fs;
	enum way way;
};

FIXTURE_VARIANT_ADD(server, ext4) { "ext4", BY_REQUEST };
FIXTURE_VARIANT_ADD(server, xfs) { "xfs", BY_REQUEST };
FIXTURE_VARIANT_ADD(server, tmpfs) { "tmpfs", BY_REQUEST };
FIXTURE_VARIANT_ADD(server, ext4_id) { "ext4", BY_ID };

FIXTURE_SETUP(server)
{
	env_setup(_metadata, &self->env, variant->fs, variant->way, 4 * BLOCK);
	ASSERT_EQ(0, chmod(LOWER, 0600));
}

FIXTURE_TEARDOWN(server)
{
	env_teardown(_metadata, &self->env);
}

static void mixed(struct __test_metadata *_metadata, struct srv *srv)
{
	enum srv_mode mode = srv->mode;
	int pass, cached;

	srv->mode = SRV_PLAIN;
	cached = open(FILE_MNT, O_RDWR);
	ASSERT_LE(0, cached);
	/* Fill the FUSE page cache. */
	ASSERT_EQ(4 * BLOCK, pread(cached, back, sizeof(back), 0));
	srv->mode = mode;
	pass = open(FILE_MNT, O_RDWR);
	ASSERT_LE(0, pass);
	srv_reset_counts(srv);
	ASSERT_EQ(100, pwrite(pass, data + 50, 100, BLOCK));
	ASSERT_EQ(0, srv->seen[FUSE_WRITE]);
	ASSERT_EQ(100, pread(cached, back, 100, BLOCK));
	ASSERT_EQ(0, memcmp(data + 50, back, 100));
	ASSERT_LT(0, srv->seen[FUSE_READ]);
	ASSERT_EQ(100, pwrite(cached, data + 9, 100, BLOCK + 50));
	ASSERT_EQ(100, pread(pass, back, 100, BLOCK + 50));
	ASSERT_EQ(0, memcmp(data + 9, back, 100));
	ASSERT_LT(0, srv->seen[FUSE_WRITE]);
	/* The end moves for both, by either. */
	ASSERT_EQ(10, pwrite(pass, data, 10, 5 * BLOCK));
	ASSERT_EQ(10, pread(cached, back, BLOCK, 5 * BLOCK));
	ASSERT_EQ(0, memcmp(data, back, 10));
	ASSERT_EQ(20, pwrite(cached, data, 20, 6 * BLOCK));
	ASSERT_EQ(20, pread(pass, back, BLOCK, 6 * BLOCK));
	ASSERT_EQ(0, memcmp(data, back, 20));
	ASSERT_EQ(6 * BLOCK + 20, size_of(pass));
	ASSERT_EQ(0, ftruncate(pass, 10));
	ASSERT_EQ(10, pread(cached, back, BLOCK, 0));
	ASSERT_EQ(6 * BLOCK, pwrite(pass, data, 6 * BLOCK, 0));
	ASSERT_EQ(6 * BLOCK, pread(cached, back, sizeof(back), 0));
	ASSERT_EQ(0, memcmp(data, back, 6 * BLOCK));
	close(cached);
	close(pass);
	ASSERT_TRUE(lower_is(6 * BLOCK, 0, data, 6 * BLOCK));
}

/* Two openers of one file, of whom the server passes one through. */
TEST_F(server, mixed_opens)
{
	env_start(_metadata, &self->env);
	mixed(_metadata, self->env.srv);
}

TEST_F(server, mixed_opens_writeback)
{
	self->env.srv->flags = FUSE_WRITEBACK_CACHE;
	env_start(_metadata, &self->env);
	ASSERT_TRUE(!!(self->env.srv->granted & FUSE_WRITEBACK_CACHE));
	mixed(_metadata, self->env.srv);
}

/* With the writeback cache, too, data and size are the lower file's. */
TEST_F(server, writeback)
{
	struct timespec old[2] = { { .tv_sec = 1000 }, { .tv_sec = 2000 } };
	struct stat st;
	int fd;

	self->env.srv->flags = FUSE_WRITEBACK_CACHE;
	env_start(_metadata, &self->env);
	fd = open(FILE_MNT, O_RDWR);
	ASSERT_LE(0, fd);
	ASSERT_EQ(0, futimens(fd, old));
	ASSERT_EQ(5 * BLOCK, pwrite(fd, data, 5 * BLOCK, 0));
	ASSERT_TRUE(lower_is(5 * BLOCK, 0, data, 5 * BLOCK));
	ASSERT_EQ(0, fstat(fd, &st));
	ASSERT_EQ(5 * BLOCK, st.st_size);
	ASSERT_LT(2000, st.st_mtime);
	close(fd);
	ASSERT_EQ(0, stat(LOWER, &st));
	ASSERT_LT(2000, st.st_mtime);
	ASSERT_EQ(0, self->env.srv->seen[FUSE_READ]);
	ASSERT_EQ(0, self->env.srv->seen[FUSE_WRITE]);
}

/* FOPEN_DIRECT_IO: read and write ask the server, a mapping does not. */
TEST_F(server, direct_io)
{
	char *map;
	int fd;

	self->env.srv->open_flags = FOPEN_DIRECT_IO;
	env_start(_metadata, &self->env);
	fd = open(FILE_MNT, O_RDWR);
	ASSERT_LE(0, fd);
	map = mmap(NULL, BLOCK, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	ASSERT_NE(MAP_FAILED, map);
	ASSERT_EQ(0, memcmp(data, map, BLOCK));
	ASSERT_EQ(0, self->env.srv->seen[FUSE_READ]);
	ASSERT_EQ(10, pwrite(fd, data + 50, 10, 0));
	ASSERT_EQ(1, self->env.srv->seen[FUSE_WRITE]);
	ASSERT_EQ(0, memcmp(data + 50, map, 10));
	map[0] = 'm';
	ASSERT_EQ(1, pread(fd, back, 1, 0));
	ASSERT_EQ(1, self->env.srv->seen[FUSE_READ]);
	ASSERT_EQ('m', back[0]);
	ASSERT_EQ(0, munmap(map, BLOCK));
	close(fd);
}

/* An append-only lower file stays so, whatever the FUSE inode looks like. */
TEST_F(server, append_only)
{
	const char *path = SRV_MNT "/append_only";
	int fd, lower, flags = FS_APPEND_FL;

	ASSERT_TRUE(make_lower(SRV_LOWER "/append_only", 0600, BLOCK));
	lower = open(SRV_LOWER "/append_only", O_RDONLY);
	ASSERT_LE(0, lower);
	ASSERT_EQ(0, ioctl(lower, FS_IOC_SETFLAGS, &flags));
	env_start(_metadata, &self->env);
	EXPECT_EQ(-1, open(path, O_RDWR));
	EXPECT_EQ(EPERM, errno);
	fd = open(path, O_RDWR | O_APPEND);
	EXPECT_LE(0, fd);
	EXPECT_EQ(0, fcntl(fd, F_SETFL, 0));
	EXPECT_EQ(10, pwrite(fd, "0123456789", 10, 0));
	EXPECT_EQ(BLOCK + 10, size_of(lower));
	EXPECT_EQ(BLOCK + 10, size_of(fd));
	EXPECT_EQ(BLOCK, pread(lower, back, BLOCK, 0));
	EXPECT_EQ(0, memcmp(data, back, BLOCK));
	EXPECT_EQ(MAP_FAILED, mmap(NULL, BLOCK, PROT_READ | PROT_WRITE,
				   MAP_SHARED, fd, 0));
	EXPECT_EQ(EACCES, errno);
	flags = 0;
	ASSERT_EQ(0, ioctl(lower, FS_IOC_SETFLAGS, &flags));
	close(fd);
	close(lower);
	ASSERT_EQ(0, self->env.srv->seen[FUSE_WRITE]);
}

static int read_and_write(const char *path)
{
	int fd = open(path, O_RDWR);
	char c;

	if (fd < 0)
		return errno;
	return pread(fd, &c, 1, 0) == 1 && pwrite(fd, "x", 1, 0) == 1 ? 0 : 1;
}

/* A user writes a file of root's, since the server of root lets it. */
TEST_F(server, lends_its_rights)
{
	env_start(_metadata, &self->env);
	ASSERT_EQ(EACCES, as_user(read_and_write, LOWER));
	ASSERT_EQ(0, as_user(read_and_write, FILE_MNT));
	ASSERT_TRUE(lower_is(4 * BLOCK, 0, "x", 1));
	ASSERT_EQ(0, self->env.srv->seen[FUSE_READ]);
	ASSERT_EQ(0, self->env.srv->seen[FUSE_WRITE]);
}

/* Root gets from a user's server what the user may do, and no more. */
TEST_F(server, has_no_more_rights)
{
	int fd;

	ASSERT_EQ(0, chmod(LOWER, 0644));
	self->env.srv->uid = USER;
	env_start(_metadata, &self->env);
	ASSERT_EQ(-1, open(FILE_MNT, O_RDWR));
	ASSERT_EQ(EACCES, errno);
	fd = open(FILE_MNT, O_RDONLY);
	ASSERT_LE(0, fd);
	ASSERT_EQ(4 * BLOCK, pread(fd, back, sizeof(back), 0));
	ASSERT_EQ(0, memcmp(data, back, 4 * BLOCK));
	ASSERT_EQ(-1, pwrite(fd, data, 1, 0));
	ASSERT_EQ(EBADF, errno);
	close(fd);
	ASSERT_EQ(0, self->env.srv->seen[FUSE_READ]);
}

/* The server's own write would drop the bits: so does root's through it. */
TEST_F(server, drops_privileges_as_its_own)
{
	ASSERT_EQ(0, chown(LOWER, USER, USER));
	ASSERT_EQ(0, chmod(LOWER, 06777));
	self->env.srv->uid = USER;
	env_start(_metadata, &self->env);
	ASSERT_EQ(0, write_one(FILE_MNT));
	ASSERT_EQ(0777, mode_of(LOWER));
	ASSERT_EQ(0, self->env.srv->seen[FUSE_WRITE]);
}

TEST_HARNESS_MAIN
