/*
 * pump.h: what pump.c and its drivers share about slices.
 */
#ifndef MC_ENGINE_PUMP_H
#define MC_ENGINE_PUMP_H

#include "engine/priv.h"
#include "engine/rails.h"
#include "engine/routes.h"

static inline struct mc_eslice *mc_eslice_of(struct mc_slice *s)
{
	return mc_container_of(s, struct mc_eslice, s);
}

/** Nobody waits for it any more. @return 0; -MC_E_CLOSED; -MC_E_CANCELED. Any thread, while the
 * slice's group lives. */
int mc_eslice_unwanted(const struct mc_eslice *es);

/** Choosing lanes for one round of slices. Zeroed but for pump and now_ns. */
struct mc_chooser {
	struct mc_pump *pump;
	uint64_t now_ns;
	/* Of `route`, taken once a round: no lock and no walk over the lanes for each slice. */
	struct mc_rails_view view;
	enum mc_route route;
	bool has_view;
	uint64_t flying[MC_RAILS_MAX]; /* bytes, with what this round has given out */
	uint64_t left;		       /* bytes waiting and flying */
	/* Of slices with these rails and ports. */
	bool has_usable, is_rated;
	uint32_t rails, near, usable;
	double rates; /* of the usable ones together */
};
/** The lane for this slice: an owned one with room, least busy first, or a new one. NULL with
 * *ret_rc: none now (AGAIN) or why not. */
struct mc_elane *mc_choose(struct mc_chooser *c, struct mc_eslice *es, int *ret_rc);
/** Is there another rail that is up, or another route, so that a retry need not wait? */
bool mc_choose_has_way(struct mc_session *s, enum mc_route route);

/** Are its rate and its silences looked at? Not of one alone that has nowhere else to go. */
static inline bool mc_lane_is_measured(const struct mc_elane *lane)
{
	return lane->rails && (lane->rails->n > 1 || lane->route == MC_ROUTE_RDMA);
}

/* ---- pump.c, for break.c ---- */
/** The pump has nothing to do with this lane any more. */
void mc_pump_forget(struct mc_pump *p, struct mc_elane *lane);
/** The slice is not on the lane any more. */
void mc_pump_landed(struct mc_pump *p, struct mc_elane *lane, struct mc_eslice *es);
/** A slice that the lane has ended, in its numbers. */
void mc_pump_count(struct mc_pump *p, struct mc_elane *lane, struct mc_eslice *es, uint64_t now_ns);
/** And in its group. */
void mc_pump_done(struct mc_pump *p, struct mc_eslice *es);

/** How often mc_pump_check() is to be called while anything is under way. */
static inline uint64_t mc_pump_check_ns(const struct mc_pump *p)
{
	return (p->session->tcp.n > 1 ? 20 : 40) * MC_NS_PER_MS;
}

#endif
