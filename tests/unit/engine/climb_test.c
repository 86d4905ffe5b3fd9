/*
 * climb_test.c: how many lanes a bulk transfer gets.
 */
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <setjmp.h>

#include <cmocka.h>

#include "engine/climb.h"

#define BYTES 16000000u

/* Run `n` transfers on a machine where a width moves rate[width] bytes per nanosecond. */
static unsigned run(struct mc_climb *c, const double *rate, unsigned n, unsigned lanes_max)
{
	unsigned width = 0;

	for (unsigned i = 0; i < n; i++) {
		width = mc_climb_width(c, lanes_max);
		mc_climb_note(c, width, BYTES, (uint64_t)(BYTES / rate[width]));
	}
	return width;
}

static void climb_measures_each_width_first(void **state)
{
	const double rate[] = {1, 1, 1};
	struct mc_climb c = {0};

	(void)run(&c, rate, MC_CLIMB_WIDTHS * MC_CLIMB_LEARN, 16);
	for (unsigned i = 0; i < MC_CLIMB_WIDTHS; i++)
		assert_int_equal(c.seen[i], MC_CLIMB_LEARN);
	(void)state;
}

static void climb_uses_the_fastest_width(void **state)
{
	const double rate[] = {3.0, 4.1, 3.3};
	struct mc_climb c = {0};

	assert_int_equal(run(&c, rate, 20, 16), 1);
	(void)state;
}

static void climb_prefers_fewer_lanes_at_equal_speed(void **state)
{
	const double rate[] = {3.0, 3.05, 3.1};
	struct mc_climb c = {0};

	assert_int_equal(run(&c, rate, 20, 16), 0);
	(void)state;
}

static void climb_notices_that_another_width_has_become_faster(void **state)
{
	const double before[] = {3.0, 1.0, 1.0}, after[] = {0.5, 2.0, 1.0};
	struct mc_climb c = {0};

	assert_int_equal(run(&c, before, 20, 16), 0);
	(void)run(&c, after, 40 * MC_CLIMB_EVERY, 16);
	assert_int_equal(run(&c, after, 1, 16), 1);
	(void)state;
}

static void climb_never_exceeds_the_limit(void **state)
{
	const double rate[] = {1, 2, 4};
	struct mc_climb c = {0};

	for (unsigned i = 0; i < 200; i++)
		assert_int_equal(run(&c, rate, 1, 1), 0);
	(void)state;
}

int main(void)
{
	const struct CMUnitTest tests[] = {
	    cmocka_unit_test(climb_measures_each_width_first),
	    cmocka_unit_test(climb_uses_the_fastest_width),
	    cmocka_unit_test(climb_prefers_fewer_lanes_at_equal_speed),
	    cmocka_unit_test(climb_notices_that_another_width_has_become_faster),
	    cmocka_unit_test(climb_never_exceeds_the_limit),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
