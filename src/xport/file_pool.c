/*
 * file_pool.c: operations by a few threads with pread and pwrite, where io_uring is forbidden. One
 * queue for all lanes of a device.
 *
 * The owner collects what it starts and hands it over at flush(), so that a batch takes the lock
 * once. A finished part goes to its lane's list and signals its eventfd, both under the lock: after
 * drain() has seen `running` at 0 no thread knows the lane any more.
 */
#include "xport/file_priv.h"

#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <unistd.h>

#define WAIT_MAX_S 3600u

static struct mc_file_part *part_of(struct mc_list *node)
{
	return mc_list_entry(node, struct mc_file_part, link);
}

void mc_file_pool_init(struct mc_file_pool *pool)
{
	(void)pthread_mutex_init(&pool->lock, NULL); /* without attributes none of them can fail */
	(void)pthread_cond_init(&pool->more, NULL);
	(void)pthread_cond_init(&pool->quiet, NULL);
	mc_list_init(&pool->queue);
}

void mc_file_pool_fini(struct mc_file_pool *pool, bool has_threads)
{
	if (!has_threads)
		return; /* the lock may be held by a thread that is not here */
	(void)pthread_mutex_lock(&pool->lock);
	pool->is_stopping = true;
	(void)pthread_cond_broadcast(&pool->more);
	(void)pthread_mutex_unlock(&pool->lock);
	for (unsigned i = 0; i < pool->nthreads; i++)
		(void)pthread_join(pool->threads[i], NULL);
	(void)pthread_cond_destroy(&pool->quiet);
	(void)pthread_cond_destroy(&pool->more);
	(void)pthread_mutex_destroy(&pool->lock);
}

static int operate(const struct mc_file_part *p)
{
	int fd = p->is_direct ? p->lane->seg->direct_fd : p->lane->seg->fd;
	ssize_t n;

	do
		n = p->op == MC_OP_READ ? pread(fd, p->mem, p->op_len, (off_t)p->off)
					: pwrite(fd, p->mem, p->op_len, (off_t)p->off);
	while (n < 0 && errno == EINTR);
	return n < 0 ? -errno : (int)n; /* op_len <= MC_FILE_CHUNK */
}

static void *pool_main(void *arg)
{
	struct mc_file_pool *pool = arg;
	struct mc_file_part *p;
	struct mc_file_lane *l;

	(void)pthread_mutex_lock(&pool->lock);
	for (;;) {
		while (mc_list_is_empty(&pool->queue) && !pool->is_stopping)
			(void)pthread_cond_wait(&pool->more, &pool->lock);
		if (pool->is_stopping)
			break;
		p = part_of(mc_list_pop_front(&pool->queue));
		l = p->lane;
		l->pool.running++;
		(void)pthread_mutex_unlock(&pool->lock);
		p->res = operate(p);
		(void)pthread_mutex_lock(&pool->lock);
		mc_list_push_back(&l->pool.finished, &p->link);
		mc_file_event_set(l);
		if (--l->pool.running == 0)
			(void)pthread_cond_broadcast(&pool->quiet);
	}
	(void)pthread_mutex_unlock(&pool->lock);
	return NULL;
}

/* Under the lock. Fewer threads than wanted are enough; none is an error. */
static int threads_start(struct mc_file_pool *pool)
{
	sigset_t all, old;

	if (pool->nthreads > 0)
		return 0;
	(void)sigfillset(&all); /* signals are the program's */
	(void)pthread_sigmask(SIG_BLOCK, &all, &old);
	while (pool->nthreads < MC_FILE_POOL_THREADS &&
	       pthread_create(&pool->threads[pool->nthreads], NULL, pool_main, pool) == 0) {
		(void)pthread_setname_np(pool->threads[pool->nthreads], "mc-file");
		pool->nthreads++;
	}
	(void)pthread_sigmask(SIG_SETMASK, &old, NULL);
	return pool->nthreads > 0 ? 0 : -MC_E_LIMIT;
}

static int pool_open(struct mc_file_lane *l)
{
	struct mc_file_pool *pool = &l->dev->pool;
	int rc;

	mc_list_init(&l->pool.batch);
	mc_list_init(&l->pool.finished);
	(void)pthread_mutex_lock(&pool->lock);
	rc = threads_start(pool);
	(void)pthread_mutex_unlock(&pool->lock);
	return rc;
}

static void pool_close(struct mc_file_lane *l)
{
	(void)l; /* idle or drained: the threads know nothing of it */
}

static void pool_start(struct mc_file_lane *l, struct mc_file_part *p)
{
	mc_list_push_back(&l->pool.batch, &p->link);
}

static int pool_flush(struct mc_file_lane *l)
{
	struct mc_file_pool *pool = &l->dev->pool;

	if (mc_list_is_empty(&l->pool.batch))
		return 0;
	(void)pthread_mutex_lock(&pool->lock);
	if (l->pool.batch.next->next == &l->pool.batch)
		(void)pthread_cond_signal(&pool->more);
	else
		(void)pthread_cond_broadcast(&pool->more);
	mc_list_splice_back(&pool->queue, &l->pool.batch);
	(void)pthread_mutex_unlock(&pool->lock);
	return 0;
}

/* Report what has finished. */
static void report(struct mc_file_lane *l)
{
	struct mc_list finished;
	struct mc_file_part *p;

	mc_list_init(&finished);
	(void)pthread_mutex_lock(&l->dev->pool.lock);
	mc_list_splice_back(&finished, &l->pool.finished);
	(void)pthread_mutex_unlock(&l->dev->pool.lock);
	mc_list_each (p, &finished, link) {
		mc_list_del(&p->link);
		mc_file_part_done(l, p, p->res);
	}
}

static bool pool_is_ready(struct mc_file_lane *l)
{
	bool is_ready;

	(void)pthread_mutex_lock(&l->dev->pool.lock);
	is_ready = !mc_list_is_empty(&l->pool.finished);
	(void)pthread_mutex_unlock(&l->dev->pool.lock);
	return is_ready;
}

static int pool_reap(struct mc_file_lane *l, uint64_t block_ns)
{
	struct pollfd fd = {.fd = l->event_fd, .events = POLLIN};
	struct timespec ts;

	if (block_ns > 0) {
		block_ns = mc_min(block_ns, WAIT_MAX_S * MC_NS_PER_S);
		ts.tv_sec = (time_t)(block_ns / MC_NS_PER_S);
		ts.tv_nsec = (long)(block_ns % MC_NS_PER_S);
		mc_file_event_clear(l);
		if (!pool_is_ready(l))
			(void)ppoll(&fd, 1, &ts, NULL); /* interrupted: a short wait */
	}
	report(l);
	return 0;
}

static void pool_drain(struct mc_file_lane *l)
{
	struct mc_file_pool *pool = &l->dev->pool;
	struct mc_list *finished = &l->pool.finished;
	struct mc_file_part *p;

	(void)pthread_mutex_lock(&pool->lock);
	mc_list_splice_back(&pool->queue, &l->pool.batch);
	mc_list_each (p, &pool->queue, link) {
		if (p->lane != l)
			continue;
		p->res = -ECANCELED;
		mc_list_del(&p->link);
		mc_list_push_back(finished, &p->link);
	}
	while (l->pool.running > 0)
		(void)pthread_cond_wait(&pool->quiet, &pool->lock);
	(void)pthread_mutex_unlock(&pool->lock);
	report(l);
}

const struct mc_file_backend mc_file_threads = {
    .open = pool_open,
    .close = pool_close,
    .start = pool_start,
    .flush = pool_flush,
    .reap = pool_reap,
    .is_ready = pool_is_ready,
    .drain = pool_drain,
};
