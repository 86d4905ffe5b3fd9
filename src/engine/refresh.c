/*
 * refresh.c: slices that the peer refused because the region they name was registered anew. What is
 * known of the region is forgotten and asked for again, once a slice: by a synchronous caller
 * itself, for a loop's pump by a worker.
 */
#include "engine/pump.h"

struct refresh_job {
	struct mc_worker_job job;
	struct mc_task back;
	struct mc_pump *pump;
	struct mc_eslice *es; /* its group lives until the slice has ended */
	bool is_ok;
};

static bool look_up_range(struct mc_session *s, const struct mc_gop *op, uint64_t addr,
			  uint64_t len, const struct mc_remote_region **region)
{
	const struct mc_remote_region *rr;

	mc_session_forget(s, *region);
	if (mc_session_region(s, addr, len, op->soft_ns, &rr) < 0)
		return false;
	if (addr - rr->addr > rr->len || len > rr->len - (addr - rr->addr))
		return false;
	*region = rr;
	return true;
}

/* @return true: everything that it names lies in regions that are known now. Blocks. */
static bool look_up(struct mc_session *s, struct mc_eslice *es)
{
	struct mc_signal *sig = &es->s.signal;

	for (uint32_t i = 0; i < es->s.nfrags; i++) {
		struct mc_frag *f = &es->s.frags[i];

		if (!look_up_range(s, es->op, f->raddr, f->len, &f->rr))
			return false;
	}
	return !sig->rr || look_up_range(s, es->op, sig->raddr, sizeof(uint64_t), &sig->rr);
}

static void job_back(struct mc_task *task)
{
	struct refresh_job *j = mc_container_of(task, struct refresh_job, back);
	struct mc_pump *p = j->pump;
	struct mc_session *s = p->session;

	p->nfencing--;
	if (j->is_ok)
		mc_pump_add(p, j->es);
	else
		mc_gop_slice_end(j->es, -MC_E_STALE, mc_route_name(j->es->route));
	mc_free(j);
	mc_async_kick(p);
	mc_session_put(s);
}

static void job_run(struct mc_worker_job *job)
{
	struct refresh_job *j = mc_container_of(job, struct refresh_job, job);

	j->is_ok = look_up(j->pump->session, j->es);
	mc_loop_post(j->pump->loop, &j->back);
}

static bool is_stale(const struct mc_remote_region *r)
{
	const struct mc_eregion *e = mc_container_of(r, struct mc_eregion, r);

	return atomic_load_explicit(&e->is_stale, memory_order_relaxed);
}

bool mc_refresh_is_due(const struct mc_eslice *es)
{
	for (uint32_t i = 0; i < es->s.nfrags; i++)
		if (is_stale(es->s.frags[i].rr))
			return true;
	return es->s.signal.rr && is_stale(es->s.signal.rr);
}

bool mc_refresh(struct mc_pump *p, struct mc_eslice *es)
{
	struct refresh_job *j;

	/* What a hop is about is one buffer, not whatever lies there now. */
	if (es->op->within)
		return false;
	/* Over TCP upstream's peers are asked by address alone: there is nothing to look up. */
	if (es->is_refreshed || (p->session->kind == MC_PEER_CLASSIC && !p->session->classic) ||
	    p->session->kind == MC_PEER_FILE)
		return false;
	es->is_refreshed = true;
	if (!p->loop) {
		if (!look_up(p->session, es))
			return false;
		mc_pump_add(p, es);
		return true;
	}
	j = mc_calloc(1, sizeof(*j));
	if (!j)
		return false;
	j->job.run = job_run;
	j->back.run = job_back;
	j->pump = p;
	j->es = es;
	p->nfencing++;
	mc_session_ref(p->session);
	mc_work_post(p->session->eng, &j->job);
	return true;
}
