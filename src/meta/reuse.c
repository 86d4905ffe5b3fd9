/*
 * reuse.c: rates and ranks; see reuse.h.
 */
#include "meta/reuse.h"

#include <math.h>
#include <string.h>

#include "base/err.h"

#define PRIOR_EVENTS 6.0 /* of all classes together, added to each class */
#define HORIZON_S 600.0	 /* no longer than this ahead pays an object its place */

unsigned mc_reuse_age(uint64_t age_ms)
{
	uint64_t x = 4 + 4 * age_ms / MC_REUSE_TICK_MS; /* quarters of 1 + age / tick */
	unsigned octave = 61u - (unsigned)__builtin_clzll(x);
	unsigned bucket = 4 * octave + (unsigned)((x >> octave) & 3);

	return bucket < MC_REUSE_AGES ? bucket : MC_REUSE_AGES - 1;
}

uint64_t mc_reuse_age_ms(unsigned age)
{
	return MC_REUSE_TICK_MS * (((4ull + age % 4) << (age / 4)) - 4) / 4;
}

static double width_s(unsigned age)
{
	return (double)(mc_reuse_age_ms(age + 1) - mc_reuse_age_ms(age)) / 1000;
}

void mc_reuse_init(struct mc_reuse *r)
{
	memset(r, 0, sizeof(*r));
	for (unsigned c = 0; c < MC_REUSE_CLASSES; c++)
		for (unsigned a = 0; a < MC_REUSE_AGES; a++)
			r->rank[c][a] = 1e-9f / (float)(1 + a);
}

void mc_reuse_event(struct mc_reuse *r, unsigned class, unsigned age)
{
	r->events[class][age]++;
	r->events[MC_REUSE_CLASSES][age]++;
}

void mc_reuse_exposed(struct mc_reuse *r, unsigned class, unsigned age, double seconds)
{
	r->exposure_s[class][age] += seconds;
	r->exposure_s[MC_REUSE_CLASSES][age] += seconds;
}

/* Rates by age. Where even all classes together were never seen, the rate falls off from the bucket
 * before. */
static void rates_of(const struct mc_reuse *r, unsigned class, const double *prior,
		     double ret[MC_REUSE_AGES])
{
	for (unsigned a = 0; a < MC_REUSE_AGES; a++) {
		double events = r->events[class][a], exposure = r->exposure_s[class][a];

		if (prior && prior[a] > 0) {
			events += PRIOR_EVENTS;
			exposure += PRIOR_EVENTS / prior[a];
		}
		if (exposure > 0 && (prior || events + exposure / width_s(a) > 8))
			ret[a] = events / fmax(exposure, 0.25 * events * width_s(a));
		else
			ret[a] = a ? 0.7 * ret[a - 1] : 0;
	}
}

/* Most hits per second over all spans from each age on. */
static void ranks_of(const double rate[MC_REUSE_AGES], float ret[MC_REUSE_AGES])
{
	double hit[MC_REUSE_AGES], spent[MC_REUSE_AGES];

	for (unsigned a = 0; a < MC_REUSE_AGES; a++) {
		double w = width_s(a);

		hit[a] = 1 - exp(-rate[a] * w);
		spent[a] = rate[a] * w > 1e-6 ? hit[a] / rate[a] : w;
	}
	for (unsigned a = 0; a < MC_REUSE_AGES; a++) {
		double alive = 1, hits = 0, seconds = 0, best = 0;
		double end_s = (double)mc_reuse_age_ms(a) / 1000 + HORIZON_S;

		for (unsigned w = a;
		     w < MC_REUSE_AGES && (w == a || (double)mc_reuse_age_ms(w) / 1000 < end_s);
		     w++) {
			hits += alive * hit[w];
			seconds += alive * spent[w];
			alive *= 1 - hit[w];
			best = fmax(best, hits / seconds);
		}
		ret[a] = (float)best;
	}
}

void mc_reuse_learn(struct mc_reuse *r, double keep)
{
	double all[MC_REUSE_AGES], rate[MC_REUSE_AGES];

	rates_of(r, MC_REUSE_CLASSES, NULL, all);
	for (unsigned c = 0; c < MC_REUSE_CLASSES; c++) {
		rates_of(r, c, all, rate);
		ranks_of(rate, r->rank[c]);
	}
	for (unsigned c = 0; c <= MC_REUSE_CLASSES; c++)
		for (unsigned a = 0; a < MC_REUSE_AGES; a++) {
			r->events[c][a] *= keep;
			r->exposure_s[c][a] *= keep;
		}
}
