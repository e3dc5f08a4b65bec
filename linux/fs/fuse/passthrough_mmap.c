// SPDX-License-Identifier: GPL-2.0-only
/*
 * FUSE passthrough: mappings of the lower file.
 *
 * The area maps the lower file.  A copy of its vm_operations_struct, with open
 * and close replaced, keeps the FUSE file open until the last unmapping, so that
 * RELEASE comes after it.
 */

#include "passthrough.h"

#include <linux/cred.h>
#include <linux/file.h>
#include <linux/mm.h>
#include <linux/pagemap.h>
#include <linux/security.h>
#include <linux/slab.h>

/**
 * struct fuse_passthrough_vma - what the areas split from one mapping share
 * @vm_ops: of the areas: those of the lower file, but for open, close, mprotect
 * @lower_ops: of the lower file
 * @file: FUSE file, holds a reference
 * @writable: lower mapping that must not be sealed against writing, or NULL
 * @count: number of areas
 */
struct fuse_passthrough_vma {
	struct vm_operations_struct vm_ops;
	const struct vm_operations_struct *lower_ops;
	struct file *file;
	struct address_space *writable;
	refcount_t count;
};

static struct fuse_passthrough_vma *fuse_passthrough_vma(struct vm_area_struct *vma)
{
	return container_of(vma->vm_ops, struct fuse_passthrough_vma, vm_ops);
}

/* Nothing tells of single stores, so while the area exists, times are not cached */
static void fuse_vma_account(struct fuse_passthrough_vma *fpv, int n)
{
	struct inode *inode = file_inode(fpv->file);
	struct fuse_inode *fi = get_fuse_inode(inode);

	if (!fpv->writable)
		return;
	set_bit(FUSE_I_STORED_BELOW, &fi->state);
	atomic_add(n, &fi->passthrough_stores);
	fuse_invalidate_attr_mask(inode, FUSE_STATX_MODIFY);
}

static void fuse_vma_put(struct fuse_passthrough_vma *fpv)
{
	if (!refcount_dec_and_test(&fpv->count))
		return;
	if (fpv->writable)
		mapping_unmap_writable(fpv->writable);
	fput(fpv->file);
	kfree(fpv);
}

/*
 * The lower operations find their own vm_ops in the area while they run, since
 * they may use container_of() on it.  mmap_lock is held for writing, so no fault
 * comes between.
 */
static void fuse_vma_open(struct vm_area_struct *vma)
{
	struct fuse_passthrough_vma *fpv = fuse_passthrough_vma(vma);

	refcount_inc(&fpv->count);
	fuse_vma_account(fpv, 1);
	vma->vm_ops = fpv->lower_ops;
	if (vma->vm_ops->open)
		vma->vm_ops->open(vma);
	vma->vm_ops = &fpv->vm_ops;
}

static void fuse_vma_close(struct vm_area_struct *vma)
{
	struct fuse_passthrough_vma *fpv = fuse_passthrough_vma(vma);

	vma->vm_ops = fpv->lower_ops;
	if (vma->vm_ops->close)
		vma->vm_ops->close(vma);
	fuse_vma_account(fpv, -1);
	fuse_vma_put(fpv);
}

/*
 * The VM asked the security modules about the lower file, which the caller did
 * not open.  Ask about the FUSE file as well, as for a mapping of it.
 */
static int fuse_vma_mprotect(struct vm_area_struct *vma, unsigned long start,
			     unsigned long end, unsigned long newflags)
{
	struct fuse_passthrough_vma *fpv = fuse_passthrough_vma(vma);
	struct vm_area_struct fuse_vma = *vma;
	unsigned long prot = newflags & VM_ACCESS_FLAGS;
	int err;

	fuse_vma.vm_file = fpv->file;
	err = security_file_mprotect(&fuse_vma, prot, prot);
	if (err || !fpv->lower_ops->mprotect)
		return err;

	vma->vm_ops = fpv->lower_ops;
	err = vma->vm_ops->mprotect(vma, start, end, newflags);
	vma->vm_ops = &fpv->vm_ops;
	return err;
}

/* What do_mmap() asked the FUSE file */
static int fuse_lower_may_mmap(struct file *lower, struct vm_area_struct *vma)
{
	struct inode *inode = file_inode(lower);

	if (!(vma->vm_flags & VM_SHARED))
		return 0;
	if (IS_APPEND(inode) && lower->f_mode & FMODE_WRITE)
		return -EACCES;
	if (IS_SWAPFILE(inode) && vma->vm_flags & VM_WRITE)
		return -ETXTBSY;
	return 0;
}

/*
 * Seals are not shown to modules, but a sealed file refuses to be mapped for
 * writing.  Ask it for that if mprotect() could make the area writable later.
 */
static int fuse_lower_call_mmap(struct file *lower, struct vm_area_struct *vma)
{
	int err;

	if (!vma_is_shared_maywrite(vma) || vma->vm_flags & VM_WRITE ||
	    file_inode(lower)->i_sb->s_magic != TMPFS_MAGIC)
		return call_mmap(lower, vma);

	vma->vm_flags |= VM_WRITE;
	err = call_mmap(lower, vma);
	vma->vm_flags &= ~VM_WRITE;
	if (err != -EPERM)
		return err;
	vma->vm_flags &= ~VM_MAYWRITE;
	return call_mmap(lower, vma);
}

/* The area counts as writable in @fpv from before the lower file is asked */
static int fuse_lower_mmap(struct fuse_passthrough_vma *fpv,
			   struct fuse_lower *lower, struct vm_area_struct *vma)
{
	struct address_space *mapping = lower->file->f_mapping;
	const struct cred *old_cred;
	int err;

	if (vma_is_shared_maywrite(vma)) {
		err = mapping_map_writable(mapping);
		if (err && vma->vm_flags & VM_WRITE)
			return err;
		if (err)
			vma->vm_flags &= ~VM_MAYWRITE;
		else
			fpv->writable = mapping;
	}

	vma_set_file(vma, lower->file);
	old_cred = override_creds(lower->cred);
	err = fuse_lower_call_mmap(lower->file, vma);
	revert_creds(old_cred);
	if (fpv->writable && !(vma->vm_flags & VM_MAYWRITE)) {
		mapping_unmap_writable(mapping);
		fpv->writable = NULL;
	}

	return err;
}

static void fuse_vma_install(struct fuse_passthrough_vma *fpv,
			     struct vm_area_struct *vma)
{
	static const struct vm_operations_struct no_ops = {};

	fpv->lower_ops = vma->vm_ops ?: &no_ops;
	fpv->vm_ops = *fpv->lower_ops;
	fpv->vm_ops.open = fuse_vma_open;
	fpv->vm_ops.close = fuse_vma_close;
	fpv->vm_ops.mprotect = fuse_vma_mprotect;
	vma->vm_ops = &fpv->vm_ops;
	fuse_vma_account(fpv, 1);

	/*
	 * The server may have mapped the same struct file.  The VM would merge
	 * that area, which has no close, with ours and forget ours.  Areas with
	 * different flags are not merged.  In a shared mapping only DAX has
	 * VM_SYNC, in a private one whoever asked for MAP_SYNC.  By id, nobody
	 * else has the file for that.
	 */
	if (IS_DAX(file_inode(vma->vm_file)) ||
	    (!(vma->vm_flags & VM_MAYSHARE) && !fuse_lower(fpv->file)->id))
		vma->vm_flags |= VM_DONTEXPAND;
	else
		vma->vm_flags |= VM_SYNC;
}

/**
 * fuse_passthrough_mmap - map the pages of the lower file
 * @file: FUSE file that has a lower one
 * @vma: the area; its vm_file becomes the lower file
 *
 * Context: Process context, mmap_lock held for writing.
 * Return: 0 or a negative error
 */
int fuse_passthrough_mmap(struct file *file, struct vm_area_struct *vma)
{
	struct fuse_lower *lower = fuse_lower(file);
	struct fuse_passthrough_vma *fpv;
	int err;

	if (fuse_is_bad(file_inode(file)))
		return -EIO;
	err = fuse_lower_may_mmap(lower->file, vma);
	if (err)
		return err;

	fpv = kzalloc(sizeof(*fpv), GFP_KERNEL_ACCOUNT);
	if (!fpv)
		return -ENOMEM;
	fpv->file = get_file(file);
	refcount_set(&fpv->count, 1);

	err = fuse_lower_mmap(fpv, lower, vma);
	if (err) {
		fuse_vma_put(fpv);
		return err;
	}
	fuse_vma_install(fpv, vma);
	fuse_passthrough_accessed(file);

	return 0;
}

/**
 * fuse_passthrough_get_unmapped_area - where the lower file wants to be mapped
 * @file: FUSE file that has a lower one
 * @addr: wish of the caller
 * @len: length in bytes
 * @pgoff: offset in the file, in pages
 * @flags: MAP_*
 *
 * Context: Process context, mmap_lock held for writing.
 * Return: an address or a negative error
 */
unsigned long fuse_passthrough_get_unmapped_area(struct file *file,
						 unsigned long addr,
						 unsigned long len,
						 unsigned long pgoff,
						 unsigned long flags)
{
	struct file *lower = fuse_lower(file)->file;

	if (lower->f_op->get_unmapped_area)
		return lower->f_op->get_unmapped_area(lower, addr, len, pgoff,
						      flags);
	return current->mm->get_unmapped_area(lower, addr, len, pgoff, flags);
}
