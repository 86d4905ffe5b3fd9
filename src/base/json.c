/*
 * json.c: bounds around jansson.
 *
 * jansson recurses, so depth is counted first by a scan that knows only strings and brackets. For
 * text that is not JSON the scan's count may be too high, never too low, and jansson then judges
 * the rest.
 */
#include "base/json.h"

#include <string.h>

#include "base/mem.h"

#define JSON_DEPTH_CAP 64

/* Deepest nesting of brackets outside strings, stopping once it passes max. */
static unsigned int json_depth(const char *text, size_t len, unsigned int max)
{
	unsigned int depth = 0;
	unsigned int deepest = 0;
	bool in_string = false;

	for (size_t i = 0; i < len && deepest <= max; i++) {
		char c = text[i];

		if (in_string && c == '\\')
			i++;
		else if (c == '"')
			in_string = !in_string;
		else if (!in_string && (c == '[' || c == '{'))
			depth++;
		else if (!in_string && (c == ']' || c == '}') && depth)
			depth--;
		deepest = mc_max(deepest, depth);
	}
	return deepest;
}

int mc_json_parse(const char *text, size_t len_bytes, const struct mc_json_limits *limits,
		  json_t **ret_json, struct mc_diag *diag)
{
	unsigned int depth_max = limits->depth_max;
	json_error_t err;
	json_t *json;

	mc_assert(depth_max >= 1 && depth_max <= JSON_DEPTH_CAP);
	if (len_bytes > limits->bytes_max) {
		mc_diag_set(diag, "JSON of %zu bytes is larger than the limit of %zu", len_bytes,
			    limits->bytes_max);
		return -MC_E_TOO_BIG;
	}
	if (json_depth(text, len_bytes, depth_max) > depth_max) {
		mc_diag_set(diag, "JSON is nested deeper than %u", depth_max);
		return -MC_E_PROTO;
	}
	json = json_loadb(text, len_bytes, JSON_REJECT_DUPLICATES, &err);
	if (json) {
		*ret_json = json;
		return 0;
	}
	if (json_error_code(&err) == json_error_out_of_memory) {
		mc_diag_set(diag, "%s", mc_err_text(-MC_E_NOMEM));
		return -MC_E_NOMEM;
	}
	mc_diag_set(diag, "not JSON: %s (line %d, column %d)", err.text, err.line, err.column);
	return -MC_E_PROTO;
}

static const char *json_type_name(const json_t *json)
{
	static const char *const names[] = {
	    [JSON_OBJECT] = "an object",   [JSON_ARRAY] = "an array", [JSON_STRING] = "a string",
	    [JSON_INTEGER] = "an integer", [JSON_REAL] = "a real",    [JSON_TRUE] = "a boolean",
	    [JSON_FALSE] = "a boolean",	   [JSON_NULL] = "null",
	};

	return names[json_typeof(json)];
}

static int json_complain(const json_t *found, const char *key, const char *want,
			 struct mc_diag *diag)
{
	mc_diag_set(diag, "\"%s\" is %s, not %s", key, json_type_name(found), want);
	return -MC_E_PROTO;
}

static int json_member(const json_t *obj, const char *key, json_t **ret_found, struct mc_diag *diag)
{
	json_t *found;

	if (!json_is_object(obj)) {
		mc_diag_set(diag, "\"%s\" is missing: its place is %s, not an object", key,
			    obj ? json_type_name(obj) : "missing");
		return -MC_E_PROTO;
	}
	found = json_object_get(obj, key);
	if (!found) {
		mc_diag_set(diag, "\"%s\" is missing", key);
		return -MC_E_PROTO;
	}
	*ret_found = found;
	return 0;
}

int mc_json_get_str(const json_t *obj, const char *key, const char **ret_text, struct mc_diag *diag)
{
	json_t *found;
	int rc = json_member(obj, key, &found, diag);

	if (rc < 0)
		return rc;
	if (!json_is_string(found))
		return json_complain(found, key, "a string", diag);
	*ret_text = json_string_value(found);
	return 0;
}

int mc_json_get_i64(const json_t *obj, const char *key, int64_t *ret_value, struct mc_diag *diag)
{
	json_t *found;
	int rc = json_member(obj, key, &found, diag);

	if (rc < 0)
		return rc;
	if (!json_is_integer(found))
		return json_complain(found, key, "an integer", diag);
	*ret_value = json_integer_value(found);
	return 0;
}

int mc_json_get_u64(const json_t *obj, const char *key, uint64_t max, uint64_t *ret_value,
		    struct mc_diag *diag)
{
	int64_t value;
	int rc = mc_json_get_i64(obj, key, &value, diag);

	if (rc < 0)
		return rc;
	if (value < 0 || (uint64_t)value > max) {
		mc_diag_set(diag, "\"%s\" is %lld, not 0 to %llu", key, (long long)value,
			    (unsigned long long)max);
		return -MC_E_PROTO;
	}
	*ret_value = (uint64_t)value;
	return 0;
}

int mc_json_get_bool(const json_t *obj, const char *key, bool *ret_value, struct mc_diag *diag)
{
	json_t *found;
	int rc = json_member(obj, key, &found, diag);

	if (rc < 0)
		return rc;
	if (!json_is_boolean(found))
		return json_complain(found, key, "a boolean", diag);
	*ret_value = json_is_true(found);
	return 0;
}

int mc_json_get_double(const json_t *obj, const char *key, double *ret_value, struct mc_diag *diag)
{
	json_t *found;
	int rc = json_member(obj, key, &found, diag);

	if (rc < 0)
		return rc;
	if (!json_is_number(found))
		return json_complain(found, key, "a number", diag);
	*ret_value = json_number_value(found);
	return 0;
}

int mc_json_get_array(const json_t *obj, const char *key, size_t elems_max, json_t **ret_array,
		      struct mc_diag *diag)
{
	json_t *found;
	int rc = json_member(obj, key, &found, diag);

	if (rc < 0)
		return rc;
	if (!json_is_array(found))
		return json_complain(found, key, "an array", diag);
	if (json_array_size(found) > elems_max) {
		mc_diag_set(diag, "\"%s\" has %zu elements, more than the limit of %zu", key,
			    json_array_size(found), elems_max);
		return -MC_E_PROTO;
	}
	*ret_array = found;
	return 0;
}

int mc_json_get_object(const json_t *obj, const char *key, json_t **ret_object,
		       struct mc_diag *diag)
{
	json_t *found;
	int rc = json_member(obj, key, &found, diag);

	if (rc < 0)
		return rc;
	if (!json_is_object(found))
		return json_complain(found, key, "an object", diag);
	*ret_object = found;
	return 0;
}

bool mc_json_has(const json_t *obj, const char *key)
{
	json_t *found = json_object_get(obj, key);

	return found && !json_is_null(found);
}

static int json_dump_part(const char *data, size_t len, void *user)
{
	return mc_str_append(user, data, len);
}

int mc_json_dump(const json_t *json, struct mc_str *out)
{
	if (json_dump_callback(json, json_dump_part, out, JSON_COMPACT | JSON_ENCODE_ANY) == 0)
		return 0;
	return out->rc < 0 ? out->rc : -MC_E_NOMEM;
}
