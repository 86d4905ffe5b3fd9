/*
 * rail.h: the health of one rail. Pure: times and outcomes in, decisions out.
 *
 * A rail that fails is ejected for a pause that doubles with each failure; then one probe may use
 * it (half-open). Success closes the breaker, but the memory of failures decays by half each DECAY,
 * so a flapping link is not trusted at once. The pause is short (a probe is one connection
 * attempt), because an operator expects a repaired link to be used within a second.
 */
#ifndef MC_ENGINE_RAIL_H
#define MC_ENGINE_RAIL_H

#include <stdbool.h>
#include <stdint.h>

#include "base/clock.h"

#define MC_RAIL_PAUSE_FIRST_NS (50 * MC_NS_PER_MS)
#define MC_RAIL_PAUSE_MAX_NS (400 * MC_NS_PER_MS)
#define MC_RAIL_DECAY_NS (10 * MC_NS_PER_S)
#define MC_RAIL_STALL_NS (120 * MC_NS_PER_MS)	    /* silent while other rails move */
#define MC_RAIL_STALL_ALONE_NS (700 * MC_NS_PER_MS) /* silent, nothing else to compare with */

enum mc_rail_state {
	MC_RAIL_UP,
	MC_RAIL_EJECTED,
	MC_RAIL_PROBING, /* one user is trying it */
};

/** Zeroed: up. */
struct mc_rail_health {
	enum mc_rail_state state;
	uint32_t failures; /* recent ones, decaying */
	uint64_t last_ns;  /* of the last failure or decay step */
	uint64_t until_ns; /* end of the pause; a probe that never reports ends here, too */
	double rate;	   /* learnt bytes per nanosecond, 0: unknown */
};

static inline void mc_rail_decay(struct mc_rail_health *h, uint64_t now_ns)
{
	while (h->failures > 0 && now_ns - h->last_ns >= MC_RAIL_DECAY_NS) {
		h->failures /= 2;
		h->last_ns += MC_RAIL_DECAY_NS;
	}
}

/** May it be used now? Turns an ejected rail whose pause is over into one that is being probed by
 * the caller. */
static inline bool mc_rail_may_use(struct mc_rail_health *h, uint64_t now_ns)
{
	if (h->state == MC_RAIL_UP)
		return true;
	if (now_ns < h->until_ns)
		return false;
	h->state = MC_RAIL_PROBING;
	h->until_ns = now_ns + MC_RAIL_PAUSE_MAX_NS;
	return true;
}

static inline void mc_rail_failed(struct mc_rail_health *h, uint64_t now_ns)
{
	uint64_t pause_ns;

	mc_rail_decay(h, now_ns);
	if (h->failures < 16)
		h->failures++;
	h->last_ns = now_ns;
	pause_ns = MC_RAIL_PAUSE_FIRST_NS << (h->failures < 5 ? h->failures - 1 : 4);
	h->state = MC_RAIL_EJECTED;
	h->until_ns = now_ns + (pause_ns < MC_RAIL_PAUSE_MAX_NS ? pause_ns : MC_RAIL_PAUSE_MAX_NS);
}

/** `bytes` were acknowledged, `took_ns` after they were posted behind `ahead` other bytes. */
static inline void mc_rail_worked(struct mc_rail_health *h, uint64_t bytes, uint64_t took_ns)
{
	double rate = took_ns ? (double)bytes / (double)took_ns : 0;

	h->state = MC_RAIL_UP;
	if (bytes >= 65536 && rate > 0)
		h->rate = h->rate > 0 ? h->rate * 0.8 + rate * 0.2 : rate;
}

#endif
