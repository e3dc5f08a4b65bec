// SPDX-License-Identifier: GPL-2.0
/*
 * A small FUSE server for tests: the requests.  See fuse_server.h.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <time.h>
#include <unistd.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/statfs.h>
#include <sys/uio.h>

#include "fuse_server.h"

#define PATH_SIZE	64

#define SRV_FLAGS (FUSE_ASYNC_READ | FUSE_BIG_WRITES | FUSE_ASYNC_DIO |	\
		   FUSE_PARALLEL_DIROPS | FUSE_MAX_PAGES | FUSE_INIT_EXT | \
		   FUSE_NO_OPENDIR_SUPPORT)

int srv_read_request(int dev, struct srv_req *req)
{
	ssize_t len;

	do {
		len = read(dev, req->buf, sizeof(req->buf));
	} while (len < 0 && (errno == EINTR || errno == ENOENT));
	req->dev = dev;
	return len < 0 ? -errno : 0;
}

static int reply_iov(struct srv_req *req, int error, struct iovec *iov, int n)
{
	struct fuse_out_header out = {
		.len = sizeof(out),
		.error = error,
		.unique = req->in.unique,
	};
	int i;

	iov[0] = (struct iovec){ &out, sizeof(out) };
	for (i = 1; i < n; i++)
		out.len += iov[i].iov_len;
	return writev(req->dev, iov, n) < 0 ? -errno : 0;
}

int srv_reply(struct srv_req *req, int error, const void *data, size_t len)
{
	struct iovec iov[2] = { [1] = { (void *)data, len } };

	return reply_iov(req, error, iov, len ? 2 : 1);
}

int srv_reply_open(struct srv_req *req, const struct fuse_entry_out *entry,
		   const struct fuse_open_out *out)
{
	struct iovec iov[3] = {
		[1] = { (void *)entry, entry ? sizeof(*entry) : 0 },
		[2] = { (void *)out, sizeof(*out) },
	};

	return reply_iov(req, 0, iov, 3);
}

int srv_attach(int dev, __u64 unique, int fd)
{
	struct fuse_passthrough_out arg = { .unique = unique, .fd = fd };

	return srv_result(ioctl(dev, FUSE_DEV_IOC_PASSTHROUGH_OPEN, &arg));
}

int srv_backing_open(int dev, int fd)
{
	struct fuse_backing_map arg = { .fd = fd };

	return srv_result(ioctl(dev, FUSE_DEV_IOC_BACKING_OPEN, &arg));
}

int srv_backing_close(int dev, __u32 id)
{
	return srv_result(ioctl(dev, FUSE_DEV_IOC_BACKING_CLOSE, &id));
}

/* Inodes and open files */

static int node_fd(struct srv *srv, __u64 nodeid)
{
	return srv->node[nodeid - FUSE_ROOT_ID].fd;
}

static void fd_path(char *path, int fd)
{
	snprintf(path, PATH_SIZE, "/proc/self/fd/%d", fd);
}

static int get_attr(struct srv *srv, __u64 nodeid, struct fuse_attr *attr)
{
	struct stat st;

	if (fstat(node_fd(srv, nodeid), &st))
		return -errno;
	*attr = (struct fuse_attr){
		.ino = st.st_ino,
		.size = st.st_size,
		.blocks = st.st_blocks,
		.atime = st.st_atim.tv_sec,
		.atimensec = st.st_atim.tv_nsec,
		.mtime = st.st_mtim.tv_sec,
		.mtimensec = st.st_mtim.tv_nsec,
		.ctime = st.st_ctim.tv_sec,
		.ctimensec = st.st_ctim.tv_nsec,
		.mode = st.st_mode,
		.nlink = st.st_nlink,
		.uid = st.st_uid,
		.gid = st.st_gid,
		.rdev = st.st_rdev,
		.blksize = st.st_blksize,
	};
	return 0;
}

/* The node of an inode, or a free one, -1 when there is none. */
static int find_node(struct srv *srv, const struct stat *st)
{
	struct srv_node *node;
	int i, empty = -1;

	for (i = 0; i < SRV_MAX_NODES; i++) {
		node = &srv->node[i];
		if (node->fd < 0 && empty < 0)
			empty = i;
		if (node->fd >= 0 && node->ino == st->st_ino &&
		    node->dev == st->st_dev)
			return i;
	}
	return empty;
}

/* Takes over @fd, an O_PATH descriptor. */
static int fill_entry(struct srv *srv, int fd, struct fuse_entry_out *entry)
{
	struct srv_node *node;
	struct stat st;
	int i;

	if (fd < 0 || fstat(fd, &st))
		return -errno;
	pthread_mutex_lock(&srv->lock);
	i = find_node(srv, &st);
	node = &srv->node[i];
	if (i >= 0 && node->fd < 0)
		*node = (struct srv_node){ fd, 0, st.st_dev, st.st_ino };
	else
		close(fd);
	if (i >= 0)
		node->lookups++;
	pthread_mutex_unlock(&srv->lock);
	if (i < 0)
		return -ENFILE;
	memset(entry, 0, sizeof(*entry));
	entry->nodeid = i + FUSE_ROOT_ID;
	entry->entry_valid = srv->valid;
	entry->attr_valid = srv->valid;
	return get_attr(srv, entry->nodeid, &entry->attr);
}

static void forget(struct srv *srv, __u64 nodeid, __u64 lookups)
{
	struct srv_node *node = &srv->node[nodeid - FUSE_ROOT_ID];

	if (nodeid == FUSE_ROOT_ID)
		return;
	pthread_mutex_lock(&srv->lock);
	node->lookups -= lookups;
	if (!node->lookups) {
		close(node->fd);
		node->fd = -1;
	}
	pthread_mutex_unlock(&srv->lock);
}

/* A plain server gets offsets from the kernel, and unaligned buffers. */
static int lower_flags(struct srv *srv, __u32 flags)
{
	flags &= ~(O_CREAT | O_EXCL | O_TRUNC | O_NOFOLLOW);
	if (srv->mode == SRV_PLAIN)
		flags &= ~(O_APPEND | O_DIRECT);
	if (srv->granted & FUSE_WRITEBACK_CACHE &&
	    (flags & O_ACCMODE) == O_WRONLY)
		flags ^= O_WRONLY ^ O_RDWR;
	return flags | O_CLOEXEC;
}

static int create_lower(struct srv *srv, struct srv_req *req,
			struct fuse_entry_out *entry)
{
	const struct fuse_create_in *in = (void *)req->arg;
	int dir = node_fd(srv, req->in.nodeid);
	int flags = lower_flags(srv, in->flags);
	char path[PATH_SIZE];
	int fd, err;

	if (req->in.opcode == FUSE_TMPFILE)
		fd = openat(dir, ".", flags | O_TMPFILE, in->mode);
	else
		fd = openat(dir, (char *)(in + 1),
			    flags | O_CREAT | (in->flags & O_EXCL), in->mode);
	if (fd < 0)
		return -errno;
	fd_path(path, fd);
	if (!srv->uid && fchown(fd, req->in.uid, req->in.gid))
		err = -errno;
	else
		err = fill_entry(srv, open(path, O_PATH | O_CLOEXEC), entry);
	if (err) {
		close(fd);
		return err;
	}
	return fd;
}

static int open_lower(struct srv *srv, struct srv_req *req)
{
	const struct fuse_open_in *in = (void *)req->arg;
	char path[PATH_SIZE];
	int fd;

	fd_path(path, node_fd(srv, req->in.nodeid));
	if (in->flags & O_TRUNC && truncate(path, 0))
		return -errno;
	fd = open(path, lower_flags(srv, in->flags));
	return srv_result(fd);
}

int srv_open_lower(struct srv *srv, struct srv_req *req,
		   struct fuse_entry_out *entry)
{
	int fd = req->in.opcode == FUSE_OPEN ? open_lower(srv, req) :
					       create_lower(srv, req, entry);

	if (fd >= SRV_MAX_FD) {
		close(fd);
		return -EMFILE;
	}
	if (fd >= 0)
		srv->file[fd] = (struct srv_file){ .open = true };
	return fd;
}

void srv_close_lower(struct srv *srv, int fd)
{
	struct srv_file *file = &srv->file[fd];

	if (file->backing_id)
		srv_backing_close(srv->dev, file->backing_id);
	file->open = false;
	close(fd);
}

/* One function for each request: it answers, or returns a negative errno. */

static int serve_lookup(struct srv *srv, struct srv_req *req)
{
	struct fuse_entry_out entry;
	int fd = openat(node_fd(srv, req->in.nodeid), req->arg,
			O_PATH | O_NOFOLLOW | O_CLOEXEC);
	int err = fill_entry(srv, fd, &entry);

	return err ?: srv_reply(req, 0, &entry, sizeof(entry));
}

static int serve_forget(struct srv *srv, struct srv_req *req)
{
	const struct fuse_forget_in *in = (void *)req->arg;

	forget(srv, req->in.nodeid, in->nlookup);
	return SRV_TAKEN;
}

static int serve_batch_forget(struct srv *srv, struct srv_req *req)
{
	const struct fuse_batch_forget_in *in = (void *)req->arg;
	const struct fuse_forget_one *one = (void *)(in + 1);
	__u32 i;

	for (i = 0; i < in->count; i++)
		forget(srv, one[i].nodeid, one[i].nlookup);
	return SRV_TAKEN;
}

static int serve_getattr(struct srv *srv, struct srv_req *req)
{
	struct fuse_attr_out out = { .attr_valid = srv->valid };
	int err = get_attr(srv, req->in.nodeid, &out.attr);

	return err ?: srv_reply(req, 0, &out, sizeof(out));
}

static struct timespec new_time(__u32 valid, int shift, __u64 sec,
				__u32 nsec)
{
	if (!(valid & FATTR_ATIME << shift))
		return (struct timespec){ .tv_nsec = UTIME_OMIT };
	if (valid & FATTR_ATIME_NOW << shift)
		return (struct timespec){ .tv_nsec = UTIME_NOW };
	return (struct timespec){ .tv_sec = sec, .tv_nsec = nsec };
}

static int set_attr(int node, const struct fuse_setattr_in *in)
{
	struct timespec times[2] = {
		new_time(in->valid, 0, in->atime, in->atimensec),
		new_time(in->valid, 1, in->mtime, in->mtimensec),
	};
	char path[PATH_SIZE];

	fd_path(path, node);
	if (in->valid & (FATTR_UID | FATTR_GID) &&
	    chown(path, in->valid & FATTR_UID ? in->uid : -1U,
		  in->valid & FATTR_GID ? in->gid : -1U))
		return -errno;
	if (in->valid & FATTR_MODE && chmod(path, in->mode & 07777))
		return -errno;
	if (in->valid & FATTR_SIZE &&
	    (in->valid & FATTR_FH ? ftruncate(in->fh, in->size) :
				    truncate(path, in->size)))
		return -errno;
	if (in->valid & (FATTR_ATIME | FATTR_MTIME) &&
	    utimensat(AT_FDCWD, path, times, 0))
		return -errno;
	return 0;
}

static int serve_setattr(struct srv *srv, struct srv_req *req)
{
	int err = set_attr(node_fd(srv, req->in.nodeid), (void *)req->arg);

	return err ?: serve_getattr(srv, req);
}

static int pass_through(struct srv *srv, struct srv_req *req,
			enum srv_mode mode, struct fuse_open_out *out)
{
	int id;

	if (mode == SRV_PASSTHROUGH)
		return srv_attach(req->dev, req->in.unique, out->fh);
	if (mode == SRV_PLAIN)
		return 0;
	id = srv_backing_open(req->dev, out->fh);
	if (id < 0)
		return id;
	srv->file[out->fh].backing_id = id;
	out->backing_id = id;
	out->open_flags |= FOPEN_PASSTHROUGH;
	return 0;
}

static int serve_open(struct srv *srv, struct srv_req *req)
{
	struct fuse_open_out out = { .open_flags = srv->open_flags };
	struct fuse_entry_out room, *entry = NULL;
	enum srv_mode mode = srv->mode;
	int err = SRV_GO_ON;
	int fd;

	if (req->in.opcode != FUSE_OPEN)
		entry = &room;
	fd = srv_open_lower(srv, req, entry);
	if (fd < 0)
		return fd;
	out.fh = fd;
	if (srv->on_open)
		err = srv->on_open(srv, req, entry, &out);
	if (err == SRV_GO_ON)
		err = pass_through(srv, req, mode, &out);
	if (err == SRV_GO_ON)
		err = srv_reply_open(req, entry, &out);
	if (err < 0)
		srv_close_lower(srv, fd);
	return err;
}

/* The answer goes where the argument was. */
static int serve_read(struct srv *srv, struct srv_req *req)
{
	const struct fuse_read_in *in = (void *)req->arg;
	ssize_t len = pread(in->fh, req->arg, in->size, in->offset);

	return len < 0 ? -errno : srv_reply(req, 0, req->arg, len);
}

static int serve_write(struct srv *srv, struct srv_req *req)
{
	const struct fuse_write_in *in = (void *)req->arg;
	ssize_t len = pwrite(in->fh, in + 1, in->size, in->offset);
	struct fuse_write_out out = { .size = len };

	return len < 0 ? -errno : srv_reply(req, 0, &out, sizeof(out));
}

static int serve_statfs(struct srv *srv, struct srv_req *req)
{
	struct fuse_statfs_out out = { 0 };
	struct statfs st;

	if (fstatfs(node_fd(srv, req->in.nodeid), &st))
		return -errno;
	out.st.blocks = st.f_blocks;
	out.st.bfree = st.f_bfree;
	out.st.bavail = st.f_bavail;
	out.st.files = st.f_files;
	out.st.ffree = st.f_ffree;
	out.st.bsize = st.f_bsize;
	out.st.frsize = st.f_frsize;
	out.st.namelen = st.f_namelen;
	return srv_reply(req, 0, &out, sizeof(out));
}

static int serve_flush(struct srv *srv, struct srv_req *req)
{
	return srv_reply(req, 0, NULL, 0);
}

static int serve_release(struct srv *srv, struct srv_req *req)
{
	const struct fuse_release_in *in = (void *)req->arg;

	srv_close_lower(srv, in->fh);
	return srv_reply(req, 0, NULL, 0);
}

static int serve_fsync(struct srv *srv, struct srv_req *req)
{
	const struct fuse_fsync_in *in = (void *)req->arg;

	if (in->fsync_flags & FUSE_FSYNC_FDATASYNC ? fdatasync(in->fh) :
						     fsync(in->fh))
		return -errno;
	return srv_reply(req, 0, NULL, 0);
}

static int serve_fallocate(struct srv *srv, struct srv_req *req)
{
	const struct fuse_fallocate_in *in = (void *)req->arg;

	if (fallocate(in->fh, in->mode, in->offset, in->length))
		return -errno;
	return srv_reply(req, 0, NULL, 0);
}

static int serve_lseek(struct srv *srv, struct srv_req *req)
{
	const struct fuse_lseek_in *in = (void *)req->arg;
	off_t offset = lseek(in->fh, in->offset, in->whence);
	struct fuse_lseek_out out = { .offset = offset };

	return offset < 0 ? -errno : srv_reply(req, 0, &out, sizeof(out));
}

static int serve_copy_file_range(struct srv *srv, struct srv_req *req)
{
	const struct fuse_copy_file_range_in *in = (void *)req->arg;
	loff_t from = in->off_in, to = in->off_out;
	ssize_t len = copy_file_range(in->fh_in, &from, in->fh_out, &to,
				      in->len, 0);
	struct fuse_write_out out = { .size = len };

	return len < 0 ? -errno : srv_reply(req, 0, &out, sizeof(out));
}

static int serve_unlink(struct srv *srv, struct srv_req *req)
{
	if (unlinkat(node_fd(srv, req->in.nodeid), req->arg, 0))
		return -errno;
	return srv_reply(req, 0, NULL, 0);
}

/* What is not here is answered with ENOSYS. */
static int (*const serve[64])(struct srv *srv, struct srv_req *req) = {
	[FUSE_LOOKUP] = serve_lookup,
	[FUSE_FORGET] = serve_forget,
	[FUSE_BATCH_FORGET] = serve_batch_forget,
	[FUSE_GETATTR] = serve_getattr,
	[FUSE_SETATTR] = serve_setattr,
	[FUSE_OPEN] = serve_open,
	[FUSE_CREATE] = serve_open,
	[FUSE_TMPFILE] = serve_open,
	[FUSE_READ] = serve_read,
	[FUSE_WRITE] = serve_write,
	[FUSE_STATFS] = serve_statfs,
	[FUSE_FLUSH] = serve_flush,
	[FUSE_RELEASE] = serve_release,
	[FUSE_FSYNC] = serve_fsync,
	[FUSE_FALLOCATE] = serve_fallocate,
	[FUSE_LSEEK] = serve_lseek,
	[FUSE_COPY_FILE_RANGE] = serve_copy_file_range,
	[FUSE_UNLINK] = serve_unlink,
};

int srv_serve(struct srv *srv, struct srv_req *req)
{
	__u32 opcode = req->in.opcode % 64;
	int err = SRV_GO_ON;

	srv->seen[opcode]++;
	if (srv->on_request)
		err = srv->on_request(srv, req);
	if (err == SRV_GO_ON)
		err = serve[opcode] ? serve[opcode](srv, req) : -ENOSYS;
	if (err < 0)
		err = srv_reply(req, err, NULL, 0);
	pthread_mutex_lock(&srv->lock);
	srv->done[opcode]++;
	pthread_cond_broadcast(&srv->served);
	pthread_mutex_unlock(&srv->lock);
	return err < 0 ? err : 0;
}

int srv_take(struct srv *srv, __u32 opcode, struct srv_req *req)
{
	int err;

	for (;;) {
		err = srv_read_request(srv->dev, req);
		if (err)
			return err;
		if (req->in.opcode == opcode)
			break;
		srv_serve(srv, req);
	}
	srv->seen[opcode % 64]++;
	return 0;
}

bool srv_wait(struct srv *srv, __u32 opcode, int n)
{
	struct timespec end;
	int err = 0;

	clock_gettime(CLOCK_MONOTONIC, &end);
	end.tv_sec += 20;
	pthread_mutex_lock(&srv->lock);
	while (srv->done[opcode] < n && !err)
		err = pthread_cond_timedwait(&srv->served, &srv->lock, &end);
	pthread_mutex_unlock(&srv->lock);
	return !err;
}

void srv_reset_counts(struct srv *srv)
{
	int i;

	for (i = 0; i < 64; i++) {
		srv->seen[i] = 0;
		srv->done[i] = 0;
	}
}

int srv_init(struct srv *srv)
{
	struct srv_req *req = &srv->thread[0].req;
	const struct fuse_init_in *in = (void *)req->arg;
	struct fuse_init_out out = {
		.major = FUSE_KERNEL_VERSION,
		.minor = FUSE_KERNEL_MINOR_VERSION,
		.max_write = SRV_MAX_WRITE,
		.max_pages = SRV_MAX_WRITE / 4096,
		.time_gran = 1,
		.max_stack_depth = srv->max_stack_depth,
	};
	__u64 flags = SRV_FLAGS | srv->flags;
	int err = srv_read_request(srv->dev, req);

	if (err)
		return err;
	if (!srv->no_capability)
		flags |= FUSE_PASSTHROUGH;
	out.max_readahead = in->max_readahead;
	srv->offered = in->flags | (__u64)in->flags2 << 32;
	srv->granted = flags & srv->offered;
	out.flags = srv->granted;
	out.flags2 = srv->granted >> 32;
	srv->seen[FUSE_INIT]++;
	return srv_reply(req, 0, &out, sizeof(out));
}
