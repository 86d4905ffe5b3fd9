/*
 * clock.c: the real clocks.
 */
#include "base/clock.h"

#include <time.h>

static uint64_t clock_read_ns(clockid_t id)
{
	struct timespec ts = {0};

	(void)clock_gettime(id, &ts); /* cannot fail for these ids and a valid pointer */
	return (uint64_t)ts.tv_sec * MC_NS_PER_S + (uint64_t)ts.tv_nsec;
}

uint64_t mc_now_ns(void)
{
	return clock_read_ns(CLOCK_MONOTONIC);
}

uint64_t mc_wall_ns(void)
{
	return clock_read_ns(CLOCK_REALTIME);
}

static uint64_t clock_real_now(const struct mc_clock *clk)
{
	(void)clk;
	return mc_now_ns();
}

const struct mc_clock mc_clock_real = {.now = clock_real_now};
