/*
 * mem_disk.c: each file has two images, what readers see and what is durable, and the changes
 * between them in order. A sync takes the first image for the second; a cut goes the other way and
 * plays some of the changes again. The directory is done in the same way, by names.
 *
 * Memory is malloc's: tests count what the code under test allocates. Queues run what they were
 * given when they are reaped, in any order.
 */
#include "sim/mem_disk.h"

#include <errno.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/mem.h"

#define NAMES_MAX 64u
#define NAME_MAX_BYTES 64u
#define CHANGES_MAX 256u /* of the directory since it was synced */

struct image {
	uint8_t *bytes;
	uint64_t len, cap;
};

/* A write, or with data NULL a truncation to `off`. */
struct change {
	struct change *next;
	uint64_t off, len;
	uint8_t *data;
};

struct inode {
	struct inode *next; /* of all, for the end */
	uint64_t ino;
	struct image now, safe;
	struct change *first, **last;  /* not durable */
	const struct mem_file *holder; /* of its lock */
};

struct dir {
	char names[NAMES_MAX][NAME_MAX_BYTES]; /* "": free */
	struct inode *inodes[NAMES_MAX];
};

/* `from` goes, `to` is the inode now; either may be "". */
struct dir_change {
	char from[NAME_MAX_BYTES], to[NAME_MAX_BYTES];
	struct inode *inode;
};

struct mem_disk {
	struct mc_disk disk; /* must be first */
	pthread_mutex_t mu;  /* guards everything */
	struct inode *inodes;
	uint64_t ninodes, space, cuts;
	uint64_t used; /* by files that have a name */
	struct dir now, safe;
	struct dir_change changes[CHANGES_MAX];
	unsigned nchanges;
};

struct mem_file {
	struct mc_disk_file base; /* must be first */
	struct inode *inode;
	uint32_t flags;
	uint64_t cuts; /* when it was opened */
};

struct mem_queue {
	struct mc_disk_queue base; /* must be first */
	struct mc_disk_queue_conf conf;
	struct mc_rand rand;
	struct mc_list waiting; /* mc_disk_io.link */
	unsigned nwaiting;
};

static struct mem_disk *disk_of(const struct mc_disk *disk)
{
	return (struct mem_disk *)disk;
}

static void lock(struct mem_disk *d)
{
	mc_assert(pthread_mutex_lock(&d->mu) == 0);
}

static void unlock(struct mem_disk *d)
{
	mc_assert(pthread_mutex_unlock(&d->mu) == 0);
}

/* ---- images ---- */

static void image_resize(struct image *im, uint64_t len)
{
	if (len > im->cap) {
		im->cap = mc_max(len, 2 * im->cap);
		im->bytes = realloc(im->bytes, im->cap);
		mc_assert(im->bytes);
	}
	if (len > im->len)
		memset(im->bytes + im->len, 0, len - im->len);
	im->len = len;
}

static void image_write(struct image *im, uint64_t off, const void *data, uint64_t len)
{
	if (len == 0)
		return;
	if (off + len > im->len)
		image_resize(im, off + len);
	memcpy(im->bytes + off, data, len);
}

static void image_copy(struct image *to, const struct image *from)
{
	image_resize(to, from->len);
	if (from->len > 0)
		memcpy(to->bytes, from->bytes, from->len);
}

static void changes_free(struct inode *n)
{
	struct change *c, *next;

	for (c = n->first; c; c = next) {
		next = c->next;
		free(c->data);
		free(c);
	}
	n->first = NULL;
	n->last = &n->first;
}

static void change_add(struct inode *n, uint64_t off, const void *data, uint64_t len)
{
	struct change *c = calloc(1, sizeof(*c));

	mc_assert(c);
	c->off = off;
	c->len = len;
	if (data) {
		c->data = malloc(len);
		mc_assert(c->data);
		memcpy(c->data, data, len);
	}
	*n->last = c;
	n->last = &c->next;
}

/* Some sectors of a write that was under way when the power went. */
static void tear(struct image *im, const struct change *c, struct mc_rand *rand)
{
	uint64_t at = 0, n;

	if (!c->data) {
		if (mc_rand_below(rand, 2) == 0)
			image_resize(im, c->off);
		return;
	}
	for (; at < c->len; at += n) {
		n = MEM_DISK_SECTOR - (c->off + at) % MEM_DISK_SECTOR;
		n = mc_min(n, c->len - at);
		if (mc_rand_below(rand, 2) == 0)
			image_write(im, c->off + at, c->data + at, n);
	}
}

/* ---- the directory ---- */

/* @return the name within the directory, or NULL */
static const char *name_in(const char *path)
{
	static const char dir[] = MEM_DISK_DIR "/";
	size_t len = sizeof(dir) - 1;

	if (strncmp(path, dir, len) != 0 || !path[len] || strchr(path + len, '/'))
		return NULL;
	return strlen(path + len) < NAME_MAX_BYTES ? path + len : NULL;
}

static int dir_find(const struct dir *dir, const char *name)
{
	for (unsigned i = 0; i < NAMES_MAX; i++)
		if (strcmp(dir->names[i], name) == 0)
			return (int)i;
	return -1;
}

static void dir_apply(struct dir *dir, const struct dir_change *c)
{
	int at = c->from[0] ? dir_find(dir, c->from) : -1;

	if (at >= 0)
		dir->names[at][0] = '\0';
	if (!c->to[0])
		return;
	at = dir_find(dir, c->to);
	at = at >= 0 ? at : dir_find(dir, "");
	mc_assert(at >= 0); /* change_dir() saw that there is room */
	memcpy(dir->names[at], c->to, sizeof(c->to));
	dir->inodes[at] = c->inode;
}

static bool is_named(const struct mem_disk *d, const struct inode *n)
{
	for (unsigned i = 0; i < NAMES_MAX; i++)
		if (d->now.names[i][0] && d->now.inodes[i] == n)
			return true;
	return false;
}

static void count_used(struct mem_disk *d)
{
	d->used = 0;
	for (const struct inode *n = d->inodes; n; n = n->next)
		d->used += is_named(d, n) ? n->now.len : 0;
}

static int change_dir(struct mem_disk *d, const char *from, const char *to, struct inode *inode)
{
	struct dir_change *c = &d->changes[d->nchanges];

	if (d->nchanges == CHANGES_MAX || (to[0] && dir_find(&d->now, "") < 0))
		return -ENOSPC;
	(void)snprintf(c->from, sizeof(c->from), "%s", from);
	(void)snprintf(c->to, sizeof(c->to), "%s", to);
	c->inode = inode;
	d->nchanges++;
	dir_apply(&d->now, c);
	count_used(d);
	return 0;
}

static struct inode *inode_new(struct mem_disk *d)
{
	struct inode *n = calloc(1, sizeof(*n));

	mc_assert(n);
	n->ino = ++d->ninodes;
	n->last = &n->first;
	n->next = d->inodes;
	d->inodes = n;
	return n;
}

static int inode_get(struct mem_disk *d, const char *path, uint32_t flags, struct inode **ret)
{
	const char *name = name_in(path);
	struct inode *n;
	int at, rc;

	if (!name)
		return -ENOENT;
	at = dir_find(&d->now, name);
	if (at >= 0) {
		*ret = d->now.inodes[at];
		return (flags & MC_DISK_CREATE) && (flags & MC_DISK_EXCL) ? -EEXIST : 0;
	}
	if (!(flags & MC_DISK_CREATE))
		return -ENOENT;
	n = inode_new(d); /* stays until the end, also if there is no room for its name */
	rc = change_dir(d, "", name, n);
	*ret = n;
	return rc;
}

/* ---- files ---- */

static int mem_open(const struct mc_disk *disk, const char *path, uint32_t flags, uint32_t mode,
		    struct mc_disk_file **ret_file)
{
	struct mem_disk *d = disk_of(disk);
	struct mem_file *f = calloc(1, sizeof(*f));
	int rc;

	(void)mode;
	mc_assert(f);
	lock(d);
	rc = inode_get(d, path, flags, &f->inode);
	f->base.disk = disk;
	f->flags = flags;
	f->cuts = d->cuts;
	unlock(d);
	if (rc < 0)
		free(f);
	else
		*ret_file = &f->base;
	return rc;
}

static void mem_close(struct mc_disk_file *file)
{
	struct mem_file *f = (struct mem_file *)file;
	struct mem_disk *d = disk_of(file->disk);

	lock(d);
	if (f->inode->holder == f)
		f->inode->holder = NULL;
	unlock(d);
	free(f);
}

/* Locks the file's disk if it still has its power. */
static int file_lock(const struct mc_disk_file *file, struct mem_file **ret_file)
{
	struct mem_file *f = (struct mem_file *)file;
	struct mem_disk *d = disk_of(file->disk);

	lock(d);
	if (f->cuts != d->cuts) {
		unlock(d);
		return -EIO;
	}
	*ret_file = f;
	return 0;
}

static bool is_misaligned(const struct mem_file *f, const void *buf, size_t len, uint64_t off)
{
	return (f->flags & MC_DISK_DIRECT) &&
	       (((uintptr_t)buf | len | off) & (MEM_DISK_SECTOR - 1)) != 0;
}

static ssize_t mem_read(struct mc_disk_file *file, void *buf, size_t len, uint64_t off)
{
	struct mem_file *f;
	int rc = file_lock(file, &f);
	const struct image *im;

	if (rc < 0)
		return rc;
	im = &f->inode->now;
	if (!(f->flags & MC_DISK_READ)) {
		rc = -EBADF;
	} else if (is_misaligned(f, buf, len, off)) {
		rc = -EINVAL;
	} else if (off < im->len) {
		len = mc_min(len, im->len - off);
		rc = (int)mc_min(len, (size_t)MC_DISK_IO_MAX);
		memcpy(buf, im->bytes + off, (size_t)rc);
	}
	unlock(disk_of(file->disk));
	return rc;
}

static int write_locked(struct mem_disk *d, struct mem_file *f, const void *buf, size_t len,
			uint64_t off)
{
	struct inode *n = f->inode;
	uint64_t end, grows;

	if (!(f->flags & MC_DISK_WRITE))
		return -EBADF;
	if (is_misaligned(f, buf, len, off))
		return -EINVAL;
	len = mc_min(len, (size_t)MC_DISK_IO_MAX);
	if (__builtin_add_overflow(off, len, &end))
		return -EFBIG;
	grows = end > n->now.len ? end - n->now.len : 0;
	if (grows > d->space - d->used) { /* as file systems do: what there is room for */
		if (grows - (d->space - d->used) >= len)
			return -ENOSPC;
		len -= grows - (d->space - d->used);
	}
	image_write(&n->now, off, buf, len);
	change_add(n, off, buf, len);
	count_used(d);
	return (int)len;
}

static ssize_t mem_write(struct mc_disk_file *file, const void *buf, size_t len, uint64_t off)
{
	struct mem_file *f;
	int rc = file_lock(file, &f);

	if (rc < 0)
		return rc;
	rc = write_locked(disk_of(file->disk), f, buf, len, off);
	unlock(disk_of(file->disk));
	return rc;
}

static int mem_sync(struct mc_disk_file *file, bool is_data_only)
{
	struct mem_file *f;
	int rc = file_lock(file, &f);

	(void)is_data_only; /* there are no times */
	if (rc < 0)
		return rc;
	image_copy(&f->inode->safe, &f->inode->now);
	changes_free(f->inode);
	unlock(disk_of(file->disk));
	return 0;
}

static int mem_truncate(struct mc_disk_file *file, uint64_t len)
{
	struct mem_disk *d = disk_of(file->disk);
	struct mem_file *f;
	int rc = file_lock(file, &f);
	uint64_t was;

	if (rc < 0)
		return rc;
	was = f->inode->now.len;
	if (len > was && len - was > d->space - d->used) {
		rc = -ENOSPC;
	} else {
		image_resize(&f->inode->now, len);
		change_add(f->inode, len, NULL, 0);
		count_used(d);
	}
	unlock(d);
	return rc;
}

/* On disk it is a truncation upwards. */
static int mem_allocate(struct mc_disk_file *file, uint64_t off, uint64_t len)
{
	return mem_truncate(file, off + len);
}

static int mem_stat(const struct mc_disk_file *file, struct mc_disk_stat *ret_stat)
{
	struct mem_file *f;
	int rc = file_lock(file, &f);

	if (rc < 0)
		return rc;
	*ret_stat = (struct mc_disk_stat){.len_bytes = f->inode->now.len,
					  .dev = 1,
					  .ino = f->inode->ino,
					  .is_regular = true,
					  .block = 4096,
					  .is_direct_known = true,
					  .direct_mem = MEM_DISK_SECTOR,
					  .direct_off = MEM_DISK_SECTOR};
	unlock(disk_of(file->disk));
	return 0;
}

static int mem_rename(const struct mc_disk *disk, const char *from, const char *to)
{
	const char *old = name_in(from), *new = name_in(to);
	struct mem_disk *d = disk_of(disk);
	int at, rc = -ENOENT;

	lock(d);
	at = old && new ? dir_find(&d->now, old) : -1;
	if (at >= 0)
		rc = change_dir(d, old, new, d->now.inodes[at]);
	unlock(d);
	return rc;
}

static int mem_unlink(const struct mc_disk *disk, const char *path)
{
	struct mem_disk *d = disk_of(disk);
	const char *name = name_in(path);
	int rc = -ENOENT;

	lock(d);
	if (name && dir_find(&d->now, name) >= 0)
		rc = change_dir(d, name, "", NULL);
	unlock(d);
	return rc;
}

/* There is one directory. */
static int mem_mkdir(const struct mc_disk *disk, const char *path, uint32_t mode)
{
	(void)disk;
	(void)mode;
	return strcmp(path, MEM_DISK_DIR) == 0 ? -EEXIST : -ENOENT;
}

static int mem_list(const struct mc_disk *disk, const char *path,
		    void (*each)(void *user, const char *name), void *user)
{
	struct mem_disk *d = disk_of(disk);

	if (strcmp(path, MEM_DISK_DIR) != 0)
		return -ENOENT;
	lock(d);
	for (unsigned i = 0; i < NAMES_MAX; i++)
		if (d->now.names[i][0])
			each(user, d->now.names[i]);
	unlock(d);
	return 0;
}

static int mem_lock(struct mc_disk_file *file, bool is_taken)
{
	struct mem_file *f;
	int rc = file_lock(file, &f);

	if (rc < 0)
		return rc;
	if (f->inode->holder && f->inode->holder != f)
		rc = is_taken ? -EWOULDBLOCK : 0;
	else
		f->inode->holder = is_taken ? f : NULL;
	unlock(disk_of(file->disk));
	return rc;
}

static int mem_sync_dir(const struct mc_disk *disk, const char *path)
{
	struct mem_disk *d = disk_of(disk);

	if (strcmp(path, MEM_DISK_DIR) != 0)
		return -ENOENT;
	lock(d);
	d->safe = d->now;
	d->nchanges = 0;
	unlock(d);
	return 0;
}

/* ---- queues ---- */

static struct mem_queue *queue_of(struct mc_disk_queue *queue)
{
	return (struct mem_queue *)queue;
}

static int operate(const struct mc_disk_io *io)
{
	if (io->op == MC_DISK_OP_READ)
		return (int)mem_read(io->file, io->mem, io->len, io->off);
	if (io->op == MC_DISK_OP_WRITE)
		return (int)mem_write(io->file, io->mem, io->len, io->off);
	return mem_sync(io->file, true);
}

static void queue_close(struct mc_disk_queue *queue)
{
	free(queue);
}

static void queue_start(struct mc_disk_queue *queue, struct mc_disk_io *io)
{
	struct mem_queue *q = queue_of(queue);

	mc_assert(q->nwaiting < q->conf.depth);
	q->nwaiting++;
	if (mc_rand_below(&q->rand, 2) == 0)
		mc_list_push_back(&q->waiting, &io->link);
	else
		mc_list_push_front(&q->waiting, &io->link);
}

static int queue_flush(struct mc_disk_queue *queue)
{
	struct mem_queue *q = queue_of(queue);
	uint64_t n = q->nwaiting;

	while (n > 0 && write(q->conf.event_fd, &n, sizeof(n)) < 0 && errno == EINTR)
		;
	return 0;
}

static void report(struct mem_queue *q, bool is_made)
{
	struct mc_list now;
	struct mc_disk_io *io;

	mc_list_init(&now);
	mc_list_splice_back(&now, &q->waiting); /* what they start comes with the next reap */
	mc_list_each (io, &now, link) {
		mc_list_del(&io->link);
		q->nwaiting--;
		q->conf.on_done(q->conf.user, io, is_made ? operate(io) : -ECANCELED);
	}
}

static int queue_reap(struct mc_disk_queue *queue, uint64_t block_ns)
{
	(void)block_ns; /* nothing to wait for */
	report(queue_of(queue), true);
	return 0;
}

static bool queue_is_ready(struct mc_disk_queue *queue)
{
	return queue_of(queue)->nwaiting > 0;
}

static bool queue_drain(struct mc_disk_queue *queue, uint64_t wait_ns)
{
	(void)wait_ns;
	report(queue_of(queue), false);
	return true;
}

static const struct mc_disk_queue_ops queue_ops = {
    .close = queue_close,
    .start = queue_start,
    .flush = queue_flush,
    .reap = queue_reap,
    .is_ready = queue_is_ready,
    .drain = queue_drain,
};

static int mem_queue_open(struct mc_disk_aio *aio, const struct mc_disk_queue_conf *conf,
			  struct mc_disk_queue **ret_queue)
{
	struct mem_queue *q = calloc(1, sizeof(*q));

	(void)aio;
	mc_assert(q);
	q->base.ops = &queue_ops;
	q->conf = *conf;
	mc_rand_seed(&q->rand, 1);
	mc_list_init(&q->waiting);
	*ret_queue = &q->base;
	return 0;
}

static void mem_aio_close(struct mc_disk_aio *aio)
{
	free(aio);
}

static const struct mc_disk_aio_ops aio_ops = {
    .close = mem_aio_close,
    .queue_open = mem_queue_open,
};

static int mem_aio_open(const struct mc_disk *disk, const char *no_uring,
			struct mc_disk_aio **ret_aio)
{
	struct mc_disk_aio *a = calloc(1, sizeof(*a));

	(void)disk;
	(void)no_uring;
	mc_assert(a);
	a->ops = &aio_ops;
	(void)snprintf(a->text, sizeof(a->text), "memory");
	*ret_aio = a;
	return 0;
}

/* ---- the disk ---- */

struct mem_disk *mem_disk_open(uint64_t space_bytes)
{
	struct mem_disk *d = calloc(1, sizeof(*d));

	mc_assert(d && pthread_mutex_init(&d->mu, NULL) == 0);
	d->space = space_bytes;
	d->disk = (struct mc_disk){
	    .open = mem_open,
	    .close = mem_close,
	    .read = mem_read,
	    .write = mem_write,
	    .sync = mem_sync,
	    .truncate = mem_truncate,
	    .allocate = mem_allocate,
	    .stat = mem_stat,
	    .rename = mem_rename,
	    .unlink = mem_unlink,
	    .mkdir = mem_mkdir,
	    .list = mem_list,
	    .lock = mem_lock,
	    .sync_dir = mem_sync_dir,
	    .aio_open = mem_aio_open,
	};
	return d;
}

void mem_disk_close(struct mem_disk *d)
{
	struct inode *n, *next;

	for (n = d->inodes; n; n = next) {
		next = n->next;
		changes_free(n);
		free(n->now.bytes);
		free(n->safe.bytes);
		free(n);
	}
	mc_assert(pthread_mutex_destroy(&d->mu) == 0);
	free(d);
}

const struct mc_disk *mem_disk_ops(struct mem_disk *d)
{
	return &d->disk;
}

void mem_disk_cut(struct mem_disk *d, struct mc_rand *rand)
{
	unsigned kept = rand ? (unsigned)mc_rand_below(rand, d->nchanges + 1) : 0;

	lock(d);
	d->cuts++;
	for (unsigned i = 0; i < kept; i++)
		dir_apply(&d->safe, &d->changes[i]);
	d->now = d->safe;
	d->nchanges = 0;
	for (struct inode *n = d->inodes; n; n = n->next) {
		for (struct change *c = n->first; c && rand; c = c->next)
			tear(&n->safe, c, rand);
		changes_free(n);
		n->holder = NULL;
		if (!is_named(d, n))
			image_resize(&n->safe, 0);
		image_copy(&n->now, &n->safe);
	}
	count_used(d);
	unlock(d);
}
