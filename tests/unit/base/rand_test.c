/*
 * rand_test.c: sequences, ranges, kernel bytes.
 */
#include "base/rand.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

static void rand_is_the_published_sequence(void **state)
{
	/* xoshiro256** from the state {1, 2, 3, 4}, and splitmix64 from 1234567: reference programs
	 * of the authors. */
	const uint64_t xo[] = {11520, 0, 1509978240, 1215971899390074240};
	const uint64_t sm[] = {6457827717110365317ull, 3203168211198807973ull};
	struct mc_rand r = {.s = {1, 2, 3, 4}};
	uint64_t s = 1234567;

	for (size_t i = 0; i < 4; i++)
		assert_true(mc_rand_u64(&r) == xo[i]);
	for (size_t i = 0; i < 2; i++)
		assert_true(mc_splitmix64(&s) == sm[i]);
	(void)state;
}

static void rand_same_seed_same_numbers(void **state)
{
	struct mc_rand a, b, c;

	mc_rand_seed(&a, 0);
	mc_rand_seed(&b, 0);
	mc_rand_seed(&c, 1);
	for (int i = 0; i < 10; i++) {
		uint64_t v = mc_rand_u64(&a);

		assert_true(v == mc_rand_u64(&b));
		assert_true(v != mc_rand_u64(&c));
	}
	(void)state;
}

static void rand_below_is_even_and_in_range(void **state)
{
	unsigned int seen[7] = {0};
	struct mc_rand r;

	mc_rand_seed(&r, 3);
	for (int i = 0; i < 7000; i++)
		seen[mc_rand_below(&r, 7)]++;
	for (int i = 0; i < 7; i++)
		assert_in_range(seen[i], 800, 1200);
	assert_int_equal(mc_rand_below(&r, 1), 0);
	assert_true(mc_rand_below(&r, UINT64_MAX) < UINT64_MAX);
	(void)state;
}

static void rand_unit_is_below_one(void **state)
{
	struct mc_rand r;

	mc_rand_seed(&r, 3);
	for (int i = 0; i < 1000; i++) {
		double u = mc_rand_unit(&r);

		assert_true(u >= 0 && u < 1);
	}
	(void)state;
}

static void rand_bytes_fill_any_length(void **state)
{
	uint8_t buf[1000] = {0};
	size_t zeros = 0;

	assert_int_equal(mc_rand_bytes(buf, 0), 0);
	assert_int_equal(mc_rand_bytes(buf, sizeof(buf)), 0);
	for (size_t i = 0; i < sizeof(buf); i++)
		zeros += buf[i] == 0;
	assert_true(zeros < 100);
	(void)state;
}

int main(void)
{
	const struct CMUnitTest tests[] = {
	    cmocka_unit_test(rand_is_the_published_sequence),
	    cmocka_unit_test(rand_same_seed_same_numbers),
	    cmocka_unit_test(rand_below_is_even_and_in_range),
	    cmocka_unit_test(rand_unit_is_below_one),
	    cmocka_unit_test(rand_bytes_fill_any_length),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
