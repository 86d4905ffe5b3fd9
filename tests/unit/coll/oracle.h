/*
 * oracle.h: inputs that every rank can compute, and what an operation has to make of them, in one
 * process. Values are small integers, so sums are exact in every type and in every order.
 */
#ifndef MC_TESTS_COLL_ORACLE_H
#define MC_TESTS_COLL_ORACLE_H

#include <mooncake/coll.h>

/** Element i of what `rank` puts into part `part` of operation `op`. */
double oracle_value(uint64_t seed, uint64_t op, unsigned rank, unsigned part, uint64_t i);
/** `value` as an element of `type` at index i of p. */
void oracle_store(enum mc_coll_type type, void *p, uint64_t i, double value);
double oracle_load(enum mc_coll_type type, const void *p, uint64_t i);
/** What the inputs of the ranks in `mask` reduce to. */
double oracle_reduce(enum mc_coll_type type, enum mc_coll_reduce reduce, uint64_t seed, uint64_t op,
		     uint64_t mask, unsigned part, uint64_t i);
/** Factor of a rank in PREMUL_SUM. */
double oracle_factor(unsigned rank);

#endif
