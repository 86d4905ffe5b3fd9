/*
 * promote_test.c: which objects go to a disk, and which that are on one are to stay in memory when
 * they are read.
 */
#include "fixture.h"

#include "master/priv.h"

struct scene {
	struct fix f;
	struct fix_owner o; /* "k0" … "k4", generations 10 … 14, are on its disk alone */
};

static void scene_open(struct scene *s, uint32_t beat_max, uint32_t queue_max)
{
	char key[16];

	fix_open(&s->f);
	s->f.conf.promotion_on_hit = true;
	s->f.conf.promotion_beat_max = beat_max;
	s->f.conf.promotion_queue_max = queue_max;
	fix_start(&s->f);
	fo_init(&s->o, &s->f, 5);
	fo_start_anew(&s->o);
	for (unsigned i = 0; i < 5; i++) {
		(void)snprintf(key, sizeof(key), "k%u", i);
		fo_has(&s->o, MC_ST_NOTE_HAS, key, 10 + i, MC_ST_DISK_ADDR);
	}
	fo_space(&s->o, MC_ST_NOTE_SPACE, 0, 0);
	fo_note(&s->o, MC_ST_NOTE_HAS_ALL, NULL, 0);
	fix_until(&s->f, "k4", 0);
}

static void scene_close(struct scene *s)
{
	fix_close(&s->f);
}

static uint64_t count(struct scene *s, enum mc_tally_promotion what)
{
	return mc_counter_read(&s->f.master->tally.promotions[what]);
}

static bool is_kept(struct scene *s, const char *key)
{
	struct mc_st_object obj;

	assert_int_equal(fix_lookup(&s->f, key, &obj), 0);
	return obj.flags & MC_ST_OBJECT_KEEP;
}

static void until_count(struct scene *s, enum mc_tally_promotion what, uint64_t n)
{
	uint64_t end = mc_now_ns() + SOON_NS;

	while (count(s, what) < n) {
		assert_true(mc_now_ns() < end);
		(void)poll(NULL, 0, 2);
	}
	assert_int_equal(count(s, what), n);
}

static void what_is_looked_up_often_stays_in_memory(void **state)
{
	struct mc_st_object obj;
	struct scene s;

	scene_open(&s, 1000, 1000);
	assert_false(is_kept(&s, "k0"));
	assert_int_equal(count(&s, MC_TALLY_PROMOTION_FREQUENCY), 1);
	assert_true(is_kept(&s, "k0"));
	assert_true(is_kept(&s, "k0")); /* until it is there */
	assert_int_equal(count(&s, MC_TALLY_PROMOTION_ADMITTED), 1);
	assert_int_equal(mc_gauge_read(&s.f.master->tally.promotions_open), 1);
	fo_has(&s.o, MC_ST_NOTE_MORE, "k0", 10, 4096);
	until_count(&s, MC_TALLY_PROMOTION_COMPLETED, 1);
	assert_int_equal(mc_gauge_read(&s.f.master->tally.promotions_open), 0);
	assert_int_equal(mc_counter_read(&s.f.master->tally.promoted_bytes), 100);
	assert_int_equal(fix_lookup(&s.f, "k0", &obj), 0);
	assert_int_equal(obj.nreplicas, 2);
	assert_int_equal(obj.flags, 0);
	scene_close(&s);
	(void)state;
}

static void limits_hold(void **state)
{
	struct scene s;
	uint64_t begun, end;

	scene_open(&s, 1000, 1);
	(void)is_kept(&s, "k0");
	assert_true(is_kept(&s, "k0"));
	(void)is_kept(&s, "k1");
	assert_false(is_kept(&s, "k1"));
	assert_int_equal(count(&s, MC_TALLY_PROMOTION_CAP), 1);
	fo_has(&s.o, MC_ST_NOTE_MORE, "k0", 10, 4096);
	until_count(&s, MC_TALLY_PROMOTION_COMPLETED, 1);
	assert_true(is_kept(&s, "k1"));
	fo_has(&s.o, MC_ST_NOTE_MORE, "k1", 11, 8192);
	until_count(&s, MC_TALLY_PROMOTION_COMPLETED, 2);
	fo_space(&s.o, MC_ST_NOTE_SPACE, 850, 0); /* of 1000, 900 at most */
	(void)is_kept(&s, "k2");
	end = mc_now_ns() + SOON_NS;
	while (count(&s, MC_TALLY_PROMOTION_WATERMARK) == 0) {
		assert_true(mc_now_ns() < end);
		assert_false(is_kept(&s, "k2"));
	}
	scene_close(&s);
	/* One a beat. */
	scene_open(&s, 1, 1000);
	(void)is_kept(&s, "k0");
	(void)is_kept(&s, "k1");
	begun = mc_now_ns();
	assert_true(is_kept(&s, "k0"));
	while (!is_kept(&s, "k1"))
		assert_true(mc_now_ns() - begun < SOON_NS);
	assert_true(mc_now_ns() - begun >= (MC_ST_BEAT_MS - 1) * MC_NS_PER_MS);
	assert_true(count(&s, MC_TALLY_PROMOTION_CAP) > 0);
	scene_close(&s);
	(void)state;
}

static void bad(struct scene *s, const char *name, uint64_t gen)
{
	const struct fix_key key = fix_key(name);
	const struct mc_st_bad b = {
	    .gen = gen,
	    .replica = {.owner = 5, .addr = MC_ST_DISK_ADDR, .kind = MC_ST_DISK},
	    .key_len = key.len,
	    .key = key.bytes};
	uint8_t req[256];
	struct mc_wr w = mc_wr_make(req, sizeof(req));
	size_t len;

	mc_wr_u32(&w, 1);
	mc_st_bad_encode(&w, &b);
	assert_int_equal(fix_call(&s->f, MC_ST_BAD, req, mc_wr_len(&w), &len), 0);
}

static void what_is_damaged_or_gone_is_counted(void **state)
{
	struct fix_later later;
	struct scene s;

	scene_open(&s, 1000, 1000);
	(void)is_kept(&s, "k0");
	assert_true(is_kept(&s, "k0"));
	bad(&s, "k0", 10);
	assert_int_equal(count(&s, MC_TALLY_PROMOTION_FAILED), 1);
	fo_expect_free(&s.o, MC_ST_DISK_ADDR, 10);
	(void)is_kept(&s, "k1");
	assert_true(is_kept(&s, "k1"));
	fix_remove_later(&s.f, &later, "k1");
	fo_expect_free(&s.o, MC_ST_DISK_ADDR, 11);
	fo_has(&s.o, MC_ST_NOTE_MORE, "k1", 11, 4096);
	until_count(&s, MC_TALLY_PROMOTION_CANCELLED, 1);
	fo_freed(&s.o, MC_ST_DISK_ADDR, 11);
	fo_freed(&s.o, 4096, 11);
	assert_int_equal(fix_removed(&s.f, &later), 0);
	assert_int_equal(mc_gauge_read(&s.f.master->tally.promotions_open), 0);
	scene_close(&s);
	(void)state;
}

static void expect_offload(struct fix_owner *o, uint64_t addr, uint64_t gen)
{
	struct fix_note n = fo_expect(o, MC_ST_NOTE_OFFLOAD);
	struct mc_rd r = mc_rd_make(n.data, n.len);
	struct mc_st_place p;

	mc_st_place_decode(&r, &p);
	assert_true(mc_rd_is_done(&r));
	assert_int_equal(p.addr, addr);
	assert_int_equal(p.gen, gen);
}

static void what_is_due_for_a_disk_is_asked_for_once_it_is_committed(void **state)
{
	struct fix_owner o;
	struct fix f;

	fix_run_one(&f, &o);
	fo_has(&o, MC_ST_NOTE_DUE, "k", 11, 4096); /* not yet */
	assert_int_equal(fix_commit(&f, "k", 11, 5, 4096, 0).status, 0);
	assert_int_equal(fix_commit(&f, "other", 12, 5, 8192, 0).status, 0);
	fo_has(&o, MC_ST_NOTE_DUE, "other", 12, 8192);
	expect_offload(&o, 8192, 12);
	fo_has(&o, MC_ST_NOTE_DUE, "k", 11, 4096);
	expect_offload(&o, 4096, 11);
	fo_has(&o, MC_ST_NOTE_MORE, "k", 11, MC_ST_DISK_ADDR);
	fo_has(&o, MC_ST_NOTE_DUE, "k", 11, 4096);	/* it is there */
	fo_has(&o, MC_ST_NOTE_DUE, "other", 10, 16384); /* another generation */
	assert_int_equal(fix_commit(&f, "last", 13, 5, 12288, 0).status, 0);
	fo_has(&o, MC_ST_NOTE_DUE, "last", 13, 12288);
	expect_offload(&o, 12288, 13);
	fix_close(&f);
	(void)state;
}

int main(void)
{
	const struct CMUnitTest tests[] = {
	    cmocka_unit_test(what_is_due_for_a_disk_is_asked_for_once_it_is_committed),
	    cmocka_unit_test(what_is_looked_up_often_stays_in_memory),
	    cmocka_unit_test(limits_hold),
	    cmocka_unit_test(what_is_damaged_or_gone_is_counted),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
