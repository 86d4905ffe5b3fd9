/*
 * tally.h: what happens at a master, counted under upstream's names (see upstream's dashboards).
 *
 * Where upstream has one call for a key and one for many, ours is the same call: with one key it
 * counts as the former. What a writer does at owners (room for a put) no master counts.
 */
#ifndef MC_MASTER_TALLY_H
#define MC_MASTER_TALLY_H

#include "base/statreg.h"
#include "base/stats.h"
#include "wire/store.h"

enum mc_tally_op {
	MC_TALLY_EXIST,
	MC_TALLY_GET,
	MC_TALLY_PUT_END,
	MC_TALLY_REMOVE, /* each key is a request */
	MC_TALLY_REMOVE_REGEX,
	MC_TALLY_REMOVE_ALL,
	MC_TALLY_MOUNT,
	MC_TALLY_REMOUNT, /* an owner that had been there */
	MC_TALLY_UNMOUNT,
	MC_TALLY_OP_COUNT,
};

/** What became of an object that was read from a disk. */
enum mc_tally_promotion {
	MC_TALLY_PROMOTION_ADMITTED,
	MC_TALLY_PROMOTION_COMPLETED,
	MC_TALLY_PROMOTION_EXPIRED,
	MC_TALLY_PROMOTION_FAILED,
	MC_TALLY_PROMOTION_CANCELLED,
	MC_TALLY_PROMOTION_FREQUENCY, /* not admitted, as the following */
	MC_TALLY_PROMOTION_WATERMARK,
	MC_TALLY_PROMOTION_CAP,
	MC_TALLY_PROMOTION_COUNT,
};

/** Valid when zeroed. */
struct mc_tally {
	struct {
		struct mc_counter requests, failures;
		/* of calls with many keys; failed: all of them, partial: some of them */
		struct mc_counter batches, failed, partial, items, failed_items;
	} op[MC_TALLY_OP_COUNT];
	struct mc_counter gets, valid_gets, hits[MC_ST_KIND_COUNT], hit_bytes[MC_ST_KIND_COUNT];
	struct mc_counter evictions_tried, evictions_done;
	struct mc_counter promotions[MC_TALLY_PROMOTION_COUNT], promoted_bytes;
	struct mc_gauge promotions_open;
	struct mc_hist value_bytes;
};

/** One call of `n` keys, of which `failed` could not be answered or done. */
void mc_tally_call(struct mc_tally *t, enum mc_tally_op op, uint32_t n, uint32_t failed);
/** n calls of one key each. */
void mc_tally_calls(struct mc_tally *t, enum mc_tally_op op, uint32_t n, uint32_t failed);
/** The keys of one lookup: hits in memory, else on disk, else misses. */
struct mc_tally_gets {
	uint64_t n, hits[MC_ST_KIND_COUNT], bytes[MC_ST_KIND_COUNT];
};
void mc_tally_get(struct mc_tally_gets *g, const struct mc_st_object *o);
void mc_tally_gets(struct mc_tally *t, const struct mc_tally_gets *g);
/** Name all of it. @return as mc_stat_add() */
MC_MUST_CHECK int mc_tally_add(const struct mc_tally *t, struct mc_stat_reg *reg);

#endif
