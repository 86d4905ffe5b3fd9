/*
 * coll_wide_test.c: operations between processes on several hosts, told apart by name, against one
 * process's oracle.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include "call.h"
#include "coll/net.h"

static void random_operations_over_hosts_equal_the_oracle(void **state)
{
	(void)state;
	for (uint32_t ranks = 2; ranks <= 4; ranks++)
		world_run_on(ranks, ranks, 0, call_random_ops);
	/* Two ranks on each of two hosts; and larger than the scratch. */
	world_run_on(2, 4, 0, call_random_ops);
	world_run_on(3, 3, 64u << 10, call_random_ops);
}

static bool is_near(const struct rank *r, uint32_t slot)
{
	return slot != r->rank && slot % r->w->hosts == r->rank % r->w->hosts;
}

/* Large operations of every kind; whose bytes came over a connection, and whose did not. */
static int reads_near(struct rank *r)
{
	for (uint32_t s = 0; s < r->ranks; s++)
		while (is_near(r, s) && !atomic_load(&r->coll->cur[s]->wire->is_lent))
			world_pause(MC_NS_PER_MS);
	world_tick(r->w);
	world_wait_ticks(r->w, r->ranks);
	for (unsigned kind = 0; kind < MC_COLL_KIND_COUNT; kind++) {
		struct call c = {0};

		call_make_as(&c, r, kind, (enum mc_coll_kind)kind, MC_COLL_F32, MC_COLL_SUM,
			     300000);
		WORLD_CHECK(mc_coll_run(r->coll, &c.op, NULL) == 0);
		WORLD_CHECK(call_is_right(&c, r, (1ull << r->ranks) - 1));
		call_free(&c);
	}
	for (uint32_t s = 0; s < r->ranks; s++) {
		const struct mc_coll_peer *p = r->coll->cur[s];

		if (is_near(r, s))
			WORLD_CHECK(p->wire->near_len > 0 && p->area_len == 0);
		else if (s != r->rank)
			WORLD_CHECK(p->wire->near_len == 0);
	}
	return 0;
}

static void ranks_of_one_host_read_large_inputs_in_each_others_memory(void **state)
{
	(void)state;
	world_run_on(2, 4, 0, reads_near);
	world_run_on(2, 3, 0, reads_near);
}

/* The root's result lies over the end of what it sends. */
static int overlaps(struct rank *r)
{
	enum { LEN = 3u << 20, SHIFT = 4096 };
	static uint8_t mem[LEN + SHIFT];
	struct mc_coll_part in = {mem, LEN}, out = {mem + SHIFT, LEN};
	struct mc_coll_op op = {.kind = MC_COLL_BROADCAST,
				.type = MC_COLL_BYTE,
				.in = &in,
				.out = &out,
				.nin = r->rank == 0,
				.nout = 1};

	for (uint32_t i = 0; i < LEN; i++)
		mem[i] = (uint8_t)(r->rank == 0 ? i / SHIFT * 7 + 1 : 0);
	WORLD_CHECK(mc_coll_run(r->coll, &op, NULL) == 0);
	for (uint32_t i = 0; i < LEN; i++)
		WORLD_CHECK(mem[SHIFT + i] == (uint8_t)(i / SHIFT * 7 + 1));
	return 0;
}

static void what_the_result_overwrites_is_sent_as_it_was(void **state)
{
	(void)state;
	world_run_on(2, 2, 0, overlaps);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
	    cmocka_unit_test(random_operations_over_hosts_equal_the_oracle),
	    cmocka_unit_test(ranks_of_one_host_read_large_inputs_in_each_others_memory),
	    cmocka_unit_test(what_the_result_overwrites_is_sent_as_it_was),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
