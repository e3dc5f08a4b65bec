// SPDX-License-Identifier: GPL-2.0
/*
 * Opens, ioctls, answers, deaths and closes all at once, 10,000 times: a
 * server that answers in every way there is, callers who are killed, and a
 * connection that is aborted or loses its server in the middle of it.
 *
 *	PASSTHROUGH_SEED=17 ./passthrough_stress_test
 */
#define _GNU_SOURCE
#include <sched.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/syscall.h>
#include <linux/aio_abi.h>

#include "fuse_test_files.h"

#define ROUNDS		10000
#define EPOCH		200	/* rounds of one connection, at most */
#define CALLERS		2
#define SIZE		(4 * BLOCK)
#define SPARE		SRV_BASE "/spare"
#define SPARE_FILE	SPARE "/file"

/* What is in SPARE_FILE, other data than in LOWER */
#define spare_data	(data + 16 * BLOCK)

enum seen {
	OPENED, PASSED, REFUSED, KILLED, ABORTED, ATTACHED, TOO_LATE, TWICE,
	FOREIGN, SEEN
};

static const char *const seen_name[] = {
	"opened", "passed through", "refused", "killed", "after the end",
	"attached", "ioctl too late", "ioctl twice", "ioctl of another thread",
};

/* How a connection ends */
enum end { UNMOUNTED, SERVER_ABORTED, SERVER_KILLED, ENDS };

/* Shared with the server's process */
static struct shared {
	atomic_int seen[SEEN];
	atomic_int wrong;	/* line of this file */
	atomic_int said;	/* there, if it was a result */
	atomic_int left;	/* rounds of this connection */
	atomic_ullong waiting;	/* unique of some request */
	int spare;
	enum end end;		/* of this connection */
	unsigned int seed;
} *shared;

static void wrong_result(int line, int said)
{
	int none = 0;

	if (atomic_compare_exchange_strong(&shared->wrong, &none, line))
		shared->said = said;
}

static void wrong(int line)
{
	wrong_result(line, 0);
}

/* What the server's ioctls say once the connection is gone */
static bool is_over(int err)
{
	return err == -ENOTCONN || err == -ENODEV;
}

/* What callers get then: EIO if the server was killed while it read a request */
static bool is_lost(ssize_t err)
{
	return err == -ENOTCONN || err == -ECONNABORTED ||
	       (err == -EIO && shared->end == SERVER_KILLED);
}

static bool attach(int dev, __u64 unique)
{
	int err = srv_attach(dev, unique, shared->spare);

	if (!err)
		shared->seen[ATTACHED]++;
	/* Too late, for the second time, or after the end */
	else if (err != -ENOENT && err != -EEXIST && !is_over(err))
		wrong_result(__LINE__, err);
	return !err;
}

static int answer_with_id(struct srv *srv, struct srv_req *req,
			  struct fuse_entry_out *entry,
			  struct fuse_open_out *out, bool close_first)
{
	int id = srv_backing_open(req->dev, shared->spare), err = 0;

	if (id <= 0) {
		if (!is_over(id))
			wrong_result(__LINE__, id);
		return -EIO;
	}
	out->open_flags |= FOPEN_PASSTHROUGH;
	out->backing_id = id;
	if (close_first)
		err = srv_backing_close(req->dev, id);
	/* The end of the connection closes it, too. */
	if (err && err != -ENOENT && !is_over(err))
		wrong_result(__LINE__, err);
	srv_reply_open(req, entry, out);
	if (!close_first)
		srv_backing_close(req->dev, id);
	return SRV_TAKEN;
}

static int answer_somehow(struct srv *srv, struct srv_req *req,
			  struct fuse_entry_out *entry,
			  struct fuse_open_out *out)
{
	unsigned int random = (shared->seed + req->in.unique) * 2654435761u;
	__u64 other = atomic_exchange(&shared->waiting, req->in.unique);
	int i;

	next_random(&random);
	switch (random % 8) {
	case 0:
		/* The other thread may come in between. */
		for (i = 0; i < 5000 && shared->waiting == req->in.unique; i++)
			sched_yield();
		break;
	case 1:
		attach(req->dev, req->in.unique);
		return -EACCES;
	case 2:
		return answer_with_id(srv, req, entry, out, false);
	case 3:
		return answer_with_id(srv, req, entry, out, true);
	case 4:
		srv_reply_open(req, entry, out);
		shared->seen[TOO_LATE]++;
		if (attach(req->dev, req->in.unique))
			wrong(__LINE__);
		return SRV_TAKEN;
	case 5:
		attach(req->dev, req->in.unique);
		if (!attach(req->dev, req->in.unique))
			shared->seen[TWICE]++;
		break;
	case 6:
	case 7:
		/* The other thread may be answering it right now. */
		if (attach(req->dev, other))
			shared->seen[FOREIGN]++;
	}
	return SRV_GO_ON;
}

struct caller {
	pthread_t id;
	struct srv *srv;
	unsigned int random;
	aio_context_t ctx;
	char block[BLOCK];
};

static bool is_block(const char *block)
{
	if (!memcmp(block, spare_data, BLOCK))
		shared->seen[PASSED]++;
	else if (memcmp(block, data, BLOCK))
		return false;
	return true;
}

/* An asynchronous read that outlives the descriptor */
static ssize_t aio_read_and_close(int fd, struct caller *caller)
{
	struct iocb iocb = {
		.aio_lio_opcode = IOCB_CMD_PREAD,
		.aio_fildes = fd,
		.aio_buf = (uintptr_t)caller->block,
		.aio_nbytes = BLOCK,
	}, *list = &iocb;
	struct io_event event = { .res = -EIO };
	int submitted;

	submitted = srv_result(syscall(__NR_io_submit, caller->ctx, 1, &list));
	close(fd);
	if (submitted == 1 &&
	    syscall(__NR_io_getevents, caller->ctx, 1, 1, &event, NULL) != 1)
		wrong(__LINE__);
	return submitted == 1 ? (ssize_t)event.res : submitted;
}

/* Reads the first block, writes another, and closes. */
static ssize_t use_and_close(int fd, unsigned int random,
			     struct caller *caller)
{
	ssize_t n;

	if (random % 2)
		n = srv_result(pwrite(fd, data, BLOCK, 2 * BLOCK));
	else
		n = BLOCK;
	if (n != BLOCK && !is_lost(n))
		wrong_result(__LINE__, n);
	if (random % 4 < 2)
		return aio_read_and_close(fd, caller);
	n = srv_result(pread(fd, caller->block, BLOCK, 0));
	close(fd);
	return n;
}

static void open_and_use(struct caller *caller)
{
	static const struct {
		const char *path;
		int flags;
	} kind[] = {
		{ SRV_MNT "/file", O_RDWR },
		{ SRV_MNT "/file", O_RDWR | O_DSYNC },
		{ SRV_MNT "/new", O_RDWR | O_CREAT },
		{ SRV_MNT, O_RDWR | O_TMPFILE },
	};
	int i = caller->random % 4, fd;
	ssize_t n;

	fd = srv_result(open(kind[i].path, kind[i].flags, 0666));
	if (fd < 0) {
		if (fd == -EACCES || fd == -EIO)
			shared->seen[REFUSED]++;
		else if (is_lost(fd))
			shared->seen[ABORTED]++;
		else
			wrong_result(__LINE__, fd);
		return;
	}
	shared->seen[OPENED]++;
	n = use_and_close(fd, caller->random / 4, caller);
	if (is_lost(n))
		shared->seen[ABORTED]++;
	else if (n == BLOCK ? !is_block(caller->block) && i < 2 : n < 0 || i < 2)
		wrong_result(__LINE__, n);
}

/* Maps, touches, and waits for its end where that comes first. */
static void use_until_killed(struct srv *srv)
{
	char *map;
	int fd;

	close(srv->dev);
	fd = open(SRV_MNT "/file", O_RDWR);
	map = mmap(NULL, BLOCK, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	close(fd);
	if (map != MAP_FAILED)
		map[0] = map[0];
	_exit(0);
}

static void kill_caller(struct srv *srv, unsigned int random)
{
	pid_t pid = fork();
	int status;

	if (!pid)
		use_until_killed(srv);
	random %= 64;
	while (random--)
		sched_yield();
	kill(pid, SIGKILL);
	if (waitpid(pid, &status, 0) != pid)
		wrong(__LINE__);
	if (WIFSIGNALED(status))
		shared->seen[KILLED]++;
}

static void *call_on(void *arg)
{
	struct caller *caller = arg;

	caller->ctx = 0;
	if (syscall(__NR_io_setup, 1, &caller->ctx))
		wrong(__LINE__);
	while (shared->left-- > 0 && !shared->wrong) {
		next_random(&caller->random);
		if (caller->random % 16 == 15)
			kill_caller(caller->srv, caller->random / 16);
		else
			open_and_use(caller);
	}
	syscall(__NR_io_destroy, caller->ctx);
	return NULL;
}

static void end_it(struct srv *srv, enum end end)
{
	if (end == SERVER_ABORTED && srv_abort(srv))
		wrong(__LINE__);
	if (end == SERVER_KILLED && kill(srv->pid, SIGKILL))
		wrong(__LINE__);
}

FIXTURE(stress) {
	int lower;
};

FIXTURE_SETUP(stress)
{
	const char *seed = getenv("PASSTHROUGH_SEED");

	shared = mmap(NULL, sizeof(*shared), PROT_READ | PROT_WRITE,
		      MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	ASSERT_NE(MAP_FAILED, shared);
	shared->seed = seed && atoi(seed) ? atoi(seed) : 1;
	make_data();
	/* As udev does: a thread of an unprivileged server clones it */
	ASSERT_EQ(0, chmod("/dev/fuse", 0666));
	ASSERT_EQ(0, srv_namespace());
	ASSERT_EQ(0, srv_mount_lower("tmpfs"));
	ASSERT_EQ(0, chmod(SRV_LOWER, 0777));
	ASSERT_TRUE(make_lower(LOWER, 0666, SIZE));
	ASSERT_EQ(0, mkdir(SPARE, 0755));
	ASSERT_EQ(0, mount("tmpfs", SPARE, "tmpfs", 0, NULL));
	ASSERT_TRUE(make_lower(SPARE_FILE, 0666, SIZE));
	shared->spare = open(SPARE_FILE, O_RDWR | O_CLOEXEC);
	ASSERT_LE(0, shared->spare);
	ASSERT_EQ(BLOCK, pwrite(shared->spare, spare_data, BLOCK, 0));
	self->lower = open(SRV_LOWER, O_PATH | O_DIRECTORY | O_CLOEXEC);
	ASSERT_LE(0, self->lower);
}

/* Nobody holds a lower file. */
FIXTURE_TEARDOWN(stress)
{
	close(self->lower);
	close(shared->spare);
	EXPECT_EQ(0, srv_unmount(SPARE));
	EXPECT_EQ(0, srv_unmount(SRV_LOWER));
}

/* One connection: how many rounds it took part in */
static int run_epoch(struct __test_metadata *_metadata, int lower,
		     unsigned int *random)
{
	static struct caller caller[CALLERS];
	enum end end = next_random(random) % ENDS;
	int i, rounds = EPOCH / 2 + next_random(random) % (EPOCH / 2);
	int half = rounds / 2;
	struct srv *srv = srv_new();

	ASSERT_NE(NULL, srv);
	srv->lower = lower;
	srv->on_open = answer_somehow;
	srv->options = "allow_other";
	srv->threads = 2;
	srv->timeout = 590;
	srv->uid = end == SERVER_KILLED ? USER : 0;
	ASSERT_EQ(0, srv_start(srv, SRV_MNT));
	if (end == SERVER_KILLED) {
		/*
		 * The last descriptors of the device go with the process.  A
		 * caller that had one would wait for itself.
		 */
		close(srv->dev);
		srv->dev = -1;
	}
	shared->end = end;
	shared->left = rounds;
	for (i = 0; i < CALLERS; i++) {
		caller[i].srv = srv;
		caller[i].random = next_random(random);
		ASSERT_EQ(0, pthread_create(&caller[i].id, NULL, call_on,
					    &caller[i]));
	}
	while (shared->left > half && !shared->wrong)
		sched_yield();
	end_it(srv, end);
	for (i = 0; i < CALLERS; i++)
		ASSERT_EQ(0, pthread_join(caller[i].id, NULL));
	ASSERT_EQ(0, shared->wrong) {
		TH_LOG("result %d", shared->said);
	}
	ASSERT_EQ(0, srv_stop(srv));
	return end == UNMOUNTED ? rounds : half;
}

TEST_F_TIMEOUT(stress, all_at_once, 600)
{
	unsigned int random = shared->seed;
	int i, rounds = 0;

	while (again(rounds, ROUNDS, 90))
		rounds += run_epoch(_metadata, self->lower, &random);
	/* All that was meant to happen has happened. */
	for (i = 0; i < SEEN; i++) {
		TH_LOG("%s: %d", seen_name[i], shared->seen[i]);
		EXPECT_LT(0, shared->seen[i]);
	}
}

TEST_HARNESS_MAIN
