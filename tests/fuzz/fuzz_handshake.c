/*
 * fuzz_handshake.c: the bytes of a connection to the control port. The first byte says into how
 * large parts they come, and whether some requests are answered later; each part goes through
 * mc_control_step(), as the socket loop does it. The outcome must not depend on the parts.
 */
#include "disco/control.h"

#include <string.h>

#include "base/mem.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len);

struct seen {
	int metadata, notices;
	struct mc_control_text *text;
};

static int on_metadata(void *user, const char *json, size_t len, struct mc_control_text **ret)
{
	struct seen *s = user;

	for (size_t i = 0; i < len; i++)
		s->metadata += json[i] == '"'; /* touches every byte */
	*ret = mc_control_text_get(s->text);
	return 0;
}

static int on_notify(void *user, const struct mc_hs_notify *n)
{
	struct seen *s = user;

	mc_assert(n->name[n->name_len] == '\0' && n->msg[n->msg_len] == '\0');
	s->notices++;
	return n->name_len % 2 ? -MC_E_AGAIN : 0;
}

/* Feeds parts until the connection is decided. @return the act, READ when all bytes were too few */
static enum mc_control_act run(const struct mc_control_conf *conf, const uint8_t *data, size_t len,
			       size_t part, size_t *ret_at)
{
	struct mc_control_step step;
	struct mc_diag diag = {.text = ""};
	size_t at = 0, need = 1;

	for (;;) {
		at = mc_min(len, at + part);
		if (at >= need || at == len) {
			mc_control_step(conf, data, at, &step, &diag);
			mc_control_text_put(step.text);
			mc_assert((step.act == MC_CONTROL_REPLY) == (step.head_len > 0));
			if (step.act != MC_CONTROL_READ)
				break;
			mc_assert(step.need > at || at < MC_HS_HEAD_BYTES);
			need = step.need > MC_HS_HEAD_BYTES ? step.need : 1;
		}
		if (at == len)
			break;
	}
	*ret_at = at;
	return step.act;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len)
{
	static const struct mc_control_ops ops = {on_metadata, on_notify, NULL, NULL};
	struct mc_hs_conf hs = {.bytes_max = 65536};
	struct seen seen = {0};
	struct mc_control_conf conf = {.hs = &hs,
				       .ops = &ops,
				       .user = &seen,
				       .preface = "MCRPC\x01\xff\xff",
				       .preface_len = 8};
	enum mc_control_act whole, parts;
	char *json;
	size_t at;
	int rc;

	if (len == 0)
		return 0;
	conf.later = data[0] & 0x80 ? 1u << MC_HS_CONNECTION | 1u << MC_HS_METADATA : 0;
	json = mc_strdup("{}");
	if (!json || mc_control_text_open(json, 2, &seen.text) < 0)
		return 0;
	whole = run(&conf, data + 1, len - 1, len, &at);
	parts = run(&conf, data + 1, len - 1, (size_t)data[0] % 16 + 1, &at);
	mc_assert(whole == parts);
	rc = mc_hs_frame_parse(data + 1, len - 1, 65536, &(struct mc_hs_frame){0}, &at);
	mc_assert(rc <= 1);
	mc_control_text_put(seen.text);
	return 0;
}
