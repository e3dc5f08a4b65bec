/* SPDX-License-Identifier: GPL-2.0 */
/*
 * A small FUSE server for tests.  It speaks to /dev/fuse itself, so that a
 * wrong, a late and a hostile answer are one line each.
 *
 * It serves a lower directory, in threads of the test or in a child process
 * with other credentials.  It never touches its own mount, and allocates
 * nothing while it serves.  A guard process aborts the connection shortly
 * before the harness would kill a test that hangs: the blocked system call
 * then fails, and so does an assertion with a line number.
 *
 *	srv_namespace();
 *	srv = srv_new();
 *	srv->lower = open(SRV_LOWER, O_PATH | O_DIRECTORY);
 *	srv->mode = SRV_PASSTHROUGH;
 *	ASSERT_EQ(0, srv_start(srv, SRV_MNT));
 *	fd = open(SRV_MNT "/file", O_RDWR);
 *	...
 *	ASSERT_EQ(0, srv->seen[FUSE_READ]);
 *	ASSERT_EQ(0, srv_stop(srv));
 *
 * Functions return 0 (or a descriptor) and a negative errno on failure.
 *
 * Other credentials in a test: fork first.  The C library's set*id() change
 * all threads of a process, the server's too.
 */
#ifndef FUSE_SERVER_H
#define FUSE_SERVER_H

#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <sys/types.h>
#include <linux/fuse.h>
#include <linux/types.h>

#define SRV_BASE	"/tmp"		/* a tmpfs of this test */
#define SRV_LOWER	SRV_BASE "/lower"	/* empty directories on it */
#define SRV_MNT		SRV_BASE "/mnt"

#define SRV_MAX_WRITE	(128 << 10)
#define SRV_MAX_THREADS	4
#define SRV_MAX_NODES	64
#define SRV_MAX_FD	1024

/**
 * enum srv_mode - how an open is answered
 * @SRV_PLAIN: the server reads and writes
 * @SRV_PASSTHROUGH: FUSE_DEV_IOC_PASSTHROUGH_OPEN before the answer
 * @SRV_BACKING_ID: the answer names an id from FUSE_DEV_IOC_BACKING_OPEN,
 *	which is closed with the file
 */
enum srv_mode {
	SRV_PLAIN,
	SRV_PASSTHROUGH,
	SRV_BACKING_ID,
};

/**
 * struct srv_req - a request as read from the device
 * @in: header
 * @arg: what follows it: the struct of the opcode, names, data
 * @buf: the whole message
 * @dev: the descriptor of /dev/fuse that it came from
 */
struct srv_req {
	union {
		struct {
			struct fuse_in_header in;
			char arg[];
		};
		char buf[SRV_MAX_WRITE + 4096];
	};
	int dev;
};

/* What a hook returns, beside a negative errno that becomes the answer */
#define SRV_GO_ON	0	/* do what the server does without a hook */
#define SRV_TAKEN	1	/* the hook answers or answered itself */

/* One served inode: an O_PATH descriptor and how often the kernel knows it */
struct srv_node {
	int fd;
	__u64 lookups;
	dev_t dev;
	ino_t ino;
};

/**
 * struct srv - a server and its mount, in memory shared with its child
 *
 * Set before srv_start(), all zero is a sound default:
 * @lower: directory to serve, stays the caller's
 * @mode: enum srv_mode; may be changed between opens
 * @no_capability: do not ask for FUSE_PASSTHROUGH
 * @flags: capabilities (FUSE_*) to ask for, beside the server's own
 * @max_stack_depth: for the answer to INIT
 * @open_flags: FOPEN_* for every answer to an open, may change between opens
 * @valid: seconds that the kernel may cache names and attributes
 * @options: mount options, for example "allow_other,default_permissions"
 * @threads: serving threads, 0 means 1, above 1 each has a cloned device
 * @by_hand: no thread: the test takes the requests, see srv_take()
 * @hold_init: leave INIT unanswered, for srv_init() or the test (by hand)
 * @uid: not 0: serve in a child process of this user and group
 * @timeout: seconds until the guard aborts, 0 means 56 (the harness kills a
 *	test after 60)
 * @on_request: called for each request, before anything else
 * @on_open: called for OPEN, CREATE and TMPFILE with the opened lower file,
 *	before it is attached. The hook may change the answer, which is @entry
 *	(NULL for OPEN) and @out. The lower file is @out->fh and stays the
 *	server's, who closes it when the hook returns an errno, or at RELEASE.
 *	After SRV_TAKEN, answer with srv_reply_open() or srv_reply().
 * @data: for the hooks
 *
 * To read:
 * @seen: requests by opcode, counted before they are served
 * @done: the same, counted when they have been served
 * @offered: capabilities that the kernel offered
 * @granted: capabilities that the server asked for
 * @dev: the descriptor of /dev/fuse that was mounted; a test that closes it
 *	sets it to -1
 * @pid: child process, with @uid
 */
struct srv {
	int lower;
	atomic_uint mode;
	bool no_capability;
	__u64 flags;
	__u32 max_stack_depth;
	atomic_uint open_flags;
	unsigned int valid;
	const char *options;
	unsigned int threads;
	bool by_hand;
	bool hold_init;
	uid_t uid;
	unsigned int timeout;
	int (*on_request)(struct srv *srv, struct srv_req *req);
	int (*on_open)(struct srv *srv, struct srv_req *req,
		       struct fuse_entry_out *entry,
		       struct fuse_open_out *out);
	void *data;

	atomic_int seen[64];
	atomic_int done[64];
	__u64 offered;
	__u64 granted;
	int dev;
	pid_t pid;

	/* private */
	char mnt[128];
	int abort_fd;
	pid_t guard;
	pthread_mutex_t lock;
	pthread_cond_t served;
	struct srv_node node[SRV_MAX_NODES];
	struct srv_file {
		bool open;
		int backing_id;
	} file[SRV_MAX_FD];
	struct srv_thread {
		struct srv *srv;
		pthread_t id;
		int dev;
		struct srv_req req;
	} thread[SRV_MAX_THREADS];
};

/* What a system call returned, with the errno for -1. */
static inline ssize_t srv_result(ssize_t ret)
{
	return ret < 0 ? -errno : ret;
}

/**
 * srv_namespace - a mount namespace of the test's own
 *
 * Nothing propagates out of it. A tmpfs on SRV_BASE holds the empty
 * directories SRV_LOWER and SRV_MNT; mount the lower file system on the
 * first, or use it as it is. All is gone with the last process of the test.
 */
int srv_namespace(void);

/**
 * srv_mount_lower - mount a lower file system on SRV_LOWER
 * @type: "tmpfs" (64 MiB), "ext4" (on /dev/ram0), "xfs" (on /dev/ram1) or
 *	"overlay" (on that ext4; its stack depth is 1), "xfs-quota" (on
 *	/dev/ram2, with quotas of users); or "ext4-disk" (on /dev/vda),
 *	"xfs-disk" (on /dev/vdb), whose I/O takes time, and ends in an interrupt;
 *	"btrfs", "vfat", "exfat", "ext2" (on /dev/ram4 and on), or "nfs" (what
 *	this machine exports as /export)
 *
 * mkfs runs only where the disk does not hold such a file system: files of
 * earlier tests may be there.
 */
int srv_mount_lower(const char *type);

/**
 * srv_unmount - unmount what nobody uses any more
 * @mnt: where it is mounted
 *
 * A worker of io_uring drops its reference to the file after it has posted the
 * completion, so that the file system may be busy for a moment more.
 *
 * Return: 0, or what umount(2) said, -EBUSY if it did so for ten seconds.
 */
int srv_unmount(const char *mnt);

/* A server with the defaults, or NULL; srv_stop() frees it. */
struct srv *srv_new(void);

/**
 * srv_start - mount, negotiate, serve
 * @srv: configured server
 * @mnt: existing directory
 */
int srv_start(struct srv *srv, const char *mnt);

/**
 * srv_stop - unmount, wait for the threads or the child, close all
 * @srv: server, freed by this
 *
 * Return: 0, or what umount(2) said; then the mount was detached and the
 * connection aborted, so that nothing hangs whatever the test left open.
 */
int srv_stop(struct srv *srv);

/* Abort the connection, as an administrator would. */
int srv_abort(struct srv *srv);

/* Wait until @n requests of @opcode have been served; false after 20 s. */
bool srv_wait(struct srv *srv, __u32 opcode, int n);

/* Forget what was counted. */
void srv_reset_counts(struct srv *srv);

/* A new descriptor of /dev/fuse for the same connection. */
int srv_clone(struct srv *srv);

/* By hand: answer INIT. srv_start() has done so unless hold_init was set. */
int srv_init(struct srv *srv);

/* Read one request from @dev, waiting for it. -ENODEV: no connection. */
int srv_read_request(int dev, struct srv_req *req);

/* Serve one request as a thread would; hooks apply. */
int srv_serve(struct srv *srv, struct srv_req *req);

/**
 * srv_take - serve by hand until a certain request comes
 * @srv: server started with by_hand
 * @opcode: the opcode to wait for
 * @req: where to put the request, which is counted and waits for an answer
 */
int srv_take(struct srv *srv, __u32 opcode, struct srv_req *req);

/* Answer with @error (0 or a negative errno) and @len bytes of @data. */
int srv_reply(struct srv_req *req, int error, const void *data, size_t len);

/**
 * srv_open_lower - open the lower file that an open request means
 * @srv: server
 * @req: OPEN, CREATE or TMPFILE; the last two make the file
 * @entry: filled for CREATE and TMPFILE
 *
 * With the opener's flags, but O_CREAT, O_EXCL and O_TRUNC; truncates where
 * O_TRUNC is asked.
 *
 * Return: descriptor, owned by the server until RELEASE or srv_close_lower()
 */
int srv_open_lower(struct srv *srv, struct srv_req *req,
		   struct fuse_entry_out *entry);

/* Close what srv_open_lower() opened, for an open that fails. */
void srv_close_lower(struct srv *srv, int fd);

/* Answer OPEN, or with @entry CREATE and TMPFILE, with success. */
int srv_reply_open(struct srv_req *req, const struct fuse_entry_out *entry,
		   const struct fuse_open_out *out);

/* FUSE_DEV_IOC_PASSTHROUGH_OPEN on @dev: 0 or a negative errno. */
int srv_attach(int dev, __u64 unique, int fd);

/* FUSE_DEV_IOC_BACKING_OPEN on @dev: an id or a negative errno. */
int srv_backing_open(int dev, int fd);

/* FUSE_DEV_IOC_BACKING_CLOSE on @dev: 0 or a negative errno. */
int srv_backing_close(int dev, __u32 id);

/**
 * struct srv_opener - an open(2) in a thread, for servers by hand
 * @path: file, stays the caller's
 * @flags: as for open(2)
 * @result: descriptor or negative errno, after srv_opener_wait()
 * @id: private
 */
struct srv_opener {
	const char *path;
	int flags;
	int result;
	pthread_t id;
};

int srv_opener_start(struct srv_opener *opener, const char *path, int flags);

/* The result of the open; opening with O_CREAT uses mode 0644. */
int srv_opener_wait(struct srv_opener *opener);

#endif /* FUSE_SERVER_H */
