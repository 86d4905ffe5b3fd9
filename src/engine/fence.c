/*
 * fence.c: writes whose lane broke before they were acknowledged. They may still land, so they are
 * neither failed nor sent again until the target has said that nothing of the old lane lands any
 * more, or its incarnation is gone.
 *
 * A synchronous pump fences in its caller's thread, but for RDMA, whose other lanes have to be fed
 * meanwhile; that and a loop's pump do it through a worker. What cannot be
 * fenced by the group's deadline ends as MC_E_UNFENCED, and its range is kept in the engine's
 * quarantine: no new write goes there before the fence has succeeded, whatever becomes of the
 * session.
 *
 * Operations on files that the kernel does not give back are treated alike; the file transport of
 * this process is asked instead of a peer. Of a read the range is the local one: no transfer reads
 * or writes that memory until the fence has succeeded.
 */
#include <string.h>

#include "base/log.h"
#include "engine/classic.h"
#include "engine/ctl.h"
#include "engine/pump.h"

#define ATTEMPT_NS (200 * MC_NS_PER_MS) /* first wait for an answer, and of a new write */
#define ATTEMPT_MAX_NS (2 * MC_NS_PER_S)
#define PAUSE_NS (20 * MC_NS_PER_MS)

enum fence_result {
	FENCE_OK,   /* nothing of the lane lands any more */
	FENCE_GONE, /* the incarnation is gone: nothing lands, nothing is known */
	FENCE_NONE, /* no answer in time */
};

static void pause_ns(uint64_t ns)
{
	struct timespec ts = {.tv_nsec = (long)ns};

	(void)nanosleep(&ts, NULL);
}

/* A closing engine does not wait for peers that stand still. */
static uint64_t end_of(const struct mc_session *s, uint64_t deadline_ns)
{
	uint64_t end_ns = atomic_load(&s->eng->fence_end_ns);

	return end_ns ? mc_min(end_ns, deadline_ns) : deadline_ns;
}

struct fence_word {
	enum fence_result result;
	uint64_t acked; /* FENCE_OK: slices up to this number are applied; see retire() */
};

static int retire(struct mc_session *s, const struct mc_fence_token *token, uint64_t deadline_ns,
		  uint64_t *ret_acked)
{
	if (token->route == MC_ROUTE_FILE)
		return s->eng->file->ops->retire(s->eng->file, token->bytes, token->len, ret_acked);
	if (s->classic)
		return mc_classic_fence(s, token->bytes, token->len, deadline_ns);
	return mc_ctl_retire(s, mc_route_name(token->route), token->bytes, token->len, deadline_ns,
			     ret_acked);
}

/* Blocks until fenced, gone, or deadline. */
static struct fence_word fence_run(struct mc_session *s, const struct mc_fence_token *token,
				   uint64_t deadline_ns)
{
	struct fence_word word = {FENCE_NONE, MC_ACKED_UNKNOWN};
	uint64_t attempt_ns = ATTEMPT_NS;

	for (;;) {
		uint64_t now_ns = mc_now_ns(), end_ns = end_of(s, deadline_ns);
		int rc;

		/* The peer's death does not stop this host's kernel. */
		if (token->route != MC_ROUTE_FILE &&
		    atomic_load_explicit(&s->is_gone, memory_order_acquire))
			word.result = FENCE_GONE;
		if (word.result == FENCE_GONE || now_ns >= end_ns)
			return word;
		rc = retire(s, token, mc_min(end_ns, mc_time_after(now_ns, attempt_ns)),
			    &word.acked);
		if (rc == 0)
			word.result = FENCE_OK;
		else if (rc == -MC_E_PEER_RESTARTED || rc == -MC_E_PEER_DEAD)
			word.result = FENCE_GONE;
		if (word.result != FENCE_NONE)
			return word;
		/* A slow host gets more patience, not more connections. */
		attempt_ns = mc_min(attempt_ns * 2, ATTEMPT_MAX_NS);
		pause_ns(PAUSE_NS);
	}
}

/* ---- quarantine ---- */

void mc_quarantine_init(struct mc_quarantine *q)
{
	pthread_mutex_init(&q->mu, NULL);
	mc_list_init(&q->list);
}

/* Under q->mu. */
static void count(struct mc_quarantine *q)
{
	/* relaxed: who must see a range was told of it by a group's end, which orders */
	atomic_store_explicit(&q->n,
			      (unsigned)q->ranges.len + q->nblocked + (q->is_all_blocked ? 1 : 0),
			      memory_order_relaxed);
}

/* Under q->mu. */
static void drop(struct mc_quarantine *q, struct mc_unfenced *u)
{
	mc_list_del(&u->link);
	mc_itree_del(&q->ranges, &u->node);
	mc_free(u);
}

void mc_quarantine_forget(struct mc_quarantine *q, uint64_t owner)
{
	struct mc_unfenced *u;

	if (atomic_load_explicit(&q->n, memory_order_relaxed) == 0)
		return;
	pthread_mutex_lock(&q->mu);
	mc_list_each (u, &q->list, link)
		if (u->owner == owner)
			drop(q, u);
	for (unsigned i = q->nblocked; i-- > 0;)
		if (q->blocked[i].owner == owner)
			q->blocked[i] = q->blocked[--q->nblocked];
	count(q);
	pthread_mutex_unlock(&q->mu);
}

void mc_quarantine_fini(struct mc_quarantine *q)
{
	struct mc_unfenced *u;

	mc_list_each (u, &q->list, link)
		drop(q, u);
	pthread_mutex_destroy(&q->mu);
}

static bool is_token(const struct mc_unfenced *u, const struct mc_fence_token *token)
{
	return u->token.route == token->route && u->token.len == token->len &&
	       memcmp(u->token.bytes, token->bytes, token->len) == 0;
}

/* Under q->mu: there is no memory for a range, and nothing may be forgotten. Every write to this
 * owner waits for the fence, then. */
static void block(struct mc_quarantine *q, uint64_t owner, const struct mc_fence_token *token)
{
	for (unsigned i = 0; i < q->nblocked; i++)
		if (q->blocked[i].owner == owner && is_token(&q->blocked[i], token))
			return;
	if (q->nblocked < MC_BLOCKED_MAX) {
		struct mc_unfenced *u = &q->blocked[q->nblocked++];

		u->owner = owner;
		u->token = *token;
	} else {
		q->is_all_blocked = true;
	}
}

static void quarantine_range(struct mc_quarantine *q, uint64_t owner, uint64_t addr, uint64_t len,
			     const struct mc_fence_token *token)
{
	struct mc_unfenced *u = mc_calloc(1, sizeof(*u));

	pthread_mutex_lock(&q->mu);
	if (u && q->ranges.len < MC_UNFENCED_MAX) {
		u->owner = owner;
		u->token = *token;
		mc_list_push_back(&q->list, &u->link);
		mc_itree_insert(&q->ranges, &u->node, addr, addr + len);
		u = NULL;
	} else {
		block(q, owner, token);
	}
	count(q);
	pthread_mutex_unlock(&q->mu);
	mc_free(u);
}

static void quarantine(struct mc_session *s, const struct mc_slice *sl,
		       const struct mc_fence_token *token)
{
	struct mc_quarantine *q = &s->eng->quarantine;

	for (uint32_t i = 0; i < sl->nfrags; i++) {
		const struct mc_frag *f = &sl->frags[i];

		if (sl->op == MC_OP_WRITE)
			quarantine_range(q, s->fence_key, f->raddr, f->len, token);
		else if (token->route == MC_ROUTE_FILE)
			quarantine_range(q, MC_FENCE_LOCAL, (uintptr_t)f->local, f->len, token);
	}
	if (sl->signal.rr)
		quarantine_range(q, s->fence_key, sl->signal.raddr, sizeof(uint64_t), token);
}

static void quarantine_drop(struct mc_quarantine *q, const struct mc_fence_token *token)
{
	struct mc_unfenced *u;

	if (atomic_load_explicit(&q->n, memory_order_relaxed) == 0)
		return;
	pthread_mutex_lock(&q->mu);
	mc_list_each (u, &q->list, link)
		if (is_token(u, token))
			drop(q, u);
	for (unsigned i = q->nblocked; i-- > 0;)
		if (is_token(&q->blocked[i], token))
			q->blocked[i] = q->blocked[--q->nblocked];
	count(q);
	pthread_mutex_unlock(&q->mu);
}

/* @return 0: nothing is in the way; 1: *ret is; -MC_E_UNFENCED: everything is blocked */
static int quarantine_find(struct mc_quarantine *q, uint64_t owner, uint64_t addr, uint64_t len,
			   struct mc_unfenced *ret)
{
	struct mc_inode *n;
	int rc;

	pthread_mutex_lock(&q->mu);
	rc = q->is_all_blocked ? -MC_E_UNFENCED : 0;
	for (unsigned i = 0; i < q->nblocked && rc == 0; i++)
		if (q->blocked[i].owner == owner) {
			*ret = q->blocked[i];
			rc = 1;
		}
	for (n = mc_itree_overlap_first(&q->ranges, addr, addr + len); n && rc == 0;
	     n = mc_itree_overlap_next(n, addr, addr + len)) {
		const struct mc_unfenced *u = mc_container_of(n, struct mc_unfenced, node);

		if (u->owner == owner) {
			*ret = *u;
			rc = 1;
		}
	}
	pthread_mutex_unlock(&q->mu);
	return rc;
}

bool mc_fence_is_clear(struct mc_session *s, uint64_t owner, uint64_t addr, uint64_t len)
{
	struct mc_unfenced u;

	struct mc_quarantine *q = &s->eng->quarantine;

	return atomic_load_explicit(&q->n, memory_order_relaxed) == 0 ||
	       quarantine_find(q, owner, addr, len, &u) == 0;
}

int mc_fence_check(struct mc_session *s, uint64_t owner, uint64_t addr, uint64_t len,
		   uint64_t deadline_ns)
{
	struct mc_quarantine *q = &s->eng->quarantine;
	struct mc_unfenced u;

	if (atomic_load_explicit(&q->n, memory_order_relaxed) == 0)
		return 0;
	for (;;) {
		int rc = quarantine_find(q, owner, addr, len, &u);
		enum fence_result result = FENCE_NONE;

		if (rc <= 0)
			return rc;
		if (u.token.len > 0)
			result =
			    fence_run(s, &u.token, mc_min(deadline_ns, mc_now_ns() + ATTEMPT_NS))
				.result;
		if (result == FENCE_NONE)
			return -MC_E_UNFENCED;
		if (result == FENCE_GONE) {
			mc_session_gone(s);
			return -MC_E_PEER_DEAD;
		}
		quarantine_drop(q, &u.token);
	}
}

/* ---- deciding ---- */

/* Nothing of the slice's lane lands any more. */
static void fenced(struct mc_pump *p, struct mc_eslice *es, uint64_t acked, int cause,
		   uint64_t now_ns)
{
	if (!es->is_signal)
		/* Applied or not, sending it again changes nothing any more. */
		mc_pump_again(p, es, cause, now_ns);
	else if (acked != MC_ACKED_UNKNOWN && es->s.seq > acked)
		mc_pump_again(p, es, cause, now_ns);
	else
		/* A signal is stored once: the peer's program may have acted on it. A read may
		 * lack its bytes, and they are the program's to change by now. */
		mc_gop_slice_end(es,
				 acked != MC_ACKED_UNKNOWN && es->s.op == MC_OP_WRITE ? 0 : cause,
				 mc_route_name(es->route));
}

/* Slices whose outcome is known leave `maybe`; what stays has time left. Owner's thread. */
static void decide(struct mc_pump *p, struct mc_list *maybe, struct fence_word word, int cause,
		   const struct mc_fence_token *token)
{
	enum fence_result result = word.result;
	struct mc_session *s = p->session;
	uint64_t now_ns = mc_now_ns();
	struct mc_slice *sl;

	if (result == FENCE_GONE)
		mc_session_gone(s);
	if (result == FENCE_OK)
		quarantine_drop(&s->eng->quarantine, token);
	mc_list_each (sl, maybe, link) {
		struct mc_eslice *es = mc_eslice_of(sl);

		/* The fence was given up for another group's deadline. */
		if (result == FENCE_NONE && token->len > 0 &&
		    now_ns < end_of(s, es->op->deadline_ns))
			continue;
		mc_list_del(&sl->link);
		if (result == FENCE_OK) {
			fenced(p, es, word.acked, cause, now_ns);
		} else if (result == FENCE_GONE) {
			mc_gop_slice_end(es, -MC_E_PEER_DEAD, mc_route_name(es->route));
		} else {
			quarantine(s, sl, token);
			mc_gop_slice_end(es, -MC_E_UNFENCED, mc_route_name(es->route));
		}
	}
}

static uint64_t deadline_of(struct mc_list *maybe, unsigned *ret_n)
{
	uint64_t deadline_ns = MC_TIME_NEVER;
	struct mc_slice *sl;

	*ret_n = 0;
	mc_list_each (sl, maybe, link) {
		deadline_ns = mc_min(deadline_ns, mc_eslice_of(sl)->op->deadline_ns);
		++*ret_n;
	}
	return deadline_ns;
}

struct fence_job {
	struct mc_worker_job job;
	struct mc_return back;
	struct mc_list maybe;
	struct mc_fence_token token;
	uint64_t deadline_ns;
	unsigned n;
	int cause;
	struct fence_word word;
};

/* To a worker; the pump's session stays referenced until it is back. */
static void job_post(struct fence_job *j)
{
	struct mc_pump *p = j->back.pump;

	j->deadline_ns = deadline_of(&j->maybe, &j->n);
	p->nfencing += j->n;
	mc_session_ref(p->session);
	mc_work_post(p->session->eng, &j->job);
}

static void job_back(struct mc_return *r)
{
	struct fence_job *j = mc_container_of(r, struct fence_job, back);

	r->pump->nfencing -= j->n;
	decide(r->pump, &j->maybe, j->word, j->cause, &j->token);
	if (mc_list_is_empty(&j->maybe))
		mc_free(j);
	else
		job_post(j);
}

static void job_run(struct mc_worker_job *job)
{
	struct fence_job *j = mc_container_of(job, struct fence_job, job);

	j->word = fence_run(j->back.pump->session, &j->token, j->deadline_ns);
	mc_pump_return(&j->back);
}

/* In the caller's own thread. */
static void fence_here(struct mc_pump *p, struct mc_list *maybe, const struct mc_fence_token *token,
		       int cause)
{
	unsigned n;

	/* Each round decides at least the slice with the first deadline. */
	while (!mc_list_is_empty(maybe))
		decide(p, maybe, fence_run(p->session, token, deadline_of(maybe, &n)), cause,
		       token);
}

void mc_fence(struct mc_pump *p, struct mc_list *maybe, const struct mc_fence_token *token,
	      int cause)
{
	struct fence_job *j;

	if (token->len == 0) { /* a peer that knows no fence */
		bool is_gone = atomic_load_explicit(&p->session->is_gone, memory_order_acquire);

		decide(p, maybe, (struct fence_word){is_gone ? FENCE_GONE : FENCE_NONE, 0}, cause,
		       token);
		return;
	}
	/* A caller of one connection has nothing else to do meanwhile. */
	if (!p->loop && token->route != MC_ROUTE_RDMA) {
		fence_here(p, maybe, token, cause);
		return;
	}
	j = mc_calloc(1, sizeof(*j));
	if (!j) { /* the loop blocks: rarer and better than to leave the range unfenced */
		fence_here(p, maybe, token, cause);
		return;
	}
	j->job.run = job_run;
	j->back = (struct mc_return){.pump = p, .run = job_back};
	j->cause = cause;
	j->token = *token;
	mc_list_init(&j->maybe);
	mc_list_splice_back(&j->maybe, maybe);
	job_post(j);
}
