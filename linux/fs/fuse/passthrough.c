// SPDX-License-Identifier: GPL-2.0-only
/*
 * FUSE passthrough: reading, writing and mapping through the lower file.
 *
 * All I/O is done with the credentials of the task that attached the lower
 * file, and in the context of the caller.
 */

#include "fuse_i.h"

#include <linux/blkdev.h>
#include <linux/cred.h>
#include <linux/fadvise.h>
#include <linux/file.h>
#include <linux/fs.h>
#include <linux/magic.h>
#include <linux/mm.h>
#include <linux/pagemap.h>
#include <linux/sched/signal.h>
#include <linux/sizes.h>
#include <linux/slab.h>
#include <linux/splice.h>
#include <linux/workqueue.h>

/**
 * struct fuse_passthrough_aio - an asynchronous request on the lower file
 * @iocb: the request, as the lower file system sees it
 * @orig: the caller's request on the FUSE file
 * @work: finishes a write whose completion came where nobody may sleep
 * @res: result, once the lower file system is done
 * @write: direction
 * @over: the submission or the lower file system has ended; the second passes
 *	  the result on
 */
struct fuse_passthrough_aio {
	struct kiocb iocb;
	struct kiocb *orig;
	struct work_struct work;
	long res;
	bool write;
	int over;
};

static struct kmem_cache *fuse_passthrough_aio_cachep;

static struct fuse_backing *fuse_passthrough_backing(struct file *file)
{
	struct fuse_file *ff = file->private_data;

	return fuse_file_backing(ff);
}

/* As override_creds() and revert_creds(), for credentials that are held */
static inline const struct cred *fuse_passthrough_creds(const struct cred *cred)
{
	return rcu_replace_pointer(current->cred, cred, true);
}

/*
 * FUSE writes copies of pages back, and may drop a page before its copy is
 * there.
 */
static bool fuse_passthrough_in_writeback(struct inode *inode)
{
	/* The copy was linked before its page was clean and could be dropped */
	smp_rmb();
	return !RB_EMPTY_ROOT(&get_fuse_inode(inode)->writepages);
}

static int fuse_passthrough_flush_range(struct inode *inode, loff_t start,
					loff_t end)
{
	int err = filemap_write_and_wait_range(inode->i_mapping, start, end);

	fuse_wait_on_range_writeback(inode, start >> PAGE_SHIFT,
				     end >> PAGE_SHIFT);

	/* Without a server the dirty pages are lost, the lower file is not */
	return READ_ONCE(get_fuse_conn(inode)->connected) ? err : 0;
}

/*
 * Beyond the end of the lower file any dirty page decides what there is to
 * read, and where an append goes.
 */
static noinline int fuse_passthrough_flush_pages(struct inode *inode,
						 struct file *lower, loff_t pos,
						 size_t count, int ki_flags)
{
	loff_t end = pos + count - 1;

	if (!count)
		return 0;
	if (ki_flags & IOCB_NOWAIT)
		return -EAGAIN;
	/* Others may append meanwhile */
	if (end >= data_race(i_size_read(file_inode(lower))) ||
	    (ki_flags | lower->f_iocb_flags) & IOCB_APPEND)
		return fuse_passthrough_flush_range(inode, 0, LLONG_MAX);
	return fuse_passthrough_flush_range(inode, pos, end);
}

/*
 * Other opens of the inode may use the page cache.  What they have written
 * must be on the lower file before it is read or written here.
 */
static inline int fuse_passthrough_flush(struct inode *inode,
					 struct file *lower, loff_t pos,
					 size_t count, int ki_flags)
{
	if (likely(!READ_ONCE(inode->i_mapping->nrpages) &&
		   !fuse_passthrough_in_writeback(inode)))
		return 0;
	return fuse_passthrough_flush_pages(inode, lower, pos, count, ki_flags);
}

/* What every read and write asks first, before any lock and any credentials */
static inline int fuse_passthrough_begin(struct kiocb *iocb,
					 struct file *lower, size_t count)
{
	struct file *file = iocb->ki_filp;
	struct inode *inode = file_inode(file);
	int flags = iocb->ki_flags;

	if (fuse_is_bad(inode))
		return -EIO;
	if (unlikely(flags & (IOCB_DIRECT | IOCB_NOWAIT))) {
		/* F_SETFL asked the FUSE file, which can */
		if (flags & IOCB_DIRECT && !(lower->f_mode & FMODE_CAN_ODIRECT))
			return -EINVAL;
		/* io_uring tries it on any regular file */
		if (flags & IOCB_NOWAIT && !(file->f_mode & FMODE_NOWAIT))
			return -EAGAIN;
	}

	return fuse_passthrough_flush(inode, lower, iocb->ki_pos, count, flags);
}

/* A lower file that is append-only or synchronous by itself stays so */
static __always_inline int fuse_passthrough_lower_flags(struct kiocb *iocb,
							struct file *lower,
							int rw)
{
	/* It says that the kiocb lies in a request of fs/aio.c */
	int flags = iocb->ki_flags & ~IOCB_AIO_RW;

	/* loop and others leave out IOCB_WRITE, by which overlayfs ends a write */
	if (rw == WRITE)
		flags |= IOCB_WRITE | (lower->f_iocb_flags &
				(IOCB_APPEND | IOCB_DSYNC | IOCB_SYNC));
	return flags;
}

static inline void fuse_passthrough_accessed(struct inode *inode)
{
	struct fuse_inode *fi = get_fuse_inode(inode);

	if (!(READ_ONCE(fi->inval_mask) & STATX_ATIME) && !IS_RDONLY(inode))
		fuse_invalidate_attr_mask(inode, STATX_ATIME);
}

/*
 * Does a write to @end concern the size?  While FUSE_I_SIZE_UNSTABLE is set the
 * answer of a truncation is on its way, with a size from before the write.
 */
static bool fuse_passthrough_moves_size(struct inode *inode, loff_t end)
{
	return end > i_size_read(inode) ||
	       test_bit(FUSE_I_SIZE_UNSTABLE, &get_fuse_inode(inode)->state);
}

/*
 * With the inode lock, which all that sets a size from the server's answer
 * holds while it asks, the lower file's own size is the truth.  So the lock is
 * taken after the write, and not for it: the lower file system orders its
 * writers.
 */
static void fuse_passthrough_move_size(struct inode *inode,
				       struct fuse_backing *backing, loff_t end)
{
	struct fuse_conn *fc = get_fuse_conn(inode);
	struct fuse_inode *fi = get_fuse_inode(inode);
	loff_t size;

	lockdep_assert_held(&inode->i_rwsem);
	spin_lock(&fi->lock);
	fi->attr_version = atomic64_inc_return(&fc->attr_version);
	/* Whatever others append meanwhile */
	size = min(end, data_race(i_size_read(file_inode(backing->file))));
	if (size > inode->i_size)
		i_size_write(inode, size);
	spin_unlock(&fi->lock);
}

/*
 * Times of the FUSE inode after a write that ended at @end, if that is all:
 * false where pages or the size need what may wait for the server.
 */
static inline bool fuse_passthrough_wrote_in_place(struct inode *inode,
						   loff_t end)
{
	struct fuse_conn *fc = get_fuse_conn(inode);
	struct fuse_inode *fi = get_fuse_inode(inode);
	bool moves;

	if (unlikely(READ_ONCE(inode->i_mapping->nrpages)))
		return false;

	spin_lock(&fi->lock);
	fi->attr_version = atomic64_inc_return(&fc->attr_version);
	moves = fuse_passthrough_moves_size(inode, end);
	spin_unlock(&fi->lock);

	/* Setuid and setgid may have gone */
	if (unlikely(inode->i_mode & (S_ISUID | S_ISGID)))
		fuse_invalidate_attr_mask(inode, STATX_MODE);
	/* Mostly these are invalid already: spare the atomic operation */
	if (unlikely(~READ_ONCE(fi->inval_mask) & FUSE_STATX_MODSIZE))
		fuse_invalidate_attr_mask(inode, FUSE_STATX_MODSIZE);

	return !moves;
}

/* All that a write may have changed, for one that failed all of the file */
static noinline void fuse_passthrough_move_end(struct inode *inode,
					       struct fuse_backing *backing,
					       loff_t end, ssize_t written,
					       bool locked)
{
	loff_t start = end - written;

	if (unlikely(written < 0)) {
		start = 0;
		end = LLONG_MAX;
	}
	if (!locked)
		inode_lock_shared(inode);
	invalidate_inode_pages2_range(inode->i_mapping, start >> PAGE_SHIFT,
				      (end - 1) >> PAGE_SHIFT);
	fuse_passthrough_move_size(inode, backing, end);
	if (!locked)
		inode_unlock_shared(inode);
	fuse_invalidate_attr_mask(inode, FUSE_STATX_MODSIZE | STATX_MODE);
}

/*
 * Of a write that failed, parts may be in the file if it was O_DIRECT, or all
 * if it could not be synced.  Who may not wait found no pages.
 */
static bool fuse_passthrough_half_written(ssize_t err, int ki_flags)
{
	return err < 0 && err != -EAGAIN && err != -EINVAL &&
	       ki_flags & (IOCB_DIRECT | IOCB_DSYNC) &&
	       !(ki_flags & IOCB_NOWAIT);
}

/*
 * Pages, size and times of the FUSE inode after a write that ended at @end;
 * @locked if the inode lock is held.
 */
static inline void fuse_passthrough_wrote(struct inode *inode,
					  struct fuse_backing *backing,
					  loff_t end, ssize_t written,
					  int ki_flags, bool locked)
{
	bool all;

	if (likely(written > 0))
		all = fuse_passthrough_wrote_in_place(inode, end);
	else
		all = !fuse_passthrough_half_written(written, ki_flags |
					backing->file->f_iocb_flags);
	if (unlikely(!all))
		fuse_passthrough_move_end(inode, backing, end, written, locked);
}

/* A file whose requests come one at a time allocates for the first alone */
static inline struct fuse_passthrough_aio *
fuse_passthrough_aio_alloc(struct fuse_backing *backing)
{
	struct fuse_passthrough_aio *aio = xchg(&backing->spare, NULL);

	if (likely(aio))
		return aio;
	return kmem_cache_alloc(fuse_passthrough_aio_cachep, GFP_KERNEL);
}

static inline void fuse_passthrough_aio_free(struct fuse_passthrough_aio *aio,
					     struct fuse_backing *backing)
{
	aio = xchg(&backing->spare, aio);
	if (unlikely(aio))
		kmem_cache_free(fuse_passthrough_aio_cachep, aio);
}

/* The caller may free its kiocb and close the file as soon as it is called */
static void fuse_passthrough_aio_done(struct fuse_passthrough_aio *aio)
{
	struct kiocb *orig = aio->orig;
	long res = aio->res;

	orig->ki_pos = aio->iocb.ki_pos;
	fuse_passthrough_aio_free(aio, fuse_passthrough_backing(orig->ki_filp));
	orig->ki_complete(orig, res);
}

static void fuse_passthrough_aio_work(struct work_struct *work)
{
	struct fuse_passthrough_aio *aio =
		container_of(work, struct fuse_passthrough_aio, work);
	struct file *file = aio->orig->ki_filp;

	fuse_passthrough_wrote(file_inode(file), fuse_passthrough_backing(file),
			       aio->iocb.ki_pos, aio->res, aio->iocb.ki_flags,
			       false);
	fuse_passthrough_aio_done(aio);
}

/*
 * Any context.  The end of a write takes fi->lock, which is not safe against
 * interrupts, and what may wait for the server is not done for the lower file
 * system's own worker.
 */
static void fuse_passthrough_aio_complete(struct kiocb *iocb, long res)
{
	struct fuse_passthrough_aio *aio =
		container_of(iocb, struct fuse_passthrough_aio, iocb);
	struct inode *inode;

	if (aio->write)
		kiocb_end_write(iocb);
	/* FUSE and network file systems leave it where it was */
	if (res > 0)
		iocb->ki_pos = aio->orig->ki_pos + res;
	aio->res = res;
	/* What comes before the submission is over, the submitter returns */
	if (!xchg(&aio->over, 1))
		return;

	inode = file_inode(aio->orig->ki_filp);
	if (!aio->write) {
		fuse_passthrough_accessed(inode);
	} else if (!in_task() || irqs_disabled() || res <= 0 ||
		   !fuse_passthrough_wrote_in_place(inode, iocb->ki_pos)) {
		INIT_WORK(&aio->work, fuse_passthrough_aio_work);
		queue_work(get_fuse_conn(inode)->passthrough_wq, &aio->work);
		return;
	}
	fuse_passthrough_aio_done(aio);
}

/* Synchronous callers don't set IOCB_WRITE: @rw is that of @iter */
static inline ssize_t fuse_passthrough_submit(struct kiocb *iocb,
					      struct iov_iter *iter, int rw)
{
	if (rw == WRITE)
		return vfs_iocb_iter_write(iocb->ki_filp, iocb, iter);
	return vfs_iocb_iter_read(iocb->ki_filp, iocb, iter);
}

/*
 * A write comes with freeze protection of the lower file, which is handed over,
 * and with the inode lock if @locked.  When this returns -EIOCBQUEUED, the
 * request may be complete and the file closed.
 */
static __always_inline ssize_t
fuse_passthrough_async(struct kiocb *iocb, struct fuse_backing *backing,
		       struct file *lower, const struct cred *cred,
		       struct iov_iter *iter, int rw, bool *locked)
{
	struct super_block *sb = file_inode(lower)->i_sb;
	struct fuse_passthrough_aio *aio;
	const struct cred *old_cred;
	ssize_t ret;

	aio = fuse_passthrough_aio_alloc(backing);
	if (!aio) {
		if (rw == WRITE)
			sb_end_write(sb);
		return -ENOMEM;
	}

	aio->iocb.ki_filp = lower;
	aio->iocb.ki_pos = iocb->ki_pos;
	aio->iocb.ki_complete = fuse_passthrough_aio_complete;
	aio->iocb.private = NULL;
	aio->iocb.ki_flags = fuse_passthrough_lower_flags(iocb, lower, rw);
	aio->iocb.ki_ioprio = iocb->ki_ioprio;
	aio->iocb.ki_waitq = iocb->ki_waitq;
	aio->orig = iocb;
	aio->write = rw == WRITE;
	aio->over = 0;
	/* To lockdep, the protection does not come back to user space held */
	if (rw == WRITE)
		__sb_writers_release(sb, SB_FREEZE_WRITE);

	old_cred = fuse_passthrough_creds(cred);
	ret = fuse_passthrough_submit(&aio->iocb, iter, rw);
	fuse_passthrough_creds(old_cred);

	if (ret == -EIOCBQUEUED) {
		if (*locked)
			inode_unlock_shared(file_inode(iocb->ki_filp));
		*locked = false;
		if (!xchg(&aio->over, 1))
			return ret;
		ret = aio->res;
	} else if (rw == WRITE) {
		__sb_writers_acquired(sb, SB_FREEZE_WRITE);
		sb_end_write(sb);
	}
	iocb->ki_pos = aio->iocb.ki_pos;
	fuse_passthrough_aio_free(aio, backing);
	return ret;
}

/*
 * A fault asks a server, and that must not happen below the locks of the lower
 * file, which the server may need to answer.  So the pages of the caller have to
 * be there, and who meets one that is not tries again, fuse_passthrough_again().
 */
static __always_inline ssize_t
fuse_passthrough_submit_user(struct kiocb *iocb, struct iov_iter *iter, int rw)
{
	ssize_t ret;

	pagefault_disable();
	iter->nofault = true;
	ret = fuse_passthrough_submit(iocb, iter, rw);
	iter->nofault = false;
	pagefault_enable();

	return ret;
}

static __always_inline ssize_t fuse_passthrough_sync(struct kiocb *iocb,
						     struct file *lower,
						     struct iov_iter *iter,
						     int rw)
{
	struct kiocb lower_iocb;
	ssize_t ret;

	/* With ki_waitq, -EIOCBQUEUED is an answer for the caller */
	lower_iocb = *iocb;
	lower_iocb.ki_filp = lower;
	lower_iocb.ki_complete = NULL;
	lower_iocb.private = NULL;
	lower_iocb.ki_flags = fuse_passthrough_lower_flags(iocb, lower, rw);
	if (user_backed_iter(iter))
		ret = fuse_passthrough_submit_user(&lower_iocb, iter, rw);
	else
		ret = fuse_passthrough_submit(&lower_iocb, iter, rw);
	/* What failed may have moved it on its way, and is not done */
	if (likely(ret >= 0))
		iocb->ki_pos = lower_iocb.ki_pos;

	return ret;
}

static inline bool fuse_passthrough_appends(struct kiocb *iocb,
					    struct file *lower)
{
	return (iocb->ki_flags | lower->f_iocb_flags) & IOCB_APPEND;
}

/* F_SETFL took O_APPEND back, with which the kernel had opened the lower file */
static void fuse_passthrough_dont_append(struct fuse_backing *backing)
{
	struct file *lower = backing->file;

	if (!backing->id || !(lower->f_flags & O_APPEND) ||
	    IS_APPEND(file_inode(lower)))
		return;
	spin_lock(&lower->f_lock);
	lower->f_flags &= ~O_APPEND;
	lower->f_iocb_flags = iocb_flags(lower);
	spin_unlock(&lower->f_lock);
}

/*
 * Buffered requests are finished when the lower file system returns.  One whose
 * buffer may be a mapping of the inode has to be tried again.
 */
static inline bool fuse_passthrough_is_async(struct kiocb *iocb,
					     struct iov_iter *iter)
{
	struct inode *inode = file_inode(iocb->ki_filp);

	if (likely(!(iocb->ki_flags & IOCB_DIRECT)) || is_sync_kiocb(iocb))
		return false;
	return !user_backed_iter(iter) ||
	       !(mapping_mapped(inode->i_mapping) ||
		 atomic_read(&get_fuse_inode(inode)->passthrough_maps));
}

/*
 * May it have been a page that is not there which stopped a request?  A write
 * that a limit stopped would be sent SIGXFSZ when it tried again, and of an
 * O_DIRECT append that failed a part may be in the file.  Who may not wait gets
 * what there is.
 */
static bool fuse_passthrough_met_fault(struct kiocb *iocb, struct file *lower,
				       int rw, ssize_t ret)
{
	unsigned long limit = rlimit(RLIMIT_FSIZE);

	if (ret <= 0)
		return ret == -EFAULT &&
		       !(rw == WRITE && iocb->ki_flags & IOCB_DIRECT &&
			 fuse_passthrough_appends(iocb, lower));
	if (iocb->ki_flags & (IOCB_NOWAIT | IOCB_WAITQ))
		return false;
	if (rw == READ)
		return iocb->ki_pos < i_size_read(file_inode(lower));
	return limit == RLIM_INFINITY || iocb->ki_pos < limit;
}

static __always_inline ssize_t fuse_passthrough_read(struct kiocb *iocb,
						     struct iov_iter *to,
						     bool async)
{
	struct file *file = iocb->ki_filp;
	struct fuse_backing *backing = fuse_passthrough_backing(file);
	struct inode *inode = file_inode(file);
	struct file *lower = backing->file;
	const struct cred *old_cred;
	bool locked = false;
	ssize_t ret;

	ret = fuse_passthrough_begin(iocb, lower, iov_iter_count(to));
	if (ret)
		return ret;

	if (unlikely(async)) {
		ret = fuse_passthrough_async(iocb, backing, lower,
					     backing->cred, to, READ, &locked);
	} else {
		old_cred = fuse_passthrough_creds(backing->cred);
		ret = fuse_passthrough_sync(iocb, lower, to, READ);
		fuse_passthrough_creds(old_cred);
	}
	if (ret != -EIOCBQUEUED)
		fuse_passthrough_accessed(inode);

	return ret;
}

static noinline const struct cred *
fuse_passthrough_suid_cred(struct fuse_backing *backing, struct inode *lower)
{
	if (capable(CAP_FSETID))
		return backing->cred;
	if (!(lower->i_mode & (S_ISUID | 0010)) && in_group_p(lower->i_gid))
		return backing->cred;
	return backing->nofsetid_cred;
}

/*
 * A write by a caller without CAP_FSETID takes setuid and setgid away, as it
 * would when the caller wrote the lower file itself: setgid without group
 * execute stays with a member of the group.
 */
static inline const struct cred *
fuse_passthrough_write_cred(struct fuse_backing *backing, struct file *lower)
{
	struct inode *inode = file_inode(lower);

	if (likely(!(inode->i_mode & (S_ISUID | S_ISGID))))
		return backing->cred;
	return fuse_passthrough_suid_cred(backing, inode);
}

/*
 * overlayfs of this version loses IOCB_APPEND on its way down: its appends are
 * ordered here, and go to where its file ends.  Not by the inode lock: splice
 * takes that one below the lock of a pipe, and overlayfs's is above it.
 */
static noinline ssize_t fuse_passthrough_append_overlay(struct kiocb *iocb,
							struct file *lower,
							struct iov_iter *from)
{
	struct fuse_inode *fi = get_fuse_inode(file_inode(iocb->ki_filp));
	ssize_t ret;

	/* Of a directory it serializes lookups */
	mutex_lock_nested(&fi->mutex, SINGLE_DEPTH_NESTING);
	iocb->ki_pos = i_size_read(file_inode(lower));
	ret = fuse_passthrough_sync(iocb, lower, from, WRITE);
	mutex_unlock(&fi->mutex);

	return ret;
}

static __always_inline ssize_t
fuse_passthrough_sync_write(struct kiocb *iocb, struct file *lower,
			    struct iov_iter *from)
{
	ssize_t ret;

	if (unlikely(iocb->ki_flags & IOCB_APPEND &&
		     file_inode(lower)->i_sb->s_magic == OVERLAYFS_SUPER_MAGIC))
		ret = fuse_passthrough_append_overlay(iocb, lower, from);
	else
		ret = fuse_passthrough_sync(iocb, lower, from, WRITE);
	sb_end_write(file_inode(lower)->i_sb);

	return ret;
}

/*
 * Takes the freeze protection of the lower file, which is a regular one.  Only
 * who may not wait, for a thaw or anything else, gets -EAGAIN.
 */
static __always_inline int
fuse_passthrough_begin_write(struct kiocb *iocb, struct file *lower,
			     size_t count, bool locked)
{
	struct super_block *sb = file_inode(lower)->i_sb;
	struct inode *inode = file_inode(iocb->ki_filp);
	int err;

	err = fuse_passthrough_begin(iocb, lower, count);
	if (err)
		return err;
	/* The size is moved under a lock that may have to be waited for */
	if (iocb->ki_flags & IOCB_NOWAIT &&
	    (fuse_passthrough_appends(iocb, lower) ||
	     fuse_passthrough_moves_size(inode, iocb->ki_pos + count)))
		return -EAGAIN;
	if (locked) {
		/* Without FUSE_WRITEBACK_CACHE the server keeps the times */
		err = file_update_time(iocb->ki_filp);
		if (err)
			return err;
	}
	if (!locked && !(iocb->ki_flags & IOCB_NOWAIT))
		sb_start_write(sb);
	else if (!sb_start_write_trylock(sb))
		return -EAGAIN;
	return 0;
}

/*
 * With FUSE_WRITEBACK_CACHE whole pages are written back, with what else is in
 * them.  So cached writers, who hold the lock exclusively, must not get between
 * the flush, the write and the invalidation.  Nobody waits for the lower file
 * system's thaw with the lock: others wait for it with a pipe or for the server.
 */
static noinline int fuse_passthrough_lock_and_begin(struct kiocb *iocb,
						    struct file *lower,
						    size_t count)
{
	struct inode *inode = file_inode(iocb->ki_filp);
	bool nowait = iocb->ki_flags & IOCB_NOWAIT;
	int err;

	for (;;) {
		/* The lower file may be one of FUSE passthrough, with its own */
		if (!nowait)
			inode_lock_shared_nested(inode,
						 inode->i_sb->s_stack_depth - 1);
		else if (!inode_trylock_shared(inode))
			return -EAGAIN;
		err = fuse_passthrough_begin_write(iocb, lower, count, true);
		if (!err)
			return 0;
		inode_unlock_shared(inode);
		if (err != -EAGAIN || nowait)
			return err;

		/* Wait for the thaw */
		file_start_write(lower);
		file_end_write(lower);
	}
}

static __always_inline ssize_t fuse_passthrough_write(struct kiocb *iocb,
						      struct iov_iter *from,
						      bool locked, bool async)
{
	struct file *file = iocb->ki_filp;
	struct fuse_backing *backing = fuse_passthrough_backing(file);
	struct inode *inode = file_inode(file);
	struct file *lower = backing->file;
	const struct cred *old_cred, *cred;
	ssize_t ret;

	if (locked)
		ret = fuse_passthrough_lock_and_begin(iocb, lower,
						      iov_iter_count(from));
	else
		ret = fuse_passthrough_begin_write(iocb, lower,
						   iov_iter_count(from), false);
	if (ret)
		return ret;

	cred = fuse_passthrough_write_cred(backing, lower);
	if (unlikely(async)) {
		ret = fuse_passthrough_async(iocb, backing, lower, cred, from,
					     WRITE, &locked);
	} else {
		old_cred = fuse_passthrough_creds(cred);
		ret = fuse_passthrough_sync_write(iocb, lower, from);
		fuse_passthrough_creds(old_cred);
	}
	/* Who is told later may have been, and have closed the file */
	if (likely(ret > 0) || ret != -EIOCBQUEUED)
		fuse_passthrough_wrote(inode, backing, iocb->ki_pos, ret,
				       iocb->ki_flags, locked);
	if (locked)
		inode_unlock_shared(inode);

	return ret;
}

static noinline ssize_t fuse_passthrough_write_locked(struct kiocb *iocb,
						      struct iov_iter *from,
						      bool async)
{
	return fuse_passthrough_write(iocb, from, true, async);
}

static __always_inline ssize_t
fuse_passthrough_write_any(struct kiocb *iocb, struct iov_iter *from,
			   bool async)
{
	struct inode *inode = file_inode(iocb->ki_filp);

	if (unlikely(get_fuse_conn(inode)->writeback_cache))
		return fuse_passthrough_write_locked(iocb, from, async);
	return fuse_passthrough_write(iocb, from, false, async);
}

static noinline ssize_t fuse_passthrough_read_async(struct kiocb *iocb,
						    struct iov_iter *to)
{
	return fuse_passthrough_read(iocb, to, true);
}

/* As iov_iter_save_state(), where variables would be initialized twice */
static inline struct iov_iter_state
fuse_passthrough_state(const struct iov_iter *iter)
{
	return (struct iov_iter_state){
		.iov_offset = iter->iov_offset,
		.count = iter->count,
		.nr_segs = iter->nr_segs,
	};
}

/*
 * What is left of the buffer after @ret.  A limit cuts it for good, who fails
 * may have moved it, and not all who succeed do.
 */
static void fuse_passthrough_rewind(struct iov_iter *iter,
				    const struct iov_iter_state *state,
				    ssize_t ret)
{
	if (iter_is_iovec(iter))
		iter->iov -= state->nr_segs - iter->nr_segs;
	iter->nr_segs = state->nr_segs;
	iter->iov_offset = state->iov_offset;
	iter->count = state->count;
	if (ret > 0)
		iov_iter_advance(iter, ret);
}

/* Makes the buffer accessible: how much of it is, of what is touched */
static size_t fuse_passthrough_fault_in(struct kiocb *iocb, struct file *lower,
					struct iov_iter *iter, size_t *touched,
					int rw)
{
	loff_t size = i_size_read(file_inode(lower)) - iocb->ki_pos;

	if (rw == WRITE)
		return *touched - fault_in_iov_iter_readable(iter, *touched);
	/* Behind the end, only O_DIRECT touches the buffer */
	if (!(iocb->ki_flags & IOCB_DIRECT) && size > 0 && size < *touched)
		*touched = size;
	return *touched - fault_in_iov_iter_writeable(iter, *touched);
}

static noinline ssize_t fuse_passthrough_attempt(struct kiocb *iocb,
						 struct iov_iter *iter, int rw)
{
	if (rw == READ)
		return fuse_passthrough_read(iocb, iter, false);
	return fuse_passthrough_write_any(iocb, iter, false);
}

/* One more attempt, with @count bytes of the buffer */
static ssize_t fuse_passthrough_once(struct kiocb *iocb, struct iov_iter *iter,
				     int rw, size_t count)
{
	size_t hidden = iov_iter_count(iter) - count;
	struct iov_iter_state state = fuse_passthrough_state(iter);
	ssize_t ret;

	state.count = count;
	iov_iter_truncate(iter, count);
	ret = fuse_passthrough_attempt(iocb, iter, rw);
	fuse_passthrough_rewind(iter, &state, ret);
	iov_iter_reexpand(iter, iov_iter_count(iter) + hidden);

	return ret;
}

/*
 * A page by way of the kernel's own, with faults as anywhere and no lock: for
 * where only such a fault helps, as below a stack, and where the request itself
 * takes the pages away that it needs, as those of the file it writes.
 */
static ssize_t fuse_passthrough_bounce(struct kiocb *iocb,
				       struct iov_iter *iter, int rw)
{
	size_t count = min_t(size_t, iov_iter_count(iter), PAGE_SIZE), copied;
	struct iov_iter_state state = fuse_passthrough_state(iter);
	struct bio_vec bvec = { .bv_page = alloc_page(GFP_KERNEL) };
	struct iov_iter kernel;
	ssize_t ret;

	if (!bvec.bv_page)
		return -ENOMEM;
	bvec.bv_len = count;
	iov_iter_bvec(&kernel, rw, &bvec, 1, count);
	if (rw == WRITE) {
		copied = copy_page_from_iter(bvec.bv_page, 0, count, iter);
		iov_iter_truncate(&kernel, copied);
		/* No alignment is asked for where the buffer is at fault */
		if (!copied || (copied < count && iocb->ki_flags & IOCB_DIRECT))
			ret = -EFAULT;
		else
			ret = fuse_passthrough_attempt(iocb, &kernel, WRITE);
	} else {
		ret = fuse_passthrough_attempt(iocb, &kernel, READ);
		if (ret > 0) {
			copied = copy_page_to_iter(bvec.bv_page, 0, ret, iter);
			iocb->ki_pos -= ret - copied;
			ret = copied ?: -EFAULT;
		}
	}
	fuse_passthrough_rewind(iter, &state, ret);
	__free_page(bvec.bv_page);

	return ret;
}

/* How much of the buffer is made accessible at once: reads allocate it */
static size_t fuse_passthrough_window(int rw)
{
	return rw == WRITE ? SZ_16M : SZ_1M;
}

/*
 * Tries again after a fault that stopped a request when it had @done bytes, or
 * -EFAULT.  Who gets nowhere asks for less, and at last for no page of the
 * buffer; but O_DIRECT with a part of it that nobody can access is in error.
 */
static ssize_t fuse_passthrough_again(struct kiocb *iocb, struct file *lower,
				      struct iov_iter *iter, int rw,
				      ssize_t done)
{
	size_t window = fuse_passthrough_window(rw), count, touched, there;
	bool last, bounce;
	ssize_t ret;

	do {
		count = min(iov_iter_count(iter), window);
		touched = count;
		there = fuse_passthrough_fault_in(iocb, lower, iter, &touched,
						  rw);
		if (fatal_signal_pending(current))
			break;

		last = iocb->ki_flags & IOCB_DIRECT && there < touched;
		bounce = !last && (!there || window < PAGE_SIZE);
		if (bounce)
			ret = fuse_passthrough_bounce(iocb, iter, rw);
		else
			ret = fuse_passthrough_once(iocb, iter, rw, count);
		if (ret > 0) {
			done = max_t(ssize_t, done, 0) + ret;
		} else {
			if (done < 0)
				done = ret;
			last |= bounce;
		}
		if (!bounce && ret < (ssize_t)count)
			window = count / 8;
	} while (!last && iov_iter_count(iter) &&
		 fuse_passthrough_met_fault(iocb, lower, rw, ret));

	return done;
}

/*
 * A request that a fault stopped after @ret bytes begins again, if it is not too
 * large: who writes the same bytes comes before or after all of it.
 */
static ssize_t fuse_passthrough_whole(struct kiocb *iocb, struct file *lower,
				      struct iov_iter *iter, int rw,
				      ssize_t ret,
				      const struct iov_iter_state *state)
{
	size_t count = state->count;
	ssize_t whole;

	if (ret <= 0 || count > fuse_passthrough_window(rw) ||
	    (rw == WRITE && fuse_passthrough_appends(iocb, lower)))
		return ret;
	iocb->ki_pos -= ret;
	fuse_passthrough_rewind(iter, state, 0);
	fuse_passthrough_fault_in(iocb, lower, iter, &count, rw);
	whole = fuse_passthrough_once(iocb, iter, rw, state->count);
	if (whole >= ret || rw == READ || (whole < 0 && whole != -EFAULT))
		return whole;

	/* Written is written */
	iocb->ki_pos += ret - max_t(ssize_t, whole, 0);
	fuse_passthrough_rewind(iter, state, ret);
	return ret;
}

/* A synchronous request returned @ret and left some of its buffer. */
static noinline ssize_t
fuse_passthrough_retry(struct kiocb *iocb, struct iov_iter *iter, int rw,
		       ssize_t ret, const struct iov_iter_state *state)
{
	struct file *lower = fuse_passthrough_backing(iocb->ki_filp)->file;

	if (!user_backed_iter(iter))
		return ret;
	fuse_passthrough_rewind(iter, state, ret);
	if (!iov_iter_count(iter) ||
	    !fuse_passthrough_met_fault(iocb, lower, rw, ret))
		return ret;
	ret = fuse_passthrough_whole(iocb, lower, iter, rw, ret, state);
	if (iov_iter_count(iter) &&
	    fuse_passthrough_met_fault(iocb, lower, rw, ret))
		ret = fuse_passthrough_again(iocb, lower, iter, rw, ret);
	return ret;
}

/**
 * fuse_passthrough_read_iter - read the lower file
 * @iocb: request on a FUSE file that has a lower one
 * @to: where the data goes
 *
 * Context: Process context.
 * Return: number of bytes, -EIOCBQUEUED or another negative error
 */
ssize_t fuse_passthrough_read_iter(struct kiocb *iocb, struct iov_iter *to)
{
	struct iov_iter_state state = fuse_passthrough_state(to);
	ssize_t ret;

	if (unlikely(fuse_passthrough_is_async(iocb, to)))
		return fuse_passthrough_read_async(iocb, to);
	ret = fuse_passthrough_read(iocb, to, false);
	if (unlikely(iov_iter_count(to)))
		ret = fuse_passthrough_retry(iocb, to, READ, ret, &state);
	return ret;
}

/*
 * The rest of an append would go behind what others append, and where O_DIRECT
 * meets a fault some file systems leave zeros.
 */
static noinline void fuse_passthrough_prepare_write(struct kiocb *iocb,
						    struct iov_iter *from)
{
	if (!(iocb->ki_flags & IOCB_APPEND))
		fuse_passthrough_dont_append(fuse_passthrough_backing(iocb->ki_filp));
	if (user_backed_iter(from))
		fault_in_iov_iter_readable(from, iov_iter_count(from));
}

static noinline ssize_t fuse_passthrough_write_sync(struct kiocb *iocb,
						    struct iov_iter *from)
{
	struct file *lower = fuse_passthrough_backing(iocb->ki_filp)->file;
	struct iov_iter_state state = fuse_passthrough_state(from);
	ssize_t ret;

	if (unlikely((iocb->ki_flags | lower->f_iocb_flags) &
		     (IOCB_APPEND | IOCB_DIRECT)))
		fuse_passthrough_prepare_write(iocb, from);
	ret = fuse_passthrough_write_any(iocb, from, false);
	if (unlikely(iov_iter_count(from)))
		ret = fuse_passthrough_retry(iocb, from, WRITE, ret, &state);
	return ret;
}

/*
 * Appends wait: the end of the file moves when one completes, and the next, if
 * it came before, would go to the same place.
 */
static noinline ssize_t fuse_passthrough_write_async(struct kiocb *iocb,
						     struct iov_iter *from)
{
	struct file *lower = fuse_passthrough_backing(iocb->ki_filp)->file;

	if (unlikely(fuse_passthrough_appends(iocb, lower)))
		return fuse_passthrough_write_sync(iocb, from);
	return fuse_passthrough_write_any(iocb, from, true);
}

/**
 * fuse_passthrough_write_iter - write the lower file
 * @iocb: request on a FUSE file that has a lower one
 * @from: the data
 *
 * Size and times of the FUSE inode follow at once, for an asynchronous write
 * when it completes.
 *
 * Context: Process context.
 * Return: number of bytes, -EIOCBQUEUED or another negative error
 */
ssize_t fuse_passthrough_write_iter(struct kiocb *iocb, struct iov_iter *from)
{
	if (unlikely(fuse_passthrough_is_async(iocb, from)))
		return fuse_passthrough_write_async(iocb, from);
	return fuse_passthrough_write_sync(iocb, from);
}

/* A splice to the lower file looks at that file's own O_DSYNC alone */
static ssize_t fuse_passthrough_splice_sync(struct file *out,
					    struct file *lower, loff_t end,
					    ssize_t ret)
{
	int err;

	if (ret <= 0 || !(out->f_iocb_flags & IOCB_DSYNC))
		return ret;
	err = vfs_fsync_range(lower, end - ret, end - 1,
			      !(out->f_iocb_flags & IOCB_SYNC));
	return err ?: ret;
}

/**
 * fuse_passthrough_splice_write - splice from a pipe to the lower file
 * @pipe: source
 * @out: FUSE file that has a lower one
 * @ppos: position in @out, moved
 * @len: number of bytes
 * @flags: SPLICE_F_*
 *
 * The freeze protection of the lower file system comes before the lock of the
 * pipe, as in a splice to the lower file: the other way round the two lock
 * each other out while a freeze waits.
 *
 * Context: Process context.
 * Return: number of bytes or a negative error
 */
ssize_t fuse_passthrough_splice_write(struct pipe_inode_info *pipe,
				      struct file *out, loff_t *ppos,
				      size_t len, unsigned int flags)
{
	struct fuse_backing *backing = fuse_passthrough_backing(out);
	struct inode *inode = file_inode(out);
	struct file *lower = backing->file;
	const struct cred *old_cred, *cred;
	ssize_t ret;

	if (fuse_is_bad(inode))
		return -EIO;
	if (!lower->f_op->splice_write)
		return -EINVAL;
	/* Files that append are refused before */
	fuse_passthrough_dont_append(backing);
	ret = fuse_passthrough_flush(inode, lower, *ppos, len, 0);
	if (ret)
		return ret;
	if (get_fuse_conn(inode)->writeback_cache) {
		ret = file_update_time(out);
		if (ret)
			return ret;
	}

	cred = fuse_passthrough_write_cred(backing, lower);
	old_cred = fuse_passthrough_creds(cred);
	file_start_write(lower);
	ret = lower->f_op->splice_write(pipe, lower, ppos, len, flags);
	file_end_write(lower);
	ret = fuse_passthrough_splice_sync(out, lower, *ppos, ret);
	fuse_passthrough_creds(old_cred);
	fuse_passthrough_wrote(inode, backing, *ppos, ret, out->f_iocb_flags,
			       false);

	return ret;
}

/**
 * fuse_passthrough_fadvise - advise about the lower file, whose cache is used
 * @file: FUSE file that has a lower one
 * @offset: start of the range
 * @len: length of the range, 0 for all the rest
 * @advice: POSIX_FADV_*
 *
 * Return: 0 or a negative error
 */
int fuse_passthrough_fadvise(struct file *file, loff_t offset, loff_t len,
			     int advice)
{
	struct fuse_backing *backing = fuse_passthrough_backing(file);
	const struct cred *old_cred;
	int ret;

	old_cred = fuse_passthrough_creds(backing->cred);
	ret = vfs_fadvise(backing->file, offset, len, advice);
	fuse_passthrough_creds(old_cred);

	return ret;
}

/**
 * fuse_passthrough_fsync - sync the lower file
 * @ff: file that has a lower one, and no server that could be asked
 * @start: first byte
 * @end: last byte
 * @datasync: as for fdatasync
 *
 * Return: 0 or a negative error
 */
int fuse_passthrough_fsync(struct fuse_file *ff, loff_t start, loff_t end,
			   int datasync)
{
	struct fuse_backing *backing = fuse_file_backing(ff);
	const struct cred *old_cred;
	int ret;

	old_cred = fuse_passthrough_creds(backing->cred);
	ret = vfs_fsync_range(backing->file, start, end, datasync);
	fuse_passthrough_creds(old_cred);

	return ret;
}

/**
 * struct fuse_passthrough_vma - what the areas split from one mapping share
 * @vm_ops: those of the lower file, but for open, close and the faults
 * @lower_ops: those of the file at the bottom
 * @below: where the lower file is one of FUSE passthrough itself, what it has
 *	   made of the mapping; else NULL
 * @file: FUSE file, kept open: the server gets its RELEASE after the unmapping
 * @writable: lower mapping, against a seal that comes before the area is linked
 *	      there; else NULL
 * @count: number of areas
 */
struct fuse_passthrough_vma {
	struct vm_operations_struct vm_ops;
	const struct vm_operations_struct *lower_ops;
	struct fuse_passthrough_vma *below;
	struct file *file;
	struct address_space *writable;
	refcount_t count;
};

static struct fuse_passthrough_vma *fuse_passthrough_vma(struct vm_area_struct *vma)
{
	return container_of(vma->vm_ops, struct fuse_passthrough_vma, vm_ops);
}

/*
 * Stores move the times and the data of the lower file, and not all of them are
 * seen here.
 */
static void fuse_passthrough_vma_account(struct vm_area_struct *vma,
					 struct fuse_passthrough_vma *fpv,
					 int n)
{
	struct fuse_inode *fi;

	for (; fpv; fpv = fpv->below) {
		fi = get_fuse_inode(file_inode(fpv->file));
		atomic_add(n, &fi->passthrough_maps);
		set_bit(FUSE_I_PASSTHROUGH_MAPPED, &fi->state);
		if (!(vma->vm_flags & VM_SHARED))
			continue;
		atomic_add(n, &fi->passthrough_stores);
		fuse_invalidate_attr_mask(&fi->inode, FUSE_STATX_MODIFY);
	}
}

/**
 * fuse_passthrough_drop_pages - before a cached read, after stores to the
 *				 lower file
 * @inode: inode that has, or had, passthrough mappings
 *
 * Nothing tells of a single store, so all pages go.  There are no dirty ones:
 * while such mappings exist, cached writes go through to the server.
 *
 * Context: Process context, no locks held.
 */
void fuse_passthrough_drop_pages(struct inode *inode)
{
	struct fuse_inode *fi = get_fuse_inode(inode);

	clear_bit(FUSE_I_PASSTHROUGH_MAPPED, &fi->state);
	/* Pairs with fuse_passthrough_vma_account() */
	smp_mb__after_atomic();
	if (atomic_read(&fi->passthrough_maps))
		set_bit(FUSE_I_PASSTHROUGH_MAPPED, &fi->state);
	invalidate_inode_pages2(inode->i_mapping);
}

static void fuse_passthrough_vma_free(struct fuse_passthrough_vma *fpv)
{
	struct fuse_passthrough_vma *below;

	for (; fpv; fpv = below) {
		below = fpv->below;
		if (fpv->writable)
			mapping_unmap_writable(fpv->writable);
		fput(fpv->file);
		kfree(fpv);
	}
}

static void fuse_passthrough_vm_open(struct vm_area_struct *vma)
{
	struct fuse_passthrough_vma *fpv = fuse_passthrough_vma(vma);

	refcount_inc(&fpv->count);
	fuse_passthrough_vma_account(vma, fpv, 1);
	if (fpv->lower_ops->open)
		fpv->lower_ops->open(vma);
}

static void fuse_passthrough_vm_close(struct vm_area_struct *vma)
{
	struct fuse_passthrough_vma *fpv = fuse_passthrough_vma(vma);

	if (fpv->lower_ops->close)
		fpv->lower_ops->close(vma);
	fuse_passthrough_vma_account(vma, fpv, -1);
	vma->vm_ops = fpv->lower_ops;
	if (refcount_dec_and_test(&fpv->count))
		fuse_passthrough_vma_free(fpv);
}

/* Is there data that was written before the mapping, and not to the lower file? */
static struct file *fuse_passthrough_vma_dirty(struct fuse_passthrough_vma *fpv)
{
	struct address_space *mapping;

	for (; fpv; fpv = fpv->below) {
		mapping = fpv->file->f_mapping;
		if (mapping_tagged(mapping, PAGECACHE_TAG_DIRTY) ||
		    fuse_passthrough_in_writeback(mapping->host))
			return fpv->file;
	}
	return NULL;
}

/*
 * The server may need the mmap_lock of the task that faults, which could be
 * its own: let go of it for the flush.
 */
static vm_fault_t fuse_passthrough_fault(struct vm_fault *vmf)
{
	struct fuse_passthrough_vma *fpv = fuse_passthrough_vma(vmf->vma);
	struct file *file = fuse_passthrough_vma_dirty(fpv);
	bool unlock = fault_flag_allow_retry_first(vmf->flags);

	if (likely(!file))
		return fpv->lower_ops->fault(vmf);
	if (unlock && vmf->flags & FAULT_FLAG_RETRY_NOWAIT)
		return VM_FAULT_RETRY;

	get_file(file);
	if (unlock)
		mmap_read_unlock(vmf->vma->vm_mm);
	fuse_passthrough_flush_range(file_inode(file), 0, LLONG_MAX);
	fput(file);

	return unlock ? VM_FAULT_RETRY : fpv->lower_ops->fault(vmf);
}

static vm_fault_t fuse_passthrough_huge_fault(struct vm_fault *vmf,
					      enum page_entry_size pe_size)
{
	struct fuse_passthrough_vma *fpv = fuse_passthrough_vma(vmf->vma);

	if (unlikely(fuse_passthrough_vma_dirty(fpv)))
		return VM_FAULT_FALLBACK;
	return fpv->lower_ops->huge_fault(vmf, pe_size);
}

static vm_fault_t fuse_passthrough_map_pages(struct vm_fault *vmf,
					     pgoff_t start, pgoff_t end)
{
	struct fuse_passthrough_vma *fpv = fuse_passthrough_vma(vmf->vma);

	/* Without pages mapped, it is up to the fault */
	if (unlikely(fuse_passthrough_vma_dirty(fpv)))
		return 0;
	return fpv->lower_ops->map_pages(vmf, start, end);
}

static vm_fault_t fuse_passthrough_page_mkwrite(struct vm_fault *vmf)
{
	struct fuse_passthrough_vma *fpv = fuse_passthrough_vma(vmf->vma);
	struct folio *folio = page_folio(vmf->page);
	struct fuse_passthrough_vma *level;

	/* With FUSE_WRITEBACK_CACHE alone */
	for (level = fpv; level; level = level->below)
		if (unlikely(!IS_NOCMTIME(file_inode(level->file))))
			file_update_time(level->file);
	if (fpv->lower_ops->page_mkwrite)
		return fpv->lower_ops->page_mkwrite(vmf);

	folio_lock(folio);
	if (folio->mapping == vmf->vma->vm_file->f_mapping)
		return VM_FAULT_LOCKED;
	folio_unlock(folio);
	return VM_FAULT_NOPAGE;
}

/* tmpfs has no hook, but with FUSE_WRITEBACK_CACHE the times are kept here */
static bool fuse_passthrough_needs_mkwrite(struct fuse_passthrough_vma *fpv)
{
	struct fuse_passthrough_vma *level;

	if (fpv->lower_ops->page_mkwrite)
		return true;
	for (level = fpv; level; level = level->below)
		if (get_fuse_conn(file_inode(level->file))->writeback_cache)
			return true;
	return false;
}

/* What do_mmap() and mmap_region() asked the FUSE file */
static int fuse_passthrough_may_mmap(struct file *lower,
				     struct vm_area_struct *vma)
{
	struct inode *inode = file_inode(lower);

	if (!lower->f_op->mmap)
		return -ENODEV;
	if (!(vma->vm_flags & VM_SHARED))
		return 0;
	if (IS_APPEND(inode) && lower->f_mode & FMODE_WRITE)
		return -EACCES;
	if (IS_SWAPFILE(inode) && vma->vm_flags & VM_WRITE)
		return -ETXTBSY;
	return 0;
}

/*
 * Seals are not shown to modules, but a sealed file does not let itself be
 * mapped for writing.  Ask it for that if mprotect() could do it later.
 */
static int fuse_passthrough_call_mmap(struct file *lower,
				      struct vm_area_struct *vma)
{
	bool later = (vma->vm_flags & (VM_SHARED | VM_MAYWRITE | VM_WRITE)) ==
		     (VM_SHARED | VM_MAYWRITE);
	int err;

	if (later)
		vma->vm_flags |= VM_WRITE;
	err = call_mmap(lower, vma);
	if (later)
		vma->vm_flags &= ~VM_WRITE;
	if (!later || err != -EPERM)
		return err;

	vma->vm_flags &= ~VM_MAYWRITE;
	return call_mmap(lower, vma);
}

static int fuse_passthrough_mmap_lower(struct fuse_passthrough_vma *fpv,
				       struct fuse_backing *backing,
				       struct vm_area_struct *vma)
{
	struct address_space *mapping = backing->file->f_mapping;
	bool writable = (vma->vm_flags & VM_SHARED) &&
			(vma->vm_flags & VM_MAYWRITE);
	const struct cred *old_cred;
	int err;

	if (writable && !mapping_map_writable(mapping)) {
		fpv->writable = mapping;
	} else if (writable) {
		/* A sealed memfd */
		if (vma->vm_flags & VM_WRITE)
			return -EPERM;
		vma->vm_flags &= ~VM_MAYWRITE;
	}

	vma_set_file(vma, backing->file);
	old_cred = fuse_passthrough_creds(backing->cred);
	err = fuse_passthrough_call_mmap(backing->file, vma);
	fuse_passthrough_creds(old_cred);
	if (fpv->writable && !(vma->vm_flags & VM_MAYWRITE)) {
		mapping_unmap_writable(mapping);
		fpv->writable = NULL;
	}

	return err;
}

static void fuse_passthrough_vma_install(struct fuse_passthrough_vma *fpv,
					 struct vm_area_struct *vma)
{
	static const struct vm_operations_struct no_ops = {};

	fpv->lower_ops = vma->vm_ops ?: &no_ops;
	if (fpv->lower_ops->open == fuse_passthrough_vm_open) {
		fpv->below = fuse_passthrough_vma(vma);
		fpv->lower_ops = fpv->below->lower_ops;
	}

	fpv->vm_ops = *fpv->lower_ops;
	fpv->vm_ops.open = fuse_passthrough_vm_open;
	fpv->vm_ops.close = fuse_passthrough_vm_close;
	if (fpv->lower_ops->fault)
		fpv->vm_ops.fault = fuse_passthrough_fault;
	if (fpv->lower_ops->huge_fault)
		fpv->vm_ops.huge_fault = fuse_passthrough_huge_fault;
	if (fpv->lower_ops->map_pages)
		fpv->vm_ops.map_pages = fuse_passthrough_map_pages;
	if (fuse_passthrough_needs_mkwrite(fpv))
		fpv->vm_ops.page_mkwrite = fuse_passthrough_page_mkwrite;
	refcount_set(&fpv->count, 1);
	vma->vm_ops = &fpv->vm_ops;

	/*
	 * The server may have mapped the same struct file.  The VM would merge
	 * the areas and forget ours without ->close, so let the flags differ:
	 * only DAX knows what VM_SYNC means, and sets it.
	 */
	if (IS_DAX(file_inode(vma->vm_file)))
		vma->vm_flags |= VM_DONTEXPAND;
	else
		vma->vm_flags |= VM_SYNC;
}

/**
 * fuse_passthrough_mmap - map the pages of the lower file
 * @file: FUSE file that has a lower one
 * @vma: the area, its vm_file becomes the lower file
 *
 * Context: Process context, mmap_lock held for writing.
 * Return: 0 or a negative error
 */
int fuse_passthrough_mmap(struct file *file, struct vm_area_struct *vma)
{
	struct fuse_backing *backing = fuse_passthrough_backing(file);
	struct inode *inode = file_inode(file);
	struct fuse_passthrough_vma *fpv;
	int err;

	if (fuse_is_bad(inode))
		return -EIO;
	err = fuse_passthrough_may_mmap(backing->file, vma);
	if (err)
		return err;

	fpv = kzalloc(sizeof(*fpv), GFP_KERNEL_ACCOUNT);
	if (!fpv)
		return -ENOMEM;

	fpv->file = get_file(file);
	/* The level below counts itself */
	fuse_passthrough_vma_account(vma, fpv, 1);
	err = fuse_passthrough_mmap_lower(fpv, backing, vma);
	if (err) {
		fuse_passthrough_vma_account(vma, fpv, -1);
		fuse_passthrough_vma_free(fpv);
		return err;
	}

	fuse_passthrough_vma_install(fpv, vma);
	fuse_passthrough_accessed(inode);

	return 0;
}

/**
 * fuse_passthrough_get_unmapped_area - where the lower file wants to be mapped
 * @file: FUSE file that has a lower one
 * @addr: wish of the caller
 * @len: bytes
 * @pgoff: offset in the file, pages
 * @flags: MAP_*
 *
 * Return: an address or a negative error
 */
unsigned long fuse_passthrough_get_unmapped_area(struct file *file,
						 unsigned long addr,
						 unsigned long len,
						 unsigned long pgoff,
						 unsigned long flags)
{
	struct file *lower = fuse_passthrough_backing(file)->file;

	if (lower->f_op->get_unmapped_area)
		return lower->f_op->get_unmapped_area(lower, addr, len, pgoff,
						      flags);
	return current->mm->get_unmapped_area(lower, addr, len, pgoff, flags);
}

/**
 * fuse_passthrough_finish_open - an open has a lower file and was answered
 * @file: the FUSE file
 *
 * Whether a request may be submitted inline is for the lower file to say, and
 * for its disk, which io_uring does not see below a FUSE superblock.
 */
void fuse_passthrough_finish_open(struct file *file)
{
	struct file *lower = fuse_passthrough_backing(file)->file;
	struct block_device *bdev = file_inode(lower)->i_sb->s_bdev;

	if (!bdev || bdev_nowait(bdev))
		file->f_mode |= lower->f_mode & FMODE_NOWAIT;
	file->f_mode |= lower->f_mode & (FMODE_BUF_RASYNC | FMODE_BUF_WASYNC);
}

/**
 * fuse_passthrough_free_spare - free what a file kept for its next request
 * @ff: file that nobody reads or writes any more
 *
 * Context: Any.
 */
void fuse_passthrough_free_spare(struct fuse_file *ff)
{
	struct fuse_backing *backing = fuse_file_backing(ff);

	if (backing && backing->spare)
		kmem_cache_free(fuse_passthrough_aio_cachep, backing->spare);
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
	return fuse_passthrough_aio_cachep ? 0 : -ENOMEM;
}

/**
 * fuse_passthrough_cleanup - undo fuse_passthrough_init()
 */
void fuse_passthrough_cleanup(void)
{
	kmem_cache_destroy(fuse_passthrough_aio_cachep);
}
