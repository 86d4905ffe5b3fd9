/*
 * coll_test.c: operations between processes against one process's oracle.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>
#include <stdio.h>
#include <string.h>

#include "base/clock.h"
#include "call.h"
#include "coll/priv.h"

#define OPS 400
#define ASYNC_MAX 32

static uint64_t all_of(const struct rank *r)
{
	return (1ull << r->ranks) - 1;
}

/* Random operations; some in the background, several at once. */
static int random_ops(struct rank *r)
{
	static struct call calls[ASYNC_MAX];
	struct mc_coll_work *works[ASYNC_MAX];
	unsigned n = 0;

	for (uint64_t i = 0; i < OPS; i++) {
		struct call *c = &calls[n];
		struct mc_coll_result res;

		call_make(c, r, i, 200000);
		if (c->is_async) {
			WORLD_CHECK(mc_coll_start(r->coll, &c->op, &works[n]) == 0);
			n++;
		} else {
			int rc = mc_coll_run(r->coll, &c->op, &res);

			if (rc < 0)
				(void)fprintf(stderr, "%s\n", world_explain(r));
			WORLD_CHECK(rc == 0 && res.ranks == all_of(r) && res.failed == 0);
			WORLD_CHECK(call_is_right(c, r, res.ranks));
			call_free(c);
		}
		if (n < ASYNC_MAX && i + 1 < OPS)
			continue;
		for (unsigned k = 0; k < n; k++) {
			WORLD_CHECK(mc_coll_work_wait(works[k], 60 * MC_NS_PER_S, &res) == 0);
			WORLD_CHECK(res.rc == 0 && call_is_right(&calls[k], r, res.ranks));
			mc_coll_work_free(works[k]);
			call_free(&calls[k]);
		}
		n = 0;
	}
	return 0;
}

static void random_operations_of_every_kind_and_type_equal_the_oracle(void **state)
{
	(void)state;
	for (uint32_t ranks = 1; ranks <= 5; ranks++)
		world_run(ranks, 0, random_ops);
}

static void operations_larger_than_the_scratch_are_cut_into_rounds(void **state)
{
	(void)state;
	world_run(3, 64u << 10, random_ops);
}

static void random_operations_over_hosts_equal_the_oracle(void **state)
{
	(void)state;
	for (uint32_t ranks = 2; ranks <= 4; ranks++)
		world_run_on(ranks, ranks, 0, random_ops);
	/* Two ranks on each of two hosts; and larger than the scratch. */
	world_run_on(2, 4, 0, random_ops);
	world_run_on(3, 3, 64u << 10, random_ops);
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
	    cmocka_unit_test(random_operations_over_hosts_equal_the_oracle),
	    cmocka_unit_test(every_reduction_of_every_type_in_chunks_and_shares),
	    cmocka_unit_test(ranks_that_ask_for_different_things_are_told_which),
	    cmocka_unit_test(wrong_arguments_are_refused_before_anyone_is_told),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
