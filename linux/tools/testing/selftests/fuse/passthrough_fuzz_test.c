// SPDX-License-Identifier: GPL-2.0
/*
 * A hostile server, hostile clients and a third hand, at random.
 *
 * An ordinary user mounts three connections in a user namespace.  Their servers
 * serve a real directory's files, and each other's, and answer right, late,
 * twice, never, or nonsense.  Clients do to the files what system calls can.
 * Meanwhile root aborts connections, kills clients, drops caches and freezes the
 * file system below.  Whatever they do, all of them end soon after the connections
 * are aborted, nothing stays open, and the files below have only bytes that
 * somebody wrote.  What the kernel says meanwhile is for others to watch.
 *
 *	PASSTHROUGH_SEED=17 PASSTHROUGH_STEPS=1000 ./passthrough_fuzz_test
 *
 * The seed decides what each actor does, not who comes first.  STEPS are rounds,
 * each with mounts of its own.
 */
#define _GNU_SOURCE
#include <sched.h>
#include <setjmp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/sendfile.h>
#include <sys/socket.h>
#include <linux/falloc.h>

#include "fuse_test_flight.h"

#define ROUNDS		200
#define MOUNTS		3
#define CLIENTS		3
#define FILES		6
#define OPERATIONS	60	/* of a client, in a round */
#define LOWERS		24	/* descriptors that a server tries */
#define FDS		6	/* of a client */
#define MAPS		4
#define SPAN		(64 << 10)
#define MOUNT		SRV_BASE "/fuzz-%u"

/* Shared by all */
static struct shared {
	atomic_uint minor[MOUNTS];	/* of the mounts, for abort */
	atomic_int pid[CLIENTS];
	atomic_ullong unique[MOUNTS];	/* of the last request */
	atomic_int attached;		/* lower files handed in */
	atomic_int passed;		/* reads and writes that no server saw */
	atomic_bool ready;
} *shared;

/* An actor has its own sequence of numbers */
struct actor {
	unsigned int random;
};

static unsigned int pick(struct actor *a, unsigned int n)
{
	return next_random(&a->random) % n;
}

static bool one_in(struct actor *a, unsigned int n)
{
	return !pick(a, n);
}

static struct actor actor(unsigned int seed, unsigned int n)
{
	return (struct actor){ (seed * 2654435761u) ^ (n * 40503u + 1) ?: 1 };
}

static void pause_us(unsigned int us)
{
	struct timespec t = { 0, us * 1000 };

	nanosleep(&t, NULL);
}

/* The server */

struct server {
	struct actor actor;
	unsigned int mount;
	int dev;
	int all_devs[MOUNTS];
	const int *lower;
	struct srv_req req;
	struct srv_req late;
	bool has_late;
};

static int memfd(unsigned int seals)
{
	int fd = memfd_create("fuzz", MFD_ALLOW_SEALING);

	if (write(fd, data, 2 * BLOCK) != 2 * BLOCK)
		return -1;
	fcntl(fd, F_ADD_SEALS, seals);
	return fd;
}

/* What a server may try to hand in */
static void open_lowers(int *lower)
{
	int i, n = 0, end[2];
	char path[64];

	for (i = 0; i < FILES; i++) {
		sprintf(path, SRV_LOWER "/%d", i);
		lower[n++] = open(path, i & 1 ? O_RDWR : O_RDWR | O_DIRECT);
		lower[n++] = open(path, i & 1 ? O_PATH : O_RDONLY);
	}
	lower[n++] = open(SRV_LOWER, O_RDONLY | O_DIRECTORY);
	lower[n++] = memfd(0);
	lower[n++] = memfd(F_SEAL_WRITE);
	lower[n++] = memfd(F_SEAL_FUTURE_WRITE | F_SEAL_SHRINK);
	lower[n++] = open("/proc/self/status", O_RDONLY);
	lower[n++] = open("/sys/kernel/mm/transparent_hugepage/enabled", O_RDONLY);
	lower[n++] = open("/dev/zero", O_RDWR);
	lower[n++] = eventfd(0, 0);
	if (pipe(end))
		return;
	lower[n++] = end[0];
	if (socketpair(AF_UNIX, SOCK_STREAM, 0, end))
		return;
	lower[n++] = end[1];
	lower[n++] = open(SRV_LOWER "/gone", O_CREAT | O_RDWR, 0600);
	unlink(SRV_LOWER "/gone");
	lower[n++] = -1;
}

static __u32 some_open_flags(struct actor *a)
{
	static const __u32 flag[] = {
		FOPEN_DIRECT_IO, FOPEN_KEEP_CACHE, FOPEN_NONSEEKABLE,
		FOPEN_NOFLUSH, FOPEN_PARALLEL_DIRECT_WRITES, FOPEN_STREAM,
		FOPEN_PASSTHROUGH,
	};
	__u32 flags = 0;

	while (one_in(a, 4))
		flags |= flag[pick(a, ARRAY_SIZE(flag))];
	return flags;
}

static int some_lower(struct server *s)
{
	return s->lower[pick(&s->actor, one_in(&s->actor, 5) ? LOWERS :
							       2 * FILES)];
}

static void attach_some(struct server *s, struct srv_req *req)
{
	struct actor *a = &s->actor;
	int dev = one_in(a, 16) ? s->all_devs[pick(a, MOUNTS)] : s->dev;
	__u64 unique = one_in(a, 16) ? shared->unique[pick(a, MOUNTS)] :
				       req->in.unique;

	if (!srv_attach(dev, unique, some_lower(s)))
		shared->attached++;
}

static void name_some(struct server *s, struct fuse_open_out *out)
{
	struct actor *a = &s->actor;
	int id = srv_backing_open(s->dev, some_lower(s));

	out->backing_id = one_in(a, 16) ? (int)pick(a, 20) - 2 : id;
	if (id > 0 || one_in(a, 16))
		out->open_flags |= FOPEN_PASSTHROUGH;
	if (one_in(a, 4))
		srv_backing_close(s->dev, one_in(a, 2) ? id : pick(a, 16));
}

/* Before an open is answered: by request, by id, by both, or with nonsense */
static void hand_in(struct server *s, struct srv_req *req,
		    struct fuse_open_out *out)
{
	struct actor *a = &s->actor;
	unsigned int how = pick(a, 20);

	out->open_flags = some_open_flags(a);
	if (how < 8 || how == 19)
		attach_some(s, req);
	if (how >= 8 && how < 16)
		name_some(s, out);
	if (how == 19)
		name_some(s, out);
}

static void fill_attr(struct actor *a, struct fuse_attr *attr, __u64 nodeid)
{
	attr->ino = nodeid;
	attr->mode = nodeid == FUSE_ROOT_ID ? S_IFDIR | 0777 : S_IFREG | 0666;
	if (one_in(a, 10))
		attr->mode |= S_ISUID | S_ISGID | 0111;
	attr->nlink = 1;
	attr->size = nodeid == FUSE_ROOT_ID ? 0 : pick(a, SPAN);
	attr->mtime = pick(a, 1000);
	attr->blksize = BLOCK;
}

static void fill_init(struct actor *a, struct fuse_init_out *out)
{
	out->major = FUSE_KERNEL_VERSION;
	out->minor = FUSE_KERNEL_MINOR_VERSION;
	out->max_write = BLOCK << pick(a, 4);
	out->max_background = 1 + pick(a, 16);
	out->flags = FUSE_INIT_EXT | FUSE_ASYNC_READ | FUSE_BIG_WRITES;
	out->flags |= next_random(&a->random) &
		      (FUSE_WRITEBACK_CACHE | FUSE_ATOMIC_O_TRUNC |
		       FUSE_AUTO_INVAL_DATA | FUSE_HANDLE_KILLPRIV_V2 |
		       FUSE_NO_OPEN_SUPPORT | FUSE_PARALLEL_DIROPS);
	out->flags2 = one_in(a, 8) ? 0 : FUSE_PASSTHROUGH >> 32;
	out->max_stack_depth = pick(a, one_in(a, 8) ? 5 : 3);
}

/* The right answer: its length, or a negative errno */
static int answer(struct server *s, struct srv_req *req, void *buf)
{
	struct actor *a = &s->actor;
	struct fuse_entry_out *entry = buf;
	struct fuse_attr_out *attr = buf;
	unsigned int valid = one_in(a, 2) ? 3600 : 0;

	switch (req->in.opcode) {
	case FUSE_INIT:
		fill_init(a, buf);
		return sizeof(struct fuse_init_out);
	case FUSE_LOOKUP:
	case FUSE_CREATE:
		entry->nodeid = 2 + pick(a, FILES);
		if (req->in.opcode == FUSE_LOOKUP)
			entry->nodeid = 2 + (req->arg[0] - '0') % FILES;
		entry->entry_valid = valid;
		entry->attr_valid = valid;
		fill_attr(a, &entry->attr, entry->nodeid);
		if (req->in.opcode == FUSE_LOOKUP)
			return sizeof(*entry);
		hand_in(s, req, buf + sizeof(*entry));
		return sizeof(*entry) + sizeof(struct fuse_open_out);
	case FUSE_GETATTR:
	case FUSE_SETATTR:
		attr->attr_valid = valid;
		fill_attr(a, &attr->attr, req->in.nodeid);
		return sizeof(*attr);
	case FUSE_OPEN:
		hand_in(s, req, buf);
		return one_in(a, 50) ? -ENOSYS : (int)sizeof(struct fuse_open_out);
	case FUSE_READ:
		memset(buf, 'r', SPAN);
		return pick(a, 1 + ((struct fuse_read_in *)req->arg)->size % SPAN);
	case FUSE_WRITE:
	case FUSE_COPY_FILE_RANGE:
		((struct fuse_write_out *)buf)->size =
			((struct fuse_write_in *)req->arg)->size;
		return sizeof(struct fuse_write_out);
	case FUSE_STATFS:
		return sizeof(struct fuse_statfs_out);
	case FUSE_FLUSH:
	case FUSE_FSYNC:
	case FUSE_RELEASE:
	case FUSE_FALLOCATE:
		return one_in(a, 20) ? -EIO : 0;
	default:
		return -ENOSYS;
	}
}

static void reply(struct server *s, struct srv_req *req)
{
	static __thread char buf[SPAN];
	struct actor *a = &s->actor;
	int len;

	memset(buf, 0, sizeof(struct fuse_entry_out) + 64);
	len = answer(s, req, buf);
	if (one_in(a, 80))
		len = -(int)pick(a, 600);
	if (one_in(a, 80))
		len = pick(a, 200);
	if (one_in(a, 200))
		req->in.unique = next_random(&a->random);
	srv_reply(req, len < 0 ? len : 0, buf, len < 0 ? 0 : len);
	if (one_in(a, 40))
		srv_reply(req, 0, buf, len < 0 ? 0 : len);
}

/* Right, late or never; INIT is answered late more often */
static void *serve(void *arg)
{
	struct server *s = arg;
	struct actor *a = &s->actor;

	for (;;) {
		int err = srv_read_request(s->dev, &s->req);

		if (err == -ENODEV || err == -EPERM)
			return NULL;
		if (err < 0 || s->req.in.opcode == FUSE_FORGET ||
		    s->req.in.opcode == FUSE_BATCH_FORGET ||
		    s->req.in.opcode == FUSE_INTERRUPT)
			continue;
		shared->unique[s->mount] = s->req.in.unique;
		if (s->has_late)
			reply(s, &s->late);
		s->has_late = s->req.in.opcode != FUSE_INIT && one_in(a, 100);
		if (s->has_late)
			memcpy(&s->late, &s->req, sizeof(s->late));
		else if (!one_in(a, 400))
			reply(s, &s->req);
	}
}

/* Files of the mounts themselves become lower files, as they are got. */
static void *open_mounts(void *arg)
{
	struct server *s = arg;
	int *lower = (int *)s->lower;
	char path[64];
	int i, fd;

	for (i = 0; i < 8; i++) {
		sprintf(path, MOUNT "/%u", pick(&s->actor, MOUNTS),
			pick(&s->actor, FILES));
		fd = open(path, one_in(&s->actor, 2) ? O_PATH : O_RDWR);
		if (fd >= 0)
			lower[pick(&s->actor, LOWERS)] = fd;
	}
	return NULL;
}

/* The client */

struct client {
	struct actor actor;
	int fd[FDS];
	struct { char *at; size_t len; bool stores; } map[MAPS];
	char *memory;
};

static sigjmp_buf no_page;

static void on_sigbus(int sig)
{
	siglongjmp(no_page, 1);
}

static int some_fd(struct client *c)
{
	return c->fd[pick(&c->actor, FDS)];
}

static size_t some_len(struct client *c)
{
	size_t len = 1 + pick(&c->actor, SPAN / 2);

	return one_in(&c->actor, 2) ? len : (len + BLOCK - 1) & -BLOCK;
}

static off_t some_offset(struct client *c)
{
	off_t offset = pick(&c->actor, SPAN / 2);

	return one_in(&c->actor, 2) ? offset : offset & -BLOCK;
}

/* Own memory, memory never touched, or a mapping of one of the files */
static char *some_buffer(struct client *c, bool write)
{
	int i = pick(&c->actor, MAPS);

	if (one_in(&c->actor, 4) && c->map[i].len >= SPAN)
		return c->map[i].at;
	if (!write && one_in(&c->actor, 4))
		madvise(c->memory, SPAN, MADV_DONTNEED);
	if (write)
		memset(c->memory, 'a' + pick(&c->actor, 26), SPAN);
	return c->memory;
}

static void op_open(struct client *c)
{
	static const int flag[] = {
		O_APPEND, O_DIRECT, O_TRUNC, O_CREAT, O_SYNC, O_DSYNC,
		O_NOATIME, O_NONBLOCK,
	};
	int i = pick(&c->actor, FDS), flags = pick(&c->actor, 3);
	char path[64];

	while (one_in(&c->actor, 3))
		flags |= flag[pick(&c->actor, ARRAY_SIZE(flag))];
	sprintf(path, MOUNT "/%u", pick(&c->actor, MOUNTS),
		pick(&c->actor, FILES + 1));
	close(c->fd[i]);
	c->fd[i] = open(path, flags, 0666);
}

static void op_read_write(struct client *c)
{
	static const int flag[] = {
		0, RWF_NOWAIT, RWF_APPEND, RWF_DSYNC, RWF_SYNC, RWF_HIPRI,
	};
	int flags = flag[pick(&c->actor, ARRAY_SIZE(flag))];
	bool write = one_in(&c->actor, 2);
	struct iovec iov = { some_buffer(c, write), some_len(c) };
	ssize_t n;

	if (write)
		n = pwritev2(some_fd(c), &iov, 1, some_offset(c), flags);
	else
		n = preadv2(some_fd(c), &iov, 1, some_offset(c), flags);
	if (n > 0)
		shared->passed++;
}

static void op_async(struct client *c)
{
	struct flight f = { .engine = AIO + pick(&c->actor, 3) };
	bool write = one_in(&c->actor, 2);
	int i, n = 1 + pick(&c->actor, 4);

	for (i = 0; i < n; i++)
		f.op[i] = (struct op){ some_fd(c), write, some_buffer(c, write),
				       some_len(c), some_offset(c), 0 };
	n = submit(&f, n);
	/* Closed while they are in flight */
	if (one_in(&c->actor, 4)) {
		i = pick(&c->actor, FDS);
		close(c->fd[i]);
		c->fd[i] = -1;
	}
	if (n > 0)
		wait_for(&f, n);
}

static void op_map(struct client *c)
{
	int i = pick(&c->actor, MAPS), prot = pick(&c->actor, 8);
	bool shared_map = !one_in(&c->actor, 4);

	munmap(c->map[i].at, c->map[i].len);
	c->map[i].len = SPAN;
	c->map[i].stores = prot & PROT_WRITE && prot & PROT_READ;
	c->map[i].at = mmap(NULL, SPAN, prot,
			    shared_map ? MAP_SHARED : MAP_PRIVATE, some_fd(c),
			    one_in(&c->actor, 2) ? 0 : BLOCK);
	if (c->map[i].at == MAP_FAILED)
		c->map[i].len = 0;
}

static void op_use_map(struct client *c)
{
	int i = pick(&c->actor, MAPS);
	char *at = c->map[i].at;

	if (!c->map[i].len || sigsetjmp(no_page, 1))
		return;
	if (c->map[i].stores && one_in(&c->actor, 2))
		memset(at + pick(&c->actor, SPAN / 2), 'm', 3000);
	else if (c->map[i].stores)
		memcpy(c->memory, at, SPAN / 2);
}

static void op_change_map(struct client *c)
{
	int i = pick(&c->actor, MAPS), prot = pick(&c->actor, 8);
	size_t len = c->map[i].len;
	char *at = c->map[i].at;

	if (!len)
		return;
	switch (pick(&c->actor, 6)) {
	case 0:
		if (!mprotect(at, len, prot))
			c->map[i].stores = prot & PROT_WRITE && prot & PROT_READ;
		break;
	case 1:
		/* A part, so that the area is split */
		mprotect(at + BLOCK, BLOCK, PROT_READ | PROT_WRITE | PROT_EXEC);
		break;
	case 2:
		at = mremap(at, len, len, MREMAP_MAYMOVE);
		c->map[i].at = at;
		break;
	case 3:
		msync(at, len, one_in(&c->actor, 2) ? MS_SYNC : MS_INVALIDATE);
		break;
	case 4:
		madvise(at, len, one_in(&c->actor, 2) ? MADV_DONTNEED :
							MADV_REMOVE);
		break;
	default:
		munmap(at + 2 * BLOCK, BLOCK);
		c->map[i].stores = false;
	}
}

static void op_splice(struct client *c)
{
	loff_t offset = some_offset(c);
	size_t len = some_len(c);
	int end[2];

	if (pipe2(end, O_NONBLOCK))
		return;
	if (one_in(&c->actor, 2)) {
		if (write(end[1], some_buffer(c, true), len) > 0)
			splice(end[0], NULL, some_fd(c), &offset, len, 0);
	} else {
		sendfile(end[1], some_fd(c), &offset, len);
	}
	close(end[0]);
	close(end[1]);
}

static void op_size(struct client *c)
{
	static const int mode[] = {
		0, FALLOC_FL_KEEP_SIZE, FALLOC_FL_ZERO_RANGE,
		FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
	};
	loff_t from = some_offset(c), to = some_offset(c);

	switch (pick(&c->actor, 3)) {
	case 0:
		(void)!ftruncate(some_fd(c), from);
		break;
	case 1:
		fallocate(some_fd(c), mode[pick(&c->actor, 4)], from,
			  some_len(c));
		break;
	default:
		copy_file_range(some_fd(c), &from, some_fd(c), &to,
				some_len(c), 0);
	}
}

static void op_other(struct client *c)
{
	struct stat st;
	int fd = some_fd(c);

	switch (pick(&c->actor, 6)) {
	case 0:
		fsync(fd);
		break;
	case 1:
		fcntl(fd, F_SETFL, one_in(&c->actor, 2) ? O_APPEND : O_DIRECT);
		break;
	case 2:
		lseek(fd, 0, SEEK_END);
		break;
	case 3:
		fstat(fd, &st);
		break;
	case 4:
		fchmod(fd, 0666 | pick(&c->actor, 8) << 9);
		break;
	default:
		posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED);
	}
}

static void op_exec(struct client *c)
{
	char path[64];
	pid_t pid = fork();

	if (pid) {
		waitpid(pid, NULL, 0);
		return;
	}
	sprintf(path, "/proc/self/fd/%d", some_fd(c));
	execl(path, path, NULL);
	_exit(0);
}

static void run_client(unsigned int seed, unsigned int n)
{
	static void (*const op[])(struct client *) = {
		op_open, op_open, op_open, op_read_write, op_read_write,
		op_read_write, op_async, op_async, op_map, op_use_map,
		op_use_map, op_change_map, op_splice, op_size, op_other,
	};
	struct client c = { .actor = actor(seed, 100 + n) };
	int i;

	signal(SIGBUS, on_sigbus);
	signal(SIGXFSZ, SIG_IGN);
	memset(c.fd, -1, sizeof(c.fd));
	c.memory = mmap(NULL, SPAN, PROT_READ | PROT_WRITE,
			MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	for (i = 0; i < OPERATIONS; i++)
		op[pick(&c.actor, ARRAY_SIZE(op))](&c);
	op_exec(&c);
	_exit(0);
}

/* A round of an ordinary user, in namespaces of its own */

static bool become_user(void)
{
	return !setgroups(0, NULL) && !setresgid(USER, USER, USER) &&
	       !setresuid(USER, USER, USER) &&
	       !prctl(PR_SET_DUMPABLE, 1, 0, 0, 0) &&
	       !unshare(CLONE_NEWUSER | CLONE_NEWNS) &&
	       write_text("/proc/self/setgroups", "deny") &&
	       write_text("/proc/self/uid_map", "0 1000 1") &&
	       write_text("/proc/self/gid_map", "0 1000 1");
}

static int mount_one(unsigned int n)
{
	int dev = open("/dev/fuse", O_RDWR);
	char options[128], path[64];
	struct statx st;

	sprintf(path, MOUNT, n);
	sprintf(options, "fd=%d,rootmode=40777,user_id=0,group_id=0", dev);
	if (dev < 0 || mount("fuzz", path, "fuse", MS_NOSUID | MS_NODEV, options) ||
	    statx(AT_FDCWD, path, AT_STATX_DONT_SYNC, 0, &st))
		return -1;
	shared->minor[n] = st.stx_dev_minor;
	return dev;
}

static void run_round(unsigned int seed)
{
	static struct server server[2 * MOUNTS], opener;
	static int lower[LOWERS];
	pthread_t thread;
	int i, dev[MOUNTS];

	if (!become_user())
		_exit(1);
	for (i = 0; i < MOUNTS; i++) {
		dev[i] = mount_one(i);
		if (dev[i] < 0)
			_exit(2);
	}
	shared->ready = true;
	for (i = 0; i < CLIENTS; i++) {
		pid_t pid = fork();

		if (!pid) {
			close_range(dev[0], dev[MOUNTS - 1], 0);
			run_client(seed, i);
		}
		shared->pid[i] = pid;
	}
	open_lowers(lower);
	for (i = 0; i < 2 * MOUNTS; i++) {
		struct server *s = &server[i];

		s->actor = actor(seed, i);
		s->mount = i % MOUNTS;
		s->lower = lower;
		s->dev = dev[s->mount];
		memcpy(s->all_devs, dev, sizeof(dev));
		pthread_create(&thread, NULL, serve, s);
	}
	opener.actor = actor(seed, 50);
	opener.lower = lower;
	pthread_create(&thread, NULL, open_mounts, &opener);
	for (i = 0; i < CLIENTS; i++)
		waitpid(shared->pid[i], NULL, 0);
	_exit(0);
}

/* The third hand, which is root's */

static void abort_mount(unsigned int n)
{
	char path[64];

	sprintf(path, SRV_BASE "/fusectl/%u/abort", shared->minor[n]);
	write_text(path, "1");
}

static void interfere(struct actor *a, int lower)
{
	switch (pick(a, 6)) {
	case 0:
		abort_mount(pick(a, MOUNTS));
		break;
	case 1:
		if (shared->pid[0] > 0)
			kill(shared->pid[pick(a, CLIENTS)], SIGKILL);
		break;
	case 2:
		write_text("/proc/sys/vm/drop_caches", "3");
		break;
	case 3:
		if (!ioctl(lower, FIFREEZE, 0)) {
			pause_us(20000);
			ioctl(lower, FITHAW, 0);
		}
		break;
	default:
		pause_us(20000);
	}
}

/* Waits for the round's end, for @ms at most */
static bool ends_within(pid_t pid, int ms)
{
	int status;

	for (; ms > 0; ms -= 10) {
		if (waitpid(pid, &status, WNOHANG) == pid)
			return true;
		pause_us(10000);
	}
	return false;
}

static int open_files(void)
{
	int n = -1;
	FILE *f = fopen("/proc/sys/fs/file-nr", "r");

	if (!f || fscanf(f, "%d", &n) != 1)
		n = -1;
	fclose(f);
	return n;
}

/* Zeros, what a server or a client writes, and what was there */
static bool only_what_was_written(void)
{
	char path[64];
	ssize_t n, k;
	int i, fd;

	for (i = 0; i < FILES; i++) {
		sprintf(path, SRV_LOWER "/%d", i);
		fd = open(path, O_RDONLY);
		while ((n = read(fd, back, sizeof(back))) > 0)
			for (k = 0; k < n; k++)
				if (back[k] && (back[k] < 'a' || back[k] > 'z'))
					return false;
		close(fd);
	}
	return true;
}

FIXTURE(fuzz) {
	unsigned int seed;
	int rounds;
	int files;
};

FIXTURE_SETUP(fuzz)
{
	const char *seed = getenv("PASSTHROUGH_SEED");
	const char *steps = getenv("PASSTHROUGH_STEPS");
	char path[64];
	int i;

	self->seed = seed && atoi(seed) ? atoi(seed) : 1;
	self->rounds = steps ? atoi(steps) : 0;
	memset(data, 'i', sizeof(data));
	ASSERT_EQ(0, srv_namespace());
	ASSERT_EQ(0, srv_mount_lower("ext4"));
	ASSERT_EQ(0, chmod("/dev/fuse", 0666));
	for (i = 0; i < MOUNTS; i++) {
		sprintf(path, MOUNT, i);
		ASSERT_EQ(0, mkdir(path, 0777));
	}
	for (i = 0; i < FILES; i++) {
		sprintf(path, SRV_LOWER "/%d", i);
		ASSERT_TRUE(make_lower(path, 0666, 2 * BLOCK));
	}
	ASSERT_EQ(0, chmod(SRV_LOWER, 0777));
	shared = mmap(NULL, sizeof(*shared), PROT_READ | PROT_WRITE,
		      MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	ASSERT_NE(MAP_FAILED, shared);
	self->files = open_files();
}

FIXTURE_TEARDOWN(fuzz)
{
	EXPECT_EQ(0, srv_unmount(SRV_LOWER));
}

static void play_round(struct __test_metadata *_metadata, unsigned int seed)
{
	struct actor a = actor(seed, 200);
	int i, lower = open(SRV_LOWER, O_RDONLY | O_DIRECTORY);
	pid_t pid;

	memset(shared->pid, 0, sizeof(shared->pid));
	shared->ready = false;
	pid = fork();
	if (!pid)
		run_round(seed);
	while (!shared->ready && !ends_within(pid, 10))
		;
	ASSERT_TRUE(shared->ready);
	for (i = 0; i < 5 && !ends_within(pid, 20); i++)
		interfere(&a, lower);
	if (i == 5 && !ends_within(pid, 300)) {
		for (i = 0; i < MOUNTS; i++)
			abort_mount(i);
		/* Whoever still waits then waits for ever */
		ASSERT_TRUE(ends_within(pid, 30000)) {
			TH_LOG("a round hangs, seed %u", seed);
		}
	}
	for (i = 0; i < MOUNTS; i++)
		abort_mount(i);
	close(lower);
	ASSERT_TRUE(only_what_was_written()) {
		TH_LOG("strange bytes, seed %u", seed);
	}
}

/*
 * Files go some time after their last close, and the kernel counts them in
 * batches for each CPU.
 */
static bool files_are_back(int before)
{
	int i;

	for (i = 0; i < 1000; i++) {
		if (open_files() <= before + 32 * (int)sysconf(_SC_NPROCESSORS_CONF))
			return true;
		pause_us(10000);
	}
	return false;
}

TEST_F_TIMEOUT(fuzz, rounds, 1100)
{
	int i, limit = self->rounds ? 1000 : 50;

	for (i = 0; again(i, self->rounds ?: ROUNDS, limit); i++)
		play_round(_metadata, self->seed * 1000 + i);
	TH_LOG("%d rounds, %d lower files attached, %d reads and writes done",
	       i, shared->attached, shared->passed);
	EXPECT_LT(0, shared->attached);
	EXPECT_TRUE(files_are_back(self->files)) {
		TH_LOG("%d files, %d before", open_files(), self->files);
	}
}

TEST_HARNESS_MAIN
