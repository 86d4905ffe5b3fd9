/*
 * sync_test.c: futex waits and wakes.
 */
#include "base/sync.h"

#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/clock.h"

static void futex_wait_returns_when_the_word_differs(void **state)
{
	_Atomic uint32_t word = 1;

	assert_int_equal(mc_futex_wait(&word, 0, MC_TIME_NEVER), 0);
	(void)state;
}

static void futex_wait_ends_at_its_deadline(void **state)
{
	_Atomic uint32_t word = 0;
	uint64_t start = mc_now_ns();

	assert_int_equal(mc_futex_wait(&word, 0, 0), -MC_E_TIMEDOUT);
	assert_int_equal(mc_futex_wait(&word, 0, start + MC_NS_PER_MS), -MC_E_TIMEDOUT);
	assert_true(mc_now_ns() >= start + MC_NS_PER_MS);
	(void)state;
}

static void *futex_waker(void *arg)
{
	_Atomic uint32_t *word = arg;

	atomic_store(word, 1);
	mc_futex_wake(word, UINT32_MAX);
	return NULL;
}

static void futex_wake_ends_a_wait(void **state)
{
	_Atomic uint32_t word = 0;
	pthread_t thread;

	assert_int_equal(pthread_create(&thread, NULL, futex_waker, &word), 0);
	while (atomic_load(&word) == 0)
		assert_int_equal(mc_futex_wait(&word, 0, MC_TIME_NEVER), 0);
	assert_int_equal(pthread_join(thread, NULL), 0);
	(void)state;
}

static void futex_wake_reaches_another_process(void **state)
{
	_Atomic uint32_t *word;
	int status;
	pid_t pid;

	word = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	assert_ptr_not_equal(word, MAP_FAILED);
	pid = fork();
	assert_int_not_equal(pid, -1);
	if (pid == 0) {
		while (atomic_load(word) == 0) {
			if (mc_futex_wait_shared(word, 0, mc_now_ns() + 20 * MC_NS_PER_S) < 0)
				_exit(1);
		}
		_exit(0);
	}
	atomic_store(word, 1);
	mc_futex_wake_shared(word, 1);
	assert_int_equal(waitpid(pid, &status, 0), pid);
	assert_int_equal(status, 0);
	assert_int_equal(munmap(word, 4096), 0);
	(void)state;
}

static void cpu_relax_returns(void **state)
{
	mc_cpu_relax();
	(void)state;
}

int main(void)
{
	const struct CMUnitTest tests[] = {
	    cmocka_unit_test(futex_wait_returns_when_the_word_differs),
	    cmocka_unit_test(futex_wait_ends_at_its_deadline),
	    cmocka_unit_test(futex_wake_ends_a_wait),
	    cmocka_unit_test(futex_wake_reaches_another_process),
	    cmocka_unit_test(cpu_relax_returns),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
