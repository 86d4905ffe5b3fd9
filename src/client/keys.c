/*
 * keys.c: questions and orders about keys that move no data: existence, sizes, places, removal,
 * lists.
 */
#include "base/str.h"
#include "client/priv.h"
#include "wire/store.pb-c.h"

#include <jansson.h>

#define REMOVE_FORCE 1u /* of REMOVE's flags */
#define LIST_PAGE 1024u

static int fail_all32(int32_t *ret, uint32_t n, int code)
{
	for (uint32_t i = 0; i < n; i++)
		ret[i] = code;
	return code;
}

static int sum_up32(const int32_t *ret, uint32_t n)
{
	for (uint32_t i = 0; i < n; i++)
		if (ret[i] < 0)
			return ret[i];
	return 0;
}

static int begin(struct mc_store *st, uint32_t n, struct mc_cli_op **ret_op)
{
	return n > MC_STORE_BATCH_MAX ? MC_STORE_INVALID_PARAMS : mc_cli_op_begin(st, ret_op);
}

/* ---- calls of keys in, statuses out ---- */

#define PENDING INT32_MIN

struct ask {
	uint16_t method;
	const void *head;
	size_t head_len;
	const struct mc_cli_key *keys;
	int32_t *ret; /* PENDING: to be asked for */
};

static int ask_add(struct mc_cli_op *op, const struct ask *a, uint32_t i, struct mc_cli_call **c)
{
	struct mc_st_key key = {.len = a->keys[i].len, .bytes = a->keys[i].bytes};
	size_t len = sizeof(uint16_t) + key.len;
	struct mc_wr w;

	if (!*c || !mc_cli_call_has_room(*c, len))
		*c = mc_cli_call_open_head(op, &op->st->master, a->method, a->head, a->head_len);
	if (!*c || mc_cli_call_add(*c, len, i, &w) < 0)
		return MC_STORE_INTERNAL_ERROR;
	mc_st_key_encode(&w, &key);
	mc_cli_call_added(*c, &w);
	return 0;
}

static void ask_take(const struct ask *a, struct mc_cli_call *c)
{
	struct mc_rd r;
	int rc = c->rc;

	if (rc == 0)
		rc = mc_cli_call_records(c, &r);
	for (uint32_t i = 0; i < c->n; i++) {
		int32_t status = 0;

		if (rc == 0) {
			status = (int32_t)mc_rd_u32(&r);
			if (r.is_bad)
				rc = -MC_E_PROTO;
		}
		if (rc < 0)
			status = mc_cli_code_rpc(rc);
		if (status != MC_STORE_UNAVAILABLE_IN_CURRENT_STATUS)
			a->ret[c->items[i]] = status;
	}
}

/* Ask until all have an answer, or the deadline. */
static void ask_run(struct mc_cli_op *op, const struct ask *a, uint32_t n)
{
	bool is_open;

	do {
		size_t first = op->ncalls;
		struct mc_cli_call *c = NULL;

		for (uint32_t i = 0; i < n; i++)
			if (a->ret[i] == PENDING) {
				int rc = ask_add(op, a, i, &c);

				if (rc < 0)
					a->ret[i] = rc;
			}
		mc_cli_calls_master(op, first);
		for (size_t i = first; i < op->ncalls; i++)
			ask_take(a, op->calls[i]);
		op->ncalls = first;
		is_open = false;
		for (uint32_t i = 0; i < n; i++)
			is_open |= a->ret[i] == PENDING;
	} while (is_open && mc_cli_backoff(op));
	for (uint32_t i = 0; i < n; i++)
		if (a->ret[i] == PENDING)
			a->ret[i] = MC_STORE_RPC_TIMEOUT;
}

static struct mc_cli_key *keys_make(struct mc_cli_op *op, const struct mc_store_key *keys,
				    uint32_t n, int32_t *ret)
{
	struct mc_cli_key *made = mc_cli_alloc(op, n, sizeof(*made));

	for (uint32_t i = 0; made && i < n; i++) {
		ret[i] = mc_cli_key_make(op, &keys[i], &made[i]);
		if (ret[i] == 0)
			ret[i] = PENDING;
	}
	return made;
}

int mc_store_exist(struct mc_store *store, const struct mc_store_key *keys, uint32_t n,
		   int32_t *ret)
{
	struct ask a = {.method = MC_ST_EXIST, .ret = ret};
	struct mc_cli_op *op;
	int rc = begin(store, n, &op);

	if (rc < 0)
		return fail_all32(ret, n, rc);
	a.keys = keys_make(op, keys, n, ret);
	if (a.keys)
		ask_run(op, &a, n);
	else
		(void)fail_all32(ret, n, MC_STORE_INTERNAL_ERROR);
	mc_cli_op_end(op);
	for (uint32_t i = 0; i < n; i++)
		if (ret[i] == 0)
			ret[i] = 1;
		else if (ret[i] == MC_STORE_OBJECT_NOT_FOUND)
			ret[i] = 0;
	return sum_up32(ret, n);
}

int mc_store_remove(struct mc_store *store, const struct mc_store_key *keys, uint32_t n, bool force,
		    int32_t *ret)
{
	uint8_t flags[sizeof(uint32_t)];
	struct mc_wr w = mc_wr_make(flags, sizeof(flags));
	struct ask a = {
	    .method = MC_ST_REMOVE, .head = flags, .head_len = sizeof(flags), .ret = ret};
	struct mc_cli_op *op;
	int rc = begin(store, n, &op);

	if (rc < 0)
		return fail_all32(ret, n, rc);
	mc_wr_u32(&w, force ? REMOVE_FORCE : 0);
	a.keys = keys_make(op, keys, n, ret);
	if (a.keys) {
		for (uint32_t i = 0; i < n; i++)
			if (ret[i] == PENDING)
				mc_cli_cache_del(store->cache, &a.keys[i]);
		ask_run(op, &a, n);
	} else {
		(void)fail_all32(ret, n, MC_STORE_INTERNAL_ERROR);
	}
	mc_cli_op_end(op);
	return sum_up32(ret, n);
}

/* ---- sizes and places ---- */

static int looks_run(struct mc_cli_op *op, const struct mc_store_key *keys, uint32_t n,
		     struct mc_cli_look **ret_looks)
{
	struct mc_cli_look *looks = mc_cli_alloc(op, n, sizeof(*looks));
	struct mc_cli_look **list = mc_cli_alloc(op, n, sizeof(*list));
	size_t nlist = 0;

	if (!looks || !list)
		return MC_STORE_INTERNAL_ERROR;
	for (uint32_t i = 0; i < n; i++) {
		looks[i].status = mc_cli_key_make(op, &keys[i], &looks[i].key);
		looks[i].is_wanted = looks[i].status == 0;
		if (looks[i].is_wanted)
			list[nlist++] = &looks[i];
	}
	mc_cli_lookup(op, list, nlist);
	*ret_looks = looks;
	return 0;
}

int mc_store_size(struct mc_store *store, const struct mc_store_key *keys, uint32_t n, int64_t *ret)
{
	struct mc_cli_look *looks;
	struct mc_cli_op *op;
	int rc = begin(store, n, &op), first = 0;

	if (rc == 0) {
		rc = looks_run(op, keys, n, &looks);
		for (uint32_t i = 0; rc == 0 && i < n; i++) {
			ret[i] =
			    looks[i].status < 0 ? looks[i].status : (int64_t)looks[i].place.len;
			if (ret[i] < 0 && first == 0)
				first = (int)ret[i];
		}
		mc_cli_op_end(op);
	}
	for (uint32_t i = 0; rc < 0 && i < n; i++)
		ret[i] = rc;
	return rc < 0 ? rc : first;
}

static void describe(struct mc_cli_op *op, const struct mc_cli_place *p, unsigned i,
		     struct mc_store_replica *ret)
{
	struct mc_cli_owner *o = mc_cli_view_find(op->st, p->replicas[i].owner);

	if (!o && mc_cli_view_refresh(op, 0) == 0)
		o = mc_cli_view_find(op->st, p->replicas[i].owner);
	*ret = (struct mc_store_replica){
	    .addr = p->replicas[i].addr,
	    .len = p->len,
	    .kind = p->replicas[i].kind == MC_ST_DISK ? MC_STORE_DISK : MC_STORE_MEMORY};
	if (!o)
		return;
	pthread_mutex_lock(&op->st->view.mu);
	(void)mc_strlcpy(ret->segment, sizeof(ret->segment), o->segment_name);
	pthread_mutex_unlock(&op->st->view.mu);
}

int mc_store_replicas(struct mc_store *store, const struct mc_store_key *key,
		      struct mc_store_replica ret_replicas[MC_STORE_REPLICAS_MAX])
{
	struct mc_cli_look *look;
	struct mc_cli_op *op;
	int rc = mc_cli_op_begin(store, &op);

	if (rc < 0)
		return rc;
	rc = looks_run(op, key, 1, &look);
	if (rc == 0)
		rc = look->status;
	if (rc == 0) {
		rc = look->place.nreplicas;
		for (unsigned i = 0; i < look->place.nreplicas; i++)
			describe(op, &look->place, i, &ret_replicas[i]);
	}
	mc_cli_op_end(op);
	return rc;
}

/* ---- all keys ---- */

static char *tenant_text(const struct mc_store *st)
{
	return (char *)st->tenant + 1; /* ended by the zero behind it */
}

int64_t mc_store_remove_like(struct mc_store *store, const char *regex, bool force)
{
	Mc__St__RemoveLike msg = MC__ST__REMOVE_LIKE__INIT;
	Mc__St__RemoveLikeReply *reply;
	struct mc_cli_op *op;
	int64_t ret;
	void *any;
	int rc = mc_cli_op_begin(store, &op);

	if (rc < 0)
		return rc;
	msg.regex = (char *)(regex ? regex : "");
	msg.tenant = tenant_text(store);
	msg.force = force;
	mc_cli_cache_clear(store->cache);
	rc = mc_cli_call_pb(op, MC_ST_REMOVE_LIKE, &msg, &mc__st__remove_like_reply__descriptor,
			    &any);
	reply = any;
	if (rc < 0)
		ret = mc_cli_code_rpc(rc);
	else
		ret = reply->status < 0 ? reply->status : (int64_t)reply->removed;
	mc_cli_op_end(op);
	return ret;
}

struct lister {
	bool (*each)(void *user, const void *key, size_t key_len, uint64_t len,
		     unsigned memory_replicas, unsigned disk_replicas);
	void *user;
	size_t skip; /* bytes of the tenant before the user's key */
	int64_t n;
};

/* @return false: enough */
static bool list_page(struct lister *l, const Mc__St__ListReply *reply)
{
	for (size_t i = 0; i < reply->n_objects; i++) {
		const Mc__St__ListedObject *o = reply->objects[i];

		if (o->key.len < l->skip)
			continue;
		l->n++;
		if (!l->each(l->user, o->key.data + l->skip, o->key.len - l->skip, o->len,
			     o->memory_replicas, o->disk_replicas))
			return false;
	}
	return !reply->is_last && reply->n_objects > 0;
}

int64_t mc_store_list(struct mc_store *store, const char *prefix,
		      bool (*each)(void *user, const void *key, size_t key_len, uint64_t len,
				   unsigned memory_replicas, unsigned disk_replicas),
		      void *user)
{
	struct lister l = {.each = each, .user = user, .skip = store->tenant_len};
	Mc__St__List msg = MC__ST__LIST__INIT;
	const Mc__St__ListReply *reply;
	uint8_t after[MC_SLOT_KEY_MAX];
	struct mc_cli_op *op;
	bool is_more = true;
	void *any;
	int rc = 0;

	msg.prefix = (char *)(prefix ? prefix : "");
	msg.tenant = tenant_text(store);
	msg.max = LIST_PAGE;
	while (is_more) {
		const ProtobufCBinaryData *last;

		rc = mc_cli_op_begin(store, &op); /* each page has its own deadline and memory */
		if (rc < 0)
			return rc;
		rc = mc_cli_call_pb(op, MC_ST_LIST, &msg, &mc__st__list_reply__descriptor, &any);
		reply = any;
		is_more = rc == 0 && list_page(&l, reply);
		if (is_more) {
			last = &reply->objects[reply->n_objects - 1]->key;
			/* A page that does not go on would be asked for again and again. */
			is_more = last->len > 0 && last->len <= sizeof(after) &&
				  (last->len != msg.after.len ||
				   memcmp(last->data, after, last->len) != 0);
			if (is_more)
				memcpy(after, last->data, last->len);
			msg.after = (ProtobufCBinaryData){.data = after, .len = last->len};
		}
		mc_cli_op_end(op);
	}
	return rc < 0 ? mc_cli_code_rpc(rc) : l.n;
}

static json_t *segment_json(const Mc__St__Segment *s)
{
	char id[17];

	(void)snprintf(id, sizeof(id), "%016llx", (unsigned long long)s->owner);
	return json_pack("{s:s, s:s, s:s, s:s, s:I, s:I, s:I, s:I, s:I}", "id", id, "name", s->name,
			 "host", s->host, "state", s->state, "capacity", (json_int_t)s->capacity,
			 "used", (json_int_t)s->used, "disk_capacity", (json_int_t)s->disk_capacity,
			 "disk_used", (json_int_t)s->disk_used, "objects", (json_int_t)s->objects);
}

char *mc_store_segments_json(struct mc_store *store)
{
	Mc__St__Segments msg = MC__ST__SEGMENTS__INIT;
	const Mc__St__SegmentsReply *reply;
	struct mc_cli_op *op;
	json_t *list;
	char *text = NULL, *copy = NULL;
	void *any;

	if (mc_cli_op_begin(store, &op) < 0)
		return NULL;
	if (mc_cli_call_pb(op, MC_ST_SEGMENTS, &msg, &mc__st__segments_reply__descriptor, &any) ==
	    0) {
		reply = any;
		list = json_array();
		for (size_t i = 0; list && i < reply->n_segments; i++)
			(void)json_array_append_new(list, segment_json(reply->segments[i]));
		text = list ? json_dumps(list, 0) : NULL;
		json_decref(list);
	}
	mc_cli_op_end(op);
	if (text)
		copy = mc_strdup(text); /* the caller ends it with mc_text_free() */
	free(text);
	return copy;
}
