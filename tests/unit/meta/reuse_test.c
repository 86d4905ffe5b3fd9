/*
 * reuse_test.c: age buckets, and ranks that follow the rates that were seen.
 */
#include "meta/reuse.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#define EVER_MS UINT64_MAX

static void an_age_lies_in_its_bucket(void **state)
{
	for (unsigned a = 0; a < MC_REUSE_AGES; a++) {
		assert_true(mc_reuse_age_ms(a) < mc_reuse_age_ms(a + 1));
		assert_int_equal(mc_reuse_age(mc_reuse_age_ms(a)), a);
		assert_int_equal(mc_reuse_age(mc_reuse_age_ms(a + 1) - 1), a);
	}
	assert_int_equal(mc_reuse_age(UINT64_MAX / 8), MC_REUSE_AGES - 1);
	(void)state;
}

static void unknown_classes_rank_by_age(void **state)
{
	static struct mc_reuse r;

	mc_reuse_init(&r);
	for (unsigned c = 0; c < MC_REUSE_CLASSES; c++)
		for (unsigned a = 1; a < MC_REUSE_AGES; a++)
			assert_true(r.rank[c][a] < r.rank[c][a - 1]);
	(void)state;
}

/* `events` hits a bucket against `seconds` of waiting in it, for ages up to `end_ms`. */
static void teach(struct mc_reuse *r, unsigned class, uint64_t end_ms, unsigned events,
		  double seconds)
{
	for (unsigned a = 0; a < MC_REUSE_AGES && mc_reuse_age_ms(a) < end_ms; a++) {
		for (unsigned i = 0; i < events; i++)
			mc_reuse_event(r, class, a);
		mc_reuse_exposed(r, class, a, seconds);
	}
}

static void a_class_that_comes_back_outranks_one_that_does_not(void **state)
{
	static struct mc_reuse r;

	mc_reuse_init(&r);
	teach(&r, 1, EVER_MS, 100, 1000);
	teach(&r, 2, EVER_MS, 1, 1000);
	mc_reuse_learn(&r, 1);
	assert_true(r.rank[1][0] > 10 * r.rank[2][0]);
	assert_true(r.rank[1][0] > 0.05f && r.rank[1][0] < 0.2f); /* 100 in 1000 seconds */
	(void)state;
}

static void an_object_before_its_time_outranks_one_after_it(void **state)
{
	static struct mc_reuse r;
	unsigned busy = mc_reuse_age(30000);

	mc_reuse_init(&r);
	for (unsigned a = 0; a < MC_REUSE_AGES; a++)
		mc_reuse_exposed(&r, 3, a, 1000);
	for (int i = 0; i < 500; i++)
		mc_reuse_event(&r, 3, busy);
	mc_reuse_learn(&r, 1);
	assert_true(r.rank[3][busy] > r.rank[3][0]);
	assert_true(r.rank[3][0] > 2 * r.rank[3][busy + 1]);
	(void)state;
}

static void the_past_fades(void **state)
{
	static struct mc_reuse r;
	float before;

	mc_reuse_init(&r);
	teach(&r, 4, 60000, 100, 100);
	mc_reuse_learn(&r, 0.5);
	before = r.rank[4][0];
	for (int i = 0; i < 20; i++) {
		teach(&r, 4, 60000, 1, 100);
		mc_reuse_learn(&r, 0.5);
	}
	assert_true(r.rank[4][0] < before / 20);
	(void)state;
}

int main(void)
{
	const struct CMUnitTest tests[] = {
	    cmocka_unit_test(an_age_lies_in_its_bucket),
	    cmocka_unit_test(unknown_classes_rank_by_age),
	    cmocka_unit_test(a_class_that_comes_back_outranks_one_that_does_not),
	    cmocka_unit_test(an_object_before_its_time_outranks_one_after_it),
	    cmocka_unit_test(the_past_fades),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
