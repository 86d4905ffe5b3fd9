/*
 * coll_kill_test.c: ranks that die in the middle of operations. What survivors get must be the same
 * on all of them, for the same ranks, and nobody may hang.
 *
 * A rank is killed at an exact place by memory that it must not touch: at the k-th chunk of its
 * input it dies while it shows it, at the k-th chunk of its output after it has shown some of it;
 * and from outside, at any time.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/hash.h"
#include "call.h"
#include "coll/priv.h"

#define LETHAL 3     /* the operation in which somebody dies */
#define OPS 6	     /* of a trial */
#define STORM_OPS 60 /* of a trial with kills from outside */
#define ELEMS (5 * MC_COLL_CHUNK / 4)

/* In world.note: what to do, then for each rank and operation what came of it. */
enum { NOTE_KIND, NOTE_VICTIMS, NOTE_CHUNK, NOTE_IS_INPUT };

struct outcome {
	_Atomic uint64_t ranks, hash;
	_Atomic int rc;
	_Atomic int is_done;
};

static struct outcome (*outcomes)[STORM_OPS]; /* [rank][operation], shared */

static void guard(const struct mc_coll_part *part, uint64_t chunk)
{
	uintptr_t page = ((uintptr_t)part->addr + chunk * MC_COLL_CHUNK + 4095) & ~4095ull;

	if (mprotect((void *)page, 4096, PROT_NONE) < 0) /* page: of the part's memory */
		_exit(9);
}

static void record(const struct rank *r, uint64_t i, const struct call *c, int rc,
		   const struct mc_coll_result *res)
{
	struct outcome *o = &outcomes[r->rank][i];
	uint64_t hash = 0;

	/* What is different on each rank anyway is compared with the oracle alone. */
	if (rc == 0 && c->op.kind == MC_COLL_ALL_REDUCE)
		hash = mc_hash64(c->out[0].addr, c->out[0].count * 4, 0);
	atomic_store(&o->ranks, res->ranks);
	atomic_store(&o->hash, hash);
	atomic_store(&o->rc, rc);
	atomic_store(&o->is_done, 1);
}

static int lethal_ops(struct rank *r)
{
	struct world *w = r->w;
	bool is_victim = atomic_load(&w->note[NOTE_VICTIMS]) >> r->rank & 1;
	enum mc_coll_kind kind = (enum mc_coll_kind)atomic_load(&w->note[NOTE_KIND]);

	for (uint64_t i = 0; i < OPS; i++) {
		struct call c = {.is_in_place = i % 2 == 0};
		struct mc_coll_result res;
		int rc;

		call_make_as(&c, r, i, i == LETHAL ? kind : MC_COLL_ALL_REDUCE, MC_COLL_F32,
			     MC_COLL_SUM, i == LETHAL ? ELEMS : 1000);
		if (is_victim && i == LETHAL) {
			bool is_input = atomic_load(&w->note[NOTE_IS_INPUT]) != 0;

			if (is_input ? c.op.nin > 0 : c.op.nout > 0)
				guard(is_input ? &c.in[0] : &c.out[0],
				      atomic_load(&w->note[NOTE_CHUNK]));
		}
		rc = mc_coll_run(r->coll, &c.op, &res);
		if (is_victim && i == LETHAL) /* had no such memory to touch */
			_exit(0);
		WORLD_CHECK(rc == 0 || rc == -MC_E_PEER_DEAD);
		WORLD_CHECK(rc < 0 || call_is_right(&c, r, res.ranks));
		record(r, i, &c, rc, &res);
		call_free(&c);
	}
	return 0;
}

/* The survivors tell the same story. */
static void compare(uint32_t ranks, uint64_t victims, uint64_t nops, enum mc_coll_kind kind)
{
	bool is_rooted = kind == MC_COLL_REDUCE || kind == MC_COLL_GATHER;
	uint32_t first = (uint32_t)__builtin_ctzll(~victims);

	for (uint32_t q = first; q < ranks; q++) {
		for (uint64_t i = 0; i < nops && !(victims >> q & 1); i++) {
			struct outcome *a = &outcomes[first][i], *b = &outcomes[q][i];

			assert_true(atomic_load(&b->is_done));
			if (is_rooted && i == LETHAL)
				continue;
			assert_int_equal(atomic_load(&a->rc), atomic_load(&b->rc));
			assert_int_equal(atomic_load(&a->ranks), atomic_load(&b->ranks));
			assert_int_equal(atomic_load(&a->hash), atomic_load(&b->hash));
			assert_true(i <= LETHAL || kind == MC_COLL_KIND_COUNT ||
				    !(atomic_load(&b->ranks) & victims));
		}
	}
}

static void trial(uint32_t hosts, uint32_t ranks, uint64_t victims, enum mc_coll_kind kind,
		  uint64_t chunk, bool is_input)
{
	struct world *w = world_make(ranks * 100 + victims);
	pid_t pids[WORLD_MAX];

	w->hosts = hosts;
	memset(outcomes, 0, sizeof(*outcomes) * WORLD_MAX);
	atomic_store(&w->note[NOTE_KIND], kind);
	atomic_store(&w->note[NOTE_VICTIMS], victims);
	atomic_store(&w->note[NOTE_CHUNK], chunk);
	atomic_store(&w->note[NOTE_IS_INPUT], is_input);
	for (uint32_t i = 0; i < ranks; i++)
		pids[i] = world_fork(w, i, ranks, ranks, 0, lethal_ops);
	for (uint32_t i = 0; i < ranks; i++) {
		int rc = world_reap(pids[i]);

		if (victims >> i & 1)
			assert_true(rc == 0 || rc == 1000 + SIGSEGV);
		else
			assert_int_equal(rc, 0);
	}
	compare(ranks, victims, OPS, kind);
	world_free(w);
}

static void
a_rank_that_dies_at_any_chunk_of_any_operation_is_in_it_for_all_or_for_none(void **state)
{
	static const uint64_t chunks[] = {0, 1, 2, 3, 4};
	unsigned n = 0;

	(void)state;
	for (unsigned kind = MC_COLL_ALL_REDUCE; kind < MC_COLL_KIND_COUNT; kind++)
		for (uint32_t ranks = 2; ranks <= 4; ranks++)
			for (unsigned c = 0; c < MC_ARRAY_LEN(chunks); c++)
				for (int in = 0; in < 2; in++, n++)
					trial(0, ranks, 1ull << n % ranks, (enum mc_coll_kind)kind,
					      chunks[c], in);
	print_message("%u deaths\n", n);
}

static void each_rank_of_eight_in_turn_and_two_at_once(void **state)
{
	(void)state;
	for (unsigned v = 0; v < 8; v++)
		trial(0, 8, 1ull << v | (v % 2 ? 1ull << (v + 3) % 8 : 0), MC_COLL_ALL_REDUCE,
		      v % 5, v % 3 != 0);
}

static void a_death_over_hosts_is_in_every_operation_for_all_or_for_none(void **state)
{
	static const uint64_t chunks[] = {0, 2, 4};
	unsigned n = 0;

	(void)state;
	for (unsigned kind = MC_COLL_ALL_REDUCE; kind < MC_COLL_KIND_COUNT; kind++)
		for (uint32_t ranks = 2; ranks <= 4; ranks++)
			for (unsigned c = 0; c < MC_ARRAY_LEN(chunks); c++, n++)
				trial(ranks == 4 ? 2 : ranks, ranks, 1ull << n % ranks,
				      (enum mc_coll_kind)kind, chunks[c], n % 2 == 0);
	trial(4, 4, 3, MC_COLL_ALL_REDUCE, 2, true);
	trial(3, 6, 1 << 5 | 1 << 2, MC_COLL_ALL_GATHER, 1, false);
	print_message("%u deaths\n", n + 4);
}

static int storm_ops(struct rank *r)
{
	static const uint64_t sizes[] = {1, 1000, 20000, 90000};

	for (uint64_t i = 0; i < STORM_OPS; i++) {
		struct call c = {.is_in_place = i % 3 == 0};
		struct mc_coll_result res;
		int rc;

		call_make_as(&c, r, i, MC_COLL_ALL_REDUCE, MC_COLL_F32, MC_COLL_SUM,
			     sizes[i % MC_ARRAY_LEN(sizes)]);
		rc = mc_coll_run(r->coll, &c.op, &res);
		if (rc < 0)
			(void)fprintf(stderr, "%s\n", world_explain(r));
		WORLD_CHECK(rc == 0 && call_is_right(&c, r, res.ranks));
		record(r, i, &c, rc, &res);
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
	memset(outcomes, 0, sizeof(*outcomes) * WORLD_MAX);
	n = 1 + (unsigned)mc_rand_below(&rng, ranks - 1);
	for (uint32_t i = 0; i < ranks; i++)
		pids[i] = world_fork(w, i, ranks, ranks, 0, storm_ops);
	/* At a moment that is counted in operations, not in time. */
	at = 1 + (uint32_t)mc_rand_below(&rng, ranks * STORM_OPS / 3);
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
	compare(ranks, victims, STORM_OPS, MC_COLL_KIND_COUNT);
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

static int setup(void **state)
{
	const struct rlimit no_core = {0, 0};

	(void)state;
	(void)setrlimit(RLIMIT_CORE, &no_core);
	outcomes = mmap(NULL, sizeof(*outcomes) * WORLD_MAX, PROT_READ | PROT_WRITE,
			MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	return outcomes == MAP_FAILED;
}

int main(void)
{
	const struct CMUnitTest tests[] = {
	    cmocka_unit_test(
		a_rank_that_dies_at_any_chunk_of_any_operation_is_in_it_for_all_or_for_none),
	    cmocka_unit_test(each_rank_of_eight_in_turn_and_two_at_once),
	    cmocka_unit_test(a_death_over_hosts_is_in_every_operation_for_all_or_for_none),
	    cmocka_unit_test(sigkill_at_any_time_leaves_the_survivors_with_one_story),
	};

	return cmocka_run_group_tests(tests, setup, NULL);
}
