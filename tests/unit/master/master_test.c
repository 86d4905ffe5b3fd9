/*
 * master_test.c: clients and owners of a master, over real sockets. Its restarts: recover_test.c.
 */
#include "fixture.h"

/* ---- hello ---- */

static void join_gives_generations_that_no_later_master_gives(void **state)
{
	_Alignas(16) uint8_t mem[1024];
	struct mc_pb_arena arena;
	const Mc__St__JoinReply *r;
	uint64_t first, epoch;
	struct fix f;

	mc_pb_arena_init(&arena, mem, sizeof(mem));
	fix_run(&f);
	r = fix_join(&f, &arena, 100);
	assert_int_equal(r->ngens, 100);
	assert_int_equal(r->first_gen >> 40, r->epoch);
	first = r->first_gen;
	epoch = r->epoch;
	r = fix_join(&f, &arena, 1);
	assert_int_equal(r->first_gen, first + 100);
	fix_restart(&f);
	r = fix_join(&f, &arena, 1);
	assert_int_equal(r->epoch, epoch + 1);
	assert_int_equal(r->first_gen >> 40, epoch + 1);
	fix_close(&f);
	(void)state;
}

static Mc__St__ViewReply *view(struct fix *f, struct mc_pb_arena *arena, uint64_t known)
{
	Mc__St__View m = MC__ST__VIEW__INIT;
	ProtobufCMessage *ret;
	uint8_t req[32];
	size_t len;

	m.known = known;
	assert_int_equal(mc_pb_pack(&m.base, req, sizeof(req), &len), 0);
	assert_int_equal(fix_call(f, MC_ST_VIEW, req, len, &len), 0);
	assert_int_equal(mc_pb_unpack(arena, &mc__st__view_reply__descriptor, f->buf, len, &ret),
			 0);
	return (Mc__St__ViewReply *)ret;
}

static void view_shows_owners_that_take_puts(void **state)
{
	_Alignas(16) uint8_t mem[4096];
	struct mc_pb_arena arena;
	const Mc__St__ViewReply *r;
	uint64_t end = mc_now_ns() + SOON_NS, version;
	struct fix_owner o;
	struct fix f;

	mc_pb_arena_init(&arena, mem, sizeof(mem));
	fix_run(&f);
	r = view(&f, &arena, 0);
	assert_int_equal(r->n_owners, 0);
	fo_open(&o, &f, 5);
	do {
		r = view(&f, &arena, 0);
		assert_true(mc_now_ns() < end);
	} while (r->n_owners == 0 || !r->owners[0]->takes_puts);
	assert_int_equal(r->owners[0]->id, 5);
	assert_int_equal(r->owners[0]->capacity, 1000);
	assert_string_equal(r->owners[0]->segment, "host-5:1");
	version = r->version;
	r = view(&f, &arena, version);
	assert_int_equal(r->n_owners, 0); /* nothing new */
	fo_stop(&o);
	do {
		r = view(&f, &arena, version);
		assert_true(mc_now_ns() < end);
	} while (r->n_owners == 0);
	assert_false(r->owners[0]->takes_puts);
	fix_close(&f);
	(void)state;
}

/* ---- put, get, remove ---- */

static void committed_object_is_looked_up_until_its_owner_freed_it(void **state)
{
	struct mc_st_object obj;
	struct fix_later later;
	struct fix_owner o;
	struct fix f;

	fix_run_one(&f, &o);
	assert_int_equal(fix_lookup(&f, "k", &obj), MC_STORE_OBJECT_NOT_FOUND);
	assert_int_equal(fix_commit(&f, "k", 11, 5, 4096, 0).status, 0);
	assert_int_equal(fix_commit(&f, "k", 11, 5, 4096, 0).status, 0); /* said again */
	assert_int_equal(fix_lookup(&f, "k", &obj), 0);
	assert_int_equal(obj.gen, 11);
	assert_int_equal(obj.nreplicas, 1);
	assert_int_equal(obj.replicas[0].owner, 5);
	assert_int_equal(obj.replicas[0].addr, 4096);
	assert_int_equal(obj.replicas[0].life, (uint32_t)o.incarnation);
	fix_remove_later(&f, &later, "k");
	fo_expect_free(&o, 4096, 11);
	assert_int_equal(fix_exist(&f, "k"), MC_STORE_OBJECT_NOT_FOUND);
	fo_freed(&o, 4096, 11);
	assert_int_equal(fix_removed(&f, &later), 0);
	fix_close(&f);
	(void)state;
}

static void late_put_is_answered_when_its_slot_is_freed(void **state)
{
	struct mc_st_committed c;
	struct fix_later later;
	struct fix_owner o;
	struct fix f;

	fix_run_one(&f, &o);
	assert_int_equal(fix_commit(&f, "k", 11, 5, 4096, 0).status, 0);
	fix_commit_later(&f, &later, "k", 12, 5, 8192, 0);
	fo_frees(&o, 8192, 12);
	c = fix_committed_later(&f, &later);
	assert_int_equal(c.status, MC_STORE_OBJECT_ALREADY_EXISTS);
	assert_int_equal(c.gen, 11);
	fix_close(&f);
	(void)state;
}

static void upsert_is_answered_when_the_old_slot_is_freed(void **state)
{
	struct mc_st_committed c;
	struct fix_later later;
	struct fix_owner o;
	struct fix f;

	fix_run_one(&f, &o);
	assert_int_equal(fix_commit(&f, "k", 11, 5, 4096, 0).status, 0);
	c = fix_commit(&f, "k", 10, 5, 8192, MC_ST_COMMIT_UPSERT);
	assert_int_equal(c.status, MC_STORE_INVALID_VERSION);
	assert_int_equal(c.gen, 11);
	fix_commit_later(&f, &later, "k", 12, 5, 8192, MC_ST_COMMIT_UPSERT);
	fo_expect_free(&o, 4096, 11);
	assert_int_equal(fix_exist(&f, "k"), MC_STORE_UNAVAILABLE_IN_CURRENT_STATUS);
	fo_freed(&o, 4096, 11);
	assert_int_equal(fix_committed_later(&f, &later).status, 0);
	assert_int_equal(fix_find(&f, "k").gen, 12);
	fix_close(&f);
	(void)state;
}

/* Found by the simulator: it was committed again, with a slot that had been freed. */
static void upsert_that_was_removed_while_it_waited_stays_removed(void **state)
{
	struct fix_later upsert, removed;
	struct mc_st_committed c;
	struct fix_owner o;
	struct fix f;

	fix_run_one(&f, &o);
	assert_int_equal(fix_commit(&f, "k", 11, 5, 4096, 0).status, 0);
	fix_commit_later(&f, &upsert, "k", 12, 5, 8192, MC_ST_COMMIT_UPSERT);
	fo_expect_free(&o, 4096, 11);
	fix_remove_later(&f, &removed, "k");
	fo_frees(&o, 8192, 12);
	fo_freed(&o, 4096, 11);
	assert_int_equal(fix_committed_later(&f, &upsert).status, 0);
	assert_int_equal(fix_removed(&f, &removed), 0);
	assert_int_equal(fix_exist(&f, "k"), MC_STORE_OBJECT_NOT_FOUND);
	c = fix_commit(&f, "k", 12, 5, 8192, MC_ST_COMMIT_UPSERT); /* its answer was lost */
	assert_int_equal(c.status, MC_STORE_REPLICA_IS_GONE);
	assert_int_equal(fix_exist(&f, "k"), MC_STORE_OBJECT_NOT_FOUND);
	fix_close(&f);
	(void)state;
}

static void put_waits_for_the_frees_of_its_key(void **state)
{
	struct fix_later removed, put;
	struct fix_owner o;
	struct fix f;

	fix_run_one(&f, &o);
	assert_int_equal(fix_commit(&f, "k", 11, 5, 4096, 0).status, 0);
	fix_remove_later(&f, &removed, "k");
	fo_expect_free(&o, 4096, 11);
	fix_commit_later(&f, &put, "k", 10, 5, 8192, 0);
	assert_int_equal(fix_exist(&f, "k"), MC_STORE_OBJECT_NOT_FOUND);
	fo_freed(&o, 4096, 11);
	assert_int_equal(fix_removed(&f, &removed), 0);
	assert_int_equal(fix_committed_later(&f, &put).status, 0);
	assert_int_equal(fix_find(&f, "k").gen, 10);
	fix_close(&f);
	(void)state;
}

static void commit_of_a_slot_of_another_life_is_refused(void **state)
{
	struct mc_st_commit c = {.gen = 11,
				 .len = 1,
				 .key_len = 2,
				 .nreplicas = 1,
				 .replicas = {{.owner = 5, .addr = 64, .life = 77}},
				 .key = (const uint8_t *)"\0k"};
	uint8_t req[256];
	struct mc_wr w = mc_wr_make(req, sizeof(req));
	struct fix_owner o;
	struct fix f;
	size_t len;

	fix_run_one(&f, &o);
	mc_wr_u32(&w, 1);
	mc_st_commit_encode(&w, &c);
	assert_int_equal(fix_call(&f, MC_ST_COMMIT, req, mc_wr_len(&w), &len), 0);
	assert_int_equal(fix_committed(f.buf, len).status, MC_STORE_REPLICA_IS_GONE);
	assert_int_equal(fix_commit(&f, "k", 11, 6, 64, 0).status, MC_STORE_REPLICA_IS_GONE);
	fix_close(&f);
	(void)state;
}

static void slot_that_was_never_committed_is_freed_and_cannot_be_later(void **state)
{
	struct fix_owner o;
	struct fix f;

	fix_run_one(&f, &o);
	assert_int_equal(fix_commit(&f, "known", 11, 5, 4096, 0).status, 0);
	fo_has(&o, MC_ST_NOTE_CHECK, "known", 11, 4096);
	fo_has(&o, MC_ST_NOTE_CHECK, "lost", 12, 8192);
	fo_frees(&o, 8192, 12);
	assert_int_equal(fix_commit(&f, "lost", 12, 5, 8192, 0).status, MC_STORE_REPLICA_IS_GONE);
	assert_int_equal(fix_exist(&f, "known"), 0);
	fix_close(&f);
	(void)state;
}

/* ---- a full pool ---- */

static void owner_without_room_gets_frees_or_is_told_that_there_is_none(void **state)
{
	struct fix_owner o;
	struct fix f;

	fix_run_one(&f, &o);
	fo_space(&o, MC_ST_NOTE_WANT, 1000, 50);
	(void)fo_expect(&o, MC_ST_NOTE_NO_ROOM);
	assert_int_equal(fix_commit(&f, "k", 11, 5, 4096, 0).status, 0);
	fo_space(&o, MC_ST_NOTE_WANT, 1000, 50);
	fo_frees(&o, 4096, 11);
	fix_until(&f, "k", MC_STORE_OBJECT_NOT_FOUND);
	fix_close(&f);
	(void)state;
}

/* A call waits there since the last master: the wish comes before what could go. */
static void owner_that_still_announces_is_not_told_that_there_is_no_room(void **state)
{
	struct fix_owner o;
	struct fix f;

	fix_run(&f);
	fo_init(&o, &f, 5);
	fo_start_anew(&o);
	fo_space(&o, MC_ST_NOTE_WANT, 800, 50);
	fo_has(&o, MC_ST_NOTE_HAS, "k", 11, 4096);
	fo_note(&o, MC_ST_NOTE_HAS_ALL, NULL, 0);
	fo_frees(&o, 4096, 11);
	fix_until(&f, "k", MC_STORE_OBJECT_NOT_FOUND);
	fix_close(&f);
	(void)state;
}

/* ---- owners that go and come ---- */

static void broken_stream_goes_on_where_it_was(void **state)
{
	struct fix_later later;
	struct fix_owner o;
	struct fix f;

	fix_run_one(&f, &o);
	assert_int_equal(fix_commit(&f, "k", 11, 5, 4096, 0).status, 0);
	fo_space(&o, MC_ST_NOTE_SPACE, 100, 0);
	fix_remove_later(&f, &later, "k");
	fo_expect_free(&o, 4096, 11);
	fo_stop(&o);
	fo_start(&o);
	assert_int_equal(fo_welcomed(&o), 3); /* HAS_ALL and SPACE were 1 and 2 */
	fo_expect_free(&o, 4096, 11);	      /* again: it was not acknowledged */
	fo_freed(&o, 4096, 11);
	assert_int_equal(fix_removed(&f, &later), 0);
	fix_close(&f);
	(void)state;
}

static void lost_owner_is_dropped_and_adopted_when_it_comes_back(void **state)
{
	struct fix_owner o;
	struct fix f;

	fix_open(&f);
	f.conf.client_ttl_ms = 700;
	fix_start(&f);
	fo_open(&o, &f, 5);
	assert_int_equal(fix_commit(&f, "k", 11, 5, 4096, 0).status, 0);
	fo_stop(&o);
	assert_int_equal(fix_exist(&f, "k"), 0); /* suspect: its objects are still named */
	fix_until(&f, "k", MC_STORE_OBJECT_NOT_FOUND);
	fo_start_anew(&o);
	fo_has(&o, MC_ST_NOTE_HAS, "k", 11, 4096);
	fo_note(&o, MC_ST_NOTE_HAS_ALL, NULL, 0);
	fix_until(&f, "k", 0);
	assert_int_equal(fix_find(&f, "k").gen, 11);
	fix_close(&f);
	(void)state;
}

static void what_was_put_anew_while_an_owner_was_away_stays(void **state)
{
	struct fix_owner a, b;
	struct fix f;

	fix_open(&f);
	f.conf.client_ttl_ms = 700;
	fix_start(&f);
	fo_open(&a, &f, 5);
	assert_int_equal(fix_commit(&f, "k", 105, 5, 4096, 0).status, 0);
	fo_stop(&a);
	fix_until(&f, "k", MC_STORE_OBJECT_NOT_FOUND);
	fo_open(&b, &f, 6);
	fo_space(&b, MC_ST_NOTE_SPACE, 0, 0);
	assert_int_equal(fix_commit(&f, "k", 7, 6, 8192, 0).status, 0);
	fo_start_anew(&a);
	fo_has(&a, MC_ST_NOTE_HAS, "k", 105, 4096);
	fo_expect_free(&a, 4096, 105);
	assert_int_equal(fix_find(&f, "k").gen, 7);
	fix_close(&f);
	(void)state;
}

static void new_life_of_an_owner_ends_what_the_old_one_had(void **state)
{
	struct fix_owner o;
	struct fix f;

	fix_run_one(&f, &o);
	assert_int_equal(fix_commit(&f, "k", 11, 5, 4096, 0).status, 0);
	fo_stop(&o);
	o.incarnation++;
	fo_start_anew(&o);
	assert_int_equal(fix_exist(&f, "k"), MC_STORE_OBJECT_NOT_FOUND);
	fix_close(&f);
	(void)state;
}

static void owner_that_leaves_is_forgotten(void **state)
{
	struct fix_owner o;
	struct fix f;

	fix_run_one(&f, &o);
	assert_int_equal(fix_commit(&f, "k", 11, 5, 4096, 0).status, 0);
	assert_int_equal(mc_rpc_call_send(o.conn, o.call.id, "", 0, true), 0);
	assert_int_equal(fo_end(&o), 0);
	assert_int_equal(fix_exist(&f, "k"), MC_STORE_OBJECT_NOT_FOUND);
	fix_restart(&f);
	assert_int_equal(fix_exist(&f, "k"), MC_STORE_OBJECT_NOT_FOUND); /* nobody to wait for */
	fix_close(&f);
	(void)state;
}

/* ---- what strangers say ---- */

static void nonsense_is_refused_by_every_call(void **state)
{
	static const uint16_t calls[] = {MC_ST_JOIN,   MC_ST_EXIST,  MC_ST_LOOKUP,
					 MC_ST_COMMIT, MC_ST_REMOVE, MC_ST_BAD};
	uint8_t bad[64];
	struct fix f;

	memset(bad, 0xff, sizeof(bad));
	fix_run(&f);
	for (size_t i = 0; i < MC_ARRAY_LEN(calls); i++) {
		assert_true(fix_call(&f, calls[i], bad, sizeof(bad), NULL) < 0);
		bad[0] = 3; /* a count above what follows */
		bad[1] = bad[2] = bad[3] = 0;
		assert_true(fix_call(&f, calls[i], bad, 5, NULL) < 0);
		memset(bad, 0xff, sizeof(bad));
	}
	assert_int_equal(fix_exist(&f, "k"), MC_STORE_OBJECT_NOT_FOUND);
	fix_close(&f);
	(void)state;
}

static void owner_that_speaks_nonsense_is_hung_up(void **state)
{
	uint8_t bad[64];
	struct fix_owner o;
	struct fix f;

	memset(bad, 0xff, sizeof(bad));
	fix_run_one(&f, &o);
	fo_note(&o, MC_ST_NOTE_HAS, bad, sizeof(bad));
	assert_int_equal(fo_end(&o), -MC_E_PROTO);
	fo_stop(&o);
	fo_start(&o);
	(void)fo_welcomed(&o);
	assert_int_equal(mc_rpc_call_send(o.conn, o.call.id, bad, sizeof(bad), false), 0);
	assert_true(fo_end(&o) < 0);
	fix_close(&f);
	(void)state;
}

int main(void)
{
	const struct CMUnitTest tests[] = {
	    cmocka_unit_test(join_gives_generations_that_no_later_master_gives),
	    cmocka_unit_test(view_shows_owners_that_take_puts),
	    cmocka_unit_test(committed_object_is_looked_up_until_its_owner_freed_it),
	    cmocka_unit_test(late_put_is_answered_when_its_slot_is_freed),
	    cmocka_unit_test(upsert_is_answered_when_the_old_slot_is_freed),
	    cmocka_unit_test(upsert_that_was_removed_while_it_waited_stays_removed),
	    cmocka_unit_test(put_waits_for_the_frees_of_its_key),
	    cmocka_unit_test(commit_of_a_slot_of_another_life_is_refused),
	    cmocka_unit_test(slot_that_was_never_committed_is_freed_and_cannot_be_later),
	    cmocka_unit_test(owner_without_room_gets_frees_or_is_told_that_there_is_none),
	    cmocka_unit_test(owner_that_still_announces_is_not_told_that_there_is_no_room),
	    cmocka_unit_test(broken_stream_goes_on_where_it_was),
	    cmocka_unit_test(lost_owner_is_dropped_and_adopted_when_it_comes_back),
	    cmocka_unit_test(what_was_put_anew_while_an_owner_was_away_stays),
	    cmocka_unit_test(new_life_of_an_owner_ends_what_the_old_one_had),
	    cmocka_unit_test(owner_that_leaves_is_forgotten),
	    cmocka_unit_test(nonsense_is_refused_by_every_call),
	    cmocka_unit_test(owner_that_speaks_nonsense_is_hung_up),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
