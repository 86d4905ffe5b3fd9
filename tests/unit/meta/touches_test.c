/*
 * touches_test.c: keys are remembered up to the bound, the oldest of a set make room.
 */
#include "meta/touches.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#include <cmocka.h>

#include "base/hash.h"
#include "base/mem.h"

static uint64_t key(uint32_t i)
{
	return mc_hash64(&i, sizeof(i), 0);
}

static void a_key_is_found_again(void **state)
{
	struct mc_touches t;
	struct mc_touch *e;

	assert_int_equal(mc_touches_init(&t, 1000), 0);
	assert_int_equal(mc_touches_cap(&t), 1024);
	assert_null(mc_touches_find(&t, key(1)));
	e = mc_touches_get(&t, key(1));
	assert_int_equal(e->n, 0);
	e->n = 3;
	assert_ptr_equal(mc_touches_get(&t, key(1)), e);
	assert_int_equal(mc_touches_find(&t, key(1))->n, 3);
	assert_int_equal(t.n, 1);
	mc_touches_fini(&t);
	(void)state;
}

static void a_full_table_forgets_the_oldest(void **state)
{
	struct mc_touches t;
	unsigned known = 0;

	assert_int_equal(mc_touches_init(&t, 64), 0);
	for (uint32_t i = 0; i < 10000; i++)
		mc_touches_get(&t, key(i))->at_tick = UINT32_MAX - 5000 + i; /* wraps on the way */
	assert_int_equal(t.n, 64);
	for (uint32_t i = 0; i < 10000; i++) {
		bool is_known = mc_touches_find(&t, key(i)) != NULL;

		known += is_known;
		/* 8 sets of 8: the youngest 200 have pushed out all that is much older */
		if (i < 9000)
			assert_false(is_known);
	}
	assert_int_equal(known, 64);
	mc_touches_fini(&t);
	(void)state;
}

static void a_table_that_grows_forgets_little(void **state)
{
	struct mc_touches t;
	unsigned known = 0;

	assert_int_equal(mc_touches_init(&t, 64), 0);
	for (uint32_t i = 0; i < 20000; i++) {
		mc_touches_grow(&t, 2 * (size_t)i);
		mc_touches_get(&t, key(i))->at_tick = i;
	}
	for (uint32_t i = 0; i < 20000; i++)
		known += mc_touches_find(&t, key(i)) != NULL;
	assert_true(mc_touches_cap(&t) >= 39000 && mc_touches_cap(&t) <= 40008);
	if (known < 18000)
		print_message("%u\n", known);
	assert_true(known >= 18000); /* sets that wait for their split are fuller */
	mc_touches_fini(&t);
	(void)state;
}

static void without_memory_there_is_an_error(void **state)
{
	struct mc_touches t;

	mc_mem_fail_after(0);
	assert_int_equal(mc_touches_init(&t, 64), -MC_E_NOMEM);
	mc_mem_fail_after(-1);
	(void)state;
}

int main(void)
{
	const struct CMUnitTest tests[] = {
	    cmocka_unit_test(a_key_is_found_again),
	    cmocka_unit_test(a_full_table_forgets_the_oldest),
	    cmocka_unit_test(a_table_that_grows_forgets_little),
	    cmocka_unit_test(without_memory_there_is_an_error),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
