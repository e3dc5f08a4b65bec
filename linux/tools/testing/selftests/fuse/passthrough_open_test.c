// SPDX-License-Identifier: GPL-2.0
/*
 * Which files may stand below an open of FUSE, opened with whose rights, and at
 * what cost.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/mount.h>

#include "fuse_test_files.h"

#define MNT2		SRV_BASE "/mnt2"
#define ROOT_FILE	SRV_BASE "/root_file"

FIXTURE(open) {
	struct srv *srv;
};

FIXTURE_SETUP(open)
{
	make_data();
	ASSERT_EQ(0, srv_namespace());
	ASSERT_EQ(0, srv_mount_lower("ext4"));
	ASSERT_TRUE(make_lower(LOWER, 0666, 4 * BLOCK));
	self->srv = NULL;
}

FIXTURE_TEARDOWN(open)
{
	if (self->srv)
		EXPECT_EQ(0, srv_stop(self->srv));
	EXPECT_EQ(0, srv_unmount(SRV_LOWER));
}

static struct srv *server(struct __test_metadata *_metadata, const char *lower,
			  enum way way, uid_t uid, const char *mnt)
{
	struct srv *srv = srv_new();

	ASSERT_NE(NULL, srv);
	srv->lower = open(lower, O_PATH | O_DIRECTORY);
	ASSERT_LE(0, srv->lower);
	srv->mode = mode_for(way);
	/* Without it, the depth is 0 */
	srv->no_capability = way == PLAIN;
	srv->uid = uid;
	srv->valid = 3600;
	srv->options = "allow_other";
	ASSERT_EQ(0, srv_start(srv, mnt));
	close(srv->lower);
	return srv;
}

/* A FUSE mount whose root is a regular file, INIT not answered */
static int mount_root_file(void)
{
	int dev = open("/dev/fuse", O_RDWR | O_CLOEXEC);
	char options[128];

	close(open(ROOT_FILE, O_CREAT | O_WRONLY, 0600));
	sprintf(options, "fd=%d,rootmode=100644,user_id=0,group_id=0", dev);
	if (mount("root_file", ROOT_FILE, "fuse", MS_NOSUID | MS_NODEV,
		  options))
		return -errno;
	return dev;
}

static int answer_init(int dev, __u32 depth)
{
	struct fuse_init_out out = {
		.major = FUSE_KERNEL_VERSION,
		.minor = FUSE_KERNEL_MINOR_VERSION,
		.max_write = BLOCK,
		.flags = FUSE_INIT_EXT,
		.flags2 = depth ? FUSE_PASSTHROUGH >> 32 : 0,
		.max_stack_depth = depth,
	};
	static struct srv_req req;
	int err = srv_read_request(dev, &req);

	if (err < 0 || req.in.opcode != FUSE_INIT)
		return err ?: -EINVAL;
	return srv_reply(&req, 0, &out, sizeof(out));
}

/*
 * Before INIT is answered the depth of a FUSE mount is not known.  Two mounts
 * that named each other's files recursed until the kernel's stack was gone.
 */
TEST_F(open, mount_without_init)
{
	int dev, path, id;

	self->srv = server(_metadata, SRV_LOWER, BY_ID, 0, SRV_MNT);
	dev = mount_root_file();
	ASSERT_LE(0, dev);
	path = open(ROOT_FILE, O_PATH);
	ASSERT_LE(0, path);
	ASSERT_EQ(-ELOOP, srv_backing_open(self->srv->dev, path));
	ASSERT_LE(0, answer_init(dev, 0));
	id = srv_backing_open(self->srv->dev, path);
	ASSERT_LT(0, id);
	ASSERT_EQ(0, srv_backing_close(self->srv->dev, id));
	close(path);
	close(dev);
	ASSERT_EQ(0, umount2(ROOT_FILE, MNT_DETACH));
}

/* After INIT, only a mount of smaller depth may be below. */
TEST_F(open, mount_of_the_same_depth)
{
	int dev, path;

	self->srv = server(_metadata, SRV_LOWER, BY_ID, 0, SRV_MNT);
	dev = mount_root_file();
	ASSERT_LE(0, dev);
	path = open(ROOT_FILE, O_PATH);
	ASSERT_LE(0, path);
	ASSERT_LE(0, answer_init(dev, 1));
	ASSERT_EQ(-ELOOP, srv_backing_open(self->srv->dev, path));
	close(path);
	close(dev);
	ASSERT_EQ(0, umount2(ROOT_FILE, MNT_DETACH));
}

/* The freeze protection of both FUSE mounts is held: lockdep looks on. */
TEST_F(open, above_plain_fuse)
{
	struct srv *below;
	int fd;

	ASSERT_EQ(0, mkdir(MNT2, 0700));
	below = server(_metadata, SRV_LOWER, PLAIN, 0, MNT2);
	self->srv = server(_metadata, MNT2, BY_REQUEST, 0, SRV_MNT);
	fd = srv_result(open(FILE_MNT, O_RDWR));
	ASSERT_LE(0, fd);
	ASSERT_EQ(BLOCK, pwrite(fd, data + 7, BLOCK, 0));
	ASSERT_EQ(BLOCK, pread(fd, back, BLOCK, 0));
	ASSERT_EQ(0, memcmp(data + 7, back, BLOCK));
	close(fd);
	ASSERT_EQ(0, self->srv->seen[FUSE_WRITE]);
	ASSERT_LT(0, below->seen[FUSE_WRITE]);
	ASSERT_EQ(0, srv_stop(self->srv));
	self->srv = NULL;
	ASSERT_EQ(0, srv_stop(below));
}

static void write_new(struct __test_metadata *_metadata, struct srv *srv,
		      const char *path, int flags, mode_t mode)
{
	int fd = open(path, flags | O_RDWR, mode);

	ASSERT_LE(0, fd);
	ASSERT_EQ(BLOCK, pwrite(fd, data, BLOCK, 0));
	ASSERT_EQ(BLOCK, pread(fd, back, BLOCK, 0));
	ASSERT_EQ(0, memcmp(data, back, BLOCK));
	close(fd);
	ASSERT_EQ(0, srv->seen[FUSE_READ]);
	ASSERT_EQ(0, srv->seen[FUSE_WRITE]);
}

/* git adds objects of mode 0444, and a descriptor lends the rights that it has. */
TEST_F(open, new_file_that_nobody_may_write)
{
	/* The disk keeps the files of an earlier run */
	unlink(SRV_LOWER "/object");
	unlink(SRV_LOWER "/none");
	ASSERT_EQ(0, chown(SRV_LOWER, USER, USER));
	self->srv = server(_metadata, SRV_LOWER, BY_ID, USER, SRV_MNT);
	write_new(_metadata, self->srv, SRV_MNT "/object",
		  O_CREAT | O_EXCL, 0444);
	write_new(_metadata, self->srv, SRV_MNT "/none", O_CREAT | O_EXCL, 0);
	write_new(_metadata, self->srv, SRV_MNT, O_TMPFILE, 0400);
}

static int name_no_id(struct srv *srv, struct srv_req *req,
		      struct fuse_entry_out *entry, struct fuse_open_out *out)
{
	out->open_flags |= FOPEN_PASSTHROUGH;
	out->backing_id = 4711;
	return SRV_GO_ON;
}

/*
 * The truncation has set times, which nobody flushes when the open fails: the
 * inode must not be evicted with them.
 */
TEST_F(open, refused_after_a_truncation)
{
	struct srv *srv = srv_new();

	self->srv = srv;
	ASSERT_NE(NULL, srv);
	srv->lower = open(SRV_LOWER, O_PATH | O_DIRECTORY);
	srv->flags = FUSE_WRITEBACK_CACHE | FUSE_ATOMIC_O_TRUNC;
	srv->on_open = name_no_id;
	ASSERT_EQ(0, srv_start(srv, SRV_MNT));
	close(srv->lower);
	ASSERT_EQ(-EIO, srv_result(open(FILE_MNT, O_RDWR | O_TRUNC)));
	ASSERT_EQ(1, srv->seen[FUSE_SETATTR]);
}

static int getattr_enosys(struct srv *srv, struct srv_req *req)
{
	return req->in.opcode == FUSE_GETATTR ? -ENOSYS : SRV_GO_ON;
}

static int name_that_id(struct srv *srv, struct srv_req *req,
			struct fuse_entry_out *entry, struct fuse_open_out *out)
{
	out->open_flags |= FOPEN_PASSTHROUGH;
	out->backing_id = *(int *)srv->data;
	return SRV_GO_ON;
}

/*
 * ENOSYS of a lower server is no answer to the upper CREATE, which would be tried
 * again by MKNOD with a file that is open already.
 */
TEST_F(open, lower_server_says_enosys)
{
	struct srv *below = srv_new();
	int id, path;

	ASSERT_EQ(0, mkdir(MNT2, 0777));
	unlink(SRV_LOWER "/new");
	below->lower = open(SRV_LOWER, O_PATH | O_DIRECTORY);
	below->no_capability = true;
	below->options = "allow_other,default_permissions";
	ASSERT_EQ(0, srv_start(below, MNT2));
	close(below->lower);
	path = open(MNT2 "/file", O_PATH);
	ASSERT_LE(0, path);
	self->srv = server(_metadata, SRV_LOWER, BY_REQUEST, 0, SRV_MNT);
	id = srv_backing_open(self->srv->dev, path);
	ASSERT_LT(0, id);
	self->srv->mode = SRV_PLAIN;
	self->srv->data = &id;
	self->srv->on_open = name_that_id;
	below->on_request = getattr_enosys;
	ASSERT_EQ(-EIO, srv_result(open(SRV_MNT "/new", O_CREAT | O_RDWR, 0600)));
	ASSERT_EQ(-EIO, srv_result(open(SRV_MNT, O_TMPFILE | O_RDWR, 0600)));
	ASSERT_LE(2, below->seen[FUSE_GETATTR]);
	ASSERT_EQ(0, self->srv->seen[FUSE_MKNOD]);
	below->on_request = NULL;
	close(path);
	ASSERT_EQ(0, srv_stop(self->srv));
	self->srv = NULL;
	ASSERT_EQ(0, srv_stop(below));
}

static int kernel_threads(void)
{
	struct dirent *entry;
	char path[64], comm[32];
	DIR *proc = opendir("/proc");
	int fd, n = 0;

	while (proc && (entry = readdir(proc))) {
		snprintf(path, sizeof(path), "/proc/%.16s/comm", entry->d_name);
		fd = open(path, O_RDONLY);
		memset(comm, 0, sizeof(comm));
		if (fd >= 0 && read(fd, comm, sizeof(comm) - 1) > 0)
			n += !strncmp(comm, "fuse_pass", 9);
		close(fd);
	}
	closedir(proc);
	return n;
}

/* What a user mounts costs no kernel thread. */
TEST_F(open, mounts_without_threads)
{
	struct srv *srv[20];
	int i, threads = kernel_threads();
	char mnt[64];

	for (i = 0; i < 20; i++) {
		sprintf(mnt, SRV_BASE "/mnt-%d", i);
		ASSERT_EQ(0, mkdir(mnt, 0700));
		srv[i] = server(_metadata, SRV_LOWER, BY_ID, 0, mnt);
	}
	EXPECT_EQ(threads, kernel_threads());
	for (i = 0; i < 20; i++)
		ASSERT_EQ(0, srv_stop(srv[i]));
}

static void set_old_atime(struct __test_metadata *_metadata)
{
	const struct timespec old[2] = { { .tv_sec = 1000 },
					 { .tv_nsec = UTIME_OMIT } };

	ASSERT_EQ(0, utimensat(AT_FDCWD, LOWER, old, 0));
}

static bool atime_moved(void)
{
	struct stat st;

	return !stat(LOWER, &st) && st.st_atim.tv_sec != 1000;
}

static void read_and_map(struct __test_metadata *_metadata, int flags)
{
	int fd = open(FILE_MNT, O_RDONLY | flags);
	char *map;

	set_old_atime(_metadata);
	ASSERT_LE(0, fd);
	ASSERT_EQ(BLOCK, pread(fd, back, BLOCK, 0));
	map = mmap(NULL, BLOCK, PROT_READ, MAP_PRIVATE, fd, 0);
	ASSERT_NE(MAP_FAILED, map);
	ASSERT_EQ(data[1], map[1]);
	munmap(map, BLOCK);
	close(fd);
}

/* O_NOATIME, and a mount that leaves access times alone */
TEST_F(open, noatime)
{
	self->srv = server(_metadata, SRV_LOWER, BY_ID, 0, SRV_MNT);
	read_and_map(_metadata, 0);
	ASSERT_TRUE(atime_moved());
	read_and_map(_metadata, O_NOATIME);
	ASSERT_FALSE(atime_moved());
	ASSERT_EQ(0, mount(NULL, SRV_MNT, NULL, MS_REMOUNT | MS_BIND |
			   MS_NOATIME | MS_NOSUID | MS_NODEV, NULL));
	read_and_map(_metadata, 0);
	ASSERT_FALSE(atime_moved());
}

/* A thread that registers and closes ids, and how long that took at most */
struct registrar {
	int dev;
	int path;
	atomic_bool stop;
	long rounds;
	long longest_us;
	int error;
};

static void *register_and_close(void *arg)
{
	struct registrar *r = arg;
	struct timespec a, b;
	long us;
	int id;

	while (!r->stop && !r->error) {
		clock_gettime(CLOCK_MONOTONIC, &a);
		id = srv_backing_open(r->dev, r->path);
		clock_gettime(CLOCK_MONOTONIC, &b);
		us = (b.tv_sec - a.tv_sec) * 1000000 +
		     (b.tv_nsec - a.tv_nsec) / 1000;
		if (us > r->longest_us)
			r->longest_us = us;
		r->error = id < 0 ? id : srv_backing_close(r->dev, id);
		r->rounds++;
	}
	return NULL;
}

/* Lines that name a registered file; -1 if one of them is not whole */
static int count_ids(int dev)
{
	unsigned int major, minor;
	unsigned long long ino;
	char path[64], line[128];
	int id, n = 0;
	FILE *f;

	sprintf(path, "/proc/self/fdinfo/%d", dev);
	f = fopen(path, "r");
	while (f && fgets(line, sizeof(line), f)) {
		if (strncmp(line, "passthrough:", 12))
			continue;
		if (sscanf(line, "passthrough:\t%u:%u %llu path id %d\n",
			   &major, &minor, &ino, &id) != 4)
			return -1;
		n++;
	}
	if (f)
		fclose(f);
	return n;
}

/* fdinfo of many ids does not hold up those that register more. */
TEST_F_TIMEOUT(open, many_ids_are_shown, 240)
{
	struct registrar r = { .path = open(LOWER, O_PATH) };
	pthread_t thread;
	int i, n;

	self->srv = server(_metadata, SRV_LOWER, BY_ID, 0, SRV_MNT);
	r.dev = self->srv->dev;
	for (i = 0; again(i, 100000, 4); i++)
		ASSERT_LT(0, srv_backing_open(r.dev, r.path));
	ASSERT_EQ(0, pthread_create(&thread, NULL, register_and_close, &r));
	n = count_ids(r.dev);
	r.stop = true;
	ASSERT_EQ(0, pthread_join(thread, NULL));
	EXPECT_EQ(0, r.error);
	EXPECT_LE(i, n);
	TH_LOG("%d ids shown, %ld registered meanwhile, %ld us at most", n,
	       r.rounds, r.longest_us);
	close(r.path);
}

TEST_HARNESS_MAIN
