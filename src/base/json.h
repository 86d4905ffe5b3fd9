/*
 * json.h: JSON from strangers, with bounds. The only way to jansson, which builds and walks the
 * values.
 *
 * Parsing checks size and depth before jansson sees a byte, and refuses repeated keys. Getters say
 * in the diag which key is missing or of the wrong type; a caller adds where with mc_diag_wrap().
 * References are jansson's: getters borrow.
 */
#ifndef MC_BASE_JSON_H
#define MC_BASE_JSON_H

#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/err.h"
#include "base/str.h"

struct mc_json_limits {
	size_t bytes_max;
	unsigned int depth_max; /* nested arrays and objects; at most 64 */
};

/**
 * Parse an object or array; the whole text must be used.
 * @param ret_json  receives a new reference; end with json_decref()
 * @return 0; -MC_E_TOO_BIG; -MC_E_PROTO for text that is not JSON, too deep or with a repeated key;
 * -MC_E_NOMEM. The diag says what and where.
 */
MC_MUST_CHECK int mc_json_parse(const char *text, size_t len_bytes,
				const struct mc_json_limits *limits, json_t **ret_json,
				struct mc_diag *diag);

/* Typed members of an object: 0; -MC_E_PROTO when `obj` is no object, the key is missing or of
 * another type. */
MC_MUST_CHECK int mc_json_get_str(const json_t *obj, const char *key, const char **ret_text,
				  struct mc_diag *diag);
/** Integer in [0, max]; jansson holds integers up to 2^63 - 1. */
MC_MUST_CHECK int mc_json_get_u64(const json_t *obj, const char *key, uint64_t max,
				  uint64_t *ret_value, struct mc_diag *diag);
MC_MUST_CHECK int mc_json_get_i64(const json_t *obj, const char *key, int64_t *ret_value,
				  struct mc_diag *diag);
MC_MUST_CHECK int mc_json_get_bool(const json_t *obj, const char *key, bool *ret_value,
				   struct mc_diag *diag);
/** Integer or real. */
MC_MUST_CHECK int mc_json_get_double(const json_t *obj, const char *key, double *ret_value,
				     struct mc_diag *diag);
/** An array of at most elems_max. */
MC_MUST_CHECK int mc_json_get_array(const json_t *obj, const char *key, size_t elems_max,
				    json_t **ret_array, struct mc_diag *diag);
MC_MUST_CHECK int mc_json_get_object(const json_t *obj, const char *key, json_t **ret_object,
				     struct mc_diag *diag);
/** True when the key is there and not null: for optional members, before a getter. */
bool mc_json_has(const json_t *obj, const char *key);

/** Append the value as compact text, keys in the order they were set. @return 0; -MC_E_TOO_BIG;
 * -MC_E_NOMEM */
MC_MUST_CHECK int mc_json_dump(const json_t *json, struct mc_str *out);

#endif
