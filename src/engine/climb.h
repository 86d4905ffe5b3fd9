/*
 * climb.h: how many lanes a bulk transfer deserves on a rail that a core, not a link, limits. Pure.
 *
 * More connections help where the other side has idle cores, and hurt where they only take turns.
 * So each width is measured: first each a few times, then the narrowest that is within
 * MC_CLIMB_MARGIN of the best is used, and now and then another is tried again. One instance per
 * session and direction.
 */
#ifndef MC_ENGINE_CLIMB_H
#define MC_ENGINE_CLIMB_H

#include <stdint.h>

#define MC_CLIMB_WIDTHS 3u   /* 1, 2, 4 lanes */
#define MC_CLIMB_LEARN 3u    /* transfers of each before it is believed */
#define MC_CLIMB_EVERY 48u   /* transfers between two tries of another width */
#define MC_CLIMB_MARGIN 0.95 /* a wider one must be this much better: 1 / 0.95 */

/** Zeroed: nothing known. One user at a time. */
struct mc_climb {
	double rate[MC_CLIMB_WIDTHS]; /* smoothed bytes per nanosecond */
	uint16_t seen[MC_CLIMB_WIDTHS];
	uint16_t since; /* transfers since another width was tried */
	uint16_t next;	/* the one to try then */
};

static inline unsigned mc_climb_lanes(unsigned width)
{
	return 1u << width;
}

/** Width for the next transfer; lanes_max >= 1 bounds it. Pass it to mc_climb_note() afterwards. */
static inline unsigned mc_climb_width(struct mc_climb *c, unsigned lanes_max)
{
	unsigned widths = 1, best = 0; /* one lane is always there */

	while (widths < MC_CLIMB_WIDTHS && mc_climb_lanes(widths) <= lanes_max)
		widths++;
	for (unsigned i = 0; i < widths; i++)
		if (c->seen[i] < MC_CLIMB_LEARN)
			return i;
	if (++c->since >= MC_CLIMB_EVERY) {
		c->since = 0;
		c->next = (uint16_t)((c->next + 1u) % widths);
		return c->next;
	}
	for (unsigned i = 1; i < widths; i++)
		if (c->rate[i] * MC_CLIMB_MARGIN > c->rate[best])
			best = i;
	return best;
}

/** A transfer of `bytes` at this width took took_ns. */
static inline void mc_climb_note(struct mc_climb *c, unsigned width, uint64_t bytes,
				 uint64_t took_ns)
{
	double rate = took_ns ? (double)bytes / (double)took_ns : 0;

	if (rate <= 0 || width >= MC_CLIMB_WIDTHS)
		return;
	c->rate[width] = c->seen[width] ? c->rate[width] * 0.8 + rate * 0.2 : rate;
	if (c->seen[width] < MC_CLIMB_LEARN)
		c->seen[width]++;
}

#endif
