// SPDX-License-Identifier: GPL-2.0-only
/*
 * FUSE passthrough: what the server's answers to INIT and to opens bring.
 */

#include "passthrough.h"

#include <linux/cred.h>
#include <linux/file.h>

/*
 * A lower file system may be FUSE as well, and a write then holds the freeze
 * protection of both.
 */
static void fuse_set_stacked_lock_class(struct super_block *sb)
{
	static struct lock_class_key keys[FILESYSTEM_MAX_STACK_DEPTH]
					 [SB_FREEZE_LEVELS];
	int i;

	for (i = 0; i < SB_FREEZE_LEVELS; i++)
		lockdep_set_class(&sb->s_writers.rw_sem[i],
				  &keys[sb->s_stack_depth - 1][i]);
}

/**
 * fuse_passthrough_negotiate - the server asked for FUSE_PASSTHROUGH at INIT
 * @fm: mount that is being initialised
 * @max_stack_depth: of the server's answer, 0 means 1
 *
 * The depth becomes that of the mount's superblock.  One that the VFS does not
 * allow refuses the capability.
 *
 * Context: Process context, before fc->initialized is set.
 */
void fuse_passthrough_negotiate(struct fuse_mount *fm, u32 max_stack_depth)
{
	struct fuse_conn *fc = fm->fc;

	if (!max_stack_depth)
		max_stack_depth = 1;
	if (max_stack_depth > FILESYSTEM_MAX_STACK_DEPTH)
		return;

	fc->max_stack_depth = max_stack_depth;
	fc->passthrough = 1;
	fm->sb->s_stack_depth = max_stack_depth;
	fuse_set_stacked_lock_class(fm->sb);
}

/*
 * A descriptor lends the rights that it has, more are asked from the file
 * system.  What open(2) asks beside permissions is asked by hand.
 */
static int fuse_lower_may_open(struct file *registered, int flags)
{
	struct user_namespace *mnt_userns = file_mnt_user_ns(registered);
	struct inode *inode = file_inode(registered);
	fmode_t mode = OPEN_FMODE(flags);
	int mask = 0;

	if (mode & FMODE_WRITE &&
	    (IS_IMMUTABLE(inode) || (IS_APPEND(inode) && !(flags & O_APPEND))))
		return -EPERM;
	if (flags & O_NOATIME && !inode_owner_or_capable(mnt_userns, inode))
		return -EPERM;

	mode &= ~registered->f_mode;
	if (mode & FMODE_READ)
		mask |= MAY_READ;
	if (mode & FMODE_WRITE)
		mask |= MAY_WRITE;
	return mask ? inode_permission(mnt_userns, inode, MAY_OPEN | mask) : 0;
}

/* With the opener's raw flags: __FMODE_NONOTIFY is one of them */
static struct file *fuse_lower_open(struct file *registered, struct file *file)
{
	int flags = file->f_flags &
		    ~(O_CREAT | O_EXCL | O_TRUNC | O_NOCTTY | O_TMPFILE);
	struct file *lower;
	int err;

	err = fuse_lower_may_open(registered, flags);
	if (err)
		return ERR_PTR(err);
	lower = dentry_open(&registered->f_path, flags, current_cred());
	if (!IS_ERR(lower) && fuse_file_noatime(file)) {
		spin_lock(&lower->f_lock);
		lower->f_flags |= O_NOATIME;
		spin_unlock(&lower->f_lock);
	}
	return lower;
}

/* The registered file is not kept: it may carry the server's locks */
static int fuse_passthrough_open_id(struct fuse_file *ff, struct file *file)
{
	struct fuse_backing *backing = ff->backing;
	const struct cred *old_cred;
	struct file *lower;

	old_cred = override_creds(backing->lower.cred);
	lower = fuse_lower_open(backing->lower.file, file);
	revert_creds(old_cred);
	/* A lower server may say so, and the VFS must not think that we do */
	if (lower == ERR_PTR(-ENOSYS))
		return -EIO;
	if (IS_ERR(lower))
		return PTR_ERR(lower);

	ff->lower.cred = get_cred(backing->lower.cred);
	ff->lower.nofsetid_cred = get_cred(backing->lower.nofsetid_cred);
	ff->lower.id = backing->lower.id;
	ff->lower.file = lower;
	ff->backing = NULL;
	fuse_backing_put(backing);
	return 0;
}

/* Why the answer to an open can't be honoured, NULL if it can */
static const char *fuse_answer_fault(struct inode *inode, struct fuse_file *ff)
{
	bool by_id = ff->open_flags & FOPEN_PASSTHROUGH;

	if (!by_id && !ff->lower.file)
		return NULL;
	if (FUSE_IS_DAX(inode))
		return "DAX inode";
	if (ff->open_flags & FOPEN_STREAM)
		return "FOPEN_STREAM";
	if (!by_id)
		return NULL;
	if (!ff->fm->fc->passthrough)
		return "passthrough was not negotiated";
	if (ff->lower.file)
		return "two lower files";
	if (!ff->backing)
		return "no such backing_id";
	return NULL;
}

/**
 * fuse_passthrough_open - honour the answer to an open, if it names a lower file
 * @inode: FUSE inode
 * @file: FUSE file, answered by the server
 *
 * Context: Process context, no lock of @inode held: it may open a file of the
 * lower file system.
 * Return: 0, -EIO for an answer that can't be honoured, or the error of opening
 * the lower file.  The caller then fails the open and sends RELEASE.
 */
int fuse_passthrough_open(struct inode *inode, struct file *file)
{
	struct fuse_file *ff = file->private_data;
	const char *fault = fuse_answer_fault(inode, ff);

	if (fault) {
		pr_warn_ratelimited("%u:%u: open of nodeid %llu failed: %s\n",
				    MAJOR(inode->i_sb->s_dev),
				    MINOR(inode->i_sb->s_dev),
				    get_node_id(inode), fault);
		return -EIO;
	}
	return ff->backing ? fuse_passthrough_open_id(ff, file) : 0;
}
