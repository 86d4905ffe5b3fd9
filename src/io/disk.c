/*
 * disk.c: the machine's files behind the vtable of disk.h.
 */
#include "io/disk.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include "base/fork.h"
#include "base/log.h"
#include "base/mem.h"
#include "io/disk_priv.h"
#include "io/sock.h"

static int fd_of(const struct mc_disk_file *file)
{
	return ((const struct mc_disk_real_file *)file)->fd;
}

/* ---- files ---- */

/* O_NONBLOCK keeps the opening of a FIFO from waiting; io_uring would pass it on to reads of
 * files, so it is taken off again. */
static int open_fd(const char *path, uint32_t flags, uint32_t mode)
{
	int how = O_CLOEXEC | O_NOCTTY | O_NONBLOCK, now, fd;

	if ((flags & MC_DISK_READ) && (flags & MC_DISK_WRITE))
		how |= O_RDWR;
	else
		how |= flags & MC_DISK_WRITE ? O_WRONLY : O_RDONLY;
	how |= flags & MC_DISK_CREATE ? O_CREAT : 0;
	how |= flags & MC_DISK_EXCL ? O_EXCL : 0;
	how |= flags & MC_DISK_DIRECT ? O_DIRECT : 0;
	fd = open(path, how, (mode_t)mode);
	if (fd < 0)
		return -errno;
	now = fcntl(fd, F_GETFL);
	if (now < 0 || fcntl(fd, F_SETFL, now & ~O_NONBLOCK) < 0) {
		int error = errno;

		mc_fd_close(&fd);
		return -error;
	}
	if (flags & MC_DISK_RANDOM)
		(void)posix_fadvise(fd, 0, 0, POSIX_FADV_RANDOM); /* advice only */
	return fd;
}

static int real_open(const struct mc_disk *disk, const char *path, uint32_t flags, uint32_t mode,
		     struct mc_disk_file **ret_file)
{
	struct mc_disk_real_file *f;
	int fd;

	mc_assert(flags & (MC_DISK_READ | MC_DISK_WRITE));
	f = mc_calloc(1, sizeof(*f));
	if (!f)
		return -ENOMEM;
	fd = open_fd(path, flags, mode);
	if (fd < 0) {
		mc_free(f);
		return fd;
	}
	f->base.disk = disk;
	f->fd = fd;
	*ret_file = &f->base;
	return 0;
}

static void real_close(struct mc_disk_file *file)
{
	struct mc_disk_real_file *f = (struct mc_disk_real_file *)file;

	mc_fd_close(&f->fd);
	mc_free(f);
}

static ssize_t real_read(struct mc_disk_file *file, void *buf, size_t len, uint64_t off)
{
	ssize_t n;

	do
		n = pread(fd_of(file), buf, len, (off_t)off);
	while (n < 0 && errno == EINTR);
	return n < 0 ? -errno : n;
}

static ssize_t real_write(struct mc_disk_file *file, const void *buf, size_t len, uint64_t off)
{
	ssize_t n;

	do
		n = pwrite(fd_of(file), buf, len, (off_t)off);
	while (n < 0 && errno == EINTR);
	return n < 0 ? -errno : n;
}

static int real_sync(struct mc_disk_file *file, bool is_data_only)
{
	int rc = is_data_only ? fdatasync(fd_of(file)) : fsync(fd_of(file));

	return rc < 0 ? -errno : 0;
}

static int real_truncate(struct mc_disk_file *file, uint64_t len)
{
	int rc;

	if (len > INT64_MAX)
		return -EFBIG;
	do
		rc = ftruncate(fd_of(file), (off_t)len);
	while (rc < 0 && errno == EINTR);
	return rc < 0 ? -errno : 0;
}

static int real_allocate(struct mc_disk_file *file, uint64_t off, uint64_t len)
{
	int rc;

	if (off > INT64_MAX || len > INT64_MAX - off)
		return -EFBIG;
	do
		rc = fallocate(fd_of(file), 0, (off_t)off, (off_t)len);
	while (rc < 0 && errno == EINTR);
	return rc < 0 ? -errno : 0;
}

static int real_stat(const struct mc_disk_file *file, struct mc_disk_stat *ret_stat)
{
	struct statx stx;
	off_t end;

	if (statx(fd_of(file), "", AT_EMPTY_PATH, STATX_BASIC_STATS | STATX_DIOALIGN, &stx) != 0)
		return -errno;
	*ret_stat = (struct mc_disk_stat){
	    .len_bytes = stx.stx_size,
	    .dev = makedev(stx.stx_dev_major, stx.stx_dev_minor),
	    .ino = stx.stx_ino,
	    .is_regular = S_ISREG(stx.stx_mode),
	    .is_block = S_ISBLK(stx.stx_mode),
	    .block = stx.stx_blksize,
	    .is_direct_known = stx.stx_mask & STATX_DIOALIGN,
	    .direct_mem = stx.stx_dio_mem_align,
	    .direct_off = stx.stx_dio_offset_align,
	};
	if (!ret_stat->is_block)
		return 0;
	end = lseek(fd_of(file), 0, SEEK_END); /* nobody uses the descriptor's position */
	if (end < 0)
		return -errno;
	ret_stat->len_bytes = (uint64_t)end;
	return 0;
}

static int real_rename(const struct mc_disk *disk, const char *from, const char *to)
{
	(void)disk;
	return rename(from, to) < 0 ? -errno : 0;
}

static int real_unlink(const struct mc_disk *disk, const char *path)
{
	(void)disk;
	return unlink(path) < 0 ? -errno : 0;
}

static int real_mkdir(const struct mc_disk *disk, const char *path, uint32_t mode)
{
	(void)disk;
	return mkdir(path, (mode_t)mode) < 0 ? -errno : 0;
}

static int real_list(const struct mc_disk *disk, const char *path,
		     void (*each)(void *user, const char *name), void *user)
{
	DIR *dir = opendir(path);
	struct dirent *entry;
	int rc;

	(void)disk;
	if (!dir)
		return -errno;
	for (errno = 0; (entry = readdir(dir)); errno = 0)
		if (strcmp(entry->d_name, ".") != 0 && strcmp(entry->d_name, "..") != 0)
			each(user, entry->d_name);
	rc = -errno;
	(void)closedir(dir);
	return rc;
}

static int real_lock(struct mc_disk_file *file, bool is_taken)
{
	int rc;

	do
		rc = flock(fd_of(file), is_taken ? LOCK_EX | LOCK_NB : LOCK_UN);
	while (rc < 0 && errno == EINTR);
	return rc < 0 ? -errno : 0;
}

static int real_sync_dir(const struct mc_disk *disk, const char *path)
{
	int fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC), rc;

	(void)disk;
	if (fd < 0)
		return -errno;
	rc = fsync(fd) < 0 ? -errno : 0;
	mc_fd_close(&fd);
	return rc;
}

/* ---- aio and queues ---- */

void mc_disk_queue_done(struct mc_disk_real_queue *q, struct mc_disk_io *io, int res)
{
	q->under_way--;
	q->conf.on_done(q->conf.user, io, res);
}

static int real_queue_open(struct mc_disk_aio *aio, const struct mc_disk_queue_conf *conf,
			   struct mc_disk_queue **ret_queue)
{
	struct mc_disk_real_aio *a = (struct mc_disk_real_aio *)aio;
	struct mc_disk_real_queue *q = mc_calloc(1, sizeof(*q));
	int rc;

	mc_assert(conf->depth > 0 && conf->depth <= MC_DISK_DEPTH_MAX);
	mc_assert(conf->nfiles <= MC_DISK_QUEUE_FILES_MAX);
	if (!q)
		return -MC_E_NOMEM;
	q->aio = a;
	q->conf = *conf;
	mc_list_init(&q->batch);
	mc_list_init(&q->finished);
	rc = a->has_uring ? mc_disk_uring_open(q) : -MC_E_UNAVAILABLE;
	if (rc < 0 && a->has_uring) /* a limit on locked memory, say, that others have used up */
		mc_log_debug("no ring for this queue, using threads", "cause=\"%s\"",
			     mc_err_text(rc));
	if (rc == 0) {
		q->base.ops = &mc_disk_uring_ops;
	} else {
		q->base.ops = &mc_disk_pool_ops;
		rc = mc_disk_pool_start(&a->pool);
	}
	if (rc < 0)
		goto fail;
	*ret_queue = &q->base;
	return 0;
fail:
	q->base.ops->close(&q->base);
	return rc;
}

static void real_aio_close(struct mc_disk_aio *aio)
{
	struct mc_disk_real_aio *a = (struct mc_disk_real_aio *)aio;

	mc_disk_pool_fini(&a->pool, !mc_fork_is_child(a->fork_gen));
	mc_free(a);
}

static const struct mc_disk_aio_ops real_aio_ops = {
    .close = real_aio_close,
    .queue_open = real_queue_open,
};

static int real_aio_open(const struct mc_disk *disk, const char *no_uring,
			 struct mc_disk_aio **ret_aio)
{
	struct mc_disk_real_aio *a = mc_calloc(1, sizeof(*a));
	char why[128];

	(void)disk;
	if (!a)
		return -MC_E_NOMEM;
	a->base.ops = &real_aio_ops;
	a->fork_gen = mc_fork_gen();
	mc_disk_pool_init(&a->pool);
	a->has_uring = !no_uring && mc_disk_uring_probe(why, sizeof(why));
	(void)snprintf(a->base.text, sizeof(a->base.text), "io_uring");
	if (!a->has_uring)
		(void)snprintf(a->base.text, sizeof(a->base.text), "threads: %.140s",
			       no_uring ? no_uring : why);
	*ret_aio = &a->base;
	return 0;
}

const struct mc_disk mc_disk_real = {
    .open = real_open,
    .close = real_close,
    .read = real_read,
    .write = real_write,
    .sync = real_sync,
    .truncate = real_truncate,
    .allocate = real_allocate,
    .stat = real_stat,
    .rename = real_rename,
    .unlink = real_unlink,
    .mkdir = real_mkdir,
    .list = real_list,
    .lock = real_lock,
    .sync_dir = real_sync_dir,
    .aio_open = real_aio_open,
};
