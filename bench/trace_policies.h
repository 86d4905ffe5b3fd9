/*
 * trace_policies.h: caches that bench/trace_bench.c plays a trace of prefix blocks through: ours
 * (meta/evict.h), the textbook ones, and the one that knows the future.
 *
 * Blocks are dense numbers. A request is looked up first, then touched block by block.
 */
#ifndef MC_BENCH_TRACE_POLICIES_H
#define MC_BENCH_TRACE_POLICIES_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct trace_request {
	uint64_t at_ms;
	uint32_t *blocks; /* root first */
	uint32_t n;
	uint32_t nstored; /* of them are whole: an engine stores no partial block */
	uint64_t *next;	  /* request that uses each block again, UINT64_MAX: none */
};

struct trace {
	struct trace_request *requests;
	size_t n;
	uint32_t nblocks; /* different ones */
	uint64_t nrefs;
};

struct policy {
	const char *name;
	/** Prefix hits over the whole trace with room for `capacity` blocks; UINT64_MAX: out of
	 * memory. */
	uint64_t (*run)(const struct trace *t, size_t capacity);
};

extern const struct policy trace_policies[];
extern const size_t trace_policies_n;

#endif
