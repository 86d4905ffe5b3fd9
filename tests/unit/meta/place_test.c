/*
 * place_test.c: preferred ones first, then the host, then by free bytes; what must not be taken is
 * not.
 */
#include "meta/place.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#include <cmocka.h>

#include "base/mem.h"

#define GIB (1ull << 30)
#define OWNERS 8u

static const char *const names[OWNERS] = {"a:1", "b:1", "c:1", "d:1", "e:1", "f:1", "g:1", "h:1"};

static struct mc_place_owner owner(uint32_t i)
{
	return (struct mc_place_owner){.id = 10 + i,
				       .incarnation = 1,
				       .segment = names[i],
				       .host = i % 2 ? "odd" : "even",
				       .capacity = 64 * GIB,
				       .free = 64 * GIB,
				       .takes_puts = true};
}

static void place_open(struct mc_place *p, uint64_t seed)
{
	struct mc_place_owner o[OWNERS];

	for (uint32_t i = 0; i < OWNERS; i++)
		o[i] = owner(OWNERS - 1 - i);
	mc_place_init(p, seed);
	assert_int_equal(mc_place_view(p, 100, o, OWNERS), 0);
}

static void the_same_seed_gives_the_same_owners(void **state)
{
	struct mc_place p, q;
	const struct mc_place_want want = {.bytes = 4096};

	place_open(&p, 7);
	place_open(&q, 7);
	for (int i = 0; i < 100; i++) {
		uint64_t a[3], b[3];

		assert_int_equal(mc_place_choose(&p, 200, &want, 3, a), 3);
		assert_int_equal(mc_place_choose(&q, 200, &want, 3, b), 3);
		assert_memory_equal(a, b, sizeof(a));
		assert_true(a[0] != a[1] && a[0] != a[2] && a[1] != a[2]);
	}
	mc_place_fini(&p);
	mc_place_fini(&q);
	(void)state;
}

static void preferred_ones_come_first_then_the_host(void **state)
{
	const char *const preferred[] = {"nobody:1", "d:1", "b:1"};
	const struct mc_place_want want = {
	    .bytes = 4096, .preferred = preferred, .npreferred = 3, .host = "even"};
	struct mc_place p;
	uint64_t got[OWNERS];

	place_open(&p, 1);
	assert_int_equal(mc_place_choose(&p, 200, &want, OWNERS, got), OWNERS);
	assert_int_equal(got[0], 13);
	assert_int_equal(got[1], 11);
	for (uint32_t i = 2; i < 6; i++)
		assert_int_equal(got[i] % 2, 0);
	for (uint32_t i = 6; i < 8; i++)
		assert_int_equal(got[i] % 2, 1);
	mc_place_fini(&p);
	(void)state;
}

static void a_batch_spreads_by_free_bytes(void **state)
{
	for (int is_free_first = 0; is_free_first < 2; is_free_first++) {
		struct mc_place_owner o[OWNERS];
		const struct mc_place_want want = {.bytes = 1 << 20,
						   .is_free_first = is_free_first};
		unsigned hits[OWNERS] = {0};
		struct mc_place p;
		uint64_t got;

		for (uint32_t i = 0; i < OWNERS; i++)
			o[i] = owner(i);
		o[3].free = 8 * GIB;
		mc_place_init(&p, 3);
		assert_int_equal(mc_place_view(&p, 100, o, OWNERS), 0);
		for (int i = 0; i < 8000; i++) {
			assert_int_equal(mc_place_choose(&p, 200, &want, 1, &got), 1);
			hits[got - 10]++;
		}
		assert_true(hits[3] <= 200);
		for (uint32_t i = 0; i < OWNERS; i++)
			assert_true(i == 3 || (hits[i] > 950 && hits[i] < 1300));
		mc_place_fini(&p);
	}
	(void)state;
}

static void what_may_not_be_taken_is_not(void **state)
{
	struct mc_place_owner o[4] = {owner(0), owner(1), owner(2), owner(3)};
	const uint64_t holders[] = {11};
	const struct mc_place_want want = {.bytes = GIB, .holders = holders, .nholders = 1};
	struct mc_place p;
	uint64_t got[4];

	o[0].takes_puts = false;
	o[2].capacity = GIB - 1; /* could never hold it */
	o[3].free = 0;		 /* has to make room */
	mc_place_init(&p, 1);
	assert_int_equal(mc_place_choose(&p, 0, &want, 4, got), 0);
	assert_int_equal(mc_place_view(&p, 100, o, 4), 0);
	assert_int_equal(mc_place_choose(&p, 200, &want, 4, got), 1);
	assert_int_equal(got[0], 13);
	o[2].capacity = o[2].free = 2 * GIB;
	assert_int_equal(mc_place_view(&p, 300, o, 4), 0);
	assert_int_equal(mc_place_choose(&p, 300, &want, 4, got), 2);
	assert_int_equal(got[0], 12);
	mc_place_fini(&p);
	(void)state;
}

static void one_that_fails_is_left_out_longer_each_time(void **state)
{
	struct mc_place_owner o[2] = {owner(0), owner(1)};
	const struct mc_place_want want = {.bytes = 4096};
	struct mc_place p;
	uint64_t got[2];

	mc_place_init(&p, 1);
	assert_int_equal(mc_place_view(&p, 0, o, 2), 0);
	mc_place_exclude(&p, 1000, 10);
	assert_int_equal(mc_place_choose(&p, 1000, &want, 2, got), 1);
	assert_int_equal(got[0], 11);
	assert_int_equal(mc_place_choose(&p, 1000 + MC_PLACE_EXCLUDED_MS, &want, 2, got), 2);
	mc_place_exclude(&p, 10000, 10);
	assert_int_equal(mc_place_view(&p, 10001, o, 2), 0); /* a view does not forgive */
	assert_int_equal(mc_place_choose(&p, 10000 + 2 * MC_PLACE_EXCLUDED_MS - 1, &want, 2, got),
			 1);
	mc_place_exclude(&p, 10000, 11);
	assert_int_equal(mc_place_choose(&p, 10001, &want, 1, got), 1); /* better than none */
	mc_place_include(&p, 10);
	assert_int_equal(mc_place_choose(&p, 10001, &want, 2, got), 1);
	assert_int_equal(got[0], 10);
	o[1].incarnation = 2; /* another life */
	assert_int_equal(mc_place_view(&p, 10002, o, 2), 0);
	assert_int_equal(mc_place_choose(&p, 10003, &want, 2, got), 2);
	mc_place_fini(&p);
	(void)state;
}

static void a_new_owner_starts_slowly(void **state)
{
	struct mc_place_owner o[2] = {owner(0), owner(1)};
	const struct mc_place_want want = {.bytes = 4096};
	unsigned early = 0, late = 0;
	struct mc_place p;
	uint64_t got;

	mc_place_init(&p, 1);
	assert_int_equal(mc_place_view(&p, 0, o, 1), 0);
	assert_int_equal(mc_place_view(&p, 1000, o, 2), 0);
	for (int i = 0; i < 2000; i++) {
		assert_int_equal(mc_place_choose(&p, 1000, &want, 1, &got), 1);
		early += got == 11;
		assert_int_equal(mc_place_choose(&p, 1000 + MC_PLACE_SLOW_START_MS, &want, 1, &got),
				 1);
		late += got == 11;
	}
	assert_true(early > 50 && early < 200);
	assert_true(late > 900 && late < 1100);
	mc_place_fini(&p);
	(void)state;
}

static void without_memory_the_old_view_stays(void **state)
{
	struct mc_place_owner o[2] = {owner(0), owner(1)};
	const struct mc_place_want want = {.bytes = 4096};
	struct mc_place p;
	uint64_t got[2];

	mc_place_init(&p, 1);
	assert_int_equal(mc_place_view(&p, 0, o, 1), 0);
	for (int i = 0; i < 5; i++) {
		mc_mem_fail_after(i);
		assert_int_equal(mc_place_view(&p, 0, o, 2), -MC_E_NOMEM);
		mc_mem_fail_after(-1);
		assert_int_equal(mc_place_choose(&p, 0, &want, 2, got), 1);
	}
	assert_int_equal(mc_place_view(&p, 0, o, MC_PLACE_OWNERS_MAX + 1), -MC_E_TOO_BIG);
	mc_place_fini(&p);
	(void)state;
}

static void what_was_placed_is_forgotten_when_the_view_stays(void **state)
{
	struct mc_place_owner o[2] = {owner(0), owner(1)};
	const struct mc_place_want want = {.bytes = 40 * GIB, .host = "even"};
	struct mc_place p;
	uint64_t got;

	mc_place_init(&p, 7);
	assert_int_equal(mc_place_view(&p, 100, o, 2), 0);
	assert_int_equal(mc_place_choose(&p, 200, &want, 1, &got), 1);
	assert_int_equal(got, 10); /* of that host */
	assert_int_equal(mc_place_choose(&p, 200, &want, 1, &got), 1);
	assert_int_equal(got, 11); /* the first one seems full */
	mc_place_settle(&p);
	assert_int_equal(mc_place_choose(&p, 200, &want, 1, &got), 1);
	assert_int_equal(got, 10);
	mc_place_fini(&p);
	(void)state;
}

static void an_excluded_owner_is_known_as_such_until_it_answers(void **state)
{
	const char *const preferred[] = {NULL, "b:1"};
	const struct mc_place_want want = {.bytes = 1, .preferred = preferred, .npreferred = 2};
	struct mc_place p;
	uint64_t got;

	place_open(&p, 7);
	assert_int_equal(mc_place_choose(&p, 200, &want, 1, &got), 1);
	assert_int_equal(got, 11);
	mc_place_exclude(&p, 200, 11);
	assert_true(mc_place_is_excluded(&p, 200, 11));
	assert_false(mc_place_is_excluded(&p, 200 + MC_PLACE_EXCLUDED_MS, 11));
	assert_false(mc_place_is_excluded(&p, 200, 12));
	assert_false(mc_place_is_excluded(&p, 200, 999));
	assert_int_equal(mc_place_choose(&p, 200, &want, 1, &got), 1);
	assert_int_not_equal(got, 11);
	mc_place_include(&p, 11);
	assert_false(mc_place_is_excluded(&p, 200, 11));
	mc_place_fini(&p);
	(void)state;
}

int main(void)
{
	const struct CMUnitTest tests[] = {
	    cmocka_unit_test(the_same_seed_gives_the_same_owners),
	    cmocka_unit_test(preferred_ones_come_first_then_the_host),
	    cmocka_unit_test(a_batch_spreads_by_free_bytes),
	    cmocka_unit_test(what_may_not_be_taken_is_not),
	    cmocka_unit_test(one_that_fails_is_left_out_longer_each_time),
	    cmocka_unit_test(a_new_owner_starts_slowly),
	    cmocka_unit_test(without_memory_the_old_view_stays),
	    cmocka_unit_test(what_was_placed_is_forgotten_when_the_view_stays),
	    cmocka_unit_test(an_excluded_owner_is_known_as_such_until_it_answers),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
