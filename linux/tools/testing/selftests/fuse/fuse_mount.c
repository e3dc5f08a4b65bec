// SPDX-License-Identifier: GPL-2.0
/*
 * A small FUSE server for tests: mounts, threads, and their end.  See
 * fuse_server.h.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/wait.h>

#include "fuse_server.h"

#define FUSECTL		SRV_BASE "/fusectl"

int srv_namespace(void)
{
	if (unshare(CLONE_NEWNS) ||
	    mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL))
		return -errno;
	if (mount("tmpfs", SRV_BASE, "tmpfs", 0, NULL) ||
	    mkdir(SRV_LOWER, 0777) || mkdir(SRV_MNT, 0777) ||
	    mkdir(FUSECTL, 0777) ||
	    mount("fusectl", FUSECTL, "fusectl", 0, NULL))
		return -errno;
	return 0;
}

/* How mkfs of @type makes a file system whatever the disk holds */
static const char *mkfs_options(const char *type)
{
	if (!strcmp(type, "xfs") || !strcmp(type, "btrfs"))
		return "-q -f";
	return type[0] == 'e' && type[1] == 'x' && type[2] == 't' ? "-q -F" : "";
}

static int mount_disk(const char *disk, const char *dir, const char *type,
		      const char *options)
{
	char command[128];

	if (!mount(disk, dir, type, 0, options))
		return 0;
	snprintf(command, sizeof(command), "mkfs.%s %s %s >&2", type,
		 mkfs_options(type), disk);
	if (system(command))
		return -EIO;
	return srv_result(mount(disk, dir, type, 0, options));
}

static int mount_overlay(const char *base)
{
	static const char * const part[] = { "lower", "upper", "work" };
	char options[256];
	int i, dir, err;

	mkdir(base, 0777);
	err = mount_disk("/dev/ram0", base, "ext4", NULL);
	if (err)
		return err;
	dir = open(base, O_PATH | O_DIRECTORY);
	for (i = 0; i < 3; i++)
		mkdirat(dir, part[i], 0777);
	close(dir);
	snprintf(options, sizeof(options),
		 "lowerdir=%s/lower,upperdir=%s/upper,workdir=%s/work",
		 base, base, base);
	return srv_result(mount("overlay", SRV_LOWER, "overlay", 0, options));
}

/* Those that a disk of a number is kept for */
static int mount_other(const char *type)
{
	static const char *const other[] = { "btrfs", "vfat", "exfat", "ext2" };
	char disk[32];
	int i;

	for (i = 0; i < 4; i++) {
		snprintf(disk, sizeof(disk), "/dev/ram%d", 4 + i);
		if (!strcmp(type, other[i]))
			return mount_disk(disk, SRV_LOWER, type, NULL);
	}
	return -ENODEV;
}

int srv_mount_lower(const char *type)
{
	if (!strcmp(type, "tmpfs"))
		return srv_result(mount(type, SRV_LOWER, type, 0, "size=64m"));
	if (!strcmp(type, "ext4"))
		return mount_disk("/dev/ram0", SRV_LOWER, type, NULL);
	if (!strcmp(type, "xfs"))
		return mount_disk("/dev/ram1", SRV_LOWER, type, NULL);
	if (!strcmp(type, "xfs-quota"))
		return mount_disk("/dev/ram2", SRV_LOWER, "xfs", "usrquota");
	if (!strcmp(type, "ext4-disk"))
		return mount_disk("/dev/vda", SRV_LOWER, "ext4", NULL);
	if (!strcmp(type, "xfs-disk"))
		return mount_disk("/dev/vdb", SRV_LOWER, "xfs", NULL);
	if (!strcmp(type, "overlay"))
		return mount_overlay(SRV_BASE "/ext4");
	if (!strcmp(type, "nfs"))
		return srv_result(mount("127.0.0.1:/export", SRV_LOWER, "nfs4",
					0, "addr=127.0.0.1,clientaddr=127.0.0.1"));
	return mount_other(type);
}

struct srv *srv_new(void)
{
	struct srv *srv = mmap(NULL, sizeof(*srv), PROT_READ | PROT_WRITE,
			       MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	pthread_mutexattr_t mutex;
	pthread_condattr_t cond;
	int i;

	if (srv == MAP_FAILED)
		return NULL;
	pthread_mutexattr_init(&mutex);
	pthread_mutexattr_setpshared(&mutex, PTHREAD_PROCESS_SHARED);
	pthread_mutex_init(&srv->lock, &mutex);
	pthread_condattr_init(&cond);
	pthread_condattr_setpshared(&cond, PTHREAD_PROCESS_SHARED);
	pthread_condattr_setclock(&cond, CLOCK_MONOTONIC);
	pthread_cond_init(&srv->served, &cond);
	for (i = 0; i < SRV_MAX_NODES; i++)
		srv->node[i].fd = -1;
	for (i = 0; i < SRV_MAX_THREADS; i++)
		srv->thread[i].dev = -1;
	srv->lower = -1;
	srv->dev = -1;
	srv->abort_fd = -1;
	return srv;
}

int srv_clone(struct srv *srv)
{
	__u32 from = srv->dev;
	int err, dev = open("/dev/fuse", O_RDWR | O_CLOEXEC);

	if (dev < 0)
		return -errno;
	err = srv_result(ioctl(dev, FUSE_DEV_IOC_CLONE, &from));
	if (err < 0) {
		close(dev);
		return err;
	}
	return dev;
}

/* Asking for cached attributes of the root sends no request. */
static int open_abort(const char *mnt)
{
	char path[64];
	struct statx st;

	if (statx(AT_FDCWD, mnt, AT_STATX_DONT_SYNC, 0, &st))
		return -errno;
	snprintf(path, sizeof(path), FUSECTL "/%u/abort", st.stx_dev_minor);
	return srv_result(open(path, O_WRONLY | O_CLOEXEC));
}

int srv_abort(struct srv *srv)
{
	return write(srv->abort_fd, "1", 1) == 1 ? 0 : -errno;
}

/*
 * In a process group of its own, which the harness does not kill.  A process
 * that exits may wait for its own server, whose threads are gone.
 */
static int start_guard(struct srv *srv)
{
	struct timespec left = { .tv_sec = srv->timeout ?: 56 };
	pid_t pid = fork();
	sigset_t exits;

	if (pid) {
		srv->guard = pid;
		return pid < 0 ? -errno : 0;
	}
	setpgid(0, 0);
	sigemptyset(&exits);
	sigaddset(&exits, SIGTERM);
	sigprocmask(SIG_BLOCK, &exits, NULL);
	prctl(PR_SET_PDEATHSIG, SIGTERM);
	close_range(0, srv->abort_fd - 1, 0);
	close_range(srv->abort_fd + 1, ~0U, 0);
	sigtimedwait(&exits, NULL, &left);
	srv_abort(srv);
	_exit(0);
}

static void *serve_loop(void *arg)
{
	struct srv_thread *thread = arg;

	while (!srv_read_request(thread->dev, &thread->req))
		srv_serve(thread->srv, &thread->req);
	return NULL;
}

static int start_threads(struct srv *srv)
{
	sigset_t all, saved;
	unsigned int i;
	int err = 0;

	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &saved);
	for (i = 0; i < srv->threads && !err; i++) {
		struct srv_thread *thread = &srv->thread[i];

		thread->srv = srv;
		thread->dev = i ? srv_clone(srv) : srv->dev;
		if (thread->dev < 0)
			err = thread->dev;
		else
			err = -pthread_create(&thread->id, NULL, serve_loop,
					      thread);
	}
	pthread_sigmask(SIG_SETMASK, &saved, NULL);
	return err;
}

static void join_threads(struct srv *srv)
{
	unsigned int i;

	for (i = 0; i < srv->threads; i++)
		pthread_join(srv->thread[i].id, NULL);
}

static int start_child(struct srv *srv)
{
	pid_t pid = fork();

	if (pid) {
		srv->pid = pid;
		return pid < 0 ? -errno : 0;
	}
	if (setgroups(0, NULL) || setresgid(srv->uid, srv->uid, srv->uid) ||
	    setresuid(srv->uid, srv->uid, srv->uid))
		_exit(1);
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	if (!start_threads(srv))
		join_threads(srv);
	_exit(0);
}

int srv_start(struct srv *srv, const char *mnt)
{
	char options[256];
	int err;

	if (srv->by_hand)
		srv->threads = 0;
	else if (!srv->threads)
		srv->threads = 1;
	srv->dev = open("/dev/fuse", O_RDWR | O_CLOEXEC);
	srv->node[0].fd = dup(srv->lower);
	if (srv->dev < 0 || srv->node[0].fd < 0)
		return -errno;
	snprintf(options, sizeof(options),
		 "fd=%d,rootmode=40755,user_id=0,group_id=0%s%s", srv->dev,
		 srv->options ? "," : "", srv->options ?: "");
	snprintf(srv->mnt, sizeof(srv->mnt), "%s", mnt);
	if (mount("fuse_server", mnt, "fuse", MS_NOSUID | MS_NODEV, options))
		return -errno;
	srv->abort_fd = open_abort(mnt);
	if (srv->abort_fd < 0)
		return srv->abort_fd;
	err = start_guard(srv);
	if (!err && !srv->hold_init)
		err = srv_init(srv);
	if (err)
		return err;
	return srv->uid ? start_child(srv) : start_threads(srv);
}

static void close_all(struct srv *srv)
{
	int i;

	for (i = 1; i < SRV_MAX_THREADS; i++)
		if (srv->thread[i].dev >= 0 && !srv->pid)
			close(srv->thread[i].dev);
	for (i = 0; i < SRV_MAX_NODES; i++)
		if (srv->node[i].fd >= 0 && (!i || !srv->pid))
			close(srv->node[i].fd);
	for (i = 0; i < SRV_MAX_FD; i++)
		if (srv->file[i].open && !srv->pid)
			close(i);
	if (srv->dev >= 0)
		close(srv->dev);
	close(srv->abort_fd);
}

int srv_unmount(const char *mnt)
{
	struct timespec now, end;
	int err;

	clock_gettime(CLOCK_MONOTONIC, &end);
	end.tv_sec += 10;
	do {
		err = srv_result(umount2(mnt, 0));
		if (err != -EBUSY)
			break;
		sched_yield();
		clock_gettime(CLOCK_MONOTONIC, &now);
	} while (now.tv_sec < end.tv_sec);
	return err;
}

int srv_stop(struct srv *srv)
{
	int err = srv_unmount(srv->mnt);

	if (err)
		umount2(srv->mnt, MNT_DETACH);
	srv_abort(srv);
	if (srv->pid) {
		kill(srv->pid, SIGKILL);
		waitpid(srv->pid, NULL, 0);
	} else {
		join_threads(srv);
	}
	kill(srv->guard, SIGKILL);
	waitpid(srv->guard, NULL, 0);
	close_all(srv);
	munmap(srv, sizeof(*srv));
	return err;
}

/* An open in a thread */

static void *open_it(void *arg)
{
	struct srv_opener *opener = arg;

	opener->result = srv_result(open(opener->path, opener->flags, 0644));
	return NULL;
}

int srv_opener_start(struct srv_opener *opener, const char *path, int flags)
{
	opener->path = path;
	opener->flags = flags;
	return -pthread_create(&opener->id, NULL, open_it, opener);
}

int srv_opener_wait(struct srv_opener *opener)
{
	pthread_join(opener->id, NULL);
	return opener->result;
}
