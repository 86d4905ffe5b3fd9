/*
 * choose.c: the lane for the next slice. A lane takes a slice when it has room, so a faster rail
 * takes more of them; a rail that would finish the slice later than the others would finish
 * everything is left out. A lane is added while there is more to move than one lane has in flight.
 * Owner's thread.
 */
#include <string.h>

#include "engine/pump.h"
#include "engine/rails.h"

#define LANE_BYTES_MAX (4u << 20) /* in flight on a lane that has several slices */
#define LANE_SHARE_MIN (1u << 20) /* a lane more is considered for this much more to move */
#define LANE_SLICES_MAX 16u
#define LANE_SLICES_RDMA 64u /* small slices, and one completion for a batch of them */

/* ---- one rail ---- */

static struct mc_elane *lane_add(struct mc_pump *p, enum mc_route route, unsigned rail, int *ret_rc)
{
	struct mc_elane *lane;

	if (p->nlanes == MC_PUMP_LANES_MAX) {
		*ret_rc = -MC_E_AGAIN;
		return NULL;
	}
	*ret_rc = mc_lane_claim(p->session, route, rail, p->now_ns, &lane);
	if (*ret_rc < 0)
		return NULL;
	lane->pump = p;
	lane->flying_n = 0;
	lane->flying_bytes = 0;
	lane->nbatch = 0;
	lane->seen_ns = 0;
	p->lanes[p->nlanes++] = lane;
	return lane;
}

static bool has_room(const struct mc_elane *lane, const struct mc_eslice *es)
{
	unsigned most = lane->route == MC_ROUTE_RDMA ? LANE_SLICES_RDMA : LANE_SLICES_MAX;

	if (lane->flying_n == 0)
		return true;
	return lane->nbatch < MC_BATCH_MAX && lane->flying_n < most &&
	       lane->flying_bytes + es->s.len <= LANE_BYTES_MAX;
}

/* Lanes worth having on one rail. */
static unsigned lanes_wanted(const struct mc_pump *p, enum mc_route route, double rate)
{
	const struct mc_session *s = p->session;
	unsigned most = (unsigned)s->eng->conf.lanes, want;

	if (route == MC_ROUTE_RDMA)
		return 1; /* an HCA fills its link from one queue pair, or those of one lane */
	if (s->tcp.n > 1)
		return mc_rail_lanes(rate, p->todo_bytes, most);
	if (s->kind == MC_PEER_CLASSIC)
		return mc_min(1 + p->ntodo / 4, most);
	want = 1 + (unsigned)(p->todo_bytes / LANE_SHARE_MIN);
	return mc_min(want, p->lanes_max);
}

/* The lane for this slice on one rail: the least busy one with room, or a new one. @return NULL:
 * none; *ret_rc says why when it is not for being busy */
static struct mc_elane *lane_on(struct mc_chooser *c, const struct mc_eslice *es, unsigned rail,
				double rate, int *ret_rc)
{
	struct mc_pump *p = c->pump;
	unsigned n = 0, want = lanes_wanted(p, es->route, rate);
	struct mc_elane *mine = NULL, *lane;
	int rc;

	for (unsigned i = 0; i < p->nlanes; i++) {
		lane = p->lanes[i];
		if (lane->route != es->route || lane->rail != rail)
			continue;
		n++;
		if (has_room(lane, es) && (!mine || lane->flying_bytes < mine->flying_bytes))
			mine = lane;
	}
	if ((mine && mine->flying_n == 0) || (n > 0 && n >= want))
		return mine;
	lane = lane_add(p, es->route, rail, &rc);
	if (lane)
		return lane;
	if (rc != -MC_E_AGAIN) {
		struct mc_rail_set *set = mc_rails_of(p->session, es->route);

		*ret_rc = rc;
		if (set && rc != -MC_E_UNSUPPORTED)
			mc_rails_failed(&set->v[rail], mc_now_ns());
		c->has_view = false;
	}
	return mine;
}

/* ---- several rails ---- */

static const struct mc_rails_view *view_of(struct mc_chooser *c, enum mc_route route)
{
	struct mc_pump *p = c->pump;

	if (c->has_view && c->route == route)
		return &c->view;
	mc_rails_look(p->session, route, c->now_ns, &c->view);
	c->has_view = true;
	c->route = route;
	c->has_usable = false;
	c->left = p->todo_bytes;
	memset(c->flying, 0, sizeof(c->flying));
	for (unsigned i = 0; i < p->nlanes; i++) {
		const struct mc_elane *lane = p->lanes[i];

		if (lane->route != route)
			continue;
		c->flying[lane->rail] += lane->flying_bytes;
		c->left += lane->flying_bytes;
	}
	return &c->view;
}

/* Rails that may carry the slice; of RDMA only those close to its memory, while one of them is up.
 * Slices of one request are mostly alike: what was found for the last one is kept. */
static void usable_find(struct mc_chooser *c, const struct mc_rail_set *set,
			const struct mc_eslice *es)
{
	uint32_t near = 0, usable = c->view.usable;

	if (c->has_usable && c->rails == es->rails && c->near == es->near)
		return;
	if (es->route == MC_ROUTE_RDMA) {
		usable &= es->rails;
		for (unsigned r = 0; r < set->n; r++)
			if (es->near & (1u << set->v[r].local_port))
				near |= 1u << r;
		usable = usable & near ? usable & near : usable;
	}
	c->has_usable = true;
	c->rails = es->rails;
	c->near = es->near;
	c->usable = usable;
	c->rates = 0;
	c->is_rated = true;
	for (unsigned r = 0; r < set->n; r++) {
		if (!(usable & (1u << r)))
			continue;
		c->rates += c->view.rate[r];
		c->is_rated &= c->view.rate[r] > 0;
	}
}

/* The rail that would be through with the slice first, of those with room for it. */
static struct mc_elane *choose_rail(struct mc_chooser *c, const struct mc_rail_set *set,
				    struct mc_eslice *es, int *ret_rc)
{
	const struct mc_rails_view *v = view_of(c, es->route);
	struct mc_elane *best = NULL, *lane;
	double best_ns = 0;

	usable_find(c, set, es);
	if (c->usable == 0)
		*ret_rc = -MC_E_UNAVAILABLE;
	for (uint32_t rest = c->usable; rest; rest &= rest - 1) {
		unsigned r = (unsigned)__builtin_ctz(rest);
		/* Until all are known, all count as equals. */
		double rate = c->is_rated ? v->rate[r] : 1;
		double at_ns = (double)(c->flying[r] + es->s.len) / rate;

		if (best && at_ns >= best_ns)
			continue;
		if (c->is_rated && !mc_rail_is_worth(at_ns, c->left, c->rates - rate))
			continue;
		lane = lane_on(c, es, r, v->rate[r], ret_rc);
		if (lane) {
			best = lane;
			best_ns = at_ns;
		}
	}
	/* It goes from what waits to what is under way: what is left in all stays. */
	if (best)
		c->flying[best->rail] += es->s.len;
	return best;
}

struct mc_elane *mc_choose(struct mc_chooser *c, struct mc_eslice *es, int *ret_rc)
{
	const struct mc_rail_set *set = mc_rails_of(c->pump->session, es->route);

	*ret_rc = -MC_E_AGAIN;
	if (set && (set->n > 1 || es->route == MC_ROUTE_RDMA))
		return choose_rail(c, set, es, ret_rc);
	return lane_on(c, es, 0, 0, ret_rc);
}

bool mc_choose_has_way(struct mc_session *s, enum mc_route route)
{
	const struct mc_rail_set *set = mc_rails_of(s, route);

	if (route == MC_ROUTE_RDMA && mc_route_fallback(s, route) != MC_ROUTE_COUNT)
		return true;
	return set && set->n > 1 && mc_rails_up(s, route) != 0;
}
