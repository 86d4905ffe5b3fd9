/*
 * retry.h: what to do with a slice that came back from a broken path. Pure: no I/O, no clock.
 *
 * A slice may be tried `tries_max` times in all; a path that failed is left by the pump's choice of
 * rails, not here. Back-off is exponential, so a peer that is being restarted is not stormed.
 */
#ifndef MC_ENGINE_RETRY_H
#define MC_ENGINE_RETRY_H

#include <stdbool.h>
#include <stdint.h>

#include "base/clock.h"
#include "base/err.h"

#define MC_RETRY_FIRST_NS (2 * MC_NS_PER_MS)
#define MC_RETRY_MAX_NS (200 * MC_NS_PER_MS)

struct mc_retry {
	uint16_t tries;
};

/**
 * @param err        why the last try failed, < 0
 * @param tries_max  tries in all (MC_RETRY_CNT)
 * @param ret_wait_ns  pause before the next try
 * @return true: try again; false: fail with err
 */
static inline bool mc_retry_next(struct mc_retry *r, int err, unsigned tries_max,
				 uint64_t *ret_wait_ns)
{
	enum mc_err_scope scope = mc_err_scope(err);
	unsigned shift;

	*ret_wait_ns = 0;
	if (scope == MC_SCOPE_OP || scope == MC_SCOPE_PEER)
		return false;
	if (++r->tries >= tries_max)
		return false;
	/* The first retry goes out at once: one reset is usually one connection. */
	if (r->tries == 1)
		return true;
	shift = r->tries - 2u < 7 ? r->tries - 2u : 7;
	*ret_wait_ns = MC_RETRY_FIRST_NS << shift;
	if (*ret_wait_ns > MC_RETRY_MAX_NS)
		*ret_wait_ns = MC_RETRY_MAX_NS;
	return true;
}

#endif
