/*
 * fork.c: the generation and its one handler, registered when the library is loaded.
 */
#include "base/fork.h"

#include <pthread.h>

#include "base/err.h"

_Atomic uint64_t mc_fork_gen_now = 1;

/* The child has one thread: nothing to order with. */
static void fork_in_child(void)
{
	atomic_fetch_add_explicit(&mc_fork_gen_now, 1, memory_order_relaxed);
}

__attribute__((constructor)) static void fork_start(void)
{
	int rc = pthread_atfork(NULL, NULL, fork_in_child);

	mc_assert(rc == 0);
}
