/*
 * stats.c: reading side of the counters and histograms. Everything is relaxed: the numbers order
 * nothing.
 */
#include "base/stats.h"

#include "base/err.h"

uint64_t mc_counter_read(const struct mc_counter *c)
{
	uint64_t n = 0;

	for (size_t i = 0; i < MC_STAT_SHARDS; i++)
		n += atomic_load_explicit(&c->shards[i].n, memory_order_relaxed);
	return n;
}

uint64_t mc_hist_upper(unsigned int bucket)
{
	unsigned int shift;
	uint64_t first;

	mc_assert(bucket < MC_HIST_BUCKETS);
	if (bucket < 2u << MC_HIST_SUB_BITS)
		return bucket + 1;
	shift = (bucket >> MC_HIST_SUB_BITS) - 1;
	first = (bucket & ((1u << MC_HIST_SUB_BITS) - 1)) + (1u << MC_HIST_SUB_BITS);
	if (bucket == MC_HIST_BUCKETS - 1)
		return UINT64_MAX;
	return (first + 1) << shift;
}

uint64_t mc_hist_count(const struct mc_hist *h)
{
	uint64_t n = 0;

	for (size_t i = 0; i < MC_HIST_BUCKETS; i++)
		n += atomic_load_explicit(&h->buckets[i], memory_order_relaxed);
	return n;
}

uint64_t mc_hist_quantile(const struct mc_hist *h, double q)
{
	uint64_t count = mc_hist_count(h);
	uint64_t seen = 0;
	uint64_t want;

	mc_assert(q >= 0 && q <= 1);
	if (!count)
		return 0;
	want = (uint64_t)(q * (double)count);
	if ((double)want < q * (double)count || !want)
		want++;
	for (unsigned int i = 0; i < MC_HIST_BUCKETS; i++) {
		seen += atomic_load_explicit(&h->buckets[i], memory_order_relaxed);
		if (seen >= want)
			return mc_hist_upper(i);
	}
	return UINT64_MAX; /* only when reset meanwhile */
}

void mc_hist_merge(struct mc_hist *to, const struct mc_hist *from)
{
	for (size_t i = 0; i < MC_HIST_BUCKETS; i++) {
		uint64_t n = atomic_load_explicit(&from->buckets[i], memory_order_relaxed);

		if (n)
			atomic_fetch_add_explicit(&to->buckets[i], n, memory_order_relaxed);
	}
	atomic_fetch_add_explicit(&to->sum, atomic_load_explicit(&from->sum, memory_order_relaxed),
				  memory_order_relaxed);
}

void mc_hist_reset(struct mc_hist *h)
{
	for (size_t i = 0; i < MC_HIST_BUCKETS; i++)
		atomic_store_explicit(&h->buckets[i], 0, memory_order_relaxed);
	atomic_store_explicit(&h->sum, 0, memory_order_relaxed);
}
