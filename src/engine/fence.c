/*
 * fence.c: writes whose lane broke before they were acknowledged. They may still land, so they are
 * neither failed nor sent again until the target has said that nothing of the old lane lands any
 * more, or its incarnation is gone.
 *
 * A synchronous pump fences in its caller's thread, a loop's pump through a worker. What cannot be
 * fenced by the group's deadline ends as MC_E_UNFENCED, and its range is kept: no new write goes
 * there before the fence has succeeded.
 */
#include <string.h>

#include "base/log.h"
#include "engine/ctl.h"
#include "engine/pump.h"

#define ATTEMPT_NS (200 * MC_NS_PER_MS) /* one try on one control connection */
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

/* Blocks until fenced, gone, or deadline. */
static enum fence_result fence_run(struct mc_session *s, const uint8_t *token, size_t token_len,
				   uint64_t deadline_ns)
{
	for (;;) {
		uint64_t now_ns = mc_now_ns();
		int rc;

		if (now_ns >= deadline_ns)
			return FENCE_NONE;
		rc = mc_ctl_retire(s, "tcp", token, token_len,
				   mc_min(deadline_ns, now_ns + ATTEMPT_NS));
		if (rc == 0)
			return FENCE_OK;
		if (rc == -MC_E_PEER_RESTARTED || rc == -MC_E_PEER_DEAD || rc == -MC_E_REFUSED)
			return FENCE_GONE;
		pause_ns(PAUSE_NS);
	}
}

/* ---- quarantine ---- */

static void quarantine(struct mc_session *s, const struct mc_slice *sl, const uint8_t *token,
		       size_t token_len)
{
	for (uint32_t i = 0; i < sl->nfrags; i++) {
		const struct mc_frag *f = &sl->frags[i];
		struct mc_unfenced *u;

		u = s->nunfenced < MC_UNFENCED_MAX ? mc_calloc(1, sizeof(*u)) : NULL;
		if (!u) {
			/* Nothing may be forgotten: the session as a whole is given up instead. */
			mc_session_kill(s);
			return;
		}
		u->token_len = token_len;
		memcpy(u->token, token, token_len);
		pthread_mutex_lock(&s->mu);
		mc_list_push_back(&s->unfenced, &u->link);
		mc_itree_insert(&s->unfenced_ranges, &u->node, f->raddr, f->raddr + f->len);
		s->nunfenced++;
		pthread_mutex_unlock(&s->mu);
	}
}

static void quarantine_drop(struct mc_session *s, const uint8_t *token, size_t token_len)
{
	struct mc_unfenced *u;

	pthread_mutex_lock(&s->mu);
	mc_list_each (u, &s->unfenced, link) {
		if (u->token_len != token_len || memcmp(u->token, token, token_len) != 0)
			continue;
		mc_list_del(&u->link);
		mc_itree_del(&s->unfenced_ranges, &u->node);
		s->nunfenced--;
		mc_free(u);
	}
	pthread_mutex_unlock(&s->mu);
}

int mc_fence_check(struct mc_session *s, uint64_t addr, uint64_t len, uint64_t deadline_ns)
{
	uint8_t token[MC_XPORT_TOKEN_MAX];
	size_t token_len;

	for (;;) {
		struct mc_inode *n;

		pthread_mutex_lock(&s->mu);
		n = mc_itree_overlap_first(&s->unfenced_ranges, addr, addr + len);
		if (n) {
			struct mc_unfenced *u = mc_container_of(n, struct mc_unfenced, node);

			token_len = u->token_len;
			memcpy(token, u->token, token_len);
		}
		pthread_mutex_unlock(&s->mu);
		if (!n)
			return 0;
		if (token_len == 0 ||
		    fence_run(s, token, token_len, mc_min(deadline_ns, mc_now_ns() + ATTEMPT_NS)) ==
			FENCE_NONE)
			return -MC_E_UNFENCED;
		quarantine_drop(s, token, token_len);
	}
}

/* ---- deciding ---- */

/* The slices get their verdict; owner's thread. */
static void decide(struct mc_pump *p, struct mc_list *maybe, enum fence_result result, int cause,
		   const uint8_t *token, size_t token_len)
{
	uint64_t now_ns = mc_now_ns();
	struct mc_slice *sl;

	if (result == FENCE_GONE)
		mc_session_kill(p->session);
	mc_list_each (sl, maybe, link) {
		struct mc_eslice *es = mc_eslice_of(sl);

		mc_list_del(&sl->link);
		if (result == FENCE_OK) {
			/* Applied or not, sending it again changes nothing any more. */
			mc_pump_again(p, es, cause, now_ns);
		} else if (result == FENCE_GONE) {
			mc_gop_slice_end(es, -MC_E_PEER_DEAD, mc_route_name(es->route));
		} else {
			quarantine(p->session, sl, token, token_len);
			mc_gop_slice_end(es, -MC_E_UNFENCED, mc_route_name(es->route));
		}
	}
}

static uint64_t deadline_of(struct mc_list *maybe)
{
	uint64_t deadline_ns = MC_TIME_NEVER;
	struct mc_slice *sl;

	mc_list_each (sl, maybe, link)
		deadline_ns = mc_min(deadline_ns, mc_eslice_of(sl)->op->deadline_ns);
	return deadline_ns;
}

struct fence_job {
	struct mc_worker_job job;
	struct mc_task back;
	struct mc_pump *pump;
	struct mc_list maybe;
	uint8_t token[MC_XPORT_TOKEN_MAX];
	size_t token_len;
	uint64_t deadline_ns;
	unsigned n;
	int cause;
	enum fence_result result;
};

static void job_back(struct mc_task *task)
{
	struct fence_job *j = mc_container_of(task, struct fence_job, back);
	struct mc_pump *p = j->pump;
	struct mc_session *s = p->session;

	p->nfencing -= j->n;
	decide(p, &j->maybe, j->result, j->cause, j->token, j->token_len);
	mc_async_kick(p);
	mc_session_put(s);
	mc_free(j);
}

static void job_run(struct mc_worker_job *job)
{
	struct fence_job *j = mc_container_of(job, struct fence_job, job);

	j->result = fence_run(j->pump->session, j->token, j->token_len, j->deadline_ns);
	j->back.run = job_back;
	mc_loop_post(j->pump->loop, &j->back);
}

void mc_fence(struct mc_pump *p, struct mc_list *maybe, const uint8_t *token, size_t token_len,
	      int cause)
{
	enum fence_result result = FENCE_NONE;
	struct fence_job *j;
	struct mc_slice *sl;

	if (token_len == 0) { /* a peer that knows no fence */
		if (atomic_load_explicit(&p->session->is_dead, memory_order_relaxed))
			result = FENCE_GONE;
		decide(p, maybe, result, cause, token, 0);
		return;
	}
	if (!p->loop) {
		result = fence_run(p->session, token, token_len, deadline_of(maybe));
		decide(p, maybe, result, cause, token, token_len);
		return;
	}
	j = mc_calloc(1, sizeof(*j));
	if (!j) {
		decide(p, maybe, FENCE_NONE, cause, token, token_len);
		return;
	}
	j->job.run = job_run;
	j->pump = p;
	j->deadline_ns = deadline_of(maybe);
	j->cause = cause;
	memcpy(j->token, token, token_len);
	j->token_len = token_len;
	mc_list_init(&j->maybe);
	mc_list_each (sl, maybe, link)
		j->n++;
	mc_list_splice_back(&j->maybe, maybe);
	p->nfencing += j->n;
	mc_session_ref(p->session);
	mc_work_post(p->session->eng, &j->job);
}
