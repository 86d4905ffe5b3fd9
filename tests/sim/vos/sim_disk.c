/*
 * sim_disk.c: see sim_disk.h. A file here stands before one of mem_disk. Operations of a queue are
 * done one after the other in virtual time, in the order of their start or not.
 */
#include "sim/vos/sim_disk.h"

#include <errno.h>
#include <string.h>

#include "base/mem.h"
#include "sim/vos/vos.h"

#define FILES_MAX 256u

struct file {
	struct mc_disk_file base; /* must be first */
	struct mc_disk_file *below;
	struct vos_proc *proc;
};

struct sim_disk {
	struct mc_disk ops; /* must be first */
	struct mem_disk *mem;
	const struct mc_disk *below;
	struct file *files[FILES_MAX]; /* open ones */
};

uint64_t sim_disk_slow_max_ns;

static struct sim_disk *given[VOS_PROCS_MAX];

static void slow(void)
{
	static const char nobody;

	if (vos_self() && sim_disk_slow_max_ns)
		(void)vos_wait(&nobody, vos_now() + vos_pick(sim_disk_slow_max_ns));
}

/* The disk behind a name, from here to vos_host_leave() the host's work. */
static struct sim_disk *enter(const struct mc_disk *disk)
{
	struct sim_disk *d = (struct sim_disk *)disk;

	if (disk == &mc_disk_real)
		d = given[vos_self()->index];
	if (!d)
		vos_fail("a process without a disk uses one");
	slow();
	vos_host_enter();
	return d;
}

static int leave(int rc)
{
	vos_host_leave();
	return rc;
}

static struct mc_disk_file *below_of(const struct mc_disk_file *file)
{
	return ((const struct file *)file)->below;
}

static int disk_open(const struct mc_disk *disk, const char *path, uint32_t flags, uint32_t mode,
		     struct mc_disk_file **ret_file)
{
	struct sim_disk *d = enter(disk);
	struct file *f;
	unsigned i = 0;
	int rc;

	while (i < FILES_MAX && d->files[i])
		i++;
	if (i == FILES_MAX)
		return leave(-EMFILE);
	f = vos_host_alloc(sizeof(*f));
	rc = d->below->open(d->below, path, flags, mode, &f->below);
	if (rc < 0) {
		vos_host_free(f);
		return leave(rc);
	}
	f->base.disk = &d->ops;
	f->proc = vos_self();
	d->files[i] = f;
	*ret_file = &f->base;
	return leave(0);
}

static void file_end(struct sim_disk *d, struct file *f)
{
	for (unsigned i = 0; i < FILES_MAX; i++) {
		if (d->files[i] == f)
			d->files[i] = NULL;
	}
	d->below->close(f->below);
	vos_host_free(f);
}

static void disk_close(struct mc_disk_file *file)
{
	vos_host_enter();
	file_end((struct sim_disk *)file->disk, (struct file *)file);
	vos_host_leave();
}

static ssize_t disk_read(struct mc_disk_file *file, void *buf, size_t len, uint64_t off)
{
	ssize_t n = enter(file->disk)->below->read(below_of(file), buf, len, off);

	vos_host_leave();
	return n;
}

static ssize_t disk_write(struct mc_disk_file *file, const void *buf, size_t len, uint64_t off)
{
	ssize_t n = enter(file->disk)->below->write(below_of(file), buf, len, off);

	vos_host_leave();
	return n;
}

static int disk_sync(struct mc_disk_file *file, bool is_data_only)
{
	return leave(enter(file->disk)->below->sync(below_of(file), is_data_only));
}

static int disk_truncate(struct mc_disk_file *file, uint64_t len)
{
	return leave(enter(file->disk)->below->truncate(below_of(file), len));
}

static int disk_stat(const struct mc_disk_file *file, struct mc_disk_stat *ret_stat)
{
	return leave(enter(file->disk)->below->stat(below_of(file), ret_stat));
}

static int disk_lock(struct mc_disk_file *file, bool is_taken)
{
	return leave(enter(file->disk)->below->lock(below_of(file), is_taken));
}

static int disk_rename(const struct mc_disk *disk, const char *from, const char *to)
{
	struct sim_disk *d = enter(disk);

	return leave(d->below->rename(d->below, from, to));
}

static int disk_unlink(const struct mc_disk *disk, const char *path)
{
	struct sim_disk *d = enter(disk);

	return leave(d->below->unlink(d->below, path));
}

static int disk_mkdir(const struct mc_disk *disk, const char *path, uint32_t mode)
{
	struct sim_disk *d = enter(disk);

	return leave(d->below->mkdir(d->below, path, mode));
}

static int disk_sync_dir(const struct mc_disk *disk, const char *path)
{
	struct sim_disk *d = enter(disk);

	return leave(d->below->sync_dir(d->below, path));
}

#define NAME_MAX_BYTES 64u
#define NAMES_MAX 64u

struct names {
	char text[NAMES_MAX][NAME_MAX_BYTES];
	unsigned n;
};

static void name_add(void *user, const char *name)
{
	struct names *names = user;

	mc_assert(names->n < NAMES_MAX && strlen(name) < NAME_MAX_BYTES);
	memcpy(names->text[names->n++], name, strlen(name) + 1);
}

/* Told when the host's work is over: what the process does with a name is its own. */
static int disk_list(const struct mc_disk *disk, const char *path,
		     void (*each)(void *user, const char *name), void *user)
{
	struct sim_disk *d = enter(disk);
	struct names *names = vos_host_alloc(sizeof(*names));
	int rc = leave(d->below->list(d->below, path, name_add, names));

	for (unsigned i = 0; i < names->n; i++)
		each(user, names->text[i]);
	vos_host_free(names);
	return rc;
}

/* ---- queues ---- */

struct queue {
	struct mc_disk_queue base; /* must be first */
	struct mc_disk_queue_conf conf;
	struct vos_proc *proc;
	struct mc_list started, running, ended; /* mc_disk_io.link */
	bool is_busy;
};

static struct queue *queue_of(struct mc_disk_queue *queue)
{
	return (struct queue *)queue;
}

static int operate(const struct mc_disk_io *io)
{
	const struct sim_disk *d = (const struct sim_disk *)io->file->disk;
	struct mc_disk_file *f = below_of(io->file);

	if (io->op == MC_DISK_OP_READ)
		return (int)d->below->read(f, io->mem, io->len, io->off);
	if (io->op == MC_DISK_OP_WRITE)
		return (int)d->below->write(f, io->mem, io->len, io->off);
	return d->below->sync(f, true);
}

/* The device does the next one. Host. */
static void on_device(void *arg)
{
	struct queue *q = arg;
	struct mc_disk_io *io = NULL, *it;

	if (q->proc->is_dead)
		return; /* what was not done never is */
	mc_list_each (it, &q->running, link) {
		io = it;
		if (it->op == MC_DISK_OP_SYNC || vos_one_in(2))
			break;
	}
	q->is_busy = io != NULL;
	if (!io)
		return;
	mc_list_del(&io->link);
	io->res = operate(io);
	mc_list_push_back(&q->ended, &io->link);
	vos_eventfd_add(q->conf.event_fd, 1);
	vos_wake(q, UINT32_MAX);
	vos_at(vos_now() + vos_pick(sim_disk_slow_max_ns + 1), on_device, q);
}

static void queue_start(struct mc_disk_queue *queue, struct mc_disk_io *io)
{
	mc_list_push_back(&queue_of(queue)->started, &io->link);
}

static int queue_flush(struct mc_disk_queue *queue)
{
	struct queue *q = queue_of(queue);

	mc_list_splice_back(&q->running, &q->started);
	if (!q->is_busy && !mc_list_is_empty(&q->running)) {
		q->is_busy = true;
		vos_at(vos_now() + vos_pick(sim_disk_slow_max_ns + 1), on_device, q);
	}
	return 0;
}

static void report(struct queue *q)
{
	struct mc_list *node;

	while ((node = mc_list_pop_front(&q->ended))) {
		struct mc_disk_io *io = mc_list_entry(node, struct mc_disk_io, link);

		q->conf.on_done(q->conf.user, io, io->res);
	}
}

static int queue_reap(struct mc_disk_queue *queue, uint64_t block_ns)
{
	struct queue *q = queue_of(queue);
	uint64_t until = mc_time_after(vos_now(), block_ns);

	(void)queue_flush(queue);
	while (mc_list_is_empty(&q->ended) && !mc_list_is_empty(&q->running) && vos_now() < until) {
		if (!vos_wait(q, until))
			break;
	}
	report(q);
	return 0;
}

static bool queue_is_ready(struct mc_disk_queue *queue)
{
	struct queue *q = queue_of(queue);

	return !mc_list_is_empty(&q->ended) || !mc_list_is_empty(&q->started);
}

static bool queue_drain(struct mc_disk_queue *queue, uint64_t wait_ns)
{
	struct queue *q = queue_of(queue);
	struct mc_disk_io *io;

	(void)wait_ns;
	mc_list_splice_back(&q->running, &q->started);
	mc_list_each (io, &q->running, link) {
		io->res = -ECANCELED;
		mc_list_del(&io->link);
		mc_list_push_back(&q->ended, &io->link);
	}
	report(q);
	return true;
}

static void queue_close(struct mc_disk_queue *queue)
{
	(void)queue_drain(queue, 0); /* the device may still look at it: it stays */
}

static const struct mc_disk_queue_ops queue_ops = {
    .close = queue_close,
    .start = queue_start,
    .flush = queue_flush,
    .reap = queue_reap,
    .is_ready = queue_is_ready,
    .drain = queue_drain,
};

static int queue_open(struct mc_disk_aio *aio, const struct mc_disk_queue_conf *conf,
		      struct mc_disk_queue **ret_queue)
{
	struct queue *q = vos_host_alloc(sizeof(*q));

	(void)aio;
	q->base.ops = &queue_ops;
	q->conf = *conf;
	q->proc = vos_self();
	mc_list_init(&q->started);
	mc_list_init(&q->running);
	mc_list_init(&q->ended);
	*ret_queue = &q->base;
	return 0;
}

static void aio_close(struct mc_disk_aio *aio)
{
	vos_host_free(aio);
}

static const struct mc_disk_aio_ops aio_ops = {
    .close = aio_close,
    .queue_open = queue_open,
};

static int disk_aio_open(const struct mc_disk *disk, const char *no_uring,
			 struct mc_disk_aio **ret_aio)
{
	struct mc_disk_aio *aio = vos_host_alloc(sizeof(*aio));

	(void)disk;
	(void)no_uring;
	aio->ops = &aio_ops;
	(void)snprintf(aio->text, sizeof(aio->text), "simulated");
	*ret_aio = aio;
	return 0;
}

#define SIM_DISK_OPS                                                                               \
	{                                                                                          \
		.open = disk_open, .close = disk_close, .read = disk_read, .write = disk_write,    \
		.sync = disk_sync, .truncate = disk_truncate, .stat = disk_stat,                   \
		.rename = disk_rename, .unlink = disk_unlink, .mkdir = disk_mkdir,                 \
		.list = disk_list, .lock = disk_lock, .sync_dir = disk_sync_dir,                   \
		.aio_open = disk_aio_open,                                                         \
	}

/* In the place of the machine's file systems: this object file is linked before their archive. */
const struct mc_disk mc_disk_real = SIM_DISK_OPS;

/* ---- the disk ---- */

struct sim_disk *sim_disk_new(uint64_t space_bytes)
{
	struct sim_disk *d = vos_host_alloc(sizeof(*d));

	d->ops = (struct mc_disk)SIM_DISK_OPS;
	d->mem = mem_disk_open(space_bytes);
	d->below = mem_disk_ops(d->mem);
	return d;
}

const struct mc_disk *sim_disk_ops(struct sim_disk *disk)
{
	return &disk->ops;
}

void sim_disk_give(struct vos_proc *proc, struct sim_disk *disk)
{
	given[proc->index] = disk;
}

static void files_end(struct sim_disk *d, const struct vos_proc *proc)
{
	for (unsigned i = 0; i < FILES_MAX; i++) {
		if (d->files[i] && d->files[i]->proc == proc)
			file_end(d, d->files[i]);
	}
}

void sim_disk_proc_end(struct vos_proc *proc)
{
	if (given[proc->index])
		files_end(given[proc->index], proc);
}

void sim_disk_cut(struct sim_disk *disk)
{
	struct mc_rand rand;

	mc_rand_seed(&rand, vos_pick(UINT64_MAX));
	mem_disk_cut(disk->mem, vos_one_in(4) ? NULL : &rand);
}
