// SPDX-License-Identifier: GPL-2.0
/*
 * The same call, with each flag and mode there is and some that there are not,
 * at a passthrough file and at a bare one: result, bytes, size, position and
 * times must be the same.  What goes to the server instead is compared too,
 * as far as FUSE has it.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <limits.h>
#include <linux/falloc.h>
#include <stdio.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/uio.h>

#include "fuse_test_files.h"

#define SIZE	(8 * BLOCK)	/* of each file at the start of a test */
#define PAST	1000		/* seconds, long before any write of a test */

/* One file twice: the bare one, and the one that is compared with it */
enum { ITSELF, PASSED, SIDES };

static const char *const lower_path[] = {
	SRV_LOWER "/itself", SRV_LOWER "/passed",
};

static const char *const path[] = { SRV_LOWER "/itself", SRV_MNT "/passed" };

/* After it comes a page that nobody may touch. */
static char *buffer;

#define BUFFER	(4 * BLOCK)

FIXTURE(calls) {
	struct env env;
	int lower[SIDES];
	int fd[SIDES];
};

FIXTURE_VARIANT(calls) {
	const char *fs;
	enum way way;
};

FIXTURE_VARIANT_ADD(calls, ext4) { "ext4", BY_REQUEST };
FIXTURE_VARIANT_ADD(calls, xfs_id) { "xfs", BY_ID };
FIXTURE_VARIANT_ADD(calls, tmpfs) { "tmpfs", BY_REQUEST };
FIXTURE_VARIANT_ADD(calls, overlay_id) { "overlay", BY_ID };

FIXTURE_SETUP(calls)
{
	int i;

	buffer = mmap(NULL, BUFFER + BLOCK, PROT_READ | PROT_WRITE,
		      MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	ASSERT_NE(MAP_FAILED, buffer);
	ASSERT_EQ(0, mprotect(buffer + BUFFER, BLOCK, PROT_NONE));
	env_setup(_metadata, &self->env, variant->fs, variant->way, 0);
	for (i = 0; i < SIDES; i++) {
		ASSERT_TRUE(make_lower(lower_path[i], 0666, SIZE));
		self->lower[i] = open(lower_path[i], O_RDWR);
		ASSERT_LE(0, self->lower[i]);
		self->fd[i] = -1;
	}
	self->env.srv->valid = 0;
	self->env.srv->timeout = 240;
	env_start(_metadata, &self->env);
}

FIXTURE_TEARDOWN(calls)
{
	int i;

	for (i = 0; i < SIDES; i++) {
		close(self->lower[i]);
		close(self->fd[i]);
	}
	EXPECT_EQ(0, self->env.srv->seen[FUSE_READ]);
	EXPECT_EQ(0, self->env.srv->seen[FUSE_WRITE]);
	env_teardown(_metadata, &self->env);
}

/* Open both anew: the result of the passthrough open, if both agree. */
static int open_both(int fd[SIDES], int flags)
{
	int i, err[SIDES];

	for (i = 0; i < SIDES; i++) {
		if (fd[i] >= 0)
			close(fd[i]);
		fd[i] = open(path[i], flags);
		err[i] = fd[i] < 0 ? -errno : 0;
	}
	return err[PASSED] == err[ITSELF] ? err[PASSED] : -ENOANO;
}

/* What a call left behind */
struct state {
	off_t size;
	off_t position;
	bool accessed;
	bool modified;
};

static bool age(int lower)
{
	const struct timespec past[2] = { { PAST, 0 }, { PAST, 0 } };

	return !futimens(lower, past);
}

static struct state state_of(int fd, int lower)
{
	struct stat st;

	if (fstat(lower, &st))
		return (struct state){ .size = -errno };
	return (struct state){
		.size = st.st_size,
		.position = srv_result(lseek(fd, 0, SEEK_CUR)),
		.accessed = st.st_atime != PAST,
		.modified = st.st_mtime != PAST,
	};
}

static bool same_state(const struct state *a, const struct state *b)
{
	return a->size == b->size && a->position == b->position &&
	       a->accessed == b->accessed && a->modified == b->modified;
}

/* Nothing of the two files differs. */
static bool same_bytes(const int lower[SIDES])
{
	static char other[sizeof(back)];
	ssize_t n = pread(lower[ITSELF], back, sizeof(back), 0);

	return pread(lower[PASSED], other, sizeof(other), 0) == n &&
	       !memcmp(back, other, n);
}

/* Where a call reads or writes; position -1 is that of the file. */
struct place {
	off_t offset;
	size_t at;	/* in the buffer */
	size_t len;
};

static const struct place places[] = {
	{ 0, 0, BLOCK },
	{ BLOCK, BLOCK, 2 * BLOCK },
	{ 100, 11, 1000 },
	{ SIZE - 100, 0, BLOCK },
	{ SIZE - BLOCK, 0, 2 * BLOCK },
	{ 2 * SIZE, 0, BLOCK },
	{ -1, 0, BLOCK },
	{ -1, 1, 3 },
	{ 0, 0, 0 },
	{ -2, 0, BLOCK },
	{ INT64_MAX - 10, 0, BLOCK },
	/* Half of the buffer, and all of it, is not there. */
	{ BLOCK, BUFFER - BLOCK, 2 * BLOCK },
	{ 5, BUFFER - 7, 20 },
	{ 0, BUFFER, BLOCK },
	{ 0, BUFFER, 1 },
	{ 0, 0, (size_t)SSIZE_MAX + 1 },
};

static ssize_t transfer(int fd, bool write, const struct place *place,
			int flags)
{
	struct iovec iov = { buffer + place->at, place->len };

	return srv_result(write ?
			  pwritev2(fd, &iov, 1, place->offset, flags) :
			  preadv2(fd, &iov, 1, place->offset, flags));
}

/* What can't be done without waiting is done again, at both files. */
static ssize_t transfer_in_time(int fd, bool write, const struct place *place,
				int flags, ssize_t *first, int *at_once)
{
	ssize_t n = transfer(fd, write, place, flags);

	*first = n;
	if (!(flags & RWF_NOWAIT))
		return n;
	if (n == -EAGAIN || n == -EOPNOTSUPP)
		return transfer(fd, write, place, flags & ~RWF_NOWAIT);
	*at_once += n > 0;
	return n;
}

/* -EAGAIN tells a caller to wait, -EOPNOTSUPP never to ask again. */
static bool same_first(const ssize_t first[SIDES])
{
	return first[PASSED] == first[ITSELF] || first[PASSED] == -EAGAIN ||
	       (first[ITSELF] == -EAGAIN && first[PASSED] != -EOPNOTSUPP);
}

static void make_buffer(unsigned int seed)
{
	memcpy(buffer, data + seed * 61 % (sizeof(data) - BUFFER), BUFFER);
}

/* One call at both: false if they differ in anything. */
static bool transfer_both(struct __test_metadata *_metadata,
			  const int fd[SIDES], const int lower[SIDES],
			  bool write, const struct place *place, int flags,
			  int at_once[SIDES])
{
	static char seen[BUFFER];
	static unsigned int seed;
	struct state state[SIDES];
	ssize_t n[SIDES], first[SIDES];
	int i;

	seed++;
	for (i = 0; i < SIDES; i++) {
		make_buffer(seed);
		if (!age(lower[i]))
			return false;
		n[i] = transfer_in_time(fd[i], write, place, flags, &first[i],
					&at_once[i]);
		state[i] = state_of(fd[i], lower[i]);
		if (i == ITSELF)
			memcpy(seen, buffer, BUFFER);
	}
	if (n[ITSELF] == n[PASSED] && same_first(first) &&
	    same_state(&state[0], &state[1]) &&
	    !memcmp(seen, buffer, BUFFER) && (!write || same_bytes(lower)))
		return true;
	TH_LOG("%s of %zu at %lld, buffer + %zu, RWF flags %#x",
	       write ? "write" : "read", place->len, (long long)place->offset,
	       place->at, flags);
	for (i = 0; i < SIDES; i++)
		TH_LOG("%s: %zd, at first %zd, size %lld, position %lld, times %d%d",
		       i == ITSELF ? "bare" : "passed", n[i], first[i],
		       (long long)state[i].size, (long long)state[i].position,
		       state[i].accessed, state[i].modified);
	return false;
}

/* Every place, to read and to write. */
static bool transfer_everywhere(struct __test_metadata *_metadata,
				const int fd[SIDES], const int lower[SIDES],
				int flags, int at_once[SIDES])
{
	bool same = true;
	size_t i;

	for (i = 0; i < ARRAY_SIZE(places); i++) {
		same &= transfer_both(_metadata, fd, lower, false, &places[i],
				      flags, at_once);
		same &= transfer_both(_metadata, fd, lower, true, &places[i],
				      flags, at_once);
	}
	return same;
}

/* Not larger with each round */
static bool cut_both(const int fd[SIDES], const int lower[SIDES])
{
	int i;

	for (i = 0; i < SIDES; i++)
		if (ftruncate(fd[i], SIZE) || lseek(fd[i], 0, SEEK_SET))
			return false;
	return same_bytes(lower);
}

/* overlayfs of this version loses RWF_APPEND, which passthrough does not. */
static bool loses_append(const char *fs, int open_flags, int flags)
{
	return !strcmp(fs, "overlay") && flags & RWF_APPEND &&
	       !(open_flags & O_APPEND);
}

/* All there are, in each combination, and some that there are not */
TEST_F_TIMEOUT(calls, rwf_flags, 250)
{
	static const int opens[] = { 0, O_APPEND, O_DIRECT };
	const int all = RWF_HIPRI | RWF_DSYNC | RWF_SYNC | RWF_NOWAIT |
			RWF_APPEND;
	int at_once[SIDES] = { 0 };
	bool same;
	size_t i;
	int flags;

	for (i = 0; i < ARRAY_SIZE(opens); i++) {
		if (open_both(self->fd, O_RDWR | opens[i]) == -EINVAL &&
		    opens[i] == O_DIRECT)
			continue;	/* tmpfs */
		ASSERT_LE(0, self->fd[PASSED]);
		for (flags = 0; flags <= all; flags++) {
			/* The one is more of the other. */
			if ((flags & RWF_SYNC && flags & RWF_DSYNC) ||
			    loses_append(variant->fs, opens[i], flags))
				continue;
			same = transfer_everywhere(_metadata, self->fd, self->lower,
						   flags, at_once);
			ASSERT_TRUE(same) {
				TH_LOG("opened with %#o", opens[i]);
			}
			ASSERT_TRUE(cut_both(self->fd, self->lower));
		}
		for (flags = all + 1; flags; flags <<= 1) {
			same = transfer_everywhere(_metadata, self->fd,
						   self->lower, flags, at_once);
			ASSERT_TRUE(same);
		}
	}
	TH_LOG("without waiting: %d, bare %d", at_once[PASSED],
	       at_once[ITSELF]);
	ASSERT_EQ(at_once[ITSELF] > 0, at_once[PASSED] > 0);
}

TEST_F_TIMEOUT(calls, open_flags, 250)
{
	static const int flags[] = {
		O_RDONLY, O_WRONLY, O_RDWR | O_DSYNC, O_RDWR | O_SYNC,
		O_RDWR | O_NONBLOCK, O_RDWR | O_NOATIME, O_RDWR | O_CREAT,
		O_RDWR | O_TRUNC, O_RDWR | O_CREAT | O_EXCL, O_RDWR | O_NOFOLLOW,
		O_RDWR | O_DIRECTORY, O_RDWR | O_APPEND | O_DIRECT | O_DSYNC,
		O_WRONLY | O_APPEND | O_NOATIME, O_RDONLY | O_DIRECT,
		/* Neither to read nor to write: for ioctl(2) alone */
		O_ACCMODE,
	};
	int at_once[SIDES] = { 0 };
	bool same;
	size_t i;

	for (i = 0; i < ARRAY_SIZE(flags); i++) {
		ASSERT_NE(-ENOANO, open_both(self->fd, flags[i])) {
			TH_LOG("flags %#o", flags[i]);
		}
		if (self->fd[PASSED] < 0)
			continue;
		same = transfer_everywhere(_metadata, self->fd, self->lower,
					   0, at_once);
		ASSERT_TRUE(same) {
			TH_LOG("flags %#o", flags[i]);
		}
	}
}

/*
 * The file that is open changes its flags: reads and writes follow, except for
 * O_NOATIME, and for O_DIRECT on overlayfs, which look at the lower file alone.
 */
TEST_F_TIMEOUT(calls, fcntl_setfl, 250)
{
	static const int flags[] = {
		O_APPEND, O_DIRECT, O_NONBLOCK, O_SYNC, O_APPEND | O_NONBLOCK,
		O_DIRECT | O_NONBLOCK, O_APPEND | O_DIRECT, 0,
	};
	int at_once[SIDES] = { 0 };
	bool same;
	int err[SIDES];
	size_t i;
	int k;

	ASSERT_EQ(0, open_both(self->fd, O_RDWR));
	for (i = 0; i < ARRAY_SIZE(flags); i++) {
		if (flags[i] & O_DIRECT && !strcmp(variant->fs, "overlay"))
			continue;
		for (k = 0; k < SIDES; k++)
			err[k] = srv_result(fcntl(self->fd[k], F_SETFL,
						  flags[i]));
		if (err[ITSELF] == -EINVAL && !err[PASSED]) {
			/* FUSE takes O_DIRECT, the lower file has no such I/O. */
			ASSERT_TRUE(flags[i] & O_DIRECT);
			ASSERT_EQ(-EINVAL, transfer(self->fd[PASSED], false,
						    &places[0], 0));
			ASSERT_EQ(-EINVAL, transfer(self->fd[PASSED], true,
						    &places[0], 0));
			ASSERT_TRUE(same_bytes(self->lower));
			continue;
		}
		ASSERT_EQ(err[ITSELF], err[PASSED]);
		ASSERT_EQ(fcntl(self->fd[ITSELF], F_GETFL),
			  fcntl(self->fd[PASSED], F_GETFL));
		same = transfer_everywhere(_metadata, self->fd, self->lower,
					   0, at_once);
		ASSERT_TRUE(same) {
			TH_LOG("flags %#o", flags[i]);
		}
		ASSERT_TRUE(cut_both(self->fd, self->lower));
	}
}

/* Ranges for what changes or asks for the size */
static const struct range {
	off_t offset;
	off_t len;
} ranges[] = {
	{ 0, BLOCK }, { BLOCK, 2 * BLOCK }, { 100, 1000 }, { SIZE - 10, BLOCK },
	{ 2 * SIZE, BLOCK }, { 0, 0 }, { -1, BLOCK }, { BLOCK, -1 },
	{ INT64_MAX - 10, BLOCK },
};

/* Modes that FUSE of this kernel knows; the others it refuses by itself. */
#define KNOWN_MODES \
	(FALLOC_FL_KEEP_SIZE | FALLOC_FL_PUNCH_HOLE | FALLOC_FL_ZERO_RANGE)

static int allocate(int fd, int side, int mode, const struct range *range)
{
	if (side == ITSELF && mode & ~KNOWN_MODES)
		return 0;
	return srv_result(fallocate(fd, mode, range->offset, range->len));
}

TEST_F_TIMEOUT(calls, fallocate, 250)
{
	static const int opens[] = { O_RDWR, O_RDONLY, O_RDWR | O_APPEND };
	int at_once[SIDES] = { 0 };
	bool same;
	int err[SIDES];
	size_t i, k, side;
	int mode;

	for (k = 0; k < ARRAY_SIZE(opens); k++) {
		ASSERT_EQ(0, open_both(self->fd, opens[k]));
		for (mode = 0; mode < 0x100; mode++) {
			for (i = 0; i < ARRAY_SIZE(ranges); i++) {
				for (side = 0; side < SIDES; side++)
					err[side] = allocate(self->fd[side],
							     side, mode,
							     &ranges[i]);
				ASSERT_TRUE(mode & ~KNOWN_MODES ? err[PASSED] < 0 :
					    err[ITSELF] == err[PASSED]) {
					TH_LOG("mode %#x, %lld, %lld: %d, not %d",
					       mode, (long long)ranges[i].offset,
					       (long long)ranges[i].len,
					       err[PASSED], err[ITSELF]);
				}
				ASSERT_EQ(size_of(self->lower[ITSELF]),
					  size_of(self->fd[PASSED]));
			}
			ASSERT_TRUE(same_bytes(self->lower));
		}
		if (opens[k] == O_RDONLY)
			continue;
		ASSERT_TRUE(cut_both(self->fd, self->lower));
		same = transfer_everywhere(_metadata, self->fd, self->lower,
					   0, at_once);
		ASSERT_TRUE(same);
		ASSERT_TRUE(cut_both(self->fd, self->lower));
	}
}

/* In a file with two holes, one of them at its end */
TEST_F_TIMEOUT(calls, lseek, 250)
{
	static const off_t offsets[] = {
		0, 1, BLOCK, 1 << 18, (1 << 18) + 1, (1 << 18) + BLOCK,
		(1 << 19) - 1, 1 << 19, (1 << 19) + 1, -1, -BLOCK, 1LL << 40,
	};
	off_t at[SIDES];
	size_t i;
	int whence, side;

	ASSERT_EQ(0, open_both(self->fd, O_RDWR | O_TRUNC));
	for (side = 0; side < SIDES; side++) {
		ASSERT_EQ(BLOCK, pwrite(self->fd[side], data, BLOCK, 1 << 18));
		ASSERT_EQ(0, ftruncate(self->fd[side], 1 << 19));
	}
	for (whence = SEEK_SET; whence <= SEEK_HOLE + 1; whence++) {
		for (i = 0; i < ARRAY_SIZE(offsets); i++) {
			for (side = 0; side < SIDES; side++)
				at[side] = srv_result(lseek(self->fd[side],
							    offsets[i],
							    whence));
			ASSERT_EQ(at[ITSELF], at[PASSED]) {
				TH_LOG("whence %d, offset %lld", whence,
				       (long long)offsets[i]);
			}
			ASSERT_EQ(lseek(self->fd[ITSELF], 0, SEEK_CUR),
				  lseek(self->fd[PASSED], 0, SEEK_CUR));
		}
	}
}

TEST_F_TIMEOUT(calls, ftruncate, 250)
{
	static const off_t sizes[] = {
		0, 1, BLOCK, SIZE, SIZE + 1, -1, INT64_MIN, 4 * SIZE, 100,
	};
	static const int opens[] = { O_RDWR, O_WRONLY, O_RDONLY, O_RDWR | O_APPEND };
	int err[SIDES];
	size_t i, k;
	int side;

	for (k = 0; k < ARRAY_SIZE(opens); k++) {
		ASSERT_EQ(0, open_both(self->fd, opens[k]));
		for (i = 0; i < ARRAY_SIZE(sizes); i++) {
			for (side = 0; side < SIDES; side++)
				err[side] = srv_result(ftruncate(self->fd[side],
								 sizes[i]));
			ASSERT_EQ(err[ITSELF], err[PASSED]);
			ASSERT_EQ(size_of(self->fd[ITSELF]),
				  size_of(self->fd[PASSED]));
			ASSERT_TRUE(same_bytes(self->lower));
		}
	}
}

static int advise(int fd, int what, const struct range *range)
{
	enum { READAHEAD = 8, SYNC_RANGE };

	if (what < READAHEAD)
		return -posix_fadvise(fd, range->offset, range->len, what);
	if (what == READAHEAD)
		return srv_result(readahead(fd, range->offset, range->len));
	return srv_result(sync_file_range(fd, range->offset, range->len,
					  what - SYNC_RANGE));
}

/* Each posix_fadvise(2), readahead(2), all flags of sync_file_range(2) */
TEST_F_TIMEOUT(calls, advice, 250)
{
	static const int opens[] = { O_RDWR, O_RDONLY, O_WRONLY, O_PATH };
	int at_once[SIDES] = { 0 };
	bool same;
	int err[SIDES];
	size_t i, k;
	int what, side;

	for (k = 0; k < ARRAY_SIZE(opens); k++) {
		ASSERT_EQ(0, open_both(self->fd, opens[k]));
		for (what = 0; what < 9 + 16; what++) {
			for (i = 0; i < ARRAY_SIZE(ranges); i++) {
				for (side = 0; side < SIDES; side++)
					err[side] = advise(self->fd[side], what,
							   &ranges[i]);
				ASSERT_EQ(err[ITSELF], err[PASSED]) {
					TH_LOG("advice %d, %lld, %lld", what,
					       (long long)ranges[i].offset,
					       (long long)ranges[i].len);
				}
			}
		}
		same = transfer_everywhere(_metadata, self->fd, self->lower,
					   0, at_once);
		ASSERT_TRUE(same);
	}
}

TEST_HARNESS_MAIN
