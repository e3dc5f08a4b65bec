// SPDX-License-Identifier: GPL-2.0-only
/*
 * FUSE passthrough: asynchronous O_DIRECT requests.
 *
 * The lower file system completes a request in any context, and possibly before
 * the submission returned.  When the caller is told, it may close the FUSE file,
 * so the request has a reference to the lower file of its own.
 */

#include "passthrough.h"

#include <linux/file.h>
#include <linux/slab.h>
#include <linux/workqueue.h>

/**
 * struct fuse_passthrough_aio - an asynchronous request on the lower file
 * @iocb: request on the lower file, holds a reference to it
 * @orig: the caller's request, holds the FUSE file open until it is completed
 * @work: accounts for a write that completed where fi->lock can't be taken
 * @res: what the lower file system returned
 * @start: first byte that a write may change
 * @end: byte after the last one
 * @count: references of the submission and of the completion
 */
struct fuse_passthrough_aio {
	struct kiocb iocb;
	struct kiocb *orig;
	struct work_struct work;
	long res;
	loff_t start;
	loff_t end;
	refcount_t count;
};

static struct kmem_cache *fuse_passthrough_aio_cachep;
static struct workqueue_struct *fuse_passthrough_wq;

static struct fuse_passthrough_aio *fuse_aio_alloc(struct kiocb *orig,
						   struct iov_iter *iter)
{
	struct fuse_passthrough_aio *aio;

	aio = kmem_cache_alloc(fuse_passthrough_aio_cachep, GFP_KERNEL);
	if (!aio)
		return NULL;
	aio->orig = orig;
	aio->start = orig->ki_pos;
	aio->end = orig->ki_pos + iov_iter_count(iter);
	refcount_set(&aio->count, 2);
	get_file(fuse_lower(orig->ki_filp)->file);

	return aio;
}

static void fuse_aio_put(struct fuse_passthrough_aio *aio)
{
	if (!refcount_dec_and_test(&aio->count))
		return;
	fput(aio->iocb.ki_filp);
	kmem_cache_free(fuse_passthrough_aio_cachep, aio);
}

/* Drop both references, for a request that was never asynchronous */
static void fuse_aio_free(struct fuse_passthrough_aio *aio)
{
	fput(aio->iocb.ki_filp);
	kmem_cache_free(fuse_passthrough_aio_cachep, aio);
}

/* Nothing of the request is used after ki_complete */
static void fuse_aio_finish(struct fuse_passthrough_aio *aio)
{
	struct kiocb *orig = aio->orig;
	long res = aio->res;

	/* FUSE and network file systems leave their own ki_pos where it was */
	if (res > 0)
		orig->ki_pos = aio->start + res;
	fuse_aio_put(aio);
	orig->ki_complete(orig, res);
}

static void fuse_aio_read_complete(struct kiocb *iocb, long res)
{
	struct fuse_passthrough_aio *aio =
		container_of(iocb, struct fuse_passthrough_aio, iocb);

	aio->res = res;
	fuse_passthrough_accessed(aio->orig->ki_filp);
	fuse_aio_finish(aio);
}

/* Waits for no server and no page */
static void fuse_aio_write_work(struct work_struct *work)
{
	struct fuse_passthrough_aio *aio =
		container_of(work, struct fuse_passthrough_aio, work);
	struct file *file = aio->orig->ki_filp;

	if (fuse_inode_written(file, aio->end))
		fuse_passthrough_drop_nowait(file_inode(file), aio->start,
					     aio->end);
	fuse_aio_finish(aio);
}

static void fuse_aio_write_complete(struct kiocb *iocb, long res)
{
	struct fuse_passthrough_aio *aio =
		container_of(iocb, struct fuse_passthrough_aio, iocb);

	kiocb_end_write(iocb);
	aio->res = res;
	/* fi->lock is not safe against interrupts, and pages take a while */
	if (in_task() && !irqs_disabled() &&
	    !fuse_inode_written(aio->orig->ki_filp, aio->end)) {
		fuse_aio_finish(aio);
		return;
	}
	INIT_WORK(&aio->work, fuse_aio_write_work);
	queue_work(fuse_passthrough_wq, &aio->work);
}

/**
 * fuse_passthrough_aio_read - read the lower file asynchronously
 * @iocb: request on the FUSE file
 * @to: buffer
 *
 * Context: Process context, no locks held.
 * Return: number of bytes or a negative error; after -EIOCBQUEUED, @iocb and its
 * file may be gone
 */
ssize_t fuse_passthrough_aio_read(struct kiocb *iocb, struct iov_iter *to)
{
	struct fuse_lower *lower = fuse_lower(iocb->ki_filp);
	struct fuse_passthrough_aio *aio = fuse_aio_alloc(iocb, to);
	const struct cred *old_cred;
	ssize_t ret;

	if (!aio)
		return -ENOMEM;
	fuse_lower_kiocb(&aio->iocb, iocb);
	aio->iocb.ki_complete = fuse_aio_read_complete;

	old_cred = override_creds(lower->cred);
	ret = vfs_iocb_iter_read(aio->iocb.ki_filp, &aio->iocb, to);
	revert_creds(old_cred);
	if (ret == -EIOCBQUEUED) {
		fuse_aio_put(aio);
		return ret;
	}

	iocb->ki_pos = aio->iocb.ki_pos;
	fuse_aio_free(aio);
	fuse_passthrough_accessed(iocb->ki_filp);
	return ret;
}

/**
 * fuse_passthrough_aio_write - write the lower file asynchronously
 * @iocb: request on the FUSE file, which does not grow by it
 * @from: data
 * @cred: credentials to write with
 *
 * The freeze protection of the lower file system goes to the completion.
 *
 * Context: Process context, no locks held.
 * Return: number of bytes or a negative error; after -EIOCBQUEUED, @iocb and its
 * file may be gone
 */
ssize_t fuse_passthrough_aio_write(struct kiocb *iocb, struct iov_iter *from,
				   const struct cred *cred)
{
	struct fuse_passthrough_aio *aio = fuse_aio_alloc(iocb, from);
	const struct cred *old_cred;
	ssize_t ret;

	if (!aio)
		return -ENOMEM;
	fuse_lower_kiocb_write(&aio->iocb, iocb);
	aio->iocb.ki_complete = fuse_aio_write_complete;
	ret = fuse_lower_start_write(&aio->iocb);
	if (ret)
		goto out_free;
	/* To lockdep, the protection is not held on the return to user space */
	__sb_writers_release(file_inode(aio->iocb.ki_filp)->i_sb,
			     SB_FREEZE_WRITE);

	old_cred = override_creds(cred);
	ret = vfs_iocb_iter_write(aio->iocb.ki_filp, &aio->iocb, from);
	revert_creds(old_cred);
	if (ret == -EIOCBQUEUED) {
		fuse_aio_put(aio);
		return ret;
	}

	kiocb_end_write(&aio->iocb);
	iocb->ki_pos = aio->iocb.ki_pos;
	fuse_passthrough_wrote(iocb, aio->start, aio->end, ret);
out_free:
	fuse_aio_free(aio);
	return ret;
}

/**
 * fuse_passthrough_init - allocate what all connections share
 *
 * Return: 0 or -ENOMEM
 */
int __init fuse_passthrough_init(void)
{
	fuse_passthrough_aio_cachep = KMEM_CACHE(fuse_passthrough_aio,
						 SLAB_ACCOUNT);
	if (!fuse_passthrough_aio_cachep)
		return -ENOMEM;
	/* Writeback of a loop device may wait for it */
	fuse_passthrough_wq = alloc_workqueue("fuse_passthrough",
					      WQ_MEM_RECLAIM, 0);
	if (!fuse_passthrough_wq) {
		kmem_cache_destroy(fuse_passthrough_aio_cachep);
		return -ENOMEM;
	}
	return 0;
}

/**
 * fuse_passthrough_exit - undo fuse_passthrough_init()
 */
void fuse_passthrough_exit(void)
{
	destroy_workqueue(fuse_passthrough_wq);
	kmem_cache_destroy(fuse_passthrough_aio_cachep);
}
