/*
 * pend.c: groups that cannot start before their peer was asked: its process has to be found anew,
 * or knows ranges that we do not. mc_submit() never waits for that: it keeps the request, and a
 * worker asks.
 *
 * A peer has at most one worker, so that one that stands still takes no more than that of the
 * engine's few, and gives it up after each try. A try is short at first: it is what a closing
 * engine waits for. Until the worker is through the group belongs to a loop, which ends it on
 * cancel, deadline or close; the worker's answer then finds it over.
 */
#include <string.h>

#include "base/log.h"
#include "engine/pump.h"

#define LOOK_NS (40 * MC_NS_PER_MS)
#define TRY_NS MC_NS_PER_S
#define TRY_MAX_NS (4 * MC_NS_PER_S)

struct mc_pend {
	struct mc_list todo;   /* mc_peer.pend_todo, under its mu */
	struct mc_list shown;  /* mc_peer.pending, its loop's */
	struct mc_gop *op;     /* one reference */
	struct mc_peer *peer;  /* whose answer is waited for */
	struct mc_group group; /* its transfers are copies that follow this struct; its message and
				  signals are the group's already, and not to be read any more */
	struct mc_task task;   /* to the loop, and once more when the worker is through */
	uint64_t try_ns;
	uint32_t nclosed;     /* mc_peer.nclosed as of the submit */
	_Atomic bool is_over; /* the loop has ended the group; the worker need not go on */
	int rc;		      /* the worker's */
	struct mc_diag diag;
};

/* ---- keeping the request ---- */

static int copies_len(const struct mc_group *g, size_t *ret_len)
{
	size_t len = sizeof(struct mc_pend) + g->n * sizeof(struct mc_transfer), add;

	for (uint32_t t = 0; t < g->n; t++) {
		add = ((size_t)g->transfers[t].nlocal + g->transfers[t].nremote) *
		      sizeof(struct mc_iov);
		if (__builtin_add_overflow(len, add, &len))
			return -MC_E_TOO_BIG;
	}
	*ret_len = len;
	return 0;
}

static struct mc_iov *iov_copy(struct mc_iov *to, const struct mc_iov *from, uint32_t n,
			       const struct mc_iov **ret)
{
	*ret = to;
	if (n)
		memcpy(to, from, n * sizeof(*to));
	return to + n;
}

int mc_pend_open(struct mc_gop *op, const struct mc_group *g, struct mc_peer *peer,
		 struct mc_pend **ret_pend)
{
	struct mc_transfer *x;
	struct mc_pend *p;
	struct mc_iov *v;
	size_t len;
	int rc = copies_len(g, &len);

	if (rc < 0)
		return rc;
	p = mc_calloc(1, len);
	if (!p)
		return -MC_E_NOMEM;
	x = (struct mc_transfer *)(p + 1);
	v = (struct mc_iov *)(x + g->n);
	for (uint32_t t = 0; t < g->n; t++) {
		x[t] = g->transfers[t];
		v = iov_copy(v, x[t].local, x[t].nlocal, &x[t].local);
		v = iov_copy(v, x[t].remote, x[t].nremote, &x[t].remote);
	}
	p->group = *g;
	p->group.transfers = x;
	mc_gop_ref(op);
	p->op = op;
	p->peer = peer;
	p->nclosed = atomic_load_explicit(&peer->nclosed, memory_order_relaxed);
	p->try_ns = TRY_NS;
	mc_list_init(&p->todo);
	mc_list_init(&p->shown);
	*ret_pend = p;
	return 0;
}

void mc_pend_drop(struct mc_pend *p)
{
	if (!p)
		return;
	mc_gop_put(p->op);
	mc_free(p);
}

/* ---- the loop's side ---- */

static struct mc_loop *loop_of(const struct mc_peer *peer)
{
	return peer->eng->loops[(unsigned)peer->id % peer->eng->nloops];
}

/* Why the group has to end now; 0: it goes on. */
static int over(const struct mc_pend *p, uint64_t now_ns)
{
	struct mc_gop *op = p->op;

	if (atomic_load_explicit(&op->eng->is_closing, memory_order_relaxed) ||
	    atomic_load_explicit(&p->peer->nclosed, memory_order_relaxed) != p->nclosed)
		return -MC_E_CLOSED;
	if (atomic_load_explicit(&op->is_canceled, memory_order_relaxed) ||
	    (op->cq && mc_cq_is_closing(op->cq)))
		return -MC_E_CANCELED;
	return now_ns >= op->soft_ns ? -MC_E_TIMEDOUT : 0;
}

/* The group ends before it began. @param why  what the worker says of it, "": it was not asked, and
 * may be writing that at this moment */
static void end(struct mc_pend *p, int rc, const char *why)
{
	struct mc_gop *op = p->op;

	mc_list_del(&p->shown);
	/* relaxed: the worker only saves itself work by it */
	atomic_store_explicit(&p->is_over, true, memory_order_relaxed);
	op->status = rc;
	op->has_diag = true;
	if (why[0])
		mc_diag_set(&op->diag, "%s", why);
	else
		mc_diag_set(&op->diag, "segment %s: not started, waiting for an answer: %s",
			    p->peer->name, mc_err_text(rc));
	for (size_t t = 0; t < op->nt; t++) {
		atomic_store_explicit(&op->t[t].status, rc, memory_order_relaxed);
		/* release: who sees it done sees its status */
		atomic_store_explicit(&op->t[t].is_done, true, memory_order_release);
	}
	mc_gop_ref(op); /* the driver's, ended by mc_gop_finish() */
	mc_gop_finish(op);
}

static void look(struct mc_timer *timer)
{
	struct mc_peer *peer = mc_container_of(timer, struct mc_peer, pend_timer);
	uint64_t now_ns = mc_now_ns();
	struct mc_pend *p;

	mc_list_each (p, &peer->pending, shown) {
		int rc = over(p, now_ns);

		if (rc < 0)
			end(p, rc, "");
	}
	if (!mc_list_is_empty(&peer->pending))
		(void)mc_loop_timer_set(loop_of(peer), timer, mc_time_after(now_ns, LOOK_NS));
}

static void show(struct mc_task *task)
{
	struct mc_pend *p = mc_container_of(task, struct mc_pend, task);
	struct mc_peer *peer = p->peer;
	bool is_idle;

	mc_list_push_back(&peer->pending, &p->shown);
	if (!peer->pend_timer.is_set) {
		peer->pend_timer.on_time = look;
		if (mc_loop_timer_set(loop_of(peer), &peer->pend_timer,
				      mc_time_after(mc_now_ns(), LOOK_NS)) < 0)
			end(p, -MC_E_LIMIT, ""); /* nobody would see its deadline */
	}
	/* Only now: the worker's answer comes by the same task. */
	pthread_mutex_lock(&peer->mu);
	mc_list_push_back(&peer->pend_todo, &p->todo);
	is_idle = !peer->is_asking;
	peer->is_asking = true;
	pthread_mutex_unlock(&peer->mu);
	if (is_idle)
		mc_work_post(peer->eng, &peer->pend_job);
}

/* The worker is through, if the group still waits for it. */
static void answered(struct mc_task *task)
{
	struct mc_pend *p = mc_container_of(task, struct mc_pend, task);
	struct mc_peer *peer = p->peer;

	if (!mc_list_is_empty(&p->shown)) {
		if (p->rc < 0) {
			end(p, p->rc, p->diag.text);
		} else {
			mc_list_del(&p->shown);
			mc_async_start(p->op);
		}
	}
	if (mc_list_is_empty(&peer->pending) && peer->pend_timer.is_set)
		mc_loop_timer_cancel(loop_of(peer), &peer->pend_timer);
	mc_pend_drop(p);
}

/* ---- the worker's side ---- */

/* @return false: once more, later */
static bool ask(struct mc_pend *p)
{
	struct mc_gop *op = p->op;
	uint64_t now_ns = mc_now_ns(), until_ns;
	struct mc_peer *at;

	p->rc = -MC_E_CLOSED;
	if (atomic_load_explicit(&p->is_over, memory_order_relaxed) ||
	    atomic_load_explicit(&op->eng->is_closing, memory_order_relaxed))
		return true;
	until_ns = mc_min(op->soft_ns, mc_time_after(now_ns, p->try_ns));
	p->diag.text[0] = '\0';
	p->rc = mc_gop_build(op, &p->group, until_ns, &p->diag, &at);
	if (p->rc == 0)
		return true;
	now_ns = mc_now_ns();
	/* Whatever it says, it may be for want of time. */
	if (now_ns >= until_ns && now_ns < op->soft_ns) {
		p->try_ns = mc_min(p->try_ns * 2, TRY_MAX_NS);
		return false;
	}
	if (p->rc == -MC_E_STALE) { /* its id was good when the group was submitted */
		p->rc = -MC_E_CLOSED;
		p->diag.text[0] = '\0'; /* which it says, without the segment's name */
	}
	return true;
}

static void work(struct mc_worker_job *job)
{
	struct mc_peer *peer = mc_container_of(job, struct mc_peer, pend_job);
	struct mc_pend *p;
	bool is_through;

	pthread_mutex_lock(&peer->mu);
	p = mc_list_entry(mc_list_pop_front(&peer->pend_todo), struct mc_pend, todo);
	pthread_mutex_unlock(&peer->mu);
	is_through = ask(p);
	pthread_mutex_lock(&peer->mu);
	if (!is_through)
		mc_list_push_back(&peer->pend_todo, &p->todo);
	peer->is_asking = !mc_list_is_empty(&peer->pend_todo);
	/* The peer is there as long as a group of its is. */
	if (peer->is_asking)
		mc_work_post(peer->eng, &peer->pend_job);
	pthread_mutex_unlock(&peer->mu);
	if (is_through) {
		p->task.run = answered;
		mc_loop_post(loop_of(peer), &p->task);
	}
}

void mc_pend_peer_init(struct mc_peer *peer)
{
	mc_list_init(&peer->pending);
	mc_list_init(&peer->pend_todo);
	peer->pend_job.run = work;
}

void mc_pend_start(struct mc_pend *p)
{
	p->op->loop = loop_of(p->peer); /* a loop's: its end is waited for */
	p->task.run = show;
	mc_loop_post(p->op->loop, &p->task);
}
