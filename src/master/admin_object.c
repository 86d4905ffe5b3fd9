/*
 * admin_object.c: where an object is, or why it is not there: GET /api/v1/object.
 */
#include "master/admin_object.h"

#include <inttypes.h>
#include <string.h>

#include "base/json.h"
#include "master/priv.h"
#include "meta/slot.h"

/* One question to the index loop, and its answer. */
struct ask {
	struct mc_master *m;
	struct mc_st_key key;
	json_t *json;
};

static const char *kind_text(unsigned kind)
{
	return kind == MC_ST_DISK ? "disk" : "memory";
}

/* Upstream's owners have names of their own choice: what is no UTF-8 is left out. */
static void set_text(json_t *to, const char *key, const char *text)
{
	(void)json_object_set_new(to, key, json_string(text));
}

static void set_number(json_t *to, const char *key, uint64_t n)
{
	(void)json_object_set_new(to, key, json_integer((json_int_t)n));
}

static void set_owner(struct mc_master *m, json_t *to, uint64_t id)
{
	const struct mc_mst_owner *o = mc_mst_owner_find(m, id);
	char text[17];

	if (id == 0)
		return;
	(void)snprintf(text, sizeof(text), "%016" PRIx64, id);
	set_text(to, "owner", text);
	if (!o)
		return;
	set_text(to, "segment", o->segment);
	set_text(to, "owner_state", mc_mst_owner_state_text(o));
}

static void here(struct ask *a, const struct mc_index_view *v)
{
	json_t *list = json_array(), *one;

	set_text(a->json, "state", "here");
	set_number(a->json, "bytes", v->object.len);
	set_number(a->json, "generation", v->object.gen);
	set_number(a->json, "lease_ms", v->object.lease_ms);
	(void)json_object_set_new(a->json, "hard_pinned", json_boolean(v->is_hard_pinned));
	(void)json_object_set_new(a->json, "soft_pinned", json_boolean(v->is_soft_pinned));
	/* Frees of its forerunner are not acknowledged: readers wait for that. */
	(void)json_object_set_new(a->json, "waits_for_free",
				  json_boolean(mc_index_is_pending(a->m->index, v->key_hash)));
	for (unsigned i = 0; i < v->object.nreplicas; i++) {
		const struct mc_st_replica *r = &v->object.replicas[i];

		one = json_object();
		set_text(one, "kind", kind_text(r->kind));
		set_owner(a->m, one, r->owner);
		(void)json_array_append_new(list, one);
	}
	(void)json_object_set_new(a->json, "replicas", list);
}

static void away(struct ask *a, const struct mc_index_request *q)
{
	uint64_t now_ms = q->now_ms, since_ms = mc_index_gone_since_ms(a->m->index);
	struct mc_gone g;

	if (mc_index_gone(q, 0, &g)) {
		set_text(a->json, "state", mc_gone_why_text(g.why));
		set_number(a->json, "gone_ms", now_ms - mc_min(now_ms, g.at_ms));
		set_number(a->json, "bytes", g.len);
		set_number(a->json, "generation", g.gen);
		set_text(a->json, "kind", kind_text(g.kind));
		set_owner(a->m, a->json, g.owner);
		(void)json_object_set_new(
		    a->json, "waits_for_free",
		    json_boolean(mc_index_is_pending(a->m->index, q->hashes[0])));
		return;
	}
	/* A departure since then would be remembered; before it began nobody knows. */
	set_text(a->json, "state", a->m->is_recovering ? "recovering" : "never_seen");
	since_ms = mc_max(since_ms, a->m->start_ns / MC_NS_PER_MS);
	set_number(a->json, "known_ms", now_ms - mc_min(now_ms, since_ms));
}

static void look(void *arg)
{
	struct ask *a = arg;
	struct mc_index_request q;
	struct mc_index_view v;

	if (mc_index_begin(a->m->index, &q, mc_mst_now_ms(a->m), &a->key, 1) < 0)
		return;
	if (mc_index_view(&q, 0, &v) == 0)
		here(a, &v);
	else
		away(a, &q);
	mc_index_end(&q);
}

/* Tenant and key as keys are kept. @return bytes; 0: no such key can be */
static size_t key_make(const char *tenant, const char *key, uint8_t to[MC_SLOT_KEY_MAX])
{
	size_t len = key ? strlen(key) : 0, at;

	if (len == 0 || !mc_mst_tenant_put(tenant ? tenant : "default", to, &at) ||
	    at + len > MC_SLOT_KEY_MAX)
		return 0;
	/* NOLINTNEXTLINE(bugprone-not-null-terminated-result): it ends by its length */
	memcpy(to + at, key, len);
	return at + len;
}

int mc_admin_object_page(struct mc_master *m, const struct mc_http_answer *answer,
			 struct mc_str *out)
{
	uint8_t bytes[MC_SLOT_KEY_MAX];
	struct ask a = {.m = m, .key = {.bytes = bytes}};

	a.key.len =
	    (uint16_t)key_make(mc_http_arg(answer, "tenant"), mc_http_arg(answer, "key"), bytes);
	if (a.key.len == 0) {
		(void)mc_str_appendf(out,
				     "{\"error\":\"argument 'key': 1 to %u bytes, with 'tenant' "
				     "before it\"}\n",
				     MC_SLOT_KEY_MAX - 1);
		return 400;
	}
	a.json = json_object();
	mc_loop_call(m->loop, look, &a);
	if (json_object_size(a.json) == 0)
		out->rc = -MC_E_NOMEM;
	else
		out->rc = mc_json_dump(a.json, out);
	json_decref(a.json);
	return 200;
}
