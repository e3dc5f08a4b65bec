/* SPDX-License-Identifier: GPL-2.0 */
/*
 * Threads that wait in the kernel, and writes that are in flight meanwhile.
 */
#ifndef FUSE_TEST_BLOCKED_H
#define FUSE_TEST_BLOCKED_H

#include <sched.h>
#include <stdio.h>
#include <sys/syscall.h>
#include <linux/aio_abi.h>

#include "fuse_test_files.h"

/* R, S, D and so on, 0 for a thread that is gone */
static inline char task_state(pid_t tid)
{
	char path[64], text[256] = "";
	char *end;
	int fd;

	snprintf(path, sizeof(path), "/proc/self/task/%d/stat", tid);
	fd = open(path, O_RDONLY);
	if (fd < 0)
		return 0;
	if (read(fd, text, sizeof(text) - 1) < 0)
		text[0] = 0;
	close(fd);
	end = strrchr(text, ')');
	return end ? end[2] : 0;
}

/* The thread sleeps in the kernel where no signal wakes it. */
static inline bool wait_blocked(atomic_int *tid)
{
	time_t end = time(NULL) + 20;
	char state = 0;

	while (!*tid)
		sched_yield();
	while (state != 'D' && time(NULL) < end) {
		state = task_state(*tid);
		sched_yield();
	}
	return state == 'D';
}

/* An AIO write of some blocks of data to the start of the file */
struct aio_writer {
	pthread_t id;
	atomic_int tid;
	aio_context_t ctx;
	int fd;
	int submitted;
};

#define AIO_DEPTH	4

static inline void *submit_aio(void *arg)
{
	struct aio_writer *writer = arg;
	struct iocb iocb[AIO_DEPTH], *list[AIO_DEPTH];
	int i;

	for (i = 0; i < AIO_DEPTH; i++) {
		iocb[i] = (struct iocb){
			.aio_lio_opcode = IOCB_CMD_PWRITE,
			.aio_fildes = writer->fd,
			.aio_buf = (uintptr_t)(data + (i + 4) * BLOCK),
			.aio_nbytes = BLOCK,
			.aio_offset = i * BLOCK,
		};
		list[i] = &iocb[i];
	}
	writer->tid = gettid();
	writer->submitted = syscall(__NR_io_submit, writer->ctx, AIO_DEPTH,
				    list);
	return NULL;
}

/* All came, and wrote what they should. */
static inline bool aio_landed(struct aio_writer *writer)
{
	struct io_event event[AIO_DEPTH];
	int i;

	if (syscall(__NR_io_getevents, writer->ctx, AIO_DEPTH, AIO_DEPTH, event,
		    NULL) != AIO_DEPTH)
		return false;
	for (i = 0; i < AIO_DEPTH; i++)
		if (event[i].res != BLOCK)
			return false;
	return true;
}

#endif /* FUSE_TEST_BLOCKED_H */
