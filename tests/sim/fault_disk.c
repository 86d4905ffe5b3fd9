/*
 * fault_disk.c: every call is numbered, shown to the hooks, and then made with the inner disk's
 * file. An operation of a queue is copied, so that the inner queue never knows the caller's.
 */
#include "sim/fault_disk.h"

#include <errno.h>
#include <time.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/mem.h"

struct fault_file {
	struct mc_disk_file base; /* must be first */
	struct mc_disk_file *inner;
	uint32_t flags;
};

struct fault_aio {
	struct mc_disk_aio base; /* must be first */
	struct fault_disk *disk;
	struct mc_disk_aio *inner;
};

struct fault_io {
	struct mc_disk_io io; /* must be first; what the inner queue knows */
	struct mc_disk_io *outer;
	struct fault_call call;
	unsigned held; /* reaps */
	bool is_late;
};

struct fault_queue {
	struct mc_disk_queue base; /* must be first */
	struct fault_disk *disk;
	struct mc_disk_queue *inner;
	struct mc_disk_queue_conf conf;
	struct mc_list spare, held, failed, kept; /* fault_io.io.link */
	unsigned late;				  /* that were kept, and are made now */
	struct fault_io *ios;
};

static struct fault_disk *disk_of(const struct mc_disk *disk)
{
	return (struct fault_disk *)disk;
}

static struct fault_file *file_of(const struct mc_disk_file *file)
{
	return (struct fault_file *)file;
}

static struct fault_queue *queue_of(struct mc_disk_queue *queue)
{
	return (struct fault_queue *)queue;
}

/* ---- the hooks ---- */

static int begin(struct fault_disk *f, struct fault_call *call)
{
	call->nr = f->calls++;
	if (call->nr == f->fail_nr)
		return -f->fail_errno;
	return f->before ? f->before(f, call) : 0;
}

static int begin_plain(const struct mc_disk *disk, enum fault_op op)
{
	struct fault_call call = {.op = op};

	return begin(disk_of(disk), &call);
}

static int end(struct fault_disk *f, const struct fault_call *call, int res)
{
	return f->after ? f->after(f, call, res) : res;
}

/* ---- files ---- */

static int fault_open(const struct mc_disk *disk, const char *path, uint32_t flags, uint32_t mode,
		      struct mc_disk_file **ret_file)
{
	struct fault_disk *f = disk_of(disk);
	struct fault_call call = {.op = FAULT_OPEN, .flags = flags};
	struct fault_file *file;
	int rc = begin(f, &call);

	if (rc < 0)
		return rc;
	file = mc_calloc(1, sizeof(*file));
	if (!file)
		return -ENOMEM;
	file->base.disk = disk;
	file->flags = flags;
	rc = f->inner->open(f->inner, path, flags, mode, &file->inner);
	if (rc < 0) {
		mc_free(file);
		return rc;
	}
	*ret_file = &file->base;
	return 0;
}

static void fault_close(struct mc_disk_file *file)
{
	file_of(file)->inner->disk->close(file_of(file)->inner);
	mc_free(file);
}

static ssize_t fault_read(struct mc_disk_file *file, void *buf, size_t len, uint64_t off)
{
	struct fault_file *ff = file_of(file);
	struct fault_call call = {FAULT_READ, 0, ff->flags, off, len};
	int rc = begin(disk_of(file->disk), &call);

	if (rc < 0)
		return rc;
	rc = (int)ff->inner->disk->read(ff->inner, buf, call.len, off);
	return end(disk_of(file->disk), &call, rc);
}

static ssize_t fault_write(struct mc_disk_file *file, const void *buf, size_t len, uint64_t off)
{
	struct fault_file *ff = file_of(file);
	struct fault_call call = {FAULT_WRITE, 0, ff->flags, off, len};
	int rc = begin(disk_of(file->disk), &call);

	if (rc < 0)
		return rc;
	rc = (int)ff->inner->disk->write(ff->inner, buf, call.len, off);
	return end(disk_of(file->disk), &call, rc);
}

static int fault_sync(struct mc_disk_file *file, bool is_data_only)
{
	struct fault_file *ff = file_of(file);
	struct fault_call call = {.op = FAULT_SYNC, .flags = ff->flags};
	int rc = begin(disk_of(file->disk), &call);

	if (rc < 0)
		return rc;
	return end(disk_of(file->disk), &call, ff->inner->disk->sync(ff->inner, is_data_only));
}

static int fault_truncate(struct mc_disk_file *file, uint64_t len)
{
	int rc = begin_plain(file->disk, FAULT_TRUNCATE);
	struct mc_disk_file *inner = file_of(file)->inner;

	return rc < 0 ? rc : inner->disk->truncate(inner, len);
}

static int fault_allocate(struct mc_disk_file *file, uint64_t off, uint64_t len)
{
	int rc = begin_plain(file->disk, FAULT_ALLOCATE);
	struct mc_disk_file *inner = file_of(file)->inner;

	return rc < 0 ? rc : inner->disk->allocate(inner, off, len);
}

static int fault_stat(const struct mc_disk_file *file, struct mc_disk_stat *ret_stat)
{
	int rc = begin_plain(file->disk, FAULT_STAT);
	const struct mc_disk_file *inner = file_of(file)->inner;

	return rc < 0 ? rc : inner->disk->stat(inner, ret_stat);
}

static int fault_rename(const struct mc_disk *disk, const char *from, const char *to)
{
	const struct mc_disk *inner = disk_of(disk)->inner;
	int rc = begin_plain(disk, FAULT_RENAME);

	return rc < 0 ? rc : inner->rename(inner, from, to);
}

static int fault_unlink(const struct mc_disk *disk, const char *path)
{
	const struct mc_disk *inner = disk_of(disk)->inner;
	int rc = begin_plain(disk, FAULT_UNLINK);

	return rc < 0 ? rc : inner->unlink(inner, path);
}

static int fault_mkdir(const struct mc_disk *disk, const char *path, uint32_t mode)
{
	const struct mc_disk *inner = disk_of(disk)->inner;
	int rc = begin_plain(disk, FAULT_MKDIR);

	return rc < 0 ? rc : inner->mkdir(inner, path, mode);
}

static int fault_list(const struct mc_disk *disk, const char *path,
		      void (*each)(void *user, const char *name), void *user)
{
	const struct mc_disk *inner = disk_of(disk)->inner;
	int rc = begin_plain(disk, FAULT_LIST);

	return rc < 0 ? rc : inner->list(inner, path, each, user);
}

static int fault_lock(struct mc_disk_file *file, bool is_taken)
{
	struct mc_disk_file *inner = file_of(file)->inner;
	int rc = begin_plain(file->disk, FAULT_LOCK);

	return rc < 0 ? rc : inner->disk->lock(inner, is_taken);
}

static int fault_sync_dir(const struct mc_disk *disk, const char *path)
{
	const struct mc_disk *inner = disk_of(disk)->inner;
	int rc = begin_plain(disk, FAULT_SYNC_DIR);

	return rc < 0 ? rc : inner->sync_dir(inner, path);
}

/* ---- queues ---- */

static void event_add(struct fault_queue *q)
{
	uint64_t one = 1;

	while (write(q->conf.event_fd, &one, sizeof(one)) < 0 && errno == EINTR)
		;
}

static void report(struct fault_queue *q, struct fault_io *x, int res)
{
	struct mc_disk_io *outer = x->outer;

	mc_list_push_back(&q->spare, &x->io.link);
	q->conf.on_done(q->conf.user, outer, res);
}

static void on_inner_done(void *user, struct mc_disk_io *io, int res)
{
	struct fault_queue *q = user;
	struct fault_io *x = (struct fault_io *)io;

	q->late -= x->is_late;
	report(q, x, end(q->disk, &x->call, res));
}

static void queue_close(struct mc_disk_queue *queue)
{
	struct fault_queue *q = queue_of(queue);

	if (q->inner)
		q->inner->ops->close(q->inner);
	mc_free(q->ios);
	mc_free(q);
}

static void queue_start(struct mc_disk_queue *queue, struct mc_disk_io *io)
{
	static const enum fault_op ops[] = {FAULT_READ, FAULT_WRITE, FAULT_SYNC};
	struct fault_queue *q = queue_of(queue);
	struct fault_file *file = file_of(io->file);
	struct fault_io *x;

	mc_assert(!mc_list_is_empty(&q->spare)); /* as many as conf.depth */
	x = (struct fault_io *)mc_list_entry(mc_list_pop_front(&q->spare), struct mc_disk_io, link);
	x->outer = io;
	x->io = *io;
	x->io.file = file->inner;
	x->call = (struct fault_call){ops[io->op], 0, file->flags, io->off, io->len};
	x->io.res = begin(q->disk, &x->call);
	x->io.len = (uint32_t)x->call.len;
	x->held = q->disk->held_reaps;
	x->is_late = atomic_load(&q->disk->is_away);
	if (x->is_late)
		mc_list_push_back(&q->kept, &x->io.link);
	else if (x->io.res < 0)
		mc_list_push_back(&q->failed, &x->io.link);
	else if (x->held > 0)
		mc_list_push_back(&q->held, &x->io.link);
	else
		q->inner->ops->start(q->inner, &x->io);
}

static bool has_own(const struct fault_queue *q)
{
	return !mc_list_is_empty(&q->failed) || !mc_list_is_empty(&q->held);
}

static int queue_flush(struct mc_disk_queue *queue)
{
	struct fault_queue *q = queue_of(queue);

	if (has_own(q))
		event_add(q);
	return q->inner->ops->flush(q->inner);
}

static int queue_reap(struct mc_disk_queue *queue, uint64_t block_ns)
{
	struct fault_queue *q = queue_of(queue);
	struct mc_list failed;
	struct mc_disk_io *io;

	mc_list_each (io, &q->held, link) {
		if (--((struct fault_io *)io)->held > 0)
			continue;
		mc_list_del(&io->link);
		q->inner->ops->start(q->inner, io);
	}
	mc_list_init(&failed);
	mc_list_splice_back(&failed, &q->failed);
	block_ns = has_own(q) || !mc_list_is_empty(&failed) ? 0 : block_ns;
	mc_list_each (io, &failed, link) {
		mc_list_del(&io->link);
		report(q, (struct fault_io *)io, io->res);
	}
	return q->inner->ops->reap(q->inner, block_ns);
}

static bool queue_is_ready(struct mc_disk_queue *queue)
{
	struct fault_queue *q = queue_of(queue);

	return has_own(q) || q->inner->ops->is_ready(q->inner);
}

/* Once the device is back. */
static void make_kept(struct fault_queue *q)
{
	struct mc_disk_io *io;

	mc_list_each (io, &q->kept, link) {
		mc_list_del(&io->link);
		q->late++;
		q->inner->ops->start(q->inner, io);
	}
	while (q->late > 0 && q->inner->ops->reap(q->inner, MC_NS_PER_S) == 0)
		;
}

static bool queue_drain(struct mc_disk_queue *queue, uint64_t wait_ns)
{
	const struct timespec ts = {.tv_nsec = (long)mc_min(wait_ns, MC_NS_PER_S - 1)};
	struct fault_queue *q = queue_of(queue);
	struct mc_disk_io *io;

	if (!mc_list_is_empty(&q->kept) && atomic_load(&q->disk->is_away)) {
		(void)nanosleep(&ts, NULL);
		return false;
	}
	make_kept(q);
	if (!q->inner->ops->drain(q->inner, wait_ns))
		return false;
	mc_list_splice_back(&q->failed, &q->held);
	mc_list_each (io, &q->failed, link) {
		mc_list_del(&io->link);
		report(q, (struct fault_io *)io, -ECANCELED);
	}
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

static int fault_queue_open(struct mc_disk_aio *aio, const struct mc_disk_queue_conf *conf,
			    struct mc_disk_queue **ret_queue)
{
	struct fault_aio *a = (struct fault_aio *)aio;
	struct mc_disk_queue_conf inner = *conf;
	struct fault_queue *q;
	int rc = begin_plain(&a->disk->disk, FAULT_QUEUE);

	if (rc < 0)
		return mc_err_from_errno(-rc);
	q = mc_calloc(1, sizeof(*q));
	if (!q)
		return -MC_E_NOMEM;
	q->base.ops = &queue_ops;
	q->disk = a->disk;
	q->conf = *conf;
	mc_list_init(&q->spare);
	mc_list_init(&q->held);
	mc_list_init(&q->failed);
	mc_list_init(&q->kept);
	for (unsigned i = 0; i < conf->nfiles; i++)
		inner.files[i] = file_of(conf->files[i])->inner;
	inner.on_done = on_inner_done;
	inner.user = q;
	q->ios = mc_calloc(conf->depth, sizeof(*q->ios));
	rc = q->ios ? a->inner->ops->queue_open(a->inner, &inner, &q->inner) : -MC_E_NOMEM;
	if (rc < 0)
		goto fail;
	for (unsigned i = 0; i < conf->depth; i++)
		mc_list_push_back(&q->spare, &q->ios[i].io.link);
	*ret_queue = &q->base;
	return 0;
fail:
	queue_close(&q->base);
	return rc;
}

static void fault_aio_close(struct mc_disk_aio *aio)
{
	struct fault_aio *a = (struct fault_aio *)aio;

	struct fault_disk *f = a->disk;

	a->inner->ops->close(a->inner);
	mc_free(a);
	atomic_fetch_sub(&f->aios, 1);
}

static const struct mc_disk_aio_ops aio_ops = {
    .close = fault_aio_close,
    .queue_open = fault_queue_open,
};

static int fault_aio_open(const struct mc_disk *disk, const char *no_uring,
			  struct mc_disk_aio **ret_aio)
{
	struct fault_disk *f = disk_of(disk);
	struct fault_aio *a;
	int rc = begin_plain(disk, FAULT_AIO);

	if (rc < 0)
		return mc_err_from_errno(-rc);
	a = mc_calloc(1, sizeof(*a));
	if (!a)
		return -MC_E_NOMEM;
	rc = f->inner->aio_open(f->inner, no_uring, &a->inner);
	if (rc < 0) {
		mc_free(a);
		return rc;
	}
	a->base = *a->inner;
	a->base.ops = &aio_ops;
	a->disk = f;
	atomic_fetch_add(&f->aios, 1);
	*ret_aio = &a->base;
	return 0;
}

void fault_disk_init(struct fault_disk *f, const struct mc_disk *inner)
{
	*f = (struct fault_disk){
	    .disk =
		{
		    .open = fault_open,
		    .close = fault_close,
		    .read = fault_read,
		    .write = fault_write,
		    .sync = fault_sync,
		    .truncate = fault_truncate,
		    .allocate = fault_allocate,
		    .stat = fault_stat,
		    .rename = fault_rename,
		    .unlink = fault_unlink,
		    .mkdir = fault_mkdir,
		    .list = fault_list,
		    .lock = fault_lock,
		    .sync_dir = fault_sync_dir,
		    .aio_open = fault_aio_open,
		},
	    .inner = inner,
	    .fail_nr = UINT64_MAX,
	};
}
