/*
 * coll_rest_test.c: the memory of large operations is given back when nobody needs it any more, and
 * not before.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>
#include <string.h>
#include <sys/stat.h>

#include "base/clock.h"
#include "call.h"
#include "coll/priv.h"

static uint64_t all_of(const struct rank *r)
{
	return (1ull << r->ranks) - 1;
}

static uint64_t memory_of(const struct rank *r)
{
	struct stat st;
	uint64_t copies = 0;

	/* Over hosts: what the others showed. */
	pthread_mutex_lock(&r->coll->run_lock);
	for (uint32_t s = 0; s < r->ranks; s++) {
		struct mc_coll_peer *p = r->coll->cur[s];

		copies += p && p->wire ? p->area_len : 0;
	}
	pthread_mutex_unlock(&r->coll->run_lock);
	return fstat(r->coll->fd, &st) < 0 ? UINT64_MAX : (uint64_t)st.st_blocks * 512 + copies;
}

/* Large operations of kinds that all read, or only one does; rest; the same again. */
static int rests(struct rank *r)
{
	static const enum mc_coll_kind kinds[] = {MC_COLL_ALL_REDUCE, MC_COLL_BROADCAST,
						  MC_COLL_ALL_GATHER, MC_COLL_GATHER};
	uint64_t number = 0, end_ns, used = 0, now;

	for (size_t i = 0; i < MC_ARRAY_LEN(kinds); i++) {
		for (int k = 0; k < 3; k++) {
			struct call c = {0};

			call_make_as(&c, r, number++, kinds[i], MC_COLL_F32, MC_COLL_SUM, 3u << 19);
			WORLD_CHECK(mc_coll_run(r->coll, &c.op, NULL) == 0);
			used = mc_max(used, memory_of(r));
			WORLD_CHECK(call_is_right(&c, r, all_of(r)));
			call_free(&c);
		}
		if (kinds[i] == MC_COLL_ALL_REDUCE)
			WORLD_CHECK(used >= 6u << 20);
		end_ns = mc_now_ns() + 30 * MC_NS_PER_S;
		while (memory_of(r) >= 1u << 20 && mc_now_ns() < end_ns)
			world_pause(20 * MC_NS_PER_MS);
		now = memory_of(r);
		/* Over hosts what others go on to show takes memory here at once. */
		world_tick(r->w);
		world_wait_ticks(r->w, ((uint32_t)i + 1) * r->ranks);
		WORLD_CHECK(now < 1u << 20);
	}
	return 0;
}

/* Rank 1 neither sends nor takes any of what the others exchange, and calls nothing after it. */
static int has_no_part(struct rank *r)
{
	static uint8_t from[3u << 20], to[3u << 20];
	struct mc_coll_part in[3] = {{from, 0}, {from, 0}, {from, 0}},
			    out[3] = {{to, 0}, {to, 0}, {to, 0}};
	struct mc_coll_op op = {.kind = MC_COLL_ALL_TO_ALL,
				.type = MC_COLL_BYTE,
				.in = in,
				.out = out,
				.nin = 3,
				.nout = 3};
	uint64_t end_ns = mc_now_ns() + 30 * MC_NS_PER_S, now;

	if (r->rank != 1)
		in[2 - r->rank].count = out[2 - r->rank].count = sizeof(from);
	WORLD_CHECK(mc_coll_run(r->coll, &op, NULL) == 0);
	while (memory_of(r) >= 1u << 20 && mc_now_ns() < end_ns)
		world_pause(20 * MC_NS_PER_MS);
	now = memory_of(r);
	/* Nobody leaves before all have looked: who has left reads nothing any more. */
	world_tick(r->w);
	world_wait_ticks(r->w, 3);
	WORLD_CHECK(now < 1u << 20);
	return 0;
}

static void memory_is_given_back_though_a_rank_took_no_part(void **state)
{
	(void)state;
	world_run(3, 0, has_no_part);
	world_run_on(3, 3, 0, has_no_part);
}

static void memory_of_large_operations_is_given_back(void **state)
{
	(void)state;
	world_run(3, 0, rests);
	world_run_on(3, 3, 0, rests);
}

/* Nothing is taken from a rank that has not read it yet, however long that takes. */
static int slow_reader(struct rank *r)
{
	static uint8_t bytes[5u << 20];
	struct mc_coll_part part = {bytes, sizeof(bytes)};
	struct mc_coll_op op = {.kind = MC_COLL_BROADCAST,
				.type = MC_COLL_BYTE,
				.in = &part,
				.out = &part,
				.nin = r->rank == 0,
				.nout = 1};

	if (r->rank == 0)
		memset(bytes, 7, sizeof(bytes));
	else
		world_pause(3500 * MC_NS_PER_MS);
	WORLD_CHECK(mc_coll_run(r->coll, &op, NULL) == 0);
	if (r->rank == 0) {
		world_pause(2500 *
			    MC_NS_PER_MS); /* the root is through; several looks of the loop */
		WORLD_CHECK(memory_of(r) >= sizeof(bytes));
	}
	for (size_t i = 0; i < sizeof(bytes); i++)
		WORLD_CHECK(bytes[i] == 7);
	return 0;
}

static void what_a_slow_rank_has_not_read_is_kept(void **state)
{
	(void)state;
	world_run(2, 0, slow_reader);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
	    cmocka_unit_test(memory_of_large_operations_is_given_back),
	    cmocka_unit_test(memory_is_given_back_though_a_rank_took_no_part),
	    cmocka_unit_test(what_a_slow_rank_has_not_read_is_kept),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
