/*
 * coll_test.c: operations between processes against one process's oracle.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>
#include <string.h>

#include "call.h"
#include "coll/priv.h"

static uint64_t all_of(const struct rank *r)
{
	return (1ull << r->ranks) - 1;
}

static void random_operations_of_every_kind_and_type_equal_the_oracle(void **state)
{
	(void)state;
	for (uint32_t ranks = 1; ranks <= 5; ranks++)
		world_run(ranks, 0, call_random_ops);
}

static void operations_larger_than_the_scratch_are_cut_into_rounds(void **state)
{
	(void)state;
	world_run(3, 64u << 10, call_random_ops);
}

static int every_type(struct rank *r)
{
	uint64_t number = 0;

	for (unsigned t = 0; t < MC_COLL_TYPE_COUNT; t++) {
		for (unsigned k = 0; k < MC_COLL_REDUCE_COUNT; k++) {
			struct call c = {0};
			struct mc_coll_result res;

			if (!mc_coll_kernel_has((enum mc_coll_type)t, (enum mc_coll_reduce)k))
				continue;
			call_make_as(&c, r, number++, MC_COLL_ALL_REDUCE, (enum mc_coll_type)t,
				     (enum mc_coll_reduce)k, 70001);
			WORLD_CHECK(mc_coll_run(r->coll, &c.op, &res) == 0);
			WORLD_CHECK(call_is_right(&c, r, all_of(r)));
			call_free(&c);
		}
	}
	return number > 80 ? 0 : 1;
}

static void every_reduction_of_every_type_in_chunks_and_shares(void **state)
{
	(void)state;
	world_run(4, 0, every_type);
}

static int mismatch(struct rank *r)
{
	float x[4] = {0};
	struct mc_coll_part part = {x, r->rank == 1 ? 3 : 4};
	struct mc_coll_op op = {.kind = MC_COLL_ALL_REDUCE,
				.type = MC_COLL_F32,
				.in = &part,
				.out = &part,
				.nin = 1,
				.nout = 1};
	struct mc_coll_op barrier = {.kind = MC_COLL_BARRIER};

	WORLD_CHECK(mc_coll_run(r->coll, &op, NULL) == -MC_E_INVAL);
	WORLD_CHECK(strstr(world_explain(r), "count 3"));
	/* And the group goes on. */
	WORLD_CHECK(mc_coll_run(r->coll, &barrier, NULL) == 0);
	return 0;
}

static void ranks_that_ask_for_different_things_are_told_which(void **state)
{
	(void)state;
	world_run(3, 0, mismatch);
	world_run_on(3, 3, 0, mismatch);
}

static int refused(struct rank *r)
{
	struct mc_coll_op op = {.kind = MC_COLL_ALL_REDUCE, .type = MC_COLL_BYTE};
	struct mc_coll_part part = {NULL, 4};

	WORLD_CHECK(mc_coll_run(r->coll, &op, NULL) == -MC_E_INVAL);
	op.type = MC_COLL_F32;
	WORLD_CHECK(mc_coll_run(r->coll, &op, NULL) == -MC_E_INVAL);
	op.in = op.out = &part;
	op.nin = op.nout = 1;
	WORLD_CHECK(mc_coll_run(r->coll, &op, NULL) == -MC_E_INVAL);
	op.kind = MC_COLL_BROADCAST;
	op.root = 9;
	WORLD_CHECK(mc_coll_run(r->coll, &op, NULL) == -MC_E_INVAL);
	return 0;
}

static void wrong_arguments_are_refused_before_anyone_is_told(void **state)
{
	(void)state;
	world_run(2, 0, refused);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
	    cmocka_unit_test(random_operations_of_every_kind_and_type_equal_the_oracle),
	    cmocka_unit_test(operations_larger_than_the_scratch_are_cut_into_rounds),
	    cmocka_unit_test(every_reduction_of_every_type_in_chunks_and_shares),
	    cmocka_unit_test(ranks_that_ask_for_different_things_are_told_which),
	    cmocka_unit_test(wrong_arguments_are_refused_before_anyone_is_told),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
