/*
 * mover.h: copies of many objects: what a walk over the index finds is copied to owners with room,
 * a few objects at a time, until a pass finds nothing more to do. For drains and repairs. The index
 * loop's.
 *
 * Nothing is evicted for it: an owner takes copies up to its watermark.
 */
#ifndef MC_MASTER_MOVER_H
#define MC_MASTER_MOVER_H

#include "master/priv.h"
#include "meta/place.h"

struct mc_mst_mover {
	/* whoever uses it; before the first mc_mst_mover_go() */
	struct mc_master *m;
	uint32_t copies;		  /* at one time */
	uint64_t bytes_per_s;		  /* 0: as fast as it goes */
	char (*targets)[MC_MST_TEXT_MAX]; /* segments; ntargets 0: any */
	size_t ntargets;
	/** An object of the index: mc_mst_mover_add() if it is to be copied. The index stays as it
	 * is. */
	void (*each)(struct mc_mst_mover *mv, const struct mc_index_view *v);
	/** May it go on? Before each step; false: it stops until mc_mst_mover_go(). */
	bool (*may_go)(struct mc_mst_mover *mv);
	/** It is its turn. @return 0: it is copied; else it is over, as a copy's end. NULL: 0 */
	int32_t (*on_start)(struct mc_mst_mover *mv, struct mc_mst_copy *c,
			    const struct mc_st_object *object);
	/** No owner has room for this object. @return as a copy's end: 0 when it is well anyway.
	 * NULL: MC_STORE_NO_AVAILABLE_HANDLE */
	int32_t (*on_no_room)(struct mc_mst_mover *mv, struct mc_mst_copy *c,
			      const struct mc_st_object *object);
	/** One is over; objects that have gone meanwhile are not told. */
	void (*on_one)(struct mc_mst_mover *mv, uint64_t bytes, int32_t status);
	/** Everything that the pass found is over. */
	void (*on_pass)(struct mc_mst_mover *mv);

	/* of the last pass */
	uint64_t found, failed;
	uint32_t nready, nactive;
	/* mover.c's */
	struct mc_timer timer;
	struct mc_list ready, active;
	struct mc_place place;
	uint64_t place_ms, cursor, tokens_ms;
	int64_t tokens; /* bytes */
	bool is_walked;
};

void mc_mst_mover_init(struct mc_mst_mover *mv, uint64_t seed);
/** Nobody is told of anything any more. */
void mc_mst_mover_fini(struct mc_mst_mover *mv);
/** A pass from the beginning. */
void mc_mst_mover_pass(struct mc_mst_mover *mv);
/** A step, after a while. */
void mc_mst_mover_go(struct mc_mst_mover *mv, uint64_t in_ns);
/** What has not been started is given up. */
void mc_mst_mover_stop(struct mc_mst_mover *mv);
/** From each(). @param source  0: any that has it */
void mc_mst_mover_add(struct mc_mst_mover *mv, const struct mc_index_view *v, uint64_t source,
		      bool is_move);

#endif
