/*
 * disk_pool.c: operations by a few threads, where io_uring is forbidden. One list for all queues of
 * an aio.
 *
 * The owner collects what it starts and hands it over at flush(), so that a batch takes the lock
 * once. A finished operation goes to its queue's list and signals its eventfd, both under the lock:
 * after drain() has seen `running` at 0 no thread knows the queue any more.
 */
#include "io/disk_priv.h"

#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/mem.h"

static struct mc_disk_real_queue *queue_of(struct mc_disk_queue *queue)
{
	return (struct mc_disk_real_queue *)queue;
}

void mc_disk_pool_init(struct mc_disk_pool *pool)
{
	(void)pthread_mutex_init(&pool->lock, NULL); /* without attributes none of them can fail */
	(void)pthread_cond_init(&pool->more, NULL);
	(void)pthread_cond_init(&pool->quiet, NULL);
	mc_list_init(&pool->queued);
}

void mc_disk_pool_fini(struct mc_disk_pool *pool, bool has_threads)
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

static int operate(const struct mc_disk_io *op)
{
	const struct mc_disk *disk = op->file->disk;

	mc_assert(op->len <= MC_DISK_IO_MAX); /* so the count fits */
	if (op->op == MC_DISK_OP_READ)
		return (int)disk->read(op->file, op->mem, op->len, op->off);
	if (op->op == MC_DISK_OP_WRITE)
		return (int)disk->write(op->file, op->mem, op->len, op->off);
	return disk->sync(op->file, true);
}

static void event_add(int fd)
{
	uint64_t one = 1;

	/* It can only fail when 2^64 - 2 signals wait, and then the descriptor is readable. */
	while (write(fd, &one, sizeof(one)) < 0 && errno == EINTR)
		;
}

static void *pool_main(void *arg)
{
	struct mc_disk_pool *pool = arg;
	struct mc_disk_real_queue *q;
	struct mc_disk_io *op;

	(void)pthread_mutex_lock(&pool->lock);
	for (;;) {
		while (mc_list_is_empty(&pool->queued) && !pool->is_stopping)
			(void)pthread_cond_wait(&pool->more, &pool->lock);
		if (pool->is_stopping)
			break;
		op = mc_list_entry(mc_list_pop_front(&pool->queued), struct mc_disk_io, link);
		q = queue_of(op->queue);
		q->running++;
		(void)pthread_mutex_unlock(&pool->lock);
		op->res = operate(op);
		(void)pthread_mutex_lock(&pool->lock);
		mc_list_push_back(&q->finished, &op->link);
		event_add(q->conf.event_fd);
		if (--q->running == 0)
			(void)pthread_cond_broadcast(&pool->quiet);
	}
	(void)pthread_mutex_unlock(&pool->lock);
	return NULL;
}

/* Fewer threads than wanted are enough; none is an error. */
int mc_disk_pool_start(struct mc_disk_pool *pool)
{
	sigset_t all, old;
	int rc;

	(void)sigfillset(&all); /* signals are the program's */
	(void)pthread_mutex_lock(&pool->lock);
	if (pool->nthreads == 0) {
		(void)pthread_sigmask(SIG_BLOCK, &all, &old);
		while (pool->nthreads < MC_DISK_POOL_THREADS &&
		       pthread_create(&pool->threads[pool->nthreads], NULL, pool_main, pool) == 0) {
			(void)pthread_setname_np(pool->threads[pool->nthreads], "mc-file");
			pool->nthreads++;
		}
		(void)pthread_sigmask(SIG_SETMASK, &old, NULL);
	}
	rc = pool->nthreads > 0 ? 0 : -MC_E_LIMIT;
	(void)pthread_mutex_unlock(&pool->lock);
	return rc;
}

/* Idle or drained: the threads know nothing of it. */
static void pool_close(struct mc_disk_queue *queue)
{
	mc_free(queue_of(queue));
}

static void pool_start(struct mc_disk_queue *queue, struct mc_disk_io *op)
{
	struct mc_disk_real_queue *q = queue_of(queue);

	mc_assert(q->under_way < q->conf.depth);
	op->queue = queue;
	q->under_way++;
	mc_list_push_back(&q->batch, &op->link);
}

static int pool_flush(struct mc_disk_queue *queue)
{
	struct mc_disk_real_queue *q = queue_of(queue);
	struct mc_disk_pool *pool = &q->aio->pool;

	if (mc_list_is_empty(&q->batch))
		return 0;
	(void)pthread_mutex_lock(&pool->lock);
	if (q->batch.next->next == &q->batch)
		(void)pthread_cond_signal(&pool->more);
	else
		(void)pthread_cond_broadcast(&pool->more);
	mc_list_splice_back(&pool->queued, &q->batch);
	(void)pthread_mutex_unlock(&pool->lock);
	return 0;
}

/* Report what has finished. */
static void report(struct mc_disk_real_queue *q)
{
	struct mc_list finished;
	struct mc_disk_io *op;

	mc_list_init(&finished);
	(void)pthread_mutex_lock(&q->aio->pool.lock);
	mc_list_splice_back(&finished, &q->finished);
	(void)pthread_mutex_unlock(&q->aio->pool.lock);
	mc_list_each (op, &finished, link) {
		mc_list_del(&op->link);
		mc_disk_queue_done(q, op, op->res);
	}
}

static bool has_finished(struct mc_disk_real_queue *q)
{
	bool has;

	(void)pthread_mutex_lock(&q->aio->pool.lock);
	has = !mc_list_is_empty(&q->finished);
	(void)pthread_mutex_unlock(&q->aio->pool.lock);
	return has;
}

static bool pool_is_ready(struct mc_disk_queue *queue)
{
	struct mc_disk_real_queue *q = queue_of(queue);

	return !mc_list_is_empty(&q->batch) || has_finished(q);
}

static int pool_reap(struct mc_disk_queue *queue, uint64_t block_ns)
{
	struct mc_disk_real_queue *q = queue_of(queue);
	struct pollfd fd = {.fd = q->conf.event_fd, .events = POLLIN};
	struct timespec ts;
	uint64_t count;

	if (block_ns > 0) {
		(void)pool_flush(queue);
		block_ns = mc_min(block_ns, MC_DISK_WAIT_MAX_S * MC_NS_PER_S);
		ts.tv_sec = (time_t)(block_ns / MC_NS_PER_S);
		ts.tv_nsec = (long)(block_ns % MC_NS_PER_S);
		while (read(fd.fd, &count, sizeof(count)) < 0 && errno == EINTR)
			; /* EAGAIN: nothing was signalled */
		if (!has_finished(q))
			(void)ppoll(&fd, 1, &ts, NULL); /* interrupted: a short wait */
	}
	report(q);
	return 0;
}

static bool pool_drain(struct mc_disk_queue *queue, uint64_t wait_ns)
{
	uint64_t until_ns = mc_time_after(mc_now_ns(), wait_ns);
	const struct timespec until = {.tv_sec = (time_t)(until_ns / MC_NS_PER_S),
				       .tv_nsec = (long)(until_ns % MC_NS_PER_S)};
	struct mc_disk_real_queue *q = queue_of(queue);
	struct mc_disk_pool *pool = &q->aio->pool;
	struct mc_disk_io *op;
	int rc = 0;

	(void)pthread_mutex_lock(&pool->lock);
	mc_list_splice_back(&pool->queued, &q->batch);
	mc_list_each (op, &pool->queued, link) {
		if (op->queue != queue)
			continue;
		op->res = -ECANCELED;
		mc_list_del(&op->link);
		mc_list_push_back(&q->finished, &op->link);
	}
	while (q->running > 0 && rc == 0)
		rc = pthread_cond_clockwait(&pool->quiet, &pool->lock, CLOCK_MONOTONIC, &until);
	(void)pthread_mutex_unlock(&pool->lock);
	report(q);
	return q->under_way == 0;
}

const struct mc_disk_queue_ops mc_disk_pool_ops = {
    .close = pool_close,
    .start = pool_start,
    .flush = pool_flush,
    .reap = pool_reap,
    .is_ready = pool_is_ready,
    .drain = pool_drain,
};
