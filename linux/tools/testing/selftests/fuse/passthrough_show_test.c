// SPDX-License-Identifier: GPL-2.0
/*
 * What passthrough pins can be seen, is limited and accounted.
 */
#define _GNU_SOURCE
#include <stdio.h>
#include <stdlib.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/resource.h>
#include <sys/sysmacros.h>
#include <linux/fs.h>

#include "fuse_test_files.h"

#define PRIVILEGED	"/sys/module/fuse/parameters/passthrough_privileged"
#define CGROUPS		SRV_BASE "/cgroups"
#define SECRET		SRV_LOWER "/secret"

static char text[1 << 16];

static bool read_text(const char *path)
{
	ssize_t n, len = 0;
	int fd = open(path, O_RDONLY);

	if (fd < 0)
		return false;
	while ((n = read(fd, text + len, sizeof(text) - 1 - len)) > 0)
		len += n;
	close(fd);
	text[len] = 0;
	return !n;
}

static int count_lines(const char *line)
{
	size_t len = strlen(line);
	const char *p;
	int n = 0;

	for (p = text; (p = strstr(p, line)); p += len)
		if ((p == text || p[-1] == '\n') && p[len] == '\n')
			n++;
	return n;
}

/* How a lower file is named: device, inode, mode, id */
static char *name_lower(const char *prefix, const char *mode, int id)
{
	static char line[128];
	struct stat st;
	int len;

	if (stat(LOWER, &st))
		return "";
	len = sprintf(line, "%s%u:%u %llu %s", prefix, major(st.st_dev),
		      minor(st.st_dev), (unsigned long long)st.st_ino, mode);
	if (id)
		sprintf(line + len, " id %d", id);
	return line;
}

static bool read_fdinfo(int fd)
{
	char path[64];

	sprintf(path, "/proc/self/fdinfo/%d", fd);
	return read_text(path);
}

/* Does /proc/self/maps show the lower file?  It pads a line up to the path. */
static bool maps_lower(void)
{
	char line[64];
	struct stat st;

	if (stat(LOWER, &st) || !read_text("/proc/self/maps"))
		return false;
	sprintf(line, " %02x:%02x %llu ", major(st.st_dev), minor(st.st_dev),
		(unsigned long long)st.st_ino);
	return strstr(text, line);
}

FIXTURE(show) {
	struct env env;
	int id;
};

FIXTURE_VARIANT(show) {
	enum way way;
};

FIXTURE_VARIANT_ADD(show, by_request) { BY_REQUEST };
FIXTURE_VARIANT_ADD(show, by_id) { BY_ID };

FIXTURE_SETUP(show)
{
	env_setup(_metadata, &self->env, "ext4", variant->way, BLOCK);
	env_start(_metadata, &self->env);
	self->id = variant->way == BY_ID ? 1 : 0;
}

FIXTURE_TEARDOWN(show)
{
	write_text(PRIVILEGED, "N");
	env_teardown(_metadata, &self->env);
}

TEST_F(show, open_file)
{
	int fd = open(FILE_MNT, O_RDWR);
	int reader = open(FILE_MNT, O_RDONLY);

	ASSERT_LE(0, fd);
	ASSERT_LE(0, reader);
	ASSERT_TRUE(read_fdinfo(fd));
	ASSERT_EQ(1, count_lines(name_lower("passthrough:\t", "rw", self->id)));
	ASSERT_TRUE(read_fdinfo(reader));
	ASSERT_EQ(1, count_lines(name_lower("passthrough:\t", "r",
					    self->id ? 2 : 0)));
	close(reader);
	self->env.srv->mode = SRV_PLAIN;
	reader = open(FILE_MNT, O_RDONLY);
	ASSERT_TRUE(read_fdinfo(reader));
	ASSERT_EQ(NULL, strstr(text, "passthrough"));
	close(reader);
	close(fd);
}

/* With FOPEN_DIRECT_IO it is there for mappings. */
TEST_F(show, direct_io)
{
	int fd;

	self->env.srv->open_flags = FOPEN_DIRECT_IO;
	fd = open(FILE_MNT, O_RDWR);
	ASSERT_LE(0, fd);
	ASSERT_TRUE(read_fdinfo(fd));
	ASSERT_EQ(1, count_lines(name_lower("passthrough:\t", "rw", self->id)));
	close(fd);
}

TEST_F(show, registered)
{
	int lower = open(LOWER, O_PATH), writer = open(LOWER, O_WRONLY);
	int id, other;

	id = srv_backing_open(self->env.srv->dev, lower);
	ASSERT_LT(0, id);
	other = srv_backing_open(self->env.srv->dev, writer);
	ASSERT_LT(0, other);
	ASSERT_TRUE(read_fdinfo(self->env.srv->dev));
	ASSERT_EQ(1, count_lines(name_lower("passthrough:\t", "path", id)));
	ASSERT_EQ(1, count_lines(name_lower("passthrough:\t", "w", other)));
	ASSERT_EQ(0, srv_backing_close(self->env.srv->dev, id));
	ASSERT_TRUE(read_fdinfo(self->env.srv->dev));
	ASSERT_EQ(0, count_lines(name_lower("passthrough:\t", "path", id)));
	ASSERT_EQ(1, count_lines(name_lower("passthrough:\t", "w", other)));
	ASSERT_EQ(0, srv_backing_close(self->env.srv->dev, other));
	ASSERT_TRUE(read_fdinfo(self->env.srv->dev));
	ASSERT_EQ(NULL, strstr(text, "passthrough"));
	close(lower);
	close(writer);
}

/* All that keeps the lower file system busy, open or registered or mapped */
TEST_F(show, pinned)
{
	int fd, id, lower = open(LOWER, O_PATH);
	char *map;

	ASSERT_TRUE(read_fdinfo(self->env.srv->dev));
	ASSERT_EQ(NULL, strstr(text, "passthrough"));
	fd = open(FILE_MNT, O_RDWR);
	ASSERT_LE(0, fd);
	ASSERT_TRUE(read_fdinfo(fd));
	ASSERT_EQ(1, count_lines(name_lower("passthrough:\t", "rw", self->id)));
	ASSERT_TRUE(read_fdinfo(self->env.srv->dev));
	ASSERT_EQ(self->id, count_lines(name_lower("passthrough:\t", "rw",
						   self->id)));
	id = srv_backing_open(self->env.srv->dev, lower);
	ASSERT_LT(0, id);
	ASSERT_TRUE(read_fdinfo(self->env.srv->dev));
	ASSERT_EQ(1, count_lines(name_lower("passthrough:\t", "path", id)));
	ASSERT_EQ(0, srv_backing_close(self->env.srv->dev, id));
	close(lower);
	ASSERT_FALSE(maps_lower());
	map = mmap(NULL, BLOCK, PROT_READ, MAP_SHARED, fd, 0);
	ASSERT_NE(MAP_FAILED, map);
	close(fd);
	ASSERT_TRUE(maps_lower());
	ASSERT_EQ(0, munmap(map, BLOCK));
	ASSERT_TRUE(srv_wait(self->env.srv, FUSE_RELEASE, 1));
	ASSERT_FALSE(maps_lower());
	ASSERT_TRUE(read_fdinfo(self->env.srv->dev));
	ASSERT_EQ(NULL, strstr(text, "passthrough"));
}

/* Abort does not revoke: an open file is still shown, an id is gone. */
TEST_F(show, aborted)
{
	int fd = open(FILE_MNT, O_RDWR);

	ASSERT_LE(0, fd);
	ASSERT_EQ(0, srv_abort(self->env.srv));
	ASSERT_TRUE(read_fdinfo(fd));
	ASSERT_EQ(1, count_lines(name_lower("passthrough:\t", "rw", self->id)));
	ASSERT_TRUE(read_fdinfo(self->env.srv->dev));
	ASSERT_EQ(NULL, strstr(text, "passthrough"));
	close(fd);
}

static int dev;

static int attach_as_user(const char *path)
{
	int id, fd = open(path, O_PATH);

	id = srv_backing_open(dev, fd);
	if (id < 0)
		return -id;
	return srv_backing_close(dev, id);
}

/* The administrator may ask for what mainline asks for. */
TEST_F(show, privileged)
{
	int fd;

	dev = self->env.srv->dev;
	ASSERT_EQ(0, as_user(attach_as_user, LOWER));
	ASSERT_TRUE(write_text(PRIVILEGED, "Y"));
	ASSERT_EQ(EPERM, as_user(attach_as_user, LOWER));
	fd = open(FILE_MNT, O_RDWR);
	ASSERT_LE(0, fd);
	close(fd);
	ASSERT_TRUE(write_text(PRIVILEGED, "N"));
	ASSERT_EQ(0, as_user(attach_as_user, LOWER));
}

TEST_F(show, privileged_server)
{
	int fd;

	ASSERT_EQ(0, srv_stop(self->env.srv));
	ASSERT_EQ(0, chown(LOWER, USER, USER));
	self->env.srv = srv_new();
	ASSERT_NE(NULL, self->env.srv);
	self->env.srv->lower = open(SRV_LOWER, O_PATH | O_DIRECTORY);
	self->env.srv->mode = mode_for(variant->way);
	self->env.srv->uid = USER;
	ASSERT_EQ(0, srv_start(self->env.srv, SRV_MNT));
	close(self->env.srv->lower);
	ASSERT_TRUE(write_text(PRIVILEGED, "Y"));
	ASSERT_EQ(-1, open(FILE_MNT, O_RDWR));
	ASSERT_EQ(EPERM, errno);
	ASSERT_TRUE(write_text(PRIVILEGED, "N"));
	fd = open(FILE_MNT, O_RDWR);
	ASSERT_LE(0, fd);
	close(fd);
}

/* As many ids as the caller may have files open */
static int register_too_many(const char *path)
{
	struct rlimit limit = { 40, 40 };
	int i, id, fd = open(path, O_PATH);

	if (setrlimit(RLIMIT_NOFILE, &limit))
		return 1;
	for (i = 0; i < 40; i++) {
		id = srv_backing_open(dev, fd);
		if (id < 0)
			return 2;
	}
	return srv_backing_open(dev, fd) == -EMFILE ? 0 : 3;
}

TEST_F(show, no_such_id)
{
	int fd, dir = open(SRV_LOWER, O_PATH | O_DIRECTORY);
	struct fuse_backing_map flags = { .fd = -1, .flags = 1 };
	struct fuse_backing_map padding = { .fd = -1, .padding = 1 };

	ASSERT_EQ(-EINVAL, srv_result(ioctl(self->env.srv->dev,
					    FUSE_DEV_IOC_BACKING_OPEN, &flags)));
	ASSERT_EQ(-EINVAL, srv_result(ioctl(self->env.srv->dev,
					    FUSE_DEV_IOC_BACKING_OPEN,
					    &padding)));
	ASSERT_EQ(-EFAULT, srv_result(ioctl(self->env.srv->dev,
					    FUSE_DEV_IOC_BACKING_OPEN, NULL)));
	ASSERT_EQ(-EBADF, srv_backing_open(self->env.srv->dev, -1));
	ASSERT_EQ(-EISDIR, srv_backing_open(self->env.srv->dev, dir));
	ASSERT_EQ(-ENOENT, srv_backing_close(self->env.srv->dev, 77));
	close(dir);
	dev = self->env.srv->dev;
	ASSERT_EQ(0, as_user(register_too_many, LOWER));
	/* A device that has no connection has nothing to show. */
	fd = open("/dev/fuse", O_RDWR);
	ASSERT_TRUE(read_fdinfo(fd));
	ASSERT_EQ(NULL, strstr(text, "passthrough"));
	close(fd);
}

static int registered_by_user;

static int register_as_user(const char *path)
{
	int fd = open(path, O_RDONLY);

	registered_by_user = srv_backing_open(dev, fd);
	return registered_by_user;
}

static int answer_with_that(struct srv *srv, struct srv_req *req,
			    struct fuse_entry_out *entry,
			    struct fuse_open_out *out)
{
	out->open_flags |= FOPEN_PASSTHROUGH;
	out->backing_id = registered_by_user;
	return SRV_GO_ON;
}

/* Who may only read gives no more, whatever the server may. */
TEST_F(show, registrant_may_only_read)
{
	int fd;

	ASSERT_EQ(0, chmod(LOWER, 0644));
	dev = self->env.srv->dev;
	registered_by_user = as_user(register_as_user, LOWER);
	ASSERT_LT(0, registered_by_user);
	self->env.srv->mode = SRV_PLAIN;
	self->env.srv->on_open = answer_with_that;
	ASSERT_EQ(-1, open(FILE_MNT, O_RDWR));
	ASSERT_EQ(EACCES, errno);
	ASSERT_TRUE(srv_wait(self->env.srv, FUSE_RELEASE, 1));
	fd = open(FILE_MNT, O_RDONLY);
	ASSERT_LE(0, fd);
	ASSERT_EQ(BLOCK, pread(fd, back, sizeof(back), 0));
	ASSERT_EQ(0, self->env.srv->seen[FUSE_READ]);
	close(fd);
	ASSERT_EQ(0, srv_backing_close(dev, registered_by_user));
}

static int answer_and_close_id(struct srv *srv, struct srv_req *req,
			       struct fuse_entry_out *entry,
			       struct fuse_open_out *out)
{
	int path = open(LOWER, O_PATH);

	out->open_flags |= FOPEN_PASSTHROUGH;
	out->backing_id = srv_backing_open(req->dev, path);
	close(path);
	srv_reply_open(req, entry, out);
	if (srv_backing_close(req->dev, out->backing_id))
		abort();
	return SRV_TAKEN;
}

/* An open keeps what its answer named, though the opener has yet to wake. */
TEST_F(show, id_closed_after_answer)
{
	int i, fd;

	self->env.srv->mode = SRV_PLAIN;
	self->env.srv->on_open = answer_and_close_id;
	for (i = 0; again(i, 200, 5); i++) {
		fd = open(FILE_MNT, O_RDWR);
		ASSERT_LE(0, fd);
		ASSERT_EQ(BLOCK, pwrite(fd, data, BLOCK, 0));
		close(fd);
		ASSERT_TRUE(srv_wait(self->env.srv, FUSE_RELEASE, i + 1));
	}
	ASSERT_EQ(0, self->env.srv->seen[FUSE_WRITE]);
}

static int path_id;

/* All opens by one id, of a descriptor that itself can do nothing */
static int open_by_path_id(struct srv *srv, struct srv_req *req)
{
	struct fuse_open_out out = {
		.open_flags = FOPEN_PASSTHROUGH, .backing_id = path_id,
	};

	if (req->in.opcode == FUSE_OPEN)
		srv_reply_open(req, NULL, &out);
	else if (req->in.opcode == FUSE_RELEASE)
		srv_reply(req, 0, NULL, 0);
	else
		return SRV_GO_ON;
	return SRV_TAKEN;
}

/* What an open of the FUSE file says */
static int try_open(int flags)
{
	int fd = srv_result(open(FILE_MNT, flags));

	if (fd >= 0)
		close(fd);
	return fd < 0 ? fd : 0;
}

static int set_lower_flags(int lower, int flags)
{
	return srv_result(ioctl(lower, FS_IOC_SETFLAGS, &flags));
}

/* Each is another one, lives until it is closed, and is closed once. */
TEST_F(show, thousands_of_ids)
{
	static int id[2000];
	int i, path = open(LOWER, O_PATH);

	for (i = 0; i < 2000; i++) {
		id[i] = srv_backing_open(self->env.srv->dev, path);
		ASSERT_LT(i ? id[i - 1] : 0, id[i]);
	}
	close(path);
	self->env.srv->on_request = open_by_path_id;
	for (i = 0; i < 2000; i += 199) {
		path_id = id[i];
		ASSERT_EQ(0, try_open(O_RDWR));
	}
	for (i = 0; i < 2000; i++) {
		ASSERT_EQ(0, srv_backing_close(self->env.srv->dev, id[i]));
		ASSERT_EQ(-ENOENT, srv_backing_close(self->env.srv->dev,
						     id[i]));
	}
	ASSERT_EQ(-EIO, try_open(O_RDWR));
	ASSERT_TRUE(read_fdinfo(self->env.srv->dev));
	ASSERT_EQ(NULL, strstr(text, "passthrough"));
}

/* Each open by an id asks what an open of the lower file asks. */
TEST_F(show, open_by_id_asks_all)
{
	int lower = open(LOWER, O_RDONLY);
	int path = open(LOWER, O_PATH);

	path_id = srv_backing_open(self->env.srv->dev, path);
	ASSERT_LT(0, path_id);
	self->env.srv->on_request = open_by_path_id;
	ASSERT_EQ(0, try_open(O_RDWR));

	ASSERT_EQ(0, set_lower_flags(lower, FS_APPEND_FL));
	ASSERT_EQ(-EPERM, try_open(O_RDWR));
	ASSERT_EQ(-EPERM, try_open(O_WRONLY));
	ASSERT_EQ(0, try_open(O_WRONLY | O_APPEND));
	ASSERT_EQ(0, try_open(O_RDONLY));
	ASSERT_EQ(0, set_lower_flags(lower, FS_IMMUTABLE_FL));
	ASSERT_EQ(-EPERM, try_open(O_RDWR));
	ASSERT_EQ(-EPERM, try_open(O_WRONLY | O_APPEND));
	ASSERT_EQ(0, try_open(O_RDONLY));
	ASSERT_EQ(0, set_lower_flags(lower, 0));
	ASSERT_EQ(0, remount_lower(MS_RDONLY));
	ASSERT_EQ(-EROFS, try_open(O_RDWR));
	ASSERT_EQ(0, try_open(O_RDONLY));
	ASSERT_EQ(0, remount_lower(0));
	ASSERT_EQ(0, try_open(O_RDWR | O_NOATIME));

	/* Who registers is asked, not who opens. */
	ASSERT_EQ(0, chmod(LOWER, 0644));
	dev = self->env.srv->dev;
	path_id = as_user(register_as_user, LOWER);
	ASSERT_LT(0, path_id);
	ASSERT_EQ(0, try_open(O_RDONLY));
	ASSERT_EQ(-EPERM, try_open(O_RDONLY | O_NOATIME));
	ASSERT_EQ(-EACCES, try_open(O_WRONLY));
	close(path);
	close(lower);
}

/* What a setuid program is made to answer, with the device for its stdout */
static struct {
	bool passthrough;
	int id;
} words;

static int answer_by_program(struct srv *srv, struct srv_req *req,
			     struct fuse_entry_out *entry,
			     struct fuse_open_out *out)
{
	struct {
		struct fuse_out_header head;
		struct fuse_open_out out;
	} answer = {
		.head = { .len = sizeof(answer), .unique = req->in.unique },
		.out = *out,
	};
	pid_t pid;

	if (words.passthrough)
		answer.out.open_flags |= FOPEN_PASSTHROUGH;
	answer.out.backing_id = words.id;
	pid = fork();
	if (!pid) {
		/* It has what the server has not, and asks as stdio does. */
		if (open(SECRET, O_RDWR) < 0 ||
		    dup2(req->dev, STDOUT_FILENO) < 0 || isatty(STDOUT_FILENO))
			_exit(1);
		_exit(write(STDOUT_FILENO, &answer, sizeof(answer)) < 0);
	}
	waitpid(pid, NULL, 0);
	return SRV_TAKEN;
}

/* No word of an answer means a descriptor of who writes it. */
TEST_F(show, setuid_program)
{
	int fd, id;

	ASSERT_TRUE(make_lower(SECRET, 0600, BLOCK));
	self->env.srv->on_open = answer_by_program;
	for (id = 0; id < 16; id++) {
		words.id = id;
		words.passthrough = true;
		ASSERT_EQ(-1, open(FILE_MNT, O_RDWR));
		ASSERT_EQ(EIO, errno);
		words.passthrough = false;
		fd = open(FILE_MNT, O_RDWR);
		ASSERT_LE(0, fd);
		ASSERT_TRUE(read_fdinfo(fd));
		ASSERT_EQ(NULL, strstr(text, "passthrough"));
		close(fd);
	}
	ASSERT_TRUE(srv_wait(self->env.srv, FUSE_RELEASE, 2 * id));
	ASSERT_TRUE(read_fdinfo(self->env.srv->dev));
	ASSERT_EQ(NULL, strstr(text, "passthrough"));
}

static long slab_of_cgroup(void)
{
	char *line;

	if (!read_text(CGROUPS "/test/memory.stat"))
		return -1;
	line = strstr(text, "\nslab ");
	return line ? atol(line + 6) : -1;
}

/* Who registers pays for it. */
TEST_F(show, memory_cgroup)
{
	const int ids = 3000;
	int i, lower = open(LOWER, O_PATH);
	long before, after;
	int *id = calloc(ids, sizeof(*id));

	ASSERT_NE(NULL, id);
	ASSERT_EQ(0, mkdir(CGROUPS, 0700));
	ASSERT_EQ(0, mount("cgroup2", CGROUPS, "cgroup2", 0, NULL));
	ASSERT_TRUE(write_text(CGROUPS "/cgroup.subtree_control", "+memory"));
	ASSERT_TRUE(!mkdir(CGROUPS "/test", 0700) || errno == EEXIST);
	ASSERT_TRUE(write_text(CGROUPS "/test/cgroup.procs", "0"));
	before = slab_of_cgroup();
	ASSERT_LE(0, before);
	for (i = 0; i < ids; i++) {
		id[i] = srv_backing_open(self->env.srv->dev, lower);
		ASSERT_LT(0, id[i]);
	}
	after = slab_of_cgroup();
	EXPECT_LT(ids * 64L, after - before);
	for (i = 0; i < ids; i++)
		ASSERT_EQ(0, srv_backing_close(self->env.srv->dev, id[i]));
	close(lower);
	ASSERT_TRUE(write_text(CGROUPS "/cgroup.procs", "0"));
}

TEST_HARNESS_MAIN
