/*
 * coll_kill_test.c: ranks that die in the middle of operations. What survivors get must be the same
 * on all of them, for the same ranks, and nobody may hang.
 *
 * A rank is killed at an exact place by memory that it must not touch: at the k-th chunk of its
 * input it dies while it shows it, at the k-th chunk of its output after it has shown some of it.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>
#include <sys/mman.h>
#include <unistd.h>

#include "coll/priv.h"
#include "story.h"

#define ELEMS (5 * MC_COLL_CHUNK / 4)

static uint64_t chunk; /* the victims inherit them */
static bool is_input;

static void guard(const struct rank *r, const struct call *c)
{
	const struct mc_coll_part *part = is_input ? c->in : c->out;
	uintptr_t page = ((uintptr_t)part->addr + chunk * MC_COLL_CHUNK + 4095) & ~4095ull;

	(void)r;
	if ((is_input ? c->op.nin : c->op.nout) == 0)
		return;
	if (mprotect((void *)page, 4096, PROT_NONE) < 0) /* page: of the part's memory */
		_exit(9);
}

static unsigned trial(uint32_t hosts, uint32_t ranks, uint64_t victims, enum mc_coll_kind kind,
		      uint64_t at, bool is_in)
{
	const struct trial t = {hosts, ranks, victims, kind, ELEMS, guard};

	chunk = at;
	is_input = is_in;
	return (unsigned)__builtin_popcountll(trial_run(&t));
}

static void
a_rank_that_dies_at_any_chunk_of_any_operation_is_in_it_for_all_or_for_none(void **state)
{
	static const uint64_t chunks[] = {0, 1, 2, 3, 4};
	unsigned n = 0, died = 0;

	(void)state;
	for (unsigned kind = MC_COLL_ALL_REDUCE; kind < MC_COLL_KIND_COUNT; kind++)
		for (uint32_t ranks = 2; ranks <= 4; ranks++)
			for (unsigned c = 0; c < MC_ARRAY_LEN(chunks); c++)
				for (int in = 0; in < 2; in++, n++)
					died += trial(0, ranks, 1ull << n % ranks,
						      (enum mc_coll_kind)kind, chunks[c], in);
	print_message("%u deaths in %u operations\n", died, n);
	/* The others are of ranks that have no such input, or no such output. */
	assert_true(died >= n / 2);
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
	unsigned n = 0, died = 0;

	(void)state;
	for (unsigned kind = MC_COLL_ALL_REDUCE; kind < MC_COLL_KIND_COUNT; kind++)
		for (uint32_t ranks = 2; ranks <= 4; ranks++)
			for (unsigned c = 0; c < MC_ARRAY_LEN(chunks); c++, n++)
				died += trial(ranks == 4 ? 2 : ranks, ranks, 1ull << n % ranks,
					      (enum mc_coll_kind)kind, chunks[c], n % 2 == 0);
	died += trial(4, 4, 3, MC_COLL_ALL_REDUCE, 2, true);
	died += trial(3, 6, 1 << 5 | 1 << 2, MC_COLL_ALL_GATHER, 1, false);
	print_message("%u deaths in %u operations\n", died, n + 2);
	assert_true(died >= n / 2);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
	    cmocka_unit_test(
		a_rank_that_dies_at_any_chunk_of_any_operation_is_in_it_for_all_or_for_none),
	    cmocka_unit_test(each_rank_of_eight_in_turn_and_two_at_once),
	    cmocka_unit_test(a_death_over_hosts_is_in_every_operation_for_all_or_for_none),
	};

	return cmocka_run_group_tests(tests, story_setup, NULL);
}
