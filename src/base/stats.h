/*
 * stats.h: counters, gauges and latency histograms whose recording is wait-free and allocates
 * nothing. statreg.h names and renders them. All of them are valid when zeroed, belong to the
 * caller, and may be used from any thread; what a reader sees is a little late, never torn.
 */
#ifndef MC_BASE_STATS_H
#define MC_BASE_STATS_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdint.h>

#include "base/mem.h"

#define MC_STAT_SHARDS 8

/** A number that only grows. A thread adds to its own shard, so that threads do not share a cache
 * line. */
struct mc_counter {
	struct {
		_Alignas(MC_CACHELINE) _Atomic uint64_t n;
	} shards[MC_STAT_SHARDS];
};

/* Of the calling thread, by its address (Fibonacci hashing, Knuth 6.4). Not a thread-local
 * variable: the C library gets memory for those at a thread's first touch, and ends the process
 * when there is none. */
static inline unsigned int mc_stat_shard(void)
{
	return (unsigned int)((uint64_t)pthread_self() * 0x9e3779b97f4a7c15ull >> 32) %
	       MC_STAT_SHARDS;
}

static inline void mc_counter_add(struct mc_counter *c, uint64_t n)
{
	atomic_fetch_add_explicit(&c->shards[mc_stat_shard()].n, n, memory_order_relaxed);
}

uint64_t mc_counter_read(const struct mc_counter *c);

/** A number that goes up and down. */
struct mc_gauge {
	_Atomic int64_t n;
};

static inline void mc_gauge_set(struct mc_gauge *g, int64_t n)
{
	atomic_store_explicit(&g->n, n, memory_order_relaxed);
}

static inline void mc_gauge_add(struct mc_gauge *g, int64_t n)
{
	atomic_fetch_add_explicit(&g->n, n, memory_order_relaxed);
}

static inline int64_t mc_gauge_read(const struct mc_gauge *g)
{
	return atomic_load_explicit(&g->n, memory_order_relaxed);
}

/*
 * Log-linear buckets after HdrHistogram (G. Tene): each power of two is cut into 16, so a value is
 * known to 1/16 of itself over all of uint64. Bucket i holds (lower, upper], so that powers of two
 * are exact upper bounds.
 */
#define MC_HIST_SUB_BITS 4
#define MC_HIST_BUCKETS ((64 - MC_HIST_SUB_BITS + 1) << MC_HIST_SUB_BITS)

/** 7.8 KiB. Values are nanoseconds or bytes. */
struct mc_hist {
	_Atomic uint64_t sum; /* of the values, modulo 2^64 */
	_Atomic uint64_t buckets[MC_HIST_BUCKETS];
};

static inline unsigned int mc_hist_bucket(uint64_t value)
{
	uint64_t v = value ? value - 1 : 0;
	unsigned int shift;

	if (v < 1u << MC_HIST_SUB_BITS)
		return (unsigned int)v;
	shift = 63u - (unsigned int)__builtin_clzll(v) - MC_HIST_SUB_BITS;
	return (unsigned int)(((uint64_t)shift << MC_HIST_SUB_BITS) + (v >> shift));
}

/** Largest value of a bucket. */
uint64_t mc_hist_upper(unsigned int bucket);

static inline void mc_hist_add(struct mc_hist *h, uint64_t value)
{
	atomic_fetch_add_explicit(&h->buckets[mc_hist_bucket(value)], 1, memory_order_relaxed);
	atomic_fetch_add_explicit(&h->sum, value, memory_order_relaxed);
}

uint64_t mc_hist_count(const struct mc_hist *h);
/** Value that the fraction q (0 … 1) of the values does not exceed, up to 1/16 too high; 0 when
 * empty. */
uint64_t mc_hist_quantile(const struct mc_hist *h, double q);
/** Add the values of `from` to `to`. */
void mc_hist_merge(struct mc_hist *to, const struct mc_hist *from);
/** Forget all values. Those recorded meanwhile may stay or go. */
void mc_hist_reset(struct mc_hist *h);

#endif
