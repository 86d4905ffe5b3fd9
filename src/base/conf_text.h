/*
 * conf_text.h: configuration files of one level: JSON (an object of texts, numbers and booleans) or
 * the part of YAML that such a file needs: "key: value" lines, comments, quotes. Pure: text in,
 * keys and values out; what is more than that is refused with its line.
 */
#ifndef MC_BASE_CONF_TEXT_H
#define MC_BASE_CONF_TEXT_H

#include <stddef.h>

#include "base/err.h"

#define MC_CONF_TEXT_BYTES_MAX (64u << 10)
#define MC_CONF_TEXT_KEYS_MAX 256u
#define MC_CONF_TEXT_KEY_MAX 64u     /* with NUL */
#define MC_CONF_TEXT_VALUE_MAX 1024u /* with NUL */

/** A key and its value as text: "" for null and nothing, "true" and "false" for booleans.
 * @return 0, or < 0 with a diag, which ends the parsing */
typedef int (*mc_conf_take)(void *user, const char *key, const char *value, struct mc_diag *diag);

/**
 * @param text  JSON when it begins with '{'
 * @return 0; what `take` returned; -MC_E_PROTO (the diag names line and cause: not of one level, a
 * repeated key, bad quotes, a NUL); -MC_E_TOO_BIG (text, key, value, number of keys); -MC_E_NOMEM
 */
MC_MUST_CHECK int mc_conf_text_parse(const char *text, size_t len_bytes, mc_conf_take take,
				     void *user, struct mc_diag *diag);

#endif
