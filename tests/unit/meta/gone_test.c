/*
 * gone_test.c: departures that are remembered, those that are not, and what an index remembers of
 * each way to leave it.
 */
#include "meta/gone.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#include <cmocka.h>

#include "meta/index.h"
#include "mooncake/store.h"

#define OWNER 7u
#define SETS (MC_GONE_MAX / 8)

static struct mc_gone gone_at(uint64_t hash, uint64_t at_ms)
{
	return (struct mc_gone){.key_hash = hash, .at_ms = at_ms, .why = MC_GONE_REMOVED};
}

static void the_oldest_of_a_full_set_is_forgotten_and_its_time_is_known(void **state)
{
	struct mc_gone_table *t;
	struct mc_gone g;

	assert_int_equal(mc_gone_open(&t), 0);
	for (uint64_t i = 1; i <= 8; i++) {
		g = gone_at(i * SETS, 100 + i);
		mc_gone_add(t, &g);
	}
	assert_int_equal(mc_gone_since_ms(t), 0);
	g = gone_at(9ull * SETS, 200);
	mc_gone_add(t, &g);
	assert_false(mc_gone_find(t, SETS, &g));
	assert_int_equal(mc_gone_since_ms(t), 101);
	for (uint64_t i = 2; i <= 9; i++)
		assert_true(mc_gone_find(t, i * SETS, &g));
	assert_int_equal(g.at_ms, 200);
	mc_gone_close(t);
	(void)state;
}

static void a_key_that_leaves_twice_has_its_last_word(void **state)
{
	struct mc_gone_table *t;
	struct mc_gone g = gone_at(5, 1);

	assert_int_equal(mc_gone_open(&t), 0);
	mc_gone_add(t, &g);
	g.at_ms = 2;
	g.why = MC_GONE_EVICTED;
	mc_gone_add(t, &g);
	g.why = 0;
	assert_true(mc_gone_find(t, 5, &g));
	assert_int_equal(g.at_ms, 2);
	assert_string_equal(mc_gone_why_text(g.why), "evicted");
	assert_false(mc_gone_find(t, 6, &g));
	mc_gone_close(t);
	(void)state;
}

/* ---- in an index ---- */

struct fix {
	struct mc_index *ix;
	struct mc_index_frees frees;
	struct mc_index_request q;
	struct mc_st_key key;
};

static void fix_open(struct fix *f)
{
	const struct mc_index_conf conf = {.quota = UINT64_MAX};
	struct mc_st_commit c = {.gen = 9, .len = 1000, .nreplicas = 1};
	uint64_t gen;

	*f = (struct fix){.key = {.len = 2, .bytes = (const uint8_t *)"\0k"}};
	assert_int_equal(mc_index_open(&conf, &f->ix), 0);
	assert_int_equal(mc_index_owner_join(f->ix, OWNER), 0);
	mc_index_owner_announced(f->ix, OWNER);
	c.replicas[0] = (struct mc_st_replica){.owner = OWNER, .addr = 64};
	assert_int_equal(mc_index_begin(f->ix, &f->q, 1000, &f->key, 1), 0);
	assert_int_equal(mc_index_commit(&f->q, 0, &c, &f->frees, &gen), 0);
	mc_index_end(&f->q);
	assert_int_equal(mc_index_begin(f->ix, &f->q, 2000, &f->key, 1), 0);
}

/* What is remembered of the key; -1: nothing. */
static int told(struct fix *f)
{
	struct mc_gone g;
	int why = -1;

	if (mc_index_gone(&f->q, 0, &g)) {
		assert_int_equal(g.gen, 9);
		assert_int_equal(g.len, 1000);
		assert_true(g.at_ms >= 2000);
		if (g.why != MC_GONE_REMOVED)
			assert_int_equal(g.owner, OWNER);
		why = g.why;
	}
	mc_index_end(&f->q);
	mc_index_close(f->ix);
	mc_index_frees_fini(&f->frees);
	return why;
}

static void what_is_there_is_not_gone(void **state)
{
	struct fix f;

	fix_open(&f);
	assert_int_equal(told(&f), -1);
	(void)state;
}

static void removed_evicted_damaged_and_lost_are_told_apart(void **state)
{
	struct mc_st_replica r = {.owner = OWNER, .addr = 64};
	uint64_t retry_ms;
	struct fix f;

	fix_open(&f);
	assert_int_equal(mc_index_remove(&f.q, 0, MC_INDEX_FORCE, &f.frees), 0);
	assert_int_equal(told(&f), MC_GONE_REMOVED);

	fix_open(&f);
	assert_int_equal(mc_index_drop(&f.q, 0, 9, &r, MC_GONE_DAMAGED, &f.frees), 0);
	assert_int_equal(told(&f), MC_GONE_DAMAGED);

	fix_open(&f);
	mc_index_end(&f.q);
	assert_true(mc_index_evict(f.ix, 3000, OWNER, MC_ST_MEMORY, 1, 1, &f.frees, &retry_ms) > 0);
	assert_int_equal(mc_index_begin(f.ix, &f.q, 4000, &f.key, 1), 0);
	assert_int_equal(told(&f), MC_GONE_EVICTED);

	fix_open(&f);
	mc_index_end(&f.q);
	assert_int_equal(mc_index_owner_away(f.ix, OWNER), 0);
	while (mc_index_step(f.ix, 3000, 4096))
		;
	assert_int_equal(mc_index_begin(f.ix, &f.q, 4000, &f.key, 1), 0);
	assert_int_equal(told(&f), MC_GONE_LOST);
	(void)state;
}

int main(void)
{
	const struct CMUnitTest tests[] = {
	    cmocka_unit_test(the_oldest_of_a_full_set_is_forgotten_and_its_time_is_known),
	    cmocka_unit_test(a_key_that_leaves_twice_has_its_last_word),
	    cmocka_unit_test(what_is_there_is_not_gone),
	    cmocka_unit_test(removed_evicted_damaged_and_lost_are_told_apart),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
