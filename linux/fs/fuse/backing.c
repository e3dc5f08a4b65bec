// SPDX-License-Identifier: GPL-2.0-only
/*
 * FUSE passthrough: which lower file backs an open FUSE file.
 *
 * The life of a lower file: FUSE_DEV_IOC_PASSTHROUGH_OPEN takes a reference to
 * it and hangs it on the fuse_file that waits for the server's answer.  From
 * then on the fuse_file owns it, whatever becomes of the open, and
 * fuse_backing_put() is called where the fuse_file dies.  Nothing replaces a
 * backing while the file is open, so its users need neither lock nor count.
 *
 * FUSE_DEV_IOC_BACKING_OPEN registers a file under an id of the connection
 * until FUSE_DEV_IOC_BACKING_CLOSE or the end of the connection.  An answer with
 * that id takes a reference to it at once, and the opener opens the file anew,
 * for its fuse_file alone.
 */

#include "fuse_i.h"

#include <linux/cred.h>
#include <linux/file.h>
#include <linux/fs.h>
#include <linux/idr.h>
#include <linux/moduleparam.h>
#include <linux/seq_file.h>
#include <linux/slab.h>
#include <linux/uaccess.h>
#include <linux/workqueue.h>

static bool fuse_passthrough_privileged;
module_param_named(passthrough_privileged, fuse_passthrough_privileged, bool,
		   0644);
MODULE_PARM_DESC(passthrough_privileged,
		 "Only CAP_SYS_ADMIN may attach or register lower files");

static void fuse_backing_link(struct fuse_conn *fc, struct fuse_backing *backing)
{
	lockdep_assert_held(&fc->lock);
	list_add_tail(&backing->entry, &fc->backings);
}

/* Is @file something that may stand below a file of this connection? */
static int fuse_backing_check(struct fuse_conn *fc, struct file *file)
{
	struct inode *inode = file_inode(file);
	const struct file_operations *f_op = file->f_op;

	/* Such a file is for opening the inode only */
	if (file->f_mode & FMODE_PATH)
		f_op = inode->i_fop;

	if (S_ISDIR(inode->i_mode))
		return -EISDIR;
	/*
	 * Files of kernfs and its like are regular, but act on the task that
	 * writes them.
	 */
	if (!S_ISREG(inode->i_mode) || inode->i_sb->s_iflags & SB_I_NOEXEC)
		return -EINVAL;
	if (!f_op->read_iter || !f_op->write_iter)
		return -EOPNOTSUPP;
	if (inode->i_sb->s_stack_depth >= fc->max_stack_depth)
		return -ELOOP;
	return 0;
}

/*
 * What writes are done with for a caller that has no CAP_FSETID: the lower
 * file system looks at the credentials of the writer when it decides whether
 * setuid and setgid stay.
 */
static const struct cred *fuse_backing_nofsetid_cred(const struct cred *cred)
{
	struct cred *new;

	if (!cap_raised(cred->cap_effective, CAP_FSETID))
		return get_cred(cred);

	new = prepare_creds();
	if (new)
		cap_lower(new->cap_effective, CAP_FSETID);
	return new;
}

/* Whether it was linked or not */
static void fuse_backing_unref(struct fuse_conn *fc,
			       struct fuse_backing *backing)
{
	if (!refcount_dec_and_test(&backing->count))
		return;
	spin_lock(&fc->lock);
	list_del(&backing->entry);
	spin_unlock(&fc->lock);
	fput(backing->file);
	put_cred(backing->cred);
	put_cred(backing->nofsetid_cred);
	kfree(backing);
}

/*
 * Consumes the reference to @file, which may be NULL.  The credentials are those
 * of @registered, or else of the calling task.
 */
static struct fuse_backing *fuse_backing_create(struct fuse_conn *fc,
						struct file *file,
						struct fuse_backing *registered)
{
	struct fuse_backing *backing;
	int err;

	if (!file)
		return ERR_PTR(-EBADF);

	err = fuse_backing_check(fc, file);
	if (err)
		goto out_fput;

	err = -ENOMEM;
	backing = kmalloc(sizeof(*backing), GFP_KERNEL_ACCOUNT);
	if (!backing)
		goto out_fput;

	if (registered)
		backing->nofsetid_cred = get_cred(registered->nofsetid_cred);
	else
		backing->nofsetid_cred =
			fuse_backing_nofsetid_cred(current_cred());
	if (!backing->nofsetid_cred)
		goto out_free;

	INIT_LIST_HEAD(&backing->entry);
	refcount_set(&backing->count, 1);
	backing->file = file;
	backing->cred = get_current_cred();
	backing->spare = NULL;
	backing->id = registered ? registered->id : 0;
	return backing;

out_free:
	kfree(backing);
out_fput:
	fput(file);
	return ERR_PTR(err);
}

/* Called under the lock that keeps @req waiting for its answer */
static int fuse_backing_attach_req(struct fuse_req *req,
				   struct fuse_backing *backing)
{
	struct fuse_file *ff = req->args->ff;
	fmode_t rw = FMODE_READ | FMODE_WRITE;
	fmode_t mode = backing->file->f_mode;
	u32 flags;

	if (!ff)
		return -EINVAL;
	if (ff->backing)
		return -EEXIST;

	/* fuse_open_in and fuse_create_in both start with the flags */
	flags = *(const u32 *)req->args->in_args[0].value;
	if (OPEN_FMODE(flags) & rw & ~mode)
		return -EBADF;
	if (flags & O_DIRECT && !(mode & FMODE_CAN_ODIRECT))
		return -EINVAL;

	ff->backing = backing;
	return 0;
}

/*
 * The task that answers may use another device of the connection than the one
 * that read the request.  Lock order as in fuse_abort_conn().
 */
static int fuse_backing_attach(struct fuse_conn *fc, u64 unique,
			       struct fuse_backing *backing)
{
	struct fuse_dev *fud;
	struct fuse_req *req;
	int err = -ENOENT;

	spin_lock(&fc->lock);
	if (!fc->connected)
		err = -ENOTCONN;
	list_for_each_entry(fud, &fc->devices, entry) {
		struct fuse_pqueue *fpq = &fud->pq;

		spin_lock(&fpq->lock);
		req = fpq->connected ? fuse_request_find(fpq, unique) : NULL;
		if (req)
			err = fuse_backing_attach_req(req, backing);
		spin_unlock(&fpq->lock);
		if (req)
			break;
	}
	if (!err)
		fuse_backing_link(fc, backing);
	spin_unlock(&fc->lock);

	return err;
}

/*
 * Hangs a file of the calling task, together with the task's credentials, on
 * the open that the server is about to answer.
 */
static int fuse_passthrough_open(struct fuse_conn *fc, void __user *argp)
{
	struct fuse_passthrough_out arg;
	struct fuse_backing *backing;
	int err;

	if (copy_from_user(&arg, argp, sizeof(arg)))
		return -EFAULT;
	if (arg.len || arg.vec)
		return -EINVAL;

	backing = fuse_backing_create(fc, fget(arg.fd), NULL);
	if (IS_ERR(backing))
		return PTR_ERR(backing);

	err = fuse_backing_attach(fc, arg.unique, backing);
	if (err)
		fuse_backing_unref(fc, backing);
	return err;
}

/* As many ids as the caller may have files open */
static int fuse_backing_add_id(struct fuse_conn *fc,
			       struct fuse_backing *backing)
{
	bool unlimited = capable(CAP_SYS_RESOURCE);
	int id;

	idr_preload(GFP_KERNEL);
	spin_lock(&fc->lock);
	if (!fc->connected)
		id = -ENOTCONN;
	else if (fc->backing_count >= rlimit(RLIMIT_NOFILE) && !unlimited)
		id = -EMFILE;
	else
		id = idr_alloc_cyclic(&fc->backing_ids, backing, 1, 0,
				      GFP_ATOMIC);
	if (id > 0) {
		fc->backing_count++;
		backing->id = id;
		fuse_backing_link(fc, backing);
	}
	spin_unlock(&fc->lock);
	idr_preload_end();

	return id == -ENOSPC ? -EMFILE : id;
}

/* Registers a file of the calling task, one of O_PATH is enough */
static int fuse_backing_open(struct fuse_conn *fc, void __user *argp)
{
	struct fuse_backing_map map;
	struct fuse_backing *backing;
	int id;

	if (copy_from_user(&map, argp, sizeof(map)))
		return -EFAULT;
	if (map.flags || map.padding)
		return -EINVAL;

	backing = fuse_backing_create(fc, fget_raw(map.fd), NULL);
	if (IS_ERR(backing))
		return PTR_ERR(backing);

	id = fuse_backing_add_id(fc, backing);
	if (id < 0)
		fuse_backing_unref(fc, backing);
	return id;
}

/* Files that were opened by the id keep what they have */
static int fuse_backing_close(struct fuse_conn *fc, u32 __user *argp)
{
	struct fuse_backing *backing;
	u32 id;

	if (get_user(id, argp))
		return -EFAULT;

	spin_lock(&fc->lock);
	backing = idr_remove(&fc->backing_ids, id);
	if (backing)
		fc->backing_count--;
	spin_unlock(&fc->lock);
	if (!backing)
		return -ENOENT;

	fuse_backing_unref(fc, backing);
	return 0;
}

/**
 * fuse_backing_ioctl - the ioctls by which a server hands in lower files
 * @fud: device that the ioctl came in by, NULL if it is not mounted
 * @cmd: FUSE_DEV_IOC_PASSTHROUGH_OPEN, _BACKING_OPEN or _BACKING_CLOSE
 * @argp: their argument
 *
 * A call that fails changes nothing: a server can still answer the open, and
 * gets the reads and writes.
 *
 * Context: Process context, takes fc->lock and the fpq->lock of each device.
 * Return: 0, the id for FUSE_DEV_IOC_BACKING_OPEN, or a negative error:
 * * -EPERM	- not mounted, passthrough was not negotiated, or the caller
 *		  lacks the capability that fuse.passthrough_privileged asks for
 * * -ENOTCONN	- the connection was aborted
 * * -EFAULT	- @argp can't be read
 * * -EINVAL	- a reserved word is set, the request is no open, the lower file
 *		  is not regular or of a pseudo file system, or can't O_DIRECT
 * * -EBADF	- no such descriptor, or not open for what the opener asked
 * * -EISDIR	- a directory
 * * -EOPNOTSUPP - the lower file can't be read or written by iterator
 * * -ELOOP	- the lower file system is stacked too deep
 * * -ENOENT	- no such request is waiting for its answer, or no such id
 * * -EEXIST	- the request has its lower file already
 * * -EMFILE	- as many ids as the caller may have files open
 * * -ENOMEM	- no memory
 */
long fuse_backing_ioctl(struct fuse_dev *fud, unsigned int cmd,
			void __user *argp)
{
	if (!fud)
		return -EPERM;
	if (!READ_ONCE(fud->fc->connected))
		return -ENOTCONN;
	if (!fud->fc->passthrough)
		return -EPERM;
	if (READ_ONCE(fuse_passthrough_privileged) &&
	    cmd != FUSE_DEV_IOC_BACKING_CLOSE && !capable(CAP_SYS_ADMIN))
		return -EPERM;

	switch (cmd) {
	case FUSE_DEV_IOC_PASSTHROUGH_OPEN:
		return fuse_passthrough_open(fud->fc, argp);
	case FUSE_DEV_IOC_BACKING_OPEN:
		return fuse_backing_open(fud->fc, argp);
	case FUSE_DEV_IOC_BACKING_CLOSE:
		return fuse_backing_close(fud->fc, argp);
	default:
		return -ENOTTY;
	}
}

/**
 * fuse_backing_free_ids - drop what the server has registered
 * @fc: connection, no longer connected
 *
 * Context: Process context, no locks held.
 */
void fuse_backing_free_ids(struct fuse_conn *fc)
{
	struct fuse_backing *backing;
	int id = 0;

	spin_lock(&fc->lock);
	while ((backing = idr_get_next(&fc->backing_ids, &id))) {
		idr_remove(&fc->backing_ids, id);
		spin_unlock(&fc->lock);
		fuse_backing_unref(fc, backing);
		spin_lock(&fc->lock);
	}
	fc->backing_count = 0;
	spin_unlock(&fc->lock);
}

/**
 * fuse_backing_free_conn - free what fuse_passthrough_negotiate() allocated
 * @fc: connection that nobody uses any more
 *
 * Each connection has a queue of its own: its work may wait for its server.
 *
 * Context: Process context, may sleep.
 */
void fuse_backing_free_conn(struct fuse_conn *fc)
{
	if (fc->passthrough_wq)
		destroy_workqueue(fc->passthrough_wq);
}

/**
 * fuse_backing_answered - the server has answered an open
 * @ff: the open
 * @out: the answer
 *
 * From here on the server may close the id, the open has what it named.
 *
 * Context: Process context, @ff is not seen by anybody else.  Takes fc->lock.
 */
void fuse_backing_answered(struct fuse_file *ff,
			   const struct fuse_open_out *out)
{
	struct fuse_conn *fc = ff->fm->fc;

	if (!fc->passthrough || !(out->open_flags & FOPEN_PASSTHROUGH) ||
	    ff->backing)
		return;

	spin_lock(&fc->lock);
	ff->backing = idr_find(&fc->backing_ids, out->backing_id);
	if (ff->backing)
		refcount_inc(&ff->backing->count);
	spin_unlock(&fc->lock);
}

/*
 * As if the server had opened /proc/self/fd/N of what it registered, with the
 * flags of the opener and all the questions that an open asks.
 */
static int fuse_backing_open_id(struct fuse_file *ff, int flags)
{
	struct fuse_backing *registered = ff->backing, *backing;
	struct fuse_conn *fc = ff->fm->fc;
	const struct cred *old_cred;
	struct file *file;

	flags &= ~(O_CREAT | O_EXCL | O_TRUNC | O_NOCTTY | O_TMPFILE);
	old_cred = override_creds(registered->cred);
	file = file_open_root(&registered->file->f_path, "", flags, 0);
	if (IS_ERR(file))
		backing = ERR_CAST(file);
	else
		backing = fuse_backing_create(fc, file, registered);
	revert_creds(old_cred);
	if (IS_ERR(backing))
		return PTR_ERR(backing);

	spin_lock(&fc->lock);
	fuse_backing_link(fc, backing);
	spin_unlock(&fc->lock);
	ff->backing = backing;
	fuse_backing_unref(fc, registered);
	return 0;
}

/**
 * fuse_backing_put - drop the lower file of a fuse_file, if it has one
 * @ff: file that nobody reads or writes any more, or never did
 *
 * Context: Any.
 */
void fuse_backing_put(struct fuse_file *ff)
{
	if (ff->backing)
		fuse_backing_unref(ff->fm->fc, ff->backing);
	ff->backing = NULL;
}

static void fuse_backing_show(struct seq_file *m, struct fuse_backing *backing)
{
	struct inode *inode = file_inode(backing->file);
	fmode_t mode = backing->file->f_mode;

	seq_printf(m, "%u:%u %lu ", MAJOR(inode->i_sb->s_dev),
		   MINOR(inode->i_sb->s_dev), inode->i_ino);
	if (mode & FMODE_PATH)
		seq_puts(m, "path");
	if (mode & FMODE_READ)
		seq_putc(m, 'r');
	if (mode & FMODE_WRITE)
		seq_putc(m, 'w');
	if (backing->id)
		seq_printf(m, " id %d", backing->id);
	seq_putc(m, '\n');
}

/**
 * fuse_passthrough_show_fdinfo - the lower file, for /proc/PID/fdinfo/FD
 * @m: where it is written
 * @file: FUSE file
 *
 * Context: Process context.
 */
void fuse_passthrough_show_fdinfo(struct seq_file *m, struct file *file)
{
	struct fuse_file *ff = file->private_data;

	if (!ff->backing)
		return;
	seq_puts(m, "passthrough:\t");
	fuse_backing_show(m, ff->backing);
}

/**
 * fuse_backing_show_ids - the registered files, for /proc/PID/fdinfo/FD
 * @m: where it is written
 * @fud: device, NULL if it is not mounted
 *
 * Context: Process context, takes fc->lock.
 */
void fuse_backing_show_ids(struct seq_file *m, struct fuse_dev *fud)
{
	struct fuse_backing *backing;
	int id;

	if (!fud)
		return;
	spin_lock(&fud->fc->lock);
	idr_for_each_entry(&fud->fc->backing_ids, backing, id) {
		seq_puts(m, "passthrough:\t");
		fuse_backing_show(m, backing);
	}
	spin_unlock(&fud->fc->lock);
}

static void *fuse_backing_seq_start(struct seq_file *m, loff_t *pos)
	__acquires(((struct fuse_conn *)m->private)->lock)
{
	struct fuse_conn *fc = m->private;

	spin_lock(&fc->lock);
	return seq_list_start(&fc->backings, *pos);
}

static void *fuse_backing_seq_next(struct seq_file *m, void *v, loff_t *pos)
{
	struct fuse_conn *fc = m->private;

	return seq_list_next(v, &fc->backings, pos);
}

static void fuse_backing_seq_stop(struct seq_file *m, void *v)
	__releases(((struct fuse_conn *)m->private)->lock)
{
	struct fuse_conn *fc = m->private;

	spin_unlock(&fc->lock);
}

static int fuse_backing_seq_show(struct seq_file *m, void *v)
{
	fuse_backing_show(m, list_entry(v, struct fuse_backing, entry));
	return 0;
}

/* What a connection pins: registered files, and those of open FUSE files */
const struct seq_operations fuse_backing_seq_ops = {
	.start	= fuse_backing_seq_start,
	.next	= fuse_backing_seq_next,
	.stop	= fuse_backing_seq_stop,
	.show	= fuse_backing_seq_show,
};

/*
 * A mount that is stacked on others may stand on one of its own kind, and a
 * write then holds the freeze protection of both.
 */
static void fuse_passthrough_set_lock_class(struct super_block *sb)
{
	static struct lock_class_key stacked[SB_FREEZE_LEVELS];
	int i;

	for (i = 0; i < SB_FREEZE_LEVELS; i++)
		lockdep_set_class(&sb->s_writers.rw_sem[i], &stacked[i]);
}

/**
 * fuse_passthrough_negotiate - the server asked for FUSE_PASSTHROUGH at INIT
 * @fm: mount that is being initialised
 * @max_stack_depth: of the server's answer, 0 means 1
 *
 * A depth that the VFS does not allow, or no memory, refuses the capability.  The depth
 * becomes the one of the mount's superblock: lower files are of a smaller one,
 * so that no chain of lower files ends where it began.
 */
void fuse_passthrough_negotiate(struct fuse_mount *fm, u32 max_stack_depth)
{
	struct fuse_conn *fc = fm->fc;

	if (!max_stack_depth)
		max_stack_depth = 1;
	if (max_stack_depth > FILESYSTEM_MAX_STACK_DEPTH)
		return;

	/* Writeback of a loop device may wait for it */
	fc->passthrough_wq = alloc_workqueue("fuse_passthrough",
					     WQ_MEM_RECLAIM, 0);
	if (!fc->passthrough_wq)
		return;

	fc->max_stack_depth = max_stack_depth;
	fc->passthrough = 1;
	fm->sb->s_stack_depth = max_stack_depth;
	if (max_stack_depth > 1)
		fuse_passthrough_set_lock_class(fm->sb);
}

static int fuse_passthrough_refuse(struct inode *inode, const char *why, int err)
{
	pr_warn_ratelimited("%u:%u: open of nodeid %llu failed: %s (%d)\n",
			    MAJOR(inode->i_sb->s_dev),
			    MINOR(inode->i_sb->s_dev), get_node_id(inode), why,
			    err);
	return err;
}

/**
 * fuse_passthrough_check_open - honour the answer to an open, if that can be
 * @inode: inode that is being opened
 * @ff: the open, as the server answered it
 * @flags: O_* of the opener
 *
 * Context: Process context, may open a file of the lower file system.
 * Return: 0, -EIO for an answer that names a lower file in a way that can't be
 * honoured, or the error of opening the lower file.  The caller then fails the
 * open and releases @ff.
 */
int fuse_passthrough_check_open(struct inode *inode, struct fuse_file *ff,
				unsigned int flags)
{
	bool by_id = ff->open_flags & FOPEN_PASSTHROUGH;
	int err;

	if (!S_ISREG(inode->i_mode) || (!by_id && !ff->backing))
		return 0;
	if (FUSE_IS_DAX(inode))
		return fuse_passthrough_refuse(inode, "DAX inode", -EIO);
	if (ff->open_flags & FOPEN_STREAM)
		return fuse_passthrough_refuse(inode, "FOPEN_STREAM", -EIO);
	if (!by_id)
		return 0;
	if (!ff->fm->fc->passthrough)
		return fuse_passthrough_refuse(inode, "not negotiated", -EIO);
	if (!ff->backing)
		return fuse_passthrough_refuse(inode, "backing_id", -EIO);
	if (!ff->backing->id)
		return fuse_passthrough_refuse(inode, "two lower files", -EIO);

	err = fuse_backing_open_id(ff, flags);
	if (err)
		return fuse_passthrough_refuse(inode, "lower open", err);
	return 0;
}
