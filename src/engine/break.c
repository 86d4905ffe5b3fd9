/*
 * break.c: the end of a lane that broke or is not wanted any more, and what becomes of its slices.
 *
 * Where lanes are introduced to peers (RDMA) ending one means verbs that may block for a second and
 * more: a queue pair is not gone before its last packet is. Meanwhile the pump has other lanes to
 * feed, so a worker does it, and the slices come back to the pump afterwards; until then they count
 * as being fenced. A lane of another transport ends at once.
 */
#include "base/log.h"
#include "base/sync.h"
#include "engine/classic.h"
#include "engine/pump.h"

/* ---- back to the owner of a pump ---- */

static void on_loop(struct mc_task *task)
{
	struct mc_return *r = mc_container_of(task, struct mc_return, task);
	struct mc_pump *p = r->pump;
	struct mc_session *s = p->session;

	r->run(r);
	mc_async_kick(p);
	mc_session_put(s);
}

void mc_pump_return(struct mc_return *r)
{
	struct mc_pump *p = r->pump;
	struct mc_session *s = p->session;

	if (p->loop) {
		r->task.run = on_loop;
		mc_loop_post(p->loop, &r->task);
		return;
	}
	mc_session_ref(s); /* with the last slice the caller may be gone, and his reference */
	pthread_mutex_lock(&s->mu);
	mc_list_push_back(&p->returns, &r->link);
	/* release: pairs with the acquire in mc_pump_take_returns() */
	atomic_fetch_add_explicit(&p->nreturns, 1, memory_order_release);
	pthread_mutex_unlock(&s->mu);
	atomic_fetch_add_explicit(&s->lane_seq, 1, memory_order_release);
	mc_futex_wake(&s->lane_seq, INT32_MAX);
	mc_session_put(s);
}

bool mc_pump_take_returns(struct mc_pump *p)
{
	struct mc_session *s = p->session;
	struct mc_list *node;
	bool has_any = false;

	while (atomic_load_explicit(&p->nreturns, memory_order_acquire) > 0) {
		struct mc_return *r;

		pthread_mutex_lock(&s->mu);
		node = mc_list_pop_front(&p->returns);
		atomic_fetch_sub_explicit(&p->nreturns, 1, memory_order_relaxed);
		pthread_mutex_unlock(&s->mu);
		r = mc_list_entry(node, struct mc_return, link);
		r->run(r);
		mc_session_put(s); /* the caller has references of its own */
		has_any = true;
	}
	return has_any;
}

/* ---- ending ---- */

/* Worker thread, or the owner's. The transport has nothing of it afterwards. */
static void end(struct mc_elane *lane)
{
	lane->token = (struct mc_fence_token){.route = lane->route};
	mc_list_init(&lane->left);
	lane->token.len = lane->x->ops->abort(lane->x, &lane->left, lane->token.bytes);
	if (lane->session->classic)
		lane->token.len = mc_classic_token(lane, lane->token.bytes);
	lane->x->ops->lane_close(lane->x);
	lane->x = NULL;
}

/* What is left of an ended lane: its slices to where they belong, and the lane's own end. */
static void sort(struct mc_pump *p, struct mc_elane *lane, uint64_t now_ns)
{
	struct mc_fence_token token = lane->token;
	struct mc_list maybe;
	struct mc_slice *s;
	int cause = lane->cause;

	mc_list_init(&maybe);
	mc_list_each (s, &lane->left, link) {
		struct mc_eslice *es = mc_eslice_of(s);

		mc_list_del(&s->link);
		if (s->verdict == MC_SLICE_DONE) {
			mc_pump_count(p, lane, es, now_ns);
			mc_pump_done(p, es);
			continue;
		}
		mc_counter_add(&lane->stats->retries, 1);
		if (s->verdict == MC_SLICE_MAYBE)
			mc_list_push_back(&maybe, &s->link);
		else
			mc_pump_again(p, es, cause, now_ns);
	}
	mc_lane_drop(lane);
	if (cause == -MC_E_PEER_RESTARTED)
		mc_session_gone(p->session);
	if (!mc_list_is_empty(&maybe))
		mc_fence(p, &maybe, &token, cause);
	else if (token.route == MC_ROUTE_RDMA)
		mc_offer_retire(p->session, &token);
}

static void come_back(struct mc_return *r)
{
	struct mc_elane *lane = mc_container_of(r, struct mc_elane, back);
	struct mc_pump *p = r->pump;

	p->nfencing -= lane->nleft;
	sort(p, lane, mc_now_ns());
}

static void end_run(struct mc_worker_job *job)
{
	struct mc_elane *lane = mc_container_of(job, struct mc_elane, end_job);
	struct mc_session *s = lane->session;

	end(lane);
	if (lane->nleft > 0) {
		mc_pump_return(&lane->back);
		return;
	}
	mc_assert(mc_list_is_empty(&lane->left));
	mc_offer_retire(s, &lane->token);
	mc_lane_drop(lane);
	mc_session_put(s);
}

static void end_post(struct mc_elane *lane)
{
	lane->end_job.run = end_run;
	mc_session_ref(lane->session);
	mc_work_post(lane->session->eng, &lane->end_job);
}

void mc_lane_part(struct mc_elane *lane)
{
	mc_assert(lane->flying_n == 0);
	if (!mc_route_is_offered(lane->session, lane->route)) {
		mc_lane_drop(lane);
		return;
	}
	lane->nleft = 0;
	end_post(lane);
}

void mc_pump_break(struct mc_pump *p, struct mc_elane *lane, int rc, uint64_t now_ns)
{
	struct mc_eslice *es;

	mc_log_info("lane broke", "peer=%s transport=%s cause=\"%s\" slices=%u",
		    p->session->peer->name, mc_route_name(lane->route), mc_err_text(rc),
		    lane->flying_n);
	if (lane->rails && mc_err_scope(rc) != MC_SCOPE_OP)
		mc_rails_failed(&lane->rails->v[lane->rail], now_ns);
	mc_counter_add(&lane->stats->broken, 1);
	/* While its descriptor is open: a copy in a forked child would keep the watch alive. */
	mc_pump_forget(p, lane);
	lane->nleft = lane->flying_n;
	lane->cause = rc;
	mc_list_each (es, &lane->flying, flying) {
		mc_pump_landed(p, lane, es);
		es->lane = NULL;
	}
	if (!mc_route_is_offered(p->session, lane->route)) {
		end(lane);
		sort(p, lane, now_ns);
		return;
	}
	lane->back = (struct mc_return){.pump = p, .run = come_back};
	p->nfencing += lane->nleft;
	end_post(lane);
}
