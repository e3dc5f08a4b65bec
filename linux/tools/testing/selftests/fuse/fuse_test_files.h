/* SPDX-License-Identifier: GPL-2.0 */
/*
 * Lower files of the tests, what is in them, and who touches them.
 */
#ifndef FUSE_TEST_FILES_H
#define FUSE_TEST_FILES_H

#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <stdalign.h>
#include <stdbool.h>
#include <string.h>
#include <time.h>
#include <unistd.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <linux/fs.h>

#include "../kselftest_harness.h"
#include "fuse_server.h"

/* Kernels with every debug option are slow, and so are machines without KVM */
#undef TEST_TIMEOUT_DEFAULT
#define TEST_TIMEOUT_DEFAULT	60

#define BLOCK		4096
#define LOWER		SRV_LOWER "/file"
#define FILE_MNT	SRV_MNT "/file"
#define USER		1000

/*
 * Is there one more round?  A slow machine does what it can in @seconds, and a
 * twentieth of the @rounds at least.
 */
static inline bool again(int done, int rounds, int seconds)
{
	static time_t until;
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	if (!done)
		until = now.tv_sec + seconds;
	return done < rounds && (done < rounds / 20 || now.tv_sec < until);
}

/* How a test reaches its file */
enum way { BARE, PLAIN, BY_REQUEST, BY_ID };

static inline bool passes(enum way way)
{
	return way == BY_REQUEST || way == BY_ID;
}

static inline enum srv_mode mode_for(enum way way)
{
	if (way == PLAIN)
		return SRV_PLAIN;
	return way == BY_ID ? SRV_BACKING_ID : SRV_PASSTHROUGH;
}

/* What is written, and what was read */
static alignas(BLOCK) char data[1 << 20];
static alignas(BLOCK) char back[1 << 20];

static inline void make_data(void)
{
	unsigned int i, x = 1;

	for (i = 0; i < sizeof(data); i++) {
		x = x * 1103515245 + 12345;
		data[i] = x >> 16;
	}
}

/* A seed gives the same numbers everywhere. */
static inline unsigned int next_random(unsigned int *state)
{
	*state ^= *state << 13;
	*state ^= *state >> 17;
	*state ^= *state << 5;
	return *state;
}

static inline bool all_zero(const char *p, size_t len)
{
	return !len || (!p[0] && !memcmp(p, p + 1, len - 1));
}

static inline off_t size_of(int fd)
{
	struct stat st;

	return fstat(fd, &st) ? -errno : st.st_size;
}

/* A new lower file with the first @size bytes of data. */
static inline bool make_lower(const char *path, mode_t mode, size_t size)
{
	bool made;
	int fd;

	if (unlink(path) && errno != ENOENT)
		return false;
	fd = open(path, O_CREAT | O_EXCL | O_RDWR, 0600);
	made = fd >= 0 && !fchmod(fd, mode) &&
	       write(fd, data, size) == (ssize_t)size;
	close(fd);
	return made;
}

/* A file of ext4 without extents, where O_DIRECT fills no hole */
static inline bool map_by_blocks(int fd)
{
	const int by_extents = 0x00080000;	/* not in linux/fs.h */
	int flags;

	if (ioctl(fd, FS_IOC_GETFLAGS, &flags))
		return false;
	flags &= ~by_extents;
	return !ioctl(fd, FS_IOC_SETFLAGS, &flags);
}

static inline bool write_text(const char *path, const char *what)
{
	int fd = open(path, O_WRONLY);
	bool done = write(fd, what, strlen(what)) == (ssize_t)strlen(what);

	close(fd);
	return done;
}

/* LOWER has this size and, from @offset, these bytes; they are in back. */
static inline bool lower_is(off_t size, off_t offset, const char *bytes,
			    size_t len)
{
	int fd = open(LOWER, O_RDONLY);
	bool same;

	memset(back, 0x55, sizeof(back));
	same = fd >= 0 && size_of(fd) == size &&
	       pread(fd, back, len, offset) == (ssize_t)len &&
	       !memcmp(back, bytes, len);
	close(fd);
	return same;
}

/* Reads the first block, and says whether it is this one. */
static inline bool reads(int fd, const char *bytes)
{
	memset(back, 0x55, BLOCK);
	return pread(fd, back, BLOCK, 0) == BLOCK &&
	       !memcmp(back, bytes, BLOCK);
}

static inline bool splice_to(int fd, const char *bytes, size_t len,
			     loff_t offset)
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

static inline int remount_lower(unsigned long flags)
{
	return srv_result(mount(NULL, SRV_LOWER, NULL, MS_REMOUNT | flags,
				NULL));
}

/* A server for SRV_LOWER, to be started when a test has set what it needs. */
static inline struct srv *new_server(struct __test_metadata *_metadata,
				     enum way way)
{
	struct srv *srv = srv_new();

	ASSERT_NE(NULL, srv);
	srv->lower = open(SRV_LOWER, O_PATH | O_DIRECTORY);
	ASSERT_LE(0, srv->lower);
	srv->mode = mode_for(way);
	srv->valid = 3600;
	srv->options = "allow_other";
	return srv;
}

static inline void start_server(struct __test_metadata *_metadata,
				struct srv *srv)
{
	ASSERT_EQ(0, srv_start(srv, SRV_MNT));
	close(srv->lower);
	ASSERT_TRUE(!!(srv->offered & FUSE_PASSTHROUGH));
}

/* A server on SRV_MNT for SRV_LOWER. */
static inline struct srv *serve_lower(struct __test_metadata *_metadata,
				      enum way way, __u64 flags)
{
	struct srv *srv = new_server(_metadata, way);

	srv->flags = flags;
	/* For an overlay */
	srv->max_stack_depth = 2;
	start_server(_metadata, srv);
	return srv;
}

/**
 * struct env - a lower file system with LOWER in it, and a server
 * @srv: the server, NULL where it is BARE
 * @path: how the test reaches LOWER
 *
 *	env_setup(_metadata, &self->env, "ext4", BY_REQUEST, BLOCK);
 *	self->env.srv->threads = 3;
 *	env_start(_metadata, &self->env);
 *	...
 *	env_teardown(_metadata, &self->env);
 */
struct env {
	struct srv *srv;
	const char *path;
};

static inline void env_setup(struct __test_metadata *_metadata,
			     struct env *env, const char *fs, enum way way,
			     size_t size)
{
	make_data();
	ASSERT_EQ(0, srv_namespace());
	ASSERT_EQ(0, srv_mount_lower(fs));
	ASSERT_TRUE(make_lower(LOWER, 0666, size));
	env->path = way == BARE ? LOWER : FILE_MNT;
	if (way == BARE)
		return;
	env->srv = new_server(_metadata, way);
	if (!strcmp(fs, "overlay"))
		env->srv->max_stack_depth = 2;
}

static inline void env_start(struct __test_metadata *_metadata,
			     struct env *env)
{
	if (env->srv)
		start_server(_metadata, env->srv);
}

/* No lower file and no open file is left behind. */
static inline void env_teardown(struct __test_metadata *_metadata,
				struct env *env)
{
	if (env->srv)
		EXPECT_EQ(0, srv_stop(env->srv));
	EXPECT_EQ(0, srv_unmount(SRV_LOWER));
}

/* The server was asked for data if and only if FUSE is plain. */
static inline void check_seen(struct __test_metadata *_metadata,
			      struct srv *srv, enum way way, int opcode)
{
	if (passes(way)) {
		ASSERT_EQ(0, srv->seen[FUSE_READ]);
		ASSERT_EQ(0, srv->seen[FUSE_WRITE]);
	}
	if (way == PLAIN)
		ASSERT_LT(0, srv->seen[opcode]);
}

/* Run @test as an ordinary user in a child: its exit status, or -signal. */
static inline int as_user(int (*test)(const char *path), const char *path)
{
	pid_t pid = fork();
	int status;

	if (!pid) {
		if (setgroups(0, NULL) || setresgid(USER, USER, USER) ||
		    setresuid(USER, USER, USER))
			_exit(100);
		_exit(test(path));
	}
	if (waitpid(pid, &status, 0) != pid)
		return -1;
	return WIFSIGNALED(status) ? -WTERMSIG(status) : WEXITSTATUS(status);
}

#endif /* FUSE_TEST_FILES_H */
