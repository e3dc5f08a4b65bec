// SPDX-License-Identifier: GPL-2.0
/*
 * The life of a lower file after its open: what others do to it, who keeps it
 * open, and a mount that stands on another.
 */
#define _GNU_SOURCE
#include <signal.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/socket.h>

#include "fuse_test_spare.h"

#define OUTER		SRV_BASE "/outer"

/* ENOSYS to OPEN: the open succeeds, and there is no open file to back. */

static int read_without_open(struct srv *srv, struct srv_req *req)
{
	if (req->in.opcode != FUSE_READ)
		return SRV_GO_ON;
	srv_reply(req, 0, data, BLOCK);
	return SRV_TAKEN;
}

FIXTURE(life) {
	struct env env;
};

FIXTURE_SETUP(life)
{
	set_up(_metadata, &self->env, "tmpfs", PLAIN);
	self->env.srv->on_open = give_answer;
}

FIXTURE_TEARDOWN(life)
{
	tear_down(_metadata, &self->env);
}

TEST_F(life, open_enosys)
{
	int i, fd;

	answer.error = -ENOSYS;
	self->env.srv->on_request = read_without_open;
	env_start(_metadata, &self->env);
	for (i = 0; i < 2; i++) {
		srv_reset_counts(self->env.srv);
		fd = open(FILE_MNT, O_RDWR);
		ASSERT_LE(0, fd);
		ASSERT_EQ(0, attached);
		/* While it is open */
		if (!i)
			ASSERT_EQ(0, srv_unmount(SPARE));
		ASSERT_TRUE(reads(fd, data));
		ASSERT_EQ(1, self->env.srv->seen[FUSE_READ]);
		close(fd);
		ASSERT_TRUE(round_trip());
		ASSERT_EQ(0, self->env.srv->seen[FUSE_RELEASE]);
		/* Nobody asks again. */
		ASSERT_EQ(!i, self->env.srv->seen[FUSE_OPEN]);
	}
}

/* The last name of the lower file goes while it is open. */
TEST_F(life, deleted_below)
{
	struct stat st;
	int fd;

	env_start(_metadata, &self->env);
	fd = open(FILE_MNT, O_RDWR);
	ASSERT_LE(0, fd);
	ASSERT_EQ(0, unlink(SPARE_FILE));
	ASSERT_EQ(0, unlink(LOWER));
	ASSERT_TRUE(reads(fd, spare_data));
	ASSERT_EQ(BLOCK, pwrite(fd, data + 5, BLOCK, BLOCK));
	ASSERT_EQ(BLOCK, pread(fd, back, BLOCK, BLOCK));
	ASSERT_EQ(0, memcmp(data + 5, back, BLOCK));
	ASSERT_EQ(0, fstat(fd, &st));
	ASSERT_EQ(0U, st.st_nlink);
	ASSERT_EQ(0, self->env.srv->seen[FUSE_READ]);
	ASSERT_EQ(0, self->env.srv->seen[FUSE_WRITE]);
	close(fd);
	ASSERT_EQ(0, srv_unmount(SPARE));
}

static int make_it_a_directory(struct srv *srv, struct srv_req *req)
{
	struct fuse_attr_out out = { .attr.mode = S_IFDIR | 0755 };

	if (req->in.opcode != FUSE_GETATTR || req->in.nodeid == FUSE_ROOT_ID)
		return SRV_GO_ON;
	srv_reply(req, 0, &out, sizeof(out));
	return SRV_TAKEN;
}

/* A server that says so no longer has the inode. */
TEST_F(life, bad_inode)
{
	struct stat st;
	int fd, pipes[2];

	self->env.srv->valid = 0;
	env_start(_metadata, &self->env);
	fd = open(FILE_MNT, O_RDWR);
	ASSERT_LE(0, fd);
	ASSERT_TRUE(reads(fd, spare_data));
	ASSERT_EQ(0, pipe(pipes));
	ASSERT_EQ(10, write(pipes[1], data, 10));
	self->env.srv->on_request = make_it_a_directory;
	ASSERT_EQ(-EIO, srv_result(fstat(fd, &st)));
	ASSERT_EQ(-EIO, srv_result(pread(fd, back, BLOCK, 0)));
	ASSERT_EQ(-EIO, srv_result(pwrite(fd, data + 5, BLOCK, 0)));
	ASSERT_EQ(-EIO, srv_result(splice(pipes[0], NULL, fd, NULL, 10, 0)));
	close(fd);
	close(pipes[0]);
	close(pipes[1]);
	ASSERT_EQ(0, srv_unmount(SPARE));
}

/* Reads move no atime there, and nothing is asked for anew. */
TEST_F(life, read_only_mount)
{
	struct stat st;
	int fd;

	self->env.srv->valid = 600;
	env_start(_metadata, &self->env);
	ASSERT_EQ(0, mount(NULL, SRV_MNT, NULL, MS_REMOUNT | MS_RDONLY, NULL));
	fd = open(FILE_MNT, O_RDONLY);
	ASSERT_LE(0, fd);
	ASSERT_EQ(0, fstat(fd, &st));
	srv_reset_counts(self->env.srv);
	ASSERT_TRUE(reads(fd, spare_data));
	ASSERT_EQ(0, fstat(fd, &st));
	ASSERT_EQ(0, self->env.srv->seen[FUSE_GETATTR]);
	close(fd);
	ASSERT_EQ(0, srv_unmount(SPARE));
}

/* Another file takes its name, and then it is cut, all behind our back. */
TEST_F(life, replaced_and_cut_below)
{
	int fd, other;
	pid_t pid;
	char *map;
	int status;

	ASSERT_EQ(0, truncate(SPARE_FILE, 2 * BLOCK));
	env_start(_metadata, &self->env);
	fd = open(FILE_MNT, O_RDWR);
	ASSERT_LE(0, fd);
	map = mmap(NULL, 2 * BLOCK, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	ASSERT_NE(MAP_FAILED, map);
	ASSERT_EQ(0, map[BLOCK]);
	other = open(SPARE_FILE, O_RDWR | O_CLOEXEC);
	ASSERT_LE(0, other);
	ASSERT_TRUE(make_lower(SPARE "/new", 0666, BLOCK));
	ASSERT_EQ(0, rename(SPARE "/new", SPARE_FILE));
	ASSERT_TRUE(reads(fd, spare_data));
	ASSERT_EQ(BLOCK, pwrite(other, data + 7, BLOCK, 0));
	ASSERT_TRUE(reads(fd, data + 7));
	ASSERT_EQ(0, memcmp(map, data + 7, BLOCK));

	ASSERT_EQ(0, ftruncate(other, 100));
	ASSERT_EQ(100, pread(fd, back, BLOCK, 0));
	ASSERT_EQ(0, memcmp(data + 7, back, 100));
	ASSERT_EQ(0, pread(fd, back, BLOCK, 100));
	pid = fork();
	ASSERT_LE(0, pid);
	if (!pid) {
		map[BLOCK] = 1;
		_exit(0);
	}
	ASSERT_EQ(pid, waitpid(pid, &status, 0));
	ASSERT_TRUE(WIFSIGNALED(status));
	ASSERT_EQ(SIGBUS, WTERMSIG(status));
	ASSERT_EQ(BLOCK, pwrite(fd, data + 8, BLOCK, BLOCK));
	ASSERT_EQ(2 * BLOCK, size_of(other));
	ASSERT_EQ(0, memcmp(map + BLOCK, data + 8, BLOCK));
	ASSERT_EQ(0, self->env.srv->seen[FUSE_READ]);
	ASSERT_EQ(0, self->env.srv->seen[FUSE_WRITE]);
	ASSERT_EQ(0, munmap(map, 2 * BLOCK));
	close(other);
	close(fd);
	ASSERT_TRUE(srv_wait(self->env.srv, FUSE_RELEASE, 1));
	ASSERT_EQ(0, srv_unmount(SPARE));
}

/* RELEASE comes after the last piece of the last mapping. */
TEST_F(life, mapping_in_pieces)
{
	char *map, *private;
	int fd, status;
	pid_t pid;

	ASSERT_EQ(0, truncate(SPARE_FILE, 3 * BLOCK));
	env_start(_metadata, &self->env);
	fd = open(FILE_MNT, O_RDWR);
	ASSERT_LE(0, fd);
	map = mmap(NULL, 3 * BLOCK, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	ASSERT_NE(MAP_FAILED, map);
	private = mmap(NULL, BLOCK, PROT_READ | PROT_WRITE, MAP_PRIVATE, fd, 0);
	ASSERT_NE(MAP_FAILED, private);
	close(fd);
	pid = fork();
	ASSERT_LE(0, pid);
	if (!pid) {
		memset(map + BLOCK, 'c', BLOCK);
		memset(private, 'c', BLOCK);
		_exit(0);
	}
	ASSERT_EQ(pid, waitpid(pid, &status, 0));
	ASSERT_EQ(0, status);
	ASSERT_EQ('c', map[2 * BLOCK - 1]);
	ASSERT_EQ(0, memcmp(spare_data, private, BLOCK));
	ASSERT_EQ(0, munmap(map + BLOCK, BLOCK));
	ASSERT_EQ(0, mprotect(map + 2 * BLOCK, BLOCK, PROT_READ));
	ASSERT_EQ(0, munmap(map, BLOCK));
	ASSERT_EQ(0, munmap(private, BLOCK));
	ASSERT_TRUE(round_trip());
	ASSERT_EQ(0, self->env.srv->seen[FUSE_RELEASE]);
	ASSERT_EQ(0, map[2 * BLOCK]);
	ASSERT_EQ(-1, umount2(SPARE, 0));
	ASSERT_EQ(EBUSY, errno);
	ASSERT_EQ(0, munmap(map + 2 * BLOCK, BLOCK));
	ASSERT_TRUE(srv_wait(self->env.srv, FUSE_RELEASE, 1));
	ASSERT_EQ(0, srv_unmount(SPARE));
	ASSERT_EQ(0, self->env.srv->seen[FUSE_READ]);
}

/* A child has the file of its parent. */
TEST_F(life, fork)
{
	int fd, status;
	pid_t pid;

	env_start(_metadata, &self->env);
	fd = open(FILE_MNT, O_RDWR);
	ASSERT_LE(0, fd);
	pid = fork();
	ASSERT_LE(0, pid);
	if (!pid)
		_exit(!reads(fd, spare_data) || write(fd, data, 10) != 10);
	ASSERT_EQ(pid, waitpid(pid, &status, 0));
	ASSERT_EQ(0, status);
	ASSERT_EQ(10, lseek(fd, 0, SEEK_CUR));
	ASSERT_TRUE(round_trip());
	ASSERT_EQ(0, self->env.srv->seen[FUSE_RELEASE]);
	ASSERT_EQ(10, pread(fd, back, 10, 0));
	ASSERT_EQ(0, memcmp(data, back, 10));
	close(fd);
	ASSERT_TRUE(srv_wait(self->env.srv, FUSE_RELEASE, 1));
	ASSERT_EQ(0, srv_unmount(SPARE));
	ASSERT_EQ(0, self->env.srv->seen[FUSE_READ]);
	ASSERT_EQ(0, self->env.srv->seen[FUSE_WRITE]);
}

union fd_message {
	struct cmsghdr header;
	char space[CMSG_SPACE(sizeof(int))];
};

static bool send_fd(int sock, int fd)
{
	union fd_message control = {
		.header = {
			.cmsg_len = CMSG_LEN(sizeof(int)),
			.cmsg_level = SOL_SOCKET,
			.cmsg_type = SCM_RIGHTS,
		},
	};
	struct iovec iov = { "x", 1 };
	struct msghdr msg = {
		.msg_iov = &iov,
		.msg_iovlen = 1,
		.msg_control = &control,
		.msg_controllen = sizeof(control),
	};

	memcpy(CMSG_DATA(&control.header), &fd, sizeof(fd));
	return sendmsg(sock, &msg, 0) == 1;
}

static int receive_fd(int sock)
{
	union fd_message control;
	char byte;
	struct iovec iov = { &byte, 1 };
	struct msghdr msg = {
		.msg_iov = &iov,
		.msg_iovlen = 1,
		.msg_control = &control,
		.msg_controllen = sizeof(control),
	};
	int fd;

	if (recvmsg(sock, &msg, 0) != 1 || !msg.msg_controllen)
		return -1;
	memcpy(&fd, CMSG_DATA(&control.header), sizeof(fd));
	return fd;
}

/* The opener is dead, its file travels on. */
TEST_F(life, scm_rights)
{
	int fd, status, sock[2];
	pid_t pid;

	env_start(_metadata, &self->env);
	ASSERT_EQ(0, socketpair(AF_UNIX, SOCK_STREAM, 0, sock));
	pid = fork();
	ASSERT_LE(0, pid);
	if (!pid) {
		fd = open(FILE_MNT, O_RDWR);
		_exit(fd < 0 || !send_fd(sock[0], fd));
	}
	ASSERT_EQ(pid, waitpid(pid, &status, 0));
	ASSERT_EQ(0, status);
	ASSERT_TRUE(round_trip());
	ASSERT_EQ(0, self->env.srv->seen[FUSE_RELEASE]);
	fd = receive_fd(sock[1]);
	ASSERT_LE(0, fd);
	ASSERT_TRUE(reads(fd, spare_data));
	ASSERT_EQ(10, pwrite(fd, data, 10, 0));
	close(fd);
	ASSERT_TRUE(srv_wait(self->env.srv, FUSE_RELEASE, 1));
	ASSERT_EQ(0, srv_unmount(SPARE));
	ASSERT_EQ(0, self->env.srv->seen[FUSE_READ]);
	ASSERT_EQ(0, self->env.srv->seen[FUSE_WRITE]);
	close(sock[0]);
	close(sock[1]);
}

/* A mount stands on another, each passes through. */

FIXTURE(stack) {
	struct env env;
	struct srv *outer;
};

FIXTURE_SETUP(stack)
{
	set_up(_metadata, &self->env, "tmpfs", BY_REQUEST);
	env_start(_metadata, &self->env);
	ASSERT_EQ(0, mkdir(OUTER, 0700));
	self->outer = srv_new();
	ASSERT_NE(NULL, self->outer);
	self->outer->lower = open(SRV_MNT, O_PATH | O_DIRECTORY);
	ASSERT_LE(0, self->outer->lower);
	self->outer->mode = SRV_PASSTHROUGH;
}

FIXTURE_TEARDOWN(stack)
{
	close(self->outer->lower);
	EXPECT_EQ(0, srv_stop(self->outer));
	tear_down(_metadata, &self->env);
}

TEST_F(stack, of_two)
{
	char *map;
	int fd;

	self->outer->max_stack_depth = 2;
	ASSERT_EQ(0, srv_start(self->outer, OUTER));
	fd = open(OUTER "/file", O_RDWR);
	ASSERT_LE(0, fd);
	ASSERT_TRUE(reads(fd, data));
	ASSERT_EQ(BLOCK, pwrite(fd, data + 3, BLOCK, 4 * BLOCK));
	ASSERT_EQ(5 * BLOCK, size_of(fd));
	ASSERT_TRUE(lower_is(5 * BLOCK, 4 * BLOCK, data + 3, BLOCK));
	ASSERT_TRUE(splice_to(fd, data + 4, BLOCK, 5 * BLOCK));
	ASSERT_TRUE(lower_is(6 * BLOCK, 5 * BLOCK, data + 4, BLOCK));
	map = mmap(NULL, BLOCK, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	ASSERT_NE(MAP_FAILED, map);
	ASSERT_EQ(0, memcmp(data, map, BLOCK));
	memcpy(map, data + 5, BLOCK);
	ASSERT_TRUE(lower_is(6 * BLOCK, 0, data + 5, BLOCK));
	ASSERT_EQ(0, fsync(fd));
	ASSERT_EQ(0, ftruncate(fd, BLOCK));
	ASSERT_EQ(0, munmap(map, BLOCK));
	ASSERT_EQ(0, fcntl(fd, F_SETFL, O_APPEND));
	ASSERT_EQ(100, write(fd, data, 100));
	ASSERT_TRUE(lower_is(BLOCK + 100, BLOCK, data, 100));
	close(fd);
	ASSERT_TRUE(srv_wait(self->env.srv, FUSE_RELEASE, 1));
	ASSERT_EQ(0, self->outer->seen[FUSE_READ]);
	ASSERT_EQ(0, self->outer->seen[FUSE_WRITE]);
	ASSERT_EQ(0, self->env.srv->seen[FUSE_READ]);
	ASSERT_EQ(0, self->env.srv->seen[FUSE_WRITE]);
}

static int attach_or_not(struct srv *srv, struct srv_req *req,
			 struct fuse_entry_out *entry,
			 struct fuse_open_out *out)
{
	attached = srv_attach(req->dev, req->in.unique, out->fh);
	return SRV_GO_ON;
}

/* The depth that is allowed by default is no more than one. */
TEST_F(stack, of_two_is_too_deep)
{
	int fd;

	self->outer->mode = SRV_PLAIN;
	self->outer->on_open = attach_or_not;
	ASSERT_EQ(0, srv_start(self->outer, OUTER));
	fd = open(OUTER "/file", O_RDWR);
	ASSERT_LE(0, fd);
	ASSERT_EQ(-ELOOP, attached);
	ASSERT_TRUE(reads(fd, data));
	ASSERT_EQ(1, self->outer->seen[FUSE_READ]);
	ASSERT_EQ(0, self->env.srv->seen[FUSE_READ]);
	close(fd);
}

TEST_HARNESS_MAIN
