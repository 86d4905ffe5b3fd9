/*
 * retry_test.c: which failures are tried again, how often, after which pause.
 */
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <cmocka.h>

#include "engine/retry.h"

static void the_first_retry_goes_out_at_once_and_later_ones_wait_longer(void **state)
{
	struct mc_retry r = {0};
	uint64_t wait = 1, last = 0;

	(void)state;
	assert_true(mc_retry_next(&r, -MC_E_RESET, 9, &wait));
	assert_int_equal(wait, 0);
	for (int i = 0; i < 7; i++) {
		assert_true(mc_retry_next(&r, -MC_E_RESET, 9, &wait));
		assert_true(wait > last && wait <= MC_RETRY_MAX_NS);
		last = wait;
	}
	assert_false(mc_retry_next(&r, -MC_E_RESET, 9, &wait)); /* nine tries in all */
}

static void a_pause_never_exceeds_its_maximum(void **state)
{
	struct mc_retry r = {0};
	uint64_t wait;

	(void)state;
	for (int i = 0; i < 120; i++) {
		assert_true(mc_retry_next(&r, -MC_E_UNREACHABLE, 128, &wait));
		assert_true(wait <= MC_RETRY_MAX_NS);
	}
}

static void wrong_operations_and_lost_peers_are_not_tried_again(void **state)
{
	static const int codes[] = {MC_E_INVAL,	    MC_E_RANGE,		 MC_E_PERM,
				    MC_E_PEER_DEAD, MC_E_PEER_RESTARTED, MC_E_PROTO};
	uint64_t wait;

	(void)state;
	for (size_t i = 0; i < sizeof(codes) / sizeof(codes[0]); i++) {
		struct mc_retry r = {0};

		assert_false(mc_retry_next(&r, -codes[i], 9, &wait));
	}
}

static void one_try_means_no_retry(void **state)
{
	struct mc_retry r = {0};
	uint64_t wait;

	(void)state;
	assert_false(mc_retry_next(&r, -MC_E_RESET, 1, &wait));
}

int main(void)
{
	const struct CMUnitTest tests[] = {
	    cmocka_unit_test(the_first_retry_goes_out_at_once_and_later_ones_wait_longer),
	    cmocka_unit_test(a_pause_never_exceeds_its_maximum),
	    cmocka_unit_test(wrong_operations_and_lost_peers_are_not_tried_again),
	    cmocka_unit_test(one_try_means_no_retry),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
