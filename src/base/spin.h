/*
 * spin.h: whether to poll before sleeping. Pure but for the seats: times in, decision out.
 *
 * Waking a sleeper costs tens of microseconds on an idle virtual core and few on a busy one;
 * polling is cheaper than that only for answers that come soon, and only while there is a core to
 * spare. So a waiter measures how long its waits last both ways, when it polled first and when it
 * slept at once, and does what has been shorter; now and then it tries the other way. Waits that
 * would be polled for longer than a wake-up costs are never polled for: that bounds the burnt time.
 * A waiter that finds itself descheduled while polling stops for a while, and nobody polls while
 * more threads are runnable than there are cores.
 */
#ifndef MC_BASE_SPIN_H
#define MC_BASE_SPIN_H

#include <stdbool.h>
#include <stdint.h>

#define MC_SPIN_WAIT_MAX_NS 50000u  /* longest expected wait that is polled for */
#define MC_SPIN_BUSY_MAX_NS 100000u /* the same in a stream of waits, where both ends may poll */
#define MC_SPIN_BUSY_NS 200000u	    /* a stream: so soon after the last wait */
#define MC_SPIN_STALL_NS 300000u    /* a gap between two polls that means "descheduled" */
#define MC_SPIN_BAN_NS 20000000u    /* no polling for this long after a stall */
#define MC_SPIN_TRY_EVERY 64u	    /* waits between two tries of the other way */
#define MC_SPIN_LEARN 4u	    /* waits of a kind before its mean counts */

/** What one waiter has learnt. Zeroed is a valid start. One thread at a time. */
struct mc_spin {
	uint32_t polled_ns, slept_ns; /* smoothed waits, by how they began */
	uint16_t polled, slept;	      /* how many of them, up to MC_SPIN_LEARN */
	uint32_t since;		      /* waits since the other way was tried */
	uint64_t ban_until_ns;
	uint64_t ended_ns; /* end of the last wait */
};

/** Nanoseconds to poll in a wait that begins now; 0: sleep at once. Once for each wait. */
static inline uint32_t mc_spin_budget(struct mc_spin *s, uint64_t now_ns)
{
	uint32_t max =
	    now_ns - s->ended_ns < MC_SPIN_BUSY_NS ? MC_SPIN_BUSY_MAX_NS : MC_SPIN_WAIT_MAX_NS;
	bool is_better;
	uint32_t want;

	if (now_ns < s->ban_until_ns)
		return 0;
	if (s->polled < MC_SPIN_LEARN)
		return max;
	if (s->slept < MC_SPIN_LEARN)
		return 0;
	is_better = s->polled_ns < max && s->polled_ns < s->slept_ns;
	if (++s->since >= MC_SPIN_TRY_EVERY) {
		s->since = 0;
		is_better = !is_better;
	}
	if (!is_better)
		return 0;
	want = 2 * s->polled_ns + 10000;
	return want < max ? want : max;
}

/** The wait ended now, after waited_ns; has_polled: it began with polling, whether or not that was
 * enough. */
static inline void mc_spin_note(struct mc_spin *s, uint64_t now_ns, uint64_t waited_ns,
				bool has_polled)
{
	uint32_t w = waited_ns > 10000000u ? 10000000u : (uint32_t)waited_ns;
	uint32_t *mean = has_polled ? &s->polled_ns : &s->slept_ns;
	uint16_t *n = has_polled ? &s->polled : &s->slept;

	s->ended_ns = now_ns;
	if (*n == 0)
		*mean = w;
	else
		*mean += (uint32_t)(((int64_t)w - (int64_t)*mean) / 8);
	if (*n < MC_SPIN_LEARN)
		++*n;
}

/** Two polls of one wait were gap_ns apart. @return false: descheduled, stop polling */
static inline bool mc_spin_gap_ok(struct mc_spin *s, uint64_t now_ns, uint64_t gap_ns)
{
	if (gap_ns < MC_SPIN_STALL_NS)
		return true;
	s->ban_until_ns = now_ns + MC_SPIN_BAN_NS;
	return false;
}

/**
 * Claim one of this process's polling seats (cores - 1; none on a single core, none while the
 * machine has more runnable threads than cores). Any thread.
 */
bool mc_spin_enter(uint64_t now_ns);
void mc_spin_leave(void);
/** For tests: how many cores there are, and what to read instead of /proc/loadavg, looked at anew
 * by the next mc_spin_enter(). 0 and NULL: this machine's. While nobody else polls. */
void mc_spin_machine(int ncores, const char *loadavg);
/**
 * One whole wait: poll for the learnt time, where that pays and a seat is free, then sleep once;
 * and learn from it. With as many threads in here as there are cores nobody polls: the others'
 * answers need them.
 * @param look   what is there now; 0: nothing yet. Does not wait
 * @param sleep  waits in the kernel, then looks
 * @return the first answer of either that is not 0; 0: nothing came
 */
int mc_spin_wait(struct mc_spin *s, int (*look)(void *user), int (*sleep)(void *user), void *user);

#endif
