/*
 * queue.c: operations in the order of their calls. A caller that finds nothing queued runs its
 * operation itself; asynchronous ones are run by a thread of the group, and while some are left all
 * others go behind them.
 */
#include <string.h>

#include "base/clock.h"
#include "base/sync.h"
#include "coll/priv.h"

/* An operation of the background. */
struct queued {
	struct mc_coll_work work;
	struct mc_coll_op op;
	struct mc_coll_part parts[]; /* in, then out */
};

struct mc_coll_queue {
	pthread_mutex_t lock; /* guards the rest; before run_lock never held */
	pthread_cond_t wake;
	struct mc_list works;
	unsigned nworks; /* queued or running */
	bool is_closing;
	pthread_t thread;
};

static void release(struct mc_coll_work *w)
{
	if (atomic_fetch_sub_explicit(&w->nowners, 1, memory_order_acq_rel) == 1)
		mc_free(w);
}

void mc_coll_work_end(struct mc_coll_work *w)
{
	/* release: the result and what the operation wrote */
	atomic_store_explicit(&w->is_done, 1, memory_order_release);
	mc_futex_wake(&w->is_done, UINT32_MAX >> 1);
	release(w);
}

static void *worker(void *arg)
{
	struct mc_coll *g = arg;
	struct mc_coll_queue *q = g->queue;
	int rc;

	pthread_mutex_lock(&q->lock);
	while (!q->is_closing) {
		struct queued *w = mc_list_first(&q->works, struct queued, work.link);

		if (!w) {
			pthread_cond_wait(&q->wake, &q->lock);
			continue;
		}
		mc_list_del(&w->work.link);
		pthread_mutex_unlock(&q->lock);
		pthread_mutex_lock(&g->run_lock);
		rc = mc_coll_execute(g, &w->op, &w->work.result);
		w->work.result.rc = rc;
		pthread_mutex_unlock(&g->run_lock);
		mc_coll_work_end(&w->work);
		pthread_mutex_lock(&q->lock);
		q->nworks--;
	}
	pthread_mutex_unlock(&q->lock);
	return NULL;
}

static int queue_open(struct mc_coll *g)
{
	struct mc_coll_queue *q = mc_calloc(1, sizeof(*q));

	if (!q)
		return -MC_E_NOMEM;
	pthread_mutex_init(&q->lock, NULL);
	pthread_cond_init(&q->wake, NULL);
	mc_list_init(&q->works);
	g->queue = q;
	if (pthread_create(&q->thread, NULL, worker, g) != 0) {
		g->queue = NULL;
		mc_free(q);
		return -MC_E_LIMIT;
	}
	return 0;
}

void mc_coll_queue_close(struct mc_coll *g)
{
	struct mc_coll_queue *q = g->queue;
	struct mc_coll_work *w;

	if (!q)
		return;
	pthread_mutex_lock(&q->lock);
	q->is_closing = true;
	pthread_cond_signal(&q->wake);
	pthread_mutex_unlock(&q->lock);
	/* What runs waits for others, perhaps for ever. */
	atomic_store_explicit(&g->is_aborted, true, memory_order_release);
	mc_coll_stir(g);
	(void)pthread_join(q->thread, NULL);
	mc_list_each (w, &q->works, link) {
		w->result = (struct mc_coll_result){.rc = -MC_E_CLOSED};
		mc_coll_work_end(w);
	}
	pthread_cond_destroy(&q->wake);
	pthread_mutex_destroy(&q->lock);
	mc_free(q);
	g->queue = NULL;
}

static bool is_busy(struct mc_coll *g)
{
	bool busy;

	if (!g->queue)
		return false;
	pthread_mutex_lock(&g->queue->lock);
	busy = g->queue->nworks > 0;
	pthread_mutex_unlock(&g->queue->lock);
	return busy;
}

int mc_coll_start(struct mc_coll *g, const struct mc_coll_op *op, struct mc_coll_work **ret_work)
{
	struct queued *w;
	int rc;

	if (mc_fork_is_child(g->fork_gen))
		return -MC_E_FORKED;
	if (op->nin > MC_COLL_RANKS_MAX || op->nout > MC_COLL_RANKS_MAX)
		return -MC_E_INVAL;
	rc = g->queue ? 0 : queue_open(g);
	if (rc < 0)
		return rc;
	w = mc_calloc(1, sizeof(*w) + (op->nin + op->nout) * sizeof(w->parts[0]));
	if (!w)
		return -MC_E_NOMEM;
	w->op = *op;
	if (op->nin)
		memcpy(w->parts, op->in, op->nin * sizeof(w->parts[0]));
	if (op->nout)
		memcpy(w->parts + op->nin, op->out, op->nout * sizeof(w->parts[0]));
	w->op.in = w->parts;
	w->op.out = w->parts + op->nin;
	atomic_store_explicit(&w->work.nowners, 2, memory_order_relaxed);
	pthread_mutex_lock(&g->queue->lock);
	if (g->queue->nworks >= MC_COLL_OPS_MAX) {
		pthread_mutex_unlock(&g->queue->lock);
		mc_free(w);
		return -MC_E_AGAIN;
	}
	g->queue->nworks++;
	mc_list_push_back(&g->queue->works, &w->work.link);
	pthread_cond_signal(&g->queue->wake);
	pthread_mutex_unlock(&g->queue->lock);
	*ret_work = &w->work;
	return 0;
}

int mc_coll_work_wait(struct mc_coll_work *w, uint64_t timeout_ns,
		      struct mc_coll_result *ret_result)
{
	uint64_t deadline_ns = mc_time_after(timeout_ns ? mc_now_ns() : 0, timeout_ns);
	int rc = 0;

	if (w->mail_of && !atomic_load_explicit(&w->is_done, memory_order_acquire)) {
		rc = mc_coll_mail_drive(w->mail_of, w, timeout_ns ? deadline_ns : 0);
		rc = rc == -MC_E_CANCELED ? 0 : rc; /* its group ends it, or nobody */
	}

	/* acquire: pairs with the release in end() */
	while (!atomic_load_explicit(&w->is_done, memory_order_acquire)) {
		if (rc == -MC_E_TIMEDOUT || timeout_ns == 0)
			return -MC_E_TIMEDOUT;
		rc = mc_futex_wait(&w->is_done, 0, deadline_ns);
	}
	if (ret_result)
		*ret_result = w->result;
	return 0;
}

void mc_coll_work_free(struct mc_coll_work *w)
{
	if (w)
		release(w);
}

int mc_coll_run(struct mc_coll *g, const struct mc_coll_op *op, struct mc_coll_result *ret_result)
{
	struct mc_coll_result result;
	struct mc_coll_work *w;
	int rc;

	if (is_busy(g)) {
		rc = mc_coll_start(g, op, &w);
		if (rc < 0)
			return rc;
		rc = mc_coll_work_wait(w, MC_TIME_NEVER, &result);
		mc_coll_work_free(w);
		if (rc < 0)
			return rc;
	} else {
		pthread_mutex_lock(&g->run_lock);
		rc = mc_coll_execute(g, op, &result);
		result.rc = rc;
		pthread_mutex_unlock(&g->run_lock);
	}
	if (ret_result)
		*ret_result = result;
	return result.rc;
}
