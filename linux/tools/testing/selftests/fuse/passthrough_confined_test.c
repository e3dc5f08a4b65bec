// SPDX-License-Identifier: GPL-2.0
/*
 * A client and a server that AppArmor confines: the client gets the verdict that
 * it gets on plain FUSE, the server's openers the one that the server gets for
 * its own file.  The profiles are in passthrough_confined.profile; they are loaded
 * from passthrough_confined.policy, what apparmor_parser makes of them.
 */
#define _GNU_SOURCE
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>

#include "fuse_test_files.h"

#define FILE_MNT	SRV_MNT "/file"
#define LOAD		"/sys/kernel/security/apparmor/.replace"
#define POLICY		"passthrough_confined.policy"

/* What a confined client is told */
struct verdict {
	int open;
	int read;
	int write;
	int map;
	int map_exec;
	int protect_exec;
	int exec;
};

/* One write makes or breaks it. */
static int load_policy(void)
{
	static char policy[1 << 20];
	int from = open(POLICY, O_RDONLY), to = open(LOAD, O_WRONLY);
	ssize_t len = read(from, policy, sizeof(policy));
	int err;

	if (from < 0 || to < 0)
		return -errno;
	err = write(to, policy, len) == len ? 0 : -errno;
	close(from);
	close(to);
	return err;
}

/* This thread, for good */
static bool enter(const char *profile)
{
	int fd = open("/proc/thread-self/attr/apparmor/current", O_WRONLY);
	char command[64];
	int len = sprintf(command, "changeprofile %s", profile);
	bool entered = write(fd, command, len) == len;

	close(fd);
	return entered;
}

/*
 * Only a module built out of the tree has a version, for a kernel that does not
 * export the question.
 */
static bool mprotect_is_asked(void)
{
	return access("/sys/module/fuse/version", F_OK);
}

FIXTURE(confined) {
	struct srv *srv;
	const char *path;
};

FIXTURE_VARIANT(confined) {
	enum way way;
};

FIXTURE_VARIANT_ADD(confined, bare) { BARE };
FIXTURE_VARIANT_ADD(confined, plain) { PLAIN };
FIXTURE_VARIANT_ADD(confined, by_request) { BY_REQUEST };
FIXTURE_VARIANT_ADD(confined, by_id) { BY_ID };

FIXTURE_SETUP(confined)
{
	if (access(LOAD, F_OK))
		return;
	make_data();
	ASSERT_EQ(0, load_policy());
	ASSERT_EQ(0, srv_namespace());
	ASSERT_EQ(0, srv_mount_lower("ext4"));
	ASSERT_TRUE(make_lower(LOWER, 0777, BLOCK));
	self->path = variant->way == BARE ? LOWER : FILE_MNT;
}

FIXTURE_TEARDOWN(confined)
{
	if (!self->path)
		return;
	if (self->srv)
		EXPECT_EQ(0, srv_stop(self->srv));
	EXPECT_EQ(0, srv_unmount(SRV_LOWER));
}

static int map(int fd, int prot, void **at)
{
	*at = mmap(NULL, BLOCK, prot, MAP_SHARED, fd, 0);
	return *at == MAP_FAILED ? -errno : 0;
}

static void try_all(const char *path, struct verdict *v)
{
	int fd = srv_result(open(path, O_RDWR));
	void *at;

	v->open = fd;
	v->read = srv_result(pread(fd, back, BLOCK, 0));
	v->write = srv_result(pwrite(fd, data, BLOCK, 0));
	v->map_exec = map(fd, PROT_READ | PROT_EXEC, &at);
	v->map = map(fd, PROT_READ, &at);
	v->protect_exec = srv_result(mprotect(at, BLOCK, PROT_READ | PROT_EXEC));
	/* Nobody executes what is open for writing */
	munmap(at, BLOCK);
	close(fd);
	v->exec = srv_result(execl(path, path, NULL));
}

TEST_F(confined, client)
{
	struct verdict *v = mmap(NULL, sizeof(*v), PROT_READ | PROT_WRITE,
				 MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	pid_t pid;

	if (!self->path)
		SKIP(return, "no AppArmor");
	ASSERT_NE(MAP_FAILED, v);
	if (variant->way != BARE)
		self->srv = serve_lower(_metadata, variant->way, 0);
	pid = fork();
	if (!pid) {
		if (enter("passthrough_client"))
			try_all(self->path, v);
		_exit(0);
	}
	ASSERT_EQ(pid, waitpid(pid, NULL, 0));
	EXPECT_LT(0, v->open);
	EXPECT_EQ(BLOCK, v->read);
	EXPECT_EQ(BLOCK, v->write);
	EXPECT_EQ(0, v->map);
	EXPECT_EQ(-EACCES, v->map_exec);
	EXPECT_EQ(passes(variant->way) && !mprotect_is_asked() ? 0 : -EACCES,
		  v->protect_exec);
	EXPECT_EQ(-EACCES, v->exec);
	check_seen(_metadata, self->srv, variant->way, FUSE_WRITE);
}

/*
 * The serving thread confines itself.  By id it registers an O_PATH file, which
 * the profile does not judge: the open of the opener is judged by it.
 */
static int serve_confined(struct srv *srv, struct srv_req *req)
{
	struct fuse_open_out out = { .open_flags = FOPEN_PASSTHROUGH };
	bool *entered = srv->data;
	int fd;

	if (!*entered)
		*entered = enter("passthrough_server");
	if (srv->mode != SRV_BACKING_ID)
		return SRV_GO_ON;
	if (req->in.opcode == FUSE_RELEASE)
		return srv_reply(req, 0, NULL, 0) ?: SRV_TAKEN;
	if (req->in.opcode != FUSE_OPEN)
		return SRV_GO_ON;
	fd = open(LOWER, O_PATH);
	out.backing_id = srv_backing_open(req->dev, fd);
	close(fd);
	return srv_reply(req, 0, &out, sizeof(out)) ?: SRV_TAKEN;
}

TEST_F(confined, server)
{
	bool entered = false;
	int fd;

	if (!self->path)
		SKIP(return, "no AppArmor");
	if (variant->way == BARE)
		return;
	self->srv = serve_lower(_metadata, variant->way, 0);
	self->srv->data = &entered;
	self->srv->on_request = serve_confined;
	EXPECT_EQ(-EACCES, srv_result(open(self->path, O_RDWR)));
	EXPECT_EQ(-EACCES, srv_result(open(self->path, O_WRONLY)));
	fd = open(self->path, O_RDONLY);
	EXPECT_LE(0, fd);
	EXPECT_EQ(BLOCK, pread(fd, back, BLOCK, 0));
	EXPECT_EQ(0, memcmp(data, back, BLOCK));
	EXPECT_TRUE(entered);
	close(fd);
	check_seen(_metadata, self->srv, variant->way, FUSE_READ);
}

TEST_HARNESS_MAIN
