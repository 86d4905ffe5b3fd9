/*
 * group.c: a group under way: begun, counted down, ended once. Nothing is allocated once the pool
 * is warm: a group keeps its arrays, which build.c fills.
 */
#include <string.h>

#include "base/log.h"
#include "base/sync.h"
#include "engine/pump.h"

#define POOL_MAX 256u /* groups kept for reuse */
#define POOL_WARM 8u  /* of which are there from the start, with room for this: */
#define WARM_SLICES 8u
#define KEEP_FRAGS_MAX 8192u /* larger arrays are given back */
#define FENCE_GRACE_NS MC_NS_PER_S
#define GROUP_SIZE_MIN offsetof(struct mc_group, signals) /* as first released */

void mc_gop_ref(struct mc_gop *op)
{
	atomic_fetch_add_explicit(&op->refs, 1, memory_order_relaxed);
}

static void gop_free(struct mc_gop *op)
{
	mc_free(op->t);
	mc_free(op->frags);
	mc_free(op->slices);
	mc_free(op->signals);
	mc_free(op);
}

static struct mc_gop *pool_take(struct mc_engine *eng)
{
	struct mc_list *n;

	pthread_mutex_lock(&eng->pool_mu);
	n = mc_list_pop_front(&eng->pool);
	if (n)
		eng->pool_n--;
	pthread_mutex_unlock(&eng->pool_mu);
	return n ? mc_list_entry(n, struct mc_gop, pool_link) : mc_calloc(1, sizeof(struct mc_gop));
}

/* Sessions, notification: everything the group holds but its memory. */
static void gop_clear(struct mc_gop *op)
{
	op->nt = op->nsignals = 0;
	mc_gop_unbuild(op);
	mc_free(op->notify_name);
	mc_free(op->notify_msg);
	op->notify_name = op->notify_msg = NULL;
}

void mc_gop_put(struct mc_gop *op)
{
	struct mc_engine *eng = op->eng;
	bool is_kept;

	/* acq_rel: what other holders wrote is seen by the one that clears */
	if (atomic_fetch_sub_explicit(&op->refs, 1, memory_order_acq_rel) != 1)
		return;
	gop_clear(op);
	pthread_mutex_lock(&eng->pool_mu);
	is_kept = eng->pool_n < POOL_MAX && op->frags_cap <= KEEP_FRAGS_MAX;
	if (is_kept) {
		mc_list_push_front(&eng->pool, &op->pool_link);
		eng->pool_n++;
	}
	pthread_mutex_unlock(&eng->pool_mu);
	if (!is_kept)
		gop_free(op);
	atomic_fetch_sub_explicit(&eng->gops_live, 1, memory_order_release);
}

/* A group is given back a moment after its waiter has heard of its end, so even one caller in turn
 * needs several. */
int mc_gop_pool_init(struct mc_engine *eng)
{
	int rc = 0;

	for (unsigned i = 0; i < POOL_WARM && rc == 0; i++) {
		struct mc_gop *op = mc_calloc(1, sizeof(*op));

		if (!op)
			return -MC_E_NOMEM;
		mc_list_push_front(&eng->pool, &op->pool_link);
		eng->pool_n++;
		rc = mc_array_grow((void **)&op->t, &op->t_cap, WARM_SLICES, MC_GROUP_MAX,
				   sizeof(*op->t));
		if (rc == 0)
			rc = mc_array_grow((void **)&op->frags, &op->frags_cap, WARM_SLICES,
					   MC_GROUP_FRAGS_MAX, sizeof(*op->frags));
		if (rc == 0)
			rc = mc_array_grow((void **)&op->slices, &op->slices_cap, WARM_SLICES,
					   MC_GROUP_FRAGS_MAX, sizeof(*op->slices));
	}
	return rc;
}

void mc_gop_pool_fini(struct mc_engine *eng)
{
	struct mc_list *n;

	while ((n = mc_list_pop_front(&eng->pool)))
		gop_free(mc_list_entry(n, struct mc_gop, pool_link));
}

/* ---- opening ---- */

static int sum_iov(const struct mc_iov *v, uint32_t n, uint64_t *ret_sum)
{
	uint64_t sum = 0, end;

	for (uint32_t i = 0; i < n; i++)
		if (__builtin_add_overflow(sum, v[i].len, &sum) ||
		    __builtin_add_overflow(v[i].addr, v[i].len, &end))
			return -MC_E_INVAL;
	*ret_sum = sum;
	return 0;
}

static int check_transfer(const struct mc_transfer *x, uint64_t *ret_len, struct mc_diag *diag)
{
	uint64_t l, r;

	if (x->op > MC_WRITE || x->nlocal > MC_IOV_MAX || x->nremote > MC_IOV_MAX ||
	    (x->nlocal && !x->local) || (x->nremote && !x->remote)) {
		mc_diag_set(diag, "transfer has a bad opcode (%u) or range count (%u, %u)", x->op,
			    x->nlocal, x->nremote);
		return -MC_E_INVAL;
	}
	if (sum_iov(x->local, x->nlocal, &l) < 0 || sum_iov(x->remote, x->nremote, &r) < 0 ||
	    l != r) {
		mc_diag_set(diag, "local and remote ranges differ in length, or wrap around");
		return -MC_E_INVAL;
	}
	for (uint32_t i = 0; i < x->nlocal; i++)
		if (x->local[i].len && !x->local[i].addr) {
			mc_diag_set(diag, "local address of range %u is NULL", i);
			return -MC_E_INVAL;
		}
	*ret_len = l;
	return 0;
}

static int copy_notify(struct mc_gop *op, const struct mc_notify *n)
{
	op->notify_name = mc_calloc(1, n->name_len + 1u);
	op->notify_msg = mc_calloc(1, n->msg_len + 1u);
	if (!op->notify_name || !op->notify_msg)
		return -MC_E_NOMEM;
	if (n->name_len)
		memcpy(op->notify_name, n->name, n->name_len);
	if (n->msg_len)
		memcpy(op->notify_msg, n->msg, n->msg_len);
	op->notify_name_len = n->name_len;
	op->notify_msg_len = n->msg_len;
	return 0;
}

static int signals_take(struct mc_gop *op, const struct mc_group *g, struct mc_diag *diag)
{
	int rc = mc_array_grow((void **)&op->signals, &op->signals_cap, g->nsignals, MC_GROUP_MAX,
			       sizeof(*op->signals));

	if (rc < 0)
		return rc;
	for (uint32_t i = 0; i < g->nsignals; i++) {
		const struct mc_put_signal *s = &g->signals[i];

		if (s->transfer >= g->n || s->addr % sizeof(uint64_t) != 0 ||
		    op->t[s->transfer].len == 0 || op->t[s->transfer].signal != 0) {
			mc_diag_set(diag,
				    "signal %u to 0x%llx after transfer %u: the address must be "
				    "8-byte aligned, the transfer have bytes and one signal",
				    i, (unsigned long long)s->addr, s->transfer);
			return -MC_E_INVAL;
		}
		op->signals[i] = (struct mc_gsignal){.addr = s->addr, .value = s->value};
		op->t[s->transfer].signal = i + 1;
	}
	op->nsignals = g->nsignals;
	return 0;
}

static int gop_begin(struct mc_gop *op, const struct mc_group *g, struct mc_diag *diag)
{
	struct mc_engine *eng = op->eng;
	uint64_t timeout_ns =
	    g->deadline_ns ? g->deadline_ns : (uint64_t)eng->conf.transfer_timeout_s * MC_NS_PER_S;
	uint64_t total = 0;
	int rc;

	atomic_store_explicit(&op->refs, 1, memory_order_relaxed);
	atomic_store_explicit(&op->state, MC_GOP_RUNNING, memory_order_relaxed);
	atomic_store_explicit(&op->is_canceled, false, memory_order_relaxed);
	atomic_store_explicit(&op->bytes, 0, memory_order_relaxed);
	op->is_expired = op->has_diag = op->is_watch = false;
	op->status = 0;
	op->id = 0;
	op->cq = NULL;
	op->loop = NULL;
	op->within = NULL;
	op->tap = NULL;
	op->user = g->user;
	op->prio = (enum mc_priority)g->priority;
	op->op = MC_OP_READ;
	op->begin_ns = mc_now_ns();
	op->deadline_ns = mc_time_after(op->begin_ns, timeout_ns);
	/* A write that is cut off needs time to be fenced before the deadline. */
	op->soft_ns = op->deadline_ns - mc_min(FENCE_GRACE_NS, timeout_ns / 4);
	rc = mc_array_grow((void **)&op->t, &op->t_cap, g->n, MC_GROUP_MAX, sizeof(*op->t));
	if (rc < 0)
		return rc;
	op->nt = g->n;
	if (g->n)
		memset(op->t, 0, g->n * sizeof(*op->t));
	for (uint32_t t = 0; t < g->n; t++) {
		rc = check_transfer(&g->transfers[t], &op->t[t].len, diag);
		if (rc < 0)
			return rc;
		if (__builtin_add_overflow(total, op->t[t].len, &total))
			return -MC_E_TOO_BIG;
	}
	rc = signals_take(op, g, diag);
	if (rc < 0)
		return rc;
	return g->notify ? copy_notify(op, g->notify) : 0;
}

void mc_group_read(struct mc_group *to, const struct mc_group *from)
{
	memset(to, 0, sizeof(*to));
	memcpy(to, from, mc_min((size_t)from->size, sizeof(*to)));
	to->size = from->size;
}

int mc_gop_open(struct mc_engine *eng, const struct mc_group *g, struct mc_diag *diag,
		struct mc_gop **ret_op)
{
	struct mc_gop *op;
	int rc;

	if (g->size < GROUP_SIZE_MIN || g->n > MC_GROUP_MAX || g->priority >= MC_PRIO_COUNT ||
	    (g->n && !g->transfers) || g->nsignals > g->n || (g->nsignals && !g->signals)) {
		mc_diag_set(diag,
			    "group is malformed: size %u, %u transfers, %u signals, priority %u",
			    g->size, g->n, g->nsignals, g->priority);
		return -MC_E_INVAL;
	}
	rc = g->notify ? mc_notify_check(g->notify) : 0;
	if (rc < 0) {
		mc_diag_set(diag, "notification of %u and %u bytes: %s", g->notify->name_len,
			    g->notify->msg_len, mc_err_text(rc));
		return rc;
	}
	/* seq_cst: pairs with the closing engine's store and its wait for zero */
	if (atomic_fetch_add(&eng->gops_live, 1) >= MC_GROUPS_MAX ||
	    atomic_load(&eng->is_closing)) {
		atomic_fetch_sub(&eng->gops_live, 1);
		return atomic_load(&eng->is_closing) ? -MC_E_CLOSED : -MC_E_AGAIN;
	}
	op = pool_take(eng);
	if (!op) {
		atomic_fetch_sub(&eng->gops_live, 1);
		return -MC_E_NOMEM;
	}
	op->eng = eng;
	mc_list_init(&op->pool_link);
	rc = gop_begin(op, g, diag);
	if (rc < 0) {
		mc_gop_put(op);
		return rc;
	}
	*ret_op = op;
	return 0;
}

/* ---- ending ---- */

static void set_failure(struct mc_eslice *es, int status, const char *route)
{
	struct mc_gop *op = es->op;
	const struct mc_frag *f = &es->s.frags[es->s.bad_frag < es->s.nfrags ? es->s.bad_frag : 0];

	if (op->status == 0)
		op->status = status;
	if (op->has_diag)
		return;
	op->has_diag = true;
	if (es->is_bare || (es->is_signal && es->s.bad_frag == es->s.nfrags)) {
		mc_diag_set(&op->diag, "signal to 0x%llx, peer %s, transport %s: %s",
			    (unsigned long long)(es->is_bare ? f->raddr : es->s.signal.raddr),
			    es->session->peer->name, route, mc_err_text(status));
		return;
	}
	if (status == -MC_E_UNFENCED && es->s.op == MC_OP_READ) {
		mc_diag_set(
		    &op->diag,
		    "read of %llu bytes at 0x%llx into memory at %p, peer %s, transport %s: %s",
		    (unsigned long long)f->len, (unsigned long long)f->raddr, (void *)f->local,
		    es->session->peer->name, route, mc_err_text(status));
		return;
	}
	mc_diag_set(&op->diag, "%s of %llu bytes at 0x%llx, peer %s, transport %s: %s",
		    es->s.op == MC_OP_WRITE ? "write" : "read", (unsigned long long)f->len,
		    (unsigned long long)f->raddr, es->session->peer->name, route,
		    mc_err_text(status));
}

/* What was kept back until these transfers had one slice left goes now, or never. */
static void release_held(struct mc_gop *op, uint32_t t_first, uint32_t t_last, struct mc_pump *pump,
			 const char *route)
{
	for (uint32_t t = t_first; t <= t_last; t++) {
		struct mc_tstate *ts = &op->t[t];
		struct mc_gsignal *sig = ts->signal ? &op->signals[ts->signal - 1] : NULL;
		struct mc_eslice *held;
		int status;

		if (!sig || sig->held == 0 || ts->slices_left != 1)
			continue;
		held = &op->slices[sig->held - 1];
		sig->held = 0;
		status = atomic_load_explicit(&ts->status, memory_order_relaxed);
		if (status < 0)
			mc_gop_slice_end(held, status, route);
		else
			mc_pump_add(pump, held);
	}
}

void mc_gop_slice_end(struct mc_eslice *es, int status, const char *route)
{
	uint32_t t_first = es->t_first, t_last = es->t_last;
	struct mc_pump *pump = es->pump;
	struct mc_gop *op = es->op;

	if (status < 0) {
		mc_stats_error(op->eng, es, status);
		set_failure(es, status, route);
	} else if (!es->is_bare)
		atomic_store_explicit(
		    &op->bytes, atomic_load_explicit(&op->bytes, memory_order_relaxed) + es->s.len,
		    memory_order_relaxed);
	for (uint32_t t = t_first; t <= t_last; t++) {
		struct mc_tstate *ts = &op->t[t];

		if (ts->slices_left == 0)
			continue; /* a transfer without bytes in between */
		if (status < 0 && atomic_load_explicit(&ts->status, memory_order_relaxed) == 0)
			atomic_store_explicit(&ts->status, status, memory_order_relaxed);
		if (--ts->slices_left == 0)
			/* release: who sees it done sees its status and its bytes */
			atomic_store_explicit(&ts->is_done, true, memory_order_release);
	}
	mc_assert(op->slices_left > 0);
	op->slices_left--;
	if (op->slices_left == 0 && op->loop) {
		mc_gop_end(op);
	} else if (op->nsignals > 0 && op->slices_left > 0) {
		mc_gop_ref(op); /* the last one that is held back may end the group */
		release_held(op, t_first, t_last, pump, route);
		mc_gop_put(op);
	}
}

void mc_gop_finish(struct mc_gop *op)
{
	struct mc_cq *cq = op->cq;

	if (!op->is_watch && !op->within)
		mc_stats_done(op);
	if (op->status < 0 && !op->is_watch && !op->within)
		mc_log_info("group failed", "cause=\"%s\"", op->diag.text);
	/* release: waiters see the outcome */
	atomic_store_explicit(&op->state, MC_GOP_DONE, memory_order_release);
	if (op->loop) /* else its driver is the only one who knows it */
		mc_futex_wake(&op->state, UINT32_MAX);
	if (cq) {
		(void)mc_ids_del(op->eng->groups, op->id); /* stale: its owner freed it already */
		mc_cq_push(cq, op);			   /* the queue may be gone after this */
	}
	if (op->loop)
		mc_gop_put(op); /* the driver's reference */
}

struct notify_job {
	struct mc_worker_job job;
	struct mc_gop *op;
};

static void notify_now(struct mc_gop *op)
{
	int rc = mc_notify_deliver(op->notify_session, op->notify_name, op->notify_name_len,
				   op->notify_msg, op->notify_msg_len, op->deadline_ns);

	if (rc == 0)
		return;
	op->status = rc;
	op->has_diag = true;
	mc_diag_set(&op->diag, "notification to %s after the transfers: %s",
		    op->notify_session->peer->name, mc_err_text(rc));
}

static void notify_work(struct mc_worker_job *job)
{
	struct notify_job *n = mc_container_of(job, struct notify_job, job);
	struct mc_gop *op = n->op;

	notify_now(op);
	mc_free(n);
	mc_gop_finish(op);
}

void mc_gop_end(struct mc_gop *op)
{
	struct notify_job *n;

	if (op->status < 0 || !op->notify_session) {
		mc_gop_finish(op);
		return;
	}
	if (!op->loop) {
		notify_now(op);
		mc_gop_finish(op);
		return;
	}
	n = mc_calloc(1, sizeof(*n));
	if (!n) {
		op->status = -MC_E_NOMEM;
		mc_gop_finish(op);
		return;
	}
	n->job.run = notify_work;
	n->op = op;
	mc_work_post(op->eng, &n->job);
}

int mc_gop_wait(struct mc_gop *op, uint64_t deadline_ns)
{
	/* acquire: pairs with the release in mc_gop_finish() */
	while (atomic_load_explicit(&op->state, memory_order_acquire) != MC_GOP_DONE)
		if (mc_futex_wait(&op->state, MC_GOP_RUNNING, deadline_ns) == -MC_E_TIMEDOUT)
			return -MC_E_TIMEDOUT;
	return 0;
}
