// SPDX-License-Identifier: GPL-2.0
/*
 * Is data that a sync of a passthrough file reported safe on the disk?
 *
 *	passthrough_power write DIRECTORY	says "synced", and waits for the end
 *	passthrough_power check DIRECTORY	in the next life of the machine
 *
 * DIRECTORY is where a file system of a disk is mounted.  The machine has to
 * lose its power when the first has said its word.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/uio.h>
#include <unistd.h>

#include "../kselftest.h"
#include "fuse_server.h"

#define SIZE	(64 << 10)

enum server { HAS_FSYNC, NO_FSYNC, IS_DEAD, SYNC_MOUNT, SERVERS };

static const char *const server_name[] = { "fsync", "enosys", "dead", "sync-mount" };

enum how { FSYNC, FDATASYNC, DSYNC, SYNC, RWF, MSYNC, NOTHING, HOWS };

static const char *const how_name[] = {
	"fsync", "fdatasync", "O_DSYNC", "O_SYNC", "RWF_DSYNC", "msync",
	"nothing",
};

static char bytes[SIZE];

static void make_bytes(enum server server, enum how how, enum srv_mode mode)
{
	unsigned int i, x = 1 + server * 100 + how * 10 + mode;

	for (i = 0; i < SIZE; i++) {
		x = x * 1103515245 + 12345;
		bytes[i] = x >> 16;
	}
}

static void name_file(char *path, const char *dir, enum server server,
		      enum how how, enum srv_mode mode)
{
	sprintf(path, "%s/%s-%s-%d", dir, server_name[server], how_name[how],
		mode);
}

static int no_fsync(struct srv *srv, struct srv_req *req)
{
	return req->in.opcode == FUSE_FSYNC ? -ENOSYS : SRV_GO_ON;
}

static bool store(int fd)
{
	char *map = mmap(NULL, SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);

	if (map == MAP_FAILED)
		return false;
	memcpy(map, bytes, SIZE);
	return !msync(map, SIZE, MS_SYNC) && !munmap(map, SIZE);
}

static bool write_and_sync(int fd, enum how how)
{
	struct iovec iov = { bytes, SIZE };

	switch (how) {
	case MSYNC:
		return store(fd);
	case RWF:
		return pwritev2(fd, &iov, 1, 0, RWF_DSYNC) == SIZE;
	case FSYNC:
		return pwrite(fd, bytes, SIZE, 0) == SIZE && !fsync(fd);
	case FDATASYNC:
		return pwrite(fd, bytes, SIZE, 0) == SIZE && !fdatasync(fd);
	default:
		return pwrite(fd, bytes, SIZE, 0) == SIZE;
	}
}

static int open_flags(enum how how)
{
	if (how == DSYNC)
		return O_CREAT | O_RDWR | O_DSYNC;
	if (how == SYNC)
		return O_CREAT | O_RDWR | O_SYNC;
	return O_CREAT | O_RDWR;
}

static void write_with(int lower, enum server server, enum srv_mode mode)
{
	struct srv *srv = srv_new();
	int how, fd[HOWS];
	char path[128];

	if (!srv)
		ksft_exit_fail_msg("no memory\n");
	srv->lower = lower;
	srv->mode = mode;
	if (server == NO_FSYNC)
		srv->on_request = no_fsync;
	if (srv_start(srv, SRV_MNT))
		ksft_exit_fail_msg("no mount\n");
	if (server == SYNC_MOUNT &&
	    mount(NULL, SRV_MNT, NULL, MS_REMOUNT | MS_SYNCHRONOUS, NULL))
		ksft_exit_fail_msg("no remount\n");
	for (how = 0; how < HOWS; how++) {
		name_file(path, SRV_MNT, server, how, mode);
		fd[how] = open(path, open_flags(how), 0600);
		if (fd[how] < 0 || (how == MSYNC && ftruncate(fd[how], SIZE)))
			ksft_exit_fail_msg("%s does not open\n", path);
	}
	if (server == IS_DEAD && srv_abort(srv))
		ksft_exit_fail_msg("no abort\n");
	for (how = 0; how < HOWS; how++) {
		make_bytes(server, how, mode);
		if (!write_and_sync(fd[how], how))
			ksft_exit_fail_msg("%s, %s: %s\n", server_name[server],
					   how_name[how], strerror(errno));
	}
	if (srv->seen[FUSE_WRITE])
		ksft_exit_fail_msg("the server saw a WRITE\n");
}

/* All is left open: closing might sync as well. */
static void write_all(const char *dir)
{
	int server;

	if (srv_namespace())
		ksft_exit_fail_msg("no namespace\n");
	for (server = 0; server < SERVERS; server++) {
		write_with(open(dir, O_PATH | O_DIRECTORY), server,
			   SRV_PASSTHROUGH);
		write_with(open(dir, O_PATH | O_DIRECTORY), server,
			   SRV_BACKING_ID);
	}
	printf("synced\n");
	fflush(stdout);
	pause();
}

static bool is_there(const char *dir, enum server server, enum how how,
		     enum srv_mode mode)
{
	static char back[SIZE];
	char path[128];
	bool there;
	int fd;

	name_file(path, dir, server, how, mode);
	make_bytes(server, how, mode);
	fd = open(path, O_RDONLY);
	there = fd >= 0 && read(fd, back, SIZE) == SIZE &&
		!memcmp(bytes, back, SIZE);
	close(fd);
	return there;
}

static void check(const char *dir)
{
	int server, how, mode;

	ksft_print_header();
	ksft_set_plan(SERVERS * HOWS * 2);
	for (server = 0; server < SERVERS; server++)
		for (how = 0; how < HOWS; how++)
			for (mode = SRV_PASSTHROUGH; mode <= SRV_BACKING_ID; mode++)
				ksft_test_result(is_there(dir, server, how, mode) ==
						 (how != NOTHING ||
						  server == SYNC_MOUNT),
						 "server %s, %s, mode %d\n",
						 server_name[server],
						 how_name[how], mode);
	ksft_finished();
}

int main(int argc, char **argv)
{
	if (argc != 3)
		ksft_exit_fail_msg("write or check, and a directory\n");
	if (!strcmp(argv[1], "write"))
		write_all(argv[2]);
	check(argv[2]);
}
