/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * FUSE passthrough: reads, writes and mappings of an open FUSE file go to a
 * lower file.
 *
 * backing.c		 how a server hands in lower files, and when they go
 * passthrough_open.c	 what the answers to INIT and to opens bring
 * passthrough_cache.c	 page cache and attributes of the FUSE inode
 * passthrough_fault.c	 requests that meet a page fault on the caller's buffer
 * passthrough_aio.c	 asynchronous requests
 * passthrough.c	 read, write, splice, fsync, fadvise
 * passthrough_mmap.c	 mappings
 */
#ifndef _FS_FUSE_PASSTHROUGH_H
#define _FS_FUSE_PASSTHROUGH_H

#include "fuse_i.h"

#include <linux/magic.h>
#include <linux/pagemap.h>
#include <linux/uio.h>

/*
 * One attempt at a read or write of the lower file.  It gets the request on the
 * FUSE file, and moves its ki_pos by what was done.  It takes the credentials and
 * the freeze protection that it needs, and drops them.
 */
typedef ssize_t fuse_passthrough_io_t(struct kiocb *iocb,
				      struct iov_iter *iter);

#ifdef CONFIG_FUSE_PASSTHROUGH
static inline void fuse_args_set_file(struct fuse_args *args,
				      struct fuse_file *ff)
{
	args->ff = ff;
}

/* True if @ff has a lower file, or will have the one its answer named */
static inline bool fuse_file_passthrough(struct fuse_file *ff)
{
	return ff->lower.file || ff->backing;
}

/* True if @inode was once open through passthrough: its cache writes through */
static inline bool fuse_inode_passthrough(struct inode *inode)
{
	return test_bit(FUSE_I_PASSTHROUGH, &get_fuse_inode(inode)->state);
}

/* True if stores may have reached the lower file that no request told of */
static inline bool fuse_inode_stored_below(struct inode *inode)
{
	return test_bit(FUSE_I_STORED_BELOW, &get_fuse_inode(inode)->state);
}

/* Cached attributes that stores to a mapping may change at any time */
static inline u32 fuse_passthrough_stores_mask(struct fuse_inode *fi)
{
	return atomic_read(&fi->passthrough_stores) ? FUSE_STATX_MODIFY : 0;
}

/*
 * True if a reply that was sampled at @attr_version may be older than a write
 * to the lower file.  Called under fi->lock.
 */
static inline bool fuse_passthrough_outdated(struct inode *inode,
					     u64 attr_version)
{
	return fuse_inode_passthrough(inode) &&
	       get_fuse_inode(inode)->attr_version > attr_version;
}

static inline void fuse_passthrough_init_inode(struct fuse_inode *fi)
{
	atomic_set(&fi->passthrough_stores, 0);
}

static inline void fuse_passthrough_init_conn(struct fuse_conn *fc)
{
	idr_init(&fc->backing_ids);
	fc->backing_count = 0;
}

/* backing.c */
long fuse_backing_ioctl(struct fuse_dev *fud, unsigned int cmd,
			void __user *argp);
void fuse_backing_answered(struct fuse_args *args);
void fuse_backing_free_ids(struct fuse_conn *fc);
void fuse_backing_show_ids(struct seq_file *m, struct fuse_dev *fud);
void fuse_passthrough_release(struct fuse_file *ff);
void fuse_passthrough_show_fdinfo(struct seq_file *m, struct file *file);

/* passthrough_open.c */
void fuse_passthrough_negotiate(struct fuse_mount *fm, u32 max_stack_depth);
int fuse_passthrough_open(struct inode *inode, struct file *file);

/* passthrough_cache.c */
int fuse_passthrough_write_through(struct inode *inode);
loff_t fuse_passthrough_truncated_size(struct file *file);
void fuse_passthrough_drop(struct inode *inode, loff_t start, loff_t end);

/* passthrough_aio.c */
int fuse_passthrough_init(void);
void fuse_passthrough_exit(void);
#else
#define fuse_passthrough_show_fdinfo NULL

static inline void fuse_args_set_file(struct fuse_args *args,
				      struct fuse_file *ff)
{
}

static inline bool fuse_file_passthrough(struct fuse_file *ff)
{
	return false;
}

static inline bool fuse_inode_passthrough(struct inode *inode)
{
	return false;
}

static inline bool fuse_inode_stored_below(struct inode *inode)
{
	return false;
}

static inline u32 fuse_passthrough_stores_mask(struct fuse_inode *fi)
{
	return 0;
}

static inline bool fuse_passthrough_outdated(struct inode *inode,
					     u64 attr_version)
{
	return false;
}

static inline void fuse_passthrough_init_inode(struct fuse_inode *fi)
{
}

static inline void fuse_passthrough_init_conn(struct fuse_conn *fc)
{
}

static inline long fuse_backing_ioctl(struct fuse_dev *fud, unsigned int cmd,
				      void __user *argp)
{
	return -ENOTTY;
}

static inline void fuse_backing_answered(struct fuse_args *args)
{
}

static inline void fuse_backing_free_ids(struct fuse_conn *fc)
{
}

static inline void fuse_backing_show_ids(struct seq_file *m,
					 struct fuse_dev *fud)
{
}

static inline void fuse_passthrough_negotiate(struct fuse_mount *fm,
					      u32 max_stack_depth)
{
}

static inline int fuse_passthrough_open(struct inode *inode, struct file *file)
{
	return 0;
}

static inline void fuse_passthrough_release(struct fuse_file *ff)
{
}

static inline int fuse_passthrough_write_through(struct inode *inode)
{
	return 0;
}

static inline loff_t fuse_passthrough_truncated_size(struct file *file)
{
	return 0;
}

static inline void fuse_passthrough_drop(struct inode *inode, loff_t start,
					 loff_t end)
{
}

static inline int fuse_passthrough_init(void)
{
	return 0;
}

static inline void fuse_passthrough_exit(void)
{
}
#endif

/* What follows is called for files that have a lower one, and by these files */

/* backing.c */
void fuse_backing_put(struct fuse_backing *backing);

/* passthrough_cache.c */
int fuse_passthrough_flush(struct inode *inode, loff_t start, loff_t end);
bool fuse_passthrough_try_drop(struct inode *inode, loff_t start, loff_t end);
void fuse_passthrough_drop_nowait(struct inode *inode, loff_t start,
				  loff_t end);
bool fuse_inode_written(struct file *file, loff_t end);

/* passthrough_fault.c */
ssize_t fuse_passthrough_resume(fuse_passthrough_io_t *io, struct kiocb *iocb,
				struct iov_iter *iter);

/* passthrough_aio.c */
ssize_t fuse_passthrough_aio_read(struct kiocb *iocb, struct iov_iter *to);
ssize_t fuse_passthrough_aio_write(struct kiocb *iocb, struct iov_iter *from,
				   const struct cred *cred);

/* passthrough.c */
void fuse_passthrough_start(struct file *file);
ssize_t fuse_passthrough_read_iter(struct kiocb *iocb, struct iov_iter *to);
ssize_t fuse_passthrough_write_iter(struct kiocb *iocb, struct iov_iter *from);
ssize_t fuse_passthrough_splice_write(struct pipe_inode_info *pipe,
				      struct file *out, loff_t *ppos,
				      size_t len, unsigned int flags);
int fuse_passthrough_fadvise(struct file *file, loff_t offset, loff_t len,
			     int advice);
int fuse_passthrough_fsync(struct file *file, loff_t start, loff_t end,
			   int datasync);

/* passthrough_mmap.c */
int fuse_passthrough_mmap(struct file *file, struct vm_area_struct *vma);
unsigned long fuse_passthrough_get_unmapped_area(struct file *file,
						 unsigned long addr,
						 unsigned long len,
						 unsigned long pgoff,
						 unsigned long flags);

#ifdef CONFIG_FUSE_PASSTHROUGH
static inline struct fuse_lower *fuse_lower(struct file *file)
{
	struct fuse_file *ff = file->private_data;

	return &ff->lower;
}

/*
 * True if pages of @inode are dirty, or copies of pages are on their way to the
 * server.  No lock is needed: what is not yet dirty is no concern.
 */
static inline bool fuse_inode_dirty(struct inode *inode)
{
	struct fuse_inode *fi = get_fuse_inode(inode);
	struct address_space *mapping = inode->i_mapping;

	if (READ_ONCE(mapping->nrpages) &&
	    (mapping_tagged(mapping, PAGECACHE_TAG_DIRTY) ||
	     mapping_tagged(mapping, PAGECACHE_TAG_WRITEBACK)))
		return true;
	/* A copy is in the tree before its page can be dropped */
	smp_rmb();
	if (READ_ONCE(fi->writepages.rb_node))
		return true;
	/* fuse_writepage_end() empties it for a moment, with the count raised */
	smp_rmb();
	/* Without the bias of FUSE_NOWRITE */
	return READ_ONCE(fi->writectr) & INT_MAX;
}

/* True if reads of @file leave the access time alone */
static inline bool fuse_file_noatime(struct file *file)
{
	return file->f_flags & O_NOATIME ||
	       file->f_path.mnt->mnt_flags & MNT_NOATIME ||
	       file_inode(file)->i_sb->s_flags & SB_NOATIME;
}

static inline loff_t fuse_lower_size(struct file *lower)
{
	/* Others may write the lower file meanwhile: any of its sizes will do */
	return data_race(i_size_read(file_inode(lower)));
}

/* Overlayfs of this version drops IOCB_APPEND on the way to its own lower file */
static inline bool fuse_lower_drops_append(struct file *lower)
{
	return file_inode(lower)->i_sb->s_magic == OVERLAYFS_SUPER_MAGIC &&
	       !(lower->f_flags & O_APPEND);
}

/* A read may have moved the lower file's access time */
static inline void fuse_passthrough_accessed(struct file *file)
{
	struct inode *inode = file_inode(file);

	if (!(READ_ONCE(get_fuse_inode(inode)->inval_mask) & STATX_ATIME) &&
	    !fuse_file_noatime(file))
		fuse_invalidate_atime(inode);
}

/*
 * The lower file system returned @ret for a write of [@start, @end).  An O_DIRECT
 * write that failed may have written a part, and a synced one all.
 */
static inline void fuse_passthrough_wrote(struct kiocb *iocb, loff_t start,
					  loff_t end, ssize_t ret)
{
	struct inode *inode = file_inode(iocb->ki_filp);

	if (!ret || (ret == -EAGAIN && !(iocb->ki_flags & IOCB_DIRECT)))
		return;
	if (!fuse_inode_written(iocb->ki_filp, end))
		return;
	if (iocb->ki_flags & IOCB_NOWAIT)
		fuse_passthrough_drop_nowait(inode, start, end);
	else
		fuse_passthrough_drop(inode, start, end);
}

/* The request @iocb as the lower file system sees it */
static inline void fuse_lower_kiocb(struct kiocb *lower_iocb,
				    struct kiocb *iocb)
{
	kiocb_clone(lower_iocb, iocb, fuse_lower(iocb->ki_filp)->file);
	lower_iocb->ki_waitq = iocb->ki_waitq;
	/* fs/aio.c finds its own request around a kiocb with IOCB_AIO_RW */
	lower_iocb->ki_flags &= ~IOCB_AIO_RW;
}

/* The same for a write: what the lower file or the FUSE mount asks is added */
static inline void fuse_lower_kiocb_write(struct kiocb *lower_iocb,
					  struct kiocb *iocb)
{
	fuse_lower_kiocb(lower_iocb, iocb);
	lower_iocb->ki_flags |= IOCB_WRITE |
				(lower_iocb->ki_filp->f_iocb_flags &
				 (IOCB_APPEND | IOCB_DSYNC | IOCB_SYNC));
	if (IS_SYNC(file_inode(iocb->ki_filp)))
		lower_iocb->ki_flags |= IOCB_DSYNC | IOCB_SYNC;
}

/* Take the freeze protection of the lower file system: 0, or -EAGAIN */
static inline int fuse_lower_start_write(struct kiocb *lower_iocb)
{
	struct super_block *sb = file_inode(lower_iocb->ki_filp)->i_sb;

	if (!(lower_iocb->ki_flags & IOCB_NOWAIT))
		sb_start_write(sb);
	else if (!sb_start_write_trylock(sb))
		return -EAGAIN;
	return 0;
}
#endif

#endif /* _FS_FUSE_PASSTHROUGH_H */
