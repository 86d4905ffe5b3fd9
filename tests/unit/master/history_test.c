/*
 * history_test.c: the ring of samples: an hour and no more, and latencies of each interval alone.
 */
#include "master/history.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "base/json.h"

#define TEXT_MAX (4u << 20)

static struct mc_hist lookup, commit;

static json_t *told(const struct mc_history *h, uint64_t after_ms)
{
	static const struct mc_json_limits limits = {TEXT_MAX, 8};
	struct mc_str out;
	json_t *json;

	mc_str_init(&out, TEXT_MAX);
	mc_history_json(h, after_ms, &out);
	assert_int_equal(out.rc, 0);
	assert_int_equal(mc_json_parse(out.text, out.len, &limits, &json, NULL), 0);
	mc_str_fini(&out);
	return json;
}

static json_int_t at(json_t *json, size_t row, const char *column)
{
	const json_t *names = json_object_get(json, "columns");
	const json_t *one = json_array_get(json_object_get(json, "samples"), row);
	size_t i = 0;

	assert_int_equal(json_array_size(names), json_array_size(one));
	while (strcmp(json_string_value(json_array_get(names, i)), column) != 0)
		i++;
	return json_integer_value(json_array_get(one, i));
}

static void an_hour_is_kept_and_the_oldest_go(void **state)
{
	struct mc_history *h;
	json_t *json;

	assert_int_equal(mc_history_open(&h), 0);
	for (uint64_t i = 1; i <= MC_HISTORY_SAMPLES + 3; i++) {
		struct mc_history_sample s = {.at_ms = i, .keys = 10 * i};

		mc_history_add(h, &s, &lookup, &commit);
	}
	json = told(h, 0);
	assert_int_equal(json_array_size(json_object_get(json, "samples")), MC_HISTORY_SAMPLES);
	assert_int_equal(at(json, 0, "at_ms"), 4);
	assert_int_equal(at(json, MC_HISTORY_SAMPLES - 1, "keys"), 10 * (MC_HISTORY_SAMPLES + 3));
	json_decref(json);
	json = told(h, MC_HISTORY_SAMPLES + 1);
	assert_int_equal(json_array_size(json_object_get(json, "samples")), 2);
	assert_int_equal(at(json, 0, "at_ms"), MC_HISTORY_SAMPLES + 2);
	json_decref(json);
	mc_history_close(h);
	(void)state;
}

static void latencies_are_those_of_the_interval(void **state)
{
	struct mc_history *h;
	json_t *json;

	assert_int_equal(mc_history_open(&h), 0);
	for (uint64_t i = 1; i <= 3; i++) {
		struct mc_history_sample s = {.at_ms = i};

		for (unsigned n = 0; i < 3 && n < 100; n++) {
			mc_hist_add(&lookup, i * 1024);
			mc_hist_add(&commit, n == 99 ? 65536 : 512);
		}
		mc_history_add(h, &s, &lookup, &commit);
	}
	json = told(h, 0);
	assert_int_equal(at(json, 0, "lookup_p50_ns"), 1024);
	assert_int_equal(at(json, 1, "lookup_p50_ns"), 2048);
	assert_int_equal(at(json, 1, "commit_p50_ns"), 512);
	assert_int_equal(at(json, 1, "commit_p99_ns"), 512);
	assert_int_equal(at(json, 2, "lookup_p99_ns"), 0); /* nothing happened */
	json_decref(json);
	mc_history_close(h);
	(void)state;
}

int main(void)
{
	const struct CMUnitTest tests[] = {
	    cmocka_unit_test(an_hour_is_kept_and_the_oldest_go),
	    cmocka_unit_test(latencies_are_those_of_the_interval),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
