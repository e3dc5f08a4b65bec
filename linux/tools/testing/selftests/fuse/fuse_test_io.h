/* SPDX-License-Identifier: GPL-2.0 */
/*
 * The fixture io: the same body runs over passthrough, plain FUSE and the bare
 * lower file.  Passthrough must do what the bare file does, and the server must
 * see no READ and no WRITE; plain FUSE is the control that these counters count.
 */
#ifndef FUSE_TEST_IO_H
#define FUSE_TEST_IO_H

#include "fuse_test_files.h"

#define LOWER2		SRV_LOWER "/other"

static inline bool same_time(struct timespec a, struct timespec b)
{
	return a.tv_sec == b.tv_sec && a.tv_nsec == b.tv_nsec;
}

/* Size, mode and times are those of the lower file. */
static inline bool same_stat(int fd)
{
	struct stat st, low;

	return !fstat(fd, &st) && !stat(LOWER, &low) &&
	       st.st_size == low.st_size && st.st_mode == low.st_mode &&
	       same_time(st.st_mtim, low.st_mtim) &&
	       same_time(st.st_ctim, low.st_ctim) &&
	       same_time(st.st_atim, low.st_atim);
}

FIXTURE(io) {
	struct env env;
	const char *other;
};

FIXTURE_VARIANT(io) {
	const char *fs;
	enum way way;
};

FIXTURE_VARIANT_ADD(io, ext4) { "ext4", BY_REQUEST };
FIXTURE_VARIANT_ADD(io, xfs) { "xfs", BY_REQUEST };
FIXTURE_VARIANT_ADD(io, tmpfs) { "tmpfs", BY_REQUEST };
FIXTURE_VARIANT_ADD(io, ext4_id) { "ext4", BY_ID };
FIXTURE_VARIANT_ADD(io, xfs_id) { "xfs", BY_ID };
FIXTURE_VARIANT_ADD(io, overlay) { "overlay", BY_REQUEST };
FIXTURE_VARIANT_ADD(io, ext4_plain) { "ext4", PLAIN };
FIXTURE_VARIANT_ADD(io, ext4_bare) { "ext4", BARE };

FIXTURE_SETUP(io)
{
	env_setup(_metadata, &self->env, variant->fs, variant->way, 0);
	ASSERT_TRUE(make_lower(LOWER2, 0666, 0));
	self->other = variant->way == BARE ? LOWER2 : SRV_MNT "/other";
	env_start(_metadata, &self->env);
}

FIXTURE_TEARDOWN(io)
{
	env_teardown(_metadata, &self->env);
}

#endif /* FUSE_TEST_IO_H */
