/*
 * clock.h: time as an argument. Pure code takes `now_ns`; code that needs a clock takes a struct
 * mc_clock, which tests replace.
 */
#ifndef MC_BASE_CLOCK_H
#define MC_BASE_CLOCK_H

#include <stdint.h>

#define MC_NS_PER_US 1000ull
#define MC_NS_PER_MS 1000000ull
#define MC_NS_PER_S 1000000000ull
#define MC_TIME_NEVER UINT64_MAX /* a deadline that never passes */

/** A source of monotonic time. `now` may be called from any thread. */
struct mc_clock {
	uint64_t (*now)(
	    const struct mc_clock *clk); /* nanoseconds since an arbitrary start; never goes back */
};

/** CLOCK_MONOTONIC through the vDSO. */
extern const struct mc_clock mc_clock_real;

static inline uint64_t mc_clock_now(const struct mc_clock *clk)
{
	return clk->now(clk);
}

/** Monotonic nanoseconds, directly. For hot paths that are timed by tests through policy arguments
 * only. */
uint64_t mc_now_ns(void);
/** Wall clock, for records read by people only. Nanoseconds since 1970. */
uint64_t mc_wall_ns(void);

/** now + delta, saturating at MC_TIME_NEVER. */
static inline uint64_t mc_time_after(uint64_t now_ns, uint64_t delta_ns)
{
	return delta_ns > MC_TIME_NEVER - now_ns ? MC_TIME_NEVER : now_ns + delta_ns;
}

#endif
