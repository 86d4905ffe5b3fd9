/*
 * sync.h: futex waits with absolute deadlines, and the pause between two looks at a word. For
 * mutual exclusion use pthread_mutex.
 */
#ifndef MC_BASE_SYNC_H
#define MC_BASE_SYNC_H

#include <stdatomic.h>
#include <stdint.h>

#include "base/err.h"

/**
 * Sleep while *word == expected. The caller checks its condition again after every return.
 *
 * @param deadline_ns  mc_now_ns() time; MC_TIME_NEVER waits for ever; one that has passed does not
 * sleep
 * @return 0 woken, possibly for nothing, or the word differs; -MC_E_TIMEDOUT; -MC_E_AGAIN when a
 * signal came
 *
 * Threads of one process. Any thread that may block.
 */
MC_MUST_CHECK int mc_futex_wait(_Atomic uint32_t *word, uint32_t expected, uint64_t deadline_ns);
/** Wake at most `waiters_max` sleepers on the word. */
void mc_futex_wake(_Atomic uint32_t *word, uint32_t waiters_max);

/** As above for a word in memory that several processes share. */
MC_MUST_CHECK int mc_futex_wait_shared(_Atomic uint32_t *word, uint32_t expected,
				       uint64_t deadline_ns);
void mc_futex_wake_shared(_Atomic uint32_t *word, uint32_t waiters_max);

#if defined(__x86_64__)
static inline void mc_cpu_relax(void)
{
	__builtin_ia32_pause();
}
#elif defined(__aarch64__)
static inline void mc_cpu_relax(void)
{
	__asm__ __volatile__("yield" ::: "memory");
}
#else
static inline void mc_cpu_relax(void)
{
	atomic_signal_fence(memory_order_seq_cst);
}
#endif

#endif
