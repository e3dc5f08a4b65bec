// SPDX-License-Identifier: GPL-2.0
/*
 * What becomes of a lower file when the open that it is attached to fails: the
 * server answers with an error or with nonsense, the opener is killed, the
 * connection ends, the answer comes before the ioctl.
 */
#define _GNU_SOURCE
#include <sched.h>
#include <signal.h>

#include "fuse_test_spare.h"

/* Answers to an open that has its lower file */

FIXTURE(answer) {
	struct env env;
};

FIXTURE_VARIANT(answer) {
	int flags;
	struct answer answer;
	int result;
	bool release;
	bool no_capability;
};

#define NEW	(O_CREAT | O_EXCL | O_RDWR)
#define TMP	(O_TMPFILE | O_RDWR)

FIXTURE_VARIANT_ADD(answer, open) { .flags = O_RDWR, .release = true };
FIXTURE_VARIANT_ADD(answer, create) { .flags = NEW, .release = true };
FIXTURE_VARIANT_ADD(answer, tmpfile) { .flags = TMP, .release = true };
/* Errors, for which there is no open file at the server */
FIXTURE_VARIANT_ADD(answer, open_error) {
	.flags = O_RDWR, .answer.error = -EACCES, .result = -EACCES
};

FIXTURE_VARIANT_ADD(answer, create_error) {
	.flags = NEW, .answer.error = -EDQUOT, .result = -EDQUOT
};

FIXTURE_VARIANT_ADD(answer, tmpfile_error) {
	.flags = TMP, .answer.error = -ENOSPC, .result = -ENOSPC
};

/* The kernel then tries MKNOD, which the server has not either. */
FIXTURE_VARIANT_ADD(answer, create_enosys) {
	.flags = NEW, .answer.error = -ENOSYS, .result = -ENOSYS
};

FIXTURE_VARIANT_ADD(answer, tmpfile_enosys) {
	.flags = TMP, .answer.error = -ENOSYS, .result = -EOPNOTSUPP
};

/* Answers that can't be honoured */
FIXTURE_VARIANT_ADD(answer, open_stream) {
	.flags = O_RDWR, .answer.open_flags = FOPEN_STREAM,
	.result = -EIO, .release = true
};

FIXTURE_VARIANT_ADD(answer, create_stream) {
	.flags = NEW, .answer.open_flags = FOPEN_STREAM,
	.result = -EIO, .release = true
};

FIXTURE_VARIANT_ADD(answer, tmpfile_stream) {
	.flags = TMP, .answer.open_flags = FOPEN_STREAM,
	.result = -EIO, .release = true
};

FIXTURE_VARIANT_ADD(answer, open_id_too) {
	.flags = O_RDWR, .answer.open_flags = FOPEN_PASSTHROUGH,
	.result = -EIO, .release = true
};

FIXTURE_VARIANT_ADD(answer, create_id_too) {
	.flags = NEW, .answer.open_flags = FOPEN_PASSTHROUGH,
	.answer.backing_id = 1, .result = -EIO, .release = true
};

FIXTURE_VARIANT_ADD(answer, tmpfile_id_too) {
	.flags = TMP, .answer.open_flags = FOPEN_PASSTHROUGH,
	.answer.backing_id = 1, .result = -EIO, .release = true
};

FIXTURE_VARIANT_ADD(answer, open_id_0) {
	.flags = O_RDWR, .answer.open_flags = FOPEN_PASSTHROUGH,
	.answer.no_attach = true, .result = -EIO, .release = true
};

FIXTURE_VARIANT_ADD(answer, open_no_such_id) {
	.flags = O_RDWR, .answer.open_flags = FOPEN_PASSTHROUGH,
	.answer.no_attach = true, .answer.backing_id = 7,
	.result = -EIO, .release = true
};

FIXTURE_VARIANT_ADD(answer, create_negative_id) {
	.flags = NEW, .answer.open_flags = FOPEN_PASSTHROUGH,
	.answer.no_attach = true, .answer.backing_id = -1,
	.result = -EIO, .release = true
};

FIXTURE_VARIANT_ADD(answer, open_not_negotiated) {
	.flags = O_RDWR, .answer.open_flags = FOPEN_PASSTHROUGH,
	.answer.no_attach = true, .answer.backing_id = 1,
	.result = -EIO, .release = true, .no_capability = true
};

/* Malformed ones, which open nothing either */
FIXTURE_VARIANT_ADD(answer, create_root) {
	.flags = NEW, .answer.nodeid = FUSE_ROOT_ID, .result = -EIO
};

FIXTURE_VARIANT_ADD(answer, create_directory) {
	.flags = NEW, .answer.mode = S_IFDIR | 0755, .result = -EIO
};

FIXTURE_VARIANT_ADD(answer, tmpfile_root) {
	.flags = TMP, .answer.nodeid = FUSE_ROOT_ID, .result = -EIO
};

FIXTURE_VARIANT_ADD(answer, tmpfile_fifo) {
	.flags = TMP, .answer.mode = S_IFIFO | 0644, .result = -EIO
};

FIXTURE_SETUP(answer)
{
	set_up(_metadata, &self->env, "tmpfs", PLAIN);
	self->env.srv->on_open = give_answer;
	self->env.srv->no_capability = variant->no_capability;
	answer = variant->answer;
	env_start(_metadata, &self->env);
}

FIXTURE_TEARDOWN(answer)
{
	tear_down(_metadata, &self->env);
}

TEST_F(answer, keeps_nothing)
{
	const char *path = FILE_MNT;
	int fd;

	if (variant->flags == NEW)
		path = SRV_MNT "/new";
	if (variant->flags == TMP)
		path = SRV_MNT;
	fd = srv_result(open(path, variant->flags, 0600));
	ASSERT_EQ(variant->answer.no_attach, attached);
	ASSERT_EQ(variant->result, fd < 0 ? fd : 0);
	if (fd >= 0) {
		ASSERT_EQ(-1, umount2(SPARE, 0));
		ASSERT_EQ(EBUSY, errno);
		ASSERT_EQ(BLOCK, pwrite(fd, data, BLOCK, 0));
		ASSERT_TRUE(reads(fd, data));
		ASSERT_EQ(0, self->env.srv->seen[FUSE_READ]);
		ASSERT_EQ(0, self->env.srv->seen[FUSE_WRITE]);
		close(fd);
	}
	ASSERT_EQ(0, srv_unmount(SPARE));
	ASSERT_TRUE(round_trip());
	ASSERT_EQ(variant->release, self->env.srv->seen[FUSE_RELEASE]);
}

/* The opener is killed while its request waits. */

FIXTURE(killed) {
	struct env env;
};

FIXTURE_VARIANT(killed) {
	bool attach_first;
	int error;
};

FIXTURE_VARIANT_ADD(killed, after_ioctl) { true, 0 };
FIXTURE_VARIANT_ADD(killed, after_ioctl_error) { true, -EINTR };
FIXTURE_VARIANT_ADD(killed, before_ioctl) { false, 0 };
FIXTURE_VARIANT_ADD(killed, before_ioctl_error) { false, -EINTR };

FIXTURE_SETUP(killed)
{
	set_up(_metadata, &self->env, "tmpfs", PLAIN);
	self->env.srv->by_hand = true;
	env_start(_metadata, &self->env);
}

FIXTURE_TEARDOWN(killed)
{
	tear_down(_metadata, &self->env);
}

TEST_F(killed, opener)
{
	static struct srv_req req, other;
	const struct fuse_interrupt_in *interrupt = (void *)other.arg;
	struct fuse_open_out out = { 0 };
	int status;
	pid_t pid;

	pid = fork();
	ASSERT_LE(0, pid);
	if (!pid)
		_exit(open(FILE_MNT, O_RDWR) < 0);
	ASSERT_EQ(0, srv_take(self->env.srv, FUSE_OPEN, &req));
	if (variant->attach_first)
		ASSERT_EQ(0, attach_spare(&req));
	ASSERT_EQ(0, kill(pid, SIGKILL));
	ASSERT_EQ(0, srv_take(self->env.srv, FUSE_INTERRUPT, &other));
	ASSERT_EQ(req.in.unique, interrupt->unique);
	/* It waits for its answer all the same. */
	if (!variant->attach_first)
		ASSERT_EQ(0, attach_spare(&req));
	if (variant->error) {
		ASSERT_EQ(0, srv_reply(&req, variant->error, NULL, 0));
	} else {
		ASSERT_EQ(0, srv_reply_open(&req, NULL, &out));
		ASSERT_EQ(0, srv_take(self->env.srv, FUSE_RELEASE, &other));
		ASSERT_EQ(0, srv_reply(&other, 0, NULL, 0));
	}
	ASSERT_EQ(pid, waitpid(pid, &status, 0));
	ASSERT_TRUE(WIFSIGNALED(status));
	ASSERT_EQ(-ENOENT, attach_spare(&req));
	ASSERT_EQ(0, srv_unmount(SPARE));
}

/* The connection ends while an open waits that has its lower file. */

FIXTURE(cut) {
	struct env env;
};

FIXTURE_VARIANT(cut) {
	bool close;
};

FIXTURE_VARIANT_ADD(cut, by_abort) { false };
FIXTURE_VARIANT_ADD(cut, by_close) { true };

FIXTURE_SETUP(cut)
{
	set_up(_metadata, &self->env, "tmpfs", PLAIN);
	self->env.srv->by_hand = true;
	env_start(_metadata, &self->env);
}

FIXTURE_TEARDOWN(cut)
{
	tear_down(_metadata, &self->env);
}

TEST_F(cut, waiting_open)
{
	static struct srv_req req;
	struct fuse_open_out out = { 0 };
	struct srv_opener opener;

	ASSERT_EQ(0, srv_opener_start(&opener, FILE_MNT, O_RDWR));
	ASSERT_EQ(0, srv_take(self->env.srv, FUSE_OPEN, &req));
	ASSERT_EQ(0, attach_spare(&req));
	if (variant->close) {
		close(self->env.srv->dev);
		self->env.srv->dev = -1;
	} else {
		ASSERT_EQ(0, srv_abort(self->env.srv));
		/* What comes too late does nothing. */
		ASSERT_EQ(-ENOENT, srv_reply_open(&req, NULL, &out));
		ASSERT_EQ(-ENOTCONN, attach_spare(&req));
	}
	ASSERT_EQ(-ECONNABORTED, srv_opener_wait(&opener));
	ASSERT_EQ(0, srv_unmount(SPARE));
}

/* The ioctl of one thread meets the answer of another. */

#define ROUNDS	10000
#define OVER	(3 * ROUNDS)

FIXTURE(race) {
	struct env env;
	pthread_t attacher;
};

static struct {
	atomic_int round;	/* odd: the attacher may try */
	atomic_int result;
	atomic_ullong unique;
	int dev;
	int spare;
	atomic_int delay;	/* of the answer, of the ioctl when negative */
	atomic_bool on_one_cpu;
} race;

static void pause_a_bit(void)
{
	if (race.on_one_cpu)
		sched_yield();
}

static void pause_bits(int n)
{
	while (n-- > 0)
		pause_a_bit();
}

static void *attach_in_race(void *arg)
{
	int round;

	for (round = 1;; round += 2) {
		while (race.round < round)
			pause_a_bit();
		if (race.round == OVER)
			return NULL;
		pause_bits(-race.delay);
		race.result = srv_attach(race.dev, race.unique, race.spare);
		race.round = round + 1;
	}
	return NULL;
}

static int answer_in_race(struct srv *srv, struct srv_req *req,
			  struct fuse_entry_out *entry,
			  struct fuse_open_out *out)
{
	int end;

	race.unique = req->in.unique;
	end = ++race.round + 1;
	pause_bits(race.delay);
	srv_reply_open(req, entry, out);
	while (race.round < end)
		pause_a_bit();
	return SRV_TAKEN;
}

FIXTURE_SETUP(race)
{
	set_up(_metadata, &self->env, "tmpfs", PLAIN);
	self->env.srv->on_open = answer_in_race;
	self->env.srv->valid = 3600;
	self->env.srv->open_flags = FOPEN_KEEP_CACHE | FOPEN_NOFLUSH;
	self->env.srv->timeout = 390;
	env_start(_metadata, &self->env);
	race.dev = self->env.srv->dev;
	race.spare = open(SPARE_FILE, O_RDWR | O_CLOEXEC);
	race.on_one_cpu = sysconf(_SC_NPROCESSORS_ONLN) == 1;
	ASSERT_LE(0, race.spare);
	ASSERT_EQ(0, pthread_create(&self->attacher, NULL, attach_in_race,
				    NULL));
}

FIXTURE_TEARDOWN(race)
{
	tear_down(_metadata, &self->env);
}

/*
 * Either the file has its lower one, or the ioctl said that it came too late.
 * What is read says which: the two have other first bytes.
 */
TEST_F_TIMEOUT(race, ioctl_and_answer, 400)
{
	int i, fd, won = 0, step = 16;
	bool in_time = false;
	char byte;

	ASSERT_NE(data[0], spare_data[0]);
	for (i = 0; again(i, ROUNDS, 60); i++) {
		fd = open(FILE_MNT, O_RDONLY);
		ASSERT_LE(0, fd);
		while (race.round < 2 * i + 2)
			pause_a_bit();
		ASSERT_EQ(1, pread(fd, &byte, 1, 0));
		/* Who wins again starts later, and again later. */
		if (in_time != !race.result)
			step = 16;
		else if (step < 256)
			step *= 2;
		in_time = !race.result;
		if (in_time) {
			ASSERT_EQ(spare_data[0], byte);
			won++;
			race.delay -= step;
		} else {
			ASSERT_EQ(-ENOENT, race.result);
			ASSERT_EQ(data[0], byte);
			race.delay += step;
		}
		ASSERT_EQ(0, close(fd));
	}
	race.round = OVER;
	ASSERT_EQ(0, pthread_join(self->attacher, NULL));
	TH_LOG("%d of %d ioctls came in time", won, i);
	/* It was a race, of which a slow machine sees few rounds. */
	ASSERT_LT(i / 50, won);
	ASSERT_GT(i - i / 50, won);
	close(race.spare);
	ASSERT_EQ(0, srv_unmount(SPARE));
}

TEST_HARNESS_MAIN
