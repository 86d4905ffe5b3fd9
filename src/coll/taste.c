/*
 * taste.c: whether what others will read is stored through the cache or past it.
 *
 * Where two cores share the last level of the cache, a reader finds there what the other has just
 * written. Where they do not, a line that is modified in the other's cache costs four times as much
 * as one in memory, to its reader and again to its next writer. The machine does not say which it
 * is: virtual cores move. Measured on a Zen 4, all_reduce of 2 ranks, through / past the cache: 1
 * MiB 50 / 100 us in one place, 500 / 100 us in the other; 64 KiB 9.5 / 7.4 and 43 / 9.5 us; 1 KiB
 * 0.15 / 0.4 and 0.5 / 0.4 us.
 *
 * So little goes through the cache, what is larger past it, and large rounds, where either may be
 * much better, are timed and do what was faster lately. All ranks count the same rounds, so they
 * try the other way together.
 */
#include "base/clock.h"
#include "coll/priv.h"

#define LEARN_MIN (128u << 10)
#define TRY_EVERY 128u /* rounds, of which the last two try the other way */

static bool is_seen_by_all(enum mc_coll_kind kind)
{
	return kind == MC_COLL_ALL_REDUCE || kind == MC_COLL_REDUCE_SCATTER ||
	       kind == MC_COLL_ALL_GATHER || kind == MC_COLL_ALL_TO_ALL;
}

static struct mc_coll_taste *taste_of(struct mc_coll_round *r)
{
	unsigned i = 63 - (unsigned)__builtin_clzll(r->len / LEARN_MIN);

	return &r->g->tastes[r->op->kind][mc_min(i, MC_COLL_TASTES - 1u)];
}

void mc_coll_taste_begin(struct mc_coll_round *r)
{
	uint32_t at;
	struct mc_coll_taste *t;
	bool is_stream;

	r->from_ns = 0;
	r->hint = r->len < MC_COLL_STREAM_MIN ? MC_COPY_CACHED : MC_COPY_STREAM;
	/* Of the others each rank sees only its own end. */
	if (r->len < LEARN_MIN || r->is_direct || !is_seen_by_all(r->op->kind))
		return;
	t = taste_of(r);
	at = t->count++ % TRY_EVERY;
	is_stream = t->ns[MC_COPY_STREAM] <= t->ns[MC_COPY_CACHED];
	if (!t->ns[MC_COPY_STREAM] || !t->ns[MC_COPY_CACHED])
		is_stream = t->count <= 2;
	else if (at >= TRY_EVERY - 2)
		is_stream = !is_stream;
	r->hint = is_stream ? MC_COPY_STREAM : MC_COPY_CACHED;
	/* What the round before has left in the caches is part of it: the first after a change does
	 * not count. */
	if (at != TRY_EVERY - 2 && t->count != 1 && t->count != 3)
		r->from_ns = mc_now_ns();
}

void mc_coll_taste_end(struct mc_coll_round *r)
{
	uint64_t *ns = &taste_of(r)->ns[r->hint], took_ns = mc_now_ns() - r->from_ns;

	/* The shortest of late: whatever disturbs a round makes it longer. */
	*ns = *ns == 0 ? took_ns : mc_min(took_ns, *ns + *ns / 16 + 1);
}
