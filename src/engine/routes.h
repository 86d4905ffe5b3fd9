/*
 * routes.h: which transport carries a fragment, and how a lane of it is opened.
 */
#ifndef MC_ENGINE_ROUTES_H
#define MC_ENGINE_ROUTES_H

#include "engine/priv.h"

/**
 * The best route to this region of the session's peer; probes of lost RDMA rails may begin.
 * @param ret_rails  RDMA: bit a rail that may carry it
 */
enum mc_route mc_route_choose(struct mc_session *s, const struct mc_remote_region *rr,
			      uint32_t *ret_rails);
/** Its transport stores a signal after the bytes of a slice. */
bool mc_route_has_signal(const struct mc_session *s, enum mc_route route);
/** Limits of a route: fragments and bytes a slice may have. */
uint32_t mc_route_frags_max(const struct mc_session *s, enum mc_route route);
uint64_t mc_route_slice_bytes(const struct mc_session *s, enum mc_route route, uint64_t total);
/** The next best route after this one failed as such; MC_ROUTE_COUNT: none. */
enum mc_route mc_route_fallback(const struct mc_session *s, enum mc_route route);
int mc_route_lane_open(struct mc_session *s, enum mc_route route, unsigned rail,
		       struct mc_xlane **ret_lane);
/** Must the peer agree to a lane (MC_XCAP_OFFER)? */
bool mc_route_is_offered(const struct mc_session *s, enum mc_route route);
const char *mc_route_name(enum mc_route route);
/** The device of a transport's name; NULL: there is none. */
struct mc_xdev *mc_route_dev(struct mc_engine *eng, const char *name);

#endif
