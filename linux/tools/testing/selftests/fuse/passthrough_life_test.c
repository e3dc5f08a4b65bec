// SPDX-License-Identifier: GPL-2.0
/*
 * Life and death of lower files: what becomes of one when the open fails, the
 * opener is killed, the connection is aborted or the server dies.
 *
 * Most tests attach a file of a file system of its own, SPARE, and unmount
 * that: it is busy as long as anybody holds the file.
 */
#define _GNU_SOURCE
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/socket.h>
#include <sys/statfs.h>
#include <sys/syscall.h>
#include <linux/aio_abi.h>
#include <linux/fs.h>

#include "fuse_test_files.h"

#define SPARE		SRV_BASE "/spare"
#define SPARE_FILE	SPARE "/file"
#define OUTER		SRV_BASE "/outer"

/* What is in SPARE_FILE: other data than in LOWER */
#define spare_data	(data + 16 * BLOCK)

static bool make_spare(void)
{
	return !mkdir(SPARE, 0700) &&
	       !mount("tmpfs", SPARE, "tmpfs", 0, NULL) &&
	       make_lower(SPARE_FILE, 0666, 0) &&
	       !truncate(SPARE_FILE, BLOCK);
}

static bool fill_spare(void)
{
	int fd = open(SPARE_FILE, O_WRONLY);
	bool filled = pwrite(fd, spare_data, BLOCK, 0) == BLOCK;

	close(fd);
	return filled;
}

/* What the server says to an open, after it has attached SPARE_FILE */
struct answer {
	bool no_attach;
	int error;
	__u32 open_flags;
	__s32 backing_id;
	__u64 nodeid;
	__u32 mode;
};

static struct answer answer;
static int spare_flags = O_RDWR;
static atomic_int attached = 1;

/* The kernel's reference is the only one. */
static int attach_spare(struct srv_req *req)
{
	int err, fd = open(SPARE_FILE, spare_flags | O_CLOEXEC);

	err = srv_attach(req->dev, req->in.unique, fd);
	close(fd);
	return err;
}

static int give_answer(struct srv *srv, struct srv_req *req,
		       struct fuse_entry_out *entry, struct fuse_open_out *out)
{
	if (!answer.no_attach)
		attached = attach_spare(req);
	out->open_flags |= answer.open_flags;
	out->backing_id = answer.backing_id;
	if (entry && answer.nodeid)
		entry->nodeid = answer.nodeid;
	if (entry && answer.mode)
		entry->attr.mode = answer.mode;
	return answer.error;
}

/* Of what SRV_LOWER is may be chosen. */
static void set_up(struct __test_metadata *_metadata, struct env *env,
		   const char *fs, enum way way)
{
	env_setup(_metadata, env, fs, way, 4 * BLOCK);
	env->srv->valid = 0;
	ASSERT_TRUE(make_spare());
	ASSERT_TRUE(fill_spare());
}

static void tear_down(struct __test_metadata *_metadata, struct env *env)
{
	env_teardown(_metadata, env);
	/* Unless the test has done so */
	if (umount2(SPARE, 0))
		EXPECT_EQ(EINVAL, errno);
}

/* Reads the first block, and says whether it is this one. */
static bool reads(int fd, const char *bytes)
{
	memset(back, 0x55, BLOCK);
	return pread(fd, back, BLOCK, 0) == BLOCK &&
	       !memcmp(back, bytes, BLOCK);
}

/* All requests of before have been read by a server of one thread. */
static bool round_trip(void)
{
	struct statfs st;

	return !statfs(SRV_MNT, &st);
}

/* Answers to an open that has its lower file */

FIXTURE(answer) {
	struct env env;
};

FIXTURE_VARIANT(answer) {
	int flags;
	struct answer answer;
	int result;
	bool release;
	bool no_capability;
};

#define NEW	(O_CREAT | O_EXCL | O_RDWR)
#define TMP	(O_TMPFILE | O_RDWR)

FIXTURE_VARIANT_ADD(answer, open) { .flags = O_RDWR, .release = true };
FIXTURE_VARIANT_ADD(answer, create) { .flags = NEW, .release = true };
FIXTURE_VARIANT_ADD(answer, tmpfile) { .flags = TMP, .release = true };
/* Errors, for which there is no open file at the server */
FIXTURE_VARIANT_ADD(answer, open_error) {
	.flags = O_RDWR, .answer.error = -EACCES, .result = -EACCES
};

FIXTURE_VARIANT_ADD(answer, create_error) {
	.flags = NEW, .answer.error = -EDQUOT, .result = -EDQUOT
};

FIXTURE_VARIANT_ADD(answer, tmpfile_error) {
	.flags = TMP, .answer.error = -ENOSPC, .result = -ENOSPC
};

/* The kernel then tries MKNOD, which the server has not either. */
FIXTURE_VARIANT_ADD(answer, create_enosys) {
	.flags = NEW, .answer.error = -ENOSYS, .result = -ENOSYS
};

FIXTURE_VARIANT_ADD(answer, tmpfile_enosys) {
	.flags = TMP, .answer.error = -ENOSYS, .result = -EOPNOTSUPP
};

/* Answers that can't be honoured */
FIXTURE_VARIANT_ADD(answer, open_stream) {
	.flags = O_RDWR, .answer.open_flags = FOPEN_STREAM,
	.result = -EIO, .release = true
};

FIXTURE_VARIANT_ADD(answer, create_stream) {
	.flags = NEW, .answer.open_flags = FOPEN_STREAM,
	.result = -EIO, .release = true
};

FIXTURE_VARIANT_ADD(answer, tmpfile_stream) {
	.flags = TMP, .answer.open_flags = FOPEN_STREAM,
	.result = -EIO, .release = true
};

FIXTURE_VARIANT_ADD(answer, open_id_too) {
	.flags = O_RDWR, .answer.open_flags = FOPEN_PASSTHROUGH,
	.result = -EIO, .release = true
};

FIXTURE_VARIANT_ADD(answer, create_id_too) {
	.flags = NEW, .answer.open_flags = FOPEN_PASSTHROUGH,
	.answer.backing_id = 1, .result = -EIO, .release = true
};

FIXTURE_VARIANT_ADD(answer, tmpfile_id_too) {
	.flags = TMP, .answer.open_flags = FOPEN_PASSTHROUGH,
	.answer.backing_id = 1, .result = -EIO, .release = true
};

FIXTURE_VARIANT_ADD(answer, open_id_0) {
	.flags = O_RDWR, .answer.open_flags = FOPEN_PASSTHROUGH,
	.answer.no_attach = true, .result = -EIO, .release = true
};

FIXTURE_VARIANT_ADD(answer, open_no_such_id) {
	.flags = O_RDWR, .answer.open_flags = FOPEN_PASSTHROUGH,
	.answer.no_attach = true, .answer.backing_id = 7,
	.result = -EIO, .release = true
};

FIXTURE_VARIANT_ADD(answer, create_negative_id) {
	.flags = NEW, .answer.open_flags = FOPEN_PASSTHROUGH,
	.answer.no_attach = true, .answer.backing_id = -1,
	.result = -EIO, .release = true
};

FIXTURE_VARIANT_ADD(answer, open_not_negotiated) {
	.flags = O_RDWR, .answer.open_flags = FOPEN_PASSTHROUGH,
	.answer.no_attach = true, .answer.backing_id = 1,
	.result = -EIO, .release = true, .no_capability = true
};

/* Malformed ones, which open nothing either */
FIXTURE_VARIANT_ADD(answer, create_root) {
	.flags = NEW, .answer.nodeid = FUSE_ROOT_ID, .result = -EIO
};

FIXTURE_VARIANT_ADD(answer, create_directory) {
	.flags = NEW, .answer.mode = S_IFDIR | 0755, .result = -EIO
};

FIXTURE_VARIANT_ADD(answer, tmpfile_root) {
	.flags = TMP, .answer.nodeid = FUSE_ROOT_ID, .result = -EIO
};

FIXTURE_VARIANT_ADD(answer, tmpfile_fifo) {
	.flags = TMP, .answer.mode = S_IFIFO | 0644, .result = -EIO
};

FIXTURE_SETUP(answer)
{
	set_up(_metadata, &self->env, "tmpfs", PLAIN);
	self->env.srv->on_open = give_answer;
	self->env.srv->no_capability = variant->no_capability;
	answer = variant->answer;
	env_start(_metadata, &self->env);
}

FIXTURE_TEARDOWN(answer)
{
	tear_down(_metadata, &self->env);
}

TEST_F(answer, keeps_nothing)
{
	const char *path = FILE_MNT;
	int fd;

	if (variant->flags == NEW)
		path = SRV_MNT "/new";
	if (variant->flags == TMP)
		path = SRV_MNT;
	fd = srv_result(open(path, variant->flags, 0600));
	ASSERT_EQ(variant->answer.no_attach, attached);
	ASSERT_EQ(variant->result, fd < 0 ? fd : 0);
	if (fd >= 0) {
		ASSERT_EQ(-1, umount2(SPARE, 0));
		ASSERT_EQ(EBUSY, errno);
		ASSERT_EQ(BLOCK, pwrite(fd, data, BLOCK, 0));
		ASSERT_TRUE(reads(fd, data));
		ASSERT_EQ(0, self->env.srv->seen[FUSE_READ]);
		ASSERT_EQ(0, self->env.srv->seen[FUSE_WRITE]);
		close(fd);
	}
	ASSERT_EQ(0, srv_unmount(SPARE));
	ASSERT_TRUE(round_trip());
	ASSERT_EQ(variant->release, self->env.srv->seen[FUSE_RELEASE]);
}

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

/* The opener is killed while its request waits. */

FIXTURE(killed) {
	struct env env;
};

FIXTURE_VARIANT(killed) {
	bool attach_first;
	int error;
};

FIXTURE_VARIANT_ADD(killed, after_ioctl) { true, 0 };
FIXTURE_VARIANT_ADD(killed, after_ioctl_error) { true, -EINTR };
FIXTURE_VARIANT_ADD(killed, before_ioctl) { false, 0 };
FIXTURE_VARIANT_ADD(killed, before_ioctl_error) { false, -EINTR };

FIXTURE_SETUP(killed)
{
	set_up(_metadata, &self->env, "tmpfs", PLAIN);
	self->env.srv->by_hand = true;
	env_start(_metadata, &self->env);
}

FIXTURE_TEARDOWN(killed)
{
	tear_down(_metadata, &self->env);
}

TEST_F(killed, opener)
{
	static struct srv_req req, other;
	const struct fuse_interrupt_in *interrupt = (void *)other.arg;
	struct fuse_open_out out = { 0 };
	int status;
	pid_t pid;

	pid = fork();
	ASSERT_LE(0, pid);
	if (!pid)
		_exit(open(FILE_MNT, O_RDWR) < 0);
	ASSERT_EQ(0, srv_take(self->env.srv, FUSE_OPEN, &req));
	if (variant->attach_first)
		ASSERT_EQ(0, attach_spare(&req));
	ASSERT_EQ(0, kill(pid, SIGKILL));
	ASSERT_EQ(0, srv_take(self->env.srv, FUSE_INTERRUPT, &other));
	ASSERT_EQ(req.in.unique, interrupt->unique);
	/* It waits for its answer all the same. */
	if (!variant->attach_first)
		ASSERT_EQ(0, attach_spare(&req));
	if (variant->error) {
		ASSERT_EQ(0, srv_reply(&req, variant->error, NULL, 0));
	} else {
		ASSERT_EQ(0, srv_reply_open(&req, NULL, &out));
		ASSERT_EQ(0, srv_take(self->env.srv, FUSE_RELEASE, &other));
		ASSERT_EQ(0, srv_reply(&other, 0, NULL, 0));
	}
	ASSERT_EQ(pid, waitpid(pid, &status, 0));
	ASSERT_TRUE(WIFSIGNALED(status));
	ASSERT_EQ(-ENOENT, attach_spare(&req));
	ASSERT_EQ(0, srv_unmount(SPARE));
}

/* The connection ends while an open waits that has its lower file. */

FIXTURE(cut) {
	struct env env;
};

FIXTURE_VARIANT(cut) {
	bool close;
};

FIXTURE_VARIANT_ADD(cut, by_abort) { false };
FIXTURE_VARIANT_ADD(cut, by_close) { true };

FIXTURE_SETUP(cut)
{
	set_up(_metadata, &self->env, "tmpfs", PLAIN);
	self->env.srv->by_hand = true;
	env_start(_metadata, &self->env);
}

FIXTURE_TEARDOWN(cut)
{
	tear_down(_metadata, &self->env);
}

TEST_F(cut, waiting_open)
{
	static struct srv_req req;
	struct fuse_open_out out = { 0 };
	struct srv_opener opener;

	ASSERT_EQ(0, srv_opener_start(&opener, FILE_MNT, O_RDWR));
	ASSERT_EQ(0, srv_take(self->env.srv, FUSE_OPEN, &req));
	ASSERT_EQ(0, attach_spare(&req));
	if (variant->close) {
		close(self->env.srv->dev);
		self->env.srv->dev = -1;
	} else {
		ASSERT_EQ(0, srv_abort(self->env.srv));
		/* What comes too late does nothing. */
		ASSERT_EQ(-ENOENT, srv_reply_open(&req, NULL, &out));
		ASSERT_EQ(-ENOTCONN, attach_spare(&req));
	}
	ASSERT_EQ(-ECONNABORTED, srv_opener_wait(&opener));
	ASSERT_EQ(0, srv_unmount(SPARE));
}

/* What is on the disk, and not in the page cache alone */

static int raw_fd;
static off_t raw_offset;

/* Syncs the file as it is, and remembers where its first block lies. */
static bool find_raw(void)
{
	int fd = open(LOWER, O_RDWR), block = 0, size = 0;
	bool found = !fsync(fd) && !ioctl(fd, FIBMAP, &block) && block &&
		     !ioctl(fd, FIGETBSZ, &size);

	close(fd);
	raw_fd = open("/dev/ram0", O_RDONLY | O_DIRECT | O_CLOEXEC);
	raw_offset = (off_t)block * size;
	return found && size >= 512;
}

static bool on_disk(const char *bytes)
{
	memset(back, 0x55, BLOCK);
	return pread(raw_fd, back, 512, raw_offset) == 512 &&
	       !memcmp(back, bytes, 512);
}

FIXTURE(disk) {
	struct env env;
};

FIXTURE_SETUP(disk)
{
	set_up(_metadata, &self->env, "ext4", BY_REQUEST);
	ASSERT_TRUE(find_raw());
	ASSERT_TRUE(on_disk(data));
}

FIXTURE_TEARDOWN(disk)
{
	close(raw_fd);
	tear_down(_metadata, &self->env);
}

static int lower_flags;

/* Attaches the lower file, opened with flags of the server's own. */
static int attach_with_flags(struct srv *srv, struct srv_req *req,
			     struct fuse_entry_out *entry,
			     struct fuse_open_out *out)
{
	int fd = open(LOWER, lower_flags | O_CLOEXEC);

	attached = srv_attach(req->dev, req->in.unique, fd);
	close(fd);
	return SRV_GO_ON;
}

static bool splice_to(int fd, const char *bytes, size_t len, loff_t offset)
{
	int end[2];
	bool done;

	if (pipe(end))
		return false;
	done = write(end[1], bytes, len) == (ssize_t)len &&
	       splice(end[0], NULL, fd, &offset, len, 0) == (ssize_t)len;
	close(end[0]);
	close(end[1]);
	return done;
}

/* The opener did not ask for O_SYNC, the server did. */
TEST_F(disk, synchronous_lower_file)
{
	static const int sync[] = { 0, O_DSYNC, O_SYNC };
	unsigned int i;
	int fd;

	self->env.srv->mode = SRV_PLAIN;
	self->env.srv->on_open = attach_with_flags;
	env_start(_metadata, &self->env);
	for (i = 0; i < ARRAY_SIZE(sync); i++) {
		lower_flags = O_RDWR | sync[i];
		fd = open(FILE_MNT, O_RDWR);
		ASSERT_LE(0, fd);
		ASSERT_EQ(0, attached);
		ASSERT_EQ(BLOCK, pwrite(fd, data + BLOCK + i, BLOCK, 0));
		ASSERT_EQ(!!sync[i], on_disk(data + BLOCK + i));
		ASSERT_TRUE(splice_to(fd, data + 2 * BLOCK + i, BLOCK, 0));
		ASSERT_EQ(!!sync[i], on_disk(data + 2 * BLOCK + i));
		close(fd);
	}
	ASSERT_EQ(0, self->env.srv->seen[FUSE_WRITE]);
}

/* The opener asks for it, of what is spliced too. */
TEST_F(disk, synchronous_opener)
{
	static const int sync[] = { O_DSYNC, O_SYNC };
	unsigned int i;
	int fd;

	env_start(_metadata, &self->env);
	for (i = 0; i < ARRAY_SIZE(sync); i++) {
		fd = open(FILE_MNT, O_RDWR | sync[i]);
		ASSERT_LE(0, fd);
		ASSERT_EQ(BLOCK, pwrite(fd, data + BLOCK + i, BLOCK, 0));
		ASSERT_TRUE(on_disk(data + BLOCK + i));
		ASSERT_TRUE(splice_to(fd, data + 2 * BLOCK + i, BLOCK, 0));
		ASSERT_TRUE(on_disk(data + 2 * BLOCK + i));
		close(fd);
	}
	ASSERT_EQ(0, self->env.srv->seen[FUSE_WRITE]);
}

static bool set_append_only(bool on)
{
	int flags = on ? FS_APPEND_FL : 0;
	int fd = open(LOWER, O_RDONLY);
	bool done = !ioctl(fd, FS_IOC_SETFLAGS, &flags);

	close(fd);
	return done;
}

/* The opener did not ask for O_APPEND, and nobody sees it on the FUSE file. */
TEST_F(disk, append_only_lower_file)
{
	off_t end = 4 * BLOCK;
	int fd;

	self->env.srv->mode = SRV_PLAIN;
	self->env.srv->on_open = attach_with_flags;
	lower_flags = O_RDWR | O_APPEND;
	env_start(_metadata, &self->env);
	/* The server has its own descriptor for the attributes. */
	fd = open(FILE_MNT, O_RDONLY);
	ASSERT_LE(0, fd);
	close(fd);
	fd = open(FILE_MNT, O_RDWR);
	ASSERT_LE(0, fd);
	ASSERT_EQ(0, attached);
	ASSERT_TRUE(set_append_only(true));
	EXPECT_EQ(100, pwrite(fd, data + 7, 100, 0));
	EXPECT_TRUE(lower_is(end + 100, end, data + 7, 100));
	EXPECT_EQ(end + 100, size_of(fd));
	EXPECT_TRUE(splice_to(fd, data + 9, 50, 0));
	EXPECT_TRUE(lower_is(end + 150, end + 100, data + 9, 50));
	EXPECT_EQ(end + 150, size_of(fd));
	EXPECT_TRUE(lower_is(end + 150, 0, data, end));
	EXPECT_EQ(MAP_FAILED, mmap(NULL, BLOCK, PROT_READ | PROT_WRITE,
				   MAP_SHARED, fd, 0));
	EXPECT_EQ(EACCES, errno);
	EXPECT_EQ(-1, ftruncate(fd, 0));
	EXPECT_EQ(EPERM, errno);
	close(fd);
	ASSERT_TRUE(set_append_only(false));
	ASSERT_EQ(0, self->env.srv->seen[FUSE_WRITE]);
}

/* F_SETFL takes O_APPEND from the FUSE file, which nobody calls append-only. */
TEST_F(disk, append_only_since_the_open)
{
	int fd;

	self->env.srv->mode = SRV_BACKING_ID;
	env_start(_metadata, &self->env);
	fd = open(FILE_MNT, O_RDWR | O_APPEND);
	ASSERT_LE(0, fd);
	ASSERT_TRUE(set_append_only(true));
	ASSERT_EQ(0, fcntl(fd, F_SETFL, 0));
	EXPECT_EQ(100, pwrite(fd, data + 7, 100, 0));
	EXPECT_TRUE(lower_is(4 * BLOCK + 100, 4 * BLOCK, data + 7, 100));
	EXPECT_TRUE(lower_is(4 * BLOCK + 100, 0, data, 4 * BLOCK));
	ASSERT_TRUE(set_append_only(false));
	EXPECT_EQ(100, pwrite(fd, data + 9, 100, 0));
	EXPECT_TRUE(lower_is(4 * BLOCK + 100, 0, data + 9, 100));
	EXPECT_TRUE(splice_to(fd, data + 11, 50, 0));
	EXPECT_TRUE(lower_is(4 * BLOCK + 100, 0, data + 11, 50));
	close(fd);
	ASSERT_EQ(0, self->env.srv->seen[FUSE_WRITE]);
}

static int no_fsync(struct srv *srv, struct srv_req *req)
{
	return req->in.opcode == FUSE_FSYNC ? -ENOSYS : SRV_GO_ON;
}

/* The server never heard of fsync, the data is safe all the same. */
TEST_F(disk, fsync_enosys)
{
	int fd;

	self->env.srv->on_request = no_fsync;
	env_start(_metadata, &self->env);
	fd = open(FILE_MNT, O_RDWR);
	ASSERT_LE(0, fd);
	ASSERT_EQ(BLOCK, pwrite(fd, data + 1, BLOCK, 0));
	ASSERT_FALSE(on_disk(data + 1));
	ASSERT_EQ(0, fsync(fd));
	ASSERT_TRUE(on_disk(data + 1));
	ASSERT_EQ(BLOCK, pwrite(fd, data + 2, BLOCK, 0));
	ASSERT_FALSE(on_disk(data + 2));
	ASSERT_EQ(0, fdatasync(fd));
	ASSERT_TRUE(on_disk(data + 2));
	ASSERT_EQ(1, self->env.srv->seen[FUSE_FSYNC]);
	close(fd);
}

/* Files that are open when the server dies */

FIXTURE(dead) {
	struct env env;
};

FIXTURE_VARIANT(dead) {
	bool kill;
};

FIXTURE_VARIANT_ADD(dead, aborted) { false };
FIXTURE_VARIANT_ADD(dead, killed) { true };

FIXTURE_SETUP(dead)
{
	set_up(_metadata, &self->env, "ext4", BY_REQUEST);
	ASSERT_TRUE(find_raw());
	if (variant->kill)
		self->env.srv->uid = USER;
	env_start(_metadata, &self->env);
}

FIXTURE_TEARDOWN(dead)
{
	close(raw_fd);
	tear_down(_metadata, &self->env);
}

/* The last descriptors of the device go with the process. */
static bool die(struct srv *srv, bool by_kill)
{
	siginfo_t info;

	if (!by_kill)
		return !srv_abort(srv);
	close(srv->dev);
	srv->dev = -1;
	return !kill(srv->pid, SIGKILL) &&
	       !waitid(P_PID, srv->pid, &info, WEXITED | WNOWAIT);
}

TEST_F(dead, goes_on)
{
	int fd = open(FILE_MNT, O_RDWR);
	int append = open(FILE_MNT, O_WRONLY | O_APPEND);
	int direct = open(FILE_MNT, O_RDWR | O_DIRECT);
	struct stat st;
	char *map;

	ASSERT_LE(0, fd);
	ASSERT_LE(0, append);
	ASSERT_LE(0, direct);
	map = mmap(NULL, BLOCK, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	ASSERT_NE(MAP_FAILED, map);
	ASSERT_EQ(BLOCK, pwrite(fd, data + 1, BLOCK, BLOCK));
	ASSERT_TRUE(die(self->env.srv, variant->kill));

	ASSERT_TRUE(reads(fd, data));
	ASSERT_TRUE(reads(direct, data));
	ASSERT_EQ(BLOCK, pwrite(fd, data + 3, BLOCK, 0));
	ASSERT_EQ(0, memcmp(map, data + 3, BLOCK));
	ASSERT_FALSE(on_disk(data + 3));
	ASSERT_EQ(0, fsync(fd));
	ASSERT_TRUE(on_disk(data + 3));
	memcpy(map, data + 4, BLOCK);
	ASSERT_EQ(0, msync(map, BLOCK, MS_SYNC));
	ASSERT_TRUE(on_disk(data + 4));
	ASSERT_TRUE(splice_to(fd, data + 5, BLOCK, 0));
	ASSERT_EQ(0, fdatasync(fd));
	ASSERT_TRUE(on_disk(data + 5));
	ASSERT_EQ(BLOCK, pwrite(direct, data, BLOCK, 0));
	ASSERT_TRUE(on_disk(data));
	ASSERT_EQ(BLOCK, write(append, data + 6, BLOCK));
	ASSERT_TRUE(lower_is(5 * BLOCK, 4 * BLOCK, data + 6, BLOCK));
	ASSERT_TRUE(lower_is(5 * BLOCK, BLOCK, data + 1, BLOCK));
	ASSERT_EQ(0, munmap(map, BLOCK));
	map = mmap(NULL, BLOCK, PROT_READ, MAP_SHARED, fd, 0);
	ASSERT_NE(MAP_FAILED, map);
	ASSERT_EQ(0, memcmp(map, data, BLOCK));
	ASSERT_EQ(0, munmap(map, BLOCK));

	/* All else asks the server. */
	ASSERT_EQ(-1, fstat(fd, &st));
	ASSERT_EQ(ENOTCONN, errno);
	ASSERT_EQ(-1, ftruncate(fd, 0));
	ASSERT_EQ(ENOTCONN, errno);
	ASSERT_EQ(-1, open(FILE_MNT, O_RDONLY));
	ASSERT_EQ(ENOTCONN, errno);
	ASSERT_EQ(-1, umount2(SRV_LOWER, 0));
	ASSERT_EQ(EBUSY, errno);
	close(fd);
	close(append);
	close(direct);
}

/* The ioctl of one thread meets the answer of another. */

#define ROUNDS	10000
#define OVER	(3 * ROUNDS)

FIXTURE(race) {
	struct env env;
	pthread_t attacher;
};

static struct {
	atomic_int round;	/* odd: the attacher may try */
	atomic_int result;
	atomic_ullong unique;
	int dev;
	int spare;
	atomic_int delay;	/* of the answer, of the ioctl when negative */
	atomic_bool on_one_cpu;
} race;

static void pause_a_bit(void)
{
	if (race.on_one_cpu)
		sched_yield();
}

static void pause_bits(int n)
{
	while (n-- > 0)
		pause_a_bit();
}

static void *attach_in_race(void *arg)
{
	int round;

	for (round = 1;; round += 2) {
		while (race.round < round)
			pause_a_bit();
		if (race.round == OVER)
			return NULL;
		pause_bits(-race.delay);
		race.result = srv_attach(race.dev, race.unique, race.spare);
		race.round = round + 1;
	}
	return NULL;
}

static int answer_in_race(struct srv *srv, struct srv_req *req,
			  struct fuse_entry_out *entry,
			  struct fuse_open_out *out)
{
	int end;

	race.unique = req->in.unique;
	end = ++race.round + 1;
	pause_bits(race.delay);
	srv_reply_open(req, entry, out);
	while (race.round < end)
		pause_a_bit();
	return SRV_TAKEN;
}

FIXTURE_SETUP(race)
{
	set_up(_metadata, &self->env, "tmpfs", PLAIN);
	self->env.srv->on_open = answer_in_race;
	self->env.srv->valid = 3600;
	self->env.srv->open_flags = FOPEN_KEEP_CACHE | FOPEN_NOFLUSH;
	self->env.srv->timeout = 390;
	env_start(_metadata, &self->env);
	race.dev = self->env.srv->dev;
	race.spare = open(SPARE_FILE, O_RDWR | O_CLOEXEC);
	race.on_one_cpu = sysconf(_SC_NPROCESSORS_ONLN) == 1;
	ASSERT_LE(0, race.spare);
	ASSERT_EQ(0, pthread_create(&self->attacher, NULL, attach_in_race,
				    NULL));
}

FIXTURE_TEARDOWN(race)
{
	tear_down(_metadata, &self->env);
}

/*
 * Either the file has its lower one, or the ioctl said that it came too late.
 * What is read says which: the two have other first bytes.
 */
TEST_F_TIMEOUT(race, ioctl_and_answer, 400)
{
	int i, fd, won = 0, step = 16;
	bool in_time = false;
	char byte;

	ASSERT_NE(data[0], spare_data[0]);
	for (i = 0; again(i, ROUNDS, 60); i++) {
		fd = open(FILE_MNT, O_RDONLY);
		ASSERT_LE(0, fd);
		while (race.round < 2 * i + 2)
			pause_a_bit();
		ASSERT_EQ(1, pread(fd, &byte, 1, 0));
		/* Who wins again starts later, and again later. */
		if (in_time != !race.result)
			step = 16;
		else if (step < 256)
			step *= 2;
		in_time = !race.result;
		if (in_time) {
			ASSERT_EQ(spare_data[0], byte);
			won++;
			race.delay -= step;
		} else {
			ASSERT_EQ(-ENOENT, race.result);
			ASSERT_EQ(data[0], byte);
			race.delay += step;
		}
		ASSERT_EQ(0, close(fd));
	}
	race.round = OVER;
	ASSERT_EQ(0, pthread_join(self->attacher, NULL));
	TH_LOG("%d of %d ioctls came in time", won, i);
	/* It was a race, of which a slow machine sees few rounds. */
	ASSERT_LT(i / 50, won);
	ASSERT_GT(i - i / 50, won);
	close(race.spare);
	ASSERT_EQ(0, srv_unmount(SPARE));
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

/*
 * Buffers that are a cached mapping of the file itself: a fault on one asks
 * the server, which needs the locks of the lower file to answer.
 */

FIXTURE(recursion) {
	struct env env;
	int cached;
	int through;
	char *map;
};

FIXTURE_VARIANT(recursion) {
	const char *fs;
	int direct;
};

FIXTURE_VARIANT_ADD(recursion, xfs) { "xfs", 0 };
FIXTURE_VARIANT_ADD(recursion, xfs_direct) { "xfs", O_DIRECT };
FIXTURE_VARIANT_ADD(recursion, ext4) { "ext4", 0 };
FIXTURE_VARIANT_ADD(recursion, ext4_direct) { "ext4", O_DIRECT };
FIXTURE_VARIANT_ADD(recursion, tmpfs) { "tmpfs", 0 };

FIXTURE_SETUP(recursion)
{
	set_up(_metadata, &self->env, variant->fs, PLAIN);
	env_start(_metadata, &self->env);
	self->cached = open(FILE_MNT, O_RDWR);
	ASSERT_LE(0, self->cached);
	self->env.srv->mode = SRV_PASSTHROUGH;
	self->through = open(FILE_MNT, O_RDWR | variant->direct);
	ASSERT_LE(0, self->through);
	self->map = mmap(NULL, 4 * BLOCK, PROT_READ | PROT_WRITE, MAP_SHARED,
			 self->cached, 0);
	ASSERT_NE(MAP_FAILED, self->map);
}

FIXTURE_TEARDOWN(recursion)
{
	munmap(self->map, 4 * BLOCK);
	close(self->cached);
	close(self->through);
	tear_down(_metadata, &self->env);
}

TEST_F(recursion, write)
{
	/* None of its pages is there. */
	ASSERT_EQ(4 * BLOCK, pwrite(self->through, self->map, 4 * BLOCK,
				    4 * BLOCK));
	ASSERT_TRUE(lower_is(8 * BLOCK, 4 * BLOCK, data, 4 * BLOCK));
	ASSERT_LT(0, self->env.srv->seen[FUSE_READ]);
	ASSERT_EQ(0, self->env.srv->seen[FUSE_WRITE]);
}

TEST_F(recursion, write_over_the_buffer)
{
	ASSERT_EQ(2 * BLOCK, pwrite(self->through, self->map + BLOCK,
				    2 * BLOCK, 2 * BLOCK));
	ASSERT_TRUE(lower_is(4 * BLOCK, 0, data, 2 * BLOCK));
	ASSERT_EQ(4 * BLOCK, pread(self->through, back, 4 * BLOCK, 0));
	ASSERT_EQ(0, memcmp(data + BLOCK, back + 2 * BLOCK, BLOCK));
}

TEST_F(recursion, read)
{
	struct stat st;

	ASSERT_EQ(BLOCK, pread(self->through, self->map, BLOCK, 2 * BLOCK));
	ASSERT_EQ(0, memcmp(self->map, data + 2 * BLOCK, BLOCK));
	ASSERT_EQ(0, msync(self->map, BLOCK, MS_SYNC));
	ASSERT_TRUE(lower_is(4 * BLOCK, 0, data + 2 * BLOCK, BLOCK));
	ASSERT_EQ(0, fstat(self->through, &st));
	ASSERT_EQ(4 * BLOCK, st.st_size);
}

/*
 * The buffer is a mapping through passthrough, and what a cached open has left
 * in the page cache goes to the server before the first fault on it.
 */
TEST(aio_from_its_own_mapping)
{
	struct iocb iocb = { .aio_lio_opcode = IOCB_CMD_PWRITE }, *list = &iocb;
	aio_context_t ctx = 0;
	struct io_event event;
	int cached, through;
	struct env env = { 0 };
	struct srv *srv;
	char *map, *dirty;

	set_up(_metadata, &env, "ext4", PLAIN);
	srv = env.srv;
	srv->flags = FUSE_WRITEBACK_CACHE;
	env_start(_metadata, &env);
	cached = open(FILE_MNT, O_RDWR);
	ASSERT_LE(0, cached);
	srv->mode = SRV_PASSTHROUGH;
	through = open(FILE_MNT, O_RDWR);
	ASSERT_LE(0, through);
	/* The server may be asked to write by this open, and without alignment */
	ASSERT_EQ(0, fcntl(through, F_SETFL, O_DIRECT));
	dirty = mmap(NULL, BLOCK, PROT_READ | PROT_WRITE, MAP_SHARED, cached,
		     3 * BLOCK);
	ASSERT_NE(MAP_FAILED, dirty);
	memcpy(dirty, data + 9 * BLOCK, BLOCK);
	map = mmap(NULL, 2 * BLOCK, PROT_READ, MAP_SHARED, through, 0);
	ASSERT_NE(MAP_FAILED, map);
	ASSERT_EQ(0, srv->seen[FUSE_WRITE]);

	ASSERT_EQ(0, syscall(__NR_io_setup, 1, &ctx));
	iocb.aio_fildes = through;
	iocb.aio_buf = (uintptr_t)(map + BLOCK);
	iocb.aio_nbytes = BLOCK;
	ASSERT_EQ(1, syscall(__NR_io_submit, ctx, 1, &list));
	ASSERT_EQ(1, syscall(__NR_io_getevents, ctx, 1, 1, &event, NULL));
	ASSERT_EQ(BLOCK, event.res);
	ASSERT_EQ(0, syscall(__NR_io_destroy, ctx));
	/* And not because the guard had to end it */
	ASSERT_EQ(0, fsync(through));
	ASSERT_LT(0, srv->seen[FUSE_FSYNC]);
	ASSERT_TRUE(lower_is(4 * BLOCK, 0, data + BLOCK, BLOCK));
	ASSERT_TRUE(lower_is(4 * BLOCK, 3 * BLOCK, data + 9 * BLOCK, BLOCK));
	munmap(dirty, BLOCK);
	munmap(map, 2 * BLOCK);
	close(cached);
	close(through);
	tear_down(_metadata, &env);
}

/* The lower file system is frozen. */

FIXTURE(freeze) {
	struct env env;
	int lower;
	int fd;
	int dir;
};

FIXTURE_VARIANT(freeze) {
	const char *fs;
};

FIXTURE_VARIANT_ADD(freeze, ext4) { "ext4" };
FIXTURE_VARIANT_ADD(freeze, xfs) { "xfs" };
FIXTURE_VARIANT_ADD(freeze, ext4_disk) { "ext4-disk" };
FIXTURE_VARIANT_ADD(freeze, xfs_disk) { "xfs-disk" };

FIXTURE_SETUP(freeze)
{
	set_up(_metadata, &self->env, variant->fs, BY_REQUEST);
	env_start(_metadata, &self->env);
	self->fd = open(FILE_MNT, O_RDWR | O_DIRECT);
	ASSERT_LE(0, self->fd);
	self->lower = open(LOWER, O_RDWR);
	ASSERT_LE(0, self->lower);
	self->dir = open(SRV_LOWER, O_RDONLY | O_DIRECTORY);
	ASSERT_LE(0, self->dir);
}

FIXTURE_TEARDOWN(freeze)
{
	ioctl(self->dir, FITHAW);
	close(self->dir);
	close(self->lower);
	close(self->fd);
	tear_down(_metadata, &self->env);
}

/* An AIO write of some blocks of data to the start of the file */
struct aio_writer {
	pthread_t id;
	atomic_int tid;
	aio_context_t ctx;
	int fd;
	int submitted;
};

#define AIO_DEPTH	4

static void *submit_aio(void *arg)
{
	struct aio_writer *writer = arg;
	struct iocb iocb[AIO_DEPTH], *list[AIO_DEPTH];
	int i;

	for (i = 0; i < AIO_DEPTH; i++) {
		iocb[i] = (struct iocb){
			.aio_lio_opcode = IOCB_CMD_PWRITE,
			.aio_fildes = writer->fd,
			.aio_buf = (uintptr_t)(data + (i + 4) * BLOCK),
			.aio_nbytes = BLOCK,
			.aio_offset = i * BLOCK,
		};
		list[i] = &iocb[i];
	}
	writer->tid = gettid();
	writer->submitted = syscall(__NR_io_submit, writer->ctx, AIO_DEPTH,
				    list);
	return NULL;
}

/* All came, and wrote what they should. */
static bool aio_landed(struct aio_writer *writer)
{
	struct io_event event[AIO_DEPTH];
	int i;

	if (syscall(__NR_io_getevents, writer->ctx, AIO_DEPTH, AIO_DEPTH, event,
		    NULL) != AIO_DEPTH)
		return false;
	for (i = 0; i < AIO_DEPTH; i++)
		if (event[i].res != BLOCK)
			return false;
	return true;
}

/* The thread sleeps in the kernel where no signal wakes it. */
static bool wait_blocked(atomic_int *tid)
{
	char path[64], state = 0;
	time_t end = time(NULL) + 20;
	FILE *stat;

	while (!*tid)
		sched_yield();
	snprintf(path, sizeof(path), "/proc/self/task/%d/stat", *tid);
	while (state != 'D' && time(NULL) < end) {
		stat = fopen(path, "r");
		if (!stat || fscanf(stat, "%*d (%*[^)]) %c", &state) != 1)
			state = 0;
		if (stat)
			fclose(stat);
		sched_yield();
	}
	return state == 'D';
}

struct held_read {
	atomic_bool asked;
	atomic_bool go;
};

static int hold_read(struct srv *srv, struct srv_req *req)
{
	struct held_read *held = srv->data;

	if (req->in.opcode != FUSE_READ)
		return SRV_GO_ON;
	held->asked = true;
	while (!held->go)
		sched_yield();
	return SRV_GO_ON;
}

struct map_writer {
	pthread_t id;
	int fd;
	char *map;
	ssize_t result;
};

static void *write_map(void *arg)
{
	struct map_writer *w = arg;

	w->result = srv_result(pwrite(w->fd, w->map, 4 * BLOCK, 4 * BLOCK));
	return NULL;
}

/* Who waits for the server to fill the buffer does not hold up a freeze. */
TEST_F(freeze, while_the_buffer_is_filled)
{
	struct held_read held = { 0 };
	/* Nobody faults in for this one before its first attempt */
	struct map_writer w = { .fd = open(FILE_MNT, O_RDWR) };
	int cached;

	ASSERT_LE(0, w.fd);
	self->env.srv->mode = SRV_PLAIN;
	cached = open(FILE_MNT, O_RDONLY);
	ASSERT_LE(0, cached);
	w.map = mmap(NULL, 4 * BLOCK, PROT_READ, MAP_SHARED, cached, 0);
	ASSERT_NE(MAP_FAILED, w.map);
	self->env.srv->data = &held;
	self->env.srv->on_request = hold_read;
	ASSERT_EQ(0, pthread_create(&w.id, NULL, write_map, &w));
	while (!held.asked)
		sched_yield();
	EXPECT_EQ(0, ioctl(self->dir, FIFREEZE));
	held.go = true;
	EXPECT_EQ(0, ioctl(self->dir, FITHAW));
	ASSERT_EQ(0, pthread_join(w.id, NULL));
	ASSERT_EQ(4 * BLOCK, w.result);
	ASSERT_TRUE(lower_is(8 * BLOCK, 4 * BLOCK, data, 4 * BLOCK));
	ASSERT_EQ(0, self->env.srv->seen[FUSE_WRITE]);
	munmap(w.map, 4 * BLOCK);
	close(w.fd);
	close(cached);
}

/* A write waits for the thaw, a read does not. */
TEST_F(freeze, holds_aio)
{
	struct aio_writer writer = { .fd = self->fd };

	ASSERT_EQ(0, syscall(__NR_io_setup, AIO_DEPTH, &writer.ctx));
	ASSERT_EQ(0, ioctl(self->dir, FIFREEZE));
	ASSERT_EQ(0, pthread_create(&writer.id, NULL, submit_aio, &writer));
	ASSERT_TRUE(wait_blocked(&writer.tid));
	ASSERT_TRUE(reads(self->fd, data));
	ASSERT_TRUE(lower_is(4 * BLOCK, 0, data, 4 * BLOCK));
	ASSERT_EQ(0, ioctl(self->dir, FITHAW));
	ASSERT_EQ(0, pthread_join(writer.id, NULL));
	ASSERT_EQ(AIO_DEPTH, writer.submitted);
	ASSERT_TRUE(aio_landed(&writer));
	ASSERT_TRUE(lower_is(4 * BLOCK, 0, data + 4 * BLOCK, 4 * BLOCK));
	ASSERT_EQ(0, syscall(__NR_io_destroy, writer.ctx));
	ASSERT_EQ(0, self->env.srv->seen[FUSE_WRITE]);
}

/* The server dies while writes of its files wait for the thaw. */
TEST_F(dead, writes_in_flight)
{
	int dir = open(SRV_LOWER, O_RDONLY | O_DIRECTORY);
	struct aio_writer writer = { 0 };

	ASSERT_LE(0, dir);
	writer.fd = open(FILE_MNT, O_RDWR | O_DIRECT);
	ASSERT_LE(0, writer.fd);
	ASSERT_EQ(0, syscall(__NR_io_setup, AIO_DEPTH, &writer.ctx));
	ASSERT_EQ(0, ioctl(dir, FIFREEZE));
	ASSERT_EQ(0, pthread_create(&writer.id, NULL, submit_aio, &writer));
	ASSERT_TRUE(wait_blocked(&writer.tid));
	ASSERT_TRUE(die(self->env.srv, variant->kill));
	ASSERT_TRUE(lower_is(4 * BLOCK, 0, data, 4 * BLOCK));
	ASSERT_EQ(0, ioctl(dir, FITHAW));
	ASSERT_EQ(0, pthread_join(writer.id, NULL));
	ASSERT_EQ(AIO_DEPTH, writer.submitted);
	ASSERT_TRUE(aio_landed(&writer));
	ASSERT_TRUE(lower_is(4 * BLOCK, 0, data + 4 * BLOCK, 4 * BLOCK));
	ASSERT_EQ(0, syscall(__NR_io_destroy, writer.ctx));
	close(writer.fd);
	close(dir);
}

/* The protection of each write goes with its completion. */
TEST_F(freeze, waits_for_aio)
{
	struct aio_writer writer = { .fd = self->fd };
	int i;

	ASSERT_EQ(0, syscall(__NR_io_setup, AIO_DEPTH, &writer.ctx));
	for (i = 0; i < 20; i++) {
		submit_aio(&writer);
		ASSERT_EQ(AIO_DEPTH, writer.submitted);
		ASSERT_EQ(0, ioctl(self->dir, FIFREEZE));
		ASSERT_TRUE(aio_landed(&writer));
		ASSERT_TRUE(lower_is(4 * BLOCK, 0, data + 4 * BLOCK,
				     4 * BLOCK));
		ASSERT_EQ(0, ioctl(self->dir, FITHAW));
	}
	ASSERT_EQ(0, syscall(__NR_io_destroy, writer.ctx));
}

/* One pipe is spliced to the FUSE file and to the lower file. */
struct splicer {
	pthread_t id;
	int *pipe;
	int fd;
	atomic_bool *stop;
	long spliced;
};

static void *splice_on(void *arg)
{
	struct splicer *splicer = arg;
	loff_t offset;
	ssize_t n;

	while (!*splicer->stop) {
		if (write(splicer->pipe[1], data, BLOCK) != BLOCK)
			break;
		offset = 0;
		n = splice(splicer->pipe[0], NULL, splicer->fd, &offset, BLOCK,
			   SPLICE_F_NONBLOCK);
		if (n > 0)
			splicer->spliced += n;
	}
	return NULL;
}

/*
 * Whoever took the lock of the pipe before the freeze protection would wait
 * for the freeze, the freeze for the other, and the other for the pipe.
 */
TEST_F(freeze, among_splices)
{
	atomic_bool stop = false;
	struct splicer splicer[2];
	int i, end[2], fd;

	fd = open(FILE_MNT, O_RDWR);
	ASSERT_LE(0, fd);
	ASSERT_EQ(0, pipe2(end, O_NONBLOCK));
	for (i = 0; i < 2; i++) {
		splicer[i] = (struct splicer){
			.pipe = end,
			.fd = i ? self->lower : fd,
			.stop = &stop,
		};
		ASSERT_EQ(0, pthread_create(&splicer[i].id, NULL, splice_on,
					    &splicer[i]));
	}
	for (i = 0; again(i, 50, 4); i++) {
		ASSERT_EQ(0, ioctl(self->dir, FIFREEZE));
		ASSERT_EQ(0, ioctl(self->dir, FITHAW));
	}
	stop = true;
	for (i = 0; i < 2; i++) {
		ASSERT_EQ(0, pthread_join(splicer[i].id, NULL));
		ASSERT_LT(0, splicer[i].spliced);
	}
	close(fd);
	close(end[0]);
	close(end[1]);
}

TEST_HARNESS_MAIN
