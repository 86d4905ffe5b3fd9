/*
 * admin_keys.c: what a master says of objects over HTTP: upstream's paths, answers in upstream's
 * form. The index is asked on its own loop, a piece at a time, so that a walk over millions of keys
 * holds nobody up.
 */
#include <inttypes.h>
#include <string.h>

#include "base/str.h"
#include "io/http_server.h"
#include "master/priv.h"
#include "meta/slot.h"

#define WALK_BUDGET 1000u

/* One question to the index loop. */
struct ask {
	struct mc_master *master;
	struct mc_str *out;
	struct mc_view key;
	uint64_t cursor;
	bool is_more, is_found;
};

/* ---- on the index loop ---- */

static void key_line(void *user, const struct mc_index_view *v)
{
	size_t tenant = 1u + v->key.bytes[0]; /* its length, its name */

	if (tenant >= v->key.len)
		return;
	(void)mc_str_append(user, v->key.bytes + tenant, v->key.len - tenant);
	(void)mc_str_puts(user, "\n");
}

static void keys_piece(void *arg)
{
	struct ask *a = arg;

	a->is_more = mc_index_walk(a->master->index, mc_mst_now_ms(a->master), &a->cursor,
				   WALK_BUDGET, key_line, a->out);
}

static void quoted(struct mc_str *out, const char *text, size_t len)
{
	(void)mc_str_puts(out, "\"");
	for (size_t i = 0; i < len; i++) {
		uint8_t c = (uint8_t)text[i];

		if (c < 0x20 || c == '"' || c == '\\')
			(void)mc_str_appendf(out, "\\u%04x", c);
		else
			(void)mc_str_append(out, &c, 1);
	}
	(void)mc_str_puts(out, "\"");
}

/* The replicas of one kind: a list of JSON objects; null without any, as upstream says. */
static void replicas(struct mc_master *m, struct mc_str *out, const struct mc_st_object *o,
		     unsigned kind)
{
	const char *before = "[";

	for (unsigned i = 0; i < o->nreplicas; i++) {
		const struct mc_st_replica *r = &o->replicas[i];
		const struct mc_mst_owner *owner = mc_mst_owner_find(m, r->owner);

		if (r->kind != kind || !owner)
			continue;
		(void)mc_str_appendf(
		    out, "%s{\"size_\":%" PRIu64 ",\"buffer_address_\":%" PRIu64 ",\"protocol_\":",
		    before, o->len, r->addr);
		quoted(out, owner->protocol, strlen(owner->protocol));
		(void)mc_str_puts(out, ",\"transport_endpoint_\":");
		quoted(out, owner->segment, strlen(owner->segment));
		(void)mc_str_puts(out, "}");
		before = ",";
	}
	(void)mc_str_puts(out, before[0] == '[' ? "null" : "]");
}

static bool view(struct mc_master *m, struct mc_view text, struct mc_index_view *ret)
{
	uint8_t bytes[MC_SLOT_KEY_MAX] = {0}; /* no tenant */
	const struct mc_st_key key = {(uint16_t)(text.len + 1), bytes};
	struct mc_index_request q;
	int rc;

	if (text.len == 0 || text.len + 1 > sizeof(bytes))
		return false;
	memcpy(bytes + 1, text.at, text.len);
	if (mc_index_begin(m->index, &q, mc_mst_now_ms(m), &key, 1) < 0)
		return false;
	rc = mc_index_view(&q, 0, ret);
	mc_index_end(&q);
	return rc == 0;
}

static void one_of_batch(void *arg)
{
	struct ask *a = arg;
	struct mc_index_view v;

	quoted(a->out, a->key.at, a->key.len);
	if (!view(a->master, a->key, &v)) {
		(void)mc_str_puts(a->out, ":{\"ok\":false,\"error\":\"OBJECT_NOT_FOUND\","
					  "\"values\":null,\"disk_values\":null,"
					  "\"local_disk_values\":null,\"nof_values\":null}");
		return;
	}
	(void)mc_str_puts(a->out, ":{\"ok\":true,\"error\":null,\"values\":");
	replicas(a->master, a->out, &v.object, MC_ST_MEMORY);
	(void)mc_str_puts(a->out, ",\"disk_values\":null,\"local_disk_values\":");
	replicas(a->master, a->out, &v.object, MC_ST_DISK);
	(void)mc_str_puts(a->out, ",\"nof_values\":null}");
}

static void one_key(void *arg)
{
	struct ask *a = arg;
	struct mc_index_view v;

	a->is_found = view(a->master, a->key, &v);
	if (!a->is_found) {
		(void)mc_str_appendf(
		    a->out,
		    "{\"success\":false,\"error_code\":%d,\"error_message\":\"object not found\"}",
		    MC_STORE_OBJECT_NOT_FOUND);
		return;
	}
	(void)mc_str_puts(a->out, "{\"success\":true,\"data\":");
	replicas(a->master, a->out, &v.object, MC_ST_MEMORY);
	(void)mc_str_puts(a->out, "}");
}

/* ---- on the side loop ---- */

static struct mc_view arg_view(const struct mc_http_answer *answer, const char *name)
{
	const char *text = mc_http_arg(answer, name);

	return (struct mc_view){text ? text : "", text ? strlen(text) : 0};
}

static void all_keys(struct ask *a)
{
	do {
		mc_loop_call(a->master->loop, keys_piece, a);
	} while (a->is_more && a->out->rc == 0);
}

static void batch(struct ask *a, struct mc_view keys)
{
	const char *before = "";

	(void)mc_str_puts(a->out, "{\"success\":true,\"data\":{");
	while (keys.len > 0) {
		const char *comma = memchr(keys.at, ',', keys.len);
		size_t len = comma ? (size_t)(comma - keys.at) : keys.len;

		a->key = (struct mc_view){keys.at, len};
		(void)mc_str_puts(a->out, before);
		mc_loop_call(a->master->loop, one_of_batch, a);
		before = ",";
		len += comma ? 1 : 0;
		keys = (struct mc_view){keys.at + len, keys.len - len};
	}
	(void)mc_str_puts(a->out, "}}");
}

int mc_mst_keys_page(struct mc_master *m, const char *path, struct mc_http_answer *answer,
		     struct mc_str *out)
{
	struct ask a = {.master = m, .out = out};

	if (strcmp(path, "/get_all_keys") == 0) {
		all_keys(&a);
		return 200;
	}
	if (strcmp(path, "/batch_query_keys") == 0) {
		answer->type = "application/json";
		batch(&a, arg_view(answer, "keys"));
		return 200;
	}
	if (strcmp(path, "/query_key") != 0)
		return 0;
	answer->type = "application/json";
	a.key = arg_view(answer, "key");
	mc_loop_call(m->loop, one_key, &a);
	return a.is_found ? 200 : 404;
}
