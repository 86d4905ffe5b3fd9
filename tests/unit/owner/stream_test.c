/*
 * stream_test.c: what an owner and its master say to each other, over masters that come late, go,
 * come back, and are old.
 */
#include "owner_fix.h"

#define POOL (8u << 20)

static uint8_t payload[100000];

static void put_n(struct mc_owner *o, unsigned n)
{
	struct mc_st_granted ret;
	char key[32];

	for (unsigned i = 0; i < n; i++) {
		(void)snprintf(key, sizeof(key), "key %u", i);
		const struct mc_st_grant g = fix_grant(key, 1 + i, 1000, payload);

		assert_int_equal(mc_owner_put(o, &g, mc_now_ns() + FIX_SOON_NS, &ret), 0);
	}
}

/* Looked at with each note of the owner. */
static void until_adopted(struct fix_master *m, struct mc_owner *o)
{
	fix_until(m, mc_owner_is_adopted(o));
}

static void late_master_hears_of_everything_newest_first(void **state)
{
	struct fix_master *m = mc_calloc(1, sizeof(*m));
	struct mc_engine *eng = fix_engine();
	struct mc_owner *o;
	struct mc_addr at;

	/* An address where nobody listens yet. */
	fix_master_open(m, NULL, 1, 0);
	at = m->at;
	fix_master_close(m);
	o = fix_owner(eng, &at, (struct mc_owner_opts){.bytes = POOL});
	put_n(o, 2500);
	assert_false(mc_owner_is_adopted(o));
	fix_master_open(m, &at, 3, 0);
	fix_until(m, m->notes[MC_ST_NOTE_HAS_ALL] == 1);
	assert_int_equal(m->nhas, 2500);
	assert_true(m->notes[MC_ST_NOTE_HAS] > 1);
	for (unsigned i = 0; i < 2500; i++) {
		assert_true(m->has[i].gen == 2500 - i);
		fix_check(m->has[i].addr, m->has[i].key, m->has[i].gen, 1000, 0);
	}
	until_adopted(m, o);
	mc_owner_close(o);
	assert_int_equal(m->nends, 1); /* it said farewell */
	fix_master_close(m);
	mc_free(m);
	mc_engine_close(eng);
	(void)state;
}

static void restart_master(struct fix *f, uint64_t epoch, uint64_t from)
{
	struct mc_addr at = f->m->at;

	fix_master_close(f->m);
	fix_master_open(f->m, &at, epoch, from);
}

static void new_epoch_gets_a_new_announcement(void **state)
{
	struct mc_owner_stats stats;
	struct fix f;

	fix_open(&f, (struct mc_owner_opts){.bytes = POOL});
	put_n(f.o, 10);
	restart_master(&f, 7, 0);
	fix_until(f.m, f.m->notes[MC_ST_NOTE_HAS_ALL] == 1);
	assert_true(f.m->told_epoch == 1);
	assert_int_equal(f.m->nhas, 10);
	/* Older: refused, again and again. */
	restart_master(&f, 6, 0);
	fix_until(f.m, f.m->nstreams >= 2);
	assert_true(f.m->told_epoch == 7);
	assert_int_equal(f.m->notes[MC_ST_NOTE_HAS_ALL], 0);
	assert_false(mc_owner_is_adopted(f.o));
	mc_owner_stats(f.o, &stats);
	assert_true(stats.epoch == 7 && stats.connects == 2);
	restart_master(&f, 7, 0);
	fix_until(f.m, f.m->notes[MC_ST_NOTE_HAS_ALL] == 1);
	fix_close(&f);
	(void)state;
}

/* A master may have taken it in for the object: its writer cannot give it up any more. */
static void announced_slot_is_not_dropped(void **state)
{
	struct mc_st_granted old, young;
	struct fix f;

	fix_open(&f, (struct mc_owner_opts){.bytes = POOL});
	assert_int_equal(fix_put_one(&f, "old", 1, 1000, payload, &old), 0);
	restart_master(&f, 2, 0);
	fix_until(f.m, f.m->notes[MC_ST_NOTE_HAS_ALL] == 1);
	assert_int_equal(fix_put_one(&f, "young", 2, 1000, payload, &young), 0);
	const struct mc_st_place places[] = {{old.addr, 1}, {0, 1}, {young.addr, 2}};
	const struct mc_st_regen newer = {.addr = old.addr, .gen = 1, .new_gen = 9};

	assert_int_equal(mc_owner_drop(f.o, &places[0]), MC_STORE_OBJECT_ALREADY_EXISTS);
	assert_int_equal(mc_owner_drop(f.o, &places[1]), MC_STORE_OBJECT_ALREADY_EXISTS);
	assert_int_equal(mc_owner_regen(f.o, &newer), MC_STORE_REPLICA_IS_GONE);
	fix_check(old.addr, "old", 1, 1000, payload[0]);
	assert_int_equal(mc_owner_drop(f.o, &places[2]), 0);
	fix_say_free(f.m, old.addr, 1); /* its master may */
	fix_until(f.m, f.m->nfreed == 1);
	assert_int_equal(mc_owner_drop(f.o, &places[0]), 0);
	fix_close(&f);
	(void)state;
}

static void what_one_master_committed_is_told_the_next(void **state)
{
	struct mc_st_granted a, b, c;
	struct fix f;

	fix_open(&f, (struct mc_owner_opts){.bytes = POOL});
	assert_int_equal(fix_put_one(&f, "a", 1, 1000, payload, &a), 0);
	assert_int_equal(fix_put_one(&f, "b", 2, 1000, payload, &b), 0);
	assert_int_equal(fix_put_one(&f, "c", 3, 1000, payload, &c), 0);
	fix_say_place(f.m, MC_ST_NOTE_COMMITTED, a.addr, 1);
	fix_say_place(f.m, MC_ST_NOTE_COMMITTED, b.addr, 99); /* another slot was there */
	fix_say_free(f.m, c.addr, 3);
	fix_until(f.m, f.m->nfreed == 1);
	restart_master(&f, 7, 0);
	fix_until(f.m, f.m->notes[MC_ST_NOTE_HAS_ALL] == 1);
	assert_int_equal(f.m->nhas, 2);
	for (unsigned i = 0; i < 2; i++)
		assert_int_equal(f.m->has[i].flags, f.m->has[i].gen == 1 ? MC_ST_HAS_COMMITTED : 0);
	fix_close(&f);
	(void)state;
}

/* Notes that the same master did not acknowledge come again with their numbers. */
static void same_master_gets_what_it_lacks(void **state)
{
	struct mc_st_granted a;
	struct fix f;
	uint64_t lost;

	fix_open(&f, (struct mc_owner_opts){.bytes = POOL});
	assert_int_equal(fix_put_one(&f, "a", 1, 1000, payload, &a), 0);
	pthread_mutex_lock(&f.m->lock);
	f.m->is_silent = true;
	lost = f.m->last_number + 1;
	pthread_mutex_unlock(&f.m->lock);
	fix_say_free(f.m, a.addr, 1);
	fix_until(f.m, f.m->nfreed == 1);
	restart_master(&f, 1, lost);
	fix_until(f.m, f.m->nfreed == 1);
	assert_true(f.m->freed[0].addr == a.addr);
	assert_int_equal(f.m->notes[MC_ST_NOTE_HAS_ALL], 0);
	assert_true(f.m->last_number >= lost);
	until_adopted(f.m, f.o);
	/* One that lacks what is not kept any more hears all of it. */
	put_n(f.o, 5);
	restart_master(&f, 1, 1);
	fix_until(f.m, f.m->notes[MC_ST_NOTE_HAS_ALL] == 1);
	assert_int_equal(f.m->nhas, 5);
	fix_close(&f);
	(void)state;
}

static void sealed_slots_are_checked_after_a_while(void **state)
{
	struct fix f;

	fix_open(&f, (struct mc_owner_opts){.bytes = POOL, .check_after_ms = 50});
	put_n(f.o, 20);
	fix_until(f.m, f.m->nchecks == 20);
	fix_until(f.m, f.m->space.used >= 20 * 1000);
	fix_close(&f);
	(void)state;
}

static void idle_owner_gives_signs_of_life(void **state)
{
	struct fix f;
	uint64_t start = mc_now_ns();

	fix_open(&f, (struct mc_owner_opts){.bytes = POOL});
	fix_until(f.m, f.m->notes[MC_ST_NOTE_SPACE] >= 5);
	assert_true(mc_now_ns() - start < 5 * MC_ST_BEAT_MS * MC_NS_PER_MS);
	assert_true(f.m->space.capacity == POOL && f.m->space.largest == POOL);
	fix_close(&f);
	(void)state;
}

static void say_order(struct fix_master *m, uint64_t id, uint32_t what, const char *key,
		      uint64_t gen, uint64_t len, const char *segment, uint64_t addr)
{
	Mc__St__Order v = MC__ST__ORDER__INIT;
	uint8_t body[1024];
	size_t n;

	v.id = id;
	v.what = what;
	v.key = (ProtobufCBinaryData){.data = (uint8_t *)(uintptr_t)key, .len = strlen(key)};
	v.gen = gen;
	v.len = len;
	v.segment = (char *)(uintptr_t)segment;
	v.addr = addr;
	assert_int_equal(mc_pb_pack(&v.base, body, sizeof(body), &n), 0);
	pthread_mutex_lock(&m->lock);
	fix_say(m, MC_ST_NOTE_ORDER, body, n);
	pthread_mutex_unlock(&m->lock);
}

static void order_copies_an_object_and_checks_it(void **state)
{
	struct mc_engine *eng = fix_engine();
	struct mc_st_granted a;
	struct mc_owner *from;
	struct mc_addr nobody;
	struct fix f;
	const char *name = mc_engine_name(eng);

	memset(payload, 'c', sizeof(payload));
	fix_open(&f, (struct mc_owner_opts){.bytes = POOL});
	assert_int_equal(mc_addr_parse("127.0.0.1:1", 0, &nobody), 0);
	from = fix_owner(eng, &nobody, (struct mc_owner_opts){.bytes = POOL});
	const struct mc_st_grant g = fix_grant("the key", 9, sizeof(payload), payload);

	assert_int_equal(mc_owner_put(from, &g, mc_now_ns() + FIX_SOON_NS, &a), 0);
	say_order(f.m, 1, 1, "the key", 9, sizeof(payload), name, a.addr);
	fix_until(f.m, f.m->done.id == 1);
	assert_int_equal(f.m->done.status, 0);
	fix_check(f.m->done.addr, "the key", 9, sizeof(payload), 'c');
	/* Another object than was ordered. */
	say_order(f.m, 2, 1, "another", 9, sizeof(payload), name, a.addr);
	fix_until(f.m, f.m->done.id == 2);
	assert_int_equal(f.m->done.status, MC_STORE_REPLICA_NOT_FOUND);
	/* Damaged at the source. */
	fix_say_free(f.m, 0, 9); /* by generation alone */
	fix_until(f.m, f.m->nfreed == 1);
	((uint8_t *)(uintptr_t)a.addr)[4096 + 70000] ^= 1;
	say_order(f.m, 3, 1, "the key", 9, sizeof(payload), name, a.addr);
	fix_until(f.m, f.m->done.id == 3);
	assert_int_equal(f.m->done.status, MC_STORE_CHECKSUM_MISMATCH);
	say_order(f.m, 4, 2, "the key", 9, sizeof(payload), name, a.addr);
	fix_until(f.m, f.m->done.id == 4);
	assert_int_equal(f.m->done.status, MC_STORE_NOT_SUPPORTED);
	mc_owner_close(from);
	fix_close(&f);
	mc_engine_close(eng);
	(void)state;
}

static void bad_options_are_named(void **state)
{
	struct mc_engine *eng = fix_engine();
	struct mc_owner_opts opts = {.engine = eng, .bytes = POOL};
	struct mc_diag diag = {0};
	struct mc_owner *o;

	assert_int_equal(mc_owner_open(&opts, &diag, &o), -MC_E_INVAL);
	assert_non_null(strstr(diag.text, "master"));
	opts.master = "127.0.0.1:1";
	opts.bytes = 10;
	assert_int_equal(mc_owner_open(&opts, &diag, &o), -MC_E_INVAL);
	assert_non_null(strstr(diag.text, "4096"));
	opts.bytes = 1ull << 60;
	assert_int_equal(mc_owner_open(&opts, &diag, &o), -MC_E_NOMEM);
	assert_non_null(strstr(diag.text, "pool"));
	mc_engine_close(eng);
	(void)state;
}

int main(void)
{
	const struct CMUnitTest tests[] = {
	    cmocka_unit_test(late_master_hears_of_everything_newest_first),
	    cmocka_unit_test(new_epoch_gets_a_new_announcement),
	    cmocka_unit_test(announced_slot_is_not_dropped),
	    cmocka_unit_test(what_one_master_committed_is_told_the_next),
	    cmocka_unit_test(same_master_gets_what_it_lacks),
	    cmocka_unit_test(sealed_slots_are_checked_after_a_while),
	    cmocka_unit_test(idle_owner_gives_signs_of_life),
	    cmocka_unit_test(order_copies_an_object_and_checks_it),
	    cmocka_unit_test(bad_options_are_named),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
