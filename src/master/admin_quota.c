/*
 * admin_quota.c: quotas of tenants over HTTP, and their metrics. What is set is in the state
 * directory, and holds for the next life of the master, too.
 */
#include <string.h>

#include "base/json.h"
#include "master/admin_drain.h"
#include "master/priv.h"

#define JSON_BYTES 4096u

bool mc_admin_quota_has(const char *path)
{
	return strcmp(path, "/api/v1/tenant_quotas") == 0;
}

/* What goes to the index loop and back. */
struct ask {
	struct mc_master *m;
	const char *tenant; /* NULL: all */
	uint64_t bytes;	    /* PUT */
	json_t *list;
	int rc;
};

static json_t *tenant_json(const struct mc_index_tenant *t)
{
	json_int_t quota = t->has_own_quota ? (json_int_t)t->quota : 0;
	json_t *name =
	    t->name_len ? json_stringn((const char *)t->name, t->name_len) : json_string("default");

	/* A name that is no UTF-8 was put by a client; nobody can ask for it here. */
	return json_pack(
	    "{s:o, s:I, s:I, s:I, s:b, s:b, s:b}", "tenant_id", name ? name : json_string("?"),
	    "requested_quota_bytes", quota, "effective_quota_bytes", quota, "charged_bytes",
	    (json_int_t)t->bytes, "admission_closed", 0, "over_quota",
	    t->has_own_quota && t->bytes > t->quota, "has_explicit_policy", t->has_own_quota);
}

static bool is_tenant(const struct mc_index_tenant *t, const char *name)
{
	size_t len = strcmp(name, "default") == 0 ? 0 : strlen(name);

	return t->name_len == len && memcmp(t->name, name, len) == 0;
}

/* With a policy, and those that are asked for. */
static void on_get(void *arg)
{
	struct ask *q = arg;
	struct mc_index_tenant t;
	size_t cursor = 0;

	while (mc_index_tenant_next(q->m->index, &cursor, &t)) {
		if (t.has_own_quota && (!q->tenant || is_tenant(&t, q->tenant)))
			(void)json_array_append_new(q->list, tenant_json(&t));
	}
}

static void on_put(void *arg)
{
	struct ask *q = arg;

	q->rc = mc_mst_quota_set(q->m, q->tenant, &q->bytes);
}

static void on_delete(void *arg)
{
	struct ask *q = arg;

	on_get(arg);
	q->rc =
	    json_array_size(q->list) > 0 ? mc_mst_quota_set(q->m, q->tenant, NULL) : -MC_E_NOENT;
}

static int done(struct mc_str *out, json_t *data)
{
	json_t *v = json_pack("{s:b, s:o}", "success", 1, "data", data);

	out->rc = v ? mc_json_dump(v, out) : -MC_E_NOMEM;
	json_decref(v);
	return 200;
}

static int failed(struct mc_str *out, int rc)
{
	if (rc == -MC_E_NOENT)
		return mc_admin_error(out, 404, MC_STORE_OBJECT_NOT_FOUND, "OBJECT_NOT_FOUND");
	return mc_admin_error(out, 503, MC_STORE_INTERNAL_ERROR, mc_err_text(rc));
}

static int get(struct ask *q, struct mc_str *out)
{
	mc_loop_call(q->m->loop, on_get, q);
	if (!q->tenant)
		return done(out, json_incref(q->list));
	if (json_array_size(q->list) == 0)
		return failed(out, -MC_E_NOENT);
	return done(out, json_incref(json_array_get(q->list, 0)));
}

static int put(struct ask *q, struct mc_http_answer *a, struct mc_str *out)
{
	static const struct mc_json_limits limits = {JSON_BYTES, 2};
	struct mc_diag diag = {.text = ""};
	size_t len;
	const char *text = mc_http_body(a, &len);
	json_t *body = NULL;
	int rc = text ? mc_json_parse(text, len, &limits, &body, &diag) : -MC_E_PROTO;

	if (rc == 0)
		rc = mc_json_get_u64(body, "requested_quota_bytes", INT64_MAX, &q->bytes, &diag);
	json_decref(body);
	if (rc < 0)
		return mc_admin_error(out, 400, MC_STORE_INVALID_PARAMS,
				      "the body is {\\\"requested_quota_bytes\\\": n}");
	if (q->bytes == 0)
		return mc_admin_error(out, 400, MC_STORE_INVALID_PARAMS,
				      "Tenant quota must be in [1, 2^63 - 1] bytes");
	mc_loop_call(q->m->loop, on_put, q);
	return q->rc < 0 ? failed(out, q->rc) : get(q, out);
}

/* As keys and the state file have it. */
static bool is_name(const char *tenant)
{
	for (const char *at = tenant; *at; at++) {
		if (*at < ' ' || *at == 0x7f)
			return false;
	}
	return tenant[0] && strlen(tenant) < MC_STATE_TENANT_MAX;
}

static int page(struct ask *q, struct mc_http_answer *a, struct mc_str *out)
{
	const char *method = mc_http_method(a);
	bool is_get = strcmp(method, "GET") == 0;

	if (!is_get && mc_http_has_header(a, "Origin"))
		return mc_admin_error(out, 403, MC_STORE_INVALID_PARAMS,
				      "not from pages in browsers");
	q->tenant = mc_http_arg(a, "tenant_id");
	if (q->tenant ? !is_name(q->tenant) : !is_get)
		return mc_admin_error(out, 400, MC_STORE_INVALID_PARAMS,
				      "Missing or invalid tenant_id");
	if (is_get)
		return get(q, out);
	if (strcmp(method, "PUT") == 0)
		return put(q, a, out);
	if (strcmp(method, "DELETE") != 0)
		return mc_admin_error(out, 405, MC_STORE_INVALID_PARAMS,
				      "this is for GET, PUT and DELETE");
	mc_loop_call(q->m->loop, on_delete, q);
	return q->rc < 0 ? failed(out, q->rc) : done(out, json_null());
}

int mc_admin_quota_page(struct mc_master *m, struct mc_http_answer *answer, struct mc_str *out)
{
	struct ask q = {.m = m, .list = json_array()};
	int status;

	if (!m->conf.has_tenants)
		status = mc_admin_error(out, 409, MC_STORE_UNAVAILABLE_IN_CURRENT_MODE,
					"UNAVAILABLE_IN_CURRENT_MODE: start the master with "
					"--enable_multi_tenants");
	else
		status = page(&q, answer, out);
	json_decref(q.list);
	return status;
}

/* ---- metrics ---- */

static void metric(struct mc_str *out, const json_t *list, const char *name, const char *key,
		   const char *help)
{
	(void)mc_str_appendf(
	    out, "# HELP mooncake_tenant_quota_%s %s\n# TYPE mooncake_tenant_quota_%s gauge\n",
	    name, help, name);
	for (size_t i = 0; i < json_array_size(list); i++) {
		const json_t *t = json_array_get(list, i);
		const json_t *v = json_object_get(t, key);

		(void)mc_str_appendf(out, "mooncake_tenant_quota_%s{tenant_id=\"", name);
		for (const char *c = json_string_value(json_object_get(t, "tenant_id")); *c; c++) {
			if (*c == '"' || *c == '\\')
				(void)mc_str_puts(out, "\\");
			(void)mc_str_append(out, c, 1);
		}
		(void)mc_str_appendf(
		    out, "\"} %lld\n",
		    (long long)(json_is_boolean(v) ? json_is_true(v) : json_integer_value(v)));
	}
}

void mc_admin_quota_metrics(struct mc_master *m, struct mc_str *out)
{
	struct ask q = {.m = m, .list = json_array()};

	if (m->conf.has_tenants && q.list) {
		mc_loop_call(m->loop, on_get, &q);
		metric(out, q.list, "requested_bytes", "requested_quota_bytes", "asked for");
		metric(out, q.list, "effective_bytes", "effective_quota_bytes", "that holds");
		metric(out, q.list, "charged_bytes", "charged_bytes", "in use, all replicas");
		metric(out, q.list, "over_quota", "over_quota", "1: more is in use than that");
	}
	json_decref(q.list);
}
