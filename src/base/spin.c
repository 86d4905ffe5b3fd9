/*
 * spin.c: the bounds on threads that poll: seats in this process, runnable threads on the machine.
 * The rest of the policy is inline and pure.
 */
#include "base/spin.h"

#include <fcntl.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/sync.h"

#define LOOK_NS 10000000u /* how old a look at the machine's load may be */

static _Atomic int seats_taken, waiting;
static _Atomic uint64_t looked_ns;
static _Atomic bool is_crowded;
static _Atomic int known_cores; /* 0: not looked yet */
static const char *loadavg_path = "/proc/loadavg";

/* Cores this process may use, read once; a later change of affinity only makes the bound less
 * exact. */
static int cores(void)
{
	int n = atomic_load_explicit(&known_cores, memory_order_relaxed);
	cpu_set_t set;

	if (n == 0) {
		n = sched_getaffinity(0, sizeof(set), &set) == 0 ? CPU_COUNT(&set) : 1;
		atomic_store_explicit(&known_cores, n, memory_order_relaxed);
	}
	return n;
}

/* Threads that run or want to, of the whole machine: "0.10 0.20 0.30 2/345 6789". 0: unknown. */
static long runnable(void)
{
	int fd = open(loadavg_path, O_RDONLY | O_CLOEXEC);
	char text[128], *at = text;
	ssize_t n;

	if (fd < 0)
		return 0;
	n = read(fd, text, sizeof(text) - 1);
	(void)close(fd);
	text[n > 0 ? n : 0] = '\0';
	for (int i = 0; i < 3 && at; i++) {
		at = strchr(at, ' ');
		at = at ? at + 1 : NULL;
	}
	return at ? strtol(at, NULL, 10) : 0;
}

/* A look costs microseconds and is shared by all waiters of the process for LOOK_NS. */
static bool crowded(uint64_t now_ns)
{
	uint64_t last = atomic_load_explicit(&looked_ns, memory_order_relaxed);

	if (now_ns - last > LOOK_NS &&
	    atomic_compare_exchange_strong_explicit(&looked_ns, &last, now_ns, memory_order_relaxed,
						    memory_order_relaxed))
		atomic_store_explicit(&is_crowded, runnable() > cores(), memory_order_relaxed);
	return atomic_load_explicit(&is_crowded, memory_order_relaxed);
}

bool mc_spin_enter(uint64_t now_ns)
{
	int taken = atomic_load_explicit(&seats_taken, memory_order_relaxed);

	if (crowded(now_ns) || atomic_load_explicit(&waiting, memory_order_relaxed) >= cores())
		return false;
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

void mc_spin_machine(int ncores, const char *loadavg)
{
	atomic_store_explicit(&known_cores, ncores, memory_order_relaxed);
	loadavg_path = loadavg ? loadavg : "/proc/loadavg";
	atomic_store_explicit(&looked_ns, 0, memory_order_relaxed);
}

static int poll_for(struct mc_spin *s, uint64_t from_ns, uint32_t budget_ns,
		    int (*look)(void *user), void *user)
{
	uint64_t last_ns = from_ns, now_ns = from_ns;
	int rc = 0;

	while (now_ns - from_ns < budget_ns) {
		rc = look(user);
		if (rc != 0)
			break;
		mc_cpu_relax();
		now_ns = mc_now_ns();
		if (!mc_spin_gap_ok(s, now_ns, now_ns - last_ns))
			break;
		last_ns = now_ns;
	}
	mc_spin_leave();
	return rc;
}

int mc_spin_wait(struct mc_spin *s, int (*look)(void *user), int (*sleep)(void *user), void *user)
{
	uint64_t from_ns, now_ns;
	uint32_t budget_ns;
	bool has_polled;
	int rc = 0;

	atomic_fetch_add_explicit(&waiting, 1, memory_order_relaxed); /* a hint, no more */
	from_ns = mc_now_ns();
	budget_ns = mc_spin_budget(s, from_ns);
	has_polled = budget_ns > 0 && mc_spin_enter(from_ns);
	if (has_polled)
		rc = poll_for(s, from_ns, budget_ns, look, user);
	if (rc == 0)
		rc = sleep(user);
	atomic_fetch_sub_explicit(&waiting, 1, memory_order_relaxed);
	now_ns = mc_now_ns();
	mc_spin_note(s, now_ns, now_ns - from_ns, has_polled);
	return rc;
}
