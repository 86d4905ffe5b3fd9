/*
 * fuzz_json.c: foreign JSON. What is accepted keeps its bounds, survives every getter, and its dump
 * parses again to an equal value.
 */
#include "base/json.h"

#include <stdint.h>

#include "base/mem.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len);

static void touch_member(const json_t *obj, const char *key)
{
	struct mc_diag diag;
	const char *text;
	json_t *sub;
	uint64_t u;
	int64_t i;
	double d;
	bool b;

	(void)!mc_json_get_str(obj, key, &text, &diag);
	(void)!mc_json_get_u64(obj, key, 1000, &u, &diag);
	(void)!mc_json_get_i64(obj, key, &i, &diag);
	(void)!mc_json_get_bool(obj, key, &b, &diag);
	(void)!mc_json_get_double(obj, key, &d, &diag);
	(void)!mc_json_get_object(obj, key, &sub, &diag);
	if (mc_json_get_array(obj, key, 8, &sub, &diag) == 0)
		mc_assert(json_array_size(sub) <= 8);
	(void)mc_json_has(obj, key);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len)
{
	const struct mc_json_limits limits = {.bytes_max = 1 << 16, .depth_max = 16};
	const struct mc_json_limits again_limits = {.bytes_max = 1 << 20, .depth_max = 16};
	json_t *json, *again;
	struct mc_diag diag;
	struct mc_str out;
	const char *key;
	json_t *val;

	if (mc_json_parse((const char *)data, len, &limits, &json, &diag) < 0)
		return 0;
	touch_member(json, "key");
	json_object_foreach(json, key, val) touch_member(json, key);
	mc_str_init(&out, 1 << 20);
	if (mc_json_dump(json, &out) == 0) {
		int rc = mc_json_parse(out.text, out.len, &again_limits, &again, &diag);

		mc_assert(rc == 0 && json_equal(json, again));
		json_decref(again);
	}
	mc_str_fini(&out);
	json_decref(json);
	return 0;
}
