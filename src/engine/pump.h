/*
 * pump.h: what pump.c and its drivers share about slices.
 */
#ifndef MC_ENGINE_PUMP_H
#define MC_ENGINE_PUMP_H

#include "engine/priv.h"
#include "engine/routes.h"

static inline struct mc_eslice *mc_eslice_of(struct mc_slice *s)
{
	return mc_container_of(s, struct mc_eslice, s);
}

/** How often mc_pump_check() is to be called while anything is under way. */
static inline uint64_t mc_pump_check_ns(const struct mc_pump *p)
{
	return (p->session->nrails > 1 ? 20 : 40) * MC_NS_PER_MS;
}

#endif
