/*
 * opt_test.c: parsing, ranges, environment, documentation.
 */
#include "base/opt.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/log.h"
#include "base/mem.h"

struct conf {
	int64_t lanes;
	uint64_t slice;
	bool force;
	double ratio;
	char name[8];
	int store;
};

static const char *const stores[] = {"SIEVE", "FIFO", NULL};

static const struct mc_opt table[] = {
    MC_OPT_INT(struct conf, lanes, "MC_T_LANES", "4", 1, 16, "connections to one peer"),
    MC_OPT_SIZE(struct conf, slice, "MC_T_SLICE", "64kb", 4096, 1 << 30, "bytes of a slice"),
    MC_OPT_BOOL(struct conf, force, "MC_T_FORCE", "0", "TCP only"),
    MC_OPT_DOUBLE(struct conf, ratio, "MC_T_RATIO", "0.5", 0.0, 1.0, "share"),
    MC_OPT_STR(struct conf, name, "MC_T_NAME", "", "a name"),
    MC_OPT_ENUM(struct conf, store, "MC_T_STORE", "sieve", stores, "replacement"),
};

static void opt_parses_sizes(void **state)
{
	static const struct {
		const char *text;
		uint64_t bytes;
	} good[] = {
	    {"0", 0},
	    {"17", 17},
	    {"512MB", 512ull << 20},
	    {"4gb", 4ull << 30},
	    {"64kb", 64 << 10},
	    {"1 KiB", 1024},
	    {"3b", 3},
	    {"2T", 2ull << 40},
	    {"1tib", 1ull << 40},
	    {"18446744073709551615", UINT64_MAX},
	    {"16777215t", 16777215ull << 40},
	};
	const char *const bad[] = {
	    "",	     " 1",  "kb", "-1",	   "1.5gb", "1kbb",	 "0x10",
	    "1 k b", "1e3", "1q", "1 kb ", "+1",    "16777216t", "18446744073709551616"};
	uint64_t v;

	for (size_t i = 0; i < MC_ARRAY_LEN(good); i++) {
		assert_int_equal(mc_opt_parse_size(good[i].text, &v), 0);
		assert_true(v == good[i].bytes);
	}
	for (size_t i = 0; i < MC_ARRAY_LEN(bad); i++)
		assert_int_equal(mc_opt_parse_size(bad[i], &v), -MC_E_INVAL);
	(void)state;
}

static void opt_parses_whole_numbers_strictly(void **state)
{
	uint64_t u;
	int64_t i;

	assert_int_equal(mc_opt_parse_u64("18446744073709551615", &u), 0);
	assert_true(u == UINT64_MAX);
	assert_int_equal(mc_opt_parse_u64("18446744073709551616", &u), -MC_E_INVAL);
	assert_int_equal(mc_opt_parse_u64("", &u), -MC_E_INVAL);
	assert_int_equal(mc_opt_parse_u64("1 ", &u), -MC_E_INVAL);
	assert_int_equal(mc_opt_parse_u64("-1", &u), -MC_E_INVAL);
	assert_int_equal(mc_opt_parse_i64("-9223372036854775808", &i), 0);
	assert_true(i == INT64_MIN);
	assert_int_equal(mc_opt_parse_i64("9223372036854775808", &i), -MC_E_INVAL);
	assert_int_equal(mc_opt_parse_i64("-9223372036854775809", &i), -MC_E_INVAL);
	assert_int_equal(mc_opt_parse_i64("--1", &i), -MC_E_INVAL);
	assert_int_equal(mc_opt_parse_i64("-", &i), -MC_E_INVAL);
	(void)state;
}

static void opt_parses_booleans(void **state)
{
	bool v = false;

	assert_int_equal(mc_opt_parse_bool("YES", &v), 0);
	assert_true(v);
	assert_int_equal(mc_opt_parse_bool("off", &v), 0);
	assert_false(v);
	assert_int_equal(mc_opt_parse_bool("2", &v), -MC_E_INVAL);
	assert_int_equal(mc_opt_parse_bool("", &v), -MC_E_INVAL);
	(void)state;
}

static void opt_defaults_fill_every_field(void **state)
{
	struct conf c;

	memset(&c, 0xee, sizeof(c));
	mc_opt_defaults(table, MC_ARRAY_LEN(table), &c);
	assert_int_equal(c.lanes, 4);
	assert_int_equal(c.slice, 65536);
	assert_false(c.force);
	assert_true(c.ratio == 0.5);
	assert_string_equal(c.name, "");
	assert_int_equal(c.store, 0);
	(void)state;
}

static void opt_complaint_names_variable_value_and_range(void **state)
{
	struct conf c = {.lanes = 3};
	struct mc_diag diag;

	assert_int_equal(mc_opt_set(&table[0], &c, "17", &diag), -MC_E_INVAL);
	assert_string_equal(diag.text, "MC_T_LANES=\"17\" is not accepted: use 1 to 16");
	assert_int_equal(c.lanes, 3);
	assert_int_equal(mc_opt_set(&table[5], &c, "LRU", &diag), -MC_E_INVAL);
	assert_string_equal(diag.text, "MC_T_STORE=\"LRU\" is not accepted: use SIEVE, FIFO");
	assert_int_equal(mc_opt_set(&table[4], &c, "12345678", &diag), -MC_E_INVAL);
	assert_non_null(strstr(diag.text, "0 to 7 bytes"));
	(void)state;
}

static void opt_set_keeps_ranges(void **state)
{
	const char *const bad_ratio[] = {"nan", "inf",	"1.01", "-0.1", "0x1",
					 "",	" 0.5", "0.5x", "1e999"};
	struct conf c;

	assert_int_equal(mc_opt_set(&table[4], &c, "1234567", NULL), 0);
	assert_string_equal(c.name, "1234567");
	assert_int_equal(mc_opt_set(&table[5], &c, "fifo", NULL), 0);
	assert_int_equal(c.store, 1);
	assert_int_equal(mc_opt_set(&table[3], &c, "2.5e-1", NULL), 0);
	assert_true(c.ratio == 0.25);
	for (size_t i = 0; i < MC_ARRAY_LEN(bad_ratio); i++)
		assert_int_equal(mc_opt_set(&table[3], &c, bad_ratio[i], NULL), -MC_E_INVAL);
	assert_int_equal(mc_opt_set(&table[1], &c, "4095", NULL), -MC_E_INVAL);
	assert_int_equal(mc_opt_set(&table[1], &c, "1gb", NULL), 0);
	assert_int_equal(mc_opt_set(&table[1], &c, "18446744073709551615", NULL), -MC_E_INVAL);
	assert_ptr_equal(mc_opt_find(table, MC_ARRAY_LEN(table), "MC_T_RATIO"), &table[3]);
	assert_null(mc_opt_find(table, MC_ARRAY_LEN(table), "MC_T_RATI"));
	(void)state;
}

static void count_line(void *user, enum mc_log_level level, const char *line)
{
	*(int *)user += level == MC_LOG_WARN && strstr(line, "MC_T_");
}

static void opt_environment_overrides_and_wrong_values_keep_defaults(void **state)
{
	struct mc_diag diag;
	struct conf c;
	int lines = 0;

	assert_int_equal(setenv("MC_T_LANES", "many", 1), 0);
	assert_int_equal(setenv("MC_T_SLICE", "128kb", 1), 0);
	assert_int_equal(setenv("MC_T_FORCE", "", 1), 0);
	assert_int_equal(setenv("MC_T_RATIO", "7", 1), 0);
	mc_log_sink_set(count_line, &lines);
	assert_int_equal(mc_opt_load_env(table, MC_ARRAY_LEN(table), &c, &diag), 2);
	mc_log_sink_set(NULL, NULL);
	assert_int_equal(lines, 2);
	assert_non_null(strstr(diag.text, "MC_T_LANES=\"many\""));
	assert_int_equal(c.lanes, 4);
	assert_int_equal(c.slice, 128 << 10);
	assert_true(c.ratio == 0.5);
	(void)state;
}

static void opt_dump_is_a_table(void **state)
{
	struct mc_str out;

	mc_str_init(&out, 4096);
	assert_int_equal(mc_opt_dump(table, MC_ARRAY_LEN(table), &out), 0);
	assert_non_null(
	    strstr(out.text, "| `MC_T_LANES` | 4 | 1 to 16 | connections to one peer |\n"));
	assert_non_null(strstr(out.text, "| `MC_T_NAME` | (empty) |"));
	mc_str_fini(&out);
	(void)state;
}

static void opt_complains_even_without_memory(void **state)
{
	struct mc_diag diag;
	struct conf c;

	mc_mem_fail_after(0);
	assert_int_equal(mc_opt_set(&table[0], &c, "17", &diag), -MC_E_INVAL);
	mc_mem_fail_after(-1);
	assert_non_null(strstr(diag.text, "MC_T_LANES=\"17\""));
	(void)state;
}

int main(void)
{
	const struct CMUnitTest tests[] = {
	    cmocka_unit_test(opt_parses_sizes),
	    cmocka_unit_test(opt_parses_whole_numbers_strictly),
	    cmocka_unit_test(opt_parses_booleans),
	    cmocka_unit_test(opt_defaults_fill_every_field),
	    cmocka_unit_test(opt_complaint_names_variable_value_and_range),
	    cmocka_unit_test(opt_set_keeps_ranges),
	    cmocka_unit_test(opt_environment_overrides_and_wrong_values_keep_defaults),
	    cmocka_unit_test(opt_dump_is_a_table),
	    cmocka_unit_test(opt_complains_even_without_memory),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
