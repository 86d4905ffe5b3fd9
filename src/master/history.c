/*
 * history.c: the ring of samples; see history.h.
 */
#include "master/history.h"

#include <inttypes.h>

#include "base/mem.h"

#define COLUMNS (sizeof(struct mc_history_sample) / sizeof(uint64_t))

/* A histogram as it was at the last sample. */
struct before {
	uint64_t buckets[MC_HIST_BUCKETS];
};

struct mc_history {
	uint64_t n; /* added so far */
	struct before lookup, commit;
	struct mc_history_sample ring[MC_HISTORY_SAMPLES];
};

int mc_history_open(struct mc_history **ret)
{
	*ret = mc_calloc(1, sizeof(**ret));
	return *ret ? 0 : -MC_E_NOMEM;
}

void mc_history_close(struct mc_history *h)
{
	mc_free(h);
}

/* What came since the last time; `b` is brought up to date. */
static void since(struct before *b, const struct mc_hist *h, struct mc_hist *ret)
{
	for (unsigned i = 0; i < MC_HIST_BUCKETS; i++) {
		uint64_t n = atomic_load_explicit(&h->buckets[i], memory_order_relaxed);

		atomic_init(&ret->buckets[i], n - b->buckets[i]);
		b->buckets[i] = n;
	}
}

void mc_history_add(struct mc_history *h, struct mc_history_sample *s, const struct mc_hist *lookup,
		    const struct mc_hist *commit)
{
	struct mc_hist now = {0};

	since(&h->lookup, lookup, &now);
	s->lookup_p50_ns = mc_hist_quantile(&now, 0.5);
	s->lookup_p99_ns = mc_hist_quantile(&now, 0.99);
	since(&h->commit, commit, &now);
	s->commit_p50_ns = mc_hist_quantile(&now, 0.5);
	s->commit_p99_ns = mc_hist_quantile(&now, 0.99);
	h->ring[h->n++ % MC_HISTORY_SAMPLES] = *s;
}

static void sample_json(const struct mc_history_sample *s, struct mc_str *out)
{
	const uint64_t *row = (const uint64_t *)s; /* nothing but numbers */

	for (size_t i = 0; i < COLUMNS; i++)
		(void)mc_str_appendf(out, "%s%" PRIu64, i ? "," : "[", row[i]);
	(void)mc_str_puts(out, "]");
}

void mc_history_json(const struct mc_history *h, uint64_t after_ms, struct mc_str *out)
{
	static const char *const names[] = {
#define MC_HISTORY_NAME(name) #name,
	    MC_HISTORY_COLUMNS(MC_HISTORY_NAME)
#undef MC_HISTORY_NAME
	};
	const char *before = "";

	_Static_assert(MC_ARRAY_LEN(names) == COLUMNS, "one name a column");
	(void)mc_str_appendf(out, "{\"every_s\":%u,\"columns\":[", MC_HISTORY_EVERY_S);
	for (size_t i = 0; i < MC_ARRAY_LEN(names); i++)
		(void)mc_str_appendf(out, "%s\"%s\"", i ? "," : "", names[i]);
	(void)mc_str_puts(out, "],\"samples\":[");
	for (uint64_t i = h->n - mc_min(h->n, (uint64_t)MC_HISTORY_SAMPLES); i < h->n; i++) {
		const struct mc_history_sample *s = &h->ring[i % MC_HISTORY_SAMPLES];

		if (s->at_ms <= after_ms)
			continue;
		(void)mc_str_puts(out, before);
		sample_json(s, out);
		before = ",";
	}
	(void)mc_str_puts(out, "]}\n");
}
