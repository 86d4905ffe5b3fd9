/*
 * sketch_test.c: how often keys were named.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "base/mem.h"
#include "meta/sketch.h"

static void never_less_than_it_was_and_rarely_more(void **state)
{
	struct mc_sketch *s = mc_calloc(1, sizeof(*s));
	unsigned wrong = 0;

	assert_non_null(s);
	for (uint64_t key = 1; key <= 1000; key++)
		for (uint64_t i = 0; i < key % 7; i++)
			(void)mc_sketch_add(s, key);
	for (uint64_t key = 1; key <= 1000; key++) {
		unsigned n = mc_sketch_add(s, key);

		assert_true(n >= key % 7 + 1);
		wrong += n != key % 7 + 1;
	}
	assert_true(wrong < 20);
	mc_free(s);
	(void)state;
}

static void it_stops_at_255(void **state)
{
	struct mc_sketch *s = mc_calloc(1, sizeof(*s));

	assert_non_null(s);
	for (unsigned i = 1; i < 1000; i++)
		assert_int_equal(mc_sketch_add(s, 42), mc_min(i, 255u));
	mc_free(s);
	(void)state;
}

static void the_past_fades(void **state)
{
	struct mc_sketch *s = mc_calloc(1, sizeof(*s));
	unsigned n;

	assert_non_null(s);
	for (unsigned i = 0; i < 200; i++)
		(void)mc_sketch_add(s, 7);
	for (unsigned i = 0; i < MC_SKETCH_AGE; i++)
		(void)mc_sketch_add(s, 8);
	n = mc_sketch_add(s, 7);
	assert_true(n > 95 && n < 110);
	mc_free(s);
	(void)state;
}

int main(void)
{
	const struct CMUnitTest tests[] = {
	    cmocka_unit_test(never_less_than_it_was_and_rarely_more),
	    cmocka_unit_test(it_stops_at_255),
	    cmocka_unit_test(the_past_fades),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
