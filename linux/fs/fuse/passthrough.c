// SPDX-License-Identifier: GPL-2.0-only
/*
 * FUSE passthrough: read, write, splice, fsync and fadvise of the lower file.
 *
 * All is done in the context of the caller, with the credentials of the task
 * that attached or registered the lower file.  No lock of the FUSE inode is held
 * around it: the lower file system orders its writers.
 */

#include "passthrough.h"

#include <linux/blkdev.h>
#include <linux/cred.h>
#include <linux/fadvise.h>
#include <linux/file.h>
#include <linux/pagemap.h>
#include <linux/splice.h>

#define FUSE_LOWER_SETFL_MASK	(O_APPEND | O_DIRECT)

/* An append-only inode keeps O_APPEND */
static noinline int fuse_lower_set_flags(struct file *real, unsigned int flags)
{
	int err = 0;

	flags &= FUSE_LOWER_SETFL_MASK;
	if (flags & O_DIRECT && !(real->f_mode & FMODE_CAN_ODIRECT))
		return -EINVAL;

	spin_lock(&real->f_lock);
	if (IS_APPEND(file_inode(real)))
		flags |= real->f_flags & O_APPEND;
	flags |= real->f_flags & ~FUSE_LOWER_SETFL_MASK;
	if (real->f_op->check_flags)
		err = real->f_op->check_flags(flags);
	if (!err) {
		WRITE_ONCE(real->f_flags, flags);
		WRITE_ONCE(real->f_iocb_flags, iocb_flags(real));
	}
	spin_unlock(&real->f_lock);

	return err;
}

/*
 * By id the lower file belongs to this fuse_file alone, and its flags follow
 * F_SETFL on the FUSE file.
 */
static int fuse_lower_update_flags(struct file *file, struct fuse_lower *lower)
{
	unsigned int flags = READ_ONCE(file->f_flags);

	if (!lower->id || !((flags ^ READ_ONCE(lower->file->f_flags)) &
			    FUSE_LOWER_SETFL_MASK))
		return 0;
	return fuse_lower_set_flags(lower->file, flags);
}

/* What a read or write of [@start, @end) asks before it touches the lower file */
static int fuse_passthrough_begin(struct kiocb *iocb, loff_t start, loff_t end)
{
	struct file *file = iocb->ki_filp;
	struct file *lower = fuse_lower(file)->file;
	struct inode *inode = file_inode(file);

	if (fuse_is_bad(inode))
		return -EIO;
	/* io_uring tries IOCB_NOWAIT on any regular file */
	if (iocb->ki_flags & IOCB_NOWAIT && !(file->f_mode & FMODE_NOWAIT))
		return -EAGAIN;
	/* F_SETFL asked the FUSE file, which can */
	if (iocb->ki_flags & IOCB_DIRECT && !(lower->f_mode & FMODE_CAN_ODIRECT))
		return -EINVAL;

	if (!fuse_inode_dirty(inode) || start == end)
		return 0;
	/* io_uring takes IOCB_NOWAIT back when it tries again with IOCB_WAITQ */
	if (iocb->ki_flags & (IOCB_NOWAIT | IOCB_WAITQ))
		return -EAGAIN;
	return fuse_passthrough_flush(inode, start, end);
}

/*
 * A completion can come where nothing may wait, so only O_DIRECT requests are
 * asynchronous.  One whose buffer may be a mapping of the file is not: it has to
 * be resumed after a fault.
 */
static bool fuse_passthrough_is_async(struct kiocb *iocb, struct iov_iter *iter)
{
	struct file *file = iocb->ki_filp;

	if (!(iocb->ki_flags & IOCB_DIRECT))
		return false;
	return !user_backed_iter(iter) ||
	       !(mapping_mapped(file->f_mapping) ||
		 mapping_mapped(fuse_lower(file)->file->f_mapping));
}

static ssize_t fuse_lower_read(struct kiocb *iocb, struct iov_iter *to)
{
	const struct cred *old_cred;
	struct kiocb lower_iocb;
	ssize_t ret;

	fuse_lower_kiocb(&lower_iocb, iocb);
	old_cred = override_creds(fuse_lower(iocb->ki_filp)->cred);
	ret = vfs_iocb_iter_read(lower_iocb.ki_filp, &lower_iocb, to);
	revert_creds(old_cred);
	if (ret > 0)
		iocb->ki_pos = lower_iocb.ki_pos;

	return ret;
}

/**
 * fuse_passthrough_read_iter - read the lower file
 * @iocb: request on the FUSE file
 * @to: buffer
 *
 * Context: Process context, no locks held.
 * Return: number of bytes, -EIOCBQUEUED or another negative error
 */
ssize_t fuse_passthrough_read_iter(struct kiocb *iocb, struct iov_iter *to)
{
	struct file *file = iocb->ki_filp;
	size_t count = iov_iter_count(to);
	ssize_t ret;

	ret = fuse_lower_update_flags(file, fuse_lower(file));
	if (ret)
		return ret;
	ret = fuse_passthrough_begin(iocb, iocb->ki_pos, iocb->ki_pos + count);
	if (ret)
		return ret;

	if (!is_sync_kiocb(iocb) && fuse_passthrough_is_async(iocb, to))
		return fuse_passthrough_aio_read(iocb, to);
	ret = fuse_passthrough_resume(fuse_lower_read, iocb, to);
	fuse_passthrough_accessed(file);

	return ret;
}

/*
 * A write by a caller without CAP_FSETID takes setuid and setgid away, as it
 * would on the lower file.  Setgid without group execute stays with a caller
 * that is a member of the group.
 */
static noinline const struct cred *
fuse_lower_suid_cred(struct fuse_lower *lower)
{
	struct inode *inode = file_inode(lower->file);

	if (capable(CAP_FSETID))
		return lower->cred;
	if (!(inode->i_mode & (S_ISUID | 0010)) && in_group_p(inode->i_gid))
		return lower->cred;
	return lower->nofsetid_cred;
}

static const struct cred *fuse_lower_write_cred(struct fuse_lower *lower)
{
	if (!(file_inode(lower->file)->i_mode & (S_ISUID | S_ISGID)))
		return lower->cred;
	return fuse_lower_suid_cred(lower);
}

static ssize_t fuse_lower_write(struct kiocb *iocb, struct iov_iter *from)
{
	struct fuse_lower *lower = fuse_lower(iocb->ki_filp);
	const struct cred *old_cred, *cred = fuse_lower_write_cred(lower);
	struct kiocb lower_iocb;
	ssize_t ret;

	fuse_lower_kiocb_write(&lower_iocb, iocb);
	ret = fuse_lower_start_write(&lower_iocb);
	if (ret)
		return ret;
	old_cred = override_creds(cred);
	ret = vfs_iocb_iter_write(lower->file, &lower_iocb, from);
	revert_creds(old_cred);
	sb_end_write(file_inode(lower->file)->i_sb);
	if (ret > 0)
		iocb->ki_pos = lower_iocb.ki_pos;

	return ret;
}

static bool fuse_passthrough_appends(struct kiocb *iocb)
{
	return (iocb->ki_flags | fuse_lower(iocb->ki_filp)->file->f_iocb_flags) &
	       IOCB_APPEND;
}

/*
 * The bytes [@start, @end) that a write may change.  Other writers may append
 * meanwhile.  The last page of the FUSE inode is one of them: written back
 * later, under the new size, it would put zeros over what was appended.
 */
static void fuse_passthrough_write_range(struct kiocb *iocb, size_t count,
					 loff_t *start, loff_t *end)
{
	struct file *file = iocb->ki_filp;

	*start = iocb->ki_pos;
	*end = iocb->ki_pos + count;
	if (fuse_passthrough_appends(iocb)) {
		*start = min(i_size_read(file_inode(file)),
			     fuse_lower_size(fuse_lower(file)->file));
		*end = LLONG_MAX;
	}
}

/* IOCB_NOWAIT: neither the size nor a page may have to be waited for */
static int fuse_passthrough_may_write(struct kiocb *iocb, loff_t start,
				      loff_t end)
{
	struct file *file = iocb->ki_filp;
	struct inode *inode = file_inode(file);

	if (iocb->ki_flags & IOCB_APPEND &&
	    fuse_lower_drops_append(fuse_lower(file)->file))
		return -EINVAL;
	if (iocb->ki_flags & IOCB_NOWAIT &&
	    (end > i_size_read(inode) ||
	     !fuse_passthrough_try_drop(inode, start, end)))
		return -EAGAIN;
	return 0;
}

/*
 * The rest of an append goes behind what others append, and some file systems
 * leave zeros where O_DIRECT met a fault.
 */
static void fuse_passthrough_fault_in(struct kiocb *iocb, struct iov_iter *from,
				      loff_t end)
{
	if (iocb->ki_flags & IOCB_NOWAIT || !user_backed_iter(from))
		return;
	if (iocb->ki_flags & IOCB_DIRECT || end == LLONG_MAX)
		fault_in_iov_iter_readable(from, iov_iter_count(from));
}

/* A completion may not have to move the size, nor to wait for pages */
static bool fuse_passthrough_write_is_async(struct kiocb *iocb,
					    struct iov_iter *from, loff_t end)
{
	struct inode *inode = file_inode(iocb->ki_filp);

	return !is_sync_kiocb(iocb) && fuse_passthrough_is_async(iocb, from) &&
	       end <= i_size_read(inode) && !READ_ONCE(inode->i_mapping->nrpages);
}

/**
 * fuse_passthrough_write_iter - write the lower file
 * @iocb: request on the FUSE file
 * @from: data
 *
 * Size and times of the FUSE inode follow at once, for an asynchronous write
 * when it completes.
 *
 * Context: Process context, no locks held.
 * Return: number of bytes, -EIOCBQUEUED or another negative error
 */
ssize_t fuse_passthrough_write_iter(struct kiocb *iocb, struct iov_iter *from)
{
	struct fuse_lower *lower = fuse_lower(iocb->ki_filp);
	loff_t start, end;
	ssize_t ret;

	if (!iov_iter_count(from))
		return 0;
	ret = fuse_lower_update_flags(iocb->ki_filp, lower);
	if (ret)
		return ret;
	fuse_passthrough_write_range(iocb, iov_iter_count(from), &start, &end);
	ret = fuse_passthrough_begin(iocb, start, end);
	if (ret)
		return ret;
	ret = fuse_passthrough_may_write(iocb, start, end);
	if (ret)
		return ret;

	if (fuse_passthrough_write_is_async(iocb, from, end))
		return fuse_passthrough_aio_write(iocb, from,
						  fuse_lower_write_cred(lower));
	fuse_passthrough_fault_in(iocb, from, end);
	ret = fuse_passthrough_resume(fuse_lower_write, iocb, from);
	/* An append went elsewhere, if a truncation came between */
	if (ret > 0)
		start = min(start, iocb->ki_pos - ret);
	fuse_passthrough_wrote(iocb, start, end, ret);

	return ret;
}

/* A splice to the lower file looks at that file's own O_DSYNC alone */
static ssize_t fuse_splice_sync(struct kiocb *iocb, loff_t end, ssize_t ret)
{
	struct file *lower = fuse_lower(iocb->ki_filp)->file;
	int err;

	if (ret <= 0 || !iocb_is_dsync(iocb))
		return ret;
	err = vfs_fsync_range(lower, end - ret, end - 1,
			      !(iocb->ki_flags & IOCB_SYNC));
	return err ?: ret;
}

/**
 * fuse_passthrough_splice_write - splice from a pipe to the lower file
 * @pipe: source
 * @out: FUSE file
 * @ppos: position in @out, moved
 * @len: number of bytes
 * @flags: SPLICE_F_*
 *
 * The freeze protection of the lower file system comes before the lock of the
 * pipe, as in every splice to a file.
 *
 * Context: Process context, no locks held.
 * Return: number of bytes or a negative error
 */
ssize_t fuse_passthrough_splice_write(struct pipe_inode_info *pipe,
				      struct file *out, loff_t *ppos,
				      size_t len, unsigned int flags)
{
	struct fuse_lower *lower = fuse_lower(out);
	const struct cred *old_cred;
	loff_t start, end;
	struct kiocb iocb;
	ssize_t ret;

	if (!lower->file->f_op->splice_write)
		return -EINVAL;
	ret = fuse_lower_update_flags(out, lower);
	if (ret)
		return ret;
	init_sync_kiocb(&iocb, out);
	iocb.ki_pos = *ppos;
	fuse_passthrough_write_range(&iocb, len, &start, &end);
	ret = fuse_passthrough_begin(&iocb, start, end);
	if (ret)
		return ret;

	old_cred = override_creds(fuse_lower_write_cred(lower));
	file_start_write(lower->file);
	ret = lower->file->f_op->splice_write(pipe, lower->file, ppos, len,
					      flags);
	file_end_write(lower->file);
	if (ret > 0)
		start = min(start, *ppos - ret);
	ret = fuse_splice_sync(&iocb, *ppos, ret);
	revert_creds(old_cred);
	fuse_passthrough_wrote(&iocb, start, end, ret);

	return ret;
}

/**
 * fuse_passthrough_fadvise - advise about the lower file, whose cache is used
 * @file: FUSE file
 * @offset: start of the range, bytes
 * @len: length of the range, bytes; 0 for all the rest
 * @advice: POSIX_FADV_*
 *
 * Context: Process context.
 * Return: 0 or a negative error
 */
int fuse_passthrough_fadvise(struct file *file, loff_t offset, loff_t len,
			     int advice)
{
	struct fuse_lower *lower = fuse_lower(file);
	const struct cred *old_cred;
	int ret;

	old_cred = override_creds(lower->cred);
	ret = vfs_fadvise(lower->file, offset, len, advice);
	revert_creds(old_cred);

	return ret;
}

/**
 * fuse_passthrough_fsync - sync the lower file
 * @file: FUSE file that has no server which could be asked
 * @start: first byte
 * @end: last byte
 * @datasync: as for fdatasync
 *
 * Context: Process context, no locks held.
 * Return: 0 or a negative error
 */
int fuse_passthrough_fsync(struct file *file, loff_t start, loff_t end,
			   int datasync)
{
	struct fuse_lower *lower = fuse_lower(file);
	const struct cred *old_cred;
	int ret;

	old_cred = override_creds(lower->cred);
	ret = vfs_fsync_range(lower->file, start, end, datasync);
	revert_creds(old_cred);

	return ret;
}

/**
 * fuse_passthrough_start - an open has its lower file: reads and writes go there
 * @file: FUSE file, not yet visible to others
 *
 * Whether a request may be submitted with IOCB_NOWAIT is for the lower file to
 * say, and for its disk, which io_uring does not see below a FUSE superblock.
 */
void fuse_passthrough_start(struct file *file)
{
	struct file *lower = fuse_lower(file)->file;
	struct block_device *bdev = file_inode(lower)->i_sb->s_bdev;

	if (!bdev || bdev_nowait(bdev))
		file->f_mode |= lower->f_mode & (FMODE_NOWAIT |
						 FMODE_BUF_RASYNC |
						 FMODE_BUF_WASYNC);
}
