// SPDX-License-Identifier: GPL-2.0
/*
 * What is on the disk, and not in the page cache alone: by a synchronous or
 * append-only lower file, by a server that has no fsync, and by one that is dead.
 */
#define _GNU_SOURCE
#include <signal.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <linux/fs.h>

#include "fuse_test_blocked.h"

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
	env_setup(_metadata, &self->env, "ext4", BY_REQUEST, 4 * BLOCK);
	self->env.srv->valid = 0;
	ASSERT_TRUE(find_raw());
	ASSERT_TRUE(on_disk(data));
}

FIXTURE_TEARDOWN(disk)
{
	close(raw_fd);
	env_teardown(_metadata, &self->env);
}

static int lower_flags;
static atomic_int attached = 1;

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
	env_setup(_metadata, &self->env, "ext4", BY_REQUEST, 4 * BLOCK);
	self->env.srv->valid = 0;
	ASSERT_TRUE(find_raw());
	if (variant->kill)
		self->env.srv->uid = USER;
	env_start(_metadata, &self->env);
}

FIXTURE_TEARDOWN(dead)
{
	close(raw_fd);
	env_teardown(_metadata, &self->env);
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

TEST_HARNESS_MAIN
