/*
 * world.c: see world.h. Everything runs on one loop.
 */
#include "client/world.h"

#include <setjmp.h>
#include <stdarg.h>
#include <string.h>
#include <time.h>

#include <cmocka.h>
#include <mooncake/engine.h>

#include "base/clock.h"
#include "base/crc.h"
#include "base/hash.h"
#include "base/str.h"
#include "base/sync.h"
#include "wire/pb.h"
#include "wire/store.pb-c.h"

#define REPLY_MAX (1u << 20)

static void reply_wr(struct mc_rpc_req *req, const struct mc_wr *w)
{
	assert_false(w->is_bad);
	(void)mc_rpc_reply(req, 0, w->start, mc_wr_len(w), NULL, 0);
}

static void reply_pb(struct mc_rpc_req *req, const ProtobufCMessage *msg)
{
	static uint8_t buf[REPLY_MAX];
	size_t len;

	assert_int_equal(mc_pb_pack(msg, buf, sizeof(buf), &len), 0);
	(void)mc_rpc_reply(req, 0, buf, len, NULL, 0);
}

/* A record of a message: read, carried out, answered. */
typedef void record_fn(void *user, struct mc_rd *in, struct mc_wr *out);

/* @return the answers to all of a message's records */
static struct mc_wr each_record(struct world *w, struct mc_rd *in, record_fn *one, void *user)
{
	static _Thread_local uint8_t buf[REPLY_MAX];
	struct mc_wr out = mc_wr_make(buf, sizeof(buf));
	int n = mc_st_count_decode(in);

	mc_wr_u32(&out, (uint32_t)n);
	pthread_mutex_lock(&w->mu);
	for (int i = 0; i < n; i++)
		one(user, in, &out);
	pthread_mutex_unlock(&w->mu);
	assert_false(in->is_bad);
	return out;
}

/* ---- master ---- */

static struct world_object *find(struct world *w, const uint8_t *key, uint16_t len)
{
	for (unsigned i = 0; i < WORLD_OBJECTS; i++)
		if (w->objects[i].is_there && w->objects[i].key_len == len &&
		    memcmp(w->objects[i].key, key, len) == 0)
			return &w->objects[i];
	return NULL;
}

struct world_object *world_find(struct world *w, const char *key)
{
	uint8_t full[64] = {0};
	struct world_object *o;

	memcpy(full + 1, key, strlen(key));
	pthread_mutex_lock(&w->mu);
	o = find(w, full, (uint16_t)(strlen(key) + 1));
	pthread_mutex_unlock(&w->mu);
	return o;
}

static void on_join(struct mc_rpc_req *req, const struct mc_rpc_msg *msg, void *user)
{
	Mc__St__JoinReply r = MC__ST__JOIN_REPLY__INIT;
	struct world *w = user;

	(void)msg;
	atomic_fetch_add(&w->joins, 1);
	r.epoch = w->epoch;
	r.first_gen = w->gen_next;
	r.ngens = 16;
	w->gen_next += 16;
	reply_pb(req, &r.base);
}

static void on_gens(struct mc_rpc_req *req, const struct mc_rpc_msg *msg, void *user)
{
	Mc__St__GensReply r = MC__ST__GENS_REPLY__INIT;
	struct world *w = user;

	(void)msg;
	r.first_gen = w->gen_next;
	r.ngens = 16;
	w->gen_next += 16;
	reply_pb(req, &r.base);
}

static void on_view(struct mc_rpc_req *req, const struct mc_rpc_msg *msg, void *user)
{
	Mc__St__ViewReply r = MC__ST__VIEW_REPLY__INIT;
	Mc__St__ViewOwner v[WORLD_OWNERS], *list[WORLD_OWNERS];
	char text[WORLD_OWNERS][MC_ADDR_TEXT_MAX];
	struct world *w = user;

	(void)msg;
	r.version = w->view_version;
	r.epoch = w->epoch;
	for (unsigned i = 0; i < w->nowners; i++) {
		mc__st__view_owner__init(&v[i]);
		v[i].id = w->owners[i].id;
		v[i].incarnation = w->owners[i].incarnation;
		v[i].segment = w->owners[i].segment;
		v[i].address = mc_addr_format(&w->owners[i].addr, text[i]);
		v[i].capacity = WORLD_POOL;
		v[i].free = WORLD_POOL / 2;
		v[i].takes_puts = true;
		list[i] = &v[i];
	}
	r.n_owners = w->nowners;
	r.owners = list;
	reply_pb(req, &r.base);
}

static bool is_early(struct world *w)
{
	int n = atomic_load(&w->recovering);

	while (n > 0)
		if (atomic_compare_exchange_weak(&w->recovering, &n, n - 1))
			return true;
	return false;
}

static void look_up(void *user, struct mc_rd *in, struct mc_wr *out)
{
	struct world *w = user;
	struct mc_st_object obj = {.status = MC_STORE_OBJECT_NOT_FOUND};
	struct world_object *o;
	struct mc_st_key key;

	mc_st_key_decode(in, &key);
	o = find(w, key.bytes, key.len);
	if (is_early(w))
		obj.status = MC_STORE_UNAVAILABLE_IN_CURRENT_STATUS;
	else if (o)
		obj = (struct mc_st_object){.lease_ms = atomic_load(&w->lease_ms),
					    .gen = o->gen,
					    .len = o->len,
					    .tlv_len = o->tlv_len,
					    .nreplicas = o->nreplicas};
	if (o)
		memcpy(obj.replicas, o->replicas, sizeof(obj.replicas));
	mc_st_object_encode(out, &obj);
}

static void on_lookup(struct mc_rpc_req *req, const struct mc_rpc_msg *msg, void *user)
{
	struct world *w = user;
	struct mc_rd in = mc_rd_make(msg->data, msg->len);
	struct mc_wr out;

	atomic_fetch_add(&w->lookups, 1);
	out = each_record(w, &in, look_up, w);
	reply_wr(req, &out);
}

static void ask(void *user, struct mc_rd *in, struct mc_wr *out)
{
	struct world *w = user;
	struct mc_st_key key;

	mc_st_key_decode(in, &key);
	mc_wr_u32(out, find(w, key.bytes, key.len) ? 0 : (uint32_t)MC_STORE_OBJECT_NOT_FOUND);
}

static void on_exist(struct mc_rpc_req *req, const struct mc_rpc_msg *msg, void *user)
{
	struct world *w = user;
	struct mc_rd in = mc_rd_make(msg->data, msg->len);
	struct mc_wr out;

	out = each_record(w, &in, ask, w);
	reply_wr(req, &out);
}

static struct world_slot *slot_at(struct world *w, const struct mc_st_replica *r, uint64_t gen)
{
	for (unsigned i = 0; i < w->nowners; i++)
		for (unsigned j = 0; w->owners[i].id == r->owner && j < WORLD_SLOTS; j++)
			if (w->owners[i].slots[j].addr == r->addr &&
			    w->owners[i].slots[j].gen == gen)
				return &w->owners[i].slots[j];
	return NULL;
}

static void slot_free(struct world_slot *s)
{
	mc_slot_clear((uint8_t *)(uintptr_t)s->addr);
	memset((uint8_t *)(uintptr_t)s->addr, 0xdd, 256);
	s->addr = 0;
}

static void replicas_free(struct world *w, const struct mc_st_replica *r, unsigned n, uint64_t gen)
{
	for (unsigned i = 0; i < n; i++) {
		struct world_slot *s = slot_at(w, &r[i], gen);

		if (s)
			slot_free(s);
	}
}

static void commit(struct world *w, const struct mc_st_commit *c, struct mc_st_committed *ret)
{
	struct world_object *o = find(w, c->key, c->key_len);
	uint8_t nreplicas = 0;

	*ret = (struct mc_st_committed){.gen = c->gen};
	if (o && o->gen == c->gen)
		return;
	for (; nreplicas < c->nreplicas; nreplicas++) {
		if (c->replicas[nreplicas].addr == MC_ST_LEFT_ADDR)
			break; /* behind the replicas: owners that were not heard */
		if (!slot_at(w, &c->replicas[nreplicas], c->gen)) {
			ret->status = MC_STORE_REPLICA_IS_GONE;
			return;
		}
	}
	if (o && !(c->flags & MC_ST_COMMIT_UPSERT)) {
		replicas_free(w, c->replicas, nreplicas, c->gen);
		*ret = (struct mc_st_committed){MC_STORE_OBJECT_ALREADY_EXISTS, o->gen};
		return;
	}
	if (o && c->gen < o->gen) {
		*ret = (struct mc_st_committed){MC_STORE_INVALID_VERSION, o->gen};
		return;
	}
	if (o)
		replicas_free(w, o->replicas, o->nreplicas, o->gen);
	for (unsigned i = 0; !o && i < WORLD_OBJECTS; i++)
		if (!w->objects[i].is_there)
			o = &w->objects[i];
	assert_non_null(o);
	assert_true(c->key_len <= sizeof(o->key));
	*o = (struct world_object){.is_there = true,
				   .key_len = c->key_len,
				   .tlv_len = c->tlv_len,
				   .gen = c->gen,
				   .len = c->len,
				   .nreplicas = nreplicas};
	memcpy(o->key, c->key, c->key_len);
	memcpy(o->replicas, c->replicas, nreplicas * sizeof(o->replicas[0]));
}

struct committing {
	struct world *w;
	bool is_stale, is_refused;
};

static void take_commit(void *user, struct mc_rd *in, struct mc_wr *out)
{
	struct committing *x = user;
	struct mc_st_committed done;
	struct mc_st_commit c;

	mc_st_commit_decode(in, &c);
	if (x->is_stale)
		done = (struct mc_st_committed){.status = MC_STORE_INVALID_VERSION};
	else if (x->is_refused)
		done = (struct mc_st_committed){.status = MC_STORE_TENANT_QUOTA_EXCEEDED};
	else
		commit(x->w, &c, &done);
	mc_st_committed_encode(out, &done);
}

static void on_commit(struct mc_rpc_req *req, const struct mc_rpc_msg *msg, void *user)
{
	struct world *w = user;
	bool is_stale = atomic_load(&w->stale) > 0;
	struct committing x = {w, is_stale, !is_stale && atomic_load(&w->refused) > 0};
	struct mc_rd in = mc_rd_make(msg->data, msg->len);
	struct mc_wr out;

	atomic_fetch_add(&w->commits, 1);
	if (x.is_stale)
		atomic_fetch_sub(&w->stale, 1);
	if (x.is_refused)
		atomic_fetch_sub(&w->refused, 1);
	out = each_record(w, &in, take_commit, &x);
	if (atomic_load(&w->lost) > 0) {
		atomic_fetch_sub(&w->lost, 1);
		/* As if the connection were cut after the index took it: nobody hears the answer.
		 */
		(void)mc_rpc_reply(req, -MC_E_UNAVAILABLE, NULL, 0, NULL, 0);
		return;
	}
	reply_wr(req, &out);
}

static void take_away(void *user, struct mc_rd *in, struct mc_wr *out)
{
	struct world *w = user;
	struct world_object *o;
	struct mc_st_key key;

	mc_st_key_decode(in, &key);
	o = find(w, key.bytes, key.len);
	if (o) {
		replicas_free(w, o->replicas, o->nreplicas, o->gen);
		o->is_there = false;
	}
	mc_wr_u32(out, o ? 0 : (uint32_t)MC_STORE_OBJECT_NOT_FOUND);
}

static void on_remove(struct mc_rpc_req *req, const struct mc_rpc_msg *msg, void *user)
{
	struct mc_rd in = mc_rd_make(msg->data, msg->len);
	uint32_t flags = mc_rd_u32(&in);
	struct mc_wr out;

	assert_true(flags <= 1);
	out = each_record(user, &in, take_away, user);
	reply_wr(req, &out);
}

static void take_bad(void *user, struct mc_rd *in, struct mc_wr *out)
{
	struct world *w = user;
	struct world_object *o;
	struct mc_st_bad b;

	mc_st_bad_decode(in, &b);
	atomic_fetch_add(&w->bads, 1);
	o = find(w, b.key, b.key_len);
	for (unsigned j = 0; o && o->gen == b.gen && j < o->nreplicas; j++)
		if (o->replicas[j].owner == b.replica.owner)
			o->replicas[j] = o->replicas[--o->nreplicas];
	if (o && o->nreplicas == 0)
		o->is_there = false;
	mc_wr_u32(out, 0);
}

static void on_bad(struct mc_rpc_req *req, const struct mc_rpc_msg *msg, void *user)
{
	struct world *w = user;
	struct mc_rd in = mc_rd_make(msg->data, msg->len);
	struct mc_wr out;

	out = each_record(w, &in, take_bad, w);
	reply_wr(req, &out);
}

static void on_list(struct mc_rpc_req *req, const struct mc_rpc_msg *msg, void *user)
{
	Mc__St__ListReply r = MC__ST__LIST_REPLY__INIT;
	Mc__St__ListedObject v[WORLD_OBJECTS / 16], *list[WORLD_OBJECTS / 16];
	struct world *w = user;

	(void)msg;
	pthread_mutex_lock(&w->mu);
	for (unsigned i = 0; i < WORLD_OBJECTS && r.n_objects < MC_ARRAY_LEN(v); i++) {
		if (!w->objects[i].is_there)
			continue;
		mc__st__listed_object__init(&v[r.n_objects]);
		v[r.n_objects].key.data = w->objects[i].key;
		v[r.n_objects].key.len = w->objects[i].key_len;
		v[r.n_objects].len = w->objects[i].len;
		v[r.n_objects].memory_replicas = w->objects[i].nreplicas;
		list[r.n_objects] = &v[r.n_objects];
		r.n_objects++;
	}
	r.objects = list;
	r.is_last = true;
	reply_pb(req, &r.base);
	pthread_mutex_unlock(&w->mu);
}

static void master_serve(struct world *w, const struct mc_addr *at)
{
	const struct mc_rpc_method methods[] = {
	    {MC_ST_JOIN, "join", on_join, w},	    {MC_ST_VIEW, "view", on_view, w},
	    {MC_ST_GENS, "gens", on_gens, w},	    {MC_ST_LOOKUP, "lookup", on_lookup, w},
	    {MC_ST_EXIST, "exist", on_exist, w},    {MC_ST_COMMIT, "commit", on_commit, w},
	    {MC_ST_REMOVE, "remove", on_remove, w}, {MC_ST_BAD, "bad", on_bad, w},
	    {MC_ST_LIST, "list", on_list, w},
	};
	struct mc_rpc_server_opts opts = {.methods = methods, .nmethods = MC_ARRAY_LEN(methods)};

	assert_int_equal(mc_rpc_server_open(&mc_env_real, w->loop, &opts, &w->master), 0);
	assert_int_equal(mc_rpc_server_listen(w->master, at, &w->addr), 0);
}

void world_master_down(struct world *w)
{
	mc_rpc_server_close(w->master);
	w->master = NULL;
}

void world_master_up(struct world *w)
{
	struct mc_addr at = w->addr;

	w->epoch++;
	w->gen_next = w->epoch << 40 | 1;
	master_serve(w, &at);
}

/* ---- owners ---- */

/* Mute: the request waits until the world ends. */
static void hold(struct world_owner *o, struct mc_rpc_req *req)
{
	assert_true(o->nheld < WORLD_HELD);
	o->held[o->nheld++] = req;
}

static bool is_held(struct world_owner *o, struct mc_rpc_req *req)
{
	if (!atomic_load(&o->is_mute))
		return false;
	hold(o, req);
	return true;
}

/* The answer of what was done, unless nobody hears it. */
static void reply_owner(struct world_owner *o, struct mc_rpc_req *req, const struct mc_wr *w)
{
	if (atomic_load(&o->is_cut))
		hold(o, req);
	else
		reply_wr(req, w);
}

static struct mc_slot_info info_of(const struct world_owner *o, const struct world_slot *s)
{
	struct mc_slot_info info = {.gen = s->gen,
				    .incarnation = o->incarnation,
				    .key_hash = mc_hash64(s->key, s->key_len, 0),
				    .len = s->len,
				    .key = s->key,
				    .tlv = s->tlv,
				    .key_len = s->key_len,
				    .tlv_len = s->tlv_len};

	assert_int_equal(mc_slot_layout(&info), 0);
	return info;
}

static struct world_slot *grant(struct world_owner *o, const struct mc_st_grant *g)
{
	struct world_slot *s = NULL;
	struct mc_slot_info info;

	for (unsigned i = 0; i < WORLD_SLOTS; i++) {
		struct world_slot *x = &o->slots[i];

		if (x->addr && x->gen == g->gen && x->key_len == g->key_len &&
		    memcmp(x->key, g->key, g->key_len) == 0)
			return x;
		if (!x->addr && !s)
			s = x;
	}
	assert_non_null(s);
	assert_true(g->key_len <= sizeof(s->key) && g->tlv_len <= sizeof(s->tlv));
	*s = (struct world_slot){
	    .gen = g->gen, .len = g->len, .key_len = g->key_len, .tlv_len = g->tlv_len};
	memcpy(s->key, g->key, g->key_len);
	if (g->tlv_len)
		memcpy(s->tlv, g->tlv, g->tlv_len);
	info = info_of(o, s);
	o->used = (o->used + 4095) & ~4095ull;
	assert_true(o->used + info.slot_len <= WORLD_POOL);
	s->addr = (uintptr_t)o->pool + o->used;
	o->used += info.slot_len;
	return s;
}

static void seal(struct world_owner *o, struct world_slot *s, const uint32_t *table)
{
	struct mc_slot_info info = info_of(o, s);
	uint8_t *image = (uint8_t *)(uintptr_t)s->addr;
	uint32_t *own = mc_calloc(info.nchunks, sizeof(*own));

	for (uint32_t i = 0; i < info.nchunks; i++)
		own[i] = table
			     ? table[i]
			     : mc_slot_chunk_crc(
				   &info, i, image + info.payload_off + (uint64_t)i * MC_SLOT_CHUNK,
				   mc_slot_chunk_len(&info, i));
	if (atomic_load(&o->flips) > 0) {
		atomic_fetch_sub(&o->flips, 1);
		image[info.payload_off + s->len / 2] ^= 1;
	}
	mc_slot_seal(&info, own, image);
	s->is_sealed = true;
	mc_free(own);
}

struct granting {
	struct world_owner *o;
	bool is_put;
};

static void take_grant(void *user, struct mc_rd *in, struct mc_wr *out)
{
	struct granting *x = user;
	struct world_owner *o = x->o;
	struct mc_st_granted done = {.incarnation = o->incarnation};
	struct mc_st_grant g;

	mc_st_grant_decode(in, &g, x->is_put);
	atomic_fetch_add(x->is_put ? &o->puts : &o->grants, 1);
	if (atomic_load(&o->full) > 0) {
		atomic_fetch_sub(&o->full, 1);
		done.status = MC_STORE_NO_AVAILABLE_HANDLE;
	} else {
		struct world_slot *s = grant(o, &g);
		struct mc_slot_info info = info_of(o, s);

		done.addr = s->addr;
		if (x->is_put && !s->is_sealed) {
			memcpy((uint8_t *)(uintptr_t)s->addr + info.payload_off, g.payload, g.len);
			seal(o, s, NULL);
		}
	}
	mc_st_granted_encode(out, &done);
}

static void on_grant(struct mc_rpc_req *req, const struct mc_rpc_msg *msg, void *user)
{
	struct world_owner *o = user;
	struct granting x = {o, req->method == MC_ST_PUT};
	struct mc_rd in = mc_rd_make(msg->data, msg->len);
	struct mc_wr out;

	if (is_held(o, req))
		return;
	out = each_record(o->w, &in, take_grant, &x);
	if (x.is_put)
		reply_owner(o, req, &out);
	else
		reply_wr(req, &out);
}

static struct world_slot *slot_find(struct world_owner *o, uint64_t addr, uint64_t gen)
{
	for (unsigned i = 0; i < WORLD_SLOTS; i++)
		if (o->slots[i].addr == addr && o->slots[i].gen == gen)
			return &o->slots[i];
	return NULL;
}

/* Are they the bytes that the writer meant? */
static bool is_meant(struct world_owner *o, const struct world_slot *s, const struct mc_st_seal *m)
{
	struct mc_slot_info info = info_of(o, s);
	uint8_t *payload = (uint8_t *)(uintptr_t)s->addr + info.payload_off;
	uint32_t crc = mc_st_seal_crc(m);

	if (!(m->flags & MC_ST_SEAL_COMPUTE))
		return true;
	if (atomic_load(&o->wire_flips) > 0) {
		atomic_fetch_sub(&o->wire_flips, 1);
		payload[s->len / 3] ^= 8;
	}
	atomic_fetch_add(&o->checked, crc != 0);
	return crc == 0 || crc == mc_crc32c(0, payload, s->len);
}

static void take_seal(void *user, struct mc_rd *in, struct mc_wr *out)
{
	struct world_owner *o = user;
	uint32_t table[4096];
	struct world_slot *s;
	struct mc_st_seal m;
	int32_t status = 0;

	mc_st_seal_decode(in, &m);
	atomic_fetch_add(&o->seals, 1);
	s = slot_find(o, m.addr, m.gen);
	assert_true(m.nchunks <= MC_ARRAY_LEN(table));
	if (m.nchunks)
		memcpy(table, m.table, m.nchunks * sizeof(uint32_t));
	if (!s) {
		status = MC_STORE_REPLICA_IS_GONE;
	} else if (!is_meant(o, s, &m)) {
		status = MC_STORE_CHECKSUM_MISMATCH;
		slot_free(s);
	} else {
		seal(o, s, m.flags & MC_ST_SEAL_COMPUTE ? NULL : table);
	}
	mc_wr_u32(out, (uint32_t)status);
}

static void on_seal(struct mc_rpc_req *req, const struct mc_rpc_msg *msg, void *user)
{
	struct world_owner *o = user;
	struct mc_rd in = mc_rd_make(msg->data, msg->len);
	struct mc_wr out;

	if (is_held(o, req))
		return;
	out = each_record(o->w, &in, take_seal, o);
	reply_owner(o, req, &out);
}

static struct world_slot *slot_of_gen(struct world_owner *o, uint64_t gen)
{
	for (unsigned i = 0; i < WORLD_SLOTS; i++)
		if (o->slots[i].addr && o->slots[i].gen == gen)
			return &o->slots[i];
	return NULL;
}

static void take_drop(void *user, struct mc_rd *in, struct mc_wr *out)
{
	struct world_owner *o = user;
	struct world_slot *s;
	struct mc_st_place p;
	bool is_told;

	mc_st_place_decode(in, &p);
	atomic_fetch_add(&o->drops, 1);
	s = p.addr ? slot_find(o, p.addr, p.gen) : slot_of_gen(o, p.gen);
	is_told = s && s->is_told;
	if (s && !is_told)
		slot_free(s);
	mc_wr_u32(out, is_told ? (uint32_t)MC_STORE_OBJECT_ALREADY_EXISTS : 0);
}

static void on_drop(struct mc_rpc_req *req, const struct mc_rpc_msg *msg, void *user)
{
	struct world_owner *o = user;
	struct mc_rd in = mc_rd_make(msg->data, msg->len);
	struct mc_wr out;

	if (atomic_load(&o->is_cut)) {
		hold(o, req);
		return;
	}
	out = each_record(o->w, &in, take_drop, o);
	reply_wr(req, &out);
}

static void take_regen(void *user, struct mc_rd *in, struct mc_wr *out)
{
	struct world_owner *o = user;
	struct world_slot *s;
	struct mc_st_regen g;

	mc_st_regen_decode(in, &g);
	atomic_fetch_add(&o->regens, 1);
	s = slot_find(o, g.addr, g.gen);
	if (s && atomic_load(&o->told) > 0) {
		atomic_fetch_sub(&o->told, 1);
		s->is_told = true;
		s = NULL;
	}
	if (s) {
		s->gen = g.new_gen;
		seal(o, s, NULL);
	}
	mc_wr_u32(out, s ? 0 : (uint32_t)MC_STORE_REPLICA_IS_GONE);
}

static void on_regen(struct mc_rpc_req *req, const struct mc_rpc_msg *msg, void *user)
{
	struct world_owner *o = user;
	struct mc_rd in = mc_rd_make(msg->data, msg->len);
	struct mc_wr out;

	out = each_record(o->w, &in, take_regen, o);
	reply_wr(req, &out);
}

static void on_writer(struct mc_rpc_req *req, const struct mc_rpc_msg *msg, void *user)
{
	(void)user;
	(void)mc_rpc_reply(req, msg->len > 0 ? 0 : -MC_E_PROTO, NULL, 0, NULL, 0);
}

static void owner_open(struct world *w, unsigned i, const struct mc_addr *host)
{
	struct world_owner *o = &w->owners[i];
	const struct mc_rpc_method methods[] = {
	    {MC_ST_PUT, "put", on_grant, o},	 {MC_ST_GRANT, "grant", on_grant, o},
	    {MC_ST_SEAL, "seal", on_seal, o},	 {MC_ST_DROP, "drop", on_drop, o},
	    {MC_ST_REGEN, "regen", on_regen, o}, {MC_ST_WRITER, "writer", on_writer, o},
	};
	struct mc_rpc_server_opts opts = {.methods = methods, .nmethods = MC_ARRAY_LEN(methods)};
	struct mc_engine_opts eo = {.size = sizeof(eo), .name = "127.0.0.1"};

	o->w = w;
	o->id = 100 + i;
	o->incarnation = 7000 + i;
	assert_int_equal(mc_engine_open(&eo, NULL, &o->eng), 0);
	(void)mc_strlcpy(o->segment, sizeof(o->segment), mc_engine_name(o->eng));
	o->pool = mc_mem_alloc(o->eng, WORLD_POOL);
	assert_non_null(o->pool);
	assert_int_equal(mc_rpc_server_open(&mc_env_real, w->loop, &opts, &o->server), 0);
	assert_int_equal(mc_rpc_server_listen(o->server, host, &o->addr), 0);
}

void world_owner_kill(struct world *w, unsigned i)
{
	struct world_owner *o = &w->owners[i];

	mc_rpc_server_close(o->server);
	o->server = NULL;
	(void)mc_mem_free(o->eng, o->pool);
	mc_engine_close(o->eng);
	o->eng = NULL;
}

struct world *world_open(unsigned nowners)
{
	struct world *w = mc_calloc(1, sizeof(*w));
	struct mc_addr host;

	assert_non_null(w);
	pthread_mutex_init(&w->mu, NULL);
	w->nowners = nowners;
	w->epoch = 1;
	w->view_version = 1;
	w->gen_next = w->epoch << 40 | 1;
	atomic_store(&w->lease_ms, 5000);
	assert_int_equal(mc_loop_open("world", &mc_clock_real, &w->loop), 0);
	assert_int_equal(mc_loop_start(w->loop), 0);
	assert_int_equal(mc_addr_parse("127.0.0.1:0", 0, &host), 0);
	master_serve(w, &host);
	(void)mc_addr_format(&w->addr, w->master_text);
	for (unsigned i = 0; i < nowners; i++)
		owner_open(w, i, &host);
	return w;
}

void world_close(struct world *w)
{
	if (w->master)
		mc_rpc_server_close(w->master);
	for (unsigned i = 0; i < w->nowners; i++) {
		struct world_owner *o = &w->owners[i];

		if (o->server)
			mc_rpc_server_close(o->server);
		for (unsigned j = 0; j < o->nheld; j++)
			(void)mc_rpc_reply(o->held[j], -MC_E_CLOSED, NULL, 0, NULL, 0);
		if (o->eng) {
			(void)mc_mem_free(o->eng, o->pool);
			mc_engine_close(o->eng);
		}
	}
	mc_loop_close(w->loop);
	pthread_mutex_destroy(&w->mu);
	mc_free(w);
}

struct mc_store *world_store(struct world *w, uint32_t timeout_ms)
{
	struct mc_store_opts opts = {.size = sizeof(opts),
				     .name = "127.0.0.1",
				     .master = w->master_text,
				     .buffer_bytes = 64 << 20,
				     .timeout_ms = timeout_ms};
	struct mc_store *st;
	struct mc_diag diag;

	if (mc_store_open(&opts, &diag, &st) < 0)
		fail_msg("%s", diag.text);
	return st;
}

unsigned world_slots(struct world *w, unsigned i)
{
	unsigned n = 0;

	pthread_mutex_lock(&w->mu);
	for (unsigned j = 0; j < WORLD_SLOTS; j++)
		n += w->owners[i].slots[j].addr != 0;
	pthread_mutex_unlock(&w->mu);
	return n;
}

void world_slots_wait(struct world *w, unsigned i, unsigned n)
{
	uint64_t until_ns = mc_now_ns() + 20 * MC_NS_PER_S; /* far above what it takes */
	_Atomic uint32_t nobody = 0;

	while (world_slots(w, i) != n) {
		if (mc_now_ns() > until_ns)
			fail_msg("owner %u has %u slots, not %u", i, world_slots(w, i), n);
		(void)!mc_futex_wait(&nobody, 0, mc_now_ns() + 5 * MC_NS_PER_MS);
	}
}

void world_free(struct world *w, const char *key)
{
	struct world_object *o = world_find(w, key);

	assert_non_null(o);
	pthread_mutex_lock(&w->mu);
	replicas_free(w, o->replicas, o->nreplicas, o->gen);
	o->is_there = false;
	pthread_mutex_unlock(&w->mu);
}
