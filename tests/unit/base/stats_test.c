/*
 * stats_test.c: buckets, quantiles, threads.
 */
#include "base/stats.h"

#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "base/rand.h"

#define THREADS 4
#define ADDS 10000

static void hist_buckets_are_gapless_and_a_sixteenth_wide(void **state)
{
	struct mc_rand r;

	mc_rand_seed(&r, 9);
	assert_int_equal(mc_hist_bucket(0), 0);
	assert_int_equal(mc_hist_bucket(UINT64_MAX), MC_HIST_BUCKETS - 1);
	assert_true(mc_hist_upper(MC_HIST_BUCKETS - 1) == UINT64_MAX);
	for (unsigned int i = 0; i + 1 < MC_HIST_BUCKETS; i++) {
		uint64_t upper = mc_hist_upper(i);

		assert_int_equal(mc_hist_bucket(upper), i);
		assert_int_equal(mc_hist_bucket(upper + 1), i + 1);
	}
	for (unsigned int k = 0; k < 64; k++)
		assert_true(mc_hist_upper(mc_hist_bucket(1ull << k)) == 1ull << k);
	for (int i = 0; i < 10000; i++) {
		uint64_t v = (mc_rand_u64(&r) >> mc_rand_below(&r, 63)) | 1;
		uint64_t upper = mc_hist_upper(mc_hist_bucket(v));

		assert_true(upper >= v && upper - v <= v / 16);
	}
	(void)state;
}

static void hist_quantiles_are_near_the_true_ones(void **state)
{
	static struct mc_hist h;
	const double qs[] = {0.01, 0.5, 0.9, 0.99, 1};

	mc_hist_reset(&h);
	assert_int_equal(mc_hist_quantile(&h, 0.5), 0);
	for (uint64_t v = 1; v <= 10000; v++)
		mc_hist_add(&h, v);
	assert_int_equal(mc_hist_count(&h), 10000);
	for (size_t i = 0; i < MC_ARRAY_LEN(qs); i++) {
		double truth = qs[i] * 10000;
		double got = (double)mc_hist_quantile(&h, qs[i]);

		assert_true(got >= truth && got <= truth * 17 / 16 + 1);
	}
	assert_int_equal(mc_hist_quantile(&h, 0), 1);
	(void)state;
}

static void hist_merge_adds_all_values(void **state)
{
	static struct mc_hist a, b;

	mc_hist_add(&a, 5);
	mc_hist_add(&b, 7);
	mc_hist_add(&b, 100);
	mc_hist_merge(&a, &b);
	assert_int_equal(mc_hist_count(&a), 3);
	assert_int_equal(atomic_load(&a.sum), 112);
	mc_hist_reset(&a);
	assert_int_equal(mc_hist_count(&a), 0);
	(void)state;
}

static void gauge_goes_up_and_down(void **state)
{
	struct mc_gauge g = {0};

	mc_gauge_set(&g, 5);
	mc_gauge_add(&g, -7);
	assert_int_equal(mc_gauge_read(&g), -2);
	(void)state;
}

static struct mc_counter shared_counter;
static struct mc_hist shared_hist;

static void *stats_adder(void *arg)
{
	(void)arg;
	for (uint64_t i = 0; i < ADDS; i++) {
		mc_counter_add(&shared_counter, 2);
		mc_hist_add(&shared_hist, i);
	}
	return NULL;
}

static void counters_and_hists_lose_nothing_between_threads(void **state)
{
	uint64_t calls = mc_mem_calls();
	pthread_t threads[THREADS];

	for (size_t i = 0; i < THREADS; i++)
		assert_int_equal(pthread_create(&threads[i], NULL, stats_adder, NULL), 0);
	for (size_t i = 0; i < THREADS; i++)
		assert_int_equal(pthread_join(threads[i], NULL), 0);
	assert_int_equal(mc_counter_read(&shared_counter), 2 * THREADS * ADDS);
	assert_int_equal(mc_hist_count(&shared_hist), THREADS * ADDS);
	assert_int_equal(mc_mem_calls(), calls);
	(void)state;
}

int main(void)
{
	const struct CMUnitTest tests[] = {
	    cmocka_unit_test(hist_buckets_are_gapless_and_a_sixteenth_wide),
	    cmocka_unit_test(hist_quantiles_are_near_the_true_ones),
	    cmocka_unit_test(hist_merge_adds_all_values),
	    cmocka_unit_test(gauge_goes_up_and_down),
	    cmocka_unit_test(counters_and_hists_lose_nothing_between_threads),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
