/*
 * fork.h: lets an object tell that it belongs to the parent of a forked process. An object keeps
 * mc_fork_gen() of its birth; after fork() mc_fork_is_child() is true for it in the child, and its
 * calls return -MC_E_FORKED.
 */
#ifndef MC_BASE_FORK_H
#define MC_BASE_FORK_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

extern _Atomic uint64_t mc_fork_gen_now;

/** Changes in the child of every fork(); not by vfork() or a raw clone(). Any thread;
 * async-signal-safe. */
static inline uint64_t mc_fork_gen(void)
{
	return atomic_load_explicit(&mc_fork_gen_now, memory_order_relaxed);
}

/** True when `gen` was taken in a process that this one was forked from. */
static inline bool mc_fork_is_child(uint64_t gen)
{
	return gen != mc_fork_gen();
}

#endif
