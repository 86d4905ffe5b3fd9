/*
 * api_mem_test.c: memory by the native C API: registered ranges, and memory from the engine, with
 * shared memory ("shm") and without ("tcp").
 */
#include <unistd.h>

#include "api_fix.h"
#include "sanitized.h"

static void memory_is_registered_by_count_and_batches_are_all_or_none(void **state)
{
	static uint8_t a[8192], b[8192];
	struct mc_mem good[] = {{a, sizeof(a)}, {b, sizeof(b)}}, bad[] = {{a, sizeof(a)}, {b, 0}};
	void *both[] = {a, b}, *mixed[] = {&mixed, a, b};
	struct mc_engine *eng = engine_open();
	char place[512];

	(void)state;
	memset(place, 'x', sizeof(place) - 1);
	place[sizeof(place) - 1] = '\0';
	assert_int_equal(mc_mem_reg(eng, NULL, 64, NULL, RIGHTS), -MC_E_INVAL);
	assert_int_equal(mc_mem_reg(eng, a, 0, NULL, RIGHTS), -MC_E_INVAL);
	assert_int_equal(mc_mem_reg(eng, a, 64, NULL, 4), -MC_E_INVAL);
	assert_int_equal(mc_mem_reg(eng, a, 64, place, RIGHTS), -MC_E_INVAL);
	assert_int_equal(mc_mem_reg(eng, a, SIZE_MAX, NULL, RIGHTS), -MC_E_INVAL);
	assert_int_equal(mc_mem_unreg(eng, a), -MC_E_NOENT);
	assert_int_equal(mc_mem_unreg(eng, NULL), -MC_E_NOENT);

	assert_int_equal(mc_mem_reg(eng, a, sizeof(a), "*", RIGHTS), 0);
	assert_int_equal(mc_mem_reg(eng, a, sizeof(a), "*", RIGHTS), 0);
	assert_int_equal(mc_mem_reg(eng, a + 4096, 4096, "cpu:0", RIGHTS), 0); /* an overlap */
	assert_int_equal(mc_mem_unreg(eng, a + 4096), 0);
	assert_int_equal(mc_mem_unreg(eng, a), 0);
	assert_int_equal(move(eng, MC_WRITE, MC_SEGMENT_LOCAL, b, (uintptr_t)a, 64), 0);
	assert_int_equal(mc_mem_unreg(eng, a), 0);
	assert_int_equal(mc_mem_unreg(eng, a), -MC_E_NOENT);

	assert_int_equal(mc_mem_reg_batch(eng, bad, 2, NULL, RIGHTS), -MC_E_INVAL);
	assert_int_equal(mc_mem_unreg(eng, a), -MC_E_NOENT);
	assert_int_equal(mc_mem_reg_batch(eng, NULL, 2, NULL, RIGHTS), -MC_E_INVAL);
	assert_int_equal(mc_mem_reg_batch(eng, NULL, 0, NULL, RIGHTS), 0);
	assert_int_equal(mc_mem_reg_batch(eng, good, 2, NULL, RIGHTS), 0);
	assert_int_equal(mc_mem_unreg_batch(eng, mixed, 3), -MC_E_NOENT); /* and the two end */
	assert_int_equal(mc_mem_unreg_batch(eng, both, 2), -MC_E_NOENT);
	assert_int_equal(mc_mem_unreg_batch(eng, NULL, 1), -MC_E_INVAL);
	mc_engine_close(eng);
}

static void memory_of_the_engine_is_aligned_registered_and_its_own(void **state)
{
	struct mc_engine *eng = engine_open();
	uint8_t *small = mc_mem_alloc(eng, 100), *large = mc_mem_alloc(eng, 5000), own[64];

	(void)state;
	assert_true(small && large);
	assert_int_equal((uintptr_t)small % 64, 0);
	assert_int_equal((uintptr_t)large % 4096, 0);
	fill(small, 100, 1);
	assert_int_equal(move(eng, MC_WRITE, MC_SEGMENT_LOCAL, small, (uintptr_t)large, 100), 0);
	assert_true(is_filled(large, 100, 1));
	assert_null(mc_mem_alloc(eng, 0));
	assert_null(mc_mem_alloc(eng, SIZE_MAX / 2));
	assert_int_equal(mc_mem_free(eng, NULL), -MC_E_NOENT);
	assert_int_equal(mc_mem_free(eng, own), -MC_E_NOENT);
	assert_int_equal(mc_mem_free(eng, small + 64), -MC_E_NOENT);
	assert_int_equal(mc_mem_free(eng, small), 0);
	assert_int_equal(mc_mem_free(eng, small), -MC_E_NOENT);
	assert_int_equal(mc_mem_unreg(eng, large), 0); /* one may end the registration oneself */
	assert_int_equal(mc_mem_free(eng, large), 0);
	large = mc_mem_alloc(eng, 4096); /* what is left goes with the engine */
	assert_non_null(large);
	mc_engine_close(eng);
}

/* Bytes of this process that are in memory. */
static size_t resident(void)
{
	unsigned long all = 0, there = 0;
	FILE *f = fopen("/proc/self/statm", "r");

	assert_non_null(f);
	assert_int_equal(fscanf(f, "%lu %lu", &all, &there), 2);
	(void)fclose(f);
	return there * (size_t)sysconf(_SC_PAGESIZE);
}

/* Also where memory that peers map is forbidden. */
static void memory_of_the_engine_takes_pages_as_it_fills(void **state)
{
	const size_t len = 256u * MIB;
	struct mc_engine *eng;
	size_t before;
	uint8_t *pool;

	(void)state;
	assert_int_equal(setenv("MC_NO_SHM", "1", 1), 0);
	eng = engine_open();
	assert_int_equal(unsetenv("MC_NO_SHM"), 0);
	before = resident();
	pool = mc_mem_alloc(eng, len);
	assert_non_null(pool);
	assert_true(resident() - before < len / 16);
	assert_int_equal(pool[0] | pool[len - 1], 0);
	fill(pool, len / 4, 3);
	assert_true(resident() - before >= len / 4);
	assert_int_equal(mc_mem_free(eng, pool), 0);
	assert_true(IS_SANITIZED || resident() - before < len / 16);
	mc_engine_close(eng);
}

/* The engine's memory that is freed while a registration of the caller's begins there, too. */
static void freeing_the_callers_memory_does_not_end_its_registration(void **state)
{
	static uint8_t own[4096], src[64];
	struct mc_engine *eng = engine_open();

	(void)state;
	assert_int_equal(mc_mem_reg(eng, own, sizeof(own), NULL, RIGHTS), 0);
	assert_int_equal(mc_mem_free(eng, own), -MC_E_NOENT);
	assert_int_equal(move(eng, MC_WRITE, MC_SEGMENT_LOCAL, src, (uintptr_t)own, 64), 0);
	assert_int_equal(mc_mem_unreg(eng, own), 0);
	mc_engine_close(eng);
}

int main(int argc, char **argv)
{
	const struct CMUnitTest tests[] = {
	    cmocka_unit_test(memory_is_registered_by_count_and_batches_are_all_or_none),
	    cmocka_unit_test(memory_of_the_engine_is_aligned_registered_and_its_own),
	    cmocka_unit_test(memory_of_the_engine_takes_pages_as_it_fills),
	    cmocka_unit_test(freeing_the_callers_memory_does_not_end_its_registration),
	};

	if (argc > 1 && strcmp(argv[1], "peer") == 0)
		return peer_main();
	if (argc > 1 && strcmp(argv[1], "tcp") == 0)
		(void)setenv("MC_FORCE_TCP", "1", 1);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
