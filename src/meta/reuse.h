/*
 * reuse.h: how soon will an object of this kind be wanted again? Learnt from what happens. Pure:
 * ages and classes in, expected hits per second out.
 *
 * Objects fall into classes (touches so far, kind of request). For each class and age bucket the
 * rate of reuse is events / exposure: hits at that age over object-seconds spent at it, both with a
 * slow decay, so that bounded memory of the past and objects that are still waiting bias nothing.
 * Sparse classes lean on the rate of all classes together. From the rates comes the rank of an
 * object of this class and age: the most hits per second that keeping it for some time from now can
 * bring. Source: the Gittins index of a job whose completion is the next use (J. C. Gittins, 1979);
 * occurrence/exposure rates as in survival analysis.
 *
 * Buckets are logarithmic, four an octave, so nothing has to be tuned to a workload's time scale.
 */
#ifndef MC_META_REUSE_H
#define MC_META_REUSE_H

#include <stdint.h>

#define MC_REUSE_CLASSES 36u
#define MC_REUSE_AGES 96u
#define MC_REUSE_TICK_MS                                                                           \
	100u /* width of the first four buckets together; the last ends after 19 days */

struct mc_reuse {
	/* [MC_REUSE_CLASSES]: all classes together */
	double events[MC_REUSE_CLASSES + 1][MC_REUSE_AGES];
	double exposure_s[MC_REUSE_CLASSES + 1][MC_REUSE_AGES];
	float rank[MC_REUSE_CLASSES][MC_REUSE_AGES];
};

/** Nothing known: older is worse. */
void mc_reuse_init(struct mc_reuse *r);
/** Bucket of an age. */
unsigned mc_reuse_age(uint64_t age_ms);
/** Age at which bucket `age` begins; age <= MC_REUSE_AGES. */
uint64_t mc_reuse_age_ms(unsigned age);
/** An object of this class was touched again at this age. */
void mc_reuse_event(struct mc_reuse *r, unsigned class, unsigned age);
/** `seconds` object-seconds were spent waiting in this class and bucket. */
void mc_reuse_exposed(struct mc_reuse *r, unsigned class, unsigned age, double seconds);
/** Compute the ranks anew, then let the past count `keep` (0 … 1) as much. */
void mc_reuse_learn(struct mc_reuse *r, double keep);

#endif
