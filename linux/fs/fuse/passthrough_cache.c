// SPDX-License-Identifier: GPL-2.0-only
/*
 * FUSE passthrough: page cache and attributes of the FUSE inode.
 *
 * An inode that was once open through passthrough writes through until it is
 * evicted, so its pages are clean, except for those that a shared writable
 * mapping of a cached open has dirtied.  Clean pages need one thing: a request
 * that changes the lower file drops the range afterwards.
 */

#include "passthrough.h"

#include <linux/pagemap.h>

/**
 * fuse_passthrough_flush - write back stores to mappings of cached opens
 * @inode: FUSE inode
 * @start: first byte of the range
 * @end: byte after the range, greater than @start
 *
 * They reach the server, and by it the lower file.
 *
 * Context: Process context, no locks and no freeze protection held.
 * Return: 0, -EINTR if killed, or an error of the writeback
 */
int fuse_passthrough_flush(struct inode *inode, loff_t start, loff_t end)
{
	struct address_space *mapping = inode->i_mapping;
	errseq_t since = filemap_sample_wb_err(mapping);
	int err;

	filemap_fdatawrite_range(mapping, start, end - 1);
	filemap_fdatawait_range_keep_errors(mapping, start, end - 1);
	err = wait_event_killable(get_fuse_inode(inode)->page_waitq,
				  !fuse_range_is_writeback(inode,
							   start >> PAGE_SHIFT,
							   (end - 1) >> PAGE_SHIFT));
	if (err)
		return err;

	/* Without a server the dirty pages are lost, the lower file is not */
	if (!READ_ONCE(get_fuse_conn(inode)->connected))
		return 0;
	return filemap_check_wb_err(mapping, since);
}

/**
 * fuse_passthrough_try_drop - drop pages that nobody uses
 * @inode: FUSE inode
 * @start: first byte of the range
 * @end: byte after the range, greater than @start
 *
 * Context: Process context, does not wait for a page or a server.
 * Return: true if the range has no pages
 */
bool fuse_passthrough_try_drop(struct inode *inode, loff_t start, loff_t end)
{
	struct address_space *mapping = inode->i_mapping;

	if (!READ_ONCE(mapping->nrpages))
		return true;
	invalidate_mapping_pages(mapping, start >> PAGE_SHIFT,
				 (end - 1) >> PAGE_SHIFT);
	return !filemap_range_has_page(mapping, start, end - 1);
}

/**
 * fuse_passthrough_drop_nowait - drop pages after a write to the lower file
 * @inode: FUSE inode
 * @start: first byte of the range
 * @end: byte after the range, greater than @start
 *
 * Pages that are in use stay, and later cached reads do not trust them.
 *
 * Context: Process context, does not wait for a page or a server.
 */
void fuse_passthrough_drop_nowait(struct inode *inode, loff_t start, loff_t end)
{
	if (!fuse_passthrough_try_drop(inode, start, end))
		set_bit(FUSE_I_STORED_BELOW, &get_fuse_inode(inode)->state);
}

/**
 * fuse_passthrough_drop - drop pages after a write to the lower file
 * @inode: FUSE inode
 * @start: first byte of the range
 * @end: byte after the range, greater than @start
 *
 * Waits for pages that are being read: their data may be from before the write.
 *
 * Context: Process context, no locks held that a server may need.
 */
void fuse_passthrough_drop(struct inode *inode, loff_t start, loff_t end)
{
	invalidate_inode_pages2_range(inode->i_mapping, start >> PAGE_SHIFT,
				      (end - 1) >> PAGE_SHIFT);
	/* A server that splices its answer replaces a locked page by a new one */
	fuse_passthrough_drop_nowait(inode, start, end);
}

/**
 * fuse_inode_written - size, times and mode after a write to the lower file
 * @file: FUSE file
 * @end: byte after the range that may have changed
 *
 * Replies that were sampled before are discarded from here on.  A cached read
 * adds its page before it sends READ, and the lower file was written before the
 * full barrier here: pages that this does not see were read afterwards.
 *
 * Context: Process context, takes fi->lock.
 * Return: true if the inode has pages, and the caller drops the range
 */
bool fuse_inode_written(struct file *file, loff_t end)
{
	struct inode *inode = file_inode(file);
	struct file *lower = fuse_lower(file)->file;
	struct fuse_inode *fi = get_fuse_inode(inode);
	umode_t suid = S_ISUID | S_ISGID;
	u32 mask = FUSE_STATX_MODSIZE;
	loff_t size;
	bool pages;

	spin_lock(&fi->lock);
	smp_mb__after_spinlock();
	fi->attr_version =
		atomic64_inc_return(&get_fuse_conn(inode)->attr_version);
	/* A truncation may have come between, or a write not have grown it */
	size = fuse_lower_size(lower);
	if (end > inode->i_size && size > inode->i_size)
		i_size_write(inode, size);
	/* exec looks at them before it asks the server */
	if (inode->i_mode & suid) {
		inode->i_mode &= file_inode(lower)->i_mode | ~suid;
		mask |= STATX_MODE;
	}
	pages = READ_ONCE(inode->i_mapping->nrpages);
	spin_unlock(&fi->lock);

	fuse_invalidate_attr_mask(inode, mask);
	return pages;
}

/**
 * fuse_passthrough_truncated_size - size after the server truncated an open file
 * @file: FUSE file, opened with O_TRUNC; NULL if it is not known
 *
 * Context: Any.
 * Return: the lower file's size if there is a lower file, which may have been
 * written meanwhile, or else 0
 */
loff_t fuse_passthrough_truncated_size(struct file *file)
{
	struct fuse_file *ff = file ? file->private_data : NULL;

	if (ff && ff->lower.file)
		return fuse_lower_size(ff->lower.file);
	if (ff && ff->backing)
		return fuse_lower_size(ff->backing->lower.file);
	return 0;
}

/* i_rwsem excludes those who look at S_NOCMTIME, fi->lock other bits' writers */
static void fuse_set_nocmtime(struct inode *inode, unsigned int flag)
{
	struct fuse_inode *fi = get_fuse_inode(inode);

	lockdep_assert_held_write(&inode->i_rwsem);
	spin_lock(&fi->lock);
	inode->i_flags = (inode->i_flags & ~S_NOCMTIME) | flag;
	spin_unlock(&fi->lock);
}

/*
 * The bit comes after the flush: with it, size and times of the server count,
 * and a reply that does not know of the dirty pages would truncate them.
 */
static int fuse_stop_writeback_cache(struct inode *inode)
{
	struct fuse_conn *fc = get_fuse_conn(inode);
	struct fuse_inode *fi = get_fuse_inode(inode);
	errseq_t since = filemap_sample_wb_err(inode->i_mapping);

	fuse_set_nocmtime(inode, S_NOCMTIME);
	filemap_fdatawrite(inode->i_mapping);
	filemap_fdatawait_keep_errors(inode->i_mapping);
	fuse_set_nowrite(inode);
	fuse_release_nowrite(inode);
	/* A server that refuses the times does not fail the open */
	sync_inode_metadata(inode, 1);
	if (filemap_check_wb_err(inode->i_mapping, since) &&
	    READ_ONCE(fc->connected)) {
		fuse_set_nocmtime(inode, 0);
		return -EIO;
	}

	spin_lock(&fi->lock);
	set_bit(FUSE_I_PASSTHROUGH, &fi->state);
	fi->attr_version = atomic64_inc_return(&fc->attr_version);
	spin_unlock(&fi->lock);
	fuse_invalidate_attr_mask(inode, FUSE_STATX_MODSIZE);

	return 0;
}

/**
 * fuse_passthrough_write_through - an inode is open through passthrough
 * @inode: FUSE inode
 *
 * From here on until it is evicted, cached writes go through to the server, and
 * the server is the authority on size and times.
 *
 * Context: Process context, takes i_rwsem with FUSE_WRITEBACK_CACHE.
 * Return: 0, -EINTR if killed, -EIO if dirty pages could not be written back
 */
int fuse_passthrough_write_through(struct inode *inode)
{
	int err = 0;

	if (fuse_inode_passthrough(inode))
		return 0;
	if (!get_fuse_conn(inode)->writeback_cache) {
		set_bit(FUSE_I_PASSTHROUGH, &get_fuse_inode(inode)->state);
		return 0;
	}

	if (down_write_killable(&inode->i_rwsem))
		return -EINTR;
	if (!fuse_inode_passthrough(inode))
		err = fuse_stop_writeback_cache(inode);
	inode_unlock(inode);

	return err;
}
