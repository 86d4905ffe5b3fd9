/*
 * coll_wide_test.c: operations between processes on several hosts, told apart by name, against one
 * process's oracle.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include "call.h"

static void random_operations_over_hosts_equal_the_oracle(void **state)
{
	(void)state;
	for (uint32_t ranks = 2; ranks <= 4; ranks++)
		world_run_on(ranks, ranks, 0, call_random_ops);
	/* Two ranks on each of two hosts; and larger than the scratch. */
	world_run_on(2, 4, 0, call_random_ops);
	world_run_on(3, 3, 64u << 10, call_random_ops);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
	    cmocka_unit_test(random_operations_over_hosts_equal_the_oracle),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
