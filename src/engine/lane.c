/*
 * lane.c: the lanes of a session: claimed by one pump at a time, kept open between uses, most
 * recently used first.
 */
#include <poll.h>

#include "base/log.h"
#include "base/sync.h"
#include "engine/rails.h"
#include "engine/routes.h"
#include "xport/rdma/rdma.h"

#define CHECK_IDLE_NS                                                                              \
	(500 * MC_NS_PER_US) /* after this long an idle lane is looked at before use */

/* An idle lane that has something to say can only say that it is over. */
static bool is_dead(struct mc_elane *lane)
{
	struct mc_xarm arm;
	struct pollfd p;

	/* The event of a completion that was polled for may come late. */
	if (lane->route == MC_ROUTE_RDMA)
		return mc_rdma_lane_is_over(lane->x);
	lane->x->ops->arm(lane->x, &arm);
	if (arm.fd < 0)
		return false;
	p = (struct pollfd){.fd = arm.fd, .events = POLLIN | POLLRDHUP};
	return poll(&p, 1, 0) != 0;
}

void mc_lane_free(struct mc_elane *lane)
{
	if (lane->x)
		lane->x->ops->lane_close(lane->x);
	mc_free(lane);
}

/* Under session.mu. */
static struct mc_elane *take_idle(struct mc_session *s, enum mc_route route, unsigned rail,
				  uint64_t now_ns, bool *ret_is_checked)
{
	struct mc_elane *lane;

	mc_list_each (lane, &s->lanes, link) {
		if (lane->route != route || lane->rail != rail ||
		    atomic_load_explicit(&lane->is_owned, memory_order_relaxed))
			continue;
		*ret_is_checked = now_ns < mc_time_after(lane->idle_since_ns, CHECK_IDLE_NS);
		/* relaxed: claims and releases are ordered by session.mu */
		atomic_store_explicit(&lane->is_owned, true, memory_order_relaxed);
		return lane;
	}
	return NULL;
}

int mc_lane_new(struct mc_session *s, enum mc_route route, unsigned rail,
		struct mc_elane **ret_lane)
{
	struct mc_elane *lane = mc_calloc(1, sizeof(*lane));
	int rc;

	if (!lane)
		return -MC_E_NOMEM;
	lane->session = s;
	lane->route = route;
	lane->rail = rail;
	lane->rails = mc_rails_of(s, route);
	lane->stats = lane->rails
			  ? lane->rails->v[rail].stats
			  : mc_stats_rail(s->eng, mc_route_name(route), "local", s->peer->name);
	atomic_init(&lane->is_owned, true);
	mc_list_init(&lane->flying);
	rc = mc_route_lane_open(s, route, rail, &lane->x);
	if (rc < 0) {
		mc_lane_free(lane);
		return rc;
	}
	*ret_lane = lane;
	return 0;
}

void mc_lane_join(struct mc_elane *lane)
{
	struct mc_session *s = lane->session;

	pthread_mutex_lock(&s->mu);
	mc_list_push_front(&s->lanes, &lane->link);
	pthread_mutex_unlock(&s->mu);
}

/* Lanes of one route and rail, idle or not. Under session.mu. */
static unsigned count(struct mc_session *s, enum mc_route route, unsigned rail)
{
	struct mc_elane *lane;
	unsigned n = 0;

	mc_list_each (lane, &s->lanes, link)
		n += lane->route == route && lane->rail == rail;
	return n;
}

int mc_lane_claim(struct mc_session *s, enum mc_route route, unsigned rail, uint64_t now_ns,
		  struct mc_elane **ret_lane)
{
	struct mc_elane *lane;
	bool is_checked = true;
	unsigned n;
	int rc;

	for (;;) {
		pthread_mutex_lock(&s->mu);
		lane = take_idle(s, route, rail, now_ns, &is_checked);
		n = lane ? 0 : count(s, route, rail);
		pthread_mutex_unlock(&s->mu);
		if (!lane)
			break;
		if (is_checked || !is_dead(lane)) {
			*ret_lane = lane;
			return 0;
		}
		mc_lane_part(lane);
	}
	if (n >= MC_LANES_MAX)
		return -MC_E_AGAIN;
	if (mc_route_is_offered(s, route))
		return mc_offer(&mc_rails_of(s, route)->v[rail]);
	rc = mc_lane_new(s, route, rail, &lane);
	if (rc < 0)
		return rc;
	mc_lane_join(lane);
	*ret_lane = lane;
	return 0;
}

static void wake_one(struct mc_session *s)
{
	if (atomic_load_explicit(&s->lane_waiters, memory_order_seq_cst) == 0)
		return;
	atomic_fetch_add_explicit(&s->lane_seq, 1, memory_order_release);
	mc_futex_wake(&s->lane_seq, 1);
}

void mc_lane_release(struct mc_elane *lane, uint64_t now_ns)
{
	struct mc_session *s = lane->session;

	mc_assert(mc_list_is_empty(&lane->flying) && !lane->is_watched);
	pthread_mutex_lock(&s->mu);
	lane->idle_since_ns = now_ns;
	lane->pump = NULL;
	/* To the front: the hottest lane is used again first, the others may go cold. */
	mc_list_del(&lane->link);
	mc_list_push_front(&s->lanes, &lane->link);
	atomic_store_explicit(&lane->is_owned, false, memory_order_relaxed);
	pthread_mutex_unlock(&s->mu);
	wake_one(s);
}

void mc_lane_drop(struct mc_elane *lane)
{
	struct mc_session *s = lane->session;

	pthread_mutex_lock(&s->mu);
	mc_list_del(&lane->link);
	pthread_mutex_unlock(&s->mu);
	mc_lane_free(lane);
	wake_one(s);
}

void mc_lane_drop_idle(struct mc_session *s, enum mc_route route)
{
	struct mc_elane *lane;
	struct mc_list dropped;

	mc_list_init(&dropped);
	pthread_mutex_lock(&s->mu);
	mc_list_each (lane, &s->lanes, link) {
		if (atomic_load_explicit(&lane->is_owned, memory_order_relaxed) ||
		    (route != MC_ROUTE_COUNT && lane->route != route))
			continue;
		mc_list_del(&lane->link);
		mc_list_push_back(&dropped, &lane->link);
	}
	pthread_mutex_unlock(&s->mu);
	while ((lane = mc_list_first(&dropped, struct mc_elane, link))) {
		mc_list_del(&lane->link);
		mc_lane_free(lane);
	}
}

static struct mc_elane *take_unused(struct mc_session *s, enum mc_route route, uint64_t before_ns)
{
	struct mc_elane *lane, *found = NULL;

	pthread_mutex_lock(&s->mu);
	mc_list_each (lane, &s->lanes, link) {
		if (found || lane->route != route || lane->idle_since_ns >= before_ns ||
		    atomic_load_explicit(&lane->is_owned, memory_order_relaxed))
			continue;
		atomic_store_explicit(&lane->is_owned, true, memory_order_relaxed);
		found = lane;
	}
	pthread_mutex_unlock(&s->mu);
	return found;
}

unsigned mc_lane_retire_idle(struct mc_session *s, enum mc_route route, uint64_t before_ns)
{
	struct mc_elane *lane;
	unsigned n = 0;

	for (; (lane = take_unused(s, route, before_ns)); n++)
		mc_lane_part(lane);
	return n;
}

unsigned mc_session_lanes(const struct mc_session *s)
{
	/* Several loops are served by several threads over there; two lanes use them. */
	return mc_min((unsigned)s->eng->conf.lanes, 2u);
}
