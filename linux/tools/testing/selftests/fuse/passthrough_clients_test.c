// SPDX-License-Identifier: GPL-2.0
/*
 * What programs for mainline's passthrough send, word by word: their answers to
 * INIT, their ioctls by number, and when they register and close an id.  None
 * of them asks which kernel it is that serves them.
 */
#define _GNU_SOURCE
#include <stdio.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/mount.h>

#include "fuse_test_files.h"

#define NEW_MNT		SRV_MNT "/new"

/* Numbers, since these programs have headers of their own */
#define BACKING_OPEN	0x4010e501
#define BACKING_CLOSE	0x4004e502
#define PASSTHROUGH	0x80		/* in the answer to an open */
#define EXT		0x40000000	/* of INIT: flags2 holds something */
#define PASSTHROUGH_37	0x20		/* there */

/* How a program keeps its ids */
enum keeps {
	FOR_THE_INODE,	/* one for all its opens, closed with the last of them */
	FOR_EVER,	/* one for all opens, closed by nobody */
};

struct client {
	__u32 minor;
	__u32 flags;
	__u32 depth;
	__u16 max_pages;
	bool writable;	/* registers a descriptor that can write, whoever opens */
	enum keeps keeps;
};

/* The ids of the inodes that have one */
#define INODES	4

static struct {
	ino_t ino;
	int id;
	int opens;
} inodes[INODES];

static const struct client *client;
static atomic_int registered, closed;

static int register_fd(struct srv_req *req, int fd)
{
	char path[32];
	__u32 map[4] = { fd };
	int id;

	if (client->writable) {
		snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
		map[0] = open(path, O_RDWR | O_CLOEXEC);
	}
	id = srv_result(ioctl(req->dev, BACKING_OPEN, map));
	if (client->writable)
		close(map[0]);
	registered += id > 0;
	return id;
}

static void close_id(int dev, __u32 id)
{
	closed += !ioctl(dev, BACKING_CLOSE, &id);
}

/* The place of this open file's inode, or a free one */
static int find_inode(int fd)
{
	struct stat st;
	int i;

	fstat(fd, &st);
	for (i = 0; i < INODES - 1; i++)
		if (inodes[i].ino == st.st_ino || !inodes[i].ino)
			break;
	inodes[i].ino = st.st_ino;
	return i;
}

static int answer_open(struct srv *srv, struct srv_req *req,
		       struct fuse_entry_out *entry, struct fuse_open_out *out)
{
	int i = find_inode(out->fh);

	if (!inodes[i].id)
		inodes[i].id = register_fd(req, out->fh);
	if (inodes[i].id < 0)
		return inodes[i].id;
	inodes[i].opens++;
	out->open_flags = PASSTHROUGH;
	out->backing_id = inodes[i].id;
	srv_reply_open(req, entry, out);
	return SRV_TAKEN;
}

static void answer_init(struct srv *srv, struct srv_req *req)
{
	const __u32 *in = (const __u32 *)req->arg;
	const __u32 out[16] = {
		7, client->minor, in[2], in[3] & (client->flags | EXT),
		12 | 9 << 16, SRV_MAX_WRITE, 1, client->max_pages,
		in[4] & PASSTHROUGH_37, client->depth,
	};

	srv_reply(req, 0, out, sizeof(out));
}

static int on_request(struct srv *srv, struct srv_req *req)
{
	const struct fuse_release_in *in = (void *)req->arg;
	int i;

	if (req->in.opcode == FUSE_INIT) {
		answer_init(srv, req);
		return SRV_TAKEN;
	}
	if (req->in.opcode != FUSE_RELEASE || client->keeps != FOR_THE_INODE)
		return SRV_GO_ON;
	i = find_inode(in->fh);
	if (!--inodes[i].opens) {
		close_id(req->dev, inodes[i].id);
		inodes[i].id = 0;
	}
	return SRV_GO_ON;
}

FIXTURE(clients) {
	struct srv *srv;
};

FIXTURE_VARIANT(clients) {
	struct client client;
	int ids;	/* that the test makes it register */
};

/* libfuse 3.18: an id for each inode, of a descriptor that reads and writes */
FIXTURE_VARIANT_ADD(clients, libfuse) {
	.client = {
		.minor = 45,
		.flags = FUSE_ASYNC_READ | FUSE_ATOMIC_O_TRUNC |
			 FUSE_BIG_WRITES | FUSE_AUTO_INVAL_DATA |
			 FUSE_ASYNC_DIO | FUSE_PARALLEL_DIROPS |
			 FUSE_HANDLE_KILLPRIV | FUSE_MAX_PAGES,
		.depth = 1,
		.max_pages = 256,
		.writable = true,
		.keeps = FOR_THE_INODE,
	},
	.ids = 3,
};

/* mergerfs 2.41: the descriptor of the first open serves the others */
FIXTURE_VARIANT_ADD(clients, mergerfs) {
	.client = {
		.minor = 43,
		.flags = FUSE_ASYNC_READ | FUSE_ATOMIC_O_TRUNC |
			 FUSE_BIG_WRITES | FUSE_DONT_MASK | FUSE_ASYNC_DIO |
			 FUSE_PARALLEL_DIROPS | FUSE_MAX_PAGES,
		.depth = 2,
		.max_pages = 32,
		.keeps = FOR_THE_INODE,
	},
	.ids = 3,
};

/* go-fuse says 7.28, and speaks of what came later all the same. */
FIXTURE_VARIANT_ADD(clients, go_fuse) {
	.client = {
		.minor = 28,
		.flags = FUSE_ASYNC_READ | FUSE_BIG_WRITES |
			 FUSE_AUTO_INVAL_DATA | FUSE_PARALLEL_DIROPS |
			 FUSE_MAX_PAGES,
		.depth = 1,
		.max_pages = 32,
		.keeps = FOR_THE_INODE,
	},
	.ids = 3,
};

/* fuser: an id is an object, which the files that are open share. */
FIXTURE_VARIANT_ADD(clients, fuser) {
	.client = {
		.minor = 40,
		.flags = FUSE_ASYNC_READ | FUSE_BIG_WRITES | FUSE_MAX_PAGES,
		.depth = 2,
		.max_pages = 32,
		.keeps = FOR_THE_INODE,
	},
	.ids = 3,
};

/* And one that leaves it all to the end of the connection */
FIXTURE_VARIANT_ADD(clients, careless) {
	.client = {
		.minor = 41,
		.flags = FUSE_BIG_WRITES,
		.depth = 1,
		.keeps = FOR_EVER,
	},
	.ids = 2,
};

FIXTURE_SETUP(clients)
{
	make_data();
	client = &variant->client;
	ASSERT_EQ(0, srv_namespace());
	ASSERT_EQ(0, srv_mount_lower("ext4"));
	ASSERT_TRUE(make_lower(LOWER, 0666, 4 * BLOCK));
	unlink(SRV_LOWER "/new");
	self->srv = srv_new();
	ASSERT_NE(NULL, self->srv);
	self->srv->lower = open(SRV_LOWER, O_PATH | O_DIRECTORY);
	ASSERT_LE(0, self->srv->lower);
	self->srv->hold_init = true;
	self->srv->on_request = on_request;
	self->srv->on_open = answer_open;
	self->srv->valid = 1;
	ASSERT_EQ(0, srv_start(self->srv, SRV_MNT));
	close(self->srv->lower);
}

/* No id pins a lower file for longer than the connection. */
FIXTURE_TEARDOWN(clients)
{
	EXPECT_EQ(0, self->srv->seen[FUSE_READ]);
	EXPECT_EQ(0, self->srv->seen[FUSE_WRITE]);
	EXPECT_EQ(0, srv_stop(self->srv));
	EXPECT_EQ(0, srv_unmount(SRV_LOWER));
}

TEST_F(clients, open_read_write_close)
{
	int reader = open(FILE_MNT, O_RDONLY);
	int writer = open(FILE_MNT, O_RDWR);
	int append = open(FILE_MNT, O_WRONLY | O_APPEND);
	int new = open(NEW_MNT, O_CREAT | O_EXCL | O_RDWR, 0644);
	int last, opens = 6;
	char *map;

	ASSERT_LE(0, reader);
	ASSERT_LE(0, writer);
	ASSERT_LE(0, append);
	ASSERT_LE(0, new);
	ASSERT_EQ(BLOCK, pread(reader, back, BLOCK, BLOCK));
	ASSERT_EQ(0, memcmp(data + BLOCK, back, BLOCK));
	ASSERT_EQ(BLOCK, pwrite(writer, data + 5, BLOCK, BLOCK));
	ASSERT_EQ(BLOCK, pread(reader, back, BLOCK, BLOCK));
	ASSERT_EQ(0, memcmp(data + 5, back, BLOCK));
	ASSERT_EQ(100, write(append, data + 6, 100));
	ASSERT_EQ(4 * BLOCK + 100, size_of(reader));
	ASSERT_EQ(BLOCK, write(new, data + 7, BLOCK));
	ASSERT_EQ(BLOCK, size_of(new));
	/* The reader's rights are those of its own open. */
	ASSERT_EQ(-1, pwrite(reader, data, 1, 0));
	ASSERT_EQ(EBADF, errno);
	map = mmap(NULL, BLOCK, PROT_READ | PROT_WRITE, MAP_SHARED, writer, 0);
	ASSERT_NE(MAP_FAILED, map);
	close(reader);
	close(writer);
	close(append);
	memcpy(map, data + 8, BLOCK);
	last = open(FILE_MNT, O_RDONLY);
	ASSERT_LE(0, last);
	ASSERT_EQ(BLOCK, pread(last, back, BLOCK, 0));
	ASSERT_EQ(0, memcmp(data + 8, back, BLOCK));
	ASSERT_EQ(0, munmap(map, BLOCK));
	close(last);
	close(new);
	ASSERT_TRUE(lower_is(4 * BLOCK + 100, 0, data + 8, BLOCK));

	/* And after all was closed, from the start */
	ASSERT_TRUE(srv_wait(self->srv, FUSE_RELEASE, opens - 1));
	last = open(FILE_MNT, O_RDONLY | O_NONBLOCK);
	ASSERT_LE(0, last);
	ASSERT_EQ(100, pread(last, back, BLOCK, 4 * BLOCK));
	ASSERT_EQ(0, memcmp(data + 6, back, 100));
	close(last);
	ASSERT_TRUE(srv_wait(self->srv, FUSE_RELEASE, opens));
	ASSERT_EQ(variant->ids, registered);
	ASSERT_EQ(client->keeps == FOR_EVER ? 0 : variant->ids, closed);
}

TEST_HARNESS_MAIN
