/*
 * coll_storm_test.c: ranks that are killed from outside, at any time. What survivors get must be
 * the same on all of them, and nobody may hang.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>

#include "base/clock.h"
#include "base/mem.h"
#include "base/rand.h"
#include "story.h"

static int storm_ops(struct rank *r)
{
	static const uint64_t sizes[] = {1, 1000, 20000, 90000};

	for (uint64_t i = 0; i < STORY_OPS; i++) {
		struct call c = {.is_in_place = i % 3 == 0};
		struct mc_coll_result res;
		int rc;

		call_make_as(&c, r, i, MC_COLL_ALL_REDUCE, MC_COLL_F32, MC_COLL_SUM,
			     sizes[i % MC_ARRAY_LEN(sizes)]);
		rc = mc_coll_run(r->coll, &c.op, &res);
		if (rc < 0)
			(void)fprintf(stderr, "%s\n", world_explain(r));
		WORLD_CHECK(rc == 0 && call_is_right(&c, r, res.ranks));
		story_tell(r, i, &c, rc, &res);
		world_tick(r->w);
		call_free(&c);
	}
	return 0;
}

/* @return the ranks that were killed before they were through */
static uint64_t storm(uint32_t hosts, uint32_t ranks, uint64_t seed)
{
	struct world *w = world_make(seed);
	struct mc_rand rng;
	pid_t pids[WORLD_MAX];
	uint64_t victims = 0;
	uint32_t at;
	unsigned n;

	w->hosts = hosts;
	mc_rand_seed(&rng, seed);
	story_begin();
	n = 1 + (unsigned)mc_rand_below(&rng, ranks - 1);
	for (uint32_t i = 0; i < ranks; i++)
		pids[i] = world_fork(w, i, ranks, ranks, 0, storm_ops);
	/* At a moment that is counted in operations, not in time. */
	at = 1 + (uint32_t)mc_rand_below(&rng, ranks * STORY_OPS / 3);
	for (unsigned k = 0; k < n; k++) {
		uint32_t v = (uint32_t)mc_rand_below(&rng, ranks);

		world_wait_ticks(w, at);
		if (!(victims >> v & 1))
			(void)kill(pids[v], SIGKILL);
		victims |= 1ull << v;
		at += (uint32_t)mc_rand_below(&rng, 20);
	}
	for (uint32_t i = 0; i < ranks; i++) {
		int rc = world_reap(pids[i]);

		assert_true(rc == 0 || (rc == 1000 + SIGKILL && (victims >> i & 1)));
		if (rc == 0) /* was faster than the kill */
			victims &= ~(1ull << i);
	}
	story_compare(ranks, victims, STORY_OPS, STORY_NONE, MC_COLL_KIND_COUNT);
	world_free(w);
	return victims;
}

static void sigkill_at_any_time_leaves_the_survivors_with_one_story(void **state)
{
	const char *asked = getenv("MC_COLL_STORMS");
	uint64_t seed = mc_now_ns(), n = asked ? strtoull(asked, NULL, 10) : 16, killed = 0;
	static const uint32_t worlds[] = {2, 3, 4, 8};

	(void)state;
	print_message("seed %llu\n", (unsigned long long)seed);
	for (uint64_t i = 0; i < n; i++)
		killed += (uint64_t)__builtin_popcountll(storm(i / 4 % 2 ? 2 + (uint32_t)i % 3 : 0,
							       worlds[i % MC_ARRAY_LEN(worlds)],
							       seed + i));
	print_message("%llu kills in %llu runs\n", (unsigned long long)killed,
		      (unsigned long long)n);
	assert_true(killed > 0);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
	    cmocka_unit_test(sigkill_at_any_time_leaves_the_survivors_with_one_story),
	};

	return cmocka_run_group_tests(tests, story_setup, NULL);
}
