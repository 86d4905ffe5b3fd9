/*
 * fork_test.c: the generation across fork().
 */
#include "base/fork.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

static void fork_gen_differs_in_the_child_only(void **state)
{
	uint64_t gen = mc_fork_gen();
	int status;
	pid_t pid;

	assert_false(mc_fork_is_child(gen));
	pid = fork();
	assert_int_not_equal(pid, -1);
	if (pid == 0)
		_exit(mc_fork_is_child(gen) && !mc_fork_is_child(mc_fork_gen()) ? 0 : 1);
	assert_int_equal(waitpid(pid, &status, 0), pid);
	assert_int_equal(status, 0);
	assert_false(mc_fork_is_child(gen));
	(void)state;
}

int main(void)
{
	const struct CMUnitTest tests[] = {
	    cmocka_unit_test(fork_gen_differs_in_the_child_only),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
