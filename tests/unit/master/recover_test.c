/*
 * recover_test.c: what a later master makes of what its predecessors left: generations, epochs,
 * slots of which two stand for one key. Most of it was found by the simulator.
 */
#include "fixture.h"

/* ---- restarts ---- */

static void restarted_master_serves_what_owners_announce(void **state)
{
	struct fix_owner o;
	struct fix f;

	fix_run_one(&f, &o);
	assert_int_equal(fix_commit(&f, "k", 11, 5, 4096, 0).status, 0);
	fix_restart(&f);
	/* It does not know yet: neither that there is something, nor that there is nothing. */
	assert_int_equal(fix_exist(&f, "k"), MC_STORE_UNAVAILABLE_IN_CURRENT_STATUS);
	assert_int_equal(fix_exist(&f, "none"), MC_STORE_UNAVAILABLE_IN_CURRENT_STATUS);
	fo_start_anew(&o);
	assert_int_equal(fix_commit(&f, "k", 12, 5, 8192, 0).status,
			 MC_STORE_UNAVAILABLE_IN_CURRENT_STATUS);
	fo_has(&o, MC_ST_NOTE_HAS, "k", 11, 4096);
	fix_until(&f, "k", 0);
	assert_int_equal(fix_exist(&f, "none"), MC_STORE_UNAVAILABLE_IN_CURRENT_STATUS);
	fo_note(&o, MC_ST_NOTE_HAS_ALL, NULL, 0);
	fix_until(&f, "none", MC_STORE_OBJECT_NOT_FOUND);
	assert_int_equal(fix_find(&f, "k").gen, 11);
	fix_close(&f);
	(void)state;
}

static void restart_with_a_free_under_way_does_not_bring_the_object_back(void **state)
{
	struct fix_later later;
	struct fix_owner o;
	struct fix f;

	fix_run_one(&f, &o);
	assert_int_equal(fix_commit(&f, "k", 11, 5, 4096, 0).status, 0);
	fo_stop(&o);
	/* Nobody frees it: the answer is a tombstone. */
	fix_remove_later(&f, &later, "k");
	assert_int_equal(fix_removed(&f, &later), 0);
	fix_restart(&f);
	fo_start_anew(&o);
	fo_has(&o, MC_ST_NOTE_HAS, "k", 11, 4096);
	fo_frees(&o, 4096, 11);
	fo_note(&o, MC_ST_NOTE_HAS_ALL, NULL, 0);
	fix_until(&f, "k", MC_STORE_OBJECT_NOT_FOUND);
	fix_close(&f);
	(void)state;
}

static void a_tombstone_stands_for_its_owner_once_no_reader_knows_the_place(void **state)
{
	struct fix_later later;
	struct mc_st_object obj;
	struct fix_owner o;
	uint64_t known_ns;
	struct fix f;

	fix_open(&f);
	f.conf.lease_ms = 1200;
	fix_start(&f);
	fo_open(&o, &f, 5);
	assert_int_equal(fix_commit(&f, "k", 11, 5, 4096, 0).status, 0);
	assert_int_equal(fix_lookup(&f, "k", &obj), 0);
	assert_int_equal(obj.lease_ms, 1200);
	known_ns = mc_now_ns() - MC_NS_PER_MS;
	/* Out of the master's reach, perhaps not out of a reader's. */
	fo_stop(&o);
	fix_remove_later(&f, &later, "k");
	assert_int_equal(fix_removed(&f, &later), 0);
	assert_in_range(mc_now_ns(), known_ns + 1200 * MC_NS_PER_MS, UINT64_MAX);
	fix_close(&f);
	(void)state;
}

/* Whoever removes it then waits for those alone who were told before. */
static void place_at_an_owner_that_is_not_heard_is_not_to_be_remembered(void **state)
{
	uint64_t until_ns = mc_now_ns() + SOON_NS;
	struct mc_st_object obj;
	struct fix_owner o;
	struct fix f;

	fix_open(&f);
	f.conf.lease_ms = 60000;
	fix_start(&f);
	fo_open(&o, &f, 5);
	assert_int_equal(fix_commit(&f, "k", 11, 5, 4096, 0).status, 0);
	assert_int_equal(fix_lookup(&f, "k", &obj), 0);
	assert_int_equal(obj.lease_ms, 60000);
	fo_stop(&o);
	do {
		assert_int_equal(fix_lookup(&f, "k", &obj), 0);
		(void)poll(NULL, 0, 1);
	} while (obj.lease_ms > 0 && mc_now_ns() < until_ns);
	assert_int_equal(obj.lease_ms, 0);
	assert_int_equal(obj.nreplicas, 1);
	fix_close(&f);
	(void)state;
}

static void highest_generation_announced_wins(void **state)
{
	struct fix_owner a, b;
	struct fix f;

	fix_run_two(&f, &a, &b);
	fix_restart(&f);
	fo_start_anew(&a);
	fo_start_anew(&b);
	fo_has(&a, MC_ST_NOTE_HAS, "k", 11, 4096);
	fix_until(&f, "k", 0);
	fo_has(&b, MC_ST_NOTE_HAS, "k", 12, 8192);
	fo_frees(&a, 4096, 11);
	fo_note(&a, MC_ST_NOTE_HAS_ALL, NULL, 0);
	fo_note(&b, MC_ST_NOTE_HAS_ALL, NULL, 0);
	fix_until(&f, "none", MC_STORE_OBJECT_NOT_FOUND);
	fix_until(&f, "k", 0);
	assert_int_equal(fix_find(&f, "k").gen, 12);
	fix_close(&f);
	(void)state;
}

static void master_with_an_older_epoch_than_an_owner_begins_a_later_one(void **state)
{
	_Alignas(16) uint8_t mem[1024];
	struct mc_pb_arena arena;
	struct fix_owner o;
	struct fix f;

	mc_pb_arena_init(&arena, mem, sizeof(mem));
	fix_run(&f);
	fo_init(&o, &f, 5);
	o.epoch = 70;
	fo_start_anew(&o);
	assert_int_equal(o.epoch, 71);
	assert_int_equal(fix_join(&f, &arena, 1)->epoch, 71);
	fix_restart(&f);
	assert_int_equal(fix_join(&f, &arena, 1)->epoch, 72);
	fix_close(&f);
	(void)state;
}

/*
 * ---- what the simulator found: each lost an acknowledged object, or brought an old one back ----
 */

static void commit_at_an_owner_that_has_not_announced_is_to_be_repeated(void **state)
{
	struct fix_owner a, b;
	struct fix f;

	fix_run_two(&f, &a, &b);
	assert_int_equal(fix_commit(&f, "k", 11, 5, 4096, 0).status, 0);
	fix_restart(&f);
	fo_start_anew(&a);
	fo_has(&a, MC_ST_NOTE_HAS, "k", 11, 4096);
	fo_note(&a, MC_ST_NOTE_HAS_ALL, NULL, 0);
	fix_until(&f, "k", 0);
	/* Were it refused, its writer would give up what the master takes in a moment later. */
	assert_int_equal(fix_commit(&f, "k", 12, 6, 8192, 0).status,
			 MC_STORE_UNAVAILABLE_IN_CURRENT_STATUS);
	fo_start_anew(&b);
	fo_note(&b, MC_ST_NOTE_HAS_ALL, NULL, 0);
	fix_until(&f, "none", MC_STORE_OBJECT_NOT_FOUND);
	fix_close(&f);
	(void)state;
}

static void refused_commit_is_not_taken_in_when_its_owner_comes(void **state)
{
	struct fix_owner o;
	struct fix f;

	fix_run(&f);
	assert_int_equal(fix_commit(&f, "k", 12, 5, 8192, 0).status, MC_STORE_REPLICA_IS_GONE);
	fo_open(&o, &f, 5);
	fo_has(&o, MC_ST_NOTE_HAS, "k", 12, 8192);
	fo_expect_free(&o, 8192, 12);
	assert_int_equal(fix_exist(&f, "k"), MC_STORE_OBJECT_NOT_FOUND);
	fix_close(&f);
	(void)state;
}

static void remove_waits_until_all_owners_have_announced(void **state)
{
	struct fix_later removed;
	struct fix_owner a, b;
	struct fix f;

	fix_run_two(&f, &a, &b);
	fix_restart(&f);
	fo_start_anew(&a);
	fo_has(&a, MC_ST_NOTE_HAS, "k", 11, 4096);
	fix_until(&f, "k", 0);
	fix_remove_later(&f, &removed, "k"); /* b may have a newer one */
	assert_int_equal(fix_removed(&f, &removed), MC_STORE_UNAVAILABLE_IN_CURRENT_STATUS);
	fix_close(&f);
	(void)state;
}

static void upsert_that_was_taken_in_before_its_commit_covers_what_is_away(void **state)
{
	struct fix_owner a, b;
	struct fix f;

	fix_run_two(&f, &a, &b);
	assert_int_equal(fix_commit(&f, "k", 11, 5, 4096, 0).status, 0);
	fix_restart(&f);
	fo_start_anew(&b);
	fo_has(&b, MC_ST_NOTE_HAS, "k", 12, 8192);
	fix_until(&f, "k", 0);
	assert_int_equal(fix_commit(&f, "k", 12, 6, 8192, MC_ST_COMMIT_UPSERT).status, 0);
	fix_restart(&f);
	fo_start_anew(&a); /* before b */
	fo_has(&a, MC_ST_NOTE_HAS, "k", 11, 4096);
	fo_expect_free(&a, 4096, 11);
	fix_close(&f);
	(void)state;
}

static void commit_of_what_a_restart_freed_is_refused(void **state)
{
	struct fix_owner o;
	struct fix f;

	fix_run_one(&f, &o);
	assert_int_equal(fix_commit(&f, "k", 12, 5, 4096, MC_ST_COMMIT_UPSERT).status, 0);
	fix_restart(&f);
	fo_start_anew(&o);
	fo_has(&o, MC_ST_NOTE_HAS, "k", 11, 8192); /* its commit is still to come */
	fo_has(&o, MC_ST_NOTE_HAS, "k", 12, 4096);
	fo_frees(&o, 8192, 11);
	fo_note(&o, MC_ST_NOTE_HAS_ALL, NULL, 0);
	fix_until(&f, "none", MC_STORE_OBJECT_NOT_FOUND);
	fix_remove(&f, "k", &o, 4096, 12);
	assert_int_equal(fix_commit(&f, "k", 11, 5, 8192, MC_ST_COMMIT_UPSERT).status,
			 MC_STORE_REPLICA_IS_GONE);
	fix_close(&f);
	(void)state;
}

/* The master before may have had its bytes freed: only what was announced is published. */
static void commit_of_an_earlier_life_publishes_what_was_announced(void **state)
{
	const uint64_t seen = (1ull << 40) | 7, unseen = (1ull << 40) | 8;
	struct mc_st_object obj;
	struct fix_owner o;
	struct fix f;

	fix_run_one(&f, &o);
	fix_restart(&f);
	fo_start_anew(&o);
	fo_has(&o, MC_ST_NOTE_HAS, "seen", seen, 4096);
	fo_note(&o, MC_ST_NOTE_HAS_ALL, NULL, 0);
	fix_until(&f, "none", MC_STORE_OBJECT_NOT_FOUND);
	assert_int_equal(fix_commit(&f, "seen", seen, 5, 4096, 0).status, 0);
	assert_int_equal(fix_find(&f, "seen").nreplicas, 1);
	assert_int_equal(fix_commit(&f, "unseen", unseen, 5, 8192, 0).status,
			 MC_STORE_INVALID_VERSION);
	assert_int_equal(fix_lookup(&f, "unseen", &obj), MC_STORE_OBJECT_NOT_FOUND);
	fix_close(&f);
	(void)state;
}

static void tombstone_of_a_late_put_spares_the_object_that_was_first(void **state)
{
	struct fix_later late;
	struct fix_owner o;
	struct fix f;

	fix_open(&f);
	f.conf.client_ttl_ms = 700;
	fix_start(&f);
	fo_open(&o, &f, 5);
	assert_int_equal(fix_commit(&f, "k", 11, 5, 4096, 0).status, 0);
	fo_stop(&o);
	fix_commit_later(&f, &late, "k", 12, 5, 8192, 0); /* suspect: it has both */
	assert_int_equal(fix_committed_later(&f, &late).status, MC_STORE_OBJECT_ALREADY_EXISTS);
	fix_until(&f, "k", MC_STORE_OBJECT_NOT_FOUND);
	fo_start_anew(&o);
	fo_has(&o, MC_ST_NOTE_HAS, "k", 12, 8192);
	fo_expect_free(&o, 8192, 12);
	fo_has(&o, MC_ST_NOTE_HAS, "k", 11, 4096);
	fo_note(&o, MC_ST_NOTE_HAS_ALL, NULL, 0);
	fo_freed(&o, 8192, 12);
	fix_until(&f, "k", 0);
	assert_int_equal(fix_find(&f, "k").gen, 11);
	fix_close(&f);
	(void)state;
}

static void upsert_covers_what_an_owner_has_that_this_master_never_saw(void **state)
{
	struct fix_owner a, b;
	struct fix f;

	fix_open(&f);
	f.conf.client_ttl_ms = 700;
	fix_start(&f);
	fo_open(&a, &f, 5);
	fo_open(&b, &f, 6);
	assert_int_equal(fix_commit(&f, "k", 11, 5, 4096, 0).status, 0);
	fix_restart(&f);
	fo_start_anew(&b);
	fo_note(&b, MC_ST_NOTE_HAS_ALL, NULL, 0);
	fix_until(&f, "k", MC_STORE_OBJECT_NOT_FOUND); /* a is given up */
	assert_int_equal(fix_commit(&f, "k", 12, 6, 8192, MC_ST_COMMIT_UPSERT).status, 0);
	fix_restart(&f);
	fo_start_anew(&a); /* before b */
	fo_has(&a, MC_ST_NOTE_HAS, "k", 11, 4096);
	fo_expect_free(&a, 4096, 11);
	fix_close(&f);
	(void)state;
}

/* Found by the simulator: the first epoch of a directory that was lost, once more. */
static void master_whose_state_was_lost_does_not_begin_an_epoch_that_an_owner_has_seen(void **state)
{
	struct fix_owner o;
	struct fix f;

	fix_run(&f);
	fo_init(&o, &f, 5);
	o.epoch = 1;
	fo_start_anew(&o);
	assert_int_equal(o.epoch, 2);
	fix_close(&f);
	(void)state;
}

/* Found by the simulator: the life before may have had the slots freed, and their bytes be
 * another's; if not, a later master would find them (seed 10330). */
static void repeated_commit_adds_no_replica(void **state)
{
	_Alignas(16) uint8_t mem[1024];
	struct mc_pb_arena arena;
	struct mc_st_object obj;
	struct fix_later later;
	uint64_t gen;
	struct fix_owner o;
	struct fix f;

	fix_run(&f);
	mc_pb_arena_init(&arena, mem, sizeof(mem));
	gen = fix_join(&f, &arena, 2)->first_gen;
	fo_open(&o, &f, 5);
	assert_int_equal(fix_commit(&f, "k", gen, 5, 4096, 0).status, 0);
	fix_commit_later(&f, &later, "k", gen, 5, 8192, 0); /* repeated */
	fo_frees(&o, 8192, gen);
	assert_int_equal(fix_committed_later(&f, &later).status, 0);
	assert_int_equal(fix_lookup(&f, "k", &obj), 0);
	assert_int_equal(obj.nreplicas, 1);
	assert_int_equal(obj.replicas[0].addr, 4096);
	fix_restart(&f);
	fo_start_anew(&o);
	fo_has(&o, MC_ST_NOTE_HAS, "k", gen, 4096);
	fo_note(&o, MC_ST_NOTE_HAS_ALL, NULL, 0);
	fix_until(&f, "none", MC_STORE_OBJECT_NOT_FOUND);
	fix_commit_later(&f, &later, "k", gen, 5, 8192, 0);
	fo_frees(&o, 8192, gen);
	assert_int_equal(fix_committed_later(&f, &later).status, 0);
	assert_int_equal(fix_lookup(&f, "k", &obj), 0);
	assert_int_equal(obj.nreplicas, 1);
	assert_int_equal(obj.replicas[0].addr, 4096);
	assert_int_equal(fix_commit(&f, "other", gen + 1, 5, 12288, 0).status,
			 MC_STORE_INVALID_VERSION);
	fix_close(&f);
	(void)state;
}

/* ---- who was committed ---- */

static void owners_are_told_what_is_committed(void **state)
{
	struct fix_owner o;
	struct fix f;

	fix_run_one(&f, &o);
	assert_int_equal(fix_commit(&f, "k", 11, 5, 4096, 0).status, 0);
	fo_expect_place(&o, MC_ST_NOTE_COMMITTED, 4096, 11);
	/* One that does not know asks: its note was lost with a stream. */
	fo_has(&o, MC_ST_NOTE_CHECK, "k", 11, 4096);
	fo_expect_place(&o, MC_ST_NOTE_COMMITTED, 4096, 11);
	fo_has(&o, MC_ST_NOTE_CHECK, "other", 12, 8192);
	fo_expect_free(&o, 8192, 12);
	fix_close(&f);
	(void)state;
}

static void recover(bool is_committed_first)
{
	struct fix_owner a, b;
	struct fix f;

	fix_run_two(&f, &a, &b);
	fix_restart(&f);
	fo_start_anew(&a);
	fo_start_anew(&b);
	if (is_committed_first) {
		fo_has_as(&a, MC_ST_NOTE_HAS, "k", 11, 4096, MC_ST_HAS_COMMITTED);
		fix_until(&f, "k", 0);
	}
	fo_has(&b, MC_ST_NOTE_HAS, "k", 12, 8192);
	if (!is_committed_first) {
		fix_until(&f, "k", 0);
		fo_has_as(&a, MC_ST_NOTE_HAS, "k", 11, 4096, MC_ST_HAS_COMMITTED);
	}
	fo_frees(&b, 8192, 12);
	fo_note(&a, MC_ST_NOTE_HAS_ALL, NULL, 0);
	fo_note(&b, MC_ST_NOTE_HAS_ALL, NULL, 0);
	fix_until(&f, "none", MC_STORE_OBJECT_NOT_FOUND);
	assert_int_equal(fix_find(&f, "k").gen, 11);
	/* Its writer tries again, and is told to put it anew. */
	assert_int_equal(fix_commit(&f, "k", 12, 6, 8192, 0).status, MC_STORE_REPLICA_IS_GONE);
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

	fix_run_two(&f, &a, &b);
	fix_restart(&f);
	fo_start_anew(&a);
	fo_has(&a, MC_ST_NOTE_HAS, "k", gen, 4096);
	fo_has_as(&a, MC_ST_NOTE_HAS, "known", gen + 1, 8192, MC_ST_HAS_COMMITTED);
	fix_until(&f, "known", 0);
	assert_int_equal(fix_commit(&f, "k", gen, 5, 4096, MC_ST_COMMIT_UPSERT).status,
			 MC_STORE_INVALID_VERSION);
	assert_int_equal(fix_commit(&f, "known", gen + 1, 5, 8192, MC_ST_COMMIT_UPSERT).status, 0);
	fix_close(&f);
	(void)state;
}

/* Found by the simulator (seed 4501): what it replaced was freed when it was announced. */
static void what_was_announced_is_not_lost_when_its_commit_is_refused(void **state)
{
	const uint64_t gen = 1ull << 40 | 7;
	struct fix_owner o;
	struct fix f;

	fix_open(&f);
	f.conf.client_ttl_ms = 700;
	fix_start(&f);
	fo_open(&o, &f, 5);
	fix_restart(&f);
	for (unsigned i = 0; i < 2; i++) {
		fo_start_anew(&o);
		fo_has(&o, MC_ST_NOTE_HAS, "k", gen, 4096);
		fo_note(&o, MC_ST_NOTE_HAS_ALL, NULL, 0);
		fix_until(&f, "k", 0);
		assert_int_equal(fix_commit(&f, "k", gen, 5, 4096, MC_ST_COMMIT_UPSERT).status,
				 MC_STORE_INVALID_VERSION);
		fo_stop(&o);
		fix_until(&f, "k", MC_STORE_OBJECT_NOT_FOUND);
	}
	fix_close(&f);
	(void)state;
}

/* It may have been published before, and the answer lost. */
static void commit_at_an_owner_that_went_away_meanwhile_is_to_be_repeated(void **state)
{
	_Alignas(16) uint8_t mem[1024];
	struct mc_pb_arena arena;
	uint64_t gen;
	struct fix_owner o;
	struct fix f;

	fix_open(&f);
	f.conf.client_ttl_ms = 700;
	fix_start(&f);
	fo_open(&o, &f, 5);
	mc_pb_arena_init(&arena, mem, sizeof(mem));
	gen = fix_join(&f, &arena, 1)->first_gen;
	assert_int_equal(fix_commit(&f, "k", gen, 5, 4096, 0).status, 0);
	fo_stop(&o);
	fix_until(&f, "k", MC_STORE_OBJECT_NOT_FOUND);
	assert_int_equal(fix_commit(&f, "k", gen, 5, 4096, 0).status,
			 MC_STORE_UNAVAILABLE_IN_CURRENT_STATUS);
	fo_start_anew(&o);
	fo_has(&o, MC_ST_NOTE_HAS, "k", gen, 4096);
	fo_note(&o, MC_ST_NOTE_HAS_ALL, NULL, 0);
	fix_until(&f, "k", 0);
	assert_int_equal(fix_commit(&f, "k", gen, 5, 4096, 0).status, 0);
	fix_close(&f);
	(void)state;
}

/* ---- what a writer left behind ---- */

/* At owner 5; owner 6 was asked, too, and not heard. */
static void commit_left_later(struct fix *f, struct fix_later *l, uint64_t gen, uint64_t addr)
{
	const struct fix_key text = fix_key("k");
	const struct mc_st_commit c = {
	    .gen = gen,
	    .len = 100,
	    .key_len = text.len,
	    .nreplicas = 2,
	    .replicas = {{.owner = 5, .addr = addr}, {.owner = 6, .addr = MC_ST_LEFT_ADDR}},
	    .key = text.bytes};
	struct mc_wr w = mc_wr_make(l->req, sizeof(l->req));

	mc_wr_u32(&w, 1);
	mc_st_commit_encode(&w, &c);
	fix_later_start(f, l, MC_ST_COMMIT, mc_wr_len(&w));
}

static void what_may_be_left_at_an_owner_is_freed(void **state)
{
	struct fix_later later;
	struct fix_owner a, b;
	struct fix f;

	fix_run_two(&f, &a, &b);
	commit_left_later(&f, &later, 11, 4096);
	assert_int_equal(fix_committed_later(&f, &later).status, 0); /* waits for nobody */
	fo_expect_free(&b, 0, 11);
	/* While that is under way it is not taken in. */
	fo_has(&b, MC_ST_NOTE_HAS, "k", 11, 8192);
	assert_int_equal(fix_find(&f, "k").nreplicas, 1);
	fix_remove_later(&f, &later, "k");
	fo_frees(&a, 4096, 11);
	fo_freed(&b, 0, 11);
	assert_int_equal(fix_removed(&f, &later), 0);
	fix_close(&f);
	(void)state;
}

/* Found by the simulator (seed 312): its answer waits for its frees, and those of what was left
 * were forgotten. */
static void what_a_put_that_was_too_late_left_at_an_owner_is_freed(void **state)
{
	struct fix_later later;
	struct fix_owner a, b;
	struct fix f;

	fix_run_two(&f, &a, &b);
	assert_int_equal(fix_commit(&f, "k", 11, 5, 4096, 0).status, 0);
	commit_left_later(&f, &later, 12, 8192);
	fo_frees(&a, 8192, 12);
	fo_frees(&b, 0, 12);
	assert_int_equal(fix_committed_later(&f, &later).status, MC_STORE_OBJECT_ALREADY_EXISTS);
	fix_close(&f);
	(void)state;
}

int main(void)
{
	const struct CMUnitTest tests[] = {
	    cmocka_unit_test(restarted_master_serves_what_owners_announce),
	    cmocka_unit_test(restart_with_a_free_under_way_does_not_bring_the_object_back),
	    cmocka_unit_test(a_tombstone_stands_for_its_owner_once_no_reader_knows_the_place),
	    cmocka_unit_test(place_at_an_owner_that_is_not_heard_is_not_to_be_remembered),
	    cmocka_unit_test(highest_generation_announced_wins),
	    cmocka_unit_test(master_with_an_older_epoch_than_an_owner_begins_a_later_one),
	    cmocka_unit_test(commit_at_an_owner_that_has_not_announced_is_to_be_repeated),
	    cmocka_unit_test(refused_commit_is_not_taken_in_when_its_owner_comes),
	    cmocka_unit_test(remove_waits_until_all_owners_have_announced),
	    cmocka_unit_test(upsert_that_was_taken_in_before_its_commit_covers_what_is_away),
	    cmocka_unit_test(commit_of_what_a_restart_freed_is_refused),
	    cmocka_unit_test(commit_of_an_earlier_life_publishes_what_was_announced),
	    cmocka_unit_test(tombstone_of_a_late_put_spares_the_object_that_was_first),
	    cmocka_unit_test(upsert_covers_what_an_owner_has_that_this_master_never_saw),
	    cmocka_unit_test(
		master_whose_state_was_lost_does_not_begin_an_epoch_that_an_owner_has_seen),
	    cmocka_unit_test(repeated_commit_adds_no_replica),
	    cmocka_unit_test(owners_are_told_what_is_committed),
	    cmocka_unit_test(what_was_committed_wins_over_a_later_put_that_was_not),
	    cmocka_unit_test(upsert_that_was_only_announced_is_put_anew),
	    cmocka_unit_test(what_was_announced_is_not_lost_when_its_commit_is_refused),
	    cmocka_unit_test(commit_at_an_owner_that_went_away_meanwhile_is_to_be_repeated),
	    cmocka_unit_test(what_may_be_left_at_an_owner_is_freed),
	    cmocka_unit_test(what_a_put_that_was_too_late_left_at_an_owner_is_freed),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
