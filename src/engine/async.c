/*
 * async.c: groups that a loop drives. One loop takes a whole group, so its numbers have one writer;
 * each session has one pump on each loop that serves it. A pump watches the descriptors of its busy
 * lanes and ticks while anything is under way.
 */
#include "base/log.h"
#include "base/sync.h"
#include "engine/pump.h"

static void on_lane(struct mc_watch *w, uint32_t events)
{
	struct mc_elane *lane = mc_container_of(w, struct mc_elane, watch);
	struct mc_pump *p = lane->pump;

	(void)events;
	if (lane->flying_n == 0) {
		/* Nothing is asked of it: all that it can say is that it is over. Nobody would read
		 * that, and it would be said again for ever. */
		mc_loop_unwatch(p->loop, &lane->watch);
		lane->is_watched = false;
		return;
	}
	mc_async_kick(p);
}

/* Watch what is busy. @return true: something busy cannot be watched, or has news already,
 * and has to be called again */
static bool watch_lanes(struct mc_pump *p)
{
	bool is_deaf = false;

	for (unsigned i = 0; i < p->nlanes; i++) {
		struct mc_elane *lane = p->lanes[i];
		struct mc_xarm arm;

		if (lane->flying_n == 0)
			continue;
		lane->x->ops->arm(lane->x, &arm);
		is_deaf |= arm.fd < 0 || arm.is_ready;
		if (arm.fd < 0)
			continue;
		if (!lane->is_watched) {
			lane->watch = (struct mc_watch){
			    .fd = arm.fd, .events = (uint32_t)arm.events, .on_event = on_lane};
			lane->is_watched = mc_loop_watch(p->loop, &lane->watch) == 0;
		} else {
			(void)mc_loop_rewatch(p->loop, &lane->watch, (uint32_t)arm.events);
		}
	}
	return is_deaf;
}

static void on_tick(struct mc_timer *t);

/* poll() and epoll() events are the same bits on Linux. */
void mc_async_kick(struct mc_pump *p)
{
	uint64_t now_ns = mc_now_ns();
	unsigned before;
	bool is_deaf;

	do {
		before = p->nflying;
		mc_pump_feed(p, now_ns);
		mc_pump_poll(p, 0);
	} while (p->nflying > 0 && p->nflying < before && p->ntodo > 0);
	mc_pump_feed(p, now_ns);
	if (mc_pump_is_idle(p)) {
		if (p->tick.is_set)
			mc_loop_timer_cancel(p->loop, &p->tick);
		mc_pump_release(p);
		return;
	}
	is_deaf = watch_lanes(p);
	if (!p->tick.is_set) {
		p->tick.on_time = on_tick;
		mc_loop_timer_set(p->loop, &p->tick, mc_time_after(now_ns, mc_pump_check_ns(p)));
	}
	/* A copying transport makes progress only when called: come back at once, but let the loop
	 * breathe. */
	if (is_deaf && !p->is_kick_queued) {
		p->is_kick_queued = true;
		mc_loop_post(p->loop, &p->kick);
	}
}

static void on_kick(struct mc_task *task)
{
	struct mc_pump *p = mc_container_of(task, struct mc_pump, kick);

	p->is_kick_queued = false;
	mc_async_kick(p);
}

static void on_tick(struct mc_timer *t)
{
	struct mc_pump *p = mc_container_of(t, struct mc_pump, tick);

	/* What has come meanwhile is no silence. */
	mc_pump_poll(p, 0);
	mc_pump_check(p, mc_now_ns());
	mc_async_kick(p);
}

/* The session's pump on this loop. NULL: out of memory. */
static struct mc_pump *pump_of(struct mc_session *s, struct mc_loop *loop, unsigned index)
{
	if (!s->pumps[index]) {
		struct mc_pump *p = mc_calloc(1, sizeof(*p));

		if (!p)
			return NULL;
		mc_pump_init(p, s, loop, index);
		p->kick.run = on_kick;
		s->pumps[index] = p;
	}
	return s->pumps[index];
}

static void start(struct mc_task *task)
{
	struct mc_gop *op = mc_container_of(task, struct mc_gop, task);
	struct mc_engine *eng = op->eng;
	unsigned index = 0;

	while (eng->loops[index] != op->loop)
		index++;
	if (op->slices_left == 0) {
		mc_gop_end(op);
		return;
	}
	mc_gop_ref(op); /* the last slice may end the group while we still look at it */
	for (size_t i = 0; i < op->nslices; i++) {
		struct mc_pump *p;

		if (op->slices[i].is_held)
			continue;
		p = pump_of(op->slices[i].session, op->loop, index);

		if (p)
			mc_pump_add(p, &op->slices[i]);
		else
			mc_gop_slice_end(&op->slices[i], -MC_E_NOMEM, "none");
	}
	for (size_t i = 0; i < op->nslices; i++) {
		struct mc_pump *p = op->slices[i].session->pumps[index];

		if (p && (i == 0 || op->slices[i].session != op->slices[i - 1].session))
			mc_async_kick(p);
	}
	mc_gop_put(op);
}

void mc_async_start(struct mc_gop *op)
{
	struct mc_engine *eng = op->eng;
	unsigned i = op->nslices ? (unsigned)op->slices[0].session->peer->id : 0;

	op->loop = eng->loops[i % eng->nloops];
	op->task.run = start;
	mc_gop_ref(op); /* the driver's, ended by mc_gop_finish() */
	mc_loop_post(op->loop, &op->task);
}

static void wake_run(struct mc_task *task)
{
	struct mc_wake *w = mc_container_of(task, struct mc_wake, task);
	struct mc_session *s = w->session;
	struct mc_pump *p = s->pumps[w->index];

	/* release: pairs with the exchange in mc_session_wake(); what comes from here on is queued
	 * anew */
	atomic_store_explicit(&w->is_queued, false, memory_order_release);
	if (p && !mc_pump_is_idle(p))
		mc_async_kick(p);
	mc_session_put(s);
}

void mc_session_wakes_init(struct mc_session *s)
{
	for (unsigned i = 0; i < MC_LOOPS_MAX; i++) {
		s->wakes[i].task.run = wake_run;
		s->wakes[i].session = s;
		s->wakes[i].index = i;
	}
}

void mc_session_wake(struct mc_session *s)
{
	atomic_fetch_add_explicit(&s->lane_seq, 1, memory_order_release);
	mc_futex_wake(&s->lane_seq, INT32_MAX);
	for (unsigned i = 0; i < s->eng->nloops; i++) {
		/* acquire: pairs with the store in wake_run() */
		if (atomic_exchange_explicit(&s->wakes[i].is_queued, true, memory_order_acq_rel))
			continue;
		mc_session_ref(s);
		mc_loop_post(s->eng->loops[i], &s->wakes[i].task);
	}
}

struct close_call {
	struct mc_session *s;
	unsigned index;
};

static void pump_close(void *arg)
{
	struct close_call *c = arg;
	struct mc_pump *p = c->s->pumps[c->index];

	mc_assert(mc_pump_is_idle(p));
	if (p->tick.is_set)
		mc_loop_timer_cancel(p->loop, &p->tick);
	mc_pump_release(p);
}

void mc_session_pumps_close(struct mc_session *s)
{
	for (unsigned i = 0; i < MC_LOOPS_MAX; i++) {
		struct close_call c = {s, i};

		if (!s->pumps[i])
			continue;
		mc_loop_call(s->pumps[i]->loop, pump_close, &c);
		mc_free(s->pumps[i]);
		s->pumps[i] = NULL;
	}
}
