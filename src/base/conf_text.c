/*
 * conf_text.c: "key: value" lines, and JSON objects of scalars; see conf_text.h.
 */
#include "base/conf_text.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "base/json.h"
#include "base/mem.h"
#include "base/str.h"

/* ---- JSON ---- */

static int scalar_text(const json_t *v, char *to, struct mc_diag *diag, const char *key)
{
	int n = 0;

	if (json_is_string(v)) {
		if (strlen(json_string_value(v)) != json_string_length(v)) {
			mc_diag_set(diag, "key '%s': a NUL in its value", key);
			return -MC_E_PROTO;
		}
		n = snprintf(to, MC_CONF_TEXT_VALUE_MAX, "%s", json_string_value(v));
	} else if (json_is_boolean(v)) {
		n = snprintf(to, MC_CONF_TEXT_VALUE_MAX, "%s", json_is_true(v) ? "true" : "false");
	} else if (json_is_integer(v)) {
		n = snprintf(to, MC_CONF_TEXT_VALUE_MAX, "%" JSON_INTEGER_FORMAT,
			     json_integer_value(v));
	} else if (json_is_real(v)) {
		n = snprintf(to, MC_CONF_TEXT_VALUE_MAX, "%.17g", json_real_value(v));
	} else if (json_is_null(v)) {
		to[0] = '\0';
	} else {
		mc_diag_set(diag, "key '%s': a text, number or boolean is expected", key);
		return -MC_E_PROTO;
	}
	if (n >= (int)MC_CONF_TEXT_VALUE_MAX) {
		mc_diag_set(diag, "key '%s': its value is longer than %u bytes", key,
			    MC_CONF_TEXT_VALUE_MAX - 1);
		return -MC_E_TOO_BIG;
	}
	return 0;
}

static int json_take(const char *text, size_t len, mc_conf_take take, void *user,
		     struct mc_diag *diag)
{
	static const struct mc_json_limits limits = {MC_CONF_TEXT_BYTES_MAX, 4};
	char value[MC_CONF_TEXT_VALUE_MAX];
	const char *key;
	json_t *json, *v;
	int rc = mc_json_parse(text, len, &limits, &json, diag);

	if (rc < 0)
		return rc;
	if (json_object_size(json) > MC_CONF_TEXT_KEYS_MAX) {
		mc_diag_set(diag, "more than %u keys", MC_CONF_TEXT_KEYS_MAX);
		rc = -MC_E_TOO_BIG;
	}
	json_object_foreach(json, key, v)
	{
		if (rc == 0 && strlen(key) >= MC_CONF_TEXT_KEY_MAX) {
			mc_diag_set(diag, "key '%.20s...' is too long", key);
			rc = -MC_E_TOO_BIG;
		}
		if (rc == 0)
			rc = scalar_text(v, value, diag, key);
		if (rc == 0)
			rc = take(user, key, value, diag);
	}
	json_decref(json);
	return rc;
}

/* ---- YAML of one level ---- */

struct lines {
	struct mc_view keys[MC_CONF_TEXT_KEYS_MAX]; /* so far */
	unsigned nkeys;
	unsigned line;
	struct mc_diag *diag;
};

static int refuse(const struct lines *l, int rc, const char *what)
{
	mc_diag_set(l->diag, "line %u: %s", l->line, what);
	return rc;
}

/* What follows a value: blanks, maybe a comment behind a blank. */
static bool is_end(struct mc_view rest, bool has_blank)
{
	struct mc_view t = mc_view_trim(rest);

	return t.len == 0 || (t.at[0] == '#' && (has_blank || t.at > rest.at));
}

/* The character behind a backslash; 0: none of ours. */
static char escaped(char c)
{
	static const char from[] = "\"\\/nt", into[] = "\"\\/\n\t";
	const char *at = c ? strchr(from, c) : NULL;

	return at ? into[at - from] : '\0';
}

/* 'it''s', "a \"b\"\n". @return bytes used of `v`; < 0 */
static int quoted(const struct lines *l, struct mc_view v, char *to)
{
	char quote = v.at[0];
	size_t n = 0;

	for (size_t i = 1; i < v.len; i++) {
		char c = v.at[i];
		bool is_more = i + 1 < v.len;

		if (c == quote && !(quote == '\'' && is_more && v.at[i + 1] == quote)) {
			to[n] = '\0';
			return (int)i + 1;
		}
		if (c == quote) {
			i++; /* two are one */
		} else if (quote == '"' && c == '\\') {
			c = is_more ? escaped(v.at[++i]) : '\0';
			if (!c)
				return refuse(l, -MC_E_PROTO,
					      "only \\\" \\\\ \\/ \\n \\t in quotes");
		}
		if (n + 1 >= MC_CONF_TEXT_VALUE_MAX)
			return refuse(l, -MC_E_TOO_BIG, "the value is too long");
		to[n++] = c;
	}
	return refuse(l, -MC_E_PROTO, "the quote does not end");
}

/* The value behind "key:", blanks before it gone. */
static int value_take(const struct lines *l, struct mc_view v, char *to)
{
	size_t len = 0;
	int used;

	to[0] = '\0';
	if (is_end(v, true))
		return 0;
	if (v.at[0] == '"' || v.at[0] == '\'') {
		used = quoted(l, v, to);
		if (used < 0)
			return used;
		v = (struct mc_view){v.at + used, v.len - (size_t)used};
		return is_end(v, false) ? 0 : refuse(l, -MC_E_PROTO, "text behind the quotes");
	}
	if (strchr("[]{}&*!|>%@`,?", v.at[0]) || (v.at[0] == '-' && (v.len == 1 || v.at[1] == ' ')))
		return refuse(l, -MC_E_PROTO, "only a text, a number or a boolean behind a key");
	while (len < v.len &&
	       !(v.at[len] == '#' && (v.at[len - 1] == ' ' || v.at[len - 1] == '\t')))
		len++;
	v = mc_view_trim((struct mc_view){v.at, len});
	for (size_t i = 0; i + 1 < v.len; i++) {
		if (v.at[i] == ':' && v.at[i + 1] == ' ')
			return refuse(l, -MC_E_PROTO, "a second ': ' in a line; use quotes");
	}
	if (mc_view_is(v, "~") || mc_view_is(v, "null"))
		return 0;
	return mc_view_copy(v, to, MC_CONF_TEXT_VALUE_MAX) < 0
		   ? refuse(l, -MC_E_TOO_BIG, "the value is too long")
		   : 0;
}

static int key_check(struct lines *l, struct mc_view key, char *to)
{
	static const char letters[] =
	    "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-.";

	if (key.len == 0)
		return refuse(l, -MC_E_PROTO, "no key before ':'");
	for (size_t i = 0; i < key.len; i++) {
		if (!strchr(letters, key.at[i]))
			return refuse(l, -MC_E_PROTO, "a key is of letters, digits, '_', '-', '.'");
	}
	if (mc_view_copy(key, to, MC_CONF_TEXT_KEY_MAX) < 0)
		return refuse(l, -MC_E_TOO_BIG, "the key is too long");
	for (unsigned i = 0; i < l->nkeys; i++) {
		if (mc_view_is(l->keys[i], to))
			return refuse(l, -MC_E_PROTO, "this key was there before");
	}
	if (l->nkeys == MC_CONF_TEXT_KEYS_MAX)
		return refuse(l, -MC_E_TOO_BIG, "too many keys");
	l->keys[l->nkeys++] = key;
	return 0;
}

static int line_take(struct lines *l, struct mc_view line, mc_conf_take take, void *user)
{
	char key[MC_CONF_TEXT_KEY_MAX], value[MC_CONF_TEXT_VALUE_MAX];
	size_t at = 0;
	int rc;

	if (line.len > 0 && line.at[line.len - 1] == '\r')
		line.len--;
	if (is_end(line, true) || mc_view_is(line, "---") || mc_view_is(line, "..."))
		return 0;
	if (line.at[0] == ' ' || line.at[0] == '\t' || line.at[0] == '-')
		return refuse(l, -MC_E_PROTO, "only 'key: value' lines, no lists and no levels");
	while (at < line.len && line.at[at] != ':')
		at++;
	if (at == line.len ||
	    (at + 1 < line.len && line.at[at + 1] != ' ' && line.at[at + 1] != '\t'))
		return refuse(l, -MC_E_PROTO, "'key: value' is expected");
	rc = key_check(l, mc_view_trim((struct mc_view){line.at, at}), key);
	if (rc == 0)
		rc = value_take(
		    l, mc_view_trim((struct mc_view){line.at + at + 1, line.len - at - 1}), value);
	if (rc == 0) {
		rc = take(user, key, value, l->diag);
		if (rc < 0)
			mc_diag_wrap(l->diag, "line %u", l->line);
	}
	return rc;
}

static int yaml_take(const char *text, size_t len, mc_conf_take take, void *user,
		     struct mc_diag *diag)
{
	struct lines *l = mc_calloc(1, sizeof(*l));
	const char *end = text + len;
	int rc = 0;

	if (!l)
		return -MC_E_NOMEM;
	l->diag = diag;
	while (rc == 0 && text < end) {
		const char *stop = memchr(text, '\n', (size_t)(end - text));

		stop = stop ? stop : end;
		l->line++;
		rc = line_take(l, (struct mc_view){text, (size_t)(stop - text)}, take, user);
		text = stop < end ? stop + 1 : end;
	}
	mc_free(l);
	return rc;
}

int mc_conf_text_parse(const char *text, size_t len_bytes, mc_conf_take take, void *user,
		       struct mc_diag *diag)
{
	static const char mark[] = "\xef\xbb\xbf"; /* of UTF-8, as some editors write */
	size_t at = 0;

	if (len_bytes > MC_CONF_TEXT_BYTES_MAX) {
		mc_diag_set(diag, "longer than %u bytes", MC_CONF_TEXT_BYTES_MAX);
		return -MC_E_TOO_BIG;
	}
	if (len_bytes > 0 && memchr(text, '\0', len_bytes)) {
		mc_diag_set(diag, "a NUL in the text");
		return -MC_E_PROTO;
	}
	if (len_bytes >= 3 && memcmp(text, mark, 3) == 0) {
		text += 3;
		len_bytes -= 3;
	}
	while (at < len_bytes && strchr(" \t\r\n", text[at]))
		at++;
	if (at < len_bytes && text[at] == '{')
		return json_take(text, len_bytes, take, user, diag);
	return yaml_take(text, len_bytes, take, user, diag);
}
