/*
 * str_test.c: growing texts, copies, splitting.
 */
#include "base/str.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

#include "base/mem.h"

static void str_grows_by_appends(void **state)
{
	struct mc_str str;

	mc_str_init(&str, 1000);
	assert_string_equal(mc_str_text(&str), "");
	assert_int_equal(mc_str_append(&str, "", 0), 0);
	assert_int_equal(mc_str_puts(&str, "a"), 0);
	assert_int_equal(mc_str_appendf(&str, "%s-%d", "b", 7), 0);
	assert_int_equal(mc_str_append(&str, "\0x", 2), 0);
	assert_int_equal(str.len, 6);
	assert_memory_equal(str.text, "ab-7\0x", 7);
	mc_str_reset(&str);
	assert_int_equal(str.len, 0);
	assert_string_equal(mc_str_text(&str), "");
	mc_str_fini(&str);
	(void)state;
}

static void str_error_sticks_and_changes_nothing(void **state)
{
	struct mc_str str;

	mc_str_init(&str, 5);
	assert_int_equal(mc_str_puts(&str, "12345"), 0);
	assert_int_equal(mc_str_puts(&str, "6"), -MC_E_TOO_BIG);
	assert_int_equal(mc_str_append(&str, "", 0), -MC_E_TOO_BIG);
	assert_int_equal(mc_str_appendf(&str, "x"), -MC_E_TOO_BIG);
	assert_string_equal(str.text, "12345");
	assert_null(mc_str_take(&str));
	assert_int_equal(str.rc, 0);
	assert_int_equal(mc_str_appendf(&str, "%05d", 1), 0);
	assert_int_equal(mc_str_appendf(&str, "%d", 1), -MC_E_TOO_BIG);
	mc_str_fini(&str);
	(void)state;
}

static void str_of_limit_zero_is_the_empty_text(void **state)
{
	struct mc_str str;
	char *text;

	mc_str_init(&str, 0);
	assert_int_equal(mc_str_puts(&str, ""), 0);
	text = mc_str_take(&str);
	assert_string_equal(text, "");
	mc_free(text);
	assert_int_equal(mc_str_puts(&str, "x"), -MC_E_TOO_BIG);
	mc_str_fini(&str);
	(void)state;
}

static void str_take_hands_the_text_over(void **state)
{
	struct mc_str str;
	char *text;

	mc_str_init(&str, 100);
	mc_str_puts(&str, "mine");
	text = mc_str_take(&str);
	assert_string_equal(text, "mine");
	mc_free(text);
	assert_int_equal(str.len, 0);
	text = mc_str_take(&str);
	assert_string_equal(text, "");
	mc_free(text);
	(void)state;
}

static void str_survives_every_failing_allocation(void **state)
{
	int64_t live = mc_mem_live();
	int rc = -1;

	for (int64_t n = 0; rc < 0; n++) {
		struct mc_str str;

		mc_str_init(&str, 1000);
		mc_mem_fail_after(n);
		for (int i = 0; i < 50; i++)
			mc_str_appendf(&str, "%d,", i);
		mc_mem_fail_after(-1);
		rc = str.rc;
		assert_true(rc == 0 || rc == -MC_E_NOMEM);
		mc_str_fini(&str);
		assert_int_equal(mc_mem_live(), live);
	}
	(void)state;
}

static void strlcpy_cuts_and_says_so(void **state)
{
	char buf[4];

	assert_int_equal(mc_strlcpy(buf, sizeof(buf), "abc"), 0);
	assert_string_equal(buf, "abc");
	assert_int_equal(mc_strlcpy(buf, sizeof(buf), "xyzw"), -MC_E_TOO_BIG);
	assert_string_equal(buf, "xyz");
	assert_int_equal(mc_strlcpy(buf, 1, "q"), -MC_E_TOO_BIG);
	assert_string_equal(buf, "");
	(void)state;
}

static void split_gives_empty_parts_too(void **state)
{
	struct mc_view parts[3];

	assert_int_equal(mc_str_split("a,,bc", ',', parts, 3), 3);
	assert_true(mc_view_is(parts[0], "a"));
	assert_true(mc_view_is(parts[1], ""));
	assert_true(mc_view_is(parts[2], "bc"));
	assert_false(mc_view_is(parts[2], "b"));
	assert_int_equal(mc_str_split("", ',', parts, 3), 1);
	assert_true(mc_view_is(parts[0], ""));
	assert_int_equal(mc_str_split("a,b,", ',', parts, 2), -MC_E_TOO_BIG);
	(void)state;
}

static void view_trims_and_copies(void **state)
{
	struct mc_view v = {.at = " \tab ", .len = 5};
	char buf[3];

	v = mc_view_trim(v);
	assert_true(mc_view_is(v, "ab"));
	assert_int_equal(mc_view_copy(v, buf, sizeof(buf)), 0);
	assert_string_equal(buf, "ab");
	assert_int_equal(mc_view_copy(v, buf, 2), -MC_E_TOO_BIG);
	assert_string_equal(buf, "");
	v = mc_view_trim((struct mc_view){.at = "   ", .len = 3});
	assert_int_equal(v.len, 0);
	(void)state;
}

static void names_are_compared_by_number(void **state)
{
	assert_true(mc_name_cmp("mlx5_2", "mlx5_10") < 0);
	assert_true(mc_name_cmp("mlx5_10", "mlx5_9") > 0);
	assert_int_equal(mc_name_cmp("a1b", "a1b"), 0);
	assert_true(mc_name_cmp("a", "ab") < 0);
	(void)state;
}

int main(void)
{
	const struct CMUnitTest tests[] = {
	    cmocka_unit_test(str_grows_by_appends),
	    cmocka_unit_test(str_error_sticks_and_changes_nothing),
	    cmocka_unit_test(str_of_limit_zero_is_the_empty_text),
	    cmocka_unit_test(str_take_hands_the_text_over),
	    cmocka_unit_test(str_survives_every_failing_allocation),
	    cmocka_unit_test(strlcpy_cuts_and_says_so),
	    cmocka_unit_test(split_gives_empty_parts_too),
	    cmocka_unit_test(view_trims_and_copies),
	    cmocka_unit_test(names_are_compared_by_number),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
