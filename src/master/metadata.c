/*
 * metadata.c: keys and values of engines that look for each other, over HTTP.
 */
#include "master/metadata.h"

#include <string.h>

#include "base/hash.h"
#include "base/mem.h"
#include "base/str.h"
#include "io/http_server.h"

#define KEY_MAX_BYTES 4096u
#define ENTRY_BYTES 128u /* of an entry beside its key and value, about */
#define BYTES_MAX (1ull << 30)
#define CONNS_MAX 1024u
#define HELD_MAX (256u << 20)

struct value {
	size_t len;
	char bytes[];
};

/* All of it the loop's. */
struct mc_metadata {
	struct mc_http_server *http;
	struct mc_map values;
	uint64_t bytes, bytes_max;
};

static void reply(struct mc_http_answer *a, int status, const char *text)
{
	a->status = status;
	a->type = "application/json; charset=utf-8";
	a->body = mc_strdup(text);
	a->len = a->body ? strlen(text) : 0;
}

static uint64_t entry_bytes(const char *key, const struct value *v)
{
	return ENTRY_BYTES + strlen(key) + v->len;
}

static void get(struct mc_metadata *md, const char *key, struct mc_http_answer *a)
{
	const struct value *v = mc_map_get(&md->values, key);

	if (!v) {
		reply(a, 404, "metadata not found");
		return;
	}
	a->body = mc_calloc(v->len + 1, 1);
	if (!a->body) {
		reply(a, 503, "out of memory");
		return;
	}
	memcpy(a->body, v->bytes, v->len);
	a->len = v->len;
	a->status = 200;
	a->type = "application/json";
}

/* A server's name belongs to whoever took it first, until it is deleted. */
static void put(struct mc_metadata *md, const char *key, struct mc_http_answer *a)
{
	struct value *old = mc_map_get(&md->values, key), *v;
	uint64_t bytes;
	void *replaced;
	size_t len;
	const void *body = mc_http_body(a, &len);

	if (old && strstr(key, "rpc_meta")) {
		reply(a, 400, "Duplicate rpc_meta key not allowed");
		return;
	}
	v = mc_calloc(1, sizeof(*v) + len);
	if (!v) {
		reply(a, 503, "out of memory");
		return;
	}
	v->len = len;
	if (len)
		memcpy(v->bytes, body, len);
	bytes = md->bytes - (old ? entry_bytes(key, old) : 0) + entry_bytes(key, v);
	if (bytes > md->bytes_max || mc_map_put(&md->values, key, v, &replaced) < 0) {
		mc_free(v);
		reply(a, 507, "metadata store is full");
		return;
	}
	mc_free(old);
	md->bytes = bytes;
	reply(a, 200, "metadata updated");
}

static void del(struct mc_metadata *md, const char *key, struct mc_http_answer *a)
{
	struct value *v = mc_map_get(&md->values, key);

	if (!v) {
		reply(a, 404, "metadata not found");
		return;
	}
	md->bytes -= entry_bytes(key, v);
	(void)mc_map_del(&md->values, key); /* it is v */
	mc_free(v);
	reply(a, 200, "metadata deleted");
}

static void on_request(void *user, const char *path, struct mc_http_answer *a)
{
	static const struct {
		const char *method;
		void (*handle)(struct mc_metadata *md, const char *key, struct mc_http_answer *a);
	} rows[] = {{"GET", get}, {"PUT", put}, {"DELETE", del}};
	const char *method = mc_http_method(a), *arg = mc_http_arg(a, "key");
	struct mc_view view = {arg ? arg : "", arg ? strlen(arg) : 0};
	char key[KEY_MAX_BYTES];

	if (strcmp(path, "/metadata") != 0) {
		reply(a, 404, "404: Not Found");
		a->type = "text/plain; charset=utf-8";
		return;
	}
	view = mc_view_trim(view);
	if (view.len == 0) {
		reply(a, 400, "metadata key is required");
		return;
	}
	if (mc_view_copy(view, key, sizeof(key)) < 0) {
		reply(a, 400, "metadata key is too long");
		return;
	}
	for (size_t i = 0; i < MC_ARRAY_LEN(rows); i++) {
		if (strcmp(method, rows[i].method) == 0) {
			rows[i].handle(user, key, a);
			return;
		}
	}
	reply(a, 405, "Method not allowed");
}

void mc_metadata_close(struct mc_metadata *md)
{
	size_t cursor = 0;
	const char *key;
	void *v;

	if (!md)
		return;
	mc_http_server_close(md->http);
	while (mc_map_each(&md->values, &cursor, &key, &v))
		mc_free(v);
	mc_map_fini(&md->values);
	mc_free(md);
}

int mc_metadata_open(struct mc_loop *loop, const struct mc_addr *at, uint64_t bytes_max,
		     struct mc_diag *diag, struct mc_metadata **ret)
{
	static const struct mc_http_opts opts = {
	    .body_max = MC_METADATA_VALUE_MAX, .held_max = HELD_MAX, .conns_max = CONNS_MAX};
	struct mc_metadata *md = mc_calloc(1, sizeof(*md));
	int rc;

	if (!md)
		return -MC_E_NOMEM;
	md->bytes_max = bytes_max ? bytes_max : BYTES_MAX;
	mc_map_init(&md->values, MC_METADATA_KEYS_MAX);
	rc = mc_http_server_open_opts(loop, at, &opts, on_request, md, &md->http, diag);
	if (rc < 0) {
		mc_metadata_close(md);
		return rc;
	}
	*ret = md;
	return 0;
}

uint16_t mc_metadata_port(const struct mc_metadata *md)
{
	return mc_http_server_port(md->http);
}
