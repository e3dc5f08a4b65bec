// SPDX-License-Identifier: GPL-2.0-only
/*
 * FUSE passthrough: how an open FUSE file gets its lower file.
 *
 * By request: FUSE_DEV_IOC_PASSTHROUGH_OPEN puts a file of the calling task, with
 * the credentials of that task, on the fuse_file that waits for its answer.
 *
 * By id: FUSE_DEV_IOC_BACKING_OPEN registers a file and the credentials of the
 * calling task under an id, until FUSE_DEV_IOC_BACKING_CLOSE or the end of the
 * connection.  An answer that names the id takes a reference to it at once.  The
 * opener then opens the registered file anew, for its own fuse_file.
 *
 * From then on the fuse_file owns the lower file, whatever becomes of the open.
 * Nothing replaces it while the FUSE file is open, so that its users need
 * neither lock nor count.  fuse_passthrough_release() drops it with the fuse_file.
 */

#include "passthrough.h"

#include <linux/cred.h>
#include <linux/file.h>
#include <linux/idr.h>
#include <linux/moduleparam.h>
#include <linux/seq_file.h>
#include <linux/slab.h>
#include <linux/uaccess.h>

static bool fuse_passthrough_privileged;
module_param_named(passthrough_privileged, fuse_passthrough_privileged, bool,
		   0644);
MODULE_PARM_DESC(passthrough_privileged,
		 "Only CAP_SYS_ADMIN may attach or register lower files");

/*
 * A lower file lies on a superblock of smaller depth, so that no chain of lower
 * files ends where it began.  Before INIT is answered, the depth of a FUSE
 * superblock is not known.
 */
static bool fuse_lower_may_stack(struct fuse_conn *fc, struct super_block *sb)
{
	if (sb->s_op == &fuse_super_operations) {
		if (!READ_ONCE(get_fuse_conn_super(sb)->initialized))
			return false;
		/* Pairs with smp_wmb() in fuse_set_initialized() */
		smp_rmb();
	}
	return sb->s_stack_depth < fc->max_stack_depth;
}

static int fuse_lower_check(struct fuse_conn *fc, struct file *file)
{
	struct inode *inode = file_inode(file);
	const struct file_operations *f_op = file->f_op;

	/* An O_PATH file has none of its own */
	if (file->f_mode & FMODE_PATH)
		f_op = inode->i_fop;

	if (S_ISDIR(inode->i_mode))
		return -EISDIR;
	/* Regular files of kernfs and its like act on the task that writes */
	if (!S_ISREG(inode->i_mode) || inode->i_sb->s_iflags & SB_I_NOEXEC)
		return -EINVAL;
	if (!f_op->read_iter || !f_op->write_iter)
		return -EOPNOTSUPP;
	/* configfs, functionfs */
	if (!f_op->mmap)
		return -EINVAL;
	if (!fuse_lower_may_stack(fc, inode->i_sb))
		return -ELOOP;
	return 0;
}

/*
 * Credentials for writes of a caller without CAP_FSETID: the lower file system
 * asks the writer's credentials whether setuid and setgid stay.
 */
static const struct cred *fuse_current_nofsetid_cred(void)
{
	struct cred *cred;

	if (!cap_raised(current_cap(), CAP_FSETID))
		return get_current_cred();
	cred = prepare_creds();
	if (cred)
		cap_lower(cred->cap_effective, CAP_FSETID);
	return cred;
}

/* Takes over the reference to @file, which may be NULL */
static int fuse_lower_init(struct fuse_lower *lower, struct fuse_conn *fc,
			   struct file *file)
{
	int err;

	if (!file)
		return -EBADF;
	err = fuse_lower_check(fc, file);
	if (err)
		goto out_fput;
	err = -ENOMEM;
	lower->nofsetid_cred = fuse_current_nofsetid_cred();
	if (!lower->nofsetid_cred)
		goto out_fput;
	lower->cred = get_current_cred();
	lower->file = file;
	lower->id = 0;
	return 0;

out_fput:
	fput(file);
	return err;
}

static void fuse_lower_put(struct fuse_lower *lower)
{
	fput(lower->file);
	put_cred(lower->cred);
	put_cred(lower->nofsetid_cred);
}

/* Called under the fpq->lock that keeps @req waiting for its answer */
static int fuse_lower_attach_req(struct fuse_req *req, struct fuse_lower *lower)
{
	struct fuse_file *ff = req->args->ff;
	fmode_t mode = lower->file->f_mode;
	u32 flags;

	if (!ff)
		return -EINVAL;
	if (ff->lower.file)
		return -EEXIST;

	/* fuse_open_in and fuse_create_in both start with the flags */
	flags = *(const u32 *)req->args->in_args[0].value;
	if (OPEN_FMODE(flags) & (FMODE_READ | FMODE_WRITE) & ~mode)
		return -EBADF;
	if (flags & O_DIRECT && !(mode & FMODE_CAN_ODIRECT))
		return -EINVAL;
	if (flags & O_APPEND && fuse_lower_drops_append(lower->file))
		return -EINVAL;

	ff->lower = *lower;
	return 0;
}

/*
 * The task that answers may use another device of the connection than the one
 * that read the request.  Lock order as in fuse_abort_conn().
 */
static int fuse_lower_attach(struct fuse_conn *fc, u64 unique,
			     struct fuse_lower *lower)
{
	struct fuse_req *req = NULL;
	struct fuse_dev *fud;
	int err = -ENOENT;

	spin_lock(&fc->lock);
	if (!fc->connected)
		err = -ENOTCONN;
	list_for_each_entry(fud, &fc->devices, entry) {
		struct fuse_pqueue *fpq = &fud->pq;

		spin_lock(&fpq->lock);
		if (fpq->connected)
			req = fuse_request_find(fpq, unique);
		if (req)
			err = fuse_lower_attach_req(req, lower);
		spin_unlock(&fpq->lock);
		if (req)
			break;
	}
	spin_unlock(&fc->lock);

	return err;
}

static int fuse_ioctl_passthrough_open(struct fuse_conn *fc, void __user *argp)
{
	struct fuse_passthrough_out arg;
	struct fuse_lower lower;
	int err;

	if (copy_from_user(&arg, argp, sizeof(arg)))
		return -EFAULT;
	if (arg.len || arg.vec)
		return -EINVAL;

	err = fuse_lower_init(&lower, fc, fget(arg.fd));
	if (err)
		return err;
	err = fuse_lower_attach(fc, arg.unique, &lower);
	if (err)
		fuse_lower_put(&lower);
	return err;
}

/**
 * fuse_backing_put - drop a reference to a registered file
 * @backing: the file with its id
 *
 * Context: Any.
 */
void fuse_backing_put(struct fuse_backing *backing)
{
	if (!refcount_dec_and_test(&backing->count))
		return;
	fuse_lower_put(&backing->lower);
	kfree(backing);
}

/* As many ids as the caller may have files open */
static int fuse_backing_add(struct fuse_conn *fc, struct fuse_backing *backing)
{
	int id;

	idr_preload(GFP_KERNEL);
	spin_lock(&fc->lock);
	if (!fc->connected)
		id = -ENOTCONN;
	else if (fc->backing_count >= rlimit(RLIMIT_NOFILE) &&
		 !capable(CAP_SYS_RESOURCE))
		id = -EMFILE;
	else
		id = idr_alloc_cyclic(&fc->backing_ids, backing, 1, INT_MAX,
				      GFP_ATOMIC);
	if (id > 0) {
		backing->lower.id = id;
		fc->backing_count++;
	}
	spin_unlock(&fc->lock);
	idr_preload_end();

	return id == -ENOSPC ? -EMFILE : id;
}

static int fuse_ioctl_backing_open(struct fuse_conn *fc, void __user *argp)
{
	struct fuse_backing_map map;
	struct fuse_backing *backing;
	int ret;

	if (copy_from_user(&map, argp, sizeof(map)))
		return -EFAULT;
	if (map.flags || map.padding)
		return -EINVAL;

	backing = kmalloc(sizeof(*backing), GFP_KERNEL_ACCOUNT);
	if (!backing)
		return -ENOMEM;
	refcount_set(&backing->count, 1);
	ret = fuse_lower_init(&backing->lower, fc, fget_raw(map.fd));
	if (ret) {
		kfree(backing);
		return ret;
	}

	ret = fuse_backing_add(fc, backing);
	if (ret < 0)
		fuse_backing_put(backing);
	return ret;
}

/* Open files keep the lower file that they opened by the id */
static int fuse_ioctl_backing_close(struct fuse_conn *fc, u32 __user *argp)
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

	fuse_backing_put(backing);
	return 0;
}

/**
 * fuse_backing_ioctl - the ioctls by which a server hands in lower files
 * @fud: device that the ioctl came in by, NULL if it is not mounted
 * @cmd: FUSE_DEV_IOC_PASSTHROUGH_OPEN, _BACKING_OPEN or _BACKING_CLOSE
 * @argp: its argument
 *
 * An ioctl that fails changes nothing: a server can still answer the open, and
 * gets the reads and writes.
 *
 * Context: Process context, takes fc->lock and the fpq->lock of each device.
 * Return: 0, the id for FUSE_DEV_IOC_BACKING_OPEN, or a negative error:
 * * -EPERM	- not mounted, passthrough was not negotiated, or the caller
 *		  lacks the capability that fuse.passthrough_privileged asks for
 * * -ENOTCONN	- the connection was aborted
 * * -EFAULT	- @argp can't be read
 * * -EINVAL	- a reserved word is set, the request is no open, the lower file
 *		  is not regular, lies on a pseudo file system, can't be mapped
 *		  or can't do what the opener's O_DIRECT or O_APPEND asks
 * * -EBADF	- no such descriptor, or not open for what the opener asked
 * * -EISDIR	- a directory
 * * -EOPNOTSUPP - the lower file has no read_iter or no write_iter
 * * -ELOOP	- the lower file system is stacked too deep, or is a FUSE mount
 *		  whose INIT is not answered
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
		return fuse_ioctl_passthrough_open(fud->fc, argp);
	case FUSE_DEV_IOC_BACKING_OPEN:
		return fuse_ioctl_backing_open(fud->fc, argp);
	case FUSE_DEV_IOC_BACKING_CLOSE:
		return fuse_ioctl_backing_close(fud->fc, argp);
	default:
		return -ENOTTY;
	}
}

/**
 * fuse_backing_free_ids - drop what the server has registered
 * @fc: connection that was aborted
 *
 * Context: Process context, takes fc->lock.
 */
void fuse_backing_free_ids(struct fuse_conn *fc)
{
	struct fuse_backing *backing;
	int id = 0;

	spin_lock(&fc->lock);
	while ((backing = idr_get_next(&fc->backing_ids, &id))) {
		idr_remove(&fc->backing_ids, id);
		spin_unlock(&fc->lock);
		fuse_backing_put(backing);
		cond_resched();
		spin_lock(&fc->lock);
	}
	fc->backing_count = 0;
	spin_unlock(&fc->lock);
}

/**
 * fuse_backing_answered - the server has answered an open
 * @args: the request; the last part of the answer is its fuse_open_out
 *
 * From here on the server may close the id.
 *
 * Context: Process context, while the request can't end otherwise.  Takes
 * fc->lock.
 */
void fuse_backing_answered(struct fuse_args *args)
{
	struct fuse_file *ff = args->ff;
	const struct fuse_open_out *out;
	struct fuse_conn *fc;

	if (!ff)
		return;
	fc = ff->fm->fc;
	out = args->out_args[args->out_numargs - 1].value;
	if (!fc->passthrough || !(out->open_flags & FOPEN_PASSTHROUGH))
		return;

	spin_lock(&fc->lock);
	ff->backing = idr_find(&fc->backing_ids, out->backing_id);
	if (ff->backing)
		refcount_inc(&ff->backing->count);
	spin_unlock(&fc->lock);
}

/**
 * fuse_passthrough_release - drop the lower file of a fuse_file, if it has one
 * @ff: file that nobody reads or writes any more, or never did
 *
 * Context: Any.
 */
void fuse_passthrough_release(struct fuse_file *ff)
{
	if (ff->lower.file)
		fuse_lower_put(&ff->lower);
	if (ff->backing)
		fuse_backing_put(ff->backing);
	ff->lower.file = NULL;
	ff->backing = NULL;
}

/* Device and inode number as stat(2) shows them, without asking a server */
static void fuse_lower_show(struct seq_file *m, struct fuse_lower *lower)
{
	struct inode *inode = file_inode(lower->file);
	fmode_t mode = lower->file->f_mode;
	const struct cred *old_cred;
	struct kstat stat;
	int err;

	old_cred = override_creds(lower->cred);
	err = vfs_getattr_nosec(&lower->file->f_path, &stat, STATX_INO,
				AT_STATX_DONT_SYNC);
	revert_creds(old_cred);
	if (err) {
		stat.dev = inode->i_sb->s_dev;
		stat.ino = inode->i_ino;
	}

	seq_printf(m, "passthrough:\t%u:%u %llu %s%s%s", MAJOR(stat.dev),
		   MINOR(stat.dev), stat.ino, mode & FMODE_PATH ? "path" : "",
		   mode & FMODE_READ ? "r" : "", mode & FMODE_WRITE ? "w" : "");
	if (lower->id)
		seq_printf(m, " id %d", lower->id);
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

	if (ff->lower.file)
		fuse_lower_show(m, &ff->lower);
}

/**
 * fuse_backing_show_ids - the registered files, for /proc/PID/fdinfo/FD
 * @m: where it is written
 * @fud: device, NULL if it is not mounted
 *
 * Context: Process context, takes fc->lock for each id.
 */
void fuse_backing_show_ids(struct seq_file *m, struct fuse_dev *fud)
{
	struct fuse_backing *backing;
	int id;

	for (id = 0; fud && !seq_has_overflowed(m); id++) {
		spin_lock(&fud->fc->lock);
		backing = idr_get_next(&fud->fc->backing_ids, &id);
		if (backing)
			refcount_inc(&backing->count);
		spin_unlock(&fud->fc->lock);
		if (!backing)
			break;
		fuse_lower_show(m, &backing->lower);
		fuse_backing_put(backing);
		cond_resched();
	}
}
