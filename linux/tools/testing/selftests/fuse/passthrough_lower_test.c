// SPDX-License-Identifier: GPL-2.0
/*
 * Lower file systems of other makes than ext4, xfs and tmpfs, and what stands
 * below them.  For a kernel that has them all, and a system with their mkfs.
 */
#define _GNU_SOURCE
#include <sys/mman.h>

#include "fuse_test_flight.h"

#define FILE_MNT	SRV_MNT "/file"
#define BELOW		SRV_BASE "/below"
#define SIZE		(DEPTH * BLOCK)

FIXTURE(lower) {
	struct srv *srv;
	struct srv *below;
	const char *path;
};

FIXTURE_VARIANT(lower) {
	const char *fs;
	enum way way;
};

FIXTURE_VARIANT_ADD(lower, btrfs_bare) { "btrfs", BARE };
FIXTURE_VARIANT_ADD(lower, btrfs) { "btrfs", BY_REQUEST };
FIXTURE_VARIANT_ADD(lower, btrfs_id) { "btrfs", BY_ID };
FIXTURE_VARIANT_ADD(lower, vfat_bare) { "vfat", BARE };
FIXTURE_VARIANT_ADD(lower, vfat) { "vfat", BY_REQUEST };
FIXTURE_VARIANT_ADD(lower, vfat_id) { "vfat", BY_ID };
FIXTURE_VARIANT_ADD(lower, exfat) { "exfat", BY_REQUEST };
FIXTURE_VARIANT_ADD(lower, exfat_id) { "exfat", BY_ID };
FIXTURE_VARIANT_ADD(lower, ext2_bare) { "ext2", BARE };
FIXTURE_VARIANT_ADD(lower, ext2) { "ext2", BY_REQUEST };
FIXTURE_VARIANT_ADD(lower, ext2_id) { "ext2", BY_ID };
FIXTURE_VARIANT_ADD(lower, nfs_bare) { "nfs", BARE };
FIXTURE_VARIANT_ADD(lower, nfs) { "nfs", BY_REQUEST };
FIXTURE_VARIANT_ADD(lower, nfs_id) { "nfs", BY_ID };
FIXTURE_VARIANT_ADD(lower, fuse) { "fuse", BY_REQUEST };
FIXTURE_VARIANT_ADD(lower, fuse_id) { "fuse", BY_ID };
FIXTURE_VARIANT_ADD(lower, overlay_id) { "overlay", BY_ID };

/* Plain FUSE below: @below serves what is above it */
static struct srv *serve_below(struct __test_metadata *_metadata)
{
	struct srv *below = srv_new();

	ASSERT_NE(NULL, below);
	ASSERT_EQ(0, mkdir(BELOW, 0777));
	below->lower = open(BELOW, O_PATH | O_DIRECTORY);
	below->no_capability = true;
	below->options = "allow_other";
	ASSERT_EQ(0, srv_start(below, SRV_LOWER));
	close(below->lower);
	return below;
}

FIXTURE_SETUP(lower)
{
	make_data();
	ASSERT_EQ(0, srv_namespace());
	if (!strcmp(variant->fs, "fuse"))
		self->below = serve_below(_metadata);
	else
		ASSERT_EQ(0, srv_mount_lower(variant->fs));
	ASSERT_TRUE(make_lower(LOWER, 0666, 0));
	self->path = variant->way == BARE ? LOWER : FILE_MNT;
	if (variant->way != BARE)
		self->srv = serve_lower(_metadata, variant->way, 0);
}

FIXTURE_TEARDOWN(lower)
{
	if (self->srv)
		EXPECT_EQ(0, srv_stop(self->srv));
	if (!self->below) {
		EXPECT_EQ(0, srv_unmount(SRV_LOWER));
		return;
	}
	EXPECT_EQ(0, srv_stop(self->below));
}

/* What a file looks like to the system calls on the lower file itself */
static bool content_is(off_t size, const char *bytes)
{
	return lower_is(size, 0, bytes, size);
}

static void write_and_read(struct __test_metadata *_metadata,
			   struct flight *f, int fd)
{
	fly(_metadata, f, (struct op){ fd, true, data, BLOCK, 0, 0 }, DEPTH);
	land(_metadata, f, DEPTH);
	ASSERT_EQ(SIZE, size_of(fd));
	ASSERT_TRUE(content_is(SIZE, data));
	fly(_metadata, f, (struct op){ fd, true, data + SIZE, BLOCK, 0, 0 },
	    DEPTH);
	land(_metadata, f, DEPTH);
	ASSERT_TRUE(content_is(SIZE, data + SIZE));
	memset(back, 0x55, SIZE);
	fly(_metadata, f, (struct op){ fd, false, back, BLOCK, 0, 0 }, DEPTH);
	land(_metadata, f, DEPTH);
	ASSERT_EQ(0, memcmp(data + SIZE, back, SIZE));
}

/* NFS has no O_APPEND with O_DIRECT */
static void append(struct __test_metadata *_metadata, struct flight *f,
		   const char *path, int flags)
{
	int bare = srv_result(open(LOWER, O_WRONLY | O_APPEND | flags));
	int fd = srv_result(open(path, O_WRONLY | O_APPEND | flags));

	if (bare < 0) {
		ASSERT_EQ(bare, fd);
		return;
	}
	close(bare);
	ASSERT_LE(0, fd);
	fly(_metadata, f, (struct op){ fd, true, data, BLOCK, 0, 0 }, 1);
	land(_metadata, f, 1);
	ASSERT_EQ(SIZE + BLOCK, size_of(fd));
	ASSERT_TRUE(lower_is(SIZE + BLOCK, SIZE, data, BLOCK));
	close(fd);
}

/* A new size is seen by reads, which stop there */
static void cut(struct __test_metadata *_metadata, struct flight *f, int fd)
{
	const off_t size = SIZE - BLOCK - BLOCK / 2;

	ASSERT_EQ(0, ftruncate(fd, size));
	ASSERT_TRUE(content_is(size, data + SIZE));
	fly(_metadata, f,
	    (struct op){ fd, false, back, 2 * BLOCK, SIZE - 2 * BLOCK, 0 }, 1);
	ASSERT_EQ(1, wait_for(f, 1));
	ASSERT_EQ(BLOCK / 2, f->op[0].result);
	ASSERT_EQ(0, memcmp(data + 2 * SIZE - 2 * BLOCK, back, BLOCK / 2));
}

static void map(struct __test_metadata *_metadata, int fd)
{
	char *map;

	ASSERT_EQ(0, ftruncate(fd, 2 * BLOCK));
	map = mmap(NULL, 2 * BLOCK, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	ASSERT_NE(MAP_FAILED, map);
	ASSERT_EQ(0, memcmp(map, data + SIZE, 2 * BLOCK));
	memcpy(map + 100, data, BLOCK);
	ASSERT_EQ(0, msync(map, 2 * BLOCK, MS_SYNC));
	ASSERT_EQ(0, munmap(map, 2 * BLOCK));
	ASSERT_TRUE(lower_is(2 * BLOCK, 100, data, BLOCK));
}

static void all_calls(struct __test_metadata *_metadata, const char *path,
		      enum engine engine, int flags)
{
	struct flight flight = { .engine = engine };
	int fd = open(path, O_RDWR | O_TRUNC | flags);

	ASSERT_LE(0, fd);
	write_and_read(_metadata, &flight, fd);
	append(_metadata, &flight, path, flags);
	cut(_metadata, &flight, fd);
	map(_metadata, fd);
	close(fd);
}

TEST_F(lower, every_call)
{
	static const enum engine engine[] = { SYNC, AIO, URING, URING_WORKER };
	unsigned int i;

	for (i = 0; i < ARRAY_SIZE(engine); i++) {
		all_calls(_metadata, self->path, engine[i], 0);
		all_calls(_metadata, self->path, engine[i], O_DIRECT);
	}
	check_seen(_metadata, self->srv, variant->way, FUSE_WRITE);
}

/* A buffer whose pages are taken away in a loop */
struct thief {
	char *map;
	size_t len;
	atomic_bool stop;
};

static void *take_pages(void *arg)
{
	struct thief *thief = arg;

	while (!thief->stop)
		madvise(thief->map, thief->len, MADV_DONTNEED);
	return NULL;
}

/* Old or new in each byte, and nothing behind the end: no zeros in between */
static bool old_or_new(size_t size, char old, char new)
{
	int fd = open(LOWER, O_RDONLY);
	ssize_t i, n = pread(fd, back, sizeof(back), 0);

	close(fd);
	if (n < (ssize_t)size)
		return false;
	for (i = 0; i < n; i++)
		if (back[i] != old && back[i] != new)
			return false;
	return true;
}

/*
 * O_DIRECT that stops in the middle, in place and past the end, leaves nothing
 * that nobody wrote.
 */
TEST_F(lower, direct_from_pages_that_go)
{
	struct thief thief = { .len = SIZE };
	int i, fd, source = memfd_create("source", 0);
	pthread_t thread;
	ssize_t n;

	memset(data, 'n', SIZE);
	ASSERT_EQ(SIZE, write(source, data, SIZE));
	thief.map = mmap(NULL, SIZE, PROT_READ, MAP_SHARED, source, 0);
	ASSERT_NE(MAP_FAILED, thief.map);
	ASSERT_EQ(0, pthread_create(&thread, NULL, take_pages, &thief));
	fd = open(self->path, O_RDWR | O_DIRECT);
	ASSERT_LE(0, fd);
	memset(data, 'o', SIZE);
	for (i = 0; again(i, 200, 5); i++) {
		size_t size = SIZE / 2 * (i % 3);

		ASSERT_EQ(0, ftruncate(fd, 0));
		ASSERT_EQ((ssize_t)size, pwrite(fd, data, size, 0));
		n = pwrite(fd, thief.map, SIZE, 0);
		ASSERT_LT(0, n);
		ASSERT_TRUE(old_or_new(size, 'o', 'n')) {
			TH_LOG("round %d, %zd written over %zu", i, n, size);
		}
	}
	thief.stop = true;
	ASSERT_EQ(0, pthread_join(thread, NULL));
	close(fd);
	check_seen(_metadata, self->srv, variant->way, FUSE_WRITE);
}

TEST_HARNESS_MAIN
