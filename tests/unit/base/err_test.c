/*
 * err_test.c: codes, errno mapping, diagnostics.
 */
#include "base/err.h"

#include <errno.h>
#include <limits.h>
#include <signal.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

static void err_text_and_name_take_either_sign(void **state)
{
	assert_string_equal(mc_err_text(MC_E_TIMEDOUT), "deadline passed");
	assert_string_equal(mc_err_text(-MC_E_TIMEDOUT), "deadline passed");
	assert_string_equal(mc_err_name(-MC_E_BUSY), "BUSY");
	assert_int_equal(mc_err_scope(-MC_E_RESET), MC_SCOPE_RAIL);
	(void)state;
}

static void err_unknown_codes_have_texts_too(void **state)
{
	const int odd[] = {INT_MIN, INT_MAX, MC_E_COUNT, -MC_E_COUNT, 100000};

	for (size_t i = 0; i < sizeof(odd) / sizeof(odd[0]); i++) {
		assert_string_equal(mc_err_text(odd[i]), "unknown error");
		assert_string_equal(mc_err_name(odd[i]), "UNKNOWN");
		assert_int_equal(mc_err_scope(odd[i]), MC_SCOPE_OP);
	}
	(void)state;
}

static void err_every_code_has_a_row(void **state)
{
	for (int i = 0; i < MC_E_COUNT; i++)
		assert_string_not_equal(mc_err_name(i), "UNKNOWN");
	(void)state;
}

static void err_from_errno_maps_and_keeps_errno(void **state)
{
	errno = 4711;
	assert_int_equal(mc_err_from_errno(ENOMEM), -MC_E_NOMEM);
	assert_int_equal(mc_err_from_errno(EPIPE), -MC_E_RESET);
	assert_int_equal(mc_err_from_errno(ECONNREFUSED), -MC_E_REFUSED);
	assert_int_equal(mc_err_from_errno(EWOULDBLOCK), -MC_E_AGAIN);
	assert_int_equal(mc_err_from_errno(EADDRINUSE), -MC_E_ADDR_IN_USE);
	assert_int_equal(mc_err_from_errno(EIO), -MC_E_IO);
	assert_int_equal(mc_err_from_errno(-5), -MC_E_IO);
	assert_int_equal(errno, 4711);
	(void)state;
}

static void diag_wraps_outermost_first(void **state)
{
	struct mc_diag diag;

	mc_diag_set(&diag, "no such file");
	mc_diag_wrap(&diag, "open %s", "y");
	mc_diag_wrap(&diag, "mount %d", 7);
	assert_string_equal(diag.text, "mount 7: open y: no such file");
	mc_diag_set(&diag, "again %s", diag.text);
	assert_string_equal(diag.text, "again mount 7: open y: no such file");
	(void)state;
}

static void diag_wrap_of_nothing_has_no_colon(void **state)
{
	struct mc_diag diag = {.text = ""};

	mc_diag_wrap(&diag, "alone");
	assert_string_equal(diag.text, "alone");
	(void)state;
}

static void diag_cuts_at_its_end(void **state)
{
	struct mc_diag diag;
	char longer[2 * sizeof(diag.text)];

	memset(longer, 'x', sizeof(longer) - 1);
	longer[sizeof(longer) - 1] = '\0';
	mc_diag_set(&diag, "%s", longer);
	assert_int_equal(strlen(diag.text), sizeof(diag.text) - 1);
	mc_diag_wrap(&diag, "front");
	assert_int_equal(strlen(diag.text), sizeof(diag.text) - 1);
	assert_memory_equal(diag.text, "front: xxx", 10);
	mc_diag_wrap(&diag, "%s", longer);
	assert_int_equal(strlen(diag.text), sizeof(diag.text) - 1);
	(void)state;
}

static void assert_failure_names_the_place_and_aborts(void **state)
{
	int pipe_fd[2];
	char text[600] = "";
	int status;
	pid_t pid;

	assert_int_equal(pipe(pipe_fd), 0);
	pid = fork();
	assert_int_not_equal(pid, -1);
	if (pid == 0) {
		(void)signal(SIGABRT, SIG_DFL); /* cmocka catches it */
		(void)dup2(pipe_fd[1], STDERR_FILENO);
		mc_assert_fail("x > 0", "here.c", 7);
	}
	assert_int_equal(waitpid(pid, &status, 0), pid);
	assert_true(WIFSIGNALED(status) && WTERMSIG(status) == SIGABRT);
	assert_true(read(pipe_fd[0], text, sizeof(text) - 1) > 0);
	assert_string_equal(text, "mooncake: broken invariant: x > 0 (here.c:7)\n");
	assert_int_equal(close(pipe_fd[0]) + close(pipe_fd[1]), 0);
	(void)state;
}

static void diag_null_is_allowed(void **state)
{
	mc_diag_set(NULL, "x");
	mc_diag_wrap(NULL, "x");
	(void)state;
}

int main(void)
{
	const struct CMUnitTest tests[] = {
	    cmocka_unit_test(err_text_and_name_take_either_sign),
	    cmocka_unit_test(err_unknown_codes_have_texts_too),
	    cmocka_unit_test(err_every_code_has_a_row),
	    cmocka_unit_test(err_from_errno_maps_and_keeps_errno),
	    cmocka_unit_test(diag_wraps_outermost_first),
	    cmocka_unit_test(diag_wrap_of_nothing_has_no_colon),
	    cmocka_unit_test(diag_cuts_at_its_end),
	    cmocka_unit_test(assert_failure_names_the_place_and_aborts),
	    cmocka_unit_test(diag_null_is_allowed),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
