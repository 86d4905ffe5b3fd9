/*
 * store_test.c: the client of the Store against a master and owners that do as they are told.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>
#include <mooncake/engine.h>

#include "base/clock.h"
#include "base/rand.h"
#include "base/sync.h"
#include "client/world.h"

#define KIB 1024u
#define MIB (1024u * KIB)

static struct mc_store_key key_of(const char *text)
{
	return (struct mc_store_key){text, strlen(text)};
}

/* Bytes that depend on the seed. */
static uint8_t *bytes_make(size_t len, uint64_t seed)
{
	uint8_t *p = mc_calloc(1, len);
	uint64_t v = seed;

	assert_non_null(p);
	for (size_t i = 0; i < len; i++) {
		if (i % 8 == 0)
			v = mc_splitmix64(&seed);
		p[i] = (uint8_t)(v >> 8 * (i % 8));
	}
	return p;
}

static int put(struct mc_store *st, const char *key, const void *bytes, size_t len,
	       const struct mc_store_conf *conf, unsigned flags)
{
	struct mc_store_part part = {(void *)bytes, len};
	struct mc_store_item item = {key_of(key), &part, 1};
	int32_t ret = 1;
	int rc = mc_store_put(st, &item, 1, conf, flags, &ret);

	assert_int_equal(rc, ret);
	return ret;
}

static int64_t get(struct mc_store *st, const char *key, void *bytes, size_t len)
{
	struct mc_store_part part = {bytes, len};
	struct mc_store_item item = {key_of(key), &part, 1};
	int64_t ret = 1;
	int rc = mc_store_get(st, &item, 1, &ret);

	assert_int_equal(rc, ret < 0 ? ret : 0);
	return ret;
}

/* Put, read back with another client's eyes, compare. */
static void round_trip(struct mc_store *a, struct mc_store *b, const char *key, size_t len)
{
	uint8_t *in = bytes_make(len, len), *out = mc_calloc(1, len);

	assert_non_null(out);
	assert_int_equal(put(a, key, in, len, NULL, 0), 0);
	assert_int_equal(get(b, key, out, len), (int64_t)len);
	assert_memory_equal(in, out, len);
	mc_free(in);
	mc_free(out);
}

static void what_was_put_is_read_by_another_client_at_all_sizes(void **state)
{
	const size_t lens[] = {1,	  63,
			       64,	  65,
			       4096,	  64 * KIB - 1,
			       64 * KIB,  64 * KIB + 1,
			       256 * KIB, 256 * KIB + 1,
			       MIB,	  3 * MIB + 17,
			       16 * MIB};
	struct world *w = world_open(2);
	struct mc_store *a = world_store(w, 10000), *b = world_store(w, 10000);

	for (size_t i = 0; i < MC_ARRAY_LEN(lens); i++) {
		char key[32];

		(void)snprintf(key, sizeof(key), "key-%zu", lens[i]);
		round_trip(a, b, key, lens[i]);
	}
	mc_store_close(a);
	mc_store_close(b);
	world_close(w);
	(void)state;
}

static void the_first_put_of_a_key_wins_and_an_upsert_replaces(void **state)
{
	struct world *w = world_open(1);
	struct mc_store *a = world_store(w, 10000), *b = world_store(w, 10000);
	char out[8] = {0};

	assert_int_equal(put(a, "k", "first", 5, NULL, 0), 0);
	assert_int_equal(put(b, "k", "other", 5, NULL, 0), 0);
	assert_int_equal(get(b, "k", out, 5), 5);
	assert_memory_equal(out, "first", 5);
	assert_int_equal(world_slots(w, 0), 1);
	/* b's generations are above a's: so a's second upsert is stale at first. */
	assert_int_equal(put(b, "k", "second", 6, NULL, MC_STORE_UPSERT), 0);
	assert_int_equal(put(a, "k", "third!", 6, NULL, MC_STORE_UPSERT), 0);
	assert_int_equal(get(b, "k", out, sizeof(out)), 6);
	assert_memory_equal(out, "third!", 6);
	assert_int_equal(world_slots(w, 0), 1);
	assert_int_equal(atomic_load(&w->owners[0].regens), 1);
	mc_store_close(a);
	mc_store_close(b);
	world_close(w);
	(void)state;
}

static void a_missing_key_bad_keys_and_short_parts_are_codes(void **state)
{
	struct world *w = world_open(1);
	struct mc_store *st = world_store(w, 10000);
	char out[16];

	assert_int_equal(get(st, "none", out, 16), MC_STORE_OBJECT_NOT_FOUND);
	assert_int_equal(put(st, "", "x", 1, NULL, 0), MC_STORE_INVALID_PARAMS);
	assert_int_equal(put(st, "k", "x", 0, NULL, 0), MC_STORE_INVALID_PARAMS);
	assert_int_equal(put(st, "k", "0123456789", 10, NULL, 0), 0);
	assert_int_equal(get(st, "k", out, 9), MC_STORE_INVALID_PARAMS);
	assert_int_equal(get(st, "k", out, 16), 10);
	mc_store_close(st);
	world_close(w);
	(void)state;
}

static void a_batch_of_many_sizes_in_parts_with_twice_the_same_key(void **state)
{
	enum { N = 200 };
	struct world *w = world_open(3);
	struct mc_store *a = world_store(w, 20000), *b = world_store(w, 20000);
	struct mc_store_item *items = mc_calloc(N, sizeof(*items));
	struct mc_store_part *parts = mc_calloc(3 * N, sizeof(*parts));
	uint8_t *in = bytes_make(3 * MIB, 5), *out = mc_calloc(N, 300 * KIB);
	char keys[N][16];
	int32_t put_ret[N];
	int64_t got[N];

	for (unsigned i = 0; i < N; i++) {
		size_t len = 3 + (size_t)i * i * 7 % (290 * KIB), cut = len / 3;

		(void)snprintf(keys[i], sizeof(keys[i]), "b%u", i == N - 1 ? 0 : i);
		parts[3 * i] = (struct mc_store_part){in + i, cut};
		parts[3 * i + 1] = (struct mc_store_part){in + i + cut, 0};
		parts[3 * i + 2] = (struct mc_store_part){in + i + cut, len - cut};
		items[i] = (struct mc_store_item){key_of(keys[i]), &parts[3 * i], 3};
	}
	assert_int_equal(mc_store_put(a, items, N, NULL, 0, put_ret), 0);
	assert_int_equal(atomic_load(&w->commits), 1);
	for (unsigned i = 0; i < N; i++) {
		size_t len = parts[3 * i].len + parts[3 * i + 2].len, cut = len / 5;

		parts[3 * i] = (struct mc_store_part){out + (size_t)i * 300 * KIB, cut};
		parts[3 * i + 1] =
		    (struct mc_store_part){out + (size_t)i * 300 * KIB + cut, len - cut};
		parts[3 * i + 2] = (struct mc_store_part){in, 1};
	}
	assert_int_equal(mc_store_get(b, items, N - 1, got), 0);
	assert_int_equal(atomic_load(&w->lookups), 1);
	for (unsigned i = 0; i < N - 1; i++) {
		size_t len = parts[3 * i].len + parts[3 * i + 1].len;

		assert_int_equal(got[i], (int64_t)len);
		assert_memory_equal(out + (size_t)i * 300 * KIB, in + i, len);
	}
	mc_free(items);
	mc_free(parts);
	mc_free(in);
	mc_free(out);
	mc_store_close(a);
	mc_store_close(b);
	world_close(w);
	(void)state;
}

static void replicas_go_to_different_owners_and_as_many_as_there_are(void **state)
{
	struct world *w = world_open(2);
	struct mc_store *st = world_store(w, 10000);
	struct mc_store_conf conf = {.size = sizeof(conf), .replicas = 3};
	struct mc_store_replica replicas[MC_STORE_REPLICAS_MAX];
	struct mc_store_key key = key_of("r");
	uint8_t *in = bytes_make(MIB, 1);

	assert_int_equal(put(st, "r", in, MIB, &conf, 0), 0);
	assert_int_equal(mc_store_replicas(st, &key, replicas), 2);
	assert_string_not_equal(replicas[0].segment, replicas[1].segment);
	assert_int_equal(replicas[0].len, MIB);
	mc_free(in);
	mc_store_close(st);
	world_close(w);
	(void)state;
}

static void a_damaged_replica_is_reported_and_the_next_one_is_read(void **state)
{
	struct world *w = world_open(2);
	struct mc_store *st = world_store(w, 10000);
	struct mc_store_conf conf = {.size = sizeof(conf), .replicas = 2};
	uint8_t *in = bytes_make(MIB, 1), *out = mc_calloc(1, MIB);

	atomic_store(&w->lease_ms, 0); /* each read asks the master */
	atomic_store(&w->owners[0].flips, 1);
	assert_int_equal(put(st, "r", in, MIB, &conf, 0), 0);
	for (int i = 0; i < 3; i++) {
		memset(out, 0, MIB);
		assert_int_equal(get(st, "r", out, MIB), MIB);
		assert_memory_equal(in, out, MIB);
	}
	assert_true(atomic_load(&w->bads) <= 1);
	/* Alone and damaged it is no bytes. */
	atomic_store(&w->owners[0].flips, 1);
	atomic_store(&w->owners[1].flips, 1);
	assert_int_equal(put(st, "s", in, 100, NULL, 0), 0);
	assert_true(get(st, "s", out, 100) < 0);
	assert_true(atomic_load(&w->bads) >= 1);
	mc_free(in);
	mc_free(out);
	mc_store_close(st);
	world_close(w);
	(void)state;
}

static void a_cached_place_that_was_freed_is_a_miss_and_replaced_is_the_new_object(void **state)
{
	struct world *w = world_open(1);
	struct mc_store *a = world_store(w, 10000), *b = world_store(w, 10000);
	char out[8] = {0};

	assert_int_equal(put(a, "k", "one", 3, NULL, 0), 0);
	assert_int_equal(get(b, "k", out, 8), 3);
	assert_int_equal(get(b, "k", out, 8), 3);
	assert_int_equal(atomic_load(&w->lookups), 1); /* the second came from the cache */
	assert_int_equal(put(a, "k", "other", 5, NULL, MC_STORE_UPSERT), 0);
	assert_int_equal(get(b, "k", out, 8), 5);
	assert_memory_equal(out, "other", 5);
	world_free(w, "k");
	assert_int_equal(get(b, "k", out, 8), MC_STORE_OBJECT_NOT_FOUND);
	assert_int_equal(atomic_load(&w->bads), 0);
	mc_store_close(a);
	mc_store_close(b);
	world_close(w);
	(void)state;
}

static void pieces_are_read_where_they_are_wanted(void **state)
{
	struct world *w = world_open(1);
	struct mc_store *st = world_store(w, 10000);
	uint8_t *in = bytes_make(MIB, 3), *out = mc_calloc(1, MIB);
	struct mc_store_range ranges[] = {{64 * KIB, out + 100, 64 * KIB},
					  {5, out, 10},
					  {MIB - 1, out + 99, 1},
					  {15, out + 10, 70}};
	struct mc_store_ranged item = {key_of("p"), ranges, 4};
	int64_t ret;

	assert_int_equal(put(st, "p", in, MIB, NULL, 0), 0);
	assert_int_equal(mc_store_get_ranges(st, &item, 1, &ret), 0);
	assert_int_equal(ret, 64 * KIB + 81);
	assert_memory_equal(out + 100, in + 64 * KIB, 64 * KIB);
	assert_memory_equal(out, in + 5, 80);
	assert_int_equal(out[99], in[MIB - 1]);
	ranges[0].offset = MIB - 100;
	assert_int_equal(mc_store_get_ranges(st, &item, 1, &ret), MC_STORE_INVALID_PARAMS);
	mc_free(in);
	mc_free(out);
	mc_store_close(st);
	world_close(w);
	(void)state;
}

static void a_lost_commit_is_asked_for_again_and_visible_once(void **state)
{
	struct world *w = world_open(1);
	struct mc_store *st = world_store(w, 10000);
	char out[8];

	atomic_store(&w->lost, 2);
	assert_int_equal(put(st, "k", "hello", 5, NULL, 0), 0);
	assert_int_equal(atomic_load(&w->commits), 3);
	assert_int_equal(get(st, "k", out, 8), 5);
	assert_int_equal(world_slots(w, 0), 1);
	mc_store_close(st);
	world_close(w);
	(void)state;
}

struct late {
	struct world *w;
	uint64_t at_ns;
};

static void *bring_up(void *arg)
{
	struct late *l = arg;
	_Atomic uint32_t nobody = 0;

	while (mc_futex_wait(&nobody, 0, l->at_ns) != -MC_E_TIMEDOUT)
		;
	world_master_up(l->w);
	return NULL;
}

static void calls_ride_through_a_master_that_restarts_and_recovers(void **state)
{
	struct world *w = world_open(1);
	struct mc_store *st = world_store(w, 10000);
	struct late late = {w, mc_now_ns() + 300 * MC_NS_PER_MS};
	pthread_t thread;
	char out[8];

	assert_int_equal(put(st, "k", "hello", 5, NULL, 0), 0);
	world_master_down(w);
	assert_int_equal(pthread_create(&thread, NULL, bring_up, &late), 0);
	atomic_store(&w->recovering, 3);
	assert_int_equal(put(st, "l", "world", 5, NULL, 0), 0);
	(void)pthread_join(thread, NULL);
	assert_int_equal(get(st, "l", out, 8), 5);
	assert_memory_equal(out, "world", 5);
	assert_int_equal(atomic_load(&w->joins), 2);
	mc_store_close(st);
	world_close(w);
	(void)state;
}

static void a_put_goes_elsewhere_when_an_owner_is_full_or_silent(void **state)
{
	struct world *w = world_open(2);
	struct mc_store *st = world_store(w, 8000);
	char key[16];

	atomic_store(&w->owners[0].full, 1000);
	for (int i = 0; i < 8; i++) {
		(void)snprintf(key, sizeof(key), "f%d", i);
		assert_int_equal(put(st, key, "x", 1, NULL, 0), 0);
	}
	assert_int_equal(world_slots(w, 1), 8);
	atomic_store(&w->owners[1].full, 1000);
	assert_int_equal(put(st, "no", "x", 1, NULL, 0), MC_STORE_NO_AVAILABLE_HANDLE);
	atomic_store(&w->owners[0].full, 0);
	atomic_store(&w->owners[1].full, 0);
	atomic_store(&w->owners[1].is_mute, true);
	for (int i = 0; i < 8; i++) {
		(void)snprintf(key, sizeof(key), "m%d", i);
		assert_int_equal(put(st, key, "x", 1, NULL, 0), 0);
	}
	assert_int_equal(world_slots(w, 0), 8);
	mc_store_close(st);
	world_close(w);
	(void)state;
}

static void a_put_that_fails_leaves_nothing_at_the_owner(void **state)
{
	struct world *w = world_open(1);
	struct mc_store *st = world_store(w, 1500);
	uint8_t *in = bytes_make(MIB, 3);

	atomic_store(&w->refused, 2);
	assert_int_equal(put(st, "k", in, MIB, NULL, 0), MC_STORE_TENANT_QUOTA_EXCEEDED);
	assert_int_equal(world_slots(w, 0), 0);
	assert_int_equal(put(st, "k", in, 100, NULL, 0), MC_STORE_TENANT_QUOTA_EXCEEDED);
	assert_int_equal(world_slots(w, 0), 0);
	mc_free(in);
	mc_store_close(st);
	world_close(w);
	(void)state;
}

/* The index may have it: a slot that is taken back would be a key without bytes, which the next put
 * finds to be there. */
static void a_commit_without_an_answer_is_no_failure_and_its_bytes_stay(void **state)
{
	struct world *w = world_open(1);
	struct mc_store *st = world_store(w, 1500);
	uint8_t *in = bytes_make(MIB, 3), *out = mc_calloc(1, MIB);
	int ret;

	atomic_store(&w->lost, 1000000); /* done, and never answered */
	ret = put(st, "k", in, MIB, NULL, 0);
	assert_true(ret == MC_STORE_RPC_FAIL || ret == MC_STORE_RPC_TIMEOUT);
	atomic_store(&w->lost, 0);
	assert_int_equal(put(st, "k", "other", 5, NULL, 0), 0); /* the first one wins */
	assert_int_equal(world_slots(w, 0), 1);
	assert_int_equal(get(st, "k", out, MIB), MIB);
	assert_memory_equal(out, in, MIB);
	mc_free(in);
	mc_free(out);
	mc_store_close(st);
	world_close(w);
	(void)state;
}

/* Found by the simulator (seed 7840): its owner does not rename it, for the master knows of it. */
static void a_put_whose_first_slot_may_show_has_not_failed(void **state)
{
	struct world *w = world_open(1);
	struct mc_store *st = world_store(w, 1500);

	atomic_store(&w->stale, 1);
	atomic_store(&w->owners[0].told, 1);
	atomic_store(&w->refused, 1);
	assert_int_equal(put(st, "k", "value", 5, NULL, 0), MC_STORE_RPC_TIMEOUT);
	assert_int_equal(world_slots(w, 0), 1);
	mc_store_close(st);
	world_close(w);
	(void)state;
}

/* Small objects are sealed by their only call, large ones by their second. */
static void what_an_owner_sealed_unheard_is_dropped_once_it_is_reached(void **state)
{
	struct world *w = world_open(1);
	struct mc_store *st = world_store(w, 1500);
	uint8_t *in = bytes_make(MIB, 3);
	int ret;

	for (unsigned i = 0; i < 2; i++) {
		atomic_store(&w->owners[0].is_cut, true);
		ret = put(st, "k", in, i ? MIB : 100, NULL, 0);
		/* It may show if the index is made anew from what owners have. */
		assert_true(ret == MC_STORE_RPC_FAIL || ret == MC_STORE_RPC_TIMEOUT);
		assert_int_equal(world_slots(w, 0), 1);
		atomic_store(&w->owners[0].is_cut, false);
		world_slots_wait(w, 0, 0);
	}
	assert_int_equal(atomic_load(&w->commits), 0);
	mc_free(in);
	mc_store_close(st);
	world_close(w);
	(void)state;
}

static void a_put_that_went_elsewhere_is_dropped_where_it_was_first(void **state)
{
	struct world *w = world_open(2);
	struct mc_store *st = world_store(w, 8000);
	struct mc_store_conf conf = {.size = sizeof(conf), .nsegments = 1};
	uint64_t begin_ns = mc_now_ns();
	const char *segment;

	segment = mc_engine_name(w->owners[0].eng);
	conf.segments = &segment;
	atomic_store(&w->owners[0].is_cut, true);
	assert_int_equal(put(st, "k", "hello", 5, &conf, 0), 0);
	assert_true(mc_now_ns() - begin_ns < 6 * MC_NS_PER_S); /* nobody waits for the drop */
	assert_int_equal(atomic_load(&w->commits), 1);
	assert_int_equal(world_slots(w, 0), 1);
	assert_int_equal(world_slots(w, 1), 1);
	atomic_store(&w->owners[0].is_cut, false);
	world_slots_wait(w, 0, 0);
	assert_int_equal(world_slots(w, 1), 1);
	mc_store_close(st);
	/* A store that closes tells it, too. */
	st = world_store(w, 8000);
	atomic_store(&w->owners[0].is_cut, true);
	assert_int_equal(put(st, "l", "hello", 5, &conf, 0), 0);
	assert_int_equal(world_slots(w, 0), 1);
	atomic_store(&w->owners[0].is_cut, false);
	mc_store_close(st);
	assert_int_equal(world_slots(w, 0), 0);
	world_close(w);
	(void)state;
}

static void an_object_larger_than_any_pool_is_refused_within_seconds(void **state)
{
	struct world *w = world_open(1);
	struct mc_store *st = world_store(w, 20000);
	size_t len = WORLD_POOL + MIB;
	uint64_t begin_ns = mc_now_ns();
	uint8_t *in = mc_calloc(1, len);

	assert_int_equal(put(st, "large", in, len, NULL, 0), MC_STORE_NO_AVAILABLE_HANDLE);
	assert_true(mc_now_ns() - begin_ns < 10 * MC_NS_PER_S);
	mc_free(in);
	mc_store_close(st);
	world_close(w);
	(void)state;
}

static void a_dead_owner_costs_no_batch_its_other_objects(void **state)
{
	struct world *w = world_open(2);
	struct mc_store *st = world_store(w, 6000);
	struct mc_store_conf conf = {.size = sizeof(conf), .nsegments = 1};
	uint8_t *in = bytes_make(400 * KIB, 9), *out = mc_calloc(2, 400 * KIB);
	struct mc_store_part parts[2] = {{out, 400 * KIB}, {out + 400 * KIB, 400 * KIB}};
	struct mc_store_item items[2] = {{key_of("a"), &parts[0], 1}, {key_of("b"), &parts[1], 1}};
	const char *segment;
	int64_t ret[2];

	conf.segments = &segment;
	segment = mc_engine_name(w->owners[0].eng);
	assert_int_equal(put(st, "a", in, 400 * KIB, &conf, 0), 0);
	segment = mc_engine_name(w->owners[1].eng);
	assert_int_equal(put(st, "b", in, 400 * KIB, &conf, 0), 0);
	assert_int_equal(world_slots(w, 0), 1);
	world_owner_kill(w, 0);
	assert_int_equal(mc_store_get(st, items, 2, ret), MC_STORE_TRANSFER_FAIL);
	assert_int_equal(ret[0], MC_STORE_TRANSFER_FAIL);
	assert_int_equal(ret[1], 400 * KIB);
	assert_memory_equal(out + 400 * KIB, in, 400 * KIB);
	mc_free(in);
	mc_free(out);
	mc_store_close(st);
	world_close(w);
	(void)state;
}

static void exist_size_remove_and_list_say_what_is_there(void **state)
{
	struct world *w = world_open(1);
	struct mc_store *st = world_store(w, 10000);
	struct mc_store_key keys[3] = {key_of("a"), key_of("b"), key_of("")};
	int32_t ret[3];
	int64_t sizes[3];

	assert_int_equal(put(st, "a", "hello", 5, NULL, 0), 0);
	assert_int_equal(mc_store_exist(st, keys, 2, ret), 0);
	assert_int_equal(ret[0], 1);
	assert_int_equal(ret[1], 0);
	assert_int_equal(mc_store_exist(st, keys, 3, ret), MC_STORE_INVALID_PARAMS);
	assert_int_equal(mc_store_size(st, keys, 2, sizes), MC_STORE_OBJECT_NOT_FOUND);
	assert_int_equal(sizes[0], 5);
	assert_int_equal(mc_store_remove(st, keys, 2, false, ret), MC_STORE_OBJECT_NOT_FOUND);
	assert_int_equal(ret[0], 0);
	assert_int_equal(mc_store_exist(st, keys, 1, ret), 0);
	assert_int_equal(ret[0], 0);
	assert_int_equal(world_slots(w, 0), 0);
	assert_int_equal(mc_store_health(st), 0);
	mc_store_close(st);
	world_close(w);
	(void)state;
}

static void sessions_write_pieces_and_unwritten_bytes_are_zeros(void **state)
{
	struct world *w = world_open(2);
	struct mc_store *st = world_store(w, 10000);
	struct mc_store_conf conf = {.size = sizeof(conf), .replicas = 2};
	struct mc_store_key keys[2] = {key_of("s"), key_of("revoked")};
	uint64_t lens[2] = {MIB, 10};
	uint8_t *in = bytes_make(MIB, 3), *out = mc_calloc(1, MIB), *want = mc_calloc(1, MIB);
	struct mc_store_range ranges[2] = {{100, in + 100, 200 * KIB},
					   {900 * KIB, in + 900 * KIB, KIB}};
	struct mc_store_ranged item = {keys[0], ranges, 2};
	int32_t ret[2];
	int64_t wrote;

	for (unsigned i = 0; i < 2; i++) /* the pool is not all zeros */
		memset(w->owners[i].pool, 0xee, 8 * MIB);
	memcpy(want + 100, in + 100, 200 * KIB);
	memcpy(want + 900 * KIB, in + 900 * KIB, KIB);
	assert_int_equal(mc_store_put_begin(st, keys, lens, 2, &conf, ret), 0);
	assert_int_equal(get(st, "s", out, MIB), MC_STORE_OBJECT_NOT_FOUND);
	assert_int_equal(mc_store_put_ranges(st, &item, 1, &wrote), 0);
	assert_int_equal(wrote, 201 * KIB);
	assert_int_equal(mc_store_put_end(st, &keys[1], 1, true, ret), 0);
	assert_int_equal(mc_store_put_end(st, &keys[0], 1, false, ret), 0);
	assert_int_equal(mc_store_put_end(st, &keys[0], 1, false, ret), MC_STORE_OBJECT_NOT_FOUND);
	assert_int_equal(mc_store_put_ranges(st, &item, 1, &wrote), MC_STORE_OBJECT_NOT_FOUND);
	assert_int_equal(get(st, "s", out, MIB), MIB);
	assert_memory_equal(out, want, MIB);
	assert_int_equal(get(st, "revoked", out, MIB), MC_STORE_OBJECT_NOT_FOUND);
	assert_int_equal(world_slots(w, 0), 1);
	assert_int_equal(world_slots(w, 1), 1);
	assert_int_equal(atomic_load(&w->owners[0].checked), 1);
	mc_free(in);
	mc_free(out);
	mc_free(want);
	mc_store_close(st);
	world_close(w);
	(void)state;
}

/* Begin, three pieces out of order, end. @return what the end said */
static int session_put(struct mc_store *st, const char *name, uint8_t *in, uint64_t overlap)
{
	const struct mc_store_conf conf = {.size = sizeof(conf), .replicas = 2};
	struct mc_store_key key = key_of(name);
	uint64_t len = MIB;
	struct mc_store_range ranges[3] = {{700 * KIB, in + 700 * KIB, MIB - 700 * KIB},
					   {0, in, 500 * KIB + 7 + overlap},
					   {500 * KIB + 7, in + 500 * KIB + 7, 200 * KIB - 7}};
	struct mc_store_ranged item = {key, ranges, 3};
	int32_t ret = 1;
	int64_t wrote;

	assert_int_equal(mc_store_put_begin(st, &key, &len, 1, &conf, &ret), 0);
	assert_int_equal(mc_store_put_ranges(st, &item, 1, &wrote), 0);
	(void)!mc_store_put_end(st, &key, 1, false, &ret);
	return ret;
}

static void a_session_whose_bytes_the_wire_changed_is_refused_by_the_owner(void **state)
{
	struct world *w = world_open(2);
	struct mc_store *st = world_store(w, 10000);
	uint8_t *in = bytes_make(MIB, 5), *out = mc_calloc(1, MIB);

	atomic_store(&w->owners[0].wire_flips, 1);
	assert_int_equal(session_put(st, "one", in, 0), 0);
	assert_int_equal(get(st, "one", out, MIB), MIB);
	assert_memory_equal(out, in, MIB);
	assert_int_equal(world_slots(w, 0), 0);
	assert_int_equal(world_slots(w, 1), 1);
	atomic_store(&w->owners[0].wire_flips, 1);
	atomic_store(&w->owners[1].wire_flips, 1);
	assert_int_equal(session_put(st, "both", in, 0), MC_STORE_TRANSFER_FAIL);
	assert_int_equal(get(st, "both", out, MIB), MC_STORE_OBJECT_NOT_FOUND);
	assert_int_equal(world_slots(w, 1), 1);
	assert_int_equal(atomic_load(&w->owners[0].checked), 2);
	mc_free(in);
	mc_free(out);
	mc_store_close(st);
	world_close(w);
	(void)state;
}

static void pieces_that_overlap_are_taken_as_they_come(void **state)
{
	struct world *w = world_open(2);
	struct mc_store *st = world_store(w, 10000);
	uint8_t *in = bytes_make(MIB, 6), *out = mc_calloc(1, MIB);

	assert_int_equal(session_put(st, "s", in, 1), 0);
	assert_int_equal(get(st, "s", out, MIB), MIB);
	assert_memory_equal(out, in, MIB);
	assert_int_equal(atomic_load(&w->owners[0].checked), 0);
	mc_free(in);
	mc_free(out);
	mc_store_close(st);
	world_close(w);
	(void)state;
}

static void memory_is_registered_once_and_given_within_its_budget(void **state)
{
	struct world *w = world_open(1);
	struct mc_store *st = world_store(w, 10000);
	void *a = mc_store_alloc(st, 40 * MIB), *own = mc_aligned_alloc(4096, MIB);

	assert_non_null(a);
	assert_null(mc_store_alloc(st, 40 * MIB));
	assert_int_equal(mc_store_free(st, a), 0);
	assert_int_equal(mc_store_free(st, a), MC_STORE_INVALID_PARAMS);
	a = mc_store_alloc(st, 40 * MIB);
	assert_non_null(a);
	assert_int_equal(mc_store_register(st, own, MIB), 0);
	assert_int_equal(mc_store_register(st, own, MIB), MC_STORE_INVALID_PARAMS);
	assert_int_equal(mc_store_unregister(st, own), 0);
	assert_int_equal(mc_store_unregister(st, own), MC_STORE_INVALID_PARAMS);
	mc_store_close(st);
	mc_free(own);
	world_close(w);
	(void)state;
}

static void a_dead_master_is_an_error_within_seconds_that_names_it(void **state)
{
	struct mc_store_opts opts = {
	    .size = sizeof(opts), .name = "127.0.0.1", .master = "127.0.0.1:9"};
	uint64_t begin_ns = mc_now_ns();
	struct mc_diag diag = {{0}};
	struct mc_store *st;

	assert_int_equal(mc_store_open(&opts, &diag, &st), MC_STORE_RPC_FAIL);
	assert_true(mc_now_ns() - begin_ns < 5 * MC_NS_PER_S);
	assert_non_null(strstr(diag.text, "127.0.0.1:9"));
	assert_non_null(strstr(diag.text, "refused"));
	(void)state;
}

int main(void)
{
	const struct CMUnitTest tests[] = {
	    cmocka_unit_test(what_was_put_is_read_by_another_client_at_all_sizes),
	    cmocka_unit_test(the_first_put_of_a_key_wins_and_an_upsert_replaces),
	    cmocka_unit_test(a_missing_key_bad_keys_and_short_parts_are_codes),
	    cmocka_unit_test(a_batch_of_many_sizes_in_parts_with_twice_the_same_key),
	    cmocka_unit_test(replicas_go_to_different_owners_and_as_many_as_there_are),
	    cmocka_unit_test(a_damaged_replica_is_reported_and_the_next_one_is_read),
	    cmocka_unit_test(
		a_cached_place_that_was_freed_is_a_miss_and_replaced_is_the_new_object),
	    cmocka_unit_test(pieces_are_read_where_they_are_wanted),
	    cmocka_unit_test(a_lost_commit_is_asked_for_again_and_visible_once),
	    cmocka_unit_test(calls_ride_through_a_master_that_restarts_and_recovers),
	    cmocka_unit_test(a_put_goes_elsewhere_when_an_owner_is_full_or_silent),
	    cmocka_unit_test(a_put_that_fails_leaves_nothing_at_the_owner),
	    cmocka_unit_test(a_commit_without_an_answer_is_no_failure_and_its_bytes_stay),
	    cmocka_unit_test(a_put_whose_first_slot_may_show_has_not_failed),
	    cmocka_unit_test(what_an_owner_sealed_unheard_is_dropped_once_it_is_reached),
	    cmocka_unit_test(a_put_that_went_elsewhere_is_dropped_where_it_was_first),
	    cmocka_unit_test(an_object_larger_than_any_pool_is_refused_within_seconds),
	    cmocka_unit_test(a_dead_owner_costs_no_batch_its_other_objects),
	    cmocka_unit_test(exist_size_remove_and_list_say_what_is_there),
	    cmocka_unit_test(sessions_write_pieces_and_unwritten_bytes_are_zeros),
	    cmocka_unit_test(a_session_whose_bytes_the_wire_changed_is_refused_by_the_owner),
	    cmocka_unit_test(pieces_that_overlap_are_taken_as_they_come),
	    cmocka_unit_test(memory_is_registered_once_and_given_within_its_budget),
	    cmocka_unit_test(a_dead_master_is_an_error_within_seconds_that_names_it),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
