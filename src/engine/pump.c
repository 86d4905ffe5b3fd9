/*
 * pump.c: moves slices over the lanes of one session. The same code serves a synchronous caller,
 * who drives it on the stack, and a loop, which drives it by events: everything here runs on the
 * owner's thread.
 *
 * Slices wait in `todo` by priority. choose.c says which lane takes the next one; what a lane takes
 * in one round is posted at once, in a batch. What breaks is sorted by retry.h and rail.h; writes
 * that may still land go through fence.c first.
 */
#include "engine/pump.h"

#include <poll.h>
#include <string.h>

#include "base/log.h"
#include "base/sync.h"
#include "engine/rails.h"
#include "engine/staged.h"

#define DONE_MAX 32u

void mc_pump_init(struct mc_pump *p, struct mc_session *s, struct mc_loop *loop,
		  unsigned loop_index)
{
	p->session = s;
	p->loop = loop;
	p->loop_index = loop_index;
	p->lanes_max = mc_session_lanes(s);
	for (int i = 0; i < MC_PRIO_COUNT; i++)
		mc_list_init(&p->todo[i]);
	p->ntodo = p->nlanes = p->nflying = p->nfencing = 0;
	mc_list_init(&p->returns);
	atomic_init(&p->nreturns, 0);
	p->wait_until_ns = 0;
	p->todo_bytes = 0;
	p->now_ns = 0;
	p->tick.is_set = false;
}

void mc_pump_add(struct mc_pump *p, struct mc_eslice *es)
{
	es->pump = p;
	mc_list_push_back(&p->todo[es->op->prio], &es->s.link);
	p->ntodo++;
	p->todo_bytes += es->s.len;
}

static void todo_del(struct mc_pump *p, struct mc_eslice *es)
{
	mc_list_del(&es->s.link);
	p->ntodo--;
	p->todo_bytes -= es->s.len;
}

static void todo_front(struct mc_pump *p, struct mc_eslice *es)
{
	mc_list_push_front(&p->todo[es->op->prio], &es->s.link);
	p->ntodo++;
	p->todo_bytes += es->s.len;
}

static struct mc_eslice *todo_first(struct mc_pump *p)
{
	for (int i = 0; i < MC_PRIO_COUNT; i++) {
		struct mc_slice *s = mc_list_first(&p->todo[i], struct mc_slice, link);

		if (s)
			return mc_eslice_of(s);
	}
	return NULL;
}

/* ---- rails ---- */

static void rail_worked(struct mc_pump *p, struct mc_elane *lane, uint64_t bytes, uint64_t now_ns)
{
	struct mc_session *s = p->session;

	lane->moved_ns = lane->seen_ns = now_ns;
	if (!mc_lane_is_measured(lane) || !mc_rail_meter_add(&lane->meter, bytes, now_ns))
		return;
	pthread_mutex_lock(&s->mu);
	mc_rail_meter_done(&lane->meter, &lane->rails->v[lane->rail].health, now_ns);
	pthread_mutex_unlock(&s->mu);
}

/* ---- lanes ---- */

void mc_pump_forget(struct mc_pump *p, struct mc_elane *lane)
{
	if (lane->is_watched)
		mc_loop_unwatch(p->loop, &lane->watch);
	lane->is_watched = false;
	for (unsigned i = 0; i < p->nlanes; i++)
		if (p->lanes[i] == lane) {
			p->lanes[i] = p->lanes[--p->nlanes];
			return;
		}
}

void mc_pump_release(struct mc_pump *p)
{
	for (unsigned i = p->nlanes; i-- > 0;) {
		struct mc_elane *lane = p->lanes[i];

		if (lane->flying_n > 0)
			continue;
		mc_pump_forget(p, lane);
		mc_lane_release(lane, p->now_ns);
	}
}

/* ---- posting ---- */

static void flying_add(struct mc_pump *p, struct mc_elane *lane, struct mc_eslice *es,
		       uint64_t now_ns)
{
	if (es->is_shown)
		mc_tap_again(es);
	if (lane->flying_n == 0) {
		lane->seen_ns = now_ns;
		mc_rail_meter_begin(&lane->meter, now_ns);
		if (mc_lane_is_measured(lane))
			lane->seen_progress = lane->x->ops->progress(lane->x);
	}
	mc_list_push_back(&lane->flying, &es->flying);
	es->stats = lane->stats;
	lane->flying_n++;
	lane->flying_bytes += es->s.len;
	p->nflying++;
	es->posted_ns = now_ns;
}

void mc_pump_landed(struct mc_pump *p, struct mc_elane *lane, struct mc_eslice *es)
{
	mc_list_del(&es->flying);
	lane->flying_n--;
	lane->flying_bytes -= es->s.len;
	p->nflying--;
}

/* What a transport says of a lane is the path's failure, whatever the code: codes that condemn an
 * operation are the engine's own verdicts (see mc_pump_again()). */
static int lane_error(enum mc_route route, int rc)
{
	/* A refused access ends a queue pair, with all that is on it: neither the rail's fault nor
	 * the others'. They are sent again at no cost; the one that was refused has ended. */
	if (route == MC_ROUTE_RDMA && mc_err_scope(rc) == MC_SCOPE_OP && rc != -MC_E_TIMEDOUT)
		return -MC_E_CLOSED;
	switch (rc) {
	case -MC_E_TIMEDOUT:
		return -MC_E_UNREACHABLE;
	case -MC_E_AGAIN:
	case -MC_E_CANCELED:
	case -MC_E_CLOSED:
	case -MC_E_STALE: /* it was retired before it had connected */
		return -MC_E_RESET;
	default:
		return rc;
	}
}

/* This route cannot carry the slice. @return true: it waits for another */
static bool fall_back(struct mc_pump *p, struct mc_eslice *es, int rc)
{
	enum mc_route other = mc_route_fallback(p->session, es->route);

	if (other == MC_ROUTE_COUNT ||
	    (rc != -MC_E_UNSUPPORTED && rc != -MC_E_UNAVAILABLE && rc != -MC_E_LIMIT))
		return false;
	es->route = other;
	todo_front(p, es);
	return true;
}

/* All that the slice is part of has failed already. @return the failure; 0: not all has */
static int moot(const struct mc_eslice *es)
{
	int status = 0;

	if (es->op->status == 0)
		return 0;
	for (uint32_t t = es->t_first; t <= es->t_last; t++) {
		const struct mc_tstate *ts = &es->op->t[t];

		if (ts->slices_left == 0)
			continue;
		status = atomic_load_explicit(&ts->status, memory_order_relaxed);
		if (status == 0)
			return 0;
	}
	return status;
}

/*
 * An HCA that refuses an access ends the queue pair with all that is on it, so what would be
 * refused as well is not posted: one lane made anew, not one for each slice.
 * @return true: the slice is taken care of
 */
static bool spare_lane(struct mc_pump *p, struct mc_eslice *es)
{
	int status = moot(es);

	if (status == 0 && !mc_refresh_is_due(es))
		return false;
	todo_del(p, es);
	if (status < 0)
		mc_gop_slice_end(es, status, mc_route_name(es->route));
	else if (!mc_refresh(p, es))
		mc_gop_slice_end(es, -MC_E_STALE, mc_route_name(es->route));
	return true;
}

/* Slices go to lanes, each lane's in a batch, until nothing has room or nothing waits. */
static void gather(struct mc_pump *p, uint64_t now_ns)
{
	struct mc_chooser c = {.pump = p, .now_ns = now_ns};
	struct mc_eslice *es;

	while (now_ns >= p->wait_until_ns && (es = todo_first(p))) {
		struct mc_elane *lane;
		int rc;

		if (es->route == MC_ROUTE_STAGED) {
			todo_del(p, es);
			mc_staged_start(p, es);
			continue;
		}
		if (es->route == MC_ROUTE_RDMA && spare_lane(p, es))
			continue;
		lane = mc_choose(&c, es, &rc);
		if (!lane && rc == -MC_E_AGAIN)
			return;
		todo_del(p, es);
		if (lane) {
			es->lane = lane;
			flying_add(p, lane, es, now_ns);
			lane->batch[lane->nbatch++] = &es->s;
		} else if (!fall_back(p, es, rc)) {
			mc_pump_again(p, es, lane_error(es->route, rc), now_ns);
		}
	}
}

/* Post the lane's batch. @return as post() */
static int post_batch(struct mc_pump *p, struct mc_elane *lane, uint64_t now_ns)
{
	struct mc_slice *batch[MC_BATCH_MAX];
	unsigned n = lane->nbatch, taken;
	int rc = lane->x->ops->post(lane->x, lane->batch, n);

	lane->nbatch = 0;
	if (rc == (int)n)
		return rc;
	taken = rc < 0 ? 0 : (unsigned)rc;
	if (rc < 0)
		rc = lane_error(lane->route, rc);
	memcpy(batch, lane->batch, sizeof(batch));
	for (unsigned i = taken; i < n; i++) {
		mc_pump_landed(p, lane, mc_eslice_of(batch[i]));
		mc_eslice_of(batch[i])->lane = NULL;
	}
	if (rc < 0)
		mc_pump_break(p, lane, rc, now_ns);
	/* From the last on, because each goes to the front. */
	for (unsigned i = n; i-- > taken;) {
		if (rc < 0)
			mc_pump_again(p, mc_eslice_of(batch[i]), rc, now_ns);
		else
			todo_front(p, mc_eslice_of(batch[i]));
	}
	return rc;
}

void mc_pump_feed(struct mc_pump *p, uint64_t now_ns)
{
	bool has_broken = true;

	p->now_ns = now_ns;
	while (has_broken && now_ns >= p->wait_until_ns) {
		has_broken = false;
		gather(p, now_ns);
		for (unsigned i = p->nlanes; i-- > 0;)
			if (i < p->nlanes && p->lanes[i]->nbatch > 0)
				has_broken |= post_batch(p, p->lanes[i], now_ns) < 0;
	}
}

/* ---- outcomes ---- */

int mc_eslice_unwanted(const struct mc_eslice *es)
{
	const struct mc_gop *op = es->op->within ? es->op->within->op : es->op;

	if (atomic_load_explicit(&op->eng->is_closing, memory_order_relaxed) ||
	    atomic_load_explicit(&es->session->is_closed, memory_order_relaxed))
		return -MC_E_CLOSED;
	if (atomic_load_explicit(&op->is_canceled, memory_order_relaxed) ||
	    (op->cq && mc_cq_is_closing(op->cq)))
		return -MC_E_CANCELED;
	return 0;
}

/* Why the slice has to end now; 0: it goes on. */
static int over(const struct mc_eslice *es, uint64_t now_ns)
{
	struct mc_gop *op = es->op;
	int rc = mc_eslice_unwanted(es);

	if (rc < 0)
		return rc;
	if (now_ns >= op->soft_ns)
		op->is_expired = true;
	return op->is_expired ? -MC_E_TIMEDOUT : 0;
}

/* What the lane has to do with a slice's end; afterwards the lane may be another's. */
void mc_pump_count(struct mc_pump *p, struct mc_elane *lane, struct mc_eslice *es, uint64_t now_ns)
{
	if (es->s.status < 0)
		return;
	es->op->end_ns = now_ns;
	rail_worked(p, lane, es->s.len, now_ns);
	mc_counter_add(&lane->stats->bytes[es->s.op], es->s.len);
	mc_counter_add(&lane->stats->ops[es->s.op], es->s.nfrags);
	mc_hist_add(&lane->stats->latency[es->s.op], now_ns - es->posted_ns);
}

void mc_pump_done(struct mc_pump *p, struct mc_eslice *es)
{
	int status = es->s.status;

	if (status == -MC_E_STALE && mc_refresh(p, es))
		return;
	if (status < 0 && fall_back(p, es, status))
		return;
	mc_gop_slice_end(es, status, mc_route_name(es->route));
}

void mc_pump_again(struct mc_pump *p, struct mc_eslice *es, int rc, uint64_t now_ns)
{
	bool is_bystander = rc == -MC_E_TIMEDOUT || rc == -MC_E_CANCELED || rc == -MC_E_CLOSED;
	uint64_t wait_ns;
	int why = over(es, now_ns);

	/* A lane that was given up for one group's sake costs the others on it no try. */
	if (why == 0 && is_bystander) {
		todo_front(p, es);
		return;
	}
	if (why < 0)
		rc = why;
	else if (atomic_load_explicit(&p->session->is_gone, memory_order_relaxed) &&
		 mc_err_scope(rc) == MC_SCOPE_RAIL)
		rc = -MC_E_PEER_DEAD;
	else if (mc_retry_next(&es->retry, rc, (unsigned)p->session->eng->conf.tries, &wait_ns)) {
		if (wait_ns && !mc_choose_has_way(p->session, es->route))
			p->wait_until_ns = mc_time_after(now_ns, wait_ns);
		todo_front(p, es);
		return;
	}
	/* Nothing that leads there works any more: the next group looks for the peer anew. */
	if (why == 0 && mc_err_scope(rc) != MC_SCOPE_OP && mc_err_scope(rc) != MC_SCOPE_LOCAL)
		mc_session_kill(p->session);
	mc_gop_slice_end(es, rc, mc_route_name(es->route));
}

/* ---- progress ---- */

static int poll_lane(struct mc_pump *p, struct mc_elane *lane, uint64_t block_ns)
{
	struct mc_slice *done[DONE_MAX];
	uint64_t now_ns;
	int n = lane->x->ops->poll(lane->x, block_ns, done, DONE_MAX);

	if (n == 0)
		return 0;
	p->now_ns = now_ns = mc_now_ns();
	if (n < 0) {
		mc_pump_break(p, lane, lane_error(lane->route, n), now_ns);
		return 1;
	}
	for (int i = 0; i < n; i++) {
		mc_pump_landed(p, lane, mc_eslice_of(done[i]));
		mc_eslice_of(done[i])->lane = NULL;
		mc_pump_count(p, lane, mc_eslice_of(done[i]), now_ns);
	}
	/* Before anybody hears of the end: who hears of it goes on with the lane that is warm. */
	if (mc_pump_is_idle(p))
		mc_pump_release(p);
	for (int i = 0; i < n; i++)
		mc_pump_done(p, mc_eslice_of(done[i]));
	return n;
}

/* Sleep until one of the lanes has news. */
static void wait_lanes(struct mc_pump *p, uint64_t block_ns)
{
	struct pollfd fds[MC_PUMP_LANES_MAX];
	struct timespec ts = {.tv_sec = (time_t)(block_ns / MC_NS_PER_S),
			      .tv_nsec = (long)(block_ns % MC_NS_PER_S)};
	unsigned n = 0;

	for (unsigned i = 0; i < p->nlanes; i++) {
		struct mc_xarm arm;

		if (p->lanes[i]->flying_n == 0)
			continue;
		p->lanes[i]->x->ops->arm(p->lanes[i]->x, &arm);
		if (arm.is_ready)
			return;
		if (arm.fd >= 0)
			fds[n++] = (struct pollfd){.fd = arm.fd, .events = arm.events};
	}
	(void)ppoll(fds, n, &ts, NULL);
}

/* Every lane of this session is in use by others, or workers have all the slices: wait until one
 * comes back. */
static void wait_news(struct mc_pump *p, uint64_t block_ns)
{
	struct mc_session *s = p->session;
	uint32_t seq;

	atomic_fetch_add_explicit(&s->lane_waiters, 1, memory_order_seq_cst);
	seq = atomic_load_explicit(&s->lane_seq, memory_order_acquire);
	mc_pump_feed(p, mc_now_ns());
	if (p->nflying == 0 && p->ntodo + p->nfencing > 0 && !mc_pump_take_returns(p))
		/* Woken or not, the caller looks again. */
		if (mc_futex_wait(&s->lane_seq, seq, mc_time_after(mc_now_ns(), block_ns)) < 0)
			mc_cpu_relax();
	atomic_fetch_sub_explicit(&s->lane_waiters, 1, memory_order_relaxed);
}

void mc_pump_poll(struct mc_pump *p, uint64_t block_ns)
{
	unsigned busy = 0;
	int n = 0;

	if (mc_pump_take_returns(p))
		return;
	if (p->nflying == 0) {
		if (block_ns > 0 && p->ntodo + p->nfencing > 0)
			wait_news(p, block_ns);
		return;
	}
	for (unsigned i = 0; i < p->nlanes; i++)
		busy += p->lanes[i]->flying_n > 0;
	for (unsigned i = p->nlanes; i-- > 0;) {
		if (i >= p->nlanes || p->lanes[i]->flying_n == 0)
			continue;
		n += poll_lane(p, p->lanes[i], busy == 1 && !p->loop ? block_ns : 0);
	}
	if (n == 0 && busy > 1 && block_ns > 0)
		wait_lanes(p, block_ns);
}

/* ---- deadlines and stalls ---- */

/* Note what moved since the last look. */
static void watch(struct mc_pump *p, uint64_t now_ns)
{
	for (unsigned i = 0; i < p->nlanes; i++) {
		struct mc_elane *lane = p->lanes[i];
		uint64_t progress;

		if (lane->flying_n == 0)
			continue;
		progress = lane->x->ops->progress(lane->x);
		if (progress == lane->seen_progress)
			continue;
		lane->seen_progress = progress;
		if (lane->route == MC_ROUTE_TCP && lane->rails->n > 1)
			mc_rails_gap(&lane->rails->v[lane->rail], now_ns - lane->seen_ns, now_ns);
		lane->seen_ns = lane->moved_ns = now_ns;
	}
}

/* Is the lane's rail lost, by what the others did meanwhile? */
static bool is_lost(struct mc_pump *p, const struct mc_elane *lane, const struct mc_rails_view *v,
		    uint64_t now_ns)
{
	struct mc_rail_watch w = {.silent_ns = now_ns - lane->seen_ns,
				  .patience_ns = v->patience_ns[lane->rail],
				  .has_others_up = (v->up & ~(1u << lane->rail)) != 0};

	if (w.silent_ns < MC_RAIL_LINK_NS || !w.has_others_up)
		return false;
	for (unsigned i = 0; i < p->nlanes; i++) {
		const struct mc_elane *other = p->lanes[i];
		/* What this lane did last was noticed up to a look late, so one that was through
		 * with everything a look before counts, too. */
		uint64_t late_ns = other->flying_n == 0 ? 2 * mc_pump_check_ns(p) : 0;

		w.has_others_done |= other->route == lane->route && other->rail != lane->rail &&
				     mc_time_after(other->moved_ns, late_ns) > lane->seen_ns;
	}
	w.is_link_down = mc_rails_is_link_down(&lane->rails->v[lane->rail]);
	return mc_rail_is_lost(&w);
}

/* An RDMA lane: silent until a completion, and the HCA reports loss by itself. */
static int rdma_verdict(const struct mc_elane *lane, const struct mc_rails_view *v, uint64_t now_ns)
{
	const struct mc_rail *rail = &lane->rails->v[lane->rail];
	uint64_t silent_ns = now_ns - lane->seen_ns;

	if (mc_rails_is_link_down(rail))
		return -MC_E_LINK_DOWN;
	if (silent_ns < MC_RAIL_WR_STUCK_NS)
		return 0;
	if (silent_ns < mc_rail_wr_patience(mc_rdma_retry_ns(lane->session->eng->rdma),
					    lane->flying_bytes, v->rate[lane->rail]))
		return 0;
	return -MC_E_STALLED;
}

/* Why this lane should be given up now; 0: it should not. */
static int verdict(struct mc_pump *p, struct mc_elane *lane, const struct mc_rails_view *v,
		   uint64_t now_ns)
{
	struct mc_eslice *es;

	mc_list_each (es, &lane->flying, flying) {
		int rc = over(es, now_ns);

		if (rc < 0)
			return rc;
	}
	if (lane->route == MC_ROUTE_TCP && lane->rails->n > 1 && is_lost(p, lane, v, now_ns))
		return -MC_E_STALLED;
	return lane->route == MC_ROUTE_RDMA ? rdma_verdict(lane, v, now_ns) : 0;
}

void mc_pump_check(struct mc_pump *p, uint64_t now_ns)
{
	struct mc_rails_view v, rdma;

	for (int prio = 0; prio < MC_PRIO_COUNT; prio++) {
		struct mc_slice *s;

		mc_list_each (s, &p->todo[prio], link) {
			struct mc_eslice *es = mc_eslice_of(s);
			int rc = over(es, now_ns);

			if (rc == 0)
				continue;
			todo_del(p, es);
			mc_gop_slice_end(es, rc, mc_route_name(es->route));
		}
	}
	if (p->session->rdma.n > 0)
		mc_rails_look(p->session, MC_ROUTE_RDMA, now_ns, &rdma);
	mc_rails_look(p->session, MC_ROUTE_TCP, now_ns, &v);
	watch(p, now_ns);
	for (unsigned i = p->nlanes; i-- > 0;) {
		struct mc_elane *lane;
		int rc;

		if (i >= p->nlanes || p->lanes[i]->flying_n == 0)
			continue;
		lane = p->lanes[i];
		rc = verdict(p, lane, lane->route == MC_ROUTE_RDMA ? &rdma : &v, now_ns);
		if (rc < 0)
			mc_pump_break(p, lane, rc, now_ns);
	}
}
