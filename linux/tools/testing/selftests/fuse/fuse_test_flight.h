/* SPDX-License-Identifier: GPL-2.0 */
/*
 * Operations in flight: one after the other, by Linux AIO, or by io_uring, both
 * by their system calls.
 */
#ifndef FUSE_TEST_FLIGHT_H
#define FUSE_TEST_FLIGHT_H

#include <stdatomic.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <linux/aio_abi.h>
#include <linux/io_uring.h>

#include "fuse_test_files.h"

#define DEPTH	16

enum engine { SYNC, AIO, URING, URING_WORKER, URING_FIXED };

struct op {
	int fd;
	bool write;
	char *buf;
	size_t len;
	off_t offset;
	ssize_t result;
};

/* One after the other, by ordinary system calls */
static inline int sync_submit(struct op *op, int n)
{
	int i;

	for (i = 0; i < n; i++, op++)
		op->result = srv_result(op->write ?
			pwrite(op->fd, op->buf, op->len, op->offset) :
			pread(op->fd, op->buf, op->len, op->offset));
	return n;
}

/* AIO */

static inline int aio_submit(aio_context_t *ctx, struct op *op, int n)
{
	struct iocb iocb[DEPTH], *list[DEPTH];
	int i;

	*ctx = 0;
	if (syscall(__NR_io_setup, n, ctx))
		return -errno;
	for (i = 0; i < n; i++) {
		list[i] = &iocb[i];
		iocb[i] = (struct iocb){
			.aio_data = (uintptr_t)&op[i],
			.aio_lio_opcode = op[i].write ? IOCB_CMD_PWRITE :
							IOCB_CMD_PREAD,
			.aio_fildes = op[i].fd,
			.aio_buf = (uintptr_t)op[i].buf,
			.aio_nbytes = op[i].len,
			.aio_offset = op[i].offset,
		};
	}
	return srv_result(syscall(__NR_io_submit, *ctx, n, list));
}

static inline int aio_wait(aio_context_t ctx, int n)
{
	struct io_event event[DEPTH];
	int i, seen = syscall(__NR_io_getevents, ctx, n, n, event, NULL);

	for (i = 0; i < seen; i++)
		((struct op *)(uintptr_t)event[i].data)->result = event[i].res;
	syscall(__NR_io_destroy, ctx);
	return seen;
}

/* io_uring */

struct ring {
	int fd;
	struct io_uring_params p;
	char *map;
	size_t map_size;
	struct io_uring_sqe *sqe;
};

static inline atomic_uint *ring_word(struct ring *ring, __u32 offset)
{
	return (atomic_uint *)(ring->map + offset);
}

static inline int ring_open(struct ring *ring, int n)
{
	struct io_uring_params *p = &ring->p;

	memset(p, 0, sizeof(*p));
	ring->fd = syscall(__NR_io_uring_setup, n, p);
	if (ring->fd < 0)
		return -errno;
	ring->map_size = p->cq_off.cqes +
			 p->cq_entries * sizeof(struct io_uring_cqe);
	ring->map = mmap(NULL, ring->map_size, PROT_READ | PROT_WRITE,
			 MAP_SHARED | MAP_POPULATE, ring->fd,
			 IORING_OFF_SQ_RING);
	ring->sqe = mmap(NULL, p->sq_entries * sizeof(*ring->sqe),
			 PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE,
			 ring->fd, IORING_OFF_SQES);
	return ring->map == MAP_FAILED || (void *)ring->sqe == MAP_FAILED ?
		-ENOMEM : 0;
}

static inline int ring_register(struct ring *ring, struct op *op, int n)
{
	struct iovec iov[DEPTH];
	int i, fd[DEPTH];

	for (i = 0; i < n; i++) {
		fd[i] = op[i].fd;
		iov[i] = (struct iovec){ op[i].buf, op[i].len };
	}
	if (syscall(__NR_io_uring_register, ring->fd, IORING_REGISTER_FILES,
		    fd, n) ||
	    syscall(__NR_io_uring_register, ring->fd, IORING_REGISTER_BUFFERS,
		    iov, n))
		return -errno;
	return 0;
}

static inline void ring_prepare(struct io_uring_sqe *sqe, struct op *op, int i,
				enum engine how)
{
	bool fixed = how == URING_FIXED;

	memset(sqe, 0, sizeof(*sqe));
	if (fixed)
		sqe->opcode = op->write ? IORING_OP_WRITE_FIXED :
					  IORING_OP_READ_FIXED;
	else
		sqe->opcode = op->write ? IORING_OP_WRITE : IORING_OP_READ;
	if (how == URING_WORKER)
		sqe->flags = IOSQE_ASYNC;
	if (fixed)
		sqe->flags = IOSQE_FIXED_FILE;
	sqe->fd = fixed ? i : op->fd;
	sqe->buf_index = fixed ? i : 0;
	sqe->addr = (uintptr_t)op->buf;
	sqe->len = op->len;
	sqe->off = op->offset;
	sqe->user_data = (uintptr_t)op;
}

static inline int ring_submit(struct ring *ring, struct op *op, int n,
			      enum engine how)
{
	int i, err = ring_open(ring, DEPTH);

	if (!err && how == URING_FIXED)
		err = ring_register(ring, op, n);
	if (err)
		return err;
	for (i = 0; i < n; i++) {
		ring_prepare(&ring->sqe[i], &op[i], i, how);
		ring_word(ring, ring->p.sq_off.array)[i] = i;
	}
	*ring_word(ring, ring->p.sq_off.tail) = n;
	return srv_result(syscall(__NR_io_uring_enter, ring->fd, n, 0, 0,
				  NULL, 0));
}

static inline int ring_wait(struct ring *ring, int n, enum engine how)
{
	struct io_uring_cqe *cqe = (void *)(ring->map + ring->p.cq_off.cqes);
	int i, seen;

	if (syscall(__NR_io_uring_enter, ring->fd, 0, n,
		    IORING_ENTER_GETEVENTS, NULL, 0) < 0)
		return -errno;
	seen = *ring_word(ring, ring->p.cq_off.tail);
	for (i = 0; i < seen; i++)
		((struct op *)(uintptr_t)cqe[i].user_data)->result = cqe[i].res;
	/* A ring ends some time after its last close; its files here. */
	if (how == URING_FIXED)
		syscall(__NR_io_uring_register, ring->fd,
			IORING_UNREGISTER_FILES, NULL, 0);
	munmap(ring->sqe, ring->p.sq_entries * sizeof(*ring->sqe));
	munmap(ring->map, ring->map_size);
	close(ring->fd);
	return seen;
}

/* Any of them: all at once, then wait for all. */

struct flight {
	enum engine engine;
	struct op op[DEPTH];
	aio_context_t ctx;
	struct ring ring;
};

static inline int submit(struct flight *f, int n)
{
	if (f->engine == SYNC)
		return sync_submit(f->op, n);
	if (f->engine == AIO)
		return aio_submit(&f->ctx, f->op, n);
	return ring_submit(&f->ring, f->op, n, f->engine);
}

static inline int wait_for(struct flight *f, int n)
{
	if (f->engine == SYNC)
		return n;
	if (f->engine == AIO)
		return aio_wait(f->ctx, n);
	return ring_wait(&f->ring, n, f->engine);
}

/* @n operations, each on the bytes after those of the one before. */
static inline void fly(struct __test_metadata *_metadata, struct flight *f,
		       struct op first, int n)
{
	int i;

	for (i = 0; i < n; i++) {
		f->op[i] = first;
		f->op[i].buf += i * first.len;
		f->op[i].offset += i * first.len;
	}
	ASSERT_EQ(n, submit(f, n));
}

static inline void land(struct __test_metadata *_metadata, struct flight *f,
			int n)
{
	int i;

	ASSERT_EQ(n, wait_for(f, n));
	for (i = 0; i < n; i++)
		ASSERT_EQ((ssize_t)f->op[i].len, f->op[i].result);
}

#endif /* FUSE_TEST_FLIGHT_H */
