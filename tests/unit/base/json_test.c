/*
 * json_test.c: bounds, typed members, dumping.
 */
#include "base/json.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "base/mem.h"

static const struct mc_json_limits limits = {.bytes_max = 1000, .depth_max = 4};

static json_t *parse(const char *text)
{
	struct mc_diag diag;
	json_t *json;

	assert_int_equal(mc_json_parse(text, strlen(text), &limits, &json, &diag), 0);
	return json;
}

static void json_refuses_what_is_not_json(void **state)
{
	const char *const bad[] = {"",
				   "{",
				   "1",
				   "{\"a\":1}x",
				   "{\"a\":1,\"a\":2}",
				   "[1,]",
				   "nul",
				   "\"x\"",
				   "[\"\xff\"]",
				   "{\"\\u0000\":1}",
				   "[1e999]",
				   "[99999999999999999999]",
				   "]"};
	struct mc_diag diag;
	json_t *json;

	for (size_t i = 0; i < MC_ARRAY_LEN(bad); i++) {
		diag.text[0] = '\0';
		assert_int_equal(mc_json_parse(bad[i], strlen(bad[i]), &limits, &json, &diag),
				 -MC_E_PROTO);
		assert_memory_equal(diag.text, "not JSON: ", 10);
	}
	(void)state;
}

static void json_refuses_what_is_large_or_deep(void **state)
{
	struct mc_diag diag;
	char large[1002];
	json_t *json;

	memset(large, ' ', sizeof(large));
	assert_int_equal(mc_json_parse(large, 1001, &limits, &json, &diag), -MC_E_TOO_BIG);
	assert_non_null(strstr(diag.text, "1001"));
	assert_int_equal(mc_json_parse("[[[[[]]]]]", 10, &limits, &json, &diag), -MC_E_PROTO);
	assert_string_equal(diag.text, "JSON is nested deeper than 4");
	json = parse("[[[[]]]]");
	json_decref(json);
	json = parse("[\"[[[[[[\", \"\\\"[[[[[[\", [], [], [], [], []]");
	json_decref(json);
	(void)state;
}

static void json_getters_give_typed_values(void **state)
{
	json_t *json =
	    parse("{\"s\":\"x\",\"u\":7,\"i\":-7,\"b\":true,\"d\":0.5,\"a\":[1,2],\"o\":{},"
		  "\"n\":null}");
	const char *text;
	json_t *sub;
	uint64_t u;
	int64_t i;
	double d;
	bool b;

	assert_int_equal(mc_json_get_str(json, "s", &text, NULL), 0);
	assert_string_equal(text, "x");
	assert_int_equal(mc_json_get_u64(json, "u", 7, &u, NULL), 0);
	assert_int_equal(u, 7);
	assert_int_equal(mc_json_get_i64(json, "i", &i, NULL), 0);
	assert_int_equal(i, -7);
	assert_int_equal(mc_json_get_bool(json, "b", &b, NULL), 0);
	assert_true(b);
	assert_int_equal(mc_json_get_double(json, "d", &d, NULL), 0);
	assert_true(d == 0.5);
	assert_int_equal(mc_json_get_double(json, "u", &d, NULL), 0);
	assert_int_equal(mc_json_get_array(json, "a", 2, &sub, NULL), 0);
	assert_int_equal(json_array_size(sub), 2);
	assert_int_equal(mc_json_get_object(json, "o", &sub, NULL), 0);
	assert_true(mc_json_has(json, "s"));
	assert_false(mc_json_has(json, "n"));
	assert_false(mc_json_has(json, "missing"));
	json_decref(json);
	(void)state;
}

static void json_getters_name_the_key_at_fault(void **state)
{
	json_t *json = parse("{\"s\":\"x\",\"i\":-7,\"a\":[1,2],\"d\":0.5}");
	struct mc_diag diag;
	const char *text;
	json_t *sub;
	uint64_t u;
	double d;
	bool b;

	assert_int_equal(mc_json_get_str(json, "port", &text, &diag), -MC_E_PROTO);
	assert_string_equal(diag.text, "\"port\" is missing");
	assert_int_equal(mc_json_get_u64(json, "s", 9, &u, &diag), -MC_E_PROTO);
	assert_string_equal(diag.text, "\"s\" is a string, not an integer");
	assert_int_equal(mc_json_get_u64(json, "i", 9, &u, &diag), -MC_E_PROTO);
	assert_string_equal(diag.text, "\"i\" is -7, not 0 to 9");
	assert_int_equal(mc_json_get_array(json, "a", 1, &sub, &diag), -MC_E_PROTO);
	assert_string_equal(diag.text, "\"a\" has 2 elements, more than the limit of 1");
	assert_int_equal(mc_json_get_str(json, "a", &text, &diag), -MC_E_PROTO);
	assert_int_equal(mc_json_get_array(json, "s", 9, &sub, &diag), -MC_E_PROTO);
	assert_int_equal(mc_json_get_object(json, "a", &sub, &diag), -MC_E_PROTO);
	assert_int_equal(mc_json_get_bool(json, "d", &b, &diag), -MC_E_PROTO);
	assert_string_equal(diag.text, "\"d\" is a real, not a boolean");
	assert_int_equal(mc_json_get_double(json, "s", &d, &diag), -MC_E_PROTO);
	assert_int_equal(mc_json_get_str(NULL, "x", &text, &diag), -MC_E_PROTO);
	assert_int_equal(mc_json_get_str(json_object_get(json, "a"), "x", &text, &diag),
			 -MC_E_PROTO);
	assert_string_equal(diag.text, "\"x\" is missing: its place is an array, not an object");
	json_decref(json);
	(void)state;
}

static void json_dump_gives_compact_text_within_its_limit(void **state)
{
	json_t *json = parse("{ \"b\" : 1, \"a\" : [ true, \"\\u00e4\" ] }");
	struct mc_str out;

	mc_str_init(&out, 100);
	assert_int_equal(mc_json_dump(json, &out), 0);
	assert_string_equal(out.text, "{\"b\":1,\"a\":[true,\"\u00e4\"]}");
	mc_str_fini(&out);
	mc_str_init(&out, 5);
	assert_int_equal(mc_json_dump(json, &out), -MC_E_TOO_BIG);
	mc_str_fini(&out);
	mc_str_init(&out, 100);
	mc_mem_fail_after(0);
	assert_int_equal(mc_json_dump(json, &out), -MC_E_NOMEM);
	mc_mem_fail_after(-1);
	mc_str_fini(&out);
	json_decref(json);
	(void)state;
}

int main(void)
{
	const struct CMUnitTest tests[] = {
	    cmocka_unit_test(json_refuses_what_is_not_json),
	    cmocka_unit_test(json_refuses_what_is_large_or_deep),
	    cmocka_unit_test(json_getters_give_typed_values),
	    cmocka_unit_test(json_getters_name_the_key_at_fault),
	    cmocka_unit_test(json_dump_gives_compact_text_within_its_limit),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
