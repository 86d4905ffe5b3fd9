/*
 * mem_test.c: counting, failing and growing.
 */
#include "base/mem.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "base/err.h"

static void mem_counts_calls_and_live_blocks(void **state)
{
	uint64_t calls = mc_mem_calls();
	int64_t live = mc_mem_live();
	char *p = mc_calloc(3, 5);

	assert_non_null(p);
	for (size_t i = 0; i < 15; i++)
		assert_int_equal(p[i], 0);
	p = mc_realloc_array(p, 100, 1);
	assert_non_null(p);
	assert_int_equal(mc_mem_calls() - calls, 2);
	assert_int_equal(mc_mem_live() - live, 1);
	mc_free(p);
	mc_free(NULL);
	assert_int_equal(mc_mem_live(), live);
	(void)state;
}

static void mem_refuses_a_product_that_overflows(void **state)
{
	assert_null(mc_calloc(SIZE_MAX / 2, 3));
	assert_null(mc_realloc_array(NULL, SIZE_MAX, 2));
	(void)state;
}

static void mem_of_no_bytes_is_a_block(void **state)
{
	void *a = mc_calloc(0, 8);
	void *b = mc_realloc_array(NULL, 0, 8);
	void *c = mc_aligned_alloc(64, 0);

	assert_non_null(a);
	assert_non_null(b);
	assert_non_null(c);
	mc_free(a);
	mc_free(b);
	mc_free(c);
	(void)state;
}

static void mem_aligned_is_aligned_and_zeroed(void **state)
{
	uint8_t *p = mc_aligned_alloc(4096, 100);

	assert_non_null(p);
	assert_int_equal((uintptr_t)p % 4096, 0);
	for (size_t i = 0; i < 100; i++)
		assert_int_equal(p[i], 0);
	mc_free(p);
	(void)state;
}

static void mem_fails_from_the_nth_call_on(void **state)
{
	void *a, *b;

	mc_mem_fail_after(1);
	a = mc_calloc(1, 1);
	b = mc_calloc(1, 1);
	assert_non_null(a);
	assert_null(b);
	assert_null(mc_strdup("x"));
	assert_null(mc_asprintf("x"));
	assert_null(mc_aligned_alloc(64, 1));
	assert_null(mc_realloc_array(NULL, 1, 1));
	mc_mem_fail_after(-1);
	b = mc_calloc(1, 1);
	assert_non_null(b);
	mc_free(a);
	mc_free(b);
	(void)state;
}

static void mem_failed_realloc_leaves_the_block(void **state)
{
	char *p = mc_strdup("kept");

	assert_non_null(p);
	mc_mem_fail_after(0);
	assert_null(mc_realloc_array(p, 1000, 1));
	mc_mem_fail_after(-1);
	assert_string_equal(p, "kept");
	mc_free(p);
	(void)state;
}

static void mem_formats_any_length(void **state)
{
	char *p = mc_asprintf("%0500d", 7);

	assert_non_null(p);
	assert_int_equal(strlen(p), 500);
	mc_free(p);
	(void)state;
}

static void array_doubles_up_to_its_limit(void **state)
{
	void *array = NULL;
	size_t cap = 0;

	assert_int_equal(mc_array_grow(&array, &cap, 1, 20, 4), 0);
	assert_int_equal(cap, 8);
	assert_int_equal(mc_array_grow(&array, &cap, 9, 20, 4), 0);
	assert_int_equal(cap, 16);
	assert_int_equal(mc_array_grow(&array, &cap, 17, 20, 4), 0);
	assert_int_equal(cap, 20);
	assert_int_equal(mc_array_grow(&array, &cap, 20, 20, 4), 0);
	assert_int_equal(mc_array_grow(&array, &cap, 21, 20, 4), -MC_E_TOO_BIG);
	mc_free(array);
	array = NULL;
	cap = 0;
	assert_int_equal(mc_array_grow(&array, &cap, 2, 3, 4), 0);
	assert_int_equal(cap, 3);
	mc_free(array);
	(void)state;
}

static void array_is_untouched_without_memory(void **state)
{
	void *array = NULL;
	size_t cap = 0;

	mc_mem_fail_after(0);
	assert_int_equal(mc_array_grow(&array, &cap, 1, 20, 4), -MC_E_NOMEM);
	mc_mem_fail_after(-1);
	assert_null(array);
	assert_int_equal(cap, 0);
	assert_int_equal(mc_array_grow(&array, &cap, SIZE_MAX / 2, SIZE_MAX, 4), -MC_E_NOMEM);
	(void)state;
}

int main(void)
{
	const struct CMUnitTest tests[] = {
	    cmocka_unit_test(mem_counts_calls_and_live_blocks),
	    cmocka_unit_test(mem_refuses_a_product_that_overflows),
	    cmocka_unit_test(mem_of_no_bytes_is_a_block),
	    cmocka_unit_test(mem_aligned_is_aligned_and_zeroed),
	    cmocka_unit_test(mem_fails_from_the_nth_call_on),
	    cmocka_unit_test(mem_failed_realloc_leaves_the_block),
	    cmocka_unit_test(mem_formats_any_length),
	    cmocka_unit_test(array_doubles_up_to_its_limit),
	    cmocka_unit_test(array_is_untouched_without_memory),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
