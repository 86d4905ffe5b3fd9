/*
 * coll_phase_test.c: ranks that die just before their k-th store to the memory that the others
 * read, for every k there is: in every kind of operation, while they change the membership, while
 * they join. Each place at which a death could be seen is one of these.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include "base/clock.h"
#include "coll/priv.h"
#include "story.h"
#include "trap.h"

#define STORES_MAX 400u		      /* more than any of these makes */
#define ELEMS (5 * MC_COLL_CHUNK / 8) /* two chunks and a half */
#define JOIN_NS (30 * MC_NS_PER_S)

static uint64_t nstores; /* that succeed; the victims inherit it */

static void arm(const struct rank *r, const struct call *c)
{
	(void)c;
	trap_set(r->coll->page, nstores);
}

/* @return how many died */
static unsigned at_every_store(uint32_t ranks, enum mc_coll_kind kind, uint64_t count)
{
	unsigned died = 0, lived = 0;

	/* Until it was each rank's turn, and none made so many. */
	for (nstores = 0; nstores < STORES_MAX && lived < ranks; nstores++) {
		const struct trial t = {.ranks = ranks,
					.victims = 1ull << nstores % ranks,
					.kind = kind,
					.count = count,
					.arm = arm};

		lived = trial_run(&t) ? 0 : lived + 1;
		died += lived == 0;
	}
	assert_true(nstores < STORES_MAX);
	return died;
}

static void a_rank_dies_before_any_of_its_stores_in_any_operation(void **state)
{
	bool is_long = getenv("MC_COLL_PHASES") != NULL;
	unsigned died = 0;

	(void)state;
	if (!trap_is_possible())
		skip();
	for (unsigned kind = 0; kind < MC_COLL_KIND_COUNT; kind++) {
		for (uint32_t ranks = 2; ranks <= 4; ranks++) {
			/* Each world has its turn. */
			if (!is_long && kind % 3 != ranks - 2)
				continue;
			died += at_every_store(ranks, (enum mc_coll_kind)kind, ELEMS);
		}
	}
	died += at_every_store(2, MC_COLL_ALL_REDUCE, 1000);
	died += at_every_store(is_long ? 8 : 4, MC_COLL_ALL_REDUCE, ELEMS);
	print_message("%u deaths\n", died);
	assert_true(died >= 100);
}

/* ---- whoever changes the membership ---- */

#define NEVER UINT64_MAX

/* Compute until `want` are in for three operations; once those of `after` are gone, take in who is
 * there. */
static int take_in(struct rank *r, uint64_t after, uint64_t want)
{
	uint64_t ranks;
	int n = 0;

	while (n < 3) {
		uint64_t ready = mc_coll_ready(r->coll) & ~mc_coll_active(r->coll);

		/* Who is taken in may be dead by then. */
		if (ready && (mc_coll_gone(r->coll) & after) == after)
			WORLD_CHECK(mc_coll_activate(r->coll, ready, 0, JOIN_NS, NULL) == 0);
		WORLD_CHECK(world_count_ranks(r, &ranks) == 0);
		n = ranks == want ? n + 1 : 0;
	}
	return 0;
}

/* Ranks 0 and 1 run `founder`, and rank 2, which comes, `comer`. `dying` of them dies before each
 * of its stores in turn; `next` comes in its place. */
static void at_every_store_of_a_change(int (*founder)(struct rank *), int (*comer)(struct rank *),
				       uint32_t dying, int (*next)(struct rank *))
{
	for (nstores = 0; nstores < STORES_MAX; nstores++) {
		struct world *w = world_make(nstores);
		pid_t pids[3];
		int rc;

		for (uint32_t i = 0; i < 2; i++)
			pids[i] = world_fork(w, i, 2, 3, 0, founder);
		world_wait_addresses(w, 2);
		pids[2] = world_fork(w, 2, 0, 3, 0, comer);
		rc = world_reap(pids[dying]);
		assert_true(rc == 0 || rc > 1000);
		if (next)
			pids[dying] = world_fork(w, dying, 0, 3, 0, next);
		for (uint32_t i = 0; i < 3; i++)
			assert_true((i == dying && !next) || world_reap(pids[i]) == 0);
		world_free(w);
		if (rc == 0)
			break;
	}
	print_message("%llu deaths\n", (unsigned long long)nstores);
	assert_true(nstores > 5 && nstores < STORES_MAX);
}

static int ask_and_die(struct rank *r)
{
	if (r->rank == 1) {
		world_tick(r->w);
		return take_in(r, 1, 6);
	}
	world_wait_ticks(r->w, 1); /* both have met */
	while (!(mc_coll_ready(r->coll) & 4))
		world_pause(MC_NS_PER_MS);
	trap_set(r->coll->board, nstores);
	(void)!mc_coll_activate(r->coll, 4, 0, JOIN_NS, NULL);
	_exit(0);
}

static int come(struct rank *r)
{
	WORLD_CHECK(mc_coll_join(r->coll, JOIN_NS) == 0);
	return take_in(r, NEVER, 6);
}

static void whoever_changes_the_membership_dies_before_any_store_of_it(void **state)
{
	(void)state;
	if (!trap_is_possible())
		skip();
	at_every_store_of_a_change(ask_and_die, come, 0, NULL);
}

/* ---- whoever joins ---- */

static int stay(struct rank *r)
{
	return take_in(r, r->rank == 0 ? 0 : NEVER, 7);
}

static int join_and_die(struct rank *r)
{
	uint64_t ranks;

	trap_set(r->coll->page, nstores);
	if (mc_coll_join(r->coll, JOIN_NS) == 0)
		(void)!world_count_ranks(r, &ranks);
	_exit(0);
}

static int join_and_stay(struct rank *r)
{
	WORLD_CHECK(mc_coll_join(r->coll, JOIN_NS) == 0);
	return take_in(r, NEVER, 7);
}

static void whoever_joins_dies_before_any_store_of_it(void **state)
{
	(void)state;
	if (!trap_is_possible())
		skip();
	at_every_store_of_a_change(stay, join_and_die, 2, join_and_stay);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
	    cmocka_unit_test(a_rank_dies_before_any_of_its_stores_in_any_operation),
	    cmocka_unit_test(whoever_changes_the_membership_dies_before_any_store_of_it),
	    cmocka_unit_test(whoever_joins_dies_before_any_store_of_it),
	};

	return cmocka_run_group_tests(tests, story_setup, NULL);
}
