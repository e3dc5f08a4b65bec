// SPDX-License-Identifier: GPL-2.0
/*
 * Lower files of kinds that few kernels have, disks that fail, and a listener
 * that opens what it hears of.  For a kernel with btrfs, configfs, functionfs,
 * fanotify and dm-flakey, and a system with dmsetup.
 */
#define _GNU_SOURCE
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/fanotify.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/sysmacros.h>
#include <linux/btrfs.h>
#include <linux/usb/functionfs.h>

#include "fuse_test_files.h"

#define FILE_MNT	SRV_MNT "/file"
#define SUBVOLUME	SRV_LOWER "/subvolume"
#define CONFIGFS	SRV_BASE "/configfs"
#define FUNCTIONFS	SRV_BASE "/functionfs"
#define MAPPED		"/dev/mapper/passthrough"

static void serve(struct __test_metadata *_metadata, struct srv **srv,
		  const char *dir, enum way way)
{
	*srv = srv_new();
	ASSERT_NE(NULL, *srv);
	(*srv)->lower = open(dir, O_PATH | O_DIRECTORY);
	ASSERT_LE(0, (*srv)->lower);
	(*srv)->mode = mode_for(way);
	(*srv)->valid = 3600;
	ASSERT_EQ(0, srv_start(*srv, SRV_MNT));
	close((*srv)->lower);
}

FIXTURE(btrfs) {
	struct srv *srv;
};

FIXTURE_VARIANT(btrfs) {
	enum way way;
};

FIXTURE_VARIANT_ADD(btrfs, by_request) { BY_REQUEST };
FIXTURE_VARIANT_ADD(btrfs, by_id) { BY_ID };

FIXTURE_SETUP(btrfs)
{
	make_data();
	ASSERT_EQ(0, srv_namespace());
	ASSERT_EQ(0, srv_mount_lower("btrfs"));
}

FIXTURE_TEARDOWN(btrfs)
{
	EXPECT_EQ(0, srv_stop(self->srv));
	EXPECT_EQ(0, srv_unmount(SRV_LOWER));
}

/* Takes all the room but for a little */
static void fill_disk(struct __test_metadata *_metadata, const char *path)
{
	int fd = open(path, O_CREAT | O_TRUNC | O_RDWR, 0600);
	off_t size = 0, step = 64 << 20;

	ASSERT_LE(0, fd);
	for (; step >= 1 << 20; step /= 2)
		while (!fallocate(fd, 0, size, step))
			size += step;
	ASSERT_EQ(0, ftruncate(fd, size - (3 << 20)));
	ASSERT_EQ(0, fsync(fd));
	close(fd);
	sync();
}

/* What is in the file is what the write says. */
TEST_F(btrfs, full_disk)
{
	const size_t len = 32 << 20;
	char *large = mmap(NULL, len, PROT_READ | PROT_WRITE,
			   MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	ssize_t n;
	int fd;

	ASSERT_NE(MAP_FAILED, large);
	fill_disk(_metadata, SRV_LOWER "/filler");
	ASSERT_TRUE(make_lower(LOWER, 0600, 0));
	serve(_metadata, &self->srv, SRV_LOWER, variant->way);
	fd = open(FILE_MNT, O_RDWR);
	ASSERT_LE(0, fd);
	n = srv_result(write(fd, large, len));
	TH_LOG("%zd of %zu bytes written", n, len);
	EXPECT_LT(0, n);
	EXPECT_LT(n, (ssize_t)len);
	EXPECT_EQ(n, size_of(fd));
	EXPECT_EQ(n, lseek(fd, 0, SEEK_CUR));
	EXPECT_EQ(-ENOSPC, srv_result(write(fd, large, len)));
	EXPECT_EQ(0, self->srv->seen[FUSE_WRITE]);
	close(fd);
	EXPECT_EQ(0, unlink(SRV_LOWER "/filler"));
	EXPECT_EQ(0, unlink(LOWER));
}

static bool fdinfo_names(int fd, const struct stat *st)
{
	unsigned int major, minor;
	unsigned long long ino;
	char path[64], line[128];
	bool named = false;
	FILE *f;

	sprintf(path, "/proc/self/fdinfo/%d", fd);
	f = fopen(path, "r");
	while (f && fgets(line, sizeof(line), f))
		if (sscanf(line, "passthrough:\t%u:%u %llu", &major, &minor,
			   &ino) == 3)
			named = makedev(major, minor) == st->st_dev &&
				ino == st->st_ino;
	if (f)
		fclose(f);
	return named;
}

/* Each subvolume has a device number of its own. */
TEST_F(btrfs, subvolume)
{
	struct btrfs_ioctl_vol_args args = { .name = "subvolume" };
	int fd, dir = open(SRV_LOWER, O_RDONLY | O_DIRECTORY);
	struct stat st, root;

	ASSERT_LE(0, dir);
	if (access(SUBVOLUME, F_OK))
		ASSERT_EQ(0, ioctl(dir, BTRFS_IOC_SUBVOL_CREATE, &args));
	close(dir);
	ASSERT_TRUE(make_lower(SUBVOLUME "/file", 0600, BLOCK));
	serve(_metadata, &self->srv, SUBVOLUME, variant->way);
	ASSERT_EQ(0, stat(SUBVOLUME "/file", &st));
	ASSERT_EQ(0, stat(SRV_LOWER, &root));
	ASSERT_NE(root.st_dev, st.st_dev);
	fd = open(FILE_MNT, O_RDONLY);
	ASSERT_LE(0, fd);
	ASSERT_EQ(BLOCK, read(fd, back, BLOCK));
	EXPECT_TRUE(fdinfo_names(fd, &st));
	close(fd);
}

/* Refused: registered, and attached to the request that takes it */
FIXTURE(refused) {
	struct srv *srv;
};

FIXTURE_SETUP(refused)
{
	make_data();
	ASSERT_EQ(0, srv_namespace());
	ASSERT_EQ(0, srv_mount_lower("tmpfs"));
	ASSERT_TRUE(make_lower(LOWER, 0600, BLOCK));
	serve(_metadata, &self->srv, SRV_LOWER, BY_REQUEST);
}

FIXTURE_TEARDOWN(refused)
{
	EXPECT_EQ(0, srv_stop(self->srv));
	EXPECT_EQ(0, srv_unmount(SRV_LOWER));
}

static int attach_other(struct srv *srv, struct srv_req *req,
			struct fuse_entry_out *entry, struct fuse_open_out *out)
{
	return srv_attach(req->dev, req->in.unique, *(int *)srv->data);
}

static void is_refused(struct __test_metadata *_metadata, struct srv *srv,
		       int fd)
{
	ASSERT_LE(0, fd);
	EXPECT_EQ(-EINVAL, srv_backing_open(srv->dev, fd));
	srv->data = &fd;
	srv->on_open = attach_other;
	EXPECT_EQ(-EINVAL, srv_result(open(FILE_MNT, O_RDONLY)));
	close(fd);
}

TEST_F(refused, configfs)
{
	ASSERT_EQ(0, mkdir(CONFIGFS, 0700));
	ASSERT_EQ(0, mount("configfs", CONFIGFS, "configfs", 0, NULL));
	ASSERT_EQ(0, mkdir(CONFIGFS "/nullb/disk", 0700));
	is_refused(_metadata, self->srv,
		   open(CONFIGFS "/nullb/disk/size", O_RDWR));
	EXPECT_EQ(0, rmdir(CONFIGFS "/nullb/disk"));
	EXPECT_EQ(0, umount(CONFIGFS));
}

/* One interface with one endpoint, at full speed alone; 32 bytes, no holes */
static const struct {
	struct usb_functionfs_descs_head_v2 head;
	__le32 count;
	struct usb_interface_descriptor interface;
	struct usb_endpoint_descriptor_no_audio endpoint;
} descriptors = {
	.head = {
		.magic = FUNCTIONFS_DESCRIPTORS_MAGIC_V2,
		.length = sizeof(descriptors),
		.flags = FUNCTIONFS_HAS_FS_DESC,
	},
	.count = 2,
	.interface = {
		.bLength = sizeof(descriptors.interface),
		.bDescriptorType = USB_DT_INTERFACE,
		.bNumEndpoints = 1,
		.bInterfaceClass = USB_CLASS_VENDOR_SPEC,
	},
	.endpoint = {
		.bLength = sizeof(descriptors.endpoint),
		.bDescriptorType = USB_DT_ENDPOINT,
		.bEndpointAddress = 1 | USB_DIR_IN,
		.bmAttributes = USB_ENDPOINT_XFER_BULK,
	},
};

static const struct usb_functionfs_strings_head strings = {
	.magic = FUNCTIONFS_STRINGS_MAGIC,
	.length = sizeof(strings),
};

#define GADGET		CONFIGFS "/usb_gadget/gadget"

TEST_F(refused, functionfs)
{
	int control;

	ASSERT_EQ(0, mkdir(CONFIGFS, 0700));
	ASSERT_EQ(0, mkdir(FUNCTIONFS, 0700));
	ASSERT_EQ(0, mount("configfs", CONFIGFS, "configfs", 0, NULL));
	ASSERT_EQ(0, mkdir(GADGET, 0700));
	ASSERT_EQ(0, mkdir(GADGET "/functions/ffs.it", 0700));
	ASSERT_EQ(0, mount("it", FUNCTIONFS, "functionfs", 0, NULL));
	control = open(FUNCTIONFS "/ep0", O_RDWR);
	ASSERT_LE(0, control);
	ASSERT_EQ((ssize_t)sizeof(descriptors),
		  write(control, &descriptors, sizeof(descriptors)));
	ASSERT_EQ((ssize_t)sizeof(strings),
		  write(control, &strings, sizeof(strings)));
	is_refused(_metadata, self->srv, open(FUNCTIONFS "/ep1", O_RDWR));
	close(control);
	EXPECT_EQ(0, umount(FUNCTIONFS));
	EXPECT_EQ(0, rmdir(GADGET "/functions/ffs.it"));
	EXPECT_EQ(0, rmdir(GADGET));
	EXPECT_EQ(0, umount(CONFIGFS));
}

/* A listener that is asked about each open, and gets a descriptor with it */

struct listener {
	int fd;
	int stop[2];
	int heard;
};

static void *listen_and_allow(void *arg)
{
	struct listener *l = arg;
	struct pollfd poll_fd[2] = { { l->fd, POLLIN, 0 },
				     { l->stop[0], POLLIN, 0 } };
	struct fanotify_event_metadata event;

	while (poll(poll_fd, 2, -1) > 0 && !poll_fd[1].revents) {
		struct fanotify_response response = { .response = FAN_ALLOW };

		if (read(l->fd, &event, sizeof(event)) != sizeof(event))
			break;
		l->heard++;
		response.fd = event.fd;
		if (write(l->fd, &response, sizeof(response)) < 0)
			break;
		close(event.fd);
	}
	return NULL;
}

/* The answer names an id, so that the server opens nothing itself. */
static int answer_with_id(struct srv *srv, struct srv_req *req)
{
	struct fuse_open_out out = { .open_flags = FOPEN_PASSTHROUGH,
				     .backing_id = *(int *)srv->data };

	if (req->in.opcode == FUSE_RELEASE)
		return srv_reply(req, 0, NULL, 0) ?: SRV_TAKEN;
	if (req->in.opcode != FUSE_OPEN)
		return SRV_GO_ON;
	return srv_reply(req, 0, &out, sizeof(out)) ?: SRV_TAKEN;
}

/* Its own descriptors make no event, on the lower file either: it would hang. */
TEST(listener_on_both_file_systems)
{
	struct listener l = { .fd = fanotify_init(FAN_CLASS_CONTENT, O_RDONLY) };
	pthread_t thread;
	struct srv *srv;
	int fd, id;

	make_data();
	ASSERT_LE(0, l.fd);
	ASSERT_EQ(0, pipe(l.stop));
	ASSERT_EQ(0, srv_namespace());
	ASSERT_EQ(0, srv_mount_lower("ext4"));
	ASSERT_TRUE(make_lower(LOWER, 0600, BLOCK));
	serve(_metadata, &srv, SRV_LOWER, BY_ID);
	fd = open(LOWER, O_RDWR);
	id = srv_backing_open(srv->dev, fd);
	ASSERT_LT(0, id);
	close(fd);
	srv->data = &id;
	srv->on_request = answer_with_id;
	ASSERT_EQ(0, fanotify_mark(l.fd, FAN_MARK_ADD | FAN_MARK_FILESYSTEM,
				   FAN_OPEN_PERM, AT_FDCWD, SRV_LOWER));
	ASSERT_EQ(0, fanotify_mark(l.fd, FAN_MARK_ADD | FAN_MARK_FILESYSTEM,
				   FAN_OPEN_PERM, AT_FDCWD, SRV_MNT));
	ASSERT_EQ(0, pthread_create(&thread, NULL, listen_and_allow, &l));
	fd = open(FILE_MNT, O_RDONLY);
	EXPECT_LE(0, fd);
	EXPECT_EQ(BLOCK, read(fd, back, BLOCK));
	close(fd);
	/* The opener's open of the FUSE file, and of the lower one */
	ASSERT_EQ(1, write(l.stop[1], "", 1));
	ASSERT_EQ(0, pthread_join(thread, NULL));
	EXPECT_EQ(2, l.heard);
	close(l.fd);
	EXPECT_EQ(0, srv_backing_close(srv->dev, id));
	EXPECT_EQ(0, srv_stop(srv));
	EXPECT_EQ(0, srv_unmount(SRV_LOWER));
}

/* A disk that stops taking writes */

FIXTURE(broken_disk) {
	struct srv *srv;
	const char *path;
};

FIXTURE_VARIANT(broken_disk) {
	enum way way;
};

FIXTURE_VARIANT_ADD(broken_disk, bare) { BARE };
FIXTURE_VARIANT_ADD(broken_disk, by_request) { BY_REQUEST };
FIXTURE_VARIANT_ADD(broken_disk, by_id) { BY_ID };

/* Without udev it makes the device node itself */
static bool map_disk(const char *arguments)
{
	char command[256];

	snprintf(command, sizeof(command), "DM_DISABLE_UDEV=1 dmsetup %s >&2",
		 arguments);
	return !system(command);
}

#define DISK	"--table '0 131072 flakey /dev/ram2 0 "

static bool make_disk(void)
{
	return map_disk("create passthrough " DISK "60 0'");
}

static bool change_disk(const char *load)
{
	return map_disk("suspend --nolockfs passthrough") && map_disk(load) &&
	       map_disk("resume passthrough");
}

static bool break_disk(void)
{
	return change_disk("load passthrough " DISK "0 60 1 error_writes'");
}

static bool mend_disk(void)
{
	return change_disk("load passthrough " DISK "60 0'");
}

/* The lower file is on it, all written back */
static void use_disk(struct __test_metadata *_metadata)
{
	make_data();
	ASSERT_EQ(0, srv_namespace());
	ASSERT_TRUE(make_disk());
	ASSERT_EQ(0, system("mkfs.vfat " MAPPED " >&2"));
	ASSERT_EQ(0, mount(MAPPED, SRV_LOWER, "vfat", 0, NULL));
	ASSERT_TRUE(make_lower(LOWER, 0600, 4 * BLOCK));
	sync();
}

FIXTURE_SETUP(broken_disk)
{
	use_disk(_metadata);
	self->path = variant->way == BARE ? LOWER : FILE_MNT;
	if (variant->way != BARE)
		serve(_metadata, &self->srv, SRV_LOWER, variant->way);
}

FIXTURE_TEARDOWN(broken_disk)
{
	if (self->srv)
		EXPECT_EQ(0, srv_stop(self->srv));
	EXPECT_EQ(0, srv_unmount(SRV_LOWER));
	EXPECT_TRUE(map_disk("remove passthrough"));
}

/* Writes through both, and loses what they wrote; says what fsync says then */
static void write_and_lose(struct __test_metadata *_metadata, int first,
			   int second, int *result)
{
	ASSERT_LE(0, first);
	ASSERT_LE(0, second);
	ASSERT_EQ(BLOCK, pwrite(first, data + 7, BLOCK, 0));
	ASSERT_EQ(BLOCK, pwrite(second, data + 7, BLOCK, BLOCK));
	ASSERT_TRUE(break_disk());
	result[0] = srv_result(fsync(first));
	ASSERT_TRUE(mend_disk());
	result[1] = srv_result(fsync(second));
	result[2] = srv_result(fsync(first));
	result[3] = srv_result(fsync(second));
	close(first);
	close(second);
}

/* What could not be written is told once to each that had the file open. */
TEST_F(broken_disk, each_opener_is_told_once)
{
	int result[4];

	write_and_lose(_metadata, open(self->path, O_RDWR),
		       open(self->path, O_RDWR), result);
	EXPECT_EQ(-EIO, result[0]);
	EXPECT_EQ(-EIO, result[1]);
	EXPECT_EQ(0, result[2]);
	EXPECT_EQ(0, result[3]);
	check_seen(_metadata, self->srv, variant->way, FUSE_WRITE);
}

/* A server that has one descriptor for all its openers */
static int share_one(struct srv *srv, struct srv_req *req)
{
	struct fuse_open_out out = {};
	int err, shared = *(int *)srv->data;

	switch (req->in.opcode) {
	case FUSE_OPEN:
		err = srv_attach(req->dev, req->in.unique, shared);
		srv_reply(req, err, &out, err ? 0 : sizeof(out));
		return SRV_TAKEN;
	case FUSE_FSYNC:
		srv_reply(req, srv_result(fsync(shared)), NULL, 0);
		return SRV_TAKEN;
	case FUSE_RELEASE:
		srv_reply(req, 0, NULL, 0);
		return SRV_TAKEN;
	default:
		return SRV_GO_ON;
	}
}

/* It is told once itself, and so is the first that asks it. */
TEST(broken_disk_and_a_shared_descriptor)
{
	int shared, result[4];
	struct srv *srv;

	use_disk(_metadata);
	shared = open(LOWER, O_RDWR);
	serve(_metadata, &srv, SRV_LOWER, BY_REQUEST);
	srv->data = &shared;
	srv->on_request = share_one;
	write_and_lose(_metadata, open(FILE_MNT, O_RDWR),
		       open(FILE_MNT, O_RDWR), result);
	EXPECT_EQ(-EIO, result[0]);
	EXPECT_EQ(0, result[1]);
	EXPECT_EQ(0, srv->seen[FUSE_WRITE]);
	EXPECT_EQ(0, srv_stop(srv));
	close(shared);
	EXPECT_EQ(0, srv_unmount(SRV_LOWER));
	EXPECT_TRUE(map_disk("remove passthrough"));
}

/* A synced write is told at once. */
TEST_F(broken_disk, synced_write)
{
	int fd = open(self->path, O_RDWR | O_DSYNC);

	ASSERT_LE(0, fd);
	ASSERT_EQ(BLOCK, pwrite(fd, data + 7, BLOCK, 0));
	ASSERT_TRUE(break_disk());
	EXPECT_EQ(-EIO, srv_result(pwrite(fd, data + 9, BLOCK, 0)));
	close(fd);
	check_seen(_metadata, self->srv, variant->way, FUSE_WRITE);
}

TEST_HARNESS_MAIN
