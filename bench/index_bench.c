/*
 * index_bench.c: the master's index alone, on one core: commits and lookups in batches of 128,
 * bytes for an object, and how long the slowest calls take while it grows. Prints JSON.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/mem.h"
#include "base/rand.h"
#include "meta/index.h"

#define BATCH 128u
#define KEY_LEN 40u
#define OWNERS 16u
#define SIZES 3u
#define LOOKUPS 2000000u

struct bench {
	struct mc_index *ix;
	struct mc_index_frees frees;
	struct mc_rand rand;
	uint64_t now_ms, n;
	uint8_t text[BATCH][KEY_LEN];
	struct mc_st_key keys[BATCH];
	uint64_t *took_ns; /* batches */
	size_t ntook;
};

static uint64_t cpu_ns(void)
{
	struct timespec t = {0};

	(void)clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t); /* cannot fail for this clock */
	return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

static void key_make(struct bench *b, uint32_t i, uint64_t number)
{
	memset(b->text[i], 0, KEY_LEN);
	snprintf((char *)b->text[i] + 1, KEY_LEN - 1, "model@%016llx@layer:%llu",
		 (unsigned long long)(number * 0x9e3779b97f4a7c15ull),
		 (unsigned long long)(number % 64));
	b->keys[i] = (struct mc_st_key){.len = KEY_LEN, .bytes = b->text[i]};
}

static int order_of(const void *a, const void *b)
{
	uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;

	return x < y ? -1 : x > y;
}

static double p99_us(struct bench *b)
{
	qsort(b->took_ns, b->ntook, sizeof(*b->took_ns), order_of);
	return (double)b->took_ns[b->ntook * 99 / 100] / 1000;
}

static int commit_batch(struct bench *b)
{
	struct mc_index_request q;
	uint64_t begin_ns, gen;
	int rc;

	for (uint32_t i = 0; i < BATCH; i++)
		key_make(b, i, b->n + i);
	begin_ns = cpu_ns();
	rc = mc_index_begin(b->ix, &q, b->now_ms, b->keys, BATCH);
	for (uint32_t i = 0; i < BATCH && rc == 0; i++) {
		struct mc_st_commit c = {.gen = b->n + i + 1, .len = 65536, .nreplicas = 1};

		c.replicas[0] = (struct mc_st_replica){.owner = 1 + (b->n + i) % OWNERS,
						       .addr = (b->n + i) << 16};
		rc = mc_index_commit(&q, i, &c, &b->frees, &gen);
	}
	mc_index_end(&q);
	b->took_ns[b->ntook++] = cpu_ns() - begin_ns;
	b->n += BATCH;
	b->now_ms += 1;
	return rc;
}

static int lookup_batch(struct bench *b)
{
	struct mc_index_request q;
	struct mc_st_object got;
	uint64_t begin_ns, first = mc_rand_below(&b->rand, b->n / BATCH) * BATCH;
	int rc;

	for (uint32_t i = 0; i < BATCH; i++)
		key_make(b, i, first + i);
	begin_ns = cpu_ns();
	rc = mc_index_begin(b->ix, &q, b->now_ms, b->keys, BATCH);
	for (uint32_t i = 0; i < BATCH && rc == 0; i++)
		rc = mc_index_lookup(&q, i, 0, &got);
	mc_index_end(&q);
	b->took_ns[b->ntook++] = cpu_ns() - begin_ns;
	b->now_ms += 1;
	return rc;
}

static double seconds(const struct bench *b)
{
	uint64_t sum = 0;

	for (size_t i = 0; i < b->ntook; i++)
		sum += b->took_ns[i];
	return (double)sum / 1e9;
}

/* Up to `objects`, then lookups. */
static int run_size(struct bench *b, uint64_t objects, uint64_t empty_bytes)
{
	uint64_t before = b->n;
	struct mc_index_stats st;
	double commits, commit_p99_us, peak = 0;
	int rc = 0;

	b->ntook = 0;
	while (b->n < objects && rc == 0) {
		rc = commit_batch(b);
		if (b->n % 65536 || b->n < 10000)
			continue;
		mc_index_stats(b->ix, &st);
		peak = mc_max(peak, (double)(st.memory_bytes - empty_bytes) / (double)b->n);
	}
	commits = (double)(b->n - before) / seconds(b);
	commit_p99_us = p99_us(b);
	b->ntook = 0;
	while (b->ntook < LOOKUPS / BATCH && rc == 0)
		rc = lookup_batch(b);
	mc_index_stats(b->ix, &st);
	printf("{\"objects\": %llu, \"commits_per_s\": %.0f, \"commit_batch_p99_us\": %.1f, "
	       "\"lookups_per_s\": %.0f, ",
	       (unsigned long long)b->n, commits, commit_p99_us,
	       (double)(b->ntook * BATCH) / seconds(b));
	printf("\"lookup_batch_p99_us\": %.1f, \"bytes_beside_key\": %.1f, "
	       "\"peak_bytes_beside_key\": %.1f}",
	       p99_us(b), (double)(st.memory_bytes - empty_bytes) / (double)b->n - KEY_LEN,
	       peak ? peak - KEY_LEN : 0);
	return rc;
}

static int bench_open(struct bench *b, uint64_t most)
{
	struct mc_index_conf conf = {.lease_ttl_ms = 10000, .quota = UINT64_MAX};
	int rc = mc_rand_bytes(&conf.seed, sizeof(conf.seed));

	if (rc == 0)
		rc = mc_index_open(&conf, &b->ix);
	for (uint64_t i = 1; i <= OWNERS && rc == 0; i++)
		rc = mc_index_owner_join(b->ix, i);
	mc_rand_seed(&b->rand, 1);
	b->took_ns = mc_calloc((most + LOOKUPS) / BATCH + 2, sizeof(*b->took_ns));
	return b->took_ns ? rc : -MC_E_NOMEM;
}

int main(int argc, char **argv)
{
	static const uint64_t sizes[SIZES] = {10000, 1000000, 5000000};
	struct bench b = {.now_ms = 1000};
	struct mc_index_stats empty;
	int rc = bench_open(&b, sizes[SIZES - 1]);

	(void)argv;
	if (argc > 1) {
		fprintf(stderr, "index_bench takes no arguments\n");
		return 2;
	}
	if (rc == 0) {
		mc_index_stats(b.ix, &empty);
		printf("{\"empty_bytes\": %llu, \"batch\": %u, \"key_bytes\": %u, \"sizes\": [",
		       (unsigned long long)empty.memory_bytes, BATCH, KEY_LEN);
		for (uint32_t i = 0; i < SIZES && rc == 0; i++) {
			printf("%s\n  ", i ? "," : "");
			rc = run_size(&b, sizes[i], empty.memory_bytes);
		}
		printf("]}\n");
	}
	mc_index_close(b.ix);
	mc_index_frees_fini(&b.frees);
	mc_free(b.took_ns);
	if (rc != 0)
		fprintf(stderr, "index_bench: %d\n", rc);
	return rc != 0;
}
