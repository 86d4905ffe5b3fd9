/*
 * cq.c: completion queues: a bounded ring of outcomes, an eventfd that is readable while there are
 * any.
 */
#include <sys/eventfd.h>
#include <unistd.h>

#include "base/sync.h"
#include "engine/priv.h"

#define CQ_DEPTH_MAX 65536u

struct mc_cq {
	struct mc_engine *eng; /* one reference */
	pthread_mutex_t mu;
	struct mc_completion *ring; /* under mu, as at and n */
	uint32_t depth, at, n;
	uint32_t begun;	      /* groups under way or waiting in the ring; <= depth */
	_Atomic uint32_t seq; /* futex word: bumped by each push */
	_Atomic bool is_closing;
	int fd;
};

int mc_cq_open(struct mc_engine *eng, uint32_t depth, struct mc_cq **ret_cq)
{
	struct mc_cq *q;

	if (mc_engine_is_forked(eng))
		return -MC_E_FORKED;
	if (depth == 0 || depth > CQ_DEPTH_MAX)
		return -MC_E_INVAL;
	q = mc_calloc(1, sizeof(*q));
	if (!q)
		return -MC_E_NOMEM;
	q->depth = depth;
	q->ring = mc_calloc(depth, sizeof(*q->ring));
	q->fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	if (!q->ring || q->fd < 0) {
		int rc = q->ring ? -MC_E_LIMIT : -MC_E_NOMEM;

		mc_fd_close(&q->fd);
		mc_free(q->ring);
		mc_free(q);
		return rc;
	}
	pthread_mutex_init(&q->mu, NULL);
	q->eng = mc_engine_ref(eng);
	*ret_cq = q;
	return 0;
}

int mc_cq_begin(struct mc_cq *q, const struct mc_engine *eng)
{
	int rc = 0;

	if (q->eng != eng)
		return -MC_E_INVAL;
	pthread_mutex_lock(&q->mu);
	if (atomic_load_explicit(&q->is_closing, memory_order_relaxed))
		rc = -MC_E_CLOSED;
	else if (q->begun == q->depth)
		rc = -MC_E_AGAIN;
	else
		q->begun++;
	pthread_mutex_unlock(&q->mu);
	return rc;
}

bool mc_cq_is_closing(struct mc_cq *q)
{
	return atomic_load_explicit(&q->is_closing, memory_order_relaxed);
}

void mc_cq_undo(struct mc_cq *q)
{
	pthread_mutex_lock(&q->mu);
	q->begun--;
	pthread_mutex_unlock(&q->mu);
}

void mc_cq_push(struct mc_cq *q, const struct mc_gop *op)
{
	uint64_t one = 1;

	pthread_mutex_lock(&q->mu);
	q->ring[(q->at + q->n) % q->depth] =
	    (struct mc_completion){.user = op->user,
				   .bytes = atomic_load_explicit(&op->bytes, memory_order_relaxed),
				   .status = op->status};
	q->n++;
	if (q->n == 1)
		(void)!write(q->fd, &one, sizeof(one)); /* full counter: it is readable anyway */
	/* release: pairs with the acquire in mc_cq_wait() */
	atomic_fetch_add_explicit(&q->seq, 1, memory_order_release);
	mc_futex_wake(&q->seq, 1);
	pthread_mutex_unlock(&q->mu);
}

static uint32_t take(struct mc_cq *q, struct mc_completion *ret, uint32_t max)
{
	uint32_t n = 0;
	uint64_t drop;

	pthread_mutex_lock(&q->mu);
	while (n < max && q->n > 0) {
		ret[n++] = q->ring[q->at];
		q->at = (q->at + 1) % q->depth;
		q->n--;
		q->begun--;
	}
	if (n > 0 && q->n == 0)
		(void)!read(q->fd, &drop, sizeof(drop));
	pthread_mutex_unlock(&q->mu);
	return n;
}

int mc_cq_wait(struct mc_cq *q, struct mc_completion *ret, uint32_t max, uint64_t timeout_ns)
{
	uint64_t deadline_ns = timeout_ns ? mc_time_after(mc_now_ns(), timeout_ns) : 0;

	if (mc_engine_is_forked(q->eng))
		return -MC_E_FORKED;
	for (;;) {
		uint32_t seq = atomic_load_explicit(&q->seq, memory_order_acquire);
		uint32_t n = take(q, ret, max);

		if (n > 0 || timeout_ns == 0)
			return (int)n;
		if (mc_futex_wait(&q->seq, seq, deadline_ns) == -MC_E_TIMEDOUT)
			return (int)take(q, ret, max);
	}
}

int mc_cq_fd(struct mc_cq *q)
{
	return mc_engine_is_forked(q->eng) ? -MC_E_FORKED : q->fd;
}

void mc_cq_close(struct mc_cq *q)
{
	struct mc_completion c[64];
	uint32_t begun;

	if (!q || mc_engine_is_forked(q->eng))
		return; /* a child's copy: the lock may be held by a thread that it has not */
	pthread_mutex_lock(&q->mu); /* whoever began before is seen below */
	atomic_store_explicit(&q->is_closing, true, memory_order_relaxed);
	pthread_mutex_unlock(&q->mu);
	mc_watch_cq_closed(q->eng, q);
	for (;;) {
		pthread_mutex_lock(&q->mu);
		begun = q->begun;
		pthread_mutex_unlock(&q->mu);
		if (begun == 0)
			break;
		(void)mc_cq_wait(q, c, MC_ARRAY_LEN(c), 10 * MC_NS_PER_MS);
	}
	mc_fd_close(&q->fd);
	pthread_mutex_destroy(&q->mu);
	mc_engine_close(q->eng);
	mc_free(q->ring);
	mc_free(q);
}
