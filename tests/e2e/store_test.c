/*
 * store_test.c: the Store through real processes, which are killed, stopped and restarted: what is
 * read is what was put, whole, or a miss. At random and under load: store_kill_test.c.
 */
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include <cmocka.h>

#include "base/clock.h"
#include "base/mem.h"
#include "ledger.h"
#include "store_real.h"

#define KIB 1024ull
#define MIB (1024 * KIB)
#define LEN_MAX (64 * MIB)

static struct mc_store_key key_of(const char *text)
{
	return (struct mc_store_key){text, strlen(text)};
}

static int put(struct mc_store *st, const char *key, uint8_t *buf, size_t len, uint64_t seed,
	       const struct mc_store_conf *conf, unsigned flags)
{
	struct mc_store_part part = {buf, len};
	struct mc_store_item item = {key_of(key), &part, 1};
	int32_t ret = 1;

	ledger_fill(buf, len, seed);
	(void)!mc_store_put(st, &item, 1, conf, flags, &ret);
	return ret;
}

static int64_t get(struct mc_store *st, const char *key, uint8_t *buf, size_t len)
{
	struct mc_store_part part = {buf, len};
	struct mc_store_item item = {key_of(key), &part, 1};
	int64_t ret = 1;

	(void)!mc_store_get(st, &item, 1, &ret);
	return ret;
}

static void read_is(struct mc_store *st, const char *key, uint8_t *buf, size_t len, uint64_t seed)
{
	memset(buf, 0, len);
	assert_int_equal(get(st, key, buf, len), (int64_t)len);
	assert_true(ledger_is_filled(buf, len, seed));
}

static uint8_t *buffer(size_t len)
{
	uint8_t *p = mc_aligned_alloc(4096, (len + 4095) & ~(size_t)4095);

	assert_non_null(p);
	return p;
}

/* Owners come when they come: until this client puts to `n` of them. */
static void owners_wait(struct mc_store *st, unsigned n)
{
	struct mc_store_conf conf = {.size = sizeof(conf), .replicas = n};
	struct mc_store_replica replicas[MC_STORE_REPLICAS_MAX];
	struct timespec ts = {.tv_nsec = 10 * MC_NS_PER_MS};
	struct mc_store_key key;
	char text[32];
	uint8_t byte;

	for (unsigned i = 0; i < 1000; i++) {
		(void)snprintf(text, sizeof(text), "owners-%u", i);
		key = key_of(text);
		if (put(st, text, &byte, 1, i, &conf, 0) == 0 &&
		    mc_store_replicas(st, &key, replicas) == (int)n)
			return;
		(void)nanosleep(&ts, NULL);
	}
	fail_msg("%u owners do not come", n);
}

/* ---- quiet ---- */

static void all_sizes_are_put_read_and_removed(void **state)
{
	const size_t lens[] = {1,	    100,       4 * KIB,	      64 * KIB - 1,
			       64 * KIB,    256 * KIB, 256 * KIB + 1, MIB,
			       5 * MIB + 3, 16 * MIB,  LEN_MAX};
	struct real *c = real_open(2, 256 * MIB);
	struct mc_store *a = real_store(c, 20000, 0), *b = real_store(c, 20000, 0);
	uint8_t *buf = buffer(LEN_MAX);
	char key[32];

	for (size_t i = 0; i < MC_ARRAY_LEN(lens); i++) {
		struct mc_store_key k;
		int32_t ret;

		(void)snprintf(key, sizeof(key), "s%zu", lens[i]);
		k = key_of(key);
		assert_int_equal(put(a, key, buf, lens[i], i, NULL, 0), 0);
		read_is(b, key, buf, lens[i], i);
		assert_int_equal(mc_store_exist(b, &k, 1, &ret), 0);
		assert_int_equal(ret, 1);
		assert_int_equal(mc_store_remove(b, &k, 1, true, &ret), 0);
		assert_int_equal(get(a, key, buf, lens[i]), MC_STORE_OBJECT_NOT_FOUND);
	}
	mc_store_close(a);
	mc_store_close(b);
	mc_free(buf);
	real_close(c);
	(void)state;
}

static void a_process_reads_and_writes_its_own_segment(void **state)
{
	struct real *c = real_open(0, 0);
	struct mc_store *a = real_store(c, 20000, 64 * MIB), *b = real_store(c, 20000, 0);
	uint8_t *buf = buffer(4 * MIB);

	assert_int_equal(put(a, "small", buf, 1000, 1, NULL, 0), 0);
	assert_int_equal(put(a, "large", buf, 4 * MIB, 2, NULL, 0), 0);
	assert_int_equal(put(b, "other", buf, MIB, 3, NULL, 0), 0);
	for (int i = 0; i < 2; i++) {
		struct mc_store *st = i ? a : b;

		read_is(st, "small", buf, 1000, 1);
		read_is(st, "large", buf, 4 * MIB, 2);
		read_is(st, "other", buf, MIB, 3);
	}
	mc_store_close(b);
	mc_store_close(a);
	mc_free(buf);
	real_close(c);
	(void)state;
}

static void the_first_put_wins_and_an_upsert_replaces(void **state)
{
	struct real *c = real_open(1, 64 * MIB);
	struct mc_store *a = real_store(c, 20000, 0), *b = real_store(c, 20000, 0);
	uint8_t *buf = buffer(MIB);

	for (int i = 0; i < 2; i++) {
		size_t len = i ? MIB : 1000;
		const char *key = i ? "large" : "small";

		assert_int_equal(put(a, key, buf, len, 1, NULL, 0), 0);
		assert_int_equal(put(b, key, buf, len, 2, NULL, 0), 0);
		read_is(b, key, buf, len, 1);
		assert_int_equal(put(b, key, buf, len / 2, 3, NULL, MC_STORE_UPSERT), 0);
		read_is(a, key, buf, len / 2, 3);
		assert_int_equal(put(a, key, buf, len, 4, NULL, MC_STORE_UPSERT), 0);
		read_is(b, key, buf, len, 4);
	}
	mc_store_close(a);
	mc_store_close(b);
	mc_free(buf);
	real_close(c);
	(void)state;
}

static void batches_in_parts_on_several_owners(void **state)
{
	enum { N = 300 };
	struct real *c = real_open(3, 128 * MIB);
	struct mc_store *a = real_store(c, 20000, 0), *b = real_store(c, 20000, 0);
	struct mc_store_item items[N];
	struct mc_store_part parts[N][2];
	uint8_t *in = buffer(N * 320 * KIB), *out = buffer(N * 320 * KIB);
	int32_t ret[N];
	int64_t got[N];
	char keys[N][16];

	ledger_fill(in, N * 320 * KIB, 9);
	for (unsigned i = 0; i < N; i++) {
		size_t len = 1 + (size_t)i * 1087 % (320 * KIB), at = i * 320 * KIB;

		(void)snprintf(keys[i], sizeof(keys[i]), "b%u", i);
		parts[i][0] = (struct mc_store_part){in + at, len / 3};
		parts[i][1] = (struct mc_store_part){in + at + len / 3, len - len / 3};
		items[i] = (struct mc_store_item){key_of(keys[i]), parts[i], 2};
	}
	assert_int_equal(mc_store_put(a, items, N, NULL, 0, ret), 0);
	for (unsigned i = 0; i < N; i++) {
		size_t len = parts[i][0].len + parts[i][1].len, at = i * 320 * KIB;

		parts[i][0] = (struct mc_store_part){out + at, len / 2};
		parts[i][1] = (struct mc_store_part){out + at + len / 2, len};
	}
	assert_int_equal(mc_store_get(b, items, N, got), 0);
	for (unsigned i = 0; i < N; i++)
		assert_memory_equal(out + i * 320 * KIB, in + i * 320 * KIB, (size_t)got[i]);
	mc_store_close(a);
	mc_store_close(b);
	mc_free(in);
	mc_free(out);
	real_close(c);
	(void)state;
}

/* More than the master begins with places for who waits until owners have freed. */
static void all_of_very_many_are_removed_by_one_call(void **state)
{
	enum { N = 10000 };
	struct real *c = real_open(2, 32 * MIB);
	struct mc_store *st = real_store(c, 20000, 0);
	struct mc_store_item *items = mc_calloc(N, sizeof(*items));
	struct mc_store_key *keys = mc_calloc(N, sizeof(*keys));
	int32_t *ret = mc_calloc(N, sizeof(*ret));
	char(*texts)[16] = mc_calloc(N, sizeof(*texts));
	uint8_t byte = 7;
	struct mc_store_part part = {&byte, 1};

	assert_true(items && keys && ret && texts);
	owners_wait(st, 2);
	assert_int_equal(mc_store_remove_like(st, NULL, true) >= 1, 1);
	for (unsigned i = 0; i < N; i++) {
		(void)snprintf(texts[i], sizeof(texts[i]), "many-%u", i);
		keys[i] = key_of(texts[i]);
		items[i] = (struct mc_store_item){keys[i], &part, 1};
	}
	for (unsigned round = 0; round < 2; round++) {
		assert_int_equal(mc_store_put(st, items, N, NULL, 0, ret), 0);
		assert_int_equal(mc_store_remove_like(st, NULL, true), N);
		assert_int_equal(mc_store_exist(st, keys, N, ret), 0);
		for (unsigned i = 0; i < N; i++)
			assert_int_equal(ret[i], 0);
	}
	mc_store_close(st);
	mc_free(items);
	mc_free(keys);
	mc_free(ret);
	mc_free(texts);
	real_close(c);
	(void)state;
}

/* ---- a full pool ---- */

static void a_full_pool_evicts_and_never_gives_other_bytes(void **state)
{
	enum { N = 400 };
	struct real *c = real_open(2, 32 * MIB);
	struct mc_store *st = real_store(c, 20000, 0);
	uint8_t *buf = buffer(MIB);
	unsigned hits = 0;
	char key[16];

	for (unsigned i = 0; i < N; i++) {
		(void)snprintf(key, sizeof(key), "e%u", i);
		assert_int_equal(put(st, key, buf, i % 3 ? 200 * KIB : MIB, i, NULL, 0), 0);
	}
	for (unsigned i = 0; i < N; i++) {
		size_t len = i % 3 ? 200 * KIB : MIB;
		int64_t got;

		(void)snprintf(key, sizeof(key), "e%u", i);
		got = get(st, key, buf, MIB);
		if (got == MC_STORE_OBJECT_NOT_FOUND)
			continue;
		assert_int_equal(got, (int64_t)len);
		assert_true(ledger_is_filled(buf, len, i));
		hits++;
	}
	assert_true(hits >= 40 && hits < N);
	mc_store_close(st);
	mc_free(buf);
	real_close(c);
	(void)state;
}

/* 26 MiB of 32, all of it under lease. */
static void fill_and_lease(struct mc_store *st, uint8_t *buf)
{
	char key[16];

	for (unsigned i = 0; i < 26; i++) {
		(void)snprintf(key, sizeof(key), "l%u", i);
		assert_int_equal(put(st, key, buf, MIB, i, NULL, 0), 0);
	}
	for (unsigned i = 0; i < 26; i++) {
		(void)snprintf(key, sizeof(key), "l%u", i);
		read_is(st, key, buf, MIB, i);
	}
}

/* Its calls to the owner end several times before the leases do. */
static void a_put_waits_until_leases_run_out(void **state)
{
	struct real *c = real_open_leased(1, 32 * MIB, 4000);
	struct mc_store *st = real_store(c, 12000, 0);
	uint8_t *buf = buffer(LEN_MAX);
	uint64_t begin_ns;

	fill_and_lease(st, buf);
	begin_ns = mc_now_ns();
	assert_int_equal(put(st, "large", buf, 16 * MIB, 1, NULL, 0), 0);
	assert_true(mc_now_ns() - begin_ns > MC_NS_PER_S);
	read_is(st, "large", buf, 16 * MIB, 1);
	mc_store_close(st);
	mc_free(buf);
	real_close(c);
	(void)state;
}

struct putting {
	struct mc_store *st;
	uint8_t *buf;
	int ret;
};

static void *put_large(void *arg)
{
	struct putting *p = arg;

	p->ret = put(p->st, "large", p->buf, 16 * MIB, 1, NULL, 0);
	return NULL;
}

static void pause_ms(unsigned ms)
{
	struct timespec ts = {.tv_sec = ms / 1000, .tv_nsec = (long)(ms % 1000) * 1000000};

	(void)nanosleep(&ts, NULL);
}

/* The owner asks it for room before it has told what it has. */
static void a_put_that_waits_for_room_rides_through_a_new_master(void **state)
{
	struct real *c = real_open_leased(1, 32 * MIB, 4000);
	struct mc_store *st = real_store(c, 20000, 0);
	struct putting p = {st, buffer(LEN_MAX), 1};
	pthread_t thread;

	fill_and_lease(st, p.buf);
	assert_int_equal(pthread_create(&thread, NULL, put_large, &p), 0);
	pause_ms(300);
	real_master_kill(c);
	real_master_start(c);
	(void)pthread_join(thread, NULL);
	assert_int_equal(p.ret, 0);
	read_is(st, "large", p.buf, 16 * MIB, 1);
	mc_store_close(st);
	mc_free(p.buf);
	real_close(c);
	(void)state;
}

/* Nothing is committed yet, so the master finds nothing to evict. */
static void a_put_waits_for_room_that_others_are_writing_to(void **state)
{
	struct real *c = real_open(1, 32 * MIB);
	struct mc_store *st = real_store(c, 20000, 0);
	struct putting p = {st, buffer(LEN_MAX), 1};
	struct mc_store_key key = key_of("session");
	uint64_t len = 24 * MIB;
	pthread_t thread;
	int32_t ret;

	owners_wait(st, 1);
	assert_int_equal(mc_store_put_begin(st, &key, &len, 1, NULL, &ret), 0);
	assert_int_equal(pthread_create(&thread, NULL, put_large, &p), 0);
	pause_ms(700);
	assert_int_equal(mc_store_put_end(st, &key, 1, false, &ret), 0);
	(void)pthread_join(thread, NULL);
	assert_int_equal(p.ret, 0);
	read_is(st, "large", p.buf, 16 * MIB, 1);
	mc_store_close(st);
	mc_free(p.buf);
	real_close(c);
	(void)state;
}

/* ---- kills ---- */

static void the_death_of_an_owner_is_a_miss_and_puts_go_elsewhere(void **state)
{
	enum { N = 40 };
	struct real *c = real_open(2, 128 * MIB);
	struct mc_store *st = real_store(c, 8000, 0);
	struct mc_store_conf conf = {.size = sizeof(conf), .replicas = 2};
	uint8_t *buf = buffer(MIB);
	unsigned hits = 0;
	char key[16];

	owners_wait(st, 2);
	for (unsigned i = 0; i < N; i++) {
		(void)snprintf(key, sizeof(key), "one%u", i);
		assert_int_equal(put(st, key, buf, 300 * KIB, i, NULL, 0), 0);
		(void)snprintf(key, sizeof(key), "two%u", i);
		assert_int_equal(put(st, key, buf, 10 * KIB, 1000 + i, &conf, 0), 0);
	}
	real_owner_kill(c, 0);
	for (unsigned i = 0; i < N; i++) {
		int64_t got;

		(void)snprintf(key, sizeof(key), "two%u", i);
		read_is(st, key, buf, 10 * KIB, 1000 + i);
		(void)snprintf(key, sizeof(key), "one%u", i);
		got = get(st, key, buf, MIB);
		hits += got == 300 * KIB && ledger_is_filled(buf, 300 * KIB, i);
		assert_true(got == 300 * KIB || got < 0);
		(void)snprintf(key, sizeof(key), "new%u", i);
		assert_int_equal(put(st, key, buf, 300 * KIB, 2000 + i, NULL, 0), 0);
		read_is(st, key, buf, 300 * KIB, 2000 + i);
	}
	assert_true(hits > 0 && hits < N);
	mc_store_close(st);
	mc_free(buf);
	real_close(c);
	(void)state;
}

static void a_killed_master_that_restarts_lost_nothing(void **state)
{
	enum { N = 60 };
	struct real *c = real_open(2, 128 * MIB);
	struct mc_store *st = real_store(c, 20000, 0);
	uint8_t *buf = buffer(MIB);
	char key[16];

	for (unsigned round = 0; round < 3; round++) {
		for (unsigned i = 0; i < N; i++) {
			(void)snprintf(key, sizeof(key), "r%u-%u", round, i);
			assert_int_equal(
			    put(st, key, buf, i % 2 ? 300 * KIB : 3000, 100 * round + i, NULL, 0),
			    0);
		}
		real_master_kill(c);
		real_master_start(c);
		for (unsigned i = 0; i < N; i++) {
			(void)snprintf(key, sizeof(key), "r%u-%u", round, i);
			read_is(st, key, buf, i % 2 ? 300 * KIB : 3000, 100 * round + i);
		}
	}
	mc_store_close(st);
	mc_free(buf);
	real_close(c);
	(void)state;
}

static void a_stopped_owner_delays_no_put_beyond_its_deadline(void **state)
{
	struct real *c = real_open(2, 64 * MIB);
	struct mc_store *st = real_store(c, 8000, 0);
	uint8_t *buf = buffer(MIB);
	char key[16];

	owners_wait(st, 2);
	real_owner_stop(c, 0);
	for (unsigned i = 0; i < 6; i++) {
		uint64_t begin_ns = mc_now_ns();

		(void)snprintf(key, sizeof(key), "s%u", i);
		assert_int_equal(put(st, key, buf, i % 2 ? MIB : 1000, i, NULL, 0), 0);
		assert_true(mc_now_ns() - begin_ns < 9 * MC_NS_PER_S);
		read_is(st, key, buf, i % 2 ? MIB : 1000, i);
	}
	(void)kill(c->owners[0].pid, SIGCONT);
	for (unsigned i = 0; i < 6; i++) {
		(void)snprintf(key, sizeof(key), "s%u", i);
		read_is(st, key, buf, i % 2 ? MIB : 1000, i);
	}
	mc_store_close(st);
	mc_free(buf);
	real_close(c);
	(void)state;
}

int main(int argc, char **argv)
{
	const struct CMUnitTest tests[] = {
	    cmocka_unit_test(all_sizes_are_put_read_and_removed),
	    cmocka_unit_test(a_process_reads_and_writes_its_own_segment),
	    cmocka_unit_test(the_first_put_wins_and_an_upsert_replaces),
	    cmocka_unit_test(batches_in_parts_on_several_owners),
	    cmocka_unit_test(all_of_very_many_are_removed_by_one_call),
	    cmocka_unit_test(a_full_pool_evicts_and_never_gives_other_bytes),
	    cmocka_unit_test(a_put_waits_until_leases_run_out),
	    cmocka_unit_test(a_put_that_waits_for_room_rides_through_a_new_master),
	    cmocka_unit_test(a_put_waits_for_room_that_others_are_writing_to),
	    cmocka_unit_test(the_death_of_an_owner_is_a_miss_and_puts_go_elsewhere),
	    cmocka_unit_test(a_killed_master_that_restarts_lost_nothing),
	    cmocka_unit_test(a_stopped_owner_delays_no_put_beyond_its_deadline),
	};
	int ret;

	if (real_is_owner(argc, argv, &ret))
		return ret;
	if (argc < 2) {
		(void)fprintf(stderr, "usage: %s MOONCAKE_MASTER [TEST]\n", argv[0]);
		return 2;
	}
	real_init(argv[1]);
	if (argc > 2)
		cmocka_set_test_filter(argv[2]);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
