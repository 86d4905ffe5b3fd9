/*
 * spin.c: the process-wide bound on threads that poll. The rest of the policy is inline and pure.
 */
#include "base/spin.h"

#include <sched.h>
#include <stdatomic.h>

static _Atomic int seats_taken;

/* Cores this process may use, read once; a later change of affinity only makes the bound less
 * exact. */
static int cores(void)
{
	static _Atomic int known;
	int n = atomic_load_explicit(&known, memory_order_relaxed);
	cpu_set_t set;

	if (n == 0) {
		n = sched_getaffinity(0, sizeof(set), &set) == 0 ? CPU_COUNT(&set) : 1;
		atomic_store_explicit(&known, n, memory_order_relaxed);
	}
	return n;
}

bool mc_spin_enter(void)
{
	int taken = atomic_load_explicit(&seats_taken, memory_order_relaxed);

	while (taken < cores() - 1)
		/* relaxed: the count guards nothing but itself */
		if (atomic_compare_exchange_weak_explicit(&seats_taken, &taken, taken + 1,
							  memory_order_relaxed,
							  memory_order_relaxed))
			return true;
	return false;
}

void mc_spin_leave(void)
{
	atomic_fetch_sub_explicit(&seats_taken, 1, memory_order_relaxed);
}
