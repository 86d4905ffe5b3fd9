/*
 * fuzz_conf_text.c: configuration files as anybody may write them. What is taken is within its
 * limits; what is refused has a complaint; JSON of what was taken says the same again.
 */
#include "base/conf_text.h"

#include <string.h>

#include "base/json.h"
#include "base/mem.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len);

struct seen {
	json_t *json;
	unsigned n;
};

static int take(void *user, const char *key, const char *value, struct mc_diag *diag)
{
	struct seen *s = user;

	mc_assert(strlen(value) < MC_CONF_TEXT_VALUE_MAX);
	mc_assert(++s->n <= MC_CONF_TEXT_KEYS_MAX);
	(void)json_object_set_new(s->json, key, json_string(value)); /* no UTF-8: left out */
	if (strcmp(key, "stop") != 0)
		return 0;
	mc_diag_set(diag, "stopped");
	return -MC_E_INVAL;
}

static int again(void *user, const char *key, const char *value, struct mc_diag *diag)
{
	const json_t *was = json_object_get(user, key);

	(void)diag;
	mc_assert(was && strcmp(json_string_value(was), value) == 0);
	return 0;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len)
{
	struct seen s = {.json = json_object()};
	struct mc_diag diag = {.text = ""};
	struct mc_str text;
	int rc = mc_conf_text_parse((const char *)data, len, take, &s, &diag);

	mc_assert(rc == 0 || rc == -MC_E_NOMEM || diag.text[0]);
	mc_str_init(&text, MC_CONF_TEXT_BYTES_MAX);
	if (rc == 0 && mc_json_dump(s.json, &text) == 0)
		mc_assert(mc_conf_text_parse(text.text, text.len, again, s.json, &diag) == 0);
	mc_str_fini(&text);
	json_decref(s.json);
	return 0;
}
