/*
 * conf_text_test.c: what a configuration file may say, and the line of what it may not.
 */
#include "base/conf_text.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

#include "base/mem.h"

/* "key=value;" of all that was taken. */
static char taken[4096];

static int take(void *user, const char *key, const char *value, struct mc_diag *diag)
{
	size_t at = strlen(taken);

	(void)user;
	(void)snprintf(taken + at, sizeof(taken) - at, "%s=%s;", key, value);
	if (strcmp(key, "bad") != 0)
		return 0;
	mc_diag_set(diag, "no such key");
	return -MC_E_INVAL;
}

static void reads(const char *text, const char *want)
{
	struct mc_diag diag = {.text = ""};

	taken[0] = '\0';
	if (mc_conf_text_parse(text, strlen(text), take, NULL, &diag) < 0)
		fail_msg("%s: %s", text, diag.text);
	assert_string_equal(taken, want);
}

static void refuses(const char *text, int rc, const char *why)
{
	struct mc_diag diag = {.text = ""};

	assert_int_equal(mc_conf_text_parse(text, strlen(text), take, NULL, &diag), rc);
	if (!strstr(diag.text, why))
		fail_msg("%s: '%s' does not say '%s'", text, diag.text, why);
}

static void yaml_of_one_level_is_read(void **state)
{
	reads("", "");
	reads("---\n# nothing\n\n...\n", "");
	reads("port: 50051\nratio: 0.5   # a comment\non: true\n", "port=50051;ratio=0.5;on=true;");
	reads("\xef\xbb\xbf"
	      "a: x\r\nb:\ty z \r\n",
	      "a=x;b=y z;");
	reads("a:\nb: ~\nc: null\nd: \"\"\n", "a=;b=;c=;d=;");
	reads("a: 'it''s # no comment'\nb: \"q\\\"\\\\\\n\\t\\/\" # c\n",
	      "a=it's # no comment;b=q\"\\\n\t/;");
	reads("url: http://host:8080/metadata\nc: a#b\nd: -5\ne: ''''\n",
	      "url=http://host:8080/metadata;c=a#b;d=-5;e=';");
	(void)state;
}

static void json_of_scalars_is_read(void **state)
{
	reads(" {\"port\": 50051, \"ratio\": 0.5, \"on\": true, \"off\": false, \"name\": \"a b\", "
	      "\"none\": null}",
	      "port=50051;ratio=0.5;on=true;off=false;name=a b;none=;");
	refuses("{\"a\": [1]}", -MC_E_PROTO, "key 'a'");
	refuses("{\"a\": 1, \"a\": 2}", -MC_E_PROTO, "a");
	refuses("{\"a\": 1", -MC_E_PROTO, "");
	refuses("{\"bad\": 1}", -MC_E_INVAL, "no such key");
	(void)state;
}

static void what_is_more_is_refused_with_its_line(void **state)
{
	refuses("a: 1\nb:\n  c: 1\n", -MC_E_PROTO, "line 3: only 'key: value' lines");
	refuses("- a\n", -MC_E_PROTO, "line 1: only 'key: value' lines");
	refuses("a: [1, 2]\n", -MC_E_PROTO, "line 1: only a text");
	refuses("a: - b\n", -MC_E_PROTO, "line 1: only a text");
	refuses("a: 1\n\na: 2\n", -MC_E_PROTO, "line 3: this key was there before");
	refuses("just words\n", -MC_E_PROTO, "line 1: 'key: value' is expected");
	refuses("a:b\n", -MC_E_PROTO, "line 1: 'key: value' is expected");
	refuses(": b\n", -MC_E_PROTO, "line 1: no key");
	refuses("a b: c\n", -MC_E_PROTO, "line 1: a key is of letters");
	refuses("a: b: c\n", -MC_E_PROTO, "line 1: a second ': '");
	refuses("a: 'b\n", -MC_E_PROTO, "line 1: the quote does not end");
	refuses("a: \"b\\q\"\n", -MC_E_PROTO, "line 1: only \\\"");
	refuses("a: \"b\\", -MC_E_PROTO, "line 1: only \\\"");
	refuses("a: 'b' c\n", -MC_E_PROTO, "line 1: text behind the quotes");
	refuses("a: 1\nbad: 2\n", -MC_E_INVAL, "line 2: no such key");
	(void)state;
}

/* A text of n times `what`, within `before` and `after`. */
static char *many(const char *before, const char *what, size_t n, const char *after)
{
	size_t len = strlen(before) + strlen(what) * n + strlen(after) + 1, at;
	char *text = mc_calloc(1, len);

	assert_non_null(text);
	at = (size_t)snprintf(text, len, "%s", before);
	for (size_t i = 0; i < n; i++)
		at += (size_t)snprintf(text + at, len - at, "%s", what);
	(void)snprintf(text + at, len - at, "%s", after);
	return text;
}

static void what_is_too_long_is_refused(void **state)
{
	static const struct {
		const char *before, *what, *after, *why;
		size_t n;
	} rows[] = {
	    {"", "k", ": 1", "line 1: the key is too long", MC_CONF_TEXT_KEY_MAX},
	    {"k: ", "v", "", "line 1: the value is too long", MC_CONF_TEXT_VALUE_MAX},
	    {"k: '", "v", "'", "line 1: the value is too long", MC_CONF_TEXT_VALUE_MAX},
	    {"{\"k\": \"", "v", "\"}", "key 'k': its value", MC_CONF_TEXT_VALUE_MAX},
	    {"{\"", "k", "\": 1}", "is too long", MC_CONF_TEXT_KEY_MAX},
	    {"#", "x", "", "longer than 65536 bytes", MC_CONF_TEXT_BYTES_MAX},
	};

	for (size_t i = 0; i < MC_ARRAY_LEN(rows); i++) {
		char *text = many(rows[i].before, rows[i].what, rows[i].n, rows[i].after);

		refuses(text, -MC_E_TOO_BIG, rows[i].why);
		mc_free(text);
	}
	(void)state;
}

static void there_are_not_more_keys_than_the_limit(void **state)
{
	static char text[MC_CONF_TEXT_KEYS_MAX * 16 + 32];
	size_t at = 0;

	for (unsigned i = 0; i <= MC_CONF_TEXT_KEYS_MAX; i++)
		at += (size_t)snprintf(text + at, sizeof(text) - at, "k%u: 1\n", i);
	refuses(text, -MC_E_TOO_BIG, "line 257: too many keys");
	assert_int_equal(mc_conf_text_parse("a\0b", 3, take, NULL, NULL), -MC_E_PROTO);
	(void)state;
}

int main(void)
{
	const struct CMUnitTest tests[] = {
	    cmocka_unit_test(yaml_of_one_level_is_read),
	    cmocka_unit_test(json_of_scalars_is_read),
	    cmocka_unit_test(what_is_more_is_refused_with_its_line),
	    cmocka_unit_test(what_is_too_long_is_refused),
	    cmocka_unit_test(there_are_not_more_keys_than_the_limit),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
