// SPDX-License-Identifier: GPL-2.0
/*
 * Mappings through a lower file do what mappings of the bare file do.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <setjmp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/uio.h>

#include "fuse_test_io.h"

#define SIZE	(4 * BLOCK)
#define HUGE	(2 << 20)

#ifndef MAP_SYNC
#define MAP_SYNC	0x80000
#endif

FIXTURE(map) {
	struct env env;
	int fd;
};

FIXTURE_VARIANT(map) {
	const char *fs;
	enum way way;
};

FIXTURE_VARIANT_ADD(map, ext4) { "ext4", BY_REQUEST };
FIXTURE_VARIANT_ADD(map, xfs_id) { "xfs", BY_ID };
FIXTURE_VARIANT_ADD(map, tmpfs) { "tmpfs", BY_REQUEST };
FIXTURE_VARIANT_ADD(map, bare) { "ext4", BARE };

FIXTURE_SETUP(map)
{
	env_setup(_metadata, &self->env, variant->fs, variant->way, SIZE);
	env_start(_metadata, &self->env);
	self->fd = open(self->env.path, O_RDWR);
	ASSERT_LE(0, self->fd);
}

FIXTURE_TEARDOWN(map)
{
	close(self->fd);
	if (self->env.srv) {
		EXPECT_EQ(0, self->env.srv->seen[FUSE_READ]);
		EXPECT_EQ(0, self->env.srv->seen[FUSE_WRITE]);
	}
	env_teardown(_metadata, &self->env);
}

static char *map_shared(int fd, int prot)
{
	return mmap(NULL, SIZE, prot, MAP_SHARED, fd, 0);
}

static sigjmp_buf after_fault;

static void on_fault(int sig)
{
	siglongjmp(after_fault, sig);
}

/* The signal that reading or writing @p raises, 0 for none */
static int touch(char *p, bool write)
{
	int sig = sigsetjmp(after_fault, 1);

	if (sig)
		return sig;
	if (write)
		*p = 'w';
	/* Not to be left out, nor put off */
	asm volatile("" : : "r"(*p) : "memory");
	return 0;
}

/* The lower file system moves atime with the mapping. */
TEST_F(map, access_time)
{
	const struct timespec old[2] = { { .tv_sec = 1000 }, { .tv_sec = 2000 } };
	struct stat st, low;
	char *p;

	ASSERT_EQ(0, futimens(self->fd, old));
	ASSERT_EQ(0, fstat(self->fd, &st));
	ASSERT_EQ(1000, st.st_atim.tv_sec);
	/* While there is a shared one the times are asked for anyhow */
	p = mmap(NULL, SIZE, PROT_READ, MAP_PRIVATE, self->fd, 0);
	ASSERT_NE(MAP_FAILED, p);
	ASSERT_EQ(0, fstat(self->fd, &st));
	ASSERT_EQ(0, stat(LOWER, &low));
	ASSERT_LT(1000, low.st_atim.tv_sec);
	ASSERT_EQ(low.st_atim.tv_sec, st.st_atim.tv_sec);
	ASSERT_EQ(low.st_atim.tv_nsec, st.st_atim.tv_nsec);
	ASSERT_EQ(0, munmap(p, SIZE));
}

TEST_F(map, truncated)
{
	char *map = map_shared(self->fd, PROT_READ | PROT_WRITE);

	signal(SIGBUS, on_fault);
	ASSERT_NE(MAP_FAILED, map);
	ASSERT_EQ(0, touch(map + 3 * BLOCK, false));
	ASSERT_EQ(0, ftruncate(self->fd, BLOCK + 10));
	ASSERT_EQ(SIGBUS, touch(map + 3 * BLOCK, false));
	ASSERT_EQ(SIGBUS, touch(map + 2 * BLOCK, true));
	ASSERT_EQ(0, memcmp(map + BLOCK, data + BLOCK, 10));
	ASSERT_TRUE(all_zero(map + BLOCK + 10, BLOCK - 10));
	ASSERT_EQ(0, ftruncate(self->fd, SIZE));
	ASSERT_EQ(0, touch(map + 3 * BLOCK, true));
	ASSERT_EQ('w', map[3 * BLOCK]);
	ASSERT_TRUE(all_zero(map + 3 * BLOCK + 1, BLOCK - 1));
	ASSERT_EQ(0, munmap(map, SIZE));
}

TEST_F(map, protection)
{
	int reader = open(self->env.path, O_RDONLY);
	int writer = open(self->env.path, O_WRONLY);
	char *map;

	signal(SIGSEGV, on_fault);
	ASSERT_EQ(MAP_FAILED, map_shared(reader, PROT_READ | PROT_WRITE));
	ASSERT_EQ(EACCES, errno);
	ASSERT_EQ(MAP_FAILED, map_shared(writer, PROT_READ | PROT_WRITE));
	ASSERT_EQ(EACCES, errno);
	map = map_shared(reader, PROT_READ);
	ASSERT_NE(MAP_FAILED, map);
	ASSERT_EQ(-1, mprotect(map, SIZE, PROT_READ | PROT_WRITE));
	ASSERT_EQ(EACCES, errno);
	ASSERT_EQ(SIGSEGV, touch(map, true));
	ASSERT_EQ(0, munmap(map, SIZE));
	map = map_shared(self->fd, PROT_READ);
	ASSERT_EQ(SIGSEGV, touch(map, true));
	ASSERT_EQ(0, mprotect(map, BLOCK, PROT_READ | PROT_WRITE));
	ASSERT_EQ(0, touch(map, true));
	ASSERT_EQ(SIGSEGV, touch(map + BLOCK, true));
	ASSERT_EQ(0, munmap(map, SIZE));
	ASSERT_EQ(1, pread(self->fd, back, 1, 0));
	ASSERT_EQ('w', back[0]);
	close(reader);
	close(writer);
}

/* Moved, grown, shrunk and copied; RELEASE comes after the last of them. */
TEST_F(map, moved)
{
	char *map, *moved, *copy;

	ASSERT_TRUE(make_lower(LOWER, 0666, 0));
	close(self->fd);
	self->fd = open(self->env.path, O_RDWR);
	ASSERT_EQ(8 * BLOCK, pwrite(self->fd, data, 8 * BLOCK, 0));
	map = map_shared(self->fd, PROT_READ | PROT_WRITE);
	ASSERT_NE(MAP_FAILED, map);
	moved = mremap(map, SIZE, 8 * BLOCK, MREMAP_MAYMOVE);
	ASSERT_NE(MAP_FAILED, moved);
	ASSERT_EQ(0, memcmp(moved, data, 8 * BLOCK));
	copy = mremap(moved, 0, SIZE, MREMAP_MAYMOVE);
	ASSERT_NE(MAP_FAILED, copy);
	copy[1] = 'c';
	ASSERT_EQ('c', moved[1]);
	ASSERT_EQ(moved, mremap(moved, 8 * BLOCK, BLOCK, 0));
	if (self->env.srv)
		srv_reset_counts(self->env.srv);
	close(self->fd);
	ASSERT_EQ(0, munmap(moved, BLOCK));
	if (self->env.srv)
		ASSERT_EQ(0, self->env.srv->seen[FUSE_RELEASE]);
	ASSERT_EQ('c', copy[1]);
	ASSERT_EQ(0, munmap(copy, SIZE));
	if (self->env.srv)
		ASSERT_TRUE(srv_wait(self->env.srv, FUSE_RELEASE, 1));
	self->fd = open(self->env.path, O_RDWR);
}

TEST_F(map, flags)
{
	struct iovec here = { back, BLOCK }, there = { NULL, BLOCK };
	char *map;

	/* Only DAX knows it. */
	map = mmap(NULL, SIZE, PROT_READ | PROT_WRITE,
		   MAP_SHARED_VALIDATE | MAP_SYNC, self->fd, 0);
	ASSERT_EQ(MAP_FAILED, map);
	ASSERT_EQ(EOPNOTSUPP, errno);
	map = mmap(NULL, SIZE, PROT_READ | PROT_WRITE,
		   MAP_SHARED | MAP_POPULATE | MAP_LOCKED, self->fd, 0);
	ASSERT_NE(MAP_FAILED, map);
	there.iov_base = map;
	ASSERT_EQ(BLOCK, process_vm_readv(getpid(), &here, 1, &there, 1, 0));
	ASSERT_EQ(0, memcmp(data, back, BLOCK));
	map[5] = 'm';
	ASSERT_EQ(0, msync(map, SIZE, MS_ASYNC));
	ASSERT_EQ(0, msync(map, SIZE, MS_SYNC));
	ASSERT_EQ(0, munlock(map, SIZE));
	ASSERT_EQ(0, madvise(map, SIZE, MADV_DONTNEED));
	ASSERT_EQ('m', map[5]);
	ASSERT_EQ(0, munmap(map, SIZE));
	/* A buffer that is a mapping of the same file */
	map = map_shared(self->fd, PROT_READ | PROT_WRITE);
	ASSERT_EQ(2 * BLOCK, pwrite(self->fd, map, 2 * BLOCK, 2 * BLOCK));
	ASSERT_EQ(0, memcmp(map, map + 2 * BLOCK, 2 * BLOCK));
	ASSERT_EQ(BLOCK, pread(self->fd, map + BLOCK, BLOCK, 0));
	ASSERT_EQ(0, memcmp(map, map + BLOCK, BLOCK));
	ASSERT_EQ(0, munmap(map, SIZE));
}

/* /proc/PID/maps shows where the pages come from. */
TEST_F(map, is_shown)
{
	char line[256], want[64];
	bool found = false;
	FILE *maps;
	char *map = map_shared(self->fd, PROT_READ);

	ASSERT_NE(MAP_FAILED, map);
	snprintf(want, sizeof(want), "%lx-", (unsigned long)map);
	maps = fopen("/proc/self/maps", "r");
	ASSERT_NE(NULL, maps);
	while (fgets(line, sizeof(line), maps))
		if (!strncmp(line, want, strlen(want)))
			found = strstr(line, LOWER "\n");
	fclose(maps);
	ASSERT_TRUE(found);
	ASSERT_EQ(0, munmap(map, SIZE));
}

TEST_F(io, mmap_shared)
{
	struct timespec old[2] = { { .tv_sec = 1000 }, { .tv_sec = 2000 } };
	struct stat st;
	char *map;
	int fd;

	ASSERT_TRUE(make_lower(LOWER, 0666, 2 * BLOCK));
	fd = open(self->env.path, O_RDWR);
	ASSERT_LE(0, fd);
	map = mmap(NULL, 2 * BLOCK, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	ASSERT_NE(MAP_FAILED, map);
	ASSERT_EQ(0, memcmp(data, map, 2 * BLOCK));
	ASSERT_EQ(0, futimens(fd, old));
	/* A store is seen by read, a write by the mapping, both at once. */
	map[10] = ~data[10];
	ASSERT_EQ(1, pread(fd, back, 1, 10));
	ASSERT_EQ((char)~data[10], back[0]);
	ASSERT_EQ(100, pwrite(fd, data + 5, 100, BLOCK));
	ASSERT_EQ(0, memcmp(data + 5, map + BLOCK, 100));
	if (variant->way == PLAIN)
		ASSERT_EQ(0, msync(map, 2 * BLOCK, MS_SYNC));
	ASSERT_TRUE(lower_is(2 * BLOCK, 0, map, 2 * BLOCK));
	ASSERT_EQ(0, fstat(fd, &st));
	ASSERT_LT(2000, st.st_mtime);
	ASSERT_EQ(0, munmap(map, 2 * BLOCK));
	close(fd);
	check_seen(_metadata, self->env.srv, variant->way, FUSE_READ);
}

/* A store alone moves the time of modification. */
TEST_F(io, mmap_mtime)
{
	struct timespec old[2] = { { .tv_sec = 1000 }, { .tv_sec = 2000 } };
	struct stat st;
	char *map;
	int fd;

	ASSERT_TRUE(make_lower(LOWER, 0666, BLOCK));
	fd = open(self->env.path, O_RDWR);
	ASSERT_LE(0, fd);
	ASSERT_EQ(0, futimens(fd, old));
	map = mmap(NULL, BLOCK, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	ASSERT_NE(MAP_FAILED, map);
	map[0]++;
	ASSERT_EQ(0, msync(map, BLOCK, MS_SYNC));
	ASSERT_EQ(0, munmap(map, BLOCK));
	ASSERT_EQ(0, fstat(fd, &st));
	/* tmpfs has no hook for it, and the bare file does the same. */
	if (strcmp(variant->fs, "tmpfs"))
		ASSERT_LT(2000, st.st_mtime);
	if (passes(variant->way))
		ASSERT_TRUE(same_stat(fd));
	close(fd);
	check_seen(_metadata, self->env.srv, variant->way, FUSE_READ);
}

TEST_F(io, mmap_private)
{
	char *map;
	int fd;

	ASSERT_TRUE(make_lower(LOWER, 0666, BLOCK));
	fd = open(self->env.path, O_RDONLY);
	ASSERT_LE(0, fd);
	map = mmap(NULL, BLOCK, PROT_READ | PROT_WRITE, MAP_PRIVATE, fd, 0);
	ASSERT_NE(MAP_FAILED, map);
	ASSERT_EQ(0, memcmp(data, map, BLOCK));
	map[0]++;
	ASSERT_TRUE(lower_is(BLOCK, 0, data, BLOCK));
	ASSERT_EQ(1, pread(fd, back, 1, 0));
	ASSERT_EQ(data[0], back[0]);
	ASSERT_EQ(MAP_FAILED, mmap(NULL, BLOCK, PROT_WRITE, MAP_SHARED, fd, 0));
	ASSERT_EQ(EACCES, errno);
	ASSERT_EQ(0, munmap(map, BLOCK));
	close(fd);
	check_seen(_metadata, self->env.srv, variant->way, FUSE_READ);
}

/* The mapping keeps the file open, and the server hears of its end. */
TEST_F(io, mmap_outlives_close)
{
	char *map;
	int fd;

	ASSERT_TRUE(make_lower(LOWER, 0666, BLOCK));
	fd = open(self->env.path, O_RDWR);
	ASSERT_LE(0, fd);
	map = mmap(NULL, BLOCK, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	ASSERT_NE(MAP_FAILED, map);
	close(fd);
	if (self->env.srv)
		ASSERT_EQ(0, self->env.srv->seen[FUSE_RELEASE]);
	ASSERT_EQ(0, memcmp(data, map, BLOCK));
	map[1] = ~data[1];
	ASSERT_EQ(0, munmap(map, BLOCK));
	if (self->env.srv)
		ASSERT_TRUE(srv_wait(self->env.srv, FUSE_RELEASE, 1));
	ASSERT_TRUE(lower_is(BLOCK, 1, (char[]){ ~data[1] }, 1));
	check_seen(_metadata, self->env.srv, variant->way, FUSE_READ);
}

/* Whole huge pages of tmpfs, as many through FUSE as bare */

FIXTURE(special) {
	struct srv *srv;
};

static int handed_in;

static int attach_handed_in(struct srv *srv, struct srv_req *req,
			    struct fuse_entry_out *entry,
			    struct fuse_open_out *out)
{
	int err = srv_attach(req->dev, req->in.unique, handed_in);

	return err ?: SRV_GO_ON;
}

FIXTURE_SETUP(special)
{
	make_data();
	ASSERT_EQ(0, srv_namespace());
	ASSERT_EQ(0, mount("tmpfs", SRV_LOWER, "tmpfs", 0,
			   "size=64m,huge=always"));
	ASSERT_TRUE(make_lower(LOWER, 0666, 0));
	self->srv = serve_lower(_metadata, PLAIN, 0);
}

FIXTURE_TEARDOWN(special)
{
	EXPECT_EQ(0, srv_stop(self->srv));
	EXPECT_EQ(0, srv_unmount(SRV_LOWER));
}

/* KiB of huge pages in the mapping at @map */
static long huge_in(char *map)
{
	char line[256], want[64];
	bool here = false;
	long huge = -1;
	FILE *smaps = fopen("/proc/self/smaps", "r");

	snprintf(want, sizeof(want), "%lx-", (unsigned long)map);
	while (smaps && fgets(line, sizeof(line), smaps)) {
		if (!strncmp(line, want, strlen(want)))
			here = true;
		if (here && sscanf(line, "ShmemPmdMapped: %ld", &huge) == 1)
			break;
	}
	fclose(smaps);
	return huge;
}

static long huge_pages_of(const char *path)
{
	int fd = open(path, O_RDWR);
	char *map = mmap(NULL, 2 * HUGE, PROT_READ | PROT_WRITE, MAP_SHARED, fd,
			 0);
	long huge = -1;

	/* A place where huge pages fit */
	if (map != MAP_FAILED && (uintptr_t)map % HUGE == 0) {
		memset(map, 'h', 2 * HUGE);
		huge = huge_in(map);
		munmap(map, 2 * HUGE);
	}
	close(fd);
	return huge;
}

TEST_F(special, huge_pages)
{
	long bare;

	ASSERT_EQ(0, truncate(LOWER, 2 * HUGE));
	bare = huge_pages_of(LOWER);
	ASSERT_LE(0, bare);
	self->srv->mode = SRV_PASSTHROUGH;
	ASSERT_EQ(bare, huge_pages_of(SRV_MNT "/file"));
	self->srv->mode = SRV_BACKING_ID;
	ASSERT_EQ(bare, huge_pages_of(SRV_MNT "/file"));
	ASSERT_EQ(0, self->srv->seen[FUSE_READ]);
}

static void use_sealed(struct __test_metadata *_metadata, struct srv *srv,
		       int seals)
{
	char *map;
	int fd;

	handed_in = memfd_create("sealed", MFD_ALLOW_SEALING);
	ASSERT_LE(0, handed_in);
	ASSERT_EQ(SIZE, write(handed_in, data, SIZE));
	ASSERT_EQ(0, fcntl(handed_in, F_ADD_SEALS, seals));
	srv->on_open = attach_handed_in;
	fd = open(SRV_MNT "/file", O_RDWR);
	ASSERT_LE(0, fd);
	ASSERT_EQ(MAP_FAILED, map_shared(fd, PROT_READ | PROT_WRITE));
	ASSERT_EQ(EPERM, errno);
	map = map_shared(fd, PROT_READ);
	ASSERT_NE(MAP_FAILED, map);
	ASSERT_EQ(0, memcmp(map, data, SIZE));
	ASSERT_EQ(-1, mprotect(map, SIZE, PROT_READ | PROT_WRITE));
	ASSERT_EQ(EACCES, errno);
	ASSERT_EQ(0, munmap(map, SIZE));
	ASSERT_EQ(-1, pwrite(fd, data, 1, 0));
	ASSERT_EQ(EPERM, errno);
	close(fd);
	close(handed_in);
}

TEST_F(special, sealed)
{
	use_sealed(_metadata, self->srv, F_SEAL_WRITE);
}

TEST_F(special, sealed_for_the_future)
{
	use_sealed(_metadata, self->srv, F_SEAL_FUTURE_WRITE);
}

/*
 * The server's own mapping of the struct file that it handed in: the area behind
 * it is not joined to it, or nobody would see the end of ours.
 */
TEST_F(special, behind_a_mapping_of_the_server)
{
	char *map;
	int fd;

	handed_in = memfd_create("handed in", 0);
	ASSERT_LE(0, handed_in);
	ASSERT_EQ(SIZE, write(handed_in, data, SIZE));
	self->srv->on_open = attach_handed_in;
	fd = open(SRV_MNT "/file", O_RDWR);
	ASSERT_LE(0, fd);
	map = mmap(NULL, 2 * BLOCK, PROT_READ, MAP_PRIVATE | MAP_SYNC,
		   handed_in, 0);
	ASSERT_NE(MAP_FAILED, map);
	ASSERT_EQ(0, munmap(map + BLOCK, BLOCK));
	ASSERT_EQ(map + BLOCK, mmap(map + BLOCK, BLOCK, PROT_READ,
				    MAP_PRIVATE | MAP_FIXED, fd, BLOCK));
	ASSERT_EQ(0, memcmp(map, data, 2 * BLOCK));
	close(fd);
	ASSERT_EQ(0, self->srv->seen[FUSE_RELEASE]);
	ASSERT_EQ(0, munmap(map, 2 * BLOCK));
	ASSERT_TRUE(srv_wait(self->srv, FUSE_RELEASE, 1));
	close(handed_in);
}

TEST_HARNESS_MAIN
