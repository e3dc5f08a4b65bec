// SPDX-License-Identifier: GPL-2.0-only
/*
 * FUSE passthrough: requests that meet a page fault on the caller's buffer.
 *
 * The buffer may be a mapping of a FUSE file, and the server that fills it may
 * need the lower file.  So no page of the buffer is faulted in below the locks
 * of the lower file: an attempt runs with page faults disabled, and what a
 * missing page stopped is resumed after the page is there.
 */

#include "passthrough.h"

#include <linux/bvec.h>
#include <linux/gfp.h>
#include <linux/sched/signal.h>
#include <linux/sizes.h>
#include <linux/uaccess.h>

static ssize_t fuse_io_nofault(fuse_passthrough_io_t *io, struct kiocb *iocb,
			       struct iov_iter *iter)
{
	ssize_t ret;

	pagefault_disable();
	iter->nofault = true;
	ret = io(iocb, iter);
	iter->nofault = false;
	pagefault_enable();

	return ret;
}

/* True if a missing buffer page may have cut the request short */
static bool fuse_io_fault_stopped(struct kiocb *iocb, struct iov_iter *rest,
				  ssize_t ret)
{
	struct file *lower = fuse_lower(iocb->ki_filp)->file;
	unsigned long limit = rlimit(RLIMIT_FSIZE);

	if (ret <= 0)
		return ret == -EFAULT;
	/* The lower file system may have queued iocb->ki_waitq already */
	if (!iov_iter_count(rest) || iocb->ki_flags & IOCB_WAITQ)
		return false;
	if (iov_iter_rw(rest) == READ)
		return iocb->ki_pos < fuse_lower_size(lower);
	/* A write that the limit stopped would get SIGXFSZ now */
	return limit == RLIM_INFINITY || iocb->ki_pos < limit;
}

/* At most 1 MiB at once, and nothing behind the end: a read allocates it */
static size_t fuse_io_window(struct kiocb *iocb, struct iov_iter *iter)
{
	loff_t left = fuse_lower_size(fuse_lower(iocb->ki_filp)->file) -
		      iocb->ki_pos;
	size_t len = min_t(size_t, iov_iter_count(iter), SZ_1M);

	if (iov_iter_rw(iter) == READ && !(iocb->ki_flags & IOCB_DIRECT) &&
	    left > 0)
		len = min_t(loff_t, len, left);
	return len;
}

static size_t fuse_io_fault_in(struct iov_iter *iter, size_t len)
{
	if (iov_iter_rw(iter) == WRITE)
		return len - fault_in_iov_iter_readable(iter, len);
	return len - fault_in_iov_iter_writeable(iter, len);
}

static ssize_t fuse_io_bounce_write(fuse_passthrough_io_t *io,
				    struct kiocb *iocb, struct page *page,
				    struct iov_iter *from, size_t len)
{
	struct bio_vec bvec = { .bv_page = page };
	struct iov_iter kernel;

	bvec.bv_len = copy_page_from_iter(page, 0, len, from);
	/* O_DIRECT could not write such a length */
	if (!bvec.bv_len || (bvec.bv_len < len && iocb->ki_flags & IOCB_DIRECT))
		return -EFAULT;

	iov_iter_bvec(&kernel, ITER_SOURCE, &bvec, 1, bvec.bv_len);
	return io(iocb, &kernel);
}

static ssize_t fuse_io_bounce_read(fuse_passthrough_io_t *io,
				   struct kiocb *iocb, struct page *page,
				   struct iov_iter *to, size_t len)
{
	struct bio_vec bvec = { .bv_page = page, .bv_len = len };
	struct iov_iter kernel;
	size_t copied;
	ssize_t ret;

	iov_iter_bvec(&kernel, ITER_DEST, &bvec, 1, len);
	ret = io(iocb, &kernel);
	if (ret <= 0)
		return ret;

	copied = copy_page_to_iter(page, 0, ret, to);
	iocb->ki_pos -= ret - copied;
	return copied ?: -EFAULT;
}

/*
 * Last resort, for requests that take their own buffer away, as O_DIRECT from a
 * mapping of the same file: copy one page through a kernel buffer, with no lock
 * held during the fault.
 */
static ssize_t fuse_io_bounce(fuse_passthrough_io_t *io, struct kiocb *iocb,
			      struct iov_iter *iter)
{
	size_t len = min_t(size_t, iov_iter_count(iter), PAGE_SIZE);
	struct page *page = alloc_page(GFP_KERNEL_ACCOUNT);
	ssize_t ret;

	if (!page)
		return -ENOMEM;
	if (iov_iter_rw(iter) == WRITE)
		ret = fuse_io_bounce_write(io, iocb, page, iter, len);
	else
		ret = fuse_io_bounce_read(io, iocb, page, iter, len);
	__free_page(page);

	return ret;
}

/*
 * Continue with as much of the buffer as can be made present.  O_DIRECT fails if
 * a part of the buffer can't be accessed.
 */
static ssize_t fuse_io_continue(fuse_passthrough_io_t *io, struct kiocb *iocb,
				struct iov_iter *rest)
{
	size_t window = fuse_io_window(iocb, rest);
	size_t len = fuse_io_fault_in(rest, window);
	struct iov_iter iter = *rest;
	ssize_t ret = -EFAULT;

	if (len < window && iocb->ki_flags & IOCB_DIRECT)
		return ret;
	/* Shorter than what is left, so that the attempt ends before it faults */
	if (len) {
		iov_iter_truncate(&iter, len);
		ret = fuse_io_nofault(io, iocb, &iter);
	}
	if (ret == -EFAULT) {
		iter = *rest;
		ret = fuse_io_bounce(io, iocb, &iter);
	}

	return ret;
}

/* The first attempt returned @ret, and @all is the buffer before it */
static noinline ssize_t fuse_io_resume(fuse_passthrough_io_t *io,
				       struct kiocb *iocb,
				       struct iov_iter *iter,
				       const struct iov_iter *all, ssize_t ret)
{
	ssize_t done = 0;

	for (;;) {
		if (ret > 0)
			done += ret;
		/* Lower file systems may truncate or advance it even on error */
		*iter = *all;
		iov_iter_advance(iter, done);
		if (!fuse_io_fault_stopped(iocb, iter, ret) ||
		    fatal_signal_pending(current))
			break;
		if (iocb->ki_flags & IOCB_NOWAIT)
			return done ?: -EAGAIN;
		ret = fuse_io_continue(io, iocb, iter);
		if (ret == -EFAULT)
			break;
	}

	return done ?: ret;
}

/**
 * fuse_passthrough_resume - do a synchronous request, whatever it faults on
 * @io: does one attempt
 * @iocb: request on the FUSE file
 * @iter: buffer; when this returns it is advanced by the bytes that were done
 *
 * Pages of the buffer are faulted in between attempts, so a request that meets
 * a fault is not atomic against other writers.  With IOCB_NOWAIT it ends there.
 *
 * Context: Process context, no locks held.
 * Return: number of bytes, -EIOCBQUEUED with IOCB_WAITQ, or a negative error;
 * -EAGAIN where IOCB_NOWAIT met a fault
 */
ssize_t fuse_passthrough_resume(fuse_passthrough_io_t *io, struct kiocb *iocb,
				struct iov_iter *iter)
{
	struct iov_iter all = *iter;
	ssize_t ret;

	if (!user_backed_iter(iter))
		return io(iocb, iter);
	ret = fuse_io_nofault(io, iocb, iter);
	if (ret == all.count)
		return ret;
	return fuse_io_resume(io, iocb, iter, &all, ret);
}
