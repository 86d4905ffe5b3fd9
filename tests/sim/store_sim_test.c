/*
 * store_sim_test.c: the Store's programs in a simulated world, one history a seed. Clients put,
 * replace, read and remove; processes are killed, stopped, cut off from each other and started
 * again; a ledger outside decides. What must hold in every history:
 *
 *  - what is read is one acknowledged or unknown write of that key, whole, and not one that was
 *    replaced or removed before the read began, nor one that was reported as failed;
 *  - what was acknowledged is there while its owner lives, unless it may have been evicted;
 *  - a put is not refused for want of room while something may be evicted;
 *  - who needs room takes the deepest of a prefix first;
 *  - every operation ends by its deadline;
 *  - in the end no two objects share bytes, all are read, and when all is removed all room is back.
 *
 * MC_SIM_SEED=n replays one seed and tells what happens, MC_SIM_FIRST and MC_SIM_RUNS say which
 * ones; `--long` does 20,000. `--find n` succeeds when one of n fails: for bugs that were planted
 * (plant.py).
 */
#include "sim/store_sim.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/mem.h"

#define RUNS_DEFAULT 200u
#define RUNS_LONG 20000u
#define WORKERS_MAX 16u
#define HANG_S 30u /* of real time: a history takes milliseconds */

/* Shared by all processes of the test. */
struct tally {
	_Atomic uint64_t next, failures, histories;
	_Atomic uint64_t sums[SIM_COUNT];
};

static uint64_t number(const char *name, uint64_t otherwise)
{
	const char *text = getenv(name);

	return text && *text ? strtoull(text, NULL, 0) : otherwise;
}

/* One history in a process of its own: nothing of one is left for the next. */
static bool run_forked(uint64_t seed, struct tally *t)
{
	int status = 0;
	pid_t pid = fork();

	if (pid == 0) {
		uint64_t sums[SIM_COUNT] = {0};

		(void)alarm(HANG_S);
		store_sim_run(seed, sums);
		for (unsigned i = 0; i < SIM_COUNT; i++)
			t->sums[i] += sums[i];
		_exit(0);
	}
	if (pid < 0 || waitpid(pid, &status, 0) != pid)
		return false;
	if (WIFEXITED(status) && WEXITSTATUS(status) == 0)
		return true;
	if (WIFSIGNALED(status))
		(void)fprintf(stderr, "seed %llu: signal %d\n", (unsigned long long)seed,
			      WTERMSIG(status));
	return false;
}

static void worker(const char *self, uint64_t last, struct tally *t, uint64_t failures_max)
{
	for (;;) {
		uint64_t seed = t->next++;

		if (seed >= last || t->failures >= failures_max)
			return;
		t->histories++;
		if (run_forked(seed, t))
			continue;
		t->failures++;
		(void)fprintf(stderr, "seed %llu failed; again with: MC_SIM_SEED=%llu %s\n",
			      (unsigned long long)seed, (unsigned long long)seed, self);
	}
}

static void report(const struct tally *t)
{
	printf("%llu histories, %llu failed", (unsigned long long)t->histories,
	       (unsigned long long)t->failures);
	for (unsigned i = 0; i < SIM_COUNT; i++)
		printf("; %s %llu", store_sim_names[i], (unsigned long long)t->sums[i]);
	printf("\n");
}

int main(int argc, char **argv)
{
	bool is_long = argc > 1 && strcmp(argv[1], "--long") == 0;
	bool finds = argc > 2 && strcmp(argv[1], "--find") == 0;
	uint64_t first = number("MC_SIM_FIRST", 1);
	uint64_t last = first + number("MC_SIM_RUNS", is_long ? RUNS_LONG
						      : finds ? strtoull(argv[2], NULL, 10)
							      : RUNS_DEFAULT);
	uint64_t failures_max = number("MC_SIM_FAILURES", finds ? 1 : 5), sums[SIM_COUNT] = {0};
	long cores = sysconf(_SC_NPROCESSORS_ONLN);
	struct tally *t;

	if (getenv("MC_SIM_SEED")) {
		store_sim_is_told = true;
		store_sim_run(number("MC_SIM_SEED", 1), sums);
		return 0;
	}
	t = mmap(NULL, sizeof(*t), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	if (t == MAP_FAILED)
		return 1;
	t->next = first;
	(void)fflush(stdout);
	cores = mc_max(cores, 1L);
	for (long i = 0; i < cores && i < WORKERS_MAX; i++) {
		pid_t pid = fork();

		if (pid == 0) {
			worker(argv[0], last, t, failures_max);
			_exit(0);
		}
	}
	while (wait(NULL) > 0 || errno == EINTR)
		;
	report(t);
	return finds ? t->failures == 0 : t->failures > 0;
}
