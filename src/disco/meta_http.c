/*
 * meta_http.c: GET, PUT and DELETE of {url}?key=<key>, as upstream's metadata server has them.
 */
#include <string.h>

#include "base/mem.h"
#include "base/str.h"
#include "disco/meta_ops.h"
#include "io/http_client.h"

struct http_meta {
	struct mc_meta meta;
	struct mc_http_client *client;
	char *url;
};

static void http_close(struct mc_meta *meta)
{
	struct http_meta *h = mc_container_of(meta, struct http_meta, meta);

	mc_http_client_close(h->client);
	mc_free(h->url);
	mc_free(h);
}

/* Only what the caller acts upon keeps its code; the rest is "the service failed". */
static int map_err(int rc)
{
	return rc == -MC_E_NOMEM || rc == -MC_E_TOO_BIG ? rc : -MC_E_METADATA;
}

static int call(struct mc_meta *meta, struct mc_http_req *req, const char *key,
		struct mc_http_reply *ret, struct mc_diag *diag)
{
	struct http_meta *h = mc_container_of(meta, struct http_meta, meta);
	struct mc_str url;
	int rc;

	mc_str_init(&url, 32768);
	mc_str_appendf(&url, "%s%ckey=", h->url, strchr(h->url, '?') ? '&' : '?');
	rc = mc_http_quote(&url, key);
	if (rc == 0) {
		req->url = url.text;
		req->connect_timeout_ms = MC_META_CONNECT_MS;
		rc = mc_http_call(h->client, req, ret, diag);
		if (rc < 0)
			rc = map_err(rc);
		else if (ret->status != 200)
			mc_diag_set(diag, "%s %.200s: status %d: %.100s", req->method, url.text,
				    ret->status, ret->body);
	}
	mc_str_fini(&url);
	return rc;
}

static int http_get(struct mc_meta *meta, const char *key, uint64_t deadline_ns, char **ret,
		    size_t *ret_len, struct mc_diag *diag)
{
	struct mc_http_req req = {
	    .method = "GET", .deadline_ns = deadline_ns, .reply_bytes_max = MC_META_VALUE_MAX};
	struct mc_http_reply reply = {0};
	int rc = call(meta, &req, key, &reply, diag);

	if (rc < 0)
		return rc;
	if (reply.status == 200) {
		*ret = reply.body;
		*ret_len = reply.len;
		return 0;
	}
	mc_free(reply.body);
	return reply.status == 404 ? -MC_E_NOENT : -MC_E_METADATA;
}

static int http_put(struct mc_meta *meta, const char *key, const char *val, size_t len,
		    uint64_t deadline_ns, struct mc_diag *diag)
{
	struct mc_http_req req = {.method = "PUT",
				  .type = "application/json",
				  .body = val,
				  .body_len = len,
				  .deadline_ns = deadline_ns,
				  .reply_bytes_max = 65536};
	struct mc_http_reply reply = {0};
	int rc = call(meta, &req, key, &reply, diag);

	if (rc < 0)
		return rc;
	if (reply.status != 200)
		rc = reply.status == 400 && strstr(reply.body, "Duplicate") ? -MC_E_EXIST
									    : -MC_E_METADATA;
	mc_free(reply.body);
	return rc;
}

static int http_del(struct mc_meta *meta, const char *key, uint64_t deadline_ns,
		    struct mc_diag *diag)
{
	struct mc_http_req req = {
	    .method = "DELETE", .deadline_ns = deadline_ns, .reply_bytes_max = 65536};
	struct mc_http_reply reply = {0};
	int rc = call(meta, &req, key, &reply, diag);

	if (rc < 0)
		return rc;
	mc_free(reply.body);
	if (reply.status == 200)
		return 0;
	return reply.status == 404 ? -MC_E_NOENT : -MC_E_METADATA;
}

static const struct mc_meta_ops http_ops = {http_get, http_put, http_del, http_close};

int mc_meta_http_open(const char *url, struct mc_meta **ret, struct mc_diag *diag)
{
	struct http_meta *h = mc_calloc(1, sizeof(*h));
	int rc = -MC_E_NOMEM;

	if (!h)
		return rc;
	h->meta.ops = &http_ops;
	h->url = mc_strdup(url);
	if (!h->url)
		goto fail;
	rc = mc_http_client_open(&h->client, diag);
	if (rc < 0)
		goto fail;
	*ret = &h->meta;
	return 0;
fail:
	http_close(&h->meta);
	return rc;
}
