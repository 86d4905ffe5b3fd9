/*
 * world.c: see world.h.
 */
#include "world.h"

#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/mem.h"
#include "base/sync.h"
/* cmocka needs these before it */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

int world_fail(const char *what, const char *file, int line)
{
	(void)fprintf(stderr, "%s:%d: not true: %s\n", file, line, what);
	return 1;
}

const char *world_explain(struct rank *r)
{
	static struct mc_diag diag;

	mc_coll_last_error(r->coll, &diag);
	return diag.text;
}

struct world *world_make(uint64_t seed)
{
	struct world *w =
	    mmap(NULL, sizeof(*w), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);

	assert_true(w != MAP_FAILED);
	w->seed = seed;
	return w;
}

void world_free(struct world *w)
{
	(void)munmap(w, sizeof(*w));
}

/* Everyone's address, once it is there; a joiner takes those that are. */
static void addresses(struct world *w, uint32_t rank, uint32_t ranks, const char **ret)
{
	for (uint32_t i = 0; i < WORLD_MAX; i++) {
		while (i < ranks && !atomic_load(&w->has_addr[i]))
			(void)!mc_futex_wait_shared(&w->has_addr[i], 0, MC_TIME_NEVER);
		ret[i] = i != rank && atomic_load(&w->has_addr[i]) ? w->addr[i] : NULL;
	}
}

/* A hub, and its address for the others. */
static int show(struct world *w, uint32_t rank, struct mc_coll_hub **ret_hub)
{
	struct mc_coll_hub_opts opts = {.size = sizeof(opts), .ip = "127.0.0.1"};
	struct mc_diag diag = {0};
	char host[16];

	(void)snprintf(host, sizeof(host), "h%u", w->hosts ? rank % w->hosts : 0);
	if (w->hosts)
		opts.host = host;
	if (mc_coll_hub_open(&opts, &diag, ret_hub) < 0) {
		(void)fprintf(stderr, "rank %u: hub: %s\n", rank, diag.text);
		return -1;
	}
	(void)snprintf(w->addr[rank], sizeof(w->addr[rank]), "%s", mc_coll_hub_address(*ret_hub));
	atomic_store(&w->has_addr[rank], 1);
	mc_futex_wake_shared(&w->has_addr[rank], WORLD_MAX);
	return 0;
}

static int live(struct world *w, uint32_t rank, uint32_t ranks, uint32_t ranks_max,
		uint64_t scratch_max, int (*fn)(struct rank *r))
{
	struct rank r = {.w = w, .rank = rank, .ranks = ranks};
	struct mc_coll_opts opts = {.size = sizeof(opts),
				    .name = "world",
				    .rank = rank,
				    .ranks = ranks,
				    .ranks_max = ranks_max,
				    .timeout_ns = 40 * MC_NS_PER_S,
				    .scratch_max = scratch_max};
	const char *addrs[WORLD_MAX];
	struct mc_diag diag = {0};
	int rc = show(w, rank, &r.hub);

	if (rc < 0)
		return 2;
	addresses(w, rank, ranks, addrs);
	rc = mc_coll_open(r.hub, &opts, addrs, &diag, &r.coll);
	if (rc < 0) {
		(void)fprintf(stderr, "rank %u: open: %d %s\n", rank, rc, diag.text);
		return 3;
	}
	rc = fn(&r);
	mc_coll_close(r.coll);
	mc_coll_hub_close(r.hub);
	return rc;
}

/* @return the child's 0 */
static pid_t fork_child(void)
{
	pid_t pid;

	(void)fflush(NULL);
	pid = fork();
	assert_true(pid >= 0);
	if (pid == 0) {
		/* cmocka and sanitizers would go on with the tests, or explain at length. */
		(void)signal(SIGSEGV, SIG_DFL);
		(void)prctl(PR_SET_PDEATHSIG, SIGKILL);
	}
	return pid;
}

pid_t world_fork(struct world *w, uint32_t rank, uint32_t ranks, uint32_t ranks_max,
		 uint64_t scratch_max, int (*fn)(struct rank *r))
{
	pid_t pid = fork_child();

	if (pid == 0)
		_exit(live(w, rank, ranks, ranks_max, scratch_max, fn));
	return pid;
}

pid_t world_fork_dead(struct world *w, uint32_t rank)
{
	struct mc_coll_hub *hub;
	pid_t pid = fork_child();

	if (pid == 0) {
		(void)show(w, rank, &hub);
		(void)raise(SIGKILL);
	}
	return pid;
}

int world_count_ranks(struct rank *r, uint64_t *ret_ranks)
{
	double x[64] = {0}, y[64];
	struct mc_coll_part in = {x, 64}, out = {y, 64};
	struct mc_coll_op op = {.kind = MC_COLL_ALL_REDUCE,
				.type = MC_COLL_F64,
				.in = &in,
				.out = &out,
				.nin = 1,
				.nout = 1};
	struct mc_coll_result res;
	int rc;

	x[r->rank] = 1;
	rc = mc_coll_run(r->coll, &op, &res);
	if (rc < 0)
		return rc;
	for (unsigned i = 0; i < 64; i++)
		if (y[i] != (double)(res.ranks >> i & 1))
			return -MC_E_CORRUPT;
	*ret_ranks = res.ranks;
	return 0;
}

void world_wait_addresses(struct world *w, uint32_t ranks)
{
	for (uint32_t i = 0; i < ranks; i++)
		while (!atomic_load(&w->has_addr[i]))
			(void)!mc_futex_wait_shared(&w->has_addr[i], 0, MC_TIME_NEVER);
}

void world_tick(struct world *w)
{
	atomic_fetch_add(&w->ticks, 1);
	mc_futex_wake_shared(&w->ticks, WORLD_MAX);
}

void world_wait_ticks(struct world *w, uint32_t ticks)
{
	uint32_t now;

	while ((now = atomic_load(&w->ticks)) < ticks)
		(void)!mc_futex_wait_shared(&w->ticks, now, MC_TIME_NEVER);
}

void world_pause(uint64_t ns)
{
	_Atomic uint32_t word = 0;

	(void)!mc_futex_wait(&word, 0, mc_now_ns() + ns);
}

int world_reap(pid_t pid)
{
	int status = 0;

	assert_int_equal(waitpid(pid, &status, 0), pid);
	return WIFEXITED(status) ? WEXITSTATUS(status) : 1000 + WTERMSIG(status);
}

void world_run(uint32_t ranks, uint64_t scratch_max, int (*fn)(struct rank *r))
{
	world_run_on(0, ranks, scratch_max, fn);
}

void world_run_on(uint32_t hosts, uint32_t ranks, uint64_t scratch_max, int (*fn)(struct rank *r))
{
	struct world *w = world_make(1);
	pid_t pids[WORLD_MAX];

	w->hosts = hosts;
	for (uint32_t i = 0; i < ranks; i++)
		pids[i] = world_fork(w, i, ranks, ranks, scratch_max, fn);
	for (uint32_t i = 0; i < ranks; i++)
		assert_int_equal(world_reap(pids[i]), 0);
	world_free(w);
}
