/*
 * extent_test.c: random histories against a map with one byte for each unit, and how full a pool
 * of mixed lengths gets.
 */
#include "meta/extent.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

#include "base/mem.h"
#include "base/rand.h"

#define UNITS 4096u
#define HELD_MAX 1024u

struct held {
	uint64_t off, len;
	uint32_t id;
};

struct model {
	struct mc_extent *e;
	uint8_t taken[UNITS]; /* a byte for each unit */
	struct held held[HELD_MAX];
	unsigned nheld;
};

static uint64_t largest_run(const struct model *m)
{
	uint64_t best = 0, run = 0;

	for (unsigned i = 0; i < UNITS; i++) {
		run = m->taken[i] ? 0 : run + 1;
		best = mc_max(best, run);
	}
	return best * MC_EXTENT_UNIT;
}

/* A free place for it is there by the map. */
static bool fits(const struct model *m, uint64_t len, uint32_t align)
{
	unsigned want = (unsigned)((len + MC_EXTENT_UNIT - 1) / MC_EXTENT_UNIT);
	unsigned step = align / MC_EXTENT_UNIT;

	for (unsigned at = 0; at + want <= UNITS; at += step) {
		unsigned i = 0;

		while (i < want && !m->taken[at + i])
			i++;
		if (i == want)
			return true;
	}
	return false;
}

static void model_alloc(struct model *m, struct mc_rand *rand)
{
	bool is_paged = mc_rand_below(rand, 3) == 0;
	uint64_t len = 1 + mc_rand_below(rand, is_paged ? 40000 : 3000), off;
	uint32_t align = is_paged ? 4096 : 64, id;
	int rc = mc_extent_alloc(m->e, len, align, &off, &id);

	if (rc < 0) {
		assert_true(rc == (m->nheld == HELD_MAX ? -MC_E_LIMIT : -MC_E_NOSPACE));
		assert_true(m->nheld == HELD_MAX || !fits(m, len, align));
		return;
	}
	len = (len + MC_EXTENT_UNIT - 1) / MC_EXTENT_UNIT * MC_EXTENT_UNIT;
	assert_true(off % align == 0 && off + len <= (uint64_t)UNITS * MC_EXTENT_UNIT);
	for (uint64_t u = off / MC_EXTENT_UNIT; u < (off + len) / MC_EXTENT_UNIT; u++) {
		assert_false(m->taken[u]);
		m->taken[u] = 1;
	}
	m->held[m->nheld++] = (struct held){.off = off, .len = len, .id = id};
}

static void model_free(struct model *m, struct mc_rand *rand)
{
	struct held *h;

	if (m->nheld == 0)
		return;
	h = &m->held[mc_rand_below(rand, m->nheld)];
	mc_extent_free(m->e, h->id);
	memset(m->taken + h->off / MC_EXTENT_UNIT, 0, h->len / MC_EXTENT_UNIT);
	*h = m->held[--m->nheld];
}

static void random_history_agrees_with_a_map(void **state)
{
	for (uint64_t seed = 1; seed <= 20; seed++) {
		struct model *m = mc_calloc(1, sizeof(*m));
		struct mc_rand rand;
		uint64_t used = 0;

		print_message("seed %llu\n", (unsigned long long)seed);
		mc_rand_seed(&rand, seed);
		assert_int_equal(mc_extent_open((uint64_t)UNITS * MC_EXTENT_UNIT, HELD_MAX, &m->e),
				 0);
		for (unsigned i = 0; i < 3000; i++) {
			/* Fills and empties by turns. */
			if (mc_rand_below(&rand, 10) < (i / 500 % 2 ? 3 : 7))
				model_alloc(m, &rand);
			else
				model_free(m, &rand);
			assert_true(mc_extent_largest(m->e) == largest_run(m));
		}
		for (unsigned u = 0; u < UNITS; u++)
			used += m->taken[u];
		assert_true(mc_extent_used(m->e) == used * MC_EXTENT_UNIT);
		while (m->nheld)
			model_free(m, &rand);
		assert_true(mc_extent_used(m->e) == 0);
		assert_true(mc_extent_largest(m->e) == mc_extent_capacity(m->e));
		mc_extent_close(m->e);
		mc_free(m);
	}
	(void)state;
}

/* 256 B … 16 MiB come and go at random in 1 GiB: bytes in use at the first refusals. */
static void pool_of_mixed_lengths_gets_full(void **state)
{
	enum { N = 1u << 20 };
	struct held *held = mc_calloc(N, sizeof(*held));
	struct mc_extent *e;
	struct mc_rand rand;
	unsigned n = 0, refused = 0;
	uint64_t lowest = UINT64_MAX;

	assert_non_null(held);
	mc_rand_seed(&rand, 3);
	assert_int_equal(mc_extent_open(1ull << 30, N, &e), 0);
	while (refused < 20000) {
		uint64_t len = 256ull << mc_rand_below(&rand, 17);
		uint32_t align = len >= 65536 ? 4096 : 64;
		struct held *h = &held[n];

		len += align * mc_rand_below(&rand, 4);
		if (n < N && mc_extent_alloc(e, len, align, &h->off, &h->id) == 0) {
			n++;
			continue;
		}
		refused++;
		lowest = mc_min(lowest, mc_extent_used(e));
		for (int i = 0; i < 4 && n > 0; i++) { /* what an eviction would free */
			h = &held[mc_rand_below(&rand, n)];
			mc_extent_free(e, h->id);
			*h = held[--n];
		}
	}
	print_message("used at least %.3f at a refusal\n",
		      (double)lowest / (double)mc_extent_capacity(e));
	assert_true(lowest > mc_extent_capacity(e) / 10 * 8);
	mc_extent_close(e);
	mc_free(held);
	(void)state;
}

static void pool_of_one_length_is_used_up(void **state)
{
	struct mc_extent *e;
	uint64_t off;
	uint32_t ids[64], id;

	assert_int_equal(mc_extent_open((uint64_t)64 * 69632 + 63, 100, &e), 0);
	for (int round = 0; round < 3; round++) {
		for (int i = 0; i < 64; i++)
			assert_int_equal(mc_extent_alloc(e, 69632, 4096, &off, &ids[i]), 0);
		assert_int_equal(mc_extent_alloc(e, 64, 64, &off, &id), -MC_E_NOSPACE);
		for (int i = 0; i < 64; i += 2)
			mc_extent_free(e, ids[i]);
		for (int i = 0; i < 64; i += 2)
			assert_int_equal(mc_extent_alloc(e, 69632, 4096, &off, &ids[i]), 0);
		for (int i = 0; i < 64; i++)
			mc_extent_free(e, ids[i]);
	}
	mc_extent_close(e);
	(void)state;
}

static void limits_are_kept(void **state)
{
	struct mc_extent *e;
	uint64_t off;
	uint32_t id;

	assert_int_equal(mc_extent_open(1, 0, &e), -MC_E_INVAL);
	assert_int_equal(mc_extent_open(MC_EXTENT_LEN_MAX + 1, 1, &e), -MC_E_INVAL);
	assert_int_equal(mc_extent_open(63, 1, &e), 0);
	assert_int_equal(mc_extent_alloc(e, 1, 64, &off, &id), -MC_E_NOSPACE);
	assert_true(mc_extent_largest(e) == 0);
	mc_extent_close(e);
	assert_int_equal(mc_extent_open(1 << 20, 1, &e), 0);
	assert_int_equal(mc_extent_alloc(e, UINT64_MAX, 64, &off, &id), -MC_E_NOSPACE);
	assert_int_equal(mc_extent_alloc(e, 1, 64, &off, &id), 0);
	assert_int_equal(mc_extent_alloc(e, 1, 64, &off, &id), -MC_E_LIMIT);
	mc_extent_close(e);
	(void)state;
}

int main(void)
{
	const struct CMUnitTest tests[] = {
	    cmocka_unit_test(random_history_agrees_with_a_map),
	    cmocka_unit_test(pool_of_mixed_lengths_gets_full),
	    cmocka_unit_test(pool_of_one_length_is_used_up),
	    cmocka_unit_test(limits_are_kept),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
