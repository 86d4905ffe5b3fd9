/*
 * index_test.c: who leaves first, pages, tenants, recovery, and what happens without memory; the
 * rest is index_model_test.c.
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
#include "meta/slot.h"
#include "mooncake/store.h"

#define OWNER 7u

struct fix {
	struct mc_index *ix;
	struct mc_index_frees frees;
	uint64_t gen;
	char text[32];
	struct mc_st_key key;
};

static struct fix fix_open(const struct mc_index_conf *more)
{
	struct mc_index_conf conf = more ? *more : (struct mc_index_conf){.quota = UINT64_MAX};
	struct fix f = {0};

	conf.lease_ttl_ms = 1000;
	conf.soft_pin_ttl_ms = conf.soft_pin_ttl_max_ms = 60000;
	conf.tombs_max = 4;
	assert_int_equal(mc_index_open(&conf, &f.ix), 0);
	assert_int_equal(mc_index_owner_join(f.ix, OWNER), 0);
	mc_index_owner_announced(f.ix, OWNER);
	return f;
}

static void fix_close(struct fix *f)
{
	mc_index_close(f->ix);
	mc_index_frees_fini(&f->frees);
}

static const struct mc_st_key *key_of(struct fix *f, const char *name)
{
	int n = snprintf(f->text, sizeof(f->text), "%c%s", 0, name);

	f->key = (struct mc_st_key){.len = (uint16_t)n, .bytes = (const uint8_t *)f->text};
	return &f->key;
}

static uint64_t hash_of(struct fix *f, const char *name)
{
	const struct mc_st_key *k = key_of(f, name);

	return mc_hash64(k->bytes, k->len, 0);
}

static int put(struct fix *f, uint64_t now_ms, const struct mc_st_key *key, uint64_t len,
	       const uint8_t *tlv, uint16_t tlv_len)
{
	struct mc_st_commit c = {
	    .gen = ++f->gen, .len = len, .nreplicas = 1, .tlv = tlv, .tlv_len = tlv_len};
	struct mc_index_request q;
	uint64_t gen;
	int rc;

	c.replicas[0] = (struct mc_st_replica){.owner = OWNER, .addr = f->gen * 64};
	rc = mc_index_begin(f->ix, &q, now_ms, key, 1);
	if (rc < 0)
		return MC_STORE_INTERNAL_ERROR;
	rc = mc_index_commit(&q, 0, &c, &f->frees, &gen);
	mc_index_end(&q);
	return rc;
}

static int put_plain(struct fix *f, uint64_t now_ms, const char *name, uint64_t len)
{
	return put(f, now_ms, key_of(f, name), len, NULL, 0);
}

static int look(struct fix *f, uint64_t now_ms, const char *name, unsigned flags)
{
	struct mc_index_request q;
	int rc;

	assert_int_equal(mc_index_begin(f->ix, &q, now_ms, key_of(f, name), 1), 0);
	rc = mc_index_exist(&q, 0, flags);
	mc_index_end(&q);
	return rc;
}

/* Evicts one object. */
static uint64_t evict(struct fix *f, uint64_t now_ms, uint64_t *ret_retry_ms)
{
	f->frees.n = 0;
	return mc_index_evict(f->ix, now_ms, OWNER, MC_ST_MEMORY, 1, 100, &f->frees, ret_retry_ms);
}

static void freed_all(struct fix *f)
{
	uint64_t hash;

	for (size_t i = 0; i < f->frees.n; i++)
		assert_true(mc_index_freed(f->ix, f->frees.v[i].owner, f->frees.v[i].addr,
					   f->frees.v[i].gen, &hash) >= 0);
	f->frees.n = 0;
}

/* A chain of ten, put one by one from the root, leaves from its end. */
static void children_leave_before_their_parents(void **state)
{
	struct fix f = fix_open(NULL);
	uint64_t retry_ms;
	char name[8];

	for (int i = 0; i < 10; i++) {
		uint8_t tlv[12] = {MC_SLOT_TLV_PARENT, 0, 8, 0};
		uint64_t parent;

		snprintf(name, sizeof(name), "c%d", i - 1);
		parent = hash_of(&f, name);
		memcpy(tlv + 4, &parent, 8);
		snprintf(name, sizeof(name), "c%d", i);
		assert_int_equal(
		    put(&f, 10 + (uint64_t)i, key_of(&f, name), 100, tlv, i ? sizeof(tlv) : 0), 0);
	}
	for (int i = 9; i >= 0; i--) {
		assert_int_equal(evict(&f, 100, &retry_ms), 100);
		assert_int_equal(f.frees.n, 1);
		snprintf(name, sizeof(name), "c%d", i);
		assert_true(f.frees.v[0].key_hash == hash_of(&f, name));
	}
	assert_int_equal(evict(&f, 100, &retry_ms), 0);
	assert_true(retry_ms == UINT64_MAX);
	fix_close(&f);
	(void)state;
}

static void leased_and_pinned_ones_wait_their_turn(void **state)
{
	const struct mc_index_conf conf = {.quota = UINT64_MAX, .may_evict_soft_pinned = true};
	struct fix f = fix_open(&conf);
	uint8_t hard[20] = {MC_SLOT_TLV_PINS, 0, 16, 0, 1};
	uint8_t soft[20] = {MC_SLOT_TLV_PINS, 0, 16, 0, 0, MC_STORE_SOFT_PIN_ENABLE};
	uint64_t retry_ms;

	assert_int_equal(put(&f, 10, key_of(&f, "hard"), 100, hard, sizeof(hard)), 0);
	assert_int_equal(put(&f, 11, key_of(&f, "soft"), 100, soft, sizeof(soft)), 0);
	assert_int_equal(put_plain(&f, 12, "plain", 100), 0);
	assert_int_equal(put_plain(&f, 13, "leased", 100), 0);
	assert_int_equal(look(&f, 20, "leased", 0), 0);
	assert_int_equal(evict(&f, 30, &retry_ms), 100);
	assert_true(f.frees.v[0].key_hash == hash_of(&f, "plain"));
	assert_int_equal(evict(&f, 31, &retry_ms), 100); /* the last resort but to wait */
	assert_true(f.frees.v[0].key_hash == hash_of(&f, "soft"));
	assert_int_equal(evict(&f, 32, &retry_ms), 0);
	assert_true(retry_ms >= 1020 && retry_ms <= 1040);
	assert_int_equal(evict(&f, 1040, &retry_ms), 100);
	assert_true(f.frees.v[0].key_hash == hash_of(&f, "leased"));
	assert_int_equal(evict(&f, 100000, &retry_ms), 0);
	assert_true(retry_ms == UINT64_MAX);
	assert_int_equal(look(&f, 100000, "hard", 0), 0);
	fix_close(&f);
	(void)state;
}

static void more_on_disk(struct fix *f, const char *name, uint64_t gen)
{
	const struct mc_st_has has = {
	    .gen = gen, .len = 100, .addr = MC_ST_DISK_ADDR, .kind = MC_ST_DISK};
	struct mc_index_request q;

	assert_int_equal(mc_index_begin(f->ix, &q, 11, key_of(f, name), 1), 0);
	assert_int_equal(mc_index_more(&q, 0, OWNER, &has, &f->frees), 0);
	mc_index_end(&q);
	assert_int_equal(f->frees.n, 0);
}

/* Reading much from a disk is not held up by the leases of what was read. */
static void a_lease_does_not_keep_in_memory_what_is_on_the_disk(void **state)
{
	struct fix f = fix_open(NULL);
	uint64_t retry_ms;

	mc_index_owner_disk(f.ix, OWNER, true);
	assert_int_equal(put_plain(&f, 10, "alone", 100), 0);
	assert_int_equal(put_plain(&f, 10, "both", 100), 0);
	more_on_disk(&f, "both", f.gen);
	assert_true(look(&f, 20, "alone", 0) >= 0);
	assert_true(look(&f, 20, "both", 0) >= 0);
	assert_int_equal(evict(&f, 30, &retry_ms), 100);
	assert_int_equal(f.frees.n, 1);
	assert_true(f.frees.v[0].key_hash == hash_of(&f, "both"));
	assert_true(f.frees.v[0].addr != MC_ST_DISK_ADDR);
	freed_all(&f);
	assert_true(look(&f, 30, "both", MC_INDEX_QUIET) >= 0);
	assert_int_equal(evict(&f, 30, &retry_ms), 0);
	assert_true(retry_ms > 30 && retry_ms != UINT64_MAX);
	fix_close(&f);
	(void)state;
}

static uint64_t evict_many(struct fix *f, uint64_t now_ms, uint64_t bytes, uint64_t *ret_retry_ms)
{
	f->frees.n = 0;
	return mc_index_evict(f->ix, now_ms, OWNER, MC_ST_MEMORY, bytes, 100, &f->frees,
			      ret_retry_ms);
}

static void what_leaves_memory_is_asked_for_first(void **state)
{
	struct mc_index_conf conf = {.quota = UINT64_MAX, .due_max = 2};
	const char *const names[] = {"a", "b", "c", "d", "e"};
	const struct mc_st_replica disk = {
	    .owner = OWNER, .addr = MC_ST_DISK_ADDR, .kind = MC_ST_DISK};
	const struct mc_index_due *due;
	struct fix f = fix_open(&conf);
	struct mc_index_request q;
	uint64_t retry_ms;

	mc_index_owner_disk(f.ix, OWNER, true);
	for (unsigned i = 0; i < MC_ARRAY_LEN(names); i++)
		assert_int_equal(put_plain(&f, 10, names[i], 100), 0);
	/* As much as is wanted, and the same ones again. */
	for (unsigned i = 0; i < 3; i++) {
		assert_int_equal(evict_many(&f, 20 + 20 * i, 100, &retry_ms), 0);
		assert_int_equal(retry_ms, 40 + 20 * i);
		assert_int_equal(mc_index_due(f.ix, &due), 1);
		assert_true(due[0].gen == 1 && due[0].addr == 64);
	}
	more_on_disk(&f, "a", 1);
	assert_int_equal(mc_index_begin(f.ix, &q, 99, key_of(&f, "a"), 1), 0);
	mc_index_unwritten(&q, 0);
	mc_index_end(&q);
	assert_int_equal(evict_many(&f, 99, 100, &retry_ms), 0);
	assert_int_equal(mc_index_due(f.ix, &due), 1);
	assert_true(due[0].gen == 1);
	assert_int_equal(mc_index_begin(f.ix, &q, 99, key_of(&f, "a"), 1), 0);
	assert_int_equal(mc_index_drop(&q, 0, 1, &disk, MC_GONE_REMOVED, &f.frees), 0);
	mc_index_end(&q);
	freed_all(&f);
	more_on_disk(&f, "a", 1);
	assert_int_equal(evict_many(&f, 140, 100, &retry_ms), 100);
	assert_int_equal(mc_index_due(f.ix, &due), 0);
	assert_true(f.frees.v[0].gen == 1);
	freed_all(&f);
	/* No more than that at once. */
	assert_int_equal(evict_many(&f, 200, 400, &retry_ms), 0);
	assert_int_equal(retry_ms, 220);
	assert_int_equal(mc_index_due(f.ix, &due), 2);
	fix_close(&f);
	conf.may_skip_disk = true;
	f = fix_open(&conf);
	mc_index_owner_disk(f.ix, OWNER, true);
	for (unsigned i = 0; i < MC_ARRAY_LEN(names); i++)
		assert_int_equal(put_plain(&f, 10, names[i], 100), 0);
	assert_int_equal(evict_many(&f, 20, 400, &retry_ms), 200);
	assert_int_equal(mc_index_due(f.ix, &due), 2);
	fix_close(&f);
	(void)state;
}

static void a_soft_pin_ends(void **state)
{
	struct fix f = fix_open(NULL); /* may not evict soft-pinned ones */
	uint8_t soft[20] = {MC_SLOT_TLV_PINS, 0, 16, 0, 0, MC_STORE_SOFT_PIN_ENABLE};
	struct mc_index_stats st;
	uint64_t retry_ms;

	soft[12] = 200; /* ms */
	assert_int_equal(put(&f, 10, key_of(&f, "soft"), 100, soft, sizeof(soft)), 0);
	assert_int_equal(evict(&f, 209, &retry_ms), 0);
	mc_index_stats(f.ix, &st);
	assert_int_equal(st.soft_pinned, 1);
	assert_int_equal(evict(&f, 210, &retry_ms), 100);
	mc_index_stats(f.ix, &st);
	assert_int_equal(st.soft_pinned, 0);
	fix_close(&f);
	(void)state;
}

static void a_group_leaves_together_and_is_leased_together(void **state)
{
	struct fix f = fix_open(NULL);
	uint8_t group[5] = {MC_SLOT_TLV_GROUP, 0, 1, 0, 'g'};
	uint64_t retry_ms;

	for (char c = 'a'; c < 'e'; c++) {
		const char name[2] = {c, 0};

		assert_int_equal(put(&f, 10, key_of(&f, name), 100, group, sizeof(group)), 0);
	}
	assert_int_equal(look(&f, 20, "b", 0), 0);
	assert_int_equal(evict(&f, 30, &retry_ms), 0);
	assert_true(retry_ms > 1000 && retry_ms <= 1040);
	assert_int_equal(evict(&f, 1040, &retry_ms), 400);
	assert_int_equal(f.frees.n, 4);
	fix_close(&f);
	(void)state;
}

static void pages_come_in_the_order_of_keys(void **state)
{
	struct fix f = fix_open(NULL);
	const struct mc_st_key *keys, prefix = {.len = 2, .bytes = (const uint8_t *)"\0p"};
	struct mc_st_key after = {0};
	uint8_t last[16];
	uint32_t n, seen = 0;
	char name[8];

	for (int i = 0; i < 500; i++) {
		snprintf(name, sizeof(name), "%c%03d", i % 2 ? 'p' : 'q', (i * 77) % 500);
		assert_int_equal(put_plain(&f, 10, name, 1), 0);
	}
	do {
		struct mc_index_list *l;
		int rc;

		assert_int_equal(mc_index_list_open(f.ix, &prefix, seen ? &after : NULL, 60, &l),
				 0);
		while ((rc = mc_index_list_step(l, 20)) == 1)
			;
		assert_int_equal(rc, 0);
		n = mc_index_list_keys(l, &keys);
		for (uint32_t i = 0; i < n; i++, seen++) {
			snprintf(name, sizeof(name), "%cp%03u", 0, 2 * seen + 1);
			assert_int_equal(keys[i].len, 5);
			assert_memory_equal(keys[i].bytes, name, 5);
		}
		if (n) {
			memcpy(last, keys[n - 1].bytes, keys[n - 1].len);
			after = (struct mc_st_key){.len = keys[n - 1].len, .bytes = last};
		}
		mc_index_list_close(l);
	} while (n == 60);
	assert_int_equal(seen, 250);
	fix_close(&f);
	(void)state;
}

static void a_tenant_evicts_its_own_and_no_others(void **state)
{
	const struct mc_index_conf conf = {.quota = 250, .has_tenants = true};
	struct fix f = fix_open(&conf);
	static const uint8_t mine[4][4] = {"\1aw", "\1ax", "\1ay", "\1az"};
	struct mc_st_key key = {.len = 3};
	struct mc_index_tenant t;
	size_t cursor = 1;

	assert_int_equal(put_plain(&f, 10, "other", 200), 0);
	for (int i = 0; i < 3; i++) {
		key.bytes = mine[i];
		assert_int_equal(put(&f, 20 + (uint64_t)i, &key, 100, NULL, 0), 0);
	}
	assert_int_equal(f.frees.n, 1);
	assert_true(f.frees.v[0].key_hash == mc_hash64(mine[0], 3, 0));
	freed_all(&f);
	key.bytes = mine[3];
	assert_int_equal(put(&f, 30, &key, 251, NULL, 0), MC_STORE_TENANT_QUOTA_EXCEEDED);
	assert_int_equal(f.frees.n, 1); /* the newcomer's */
	assert_true(mc_index_tenant_next(f.ix, &cursor, &t));
	assert_int_equal(t.bytes, 200);
	assert_int_equal(t.objects, 2);
	assert_int_equal(look(&f, 40, "other", MC_INDEX_QUIET), 0);
	fix_close(&f);
	(void)state;
}

static void a_recovering_index_does_not_say_that_a_key_is_missing(void **state)
{
	struct fix f = fix_open(NULL);
	struct mc_index_request q;

	mc_index_set_recovering(f.ix, true);
	assert_int_equal(look(&f, 1, "k", 0), MC_STORE_UNAVAILABLE_IN_CURRENT_STATUS);
	assert_int_equal(mc_index_begin(f.ix, &q, 1, key_of(&f, "k"), 1), 0);
	assert_int_equal(mc_index_remove(&q, 0, 0, &f.frees),
			 MC_STORE_UNAVAILABLE_IN_CURRENT_STATUS);
	mc_index_end(&q);
	assert_int_equal(put_plain(&f, 1, "k", 1), 0);
	assert_int_equal(look(&f, 1, "k", 0), 0);
	mc_index_set_recovering(f.ix, false);
	assert_int_equal(look(&f, 1, "j", 0), MC_STORE_OBJECT_NOT_FOUND);
	fix_close(&f);
	(void)state;
}

static void what_was_removed_does_not_come_back_with_its_owner(void **state)
{
	struct fix f = fix_open(NULL);
	struct mc_index_request q;
	struct mc_st_has h = {.gen = 1, .len = 1, .addr = 64};

	assert_int_equal(put_plain(&f, 10, "k", 1), 0);	   /* generation 1 */
	assert_int_equal(mc_index_owner_join(f.ix, 8), 0); /* may have it, too */
	assert_int_equal(mc_index_begin(f.ix, &q, 11, key_of(&f, "k"), 1), 0);
	assert_int_equal(mc_index_remove(&q, 0, MC_INDEX_FORCE, &f.frees), 0);
	mc_index_end(&q);
	assert_int_equal(f.frees.n, 2);
	assert_int_equal(f.frees.v[1].owner, 0);
	for (int is_written = 0; is_written < 2; is_written++) {
		assert_int_equal(mc_index_begin(f.ix, &q, 12, key_of(&f, "k"), 1), 0);
		h.addr += 64;
		assert_int_equal(mc_index_adopt(&q, 0, 8, &h, &f.frees), 1);
		mc_index_end(&q);
		if (!is_written) {
			const struct mc_index_tomb t = {.key_hash = f.frees.v[1].key_hash,
							.gen = 1};

			assert_int_equal(mc_index_entomb(f.ix, &t), 0);
			freed_all(&f);
		}
	}
	mc_index_owner_announced(f.ix, 8);
	assert_int_equal(look(&f, 13, "k", 0), MC_STORE_OBJECT_NOT_FOUND);
	fix_close(&f);
	(void)state;
}

/* Found by the simulator: clients have blocks of generations, so what is older may have a higher
 * one than what was removed; and what is put later a lower one than its tombstone. */
static void tombstones_reach_to_the_floor_and_no_put_begins_below_them(void **state)
{
	struct fix f = fix_open(NULL);
	const struct mc_st_has h = {.gen = 90, .len = 1, .addr = 64};
	struct mc_index_request q;

	assert_int_equal(put_plain(&f, 10, "k", 1), 0);
	assert_int_equal(mc_index_owner_join(f.ix, 8), 0); /* away, so far */
	mc_index_set_floor(f.ix, 100);
	assert_int_equal(mc_index_begin(f.ix, &q, 11, key_of(&f, "k"), 1), 0);
	assert_int_equal(mc_index_remove(&q, 0, MC_INDEX_FORCE, &f.frees), 0);
	mc_index_end(&q);
	assert_int_equal(f.frees.v[1].gen, 99);
	assert_int_equal(mc_index_begin(f.ix, &q, 12, key_of(&f, "k"), 1), 0);
	assert_int_equal(mc_index_adopt(&q, 0, 8, &h, &f.frees), 1);
	mc_index_end(&q);
	{
		const struct mc_index_tomb t = {.key_hash = f.frees.v[1].key_hash, .gen = 99};

		assert_int_equal(mc_index_entomb(f.ix, &t), 0);
	}
	freed_all(&f);
	f.gen = 98;
	assert_int_equal(put_plain(&f, 13, "k", 1), MC_STORE_INVALID_VERSION);
	assert_int_equal(put_plain(&f, 14, "k", 1), 0);
	fix_close(&f);
	(void)state;
}

/* Found by the simulator: with the 33rd it looked for ever. */
static void hundreds_of_owners_are_found(void **state)
{
	struct fix f = fix_open(NULL);

	for (uint64_t i = 0; i < 500; i++)
		assert_int_equal(mc_index_owner_join(f.ix, 1000 + i * 7919), 0);
	for (uint64_t i = 0; i < 500; i++)
		assert_int_equal(mc_index_owner_away(f.ix, 1000 + i * 7919), 0);
	fix_close(&f);
	(void)state;
}

static void too_many_tombstones_and_an_owner_comes_back_empty(void **state)
{
	struct fix f = fix_open(NULL);
	struct mc_index_tomb t = {.gen = 5}, got;
	const struct mc_index_tomb all = {.owner = 8, .gen = UINT64_MAX};
	struct mc_index_request q;
	const struct mc_st_has h = {.gen = 99, .len = 1, .addr = 64};
	size_t cursor = 0, n = 0;

	assert_int_equal(mc_index_owner_away(f.ix, 8), 0);
	for (t.key_hash = 1; t.key_hash <= 4; t.key_hash++)
		assert_int_equal(mc_index_entomb(f.ix, &t), 0);
	assert_int_equal(mc_index_entomb(f.ix, &t), -MC_E_LIMIT);
	assert_int_equal(mc_index_entomb(f.ix, &all), 0);
	while (mc_index_tomb_next(f.ix, &cursor, &got))
		n++;
	assert_int_equal(n, 5);
	assert_int_equal(mc_index_owner_join(f.ix, 8), 0);
	assert_int_equal(mc_index_begin(f.ix, &q, 12, key_of(&f, "new"), 1), 0);
	assert_int_equal(mc_index_adopt(&q, 0, 8, &h, &f.frees), 1);
	mc_index_end(&q);
	fix_close(&f);
	(void)state;
}

/* Each call fails once at each of its allocations, and then does what it should. */
static void without_memory_nothing_changes(void **state)
{
	int64_t live = mc_mem_live();
	uint64_t fails = 0;

	for (int64_t at = 0; at < 40; at++) {
		const struct mc_index_conf conf = {.quota = UINT64_MAX, .has_tenants = true};
		struct fix f = fix_open(&conf);
		uint8_t tlv[25] = {MC_SLOT_TLV_PINS, 0, 16, 0, 0, MC_STORE_SOFT_PIN_ENABLE};
		struct mc_index_stats st;
		char name[256];
		int rc;

		memcpy(tlv + 20, "\1\0\1\0g", 5);
		mc_mem_fail_after(at);
		memset(name, 'x', sizeof(name));
		name[0] = 2; /* a tenant "xx" */
		f.key = (struct mc_st_key){.len = (uint16_t)(40 + at), .bytes = (uint8_t *)name};
		rc = put(&f, 10, &f.key, 7, tlv, sizeof(tlv));
		mc_mem_fail_after(-1);
		mc_index_stats(f.ix, &st);
		fails += rc != 0;
		assert_int_equal(rc, st.objects ? 0 : MC_STORE_INTERNAL_ERROR);
		assert_int_equal(st.bytes, st.objects * 7);
		assert_int_equal(st.soft_pinned, st.objects);
		if (rc != 0) {
			assert_int_equal(f.frees.n, 0);
			assert_int_equal(put(&f, 11, &f.key, 7, tlv, sizeof(tlv)), 0);
		}
		fix_close(&f);
		assert_int_equal(mc_mem_live(), live);
	}
	assert_true(fails >= 6 && fails < 40);
	(void)state;
}

static void an_object_costs_what_was_promised(void **state)
{
	struct fix f = fix_open(NULL);
	struct mc_index_stats before, after;
	static struct mc_st_key keys[128];
	static uint8_t text[128][16];
	const uint32_t n = 100096;

	mc_index_stats(f.ix, &before);
	for (uint32_t i = 0; i < n; i += 128) {
		struct mc_index_request q;
		uint64_t gen;

		for (uint32_t k = 0; k < 128; k++) {
			memset(text[k], 0, 16);
			memcpy(text[k] + 1, &(uint32_t){i + k}, 4);
			keys[k] = (struct mc_st_key){.len = 16, .bytes = text[k]};
		}
		assert_int_equal(mc_index_begin(f.ix, &q, i, keys, 128), 0);
		for (uint32_t k = 0; k < 128; k++) {
			struct mc_st_commit c = {.gen = i + k + 1, .len = 1, .nreplicas = 1};

			c.replicas[0] = (struct mc_st_replica){.owner = OWNER, .addr = i + k};
			assert_int_equal(mc_index_commit(&q, k, &c, &f.frees, &gen), 0);
		}
		mc_index_end(&q);
		mc_index_stats(f.ix, &after);
		/* at the peak of growth, too */
		if (i >= 10000)
			assert_true(after.memory_bytes - before.memory_bytes <=
				    (128 + 16) * (i + 128ull));
	}
	fix_close(&f);
	(void)state;
}

int main(void)
{
	const struct CMUnitTest tests[] = {
	    cmocka_unit_test(children_leave_before_their_parents),
	    cmocka_unit_test(leased_and_pinned_ones_wait_their_turn),
	    cmocka_unit_test(a_lease_does_not_keep_in_memory_what_is_on_the_disk),
	    cmocka_unit_test(what_leaves_memory_is_asked_for_first),
	    cmocka_unit_test(a_soft_pin_ends),
	    cmocka_unit_test(a_group_leaves_together_and_is_leased_together),
	    cmocka_unit_test(pages_come_in_the_order_of_keys),
	    cmocka_unit_test(a_tenant_evicts_its_own_and_no_others),
	    cmocka_unit_test(a_recovering_index_does_not_say_that_a_key_is_missing),
	    cmocka_unit_test(what_was_removed_does_not_come_back_with_its_owner),
	    cmocka_unit_test(tombstones_reach_to_the_floor_and_no_put_begins_below_them),
	    cmocka_unit_test(hundreds_of_owners_are_found),
	    cmocka_unit_test(too_many_tombstones_and_an_owner_comes_back_empty),
	    cmocka_unit_test(without_memory_nothing_changes),
	    cmocka_unit_test(an_object_costs_what_was_promised),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
