/*
 * control_step.c: the control protocol as a function of the bytes that have come, and the texts it
 * answers with.
 */
#include "disco/control.h"

#include <stdatomic.h>
#include <string.h>

#include "base/mem.h"
#include "disco/control_text.h"

#define TEXT_PROBE "{\"status\":\"success\"}"
#define TEXT_TAKEN "{\"name\":\"\",\"notify_msg\":\"success\"}"
#define TEXT_FULL "{\"name\":\"\",\"notify_msg\":\"inbox is full\"}"

struct mc_control_text {
	_Atomic uint32_t refs;
	size_t len;
	char *json;
};

int mc_control_text_open(char *json, size_t len, struct mc_control_text **ret)
{
	struct mc_control_text *t = mc_calloc(1, sizeof(*t));

	if (!t) {
		mc_free(json);
		return -MC_E_NOMEM;
	}
	atomic_store_explicit(&t->refs, 1, memory_order_relaxed);
	t->json = json;
	t->len = len;
	*ret = t;
	return 0;
}

struct mc_control_text *mc_control_text_get(struct mc_control_text *text)
{
	/* relaxed: the caller already holds a reference */
	atomic_fetch_add_explicit(&text->refs, 1, memory_order_relaxed);
	return text;
}

void mc_control_text_put(struct mc_control_text *text)
{
	/* acq_rel: the last one sees all other holders' reads as done before it frees */
	if (!text || atomic_fetch_sub_explicit(&text->refs, 1, memory_order_acq_rel) != 1)
		return;
	mc_free(text->json);
	mc_free(text);
}

void mc_control_text_view(const struct mc_control_text *text, const char **ret_json,
			  size_t *ret_len)
{
	*ret_json = text->json;
	*ret_len = text->len;
}

static int fixed_text(const char *json, struct mc_control_text **ret)
{
	char *copy = mc_strdup(json);

	return copy ? mc_control_text_open(copy, strlen(copy), ret) : -MC_E_NOMEM;
}

static int answer_notify(const struct mc_control_conf *conf, const struct mc_hs_frame *f,
			 struct mc_control_text **ret, struct mc_diag *diag)
{
	struct mc_hs_notify n;
	int rc = mc_hs_notify_decode(f->json, f->len, &n, diag);

	if (rc < 0)
		return rc;
	rc = conf->ops->notify(conf->user, &n);
	mc_hs_notify_fini(&n);
	if (rc < 0 && rc != -MC_E_AGAIN)
		return rc;
	return fixed_text(rc == 0 ? TEXT_TAKEN : TEXT_FULL, ret);
}

static int answer_connection(struct mc_control_text **ret)
{
	char *json = mc_hs_reject_encode("this process has no RDMA device: use protocol tcp");

	return json ? mc_control_text_open(json, strlen(json), ret) : -MC_E_NOMEM;
}

static int answer(const struct mc_control_conf *conf, const struct mc_hs_frame *f,
		  struct mc_control_text **ret, struct mc_diag *diag)
{
	switch (f->type) {
	case MC_HS_METADATA:
		return conf->ops->metadata(conf->user, f->json, f->len, ret);
	case MC_HS_NOTIFY:
		return answer_notify(conf, f, ret, diag);
	case MC_HS_PROBE:
		return fixed_text(TEXT_PROBE, ret);
	case MC_HS_CONNECTION:
		return answer_connection(ret);
	case MC_HS_TYPE_COUNT:
		break;
	}
	return -MC_E_PROTO;
}

void mc_control_step_reply(struct mc_control_step *step, struct mc_control_text *text)
{
	mc_assert(text);
	step->act = MC_CONTROL_REPLY;
	step->text = text;
	step->head_len =
	    mc_hs_head_put(step->head, step->frame.type, step->frame.is_legacy, text->len);
}

void mc_control_step(const struct mc_control_conf *conf, const void *data, size_t len,
		     struct mc_control_step *ret, struct mc_diag *diag)
{
	struct mc_control_text *text = NULL;
	int rc;

	*ret = (struct mc_control_step){.act = MC_CONTROL_DROP};
	if (conf->preface_len && len >= conf->preface_len &&
	    memcmp(data, conf->preface, conf->preface_len) == 0) {
		ret->act = MC_CONTROL_ADOPT;
		return;
	}
	/* Eight bytes tell the two protocols apart; before that a length means nothing. */
	rc = mc_hs_frame_parse(data, len, (size_t)conf->hs->bytes_max, &ret->frame, &ret->need);
	if (rc == 0) {
		ret->act = MC_CONTROL_READ;
		return;
	}
	if (rc > 0 && (conf->later & 1u << ret->frame.type)) {
		ret->act = MC_CONTROL_LATER;
		return;
	}
	if (rc > 0)
		rc = answer(conf, &ret->frame, &text, diag);
	else
		mc_diag_set(diag, "neither a control message nor our protocol: %s",
			    mc_err_text(rc));
	if (rc == 0)
		mc_control_step_reply(ret, text);
}
