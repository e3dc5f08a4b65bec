/* SPDX-License-Identifier: GPL-2.0 */
/*
 * A lower file of a file system of its own, SPARE, which a test unmounts: that
 * is busy as long as anybody holds the file.
 */
#ifndef FUSE_TEST_SPARE_H
#define FUSE_TEST_SPARE_H

#include <sys/statfs.h>

#include "fuse_test_files.h"

#define SPARE		SRV_BASE "/spare"
#define SPARE_FILE	SPARE "/file"

/* What is in SPARE_FILE: other data than in LOWER */
#define spare_data	(data + 16 * BLOCK)

static inline bool make_spare(void)
{
	return !mkdir(SPARE, 0700) &&
	       !mount("tmpfs", SPARE, "tmpfs", 0, NULL) &&
	       make_lower(SPARE_FILE, 0666, 0) &&
	       !truncate(SPARE_FILE, BLOCK);
}

static inline bool fill_spare(void)
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
static atomic_int attached = 1;

/* The kernel's reference is the only one. */
static inline int attach_spare(struct srv_req *req)
{
	int err, fd = open(SPARE_FILE, O_RDWR | O_CLOEXEC);

	err = srv_attach(req->dev, req->in.unique, fd);
	close(fd);
	return err;
}

static inline int give_answer(struct srv *srv, struct srv_req *req,
			      struct fuse_entry_out *entry,
			      struct fuse_open_out *out)
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

static inline void set_up(struct __test_metadata *_metadata, struct env *env,
			  const char *fs, enum way way)
{
	env_setup(_metadata, env, fs, way, 4 * BLOCK);
	env->srv->valid = 0;
	ASSERT_TRUE(make_spare());
	ASSERT_TRUE(fill_spare());
}

static inline void tear_down(struct __test_metadata *_metadata, struct env *env)
{
	env_teardown(_metadata, env);
	/* Unless the test has done so */
	if (umount2(SPARE, 0))
		EXPECT_EQ(EINVAL, errno);
}

/* All requests of before have been read by a server of one thread. */
static inline bool round_trip(void)
{
	struct statfs st;

	return !statfs(SRV_MNT, &st);
}

#endif /* FUSE_TEST_SPARE_H */
