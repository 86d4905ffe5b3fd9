/*
 * spin.h: how long to poll before sleeping. Pure: times in, budget out.
 *
 * Waking a sleeper costs tens of microseconds on an idle virtual core; polling for an answer that
 * comes sooner than that is cheaper than sleeping, polling for one that comes later only burns the
 * core. A waiter therefore learns how long its waits last and polls only when the expected wait is
 * shorter than a wake-up. A waiter that finds itself descheduled while polling (more runnable
 * threads than cores) stops polling for a while. The bound on pollers per process is kept by
 * mc_spin_enter().
 */
#ifndef MC_BASE_SPIN_H
#define MC_BASE_SPIN_H

#include <stdbool.h>
#include <stdint.h>

#define MC_SPIN_WAKE_NS 50000u	  /* assumed cost of a sleep and wake-up */
#define MC_SPIN_BUDGET_NS 120000u /* never poll longer than this in one wait */
#define MC_SPIN_STALL_NS 300000u  /* a gap between two polls that means "descheduled" */
#define MC_SPIN_BAN_NS 20000000u  /* no polling for this long after a stall */

/** What one waiter has learnt. Zeroed is a valid start: the first waits poll, hoping. One thread at
 * a time. */
struct mc_spin {
	uint32_t wait_ns; /* smoothed length of waits; 0: none seen */
	uint32_t samples;
	uint64_t ban_until_ns;
};

/** Nanoseconds worth polling in a wait that begins now; 0: sleep at once. */
static inline uint32_t mc_spin_budget(const struct mc_spin *s, uint64_t now_ns)
{
	uint32_t want;

	if (now_ns < s->ban_until_ns)
		return 0;
	if (s->wait_ns > 2 * MC_SPIN_WAKE_NS)
		return 0;
	want = s->samples ? 2 * s->wait_ns + 10000 : MC_SPIN_WAKE_NS;
	return want < MC_SPIN_BUDGET_NS ? want : MC_SPIN_BUDGET_NS;
}

/** A wait ended after waited_ns; slept: the thread was asleep at the end, so a wake-up is part of
 * that time. */
static inline void mc_spin_note(struct mc_spin *s, uint64_t waited_ns, bool slept)
{
	uint32_t w = waited_ns > 10000000u ? 10000000u : (uint32_t)waited_ns;

	if (slept)
		w = w > MC_SPIN_WAKE_NS ? w - MC_SPIN_WAKE_NS : w / 4;
	/* Half of a long wait is believed at once, an eighth of a short one: a burst must prove
	 * itself before it is polled for. */
	if (s->samples == 0)
		s->wait_ns = w;
	else if (w > s->wait_ns)
		s->wait_ns += (w - s->wait_ns) / 4;
	else
		s->wait_ns -= (s->wait_ns - w) / 8;
	if (s->samples < 1000)
		s->samples++;
}

/** Two polls of one wait were gap_ns apart. @return false: descheduled, stop polling */
static inline bool mc_spin_gap_ok(struct mc_spin *s, uint64_t now_ns, uint64_t gap_ns)
{
	if (gap_ns < MC_SPIN_STALL_NS)
		return true;
	s->ban_until_ns = now_ns + MC_SPIN_BAN_NS;
	return false;
}

/** Claim one of this process's polling seats (cores - 1, at least one where there are two cores).
 * Any thread. */
bool mc_spin_enter(void);
void mc_spin_leave(void);

#endif
