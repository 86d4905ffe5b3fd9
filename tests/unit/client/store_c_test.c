/*
 * store_c_test.c: upstream's C ABI of the Store.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <string.h>

#include <cmocka.h>
#include <mooncake/store_c.h>

#include "client/world.h"

static mooncake_store_t set_up(struct world *w)
{
	mooncake_store_t st = mooncake_store_create();

	assert_non_null(st);
	assert_int_equal(mooncake_store_health_check(st), 1);
	assert_int_equal(mooncake_store_setup(st, "127.0.0.1", "P2PHANDSHAKE", 0, 1 << 20, "tcp",
					      "", w->master_text),
			 0);
	return st;
}

static void bytes_go_in_and_out_by_upstreams_names(void **state)
{
	struct world *w = world_open(2);
	mooncake_store_t st = set_up(w);
	mooncake_replicate_config_t conf = {.replica_num = 2};
	const char *keys[2] = {"a", "b"};
	char in[] = "hello world", out[2][16] = {{0}}, host[64];
	void *ins[2] = {in, in + 6}, *outs[2] = {out[0], out[1]};
	size_t sizes[2] = {5, 5}, rooms[2] = {16, 16};
	int results[2], there[2];
	int64_t bytes[2];

	assert_int_equal(mooncake_store_health_check(st), 0);
	assert_int_equal(mooncake_store_batch_put_from(st, keys, ins, sizes, 2, &conf, results), 0);
	assert_int_equal(mooncake_store_batch_get_into(st, keys, outs, rooms, 2, bytes), 0);
	assert_string_equal(out[0], "hello");
	assert_string_equal(out[1], "world");
	assert_int_equal(mooncake_store_put(st, "c", in, 11, NULL), 0);
	assert_int_equal(mooncake_store_get_into(st, "c", out[0], 16), 11);
	assert_int_equal(mooncake_store_get_into(st, "c", out[0], 10), MC_STORE_INVALID_PARAMS);
	assert_int_equal(mooncake_store_get_size(st, "c"), 11);
	assert_int_equal(mooncake_store_remove(st, "b", 1), 0);
	assert_int_equal(mooncake_store_batch_is_exist(st, keys, 2, there), 0);
	assert_int_equal(there[0], 1);
	assert_int_equal(there[1], 0);
	assert_int_equal(mooncake_store_get_into(st, "b", out[0], 16), MC_STORE_OBJECT_NOT_FOUND);
	assert_int_equal(mooncake_store_get_hostname(st, host, sizeof(host)), 0);
	assert_non_null(strchr(host, ':'));
	assert_int_equal(mooncake_store_get_hostname(st, host, 3), MC_STORE_INVALID_PARAMS);
	mooncake_store_destroy(st);
	world_close(w);
	(void)state;
}

static void handles_that_are_none_are_codes(void **state)
{
	mooncake_store_t st = mooncake_store_create(), foreign = (mooncake_store_t)0x12345678;
	char c;

	assert_int_equal(mooncake_store_get_into(st, "k", &c, 1), MC_STORE_ILLEGAL_CLIENT);
	mooncake_store_destroy(st);
	mooncake_store_destroy(st);
	assert_int_equal(mooncake_store_put(st, "k", "v", 1, NULL), MC_STORE_ILLEGAL_CLIENT);
	assert_int_equal(mooncake_store_is_exist(foreign, "k"), MC_STORE_ILLEGAL_CLIENT);
	assert_int_equal(mooncake_store_remove_all(NULL, 0), MC_STORE_ILLEGAL_CLIENT);
	assert_int_equal(mooncake_store_setup(NULL, "", "", 0, 0, "tcp", "", ""),
			 MC_STORE_ILLEGAL_CLIENT);
	(void)state;
}

int main(void)
{
	const struct CMUnitTest tests[] = {
	    cmocka_unit_test(bytes_go_in_and_out_by_upstreams_names),
	    cmocka_unit_test(handles_that_are_none_are_codes),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
