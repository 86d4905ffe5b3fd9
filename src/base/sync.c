/*
 * sync.c: futex(2). FUTEX_WAIT_BITSET is the form whose timeout is absolute and monotonic.
 */
#include "base/sync.h"

#include <errno.h>
#include <limits.h>
#include <linux/futex.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/mem.h"

static int futex_wait(_Atomic uint32_t *word, int op, uint32_t expected, uint64_t deadline_ns)
{
	struct timespec ts = {.tv_sec = (time_t)(deadline_ns / MC_NS_PER_S),
			      .tv_nsec = (long)(deadline_ns % MC_NS_PER_S)};
	const struct timespec *until = deadline_ns == MC_TIME_NEVER ? NULL : &ts;

	if (syscall(SYS_futex, word, op, expected, until, NULL, FUTEX_BITSET_MATCH_ANY) == 0 ||
	    errno == EAGAIN)
		return 0;
	if (errno == EINTR)
		return -MC_E_AGAIN;
	mc_assert(errno == ETIMEDOUT);
	return -MC_E_TIMEDOUT;
}

static void futex_wake(_Atomic uint32_t *word, int op, uint32_t waiters_max)
{
	/* Fails only for a word that is gone, and then nobody sleeps on it. */
	(void)syscall(SYS_futex, word, op, mc_min(waiters_max, (uint32_t)INT_MAX), NULL, NULL, 0);
}

int mc_futex_wait(_Atomic uint32_t *word, uint32_t expected, uint64_t deadline_ns)
{
	return futex_wait(word, FUTEX_WAIT_BITSET_PRIVATE, expected, deadline_ns);
}

void mc_futex_wake(_Atomic uint32_t *word, uint32_t waiters_max)
{
	futex_wake(word, FUTEX_WAKE_PRIVATE, waiters_max);
}

int mc_futex_wait_shared(_Atomic uint32_t *word, uint32_t expected, uint64_t deadline_ns)
{
	return futex_wait(word, FUTEX_WAIT_BITSET, expected, deadline_ns);
}

void mc_futex_wake_shared(_Atomic uint32_t *word, uint32_t waiters_max)
{
	futex_wake(word, FUTEX_WAKE, waiters_max);
}
