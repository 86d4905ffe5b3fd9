/*
 * call.h: one operation with random sizes and its result checked against the oracle.
 */
#ifndef MC_TESTS_COLL_CALL_H
#define MC_TESTS_COLL_CALL_H

#include "base/rand.h"
#include "world.h"

struct call {
	struct mc_coll_op op;
	struct mc_coll_part in[WORLD_MAX], out[WORLD_MAX];
	uint64_t number; /* of the operation, for the oracle */
	uint8_t *memory;
	bool is_async, is_in_place;
	uint64_t count, uneven;
};

/** Operation `number` of a run with this seed: the same on all ranks.
 * @param elems_max largest part */
void call_make(struct call *c, const struct rank *r, uint64_t number, uint64_t elems_max);
void call_free(struct call *c);
/** The same with this kind, type, reduction and size. */
void call_make_as(struct call *c, const struct rank *r, uint64_t number, enum mc_coll_kind kind,
		  enum mc_coll_type type, enum mc_coll_reduce reduce, uint64_t count);
/** Is the result what the ranks of `mask` make? Says on stderr where it is not. */
bool call_is_right(const struct call *c, const struct rank *r, uint64_t mask);
/** Random operations, some in the background and several at once; all are checked. For world_run().
 */
int call_random_ops(struct rank *r);

#endif
