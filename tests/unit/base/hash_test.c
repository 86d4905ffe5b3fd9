/*
 * hash_test.c: known answers, the map against an array.
 */
#include "base/hash.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

#include "base/mem.h"
#include "base/rand.h"

static void hash_is_xxh3(void **state)
{
	/* Known answers of XXH3_64bits for no bytes, seed 0. */
	assert_true(mc_hash64("", 0, 0) == 0x2d06800538d394c2ull);
	assert_true(mc_hash64("a", 1, 0) != mc_hash64("a", 1, 1));
	(void)state;
}

static void map_puts_gets_replaces_and_deletes(void **state)
{
	struct mc_map map;
	int a, b;
	void *old = &map;

	mc_map_init(&map, 10);
	assert_null(mc_map_get(&map, "a"));
	assert_null(mc_map_del(&map, "a"));
	assert_int_equal(mc_map_put(&map, "a", &a, &old), 0);
	assert_null(old);
	assert_int_equal(mc_map_put(&map, "", &b, NULL), 0);
	assert_ptr_equal(mc_map_get(&map, "a"), &a);
	assert_ptr_equal(mc_map_get(&map, ""), &b);
	assert_int_equal(mc_map_put(&map, "a", &b, &old), 1);
	assert_ptr_equal(old, &a);
	assert_ptr_equal(mc_map_del(&map, "a"), &b);
	assert_null(mc_map_get(&map, "a"));
	assert_int_equal(map.len, 1);
	mc_map_fini(&map);
	assert_null(mc_map_get(&map, ""));
	mc_map_fini(&map);
	(void)state;
}

static void map_is_bounded(void **state)
{
	struct mc_map map;
	int v;

	mc_map_init(&map, 2);
	assert_int_equal(mc_map_put(&map, "a", &v, NULL), 0);
	assert_int_equal(mc_map_put(&map, "b", &v, NULL), 0);
	assert_int_equal(mc_map_put(&map, "c", &v, NULL), -MC_E_LIMIT);
	assert_int_equal(mc_map_put(&map, "a", &v, NULL), 1);
	mc_map_fini(&map);
	(void)state;
}

static void map_iterates_in_the_order_of_puts(void **state)
{
	const char *const names[] = {"z", "m", "a", "q"};
	struct mc_map map;
	size_t cursor = 0;
	const char *key;
	void *val;

	mc_map_init(&map, 10);
	for (size_t i = 0; i < 4; i++)
		assert_int_equal(mc_map_put(&map, names[i], (void *)names[i], NULL), 0);
	for (size_t i = 0; i < 4; i++) {
		assert_true(mc_map_each(&map, &cursor, &key, &val));
		assert_string_equal(key, names[i]);
		assert_ptr_equal(val, names[i]);
	}
	assert_false(mc_map_each(&map, &cursor, &key, &val));
	mc_map_fini(&map);
	(void)state;
}

static void map_entries_may_go_while_iterating(void **state)
{
	struct mc_map map;
	size_t cursor = 0;
	size_t seen = 0;
	char name[16];
	const char *key;
	void *val;

	mc_map_init(&map, 100);
	for (int i = 0; i < 100; i++) {
		(void)snprintf(name, sizeof(name), "k%d", i);
		assert_int_equal(mc_map_put(&map, name, &map, NULL), 0);
	}
	while (mc_map_each(&map, &cursor, &key, &val)) {
		seen++;
		assert_ptr_equal(mc_map_del(&map, key), &map);
		cursor--;
	}
	assert_int_equal(seen, 100);
	assert_int_equal(map.len, 0);
	mc_map_fini(&map);
	(void)state;
}

#define MODEL_KEYS 300

static void map_agrees_with_an_array(void **state)
{
	void *model[MODEL_KEYS] = {0};
	size_t model_len = 0;
	struct mc_rand r;
	struct mc_map map;
	char name[16];
	void *old;

	mc_rand_seed(&r, 11);
	mc_map_init(&map, MODEL_KEYS);
	for (int turn = 0; turn < 20000; turn++) {
		size_t k = mc_rand_below(&r, MODEL_KEYS);

		(void)snprintf(name, sizeof(name), "key/%zu", k);
		if (mc_rand_below(&r, 2)) {
			assert_int_equal(mc_map_put(&map, name, &model[turn % 9], &old),
					 model[k] ? 1 : 0);
			assert_ptr_equal(old, model[k]);
			model_len += !model[k];
			model[k] = &model[turn % 9];
		} else {
			assert_ptr_equal(mc_map_del(&map, name), model[k]);
			model_len -= !!model[k];
			model[k] = NULL;
		}
		assert_int_equal(map.len, model_len);
	}
	for (size_t k = 0; k < MODEL_KEYS; k++) {
		(void)snprintf(name, sizeof(name), "key/%zu", k);
		assert_ptr_equal(mc_map_get(&map, name), model[k]);
	}
	mc_map_fini(&map);
	(void)state;
}

static void map_survives_every_failing_allocation(void **state)
{
	int64_t live = mc_mem_live();
	int rc = -1;

	for (int64_t n = 0; rc < 0; n++) {
		struct mc_map map;
		size_t put = 0;
		char name[16];

		mc_map_init(&map, 100);
		mc_mem_fail_after(n);
		for (rc = 0; rc == 0 && put < 40; put += rc == 0) {
			(void)snprintf(name, sizeof(name), "k%zu", put);
			rc = mc_map_put(&map, name, &map, NULL);
		}
		mc_mem_fail_after(-1);
		assert_true(rc == 0 || rc == -MC_E_NOMEM);
		assert_int_equal(map.len, put);
		for (size_t i = 0; i < put; i++) {
			(void)snprintf(name, sizeof(name), "k%zu", i);
			assert_ptr_equal(mc_map_get(&map, name), &map);
		}
		mc_map_fini(&map);
		assert_int_equal(mc_mem_live(), live);
	}
	(void)state;
}

int main(void)
{
	const struct CMUnitTest tests[] = {
	    cmocka_unit_test(hash_is_xxh3),
	    cmocka_unit_test(map_puts_gets_replaces_and_deletes),
	    cmocka_unit_test(map_is_bounded),
	    cmocka_unit_test(map_iterates_in_the_order_of_puts),
	    cmocka_unit_test(map_entries_may_go_while_iterating),
	    cmocka_unit_test(map_agrees_with_an_array),
	    cmocka_unit_test(map_survives_every_failing_allocation),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
