/*
 * rest.c: the memory of large operations is given back when none has used it for a while.
 *
 * The hub's loop looks at the area between operations (run_lock), and drops what is behind it once
 * no living rank can still read it: each has said that it is past the round that used it last. The
 * mappings stay, here and at the others. The same look is taken at what users of the group have
 * left behind, for as long as others read it.
 */
#include "base/clock.h"
#include "coll/net.h"
#include "coll/shmem.h"

#define REST_NS MC_NS_PER_S

/* Whoever could read it has said that it is past that round, or never will. Under run_lock. */
static bool is_unread(struct mc_coll *g)
{
	uint64_t past = mc_coll_word(g->area_seq, MC_COLL_STEP_DONE);
	unsigned q;

	mc_coll_each(q, g->area_ranks & ~MC_COLL_BIT(g->rank))
	{
		struct mc_coll_peer *p = g->cur[q];

		/* acquire: it has read what it wanted */
		if (p && !mc_coll_peer_is_gone(p) &&
		    atomic_load_explicit(&p->page->word, memory_order_acquire) < past)
			return false;
	}
	return true;
}

/* @return false: look again later */
static bool give_back(struct mc_coll *g)
{
	bool is_idle = g->area_seq == g->rest_seq;

	if (g->area_kept == 0)
		return true;
	g->rest_seq = g->area_seq;
	if (!is_idle || !is_unread(g))
		return false;
	mc_coll_shmem_drop(g->fd, MC_COLL_AREA_AT, MC_COLL_AREA_AT + g->area_kept);
	g->area_kept = 0;
	return true;
}

/* @return false: look again later */
static bool let_go(struct mc_coll *g)
{
	struct mc_coll_remains *r;

	mc_list_each (r, &g->remains, link) {
		if (!r->is_unread(r))
			continue;
		mc_list_del(&r->link);
		r->end(r);
	}
	return mc_list_is_empty(&g->remains);
}

static void on_time(struct mc_timer *t)
{
	struct mc_coll *g = mc_container_of(t, struct mc_coll, rest);
	struct mc_loop *loop = g->hub->loop;
	bool is_done = false, has_let_go = let_go(g);

	/* An operation runs: it is not idle, and may wait for others for ever. */
	if (pthread_mutex_trylock(&g->run_lock) == 0) {
		/* First: over hosts it brings the others' words. */
		is_done = !g->net || mc_coll_net_rest(g);
		if (!give_back(g))
			is_done = false;
		pthread_mutex_unlock(&g->run_lock);
	}
	if (!is_done || !has_let_go)
		(void)mc_loop_timer_set(loop, t, mc_loop_now(loop) + REST_NS);
}

static void arm(void *arg)
{
	struct mc_coll *g = arg;
	struct mc_loop *loop = g->hub->loop;

	g->rest.on_time = on_time;
	/* Cannot fail: one timer a group. */
	(void)mc_loop_timer_set(loop, &g->rest, mc_loop_now(loop) + REST_NS);
}

void mc_coll_rest_arm(struct mc_coll *g)
{
	mc_loop_call(g->hub->loop, arm, g);
}

static void leave(void *arg)
{
	struct mc_coll_remains *r = arg;

	mc_list_push_back(&r->coll->remains, &r->link);
	arm(r->coll);
}

void mc_coll_rest_leave(struct mc_coll_remains *r)
{
	mc_loop_call(r->coll->hub->loop, leave, r);
}

static void stop(void *arg)
{
	struct mc_coll *g = arg;
	struct mc_coll_remains *r;

	mc_loop_timer_cancel(g->hub->loop, &g->rest);
	mc_list_each (r, &g->remains, link) {
		mc_list_del(&r->link);
		r->end(r);
	}
}

void mc_coll_rest_stop(struct mc_coll *g)
{
	mc_loop_call(g->hub->loop, stop, g);
}
