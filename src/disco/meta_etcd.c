/*
 * meta_etcd.c: etcd's version 3 API through its JSON gateway (/v3/kv/range, put, deleterange), with
 * several endpoints: a call starts at the one that worked last and goes through all of them.
 *
 * All three operations may be repeated safely, so an endpoint that fails in the middle is no
 * question.
 */
#include <stdatomic.h>
#include <string.h>

#include "base/clock.h"
#include "base/json.h"
#include "base/mem.h"
#include "disco/base64.h"
#include "disco/meta_ops.h"
#include "io/http_client.h"

#define ENDPOINTS_MAX 16
#define ENDPOINT_LEN_MAX 256u
/* base64 of a value, its key, and etcd's own members */
#define REPLY_BYTES_MAX (MC_META_VALUE_MAX / 3 * 4 + 65536u)

struct etcd_meta {
	struct mc_meta meta;
	struct mc_http_client *client;
	char url[ENDPOINTS_MAX][ENDPOINT_LEN_MAX]; /* "http://host:port" */
	unsigned n;
	_Atomic unsigned last; /* worked last; any value is right, so relaxed */
};

static void etcd_close(struct mc_meta *meta)
{
	struct etcd_meta *e = mc_container_of(meta, struct etcd_meta, meta);

	mc_http_client_close(e->client);
	mc_free(e);
}

/* {"key":"<base64>"[,"value":"<base64>"]} */
static int body_of(const char *key, const char *val, size_t len, struct mc_str *out)
{
	mc_str_puts(out, "{\"key\":\"");
	mc_base64_encode(out, key, strlen(key));
	if (val) {
		mc_str_puts(out, "\",\"value\":\"");
		mc_base64_encode(out, val, len);
	}
	return mc_str_puts(out, "\"}");
}

/* An endpoint that has no leader, or is about to stop, answers 5xx: another may do better. */
static int ask_one(struct etcd_meta *e, unsigned at, const char *op, const struct mc_str *body,
		   uint64_t deadline_ns, struct mc_http_reply *ret, struct mc_diag *diag)
{
	struct mc_http_req req = {.method = "POST",
				  .type = "application/json",
				  .body = body->text,
				  .body_len = body->len,
				  .connect_timeout_ms = MC_META_CONNECT_MS,
				  .deadline_ns = deadline_ns,
				  .reply_bytes_max = REPLY_BYTES_MAX};
	char url[ENDPOINT_LEN_MAX + 32];
	int rc;

	(void)mc_strlcpy(url, sizeof(url), e->url[at]); /* it fits: url is larger */
	(void)mc_strlcpy(url + strlen(url), 32, op);
	req.url = url;
	rc = mc_http_call(e->client, &req, ret, diag);
	if (rc < 0)
		return rc;
	if (ret->status == 200)
		return 0;
	mc_diag_set(diag, "etcd: POST %.200s: status %d: %.150s", url, ret->status, ret->body);
	rc = ret->status >= 500 ? -MC_E_IO : -MC_E_METADATA;
	mc_free(ret->body);
	return rc;
}

static int ask(struct etcd_meta *e, const char *op, const struct mc_str *body, uint64_t deadline_ns,
	       struct mc_http_reply *ret, struct mc_diag *diag)
{
	unsigned first = atomic_load_explicit(&e->last, memory_order_relaxed);
	uint64_t now, until;
	int rc = -MC_E_METADATA;

	for (unsigned i = 0; i < e->n; i++) {
		unsigned at = (first + i) % e->n;

		now = mc_now_ns();
		if (i && now >= deadline_ns)
			break;
		/* Leave time for the others: one that swallows requests must not cost them all. */
		until = deadline_ns > now ? now + (deadline_ns - now) / (e->n - i) : deadline_ns;
		rc = ask_one(e, at, op, body, until, ret, diag);
		if (rc == 0)
			atomic_store_explicit(&e->last, at, memory_order_relaxed);
		if (rc == 0 || rc == -MC_E_METADATA || rc == -MC_E_NOMEM || rc == -MC_E_TOO_BIG)
			return rc;
	}
	return -MC_E_METADATA;
}

static int request(struct mc_meta *meta, const char *op, const char *key, const char *val,
		   size_t len, uint64_t deadline_ns, struct mc_http_reply *ret,
		   struct mc_diag *diag)
{
	struct etcd_meta *e = mc_container_of(meta, struct etcd_meta, meta);
	struct mc_str body;
	int rc;

	mc_str_init(&body, REPLY_BYTES_MAX);
	rc = body_of(key, val, len, &body);
	if (rc == 0)
		rc = ask(e, op, &body, deadline_ns, ret, diag);
	mc_str_fini(&body);
	return rc;
}

/* The value of the only key in a reply to /v3/kv/range. */
static int value_of(const char *json, size_t json_len, char **ret, size_t *ret_len,
		    struct mc_diag *diag)
{
	static const struct mc_json_limits limits = {.bytes_max = REPLY_BYTES_MAX, .depth_max = 8};
	const char *text = "";
	json_t *root, *kvs;
	int rc = mc_json_parse(json, json_len, &limits, &root, diag);

	if (rc < 0)
		return rc;
	if (!mc_json_has(root, "kvs")) {
		json_decref(root);
		return -MC_E_NOENT;
	}
	rc = mc_json_get_array(root, "kvs", 1, &kvs, diag);
	if (rc == 0 && json_array_size(kvs) == 0)
		rc = -MC_E_NOENT;
	if (rc == 0 && mc_json_has(json_array_get(kvs, 0), "value")) /* "" is left out */
		rc = mc_json_get_str(json_array_get(kvs, 0), "value", &text, diag);
	if (rc == 0)
		rc = mc_base64_decode(text, strlen(text), ret, ret_len);
	if (rc == -MC_E_INVAL) {
		mc_diag_set(diag, "etcd: value is not base64");
		rc = -MC_E_PROTO;
	}
	json_decref(root);
	return rc;
}

static int etcd_get(struct mc_meta *meta, const char *key, uint64_t deadline_ns, char **ret,
		    size_t *ret_len, struct mc_diag *diag)
{
	struct mc_http_reply reply = {0};
	int rc = request(meta, "/v3/kv/range", key, NULL, 0, deadline_ns, &reply, diag);

	if (rc < 0)
		return rc;
	rc = value_of(reply.body, reply.len, ret, ret_len, diag);
	mc_free(reply.body);
	return rc;
}

static int etcd_put(struct mc_meta *meta, const char *key, const char *val, size_t len,
		    uint64_t deadline_ns, struct mc_diag *diag)
{
	struct mc_http_reply reply = {0};
	int rc = request(meta, "/v3/kv/put", key, val, len, deadline_ns, &reply, diag);

	if (rc == 0)
		mc_free(reply.body);
	return rc;
}

static int etcd_del(struct mc_meta *meta, const char *key, uint64_t deadline_ns,
		    struct mc_diag *diag)
{
	struct mc_http_reply reply = {0};
	int rc = request(meta, "/v3/kv/deleterange", key, NULL, 0, deadline_ns, &reply, diag);

	if (rc == 0)
		mc_free(reply.body);
	return rc;
}

static const struct mc_meta_ops etcd_ops = {etcd_get, etcd_put, etcd_del, etcd_close};

/* "host:port" or a whole URL, for etcd behind TLS */
static int endpoint_set(char *url, struct mc_view part, struct mc_diag *diag)
{
	struct mc_str text;
	int rc;

	part = mc_view_trim(part);
	mc_str_init(&text, ENDPOINT_LEN_MAX - 1);
	if (!memmem(part.at, part.len, "://", 3))
		mc_str_puts(&text, "http://");
	rc = mc_str_append(&text, part.at, part.len);
	while (rc == 0 && text.text[text.len - 1] == '/')
		text.text[--text.len] = '\0';
	if (part.len == 0 || rc == -MC_E_TOO_BIG) {
		mc_diag_set(diag, "etcd: \"%.*s\" is no host:port",
			    (int)mc_min(part.len, (size_t)200), part.at);
		rc = -MC_E_INVAL;
	}
	if (rc == 0)
		memcpy(url, text.text, text.len + 1);
	mc_str_fini(&text);
	return rc;
}

int mc_meta_etcd_open(const char *at, struct mc_meta **ret, struct mc_diag *diag)
{
	struct mc_view parts[ENDPOINTS_MAX];
	struct etcd_meta *e;
	int n = mc_str_split(at, ',', parts, ENDPOINTS_MAX), rc = 0;

	if (n < 0) {
		mc_diag_set(diag, "etcd: more than %d endpoints", ENDPOINTS_MAX);
		return -MC_E_INVAL;
	}
	e = mc_calloc(1, sizeof(*e));
	if (!e)
		return -MC_E_NOMEM;
	e->meta.ops = &etcd_ops;
	for (int i = 0; i < n && rc == 0; i++)
		rc = endpoint_set(e->url[i], parts[i], diag);
	e->n = (unsigned)n;
	if (rc == 0)
		rc = mc_http_client_open(&e->client, diag);
	if (rc < 0) {
		etcd_close(&e->meta);
		return rc;
	}
	*ret = &e->meta;
	return 0;
}
