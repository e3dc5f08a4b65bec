// SPDX-License-Identifier: GPL-2.0
/*
 * Passthrough files and what is done to the mounts above and below them.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <linux/mount.h>

#include "fuse_test_files.h"

#define TOP		SRV_BASE "/top"
#define IDMAPPED	SRV_BASE "/idmapped"
#define SHIFT		10000

FIXTURE(mounts) {
	struct env env;
};

FIXTURE_VARIANT(mounts) {
	const char *fs;
	enum way way;
};

FIXTURE_VARIANT_ADD(mounts, ext4) { "ext4", BY_REQUEST };
FIXTURE_VARIANT_ADD(mounts, xfs_id) { "xfs", BY_ID };

FIXTURE_SETUP(mounts)
{
	env_setup(_metadata, &self->env, variant->fs, variant->way, 4 * BLOCK);
	ASSERT_EQ(0, chmod(LOWER, 0600));
	self->env.srv->valid = 0;
	self->env.srv->options = NULL;
}

/* No lower file is left behind, whatever was unmounted. */
FIXTURE_TEARDOWN(mounts)
{
	EXPECT_EQ(0, self->env.srv->seen[FUSE_READ]);
	EXPECT_EQ(0, self->env.srv->seen[FUSE_WRITE]);
	srv_stop(self->env.srv);
	EXPECT_EQ(0, srv_unmount(SRV_LOWER));
}

TEST_F(mounts, read_only_below)
{
	int fd, writer;

	env_start(_metadata, &self->env);
	writer = open(FILE_MNT, O_RDWR);
	ASSERT_LE(0, writer);
	fd = open(FILE_MNT, O_RDONLY);
	ASSERT_LE(0, fd);
	/* As long as somebody may write */
	ASSERT_EQ(-EBUSY, remount_lower(MS_RDONLY));
	close(writer);
	ASSERT_TRUE(srv_wait(self->env.srv, FUSE_RELEASE, 1));
	ASSERT_EQ(0, remount_lower(MS_RDONLY));
	ASSERT_EQ(4 * BLOCK, pread(fd, back, sizeof(back), 0));
	ASSERT_EQ(0, memcmp(data, back, 4 * BLOCK));
	ASSERT_EQ(-1, open(FILE_MNT, O_RDWR));
	ASSERT_EQ(EROFS, errno);
	ASSERT_EQ(0, remount_lower(0));
	writer = open(FILE_MNT, O_RDWR);
	ASSERT_LE(0, writer);
	ASSERT_EQ(1, pwrite(writer, "x", 1, 0));
	close(writer);
	close(fd);
}

/* Reads, writes and stores go on where there is no mount any more. */
static void go_on(struct __test_metadata *_metadata, int fd, char *map)
{
	ASSERT_EQ(10, pwrite(fd, "0123456789", 10, 100));
	ASSERT_EQ(0, memcmp(map + 100, "0123456789", 10));
	map[100] = 'm';
	ASSERT_EQ(10, pread(fd, back, 10, 100));
	ASSERT_EQ(0, memcmp(back, "m123456789", 10));
	ASSERT_EQ(BLOCK, pwrite(fd, data, BLOCK, 4 * BLOCK));
	ASSERT_TRUE(lower_is(5 * BLOCK, 100, "m123456789", 10));
}

static char *map_it(int fd)
{
	return mmap(NULL, BLOCK, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
}

TEST_F(mounts, detached)
{
	char *map;
	int fd;

	env_start(_metadata, &self->env);
	fd = open(FILE_MNT, O_RDWR);
	map = map_it(fd);
	ASSERT_NE(MAP_FAILED, map);
	ASSERT_EQ(0, umount2(SRV_MNT, MNT_DETACH));
	go_on(_metadata, fd, map);
	ASSERT_EQ(0, fsync(fd));
	ASSERT_LT(0, self->env.srv->seen[FUSE_FSYNC]);
	close(fd);
	ASSERT_EQ(0, self->env.srv->seen[FUSE_RELEASE]);
	/* The end of the connection */
	ASSERT_EQ(0, munmap(map, BLOCK));
}

/* That aborts the connection, and fails. */
TEST_F(mounts, forced)
{
	char *map;
	int fd;

	env_start(_metadata, &self->env);
	fd = open(FILE_MNT, O_RDWR);
	map = map_it(fd);
	ASSERT_NE(MAP_FAILED, map);
	ASSERT_EQ(-1, umount2(SRV_MNT, MNT_FORCE));
	ASSERT_EQ(EBUSY, errno);
	go_on(_metadata, fd, map);
	ASSERT_EQ(0, fsync(fd));
	ASSERT_EQ(-1, open(FILE_MNT, O_RDWR));
	ASSERT_EQ(ENOTCONN, errno);
	close(fd);
	ASSERT_EQ(0, munmap(map, BLOCK));
}

/* A user namespace in which 0 is SHIFT outside */
static int shifted_namespace(void)
{
	char path[64];
	pid_t pid = syscall(SYS_clone, SIGCHLD | CLONE_NEWUSER, 0, 0, 0, 0);
	int fd, i, err = 0;

	if (!pid) {
		pause();
		_exit(0);
	}
	for (i = 0; i < 2 && !err; i++) {
		sprintf(path, "/proc/%d/%s", pid, i ? "gid_map" : "uid_map");
		fd = open(path, O_WRONLY);
		if (write(fd, "0 10000 1000", 12) != 12)
			err = -EIO;
		close(fd);
	}
	sprintf(path, "/proc/%d/ns/user", pid);
	fd = err ?: open(path, O_RDONLY);
	kill(pid, SIGKILL);
	waitpid(pid, NULL, 0);
	return fd;
}

static int mount_idmapped(void)
{
	struct mount_attr attr = { .attr_set = MOUNT_ATTR_IDMAP };
	int tree, err;

	attr.userns_fd = shifted_namespace();
	tree = syscall(__NR_open_tree, AT_FDCWD, SRV_LOWER,
		       OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC);
	mkdir(IDMAPPED, 0755);
	err = syscall(__NR_mount_setattr, tree, "", AT_EMPTY_PATH, &attr,
		      sizeof(attr)) ||
	      syscall(__NR_move_mount, tree, "", AT_FDCWD, IDMAPPED,
		      MOVE_MOUNT_F_EMPTY_PATH);
	close(tree);
	close(attr.userns_fd);
	return err ? -errno : 0;
}

/* The server may what the mount says that it may. */
TEST_F(mounts, idmapped_below)
{
	int fd;

	ASSERT_EQ(0, mount_idmapped());
	close(self->env.srv->lower);
	self->env.srv->lower = open(IDMAPPED, O_PATH | O_DIRECTORY);
	ASSERT_LE(0, self->env.srv->lower);
	/* Root's file, mode 0600, is this user's there. */
	self->env.srv->uid = SHIFT;
	env_start(_metadata, &self->env);
	fd = open(FILE_MNT, O_RDWR);
	ASSERT_LE(0, fd);
	ASSERT_EQ(4 * BLOCK, pread(fd, back, sizeof(back), 0));
	ASSERT_EQ(0, memcmp(data, back, 4 * BLOCK));
	ASSERT_EQ(BLOCK, pwrite(fd, data + 1, BLOCK, 4 * BLOCK));
	ASSERT_TRUE(lower_is(5 * BLOCK, 4 * BLOCK, data + 1, BLOCK));
	close(fd);
	ASSERT_TRUE(srv_wait(self->env.srv, FUSE_RELEASE, 1));
	ASSERT_EQ(0, srv_unmount(SRV_MNT));
	ASSERT_EQ(0, umount2(IDMAPPED, MNT_DETACH));
}

static int mount_overlay_on_top(void)
{
	mkdir(TOP, 0755);
	mkdir(SRV_BASE "/upper", 0755);
	mkdir(SRV_BASE "/work", 0755);
	return srv_result(mount("overlay", TOP, "overlay", 0,
				"lowerdir=" SRV_MNT ",upperdir=" SRV_BASE
				"/upper,workdir=" SRV_BASE "/work"));
}

/* overlayfs on passthrough reads the lower file through both. */
TEST_F(mounts, overlay_above)
{
	int fd;

	env_start(_metadata, &self->env);
	ASSERT_EQ(0, mount_overlay_on_top());
	fd = open(TOP "/file", O_RDONLY);
	ASSERT_LE(0, fd);
	ASSERT_EQ(4 * BLOCK, pread(fd, back, sizeof(back), 0));
	ASSERT_EQ(0, memcmp(data, back, 4 * BLOCK));
	close(fd);
	/* A write copies the file up. */
	fd = open(TOP "/file", O_RDWR);
	ASSERT_LE(0, fd);
	ASSERT_EQ(1, pwrite(fd, "x", 1, 0));
	ASSERT_EQ(4 * BLOCK, pread(fd, back, sizeof(back), 0));
	ASSERT_EQ('x', back[0]);
	ASSERT_EQ(0, memcmp(data + 1, back + 1, 4 * BLOCK - 1));
	close(fd);
	ASSERT_EQ(0, srv_unmount(TOP));
	ASSERT_TRUE(lower_is(4 * BLOCK, 0, data, 4 * BLOCK));
}

/* A mount that may stand on a stacked one bears nothing more. */
TEST_F(mounts, overlay_too_high)
{
	self->env.srv->max_stack_depth = 2;
	env_start(_metadata, &self->env);
	ASSERT_EQ(-EINVAL, mount_overlay_on_top());
}

static bool write_map(const char *path, const char *map)
{
	int fd = open(path, O_WRONLY);
	bool done = write(fd, map, strlen(map)) == (ssize_t)strlen(map);

	close(fd);
	return done;
}

/* All of it in the namespace of an ordinary user: 0, or where it failed */
static int serve_in_user_namespace(const char *way)
{
	struct srv *srv;
	int fd;

	/* Lost with root's identity, and the maps are root's without it */
	if (prctl(PR_SET_DUMPABLE, 1, 0, 0, 0) ||
	    unshare(CLONE_NEWUSER | CLONE_NEWNS) ||
	    !write_map("/proc/self/setgroups", "deny") ||
	    !write_map("/proc/self/uid_map", "0 1000 1") ||
	    !write_map("/proc/self/gid_map", "0 1000 1"))
		return 1;
	if (mount("tmpfs", SRV_LOWER, "tmpfs", 0, NULL) ||
	    !make_lower(LOWER, 0600, BLOCK))
		return 2;
	srv = srv_new();
	srv->lower = open(SRV_LOWER, O_PATH | O_DIRECTORY);
	srv->mode = *way == 'i' ? SRV_BACKING_ID : SRV_PASSTHROUGH;
	if (srv_start(srv, SRV_MNT))
		return 3;
	fd = open(FILE_MNT, O_RDWR);
	if (fd < 0)
		return 4;
	if (pread(fd, back, BLOCK, 0) != BLOCK || memcmp(data, back, BLOCK) ||
	    pwrite(fd, "x", 1, 0) != 1 || !lower_is(BLOCK, 0, "x", 1))
		return 5;
	close(fd);
	if (srv->seen[FUSE_READ] || srv->seen[FUSE_WRITE])
		return 6;
	return srv_stop(srv) ? 7 : 0;
}

TEST_F(mounts, user_namespace)
{
	ASSERT_EQ(0, chmod("/dev/fuse", 0666));
	ASSERT_EQ(0, as_user(serve_in_user_namespace,
			     variant->way == BY_ID ? "id" : "request"));
	env_start(_metadata, &self->env);
}

TEST_HARNESS_MAIN
