/*
 * clock_test.c: real and injected time.
 */
#include "base/clock.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

static uint64_t fake_now(const struct mc_clock *clk)
{
	(void)clk;
	return 42;
}

static void clock_is_injected(void **state)
{
	const struct mc_clock fake = {.now = fake_now};

	assert_int_equal(mc_clock_now(&fake), 42);
	(void)state;
}

static void clock_real_is_monotonic(void **state)
{
	uint64_t a = mc_now_ns();
	uint64_t b = mc_clock_now(&mc_clock_real);
	uint64_t c = mc_now_ns();

	assert_true(a <= b && b <= c);
	assert_true(mc_wall_ns() > 1600000000ull * MC_NS_PER_S);
	(void)state;
}

static void time_after_saturates(void **state)
{
	assert_int_equal(mc_time_after(5, 7), 12);
	assert_true(mc_time_after(5, MC_TIME_NEVER) == MC_TIME_NEVER);
	assert_true(mc_time_after(MC_TIME_NEVER, 1) == MC_TIME_NEVER);
	(void)state;
}

int main(void)
{
	const struct CMUnitTest tests[] = {
	    cmocka_unit_test(clock_is_injected),
	    cmocka_unit_test(clock_real_is_monotonic),
	    cmocka_unit_test(time_after_saturates),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
