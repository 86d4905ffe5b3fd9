/*
 * spin_test.c: when a waiter polls: what it has learnt, bounds, bans. Times are arguments.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include "base/spin.h"

#define LATER_NS 1000000000u /* no stream of waits: long after the last one */

/* n waits of one length each way, the last one long ago. */
static struct mc_spin learnt(unsigned n, uint32_t polled_ns, uint32_t slept_ns)
{
	struct mc_spin s = {0};

	for (unsigned i = 0; i < n; i++) {
		mc_spin_note(&s, 1000, polled_ns, true);
		mc_spin_note(&s, 1000, slept_ns, false);
	}
	return s;
}

static void one_that_has_learnt_nothing_polls_then_sleeps(void **state)
{
	struct mc_spin s = {0};

	for (unsigned i = 0; i < MC_SPIN_LEARN; i++) {
		assert_int_equal(mc_spin_budget(&s, LATER_NS), MC_SPIN_WAIT_MAX_NS);
		mc_spin_note(&s, 1000, 5000, true);
	}
	for (unsigned i = 0; i < MC_SPIN_LEARN; i++) {
		assert_int_equal(mc_spin_budget(&s, LATER_NS), 0);
		mc_spin_note(&s, 1000, 50000, false);
	}
	assert_int_equal(mc_spin_budget(&s, LATER_NS), 2 * 5000 + 10000);
	(void)state;
}

static void what_was_shorter_is_done(void **state)
{
	struct mc_spin fast = learnt(8, 5000, 40000), slow = learnt(8, 40000, 30000);

	assert_int_equal(mc_spin_budget(&fast, LATER_NS), 20000);
	assert_int_equal(mc_spin_budget(&slow, LATER_NS), 0);
	(void)state;
}

static void waits_longer_than_a_wake_up_costs_are_not_polled_for(void **state)
{
	struct mc_spin below = learnt(8, MC_SPIN_WAIT_MAX_NS - 1, 10000000);
	struct mc_spin at = learnt(8, MC_SPIN_WAIT_MAX_NS, 10000000);

	assert_int_equal(mc_spin_budget(&below, LATER_NS), MC_SPIN_WAIT_MAX_NS);
	assert_int_equal(mc_spin_budget(&at, LATER_NS), 0);
	(void)state;
}

static void a_stream_of_waits_may_poll_for_longer(void **state)
{
	struct mc_spin s = learnt(8, 80000, 10000000);

	assert_int_equal(mc_spin_budget(&s, 1000 + MC_SPIN_BUSY_NS - 1), MC_SPIN_BUSY_MAX_NS);
	assert_int_equal(mc_spin_budget(&s, 1000 + MC_SPIN_BUSY_NS), 0);
	(void)state;
}

static void the_other_way_is_tried_now_and_then(void **state)
{
	struct mc_spin s = learnt(8, 5000, 40000), t = learnt(8, 40000, 30000);
	unsigned slept = 0, polled = 0;

	for (unsigned i = 0; i < 10 * MC_SPIN_TRY_EVERY; i++) {
		slept += mc_spin_budget(&s, LATER_NS) == 0;
		polled += mc_spin_budget(&t, LATER_NS) > 0;
	}
	assert_int_equal(slept, 10);
	assert_int_equal(polled, 10);
	(void)state;
}

static void a_gap_between_polls_bans_them_for_a_while(void **state)
{
	struct mc_spin s = learnt(8, 5000, 40000);

	assert_true(mc_spin_gap_ok(&s, LATER_NS, MC_SPIN_STALL_NS - 1));
	assert_int_equal(mc_spin_budget(&s, LATER_NS), 20000);
	assert_false(mc_spin_gap_ok(&s, LATER_NS, MC_SPIN_STALL_NS));
	assert_int_equal(mc_spin_budget(&s, LATER_NS + MC_SPIN_BAN_NS - 1), 0);
	assert_int_equal(mc_spin_budget(&s, LATER_NS + MC_SPIN_BAN_NS), 20000);
	(void)state;
}

static void means_follow_what_changes_and_stay_in_bounds(void **state)
{
	struct mc_spin s = learnt(8, 5000, 40000);

	for (unsigned i = 0; i < 100; i++)
		mc_spin_note(&s, 1000, 45000, true);
	assert_in_range(s.polled_ns, 44000, 45000);
	assert_int_equal(mc_spin_budget(&s, LATER_NS), 0); /* sleeping is shorter now */
	for (unsigned i = 0; i < 100; i++)
		mc_spin_note(&s, 1000, UINT64_MAX, false);
	assert_in_range(s.slept_ns, 9900000, 10000000);
	for (unsigned i = 0; i < 100; i++)
		mc_spin_note(&s, 1000, 0, true);
	assert_in_range(s.polled_ns, 0, 8);
	assert_int_equal(s.polled, MC_SPIN_LEARN);
	(void)state;
}

int main(void)
{
	const struct CMUnitTest tests[] = {
	    cmocka_unit_test(one_that_has_learnt_nothing_polls_then_sleeps),
	    cmocka_unit_test(what_was_shorter_is_done),
	    cmocka_unit_test(waits_longer_than_a_wake_up_costs_are_not_polled_for),
	    cmocka_unit_test(a_stream_of_waits_may_poll_for_longer),
	    cmocka_unit_test(the_other_way_is_tried_now_and_then),
	    cmocka_unit_test(a_gap_between_polls_bans_them_for_a_while),
	    cmocka_unit_test(means_follow_what_changes_and_stay_in_bounds),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
