/*
 * recover_test.c: what a later master makes of what its predecessors left: generations, epochs,
 * slots of which two stand for one key. Most of it was found by the simulator.
 */
#include "fixture.h"

/* Found by the simulator: the first epoch of a directory that was lost, once more. */
static void master_whose_state_was_lost_does_not_begin_an_epoch_that_an_owner_has_seen(void **state)
{
	struct fix_owner o;
	struct fix f;

	fix_open(&f);
	fix_start(&f);
	fo_init(&o, &f, 5);
	o.epoch = 1;
	fo_start(&o);
	assert_int_equal(fo_welcomed(&o), 0);
	assert_int_equal(o.epoch, 2);
	fo_close(&o);
	fix_close(&f);
	(void)state;
}

/* Found by the simulator: the life before may have had the slots freed, and their bytes be
 * another's. */
static void repeated_commit_adds_no_replica(void **state)
{
	_Alignas(16) uint8_t mem[1024];
	struct mc_pb_arena arena;
	struct mc_st_object obj;
	uint64_t gen;
	struct fix_owner o;
	struct fix f;

	fix_open(&f);
	fix_start(&f);
	mc_pb_arena_init(&arena, mem, sizeof(mem));
	gen = fix_join(&f, &arena, 2)->first_gen;
	fo_open(&o, &f, 5);
	assert_int_equal(fix_commit(&f, "k", gen, 5, 4096, 0).status, 0);
	assert_int_equal(fix_commit(&f, "k", gen, 5, 8192, 0).status, 0); /* repeated */
	assert_int_equal(fix_lookup(&f, "k", &obj), 0);
	assert_int_equal(obj.nreplicas, 1);
	assert_int_equal(obj.replicas[0].addr, 4096);
	fo_stop(&o);
	fix_restart(&f);
	fo_start(&o);
	assert_int_equal(fo_welcomed(&o), 0);
	fo_has(&o, MC_ST_NOTE_HAS, "k", gen, 4096);
	fo_note(&o, MC_ST_NOTE_HAS_ALL, NULL, 0);
	fix_until(&f, "none", MC_STORE_OBJECT_NOT_FOUND);
	assert_int_equal(fix_commit(&f, "k", gen, 5, 8192, 0).status, 0);
	assert_int_equal(fix_lookup(&f, "k", &obj), 0);
	assert_int_equal(obj.nreplicas, 1);
	assert_int_equal(obj.replicas[0].addr, 4096);
	assert_int_equal(fix_commit(&f, "other", gen + 1, 5, 12288, 0).status,
			 MC_STORE_INVALID_VERSION);
	fo_close(&o);
	fix_close(&f);
	(void)state;
}

/* ---- who was committed ---- */

static void owners_are_told_what_is_committed(void **state)
{
	struct fix_owner o;
	struct fix f;

	fix_open(&f);
	fix_start(&f);
	fo_open(&o, &f, 5);
	assert_int_equal(fix_commit(&f, "k", 11, 5, 4096, 0).status, 0);
	fo_expect_place(&o, MC_ST_NOTE_COMMITTED, 4096, 11);
	/* One that does not know asks: its note was lost with a stream. */
	fo_has(&o, MC_ST_NOTE_CHECK, "k", 11, 4096);
	fo_expect_place(&o, MC_ST_NOTE_COMMITTED, 4096, 11);
	fo_has(&o, MC_ST_NOTE_CHECK, "other", 12, 8192);
	fo_expect_free(&o, 8192, 12);
	fo_close(&o);
	fix_close(&f);
	(void)state;
}

static void recover(bool is_committed_first)
{
	struct mc_st_object obj;
	struct fix_owner a, b;
	struct fix f;

	fix_open(&f);
	fix_start(&f);
	fo_open(&a, &f, 5);
	fo_open(&b, &f, 6);
	fo_stop(&a);
	fo_stop(&b);
	fix_restart(&f);
	fo_start(&a);
	fo_start(&b);
	assert_int_equal(fo_welcomed(&a), 0);
	assert_int_equal(fo_welcomed(&b), 0);
	if (is_committed_first) {
		fo_has_as(&a, MC_ST_NOTE_HAS, "k", 11, 4096, MC_ST_HAS_COMMITTED);
		fix_until(&f, "k", 0);
	}
	fo_has(&b, MC_ST_NOTE_HAS, "k", 12, 8192);
	if (!is_committed_first) {
		fix_until(&f, "k", 0);
		fo_has_as(&a, MC_ST_NOTE_HAS, "k", 11, 4096, MC_ST_HAS_COMMITTED);
	}
	fo_expect_free(&b, 8192, 12);
	fo_freed(&b, 8192, 12);
	fo_note(&a, MC_ST_NOTE_HAS_ALL, NULL, 0);
	fo_note(&b, MC_ST_NOTE_HAS_ALL, NULL, 0);
	fix_until(&f, "none", MC_STORE_OBJECT_NOT_FOUND);
	assert_int_equal(fix_lookup(&f, "k", &obj), 0);
	assert_int_equal(obj.gen, 11);
	/* Its writer tries again, and is told to put it anew. */
	assert_int_equal(fix_commit(&f, "k", 12, 6, 8192, 0).status, MC_STORE_REPLICA_IS_GONE);
	fo_close(&a);
	fo_close(&b);
	fix_close(&f);
}

static void what_was_committed_wins_over_a_later_put_that_was_not(void **state)
{
	recover(true);
	recover(false);
	(void)state;
}

/* Seed 1225: an owner that comes later has what it replaces, of a higher generation. */
static void upsert_that_was_only_announced_is_put_anew(void **state)
{
	const uint64_t gen = 1ull << 40 | 7;
	struct fix_owner a, b;
	struct fix f;

	fix_open(&f);
	fix_start(&f);
	fo_open(&a, &f, 5);
	fo_open(&b, &f, 6);
	fo_stop(&a);
	fo_stop(&b);
	fix_restart(&f);
	fo_start(&a);
	assert_int_equal(fo_welcomed(&a), 0);
	fo_has(&a, MC_ST_NOTE_HAS, "k", gen, 4096);
	fo_has_as(&a, MC_ST_NOTE_HAS, "known", gen + 1, 8192, MC_ST_HAS_COMMITTED);
	fix_until(&f, "known", 0);
	assert_int_equal(fix_commit(&f, "k", gen, 5, 4096, MC_ST_COMMIT_UPSERT).status,
			 MC_STORE_INVALID_VERSION);
	assert_int_equal(fix_commit(&f, "known", gen + 1, 5, 8192, MC_ST_COMMIT_UPSERT).status, 0);
	fo_close(&a);
	fo_close(&b);
	fix_close(&f);
	(void)state;
}

/* ---- what a writer left behind ---- */

static void what_may_be_left_at_an_owner_is_freed(void **state)
{
	const struct fix_key text = fix_key("k");
	const struct mc_st_commit c = {
	    .gen = 11,
	    .len = 100,
	    .key_len = text.len,
	    .nreplicas = 2,
	    .replicas = {{.owner = 5, .addr = 4096}, {.owner = 6, .addr = MC_ST_LEFT_ADDR}},
	    .key = text.bytes};
	struct mc_st_object obj;
	struct fix_later later;
	struct fix_owner a, b;
	uint8_t req[512];
	struct mc_wr w = mc_wr_make(req, sizeof(req));
	struct fix f;
	size_t len;

	mc_wr_u32(&w, 1);
	mc_st_commit_encode(&w, &c);
	fix_open(&f);
	fix_start(&f);
	fo_open(&a, &f, 5);
	fo_open(&b, &f, 6);
	assert_int_equal(fix_call(&f, MC_ST_COMMIT, req, mc_wr_len(&w), &len), 0);
	assert_int_equal(fix_committed(f.buf, len).status, 0); /* waits for nobody */
	fo_expect_free(&b, 0, 11);
	/* While that is under way it is not taken in. */
	fo_has(&b, MC_ST_NOTE_HAS, "k", 11, 8192);
	assert_int_equal(fix_lookup(&f, "k", &obj), 0);
	assert_int_equal(obj.nreplicas, 1);
	fix_remove_later(&f, &later, "k");
	fo_expect_free(&a, 4096, 11);
	fo_freed(&a, 4096, 11);
	fo_freed(&b, 0, 11);
	assert_int_equal(fix_removed(&f, &later), 0);
	fo_close(&a);
	fo_close(&b);
	fix_close(&f);
	(void)state;
}

int main(void)
{
	const struct CMUnitTest tests[] = {
	    cmocka_unit_test(
		master_whose_state_was_lost_does_not_begin_an_epoch_that_an_owner_has_seen),
	    cmocka_unit_test(repeated_commit_adds_no_replica),
	    cmocka_unit_test(owners_are_told_what_is_committed),
	    cmocka_unit_test(what_was_committed_wins_over_a_later_put_that_was_not),
	    cmocka_unit_test(upsert_that_was_only_announced_is_put_anew),
	    cmocka_unit_test(what_may_be_left_at_an_owner_is_freed),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
