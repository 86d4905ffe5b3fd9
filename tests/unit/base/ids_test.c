/*
 * ids_test.c: stale ids, pins, limits, races.
 */
#include "base/ids.h"

#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "base/err.h"
#include "base/mem.h"

static int fini_calls;

static void count_fini(void *obj)
{
	++*(int *)obj;
	fini_calls++;
}

static struct mc_ids *ids_fixture(size_t max, void (*fini)(void *obj))
{
	struct mc_ids *ids;

	assert_int_equal(mc_ids_open(max, fini, &ids), 0);
	return ids;
}

static void ids_get_gives_what_add_took(void **state)
{
	struct mc_ids *ids = ids_fixture(10, NULL);
	int a, b;
	uint64_t ida, idb;

	assert_int_equal(mc_ids_add(ids, &a, &ida), 0);
	assert_int_equal(mc_ids_add(ids, &b, &idb), 0);
	assert_true(ida != idb && ida >= 1 && ida <= INT64_MAX);
	assert_ptr_equal(mc_ids_get(ids, ida), &a);
	assert_ptr_equal(mc_ids_get(ids, idb), &b);
	mc_ids_put(ids, ida);
	mc_ids_put(ids, idb);
	mc_ids_close(ids);
	(void)state;
}

static void ids_foreign_and_stale_ids_are_unknown(void **state)
{
	struct mc_ids *ids = ids_fixture(10, NULL);
	int a, b;
	uint64_t ida, idb;

	assert_null(mc_ids_get(ids, 1));
	assert_int_equal(mc_ids_add(ids, &a, &ida), 0);
	assert_null(mc_ids_get(ids, 0));
	assert_null(mc_ids_get(ids, UINT64_MAX));
	assert_null(mc_ids_get(ids, ida | 1ull << 63));
	assert_null(mc_ids_get(ids, ida + (1ull << 24)));
	assert_null(mc_ids_get(ids, ida + 9));
	assert_null(mc_ids_get(ids, ida + 10));
	assert_int_equal(mc_ids_del(ids, ida), 0);
	assert_int_equal(mc_ids_del(ids, ida), -MC_E_STALE);
	assert_int_equal(mc_ids_del(ids, 0), -MC_E_STALE);
	assert_null(mc_ids_get(ids, ida));
	assert_int_equal(mc_ids_add(ids, &b, &idb), 0);
	assert_true(ida != idb);
	assert_null(mc_ids_get(ids, ida));
	mc_ids_close(ids);
	(void)state;
}

static void ids_destroy_with_the_last_pin(void **state)
{
	struct mc_ids *ids = ids_fixture(10, count_fini);
	int a = 0;
	uint64_t id;

	assert_int_equal(mc_ids_add(ids, &a, &id), 0);
	assert_ptr_equal(mc_ids_get(ids, id), &a);
	assert_ptr_equal(mc_ids_get(ids, id), &a);
	assert_int_equal(mc_ids_del(ids, id), 0);
	assert_null(mc_ids_get(ids, id));
	mc_ids_put(ids, id);
	assert_int_equal(a, 0);
	mc_ids_put(ids, id);
	assert_int_equal(a, 1);
	mc_ids_close(ids);
	assert_int_equal(a, 1);
	(void)state;
}

static void ids_close_destroys_what_is_left(void **state)
{
	struct mc_ids *ids = ids_fixture(1000, count_fini);
	int objs[600] = {0};
	uint64_t id[600];

	for (size_t i = 0; i < 600; i++)
		assert_int_equal(mc_ids_add(ids, &objs[i], &id[i]), 0);
	assert_int_equal(mc_ids_del(ids, id[300]), 0);
	mc_ids_close(ids);
	for (size_t i = 0; i < 600; i++)
		assert_int_equal(objs[i], 1);
	mc_ids_close(NULL);
	(void)state;
}

static void ids_limit_counts_pinned_ones_too(void **state)
{
	struct mc_ids *ids = ids_fixture(2, NULL);
	int a;
	uint64_t id[3];

	assert_int_equal(mc_ids_add(ids, &a, &id[0]), 0);
	assert_int_equal(mc_ids_add(ids, &a, &id[1]), 0);
	assert_int_equal(mc_ids_add(ids, &a, &id[2]), -MC_E_LIMIT);
	assert_non_null(mc_ids_get(ids, id[0]));
	assert_int_equal(mc_ids_del(ids, id[0]), 0);
	assert_int_equal(mc_ids_add(ids, &a, &id[2]), -MC_E_LIMIT);
	mc_ids_put(ids, id[0]);
	assert_int_equal(mc_ids_add(ids, &a, &id[2]), 0);
	mc_ids_close(ids);
	(void)state;
}

static void ids_never_repeat_while_slots_are_reused(void **state)
{
	struct mc_ids *ids = ids_fixture(1, NULL);
	uint64_t last = 0, id;
	int a;

	for (int i = 0; i < 1000; i++) {
		assert_int_equal(mc_ids_add(ids, &a, &id), 0);
		assert_true(id > last);
		assert_int_equal(mc_ids_del(ids, id), 0);
		last = id;
	}
	mc_ids_close(ids);
	(void)state;
}

static void ids_survive_every_failing_allocation(void **state)
{
	int64_t live = mc_mem_live();
	struct mc_ids *ids = NULL;
	uint64_t id;
	int a;
	int rc = -1;

	for (int64_t n = 0; rc < 0; n++) {
		mc_mem_fail_after(n);
		rc = mc_ids_open(4, NULL, &ids);
		if (rc == 0) {
			rc = mc_ids_add(ids, &a, &id);
			mc_ids_close(ids);
		}
		mc_mem_fail_after(-1);
		assert_true(rc == 0 || rc == -MC_E_NOMEM);
		assert_int_equal(mc_mem_live(), live);
	}
	(void)state;
}

#define RACE_SLOTS 8
#define RACE_TURNS 20000

struct race {
	struct mc_ids *ids;
	_Atomic uint64_t id[RACE_SLOTS];
	_Atomic int finis;
	_Atomic bool is_over;
};

struct race_obj {
	struct race *race;
	int alive; /* not atomic: TSan sees a destructor that overtakes a user */
};

static void race_fini(void *obj)
{
	struct race_obj *o = obj;

	o->alive = 0;
	atomic_fetch_add(&o->race->finis, 1);
	mc_free(o);
}

static void *race_reader(void *arg)
{
	struct race *race = arg;
	size_t bad = 0;

	for (size_t i = 0; !atomic_load(&race->is_over); i++) {
		uint64_t id = atomic_load(&race->id[i % RACE_SLOTS]);
		struct race_obj *o = mc_ids_get(race->ids, id);

		if (!o)
			continue;
		bad += o->alive != 1;
		mc_ids_put(race->ids, id);
	}
	return (void *)bad;
}

static void ids_pins_hold_while_others_delete(void **state)
{
	struct race race = {.ids = ids_fixture(RACE_SLOTS + 4, race_fini)};
	pthread_t readers[3];
	int added = 0;
	void *bad;

	for (size_t i = 0; i < 3; i++)
		assert_int_equal(pthread_create(&readers[i], NULL, race_reader, &race), 0);
	for (int turn = 0; turn < RACE_TURNS; turn++) {
		struct race_obj *o = mc_calloc(1, sizeof(*o));
		uint64_t id, old;

		assert_non_null(o);
		*o = (struct race_obj){.race = &race, .alive = 1};
		if (mc_ids_add(race.ids, o, &id) < 0) {
			mc_free(o); /* readers still pin the deleted ones */
			continue;
		}
		added++;
		old = atomic_exchange(&race.id[turn % RACE_SLOTS], id);
		if (old)
			assert_int_equal(mc_ids_del(race.ids, old), 0);
	}
	atomic_store(&race.is_over, true);
	for (size_t i = 0; i < 3; i++) {
		assert_int_equal(pthread_join(readers[i], &bad), 0);
		assert_null(bad);
	}
	mc_ids_close(race.ids);
	assert_int_equal(atomic_load(&race.finis), added);
	(void)state;
}

int main(void)
{
	const struct CMUnitTest tests[] = {
	    cmocka_unit_test(ids_get_gives_what_add_took),
	    cmocka_unit_test(ids_foreign_and_stale_ids_are_unknown),
	    cmocka_unit_test(ids_destroy_with_the_last_pin),
	    cmocka_unit_test(ids_close_destroys_what_is_left),
	    cmocka_unit_test(ids_limit_counts_pinned_ones_too),
	    cmocka_unit_test(ids_never_repeat_while_slots_are_reused),
	    cmocka_unit_test(ids_survive_every_failing_allocation),
	    cmocka_unit_test(ids_pins_hold_while_others_delete),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
