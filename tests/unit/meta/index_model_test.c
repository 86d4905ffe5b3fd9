/*
 * index_model_test.c: random calls against a model of arrays: what each call promises is checked
 * after each step, sums after some. The seed is printed when something is wrong.
 */
#include "meta/index.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

#include "base/hash.h"
#include "base/mem.h"
#include "base/rand.h"
#include "meta/slot.h"
#include "mooncake/store.h"

#define KEYS 60u
#define OWNERS 4u
#define TTL_MS 800u
#define PENDING_MAX 4096u

struct object {
	uint64_t gen, len, lease_ms;
	bool is_hard, is_hidden, is_committed;
	uint32_t n;
	struct mc_st_replica r[MC_ST_REPLICAS_MAX];
};

struct model {
	struct mc_index *ix;
	struct mc_rand rand;
	uint64_t now_ms, gen, addr;
	uint8_t name[KEYS][8];
	struct mc_st_key key[KEYS];
	uint64_t hash[KEYS];
	struct object o[KEYS]; /* gen 0: not there */
	bool is_there[OWNERS], is_suspect[OWNERS], is_unannounced[OWNERS];
	struct mc_index_free pending[PENDING_MAX];
	uint32_t npending;
	struct mc_index_frees frees;
};

static uint64_t owner_id(uint32_t i)
{
	return 100 + i;
}

static void model_open(struct model *m, uint64_t seed)
{
	const struct mc_index_conf conf = {.seed = seed,
					   .lease_ttl_ms = TTL_MS,
					   .soft_pin_ttl_ms = 2000,
					   .soft_pin_ttl_max_ms = 5000,
					   .may_evict_soft_pinned = true,
					   .quota = UINT64_MAX,
					   .tombs_max = 1000000};

	memset(m, 0, sizeof(*m));
	mc_rand_seed(&m->rand, seed);
	m->now_ms = 1000;
	assert_int_equal(mc_index_open(&conf, &m->ix), 0);
	for (uint32_t k = 0; k < KEYS; k++) {
		int len = snprintf((char *)m->name[k] + 1, sizeof(m->name[k]) - 1, "k%u", k);

		m->key[k] = (struct mc_st_key){.len = (uint16_t)(len + 1), .bytes = m->name[k]};
		m->hash[k] = mc_hash64(m->name[k], m->key[k].len, 0);
	}
	for (uint32_t i = 0; i < OWNERS; i++) {
		assert_int_equal(mc_index_owner_join(m->ix, owner_id(i)), 0);
		mc_index_owner_announced(m->ix, owner_id(i));
		m->is_there[i] = true;
	}
}

static bool is_pending(const struct model *m, uint64_t hash)
{
	for (uint32_t i = 0; i < m->npending; i++)
		if (m->pending[i].key_hash == hash)
			return true;
	return false;
}

static bool any_unannounced(const struct model *m)
{
	for (uint32_t i = 0; i < OWNERS; i++)
		if (m->is_unannounced[i])
			return true;
	return false;
}

/* What was to be freed by the call: it names each of these once, all with owners that are there. */
static void take_frees(struct model *m)
{
	for (size_t i = 0; i < m->frees.n; i++) {
		const struct mc_index_free *f = &m->frees.v[i];

		assert_true(m->npending < PENDING_MAX);
		if (f->owner)
			assert_true(m->is_there[f->owner - 100]);
		else
			assert_true(any_unannounced(m));
		for (uint32_t j = 0; j < m->npending; j++)
			assert_false(m->pending[j].owner == f->owner &&
				     m->pending[j].addr == f->addr && m->pending[j].gen == f->gen);
		m->pending[m->npending++] = *f;
	}
	m->frees.n = 0;
}

static bool was_freed(const struct model *m, uint64_t owner, uint64_t addr, uint64_t gen)
{
	for (size_t i = 0; i < m->frees.n; i++)
		if (m->frees.v[i].owner == owner && m->frees.v[i].addr == addr &&
		    m->frees.v[i].gen == gen)
			return true;
	return false;
}

/* A tombstone is asked for, or was. */
static bool is_tomb_asked(const struct model *m, uint64_t hash, uint64_t gen)
{
	for (uint32_t i = 0; i < m->npending; i++)
		if (!m->pending[i].owner && m->pending[i].addr == hash && m->pending[i].gen == gen)
			return true;
	return was_freed(m, 0, hash, gen);
}

static void expect_freed(const struct model *m, const struct object *o)
{
	for (uint32_t i = 0; i < o->n; i++)
		assert_true(was_freed(m, o->r[i].owner, o->r[i].addr, o->gen));
}

static bool is_hidden(const struct model *m, uint32_t k)
{
	return m->o[k].is_hidden;
}

static void check_key(struct model *m, uint32_t k)
{
	const struct object *o = &m->o[k];
	struct mc_index_request q;
	struct mc_st_object got;
	int rc;

	assert_int_equal(mc_index_begin(m->ix, &q, m->now_ms, &m->key[k], 1), 0);
	rc = mc_index_lookup(&q, 0, MC_INDEX_QUIET, &got);
	if (rc == MC_INDEX_WAIT) {
		struct mc_index_view v;

		assert_true(is_hidden(m, k));
		assert_int_equal(mc_index_view(&q, 0, &v), 0);
		got = v.object;
		rc = 0;
	} else {
		assert_false(is_hidden(m, k));
	}
	mc_index_end(&q);
	if (!o->gen) {
		assert_int_equal(rc, MC_STORE_OBJECT_NOT_FOUND);
		return;
	}
	assert_int_equal(rc, 0);
	assert_true(got.gen == o->gen && got.len == o->len);
	assert_int_equal(got.nreplicas, o->n);
	for (uint32_t i = 0; i < o->n; i++) {
		uint32_t j = 0;

		while (j < o->n && (got.replicas[j].owner != o->r[i].owner ||
				    got.replicas[j].addr != o->r[i].addr ||
				    got.replicas[j].kind != o->r[i].kind))
			j++;
		assert_true(j < o->n);
	}
	for (uint32_t i = 1; i < o->n; i++)
		assert_false(m->is_suspect[got.replicas[i - 1].owner - 100] &&
			     !m->is_suspect[got.replicas[i].owner - 100]);
}

static struct mc_st_replica new_replica(struct model *m)
{
	return (struct mc_st_replica){.owner = owner_id((uint32_t)mc_rand_below(&m->rand, OWNERS)),
				      .addr = m->addr += 64,
				      .kind = (uint8_t)mc_rand_below(&m->rand, 2)};
}

static uint16_t make_tlv(struct model *m, uint32_t k, uint8_t tlv[64], bool *ret_is_hard)
{
	uint16_t n = 0;

	*ret_is_hard = mc_rand_below(&m->rand, 12) == 0;
	if (k % 6) {
		memcpy(tlv, "\x02\0\x08\0", 4);
		memcpy(tlv + 4, &m->hash[k - 1], 8);
		n = 12;
	}
	if (*ret_is_hard || mc_rand_below(&m->rand, 5) == 0) {
		memcpy(tlv + n, "\x03\0\x10\0", 4);
		memset(tlv + n + 4, 0, 16);
		tlv[n + 4] = *ret_is_hard;
		tlv[n + 5] = (uint8_t)mc_rand_below(&m->rand, 3);
		n = (uint16_t)(n + 20);
	}
	if (mc_rand_below(&m->rand, 6) == 0) {
		memcpy(tlv + n, "\x01\0\x01\0", 4);
		tlv[n + 4] = (uint8_t)('a' + k % 3);
		n = (uint16_t)(n + 5);
	}
	return n;
}

/* Replicas at owners that are not there do not count. */
static void keep_there(const struct model *m, const struct mc_st_commit *c, struct object *o)
{
	for (uint32_t i = 0; i < c->nreplicas; i++)
		if (m->is_there[c->replicas[i].owner - 100] && o->n < MC_ST_REPLICAS_MAX)
			o->r[o->n++] = c->replicas[i];
}

static void step_commit(struct model *m, uint32_t k)
{
	struct mc_index_request q;
	struct object was = m->o[k], now = {.lease_ms = 0};
	struct mc_st_commit c = {.gen = ++m->gen, .len = mc_rand_below(&m->rand, 1000)};
	bool is_upsert = mc_rand_below(&m->rand, 3) == 0, is_same = false;
	uint8_t tlv[64];
	uint64_t gen;
	int rc;

	c.tlv_len = make_tlv(m, k, tlv, &now.is_hard);
	c.tlv = tlv;
	c.flags = is_upsert ? MC_ST_COMMIT_UPSERT : 0;
	c.nreplicas = (uint8_t)(1 + mc_rand_below(&m->rand, 3));
	for (uint32_t i = 0; i < c.nreplicas; i++)
		c.replicas[i] = new_replica(m);
	if (was.gen && mc_rand_below(&m->rand, 4) == 0) {
		is_same = true;
		c.gen = was.gen;
		c.len = was.len;
	} else if (was.gen > 1 && mc_rand_below(&m->rand, 4) == 0) {
		c.gen = was.gen - 1;
	}
	now.gen = c.gen;
	now.len = c.len;
	now.is_committed = true;
	keep_there(m, &c, &now);
	assert_int_equal(mc_index_begin(m->ix, &q, m->now_ms, &m->key[k], 1), 0);
	rc = mc_index_commit(&q, 0, &c, &m->frees, &gen);
	mc_index_end(&q);
	if (!was.gen && is_pending(m, m->hash[k])) {
		assert_int_equal(rc, MC_INDEX_WAIT);
		assert_int_equal(m->frees.n, 0);
	} else if (is_same) {
		bool has_tomb = false;

		keep_there(m, &c, &m->o[k]);
		m->o[k].is_committed = true;
		for (size_t i = 0; i < m->frees.n; i++)
			has_tomb |= m->frees.v[i].owner == 0 && m->frees.v[i].gen == c.gen - 1;
		assert_true(!has_tomb || is_upsert);
		take_frees(m);
		m->o[k].is_hidden |= has_tomb;
		assert_int_equal(rc, now.n == 0 && was.n < MC_ST_REPLICAS_MAX
					 ? MC_STORE_INVALID_REPLICA
				     : is_hidden(m, k) ? MC_INDEX_WAIT
						       : 0);
		assert_int_equal(gen, was.gen);
	} else if (was.gen && !is_upsert) {
		assert_int_equal(rc, MC_STORE_OBJECT_ALREADY_EXISTS);
		assert_int_equal(gen, was.gen);
		expect_freed(m, &now);
	} else if (was.gen && c.gen < was.gen) {
		assert_int_equal(rc, MC_STORE_INVALID_VERSION);
		assert_int_equal(m->frees.n, 0);
	} else if (!now.n) {
		assert_int_equal(rc, MC_STORE_INVALID_REPLICA);
	} else {
		expect_freed(m, &was);
		if (is_upsert && any_unannounced(m))
			assert_true(is_tomb_asked(m, m->hash[k], c.gen - 1));
		m->o[k] = now;
		take_frees(m);
		m->o[k].is_hidden = is_pending(m, m->hash[k]);
		assert_int_equal(rc, is_hidden(m, k) ? MC_INDEX_WAIT : 0);
	}
	take_frees(m);
}

static void step_lookup(struct model *m)
{
	struct mc_index_request q;
	struct mc_st_key keys[6];
	uint32_t first = (uint32_t)mc_rand_below(&m->rand, KEYS / 6) * 6, n = 0;
	bool is_exist = mc_rand_below(&m->rand, 2) == 0;

	for (uint32_t i = 0; i < 6; i++)
		keys[n++] = m->key[first + i];
	assert_int_equal(mc_index_begin(m->ix, &q, m->now_ms, keys, n), 0);
	for (uint32_t i = 0; i < n; i++) {
		struct mc_st_object got;
		int rc = is_exist ? mc_index_exist(&q, i, 0) : mc_index_lookup(&q, i, 0, &got);

		if (rc != 0)
			continue;
		m->o[first + i].lease_ms = m->now_ms + TTL_MS;
		if (!is_exist)
			assert_int_equal(got.lease_ms, TTL_MS);
	}
	mc_index_end(&q);
}

static void step_remove(struct model *m, uint32_t k)
{
	struct mc_index_request q;
	struct object was = m->o[k];
	bool is_forced = mc_rand_below(&m->rand, 2) == 0;
	int rc;

	assert_int_equal(mc_index_begin(m->ix, &q, m->now_ms, &m->key[k], 1), 0);
	rc = mc_index_remove(&q, 0, is_forced ? MC_INDEX_FORCE : 0, &m->frees);
	mc_index_end(&q);
	if (!was.gen) {
		assert_int_equal(rc, MC_STORE_OBJECT_NOT_FOUND);
	} else if (!is_forced && was.lease_ms > m->now_ms) {
		assert_int_equal(rc, MC_STORE_OBJECT_HAS_LEASE);
	} else if (rc == 0) {
		expect_freed(m, &was);
		if (any_unannounced(m))
			assert_true(is_tomb_asked(m, m->hash[k], was.gen));
		m->o[k] = (struct object){0};
	} else { /* its group is leased, or the lease's last tick is not over */
		assert_int_equal(rc, MC_STORE_OBJECT_HAS_LEASE);
	}
	take_frees(m);
}

static void forget_replica(struct object *o, uint32_t i)
{
	o->r[i] = o->r[--o->n];
	if (!o->n)
		*o = (struct object){0};
}

static void step_drop(struct model *m, uint32_t k)
{
	struct mc_index_request q;
	struct object *o = &m->o[k];
	uint32_t i;

	if (!o->n)
		return;
	i = (uint32_t)mc_rand_below(&m->rand, o->n);
	assert_int_equal(mc_index_begin(m->ix, &q, m->now_ms, &m->key[k], 1), 0);
	assert_int_equal(mc_index_drop(&q, 0, o->gen + 1, &o->r[i], MC_GONE_DAMAGED, &m->frees),
			 MC_STORE_OBJECT_NOT_FOUND);
	assert_int_equal(mc_index_drop(&q, 0, o->gen, &o->r[i], MC_GONE_DAMAGED, &m->frees), 0);
	mc_index_end(&q);
	assert_true(was_freed(m, o->r[i].owner, o->r[i].addr, o->gen));
	forget_replica(o, i);
	take_frees(m);
}

/* Everything that left was allowed to, and is of this pool or of a group. */
/* A free of memory whose owner has the object on its disk, too: a lease does not keep that. */
static bool is_covered(const struct object *o, const struct mc_index_free *f)
{
	for (uint32_t i = 0; f->kind == MC_ST_MEMORY && i < o->n; i++)
		if (o->r[i].kind == MC_ST_DISK && o->r[i].owner == f->owner)
			return true;
	return false;
}

static void step_evict(struct model *m)
{
	uint32_t owner = (uint32_t)mc_rand_below(&m->rand, OWNERS);
	unsigned kind = (unsigned)mc_rand_below(&m->rand, 2);
	uint64_t want = 1 + mc_rand_below(&m->rand, 2000), retry_ms, got;

	got = mc_index_evict(m->ix, m->now_ms, owner_id(owner), kind, want, 100, &m->frees,
			     &retry_ms);
	if (got < want)
		assert_true(retry_ms >= m->now_ms);
	for (size_t f = 0; f < m->frees.n; f++) {
		const struct mc_index_free *v = &m->frees.v[f];
		uint32_t k = 0, i = 0;

		if (!v->owner)
			continue;
		while (k < KEYS && m->hash[k] != v->key_hash)
			k++;
		assert_true(k < KEYS && m->o[k].gen == v->gen);
		assert_int_equal(v->kind, kind);
		assert_false(m->o[k].is_hard);
		assert_false(is_hidden(m, k));
		assert_true(m->o[k].lease_ms <= m->now_ms || is_covered(&m->o[k], v));
		while (i < m->o[k].n && m->o[k].r[i].addr != v->addr)
			i++;
		assert_true(i < m->o[k].n);
		forget_replica(&m->o[k], i);
	}
	take_frees(m);
}

static void step_freed(struct model *m)
{
	uint32_t i;
	struct mc_index_free f;
	uint64_t hash;
	int rc;

	if (!m->npending)
		return;
	i = (uint32_t)mc_rand_below(&m->rand, m->npending);
	f = m->pending[i];
	m->pending[i] = m->pending[--m->npending];
	if (!f.owner) {
		const struct mc_index_tomb t = {.key_hash = f.key_hash, .gen = f.gen};

		assert_int_equal(mc_index_entomb(m->ix, &t), 0);
	}
	rc = mc_index_freed(m->ix, f.owner, f.addr, f.gen, &hash);
	assert_int_equal(rc, !is_pending(m, f.key_hash));
	for (uint32_t k = 0; rc && k < KEYS; k++)
		m->o[k].is_hidden &= m->hash[k] != f.key_hash;
	assert_true(hash == f.key_hash);
	assert_int_equal(mc_index_freed(m->ix, f.owner, f.addr, f.gen, &hash), -MC_E_NOENT);
}

static void forget_owner(struct model *m, uint32_t owner, int kind)
{
	for (uint32_t k = 0; k < KEYS; k++)
		for (uint32_t i = m->o[k].n; i-- > 0;)
			if (m->o[k].n > i && m->o[k].r[i].owner == owner_id(owner) &&
			    (kind < 0 || m->o[k].r[i].kind == kind))
				forget_replica(&m->o[k], i);
}

static void step_owner(struct model *m)
{
	uint32_t i = (uint32_t)mc_rand_below(&m->rand, OWNERS);
	unsigned kind = (unsigned)mc_rand_below(&m->rand, 2);

	switch (mc_rand_below(&m->rand, 6)) {
	case 0:
		mc_index_owner_suspect(m->ix, owner_id(i));
		m->is_suspect[i] = m->is_there[i];
		break;
	case 1:
		assert_int_equal(mc_index_owner_away(m->ix, owner_id(i)), 0);
		m->is_there[i] = m->is_suspect[i] = false;
		m->is_unannounced[i] = true;
		forget_owner(m, i, -1);
		break;
	case 2:
		assert_int_equal(mc_index_owner_drop(m->ix, owner_id(i), kind), 0);
		m->is_unannounced[i] = true;
		forget_owner(m, i, (int)kind);
		break;
	case 3:
		mc_index_owner_announced(m->ix, owner_id(i));
		m->is_unannounced[i] = false;
		break;
	default:
		assert_int_equal(mc_index_owner_join(m->ix, owner_id(i)), 0);
		m->is_there[i] = true;
		m->is_suspect[i] = false;
	}
}

/* A free that was not answered guards against what comes back under another address. */
static bool is_guarded(const struct model *m, uint64_t hash, uint64_t owner, uint64_t gen)
{
	for (uint32_t i = 0; i < m->npending; i++)
		if (m->pending[i].key_hash == hash && m->pending[i].owner == owner &&
		    m->pending[i].gen == gen)
			return true;
	return false;
}

static bool stays(const struct object *o, const struct mc_st_has *h)
{
	bool is_committed = h->flags & MC_ST_HAS_COMMITTED;

	if (o->gen == h->gen || o->is_committed == is_committed)
		return o->gen > h->gen;
	return o->gen && o->is_committed;
}

static void step_adopt(struct model *m, uint32_t k)
{
	uint32_t owner = (uint32_t)mc_rand_below(&m->rand, OWNERS);
	struct mc_index_request q;
	struct object *o = &m->o[k];
	uint8_t kind = (uint8_t)mc_rand_below(&m->rand, 2);
	struct mc_st_has h = {.gen = mc_rand_below(&m->rand, 2) && o->gen
					 ? o->gen
					 : 1 + mc_rand_below(&m->rand, m->gen + 1),
			      .len = o->len,
			      .addr = m->addr += 64,
			      .kind = kind,
			      .flags = (uint8_t)mc_rand_below(&m->rand, 2)};
	bool is_new = false, is_guarded_now;
	int rc;

	if (h.gen > m->gen)
		m->gen = h.gen;
	is_guarded_now = !o->gen && is_guarded(m, m->hash[k], owner_id(owner), h.gen);
	assert_int_equal(mc_index_begin(m->ix, &q, m->now_ms, &m->key[k], 1), 0);
	rc = mc_index_adopt(&q, 0, owner_id(owner), &h, &m->frees);
	mc_index_end(&q);
	if (!m->is_there[owner]) {
		assert_int_equal(rc, MC_STORE_INVALID_REPLICA);
	} else if (rc == 1) {
		assert_true(was_freed(m, owner_id(owner), h.addr, h.gen));
		if (!m->is_unannounced[owner])
			assert_true(stays(o, &h) || is_guarded_now);
	} else {
		assert_int_equal(rc, 0);
		assert_false(is_guarded_now);
		assert_false(stays(o, &h));
		if (o->gen != h.gen) {
			expect_freed(m, o);
			*o = (struct object){.gen = h.gen, .len = h.len};
			is_new = true;
		}
		o->is_committed |= h.flags & MC_ST_HAS_COMMITTED;
		if (o->n < MC_ST_REPLICAS_MAX)
			o->r[o->n++] = (struct mc_st_replica){
			    .owner = owner_id(owner), .addr = h.addr, .kind = kind};
	}
	take_frees(m);
	if (is_new)
		o->is_hidden = is_pending(m, m->hash[k]);
}

struct seen {
	struct model *m;
	uint32_t times[KEYS];
};

static void see(void *user, const struct mc_index_view *v)
{
	struct seen *s = user;

	for (uint32_t k = 0; k < KEYS; k++)
		if (s->m->hash[k] == v->key_hash) {
			s->times[k]++;
			assert_true(v->object.gen == s->m->o[k].gen);
		}
}

static void check_all(struct model *m)
{
	struct seen s = {.m = m};
	struct mc_index_stats st;
	uint64_t objects = 0, bytes = 0, replicas[2] = {0}, cursor = 0;
	struct mc_index_pool pool;

	for (uint32_t k = 0; k < KEYS; k++) {
		check_key(m, k);
		objects += m->o[k].gen != 0;
		bytes += m->o[k].n * m->o[k].len;
		for (uint32_t i = 0; i < m->o[k].n; i++)
			replicas[m->o[k].r[i].kind]++;
	}
	while (mc_index_step(m->ix, m->now_ms, 10))
		;
	mc_index_stats(m->ix, &st);
	assert_true(st.objects == objects && st.bytes == bytes);
	assert_true(st.replicas[0] == replicas[0] && st.replicas[1] == replicas[1]);
	assert_int_equal(st.pending, m->npending);
	for (uint32_t i = 0; i < OWNERS; i++) {
		uint64_t there = 0, freeing = 0;

		for (uint32_t k = 0; k < KEYS; k++)
			for (uint32_t r = 0; r < m->o[k].n; r++)
				there += m->o[k].r[r].owner == owner_id(i) && !m->o[k].r[r].kind;
		for (uint32_t f = 0; f < m->npending; f++)
			freeing += m->pending[f].owner == owner_id(i) && !m->pending[f].kind
				       ? m->pending[f].len
				       : 0;
		mc_index_pool(m->ix, owner_id(i), MC_ST_MEMORY, &pool);
		assert_true(pool.objects == there && pool.freeing == freeing);
	}
	while (mc_index_walk(m->ix, m->now_ms, &cursor, 3, see, &s))
		;
	for (uint32_t k = 0; k < KEYS; k++)
		assert_int_equal(s.times[k], m->o[k].gen != 0);
}

static void step(struct model *m)
{
	uint32_t k = (uint32_t)mc_rand_below(&m->rand, KEYS);

	m->now_ms += mc_rand_below(&m->rand, 60);
	switch (mc_rand_below(&m->rand, 40)) {
	case 0:
		step_owner(m);
		break;
	case 1:
	case 2:
	case 3:
		step_remove(m, k);
		break;
	case 4:
		step_drop(m, k);
		break;
	case 5:
	case 6:
		step_evict(m);
		break;
	case 7:
	case 8:
	case 9:
		step_adopt(m, k);
		break;
	case 10:
	case 11:
	case 12:
	case 13:
	case 14:
	case 15:
		step_lookup(m);
		break;
	default:
		if (mc_rand_below(&m->rand, 2))
			step_commit(m, k);
		else
			step_freed(m);
	}
	for (k = 0; k < KEYS; k++)
		check_key(m, k);
}

static void the_index_does_as_a_model_of_arrays(void **state)
{
	static struct model m;

	for (uint64_t seed = 1; seed <= 40; seed++) {
		model_open(&m, seed);
		for (uint32_t i = 0; i < 5000; i++) {
			step(&m);
			if (i % 50 == 0)
				check_all(&m);
		}
		mc_index_close(m.ix);
		mc_index_frees_fini(&m.frees);
	}
	(void)state;
}

int main(void)
{
	const struct CMUnitTest tests[] = {
	    cmocka_unit_test(the_index_does_as_a_model_of_arrays),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
