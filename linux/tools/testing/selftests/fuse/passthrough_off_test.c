// SPDX-License-Identifier: GPL-2.0
/*
 * For a kernel without CONFIG_FUSE_PASSTHROUGH: it offers nothing, knows none
 * of the ioctls, and servers read and write as ever.
 */
#define _GNU_SOURCE
#include "fuse_test_files.h"

FIXTURE(off) {
	struct srv *srv;
};

FIXTURE_SETUP(off)
{
	make_data();
	ASSERT_EQ(0, srv_namespace());
	ASSERT_TRUE(make_lower(LOWER, 0644, BLOCK));
	self->srv = srv_new();
	ASSERT_NE(NULL, self->srv);
	self->srv->lower = open(SRV_LOWER, O_PATH | O_DIRECTORY);
	ASSERT_LE(0, self->srv->lower);
	ASSERT_EQ(0, srv_start(self->srv, SRV_MNT));
}

FIXTURE_TEARDOWN(off)
{
	ASSERT_EQ(0, srv_stop(self->srv));
}

TEST_F(off, not_offered)
{
	ASSERT_FALSE(!!(self->srv->offered & FUSE_PASSTHROUGH));
}

TEST_F(off, ioctls_unknown)
{
	int fd = open(LOWER, O_RDWR);

	ASSERT_LE(0, fd);
	ASSERT_EQ(-ENOTTY, srv_attach(self->srv->dev, 2, fd));
	ASSERT_EQ(-ENOTTY, srv_backing_open(self->srv->dev, fd));
	ASSERT_EQ(-ENOTTY, srv_backing_close(self->srv->dev, 1));
	ASSERT_EQ(0, close(fd));
}

TEST_F(off, server_reads_and_writes)
{
	int fd = open(SRV_MNT "/file", O_RDWR);

	ASSERT_LE(0, fd);
	ASSERT_EQ(BLOCK, pread(fd, back, BLOCK, 0));
	ASSERT_EQ(0, memcmp(back, data, BLOCK));
	ASSERT_EQ(BLOCK, pwrite(fd, data + BLOCK, BLOCK, BLOCK));
	ASSERT_EQ(0, close(fd));
	ASSERT_TRUE(lower_is(2 * BLOCK, BLOCK, data + BLOCK, BLOCK));
	ASSERT_LT(0, self->srv->seen[FUSE_READ]);
	ASSERT_LT(0, self->srv->seen[FUSE_WRITE]);
}

TEST_HARNESS_MAIN
